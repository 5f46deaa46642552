"""A Juju machine on the real LXD with the charm on it, and a GitHub beside it."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coverage import Coverage

from sandbox import github
from sandbox.github.control import GitHubControl
from sandbox.juju.unit import Unit
from sandbox.lab.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
PAT = "ghp_0123456789abcdefghijklmnopqrstuvwxyzAB"
REPOSITORY = "octo-org/demo"
RECONCILE = "JUJU_DISPATCH_PATH=reconcile-runners ./dispatch"


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 60) -> Any:
    """Poll until the condition is truthy and return that value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.1)


class Deployment:
    """One deployed unit, its machine, and its GitHub."""

    # How long runners may take to come online, in seconds.
    patience = 60.0

    def __init__(self, machine: Machine, unit: Unit, hub: github.GitHub) -> None:
        self.machine, self.unit, self.hub = machine, unit, hub
        self.control = GitHubControl(hub.url, ca=hub.ca)

    def lxd(self, path: str) -> Any:
        """What the machine's own LXD answers."""
        return self.machine.lxd(f"/1.0/{path}")

    def instances(self) -> list[str]:
        return sorted(item["name"] for item in self.lxd("instances?recursion=1"))

    def registered(self) -> list[str]:
        return sorted(
            runner["name"] for runner in self.control.runners() if runner["name"].startswith(self.unit.app[:20])
        )

    def online(self) -> list[str]:
        runners = self.control.runners()
        return sorted(runner["name"] for runner in runners if runner["status"] == "online")

    def busy(self) -> list[str]:
        return sorted(runner["name"] for runner in self.control.runners() if runner["busy"])

    def mounts(self) -> list[str]:
        return sorted(
            self.machine.exec("sh", "-c", "grep -o '/home/ubuntu/runner-fs/[^ ]*' /proc/mounts || true").split()
        )

    def storages(self) -> list[str]:
        return sorted(self.machine.exec("sh", "-c", "ls -A /home/ubuntu/runner-fs-images 2>/dev/null || true").split())

    def resource_profiles(self) -> list[str]:
        return [item["name"] for item in self.lxd("profiles?recursion=1") if item["name"].startswith("cpu-")]

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.machine.metrics()]
        return [event for event in found if name in (None, event["event"])]

    def reconcile(self) -> None:
        """What the timer does, now."""
        done = self.unit.exec(RECONCILE)
        assert done.returncode == 0, done.stderr

    def keep(self, number: int, **options: Any) -> list[str]:
        """Set the number of runners and wait until GitHub lists them all as online; returns their names."""
        wanted = {"virtual-machines": number, **options}
        known = self.unit.config()
        if any(known[name]["value"] != value for name, value in wanted.items()) or len(self.online()) != number:
            self.unit.set_config(wanted)
            self.reconcile()
        return self.wait_online(number)

    def wait_online(self, number: int) -> list[str]:
        """Until GitHub lists so many runners, all online, and LXD just these; a lost one stays until a reconcile."""

        def there() -> list[list[str]]:
            online, registered = self.online(), self.registered()
            if len(online) == number and registered != online and set(self.instances()) == set(online):
                self.reconcile()
            return [online] if len(online) == number and registered == online == self.instances() else []

        # One of them may be offline for a moment right after.
        [found] = wait_for(there, f"{number} online runners", self.patience)
        return list(found)

    def job(self, command: str, status: str = "completed", **fields: Any) -> dict[str, Any]:
        """Queue a job and wait until it has that status."""
        job = self.control.add_job(REPOSITORY, command, **fields)
        found: dict[str, Any] = self.control.wait_job(job["id"], status)
        return found

    def use_app(self, secret: str = "app") -> dict[str, Any]:
        """Let the unit use a new GitHub App, by a secret of this name; gives the App with its private key."""
        owner = REPOSITORY.partition("/")[0]
        app: dict[str, Any] = self.control.add_app("runners", owner)
        self.control.install_app(app["id"], owner)
        uri = self.unit.add_secret(secret, {"app-id": app["client_id"], "private-key": app["private_key"]})
        self.unit.grant_secret(secret)
        self.unit.set_config({"app-secret": uri})
        return app

    def wait_gone(self, name: str) -> None:
        """Until a runner's instance has powered off and is deleted."""
        wait_for(lambda: name not in self.instances(), f"the end of {name}")

    def inside(self, name: str, command: str, check: bool = True) -> str:
        """A shell command as root in a runner's instance."""
        return self.machine.exec("lxc", "exec", name, "--", "sh", "-c", command, check=check)

    def kill_agent(self, name: str) -> None:
        """Kill a runner's agent, and keep the instance, which would power off: for tests of a dead agent."""
        unit = "/run/systemd/system/github-runner.service.d"
        keep = (
            f"mkdir -p {unit} && printf '[Unit]\\nFailureAction=none\\n' > {unit}/keep.conf && systemctl daemon-reload"
        )
        self.inside(name, f"{keep} && systemctl kill --signal=KILL github-runner.service")

    def status(self) -> tuple[str, str]:
        found = self.unit.status()
        return found["status"], found["message"]


