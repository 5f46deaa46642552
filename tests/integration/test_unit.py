"""The charm as Juju runs it: a process per hook in a real machine, a real LXD, real HTTP."""

import contextlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.lab.lxd_setup import BRIDGE
from tests.support.deployment import PAT, REPOSITORY, Deployment, wait_for


def test_deployment_brings_runners_online(deployment: Deployment) -> None:
    """After the hooks of a deployment the runners are there, with their labels, and the status says so."""
    names = deployment.keep(2)

    assert deployment.status() == ("active", "2 runners: 2 idle, 0 busy (test mode: containers)")
    [labels] = {tuple(label["name"] for label in runner["labels"]) for runner in deployment.control.runners()}
    assert labels == ("self-hosted", "Linux", "X64", "github-runner", "jammy")
    assert all(len(name) <= 63 for name in names)


def test_host_is_set_up(deployment: Deployment) -> None:
    """Bridge without IPv6, filtered and isolated network cards, a copy-on-write pool, the profile's fixed keys."""
    assert deployment.lxd("networks/lxdbr0")["config"]["ipv6.address"] == "none"
    eth0 = deployment.lxd("profiles/default")["devices"]["eth0"]
    filters = ("ipv4_filtering", "ipv6_filtering", "mac_filtering", "port_isolation")
    assert all(eth0[f"security.{name}"] == "true" for name in filters)
    assert deployment.lxd("storage-pools/runner")["driver"] == "btrfs"
    assert deployment.lxd("profiles/runner")["config"] == {
        "security.devlxd": "false",
        "user.github-runner.base-image.github-runner": "jammy",
        "user.github-runner.runner-storage": "juju-storage",
    }


def test_units_of_systemd_and_logrotate_are_valid(deployment: Deployment) -> None:
    """What systemd and logrotate read on the machine is what they accept."""
    units = "ghro.reconcile-runners.github-runner-0.service ghro.reconcile-runners.github-runner-0.timer"
    deployment.machine.exec("sh", "-c", f"cd /etc/systemd/system && systemd-analyze verify {units} *pool.mount")
    deployment.machine.exec("logrotate", "-d", "/etc/logrotate.d/github-runner-metrics")
    active = deployment.machine.exec(
        "systemctl", "is-active", "ghro.reconcile-runners.github-runner-0.timer", "logrotate.timer"
    )
    assert active.split() == ["active", "active"]


def test_second_reconcile_changes_nothing_and_asks_once(deployment: Deployment) -> None:
    """A reconcile with nothing to do lists the runners at GitHub once, and neither makes nor removes any."""
    names = deployment.keep(2)
    last = deployment.control.requests()[-1]["n"]

    deployment.reconcile()

    calls = [call for call in deployment.control.requests(last) if "/api/v3/" in call["path"]]
    asked = [(call["method"], call["path"].rsplit("/", 1)[-1]) for call in calls]
    assert asked == [("GET", "runners")]
    assert deployment.instances() == names


def test_numbers_up_and_down_leave_nothing_over(deployment: Deployment) -> None:
    """0 to 4 to 1 to 0: at each step instances, registrations, mounts, images and profiles are exactly those wanted."""
    for number in (0, 4, 1, 0):
        names = deployment.keep(number)
        assert deployment.instances() == deployment.registered() == names
        assert deployment.mounts() == [f"/home/ubuntu/runner-fs/{name}" for name in names]
        assert deployment.storages() == [f"{name}.img" for name in names]
        assert deployment.resource_profiles() == (["cpu-1-mem-1GiB-disk-2GiB"] if number else [])


def test_job_runs_once_and_its_metrics_are_written(deployment: Deployment) -> None:
    """One job, its own machine, gone after it; the next reconcile replaces it and writes both events."""
    names = deployment.keep(2)

    job = deployment.job("echo hello from $RUNNER_NAME; sleep 2")
    name = job["runner_name"]
    deployment.wait_gone(name)
    deployment.reconcile()

    assert job["conclusion"] == "success"
    assert f"hello from {name}" in job["log"]
    assert name in names
    assert len(deployment.wait_online(2)) == 2
    start, stop = deployment.events("runner_start")[-1], deployment.events("runner_stop")[-1]
    assert (start["repo"], start["workflow"], start["github_event"]) == (REPOSITORY, "CI", "push")
    assert start["flavor"] == "github-runner"
    assert 2 <= stop["job_duration"] < 10
    assert (stop["status"], stop["job_conclusion"]) == ("normal", "success")
    assert start["idle"] >= 0
    assert start["queue_duration"] >= 0
    assert deployment.events()[-1]["event"] == "reconciliation"
    assert deployment.events()[-1]["crashed_runners"] == 0
    assert deployment.events()[-1]["idle_runners"] == 2
    assert f"/home/ubuntu/runner-fs/{name}" not in deployment.mounts()


