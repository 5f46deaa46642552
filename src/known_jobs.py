"""What GitHub's messages reported about jobs of a unit's runners: one JSON file below /run, which may be missing.

The unit's agent writes it; a reconcile reads it once a runner has ended. The times and the result are GitHub's, and not
those that a job could write.
"""

import json
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import telemetry
from gh.scale_set_answers import LARGEST_NUMBER, TEXT_LIMIT, Job
from system import remove_files, write_file
from telemetry import Measurement

logger = logging.getLogger(__name__)

# The most runners in one file, and for how many seconds a job is kept after its last message, if it has ended. A
# reconcile asks GitHub's REST API for a job that is not in the file any more.
MOST, LIFE = 500, 86400.0
# The same for a job without an end. GitHub ends one on a self-hosted runner after 5 days
# (https://docs.github.com/en/actions/reference/limits); the message of its end would count its time in the queue again.
UNFINISHED_LIFE = 6 * 86400.0
# GitHub ends a workflow run after 35 days (https://docs.github.com/en/actions/reference/limits). In seconds.
LONGEST = 35 * 86400.0
# The results of messages, as the REST API names them. Another result is not known.
CONCLUSIONS = {"succeeded": "success", "failed": "failure", "canceled": "cancelled", "skipped": "skipped"}
# The result of a job whose runner was lost.
ABANDONED = "abandoned"
KINDS = ("JobStarted", "JobCompleted")


@dataclass(frozen=True)
class KnownJob:
    """The job of one runner. Times are UNIX seconds, None where no message had one that can be read."""

    job: str = ""
    """GitHub's id of the job in messages, which is not that of the REST API."""
    run: int = 0
    """The workflow run's id; 0 if it is not known."""
    queued: float | None = None
    started: float | None = None
    finished: float | None = None
    result: str = ""
    """One of CONCLUSIONS or ABANDONED; empty before the end, and for another result."""
    noted: float = 0.0
    """When the last message came."""

    @property
    def has_ended(self) -> bool:
        """Whether a message reported the job's end."""
        return self.finished is not None or self.result != ""

    @property
    def queue_duration(self) -> float | None:
        """Seconds from the queueing to the start; None if a time is missing, or the times contradict each other."""
        return _between(self.queued, self.started)

    @property
    def duration(self) -> float | None:
        """Seconds from the start to the end; None as for ``queue_duration``."""
        return _between(self.started, self.finished)

    @property
    def conclusion(self) -> str | None:
        """How the job ended, in the REST API's words; None if that is not known."""
        return CONCLUSIONS.get(self.result)


def _between(begin: float | None, end: float | None) -> float | None:
    if begin is None or end is None or not 0 <= end - begin <= LONGEST:
        return None
    return end - begin


class KnownJobs:
    """The jobs of a unit, in its agent. Several threads use it; what a former process wrote is kept."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._lock = threading.Lock()
        self._jobs = load(unit)

    def note(self, jobs: Iterable[Job], manages: Callable[[str], bool], flavor: str, now: float) -> list[Measurement]:
        """Take a message's entries about runners of this unit into account.

        Returns the durations that are known now and were not before: a message may come again.
        """
        with self._lock:
            reported = [job for job in jobs if job.kind in KINDS and manages(job.runner)]
            found = [each for job in reported for each in self._note(job, flavor, now)]
            if reported:
                self._jobs = _kept(self._jobs, now)
                try:
                    save(self._unit, self._jobs)
                except OSError as error:
                    logger.warning("GitHub's messages about jobs were not recorded: %s", error)
        return found

    def _note(self, job: Job, flavor: str, now: float) -> Iterator[Measurement]:
        # The file ends with the job of the latest message.
        before = self._jobs.pop(job.runner, None)
        if before is None or before.job != job.id:
            before = KnownJob(job.id)
        self._jobs[job.runner] = after = _with(before, job, now)
        for name, was, duration in (
            ("queue", before.queue_duration, after.queue_duration),
            ("job", before.duration, after.duration),
        ):
            if was is None and duration is not None:
                yield Measurement(name, flavor, duration)


def _kept(jobs: Mapping[str, KnownJob], now: float) -> dict[str, KnownJob]:
    """The newest jobs that are not too old; of more than MOST those that have ended go first."""
    lives = {True: LIFE, False: UNFINISHED_LIFE}
    recent = {name: job for name, job in jobs.items() if abs(now - job.noted) < lives[job.has_ended]}
    in_turn = sorted(recent, key=lambda name: not recent[name].has_ended)
    for name in in_turn[: max(0, len(in_turn) - MOST)]:
        del recent[name]
    return recent


def _with(before: KnownJob, job: Job, now: float) -> KnownJob:
    """What is known after a message. An older one may come later, and lacks what the newer one had."""
    result = job.result.lower() if job.kind == "JobCompleted" else ""
    return KnownJob(
        job.id,
        job.run or before.run,
        queued=_known(job.queued, before.queued),
        started=_known(job.started, before.started),
        finished=_known(job.finished, before.finished),
        result=result if result in (*CONCLUSIONS, ABANDONED) else before.result,
        noted=now,
    )


def _known(time: float | None, before: float | None) -> float | None:
    return before if time is None else time


def file_of(unit: str) -> Path:
    """The file of a unit such as ``github-runner/0``, beside those of what reconciles measure."""
    return telemetry.gauges_path(unit).with_name(f"jobs.{unit.replace('/', '-')}.json")


def save(unit: str, jobs: Mapping[str, KnownJob]) -> None:
    """Write the jobs by the names of their runners, whole or not at all; OSError where that is not possible."""
    write_file(file_of(unit), json.dumps({name: asdict(job) for name, job in jobs.items()}), 0o600)


def load(unit: str) -> dict[str, KnownJob]:
    """The jobs by the names of their runners; nothing where the file is missing or damaged."""
    try:
        found = json.loads(file_of(unit).read_text())
        if len(found) > MOST:
            raise ValueError("more runners than can be")
        return {str(name): _job(values) for name, values in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def remove(unit: str) -> list[str]:
    """Remove the file of a unit; returns what was removed."""
    return remove_files(file_of(unit))


def _job(values: Any) -> KnownJob:
    job, run, result = values["job"], int(values["run"]), str(values["result"])
    is_text = isinstance(job, str) and len(job) <= TEXT_LIMIT
    if not is_text or not 0 <= run <= LARGEST_NUMBER or result not in ("", ABANDONED, *CONCLUSIONS):
        raise ValueError("a job that cannot be")
    queued, started, finished = (_time(values[name]) for name in ("queued", "started", "finished"))
    return KnownJob(job, run, queued, started, finished, result, noted=_time(values["noted"]) or 0.0)


def _time(value: Any) -> float | None:
    time = None if value is None else float(value)
    if time is not None and not (math.isfinite(time) and time >= 0):
        raise ValueError("a time that cannot be")
    return time
