"""The systemd units that start reconciles: the timer, and the agent (replace-on-exit, scaling, metrics-port).

Whether they run is all that most hooks need to know, so that this module imports little.
"""

import hashlib
from pathlib import Path

from host import systemd

SOURCE = Path(__file__).resolve().parents[1]


def service(unit: str) -> str:
    """The service that starts a reconcile; timer and agent start this service."""
    return systemd.unit_name("reconcile-runners", unit, "service")


def timer(unit: str) -> str:
    """The timer that starts a reconcile every few minutes."""
    return systemd.unit_name("reconcile-runners", unit, "timer")


def agent(unit: str) -> str:
    """The service that starts a reconcile as soon as a runner has ended, or jobs need more runners."""
    return f"github-runner-agent-{unit.replace('/', '-')}.service"


def former_watcher(unit: str) -> str:
    """The agent's name in earlier versions, in which it only followed LXD's events."""
    return systemd.unit_name("replace-runners", unit, "service")


def are_running(unit: str, with_agent: bool) -> bool:
    """Whether the timer runs and, where it is wanted, an agent with today's code."""
    return systemd.are_active(timer(unit), *([agent(unit)] if with_agent else [])) and agent_is_current(unit)


def agent_is_current(unit: str) -> bool:
    """Whether the agent, if there is one, was started with today's code: an upgrade leaves the old code running."""
    try:
        return code() in (systemd.FOLDER / agent(unit)).read_text()
    except FileNotFoundError:
        return True


def code() -> str:
    """A hash that tells one version of the charm's code from another."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        digest.update(f"{path.relative_to(SOURCE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
