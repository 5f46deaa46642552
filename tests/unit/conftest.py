"""What all unit tests share."""

from pathlib import Path

import pytest

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


@pytest.fixture(autouse=True)
def no_lxd(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No unit test reaches an LXD, whether this machine has one or not: they must pass or fail the same everywhere."""
    folder = tmp_path_factory.mktemp("no-lxd")
    monkeypatch.setenv("LXD_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def locks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the locks of passes are, out of the way of a unit on this machine."""
    folder = tmp_path_factory.mktemp("locks")
    monkeypatch.setattr(runner_manager, "LOCKS", folder)
    monkeypatch.setattr(telemetry, "LOCKS", folder)
    monkeypatch.setattr(demand, "LOCKS", folder)
    return folder


@pytest.fixture(autouse=True)
def marker_root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where markers and settings are, out of the way of a unit on this machine."""
    folder = tmp_path_factory.mktemp("markers")
    monkeypatch.setattr(settings, "FOLDER", folder)
    monkeypatch.setattr(markers, "ROOT", folder)
    monkeypatch.setattr(markers, "AGENTS", folder / "agents")
    return folder


@pytest.fixture(autouse=True)
def unit_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of systemd units are, out of the way of a unit on this machine."""
    folder = tmp_path_factory.mktemp("systemd")
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
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test takes for a secret is an ordinary word in another."""
    monkeypatch.setattr(redaction, "_noted", {})
