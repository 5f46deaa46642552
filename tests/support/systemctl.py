"""A fake systemctl for tests of the services of a unit."""

import subprocess
from collections.abc import Sequence

import pytest

from errors import CommandError
from host import systemd


class Systemctl:
    """Takes the place of ``systemd.run``: records each call without ``systemctl``, and fails those of ``failing``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, states: str = "active\n") -> None:
        self.calls: list[str] = []
        self.states = states
        """The answer to ``is-active``."""
        self.failing = ""
        """The name of a subcommand, such as ``stop``."""
        monkeypatch.setattr(systemd, "run", self._run)

    @property
    def changes(self) -> list[str]:
        """The calls that do not only read states."""
        return [call for call in self.calls if not call.startswith("is-active ")]

    def _run(
        self, command: Sequence[str], *, check: bool = True, timeout: float | None = None
    ) -> "subprocess.CompletedProcess[str]":
        # Every call but the reading of states has a time limit of its own.
        assert command[1] == "is-active" or (timeout is not None and timeout > 0)
        self.calls.append(" ".join(command[1:]))
        failed = bool(self.failing) and command[1] == self.failing
        if failed and check:
            raise CommandError(f"{' '.join(command)} failed (1): no such unit")
        return subprocess.CompletedProcess(list(command), int(failed), self.states, "no such unit" if failed else "")
