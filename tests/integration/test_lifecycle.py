"""A unit's whole life: reboot with runners and jobs present, upgrade, removal. On machines of their own."""

import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sandbox import github
from sandbox.lab.lxd_setup import bridge_address
from tests.support.deployment import PAT, RECONCILE, REPOSITORY, Deployment, deployed, left_over, undeploy, wait_for
from tests.support.watch import Watch

pytestmark = pytest.mark.lifecycle


@pytest.fixture
def alone(packed: Path, hub: github.GitHub) -> Iterator[Deployment]:
    """A unit that the test may ruin, with metrics on and one runner."""
    found = deployed("alone", packed, hub, {"virtual-machines": 0})
    found.unit.integrate("cos-agent")
    found.keep(1)
    yield found
    undeploy(found)
    for runner in found.control.runners():
        found.control.remove_runner(runner["id"])


# Revision 1.0 kept the metrics volumes in the folder of user ubuntu, and other users could read the pool.
AS_REVISION_1_0 = """
set -e
for folder in runner-fs runner-fs-images runner-fs-quarantine; do
    mount --make-rprivate /home/ubuntu/$folder
    umount --lazy /home/ubuntu/$folder
    rmdir /home/ubuntu/$folder
    mv /var/lib/github-runner/$folder /home/ubuntu/$folder
done
chmod 755 /home/ubuntu/runner-fs
chmod 644 /home/ubuntu/runner-fs-images/*.img /storage/juju/*.img
"""


@pytest.mark.timeout(280)
def test_reboot_upgrade_and_removal(alone: Deployment, packed: Path) -> None:
    """Power failure with a job, an upgrade with a job, a reboot for a kernel, removal: nothing is lost or left."""
    alone.keep(2)
    fail_the_power_during_a_job(alone)
    alone.wait_online(2)
    upgrade_during_a_job(alone, packed)

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
    assert left_over(alone) == []


def fail_the_power_during_a_job(alone: Deployment) -> None:
    """The runners have successors after the boot, and the job has its event."""
    job = alone.job("sleep 600", status="in_progress")
    # GitHub lists it as in progress before the job-started hook has written what the events need.
    wait_for(lambda: "pre-job" in alone.inside(job["runner_name"], "ls /metrics-exchange"), "the job's start")
    before = alone.instances()

    alone.unit.reboot(hard=True)

    assert alone.status()[0] == "active"
    assert not set(before) & set(alone.instances())
    wait_for(lambda: set(alone.instances()) <= set(alone.online()), "the successors online")
    assert len(alone.instances()) == 2
    assert sorted(alone.mounts()) == [f"/home/ubuntu/runner-fs/{name}" for name in alone.instances()]
    assert alone.events("runner_start")[-1]["workflow"] == "CI"
    assert alone.control.job(job["id"])["runner_name"] in before


def upgrade_during_a_job(alone: Deployment, packed: Path) -> None:
    """From revision 1.0: the job goes on, and the new revision sets up what that one had in another way."""
    busy = alone.job("until [ -e /tmp/go ]; do sleep 0.2; done", status="in_progress")
    wait_for(alone.busy, "a busy runner")
    alone.machine.exec("dpkg", "--purge", "logrotate")
    alone.machine.exec("sh", "-c", AS_REVISION_1_0)
    alone.unit.refresh(packed)
    alone.machine.exec("logrotate", "--version")
    assert f"/home/ubuntu/runner-fs/{busy['runner_name']}" in alone.mounts()
    closed = alone.machine.exec("sh", "-c", "stat -c %a /var/lib/github-runner/runner-fs* /storage/juju/*.img")
    assert closed.split() == ["700", "700", "700", "600"]
    assert busy["runner_name"] in alone.instances()
    alone.inside(busy["runner_name"], "touch /tmp/go")
    assert alone.control.wait_job(busy["id"])["conclusion"] == "success"

    alone.wait_gone(busy["runner_name"])
    alone.reconcile()
    assert [event["status"] for event in alone.events("runner_stop")] == ["normal"]


POLICY = """
import http.server
class Service(http.server.BaseHTTPRequestHandler):
    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        self.answer(200, "one-time-secret-77aa")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        allowed = self.headers["Authorization"] == "Bearer one-time-secret-77aa" and "octo-org/demo" in body
        self.answer(200 if allowed and self.path == "/push/check-run" else 403, "fork pull requests are not allowed")
http.server.ThreadingHTTPServer(("0.0.0.0", 8090), Service).serve_forever()
"""


