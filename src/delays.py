"""Why a reconcile leaves runners of a flavour out, for `check-runners` and Prometheus. Nothing here does I/O."""

from collections.abc import Iterable

from budget import Wait
from redaction import line
from telemetry import CPUS, FAILED, HELD_BACK, MEMORY, STORAGE, TEXT_LIMIT, Delay

# By what a runner waits for, as the budget names it.
ROOMS = {"memory": MEMORY, "CPUs": CPUS, "storage": STORAGE}
ONE_IS_TRIED = "one runner of a version that GitHub has called deprecated is tried first"


def of_flavor(
    flavor: str, waits: Iterable[Wait], failed: Delay | None, hold: str, unregistrable: str
) -> tuple[Delay, ...]:
    """The reasons in the order in which they account for missing runners.

    ``waits`` are those of all flavours, ``failed`` are creations that failed. ``hold`` says why no runner may be
    created, ``unregistrable`` why none can be registered; both are empty where that is not so.
    """
    found = [failed] if failed else []
    found += [Delay(ROOMS[wait.what], wait.number, wait.room) for wait in waits if wait.flavor == flavor]
    found += [Delay(HELD_BACK, text=line(hold, TEXT_LIMIT))] if hold else []
    found += [Delay(FAILED, text=line(unregistrable, TEXT_LIMIT))] if unregistrable else []
    return tuple(found)
