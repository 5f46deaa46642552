"""Rotation of the metrics log, so that no line is ever shipped twice."""

from pathlib import Path

import jinja2

from host import systemd
from metrics.events import METRICS_LOG_PATH
from system import write_file

CONFIG = Path("/etc/logrotate.d/github-runner-metrics")
TIMER = "logrotate.timer"


def ensure(jinja: jinja2.Environment) -> bool:
    """Write the configuration and start logrotate's timer; return whether it changed."""
    changed = write_file(CONFIG, jinja.get_template("logrotate.j2").render(log=str(METRICS_LOG_PATH)))
    if changed or not systemd.are_active(TIMER):
        systemd.enable(TIMER, now=True)
    return changed


def remove() -> list[str]:
    """Remove the configuration; returns what was removed."""
    gone = [str(CONFIG)] if CONFIG.exists() else []
    CONFIG.unlink(missing_ok=True)
    return gone