BUILD = "ghro.build-image.github-runner-0.service"
AGENT_FILE = "/run/github-runner/agent.github-runner-0.json"
PROXY_PASSWORDS = ("proxy-word-8c1f", "runner-word-3f7a")


def watched(packed: Path, hub: github.GitHub) -> tuple[Deployment, Watch]:
    """A unit with a policy service and proxies, and what a watch of its machine has seen since before its install."""
    watches: list[Watch] = []
    found = deployed(
        "alone",
        packed,
        hub,
        {
            "virtual-machines": 0,
            "repo-policy-compliance-url": f"http://{bridge_address()}:8090",
            "repo-policy-compliance-token": "charm-token-5d2e",
            "runner-http-proxy": "http://user:runner-word-3f7a@192.0.2.2:3128",
        },
        model={
            "juju-http-proxy": "http://user:proxy-word-8c1f@192.0.2.1:3128",
            "juju-no-proxy": f"{bridge_address()},127.0.0.1",
        },
        on_machine=lambda machine: watches.append(Watch(machine)),
    )
    return found, watches[0]


def have_a_job_allowed(alone: Deployment) -> None:
    """Its log has the runners' proxies and the policy check."""
    job = alone.job('echo "proxies ${HTTP_PROXY##*@} ${https_proxy##*@}, not $no_proxy"', event="push")
    assert job["conclusion"] == "success"
    assert f"proxies 192.0.2.2:3128 192.0.2.2:3128, not {bridge_address()},127.0.0.1," in "\n".join(job["log"])
    assert "@192.0.2.1:3128" in alone.machine.exec("lxc", "config", "get", "core.proxy_http")
    assert "The repository policy check has passed." in job["log"]
    alone.wait_gone(job["runner_name"])


def have_a_job_refused(alone: Deployment) -> None:
    """By the policy service: its log has the reason, and none of its steps run."""
    alone.reconcile()
    alone.wait_online(1)
    job = alone.job("echo must not run", event="pull_request")
    assert job["conclusion"] != "success"
    assert any("fork pull requests are not allowed" in line for line in job["log"]), job["log"]
    assert "must not run" not in [line.strip() for line in job["log"]]
    alone.wait_gone(job["runner_name"])


@pytest.mark.timeout(280)
def test_policy_service_secrets_and_removal_while_blocked(packed: Path, hub: github.GitHub) -> None:
    """A job allowed and one refused; removal with invalid options and no token.

    In all of this life no secret is seen in a process, a log, an instance's configuration or a file.
    """
    service = subprocess.Popen([sys.executable, "-c", POLICY])
    alone, watch = watched(packed, hub)
    try:
        alone.unit.integrate("cos-agent")
        app = alone.use_app()
        alone.keep(1)
        jit = [runner.secret for runner in hub.state.runners.values()]
        have_a_job_allowed(alone)
        have_a_job_refused(alone)
        alone.unit.set_config({"scaling": "demand"})
        alone.wait_gone(alone.job("true", event="push")["runner_name"])
        known = secrets_in_demand_mode(alone, watch, app, jit)
        service.kill()
        service.wait()
        alone.unit.set_config({"scaling": "fixed"})
        [stop] = [event for event in alone.events("runner_stop") if "status_info" in event]
        assert (stop["status"], stop["status_info"]) == ("repo-policy-check-failure", {"code": 403})
        assert "0 of 1 runners" in alone.status()[1]

        alone.unit.set_config({"vm-memory": "7GB"})
        alone.control.remove_app_key(app["id"], app["key"])
        assert alone.status()[0] == "blocked"
        assert secrets_seen(alone, watch, known) == {}
        alone.unit.remove_application()
        assert alone.instances() == []
        assert left_over(alone) == []
        assert secrets_seen(alone, watch, known) == {}
    finally:
        service.kill()
        service.wait()
        alone.control.add_token(PAT)
        undeploy(alone)
        deregister_runners(alone)


Secrets = dict[str, Sequence[str]]


