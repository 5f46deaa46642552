"""Jobs arrive all the time on a real unit: each is run exactly once, and each is in the metrics log."""

import random
import time
from typing import Any

from tests.integration.conftest import REPOSITORY, Deployment, wait_for

RUNNERS = 3
QUEUE = 4


def run(found: Deployment, minutes: float, seed: int = 1) -> dict[str, object]:
    """Keep a queue of jobs for so many minutes, run it empty, and count."""
    chance = random.Random(seed)
    found.unit.set_config({"virtual-machines": RUNNERS, "replace-on-exit": True, "reconcile-interval": 2})
    jobs: list[int] = []
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        if sum(not done(found, job) for job in jobs[-RUNNERS - QUEUE :]) < RUNNERS + QUEUE:
            command = f"echo job-$GITHUB_RUN_ID ran; sleep {chance.uniform(0, 3):.1f}"
            steps = [{"run": command}, {"run": chance.choice(["true", "exit 1"])}, {"run": "true", "if": "always()"}]
            jobs.append(found.control.add_job(REPOSITORY, workflow=f"churn {len(jobs)}", steps=steps)["id"])
            # Half of the runners update themselves before they take a job.
            found.control.application(self_update="2.999.0" if len(jobs) // 10 % 2 else None)
        time.sleep(0.2)
    found.control.application(self_update=None)
    wait_for(lambda: all(done(found, job) for job in jobs), "the end of all jobs", 300)
    wait_for(lambda: len(found.online()) == RUNNERS, "the last successors", 180)
    found.unit.set_config({"replace-on-exit": False})
    found.reconcile()
    return figures(found, jobs)


def done(found: Deployment, job: int) -> bool:
    """Whether GitHub calls it completed."""
    return bool(found.control.job(job)["status"] == "completed")


def figures(found: Deployment, jobs: list[int]) -> dict[str, object]:
    """How many jobs ran, were lost or ran twice, and the same of their events."""
    seen: list[dict[str, Any]] = [found.control.job(job) for job in jobs]
    runs = [sum(line.startswith("job-") and line.endswith(" ran") for line in job["log"]) for job in seen]
    there = [(event["event"], event["workflow"]) for event in found.events() if "workflow" in event]
    expected = [(kind, f"churn {number}") for number in range(len(jobs)) for kind in ("runner_start", "runner_stop")]
    counts = [there.count(one) for one in expected]
    return {
        "jobs": len(jobs),
        "jobs run": sum(number > 0 for number in runs),
        "jobs lost": runs.count(0),
        "jobs doubled": sum(number > 1 for number in runs),
        "runners used": len({job["runner_name"] for job in seen}),
        "events expected": len(expected),
        "events written": sum(number > 0 for number in counts),
        "events repeated": sum(max(0, number - 1) for number in counts),
        "instances left over": len(found.instances()) - RUNNERS,
    }
