"""With scaling=demand a reconcile is killed at its boundaries, and so is the unit's agent; both must converge."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.demand import AGENT, assigned, in_demand, listening, sets
from tests.faults.kill import NOT_REACHED, NOTES, WANTED, World, instrumented, kill_reconciles, spread
from tests.support.deployment import REPOSITORY, Deployment, wait_for

FLAVORS = f"""
small: {{labels: small, max: {WANTED}, min-idle: {WANTED}}}
large: {{labels: large, max: 2}}
"""
DROP_INS = "/run/systemd/system"
SERVICE = "ghro.reconcile-runners.github-runner-0.service"
HELD = "/run/reconciles-held"
# Seconds: how long a request for messages stays open, so that the agent sends many of them.
HOLD = 2.0


@contextmanager
def drop_in(found: Deployment, service: str, content: str) -> Iterator[None]:
    """A service with more settings, from its next start on."""
    folder = f"{DROP_INS}/{service}.d"
    found.machine.exec("mkdir", "-p", folder)
    found.machine.push(f"{folder}/test.conf", content)
    found.machine.exec("systemctl", "daemon-reload")
    try:
        yield
    finally:
        found.machine.exec("rm", "-r", folder)
        found.machine.exec("systemctl", "daemon-reload")


class DemandWorld(World):
    """Two flavours: one keeps idle runners, to which everything happens; jobs wait for the other."""

    labels = ("small",)
    waiting = ("waiting 0", "waiting 1")
    ended: tuple[str, ...] = ("finished", *waiting)

    def __init__(self, found: Deployment) -> None:
        super().__init__(found)
        self.jobs: list[int] = []

    def prepare(self, mark: str) -> None:
        """The same, and jobs that wait, which the agent knows of: no reconcile that it starts does anything yet."""
        self.hold(True)
        super().prepare(mark)
        self.jobs = [self.queue(f"{mark} {which}", "large") for which in self.waiting]
        reported = {"small": 0, "large": len(self.waiting)}
        wait_for(lambda: assigned(self.found) == reported, "the waiting jobs in the agent's file")

    def hold(self, held: bool) -> None:
        """Whether reconciles that timer and agent start do nothing."""
        self.found.machine.exec(*(("touch", HELD) if held else ("rm", "-f", HELD)))

    def queue(self, workflow: str, flavor: str) -> int:
        """Queue a job for a flavour."""
        command = "echo job-$GITHUB_RUN_ID ran"
        return int(self.found.control.add_job(REPOSITORY, command, workflow=workflow, labels=[flavor])["id"])

    def settle(self) -> None:
        """Until the jobs have ended, each flavour is quiet, and the metrics of the last runners are collected."""
        found = self.found
        self.hold(False)
        for job in self.jobs:
            found.control.wait_job(job, timeout=90)
        wait_for(lambda: listening(found) and not any(assigned(found).values()), "sessions without jobs", 90)
        wait_for(lambda: found.online() == found.instances(), "the end of all other runners", 90)
        found.reconcile()

    def violations(self, mark: str) -> list[str]:
        """Also: one scale set for each flavour, and each job run once."""
        wrong = super().violations(mark)
        there = sorted(item["name"].rpartition("-")[2] for item in self.found.control.scale_sets())
        if there != ["large", "small"]:
            wrong.append(f"scale sets: {there}")
        for number in self.jobs:
            job = self.found.control.job(number)
            times = sum(line == f"job-{job['run_id']} ran" for line in job["log"])
            if (job["conclusion"], times) != ("success", 1):
                wrong.append(f"job {number}: {job['status']}, {job['conclusion']}, run {times} times")
        return wrong


class AgentWorld(DemandWorld):
    """What makes the agent send each of its requests: jobs of both flavours, before and after its sessions ended."""

    ended = tuple(f"{flavor} {time}" for time in ("before", "after") for flavor in ("small", "large"))
    cut = ()

    def day(self, mark: str, **environment: object) -> None:
        """Start the agent with these variables, let happen everything, and stop it properly at the end."""
        found = self.found
        self.jobs = []
        words = "\n".join(f"Environment={name}={value}" for name, value in environment.items())
        found.machine.exec("rm", "-f", NOTES)
        found.wait_online(WANTED)
        with drop_in(found, AGENT, f"[Service]\n{words}\n"):
            self.restart()
            found.control.expire_scale_sets("queue")
            self.both(f"{mark}", "before")
            found.control.expire_scale_sets("sessions", "admin")
            if "large" in sets(found):
                found.control.remove_scale_set(sets(found)["large"]["id"])
            self.both(f"{mark}", "after")
            self.restart()

    def restart(self) -> None:
        """Stop the agent, start it, and wait for its sessions."""
        self.found.machine.exec("systemctl", "restart", AGENT)
        wait_for(lambda: len(sets(self.found)) == 2 and listening(self.found), "two sessions", 90)

    def both(self, mark: str, time: str) -> None:
        """A job of each flavour, until both have ended."""
        jobs = [self.queue(f"{mark} {flavor} {time}", flavor) for flavor in ("small", "large")]
        self.jobs += jobs
        for job in jobs:
            self.found.control.wait_job(job, timeout=90)

    def notes(self) -> list[str]:
        """The boundaries that the agent has passed."""
        return self.found.machine.exec("cat", NOTES).splitlines()

    def killed_at(self, point: int) -> tuple[str, list[str], int]:
        """The boundary at which the agent was killed, what is wrong afterwards, and how many events were repeated."""
        mark, late = f"agent {point}", []
        try:
            self.day(mark, BOUNDARY_NOTES=NOTES, BOUNDARY_KILL=point)
        except NOT_REACHED as error:
            late.append(str(error))
        wrong, repeated = self.after(mark)
        found = [line for line in self.notes() if line.split()[0] == str(point)]
        return (found[0] if found else "", [*late, *wrong], repeated)


def kill_agents(world: AgentWorld, points: int) -> dict[str, object]:
    """Kill the agent at so many boundaries of its day; figures, and what was wrong by boundary."""
    world.day("agent recorded", BOUNDARY_NOTES=NOTES)
    total = len(world.notes())
    wrong, _ = world.after("agent recorded")
    assert not wrong, wrong
    killed = converged = repeated = 0
    failed: dict[str, list[str]] = {}
    for point in spread(total, points):
        boundary, wrong, again = world.killed_at(point)
        killed += bool(boundary)
        converged += bool(boundary) and not wrong
        repeated += again
        if wrong:
            failed[boundary or f"{point}, not reached"] = wrong
        print(f"  agent {boundary or point}: {wrong or ('converged' if boundary else 'not reached')}", flush=True)
    return {
        "boundaries of the agent": total,
        "agent killed": killed,
        "agent converged": converged,
        "events repeated after the agent": repeated,
        "wrong after the agent": failed,
    }


def run(found: Deployment, points: int) -> dict[str, Any]:
    """Kill reconciles and agents at so many boundaries each."""
    hold = found.control.settings()["hold"]
    options = {"flavors": FLAVORS, "cpu-overcommit": "3", "virtual-machines": WANTED}
    with (
        instrumented(found),
        drop_in(found, SERVICE, f"[Unit]\nConditionPathExists=!{HELD}\n"),
        in_demand(found, WANTED, **options),
    ):
        found.control.settings(hold=HOLD)
        try:
            return {**kill_reconciles(DemandWorld(found), points), **kill_agents(AgentWorld(found), points)}
        finally:
            found.control.settings(hold=hold)
            found.machine.exec("rm", "-f", HELD)
