"""The stand-in for GitHub as a GitHub App sees it: its JSON web tokens, its installations, and their tokens."""

import base64
import time
from collections.abc import Iterator
from email.message import Message
from typing import Any

import jwt
import pytest

from sandbox import github
from sandbox.github import apps
from sandbox.github.control import GitHubControl, GitHubControlError
from tests.support.github import call

ORGANISATION, REPOSITORY, OTHER, PERSONAL = "Org", "Org/repo", "Org/other", "user/repo"
RUNNERS = f"/repos/{REPOSITORY}/actions/runners"
ORGANISATION_RUNNERS = f"/orgs/{ORGANISATION}/actions/runners"


@pytest.fixture
def server() -> Iterator[github.GitHub]:
    repositories = [REPOSITORY, OTHER, PERSONAL]
    with github.serve(tokens=["ghp_1"], repositories=repositories, organisations=[ORGANISATION]) as running:
        yield running


@pytest.fixture
def control(server: github.GitHub) -> GitHubControl:
    return GitHubControl(server.url)


@pytest.fixture
def app(control: GitHubControl, key: str) -> dict[str, Any]:
    return control.add_app("runners", ORGANISATION, private_key=key)


@pytest.fixture
def installation(control: GitHubControl, app: dict[str, Any]) -> int:
    return control.install_app(app["id"], ORGANISATION)


def assertion(app: dict[str, Any], **claims: object) -> str:
    """A JWT of the App that is good unless a claim is changed; one that is None is left out."""
    now = int(time.time())
    claims = {"iat": now - 60, "exp": now + 300, "iss": app["client_id"], **claims}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, app["private_key"], "RS256")


def ask_token(
    server: github.GitHub, app: dict[str, Any], installation: int, **body: object
) -> tuple[int, Any, Message]:
    return call(server, "POST", f"/app/installations/{installation}/access_tokens", assertion(app), body)


def token_of(server: github.GitHub, app: dict[str, Any], installation: int, **body: object) -> str:
    status, document, _ = ask_token(server, app, installation, **body)
    assert status == 201, document
    token: str = document["token"]
    return token


# Clients that we did not write ----------------------------------------------------------------------------------------


def test_pygithub_works_as_an_app(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int
) -> None:
    """PyGithub signs its JWT, finds the installations, and works with a token of one of them."""
    import github as library

    auth = library.Auth.AppAuth(app["id"], app["private_key"])
    pauses = {"seconds_between_requests": None, "seconds_between_writes": None, "timeout": 5, "retry": None}
    with library.GithubIntegration(auth=auth, base_url=server.api_url, **pauses) as integration:
        assert (integration.get_app().id, integration.get_app().slug) == (app["id"], "runners")
        assert [each.id for each in integration.get_installations()] == [installation]
        assert integration.get_org_installation(ORGANISATION).id == installation
        assert integration.get_repo_installation("Org", "repo").id == installation
        assert integration.get_app_installation(installation).suspended_at is None
        granted = integration.get_access_token(installation, {"administration": "write"})
        assert granted.permissions == {"administration": "write", "metadata": "read"}
        with integration.get_github_for_installation(installation) as client:
            assert client.get_organization(ORGANISATION).create_self_hosted_runner_registration_token().token
        with pytest.raises(library.UnknownObjectException):
            integration.get_user_installation("nobody")


