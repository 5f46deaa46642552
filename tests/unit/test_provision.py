"""What an instance gets, and what its scripts do when bash runs them."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import provision
import times
from metrics.runner import (
    FILE_SIZE_BYTES_LIMIT,
    POST_JOB_METRICS_FILE_NAME,
    PRE_JOB_METRICS_FILE_NAME,
    PostJobMetrics,
    PostJobStatus,
    PreJobMetrics,
)
from models import Arch, GithubOrg, GithubRepo, RunnerConfig, Snap, SSHDebugConnection
from option_values import parse_addresses, parse_group, parse_labels, parse_mirror, parse_ports
from provision import InstanceFile
from proxies import ProxyConfig, Redirect

TEMPLATES = Path(__file__).resolve().parent.parent.parent / "templates"
PLAIN = RunnerConfig(
    app_name="runner",
    issue_metrics=True,
    labels=("runner", "jammy", "gpu"),
    lxd_storage_path=Path("/pool"),
    name="runner-0-abc",
    path=GithubRepo("octo-org", "demo"),
    proxies=ProxyConfig(),
)
PROXIES = ProxyConfig("http://proxy:3128", "http://proxy:3129", "localhost,10.0.0.0/8")
TMATE = SSHDebugConnection("10.1.2.3", 10022, "SHA256:rsa", "SHA256:ed25519")
MIRROR = "https://mirror.example:5000"

DAEMON = "/etc/docker/daemon.json"
HTTP_PROXY = "/etc/systemd/system/docker.service.d/http-proxy.conf"
CLIENTS = ("/root/.docker/config.json", "/home/ubuntu/.docker/config.json")
APPLICATION = "/home/ubuntu/github-runner"

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games:/usr/local/games:/snap/bin"
ENV_HEAD = (
    f"PATH=/home/ubuntu/.local/bin:{PATH}\n"
    "LANG=C.UTF-8\n"
    "XDG_RUNTIME_DIR=/run/user/1000\n"
    "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus\n"
)
HOOK = (
    "ACTIONS_RUNNER_HOOK_JOB_STARTED=/home/ubuntu/github-runner/pre-job.sh\n"
    "ACTIONS_RUNNER_ACTION_ARCHIVE_CACHE=/opt/github-runner-actions\n"
)
PROXY_LINES = (
    "HTTP_PROXY=http://proxy:3128\n"
    "HTTPS_PROXY=http://proxy:3129\n"
    "NO_PROXY=localhost,10.0.0.0/8,runner-0-abc,.svc\n"
    "http_proxy=http://proxy:3128\n"
    "https_proxy=http://proxy:3129\n"
    "no_proxy=localhost,10.0.0.0/8,runner-0-abc,.svc\n"
)
HTTPS_ONLY_LINES = (
    "HTTPS_PROXY=http://proxy:3129\n"
    "NO_PROXY=runner-0-abc,.svc\n"
    "https_proxy=http://proxy:3129\n"
    "no_proxy=runner-0-abc,.svc\n"
)
MIRROR_LINES = f"DOCKERHUB_MIRROR={MIRROR}\nCONTAINER_REGISTRY_URL={MIRROR}\n"
TMATE_LINES = (
    "TMATE_SERVER_HOST=10.1.2.3\n"
    "TMATE_SERVER_PORT=10022\n"
    "TMATE_SERVER_RSA_FINGERPRINT=SHA256:rsa\n"
    "TMATE_SERVER_ED25519_FINGERPRINT=SHA256:ed25519\n"
)
UNIT = (
    "[Service]\n"
    'Environment="HTTP_PROXY=http://proxy:3128"\n'
    'Environment="HTTPS_PROXY=http://proxy:3129"\n'
    'Environment="NO_PROXY=localhost,10.0.0.0/8,runner-0-abc,.svc"\n'
)
CLIENT = (
    '{"proxies": {"default": {"httpProxy": "http://proxy:3128", "httpsProxy": "http://proxy:3129", '
    '"noProxy": "localhost,10.0.0.0/8,runner-0-abc,.svc"}}}\n'
)


def rendered(config: RunnerConfig = PLAIN, arch: Arch = Arch.X64, **options: Any) -> dict[str, InstanceFile]:
    found = provision.files(provision.environment(TEMPLATES), config, arch=arch, **options)
    assert len({file.path for file in found}) == len(found)
    return {str(file.path): file for file in found}


def content(path: str, config: RunnerConfig = PLAIN, **options: Any) -> str | None:
    file = rendered(config, **options).get(path)
    return None if file is None else file.content


def test_certificates_of_the_option_are_in_each_runner() -> None:
    """The system, Node.js and with them the runner agent trust the option's authorities before anything connects."""
    folder = "/usr/local/share/ca-certificates"
    config = replace(PLAIN, ca_certificates=("one\n", "two\n"))
    found = rendered(config)
    names = {path.rpartition("/")[2]: file.content for path, file in found.items() if path.startswith(folder)}
    setup, env = found[str(provision.SETUP_SCRIPT)].content, found[str(provision.ENV_FILE)].content

    assert names == {
        "github-runner.crt": "one\n",
        "github-runner-2.crt": "two\n",
        "github-runner.pem": "one\ntwo\n",
    }
    assert f"NODE_EXTRA_CA_CERTS={folder}/github-runner.pem\n" in env
    assert "TMPDIR=/run/github-runner update-ca-certificates" in setup  # the boot may still be emptying /tmp
    connecting = [setup.index(word) for word in ("getent", "wget")]
    assert 0 < setup.index("update-ca-certificates") < min(connecting)


def test_without_certificates_nothing_is_changed() -> None:
    """An empty option leaves the instance's own authorities as they are."""
    found = rendered(PLAIN)

    assert not any("ca-certificates" in path for path in found)
    assert not any("ca-certificates" in file.content or "NODE_EXTRA" in file.content for file in found.values())


