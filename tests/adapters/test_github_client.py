"""The client of GitHub's API against the stand-in, over real HTTP."""

import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx2
import pytest

from errors import (
    ConfigurationError,
    GithubApiError,
    GithubClientError,
    JobNotFoundError,
    RateLimitError,
    RunnerBusyError,
    TemporaryGithubError,
    TokenError,
)
from gh import queued_jobs
from gh.auth import Pat
from gh.client import GithubClient, api_url, trust
from gh.errors import translated
from gh.queued_jobs import Runs
from models import Arch, GithubOrg, GithubRepo, OfferedBinary
from redaction import MASK, redact
from sandbox import github
from sandbox.github import tls
from sandbox.github.control import GitHubControl
from tests.support.github import ORG, REPO, TOKEN

LIST = r"/actions/runners(\?|$)"


def everything(_: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("https://github.com", "https://api.github.com"),
        ("https://GitHub.com", "https://api.github.com"),
        ("https://octo.ghe.com", "https://api.octo.ghe.com"),
        ("https://github.example.com", "https://github.example.com/api/v3"),
        ("http://10.0.0.1:8080/", "http://10.0.0.1:8080/api/v3"),
        ("https://evil-ghe.com", "https://evil-ghe.com/api/v3"),
    ],
)
def test_api_base_follows_githubs_rule(url: str, api: str) -> None:
    """github.com, data residency and Enterprise Server each have their own base."""
    assert api_url(url) == api


@pytest.mark.parametrize("path", [REPO, ORG], ids=["repository", "organisation"])
def test_all_pages_are_read_once(client: GithubClient, control: GitHubControl, path: Any) -> None:
    """250 runners are three requests, and only the wanted ones are kept."""
    control.add_runner(path.path, "other", count=250)
    control.add_runner(path.path, "own-1", status="online", busy=True)

    found = client.list_runners(path, lambda name: name == "own-1")

    assert [(runner.name, runner.online, runner.busy) for runner in found] == [("own-1", True, True)]
    assert len(control.requests()) == 3


def test_one_runner_is_found_by_its_whole_name(client: GithubClient, control: GitHubControl) -> None:
    """A longer name that begins the same is another runner."""
    control.add_runner(REPO.path, "app-0-aa")
    control.add_runner(REPO.path, "app-0-aabb")

    found = client.find_runner(REPO, "app-0-aa")

    assert found is not None
    assert found.name == "app-0-aa"
    assert client.find_runner(REPO, "app-0") is None


@pytest.mark.parametrize("path", [REPO, ORG], ids=["repository", "organisation"])
def test_each_token_is_another(client: GithubClient, path: Any) -> None:
    """GitHub gives a new registration token each time."""
    assert len({client.registration_token(path), client.registration_token(path)}) == 2


def test_deletion(client: GithubClient, control: GitHubControl) -> None:
    """Gone is done, twice; busy is an error of its own, and the runner stays."""
    idle = control.add_runner(REPO.path, "idle")
    busy = control.add_runner(REPO.path, "busy", status="online", busy=True)

    client.delete_runner(REPO, idle["id"])
    client.delete_runner(REPO, idle["id"])
    with pytest.raises(RunnerBusyError):
        client.delete_runner(REPO, busy["id"])

    assert [runner["name"] for runner in control.runners()] == ["busy"]


@pytest.mark.parametrize("path", [REPO, ORG], ids=["repository", "organisation"])
def test_gone_runner_is_confirmed_by_a_list(client: GithubClient, control: GitHubControl, path: Any) -> None:
    """A runner is found by its id; 404 counts after a list of the same path, be it empty, was answered."""
    number = control.add_runner(path.path, "one", status="online")["id"]
    found = client.runner(path, number)
    assert found is not None
    assert (found.runner_id, found.name, found.online, found.busy) == (number, "one", True, False)
    assert not client.runner_is_gone(path, number)

    control.remove_runner(number)
    control.clear_requests()

    assert client.runner_is_gone(path, number)
    assert [(call["status"], call["query"]) for call in control.requests()] == [(404, {}), (200, {"per_page": "1"})]


BLIND: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "404": ({"status": 404}, TokenError),
    "403": ({"status": 403}, TokenError),
    "503": ({"status": 503}, TemporaryGithubError),
    "no list": ({"status": 200, "body": "{}"}, GithubApiError),
}


