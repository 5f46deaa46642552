"""Reconciles without GitHub's list of runners: what they take runners for, and when they read the list after all."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import metrics.events
import metrics.storage
import runner
import telemetry
from budget import Capacity
from flavor_plans import Plans, Wanted, make_plans
from models import FailedStarts
from naming import OFFLINE_SINCE_KEY, ONLINE_KEY, PREPARED_KEY, SCALE_SET_KEY
from plan import Desired, Reason
from runner_view import Process, RunnerView
from tests.support.fakes import IDENTITY
from tests.unit.test_flavor_plans import BUSY, GIB, LARGE, ONLINE, SMALL, TODAY, World, view, wanted
from unlisted import PICK_UP, needs_no_list, presumed

NOW = 1_700_000_000.0
OLD = NOW - 3600
SET = 7


def instance(name: str, flavor: str = "small", **changes: Any) -> RunnerView:
    """A runner as LXD alone shows it."""
    values = {"created_at": OLD, "prepared_at": OLD, "scale_set": SET, "github": None, "github_known": False}
    return view(name, flavor, **{**values, **changes})


def asked(number: int | None = 2, **changes: Any) -> Wanted:
    """What demand asks for of the flavour small."""
    return wanted("small", number, **{"scale_set": SET, **changes})


def seen(item: Wanted, *views: RunnerView, age: float = PICK_UP) -> dict[str, Process] | None:
    """What runners are taken for; None where the list is needed."""
    found = presumed([item], TODAY, views, age, NOW)
    return None if found is None else {each.name: each.process for each in found}


def planned(item: Wanted, *views: RunnerView) -> Plans:
    return make_plans([item], TODAY, Desired(0, ""), views, NOW)


def test_the_oldest_runners_have_the_jobs_that_run() -> None:
    """GitHub's number of jobs that run counts, up to the number of runners; what is stopped has none."""
    a, b, c = (instance(name, created_at=OLD + after) for name, after in (("a", 2), ("b", 1), ("c", 0)))
    c = replace(c, running=False)

    assert seen(asked(running_jobs=1), a, b, c) == {"c": Process.RUNNING, "b": Process.WORKER, "a": Process.RUNNING}
    assert seen(asked(running_jobs=9), a, b) == {"b": Process.WORKER, "a": Process.WORKER}


@pytest.mark.parametrize(
    ("item", "runner"),
    [
        (asked(), instance("a", fingerprint="yesterday")),
        (asked(), instance("a", scale_set=None)),
        (asked(), instance("a", scale_set=SET + 1)),
        (asked(), instance("a", prepared=False)),
        (asked(), instance("a", offline_since=OLD)),
        (asked(), instance("a", "former")),
        (asked(0, scale_set=None), instance("a")),
        (asked(None), instance("a", scale_set=None)),
        (asked(None, scale_set=None, any_registration=True), instance("a")),
        (asked(1, scale_set=None, any_registration=True), instance("a", scale_set=None)),
    ],
    ids=str,
)
def test_anything_unusual_needs_the_list(item: Wanted, runner: RunnerView) -> None:
    """Outdated, unfinished and offline runners, those of another set or flavour, and demand that is not known."""
    assert seen(item, runner) is None


@pytest.mark.parametrize("number", [None, 1])
def test_while_demand_is_not_known_the_list_is_read(number: int | None) -> None:
    """Also where no runner is there."""
    assert seen(asked(number, scale_set=None, any_registration=True)) is None


def test_a_stopped_instance_needs_no_list() -> None:
    """It is removed however GitHub lists it, and also if it is of a flavour that was removed."""
    stopped = instance("a", running=False, fingerprint="yesterday"), instance("b", "former", running=False)

    found = presumed([asked()], TODAY, stopped, 0.0, NOW)

    assert found is not None
    plans = planned(asked(), *found)
    assert needs_no_list(plans, found)
    assert (sorted(dict(plans.whole.remove)), plans.whole.create) == (["a", "b"], 2)