def test_crashed_runner_leaves_its_logs_and_is_replaced(deployment: Deployment) -> None:
    """A runner agent that was killed: its logs are on the host, a new runner is in its place."""
    [name] = deployment.keep(1)
    deployment.kill_agent(name)
    wait_for(lambda: name not in deployment.online(), "GitHub seeing it offline")

    deployment.reconcile()

    [successor] = deployment.wait_online(1)
    assert successor != name
    folder = f"/var/log/github-runner-logs/{name}"
    assert "github-runner-journal.log" in deployment.machine.exec("ls", folder).split()
    assert any(log.startswith("Runner_") for log in deployment.machine.exec("ls", f"{folder}/_diag").split())


def test_runner_that_crashes_in_a_job_is_counted(deployment: Deployment) -> None:
    """A start without a stop: `crashed_runners` of the reconcile is 1."""
    deployment.keep(1)
    job = deployment.job("sleep 600", status="in_progress")
    deployment.control.wait_log(job["id"], lambda found: len(found["log"]) > 3)
    deployment.machine.exec("lxc", "stop", "--force", job["runner_name"])

    deployment.reconcile()

    assert deployment.events("runner_start")[-1]["github_event"] == "push"
    assert deployment.events()[-1]["crashed_runners"] == 1


def test_outdated_idle_runners_are_replaced_and_busy_ones_finish(deployment: Deployment) -> None:
    """After `config labels=…` idle runners are new ones, the busy one keeps its place and its job."""
    deployment.keep(3)
    job = deployment.job("until [ -e /tmp/go ]; do sleep 0.2; done; echo finished", status="in_progress")
    wait_for(deployment.busy, "a busy runner")
    busy = job["runner_name"]
    before = set(deployment.instances())

    deployment.unit.set_config({"labels": "fresh"})

    assert set(deployment.instances()) & before == {busy}
    assert len(deployment.instances()) == 3
    assert deployment.status()[1].startswith("3 runners: 2 idle, 1 busy")
    deployment.inside(busy, "touch /tmp/go")
    assert deployment.control.wait_job(job["id"])["conclusion"] == "success"
    deployment.wait_gone(busy)
    deployment.reconcile()
    deployment.wait_online(3)
    assert all("fresh" in [label["name"] for label in runner["labels"]] for runner in deployment.control.runners())


def test_flush_removes_busy_ones_too(deployment: Deployment) -> None:
    """`flush-runners` leaves none of the old ones, and the wanted number is there again."""
    before = deployment.keep(2)
    deployment.job("sleep 600", status="in_progress")

    task = deployment.unit.run("flush-runners")

    assert task["status"] == "completed"
    assert not set(before) & set(deployment.instances())
    assert len(deployment.wait_online(2)) == 2


def test_check_runners_gives_counts(deployment: Deployment) -> None:
    """The action counts online, offline and unknown runners, and names them."""
    names = deployment.keep(2)

    results = deployment.unit.run("check-runners")["results"]

    assert {key: results[key] for key in ("online", "offline", "unknown")} == {
        "online": "2",
        "offline": "0",
        "unknown": "0",
    }
    assert results["runners"] == ", ".join(names)


