"""Faults at length: `python -m tests.faults [NAME…]`, or `make faults`. Figures go to docs/reference/reliability.md.

The names: kill churn attacks (on a real unit), the same with -demand (for scaling=demand), combinations mutation
mutations fuzz model soak soak-demand (in process).
"""

import argparse
import importlib
import json
import logging
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox import github
from sandbox.lab import lxd_setup
from sandbox.lab.pack import pack
from tests.faults import attacks, churn, demand, kill, kill_demand, report
from tests.support.deployment import PAT, REPOSITORY, ROOT, Deployment, deployed

REFERENCE = ROOT / "docs" / "reference"
# Modules beside this one, loaded when they are run: some need tools of their own.
IN_PROCESS = ("combinations", "mutation", "mutations", "fuzz", "model", "soak", "soak-demand")
ON_A_UNIT: dict[str, Callable[[Deployment, argparse.Namespace], dict[str, object]]] = {
    "kill": lambda found, given: kill.run(found, 6 if given.short else given.points),
    "churn": lambda found, given: churn.run(found, 1 if given.short else 10),
    "attacks": lambda found, given: attacks.run(found, given.short),
    "kill-demand": lambda found, given: kill_demand.run(found, 3 if given.short else given.points),
    "churn-demand": lambda found, given: demand.run_churn(found, 1 if given.short else 10),
    "attacks-demand": lambda found, given: demand.run_attacks(found, given.short),
}


@contextmanager
def deployment() -> Iterator[Deployment]:
    """A unit of its own, on a machine of its own, whose GitHub notices a lost runner within seconds."""
    lxd_setup.ensure()
    lxd_setup.ensure_template()
    with (
        tempfile.TemporaryDirectory() as folder,
        github.serve(
            lxd_setup.bridge_address(),
            0,
            [PAT],
            [REPOSITORY],
            ["octo-org"],
            settings=github.Settings(grace=2.5, lost_job=2.5, poll=1),
        ) as hub,
    ):
        charm = pack(ROOT, Path(folder, "charm"))
        found = deployed("faults", charm, hub, {"virtual-machines": kill.WANTED})
        try:
            found.unit.integrate("cos-agent")
            found.use_app()
            found.keep(kill.WANTED)
            yield found
        finally:
            found.machine.destroy()


def commit() -> dict[str, str]:
    """What the code is that a run measures, before the run writes figures; empty outside of a clone."""
    described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    with suppress(OSError, subprocess.CalledProcessError):
        return {"commit": subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()}
    return {}


def keep(name: str, short: bool, figures: Mapping[str, object], seconds: float) -> None:
    """Print the figures; those of a long form stay."""
    figures = {**figures, "minutes": round(seconds / 60, 1), "date": time.strftime("%Y-%m-%d")}
    print(json.dumps({name: figures}, indent=2), flush=True)
    if not short:
        report.write(name, figures, REFERENCE)


def main() -> None:
    """Run the faults that are named, or all."""
    names = [*IN_PROCESS, *ON_A_UNIT]
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all if none is given")
    parser.add_argument(
        "--short", action="store_true", help="a sample of each, minutes instead of hours; keeps nothing"
    )
    parser.add_argument("--points", type=int, default=10_000, help="kill at so many boundaries (default: at all)")
    arguments = parser.parse_args()
    wanted = arguments.names or names
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(names)}")
    logging.disable(logging.CRITICAL)
    code = commit()
    for name in wanted:
        if name in IN_PROCESS:
            started = time.monotonic()
            figures = importlib.import_module(f"tests.faults.{name.replace('-', '_')}").run(arguments.short)
            keep(name, arguments.short, {**figures, **code}, time.monotonic() - started)
    if any(name in ON_A_UNIT for name in wanted):
        with deployment() as found:
            for name in wanted:
                if name in ON_A_UNIT:
                    started = time.monotonic()
                    figures = ON_A_UNIT[name](found, arguments)
                    keep(name, arguments.short, {**figures, **code}, time.monotonic() - started)


if __name__ == "__main__":
    main()
