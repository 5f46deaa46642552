"""Why jobs wait and runners are missing, by what reconciles and the unit's agent have recorded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import listing
import waiting
from demand import PATIENCE, Demand
from models import FORMATS, GithubRunner
from observe import ObservedRunner
from telemetry import FAILED, HELD_BACK, MEMORY, Counts, Delay, Gauges
from tests.support.fakes import REPO
from tests.unit.test_listing import view
from waiting import Waiting

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOW = 1_700_000_000.0
ROOM = Delay(MEMORY, 2, "8GiB each, 3.5GiB free")
HOLD = Delay(HELD_BACK, None, "image noble: being built")
FAILURE = Delay(FAILED, 1, "app-0-a: registering failed: no answer")
ANSWERED: dict[str, Any] = {"answered_at": NOW - 10, "scale_set": 7}


def explain(counts: Counts, demand: Demand | None = None, last: float = NOW - 60) -> Waiting:
    """What is shown of one flavour."""
    demands = {} if demand is None else {"small": demand}
    [found] = waiting.of_unit(Gauges(last, {"small": counts}), demands, NOW)
    return found


def numbers(reasons: tuple[Delay, ...]) -> list[tuple[str, int | None]]:
    return [(one.reason, one.number) for one in reasons]


JOBS: list[tuple[str, Counts, Demand, list[tuple[str, int | None]]]] = [
    ("no job", Counts(idle=1), Demand(**ANSWERED), []),
    ("all jobs run", Counts(busy=2), Demand(2, running=2, **ANSWERED), []),
    ("an idle runner", Counts(idle=2), Demand(1, **ANSWERED), [("not_assigned", 1)]),
    ("runners that start", Counts(starting=2), Demand(2, **ANSWERED), [("starting", 2)]),
    ("an idle one has begun since", Counts(idle=1, wanted=2), Demand(2, running=1, **ANSWERED), [("reconcile", 1)]),
    (
        "a starting one has begun since",
        Counts(starting=2),
        Demand(4, running=1, **ANSWERED),
        [("starting", 1), ("reconcile", 2)],
    ),
    (
        "idle and starting ones beside one with a job",
        Counts(idle=1, busy=1, starting=3),
        Demand(7, running=1, **ANSWERED),
        [("not_assigned", 1), ("starting", 3), ("reconcile", 2)],
    ),
    ("others keep its runners", Counts(busy=4, maximum=4), Demand(4, running=2, **ANSWERED), [("maximum", 2)]),
    ("more than the maximum", Counts(busy=5, maximum=4), Demand(5, running=2, **ANSWERED), [("maximum", 3)]),
    ("offline runners", Counts(other=2), Demand(1, **ANSWERED), [("offline", 1)]),
    ("at the maximum", Counts(busy=4, maximum=4), Demand(9, running=4, **ANSWERED), [("maximum", 5)]),
    (
        "a hold at the maximum",
        Counts(busy=4, maximum=4, delays=(HOLD,)),
        Demand(5, running=4, **ANSWERED),
        [("maximum", 1)],
    ),
    (
        "more than the maximum, and no room",
        Counts(busy=1, maximum=3, delays=(ROOM,)),
        Demand(1, 5, running=1, **ANSWERED),
        [("maximum", 3), ("memory", 2)],
    ),
    ("no room", Counts(busy=1, maximum=4, delays=(ROOM,)), Demand(3, running=1, **ANSWERED), [("memory", 2)]),
    ("held back", Counts(maximum=4, delays=(HOLD,)), Demand(3, **ANSWERED), [("held_back", 3)]),
    ("did not reach the set", Counts(maximum=4), Demand(missed=3, **ANSWERED), [("not_assigned", 3)]),
    ("the reconcile comes", Counts(maximum=4), Demand(3, **ANSWERED), [("reconcile", 3)]),
    ("no answer", Counts(idle=1, delays=(ROOM,)), Demand(3, answered_at=NOW - PATIENCE), [("demand_unknown", 3)]),
    ("no answer, no job", Counts(), Demand(answered_at=NOW - PATIENCE), [("demand_unknown", 0)]),
    ("labels are dropped", Counts(), Demand(dropped=("gpu",), **ANSWERED), [("not_assigned", 0)]),
    (
        "several at once",
        Counts(busy=1, starting=1, maximum=9, delays=(FAILURE, ROOM)),
        Demand(7, running=1, missed=1, **ANSWERED),
        [("starting", 1), ("creation_failed", 1), ("memory", 2), ("not_assigned", 1), ("reconcile", 2)],
    ),
]


@pytest.mark.parametrize(("counts", "demand", "reasons"), [each[1:] for each in JOBS], ids=[each[0] for each in JOBS])
def test_why_jobs_wait(counts: Counts, demand: Demand, reasons: list[tuple[str, int | None]]) -> None:
    """Each waiting job has one reason, the nearest one first, so that the numbers add up."""
    found = explain(counts, demand)

    assert numbers(found.of_jobs) == reasons
    assert sum(one.number or 0 for one in found.of_jobs) == found.waiting
    assert {one.reason for one in found.of_jobs} <= set(waiting.REASONS)


RUNNERS: list[tuple[str, Counts, list[tuple[str, int | None]]]] = [
    ("all are there", Counts(wanted=3, idle=1, busy=1, starting=1), []),
    ("more than asked for", Counts(wanted=1, idle=3), []),
    ("a hold, and all are there", Counts(wanted=1, idle=1, delays=(HOLD,)), []),
    ("one is offline", Counts(wanted=2, idle=1, other=1), [("offline", 1)]),
    ("creation fails", Counts(wanted=2, delays=(FAILURE,)), [("creation_failed", 1), ("reconcile", 1)]),
    ("no room", Counts(wanted=5, busy=3, delays=(ROOM, HOLD)), [("memory", 2)]),
    ("held back", Counts(wanted=5, busy=3, delays=(HOLD,)), [("held_back", 2)]),
    ("the file of an earlier version", Counts(expected=2, idle=1), [("reconcile", 1)]),
]


@pytest.mark.parametrize(("counts", "reasons"), [each[1:] for each in RUNNERS], ids=[each[0] for each in RUNNERS])
def test_why_runners_are_missing(counts: Counts, reasons: list[tuple[str, int | None]]) -> None:
    """With a fixed number, too: each runner that is neither idle, busy nor starting has one reason."""
    found = explain(counts)

    assert numbers(found.of_runners) == reasons == numbers(found.reasons)
    assert sum(one.number or 0 for one in found.of_runners) == found.missing
    assert (found.assigned, found.waiting, found.of_jobs) == (None, None, ())


def test_since_when_jobs_wait() -> None:
    """Since the oldest of them was queued; a time is of no job where none waits."""
    assert explain(Counts(), Demand(2, running=1, since=NOW - 90, **ANSWERED)).since == NOW - 90
    assert explain(Counts(), Demand(2, running=2, since=NOW - 90, **ANSWERED)).since is None


def test_reasons_name_what_is_known() -> None:
    """The text has the numbers, times and errors that an operator needs."""
    unanswered = replace(Demand(1, answered_at=NOW - 3600), problem="GitHub: server error (HTTP 503)")

    [reason] = explain(Counts(), unanswered).of_jobs
    assert reason.text == "no answer of GitHub since 2023-11-14 21:13:20 UTC: GitHub: server error (HTTP 503)"
    [reason] = explain(Counts(), Demand(1)).of_jobs
    assert reason.text == "no answer of GitHub yet"
    [reason] = explain(Counts(busy=2, maximum=2), Demand(3, running=2, **ANSWERED)).of_jobs
    assert reason.text == "no more than 2 runners are allowed"
    [reason] = explain(Counts(), Demand(dropped=("gpu", "b\nig"), **ANSWERED)).of_jobs
    assert reason.text == "the server drops labels of the scale set: gpu, b ig"
    [reason] = explain(Counts(wanted=1)).of_runners
    assert reason.text == (
        "the last reconcile ended 2023-11-14 22:12:20 UTC; the one that runs, or the next one, creates runners"
    )


def test_before_the_first_reconcile_jobs_wait_for_it() -> None:
    """After a reboot the agent may hear of jobs before a reconcile has recorded anything."""
    [found] = waiting.of_unit(None, {"small": Demand(2, **ANSWERED)}, NOW)

    assert numbers(found.of_jobs) == [("reconcile", 2)]
    assert found.of_jobs[0].text == ("no reconcile has ended yet; the one that runs, or the next one, creates runners")


def test_every_reason_is_explained() -> None:
    """The page about finding out what is wrong has a row for each reason, and no other; the reference names them."""
    page, reference = ((DOCS / name).read_text() for name in ("how-to/debug.md", "reference/metrics.md"))
    section = page.partition("## Find out why a job waits\n")[2].partition("\n## ")[0]

    rows = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(waiting.REASONS)
    assert [reason for reason in waiting.REASONS if f"`{reason}`" not in reference] == []


def shown(found: list[Waiting], form: str) -> list[dict[str, Any]]:
    """The flavours as a script reads them."""
    text = listing.waiting_text(found, form)
    objects: list[dict[str, Any]] = json.loads(text) if form == "json" else yaml.safe_load(text)
    return objects


def test_a_line_and_an_object_for_each_flavour_that_waits() -> None:
    """Wanted, there, assigned, waiting since when, and the reasons; a flavour without any is left out."""
    since = NOW - 90
    counts = Counts(busy=1, starting=1, wanted=4, maximum=9, delays=(ROOM,))
    recorded = Gauges(NOW - 60, {"small": counts, "large": Counts(wanted=1, busy=1)})
    demands = {"small": Demand(4, running=1, since=since, **ANSWERED), "large": Demand(1, running=1, **ANSWERED)}
    found = [each for each in waiting.of_unit(recorded, demands, NOW) if each.reasons]

    assert listing.waiting_lines(found) == (
        "small: 2 of 4 runners, 4 jobs assigned, 3 waiting since 2023-11-14 22:11:50 UTC: "
        "1 starting, 2 memory (8GiB each, 3.5GiB free)"
    )
    assert shown(found, "json") == shown(found, "yaml")
    assert shown(found, "json") == [
        {
            "flavor": "small",
            "wanted": 4,
            "there": 2,
            "missing": 2,
            "assigned": 4,
            "waiting": 3,
            "since": "2023-11-14T22:11:50Z",
            "reasons": [
                {"reason": "starting", "number": 1, "text": ""},
                {"reason": "memory", "number": 2, "text": "8GiB each, 3.5GiB free"},
            ],
        }
    ]
    heading, row = listing.waiting_text(found, "table").splitlines()
    assert " ".join(heading.split()) == "Flavor Wanted There Missing Assigned Waiting Since (UTC) Reasons"
    assert row.split()[:5] == ["small", "4", "2", "2", "4"]


def test_a_fixed_number_has_a_line_without_jobs() -> None:
    """Nothing is known of jobs: the line has none, and a script reads null."""
    found = [explain(Counts(wanted=3, idle=1, delays=(FAILURE, HOLD)))]

    assert listing.waiting_lines(found) == (
        "small: 1 of 3 runners: 1 creation_failed (app-0-a: registering failed: no answer), "
        "1 held_back (image noble: being built)"
    )
    assert [(each["assigned"], each["waiting"], each["since"]) for each in shown(found, "json")] == [(None, None, None)]


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_waits(form: str) -> None:
    """The text is empty, an empty list or the headings only."""
    assert listing.waiting_lines([]) == ""
    assert listing.waiting_text([], form) in ("[]", "  ".join(listing.WAITING_HEADINGS))


def test_the_runners_of_this_moment_count() -> None:
    """What has come online or ended since the last reconcile is seen; the reasons are those that it recorded."""
    busy = GithubRunner(1, "app-0-b", online=True, busy=True)
    views = [
        view(flavor="small"),
        view(name="app-0-b", flavor="small", github=busy),
        view(name="app-0-c", flavor="small", running=False),
        view(name="app-0-d", flavor="large"),
        view(name="app-0-e", flavor="small", exists=False, running=False),
    ]
    recorded = Gauges(NOW - 60, {"small": Counts(wanted=5, starting=5, delays=(ROOM,))})

    [found] = listing.waiting_now([ObservedRunner(each, REPO, None) for each in views], recorded, {}, NOW)

    assert (found.there, found.missing) == (3, 3)
    assert numbers(found.reasons) == [("offline", 1), ("memory", 2)]
