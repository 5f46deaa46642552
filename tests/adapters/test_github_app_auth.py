"""The client of GitHub's API as a GitHub App, against the stand-in over real HTTP."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import httpx2
import jwt
import pytest

import redaction
from errors import GithubApiError, TemporaryGithubError, TokenError
from gh import app as github_app
from gh.app import App
from gh.auth import Pat
from gh.client import GithubClient
from models import AppCredentials, GithubOrg, GithubPath, GithubRepo
from sandbox import github
from sandbox.github import apps, openssl
from sandbox.github.control import GitHubControl

REPO = GithubRepo("Org", "repo")
OTHER = GithubRepo("Org", "other")
ORG = GithubOrg("Org")
RUNNERS = {"administration": "write", "actions": "read", "metadata": "read"}


@dataclass
class World:
    """A GitHub with an App that is installed on an organisation."""

    hub: github.GitHub
    control: GitHubControl
    app: dict[str, Any]
    installation: int
    clients: list[GithubClient] = field(default_factory=list)

    @property
    def credentials(self) -> AppCredentials:
        """What the option has."""
        return AppCredentials(self.app["client_id"], self.app["private_key"])

    def client(self, path: GithubPath = REPO, deadline: float = 5, **changes: Any) -> GithubClient:
        """A client of the App, in which some of the credentials are others."""
        auth = App(replace(self.credentials, **changes), self.hub.api_url, path)
        self.clients.append(GithubClient(self.hub.url, auth, deadline=deadline))
        return self.clients[-1]

    def asked(self) -> list[tuple[str, str, int]]:
        """Method, place and status of each request since the last time."""
        calls = [
            (call["method"], call["path"].removeprefix("/api/v3"), call["status"]) for call in self.control.requests()
        ]
        self.control.clear_requests()
        return calls


@pytest.fixture
def world(key: str) -> Iterator[World]:
    with github.serve("127.0.0.1", 0, [], [REPO.path, OTHER.path], [ORG.org]) as hub:
        control = GitHubControl(hub.url)
        app = control.add_app("runners", ORG.org, private_key=key)
        installation = control.install_app(app["id"], ORG.org)
        made = World(hub, control, app, installation)
        yield made
        for client in made.clients:
            client.close()


def everything(_: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("path", "permissions", "repositories"),
    [
        (REPO, RUNNERS, ["Org/repo"]),
        (ORG, {"organization_self_hosted_runners": "write", "actions": "read", "metadata": "read"}, None),
    ],
    ids=["repository", "organisation"],
)
def test_one_token_with_what_runners_take(
    world: World, path: GithubPath, permissions: dict[str, str], repositories: list[str] | None
) -> None:
    """All requests of a client share one token, which can do no more than managing the runners of its path."""
    client = world.client(path)

    client.list_runners(path, everything)
    client.registration_token(path)

    place = f"repos/{path.path}" if isinstance(path, GithubRepo) else f"orgs/{path.path}"
    assert [call[1] for call in world.asked()] == [
        f"/{place}/installation",
        f"/app/installations/{world.installation}/access_tokens",
        f"/{place}/actions/runners",
        f"/{place}/actions/runners/registration-token",
    ]
    assert world.control.installation_tokens() == [
        {"installation": world.installation, "permissions": permissions, "repositories": repositories}
    ]


@pytest.mark.parametrize("stateless", [True, False])
def test_tokens_of_any_form(world: World, stateless: bool) -> None:
    """GitHub promises neither a length nor a pattern of a token."""
    world.control.settings(stateless_tokens=stateless)
    assert world.client().list_runners(REPO, everything) == []


def test_a_number_is_as_good_as_a_client_id(world: World) -> None:
    """``app-id`` may be either, and the installation may be given."""
    client = world.client(app_id=str(world.app["id"]), installation_id=world.installation)
    client.list_runners(REPO, everything)
    assert world.asked()[0][1] == f"/app/installations/{world.installation}"


def test_side_by_side_requests_get_one_token(world: World) -> None:
    """Runners are created side by side: if their token is refused, they share the next one."""
    client = world.client()
    client.list_runners(REPO, everything)
    world.control.revoke_installation_tokens()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: client.find_runner(REPO, "x"), range(4)))

    assert len(world.control.installation_tokens()) == 1


def test_an_earlier_path_gets_a_token_of_its_own(world: World) -> None:
    """Runners of a path that was changed are still listed and removed; the token of today's path cannot do it."""
    number = world.control.add_runner(OTHER.path, "old")["id"]
    client = world.client()
    client.list_runners(REPO, everything)

    client.delete_runner(OTHER, number)

    assert world.control.runners() == []
    assert [token["repositories"] for token in world.control.installation_tokens()] == [["Org/repo"], ["Org/other"]]


