#!/usr/bin/env python3
"""Fire `reconcile-runners` as soon as a runner ends: what the service ghro.replace-runners runs.

The timer stays as the safety net; this one only makes its next firing come early.
"""

import argparse
import logging
import re
import sys
import time
from collections.abc import Callable

import redaction
import times
from engine import events
from engine.client import LxdClient
from errors import GithubRunnerError
from host import timer
from system import run

# Seconds. What ends together is one pass, which looks half a second after it was asked for anyway; a runner that ends
# at once is not replaced at once for ever.
GATHER = 0.05
PAUSE = 2.0

logger = logging.getLogger(__name__)


def main() -> int:
    """Runs until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit", required=True, help="the unit, such as github-runner/0")
    parser.add_argument("--prefix", required=True, help="what the names of the unit's runners begin with")
    parser.add_argument("--wanted", required=True, type=int, help="how many runners the unit keeps")
    arguments = parser.parse_args()
    redaction.install()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    pattern = re.compile(re.escape(arguments.prefix) + "[0-9a-f]+")
    lxd, service = LxdClient(), timer.service(arguments.unit)

    def ours(name: str) -> bool:
        return pattern.fullmatch(name) is not None

    for names in events.ended(ours, GATHER):
        try:
            replace(names, lambda: set(filter(ours, lxd.instance_names())), arguments.wanted, service)
        except GithubRunnerError as error:
            logger.warning("%s", error)
    return 0


def replace(ended: set[str], there: Callable[[], set[str]], wanted: int, service: str) -> None:
    """One pass, unless all are there without what ``ended``, which LXD may list for a moment longer.

    A pass that runs already makes up for what it removes, but may have looked before the end: wait for it first.
    """
    if _is_passing(service):
        run(["systemctl", "start", service], check=False, timeout=times.DAY)
    left = len(there() - ended)
    if left >= wanted:
        return
    logger.info("%s of %s runners are there%s", left, wanted, f", ended: {', '.join(sorted(ended))}" if ended else "")
    run(["systemctl", "start", service], check=False, timeout=times.DAY)
    time.sleep(PAUSE)


def _is_passing(service: str) -> bool:
    return run(["systemctl", "is-active", service], check=False).stdout.strip() == "activating"


if __name__ == "__main__":
    sys.exit(main())
