"""Two units of an application and a second application share bursts, each unit on a machine of its own."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox import github
from sandbox.github.control import GitHubControl
from sandbox.juju.unit import Unit
from sandbox.lab.machine import Machine
from tests.support.deployment import REPOSITORY, Deployment, deployed, undeploy, wait_for

pytestmark = pytest.mark.lifecycle

# GitHub's own times are 50, 50 and 300 seconds.
SHORT = {"hold": 5.0, "session_life": 5.0, "reassign_after": 15.0}
LABEL = "shared"
# A job of the first burst runs until its runner has this file: no runner is free for a second one before all run.
GO = "/home/ubuntu/go"
OPTIONS = {"scaling": "demand", "virtual-machines": 2, "cpu-overcommit": "3", "labels": LABEL}


@dataclass
class Fleet:
    """All units, and the first one's view of GitHub."""

    units: list[Deployment]

    def listening(self) -> list[str]:
        """The names of the units whose scale sets have a session."""
        return sorted(found["owner"] for found in self.units[0].control.scale_sets() if found["owner"])

    def assigned(self, unit: str) -> int:
        """How many jobs wait for a unit's runners, or run on them."""
        found = [each for each in self.units[0].control.scale_sets() if each["owner"] == unit]
        return sum(int(each["statistics"]["totalAssignedJobs"]) for each in found)

    def jobs(self, number: int, command: str) -> list[int]:
        """The identifiers of jobs, queued at once."""
        queued = self.units[0].control.add_job(REPOSITORY, command, count=number, labels=[LABEL])
        return [job["id"] for job in queued]

    def runners(self, jobs: list[int], status: str = "completed") -> list[str]:
        """The runner of each job, once all of them have that status."""
        found = [self.units[0].control.wait_job(job, status, timeout=120) for job in jobs]
        assert [job["conclusion"] for job in found] == [None if status == "in_progress" else "success"] * len(jobs)
        return [job["runner_name"] for job in found]


@pytest.fixture(scope="module")
def fleet(packed: Path, hub: github.GitHub) -> Iterator[Fleet]:
    """github-runner/0, github-runner/1 and other-runner/0, which make runners where jobs wait."""

    def beside(first: Deployment) -> Deployment:
        machine = Machine("many-1")
        machine.destroy()
        machine.create()
        unit = Unit(machine, number=1)
        unit.deploy_beside(first.unit, packed)
        return Deployment(machine, unit, hub)

    control = GitHubControl(hub.url, ca=hub.ca)
    before = control.settings()
    control.settings(**SHORT)
    with ThreadPoolExecutor() as pool:
        first, other = pool.map(
            lambda one: deployed(one[0], packed, hub, OPTIONS, app=one[1]),
            [("many-0", "github-runner"), ("many-2", "other-runner")],
        )
    found = Fleet([first, beside(first), other])
    yield found
    control.settings(**{name: before[name] for name in SHORT})
    for deployment in found.units:
        if deployment.machine.exists():
            undeploy(deployment)


def unit_of(runner: str) -> str:
    """The unit that a runner belongs to, by its name."""
    return runner.rsplit("-", 1)[0]


@pytest.mark.timeout(280)
def test_units_and_applications_share_a_burst(fleet: Fleet) -> None:
    """Each job has a runner of its own, as many on each machine as it has room for, and nothing is left."""
    wait_for(lambda: len(fleet.listening()) == 3, "a session of each unit")

    jobs = fleet.jobs(6, f"until test -e {GO}; do sleep 0.1; done")
    runners = fleet.runners(jobs, "in_progress")

    assert len(set(runners)) == 6
    assert Counter(map(unit_of, runners)) == {"github-runner-0": 2, "github-runner-1": 2, "other-runner-0": 2}
    for each in fleet.units:
        for name in each.instances():
            each.inside(name, f"touch {GO}")
    assert fleet.runners(jobs) == runners
    wait_for(lambda: not any(each.instances() for each in fleet.units), "the end of all runners")


@pytest.mark.timeout(280)
def test_jobs_of_a_machine_that_is_gone_run_on_the_others(fleet: Fleet) -> None:
    """After GitHub's re-assignment, each once. Its sets, which stay, take no further jobs."""
    gone, *left = fleet.units[1], fleet.units[0], fleet.units[2]
    control = fleet.units[0].control
    # Its agent hears of jobs, and no reconcile makes runners for them.
    gone.unit.agent_down()
    jobs = fleet.jobs(6, "true")
    wait_for(lambda: fleet.assigned("github-runner/1") == 2, "two jobs of the unit")

    gone.machine.destroy()

    names = fleet.runners(jobs)
    assert len(set(names)) == 6
    assert {unit_of(name) for name in names} == {"github-runner-0", "other-runner-0"}
    waits = sorted(control.wait_job(job)["queue_time"] for job in jobs)
    assert SHORT["reassign_after"] <= waits[-2] <= waits[-1] < SHORT["reassign_after"] + gone.patience
    assert len(set(fleet.runners(fleet.jobs(2, "true")))) == 2
    # Reconciles for the last jobs may run still.
    wait_for(lambda: [each.status()[0] for each in left] == ["active", "active"], "active units")
