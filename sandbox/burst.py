"""The command `job --count`: a burst of jobs, one each some seconds or all at once, and what became of them."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from sandbox.shell import say

# Between two readings of the jobs, in seconds.
INTERVAL = 0.5


class Jobs(Protocol):
    """The calls of the stand-in's control interface that a burst needs."""

    def add_job(self, repository: str, command: str, **fields: object) -> Any:
        """Queue a job, or a list of them with `count`: id and run_id of each."""

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that there are."""


@dataclass
class Burst:
    """`count` jobs of a command, one each `every` seconds; 0 queues all at once, as jobs of one workflow run."""

    control: Jobs
    repository: str
    command: str
    count: int
    every: float
    fields: dict[str, Any]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    ids: list[int] = field(default_factory=list)
    _shown: dict[int, str] = field(default_factory=dict)

    def queue(self) -> None:
        """Queue all jobs, and show what happens to them meanwhile."""
        if self.every == 0:
            made = self.control.add_job(self.repository, self.command, count=self.count, **self.fields)
            self._add(made if isinstance(made, list) else [made])
            return
        start = self.clock()
        for number in range(self.count):
            while (left := start + number * self.every - self.clock()) > 0:
                self._show()
                self.sleep(min(INTERVAL, left))
            self._add([self.control.add_job(self.repository, self.command, **self.fields)])

    def run(self) -> int:
        """Queue the jobs and wait for all of them; 0 if all succeeded. Ctrl-C ends the wait: 130.

        A summary is printed in both cases. Jobs that are queued or run after Ctrl-C stay at GitHub.
        """
        say(f"{self.count} jobs in {self.repository}, " + (f"one each {self.every:g} s" if self.every else "at once"))
        try:
            self.queue()
            while any(job["status"] != "completed" for job in self._show()):
                self.sleep(INTERVAL)
        except KeyboardInterrupt:
            say("\nInterrupted: the jobs that are queued stay at GitHub")
            self._summary(self._found())
            return 130
        found = self._found()
        self._summary(found)
        return 0 if all(job["conclusion"] == "success" for job in found) else 1

    def _add(self, made: list[dict[str, Any]]) -> None:
        self.ids += [each["id"] for each in made]

    def _found(self) -> list[dict[str, Any]]:
        mine = set(self.ids)
        return [job for job in self.control.jobs() if job["id"] in mine]

    def _show(self) -> list[dict[str, Any]]:
        """Print a line for each job that began or ended since the last time; returns the jobs."""
        found = self._found()
        for job in found:
            if job["runner_name"] and job["id"] not in self._shown:
                say(f"Job {job['id']} runs on {job['runner_name']} after {_queued(job):.1f} s")
                self._shown[job["id"]] = "in_progress"
            if job["status"] == "completed" and self._shown.get(job["id"]) != "completed":
                say(f"Job {job['id']}: {job['conclusion']}")
                self._shown[job["id"]] = "completed"
        return found

    def _summary(self, found: list[dict[str, Any]]) -> None:
        began = [job for job in found if job["runner_name"]]
        conclusions = Counter(job["conclusion"] for job in found if job["status"] == "completed")
        told = ", ".join(f"{number} {conclusion}" for conclusion, number in sorted(conclusions.items()))
        say(f"{len(began)} of {self.count} jobs ran{f': {told}' if told else ''}")
        for name, number in sorted(Counter(job["runner_name"] for job in began).items()):
            say(f"  {name}: {number} job{'s' if number > 1 else ''}")
        if began:
            waits = sorted(map(_queued, began))
            say(f"Queue time: min {waits[0]:.1f} s, median {median(waits):.1f} s, max {waits[-1]:.1f} s")


def _queued(job: dict[str, Any]) -> float:
    """Seconds from the job's queueing to its start, by the clock of the stand-in."""
    queue_time: float = job["queue_time"]
    return queue_time
