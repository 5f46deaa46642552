"""What the charm does on its machine, without Juju: a service that is put together by hand."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import agent_settings
import creation
import demand
import settings
import telemetry
from demand import Demand
from errors import ConfigurationError, GithubApiError, HostError, LxdError
from flavor_plans import Wanted
from host import image, kernel, markers, runner_binary
from models import BaseImage, FailedCreation, Flavor, PublishedImage, Scaling, VirtualMachineResources
from naming import BASE_IMAGE_KEY, FLAVOR_KEY, Identity
from report import Findings
from runner_manager import RunnerManager
from service import Service
from status import Status
from tests.support.fakes import IDENTITY, state
from tests.support.surroundings import Surroundings, world
from unit_demand import UnitDemand

__all__ = ["world"]


class RecordingUnit:
    """What a service shows and asks for, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def show(self, found: Status) -> None:
        self.done.append(f"{found.name}: {found.message}")

    def set_workload_version(self, version: str, /) -> None:
        self.done.append(f"version {version}")

    def reboot(self) -> None:
        self.done.append("reboot")


@pytest.fixture
def unit() -> RecordingUnit:
    return RecordingUnit()


def make(world: Surroundings, unit: RecordingUnit, **changes: Any) -> Service:
    """The service of a unit whose machine is set up."""
    found = markers.Markers(f"{IDENTITY.app_name}/{IDENTITY.unit_number}")
    found.note(markers.SET_UP)
    return Service(state(**changes), IDENTITY, found, unit, unit.show, world.adapters())


def test_a_reconcile_shows_what_it_does_and_what_it_came_to(world: Surroundings, unit: RecordingUnit) -> None:
    """The status while it works, then the counts; the number of missing runners is returned."""
    service = make(world, unit)

    assert service.reconcile() == 2
    assert unit.done == [
        "maintenance: Reconciling runners",
        "active: 2 runners: 2 idle, 0 busy; no repository policy check since the upgrade: see acknowledge-no-policy of "
        "reconcile-runners (test mode: containers)",
    ]
    assert service.report is not None
    assert len(service.report.created) == 2


@pytest.mark.parametrize("busy", [False, True])
def test_draining_leaves_jobs_alone(world: Surroundings, unit: RecordingUnit, busy: bool) -> None:
    """Idle runners are removed, unless a job may run; no status says that runners are missing."""
    service = make(world, unit)
    service.reconcile()
    shown = len(unit.done)
    next(iter(world.lxd.found.values())).process = 0 if busy else 10

    assert service.drain() is not busy
    assert len(world.lxd.found) == (2 if busy else 0)
    assert len(unit.done) == shown


