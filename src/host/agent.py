"""The agent: a systemd service that starts reconciles as soon as they are needed, and serves metrics."""

import os
import sys
from pathlib import Path

import jinja2

from host import systemd, triggers

CHARM = Path(__file__).resolve().parents[2]


def ensure(jinja: jinja2.Environment, unit: str, watch: bool, metrics_port: int) -> bool:
    """Write, enable and start the service; returns whether anything changed.

    ``watch``: also follow LXD's events. ``metrics_port``: also serve metrics there, unless it is 0. Another value of
    either restarts the service.
    """
    systemd.remove(triggers.former_watcher(unit))
    content = jinja.get_template("github-runner-agent.service.j2").render(
        unit=unit,
        watch=watch,
        metrics_port=metrics_port,
        charm=str(CHARM),
        python=sys.executable,
        python_path=os.environ.get("PYTHONPATH", ""),
        code=triggers.code(),
    )
    name = triggers.agent(unit)
    return systemd.ensure(name, {name: content})


def end_sessions(unit: str) -> None:
    """Restart the service if it runs, so that it holds no session that the removed settings ended."""
    systemd.restart_running(triggers.agent(unit), timeout=systemd.TIMEOUT)


def remove(unit: str) -> list[str]:
    """Stop the service and remove its file; returns the files that were removed."""
    return systemd.remove(triggers.agent(unit), triggers.former_watcher(unit))
