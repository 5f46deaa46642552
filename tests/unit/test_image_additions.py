"""What options add to the image: packages and a script, and the builds that a change of them starts."""

import logging
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import provision
from engine.client import LxdClient
from engine.instance import Execution
from errors import HostError
from host import image, systemd, triggers
from host.markers import IMAGE, Markers
from naming import Identity
from programs import build_image
from proxies import ProxyConfig
from settings import ImageBuild, Settings
from tests.support.fakes import state
from tests.unit.test_image import BUILD, FULL, SCRIPT, Builder, ImageLxd, make

UNIT = "app/0"
START = ("start", "--no-block", image.service(UNIT))


@pytest.fixture(autouse=True)
def failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reason of a failed build is."""
    monkeypatch.setattr(image, "FAILURE", tmp_path / "failure")
    monkeypatch.setattr(image, "LOCK", tmp_path / "lock")
    return tmp_path / "failure"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Calls of systemctl; no build is running."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(systemd, "_systemctl", lambda *arguments, **_: found.append(arguments))
    monkeypatch.setattr(systemd, "is_starting", lambda _: False)
    return found


def build_changed(lxd: ImageLxd, build: ImageBuild) -> None:
    image.build_changed(cast(LxdClient, lxd), Markers(UNIT), build)


def test_nothing_is_added_unless_an_option_asks_for_it() -> None:
    """The standard image has none of the steps, and no file of them."""
    lxd = ImageLxd()

    make(lxd)

    assert not {"extra-packages", "image-script"} & set(lxd.steps)
    assert str(provision.OPTION_SCRIPT) not in lxd.pushed
    assert lxd.images["new"][image.ADDITIONS_PROPERTY] == ""


def test_packages_come_early_and_the_script_at_the_end() -> None:
    """The script finds what the charm and extra-packages install; what it leaves is cleaned as everything else."""
    steps = image.STEPS

    assert steps.index("extra-packages") == steps.index("packages") + 1
    assert steps[-2:] == ("image-script", "clean")


def test_the_script_is_sent_as_a_file() -> None:
    """An argument or a variable would be in the host's process list."""
    lxd = ImageLxd()

    make(lxd, FULL)

    assert lxd.pushed[str(provision.OPTION_SCRIPT)] == SCRIPT.encode()
    assert "PASSWORD" not in repr(FULL) + repr(state(image_script=SCRIPT))


@pytest.mark.parametrize(
    "change",
    [
        *({"extra_packages": ("cmake",)}, {"extra_packages": ()}, {"script": ""}, {"script": f"{SCRIPT} "}),
        *({"cached_actions": ("actions/checkout@v5",)}, {"cached_actions": ("actions/checkout@v4",)}),
    ],
)
def test_additions_tell_options_apart(change: dict[str, Any]) -> None:
    """Each of the options is part of what the image records."""
    assert replace(FULL, **change).additions != FULL.additions
    assert BUILD.additions == ""


def test_additions_are_of_the_content_only() -> None:
    """Proxies, certificates and the GitHub are used by the build, and are not in the image."""
    proxies = replace(FULL.proxies, http="http://proxy.example")
    other = replace(
        FULL, proxies=proxies, runner_proxies=proxies, ca_certificates=("one",), github_url="https://github.example.com"
    )

    assert other.additions == FULL.additions


def test_additions_are_part_of_the_images_identity() -> None:
    """Idle runners are replaced when an image with other additions is there, and by no upgrade of the charm."""
    lxd = ImageLxd()
    lxd.images["old"][image.SOURCE_PROPERTY] = str(BUILD.source)
    before = image.published(cast(LxdClient, lxd), "jammy")

    make(lxd, BUILD)
    standard = image.published(cast(LxdClient, lxd), "jammy")
    make(lxd, FULL)
    full = image.published(cast(LxdClient, lxd), "jammy")

    assert before.identity == standard.identity == str(BUILD.source)
    assert full.identity != standard.identity
    assert full.additions == FULL.additions


class ScriptFails(ImageLxd):
    """The option's script ends with a code, after it has printed something."""

    def __init__(self, code: int, output: str) -> None:
        super().__init__()
        self.end = Execution(code, "", output)

    def create_instance(self, name: str, **options: Any) -> Builder:
        builder = super().create_instance(name, **options)
        run = builder.execute

        def execute(command: list[str], **more: Any) -> Execution:
            done = run(command, **more)
            return self.end if command[-1] == "image-script" else done

        builder.execute = execute  # type: ignore[method-assign]
        return builder


