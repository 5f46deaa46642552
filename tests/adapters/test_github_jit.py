"""Just-in-time configuration, as the stand-in for GitHub gives it out to clients that we did not write."""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from typing import Any

import pytest

from sandbox import github
from sandbox.github.control import GitHubControl
from tests.support.github import call as request_as

TOKEN = "ghp_0123456789abcdef"
REPOSITORY, ORGANISATION = "Org/repo", "Org"
PATHS = {
    "repository": f"/repos/{REPOSITORY}/actions/runners",
    "organisation": f"/orgs/{ORGANISATION}/actions/runners",
}
GOOD = {"name": "one", "runner_group_id": 1, "labels": ["self-hosted", "Linux", "X64", "big"]}


@pytest.fixture
def server() -> Iterator[github.GitHub]:
    with github.serve(tokens=[TOKEN], repositories=[REPOSITORY], organisations=[ORGANISATION]) as running:
        yield running


@pytest.fixture
def control(server: github.GitHub) -> GitHubControl:
    return GitHubControl(server.url)


def call(server: github.GitHub, method: str, path: str, body: object = None) -> tuple[int, Any, Message]:
    """Send one request with the token that may do everything."""
    return request_as(server, method, path, TOKEN, body)


def generate(server: github.GitHub, kind: str = "repository", **changes: object) -> tuple[int, Any]:
    """Ask for a configuration; status and document of the answer. A field that is None is left out."""
    body = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return call(server, "POST", f"{PATHS[kind]}/generate-jitconfig", body)[:2]


def decoded(encoded: str) -> dict[str, Any]:
    """The files of a configuration, as documents."""
    files = json.loads(base64.b64decode(encoded, validate=True))
    return {name: json.loads(base64.b64decode(content, validate=True)) for name, content in files.items()}


@pytest.mark.parametrize("kind", PATHS)
def test_githubkit_gets_a_configuration(server: github.GitHub, kind: str) -> None:
    """githubkit's models, made from GitHub's description, fit the answer."""
    import githubkit

    options = {"base_url": server.api_url, "auto_retry": False, "http_cache": False}
    with githubkit.GitHub(TOKEN, **options) as client:
        actions = client.rest.actions
        if kind == "repository":
            answer = actions.generate_runner_jitconfig_for_repo("Org", "repo", data=GOOD)
        else:
            answer = actions.generate_runner_jitconfig_for_org("Org", data=GOOD)
    assert answer.status_code == 201
    assert (answer.parsed_data.runner.name, answer.parsed_data.runner.os) == ("one", "unknown")


def test_pygithub_gets_a_configuration(server: github.GitHub, control: GitHubControl) -> None:
    """PyGithub registers a runner just in time."""
    import github as library

    pauses = {"seconds_between_requests": None, "seconds_between_writes": None, "timeout": 5, "retry": None}
    with library.Github(auth=library.Auth.Token(TOKEN), base_url=server.api_url, **pauses) as client:
        place = client.get_organization(ORGANISATION)
        assert place.create_self_hosted_runner_jitconfig("one", 1, GOOD["labels"]).encoded_jit_config
    assert [runner["name"] for runner in control.runners()] == ["one"]


def test_ghapi_gets_a_configuration(server: github.GitHub, control: GitHubControl) -> None:
    """The client that the charm uses registers a runner just in time."""
    from ghapi.all import GhApi

    client = GhApi(sync=True, gh_host=server.api_url, token=TOKEN, timeout=5)  # type: ignore[no-untyped-call]
    answer = client.actions.generate_runner_jitconfig_for_org(ORGANISATION, **GOOD)
    assert answer.runner.id == control.runners()[0]["id"]


@pytest.mark.parametrize("kind", PATHS)
def test_a_configuration(server: github.GitHub, control: GitHubControl, kind: str) -> None:
    """The runner is listed at once, offline, with no other labels than those that were asked for."""
    status, document = generate(server, kind, work_folder="elsewhere")
    assert status == 201
    assert (document["runner"]["status"], document["runner"]["ephemeral"]) == ("offline", True)
    [listed] = call(server, "GET", PATHS[kind])[1]["runners"]
    assert listed == document["runner"]
    assert [label["name"] for label in listed["labels"]] == GOOD["labels"]
    files = decoded(document["encoded_jit_config"])
    assert set(files) == {".runner", ".credentials", ".credentials_rsaparams"}
    settings = files[".runner"]
    assert (settings["AgentId"], settings["AgentName"]) == (str(listed["id"]), "one")
    assert (settings["Ephemeral"], settings["WorkFolder"]) == ("True", "elsewhere")
    assert not {"GitHubUrl", "gitHubUrl"} & set(settings)
    assert len(document["encoded_jit_config"]) > 4000  # more than some ways to hand it on can take


