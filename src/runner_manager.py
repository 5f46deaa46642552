"""All runners of a unit: the order of a reconcile, of a flush and of a drain."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import listing
import system
import times
from changes import Changes
from engine import profiles
from errors import HostError, LxdError
from flavor_plans import Wanted as Wanted
from listing import Row
from metrics.collect import Collector
from metrics.events import written_by
from metrics.storage import StorageManager
from models import CharmState, FailedStarts, FlushMode, PublishedImage, VirtualMachineResources
from naming import OFFLINE_SINCE_KEY, ONLINE_KEY, Identity, fingerprint
from observe import ObservedRunner, Observer, end_of_agent, wait_for_pre_job
from plan import (
    Desired,
    Health,
    Plan,
    Reason,
    failed_unlisted,
    health,
    is_healthy,
    make_plan,
    needs_confirmation,
    still_failing,
)
from report import Report, describe_deprecated, describe_failed_starts
from runner import RunnerManagerClients, remove_old_logs
from system import exclusive, in_parallel

logger = logging.getLogger(__name__)

# Two reconciles at once would remove what the other one is creating. Juju runs one hook at a time, but a process of a
# hook that Juju has given up may still run.
LOCKS = system.LOCKS


@dataclass(frozen=True)
class Findings:
    """What the caller of a reconcile records about the machine, for later reconciles."""

    deprecated: bool = False
    """A runner ended because GitHub no longer accepts the version of its agent."""
    proven: bool = False
    """A runner of today's version is online at GitHub."""
    failed_starts: FailedStarts | None = None
    """Reconciles that found runners whose agent had ended without a job; None if this reconcile did not find out."""