def secrets_in_demand_mode(deployment: Deployment, watch: Watch, app: dict[str, Any], jit: list[str]) -> Secrets:
    """What the unit of an App knows, of which the agent's token is in its file, and no other is to be seen."""
    known: Secrets = {}

    def handed_over() -> bool:
        # A hook that has not ended gets a token of its own, and hands that over.
        known.update(app_secrets(deployment, app, jit))
        found = secrets_seen(deployment, watch, known)
        assert found in ({}, {"installation token": [AGENT_FILE]})
        return bool(found)

    wait_for(handed_over, "the agent's token in its file")
    return known


def app_secrets(deployment: Deployment, app: dict[str, Any], jit: list[str]) -> Secrets:
    """Lines of the key of a GitHub App, the tokens that it got, and what runners registered with."""
    lines, tokens = app["private_key"].splitlines(), list(deployment.hub.state.apps.tokens)
    assert tokens
    assert jit
    return {"key": (lines[2], lines[-3]), "installation token": tokens, "just-in-time secret": jit}


def secrets_seen(deployment: Deployment, watch: Watch, more: Secrets) -> dict[str, list[str]]:
    """Where each kind of secret of the unit's life is to be seen. One look, which takes seconds, is for all of them."""
    tokens = deployment.hub.state.runner_tokens
    assert len(tokens) >= 2
    assert watch.shown("bin/Runner.Listener"), "the watch sees the processes of instances"
    assert "/root/watch.environ" in watch.where("JUJU_DISPATCH_PATH=hooks/install"), "and the charm's environment"
    secrets: Secrets = {**more, "token": [PAT], "policy": ["charm-token-5d2e", "one-time-secret-77aa"]}
    secrets |= {"runner token": list(tokens)}
    everything = [word for words in secrets.values() for word in words]
    seen = {kind: watch.where(*words) for kind, words in secrets.items()} if watch.where(*everything) else {}
    seen["password"] = watch.shown(*PROXY_PASSWORDS)
    words = json.dumps([deployment.unit.status(), deployment.unit.debug_log()])
    seen["status or log"] = [word for word in (*everything, *PROXY_PASSWORDS) if word in words]
    return {kind: places for kind, places in seen.items() if places}


def deregister_runners(deployment: Deployment) -> None:
    for runner in deployment.control.runners():
        deployment.control.remove_runner(runner["id"])


