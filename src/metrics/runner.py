"""Runner metrics out of the metrics storage and into the log.

Every file read here was written by somebody else's code inside a runner.
"""

import json
import logging
import math
import os
import re
from collections.abc import Generator, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from errors import CorruptMetricDataError, IssueMetricEventError, MetricsStorageError
from metrics import events
from metrics.events import CodeInformation, Event, RunnerStart, RunnerStop
from metrics.storage import (
    FILE_SIZE_BYTES_LIMIT,
    MetricsStorage,
    StorageManager,
    move_to_quarantine,
    read_limited,
    recorded_flavor,
)
from metrics.type import GithubJobMetrics
from models import POST_JOB_METRICS_FILE_NAME, PRE_JOB_METRICS_FILE_NAME, RUNNER_INSTALLED_TS_FILE_NAME

__all__ = [
    "FILE_SIZE_BYTES_LIMIT",
    "POST_JOB_METRICS_FILE_NAME",
    "PRE_JOB_METRICS_FILE_NAME",
    "RUNNER_INSTALLED_TS_FILE_NAME",
    "CodeInformation",
    "PostJobMetrics",
    "PostJobStatus",
    "PreJobMetrics",
    "RunnerMetrics",
    "extract",
    "issue_events",
]

logger = logging.getLogger(__name__)

# The year 10000: beyond it no clock is right, and no float arithmetic surprises.
LATEST_TIMESTAMP = 253402300800
DEEPEST_NESTING = 16
TIMESTAMP = re.compile(rb"\s*[0-9]{1,12}(\.[0-9]{1,30})?\s*")
# GitHub's own characters; `\\Z` because `$` lets a newline pass.
REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}/(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,100}\Z"

Model = TypeVar("Model", bound=BaseModel)
Timestamp = Annotated[float, Field(ge=0, lt=LATEST_TIMESTAMP, allow_inf_nan=False)]


# The three models convert values of Python callers (a run id may be a number) and check what is assigned to a field.
# Files from inside a runner are read by `_parse`, which converts nothing.
class PreJobMetrics(BaseModel):
    """Contents of the file that the pre-job script writes when a job begins."""

    model_config = ConfigDict(validate_assignment=True, coerce_numbers_to_str=True, regex_engine="python-re")

    timestamp: Timestamp
    workflow: str
    workflow_run_id: str
    repository: Annotated[str, StringConstraints(pattern=REPOSITORY)]
    event: str


class PostJobStatus(str, Enum):
    """How the runner agent ended."""

    NORMAL = "normal"
    ABNORMAL = "abnormal"
    REPO_POLICY_CHECK_FAILURE = "repo-policy-check-failure"


class PostJobMetrics(BaseModel):
    """Contents of the file that is written when a job has ended."""

    model_config = ConfigDict(validate_assignment=True)

    timestamp: Timestamp
    status: PostJobStatus
    status_info: CodeInformation | None = None


class RunnerMetrics(BaseModel):
    """Metrics of one runner and its job."""

    model_config = ConfigDict(validate_assignment=True)

    installed_timestamp: Timestamp
    pre_job: PreJobMetrics
    post_job: PostJobMetrics | None = None
    runner_name: str
    flavor_name: str | None = None
    """None is the flavour ``default``."""


def extract(metrics_storage_manager: StorageManager, ignore_runners: set[str]) -> Generator[RunnerMetrics, None, None]:
    """Yield the metrics of every runner that is not ignored and ran a job, then remove its storage.

    The storage goes only when the consumer comes back for the next, so that a crash repeats an event and never
    loses one. One bad storage never stops the others.
    """
    for storage in _listed(metrics_storage_manager):
        if storage.runner_name in ignore_runners:
            continue
        metrics = None
        try:
            if not _issued_marker(storage).exists():
                metrics = _read_metrics(storage)
        except CorruptMetricDataError as error:
            logger.error("Metrics of %s are corrupt: %s", storage.runner_name, error)
            quarantine(metrics_storage_manager, storage.runner_name)
            continue
        except OSError as error:
            logger.error("Metrics storage of %s cannot be read: %s", storage.runner_name, error)
            continue
        if metrics is not None:
            yield metrics
        _remove(metrics_storage_manager, storage)


def _listed(manager: StorageManager) -> Iterator[MetricsStorage]:
    """One by one, for there may be thousands; a listing that fails is logged and ends there."""
    try:
        yield from manager.list_all()
    except (MetricsStorageError, OSError) as error:
        logger.error("Metrics storages cannot be listed: %s", error)


def quarantine(metrics_storage_manager: StorageManager, runner_name: str) -> None:
    """Archive and remove a storage whose metrics can never be issued; a failure is logged."""
    try:
        move_to_quarantine(metrics_storage_manager, runner_name)
    except (MetricsStorageError, OSError) as error:
        logger.error("Metrics storage of %s cannot be moved to quarantine: %s", runner_name, error)


def _issued_marker(storage: MetricsStorage) -> Path:
    """Beside the storage, where its runner cannot write."""
    path = Path(storage.path)
    return path.with_name(f".{path.name}.issued")


def _remove(manager: StorageManager, storage: MetricsStorage) -> None:
    """Remove a storage that was handed over; where that fails, note that it must not be issued again."""
    marker = _issued_marker(storage)
    try:
        manager.delete(storage.runner_name)
        marker.unlink(missing_ok=True)
    except (MetricsStorageError, OSError) as error:
        logger.error("Metrics storage of %s cannot be removed: %s", storage.runner_name, error)
        try:
            marker.touch()
        except OSError as second:
            logger.error("Metrics of %s may be issued again: %s", storage.runner_name, second)