def test_check_runners_shows_jobs_images_and_binaries(deployment: Deployment) -> None:
    """With a format there is a row for each runner, and a busy one has its job's repository and workflow."""
    names = deployment.keep(2)
    job = deployment.job("until [ -e /tmp/go ]; do sleep 0.2; done", status="in_progress", workflow="CI \u202e\n name:")

    def shown(form: str) -> str:
        return str(deployment.unit.run("check-runners", {"format": form})["results"]["runners"])

    def busy() -> list[dict[str, Any]]:
        return [row for row in json.loads(shown("json")) if row["job"] and row["since"]]

    [found] = wait_for(busy, "a row with a job")

    assert (found["name"], found["state"]) == (job["runner_name"], "busy")
    assert found["job"] == {"repository": REPOSITORY, "workflow": "CI \\u202e name:"}
    rows = json.loads(shown("json"))
    assert [row["name"] for row in rows] == names
    assert all(len(row["image"]) == 12 and row["binary"].startswith("2.") for row in rows)
    assert [row["state"] for row in yaml.safe_load(shown("yaml"))] == [row["state"] for row in rows]
    assert [line.split()[0] for line in shown("table").splitlines()] == ["Name", *names]
    deployment.inside(job["runner_name"], "touch /tmp/go")
    deployment.wait_gone(job["runner_name"])


def test_new_runner_binary_replaces_idle_runners(deployment: Deployment) -> None:
    """`update-dependencies` fetches and verifies what GitHub offers; the second time nothing changes."""
    before = deployment.keep(1)
    deployment.control.runner_binary(version="2.337.0")

    first, second = (deployment.unit.run("update-dependencies")["results"]["flush"] for _ in range(2))

    assert (first, second) == ("True", "False")
    assert deployment.wait_online(1) != before
    assert [runner["version"] for runner in deployment.control.runners()] == ["2.337.0"]


def test_wrong_checksum_keeps_the_old_runner_binary(deployment: Deployment) -> None:
    """A tarball without GitHub's checksum is not used; the action fails with the reason, runners go on."""
    before = deployment.keep(1)
    deployment.control.runner_binary(version="2.338.0", checksum="0" * 64)
    try:
        task = deployment.unit.run("update-dependencies")
        deployment.reconcile()
    finally:
        deployment.control.runner_binary(version="2.337.0", checksum=None)

    assert task["status"] == "failed"
    assert "checksum" in task["message"]
    assert deployment.instances() == before


# A few on the unit; the words for each option are in tests/unit/test_charm_state.py.
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vm-memory": "7GB", "vm-cpu": 0, "denylist": "10.0.0.1/8"}, ["vm-memory", "vm-cpu", "denylist"]),
        ({"base-image": "noble"}, ["base-image", "jammy"]),
        ({"runner-storage": "memory"}, ["runner-storage", "juju-storage"]),
    ],
    ids=lambda value: next(iter(value)),
)
def test_wrong_options_block_and_runners_stay(
    deployment: Deployment, options: dict[str, Any], words: list[str]
) -> None:
    """Every fault is named, nothing running is touched, and the old value unblocks."""
    before = deployment.keep(1)
    good = {name: deployment.unit.config()[name]["value"] for name in options}

    deployment.unit.set_config(options)
    status, message = deployment.status()
    deployment.reconcile()

    assert status == "blocked"
    assert all(word in message for word in words)
    assert deployment.instances() == deployment.online() == before
    deployment.unit.set_config(good)
    assert deployment.status()[0] == "active"
    assert deployment.instances() == before


LIST = r"/actions/runners(\?|$)"
# A few on the unit; all of them, at every endpoint, are in tests/adapters/test_github_faults.py.
GITHUB_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "401": ({"status": 401}, "blocked", "401"),
    "403 rate limit": ({"status": 403, "headers": {"retry-after": "60"}}, "waiting", "UTC"),
    "cut off": ({"cut": 40}, "waiting", "GitHub"),
}


@pytest.mark.parametrize(("fault", "status", "word"), GITHUB_FAULTS.values(), ids=GITHUB_FAULTS.keys())
def test_github_misbehaving_touches_no_runner(
    deployment: Deployment, fault: dict[str, Any], status: str, word: str
) -> None:
    """Each odd answer has its status, no runner is removed, and the next reconcile recovers."""
    before = deployment.keep(1)
    deployment.control.add_fault(method="GET", path=LIST, times=None, **fault)

    deployment.reconcile()

    assert deployment.status()[0] == status
    assert word in deployment.status()[1]
    assert deployment.instances() == before
    deployment.control.remove_faults()
    deployment.reconcile()
    assert deployment.status()[0] == "active"
    assert deployment.instances() == before


