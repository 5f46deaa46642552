"""What the tests of the adapters share."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from gh import client as gh_client
from gh.auth import Pat
from gh.client import GithubClient
from sandbox import github
from sandbox.github import apps
from sandbox.github.control import GitHubControl
from tests.support.github import ORG, REPO, TOKEN


@pytest.fixture(scope="module", autouse=True)
def short_waits() -> Iterator[None]:
    """The client of GitHub waits a twentieth of its time between two attempts, and in the same proportions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gh_client, "random", SimpleNamespace(uniform=lambda low, _: low / 20))
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
