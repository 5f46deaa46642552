"""What a virtual machine is given, what it cannot do to its metrics storage, and what remains of a dead one."""

import pytest

from tests.vm.conftest import VmDeployment, wait_for

GIB = 1 << 30
SHARE = "/home/ubuntu/runner-fs"
# Extended attributes: a capability (cap_setuid) that takes effect when the program starts, and one of each other kind.
SET_ATTRIBUTES = """
import contextlib, os, struct
capability = struct.pack("<5I", 0x02000001, 1 << 7, 0, 0, 0)
for name, value in ("security.capability", capability), ("trusted.test", b"x"), ("user.test", b"x" * 3000):
    with contextlib.suppress(OSError):
        os.setxattr("/metrics-exchange/program", name, value)
"""
# What root of a virtual machine can leave in its metrics storage.
ATTACK = f"""
SET_ATTRIBUTES='{SET_ATTRIBUTES}'
mknod -m 666 /metrics-exchange/node c 1 5
install -m 4755 /usr/bin/id /metrics-exchange/program
python3 -c "$SET_ATTRIBUTES"
ln -s /etc/hostname /metrics-exchange/link
ln /metrics-exchange/program /metrics-exchange/hard
head -c 4M /dev/zero > /metrics-exchange/fill
for number in $(seq 5000); do true > /metrics-exchange/file-$number || break; done
true
"""

CHARM = "/var/lib/juju/agents/unit-github-runner-0/charm"
# With the charm's own client of LXD. The shell ends with 127 if it does not find a program.
MISSING_PROGRAM = """
import sys
from engine.client import LxdClient
done = LxdClient().instance(sys.argv[1]).execute(["sh", "-c", "no-such-program"], output=True)
print(done.code, done.stderr)
"""


def test_a_runner_is_what_was_asked_for(unit: VmDeployment) -> None:
    """CPUs, memory and root filesystem are those of the options, the name is the runner's, and it has booted once."""
    [name] = unit.keep(1)

    size = int(unit.inside(name, "df --block-size=1 --output=size / | tail -n 1"))
    memory = int(unit.inside(name, "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) << 10

    assert 8 * GIB < size < 9 * GIB
    assert 0.8 * GIB < memory <= GIB
    assert unit.inside(name, "nproc").strip() == "2"
    assert unit.inside(name, "cat /proc/sys/kernel/hostname").strip() == name
    assert unit.inside(name, "journalctl --list-boots --quiet | wc -l").strip() == "1"
    assert unit.inside(name, "findmnt -no FSTYPE /metrics-exchange").strip() in ("virtiofs", "9p")
    assert "no such file" in unit.inside(name, "LC_ALL=C ls /dev/lxd 2>&1 || true").lower()


def test_what_root_leaves_in_the_storage_is_of_no_use(unit: VmDeployment) -> None:
    """Device nodes, setuid programs and links of a virtual machine's root are on the host, and dead there.

    Extended attributes, such as capabilities, do not reach it at all.
    """
    [name] = unit.keep(1)
    folder = f"{SHARE}/{name}"
    unit.inside(name, ATTACK)

    for command in (f"cat {folder}/node", f"{folder}/program", f"{folder}/hard", f"cat {folder}/link"):
        failed = unit.machine.exec("sh", "-c", f"{command} 2>&1; echo code $?")
        assert "code 0" not in failed
        assert "ermission denied" in failed or "symbolic links" in failed
    listed = "import os, sys; print([os.listxattr(path) for path in sys.argv[1:]])"
    assert unit.machine.exec("python3", "-c", listed, folder, f"{folder}/program", f"{folder}/hard") == "[[], [], []]\n"
    assert int(unit.machine.exec("df", "--block-size=1", "--output=used", folder).split()[-1]) < 1 << 20


def test_a_missing_program_is_no_missing_runner(unit: VmDeployment) -> None:
    """A command that ends with 127 gives this code and its output, although LXD reports an error of its own."""
    [name] = unit.keep(1)

    charm = ("env", f"PYTHONPATH={CHARM}/src", f"{CHARM}/venv/bin/python", "-c", MISSING_PROGRAM)
    said = unit.machine.exec(*charm, name)

    assert said.startswith("127 ")
    assert "no-such-program" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vm-disk": "7GiB"}, "vm-disk: 7GiB is smaller than the image; use 8GiB or more"),
        ({"vm-cpu": 1000}, "vm-cpu: 1000 exceeds the"),
        ({"vm-memory": "1TiB"}, "vm-memory: 1TiB exceeds the"),
    ],
)
def test_what_lxd_would_refuse_blocks_the_unit(unit: VmDeployment, options: dict[str, object], message: str) -> None:
    """A virtual machine that cannot be made costs no runner that exists; the message names the limit."""
    before = unit.keep(1)
    known = {name: unit.unit.config()[name]["value"] for name in options}

    unit.unit.set_config(options)
    status = unit.status()
    unit.unit.set_config(known)

    assert status[0] == "blocked"
    assert message in status[1]
    assert unit.instances() == before


def test_logs_of_a_runner_without_an_agent(unit: VmDeployment) -> None:
    """The end of the journal and of the runner agent's logs come from the console where LXD's agent is dead."""
    [name] = unit.keep(1)
    [registered] = [runner for runner in unit.control.runners() if runner["name"] == name]
    unit.inside(name, "systemd-run --quiet --on-active=1 systemctl stop lxd-agent.service")
    agent = ("sh", "-c", f"lxc exec {name} -- true 2>&1 || true")
    wait_for(lambda: "agent isn't" in unit.machine.exec(*agent), "the end of LXD's agent", 60)
    unit.control.change_runner(registered["id"], status="offline")
    # LXD 5.0 stores the key, and then fails because it cannot tell the dead agent.
    unit.machine.call("lxc", "config", "set", name, "user.github-runner.offline-since=1")
    assert unit.lxd(f"instances/{name}")["config"]["user.github-runner.offline-since"] == "1"

    unit.reconcile()

    logs = f"/var/log/github-runner-logs/{name}"
    said = unit.machine.exec("cat", f"{logs}/console.log")
    assert "==> end of the logs <==" in said
    assert "Started" in said
    assert "_diag/Runner_" in said
    assert len(said) <= 1 << 20
    assert name not in unit.instances()


def test_a_smaller_disk_than_lxds_default(unit: VmDeployment) -> None:
    """A disk of the image's own size is enough for a runner."""
    [name] = unit.keep(1, **{"vm-disk": "8GiB"})

    size = int(unit.inside(name, "df --block-size=1 --output=size / | tail -n 1"))

    assert 7 * GIB < size < 8 * GIB


def test_metrics_are_never_on_the_guests_own_disk(unit: VmDeployment) -> None:
    """A job in whose virtual machine the metrics storage is not mounted leaves no metrics in the folder's place."""
    [name] = unit.keep(1)
    before = len(unit.events("runner_stop"))
    unit.inside(name, "umount --lazy /metrics-exchange")

    job = unit.job("ls -A /metrics-exchange; echo listed")

    assert (job["conclusion"], job["runner_name"]) == ("success", name)
    assert "listed" in job["log"]
    assert not any("metrics.json" in line for line in job["log"]), job["log"]
    unit.wait_gone(name)
    unit.reconcile()
    assert len(unit.events("runner_stop")) == before
