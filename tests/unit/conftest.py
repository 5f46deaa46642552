"""What all unit tests share."""

import importlib
import itertools
import os
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import ops
import pytest
import stamina
import yaml

import agent_settings
import demand
import redaction
import runner_manager
import settings
import shared_fs
import telemetry
import times
from errors import CreateMetricsStorageError
from host import markers, systemd
from metrics.storage import MetricsStorage
from tests.support.memory import pytest_configure
from tests.support.scripts import Shell

__all__ = ["pytest_configure"]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names of folders, one for each test. ``mktemp`` looks through all folders of before each time: minutes in all."""
    folder = tmp_path_factory.mktemp("places")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own(places: Iterator[Path]) -> Path:
    """A folder for what a unit has on its machine, beside ``tmp_path``, which is the test's own."""
    folder = next(places)
    folder.mkdir()
    return folder


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_disk_and_no_waits() -> Iterator[None]:
    """Nobody waits for the disk, which no test turns off, or before another attempt."""
    with pytest.MonkeyPatch.context() as patch, stamina.set_testing(True, attempts=10, cap=True):
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def quick_yaml() -> Iterator[None]:
    """At each simulated event ops.testing writes and reads the charm's YAML files, and cosl reads the rules."""
    written: dict[int, tuple[object, str]] = {}

    def dump(value: object) -> str:
        """By libyaml, and what is written at each event once: the value is kept, so that its ``id`` stays its own."""
        if id(value) not in written:
            written[id(value)] = value, yaml.dump(value, Dumper=yaml.CSafeDumper)
        return written[id(value)][1]

    quick = SimpleNamespace(safe_dump=dump, safe_load=partial(yaml.load, Loader=yaml.CSafeLoader))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops.CharmMeta, "from_yaml", cache(ops.CharmMeta.from_yaml))
        for name in ("scenario._runtime", "cosl.rules"):
            patch.setattr(importlib.import_module(name), "yaml", quick)
        yield


@pytest.fixture(autouse=True)
def no_lxd(own: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No unit test reaches an LXD, whether this machine has one or not: they must pass or fail the same everywhere."""
    folder = made(own / "no-lxd")
    monkeypatch.setenv("LXD_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def locks(own: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where locks are and what is gone after a reboot, out of the way of a unit on this machine and of other tests."""
    folder = made(own / "locks")
    for module in (agent_settings, demand, runner_manager, shared_fs, telemetry):
        monkeypatch.setattr(module, "LOCKS", folder)
    return folder


@pytest.fixture(autouse=True)
def marker_root(own: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where markers and settings are, out of the way of a unit on this machine."""
    folder = made(own / "markers")
    monkeypatch.setattr(settings, "FOLDER", folder)
    monkeypatch.setattr(markers, "ROOT", folder)
    monkeypatch.setattr(markers, "AGENTS", folder / "agents")
    return folder


@pytest.fixture(autouse=True)
def unit_files(own: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of systemd units are, out of the way of a unit on this machine."""
    folder = made(own / "systemd")
    monkeypatch.setattr(systemd, "FOLDER", folder)
    return folder


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an instance that does not exist to power off."""
    monkeypatch.setattr(times, "POWER_OFF", 0)


@pytest.fixture(autouse=True)
def no_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No unit test mounts a metrics volume: a runner that would have one goes without. Nothing is shown elsewhere."""

    def refuse(runner_name: str, /) -> MetricsStorage:
        raise CreateMetricsStorageError(f"{runner_name}: no mounts in unit tests")

    monkeypatch.setattr(shared_fs, "create", refuse)
    monkeypatch.setattr(shared_fs, "VIEWS", {})


@pytest.fixture(autouse=True)
def no_secrets() -> None:
    """What one test takes for a secret is an ordinary word in another."""
    redaction.clear()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A folder in which bash runs scripts of a runner."""
    return Shell(tmp_path)
