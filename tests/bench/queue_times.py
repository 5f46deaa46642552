"""How long a job waits in demand mode: with an idle runner, without any, and in a burst."""

import statistics
from typing import Any

from tests.bench.report import write
from tests.bench.unit import clear, raw
from tests.support.deployment import REPOSITORY, Deployment, wait_for

BURST = 16
# Jobs with an idle runner, without one, and bursts: more than 100 jobs in all.
HOT, COLD, BURSTS = 50, 20, 2
# GitHub's own 1 to 3 seconds are in these, and not in ours.
PUBLISHED = "published: RunsOn hot < 6 s, cold < 25 s; GARM 1 to 3 min, with GitHub's own seconds in it"
# In KiB.
AGENT = "ps -o rss= -p $(systemctl show -p MainPID --value github-runner-agent-github-runner-0.service)"


def measure(found: Deployment, _repeat: int) -> None:
    """Seconds from a job's arrival until a runner begins it."""
    options = {"scaling": "demand", "virtual-machines": BURST, "cpu-overcommit": str(BURST), "memory-reserve": "1GiB"}
    found.unit.set_config({**options, "replace-on-exit": True, "min-idle": 2})
    wait_for(lambda: [each["owner"] for each in found.control.scale_sets()], "a session")
    hot = [wait for _ in range(HOT) for wait in _jobs(found, 1, idle=2)]
    found.unit.set_config({"min-idle": 0})
    cold = [wait for _ in range(COLD) for wait in _jobs(found, 1, idle=0)]
    burst = [wait for _ in range(BURSTS) for wait in _jobs(found, BURST, idle=0)]
    memory = int(found.machine.exec("sh", "-c", AGENT)) / 1024
    one = raw(found, "create", 1, 1)
    clear(found)
    many = raw(found, "create", BURST, 8)
    clear(found)
    rows = [_row("idle runner", hot), _row("no runner", cold), _row(f"burst of {BURST}", burst)]
    note = (
        f"containers, a stand-in for GitHub; raw LXD: 1 in {one:.1f} s, {BURST} in {many:.1f} s; agent {memory:.0f} MiB"
    )
    print(PUBLISHED)
    write("queue", "From a job's arrival to its first step, in demand mode", "s", rows, note)
    found.unit.set_config({"scaling": "fixed", "virtual-machines": 0, "replace-on-exit": False})


def _jobs(found: Deployment, number: int, idle: int) -> list[float]:
    """The times in queue of jobs that arrive at once, once so many runners are idle and no other is there."""
    wait_for(lambda: len(found.online()) == len(found.registered()) == len(found.instances()) == idle, "rest", 120)
    jobs = [found.control.add_job(REPOSITORY, "true") for _ in range(number)]
    ended: list[dict[str, Any]] = [found.control.wait_job(job["id"], timeout=180) for job in jobs]
    return [float(job["queue_time"]) for job in ended]


def _row(label: str, waits: list[float]) -> dict[str, Any]:
    cuts = statistics.quantiles(waits, n=20, method="inclusive")
    figures = {"half within": cuts[9], "95 % within": cuts[18], "longest": max(waits)}
    return {"label": f"{label}: {len(waits)} jobs", **{key: round(value, 2) for key, value in figures.items()}}