WRONG: dict[str, tuple[dict[str, object], int]] = {
    "no name": ({"name": None}, 422),
    "no labels": ({"labels": None}, 422),
    "no group": ({"runner_group_id": None}, 422),
    "an empty name": ({"name": ""}, 422),
    "a long name": ({"name": "n" * 65}, 422),
    "no label in the list": ({"labels": []}, 422),
    "too many labels": ({"labels": [f"l{number}" for number in range(101)]}, 422),
    "a long label": ({"labels": ["l" * 257]}, 422),
    "labels as text": ({"labels": "self-hosted"}, 422),
    "a group by name": ({"runner_group_id": "Default"}, 422),
    "a folder that is none": ({"work_folder": 7}, 422),
    "an unknown group": ({"runner_group_id": 9}, 404),
    "a name in use": ({"name": "USED"}, 409),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests(server: github.GitHub, control: GitHubControl, name: str) -> None:
    """A wrong value, an unknown group and a name that another runner has, offline or not, are refused."""
    changes, status = WRONG[name]
    control.add_runner(REPOSITORY, "used")
    assert generate(server, "repository", **changes)[0] == status
    assert [runner["name"] for runner in control.runners()] == ["used"]


def test_names_are_unique_in_their_own_path_only(server: github.GitHub) -> None:
    """The same name may be a runner's of the organisation and of a repository."""
    assert [generate(server, kind)[0] for kind in (*PATHS, *PATHS)] == [201, 201, 409, 409]


def test_groups_over_several_pages(server: github.GitHub, control: GitHubControl) -> None:
    """A group beyond the first page of the list is as good as the default one; a repository has only that."""
    control.add_organisation(ORGANISATION, [f"group{number}" for number in range(120)])
    path = f"/orgs/{ORGANISATION}/actions/runner-groups?per_page=100"
    pages = [call(server, "GET", f"{path}&page={page}")[1]["runner_groups"] for page in (1, 2)]
    last = pages[1][-1]
    assert ([len(page) for page in pages], last["name"]) == ([100, 21], "group119")
    status, document = generate(server, "organisation", runner_group_id=last["id"])
    assert (status, document["runner"]["runner_group_id"]) == (201, last["id"])
    assert decoded(document["encoded_jit_config"])[".runner"]["PoolName"] == "group119"
    assert generate(server, "repository", runner_group_id=2)[0] == 404


@pytest.mark.parametrize(("version", "status"), [("3.9.16", 404), ("3.10.0", 201), ("3.17.0", 201), ("", 201)])
def test_old_servers_have_no_configuration(
    server: github.GitHub, control: GitHubControl, version: str, status: int
) -> None:
    """An Enterprise Server tells its version in a header, which GitHub.com has not; before 3.10 the endpoint lacks."""
    control.settings(enterprise_version=version)
    assert call(server, "GET", PATHS["repository"])[2].get("X-GitHub-Enterprise-Version", "") == version
    assert generate(server)[0] == status


def test_runners_that_never_connect_are_removed(server: github.GitHub, control: GitHubControl) -> None:
    """A runner that never connects is listed until its time is over."""
    generate(server)
    assert len(control.runners()) == 1
    control.settings(keep_lost=0)
    assert control.runners() == []


def test_only_who_may_manage_gets_a_configuration(server: github.GitHub, control: GitHubControl) -> None:
    """An App's token needs the permission to write."""
    app = control.add_app("reader", ORGANISATION, {"administration": "read"})
    control.install_app(app["id"], ORGANISATION)
    [installation] = server.state.apps.installations.values()
    token = server.state.apps.make_token(installation, None, None, 60, False).token
    request = urllib.request.Request(
        f"{server.api_url}{PATHS['repository']}/generate-jitconfig",
        json.dumps(GOOD).encode(),
        {"Authorization": f"Bearer {token}", "User-Agent": "test"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)
    with caught.value as error:
        assert (error.code, error.headers["X-Accepted-GitHub-Permissions"]) == (403, "administration=write")
