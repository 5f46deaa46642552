"""Several flavours in one reconcile: who is drained, what holds for the unit, and what waits for room."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

import delays
import metrics.events
import metrics.storage
import provision
import runner
import status
import telemetry
import times
from budget import Capacity
from errors import ConfigurationError, LxdError, TemporaryGithubError
from flavor_plans import Plans, Wanted, make_plans
from gh.registration import Registration
from gh.scale_set_registration import ScaleSetRegistration
from models import CharmState, FailedCreation, Flavor, GithubRunner, RegistrationData, Scaling, VirtualMachineResources
from naming import FLAVOR_KEY, KEY, SCALE_SET_KEY, fingerprint
from observe import ObservedRunner
from plan import Desired, Reason
from report import FlavorCount, Report
from runner import RunnerManagerClients
from runner_manager import RunnerManager
from runner_view import Process, RunnerView
from telemetry import Counts, Delay, Measurement
from tests.support.fakes import IDENTITY, TEMPLATES, FakeGithub, FakeInstance, FakeLxd, FakeStorages, state

NOW = 1_700_000_000.0
OLD = NOW - 3600
GIB = 1 << 30
SMALL = VirtualMachineResources(1, "1GiB", "2GiB")
LARGE = VirtualMachineResources(2, "4GiB", "8GiB")
BINARY = "actions-runner-linux-x64-2.320.0.tar.gz"
ONLINE = GithubRunner(1, "r", online=True, busy=False)
BUSY = GithubRunner(1, "r", online=True, busy=True)
OFFLINE = GithubRunner(1, "r", online=False, busy=False)
TODAY = {"small": "small today", "large": "large today"}
UNIT = Desired(0, "")


def flavored(**changes: Any) -> CharmState:
    """A unit with two flavours: two small runners and one large one."""
    base = state().base_image
    flavors = (Flavor("small", SMALL, base, ("s",), 2, 2), Flavor("large", LARGE, base, ("l",), 1, 1))
    return state(**{"given_flavors": flavors, **changes})


def wanted(flavor: str, number: int | None, **changes: Any) -> Wanted:
    [spec] = [spec for spec in flavored().runners if spec.flavor == flavor]
    return Wanted(spec, number, **changes)


def view(name: str, flavor: str, **changes: Any) -> RunnerView:
    values: dict[str, Any] = {
        "exists": True,
        "running": True,
        "created_at": OLD,
        "prepared": True,
        "github": ONLINE,
        "fingerprint": TODAY.get(flavor, ""),
        **changes,
    }
    return RunnerView(name, flavor=flavor, **values)


def plans(items: list[Wanted], *views: RunnerView, unit: Desired = UNIT, room: Capacity | None = None) -> Plans:
    return make_plans(items, TODAY, unit, views, NOW, room)


def created(found: Plans) -> dict[str, int]:
    return {one.wanted.flavor: one.plan.create for one in found.flavors}


def test_each_flavour_has_its_number() -> None:
    """Runners of one flavour do not count for another one."""
    found = plans([wanted("small", 2), wanted("large", 1)], view("a", "large"), view("b", "large", github=BUSY))

    assert created(found) == {"small": 2, "large": 0}
    assert dict(found.whole.remove) == {"a": Reason.SURPLUS}
    assert (found.wanted, found.missing) == (3, 1)


def test_a_flavour_that_is_not_configured_is_drained() -> None:
    """Its idle runners are removed, and its busy ones finish."""
    found = plans(
        [wanted("small", 0)], view("a", "gone"), view("b", "gone", github=BUSY), view("c", "gone", running=False)
    )

    assert set(dict(found.whole.remove)) == {"a", "c"}
    assert found.whole.busy == ("b",)


def test_a_registration_without_an_instance_is_removed_once() -> None:
    """It belongs to no flavour."""
    orphan = RunnerView("a", exists=False, github=OFFLINE)

    assert plans([wanted("small", 0), wanted("large", 0)], orphan).whole.remove == (("a", Reason.ORPHANED),)


def test_an_unknown_number_keeps_what_is_there() -> None:
    """No idle runner is removed and none is created; unhealthy ones are removed all the same."""
    outdated = view("b", "small", fingerprint="yesterday")
    found = plans([wanted("small", None)], view("a", "small"), outdated, view("c", "small", running=False))

    assert (found.whole.remove, found.whole.create, found.whole.postponed) == ((("c", Reason.UNHEALTHY),), 0, ())
    assert (found.wanted, found.missing) == (2, 0)


@pytest.mark.parametrize(
    ("runner_has", "changes", "outdated"),
    [
        (7, {"scale_set": 7}, False),
        (7, {"scale_set": 8}, True),
        (None, {"scale_set": 8}, True),
        (7, {}, True),
        (7, {"any_registration": True}, False),
        (None, {"scale_set": 8, "any_registration": True}, False),
        (None, {}, False),
    ],
)
def test_a_runner_of_another_scale_set_is_outdated(runner_has: int | None, changes: Any, outdated: bool) -> None:
    """It gets no job of the set that is used now, unless any registration is good."""
    found = plans([wanted("small", 1, **changes)], view("a", "small", scale_set=runner_has))

    assert found.whole.names(Reason.OUTDATED) == (["a"] if outdated else [])


def test_busy_runners_of_another_set_do_not_serve_its_jobs() -> None:
    """Runners of a former set, of none, and with a job that GitHub does not know count beside the number, up to max."""
    busy = [view(f"old{number}", "small", github=BUSY, scale_set=number) for number in (None, 7)]
    lost = view("lost", "small", github=None, process=Process.WORKER, scale_set=8, seen_online=True)
    mine = view("mine", "small", github=BUSY, scale_set=8)

    for maximum, expected in ((None, 1), (9, 1), (4, 0)):
        found = plans([wanted("small", 2, scale_set=8, maximum=maximum)], *busy, lost, mine)
        assert created(found) == {"small": expected}, maximum


@pytest.mark.parametrize("why", ["unit", "flavour"])
def test_idle_runners_of_a_former_flavour_stay_while_none_can_be_created(why: str) -> None:
    """They are better than none; where no runner is wanted they go all the same."""
    unit = replace(UNIT, may_create=why != "unit")
    hold = "no image" if why == "flavour" else ""

    kept = plans([wanted("small", 2, hold=hold)], view("a", "former"), unit=unit)
    drained = plans([wanted("small", 0, hold=hold)], view("a", "former"), unit=unit)

    assert (kept.whole.remove, drained.whole.remove) == ((), (("a", Reason.OUTDATED),))


def test_a_version_is_tried_with_one_runner_of_the_unit() -> None:
    """All flavours have the same runner binary; any runner that was created since shows whether it works."""
    both = [wanted("small", 2), wanted("large", 2)]
    unit = replace(UNIT, deprecated_since=NOW - 600)

    assert created(plans(both, unit=unit)) == {"small": 1, "large": 0}
    tried = view("a", "large", created_at=NOW - 60, github=None, process=Process.RUNNING)
    assert created(plans(both, tried, unit=unit)) == {"small": 0, "large": 0}
    proven = view("a", "large", created_at=NOW - 60)
    assert created(plans(both, proven, unit=unit)) == {"small": 2, "large": 1}


@pytest.mark.parametrize("process", [Process.FAILED, Process.DEPRECATED])
def test_a_failed_start_stops_all_flavours(process: Process) -> None:
    """The reason may hold for each of them; the next attempt is the unit's."""
    ended = view("a", "large", github=OFFLINE, process=process, created_at=NOW - 60, confirmed=True)
    outdated = view("b", "small", fingerprint="yesterday")
    found = plans([wanted("small", 2), wanted("large", 1)], ended, outdated)

    assert created(found) == {"small": 0, "large": 0}
    assert dict(found.whole.remove) == {"a": Reason.UNHEALTHY}


