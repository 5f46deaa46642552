"""Reading what GitHub's REST API tells of jobs that wait for a runner.

https://docs.github.com/en/rest/actions/workflow-runs and https://docs.github.com/en/rest/actions/workflow-jobs
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from errors import GithubApiError
from gh import answers
from gh.scale_set_answers import MOST_LABELS, TEXT_LIMIT, text

# Of the runs that may have queued jobs, so many are read, the oldest ones first.
MOST_RUNS = 30


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits for a runner, since ``created`` (UNIX seconds). ``name`` is cut as in messages of a set."""

    run: int
    name: str
    labels: tuple[str, ...]
    created: float


def runs(pages: Mapping[str, Any]) -> list[int]:
    """The numbers of at most MOST_RUNS workflow runs, from one page of runs for each status."""
    found = {
        answers.field(item, "id", int) for page in pages.values() for item in answers.field(page, "workflow_runs", list)
    }
    return sorted(found)[:MOST_RUNS]


def jobs(page: Any) -> Iterator[QueuedJob]:
    """Those of a run's jobs that wait for a runner; GithubApiError for a job that cannot be."""
    for item in answers.field(page, "jobs", list):
        if answers.field(item, "status", str) == "queued":
            labels = answers.field(item, "labels", list)[:MOST_LABELS]
            created = answers.time(item, "created_at")
            if created is None or not all(isinstance(label, str) for label in labels):
                raise GithubApiError("the answer has no valid queued job")
            cut = tuple(label[:TEXT_LIMIT] for label in labels)
            yield QueuedJob(answers.field(item, "run_id", int), text(item, "name"), cut, created.timestamp())
