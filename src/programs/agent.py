#!/usr/bin/env python3
"""Fire `reconcile-runners` as soon as a runner ends or jobs need more runners, and serve metrics: github-runner-agent.

The timer stays as the safety net; this one only makes its next firing come early.
"""

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import agent_settings
import redaction
import settings
import times
from engine import events
from engine.client import LxdClient
from errors import GithubRunnerError, HostError
from host import systemd, triggers
from host.markers import LIST_DUE, Markers
from programs import exposition, new_runners
from programs.sessions import Sessions

# Seconds. Runners that end together are replaced by one reconcile, which looks at them half a second after its start.
# The pause limits how often a runner is replaced that ends as soon as it has started.
GATHER = 0.01
PAUSE = 2.0
# Threads without which no reconcile is started.
STARTER, WATCHER = ESSENTIAL = ("starter", "watcher")

logger = logging.getLogger(__name__)


class Starter:
    """Starts reconciles in a thread of its own. What asks while one runs is answered by one more after it."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name=STARTER, daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def ask(self) -> None:
        """Have a reconcile that begins after this moment."""
        self._asked.set()

    def _run(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            try:
                start_reconcile(self._service)
            except (GithubRunnerError, OSError) as error:
                logger.warning("A reconcile was not started: %s", error)


def main() -> int:
    """Runs until it is stopped; 1 with a line on standard error where the unit's settings cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit", required=True, help="the unit, such as github-runner/0")
    parser.add_argument("--metrics-port", type=int, default=0, help="serve metrics at this port of the loopback")
    parser.add_argument("--watch", action="store_true", help="start a reconcile as soon as a runner ends")
    arguments = parser.parse_args()
    redaction.install()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        managed = settings.load(arguments.unit).identity.manages
    except GithubRunnerError as error:
        logger.error("%s", error)
        return 1
    starter = Starter(triggers.service(arguments.unit))
    sessions = Sessions(arguments.unit, starter.ask)
    failed: list[str] = []
    threading.excepthook = partial(note_end, failed, sessions.stop)
    starter.start()
    if arguments.watch:
        threading.Thread(target=watch, args=(arguments.unit, managed, starter), name=WATCHER, daemon=True).start()
    end_by_signal(sessions.stop)
    serving = (arguments.metrics_port, arguments.unit, sessions.stop)
    metrics = threading.Thread(target=serve, args=serving, name="metrics", daemon=True)
    metrics.start()
    new = (arguments.unit, managed, starter, sessions.stop)
    threading.Thread(target=probe_new, args=new, name="new runners", daemon=True).start()
    sessions.run()
    metrics.join()
    return 1 if failed else 0


def end_by_signal(stop: threading.Event) -> None:
    """Set the event by SIGTERM or SIGINT, in a thread: the main one may hold its lock, which is not reentrant."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=stop.set, name="signal").start())


def note_end(failed: list[str], stop: threading.Event, ended: threading.ExceptHookArgs) -> None:
    """Log what ended a thread, without secrets. Without the starter or the watcher the agent stops too.

    systemd then starts it again. A session's thread is begun anew by the sessions.
    """
    name = ended.thread.name if ended.thread else ""
    trace = (ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback)
    logger.critical("The thread %s has ended", name, exc_info=trace)
    if name in ESSENTIAL:
        failed.append(name)
        stop.set()


def serve(port: int, unit: str, stop: threading.Event) -> None:
    """Serve the unit's metrics until ``stop``, unless the port is 0."""
    if port:
        exposition.keep_serving(port, exposition.Figures(unit, triggers.code()), stop)


def watch(unit: str, managed: Callable[[str], bool], starter: Starter) -> None:
    """Follow LXD's events, and replace runners that ended. In demand mode a reconcile decides how many it takes.

    Each creation that fails ends an instance: the pause keeps that from being a loop without one.
    """
    lxd, service = LxdClient(), triggers.service(unit)
    for names in events.ended(managed, GATHER):
        try:
            if agent_settings.file_of(unit).exists():
                starter.ask()
                time.sleep(PAUSE)
                continue
            # Read again each time: the number of runners is an option.
            wanted = settings.load(unit).runners
            replace(names, lambda: set(filter(managed, lxd.instance_names())), wanted, service)
        except GithubRunnerError as error:
            logger.warning("%s", error)


def probe_new(unit: str, managed: Callable[[str], bool], starter: Starter, stop: threading.Event) -> None:
    """Ask for a reconcile, until ``stop``, for new runners whose agent has ended without a job.

    Only one that reads GitHub's list of runners judges them. In demand mode it does so because of the marker, which a
    reconcile that runs already leaves to the next one.
    """
    lxd = LxdClient()
    while not stop.wait(new_runners.EVERY):
        try:
            names = new_runners.ended(lxd, managed, time.time())
        except Exception:
            logger.exception("New runners were not probed")
            continue
        if names:
            logger.info("Ended without a job: %s", ", ".join(names))
            with suppress(HostError):
                Markers(unit).note(LIST_DUE)
            starter.ask()


def start_reconcile(service: str) -> None:
    """Start a reconcile and wait for its end. One that runs may have observed before what asks: wait for it first."""
    if systemd.is_starting(service):
        systemd.start(service, timeout=times.DAY, check=False)
    systemd.start(service, timeout=times.DAY, check=False)


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
    of = "" if wanted == settings.UNREACHED else f" of {wanted}"
    gone = f"; ended: {', '.join(sorted(ended))}" if ended else ""
    logger.info("Existing runners: %s%s%s; starting a reconcile", left, of, gone)
    systemd.start(service, timeout=times.DAY, check=False)
    time.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main())