def part(text: str, first: str, last: str) -> str:
    """The lines of a script from the one that begins with ``first`` to the next that begins with ``last``."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    end = next(number for number, line in enumerate(lines) if number >= start and line.startswith(last))
    return "\n".join(lines[start : end + 1]) + "\n"


@pytest.mark.parametrize(
    ("config", "ssh_debug", "env", "environment", "daemon", "unit", "client"),
    [
        pytest.param(PLAIN, None, ENV_HEAD + HOOK, f"PATH={PATH}\n", None, None, None, id="nothing configured"),
        pytest.param(
            replace(PLAIN, proxies=PROXIES),
            None,
            ENV_HEAD + PROXY_LINES + HOOK,
            f"PATH={PATH}\n" + PROXY_LINES,
            None,
            UNIT,
            CLIENT,
            id="proxies",
        ),
        pytest.param(
            replace(PLAIN, proxies=ProxyConfig(https="http://proxy:3129")),
            None,
            ENV_HEAD + HTTPS_ONLY_LINES + HOOK,
            f"PATH={PATH}\n" + HTTPS_ONLY_LINES,
            None,
            '[Service]\nEnvironment="HTTPS_PROXY=http://proxy:3129"\nEnvironment="NO_PROXY=runner-0-abc,.svc"\n',
            '{"proxies": {"default": {"httpsProxy": "http://proxy:3129", "noProxy": "runner-0-abc,.svc"}}}\n',
            id="only what is set",
        ),
        pytest.param(
            replace(PLAIN, proxies=replace(PROXIES, use_aproxy=True)),
            None,
            ENV_HEAD + HOOK,
            f"PATH={PATH}\n",
            None,
            None,
            None,
            id="aproxy",
        ),
        pytest.param(
            replace(PLAIN, dockerhub_mirror=MIRROR),
            None,
            ENV_HEAD + MIRROR_LINES + HOOK,
            f"PATH={PATH}\n",
            f'{{"registry-mirrors": ["{MIRROR}"]}}\n',
            None,
            None,
            id="mirror",
        ),
        pytest.param(
            PLAIN,
            TMATE,
            ENV_HEAD + HOOK + TMATE_LINES,
            f"PATH={PATH}\n" + TMATE_LINES,
            None,
            None,
            None,
            id="tmate",
        ),
        pytest.param(
            replace(PLAIN, proxies=PROXIES, dockerhub_mirror=MIRROR),
            TMATE,
            ENV_HEAD + PROXY_LINES + MIRROR_LINES + HOOK + TMATE_LINES,
            f"PATH={PATH}\n" + PROXY_LINES + TMATE_LINES,
            f'{{"registry-mirrors": ["{MIRROR}"]}}\n',
            UNIT,
            CLIENT,
            id="all",
        ),
    ],
)
def test_files(
    config: RunnerConfig,
    ssh_debug: SSHDebugConnection | None,
    env: str,
    environment: str,
    daemon: str | None,
    unit: str | None,
    client: str | None,
) -> None:
    """Each file has what was asked for and nothing else, and where nothing was asked for there is no file."""
    found = rendered(config, ssh_debug=ssh_debug)
    contents = {path: file.content for path, file in found.items()}

    assert contents[f"{APPLICATION}/.env"] == env
    assert contents["/etc/environment"] == environment
    assert contents.get(DAEMON) == daemon
    assert contents.get(HTTP_PROXY) == unit
    assert [contents.get(path) for path in CLIENTS] == [client, client]


def test_owners_and_modes() -> None:
    """Scripts can be run by their owner, what is ubuntu's is ubuntu's, and a token is for its owner alone."""
    config = replace(PLAIN, proxies=PROXIES, dockerhub_mirror=MIRROR)
    found = rendered(config, policy_url="https://policy.example", policy_token="t")

    assert {path: (file.mode, file.user) for path, file in found.items()} == {
        "/root/github-runner/setup.sh": (0o700, 0),
        f"{APPLICATION}/.register.sh": (0o700, 1000),
        f"{APPLICATION}/start.sh": (0o755, 1000),
        f"{APPLICATION}/pre-job.sh": (0o755, 1000),
        f"{APPLICATION}/.env": (0o644, 1000),
        f"{APPLICATION}/.policy-token": (0o600, 1000),
        "/run/github-runner/token": (0o600, 1000),
        "/etc/environment": (0o644, 0),
        "/etc/systemd/system/github-runner.service": (0o644, 0),
        "/etc/needrestart/conf.d/github-runner.conf": (0o644, 0),
        DAEMON: (0o644, 0),
        HTTP_PROXY: (0o644, 0),
        CLIENTS[0]: (0o644, 0),
        CLIENTS[1]: (0o644, 1000),
    }


def test_registration_token_is_in_its_file_alone() -> None:
    """The registration token is in the one file that the registration deletes."""
    found = rendered(registration_token="AABBCC")

    assert [path for path, file in found.items() if "AABBCC" in file.content] == ["/run/github-runner/token"]


def test_nothing_registers_a_runner_that_github_knows() -> None:
    """The files of a just-in-time registration take the place of the token and of what uses it."""
    found = rendered(registration_files={".runner": "{}", ".credentials": "x"})

    for name in (".runner", ".credentials"):
        assert (found[f"{APPLICATION}/{name}"].mode, found[f"{APPLICATION}/{name}"].user) == (0o600, 1000)
    assert not {f"{APPLICATION}/.register.sh", "/run/github-runner/token"} & found.keys()
    assert ".register.sh" not in found["/root/github-runner/setup.sh"].content
    assert ".register.sh" in rendered()["/root/github-runner/setup.sh"].content


def test_policy_token_is_in_its_file_alone() -> None:
    """The one-time token is in the one file that the pre-job script deletes."""
    found = rendered(policy_url="https://policy.example", policy_token="one-time-x")

    assert [path for path, file in found.items() if "one-time-x" in file.content] == [f"{APPLICATION}/.policy-token"]


def test_no_policy_no_check() -> None:
    """Without a policy service nothing is asked and no token lies about."""
    found = rendered()

    assert f"{APPLICATION}/.policy-token" not in found
    assert "curl" not in found[f"{APPLICATION}/pre-job.sh"].content


def test_service_survives_its_jobs() -> None:
    """A stop reaches start.sh alone, an OOM kill costs one process, and the end of the unit powers the instance off."""
    unit = (content("/etc/systemd/system/github-runner.service") or "").splitlines()

    service = unit.index("[Service]")
    assert {"SuccessAction=poweroff-force", "FailureAction=poweroff-force", "RefuseManualStop=yes"} < set(
        unit[:service]
    )
    assert {"KillMode=mixed", "OOMPolicy=continue", "LimitNOFILE=65536:524288"} < set(unit[service:])
    assert f"TimeoutStopSec={times.STOP_AGENT}" in unit[service:]


def test_needrestart_leaves_the_runner_alone(tmp_path: Path) -> None:
    """needrestart's configuration is Perl: it is valid, and names the two units that must not be restarted."""
    (tmp_path / "runner.conf").write_text(content("/etc/needrestart/conf.d/github-runner.conf") or "")
    script = """our %nrconf; do $ARGV[0] or die $@; for my $unit (@ARGV) {
        for (keys %{$nrconf{override_rc}}) { print "$unit=$nrconf{override_rc}{$_}\\n" if $unit =~ /$_/ }
    }"""
    units = ["github-runner.service", "lxd-agent.service", "docker.service"]

    # The last statement's value is 0: needrestart evaluates the text, and so does this.
    script = script.replace("do $ARGV[0] or die $@", "open(F, $ARGV[0]); local $/; eval <F>; die $@ if $@")
    done = subprocess.run(
        ["perl", "-e", script, str(tmp_path / "runner.conf"), *units], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr) == ("github-runner.service=0\nlxd-agent.service=0\n", "")


def test_service_shows_the_exit_code() -> None:
    """The unit runs start.sh as ubuntu and sets the two variables without which run.sh hides the exit code."""
    unit = (content("/etc/systemd/system/github-runner.service") or "").splitlines()

    assert "User=ubuntu" in unit
    assert f"ExecStart={APPLICATION}/start.sh" in unit
    assert "Environment=RUNNER_MANUALLY_TRAP_SIG=1" in unit
    assert "Environment=ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE=1" in unit


@pytest.mark.parametrize(
    ("config", "restarted"),
    [
        (PLAIN, False),
        (replace(PLAIN, dockerhub_mirror=MIRROR), True),
        (replace(PLAIN, proxies=PROXIES), True),
        (replace(PLAIN, proxies=replace(PROXIES, use_aproxy=True)), False),
    ],
    ids=["nothing", "mirror", "proxies", "aproxy"],
)
def test_docker_is_restarted_where_it_changed(config: RunnerConfig, restarted: bool) -> None:
    """Docker is reloaded and restarted with a mirror or proxies, and left alone otherwise."""
    setup = content("/root/github-runner/setup.sh", config) or ""

    assert ("systemctl daemon-reload" in setup) is restarted
    assert ("systemctl restart docker.service" in setup) is restarted


def test_machine_looks_like_githubs() -> None:
    """`/usr/local/bin` is open to all and `/usr/bin/python` is python3, as on GitHub's own machines."""
    setup = (content("/root/github-runner/setup.sh") or "").splitlines()

    assert "chmod 0777 /usr/local/bin" in setup
    assert "[ -e /usr/bin/python ] || ln -s python3 /usr/bin/python" in setup


@pytest.mark.parametrize(("arch", "revision"), [(Arch.X64, 8), (Arch.ARM64, 9)])
def test_aproxy_snap(arch: Arch, revision: int) -> None:
    """aproxy comes from edge in the revision of the architecture, and only where it is used."""
    used = replace(PLAIN, proxies=replace(PROXIES, use_aproxy=True))

    assert provision.snaps(used, arch) == (Snap("aproxy", "edge", revision),)
    assert (
        f"snap install aproxy --channel=edge --revision={revision} "
        in rendered(used, arch)["/root/github-runner/setup.sh"].content
    )
    for config in (PLAIN, replace(PLAIN, proxies=PROXIES), replace(PLAIN, proxies=ProxyConfig(use_aproxy=True))):
        assert provision.snaps(config, arch) == ()
        assert "snap install" not in rendered(config, arch)["/root/github-runner/setup.sh"].content


@pytest.mark.parametrize(("arch", "suffix"), [(Arch.X64, "amd64"), (Arch.ARM64, "arm64")])
def test_yq(arch: Arch, suffix: str) -> None:
    """yq is of the architecture, from a versioned URL, and verified before it is installed with mode 755."""
    [executable] = provision.executables(arch)
    setup = rendered(arch=arch)["/root/github-runner/setup.sh"].content

    assert executable.cmd == "yq"
    assert "/v4." in executable.url
    assert executable.url.endswith(f"_{suffix}")
    assert executable.sha256 is not None
    assert len(bytes.fromhex(executable.sha256)) == 32
    assert setup.index(executable.url) < setup.index(executable.sha256) < setup.index("install -m 0755")


