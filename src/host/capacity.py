"""What the runners of this machine may use in all, where the options limit them to it."""

import os
import shutil

from budget import Capacity
from host import pool, resources
from models import CharmState, RunnerStorage


def of_runners(state: CharmState) -> Capacity | None:
    """The machine less the reserve; None where the options do not limit runners to it.

    Disks in memory count against the memory, other ones against the whole storage of the pool.
    """
    if not state.has_budget:
        return None
    in_memory = state.runner_storage is RunnerStorage.MEMORY
    measured = not in_memory and pool.JUJU_STORAGE.is_dir()
    return Capacity(
        max(0, resources.memory_bytes() - state.memory_reserve),
        (os.cpu_count() or 1) * state.cpu_overcommit,
        shutil.disk_usage(pool.JUJU_STORAGE).total if measured else None,
        disks_in_memory=in_memory,
    )
