"""The sandbox's command `job --count`: bursts of jobs."""

from types import SimpleNamespace
from typing import Any

import pytest

from sandbox import session
from sandbox.__main__ import build_parser
from sandbox.burst import Burst
from sandbox.github.control import GitHubControl
from sandbox.github.server import serve
from sandbox.shell import SandboxError


class FakeGitHub:
    """Jobs that begin and end at once, a second after they were queued, on runners a, b, a, b, …"""

    def __init__(self, *conclusions: str) -> None:
        self.conclusions = conclusions
        self.added: list[tuple[float, dict[str, Any]]] = []
        self.found: list[dict[str, Any]] = [{"id": 0, "status": "queued", "runner_name": None}]  # somebody else's
        self.now = 0.0

    def add_job(self, repository: str, command: str, **fields: object) -> Any:
        self.added.append((self.now, fields))
        made = []
        for _ in range(int(str(fields.get("count", 1)))):
            number = len(self.found)
            conclusion = self.conclusions[(number - 1) % len(self.conclusions)]
            job = {"id": number, "status": "completed", "conclusion": conclusion}
            self.found.append({**job, "runner_name": "ab"[number % 2], "queue_time": float(number)})
            made.append({"id": number, "run_id": 1})
        return made if "count" in fields else made[0]

    def jobs(self) -> list[dict[str, Any]]:
        return self.found

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def burst(self, count: int, every: float = 0.0) -> Burst:
        return Burst(self, "octo-org/demo", "true", count, every, {"labels": ["x"]}, lambda: self.now, self.sleep)


def test_a_burst_is_queued_at_once() -> None:
    """Without an interval one call queues all jobs."""
    github = FakeGitHub("success")

    assert github.burst(3).run() == 0

    assert github.added == [(0.0, {"count": 3, "labels": ["x"]})]


def test_a_burst_over_time_is_queued_one_by_one() -> None:
    """With an interval each job is queued that much after the one before, also where reading the jobs takes time."""
    github = FakeGitHub("success")

    assert github.burst(3, 1.25).run() == 0

    assert [moment for moment, _ in github.added] == [0.0, 1.25, 2.5]


def test_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """It has how many ran and how they ended, on which runners, and the queue times; a failed job is exit code 1."""
    assert FakeGitHub("success", "success", "failure").burst(3).run() == 1

    assert capsys.readouterr().out.splitlines()[-4:] == [
        "3 of 3 jobs ran: 1 failure, 2 success",
        "  a: 1 job",
        "  b: 2 jobs",
        "Queue time: min 1.0 s, median 2.0 s, max 3.0 s",
    ]


def test_each_job_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A job has one line for its runner and one for its end."""
    FakeGitHub("success").burst(2, 5.0).run()

    out = capsys.readouterr().out
    assert [out.count(f"Job {number} runs on") for number in (1, 2)] == [1, 1]
    assert [out.count(f"Job {number}: success") for number in (1, 2)] == [1, 1]


def test_ctrl_c_shows_what_ran(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends a burst with its summary and the exit code 130."""
    github = FakeGitHub("success")

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    burst = github.burst(4, 10.0)
    burst.sleep = interrupted

    assert burst.run() == 130
    assert "1 of 4 jobs ran: 1 success" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--count", "0"), "'0' is not a number from 1 to 10000"),
        (("--count", "two"), "'two' is not"),
        (("--count", "10001"), "'10001' is not"),
        (("--count", "9" * 5000), "is not a number from 1"),
        (("--count", "2", "--every", "-1"), "'-1' is not a number of seconds from 0 to 3600"),
        (("--count", "2", "--every", "nan"), "'nan' is not"),
        (("--labels", "a,,b"), "'a,,b' has an empty label"),
    ],
)
def test_bad_values_are_named(words: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that cannot be is an error of usage with the value in it."""
    with pytest.raises(SystemExit) as error:
        build_parser().parse_args(["job", *words, "--", "true"])

    assert error.value.code == 2
    assert named in capsys.readouterr().err


def test_an_interval_needs_a_number() -> None:
    """`--every` without `--count` is an error, and nothing is queued."""
    with pytest.raises(SandboxError, match="--every needs --count"):
        session.job(build_parser().parse_args(["job", "--every", "1", "--", "true"]))


def test_a_burst_at_the_stand_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--no-wait` the jobs are queued with the labels at the stand-in, and their numbers are printed."""
    with serve(repositories=["octo-org/demo"]) as server:
        control = GitHubControl(server.url)
        found: Any = SimpleNamespace(there=lambda: found, control=control)
        monkeypatch.setattr(session, "Session", lambda machine: found)
        words = ["job", "--count", "2", "--labels", "self-hosted, small", "--no-wait", "--", "true"]

        assert session.job(build_parser().parse_args(words)) == 0

        jobs = control.jobs()
    assert capsys.readouterr().out.split() == [str(job["id"]) for job in jobs]
    assert [(job["labels"], job["queue_time"]) for job in jobs] == [(["self-hosted", "small"], None)] * 2
