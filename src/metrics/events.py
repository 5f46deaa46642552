"""Events, one JSON object per line of the metrics log. docs/reference/events.md has them."""

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from errors import IssueMetricEventError

METRICS_LOG_PATH = Path("/var/log/github-runner-metrics.log")
# Bytes. With less free space on its disk, the log does not count as writable.
ROOM = 1 << 16
# Several threads write events: without the lock, removing an incomplete line could remove another thread's line, too.
_LOCK = threading.Lock()
# The unit whose events are written. A module variable and not a context variable: events are written from the threads
# of a pool, too.
_unit: str | None = None


class Event(BaseModel):
    """Fields of every event; ``timestamp`` is UNIX seconds, durations are seconds.

    ``event`` is the class's name in snake case, unless another name is given.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    timestamp: float = Field(ge=0)
    event: str = Field(default="", min_length=1)

    @property
    def name(self) -> str:
        """The class's name in snake case."""
        return _snake_case(type(self).__name__)

    @model_validator(mode="before")
    @classmethod
    def _add_name(cls, values: Any) -> Any:
        return {"event": _snake_case(cls.__name__), **values} if isinstance(values, dict) else values


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class RunnerInstalled(Event):
    """A runner was made in ``duration`` seconds."""

    flavor: str
    flavor_name: str | None = None
    duration: float = Field(ge=0)


class RunnerStart(Event):
    """A runner began a job after being ``idle`` for so long.

    ``queue_duration`` is the time between the queueing of the job and its start, as GitHub gives it.
    """

    flavor: str
    flavor_name: str | None = None
    workflow: str
    repo: str
    github_event: str
    idle: float = Field(ge=0)
    queue_duration: float | None = Field(default=None, ge=0)


class CodeInformation(BaseModel):
    """Why a job ended: the HTTP code of a policy check, or the exit code of a program."""

    code: int


class RunnerStop(Event):
    """A runner ended its job.

    ``status`` is ``normal``, ``repo-policy-check-failure`` if a check refused the job (with the HTTP code), or
    ``abnormal`` if the runner agent failed, or the script of the option ``pre-job-script`` (with the exit code).
    ``job_conclusion`` is GitHub's.
    """

    flavor: str
    flavor_name: str | None = None
    workflow: str
    repo: str
    github_event: str
    status: str
    status_info: CodeInformation | None = None
    job_duration: float = Field(ge=0)
    job_conclusion: str | None = None


class Reconciliation(Event):
    """One reconcile and one flavour of runners: a reconcile writes an event for each flavour.

    All numbers but ``duration``, which is that of the whole reconcile, are those of the flavour.
    ``crashed_runners`` counts the runners that started a job and left no result. If GitHub has sent a message that the
    job succeeded, or that its runner was lost, the message decides. ``idle_runners`` counts the healthy runners without
    a job, also those that GitHub does not list at the moment. ``active_runners`` run a job. ``expected_runners`` is the
    configured number, or with ``scaling=demand`` the number that jobs and ``min-idle`` ask for, less the runners that
    wait for room on the machine. ``expected_idle_runners`` of them are for no job that is known: all of a configured
    number, or those of ``min-idle``.
    """

    flavor: str
    flavor_name: str | None = None
    crashed_runners: int
    idle_runners: int
    active_runners: int | None = None
    expected_runners: int | None = None
    expected_idle_runners: int | None = None
    duration: float = Field(ge=0)


class UnitHealth(Event):
    """What a reconcile knows beyond its runners.

    ``failed_starts`` counts the reconciles in a row that found runners whose agent had ended without a job; it is
    missing if there is none. Runners whose registration GitHub has deleted count from the third reconcile on.

    Ages are seconds: since GitHub last offered the runner binary in use, and since the image was built. The quota is
    that of the token's account or of the App's installation, in requests.
    """

    flavor: str
    wanted_runners: int
    failed_creations: int
    failed_starts: int | None = None
    application_age: float | None = Field(default=None, ge=0)
    image_age: float | None = Field(default=None, ge=0)
    api_quota_left: int | None = None


@contextmanager
def written_by(unit: str) -> Iterator[None]:
    """Add the field ``unit`` to every event that is issued in this context."""
    global _unit
    before, _unit = _unit, unit
    try:
        yield
    finally:
        _unit = before


def issue_event(event: Event) -> None:
    """Append the event's line to the log, whole or not at all; IssueMetricEventError otherwise."""
    data = {"event": event.event, **event.model_dump(mode="json", exclude_none=True)}
    if _unit is not None:
        data["unit"] = _unit
    line = (json.dumps(data, allow_nan=False) + "\n").encode()
    try:
        with _LOCK:
            _append(line)
    except OSError as error:
        raise IssueMetricEventError(f"cannot write {event.event} to {METRICS_LOG_PATH}: {error}") from error


def _append(line: bytes) -> None:
    handle = os.open(METRICS_LOG_PATH, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        start = os.fstat(handle).st_size
        if os.write(handle, line) != len(line):
            os.ftruncate(handle, start)
            raise OSError("the disk took a part of the line only")
    finally:
        os.close(handle)


def log_is_writable() -> bool:
    """Whether the log can be written now. If it can, an event that failed is not valid and fails each time."""
    try:
        with METRICS_LOG_PATH.open("ab") as log:
            disk = os.fstatvfs(log.fileno())
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize >= ROOM
