"""What a reconcile found and did: a ``Report`` for the unit's status, which no decision reads, and ``Findings``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import times
from models import FailedCreation, FailedStarts, PublishedImage
from naming import binary_version
from runner_view import RunnerView
from telemetry import Delay

# After so many reconciles in a row that found runners which GitHub had dropped it is reported. It drops single ones.
DROPPED_REPORTED = 3


@dataclass(frozen=True)
class Findings:
    """What the caller of a reconcile records for later reconciles, and hands to the unit's agent."""

    deprecated: bool = False
    """A runner ended because GitHub no longer accepts the version of its agent."""
    proven: bool = False
    """A runner of today's version is online at GitHub."""
    failed_starts: FailedStarts | None = None
    """Reconciles that found runners whose agent had ended without a job; None if this reconcile did not find out."""
    dropped: FailedStarts | None = None
    """The same of runners whose registration GitHub had deleted. They delay no creation: a job can fake this."""
    listed: bool = False
    """GitHub's list of runners was read."""
    failed_creations: Mapping[str, FailedCreation] | None = None
    """By flavour; one of which a runner was created has none. None if this reconcile did not find out."""
    capacities: Mapping[str, int] = field(default_factory=dict)
    """How many runners of each flavour there could be now; empty where the machine does not limit them."""

    @property
    def reported_starts(self) -> FailedStarts | None:
        """The longer row of both, for the event; one of dropped runners counts once it is reported."""
        if self.dropped is None or self.failed_starts is None or self.dropped.count < DROPPED_REPORTED:
            return self.failed_starts
        return max(self.failed_starts, self.dropped, key=lambda row: row.count)


@dataclass(frozen=True)
class FlavorCount:
    """The runners of one flavour: how many are wanted, and how many instances there are."""

    flavor: str
    wanted: int
    there: int
    expected: int = 0
    """The wanted ones; of those that demand asks for, only what the machine has room for."""
    spare: int = 0
    """Of the wanted ones, those that are for no job that is known."""
    maximum: int | None = None
    """The limit of all its runners, where jobs decide how many there are."""
    delays: tuple[Delay, ...] = ()
    """Why some of the wanted ones are not there."""


@dataclass
class Report:
    """Names of runners by what they do now, and lines for the operator in ``failures``."""

    wanted: int = 0
    idle: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    unknown_jobs: list[str] = field(default_factory=list)
    """Busy runners that GitHub lists neither as online nor as busy."""
    other: list[str] = field(default_factory=list)
    """Instances that are neither idle nor busy, such as starting ones."""
    starting: list[str] = field(default_factory=list)
    """Runners that were just created and not seen online yet; some of the idle and some of the other ones."""
    created: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    hold: str = ""
    """Why no runner may be created."""
    failed_starts: FailedStarts | None = None
    """Reconciles that found runners whose agent had ended without a job; None if this reconcile did not find out."""
    image_age: float | None = None
    """Seconds since the image was built; None if this charm did not build it."""
    flavors: list[FlavorCount] = field(default_factory=list)
    """In the order of the option."""
    waits: list[str] = field(default_factory=list)
    """Runners that wait for room on the machine, a line for each flavour."""
    images: dict[str, PublishedImage] = field(default_factory=dict)
    """What the images that runners start from record about themselves, by alias."""


def describe_deprecated(binary: Path) -> str:
    """Why no runner is created while GitHub does not accept the version of a runner binary."""
    return (
        f"runner version {binary_version(binary.name)} is deprecated by GitHub: one runner is tried after "
        f"{times.DEPRECATED_RETRY // times.MINUTE} minutes, the action update-dependencies tries at once"
    )


def describe_failed_starts(found: FailedStarts, now: float) -> str:
    """Why and for how long no runner is created while runners end without a job."""
    times_in_a_row = f", {found.count} times in a row" if found.count > 1 else ""
    attempt = f"; next attempt in {wait:.0f} s" if (wait := found.wait(now)) else ""
    return f"runners ended without a job{times_in_a_row}: {found.reason}{attempt}"


def describe_doubtful(view: RunnerView) -> str:
    """What is reported of a runner whose agent ended without a job: none of its words, which a job may have faked."""
    if view.github is None:
        return f"{view.name}: ended without a job, and GitHub does not list it"
    return f"{view.name}: ended without a job, see its logs"


def describe_dropped(found: FailedStarts) -> str:
    """What is reported of runners whose registration GitHub deleted before they were seen online."""
    return f"runners ended without a job, {found.count} times in a row: GitHub deleted their registrations"