def test_checksums_differ_by_architecture() -> None:
    """No architecture is verified with another's checksum."""
    assert provision.executables(Arch.X64)[0].sha256 != provision.executables(Arch.ARM64)[0].sha256


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PLAIN, "github.com"),
        (replace(PLAIN, github_url="https://octo.ghe.com"), "octo.ghe.com"),
        (replace(PLAIN, github_url="http://10.0.0.1:8080"), "10.0.0.1"),
        (replace(PLAIN, proxies=PROXIES), "proxy"),
        (replace(PLAIN, proxies=ProxyConfig(http="http://u:p@other:3128")), "other"),
        pytest.param(
            replace(PLAIN, proxies=replace(PROXIES, use_aproxy=True)),
            "github.com",
        ),
    ],
    ids=["github.com", "ghe.com", "address", "proxies", "HTTP proxy only", "aproxy"],
)
def test_network_host(config: RunnerConfig, expected: str) -> None:
    """The host that is waited for is GitHub's, or the proxy's where the proxy resolves GitHub's."""
    assert provision.network_host(config) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", '"a"'),
        ("a b", '"a b"'),
        ('a"b', '"a\\"b"'),
        ("a\\b", '"a\\\\b"'),
        ("http://u:p%40@h", '"http://u:p%%40@h"'),
        ("a'b", '"a\'b"'),
        ("a;b#c", '"a;b#c"'),
    ],
)
def test_systemd_quoting(value: str, expected: str) -> None:
    """A value is one word of a unit, whatever quotes, backslashes or specifiers it has."""
    assert provision.quote_systemd(value) == expected


@pytest.mark.parametrize("value", ["a\nExecStart=/x", "a\x00", "a\x1b", "a\u2028b"])
def test_what_cannot_stand_in_a_unit(value: str) -> None:
    """A value that could begin another line of a unit is refused."""
    with pytest.raises(ValueError, match="systemd unit"):
        provision.quote_systemd(value)


def test_dollar_in_an_environment_setting() -> None:
    """In `Environment=` the dollar sign has no special meaning, so that it stays as it is."""
    config = replace(PLAIN, proxies=replace(PROXIES, no_proxy="a$b"))

    assert 'Environment="NO_PROXY=a$b,runner-0-abc,.svc"' in (content(HTTP_PROXY, config) or "")


# --- scripts, run by bash with stand-ins for what they call ---


class Shell:
    """Runs scripts in a folder of the test; programs in ``bin`` come first and note their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.application = folder / "application"
        self.metrics = folder / "metrics"
        for path in (self.bin, self.application, self.metrics, folder / "tmp"):
            path.mkdir()
        self.stub("sudo")
        self.stub("pkill")
        self.stub("sleep")
        self.stub("mountpoint", '[ -d "$2" ]')

    def stub(self, name: str, script: str = "", folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.write_text(f'#!/bin/bash\nprintf \'%s\\0\' "$@" >> "{self.folder}/{name}.args"\n{script}\n')
        path.chmod(0o755)

    def arguments(self, name: str) -> list[str]:
        path = self.folder / f"{name}.args"
        return path.read_text().split("\0")[:-1] if path.exists() else []

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.folder / "tmp"),
            **variables,
        }

    def run(self, script: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        path = self.folder / "script"
        path.write_text(script)
        return subprocess.run(
            ["bash", str(path), *arguments],
            cwd=self.folder,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def render(self, template: str, **values: Any) -> str:
        """The template with this test's folders in place of an instance's."""
        everything: dict[str, Any] = {
            "metrics_folder": self.metrics,
            "folder": self.application,
            "pre_job_file": PRE_JOB_METRICS_FILE_NAME,
            "post_job_file": POST_JOB_METRICS_FILE_NAME,
            "ca_bundle": None,
            "dockerhub_mirror": None,
            "policy_url": None,
            "external_contributors": True,
            "operator_script": None,
            "policy_token_file": self.folder / "policy-token",
            "token_file": self.folder / "token",
            "run_folder": self.folder,
            "kept_wait": 3600,
            "proxies": {},
            "url": "https://github.com/octo-org/demo",
            "labels": "runner,jammy",
            "name": "runner-0-abc",
            "group": None,
            **values,
        }
        return provision.environment(TEMPLATES).get_template(template).render(everything)

    @property
    def post_job(self) -> PostJobMetrics:
        return PostJobMetrics.model_validate_json((self.metrics / POST_JOB_METRICS_FILE_NAME).read_bytes(), strict=True)

    @property
    def pre_job(self) -> PreJobMetrics:
        return PreJobMetrics.model_validate_json((self.metrics / PRE_JOB_METRICS_FILE_NAME).read_bytes(), strict=True)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


HOSTILE = [
    "a b",
    "a'b",
    'a"b',
    "a$(touch canary)b",
    "a`touch canary`b",
    "a;touch canary",
    "a&b|c<d>e",
    "{{ 7 * 7 }}",
    "*",
]


@pytest.mark.parametrize("value", [*HOSTILE, "a\ntouch canary"])
def test_no_value_breaks_a_script(value: str, tmp_path: Path) -> None:
    """Every script is still one when each value that comes from outside is hostile."""
    config = replace(
        PLAIN,
        labels=("runner", value),
        name=value,
        path=GithubOrg("octo-org", value),
        github_url=f"https://host/{value}",
        dockerhub_mirror=f"https://host/{value}",
    )
    proxied = replace(config, name="r", proxies=ProxyConfig(http=f"http://host/{value.replace(chr(10), '')}"))
    aproxy = replace(config, proxies=ProxyConfig(http=f"http://host{value}", use_aproxy=True))
    scripts = [
        file
        for one in (config, proxied, aproxy)
        for file in rendered(one, policy_url=f"https://host/{value}").values()
        if file.path.suffix == ".sh"
    ]

    assert len(scripts) == 12
    for file in scripts:
        done = subprocess.run(["bash", "-n"], input=file.content, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), file.path


@pytest.mark.parametrize("value", [*HOSTILE, "a\ntouch canary"])
def test_registration_gets_values_as_they_are(shell: Shell, value: str) -> None:
    """URL, labels, name and group reach config.sh as one argument each, and run nothing."""
    shell.stub("config.sh", folder=shell.application)
    (shell.folder / "token").write_text("AABBCC")

    done = shell.run(
        shell.render("register.sh.j2", url=f"https://host/{value}", labels=f"runner,{value}", name=value, group=value)
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert shell.arguments("config.sh") == [
        "--url",
        f"https://host/{value}",
        "--ephemeral",
        "--unattended",
        "--labels",
        f"runner,{value}",
        "--name",
        value,
        "--runnergroup",
        value,
    ]
    assert not (shell.application / "canary").exists()
    assert not (shell.folder / "canary").exists()


ACCEPTED = [
    "ubuntu-22.04",
    "gpu:a100",
    "größe ラベル",
    'it\'s "big"',
    "$HOME ${HOME} $(touch canary) `touch canary`",
    "a\\b\\",
    "a;b&c|d>e<f",
    "* ~ ? [a] {a} !x #y",
    "{{ 7 * 7 }}{% raw %}",
]


@pytest.mark.parametrize("value", ACCEPTED)
def test_accepted_labels_and_groups_reach_config_sh(value: str, tmp_path: Path) -> None:
    """Bash gives config.sh every label and group that the options accept exactly as it was written."""
    config = replace(
        PLAIN,
        labels=("runner", *parse_labels(value)),
        path=GithubOrg("octo-org", parse_group(value)),
    )
    command = (content(f"{APPLICATION}/.register.sh", config) or "").rstrip().splitlines()[-1]
    script = command.replace("exec ./config.sh", "printf '%s\\0'", 1)

    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)

    arguments = done.stdout.split("\0")
    assert arguments[arguments.index("--labels") + 1] == f"runner,{value}"
    assert arguments[arguments.index("--runnergroup") + 1] == value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mirror", "daemon"),
    [
        ("https://mirror.example/", "https://mirror.example/"),
        ("https://mirror.example:5000/v2/", "https://mirror.example:5000/v2/"),
        ("https://user:p%40ss@mirror.example/", "https://mirror.example/"),
        ("https://user@mirror.example/a@b", "https://mirror.example/a@b"),
        ("https://us@er:p@ss@[::1]:5000", "https://[::1]:5000"),
    ],
)
def test_mirror_with_credentials(shell: Shell, mirror: str, daemon: str) -> None:
    """Jobs get the mirror's URL as it was given. Its credentials are neither in Docker's file nor in a job's log."""
    config = replace(PLAIN, dockerhub_mirror=parse_mirror(mirror))
    found = {path: file.content for path, file in rendered(config).items()}
    environment = found[f"{APPLICATION}/.env"].splitlines()
    pre_job = found[f"{APPLICATION}/pre-job.sh"].replace("/metrics-exchange", str(shell.metrics))

    assert f"DOCKERHUB_MIRROR={mirror}" in environment
    assert f"CONTAINER_REGISTRY_URL={mirror}" in environment
    assert json.loads(found[DAEMON]) == {"registry-mirrors": [daemon]}
    assert shell.run(pre_job, **JOB).stdout == f"A Docker Hub mirror is used: {daemon}\n"
    if daemon != mirror:
        assert [path for path, text in found.items() if mirror in text] == [f"{APPLICATION}/.env"]
        assert mirror not in repr(config)


