"""The systemd timer that fires the event ``reconcile-runners`` every ``reconcile-interval``."""

import jinja2

import times
from host import systemd
from host.triggers import service, timer


def ensure(jinja: jinja2.Environment, unit: str, interval: int) -> bool:
    """Write, enable and start the timer; returns whether anything changed. ``interval`` in minutes."""
    values = {"unit": unit, "interval": interval, "limit": times.reconcile_limit(interval)}
    templates = {service(unit): "ghro.reconcile-runners.service.j2", timer(unit): "ghro.reconcile-runners.timer.j2"}
    files = {name: jinja.get_template(template).render(values) for name, template in templates.items()}
    return systemd.ensure(timer(unit), files)


def remove(unit: str) -> list[str]:
    """Stop the timer and remove its files; returns the files that were removed. The service may run on."""
    return systemd.remove(service(unit), timer(unit), stop=[timer(unit)])
