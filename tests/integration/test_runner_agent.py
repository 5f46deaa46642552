"""What jobs may do inside a runner on a real LXD, and how a runner ends: with the stand-in of the runner agent."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import github
from sandbox.github.control import GitHubControl
from sandbox.lab.lxd_setup import bridge_address
from tests.support.deployment import PAT, REPOSITORY, Deployment, deployed, undeploy, wait_for

pytestmark = pytest.mark.lifecycle

# A step that notes that it ran where the log shows it, and does whatever keeps a refused job going.
CHEAT = "echo CHEATED; sudo systemctl stop '*.timer'; sudo systemctl mask poweroff.target; sudo pkill -f pre-job; true"

# Of every runner here. Its line ends are those of Windows.
OPERATOR_SCRIPT = """\
#!/bin/bash\r
echo "operator: $GITHUB_REPOSITORY $(id -un)"\r
[ "$GITHUB_WORKFLOW" != "not here" ] || exit 3\r
"""


@pytest.fixture(scope="module")
def agent(packed: Path, hub: github.GitHub, policy: str) -> Iterator[Deployment]:
    """A unit with metrics and a policy service. Every test uses up its runner."""
    options = {"virtual-machines": 0, "repo-policy-compliance-url": policy, "repo-policy-compliance-token": "t"}
    options["pre-job-script"] = OPERATOR_SCRIPT
    found = deployed("agent", packed, hub, options)
    found.unit.integrate("cos-agent")
    found.keep(1)
    yield found
    undeploy(found)
    for runner in found.control.runners():
        found.control.remove_runner(runner["id"])


@pytest.fixture
def runner(agent: Deployment) -> str:
    """A fresh idle runner."""
    if len(agent.online()) != 1:
        agent.reconcile()
    return agent.wait_online(1)[0]


def begun(agent: Deployment, command: str, **fields: Any) -> int:
    """Queue a job that prints `begun`, and wait until it has."""
    job: int = agent.control.add_job("octo-org/demo", command, **fields)["id"]
    agent.control.wait_log(job, lambda found: "begun" in found["log"] or found["status"] == "completed")
    return job


@pytest.mark.timeout(240)  # the first one deploys the unit
def test_refused_job_runs_nothing(agent: Deployment, runner: str) -> None:
    """After a refusal no step runs, whatever its condition, and the instance powers off.

    What each kind of event asks of the policy service is in tests/unit/test_policy_check.py.
    """
    steps = [
        {"run": CHEAT, "pre": CHEAT},
        {"run": CHEAT, "if": "always()"},
        {"run": CHEAT, "if": "failure()"},
        {"run": CHEAT, "if": "!cancelled()"},
    ]
    started = time.monotonic()

    job = agent.job("", steps=steps, event="pull_request_target")

    assert job["conclusion"] in ("cancelled", "failure")
    assert time.monotonic() - started < 30
    assert any("not approved" in line for line in job["log"]), "\n".join(job["log"])
    agent.wait_gone(runner)
    assert "CHEATED" not in agent.control.job(job["id"])["log"]
    agent.reconcile()
    assert agent.events("runner_stop")[-1]["status"] == "repo-policy-check-failure"


@pytest.mark.timeout(120)
def test_job_whose_pre_job_script_fails_runs_nothing(agent: Deployment, runner: str) -> None:
    """The operator's script runs as user ubuntu after the policy check; its failure ends the job and the runner."""
    steps = [{"run": CHEAT, "pre": CHEAT}, {"run": CHEAT, "if": "always()"}]

    job = agent.job("", steps=steps, workflow="not here")

    assert job["conclusion"] in ("cancelled", "failure")
    log = "\n".join(job["log"])
    checked, ran, failed = (
        log.index(text)
        for text in ("check has passed", "operator: octo-org/demo ubuntu", "script failed with exit code 3.")
    )
    assert checked < ran < failed
    agent.wait_gone(runner)
    assert "CHEATED" not in agent.control.job(job["id"])["log"]
    agent.reconcile()
    stop = agent.events("runner_stop")[-1]
    assert (stop["workflow"], stop["status"], stop["status_info"]) == ("not here", "abnormal", {"code": 3})