@pytest.mark.parametrize(
    ("path", "url", "group"),
    [
        (GithubRepo("octo-org", "demo"), "https://github.com/octo-org/demo", None),
        (GithubOrg("octo-org", "big machines"), "https://github.com/octo-org", "'big machines'"),
    ],
    ids=["repository", "organisation"],
)
def test_registration_of_repository_and_organisation(path: GithubRepo | GithubOrg, url: str, group: str | None) -> None:
    """An organisation's runner joins its group, a repository's has none."""
    script = content(f"{APPLICATION}/.register.sh", replace(PLAIN, path=path)) or ""
    command = f"exec ./config.sh --url {url} --ephemeral --unattended --labels runner,jammy,gpu --name runner-0-abc"

    assert script.rstrip().splitlines()[-1] == command + (f" --runnergroup {group}" if group else "")


def test_registration_token(shell: Shell) -> None:
    """The token is deleted with its file and given to config.sh in the environment, never as an argument."""
    shell.stub("config.sh", f'[ ! -e "{shell.folder}/token" ] && echo "$ACTIONS_RUNNER_INPUT_TOKEN"', shell.application)
    (shell.folder / "token").write_text("AABBCC")

    done = shell.run(shell.render("register.sh.j2"))

    assert (done.returncode, done.stdout) == (0, "AABBCC\n")
    assert "AABBCC" not in " ".join(shell.arguments("config.sh"))
    assert not (shell.folder / "token").exists()


def test_registration_without_a_token_fails(shell: Shell) -> None:
    """Where the token's file is missing nothing is registered, and the step fails."""
    shell.stub("config.sh", folder=shell.application)

    assert shell.run(shell.render("register.sh.j2")).returncode != 0
    assert shell.arguments("config.sh") == []


def test_registration_goes_through_the_proxies(shell: Shell) -> None:
    """config.sh sees the proxies as they are."""
    shell.stub("config.sh", 'echo "$HTTPS_PROXY $no_proxy"', shell.application)
    (shell.folder / "token").write_text("AABBCC")
    proxies = {"HTTPS_PROXY": "http://u:p$(x)@h;y", "no_proxy": "a b"}

    assert shell.run(shell.render("register.sh.j2", proxies=proxies)).stdout == "http://u:p$(x)@h;y a b\n"


@pytest.mark.parametrize("value", [*HOSTILE, "a\ntouch canary"])
def test_setup_waits_for_the_host_as_it_is(shell: Shell, value: str) -> None:
    """The host to wait for is one argument, and runs nothing."""
    shell.stub("getent", "echo 192.0.2.1")
    shell.stub("ip")
    template = provision.environment(TEMPLATES).get_template("setup.sh.j2")
    setup = template.render(
        network_host=value,
        network_timeout=1,
        run_folder="/x",
        application_archive="/x",
        image_application="/x",
        folder="/x",
        snaps=[],
        executables=[],
        docker_changed=False,
        aproxy_address=None,
        ca_bundle=None,
        container=True,
        issue_metrics=False,
        registers=True,
        user=1000,
        home="/x",
        register_script="/x",
        register_timeout=1,
        not_registered=1,
    )

    done = shell.run(part(setup, "set -eu", "}") + part(setup, "deadline=", "done"))

    assert (done.returncode, done.stderr) == (0, "")
    assert shell.arguments("getent") == ["ahosts", value]
    assert not (shell.folder / "canary").exists()


ACTIVE = "aproxy  enabled  active  -"
DEFAULT = Redirect()


def run_aproxy(shell: Shell, proxy: str, services: str = ACTIVE, redirect: Redirect = DEFAULT) -> Any:
    shell.stub("snap", f'[ "$1" = services ] && echo "{services}"; true')
    shell.stub("ip", "echo '192.0.2.1 via 10.1.1.1 dev eth0 src 10.1.1.7 uid 0'")
    shell.stub("nft", f'cat > "{shell.folder}/rules"')
    config = replace(PLAIN, proxies=ProxyConfig(http=proxy, use_aproxy=True, redirect=redirect))
    setup = content("/root/github-runner/setup.sh", config) or ""
    return shell.run(part(setup, "set -eu", "}") + part(setup, "snap set aproxy", "END"))


def test_aproxy_is_set(shell: Shell) -> None:
    """aproxy gets the model's proxy and its port, and its service is checked."""
    done = run_aproxy(shell, "http://proxy:3128/")

    assert (done.returncode, done.stderr) == (0, "")
    assert shell.arguments("snap") == ["set", "aproxy", "proxy=proxy:3128", "listen=:54969", "services", "aproxy"]


@pytest.mark.parametrize("value", HOSTILE)
def test_aproxy_gets_its_proxy_as_it_is(shell: Shell, value: str) -> None:
    """The proxy's address runs nothing."""
    run_aproxy(shell, f"http://{value}")

    assert f"proxy={value}:80" in shell.arguments("snap")
    assert not (shell.folder / "canary").exists()


def test_aproxy_that_does_not_run_fails(shell: Shell) -> None:
    """An aproxy whose service is not active fails the set-up with words that say so."""
    done = run_aproxy(shell, "http://proxy:3128", "aproxy  enabled  inactive  -")

    assert done.returncode != 0
    assert "aproxy does not run" in done.stderr
    assert not (shell.folder / "rules").exists()


def test_aproxy_rules(shell: Shell) -> None:
    """Web traffic to addresses outside the private networks goes to the instance's own address, port 54969."""
    run_aproxy(shell, "http://proxy:3128")
    rules = " ".join((shell.folder / "rules").read_text().split())

    assert "excluded = { 10.0.0.0/8, 127.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 }" in rules
    assert "ports = { 80, 443 }" in rules
    assert "table ip aproxy" in rules
    assert "type nat hook prerouting priority dstnat;" in rules
    assert "type nat hook output priority -100;" in rules
    rule = "ip daddr != $excluded tcp dport $ports counter dnat to 10.1.1.7:54969"
    assert rules.count(rule) == 2


def test_aproxy_rules_have_the_options(shell: Shell) -> None:
    """What the options exclude and redirect is in the rules, a range with its ends."""
    redirect = Redirect(parse_ports("8000-8080,443"), parse_addresses("192.0.2.0/24"))
    run_aproxy(shell, "http://proxy:3128", redirect=redirect)
    rules = (shell.folder / "rules").read_text()

    assert "excluded = { 127.0.0.0/8, 192.0.2.0/24 }\n" in rules
    assert "ports = { 443, 8000-8080 }\n" in rules


@pytest.mark.parametrize(
    ("excluded", "ports"),
    [
        ("10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16", "80, 443"),
        ("", "1-65535"),
        ("0.0.0.0/0", "65535"),
        ("10.0.0.0/8,10.1.0.0/16,10.0.0.5-11.0.0.9,128.0.0.0/8", "80,80-90,85-95,96"),
        ("0.0.0.1-255.255.255.254", "1-79,81-65535"),
    ],
    ids=["defaults", "all ports", "all addresses", "overlaps", "ends"],
)
def test_aproxy_rules_are_nftables(shell: Shell, excluded: str, ports: str) -> None:
    """nft accepts the rules, also those of options whose items overlap or touch."""
    run_aproxy(shell, "http://proxy:3128", redirect=Redirect(parse_ports(ports), parse_addresses(excluded)))
    nft = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin")
    if nft is None or subprocess.run([nft, "list", "tables"], capture_output=True, check=False).returncode:
        pytest.skip("nft cannot be used here")

    done = subprocess.run([nft, "--check", "-f", str(shell.folder / "rules")], capture_output=True, check=False)

    assert done.stderr == b""