def test_one_old_runner_of_the_unit_is_replaced() -> None:
    """The oldest one of all flavours."""
    both = [wanted("small", 1), wanted("large", 1)]
    older = view("b", "large", created_at=OLD - 60)
    found = plans(both, view("a", "small"), older, unit=replace(UNIT, idle_max_age=60.0))

    assert dict(found.whole.remove) == {"b": Reason.AGED}
    assert created(found) == {"small": 0, "large": 1}


def test_idle_runners_make_room_for_who_is_first() -> None:
    """What is beyond the goal of its flavour is removed, and what is wanted still counts as missing."""
    found = plans(
        [wanted("small", 4), wanted("large", 1, since=NOW - 60)],
        *(view(name, "small") for name in "abcd"),
        room=Capacity(5 * GIB, 99),
    )

    assert len(found.whole.names(Reason.SURPLUS)) == 3
    assert created(found) == {"small": 0, "large": 1}
    assert (found.wanted, [str(wait) for wait in found.waits]) == (
        5,
        ["3 of small wait for memory (1GiB each, 0GiB free)"],
    )


class World:
    """A unit of two flavours with its fakes."""

    def __init__(self, folder: Path) -> None:
        self.lxd, self.github, self.now = FakeLxd(), FakeGithub(), NOW
        (folder / "fs").mkdir()
        self.storages = FakeStorages(folder / "fs")
        self.binary = folder / BINARY
        self.binary.write_bytes(b"tarball")
        self.state = flavored()
        self.lxd.registered = lambda instance: self.github.register(instance.name)

    def manager(self, **options: Any) -> RunnerManager:
        clients = RunnerManagerClients(self.github, provision.environment(TEMPLATES), self.lxd, None)  # type: ignore[arg-type]
        options["clock"] = lambda: self.now
        return RunnerManager(IDENTITY, self.state, clients, self.storages, self.binary, **options)

    def observed(self) -> Mapping[str, ObservedRunner]:
        return self.manager().observer.observe().runners

    def reconcile(self, *items: Wanted, list_age: float | None = None, **options: Any) -> RunnerManager:
        manager = self.manager(**options)
        self.missing = manager.reconcile_flavors(items, list_age)
        return manager

    def there(self) -> list[str]:
        return sorted(item.config[FLAVOR_KEY] for item in self.lxd.found.values())

    def add(
        self,
        digits: str,
        flavor: str,
        size: VirtualMachineResources,
        *,
        busy: bool = False,
        keys: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        [spec] = [spec for spec in self.state.runners if spec.flavor == flavor]
        today = fingerprint(spec, BINARY, "")
        config = {f"{KEY}created": str(OLD), f"{KEY}prepared": str(OLD), FLAVOR_KEY: flavor, f"{KEY}fingerprint": today}
        item = FakeInstance(self.lxd, f"{IDENTITY.prefix}{digits}", {**config, **keys})
        item.running, item.profiles, item.process = True, ["default", size.profile], 0 if busy else 10
        self.lxd.found[item.name] = item
        found = self.github.register(item.name, busy=busy)
        self.github.busy |= {found.runner_id} if busy else set()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path / "metrics.log")
    monkeypatch.setattr(metrics.storage, "FILESYSTEM_QUARANTINE_PATH", tmp_path / "quarantine")
    monkeypatch.setattr(runner, "LOGS_PATH", tmp_path / "logs")
    return World(tmp_path)


