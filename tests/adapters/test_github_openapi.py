"""The stand-in for GitHub and the charm's requests, checked against GitHub's published OpenAPI description."""

import http.client
import io
import json
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import jwt
import pytest

from gh.app import App
from gh.archives import ActionArchives
from gh.auth import Pat
from gh.client import GithubClient
from models import AppCredentials, Arch, GithubOrg, GithubRepo
from sandbox import github
from sandbox.github import api, app_routes, content_routes
from sandbox.github.control import GitHubControl
from sandbox.github.state import Settings
from sandbox.lab import lxd_setup
from tests.adapters.openapi import Description, fetch

# The first run may have to install npm.
pytestmark = pytest.mark.timeout(900)

TOKEN, SEER = "ghp_0123456789abcdef", "ghp_seer"
REPO, ORG = "octo-org/demo", "octo-org"
# Routes that this version of the description lacks. githubkit's models of a later one check their answers, see
# test_github_standin.py.
NEWER = {"deprecations"}
# Fields that only the description of Enterprise Server has.
ENTERPRISE = {"/meta": {"installed_version"}}


@pytest.fixture(scope="module")
def description() -> Description:
    """Fetched once and kept outside of the repository."""
    return Description(fetch(lxd_setup.state_dir()))


@pytest.fixture
def hub() -> Iterator[github.GitHub]:
    with github.serve("127.0.0.1", 0, [TOKEN], [REPO], [ORG], settings=Settings(points_a_minute=10**6)) as served:
        yield served


@pytest.fixture
def control(hub: github.GitHub) -> GitHubControl:
    """A world with a runner and a busy one in each path, a job in each state, and tokens that are refused."""
    control = GitHubControl(hub.url)
    control.add_organisation(ORG, ["fast"])
    control.add_token(SEER, [REPO, ORG], admin=False)
    for path in (REPO, ORG):
        control.add_runner(path, "idle", status="online", labels=["big"])
        control.add_runner(path, "busy", busy=True)
    over = {"status": "completed", "conclusion": "success", "started_at": 1.8e9, "completed_at": 1.8e9 + 9}
    runner = {"runner_id": 1, "runner_name": "idle", "runner_group": "Default"}
    run = control.add_job(REPO, run_id=77)["run_id"]
    control.add_job(REPO, run_id=run, state={"status": "in_progress", "started_at": 1.8e9, **runner})
    control.add_job(REPO, run_id=run, state={**over, **runner})
    return control


@pytest.fixture
def app_token(hub: github.GitHub, control: GitHubControl, key: str) -> str:
    """The JWT of an App that has one installation; the installation has the number 2000003."""
    app = control.add_app("runners", ORG, private_key=key)
    control.install_app(app["id"], ORG)
    now = int(time.time())
    return jwt.encode({"iss": app["client_id"], "iat": now - 60, "exp": now + 300}, key, "RS256")


def ask(
    hub: github.GitHub, method: str, target: str, token: str | None = TOKEN, body: object = None
) -> tuple[int, Any]:
    """Send a request; the answer's status and document, or its bytes."""
    address = urllib.parse.urlsplit(hub.url)
    headers = {"User-Agent": "test", **({"Authorization": f"Bearer {token}"} if token else {})}
    with closing(http.client.HTTPConnection(str(address.hostname), address.port, timeout=5)) as connection:
        data = None if body is None else json.dumps(body)
        connection.request(method, f"/api/v3{target}", data, headers)
        answer = connection.getresponse()
        content = answer.read()
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.status, json.loads(content) if is_json else content


def both(ending: str) -> list[str]:
    return [f"/repos/{REPO}/actions/runners{ending}", f"/orgs/{ORG}/actions/runners{ending}"]