def test_githubkit_works_as_an_app(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int
) -> None:
    """Each answer fits the models that githubkit has of GitHub's description; it fetches a token and revokes it."""
    import githubkit

    strategy = githubkit.AppAuthStrategy(app["client_id"], app["private_key"])
    options = {"base_url": server.api_url, "auto_retry": False, "http_cache": False}
    with githubkit.GitHub(strategy, **options) as client:
        rest = client.rest.apps
        assert rest.get_authenticated().parsed_data.installations_count == 1
        assert [each.id for each in rest.list_installations().parsed_data] == [installation]
        assert rest.get_installation(installation).parsed_data.account.login == ORGANISATION
        assert rest.get_repo_installation("Org", "repo").parsed_data.id == installation
        assert rest.get_org_installation("org").parsed_data.target_type == "Organization"
        body = {"repositories": ["repo"], "permissions": {"actions": "read"}}
        granted = rest.create_installation_access_token(installation, data=body).parsed_data
        assert [each.full_name for each in granted.repositories] == [REPOSITORY]
    with githubkit.GitHub(strategy.as_installation(installation), **options) as client:
        assert client.rest.actions.list_self_hosted_runners_for_org(ORGANISATION).parsed_data.total_count == 0
        client.rest.apps.revoke_installation_access_token()
    assert [each["permissions"] for each in control.installation_tokens()] == [{"actions": "read", "metadata": "read"}]


def test_githubkit_understands_refusals_and_pages(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int
) -> None:
    """A foreign client meets GitHub's status codes for what an App may not do, and reads every page of the groups."""
    import githubkit
    from githubkit.cache import MemCacheStrategy
    from githubkit.exception import RequestFailed

    control.add_organisation(ORGANISATION, ["one", "two", "three"])
    strategy = githubkit.AppAuthStrategy(app["client_id"], app["private_key"]).as_installation(installation)
    # Otherwise its tokens live on from one test to the next.
    options = {"auto_retry": False, "http_cache": False, "cache_strategy": MemCacheStrategy()}
    with githubkit.GitHub(strategy, base_url=server.api_url, **options) as client:
        actions = client.rest.actions
        pages = [
            actions.list_self_hosted_runner_groups_for_org(ORGANISATION, per_page=3, page=page).parsed_data
            for page in (1, 2)
        ]
        assert [group.name for page in pages for group in page.runner_groups] == ["Default", "one", "two", "three"]

        def refused() -> int:
            body = {"name": "x", "runner_group_id": 1, "labels": ["x"]}
            with pytest.raises(RequestFailed) as caught:
                actions.generate_runner_jitconfig_for_org(ORGANISATION, data=body)
            return int(caught.value.response.status_code)

        control.add_runner(ORGANISATION, "x")
        assert refused() == 409
        control.change_installation(installation, permissions={"actions": "read"})
        assert refused() == 403
        control.change_installation(installation, suspended=True)
        assert refused() == 403


def test_pygithub_understands_refusals(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int
) -> None:
    """Its exceptions have the status codes and messages that GitHub documents."""
    import github as library

    auth = library.Auth.AppAuth(app["id"], app["private_key"])
    pauses = {"seconds_between_requests": None, "seconds_between_writes": None, "timeout": 5, "retry": None}
    with library.GithubIntegration(auth=auth, base_url=server.api_url, **pauses) as integration:
        with integration.get_github_for_installation(installation) as client:
            organisation = client.get_organization(ORGANISATION)
            control.change_installation(installation, permissions={"actions": "read"})
            with pytest.raises(library.GithubException, match="Resource not accessible by integration") as caught:
                organisation.create_self_hosted_runner_registration_token()
            assert caught.value.status == 403
        control.change_installation(installation, suspended=True)
        with pytest.raises(library.GithubException, match="suspended") as caught:
            integration.get_access_token(installation)
        assert caught.value.status == 403


# The JSON web token ---------------------------------------------------------------------------------------------------

JWTS: dict[str, tuple[dict[str, object], int, str | None]] = {
    "good": ({}, 200, None),
    "by number": ({"iss": "NUMBER"}, 200, None),
    "nearly ten minutes": ({"exp": 595}, 200, None),
    "too long": ({"exp": 660}, 401, "'Expiration time' claim ('exp') is too far in the future"),
    "over": ({"exp": -5}, 401, apps.EXPIRED),
    "no end": ({"exp": None}, 401, apps.EXPIRED),
    "issued in the future": ({"iat": 60}, 401, apps.ISSUED_AT),
    "no time": ({"iat": None}, 401, apps.ISSUED_AT),
    "no issuer": ({"iss": None}, 401, "Missing 'issuer' claim ('iss') in assertion"),
    "unknown client id": ({"iss": "Iv23liunknown"}, 401, "'Issuer' claim ('iss') must be an Integer"),
    "unknown number": ({"iss": "4711"}, 404, "Integration not found"),
}


