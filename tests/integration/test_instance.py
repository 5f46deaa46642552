"""The LXD adapter and what is run inside a new instance, on a real container."""

import gc
import hashlib
import http.server
import itertools
import os
import signal
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

import provision
import runner
from engine import events
from engine.api import wait_until
from engine.client import LxdClient
from engine.instance import LxdInstance
from engine.probe import probe
from engine.profiles import ensure_resources
from errors import LxdError, LxdNotFoundError
from models import Arch, GithubRepo, RunnerConfig, RunnerStatus, Snap, WgetExecutable
from naming import KEY
from option_values import parse_addresses, parse_ports
from proxies import ProxyConfig, Redirect
from runner import Runner
from runner_view import Process
from sandbox.lab import lxd_setup
from tests.support.fakes import RESOURCES, TEMPLATES

PROFILE = "ghr-test-instance"
FAKE_SNAP = """#!/bin/sh
echo "$@" >> /root/snap.log
case "$1" in
list) [ -e /root/installed ] ;;
install) touch /root/installed ;;
services) echo "aproxy enabled active" ;;
esac
"""


@pytest.fixture(scope="module")
def client(lxd: None) -> LxdClient:
    return LxdClient()


@pytest.fixture(scope="module")
def instance(client: LxdClient) -> Iterator[LxdInstance]:
    """A running container of the sandbox's base image."""
    devices = {
        "root": {"type": "disk", "path": "/", "pool": lxd_setup.POOL},
        "eth0": {"type": "nic", "network": lxd_setup.BRIDGE, "name": "eth0"},
    }
    if client.find("instances", PROFILE):
        client.instance(PROFILE).stop(force=True)
    if client.find("profiles", PROFILE):
        client.change("DELETE", "profiles", PROFILE)
    client.change("POST", "profiles", json={"name": PROFILE, "devices": devices})
    made = client.create_instance(
        PROFILE,
        source={"type": "image", "alias": lxd_setup.BASE_IMAGE},
        virtual_machine=False,
        profiles=[PROFILE],
        config={"user.x": "1"},
        devices={},
    )
    made.start()
    wait_until(lambda: probe(made) is Process.NONE, 30, "the first command")
    yield made
    made.stop(force=True)
    made.delete()
    client.change("DELETE", "profiles", PROFILE)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder that is served at the sandbox's bridge."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer((lxd_setup.bridge_address(), 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://{lxd_setup.bridge_address()}:{server.server_port}", tmp_path
    server.shutdown()
    server.server_close()
    thread.join()


def set_up(instance: LxdInstance, software: tuple[list[Snap], list[WgetExecutable]], proxies: ProxyConfig) -> str:
    """What Runner.create does between start and registration; the last words of a script that failed."""
    config = RunnerConfig(
        app_name="app",
        issue_metrics=False,
        labels=("app",),
        lxd_storage_path=Path("/"),
        name=instance.name,
        path=GithubRepo("octo-org", "demo"),
        proxies=proxies,
        github_url=f"http://{lxd_setup.bridge_address()}",
    )
    files = provision.files(provision.environment(TEMPLATES), config, arch=Arch.X64, software=software)
    files = [replace(file, content="#!/bin/sh\n") if file.path == provision.REGISTER_SCRIPT else file for file in files]
    with tempfile.NamedTemporaryFile() as binary, instance.begin(["/bin/sh", "-c", provision.UNPACK_AND_SET_UP]) as it:
        tarfile.open(binary.name, "w:gz").close()
        it.feed(lambda out: provision.write_archive(out, files, Path(binary.name)), 90)
        code, output = it.result()
    return "" if code == 0 else output


def said(instance: LxdInstance, command: str) -> str:
    """What a shell command prints."""
    assert instance.execute(["sh", "-c", f"{{ {command}; }} > /tmp/said"]).code == 0
    return instance.pull("/tmp/said", 65536).decode()


def test_missing_executable_is_fetched_and_verified(instance: LxdInstance, web: tuple[str, Path]) -> None:
    """A tool that the image lacks is in /usr/bin with mode 755; one that is there is left alone."""
    url, folder = web
    (folder / "tool").write_text("#!/bin/sh\necho works\n")
    checksum = hashlib.sha256((folder / "tool").read_bytes()).hexdigest()

    assert set_up(instance, ([], [WgetExecutable(f"{url}/tool", "new-tool", checksum)]), ProxyConfig()) == ""
    (folder / "tool").unlink()
    assert set_up(instance, ([], [WgetExecutable(f"{url}/tool", "new-tool", checksum)]), ProxyConfig()) == ""

    assert said(instance, "new-tool; stat -c %a /usr/bin/new-tool") == "works\n755\n"


