"""What a unit's hooks do for demand: credentials for the agent, and scale sets that are over."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import agent_settings
import demand
from demand import PATIENCE, Demand
from errors import HostError, TemporaryGithubError, TokenError
from gh.scale_set_registration import ScaleSetRegistration
from host import agent, kernel, markers
from host.markers import LIST_DUE, LISTED, SCALE_SETS, Markers
from models import CharmState, GithubOrg, GithubPath, GithubRepo, Scaling
from programs import sessions
from proxies import ProxyConfig
from tests.support.fakes import IDENTITY, state
from unit_demand import RENEW_BEFORE, UnitDemand

NOW = 1_800_000_000.0
UNIT = IDENTITY.unit


def options(**changes: Any) -> CharmState:
    """A state in demand mode."""
    return state(**{"scaling": Scaling.DEMAND, "virtual_machines": 3, **changes})


class World:
    """GitHub, its scale sets and the agent's service, with the order of what was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.refusal: Exception | None = None
        self.token: tuple[str, float | None] = ("ghs_token", NOW + 3600)
        self.places: list[tuple[str, str, str]] = []

    def note(self, what: str) -> None:
        self.done.append(what)
        if self.refusal is not None:
            raise self.refusal

    def held_token(self) -> tuple[str, float | None]:
        self.note("token")
        return self.token

    def delete_sets(self, unwanted: Callable[[str], bool]) -> None:
        self.note("delete sets" if not agent_settings.file_of(UNIT).exists() else "delete sets under an agent")
        names = [IDENTITY.scale_set("default"), "app-0-ffffffff-default"]
        assert list(filter(unwanted, names)) == names[:1], "only this unit's"

    def revoke(self, handed: list[str]) -> None:
        self.note(f"revoke {' '.join(handed)}")

    def unit(self, **changes: Any) -> UnitDemand:
        given = options(**changes)
        connect, github = cast(Any, lambda *_: self), cast(Any, lambda: self)
        return UnitDemand(given, IDENTITY, Markers(UNIT), connect, github, cast(Any, self.github_of))

    def github_of(self, given: CharmState) -> "World":
        assert given.app is None
        self.places.append((given.github_url, given.path.path, given.token))
        return self

    def close(self) -> None:
        """The connections are given back."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    for module in (agent_settings, demand):
        monkeypatch.setattr(module, "LOCKS", tmp_path)
    monkeypatch.setattr(markers, "ROOT", tmp_path / "markers")
    monkeypatch.setattr(agent, "end_sessions", lambda _: made.note("end sessions"))
    return made


def test_the_agent_gets_a_token_and_what_fits(world: World) -> None:
    """A capacity is from 1 to the maximum; where none is known, the maximum counts."""
    for capacities, expected in (({}, 3), ({"default": 2}, 2), ({"default": 0}, 1), ({"default": 9}, 3)):
        world.unit().hand_over(capacities)

        found = agent_settings.load(UNIT)
        assert found is not None
        assert (found.token, found.token_end) == world.token
        assert [each.capacity for each in found.flavors] == [expected]


def test_in_fixed_mode_there_are_no_credentials(world: World) -> None:
    """Neither are there sets to delete, and GitHub is not asked."""
    world.unit(scaling=Scaling.FIXED).hand_over({})
    world.unit(scaling=Scaling.FIXED).wanted(NOW)

    assert (agent_settings.load(UNIT), world.done) == (None, [])


def test_without_a_token_the_former_credentials_stay(world: World) -> None:
    """A reconcile does not fail for it."""
    world.unit().hand_over({})
    world.refusal = TemporaryGithubError("no answer")

    world.unit().hand_over({"default": 1})

    found = agent_settings.load(UNIT)
    assert found is not None
    assert found.flavors[0].capacity == 3


def test_sessions_end_before_their_sets_go(world: World) -> None:
    """First the credentials, then the sessions of the agent: one that is open would make its set again."""
    world.unit().wanted(NOW)
    world.unit().hand_over({})
    demand.save(UNIT, {"default": Demand(assigned=1)})

    world.unit(scaling=Scaling.FIXED).wanted(NOW)

    assert world.done[1:] == ["end sessions", "delete sets"]
    assert demand.load(UNIT) == {}
    assert Markers(UNIT).read(SCALE_SETS) is None


@pytest.mark.parametrize("failure", [HostError("systemctl"), TemporaryGithubError("no answer"), OSError("disk")])
def test_sets_that_stay_are_deleted_later(world: World, failure: Exception) -> None:
    """While the sessions are open no set is deleted; each reconcile tries again, and none fails for it."""
    world.unit().wanted(NOW)
    demand.save(UNIT, {"default": Demand(assigned=1)})
    world.refusal = failure

    assert [one.number for one in world.unit(scaling=Scaling.FIXED).wanted(NOW)] == [3]
    assert world.done == ["end sessions"]

    world.refusal = None
    world.unit(scaling=Scaling.FIXED).wanted(NOW)
    assert world.done == ["end sessions", "end sessions", "delete sets"]


@pytest.mark.parametrize("left", ["settings", "answers"])
def test_the_agent_is_restarted_once_while_sets_stay(world: World, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each restart starts a reconcile, which would restart it again, for as long as GitHub deletes no set."""

    def refuse(_: Any) -> list[str]:
        world.note("delete sets")
        raise TemporaryGithubError("no answer")

    world.unit().wanted(NOW)
    if left == "settings":
        world.unit().hand_over({})
    else:
        demand.save(UNIT, {"default": Demand(assigned=1)})
    world.done.clear()
    monkeypatch.setattr(world, "delete_sets", refuse)

    for _ in range(3):
        world.unit(scaling=Scaling.FIXED).wanted(NOW)

    assert world.done == ["end sessions", "delete sets", "delete sets", "delete sets"]