class RunnerManager:
    """Keeps a unit's runners. It stores nothing: each reconcile reads LXD and GitHub."""

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
        canary: float | None = None,
        failed_starts: FailedStarts | None = None,
        image: Callable[[], PublishedImage] = PublishedImage,
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
        self._canary = canary
        self._failed_starts = failed_starts or FailedStarts()
        self._read_image = image
        [self._spec] = state.runners
        self._collector = Collector(identity, state.path, clients.github, storages, enabled=state.issue_metrics)
        self._new_changes = partial(
            Changes, identity, self._spec, clients, self._collector, binary, lambda: self._image, clock
        )

    def reconcile(self, quantity: int, resources: VirtualMachineResources) -> int:
        """One reconcile of the first flavour, with these resources. Returns quantity - healthy runners found."""
        return self.reconcile_flavors([Wanted(replace(self._spec, resources=resources), quantity)])

    def reconcile_flavors(self, wanted: Sequence[Wanted]) -> int:
        """One reconcile. Returns how many runners are wanted, less the healthy ones found.

        Failures of single runners are collected in ``report``. LxdError, GithubClientError for the list of runners, and
        HostError (another process holds the lock) abort the reconcile before anything changed. GithubClientError and
        ConfigurationError also say that no runner can be registered. If one was to be created, only unhealthy runners
        were removed.
        """
        with self._alone():
            [only] = wanted
            return self._reconcile(only.number or 0, only.spec.resources)

    def _reconcile(self, quantity: int, resources: VirtualMachineResources) -> int:
        started = self._clock()
        changes = self._begin(quantity)
        observation = self.observer.observe()
        runners = observation.runners | self.observer.without_registration(observation.runners, started)
        max_age = self._state.idle_runner_max_age * times.HOUR
        desired = Desired(quantity, self._fingerprint, not self._hold, self._canary, max_age)
        plan = make_plan(desired, [item.view for item in runners.values()], started)
        self._find(plan, runners, changes, quantity, started)
        changes.record(runners, _sightings(plan, started))
        stayed = self._remove_unhealthy(plan, runners, changes)
        crashed: Counter[str] = Counter()
        try:
            self._change(plan, runners, stayed, resources, changes, started)
        finally:
            # Also if GitHub gave no token: what was done is reported. After the creations, which wait for no job.
            with _continuing("Metrics of finished runners"):
                crashed = self._collector.finished(_existing(runners, changes), observation.previous_volumes)
            self._describe(plan, runners, changes)
            self._clean_up(plan, changes, quantity, resources, started)
            self._issue_events(plan, runners, changes, crashed, started)
        return quantity - plan.healthy

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
            self._collector.finished(_existing(runners, changes), observation.previous_volumes)
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
            self._collector.finished(_existing(runners, changes), observation.previous_volumes)
            self._remove_unused_profiles(None)
            return len(changes.removed)

    def check_creation(self) -> None:
        """Raise what would keep a runner from being created and registered, before one is removed for it."""
        if self._hold:
            raise HostError(self._hold)
        self._new_changes(self.report.failures.append).check_registration()

    def counts(self) -> dict[str, list[str]]:
        """The names of this unit's runners by state, and in ``details`` a line for each."""
        return self.observer.counts(self._known_fingerprint)

    def rows(self) -> list[Row]:
        """This unit's runners, one row each, by the same requests as ``counts``."""
        runners = self.observer.observe().runners.values()
        return listing.rows(runners, self.observer.job_of, self._known_fingerprint, self._clock())

    @cached_property
    def _image(self) -> PublishedImage:
        """Read once for all runners, and only if it is needed."""
        return self._read_image()

    @property
    def _fingerprint(self) -> str:
        return fingerprint(self._spec, self._binary.name, self._image.identity)

    @property
    def _known_fingerprint(self) -> str | None:
        """None where an invalid option hides what runners are to be."""
        return None if self._state.is_partial else self._fingerprint

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with exclusive(LOCKS / f"{self._identity.prefix.rstrip('-')}.lock", times.LOCK) as free:
            if not free:
                raise HostError("another process of this unit works on the runners")
            with written_by(self._identity.unit):
                yield

    def _begin(self, quantity: int = 0) -> Changes:
        """Start a new report; returns the changes whose failures it will have."""
        self.report, self.findings = Report(wanted=quantity), Findings()
        return self._new_changes(self.report.failures.append)

    def _find(
        self, plan: Plan, runners: Mapping[str, ObservedRunner], changes: Changes, quantity: int, now: float
    ) -> None:
        """What the plan says about the version of the runner agent, and about agents that ended without a job."""
        failures = self.report.failures
        hold = describe_deprecated(self._binary) if plan.deprecated else self._hold
        if hold and quantity > 0:
            failures.append(hold)
        views = [item.view for item in runners.values()]
        unlisted = self._failed_unlisted(runners, now)
        failures += [f"{name}: ended without a job, and GitHub does not list it" for name in unlisted]
        changes.failed_creations += len(unlisted) + len(plan.failed)
        found = still_failing(self._failed_starts, views, now)
        if plan.failed:
            reasons = in_parallel(lambda name: end_of_agent(runners[name]), plan.failed)
            found = FailedStarts(found.count + 1, now, reasons[-1])
            failures.append(describe_failed_starts(found, now))
        self.report.failed_starts = found
        self.findings = Findings(plan.deprecated, plan.proven, found)

    def _failed_unlisted(self, runners: Mapping[str, ObservedRunner], now: float) -> list[str]:
        """Runners that GitHub does not list and whose agent ended without a job, without those that GitHub dropped."""
        unlisted = [item for item in runners.values() if failed_unlisted(item.view)]
        dropped = in_parallel(partial(self.observer.was_dropped, now=now), unlisted)
        return [item.view.name for item, gone in zip(unlisted, dropped, strict=True) if not gone]

    def _remove_unhealthy(self, plan: Plan, runners: Mapping[str, ObservedRunner], changes: Changes) -> int:
        """Pull the logs of unhealthy runners, then remove them; returns how many instances stayed."""
        unhealthy = [runners[name] for name in plan.names(Reason.UNHEALTHY)]
        doubtful = [item for item in unhealthy if needs_confirmation(item.view)]
        confirmed = in_parallel(self.observer.is_offline, doubtful)
        kept = {item.view.name for item, offline in zip(doubtful, confirmed, strict=True) if not offline}
        leaving = [item for item in unhealthy if item.view.name not in kept]
        changes.pull_logs([item for item in leaving if self._spec.issue_metrics or item.view.name in plan.failed])
        return len(kept) + changes.remove(leaving)

    def _change(
        self,
        plan: Plan,
        runners: Mapping[str, ObservedRunner],
        stayed: int,
        resources: VirtualMachineResources,
        changes: Changes,
        started: float,
    ) -> None:
        """Remove orphaned, outdated and surplus runners, and create the missing ones.

        ``stayed`` is the number of unhealthy instances that could not be removed: they count as existing ones.
        Postponed runners are replaced only while the time limit of a reconcile leaves room for another creation. It is
        an error also without any creation if the server lacks the way of registering.
        """
        if plan.create or plan.postponed:
            changes.check_registration()
        changes.remove([runners[name] for name in plan.names(Reason.ORPHANED)])
        idle = plan.names(Reason.OUTDATED) + plan.names(Reason.SURPLUS) + plan.names(Reason.AGED)
        stayed += changes.remove_idle([runners[name] for name in idle])
        changes.create(max(0, plan.create - stayed), resources, self._fingerprint)
        if plan.postponed and changes.is_proven() and self._clock() - started < times.REST_OF_RECONCILE:
            stayed = changes.remove_idle([runners[name] for name in plan.postponed])
            changes.create(len(plan.postponed) - stayed, resources, self._fingerprint)
        changes.check_method()

    def _describe(self, plan: Plan, runners: Mapping[str, ObservedRunner], changes: Changes) -> None:
        """Fill the report with the runners that exist now."""
        report, removed = self.report, set(changes.removed)
        report.created, report.removed = list(changes.created), list(changes.removed)
        report.busy = [name for name in plan.busy if name not in removed]
        report.unknown_jobs = [name for name in plan.unknown_jobs if name not in removed]
        report.idle = [name for name in (*plan.idle, *changes.created) if name not in removed]
        known = {*report.busy, *report.idle, *removed}
        report.other = [name for name, item in runners.items() if item.view.exists and name not in known]

    def _clean_up(
        self, plan: Plan, changes: Changes, quantity: int, resources: VirtualMachineResources, now: float
    ) -> None:
        """What a reconcile does besides its runners. Each step runs whatever another one raises."""
        with _continuing("Removal of unused profiles"):
            if plan.changes or changes.removed or quantity == 0:
                self._remove_unused_profiles(resources if quantity else None)
        with _continuing("Removal of old crash logs"):
            remove_old_logs(now)
        self.report.image_additions = self._image.additions
        if self._image.built_at is not None:
            self.report.image_age = max(0.0, now - self._image.built_at)

    def _remove_unused_profiles(self, needed: VirtualMachineResources | None) -> None:
        try:
            profiles.remove_unused_resources(self._clients.lxd, keep=needed.profile if needed else None)
        except LxdError as error:
            logger.warning("Unused profiles were not removed: %s", error)

    def _issue_events(
        self, plan: Plan, runners: Mapping[str, ObservedRunner], changes: Changes, crashed: Counter[str], started: float
    ) -> None:
        now, report = self._clock(), self.report
        with _continuing("The event unit_health"):
            self._collector.unit_health(
                now,
                wanted=report.wanted,
                failed_creations=changes.failed_creations,
                failed_starts=report.failed_starts,
                binary=self._binary,
                image_age=report.image_age,
            )
        with _continuing("The event reconciliation"):
            # Healthy runners without a job. GitHub's list may lack a runner for some minutes although it is ready.
            healthy = {name for name, item in runners.items() if is_healthy(item.view)}
            idle = healthy - {*plan.busy, *dict(plan.remove), *changes.removed}
            self._collector.reconciliation(
                started,
                now,
                crashed=crashed.total(),
                idle=len(idle) + len(changes.created),
                active=len(report.busy),
                wanted=report.wanted,
            )


def _sightings(plan: Plan, now: float) -> dict[str, dict[str, str | None]]:
    """The keys of instances that record since when GitHub has not listed a runner as online, and that it once did."""
    keys: dict[str, dict[str, str | None]] = {name: {OFFLINE_SINCE_KEY: f"{now:.0f}"} for name in plan.record_offline}
    keys |= {name: {OFFLINE_SINCE_KEY: None} for name in plan.clear_offline}
    for name in plan.record_online:
        keys.setdefault(name, {})[ONLINE_KEY] = "true"
    return keys


def _existing(runners: Mapping[str, ObservedRunner], changes: Changes) -> set[str]:
    """The names of the runners that have an instance now."""
    observed = {name for name, item in runners.items() if item.view.exists}
    return (observed - set(changes.removed)) | set(changes.created)


@contextmanager
def _continuing(what: str) -> Iterator[None]:
    """Log whatever is raised: the report and the events of a reconcile must not be lost for it."""
    try:
        yield
    except Exception:
        logger.exception("%s: failed, the reconcile continues", what)