@pytest.mark.parametrize("name", JWTS)
def test_the_claims_of_a_jwt(server: github.GitHub, app: dict[str, Any], name: str) -> None:
    """GitHub's rules about issuer and times hold, and its messages say which one is broken."""
    claims, status, message = JWTS[name]
    claims = {key: int(time.time()) + value if isinstance(value, int) else value for key, value in claims.items()}
    if claims.get("iss") == "NUMBER":
        claims["iss"] = str(app["id"])
    found, document, _ = call(server, "GET", "/app", assertion(app, **claims))
    assert (found, document.get("message")) == (status, message)


@pytest.mark.parametrize(("version", "status"), [("", 200), ("3.15.0", 200), ("3.14.9", 401)])
def test_client_ids_of_enterprise_servers(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], version: str, status: int
) -> None:
    """An older GitHub Enterprise Server takes nothing but the number of the App for its issuer."""
    control.settings(enterprise_version=version)
    found, document, _ = call(server, "GET", "/app", assertion(app))
    assert (found, document.get("message")) == (status, apps.ISSUER if status == 401 else None)
    assert call(server, "GET", "/app", assertion(app, iss=str(app["id"])))[0] == 200


@pytest.mark.parametrize("ahead", [-120, 400])
def test_clocks_that_differ(server: github.GitHub, control: GitHubControl, app: dict[str, Any], ahead: int) -> None:
    """GitHub goes by its own clock, which its Date header tells, whatever the time is for the App."""
    control.settings(clock_ahead=ahead)
    status, document, headers = call(server, "GET", "/app", assertion(app))
    assert (status, document["message"]) == (401, apps.ISSUED_AT if ahead < 0 else apps.EXPIRED)
    told = time.mktime(time.strptime(headers["Date"], "%a, %d %b %Y %H:%M:%S GMT")) - time.timezone
    assert told == pytest.approx(time.time() + ahead, abs=5)


def forged(app: dict[str, Any], name: str) -> str | None:
    """Something that is no JWT of the App's key."""
    good = assertion(app)
    head, claims, signature = good.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    return {
        "nothing": None,
        "a personal token": "ghp_1",
        "no dots": "abc",
        "other claims": f"{head}.{claims[:-4]}AAAA.{signature}",
        "another signature": f"{head}.{claims}.{'A' * len(signature)}",
        "no signature": f"{head}.{claims}.",
        "padding": f"{good}==",
        "no algorithm": f"{none}.{claims}.{signature}",
        "a shared secret": jwt.encode({"iss": app["client_id"]}, "s" * 32, "HS256"),
        "another key": assertion({**app, "private_key": apps.make_key()[0]}) if name == "another key" else "",
    }[name]


FORGERIES = ["nothing", "a personal token", "no dots", "other claims", "another signature", "no signature", "padding"]


@pytest.mark.parametrize("name", [*FORGERIES, "no algorithm", "a shared secret", "another key"])
def test_forged_jwts(server: github.GitHub, app: dict[str, Any], name: str) -> None:
    """What is not signed by a key of the App with RS256 is refused as no JWT at all."""
    status, document, _ = call(server, "GET", "/app", forged(app, name))
    assert (status, document["message"]) == (401, "A JSON web token could not be decoded")


