"""The charm is killed at every boundary of a pass that has something of everything to do, and must converge."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sandbox.shell import SandboxError
from tests.support.deployment import RECONCILE, Deployment, wait_for

CHARM = "/var/lib/juju/agents/unit-github-runner-0/charm"
NOTES = "/root/boundaries"
WANTED = 3
KEY = "user.github-runner."


@contextmanager
def instrumented(found: Deployment) -> Iterator[None]:
    """The charm's processes can be told where to die."""
    custom = f"{CHARM}/lib/sitecustomize.py"
    found.machine.push(f"{CHARM}/lib/boundaries.py", Path(__file__).with_name("boundaries.py").read_text())
    found.machine.exec("sh", "-c", f"echo 'import boundaries' >> {custom}")
    try:
        yield
    finally:
        found.machine.exec("sed", "-i", "/^import boundaries$/d", custom)


def prepare(found: Deployment, mark: str) -> None:
    """One runner that finished its job, one whose application died in its job, one outdated; none to spare."""
    names = found.wait_online(WANTED)
    finished = found.job("true", workflow=f"{mark} finished")["runner_name"]
    crashed = found.job("sleep 600", status="in_progress", workflow=f"{mark} crashed")["runner_name"]
    found.wait_gone(finished)
    wait_for(lambda: "pre-job" in found.inside(crashed, "ls /metrics-exchange", check=False), "the crashed job's start")
    found.kill_agent(crashed)
    [outdated] = set(names) - {finished, crashed}
    found.machine.exec("lxc", "config", "set", outdated, f"{KEY}fingerprint=another")
    wait_for(lambda: found.online() == [outdated], f"GitHub noticing {crashed}, and {outdated} alone online")


def prepared(found: Deployment, mark: str) -> str:
    """The world made ready, at the second attempt if need be; the mark its jobs bear."""
    try:
        prepare(found, mark)
    except (AssertionError, SandboxError) as error:
        print(f"  not prepared, once more: {error}", flush=True)
        found.reconcile()
        mark += " again"
        prepare(found, mark)
    return mark


def passes(found: Deployment, **environment: object) -> int:
    """One pass; its exit code."""
    words = " ".join(f"{name}={value}" for name, value in environment.items())
    return found.unit.exec(f"{words} {RECONCILE}").returncode


def record(found: Deployment) -> list[str]:
    """The boundaries of one undisturbed pass."""
    found.machine.exec("rm", "-f", NOTES)
    mark = prepared(found, "recorded")
    assert passes(found, BOUNDARY_NOTES=NOTES) == 0
    assert not violations(found, mark)
    return found.machine.exec("cat", NOTES).splitlines()


def violations(found: Deployment, mark: str) -> list[str]:
    """What is wrong after the pass that follows: anything missing, left over, or told too often."""
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
    for kind, workflow, number in events(found, mark):
        if not 1 <= number <= 2:
            wrong.append(f"{number} x {kind} of {workflow}")
    return wrong


def events(found: Deployment, mark: str) -> list[tuple[str, str, int]]:
    """How often each event that must be there is there."""
    there = [(event["event"], event["workflow"]) for event in found.events() if "workflow" in event]
    expected = [("runner_start", "finished"), ("runner_stop", "finished"), ("runner_start", "crashed")]
    return [(kind, f"{mark} {which}", there.count((kind, f"{mark} {which}"))) for kind, which in expected]


def kill_at(found: Deployment, point: int, mark: str) -> tuple[bool, list[str], int]:
    """Whether the pass was killed there, what is wrong after the next pass, and how many events were repeated."""
    mark = prepared(found, mark)
    killed = passes(found, BOUNDARY_KILL=point) != 0
    found.reconcile()
    wrong = violations(found, mark)
    if wrong:
        # One that did not converge must not spoil those that follow.
        found.reconcile()
    return killed, wrong, sum(number - 1 for _, _, number in events(found, mark))


def spread(total: int, number: int) -> Sequence[int]:
    """So many points of 1 … total, evenly."""
    return range(1, total + 1) if number >= total else [1 + index * total // number for index in range(number)]


def run(found: Deployment, points: int) -> dict[str, object]:
    """Kill at so many boundaries; figures and what was wrong, by boundary."""
    with instrumented(found):
        boundaries = record(found)
        tried = converged = repeated = 0
        wrong: dict[str, list[str]] = {}
        for point in spread(len(boundaries), points):
            try:
                killed, found_wrong, again = kill_at(found, point, f"kill {point}")
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