def test_one_failed_answer_is_tried_again(deployment: Deployment) -> None:
    """502 once and then fine is no fault at all."""
    before = deployment.keep(1)
    fault = deployment.control.add_fault(method="GET", path=LIST, times=1, status=502)

    deployment.reconcile()

    assert deployment.status()[0] == "active"
    assert [item["hits"] for item in deployment.control.faults() if item["id"] == fault] == [1]
    assert deployment.instances() == before


def test_empty_list_removes_nothing(deployment: Deployment) -> None:
    """A list that was full a moment ago and is empty now: unknown is not dead."""
    before = deployment.keep(1)
    body = json.dumps({"total_count": 0, "runners": []})
    deployment.control.add_fault(method="GET", path=LIST, times=None, status=200, body=body)

    deployment.reconcile()

    assert deployment.instances() == before


def test_revoked_token_blocks_and_a_new_one_unblocks(deployment: Deployment) -> None:
    """A dead token is for the operator to replace; runners go on meanwhile and are not replaced for a new one."""
    before = deployment.keep(1)
    deployment.control.remove_token(PAT)
    try:
        deployment.reconcile()
        assert deployment.status()[0] == "blocked"
        assert deployment.instances() == before
        deployment.control.add_token("ghp_another_token_of_the_same_operator")
        deployment.unit.set_config({"token": "ghp_another_token_of_the_same_operator"})
        assert deployment.status()[0] == "active"
        assert deployment.instances() == before
    finally:
        deployment.control.add_token(PAT)


def test_token_comes_from_a_secret_and_follows_it(deployment: Deployment) -> None:
    """`token-secret` is used before `token`, with either key; a rotated secret is used without another word."""
    deployment.keep(1)
    unit, control = deployment.unit, deployment.control
    control.add_token("ghp_first_secret_token_of_the_operator")
    uri = unit.add_secret("github", {"token": "ghp_first_secret_token_of_the_operator"})
    unit.set_config({"token-secret": uri})
    assert deployment.status()[0] == "blocked"
    assert "grant-secret" in deployment.status()[1]
    unit.grant_secret("github")
    deployment.reconcile()
    assert deployment.status()[0] == "active"

    control.remove_token("ghp_first_secret_token_of_the_operator")
    control.add_token("ghp_second_secret_token_of_the_operator")
    unit.update_secret("github", {"github-token": "ghp_second_secret_token_of_the_operator"})

    assert deployment.status()[0] == "active"


def test_a_github_app_takes_over_and_runners_register_just_in_time(deployment: Deployment) -> None:
    """`app-secret` is used first. Neither it nor another key replaces a runner; new runners get no token."""
    before = deployment.keep(1)
    unit, control = deployment.unit, deployment.control
    app = deployment.use_app()
    assert (deployment.status()[0], deployment.instances()) == ("active", before)

    second = control.add_app_key(app["id"])
    unit.update_secret("app", {"app-id": app["client_id"], "private-key": second["private_key"]})
    control.remove_app_key(app["id"], app["key"])
    control.clear_requests()
    deployment.reconcile()
    assert (deployment.status()[0], deployment.instances()) == ("active", before)

    assert deployment.job("true")["conclusion"] == "success"
    deployment.wait_gone(before[0])
    deployment.reconcile()
    [name] = deployment.wait_online(1)
    asked = [call["path"].rpartition("/")[2] for call in control.requests() if call["status"] == 201]
    assert {"access_tokens", "generate-jitconfig"} <= set(asked)
    files = deployment.inside(
        name, "cd /home/ubuntu/github-runner && stat -c '%a %U %n' .runner .cred* .register.sh || true"
    )
    assert files.splitlines() == [
        f"600 ubuntu {file}" for file in (".runner", ".credentials", ".credentials_rsaparams")
    ]
    words = deployment.machine.exec("sh", "-c", "cat /var/log/juju/*.log; journalctl --no-pager -q")
    assert second["private_key"].splitlines()[3] not in words + json.dumps(deployment.lxd(f"instances/{name}"))
    unit.reset_config("app-secret")