def test_a_flavour_that_cannot_be_created_costs_others_no_runner(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many reconciles there are. From time to time one of it is tried; once that works it has its place."""
    whole = large_fails(world, monkeypatch)
    failed: FailedCreation | None = None
    reasons, removed, numbers = [], [], []

    def reconcile(tried: bool = False) -> None:
        nonlocal failed
        large = wanted("large", 3, since=NOW - 60, failed=failed, is_tried=tried)
        both = large, wanted("small", 8, since=NOW)
        manager = world.reconcile(*both, capacity=Capacity(8 * GIB, 99))
        world.now += 60
        [delays] = [one.delays for one in manager.report.flavors if one.flavor == "large"]
        failed = (manager.findings.failed_creations or {}).get("large")
        reasons.append(delays[0].reason if delays else "")
        removed.append(len(manager.report.removed))
        numbers.append(Counter(world.there()))

    for _ in range(4):
        reconcile()
    assert reasons == ["creation_failed"] * 4
    assert (removed, numbers[1:]) == ([0] * 4, [{"small": 8}] * 3)

    reconcile(tried=True)
    reconcile()
    assert (removed[4:], numbers[4:]) == ([4, 0], [{"small": 4}, {"small": 8}])

    monkeypatch.setattr(world.lxd, "create_instance", whole)
    reconcile(tried=True)
    assert (numbers[-1], failed) == ({"small": 4, "large": 1}, None)
    reconcile()
    assert numbers[-1] == {"large": 2}


@pytest.mark.parametrize("age", [20, times.BACK_OFF_LIMIT + 1])
def test_a_failed_creation_is_over_once_no_runner_is_missing(world: World, age: float) -> None:
    """A failure older than 10 minutes is dropped once no runner of the flavour is missing."""
    failed = FailedCreation(NOW - age, "no such device")
    world.add("aa", "large", LARGE, busy=True)

    recent = age < times.BACK_OFF_LIMIT
    for number, kept in ((2, True), (None, True), (1, recent), (0, recent)):
        manager = world.reconcile(wanted("large", number, failed=failed), hold="no image")
        assert manager.findings.failed_creations == ({"large": failed} if kept else {}), number


def test_what_failed_long_ago_does_not_hide_what_waits_for_room(world: World) -> None:
    """Once another attempt is due and finds no room, the room is the reason; until then it is the failure."""
    world.add("aa", "small", SMALL, busy=True)

    for tried, reason in ((False, telemetry.FAILED), (True, telemetry.MEMORY)):
        failed = FailedCreation(NOW - 3600, "no such device")
        large = wanted("large", 2, failed=failed, is_tried=tried)
        world.reconcile(wanted("small", 1), large, capacity=Capacity(4 * GIB, 99))
        assert recorded("large").delays[0].reason == reason


def large_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """No instance of this flavour can be created; returns what creates any."""
    whole = world.lxd.create_instance

    def create(name: str, *, config: dict[str, str], **values: Any) -> Any:
        if config[FLAVOR_KEY] == "large":
            raise LxdError("no such device")
        return whole(name, config=config, **values)

    monkeypatch.setattr(world.lxd, "create_instance", create)
    return whole


def test_all_flavours_are_created_in_one_reconcile(world: World) -> None:
    """Each runner has the size, the fingerprint and the key of its flavour, and a second reconcile changes nothing."""
    manager = world.reconcile(wanted("small", 2), wanted("large", 1, scale_set=7))

    assert (world.missing, world.there()) == (3, ["large", "small", "small"])
    found = {item.config[FLAVOR_KEY]: item for item in world.lxd.found.values()}
    assert (found["small"].profiles[-1], found["large"].profiles[-1]) == (SMALL.profile, LARGE.profile)
    assert (found["large"].config[SCALE_SET_KEY], SCALE_SET_KEY in found["small"].config) == ("7", False)
    assert manager.report.flavors == [FlavorCount("small", 2, 2, 2, 2), FlavorCount("large", 1, 1, 1, 1)]
    assert set(world.lxd.profiles) == {SMALL.profile, LARGE.profile}
    world.lxd.log = []
    world.reconcile(wanted("small", 2), wanted("large", 1, scale_set=7))
    assert (world.missing, world.lxd.log) == (0, [])


def test_how_many_runners_there_could_be_is_reported(world: World) -> None:
    """Those of the flavour that exist, and those that fit beside all others, with and without a limit."""
    for digits in ("aa", "ab", "ac"):
        world.add(digits, "small", SMALL, busy=True)
    both = wanted("small", 3), wanted("large", 1)

    assert world.reconcile(*both, capacity=Capacity(10 * GIB, 99)).findings.capacities == {"small": 6, "large": 1}
    assert world.reconcile(*both).findings.capacities == {}


def test_nothing_more_is_announced_than_can_be_created(world: World) -> None:
    """While no runner of a flavour can be created, only those that exist count: others could serve the jobs."""
    world.add("aa", "small", SMALL, busy=True)

    manager = world.reconcile(wanted("small", 1, hold="no image"), wanted("large", 0), capacity=Capacity(10 * GIB, 99))

    assert manager.findings.capacities["small"] == 1
    assert manager.findings.capacities["large"] > 0


def test_a_failed_creation_lowers_what_is_announced(world: World) -> None:
    """Until the next reconcile, which tries again; of the flavour that it concerns only."""
    world.add("aa", "small", SMALL, busy=True)
    world.lxd.faults = {"create": lambda _: True}
    both = wanted("small", 2), wanted("large", 0)

    failed = world.reconcile(*both, capacity=Capacity(10 * GIB, 99)).findings.capacities
    world.lxd.faults = {}
    later = world.reconcile(*both, capacity=Capacity(10 * GIB, 99)).findings.capacities

    assert (failed["small"], later["small"]) == (1, 10)
    assert failed["large"] > 0


def test_what_does_not_fit_waits_and_is_told(world: World) -> None:
    """Busy runners keep their room; the status names the flavour and the resource."""
    for digits in ("aa", "ab", "ac"):
        world.add(digits, "small", SMALL, busy=True)
    manager = world.reconcile(wanted("small", 3), wanted("large", 1, since=NOW - 5), capacity=Capacity(6 * GIB, 99))

    assert world.there() == ["small"] * 3
    message = status.of_report(manager.report, test_mode=False).message
    assert message == (
        "3 of 4 runners: 0 idle, 3 busy (small 3 of 3, large 0 of 1); "
        "1 of small waits for memory (1GiB each, 0GiB free); 1 of large waits for memory (4GiB each, 3GiB free)"
    )


def test_an_instance_counts_with_the_size_that_it_was_made_with(world: World) -> None:
    """Also another unit's on this machine; the flavour's size of today is of no use for them."""
    world.add("aa", "small", VirtualMachineResources(1, "3GiB", "2GiB"), busy=True)
    other = FakeInstance(world.lxd, "other-0-0123abcdaa", {f"{KEY}created": str(OLD)})
    other.profiles = [LARGE.profile]
    world.lxd.found[other.name] = other

    world.reconcile(wanted("small", 4), capacity=Capacity(9 * GIB, 99))

    assert sum(IDENTITY.manages(name) for name in world.lxd.found) == 3


def test_a_removal_that_failed_keeps_its_room(world: World) -> None:
    """Nothing is created in the place of an instance that LXD did not delete."""
    world.add("aa", "large", LARGE)
    world.lxd.faults["stop"] = lambda name: True

    world.reconcile(wanted("small", 4), wanted("large", 0), capacity=Capacity(5 * GIB, 99))

    assert world.there() == ["large", "small"]


def test_an_outdated_runner_makes_room_for_the_first_of_todays_size(world: World) -> None:
    """It would else be kept until a new one is online, for which there is no room."""
    world.add("aa", "small", LARGE, keys={f"{KEY}fingerprint": "yesterday"})

    world.reconcile(wanted("small", 3), capacity=Capacity(4 * GIB, 99))

    assert world.there() == ["small"] * 3
    assert f"{IDENTITY.prefix}aa" not in world.lxd.found


def test_no_more_outdated_runners_go_than_the_first_of_today_needs(world: World) -> None:
    """The others stay until it is online: a configuration that does not work leaves them."""
    half = SMALL._replace(memory="512MiB")
    for digits in ("aa", "ab", "ac"):
        world.add(digits, "small", half, keys={f"{KEY}fingerprint": "yesterday"})
    world.add("ba", "large", LARGE, busy=True)
    world.lxd.faults["create"] = lambda _: True

    world.reconcile(wanted("small", 3), capacity=Capacity(11 * GIB // 2, 99))

    assert world.there().count("small") == 1


def test_an_outdated_runner_that_cannot_be_removed_gets_no_successor(world: World) -> None:
    """Until it is gone it is one of the wanted runners; the others are replaced in the same reconcile."""
    for digits in ("aa", "ab", "ac"):
        world.add(digits, "small", SMALL, keys={f"{KEY}fingerprint": "yesterday"})
    stuck = f"{IDENTITY.prefix}ac"
    world.lxd.faults["stop"] = lambda name: name == stuck

    world.reconcile(wanted("small", 3))

    left = {item.config[f"{KEY}fingerprint"] for name, item in world.lxd.found.items() if name != stuck}
    assert (len(world.lxd.found), stuck in world.lxd.found, "yesterday" in left) == (3, True, False)


class NoRegistration(Registration):
    """A way to register that does not work."""

    def __init__(self, reason: str = "the scale set is not there") -> None:
        self._reason = reason

    def prepare(self) -> None:
        raise ConfigurationError(self._reason)

    def register(self, name: str, labels: object) -> RegistrationData:
        raise AssertionError(name)


def test_a_service_that_does_not_answer_is_waited_for_once(world: World) -> None:
    """All flavours register by it; with a wait for each of them the reconcile would not end in time."""
    asked: list[None] = []

    def connect() -> None:
        asked.append(None)
        raise TemporaryGithubError("no answer")

    client: Any = SimpleNamespace(connect=connect)
    small, large = (ScaleSetRegistration(client, number) for number in (7, 8))

    with pytest.raises(TemporaryGithubError):
        world.reconcile(wanted("small", 1, registration=small), wanted("large", 1, registration=large))
    assert len(asked) == 1
    assert [recorded(flavor).delays[0].text for flavor in ("small", "large")] == ["no answer"] * 2


def test_nothing_more_is_announced_than_can_be_registered(world: World) -> None:
    """GitHub would assign jobs to a set for which no runner can be made."""
    world.add("aa", "large", LARGE, busy=True)
    both = wanted("large", 2, registration=NoRegistration()), wanted("small", 1)

    found = world.reconcile(*both, capacity=Capacity(20 * GIB, 99)).findings.capacities

    assert found["large"] == 1
    assert found["small"] > 1


def test_a_flavour_that_cannot_register_does_not_stop_the_others(world: World) -> None:
    """Its idle runners stay, and the failure is reported; if none can register it is the reconcile's."""
    world.add("aa", "large", LARGE, keys={f"{KEY}fingerprint": "yesterday"})
    bad = wanted("large", 1, registration=NoRegistration())

    manager = world.reconcile(bad, wanted("small", 1))

    assert world.there() == ["large", "small"]
    assert manager.report.failures == ["the scale set is not there"]
    for other in (wanted("small", 1), wanted("small", 2, registration=NoRegistration("another reason"))):
        with pytest.raises(ConfigurationError, match="the scale set is not there"):
            world.reconcile(bad, other)


def test_each_flavour_has_its_event(world: World, tmp_path: Path) -> None:
    """Also one that is not configured any more, as long as a runner of it is there."""
    world.state = flavored(issue_metrics=True)
    world.add("aa", "small", SMALL)
    world.add("ab", "large", LARGE, busy=True)
    world.add("ac", "small", SMALL, busy=True, keys={FLAVOR_KEY: "gone"})

    world.reconcile(wanted("small", 2), wanted("large", 1))

    lines = [json.loads(line) for line in (tmp_path / "metrics.log").read_text().splitlines()]
    keys = ("flavor_name", "expected_runners", "expected_idle_runners", "idle_runners", "active_runners")
    assert [tuple(line[key] for key in keys) for line in lines if line["event"] == "reconciliation"] == [
        ("small", 2, 2, 2, 0),
        ("large", 1, 1, 0, 1),
        ("gone", 0, 0, 0, 1),
    ]


@pytest.mark.parametrize(("seconds", "expected"), [(30.0, 30.0), (-30.0, 0.0)])
def test_how_long_a_reconcile_took_is_recorded(world: World, seconds: float, expected: float) -> None:
    """In seconds, for each flavour. A clock that was set back meanwhile gives no time below 0."""
    steps = [seconds, 0.0, 0.0]

    def go_by(_: str) -> bool:
        world.now += steps.pop()
        return False

    world.lxd.faults["create"] = go_by

    world.reconcile(wanted("small", 2), wanted("large", 1))

    found = [each for each in telemetry.take(IDENTITY.unit) if each.name == "reconcile"]
    assert found == [Measurement("reconcile", flavor, expected) for flavor in ("small", "large")]


@pytest.mark.parametrize(("scaling", "expected"), [(Scaling.DEMAND, (2, 1)), (Scaling.FIXED, (5, 5))])
def test_the_event_of_demand_expects_what_there_is_room_for(
    world: World, tmp_path: Path, scaling: Scaling, expected: tuple[int, int]
) -> None:
    """And idle runners only as many as `min-idle`; a fixed number is to be corrected where it does not fit."""
    world.state = flavored(issue_metrics=True, scaling=scaling)
    world.add("aa", "large", LARGE, busy=True)

    world.reconcile(wanted("small", 5, min_idle=1), wanted("large", 0), capacity=Capacity(6 * GIB, 99))

    lines = [json.loads(line) for line in (tmp_path / "metrics.log").read_text().splitlines()]
    [found] = [line for line in lines if line["event"] == "reconciliation" and line["flavor_name"] == "small"]
    assert (found["expected_runners"], found["expected_idle_runners"]) == expected


def test_a_flavour_whose_creation_fails_is_tried_with_the_room_that_others_leave() -> None:
    """What it has keeps its place: a failure costs no runner. From time to time one is tried in its own place."""
    views = [view("a", "large"), view("c", "small")]
    both = [wanted("large", 2, failed=FailedCreation(NOW)), wanted("small", 4)]
    later = [wanted("large", 3, failed=FailedCreation(NOW), is_tried=True), wanted("small", 4)]

    assert created(plans(both, room=Capacity(8 * GIB, 99))) == {"large": 1, "small": 4}
    found = plans(both, *views, room=Capacity(8 * GIB, 99))
    assert (found.whole.remove, created(found)) == ((), {"large": 0, "small": 3})
    assert created(plans(both, *views, room=Capacity(12 * GIB, 99))) == {"large": 1, "small": 3}
    assert created(plans(later, *views, room=Capacity(10 * GIB, 99))) == {"large": 1, "small": 1}


def test_a_flavour_that_is_held_keeps_its_runners_and_lets_others_have_the_room() -> None:
    """None of it is created or replaced, surplus ones are removed, and its number stays the one that is wanted."""
    room = Capacity(8 * GIB, 99)
    views = [view("a", "large", fingerprint="yesterday"), view("b", "large", github=BUSY), view("c", "small")]
    both = [wanted("large", 2, hold="image jammy: being built"), wanted("small", 4)]

    assert created(plans(both, *views[2:], room=room)) == {"large": 0, "small": 3}
    found = plans(both, *views)
    assert (found.whole.names(Reason.OUTDATED), created(found)) == ([], {"large": 0, "small": 3})
    assert (found.wanted, found.missing) == (6, 3)
    surplus = plans([wanted("large", 1, hold="image jammy: being built")], *views[:2])
    assert surplus.whole.remove == (("a", Reason.OUTDATED),)


def test_why_a_flavour_is_held_is_told_where_runners_are_wanted(world: World) -> None:
    """One line for all reasons, each once."""
    manager = world.reconcile(
        wanted("small", 1, hold="image noble: being built"), wanted("large", 0, hold="image focal: being built")
    )

    assert manager.report.failures == ["image noble: being built"]
    assert world.there() == []
    assert status.of_report(manager.report, test_mode=False).message == "0 of 1 runners; image noble: being built"


def recorded(flavor: str) -> Counts:
    """What the last reconcile left for the unit's agent."""
    found = telemetry.load(IDENTITY.unit)
    assert found is not None
    return found.flavors[flavor]


def test_a_new_runner_is_starting_until_it_is_seen_online(world: World) -> None:
    """For Prometheus only: the status and the event count it as idle, as before."""
    manager = world.reconcile(wanted("small", 2), wanted("large", 0))

    assert recorded("small") == Counts(2, starting=2, wanted=2)
    assert (len(manager.report.idle), manager.report.other) == (2, [])
    world.add("aa", "small", SMALL, keys={f"{KEY}created": str(NOW - 60), f"{KEY}prepared": str(NOW - 30)})
    name = f"{IDENTITY.prefix}aa"
    world.github.runners[name] = replace(world.github.runners[name], online=False)
    world.reconcile(wanted("small", 3), wanted("large", 0))
    assert recorded("small") == Counts(3, idle=2, starting=1, wanted=3)


def test_what_waits_for_room_is_recorded(world: World) -> None:
    """With the resource, how many, and the maximum of the flavour in demand mode."""
    world.state = flavored(scaling=Scaling.DEMAND)
    world.add("aa", "large", LARGE, busy=True)

    world.reconcile(wanted("small", 3, maximum=8), wanted("large", 2), capacity=Capacity(6 * GIB, 99))

    waits = {name: recorded(name).delays for name in ("small", "large")}
    assert (recorded("small").expected, recorded("small").wanted, recorded("small").maximum) == (2, 3, 8)
    assert waits["small"] == (Delay(telemetry.MEMORY, 1, "1GiB each, 0GiB free"),)
    assert [(one.reason, one.number) for one in waits["large"]] == [(telemetry.MEMORY, 2)]


def test_creations_that_fail_are_recorded(world: World) -> None:
    """By flavour, with the last error; those of other flavours do not count."""
    world.lxd.faults["create"] = lambda _: True

    manager = world.reconcile(wanted("small", 2), wanted("large", 0))

    [delay] = recorded("small").delays
    assert (delay.reason, delay.number) == (telemetry.FAILED, 2)
    assert delay.text in manager.report.failures
    assert recorded("large").delays == ()


def test_a_flavour_that_cannot_register_records_why(world: World) -> None:
    """Also where that is the failure of the whole reconcile."""
    bad = wanted("large", 1, registration=NoRegistration())

    world.reconcile(bad, wanted("small", 1))
    assert recorded("large").delays == (Delay(telemetry.FAILED, None, "the scale set is not there"),)
    assert recorded("small").delays == ()

    with pytest.raises(ConfigurationError):
        world.reconcile(bad, wanted("small", 1))
    assert recorded("large").delays == (Delay(telemetry.FAILED, None, "the scale set is not there"),)


@pytest.mark.parametrize(
    ("options", "changes", "text"),
    [
        ({"hold": "the runner binary is not downloaded yet"}, {}, "the runner binary is not downloaded yet"),
        ({}, {"hold": "image noble: being built"}, "image noble: being built"),
        ({"deprecated_since": NOW}, {}, delays.ONE_IS_TRIED),
    ],
    ids=["unit", "image", "deprecated version"],
)
def test_what_is_held_back_is_recorded(
    world: World, options: dict[str, Any], changes: dict[str, Any], text: str
) -> None:
    """The unit's reason, that of the flavour's image, or a version of which one runner is tried first."""
    world.reconcile(wanted("small", 2, **changes), **options)

    assert recorded("small").delays == (Delay(telemetry.HELD_BACK, None, text),)


def test_a_runner_that_ended_without_a_job_holds_the_others_back(world: World) -> None:
    """The reason is that of the status, with the time of the next attempt."""
    world.add("aa", "small", SMALL, keys={f"{KEY}created": str(NOW - 30), f"{KEY}prepared": str(NOW - 10)})
    name = f"{IDENTITY.prefix}aa"
    world.github.runners[name] = replace(world.github.runners[name], online=False)
    world.lxd.found[name].process = 13

    manager = world.reconcile(wanted("small", 2))

    [delay] = recorded("small").delays
    assert delay.reason == telemetry.HELD_BACK
    assert delay.text.startswith("runners ended without a job")
    assert any(failure.startswith("runners ended without a job") for failure in manager.report.failures)


def test_a_damaged_key_is_no_flavour(world: World) -> None:
    """A runner of an earlier version has none: it is of the flavour `default`."""
    for digits, flavor, scale_set in (("aa", "../x", "x"), ("ab", "", "²"), ("ac", "large", "7")):
        world.add(digits, "small", SMALL, keys={FLAVOR_KEY: flavor, SCALE_SET_KEY: scale_set})

    runners = world.manager().observer.observe().runners

    views = [(item.view.flavor, item.view.scale_set) for _, item in sorted(runners.items())]
    assert views == [("default", None), ("default", None), ("large", 7)]


def test_rows_have_the_flavour_and_know_todays(world: World) -> None:
    """A runner of a flavour that is gone is outdated; each other one by the fingerprint of its own flavour."""
    world.add("aa", "small", SMALL)
    world.add("ab", "large", LARGE)
    world.add("ac", "small", SMALL, keys={FLAVOR_KEY: "gone"})

    assert [(row.flavor, row.outdated) for row in world.manager().rows(world.observed())] == [
        ("small", False),
        ("large", False),
        ("gone", True),
    ]
    details = world.manager().counts(world.observed())["details"]
    assert [line.split(": ")[1] for line in details] == [
        "idle, 60 min old, flavor small",
        "idle, 60 min old, flavor large",
        "idle, 60 min old, flavor gone, outdated",
    ]


def test_many_flavours_leave_room_for_the_rest_of_the_status() -> None:
    """Their numbers are cut, and a single flavour's are not shown."""
    counts = [FlavorCount(f"flavor-number-{index}", 20, 10) for index in range(12)]
    report = Report(wanted=20, idle=["a"] * 20, flavors=counts, waits=["1 of large waits for CPUs (2 each, 1 free)"])

    message = status.of_report(report, test_mode=False).message
    assert len(message) <= status.LIMIT
    assert message.endswith("; 1 of large waits for CPUs (2 each, 1 free)")
    report.flavors, report.waits = counts[:1], []
    assert status.of_report(report, test_mode=False).message == "20 runners: 20 idle, 0 busy"


@pytest.mark.parametrize("failures", [[], [f"r: registering failed: {'x' * 99} no such group"]])
@pytest.mark.parametrize("notices", [[], ["image not rebuilt for 9 days"]])
def test_sixteen_flavours_hide_neither_a_failure_nor_what_waits(failures: list[str], notices: list[str]) -> None:
    """With the longest names: the status has the counts, the failure, the first that waits, how many more, notices."""
    names = [f"flavor-number-{index:06}" for index in range(16)]
    waits = [f"10 of {name} wait for memory (128GiB each, 1.25GiB free)" for name in names]
    counts = [FlavorCount(name, 20, 10) for name in names]
    report = Report(320, ["a"] * 99, ["b"] * 99, other=["c"] * 9, failures=failures, flavors=counts, waits=waits)

    message = status.bounded(status.of_report(report, test_mode=False, notices=notices)).message

    assert message.startswith("207 of 320 runners: 99 idle, 99 busy, 9 starting or offline")
    assert "15 more flavours wait" in message
    assert message.endswith(notices[0] if notices else "15 more flavours wait")
    if failures:
        assert "; r: registering failed: x" in message
    else:
        assert waits[0] in message


def test_no_flavour_wants_a_runner(world: World) -> None:
    """All are removed, with the profiles of their sizes, and nothing fails."""
    world.add("aa", "small", SMALL)

    manager = world.reconcile(wanted("small", 0), wanted("large", 0), capacity=Capacity(5 * GIB, 99))

    assert (world.there(), manager.report.failures, world.missing) == ([], [], -1)
    assert world.lxd.profiles == {}
    assert status.of_report(manager.report, test_mode=False).message == (
        "0 runners: 0 idle, 0 busy (small 0 of 0, large 0 of 0)"
    )


def test_flavours_are_switched_on_and_off_around_a_job(world: World) -> None:
    """A runner with a job is never removed and keeps its room; idle ones of the other set-up make room at once."""
    world.add("aa", "small", LARGE, busy=True, keys={FLAVOR_KEY: "default"})
    world.add("ab", "small", LARGE, keys={FLAVOR_KEY: "default"})

    world.reconcile(wanted("small", 9), capacity=Capacity(6 * GIB, 99))
    assert world.there() == ["default", "small", "small"]

    world.state = state()
    world.reconcile(Wanted(world.state.runners[0], 1))
    assert world.there() == ["default"]
    assert list(world.lxd.found) == [f"{IDENTITY.prefix}aa"]


def test_a_renamed_flavour_is_a_new_one(world: World) -> None:
    """The idle runners of the old name make room in the same reconcile; one with a job counts for no flavour."""
    world.add("aa", "small", SMALL, keys={FLAVOR_KEY: "old"})
    world.add("ab", "small", SMALL, busy=True, keys={FLAVOR_KEY: "old"})

    manager = world.reconcile(wanted("small", 3), capacity=Capacity(3 * GIB, 99))

    assert world.there() == ["old", "small", "small"]
    room_left = Delay(telemetry.MEMORY, 1, "1GiB each, 0GiB free")
    assert manager.report.flavors == [FlavorCount("small", 3, 2, 3, 3, delays=(room_left,))]
    assert manager.report.waits == ["1 of small waits for memory (1GiB each, 0GiB free)"]


def test_more_idle_runners_than_the_machine_holds(world: World) -> None:
    """What fits is created once and stays; a job's runner of another flavour comes before them."""
    world.state = flavored(scaling=Scaling.DEMAND)
    room = Capacity(5 * GIB, 99)
    manager = world.reconcile(wanted("small", 9, min_idle=9), wanted("large", 0), capacity=room)
    room_left = Delay(telemetry.MEMORY, 4, "1GiB each, 0GiB free")
    assert manager.report.flavors[0] == FlavorCount("small", 9, 5, 5, 5, delays=(room_left,))
    before = sorted(world.lxd.found)
    world.reconcile(wanted("small", 9, min_idle=9), wanted("large", 0), capacity=room)
    assert sorted(world.lxd.found) == before

    world.now += 3600
    world.reconcile(wanted("small", 9, min_idle=9), wanted("large", 1, since=world.now), capacity=room)
    assert world.there() == ["large", "small"]
