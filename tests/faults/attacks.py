"""What hostile jobs have tried, one attack after another, against a unit whose other runners serve ordinary jobs.

Each attack is a function whose docstring is its row in docs/reference/reliability.md; an assertion says what held.
"""

import base64
import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.support.deployment import REPOSITORY, Deployment, wait_for
from tests.support.network import heard_by_a_neighbour, heard_by_the_machine, leases_taken

# One has the neighbour's job.
RUNNERS = 4
KEY = "user.github-runner."
# By this the agent asks for a reconcile that reads the list of runners, with scaling=demand.
LIST_DUE = "/var/lib/github-runner/unit-github-runner-0/list-due"
# Keeps the instance when its agent has ended: the service's power-off is taken away, then every program's.
KEEP = """
unit=/run/systemd/system/github-runner.service.d
sudo mkdir -p $unit
printf '[Unit]\\nSuccessAction=none\\nFailureAction=none\\n' | sudo tee $unit/keep.conf > /dev/null
sudo systemctl daemon-reload
{work}
sudo mv /usr/bin/systemctl /usr/bin/systemctl.real
sudo ln -s /bin/true /usr/bin/systemctl
"""
FORGED = (
    "sudo systemd-run --quiet --unit=forged "
    "bash -c 'exec -a /home/ubuntu/github-runner/bin/Runner.Worker sleep infinity'"
)
# In the place of logs: pipes, an endless file, and a program that never ends.
TRAPS = """
cd ~/github-runner/_diag
for number in $(seq 31); do mkfifo Worker_$number.log; done
ln -s /dev/zero Runner_zero.log
sudo mkfifo /var/log/syslog.trap
sudo mv /var/log/syslog.trap /var/log/syslog
printf '#!/bin/sh\\nexec sleep infinity\\n' | sudo tee /usr/local/bin/journalctl > /dev/null
sudo chmod 755 /usr/local/bin/journalctl
"""
SHELL_GONE = "sudo mv /bin/sh /bin/sh.real; sudo ln -s /bin/false /bin/sh"


def in_demand(found: Deployment) -> bool:
    """Whether the unit has scaling=demand."""
    return bool(found.unit.config()["scaling"]["value"] == "demand")


def reconcile(found: Deployment) -> None:
    """What the timer does some minutes later: with scaling=demand GitHub's list of runners is read once in five."""
    # A reconcile of the agent's that runs now leaves it to the next one.
    found.machine.exec("touch", LIST_DUE)
    found.reconcile()


def kept(found: Deployment, work: str) -> str:
    """A job that does something and keeps its instance; its name, once GitHub has deleted the registration."""
    # The charm has seen the runner online, as each runner that waits for its job for a while.
    reconcile(found)
    name = str(found.job(KEEP.format(work=work))["runner_name"])
    wait_for(lambda: name not in found.registered(), f"GitHub deleting {name}")
    reconcile(found)
    assert name in found.instances(), "the instance did not stay: there is nothing to be tried"
    return name


def later(found: Deployment, name: str, seconds: float) -> None:
    """Let so much time pass for a runner that GitHub does not know."""
    since = float(found.machine.exec("lxc", "config", "get", name, f"{KEY}offline-since"))
    found.machine.exec("lxc", "config", "set", name, f"{KEY}offline-since={since - seconds:.0f}")
    age(found, name, seconds)


def complete(found: Deployment) -> None:
    """All wanted runners are online."""
    found.wait_online(int(found.unit.config()["virtual-machines"]["value"]))


def replaced(found: Deployment, name: str) -> None:
    """One reconcile removes a runner and creates its successor."""
    reconcile(found)
    assert name not in found.instances()
    complete(found)


def exchanged(found: Deployment, command: str) -> list[dict[str, Any]]:
    """A job that changes what lies in its metrics folder as its last act; the events of its runner."""
    before = len(found.events())
    name = str(found.job(command)["runner_name"])
    found.wait_gone(name)
    started = time.monotonic()
    reconcile(found)
    assert time.monotonic() - started < 120
    assert f"{name}.img" not in found.storages()
    complete(found)
    return [event for event in found.events()[before:] if event["event"].startswith("runner_st")]


def a_forged_worker(found: Deployment) -> None:
    """A process named like a worker, and no way to power off: the instance stays for 15 minutes and is shown."""
    name = kept(found, FORGED)
    reconcile(found)
    assert "1 of them unknown to GitHub" in found.status()[1]
    assert f"{name}: busy, unknown to GitHub" in found.unit.run("check-runners")["results"]["details"]
    later(found, name, 15 * 60)
    replaced(found, name)