def _read_metrics(storage: MetricsStorage) -> RunnerMetrics | None:
    """The storage's metrics, or None where no job began; CorruptMetricDataError says which rule was broken."""
    folder = Path(storage.path)
    os.listdir(folder)  # noqa: PTH208 - a storage that cannot be read at all is not an empty one
    pre_job = _parse(folder / PRE_JOB_METRICS_FILE_NAME, PreJobMetrics)
    installed = _read(folder / RUNNER_INSTALLED_TS_FILE_NAME)
    if pre_job is None or installed is None:
        return None
    if not TIMESTAMP.fullmatch(installed):
        raise CorruptMetricDataError(f"{RUNNER_INSTALLED_TS_FILE_NAME} is not a UNIX time")
    post_job = _parse(folder / POST_JOB_METRICS_FILE_NAME, PostJobMetrics)
    try:
        return RunnerMetrics(
            installed_timestamp=float(installed),
            pre_job=pre_job,
            post_job=post_job,
            runner_name=storage.runner_name,
            flavor_name=recorded_flavor(storage),
        )
    except ValidationError as error:
        raise CorruptMetricDataError(_first_error(RUNNER_INSTALLED_TS_FILE_NAME, error)) from None


def read_pre_job(storage: MetricsStorage) -> PreJobMetrics | None:
    """What a job wrote when it began, None where no job began; CorruptMetricDataError says which rule was broken."""
    return _parse(Path(storage.path) / PRE_JOB_METRICS_FILE_NAME, PreJobMetrics)


def _read(path: Path) -> bytes | None:
    """A file's bytes, None where there is none; anything but a regular file within the limit is corrupt."""
    try:
        data = read_limited(path, FILE_SIZE_BYTES_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptMetricDataError(
            f"{path.name} is not a readable regular file ({error.strerror or error})"
        ) from None
    if len(data) > FILE_SIZE_BYTES_LIMIT:
        raise CorruptMetricDataError(f"{path.name} is larger than {FILE_SIZE_BYTES_LIMIT} bytes")
    return data


def _parse(path: Path, model: type[Model]) -> Model | None:
    data = _read(path)
    if data is None:
        return None
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        _check_value(value)
    except (ValueError, RecursionError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise CorruptMetricDataError(f"{path.name} is not acceptable JSON: {reason}") from None
    if not isinstance(value, dict):
        raise CorruptMetricDataError(f"{path.name} is not a JSON object")
    try:
        # Strict, and from the value that was checked: two parsers may differ about the same bytes.
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise CorruptMetricDataError(_first_error(path.name, error)) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _check_value(value: Any, depth: int = 0) -> None:
    """ValueError for what pydantic would let pass: deep nesting, absurd numbers, lone surrogates."""
    if depth > DEEPEST_NESTING:
        raise ValueError(f"nested deeper than {DEEPEST_NESTING}")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a lone surrogate") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_value(key, depth + 1)
            _check_value(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, depth + 1)
    elif isinstance(value, (int, float)) and not abs(value) < LATEST_TIMESTAMP:
        raise ValueError("a number that is not finite or absurdly large")


def _first_error(file_name: str, error: ValidationError) -> str:
    """Where and why; never the value, which is somebody else's text."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{file_name}: {'.'.join(map(str, first['loc']))}: {first['msg']}"


def issue_events(runner_metrics: RunnerMetrics, flavor: str, job_metrics: GithubJobMetrics | None) -> set[type[Event]]:
    """Append ``RunnerStart`` and, after a job that ended, ``RunnerStop``; return what was really written.

    A failure is logged, not raised. No stop is written without its start.
    """
    issued: set[type[Event]] = set()
    for build in (_runner_start, _runner_stop):
        try:
            event = build(runner_metrics, flavor, job_metrics)
            if event is not None:
                events.issue_event(event)
                issued.add(type(event))
        except ValidationError as error:
            logger.error(
                "Event of %s is not valid: %s", runner_metrics.runner_name, _first_error(build.__name__, error)
            )
            break
        except IssueMetricEventError as error:
            logger.error("Event of %s was not issued: %s", runner_metrics.runner_name, error)
            break
    return issued


def _runner_start(metrics: RunnerMetrics, flavor: str, job: GithubJobMetrics | None) -> Event | None:
    pre_job = metrics.pre_job
    queue = job.queue_duration if job else None
    return RunnerStart(
        timestamp=pre_job.timestamp,
        flavor=flavor,
        flavor_name=metrics.flavor_name,
        workflow=pre_job.workflow,
        repo=pre_job.repository,
        github_event=pre_job.event,
        idle=_not_negative("idle", pre_job.timestamp - metrics.installed_timestamp, metrics.runner_name),
        queue_duration=None if queue is None else _not_negative("queue_duration", queue, metrics.runner_name),
    )


def _runner_stop(metrics: RunnerMetrics, flavor: str, job: GithubJobMetrics | None) -> Event | None:
    pre_job, post_job = metrics.pre_job, metrics.post_job
    if post_job is None:
        return None
    return RunnerStop(
        timestamp=post_job.timestamp,
        flavor=flavor,
        flavor_name=metrics.flavor_name,
        workflow=pre_job.workflow,
        repo=pre_job.repository,
        github_event=pre_job.event,
        status=post_job.status.value,
        status_info=post_job.status_info,
        job_duration=_not_negative("job_duration", post_job.timestamp - pre_job.timestamp, metrics.runner_name),
        job_conclusion=job.conclusion if job else None,
    )


def _not_negative(name: str, seconds: float, runner_name: str) -> float:
    """The clocks of runners and of GitHub differ, so that a duration may be negative."""
    if math.isnan(seconds) or seconds >= 0:
        return seconds
    logger.warning("%s of %s is negative (%s s); taken as 0", name, runner_name, seconds)
    return 0.0
