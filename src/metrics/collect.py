"""The events of a unit: those of finished runners out of their metrics storages, and those of each reconcile."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

import known_jobs
import telemetry
import times
from errors import GithubClientError, IssueMetricEventError, MetricsStorageError, RateLimitError, TemporaryGithubError
from gh.client import GithubClient
from known_jobs import ABANDONED, KnownJob
from metrics.events import (
    Event,
    Reconciliation,
    RunnerInstalled,
    RunnerStart,
    RunnerStop,
    UnitHealth,
    issue_event,
    log_is_writable,
)
from metrics.github import job_metrics
from metrics.runner import RunnerMetrics, extract, issue_events, quarantine
from metrics.storage import StorageManager
from metrics.type import GithubJobMetrics
from models import DEFAULT_FLAVOR, FailedStarts, GithubPath
from naming import Identity
from telemetry import Counts, Gauges, Measurement

logger = logging.getLogger(__name__)


class Collector:
    """Issues the events of a unit. Without ``enabled`` it issues none, and removes metrics storages unread."""

    def __init__(
        self, identity: Identity, path: GithubPath, github: GithubClient, storages: StorageManager, *, enabled: bool
    ) -> None:
        self._identity = identity
        self._path = path
        self._github = github
        self._storages = storages
        self._enabled = enabled

    def installed(self, started: float, now: float, flavor: str = DEFAULT_FLAVOR) -> None:
        """Issue the event of a runner of a flavour whose creation started and ended at these UNIX times."""
        duration = max(0.0, now - started)
        telemetry.measure(self._identity.unit, Measurement("creation", flavor, duration))
        self._issue(lambda app: RunnerInstalled(timestamp=now, flavor=app, flavor_name=flavor, duration=duration))

    def failed(self, step: str, flavor: str) -> None:
        """Count a creation of a runner that failed in a step."""
        telemetry.measure(self._identity.unit, Measurement(telemetry.FAILURE, flavor, step=step))

    def figures(
        self,
        started: float,
        now: float,
        flavors: Mapping[str, Counts],
        binary: Path,
        image: float | None,
        *,
        listed: bool = True,
    ) -> None:
        """Record what a reconcile, which started and ended at these UNIX times, found; ``image`` is the image's age.

        Where it was not ``listed`` what GitHub has, GitHub may not have been asked: what was left before still counts.
        """
        age = _age(binary, now)
        quota = self._github.quota_left
        if quota is None and not listed:
            before = telemetry.load(self._identity.unit)
            quota = before.quota_left if before else None
        gauges = Gauges(
            now,
            flavors,
            quota_left=quota,
            binary_time=None if age is None else now - age,
            image_time=None if image is None else now - image,
        )
        telemetry.save(self._identity.unit, gauges)
        took = max(0.0, now - started)
        telemetry.measure(self._identity.unit, *(Measurement("reconcile", flavor, took) for flavor in flavors))

    def finished(self, existing: AbstractSet[str], previous_volumes: AbstractSet[str]) -> Counter[str]:
        """Issue the events of runners that do not exist any more, and remove their metrics storages.

        ``previous_volumes`` are the storages of runners of the previous charm. Returns how many runners of each flavour
        crashed in a job.
        """
        stored = {storage.runner_name for storage in self._storages.list_all()}
        managed = {name for name in stored if self._identity.manages(name) or name in previous_volumes}
        finished = managed - existing
        if not self._enabled:
            self._drop(finished)
            return Counter()
        crashed: Counter[str] = Counter()
        jobs = Jobs(self._github, self._path, known_jobs.load(self._identity.unit))
        found = extract(self._storages, stored - finished)
        for metrics in found:
            metrics.flavor_name = metrics.flavor_name or DEFAULT_FLAVOR
            job = jobs.look_up(metrics)
            issued = issue_events(metrics, self._identity.app_name, job)
            known = jobs.known(metrics)
            self._observe_job(metrics, job, known.duration, issued)
            if _has_crashed(known, issued):
                crashed[metrics.flavor_name] += 1
            if RunnerStart in issued and (RunnerStop in issued or metrics.post_job is None):
                continue
            if not log_is_writable():
                # The storage stays, because `extract` is not asked for the next one: its events are issued later.
                found.close()
                break
            quarantine(self._storages, metrics.runner_name)
        return crashed

    def _observe_job(
        self,
        metrics: RunnerMetrics,
        job: GithubJobMetrics | None,
        duration: float | None,
        issued: AbstractSet[type[Event]],
    ) -> None:
        """Record the durations of the events that were issued; ``duration`` is GitHub's of the job, in seconds."""
        found = []
        flavor = metrics.flavor_name or DEFAULT_FLAVOR
        queue = job.queue_duration if job is not None else None
        if queue is not None and RunnerStart in issued:
            found.append(Measurement("queue", flavor, max(0.0, queue)))
        if metrics.post_job is not None and RunnerStop in issued:
            taken = metrics.post_job.timestamp - metrics.pre_job.timestamp if duration is None else duration
            found.append(Measurement("job", flavor, max(0.0, taken)))
        telemetry.measure(self._identity.unit, *found)

    def unit_health(
        self,
        now: float,
        *,
        wanted: int,
        failed_creations: int,
        failed_starts: FailedStarts | None,
        binary: Path,
        image_age: float | None,
    ) -> None:
        """Issue the event of the unit's state after a reconcile; ``binary`` is the runner binary in use."""
        self._issue(
            lambda flavor: UnitHealth(
                timestamp=now,
                flavor=flavor,
                wanted_runners=wanted,
                failed_creations=failed_creations,
                failed_starts=failed_starts.count or None if failed_starts else None,
                application_age=_age(binary, now),
                image_age=image_age,
                api_quota_left=self._github.quota_left,
            )
        )

    def reconciliation(
        self,
        started: float,
        now: float,
        *,
        crashed: int,
        idle: int,
        active: int,
        wanted: int | None,
        spare: int | None = None,
        flavor: str = DEFAULT_FLAVOR,
    ) -> None:
        """Issue the event of a flavour in a reconcile that started and ended at these UNIX times.

        ``spare`` of the ``wanted`` runners are for no job that is known. None is a number that is not known.
        """
        self._issue(
            lambda app: Reconciliation(
                timestamp=now,
                flavor=app,
                flavor_name=flavor,
                crashed_runners=crashed,
                idle_runners=idle,
                active_runners=active,
                expected_runners=wanted,
                expected_idle_runners=spare,
                duration=max(0.0, now - started),
            )
        )

    def _issue(self, event: Callable[[str], Event]) -> None:
        """Issue an event, which gets the application's name; a line that cannot be written is logged."""
        if not self._enabled:
            return
        try:
            issue_event(event(self._identity.app_name))
        except IssueMetricEventError as error:
            logger.error("%s", error)

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self._storages.delete(name)
            except MetricsStorageError as error:
                logger.warning("%s", error)