def test_an_older_server_gives_a_registration_token(deployment: Deployment) -> None:
    """Before Enterprise Server 3.10 a runner registers itself by `config.sh`. Its token is gone before its job."""
    [before] = deployment.keep(1)
    control = deployment.control
    control.settings(enterprise_version="3.9.4")
    try:
        assert deployment.job("true")["conclusion"] == "success"
        deployment.wait_gone(before)
        control.clear_requests()
        deployment.reconcile()
        [name] = deployment.wait_online(1)
        asked = {call["path"].rpartition("/")[2] for call in control.requests()}
        assert ("registration-token" in asked, "generate-jitconfig" in asked) == (True, False)
        found = deployment.inside(name, "ls /home/ubuntu/github-runner/.register.sh; ls -A /run/github-runner")
        assert found.split() == ["/home/ubuntu/github-runner/.register.sh"]
        assert deployment.job("true")["conclusion"] == "success"
    finally:
        control.settings(enterprise_version="3.17.0")


def test_organisation_runners_join_their_group(deployment: Deployment) -> None:
    """An organisation path registers there, in the configured group, and the repository's runners are replaced."""
    before = deployment.keep(1)
    deployment.control.add_organisation("octo-org", ["builders"])

    [name] = deployment.keep(1, path="octo-org", group="builders")

    [runner] = deployment.control.runners()
    assert name not in before
    assert runner["path"] == "octo-org"
    assert runner["runner_group_id"] != 1
    assert deployment.job("true")["conclusion"] == "success"


def test_debug_ssh_reaches_the_job(deployment: Deployment) -> None:
    """A related tmate server is in the job's environment; one with half its keys is skipped with a warning."""
    deployment.keep(1)
    data = {"host": "192.0.2.10", "port": "22", "rsa_fingerprint": "SHA256:abc", "ed25519_fingerprint": "SHA256:def"}
    relation = deployment.unit.integrate("debug-ssh", {"host": "192.0.2.10"})
    assert "not ready" in deployment.unit.debug_log()
    try:
        deployment.unit.set_relation_data(relation, data)
        deployment.wait_online(1)
        job = deployment.job("env | grep TMATE | sort")
        deployment.wait_gone(job["runner_name"])
    finally:
        deployment.unit.remove_relation(relation)

    assert [line for line in job["log"] if line.startswith("TMATE")] == [
        "TMATE_SERVER_ED25519_FINGERPRINT=SHA256:def",
        "TMATE_SERVER_HOST=192.0.2.10",
        "TMATE_SERVER_PORT=22",
        "TMATE_SERVER_RSA_FINGERPRINT=SHA256:abc",
    ]
    assert len(deployment.wait_online(1)) == 1


REACH = """
try() { curl -s -o /dev/null -m 3 --noproxy '*' "http://$1" && echo "$2 open" || echo "$2 closed $?"; }
try GATEWAY:8099 gateway
try MACHINE:8099 machine
try 198.51.100.1:8098 denied
try 198.51.100.1:8097 beside
try 169.254.169.254:8098 metadata
getent hosts NAME > /dev/null && echo dns open || echo dns closed
ping -c 1 -W 2 MACHINE > /dev/null && echo ping open || echo ping closed
ping -6 -c 1 -W 2 LINKLOCAL%eth0 > /dev/null 2>&1 && echo ipv6 open || echo ipv6 closed
ls /dev/lxd/sock 2>/dev/null && echo devlxd open || echo devlxd closed
"""
SERVE = "python3 -m http.server --directory /var/empty"


def ipv6_of(deployment: Deployment, interface: str) -> str:
    found = json.loads(deployment.machine.exec("ip", "-json", "-6", "address", "show", "dev", interface))
    return next((item["local"] for one in found for item in one["addr_info"]), "")


