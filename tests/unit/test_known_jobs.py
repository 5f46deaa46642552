"""What GitHub's messages told of the jobs of a unit's runners, in its file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import known_jobs
from gh.scale_set_answers import Job
from known_jobs import LIFE, LONGEST, UNFINISHED_LIFE, KnownJob, KnownJobs
from telemetry import Measurement

UNIT = "app/0"
NAME = "app-0-0123abcdaa"
NOW = 1_800_000_000.0
STARTED = Job("JobStarted", "a", run=5, queued=100.0, started=130.0, runner=NAME)
COMPLETED = Job("JobCompleted", "a", run=5, finished=190.0, result="Succeeded", runner=NAME)
WHOLE = KnownJob("a", 5, 100.0, 130.0, 190.0, "succeeded", noted=NOW)


def note(*jobs: Job, now: float = NOW, unit: KnownJobs | None = None) -> list[Measurement]:
    """Take entries into account; runners of the unit have its name in theirs."""
    return (unit or KnownJobs(UNIT)).note(jobs, lambda name: name.startswith("app-0-"), "small", now)


@pytest.mark.parametrize("jobs", [(STARTED, COMPLETED), (COMPLETED, STARTED), (STARTED, COMPLETED, STARTED)])
def test_messages_of_a_job_are_joined(jobs: tuple[Job, ...]) -> None:
    """In each order, each by another process: an older message may come again."""
    for job in jobs:
        note(job)

    assert known_jobs.load(UNIT) == {NAME: WHOLE}
    assert (WHOLE.queue_duration, WHOLE.duration, WHOLE.conclusion) == (30.0, 60.0, "success")
    assert known_jobs.file_of(UNIT).stat().st_mode & 0o777 == 0o600


def test_each_duration_is_told_once() -> None:
    """Also where a message comes again after a restart of the agent, or to another session."""
    assert note(STARTED) == [Measurement("queue", "small", 30.0)]
    assert note(STARTED, COMPLETED) == [Measurement("job", "small", 60.0)]
    assert note(STARTED, COMPLETED) == []


def test_the_end_alone_tells_both_durations() -> None:
    """GitHub may have sent the message of the start before the agent was there."""
    whole = Job("JobCompleted", "a", queued=100.0, started=130.0, finished=190.0, runner=NAME)

    assert note(whole) == [Measurement("queue", "small", 30.0), Measurement("job", "small", 60.0)]


def test_only_jobs_of_own_runners_are_kept() -> None:
    """A job that never ran has no runner; entries of another kind say nothing about one."""
    others = (
        Job("JobStarted", "b", queued=1.0, started=2.0, runner="app-1-0123abcdaa"),
        Job("JobCompleted", "c", queued=1.0, finished=2.0, result="canceled"),
        Job("JobAssigned", "d", queued=1.0, started=2.0, runner=NAME),
    )

    assert note(*others) == []
    assert not known_jobs.file_of(UNIT).exists()


def test_another_job_of_a_runner_begins_anew() -> None:
    """Its times are not mixed with those of the former one."""
    note(STARTED)

    note(Job("JobCompleted", "b", finished=200.0, result="failed", runner=NAME))

    assert known_jobs.load(UNIT) == {NAME: KnownJob("b", finished=200.0, result="failed", noted=NOW)}


@pytest.mark.parametrize(
    ("result", "conclusion"),
    [
        ("succeeded", "success"),
        ("Failed", "failure"),
        ("CANCELED", "cancelled"),
        ("skipped", "skipped"),
        ("abandoned", None),
        ("success; rm -rf", None),
        ("", None),
    ],
)
def test_results_are_told_in_the_words_of_rest(result: str, conclusion: str | None) -> None:
    """A result that is not known is left out."""
    note(Job("JobCompleted", "a", result=result, runner=NAME))

    found = known_jobs.load(UNIT)[NAME]
    assert found.conclusion == conclusion
    assert found.result in ("", "abandoned", *known_jobs.CONCLUSIONS)


@pytest.mark.parametrize(("queued", "started"), [(None, 5.0), (5.0, None), (6.0, 5.0), (1.0, 1.0 + LONGEST + 1)])
def test_times_that_cannot_be_are_no_duration(queued: float | None, started: float | None) -> None:
    """Missing, in the wrong order, or further apart than a workflow run lasts."""
    assert KnownJob(queued=queued, started=started).queue_duration is None
    assert KnownJob(started=queued, finished=started).duration is None
    assert note(Job("JobStarted", "a", queued=queued, started=started, runner=NAME)) == []


def test_the_newest_jobs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a number: those of which a message came last."""
    monkeypatch.setattr(known_jobs, "MOST", 2)
    unit = KnownJobs(UNIT)
    for suffix in ("aa", "bb", "aa", "cc"):
        note(Job("JobStarted", suffix, runner=f"app-0-{suffix}"), unit=unit)

    assert list(known_jobs.load(UNIT)) == ["app-0-aa", "app-0-cc"]


