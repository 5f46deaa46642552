"""What delays the creation of runners: no runner binary, a deprecated version, runners without a job, failures."""

import logging
import re
from pathlib import Path

import times
from errors import HostError
from host import markers, runner_binary
from models import FLAVOR_NAME, FailedCreation, FailedStarts
from report import Findings, describe_deprecated, describe_failed_starts

logger = logging.getLogger(__name__)

# Stands for the runner binary where none has been downloaded.
NO_BINARY = Path("none")


def hold(tarball: Path, failed: FailedStarts, now: float) -> str:
    """Why no runner is created now, for the status; empty where one may be."""
    if tarball == NO_BINARY:
        return "the runner binary is not downloaded yet"
    since = runner_binary.deprecated_at(now)
    if since is not None and now - since < times.DEPRECATED_RETRY:
        return describe_deprecated(tarball)
    return describe_failed_starts(failed, now) if failed.wait(now) else ""


def recorded(found: markers.Markers, name: str = markers.FAILED_STARTS) -> FailedStarts:
    """What the last reconciles recorded of runners that ended without a job; none where the marker is damaged."""
    numbers = found.numbers(name, 2)
    words = (found.read(name) or "").split(maxsplit=2)[2:]
    if not numbers:
        return FailedStarts()
    return FailedStarts(int(numbers[0]), numbers[1], "".join(words).strip())


def dropped(found: markers.Markers, now: float) -> FailedStarts:
    """What the last reconciles recorded of runners that GitHub dropped; none a day after the last of them.

    GitHub drops single runners all the time: those of several days are no row.
    """
    row = recorded(found, markers.DROPPED)
    return row if abs(now - row.last) < times.DAY else FailedStarts()


def failed_creations(found: markers.Markers) -> dict[str, FailedCreation]:
    """What the last reconcile recorded of flavours of which no runner could be created; lines with damage are no such.

    A time of this marker may be in the future, where the clock was set back.
    """
    failed = {}
    for line in (found.read(markers.FAILED_CREATIONS) or "").splitlines():
        flavor, _, rest = line.partition(" ")
        last, _, reason = rest.partition(" ")
        if FLAVOR_NAME.fullmatch(flavor) and re.fullmatch(r"[0-9]{1,12}", last):
            failed[flavor] = FailedCreation(float(last), reason)
    return failed


def record_failures(findings: Findings, found: markers.Markers) -> None:
    """Record of which flavours no runner could be created. A failure is logged: the caller may have one of its own."""
    failed = findings.failed_creations
    lines = [f"{flavor} {max(0, int(each.last))} {each.reason}" for flavor, each in (failed or {}).items()]
    try:
        if lines:
            found.note(markers.FAILED_CREATIONS, "\n".join(lines))
        elif failed is not None:
            found.clear(markers.FAILED_CREATIONS)
    except HostError as error:
        logger.warning("The failed creations were not recorded: %s", error)


def record(findings: Findings, found: markers.Markers) -> None:
    """Record what a reconcile found out: runners that ended without a job, a deprecated or a working version."""
    for name, row in ((markers.FAILED_STARTS, findings.failed_starts), (markers.DROPPED, findings.dropped)):
        if row is not None and row.count:
            found.note(name, f"{row.count} {int(row.last)} {row.reason}".rstrip())
        elif row is not None:
            found.clear(name)
    if findings.deprecated:
        runner_binary.note_deprecated()
    elif findings.proven:
        runner_binary.clear_deprecated()


def try_at_once(found: markers.Markers) -> None:
    """Create runners although GitHub did not accept their version, or the last ones ended without a job."""
    runner_binary.clear_deprecated()
    found.clear(*markers.FAILURES)
