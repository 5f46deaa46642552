"""The files of a runner: contents, owners, modes, quoting, and the archive that they are sent in."""

import io
import json
import os
import re
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

import provision
import times
from models import GithubOrg, RunnerConfig, SSHDebugConnection
from option_values import parse_mirror
from provision import InstanceFile
from proxies import ProxyConfig
from tests.support.scripts import (
    AGENT_FOLDER,
    HOSTILE,
    JOB,
    MIRROR,
    PLAIN,
    PROXIES,
    Shell,
    archived,
    content,
    rendered,
)

TMATE = SSHDebugConnection("10.1.2.3", 10022, "SHA256:rsa", "SHA256:ed25519")
DAEMON = "/etc/docker/daemon.json"
HTTP_PROXY = "/etc/systemd/system/docker.service.d/http-proxy.conf"
CLIENTS = ("/root/.docker/config.json", "/home/ubuntu/.docker/config.json")
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
DOCKER_PROXY_UNIT = (
    "[Service]\n"
    'Environment="HTTP_PROXY=http://proxy:3128"\n'
    'Environment="HTTPS_PROXY=http://proxy:3129"\n'
    'Environment="NO_PROXY=localhost,10.0.0.0/8,runner-0-abc,.svc"\n'
)
DOCKER_CLIENT = (
    '{"proxies": {"default": {"httpProxy": "http://proxy:3128", "httpsProxy": "http://proxy:3129", '
    '"noProxy": "localhost,10.0.0.0/8,runner-0-abc,.svc"}}}\n'
)


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
            DOCKER_PROXY_UNIT,
            DOCKER_CLIENT,
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
            DOCKER_PROXY_UNIT,
            DOCKER_CLIENT,
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

    assert contents[f"{AGENT_FOLDER}/.env"] == env
    assert contents["/etc/environment"] == environment
    assert contents.get(DAEMON) == daemon
    assert contents.get(HTTP_PROXY) == unit
    assert [contents.get(path) for path in CLIENTS] == [client, client]


def test_owners_and_modes() -> None:
    """Scripts are executable by their owner, files below /home/ubuntu belong to ubuntu, tokens have mode 600."""
    config = replace(PLAIN, proxies=PROXIES, dockerhub_mirror=MIRROR)
    found = rendered(config, policy_url="https://policy.example", policy_token="t")

    assert {path: (file.mode, file.user) for path, file in found.items()} == {
        "/root/github-runner/setup.sh": (0o700, 0),
        f"{AGENT_FOLDER}/.register.sh": (0o700, 1000),
        f"{AGENT_FOLDER}/start.sh": (0o755, 1000),
        f"{AGENT_FOLDER}/pre-job.sh": (0o755, 1000),
        f"{AGENT_FOLDER}/.env": (0o644, 1000),
        f"{AGENT_FOLDER}/.policy-token": (0o600, 1000),
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


def test_nothing_registers_a_runner_that_is_registered_already() -> None:
    """The files of a just-in-time registration take the place of the token and of what uses it."""
    found = rendered(registration_files={".runner": "{}", ".credentials": "x"})

    for name in (".runner", ".credentials"):
        assert (found[f"{AGENT_FOLDER}/{name}"].mode, found[f"{AGENT_FOLDER}/{name}"].user) == (0o600, 1000)
    assert not {f"{AGENT_FOLDER}/.register.sh", "/run/github-runner/token"} & found.keys()
    assert ".register.sh" not in found["/root/github-runner/setup.sh"].content
    assert ".register.sh" in rendered()["/root/github-runner/setup.sh"].content


def test_policy_token_is_in_its_file_alone() -> None:
    """The one-time token is in the one file that the pre-job script deletes."""
    found = rendered(policy_url="https://policy.example", policy_token="one-time-x")

    assert [path for path, file in found.items() if "one-time-x" in file.content] == [f"{AGENT_FOLDER}/.policy-token"]


def test_no_policy_no_check() -> None:
    """Without a policy service the pre-job script sends no request, and no token file exists."""
    found = rendered()

    assert f"{AGENT_FOLDER}/.policy-token" not in found
    assert "curl" not in found[f"{AGENT_FOLDER}/pre-job.sh"].content


def test_service_survives_its_jobs() -> None:
    """A stop reaches start.sh alone, an OOM kill costs one process, and the end of the unit powers the instance off."""
    unit = (content("/etc/systemd/system/github-runner.service") or "").splitlines()

    service = unit.index("[Service]")
    assert {"SuccessAction=poweroff-force", "FailureAction=poweroff-force", "RefuseManualStop=yes"} < set(
        unit[:service]
    )
    assert {"KillMode=mixed", "OOMPolicy=continue", "LimitNOFILE=65536:524288"} < set(unit[service:])
    assert f"TimeoutStopSec={times.STOP_AGENT}" in unit[service:]


def test_service_waits_for_no_more_than_the_way_to_github() -> None:
    """The set-up has waited for that. `network-online.target` takes a second more, for an address of IPv6."""
    [after] = re.findall(r"^After=(.*)", content("/etc/systemd/system/github-runner.service") or "", re.MULTILINE)

    assert set(after.split()) == {"network.target", "nss-lookup.target"}


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
    assert f"ExecStart={AGENT_FOLDER}/start.sh" in unit
    assert "Environment=RUNNER_MANUALLY_TRAP_SIG=1" in unit
    assert "Environment=ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE=1" in unit


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
    """A value is one word of a unit, with any quotes, backslashes or specifiers."""
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


@pytest.mark.parametrize("value", [*HOSTILE, "a\ntouch canary"])
def test_no_value_breaks_a_script(value: str, tmp_path: Path) -> None:
    """Every script stays valid bash with hostile values."""
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
    environment = found[f"{AGENT_FOLDER}/.env"].splitlines()
    pre_job = found[f"{AGENT_FOLDER}/pre-job.sh"].replace("/metrics-exchange", str(shell.metrics))

    assert f"DOCKERHUB_MIRROR={mirror}" in environment
    assert f"CONTAINER_REGISTRY_URL={mirror}" in environment
    assert json.loads(found[DAEMON]) == {"registry-mirrors": [daemon]}
    assert shell.run(pre_job, **JOB).stdout == f"A Docker Hub mirror is used: {daemon}\n"
    if daemon != mirror:
        assert [path for path, text in found.items() if mirror in text] == [f"{AGENT_FOLDER}/.env"]
        assert mirror not in repr(config)


def test_archive_members(tmp_path: Path) -> None:
    """Owners and modes are the files', and only the folders that belong to a user are named, once each.

    Last comes the runner binary.
    """
    (tmp_path / "runner.tar.gz").write_bytes(b"binary" * 100_000)
    files = [
        InstanceFile(PurePosixPath("/root/x/setup.sh"), "s", 0o700),
        InstanceFile(PurePosixPath("/home/ubuntu/github-runner/a"), "ä", 0o755, 1000),
        InstanceFile(PurePosixPath("/home/ubuntu/github-runner/b"), "", 0o600, 1000),
        InstanceFile(PurePosixPath("/home/ubuntu/c"), "c", 0o644, 1000),
        InstanceFile(PurePosixPath("/etc/environment"), "e\n"),
    ]

    with tarfile.open(fileobj=io.BytesIO(archived(files, tmp_path / "runner.tar.gz"))) as tar:
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
        (str(provision.BINARY_ARCHIVE).lstrip("/"), False, 0o600, 0, 0),
    ]
    assert texts["home/ubuntu/github-runner/a"] == "ä"
    assert texts["home/ubuntu/github-runner/b"] == ""
    assert texts[str(provision.BINARY_ARCHIVE).lstrip("/")] == "binary" * 100_000