# --- start.sh ---

POWER_OFF = ["-n", "systemctl", "poweroff", "--force", "--force"]


@pytest.mark.parametrize(
    ("code", "status", "info"),
    [(0, PostJobStatus.NORMAL, None), (1, PostJobStatus.ABNORMAL, 1), (7, PostJobStatus.ABNORMAL, 7)],
)
def test_end_of_the_runner_agent(shell: Shell, code: int, status: PostJobStatus, info: int | None) -> None:
    """The post-job metrics say how the runner agent ended, then the instance is powered off."""
    shell.stub("run.sh", f"exit {code}", shell.application)

    done = shell.run(shell.render("start.sh.j2"))

    assert done.returncode == code
    assert shell.post_job.status is status
    assert (shell.post_job.status_info and shell.post_job.status_info.code) == info
    assert shell.post_job.timestamp > 1_700_000_000
    assert shell.arguments("sudo") == POWER_OFF


WORKER_LOG = "mkdir -p _diag; touch _diag/Runner_1.log _diag/Worker_1.log;"


@pytest.mark.parametrize(
    ("run", "mark"),
    [
        pytest.param("exit 7", "refused", id="deprecated version"),
        pytest.param(f"{WORKER_LOG} exit 7", "refused", id="deprecated version after a job"),
        pytest.param("exit 1", "failed", id="no job, an error"),
        pytest.param("mkdir -p _diag; touch _diag/Runner_1.log; exit 0", "failed", id="no job, code 0"),
        pytest.param(f"{WORKER_LOG} exit 0", None, id="a job"),
        pytest.param(f"{WORKER_LOG} exit 1", None, id="a job, an error"),
        pytest.param("kill -TERM $PPID; exit 143", None, id="stopped without a job"),
    ],
)
def test_agent_that_ended_without_a_job_is_kept(shell: Shell, run: str, mark: str | None) -> None:
    """The instance waits an hour for the next reconcile to read the reason, and then powers off as always."""
    shell.stub("run.sh", run, shell.application)

    shell.run(shell.render("start.sh.j2"))

    marks = [path.name for path in (provision.REFUSED_FILE, provision.FAILED_FILE)]
    assert [name for name in marks if (shell.folder / name).exists()] == ([mark] if mark else [])
    assert shell.arguments("sleep") == (["3600"] if mark else [])
    assert shell.arguments("sudo") == POWER_OFF


@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        ('\ufeff{\n  "agentId": 1,\n  "ephemeral": true\n}', True),
        ('{"AgentId":"1","Ephemeral":"True"}', True),
        ('{"AgentId":"1","Ephemeral":"False"}', False),
        ('{"agentId": 1}', False),
        ('{"ephemeral": false}', False),
    ],
)
def test_only_an_ephemeral_runner_starts(shell: Shell, settings: str, starts: bool) -> None:
    """config.sh goes on without an option that it does not know: the next reconcile reports such a runner."""
    shell.stub("run.sh", "exit 0", shell.application)
    (shell.application / ".runner").write_text(settings)

    done = shell.run(shell.render("start.sh.j2"))

    assert (shell.folder / "run.sh.args").exists() is starts
    assert (done.stdout == "The runner is not registered as ephemeral.\n") is not starts
    assert (shell.folder / "failed").exists()


@pytest.mark.parametrize("broken", ["no application", "no run.sh", "no metrics folder", "metrics cannot be written"])
def test_instance_is_powered_off_whatever_happened(shell: Shell, broken: str) -> None:
    """Nothing that is missing or cannot be written keeps an instance running."""
    shell.stub("run.sh", "exit 0", shell.application)
    if broken == "no application":
        shutil.rmtree(shell.application)
    elif broken == "no run.sh":
        (shell.application / "run.sh").unlink()
    else:
        shell.metrics.rmdir()
        if broken == "metrics cannot be written":
            # A folder that takes no file, not even root's.
            shell.metrics.symlink_to("/proc/self/fd")

    shell.run(shell.render("start.sh.j2"))

    assert shell.arguments("sudo") == POWER_OFF
    if broken.startswith("no ") and "metrics" not in broken:
        assert shell.post_job.status is PostJobStatus.ABNORMAL


def test_power_off_is_in_order_where_it_fails_at_once(shell: Shell) -> None:
    """An immediate power-off that is refused is repeated in order."""
    shell.stub("run.sh", "exit 0", shell.application)
    shell.stub("sudo", '[ "$4" != --force ]')

    shell.run(shell.render("start.sh.j2"))

    assert shell.arguments("sudo") == [*POWER_OFF, "-n", "systemctl", "poweroff"]


def test_refusal_is_not_overwritten(shell: Shell) -> None:
    """The refusal that the pre-job script recorded is kept when the runner agent ends."""
    shell.stub("run.sh", "exit 1", shell.application)
    refusal = '{"timestamp": 1.5, "status": "repo-policy-check-failure", "status_info": {"code": 403}}'
    (shell.metrics / POST_JOB_METRICS_FILE_NAME).write_text(refusal)

    shell.run(shell.render("start.sh.j2"))

    assert (shell.metrics / POST_JOB_METRICS_FILE_NAME).read_text() == refusal
    assert shell.arguments("sudo") == POWER_OFF


def test_jobs_start_with_default_signals(shell: Shell) -> None:
    """The runner agent starts with SIGINT and SIGQUIT neither ignored nor blocked, and its jobs inherit that."""
    shell.stub("run.sh", 'grep -E "SigIgn|SigBlk" /proc/self/status > signals', shell.application)

    shell.run(shell.render("start.sh.j2"))

    masks = [int(line.split()[1], 16) for line in (shell.application / "signals").read_text().splitlines()]
    for number in (signal.SIGINT, signal.SIGQUIT):
        assert not [mask for mask in masks if mask & 1 << (number - 1)]


@pytest.mark.parametrize("script", ["start.sh.j2", "pre-job.sh.j2"])
def test_times_do_not_depend_on_date(shell: Shell, script: str) -> None:
    """The `date` of other coreutils writes no fraction, or a wrong one."""
    shell.stub("date", "echo 12.5e")
    shell.stub("run.sh", "exit 0", shell.application)

    shell.run(shell.render(script), **JOB)

    found = shell.post_job.timestamp if script == "start.sh.j2" else shell.pre_job.timestamp
    assert abs(found - time.time()) < 60


def test_the_agent_starts_where_env_cannot_reset_signals(shell: Shell) -> None:
    """Coreutils of another make may lack the option: a job matters more than its interrupt."""
    shell.stub("env", 'case "$1" in --default-signal*) exit 125 ;; esac; exec /usr/bin/env "$@"')
    shell.stub("run.sh", "exit 3", shell.application)

    shell.run(shell.render("start.sh.j2"))

    assert shell.post_job.status_info is not None
    assert shell.post_job.status_info.code == 3


def test_stopped_service_waits_for_the_runner_agent(shell: Shell) -> None:
    """A stop of the service reaches the runner agent, whose own end is then noted."""
    os.mkfifo(shell.folder / "ready")
    os.mkfifo(shell.folder / "never")
    ready, never = shell.folder / "ready", shell.folder / "never"
    end = "trap - TERM; echo ending > {ready}; read -r _ <> {never}"
    run = f"trap '{end}; exit 5' TERM\necho ready > {{ready}}\nread -r _ <> {{never}}"
    shell.stub("run.sh", run.format(ready=ready, never=never), shell.application)
    script = shell.folder / "start.sh"
    script.write_text(shell.render("start.sh.j2"))

    with subprocess.Popen(["bash", str(script)], env=shell.environment(), start_new_session=True) as process:
        assert ready.read_text() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert ready.read_text() == "ending\n"
        # The agent would die of a second one before it has reported its job.
        process.send_signal(signal.SIGTERM)
        never.write_text("end\n")
        process.wait(timeout=30)

    assert shell.post_job.status_info is not None
    assert shell.post_job.status_info.code == 5
    assert shell.arguments("sudo") == POWER_OFF


