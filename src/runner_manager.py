"""All runners of a unit: the order of a reconcile, of a flush and of a drain."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import delays
import listing
import system
import times
from budget import Capacity
from changes import Changes
from engine import profiles
from errors import HostError, LxdError
from flavor_changes import FlavorChanges
from flavor_plans import Plans, Wanted, make_plans
from listing import Row
from metrics.collect import Collector
from metrics.events import written_by
from metrics.storage import StorageManager
from models import CharmState, FailedStarts, FlushMode, PublishedImage, RunnerSpec, Scaling, VirtualMachineResources
from naming import Identity, fingerprint
from observe import Observation, ObservedRunner, Observer, end_of_agent, wait_for_pre_job
from outcome import Outcome, continuing
from plan import Desired, Health, Plan, Reason, health, is_doubtful, needs_confirmation, still_failing
from report import (
    DROPPED_REPORTED,
    Findings,
    Report,
    describe_deprecated,
    describe_doubtful,
    describe_dropped,
    describe_failed_starts,
)
from runner import RunnerManagerClients, remove_old_logs
from runner_view import Process, RunnerView
from system import exclusive, in_parallel
from unlisted import needs_no_list, presumed

logger = logging.getLogger(__name__)

# Two reconciles at once would remove what the other one is creating. Juju runs one hook at a time, but a process of a
# hook that Juju has given up may still run.
LOCKS = system.LOCKS


@dataclass(frozen=True)
class Decision:
    """What a reconcile found, the room for this unit's runners (None without a limit), and what it does."""

    observation: Observation
    room: Capacity | None
    plans: Plans


