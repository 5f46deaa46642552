"""Reading answers of GitHub's service of runner scale sets. They are checked as if somebody hostile had written them.

The service has no public description; its contract is GitHub's own client (https://github.com/actions/scaleset).
"""

import base64
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

import redaction
from errors import GithubApiError, TemporaryGithubError
from gh import answers

logger = logging.getLogger(__name__)

# Of jobs and runners: what is larger is damage.
MOST = 100_000
# GitHub splits messages after 50 jobs.
MOST_JOBS = 1000
LARGEST_NUMBER = 2**63 - 1
# In characters. Workflow authors choose the names of jobs and labels.
TEXT_LIMIT = 256
# A set of this charm has up to 101 labels.
MOST_LABELS = 200
# Seconds that a token of the service is used for where it does not say for how long it is valid.
TOKEN_LIFE = 600.0
JOBS = "RunnerScaleSetJobMessages"
TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Statistics:
    """Jobs and runners of a set. ``assigned`` are all jobs that the set must provide runners for, running ones too."""

    available: int = 0
    acquired: int = 0
    assigned: int = 0
    running: int = 0
    registered: int = 0
    busy: int = 0
    idle: int = 0


@dataclass(frozen=True)
class ScaleSet:
    """A runner scale set."""

    set_id: int
    name: str
    group: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Session:
    """The right to get the messages of a set, from ``url`` and with ``token``."""

    id: str
    url: str
    token: str = field(repr=False)
    statistics: Statistics = Statistics()


@dataclass(frozen=True)
class Job:
    """What a message says of a job. ``kind`` is JobAvailable, JobAssigned, JobStarted or JobCompleted.

    ``id`` joins the messages of one job; ``request`` is what it is acquired by. Times are UNIX seconds, or None.
    """

    kind: str
    id: str
    request: int = 0
    run: int = 0
    name: str = ""
    labels: tuple[str, ...] = ()
    queued: float | None = None
    assigned: float | None = None
    started: float | None = None
    finished: float | None = None
    runner: str = ""
    result: str = ""


@dataclass(frozen=True)
class Message:
    """A message of a set's queue, with the statistics of its time; None where it has none that can be read."""

    message_id: int
    statistics: Statistics | None
    jobs: tuple[Job, ...]


def document(response: httpx2.Response) -> Any:
    """The JSON of an answer, which may begin with a byte order mark; None where there is none."""
    try:
        text = response.content.decode("utf-8-sig")
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        raise TemporaryGithubError(f"the answer is not JSON ({type(error).__name__})") from None


def values(answer: Any, read: Callable[[Any], Item]) -> list[Item]:
    """The items of a list such as ``{"count": 1, "value": [...]}``."""
    return [read(item) for item in answers.field(answer, "value", list)]


def number(item: Any, name: str, most: int = LARGEST_NUMBER) -> int:
    """A whole number from 0 to ``most``."""
    found: int = answers.field(item, name, int)
    if not 0 <= found <= most:
        raise GithubApiError(f"the answer has no valid {name}")
    return found


def requests(answer: Any) -> list[int]:
    """The numbers by which the jobs of a list are acquired; an entry without one is left out. Nothing is no job."""
    found = answers.field(answer, "value", list) if answer is not None else []
    numbers = [_small(item, "runnerRequestId") for item in found if isinstance(item, dict)]
    return list(filter(None, numbers))


def text(item: Any, name: str) -> str:
    """A text of one printable line without secrets, cut; empty where it is missing or something else."""
    found = item.get(name) if isinstance(item, dict) else None
    if not isinstance(found, str):
        return ""
    return "".join(char if char.isprintable() else " " for char in redaction.redact(found))[:TEXT_LIMIT]


def token(item: Any, name: str) -> str:
    """A token, which is masked from now on."""
    found: str = answers.field(item, name, str)
    if not TOKEN.fullmatch(found):
        raise TemporaryGithubError(f"the answer has no valid {name}")
    redaction.note_received(found)
    return found


def url(item: Any, name: str, schemes: tuple[str, ...]) -> str:
    """An address; an empty one was seen during an outage."""
    found: str = answers.field(item, name, str)
    try:
        parts = urlsplit(found)
        valid = parts.scheme in schemes and parts.hostname and parts.username is None and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or not re.fullmatch(r"[\x21-\x7e]{1,2048}", found):
        raise TemporaryGithubError(f"the answer has no valid {name}")
    return found