def test_jobs_of_an_organisation_take_its_token(world: World) -> None:
    """Looking up a job of a repository costs no further token."""
    world.control.add_job(
        REPO.path, "true", run_id=7, state={"status": "completed", "runner_name": "r", "started_at": 1.0}
    )
    client = world.client(ORG)
    client.list_runners(ORG, everything)
    client.job(REPO.path, "7", "r")
    assert len(world.control.installation_tokens()) == 1


def test_an_organisations_token_does_not_manage_runners_of_a_repository(world: World) -> None:
    """After ``path`` was changed from a repository to its organisation: it takes another permission."""
    number = world.control.add_runner(REPO.path, "old")["id"]
    client = world.client(ORG)
    client.list_runners(ORG, everything)

    assert [runner.name for runner in client.list_runners(REPO, everything)] == ["old"]
    client.delete_runner(REPO, number)

    assert world.control.runners() == []
    assert [token["repositories"] for token in world.control.installation_tokens()] == [None, ["Org/repo"]]


def test_the_case_of_a_path_does_not_matter(world: World) -> None:
    """The configured path, a recorded one and GitHub's answers may differ in it."""
    client = world.client(GithubOrg("org"))
    client.list_runners(ORG, everything)
    client.list_runners(GithubOrg("ORG"), everything)
    assert len(world.control.installation_tokens()) == 1


