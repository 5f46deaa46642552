"""What is taken from the metrics storage, what is refused, and what is never lost."""

import errno
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import metrics.events
import metrics.storage
from errors import DeleteMetricsStorageError, GetMetricsStorageError
from metrics.events import CodeInformation, RunnerStart, RunnerStop
from metrics.runner import (
    FILE_SIZE_BYTES_LIMIT,
    POST_JOB_METRICS_FILE_NAME,
    PRE_JOB_METRICS_FILE_NAME,
    RUNNER_INSTALLED_TS_FILE_NAME,
    PostJobMetrics,
    PostJobStatus,
    PreJobMetrics,
    RunnerMetrics,
    extract,
    issue_events,
    quarantine,
)
from metrics.storage import MetricsStorage, flavor_record, record_flavor
from metrics.type import GithubJobMetrics

PRE_JOB = {
    "timestamp": 1000.5,
    "workflow": "test",
    "workflow_run_id": "7",
    "repository": "octo-org/demo",
    "event": "push",
}
POST_JOB = {"timestamp": 1010.5, "status": "normal"}


class Storages:
    """Plain folders below a folder of the test, with faults on request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.undeletable: set[str] = set()
        self.unlistable = False

    def create(self, runner_name: str, /) -> MetricsStorage:
        path = self.folder / runner_name
        path.mkdir()
        return MetricsStorage(path, runner_name)

    def list_all(self) -> Iterator[MetricsStorage]:
        if self.unlistable:
            raise OSError(errno.EIO, "Input/output error")
        for path in sorted(self.folder.iterdir()):
            if path.is_dir():
                yield MetricsStorage(path, path.name)

    def get(self, runner_name: str, /) -> MetricsStorage:
        if not (self.folder / runner_name).is_dir():
            raise GetMetricsStorageError(runner_name)
        return MetricsStorage(self.folder / runner_name, runner_name)

    def delete(self, runner_name: str, /) -> None:
        if runner_name in self.undeletable:
            raise DeleteMetricsStorageError("held")
        for path in (self.folder / runner_name).iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (self.folder / runner_name).rmdir()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir())


@pytest.fixture
def storages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storages:
    (tmp_path / "fs").mkdir()
    monkeypatch.setattr(metrics.storage, "FILESYSTEM_QUARANTINE_PATH", tmp_path / "quarantine")
    return Storages(tmp_path / "fs")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path / "metrics.log")
    return tmp_path / "metrics.log"


def fill(storages: Storages, name: str, **files: object) -> Path:
    """A storage with a job's three files; a keyword replaces one (None leaves it out)."""
    path = Path(storages.create(name).path)
    contents: dict[str, object] = {"installed": b"990.25\n", "pre": PRE_JOB, "post": POST_JOB, **files}
    names = {
        "installed": RUNNER_INSTALLED_TS_FILE_NAME,
        "pre": PRE_JOB_METRICS_FILE_NAME,
        "post": POST_JOB_METRICS_FILE_NAME,
    }
    for key, content in contents.items():
        if content is not None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (path / names[key]).write_bytes(data)
    return path


def quarantined(tmp_path: Path) -> list[str]:
    folder = tmp_path / "quarantine"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_whole_job_is_yielded_with_its_numbers(storages: Storages) -> None:
    """All three files become one RunnerMetrics."""
    fill(storages, "r1", post={**POST_JOB, "status": "abnormal", "status_info": {"code": 3}})

    [found] = extract(storages, set())

    assert found.runner_name == "r1"
    assert found.installed_timestamp == 990.25
    assert found.pre_job.repository == "octo-org/demo"
    assert found.post_job is not None
    assert found.post_job.status_info is not None
    assert found.post_job.status_info.code == 3
    assert storages.names() == []


def test_job_without_an_end_is_yielded(storages: Storages) -> None:
    """A crashed runner's start is not lost for want of an end."""
    fill(storages, "r1", post=None)

    [found] = extract(storages, set())

    assert found.post_job is None


