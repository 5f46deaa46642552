"""What a reconcile does, decided without I/O: which runners are healthy, which are removed, how many are created."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import times
from models import FailedStarts
from runner_view import Process, RunnerView

# The runner agent has exited.
AGENT_ENDED = (Process.NONE, Process.DEPRECATED, Process.FAILED)


class Health(Enum):
    """The state of a runner, as a reconcile sees it."""

    IDLE = "idle"
    BUSY = "busy"
    STARTING = "starting"
    OFFLINE = "its agent runs, and GitHub does not list it as online"
    UNKNOWN = "neither GitHub nor the health probe tells"
    UNHEALTHY = "unhealthy"
    ORPHANED = "registered at GitHub, without an instance"


class Reason(str, Enum):
    """Why a runner is removed."""

    UNHEALTHY = "unhealthy"
    ORPHANED = "registered without an instance"
    OUTDATED = "outdated"
    SURPLUS = "surplus"
    AGED = "idle for too long"


@dataclass(frozen=True)
class Desired:
    """How many runners of which fingerprint; ``quantity`` is None to keep those that are there and create none."""

    quantity: int | None
    fingerprint: str
    may_create: bool = True
    """False while no runner can be created: then outdated ones stay, too."""
    deprecated_since: float | None = None
    """UNIX time since when GitHub may call the version deprecated: one later runner is tried, all follow once it is
    online."""
    idle_max_age: float = 0.0
    """Seconds after which an idle runner is replaced, one in each reconcile; 0 for never."""
    scale_set: int | None = None
    """The runner scale set that runners are to be registered with."""
    any_registration: bool = False
    """Whether runners of any or no scale set are current ones."""
    deprecated: bool | None = None
    """Whether GitHub, asked for it, refuses the version of the runner binary; None where it gave no answer."""

    def is_current(self, view: RunnerView) -> bool:
        """Whether a runner is as one that is created now."""
        registered = self.any_registration or view.scale_set == self.scale_set
        return view.fingerprint == self.fingerprint and registered


@dataclass(frozen=True)
class Plan:
    """Which runners to remove and why, how many to create, and what to record on instances.

    ``record_offline`` are runners that were found offline for the first time, ``clear_offline`` those that are online
    again, ``record_online`` those that GitHub lists as online or busy for the first time.
    """

    remove: tuple[tuple[str, Reason], ...] = ()
    create: int = 0
    record_offline: tuple[str, ...] = ()
    clear_offline: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    unknown_jobs: tuple[str, ...] = ()
    """Busy runners of whose job GitHub has not known since an earlier reconcile."""
    healthy: int = 0
    live: int = 0
    """Instances that are not unhealthy."""
    deprecated: bool = False
    """Whether a runner of today's configuration ended because GitHub no longer accepts its version."""
    failed: tuple[str, ...] = ()
    """Runners of today's configuration whose agent ended without a job."""
    proven: bool = False
    """Whether a runner of today's configuration and version is online at GitHub."""
    record_online: tuple[str, ...] = ()
    tried: bool = False
    """Whether a runner of today's configuration exists that was created after ``deprecated_since``."""
    postponed: tuple[str, ...] = ()
    """Outdated idle runners that stay until a runner of today's configuration is online."""

    def names(self, reason: Reason) -> list[str]:
        """The runners removed for one reason."""
        return [name for name, why in self.remove if why is reason]

    @property
    def changes(self) -> bool:
        """Whether anything is to be done to runners."""
        return bool(self.remove or self.create)


def needs_probe(view: RunnerView) -> bool:
    """Whether the health probe is needed. It is not if GitHub lists the runner as online."""
    return view.exists and view.running and not (view.github and view.github.online)


def health(view: RunnerView, now: float) -> Health:
    """One runner's health. ``now`` is UNIX seconds."""
    if not view.exists:
        return Health.ORPHANED
    if not view.running or view.gone:
        return Health.UNHEALTHY
    # The runner agent has exited, or a reconcile that created the runner was killed. GitHub may list the runner as busy
    # for several more minutes. Instances of the previous charm have no creation time, so this rule does not hold for
    # them.
    ended = view.process in AGENT_ENDED
    died = ended and view.created_at > 0 and not (view.github and view.github.online)
    if view.busy and not died:
        return (
            Health.UNHEALTHY if view.job_is_unknown and _is_offline_for(view, times.UNKNOWN_JOB, now) else Health.BUSY
        )
    if view.github and view.github.online:
        return Health.IDLE
    if view.presumed:
        # If the health probe found no runner agent, or got no answer, the instance may be about to stop. Only a
        # reconcile that reads GitHub's list decides whether it is unhealthy.
        return Health.IDLE if view.process is Process.RUNNING else Health.UNKNOWN
    # If it was created in the future, or is recorded as offline already, it is older than the clock says.
    limit = times.COME_ONLINE if view.prepared else times.CREATION
    young = 0 <= now - (view.prepared_at or view.created_at) < limit and view.offline_since is None
    if young and not died:
        return Health.STARTING
    if ended:
        return Health.UNHEALTHY
    if view.process is Process.UNKNOWN and view.github_known:
        silent = _is_offline_for(view, times.SILENT, now)
        return Health.UNHEALTHY if silent or not view.prepared else Health.UNKNOWN
    if not view.github_known:
        return Health.UNKNOWN
    return Health.UNHEALTHY if _is_offline_for(view, times.OFFLINE, now) else Health.OFFLINE


