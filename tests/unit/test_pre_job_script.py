"""The pre-job script: the metrics that it writes, and how it runs the operator's script (option pre-job-script)."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import provision
from metrics.runner import FILE_SIZE_BYTES_LIMIT, PRE_JOB_METRICS_FILE_NAME, PostJobStatus
from tests.support.scripts import HOSTILE, JOB, PLAIN, POWER_OFF, Shell, rendered


def test_pre_job_metrics(shell: Shell) -> None:
    """The job's environment becomes the pre-job metrics, without a line in the job's log."""
    done = shell.run(shell.render("pre-job.sh.j2"), **JOB)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert shell.pre_job.model_dump(exclude={"timestamp"}) == {
        "workflow": "Tests",
        "workflow_run_id": "4711",
        "repository": "octo-org/demo",
        "event": "push",
    }
    assert shell.pre_job.timestamp > 1_700_000_000


@pytest.mark.parametrize(
    "workflow",
    [
        pytest.param("x" * 5000, id="5000 characters"),
        pytest.param('"' * 5000, id="5000 quotes"),
        pytest.param("\\" * 5000, id="5000 backslashes"),
        pytest.param("\U0001f980" * 5000, id="5000 characters of four bytes"),
        pytest.param("a\nb\tc\r" * 1000, id="newlines"),
        pytest.param("$(touch canary)`touch canary`' \"; touch canary", id="shell"),
        pytest.param("%s %d ${x} --arg", id="formats"),
        pytest.param("--help", id="an option"),
        pytest.param("", id="empty"),
        pytest.param(
            "\x01" * 5000,
            id="5000 control characters",
        ),
    ],
)
def test_any_workflow_name_is_accepted(shell: Shell, workflow: str) -> None:
    """However a workflow is called, and with the longest repository and event, the charm can read the file."""
    repository = f"{'o' * 39}/{'r' * 100}"
    job = {
        "GITHUB_WORKFLOW": workflow,
        "GITHUB_REPOSITORY": repository,
        "GITHUB_RUN_ID": "9" * 20,
        "GITHUB_EVENT_NAME": "pull_request_review_comment",
    }

    done = shell.run(shell.render("pre-job.sh.j2"), **job)

    assert done.returncode == 0
    assert len((shell.metrics / PRE_JOB_METRICS_FILE_NAME).read_bytes()) <= FILE_SIZE_BYTES_LIMIT
    shown = "".join(char for char in workflow if char >= " ")
    assert shell.pre_job.workflow == shown[:128]
    assert not (shell.folder / "canary").exists()


@pytest.mark.parametrize("script", ["start.sh.j2", "pre-job.sh.j2"])
def test_metrics_are_written_to_the_storage_only(shell: Shell, script: str) -> None:
    """Where nothing is mounted, the folder is the instance's own, and nothing is written to it."""
    shell.stub("mountpoint", "exit 32")
    shell.stub("run.sh", "exit 1", shell.agent)

    shell.run(shell.render(script), **JOB)

    assert list(shell.metrics.iterdir()) == []
    assert shell.arguments("mountpoint") == ["-q", str(shell.metrics)]


@pytest.mark.parametrize("broken", ["no folder", "cannot be written", "no jq", "no environment"])
def test_metrics_never_fail_the_job(shell: Shell, broken: str) -> None:
    """A failure to write metrics does not fail the job."""
    job = {} if broken == "no environment" else JOB
    if broken == "no folder":
        shell.metrics.rmdir()
    elif broken == "cannot be written":
        (shell.metrics / PRE_JOB_METRICS_FILE_NAME).mkdir()
    elif broken == "no jq":
        shell.stub("jq", "exit 127")

    assert shell.run(shell.render("pre-job.sh.j2"), **job).returncode == 0


@pytest.mark.parametrize("value", [*HOSTILE, "a\ntouch canary"])
def test_job_log_names_the_mirror_unchanged(shell: Shell, value: str) -> None:
    """The job's log names the Docker Hub mirror as it is given, and the name runs nothing."""
    done = shell.run(shell.render("pre-job.sh.j2", dockerhub_mirror=value), **JOB)

    assert value in done.stdout
    assert not (shell.folder / "canary").exists()


def test_job_log_without_a_mirror(shell: Shell) -> None:
    """Without a mirror the job's log does not mention one."""
    assert "irror" not in shell.run(shell.render("pre-job.sh.j2"), **JOB).stdout


SCRIPT = "/home/ubuntu/github-runner/operator-pre-job"


def run(shell: Shell, script: str, limit: int = 300, **more: object) -> "subprocess.CompletedProcess[str]":
    """Run the pre-job script of a runner whose operator has given this script."""
    path = shell.folder / "operator-pre-job"
    path.write_text(script)
    path.chmod(0o755)
    # The runner agent kills a script that does not end.
    shell.stub("sleep", '[ "$1" != infinity ] || kill -KILL $PPID')
    return shell.run(shell.render("pre-job.sh.j2", operator_script=path, operator_limit=limit, **more), **JOB)


def assert_ended(shell: Shell, done: "subprocess.CompletedProcess[str]", code: int) -> None:
    """The job was ended as a refused one is: no step of it can run."""
    assert done.returncode == -signal.SIGKILL, "it ends only when it is killed"
    assert shell.post_job.status is PostJobStatus.ABNORMAL
    assert shell.post_job.status_info is not None
    assert shell.post_job.status_info.code == code
    assert shell.arguments("pkill") == ["-INT", "-x", "Runner.Listener", "-KILL", "-x", "Runner.Worker"]
    assert shell.arguments("sleep") == ["1", "20", "10", "infinity"]
    assert shell.arguments("sudo") == POWER_OFF


