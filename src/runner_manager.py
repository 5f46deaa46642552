"""The passes over all runners of a unit: the only place that knows the order of things (spec 2, One pass and Flush)."""

import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import system
import times
from engine import profiles
from engine.api import wait_until
from engine.instance import KEY, LxdInstance
from engine.probe import in_pre_job, is_previous, last_words, probe
from errors import (
    GithubClientError,
    GithubRunnerError,
    HostError,
    IssueMetricEventError,
    LxdError,
    LxdNotFoundError,
    MetricsStorageError,
    RateLimitError,
    RunnerLogsError,
    TemporaryGithubError,
)
from metrics.events import (
    Event,
    Reconciliation,
    RunnerInstalled,
    RunnerStart,
    RunnerStop,
    UnitHealth,
    issue_event,
    log_is_writable,
    written_by,
)
from metrics.github import job_metrics
from metrics.runner import RunnerMetrics, extract, issue_events, quarantine
from metrics.storage import StorageManager
from metrics.type import GithubJobMetrics
from models import (
    CharmState,
    CreateRunnerConfig,
    FailedStarts,
    FlushMode,
    GithubPath,
    GithubRunner,
    Identity,
    Process,
    RunnerConfig,
    RunnerStatus,
    RunnerView,
    VirtualMachineResources,
    parse_github_path,
    plain,
)
from plan import (
    Desired,
    Health,
    Plan,
    Reason,
    health,
    is_healthy,
    make_plan,
    may_have_job,
    needs_confirmation,
    needs_probe,
)
from runner import Runner, RunnerManagerClients, remove_old_logs
from system import exclusive

logger = logging.getLogger(__name__)

# Runners wait for most of their creation. On two cores and a copy-on-write pool more than eight were not faster.
WORKERS = min(16, 4 * (os.cpu_count() or 1))
PRE_JOB_LIMIT = 150
# Two reconciles at once would take each other's work for leftovers. Juju runs one hook at a time, but a process of a
# hook that it has given up may still run.
LOCKS = system.LOCKS
STATE_PARTS = (
    *("github_url", "path", "labels", "base_image", "resources", "proxies", "dockerhub_mirror"),
    *("ssh_debug_connections", "repo_policy", "test_mode", "issue_metrics", "ca_certificates"),
    "allow_external_contributor",
)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass
class Report:
    """What a pass found and did. Names of runners; ``failures`` are lines for the operator."""

    wanted: int = 0
    idle: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    unknown_jobs: list[str] = field(default_factory=list)
    """Busy runners of whose job GitHub does not know."""
    other: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refused: bool = False
    """Whether a runner ended because GitHub calls its version deprecated."""
    proven: bool = False
    """Whether a runner of today's version is online at GitHub."""
    failed_starts: FailedStarts | None = None
    """What is to be recorded of runners whose agent ended without a job; None if the reconcile did not come so far."""
    image_age: float | None = None
    """Seconds since the image was built, where it is of our making."""


@dataclass(frozen=True)
class _Observed:
    """A runner as a plan sees it, and what acting on it takes."""

    view: RunnerView
    path: GithubPath
    instance: LxdInstance | None = None
    here: bool = True
    """Whether it is registered at the GitHub that is asked: elsewhere its id is another runner's."""


