"""The systemd units that start reconciles: the timer, and the watcher of LXD's events (option replace-on-exit).

Whether they run is all that most hooks need to know, so that this module imports little.
"""

import hashlib
from pathlib import Path

from host import systemd

SOURCE = Path(__file__).resolve().parents[1]


def service(unit: str) -> str:
    """The service that starts a reconcile; timer and watcher start this service."""
    return systemd.unit_name("reconcile-runners", unit, "service")


def timer(unit: str) -> str:
    """The timer that starts a reconcile every few minutes."""
    return systemd.unit_name("reconcile-runners", unit, "timer")


def watcher(unit: str) -> str:
    """The service that starts a reconcile as soon as a runner has ended."""
    return systemd.unit_name("replace-runners", unit, "service")


def are_running(unit: str, watched: bool) -> bool:
    """Whether the timer runs and, where the runners are ``watched``, a watcher with today's code."""
    return systemd.are_active(timer(unit), *([watcher(unit)] if watched else [])) and watcher_is_current(unit)


def watcher_is_current(unit: str) -> bool:
    """Whether the watcher, if there is one, was started with today's code: an upgrade leaves the old code running."""
    try:
        return code() in (systemd.FOLDER / watcher(unit)).read_text()
    except FileNotFoundError:
        return True


def code() -> str:
    """A hash that tells one version of the charm's code from another."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        digest.update(f"{path.relative_to(SOURCE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