def _is_offline_for(view: RunnerView, limit: float, now: float) -> bool:
    return view.offline_since is not None and now - view.offline_since >= limit


def may_have_job(view: RunnerView, now: float) -> bool:
    """Whether a job may run in the instance. One that does not answer may have a job until it is unhealthy."""
    state = health(view, now)
    return state is Health.BUSY or (view.process is Process.UNKNOWN and state is not Health.UNHEALTHY and view.exists)


def _is_newly_offline(view: RunnerView, state: Health, now: float) -> bool:
    """Whether a runner should be online at GitHub and is not, and no time is recorded since when."""
    offline = state is Health.OFFLINE or (state is Health.UNKNOWN and view.github_known) or view.job_is_unknown
    # If the recorded time is in the future, the clock was set back.
    return offline and (view.offline_since is None or view.offline_since > now)


def _is_online_again(view: RunnerView) -> bool:
    return view.is_listed_alive and view.offline_since is not None


def _is_newly_online(view: RunnerView) -> bool:
    """Whether GitHub lists a runner as online or busy for the first time: from then on it may have had a job."""
    return view.is_listed_alive and not view.seen_online


def needs_confirmation(view: RunnerView) -> bool:
    """Whether a runner is unhealthy by GitHub's list only: its agent may run, and the list may be wrong."""
    return view.running and not view.gone and view.process not in AGENT_ENDED


def report_counts(view: RunnerView, now: float) -> bool:
    """Whether no job can have faked what an instance reports of its agent's end.

    A job needs a runner that is online. GitHub lists a runner as busy until it gives the job up, also if the job has
    killed the agent. So it must list the runner as neither, so early that it cannot have given a job up, and still
    after the health probe: the list was read before, and a job may have come since.
    """
    return view.confirmed and report_may_count(view, now)


def report_may_count(view: RunnerView, now: float) -> bool:
    """Whether a runner's report counts once GitHub's answer for the runner is that of its list."""
    listed = view.github is not None and not view.is_listed_alive and not view.seen_online
    # The times of instances are rounded. One in the future is not known.
    return listed and -1 <= now - (view.prepared_at or view.created_at) < times.REPORT_COUNTS


def _deprecated(views: list[RunnerView], desired: Desired, now: float) -> bool:
    """Whether a runner of today's configuration ended because GitHub no longer accepts its version.

    GitHub's answer about the version counts more than the runner's report.
    """
    ended = [view for view in views if view.process is Process.DEPRECATED and view.fingerprint == desired.fingerprint]
    if desired.deprecated is None:
        return any(report_counts(view, now) for view in ended)
    return desired.deprecated and bool(ended)


def _failed(views: list[RunnerView], desired: Desired, now: float) -> tuple[str, ...]:
    """Runners of today's configuration whose agent ended without a job, if no job can have faked that."""
    failed = [view for view in views if view.process is Process.FAILED and view.fingerprint == desired.fingerprint]
    return tuple(view.name for view in failed if report_counts(view, now))


def is_healthy(view: RunnerView) -> bool:
    """Whether the instance and the runner agent in it run. They do if GitHub lists the runner as online."""
    online = view.github is not None and view.github.online
    return view.exists and view.running and (online or view.process in (Process.RUNNING, Process.WORKER))


