"""Whether this machine can start virtual machines of the sizes that the options ask for."""

import os

from engine.client import LxdClient
from errors import ConfigurationError
from host import image
from models import CharmState, Flavor, RunnerStorage, gibibytes, size_in_bytes


def check(lxd: LxdClient, state: CharmState) -> None:
    """ConfigurationError where LXD would refuse each runner, or the budget would never have room for one."""
    errors = _with_budget(lxd, state) if state.has_budget else _without_budget(lxd, state)
    if errors:
        raise ConfigurationError(*errors)


def _without_budget(lxd: LxdClient, state: CharmState) -> list[str]:
    """What LXD refuses of a virtual machine. Containers are limited only."""
    if state.test_mode or not state.virtual_machines:
        return []
    wanted, memory = state.resources, memory_bytes()
    errors = []
    if wanted.cpu > _cpus():
        errors.append(_too_many_cpus(wanted.cpu))
    if size_in_bytes(wanted.memory) > memory:
        has = gibibytes(memory)
        errors.append(
            f"vm-memory: {wanted.memory} exceeds the {has} of this machine; lower it, or use a larger machine"
        )
    return errors + _disk_errors(lxd, state, state.flavors[0])


def _with_budget(lxd: LxdClient, state: CharmState) -> list[str]:
    """What does not fit the machine of a single runner of each flavour that may have one."""
    memory, errors = memory_bytes(), []
    has_memory = state.memory_reserve < memory
    if not has_memory:
        reserve, has = gibibytes(state.memory_reserve), gibibytes(memory)
        errors.append(f"memory-reserve: {reserve} leaves nothing of the {has} of this machine; lower it")
    for flavor in filter(state.limit, state.flavors):
        found = _cpu_errors(state, flavor) + (_memory_errors(state, flavor) if has_memory else [])
        found += [] if state.test_mode else _disk_errors(lxd, state, flavor)
        errors += [f"{state.option(flavor)}{error}" for error in found]
    return errors


def _cpu_errors(state: CharmState, flavor: Flavor) -> list[str]:
    cpu, cpus = flavor.resources.cpu, _cpus()
    if cpu > cpus and not state.test_mode:
        return [_too_many_cpus(cpu)]
    if cpu > cpus * state.cpu_overcommit:
        limit = f"{cpus} CPUs of this machine × cpu-overcommit {state.cpu_overcommit:g}"
        return [f"vm-cpu: {cpu} exceeds the {limit}; lower it, or set a larger cpu-overcommit"]
    return []


def _too_many_cpus(cpu: int) -> str:
    return f"vm-cpu: {cpu} exceeds the {_cpus()} CPUs of this machine; lower it, or use a larger machine"


def runner_memory(state: CharmState) -> int:
    """The bytes of memory that runners may have under the budget, and their disks where they lie in memory."""
    return max(0, memory_bytes() - state.memory_reserve - _image_memory(state))


def _image_memory(state: CharmState) -> int:
    """What the images of virtual machines take where the storage pool lies in memory, at most."""
    if state.runner_storage is not RunnerStorage.MEMORY or state.test_mode:
        return 0
    return image.DISK * len({flavor.base_image for flavor in state.flavors})


def _memory_errors(state: CharmState, flavor: Flavor) -> list[str]:
    """Disks in memory count as well."""
    wanted, available, images = flavor.resources, runner_memory(state), _image_memory(state)
    needed, what = size_in_bytes(wanted.memory), wanted.memory
    if state.runner_storage is RunnerStorage.MEMORY:
        needed += size_in_bytes(wanted.disk)
        what = f"{wanted.memory} and vm-disk {wanted.disk} = {gibibytes(needed)}"
    if needed <= available:
        return []
    limit = f"{gibibytes(available)} of this machine less memory-reserve {gibibytes(state.memory_reserve)}"
    limit += f" and {gibibytes(images)} for images" if images else ""
    return [f"vm-memory: {what} exceeds the {limit}; lower it, or use a larger machine"]


def _disk_errors(lxd: LxdClient, state: CharmState, flavor: Flavor) -> list[str]:
    disk, smallest = flavor.resources.disk, image.smallest_disk(lxd, flavor.base_image.value, state.image_source)
    if size_in_bytes(disk) >= smallest:
        return []
    return [f"vm-disk: {disk} is smaller than the image; use {gibibytes(smallest)} or more"]


def overcommitment(state: CharmState) -> list[str]:
    """Notices where all virtual machines together may use more than this machine has, with both numbers.

    A budget keeps them within it.
    """
    if state.test_mode or state.has_budget:
        return []
    number, wanted, found = state.virtual_machines, state.resources, []
    cpus, memory = _cpus(), memory_bytes()
    if number * wanted.cpu > cpus:
        found.append(f"{number} × vm-cpu {wanted.cpu} = {number * wanted.cpu} exceeds the {cpus} CPUs of this machine")
    each, what = size_in_bytes(wanted.memory), wanted.memory
    if state.runner_storage is RunnerStorage.MEMORY:
        each += size_in_bytes(wanted.disk)
        what = f"{wanted.memory} and vm-disk {wanted.disk}"
    if number * each > memory:
        needed, has = gibibytes(number * each), gibibytes(memory)
        found.append(f"{number} × vm-memory {what} = {needed} exceeds the {has} of this machine's memory")
    return found


def memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpus() -> int:
    return os.cpu_count() or 1