@pytest.mark.parametrize(
    "command",
    ["runner=$!", '"${defaults[@]}" ./run.sh'],
    ids=["agent has just started", "no agent yet"],
)
def test_stop_in_the_moment_of_the_start_is_not_lost(shell: Shell, command: str) -> None:
    """A stop that comes while the runner agent is started ends it, or keeps it from being started."""
    os.mkfifo(shell.folder / "never")
    shell.stub("run.sh", f"trap 'exit 5' TERM\nread -r _ <> {shell.folder / 'never'}", shell.application)
    script, hook = shell.folder / "start.sh", shell.folder / "hook.sh"
    script.write_text(shell.render("start.sh.j2"))
    hook.write_text('trap \'if [ "$BASH_COMMAND" = "$MOMENT" ]; then kill $$; fi\' DEBUG')
    environment = {**shell.environment(), "BASH_ENV": str(hook), "MOMENT": command}

    done = subprocess.run(["bash", str(script)], env=environment, timeout=30)

    # It may have had no time to set its own trap.
    assert done.returncode in (5, 143)
    assert shell.arguments("sudo") == POWER_OFF


# --- pre-job.sh ---

JOB = {
    "GITHUB_WORKFLOW": "Tests",
    "GITHUB_RUN_ID": "4711",
    "GITHUB_REPOSITORY": "octo-org/demo",
    "GITHUB_EVENT_NAME": "push",
}


def test_pre_job_metrics(shell: Shell) -> None:
    """The job's environment becomes the pre-job metrics, without a word in the job's log."""
    done = shell.run(shell.render("pre-job.sh.j2"), **JOB)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert shell.pre_job.model_dump(exclude={"timestamp"}) == {
        "workflow": "Tests",
        "workflow_run_id": "4711",
        "repository": "octo-org/demo",
        "event": "push",
    }
    assert shell.pre_job.timestamp > 1_700_000_000


@pytest.mark.parametrize(
    "workflow",
    [
        pytest.param("x" * 5000, id="5000 characters"),
        pytest.param('"' * 5000, id="5000 quotes"),
        pytest.param("\\" * 5000, id="5000 backslashes"),
        pytest.param("\U0001f980" * 5000, id="5000 characters of four bytes"),
        pytest.param("a\nb\tc\r" * 1000, id="newlines"),
        pytest.param("$(touch canary)`touch canary`' \"; touch canary", id="shell"),
        pytest.param("%s %d ${x} --arg", id="formats"),
        pytest.param("--help", id="an option"),
        pytest.param("", id="empty"),
        pytest.param(
            "\x01" * 5000,
            id="5000 control characters",
        ),
    ],
)
def test_any_workflow_name_is_accepted(shell: Shell, workflow: str) -> None:
    """However a workflow is called, and with the longest repository and event, the charm can read the file."""
    repository = f"{'o' * 39}/{'r' * 100}"
    job = {
        "GITHUB_WORKFLOW": workflow,
        "GITHUB_REPOSITORY": repository,
        "GITHUB_RUN_ID": "9" * 20,
        "GITHUB_EVENT_NAME": "pull_request_review_comment",
    }

    done = shell.run(shell.render("pre-job.sh.j2"), **job)

    assert done.returncode == 0
    assert len((shell.metrics / PRE_JOB_METRICS_FILE_NAME).read_bytes()) <= FILE_SIZE_BYTES_LIMIT
    shown = "".join(char for char in workflow if char >= " ")
    assert shell.pre_job.workflow == shown[:128]
    assert not (shell.folder / "canary").exists()


@pytest.mark.parametrize("script", ["start.sh.j2", "pre-job.sh.j2"])
def test_metrics_are_written_to_the_storage_only(shell: Shell, script: str) -> None:
    """Where nothing is mounted, the folder is the instance's own, and nothing is written to it."""
    shell.stub("mountpoint", "exit 32")
    shell.stub("run.sh", "exit 1", shell.application)

    shell.run(shell.render(script), **JOB)

    assert list(shell.metrics.iterdir()) == []
    assert shell.arguments("mountpoint") == ["-q", str(shell.metrics)]


@pytest.mark.parametrize(("mounted", "code"), [(True, 0), (False, provision.WITHOUT_METRICS)])
def test_set_up_tells_whether_the_metrics_storage_is_mounted(shell: Shell, mounted: bool, code: int) -> None:
    """An instance that is ready but lacks its metrics storage ends its set-up with an exit code of its own."""
    shell.stub("mountpoint", "exit 0" if mounted else "exit 32")
    setup = content("/root/github-runner/setup.sh", replace(PLAIN, issue_metrics=True)) or ""

    assert shell.run(part(setup, "mountpoint", "mountpoint")).returncode == code
    assert "mountpoint" not in (content("/root/github-runner/setup.sh", replace(PLAIN, issue_metrics=False)) or "")


