"""The script that starts the runner agent: how its end is recorded, and that the instance powers off."""

import os
import shutil
import signal
import subprocess
import time

import pytest

import provision
from metrics.runner import (
    POST_JOB_METRICS_FILE_NAME,
    PostJobStatus,
)
from tests.support.scripts import JOB, POWER_OFF, Shell


@pytest.mark.parametrize(
    ("code", "status", "info"),
    [(0, PostJobStatus.NORMAL, None), (1, PostJobStatus.ABNORMAL, 1), (7, PostJobStatus.ABNORMAL, 7)],
)
def test_end_of_the_runner_agent(shell: Shell, code: int, status: PostJobStatus, info: int | None) -> None:
    """The post-job metrics say how the runner agent ended, then the instance is powered off."""
    shell.stub("run.sh", f"exit {code}", shell.agent)

    done = shell.run(shell.render("start.sh.j2"))

    assert done.returncode == code
    assert shell.post_job.status is status
    assert (shell.post_job.status_info and shell.post_job.status_info.code) == info
    assert shell.post_job.timestamp > 1_700_000_000
    assert shell.arguments("sudo") == POWER_OFF


WORKER_LOG = "mkdir -p _diag; touch _diag/Runner_1.log _diag/Worker_1.log;"


@pytest.mark.parametrize(
    ("run", "mark"),
    [
        pytest.param("exit 7", "refused", id="deprecated version"),
        pytest.param(f"{WORKER_LOG} exit 7", "refused", id="deprecated version after a job"),
        pytest.param("exit 1", "failed", id="no job, an error"),
        pytest.param("mkdir -p _diag; touch _diag/Runner_1.log; exit 0", "failed", id="no job, code 0"),
        pytest.param(f"{WORKER_LOG} exit 0", None, id="a job"),
        pytest.param(f"{WORKER_LOG} exit 1", None, id="a job, an error"),
        pytest.param("kill -TERM $PPID; exit 143", None, id="stopped without a job"),
    ],
)
def test_agent_that_ended_without_a_job_is_kept(shell: Shell, run: str, mark: str | None) -> None:
    """The instance waits an hour for the next reconcile to read the reason, and then powers off as always."""
    shell.stub("run.sh", run, shell.agent)

    shell.run(shell.render("start.sh.j2"))

    marks = [path.name for path in (provision.DEPRECATED_FILE, provision.FAILED_FILE)]
    assert [name for name in marks if (shell.folder / name).exists()] == ([mark] if mark else [])
    assert shell.arguments("sleep") == (["3600"] if mark else [])
    assert shell.arguments("sudo") == POWER_OFF


@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        ('\ufeff{\n  "agentId": 1,\n  "ephemeral": true\n}', True),
        ('{"AgentId":"1","Ephemeral":"True"}', True),
        ('{"AgentId":"1","Ephemeral":"False"}', False),
        ('{"agentId": 1}', False),
        ('{"ephemeral": false}', False),
    ],
)
def test_only_an_ephemeral_runner_starts(shell: Shell, settings: str, starts: bool) -> None:
    """config.sh goes on without an option that it does not know: the next reconcile reports such a runner."""
    shell.stub("run.sh", "exit 0", shell.agent)
    (shell.agent / ".runner").write_text(settings)

    done = shell.run(shell.render("start.sh.j2"))

    assert (shell.folder / "run.sh.args").exists() is starts
    assert (done.stdout == "The runner is not registered as ephemeral.\n") is not starts
    assert (shell.folder / "failed").exists()


@pytest.mark.parametrize("broken", ["no agent", "no run.sh", "no metrics folder", "metrics cannot be written"])
def test_instance_is_powered_off_whatever_happened(shell: Shell, broken: str) -> None:
    """A missing file, or one that cannot be written, does not keep an instance running."""
    shell.stub("run.sh", "exit 0", shell.agent)
    if broken == "no agent":
        shutil.rmtree(shell.agent)
    elif broken == "no run.sh":
        (shell.agent / "run.sh").unlink()
    else:
        shell.metrics.rmdir()
        if broken == "metrics cannot be written":
            # A folder that takes no file, not even root's.
            shell.metrics.symlink_to("/proc/self/fd")

    shell.run(shell.render("start.sh.j2"))

    assert shell.arguments("sudo") == POWER_OFF
    if broken.startswith("no ") and "metrics" not in broken:
        assert shell.post_job.status is PostJobStatus.ABNORMAL


def test_power_off_is_in_order_where_it_fails_at_once(shell: Shell) -> None:
    """If an immediate power-off is refused, an orderly one follows."""
    shell.stub("run.sh", "exit 0", shell.agent)
    shell.stub("sudo", '[ "$4" != --force ]')

    shell.run(shell.render("start.sh.j2"))

    assert shell.arguments("sudo") == [*POWER_OFF, "-n", "systemctl", "poweroff"]


def test_refusal_is_not_overwritten(shell: Shell) -> None:
    """The refusal that the pre-job script recorded is kept when the runner agent ends."""
    shell.stub("run.sh", "exit 1", shell.agent)
    refusal = '{"timestamp": 1.5, "status": "repo-policy-check-failure", "status_info": {"code": 403}}'
    (shell.metrics / POST_JOB_METRICS_FILE_NAME).write_text(refusal)

    shell.run(shell.render("start.sh.j2"))

    assert (shell.metrics / POST_JOB_METRICS_FILE_NAME).read_text() == refusal
    assert shell.arguments("sudo") == POWER_OFF


