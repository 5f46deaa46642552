#!/usr/bin/env python3
"""Fire `reconcile-runners` as soon as a runner ends: what the service ghro.replace-runners runs.

The timer stays as the safety net; this one only makes its next firing come early.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable

import redaction
import settings
import times
from engine import events
from engine.client import LxdClient
from errors import GithubRunnerError
from host import systemd, triggers

# Seconds. Runners that end together are replaced by one reconcile. The pause limits how often a runner is replaced that
# ends as soon as it has started.
GATHER = 0.05
PAUSE = 2.0

logger = logging.getLogger(__name__)


def main() -> int:
    """Runs until it is stopped; 1 with a line on standard error where the unit's settings cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit", required=True, help="the unit, such as github-runner/0")
    unit = parser.parse_args().unit
    redaction.install()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    try:
        managed = settings.load(unit).identity.owns
    except GithubRunnerError as error:
        logger.error("%s", error)
        return 1
    lxd, service = LxdClient(), triggers.service(unit)
    for names in events.ended(managed, GATHER):
        try:
            # Read again each time: the number of runners is an option.
            wanted = settings.load(unit).runners
            replace(names, lambda: set(filter(managed, lxd.instance_names())), wanted, service)
        except GithubRunnerError as error:
            logger.warning("%s", error)
    return 0


def replace(ended: set[str], there: Callable[[], set[str]], wanted: int, service: str) -> None:
    """Start a reconcile, unless all runners are there without those that ``ended``.

    LXD may list an instance that has ended for a moment longer. A reconcile that runs already replaces what it removes,
    but may have observed the instances before the end: wait for it first.
    """
    if systemd.is_starting(service):
        systemd.start(service, timeout=times.DAY, check=False)
    left = len(there() - ended)
    if left >= wanted:
        return
    logger.info("%s of %s runners are there%s", left, wanted, f", ended: {', '.join(sorted(ended))}" if ended else "")
    systemd.start(service, timeout=times.DAY, check=False)
    time.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main())