def _age(binary: Path, now: float) -> float | None:
    with suppress(OSError):
        return max(0.0, now - binary.stat().st_mtime)
    return None


def _has_crashed(job: KnownJob, issued: AbstractSet[type[Event]]) -> bool:
    """Whether a runner started a job and left no result.

    GitHub's message counts if it reports that the runner was lost, or that the job succeeded: a job can write a result,
    or remove it.
    """
    if RunnerStart not in issued or job.conclusion == "success":
        return False
    return job.result == ABANDONED or RunnerStop not in issued


class Jobs:
    """Finds the jobs that finished runners ran: in messages that have come, else by REST, at ``path`` or below it.

    The limit of time is for all look-ups of a reconcile. After it, and after an outage of GitHub, no further job is
    looked up. Repository and run are what the job wrote: only repositories that its runner served are asked for.
    """

    def __init__(self, github: GithubClient, path: GithubPath, reported: Mapping[str, KnownJob]) -> None:
        self._github = github
        self._path = path
        self._reported = reported
        self._answering = True
        self._end = time.monotonic() + times.JOB_LOOK_UPS

    def known(self, metrics: RunnerMetrics) -> KnownJob:
        """What messages reported of the job of a runner; nothing is known of it where none has come."""
        return self._reported.get(metrics.runner_name, KnownJob())

    def look_up(self, metrics: RunnerMetrics) -> GithubJobMetrics | None:
        """GitHub's metrics of the job, or None if they are not available.

        The runner may have ended before the message of its job's end came. No reconcile waits for the message.
        """
        known = self.known(metrics)
        queue, conclusion = known.queue_duration, known.conclusion
        asked = None if queue is not None and conclusion else self._ask(metrics)
        if asked is not None:
            queue = asked.queue_duration if queue is None else queue
            conclusion = conclusion or asked.conclusion
        return None if queue is None and conclusion is None else GithubJobMetrics(queue, conclusion)

    def _ask(self, metrics: RunnerMetrics) -> GithubJobMetrics | None:
        left = self._end - time.monotonic()
        pre_job = metrics.pre_job
        if not self._answering or left <= 0 or not self._path.serves(pre_job.repository):
            return None
        try:
            job = self._github.job(pre_job.repository, pre_job.workflow_run_id, metrics.runner_name, left)
            return job_metrics(job)
        except GithubClientError as error:
            logger.warning("The job of %s is not known: %s", metrics.runner_name, error)
            self._answering = not isinstance(error, (TemporaryGithubError, RateLimitError))
            return None