def a_forged_worker_of_a_lost_runner(found: Deployment) -> None:
    """The same, with a registration that GitHub keeps as offline for a day: the instance stays for 6 hours."""
    name = kept(found, FORGED)
    listed = found.control.add_runner(REPOSITORY, name, status="offline", busy=False)
    later(found, name, 6 * 3600 - 600)
    reconcile(found)
    assert name in found.instances()
    later(found, name, 600)
    replaced(found, name)
    assert listed["id"] not in [runner["id"] for runner in found.control.runners()]


def a_silent_instance(found: Deployment) -> None:
    """No shell that could answer the health probe: the instance stays for an hour."""
    name = kept(found, SHELL_GONE)
    # Until then it could still be starting.
    age(found, name, 3600)
    reconcile(found)
    later(found, name, 3600)
    replaced(found, name)


def a_forged_listener(found: Deployment) -> None:
    """A service manager that calls everything active: the registration is gone, and the instance goes at once."""
    name = str(found.job(KEEP.format(work="true"))["runner_name"])
    wait_for(lambda: name not in found.registered(), f"GitHub deleting {name}")
    age(found, name, 3600)
    replaced(found, name)


def is_gone(found: Deployment, name: str) -> bool:
    """Whether GitHub does not list a runner."""
    return name not in found.registered()


def a_forged_end_of_the_agent(found: Deployment) -> None:
    """A short job fakes a failed start and a deprecated version: no pause of creations, none of its words are shown."""
    for mark in ("failed", "refused"):
        words = "echo 'words of a job' | sudo systemd-cat --identifier=start.sh"
        work = f"sudo touch /run/github-runner/{mark}; {words}"
        name = str(found.job(KEEP.format(work=work))["runner_name"])
        wait_for(partial(is_gone, found, name), f"GitHub deleting {name}")
        # Taken and ended between two reconciles, and given up by GitHub, which keeps the runner as offline.
        found.machine.exec("lxc", "config", "set", name, f"{KEY}online=")
        found.control.add_runner(REPOSITORY, name, status="offline", busy=False)
        age(found, name, 10 * 60)
        reconcile(found)
        status = found.status()[1]
        # With scaling=demand the scale set's messages have named the runner's job: there is nothing to be reported.
        assert (f"{name}: ended without a job, see its logs" in status) is not in_demand(found), status
        assert not any(text in status for text in ("words of a job", "deprecated", "next attempt")), status
        assert name not in found.instances()
        complete(found)


def age(found: Deployment, name: str, seconds: float) -> None:
    """Make a runner older."""
    made = float(found.machine.exec("lxc", "config", "get", name, f"{KEY}prepared"))
    found.machine.exec("lxc", "config", "set", name, f"{KEY}prepared={made - seconds:.0f}")


def traps_for_logs(found: Deployment) -> None:
    """Pipes, an endless link and a program that never ends in the place of logs: one time limit, no instance stays."""
    name = kept(found, f"{FORGED}\n{TRAPS}")
    later(found, name, 15 * 60)
    started = time.monotonic()
    replaced(found, name)
    assert time.monotonic() - started < 120


def metrics_of_a_huge_run(found: Deployment) -> None:
    """Metrics that name a run of 12,800 jobs: at most five requests, after the successor has been created."""
    jobs = [{"id": number, "runner_name": "other"} for number in range(100)]
    answer = json.dumps({"total_count": 12800, "jobs": jobs})
    fault = found.control.add_fault(path="/runs/77/jobs", times=None, status=200, body=answer)
    last = found.control.requests()[-1]["n"]
    try:
        events = exchanged(found, named_run(REPOSITORY))
    finally:
        found.control.remove_faults(fault)
    assert len(events) == 2
    asked = [request["path"] for request in found.control.requests(last)]
    looked_up = [index for index, path in enumerate(asked) if "/runs/77/jobs" in path]
    if in_demand(found):
        # Where the scale set's message of the job's end has come, REST is not asked.
        assert len(looked_up) in (0, 5)
        return
    assert len(looked_up) == 5
    assert any("registration-token" in path for path in asked[: looked_up[0]])


def metrics_of_another_repository(found: Deployment) -> None:
    """Metrics that name a repository of somebody else: the token asks nothing of it."""
    last = found.control.requests()[-1]["n"]
    assert len(exchanged(found, named_run("evil/big"))) == 2
    assert not [request for request in found.control.requests(last) if "evil" in request["path"]]


def named_run(repository: str, workflow: str = "w") -> str:
    """A job that writes metrics of its own choice."""
    metrics = {"timestamp": 1.5, "workflow": workflow, "workflow_run_id": "77", "repository": repository}
    text = base64.b64encode(json.dumps({**metrics, "event": "push"}).encode()).decode()
    return f"cd /metrics-exchange; rm -f pre-job-metrics.json; echo {text} | base64 -d > pre-job-metrics.json"


