"""The creation of a virtual machine, beside its image booted bare. Kept apart from the figures of containers."""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sandbox import github
from sandbox.lab import lxd_setup
from sandbox.lab.pack import pack
from sandbox.vm import host, template
from tests.bench.report import write
from tests.support.deployment import PAT, REPOSITORY, ROOT
from tests.vm.conftest import VmDeployment, deployed, wait_for

BARE = "bare"
READY = 600


def creation(repeat: int) -> None:
    """One runner, ``repeat`` times: processor time of QEMU until the agent answers, boots, and times until online."""
    template.ensure()
    address = lxd_setup.bridge_address()
    with (
        tempfile.TemporaryDirectory() as folder,
        github.serve(address, 0, [PAT], [REPOSITORY], ["octo-org"], tls=True) as hub,
    ):
        found = deployed("bench-vm", pack(ROOT, Path(folder, "charm")), hub)
        try:
            runners = [_runner(found) for _ in range(repeat)]
            bare = [_bare(found) for _ in range(repeat)]
        finally:
            found.machine.destroy()
    _report(runners, statistics.median(bare))


def _runner(found: VmDeployment) -> dict[str, float]:
    found.unit.set_config({"virtual-machines": 0})
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
    return {"processor": processor, "to agent": agent - started, "to online": online - agent, "boots": float(boots)}


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
    ratio = middle["processor"] / bare
    row = {
        "label": f"{ratio:.2f} x the bare image, {middle['boots']:.0f} boot",
        "processor time of QEMU until the agent answers": round(middle["processor"], 1),
        "the same, image booted bare": round(bare, 1),
        "from the change to the agent": round(middle["to agent"], 1),
        "from the agent to online": round(middle["to online"], 1),
    }
    how = "hardware virtualisation" if host.has_hardware() else "software emulation: not to be compared with containers"
    write("vm", "One virtual machine as a runner", "s", [row], how)
