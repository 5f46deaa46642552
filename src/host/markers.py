"""What a unit notes about its machine: one folder of small files for each unit.

Any of them may be deleted at any time without harm. What exists of runners is recorded in LXD and at GitHub instead.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import times
from errors import HostError
from system import write_file

logger = logging.getLogger(__name__)

ROOT = Path("/var/lib/github-runner")
# As Juju names a unit's folder among its agents.
PREFIX = "unit-"
AGENTS = Path("/var/lib/juju/agents")

# Everything that the previous charm left was removed, and there was no upgrade since.
TAKEN_OVER = "taken-over"
# The machine was set up completely, and nothing has asked for a new set-up since.
SET_UP = "set-up"
# The unit's storage is detached and the unit is removed, or its operator drains it (docs/how-to/drain.md): no
# reconcile creates, replaces or removes anything any more. The stop hook notes it first, and then removes all runners.
LEAVING = "leaving"
# When a reboot was requested, and in which boot: `SECONDS BOOT_ID`.
REBOOT = "reboot-requested"
# When the timer or the unit's agent last started a reconcile, in UNIX seconds.
RECONCILED = "reconciled"
# The operator knows that no repository policy check is made: noted at installation, and by an action after an upgrade
# from the previous charm, which always made one. Without it the status says so.
NO_POLICY = "no-policy-acknowledged"
# Runners ended without a job, and no later one came online: `COUNT LAST REASON`.
FAILED_STARTS = "failed-starts"
# GitHub deleted the registrations of runners that ended without a job, and no later one came online: `COUNT LAST`.
DROPPED = "dropped"
# Flavours of which creations failed and none was created since: `FLAVOR LAST REASON` on a line for each.
FAILED_CREATIONS = "failed-creations"
# What an action or a changed option ends: the operator may have fixed the reason.
FAILURES = (FAILED_STARTS, DROPPED, FAILED_CREATIONS)
# What the options add to the image of the last build that has ended, or which the image was found to have: a hash.
# Followed by the build's start in UNIX seconds, until it ends, where a change of the options has started it.
IMAGE = "image"
# Runner scale sets may exist: since when demand decides how many runners there are, in UNIX seconds.
SCALE_SETS = "scale-sets"
# When a reconcile in demand mode last read GitHub's list of runners, in UNIX seconds; not while one is at work.
LISTED = "listed"
# The agent asks for a reconcile in demand mode that reads GitHub's list of runners.
LIST_DUE = "list-due"
# A time without any reconcile: `FROM TO` in UNIX seconds.
UNATTENDED = "unattended"


def application(unit: str) -> str:
    """The application of a unit such as ``github-runner/0``."""
    return unit.partition("/")[0]


class Markers:
    """The markers of one unit, such as ``github-runner/0``."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._folder = ROOT / f"{PREFIX}{unit.replace('/', '-')}"

    def exist(self) -> bool:
        """Whether this unit has ever noted anything."""
        return self._folder.is_dir()

    def path(self, name: str) -> Path:
        """The file of a marker."""
        return self._folder / name

    def read(self, name: str) -> str | None:
        """What a marker holds; None where it is not there or cannot be read."""
        with suppress(OSError, UnicodeDecodeError):
            return self.path(name).read_text()
        return None

    def numbers(self, name: str, count: int) -> list[float] | None:
        """The first numbers that a marker holds; None where there are fewer, or one is infinite or NaN."""
        words = (self.read(name) or "").split()[:count]
        with suppress(ValueError):
            found = [float(word) for word in words]
            return found if len(found) == count and all(map(math.isfinite, found)) else None
        return None

    def note_attendance(self, interval: int, clock: Callable[[], float] | None = None) -> None:
        """Record that a reconcile was started, and a time without one: the controller or Juju's agent was away.

        ``interval`` between two events of the timer in minutes; ``clock`` gives UNIX seconds, for tests.
        """
        now, last = (clock or time.time)(), self.numbers(RECONCILED, 1)
        with suppress(HostError):
            if last and now - last[0] > max(times.UNATTENDED_AFTER, 3 * times.MINUTE * interval):
                logger.warning("No reconcile for %.0f minutes", (now - last[0]) / times.MINUTE)
                self.note(UNATTENDED, f"{last[0]:.0f} {int(now)}")
            self.note(RECONCILED, str(int(now)))

    def note(self, name: str, text: str = "") -> None:
        """Write a marker; HostError where that is not possible."""
        try:
            write_file(self._folder / name, f"{text}\n", 0o600)
        except OSError as error:
            raise HostError(f"{self._folder / name} cannot be written: {error}") from error

    def clear(self, *names: str) -> None:
        """Remove markers; HostError where one stays."""
        for name in names:
            try:
                (self._folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise HostError(f"{self._folder / name} cannot be removed: {error}") from error

    def others(self) -> list[str]:
        """The other units of this charm on this machine, such as ``github-runner/1``.

        A unit that was removed by force leaves its folder; Juju has removed its agent.
        """
        found = (path.name for path in ROOT.glob(f"{PREFIX}*") if path != self._folder)
        names = (name.removeprefix(PREFIX) for name in found if (AGENTS / name).is_dir())
        return sorted("/".join(name.rsplit("-", 1)) for name in names)

    def other_applications(self, *, set_up: bool = False) -> set[str]:
        """The applications that have a unit on this machine, or one that is ``set_up``, without this unit's own."""
        units = [unit for unit in self.others() if not set_up or Markers(unit).read(SET_UP) is not None]
        return {application(unit) for unit in units} - {application(self.unit)}

    def remove(self) -> list[str]:
        """Remove this unit's folder; returns what was removed."""
        if not self._folder.is_dir():
            return []
        shutil.rmtree(self._folder)
        return [str(self._folder)]