@pytest.mark.parametrize("place", ["/installation$", "/access_tokens"])
def test_a_request_for_a_token_has_a_time_limit(world: World, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Silence on the way to a token costs one more attempt, as it does on any other request."""
    monkeypatch.setattr(github_app, "TIMEOUTS", httpx2.Timeout(0.3))
    world.control.add_fault(path=place, silence=True, times=1)
    assert world.client().list_runners(REPO, everything) == []


def test_a_request_for_a_token_that_does_not_end_holds_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's time limit does not see an answer that drips: others, and the removal of the unit, do not wait."""
    monkeypatch.setattr(github_app, "LOCK_TIMEOUT", 0.1)
    world.control.add_fault(path="/installation$", drip=0.2)
    client = world.client(deadline=1)
    with pytest.raises(TemporaryGithubError, match="in time"):
        client.list_runners(REPO, everything)

    started = time.monotonic()
    client.revoke()
    assert time.monotonic() - started < 0.5
    with pytest.raises(TemporaryGithubError, match="another request for a token has no answer yet"):
        client.list_runners(REPO, everything)


def test_a_renamed_repository_can_still_be_observed(world: World) -> None:
    """By its former name its runners are listed; registering or removing one says what to do."""
    world.control.change_installation(world.installation, repositories=[REPO.path])
    number = world.control.add_runner(REPO.path, "old")["id"]
    world.control.rename_repository(REPO.path, "Org/new")
    client = world.client()

    assert [runner.runner_id for runner in client.list_runners(REPO, everything)] == [number]
    for change in (lambda: client.registration_token(REPO), lambda: client.delete_runner(REPO, number)):
        with pytest.raises(TokenError, match="the repository was renamed or moved, set path to its new name"):
            change()


def test_a_token_is_renewed_before_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last five minutes of its hour the next request gets a new one, and no earlier."""
    client, now = world.client(), time.monotonic()
    client.list_runners(REPO, everything)
    world.asked()

    requests = []
    for later in (3200, 3400):
        clock = SimpleNamespace(time=time.time, monotonic=lambda later=later: now + later)
        monkeypatch.setattr(github_app, "time", clock)
        client.find_runner(REPO, "x")
        requests.append(len(world.asked()))
    assert requests == [1, 3]


def test_a_revoked_token_is_renewed_once(world: World) -> None:
    """401 is answered by one new token; the caller sees nothing of it."""
    client = world.client()
    client.list_runners(REPO, everything)
    world.control.revoke_installation_tokens()
    world.asked()

    assert client.list_runners(REPO, everything) == []

    assert [call[2] for call in world.asked()] == [401, 200, 201, 200]


def test_a_renewed_token_that_is_refused_is_no_fault_of_the_secret(world: World) -> None:
    """The text names the App, the reason of GitHub, and neither a token nor a secret to replace."""
    world.control.add_fault(path="/actions/runners", status=401, body=json.dumps({"message": "Bad credentials"}))
    text = (
        r"^GitHub refuses a token that it has just given to the GitHub App Iv\S+ \(HTTP 401\): Bad credentials; "
        "install the App again, or correct a proxy that changes requests$"
    )
    with pytest.raises(TokenError, match=text):
        world.client().list_runners(REPO, everything)
    assert [call[2] for call in world.asked()] == [200, 201, 401, 200, 201, 401]


def test_a_short_life_is_used(world: World) -> None:
    """A token whose life is shorter than the usual reserve is not renewed for each request."""
    world.control.settings(installation_token_life=120)
    client = world.client()
    client.list_runners(REPO, everything)
    world.asked()

    client.list_runners(REPO, everything)

    assert len(world.asked()) == 1


def test_the_token_that_was_used_is_handed_over(world: World) -> None:
    """With its end, and nothing before one was used: the unit's agent gets no key."""
    client = world.client()
    with pytest.raises(TokenError):
        client.held_token()
    client.list_runners(REPO, everything)

    token, end = client.held_token()

    world.clients.append(GithubClient(world.hub.url, Pat(token), deadline=5))
    assert world.clients[-1].list_runners(REPO, everything) == []
    assert end is not None
    assert 3000 < end - time.time() < 3600


def test_tokens_are_revoked(world: World) -> None:
    """The process that removes the unit leaves no token of its own that works."""
    client = world.client()
    client.list_runners(REPO, everything)
    assert len(world.control.installation_tokens()) == 1

    client.revoke()

    assert world.control.installation_tokens() == []
    world.asked()
    client.revoke()
    assert world.asked() == []


def test_a_token_that_was_handed_over_is_revoked(world: World) -> None:
    """By a client that has nothing but this token: the options may have another credential meanwhile, or none."""
    client = world.client()
    client.list_runners(REPO, everything)
    token, _ = client.held_token()
    world.clients.append(GithubClient(world.hub.url, Pat(token), deadline=5))

    world.clients[-1].revoke()
    assert len(world.control.installation_tokens()) == 1
    world.clients[-1].revoke([token])
    assert world.control.installation_tokens() == []


def test_a_token_that_cannot_be_revoked_holds_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It ends by itself within an hour."""
    client = world.client()
    client.list_runners(REPO, everything)
    world.control.add_fault(path="/installation/token", reset=True)

    client.revoke()

    assert "is not revoked" in caplog.text


def test_revoking_ends_in_time(world: World) -> None:
    """However many tokens there are: the removal of the unit waits for it."""
    client = world.client(deadline=1)
    for path in (REPO, OTHER, ORG):
        client.list_runners(path, everything)
    world.control.add_fault(path="/installation/token", silence=True)

    started = time.monotonic()
    client.revoke()

    assert time.monotonic() - started < 2


def test_another_key_of_the_app_is_as_good(world: World) -> None:
    """A key is rotated without a gap: GitHub accepts all keys of the App until one is deleted."""
    second = world.control.add_app_key(world.app["id"])
    for key in (world.app["private_key"], second["private_key"]):
        assert world.client(private_key=key).list_runners(REPO, everything) == []


Change = Callable[[World], dict[str, Any]]


def uninstalled(world: World) -> dict[str, Any]:
    world.control.uninstall_app(world.installation)
    return {}


def changed(**fields: Any) -> Change:
    def change(world: World) -> dict[str, Any]:
        world.control.change_installation(world.installation, **fields)
        return {}

    return change


def with_clock(seconds: float) -> Change:
    def change(world: World) -> dict[str, Any]:
        world.control.settings(clock_ahead=seconds)
        return {}

    return change


def with_other_key(world: World) -> dict[str, Any]:
    return {"private_key": apps.make_key()[0]}


def with_key_on_another_curve(_: World) -> dict[str, Any]:
    key = openssl.run("ecparam", "-name", "secp112r1", "-genkey", "-noout")
    return {"private_key": openssl.run("pkcs8", "-topk8", "-nocrypt", given=key)}


def older_server(world: World) -> dict[str, Any]:
    world.control.settings(enterprise_version="3.14.2")
    return {}


def of_another_account(world: World) -> dict[str, Any]:
    world.installation = world.control.install_app(world.app["id"], "somebody")
    return {"installation_id": world.installation}


def with_other_key_and_clock(seconds: float) -> Change:
    def change(world: World) -> dict[str, Any]:
        return with_clock(seconds)(world) | with_other_key(world)

    return change


WRONG: dict[str, tuple[Change, str]] = {
    "no such App": (lambda _: {"app_id": "4711"}, "GitHub App with the app-id 4711.*; correct app-id or github-url$"),
    "no such client id": (
        lambda _: {"app_id": "Iv23liunknown"},
        r"app-secret: 127.0.0.1 has no GitHub App with the app-id Iv23liunknown \(HTTP 401\)",
    ),
    "server that knows no client ids": (older_server, "; correct app-id: a server before 3.15 needs the number$"),
    "key of another App": (with_other_key, "app-secret: private-key is not a key of the GitHub App Iv23li"),
    "no key": (lambda _: {"private_key": "nonsense"}, "app-secret: private-key is no RSA private key"),
    "key of another kind": (
        with_key_on_another_curve,
        r"app-secret: private-key is no RSA private key \(UnsupportedAlgorithm\)",
    ),
    "not installed": (uninstalled, r"the GitHub App Iv\S+ is not installed on Org/repo \(HTTP 404\); install the App"),
    "another repository": (changed(repositories=["Org/other"]), r"is not installed on Org/repo \(HTTP 404\)"),
    "no such installation": (lambda _: {"installation_id": 7}, "id 7 .*; correct installation-id, or remove it$"),
    "suspended": (changed(suspended=True), r"the installation of the GitHub App Iv\S+ on Org/repo is suspended"),
    "no permission": (
        changed(permissions={"actions": "read"}),
        "lacks the permission administration=write on Org/repo",
    ),
    "read only": (
        changed(permissions={"administration": "read"}),
        "lacks the permission administration=write on Org/repo",
    ),
    "installation of another account": (
        of_another_account,
        "app-secret: installation-id [0-9]+ is the installation of somebody, not of Org; correct inst",
    ),
    "clock a little behind": (
        with_other_key_and_clock(300),
        r"private-key is not a key of .*; the clock of this machine is (299|300|301) s behind GitHub's; generate a new",
    ),
    "clock a little ahead": (
        with_other_key_and_clock(-30),
        "private-key is not a key of .* s ahead of GitHub's; generate",
    ),
    "clock at the end of what is allowed, behind": (
        with_other_key_and_clock(470),
        r"private-key is not a key of .* behind GitHub's; gen",
    ),
    "clock at the end of what is allowed, ahead": (
        with_other_key_and_clock(-50),
        r"private-key is not a key of .* ahead of GitHub's; gen",
    ),
    "clock nearly right": (with_other_key_and_clock(-10), r"private-key is not a key of (?!.*clock)"),
    "clock ahead of the begin": (with_clock(-70), "is (69|7[01]) s ahead of GitHub's.*; synchronise the clock, for"),
    "clock behind": (with_clock(3600), "the clock of this machine is 3[56][0-9]{2} s behind GitHub's"),
    "clock ahead": (with_clock(-3600), "the clock of this machine is 3[56][0-9]{2} s ahead of GitHub's"),
}


@pytest.mark.parametrize(("change", "text"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named(world: World, change: Change, text: str) -> None:
    """Each mistake in making, installing or configuring an App has a text of its own, and blocks the unit."""
    client = world.client(**change(world))
    with pytest.raises(TokenError, match=text):
        client.list_runners(REPO, everything)


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (0, "private-key is not a key of"),
        (30, "private-key is not a key of .* s behind GitHub's; gen"),
        (3600, "the clock of this machine is 3[56][0-9]{2} s behind GitHub's"),
        (-50, "the clock of this machine is (49|5[01]) s ahead of GitHub's"),
    ],
)
def test_a_refusal_without_a_reason(world: World, ahead: int, text: str) -> None:
    """The key is to blame, unless the clocks differ by about as much as a JSON web token allows."""
    world.control.settings(clock_ahead=ahead)
    world.control.add_fault(path="/installation$", status=401, body="{}")
    with pytest.raises(TokenError, match=text):
        world.client().list_runners(REPO, everything)


def test_a_reason_counts_more_than_the_clocks(world: World) -> None:
    """If GitHub reports that a time is wrong, it is the clock, however small the difference that is seen."""
    world.control.add_fault(path="/installation$", status=401, body=json.dumps({"message": apps.EXPIRED}))
    with pytest.raises(TokenError, match=r"^the clock of this machine is [01] s .* GitHub's \(HTTP 401\): 'Expiration"):
        world.client().list_runners(REPO, everything)


def test_without_a_date_no_difference_is_named(world: World) -> None:
    """GitHub's message is about the clock all the same. A proxy may have removed the date."""
    auth = App(world.credentials, world.hub.api_url, REPO)
    transport = httpx2.MockTransport(lambda _: httpx2.Response(401, json={"message": apps.EXPIRED}))
    text = r"^the clock of this machine differs from GitHub's \(HTTP 401\): 'Expiration .*; synchronise the clock"

    with httpx2.Client(auth=auth, transport=transport) as client, pytest.raises(TokenError, match=text):
        client.get(f"{world.hub.api_url}/user")


def test_an_installation_that_is_given_and_lacks_the_repository(world: World) -> None:
    """With ``installation-id`` GitHub reports it only when it is asked for a token."""
    world.control.change_installation(world.installation, repositories=["Org/other"])
    with pytest.raises(TokenError, match=r"does not cover Org/repo.*; add it to the installation, or set path$"):
        world.client(installation_id=world.installation).list_runners(REPO, everything)


def test_a_permission_that_is_taken_away_meanwhile_is_named(world: World) -> None:
    """GitHub's answer has a header with what the request takes."""
    client = world.client()
    client.list_runners(REPO, everything)
    world.control.change_installation(world.installation, permissions={"actions": "read"})
    with pytest.raises(
        TokenError, match="Resource not accessible by integration; the request needs administration=write"
    ):
        client.registration_token(REPO)


def test_jobs_are_optional(world: World) -> None:
    """An App without ``actions`` manages runners all the same."""
    world.control.change_installation(world.installation, permissions={"administration": "write"})
    assert world.client().list_runners(REPO, everything) == []
    assert world.control.installation_tokens()[0]["permissions"] == {"administration": "write", "metadata": "read"}


@pytest.mark.parametrize("place", ["/installation$", "/access_tokens"])
def test_an_outage_is_tried_again(world: World, place: str) -> None:
    """One server error on the way to a token costs one more attempt."""
    world.control.add_fault(path=place, status=502, times=1)
    assert world.client().list_runners(REPO, everything) == []


@pytest.mark.parametrize(
    "body", ["[]", '{"token": 7}', '{"token": "a b"}', "nonsense", '{"token": "x", "expires_at": "soon"}']
)
def test_odd_answers_are_no_token(world: World, body: str) -> None:
    """An answer that is not what GitHub documents is a temporary error, not a crash."""
    world.control.add_fault(path="/access_tokens", status=201, body=body)
    with pytest.raises(GithubApiError):
        world.client().list_runners(REPO, everything)


def test_no_secret_is_shown(world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither key nor JSON web token nor token is in a log, an error or a text of the values."""
    caplog.set_level(logging.DEBUG)
    sent: list[str] = []
    encode = jwt.encode

    def encoded(*arguments: Any, **options: Any) -> str:
        sent.append(encode(*arguments, **options))
        return sent[-1]

    monkeypatch.setattr("gh.app.jwt.encode", encoded)
    client = world.client()
    client.list_runners(REPO, everything)
    token, _ = client.held_token()
    assert token

    shown = f"{caplog.text}{world.credentials!r}{vars(client)!r}{vars(client.auth)!r}"
    assert sent
    for secret in (token, *sent, world.app["private_key"], world.app["private_key"].splitlines()[3]):
        assert secret not in shown
        assert redaction.redact(f"before {secret} after") == "before … after"
