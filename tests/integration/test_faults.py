"""LXD and the host misbehave, and the charm is killed: short forms of what `make faults` does at length."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox import github
from sandbox.lab.lxd_setup import bridge_address
from tests.faults import attacks, kill
from tests.support.deployment import PAT, REPOSITORY, Deployment, deployed, undeploy, wait_for

pytestmark = pytest.mark.lifecycle
LOG = "/var/log/github-runner-metrics.log"


@pytest.fixture(scope="module")
def deployment(packed: Path) -> Iterator[Deployment]:
    """A unit whose GitHub notices a lost runner within seconds."""
    with github.serve(
        bridge_address(),
        0,
        [PAT],
        [REPOSITORY],
        ["octo-org"],
        settings=github.Settings(grace=2.5, lost_job=2.5, poll=1),
    ) as hub:
        found = deployed("faults", packed, hub, {"virtual-machines": 2})
        found.unit.integrate("cos-agent")
        yield found
        undeploy(found)


@contextmanager
def reconciling(deployment: Deployment) -> Iterator[None]:
    """A reconcile that goes on while the block is at its mischief, and has ended after it."""
    thread = threading.Thread(target=deployment.reconcile)
    thread.start()
    try:
        yield
    finally:
        thread.join(120)
    assert not thread.is_alive()


def running(deployment: Deployment) -> list[str]:
    return [item["name"] for item in deployment.lxd("instances?recursion=1") if item["status"] == "Running"]


def empty(deployment: Deployment, number: int) -> None:
    """No runner is there and a number is wanted: the next reconcile makes them."""
    deployment.keep(number)
    for name in deployment.instances():
        deployment.machine.exec("lxc", "delete", "--force", name)
    wait_for(lambda: deployment.online() == [], "GitHub noticing")


def test_lxd_restarted_in_the_middle_of_a_creation(deployment: Deployment) -> None:
    """The reconcile ends, says what went wrong, and leaves nothing that the next one does not repair."""
    empty(deployment, 2)

    with reconciling(deployment):
        wait_for(lambda: running(deployment), "the first instance")
        deployment.machine.exec("systemctl", "restart", "lxd.service")

    assert deployment.status()[0] in ("active", "waiting")
    deployment.reconcile()
    deployment.wait_online(2)
    assert deployment.status()[0] == "active"
    assert deployment.storages() == [f"{name}.img" for name in deployment.instances()]


def test_one_that_dies_while_it_is_set_up_costs_no_other(deployment: Deployment) -> None:
    """Its failure is in the status with its name and step, the others are made, and it is made up for."""
    empty(deployment, 3)

    with reconciling(deployment):
        victim = wait_for(lambda: running(deployment), "the first instance")[0]
        deployment.machine.exec("lxc", "stop", "--force", victim)

    status, message = deployment.status()
    assert status == "active"
    assert message.startswith("2 of 3 runners")
    assert victim in message
    assert len(deployment.instances()) == 2
    deployment.reconcile()
    assert victim not in deployment.wait_online(3)
    assert deployment.storages() == [f"{name}.img" for name in deployment.instances()]


def test_one_that_never_answers_is_not_taken_for_dead(deployment: Deployment) -> None:
    """A guest that hangs keeps its place and is in the status; it goes on where it stopped."""
    name, other = deployment.keep(2)
    deployment.machine.exec("lxc", "pause", name)
    try:
        wait_for(lambda: deployment.online() == [other], "GitHub noticing")
        deployment.reconcile()
        assert deployment.instances() == sorted([name, other])
        assert deployment.status()[1].startswith("2 runners: 1 idle, 0 busy, 1 starting or offline")
    finally:
        deployment.machine.exec("lxc", "start", name)
    wait_for(lambda: len(deployment.online()) == 2, "its coming back")
    deployment.reconcile()
    assert deployment.status() == ("active", "2 runners: 2 idle, 0 busy (test mode: containers)")


def test_instance_that_cannot_be_removed_keeps_its_place(deployment: Deployment) -> None:
    """Its name and the reason are in the status, nothing is made in its place, and it goes once it can."""
    name, other = deployment.keep(2)
    pool = "/var/lib/lxd/storage-pools/runner"
    number = f"btrfs subvolume show {pool}/containers/{name} | awk '/Subvolume ID:/ {{ print $3 }}'"
    # The default subvolume cannot be deleted.
    deployment.machine.exec("sh", "-c", f"btrfs subvolume set-default $({number}) {pool}")
    try:
        deployment.machine.exec("lxc", "stop", "--force", name, check=False)
        wait_for(lambda: deployment.online() == [other], "GitHub noticing")
        deployment.reconcile()
        status, message = deployment.status()
        there = deployment.instances()
    finally:
        deployment.machine.exec("btrfs", "subvolume", "set-default", "5", pool)
    assert there == sorted([name, other])
    assert status == "active"
    assert f"{name}: the instance cannot be removed" in message
    deployment.reconcile()
    assert name not in deployment.wait_online(2)


def test_full_pool_costs_nobody_who_runs(deployment: Deployment) -> None:
    """What cannot be made is taken back and named, runners that are there go on, and with room it is made."""
    [before] = deployment.keep(1)
    pool = "/run/github-runner-pool"
    fill = f"{pool}/fill"
    # What was deleted before gives its room back in the background.
    deployment.machine.exec("sh", "-c", f"btrfs filesystem sync {pool} && btrfs subvolume sync {pool}")
    # Only accounted for, not written: the disk of the machine itself stays empty.
    sizes = "4G 1G 256M 64M 16M 4M 1M 64K 4K"
    piece = f"fallocate -l $size $(mktemp {fill}.XXXXXX) 2> /dev/null"
    try:
        # Twice: the file system makes room for the data of a moment ago.
        for _ in range(2):
            deployment.machine.exec(
                "sh", "-c", f"for size in {sizes}; do while {piece}; do :; done; done; sync -f {pool}"
            )
        deployment.unit.set_config({"virtual-machines": 2})
        status, message = deployment.status()
        there = deployment.instances()
    finally:
        deployment.machine.exec("sh", "-c", f"rm -f {fill}.*")
    assert there == [before]
    assert (status, message[:16]) == ("active", "1 of 2 runners: ")
    assert "failed" in message
    deployment.reconcile()
    assert before in deployment.wait_online(2)


def test_neighbours_are_left_alone(deployment: Deployment) -> None:
    """Instances and registrations of other models, and of applications with names that begin like the unit's."""
    [name] = deployment.keep(1)
    unique = name.removeprefix("github-runner-0-")
    model = "0123abcd" + unique[8:]
    apps = ("github-runner-0-0", "github-runner-00", "github-runner-01", "github-0", "xgithub-runner-0")
    neighbours = [*(f"{app}-{unique}" for app in apps), f"github-runner-0-{model}"]
    for neighbour in neighbours:
        # With a key of this charm: without any, the last one would be a runner of the previous charm on this unit.
        key = f"user.github-runner.created={time.time()}"
        deployment.machine.exec("lxc", "init", "--ephemeral", "--storage=runner", "--config", key, "jammy", neighbour)
        deployment.control.add_runner(REPOSITORY, neighbour)
    try:
        deployment.reconcile()
        deployment.unit.set_config({"virtual-machines": 0})
        assert deployment.instances() == sorted(neighbours)
        assert sorted(runner["name"] for runner in deployment.control.runners()) == sorted(neighbours)
    finally:
        for neighbour in neighbours:
            deployment.machine.exec("lxc", "delete", "--force", neighbour)
        for runner in deployment.control.runners():
            deployment.control.remove_runner(runner["id"])