@pytest.mark.parametrize("text", ["#!/bin/sh\necho 'größe' \"$1\" {{ 7 * 7 }} ${x}\n", "#!/bin/sh"])
def test_the_script_is_a_file_of_the_runner(text: str) -> None:
    """It is sent as it is, as a file that user ubuntu can run, and is in no other file."""
    found = rendered(replace(PLAIN, pre_job_script=text))

    file = found.pop(SCRIPT)
    assert (file.content, file.mode, file.user) == (text, 0o755, provision.UBUNTU)
    assert SCRIPT in found["/home/ubuntu/github-runner/pre-job.sh"].content
    assert not [path for path, other in found.items() if text in other.content]


def test_without_a_script_nothing_is_run() -> None:
    """A runner without the option has no such file, and its pre-job script has no word of one."""
    found = rendered()

    assert SCRIPT not in found
    assert "operator" not in found["/home/ubuntu/github-runner/pre-job.sh"].content


def test_the_limit_is_five_minutes() -> None:
    """The time limit of the documentation is in the rendered script."""
    script = rendered(replace(PLAIN, pre_job_script="#!/bin/sh"))["/home/ubuntu/github-runner/pre-job.sh"].content

    assert f"timeout --signal=KILL 300 {SCRIPT} < /dev/null" in script


def test_a_script_that_succeeds_lets_the_job_run(shell: Shell) -> None:
    """It has the job's environment, its output is the job's log, and the metrics are written before."""
    done = run(shell, f'#!/bin/bash\necho "job of $GITHUB_REPOSITORY"\nls {shell.metrics}\ncat\necho words >&2\n')

    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[-2:] == [f"job of {JOB['GITHUB_REPOSITORY']}", "pre-job-metrics.json"]
    assert "words" in done.stderr
    assert not (shell.metrics / "post-job-metrics.json").exists()
    assert shell.arguments("pkill") == shell.arguments("sudo") == []


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("#!/bin/sh\nexit 3\n", 3),
        ("#!/bin/sh\nexit 124\n", 124),
        ("#!/bin/sh\nexit 255\n", 255),
        ("#!/bin/bash\nkill -KILL $$\n", 128 + signal.SIGKILL),
        ("#!/bin/bash\nkill -TERM $$\n", 128 + signal.SIGTERM),
        ("#!/no/such/interpreter\n", 127),
        ("#!/\n", 126),
    ],
)
def test_a_script_that_fails_ends_the_job(shell: Shell, script: str, code: int) -> None:
    """Whatever its exit code, the log and the metrics have it, and the pre-job script never returns."""
    done = run(shell, script)

    assert f"The pre-job script failed with exit code {code}.\n" in done.stdout
    assert_ended(shell, done, code)


def test_a_script_that_takes_too_long_is_killed_with_its_children(shell: Shell) -> None:
    """The limit kills every process of its group, also those that ignore signals, and the log says so."""
    slow = "trap '' TERM HUP INT\n/bin/sleep 300 &\necho child $!\nwait\n"
    done = run(shell, f"#!/bin/bash\n{slow}", limit=1)

    assert "The pre-job script was killed: it did not end within 1 seconds.\n" in done.stdout
    assert_ended(shell, done, 124)
    child = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("child "))
    status = Path("/proc", child, "stat")
    # Its end is a moment before init has cleared it away.
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_no_signal_to_the_pre_job_script_lets_the_job_run(shell: Shell, number: int) -> None:
    """A signal during the operator's script does not end the script that runs it, whose end would let steps begin."""
    kill = f"kill -{number} $(ps -o ppid= -p $PPID)"

    done = run(shell, f"#!/bin/bash\n{kill}\nexit 9\n")

    assert_ended(shell, done, 9)


def test_the_script_starts_with_default_signals(shell: Shell) -> None:
    """What the pre-job script ignores is not ignored in the operator's script."""
    # GNU's timeout would set them by itself, that of Ubuntu 26.04 does not.
    shell.stub("timeout", 'shift 2; exec "$@"')
    python = f"#!{sys.executable}\nimport signal\nprint([signal.getsignal(n) == signal.SIG_IGN for n in (1, 3, 15)])\n"

    assert run(shell, python).stdout.splitlines()[-1] == "[False, False, False]"


def test_a_refused_job_does_not_reach_the_script(shell: Shell) -> None:
    """The checks come first: no script runs for a job that they refuse, and the metrics have the refusal."""
    event = shell.folder / "event.json"
    event.write_text(json.dumps({"pull_request": {"author_association": "NONE"}}))
    path = shell.folder / "operator-pre-job"
    path.write_text(f"#!/bin/sh\ntouch {shell.folder}/ran\n")
    path.chmod(0o755)
    shell.stub("sleep", '[ "$1" != infinity ] || kill -KILL $PPID')
    values = {"external_contributors": False, "operator_script": path, "operator_limit": 300}

    shell.run(
        shell.render("pre-job.sh.j2", **values),
        **{**JOB, "GITHUB_EVENT_NAME": "pull_request", "GITHUB_EVENT_PATH": str(event)},
    )

    assert not os.path.lexists(shell.folder / "ran")
    assert shell.post_job.status is PostJobStatus.REPO_POLICY_CHECK_FAILURE
