"""The systemd timer that fires the event ``reconcile-runners``."""

import jinja2

import times
from host import units
from host.triggers import service, timer
from system import are_active, run, write_file

NAME = "reconcile-runners"


def ensure(jinja: jinja2.Environment, unit: str, interval: int) -> bool:
    """Render the units, enable and start the timer; return whether anything changed. ``interval`` in minutes."""
    changed = False
    for name in (service(unit), timer(unit)):
        template = jinja.get_template(f"ghro.{NAME}{name[name.rindex('.') :]}.j2")
        content = template.render(unit=unit, interval=interval, limit=times.reconcile_limit(interval))
        changed |= write_file(units.FOLDER / name, content)
    if changed:
        run(["systemctl", "daemon-reload"])
    if changed or not are_active(timer(unit)):
        run(["systemctl", "enable", "--quiet", timer(unit)])
        # Only a restart makes a running timer count anew by its new interval.
        run(["systemctl", "restart", timer(unit)])
        changed = True
    return changed


def remove(unit: str) -> list[str]:
    """Stop the timer and remove its units; returns what went."""
    run(["systemctl", "disable", "--quiet", "--now", timer(unit)], check=False)
    paths = [units.FOLDER / name for name in (service(unit), timer(unit))]
    gone = [path for path in paths if path.exists()]
    for path in gone:
        path.unlink()
    run(["systemctl", "daemon-reload"])
    return [str(path) for path in gone]