# Idle runners have the numbers 1 and 3, busy ones 2 and 4.
CALLS: list[tuple[str, str, int]] = [
    ("GET", "/", 200),
    ("GET", "/meta", 200),
    ("GET", "/rate_limit", 200),
    ("GET", f"/repos/{REPO}", 200),
    ("GET", "/repos/octo-org/none", 404),
    ("GET", f"/orgs/{ORG}", 200),
    ("GET", f"/orgs/{ORG}/actions/runner-groups?per_page=100&page=1", 200),
    *(("POST", path, 201) for path in both("/registration-token") + both("/remove-token")),
    *(("GET", path, 200) for path in both("?per_page=100&page=1") + both("?name=idle") + both("/downloads")),
    *zip(["GET"] * 2, [both("/1")[0], both("/3")[1]], [200] * 2, strict=True),
    *(("GET", path, 404) for path in both("/99")),
    *zip(["DELETE"] * 2, [both("/1")[0], both("/3")[1]], [204] * 2, strict=True),
    *zip(["DELETE"] * 2, [both("/2")[0], both("/4")[1]], [422] * 2, strict=True),
    ("GET", f"/repos/{REPO}/actions/runs?status=queued&per_page=100", 200),
    ("GET", f"/repos/{REPO}/actions/runs/77/jobs?filter=latest&per_page=100&page=1", 200),
    *(("GET", f"/repos/actions/checkout/commits/{ref}", status) for ref, status in (("v5", 200), ("v99", 422))),
    ("GET", "/repos/actions/none/commits/v5", 404),
    ("GET", "/repos/actions/checkout/tarball/v5", 302),
]
JIT_CONFIG = {"name": "new", "runner_group_id": 1, "labels": ["self-hosted"], "work_folder": "_work"}
# Requests with a body, with which runners are registered just in time: method, target, status and body.
JIT_CALLS: list[tuple[str, str, int, object]] = [
    *(("POST", path, 201, JIT_CONFIG) for path in both("/generate-jitconfig")),
    *(("POST", path, 404, {**JIT_CONFIG, "runner_group_id": 9}) for path in both("/generate-jitconfig")),
    *(("POST", path, 409, {**JIT_CONFIG, "name": "idle"}) for path in both("/generate-jitconfig")),
    *(("POST", path, 422, {**JIT_CONFIG, "labels": []}) for path in both("/generate-jitconfig")),
]
# Requests of an App: method, target, status and body.
INSTALLATION = "/app/installations/2000003"
ONLY_DEMO = {"repositories": ["demo"], "permissions": {"administration": "write"}}
APP_CALLS: list[tuple[str, str, int, object]] = [
    ("GET", "/app", 200, None),
    ("GET", "/app/installations?per_page=100&page=1", 200, None),
    ("GET", INSTALLATION, 200, None),
    ("GET", "/app/installations/1", 404, None),
    ("GET", f"/repos/{REPO}/installation", 200, None),
    ("GET", "/repos/octo-org/none/installation", 404, None),
    ("GET", f"/orgs/{ORG}/installation", 200, None),
    ("GET", "/users/nobody/installation", 404, None),
    ("POST", f"{INSTALLATION}/access_tokens", 201, {}),
    ("POST", f"{INSTALLATION}/access_tokens", 201, ONLY_DEMO),
    ("POST", f"{INSTALLATION}/access_tokens", 422, {"permissions": {"contents": "read"}}),
    ("POST", "/app/installations/1/access_tokens", 404, {}),
]
REFUSED = [(None, 401), ("ghp_wrong", 401), (SEER, 403)]


def without_enterprise(target: str, answer: Any) -> Any:
    extra = ENTERPRISE.get(target, set())
    return {key: value for key, value in answer.items() if key not in extra} if extra else answer


@pytest.mark.parametrize(("method", "target", "status"), CALLS)
def test_answers_are_as_described(
    description: Description, hub: github.GitHub, control: GitHubControl, method: str, target: str, status: int
) -> None:
    """Each answer has a described status, all required fields with values that are allowed, and no other field."""
    operation = description.operation(method, urllib.parse.urlsplit(target).path)
    assert operation is not None
    assert description.request_errors(method, target) == []

    found, answer = ask(hub, method, target)

    assert found == status
    assert description.answer_errors(operation, found, without_enterprise(target, answer)) == []


