"""A unit recovers by itself: failed set-ups, late storage, lost reboots, lost parts, a controller that is away."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import github
from sandbox.lab.lxd_setup import bridge_address
from sandbox.lab.machine import Machine
from tests.support.deployment import PAT, REPOSITORY, Deployment, deployed, left_over, undeploy, wait_for

MARKERS = "/var/lib/github-runner/unit-github-runner-0"
TIMER, SERVICE = "ghro.reconcile-runners.github-runner-0.timer", "ghro.reconcile-runners.github-runner-0.service"


# As soon as the status says that they are waited for.
RELEASE_APT_LOCKS = """
until grep -qs "holds apt's lock" /var/lib/juju/sandbox/state.json; do sleep 0.2; done
systemctl stop apt-locks
"""


class Fixture:
    """Deploys units that a test may ruin, and takes them away."""

    def __init__(self, packed: Path, hub: github.GitHub) -> None:
        self.packed, self.hub, self.found = packed, hub, list[Deployment]()

    def deploy(self, **arguments: Any) -> Deployment:
        self.found.append(deployed("recovery", self.packed, self.hub, {}, **arguments))
        return self.found[-1]


@pytest.fixture
def recovery(packed: Path, hub: github.GitHub) -> Iterator[Fixture]:
    found = Fixture(packed, hub)
    yield found
    for one in found.found:
        one.control.remove_faults()
        undeploy(one)
        for runner in one.control.runners():
            one.control.remove_runner(runner["id"])


@pytest.fixture(scope="module")
def ungranted(packed: Path) -> Iterator[Deployment]:
    """A unit with a GitHub of its own, whose token is in a secret that nobody has granted yet."""
    with github.serve(
        bridge_address(),
        0,
        [PAT],
        [REPOSITORY],
        ["octo-org"],
        settings=github.Settings(grace=2.5, lost_job=2.5, poll=1),
    ) as hub:
        found = deployed("serves", packed, hub, {"token": "", "virtual-machines": 1})
        found.unit.set_config({"token-secret": found.unit.add_secret("github", {"token": PAT})})
        yield found
        undeploy(found)


@pytest.fixture
def serving(ungranted: Deployment) -> Deployment:
    """The same unit with one runner, for tests that leave it as they found it."""
    if ungranted.status()[0] == "blocked":
        ungranted.unit.grant_secret("github")
        ungranted.unit.update_status()
    ungranted.wait_online(1)
    return ungranted


def active(deployment: Deployment, unit: str) -> bool:
    return deployment.machine.call("systemctl", "is-active", unit).stdout.strip() == "active"


def tick(deployment: Deployment) -> tuple[str, str]:
    """What the timer does, now; the status after it."""
    deployment.reconcile()
    return deployment.status()


def broken_apt(machine: Machine) -> None:
    """A machine that lacks a program, whose apt reaches no mirror, and whose LXD does not run."""
    machine.exec("dpkg", "--purge", "logrotate")
    machine.push("/etc/apt/apt.conf.d/99-broken", 'Acquire::http::Proxy "http://127.0.0.1:9";\n')
    machine.exec("rm", "-rf", "/var/lib/apt/lists")
    machine.exec("systemctl", "mask", "--quiet", "lxd.service", "lxd.socket")
    machine.exec("systemctl", "stop", "--job-mode=ignore-dependencies", "lxd.socket", "lxd.service")


def lose_the_image(unit: Deployment) -> str:
    """Take the image's alias away, and repair what failed before. Its build fails. Returns its fingerprint."""
    target = str(unit.lxd("images/aliases/jammy")["target"])
    unit.machine.exec("lxc", "image", "alias", "delete", "jammy")
    unit.machine.exec("rm", "/usr/local/sbin/mkfs.btrfs")
    unit.unit.update_status()
    assert "image jammy: being built" in unit.status()[1]
    failure = ("test", "-e", "/var/lib/github-runner/build-image.failure")
    wait_for(lambda: not unit.machine.call(*failure).returncode, "failure")
    assert "image jammy: creating the builder from https" in tick(unit)[1]
    assert "being built again" in unit.status()[1]
    assert unit.instances() == [] or unit.instances() == ["github-runner-image-builder"]
    return target


