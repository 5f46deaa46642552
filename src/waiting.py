"""Why jobs of a flavour wait, or runners are missing, by what reconciles and the unit's agent record. No I/O.

docs/how-to/debug.md has a table of the reasons, and what to do about each.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from demand import Demand
from redaction import line
from telemetry import DELAYS, Counts, Delay, Gauges

STARTING, NOT_ONLINE, MAXIMUM, NOT_ASSIGNED, DEMAND_UNKNOWN, RECONCILE = (
    "starting",
    "offline",
    "maximum",
    "not_assigned",
    "demand_unknown",
    "reconcile",
)
REASONS = (STARTING, NOT_ONLINE, MAXIMUM, *DELAYS, NOT_ASSIGNED, DEMAND_UNKNOWN, RECONCILE)


@dataclass(frozen=True)
class Waiting:
    """One flavour: its runners, its jobs, and why some of them wait. None is for what is not known.

    ``wanted`` runners are those that the option or the jobs ask for. Those that have an instance are ``there``; of the
    ``missing`` ones none is idle, busy or starting. Jobs are known in demand mode only: ``assigned`` ones include those
    that run, no runner has begun the ``waiting`` ones, and ``since`` is the UNIX time since when the oldest waits.
    """

    flavor: str
    wanted: int
    there: int
    missing: int
    assigned: int | None = None
    waiting: int | None = None
    since: float | None = None
    of_jobs: tuple[Delay, ...] = ()
    """Why jobs wait. The numbers add up to ``waiting``; a reason with 0 holds for jobs that are not counted."""
    of_runners: tuple[Delay, ...] = ()
    """Why runners are missing. The numbers add up to ``missing``."""

    @property
    def reasons(self) -> tuple[Delay, ...]:
        """Why jobs wait; where no job waits, why runners are missing."""
        return self.of_jobs if self.waiting else (*self.of_jobs, *self.of_runners)


def of_unit(recorded: Gauges | None, demands: Mapping[str, Demand], now: float) -> list[Waiting]:
    """All flavours of a unit; ``now`` in UNIX seconds. ``recorded`` is None before the first reconcile."""
    counts = recorded.flavors if recorded else {}
    last = recorded.reconciled if recorded else None
    return [
        _of_flavor(name, counts.get(name, Counts()), demands.get(name), last, now) for name in {**counts, **demands}
    ]


def by_reason(reasons: Iterable[Delay]) -> dict[str, int]:
    """How many wait for each of ``REASONS``."""
    found: Counter[str] = Counter()
    for one in reasons:
        found[one.reason] += one.number or 0
    return {reason: found[reason] for reason in REASONS}


def _of_flavor(name: str, counts: Counts, found: Demand | None, last: float | None, now: float) -> Waiting:
    wanted = counts.wanted if counts.wanted is not None else counts.expected or 0
    missing = max(0, wanted - counts.idle - counts.busy - counts.starting)
    shown = Waiting(name, wanted, counts.there, missing, of_runners=_shared(missing, _of_runners(counts, last)))
    if found is None:
        return shown
    waiting = max(0, found.assigned - found.running) + found.missed
    since = found.waits_since if waiting else None
    reasons = _shared(waiting, _of_jobs(counts, found, last, now)) + _uncounted(found, waiting, now)
    return replace(shown, assigned=found.assigned, waiting=waiting, since=since, of_jobs=reasons)


def _shared(total: int, causes: Iterable[Delay]) -> tuple[Delay, ...]:
    """As many as there are, given to the causes in their order; one without a number accounts for all that are left."""
    shares = []
    for cause in causes:
        number = total if cause.number is None else min(total, cause.number)
        if number > 0:
            shares.append(replace(cause, number=number))
            total -= number
    return tuple(shares)


def _of_jobs(counts: Counts, found: Demand, last: float | None, now: float) -> Iterator[Delay]:
    if not found.is_known(now):
        yield _unknown(found)
        return
    # The counts may be older than the number of jobs that run: these have taken some of the runners.
    free = max(0, counts.idle + counts.busy + counts.starting - found.running)
    idle = min(counts.idle, free)
    yield Delay(NOT_ASSIGNED, idle, "runners are idle, and GitHub has given them no job")
    yield Delay(STARTING, min(counts.starting, free - idle))
    yield _offline(counts)
    if counts.maximum is not None:
        beyond = None if counts.there >= counts.maximum else found.assigned + found.missed - counts.maximum
        yield Delay(MAXIMUM, beyond, f"no more than {counts.maximum} runners are allowed")
    yield from counts.delays
    yield Delay(NOT_ASSIGNED, found.missed, "queued jobs did not reach the scale set")
    yield _reconcile(last)


def _of_runners(counts: Counts, last: float | None) -> Iterator[Delay]:
    yield _offline(counts)
    yield from counts.delays
    yield _reconcile(last)


def _uncounted(found: Demand, waiting: int, now: float) -> tuple[Delay, ...]:
    """What keeps jobs waiting that nobody can count."""
    labels = line(", ".join(found.dropped))
    dropped = Delay(NOT_ASSIGNED, 0, f"the server drops labels of the scale set: {labels}")
    reasons = [dropped] if found.dropped else []
    if not found.is_known(now) and not waiting:
        reasons.append(replace(_unknown(found), number=0))
    return tuple(reasons)


def _unknown(found: Demand) -> Delay:
    since = (
        f"no answer of GitHub since {_moment(found.answered_at)}" if found.answered_at else "no answer of GitHub yet"
    )
    return Delay(DEMAND_UNKNOWN, text=f"{since}: {found.problem}" if found.problem else since)


def _offline(counts: Counts) -> Delay:
    return Delay(NOT_ONLINE, counts.other, "GitHub does not list them as online")


def _reconcile(last: float | None) -> Delay:
    since = "no reconcile has ended yet" if last is None else f"the last reconcile ended {_moment(last)}"
    return Delay(RECONCILE, text=f"{since}; the one that runs, or the next one, creates runners")


def _moment(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))
