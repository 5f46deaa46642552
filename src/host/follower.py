"""The systemd service that replaces runners as soon as they end, beside the timer (option replace-on-exit)."""

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from host import units
from system import are_active, run, write_file

if TYPE_CHECKING:
    import jinja2

NAME = "replace-runners"
CHARM = Path(__file__).resolve().parents[2]


def service(unit: str) -> str:
    """The service of a unit."""
    return units.name(NAME, unit, "service")


def ensure(jinja: "jinja2.Environment", unit: str, prefix: str, wanted: int) -> bool:
    """Render the service, enable and start it; return whether anything changed. Nobody is wanted: no service."""
    if wanted == 0:
        return bool(remove(unit))
    content = jinja.get_template(f"ghro.{NAME}.service.j2").render(
        unit=unit,
        prefix=prefix,
        wanted=wanted,
        charm=str(CHARM),
        python=sys.executable,
        python_path=os.environ.get("PYTHONPATH", ""),
        code=_code(),
    )
    changed = write_file(units.FOLDER / service(unit), content)
    if changed:
        run(["systemctl", "daemon-reload"])
    if changed or not are_active(service(unit)):
        run(["systemctl", "enable", "--quiet", service(unit)])
        run(["systemctl", "restart", service(unit)])
        changed = True
    return changed


def is_current(unit: str) -> bool:
    """Whether the service, if there is one, was started with today's code: an upgrade leaves the old code running."""
    try:
        return _code() in (units.FOLDER / service(unit)).read_text()
    except FileNotFoundError:
        return True


def _code() -> str:
    """What tells one version of the charm's code from another."""
    digest = hashlib.sha256()
    source = CHARM / "src"
    for path in sorted(source.rglob("*.py")):
        digest.update(f"{path.relative_to(source)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def remove(unit: str) -> list[str]:
    """Stop the service and remove its unit; returns what went."""
    path = units.FOLDER / service(unit)
    if not path.exists():
        return []
    run(["systemctl", "disable", "--quiet", "--now", service(unit)], check=False)
    path.unlink()
    run(["systemctl", "daemon-reload"])
    return [str(path)]
