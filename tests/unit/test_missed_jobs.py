"""Which queued jobs reached no runner scale set, as far as GitHub's REST API tells."""

from typing import Any

import pytest

from errors import GithubApiError
from gh import queued_jobs
from gh.queued_jobs import QueuedJob, Runs
from gh.scale_set_answers import Job, Statistics
from programs.missed_jobs import GRACE, MOST_REPORTED, Reported, Target, merged, missed

NOW = 1_800_000_000.0
SMALL = Target("small", frozenset({"app-small", "self-hosted", "app"}), 0)
LARGE = Target("large", frozenset({"app-large", "self-hosted", "app"}), 0)


def job(run: int = 1, name: str = "build", labels: tuple[str, ...] = ("app",), age: float = GRACE) -> QueuedJob:
    return QueuedJob(run, name, labels, NOW - age)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param([job()], 1, id="no message"),
        pytest.param([job(), job(run=2)], 2, id="two"),
        pytest.param([job(labels=("App", "SELF-hosted"))], 1, id="case"),
        pytest.param([job(labels=("app", "gpu"))], 0, id="a label that the set lacks"),
        pytest.param([job(labels=())], 0, id="a runner group, which nobody can compare"),
        pytest.param([job(age=GRACE - 1)], 0, id="a message may still come"),
        pytest.param([job(run=7, name="reported")], 0, id="a message reported it"),
        pytest.param([job(run=7, name="again")], 1, id="a message reported the job of which it is another run"),
        pytest.param([job(run=7, name="other"), job(run=8, name="reported")], 2, id="run and name together"),
    ],
)
def test_which_jobs_are_missed(found: list[QueuedJob], expected: int) -> None:
    """Jobs that have waited, whose labels the set has, and that no message reported."""
    reported = {(7, "reported"): NOW - GRACE, (7, "again"): NOW - GRACE - 120}

    assert len(missed(found, [SMALL], reported, NOW)["small"]) == expected


def test_a_job_counts_once() -> None:
    """For the first flavour whose set has its labels."""
    found = missed([job(), job(labels=("app-large",), age=900)], [SMALL, LARGE], {}, NOW)

    assert found == {"small": [NOW - GRACE], "large": [NOW - 900]}


def test_jobs_that_the_statistics_have_are_not_missed() -> None:
    """A new session knows jobs of the former one by their number only."""
    reported = Reported()
    reported.count(Statistics(assigned=4, running=1), named=1)
    target = Target("small", SMALL.labels, reported.unnamed)

    queued = [job(run=number, age=900 - number) for number in range(3)]
    assert missed(queued, [target], {}, NOW) == {"small": [NOW - 898]}


def test_the_last_jobs_are_remembered() -> None:
    """A process that runs for weeks keeps so many only."""
    reported = Reported()
    for number in range(MOST_REPORTED + 1):
        reported.note(Job("JobAssigned", "a", run=number, name="build"), NOW)

    assert len(reported.jobs) == MOST_REPORTED
    assert (0, "build") not in reported.jobs
    assert (MOST_REPORTED, "build") in reported.jobs


def test_each_run_gets_its_turn() -> None:
    """However many older ones there are; what was read of a run holds until the next time, or until it is over."""
    runs = Runs()
    assert runs.due({5, 3, 9}) == [3, 5, 9]
    runs.note(3, [job(3)])
    runs.note(5, [job(5), job(5)])

    assert runs.due({1, 5, 9}) == [9, 1, 5]
    assert runs.jobs() == [job(5), job(5)]
    runs.note(9, [])
    runs.note(1, [])
    runs.note(5, [job(5)])
    assert runs.due({1, 5, 9}) == [9, 1, 5]
    assert runs.jobs() == [job(5)]


def test_kept_jobs_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were read last are kept; one run may have more."""
    monkeypatch.setattr(queued_jobs, "MOST_JOBS", 3)
    runs = Runs()
    for number in (1, 2, 3):
        runs.note(number, [job(number)] * 2)
    assert runs.jobs() == [job(3)] * 2

    runs.note(4, [job(4)] * 9)
    assert runs.jobs() == [job(4)] * 9


GOOD: dict[str, Any] = {
    "status": "queued",
    "labels": ["app"],
    "created_at": "2026-11-26T12:00:00Z",
    "run_id": 5,
    "name": "build",
}


def test_only_queued_jobs_are_read() -> None:
    """Others have a runner, or wait for something else."""
    found = list(queued_jobs.jobs([GOOD, {**GOOD, "status": "in_progress"}, {**GOOD, "status": "waiting"}]))

    assert [(each.run, each.name, each.labels) for each in found] == [(5, "build", ("app",))]


WRONG: list[Any] = [None, [7], {}]
DAMAGED = [(name, value) for name in ("labels", "created_at", "run_id") for value in WRONG]


@pytest.mark.parametrize("item", [None, [], {}, 7, *({**GOOD, name: value} for name, value in DAMAGED)])
def test_a_damaged_answer_is_an_error(item: Any) -> None:
    """And no number of missed jobs."""
    with pytest.raises(GithubApiError):
        list(queued_jobs.jobs([item]))


def test_the_last_message_of_any_set_counts() -> None:
    """A job that was run again may have been reported in another one."""
    first, second = Reported(), Reported()
    first.note(Job("JobAssigned", "a", run=1, name="build"), NOW)
    second.note(Job("JobCompleted", "a", run=1, name="build"), NOW - 60)

    assert merged([first, second]) == merged([second, first]) == {(1, "build"): NOW}


def test_texts_of_a_queued_job_are_bounded() -> None:
    """Workflow authors choose them: labels and names are cut as in the messages of a set."""
    labels = [f"{number}{'x' * 999}" for number in range(999)]

    [found] = queued_jobs.jobs([{**GOOD, "name": "y" * 999, "labels": labels}])

    assert (len(found.labels), {len(label) for label in found.labels}, len(found.name)) == (200, {256}, 256)