@pytest.fixture
def bare(packed: Path, hub: github.GitHub, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A unit without runners and metrics, with the options that the test asks for."""
    found = deployed("alone", packed, hub, {"virtual-machines": 0, **getattr(request, "param", {})})
    yield found
    undeploy(found)
    deregister_runners(found)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("bare", [{"runner-storage": "memory", "base-image": "26.04"}], indirect=True)
def test_memory_storage_comes_back_and_grows(bare: Deployment) -> None:
    """Disks in memory are empty after a reboot: the pool is made anew under its runners, and grows with the options.

    Its runners are of another release than those of the other tests: they start from its image, and have its label.
    """
    bare.keep(1)
    assert "resolute" in {label["name"] for label in bare.control.runners()[0]["labels"]}
    [runner] = bare.lxd("instances?recursion=1")
    assert runner["config"]["volatile.base_image"] == bare.lxd("images/aliases/resolute")["target"]
    size = ("df", "--block-size=1", "--output=size", "/var/lib/github-runner/memory", "/run/github-runner-pool")
    assert "tmpfs" in bare.machine.exec("findmnt", "-no", "FSTYPE", "/var/lib/github-runner/memory")
    before, small = bare.instances(), [int(text) for text in bare.machine.exec(*size).split()[1:]]

    bare.unit.reboot(hard=True)

    assert bare.status()[0] == "active", bare.status()
    bare.wait_online(1)
    assert bare.instances() != before
    bare.keep(2)
    grown = [int(text) for text in bare.machine.exec(*size).split()[1:]]
    assert all(now > one for now, one in zip(grown, small, strict=True))
    bare.unit.remove_application()
    assert left_over(bare) == []


GREET = "octo-org/greet@v1"
OLD_TOKEN = "ghp_5f4e3d2c1b0a99887766554433221100aabbcc"
SERVICE_TOKEN = "0123456789abcdef5e12f1ce70ce2500"
# As the previous charm names them; a unit of another model with this charm has the same prefix and as many digits.
IDLE, SECOND, BUSY, FINISHED, CRASHED, FOREIGN = (f"github-runner-0-{secrets.token_hex(12)}" for _ in range(6))
# What the previous charm leaves: its own storage pool on Juju's storage, runners, services, files with tokens.
PREVIOUS = f"""
set -eu
charm=/var/lib/juju/agents/unit-github-runner-0/charm
systemctl disable --quiet --now ghro.reconcile-runners.github-runner-0.timer ghro.build-image.github-runner-0.timer
umount --lazy /home/ubuntu/runner-fs /home/ubuntu/runner-fs-images /home/ubuntu/runner-fs-quarantine
rm -rf /etc/systemd/system/ghro.* /var/lib/github-runner /home/ubuntu/runner-fs* /var/log/github-runner-metrics.log
lxc profile device remove runner root
for profile in $(lxc profile list -f csv | cut -d, -f1 | grep ^cpu- || true); do lxc profile delete $profile; done
lxc storage delete runner
systemctl disable --quiet --now "$(systemd-escape --path --suffix=mount /run/github-runner-pool)"
rm -rf /etc/systemd/system/*github*.mount /storage/juju/*

mkdir -p /storage/ram && mount -t tmpfs -o size=1m tmpfs /storage/ram
lxc storage create runner dir source=/storage/juju
lxc profile device add runner root disk path=/ pool=runner
lxc profile unset runner user.github-runner.base-image
lxc profile unset runner user.github-runner.runner-storage
lxc profile create cpu-9-mem-9GiB-disk-9GiB
lxc profile device add cpu-9-mem-9GiB-disk-9GiB root disk path=/ pool=runner
for name in {IDLE} {SECOND} {BUSY}; do
    lxc launch jammy $name --ephemeral --profile default --profile runner --profile cpu-9-mem-9GiB-disk-9GiB
done

printf '{{"charm_config": {{"token": "{OLD_TOKEN}"}}}}' > $charm/charm_state.json
printf {SERVICE_TOKEN} > $charm/service_token
python3 - $charm/.unit-state.db << END
import pickle, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
for text in ("{OLD_TOKEN}" * 200, "{OLD_TOKEN}"):
    stored = pickle.dumps({{"path": "octo-org/demo", "token": text, "labels": ""}})
    row = ("GithubRunnerCharm/StoredStateData[_stored]", stored)
    database.execute("REPLACE INTO snapshot VALUES (?, ?)", row)
    database.commit()
END
echo "5 */6 * * * ubuntu /usr/bin/bash $charm/scripts/build-lxd-image.sh" > /etc/cron.d/build-runner-image
mkdir -p /home/ubuntu/repo_policy_compliance_service /usr/local/lib/python3.11/dist-packages/repo_policy_compliance
echo 'import flask' > /home/ubuntu/repo_policy_compliance_service/app.py
echo tarball > /home/ubuntu/github-runner-app
printf 'br_netfilter\nbr_netfilter\n' >> /etc/modules
printf '[Service]\nEnvironment="GITHUB_TOKEN=%s"\nEnvironment="CHARM_TOKEN=%s"\nExecStart=sleep 1000\n' \
    {OLD_TOKEN} {SERVICE_TOKEN} > /etc/systemd/system/repo-policy-compliance.service
systemctl daemon-reload
systemctl start repo-policy-compliance.service
mkdir -p /var/log/github-runner-logs/{CRASHED}/_diag/pages
touch /var/log/github-runner-logs/{CRASHED}/_diag/Runner.log
touch -d '8 days ago' /var/log/github-runner-logs/{CRASHED}
for name in {BUSY} {FINISHED}; do
    mkdir -p /home/ubuntu/runner-fs-images /home/ubuntu/runner-fs/$name
    truncate --size=1M /home/ubuntu/runner-fs-images/$name.img
    mkfs.ext4 -q /home/ubuntu/runner-fs-images/$name.img
    mount -o loop /home/ubuntu/runner-fs-images/$name.img /home/ubuntu/runner-fs/$name
    cd /home/ubuntu/runner-fs/$name
    date +%s > runner-installed.timestamp
    printf '{{"timestamp": %s, "workflow": "%s", ' $(date +%s) $name > pre-job-metrics.json
    echo '"repository": "octo-org/demo", "event": "push", "workflow_run_id": "1"}}' >> pre-job-metrics.json
done
printf '{{"timestamp": %s, "status": "normal"}}' $(date +%s) > post-job-metrics.json
cd /
systemd-run --quiet --setenv=HOME=/root sh -c 'lxc monitor --type=lifecycle --format=json > /root/instances'
"""
LEFTOVERS = f"""
ls -d /var/lib/juju/agents/*/charm/charm_state.json /var/lib/juju/agents/*/charm/service_token \
    /var/lib/juju/agents/*/charm/.unit-state.db?* /etc/cron.d/build-runner-image \
    /etc/systemd/system/repo-policy* /home/ubuntu/repo_policy* /home/ubuntu/github-runner-app /storage/ram \
    /usr/local/lib/python3.11/dist-packages/repo_policy* 2> /dev/null
grep -n br_netfilter /etc/modules
systemctl is-active --quiet repo-policy-compliance.service && echo policy service
# The pool's files are found where it is mounted. Its image is sparse and as large as the disk.
grep -ralF -e {OLD_TOKEN} -e {SERVICE_TOKEN} / --exclude='github-runner-pool-*' --exclude-dir=proc --exclude-dir=sys \
    --exclude-dir=dev
true
"""


def most_instances(deployment: Deployment, before: set[str]) -> int:
    """How many instances there were at once, by LXD's events since they are recorded."""
    there, most = set(before), len(before)
    lines = [line for line in deployment.machine.exec("cat", "/root/instances").splitlines() if line.strip()]
    assert lines
    for line in lines:
        event = json.loads(line)["metadata"]
        name = event["source"].split("?")[0].rsplit("/", 1)[-1]
        if event["action"] == "instance-created":
            there.add(name)
        elif event["action"] in ("instance-deleted", "instance-stopped", "instance-shutdown"):
            there.discard(name)
        most = max(most, len(there))
    return most


@pytest.fixture
def previous(bare: Deployment) -> Deployment:
    """A machine as the previous charm leaves it, with an option that this charm does not accept."""
    bare.unit.integrate("cos-agent")
    bare.unit.set_config({"labels": "a\tb", "virtual-machines": 3})
    bare.machine.exec("sh", "-c", PREVIOUS)
    deregister_runners(bare)
    for name in (IDLE, SECOND, BUSY):
        bare.control.add_runner(REPOSITORY, name, status="online", busy=name == BUSY)
    for name in (FINISHED, FOREIGN):
        bare.control.add_runner(REPOSITORY, name, status="offline")
    return bare


@pytest.mark.timeout(200)
def test_unit_of_the_previous_charm_is_taken_over(previous: Deployment, packed: Path) -> None:
    """Tokens and leftovers go in the first hook, idle runners are replaced, a busy one finishes, and then the pool."""
    unit = previous.unit

    unit.refresh(packed)

    assert previous.status()[0] == "blocked"
    assert previous.machine.exec("sh", "-c", LEFTOVERS) == ""
    assert previous.instances() == sorted((IDLE, SECOND, BUSY))

    unit.reset_config("labels")
    assert previous.status()[0] == "active", previous.status()
    assert {IDLE, SECOND} & set(previous.instances()) == set()
    assert BUSY in previous.instances()
    assert len(previous.instances()) == 3
    assert most_instances(previous, {IDLE, SECOND, BUSY}) == 3
    assert previous.machine.exec("lxc", "storage", "get", "runner", "source").strip() == "/storage/juju"
    assert previous.machine.exec("ls", "/var/log/github-runner-logs") == ""
    assert {IDLE, SECOND, FINISHED} & set(previous.registered()) == set()
    assert [event["workflow"] for event in previous.events("runner_stop")] == [FINISHED]
    assert f"{FINISHED}.img" not in previous.storages()

    file = f"/home/ubuntu/runner-fs/{BUSY}/post-job-metrics.json"
    end = f"""printf '{{"timestamp": %s, "status": "normal"}}' $(date +%s) > {file}"""
    previous.machine.exec("sh", "-c", f"{end}; lxc stop --force {BUSY}")
    previous.control.remove_runner(next(item["id"] for item in previous.control.runners() if item["name"] == BUSY))
    previous.reconcile()

    assert previous.status()[1].startswith("3 runners"), (previous.status(), previous.unit.debug_log()[-3000:])
    assert previous.lxd("storage-pools/runner")["driver"] == "btrfs"
    assert [event["workflow"] for event in previous.events("runner_stop")] == [FINISHED, BUSY]
    assert most_instances(previous, {IDLE, SECOND, BUSY}) == 3
    wait_for(lambda: len(previous.online()) == 3, "three runners of this charm")
    assert previous.registered() == sorted([*previous.instances(), FOREIGN])
    assert previous.storages() == [f"{name}.img" for name in previous.instances()]
    assert previous.mounts() == [f"/home/ubuntu/runner-fs/{name}" for name in previous.instances()]
    assert "cpu-9-mem-9GiB-disk-9GiB" not in previous.resource_profiles()
    assert {event["wanted_runners"] for event in previous.events("unit_health")} == {3}
    assert [name[:19] for name in previous.machine.exec("ls", "/storage/juju").split()] == ["github-runner-pool-"]
    assert previous.machine.exec("sh", "-c", LEFTOVERS) == ""


def fire_the_timer(deployment: Deployment) -> None:
    """Have the charm's timer elapse in a second, besides the times that the charm has set."""
    timer = "ghro.reconcile-runners.github-runner-0.timer"
    soon = "[Timer]\nOnActiveSec=1s\nRandomizedDelaySec=0\n"
    deployment.machine.push(f"/run/systemd/system/{timer}.d/soon.conf", soon)
    deployment.machine.exec("systemctl", "daemon-reload")
    deployment.machine.exec("systemctl", "restart", timer)


def hang_a_reconcile(deployment: Deployment) -> None:
    """Freeze the charm's process in a reconcile of the timer's service, and see the time limit end it.

    The limit is longer than a creation may take: here its number is a smaller one for this reconcile.
    """
    service = "/etc/systemd/system/ghro.reconcile-runners.github-runner-0.service"
    before = deployment.machine.exec("cat", service)
    deployment.machine.push(service, re.sub("timeout -k 30s [0-9]*s", "timeout -k 3s 10s", before))
    deployment.machine.exec("systemctl", "daemon-reload")

    def signalled(name: str) -> bool:
        return (
            deployment.machine.call("pkill", f"-{name}", "-f", "^[^ ]*/python[^ ]* [^ ]*/src/charm.py").returncode == 0
        )

    deployment.machine.exec("systemctl", "start", "--no-block", "ghro.reconcile-runners.github-runner-0.service")
    wait_for(lambda: signalled("STOP"), "the charm's process")
    wait_for(lambda: not signalled("0"), "the end of a reconcile that hangs", 60)
    deployment.machine.push(service, before)


