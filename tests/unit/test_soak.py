"""Days of simulated reconciles: `make faults` runs a month of a hundred runners."""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flavor_changes
import flavor_plans
import metrics.collect
import metrics.runner
import metrics.storage
import plan
import runner_manager
import times
from changes import Changes
from metrics.events import Event
from naming import Identity
from plan import Health
from programs import sessions
from runner_view import RunnerView
from tests.faults import soak, soak_demand

SMALL = soak.Scale(runners=4, foreign=30, ticks=soak.TICKS_A_DAY // 2, seed=1)
SHORT_DEMAND = soak.Scale(runners=8, foreign=100, ticks=soak.TICKS_A_DAY, seed=9)
LEVELS = ("memory_growth_kib", "memory_blocks_growth", "open_files_growth")


@pytest.fixture(autouse=True)
def untraced_threads() -> Iterator[None]:
    """Coverage keeps a tracer for each thread that has ever run, which would count as growth of the charm."""
    tracer = threading.gettrace()
    threading.settrace(None)
    yield
    threading.settrace(tracer)


def test_a_day_with_jobs_and_faults() -> None:
    """Each job is run once and its events are written once, whatever dies; memory and open files stay level."""
    figures: dict[str, Any] = soak.soak(soak.SHORT)

    assert figures["jobs_queued"] == figures["jobs_run"] + figures["jobs_cut"] > 300
    assert figures["jobs_lost"] == figures["jobs_doubled"] == 0
    assert figures["events_written"] == figures["events_expected"] == 2 * figures["jobs_run"] + figures["jobs_cut"]
    assert figures["events_repeated"] == figures["events_unexpected"] == 0
    assert all(figures[kind] for kind in ("crashes", "reboots", "reboots_in_a_reconcile", "outages", "option_changes"))
    assert figures["recoveries_seen"] > 10
    assert figures["memory_blocks_growth"] < 3000
    assert figures["open_files_growth"] <= 0


def test_a_day_in_demand_mode() -> None:
    """The same, with two flavours that share a budget, lost sessions, and sets that are made anew."""
    figures: dict[str, Any] = soak.soak(SHORT_DEMAND, soak_demand.DemandMonth)

    assert figures["jobs_queued"] == figures["jobs_run"] + figures["jobs_cut"] > 100
    assert figures["jobs_lost"] == figures["jobs_doubled"] == 0
    assert figures["events_written"] == figures["events_expected"] == 2 * figures["jobs_run"] + figures["jobs_cut"]
    assert figures["events_repeated"] == figures["events_unexpected"] == 0
    for kind in ("reboots_in_a_reconcile", "option_changes", "sessions_lost", "sessions_back"):
        assert figures[kind], kind
    assert figures["reconciles_with_fallback"] > 0
    assert figures["reconciles_without_list"] > 50
    assert figures["recoveries_seen"] > 5
    assert figures["memory_blocks_growth"] < 3000
    assert figures["open_files_growth"] <= 0


def test_two_hundred_runners_on_one_unit() -> None:
    """All are made in one reconcile, and a flush leaves no instance, registration or storage."""
    figures = soak.fleet(soak.FLEET)

    assert figures["fleet_created"] == figures["fleet_flushed"] == 200
    assert figures["fleet_left_over"] == 0


def test_same_seed_makes_the_same_world() -> None:
    """What a run finds can be found again."""
    first, second = (soak.soak(replace(SMALL, ticks=40)) for _ in range(2))

    assert {**first, **dict.fromkeys(LEVELS)} == {**second, **dict.fromkeys(LEVELS)}


def test_another_seed_makes_another_world() -> None:
    """A month may be run again with other faults."""
    first, second = (soak.soak(replace(SMALL, seed=seed, ticks=20)) for seed in (1, 2))

    assert first["jobs_queued"] != second["jobs_queued"]


def careless(manager: Any, plan: Any, runners: Any, changes: Any) -> None:
    changes.remove([runners[name] for name in plan.busy if name.endswith("0")])
    UNHEALTHY(manager, plan, runners, changes)


def overlooking(view: RunnerView, now: float) -> Health:
    found = HEALTH(view, now)
    return Health.IDLE if found is Health.UNHEALTHY else found


def greedy(identity: Identity, name: str) -> bool:
    return name.startswith(identity.prefix)


def hasty(changes: Any, orders: Any) -> None:
    CREATE(changes, [replace(order, number=order.number + 1) for order in orders if order.number])


def leaky(path: Path, limit: int) -> bytes:
    OPEN.append(path.open("rb"))
    return READ(path, limit)


def twice(event: Event) -> None:
    ISSUE(event)
    ISSUE(event)


HEALTH, CREATE = plan.health, Changes.create
UNHEALTHY = runner_manager.RunnerManager._remove_unhealthy
READ, ISSUE = metrics.storage.read_limited, metrics.events.issue_event
OPEN: list[Any] = []


@pytest.fixture
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


# Also private functions are broken here: each stands for a defect at this place, and no rule of the code is tested.
@pytest.mark.parametrize(
    ("owner", "name", "broken", "rule"),
    [
        (runner_manager.RunnerManager, "_remove_unhealthy", careless, "jobs_doubled|instances, wanted are"),
        (plan, "health", overlooking, "a dead runner stays|that GitHub does not see"),
        (times, "OFFLINE", math.inf, "a runner stays that GitHub does not see"),
        (Identity, "manages", greedy, "a foreign runner was deleted"),
        (Changes, "create", hasty, "more instances than wanted"),
        (Changes, "_remove_one_idle", lambda *_: False, "an outdated runner stays|wanted are"),
        (metrics.collect, "issue_events", lambda *_: set(), "events are missing"),
        (metrics.runner, "_runner_stop", lambda *_: None, "events are missing"),
        (metrics.runner, "_remove", lambda *_: None, "a metrics storage is left over"),
        (metrics.events, "issue_event", twice, "events_repeated"),
        (metrics.runner, "read_limited", leaky, "open_files_growth"),
    ],
    ids=[
        "kills busy runners",
        "keeps dead runners",
        "keeps offline runners",
        "manages by a prefix",
        "makes too many",
        "keeps what is outdated",
        "issues nothing",
        "loses an event",
        "keeps storages",
        "issues twice",
        "leaves files open",
    ],
)
def test_soak_finds_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, closed: None, owner: Any, name: str, broken: Callable[..., Any], rule: str
) -> None:
    """Each rule would be missed if the code broke it."""
    monkeypatch.setattr(owner, name, broken)

    with pytest.raises(AssertionError, match=rule):
        check(soak.soak(SMALL))