@pytest.mark.parametrize(
    ("checksum", "name", "words"), [("0" * 64, "tool", "wrong checksum"), (None, "nothing", "cannot be fetched")]
)
def test_bad_executable_stops_the_set_up(
    instance: LxdInstance, web: tuple[str, Path], checksum: str | None, name: str, words: str
) -> None:
    """A wrong checksum or a missing file ends the creation with a reason, and nothing is installed."""
    url, folder = web
    (folder / "tool").write_text("something else")

    assert words in set_up(instance, ([], [WgetExecutable(f"{url}/{name}", "bad-tool", checksum)]), ProxyConfig())
    assert instance.execute(["test", "-e", "/usr/bin/bad-tool"]).code == 1


def test_aproxy_is_installed_and_its_table_loaded(instance: LxdInstance) -> None:
    """The snap with its revision, its settings, and the nftables table, loaded for real."""
    instance.push("/usr/local/bin/snap", FAKE_SNAP.encode(), mode=0o755)
    proxies = ProxyConfig(http="http://proxy.example:3128", use_aproxy=True)

    assert set_up(instance, ([Snap("aproxy", "edge", 8)], []), proxies) == ""

    calls = said(instance, "cat /root/snap.log").splitlines()
    assert "install aproxy --channel=edge --revision=8" in calls
    assert "set aproxy proxy=proxy.example:3128 listen=:54969" in calls
    table = said(instance, "nft list table ip aproxy")
    assert "type nat hook prerouting priority dstnat" in table
    assert "type nat hook output priority -100" in table
    assert table.count("tcp dport { 80, 443 }") == 2
    assert table.count(":54969") == 2


# Listens where aproxy does, and says what each connection came to.
CONNECT = """
import socket, sys, threading
server = socket.create_server(("", 54969))
def answer():
    while True:
        with server.accept()[0] as connection:
            connection.sendall(b"aproxy")
threading.Thread(target=answer, daemon=True).start()
for item in sys.argv[1:]:
    address, port = item.split(":")
    try:
        with socket.create_connection((address, int(port)), 5) as connection:
            print(item, connection.recv(6).decode())
    except ConnectionRefusedError:
        print(item, "refused")
"""


def test_aproxy_gets_what_the_options_redirect(instance: LxdInstance) -> None:
    """A connection to a redirected port arrives at aproxy, unless its address is excluded or its port is another."""
    bridge = lxd_setup.bridge_address()
    redirect = Redirect(parse_ports("8000-8080, 8070-8090"), parse_addresses(f"{bridge}, {bridge}-{bridge}"))
    proxies = ProxyConfig(http="http://proxy.example:3128", use_aproxy=True, redirect=redirect)
    assert set_up(instance, ([Snap("aproxy", "edge", 8)], []), proxies) == ""
    own = said(instance, "hostname -I").split()[0]
    instance.push("/root/connect.py", CONNECT.encode())

    redirected = ["198.51.100.7:8000", "198.51.100.7:8090", f"{own}:8000"]
    direct = [f"{bridge}:8000", "127.0.0.1:8000", f"{own}:7999", f"{own}:8091"]
    found = said(instance, f"python3 /root/connect.py {' '.join(redirected + direct)}").splitlines()

    assert found == [*(f"{item} aproxy" for item in redirected), *(f"{item} refused" for item in direct)]
    instance.execute(["nft", "delete", "table", "ip", "aproxy"])
    instance.execute(["rm", "/usr/local/bin/snap"])