def test_a_reboot_comes_after_its_record(
    world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time and boot are recorded before the reboot is requested, and nothing is created any more."""
    service = make(world, unit)
    kernel.REBOOT_REQUIRED.touch()
    monkeypatch.setattr(kernel, "note_request", lambda *_: unit.done.append("record"))

    service.attend()

    assert unit.done[-3:] == ["record", "maintenance: Rebooting for a pending update", "reboot"]
    assert world.lxd.found == {}


def test_a_new_runner_binary_is_shown_as_version(
    world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the build of an image that contains it cannot be started."""

    renewed: list[str] = []

    def fail(_: Any, __: Any, build: settings.ImageBuild) -> None:
        renewed.append(build.alias)
        raise HostError("no such systemd unit")

    monkeypatch.setattr("host.image_builds.renew", fail)

    assert make(world, unit, given_flavors=two_images()).update_binary()
    assert unit.done == ["version 2.320.0"]
    assert renewed == ["jammy", "noble"]


@pytest.mark.parametrize("sibling", [False, True])
def test_a_new_application_has_no_base_image_yet(
    world: Surroundings, unit: RecordingUnit, marker_root: Path, sibling: bool
) -> None:
    """One of its name that was removed by force has left its record, which a second unit of the application needs."""
    own, others = {"app": "noble", "app.a": "jammy"}, {"app-a": "noble", "other": "jammy"}
    keys = {f"{BASE_IMAGE_KEY}.{name}": value for name, value in {**own, **others}.items()}
    world.lxd.profiles["runner"] = {"name": "runner", "description": "", "config": keys, "devices": {}}
    if sibling:
        markers.Markers("app/7").note(markers.SET_UP)
        (marker_root / "agents" / "unit-app-7").mkdir(parents=True)

    make(world, unit).note_installation()

    found = {key.removeprefix(f"{BASE_IMAGE_KEY}.") for key in world.lxd.profiles["runner"]["config"]}
    assert found == ({*own, *others} if sibling else set(others))


def test_an_installation_does_not_need_lxd(
    world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set-up that follows installs it."""

    def fail(*_: str) -> None:
        raise LxdError("GET /1.0/profiles/runner: no such file")

    monkeypatch.setattr(world.lxd, "find", fail)

    make(world, unit).note_installation()


@pytest.mark.parametrize("changes", [{"replace_on_exit": False}, {"virtual_machines": 0}, {}], ids=str)
def test_the_agent_runs_where_it_has_something_to_do(
    world: Surroundings, unit: RecordingUnit, changes: dict[str, Any]
) -> None:
    """A unit without runners, or without replace-on-exit, has an agent only if it serves metrics."""
    make(world, unit, metrics_port=0, **changes).ensure_agent()
    assert world.steps == (["no agent"] if changes else ["agent"])

    make(world, unit, metrics_port=9500, **changes).ensure_agent()
    assert world.steps[1:] == ["agent"]


def test_what_the_agent_is_told(world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it follows LXD's events, and the port of its metrics."""
    told: list[tuple[bool, int]] = []
    monkeypatch.setattr("host.agent.ensure", lambda _, __, watch, port: told.append((watch, port)))
    make(world, unit, metrics_port=9500).ensure_agent()
    make(world, unit, metrics_port=1, replace_on_exit=False).ensure_agent()

    assert told == [(True, 9500), (False, 1)]


def test_without_a_runner_binary_none_is_created(world: Surroundings, unit: RecordingUnit, tmp_path: Path) -> None:
    """The status says why."""
    (tmp_path / runner_binary.CURRENT).unlink()
    service = make(world, unit)

    service.reconcile()

    assert unit.done[-1].startswith("waiting: 0 of 2 runners; the runner binary is not downloaded yet")
    assert world.lxd.found == {}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the options add to the image, at each time that a build could be started for it."""
    found: list[str] = []
    monkeypatch.setattr("host.image.FAILURE", tmp_path / "failure")
    monkeypatch.setattr("host.image_builds.ensure_changed", lambda _, __, builds: found.append(builds[0].additions))
    return found


def test_each_reconcile_compares_the_image_with_the_options(
    world: Surroundings, unit: RecordingUnit, started: list[str]
) -> None:
    """Also one of the timer: the hook of a changed option may have ended too early."""
    make(world, unit, extra_packages=("cmake",)).attend()

    assert len(started) == 1
    assert settings.load(IDENTITY.unit).images[0].additions == started[0] != ""


def test_no_build_is_started_while_the_machine_is_not_set_up(
    world: Surroundings, unit: RecordingUnit, started: list[str]
) -> None:
    """A build needs the network and the storage, and the set-up itself builds a missing image."""
    service = make(world, unit)
    markers.Markers(IDENTITY.unit).clear(markers.SET_UP)

    service.reconcile()

    assert started == []


@pytest.mark.parametrize("error", [HostError("no such systemd unit"), LxdError("busy"), OSError("read-only")], ids=str)
def test_a_build_that_cannot_be_started_stops_nothing(
    world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Runners are kept from the image that is there."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("host.image_builds.ensure_changed", fail)

    make(world, unit).reconcile()

    assert len(world.lxd.found) == 2


@pytest.mark.parametrize(
    ("options", "notice"),
    [
        ({"extra_packages": ("cmake",)}, "; image jammy is not built yet with the changed options"),
        # The timer's build gives an image that the charm did not build the archives of actions.
        ({"cached_actions": ("actions/checkout@v5",)}, ""),
    ],
    ids=["a package", "only the default"],
)
def test_the_status_says_that_the_image_lacks_a_change(
    world: Surroundings, unit: RecordingUnit, started: list[str], options: dict[str, Any], notice: str
) -> None:
    """Runners start from the previous image meanwhile; the operator's own image lacks nothing by default."""
    wanted = settings.image_build(state(**options))
    markers.Markers(IDENTITY.unit).note(markers.IMAGE, wanted.additions)
    markers.Markers(IDENTITY.unit).note(markers.NO_POLICY)

    make(world, unit, **options).reconcile()

    assert unit.done[-1] == f"active: 2 runners: 2 idle, 0 busy{notice} (test mode: containers)"


def test_the_status_names_the_application_that_keeps_the_image(
    world: Surroundings, unit: RecordingUnit, started: list[str], marker_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shares the machine, and needs the image as it is: no build for this unit's options is waited for."""
    settings.save(state(), Identity("other", 3, "0123abcd"))
    markers.Markers("other/3").note(markers.SET_UP)
    (marker_root / "agents" / "unit-other-3").mkdir(parents=True)
    published = PublishedImage(settings.image_build(state()).identity, built_at=time.time())
    monkeypatch.setattr("host.image.published", lambda *_: published)

    make(world, unit, extra_packages=("cmake",)).reconcile()

    assert "; image jammy has the options of other/3 on this machine; set the same ones; " in unit.done[-1]
    assert "not built yet" not in unit.done[-1]


def two_images() -> tuple[Flavor, ...]:
    """The flavours of a unit with two base images, in the order in which the option has them."""
    size = VirtualMachineResources(1, "1GiB", "2GiB")
    images = (BaseImage.NOBLE, BaseImage.JAMMY)
    return tuple(Flavor(f"on-{item.value}", size, item, (item.value,), 1, 1) for item in images)


def test_a_flavour_waits_for_its_own_image_only(
    world: Surroundings, unit: RecordingUnit, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runners of the other image are created; the status says which image is missing."""
    monkeypatch.setattr("host.image.is_there", lambda _, build: build.alias == "jammy")
    monkeypatch.setattr("host.image_builds.ensure", lambda _, __, build: fail(build.alias))

    def fail(alias: str) -> None:
        raise HostError(f"image {alias}: being built")

    make(world, unit, given_flavors=two_images(), repo_policy=None, allow_external_contributor=False).reconcile()

    assert [item.config[FLAVOR_KEY] for item in world.lxd.found.values()] == ["on-jammy"]
    assert unit.done[-1].startswith(
        "active: 1 of 2 runners: 1 idle, 0 busy (on-noble 0 of 1, on-jammy 1 of 1); image noble: being built"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("small 5 no space\nlarge 7", {"small": FailedCreation(5, "no space"), "large": FailedCreation(7)}),
        ("small 5 no space\nlarge\n\nLARGE 7 x\nlarge nan x\nlarge -1 x", {"small": FailedCreation(5, "no space")}),
        (f"large {'9' * 400} x\nlarge ٣ x", {}),
        ("", {}),
    ],
)
def test_a_marker_of_failed_creations_may_be_damaged(
    world: Surroundings, text: str, expected: dict[str, FailedCreation]
) -> None:
    """A line for each flavour; one that cannot be is left out."""
    found = markers.Markers(IDENTITY.unit)
    assert creation.failed_creations(found) == {}
    found.note(markers.FAILED_CREATIONS, text)
    assert creation.failed_creations(found) == expected

    creation.record_failures(Findings(failed_creations=expected), found)
    creation.record_failures(Findings(), found)
    assert creation.failed_creations(found) == expected


def test_a_reconcile_knows_which_flavour_could_not_be_created(
    world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the last reconcile has recorded it in a marker, until one is created. No file for Prometheus is needed."""
    found: list[tuple[bool, bool]] = []
    whole = RunnerManager.reconcile_flavors

    def noted(self: RunnerManager, wanted: Sequence[Wanted], *age: Any) -> int:
        found.append((wanted[0].failed is not None, wanted[0].is_tried))
        return whole(self, wanted, *age)

    monkeypatch.setattr(RunnerManager, "reconcile_flavors", noted)
    for passed, broken in ((0, True), (0, True), (0, True), (899, True), (901, False), (0, False)):
        world.later(passed)
        world.lxd.faults.clear()
        world.lxd.faults.update({"create": lambda _: True} if broken else {})
        make(world, unit).reconcile()
        telemetry.remove(IDENTITY.unit)

    # A failed attempt is the last one: each of these is tried with what others leave.
    assert found == [(False, False), (True, False), (True, False), (True, False), (True, True), (False, False)]


def test_failed_creations_are_recorded_also_if_the_reconcile_fails(
    world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the same flavour would come first in the next one, and fail again; one that began nothing ends none."""
    whole = RunnerManager.reconcile_flavors

    def failing(self: RunnerManager, *wanted: Any) -> int:
        if world.lxd.faults:
            whole(self, *wanted)
        raise GithubApiError("rate limit")

    monkeypatch.setattr(RunnerManager, "reconcile_flavors", failing)
    for faults in ({"create": lambda _: True}, {}):
        world.lxd.faults.clear()
        world.lxd.faults.update(faults)
        with pytest.raises(GithubApiError):
            make(world, unit).reconcile()

        assert list(creation.failed_creations(markers.Markers(IDENTITY.unit))) == ["default"]


def test_a_status_that_juju_refuses_costs_no_reconcile(
    world: Surroundings, unit: RecordingUnit, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one that begins: what it finds is recorded, and shown at its end."""
    show = unit.show

    def refusing(found: Status) -> None:
        if found.name == "maintenance":
            raise RuntimeError("no answer of Juju's agent")
        show(found)

    world.lxd.faults["create"] = lambda _: True
    unit.show = refusing  # type: ignore[method-assign]

    make(world, unit).reconcile()

    assert unit.done[0].startswith("waiting: 0 of 2 runners")
    assert list(creation.failed_creations(markers.Markers(IDENTITY.unit))) == ["default"]
    assert "no answer of Juju's agent" in caplog.text


def test_the_status_has_each_image_that_lacks_a_change(
    world: Surroundings, unit: RecordingUnit, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the first flavour only."""
    monkeypatch.setattr("host.image_builds.start_missing", lambda *_: {})
    options = {"extra_packages": ("cmake",), "given_flavors": two_images(), "allow_external_contributor": False}
    wanted = settings.image_build(state(**options))
    markers.Markers(IDENTITY.unit).note(markers.IMAGE, wanted.additions)
    image.note_failure("noble", "image noble: extra-packages failed: ended with 100: no such package")

    make(world, unit, **options).reconcile()

    assert "; image jammy is not built yet with the changed options; the previous " in unit.done[-1]
    assert "no such package" in unit.done[-1]


def test_settings_are_not_saved_where_options_are_refused(world: Surroundings, unit: RecordingUnit) -> None:
    """The build and the watcher go on with what was accepted: a refused base image is never built."""
    make(world, unit, virtual_machines=2).reconcile()
    accepted = settings.load(IDENTITY.unit)
    world.fault = ConfigurationError("base-image: cannot change after deployment, set it back to jammy")

    with pytest.raises(ConfigurationError, match="base-image"):
        make(world, unit, virtual_machines=50).reconcile()

    assert settings.load(IDENTITY.unit) == accepted


def test_settings_that_cannot_be_saved_stop_no_reconcile(
    world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the runners are looked after all the same."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(settings, "save", fail)

    make(world, unit).attend()

    assert len(world.lxd.found) == 2


def test_lost_settings_are_there_before_the_watcher_starts(world: Surroundings, unit: RecordingUnit) -> None:
    """Also where update-status alone finds the watcher missing: without settings it would end at once."""
    make(world, unit).resume()

    assert settings.load(IDENTITY.unit).runners == 2


def test_a_watcher_that_is_not_wanted_is_removed_by_a_reconcile(world: Surroundings, unit: RecordingUnit) -> None:
    """The hook of the changed option may have ended before it removed the watcher."""
    make(world, unit, replace_on_exit=False).attend()

    assert world.steps[-1] == "no agent"


def test_no_timer_is_left_where_the_options_cannot_be_read(world: Surroundings, unit: RecordingUnit) -> None:
    """What keeps a unit that leaves from making runners needs no options, and comes first."""
    service = make(world, unit)

    service.close()

    assert world.steps == ["no agent", "no timer"]
    assert markers.Markers(IDENTITY.unit).read(markers.LEAVING) is not None


@pytest.mark.parametrize(("end", "revoked"), [(9e9, ["handed-to-the-agent"]), (None, [])])
def test_the_agents_token_goes_with_the_unit(
    world: Surroundings,
    unit: RecordingUnit,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    end: float | None,
    revoked: list[str],
) -> None:
    """Its file is removed, and what a GitHub App gave is revoked; a personal access token is the operator's."""
    monkeypatch.setattr(agent_settings, "LOCKS", tmp_path)
    agent_settings.save(agent_settings.of_state(state(), IDENTITY, "handed-to-the-agent", end, {}))

    make(world, unit).leave()

    assert not agent_settings.file_of(IDENTITY.unit).exists()
    assert world.github.handed == revoked


def test_scale_sets_go_before_the_agents_token(
    world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may be the only one that works: the options of a unit that leaves may be invalid."""
    monkeypatch.setattr(agent_settings, "LOCKS", tmp_path)
    agent_settings.save(agent_settings.of_state(state(), IDENTITY, "handed-to-the-agent", 9e9, {}))
    found: list[tuple[str, int]] = []
    monkeypatch.setattr(UnitDemand, "leave", lambda _, handed: found.append((handed.token, world.github.revoked)))

    make(world, unit).leave()

    assert (found, world.github.revoked) == ([("handed-to-the-agent", 0)], 1)


def test_a_token_that_is_not_revoked_stops_nothing(
    world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook in which a unit leaves does not fail for it: Juju would repeat it for ever."""

    def fail(*_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(world.github, "revoke", fail)

    make(world, unit).leave()


def test_findings_that_cannot_be_recorded_stop_nothing(
    world: Surroundings, unit: RecordingUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the status still says what the reconcile came to."""

    def fail(*_: Any) -> None:
        raise HostError("the marker cannot be written")

    monkeypatch.setattr(creation, "record", fail)

    make(world, unit).reconcile()

    assert unit.done[-1].startswith("active: 2 runners")


@pytest.fixture
def idle_demand(world: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a unit in demand mode that knows of no job, and whose first reconcile read the list of runners."""
    for module in (agent_settings, demand):
        monkeypatch.setattr(module, "LOCKS", tmp_path / "run")
    options = {"scaling": Scaling.DEMAND}
    world.later(0)
    make(world, RecordingUnit(), **options).reconcile()
    demand.save(IDENTITY.unit, {"default": Demand(answered_at=world.now(), scale_set=7)})
    assert len(world.github.lists) == 1
    return options


def test_the_timers_event_reads_the_list_once_in_five_minutes(
    world: Surroundings, unit: RecordingUnit, idle_demand: dict[str, Any]
) -> None:
    """The agent fires the same event whenever demand changes. The timer fires when the list is due anyway."""
    for seconds, lists in ((0, 1), (200, 1), (99, 1), (1, 2), (0, 2)):
        world.later(seconds)
        demand.save(IDENTITY.unit, {"default": Demand(answered_at=world.now(), scale_set=7)})
        make(world, unit, **idle_demand).attend()
        assert len(world.github.lists) == lists


def test_a_refusal_of_the_scale_sets_blocks_the_unit(
    world: Surroundings, unit: RecordingUnit, idle_demand: dict[str, Any]
) -> None:
    """With the reason alone, as one of the runners with a fixed number does, until it is over."""
    problem = "group: org has no runner group named 'builders'"
    for is_blocking, shown in ((True, f"blocked: {problem}"), (False, "active: 0 runners")):
        demand.save(IDENTITY.unit, {"default": Demand(problem=problem, is_blocking=is_blocking)})
        make(world, unit, **idle_demand).attend()
        assert unit.done[-1].startswith(shown)


def test_other_events_and_actions_read_the_list(
    world: Surroundings, unit: RecordingUnit, idle_demand: dict[str, Any]
) -> None:
    """Whoever changes an option or calls for a reconcile gets a whole one."""
    make(world, unit, **idle_demand).reconcile()
    make(world, unit, **idle_demand).apply()

    assert len(world.github.lists) == 3


def test_in_fixed_mode_each_reconcile_reads_the_list(world: Surroundings, unit: RecordingUnit) -> None:
    """Whoever starts it."""
    make(world, unit).attend()
    make(world, unit).attend()

    assert len(world.github.lists) == 2


def test_a_reconcile_that_failed_is_followed_by_one_that_reads_the_list(
    world: Surroundings, unit: RecordingUnit, idle_demand: dict[str, Any]
) -> None:
    """Else the unit would be active again although GitHub refused it a moment ago."""
    world.github.down = {"list"}
    for work in (Service.reconcile, Service.attend, Service.attend):
        with pytest.raises(GithubApiError):
            work(make(world, unit, **idle_demand))