def test_a_unit_whose_options_are_invalid_deletes_its_sets(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the token that the agent had, at its place and through its proxies."""
    monkeypatch.setattr(os, "environ", {})
    world.unit().wanted(NOW)
    world.unit(proxies=ProxyConfig(https="http://proxy:3128")).hand_over({})
    handed = agent_settings.load(UNIT)

    world.unit(scaling=Scaling.FIXED, path=GithubOrg("unknown"), token="").leave(handed)

    assert world.places == [(state().github_url, state().path.path, "ghs_token")]
    assert os.environ["HTTPS_PROXY"] == "http://proxy:3128"


def test_a_unit_whose_token_is_refused_uses_that_of_the_agent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked twice where the token of the options serves."""
    whole = world.delete_sets

    def refuse(unwanted: Callable[[str], bool]) -> list[str]:
        monkeypatch.setattr(world, "delete_sets", whole)
        raise TokenError("bad credentials")

    for refused in (False, True):
        world.places.clear()
        world.unit().wanted(NOW)
        world.unit().hand_over({})
        handed = agent_settings.load(UNIT)
        if refused:
            monkeypatch.setattr(world, "delete_sets", refuse)
        world.unit().leave(handed)
        assert [token for *_, token in world.places] == (["ghs_token"] if refused else [])


def test_the_time_without_demand_begins_with_demand_mode(world: World) -> None:
    """Not before: what runs stays for a while, then the fallback holds."""
    [first] = world.unit(demand_fallback=1).wanted(NOW)
    [later] = world.unit(demand_fallback=1).wanted(NOW + PATIENCE)

    assert (first.number, later.number) == (None, 1)
    assert len(world.unit().notices(NOW + PATIENCE)) == 1


def test_what_the_agent_heard_is_wanted(world: World) -> None:
    """In the set that it names."""
    world.unit().hand_over({})
    demand.save(UNIT, {"default": Demand(assigned=2, answered_at=NOW, scale_set=7, running=1)})

    [found] = world.unit().wanted(NOW)

    assert (found.number, found.scale_set, found.running_jobs) == (2, 7, 1)
    assert isinstance(found.registration, ScaleSetRegistration)


def test_what_was_heard_of_another_place_is_not_wanted(world: World) -> None:
    """The id of a set is another set's at another path or server: no runner may register with it."""
    world.unit().hand_over({})
    demand.save(UNIT, {"default": Demand(assigned=2, answered_at=NOW, scale_set=7)})

    for changed in ({"path": GithubRepo("octo-org", "other")}, {"github_url": "https://other.example"}):
        [found] = world.unit(**changed).wanted(NOW)
        assert (found.number, found.scale_set) == (None, None)


def test_an_unknown_capacity_keeps_the_one_before(world: World) -> None:
    """A reconcile that could not find out what fits announces no more than the last one that could."""
    world.unit().hand_over({"default": 2})

    world.unit().hand_over({})

    found = agent_settings.load(UNIT)
    assert found is not None
    assert found.flavors[0].capacity == 2


@pytest.mark.parametrize("change", ["boot", "flavours"])
def test_what_cannot_have_been_heard_yet_is_given_time(
    world: World, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a boot, and for a flavour that is new, the fallback begins after its time, not at once."""
    world.unit(demand_fallback=1).wanted(NOW - 10 * PATIENCE)
    flavor = replace(state().flavors[0], name="new", maximum=3)
    changes: dict[str, Any] = {"given_flavors": (flavor,)} if change == "flavours" else {}
    if change == "boot":
        monkeypatch.setattr(kernel, "boot_id", lambda: "another")

    [first] = world.unit(demand_fallback=1, **changes).wanted(NOW)
    [later] = world.unit(demand_fallback=1, **changes).wanted(NOW + PATIENCE)

    assert (first.number, later.number) == (None, 1)


def test_a_full_disk_after_a_boot_stops_no_reconcile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides is as it was before; without any record no demand is served, because its sets would stay."""
    world.unit().wanted(NOW - 60)
    world.unit().hand_over({})
    demand.save(UNIT, {"default": Demand(assigned=2, answered_at=NOW, scale_set=7)})
    monkeypatch.setattr(kernel, "boot_id", lambda: "another")
    monkeypatch.setattr(markers, "write_file", lambda *_: (_ for _ in ()).throw(OSError("no space left")))

    assert [one.number for one in world.unit().wanted(NOW)] == [2]
    Markers(UNIT).clear(SCALE_SETS)
    with pytest.raises(HostError):
        world.unit().wanted(NOW)


FORMER: list[dict[str, Any]] = [{"path": GithubRepo("octo-org", "other")}, {"github_url": "https://other.example"}]


@pytest.mark.parametrize("former", FORMER, ids=["path", "server"])
def test_sets_at_a_former_place_are_deleted(world: World, former: dict[str, Any]) -> None:
    """With the token of then, after the agent's sessions there have ended; what was answered there is over."""
    world.unit(**former).hand_over({})
    world.token = ("ghs_another", None)
    demand.save(UNIT, {"default": Demand(assigned=2, answered_at=NOW, scale_set=7)})
    world.done.clear()

    world.unit().hand_over({})
    world.unit().hand_over({})

    place = options(**former)
    assert world.places == [(place.github_url, place.path.path, "ghs_token")]
    assert world.done == ["token", "end sessions", "delete sets under an agent", "token"]
    found = agent_settings.load(UNIT)
    assert found is not None
    assert (found.path, found.token) == (state().path, "ghs_another")
    assert demand.load(UNIT) == {}


@pytest.mark.parametrize("changes", [{}, {"token": "", "github_url": "https://github.com"}], ids=["a token", "none"])
@pytest.mark.parametrize("end", [NOW + 3600, None], ids=["of an App", "of a person"])
def test_the_token_of_an_app_ends_where_it_is_from(world: World, end: float | None, changes: dict[str, Any]) -> None:
    """Whatever the options have when the unit goes, also if they are not valid. Only the operator ends another one."""
    world.token = ("ghs_token", end)
    world.unit(github_url="https://ghes.example").hand_over({})
    handed = agent_settings.load(UNIT)
    world.done.clear()

    world.unit(**changes).revoke(handed)
    world.unit(**changes).revoke(None)

    assert world.done == ([] if end is None else ["revoke ghs_token"])
    assert world.places == ([] if end is None else [("https://ghes.example", "octo-org/demo", "ghs_token")])


@pytest.mark.parametrize(
    ("former", "path"),
    [
        (GithubOrg("Octo-Org", "a"), GithubOrg("octo-org", "b")),
        (GithubRepo("octo-org", "Demo"), GithubRepo("octo-org", "demo")),
    ],
    ids=["group", "upper case"],
)
def test_the_same_place_keeps_its_sets(world: World, former: GithubPath, path: GithubPath) -> None:
    """The agent moves them to another group. GitHub does not distinguish upper and lower case."""
    world.unit(path=former).hand_over({})

    world.unit(path=path).hand_over({})

    assert world.done == ["token", "token"]


@pytest.mark.parametrize("failing", ["end sessions", "delete sets"])
def test_sets_that_stay_at_a_former_place_keep_nothing_up(
    world: World, failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent gets the new settings; it is tried once, and the log names the place."""

    def fail(*_: Any) -> list[str]:
        raise HostError("no way")

    world.unit(**FORMER[0]).hand_over({})
    target, name = (agent, "end_sessions") if failing == "end sessions" else (world, "delete_sets")
    monkeypatch.setattr(target, name, fail)

    world.unit().hand_over({})
    world.unit().hand_over({})

    found = agent_settings.load(UNIT)
    assert found is not None
    assert found.path == state().path
    assert caplog.text.count("no way") == 1
    if failing == "delete sets":
        assert "/octo-org/other stay there" in caplog.text


def test_fixed_mode_at_another_place_deletes_the_sets_of_both(world: World) -> None:
    """The operator may change both options at once."""
    world.unit(**FORMER[0]).wanted(NOW)
    world.unit(**FORMER[0]).hand_over({})
    world.done.clear()

    world.unit(scaling=Scaling.FIXED).wanted(NOW)

    assert world.done == ["end sessions", "delete sets", "delete sets"]
    assert [place[1] for place in world.places] == ["octo-org/other"]


def test_sets_at_a_former_place_go_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has the token of then once the agent has none: GitHub may be asked for a minute about the new place."""
    world.unit(**FORMER[0]).wanted(NOW)
    world.unit(**FORMER[0]).hand_over({})
    order: list[list[str]] = []

    def delete_sets(_: Callable[[str], bool]) -> None:
        order.append([place[1] for place in world.places])

    monkeypatch.setattr(world, "delete_sets", delete_sets)

    world.unit(scaling=Scaling.FIXED).wanted(NOW)

    assert order == [["octo-org/other"]] * 2


def test_sets_at_a_former_place_go_also_where_the_disk_is_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's file is removed before it is written anew, and the token of then with it."""
    world.unit(**FORMER[0]).hand_over({})
    monkeypatch.setattr(agent_settings, "save", lambda _: (_ for _ in ()).throw(OSError("no space left")))

    world.unit().hand_over({})

    assert [place[1] for place in world.places] == ["octo-org/other"]
    assert world.done[-2:] == ["end sessions", "delete sets"]


def test_another_place_is_given_time(world: World) -> None:
    """Nothing can have been answered there yet: the fallback begins after its time, not at once."""
    world.unit(demand_fallback=1, **FORMER[0]).wanted(NOW - 10 * PATIENCE)

    [found] = world.unit(demand_fallback=1).wanted(NOW)

    assert found.number is None


def age_of_list(world: World, now: float = NOW + 60, **changes: Any) -> float | None:
    """What a reconcile is told of the list that one of a minute ago read."""
    return world.unit(**changes).take_list_age(now)


@pytest.mark.parametrize(
    ("now", "expected"),
    [(NOW, 0), (NOW + 60, 60), (NOW + 299, 299), (NOW + 300, None), (NOW - 1, None)],
)
def test_a_list_counts_for_five_minutes(world: World, now: float, expected: float | None) -> None:
    """Or for reconcile-interval, if that is shorter. One that was read in the future was not."""
    for interval, found in ((10, expected), (2, expected if now - NOW < 120 else None)):
        world.unit().hand_over({})
        world.unit().note_list(NOW)
        assert age_of_list(world, now, reconcile_interval=interval) == found


def test_a_reconcile_that_did_not_end_is_followed_by_one_that_reads_the_list(world: World) -> None:
    """Killed or failed, it has recorded nothing; nor has the first one."""
    world.unit().hand_over({})
    assert age_of_list(world) is None
    world.unit().note_list(NOW)

    assert age_of_list(world) == 60
    assert age_of_list(world) is None


def test_the_agent_may_ask_for_the_list_while_a_reconcile_runs(world: World) -> None:
    """The next reconcile reads it, whatever the running one records, and one more if that one fails."""
    world.unit().hand_over({})
    world.unit().note_list(NOW)
    assert age_of_list(world) == 60

    Markers(UNIT).note(LIST_DUE)
    world.unit().note_list(NOW)

    assert age_of_list(world) is None
    assert age_of_list(world) is None
    world.unit().note_list(NOW)
    assert age_of_list(world) == 60


def test_what_the_agent_asks_in_the_moment_of_a_reconcile_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reconcile that did not see the marker leaves it to the next one."""
    world.unit().hand_over({})
    world.unit().note_list(NOW)
    clear = Markers.clear

    def clear_late(self: Markers, *names: str) -> None:
        self.note(LIST_DUE)
        clear(self, *names)

    with monkeypatch.context() as patch:
        patch.setattr(Markers, "clear", clear_late)
        assert age_of_list(world) == 60
    world.unit().note_list(NOW)

    assert age_of_list(world) is None


def test_a_record_that_stays_keeps_what_the_agent_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the list's time cannot be removed, the marker stays too: this reconcile may fail."""
    world.unit().hand_over({})
    world.unit().note_list(NOW)
    Markers(UNIT).note(LIST_DUE)

    unlink = Path.unlink

    def refuse(path: Path, **options: Any) -> None:
        if path.name == LISTED:
            raise OSError("read-only")
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert age_of_list(world) is None

    assert age_of_list(world) is None


@pytest.mark.parametrize(
    ("end", "expected"), [(None, 60), (NOW + 60 + RENEW_BEFORE, 60), (NOW + 59 + RENEW_BEFORE, None)]
)
def test_an_agent_that_needs_a_token_gets_one(world: World, end: float | None, expected: float | None) -> None:
    """It starts a reconcile for it, which has to ask GitHub for something to have one."""
    world.token = "ghs_token", end
    world.unit().hand_over({})
    world.unit().note_list(NOW)

    assert age_of_list(world) == expected
    assert RENEW_BEFORE > sessions.RENEW_BEFORE


def test_an_agent_without_settings_gets_some(world: World) -> None:
    """They are gone after a boot."""
    world.unit().note_list(NOW)

    assert age_of_list(world) is None


def test_without_a_request_the_agent_keeps_its_token(world: World) -> None:
    """A GitHub App has no token before its first request; what fits on the machine is handed over all the same."""
    world.unit().hand_over({"default": 1})
    world.refusal = TokenError("no token was used yet")

    world.unit().hand_over({"default": 2})

    found = agent_settings.load(UNIT)
    assert found is not None
    assert (found.token, found.token_end, found.flavors[0].capacity) == (*world.token, 2)

    world.unit(path=GithubRepo("octo-org", "other")).hand_over({"default": 3})
    assert agent_settings.load(UNIT) == found


def test_fixed_mode_records_no_list(world: World) -> None:
    """Each of its reconciles reads it."""
    world.unit().hand_over({})
    world.unit(scaling=Scaling.FIXED).note_list(NOW)

    assert Markers(UNIT).read(LISTED) is None
    world.unit().note_list(NOW)
    assert age_of_list(world, scaling=Scaling.FIXED) is None