def failed(lxd: ImageLxd) -> str:
    with pytest.raises(HostError) as error:
        make(lxd, FULL)
    return str(error.value)


def test_a_script_that_fails_is_named_with_its_exit_code(caplog: pytest.LogCaptureFixture, failure: Path) -> None:
    """The status has no word of its output, which may hold secrets of the operator; the log has the end of it."""
    lxd = ScriptFails(7, f"{'x' * 9000} the end at http://user:MARKED@proxy.example")

    text = failed(lxd)

    assert text == "image jammy: image-script failed: exit code 7, see its output in the log"
    assert failure.read_text().strip() == text
    assert "the end at" in caplog.text
    assert "MARKED" not in caplog.text
    assert len(caplog.text) < image.OUTPUT_LIMIT + 1000
    assert lxd.aliases["jammy"] == "old"


@pytest.mark.parametrize(("code", "limit", "late"), [(124, 0, True), (137, 0, True), (124, 99, False), (1, 0, False)])
def test_a_script_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, code: int, limit: int, late: bool) -> None:
    """The error says the limit, unless the script itself ended with the exit code of timeout(1) in time."""
    monkeypatch.setattr(image, "SCRIPT_TIMEOUT", limit)

    assert (f"not done within {limit // 60} minutes" in failed(ScriptFails(code, ""))) is late


# The script of the build, run by the real bash.


