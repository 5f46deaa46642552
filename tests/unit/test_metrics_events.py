"""One whole line for each event, or none."""

import json
import os
import re
import resource
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

import metrics.events
from errors import IssueMetricEventError
from metrics.events import (
    METRICS_LOG_PATH,
    CodeInformation,
    Event,
    Reconciliation,
    RunnerInstalled,
    RunnerStart,
    RunnerStop,
    issue_event,
    log_is_writable,
    written_by,
)

ROOT = Path(__file__).resolve().parents[2]
START = RunnerStart(
    timestamp=1.5, flavor="runner", workflow="w", repo="o/r", github_event="push", idle=2.0, queue_duration=3.0
)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path / "metrics.log")
    return tmp_path / "metrics.log"


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file can grow beyond this size, as on a disk with that much room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_place_of_the_log() -> None:
    """The log is where the alert rules read it."""
    rules = (ROOT / "src/loki_alert_rules/health.yaml").read_text()

    assert set(re.findall(r'filename="([^"]+)"', rules)) == {str(METRICS_LOG_PATH)}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            RunnerInstalled(timestamp=1, flavor="runner", duration=20.5),
            {"event": "runner_installed", "timestamp": 1.0, "flavor": "runner", "duration": 20.5},
        ),
        (
            START,
            {
                "event": "runner_start",
                "timestamp": 1.5,
                "flavor": "runner",
                "workflow": "w",
                "repo": "o/r",
                "github_event": "push",
                "idle": 2.0,
                "queue_duration": 3.0,
            },
        ),
        (
            RunnerStart(timestamp=1, flavor="f", workflow="", repo="o/r", github_event="push", idle=0),
            {
                "event": "runner_start",
                "timestamp": 1.0,
                "flavor": "f",
                "workflow": "",
                "repo": "o/r",
                "github_event": "push",
                "idle": 0.0,
            },
        ),
        (
            RunnerStop(
                timestamp=1,
                flavor="f",
                workflow="w",
                repo="o/r",
                github_event="push",
                status="abnormal",
                status_info=CodeInformation(code=0),
                job_duration=4,
                job_conclusion="failure",
            ),
            {
                "event": "runner_stop",
                "timestamp": 1.0,
                "flavor": "f",
                "workflow": "w",
                "repo": "o/r",
                "github_event": "push",
                "status": "abnormal",
                "status_info": {"code": 0},
                "job_duration": 4.0,
                "job_conclusion": "failure",
            },
        ),
        (
            RunnerStop(
                timestamp=1, flavor="f", workflow="w", repo="o/r", github_event="push", status="normal", job_duration=0
            ),
            {
                "event": "runner_stop",
                "timestamp": 1.0,
                "flavor": "f",
                "workflow": "w",
                "repo": "o/r",
                "github_event": "push",
                "status": "normal",
                "job_duration": 0.0,
            },
        ),
        (
            Reconciliation(timestamp=1, flavor="f", crashed_runners=0, idle_runners=3, duration=2),
            {
                "event": "reconciliation",
                "timestamp": 1.0,
                "flavor": "f",
                "crashed_runners": 0,
                "idle_runners": 3,
                "duration": 2.0,
            },
        ),
        (
            Reconciliation(
                timestamp=1,
                flavor="f",
                crashed_runners=0,
                idle_runners=3,
                active_runners=0,
                expected_runners=4,
                duration=2,
            ),
            {
                "event": "reconciliation",
                "timestamp": 1.0,
                "flavor": "f",
                "crashed_runners": 0,
                "idle_runners": 3,
                "active_runners": 0,
                "expected_runners": 4,
                "duration": 2.0,
            },
        ),
    ],
    ids=["installed", "start", "start, bare", "stop", "stop, bare", "reconciliation, bare", "reconciliation"],
)
def test_lines(log: Path, event: Event, line: dict[str, object]) -> None:
    """An event is one line of JSON with its name in snake case, without keys that have no value, zeroes kept."""
    issue_event(event)

    assert log.read_bytes().count(b"\n") == 1
    assert log.read_bytes().endswith(b"\n")
    assert json.loads(log.read_text()) == line