@pytest.mark.parametrize(("fault", "error"), BLIND.values(), ids=BLIND.keys())
@pytest.mark.parametrize("call", ["runner_is_gone", "delete_runner"])
def test_gone_runner_without_a_list_is_an_error(
    client: GithubClient, control: GitHubControl, call: str, fault: dict[str, Any], error: type[Exception]
) -> None:
    """A 404 does not count while the token cannot list the path's runners: it may see nothing at all."""
    control.add_fault(path=LIST, **fault)

    with pytest.raises(error):
        getattr(client, call)(REPO, 99)


@pytest.mark.parametrize("path", [REPO, ORG], ids=["repository", "organisation"])
def test_deprecated_versions(client: GithubClient, control: GitHubControl, path: Any) -> None:
    """A version is deprecated from the times that GitHub names on; nothing is known where GitHub has no answer."""
    control.runner_binary(minimum_version="2.331.0")

    asked = ("2.336.0", "2.331.0", "2.330.9", "2.328.0", "2.999.0", "nonsense/..")
    assert [client.is_deprecated(path, version) for version in asked] == [False, False, True, True, None, None]
    control.runner_binary(deprecations=False)
    assert client.is_deprecated(path, "2.336.0") is None


DEPRECATIONS: dict[str, tuple[dict[str, Any], bool | None]] = {
    "nothing": ({}, False),
    "later": ({"runtime_deprecates_at": "2999-01-01T00:00:00Z", "registration_deprecates_at": None}, False),
    "registration": ({"runtime_deprecates_at": None, "registration_deprecates_at": "2020-01-01T00:00:00Z"}, True),
    "no time": ({"runtime_deprecates_at": "soon"}, None),
}


@pytest.mark.parametrize(("answer", "result"), DEPRECATIONS.values(), ids=DEPRECATIONS.keys())
def test_times_of_a_deprecation(
    client: GithubClient, control: GitHubControl, answer: dict[str, Any], result: bool | None
) -> None:
    """Only a time that is over counts, and what is no time is an error."""
    control.add_fault(path="/deprecations/", status=200, body=json.dumps({"runner_version": "2.336.0", **answer}))

    if result is None:
        with pytest.raises(GithubApiError, match="runtime_deprecates_at"):
            client.is_deprecated(REPO, "2.336.0")
    else:
        assert client.is_deprecated(REPO, "2.336.0") is result


def test_renamed_repository(client: GithubClient, control: GitHubControl) -> None:
    """Reading follows to a repository's new place; changing anything is an error that names the option."""
    number = control.add_runner(REPO.path, "one")["id"]
    control.rename_repository(REPO.path, "octo-org/other")

    assert [runner.name for runner in client.list_runners(REPO, everything)] == ["one"]
    for change in (lambda: client.registration_token(REPO), lambda: client.delete_runner(REPO, number)):
        with pytest.raises(TokenError, match=r"renamed or moved, set path to its new name .*/repositories/[0-9]+/"):
            change()
    assert [runner["name"] for runner in control.runners()] == ["one"]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_token_goes_to_no_other_origin(client: GithubClient, control: GitHubControl, status: int) -> None:
    """A redirect to another origin is an error that names it, and the other origin gets no request."""
    with github.serve("127.0.0.1", 0, [TOKEN], [REPO.path], [ORG.org]) as other:
        control.add_fault(path=LIST, status=status, headers={"Location": f"{other.api_url}/repos/octo-org/demo"})

        with pytest.raises(TokenError, match=rf"redirects to {other.url}/.*; set github-url"):
            client.list_runners(REPO, everything)
        assert GitHubControl(other.url).requests() == []


