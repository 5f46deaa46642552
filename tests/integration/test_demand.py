"""Runners where jobs wait for them: the agent, GitHub's runner scale sets and reconciles together, in several sizes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import github
from tests.support.deployment import REPOSITORY, Deployment, deployed, left_over, undeploy, wait_for

pytestmark = pytest.mark.lifecycle

AGENT = "github-runner-agent-github-runner-0.service"
FLAVORS = """
small: {max: 3}
large: {vm-cpu: 2, vm-memory: 2GiB, labels: large, max: 1}
"""


@pytest.fixture(scope="module")
def demand(packed: Path, hub: github.GitHub) -> Iterator[Deployment]:
    """A unit that makes runners only where jobs wait, for a GitHub App, with metrics on."""
    found = deployed("demand", packed, hub, {"virtual-machines": 0, "cpu-overcommit": "3"})
    found.unit.integrate("cos-agent")
    found.use_app("demand")
    found.unit.set_config({"flavors": FLAVORS, "scaling": "demand", "replace-on-exit": True})
    yield found
    undeploy(found)


def sets(demand: Deployment) -> dict[str, dict[str, Any]]:
    """The runner scale sets at GitHub by flavour."""
    return {found["name"].rpartition("-")[2]: found for found in demand.control.scale_sets()}


def listening(demand: Deployment) -> bool:
    """Whether both sets have a session."""
    found = sets(demand)
    return len(found) == 2 and all(each["owner"] for each in found.values())


def finished(demand: Deployment, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The jobs, once all of them are over."""
    return [demand.control.wait_job(job["id"], timeout=120) for job in jobs]


@pytest.mark.timeout(280)
def test_a_burst_gets_runners_which_vanish(demand: Deployment) -> None:
    """Nothing runs without a job; each job of a burst gets an instance of its own, which is gone after it."""
    wait_for(lambda: listening(demand), "a session for each flavour")
    assert demand.instances() == demand.registered() == []

    jobs = [demand.control.add_job(REPOSITORY, "sleep 1") for _ in range(3)]
    ended = finished(demand, jobs)

    assert [job["conclusion"] for job in ended] == ["success"] * 3
    assert len({job["runner_name"] for job in ended}) == 3
    wait_for(lambda: demand.instances() == demand.registered() == [], "the end of all runners")


@pytest.mark.timeout(280)
def test_a_label_chooses_the_size(demand: Deployment) -> None:
    """A job that asks for a flavour's label runs on an instance of that flavour's size, and its events say so."""
    job = demand.control.add_job(REPOSITORY, "nproc; until [ -e /tmp/go ]; do sleep 0.2; done", labels=["large"])
    name = demand.control.wait_job(job["id"], "in_progress")["runner_name"]

    config = demand.lxd(f"instances/{name}")["expanded_config"]
    assert (config["limits.cpu"], config["limits.memory"]) == ("2", "2GiB")
    assert config["user.github-runner.flavor"] == "large"
    assert config["user.github-runner.scale-set"] == str(sets(demand)["large"]["id"])
    table = demand.unit.run("check-runners", {"format": "json"})
    [row] = json.loads(table["results"]["runners"])
    assert (row["flavor"], row["state"]) == ("large", "busy")
    demand.inside(name, "touch /tmp/go")
    assert finished(demand, [job])[0]["conclusion"] == "success"
    wait_for(lambda: demand.events("runner_stop")[-1].get("flavor_name") == "large", "the job's metrics")


@pytest.mark.timeout(280)
def test_a_killed_agent_loses_nothing(demand: Deployment) -> None:
    """A job that arrives while the agent is dead gets its runner from the next session."""
    wait_for(lambda: listening(demand), "a session for each flavour")
    demand.control.settings(session_life=10.0)
    demand.machine.exec("systemctl", "kill", "--signal=KILL", AGENT)
    job = demand.control.add_job(REPOSITORY, "true")

    assert demand.control.wait_job(job["id"], timeout=150)["conclusion"] == "success"


@pytest.mark.timeout(280)
def test_the_agents_file_is_closed_and_goes_with_demand(demand: Deployment) -> None:
    """What the agent knows is root's alone, has no private key, and goes with the sets in fixed mode."""
    folder = "/run/github-runner"
    modes = demand.machine.exec("sh", "-c", f"stat -c '%U %a %n' {folder} {folder}/*")
    assert all(line.split()[:2] in (["root", "600"], ["root", "700"]) for line in modes.splitlines()), modes
    assert demand.machine.exec("grep", "-rl", "PRIVATE KEY", folder, check=False) == ""
    assert len(sets(demand)) == 2

    demand.unit.set_config({"scaling": "fixed", "flavors": "small: {count: 1}"})

    wait_for(lambda: len(demand.online()) == 1, "the fixed runner")
    wait_for(lambda: sets(demand) == {}, "the end of the sets")
    assert "token" not in demand.machine.exec("sh", "-c", f"cat {folder}/*.json 2>/dev/null || true")


@pytest.mark.timeout(280)
def test_a_removed_unit_leaves_nothing(demand: Deployment) -> None:
    """A unit in demand mode that is removed takes its sets and its agent with it."""
    demand.unit.set_config({"scaling": "demand", "flavors": FLAVORS})
    wait_for(lambda: listening(demand), "a session for each flavour", 120)

    demand.unit.remove_application()

    assert sets(demand) == {}
    assert demand.registered() == []
    assert left_over(demand) == []
