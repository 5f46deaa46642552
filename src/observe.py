"""What exists: LXD's instances and GitHub's runners, put together as the runners of this unit."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import known_jobs
import times
from engine.api import wait_until
from engine.instance import LxdInstance
from engine.probe import in_pre_job, is_previous, last_line, probe
from errors import CorruptMetricDataError, GithubClientError, LxdError, MetricsStorageError
from metrics.runner import PreJobMetrics, read_pre_job
from metrics.storage import StorageManager
from models import DEFAULT_FLAVOR, FLAVOR_NAME, GithubPath, GithubRunner, VirtualMachineResources, parse_github_path
from naming import (
    CREATED_KEY,
    FINGERPRINT_KEY,
    FLAVOR_KEY,
    OFFLINE_SINCE_KEY,
    ONLINE_KEY,
    PATH_KEY,
    PREPARED_KEY,
    RUNNER_ID_KEY,
    SCALE_SET_KEY,
    URL_KEY,
    Identity,
    binary_version,
)
from plan import may_have_job, needs_probe, report_may_count
from runner import RunnerManagerClients
from runner_view import Process, RunnerView
from system import in_parallel

logger = logging.getLogger(__name__)

# How long a flush waits for the end of all pre-job scripts, in seconds.
PRE_JOB_LIMIT = 150
# For how many runners GitHub is asked whether the report of their agent's end counts. Those of others do not count.
MOST_CONFIRMED = 20


@dataclass(frozen=True)
class ObservedRunner:
    """A runner as the plan sees it, with what is needed to change it."""

    view: RunnerView
    path: GithubPath
    instance: LxdInstance | None = None
    at_this_github: bool = True
    """Whether it is registered at the configured GitHub. At another GitHub its id is another runner's."""

    @property
    def recorded_id(self) -> int | None:
        """GitHub's number of the runner, by the instance's keys."""
        recorded = self.instance.config.get(RUNNER_ID_KEY, "") if self.instance and self.at_this_github else ""
        return int(recorded) if recorded.isdecimal() else None


@dataclass(frozen=True)
class Observation:
    """The runners of this unit by name.

    ``previous_volumes`` are the names of the metrics volumes that belong to runners of the previous charm.
    """

    runners: dict[str, ObservedRunner]
    previous_volumes: frozenset[str] = frozenset()
    others: tuple[VirtualMachineResources, ...] = ()
    """What the instances of other units on this machine were created with."""
    listed: bool = True
    """Whether GitHub's list of runners was read."""

    @property
    def views(self) -> list[RunnerView]:
        """The runners as the plan sees them."""
        return [item.view for item in self.runners.values()]

    def seen_as(self, views: Iterable[RunnerView]) -> "Observation":
        """The same runners with other views of them."""
        return replace(self, runners={view.name: replace(self.runners[view.name], view=view) for view in views})