def test_a_binary_that_cannot_be_read_begins_no_archive(tmp_path: Path) -> None:
    """An archive that is cut off between two files would pass for a whole one, and be set up."""
    out = io.BytesIO()

    with pytest.raises(FileNotFoundError):
        provision.write_archive(out, [InstanceFile(PurePosixPath("/etc/x"), "x")], tmp_path / "missing")

    assert out.getvalue() == b""


def unpack(shell: Shell, tmp_path: Path, given: bytes) -> "subprocess.CompletedProcess[bytes]":
    """Run what an instance runs first, with a folder in place of its root and of its set-up script."""
    (tmp_path / "setup").write_text("#!/bin/sh\necho set up >&2; exit 3\n")
    (tmp_path / "setup").chmod(0o755)
    script = provision.UNPACK_AND_SET_UP.replace("-C /", f"-C {tmp_path}").replace("-w /", f"-w {tmp_path}")
    command = ["/bin/sh", "-c", script.replace(str(provision.SETUP_SCRIPT), f"{tmp_path}/setup")]
    return subprocess.run(command, input=given, env=shell.environment(), capture_output=True, timeout=60, check=False)


def test_the_set_up_begins_when_the_files_are_there(shell: Shell, tmp_path: Path) -> None:
    """A line says that the files are read, and what the set-up prints comes after it, with its exit code."""
    shell.stub("mountpoint", f"[ -e {tmp_path}/asked ] || {{ touch {tmp_path}/asked; exit 1; }}")

    done = unpack(shell, tmp_path, archived([InstanceFile(PurePosixPath("/etc/x"), "x")]))

    assert (done.returncode, done.stdout, done.stderr) == (3, b"\nset up\n", b"")
    assert (tmp_path / "etc/x").read_text() == "x"
    assert shell.arguments("mountpoint") == ["-q", "/run"] * 2


def test_files_that_cannot_be_unpacked_are_read_to_their_end(shell: Shell, tmp_path: Path) -> None:
    """Or the charm would not get to read the reason. Nothing is set up then."""
    shell.stub("mountpoint")
    shell.stub("tar", "echo no space left on device >&2; exit 2")

    done = unpack(shell, tmp_path, bytes(5_000_000))

    assert (done.returncode, done.stdout) == (2, b"\nno space left on device\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
def test_archive_unpacks_as_in_an_instance(tmp_path: Path) -> None:
    """tar as root gives each file its owner and mode, and leaves folders of the image as they are."""
    (tmp_path / "home/ubuntu").mkdir(parents=True)
    (tmp_path / "home/ubuntu").chmod(0o750)
    os.chown(tmp_path / "home/ubuntu", 1000, 1000)
    config = replace(PLAIN, proxies=PROXIES)
    files = rendered(config, policy_url="https://policy.example", policy_token="t")

    subprocess.run(["tar", "-xf", "-", "-C", str(tmp_path)], input=archived(files.values()), check=True)

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