@pytest.fixture
def step(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one step in a folder instead of an instance, with stand-ins for apt."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "apt-cache": '[ "$1" = pkgnames ] && printf "%s\\n" cmake g++ g++-12 libfoo docker.io',
        "apt-get": f'echo "$*" >> {tmp_path}/apt',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)

    def run(name: str, build: ImageBuild) -> subprocess.CompletedProcess[str]:
        lxd = ImageLxd()
        make(lxd, build)
        for place in (provision.IMAGE_PROXIES, provision.OPTION_SCRIPT, provision.IMAGE_SCRIPT):
            text = lxd.pushed.get(str(place), b"").decode().replace("/root/", f"{tmp_path}/")
            (tmp_path / place.name).write_text(text)
            (tmp_path / place.name).chmod(0o700)
        return subprocess.run(
            [tmp_path / provision.IMAGE_SCRIPT.name, name],
            env={"PATH": f"{tools}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


Step = Callable[..., subprocess.CompletedProcess[str]]


def test_extra_packages_are_installed(step: Step, tmp_path: Path) -> None:
    """With the options of the charm's own packages, and without recommended ones."""
    done = step("extra-packages", FULL)

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "apt").read_text().endswith("install --no-install-recommends cmake g++\n")


def test_unknown_packages_are_all_named(step: Step, tmp_path: Path) -> None:
    """apt would remove docker.io for docker.io-, and take libf.o for a pattern: nothing is given to it."""
    done = step("extra-packages", replace(BUILD, extra_packages=("cmake", "docker.io-", "libf.o", "libfo")))

    assert (done.returncode, done.stderr) == (1, "not in this distribution: docker.io- libf.o libfo\n")
    assert not (tmp_path / "apt").exists()


@pytest.mark.parametrize("code", [0, 7])
def test_the_scripts_exit_code_and_the_end_of_its_output(step: Step, tmp_path: Path, code: int) -> None:
    """It runs with the runners' proxies, its output is cut, and neither it nor its output stays in the image."""
    script = f"#!/bin/sh\nseq 9999; echo $HTTP_PROXY $DEBIAN_FRONTEND >&2; touch {tmp_path}/left; exit {code}\n"
    proxies = ProxyConfig(http="http://proxy.example:3128")

    build = replace(FULL, script=script, proxies=ProxyConfig(http="http://unit.example:1"), runner_proxies=proxies)
    done = step("image-script", build)

    assert done.returncode == code
    assert done.stderr.endswith("9999\nhttp://proxy.example:3128 noninteractive\n")
    assert len(done.stderr) == image.OUTPUT_LIMIT
    assert (tmp_path / "left").exists()
    assert list(tmp_path.glob(f"{provision.OPTION_SCRIPT.name}*")) == []


def test_a_script_is_ended_at_its_limit(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs that it waits for end with it."""
    monkeypatch.setattr(image, "SCRIPT_TIMEOUT", 0.1)

    assert step("image-script", replace(FULL, script="#!/bin/sh\nsleep 300\n")).returncode == 124


# A change of the options starts a build.


def test_a_change_starts_one_build(calls: list[tuple[str, ...]], failure: Path) -> None:
    """Once for each change: a build that fails is repeated by the timer only, and the status loses the old reason."""
    lxd = ImageLxd()
    failure.write_text("of other options")

    build_changed(lxd, BUILD)
    assert calls == []
    build_changed(lxd, FULL)
    assert calls == [START]
    assert not failure.exists()
    failure.write_text("failed")
    build_changed(lxd, FULL)
    assert calls == [START]
    assert failure.exists()
    build_changed(lxd, replace(FULL, script=""))
    build_changed(lxd, FULL)
    assert calls == [START] * 3


def test_no_build_is_started_for_what_the_image_has(calls: list[tuple[str, ...]]) -> None:
    """Also where the marker is deleted, and where the options return to what they were."""
    lxd = ImageLxd()
    make(lxd, FULL)

    build_changed(lxd, FULL)
    Markers(UNIT).clear(IMAGE)
    build_changed(lxd, FULL)

    assert calls == []
    build_changed(lxd, BUILD)
    assert calls == [START]


def test_a_change_during_a_build_is_built_after_it(
    calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build has the options of its beginning: a start that systemd ignores is not taken for a build."""
    monkeypatch.setattr(systemd, "is_starting", lambda _: True)
    build_changed(ImageLxd(), FULL)
    assert calls == []

    monkeypatch.setattr(systemd, "is_starting", lambda _: False)
    build_changed(ImageLxd(), FULL)
    assert calls == [START]


def test_units_with_different_options_do_not_build_for_ever(
    calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two applications on one machine share the image: each starts one build for its options."""
    lxd, other = ImageLxd(), replace(FULL, script="")
    for _ in range(3):
        for unit, build in (("app/0", FULL), ("other/0", other)):
            started = len(calls)
            image.build_changed(cast(LxdClient, lxd), Markers(unit), build)
            if len(calls) > started:
                make(lxd, build)

    assert len(calls) == 2


@pytest.mark.parametrize(("build", "started"), [(BUILD, 0), (FULL, 1)])
def test_an_image_of_the_operator_serves(calls: list[tuple[str, ...]], build: ImageBuild, started: int) -> None:
    """It is built anew only if the options ask for something that it does not have."""
    lxd = ImageLxd()
    lxd.aliases["jammy"] = "theirs"

    build_changed(lxd, build)

    assert len(calls) == started


def test_a_missing_image_is_no_change(calls: list[tuple[str, ...]]) -> None:
    """The set-up of the machine builds it."""
    lxd = ImageLxd()
    lxd.aliases.clear()

    build_changed(lxd, FULL)

    assert calls == []


def test_the_status_says_what_the_image_lacks(calls: list[tuple[str, ...]], failure: Path) -> None:
    """While the build runs, and why it failed; nothing once the image has it, and of what no build was started for."""
    markers, lxd = Markers(UNIT), ImageLxd()
    assert image.missing_change(markers, FULL, "") == ""

    build_changed(lxd, FULL)
    assert image.missing_change(markers, FULL, "") == "image jammy is not built yet with the changed options"
    failure.write_text("image jammy: image-script failed: exit code 7\n")
    assert image.missing_change(markers, FULL, "") == (
        "the previous image stays in use: image jammy: image-script failed: exit code 7"
    )
    assert image.missing_change(markers, FULL, FULL.additions) == ""
    assert image.missing_change(markers, BUILD, "") == ""


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
    calls: list[tuple[str, ...]],
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
    assert calls == [("start", "--no-block", triggers.service(UNIT))] * reconciles


def run_program(monkeypatch: pytest.MonkeyPatch, build: ImageBuild) -> None:
    """Arguments and settings of the program that builds an image."""
    monkeypatch.setattr("settings.load", lambda _: Settings(Identity("app", 0, "0123abcd"), 1, build))
    monkeypatch.setattr("sys.argv", ["build_image", "--unit", UNIT])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)


def test_the_build_outside_of_hooks_has_the_models_proxies(
    calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
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
