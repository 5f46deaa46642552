"""Guests that reboot, hang, or vanish under a running unit."""

import pytest

from tests.vm.conftest import VmDeployment, wait_for


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
