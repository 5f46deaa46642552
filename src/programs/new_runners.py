"""New runners whose agent has ended without a job. A reconcile believes a runner only while it is young.

So they are not left to the timer. The health probe tells them from others: GitHub is asked by the reconcile only.
"""

from collections.abc import Callable

from engine.client import LxdClient
from engine.instance import LxdInstance
from engine.probe import probe
from naming import ONLINE_KEY, PREPARED_KEY
from runner_view import Process
from system import in_parallel

# Seconds: how often, and from which age to which a runner is probed, once or twice. A runner agent that GitHub refuses
# ends within a minute. What is found is still young enough for the reconcile (``times.BELIEVED``).
EVERY = 60.0
YOUNGEST, OLDEST = 120.0, 240.0


def ended(lxd: LxdClient, managed: Callable[[str], bool], now: float) -> list[str]:
    """The names of the ``managed`` runners that report this; LxdError. ``now`` is UNIX seconds."""
    new = [instance for instance in lxd.instances() if managed(instance.name) and _is_new(instance, now)]
    processes = in_parallel(probe, new)
    found = zip(new, processes, strict=True)
    return [instance.name for instance, process in found if process in (Process.FAILED, Process.DEPRECATED)]


def _is_new(instance: LxdInstance, now: float) -> bool:
    """Whether a running runner was created a few minutes ago, and no reconcile has seen it online."""
    try:
        age = now - float(instance.config.get(PREPARED_KEY, ""))
    except ValueError:
        return False
    return instance.running and YOUNGEST <= age < OLDEST and ONLINE_KEY not in instance.config
