"""The names of this unit's systemd units: several units of this charm may be on one machine."""

from pathlib import Path

FOLDER = Path("/etc/systemd/system")


def name(what: str, unit: str, kind: str) -> str:
    """``ghro.reconcile-runners.github-runner-0.timer`` for the timer of the unit ``github-runner/0``."""
    return f"ghro.{what}.{unit.replace('/', '-')}.{kind}"
