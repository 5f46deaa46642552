"""The creation of a virtual machine, beside its image booted bare. Kept apart from the figures of containers."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import github
from sandbox.lab import lxd_setup
from sandbox.lab.pack import pack
from sandbox.vm import host, template
from tests.bench.lxd_notes import NOTES
from tests.bench.report import write
from tests.support.deployment import PAT, REPOSITORY, ROOT
from tests.vm.conftest import VmDeployment, deployed, wait_for

BARE = "bare"
READY = 600
# At most, for one creation; requests without those that poll whether the virtual machine answers yet.
GOALS = {"boots": 1, "requests": 12, "times the bare image": 1.2}


@dataclass
class Request:
    """What the charm has sent to LXD for one request, in bytes with its head; ``line`` is the first of the head."""

    thread: str
    line: str
    sent: int


def creation(repeat: int) -> None:
    """One runner, ``repeat`` times: processor time of QEMU until the agent answers, boots, and times until online."""
    template.ensure()
    address = lxd_setup.bridge_address()
    with (
        tempfile.TemporaryDirectory() as folder,
        github.serve(address, 0, [PAT], [REPOSITORY], ["octo-org"], tls=True) as hub,
    ):
        charm = pack(ROOT, Path(folder, "charm"))
        (charm / "lib").mkdir(exist_ok=True)
        (charm / "lib" / "sitecustomize.py").write_text(Path(__file__).with_name("lxd_notes.py").read_text())
        found = deployed("bench-vm", charm, hub)
        try:
            runners = [_runner(found) for _ in range(repeat)]
            bare = [_bare(found) for _ in range(repeat)]
        finally:
            found.machine.destroy()
    _report(runners, statistics.median(bare))


def _runner(found: VmDeployment) -> dict[str, float]:
    found.unit.set_config({"virtual-machines": 0})
    found.machine.exec("truncate", "--size=0", NOTES)
    started = time.monotonic()
    with ThreadPoolExecutor(1) as beside:
        hook = beside.submit(found.unit.set_config, {"virtual-machines": 1})
        [name] = wait_for(found.instances, "the instance", READY)
        processor = _until_agent(found, name)
        agent = time.monotonic()
        wait_for(found.online, "the runner online", READY)
        online = time.monotonic()
        hook.result()
    boots = found.inside(name, "journalctl --list-boots --quiet | wc -l")
    times = {"processor": processor, "to agent": agent - started, "to online": online - agent}
    return {**times, "boots": float(boots), **counted(found.machine.exec("cat", NOTES).splitlines(), name)}


def counted(notes: Sequence[str], name: str) -> dict[str, float]:
    """What one creation has asked of LXD: from its resources' profile to the end of the last command in the instance.

    ``notes`` are those of the hook, of which ``name`` is the only new instance.
    """
    requests = _requests(notes)
    [made] = [number for number, one in enumerate(requests) if one.line.startswith("POST /1.0/instances ")]
    mine = [one for one in requests if one.thread == requests[made].thread]
    begin = mine.index(requests[made])
    while begin and "/1.0/profiles" in mine[begin - 1].line:
        begin -= 1
    commands = [number for number, one in enumerate(mine) if f"/1.0/instances/{name}/exec " in one.line]
    end = commands[-1] + 1
    while end < len(mine) and "/1.0/operations/" in mine[end].line:
        end += 1
    # The last two are the set-up and the start of the runner agent; LXD refused those before.
    asked = mine[begin : commands[0]] + mine[commands[-2] : end]
    return {"requests": len(asked), "polls": end - begin - len(asked), "bytes": sum(one.sent for one in asked)}


def _requests(notes: Sequence[str]) -> list[Request]:
    """The requests of some notes."""
    last: dict[str, Request] = {}
    found = []
    for note in notes:
        thread, size, what = note.split(" ", 2)
        if what == "body":
            last[thread].sent += int(size)
            continue
        last[thread] = Request(thread, what, int(size))
        found.append(last[thread])
    return found


def _bare(found: VmDeployment) -> float:
    """Processor time of QEMU for the runners' image without the charm."""
    command = ("lxc", "launch", "jammy", BARE, "--vm", "--storage=runner", "--config=limits.cpu=2")
    found.machine.exec(*command, "--config=limits.memory=1GiB", timeout=READY)
    processor = _until_agent(found, BARE)
    found.machine.exec("lxc", "delete", "--force", BARE)
    return processor


def _until_agent(found: VmDeployment, name: str) -> float:
    """Wait until commands run in a virtual machine; gives the processor time that its QEMU took, in seconds."""
    wait_for(lambda: found.machine.call("lxc", "exec", name, "--", "true").returncode == 0, f"agent of {name}", READY)
    fields = found.machine.exec("cat", f"/proc/{found.qemu(name)}/stat").rpartition(")")[2].split()
    # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: utime and stime, in hundredths of a second.
    return (int(fields[11]) + int(fields[12])) / 100


def _report(runners: list[dict[str, float]], bare: float) -> None:
    middle = {key: statistics.median(one[key] for one in runners) for key in runners[0]}
    ratio = round(middle["processor"] / bare, 2)
    row = {
        "label": f"{ratio:.2f} x the bare image",
        "QEMU's processor time": round(middle["processor"], 1),
        "QEMU's, image booted bare": round(bare, 1),
        "from the change to the agent": round(middle["to agent"], 1),
        "from the agent to online": round(middle["to online"], 1),
    }
    emulated = "in software emulation, not to be compared with containers"
    where = f"virtual machines {'by hardware' if host.has_hardware() else emulated}"
    counts: dict[str, Any] = {key: round(middle[key]) for key in ("boots", "requests", "polls", "bytes")}
    counts["times the bare image"] = ratio
    note = "QEMU's time is taken until LXD's agent answers. One creation: "
    note += "{boots} boot, {requests} requests to LXD with {bytes} bytes besides files, and {polls} polls".format(
        **counts
    )
    write("vm", "One virtual machine as a runner", "s", [row], f"{where}. {note}", where, counts=counts, goals=GOALS)
