"""What a newcomer types: the sandbox's commands and the demo, as processes of their own."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sandbox.__main__ import build_parser
from tests.support.deployment import ROOT, wait_for

NAME = "cli"


def sandbox(*words: str, timeout: float = 200) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sandbox", "--machine", NAME, *words]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def up(lxd: None) -> Iterator[str]:
    """A unit that is up; what `up` said."""
    done = sandbox("up", "--runners", "1", "labels=fast")
    assert done.returncode == 0, done.stderr
    yield done.stdout
    done = sandbox("down")
    assert done.returncode == 0, done.stderr
    assert sandbox("status").returncode == 1


COMMANDS = (
    "up config run status job logs debug-log integrate remove-relation add-secret model-config refresh add-unit "
    "remove-unit agent-down agent-up down demo"
)


@pytest.mark.parametrize("command", COMMANDS.split())
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` says what a command does and shows an example."""
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])

    assert ended.value.code == 0
    assert f"example: python3 -m sandbox {command}" in capsys.readouterr().out


def test_nothing_up_is_an_error_that_says_what_to_do() -> None:
    """One line on standard error, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "sandbox", "--machine", "nowhere", "job", "--", "true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert done.stderr == "ERROR nothing is up: run `python3 -m sandbox up` first\n"


def test_up_shows_hooks_and_is_idempotent(up: str) -> None:
    """The hooks are seen as they pass; a second `up` says that it is up."""
    assert all(f"✓ hook {hook} (" in up for hook in ("install", "config-changed", "start"))
    again = sandbox("up")
    assert again.returncode == 0
    assert "is up already" in again.stdout


def test_job_shows_its_log_and_its_conclusion(up: str) -> None:
    """The log comes live, and the exit code is the conclusion's; several words are one command."""
    good = sandbox("job", "--", "echo hello from $RUNNER_NAME")
    assert good.returncode == 0
    assert "hello from github-runner-0-" in good.stdout
    sandbox("run", "reconcile-runners")
    bad = sandbox("job", "--", "sh", "-c", "echo two words; exit 3")
    assert bad.returncode == 1
    assert "two words" in bad.stdout
    sandbox("run", "reconcile-runners")
    events = sandbox("logs").stdout
    assert "runner_start" in events
    assert "job_conclusion=failure" in events


def test_config_and_actions_speak_jujus_language(up: str) -> None:
    """Values are shown and set, mistakes are refused with Juju's words, actions give results."""
    assert sandbox("config", "labels").stdout == "fast\n"
    changed = sandbox("config", "labels=slow")
    assert changed.returncode == 0
    assert "github-runner/0  active  1 runner" in changed.stdout
    refused = sandbox("config", "nope=1")
    assert refused.returncode == 1
    assert 'unknown option "nope"' in refused.stderr
    counts = sandbox("run", "check-runners").stdout
    assert 'unknown: "0"' in counts
    assert sandbox("run", "nope").returncode == 1
    status = json.loads(sandbox("status", "--json").stdout)
    assert status["unit"]["status"] == "active"
    assert len(status["runners"]) == 1
    assert "github-runner/0" in sandbox("status").stdout
    assert "juju.worker.uniter" in sandbox("debug-log", "-n", "20").stdout


def test_status_is_shown_live_until_ctrl_c(up: str) -> None:
    """`status --watch` repeats the table of each unit; Ctrl-C is a success."""
    # A shell lets what it starts in the background ignore the signal.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "sandbox", "--machine", NAME, "status", "--watch"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        shown: list[str] = []
        while sum(line.startswith("Name ") for line in shown) < 2 and (line := process.stdout.readline()):
            shown.append(line)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (0, "")
    assert shown[1].startswith("github-runner/0  active  1 runner")
    assert shown[3].startswith("github-runner-0-")


def test_units_share_all_but_their_machines(up: str) -> None:
    """A further unit has runners of its own and hears of options, and removing it leaves the first one's alone."""

    def runners(number: int, label: str = "self-hosted") -> list[str]:
        found = json.loads(sandbox("status", "--json").stdout)["runners"]
        mine = [item for item in found if item["name"].startswith(f"github-runner-{number}-")]
        return [item["name"] for item in mine if label in [one["name"] for one in item["labels"]]]

    sandbox("config", "labels=fast")
    added = sandbox("add-unit")
    assert added.returncode == 0, added.stderr
    assert "github-runner/1  active  1 runner" in added.stdout
    wait_for(lambda: runners(0, "fast") and runners(1, "fast"), "a runner of each unit")
    sandbox("config", "labels=shared")
    first = wait_for(lambda: runners(1, "shared") and runners(0, "shared"), "new runners of both")
    assert 'online: "1"' in sandbox("run", "check-runners", "--unit", "1").stdout
    assert "github-runner/1" in sandbox("status").stdout

    removed = sandbox("remove-unit", "1")

    assert removed.returncode == 0, removed.stderr
    assert (runners(0, "shared"), runners(1)) == (first, [])
    assert "github-runner/1" not in sandbox("status").stdout
    assert sandbox("remove-unit", "1").stderr == 'ERROR unit "github-runner/1" not found\n'


@pytest.mark.timeout(280)
def test_demo_tells_the_whole_story(lxd: None) -> None:
    """`make demo` shows hooks, runners, a job's output, the replacement, the metrics, and cleans up."""
    done = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=270)

    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("hook install", "● github-runner-0-", "Hello from github-runner-0-", '"event": "runner_stop"'):
        assert words in done.stdout
    assert "the same machines as before" in done.stdout
    assert (
        '"ghr-demo"'
        not in subprocess.run(["lxc", "query", "/1.0/instances?recursion=1"], capture_output=True, text=True).stdout
    )