def test_unit_is_in_every_event_of_the_context(log: Path) -> None:
    """An event that is issued in the context of a unit has the field unit; without a context it has none."""
    issue_event(START)
    with written_by("runner/3"):
        issue_event(START)
    issue_event(START)

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line.get("unit") for line in lines] == [None, "runner/3", None]
    assert lines[1] == {**lines[0], "unit": "runner/3"}


def test_unit_is_in_events_of_threads(log: Path) -> None:
    """Events from the threads of a context have the field unit: runners are created side by side."""
    with written_by("runner/3"), ThreadPoolExecutor(2) as pool:
        list(pool.map(issue_event, [START, START]))

    assert [json.loads(line)["unit"] for line in log.read_text().splitlines()] == ["runner/3"] * 2


def test_context_ends_with_an_error(log: Path) -> None:
    """A context that ends with an error does not leave its unit behind."""
    with pytest.raises(KeyError), written_by("runner/3"):
        raise KeyError
    issue_event(START)

    assert "unit" not in json.loads(log.read_text())


def test_lines_are_appended(log: Path) -> None:
    """A line is added to what is there."""
    log.write_text("before\n")
    issue_event(START)
    issue_event(START)

    assert [line.split('"')[0] for line in log.read_text().splitlines()] == ["before", "{", "{"]


@pytest.mark.parametrize("text", ["a\nb", "a\r\u2028b", '"}\n{"event": "forged"}', "ä\U0001f980"])
def test_text_from_a_job_stays_in_its_line(log: Path, text: str) -> None:
    """No name of a workflow can end a line or begin another event."""
    issue_event(START.model_copy(update={"workflow": text}))

    [line] = log.read_text().split("\n")[:-1]
    assert json.loads(line)["workflow"] == text
    assert json.loads(line)["event"] == "runner_start"


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["timestamp", "idle", "queue_duration"])
def test_no_event_with_an_impossible_number(field: str, value: float) -> None:
    """No event has a negative duration or a number that is not one."""
    with pytest.raises(ValidationError):
        RunnerStart(**{**START.model_dump(), field: value})


@pytest.mark.parametrize("room", [0, 1, 50])
def test_line_is_written_whole_or_not_at_all(log: Path, room: int) -> None:
    """Where a part of the line has room only, nothing of it stays, and the error says so."""
    log.write_text("before\n")
    with files_end_at(log.stat().st_size + room), pytest.raises(IssueMetricEventError, match="runner_start"):
        issue_event(START)

    assert log.read_text() == "before\n"
    issue_event(START)
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk a line is refused whole, and the log is said not to be writable."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        log = tmp_path / "metrics.log"
        monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", log)
        log.write_bytes(b"x" * 4095 + b"\n")

        assert not log_is_writable()
        with pytest.raises(IssueMetricEventError):
            issue_event(START)
        assert log.stat().st_size == 4096
        log.write_bytes(b"x" * 4000 + b"\n")
        with pytest.raises(IssueMetricEventError):
            issue_event(START)
        assert log.stat().st_size == 4001
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.parametrize("broken", ["a folder", "no folder"])
def test_log_that_cannot_be_opened(log: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot be opened is an error of the charm's own, and it is not writable."""
    if broken == "a folder":
        log.mkdir()
    else:
        monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", log / "x")

    with pytest.raises(IssueMetricEventError):
        issue_event(START)
    assert not log_is_writable()


def test_log_is_writable_without_a_trace(log: Path) -> None:
    """Asking whether the log takes a line leaves its content as it is."""
    log.write_text("before\n")

    assert log_is_writable()
    assert log.read_text() == "before\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_log_on_a_full_disk_is_not_writable(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a line may be cut there is no room, even if a byte still fits."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
    try:
        monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", disk / "metrics.log")
        assert log_is_writable()
        (disk / "fill").write_bytes(b"x" * (200 << 10))
        assert not log_is_writable()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_new_log_is_readable_by_the_collector(log: Path) -> None:
    """The log is made by the first line, readable by the collector and writable by its owner alone."""
    old = os.umask(0)
    try:
        issue_event(START)
    finally:
        os.umask(old)

    assert log.stat().st_mode & 0o7777 == 0o644
