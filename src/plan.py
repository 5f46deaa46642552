"""What a pass does, decided without touching anything (spec 2, Health, Removal, One pass)."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import times
from models import FailedStarts, Process, RunnerView

# No runner agent runs any more.
ENDED = (Process.NONE, Process.REFUSED, Process.FAILED)


class Health(Enum):
    """What a runner is, as far as a pass is concerned."""

    IDLE = "idle"
    BUSY = "busy"
    STARTING = "starting"
    GHOST = "its process runs and GitHub does not see it"
    UNKNOWN = "could not be looked at"
    UNHEALTHY = "unhealthy"
    FORGOTTEN = "known to GitHub only"


class Reason(str, Enum):
    """Why a runner is removed."""

    UNHEALTHY = "unhealthy"
    FORGOTTEN = "registered without an instance"
    OUTDATED = "outdated"
    SURPLUS = "surplus"
    AGED = "idle for too long"


@dataclass(frozen=True)
class Desired:
    """How many runners of which fingerprint."""

    quantity: int
    fingerprint: str
    may_create: bool = True
    """False while no runner can be made: then outdated ones stay, too."""
    canary: float | None = None
    """Since when GitHub may call the version deprecated: one later runner is tried, all follow once it is online."""
    idle_max_age: float = 0.0
    """Seconds after which an idle runner is replaced, one in each reconcile; 0 for never."""


@dataclass(frozen=True)
class Plan:
    """Names to remove by reason, how many runners to create, and which offline notes to make or take away."""

    remove: tuple[tuple[str, Reason], ...] = ()
    create: int = 0
    note_offline: tuple[str, ...] = ()
    clear_offline: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    unknown_jobs: tuple[str, ...] = ()
    """Busy runners of whose job GitHub has not known since an earlier reconcile."""
    healthy: int = 0
    refused: bool = False
    """Whether a runner of today's ended because GitHub calls its application outdated."""
    failed: tuple[str, ...] = ()
    """Runners of today's whose agent ended without a job."""
    proven: bool = False
    """Whether a runner of today's configuration and version is online at GitHub."""
    note_online: tuple[str, ...] = ()
    """Runners that GitHub lists as online or busy for the first time."""
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
    """Whether only a look inside the instance can tell: GitHub saying online settles it (spec 2, Health)."""
    return view.exists and view.running and not (view.github and view.github.online)


def health(view: RunnerView, now: float) -> Health:
    """One runner's health. ``now`` is UNIX seconds."""
    if not view.exists:
        return Health.FORGOTTEN
    if not view.running or view.gone:
        return Health.UNHEALTHY
    # Dead in its job, or left by a pass that was cut off: passes are one at a time, nobody is at work on it. GitHub
    # takes minutes to notice: until then it calls a dead one busy, and offline. Another charm's tells less.
    ended = view.process in ENDED
    died = ended and view.created_at > 0 and not (view.github and view.github.online)
    if view.busy and not died:
        return Health.UNHEALTHY if view.job_is_unknown and _is_unseen_for(view, times.UNKNOWN_JOB, now) else Health.BUSY
    if view.github and view.github.online:
        return Health.IDLE
    # Made in the future, or noted as unseen already: the clock was set back, and it is older than it looks.
    limit = times.COME_ONLINE if view.prepared else times.CREATION
    young = 0 <= now - (view.prepared_at or view.created_at) < limit and view.offline_since is None
    if young and not died:
        return Health.STARTING
    if ended:
        return Health.UNHEALTHY
    if view.process is Process.UNKNOWN and view.github_known:
        silent = _is_unseen_for(view, times.SILENT, now)
        return Health.UNHEALTHY if silent or not view.prepared else Health.UNKNOWN
    if not view.github_known:
        return Health.UNKNOWN
    return Health.UNHEALTHY if _is_unseen_for(view, times.OFFLINE, now) else Health.GHOST


def _is_unseen_for(view: RunnerView, limit: float, now: float) -> bool:
    return view.offline_since is not None and now - view.offline_since >= limit


def may_have_job(view: RunnerView, now: float) -> bool:
    """Whether a job may run in it; an instance that does not answer may have one until it is unhealthy."""
    state = health(view, now)
    return state is Health.BUSY or (view.process is Process.UNKNOWN and state is not Health.UNHEALTHY and view.exists)


def _is_newly_unseen(view: RunnerView, state: Health, now: float) -> bool:
    """Whether GitHub was asked for a runner that should be online, does not see it, and no note says since when."""
    unseen = state is Health.GHOST or (state is Health.UNKNOWN and view.github_known) or view.job_is_unknown
    # A note of the future: the clock was set back.
    return unseen and (view.offline_since is None or view.offline_since > now)


def _is_seen_again(view: RunnerView) -> bool:
    seen = view.github is not None and (view.github.online or view.github.busy)
    return seen and view.offline_since is not None


def _is_newly_seen(view: RunnerView) -> bool:
    """Whether GitHub lists a runner as online or busy for the first time: from then on it may have had a job."""
    return not view.seen_online and view.github is not None and (view.github.online or view.github.busy)


def needs_confirmation(view: RunnerView) -> bool:
    """Whether only GitHub's lists speak against an unhealthy runner: its application may run, and they may be odd."""
    return view.running and not view.gone and view.process not in ENDED


def _ended(views: list[RunnerView], desired: Desired, process: Process) -> tuple[str, ...]:
    """Runners of today's configuration that say so how their agent ended, and are believed: no job can have said it.

    GitHub lists them as idle, and was never seen to list them as online: a job needs a runner that is online.
    """
    listed = [view for view in views if view.github and not view.github.busy and not view.github.online]
    believed = [view for view in listed if not view.seen_online and view.fingerprint == desired.fingerprint]
    return tuple(view.name for view in believed if view.process is process)