def test_keys_of_an_app(server: github.GitHub, control: GitHubControl, key: str) -> None:
    """A new key is PKCS#1; several are active at once, and one that is deleted is no longer good."""
    app = control.add_app("rotating", ORGANISATION)
    assert app["private_key"].startswith("-----BEGIN RSA PRIVATE KEY-----")
    second = control.add_app_key(app["id"])
    renewed = {**app, "private_key": second["private_key"]}
    assert [call(server, "GET", "/app", assertion(each))[0] for each in (app, renewed)] == [200, 200]
    control.remove_app_key(app["id"], app["key"])
    assert [call(server, "GET", "/app", assertion(each))[0] for each in (app, renewed)] == [401, 200]


def test_a_jwt_is_for_the_app_only(server: github.GitHub, app: dict[str, Any], installation: int) -> None:
    """A JWT is no credential for anything but the App itself, and other credentials are none for the App."""
    assert call(server, "GET", RUNNERS, assertion(app))[0] == 401
    token = token_of(server, app, installation)
    assert [call(server, "GET", "/app", each)[0] for each in (token, "ghp_1")] == [401, 401]


# Installations --------------------------------------------------------------------------------------------------------


def test_installations_by_path(server: github.GitHub, control: GitHubControl, app: dict[str, Any]) -> None:
    """An installation is found by organisation, user or repository, and only by what it covers and what is its kind."""
    organisation = control.install_app(app["id"], ORGANISATION, [REPOSITORY])
    user = control.install_app(app["id"], "user")

    def found(path: str) -> int:
        status, document, _ = call(server, "GET", f"{path}/installation", assertion(app))
        return document["id"] if status == 200 else status

    assert [found(path) for path in ("/orgs/org", "/repos/org/REPO", "/users/user")] == [
        organisation,
        organisation,
        user,
    ]
    assert found("/repos/user/repo") == user
    assert [found(path) for path in (f"/repos/{OTHER}", "/users/Org", "/orgs/user", "/repos/no/where")] == [404] * 4


def test_installations_of_other_apps_are_hidden(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int, key: str
) -> None:
    """An App sees its own installations only."""
    other = control.add_app("other", ORGANISATION, private_key=key)
    for path in (f"/app/installations/{installation}", f"/orgs/{ORGANISATION}/installation"):
        assert call(server, "GET", path, assertion(other))[0] == 404
    assert ask_token(server, other, installation)[0] == 404
    assert call(server, "GET", "/app/installations", assertion(other))[1] == []


def test_installations_come_in_pages(server: github.GitHub, control: GitHubControl, app: dict[str, Any]) -> None:
    """The list of installations has pages, with links to the others."""
    for number in range(5):
        control.install_app(app["id"], f"user{number}")
    _, page, headers = call(server, "GET", "/app/installations?per_page=2&page=2", assertion(app))
    assert [each["account"]["login"] for each in page] == ["user2", "user3"]
    assert 'rel="next"' in headers["Link"]


def test_a_renamed_repository_redirects_the_app(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any]
) -> None:
    """The question for the installation of a former name is redirected; the installation still covers it."""
    installation = control.install_app(app["id"], ORGANISATION, [REPOSITORY])
    token = token_of(server, app, installation, repositories=["repo"])
    control.rename_repository(REPOSITORY, "Org/new")
    status, document, _ = call(server, "GET", f"/repos/{REPOSITORY}/installation", assertion(app))
    assert (status, document["id"]) == (200, installation)  # urllib follows
    assert call(server, "GET", "/repos/Org/new/actions/runners", token)[0] == 200


def test_uninstalled(server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int) -> None:
    """Without its installation an App finds nothing, and its tokens are bad from then on."""
    token = token_of(server, app, installation)
    control.uninstall_app(installation)
    assert call(server, "GET", f"/repos/{REPOSITORY}/installation", assertion(app))[0] == 404
    assert (ask_token(server, app, installation)[0], call(server, "GET", RUNNERS, token)[0]) == (404, 401)


