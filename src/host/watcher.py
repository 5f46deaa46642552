"""The watcher: a systemd service that starts a reconcile as soon as a runner ends (option replace-on-exit)."""

import os
import sys
from pathlib import Path

import jinja2

from host import systemd, triggers

CHARM = Path(__file__).resolve().parents[2]


def ensure(jinja: jinja2.Environment, unit: str) -> bool:
    """Write, enable and start the service; returns whether anything changed."""
    content = jinja.get_template("ghro.replace-runners.service.j2").render(
        unit=unit,
        charm=str(CHARM),
        python=sys.executable,
        python_path=os.environ.get("PYTHONPATH", ""),
        code=triggers.code(),
    )
    name = triggers.watcher(unit)
    return systemd.ensure(name, {name: content})


def remove(unit: str) -> list[str]:
    """Stop the service and remove its file; returns the files that were removed."""
    return systemd.remove(triggers.watcher(unit))