@pytest.mark.parametrize("missing", [{"pre": None, "post": None}, {"pre": None}, {"installed": None}])
def test_storage_without_a_job_is_cleaned_up(storages: Storages, tmp_path: Path, missing: dict[str, None]) -> None:
    """Where no job began there is nothing to yield, and nothing stays."""
    fill(storages, "r1", **missing)

    assert list(extract(storages, set())) == []
    assert storages.names() == []
    assert quarantined(tmp_path) == []


def test_ignored_runners_stay(storages: Storages) -> None:
    """The storage of a runner that the caller excludes is neither read nor removed."""
    fill(storages, "r1")

    assert list(extract(storages, {"r1"})) == []
    assert storages.names() == ["r1"]


def big(size: int) -> bytes:
    """Pre-job metrics of exactly that size."""
    text = json.dumps(PRE_JOB).encode()
    return text + b" " * (size - len(text))


def test_file_of_exactly_the_limit_is_read(storages: Storages) -> None:
    """The limit is 1024 bytes, not 1023."""
    fill(storages, "r1", pre=big(FILE_SIZE_BYTES_LIMIT))

    assert len(list(extract(storages, set()))) == 1


CORRUPT = {
    "too large": {"pre": big(FILE_SIZE_BYTES_LIMIT + 1)},
    "installed too large": {"installed": b"1" * 1025},
    "post too large": {"post": b" " * 1025},
    "not JSON": {"pre": b"{"},
    "empty": {"pre": b""},
    "not an object": {"pre": [1]},
    "a number": {"post": 7},
    "not UTF-8": {"pre": b'{"workflow": "\xff"}'},
    "NUL bytes": {"pre": b"\x00" * 100},
    "nested": {"pre": {**PRE_JOB, "extra": json.loads("[" * 40 + "]" * 40)}},
    "nested as deep as fits": {"pre": b"[" * 1024},
    "not finite": {"pre": json.dumps(PRE_JOB).replace("1000.5", "NaN").encode()},
    "infinite": {"pre": json.dumps(PRE_JOB).replace("1000.5", "Infinity").encode()},
    "infinite by size": {"pre": json.dumps(PRE_JOB).replace("1000.5", "1e999").encode()},
    "absurdly large": {"pre": json.dumps(PRE_JOB).replace("1000.5", "9" * 400).encode()},
    "negative time": {"pre": {**PRE_JOB, "timestamp": -1}},
    "time as text": {"pre": {**PRE_JOB, "timestamp": "1000"}},
    "time as truth": {"pre": {**PRE_JOB, "timestamp": True}},
    "lone surrogate": {"pre": json.dumps(PRE_JOB).replace('"test"', '"\\ud800"').encode()},
    "surrogate in an unknown key": {"pre": json.dumps(PRE_JOB).replace("{", '{"\\udfff": 1, ', 1).encode()},
    "field missing": {"pre": {key: value for key, value in PRE_JOB.items() if key != "event"}},
    "run id as number": {"pre": {**PRE_JOB, "workflow_run_id": 7}},
    "repository without owner": {"pre": {**PRE_JOB, "repository": "demo"}},
    "repository with a path": {"pre": {**PRE_JOB, "repository": "octo-org/demo/../../x"}},
    "repository is a parent": {"pre": {**PRE_JOB, "repository": "octo-org/.."}},
    "repository with a newline": {"pre": {**PRE_JOB, "repository": "octo-org/demo\n"}},
    "repository with a query": {"pre": {**PRE_JOB, "repository": "octo-org/demo?x=1"}},
    "repository of other letters": {"pre": {**PRE_JOB, "repository": "octo-org/dem\u00f6"}},
    "unknown status": {"post": {**POST_JOB, "status": "fine"}},
    "code as text": {"post": {**POST_JOB, "status_info": {"code": "1"}}},
    "code absurd": {"post": {**POST_JOB, "status_info": {"code": 10**300}}},
    "installed not a number": {"installed": b"soon"},
    "installed not finite": {"installed": b"nan"},
    "installed negative": {"installed": b"-1"},
    "installed in the far future": {"installed": b"999999999999"},
    "installed of other digits": {"installed": "\u0661\u0662".encode()},
}