def fingerprint(state: CharmState, application: str) -> str:
    """Of everything that goes into an instance; ``application`` is the runner application's file name."""
    parts = {name: plain(getattr(state, name)) for name in STATE_PARTS}
    text = json.dumps([parts, application], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class RunnerManager:
    """Keeps a unit's runners. What exists is asked of LXD and GitHub at each pass, nothing is remembered."""

    def __init__(
        self,
        identity: Identity,
        state: CharmState,
        clients: RunnerManagerClients,
        storages: StorageManager,
        application: Path,
        *,
        lxd_storage_path: Path = Path("/var/lib/github-runner/pool"),
        clock: Callable[[], float] = time.time,
        hold: str = "",
        canary: float | None = None,
        failed_starts: FailedStarts | None = None,
        image_age: Callable[[], float | None] = lambda: None,
        in_image: Callable[[], bool] = lambda: False,
    ) -> None:
        self.report = Report()
        self._identity = identity
        self._state = state
        self._clients = clients
        self._storages = storages
        self._application = application
        self._lxd_storage_path = lxd_storage_path
        self._clock = clock
        self._hold = hold
        self._canary = canary
        self._failed_starts = failed_starts or FailedStarts()
        self._image_age = image_age
        self._in_image = in_image
        self._failed_creations = 0
        # The names of the metrics volumes that the last observation ascribed to runners of the previous charm.
        self._previous_volumes: frozenset[str] = frozenset()
        self._fingerprint = fingerprint(state, application.name)

    def reconcile(self, quantity: int, resources: VirtualMachineResources) -> int:
        """One reconcile. Returns quantity - healthy runners found.

        Failures of single runners are collected in ``report``. LxdError, GithubClientError for the list of runners, and
        HostError (another process holds the lock) abort the reconcile before anything changed. GithubClientError and
        ConfigurationError also say that no runner can be registered: then only unhealthy runners were removed.
        """
        with self._alone():
            return self._reconcile(quantity, resources)

    def _reconcile(self, quantity: int, resources: VirtualMachineResources) -> int:
        started = self._clock()
        self.report = Report(wanted=quantity)
        observed = self.observe()
        max_age = self._state.idle_runner_max_age * times.HOUR
        desired = Desired(quantity, self._fingerprint, not self._hold, self._canary, max_age)
        observed |= self._gone(observed, started)
        plan = make_plan(desired, [item.view for item in observed.values()], started)
        self._note_refusal(plan, quantity)
        self._note_failed_starts(plan, observed, started)
        self._note_offline(plan, observed, started)
        stayed = self._remove_unhealthy(plan, observed)
        crashed = 0
        try:
            self._change(plan, observed, stayed, resources, started)
        finally:
            # Also where GitHub gave no token: what was done is reported. After the creations, which wait for no job.
            with _continuing("Metrics of finished runners"):
                crashed = self._issue_metrics(observed)
            self._describe(plan, observed)
            self._clean_up(plan, quantity, resources, started)
            self._issue_reconciliation(plan, observed, crashed, started)
        return quantity - plan.healthy

    def _clean_up(self, plan: Plan, quantity: int, resources: VirtualMachineResources, now: float) -> None:
        """What a reconcile does besides its runners. Each step runs whatever another one raises."""
        with _continuing("Removal of unused profiles"):
            self._clean_profiles(plan, quantity, resources)
        with _continuing("Removal of old crash logs"):
            remove_old_logs(now)
        with _continuing("Age of the image"), suppress(LxdError):
            self.report.image_age = self._image_age()

    def _change(
        self,
        plan: Plan,
        observed: dict[str, _Observed],
        stayed: int,
        resources: VirtualMachineResources,
        started: float,
    ) -> None:
        """Remove what is orphaned, outdated or surplus, and create what is missing; ``stayed`` could not be removed.

        Postponed runners are replaced only while the limit of a reconcile leaves time for another creation.
        """
        if plan.create or plan.postponed:
            self._check_registration()
        stayed += self._remove_others(plan, observed)
        self._create(max(0, plan.create - stayed), resources)
        if plan.postponed and self._is_proven() and self._clock() - started < times.REST_OF_RECONCILE:
            gone = self._side_by_side(lambda name: self._remove_idle(observed[name]), list(plan.postponed))
            self._create(gone.count(True), resources)

    def drain(self) -> bool:
        """Remove the idle runners, as before a reboot; returns whether none is left that may have a job.

        Nothing is removed while another runner is there: it would be for nothing.
        Not a reconcile with quantity 0: no event says that no runner is wanted.
        """
        with self._alone():
            self.report = Report()
            observed, now = self.observe(), self._clock()
            states = {name: health(item.view, now) for name, item in observed.items()}
            if not set(states.values()) <= {Health.IDLE, Health.UNHEALTHY, Health.FORGOTTEN}:
                return False
            idle = [name for name, state in states.items() if state is Health.IDLE]
            self._side_by_side(lambda name: self._remove_idle(observed[name]), idle)
            self._issue_metrics(observed)
            gone = {*self.report.removed, *(n for n, s in states.items() if s in (Health.UNHEALTHY, Health.FORGOTTEN))}
            return not states.keys() - gone

    def flush(self, mode: FlushMode) -> int:
        """Remove every runner, busy ones too; returns how many instances went.

        FORCE_FLUSH works without GitHub as well; the registrations then stay until GitHub drops them.
        """
        with self._alone():
            return self._flush(mode)

    def _flush(self, mode: FlushMode) -> int:
        self.report = Report()
        observed = self.observe(github_needed=mode is not FlushMode.FORCE_FLUSH)
        if mode is FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK:
            self._wait_for_pre_job(observed.values())
        names = list(observed)
        removed = [gone for gone in self._side_by_side(lambda name: self._flush_one(observed[name]), names) if gone]
        self._issue_metrics({name: item for name, item in observed.items() if name not in self.report.removed})
        self._clean_profiles(Plan(), 0, self._state.resources)
        return len(removed)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with exclusive(LOCKS / f"{self._identity.prefix.rstrip('-')}.lock", times.LOCK) as free:
            if not free:
                raise HostError("another process of this unit works on the runners")
            with written_by(f"{self._identity.app_name}/{self._identity.unit_number}"):
                yield

    def observe(self, github_needed: bool = True) -> dict[str, _Observed]:
        """This unit's runners by name: LXD asked once, GitHub once per path, and the probes that health needs."""
        instances = self._instances()
        paths = {name: self._path_of(instance) for name, instance in instances.items()}
        listed = self._list_github(set(paths.values()) - {None}, instances, github_needed)
        here = listed.get(self._state.path) or {}
        views: dict[str, _Observed] = {}
        for name, instance in instances.items():
            path = paths[name]
            known = listed.get(path) if path is not None else None
            github = (known or {}).get(name)
            view = _view(instance, github, known is not None)
            views[name] = _Observed(view, path or self._state.path, instance, here=path is not None)
        for name in here.keys() - instances.keys():
            views[name] = _Observed(RunnerView(name, exists=False, github=here[name]), self._state.path)
        return self._probe(views)

    def counts(self) -> dict[str, list[str]]:
        """The names of this unit's runners that GitHub calls online and offline, and of instances it does not know.

        ``details`` has a line for each: name, state and age.
        """
        instances = self._instances()
        runners = self._clients.github.list_runners(self._state.path, self._selector(instances))
        listed = {item.name: item for item in runners}
        claims = self._claimed_jobs(instances, listed)
        return {
            "online": sorted(name for name, runner in listed.items() if runner.online),
            "offline": sorted(name for name, runner in listed.items() if not runner.online),
            "unknown": sorted(instances.keys() - listed.keys()),
            "details": [
                self._detail(name, listed.get(name), instances.get(name), name in claims)
                for name in sorted({*listed, *instances})
            ],
        }

    def _claimed_jobs(self, instances: dict[str, LxdInstance], listed: dict[str, GithubRunner]) -> set[str]:
        """The names of instances in which a worker runs although GitHub lists the runner neither online nor busy."""
        views = {name: _view(item, listed.get(name), True) for name, item in instances.items()}
        names = [name for name, view in views.items() if needs_probe(view) and not view.busy]
        processes = self._side_by_side(lambda name: probe(instances[name]), names)
        return {name for name, process in zip(names, processes, strict=True) if process is Process.WORKER}

    def _detail(self, name: str, github: GithubRunner | None, instance: LxdInstance | None, claimed: bool) -> str:
        state = "not at GitHub" if github is None else "busy" if github.busy else "idle" if github.online else "offline"
        state = "busy, unknown to GitHub" if claimed else state
        if instance is None:
            return f"{name}: {state}, no instance"
        created = _number(instance.config.get(f"{KEY}created"))
        age = f"{max(0.0, self._clock() - created) / 60:.0f} min old" if created else "age unknown"
        outdated = "" if instance.config.get(f"{KEY}fingerprint") == self._fingerprint else ", outdated"
        return f"{name}: {state}, {age}{outdated}{'' if instance.running else ', stopped'}"

    def any_busy(self) -> bool:
        """Whether a job may run, by GitHub's account or, up to a limit, by the instance's own."""
        now = self._clock()
        return any(may_have_job(item.view, now) for item in self._look_inside_all())

    def _instances(self) -> dict[str, LxdInstance]:
        """This unit's instances by name, the previous charm's among them.

        Metrics volumes with a name of the previous charm are its volumes, unless an instance of this charm (a unit of
        another model) has that name.
        """
        found = {item.name: item for item in self._clients.lxd.instances()}
        managed = {name: item for name, item in found.items() if self._is_managed(item)}
        volumes = {storage.runner_name for storage in self._storages.list_all()} - (found.keys() - managed.keys())
        self._previous_volumes = frozenset(filter(self._identity.may_be_previous, volumes))
        return managed

    def _is_managed(self, instance: LxdInstance) -> bool:
        """Whether an instance is this unit's by its name, or one that the previous charm made for this unit."""
        if self._identity.owns(instance.name):
            return True
        return self._identity.may_be_previous(instance.name) and is_previous(instance)

    def _selector(self, instances: Iterable[str]) -> Callable[[str], bool]:
        """Which names at GitHub are this unit's.

        A name of the previous charm counts only if this machine has an instance or a metrics volume of exactly that
        name: the runners of another model may have the same prefix and as many digits.
        """
        known = frozenset(instances) | self._previous_volumes
        return lambda name: name in known or self._identity.owns(name)

    def _look_inside_all(self) -> list[_Observed]:
        observed = self.observe()
        running = [item for item in observed.values() if item.instance and item.view.running]
        return [
            item if item.view.busy else _probed(item, process)
            for item, process in zip(running, self._side_by_side(_probe_one, running), strict=True)
        ]

    def _path_of(self, instance: LxdInstance) -> GithubPath | None:
        """Where an instance is registered; None where this GitHub client cannot ask."""
        path = instance.config.get(f"{KEY}path", "")
        if instance.config.get(f"{KEY}url", self._state.github_url) != self._state.github_url:
            return None
        if not path or path == self._state.path.path:
            return self._state.path
        try:
            return parse_github_path(path)
        except ValueError:
            return None

    def _list_github(
        self, paths: Iterable[GithubPath | None], instances: Iterable[str], needed: bool
    ) -> dict[GithubPath, dict[str, GithubRunner]]:
        """This unit's runners by path and name; a path that is not the configured one may fail to be listed."""
        listed: dict[GithubPath, dict[str, GithubRunner]] = {}
        selected = self._selector(instances)
        for path in [self._state.path, *(path for path in paths if path and path != self._state.path)]:
            try:
                runners = self._clients.github.list_runners(path, selected)
                listed[path] = {runner.name: runner for runner in runners}
            except GithubClientError as error:
                if needed and path == self._state.path:
                    raise
                logger.warning("The runners of %s are not listed: %s", path.path, error)
        return listed

    def _probe(self, views: dict[str, _Observed]) -> dict[str, _Observed]:
        names = [name for name, item in views.items() if needs_probe(item.view)]
        processes = self._side_by_side(lambda name: _probe_one(views[name]), names)
        return {**views, **{n: _probed(views[n], process) for n, process in zip(names, processes, strict=True)}}

    def _note_refusal(self, plan: Plan, quantity: int) -> None:
        self.report.refused, self.report.proven = plan.refused, plan.proven
        hold = refusal(self._application) if plan.refused else self._hold
        if hold and quantity > 0:
            self.report.failures.append(hold)

    def _note_failed_starts(self, plan: Plan, observed: dict[str, _Observed], now: float) -> None:
        """Report the runners whose agent ended without a job, with the reason that the last of them has printed."""
        online = [item.view for item in observed.values() if item.view.github and item.view.github.online]
        # In the future, if the clock was wrong then: any runner that is online proves that it works now.
        last = self._failed_starts.last if self._failed_starts.last <= now else 0.0
        proven = any(view.created_at > last for view in online)
        before = FailedStarts() if proven else self._failed_starts
        unlisted = [item.view.name for item in observed.values() if _failed_unlisted(item.view)]
        self.report.failures += [f"{name}: ended without a job, and GitHub does not list it" for name in unlisted]
        self._failed_creations += len(unlisted) + len(plan.failed)
        self.report.failed_starts = before
        if plan.failed:
            reasons = self._side_by_side(lambda name: _failure(observed[name]), list(plan.failed))
            self.report.failed_starts = after = FailedStarts(before.count + 1, now, reasons[-1])
            self.report.failures.append(failed_starts(after, now))

    def _gone(self, observed: dict[str, _Observed], now: float) -> dict[str, _Observed]:
        """Runners that GitHub's list lacks and whose registration is gone for good: they can get no job any more.

        A registration is gone, too, in the moment between the end of a job and the power-off: those are left to it.
        """
        unlisted = [item for item in observed.values() if _may_be_gone(item, now)]
        answers = self._side_by_side(self._registration_is_gone, unlisted)
        gone = [item for item, is_gone in zip(unlisted, answers, strict=True) if is_gone]
        if not gone:
            return {}
        time.sleep(times.POWER_OFF)
        processes = self._side_by_side(_probe_one, gone)
        hung = [item for item, process in zip(gone, processes, strict=True) if process is item.view.process]
        return {item.view.name: replace(item, view=replace(item.view, gone=True)) for item in hung}

    def _registration_is_gone(self, item: _Observed) -> bool:
        noted = item.instance.config.get(f"{KEY}runner-id", "") if item.instance else ""
        try:
            return noted.isdecimal() and self._clients.github.runner_is_gone(item.path, int(noted))
        except GithubClientError as error:
            logger.warning("%s is not asked for by its id: %s", item.view.name, error)
            return False

    def _note_offline(self, plan: Plan, observed: dict[str, _Observed], now: float) -> None:
        """A ghost's first sighting lies on its instance; coming back takes the note away (spec 2, Health)."""
        notes: dict[str, dict[str, str | None]] = {name: {"offline-since": f"{now:.0f}"} for name in plan.note_offline}
        notes |= {name: {"offline-since": None} for name in plan.clear_offline}
        for name in plan.note_online:
            notes.setdefault(name, {})["online"] = "true"
        for name, values in notes.items():
            instance = observed[name].instance
            if instance is not None:
                self._attempt(partial(instance.set_config, {KEY + key: value for key, value in values.items()}))

    def _remove_unhealthy(self, plan: Plan, observed: dict[str, _Observed]) -> int:
        """Logs first, then the runner; returns how many instances stayed."""
        unhealthy = plan.names(Reason.UNHEALTHY)
        unseen = [name for name in unhealthy if needs_confirmation(observed[name].view)]
        confirmed = self._side_by_side(lambda name: self._is_unseen(observed[name]), unseen)
        stayed = {name for name, gone in zip(unseen, confirmed, strict=True) if not gone}
        names = [name for name in unhealthy if name not in stayed]
        logged = [name for name in names if self._state.issue_metrics or name in plan.failed]
        self._side_by_side(lambda name: self._pull_logs(observed[name]), logged)
        return len(stayed) + self._side_by_side(lambda name: self._remove(observed[name]), names).count(False)

    def _is_unseen(self, item: _Observed) -> bool:
        """Whether GitHub, asked for it alone, calls it neither online nor busy: lists may lack a runner."""
        try:
            found = self._clients.github.find_runner(item.path, item.view.name)
        except GithubClientError as error:
            logger.warning("%s stays, GitHub does not say whether it is gone: %s", item.view.name, error)
            return False
        return not (found and (found.online or found.busy))

    def check_creation(self) -> None:
        """Raise what would keep a runner from being created and registered, before one is removed for it."""
        if self._hold:
            raise HostError(self._hold)
        self._check_registration()

    def _check_registration(self) -> None:
        self._clients.github.check_group(self._state.path)
        _ = self._registration_token

    @cached_property
    def _registration_token(self) -> str:
        """Fetched once, and only if a runner is created."""
        return self._clients.github.registration_token(self._state.path)

    def _is_proven(self) -> bool:
        """Whether a runner that was created just now comes online: only then are the other outdated ones replaced."""
        created = self.report.created[:1]

        def online() -> bool:
            found = self._clients.github.find_runner(self._state.path, created[0])
            return found is not None and found.online

        try:
            if created:
                wait_until(online, times.PROOF, f"{created[0]} online at GitHub", interval=2)
        except (LxdError, GithubClientError) as error:
            logger.warning("The other outdated runners are kept: %s", error)
            return False
        return bool(created)

    def _remove_others(self, plan: Plan, observed: dict[str, _Observed]) -> int:
        """Orphaned registrations, outdated and surplus idle runners; returns how many of the latter two stayed."""
        for name in plan.names(Reason.FORGOTTEN):
            self._remove(observed[name])
        names = plan.names(Reason.OUTDATED) + plan.names(Reason.SURPLUS) + plan.names(Reason.AGED)
        return self._side_by_side(lambda name: self._remove_idle(observed[name]), names).count(False)

    def _runner(self, item: _Observed) -> Runner:
        github = item.view.github
        noted = item.instance.config.get(f"{KEY}runner-id") if item.instance and item.here else None
        status = RunnerStatus(
            runner_id=github.runner_id if github else int(noted) if noted and noted.isdecimal() else None,
            exist=item.view.exists,
            online=bool(github and github.online),
            busy=item.view.busy,
        )
        return Runner(self._clients, self._config(item.view.name, item.path), status, item.instance)

    def _config(self, name: str, path: GithubPath) -> RunnerConfig:
        state = self._state
        return RunnerConfig(
            app_name=self._identity.app_name,
            issue_metrics=state.issue_metrics,
            labels=tuple(dict.fromkeys([self._identity.app_name, state.base_image.value, *state.labels])),
            lxd_storage_path=self._lxd_storage_path,
            name=name,
            path=path,
            proxies=state.proxies,
            dockerhub_mirror=state.dockerhub_mirror,
            ssh_debug_connections=state.ssh_debug_connections,
            github_url=state.github_url,
            ca_certificates=state.ca_certificates,
            allow_external_contributor=state.allow_external_contributor,
            container=state.test_mode,
            fingerprint=self._fingerprint,
        )

    def _pull_logs(self, item: _Observed) -> None:
        try:
            self._runner(item).pull_logs()
        except (RunnerLogsError, OSError) as error:
            logger.warning("%s", error)

    def _remove(self, item: _Observed) -> bool:
        """Whether it is gone; a registration alone does not count."""

        done = self._attempt(self._runner(item).remove)
        if done and item.instance is not None:
            self.report.removed.append(item.view.name)
        return done and item.instance is not None

    def _flush_one(self, item: _Observed) -> bool:
        """An idle one goes at once, GitHub first; one that has a job, or that GitHub cannot be asked for, in order."""
        if item.instance and item.view.github and item.view.github.online and not item.view.busy:
            with suppress(GithubRunnerError):
                if self._runner(item).remove_idle():
                    self.report.removed.append(item.view.name)
                    return True
        return self._remove(item)

    def _remove_idle(self, item: _Observed) -> bool:
        def remove() -> None:
            if self._runner(item).remove_idle():
                self.report.removed.append(item.view.name)

        self._attempt(remove)
        return item.view.name in self.report.removed

    def _create(self, number: int, resources: VirtualMachineResources) -> None:
        if number == 0:
            return
        config = CreateRunnerConfig(
            self._state.base_image.value,
            resources,
            self._application,
            self._registration_token,
            self._state.arch,
            self._in_image(),
        )
        names = [self._new_name() for _ in range(number)]
        made = self._side_by_side(lambda name: self._create_one(name, config), names)
        self._failed_creations += made.count(False)

    def _create_one(self, name: str, config: CreateRunnerConfig) -> bool:
        runner = Runner(self._clients, self._config(name, self._state.path), RunnerStatus())
        started = self._clock()

        def create() -> None:
            runner.create(config)
            self.report.created.append(name)
            if self._state.issue_metrics:
                now = self._clock()
                duration = max(0.0, now - started)
                self._issue(RunnerInstalled(timestamp=now, flavor=self._identity.app_name, duration=duration))

        return self._attempt(create)

    def _new_name(self) -> str:
        """``APP-UNIT-MODELHASH`` and 16 random hex digits, fewer, but 8 at least, where it would be too long."""
        return self._identity.prefix + secrets.token_hex(8)[: self._identity.random_digits]

    def _issue_metrics(self, observed: dict[str, _Observed]) -> int:
        """Hand over what finished runners left; returns the starts without a stop."""
        stored = [storage.runner_name for storage in self._storages.list_all()]
        alive = {name for name, item in observed.items() if item.view.exists} - set(self.report.removed)
        alive |= set(self.report.created)
        ours = {name for name in stored if self._identity.owns(name) or name in self._previous_volumes}
        ignored = {name for name in stored if name in alive or name not in ours}
        if not self._state.issue_metrics:
            self._drop_storages(set(stored) - ignored)
            return 0
        starts = stops = 0
        jobs = _Jobs(self._clients, self._state.path)
        found = extract(self._storages, ignored)
        for metrics in found:
            issued = issue_events(metrics, self._identity.app_name, jobs.look_up(metrics))
            starts, stops = starts + (RunnerStart in issued), stops + (RunnerStop in issued)
            if RunnerStart in issued and (RunnerStop in issued or metrics.post_job is None):
                continue
            if not log_is_writable():
                found.close()
                break
            quarantine(self._storages, metrics.runner_name)
        return starts - stops

    def _drop_storages(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self._storages.delete(name)
            except MetricsStorageError as error:
                logger.warning("%s", error)

    def _issue_reconciliation(self, plan: Plan, observed: dict[str, _Observed], crashed: int, started: float) -> None:
        if not self._state.issue_metrics:
            return
        now = self._clock()
        with _continuing("The event unit_health"):
            self._issue(
                UnitHealth(
                    timestamp=now,
                    flavor=self._identity.app_name,
                    wanted_runners=self.report.wanted,
                    failed_creations=self._failed_creations,
                    failed_starts=(self.report.failed_starts or FailedStarts()).count or None,
                    application_age=self._application_age(now),
                    image_age=self.report.image_age,
                    api_quota_left=self._clients.github.quota_left,
                )
            )
        with _continuing("The event reconciliation"):
            self._issue(
                Reconciliation(
                    timestamp=now,
                    flavor=self._identity.app_name,
                    crashed_runners=crashed,
                    idle_runners=self._idle_runners(plan, observed),
                    active_runners=len(self.report.busy),
                    expected_runners=self.report.wanted,
                    duration=max(0.0, now - started),
                )
            )

    def _idle_runners(self, plan: Plan, observed: dict[str, _Observed]) -> int:
        """Healthy runners without a job; GitHub's list may lack a runner for some minutes although it is ready."""
        healthy = {name for name, item in observed.items() if is_healthy(item.view)}
        gone = {*plan.busy, *dict(plan.remove), *self.report.removed}
        return len(healthy - gone) + len(self.report.created)

    def _application_age(self, now: float) -> float | None:
        with suppress(OSError):
            return max(0.0, now - self._application.stat().st_mtime)
        return None

    def _issue(self, event: Event) -> None:
        try:
            issue_event(event)
        except IssueMetricEventError as error:
            logger.error("%s", error)

    def _describe(self, plan: Plan, observed: dict[str, _Observed]) -> None:
        """Fill the report with the runners that are there now."""
        removed = set(self.report.removed)
        self.report.busy = [name for name in plan.busy if name not in removed]
        self.report.unknown_jobs = [name for name in plan.unknown_jobs if name not in removed]
        self.report.idle = [name for name in (*plan.idle, *self.report.created) if name not in removed]
        known = {*self.report.busy, *self.report.idle, *removed}
        self.report.other = [name for name, item in observed.items() if item.view.exists and name not in known]

    def _clean_profiles(self, plan: Plan, quantity: int, resources: VirtualMachineResources) -> None:
        """Remove the resource profiles that no instance uses and that are not today's, the previous charm's as well."""
        if not (plan.changes or self.report.removed or quantity == 0):
            return
        try:
            profiles.remove_unused_resources(self._clients.lxd, keep=resources.profile if quantity > 0 else None)
        except LxdError as error:
            logger.warning("Unused profiles were not removed: %s", error)

    def _wait_for_pre_job(self, observed: Iterable[_Observed]) -> None:
        """Wait while a pre-job script runs in any of them, for at most 150 s in all."""
        waiting = [item.instance for item in observed if item.instance and item.view.running]

        def over() -> bool:
            waiting[:] = [
                item for item, busy in zip(waiting, self._side_by_side(in_pre_job, waiting), strict=True) if busy
            ]
            return not waiting

        try:
            wait_until(over, PRE_JOB_LIMIT, "the end of all pre-job scripts", interval=1)
        except LxdError as error:
            logger.warning("%s; the flush goes on", error)

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Do one thing to one runner: what goes wrong with it is reported and does not stop the others."""
        try:
            action()
        except LxdNotFoundError:
            return True
        except (GithubRunnerError, OSError) as error:
            logger.error("%s", error)
            self.report.failures.append(str(error))
            return False
        return True

    def _side_by_side(self, action: Callable[[Item], Answer], items: list[Item]) -> list[Answer]:
        if len(items) < 2:
            return [action(item) for item in items]
        with ThreadPoolExecutor(max_workers=min(WORKERS, len(items))) as pool:
            return list(pool.map(action, items))


@contextmanager
def _continuing(what: str) -> Iterator[None]:
    """Log whatever is raised: the report and the events of a reconcile must not be lost for it."""
    try:
        yield
    except Exception:
        logger.exception("%s: failed, the reconcile continues", what)


def refusal(application: Path) -> str:
    """Why no runner is created while GitHub calls the runner binary's version deprecated."""
    version = application.name.removesuffix(".tar.gz").rsplit("-", 1)[-1]
    return (
        f"runner version {version} is deprecated by GitHub: one runner is tried after "
        f"{times.DEPRECATED_CANARY // times.MINUTE} minutes, the action update-dependencies tries at once"
    )


def failed_starts(found: FailedStarts, now: float) -> str:
    """Why and for how long creation pauses while runners end without a job."""
    times_in_a_row = f", {found.count} times in a row" if found.count > 1 else ""
    attempt = f"; next attempt in {wait:.0f} s" if (wait := found.wait(now)) else ""
    return f"runners ended without a job{times_in_a_row}: {found.reason}{attempt}"


class _Jobs:
    """Looks up the jobs that finished runners ran.

    No further job is looked up in this reconcile once GitHub does not answer, or the time is over. Repository and run
    are what the job wrote: only repositories that its runner served are asked for.
    """

    def __init__(self, clients: RunnerManagerClients, path: GithubPath) -> None:
        self._clients = clients
        self._path = path
        self._answering = True
        self._end = time.monotonic() + times.JOB_LOOK_UPS

    def look_up(self, metrics: RunnerMetrics) -> GithubJobMetrics | None:
        """The job's metrics, or None where there are none to be had."""
        left = self._end - time.monotonic()
        pre_job = metrics.pre_job
        if not self._answering or left <= 0 or not self._path.serves(pre_job.repository):
            return None
        try:
            job = self._clients.github.job(pre_job.repository, pre_job.workflow_run_id, metrics.runner_name, left)
            return job_metrics(job)
        except GithubClientError as error:
            logger.warning("The job of %s is not known: %s", metrics.runner_name, error)
            self._answering = not _is_outage(error)
            return None


def _is_outage(error: GithubClientError) -> bool:
    return isinstance(error, (TemporaryGithubError, RateLimitError))


def _may_be_gone(item: _Observed, now: float) -> bool:
    """Whether GitHub, where the runner registered, does not list it, although its creation ended a while ago.

    Where a worker runs, GitHub must have listed the runner before, and not have listed it for a while: a worker's word
    counts less only if GitHub has known the runner, and the end of a job takes a moment.
    """
    view = item.view
    settled = view.prepared and now - (view.prepared_at or view.created_at) > times.SETTLED
    unlisted = view.running and view.github is None and view.github_known and item.here
    over = view.seen_online and view.offline_since is not None and now - view.offline_since >= times.OFFLINE
    return settled and unlisted and (view.process is Process.RUNNING or (view.process is Process.WORKER and over))


def _failure(item: _Observed) -> str:
    """Why a runner's agent ended without a job."""
    words = last_words(item.instance) if item.instance is not None else ""
    logger.warning("%s: the runner agent ended without a job: %s", item.view.name, words)
    # GitHub lists the registration: the agent says otherwise if its signed request is from another time.
    skewed = re.search("registration has been deleted|clock", words)
    reason = "the clock of the runner differs from GitHub's: " if skewed else ""
    return reason + (words or "it printed nothing")


def _failed_unlisted(view: RunnerView) -> bool:
    """Whether a runner says that its agent ended without a job, and GitHub neither lists it nor was seen to list it."""
    return view.process is Process.FAILED and view.github is None and view.github_known and not view.seen_online


def _probe_one(item: _Observed) -> Process:
    return probe(item.instance) if item.instance is not None else Process.UNKNOWN


def _probed(item: _Observed, process: Process) -> _Observed:
    return replace(item, view=replace(item.view, process=process))


def _view(instance: LxdInstance, github: GithubRunner | None, github_known: bool) -> RunnerView:
    offline = instance.config.get(f"{KEY}offline-since")
    return RunnerView(
        name=instance.name,
        exists=True,
        running=instance.running,
        created_at=_number(instance.config.get(f"{KEY}created")) or 0.0,
        fingerprint=instance.config.get(f"{KEY}fingerprint", ""),
        prepared=f"{KEY}prepared" in instance.config or is_previous(instance),
        prepared_at=_number(instance.config.get(f"{KEY}prepared")) or 0.0,
        offline_since=_number(offline),
        seen_online=f"{KEY}online" in instance.config,
        github=github,
        github_known=github_known,
    )


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
