"""Jobs without memory, and guests that reboot, hang, power off, or vanish under a running unit."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vm.conftest import VmDeployment, wait_for

# The limit of the service that the job runs in, for the kernel to enforce. Python writes to all of that memory.
OUT_OF_MEMORY = """
sudo systemctl set-property --runtime github-runner.service MemoryMax=200M MemorySwapMax=0
python3 -c 'bytearray(400 << 20)'
"""
MEMORY_EVENTS = "cat /sys/fs/cgroup/system.slice/github-runner.service/memory.events"
# Only while the set-up of a new runner runs. The pattern does not match the command line of this shell.
POWER_OFF = "pgrep -f '/[s]etup[.]sh' > /dev/null && systemctl poweroff --force --force"


def test_a_job_that_runs_out_of_memory(unit: VmDeployment) -> None:
    """The kernel kills one process of the job: only its step is lost, and the job's metrics reach the host."""
    unit.keep(2)
    before = len(unit.events("runner_stop"))

    job = unit.job("", steps=[{"run": OUT_OF_MEMORY}, {"run": MEMORY_EVENTS, "if": "failure()"}])

    assert job["conclusion"] == "failure"
    assert "oom_kill 1" in job["log"], "\n".join(job["log"])
    unit.wait_gone(job["runner_name"])
    # The tests that follow need one runner.
    unit.unit.set_config({"virtual-machines": 1})
    [stop] = unit.events("runner_stop")[before:]
    assert stop["status"] == "normal"


@pytest.mark.long
def test_a_guest_that_powers_off_in_its_set_up(unit: VmDeployment) -> None:
    """The creation fails with the runner's name, leaves nothing behind, and the next reconcile makes the runner."""
    [other] = unit.keep(1)

    with ThreadPoolExecutor(1) as beside:
        hook = beside.submit(unit.unit.set_config, {"virtual-machines": 2})
        [name] = wait_for(lambda: {*unit.instances()} - {other}, "the new instance", unit.patience)
        end = ("lxc", "exec", name, "--", "sh", "-c", POWER_OFF)
        wait_for(lambda: unit.machine.call(*end).returncode == 0 or hook.done(), "the set-up", unit.patience)
        hook.result()

    assert name in unit.status()[1]
    assert (unit.instances(), unit.registered()) == ([other], [other])
    assert unit.mounts() == [f"/home/ubuntu/runner-fs/{other}"]

    unit.reconcile()

    assert name not in unit.wait_online(2)


@pytest.mark.long
def test_a_guest_that_reboots_and_one_that_hangs(unit: VmDeployment) -> None:
    """A guest that reboots ends and is replaced. A hung one is not taken for dead: ``flush-runners`` removes it."""
    rebooting, hung = unit.keep(2)
    unit.inside(rebooting, "systemctl reboot", check=False)
    # A panic: the kernel stands still. A QEMU that is stopped would hang LXD's list of instances, too.
    unit.inside(hung, "(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")
    unit.wait_gone(rebooting)
    wait_for(lambda: unit.online() == [], "GitHub's notice of the hung guest", 60)

    unit.reconcile()

    wait_for(unit.online, "the successor of the guest that rebooted", unit.patience)
    assert hung in unit.instances()
    assert len(unit.instances()) == 2

    task = unit.unit.run("flush-runners")

    assert task["status"] == "completed", task
    assert hung not in unit.wait_online(2)


@pytest.mark.long
def test_a_reboot_of_the_host(unit: VmDeployment) -> None:
    """After a power failure of the host the unit has new runners, and nothing of the old ones is left."""
    before = unit.keep(2)

    unit.unit.reboot(hard=True)

    assert not set(before) & set(unit.wait_online(2))
    assert sorted(unit.mounts()) == [f"/home/ubuntu/runner-fs/{name}" for name in unit.instances()]
    assert unit.status()[0] == "active", unit.status()