@pytest.mark.timeout(590)
def test_image_is_built_while_the_timer_fires(bare: Deployment) -> None:
    """The whole pipeline, from a local image: built outside of hooks, the alias moved, a job in it.

    Builds that fail, and one that is killed, leave the image of before in use, and the next build clears up. Meanwhile
    a reconcile that hangs is ended by its time limit, the charm's own timer fires, and a lost runner has a successor
    without any hook of Juju's. The image has the archive of an action, and is built without one that does not exist.
    """
    before, number = aliases(bare), len(bare.lxd("images?recursion=1"))
    fail_builds(bare)
    assert (aliases(bare), bare.instances()) == (before, [])

    bare.control.add_action(GREET)
    bare.unit.set_config({"image-source": "local:sandbox-base", "cached-actions": f"{GREET}, octo-org/none@v1"})
    [name] = bare.keep(1, **{"reconcile-interval": 2})
    bare.machine.exec("systemctl", "start", "--no-block", BUILD)
    wait_for(lambda: "github-runner-image-builder" in bare.instances(), "the builder", 30)
    bare.machine.exec("systemctl", "kill", "--signal=KILL", BUILD)
    assert aliases(bare) == before
    bare.machine.exec("systemctl", "reset-failed", BUILD, check=False)

    bare.machine.exec("systemctl", "start", "--no-block", BUILD)
    bare.machine.exec("lxc", "delete", "--force", name)
    hang_a_reconcile(bare)
    fire_the_timer(bare)
    wait_for(lambda: bare.online() and bare.online() != [name], "a successor made by the timer", 180)
    journal = ("journalctl", "-q", "--no-pager", "-u", "ghro.reconcile-runners.github-runner-0.service")
    wait_for(lambda: "Finished" in bare.machine.exec(*journal), "the end of the timer's service")
    # Until its end the builder is one of the instances.
    state = ("systemctl", "is-active", BUILD)
    wait_for(lambda: bare.machine.call(*state).stdout.strip() in ("inactive", "failed"), "the end of the build", 400)
    bare.keep(0, **{"reconcile-interval": 60})
    after = aliases(bare)
    assert after["jammy"] not in before.values()
    # The image that was there keeps another alias, because this charm did not build it.
    assert {**after, "jammy": before["jammy"]} == {**before, f"jammy-{before['jammy'][:12]}": before["jammy"]}
    assert (len(bare.lxd("images?recursion=1")), bare.instances()) == (number + 1, [])
    assert_the_image_serves(bare, after["jammy"])
    assert "archive of octo-org/none@v1 is left out" in bare.machine.exec("journalctl", "--no-pager", "-u", BUILD)
    assert_archives_are_used(bare)
    assert bare.machine.exec("systemd-analyze", "verify", f"/etc/systemd/system/{BUILD}") == ""


