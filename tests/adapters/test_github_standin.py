"""The stand-in for GitHub speaks GitHub's language: clients that we did not write understand every answer."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sandbox import github
from sandbox.github import runner_tarball
from sandbox.github.control import GitHubControl, GitHubControlError
from sandbox.github.state import Settings
from sandbox.shell import wait_until

TOKEN = "ghp_0123456789abcdef"
REPOSITORY, ORGANISATION = "Owner/repo", "Org"
RUNNERS = {
    "repository": f"/repos/{REPOSITORY}/actions/runners",
    "organisation": f"/orgs/{ORGANISATION}/actions/runners",
}
ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[github.GitHub]:
    with github.serve(tokens=[TOKEN], repositories=[REPOSITORY], organisations=[ORGANISATION], clock=clock) as running:
        yield running


@pytest.fixture
def control(server: github.GitHub) -> GitHubControl:
    return GitHubControl(server.url)


# The clients are Any: mypy skips githubkit and PyGithub (pyproject.toml), and ghapi makes its functions at run time.
@pytest.fixture
def kit(server: github.GitHub) -> Iterator[Any]:
    import githubkit  # here, so that a library that cannot be imported fails only the tests that use it

    with githubkit.GitHub(TOKEN, base_url=server.api_url, auto_retry=False, http_cache=False) as client:
        yield client


@pytest.fixture
def pygithub(server: github.GitHub) -> Iterator[Any]:
    import github as library

    # Its pauses between requests are courtesy to the real GitHub.
    pauses = {"seconds_between_requests": None, "seconds_between_writes": None}
    client = library.Github(auth=library.Auth.Token(TOKEN), base_url=server.api_url, retry=None, timeout=5, **pauses)
    yield client
    client.close()


@pytest.fixture
def ghapi(server: github.GitHub) -> Any:
    from ghapi.all import GhApi

    return GhApi(sync=True, gh_host=server.api_url, token=TOKEN, timeout=5)  # type: ignore[no-untyped-call]


def call(
    server: github.GitHub,
    method: str,
    path: str,
    token: str | None = TOKEN,
    headers: dict[str, str | None] | None = None,
    body: str | None = None,
    timeout: float = 5.0,
) -> tuple[int, Message, Any]:
    """Send one request with nothing added to it; status, headers and document (or bytes) of the answer."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=timeout)
    sent = {"User-Agent": "test", **({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
    with contextlib.closing(connection):
        connection.request(method, path, body, {name: value for name, value in sent.items() if value is not None})
        answer = connection.getresponse()
        content = answer.read()
    if "json" in answer.headers.get("Content-Type", ""):
        return answer.status, answer.headers, json.loads(content)
    return answer.status, answer.headers, content


def api(server: github.GitHub, method: str, path: str, **more: Any) -> tuple[int, Message, Any]:
    return call(server, method, f"/api/v3{path}", **more)


# Clients that we did not write ----------------------------------------------------------------------------------------

KIT_CALLS: dict[str, Callable[[Any, tuple[int, int, int]], Any]] = {
    "repository": lambda rest, _: rest.repos.get("Owner", "repo"),
    "organisation": lambda rest, _: rest.orgs.get("Org"),
    "repository runners": lambda rest, _: rest.actions.list_self_hosted_runners_for_repo("Owner", "repo"),
    "organisation runners": lambda rest, _: rest.actions.list_self_hosted_runners_for_org("Org"),
    "repository runner": lambda rest, ids: rest.actions.get_self_hosted_runner_for_repo("Owner", "repo", ids[0]),
    "organisation runner": lambda rest, ids: rest.actions.get_self_hosted_runner_for_org("Org", ids[1]),
    "repository token": lambda rest, _: rest.actions.create_registration_token_for_repo("Owner", "repo"),
    "organisation token": lambda rest, _: rest.actions.create_registration_token_for_org("Org"),
    "repository remove token": lambda rest, _: rest.actions.create_remove_token_for_repo("Owner", "repo"),
    "organisation remove token": lambda rest, _: rest.actions.create_remove_token_for_org("Org"),
    "repository downloads": lambda rest, _: rest.actions.list_runner_applications_for_repo("Owner", "repo"),
    "organisation downloads": lambda rest, _: rest.actions.list_runner_applications_for_org("Org"),
    # Only the later version of the description has it.
    "repository deprecation": lambda rest, _: rest("2026-03-10").actions.get_runner_version_deprecation_for_repo(
        "Owner", "repo", "2.328.0"
    ),
    "organisation deprecation": lambda rest, _: rest("2026-03-10").actions.get_runner_version_deprecation_for_org(
        "Org", "2.336.0"
    ),
    "jobs": lambda rest, ids: rest.actions.list_jobs_for_workflow_run("Owner", "repo", ids[2], filter_="all"),
    "runner groups": lambda rest, _: rest.actions.list_self_hosted_runner_groups_for_org("Org"),
    "rate limit": lambda rest, _: rest.rate_limit.get(),
    "meta": lambda rest, _: rest.meta.get(),
    "root": lambda rest, _: rest.meta.root(),
}


@pytest.fixture
def ids(control: GitHubControl) -> tuple[int, int, int]:
    """A runner of the repository, one of the organisation, and a run with a job in each of its possible states."""
    first = control.add_runner(REPOSITORY, "one", status="online", labels=["big"])["id"]
    second = control.add_runner(ORGANISATION, "two")["id"]
    run = control.add_job(REPOSITORY)["run_id"]
    done = {"status": "completed", "conclusion": "success", "started_at": 1.8e9, "completed_at": 1.8e9 + 9}
    runner = {"runner_id": first, "runner_name": "one", "runner_group": "Default"}
    control.add_job(REPOSITORY, run_id=run, state={"status": "in_progress", "started_at": 1.8e9, **runner})
    control.add_job(REPOSITORY, run_id=run, event="pull_request", state={**done, **runner})
    return first, second, run


@pytest.mark.parametrize("name", KIT_CALLS)
def test_every_answer_fits_the_published_description(kit: Any, ids: tuple[int, int, int], name: str) -> None:
    """Each answer has the form of GitHub's published description, from which githubkit's models are generated."""
    assert KIT_CALLS[name](kit.rest, ids).parsed_data is not None


def test_githubkit_reads_what_the_server_means(kit: Any, control: GitHubControl, ids: tuple[int, int, int]) -> None:
    """The values behind the forms are right, not only the forms."""
    [runner] = kit.rest.actions.list_self_hosted_runners_for_repo("owner", "REPO").parsed_data.runners
    assert (runner.id, runner.name, runner.status, runner.busy) == (ids[0], "one", "online", False)
    assert [(label.name, label.type) for label in runner.labels] == [
        *(("self-hosted", "read-only"), ("Linux", "read-only"), ("X64", "read-only"), ("big", "custom")),
    ]
    jobs = kit.rest.actions.list_jobs_for_workflow_run("Owner", "repo", ids[2]).parsed_data
    assert [(job.status, job.conclusion) for job in jobs.jobs] == [
        *(("queued", None), ("in_progress", None), ("completed", "success")),
    ]
    assert jobs.jobs[2].completed_at - jobs.jobs[2].started_at == jobs.jobs[2].completed_at.resolution * 9_000_000
    kit.rest.actions.delete_self_hosted_runner_from_repo("Owner", "repo", ids[0])
    kit.rest.actions.delete_self_hosted_runner_from_org("Org", ids[1])
    assert control.runners() == []


def test_pygithub_understands_the_server(pygithub: Any, ids: tuple[int, int, int]) -> None:
    """A second independent client reads runners, tokens, applications and jobs, and deletes runners."""
    from github.PaginatedList import PaginatedList
    from github.WorkflowJob import WorkflowJob

    repository, organisation = pygithub.get_repo(REPOSITORY), pygithub.get_organization(ORGANISATION)
    assert [runner.name for runner in repository.get_self_hosted_runners()] == ["one"]
    assert [runner.name for runner in organisation.get_self_hosted_runners(name="two")] == ["two"]
    assert repository.get_self_hosted_runner(ids[0]).status == "online"
    assert organisation.get_self_hosted_runner(ids[1]).status == "offline"
    assert len(organisation.create_self_hosted_runner_registration_token().token) == 29
    assert organisation.create_self_hosted_runner_remove_token().expires_at.timestamp() == pytest.approx(1.8e9 + 3600)
    applications = [(found.os, found.architecture) for found in organisation.get_self_hosted_runner_applications()]
    assert {("linux", "x64"), ("linux", "arm64")} < set(applications)
    # The library offers a run's jobs only after fetching the run, which the server does not know.
    url = f"{repository.url}/actions/runs/{ids[2]}/jobs"
    jobs = PaginatedList(WorkflowJob, pygithub.requester, url, None, list_item="jobs")
    assert [job.status for job in jobs] == ["queued", "in_progress", "completed"]
    assert repository.remove_self_hosted_runner(ids[0])
    organisation.delete_self_hosted_runner(ids[1])
    assert pygithub.get_rate_limit().rate.limit == 5000


@pytest.mark.parametrize(("kind", "place"), [("repo", ("Owner", "repo")), ("org", ("Org",))])
def test_ghapi_understands_the_server(
    ghapi: Any, control: GitHubControl, ids: tuple[int, int, int], kind: str, place: tuple[str, ...]
) -> None:
    """The client that the charm uses can do all that the charm asks of GitHub."""
    actions, ending = ghapi.actions, {"repo": "from_repo", "org": "from_org"}[kind]
    listed = getattr(actions, f"list_self_hosted_runners_for_{kind}")(*place, per_page=100, page=1)
    assert listed.total_count == 1
    assert len(getattr(actions, f"create_registration_token_for_{kind}")(*place).token) == 29
    assert len(getattr(actions, f"create_remove_token_for_{kind}")(*place).token) == 29
    assert len(getattr(actions, f"list_runner_applications_for_{kind}")(*place)) == 6
    getattr(actions, f"delete_self_hosted_runner_{ending}")(*place, listed.runners[0].id)
    assert len(control.runners()) == 1
    assert actions.list_jobs_for_workflow_run("Owner", "repo", ids[2], filter="all").total_count == 3


@pytest.mark.parametrize("client", ["kit", "pygithub", "ghapi"])
def test_clients_understand_refusals(
    request: pytest.FixtureRequest, control: GitHubControl, ids: tuple[int, int, int], client: str
) -> None:
    """A busy runner's 422 and an unknown runner's 404 reach each client as what they are."""
    library, busy = request.getfixturevalue(client), control.add_runner(ORGANISATION, "busy", busy=True)["id"]
    error: Any  # each library has an error of its own
    for number, status in ((busy, 422), (9999, 404)):
        if client == "pygithub":
            with pytest.raises(Exception) as caught:
                library.get_organization(ORGANISATION).delete_self_hosted_runner(number)
            error = caught.value
            assert error.status == status
            continue
        actions = library.rest.actions if client == "kit" else library.actions
        with pytest.raises(Exception) as caught:
            actions.delete_self_hosted_runner_from_org(ORGANISATION, number)
        error = caught.value
        found = error.response.status_code if client == "kit" else error.status_code
        assert found == status


# Lists ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RUNNERS)
def test_lists_come_in_pages(server: github.GitHub, control: GitHubControl, pygithub: Any, kind: str) -> None:
    """Following the Link header yields every runner once; the page size is 30 unless asked for, at most 100."""
    path = {"repository": REPOSITORY, "organisation": ORGANISATION}[kind]
    control.add_runner(path, "r", count=250)
    sizes = []
    for query in ("", "?per_page=100&page=3", "?per_page=1000", "?per_page=nonsense", "?page=99", "?per_page=0"):
        status, _, found = api(server, "GET", RUNNERS[kind] + query)
        sizes.append(len(found["runners"]))
        assert (status, found["total_count"]) == (200, 250)
    assert sizes == [30, 50, 100, 30, 0, 1]
    owner = pygithub.get_repo(path) if kind == "repository" else pygithub.get_organization(path)
    assert len({runner.name for runner in owner.get_self_hosted_runners()}) == 250


def test_links_lead_to_the_other_pages(server: github.GitHub, control: GitHubControl) -> None:
    """The Link header names the pages before and after, the first and the last, and keeps the other parameters."""
    control.add_runner(REPOSITORY, "r", count=250)
    path = f"{RUNNERS['repository']}?per_page=100"
    base = f"<{server.api_url}{path}&page="
    links = [api(server, "GET", f"{path}&page={page}")[1]["Link"] for page in (1, 2, 3)]
    assert links == [
        f'{base}2>; rel="next", {base}3>; rel="last"',
        f'{base}1>; rel="prev", {base}3>; rel="next", {base}3>; rel="last", {base}1>; rel="first"',
        f'{base}2>; rel="prev", {base}1>; rel="first"',
    ]
    assert "Link" not in api(server, "GET", f"{RUNNERS['repository']}?name=r7")[1]


def test_names_are_compared_whole(server: github.GitHub, control: GitHubControl) -> None:
    """The name parameter finds the runner of exactly that name."""
    control.add_runner(REPOSITORY, "r", count=12)
    found = api(server, "GET", f"{RUNNERS['repository']}?name=r1")[2]
    assert [runner["name"] for runner in found["runners"]] == ["r1"]


def test_ten_thousand_runners(server: github.GitHub, control: GitHubControl) -> None:
    """As many runners as a big organisation has are made at once and listed page by page."""
    assert len(control.add_runner(ORGANISATION, "r", count=10_000)["ids"]) == 10_000
    found = api(server, "GET", f"{RUNNERS['organisation']}?per_page=100&page=100")[2]
    assert (found["total_count"], found["runners"][-1]["name"]) == (10_000, "r9999")


def test_jobs_of_a_run_by_attempt(server: github.GitHub, control: GitHubControl) -> None:
    """By default only the jobs of the latest attempt are listed, with filter=all those of every attempt."""
    run = control.add_job(REPOSITORY, count=150)[0]["run_id"]
    control.add_job(REPOSITORY, run_id=run, run_attempt=2)
    path = f"/repos/{REPOSITORY}/actions/runs/{run}/jobs"
    assert api(server, "GET", path)[2]["total_count"] == 1
    found = api(server, "GET", f"{path}?filter=all&per_page=100&page=2")[2]
    assert (found["total_count"], len(found["jobs"])) == (151, 51)


# Refusals -------------------------------------------------------------------------------------------------------------

REFUSALS = {
    "nobody": (None, RUNNERS["repository"], 401, "Requires authentication"),
    "unknown token": ("ghp_wrong", RUNNERS["repository"], 401, "Bad credentials"),
    "token of others": ("other", RUNNERS["repository"], 404, "Not Found"),
    "token that only sees": ("seer", RUNNERS["repository"], 403, "Resource not accessible by personal access token"),
    "token of one path only": ("other", RUNNERS["organisation"], 200, None),
    "seeing the repository": ("seer", f"/repos/{REPOSITORY}", 200, None),
    "no such path": (TOKEN, "/repos/Owner/other/actions/runners", 404, "Not Found"),
    "no such organisation": (TOKEN, "/orgs/Owner/actions/runners", 404, "Not Found"),
    "no such route": (TOKEN, "/repos", 404, "Not Found"),
    "no such runner": (TOKEN, f"{RUNNERS['repository']}/77", 404, "Not Found"),
    "no such run": (TOKEN, f"/repos/{REPOSITORY}/actions/runs/77/jobs", 404, "Not Found"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(server: github.GitHub, control: GitHubControl, name: str) -> None:
    """Each refusal has GitHub's status, message and form."""
    token, path, status, message = REFUSALS[name]
    control.add_token("other", [ORGANISATION])
    control.add_token("seer", [REPOSITORY], admin=False)
    found, headers, body = api(server, "GET", path, token=token)
    assert found == status
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert headers["X-GitHub-Request-Id"]
    if message:
        assert (body["message"], body["status"]) == (message, str(status))
        assert body["documentation_url"].startswith("https://docs.github.com/")


ODD_REQUESTS = {
    "no user agent": ({"User-Agent": None}, "GET", RUNNERS["repository"], 403),
    "unknown version": ({"X-GitHub-Api-Version": "1999-01-01"}, "GET", RUNNERS["repository"], 400),
    "known version": ({"X-GitHub-Api-Version": "2022-11-28"}, "GET", RUNNERS["repository"], 200),
    "other scheme": ({"Authorization": "Basic YTpi"}, "GET", RUNNERS["repository"], 401),
    "token scheme": ({"Authorization": f"token {TOKEN}"}, "GET", RUNNERS["repository"], 200),
    "wrong method": ({}, "PUT", RUNNERS["repository"], 404),
    "no body wanted": ({}, "HEAD", RUNNERS["repository"], 200),
}


@pytest.mark.parametrize("name", ODD_REQUESTS)
def test_odd_requests(server: github.GitHub, name: str) -> None:
    """What GitHub asks of a request besides its path is asked here, too."""
    headers, method, path, status = ODD_REQUESTS[name]
    if method == "HEAD":
        address = urlsplit(server.url)
        with contextlib.closing(
            http.client.HTTPConnection(str(address.hostname), address.port, timeout=5)
        ) as connection:
            connection.request(
                method, f"/api/v3{path}", headers={"User-Agent": "x", "Authorization": f"Bearer {TOKEN}"}
            )
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (status, b"")
            assert int(answer.headers["Content-Length"]) > 0
        return
    assert api(server, method, path, headers=headers)[0] == status


def test_validation_errors_name_the_field(server: github.GitHub, control: GitHubControl) -> None:
    """A value that GitHub does not know is refused with 422 and the field's name."""
    run = control.add_job(REPOSITORY)["run_id"]
    status, _, body = api(server, "GET", f"/repos/{REPOSITORY}/actions/runs/{run}/jobs?filter=some")
    assert (status, body["message"], body["errors"][0]["field"]) == (422, "Validation Failed", "filter")


@pytest.mark.parametrize("kind", RUNNERS)
def test_busy_runners_are_not_deleted(server: github.GitHub, control: GitHubControl, kind: str) -> None:
    """Deleting a runner that runs a job fails with 422 and leaves it; once idle it goes, and a second time is 404."""
    path = {"repository": REPOSITORY, "organisation": ORGANISATION}[kind]
    number = control.add_runner(path, "busy", status="online", busy=True)["id"]
    status, _, body = api(server, "DELETE", f"{RUNNERS[kind]}/{number}")
    assert status == 422
    assert "is currently running a job and cannot be deleted" in body["message"]
    control.change_runner(number, busy=False)
    assert [api(server, "DELETE", f"{RUNNERS[kind]}/{number}")[0] for _ in range(2)] == [204, 404]


def test_a_runner_is_deleted_under_its_own_path_only(server: github.GitHub, control: GitHubControl) -> None:
    """A runner of the organisation is not found under a repository."""
    number = control.add_runner(ORGANISATION, "x")["id"]
    assert api(server, "DELETE", f"{RUNNERS['repository']}/{number}")[0] == 404


def test_a_revoked_token_is_bad(server: github.GitHub, control: GitHubControl) -> None:
    """From the moment of its revocation a token is answered with 401."""
    control.remove_token(TOKEN)
    assert api(server, "GET", RUNNERS["repository"])[0] == 401


def test_a_renamed_repository_redirects(server: github.GitHub, control: GitHubControl) -> None:
    """The former name answers 301 to a GET and 307 to the rest, and both lead to the repository by its number."""
    control.add_runner(REPOSITORY, "x")
    control.rename_repository(REPOSITORY, "Org/new")
    status, headers, body = api(server, "GET", f"{RUNNERS['repository']}?per_page=7")
    assert (status, body["message"], body["url"]) == (301, "Moved Permanently", headers["Location"])
    target = urlsplit(headers["Location"])
    assert target.path.startswith("/api/v3/repositories/")
    assert call(server, "GET", f"{target.path}?{target.query}")[2]["runners"][0]["name"] == "x"
    status, headers, _ = api(server, "POST", f"{RUNNERS['repository']}/remove-token")
    assert status == 307
    assert call(server, "POST", urlsplit(headers["Location"]).path)[0] == 201


def test_a_runner_by_its_number(server: github.GitHub, control: GitHubControl) -> None:
    """One runner is shown under its own path, and is not found once it is gone."""
    number = control.add_runner(REPOSITORY, "x")["id"]
    path = f"{RUNNERS['repository']}/{number}"
    assert api(server, "GET", path)[2]["name"] == "x"
    assert api(server, "GET", f"{RUNNERS['organisation']}/{number}")[0] == 404
    control.remove_runner(number)
    assert api(server, "GET", path)[0] == 404


# Limits and times -----------------------------------------------------------------------------------------------------


def test_each_request_uses_up_the_limit(server: github.GitHub, clock: Clock) -> None:
    """The rate limit headers count down for each token by itself, asking for the limit is free, an hour renews it."""
    seen = [int(api(server, "GET", RUNNERS["repository"])[1]["X-RateLimit-Remaining"]) for _ in range(3)]
    assert seen == [4999, 4998, 4997]
    _, headers, body = api(server, "GET", "/rate_limit")
    assert body["resources"]["core"] == {"limit": 5000, "used": 3, "remaining": 4997, "reset": int(clock.now) + 3600}
    assert (headers["X-RateLimit-Used"], headers["X-RateLimit-Resource"]) == ("3", "core")
    assert api(server, "GET", "/meta", token=None)[1]["X-RateLimit-Limit"] == "60"
    clock.now += 3600
    assert api(server, "GET", RUNNERS["repository"])[1]["X-RateLimit-Remaining"] == "4999"


def test_an_exhausted_limit(server: github.GitHub, control: GitHubControl, clock: Clock) -> None:
    """Without a request left the answer is 403 with nothing remaining, until the time that it names."""
    control.rate_limit(TOKEN, remaining=1, reset_in=60)
    assert api(server, "GET", RUNNERS["repository"])[0] == 200
    status, headers, body = api(server, "GET", RUNNERS["repository"])
    assert (status, headers["X-RateLimit-Remaining"]) == (403, "0")
    assert int(headers["X-RateLimit-Reset"]) == int(clock.now) + 60
    assert body["message"].startswith("API rate limit exceeded for user ID ")
    clock.now += 60
    assert api(server, "GET", RUNNERS["repository"])[0] == 200


def test_registrations_have_limits_of_their_own(server: github.GitHub, control: GitHubControl, clock: Clock) -> None:
    """They use up a limit of their credential, and one of their path that it shares with every other credential."""
    control.add_token("other")
    path = f"{RUNNERS['repository']}/registration-token"
    control.rate_limit(path="owner/repo", remaining=2)
    assert [api(server, "POST", path, token=token)[0] for token in (TOKEN, "other")] == [201, 201]
    shown = api(server, "GET", "/rate_limit")[2]["resources"]
    assert (shown["actions_runner_registration"]["used"], shown["core"]["used"]) == (1, 0)
    jit = json.dumps({"name": "x", "runner_group_id": 1, "labels": ["x"]})
    status, headers, body = api(server, "POST", f"{RUNNERS['repository']}/generate-jitconfig", body=jit)
    assert (status, body["message"]) == (403, "API rate limit exceeded for Owner/repo.")
    assert (headers["X-RateLimit-Resource"], headers["X-RateLimit-Limit"]) == ("actions_runner_registration", "1500")
    assert (headers["X-RateLimit-Remaining"], int(headers["X-RateLimit-Reset"])) == ("0", int(clock.now) + 300)
    assert api(server, "POST", f"{RUNNERS['organisation']}/registration-token")[0] == 201
    clock.now += 300
    assert api(server, "POST", path)[0] == 201


def test_the_next_version_of_the_limits(server: github.GitHub) -> None:
    """The version of 2026 no longer has the older form of the main limit beside the resources."""
    versions = [{"X-GitHub-Api-Version": version} for version in ("2022-11-28", "2026-03-10")]
    found = [sorted(api(server, "GET", "/rate_limit", headers=version)[2]) for version in versions]
    assert found == [["rate", "resources"], ["resources"]]


@pytest.mark.parametrize("status", [403, 429])
def test_the_secondary_limit(server: github.GitHub, control: GitHubControl, clock: Clock, status: int) -> None:
    """The secondary limit says how long to wait, and means it."""
    control.rate_limit(TOKEN, retry_after=30, status=status)
    found, headers, body = api(server, "GET", RUNNERS["repository"])
    assert (found, headers["Retry-After"]) == (status, "30")
    assert body["message"].startswith("You have exceeded a secondary rate limit")
    clock.now += 30
    assert api(server, "GET", RUNNERS["repository"])[0] == 200


def test_the_secondary_limit_without_a_time(server: github.GitHub, control: GitHubControl) -> None:
    """The secondary limit may lack Retry-After: then only its message tells it from a missing permission."""
    control.rate_limit(TOKEN, retry_after=30, header=False)
    found, headers, body = api(server, "GET", RUNNERS["repository"])
    assert (found, headers["Retry-After"]) == (403, None)
    assert headers["X-RateLimit-Remaining"] != "0"
    assert "secondary rate limit" in body["message"]


def test_single_sign_on(server: github.GitHub, control: GitHubControl) -> None:
    """A token that is not authorized for an organisation's single sign-on is refused with the URL to authorize it."""
    control.add_organisation("Owner")
    control.add_token("new", sso=["owner"])
    found, headers, body = api(server, "GET", RUNNERS["repository"], token="new")
    assert found == 403
    assert headers["X-GitHub-SSO"].startswith(f"required; url={server.url}/orgs/Owner/sso?authorization_request=")
    assert "SAML" in body["message"]
    assert api(server, "GET", RUNNERS["organisation"], token="new")[0] == 200


def test_too_many_requests_a_minute(clock: Clock) -> None:
    """Points above the allowance of a minute set the secondary limit off; writing costs more than reading."""
    settings = Settings(points_a_minute=11)
    with github.serve(tokens=[TOKEN], repositories=[REPOSITORY], settings=settings, clock=clock) as server:
        path = f"{RUNNERS['repository']}/registration-token"
        assert [api(server, "POST", path)[0] for _ in range(3)] == [201, 201, 403]
        clock.now += 60
        assert api(server, "POST", path)[0] == 201


@pytest.mark.parametrize("how", ["time", "control"])
def test_registration_tokens_live_for_an_hour(
    server: github.GitHub, control: GitHubControl, clock: Clock, how: str
) -> None:
    """A registration token works for one hour, for its own path and its own purpose; later GitHub answers 404."""
    token = api(server, "POST", f"{RUNNERS['repository']}/registration-token")[2]["token"]

    def register(url: str, event: str = "register") -> int:
        body = json.dumps({"url": f"{server.url}/{url}", "runner_event": event})
        headers = {"Authorization": f"RemoteAuth {token}", "Content-Type": "application/json"}
        return api(server, "POST", "/actions/runner-registration", headers=headers, body=body)[0]

    clock.now += 3599
    tries = ((REPOSITORY,), (REPOSITORY.lower(),), (ORGANISATION,), (REPOSITORY, "remove"))
    assert [register(*each) for each in tries] == [200, 200, 404, 404]
    if how == "time":
        clock.now += 1
    else:
        control.expire_registration_tokens()
    assert register(REPOSITORY) == 404


# The runner binary ----------------------------------------------------------------------------------------------------


def fetch(server: github.GitHub, url: str) -> tuple[int, Message, Any]:
    """Download as a browser does: follow where the address leads."""
    path = urlsplit(url).path
    status, headers, _ = call(server, "GET", path, token=None)
    assert status == 302
    target = urlsplit(headers["Location"])
    return call(server, "GET", f"{target.path}?{target.query}", token=None)


@pytest.mark.parametrize("architecture", ["x64", "arm64"])
def test_the_runner_binary_can_be_downloaded(server: github.GitHub, control: GitHubControl, architecture: str) -> None:
    """What is offered for Linux is there, its checksum is right, and another version is another file."""
    sums = set()
    for version in ("2.336.0", "2.337.0"):
        control.runner_binary(version=version)
        offered = api(server, "GET", f"{RUNNERS['repository']}/downloads")[2]
        [found] = [each for each in offered if (each["os"], each["architecture"]) == ("linux", architecture)]
        assert found["filename"] == f"actions-runner-linux-{architecture}-{version}.tar.gz"
        assert found["download_url"].endswith(f"/actions/runner/releases/download/v{version}/{found['filename']}")
        status, _, content = fetch(server, found["download_url"])
        assert status == 200
        assert hashlib.sha256(content).hexdigest() == found["sha256_checksum"]
        sums.add(found["sha256_checksum"])
    assert len(sums) == 2


def test_a_wrong_checksum_and_a_missing_file(server: github.GitHub, control: GitHubControl) -> None:
    """A test can have the checksum wrong; files for other systems and unknown versions are not there."""
    control.runner_binary(checksum="0" * 64)
    offered = api(server, "GET", f"{RUNNERS['organisation']}/downloads")[2]
    assert {each["sha256_checksum"] for each in offered if each["os"] == "linux"} == {"0" * 64}
    windows = next(each["download_url"] for each in offered if each["os"] == "win")
    linux = next(each["download_url"] for each in offered if each["os"] == "linux")
    for url in (windows, linux.replace("2.336.0", "9.9.9")):
        assert call(server, "GET", urlsplit(url).path)[0] == 404


def test_the_tarball_is_always_the_same() -> None:
    """Equal arguments give equal bytes, so that a checksum stays right across processes."""
    runner_tarball.build.cache_clear()
    first = runner_tarball.build("2.336.0", "x64")
    runner_tarball.build.cache_clear()
    assert runner_tarball.build("2.336.0", "x64") == first


def test_a_download_that_needs_its_token(server: github.GitHub, control: GitHubControl) -> None:
    """At a server that wants it, the download needs the list's token; the store of files refuses any credential."""
    control.runner_binary(download_token="temporary")
    offered = api(server, "GET", f"{RUNNERS['repository']}/downloads")[2]
    assert {each["temp_download_token"] for each in offered} == {"temporary"}
    path = urlsplit(next(each["download_url"] for each in offered if each["os"] == "linux")).path
    assert [call(server, "GET", path, token=token)[0] for token in (None, TOKEN, "temporary")] == [401, 401, 302]
    stored = f"/release-assets/{path.rpartition('/')[2]}"
    assert [call(server, "GET", stored, token=token)[0] for token in (None, "temporary")] == [200, 400]


@pytest.mark.parametrize("kind", RUNNERS)
def test_deprecations(server: github.GitHub, control: GitHubControl, kind: str) -> None:
    """The server says until when a version may register and run, of versions that it knows."""
    control.runner_binary(minimum_version="2.331.0")

    def ask(version: str) -> int | list[str]:
        status, _, body = api(server, "GET", f"{RUNNERS[kind]}/deprecations/{version}")
        return status if status != 200 else sorted(key for key, value in body.items() if value)

    assert ask("2.336.0") == ["runner_version"]
    assert ask("2.330.0") == ["runner_version", "runtime_deprecates_at"]
    assert ask("2.328.0") == ["registration_deprecates_at", "runner_version", "runtime_deprecates_at"]
    assert [ask(version) for version in ("2.337.0", "1.0", "new")] == [404] * 3
    control.runner_binary(deprecations=False)
    assert ask("2.336.0") == 404


# Faults ---------------------------------------------------------------------------------------------------------------

LIST = RUNNERS["repository"]


def test_a_status_instead_of_the_answer(server: github.GitHub, control: GitHubControl) -> None:
    """A planted status with its body and headers comes instead of the answer, as often as planned and after so many."""
    body, headers = "<h1>Unicorn!</h1>", {"Retry-After": "7"}
    fault = control.add_fault(method="GET", path="runners$", times=2, after=1, status=503, body=body, headers=headers)
    answers = [api(server, "GET", LIST) for _ in range(4)]
    assert [answer[0] for answer in answers] == [200, 503, 503, 200]
    assert (answers[1][1]["Retry-After"], answers[1][1]["Content-Type"]) == ("7", "text/html")
    assert answers[1][2] == b"<h1>Unicorn!</h1>"
    [seen] = control.faults()
    assert (seen["id"], seen["hits"]) == (fault, 2)
    assert api(server, "POST", f"{LIST}/remove-token")[0] == 201


def test_a_body_cut_short(server: github.GitHub, control: GitHubControl) -> None:
    """The announced length is the whole one, and the connection ends before it has come."""
    control.add_fault(path="runners", cut=5)
    with pytest.raises(http.client.IncompleteRead) as caught:
        api(server, "GET", LIST)
    assert len(caught.value.partial) == 5


def test_a_reset_connection(server: github.GitHub, control: GitHubControl) -> None:
    """The client feels a TCP reset."""
    control.add_fault(path="runners", reset=True)
    with pytest.raises(ConnectionResetError):
        api(server, "GET", LIST)


def test_silence_until_released(server: github.GitHub, control: GitHubControl) -> None:
    """A silent server accepts and never answers; a client that gave up changed nothing, a patient one is released."""
    control.add_fault(method="POST", silence=True)
    with pytest.raises(TimeoutError):
        api(server, "POST", f"{LIST}/remove-token", timeout=0.3)
    answers = []
    patient = threading.Thread(target=lambda: answers.append(api(server, "POST", f"{LIST}/remove-token")[0]))
    patient.start()
    wait_until(lambda: control.faults()[0]["hits"] == 2, "the patient client", 5, 0.01)
    control.remove_faults()
    patient.join(5)
    assert answers == [201]
    assert len(server.state.runner_tokens) == 1


def test_delays(server: github.GitHub, control: GitHubControl) -> None:
    """A delayed answer comes late but right, and the others are not held up."""
    control.add_fault(path="runners$", delay=0.4)
    started = time.monotonic()
    assert api(server, "GET", "/meta")[0] == 200
    assert time.monotonic() - started < 0.4
    assert api(server, "GET", LIST)[2]["total_count"] == 0
    assert time.monotonic() - started >= 0.4


def test_a_dripping_answer(server: github.GitHub, control: GitHubControl) -> None:
    """Each byte comes by itself: no single read times out, and the whole takes long."""
    control.add_fault(path="runners$", drip=0.01)
    started = time.monotonic()
    assert api(server, "GET", LIST, timeout=0.5)[2] == {"total_count": 0, "runners": []}
    assert time.monotonic() - started > 0.2


@pytest.mark.parametrize(("shift", "second"), [(1, ["r4", "r5"]), (-1, ["r2", "r3", "r4"])], ids=["went", "came"])
def test_pages_that_shift(server: github.GitHub, control: GitHubControl, shift: int, second: list[str]) -> None:
    """Pages after the first begin later, as if runners of the first had gone since, or earlier, as if some had come."""
    control.add_runner(REPOSITORY, "r", count=6)
    control.add_fault(path="runners", shift=shift)
    pages = [api(server, "GET", f"{LIST}?per_page=3&page={page}")[2] for page in (1, 2)]
    assert [runner["name"] for runner in pages[0]["runners"]] == ["r0", "r1", "r2"]
    assert [runner["name"] for runner in pages[1]["runners"]] == second


def test_a_wrong_content_type(server: github.GitHub, control: GitHubControl) -> None:
    """The right answer comes under a wrong name."""
    control.add_fault(path="runners", content_type="text/plain")
    _, headers, body = api(server, "GET", LIST)
    assert headers["Content-Type"] == "text/plain"
    assert json.loads(body) == {"total_count": 0, "runners": []}


@pytest.mark.parametrize("client", ["kit", "pygithub", "ghapi"])
def test_clients_feel_an_outage(request: pytest.FixtureRequest, control: GitHubControl, client: str) -> None:
    """An outage reaches each client library as an error of its own."""
    library = request.getfixturevalue(client)
    control.add_fault(status=503, body="no")
    calls: dict[str, Callable[[], object]] = {
        "pygithub": lambda: library.get_repo(REPOSITORY),
        "kit": lambda: library.rest.repos.get("Owner", "repo"),
        "ghapi": lambda: library.repos.get("Owner", "repo"),
    }
    with pytest.raises(Exception, match="503"):
        calls[client]()


def test_faults_are_checked(control: GitHubControl) -> None:
    """A fault that cannot work is refused when it is planted, not ignored when it should act."""
    for fields in ({"pth": "x"}, {"path": "("}):
        with pytest.raises(GitHubControlError, match="422"):
            control.add_fault(**fields)
    with pytest.raises(GitHubControlError, match="404"):
        control.remove_faults(99)


def test_https_with_an_authority_of_its_own() -> None:
    """Whoever trusts the server's own authority talks to it over TLS, and its URLs begin with https."""
    with github.serve(tokens=[TOKEN], repositories=[REPOSITORY], tls=True) as server:
        control = GitHubControl(server.url, ca=server.ca)
        control.add_runner(REPOSITORY, "x")
        trusting = ssl.create_default_context(cadata=server.ca)
        request = urllib.request.Request(f"{server.api_url}{RUNNERS['repository']}/downloads")
        request.add_header("Authorization", f"Bearer {TOKEN}")
        with urllib.request.urlopen(request, timeout=5, context=trusting) as answer:
            offered = json.loads(answer.read())
        assert {urlsplit(each["download_url"]).scheme for each in offered} == {"https"}
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(request, timeout=5)


def test_a_client_that_gives_up_over_tls_is_noticed() -> None:
    """A request that waits ends when its client closes the connection, also over TLS."""
    with github.serve(tokens=[TOKEN], repositories=[REPOSITORY], tls=True) as server:
        control = GitHubControl(server.url, ca=server.ca)
        control.add_fault(path="meta", silence=True)
        trusting = ssl.create_default_context(cadata=server.ca)
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(f"{server.api_url}/meta", timeout=0.3, context=trusting)
        wait_until(lambda: control.requests()[0]["status"] == 0, "the server to notice", 5, 0.01)


# The control interface ------------------------------------------------------------------------------------------------


def test_requests_are_recorded_without_tokens(clock: Clock, tmp_path: Path) -> None:
    """Each request is on record and in the log file with its status; whole tokens are in neither."""
    log = tmp_path / "log"
    with github.serve(tokens=[TOKEN], repositories=[REPOSITORY], clock=clock, log=log) as server:
        control = GitHubControl(server.url)
        api(server, "GET", f"{LIST}?per_page=3")
        first = control.requests()
        assert [(e["n"], e["method"], e["query"], e["status"], e["token_hint"]) for e in first] == [
            (1, "GET", {"per_page": "3"}, 200, "ghp_…")
        ]
        api(server, "DELETE", f"{LIST}/1")
        assert [entry["status"] for entry in control.requests(since=1)] == [404]
        control.clear_requests()
        assert control.requests() == []
    assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == [200, 404]
    assert TOKEN not in log.read_text() + json.dumps(first)


def test_arranging_the_world(server: github.GitHub, control: GitHubControl) -> None:
    """Repositories, organisations with groups, and runners' states can be made and changed."""
    control.add_repository("Org/new")
    control.add_organisation("Other", ["fast"])
    groups = api(server, "GET", "/orgs/other/actions/runner-groups")[2]["runner_groups"]
    assert [(group["id"], group["name"], group["default"]) for group in groups] == [
        *((1, "Default", True), (2, "fast", False)),
    ]
    number = control.add_runner("Org/new", "x", status="online")["id"]
    assert control.change_runner(number, status=None)["status"] == "offline"
    control.remove_runner(number)
    assert control.runners() == []
    assert api(server, "GET", "/repos/Org/new")[2]["owner"]["type"] == "Organization"


def test_old_versions_cannot_register(server: github.GitHub, control: GitHubControl) -> None:
    """A runner below the minimum for registrations is refused before it is listed."""
    token = api(server, "POST", f"{RUNNERS['repository']}/registration-token")[2]["token"]
    body = json.dumps({"name": "x", "version": "2.328.0"})
    status, _, answer = call(server, "POST", "/_actions/runners", token=token, body=body)
    assert (status, answer["code"]) == (403, "version_deprecated")
    assert control.runners() == []


def test_wrong_control_calls_say_so(control: GitHubControl) -> None:
    """A mistake in a test's arrangement is an error and not a silent nothing."""
    for wrong in (
        lambda: control.add_job("no/where"),
        lambda: control.add_job(REPOSITORY, state={"colour": "red"}),
        lambda: control.job(1),
        lambda: control.add_runner("no/where", "x"),
        lambda: control.runner_binary(version="new"),
        lambda: control.remove_token("unknown"),
        lambda: control.settings(colour="red"),
        lambda: control.rename_repository("no/where", "Org/x"),
        lambda: control.rename_repository(REPOSITORY, REPOSITORY),
        lambda: control.add_repository("nothing"),
    ):
        with pytest.raises(GitHubControlError, match=r"404|422"):
            wrong()


def test_waiting_for_a_job(control: GitHubControl) -> None:
    """Waiting for a job returns as soon as its status changes; a queued one is cancelled at once."""
    job = control.add_job(REPOSITORY)["id"]
    found = []
    waiter = threading.Thread(target=lambda: found.append(control.job(job, wait=20)))
    waiter.start()
    control.cancel_job(job)
    waiter.join(10)
    assert (found[0]["status"], found[0]["conclusion"]) == ("completed", "cancelled")
    assert [each["id"] for each in control.jobs()] == [job]


def test_one_connection_serves_many_requests(server: github.GitHub) -> None:
    """A connection stays open from request to request, also after errors."""
    address = urlsplit(server.url)
    with contextlib.closing(http.client.HTTPConnection(str(address.hostname), address.port, timeout=5)) as connection:
        sockets = set()
        for path in (LIST, "/nothing", LIST):
            connection.request("GET", f"/api/v3{path}", headers={"User-Agent": "x", "Authorization": f"token {TOKEN}"})
            connection.getresponse().read()
            sockets.add(connection.sock)
    assert len(sockets) == 1
    assert isinstance(sockets.pop(), socket.socket)


def test_the_server_as_a_program_with_tls(tmp_path: Path) -> None:
    """With --tls the command line serves HTTPS, and leaves its authority's certificate in the file that it names."""
    command = [sys.executable, "-m", "sandbox.github", "--listen", "127.0.0.1:0", "--tls", str(tmp_path / "ca.pem")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        assert url.startswith("https://")
        assert GitHubControl(url, ca=(tmp_path / "ca.pem").read_text()).runners() == []
        process.terminate()
        assert process.wait(10) == 0


def test_the_program_makes_an_app(tmp_path: Path) -> None:
    """With --app the command line makes a GitHub App, installs it, and leaves its private key for the user alone."""
    command = [sys.executable, "-m", "sandbox.github", "--listen", "127.0.0.1:0", "--app", str(tmp_path / "key.pem")]
    command += ["--repository", REPOSITORY, "--organisation", ORGANISATION]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        assert re.fullmatch(
            r"GitHub App \d+, client id Iv23li\w+, installed as \d+ on Org, \d+ on Owner\n", process.stdout.readline()
        )
        process.terminate()
        assert process.wait(10) == 0
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE KEY" in (tmp_path / "key.pem").read_text()


def test_the_server_as_a_program(tmp_path: Path) -> None:
    """The command line serves with plain Python, says where, and ends when it is terminated."""
    command = [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); "]
    command[-1] += "from sandbox.github.server import main; main(sys.argv[1:])"
    command += [str(ROOT), "--listen", "127.0.0.1:0", "--token", TOKEN, "--repository", REPOSITORY]
    command += ["--organisation", ORGANISATION, "--log", str(tmp_path / "log"), "--grace", "3"]
    environment = {"PATH": os.environ["PATH"]}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        control = GitHubControl(url)
        assert control.add_runner(ORGANISATION, "x")["name"] == "x"
        process.terminate()
        assert process.wait(10) == 0
