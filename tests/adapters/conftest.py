"""What the tests of the adapters share."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from socketserver import BaseServer
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gh import archives, scale_sets
from gh import client as gh_client
from gh.auth import Pat
from gh.client import GithubClient
from sandbox import github
from sandbox.github import apps, runner_tarball
from sandbox.github.control import GitHubControl
from tests.support.github import ORG, REPO, TOKEN
from tests.support.memory import pytest_configure

__all__ = ["pytest_configure"]


@pytest.fixture(scope="module", autouse=True)
def short_waits() -> Iterator[None]:
    """The client of GitHub waits a twentieth of its time between attempts, and a server's end is seen as soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseServer.serve_forever, "__defaults__", (0.025,))
        patch.setattr(gh_client, "random", SimpleNamespace(uniform=lambda low, _: low / 20))
        yield


@pytest.fixture(scope="session", autouse=True)
def read_once() -> Iterator[None]:
    """The machine's authorities and the keys of Apps, whose reading takes longer than most tests, are read once."""
    trust, usual = gh_client.trust, gh_client.trust(())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jwt.algorithms.load_pem_private_key", cache(load_pem_private_key))
        for module in (gh_client, scale_sets, archives):
            patch.setattr(module, "trust", lambda given=(): trust(given) if given else usual)
        yield


@pytest.fixture
def hub() -> Iterator[github.GitHub]:
    with github.serve("127.0.0.1", 0, [TOKEN], [REPO.path], [ORG.org]) as served:
        yield served


@pytest.fixture
def control(hub: github.GitHub) -> GitHubControl:
    return GitHubControl(hub.url)


@pytest.fixture
def client(hub: github.GitHub) -> Iterator[GithubClient]:
    made = GithubClient(hub.url, Pat(TOKEN), deadline=3)
    yield made
    made.close()


@pytest.fixture(scope="session")
def key() -> str:
    """A private key of a GitHub App, as GitHub gives it (PKCS#1). Making one takes a moment."""
    return apps.make_key()[0]


@pytest.fixture(scope="session")
def runner_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked runner agent. Its modules are compiled once: its programs never keep what they compile."""
    folder = tmp_path_factory.mktemp("agent")
    with tarfile.open(fileobj=io.BytesIO(runner_tarball.build("2.336.0", "x64"))) as archive:
        archive.extractall(folder)
    # By the system's Python, which runs them.
    subprocess.run(["/usr/bin/python3", "-m", "compileall", "-q", folder / "bin"], env={}, check=True)
    return folder