def deployed(
    name: str,
    packed: Path,
    hub: github.GitHub,
    config: Mapping[str, Any],
    *,
    model: dict[str, str] | None = None,
    on_machine: Callable[[Machine], object] = lambda machine: None,
    app: str = "github-runner",
) -> Deployment:
    """A new machine with the charm on it; ``on_machine`` is done to it before anything is deployed.

    ``config`` are options beside those that a test needs.
    """
    machine = Machine(name)
    machine.destroy()
    machine.create()
    on_machine(machine)
    unit = Unit(machine, app)
    options = {
        "path": REPOSITORY,
        "token": PAT,
        "github-url": hub.url,
        "test-mode": "insecure",
        "virtual-machines": 2,
        "vm-cpu": 1,
        "vm-memory": "1GiB",
        "vm-disk": "2GiB",
        # Tests say themselves when a reconcile is made.
        "replace-on-exit": False,
        **config,
    }
    unit.deploy(packed, options, model)
    return Deployment(machine, unit, hub)


def undeploy(deployment: Deployment) -> None:
    """Take the charm processes' coverage and the machine away."""
    if Coverage.current():
        deployment.machine.pull_coverage(ROOT)
    if not os.environ.get("SANDBOX_KEEP"):
        deployment.machine.destroy()


def left_over(deployment: Deployment) -> list[str]:
    """What a removed unit has left on its machine: LXD's things, mounts, units of systemd, files."""
    found = [profile["name"] for profile in deployment.lxd("profiles?recursion=1") if profile["name"] != "default"]
    found += [pool["name"] for pool in deployment.lxd("storage-pools?recursion=1")]
    found += [network["name"] for network in deployment.lxd("networks?recursion=1") if network["managed"]]
    found += [acl["name"] for acl in deployment.lxd("network-acls?recursion=1")]
    found += list(deployment.lxd("profiles/default")["devices"])
    places = "/var/lib/github-runner* /etc/systemd/system/ghro.* /etc/systemd/system/*github*.mount /var/log/github-*"
    places += " /etc/logrotate.d/github-* /home/ubuntu/runner-fs* /run/github-* /etc/modules-load.d/git*"
    places += " /var/lib/juju/storage/fs/*/*"
    found += deployment.machine.exec("sh", "-c", f"ls -d {places} 2>/dev/null || true").split()
    found += deployment.machine.exec("sh", "-c", "grep -o '[^ ]*github-runner[^ ]*' /proc/mounts || true").split()
    units = deployment.machine.exec("systemctl", "list-units", "--all", "--no-legend", "ghro.*", "*github-runner*")
    return [*found, *units.split()]