def aliases(deployment: Deployment) -> dict[str, str]:
    """The fingerprint of each image with an alias, by the alias."""
    found = deployment.lxd("images?recursion=1")
    return {alias["name"]: image["fingerprint"] for image in found for alias in image["aliases"]}


def fail_builds(deployment: Deployment) -> None:
    """Builds from an image that does not exist, and from a server that does not answer."""
    for source, shown in (
        ("local:no-such-image", "local:no-such-image failed"),
        (f"http://{bridge_address()}:9", "http"),
    ):
        deployment.unit.set_config({"image-source": source})
        assert deployment.machine.call("systemctl", "start", BUILD).returncode != 0
        journal = deployment.machine.exec("journalctl", "-u", BUILD)
        assert f"creating the builder from {shown}" in journal


def assert_the_image_serves(deployment: Deployment, fingerprint: str) -> None:
    """A runner of a built image does a job that finds the image's programs, groups and session."""
    built = deployment.lxd(f"images/{fingerprint}")
    assert built["properties"]["github-runner.application"].startswith("actions-runner-linux-x64-")
    deployment.keep(1)
    programs = "docker npm yarn pip shellcheck jq wget unzip gh yq gcc g++ make"
    header = (
        "echo '#include <Python.h>' | gcc -E $(python3-config --includes) - > /dev/null; test -e /usr/include/zlib.h"
    )
    session = "test -S $XDG_RUNTIME_DIR/bus; busctl --user status > /dev/null; ls /usr/lib/*/libicuuc.so.*"
    job = deployment.job(
        f"for program in {programs}; do command -v $program; done; id -nG; {header}; {session}; apt-cache show tree"
    )
    assert job["conclusion"] == "success", "\n".join(job["log"])
    assert any({"docker", "lxd", "adm", "microk8s"} <= set(line.split()) for line in job["log"])


