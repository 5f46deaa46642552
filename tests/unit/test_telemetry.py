"""The figures that reconciles leave for the unit's agent."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import telemetry
from telemetry import Counts, Delay, Gauges, Measurement

UNIT = "github-runner/0"
WAITS = (Delay(telemetry.MEMORY, 2, "8GiB each, 1GiB free"), Delay(telemetry.HELD_BACK, None, "not downloaded yet"))
SMALL = Counts(3, 1, 1, 0, starting=1, wanted=5, maximum=6, delays=WAITS)
FULL = Gauges(1_700_000_000.5, {"small": SMALL, "large": Counts(None, 0, 0, 2)}, 4000, 1.0, 2.0)
MADE = Measurement("creation", "small", 12.5)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files, which does not exist before the first one is written."""
    monkeypatch.setattr(telemetry, "LOCKS", tmp_path / "run")
    return tmp_path / "run"


def test_gauges_are_read_as_they_were_written() -> None:
    """All gauges come back, with those that are not known as None; the file is for root only."""
    telemetry.save(UNIT, FULL)

    assert telemetry.load(UNIT) == FULL
    assert stat.S_IMODE(telemetry.gauges_path(UNIT).stat().st_mode) == 0o600


def test_measurements_are_taken_once() -> None:
    """Observations come in the order in which they were made, and the second taking finds the new ones only."""
    failed = Measurement(telemetry.FAILURE, "large", step="registering")
    telemetry.measure(UNIT, MADE)
    telemetry.measure(UNIT, failed, MADE)

    assert telemetry.take(UNIT) == [MADE, failed, MADE]
    assert telemetry.take(UNIT) == []
    assert stat.S_IMODE(telemetry.measurements_path(UNIT).stat().st_mode) == 0o600


def test_nobody_else_enters_the_folder(folder: Path) -> None:
    """Also where a measurement is the first that is recorded since the machine started."""
    telemetry.measure(UNIT, MADE)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_file_of_measurements_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an agent that takes them, measurements beyond the limit are not recorded."""
    monkeypatch.setattr(telemetry, "LIMIT", 1000)
    for _ in range(100):
        telemetry.measure(UNIT, MADE)

    assert telemetry.measurements_path(UNIT).stat().st_size <= 1000
    assert 5 < len(telemetry.take(UNIT)) < 100


def test_units_have_files_of_their_own() -> None:
    """What one unit recorded is not another one's."""
    telemetry.measure(UNIT, MADE)
    telemetry.save(UNIT, FULL)

    assert telemetry.take("github-runner/1") == []
    assert telemetry.load("github-runner/1") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"reconciled": 1}',
        '{"reconciled": NaN, "flavors": {}, "quota_left": null, "binary_time": null, "image_time": null}',
        '{"reconciled": 1e400, "flavors": {}, "quota_left": null, "binary_time": null, "image_time": null}',
        '{"reconciled": 1, "flavors": {"a": 1}, "quota_left": null, "binary_time": null, "image_time": null}',
        '{"reconciled": 1, "flavors": {}, "quota_left": -1, "binary_time": null, "image_time": null}',
        '{"reconciled": 1, "flavors": {"a": {"delays": [{"reason": "x", "number": 1, "text": ""}]}},'
        ' "quota_left": null, "binary_time": null, "image_time": null}',
        f'{{"reconciled": {"9" * 400}, "flavors": {{}}, "quota_left": null, "binary_time": null, "image_time": null}}',
    ],
    ids=["empty", "list", "deep", "incomplete", "nan", "infinite", "no counts", "negative", "reason", "long"],
)
def test_damaged_gauges_are_no_gauges(content: str, folder: Path) -> None:
    """A file that is not whole, or has a number that cannot be, counts as missing."""
    folder.mkdir()
    telemetry.gauges_path(UNIT).write_text(content)

    assert telemetry.load(UNIT) is None


OLD: dict[str, dict[str, int | None]] = {
    "small": {"wanted": 3, "idle": 1, "busy": 1, "other": 0},
    "large": {"wanted": None, "other": 2},
}
MORE = {"starting": 1, "asked": 5, "maximum": 6}


