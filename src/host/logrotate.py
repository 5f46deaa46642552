"""Rotation of the metrics log, so that no line is ever shipped twice (spec 3, Events)."""

from pathlib import Path

import jinja2

from metrics.events import METRICS_LOG_PATH
from system import are_active, run, write_file

CONFIG = Path("/etc/logrotate.d/github-runner-metrics")
TIMER = "logrotate.timer"


def ensure(jinja: jinja2.Environment) -> bool:
    """Write the configuration and start logrotate's timer; return whether it changed."""
    changed = write_file(CONFIG, jinja.get_template("logrotate.j2").render(log=str(METRICS_LOG_PATH)))
    if changed or not are_active(TIMER):
        run(["systemctl", "enable", "--quiet", "--now", TIMER])
    return changed


def remove() -> list[str]:
    """Take the configuration away; returns what went."""
    gone = [str(CONFIG)] if CONFIG.exists() else []
    CONFIG.unlink(missing_ok=True)
    return gone