def assert_archives_are_used(deployment: Deployment) -> None:
    """A job downloads an action only once its ref has moved since the build, as its log says."""
    for is_cached in (True, False):
        commit = deployment.control.add_action(GREET) if not is_cached else ""
        deployment.keep(1)
        deployment.control.clear_requests()
        job = deployment.job("", steps=[{"uses": GREET}], debug=True)
        log = "\n".join(job["log"])
        assert job["conclusion"] == "success", log
        assert f"octo-org/greet at {commit}" in log
        assert ("##[debug]Copied action archive '/opt/github-runner-actions/octo-org_greet/" in log) is is_cached, log
        paths = [entry["path"] for entry in deployment.control.requests()]
        assert any(path.startswith("/_codeload/octo-org/greet/") for path in paths) is not is_cached


AGENT = "github-runner-agent-github-runner-0.service"
METRICS = """
import urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(opener.open("http://127.0.0.1:9500/metrics").read().decode())
"""


@pytest.mark.timeout(200)
@pytest.mark.parametrize("bare", [{"replace-on-exit": True}], indirect=True)
def test_ended_runners_are_replaced_at_once(bare: Deployment) -> None:
    """Without any clock: after a job, after a burst, and after a restart of the daemon that tells of it."""
    bare.keep(2)
    started = time.monotonic()
    jobs = [bare.control.add_job("octo-org/demo", "true") for _ in range(2)]
    gone = {bare.control.wait_job(job["id"], "completed")["runner_name"] for job in jobs}
    wait_for(lambda: len(bare.online()) == 2 and not gone & set(bare.online()), "their successors")
    # The reconcile that made them may run still.
    wait_for(lambda: bare.status()[1].startswith("2 runners: 2 idle"), "their status")
    print(f"replaced within {time.monotonic() - started:.1f} s of the queueing")

    bare.machine.exec("systemctl", "restart", "lxd.service")
    watcher = ("journalctl", "--no-pager", "-u", AGENT)
    wait_for(lambda: bare.machine.exec(*watcher).count("Following LXD's events") > 1, "the watcher's return")
    job = bare.job("true")
    wait_for(lambda: len(bare.online()) == 2 and job["runner_name"] not in bare.online(), "its successor")

    # The agent still serves metrics, those of the reconcile of this change.
    bare.unit.set_config({"replace-on-exit": False, "metrics-port": 9500})
    metrics = wait_for(lambda: bare.machine.call("python3", "-c", METRICS).stdout, "the metrics")
    assert 'github_runner_wanted_runners{flavor="default",unit="github-runner/0"} 2.0' in metrics
    assert 'github_runner_runners{flavor="default",state="idle",unit="github-runner/0"} 2.0' in metrics

    bare.unit.set_config({"metrics-port": 0})
    assert bare.machine.call("python3", "-c", METRICS).stdout == ""
    assert bare.machine.call("systemctl", "is-active", AGENT).stdout.strip() != "active"


