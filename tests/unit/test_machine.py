"""The machine as a whole: the order of its set-up, what units on one machine share, and the unit's markers."""

from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import settings
import telemetry
from engine import profiles
from engine.client import LxdClient
from errors import ConfigurationError, HostError, LxdError
from host import (
    firewall,
    image,
    image_builds,
    kernel,
    logrotate,
    lxd_server,
    machine,
    markers,
    packages,
    pool,
    triggers,
)
from host.markers import Markers
from models import BaseImage, Flavor, VirtualMachineResources
from tests.support.fakes import IDENTITY, state

UNIT = IDENTITY.unit
STEPS: dict[str, tuple[Any, str]] = {
    "packages": (packages, "ensure"),
    "kernel": (kernel, "ensure_inotify"),
    "LXD": (lxd_server, "ensure"),
    "firewall": (firewall, "ensure"),
    "storage check": (pool, "check"),
    "storage": (pool, "ensure"),
    "logrotate": (logrotate, "ensure"),
    "image": (image, "ensure"),
}


def set_up(monkeypatch: pytest.MonkeyPatch, failing: str = "", error: Exception | None = None) -> list[str]:
    """The steps of a set-up that were reached; one of them fails."""
    reached: list[str] = []

    def step(name: str) -> Callable[..., None]:
        def run(*_: Any, **__: Any) -> None:
            reached.append(name)
            if name == failing and error is not None:
                raise error

        return run

    for name, (module, function) in STEPS.items():
        monkeypatch.setattr(module, function, step(name))
    try:
        machine.set_up(cast(LxdClient, None), cast(Any, None), state(), IDENTITY, lambda _: None)
    except (HostError, LxdError, ConfigurationError):
        assert failing
    return reached


