"""The systemd timer that fires the event ``reconcile-runners`` (spec 4, Timer)."""

from pathlib import Path
from typing import TYPE_CHECKING

import times
from system import are_active, run, write_file

if TYPE_CHECKING:
    import jinja2

NAME = "ghro.reconcile-runners"
UNITS = Path("/etc/systemd/system")
SERVICE, TIMER = f"{NAME}.service", f"{NAME}.timer"


def ensure(jinja: "jinja2.Environment", unit: str, interval: int) -> bool:
    """Render the units, enable and start the timer; return whether anything changed. ``interval`` in minutes."""
    changed = False
    for name in (SERVICE, TIMER):
        content = jinja.get_template(f"{name}.j2").render(
            unit=unit, interval=interval, limit=times.reconcile_limit(interval)
        )
        changed |= write_file(UNITS / name, content)
    if changed:
        run(["systemctl", "daemon-reload"])
    if changed or not are_active(TIMER):
        run(["systemctl", "enable", "--quiet", TIMER])
        # Only a restart makes a running timer count anew by its new interval.
        run(["systemctl", "restart", TIMER])
        changed = True
    return changed


def remove() -> list[str]:
    """Stop the timer and remove its units; returns what went."""
    run(["systemctl", "disable", "--quiet", "--now", TIMER], check=False)
    gone = [UNITS / name for name in (SERVICE, TIMER) if (UNITS / name).exists()]
    for path in gone:
        path.unlink()
    run(["systemctl", "daemon-reload"])
    return [str(path) for path in gone]
