"""New runners whose agent has ended without a job. A reconcile accepts such a report of a young runner only.

The timer would find them too late. The health probe finds them without a request to GitHub.
"""

from collections.abc import Callable

from engine.client import LxdClient
from engine.instance import LxdInstance
from engine.probe import probe
from naming import ONLINE_KEY, PREPARED_KEY
from runner_view import Process
from system import in_parallel

# Seconds between probes; youngest and oldest age of a probed runner. Each is probed once or twice. A runner agent that
# GitHub refuses ends within a minute, and the oldest age is below the reconcile's limit (``times.REPORT_COUNTS``).
EVERY = 60.0
YOUNGEST, OLDEST = 120.0, 240.0


def ended(lxd: LxdClient, managed: Callable[[str], bool], now: float) -> list[str]:
    """Names of the ``managed`` runners that report that their agent ended without a job; LxdError.

    ``now`` in UNIX seconds.
    """
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