@pytest.mark.parametrize("failing", STEPS)
def test_a_set_up_is_complete_only_at_its_end(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Whichever step fails, the marker says that the set-up is due, also where an earlier one was complete."""
    assert set_up(monkeypatch) == list(STEPS)
    assert Markers(UNIT).read(markers.SET_UP) is not None

    set_up(monkeypatch, failing, HostError("failed"))

    assert Markers(UNIT).read(markers.SET_UP) is None


@pytest.mark.parametrize("error", [HostError("not mounted"), ConfigurationError("virtual-machines: too many")])
def test_the_firewall_does_not_wait_for_storage(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Runners that exist get a changed denylist although the storage is too small, or not there yet."""
    assert "firewall" in set_up(monkeypatch, "storage check", error)


def test_what_another_unit_uses_stays(monkeypatch: pytest.MonkeyPatch, marker_root: Path) -> None:
    """Each unit removes its own timer and ACL; pool, image and bridge go with the last unit that Juju knows."""
    for module in (image, pool, firewall, lxd_server):
        monkeypatch.setattr(module, "remove", lambda *_, name=module.__name__: [name])
    monkeypatch.setattr(image, "remove_timer", lambda unit: [f"timer of {unit}"])
    monkeypatch.setattr(image, "remove_builder", lambda _: ["what a stopped build left"])
    monkeypatch.setattr(profiles, "remove_record", lambda _, app: [f"record of {app}"])
    mine, other = Markers(UNIT), Markers("other/1")
    for one in (mine, other):
        one.note(markers.SET_UP)

    def released() -> list[str]:
        return machine.release(cast(LxdClient, None), mine)

    assert mine.others() == []
    assert released() == [f"timer of {UNIT}", "host.image", "host.pool", "host.firewall", "host.lxd_server"]
    (marker_root / "agents" / "unit-other-1").mkdir(parents=True)
    assert mine.others() == ["other/1"]
    app = UNIT.partition("/")[0]
    assert released() == [f"timer of {UNIT}", "what a stopped build left", f"record of {app}", "host.firewall"]
    sibling = Markers(f"{app}/7")
    sibling.note(markers.SET_UP)
    (marker_root / "agents" / f"unit-{app}-7").mkdir()
    assert released() == [f"timer of {UNIT}", "what a stopped build left", "host.firewall"]
    assert mine.other_applications() == {"other"}
    assert mine.other_applications(set_up=True) == {"other"}
    Markers("other/1").clear(markers.SET_UP)
    assert (mine.other_applications(), mine.other_applications(set_up=True)) == ({"other"}, set())


def test_the_figures_of_the_unit_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reconciles and agent have recorded of this unit is removed; another unit's stays."""
    for module in (image, pool, firewall, lxd_server):
        monkeypatch.setattr(module, "remove", lambda *_: [])
    monkeypatch.setattr(image, "remove_timer", lambda _: [])
    for unit in (UNIT, "other/1"):
        telemetry.save(unit, telemetry.Gauges(1.0))
        telemetry.note_problem(unit, "a reason")

    removed = machine.release(cast(LxdClient, None), Markers(UNIT))

    assert removed == [str(telemetry.gauges_path(UNIT)), str(telemetry.problem_path(UNIT))]
    assert telemetry.load("other/1")
    assert telemetry.problem("other/1")


def test_units_of_one_machine_have_systemd_units_of_their_own() -> None:
    """No name of one unit is a name of another, so that neither changes nor removes what the other has."""
    found = [
        name
        for unit in ("github-runner/0", "github-runner/10", "runner/0", "runner-0/1")
        for name in (
            *(triggers.service(unit), triggers.timer(unit), image.service(unit), image.timer(unit)),
            *(triggers.agent(unit), str(settings.file_of(unit)), firewall.acl_name(unit)),
        )
    ]

    assert len(set(found)) == len(found)


def test_markers_that_cannot_be_read_are_not_there(marker_root: Path) -> None:
    """A folder, a binary file or half a line in a marker's place is no traceback and no number."""
    mine = Markers(UNIT)
    assert not mine.exist()
    mine.note("pair", "1 2")
    mine.note("endless", "inf nan")
    (marker_root / f"unit-{UNIT.replace('/', '-')}" / "binary").write_bytes(b"\xff\xfe")
    (marker_root / f"unit-{UNIT.replace('/', '-')}" / "folder").mkdir()

    assert mine.exist()
    assert mine.numbers("pair", 2) == [1.0, 2.0]
    assert mine.numbers("endless", 2) is None
    assert [mine.numbers(name, 3) for name in ("pair", "binary", "folder", "missing")] == [None] * 4
    with pytest.raises(HostError, match="cannot be removed"):
        mine.clear("folder")
    assert mine.remove() == [str(marker_root / f"unit-{UNIT.replace('/', '-')}")]


RESOURCES = VirtualMachineResources(2, "7GiB", "10GiB")
TWO_IMAGES = state(
    given_flavors=tuple(Flavor(item.value, RESOURCES, item, (), 1, 1) for item in (BaseImage.NOBLE, BaseImage.JAMMY))
)


def fail_builds(monkeypatch: pytest.MonkeyPatch, broken: Collection[str], tried: list[str]) -> None:
    """Every step of a set-up succeeds but the builds of some images; ``tried`` gets the aliases."""

    def ensure(_: Any, __: Any, ___: str, build: settings.ImageBuild, ____: Any) -> None:
        tried.append(build.alias)
        if build.alias in broken:
            raise HostError(f"image {build.alias}: failed")

    for module, function in STEPS.values():
        monkeypatch.setattr(module, function, lambda *_, **__: None)
    monkeypatch.setattr(image, "ensure", ensure)
    monkeypatch.setattr(image, "is_there", lambda *_: False)


@pytest.mark.parametrize(("there", "in_hook"), [(set(), ["jammy"]), ({"jammy"}, ["jammy"]), ({"noble"}, ["noble"])])
def test_one_image_is_built_in_the_hook(monkeypatch: pytest.MonkeyPatch, there: set[str], in_hook: list[str]) -> None:
    """The next one is built by the service while runners of the first do their work."""
    tried: list[str] = []
    fail_builds(monkeypatch, (), tried)
    monkeypatch.setattr(image, "is_there", lambda _, build: build.alias in {*there, *tried})
    later: list[str] = []
    monkeypatch.setattr(image_builds, "ensure", lambda _, __, build: later.append(build.alias))

    machine.set_up(cast(LxdClient, None), cast(Any, None), TWO_IMAGES, IDENTITY, lambda _: None)

    assert tried == in_hook
    assert later == [alias for alias in ("jammy", "noble") if alias not in in_hook]


def test_every_image_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that cannot be built does not keep the next from being built; the error names those that failed."""
    tried: list[str] = []
    fail_builds(monkeypatch, {"jammy", "noble"}, tried)

    with pytest.raises(HostError, match="image jammy: failed; image noble: failed"):
        machine.set_up(cast(LxdClient, None), cast(Any, None), TWO_IMAGES, IDENTITY, lambda _: None)

    assert tried == ["jammy", "noble"]


@pytest.mark.parametrize("broken", ["jammy", "noble"])
def test_one_of_several_images_is_enough(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """The set-up is complete: only the runners of the missing image wait for it."""
    tried: list[str] = []
    fail_builds(monkeypatch, {broken}, tried)

    machine.set_up(cast(LxdClient, None), cast(Any, None), TWO_IMAGES, IDENTITY, lambda _: None)

    assert tried == ["jammy", "noble"]
    assert Markers(UNIT).read(markers.SET_UP) is not None


@pytest.mark.parametrize(
    ("there", "flavors", "lost"),
    [
        ({"jammy", "noble"}, True, []),
        ({"noble"}, True, []),
        (set(), True, ["image"]),
        ({"jammy"}, False, []),
        ({"noble"}, False, ["image"]),
    ],
)
def test_the_set_up_is_repeated_where_no_image_is_there(
    monkeypatch: pytest.MonkeyPatch, there: set[str], flavors: bool, lost: list[str]
) -> None:
    """One that is missing beside others does not have the whole machine set up again."""
    for module, function in ((lxd_server, "is_intact"), (firewall, "is_intact"), (pool, "is_intact")):
        monkeypatch.setattr(module, function, lambda *_: True)
    monkeypatch.setattr(image, "is_there", lambda _, build: build.alias in there)
    lxd = SimpleNamespace(find=lambda *_: None)

    assert machine.lost(cast(LxdClient, lxd), TWO_IMAGES if flavors else state(), UNIT) == lost