@pytest.mark.timeout(280)
def test_each_step_of_the_set_up_fails_once(recovery: Fixture) -> None:
    """Every hook of a deployment fails; then update-status and the timer alone bring the unit to its runners.

    One step after the other fails and is repaired from outside. No option changes, nothing is resolved.
    """
    unit = recovery.deploy(on_machine=broken_apt)
    machine = unit.machine
    status, message = unit.status()
    assert (status, "the packages logrotate cannot be installed" in message) == ("waiting", True), message
    assert active(unit, TIMER)

    machine.exec("rm", "/etc/apt/apt.conf.d/99-broken")
    unit.unit.update_status()
    assert "LXD does not answer and its snap cannot be installed" in unit.status()[1]

    machine.exec("ip", "link", "add", "lxdbr0", "type", "bridge")
    machine.exec("systemctl", "unmask", "--quiet", "lxd.service", "lxd.socket")
    machine.exec("systemctl", "start", "lxd.socket")
    assert "lxdbr0 exists" in tick(unit)[1]

    machine.exec("ip", "link", "delete", "lxdbr0")
    for program in ("mkfs.btrfs", "ip"):
        machine.push(f"/usr/local/sbin/{program}", "#!/bin/sh\necho broken disk >&2\nexit 1\n", 0o755)
    unit.unit.update_status()
    assert "ip -json -4 route show table all failed" in unit.status()[1]

    machine.exec("rm", "/usr/local/sbin/ip")
    assert "broken disk" in tick(unit)[1]

    target = lose_the_image(unit)

    machine.exec("lxc", "image", "alias", "create", "jammy", target)
    assert tick(unit)[0] == "active"
    # GitHub lists the runners of other tests' units, too.
    wait_for(lambda: len(set(unit.online()) & set(unit.instances())) == 2, "two runners online")
    assert machine.call("test", "-e", f"{MARKERS}/set-up").returncode == 0


def test_a_secret_that_is_granted_later(ungranted: Deployment) -> None:
    """Deploy, grant an hour later, change nothing: Juju fires no event for a grant, and update-status is enough."""
    unit = ungranted
    uri = unit.unit.config()["token-secret"]["value"]
    status, message = unit.status()
    assert (status, f"juju grant-secret {uri} github-runner" in message) == ("blocked", True), message

    unit.unit.grant_secret("github")
    unit.unit.fail_tool("secret-get", "cannot access secret: connection is shut down")
    unit.unit.update_status()
    assert unit.status()[0] == "waiting"
    assert "connection is shut down" in unit.status()[1]

    unit.unit.fail_tool("secret-get")
    unit.unit.update_status()
    assert unit.status()[0] == "active", unit.status()
    unit.wait_online(1)
    assert active(unit, TIMER)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("late", ["storage", "lxd"])
def test_what_comes_late_after_a_reboot(serving: Deployment, late: str) -> None:
    """Juju's storage or LXD is there only after `start` has failed: the next reconcile goes on with the same pool."""
    unit = serving
    images = unit.machine.exec("sh", "-c", "ls /storage/juju")
    if late == "storage":
        unit.unit.late_storage(600)
    else:
        unit.machine.exec("systemctl", "mask", "--quiet", "lxd.service", "lxd.socket")
    # Not Unit.reboot: a machine without LXD is not ready for it.
    before = unit.machine.boot_mark()
    unit.machine.exec("systemctl", "reboot", check=False)
    wait_for(lambda: unit.machine.boot_mark() not in (0, before), "the reboot")
    wait_for(
        lambda: unit.machine.call("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"), "it"
    )
    unit.unit.wait_idle()
    assert unit.status()[0] == "waiting", unit.status()
    if late == "storage":
        assert "no storage is mounted at /storage/juju yet" in unit.status()[1]
        assert tick(unit)[0] == "waiting"
        source = "/var/lib/juju/storage/fs/runner-0"
        unit.machine.exec("mount", "--bind", source, "/storage/juju")
    else:
        unit.machine.exec("systemctl", "unmask", "--quiet", "lxd.service", "lxd.socket")
        unit.machine.exec("systemctl", "start", "lxd.socket")

    assert tick(unit)[0] == "active", unit.status()
    unit.wait_online(1)
    assert unit.machine.exec("sh", "-c", "ls /storage/juju") == images
    assert unit.lxd("storage-pools/runner")["status"] == "Created"