def test_a_registration_that_hangs_is_ended(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registration that does not end fails at its time limit, with the limit in its words."""
    monkeypatch.setitem(provision.FIXED, "register_timeout", 0.1)
    shell.stub("setpriv", "exec /bin/sleep 60")
    setup = content("/root/github-runner/setup.sh") or ""

    done = shell.run(part(setup, "timeout 0.1", "}"))

    assert (done.returncode, done.stderr) == (provision.NOT_REGISTERED, "not done within 0.1 s\n")


@pytest.mark.parametrize("failing", [False, True])
def test_set_up_ends_with_the_registration(shell: Shell, failing: bool) -> None:
    """The runner registers with its own rights; a failed registration has an exit code of its own, and its words."""
    shell.stub("setpriv", f"echo no such group >&2; exit {int(failing)}")
    setup = content("/root/github-runner/setup.sh") or ""

    done = shell.run(part(setup, "timeout 120", "}"))

    assert done.returncode == (provision.NOT_REGISTERED if failing else 0)
    assert done.stderr == "no such group\n"
    assert shell.arguments("setpriv") == [
        *("--reuid=1000", "--regid=1000", "--clear-groups"),
        *("env", "HOME=/home/ubuntu", "/home/ubuntu/github-runner/.register.sh"),
    ]


@pytest.mark.parametrize(("growpart", "resize", "code"), [(0, 0, 0), (1, 0, 0), (2, 0, 1), (0, 1, 1)], ids=str)
def test_root_filesystem_grows_to_the_disk(shell: Shell, growpart: int, resize: int, code: int) -> None:
    """Partition and filesystem of a virtual machine are grown; exit code 1 of growpart means that they are large."""
    block = shell.folder / "block"
    (block / "sda/sda2").mkdir(parents=True)
    (block / "sda/sda2/partition").write_text("2\n")
    (block / "sda2").symlink_to("sda/sda2")
    shell.stub("findmnt", "echo /dev/sda2")
    shell.stub("growpart", f"exit {growpart}")
    shell.stub("resize2fs", f"exit {resize}")
    setup = content("/root/github-runner/setup.sh", replace(PLAIN, container=False)) or ""
    script = part(setup, "fail()", "}") + part(setup, "grow_root()", "grow_root ||")

    done = shell.run(script.replace("/sys/class/block", str(block)))

    assert done.returncode == code
    assert shell.arguments("growpart") == ["/dev/sda", "2"]
    assert shell.arguments("resize2fs") == (["/dev/sda2"] if growpart < 2 else [])
    assert ("cannot be grown" in done.stderr) is bool(code)
    assert "grow_root" not in (content("/root/github-runner/setup.sh", replace(PLAIN, container=True)) or "")


@pytest.mark.parametrize("broken", ["no folder", "cannot be written", "no jq", "no environment"])
def test_metrics_never_fail_the_job(shell: Shell, broken: str) -> None:
    """A job is not failed for its metrics' sake."""
    job = {} if broken == "no environment" else JOB
    if broken == "no folder":
        shell.metrics.rmdir()
    elif broken == "cannot be written":
        (shell.metrics / PRE_JOB_METRICS_FILE_NAME).mkdir()
    elif broken == "no jq":
        shell.stub("jq", "exit 127")

    assert shell.run(shell.render("pre-job.sh.j2"), **job).returncode == 0


@pytest.mark.parametrize("value", [*HOSTILE, "a\ntouch canary"])
def test_mirror_is_told_as_it_is(shell: Shell, value: str) -> None:
    """The job's log names the Docker Hub mirror, and the name runs nothing."""
    done = shell.run(shell.render("pre-job.sh.j2", dockerhub_mirror=value), **JOB)

    assert value in done.stdout
    assert not (shell.folder / "canary").exists()


def test_no_mirror_no_word(shell: Shell) -> None:
    """Without a mirror the job's log has no word of one."""
    assert "irror" not in shell.run(shell.render("pre-job.sh.j2"), **JOB).stdout


class PolicyService:
    """A policy service that answers each check as it is told to and keeps what it was asked."""

    def __init__(self) -> None:
        self.status = 204
        self.words = b""
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.requests.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(service.status)
                self.send_header("Content-Length", str(len(service.words)))
                self.end_headers()
                self.wfile.write(service.words)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[PolicyService]:
    running = PolicyService()
    yield running
    running.close()


def ask(shell: Shell, url: str, token: str = "one-time-token", **job: str) -> "subprocess.CompletedProcess[str]":
    """Run the pre-job script of a runner with a policy service; curl is the real one and notes its arguments."""
    curl = shutil.which("curl")
    shell.stub("curl", f'exec {curl} "$@"')
    # The runner agent kills a script that does not end.
    shell.stub("sleep", '[ "$1" != infinity ] || kill -KILL $PPID')
    (shell.folder / "policy-token").write_text(token)
    # A proxy that leads nowhere: the service is asked directly.
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    return shell.run(shell.render("pre-job.sh.j2", policy_url=url), **{**JOB, **proxies, **job})


@pytest.mark.parametrize(
    ("event", "path", "body"),
    [
        (
            "pull_request",
            "/pull_request/check-run",
            {
                "repository_name": "octo-org/demo",
                "source_repository_name": "contributor/demo",
                "target_branch_name": "main",
                "source_branch_name": "fix-'\"$(touch canary)",
                "commit_sha": "c0ffee",
            },
        ),
        ("push", "/push/check-run", {"repository_name": "octo-org/demo"}),
        ("workflow_dispatch", "/workflow_dispatch/check-run", {"repository_name": "octo-org/demo"}),
        ("schedule", "/schedule/check-run", {"repository_name": "octo-org/demo"}),
        ("release", "/default/check-run", {"repository_name": "octo-org/demo"}),
    ],
)
def test_what_the_policy_service_is_asked(
    shell: Shell, service: PolicyService, event: str, path: str, body: dict[str, str]
) -> None:
    """Each kind of event has its own check, with the fields that this check needs."""
    event_file = shell.folder / "event.json"
    head = {"repo": {"full_name": "contributor/demo"}, "sha": "c0ffee"}
    event_file.write_text(json.dumps({"pull_request": {"head": head}}))

    done = ask(
        shell,
        service.url,
        GITHUB_EVENT_NAME=event,
        GITHUB_EVENT_PATH=str(event_file),
        GITHUB_BASE_REF="main",
        GITHUB_HEAD_REF="fix-'\"$(touch canary)",
    )

    assert done.returncode == 0
    [(asked, headers, given)] = service.requests
    assert (asked, given) == (path, body)
    assert headers["Authorization"] == "Bearer one-time-token"
    assert headers["Content-Type"] == "application/json"
    assert not (shell.folder / "canary").exists()


@pytest.mark.parametrize(
    ("event", "variables"),
    [
        ("pull_request_target", {"GITHUB_BASE_REF": "main", "GITHUB_HEAD_REF": "fix"}),
        ("pull_request_review", {}),
        ("pull_request_review_comment", {"GITHUB_BASE_REF": "", "GITHUB_HEAD_REF": ""}),
        ("issue_comment", {}),
    ],
)
@pytest.mark.parametrize("fork", ["contributor/demo", None])
def test_events_of_pull_requests_are_checked_as_pull_requests(
    shell: Shell, service: PolicyService, event: str, variables: dict[str, str], fork: str | None
) -> None:
    """Branches come from the payload where the environment has none; a deleted fork does not lead to another check."""
    event_file = shell.folder / "event.json"
    head = {"repo": fork and {"full_name": fork}, "sha": "c0ffee", "ref": "fix"}
    event_file.write_text(json.dumps({"pull_request": {"head": head, "base": {"ref": "main"}}}))

    ask(shell, service.url, GITHUB_EVENT_NAME=event, GITHUB_EVENT_PATH=str(event_file), **variables)

    [(asked, _, given)] = service.requests
    assert asked == "/pull_request/check-run"
    assert given == {
        "repository_name": "octo-org/demo",
        "source_repository_name": fork or "",
        "target_branch_name": "main",
        "source_branch_name": "fix",
        "commit_sha": "c0ffee",
    }


def test_comment_is_checked_by_its_repository(shell: Shell, service: PolicyService) -> None:
    """GitHub's event of a comment does not say which commit of the pull request it is about."""
    event_file = shell.folder / "event.json"
    event_file.write_text(
        json.dumps({"issue": {"pull_request": {"url": "https://api.example/pulls/1"}}, "comment": {}})
    )

    ask(shell, service.url, GITHUB_EVENT_NAME="issue_comment", GITHUB_EVENT_PATH=str(event_file))

    assert [(asked, given) for asked, _, given in service.requests] == [
        ("/default/check-run", {"repository_name": "octo-org/demo"})
    ]


MEMBER, OUTSIDER = {"author_association": "MEMBER"}, {"author_association": "CONTRIBUTOR"}
TRUSTED, OTHERS = ("OWNER", "MEMBER", "COLLABORATOR"), ("CONTRIBUTOR", "FIRST_TIMER", "MANNEQUIN", "NONE", "", None, 7)
# The event, its payload, and whether its job may run without the option's default.
AUTHORS: list[tuple[str, object, bool]] = [
    *(("pull_request", {"pull_request": {"author_association": trusted}}, True) for trusted in TRUSTED),
    *(("pull_request", {"pull_request": {"author_association": other}}, False) for other in (*OTHERS, "FIRST_TIME_X")),
    ("pull_request", {"pull_request": {"author_association": "owner"}}, False),
    ("pull_request", {"pull_request": {"author_association": ["OWNER"]}}, False),
    ("pull_request", {"pull_request": {}}, False),
    ("pull_request", {"pull_request": "OWNER"}, False),
    ("pull_request", {}, False),
    ("pull_request", [], False),
    ("pull_request", None, False),
    ("pull_request_target", {"pull_request": MEMBER}, True),
    ("pull_request_target", {"pull_request": OUTSIDER}, False),
    ("pull_request_review", {"review": MEMBER, "pull_request": MEMBER}, True),
    ("pull_request_review", {"review": MEMBER, "pull_request": OUTSIDER}, False),
    ("pull_request_review", {"review": OUTSIDER, "pull_request": MEMBER}, False),
    ("pull_request_review", {"review": MEMBER}, True),
    ("pull_request_review", {"review": MEMBER, "pull_request": {}}, False),
    ("pull_request_review", {"pull_request": MEMBER}, False),
    ("pull_request_review_comment", {"comment": MEMBER, "pull_request": MEMBER}, True),
    ("pull_request_review_comment", {"comment": MEMBER, "pull_request": OUTSIDER}, False),
    ("pull_request_review_comment", {"comment": OUTSIDER, "pull_request": MEMBER}, False),
    ("pull_request_review_comment", {"pull_request": MEMBER}, False),
    ("issue_comment", {"comment": MEMBER, "issue": {**MEMBER, "pull_request": {}}}, True),
    ("issue_comment", {"comment": MEMBER, "issue": {**OUTSIDER, "pull_request": {}}}, False),
    ("issue_comment", {"comment": MEMBER, "issue": {"pull_request": {}}}, False),
    ("issue_comment", {"comment": OUTSIDER, "issue": {**MEMBER, "pull_request": {}}}, False),
    ("issue_comment", {"comment": MEMBER, "issue": OUTSIDER}, True),
    ("issue_comment", {"comment": OUTSIDER, "issue": MEMBER}, False),
    ("issue_comment", {"issue": MEMBER}, False),
    ("issue_comment", {"comment": MEMBER, "pull_request": OUTSIDER}, False),
    *((event, OUTSIDER, True) for event in ("push", "workflow_dispatch", "schedule", "merge_group", "issues")),
    ("push", None, True),
]


@pytest.mark.parametrize(("event", "payload", "runs"), AUTHORS, ids=lambda value: json.dumps(value)[:60])
def test_outside_contributors(shell: Shell, event: str, payload: object, runs: bool) -> None:
    """Without allow-external-contributor everybody who wrote a part of the event must belong to the repository."""
    shell.stub("sleep", '[ "$1" != infinity ] || kill -KILL $PPID')
    event_file = shell.folder / "event.json"
    if payload is not None:
        event_file.write_text(json.dumps(payload))
    script = shell.render("pre-job.sh.j2", external_contributors=False)

    done = shell.run(script, **{**JOB, "GITHUB_EVENT_NAME": event, "GITHUB_EVENT_PATH": str(event_file)})

    assert done.returncode == (0 if runs else -signal.SIGKILL)
    assert ("Outside contributors may not run jobs here" in done.stdout) is not runs
    if not runs:
        assert shell.post_job.status is PostJobStatus.REPO_POLICY_CHECK_FAILURE
        assert shell.arguments("pkill")[:3] == ["-INT", "-x", "Runner.Listener"]


def test_outside_contributor_does_not_reach_the_policy_service(shell: Shell, service: PolicyService) -> None:
    """Both checks may be on; the one-time token is not used for a job that is refused before."""
    shell.stub("sleep", '[ "$1" != infinity ] || kill -KILL $PPID')
    script = shell.render("pre-job.sh.j2", external_contributors=False, policy_url=service.url)

    shell.run(script, **{**JOB, "GITHUB_EVENT_NAME": "pull_request", "GITHUB_EVENT_PATH": "/nowhere"})

    assert service.requests == []


def test_one_time_token_is_used_once(shell: Shell, service: PolicyService) -> None:
    """The token's file is gone before the job begins, and no process list shows the token."""
    done = ask(shell, service.url)

    assert not (shell.folder / "policy-token").exists()
    assert "one-time-token" not in " ".join(shell.arguments("curl"))
    assert "one-time-token" not in done.stdout + done.stderr


def test_policy_service_has_a_minute(shell: Shell, service: PolicyService) -> None:
    """The check ends after 60 seconds, come what may."""
    ask(shell, service.url)
    arguments = shell.arguments("curl")

    assert arguments[arguments.index("--max-time") + 1] == "60"


@pytest.mark.parametrize("status", [200, 204])
def test_allowed_job_runs(shell: Shell, service: PolicyService, status: int) -> None:
    """An allowed job runs: nothing is stopped and no post-job metrics are written yet."""
    service.status = status

    assert ask(shell, service.url).returncode == 0
    assert shell.arguments("sudo") == shell.arguments("pkill") == []
    assert not (shell.metrics / POST_JOB_METRICS_FILE_NAME).exists()
    assert shell.pre_job.workflow_run_id == "4711"


def assert_refused(shell: Shell, done: "subprocess.CompletedProcess[str]", code: int) -> None:
    assert done.returncode == -signal.SIGKILL, "it ends only when it is killed"
    assert shell.post_job.status is PostJobStatus.REPO_POLICY_CHECK_FAILURE
    assert shell.post_job.status_info is not None
    assert shell.post_job.status_info.code == code
    assert shell.arguments("pkill") == ["-INT", "-x", "Runner.Listener", "-KILL", "-x", "Runner.Worker"]
    assert shell.arguments("sleep") == ["1", "20", "10", "infinity"]
    assert shell.arguments("sudo") == POWER_OFF


def test_refused_job_does_not_run(shell: Shell, service: PolicyService) -> None:
    """A refusal is shown with its reason, noted with its code, and ends runner and instance."""
    service.status, service.words = 403, b"Branch protection is missing. $(touch canary)"

    done = ask(shell, service.url)

    assert "Branch protection is missing. $(touch canary)" in done.stdout
    assert_refused(shell, done, 403)
    assert not (shell.folder / "canary").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_no_signal_ends_the_policy_check(shell: Shell, service: PolicyService, number: int) -> None:
    """A signal during the check ends neither the script nor curl: the end of the script would let steps begin."""
    curl = shutil.which("curl")
    service.status = 403
    shell.stub("sleep", '[ "$1" != infinity ] || kill -KILL $PPID')
    shell.stub("curl", f'kill -{number} $$ $PPID\nexec {curl} "$@"')
    (shell.folder / "policy-token").write_text("one-time-token")

    done = shell.run(shell.render("pre-job.sh.j2", policy_url=service.url), **JOB)

    assert_refused(shell, done, 403)


@pytest.mark.parametrize("status", [500, 503])
def test_failing_policy_service_is_told_apart(shell: Shell, service: PolicyService, status: int) -> None:
    """A service that fails is not called a refusal, and the job does not run."""
    service.status = status

    done = ask(shell, service.url)

    assert f"failed with HTTP {status}" in done.stdout
    assert "check has failed" not in done.stdout
    assert_refused(shell, done, status)


def test_unreachable_policy_service(shell: Shell) -> None:
    """A service that cannot be reached lets no job through, and the job's log says so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

    done = ask(shell, url)

    assert "could not be reached" in done.stdout
    assert_refused(shell, done, 0)


@pytest.mark.parametrize("value", ["a b", "a'b", "a$(touch canary)b", "a`touch canary`b", "a;touch canary"])
def test_hostile_policy_url_runs_nothing(shell: Shell, value: str) -> None:
    """The service's address runs nothing."""
    ask(shell, f"http://127.0.0.1:9/{value}")

    assert shell.arguments("curl")[-1] == f"http://127.0.0.1:9/{value}/push/check-run"
    assert not (shell.folder / "canary").exists()


# --- archive ---


def test_archive_members() -> None:
    """Owners and modes are the files', and only the folders that belong to a user are named, once each."""
    files = [
        InstanceFile(PurePosixPath("/root/x/setup.sh"), "s", 0o700),
        InstanceFile(PurePosixPath("/home/ubuntu/github-runner/a"), "ä", 0o755, 1000),
        InstanceFile(PurePosixPath("/home/ubuntu/github-runner/b"), "", 0o600, 1000),
        InstanceFile(PurePosixPath("/home/ubuntu/c"), "c", 0o644, 1000),
        InstanceFile(PurePosixPath("/etc/environment"), "e\n"),
    ]

    with tarfile.open(fileobj=io.BytesIO(provision.archive(files))) as tar:
        members = [(entry.name, entry.isdir(), entry.mode, entry.uid, entry.gid) for entry in tar]
        contents = {entry.name: tar.extractfile(entry) for entry in tar if entry.isfile()}
        texts = {name: file.read().decode() if file else None for name, file in contents.items()}

    assert members == [
        ("root/x/setup.sh", False, 0o700, 0, 0),
        ("home/ubuntu/github-runner", True, 0o755, 1000, 1000),
        ("home/ubuntu/github-runner/a", False, 0o755, 1000, 1000),
        ("home/ubuntu/github-runner/b", False, 0o600, 1000, 1000),
        ("home/ubuntu/c", False, 0o644, 1000, 1000),
        ("etc/environment", False, 0o644, 0, 0),
    ]
    assert texts["home/ubuntu/github-runner/a"] == "ä"
    assert texts["home/ubuntu/github-runner/b"] == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
def test_archive_unpacks_as_in_an_instance(tmp_path: Path) -> None:
    """tar as root gives each file its owner and mode, and leaves folders of the image as they are."""
    (tmp_path / "home/ubuntu").mkdir(parents=True)
    (tmp_path / "home/ubuntu").chmod(0o750)
    os.chown(tmp_path / "home/ubuntu", 1000, 1000)
    config = replace(PLAIN, proxies=PROXIES)
    files = rendered(config, policy_url="https://policy.example", policy_token="t")

    subprocess.run(["tar", "-xf", "-", "-C", str(tmp_path)], input=provision.archive(files.values()), check=True)

    for path, file in files.items():
        stat = (tmp_path / path.lstrip("/")).stat()
        assert (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (file.mode, file.user, file.user), path
        assert (tmp_path / path.lstrip("/")).read_text() == file.content
    for folder, owner, mode in (
        ("home/ubuntu", 1000, 0o750),
        ("home/ubuntu/github-runner", 1000, 0o755),
        ("home/ubuntu/.docker", 1000, 0o755),
        ("root/.docker", 0, 0o755),
    ):
        stat = (tmp_path / folder).stat()
        assert (stat.st_uid, stat.st_mode & 0o7777) == (owner, mode), folder
