"""systemd units: which calls of systemctl are made, and which are not."""

import logging
from pathlib import Path

import pytest

from errors import CommandError
from host import systemd
from tests.support.systemctl import Systemctl

FILES = {"a.service": "[Service]\n", "a.timer": "[Timer]\n"}


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    monkeypatch.setattr(systemd, "FOLDER", tmp_path)
    return Systemctl(monkeypatch)


def test_a_new_unit_is_read_enabled_and_started(systemctl: Systemctl) -> None:
    """systemd reads the files before it starts the unit."""
    assert systemd.ensure("a.timer", FILES)

    assert systemctl.calls == ["daemon-reload", "enable --quiet a.timer", "restart a.timer"]


def test_a_unit_that_runs_and_has_not_changed_is_left_alone(systemctl: Systemctl) -> None:
    """Nothing changed: its state is read, and nothing else is called."""
    systemd.ensure("a.timer", FILES)
    systemctl.calls.clear()

    assert not systemd.ensure("a.timer", FILES)

    assert systemctl.calls == ["is-active a.timer"]


def test_a_change_that_was_interrupted_is_completed(systemctl: Systemctl) -> None:
    """The unit is stopped before its files change: the next call finds that it does not run, and restarts it."""
    systemd.ensure("a.timer", FILES)
    changed = {**FILES, "a.timer": "[Timer]\n# changed\n"}
    systemctl.calls.clear()
    systemctl.failing = "daemon-reload"
    with pytest.raises(CommandError):
        systemd.ensure("a.timer", changed)
    assert systemctl.calls[0] == "stop a.timer"
    systemctl.failing, systemctl.states = "", "inactive\n"

    assert systemd.ensure("a.timer", changed)

    assert systemctl.calls[-1] == "restart a.timer"


def test_every_changed_file_of_a_unit_is_written(systemctl: Systemctl, tmp_path: Path) -> None:
    """A change of the first file does not leave out the second one."""
    systemd.ensure("a.timer", FILES)
    changed = {name: f"{text}# changed\n" for name, text in FILES.items()}

    assert systemd.ensure("a.timer", changed)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == changed


def test_a_unit_that_has_stopped_is_started_again(systemctl: Systemctl) -> None:
    """Its files are as they were, and systemd does not read them again."""
    systemd.ensure("a.timer", FILES)
    systemctl.calls.clear()
    systemctl.states = "inactive\n"

    assert systemd.ensure("a.timer", FILES)

    assert systemctl.calls == ["is-active a.timer", "enable --quiet a.timer", "restart a.timer"]


@pytest.mark.parametrize(
    ("states", "active"), [("active\nactive\n", True), ("active\ninactive\n", False), ("active\n", False), ("", False)]
)
def test_all_units_must_be_active(systemctl: Systemctl, states: str, active: bool) -> None:
    """One unit that does not run is enough, as is an answer without a state for each."""
    systemctl.states = states

    assert systemd.are_active("a.timer", "b.timer") is active


def test_only_the_named_units_are_stopped(systemctl: Systemctl, tmp_path: Path) -> None:
    """The service of a timer may be the process that removes it: its file is removed and it runs on."""
    systemd.write(FILES)
    systemctl.calls.clear()

    removed = systemd.remove("a.service", "a.timer", stop=["a.timer"])

    assert removed == [str(tmp_path / "a.service"), str(tmp_path / "a.timer")]
    assert list(tmp_path.iterdir()) == []
    assert systemctl.calls == ["disable --quiet --now a.timer", "daemon-reload"]


def test_a_unit_that_is_not_there_is_not_removed(systemctl: Systemctl) -> None:
    """A second removal calls nothing."""
    assert systemd.remove("a.service", "a.timer") == []

    assert systemctl.calls == []


def test_files_of_a_unit_that_cannot_be_stopped_stay_where_that_matters(systemctl: Systemctl, tmp_path: Path) -> None:
    """The error has the command and its output: what still uses a mount would lose its files otherwise."""
    systemd.write(FILES)
    systemctl.failing = "disable"

    with pytest.raises(CommandError, match=r"disable --quiet --now a\.service a\.timer failed .* no such unit"):
        systemd.remove("a.service", "a.timer", check=True)

    assert len(list(tmp_path.iterdir())) == 2


def test_a_call_whose_failure_does_not_matter_is_logged(systemctl: Systemctl, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the command, its exit code and its output; the file is removed."""
    systemd.write(FILES)
    systemctl.failing = "disable"

    with caplog.at_level(logging.INFO):
        assert len(systemd.remove("a.service", "a.timer")) == 2

    assert "systemctl disable --quiet --now a.service a.timer ended with 1: no such unit" in caplog.text
