"""What delays the creation of runners: no runner binary, a deprecated version, runners that ended without a job."""

import logging
from pathlib import Path

import times
from errors import GithubClientError
from gh.client import GithubClient
from host import markers, runner_binary
from models import FailedStarts, GithubPath
from naming import binary_version
from report import describe_deprecated, describe_failed_starts
from runner_manager import Findings

logger = logging.getLogger(__name__)

# Stands for the runner binary where none has been downloaded.
NO_BINARY = Path("none")


def hold(tarball: Path, failed: FailedStarts, now: float) -> str:
    """Why no runner is created now, for the status; empty where one may be."""
    if tarball == NO_BINARY:
        return "the runner binary is not downloaded yet"
    since = runner_binary.deprecated_at(now)
    if since is not None and now - since < times.DEPRECATED_CANARY:
        return describe_deprecated(tarball)
    return describe_failed_starts(failed, now) if failed.wait(now) else ""


def recorded(found: markers.Markers) -> FailedStarts:
    """What the last reconciles recorded of runners that ended without a job; none where the marker is damaged."""
    numbers = found.numbers(markers.FAILED_STARTS, 2)
    words = (found.read(markers.FAILED_STARTS) or "").split(maxsplit=2)[2:]
    if not numbers:
        return FailedStarts()
    return FailedStarts(int(numbers[0]), numbers[1], "".join(words).strip())


def record(findings: Findings, found: markers.Markers, github: GithubClient, path: GithubPath) -> None:
    """Record what a reconcile found out: runners that ended without a job, a deprecated or a working version."""
    failed = findings.failed_starts
    if failed is not None and failed.count:
        found.note(markers.FAILED_STARTS, f"{failed.count} {int(failed.last)} {failed.reason}")
    elif failed is not None:
        found.clear(markers.FAILED_STARTS)
    if findings.deprecated and _is_deprecated(github, path):
        runner_binary.note_deprecated()
    elif findings.proven:
        runner_binary.clear_deprecated()


def _is_deprecated(github: GithubClient, path: GithubPath) -> bool:
    """Whether GitHub, asked for the version, does not contradict what an instance has reported."""
    using = runner_binary.current()
    if using is None:
        return True
    try:
        return github.is_deprecated(path, binary_version(using.name)) is not False
    except GithubClientError as error:
        logger.warning("GitHub is not asked for the version of the runner binary: %s", error)
        return True


def try_at_once(found: markers.Markers) -> None:
    """Create runners although GitHub calls their version deprecated, or the last ones ended without a job."""
    runner_binary.clear_deprecated()
    found.clear(markers.FAILED_STARTS)
