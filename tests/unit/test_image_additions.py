"""What options add to the image: packages and a script."""

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
from host import image
from proxies import ProxyConfig
from settings import ImageBuild
from tests.support.fakes import state
from tests.unit.test_image import BUILD, FULL, SCRIPT, Builder, ImageLxd, make


@pytest.fixture(autouse=True)
def failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reason of a failed build is."""
    monkeypatch.setattr(image, "FAILURE", tmp_path / "failure")
    monkeypatch.setattr(image, "LOCK", tmp_path / "lock")
    return tmp_path / "failure"


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
    assert lxd.modes[str(provision.OPTION_SCRIPT)] == 0o700
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
    """Idle runners are replaced when an image with other additions is there, and not for the charm's own steps."""
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


def test_a_script_that_ignores_its_limit_is_killed() -> None:
    """Ten seconds after the limit; the request to LXD waits for that, and no longer."""
    lxd = ImageLxd()

    make(lxd, FULL)

    command = f"timeout --kill-after=10 {image.SCRIPT_TIMEOUT} {provision.OPTION_SCRIPT} "
    assert command in lxd.pushed[str(provision.IMAGE_SCRIPT)].decode()
    assert lxd.limits["image-script"] == image.SCRIPT_TIMEOUT + 60
