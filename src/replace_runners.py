#!/usr/bin/env python3
"""Fire `reconcile-runners` as soon as a runner ends: what the service ghro.replace-runners runs.

The timer stays as the safety net; this one only makes its next firing come early.
"""

import argparse
import logging
import re
import sys
import time

import lifecycle
from errors import GithubRunnerError
from host import timer
from lxd import LxdClient
from system import run

# Seconds. What ends together is one pass; a runner that ends at once is not replaced at once for ever.
GATHER = 0.3
PAUSE = 2.0
PASS_LIMIT = 3600

logger = logging.getLogger(__name__)


def main() -> int:
    """Runs until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", required=True, help="what the names of the unit's runners begin with")
    parser.add_argument("--wanted", required=True, type=int, help="how many runners the unit keeps")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    pattern = re.compile(re.escape(arguments.prefix) + "[0-9a-f]+")
    lxd = LxdClient()

    def ours(name: str) -> bool:
        return pattern.fullmatch(name) is not None

    for names in lifecycle.ended(ours, GATHER):
        try:
            replace(names, sum(map(ours, lxd.instance_names())), arguments.wanted)
        except GithubRunnerError as error:
            logger.warning("%s", error)
    return 0


def replace(ended: set[str], there: int, wanted: int) -> None:
    """One pass, unless all are there: a pass that removes runners makes the new ones itself."""
    if there >= wanted:
        return
    logger.info("%s of %s runners are there%s", there, wanted, f", ended: {', '.join(sorted(ended))}" if ended else "")
    running = run(["systemctl", "is-active", timer.SERVICE], check=False).stdout.strip() == "activating"
    # A pass that runs already may have looked before the end: wait for it, then another one.
    for _ in range(2 if running else 1):
        run(["systemctl", "start", timer.SERVICE], check=False, timeout=PASS_LIMIT)
    time.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main())
