"""How long a job waits in demand mode: with an idle runner, without any, and in a burst."""

import statistics
import time
from typing import Any

from tests.bench.report import write
from tests.bench.unit import clear, create_by_hook, raw
from tests.support.deployment import REPOSITORY, Deployment, wait_for

BURST = 16
# Jobs with an idle runner, without one, and bursts: more than 100 jobs in all.
HOT, COLD, BURSTS = 50, 20, 2
AT_ONCE, LONG = "true", "sleep 40"
# GitHub's own 1 to 3 seconds are in these, and not in this charm's.
PUBLISHED = "published: RunsOn hot < 6 s, cold < 25 s; GARM 1 to 3 min, with GitHub's own seconds in it"
# Seconds.
IDLE = 120.0
# In KiB.
AGENT = "ps -o rss= -p $(systemctl show -p MainPID --value github-runner-agent-github-runner-0.service)"


def measure(found: Deployment, repeat: int) -> None:
    """Seconds from a job's arrival until a runner begins it, without what GitHub needs to give it to a scale set."""
    options = {"scaling": "demand", "virtual-machines": BURST, "cpu-overcommit": str(BURST), "memory-reserve": "1GiB"}
    found.control.settings(assign_after=0.0)
    found.unit.set_config({**options, "replace-on-exit": True, "min-idle": 2})
    wait_for(lambda: [each["owner"] for each in found.control.scale_sets()], "a session")
    hot = [wait for _ in range(HOT) for wait in _jobs(found, 1, idle=2)]
    found.unit.set_config({"min-idle": 0})
    cold = [wait for _ in range(COLD) for wait in _jobs(found, 1, idle=0)]
    burst = [wait for _ in range(BURSTS) for wait in _jobs(found, BURST, idle=0, script=LONG)]
    short = [wait for _ in range(BURSTS) for wait in _jobs(found, BURST, idle=0)]
    memory, requests = _idle_agent(found)
    found.unit.set_config({"scaling": "fixed", "replace-on-exit": False})
    created = [_created(found) for _ in range(repeat)]
    one = []
    for _ in range(repeat):
        clear(found)
        one.append(raw(found, "create", 1, 1))
    found.unit.set_config({"virtual-machines": 0})
    rows = [_row("idle runner", hot), _row("no runner", cold), _row(f"burst of {BURST}", burst)]
    # Their ends, and the deletion of their instances, share two cores with the creation of the last ones.
    rows.append(_row(f"burst of {BURST}, short jobs", short))
    note = (
        f"stand-in for GitHub; one raw creation {statistics.median(one):.1f} s, {BURST} runners created in "
        f"{statistics.median(created):.1f} s; idle agent: {memory:.0f} MiB, {requests} requests in {IDLE:.0f} s; "
        f"{PUBLISHED}"
    )
    write("queue", "From a job's arrival to its first step, in demand mode", "s", rows, note)
    clear(found)


def _idle_agent(found: Deployment) -> tuple[float, int]:
    """The agent's memory in MiB, and its requests while nothing happens. The timer is an hour away."""
    wait_for(lambda: not found.registered() and not found.instances(), "rest", 120)
    found.control.clear_requests()
    time.sleep(IDLE)
    return int(found.machine.exec("sh", "-c", AGENT)) / 1024, len(found.control.requests())


def _created(found: Deployment) -> float:
    """Seconds until a reconcile in fixed mode has as many runners online."""
    clear(found)
    return create_by_hook(found, BURST)


def _jobs(found: Deployment, number: int, idle: int, script: str = AT_ONCE) -> list[float]:
    """The times in queue of jobs that arrive at once, once so many runners are idle and no other is there."""
    wait_for(lambda: len(found.online()) == len(found.registered()) == len(found.instances()) == idle, "rest", 120)
    jobs = [found.control.add_job(REPOSITORY, script) for _ in range(number)]
    ended: list[dict[str, Any]] = [found.control.wait_job(job["id"], timeout=180) for job in jobs]
    return [float(job["queue_time"]) for job in ended]


def _row(label: str, waits: list[float]) -> dict[str, Any]:
    cuts = statistics.quantiles(waits, n=20, method="inclusive")
    figures = {"half within": cuts[9], "95 % within": cuts[18], "longest": max(waits)}
    return {"label": f"{label}: {len(waits)} jobs", **{key: round(value, 2) for key, value in figures.items()}}
