"""Just-in-time registration against the stand-in for GitHub, over real HTTP."""

import json

import pytest

from errors import ConfigurationError, GithubApiError, TokenError
from gh.auth import Pat
from gh.client import GithubClient
from gh.registration import OptionRegistration
from models import Arch, GithubOrg, GithubPath, RegistrationMethod
from sandbox import github
from sandbox.github.control import GitHubControl
from tests.support.github import ORG, REPO

JIT = "/generate-jitconfig"


def registration(
    client: GithubClient, path: GithubPath = REPO, method: RegistrationMethod = RegistrationMethod.AUTO
) -> OptionRegistration:
    return OptionRegistration(method, client, path, Arch.X64)


@pytest.mark.parametrize("path", [REPO, ORG], ids=["repository", "organisation"])
def test_a_record_and_its_configuration(client: GithubClient, control: GitHubControl, path: GithubPath) -> None:
    """GitHub lists the runner with all its labels, offline, before anything runs; the files are the runner agent's."""
    made = registration(client, path)
    made.prepare()
    data = made.register("app-0-aa", ["app", "jammy"])

    [listed] = control.runners()
    assert (listed["id"], listed["name"], listed["status"]) == (data.runner_id, "app-0-aa", "offline")
    found = client.runner(path, data.runner_id or 0)
    assert found is not None
    assert (found.name, found.online) == ("app-0-aa", False)
    assert {".runner", ".credentials", ".credentials_rsaparams"} <= data.files.keys()
    assert json.loads(data.files[".runner"].lstrip("\ufeff"))["AgentName"] == "app-0-aa"


def test_labels_are_those_that_config_sh_would_give(client: GithubClient, control: GitHubControl) -> None:
    """Jobs ask for `self-hosted`, `linux` and the architecture."""
    registration(client).register("app-0-aa", ["app", "jammy"])
    [listed] = control.runners()
    names = [label["name"] if isinstance(label, dict) else label for label in listed["labels"]]
    assert names == ["self-hosted", "Linux", "X64", "app", "jammy"]


def test_group_of_any_page(client: GithubClient, control: GitHubControl) -> None:
    """The runner joins the group of the option, by its number."""
    control.add_organisation(ORG.org, [f"group {number}" for number in range(130)])
    made = registration(client, GithubOrg(ORG.org, "Group 129"))
    made.prepare()
    data = made.register("app-0-aa", [])
    assert json.loads(data.files[".runner"].lstrip("\ufeff"))["PoolName"] == "group 129"


def test_a_group_that_is_not_there_blocks(client: GithubClient) -> None:
    """The same error as with a registration token."""
    with pytest.raises(ConfigurationError, match="group: octo-org has no runner group 'nobody'"):
        registration(client, GithubOrg(ORG.org, "nobody")).prepare()


def test_groups_that_are_not_shown_block(client: GithubClient, control: GitHubControl) -> None:
    """Without the number of the group no runner can be registered in it: nothing hides the missing permission."""
    control.add_fault(method="GET", path="runner-groups", times=None, status=403)
    with pytest.raises(TokenError):
        registration(client, GithubOrg(ORG.org, "builders")).prepare()


def test_a_missing_permission_is_found_before_anything_is_removed(client: GithubClient, control: GitHubControl) -> None:
    """The reconcile asks before it removes outdated runners."""
    control.add_fault(path="/registration-token", status=403, body='{"message": "Resource not accessible"}')
    with pytest.raises(TokenError, match="Resource not accessible"):
        registration(client).prepare()


@pytest.mark.parametrize(
    ("version", "jit"),
    [
        ("3.17.0", True),
        ("3.10.0", True),
        ("3.9.14", False),
        ("2.22.9", False),
        ("4.0", True),
        ("", False),
        ("x", False),
    ],
)
def test_the_version_of_an_enterprise_server_decides(
    hub: github.GitHub, client: GithubClient, control: GitHubControl, version: str, jit: bool
) -> None:
    """From 3.10 on, as its answers tell; an older one gives a registration token, and `jit` blocks."""
    control.settings(enterprise_version=version)
    made = registration(client)
    made.prepare()
    data = made.register("app-0-aa", [])
    assert bool(data.files) is jit
    assert bool(data.token) is not jit

    forced = registration(client, method=RegistrationMethod.JIT)
    if jit:
        forced.prepare()
    else:
        with pytest.raises(ConfigurationError, match=r"registration: jit needs GitHub Enterprise Server 3\.10"):
            forced.prepare()


def test_the_list_of_runners_tells_the_version(client: GithubClient, control: GitHubControl) -> None:
    """A reconcile that registers no runner finds a server without the way that `jit` needs, and asks nothing for it."""
    control.settings(enterprise_version="3.9.14")
    client.list_runners(REPO, lambda _: True)
    with pytest.raises(ConfigurationError, match=r"the server's version is 3\.9\.14"):
        registration(client, method=RegistrationMethod.JIT).check()
    assert len(control.requests()) == 1


@pytest.mark.parametrize("url", ["https://github.com", "https://octo.ghe.com"])
def test_github_com_always_has_it(url: str) -> None:
    """No request is needed to know."""
    assert GithubClient(url, Pat("")).has_jit(REPO)


def test_a_lost_answer_leaves_one_record(client: GithubClient, control: GitHubControl) -> None:
    """GitHub has made the record, and the answer is lost: the repeated request finds the name taken."""
    control.add_fault(path=JIT, cut=10, times=1)
    data = registration(client).register("app-0-aa", [])
    assert [runner["id"] for runner in control.runners()] == [data.runner_id]


@pytest.mark.parametrize(
    "body",
    ["{}", "[]", '{"runner": {"id": 1}, "encoded_jit_config": "e30="}', '{"runner": [], "encoded_jit_config": "e30="}'],
)
def test_odd_answers_are_errors(client: GithubClient, control: GitHubControl, body: str) -> None:
    """What is not GitHub's documented answer registers nobody."""
    control.add_fault(path=JIT, status=201, body=body)
    with pytest.raises(GithubApiError):
        registration(client).register("app-0-aa", [])