@pytest.mark.timeout(120)
def test_job_cancelled_while_it_is_refused_runs_nothing(agent: Deployment, runner: str) -> None:
    """A refused job that is also cancelled at GitHub never gets to its steps that always run."""
    job = agent.control.add_job("octo-org/demo", steps=[{"run": CHEAT, "if": "always()"}], event="schedule")["id"]
    agent.control.wait_log(job, lambda found: any("job of event" in line for line in found["log"]))
    agent.control.cancel_job(job)

    agent.wait_gone(runner)

    assert "CHEATED" not in agent.control.job(job)["log"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["stop", "flush-runners", "shutdown"])
def test_flush_and_shutdown_end_a_busy_job_at_github(agent: Deployment, runner: str, how: str) -> None:
    """The job is shown as cancelled within seconds, not as lost after GitHub's time limit."""
    job = begun(
        agent, "grep SigIgn /proc/self/status; trap 'echo interrupted; exit 0' INT; echo begun; sleep 300 & wait"
    )
    started = time.monotonic()

    if how == "flush-runners":
        agent.unit.run(how)
    else:
        agent.machine.exec(*(("lxc", "stop", runner) if how == "stop" else ("lxd", "shutdown", "--timeout=60")))

    found = agent.control.wait_job(job, timeout=5)
    assert found["conclusion"] == "cancelled", "\n".join(found["log"])
    assert "interrupted" in found["log"]
    assert time.monotonic() - started < 30
    ignored = next(line for line in found["log"] if line.startswith("SigIgn"))
    assert int(ignored.split()[1], 16) & 0b110 == 0, ignored


@pytest.mark.timeout(120)
def test_cancelled_step_that_handles_sigint_ends_at_once(agent: Deployment, runner: str) -> None:
    """A cancelled job's step gets SIGINT, and does not wait for the SIGTERM that comes seven seconds later."""
    job = begun(agent, "trap 'echo interrupted; exit 0' INT; echo begun; while true; do sleep 0.05; done")
    started = time.monotonic()

    agent.control.cancel_job(job)

    found = agent.control.wait_job(job, timeout=20)
    assert "interrupted" in found["log"]
    assert time.monotonic() - started < 5
    agent.wait_gone(runner)


@pytest.mark.timeout(120)
def test_killed_process_costs_one_step(agent: Deployment, runner: str) -> None:
    """A step that the kernel kills for its memory fails, later steps run, and the runner reports the job."""
    oom = "sudo systemctl show -p OOMPolicy --value github-runner.service; cat /proc/self/oom_score_adj; kill -KILL $$"
    job = agent.job("", steps=[{"run": oom}, {"run": "echo after", "if": "failure()"}])

    assert job["conclusion"] == "failure"
    assert {"continue", "500", "after"} <= set(job["log"]), "\n".join(job["log"])
    agent.wait_gone(runner)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kill", ["kill -9 -1", "sudo kill -9 -1"])
def test_runner_killed_by_its_job_powers_off(agent: Deployment, runner: str, kill: str) -> None:
    """Whatever a job kills, its instance ends within seconds."""
    job = begun(agent, f"echo begun; sleep 0.2; {kill}")
    started = time.monotonic()

    agent.wait_gone(runner)

    assert time.monotonic() - started < 20
    agent.control.wait_job(job, timeout=60)


@pytest.mark.timeout(120)
def test_package_work_of_a_job_leaves_its_runner_alone(agent: Deployment, runner: str) -> None:
    """Neither a restart of services, nor a new service manager, nor needrestart's configuration ends the runner."""
    steps = [
        {"run": "sudo systemctl restart github-runner.service && echo RESTARTED || echo refused"},
        {"run": "sudo systemctl try-restart github-runner.service && echo RESTARTED || echo refused"},
        {"run": "sudo systemctl daemon-reload && sudo systemctl daemon-reexec && echo reexecuted"},
        {"run": "grep -c github-runner /etc/needrestart/conf.d/github-runner.conf"},
        {"run": "systemctl is-active github-runner.service"},
    ]

    job = agent.job("", steps=steps)

    assert job["conclusion"] == "success", "\n".join(job["log"])
    assert "RESTARTED" not in job["log"]
    assert {"refused", "reexecuted", "active"} <= set(job["log"])
    agent.wait_gone(runner)