def test_unresolved_host_ends_with_a_reason(instance: LxdInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GitHub host that is not resolved ends the set-up in time, and the text names it."""
    monkeypatch.setitem(provision.FIXED, "network_timeout", 1)
    monkeypatch.setattr(provision, "network_host", lambda _: "nowhere.invalid")

    assert "network: nowhere.invalid" in set_up(instance, ([], []), ProxyConfig())


def test_commands_give_their_answer(instance: LxdInstance) -> None:
    """Exit code, and of a failure both outputs."""
    done = instance.execute(["sh", "-c", "echo out; echo err >&2; exit 3"], output=True)

    assert (done.code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert instance.execute(["true"]).stdout == ""
    missing = instance.execute(["sh", "-c", "nosuchprogram"], output=True)
    assert missing.code == 127
    assert "nosuchprogram" in missing.stderr
    assert instance.execute(["/etc/passwd"]).code == 126


def test_command_that_does_not_end_is_given_up(instance: LxdInstance) -> None:
    """The time limit is the client's own: LXD's own waits have none."""
    with pytest.raises(LxdError, match="not done within 1 s"):
        instance.execute(["sleep", "60"], timeout=1)


def test_files_go_in_and_out(instance: LxdInstance) -> None:
    """Owner and mode are set, reading is cut, a folder or a missing file is an error."""
    instance.push("/root/file", b"content", mode=0o600, user=1000)

    assert instance.pull("/root/file", 4) == b"cont"
    assert said(instance, "stat -c '%u %a' /root/file") == "1000 600\n"
    with pytest.raises(LxdError, match="not a file"):
        instance.pull("/root", 4)
    with pytest.raises(LxdNotFoundError):
        instance.pull("/root/nothing", 4)


def test_output_is_a_stream_that_is_cut(instance: LxdInstance) -> None:
    """All of a short output, the beginning of an endless one; a silent command and one that drips are given up."""
    shell = ["/bin/sh", "-c"]
    assert instance.output([*shell, "echo out; echo err >&2; exit 3"], 100, 10) == b"out\n"
    assert instance.output([*shell, "head -c 3000000 /dev/zero"], 5_000_000, 20) == bytes(3_000_000)
    assert instance.output(["cat", "/dev/zero"], 5_000_000, 20) == bytes(5_000_000)
    assert instance.output(["no-such-program"], 100, 10) == b""
    for endless in ("sleep 60", "while echo x; do sleep 0.1; done"):
        with pytest.raises(LxdError, match="timed out"):
            instance.output([*shell, endless], 1000, 1)
    assert said(instance, "pgrep -x cat || echo none") == "none\n"


def test_a_command_reads_what_it_is_sent(instance: LxdInstance) -> None:
    """Every byte, from the moment in which it says that it reads; its exit code and its output come in the end."""
    content = os.urandom(5_000_000)
    parts = [content[start : start + 1_234_567] for start in range(0, len(content), 1_234_567)]
    with instance.begin(["/bin/sh", "-c", "echo; sha256sum; echo $HOME >&2; exit 3"], {"HOME": "/x"}) as command:
        command.feed(lambda out: list(map(out.write, parts)), 30)
        done = command.result()

    assert done == (3, f"\n{hashlib.sha256(content).hexdigest()}  -\n")


def test_a_command_that_ends_before_its_input_says_why(instance: LxdInstance) -> None:
    """Where it stops reading nothing waits for it, and where it does not begin the reason is in the error."""
    parts = itertools.repeat(bytes(1_000_000), 100)
    started = time.monotonic()
    with instance.begin(["/bin/sh", "-c", "echo; sleep 0.5; echo no room; exit 3"]) as command:
        command.feed(lambda out: list(map(out.write, parts)), 60)
        done = command.result()
    assert done == (3, "\nno room\n")
    assert time.monotonic() - started < 30

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("times.READY", {"container": 1})
        with pytest.raises(LxdError, match=r"not within 1 s: sh in .* ended with 4 before it had begun: no shell"):
            instance.begin(["/bin/sh", "-c", "echo no shell; exit 4"])


# What a job leaves where its agent's logs are, and in the place of the machine's.
TRAPS = """
set -e
cd /home/ubuntu/github-runner/_diag
for number in $(seq 31); do mkfifo Worker_$number.log; done
for number in $(seq 3000); do echo x > Old_$number.log; done
ln -s /dev/zero Runner_zero.log
mkdir Runner_folder.log
truncate --size=1T Runner_sparse.log
echo real > Runner_1.log
echo named > "Runner_2.log
x.log"
mv /var/log/syslog /var/log/syslog.real || true
mkfifo /var/log/syslog
"""
UNDO_TRAPS = "rm -rf /home/ubuntu/github-runner/_diag /var/log/syslog /usr/local/bin/journalctl"


@pytest.fixture
def crashed(instance: LxdInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """A runner whose job left traps."""
    monkeypatch.setattr(runner, "LOGS_PATH", tmp_path)
    instance.execute(["mkdir", "-p", "/home/ubuntu/github-runner/_diag"])
    assert instance.execute(["/bin/sh", "-c", TRAPS], output=True).stderr == ""
    config = RunnerConfig("app", False, (), Path("/"), instance.name, GithubRepo("octo-org", "demo"), ProxyConfig())
    yield Runner(cast(Any, None), config, RunnerStatus(), instance)
    instance.execute(["/bin/sh", "-c", UNDO_TRAPS])


def test_traps_among_the_logs_cost_nothing(crashed: Runner, tmp_path: Path) -> None:
    """Pipes, links, folders, sparse and thousands of files: 20 regular ones at most, each cut, in seconds."""
    started = time.monotonic()
    crashed.pull_logs()

    folder = tmp_path / crashed.config.name
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"github-runner-journal.log", "Runner_1.log", "Runner_sparse.log"} <= names
    assert len(names) <= 1 + runner.MOST_LOG_FILES
    assert not {name for name in names if "Worker" in name or name in ("Runner_zero.log", "Runner_folder.log")}
    assert max(path.stat().st_size for path in folder.rglob("*")) == runner.LOG_SIZE_LIMIT
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("program", ["cat /dev/zero", "sleep 600", "trap '' TERM; while true; do sleep 1; done"])
def test_programs_that_a_job_replaced_do_not_hold_the_logs(
    crashed: Runner, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endless output is cut, and the first program that does not end ends the pulling."""
    monkeypatch.setattr(runner, "LOG_TIMEOUT", 2)
    script = f"#!/bin/sh\n{program}\n".encode()
    assert crashed.instance is not None
    crashed.instance.push("/usr/local/bin/journalctl", script, mode=0o755)
    started = time.monotonic()

    crashed.pull_logs()

    assert time.monotonic() - started < 20
    pulled = [path.name for path in (tmp_path / crashed.config.name).iterdir()]
    assert sorted(pulled) == (["_diag", "github-runner-journal.log"] if "zero" in program else ["_diag"])


def test_configuration_is_set_and_taken_away(client: LxdClient, instance: LxdInstance) -> None:
    """None removes a key, here and at LXD."""
    instance.set_config({"user.y": "2", "user.x": None})

    fresh = client.instance(instance.name)
    assert fresh.config["user.y"] == instance.config["user.y"] == "2"
    assert "user.x" not in fresh.config
    assert "user.x" not in instance.config
    instance.set_config({"user.x": "1"})


def test_probe_tells_job_agent_and_neither(instance: LxdInstance) -> None:
    """By processes and the unit's state, through an exit code alone."""
    # Without it the instance would be one of the previous charm, whose runners are no units of systemd.
    instance.set_config({f"{KEY}created": "1"})
    instance.execute(["sh", "-c", "rm -f /etc/systemd/system/github-runner.service; systemctl daemon-reload"])
    assert probe(instance) is Process.NONE
    instance.execute(["systemd-run", "--quiet", "--unit=github-runner", "sleep", "60"])
    assert probe(instance) is Process.RUNNING
    for path in ("bin/Runner.Worker", "/home/ubuntu/github-runner/bin.2.336.0/Runner.Worker"):
        instance.execute(["systemd-run", "--quiet", "--unit=job", "bash", "-c", f"exec -a {path} sleep 60"])
        wait_until(lambda: probe(instance) is Process.WORKER, 10, "the worker")
        instance.execute(["systemctl", "stop", "job"])
        assert probe(instance) is Process.RUNNING
    # By its name alone, whatever its path.
    name = "printf Runner.Worker > /proc/self/comm; while true; do sleep 1; done"
    instance.execute(["systemd-run", "--quiet", "--unit=job", "bash", "-c", name])
    wait_until(lambda: probe(instance) is Process.WORKER, 10, "the worker")
    instance.execute(["systemctl", "stop", "job", "github-runner"])


def test_host_uid_follows_the_instances_map(client: LxdClient, instance: LxdInstance) -> None:
    """What a container sees as 1000 is another user on the host. LXD is asked: it has not been said at its creation."""
    instance.config.clear()
    assert instance.host_uid(1000) >= 100000


def test_resource_profile_is_what_the_instances_type_takes(client: LxdClient) -> None:
    """Limits and disk size; one made for virtual machines becomes one that containers take."""
    pool = client.find("storage-pools", "runner")
    if pool is None:
        client.change("POST", "storage-pools", json={"name": "runner", "driver": "dir", "config": {}})
    try:
        ensure_resources(client, RESOURCES, container=False)
        ensure_resources(client, RESOURCES, container=True)
        ensure_resources(client, RESOURCES, container=True)
        profile = client.find("profiles", RESOURCES.profile)
        assert profile["config"]["limits.cpu"] == "1"
        assert profile["config"]["limits.memory"] == "1GiB"
        assert profile["devices"]["root"] == {"type": "disk", "path": "/", "pool": "runner", "size": "2GiB"}
    finally:
        client.change("DELETE", "profiles", RESOURCES.profile)
        if pool is None:
            client.change("DELETE", "storage-pools", "runner")


def test_virtual_machine_is_asked_for_as_one(client: LxdClient, instance: LxdInstance) -> None:
    """Where no virtual machine can start, LXD still takes or refuses the request for one as such."""
    with pytest.raises(LxdError) as refused:
        client.create_instance(
            "ghr-test-vm",
            source={"type": "image", "alias": lxd_setup.BASE_IMAGE},
            virtual_machine=True,
            profiles=[PROFILE],
            config={},
            devices={},
        )
    assert "virtual" in str(refused.value).lower() or "type" in str(refused.value).lower()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_absent_daemon_is_an_lxd_error() -> None:
    """No socket, no traceback."""
    with pytest.raises(LxdError, match="does not answer"):
        LxdClient("http+unix://%2Fnowhere%2Funix.socket").instances()
    # pylxd does not close a socket that could not be connected: its warning belongs to this test.
    gc.collect()


def test_stop_of_what_is_gone_is_done(client: LxdClient, instance: LxdInstance) -> None:
    """Already gone counts as done at every step."""
    gone = LxdInstance(client, {"name": "ghr-gone", "status": "Running", "type": "container", "config": {}})
    gone.stop(1)
    gone.delete()
    with pytest.raises(LxdNotFoundError):
        gone.set_config({"user.x": "1"})


def launched(client: LxdClient, name: str) -> LxdInstance:
    """A container of the base image, which does not run yet."""
    return client.create_instance(
        name,
        source={"type": "image", "alias": lxd_setup.BASE_IMAGE},
        virtual_machine=False,
        profiles=[],
        config={},
        devices={"root": {"type": "disk", "path": "/", "pool": lxd_setup.POOL}},
    )


def test_what_runs_against_its_listing_is_deleted(client: LxdClient) -> None:
    """A start that was asked for by a process that died comes after the list, or while it is deleted."""
    made = launched(client, "ghr-test-starts")
    client.request("PUT", "instances", made.name, "state", json={"action": "start", "timeout": -1})
    try:
        made.delete()

        assert client.find("instances", made.name) is None
    finally:
        made.stop(force=True)


def test_instance_that_will_not_stop_is_forced(client: LxdClient) -> None:
    """An instance whose init hangs is stopped by force at the limit of an orderly stop."""
    made = launched(client, "ghr-test-hangs")
    made.start()
    wait_until(lambda: client.get("instances", made.name, "state")["pid"], 10, "its init")
    os.kill(client.get("instances", made.name, "state")["pid"], signal.SIGSTOP)

    made.stop(timeout=1)

    assert client.find("instances", made.name) is None


def test_end_of_an_instance_is_told(client: LxdClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """LXD's events name it within a moment, others' instances stay unnamed, and a daemon that is away is waited for."""
    monkeypatch.setattr(events, "RETRY_AFTER", 0.01)
    paths = [Path("/nowhere/unix.socket")] * 2
    ended = events.ended(
        lambda name: name == "ghr-test-ends", 0.2, lambda: paths.pop() if paths else events.socket_path()
    )

    assert next(ended) == set()
    for name in ("ghr-test-other", "ghr-test-ends"):
        launched(client, name).delete()
    assert next(ended) == {"ghr-test-ends"}
