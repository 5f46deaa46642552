"""A unit's whole life: reboot with runners and jobs present, upgrade, removal. On machines of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import github
from tests.integration.conftest import PAT, Deployment, deployed, undeploy, wait_for


@pytest.fixture
def alone(packed: Path, hub: github.GitHub) -> Iterator[Deployment]:
    """A unit that the test may ruin, with metrics on and one runner."""
    found = deployed("alone", packed, hub, **{"virtual-machines": 0})
    found.unit.integrate("cos-agent")
    found.keep(1)
    yield found
    undeploy(found)
    for runner in found.control.runners():
        found.control.remove_runner(runner["id"])


@pytest.mark.timeout(240)
def test_reboot_upgrade_and_removal(alone: Deployment, packed: Path) -> None:
    """Power failure with a job running, then an upgrade with a job running, then removal: nothing is lost or left."""
    alone.keep(2)
    job = alone.job("sleep 600", status="in_progress")
    before = alone.instances()

    alone.unit.reboot(hard=True)

    assert alone.status()[0] == "active"
    assert not set(before) & set(alone.instances())
    wait_for(lambda: set(alone.instances()) <= set(alone.online()), "the successors online")
    assert len(alone.instances()) == 2
    assert sorted(alone.mounts()) == [f"/home/ubuntu/runner-fs/{name}" for name in alone.instances()]
    assert alone.events("runner_start")[-1]["workflow"] == "CI"
    assert alone.control.job(job["id"])["runner_name"] in before

    wait_for(lambda: alone.registered() == alone.online() == alone.instances(), "only living registrations", 60)
    busy = alone.job("until [ -e /tmp/go ]; do sleep 0.2; done", status="in_progress")
    wait_for(alone.busy, "a busy runner")
    alone.unit.refresh(packed)
    assert busy["runner_name"] in alone.instances()
    alone.inside(busy["runner_name"], "touch /tmp/go")
    assert alone.control.wait_job(busy["id"])["conclusion"] == "success"

    alone.unit.remove_application()

    assert alone.instances() == []
    assert alone.mounts() == []
    assert alone.storages() == []
    assert alone.resource_profiles() == []
    assert alone.registered() == []
    timers = alone.machine.exec("systemctl", "list-units", "--all", "--no-legend", "ghro.*")
    assert timers.strip() == ""


def test_removal_works_with_invalid_options_and_a_dead_token(alone: Deployment) -> None:
    """Whatever the options say, a unit that is removed leaves no runner on its machine."""
    alone.unit.set_config({"labels": "b@d"})
    alone.control.remove_token(PAT)
    try:
        assert alone.status()[0] == "blocked"
        alone.unit.remove_application()
    finally:
        alone.control.add_token(PAT)

    assert alone.instances() == []
    assert alone.mounts() == []
