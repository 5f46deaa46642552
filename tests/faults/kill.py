"""The charm is killed at every boundary of a reconcile that has something of everything to do, and must converge."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sandbox.github.control import GitHubControlError
from sandbox.shell import SandboxError
from tests.support.deployment import RECONCILE, Deployment, wait_for

CHARM = "/var/lib/juju/agents/unit-github-runner-0/charm"
NOTES = "/root/boundaries"
WANTED = 3
KEY = "user.github-runner."
# What says that a world did not become as it should in time.
NOT_REACHED = (AssertionError, SandboxError, GitHubControlError)


@contextmanager
def instrumented(found: Deployment) -> Iterator[None]:
    """Load `boundaries` into the charm's processes, which then die at the boundary that the test names."""
    custom = f"{CHARM}/lib/sitecustomize.py"
    found.machine.push(f"{CHARM}/lib/boundaries.py", Path(__file__).with_name("boundaries.py").read_text())
    found.machine.exec("sh", "-c", f"echo 'import boundaries' >> {custom}")
    try:
        yield
    finally:
        found.machine.exec("sed", "-i", "/^import boundaries$/d", custom)


class World:
    """A unit with something of everything to do for a reconcile, and what must hold after the next one."""

    labels: Sequence[str] | None = None
    """Of the jobs; those of any runner if None."""
    ended: tuple[str, ...] = ("finished",)
    """Jobs whose runners write two events, by their workflows without the mark."""
    cut: tuple[str, ...] = ("crashed",)
    """Jobs whose runners write the event of the start only."""

    def __init__(self, found: Deployment) -> None:
        self.found = found

    def prepare(self, mark: str) -> None:
        """One runner that finished its job, one whose agent died in its job, one outdated; none to spare."""
        found = self.found
        names = found.wait_online(WANTED)
        finished = found.job("true", workflow=f"{mark} finished", labels=self.labels)["runner_name"]
        crashed = found.job("sleep 600", status="in_progress", workflow=f"{mark} crashed", labels=self.labels)
        crashed = crashed["runner_name"]
        found.wait_gone(finished)
        wait_for(
            lambda: "pre-job" in found.inside(crashed, "ls /metrics-exchange", check=False), "the crashed job's start"
        )
        found.kill_agent(crashed)
        [outdated] = set(names) - {finished, crashed}
        found.machine.exec("lxc", "config", "set", outdated, f"{KEY}fingerprint=another")
        wait_for(lambda: found.online() == [outdated], f"GitHub noticing {crashed}, and {outdated} alone online")

    def settle(self) -> None:
        """Wait for what a reconcile brings about."""

    def converge(self) -> None:
        """The next reconcile, and what it brings about."""
        self.found.reconcile()
        self.settle()

    def violations(self, mark: str) -> list[str]:
        """What is wrong after it: anything missing, left over, or reported too often."""
        found = self.found
        deadline = time.monotonic() + 30
        while found.online() != found.instances() and time.monotonic() < deadline:
            time.sleep(0.1)
        names = found.instances()
        facts = {
            "instances": (len(names), WANTED),
            "online": (found.online(), names),
            "registered": (found.registered(), names),
            "mounts": (found.mounts(), [f"/home/ubuntu/runner-fs/{name}" for name in names]),
            "storages": (found.storages(), [f"{name}.img" for name in names]),
            "profiles": (found.resource_profiles(), ["cpu-1-mem-1GiB-disk-2GiB"]),
        }
        wrong = [f"{what}: {seen} instead of {wanted}" for what, (seen, wanted) in facts.items() if seen != wanted]
        for kind, workflow, number in self.events(mark):
            if not 1 <= number <= 2:
                wrong.append(f"{number} x {kind} of {workflow}")
        return wrong

    def events(self, mark: str) -> list[tuple[str, str, int]]:
        """How often each event that must be there is there."""
        there = [(event["event"], event["workflow"]) for event in self.found.events() if "workflow" in event]
        expected = [("runner_start", which) for which in (*self.ended, *self.cut)]
        expected += [("runner_stop", which) for which in self.ended]
        return [(kind, f"{mark} {which}", there.count((kind, f"{mark} {which}"))) for kind, which in expected]

    def after(self, mark: str) -> tuple[list[str], int]:
        """What is wrong after the next reconcile, and how many events were repeated."""
        wrong = []
        try:
            self.converge()
        except NOT_REACHED as error:
            wrong.append(str(error))
        wrong += self.violations(mark)
        if wrong:
            # One that did not converge must not spoil those that follow.
            self.found.reconcile()
        return wrong, sum(max(0, number - 1) for _, _, number in self.events(mark))


def prepared(world: World, mark: str) -> str:
    """The world made ready, at the second attempt if need be; the mark its jobs bear."""
    try:
        world.prepare(mark)
    except NOT_REACHED as error:
        print(f"  not prepared, once more: {error}", flush=True)
        world.converge()
        mark += " again"
        world.prepare(mark)
    return mark


def reconcile(found: Deployment, **environment: object) -> int:
    """One reconcile; its exit code."""
    words = " ".join(f"{name}={value}" for name, value in environment.items())
    return found.unit.exec(f"{words} {RECONCILE}").returncode


def record(world: World) -> list[str]:
    """The boundaries of one undisturbed reconcile."""
    world.found.machine.exec("rm", "-f", NOTES)
    mark = prepared(world, "recorded")
    assert reconcile(world.found, BOUNDARY_NOTES=NOTES) == 0
    world.settle()
    assert not world.violations(mark)
    return world.found.machine.exec("cat", NOTES).splitlines()


def kill_at(world: World, point: int, mark: str) -> tuple[bool, list[str], int]:
    """Whether the reconcile was killed there, what is wrong after the next one, and how many events were repeated."""
    mark = prepared(world, mark)
    killed = reconcile(world.found, BOUNDARY_KILL=point) != 0
    return killed, *world.after(mark)


def spread(total: int, number: int) -> Sequence[int]:
    """So many points of 1 … total, evenly."""
    return range(1, total + 1) if number >= total else [1 + index * total // number for index in range(number)]


def run(found: Deployment, points: int) -> dict[str, object]:
    """Kill at so many boundaries; figures and what was wrong, by boundary."""
    with instrumented(found):
        return kill_reconciles(World(found), points)


def kill_reconciles(world: World, points: int) -> dict[str, object]:
    """The same of any world whose processes can be told where to die."""
    boundaries = record(world)
    tried = converged = repeated = 0
    wrong: dict[str, list[str]] = {}
    for point in spread(len(boundaries), points):
        try:
            killed, found_wrong, again = kill_at(world, point, f"kill {point}")
        except KeyboardInterrupt:
            print("  interrupted: what was tried until now counts", flush=True)
            break
        tried += killed
        converged += killed and not found_wrong
        repeated += again
        if found_wrong:
            wrong[boundaries[point - 1]] = found_wrong
        print(f"  {boundaries[point - 1]}: {found_wrong or ('converged' if killed else 'not reached')}", flush=True)
    return {
        "boundaries": len(boundaries),
        "killed": tried,
        "converged": converged,
        "events repeated": repeated,
        "wrong": wrong,
    }