@pytest.mark.timeout(280)
def test_reboots_that_are_lost_or_late_and_an_agent_that_is_away(serving: Deployment) -> None:
    """Ten minutes without runners, then the unit serves on; and without its controller nothing ends but what ends."""
    unit = serving
    unit.unit.reboot_mode("lost")
    unit.machine.exec("touch", "/var/run/reboot-required")

    assert tick(unit) == ("maintenance", "Rebooting for a pending update")
    assert unit.instances() == []
    assert tick(unit)[0] == "maintenance"
    marker = f"{MARKERS}/reboot-requested"
    boot = unit.machine.exec("cat", marker).split()[1]
    unit.machine.exec("sh", "-c", f"echo {int(time.time()) - 660} {boot} > {marker}")
    status, message = tick(unit)
    assert status == "active"
    assert "a reboot for a pending update was requested 11 minutes ago and did not happen" in message
    unit.wait_online(1)
    assert tick(unit)[0] == "active"

    before = unit.online()
    unit.unit.agent_down()
    done = unit.machine.call("systemctl", "start", SERVICE)
    assert done.returncode != 0
    assert unit.online() == before
    unit.machine.exec("sh", "-c", f"echo {int(time.time()) - 7200} > {MARKERS}/reconciled")
    unit.unit.agent_up()
    assert unit.machine.call("systemctl", "start", SERVICE).returncode == 0
    assert "no reconcile from" in unit.status()[1]
    assert unit.online() == before

    unit.machine.exec("rm", "-rf", MARKERS)
    unit.machine.exec("rm", "/var/run/reboot-required")
    unit.unit.reboot_mode("normal")
    assert tick(unit)[0] == "active"
    assert unit.online() == before


@pytest.fixture(scope="module")
def first_boot(packed: Path) -> Iterator[Deployment]:
    """A unit on a machine without btrfs that updated itself while the charm was installed.

    The application has the longest name that Juju's own file names allow.
    """

    def prepare(machine: Machine) -> None:
        machine.exec("sh", "-c", "dpkg --purge logrotate; rm $(command -v mkfs.btrfs)")
        machine.hold_apt_locks(120)
        machine.exec("systemd-run", "--quiet", "sh", "-c", RELEASE_APT_LOCKS)

    with github.serve(bridge_address(), 0, [PAT], [REPOSITORY], ["octo-org"]) as hub:
        name = "a-very-" + "long-" * 12 + "name"
        found = deployed("boots", packed, hub, {"virtual-machines": 1}, on_machine=prepare, app=name)
        yield found
        undeploy(found)


@pytest.mark.lifecycle
def test_locks_of_a_first_boot_are_waited_for(first_boot: Deployment) -> None:
    """A machine that updates itself while the charm is installed: the set-up waits, says so, and goes on."""
    assert first_boot.status()[0] == "active", first_boot.status()
    assert "waiting for another process that holds apt's lock" in json.dumps(first_boot.unit.state()["history"])
    first_boot.wait_online(1)


@pytest.mark.lifecycle
@pytest.mark.timeout(200)
def test_removal_with_a_pool_of_plain_folders(first_boot: Deployment) -> None:
    """Without btrfs nothing holds the storage: Juju unmounts it after its detaching, and nothing is left on it.

    The names of runners of an application with a long name are cut.
    """
    unit = first_boot
    [name] = unit.wait_online(1)
    assert len(name) <= 63
    assert unit.unit.run("check-runners")["results"]["runners"] == name
    assert unit.lxd("storage-pools/runner")["driver"] == "dir"
    unit.unit.integrate("debug-ssh", {"host": "192.0.2.10"})

    unit.unit.remove_application()

    assert unit.instances() == unit.registered() == []
    assert unit.machine.exec("ls", "-A", "/var/lib/juju/storage/fs/runner-0") == ""
    assert left_over(unit) == []


