"""Every option that goes with the others, and what a job sees of them; for containers and for virtual machines."""

from typing import Any

# The snap of aproxy is not available here: this stands in for snapd, with all that the charm asks of it.
SNAP = """#!/bin/sh
cat > /usr/local/bin/snap << 'END'
#!/bin/sh
case "$1" in
list) [ -e /root/installed ] ;;
install) touch /root/installed ;;
services) echo "aproxy enabled active" ;;
esac
END
chmod 755 /usr/local/bin/snap
"""
ACTION = "octo-org/everything@v1"
EVERY_OPTION: dict[str, Any] = {
    "registration": "jit",
    "labels": "every, option",
    "vm-cpu": 2,
    "vm-memory": "2GiB",
    "vm-disk": "3GiB",
    "base-image": "resolute",
    "image-script": SNAP,
    "cached-actions": ACTION,
    "reconcile-interval": 20,
    "replace-on-exit": True,
    "idle-runner-max-age": 48,
    "allow-external-contributor": False,
    "pre-job-script": '#!/bin/sh\necho "operator: $GITHUB_REPOSITORY"\n',
    "denylist": "192.0.2.128/25",
    "dockerhub-mirror": "https://mirror.example:5000",
    "runner-http-proxy": "http://192.0.2.2:3128",
    "experimental-use-aproxy": True,
    "aproxy-exclude-addresses": "192.0.2.64/26",
    "aproxy-redirect-ports": "80, 443, 8443-8444",
    "memory-reserve": "1GiB",
    "cpu-overcommit": "3.5",
    "metrics-port": 9500,
}
# Given by the test, of the deployment, or without an effect beside others.
OTHERS = {
    *("app-secret", "ca-certificates", "extra-packages", "image-source", "virtual-machines"),
    *("flavors", "scaling", "min-idle", "demand-fallback"),
    *("repo-policy-compliance-url", "repo-policy-compliance-token"),
    *("path", "github-url", "test-mode", "runner-storage", "group", "token", "token-secret"),
}
ABOUT = """
echo "$DOCKERHUB_MIRROR"
sudo nft list table ip aproxy
openssl verify -CAfile /etc/ssl/certs/ca-certificates.crt /usr/local/share/ca-certificates/github-runner*.crt
"""

# One line or more of the job's log for each option that shows there.
PROMISES = {
    "cached-actions": "Copied action archive '/opt/github-runner-actions/octo-org_everything/",
    "pre-job-script": "operator: octo-org/demo",
    "dockerhub-mirror": "https://mirror.example:5000",
    "aproxy-redirect-ports": "8443-8444",
    "aproxy-exclude-addresses": "192.0.2.64/26",
    "ca-certificates": ".crt: OK",
}


def missing_in(log: list[str]) -> set[str]:
    """The options of which nothing is seen in a job's log."""
    return {option for option, text in PROMISES.items() if not any(text in line for line in log)}
