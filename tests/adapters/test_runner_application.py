"""The stand-in for GitHub's runner agent, end to end against the stand-in for GitHub."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

import provision
from sandbox import github
from sandbox.github import runner_tarball
from sandbox.github.control import GitHubControl
from sandbox.github.state import Settings
from sandbox.shell import wait_until
from tests.support.runner_agent import ORGANISATION, PATH, REPOSITORY, TOKEN, Installation, api, run_job
from tests.support.scale_set_client import ScaleSetClient

ROOT = Path(__file__).resolve().parents[2]
VERSION = "2.336.0"
CREDENTIALS = (".runner", ".credentials", ".credentials_rsaparams")


@pytest.fixture
def server() -> Iterator[github.GitHub]:
    settings = Settings(grace=3.0, lost_job=3.0, poll=0.8, linger=0.3)
    with github.serve(
        tokens=[TOKEN], repositories=[REPOSITORY], organisations=[ORGANISATION], settings=settings
    ) as running:
        yield running


@pytest.fixture
def control(server: github.GitHub) -> GitHubControl:
    return GitHubControl(server.url)


class Install(Protocol):
    """Unpack a runner agent for this path into the folder of this name."""

    def __call__(self, name: str = "runner", path: str = REPOSITORY) -> Installation: ...


@pytest.fixture
def install(server: github.GitHub, runner_agent: Path, tmp_path: Path) -> Iterator[Install]:
    made: list[Installation] = []

    def make(name: str = "runner", path: str = REPOSITORY) -> Installation:
        made.append(Installation(server, runner_agent, tmp_path / name, path))
        return made[-1]

    yield make
    for installation in made:
        installation.stop()


def online(control: GitHubControl, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many runners are online and return them."""

    def found() -> list[dict[str, Any]] | None:
        runners = [runner for runner in control.runners() if runner["status"] == "online"]
        return runners if len(runners) == count else None

    runners: list[dict[str, Any]] = wait_until(found, f"{count} runners online", 10, 0.05)
    return runners


# A runner's life ------------------------------------------------------------------------------------------------------
def test_a_runner_does_one_job_and_is_gone(server: github.GitHub, control: GitHubControl, install: Install) -> None:
    """An ephemeral runner is offline until it listens, runs its job, and is then deregistered on both sides."""
    runner = install()
    runner.register("one", "--labels", "big,fast")
    [listed] = control.runners()
    assert (listed["name"], listed["status"], listed["os"], listed["ephemeral"]) == ("one", "offline", "Linux", True)
    assert [label["name"] for label in listed["labels"]] == ["self-hosted", "Linux", "X64", "big", "fast"]
    process = runner.start()
    online(control)
    job = control.add_job(REPOSITORY, "echo hello; echo to stderr >&2", name="build", labels=["SELF-HOSTED", "Big"])
    found = control.wait_job(job["id"], timeout=15)
    assert (found["conclusion"], found["runner_name"]) == ("success", "one")
    assert {"hello", "to stderr"} < set(found["log"])
    assert process.wait(10) == 0
    wait_until(lambda: control.runners() == [], "the runner's end at GitHub", 5, 0.05)
    assert not any((runner.folder / name).exists() for name in CREDENTIALS)
    for text in ("√ Connected to GitHub", f"Current runner version: '{VERSION}'", "Z: Listening for Jobs"):
        assert text in runner.output
    assert "Z: Running job: build\n" in runner.output
    assert "Z: Job build completed with result: Succeeded\n" in runner.output
    logs = {path.name.partition("_")[0] for path in (runner.folder / "_diag").iterdir()}
    assert logs == {"Runner", "Worker"}