@pytest.mark.parametrize("files", CORRUPT.values(), ids=CORRUPT.keys())
def test_corrupt_metrics_go_to_quarantine(
    storages: Storages, tmp_path: Path, files: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks a rule is archived, removed and named in the log, and the next storage is yielded."""
    fill(storages, "r1", **files)
    fill(storages, "r2")

    assert [found.runner_name for found in extract(storages, set())] == ["r2"]
    assert storages.names() == []
    assert quarantined(tmp_path) == ["r1.tar.gz"]
    assert "Metrics of r1 are corrupt" in caplog.text


def make_symlink(path: Path) -> None:
    target = path.parent.parent.parent / "secret"
    target.write_text(json.dumps(PRE_JOB))
    path.symlink_to(target)


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


@pytest.mark.parametrize(
    "make",
    [make_symlink, os.mkfifo, Path.mkdir, make_large, lambda path: path.symlink_to("/dev/zero")],
    ids=["symlink", "fifo", "folder", "huge", "device"],
)
@pytest.mark.parametrize("key", ["installed", "pre", "post"])
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_neither_followed_nor_waited_for(
    storages: Storages, tmp_path: Path, key: str, make: object
) -> None:
    """A link is not followed, a pipe does not block, a folder is no file; the archive does not hold it either."""
    path = fill(storages, "r1", **{key: None})
    names = {"installed": RUNNER_INSTALLED_TS_FILE_NAME, "pre": PRE_JOB_METRICS_FILE_NAME}
    name = names.get(key, POST_JOB_METRICS_FILE_NAME)
    make(path / name)  # type: ignore[operator]

    assert list(extract(storages, set())) == []
    assert quarantined(tmp_path) == ["r1.tar.gz"]
    with tarfile.open(tmp_path / "quarantine" / "r1.tar.gz") as archive:
        sizes = {member.name: member.size for member in archive}
    assert all(size <= FILE_SIZE_BYTES_LIMIT for size in sizes.values())
    assert make is make_large or f"r1/{name}" not in sizes


def test_quarantine_holds_only_the_metric_files(storages: Storages, tmp_path: Path) -> None:
    """Other files of the runner's are not archived, so that it cannot fill the disk."""
    path = fill(storages, "r1", pre=b"{")
    (path / "other").write_bytes(b"x" * 100_000)

    list(extract(storages, set()))

    with tarfile.open(tmp_path / "quarantine" / "r1.tar.gz") as archive:
        assert sorted(archive.getnames()) == sorted(f"r1/{name}" for name in metrics.storage.FILE_NAMES)


def test_storage_goes_only_when_the_consumer_comes_back(storages: Storages) -> None:
    """A crash between handing over and coming back repeats an event, and never loses one."""
    fill(storages, "r1")
    fill(storages, "r2")
    found = extract(storages, set())

    assert next(found).runner_name == "r1"
    assert storages.names() == ["r1", "r2"]
    assert next(found).runner_name == "r2"
    assert storages.names() == ["r2"]
    found.close()
    assert storages.names() == ["r2"]


def test_storage_that_cannot_be_removed_is_not_issued_again(storages: Storages) -> None:
    """Metrics whose storage stays are not returned by the next reconcile, which removes the storage if it can."""
    path = fill(storages, "r1")
    storages.undeletable = {"r1"}
    assert len(list(extract(storages, set()))) == 1

    assert list(extract(storages, set())) == []
    assert path.exists()

    storages.undeletable = set()
    assert list(extract(storages, set())) == []
    assert list(storages.folder.iterdir()) == []


def test_new_storage_of_a_name_is_issued_after_the_old_one_went(storages: Storages) -> None:
    """The note that a storage was handed over goes with it."""
    fill(storages, "r1")
    storages.undeletable = {"r1"}
    list(extract(storages, set()))
    storages.undeletable = set()
    list(extract(storages, set()))

    fill(storages, "r1")

    assert len(list(extract(storages, set()))) == 1


def test_runner_cannot_note_its_own_storage_as_issued(storages: Storages) -> None:
    """The note lies beside the storage, where the runner cannot write."""
    path = fill(storages, "r1")
    (path / "issued").touch()
    (path / ".r1.issued").touch()

    assert len(list(extract(storages, set()))) == 1


def test_one_bad_storage_never_stops_the_others(storages: Storages, tmp_path: Path) -> None:
    """A storage that can be neither archived nor removed stays, the next one is handed over."""
    fill(storages, "r1", pre=b"{")
    fill(storages, "r2")
    (tmp_path / "quarantine").write_text("not a folder")

    assert [found.runner_name for found in extract(storages, set())] == ["r2"]
    assert storages.names() == ["r1"]


def test_storage_that_cannot_be_read_is_left_alone(
    storages: Storages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A storage that vanished or cannot be listed stays for a later reconcile, and the others are handed over."""
    fill(storages, "r2")
    listed = [MetricsStorage(tmp_path / "nowhere", "r1"), *storages.list_all()]
    storages.list_all = lambda: iter(listed)  # type: ignore[method-assign]

    assert [found.runner_name for found in extract(storages, set())] == ["r2"]
    assert "r1 cannot be read" in caplog.text


def test_nothing_is_raised_when_storages_cannot_be_listed(storages: Storages, caplog: pytest.LogCaptureFixture) -> None:
    """If the storages cannot be listed, the reconcile goes on without metrics and logs it."""
    storages.unlistable = True

    assert list(extract(storages, set())) == []
    assert "cannot be listed" in caplog.text


def test_marker_that_cannot_be_written_is_logged(storages: Storages, caplog: pytest.LogCaptureFixture) -> None:
    """Even where no note can be left, nothing is raised."""
    fill(storages, "r1")

    def delete(runner_name: str, /) -> None:
        shutil.rmtree(storages.folder)
        raise DeleteMetricsStorageError("held")

    storages.delete = delete  # type: ignore[method-assign]

    assert len(list(extract(storages, set()))) == 1
    assert "may be issued again" in caplog.text


def metrics_of(**changes: object) -> RunnerMetrics:
    values: dict[str, object] = {
        "installed_timestamp": 990.25,
        "pre_job": PreJobMetrics(**PRE_JOB),  # type: ignore[arg-type]
        "post_job": PostJobMetrics(**POST_JOB),  # type: ignore[arg-type]
        "runner_name": "r1",
    }
    return RunnerMetrics(**{**values, **changes})  # type: ignore[arg-type]


def lines(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_both_events_have_the_documented_form(log: Path) -> None:
    """Start and stop have exactly the fields of the table, and what was written is returned."""
    issued = issue_events(metrics_of(), "app", GithubJobMetrics(12.5, "success"))

    assert issued == {RunnerStart, RunnerStop}
    shared = {"flavor": "app", "workflow": "test", "repo": "octo-org/demo", "github_event": "push"}
    assert lines(log) == [
        {"event": "runner_start", "timestamp": 1000.5, **shared, "idle": 10.25, "queue_duration": 12.5},
        {
            "event": "runner_stop",
            "timestamp": 1010.5,
            **shared,
            "status": "normal",
            "job_duration": 10.0,
            "job_conclusion": "success",
        },
    ]


def test_what_github_did_not_tell_is_left_out(log: Path) -> None:
    """Without job metrics neither queue_duration nor job_conclusion is a key."""
    issue_events(metrics_of(), "app", None)

    assert all("queue_duration" not in line and "job_conclusion" not in line for line in lines(log))


def test_no_stop_without_post_job_metrics(log: Path) -> None:
    """A crashed runner has a start only."""
    assert issue_events(metrics_of(post_job=None), "app", None) == {RunnerStart}
    assert [line["event"] for line in lines(log)] == ["runner_start"]


def test_status_info_is_written(log: Path) -> None:
    """The HTTP code of a refused policy check reaches Loki."""
    post_job = PostJobMetrics(
        timestamp=1010,
        status=PostJobStatus.REPO_POLICY_CHECK_FAILURE,
        status_info=CodeInformation(code=403),
    )
    issue_events(metrics_of(post_job=post_job), "app", None)

    assert lines(log)[1]["status"] == "repo-policy-check-failure"
    assert lines(log)[1]["status_info"] == {"code": 403}


@pytest.mark.parametrize(
    ("changes", "queue", "field", "event"),
    [
        ({"installed_timestamp": 2000.0}, 1.0, "idle", 0),
        ({"post_job": PostJobMetrics(timestamp=5, status="normal")}, 1.0, "job_duration", 1),  # type: ignore[arg-type]
        ({}, -3.0, "queue_duration", 0),
    ],
)
def test_negative_durations_become_zero_with_a_warning(
    log: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object], queue: float, field: str, event: int
) -> None:
    """Clocks and GitHub do give negative durations."""
    with caplog.at_level(logging.WARNING):
        issue_events(metrics_of(**changes), "app", GithubJobMetrics(queue, None))

    assert lines(log)[event][field] == 0
    assert f"{field} of r1 is negative" in caplog.text


def test_no_stop_is_written_after_a_start_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its start no stop is issued, and nothing is raised."""
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path)

    assert issue_events(metrics_of(), "app", None) == set()


def test_event_that_can_never_be_valid_is_logged_not_raised(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A queue duration that is no number costs the events of that runner only."""
    assert issue_events(metrics_of(), "app", GithubJobMetrics(float("nan"), None)) == set()
    assert not log.exists()
    assert "is not valid" in caplog.text


def test_newline_in_a_field_forges_no_line(log: Path) -> None:
    """Control characters are escaped: an event is one line whatever the workflow is called."""
    pre_job = PreJobMetrics(**{**PRE_JOB, "workflow": 'x\n{"event": "forged"}\r\u2028\x1b'})  # type: ignore[arg-type]
    issue_events(metrics_of(pre_job=pre_job, post_job=None), "app", None)

    assert len(log.read_bytes().splitlines()) == 1
    assert log.read_text().isascii()


def test_quarantine_of_what_is_gone_is_logged(storages: Storages, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is raised for a storage that vanished meanwhile."""
    quarantine(storages, "r1")

    assert "cannot be moved to quarantine" in caplog.text


def test_the_flavor_is_recorded_beside_the_storage(storages: Storages, log: Path) -> None:
    """The instance is gone when its events are written, and a job cannot change what is beside its storage."""
    folder = fill(storages, "r1", pre={**PRE_JOB, "flavor_name": "big"})
    (folder / flavor_record(folder).name).write_text("big")
    record_flavor(storages.get("r1"), "small-2")

    [found] = extract(storages, set())
    issue_events(found, "app", None)

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["flavor_name"] for line in lines] == ["small-2", "small-2"]


@pytest.mark.parametrize("record", [None, b"", b"Big", b"a b", b"x" * 21, b"\xff", b"big\n"])
def test_a_storage_without_a_flavor(storages: Storages, record: bytes | None) -> None:
    """A storage of an earlier version, and a damaged record, give no flavor, which stands for `default`."""
    folder = fill(storages, "r1")
    if record is not None:
        flavor_record(folder).write_bytes(record)

    [found] = extract(storages, set())

    assert found.flavor_name is None
