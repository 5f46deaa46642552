"""Reading what GitHub's REST API tells of jobs that wait for a runner.

https://docs.github.com/en/rest/actions/workflow-runs and https://docs.github.com/en/rest/actions/workflow-jobs
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from errors import GithubApiError
from gh import answers
from gh.scale_set_answers import MOST_LABELS, TEXT_LIMIT, text

# Requests of one look at all jobs, and how many of them are for the list of runs of one status: GitHub lists 1,000.
MOST_REQUESTS, MOST_LISTS = 32, 10
# Of queued jobs that are kept from one look to the next.
MOST_JOBS = 10_000


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits for a runner, since ``created`` (UNIX seconds). ``name`` is cut as in messages of a set."""

    run: int
    name: str
    labels: tuple[str, ...]
    created: float


class Runs:
    """Which run comes next, over several looks, and what was read last of each that may have queued jobs.

    One look may not suffice for all of them: each gets its turn, and none is left out because others are older.
    """

    def __init__(self) -> None:
        self._next = 0
        self._jobs: dict[int, list[QueuedJob]] = {}

    def due(self, listed: Set[int]) -> list[int]:
        """The listed runs in the order in which they are to be read. What was read of other ones is dropped."""
        self._jobs = {run: found for run, found in self._jobs.items() if run in listed}
        runs = sorted(listed)
        first = bisect_left(runs, self._next)
        return runs[first:] + runs[:first]

    def note(self, run: int, found: list[QueuedJob]) -> None:
        """Keep the queued jobs of a run. The next time goes on after it."""
        self._next = run + 1
        self._jobs.pop(run, None)
        self._jobs[run] = found
        while sum(map(len, self._jobs.values())) > MOST_JOBS and len(self._jobs) > 1:
            del self._jobs[next(iter(self._jobs))]

    def jobs(self) -> list[QueuedJob]:
        """The queued jobs of all runs that were read and are still listed."""
        return [job for found in self._jobs.values() for job in found]


def jobs(items: Iterable[Any]) -> Iterator[QueuedJob]:
    """Those of a run's jobs that wait for a runner; GithubApiError for a job that cannot be."""
    for item in items:
        if answers.field(item, "status", str) == "queued":
            labels = answers.field(item, "labels", list)[:MOST_LABELS]
            created = answers.time(item, "created_at")
            if created is None or not all(isinstance(label, str) for label in labels):
                raise GithubApiError("the answer has no valid queued job")
            cut = tuple(label[:TEXT_LIMIT] for label in labels)
            yield QueuedJob(answers.field(item, "run_id", int), text(item, "name"), cut, created.timestamp())
