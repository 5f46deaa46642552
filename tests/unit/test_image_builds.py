"""Builds of the image outside of hooks: which of them a reconcile starts, and what they record."""

import logging
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

import settings
from engine.client import LxdClient
from errors import HostError
from host import image, image_builds, systemd, triggers
from host.markers import IMAGE, Markers
from models import ImageSource
from naming import Identity
from programs import build_image
from proxies import ProxyConfig
from settings import ImageBuild, Settings
from system import exclusive
from tests.support.systemctl import Systemctl
from tests.unit.test_image import BUILD, FULL, ImageLxd, make
from tests.unit.test_image_additions import failure

__all__ = ["failure"]

UNIT = "app/0"
START = f"start --no-block {image.service(UNIT)}"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of systemctl; no build is running."""
    monkeypatch.setattr(systemd, "is_starting", lambda _: False)
    return Systemctl(monkeypatch).calls


def build_changed(lxd: ImageLxd, build: ImageBuild) -> None:
    image_builds.ensure_changed(cast(LxdClient, lxd), Markers(UNIT), (build,))


def test_a_change_starts_one_build(calls: list[str], failure: Path) -> None:
    """Once for each change: a build that fails is repeated by the timer only, and the status loses the old reason."""
    lxd = ImageLxd()
    failure.write_text("image jammy: of other options\nimage noble: failed\n")

    build_changed(lxd, BUILD)
    assert calls == []
    build_changed(lxd, FULL)
    assert calls == [START]
    assert failure.read_text() == "image noble: failed\n"
    failure.write_text("failed")
    build_changed(lxd, FULL)
    assert calls == [START]
    assert failure.exists()
    build_changed(lxd, replace(FULL, script=""))
    build_changed(lxd, FULL)
    assert calls == [START] * 3


def test_no_build_is_started_for_what_the_image_has(calls: list[str]) -> None:
    """Also where the marker is deleted, and where the options return to what they were."""
    lxd = ImageLxd()
    make(lxd, FULL)

    build_changed(lxd, FULL)
    Markers(UNIT).clear(IMAGE)
    build_changed(lxd, FULL)

    assert calls == []
    build_changed(lxd, BUILD)
    assert calls == [START]


def test_a_change_during_a_build_is_built_after_it(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A build has the options of its beginning: a start that systemd ignores is not taken for a build."""
    monkeypatch.setattr(systemd, "is_starting", lambda _: True)
    build_changed(ImageLxd(), FULL)
    assert calls == []

    monkeypatch.setattr(systemd, "is_starting", lambda _: False)
    build_changed(ImageLxd(), FULL)
    assert calls == [START]


