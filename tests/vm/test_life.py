"""The image, two runners, and a job with its metrics, all in virtual machines."""

import time

from tests.support.options import ABOUT, ACTION, missing_in
from tests.vm.conftest import REPOSITORY, VmDeployment, wait_for

# What a job finds out about the machine that it runs in.
MACHINE = """
echo "kernel: $(uname -srvm)"
echo "machine: $(systemd-detect-virt) $(cat /sys/class/dmi/id/product_name)"
echo "firmware: $(cat /sys/class/dmi/id/bios_vendor) $(cat /sys/class/dmi/id/bios_version)"
echo "secure boot: $(od -An -t u1 -j 4 -N 1 /sys/firmware/efi/efivars/SecureBoot-*)"
echo "agent: $(pgrep -a lxd-agent)"
echo "metrics: $(findmnt -no FSTYPE /metrics-exchange)"
echo "boots: $(sudo journalctl --list-boots --quiet | wc -l)"
"""


def test_image_is_built_in_a_virtual_machine(unit: VmDeployment) -> None:
    """The install hook builds the runners' image from the base image, in a virtual machine that is then gone."""
    [image] = [found for found in unit.lxd("images?recursion=1") if found["aliases"][0]["name"] == "resolute"]

    assert image["type"] == "virtual-machine"
    assert image["properties"]["github-runner.source"] == "local:sandbox-vm"
    assert image["properties"]["github-runner.application"].startswith("actions-runner-linux-x64-")
    assert unit.instances() == []
    assert unit.status()[0] == "active", unit.status()


def test_runners_are_virtual_machines(unit: VmDeployment) -> None:
    """Runners come online as virtual machines; the status has no test mode, and says if they exceed the CPUs."""
    started = time.monotonic()
    names = unit.keep(2)
    print(f"two runners online after {time.monotonic() - started:.0f} s", flush=True)

    assert {found["type"] for found in unit.lxd("instances?recursion=1")} == {"virtual-machine"}
    # One that began before they were online says that they are starting.
    unit.reconcile()
    assert unit.status()[1].startswith("2 runners: 2 idle"), unit.status()
    assert "test mode" not in unit.status()[1]
    cpus = int(unit.machine.exec("nproc"))
    assert (f"2 × vm-cpu 2 = 4 exceeds the {cpus} CPUs of this machine" in unit.status()[1]) == (cpus < 4)
    for name in names:
        print(unit.console(name)[-1500:], flush=True)


def test_outdated_runners_and_a_job(unit: VmDeployment) -> None:
    """A job runs in a virtual machine, and is left alone when its runner is outdated; the idle runner is replaced.

    The unit has every option that goes with others, and the job finds what they promise; the snap of aproxy is a
    stand-in. The job's metrics reach the host through virtiofs, its virtual machine is deleted and has a successor.
    """
    before = unit.keep(2)
    steps = [{"uses": ACTION}, {"run": f"{MACHINE}{ABOUT}until [ -e /tmp/go ]; do sleep 1; done"}]
    job = unit.job("", steps=steps, debug=True, labels=["every"], status="in_progress")
    busy = job["runner_name"]
    wait_for(lambda: "pre-job" in unit.inside(busy, "ls /metrics-exchange"), "the job's start")

    unit.unit.set_config({"labels": "changed"})
    unit.wait_online(2)

    assert set(before) & set(unit.instances()) == {busy}
    assert unit.busy() == [busy]

    unit.inside(busy, "touch /tmp/go")
    done = unit.control.wait_job(job["id"])
    print("\n".join(done["log"]), flush=True)
    assert done["conclusion"] == "success"
    assert any("metrics: virtiofs" in line for line in done["log"])
    assert missing_in(done["log"]) == set()
    unit.wait_gone(busy)
    unit.reconcile()
    [stop] = unit.events("runner_stop")
    assert (stop["repo"], stop["status"]) == (REPOSITORY, "normal")
    assert unit.events("runner_start")[0]["workflow"] == "CI"
    assert busy not in unit.wait_online(2)


# A limit of the job's own, so that its kernel has to kill for it. The runner agent is in the same group.
TOO_MUCH = """
sudo systemctl set-property --runtime github-runner.service MemoryMax=300M MemorySwapMax=0
python3 -c 'bytearray(600 << 20)'
"""
KILLED = (
    "sed -n 's/^oom_kill /killed by the kernel: /p' /sys/fs/cgroup/system.slice/github-runner.service/memory.events"
)


def test_a_job_brings_a_virtual_machine(unit: VmDeployment) -> None:
    """In demand mode nothing runs without a job; a job gets a virtual machine, which is gone after it.

    A process of the job that the kernel kills for its memory costs one step: later ones run, and the job is reported.
    """
    unit.unit.set_config({"scaling": "demand", "virtual-machines": 1})
    wait_for(lambda: unit.instances() == unit.registered() == [], "the end of the idle runners", unit.patience)
    started = time.monotonic()

    job = unit.control.add_job(REPOSITORY, steps=[{"run": TOO_MUCH}, {"run": KILLED, "if": "failure()"}])

    done = unit.control.wait_job(job["id"], timeout=unit.patience)
    print(f"a job without a runner has ended after {time.monotonic() - started:.0f} s", flush=True)
    assert done["conclusion"] == "failure", done["log"]
    assert "killed by the kernel: 1" in done["log"], done["log"]
    unit.wait_gone(done["runner_name"])
    wait_for(lambda: unit.instances() == unit.registered() == [], "nothing that runs", unit.patience)
    unit.unit.set_config({"scaling": "fixed"})
    assert unit.control.scale_sets() == []