def test_a_suspended_installation(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int
) -> None:
    """A suspended installation gives out no token, and refuses those that it gave; both until it is resumed."""
    token = token_of(server, app, installation)
    control.change_installation(installation, suspended=True)
    for status, document, _ in (ask_token(server, app, installation), call(server, "GET", RUNNERS, token)):
        assert (status, document["message"]) == (403, "This installation has been suspended")
    shown = call(server, "GET", f"/orgs/{ORGANISATION}/installation", assertion(app))[1]
    assert shown["suspended_at"] is not None
    control.change_installation(installation, suspended=False)
    assert call(server, "GET", RUNNERS, token)[0] == 200


# Tokens of installations ----------------------------------------------------------------------------------------------


def test_a_token_with_less_than_everything(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int
) -> None:
    """A token has the permissions and repositories that were asked for, and metadata; it reaches nothing else."""
    body = {"repositories": ["repo"], "permissions": {"administration": "read"}}
    status, document, _ = ask_token(server, app, installation, **body)
    assert (status, document["repository_selection"]) == (201, "selected")
    assert document["permissions"] == {"administration": "read", "metadata": "read"}
    token = document["token"]
    paths = {
        RUNNERS: 200,
        f"/repos/{OTHER}/actions/runners": 404,
        ORGANISATION_RUNNERS: 403,
        f"/repos/{REPOSITORY}": 200,
    }
    assert {path: call(server, "GET", path, token)[0] for path in paths} == paths
    status, document, headers = call(server, "POST", f"{RUNNERS}/registration-token", token)
    assert (status, document["message"]) == (403, "Resource not accessible by integration")
    assert headers["X-Accepted-GitHub-Permissions"] == "administration=write"
    [shown] = control.installation_tokens()
    assert shown["repositories"] == [REPOSITORY]


WRONG_TOKENS: dict[str, tuple[dict[str, object], int, str]] = {
    "a permission that is not granted": ({"permissions": {"contents": "read"}}, 422, apps.UNGRANTED),
    "a higher level": ({"permissions": {"actions": "write"}}, 422, apps.UNGRANTED),
    "no level": ({"permissions": {"actions": "all"}}, 422, "Invalid request."),
    "a repository of others": ({"repositories": ["secret"]}, 422, apps.INACCESSIBLE),
    "a repository that is not selected": ({"repositories": ["other"]}, 422, apps.INACCESSIBLE),
    "an unknown number": ({"repository_ids": [7]}, 422, apps.INACCESSIBLE),
    "too many repositories": ({"repositories": ["repo"] * 501}, 422, "Invalid request."),
    "no list": ({"repositories": "repo"}, 422, "Invalid request."),
}


@pytest.mark.parametrize("name", WRONG_TOKENS)
def test_tokens_that_are_not_given(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], name: str
) -> None:
    """What the installation does not have is refused with 422, and no token is made."""
    body, status, message = WRONG_TOKENS[name]
    installation = control.install_app(app["id"], ORGANISATION, [REPOSITORY])
    found, document, _ = ask_token(server, app, installation, **body)
    assert (found, document["message"].partition("\n")[0]) == (status, message)
    assert control.installation_tokens() == []


def test_repositories_by_number(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int
) -> None:
    """Repositories may be named by their numbers."""
    number = call(server, "GET", f"/repos/{REPOSITORY}", "ghp_1")[1]["id"]
    token = token_of(server, app, installation, repository_ids=[number])
    assert [call(server, "GET", f"/repos/{each}", token)[0] for each in (REPOSITORY, OTHER)] == [200, 404]


