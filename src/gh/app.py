"""Authorization as a GitHub App: a key signs a JSON web token, which buys tokens of an installation for an hour.

https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app
"""

import re
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
import jwt
from cryptography.exceptions import UnsupportedAlgorithm

import redaction
from errors import TemporaryGithubError, TokenError
from gh import answers
from gh.auth import Auth, TokenFlow
from gh.errors import TIMEOUT, TIMEOUTS, detail, status_error
from models import AppCredentials, GithubPath

# In seconds. GitHub accepts ten minutes from its own time on, and advises to begin a minute ago.
JWT_BEGIN, JWT_LIFE = -60, 540
# A token is not used in its last minutes, in seconds.
RESERVE = 300
# In seconds. GitHub's Date has whole seconds and is read later: a difference is known no better than this.
CLOCK_MARGIN = 15
# In seconds. A token takes two requests.
LOCK_TIMEOUT = 2 * TIMEOUT
# What registering and removing runners takes, by kind of path, and what finding a job's times and conclusion takes
# (https://docs.github.com/en/rest/authentication/permissions-required-for-github-apps).
NEEDED = {"repository": "administration", "organisation": "organization_self_hosted_runners"}
WANTED = {"actions": "read"}
# What the operator can do.
NEW_KEY = "generate a new private key at GitHub and update the secret"
INSTALL = "install the App at GitHub, or set path"


@dataclass(frozen=True)
class _Token:
    """A token of an installation; ``end`` is when to renew it, in seconds of time.monotonic."""

    text: str = field(repr=False)
    end: float


