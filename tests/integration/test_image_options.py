"""What options add to the image of runners, built outside of hooks."""

import http.server
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from sandbox.github import tls
from sandbox.lab import lxd_setup
from tests.support.deployment import Deployment, wait_for
from tests.support.options import ABOUT, ACTION, EVERY_OPTION, missing_in

BUILD = "ghro.build-image.github-runner-0.service"
FAILURE = "/var/lib/github-runner/build-image.failure"
# The charm's own packages take some minutes: only the package lists and the option's package are from the distribution.
APT_GET = r"""#!/bin/sh
case "$*" in
    *update | *" tree") exec /usr/bin/apt-get "$@" ;;
esac
"""
GOOD = """#!/bin/bash
set -eu
command -v tree
echo "user $(id -un), $DEBIAN_FRONTEND" > /etc/from-the-script
"""
BAD = "#!/bin/sh\necho why it failed\nexit 7\n"


@pytest.fixture
def source(deployment: Deployment) -> Iterator[str]:
    """An image to build from, in which apt installs one package only. The unit's own image is put back at the end."""
    machine, before = deployment.machine, deployment.lxd("images/aliases/jammy")["target"]
    machine.exec("lxc", "init", "--quiet", "sandbox-base", "quick", "--storage", "runner")
    machine.push("/root/apt-get", APT_GET)
    machine.exec("lxc", "file", "push", "--mode=755", "/root/apt-get", "quick/usr/local/sbin/apt-get")
    machine.exec("lxc", "publish", "--quiet", "quick", "--alias", "quick", "--compression", "none")
    machine.exec("lxc", "delete", "quick")
    yield "local:quick"
    machine.call("systemctl", "stop", BUILD)
    machine.exec("systemctl", "reset-failed", BUILD, check=False)
    machine.exec("rm", "-f", FAILURE)
    if deployment.lxd("images/aliases/jammy")["target"] != before:
        machine.exec("lxc", "image", "delete", "jammy")
        machine.exec("lxc", "image", "alias", "delete", f"jammy-{before[:12]}")
        machine.exec("lxc", "image", "alias", "create", "jammy", before)
    machine.exec("lxc", "image", "delete", "quick")


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy for plain HTTP, outside the machine, and what it was asked for."""
    asked: list[str] = []

    class Forward(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            try:
                with urllib.request.urlopen(self.path, timeout=30) as answer:
                    status, body = answer.status, answer.read()
            except urllib.error.HTTPError as error:
                status, body = error.code, b""
                error.close()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((lxd_setup.bridge_address(), 0), Forward) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://{server.server_address[0]!s}:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def built(deployment: Deployment) -> str:
    """How the build ended."""

    def state() -> str:
        found = deployment.machine.call("systemctl", "is-active", BUILD).stdout.strip()
        return found if found in ("inactive", "failed") else ""

    ended: str = wait_for(state, "the end of the build", 150)
    return ended


@pytest.mark.timeout(280)
def test_packages_and_a_script_of_the_operator(deployment: Deployment, source: str) -> None:
    """A change builds a new image, which jobs get; a change that cannot be built keeps the image, and is named."""
    [first] = deployment.keep(1)
    before = deployment.lxd("images/aliases/jammy")["target"]

    deployment.unit.set_config(
        {"image-source": source, "extra-packages": "tree, no-such-package", "image-script": GOOD}
    )
    assert "; image jammy is not built yet with the changed options" in deployment.status()[1]
    assert built(deployment) == "failed"
    deployment.reconcile()
    assert "extra-packages failed" in deployment.status()[1]
    assert "no-such-package" in deployment.status()[1]
    assert (deployment.online(), deployment.lxd("images/aliases/jammy")["target"]) == ([first], before)

    deployment.unit.set_config({"extra-packages": "tree"})
    assert built(deployment) == "inactive"
    wait_for(lambda: deployment.online() not in ([], [first]), "a runner of the new image")
    [second] = deployment.wait_online(1)
    assert deployment.status() == ("active", "1 runner: 1 idle, 0 busy (test mode: containers)")
    job = deployment.job("tree --version; cat /etc/from-the-script; sudo ls -A /root")
    assert job["conclusion"] == "success", "\n".join(job["log"])
    assert "user root, noninteractive" in job["log"]
    assert not [line for line in job["log"] if "github-runner-image" in line]

    deployment.wait_gone(second)
    deployment.reconcile()
    [third] = deployment.wait_online(1)
    image = deployment.lxd("images/aliases/jammy")["target"]
    deployment.unit.set_config({"image-script": BAD})
    assert built(deployment) == "failed"
    number = deployment.machine.exec("systemctl", "show", "--property=InvocationID", BUILD)
    deployment.reconcile()
    assert "the previous image stays in use: image jammy: image-script failed: exit code 7" in deployment.status()[1]
    assert "why it failed" in deployment.machine.exec("journalctl", "--no-pager", "-u", BUILD)
    assert deployment.machine.exec("systemctl", "show", "--property=InvocationID", BUILD) == number
    assert (deployment.online(), deployment.lxd("images/aliases/jammy")["target"]) == ([third], image)


@pytest.mark.timeout(280)
def test_every_option_that_goes_with_others(
    deployment: Deployment, source: str, policy: str, proxy: tuple[str, list[str]]
) -> None:
    """One unit has them all at once, and a job finds what each of them promises.

    The image's packages come through the runners' proxy.
    """
    address, asked = proxy
    authority = tls.make("github.example").pem
    deployment.control.add_action(ACTION)
    deployment.keep(1)
    deployment.use_app("every")

    given = {"image-source": source, "ca-certificates": authority, "extra-packages": "tree"}
    given |= {"repo-policy-compliance-url": policy, "repo-policy-compliance-token": "t", "runner-http-proxy": address}
    # That of a unit cannot change: the tests on virtual machines and of a memory pool have another one.
    changes = {name: value for name, value in EVERY_OPTION.items() if name != "base-image"}
    deployment.unit.set_config({**changes, **given})
    assert built(deployment) == "inactive", deployment.machine.exec("journalctl", "--no-pager", "-n", "30", "-u", BUILD)
    assert any("/tree_" in path for path in asked)

    def is_there() -> bool:
        online = [item for item in deployment.control.runners() if item["status"] == "online"]
        return any(label["name"] == "every" for item in online for label in item["labels"])

    wait_for(is_there, "a runner with everything", 120)
    deployment.wait_online(1)
    steps = [{"uses": ACTION}, {"run": f"{ABOUT}command -v tree"}]
    job = deployment.job("", steps=steps, debug=True, event="push", labels=["option"])

    assert job["conclusion"] == "success", "\n".join(job["log"])
    assert missing_in(job["log"]) == set()
    assert {"The repository policy check has passed.", "/usr/bin/tree"} <= set(job["log"])
    assert deployment.status()[0] == "active", deployment.status()
