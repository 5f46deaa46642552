"""How requests to GitHub's API are authorized."""

from collections.abc import Callable, Generator

import httpx2

import redaction
from errors import GithubApiError, TokenError
from gh.errors import detail

TokenFlow = Generator[httpx2.Request, httpx2.Response, str]


class Auth(httpx2.Auth):
    """Sends a token with each request. If GitHub answers 401, the token is renewed once and the request repeated."""

    def token(self, request: httpx2.Request) -> TokenFlow:
        """The token for a request. Requests that are needed to get it are yielded, and sent over the same connection.

        https://www.python-httpx.org/advanced/authentication/#custom-authentication-schemes
        """
        raise NotImplementedError

    def discard(self, token: str) -> bool:
        """Do not use this token again, because GitHub has refused it; returns whether there can be another one."""
        raise NotImplementedError

    def refusal(self, response: httpx2.Response) -> TokenError:
        """What to say of a 401 to a token that is another one than GitHub refused before."""
        raise NotImplementedError

    def held(self) -> tuple[str, float | None]:
        """The token that was used last for the configured path, and its end in UNIX seconds; None where it has none.

        TokenError where none was used yet.
        """
        raise NotImplementedError

    def give_up(self) -> list[str]:
        """Hand out the tokens that this process has obtained, to be revoked. The operator's is not among them."""
        return []

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Called by httpx2 for each request."""
        token = yield from self.token(request)
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == 401 and self.discard(token):
            request.headers["Authorization"] = f"Bearer {yield from self.token(request)}"
            response = yield request
            if response.status_code == 401:
                # httpx2 leaves it to the authorization to read the body.
                response.read()
                raise self.refusal(response)


class Pat(Auth):
    """A personal access token, which the operator has made."""

    def __init__(self, token: str) -> None:
        self._token = token
        redaction.note_received(token)

    def token(self, _: httpx2.Request) -> TokenFlow:
        """The token of the options, which needs no request."""
        if not self._token:
            raise TokenError("there is no GitHub token")
        yield from ()
        return self._token

    def held(self) -> tuple[str, float | None]:
        """The token of the options."""
        return self._token, None

    def discard(self, _: str) -> bool:
        """Only the operator can give another one."""
        return False


class HandedToken(Pat):
    """A GitHub App's token that a hook has handed to the agent; only a hook can replace it.

    ``refused`` gets the token if GitHub answers 401.
    """

    def __init__(self, token: str, refused: Callable[[str], None]) -> None:
        super().__init__(token)
        self._refused = refused

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Called by httpx2 for each request."""
        token = yield from self.token(request)
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == 401:
            # httpx2 leaves it to the authorization to read the body.
            response.read()
            self._refused(token)
            raise GithubApiError(
                f"GitHub refuses the token of the GitHub App (HTTP 401){detail(response)}; "
                "the next reconcile requests another one"
            )