def test_firewall_is_felt_from_inside(deployment: Deployment) -> None:
    """A runner reaches neither the machine, metadata, the denylist but for a debug-ssh server's port, IPv6 nor LXD."""
    [runner] = deployment.keep(1)
    machine, gateway = deployment.machine.address(), deployment.lxd("networks/lxdbr0")["config"]["ipv4.address"]
    # LXD takes IPv6 from its bridge; another program of the machine may bring it back.
    deployment.machine.exec("sysctl", "-q", "net.ipv6.conf.lxdbr0.disable_ipv6=0")
    link_local = wait_for(lambda: ipv6_of(deployment, "lxdbr0"), "the bridge's link-local address")
    words = REACH.replace("GATEWAY", gateway.split("/")[0]).replace("MACHINE", machine).replace("NAME", f"{runner}.lxd")
    words = words.replace("LINKLOCAL", link_local)
    deployment.machine.exec("sh", "-c", f"mkdir -p /var/empty; systemd-run -q --unit=web {SERVE} 8099")
    Path("/var/empty").mkdir(exist_ok=True)
    with contextlib.ExitStack() as outside:
        for address in ("198.51.100.1", "169.254.169.254"):
            subprocess.run(["ip", "address", "replace", f"{address}/32", "dev", BRIDGE], check=True)
            outside.callback(subprocess.run, ["ip", "address", "delete", f"{address}/32", "dev", BRIDGE], check=True)
            for port in ("8098", "8097"):
                web = subprocess.Popen([*SERVE.split(), port, "--bind", address], stderr=subprocess.DEVNULL)
                outside.callback(web.wait)
                outside.callback(web.kill)
        wait_for(lambda: "denied open" in deployment.inside(runner, words), "the way to 198.51.100.1")
        before = deployment.inside(runner, words).splitlines()
        deployment.unit.set_config({"denylist": "198.51.100.0/24,203.0.113.0/24"})
        after = deployment.inside(runner, words).splitlines()
        server = {"host": "198.51.100.1", "port": "8098"}
        keys = {"rsa_fingerprint": "SHA256:a", "ed25519_fingerprint": "SHA256:b"}
        relation = deployment.unit.integrate("debug-ssh", {**server, **keys})
        spared = deployment.inside(deployment.wait_online(1)[0], words).splitlines()
        deployment.unit.remove_relation(relation)
    deployment.machine.exec("systemctl", "stop", "web")
    deployment.machine.exec("sysctl", "-q", "net.ipv6.conf.lxdbr0.disable_ipv6=1")

    closed = {f"{what} closed 7" for what in ("gateway", "machine", "metadata")}
    closed |= {"ping closed", "ipv6 closed", "devlxd closed"}
    assert set(before) == {*closed, "denied open", "beside open", "dns open"}
    assert set(after) == {*closed, "denied closed 7", "beside closed 7", "dns open"}
    # The relation has replaced the runner whose name was asked for.
    assert {*closed, "denied open", "beside closed 7"} <= set(spared)


def test_runners_cannot_reach_each_other(deployment: Deployment) -> None:
    """Two runners of one bridge are isolated from each other, while each has the way out."""
    one, other = deployment.keep(2)
    address = deployment.lxd(f"instances/{other}/state")["network"]["eth0"]["addresses"][0]["address"]

    ping = f"ping -c 1 -W 1 {address} > /dev/null && echo reached; ip route get {address}"
    found = deployment.inside(one, ping, check=False)

    assert "reached" in deployment.inside(other, ping)
    assert address in found
    assert "reached" not in found


HOSTILE = {
    "pipe": "cd /metrics-exchange; rm -f post-job-metrics.json; mkfifo post-job-metrics.json",
    "link": "cd /metrics-exchange; rm pre-job-metrics.json; ln -s /etc/shadow pre-job-metrics.json",
    "huge": "cd /metrics-exchange; head -c 100000 /dev/zero > pre-job-metrics.json",
    "full": "cat /dev/zero > /metrics-exchange/fill; true",
}


def test_hostile_metrics_cost_only_that_runners_metrics(deployment: Deployment) -> None:
    """Pipes, links, huge files and a full disk in the metrics storage: quarantined or dropped, nothing hangs."""
    deployment.keep(1)
    for command in HOSTILE.values():
        [runner] = deployment.wait_online(1)
        assert deployment.job(command)["runner_name"] == runner
        deployment.wait_gone(runner)
        deployment.reconcile()
        assert f"/home/ubuntu/runner-fs/{runner}" not in deployment.mounts()
    assert deployment.status()[0] == "active"
    assert "root:" not in deployment.machine.exec("cat", "/var/log/github-runner-metrics.log")
    kept = deployment.machine.exec("sh", "-c", "ls /home/ubuntu/runner-fs-quarantine").split()
    assert len(kept) >= 3