def test_jobs_start_with_default_signals(shell: Shell) -> None:
    """The runner agent starts with SIGINT and SIGQUIT neither ignored nor blocked, and its jobs inherit that."""
    shell.stub("run.sh", 'grep -E "SigIgn|SigBlk" /proc/self/status > signals', shell.agent)

    shell.run(shell.render("start.sh.j2"))

    masks = [int(line.split()[1], 16) for line in (shell.agent / "signals").read_text().splitlines()]
    for number in (signal.SIGINT, signal.SIGQUIT):
        assert not [mask for mask in masks if mask & 1 << (number - 1)]


@pytest.mark.parametrize("script", ["start.sh.j2", "pre-job.sh.j2"])
def test_times_do_not_depend_on_date(shell: Shell, script: str) -> None:
    """The `date` of other coreutils writes no fraction, or a wrong one."""
    shell.stub("date", "echo 12.5e")
    shell.stub("run.sh", "exit 0", shell.agent)

    shell.run(shell.render(script), **JOB)

    found = shell.post_job.timestamp if script == "start.sh.j2" else shell.pre_job.timestamp
    assert abs(found - time.time()) < 60


def test_the_agent_starts_where_env_cannot_reset_signals(shell: Shell) -> None:
    """Without `env --default-signal` the agent starts; cancelled steps then get no SIGINT."""
    shell.stub("env", 'case "$1" in --default-signal*) exit 125 ;; esac; exec /usr/bin/env "$@"')
    shell.stub("run.sh", "exit 3", shell.agent)

    shell.run(shell.render("start.sh.j2"))

    assert shell.post_job.status_info is not None
    assert shell.post_job.status_info.code == 3


def test_an_agent_that_ends_within_the_stop_has_its_own_code(shell: Shell) -> None:
    """The signal interrupts the wait for the agent, which is gone before the next one begins."""
    ready, never = shell.folder / "ready", shell.folder / "never"
    os.mkfifo(ready)
    os.mkfifo(never)
    shell.stub("run.sh", f"trap 'exit 5' TERM\necho ready > {ready}\nread -r _ <> {never}", shell.agent)
    end = 'kill -TERM "$!" 2>/dev/null'
    script = shell.folder / "start.sh"
    rendered = shell.render("start.sh.j2")
    assert rendered.count(end) == 1
    script.write_text(rendered.replace(end, f'{end}; while kill -0 "$!" 2>/dev/null; do sleep 0.05; done'))

    with subprocess.Popen(["bash", str(script)], env=shell.environment(), start_new_session=True) as process:
        assert ready.read_text() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)

    assert shell.post_job.status_info is not None
    assert shell.post_job.status_info.code == 5


def test_stopped_service_waits_for_the_runner_agent(shell: Shell) -> None:
    """A stop of the service reaches the runner agent, whose own end is then noted."""
    os.mkfifo(shell.folder / "ready")
    os.mkfifo(shell.folder / "never")
    ready, never = shell.folder / "ready", shell.folder / "never"
    end = "trap - TERM; echo ending > {ready}; read -r _ <> {never}"
    run = f"trap '{end}; exit 5' TERM\necho ready > {{ready}}\nread -r _ <> {{never}}"
    shell.stub("run.sh", run.format(ready=ready, never=never), shell.agent)
    script = shell.folder / "start.sh"
    script.write_text(shell.render("start.sh.j2"))

    with subprocess.Popen(["bash", str(script)], env=shell.environment(), start_new_session=True) as process:
        assert ready.read_text() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert ready.read_text() == "ending\n"
        # The agent would die of a second one before it has reported its job.
        process.send_signal(signal.SIGTERM)
        never.write_text("end\n")
        process.wait(timeout=30)

    assert shell.post_job.status_info is not None
    assert shell.post_job.status_info.code == 5
    assert shell.arguments("sudo") == POWER_OFF


@pytest.mark.parametrize(
    "command",
    ["runner=$!", '"${defaults[@]}" ./run.sh'],
    ids=["agent has just started", "no agent yet"],
)
def test_stop_in_the_moment_of_the_start_is_not_lost(shell: Shell, command: str) -> None:
    """A stop that comes while the runner agent is started ends it, or keeps it from being started."""
    os.mkfifo(shell.folder / "never")
    shell.stub("run.sh", f"trap 'exit 5' TERM\nread -r _ <> {shell.folder / 'never'}", shell.agent)
    script, hook = shell.folder / "start.sh", shell.folder / "hook.sh"
    script.write_text(shell.render("start.sh.j2"))
    hook.write_text('trap \'if [ "$BASH_COMMAND" = "$MOMENT" ]; then kill $$; fi\' DEBUG')
    environment = {**shell.environment(), "BASH_ENV": str(hook), "MOMENT": command}

    done = subprocess.run(["bash", str(script)], env=environment, timeout=30)

    # It may have had no time to set its own trap.
    assert done.returncode in (5, 143)
    assert shell.arguments("sudo") == POWER_OFF