@pytest.mark.parametrize(("method", "target", "status", "body"), JIT_CALLS)
def test_configurations_are_as_described(
    description: Description,
    hub: github.GitHub,
    control: GitHubControl,
    method: str,
    target: str,
    status: int,
    body: object,
) -> None:
    """The answers to requests for a just-in-time configuration are as described."""
    operation = description.operation(method, target)
    assert operation is not None

    found, answer = ask(hub, method, target, TOKEN, body)

    assert (found, description.answer_errors(operation, found, answer)) == (status, [])


@pytest.mark.parametrize(("method", "target", "status", "body"), APP_CALLS)
def test_answers_to_an_app_are_as_described(
    description: Description, hub: github.GitHub, app_token: str, method: str, target: str, status: int, body: object
) -> None:
    """The requests that an App sends with a JWT, and their answers, are as described."""
    operation = description.operation(method, urllib.parse.urlsplit(target).path)
    assert operation is not None
    sent = b"" if body is None else json.dumps(body).encode()
    assert description.request_errors(method, target, sent) == []

    found, answer = ask(hub, method, target, app_token, body)

    assert found == status
    answers = [answer]
    if isinstance(answer, list):  # the list's description wants an account that is a user and an enterprise at once
        operation, answers = description.operation("GET", INSTALLATION), answer
    assert operation is not None
    assert [error for each in answers for error in description.answer_errors(operation, found, each)] == []


def test_a_suspended_installation_is_as_described(
    description: Description, hub: github.GitHub, control: GitHubControl, app_token: str
) -> None:
    """A suspended installation, and the refusal of a token for it, have the described forms."""
    control.change_installation(2000003, suspended=True)

    for method, target, status in (("GET", INSTALLATION, 200), ("POST", f"{INSTALLATION}/access_tokens", 403)):
        operation = description.operation(method, target)
        assert operation is not None
        found, answer = ask(hub, method, target, app_token)
        assert (found, description.answer_errors(operation, found, answer)) == (status, [])


def test_revoking_is_as_described(description: Description, hub: github.GitHub, app_token: str) -> None:
    """A token is revoked with the described request and answer."""
    token = ask(hub, "POST", f"{INSTALLATION}/access_tokens", app_token)[1]["token"]
    operation = description.operation("DELETE", "/installation/token")
    assert operation is not None

    found, answer = ask(hub, "DELETE", "/installation/token", token)

    assert (found, description.answer_errors(operation, found, answer)) == (204, [])


@pytest.mark.parametrize(("token", "status"), REFUSED)
@pytest.mark.parametrize("target", both(""))
def test_refusals_are_as_described(
    description: Description, hub: github.GitHub, control: GitHubControl, target: str, token: str | None, status: int
) -> None:
    """A refusal has the form that is common to all operations."""
    operation = description.operation("GET", target)
    assert operation is not None

    found, answer = ask(hub, "GET", target, token)

    assert found == status
    assert description.answer_errors(operation, found, answer) == []


def test_redirect_is_as_described(description: Description, hub: github.GitHub, control: GitHubControl) -> None:
    """The answer for a former name is the one that is described for repositories."""
    control.rename_repository(REPO, "octo-org/other")
    operation = description.operation("GET", f"/repos/{REPO}")
    assert operation is not None

    found, answer = ask(hub, "GET", f"/repos/{REPO}")

    assert found == 301
    assert description.answer_errors(operation, found, answer) == []


def test_every_route_is_checked(description: Description) -> None:
    """Each route of the stand-in is in the description and in the table above, or is known to be newer."""
    calls = [*CALLS, *(call[:3] for call in JIT_CALLS + APP_CALLS), ("DELETE", "/installation/token", 204)]
    for method, pattern, _ in (*api.routes.all, *app_routes.routes.all, *content_routes.routes.all):
        if any(word in pattern.pattern for word in NEWER):
            continue
        called = [target for verb, target, _ in calls if verb == method]
        assert any(pattern.fullmatch(urllib.parse.urlsplit(target).path) for target in called), pattern.pattern


@pytest.mark.parametrize("word", sorted(NEWER))
def test_newer_routes_are_not_described_yet(description: Description, word: str) -> None:
    """Once the description has a route, its answers are checked against it and no longer exempt."""
    assert description.operation("GET", both(f"/{word}/2.336.0")[0]) is None


