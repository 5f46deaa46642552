"""Benchmarks, side by side in one run: `python -m tests.bench [NAME…]`, or `make bench`.

Figures and pictures go to docs/benchmarks/. The names: create flush replace hook queue steady extract listing
fleet, and vm, which is measured only if it is named.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox import github
from sandbox.lab import lxd_setup
from sandbox.lab.pack import pack
from tests.bench import fleet, queue_times, simulated, unit, virtual_machines
from tests.support.deployment import PAT, REPOSITORY, ROOT, Deployment, deployed

ON_A_UNIT: dict[str, Callable[[Deployment, int], None]] = {
    "create": unit.create,
    "flush": unit.flush,
    "replace": unit.replace,
    "hook": unit.hook,
    "queue": queue_times.measure,
}
IN_PROCESS: dict[str, Callable[[int], None]] = {
    "steady": simulated.steady,
    "extract": simulated.extract_and_issue,
    "listing": simulated.listing,
    "fleet": fleet.day,
}

# Only if it is named: it takes half an hour in software emulation.
APART = {"vm": virtual_machines.creation}


@contextmanager
def deployment() -> Iterator[Deployment]:
    """A unit of its own, on a machine of its own."""
    lxd_setup.ensure()
    lxd_setup.ensure_template()
    with (
        tempfile.TemporaryDirectory() as folder,
        github.serve(lxd_setup.bridge_address(), 0, [PAT], [REPOSITORY], ["octo-org"]) as hub,
    ):
        charm = pack(ROOT, Path(folder, "charm"))
        options = {"virtual-machines": 0, "vm-disk": "1GiB", "reconcile-interval": 60}
        found = deployed("bench", charm, hub, options)
        try:
            found.unit.integrate("cos-agent")
            unit.add_size(found)
            yield found
        finally:
            found.machine.destroy()


def main() -> None:
    """Run the benchmarks that are named, or all."""
    names = [*IN_PROCESS, *ON_A_UNIT]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join([*names, *APART])}")
    parser.add_argument("--repeat", type=int, default=3, help="how often each is measured; medians count (default: 3)")
    arguments = parser.parse_args()
    wanted = arguments.names or names
    logging.disable(logging.CRITICAL)
    if unknown := [name for name in wanted if name not in [*names, *APART]]:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join([*names, *APART])}")
    for name in wanted:
        if measure := {**IN_PROCESS, **APART}.get(name):
            measure(arguments.repeat)
    if any(name in ON_A_UNIT for name in wanted):
        with deployment() as found:
            for name in wanted:
                if name in ON_A_UNIT:
                    ON_A_UNIT[name](found, arguments.repeat)


if __name__ == "__main__":
    main()
