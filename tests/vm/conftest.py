"""A Juju machine whose own LXD starts virtual machines, with the charm on it, and a GitHub that speaks HTTPS."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from engine.api import NOT_BEGUN
from sandbox import github
from sandbox.github.control import GitHubControl
from sandbox.juju.unit import Unit
from sandbox.lab import lxd_setup
from sandbox.lab.machine import Machine
from sandbox.lab.pack import pack
from sandbox.vm import template
from tests.faults import report as reliability
from tests.support.deployment import PAT, REPOSITORY, ROOT, Deployment, wait_for
from tests.support.options import ACTION, EVERY_OPTION

__all__ = ["REPOSITORY", "VmDeployment", "wait_for"]

# The modules share one unit: its life first, its removal at the end. A runner takes a minute, so each
# module begins with as many as the one before leaves.
ORDER = ("life", "isolation", "faults", "defects", "long", "removal")
# The section of docs/reference/reliability.md with the results of the tests that are marked `long`.
LONG = "vm-long"
# What the tests choose themselves.
TESTED = {"vm-cpu", "vm-memory", "vm-disk", "reconcile-interval", "replace-on-exit"}
VM_OPTIONS = {name: value for name, value in EVERY_OPTION.items() if name not in TESTED}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the modules of this folder in the order of the unit's life, and give the long tests a row on the page."""
    here = Path(__file__).parent
    items.sort(key=lambda item: ORDER.index(item.path.stem[5:]) if item.path.parent == here else -1)
    for item in items:
        if isinstance(item, pytest.Function) and item.path.parent == here and item.get_closest_marker("long"):
            item.user_properties.append((LONG, str(item.obj.__doc__).partition("\n")[0].rstrip(".")))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the last result of each long test on the page of reliability, whichever of them are run."""
    rule = dict(report.user_properties).get(LONG)
    if rule and (report.when == "call" or report.failed):
        result = f"{report.outcome} ({report.duration / 60:.1f} minutes, {time.strftime('%Y-%m-%d')})"
        reliability.update(LONG, {str(rule): result}, ROOT / "docs" / "reference")


class VmDeployment(Deployment):
    """A unit whose runners are virtual machines. Their boot takes a minute and more in software emulation."""

    patience = 400.0

    def wait_online(self, number: int) -> list[str]:
        """As for containers, but a runner whose guest did not start in time is created again, as by the timer."""

        def created() -> bool:
            missing = len(self.instances()) < number
            if missing:
                print(f"    {self.status()[1]}: reconciling again", flush=True)
                self.reconcile()
            return not missing

        wait_for(created, f"{number} instances", self.patience)
        return super().wait_online(number)

    def inside(self, name: str, command: str, check: bool = True) -> str:
        """A shell command as root in a runner's virtual machine; repeated if LXD could not begin it in time."""
        calls: list[subprocess.CompletedProcess[str]] = []

        def begun() -> bool:
            calls.append(self.machine.call("lxc", "exec", name, "--", "sh", "-c", command))
            return not any(text in calls[-1].stderr for text in NOT_BEGUN)

        wait_for(begun, f"a command in {name}", self.patience)
        assert calls[-1].returncode == 0 or not check, calls[-1].stderr
        return calls[-1].stdout

    def console(self, name: str) -> str:
        """What a runner has written to its serial console: firmware, boot loader, kernel."""
        return self.machine.exec("sh", "-c", f"tr -d '\\r' < /run/lxd-vsock/{name}.console", check=False)

    def qemu(self, name: str) -> int:
        """The process of a runner's QEMU, in the machine."""
        return int(self.machine.exec("cat", f"/var/log/lxd/{name}/qemu.pid"))

    def address(self, name: str) -> str:
        """The IPv4 address of a runner."""
        found = self.inside(name, "ip -json -4 address show scope global")
        return str(json.loads(found)[0]["addr_info"][0]["local"])


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The charm as it is deployed."""
    template.ensure()
    return pack(ROOT, tmp_path_factory.mktemp("packed") / "charm")


def serve_github() -> AbstractContextManager[github.GitHub]:
    """GitHub, outside the machines, over HTTPS."""
    settings = github.Settings(grace=20, lost_job=20)
    address = lxd_setup.bridge_address()
    return github.serve(address, 0, [PAT], [REPOSITORY], ["octo-org"], settings=settings, tls=True)


@pytest.fixture(scope="session")
def hub(packed: Path) -> Iterator[github.GitHub]:
    """The GitHub of the unit that all tests use."""
    with serve_github() as served:
        yield served


def deployed(
    name: str,
    packed: Path,
    hub: github.GitHub,
    on_machine: Callable[[Machine], object] = lambda machine: None,
    **config: Any,
) -> VmDeployment:
    """A new machine with a unit on it, without runners but with metrics; the image is built by its install hook."""
    machine = Machine(name, template.TEMPLATE)
    machine.destroy()
    machine.create()
    on_machine(machine)
    options = {
        "path": REPOSITORY,
        "token": PAT,
        "github-url": hub.url,
        "ca-certificates": hub.ca,
        "image-source": f"local:{template.IMAGE}",
        "virtual-machines": 0,
        "vm-cpu": 2,
        "vm-memory": "1GiB",
        # Larger than the image, and two of them fit the machine.
        "vm-disk": "9GiB",
        "replace-on-exit": False,
        "reconcile-interval": 60,
        **config,
    }
    unit = Unit(machine, on_event=show)
    unit.deploy(packed, options)
    unit.integrate("cos-agent")
    return VmDeployment(machine, unit, hub)


@pytest.fixture(scope="session")
def unit(packed: Path, hub: github.GitHub) -> Iterator[VmDeployment]:
    """The unit that all tests use, one after the other: its image takes minutes. The last test removes it."""
    control = GitHubControl(hub.url, ca=hub.ca)
    control.add_action(ACTION)
    found = deployed("vm-tests", packed, hub, **VM_OPTIONS)
    yield found
    if not os.environ.get("SANDBOX_KEEP"):
        found.machine.destroy()


def show(event: dict[str, Any]) -> None:
    """The hooks and the statuses of the unit, as they come: some of them take minutes."""
    if event["event"] == "hook-end":
        print(f"  hook {event['hook']} ({event['seconds']:.0f} s)", flush=True)
    elif event["event"] == "status":
        print(f"    {event['status']}: {event['message']}", flush=True)
