"""Whether this machine can start virtual machines of the size that the options ask for."""

import os

from engine.client import LxdClient
from errors import ConfigurationError
from host import image
from models import CharmState, RunnerStorage, gibibytes, size_in_bytes


def check(lxd: LxdClient, state: CharmState) -> None:
    """ConfigurationError where LXD would refuse each virtual machine. Containers are limited only."""
    if state.test_mode or not state.virtual_machines:
        return
    wanted = state.resources
    cpus, memory = _cpus(), memory_bytes()
    smallest = image.smallest_disk(lxd, state.base_image.value, state.image_source)
    errors = []
    if wanted.cpu > cpus:
        errors.append(
            f"vm-cpu: {wanted.cpu} exceeds the {cpus} CPUs of this machine; lower it, or use a larger machine"
        )
    if size_in_bytes(wanted.memory) > memory:
        has = gibibytes(memory)
        errors.append(
            f"vm-memory: {wanted.memory} exceeds the {has} of this machine; lower it, or use a larger machine"
        )
    if size_in_bytes(wanted.disk) < smallest:
        errors.append(f"vm-disk: {wanted.disk} is smaller than the image; use {gibibytes(smallest)} or more")
    if errors:
        raise ConfigurationError(*errors)


def overcommitment(state: CharmState) -> list[str]:
    """Notices where all virtual machines together may use more than this machine has, with both numbers."""
    if state.test_mode:
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