@pytest.mark.parametrize(
    ("changes", "age", "needed"),
    [
        ({}, PICK_UP, True),
        ({}, PICK_UP - 1, False),
        ({"prepared_at": NOW - PICK_UP + 1}, PICK_UP, False),
        ({"prepared_at": NOW + 5}, PICK_UP, True),
        ({"running": False}, PICK_UP, False),
    ],
    ids=str,
)
def test_a_job_that_waits_beside_a_ready_runner(changes: dict[str, Any], age: float, needed: bool) -> None:
    """The runner may be unable to take it, or have a job that GitHub has given up; the list tells, once a minute."""
    item = asked(2, since=NOW - 1, running_jobs=1)
    runners = instance("a"), instance("b", **changes)

    assert (seen(item, *runners, age=age) is None) is needed
    assert seen(replace(item, since=None), *runners, age=age) is not None
    assert seen(replace(item, running_jobs=2), *runners, age=age) is not None


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (Process.RUNNING, False),
        (Process.WORKER, True),
        (Process.NONE, True),
        (Process.UNKNOWN, True),
        (Process.FAILED, False),
        (Process.DEPRECATED, False),
    ],
)
def test_an_idle_runner_too_many_needs_the_list(process: Process, expected: bool) -> None:
    """One that ends is none, by its health probe; one whose agent has ended without a job is judged with the list."""
    runners = instance("a", presumed=True, process=Process.WORKER), instance("b", presumed=True, process=process)

    plans = planned(asked(1, running_jobs=1), *runners)

    assert needs_no_list(plans, runners) is expected
    assert plans.whole.create == 0
    assert dict(plans.whole.remove).keys() == ({"b"} if process is Process.RUNNING else set())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path / "metrics.log")
    monkeypatch.setattr(metrics.storage, "FILESYSTEM_QUARANTINE_PATH", tmp_path / "quarantine")
    monkeypatch.setattr(runner, "LOGS_PATH", tmp_path / "logs")
    return World(tmp_path)


def add(world: World, digits: str, keys: Mapping[str, str] = MappingProxyType({}), *, busy: bool = False) -> str:
    """A small runner of the set; its name."""
    world.add(digits, "small", SMALL, busy=busy, keys={SCALE_SET_KEY: str(SET), **keys})
    return f"{IDENTITY.prefix}{digits}"


def test_a_burst_is_served_without_the_list(world: World) -> None:
    """Runners are created, and the numbers of the report are GitHub's; nothing is recorded that a list would tell."""
    busy = add(world, "aa", busy=True)
    idle = add(world, "ab")

    manager = world.reconcile(asked(4, running_jobs=1), list_age=1.0)

    assert world.github.lists == []
    assert not manager.findings.listed
    assert (manager.report.busy, manager.report.other) == ([busy], [])
    assert sorted(manager.report.idle) == sorted([idle, *manager.report.created])
    assert (len(manager.report.created), world.missing) == (2, 2)
    assert not {ONLINE_KEY, OFFLINE_SINCE_KEY} & world.lxd.found[idle].config.keys()
    assert [item.commands for item in (world.lxd.found[busy], world.lxd.found[idle])] == [[], []]
    assert manager.report.failures == []


def test_a_killed_runner_costs_no_other_one(world: World) -> None:
    """GitHub counts its job as running for 9.5 minutes: there is one idle runner more until then, and only one."""
    killed, busy = add(world, "aa", busy=True), add(world, "ab", busy=True)
    del world.lxd.found[killed]
    world.github.runners[killed] = replace(world.github.runners[killed], online=False)

    created: list[str] = []
    for list_age in (None, 1.0, 300.0, None):
        manager = world.reconcile(asked(2, running_jobs=2), list_age=list_age)
        created += manager.report.created
        assert (sorted(world.lxd.found), manager.report.removed) == (sorted([busy, *created]), [])
        assert killed in world.github.runners
    assert len(created) == 1

    world.github.busy.discard(world.github.runners[killed].runner_id)
    world.github.runners[killed] = replace(world.github.runners[killed], busy=False)
    world.reconcile(asked(1, running_jobs=1))
    assert set(world.lxd.found) == set(world.github.runners) == {busy}


def test_a_runner_is_starting_for_a_minute(world: World) -> None:
    """Without the list nobody knows when it comes online; it is among the idle ones, as when it was made."""
    new = add(world, "aa", {PREPARED_KEY: str(NOW - PICK_UP + 1)})
    ready = add(world, "ab", {PREPARED_KEY: str(NOW - PICK_UP)})
    seen = add(world, "ac", {PREPARED_KEY: str(NOW - 1), ONLINE_KEY: "true"})

    manager = world.reconcile(asked(3, min_idle=3), list_age=1.0)

    assert (manager.report.starting, sorted(manager.report.idle)) == ([new], sorted([new, ready, seen]))
    assert world.github.lists == []


def test_the_first_reconcile_reads_the_list(world: World) -> None:
    """And says so, for the record."""
    manager = world.reconcile(asked(1))

    assert len(world.github.lists) == 1
    assert manager.findings.listed