def overlooking_jobs(before: Any, statistics: Any, jobs: Any, number: int, now: float) -> Any:
    return DEMANDED(before, replace(statistics, assigned=statistics.assigned // 2), jobs, number, now)


def generous(capacity: Any, existing: Any, asks: Any, aims: Any, missing: Any) -> Any:
    return dict(missing), []


DEMANDED = sessions.demanded


@pytest.mark.parametrize(
    ("owner", "name", "broken", "rule"),
    [
        (soak_demand, "demanded", overlooking_jobs, "wanted are"),
        (flavor_changes, "grants", generous, "more instances than there is room for"),
        (flavor_plans, "_beside_others", lambda wanted, views, now: wanted, "wanted are"),
        (
            plan.Desired,
            "is_current",
            lambda desired, view: view.fingerprint == desired.fingerprint,
            "an outdated|wanted",
        ),
        (times, "LIST_OF_RUNNERS", math.inf, "a runner stays that GitHub does not see"),
    ],
    ids=[
        "counts half the jobs",
        "has no budget",
        "counts other sets' runners",
        "keeps runners of other sets",
        "does not read the list again",
    ],
)
def test_demand_finds_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, broken: Callable[..., Any], rule: str
) -> None:
    """Each rule of demand mode would be missed if the code broke it."""
    monkeypatch.setattr(owner, name, broken)

    with pytest.raises(AssertionError, match=rule):
        check(soak.soak(SHORT_DEMAND, soak_demand.DemandMonth))


def check(figures: dict[str, Any]) -> None:
    for figure in ("jobs_lost", "jobs_doubled", "events_repeated", "events_unexpected", "open_files_growth"):
        assert figures[figure] <= 0, figure