@pytest.mark.timeout(120)
def test_updated_agent_is_seen_as_busy(agent: Deployment, runner: str) -> None:
    """The health probe sees the worker of an agent that has updated itself into another folder."""
    agent.control.runner_binary(self_update="2.999.0")
    try:
        wait_for(lambda: [found["version"] for found in agent.control.runners()] == ["2.999.0"], "the update", 40)
        job = begun(agent, "echo begun; until [ -e /tmp/go ]; do sleep 0.1; done")
        assert "/bin.2.999.0/Runner.Worker" in agent.inside(runner, "pgrep -af Runner.Worker")
        registered = agent.control.runners()[0]["id"]
        agent.control.change_runner(registered, status="offline", busy=False)
        agent.reconcile()
        assert "1 busy" in agent.status()[1]
        agent.control.change_runner(registered, status=None, busy=None)
        agent.inside(runner, "touch /tmp/go")
        assert agent.control.wait_job(job)["conclusion"] == "success"
        agent.wait_gone(runner)
    finally:
        agent.control.runner_binary(self_update=None)


@pytest.mark.timeout(180)
def test_listener_that_ends_without_a_job_is_kept_and_reported(agent: Deployment, runner: str) -> None:
    """GitHub refuses sessions as for a wrong clock: the runner waits for its logs, the status has the reason."""
    agent.control.refuse_sessions(times=1)
    agent.inside(runner, "poweroff --force --force", check=False)
    agent.wait_gone(runner)
    agent.reconcile()
    [successor] = agent.instances()
    wait_for(lambda: agent.inside(successor, "ls /run/github-runner/failed", check=False), "the end of the listener")

    agent.reconcile()

    status, message = agent.status()
    assert (status, agent.instances()) == ("waiting", [])
    assert "the clock of the runner differs from GitHub's: Failed to create" in message
    assert agent.events("unit_health")[-1]["failed_starts"] == 1
    assert "Runner_" in agent.machine.exec("ls", f"/var/log/github-runner-logs/{successor}/_diag")
    agent.unit.run("reconcile-runners")
    agent.wait_online(1)
    agent.reconcile()
    assert "without a job" not in agent.status()[1]


@pytest.mark.timeout(180)
def test_runner_of_a_server_with_an_authority_of_its_own(agent: Deployment) -> None:
    """With ca-certificates, charm, download and runner agent trust a GitHub whose certificate nobody else knows."""
    agent.keep(0)
    before = {name: agent.unit.config()[name]["value"] for name in ("github-url", "ca-certificates")}
    with github.serve(bridge_address(), 0, [PAT], [REPOSITORY], tls=True) as secure:
        there = Deployment(agent.machine, agent.unit, secure)
        there.control = GitHubControl(secure.url, ca=secure.ca)
        try:
            agent.unit.set_config({"github-url": secure.url, "virtual-machines": 1})
            assert "is not trusted" in agent.status()[1]

            there.keep(1, **{"ca-certificates": secure.ca})

            job = there.job(
                "echo over TLS; curl --silent --output /dev/null --write-out '%{http_code}' $GITHUB_API_URL"
            )
            assert (job["conclusion"], "over TLS" in job["log"]) == ("success", True), "\n".join(job["log"])
            assert any(line.isdigit() and line != "000" for line in job["log"])
        finally:
            agent.unit.set_config({"virtual-machines": 0})
            agent.reconcile()
            agent.unit.set_config({**before, "virtual-machines": 1})


@pytest.mark.timeout(120)
def test_job_finds_its_environment(agent: Deployment, runner: str) -> None:
    """As many open files as on GitHub's own runners, if the host allows it, and a session with its runtime folder."""
    session = "stat -c %u $XDG_RUNTIME_DIR; until [ -S $XDG_RUNTIME_DIR/systemd/private ]; do sleep 0.1; done"

    job = agent.job(f"echo files $(ulimit -n) $(ulimit -Hn); {session}; systemctl --user show-environment | grep ^HOME")

    [soft, hard] = next(line.split()[1:] for line in job["log"] if line.startswith("files "))
    assert int(soft) == min(65536, int(hard))
    assert {"1000", "HOME=/home/ubuntu"} <= set(job["log"]), "\n".join(job["log"])
    agent.wait_gone(runner)
