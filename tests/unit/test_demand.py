"""What the agent tells a reconcile of the jobs that wait."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import demand
from demand import Demand
from models import BaseImage, Flavor, VirtualMachineResources

UNIT = "github-runner/0"
SMALL = Flavor("small", VirtualMachineResources(1, "1GiB", "4GiB"), BaseImage.JAMMY, (), 0, maximum=5, min_idle=1)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "LOCKS", tmp_path)


def test_what_is_saved_is_loaded() -> None:
    """A file gives back every field of each flavour."""
    found = {
        "small": Demand(3, 1, 1000.5, 2000.0, 42, ("app", "extra"), ("extra",), "GitHub: no answer", 2, True, 900.5),
        "large": Demand(),
    }
    demand.save(UNIT, found)

    assert demand.load(UNIT) == found
    assert demand.file_of(UNIT).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{", '{"small": 1}', '{"small": {}}', "[" * 100_000),
        '{"small": {"assigned": 1e999, "missed": 0, "since": null, "answered_at": 0, "scale_set": null}}',
        json.dumps({"small": {"assigned": -1, "missed": 0, "since": None, "answered_at": 0, "scale_set": None}}),
        json.dumps({"\ud800": asdict(Demand())}),
        '{"small": {"assigned": 1, "missed": 0, "since": null, "answered_at": NaN, "scale_set": null}}',
        '{"small": {"assigned": 1, "missed": 0, "since": null, "answered_at": 1e300, "scale_set": null}}',
        '{"small": {"assigned": 1, "missed": 0, "since": Infinity, "answered_at": 0, "scale_set": null}}',
        '{"small": {"assigned": 1, "missed": 0, "since": -1e300, "answered_at": 0, "scale_set": null}}',
    ],
)
def test_a_damaged_file_says_nothing(text: str) -> None:
    """A file that cannot be what the agent wrote counts as missing."""
    demand.file_of(UNIT).write_text(text)

    assert demand.load(UNIT) == {}


def test_what_servers_and_failures_say_is_one_line() -> None:
    """It is shown by an action and in a table."""
    demand.save(UNIT, {"small": Demand(problem="no\x1b[0m\nanswer")})

    assert demand.load(UNIT)["small"].problem == "no [0m answer"


def test_labels_are_loaded_as_they_are() -> None:
    """They are compared with those of a set: one that differed would have it made again by each start of the agent."""
    labels = ("a  b", "x" * 250)
    demand.save(UNIT, {"small": Demand(asked=labels, dropped=labels[1:])})

    found = demand.load(UNIT)["small"]
    assert (found.asked, found.dropped) == (labels, labels[1:])


def test_a_file_of_a_former_version_is_read() -> None:
    """It has fewer values, and another name of a time."""
    demand.save(UNIT, {"small": Demand(3, answered_at=9.0, running=2, asked=("app",))})
    document = json.loads(demand.file_of(UNIT).read_text())
    for name in ("running", "asked", "is_blocking", "missed_since"):
        del document["small"][name]
    document["small"]["heard"] = document["small"].pop("answered_at")
    demand.file_of(UNIT).write_text(json.dumps(document))

    assert demand.load(UNIT) == {"small": Demand(3, answered_at=9.0)}


def test_a_missing_file_says_nothing() -> None:
    """Before the agent has written, nothing is known."""
    assert demand.load(UNIT) == {}


@pytest.mark.parametrize(("assigned", "missed", "wanted"), [(0, 0, 1), (2, 0, 3), (2, 1, 4), (9, 0, 5), (0, 9, 5)])
def test_wanted_runners_are_within_the_limits_of_the_flavour(assigned: int, missed: int, wanted: int) -> None:
    """A flavour has min-idle runners beside those for jobs, and never more than its maximum."""
    assert Demand(assigned, missed).wanted(SMALL) == wanted


@pytest.mark.parametrize(("answered_at", "known"), [(0.0, False), (9800.0, True), (9600.0, False), (10400.0, False)])
def test_demand_is_known_for_five_minutes(answered_at: float, known: bool) -> None:
    """What a session said counts for five minutes, and not at all if the clock was set back by more."""
    assert Demand(answered_at=answered_at).is_known(10_000.0) is known
