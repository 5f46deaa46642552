"""The systemd service that replaces runners as soon as they end, beside the timer (option replace-on-exit)."""

import os
import sys
from pathlib import Path

import jinja2

from host import units
from host.triggers import code, watcher
from system import are_active, run, write_file

NAME = "replace-runners"
CHARM = Path(__file__).resolve().parents[2]


def ensure(jinja: jinja2.Environment, unit: str) -> bool:
    """Render the service, enable and start it; return whether anything changed."""
    content = jinja.get_template(f"ghro.{NAME}.service.j2").render(
        unit=unit,
        charm=str(CHARM),
        python=sys.executable,
        python_path=os.environ.get("PYTHONPATH", ""),
        code=code(),
    )
    changed = write_file(units.FOLDER / watcher(unit), content)
    if changed:
        run(["systemctl", "daemon-reload"])
    if changed or not are_active(watcher(unit)):
        run(["systemctl", "enable", "--quiet", watcher(unit)])
        run(["systemctl", "restart", watcher(unit)])
        changed = True
    return changed


def remove(unit: str) -> list[str]:
    """Stop the service and remove its unit; returns what went."""
    path = units.FOLDER / watcher(unit)
    if not path.exists():
        return []
    run(["systemctl", "disable", "--quiet", "--now", watcher(unit)], check=False)
    path.unlink()
    run(["systemctl", "daemon-reload"])
    return [str(path)]