def test_a_session_alone_is_not_online(server: github.GitHub, control: GitHubControl, install: Install) -> None:
    """A runner is online with its first question for a job, not already when it opens its session."""
    runner = install()
    runner.register("one")
    secret = json.loads((runner.folder / ".credentials_rsaparams").read_text())["d"]
    url = f"{server.url}/_actions/runners/{control.runners()[0]['id']}/sessions"
    request = urllib.request.Request(url, b"{}", {"Authorization": f"Bearer {secret}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 201
    assert [(found["status"], found["session"]) for found in control.runners()] == [("offline", True)]


def test_a_finished_runner_lingers(server: github.GitHub, control: GitHubControl, install: Install) -> None:
    """For a moment after its job GitHub still lists an ephemeral runner as busy and does not delete it."""
    server.state.settings.linger = 3600
    runner = install()
    runner.register("one")
    runner.start()
    control.wait_job(control.add_job(REPOSITORY)["id"], timeout=15)
    [listed] = control.runners()
    assert (listed["status"], listed["busy"]) == ("offline", True)
    with pytest.raises(urllib.error.HTTPError) as caught:
        api(server, "DELETE", f"/repos/{REPOSITORY}/actions/runners/{listed['id']}")
    with caught.value as error:
        assert error.code == 422


def test_a_lasting_runner_does_one_job_after_the_other(control: GitHubControl, install: Install) -> None:
    """Without --ephemeral the runner stays registered and online after a job."""
    runner = install()
    runner.register("stays", ephemeral=False)
    runner.start()
    jobs = [control.add_job(REPOSITORY, f"echo {number}")["id"] for number in range(2)]
    assert [control.wait_job(job, timeout=15)["conclusion"] for job in jobs] == ["success", "success"]
    assert [listed["busy"] for listed in online(control)] == [False]
    assert (runner.folder / ".runner").exists()


def test_two_runners_and_three_jobs(control: GitHubControl, install: Install) -> None:
    """The two oldest jobs go to the two runners, one each; the third waits for a runner that does not come."""
    jobs = [control.add_job(REPOSITORY, f"echo {number}")["id"] for number in range(3)]
    for name in ("one", "two"):
        runner = install(name)
        runner.register(name)
        runner.start()
    done = [control.wait_job(job, timeout=15) for job in jobs[:2]]
    assert {job["runner_name"] for job in done} == {"one", "two"}
    wait_until(lambda: control.runners() == [], "the end of both runners", 5, 0.05)
    assert control.job(jobs[2])["status"] == "queued"


def test_jobs_go_where_they_fit(control: GitHubControl, install: Install) -> None:
    """An organisation's runner serves its repositories; a job that wants a label the runner lacks is left alone."""
    control.add_repository("others/repo")
    runner = install(path=ORGANISATION)
    runner.register("one", "--labels", "big")
    unfit = [control.add_job(REPOSITORY, labels=["big", "gpu"])["id"], control.add_job("others/repo")["id"]]
    fit = control.add_job(REPOSITORY, labels=["BIG", "linux"])["id"]
    runner.start()
    assert control.wait_job(fit, timeout=15)["conclusion"] == "success"
    assert [control.job(job)["status"] for job in unfit] == ["queued", "queued"]


# config.sh ------------------------------------------------------------------------------------------------------------
def test_what_config_leaves_behind(install: Install) -> None:
    """Settings begin with a byte order mark as GitHub's do; the credentials are for the owner's eyes only."""
    runner = install()
    runner.register("one", "--work", "elsewhere")
    content = (runner.folder / ".runner").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    kept = json.loads(content.decode("utf-8-sig"))
    assert (kept["agentName"], kept["workFolder"], kept["ephemeral"]) == ("one", "elsewhere", True)
    assert [(runner.folder / name).stat().st_mode & 0o777 for name in CREDENTIALS[1:]] == [0o600, 0o600]
    assert [path.name[:7] for path in (runner.folder / "_diag").iterdir()] == ["Runner_"]


REFUSALS = {
    "no url": (["--token", "TOKEN"], "Invalid configuration provided for url"),
    "no token": (["--url", "URL"], "Invalid configuration provided for token"),
    "bad token": (["--url", "URL", "--token", "bad"], "Http response code: NotFound from 'POST http://"),
    "other path": (["--url", "URL/x", "--token", "TOKEN"], "Response status code does not indicate success: 404"),
    "long name": (["--url", "URL", "--token", "TOKEN", "--name", "n" * 65], "Invalid configuration provided for name"),
    "name in use": (["--url", "URL", "--token", "TOKEN", "--name", "USED"], "A runner exists with the same name USED"),
    "group of a repository": (
        ["--url", "URL", "--token", "TOKEN", "--name", "n", "--runnergroup", "fast"],
        'Could not find any self-hosted runner group named "fast"',
    ),
    "unreachable": (["--url", "http://127.0.0.1:9/o/r", "--token", "x"], "Connection refused"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_config_refuses(server: github.GitHub, control: GitHubControl, install: Install, name: str) -> None:
    """What the real runner agent refuses is refused, with its words, exit code 1 and nothing registered."""
    arguments, words = REFUSALS[name]
    runner = install()
    control.add_runner(REPOSITORY, "used")
    values = {"URL": f"{server.url}/{REPOSITORY}", "URL/x": f"{server.url}/x/y", "TOKEN": runner.token()}
    output, code = runner.config("--unattended", *(values.get(each, each) for each in arguments))
    assert code == 1
    assert words in output
    assert len(control.runners()) == 1
    assert not (runner.folder / ".runner").exists()


def test_unknown_options_are_ignored(server: github.GitHub, control: GitHubControl, install: Install) -> None:
    """As the real runner agent does: it says so and registers, here a runner that is not ephemeral."""
    runner = install()
    more = ("--name", "one", "--url", f"{server.url}/{REPOSITORY}", "--token", runner.token())
    output, code = runner.config("--unattended", "--epheremal", "word", *more)
    assert (code, [listed["ephemeral"] for listed in control.runners()]) == (0, [False])
    assert "Unrecognized command-line input arguments: 'epheremal', 'word'" in output


def test_config_refuses_an_old_token(control: GitHubControl, install: Install, server: github.GitHub) -> None:
    """A registration token that is over is answered like one that never was."""
    runner = install()
    token = runner.token()
    control.expire_registration_tokens()
    output, code = runner.config("--unattended", "--url", f"{server.url}/{REPOSITORY}", "--token", token)
    assert code == 1
    assert "NotFound" in output


def test_config_refuses_twice(install: Install, control: GitHubControl) -> None:
    """A folder that is configured is not configured again."""
    runner = install()
    runner.register("one")
    output, code = runner.config("--unattended")
    assert code == 1
    assert "already configured" in output
    assert len(control.runners()) == 1


@pytest.mark.parametrize(
    ("script", "words"), [("config.sh", "Must not run with sudo"), ("run.sh", "Must not run inter")]
)
def test_root_is_refused(install: Install, tmp_path: Path, script: str, words: str) -> None:
    """Neither script works for root unless that is allowed explicitly."""
    runner = install()
    (tmp_path / "id").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "id").chmod(0o755)
    environment = {**runner.environment, "PATH": f"{tmp_path}:{runner.environment['PATH']}"}
    environment.pop("RUNNER_ALLOW_RUNASROOT", None)
    done = subprocess.run([runner.folder / script], env=environment, capture_output=True, text=True, timeout=10)
    assert words in done.stdout
    assert done.returncode == (1 if script == "config.sh" else 0)  # run.sh hides it


def test_config_replaces(control: GitHubControl, install: Install) -> None:
    """With --replace a registration of the same name is taken over: same id, the former owner is out."""
    first, second = install("first"), install("second")
    first.register("one")
    process = first.start()
    [before] = online(control)
    second.register("one", "--replace")
    [after] = control.runners()
    assert (after["id"], after["session"]) == (before["id"], False)
    process.wait(10)
    assert "registration has been deleted" in first.output


def test_values_from_the_environment(server: github.GitHub, control: GitHubControl, install: Install) -> None:
    """Every value may come from the environment; the command line wins."""
    runner = install(path=ORGANISATION)
    control.add_organisation(ORGANISATION, ["fast"])
    values = {"URL": f"{server.url}/{ORGANISATION}", "TOKEN": runner.token(), "NAME": "from-environment"}
    values.update(LABELS="a", RUNNERGROUP="Fast", EPHEMERAL="true", UNATTENDED="true")
    environment = {f"ACTIONS_RUNNER_INPUT_{name}": value for name, value in values.items()}
    output, code = runner.config("--labels", "b", "--no-default-labels", **environment)
    assert code == 0, output
    [found] = control.runners()
    assert (found["name"], found["ephemeral"], found["runner_group_id"]) == ("from-environment", True, 2)
    assert [label["name"] for label in found["labels"]] == ["b"]


def test_remove(control: GitHubControl, install: Install) -> None:
    """Removing takes a remove token, deregisters and deletes the credentials; a bad token changes nothing."""
    runner = install()
    runner.register("one")
    output, code = runner.config("remove", "--token", runner.token("registration"))
    assert code == 1
    assert "NotFound" in output
    assert (runner.folder / ".runner").exists()
    output, code = runner.config("remove", "--token", runner.token("remove"))
    assert code == 0, output
    assert "Runner removed successfully" in output
    assert control.runners() == []
    assert not any((runner.folder / name).exists() for name in CREDENTIALS)


def test_remove_after_github_deregistered_the_runner(control: GitHubControl, install: Install) -> None:
    """A registration that GitHub no longer has is only deleted here."""
    runner = install()
    runner.register("one")
    control.remove_runner(control.runners()[0]["id"])
    output, code = runner.config("remove", "--token", runner.token("remove"))
    assert code == 0, output
    assert not (runner.folder / ".runner").exists()


# Just-in-time configuration -------------------------------------------------------------------------------------------
def jit_config(server: github.GitHub, name: str = "one") -> str:
    """A configuration for a runner of the repository, as GitHub encodes it."""
    body = json.dumps({"name": name, "runner_group_id": 1, "labels": ["self-hosted", "big"]}).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "User-Agent": "test"}
    url = f"{server.api_url}/repos/{REPOSITORY}/actions/runners/generate-jitconfig"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5) as answer:
        encoded: str = json.loads(answer.read())["encoded_jit_config"]
    return encoded


def jit_files(encoded: str) -> dict[str, bytes]:
    """The files of a configuration by name."""
    return {name: base64.b64decode(content) for name, content in json.loads(base64.b64decode(encoded)).items()}


@pytest.mark.parametrize("path", [REPOSITORY, ORGANISATION])
def test_a_runner_of_a_scale_set(server: github.GitHub, control: GitHubControl, install: Install, path: str) -> None:
    """It starts with the set's configuration, does one of the set's jobs, and is then deregistered."""
    server.state.settings.hold, server.state.settings.assign_after = 0.1, 0.0
    server.state.settings.enterprise_version = ""
    client = ScaleSetClient(server.api_url, f"{server.url}/{path}", TOKEN)
    number = client.create("small")["id"]
    listener = client.listen(number)
    job = control.add_job(REPOSITORY, labels=["small"])["id"]
    assert listener.message(1) is not None

    process = install().start(ACTIONS_RUNNER_INPUT_JITCONFIG=client.jit(number, "one")["encodedJITConfig"])

    found = control.wait_job(job, timeout=20)
    assert (found["conclusion"], found["runner_name"]) == ("success", "one")
    assert process.wait(10) == 0
    wait_until(lambda: control.runners() == [], "the runner's end at GitHub", 5, 0.05)
    listener.renew()
    assert set(listener.statistics.values()) == {0}


@pytest.mark.parametrize("how", ["by an option", "by the environment", "by files"])
def test_a_runner_that_is_configured_just_in_time(
    server: github.GitHub, control: GitHubControl, install: Install, how: str
) -> None:
    """Without config.sh it does one job, in which the variable is gone, and is then deregistered on both sides."""
    runner, encoded = install(), jit_config(server)
    job = control.add_job(REPOSITORY, "env | grep -c JITCONFIG || true", labels=["self-hosted", "big"])["id"]
    if how == "by an option":
        process = runner.start(str(runner.folder / "run.sh"), "--jitconfig", encoded)
    elif how == "by the environment":
        process = runner.start(ACTIONS_RUNNER_INPUT_JITCONFIG=encoded)
    else:
        for name, content in jit_files(encoded).items():
            (runner.folder / name).write_bytes(content)
        process = runner.start()
    found = control.wait_job(job, timeout=20)
    assert (found["conclusion"], found["runner_name"], "0" in found["log"]) == ("success", "one", True)
    assert process.wait(10) == 0
    wait_until(lambda: control.runners() == [], "the runner's end at GitHub", 5, 0.05)
    assert not any((runner.folder / name).exists() for name in CREDENTIALS)


def packed(document: object) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def without(name: str) -> Callable[[str], str]:
    """A configuration that lacks a file."""
    return lambda encoded: packed(
        {each: text for each, text in json.loads(base64.b64decode(encoded)).items() if each != name}
    )


JIT_REFUSALS: dict[str, tuple[Callable[[str], str], str]] = {
    "no base64": (lambda _: "%%%", "base64"),
    "no object": (lambda _: packed([]), "items"),
    "a file that is no base64": (lambda _: packed({".runner": "%%%"}), "base64"),
    "settings that are none": (lambda _: packed({".runner": "e30"}), "padding"),
    "no settings": (without(".runner"), "Not configured. Run config.(sh/cmd) to configure the runner."),
    "no credentials": (without(".credentials"), "Credentials not stored. Must reconfigure."),
    "no key": (without(".credentials_rsaparams"), ".credentials_rsaparams was not found"),
}


@pytest.mark.parametrize("name", JIT_REFUSALS)
def test_configurations_that_are_refused(
    server: github.GitHub, control: GitHubControl, install: Install, name: str
) -> None:
    """A configuration that the real listener cannot start with ends this one, too, with code 1."""
    change, words = JIT_REFUSALS[name]
    runner = install()
    command = [str(runner.folder / "bin/Runner.Listener"), "run", "--jitconfig", change(jit_config(server))]
    done = subprocess.run(command, env=runner.environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert words in done.stdout
    assert [listed["session"] for listed in control.runners()] == [False]


def test_config_refuses_what_is_configured_just_in_time(
    server: github.GitHub, control: GitHubControl, install: Install
) -> None:
    """config.sh neither registers such a folder again nor takes its registration back."""
    runner = install()
    for name, content in jit_files(jit_config(server)).items():
        (runner.folder / name).write_bytes(content)
    assert "already configured" in runner.config("--unattended")[0]
    output, code = runner.config("remove", "--token", runner.token("remove"))
    assert (code, len(control.runners())) == (1, 1)
    assert "Failed: Removing runner from the server" in output


def test_a_record_that_is_removed_ends_its_runner(
    server: github.GitHub, control: GitHubControl, install: Install
) -> None:
    """A runner whose registration GitHub drops while it waits for a job ends as one that is done."""
    runner = install()
    process = runner.start(ACTIONS_RUNNER_INPUT_JITCONFIG=jit_config(server))
    [listed] = online(control)
    assert listed["os"] == "Linux"
    control.remove_runner(listed["id"])
    assert process.wait(10) == 0
    assert "registration has been deleted" in runner.output


# run.sh and its exit codes --------------------------------------------------------------------------------------------
EXIT_CODES = [
    # the listener's code, RUNNER_MANUALLY_TRAP_SIG, ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE: run.sh's code
    *((0, "", "", 0), (0, "1", "1", 0), (1, "", "", 0), (1, "1", "1", 0), (5, "1", "1", 0), (9, "1", "1", 0)),
    *((7, "", "", 0), (7, "", "1", 0), (7, "1", "", 0), (7, "1", "1", 7)),
]


@pytest.mark.parametrize(("listener", "trap", "deprecated", "expected"), EXIT_CODES)
def test_exit_codes(install: Install, listener: int, trap: str, deprecated: str, expected: int) -> None:
    """Only code 7 gets out, and only where both variables ask for it; everything else looks like success."""
    runner = install()
    (runner.folder / "bin/Runner.Listener").write_text(f"#!/bin/sh\nexit {listener}\n")
    more = {"RUNNER_MANUALLY_TRAP_SIG": trap, "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE": deprecated}
    assert runner.start(**more).wait(10) == expected


@pytest.mark.parametrize("trap", ["", "1"])
@pytest.mark.parametrize("code", [2, 3, 4])
def test_the_listener_is_started_again(install: Install, trap: str, code: int) -> None:
    """After a retryable error and after an update the listener is started again."""
    runner = install()
    stub = f"#!/bin/sh\necho started >> starts\ntouch update.finished\n[ $(wc -l < starts) = 2 ] || exit {code}\n"
    (runner.folder / "bin/Runner.Listener").write_text(stub)
    assert runner.start(RUNNER_MANUALLY_TRAP_SIG=trap).wait(10) == 0
    assert (runner.folder / "starts").read_text() == "started\nstarted\n"
    assert "Restarting runner..." in runner.output


def test_an_old_version_is_refused(control: GitHubControl, install: Install) -> None:
    """GitHub gives no jobs to a version below its minimum, also not to one that listens already."""
    more = {"RUNNER_MANUALLY_TRAP_SIG": "1", "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE": "1"}
    runner = install()
    runner.register("one")
    process = runner.start(**more)
    online(control)
    control.runner_binary(minimum_version="2.1000.0")
    assert process.wait(10) == 7
    assert runner.start(**more).wait(10) == 7
    assert f"Runner version v{VERSION} is deprecated and cannot receive messages." in runner.output


@pytest.mark.parametrize(("version", "code"), [("2.332.0", 1), ("2.333.0", 7)])
def test_old_versions_do_not_tell_that_they_are_refused(
    control: GitHubControl, install: Install, version: str, code: int
) -> None:
    """Below 2.333.0 the listener of a deprecated version ends with code 1, and run.sh with 0."""
    runner = install()
    runner.register("one")
    (runner.folder / "bin/about.json").write_text(json.dumps({"version": version, "architecture": "x64"}))
    control.runner_binary(minimum_version="2.1000.0")
    assert runner.start(str(runner.folder / "bin/Runner.Listener"), "run").wait(10) == code
    more = {"RUNNER_MANUALLY_TRAP_SIG": "1", "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE": "1"}
    assert runner.start(**more).wait(10) == (7 if code == 7 else 0)
    assert runner.output.count(f"Runner version v{version} is deprecated and cannot receive messages.") == 2


@pytest.mark.parametrize("disabled", [False, True])
def test_a_self_update(control: GitHubControl, install: Install, disabled: bool) -> None:
    """A runner below the wanted version installs it and listens again, from another folder, unless that is disabled."""
    runner = install()
    runner.register("one", *(["--disableupdate"] if disabled else []))
    process = runner.start(RUNNER_MANUALLY_TRAP_SIG="1")
    online(control)
    control.runner_binary(self_update="2.999.0")
    if disabled:
        wait_until(lambda: "updates are disabled" in runner.diagnostics("Runner"), "the refused update", 10, 0.05)
    else:
        wait_until(lambda: [found["version"] for found in control.runners()] == ["2.999.0"], "the update", 15, 0.05)
    job = control.add_job(REPOSITORY, "tr '\\0' ' ' < /proc/$PPID/cmdline")
    found = control.wait_job(job["id"], timeout=15)
    folder = "bin" if disabled else "bin.2.999.0"
    assert f"{runner.folder}/{folder}/Runner.Worker spawnclient" in "\n".join(found["log"])
    assert (runner.folder / "bin").is_symlink() is not disabled
    assert process.wait(10) == 0


def test_refused_sessions_end_the_listener(control: GitHubControl, install: Install) -> None:
    """A session that GitHub refuses, as for a wrong clock, ends the runner with code 1, and run.sh shows none of it."""
    runner = install()
    runner.register("one")
    control.refuse_sessions(times=2)
    listener = (str(runner.folder / "bin/Runner.Listener"), "run")
    assert runner.start(*listener).wait(10) == 1
    assert runner.start(RUNNER_MANUALLY_TRAP_SIG="1").wait(10) == 0
    assert runner.output.count("Failed to create a session. The runner registration has been deleted") == 2
    runner.start()
    online(control)


@pytest.mark.parametrize("status", [404, 409])
def test_a_job_that_cannot_be_acquired(control: GitHubControl, install: Install, status: int) -> None:
    """The job is skipped, and the runner polls on although its registration is gone."""
    runner = install()
    runner.register("one")
    process = runner.start()
    job = control.add_job(REPOSITORY, acquire_status=status)["id"]
    assert control.wait_job(job, timeout=10)["conclusion"] == "cancelled"
    wait_until(lambda: f"Skipping message Job. {status}" in runner.diagnostics("Runner"), "the skipped job", 5, 0.05)
    assert control.runners() == []
    later = control.add_job(REPOSITORY)["id"]
    assert control.job(later, wait=1)["status"] == "queued"
    assert process.poll() is None


def test_not_configured(install: Install) -> None:
    """Without a registration the listener ends at once with a terminated error."""
    runner = install()
    assert runner.start(str(runner.folder / "bin/Runner.Listener"), "run").wait(10) == 1
    assert "Not configured" in runner.output


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_deleted_registration(server: github.GitHub, control: GitHubControl, install: Install, when: str) -> None:
    """A runner that is deleted at GitHub, before it starts or while it listens, says so and ends."""
    runner = install()
    runner.register("one")
    listener = (str(runner.folder / "bin/Runner.Listener"), "run")
    if when == "while":
        process = runner.start(*listener)
        online(control)
    api(server, "DELETE", f"/repos/{REPOSITORY}/actions/runners/{control.runners()[0]['id']}")
    if when == "before":
        process = runner.start(*listener)
    assert process.wait(10) == 1
    assert "The runner registration has been deleted from the server, please re-configure" in runner.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cancels_the_job(control: GitHubControl, install: Install, number: signal.Signals) -> None:
    """With the trap a signal to run.sh reaches the listener, which cancels its job and ends."""
    runner = install()
    runner.register("one")
    process = runner.start(RUNNER_MANUALLY_TRAP_SIG="1")
    # The signal reaches the whole process group. A step that it ends before the worker hears of it has failed.
    job = control.add_job(REPOSITORY, "trap 'sleep 1; exit 1' INT; echo begun; sleep 60")["id"]
    control.wait_log(job, lambda found: "begun" in found["log"], 10)
    process.send_signal(number)
    assert control.wait_job(job, timeout=15)["conclusion"] == "cancelled"
    assert process.wait(10) == 128 + number
    assert "Job build completed with result: Canceled" in runner.output
    wait_until(runner.settled, "the end of listener and worker", 5, 0.05)


def test_a_signal_ends_an_idle_runner(control: GitHubControl, install: Install) -> None:
    """An idle listener ends its session on a signal and is offline at once; its registration stays."""
    runner = install()
    runner.register("one")
    process = runner.start(RUNNER_MANUALLY_TRAP_SIG="1")
    online(control)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert [(found["status"], found["session"]) for found in control.runners()] == [("offline", False)]


# A listener without a network, whose signal comes inside a finalizer: what its handler raises is lost there.
INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import runner_configure, runner_listener

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        print("the finalizer goes on")

def request(method, url, *arguments, **options):
    if method == "POST" and sys.argv[2] == "message":
        return 200, {"session": "one"}
    if method != "DELETE":
        Last()
    raise OSError("no network")

runner_listener.request = request
runner_configure.configured = lambda: True
runner_configure.settings = lambda: {"serverUrl": "http://github.example", "agentId": 1}
runner_configure.secret = lambda: "secret"
sys.exit(runner_listener.main(["run"]))
"""


@pytest.mark.parametrize("awaited", ["session", "message"])
def test_a_signal_is_not_lost_without_a_network(install: Install, awaited: str) -> None:
    """Whatever the listener waits for, it ends, even if what interrupts it is swallowed."""
    folder = install().folder / "bin"
    command = [sys.executable, "-c", INTERRUPTED, str(folder), awaited]
    quick = {**os.environ, "RUNNER_SANDBOX_FIRST_PAUSE": "0.01"}

    ended = subprocess.run(command, env=quick, capture_output=True, text=True, timeout=20, check=False)

    assert (ended.returncode, "Exiting..." in ended.stdout) == (0, True), ended.stderr
    assert "StopSignal" in ended.stderr


def test_outages_are_survived(control: GitHubControl, install: Install) -> None:
    """Failing and reset connections are tried again until GitHub is back."""
    runner = install()
    runner.register("one")
    control.add_fault(path="/sessions$", times=2, status=503, body="no")
    control.add_fault(path="/messages/", times=2, reset=True)
    control.add_fault(path="/complete$", times=1, reset=True)
    control.add_fault(path="/log$", times=1, status=502)
    runner.start()
    job = control.add_job(REPOSITORY, "echo through")["id"]
    found = control.wait_job(job, timeout=20)
    assert found["conclusion"] == "success"
    assert "through" in found["log"]
    assert [fault["hits"] for fault in control.faults()] == [2, 2, 1, 1]


def variables(log: list[str]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in log if "=" in line)


def test_the_job_has_githubs_variables(server: github.GitHub, control: GitHubControl, install: Install) -> None:
    """The variables that GitHub documents are there, and the working folder is the workspace."""
    runner = install()
    job = run_job(control, runner, "env; echo event=$(cat $GITHUB_EVENT_PATH); echo cwd=$(pwd)", name="test")
    found = variables(job["log"])
    expected = {"CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_REPOSITORY": REPOSITORY, "GITHUB_JOB": "test"}
    expected.update(GITHUB_REPOSITORY_OWNER=ORGANISATION, GITHUB_RUN_ID=str(job["run_id"]), GITHUB_WORKFLOW="CI")
    expected.update(GITHUB_EVENT_NAME="push", GITHUB_REF="refs/heads/main", GITHUB_REF_NAME="main")
    expected.update(GITHUB_SERVER_URL=server.url, GITHUB_API_URL=server.api_url, RUNNER_NAME="one")
    expected.update(RUNNER_OS="Linux", RUNNER_ARCH="X64", RUNNER_TEMP=str(runner.folder / "_work/_temp"))
    expected.update(GITHUB_WORKSPACE=str(runner.folder / "_work/repo/repo"), cwd=found["GITHUB_WORKSPACE"])
    assert found.items() >= expected.items()
    assert {"GITHUB_SHA", "GITHUB_ACTOR", "GITHUB_RUN_NUMBER", "RUNNER_WORKSPACE"} < set(found)
    assert json.loads(found["event"])["repository"]["full_name"] == REPOSITORY


def test_a_pull_requests_variables(control: GitHubControl, install: Install) -> None:
    """A pull request's job knows both branches, and its event says where the commit comes from."""
    fields: dict[str, Any] = {"event": "pull_request", "head_branch": "feature", "payload": {"number": 5}}
    job = run_job(control, install(), "env; echo event=$(cat $GITHUB_EVENT_PATH)", **fields)
    found = variables(job["log"])
    names = ("GITHUB_HEAD_REF", "GITHUB_BASE_REF", "GITHUB_REF_NAME", "GITHUB_EVENT_NAME")
    assert [found[name] for name in names] == ["feature", "main", "1/merge", "pull_request"]
    event = json.loads(found["event"])
    assert event["pull_request"]["head"]["repo"]["full_name"] == REPOSITORY
    assert event["number"] == 5


def test_the_job_sees_no_credentials(control: GitHubControl, install: Install) -> None:
    """What the runner got for registering is in no job's environment; what .env says is."""
    runner = install()
    runner.register("one")
    secret = json.loads((runner.folder / ".credentials_rsaparams").read_text())["d"]
    (runner.folder / ".env").write_text(f"PATH=/opt/first:{PATH}\nHINT=a=b\n\nEMPTY=\nnonsense\n")
    runner.start(ACTIONS_RUNNER_INPUT_TOKEN="secret-input")
    job = control.add_job(REPOSITORY, "env; cat /proc/$PPID/environ /proc/$PPID/cmdline | tr '\\0' '\\n'")
    found = control.wait_job(job["id"], timeout=15)
    log, values = "\n".join(found["log"]), variables(found["log"])
    assert (values["PATH"], values["HINT"], values["EMPTY"]) == (f"/opt/first:{PATH}", "a=b", "")
    assert "Runner.Worker" in log
    for hidden in ("secret-input", secret, "ACTIONS_RUNNER_INPUT_"):
        assert hidden not in log


def test_process_names(control: GitHubControl, install: Install) -> None:
    """The kernel knows both programs by their real names, which health checks look for."""
    listener = "$(grep PPid /proc/$PPID/status | tr -dc 0-9)"
    job = run_job(control, install(), f"cat /proc/$PPID/comm /proc/{listener}/comm; tr '\\0' ' ' < /proc/$PPID/cmdline")
    assert {"Runner.Worker", "Runner.Listener"} < set(job["log"])
    assert "bin/Runner.Worker spawnclient " in "\n".join(job["log"])


HOOKS = {
    "passes": ("echo hook for $GITHUB_REPOSITORY at $(pwd)", "success", "command runs"),
    "fails": ("echo refused by policy; exit 3", "failure", "##[error]Process completed with exit code 3."),
    "fails inside": ("false; echo not reached", "failure", "##[error]Process completed with exit code 1."),
    "fails in a pipe": ("false | true; echo goes on", "success", "goes on"),
    "is missing": (None, "failure", "File doesn't exist"),
}


@pytest.mark.parametrize("name", HOOKS)
def test_the_job_started_hook(control: GitHubControl, install: Install, name: str) -> None:
    """The administrator's hook runs first, with the job's variables; if it fails the command never runs."""
    script, conclusion, words = HOOKS[name]
    runner = install()
    hook = runner.folder / "pre-job.sh"
    if script:
        hook.write_text(script + "\n")
    job = run_job(control, runner, "echo command runs", env=f"ACTIONS_RUNNER_HOOK_JOB_STARTED={hook}\n")
    assert job["conclusion"] == conclusion
    log = "\n".join(job["log"])
    assert "A job started hook has been configured by the self-hosted runner administrator" in log
    assert words in log
    assert ("command runs" in job["log"]) == (conclusion == "success")
    assert "not reached" not in log
    if name == "passes":
        assert f"hook for {REPOSITORY} at {runner.folder}/_work/repo/repo" in job["log"]


@pytest.mark.parametrize(("command", "code"), [("exit 5", 5), ("false; echo not reached", 1), ("kill -9 $$", 137)])
def test_a_failing_command(control: GitHubControl, install: Install, command: str, code: int) -> None:
    """A command that fails fails its job, at the first line that fails."""
    job = run_job(control, install(), command)
    assert job["conclusion"] == "failure"
    assert f"##[error]Process completed with exit code {code}." in job["log"]
    assert "not reached" not in job["log"]


STEPS = {
    "in order": ([{"run": "echo 1"}, {"run": "echo 2"}], "success", ["1", "2"]),
    "a failure": ([{"run": "false"}, {"run": "echo 1"}], "failure", []),
    "after a failure": (
        [
            *({"run": "false"}, {"run": "echo 1"}, {"run": "echo 2", "if": "always()"}),
            *({"run": "echo 3", "if": "failure()"}, {"run": "echo 4", "if": "${{ !cancelled() }}"}),
            {"run": "echo 5", "if": "success()"},
        ],
        "failure",
        ["2", "3", "4"],
    ),
    "no failure": ([{"run": "echo 1", "if": "failure()"}, {"run": "echo 2", "if": "always()"}], "success", ["2"]),
    "what an action wants first": ([{"run": "echo 1"}, {"run": "echo 2", "pre": "echo 3"}], "success", ["3", "1", "2"]),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_and_their_conditions(control: GitHubControl, install: Install, name: str) -> None:
    """A step runs if its condition holds: by default only while nothing has failed."""
    steps, conclusion, expected = STEPS[name]
    job = run_job(control, install(), "", steps=steps)
    assert job["conclusion"] == conclusion
    assert [line for line in job["log"] if line.isdigit()] == expected


def test_a_failed_hook_does_not_stop_later_steps(control: GitHubControl, install: Install) -> None:
    """A hook that fails makes the job fail, but steps whose conditions hold run all the same."""
    runner = install()
    (runner.folder / "pre-job.sh").write_text("exit 1\n")
    steps = [{"run": "echo 1", "pre": "echo 2"}, {"run": "echo 3", "if": "always()"}]
    env = f"ACTIONS_RUNNER_HOOK_JOB_STARTED={runner.folder}/pre-job.sh\n"
    job = run_job(control, runner, "", env=env, steps=steps)
    assert job["conclusion"] == "failure"
    assert [line for line in job["log"] if line.isdigit()] == ["2", "3"]


REFUSING = """
import http.server, sys
class Service(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(403)
        self.send_header("Content-Length", "12")
        self.end_headers()
        self.wfile.write(b"not approved")
server = http.server.HTTPServer(("127.0.0.1", 0), Service)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
# Signals the listener or the worker of one installation only: others may run on this machine.
PKILL = """#!/bin/bash
[ "$2" = -x ] || exit 2
for process in /proc/[0-9]*; do
    if grep -qzx "HOME={folder}" "$process/environ" && [ "$(< "$process/comm")" = "$3" ]; then
        kill "$1" "${{process##*/}}"
    fi
done 2> /dev/null
"""


@pytest.fixture
def policy() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", REFUSING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


CHEAT = "sudo -n pkill -f pre-job; echo cheated"
CHEATS = [{"run": CHEAT, "pre": CHEAT}, *({"run": CHEAT, "if": f"{when}()"} for when in ("always", "!cancelled"))]


def install_pre_job(runner: Installation, patience: int = 20, **more: object) -> subprocess.Popen[bytes]:
    """Register a runner with the charm's pre-job script, rendered for this folder, and start it."""
    metrics = runner.folder / "metrics"
    metrics.mkdir()
    values: dict[str, object] = {
        "metrics_folder": metrics,
        "policy_token_file": runner.folder / "token",
        "policy_url": None,
    }
    values |= {"pre_job_file": "pre.json", "post_job_file": "post.json", "dockerhub_mirror": None}
    values |= {"external_contributors": True, "operator_script": None, "operator_limit": 300, **more}
    template = provision.environment(ROOT / "templates").get_template("pre-job.sh.j2").render(values)
    template = template.replace("sleep 20", f"sleep {patience}")
    stubs = {"mountpoint": "#!/bin/sh\n"}
    stubs |= {"pre-job.sh": template, "sudo": "#!/bin/sh\n", "pkill": PKILL.format(folder=runner.folder)}
    for name, text in stubs.items():
        (runner.folder / name).write_text(text)
        (runner.folder / name).chmod(0o755)
    runner.register(runner.folder.name)
    env = f"ACTIONS_RUNNER_HOOK_JOB_STARTED={runner.folder}/pre-job.sh\nPATH={runner.folder}:{PATH}\n"
    (runner.folder / ".env").write_text(env)
    return runner.start(RUNNER_MANUALLY_TRAP_SIG="1")


AUTHORS = {
    "pull_request": {"pull_request": {"author_association": "CONTRIBUTOR"}},
    "pull_request_target": {"pull_request": {"author_association": "NONE"}},
    "pull_request_review": {"review": {"author_association": "FIRST_TIMER"}},
    "pull_request_review_comment": {"comment": {}},
    "issue_comment": {
        "comment": {"author_association": "MEMBER"},
        "issue": {"pull_request": {}, "author_association": "FIRST_TIME_CONTRIBUTOR"},
    },
}


def test_a_job_of_an_outside_contributor_runs_nothing(control: GitHubControl, install: Install) -> None:
    """Without a policy service the author alone decides: no step of any kind runs after the refusal."""
    processes = [install_pre_job(install(event), external_contributors=False) for event in AUTHORS]
    jobs = [control.add_job(REPOSITORY, steps=CHEATS, event=event, payload=AUTHORS[event])["id"] for event in AUTHORS]

    found = [control.wait_job(job, timeout=60) for job in jobs]

    assert {job["conclusion"] for job in found} <= {"cancelled", "failure"}
    for job in found:
        assert any("Outside contributors may not run jobs here" in line for line in job["log"])
        assert "cheated" not in job["log"]
    for process in processes:
        process.wait(20)


def test_a_job_of_a_member_runs(control: GitHubControl, install: Install) -> None:
    """The author of a pull request who belongs to the repository is not refused."""
    runner = install()
    process = install_pre_job(runner, external_contributors=False)
    payload = {"pull_request": {"author_association": "COLLABORATOR"}}
    job = control.add_job(REPOSITORY, "echo ran", event="pull_request", payload=payload)["id"]

    found = control.wait_job(job, timeout=20)

    assert (found["conclusion"], "ran" in found["log"]) == ("success", True)
    process.wait(10)


FAILING = "#!/bin/sh\necho failing; exit 3\n"
SLOW = "#!/bin/sh\necho begun; trap '' TERM; while true; do sleep 60; done\n"


@pytest.mark.parametrize(
    ("script", "words", "code"),
    [(FAILING, "failed with exit code 3.", 3), (SLOW, "did not end within 1 seconds.", 124)],
    ids=["fails", "takes too long"],
)
def test_a_job_whose_pre_job_script_fails_runs_nothing(
    control: GitHubControl, install: Install, script: str, words: str, code: int
) -> None:
    """No step of any kind runs after the operator's script, the log has the reason, and the metrics its code."""
    runner = install()
    operator = runner.folder / "operator"
    operator.write_text(script)
    operator.chmod(0o755)
    process = install_pre_job(runner, operator_script=operator, operator_limit=1 if code == 124 else 300)
    job = control.add_job(REPOSITORY, steps=CHEATS)["id"]

    found = control.wait_job(job, timeout=40)

    assert found["conclusion"] == "cancelled"
    assert any(line.startswith("The pre-job script ") and line.endswith(words) for line in found["log"])
    assert "cheated" not in found["log"]
    post_job = json.loads((runner.folder / "metrics" / "post.json").read_text())
    assert (post_job["status"], post_job["status_info"]) == ("abnormal", {"code": code})
    process.wait(10)


def test_a_job_whose_pre_job_script_succeeds_runs(control: GitHubControl, install: Install) -> None:
    """The script knows the job, its output is in the job's log before the steps', and a variable reaches them."""
    runner = install()
    operator = runner.folder / "operator"
    operator.write_text('#!/bin/sh\necho "for $GITHUB_REPOSITORY"; echo given=value >> "$GITHUB_ENV"\n')
    operator.chmod(0o755)
    process = install_pre_job(runner, operator_script=operator)
    job = control.add_job(REPOSITORY, 'echo "step $given"')["id"]

    found = control.wait_job(job, timeout=20)

    assert found["conclusion"] == "success"
    assert [line for line in found["log"] if line in (f"for {REPOSITORY}", "step value")] == [
        f"for {REPOSITORY}",
        "step value",
    ]
    process.wait(10)


@pytest.mark.parametrize("cancelled", [False, True])
def test_the_pre_job_script_ends_a_refused_job(
    control: GitHubControl, install: Install, policy: str, cancelled: bool
) -> None:
    """The runner agent starts no step of a job that the charm's pre-job script refuses, whatever its condition."""
    runner = install()
    # An agent that has been told to cancel does not shut down.
    process = install_pre_job(runner, patience=2 if cancelled else 20, policy_url=policy)
    job = control.add_job(REPOSITORY, steps=CHEATS)["id"]
    if cancelled:
        control.wait_log(job, lambda found: any("pre-job.sh" in line for line in found["log"]), 10)
        control.cancel_job(job)

    found = control.wait_job(job, timeout=40)

    assert found["conclusion"] == ("failure" if cancelled else "cancelled")  # a killed worker's job has failed
    assert any("not approved" in line for line in found["log"])
    assert "cheated" not in found["log"]
    assert json.loads((runner.folder / "metrics" / "post.json").read_text())["status_info"] == {"code": 403}
    process.wait(10)


# The first one takes a moment to end: a signal reaches it together with the runner, which must hear of it first, and
# once more from the runner.
CANCELLED_STEPS = [
    {"run": "trap 'trap : INT; echo 1; sleep 0.3; exit 0' INT; echo begun; while true; do sleep 0.05; done"},
    {"run": "echo 2"},
    {"run": "echo 3", "if": "always()"},
]


@pytest.mark.parametrize(("how", "expected"), [("at GitHub", ["1", "3"]), ("by a signal", ["1"])])
def test_a_cancelled_step_is_interrupted(
    control: GitHubControl, install: Install, how: str, expected: list[str]
) -> None:
    """SIGINT comes first; a cancelled job goes on with always() steps, a runner that shuts down with nothing."""
    runner = install()
    runner.register("one")
    process = runner.start(RUNNER_MANUALLY_TRAP_SIG="1")
    job = control.add_job(REPOSITORY, steps=CANCELLED_STEPS)["id"]
    control.wait_log(job, lambda found: "begun" in found["log"], 10)
    started = time.monotonic()
    if how == "at GitHub":
        control.cancel_job(job)
    else:
        process.send_signal(signal.SIGTERM)
    found = control.wait_job(job, timeout=10)
    assert time.monotonic() - started < 5
    assert found["conclusion"] == "cancelled"
    assert [line for line in found["log"] if line.isdigit()] == expected


def test_an_always_step_survives_the_cancellation(control: GitHubControl, install: Install) -> None:
    """The hook and other steps that always run are not interrupted when their job is cancelled."""
    runner = install()
    runner.register("one")
    runner.start()
    wait = f"until [ -e {runner.folder}/go ]; do sleep 0.05; done"
    steps = [{"run": f"echo begun; {wait}; echo 1", "if": "always()"}, {"run": "echo 2"}]
    job = control.add_job(REPOSITORY, steps=steps)["id"]
    control.wait_log(job, lambda found: "begun" in found["log"], 10)
    control.cancel_job(job)
    wait_until(lambda: '"cancel"' in runner.diagnostics("Worker"), "the cancellation", 5, 0.05)
    (runner.folder / "go").touch()
    found = control.wait_job(job, timeout=10)
    assert (found["conclusion"], "1" in found["log"], "2" in found["log"]) == ("cancelled", True, False)


def test_ignored_signals_stay_ignored(control: GitHubControl, install: Install) -> None:
    """A runner that was started with SIGINT ignored has no handler for it, and neither have its jobs."""
    runner = install()
    runner.register("one")
    script = "trap '' INT; exec ./run.sh"
    process = runner.start("bash", "-c", script, RUNNER_MANUALLY_TRAP_SIG="1")
    job = control.add_job(REPOSITORY, "grep SigIgn /proc/$$/status; echo begun; sleep 60")["id"]
    found = control.wait_log(job, lambda found: "begun" in found["log"], 10)
    ignored = next(line for line in found["log"] if line.startswith("SigIgn")).split()[1]
    assert int(ignored, 16) & 1 << (signal.SIGINT - 1)
    for number, _ in runner.running():
        os.kill(number, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    found = control.job(job, wait=1)
    assert (found["status"], process.poll()) == ("in_progress", None)


def test_the_job_is_killed_first_when_memory_is_short(control: GitHubControl, install: Install) -> None:
    """Processes of a job have a higher OOM score than the runner's."""
    log = run_job(control, install(), "until grep -qx 500 /proc/$$/oom_score_adj; do sleep 0.01; done; echo 500")["log"]
    assert "500" in log


def test_output_comes_while_the_job_runs(control: GitHubControl, install: Install) -> None:
    """Log lines reach GitHub as they are written, not at the end."""
    runner = install()
    runner.register("one")
    runner.start()
    job = control.add_job(REPOSITORY, f"echo first; until [ -e {runner.folder}/go ]; do sleep 0.05; done; echo second")
    found = control.wait_log(job["id"], lambda found: "first" in found["log"], 10)
    assert (found["status"], "second" in found["log"]) == ("in_progress", False)
    (runner.folder / "go").touch()
    assert "second" in control.wait_job(job["id"], timeout=10)["log"]


def test_what_a_job_leaves_running_is_killed(control: GitHubControl, install: Install) -> None:
    """Processes that a job left behind end with it."""
    # A process that is just being started has no environment yet by which it could be found, hence the loop.
    started = "until grep -q sleep /proc/$!/comm; do sleep 0.01; done"
    job = run_job(control, install(), f"setsid sleep 300 > /dev/null 2>&1 & {started}; echo left $!")
    left = next(line for line in job["log"] if line.startswith("left")).split()[1]
    assert f"Terminate orphan process: pid ({left}) (sleep)" in job["log"]
    wait_until(lambda: not Path(f"/proc/{left}/exe").exists(), "the end of the process", 5, 0.05)


def test_cancelling_a_running_job(control: GitHubControl, install: Install) -> None:
    """A job that is cancelled at GitHub is stopped by its runner and ends as cancelled."""
    runner = install()
    runner.register("one")
    process = runner.start()
    job = control.add_job(REPOSITORY, "echo begun; sleep 60; echo not reached")["id"]
    control.wait_log(job, lambda found: "begun" in found["log"], 10)
    control.cancel_job(job)
    found = control.wait_job(job, timeout=10)
    assert found["conclusion"] == "cancelled"
    assert "not reached" not in found["log"]
    process.wait(10)


@pytest.mark.parametrize("victim", ["Worker", "Listener"])
def test_a_killed_process_fails_the_job(control: GitHubControl, install: Install, victim: str) -> None:
    """A killed worker's job fails at once and its runner goes; a vanished runner's job fails after the grace.

    GitHub goes on to list the vanished one as offline, until its time is over.
    """
    runner = install()
    runner.register("one")
    process = runner.start()
    job = control.add_job(REPOSITORY, "echo begun; sleep 60")["id"]
    control.wait_log(job, lambda found: "begun" in found["log"], 10)
    victims = {kind: number for number, kind in runner.running()}
    if victim == "Listener":  # the worker first, so that it cannot report any more
        os.kill(victims["Listener"], signal.SIGSTOP)
        os.kill(victims["Worker"], signal.SIGKILL)
    os.kill(victims[victim], signal.SIGKILL)
    started = time.monotonic()
    found = control.wait_job(job, timeout=15)
    assert found["conclusion"] == "failure"
    assert any("lost communication" in line for line in found["log"]) == (victim == "Listener")
    assert time.monotonic() - started < 10
    if victim == "Listener":
        assert [(each["status"], each["busy"]) for each in control.runners()] == [("offline", False)]
        control.settings(keep_lost=0)
    wait_until(lambda: control.runners() == [], "the runner's end at GitHub", 5, 0.05)
    process.wait(10)


def test_a_vanished_runner_is_offline(control: GitHubControl, install: Install) -> None:
    """An idle runner that is killed is listed as offline once the grace is over, and stays registered."""
    runner = install()
    runner.register("one")
    runner.start()
    online(control)
    for number, _ in runner.running():
        os.kill(number, signal.SIGKILL)
    wait_until(lambda: control.runners()[0]["status"] == "offline", "the runner to be offline", 5, 0.05)
    job = control.add_job(REPOSITORY)["id"]
    assert control.job(job, wait=0.5)["status"] == "queued"
    control.settings(keep_lost=0)
    assert control.runners() == []


# The tarball ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("architecture", "name"), [("x64", "X64"), ("arm64", "ARM64")])
def test_the_tarball(architecture: str, name: str) -> None:
    """The files lie at the tarball's root, programs are executable, and nothing of the project's own is left in it."""
    with tarfile.open(fileobj=io.BytesIO(runner_tarball.build(VERSION, architecture))) as archive:
        modes = {member.name: member.mode for member in archive if member.isfile()}
        about_file = archive.extractfile("./bin/about.json")
        assert about_file
        about = json.loads(about_file.read())
        assert {member.mtime for member in archive} == {runner_tarball.MODIFIED}
    programs = {"config.sh", "run.sh", "run-helper.sh.template", "env.sh", "safe_sleep.sh"}
    programs |= {"bin/Runner.Listener", "bin/Runner.Worker", "bin/installdependencies.sh"}
    assert {f"./{program}" for program in programs} == {name for name, mode in modes.items() if mode == 0o755}
    assert any(name.startswith("./externals/") for name in modes)
    assert not [name for name in modes if name.endswith(".pyc")]
    assert (about["version"], about["architecture"].upper()) == (VERSION, name)