def life(admin_token: str) -> float:
    """Seconds for which a token of the service says that it is valid; TOKEN_LIFE where that cannot be read."""
    try:
        middle = admin_token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        return float(claims["exp"]) - time.time()
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return TOKEN_LIFE


def scale_set(item: Any) -> ScaleSet:
    """A set of a list, or the answer for one set."""
    labels = item.get("labels") if isinstance(item, dict) else None
    given = labels[:MOST_LABELS] if isinstance(labels, list) else []
    return ScaleSet(
        number(item, "id"),
        text(item, "name"),
        number(item, "runnerGroupId"),
        tuple(filter(None, (text(label, "name") for label in given))),
    )


def statistics(item: Any) -> Statistics:
    """The statistics of a session or a message; GithubApiError where they are missing."""
    found = answers.field(item, "statistics", dict)
    kinds = ("AvailableJobs", "AcquiredJobs", "AssignedJobs", "RunningJobs")
    runners = ("RegisteredRunners", "BusyRunners", "IdleRunners")
    return Statistics(*(number(found, f"total{kind}", MOST) for kind in (*kinds, *runners)))


def session(item: Any, schemes: tuple[str, ...]) -> Session:
    """A session that was opened or renewed."""
    id_ = text(item, "sessionId")
    if not re.fullmatch("[A-Za-z0-9-]{1,64}", id_):
        raise GithubApiError("the answer has no valid sessionId")
    return Session(id_, url(item, "messageQueueUrl", schemes), token(item, "messageQueueAccessToken"), statistics(item))


def message(item: Any) -> Message:
    """A message; one of another type has no jobs. GithubApiError where it has no valid id.

    What else is damaged is left out: a message that stayed in the queue would keep all later ones from being read.
    """
    message_id = number(item, "messageId")
    known: Statistics | None = None
    jobs: tuple[Job, ...] = ()
    try:
        known = statistics(item)
    except GithubApiError as error:
        logger.warning("Message %s: %s", message_id, error)
    kind = text(item, "messageType")
    if kind == JOBS:
        try:
            jobs = _jobs(item.get("body") or "[]")
        except GithubApiError as error:
            logger.warning("Message %s: %s", message_id, error)
    else:
        logger.warning("Message %s has the unknown type %r", message_id, kind)
    return Message(message_id, known, jobs)


def _jobs(body: Any) -> tuple[Job, ...]:
    """The entries of a message, which are JSON in a text."""
    try:
        entries = json.loads(body)
    except (ValueError, TypeError, RecursionError):
        raise GithubApiError("the message has no valid body") from None
    if not isinstance(entries, list) or len(entries) > MOST_JOBS:
        raise GithubApiError("the message has no valid list of jobs")
    return tuple(filter(None, map(_job, entries)))


def _job(item: Any) -> Job | None:
    """One entry of a message; None for one that cannot be joined with others."""
    kind, id_ = text(item, "messageType"), text(item, "jobId")
    if not id_:
        return None
    labels = item.get("requestLabels")
    given = labels[:MOST_LABELS] if isinstance(labels, list) else []
    return Job(
        kind,
        id_,
        _small(item, "runnerRequestId"),
        _small(item, "workflowRunId"),
        text(item, "jobDisplayName"),
        tuple(label[:TEXT_LIMIT] for label in given if isinstance(label, str)),
        queued=_time(item, "queueTime"),
        assigned=_time(item, "scaleSetAssignTime"),
        started=_time(item, "runnerAssignTime"),
        finished=_time(item, "finishTime"),
        runner=text(item, "runnerName"),
        result=text(item, "result"),
    )


def _small(item: dict[str, Any], name: str) -> int:
    found = item.get(name)
    return found if type(found) is int and 0 <= found <= LARGEST_NUMBER else 0


def _time(item: dict[str, Any], name: str) -> float | None:
    """UNIX seconds; None for a time that is missing, damaged or the zero time (year 1)."""
    try:
        found = answers.time(item, name)
        seconds = found.timestamp() if found else 0.0
    except (GithubApiError, OverflowError, ValueError):
        return None
    return seconds if seconds > 0 else None