def make_plan(desired: Desired, observed: Iterable[RunnerView], now: float) -> Plan:
    """Decide one reconcile. All live instances count against the quantity, busy ones are never surplus.

    An orphaned registration is removed only when it is offline. An outdated runner that is not idle stays: it may
    finish its job or come online first. Today's configuration is tried with one runner before the others follow.
    """
    views = sorted(observed, key=lambda view: view.name)
    states = {view.name: health(view, now) for view in views}
    live = [view for view in views if states[view.name] not in (Health.UNHEALTHY, Health.ORPHANED)]
    idle = [view for view in live if states[view.name] is Health.IDLE]
    outdated = [view for view in idle if not desired.is_current(view)]
    current = [view for view in idle if view not in outdated]
    deprecated, failed = _deprecated(views, desired, now), _failed(views, desired, now)
    quantity = len(live) if desired.quantity is None else desired.quantity
    may_create = desired.may_create and desired.quantity is not None and not (deprecated or failed)
    proven = _is_proven(live, desired)
    only_one = desired.deprecated_since is not None and not proven
    surplus = [*outdated, *current][: max(0, len(live) - quantity)]
    waiting = [view for view in outdated if view not in surplus]
    replaced = waiting[: _replaceable(live, desired, quantity, may_create and not only_one)]
    aged = [] if waiting or not may_create or only_one else _aged(current, surplus, desired, now)
    staying = len(live) - len(surplus) - len(replaced) - len(aged)
    missing = min(max(0, quantity - staying), quantity if not only_one else 0 if _tried(live, desired) else 1)
    leaving = [view for view in idle if view in replaced or view in surplus]
    return Plan(
        remove=(*_useless(views, states), *_idle_removals(leaving, outdated, aged)),
        create=missing if may_create else 0,
        **_sightings(live, states, now),
        idle=tuple(view.name for view in idle if view not in (*surplus, *replaced, *aged)),
        busy=tuple(view.name for view in live if states[view.name] is Health.BUSY),
        unknown_jobs=tuple(view.name for view in live if view.job_is_unknown and view.offline_since is not None),
        healthy=sum(1 for view in live if is_healthy(view)),
        live=len(live),
        deprecated=deprecated,
        failed=failed,
        proven=proven,
        tried=bool(_tried(live, desired)),
        postponed=tuple(view.name for view in waiting if view not in replaced) if may_create else (),
    )


def _sightings(live: list[RunnerView], states: dict[str, Health], now: float) -> dict[str, tuple[str, ...]]:
    """Which runners are to be recorded as offline, as offline no more, and as once seen online."""
    return {
        "record_offline": tuple(view.name for view in live if _is_newly_offline(view, states[view.name], now)),
        "clear_offline": tuple(view.name for view in live if _is_online_again(view)),
        "record_online": tuple(view.name for view in live if _is_newly_online(view)),
    }


def _useless(views: list[RunnerView], states: dict[str, Health]) -> list[tuple[str, Reason]]:
    """Runners that can run no job, and registrations without an instance that GitHub lists as offline."""
    removals = [(view.name, Reason.UNHEALTHY) for view in views if states[view.name] is Health.UNHEALTHY]
    for view in views:
        listed = view.github if states[view.name] is Health.ORPHANED else None
        if listed is not None and not (listed.online or listed.busy):
            removals.append((view.name, Reason.ORPHANED))
    return removals


def _idle_removals(
    leaving: list[RunnerView], outdated: list[RunnerView], aged: list[RunnerView]
) -> list[tuple[str, Reason]]:
    removals = [(view.name, Reason.OUTDATED if view in outdated else Reason.SURPLUS) for view in leaving]
    return removals + [(view.name, Reason.AGED) for view in aged]


def _tried(live: list[RunnerView], desired: Desired) -> list[RunnerView]:
    """Runners that show whether today's configuration works. Those created before ``deprecated_since`` do not."""
    since = desired.deprecated_since or 0.0
    return [view for view in live if view.fingerprint == desired.fingerprint and view.created_at > since]


def _is_proven(live: list[RunnerView], desired: Desired) -> bool:
    return any(view.github is not None and view.github.online for view in _tried(live, desired))


def _aged(current: list[RunnerView], surplus: list[RunnerView], desired: Desired, now: float) -> list[RunnerView]:
    """The oldest idle runner beyond its age: its agent may have stopped polling, and its image is an old one."""
    old = [view for view in current if view not in surplus and 0 < desired.idle_max_age < now - view.created_at]
    return sorted(old, key=lambda view: view.created_at)[:1]


def _replaceable(live: list[RunnerView], desired: Desired, quantity: int, may_create: bool) -> int:
    """How many outdated idle runners may be replaced now: all once a runner of today's is online, one before."""
    current = [view for view in live if desired.is_current(view)]
    if not may_create:
        return 0
    if _is_proven(live, desired):
        return len(live)
    # None if a runner is being tried already, or if there is room to try one without a removal.
    return 0 if current or len(live) < quantity else 1


def is_doubtful(view: RunnerView, plan: Plan) -> bool:
    """Whether an instance reports that its agent ended without a job, and a job may have faked that.

    GitHub has not been seen to list the runner as online or busy.
    """
    ended = view.process is Process.FAILED or (view.process is Process.DEPRECATED and not plan.deprecated)
    never_online = view.github_known and not view.seen_online and not view.is_listed_alive
    return ended and never_online and view.name not in plan.failed


def still_failing(recorded: FailedStarts, views: Iterable[RunnerView], now: float) -> FailedStarts:
    """The recorded failed starts; none if a runner that was created after the last of them is online at GitHub."""
    # If the last one is in the future, the clock was wrong then: any runner that is online proves that starts work.
    last = recorded.last if recorded.last <= now else 0.0
    online = [view for view in views if view.github is not None and view.github.online]
    return FailedStarts() if any(view.created_at > last for view in online) else recorded
