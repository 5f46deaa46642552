"""Where the stand-in for the runner agent gets the actions of a job from, as the real worker does."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import github
from sandbox.github.action_repositories import tarball
from sandbox.github.control import GitHubControl
from tests.support.runner_agent import REPOSITORY, TOKEN, Installation, run_job

ACTION = "octo-org/greet@v1"
STEPS = [{"uses": ACTION}, {"run": "echo own step"}]


@pytest.fixture
def hub() -> Iterator[github.GitHub]:
    with github.serve(tokens=[TOKEN], repositories=[REPOSITORY]) as served:
        yield served


@pytest.fixture
def runner(hub: github.GitHub, runner_agent: Path, tmp_path: Path) -> Iterator[Installation]:
    made = Installation(hub, runner_agent, tmp_path / "runner")
    yield made
    made.stop()


def cached(runner: Installation, commit: str, content: bytes) -> str:
    """Put an archive into a cache; what the runner's .env says of that."""
    cache = runner.folder / "cache"
    (cache / "octo-org_greet").mkdir(parents=True)
    (cache / "octo-org_greet" / f"{commit}.tar.gz").write_bytes(content)
    return f"ACTIONS_RUNNER_ACTION_ARCHIVE_CACHE={cache}\n"


def downloads(control: GitHubControl) -> list[str]:
    return [entry["path"] for entry in control.requests() if entry["path"].startswith("/_codeload/")]


def test_an_action_is_downloaded(control: GitHubControl, runner: Installation) -> None:
    """Without a cache the archive of the ref's commit is downloaded, and the action's commands run before the rest."""
    commit = control.add_action(ACTION)

    job = run_job(control, runner, "", steps=STEPS)

    assert job["conclusion"] == "success", job["log"]
    assert f"Download action repository '{ACTION}' (SHA:{commit})" in job["log"]
    assert job["log"].index(f"octo-org/greet at {commit}") < job["log"].index("own step")
    assert downloads(control) == [f"/_codeload/octo-org/greet/legacy.tar.gz/{commit}"]
    assert not any("##[debug]" in line for line in job["log"])


def test_an_action_comes_from_the_cache(control: GitHubControl, runner: Installation) -> None:
    """The archive of exactly this commit is used. With debug logging the job's log says so, else the worker's does."""
    commit = control.add_action(ACTION)
    env = cached(runner, commit, tarball("octo-org/greet", commit))

    job = run_job(control, runner, "", env=env, steps=STEPS, debug=True)

    assert job["conclusion"] == "success"
    assert f"octo-org/greet at {commit}" in job["log"]
    assert any(line.startswith("##[debug]Copied action archive") for line in job["log"])
    assert f"/octo-org_greet/{commit}.tar.gz' in cache directory" in runner.diagnostics("Worker")
    assert downloads(control) == []


def test_a_ref_that_moved_is_downloaded(control: GitHubControl, runner: Installation) -> None:
    """The archive of an older commit is left alone."""
    old = control.add_action(ACTION)
    env = cached(runner, old, tarball("octo-org/greet", old))
    new = control.add_action(ACTION)

    job = run_job(control, runner, "", env=env, steps=STEPS, debug=True)

    assert f"octo-org/greet at {new}" in job["log"]
    assert downloads(control) == [f"/_codeload/octo-org/greet/legacy.tar.gz/{new}"]
    assert not any("Copied action archive" in line for line in job["log"])


def test_a_broken_archive_fails_the_job(control: GitHubControl, runner: Installation) -> None:
    """The worker does not download what its cache has, whatever that is."""
    commit = control.add_action(ACTION)

    job = run_job(control, runner, "", env=cached(runner, commit, gzip.compress(b"no tar")[:-4]), steps=STEPS)

    assert job["conclusion"] == "failure"
    assert any("Can't use 'tar -xzf' extract archive file" in line for line in job["log"])


@pytest.mark.parametrize("action", ["octo-org/greet@v9", "octo-org/none@v1"])
def test_an_unknown_action_fails_the_job(control: GitHubControl, runner: Installation, action: str) -> None:
    """A job whose action does not exist runs no step."""
    control.add_action(ACTION)

    job = run_job(control, runner, "", steps=[{"run": "echo own step"}, {"uses": action}])

    assert job["conclusion"] == "failure"
    assert any("Unable to resolve action" in line for line in job["log"])
    assert "own step" not in job["log"]