def is_healthy(view: RunnerView) -> bool:
    """Whether the instance runs and the runner application in it does; GitHub saying online settles it (spec 2)."""
    online = view.github is not None and view.github.online
    return view.exists and view.running and (online or view.process in (Process.RUNNING, Process.WORKER))


def make_plan(desired: Desired, observed: Iterable[RunnerView], now: float) -> Plan:
    """Decide one reconcile. All live instances count against the quantity, busy ones are never surplus.

    An orphaned registration is removed only when it is offline. An outdated runner that is not idle stays: it may
    finish its job or come online first. Today's configuration is tried with one runner before the others follow.
    """
    views = sorted(observed, key=lambda view: view.name)
    states = {view.name: health(view, now) for view in views}
    live = [view for view in views if states[view.name] not in (Health.UNHEALTHY, Health.FORGOTTEN)]
    idle = [view for view in live if states[view.name] is Health.IDLE]
    outdated = [view for view in idle if view.fingerprint != desired.fingerprint]
    current = [view for view in idle if view not in outdated]
    refused, failed = _ended(views, desired, Process.REFUSED), _ended(views, desired, Process.FAILED)
    may_create = desired.may_create and not (refused or failed)
    proven = _is_proven(live, desired)
    canary = desired.canary is not None and not proven
    surplus = [*outdated, *current][: max(0, len(live) - desired.quantity)]
    waiting = [view for view in outdated if view not in surplus]
    replaced = waiting[: _replaceable(live, desired, may_create and not canary)]
    aged = [] if waiting or not may_create or canary else _aged(current, surplus, desired, now)
    staying = len(live) - len(surplus) - len(replaced) - len(aged)
    missing = max(0, desired.quantity - staying)
    if canary:
        missing = min(missing, 0 if _tried(live, desired) else 1)
    leaving = [view for view in idle if view in replaced or view in surplus]
    return Plan(
        remove=(*_useless(views, states), *_idle_removals(leaving, outdated, aged)),
        create=missing if may_create else 0,
        note_offline=tuple(view.name for view in live if _is_newly_unseen(view, states[view.name], now)),
        clear_offline=tuple(v.name for v in live if _is_seen_again(v)),
        idle=tuple(view.name for view in idle if view not in (*surplus, *replaced, *aged)),
        busy=tuple(view.name for view in live if states[view.name] is Health.BUSY),
        unknown_jobs=tuple(view.name for view in live if view.job_is_unknown and view.offline_since is not None),
        healthy=sum(1 for view in live if is_healthy(view)),
        refused=bool(refused),
        failed=failed,
        proven=proven,
        note_online=tuple(view.name for view in live if _is_newly_seen(view)),
        postponed=tuple(view.name for view in waiting if view not in replaced) if may_create else (),
    )


def _useless(views: list[RunnerView], states: dict[str, Health]) -> list[tuple[str, Reason]]:
    """Runners that can run no job, and registrations without an instance that GitHub lists as offline."""
    removals = [(view.name, Reason.UNHEALTHY) for view in views if states[view.name] is Health.UNHEALTHY]
    for view in views:
        listed = view.github if states[view.name] is Health.FORGOTTEN else None
        if listed is not None and not (listed.online or listed.busy):
            removals.append((view.name, Reason.FORGOTTEN))
    return removals


def _idle_removals(
    leaving: list[RunnerView], outdated: list[RunnerView], aged: list[RunnerView]
) -> list[tuple[str, Reason]]:
    removals = [(view.name, Reason.OUTDATED if view in outdated else Reason.SURPLUS) for view in leaving]
    return removals + [(view.name, Reason.AGED) for view in aged]


def _tried(live: list[RunnerView], desired: Desired) -> list[RunnerView]:
    """Runners of today's configuration that tell whether it works; one from before a doubt says nothing about it."""
    since = desired.canary or 0.0
    return [view for view in live if view.fingerprint == desired.fingerprint and view.created_at > since]


def _is_proven(live: list[RunnerView], desired: Desired) -> bool:
    return any(view.github is not None and view.github.online for view in _tried(live, desired))


def _aged(current: list[RunnerView], surplus: list[RunnerView], desired: Desired, now: float) -> list[RunnerView]:
    """The oldest idle runner beyond its age: its agent may have stopped to poll, and its image is an old one."""
    old = [view for view in current if view not in surplus and 0 < desired.idle_max_age < now - view.created_at]
    return sorted(old, key=lambda view: view.created_at)[:1]


def _replaceable(live: list[RunnerView], desired: Desired, may_create: bool) -> int:
    """How many outdated idle runners may be replaced now: all once one of today's is online, the first one before."""
    current = [view for view in live if view.fingerprint == desired.fingerprint]
    if not may_create:
        return 0
    if _is_proven(live, desired):
        return len(live)
    # One that is being tried already, or a place that is free for it.
    return 0 if current or len(live) < desired.quantity else 1


def failed_unlisted(view: RunnerView) -> bool:
    """Whether an instance reports that its agent ended without a job, and GitHub has never listed the runner."""
    return view.process is Process.FAILED and view.github is None and view.github_known and not view.seen_online


def still_failing(recorded: FailedStarts, views: Iterable[RunnerView], now: float) -> FailedStarts:
    """The recorded failed starts; none if a runner that was created after the last of them is online at GitHub."""
    # If the last one is in the future, the clock was wrong then: any runner that is online proves that starts work.
    last = recorded.last if recorded.last <= now else 0.0
    online = [view for view in views if view.github is not None and view.github.online]
    return FailedStarts() if any(view.created_at > last for view in online) else recorded
