"""Queued jobs of a repository that reached no runner scale set: every few minutes REST is asked, as a backstop.

GitHub has no request for the queued jobs of an organisation.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gh.queued_jobs import QueuedJob
from gh.scale_set_answers import Job, Statistics

logger = logging.getLogger(__name__)

# Seconds: how often, and how long a job must have waited: until then a message may still come, and GitHub gives one
# without a runner to another set after 5 minutes.
EVERY, GRACE = 300.0, 300.0
MOST_REPORTED = 5000
# Seconds by which GitHub's clock and the machine's may differ.
SKEW = 60.0


@dataclass
class Reported:
    """The jobs that messages of one flavour's set reported, and how many only the statistics count."""

    jobs: dict[tuple[int, str], float] = field(default_factory=dict)
    """By workflow run and name, the last MOST_REPORTED of them: when the last message came, in UNIX seconds."""
    unnamed: int = 0
    """Waiting jobs in the statistics that no message of this session reported: those of an earlier session."""

    def note(self, job: Job, now: float) -> None:
        """Take a message's entry into account."""
        self.jobs.pop((job.run, job.name), None)
        self.jobs[job.run, job.name] = now
        while len(self.jobs) > MOST_REPORTED:
            del self.jobs[next(iter(self.jobs))]

    def count(self, statistics: Statistics, named: int) -> None:
        """Take statistics into account; ``named`` jobs that wait are known from messages."""
        self.unnamed = max(0, statistics.assigned - statistics.running - named)


def merged(found: Iterable[Reported]) -> dict[tuple[int, str], float]:
    """What the messages of several sets reported; the sessions may go on meanwhile."""
    times: dict[tuple[int, str], float] = {}
    for reported in found:
        for key, when in tuple(reported.jobs.items()):
            times[key] = max(when, times.get(key, when))
    return times


@dataclass(frozen=True)
class Target:
    """A flavour with an open session: the labels of its set in lower case, and what its messages reported."""

    flavor: str
    labels: frozenset[str]
    unnamed: int


def missed(
    queued: Sequence[QueuedJob], targets: Sequence[Target], reported: Mapping[tuple[int, str], float], now: float
) -> dict[str, list[float]]:
    """When the queued jobs that reached no set were created, the oldest first, by flavour.

    A job counts for the first flavour whose set has its labels. ``reported`` is when a message reported a job of this
    run and name, in UNIX seconds. A job that is run again keeps both: what was reported well before it was created
    belongs to the former one.
    """
    found: dict[str, list[float]] = {target.flavor: [] for target in targets}
    for job in queued:
        if now - job.created < GRACE or reported.get((job.run, job.name), 0.0) >= job.created - SKEW:
            continue
        wanted = {label.lower() for label in job.labels}
        if not wanted:
            # Its runs-on names a runner group only, which the answer does not have.
            continue
        for target in [target for target in targets if wanted <= target.labels][:1]:
            found[target.flavor].append(job.created)
    # Those that the statistics have are the oldest ones.
    return {target.flavor: sorted(found[target.flavor])[target.unnamed :] for target in targets}


class Schedule:
    """When REST is asked again. The first time comes after a whole interval: the sessions must have an answer."""

    def __init__(self) -> None:
        self._next = time.monotonic() + EVERY

    def is_due(self) -> bool:
        """Whether it is time; the next time comes after another interval."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + EVERY
        return True
