"""How requests to GitHub are authorized."""

from collections.abc import Callable, Iterator

import httpx2
import pytest

from errors import GithubClientError, TokenError
from gh.auth import Auth, HandedToken, Pat, TokenFlow

URL = "https://api.github.example/repos/octo-org/demo/actions/runners"


class Renewable(Auth):
    """A token that is another one after each refusal, up to a number of tokens."""

    def __init__(self, tokens: int) -> None:
        self.refused: list[str] = []
        self._tokens = tokens

    def token(self, request: httpx2.Request) -> TokenFlow:
        yield from ()
        return f"token-{len(self.refused) + 1}"

    def discard(self, token: str) -> bool:
        self.refused.append(token)
        return len(self.refused) < self._tokens

    def refusal(self, response: httpx2.Response) -> TokenError:
        return TokenError(f"refused for good: {response.text}")


class Body(httpx2.SyncByteStream):
    """A body that is not read before somebody asks for it, as over a network."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"body"


def sent(auth: Auth, answer: Callable[[str], int]) -> tuple[list[str], int | str]:
    """The authorizations of the requests that one call makes, and the status or the error that it ends with."""
    seen: list[str] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["Authorization"])
        return httpx2.Response(answer(seen[-1]), stream=Body())

    with httpx2.Client(auth=auth, transport=httpx2.MockTransport(handle)) as client:
        try:
            return seen, client.post(URL).status_code
        except GithubClientError as error:
            return seen, f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("status", [200, 403, 404, 500])
def test_only_401_renews_a_token(status: int) -> None:
    """Any other answer is the answer, whatever it says about permissions."""
    assert sent(Renewable(9), lambda _: status) == (["Bearer token-1"], status)


def test_a_refused_token_is_renewed_once() -> None:
    """The request is repeated with the new token, and not a third time."""
    assert sent(Renewable(9), lambda token: 401 if token == "Bearer token-1" else 201) == (
        ["Bearer token-1", "Bearer token-2"],
        201,
    )
    assert sent(Renewable(9), lambda _: 401) == (
        ["Bearer token-1", "Bearer token-2"],
        "TokenError: refused for good: body",
    )


def test_a_personal_access_token_is_not_renewed() -> None:
    """Only the operator can give another one: the refusal is the answer."""
    assert sent(Pat("ghp_secret"), lambda _: 401) == (["Bearer ghp_secret"], 401)


def test_a_refused_token_of_an_app_is_told() -> None:
    """It was handed to the agent by a hook: it is no credential that an operator could replace."""
    refused: list[str] = []
    auth = HandedToken("ghs_secret", refused.append)

    assert (sent(auth, lambda _: 403), refused) == ((["Bearer ghs_secret"], 403), [])
    seen, text = sent(auth, lambda _: 401)

    assert (seen, refused) == (["Bearer ghs_secret"], ["ghs_secret"])
    assert str(text).startswith("GithubApiError: GitHub refuses the token of the GitHub App (HTTP 401)")


def test_without_a_token_nothing_is_sent() -> None:
    """A unit that is cleared although its options are not valid makes no request."""
    assert sent(Pat(""), lambda _: 200) == ([], "TokenError: there is no GitHub token")