def a_link_for_metrics(found: Deployment) -> None:
    """A link to a file of the machine in the place of metrics: it is not followed, no event is written."""
    assert exchanged(found, "ln -sf /etc/shadow /metrics-exchange/pre-job-metrics.json") == []


def pipes_for_metrics(found: Deployment) -> None:
    """Named pipes in the place of metrics: nothing waits for a writer."""
    pipes = "mkfifo pre-job-metrics.json post-job-metrics.json"
    assert exchanged(found, f"cd /metrics-exchange; rm -f pre-job-metrics.json; {pipes}") == []


def a_full_metrics_volume(found: Deployment) -> None:
    """A metrics volume filled with files: it ends at 1 MiB, and is removed with its runner."""
    fill = "for n in $(seq 5000); do head -c 1000 /dev/zero > /metrics-exchange/$n || break; done 2> /dev/null; true"
    exchanged(found, fill)


def forged_lines_of_metrics(found: Deployment) -> None:
    """A workflow whose name has line breaks and a whole event in it: it stays text in its own line."""
    line = json.dumps({"event": "reconciliation", "timestamp": 1, "crashed_runners": 99})
    events = exchanged(found, named_run(REPOSITORY, f"w\n{line}\n"))
    assert [event["workflow"] for event in events] == [f"w\n{line}\n"] * 2
    assert 99 not in [event["crashed_runners"] for event in found.events("reconciliation")]


def idle(found: Deployment) -> list[str]:
    """Runners without a job."""
    return sorted({*found.online()} - {*found.busy()})


def spent(found: Deployment, *names: str) -> None:
    """Runners that were changed from inside end, and are replaced."""
    for name in names:
        found.machine.exec("lxc", "delete", "--force", name)
    # Only then a reconcile that reads the list removes their registrations. Not every one does with scaling=demand.
    wait_for(lambda: not {*names} & {*found.online()}, f"{', '.join(names)} offline at GitHub")
    reconcile(found)
    complete(found)


def packets_to_the_machine(found: Deployment) -> None:
    """Packets to every address, broadcast, multicast and loopback of the machine, by five protocols: none arrives."""
    [runner, *_] = idle(found)
    assert heard_by_the_machine(found, runner) == []
    spent(found, runner)


def packets_to_a_neighbour(found: Deployment) -> None:
    """Packets to another runner by a route over the gateway, by five protocols: none arrives."""
    one, other, *_ = idle(found)
    assert heard_by_a_neighbour(found, one, other) == []
    spent(found, one, other)


def all_addresses(found: Deployment) -> None:
    """Requests for 40 addresses, with invented cards and names: DHCP gives two, and new runners get theirs."""
    [runner, *_] = idle(found)
    assert leases_taken(found, runner) <= 2
    spent(found, runner)


ATTACKS: tuple[Callable[[Deployment], None], ...] = (
    a_forged_worker,
    a_forged_worker_of_a_lost_runner,
    a_forged_listener,
    a_forged_end_of_the_agent,
    a_silent_instance,
    traps_for_logs,
    metrics_of_a_huge_run,
    metrics_of_another_repository,
    a_link_for_metrics,
    pipes_for_metrics,
    a_full_metrics_volume,
    forged_lines_of_metrics,
    packets_to_the_machine,
    packets_to_a_neighbour,
    all_addresses,
)


def attempt(found: Deployment, attack: Callable[[Deployment], None]) -> str:
    """What came of one attack: `held`, or why not."""
    started = time.monotonic()
    try:
        attack(found)
        job = found.job("echo an ordinary job")
        assert job["conclusion"] == "success", "an ordinary job afterwards did not succeed"
        found.wait_gone(job["runner_name"])
        reconcile(found)
        complete(found)
    except Exception as error:
        with contextlib.suppress(Exception):
            spent(found, *({*found.instances()} - {*found.busy()}))
        return f"not held: {error!s:.300}"
    return f"held ({time.monotonic() - started:.0f} s)"


def run(found: Deployment, short: bool) -> dict[str, object]:
    """Try all attacks in a row, or the first two, beside a job that runs through all of it."""
    found.keep(RUNNERS)
    neighbour = found.control.add_job(REPOSITORY, "until [ -e /tmp/go ]; do sleep 1; done; echo whole")["id"]
    name = found.control.wait_job(neighbour, "in_progress")["runner_name"]
    results = {}
    for attack in ATTACKS[:2] if short else ATTACKS:
        what = str(attack.__doc__).rstrip(".")
        results[what] = attempt(found, attack)
        print(f"  {attack.__name__}: {results[what]}", flush=True)
    found.inside(name, "touch /tmp/go")
    ended = found.control.wait_job(neighbour)
    return {
        "attacks": len(results),
        "held": sum(result.startswith("held") for result in results.values()),
        "a neighbour's job through all of it": ended["conclusion"],
        **results,
    }