# What a unit `other/1` of this charm has on the machine, with a runner that is online for all that LXD knows.
OTHER = r"""
set -eu
mkdir -p /var/lib/juju/agents/unit-other-1/charm /var/lib/github-runner/unit-other-1
cd /etc/systemd/system
printf '[Service]\nType=oneshot\nExecStart=true other/1\n' > ghro.reconcile-runners.other-1.service
printf '[Unit]\nDescription=other/1\n[Timer]\nOnCalendar=yearly\n' > ghro.reconcile-runners.other-1.timer
printf '[Install]\nWantedBy=timers.target\n' >> ghro.reconcile-runners.other-1.timer
systemctl enable --quiet --now ghro.reconcile-runners.other-1.timer
lxc network acl create other-1
lxc network acl rule add other-1 egress action=reject destination=203.0.113.9
lxc network set lxdbr0 security.acls="$(lxc network get lxdbr0 security.acls),other-1"
lxc launch jammy other-1-0123abcd0123456789abcdef --ephemeral --profile default --profile runner --storage runner
"""


@pytest.mark.timeout(200)
@pytest.mark.parametrize("bare", [{"runner-storage": "memory"}], indirect=True)
def test_units_of_one_machine_leave_each_other_alone(bare: Deployment, packed: Path) -> None:
    """A new denylist, an upgrade and the removal of one unit change neither runner, timer nor rules of another."""
    bare.machine.exec("sh", "-c", OTHER)

    def of_the_other() -> tuple[str, list[str], bool]:
        timer = bare.machine.call("systemctl", "is-active", "ghro.reconcile-runners.other-1.timer").stdout.strip()
        rules = bare.machine.exec("nft", "list", "chain", "inet", "lxd", "acl.lxdbr0")
        return timer, [name for name in bare.instances() if name.startswith("other-1-")], "203.0.113.9" in rules

    untouched = ("active", ["other-1-0123abcd0123456789abcdef"], True)
    bare.unit.set_config({"denylist": "198.51.100.0/24"})
    assert of_the_other() == untouched
    assert bare.lxd("networks/lxdbr0")["config"]["security.acls"] == "github-runner-0,other-1"
    assert "the machine is shared with other/1" in bare.status()[1]
    bare.unit.refresh(packed)
    assert of_the_other() == untouched

    bare.unit.remove_application()

    assert of_the_other() == untouched
    assert bare.lxd("networks/lxdbr0")["config"]["security.acls"] == "other-1"
    shared = {"profiles": {"default", "runner"}, "storage-pools": {"runner"}, "network-acls": {"other-1"}}
    for kind, names in shared.items():
        assert {item["name"] for item in bare.lxd(f"{kind}?recursion=1")} == names
    assert "jammy" in [alias["name"] for image in bare.lxd("images?recursion=1") for alias in image["aliases"]]
    left = bare.machine.exec("sh", "-c", "ls /etc/systemd/system /var/lib/github-runner | grep github-runner-0 || true")
    assert left == ""
