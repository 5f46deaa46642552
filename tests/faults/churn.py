"""Jobs arrive all the time on a real unit: each is run exactly once, and each is in the metrics log.

Meanwhile runner agents update themselves, listeners are killed, and GitHub deprecates the newest version for a
moment. The job of a killed listener fails as soon as GitHub notices.
"""

import random
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from tests.support.deployment import REPOSITORY, Deployment, wait_for

RUNNERS = 3
QUEUE = 4
# Seconds.
BETWEEN_KILLS = 15.0
REFUSAL = 5.0
LOST = "lost communication"


def run(
    found: Deployment,
    minutes: float,
    seed: int = 1,
    name: str = "churn",
    resting: int = RUNNERS,
    disturb: Callable[[Deployment], None] = lambda found: None,
) -> dict[str, object]:
    """Keep a queue of jobs for so many minutes, run it empty, and count.

    Each job's workflow begins with ``name``; ``resting`` is how many runners there are without jobs; ``disturb`` is
    called all the time.
    """
    chance = random.Random(seed)
    found.unit.set_config({"virtual-machines": RUNNERS, "replace-on-exit": True, "reconcile-interval": 2})
    jobs: dict[int, str] = {}
    killed: list[str] = []
    started = time.monotonic()
    deadline, refusal, next_kill = started + 60 * minutes, started + 30 * minutes, started + BETWEEN_KILLS
    while time.monotonic() < deadline:
        if sum(not done(found, job) for job in [*jobs][-RUNNERS - QUEUE :]) < RUNNERS + QUEUE:
            workflow = f"{name} {len(jobs)}"
            jobs[add_job(found, chance, len(jobs), workflow)] = workflow
        if time.monotonic() > next_kill and (victim := kill_listener(found)):
            killed.append(victim)
            next_kill = time.monotonic() + BETWEEN_KILLS
        if time.monotonic() > refusal:
            refusal = deadline
            deprecate_version(found)
        disturb(found)
        time.sleep(0.2)
    found.control.runner_binary(self_update=None)
    wait_for(lambda: all(done(found, job) for job in jobs), "the end of all jobs", 300)
    wait_for(lambda: len(found.online()) == resting, "the last successors", 180)
    found.unit.set_config({"replace-on-exit": False})
    found.reconcile()
    return {**figures(found, jobs, set(killed), resting), "listeners killed": len(killed)}


def add_job(found: Deployment, chance: random.Random, number: int, workflow: str) -> int:
    """Queue a job of three steps. Half of the runners update themselves before they take one."""
    command = f"echo job-$GITHUB_RUN_ID ran; sleep {chance.uniform(0, 3):.1f}"
    steps = [{"run": command}, {"run": chance.choice(["true", "exit 1"])}, {"run": "true", "if": "always()"}]
    found.control.runner_binary(self_update="2.999.0" if number // 10 % 2 else None)
    return int(found.control.add_job(REPOSITORY, workflow=workflow, steps=steps)["id"])


def kill_listener(found: Deployment) -> str:
    """Kill the listener of a runner, if possible of an idle one; a busy one's job fails. Its name, or nothing."""
    online, busy = set(found.online()), set(found.busy())
    victims = [*sorted(online - busy), *sorted(busy)]
    command = ("lxc", "exec", victims[0], "--", "pkill", "-KILL", "-x", "Runner.Listener") if victims else ("false",)
    return victims[0] if found.machine.call(*command).returncode == 0 else ""


def deprecate_version(found: Deployment) -> None:
    """GitHub refuses the newest version for a moment; then the operator asks for new attempts."""
    found.control.runner_binary(minimum_version="2.1000.0")
    try:
        time.sleep(REFUSAL)
    finally:
        found.control.runner_binary(minimum_version=None)
    found.unit.run("reconcile-runners")


def done(found: Deployment, job: int) -> bool:
    """Whether GitHub lists it as completed."""
    return bool(found.control.job(job)["status"] == "completed")


def seconds(job: dict[str, Any]) -> int:
    """For how long GitHub showed it as in progress; none if it never began."""
    if not job["started_at"]:
        return 0
    begin, end = (datetime.strptime(job[name], "%Y-%m-%dT%H:%M:%SZ") for name in ("started_at", "completed_at"))
    return int((end - begin).total_seconds())


def is_cut(job: dict[str, Any], killed: set[str]) -> bool:
    """Whether a job ended with its killed listener: GitHub lost contact with the runner, or its worker cancelled it."""
    ended = job["conclusion"] == "cancelled" or any(LOST in line for line in job["log"])
    return job["runner_name"] in killed and ended


def figures(found: Deployment, jobs: dict[int, str], killed: set[str], resting: int) -> dict[str, object]:
    """How many jobs ran, were lost or ran twice, and the same of their events. ``jobs`` are workflows by number."""
    seen: list[dict[str, Any]] = [found.control.job(job) for job in jobs]
    runs = [sum(line.startswith("job-") and line.endswith(" ran") for line in job["log"]) for job in seen]
    cut = [is_cut(job, killed) for job in seen]
    there = [(event["event"], event["workflow"]) for event in found.events() if "workflow" in event]
    expected = [
        (kind, workflow)
        for workflow, failed in zip(jobs.values(), cut, strict=True)
        for kind in ("runner_start", "runner_stop")
        if not failed
    ]
    counts = [there.count(one) for one in expected]
    return {
        "jobs": len(jobs),
        "jobs run": sum(number > 0 for number in runs),
        "jobs failed with a killed listener": sum(cut),
        "jobs lost": sum(number == 0 and not failed for number, failed in zip(runs, cut, strict=True)),
        "jobs doubled": sum(number > 1 for number in runs),
        "longest job in seconds": max(seconds(job) for job in seen),
        "runners used": len({job["runner_name"] for job in seen}),
        "events expected": len(expected),
        "events written": sum(number > 0 for number in counts),
        "events repeated": sum(max(0, number - 1) for number in counts),
        "instances left over": len(found.instances()) - resting,
    }
