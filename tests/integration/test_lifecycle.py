"""A unit's whole life: reboot with runners and jobs present, upgrade, removal. On machines of their own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import github
from sandbox.lxd_setup import bridge_address
from tests.integration.conftest import PAT, RECONCILE, Deployment, deployed, undeploy, wait_for


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


@pytest.mark.timeout(280)
def test_reboot_upgrade_and_removal(alone: Deployment, packed: Path) -> None:
    """Power failure with a job, an upgrade with a job, a reboot for a kernel, removal: nothing is lost or left."""
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
    alone.machine.exec("dpkg", "--purge", "logrotate")
    alone.unit.refresh(packed)
    alone.machine.exec("logrotate", "--version")
    assert busy["runner_name"] in alone.instances()
    alone.inside(busy["runner_name"], "touch /tmp/go")
    assert alone.control.wait_job(busy["id"])["conclusion"] == "success"

    alone.wait_gone(busy["runner_name"])
    idle = alone.instances()
    mark = alone.machine.boot_mark()
    alone.machine.exec("touch", "/var/run/reboot-required")
    alone.unit.exec(RECONCILE)
    alone.machine.wait_reboot(mark)
    alone.unit.wait_idle()
    assert alone.status()[0] == "active"
    assert len(alone.instances()) == 2
    assert not set(idle) & set(alone.instances())

    wait_for(lambda: set(alone.instances()) <= set(alone.online()), "the successors online")
    alone.unit.remove_application()

    assert alone.instances() == []
    assert alone.mounts() == []
    assert alone.storages() == []
    assert alone.resource_profiles() == []
    assert alone.registered() == []
    timers = alone.machine.exec("systemctl", "list-units", "--all", "--no-legend", "ghro.*")
    assert timers.strip() == ""


POLICY = """
import http.server
class Service(http.server.BaseHTTPRequestHandler):
    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        self.answer(200, "one-time-secret")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        allowed = self.headers["Authorization"] == "Bearer one-time-secret" and "octo-org/demo" in body
        self.answer(200 if allowed and self.path == "/push/check-run" else 403, "fork pull requests are not allowed")
http.server.ThreadingHTTPServer(("0.0.0.0", 8090), Service).serve_forever()
"""


@pytest.mark.timeout(240)
def test_memory_storage_policy_service_and_removal_while_blocked(packed: Path, hub: github.GitHub) -> None:
    """Disks in memory, jobs allowed and refused by a policy service, and removal with invalid options and no token."""
    service = subprocess.Popen([sys.executable, "-c", POLICY])
    alone = deployed(
        "alone",
        packed,
        hub,
        **{
            "virtual-machines": 0,
            "runner-storage": "memory",
            "repo-policy-compliance-url": f"http://{bridge_address()}:8090",
            "repo-policy-compliance-token": "charm-token",
        },
    )
    try:
        alone.unit.integrate("cos-agent")
        alone.keep(1)
        assert "tmpfs" in alone.machine.exec("findmnt", "-no", "FSTYPE", "/var/lib/github-runner/memory")
        allowed = alone.job("true", event="push")
        assert allowed["conclusion"] == "success"
        assert "The repository policy check has passed." in allowed["log"]
        alone.wait_gone(allowed["runner_name"])
        alone.reconcile()
        alone.wait_online(1)

        refused = alone.job("echo must not run", event="pull_request")

        assert refused["conclusion"] != "success"
        assert "must not run" not in [line.strip() for line in refused["log"]]
        assert any("fork pull requests are not allowed" in line for line in refused["log"])
        alone.wait_gone(refused["runner_name"])
        alone.reconcile()
        stop = alone.events("runner_stop")[-1]
        assert (stop["status"], stop["status_info"]) == ("repo-policy-check-failure", {"code": 403})

        alone.unit.set_config({"labels": "b@d"})
        alone.control.remove_token(PAT)
        assert alone.status()[0] == "blocked"
        alone.unit.remove_application()
        assert alone.instances() == []
        assert alone.mounts() == []
    finally:
        service.kill()
        service.wait()
        alone.control.add_token(PAT)
        undeploy(alone)
        for runner in alone.control.runners():
            alone.control.remove_runner(runner["id"])