def test_lost_parts_come_back(deployment: Deployment) -> None:
    """Rules of the ACL, the ACL of the bridge, a pool that LXD lost, a profile: one reconcile makes each again."""
    deployment.keep(0, denylist="203.0.113.0/24")
    machine = deployment.machine
    machine.exec("lxc", "network", "acl", "rule", "remove", "github-runner-0", "egress", "destination=203.0.113.0/24")
    deployment.reconcile()
    rules = deployment.lxd("network-acls/github-runner-0")["egress"]
    assert "203.0.113.0/24" in [rule["destination"] for rule in rules]

    machine.exec("lxc", "network", "unset", "lxdbr0", "security.acls")
    deployment.reconcile()
    assert deployment.lxd("networks/lxdbr0")["config"]["security.acls"] == "github-runner-0"

    machine.exec("lxc", "profile", "device", "set", "default", "eth0", "security.port_isolation=false")
    deployment.reconcile()
    assert deployment.lxd("profiles/default")["devices"]["eth0"]["security.port_isolation"] == "true"

    machine.exec("lxc", "profile", "delete", "runner")
    deployment.reconcile()
    assert deployment.lxd("profiles/runner")["devices"]["root"]["pool"] == "runner"

    machine.exec("systemctl", "stop", "ghro.build-image.github-runner-0.timer")
    machine.exec("dpkg", "--purge", "logrotate")
    deployment.reconcile()
    assert active(deployment, "ghro.build-image.github-runner-0.timer")
    assert machine.call("logrotate", "--version").returncode == 0
    assert machine.call("test", "-e", "/etc/logrotate.d/github-runner-metrics").returncode == 0

    machine.exec("systemctl", "stop", "run-github\\x2drunner\\x2dpool.mount")
    machine.exec("systemctl", "restart", "lxd.service")
    deployment.reconcile()
    assert deployment.lxd("storage-pools/runner")["status"] == "Created"
    assert len(deployment.keep(1)) == 1


def test_a_runner_group_that_does_not_exist(deployment: Deployment) -> None:
    """It blocks with its name, costs no runner, and every action fails with the reason, in any status."""
    deployment.control.add_organisation("octo-org", ["builders"])
    before = deployment.keep(1, path="octo-org", group="builders")

    deployment.unit.set_config({"group": "nobody"})

    status, message = deployment.status()
    reason = "group: octo-org has no runner group 'nobody' that GitHub shows; create it at GitHub, or set group"
    assert (status, message) == ("blocked", reason)
    for action in ("reconcile-runners", "flush-runners"):
        task = deployment.unit.run(action)
        assert (task["status"], task["message"]) == ("failed", message)
        assert deployment.instances() == before
    forced = deployment.unit.run("flush-runners", {"force": True})
    assert (forced["status"], forced["message"]) == ("failed", message)
    assert deployment.instances() == []


def test_actions_of_a_unit_in_error(deployment: Deployment) -> None:
    """A hook that failed leaves the actions to the operator, and they give results or reasons."""
    deployment.keep(1)
    deployment.unit.model_config({"automatically-retry-hooks": "false"})
    deployment.unit.fail_tool("config-get", "connection is shut down")
    assert deployment.unit.update_status()["status"] == "error"
    deployment.unit.fail_tool("config-get")
    try:
        counts = deployment.unit.run("check-runners")
        deployment.control.remove_token(PAT)
        failed = deployment.unit.run("reconcile-runners")
    finally:
        deployment.control.add_token(PAT)
        deployment.unit.resolved()
        deployment.unit.model_config({"automatically-retry-hooks": "true"})

    assert (counts["status"], counts["results"]["online"]) == ("completed", "1")
    assert failed["status"] == "failed"
    assert "401" in failed["message"]
    assert "Traceback" not in json.dumps([counts, failed])