@pytest.mark.parametrize("path", [GithubRepo("octo-org", "demo"), GithubOrg("octo-org", "fast")], ids=["repo", "org"])
def test_requests_of_the_charm_are_as_described(
    description: Description, hub: github.GitHub, control: GitHubControl, path: GithubRepo | GithubOrg
) -> None:
    """Each request that the client can send is in the description, with its parameters."""
    control.clear_requests()
    client = GithubClient(hub.url, Pat(TOKEN), deadline=5)
    found = client.list_runners(path, lambda name: name == "idle")[0]
    client.find_runner(path, "idle")
    client.registration_token(path)
    client.generate_jit_config(path, "new", client.group_id(path), ["self-hosted", "Linux"])
    client.offered_binary(path, Arch.X64)
    client.job(REPO, "77", "idle")
    client.delete_runner(path, found.runner_id)
    assert client.runner_is_gone(path, found.runner_id)
    client.close()

    sent = control.requests()

    assert len(sent) >= 9
    assert errors_of(description, sent) == []


def test_requests_for_an_archive_are_as_described(
    description: Description, hub: github.GitHub, control: GitHubControl
) -> None:
    """Each request of the API that an action's archive takes is in the description."""
    control.clear_requests()
    ActionArchives(hub.url).fetch("actions/checkout@v5", io.BytesIO(), 1 << 20)

    sent = control.requests()[:2]

    assert [entry["status"] for entry in sent] == [200, 302]
    assert errors_of(description, sent) == []


@pytest.mark.parametrize("path", [GithubRepo("octo-org", "demo"), GithubOrg("octo-org", "fast")], ids=["repo", "org"])
def test_requests_of_the_charm_as_an_app_are_as_described(
    description: Description, hub: github.GitHub, control: GitHubControl, key: str, path: GithubRepo | GithubOrg
) -> None:
    """Each request that the client sends to work as a GitHub App is in the description, with its parameters."""
    app = control.add_app("runners", ORG, private_key=key)
    control.install_app(app["id"], ORG)
    control.clear_requests()
    client = GithubClient(hub.url, App(AppCredentials(app["client_id"], key), hub.api_url, path), deadline=5)
    client.list_runners(path, lambda _: True)
    client.revoke()
    client.close()

    sent = control.requests()

    assert [entry["status"] for entry in sent] == [200, 201, 200, 204]
    assert errors_of(description, sent) == []


def errors_of(description: Description, sent: list[dict[str, Any]]) -> list[str]:
    """What the description does not allow in recorded requests."""
    found = []
    for entry in sent:
        target = entry["path"].removeprefix("/api/v3") + "?" + urllib.parse.urlencode(entry["query"])
        found += description.request_errors(entry["method"], target, entry["body"].encode())
    return found


def test_wrong_requests_and_answers_are_noticed(description: Description) -> None:
    """The check itself finds an unknown path, parameter and field, a missing one, and a wrong type."""
    target = both("")[0]
    operation = description.operation("GET", target)
    assert operation is not None
    runner = {"id": 1, "name": "x", "os": "Linux", "status": "online", "busy": False, "labels": []}

    def errors(answer: Any, status: int = 200) -> int:
        return len(description.answer_errors(operation, status, answer))

    assert errors({"total_count": 1, "runners": [runner]}) == 0
    assert errors({"total_count": 1, "runners": [{**runner, "colour": "red"}]}) == 1
    assert errors({"total_count": 1, "runners": [{**runner, "busy": "no"}]}) == 1
    assert errors({"total_count": "1"}) == 2
    assert errors({}, 202) == 1
    assert description.request_errors("GET", f"{target}?colour=red") != []
    assert description.request_errors("GET", f"{target}?per_page=many") != []
    assert description.request_errors("GET", target, b'{"colour": "red"}') != []
    body = json.dumps({**JIT_CONFIG, "labels": "self-hosted"}).encode()
    assert description.request_errors("POST", both("/generate-jitconfig")[0], body) != []
    assert description.request_errors("PUT", target) != []