def test_an_idle_runner_too_many_is_removed_by_the_list(world: World) -> None:
    """GitHub lists which one is idle, whichever was taken for it."""
    idle, busy = add(world, "aa"), add(world, "ab", busy=True)

    world.reconcile(asked(1, running_jobs=1), list_age=1.0)

    assert len(world.github.lists) == 1
    assert set(world.lxd.found) == {busy} != {idle}


def test_an_instance_that_ends_is_left_alone(world: World) -> None:
    """GitHub reports a job's end before the instance is gone: it is neither removed nor judged, and costs no list."""
    busy, ending = add(world, "aa", busy=True), add(world, "ab")
    world.lxd.found[ending].process = 11

    manager = world.reconcile(asked(1, running_jobs=1), list_age=1.0)

    assert world.github.lists == []
    assert set(world.lxd.found) == {busy, ending}
    assert (manager.report.busy, manager.report.other) == ([busy], [ending])


@pytest.mark.parametrize(
    "options",
    [
        {"hold": "no network"},
        {"deprecated_since": NOW - 60},
        {"failed_starts": FailedStarts(1, NOW - 60, "clock")},
        {"dropped": FailedStarts(1, NOW - 60)},
    ],
    ids=["hold", "deprecated version", "failed starts", "dropped runners"],
)
def test_while_something_is_wrong_the_list_is_read(world: World, options: dict[str, Any]) -> None:
    """It is over when a runner is listed as online."""
    world.reconcile(asked(0), list_age=1.0, **options)

    assert len(world.github.lists) == 1


def test_room_is_made_for_another_flavour(world: World) -> None:
    """Idle runners beyond their goal go for a job that waits, in the same reconcile."""
    for digits in ("aa", "ab", "ac", "ad"):
        add(world, digits)
    room = Capacity(5 * GIB, 99)

    large = wanted("large", 1, since=NOW - 5, scale_set=8)
    world.reconcile(asked(4, min_idle=4), large, list_age=1.0, capacity=room)

    assert world.there() == ["large", "small"]
    assert len(world.github.lists) == 1


def test_the_budget_holds_without_the_list(world: World) -> None:
    """Instances count, whatever they do."""
    for digits in ("aa", "ab"):
        world.add(digits, "large", LARGE, busy=True, keys={SCALE_SET_KEY: "8"})

    world.reconcile(
        asked(4), wanted("large", 2, scale_set=8, running_jobs=2), list_age=1.0, capacity=Capacity(10 * GIB, 99)
    )

    assert world.there() == ["large", "large", "small", "small"]
    assert world.github.lists == []


@pytest.mark.parametrize(("list_age", "expected"), [(1.0, 41), (None, None)])
def test_what_was_left_of_the_quota_still_counts(world: World, list_age: float | None, expected: int | None) -> None:
    """A reconcile that asks GitHub nothing hears nothing of it. One that reads the list hears of no limit, too."""
    telemetry.save(IDENTITY.unit, telemetry.Gauges(quota_left=41))
    world.github.quota_left = None

    world.reconcile(asked(0), list_age=list_age)

    found = telemetry.load(IDENTITY.unit)
    assert found is not None
    assert found.quota_left == expected


@given(
    runners=st.lists(st.sampled_from(["idle", "busy", "stopped"]), max_size=6),
    waiting=st.integers(0, 4),
    min_idle=st.integers(0, 2),
    maximum=st.integers(0, 6),
)
def test_without_the_list_a_reconcile_does_the_same(
    runners: list[str], waiting: int, min_idle: int, maximum: int
) -> None:
    """While every runner does what it should: the same removals and creations, and as many idle and busy ones."""
    busy = runners.count("busy")
    number = min(maximum, min_idle + busy + waiting)
    item = asked(number, min_idle=min_idle, running_jobs=busy, since=NOW - 5 if waiting else None)
    lxd = [instance(f"{at}", created_at=OLD + at, running=state != "stopped") for at, state in enumerate(runners)]
    listed = {"idle": ONLINE, "busy": BUSY, "stopped": None}
    full = [replace(each, github=listed[state], github_known=True) for each, state in zip(lxd, runners, strict=True)]

    views = presumed([item], TODAY, lxd, 0.0, NOW)

    assert views is not None
    found, expected = planned(item, *views).whole, planned(item, *full).whole
    if needs_no_list(planned(item, *views), views):
        assert (found.remove, found.create) == (expected.remove, expected.create)
        assert (len(found.idle), len(found.busy)) == (len(expected.idle), len(expected.busy))
    else:
        assert Reason.SURPLUS in dict(expected.remove).values()