def test_lowered_permissions(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int
) -> None:
    """Permissions that the installation loses are gone for tokens that it gave out before, too."""
    token = token_of(server, app, installation)
    assert call(server, "POST", f"{RUNNERS}/registration-token", token)[0] == 201
    control.change_installation(installation, permissions={"administration": "read"})
    assert call(server, "GET", RUNNERS, token)[0] == 200
    status, _, headers = call(server, "DELETE", f"{RUNNERS}/1", token)
    assert (status, headers["X-Accepted-GitHub-Permissions"]) == (403, "administration=write")
    status, _, headers = call(server, "GET", ORGANISATION_RUNNERS, token)
    assert (status, headers["X-Accepted-GitHub-Permissions"]) == (403, "organization_self_hosted_runners=read")
    run = control.add_job(REPOSITORY)["run_id"]
    status, _, headers = call(server, "GET", f"/repos/{REPOSITORY}/actions/runs/{run}/jobs", token)
    assert (status, headers["X-Accepted-GitHub-Permissions"]) == (403, "actions=read")
    assert ask_token(server, app, installation, permissions={"administration": "write"})[0] == 422


def test_tokens_end(server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int) -> None:
    """A token is good for an hour by GitHub's clock."""
    _, document, _ = ask_token(server, app, installation)
    control.settings(clock_ahead=3590)
    assert call(server, "GET", RUNNERS, document["token"])[0] == 200
    control.settings(clock_ahead=3601)
    status, body, _ = call(server, "GET", RUNNERS, document["token"])
    assert (status, body["message"]) == (401, "Bad credentials")
    control.settings(clock_ahead=0, installation_token_life=60)
    end = ask_token(server, app, installation)[1]["expires_at"]
    assert time.strptime(end, "%Y-%m-%dT%H:%M:%SZ") < time.strptime(document["expires_at"], "%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize("how", ["by its owner", "by the test"])
def test_revoked_tokens(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int, how: str
) -> None:
    """A token that is revoked is bad from then on, also for revoking it again."""
    token = token_of(server, app, installation)
    if how == "by its owner":
        assert call(server, "DELETE", "/installation/token", token)[0] == 204
    else:
        control.revoke_installation_tokens()
    assert call(server, "GET", RUNNERS, token)[0] == 401
    assert call(server, "DELETE", "/installation/token", token)[0] == 401
    assert call(server, "DELETE", "/installation/token", "ghp_1")[0] == 403


def test_two_forms_of_tokens(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int
) -> None:
    """A token is several hundred characters with dots, or on request of the older form with 40."""
    long = token_of(server, app, installation)
    assert long.startswith(f"ghs_{app['id']}_ey")
    assert (len(long) > 500, long.count(".")) == (True, 2)
    control.settings(stateless_tokens=False)
    short = token_of(server, app, installation)
    assert (short[:4], len(short)) == ("ghs_", 40)
    assert [call(server, "GET", RUNNERS, token)[0] for token in (long, short)] == [200, 200]


def test_an_installation_has_one_limit(
    server: github.GitHub, control: GitHubControl, app: dict[str, Any], installation: int
) -> None:
    """All tokens of an installation use up one limit of requests, and the App's own requests another one."""
    control.rate_limit(installation=installation, remaining=1)
    first, second = (token_of(server, app, installation) for _ in range(2))
    assert call(server, "GET", RUNNERS, first)[0] == 200
    status, body, headers = call(server, "GET", RUNNERS, second)
    assert (status, headers["X-RateLimit-Remaining"]) == (403, "0")
    assert body["message"] == f"API rate limit exceeded for installation ID {installation}."
    assert call(server, "GET", "/app", assertion(app))[2]["X-RateLimit-Remaining"] == "4997"


def test_wrong_arrangements_say_so(control: GitHubControl, app: dict[str, Any], key: str) -> None:
    """A mistake in a test's arrangement of Apps is an error."""
    for wrong in (
        lambda: control.install_app(1, ORGANISATION),
        lambda: control.install_app(app["id"], ORGANISATION, ["no/where"]),
        lambda: control.change_installation(1, suspended=True),
        lambda: control.uninstall_app(1),
        lambda: control.add_app("x", ORGANISATION, {"actions": "all"}, key),
        lambda: control.remove_app_key(app["id"], 1),
    ):
        with pytest.raises(GitHubControlError, match=r"404|422"):
            wrong()