@pytest.mark.parametrize(
    ("small", "expected"), [({}, Counts(3, 1, 1, 0)), (MORE, Counts(3, 1, 1, 0, starting=1, wanted=5, maximum=6))]
)
def test_gauges_of_an_earlier_version_are_read(small: dict[str, int], expected: Counts) -> None:
    """The expected number was named `wanted`, the wanted one `asked`; the first versions recorded fewer numbers."""
    telemetry.save(UNIT, FULL)
    path = telemetry.gauges_path(UNIT)
    document = json.loads(path.read_text())
    document["flavors"] = {**OLD, "small": {**OLD["small"], **small}}
    path.write_text(json.dumps(document))

    assert telemetry.load(UNIT) == replace(FULL, flavors={"small": expected, "large": Counts(other=2)})


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"null",
        b'{"name": "creation"}',
        b'{"name": "other", "flavor": "small", "value": 1, "step": ""}',
        b'{"name": "creation", "flavor": "Bad Flavour\\n", "value": 1, "step": ""}',
        b'{"name": "creation", "flavor": "small", "value": -1, "step": ""}',
        b'{"name": "creation", "flavor": "small", "value": NaN, "step": ""}',
        b'{"name": "creation", "flavor": "small", "value": ' + b"9" * 400 + b', "step": ""}',
        b"[" * 50_000,
    ],
)
def test_damaged_lines_are_left_out(line: bytes) -> None:
    """A line that is damaged costs no other one."""
    telemetry.measure(UNIT, MADE)
    with telemetry.measurements_path(UNIT).open("ab") as file:
        file.write(line + b"\n")
    telemetry.measure(UNIT, MADE)

    assert telemetry.take(UNIT) == [MADE, MADE]


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, _link], ids=["pipe", "folder", "link"])
def test_what_is_no_file_is_not_used(make: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe, folder or link in the place of a file neither raises nor makes a process wait."""
    folder.mkdir()
    make(telemetry.measurements_path(UNIT))
    telemetry.measure(UNIT, MADE)

    assert telemetry.take(UNIT) == []
    assert not telemetry.measurements_path(UNIT).is_file() or telemetry.measurements_path(UNIT).is_symlink()


def test_a_folder_that_cannot_be_written(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be written the reconcile goes on, with a line in the log."""
    folder.write_text("")
    telemetry.save(UNIT, FULL)
    telemetry.measure(UNIT, MADE)

    assert len(caplog.records) == 2
    assert telemetry.load(UNIT) is None


def test_a_problem_is_one_short_line() -> None:
    """The status shows it: no line break, no more than the limit, and nothing once it is over."""
    telemetry.note_problem(UNIT, "a\nb\x1b[0m" + "x" * 1000)
    assert telemetry.problem(UNIT).startswith("a b [0mxx")
    assert len(telemetry.problem(UNIT)) <= telemetry.PROBLEM_LIMIT
    assert stat.S_IMODE(telemetry.problem_path(UNIT).stat().st_mode) == 0o600

    telemetry.note_problem(UNIT, "")
    telemetry.note_problem(UNIT, "")
    assert telemetry.problem(UNIT) == ""


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, _link], ids=["pipe", "folder", "link"])
def test_a_problem_is_read_from_a_file_only(make: Any, folder: Path) -> None:
    """A pipe, folder or link in its place is no problem, and nothing waits."""
    folder.mkdir()
    make(telemetry.problem_path(UNIT))

    assert telemetry.problem(UNIT) == ""


def test_all_files_are_removed_with_the_unit() -> None:
    """Nothing stays, and removing again is no error; the log says what was removed."""
    telemetry.save(UNIT, FULL)
    telemetry.measure(UNIT, MADE)
    telemetry.note_problem(UNIT, "a reason")

    assert len(telemetry.remove(UNIT)) == 3
    assert telemetry.remove(UNIT) == []
    assert not list(telemetry.gauges_path(UNIT).parent.iterdir())