def test_download_token_is_sent_once(
    client: GithubClient, hub: github.GitHub, control: GitHubControl, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that hosts the file gets the token of its own list; where it redirects to gets none."""
    caplog.set_level("DEBUG")
    control.runner_binary(download_token="temporary-secret")
    offered = client.offered_binary(REPO, Arch.X64)
    with pytest.raises(GithubApiError, match=r"cannot be downloaded \(HTTP 401\)"):
        client.download(replace(offered, token=None), tmp_path / "tarball")
    control.clear_requests()

    client.download(offered, tmp_path / "tarball")

    assert [(call["status"], call["token_hint"]) for call in control.requests()] == [(302, "temp\u2026"), (200, None)]
    assert "temporary-secret" not in f"{offered!r}{caplog.text}"
    assert offered == replace(offered, token="another")


def test_download_token_goes_to_no_other_origin(client: GithubClient, control: GitHubControl, tmp_path: Path) -> None:
    """The store of files that a download leads to never sees the token."""
    control.runner_binary(download_token="temporary-secret")
    offered = client.offered_binary(REPO, Arch.X64)
    with github.serve("127.0.0.1", 0) as other:
        target = f"{other.url}/release-assets/{offered.filename}"
        control.add_fault(path="/releases/download/", status=302, headers={"Location": target})
        client.download(offered, tmp_path / "tarball")
        assert [(call["status"], call["token_hint"]) for call in GitHubControl(other.url).requests()] == [(200, None)]


@pytest.mark.parametrize("arch", list(Arch))
def test_runner_binary_is_fetched_and_verified(client: GithubClient, tmp_path: Path, arch: Arch) -> None:
    """What is downloaded has the checksum that GitHub's list gives for this architecture."""
    offered = client.offered_binary(REPO, arch)
    client.download(offered, tmp_path / "tarball")

    assert arch.value in offered.filename
    assert hashlib.sha256((tmp_path / "tarball").read_bytes()).hexdigest() == offered.sha256


def test_wrong_checksum_is_refused(client: GithubClient, control: GitHubControl, tmp_path: Path) -> None:
    """A tarball that is another one is not used."""
    control.runner_binary(checksum="0" * 64)

    with pytest.raises(GithubApiError, match="checksum"):
        client.download(client.offered_binary(REPO, Arch.X64), tmp_path / "tarball")


@pytest.mark.parametrize(
    "entry",
    [
        {"sha256_checksum": None},
        {"sha256_checksum": "abc"},
        {"filename": "../../etc/passwd"},
        {"filename": "current"},
        {"filename": "refused"},
        {"filename": ".tar.gz"},
        {"filename": "x.tar.gz/.."},
        {"filename": "x.tar.gz\n"},
        {"filename": "x" * 201 + ".tar.gz"},
        {"os": 7},
        {"os": "aix"},
        {"architecture": "arm64"},
        {"architecture": "riscv"},
        {"download_url": None},
        {"temp_download_token": "a\nb"},
        {"temp_download_token": 7},
    ],
    ids=lambda entry: next(iter(entry)),
)
def test_odd_downloads_are_refused(client: GithubClient, control: GitHubControl, entry: dict[str, Any]) -> None:
    """A list that lacks a checksum, names an impossible file or not this architecture is an error."""
    good = {
        "os": "linux",
        "architecture": "x64",
        "download_url": "http://127.0.0.1:9/x",
        "filename": "x.tar.gz",
        "sha256_checksum": "0" * 64,
    }
    control.add_fault(path="/downloads", status=200, body=json.dumps([{**good, **entry}]))

    with pytest.raises(GithubApiError):
        client.offered_binary(REPO, Arch.X64)


def test_download_that_does_not_come_is_temporary(client: GithubClient, tmp_path: Path) -> None:
    """Nobody at the address: tried again, then an error, within the deadline."""
    nowhere = OfferedBinary("http://127.0.0.1:9/x", "x.tar.gz", "0" * 64)

    with pytest.raises(TemporaryGithubError):
        client.download(nowhere, tmp_path / "tarball")


def test_job_is_matched_by_runner_name(client: GithubClient, control: GitHubControl) -> None:
    """Of all jobs of a workflow run, the one of this runner, with its times and conclusion."""
    created = datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp()
    for number in range(120):
        state = {
            "status": "completed",
            "conclusion": "success" if number == 110 else "failure",
            "runner_name": f"r{number}",
            "created_at": created,
            "started_at": created + number,
            "completed_at": created + 500,
        }
        control.add_job(REPO.path, "true", run_id=77, state=state)

    job = client.job(REPO.path, "77", "r110")

    assert job.started_at - job.created_at == timedelta(seconds=110)
    assert job.conclusion == "success"
    with pytest.raises(JobNotFoundError):
        client.job(REPO.path, "77", "nobody")


def test_only_the_latest_attempt_of_a_run_is_read(client: GithubClient, control: GitHubControl) -> None:
    """A job that re-runs itself does not multiply what it costs to look it up."""
    for attempt in (1, 2):
        control.add_job(REPO.path, "true", run_id=77, run_attempt=attempt, count=120)
    before = len(control.requests())

    with pytest.raises(JobNotFoundError):
        client.job(REPO.path, "77", "nobody")

    assert len(control.requests()) - before == 2


@pytest.mark.parametrize(
    ("path", "ask"),
    [
        ("/jobs", lambda client: client.job(REPO.path, "77", "r1", timeout=0.3)),
        (r"/actions/runs(\?|$)", lambda client: client.queued_jobs(REPO, Runs(), deadline=0.3)),
        ("/jobs", lambda client: client.queued_jobs(REPO, Runs(), deadline=0.3)),
    ],
    ids=["the job of a runner", "runs", "queued jobs"],
)
def test_look_up_of_jobs_ends_in_time(
    client: GithubClient, control: GitHubControl, path: str, ask: Callable[[GithubClient], Any]
) -> None:
    """The caller's limit holds for all requests together, which may use it whole."""
    control.add_job(REPO.path, labels=["app"])
    control.add_fault(path=path, delay=30)

    started = time.monotonic()
    with pytest.raises(TemporaryGithubError):
        ask(client)

    assert 0.3 <= time.monotonic() - started < 2


def test_all_queued_jobs_are_found_in_turn(client: GithubClient, control: GitHubControl) -> None:
    """Those of more than one page of runs, and of more than one page of a run, with 32 requests at a time."""
    runs = Runs()
    for _ in range(129):
        control.add_job(REPO.path, labels=["other"])
    control.add_job(REPO.path, labels=["app"], run_id=99_000_000_000, count=150)
    found = []
    for _ in range(5):
        before = len(control.requests())
        found.append(Counter(job.labels for job in client.queued_jobs(REPO, runs)))
        assert len(control.requests()) - before == 32

    assert found[:2] == [{("other",): 29}, {("other",): 58}]
    assert found[4] == {("other",): 129, ("app",): 150}


def test_a_run_that_was_not_read_whole_comes_first_the_next_time(
    client: GithubClient, control: GitHubControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for which no look would suffice keeps no other one from being read."""
    monkeypatch.setattr(queued_jobs, "MOST_REQUESTS", 6)
    runs = Runs()
    for number, name in enumerate(("first", "second", "large")):
        control.add_job(REPO.path, name=name, run_id=99_000_000_000 + number, count=950 if name == "large" else 250)

    looks = [Counter(job.name for job in client.queued_jobs(REPO, runs)) for _ in range(4)]

    assert looks[0] == {"first": 250}
    assert looks[1] == {"first": 250, "second": 250}
    assert looks[2] == looks[3] == {"first": 250, "second": 250, "large": 400}


def test_few_pages_of_a_workflow_run_are_read(client: GithubClient, control: GitHubControl) -> None:
    """A run may have thousands of jobs, and a job may name any run."""
    body = '{"total_count": 1000000, "jobs": [{"runner_name": "other"}]}'
    control.add_fault(path="/jobs", status=200, body=body)
    before = len(control.requests())

    with pytest.raises(GithubApiError, match="more than 5 pages"):
        client.job(REPO.path, "77", "r1")

    assert len(control.requests()) - before == 5


def test_a_registration_token_is_masked(client: GithubClient) -> None:
    """No log and no status shows it: for an hour anybody can register a runner with it."""
    assert redact(client.registration_token(REPO)) == MASK


@pytest.mark.parametrize("run_id", ["78", "../../x", "", "7 7", "\u0661"])
def test_unknown_workflow_run_has_no_job(client: GithubClient, run_id: str) -> None:
    """A run that does not exist, or an id from inside a runner that is none, is no outage."""
    with pytest.raises(JobNotFoundError):
        client.job(REPO.path, run_id, "r1")


@pytest.mark.parametrize(
    "change",
    [
        {"conclusion": 5},
        {"conclusion": "x" * 65},
        {"conclusion": "success\n"},
        {"conclusion": "\ud800"},
        {"created_at": "soon"},
        {"started_at": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_odd_job_is_an_error(client: GithubClient, control: GitHubControl, change: dict[str, Any]) -> None:
    """Times and conclusions that are none do not reach the metrics."""
    job = {"runner_name": "r1", "conclusion": None, "created_at": "2026-01-01T00:00:00Z", **change}
    job.setdefault("started_at", "2026-01-01T00:00:00Z")
    control.add_fault(path="/jobs", status=200, body=json.dumps({"total_count": 1, "jobs": [job]}))

    with pytest.raises(GithubApiError):
        client.job(REPO.path, "77", "r1")


FAULTS: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "401": ({"status": 401}, TokenError),
    "403": ({"status": 403}, TokenError),
    "403 used up": ({"status": 403, "headers": {"x-ratelimit-remaining": "0"}}, RateLimitError),
    "403 retry-after": ({"status": 403, "headers": {"retry-after": "7"}}, RateLimitError),
    "404": ({"status": 404}, TokenError),
    "409": ({"status": 409}, GithubApiError),
    "422": ({"status": 422}, GithubApiError),
    "429": ({"status": 429}, RateLimitError),
    "500": ({"status": 500}, TemporaryGithubError),
    "503": ({"status": 503}, TemporaryGithubError),
    "reset": ({"reset": True}, TemporaryGithubError),
    "cut off": ({"cut": 20}, TemporaryGithubError),
    "HTML": ({"status": 200, "body": "<html>", "content_type": "text/html"}, TemporaryGithubError),
    "nothing": ({"status": 200, "body": ""}, GithubApiError),
    "a list": ({"status": 200, "body": "[]"}, GithubApiError),
    "runner without a name": ({"status": 200, "body": '{"total_count": 1, "runners": [{"id": 1}]}'}, GithubApiError),
    "id is true": (
        {"status": 200, "body": '{"total_count": 1, "runners": [{"id": true, "name": "x"}]}'},
        GithubApiError,
    ),
    "not UTF-8": ({"status": 200, "body": '{"total_count": "\ud800"}'}, GithubClientError),
}


@pytest.mark.parametrize(("fault", "error"), FAULTS.values(), ids=FAULTS.keys())
def test_odd_answers_are_errors_of_their_own(
    client: GithubClient, control: GitHubControl, fault: dict[str, Any], error: type[Exception]
) -> None:
    """Each answer has its error, whose text holds no token."""
    control.add_fault(path=LIST, **fault)

    with pytest.raises(error) as raised:
        client.list_runners(REPO, everything)
    assert type(raised.value) is error or error in (TokenError, GithubApiError, GithubClientError)
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize("fault", [{"status": 502}, {"reset": True}, {"cut": 10}], ids=["502", "reset", "cut off"])
def test_one_bad_answer_is_tried_again(client: GithubClient, control: GitHubControl, fault: dict[str, Any]) -> None:
    """What is temporary is asked once more, and the caller does not see it."""
    control.add_fault(path=LIST, times=1, **fault)

    assert client.list_runners(REPO, everything) == []


@pytest.mark.parametrize("status", [401, 404, 422, 429])
def test_final_answers_are_not_asked_again(client: GithubClient, control: GitHubControl, status: int) -> None:
    """A refusal costs one request."""
    fault = control.add_fault(path=LIST, status=status)

    with pytest.raises(GithubClientError):
        client.list_runners(REPO, everything)
    assert [item["hits"] for item in control.faults() if item["id"] == fault] == [1]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "90"}, 90),
        ({"retry-after": "soon"}, 60),
        ({"retry-after": "-5"}, 1),
        ({"retry-after": "1e300"}, 86400),
        ({"retry-after": "nan"}, 1),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"}, 1),
        ({"x-ratelimit-remaining": "0"}, 60),
    ],
)
def test_rate_limit_carries_its_reset(
    client: GithubClient, control: GitHubControl, headers: dict[str, str], seconds: int
) -> None:
    """The error says when to come back, within a moment and a day."""
    control.add_fault(path=LIST, status=403, headers=headers)

    with pytest.raises(RateLimitError) as raised:
        client.list_runners(REPO, everything)
    wait = (raised.value.reset - datetime.now(timezone.utc)).total_seconds()
    assert seconds - 10 <= wait <= seconds + 1


@pytest.mark.parametrize(
    "message",
    [
        "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
        "API rate limit exceeded for user ID 1.",
        "You have triggered an abuse detection mechanism.",
    ],
)
def test_limit_without_a_header_is_known_by_its_message(
    client: GithubClient, control: GitHubControl, message: str
) -> None:
    """A 403 whose message names a limit is waited for: 60 seconds, whatever the primary limit's reset is."""
    reset = {"x-ratelimit-remaining": "4000", "x-ratelimit-reset": "4000000000"}
    control.add_fault(path=LIST, status=403, headers=reset, body=json.dumps({"message": message}))

    with pytest.raises(RateLimitError) as raised:
        client.list_runners(REPO, everything)
    assert 50 <= (raised.value.reset - datetime.now(timezone.utc)).total_seconds() <= 61


def test_secondary_limit_of_github_without_a_time(client: GithubClient, control: GitHubControl) -> None:
    """The secondary limit without Retry-After is a limit, and no missing permission."""
    control.rate_limit(TOKEN, retry_after=30, header=False)

    with pytest.raises(RateLimitError, match=r"^rate limit reached until \d\d:\d\d:\d\d UTC$"):
        client.list_runners(REPO, everything)


def test_token_without_single_sign_on_names_the_url(client: GithubClient, control: GitHubControl) -> None:
    """The text has the whole URL at which the token is authorized, and fits into a status."""
    control.add_token(TOKEN, sso=[REPO.owner])

    with pytest.raises(TokenError) as raised:
        client.list_runners(REPO, everything)
    assert re.search(r"single sign-on: http\S+/orgs/octo-org/sso\?authorization_request=[\w-]{56} ", str(raised.value))
    assert len(str(raised.value)) <= 200


def test_permissions_that_a_request_needs_leave_room_for_the_reason(
    client: GithubClient, control: GitHubControl
) -> None:
    """Half of the 200 characters at most, however long the header is."""
    headers = {"x-accepted-github-permissions": "n" * 150}
    control.add_fault(path=LIST, status=403, body=json.dumps({"message": "Resource not accessible"}), headers=headers)

    with pytest.raises(TokenError, match=f"Resource not accessible; the request needs {'n' * 100}; correct"):
        client.list_runners(REPO, everything)


NEW_TOKEN = "put a new one into the secret, or into the option token"
ACCESS = "correct path, or give the token or the App access to it"
MESSAGES: dict[str, tuple[int, Any, str]] = {
    "403": (
        403,
        "Resource not accessible",
        "no access to the runners of octo-org/demo (HTTP 403): Resource not accessible; correct this at GitHub",
    ),
    "allow list": (
        403,
        "IP allow list \u2603\nenabled\x1b",
        "(HTTP 403): IP allow list \u2603 enabled; correct this at GitHub",
    ),
    "no message": (403, None, "demo (HTTP 403): the token lacks permission; correct this at GitHub"),
    "no text": (403, ["a"], "demo (HTTP 403): the token lacks permission; correct this at GitHub"),
    "401": (401, "Bad credentials", f"the GitHub token is invalid or expired (HTTP 401): Bad credentials; {NEW_TOKEN}"),
    "404": (404, "Not Found", f"octo-org/demo does not exist, or the token cannot see it (HTTP 404); {ACCESS}"),
    "404 with a reason": (404, "Gone since May", f"the token cannot see it (HTTP 404): Gone since May; {ACCESS}"),
    "409": (409, "Try later", "request refused (HTTP 409): Try later"),
    "422": (422, "Validation Failed", "request refused (HTTP 422): Validation Failed"),
    "503": (503, "No server", "server error (HTTP 503): No server"),
    "long": (403, "x" * 1000, f"(HTTP 403): {'x' * 200}; correct this at GitHub"),
    "token": (403, f"bad {TOKEN}!", "(HTTP 403): bad \u2026!; correct this at GitHub"),
}


@pytest.mark.parametrize(("status", "message", "text"), MESSAGES.values(), ids=MESSAGES.keys())
def test_message_of_github_is_shown(
    client: GithubClient, control: GitHubControl, status: int, message: Any, text: str
) -> None:
    """GitHub's message is one printable line of at most 200 characters, without the token; what to do follows it."""
    control.add_fault(path=LIST, status=status, body=json.dumps({"message": message}))

    with pytest.raises(GithubClientError) as raised:
        client.list_runners(REPO, everything)
    assert str(raised.value).endswith(text)
    assert TOKEN not in str(raised.value)


def test_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that the resolver does not know is the error's cause."""

    def resolve(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    message = r"the host name of github\.example cannot be resolved \(Name or service not known\)"
    with pytest.raises(TemporaryGithubError, match=message):
        GithubClient("https://github.example", Pat(TOKEN), deadline=1).registration_token(REPO)


def closed_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def test_closed_port_is_named() -> None:
    """Where nothing listens, the error has host and port."""
    port = closed_port()
    with pytest.raises(TemporaryGithubError, match=f"127.0.0.1:{port} refuses the connection"):
        GithubClient(f"http://127.0.0.1:{port}", Pat(TOKEN), deadline=1).registration_token(REPO)


def test_closed_port_of_a_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a proxy that is not there, the proxy is the cause and not GitHub."""
    port = closed_port()
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(TemporaryGithubError, match=f"^the proxy 127.0.0.1:{port} refuses the connection"):
        GithubClient("http://github.example", Pat(TOKEN), deadline=1).registration_token(REPO)


def test_certificate_of_an_unknown_authority_is_named() -> None:
    """A certificate that no known authority has signed is the cause, and the error names the remedy."""
    with github.serve("127.0.0.1", 0, [TOKEN], [REPO.path], tls=True) as served:
        client = GithubClient(served.url, Pat(TOKEN), deadline=5)
        message = r"the certificate of 127\.0\.0\.1 is not trusted \(.*issuer.*\); set ca-certificates"
        with pytest.raises(GithubApiError, match=message):
            client.registration_token(REPO)
        client.close()
        assert GitHubControl(served.url, ca=served.ca).requests() == []


def test_certificates_of_the_option_are_trusted(tmp_path: Path) -> None:
    """With the authority's certificate the API and the download work, beside any other authority of the option."""
    other = tls.make("localhost").pem
    with github.serve("127.0.0.1", 0, [TOKEN], [REPO.path], tls=True) as served:
        client = GithubClient(served.url, Pat(TOKEN), ca_certificates=(other, str(served.ca)), deadline=5)
        offered = client.offered_binary(REPO, Arch.X64)
        client.download(offered, tmp_path / "tarball")
        client.close()
    assert offered.url.startswith("https://")
    assert hashlib.sha256((tmp_path / "tarball").read_bytes()).hexdigest() == offered.sha256


def test_usual_authorities_stay_trusted() -> None:
    """The option adds to the machine's authorities and replaces none."""
    plain, more = (trust(option).cert_store_stats()["x509"] for option in ((), (tls.make("localhost").pem,)))
    assert more == plain + 1


def test_authorities_are_loaded_once_and_beside_other_work(
    client: GithubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread loads them. What goes wrong there is left to the first request, which tries again."""
    loaders: list[str] = []

    def load(certificates: Sequence[str]) -> ssl.SSLContext:
        loaders.append(threading.current_thread().name)
        if len(loaders) == 1:
            raise ssl.SSLError("no memory")
        return trust(certificates)

    monkeypatch.setattr("gh.client.trust", load)
    for _ in range(3):
        client.load_authorities()
        for thread in threading.enumerate():
            if thread.name == "authorities":
                thread.join(30)

    client.registration_token(REPO)
    assert loaders == ["authorities", "authorities"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (httpx2.ConnectTimeout("x"), r"no connection to github\.example:443 within 5 s"),
        (httpx2.ReadTimeout("x"), r"no answer from github\.example within 15 s"),
        (httpx2.ProxyError("x"), r"github\.example:443 does not connect to github\.example"),
        (httpx2.RemoteProtocolError("x"), r"connection to github\.example:443 failed \(RemoteProtocolError\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_other_failures_of_a_connection_name_the_host(error: Exception, text: str) -> None:
    """A time limit that has passed and a broken connection are told apart."""
    with pytest.raises(TemporaryGithubError, match=text), translated("https://github.example/x", REPO.path):
        raise error


def test_list_without_an_end_is_an_error(client: GithubClient, control: GitHubControl, monkeypatch: Any) -> None:
    """A total that grows for ever does not hold the hook."""
    from gh import client as github_client

    monkeypatch.setattr(github_client, "MOST_PAGES", 3)
    body = '{"total_count": 1000000, "runners": [{"id": 1, "name": "x", "status": "offline", "busy": false}]}'
    control.add_fault(path=LIST, status=200, body=body)

    with pytest.raises(GithubApiError, match="more than"):
        client.list_runners(REPO, everything)


def test_no_token_is_a_token_error_without_a_request(hub: github.GitHub, control: GitHubControl) -> None:
    """A unit that is cleared with invalid options asks nobody."""
    with pytest.raises(TokenError):
        GithubClient(hub.url, Pat("")).list_runners(REPO, everything)
    assert control.requests() == []


def test_one_connection_serves_a_reconcile(hub: github.GitHub, client: GithubClient, monkeypatch: Any) -> None:
    """Connections are reused: a reconcile opens one."""
    client.list_runners(REPO, everything)
    client.registration_token(REPO)
    client.offered_binary(REPO, Arch.X64)

    assert len(hub.server.connections) == 1


def test_a_runner_group_is_found_by_name_on_any_page(client: GithubClient, control: GitHubControl) -> None:
    """Runners can only join a group that the organisation has; every page is read, and case does not matter."""
    control.add_organisation(ORG.org, [f"group {number}" for number in range(130)])

    client.check_group(GithubOrg(ORG.org, "group 129"))
    client.check_group(GithubOrg(ORG.org, "Group 7"))
    with pytest.raises(ConfigurationError, match=r"nobody' that GitHub shows; create it at GitHub, or set group$"):
        client.check_group(GithubOrg(ORG.org, "nobody"))


@pytest.mark.parametrize("path", [REPO, ORG, GithubOrg(ORG.org, "Default")])
def test_where_there_is_no_group_to_look_for_none_is(
    client: GithubClient, control: GitHubControl, path: GithubOrg | GithubRepo
) -> None:
    """A repository has none, and every organisation has the default one: GitHub is not asked."""
    last = control.requests()[-1]["n"] if control.requests() else 0

    client.check_group(path)

    assert [call["path"] for call in control.requests(last) if "runner-groups" in call["path"]] == []


@pytest.mark.parametrize("status", [403, 404])
def test_groups_that_are_not_shown_are_left_to_the_registration(
    client: GithubClient, control: GitHubControl, status: int
) -> None:
    """A plan without groups, or a token that cannot list them, is no reason to block."""
    control.add_fault(method="GET", path="runner-groups", times=None, status=status)

    client.check_group(GithubOrg(ORG.org, "builders"))


def test_quota_is_what_the_last_answer_left(client: GithubClient) -> None:
    """Of the limit that lists and job look-ups use."""
    client.list_runners(REPO, everything)
    assert client.quota_left == 4999


@pytest.mark.parametrize("other", ["actions_runner_registration", "search"])
def test_only_githubs_main_limit_is_the_quota(client: GithubClient, control: GitHubControl, other: str) -> None:
    """An answer may tell what is left of another limit (https://docs.github.com/en/rest/rate-limit/rate-limit)."""
    client.list_runners(REPO, everything)
    headers = {"x-ratelimit-resource": other, "x-ratelimit-remaining": "7"}
    control.add_fault(path="/actions/runners", status=404, headers=headers)

    with pytest.raises(GithubApiError):
        client.list_runners(REPO, everything)

    assert client.quota_left == 4999


def test_registrations_do_not_change_the_quota(client: GithubClient, control: GitHubControl) -> None:
    """GitHub counts them in a bucket of their own (https://docs.github.com/en/rest/rate-limit/rate-limit)."""
    client.list_runners(REPO, everything)
    client.registration_token(REPO)
    client.generate_jit_config(REPO, "app-0-aa", 1, ["self-hosted"])

    assert client.quota_left == 4999


def test_the_limit_of_registrations_names_its_end(client: GithubClient, control: GitHubControl) -> None:
    """It is of the path, ends within five minutes, and is not the quota of the credential."""
    client.list_runners(REPO, everything)
    control.rate_limit(path=REPO.path, remaining=0)

    for register in (
        lambda: client.registration_token(REPO),
        lambda: client.generate_jit_config(REPO, "app-0-aa", 1, ["self-hosted"]),
    ):
        with pytest.raises(RateLimitError, match="rate limit reached until") as caught:
            register()
        assert timedelta(0) < caught.value.reset - datetime.now(timezone.utc) <= timedelta(minutes=5)
    assert client.quota_left == 4999
