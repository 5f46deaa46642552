"""What the runners of this machine may use in all, where the options limit them to it."""

import os

from budget import Capacity
from host import pool, resources
from models import CharmState, RunnerStorage


def of_runners(state: CharmState) -> Capacity | None:
    """The machine less the reserve; None where the options do not limit runners to it.

    Disks in memory count against the memory, other ones against what the pool has of its storage or can get.
    """
    if not state.has_budget:
        return None
    in_memory = state.runner_storage is RunnerStorage.MEMORY
    return Capacity(
        resources.runner_memory(state),
        (os.cpu_count() or 1) * state.cpu_overcommit,
        None if in_memory else pool.usable_bytes(),
        disks_in_memory=in_memory,
    )