class App(Auth):
    """Tokens of a GitHub App's installations, in memory only.

    One for the configured path, which has no more permissions than runners need, and only for that path. If runners of
    an earlier path are asked for, that path gets a token of its own.
    """

    def __init__(self, credentials: AppCredentials, api_url: str, path: GithubPath) -> None:
        self._credentials = credentials
        self._api = api_url
        self._path = path
        self._tokens: dict[str, _Token] = {}
        # Runners are created side by side: only one of them gets the token.
        self._lock = threading.Lock()

    def token(self, request: httpx2.Request) -> TokenFlow:
        """The token for the path that a request is about."""
        place = self._place(request.url)
        with self._alone():
            held = self._tokens.get(place)
            if held is None or time.monotonic() >= held.end:
                request = yield from self._token_request(place)
                response = yield from _answer(request)
                held = self._tokens[place] = self._new_token(place, response)
            return held.text

    def discard(self, token: str) -> bool:
        """There can always be another one; it may be there already."""
        with self._alone():
            self._tokens = {place: held for place, held in self._tokens.items() if held.text != token}
        return True

    def refusal(self, response: httpx2.Response) -> TokenError:
        """The credentials are good: with them the token was just given."""
        return TokenError(
            f"GitHub refuses a token that it has just given to {self._name} (HTTP 401){detail(response)}; "
            "install the App again, or correct a proxy that changes requests"
        )

    def held(self) -> tuple[str, float | None]:
        """The installation's token for the configured path, and when it is to be renewed."""
        found = self._tokens.get(self._path.path)
        if found is None:
            raise TokenError(f"no token of {self._name} was used yet")
        return found.text, time.time() + found.end - time.monotonic()

    def give_up(self) -> list[str]:
        """All tokens that are held. One that is still awaited is left out."""
        tokens, self._tokens = self._tokens, {}
        return [held.text for held in tokens.values()]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads from asking for a token. An answer that drips has no end, so none waits for ever."""
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise TemporaryGithubError("another request for a token has no answer yet")
        try:
            yield
        finally:
            self._lock.release()

    def _place(self, url: httpx2.URL) -> str:
        """``owner/repo`` or ``org``: what the token must be for.

        An organisation's token also finds the jobs of its repositories. It cannot manage the runners of one: that takes
        another permission.
        """
        found = re.search("/(?:repos/([^/]+/[^/]+)|orgs/([^/]+))/(actions/runs/)?", url.path)
        place = str(found[1] or found[2]) if found else self._path.path
        is_served = self._path.serves(place) if found and found[3] else place.lower() == self._path.path.lower()
        return self._path.path if is_served else place

    def _token_request(self, place: str) -> Generator[httpx2.Request, httpx2.Response, httpx2.Request]:
        """The request for a token, from the installation that serves a place."""
        response = yield from _answer(_request("GET", self._installation_url(place), self._jwt()))
        if response.status_code != 200:
            raise self._no_installation(response, place)
        installation = response.json()
        number = answers.field(installation, "id", int)
        self._check_account(installation, place)
        if installation.get("suspended_at"):
            raise self._suspended(place)
        body: dict[str, Any] = {
            "permissions": self._permissions(answers.field(installation, "permissions", dict), place),
            **_repository(response, place),
        }
        return _request("POST", f"{self._api}/app/installations/{number}/access_tokens", self._jwt(), body)

    def _installation_url(self, place: str) -> str:
        number = self._credentials.installation_id
        if number is not None and place == self._path.path:
            return f"{self._api}/app/installations/{number}"
        return f"{self._api}/{'repos' if '/' in place else 'orgs'}/{place}/installation"

    def _check_account(self, installation: dict[str, Any], place: str) -> None:
        """TokenError if the installation is another account's: ``installation-id`` may be any of the App's."""
        account, owner = answers.field(installation, "account", dict), place.partition("/")[0]
        # An enterprise has no login.
        login = str(account.get("login") or account.get("slug"))
        if "/app/installations/" in self._installation_url(place) and login.lower() != owner.lower():
            raise TokenError(
                f"app-secret: installation-id {self._credentials.installation_id} is the installation of {login}, "
                f"not of {owner}; correct installation-id, or path"
            )

    def _permissions(self, granted: dict[str, Any], place: str) -> dict[str, str]:
        """What to ask for. Without ``actions`` only the events of jobs lack their queue duration and conclusion."""
        needed = NEEDED["repository" if "/" in place else "organisation"]
        if granted.get(needed) not in ("write", "admin"):
            raise TokenError(
                f"{self._name} lacks the permission {needed}=write on {place}: "
                "add it to the App, and accept it in the installation"
            )
        return {needed: "write", **{name: level for name, level in WANTED.items() if name in granted}}

    def _new_token(self, place: str, response: httpx2.Response) -> _Token:
        if response.status_code != 201:
            raise self._no_token(response, place)
        answer = response.json()
        text = answers.field(answer, "token", str)
        # GitHub promises no form and no length.
        if not re.fullmatch(r"[\x21-\x7e]+", text):
            raise TemporaryGithubError("the answer has no valid token")
        redaction.note(text)
        end = answers.time(answer, "expires_at")
        life = (end - (_date(response) or datetime.now(timezone.utc))).total_seconds() if end else 2.0 * RESERVE
        return _Token(text, time.monotonic() + life - min(RESERVE, life / 2))

    def _jwt(self) -> str:
        now = int(time.time())
        claims = {"iat": now + JWT_BEGIN, "exp": now + JWT_BEGIN + JWT_LIFE, "iss": self._credentials.app_id}
        try:
            signed: str = jwt.encode(claims, self._credentials.private_key, algorithm="RS256")
        except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, AttributeError) as error:
            kind = type(error).__name__
            raise TokenError(f"app-secret: private-key is no RSA private key ({kind}); {NEW_KEY}") from None
        redaction.note(signed)
        return signed

    @property
    def _name(self) -> str:
        return f"the GitHub App {self._credentials.app_id}"

    def _no_installation(self, response: httpx2.Response, place: str) -> Exception:
        """Why GitHub does not show the installation."""
        ending = detail(response)
        if response.status_code == 404 and "integration not found" in ending.lower():
            host = urlsplit(self._api).hostname
            return TokenError(
                f"app-secret: {host} has no GitHub App with the app-id {self._credentials.app_id}{ending}; "
                "correct app-id or github-url"
            )
        if response.status_code == 404 and self._installation_url(place).endswith("/installation"):
            return TokenError(f"{self._name} is not installed on {place} (HTTP 404); {INSTALL}")
        if response.status_code == 404:
            number = self._credentials.installation_id
            return TokenError(
                f"app-secret: {self._name} has no installation with the installation-id {number} (HTTP 404); "
                "correct installation-id, or remove it"
            )
        return self._no_token(response, place)

    def _no_token(self, response: httpx2.Response, place: str) -> Exception:
        """Why GitHub gives no token."""
        status, ending = response.status_code, detail(response)
        if status == 401:
            return self._refused_jwt(response)
        if status == 403 and "suspended" in ending.lower():
            return self._suspended(place)
        if status == 422:
            return TokenError(
                f"the installation of {self._name} does not cover {place}, lacks a permission there, "
                f"or {place} was renamed (HTTP 422){ending}; add it to the installation, or set path"
            )
        if status == 404:
            return TokenError(f"{self._name} is no longer installed on {place} (HTTP 404); {INSTALL}")
        return status_error(response, place)

    def _refused_jwt(self, response: httpx2.Response) -> TokenError:
        """What GitHub's message is about: the id, the clock, or the key.

        Without a message it is the clock, if that is so wrong that the times of a JSON web token are.
        """
        ending, there = detail(response), _date(response)
        if "'issuer'" in ending.lower():
            return TokenError(
                f"app-secret: {urlsplit(self._api).hostname} has no GitHub App with the app-id "
                f"{self._credentials.app_id} (HTTP 401); correct app-id: a server before 3.15 needs the number"
            )
        ahead = time.time() - there.timestamp() if there else 0.0
        direction = "ahead of" if ahead > 0 else "behind"
        clock = f"the clock of this machine is {abs(ahead):.0f} s {direction} GitHub's"
        if there is None:
            clock = "the clock of this machine differs from GitHub's"
        is_too_far = ahead > -JWT_BEGIN - CLOCK_MARGIN or -ahead > JWT_BEGIN + JWT_LIFE - CLOCK_MARGIN
        if "'iat'" in ending or "'exp'" in ending or (is_too_far and not ending):
            action = "synchronise the clock, for example timedatectl set-ntp true"
            return TokenError(f"{clock} (HTTP 401){ending}; {action}")
        difference = f"; {clock}" if abs(ahead) > CLOCK_MARGIN else ""
        reason = f"private-key is not a key of {self._name} (HTTP 401){ending}{difference}"
        return TokenError(f"app-secret: {reason}; {NEW_KEY}")

    def _suspended(self, place: str) -> TokenError:
        return TokenError(f"the installation of {self._name} on {place} is suspended: unsuspend it at GitHub")


def _request(method: str, url: str, token: str, body: dict[str, Any] | None = None) -> httpx2.Request:
    headers = {
        "Accept": "application/vnd.github+json",
        "Accept-Encoding": "identity",
        "Authorization": f"Bearer {token}",
        # GitHub refuses requests without one.
        "User-Agent": "github-runner",
    }
    # httpx2 sets the time-outs of its client only on requests that are given to it, not on those that are yielded.
    extensions = {"timeout": TIMEOUTS.as_dict()}
    return httpx2.Request(method, url, headers=headers, json=body, extensions=extensions)


def _repository(response: httpx2.Response, place: str) -> dict[str, Any]:
    """Which repository the token is for; ``response`` has the installation.

    From the former name of a renamed repository GitHub redirects to its number. With a token for that its runners can
    still be listed by the former name.
    """
    if "/" not in place:
        return {}
    number = re.search("/repositories/([0-9]{1,18})/", response.url.path)
    return {"repository_ids": [int(number[1])]} if number else {"repositories": [place.partition("/")[2]]}


def _answer(request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, httpx2.Response]:
    """Have a request sent; httpx2 leaves it to the authorization to read the body of its answer."""
    response = yield request
    response.read()
    return response


def _date(response: httpx2.Response) -> datetime | None:
    """The time of GitHub's answer by its own clock."""
    try:
        date = parsedate_to_datetime(response.headers.get("date", ""))
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)