class RunnerManager:
    """Keeps a unit's runners. It has no list of them: each reconcile reads LXD, and GitHub's list where it matters."""

    def __init__(
        self,
        identity: Identity,
        state: CharmState,
        clients: RunnerManagerClients,
        storages: StorageManager,
        binary: Path,
        *,
        clock: Callable[[], float] = time.time,
        hold: str = "",
        deprecated_since: float | None = None,
        failed_starts: FailedStarts | None = None,
        dropped: FailedStarts | None = None,
        image: Callable[[str], PublishedImage] = lambda alias: PublishedImage(),
        capacity: Capacity | None = None,
    ) -> None:
        self.report = Report()
        self.findings = Findings()
        self.observer = Observer(identity, state.github_url, state.path, clients, storages, clock)
        self._identity = identity
        self._state = state
        self._clients = clients
        self._binary = binary
        self._clock = clock
        self._hold = hold
        self._deprecated_since = deprecated_since
        self._failed_starts = failed_starts or FailedStarts()
        self._dropped = dropped or FailedStarts()
        # Read once for all runners, and only if it is needed.
        self._image = cache(image)
        self._capacity = capacity
        self._spec = state.runners[0]
        self._collector = Collector(identity, state.path, clients.github, storages, enabled=state.issue_metrics)
        self._new_changes = partial(Changes, identity, self._spec, clients, self._collector, binary, self._image, clock)

    # Public module interface only.
    def reconcile(self, quantity: int, resources: VirtualMachineResources) -> int:
        """One reconcile of the first flavour, with these resources. Returns quantity - healthy runners found."""
        return self.reconcile_flavors([Wanted(replace(self._spec, resources=resources), quantity)])

    def reconcile_flavors(self, wanted: Sequence[Wanted], list_age: float | None = None) -> int:
        """One reconcile. Returns how many runners are wanted, less the healthy ones found.

        ``list_age`` is how many seconds ago GitHub's list of runners was read. With None it is read in any case, else
        only where it may matter.

        Failures of single runners are collected in ``report``. LxdError, GithubClientError for the list of runners, and
        HostError (another process holds the lock) abort the reconcile before anything changed. GithubClientError and
        ConfigurationError also say that no runner can be registered. If one was to be created, only unhealthy runners
        were removed.
        """
        with self._alone():
            return self._reconcile(wanted, list_age)

    def _reconcile(self, wanted: Sequence[Wanted], list_age: float | None) -> int:
        started = self._clock()
        changes = self._begin(sum(one.number or 0 for one in wanted))
        decision = self._decide(wanted, list_age, started)
        runners, room = decision.observation.runners, decision.room
        plans, plan = decision.plans, decision.plans.whole
        self.report.wanted = plans.wanted
        self._hold_back(wanted)
        self._find(plan, runners, changes, started)
        self.findings = replace(self.findings, listed=decision.observation.listed)
        changes.record_sightings(runners, plan, started)
        self._remove_unhealthy(plan, runners, changes)
        crashed: Counter[str] = Counter()
        flavors = FlavorChanges(plans, runners, changes, room, plans.waits)
        try:
            flavors.apply(lambda: self._clock() - started < times.REST_OF_RECONCILE)
            self.report.waits = [str(wait) for wait in flavors.waits]
        finally:
            # Also if GitHub gave no token: what was done is reported. After the creations, which wait for no job.
            with continuing("Metrics of finished runners"):
                crashed = self._collector.finished(changes.existing(runners), decision.observation.previous_volumes)
            outcome = Outcome(self.report, plan, runners, changes)
            outcome.describe(self._clock())
            outcome.count(flavors, flavors.waits, fixed=self._state.scaling is Scaling.FIXED)
            now = self._clock()
            failed = outcome.failed_creations((one.wanted for one in plans.flavors), now)
            self.findings = replace(self.findings, failed_creations=failed, capacities=flavors.capacities())
            self._clean_up(plan, changes, wanted, started)
            outcome.issue_events(
                self._collector, self._binary, self.findings, crashed=crashed, started=started, now=self._clock()
            )
        return plans.missing

    def _decide(self, wanted: Sequence[Wanted], list_age: float | None, now: float) -> Decision:
        """What is there, and what to do about it: without GitHub's list of runners where that suffices."""
        # What is wrong is over once a runner is listed as online.
        is_wrong = self._hold or self._deprecated_since is not None or self._failed_starts.count or self._dropped.count
        found = None if list_age is None or is_wrong else self._without_list(wanted, list_age, now)
        if found is None:
            observation = self.observer.confirmed(self.observer.observe())
            gone = self.observer.without_registration(observation.runners, now)
            # By the time of the list, which may have taken a while: what it says of a young runner counts.
            found = self._planned(wanted, replace(observation, runners=observation.runners | gone), self._clock())
        return found

    def _without_list(self, wanted: Sequence[Wanted], list_age: float, now: float) -> Decision | None:
        """A decision that needs no list; None where one might change it."""
        observation = self.observer.instances()
        views = presumed(wanted, self._fingerprints(wanted), observation.views, list_age, now)
        if views is None:
            return None
        found = self._planned(wanted, observation.seen_as(views), now)
        if not needs_no_list(found.plans, views):
            found = self._planned(wanted, self.observer.probed(found.observation), now)
        return found if needs_no_list(found.plans, found.observation.views) else None

    def _planned(self, wanted: Sequence[Wanted], observation: Observation, now: float) -> Decision:
        max_age = self._state.idle_runner_max_age * times.HOUR
        unit = Desired(0, "", not self._hold, self._deprecated_since, max_age)
        if observation.listed:
            deprecated = self.observer.version_is_deprecated(observation.runners.values(), self._binary.name)
            unit = replace(unit, deprecated=deprecated)
        room = self._capacity.without(observation.others) if self._capacity else None
        plans = make_plans(wanted, self._fingerprints(wanted), unit, observation.views, now, room)
        return Decision(observation, room, plans)

    def _fingerprints(self, wanted: Sequence[Wanted]) -> dict[str, str]:
        return {one.flavor: self._fingerprint(one.spec) for one in wanted}

    def drain(self) -> bool:
        """Remove the idle runners, as before a reboot; returns whether no runner is left that may have a job.

        Nothing is removed while another runner exists: the machine could not reboot for it.
        Not a reconcile with quantity 0: no event says that no runner is wanted.
        """
        with self._alone():
            changes, now = self._begin(), self._clock()
            observation = self.observer.observe()
            runners = observation.runners
            states = {name: health(item.view, now) for name, item in runners.items()}
            certain = set(states.values()) <= {Health.IDLE, Health.UNHEALTHY, Health.ORPHANED}
            if not certain or self.observer.any_busy(runners.values()):
                return False
            stayed = changes.remove_idle([runners[name] for name, state in states.items() if state is Health.IDLE])
            self._collector.finished(changes.existing(runners), observation.previous_volumes)
            return stayed == 0

    def flush(self, mode: FlushMode) -> int:
        """Remove every runner, busy ones too; returns the number of removed instances.

        FORCE_FLUSH works without GitHub as well; the registrations then stay until GitHub removes them.
        """
        with self._alone():
            changes = self._begin()
            observation = self.observer.observe(github_needed=mode is not FlushMode.FORCE_FLUSH)
            runners = observation.runners
            if mode is FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK:
                wait_for_pre_job(runners.values())
            changes.flush(list(runners.values()))
            self._collector.finished(changes.existing(runners), observation.previous_volumes)
            self._remove_unused_profiles([])
            return len(changes.removed)

    def check_creation(self) -> None:
        """Raise what would keep a runner from being created and registered, before one is removed for it."""
        if self._hold:
            raise HostError(self._hold)
        self._new_changes(self.report.failures.append).check_registration()

    def counts(self, runners: Mapping[str, ObservedRunner]) -> dict[str, list[str]]:
        """The names of runners by state, and in ``details`` a line for each."""
        return listing.counts(runners.values(), self._known_fingerprints, self._clock())

    def rows(self, runners: Mapping[str, ObservedRunner]) -> list[Row]:
        """One row for each runner."""
        return listing.rows(runners.values(), self.observer.job_of, self._known_fingerprints, self._clock())

    def _fingerprint(self, spec: RunnerSpec) -> str:
        return fingerprint(spec, self._binary.name, self._image(spec.base_image.value).identity)

    @property
    def _known_fingerprints(self) -> dict[str, str] | None:
        """By flavour; None where an invalid option hides what runners are to be."""
        if self._state.is_partial:
            return None
        return {spec.flavor: self._fingerprint(spec) for spec in self._state.runners}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with exclusive(LOCKS / f"{self._identity.prefix}.lock", times.LOCK) as free:
            if not free:
                raise HostError(
                    "another process of this unit works on the runners: its lock was not free within "
                    f"{times.LOCK:g} s; try again when it has ended"
                )
            with written_by(self._identity.unit):
                yield

    def _begin(self, quantity: int = 0) -> Changes:
        """Start a new report; returns the changes whose failures it will have."""
        self.report, self.findings = Report(wanted=quantity), Findings()
        return self._new_changes(self.report.failures.append)

    def _find(self, plan: Plan, runners: Mapping[str, ObservedRunner], changes: Changes, now: float) -> None:
        """Find out whether the version or agents of runners fail, and report why no runner may be created."""
        views = [item.view for item in runners.values()]
        self._report_hold(plan)
        dropped = self._report_doubtful(plan, runners, changes, now)
        changes.failed_creations += len(plan.failed)
        found = still_failing(self._failed_starts, views, now)
        if plan.failed:
            reasons = in_parallel(lambda name: end_of_agent(runners[name]), plan.failed)
            found = FailedStarts(found.count + 1, now, reasons[-1])
            self.report.hold = describe_failed_starts(found, now)
            self.report.failures.append(self.report.hold)
        self.report.failed_starts = found
        self.findings = Findings(plan.deprecated, plan.proven, found, self._count_dropped(dropped, views, changes, now))

    def _report_hold(self, plan: Plan) -> None:
        """Report why no runner may be created, or one only."""
        hold = describe_deprecated(self._binary) if plan.deprecated else self._hold
        if hold and self.report.wanted > 0:
            self.report.failures.append(hold)
        is_tried = self._deprecated_since is not None and not plan.proven
        self.report.hold = hold or (delays.ONE_IS_TRIED if is_tried else "")

    def _report_doubtful(self, plan: Plan, runners: Mapping[str, ObservedRunner], changes: Changes, now: float) -> int:
        """Report runners that claim to have ended without a job; returns how many more GitHub has dropped."""
        doubtful = [item for item in runners.values() if is_doubtful(item.view, plan)]
        dropped = in_parallel(partial(self.observer.was_dropped, now=now), doubtful)
        reported = [item.view for item, quiet in zip(doubtful, dropped, strict=True) if not quiet]
        self.report.failures += map(describe_doubtful, reported)
        changes.failed_creations += len(reported)
        # For the log only: they may be a job's words.
        in_parallel(end_of_agent, doubtful)
        return dropped.count(True)

    def _count_dropped(self, number: int, views: list[RunnerView], changes: Changes, now: float) -> FailedStarts:
        """Reconciles in a row that found ``number`` runners which GitHub dropped, reported from the third one on.

        None of these runners was seen online, and no later one: GitHub may delete every registration at once.
        """
        found = still_failing(self._dropped, views, now)
        if number:
            found = FailedStarts(found.count + 1, now)
        if found.count >= DROPPED_REPORTED:
            changes.failed_creations += number
            self.report.failures.append(describe_dropped(found))
        return found

    def _remove_unhealthy(self, plan: Plan, runners: Mapping[str, ObservedRunner], changes: Changes) -> None:
        """Pull the logs of unhealthy runners, then remove them."""
        unhealthy = [runners[name] for name in plan.names(Reason.UNHEALTHY)]
        doubtful = [item for item in unhealthy if needs_confirmation(item.view)]
        confirmed = in_parallel(self.observer.is_offline, doubtful)
        kept = {item.view.name for item, offline in zip(doubtful, confirmed, strict=True) if not offline}
        leaving = [item for item in unhealthy if item.view.name not in kept]
        # Also without metrics: such an instance stays to the next reconcile for its logs.
        waiting = (Process.FAILED, Process.DEPRECATED)
        changes.pull_logs([item for item in leaving if self._spec.issue_metrics or item.view.process in waiting])
        changes.remove(leaving)

    def _hold_back(self, wanted: Sequence[Wanted]) -> None:
        """Report why there will be fewer runners of some flavours."""
        reasons = dict.fromkeys(one.hold for one in wanted if one.hold and one.number)
        if reasons:
            self.report.failures.append("; ".join(reasons))

    def _clean_up(self, plan: Plan, changes: Changes, wanted: Sequence[Wanted], now: float) -> None:
        """What a reconcile does besides its runners. Each step runs whatever another one raises."""
        with continuing("Removal of unused profiles"):
            needed = [one.spec.resources.profile for one in wanted if one.number != 0]
            if plan.changes or changes.removed or not needed:
                self._remove_unused_profiles(needed)
        with continuing("Removal of old crash logs"):
            remove_old_logs(now)
        used = {one.spec.base_image.value: None for one in wanted if not one.hold}
        self.report.images = {alias: self._image(alias) for alias in used}
        ages = [max(0.0, now - found.built_at) for found in self.report.images.values() if found.built_at is not None]
        self.report.image_age = max(ages, default=None)

    def _remove_unused_profiles(self, needed: Sequence[str]) -> None:
        try:
            profiles.remove_unused_resources(self._clients.lxd, keep=needed)
        except LxdError as error:
            logger.warning("Unused profiles were not removed: %s", error)
