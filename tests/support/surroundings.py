"""What the charm talks to in unit tests of events: fakes of LXD and GitHub, and a machine that records its set-up."""

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import ops
import pytest
from ops import testing

import provision
from charm import GithubRunnerCharm
from host import agent, image, kernel, machine, markers, pool, runner_binary, systemd, timer
from service import Adapters
from tests.support.charm import ACTIONS, META
from tests.support.charm import CONFIG as OPTIONS
from tests.support.fakes import FakeGithub, FakeInstance, FakeLxd, FakeStorages

# Each event has a charm of its own, which would compile the templates anew.
TEMPLATES_OF_ALL = cache(provision.environment)
CONFIG: dict[str, Any] = {"path": "octo-org/demo", "token": "secret", "test-mode": "insecure", "virtual-machines": 2}


class Surroundings:
    """What the charm under test talks to."""

    lxd: FakeLxd
    github: FakeGithub
    storages: FakeStorages
    binary: Path
    moment: float | None = None
    """Where the charm's clock stands; the machine's time until a test moves it."""
    fault: Exception | None = None
    set_up_fault: Exception | None = None
    lost: tuple[str, ...] = ()
    taken_over: bool = True
    steps: list[str]

    def now(self) -> float:
        return time.time() if self.moment is None else self.moment

    def later(self, seconds: float) -> None:
        """Move the charm's clock, and stop it there."""
        self.moment = self.now() + seconds

    def adapters(self) -> Adapters:
        """What the charm of one event gets in place of LXD, GitHub and the clock."""
        lxd: Any = self.lxd
        github: Any = self.github
        return Adapters(lxd=lxd, github=lambda _: github, storages=self.storages, clock=self.now)

    def take_over(self, *_: Any) -> bool:
        self.steps.append("take over")
        return self.taken_over

    def set_up(self, *_: Any, build_later: bool, **__: Any) -> None:
        found = markers.Markers("github-runner/0")
        found.clear(markers.SET_UP)
        self.steps.append("set up, build later" if build_later else "set up")
        if self.set_up_fault:
            raise self.set_up_fault
        found.note(markers.SET_UP)

    def step(self, name: str, result: object) -> object:
        self.steps.append(name)
        return result

    def check(self, *_: Any) -> None:
        if self.fault:
            raise self.fault


def downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runner binary in a folder of the test; two hours old, so that GitHub is asked for a newer one."""
    binary = folder / "actions-runner-linux-x64-2.320.0.tar.gz"
    binary.write_bytes(b"tarball")
    (folder / "current").symlink_to(binary.name)
    os.utime(binary, times=(time.time() - 7200,) * 2)
    for function in (
        runner_binary.current,
        runner_binary.age,
        runner_binary.is_recent,
        runner_binary.note_deprecated,
        runner_binary.deprecated_at,
        runner_binary.clear_deprecated,
    ):
        monkeypatch.setattr(function, "__defaults__", (folder,))
    return binary


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    found = Surroundings()
    (tmp_path / "fs").mkdir()
    found.lxd, found.github, found.storages = FakeLxd(), FakeGithub(), FakeStorages(tmp_path / "fs")
    found.binary = downloaded(tmp_path, monkeypatch)
    found.steps = []
    monkeypatch.setattr(runner_binary, "update", lambda *_, **__: found.step("binary", True))
    monkeypatch.setattr(timer, "ensure", lambda _, __, interval: found.steps.append(f"timer {interval}"))
    monkeypatch.setattr(image, "ensure_timer", lambda *_: None)
    monkeypatch.setattr(systemd, "is_starting", lambda _: False)
    monkeypatch.setattr(provision, "environment", TEMPLATES_OF_ALL)
    monkeypatch.setattr(agent, "ensure", lambda *_: found.steps.append("agent"))
    monkeypatch.setattr(machine, "set_up", found.set_up)
    markers.Markers("github-runner/0").note(markers.TAKEN_OVER)
    monkeypatch.setattr(machine, "take_over", found.take_over)
    monkeypatch.setattr(pool, "previous_pool_users", lambda *_: set())
    monkeypatch.setattr(machine, "lost", lambda *_: list(found.lost))
    monkeypatch.setattr(machine, "tend", lambda *_: None)
    monkeypatch.setattr(machine, "release", lambda *_: found.step("release", []))
    monkeypatch.setattr(pool, "check", found.check)
    monkeypatch.setattr(pool, "shortage", lambda *_: None)
    monkeypatch.setattr(kernel, "REBOOT_REQUIRED", tmp_path / "reboot-required")
    monkeypatch.setattr(kernel, "are_active", lambda *_: False)
    monkeypatch.setattr(kernel, "update", lambda _: [])
    for module, name in ((agent, "agent"), (timer, "timer")):
        monkeypatch.setattr(module, "remove", lambda _, name=name: found.step(f"no {name}", []))

    def registered(instance: FakeInstance) -> None:
        found.github.register(instance.name)

    found.lxd.registered = registered
    markers.Markers("github-runner/0").note(markers.NO_POLICY)
    return found


def make_context(world: Surroundings) -> "testing.Context[GithubRunnerCharm]":
    """The charm with a test's adapters."""

    class Charm(GithubRunnerCharm):
        def __init__(self, framework: ops.Framework) -> None:
            super().__init__(framework, world.adapters())

    return testing.Context(Charm, meta=META, config=OPTIONS, actions=ACTIONS, unit_id=0)


@pytest.fixture
def context(world: Surroundings) -> "testing.Context[GithubRunnerCharm]":
    return make_context(world)


MODEL = testing.Model("ci", uuid="6ae9bb4a-9b0e-4b5c-8a0e-000000000001")
UNIT = "github-runner/0"


def state(**config: Any) -> testing.State:
    return testing.State(config={**CONFIG, **config}, model=MODEL)


def noted(name: str, text: str = "") -> None:
    markers.Markers(UNIT).note(name, text)