def test_lxd_that_is_down_is_waited_for(deployment: Deployment) -> None:
    """Without LXD the unit waits and says so; the next reconcile finds everything as it was."""
    before = deployment.keep(1)
    deployment.machine.exec("systemctl", "mask", "lxd.service", "lxd.socket")
    # The daemon alone: with its dependencies, the unit that shuts all instances down may be stopped first.
    daemon = ("systemctl", "stop", "--job-mode=ignore-dependencies", "lxd.socket", "lxd.service")
    deployment.machine.exec(*daemon)
    try:
        deployment.reconcile()
        assert deployment.status()[0] == "waiting"
        assert "LXD" in deployment.status()[1]
    finally:
        deployment.machine.exec("systemctl", "unmask", "lxd.service", "lxd.socket")
        deployment.machine.exec("systemctl", "start", "lxd.socket")
    deployment.reconcile()
    assert deployment.status()[0] == "active"
    assert deployment.instances() == before


def test_missing_image_is_named(deployment: Deployment) -> None:
    """Without an image no runner is created, it is built outside of hooks, and the status says how that went."""
    [lost, other] = deployment.keep(2)
    fingerprint = deployment.lxd("images/aliases/jammy")["target"]
    deployment.machine.exec("lxc", "image", "alias", "delete", "jammy")
    build = "ghro.build-image.github-runner-0.service"
    try:
        deployment.machine.exec("lxc", "delete", "--force", lost)
        deployment.reconcile()
        first = deployment.status()
        wait_for(lambda: "failed" in deployment.machine.call("systemctl", "is-active", build).stdout, "the build's end")
        deployment.unit.set_config({"labels": "another"})
        second = deployment.status()
        there = deployment.instances()
    finally:
        deployment.machine.exec("lxc", "image", "alias", "create", "jammy", fingerprint)

    # The first build may have failed before the reconcile ends.
    assert first[0] == "active"
    assert re.match(
        r"1 of 2 runners: 1 idle, 0 busy; image jammy: .*being built.* \(test mode: containers\)$", first[1]
    )
    assert second[0] == "active"
    assert "image jammy: creating the builder from https://cloud-images.ubuntu.com/daily failed" in second[1]
    assert there == [other]
    wait_for(lambda: lost not in deployment.online(), "GitHub seeing the lost one offline")
    deployment.reconcile()
    deployment.wait_online(2)


def test_secrets_stay_out_of_logs_and_instances(deployment: Deployment) -> None:
    """Neither the token nor a registration token is in a log, a status, or an instance's configuration."""
    [name] = deployment.keep(1)

    words = deployment.machine.exec("sh", "-c", "cat /var/log/juju/*.log; journalctl --no-pager -q")
    config = json.dumps(deployment.lxd(f"instances/{name}"))
    assert PAT not in words + config
    assert "AAAA" not in config
    assert deployment.inside(name, "ls -A /run/github-runner") == ""
    assert PAT not in deployment.inside(name, "cat /home/ubuntu/github-runner/.env /etc/environment; env")


# Tried as another user of the machine: what can be read, what can be changed, and whether a path can be exchanged.
PLACES = (
    "/var/lib/github-runner /run/github-runner /run/github-runner-pool /storage/juju /home/ubuntu/runner-fs "
    "/home/ubuntu/runner-fs-images /home/ubuntu/runner-fs-quarantine /var/log/github-runner-logs "
    "/var/log/github-runner-metrics.log"
)
ATTACKS = f"""
exec 2> /dev/null
find {PLACES} -type f -readable
find {PLACES} -writable
for folder in {PLACES}; do
    test -w $(dirname $folder) && test $(dirname $folder) != /home/ubuntu && echo parent of $folder
    mv $folder $folder.taken && echo renamed $folder
    rmdir $folder && echo removed $folder
done
for lock in github-runner-0 build-image; do flock --nonblock /run/github-runner/$lock.lock echo held $lock; done
cat /home/ubuntu/runner-fs/*/* /var/lib/github-runner/runner-fs/*/*
true
"""


# What is newer than the charm's own files, wherever it is: nothing of it belongs to others, or can be written by them.
NEWER = """
find / -xdev \\( -path /var/lib/lxd -o -path /tmp -o -path /var/tmp -o -path /home/ubuntu \
    -o -path '*/apt/*/partial' \\) -prune -o \
    -newer /var/lib/juju/agents/unit-github-runner-0/charm/dispatch ! -type l \\( ! -user root -o -perm /o+w \\) -print
"""