def test_jobs_that_run_are_kept_before_those_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of the end would count the time in the queue a second time."""
    monkeypatch.setattr(known_jobs, "MOST", 2)
    unit = KnownJobs(UNIT)
    note(STARTED, unit=unit)
    for suffix in ("bb", "cc", "dd"):
        note(Job("JobCompleted", suffix, finished=5.0, runner=f"app-0-{suffix}"), unit=unit)

    assert list(known_jobs.load(UNIT)) == [NAME, "app-0-dd"]
    whole = Job("JobCompleted", "a", queued=100.0, started=130.0, finished=190.0, runner=NAME)
    assert note(whole, unit=unit) == [Measurement("job", "small", 60.0)]


@pytest.mark.parametrize("backwards", [1, -1])
@pytest.mark.parametrize(
    ("jobs", "life"), [((STARTED, COMPLETED), LIFE), ((STARTED,), UNFINISHED_LIFE)], ids=["ended", "without an end"]
)
def test_old_jobs_go(jobs: tuple[Job, ...], life: float, backwards: int) -> None:
    """A day after the message of their end, or days after that of their start; so also where the clock was set back."""
    other = Job("JobStarted", "b", runner="app-0-bb")
    note(*jobs)

    note(other, now=NOW + backwards * (life - 1))
    assert set(known_jobs.load(UNIT)) == {NAME, "app-0-bb"}

    note(other, now=NOW + backwards * life)
    assert set(known_jobs.load(UNIT)) == {"app-0-bb"}


def test_the_longest_job_is_remembered_to_its_end() -> None:
    """GitHub lets a job on a self-hosted runner run for 5 days."""
    assert UNFINISHED_LIFE > 5 * 86400


def test_a_disk_that_takes_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The durations are told all the same; a reconcile asks by REST."""

    def fail(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(known_jobs, "save", fail)

    assert note(STARTED) == [Measurement("queue", "small", 30.0)]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', '{"a": 1}', "\x00", "[" * 100_000])
def test_a_damaged_file_says_nothing(text: str) -> None:
    """The agent writes it anew."""
    known_jobs.file_of(UNIT).parent.mkdir(exist_ok=True)
    known_jobs.file_of(UNIT).write_text(text)

    assert known_jobs.load(UNIT) == {}
    note(STARTED, COMPLETED)
    assert known_jobs.load(UNIT) == {NAME: WHOLE}


@pytest.mark.parametrize("name", ["job", "run", "queued", "started", "finished", "result", "noted"])
@pytest.mark.parametrize("value", [..., [1], {"a": 1}, -1, 1e999, float("nan"), 10**400, "x" * 300])
def test_a_field_that_cannot_be_is_damage(name: str, value: Any) -> None:
    """None of its numbers reaches an event."""
    note(STARTED, COMPLETED)
    document = asdict(WHOLE)
    del document[name]
    if value is not ...:
        document[name] = value
    known_jobs.file_of(UNIT).write_text(json.dumps({NAME: document}))

    assert known_jobs.load(UNIT) == {}


def test_more_runners_than_are_ever_written_are_damage() -> None:
    """The file has a bound."""
    known_jobs.save(UNIT, {f"app-0-{number:x}": WHOLE for number in range(known_jobs.MOST + 1)})

    assert known_jobs.load(UNIT) == {}


def test_it_is_removed_once() -> None:
    """A second removal finds nothing."""
    note(STARTED)
    path: Path = known_jobs.file_of(UNIT)

    assert known_jobs.remove(UNIT) == [str(path)]
    assert known_jobs.remove(UNIT) == []