def test_log_that_is_full_costs_no_event(deployment: Deployment) -> None:
    """No half line and no crash: what could not be written is written when there is room again, once."""
    deployment.keep(1)
    before = deployment.events()
    deployment.machine.exec("sh", "-c", "mkdir -p /mnt/full && mount -t tmpfs -o size=4k tmpfs /mnt/full")
    deployment.machine.exec("sh", "-c", "head -c 4000 /dev/zero | tr '\\0' '\\n' > /mnt/full/log")
    deployment.machine.exec("mount", "--bind", "/mnt/full/log", LOG)
    try:
        name = deployment.job("true", workflow="full log")["runner_name"]
        deployment.wait_gone(name)
        deployment.reconcile()
        written = deployment.machine.exec("cat", LOG).split("\n")
        kept = deployment.storages()
    finally:
        deployment.machine.exec("sh", "-c", f"umount {LOG}; umount /mnt/full")

    assert all(json.loads(line) for line in written if line)
    assert f"{name}.img" in kept
    deployment.reconcile()
    after = [event["event"] for event in deployment.events()[len(before) :] if event.get("workflow") == "full log"]
    assert after == ["runner_start", "runner_stop"]
    assert f"{name}.img" not in deployment.storages()


@pytest.mark.timeout(300)
def test_killed_anywhere_it_converges(deployment: Deployment) -> None:
    """After a reconcile that was killed the next one brings what is wanted, leaves nothing over, and loses no event.

    A sample of `make faults`, which kills at every boundary.
    """
    deployment.keep(kill.WANTED)

    found = kill.run(deployment, points=2)

    assert found["killed"] == found["converged"] == 2, found


def test_attacks_of_a_job_hold(deployment: Deployment) -> None:
    """A sample of `make faults`: an instance that a job wants to keep."""
    deployment.keep(1)

    attacks.a_forged_worker(deployment)