class Observer:
    """Reads LXD and GitHub. ``url`` and ``path`` are the configured ones, ``clock`` gives UNIX seconds."""

    def __init__(
        self,
        identity: Identity,
        url: str,
        path: GithubPath,
        clients: RunnerManagerClients,
        storages: StorageManager,
        clock: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._url = url
        self._path = path
        self._clients = clients
        self._storages = storages
        self._clock = clock

    def observe(self, github_needed: bool = True) -> Observation:
        """One list of LXD, one list of GitHub for each path, and the health probes that the plan needs.

        LxdError; GithubClientError if the runners of the configured path cannot be listed and ``github_needed``.
        """
        instances, previous_volumes, others = self._instances()
        paths = {self._path_of(instance) for instance in instances.values()}
        is_managed = self._selector(instances.keys() | previous_volumes)
        listed = self._list_github(paths - {None}, is_managed, github_needed)
        runners = {name: self._observed(instance, listed) for name, instance in instances.items()}
        for name, registration in (listed.get(self._path) or {}).items():
            if name not in instances:
                view = RunnerView(name, exists=False, github=registration)
                runners[name] = ObservedRunner(view, self._path)
        return Observation(_probed(runners), previous_volumes, others)

    def instances(self) -> Observation:
        """One list of LXD. GitHub is not asked, and no health probe is run."""
        instances, previous_volumes, others = self._instances()
        runners = {name: self._observed(instance, {}) for name, instance in instances.items()}
        return Observation(runners, previous_volumes, others, listed=False)

    def probed(self, observation: Observation) -> Observation:
        """The same runners with a health probe of those whose state GitHub's list does not settle."""
        return replace(observation, runners=_probed(observation.runners))

    def confirmed(self, observation: Observation) -> Observation:
        """The same runners, with what is known of those that report the end of their agent without a job.

        The list was read before the health probe, and in between a job may have come and faked the report. So GitHub is
        asked again for each runner whose report may count. GitHub's messages may name its job, too.
        """
        reported, now = known_jobs.load(self._identity.unit), self._clock()
        kinds = (Process.FAILED, Process.DEPRECATED)
        ended = [item for item in observation.runners.values() if item.view.process in kinds]
        found = [_with_job(item) if item.view.name in reported else item for item in ended]
        asked = [item for item in found if report_may_count(item.view, now)][:MOST_CONFIRMED]
        newest = {item.view.name: item for item in (*found, *in_parallel(self._confirmed, asked))}
        return replace(observation, runners={**observation.runners, **newest})

    def _confirmed(self, item: ObservedRunner) -> ObservedRunner:
        try:
            github = self._clients.github.find_runner(item.path, item.view.name)
        except GithubClientError as error:
            logger.warning(
                "What %s reports of its agent's end does not count, because GitHub cannot be asked for the runner: %s",
                item.view.name,
                error,
            )
            return item
        if github is None:
            # As at the end of a job: GitHub had the registration a moment ago.
            return _with_job(item)
        return replace(item, view=replace(item.view, github=github, confirmed=github == item.view.github))

    def any_busy(self, runners: Iterable[ObservedRunner]) -> bool:
        """Whether a job may run in any instance, by GitHub's list or by a health probe of each running instance."""
        now = self._clock()
        running = [item for item in runners if item.instance and item.view.running]
        processes = in_parallel(probe_runner, running)
        probed = [
            item if item.view.busy else _with_process(item, process)
            for item, process in zip(running, processes, strict=True)
        ]
        return any(may_have_job(item.view, now) for item in probed)

    def without_registration(self, runners: dict[str, ObservedRunner], now: float) -> dict[str, ObservedRunner]:
        """Runners whose registration GitHub has deleted, marked as gone: they can never get a job.

        A registration is deleted at the end of a job, too: these runners are given the time to power off.
        """
        unlisted = [item for item in runners.values() if _may_be_gone(item, now)]
        answers = in_parallel(self._registration_is_gone, unlisted)
        gone = [item for item, is_gone in zip(unlisted, answers, strict=True) if is_gone]
        if not gone:
            return {}
        time.sleep(times.POWER_OFF)
        processes = in_parallel(probe_runner, gone)
        hung = [item for item, process in zip(gone, processes, strict=True) if process is item.view.process]
        return {item.view.name: replace(item, view=replace(item.view, gone=True)) for item in hung}

    def version_is_deprecated(self, runners: Iterable[ObservedRunner], binary: str) -> bool | None:
        """Whether GitHub refuses the version of a runner binary. It is asked if a runner reports that it ended for it.

        None where GitHub does not answer. ``binary`` is the file's name.
        """
        if not any(item.view.process is Process.DEPRECATED for item in runners):
            return None
        try:
            return self._clients.github.is_deprecated(self._path, binary_version(binary))
        except GithubClientError as error:
            logger.warning("GitHub is not asked for the version of the runner binary: %s", error)
            return None

    def was_dropped(self, item: ObservedRunner, now: float) -> bool:
        """Whether GitHub has deleted the registration of a runner that was ready for a while: it is replaced quietly.

        GitHub may drop an idle runner within minutes (https://github.com/actions/runner/issues/4726). A registration
        that is gone at once is a failure, and so are several such runners in a row.
        """
        if item.view.github is not None:
            return False
        dropped = _is_settled(item.view, now) and self._registration_is_gone(item)
        if dropped:
            logger.info("%s had no job, and GitHub has deleted its registration: it is replaced", item.view.name)
        return dropped

    def is_offline(self, item: ObservedRunner) -> bool:
        """Whether GitHub, asked for this runner alone, lists it neither as online nor as busy.

        A list of all runners may lack one. False if GitHub does not answer.
        """
        try:
            found = self._clients.github.find_runner(item.path, item.view.name)
        except GithubClientError as error:
            logger.warning("%s is kept, because GitHub cannot be asked for it: %s", item.view.name, error)
            return False
        return not (found and (found.online or found.busy))

    def job_of(self, item: ObservedRunner) -> PreJobMetrics | None:
        """What the job in an instance says of itself, by the file that the pre-job script wrote.

        None if no job began, without metrics, and if the file breaks a rule or names a repository that the runner does
        not serve: the job can write it.
        """
        if not item.view.running:
            return None
        try:
            job = read_pre_job(self._storages.get(item.view.name))
        except MetricsStorageError:
            return None
        except (CorruptMetricDataError, OSError) as error:
            logger.warning("The job of %s is not known: %s", item.view.name, error)
            return None
        return job if job is not None and item.path.serves(job.repository) else None

    def _observed(
        self, instance: LxdInstance, listed: Mapping[GithubPath, Mapping[str, GithubRunner]]
    ) -> ObservedRunner:
        """An instance, and what GitHub lists of it."""
        path = self._path_of(instance)
        known = listed.get(path) if path is not None else None
        view = _view(instance, (known or {}).get(instance.name), known is not None)
        return ObservedRunner(view, path or self._path, instance, at_this_github=path is not None)

    def _instances(self) -> tuple[dict[str, LxdInstance], frozenset[str], tuple[VirtualMachineResources, ...]]:
        """This unit's instances by name, with those of the previous charm, and the previous charm's metrics volumes.

        The last part of the result is what the instances of other units were created with.

        A metrics volume with a name of the previous charm is one of its volumes, unless an instance of this charm (a
        unit of another model) has that name.
        """
        found = {item.name: item for item in self._clients.lxd.instances()}
        managed = {name: item for name, item in found.items() if self._is_managed(item)}
        volumes = {storage.runner_name for storage in self._storages.list_all()} - (found.keys() - managed.keys())
        sizes = (VirtualMachineResources.of_profiles(found[name].profiles) for name in found.keys() - managed.keys())
        return managed, frozenset(filter(self._identity.may_be_previous, volumes)), tuple(filter(None, sizes))

    def _is_managed(self, instance: LxdInstance) -> bool:
        """Whether an instance is this unit's by its name, or one that the previous charm made for this unit."""
        if self._identity.manages(instance.name):
            return True
        return self._identity.may_be_previous(instance.name) and is_previous(instance)

    def _selector(self, known: Iterable[str]) -> Callable[[str], bool]:
        """Which names at GitHub are this unit's.

        A name of the previous charm counts only if this machine has an instance or a metrics volume of exactly that
        name: the runners of another model may have the same prefix and as many digits.
        """
        names = frozenset(known)
        return lambda name: name in names or self._identity.manages(name)

    def _path_of(self, instance: LxdInstance) -> GithubPath | None:
        """Where an instance is registered; None if the configured GitHub cannot be asked for it."""
        path = instance.config.get(PATH_KEY, "")
        if instance.config.get(URL_KEY, self._url) != self._url:
            return None
        if not path or path == self._path.path:
            return self._path
        try:
            return parse_github_path(path)
        except ValueError:
            return None

    def _list_github(
        self, paths: Iterable[GithubPath | None], is_managed: Callable[[str], bool], needed: bool
    ) -> dict[GithubPath, dict[str, GithubRunner]]:
        """This unit's runners by path and name. A path that is not the configured one is left out if it fails."""
        listed: dict[GithubPath, dict[str, GithubRunner]] = {}
        for path in [self._path, *(path for path in paths if path and path != self._path)]:
            try:
                runners = self._clients.github.list_runners(path, is_managed)
                listed[path] = {runner.name: runner for runner in runners}
            except GithubClientError as error:
                if needed and path == self._path:
                    raise
                logger.warning("The runners of %s are not listed: %s", path.path, error)
        return listed

    def _registration_is_gone(self, item: ObservedRunner) -> bool:
        recorded = item.recorded_id
        try:
            return recorded is not None and self._clients.github.runner_is_gone(item.path, recorded)
        except GithubClientError as error:
            logger.warning("GitHub cannot be asked for %s by its id: %s", item.view.name, error)
            return False


def end_of_agent(item: ObservedRunner) -> str:
    """Why a runner's agent ended without a job, by the last line that it printed, which is logged."""
    words = last_line(item.instance) if item.instance is not None else ""
    logger.warning("%s: the runner agent ended without a job: %s", item.view.name, words)
    # GitHub lists the registration: the agent contradicts that if its signed request is from another time.
    skewed = re.search("registration has been deleted|clock", words)
    reason = "the clock of the runner differs from GitHub's: " if skewed else ""
    return reason + (words or "it printed nothing")


def wait_for_pre_job(runners: Iterable[ObservedRunner]) -> None:
    """Wait while a pre-job script runs in any of the runners, for at most 150 seconds in all."""
    waiting = [item.instance for item in runners if item.instance and item.view.running]

    def over() -> bool:
        running = in_parallel(in_pre_job, waiting)
        waiting[:] = [item for item, runs in zip(waiting, running, strict=True) if runs]
        return not waiting

    try:
        wait_until(over, PRE_JOB_LIMIT, "the end of all pre-job scripts", interval=1)
    except LxdError as error:
        logger.warning("%s; the flush goes on", error)


def probe_runner(item: ObservedRunner) -> Process:
    """What runs in a runner's instance; UNKNOWN if it has none."""
    return probe(item.instance) if item.instance is not None else Process.UNKNOWN


def _probed(runners: dict[str, ObservedRunner]) -> dict[str, ObservedRunner]:
    """The runners, with a health probe of those whose state GitHub's list does not settle."""
    names = [name for name, item in runners.items() if needs_probe(item.view)]
    processes = in_parallel(lambda name: probe_runner(runners[name]), names)
    found = zip(names, processes, strict=True)
    return {**runners, **{name: _with_process(runners[name], process) for name, process in found}}


def _with_process(item: ObservedRunner, process: Process) -> ObservedRunner:
    return replace(item, view=replace(item.view, process=process))


def _with_job(item: ObservedRunner) -> ObservedRunner:
    """A runner that has had a job: GitHub must have listed it as online for that."""
    return replace(item, view=replace(item.view, seen_online=True))


def _is_settled(view: RunnerView, now: float) -> bool:
    """Whether the creation ended so long ago that GitHub finds the runner by its id."""
    return view.prepared and now - (view.prepared_at or view.created_at) > times.SETTLED


def _may_be_gone(item: ObservedRunner, now: float) -> bool:
    """Whether GitHub does not list a runner, although its creation ended a while ago.

    If a worker runs, GitHub must not have listed the runner for a while: the end of a job takes a moment. Also a worker
    that a job has faked proves that GitHub has listed the runner before.
    """
    view = item.view
    unlisted = view.running and view.github is None and view.github_known and item.at_this_github
    over = view.offline_since is not None and now - view.offline_since >= times.OFFLINE
    return (
        _is_settled(view, now)
        and unlisted
        and (view.process is Process.RUNNING or (view.process is Process.WORKER and over))
    )


def _view(instance: LxdInstance, github: GithubRunner | None, github_known: bool) -> RunnerView:
    scale_set = instance.config.get(SCALE_SET_KEY, "")
    return RunnerView(
        name=instance.name,
        exists=True,
        running=instance.running,
        created_at=_number(instance.config.get(CREATED_KEY)) or 0.0,
        fingerprint=instance.config.get(FINGERPRINT_KEY, ""),
        prepared=PREPARED_KEY in instance.config or is_previous(instance),
        prepared_at=_number(instance.config.get(PREPARED_KEY)) or 0.0,
        offline_since=_number(instance.config.get(OFFLINE_SINCE_KEY)),
        seen_online=ONLINE_KEY in instance.config,
        github=github,
        github_known=github_known,
        flavor=_flavor(instance.config.get(FLAVOR_KEY, "")),
        scale_set=int(scale_set) if scale_set.isascii() and scale_set.isdecimal() else None,
        resources=VirtualMachineResources.of_profiles(instance.profiles),
    )


def _flavor(recorded: str) -> str:
    """The flavour that an instance records; an instance of an earlier version records none."""
    return recorded if FLAVOR_NAME.fullmatch(recorded) else DEFAULT_FLAVOR


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