def test_nothing_that_a_unit_made_is_open_to_other_users(deployment: Deployment) -> None:
    """No other user reads, writes, holds, renames or replaces anything of a unit. The metrics log may be read."""
    [name] = deployment.keep(1)
    machine = deployment.machine
    owner = machine.exec("stat", "-c", "%u", "/home/ubuntu").strip()
    machine.exec("chown", "1000", "/home/ubuntu")
    for user in ("1000", "65534"):
        other = ("setpriv", f"--reuid={user}", "--regid=65534", "--clear-groups")
        assert machine.exec(*other, "sh", "-c", ATTACKS).split() == ["/var/log/github-runner-metrics.log"]

    # The folder of the runner's metrics is its own.
    assert [place for place in machine.exec("sh", "-c", NEWER).split() if not place.endswith(f"/{name}")] == []
    assert machine.exec("sh", "-c", f"find {PLACES} -xdev ! -user root ! -name {name} 2> /dev/null; true") == ""
    places = ("/var/lib/github-runner/runner-fs-images/*", "/storage/juju/*.img", "/run/github-runner/*")
    modes = machine.exec("sh", "-c", f"stat -c %a {' '.join(places)}").split()
    assert set(modes) == {"600"}
    assert deployment.mounts() == [f"/home/ubuntu/runner-fs/{name}"]
    machine.exec("chown", owner, "/home/ubuntu")


def test_update_status_repairs_a_dead_timer(deployment: Deployment) -> None:
    """A timer that somebody stopped runs again after the next update-status."""
    timer = "ghro.reconcile-runners.github-runner-0.timer"
    deployment.machine.exec("systemctl", "stop", timer)

    deployment.unit.update_status()

    assert deployment.machine.call("systemctl", "is-active", timer).stdout.strip() == "active"


def test_too_little_space_blocks_and_names_both_sizes(deployment: Deployment) -> None:
    """Disks that cannot fit block before anything is made, whatever fires; runners go on, less unblocks."""
    deployment.keep(1)
    before = deployment.instances()

    deployment.unit.set_config({"vm-disk": "7TiB"})
    deployment.reconcile()

    status, message = deployment.status()
    assert status == "blocked"
    assert message.startswith("virtual-machines: 1 × vm-disk 7TiB = 7168GiB exceeds the ")
    assert message.endswith("GiB of /storage/juju; lower one of them, or deploy with a larger storage")
    assert deployment.instances() == before
    assert deployment.unit.run("check-runners")["results"]["online"] == "1"
    deployment.unit.set_config({"vm-disk": "2GiB"})
    assert deployment.status()[0] == "active"


def test_deprecated_version_ends_the_respawning(deployment: Deployment) -> None:
    """A runner whose version is deprecated stops creation with a clear status; a newer version starts it again."""
    deployment.keep(0)
    deployment.control.runner_binary(minimum_version="2.999.0")
    try:
        deployment.unit.set_config({"virtual-machines": 1})
        (name,) = deployment.instances()
        wait_for(
            lambda: "yes" in deployment.inside(name, "test -e /run/github-runner/refused && echo yes || true"),
            "the end of the runner agent",
        )
        wait_for(lambda: deployment.online() == [], "GitHub's notice")

        deployment.reconcile()
        deployment.reconcile()

        assert deployment.instances() == deployment.registered() == []
        status, message = deployment.status()
        assert status == "waiting"
        assert "is deprecated by GitHub: one runner is tried after 15 minutes" in message
        assert "update-dependencies" in message
        deployment.control.runner_binary(version="2.999.1")
        deployment.unit.run("update-dependencies")
        deployment.wait_online(1)
    finally:
        deployment.control.runner_binary(minimum_version=None, version="2.336.0")
        deployment.unit.run("update-dependencies")


def test_age_of_the_runner_binary_is_in_the_status(deployment: Deployment) -> None:
    """Two weeks without GitHub's word that it is current: GitHub will soon refuse it, and the status says so."""
    deployment.keep(1)
    using = "/var/lib/github-runner/application/current"
    deployment.machine.exec("sh", "-c", f"touch -d '-15 days' $(readlink -f {using})")
    deployment.control.add_fault(
        method="GET", path="/repos/octo-org/demo/actions/runners/downloads", times=None, status=503
    )

    deployment.reconcile()

    assert "runner binary not refreshed for 15 days" in deployment.status()[1]
    deployment.control.remove_faults()
    deployment.reconcile()
    assert "not refreshed" not in deployment.status()[1]
    assert deployment.events("unit_health")[-1]["application_age"] < 60
