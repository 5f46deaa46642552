"""The end of the unit that the other tests use: this file comes last."""

from tests.vm.conftest import VmDeployment


def test_a_removed_unit_leaves_nothing(unit: VmDeployment) -> None:
    """The removal of a unit leaves no virtual machine, registration, mount, storage or pool."""
    unit.keep(1)

    unit.unit.remove_application()

    assert unit.instances() == []
    assert unit.registered() == []
    assert unit.mounts() == []
    assert unit.storages() == []
    assert unit.lxd("storage-pools?recursion=1") == []