def test_options_that_return_during_a_build_are_built_after_it(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image still has what they ask for, and the build that is running will take it away."""
    lxd = ImageLxd()
    make(lxd, BUILD)
    build_changed(lxd, BUILD)
    build_changed(lxd, FULL)
    monkeypatch.setattr(systemd, "is_starting", lambda _: True)
    build_changed(lxd, BUILD)

    make(lxd, FULL)
    image_builds.note_end(Markers(UNIT), FULL)
    monkeypatch.setattr(systemd, "is_starting", lambda _: False)
    build_changed(lxd, BUILD)

    assert calls == [START] * 2


@pytest.mark.parametrize(
    ("ended", "age", "starts"), [(False, 3599, 0), (False, 3601, 1), (False, -9, 1), (True, 9999, 0)]
)
@pytest.mark.parametrize("build", [FULL, BUILD])
def test_a_build_that_was_cut_off_is_started_again(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, build: ImageBuild, ended: bool, age: int, starts: int
) -> None:
    """An hour after its start, also where the clock was set back; one that has failed is not."""
    lxd, moment = ImageLxd(), [1e9]
    monkeypatch.setattr(time, "time", lambda: moment[-1])
    make(lxd, FULL if build is BUILD else BUILD)
    build_changed(lxd, build)
    if ended:
        image_builds.note_end(Markers(UNIT), build)
    moment.append(1e9 + age)
    found = image_builds.missing_change(Markers(UNIT), build, "other")
    assert found == "image jammy is not built yet with the changed options"

    for _ in range(2):
        build_changed(lxd, build)

    assert calls == [START] * (1 + starts)


@pytest.mark.parametrize("text", ["", "x y", "0 1 2", "\x00"])
def test_a_damaged_marker_starts_a_build(calls: list[str], text: str) -> None:
    """As one that was deleted."""
    Markers(UNIT).note(IMAGE, text)

    build_changed(ImageLxd(), FULL)

    assert calls == [START]


def test_units_with_different_options_do_not_build_for_ever(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two applications on one machine share the image: each starts one build for its options."""
    lxd, other = ImageLxd(), replace(FULL, script="")
    for _ in range(3):
        for unit, build in (("app/0", FULL), ("other/0", other)):
            started = len(calls)
            image_builds.ensure_changed(cast(LxdClient, lxd), Markers(unit), (build,))
            if len(calls) > started:
                make(lxd, build)
                image_builds.note_end(Markers(unit), build)

    assert len(calls) == 2


@pytest.mark.parametrize(
    ("build", "started"),
    [
        (BUILD, 0),
        (FULL, 1),
        (replace(FULL, script=""), 1),
        (replace(FULL, extra_packages=()), 1),
        (replace(BUILD, cached_actions=("actions/checkout@v5",)), 0),
    ],
)
def test_an_image_of_the_operator_serves(calls: list[str], build: ImageBuild, started: int) -> None:
    """It is built anew only if the options ask for packages or a script, which it does not have; not for actions."""
    lxd = ImageLxd()
    lxd.aliases["jammy"] = "theirs"

    build_changed(lxd, build)

    assert len(calls) == started


def test_a_missing_image_is_no_change(calls: list[str]) -> None:
    """The set-up of the machine builds it."""
    lxd = ImageLxd()
    lxd.aliases.clear()

    build_changed(lxd, FULL)

    assert calls == []


def test_the_status_says_what_the_image_lacks(calls: list[str], failure: Path) -> None:
    """While the build runs, and why it failed; nothing once the image has it, and of what no build was started for."""
    markers, lxd = Markers(UNIT), ImageLxd()
    assert image_builds.missing_change(markers, FULL, "") == ""

    build_changed(lxd, FULL)
    assert image_builds.missing_change(markers, FULL, "") == "image jammy is not built yet with the changed options"
    failure.write_text("image jammy: image-script failed: exit code 7\n")
    assert image_builds.missing_change(markers, FULL, "") == (
        "the previous image stays in use: image jammy: image-script failed: exit code 7"
    )
    assert image_builds.missing_change(markers, FULL, FULL.additions) == ""
    assert image_builds.missing_change(markers, BUILD, "") == ""


@pytest.mark.parametrize(
    ("image_type", "before", "fails", "reconciles"),
    [
        pytest.param("container", BUILD, "", 1, id="changed options"),
        pytest.param("container", FULL, "", 0, id="the same options"),
        pytest.param("virtual-machine", FULL, "", 1, id="no image of this type"),
        pytest.param("container", BUILD, "image-script", 0, id="a build that fails"),
    ],
)
def test_the_build_starts_a_reconcile_where_runners_wait_for_it(
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    image_type: str,
    before: ImageBuild,
    fails: str,
    reconciles: int,
) -> None:
    """Runners could not be made, or idle ones are to be replaced; a build of the timer changes nothing for them."""
    lxd = ImageLxd()
    make(lxd, before)
    lxd.images["old"] = lxd.images.pop("new")
    lxd.aliases["jammy"], lxd.type, lxd.fails = "old", image_type, fails
    monkeypatch.setattr(build_image, "LxdClient", lambda: lxd)
    run_program(monkeypatch, FULL)

    assert build_image.main() == bool(fails)
    assert calls == [f"start --no-block {triggers.service(UNIT)}"] * reconciles


@pytest.mark.parametrize(("fails", "again"), [("", 0), ("image-script", 0), ("lock", 1)])
def test_a_build_outside_of_hooks_records_its_end(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, fails: str, again: int
) -> None:
    """One that fails is left to the timer; one that another build kept from beginning is started again."""
    lxd = ImageLxd(fails)
    monkeypatch.setattr(build_image, "LxdClient", lambda: lxd)
    run_program(monkeypatch, FULL)
    build_changed(lxd, FULL)

    with exclusive(image.LOCK, 0) if fails == "lock" else nullcontext():
        build_image.main()
    moment = time.time() + 7200
    monkeypatch.setattr(time, "time", lambda: moment)
    build_changed(lxd, FULL)

    assert calls.count(START) == 1 + again


def share_machine(root: Path, unit: str, build: ImageBuild, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another unit be on this machine, with these options of its image."""
    Markers(unit).note(IMAGE)
    (root / "agents" / f"unit-{unit.replace('/', '-')}").mkdir(parents=True)
    load, app = settings.load, unit.partition("/")[0]
    found = Settings(Identity(app, 0, "0123abcd"), 1, (build,))
    monkeypatch.setattr(settings, "load", lambda of: found if of == unit else load(of))


@pytest.mark.parametrize(
    ("unit", "its", "is_kept"),
    [
        pytest.param("other/3", BUILD, True, id="as it is"),
        pytest.param("other/3", replace(FULL, script=""), False, id="other options as well"),
        pytest.param("other/3", replace(BUILD, alias="noble"), False, id="another image"),
        pytest.param("other/3", replace(BUILD, source=ImageSource("https://x.example")), False, id="another source"),
        pytest.param("app/1", BUILD, False, id="another unit of the application"),
    ],
)
def test_an_image_that_another_application_needs_is_not_replaced(
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    marker_root: Path,
    unit: str,
    its: ImageBuild,
    is_kept: bool,
) -> None:
    """Neither by a changed option nor by the timer. An application that changes its options first lets it go."""
    lxd = ImageLxd()
    make(lxd, BUILD)
    lxd.steps.clear()
    monkeypatch.setattr(build_image, "LxdClient", lambda: lxd)
    run_program(monkeypatch, FULL)
    share_machine(marker_root, unit, its, monkeypatch)
    found = image.published(cast(LxdClient, lxd), "jammy")

    build_changed(lxd, FULL)
    assert (START in calls) is not is_kept
    assert build_image.main() == 0

    assert ("clean" in lxd.steps) is not is_kept
    assert image_builds.owning_unit(Markers(UNIT), FULL, found) == (unit if is_kept else "")


@pytest.mark.parametrize(
    ("owner", "its", "owning_unit"),
    [
        pytest.param("other", replace(BUILD, source=ImageSource("https://x.example")), "other/3", id="another source"),
        pytest.param("other", replace(FULL, script="false"), "other/3", id="a script that fails"),
        pytest.param("other", BUILD, "other/3", id="as it is"),
        pytest.param("other", replace(BUILD, alias="noble"), "", id="another image"),
        pytest.param("app", BUILD, "", id="the image of this application"),
        pytest.param("gone", BUILD, "other/3", id="as it is, of one that has left"),
        pytest.param("gone", replace(FULL, script="false"), "", id="of one that has left"),
    ],
)
def test_an_image_stays_that_of_its_owner(
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    marker_root: Path,
    owner: str,
    its: ImageBuild,
    owning_unit: str,
) -> None:
    """Also while the owner's options differ from the image: it would never get its image back."""
    lxd = ImageLxd()
    make(lxd, BUILD, app=owner)
    lxd.steps.clear()
    monkeypatch.setattr(build_image, "LxdClient", lambda: lxd)
    run_program(monkeypatch, FULL)
    share_machine(marker_root, "other/3", its, monkeypatch)

    build_changed(lxd, FULL)
    assert (START in calls) is not bool(owning_unit)
    assert image_builds.owning_unit(Markers(UNIT), FULL, image.published(cast(LxdClient, lxd), "jammy")) == owning_unit
    assert build_image.main() == 0

    assert ("clean" in lxd.steps) is not bool(owning_unit)


@pytest.mark.parametrize(("former", "owner"), [("other", "other"), ("gone", "app"), ("", "app")])
def test_equal_options_share_an_image(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, marker_root: Path, former: str, owner: str
) -> None:
    """Any of the units builds it; it stays that of the application which had it first, while it is on the machine."""
    lxd = ImageLxd()
    make(lxd, FULL, app=former)
    lxd.steps.clear()
    monkeypatch.setattr(build_image, "LxdClient", lambda: lxd)
    run_program(monkeypatch, FULL)
    share_machine(marker_root, "other/3", FULL, monkeypatch)

    assert build_image.main() == 0

    assert "clean" in lxd.steps
    assert image.published(cast(LxdClient, lxd), "jammy").owner == owner


@pytest.mark.parametrize("kept", [False, True])
def test_a_new_runner_binary_goes_into_images(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, marker_root: Path, kept: bool
) -> None:
    """Outside of hooks, by the service of the unit whose image it is; an operator's own image is theirs."""
    lxd = ImageLxd()
    make(lxd, BUILD, app="other" if kept else "app")
    share_machine(marker_root, "other/3", BUILD, monkeypatch)

    for alias in ("their-image", "no-such-image", "jammy"):
        image_builds.renew(cast(LxdClient, lxd), Markers(UNIT), replace(FULL, alias=alias))

    assert calls == [f"start --no-block {image.service('other/3' if kept else UNIT)}"]


def test_an_image_is_built_once_its_owner_has_left(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, marker_root: Path
) -> None:
    """By the next reconcile, also where the timer had found it kept."""
    lxd = ImageLxd()
    make(lxd, BUILD)
    monkeypatch.setattr(build_image, "LxdClient", lambda: lxd)
    run_program(monkeypatch, FULL)
    share_machine(marker_root, "other/3", BUILD, monkeypatch)
    build_changed(lxd, FULL)
    assert build_image.main() == 0
    assert calls == []

    (marker_root / "agents" / "unit-other-3").rmdir()
    build_changed(lxd, FULL)

    assert calls == [START]


def test_the_timer_of_a_unit_that_has_to_wait_starts_nothing(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise units with different options would replace each other's image."""
    lxd = ImageLxd()
    image_builds.note_end(Markers(UNIT), FULL)
    monkeypatch.setattr(build_image, "LxdClient", lambda: lxd)
    run_program(monkeypatch, FULL)

    with exclusive(image.LOCK, 0):
        build_image.main()
    build_changed(lxd, FULL)

    assert calls == []


# The first image.

UNKNOWN = "image jammy: extra-packages failed: ended with 1: not in this distribution: no-such-package"


@pytest.mark.parametrize(
    ("reason", "ended", "again"),
    [
        ("image jammy: image-script failed: exit code 7, see its output in the log", FULL, False),
        ("image jammy: image-script failed: exit code 7, see its output in the log", BUILD, True),
        ("image jammy: image-script failed: exit code 7, see its output in the log", None, True),
        (UNKNOWN, FULL, False),
        (UNKNOWN, replace(FULL, extra_packages=("no-such-package",)), True),
        ("image jammy: extra-packages failed: ended with 100: E: Unable to fetch some archives", FULL, True),
        ("image jammy: packages failed: ended with 1: image x: image-script failed: x", FULL, True),
    ],
)
def test_a_first_build_that_failed_because_of_an_option_waits_for_a_change(
    calls: list[str], failure: Path, reason: str, ended: ImageBuild | None, again: bool
) -> None:
    """It would fail again in the same way at each reconcile; what the network or the machine has caused is repeated."""
    lxd = ImageLxd()
    lxd.aliases.clear()
    failure.write_text(f"{reason}\n")
    if ended:
        image_builds.note_end(Markers(UNIT), ended)

    with pytest.raises(HostError) as raised:
        image_builds.ensure(cast(LxdClient, lxd), Markers(UNIT), FULL)

    assert str(raised.value) == f"{reason}; {'being built again' if again else 'correct the option'}"
    assert calls == [START] * again


def run_program(monkeypatch: pytest.MonkeyPatch, *builds: ImageBuild) -> None:
    """Arguments and settings of the program that builds images."""
    monkeypatch.setattr("settings.load", lambda _: Settings(Identity("app", 0, "0123abcd"), 1, builds))
    monkeypatch.setattr("sys.argv", ["build_image", "--unit", UNIT])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)


def test_the_build_outside_of_hooks_has_the_models_proxies(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives of actions are downloaded through them, as by a hook: the service's own environment has none."""
    proxies = ProxyConfig("http://proxy.example:3128", None, "10.0.0.0/8")
    monkeypatch.setattr(build_image, "LxdClient", ImageLxd)
    monkeypatch.setattr(os, "environ", {**os.environ})
    found: dict[str, str] = {}
    monkeypatch.setattr(image, "rebuild", lambda *_: found.update(os.environ) or True)
    run_program(monkeypatch, replace(BUILD, proxies=proxies))

    assert build_image.main() == 0

    assert found["http_proxy"] == found["HTTP_PROXY"] == "http://proxy.example:3128"
    assert found["no_proxy"] == "10.0.0.0/8,localhost,127.0.0.1"


# Several images.

NOBLE = replace(FULL, alias="noble")


def test_every_image_must_have_what_the_options_add(calls: list[str]) -> None:
    """One image that lacks it starts the build of all, and one build serves all of them."""
    lxd = ImageLxd()
    make(lxd, FULL)
    lxd.images["other"], lxd.aliases["noble"] = {"github-runner.alias": "noble"}, "other"

    for _ in range(2):
        image_builds.ensure_changed(cast(LxdClient, lxd), Markers(UNIT), (FULL, NOBLE))

    assert calls == [START]


@pytest.mark.parametrize("broken", ["jammy", "noble"])
def test_an_image_that_fails_does_not_keep_others_from_being_built(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, failure: Path, broken: str
) -> None:
    """The program fails, the failure names the image, and the runners of the other image are reconciled."""
    built: list[str] = []

    def rebuild(_: object, __: object, ___: str, build: ImageBuild, ____: object) -> bool:
        if build.alias == broken:
            image.note_failure(build.alias, f"image {broken}: network failed")
            raise HostError(f"image {broken}: network failed")
        built.append(build.alias)
        image.note_failure(build.alias)
        return True

    monkeypatch.setattr(build_image, "LxdClient", ImageLxd)
    monkeypatch.setattr(image, "rebuild", rebuild)
    run_program(monkeypatch, FULL, NOBLE)

    assert build_image.main() == 1
    assert built == [{"jammy": "noble", "noble": "jammy"}[broken]]
    assert failure.read_text() == f"image {broken}: network failed\n"
    assert calls == [f"start --no-block {triggers.service(UNIT)}"]


@pytest.mark.parametrize("shared", [False, True])
def test_the_image_that_no_flavor_uses_is_removed(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Only where no other unit on the machine may use it; an image of the operator stays."""
    lxd = ImageLxd()
    monkeypatch.setattr(build_image, "LxdClient", lambda: lxd)
    monkeypatch.setattr(Markers, "others", lambda _: ["other/0"] if shared else [])
    run_program(monkeypatch, BUILD)
    build_image.main()
    assert set(lxd.images) == {"theirs", "new"}

    monkeypatch.setattr(image, "rebuild", lambda *_: True)
    run_program(monkeypatch, NOBLE)
    build_image.main()

    assert set(lxd.images) == ({"theirs", "new"} if shared else {"theirs"})


def test_a_missing_image_beside_others_is_built(calls: list[str], failure: Path) -> None:
    """Each reconcile starts the build and says why runners wait for it; where the option is wrong, it only says so."""
    lxd, markers = ImageLxd(), Markers(UNIT)

    def missing(*builds: ImageBuild) -> dict[str, str]:
        return image_builds.start_missing(cast(LxdClient, lxd), markers, builds)

    assert missing(FULL, NOBLE) == {"noble": f"image noble: being built, see `{image.JOURNAL}`"}
    assert calls == [START]
    image.note_failure("noble", "image noble: image-script failed: exit code 7")
    image_builds.note_end(markers, NOBLE)
    assert missing(FULL, NOBLE) == {"noble": "image noble: image-script failed: exit code 7; correct the option"}
    assert calls == [START]
    lxd.aliases["noble"] = "theirs"
    assert missing(FULL, NOBLE) == {}
    lxd.aliases.clear()
    assert missing(FULL) == {}
    assert calls == [START]


@pytest.mark.parametrize(
    ("script", "age", "built"),
    [
        (FULL.script, 60, ["noble"]),
        (FULL.script, 6 * 3600 + 60, ["jammy", "noble"]),
        (FULL.script, -60, ["jammy", "noble"]),
        ("true", 60, ["jammy", "noble"]),
    ],
    ids=["just built", "the timer's time has come", "the clock was set back", "changed options"],
)
def test_a_missing_image_does_not_have_the_others_built_each_time(
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    failure: Path,
    script: str,
    age: int,
    built: list[str],
) -> None:
    """A build that always fails is started by each reconcile; another image would be built as often."""
    lxd, found = ImageLxd(), list[str]()
    make(lxd, FULL)
    lxd.aliases.pop("noble", None)
    moment = image.published(cast(LxdClient, lxd), "jammy").built_at
    assert moment is not None

    def rebuild(_: object, __: object, ___: str, build: ImageBuild, ____: object) -> bool:
        found.append(build.alias)
        return True

    monkeypatch.setattr(time, "time", lambda: moment + age)
    monkeypatch.setattr(image, "rebuild", rebuild)
    monkeypatch.setattr(build_image, "LxdClient", lambda: lxd)
    run_program(monkeypatch, *(replace(build, script=script) for build in (FULL, NOBLE)))

    build_image.main()

    assert found == built
