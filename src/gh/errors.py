"""Converts GitHub's error answers and connection failures to the charm's errors. Their texts contain no token."""

import http
import json
import re
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from socket import gaierror
from urllib.parse import urlsplit

import httpx2

from errors import GithubApiError, GithubClientError, RateLimitError, TemporaryGithubError, TokenError
from redaction import line

# In seconds.
CONNECT_TIMEOUT, TIMEOUT = 5, 15
TIMEOUTS = httpx2.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT)
# Longest message of GitHub, and longest text with a URL, in characters; a status has 200.
MESSAGE_LIMIT = 200
LIMIT_WORDS = re.compile("rate limit|abuse|secondary", re.IGNORECASE)
# Where GitHub names no time (https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api).
LIMIT_PAUSE = 60.0
# What the operator can do where GitHub hides or refuses a path.
ACCESS = "correct path, or give the token or the App access to it"
# X509_V_ERR_*: self-signed, or signed by an authority that is not known.
UNKNOWN_ISSUER = (18, 19, 20, 21)


class StatusError(GithubApiError):
    """An answer whose status code the client evaluates."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotVisibleError(TokenError, StatusError):
    """404: GitHub's answer for what does not exist and for what the token cannot see."""

    def __init__(self, path: str, detail: str) -> None:
        StatusError.__init__(
            self, f"{path} does not exist, or the token cannot see it (HTTP 404){detail}; {ACCESS}", 404
        )


@contextmanager
def translated(url: str, path: str | None) -> Iterator[None]:
    """Raise errors of ghapi and httpx2 as the charm's.

    ``path`` is what the token must be able to see; None for a download, which the token is not sent to.
    """
    try:
        yield
    except GithubClientError:
        raise
    except OSError as error:
        raise GithubApiError(f"{path or 'the runner binary'}: {error}") from error
    except Exception as error:
        raise _translate(error, url, path) from None


def _translate(error: Exception, url: str, path: str | None) -> GithubClientError:
    known = (GithubClientError, httpx2.HTTPError, httpx2.StreamError, ValueError)
    # ghapi wraps what its transport raises.
    cause = error if isinstance(error, known) else error.__cause__ or error.__context__
    if isinstance(cause, GithubClientError):
        return cause
    if isinstance(cause, httpx2.HTTPStatusError):
        return status_error(cause.response, path)
    if isinstance(cause, (httpx2.RequestError, httpx2.StreamError)):
        return _connection_error(cause, url)
    if isinstance(cause, (json.JSONDecodeError, UnicodeDecodeError)):
        return TemporaryGithubError(f"the answer is not JSON ({type(cause).__name__})")
    if isinstance(cause, ValueError):
        return TemporaryGithubError(f"the answer is not valid ({type(cause).__name__})")
    return GithubApiError(f"the answer was not understood ({type(error).__name__})")


def check_redirect(response: httpx2.Response) -> None:
    """Allow a redirect of a GET within the same origin; otherwise raise TokenError with the target.

    Another method would become a GET, and another origin must not get the token.
    """
    if not response.has_redirect_location:
        return
    request = response.request
    target = request.url.join(response.headers["location"])
    if request.method == "GET" and target.origin == request.url.origin:
        return
    shown = line(str(target), MESSAGE_LIMIT)
    if target.origin == request.url.origin:
        raise TokenError(f"the repository was renamed or moved, set path to its new name (now {shown})")
    raise TokenError(f"the server redirects to {shown}; set github-url to the address of the GitHub itself")


def status_error(response: httpx2.Response, path: str | None) -> GithubClientError:
    """The error of an answer that is not a success, with GitHub's own message."""
    status, message = response.status_code, _message(response)
    if status == 429 or (status == 403 and _is_limit(response, message)):
        end = retry_at(response)
        return RateLimitError(f"rate limit reached until {end:%H:%M:%S} UTC", end)
    ending = detail(response)
    if status >= 500:
        return TemporaryGithubError(f"server error (HTTP {status}){ending}")
    if path is None:
        return StatusError(f"the runner binary cannot be downloaded (HTTP {status})", status)
    if status == 401:
        action = "put a new one into the secret, or into the option token"
        return TokenError(f"the GitHub token is invalid or expired (HTTP 401){ending}; {action}")
    if status == 403:
        return _denied(response, path, message)
    if status == 404:
        return NotVisibleError(path, ending)
    return StatusError(f"request refused (HTTP {status}){ending}", status)


def detail(response: httpx2.Response) -> str:
    """GitHub's message as the end of an error's text; empty if it only names the status."""
    message = _message(response)
    return f": {message}" if message else ""


def _message(response: httpx2.Response) -> str:
    """GitHub's message as one printable line without secrets; empty if it only names the status."""
    try:
        body = response.json()
    except (ValueError, RecursionError, httpx2.StreamError):  # StreamError: a download, whose body was not read
        return ""
    text = body.get("message") if isinstance(body, dict) else None
    if not isinstance(text, str):
        return ""
    with suppress(ValueError):
        if line(text).rstrip(".") == http.HTTPStatus(response.status_code).phrase:
            return ""
    return line(text, MESSAGE_LIMIT)


def _is_limit(response: httpx2.Response, message: str) -> bool:
    """Whether a 403 is a rate limit. The secondary limit may have no header that tells it from a missing permission."""
    by_header = response.headers.get("x-ratelimit-remaining") == "0" or "retry-after" in response.headers
    return by_header or LIMIT_WORDS.search(message) is not None


def _denied(response: httpx2.Response, path: str, message: str) -> TokenError:
    """A 403 that is no limit. If GitHub gives a URL at which to authorize the token, the text keeps all of the URL."""
    sso = re.search(r"url=(https?://[!-~]+)", response.headers.get("x-github-sso", ""))
    if sso is None:
        reason = message or "the token lacks permission"
        # https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api
        needed = line(response.headers.get("x-accepted-github-permissions", ""), MESSAGE_LIMIT // 2)
        needs = f"; the request needs {needed}" if needed else ""
        return TokenError(f"no access to the runners of {path} (HTTP 403): {reason}{needs}; correct this at GitHub")
    text = f"authorize the token for single sign-on: {sso[1]} (HTTP 403)"
    room = MESSAGE_LIMIT - len(text) - 2
    return TokenError(f"{text}: {message[:room]}" if message and room > 0 else text)


def retry_at(response: httpx2.Response) -> datetime:
    """When to try again: from GitHub's headers, at least a second (also for a NaN) and at most a day from now."""
    now = datetime.now(timezone.utc)
    seconds = LIMIT_PAUSE
    with suppress(ValueError, OverflowError):
        if "retry-after" in response.headers:
            seconds = float(response.headers["retry-after"])
        # Otherwise the header is about the primary limit, which was not reached.
        elif response.headers.get("x-ratelimit-remaining") == "0" and "x-ratelimit-reset" in response.headers:
            seconds = float(response.headers["x-ratelimit-reset"]) - now.timestamp()
    return now + timedelta(seconds=min(86400.0, max(1.0, seconds)))


def _connection_error(error: httpx2.RequestError | httpx2.StreamError, url: str) -> GithubApiError:
    """Name the host and the cause: the certificate, the name, the port, or the time."""
    with suppress(RuntimeError, AttributeError):  # httpx2 raises if the error has no request
        url = str(error.request.url)  # type: ignore[union-attr]
    host, peer = urlsplit(url).hostname, _peer(url)
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate_error(cause, str(host))
        if isinstance(cause, gaierror):
            name = peer.rpartition(":")[0]
            return TemporaryGithubError(f"the host name of {name} cannot be resolved ({cause.strerror})")
        if isinstance(cause, ConnectionRefusedError):
            return TemporaryGithubError(f"{peer} refuses the connection: no service listens on this port")
    if isinstance(error, httpx2.ConnectTimeout):
        return TemporaryGithubError(f"no connection to {peer} within {CONNECT_TIMEOUT} s")
    if isinstance(error, httpx2.TimeoutException):
        return TemporaryGithubError(f"no answer from {host} within {TIMEOUT} s")
    if isinstance(error, httpx2.ProxyError):
        return TemporaryGithubError(f"{peer} does not connect to {host}")
    return TemporaryGithubError(f"the connection to {peer} failed ({type(error).__name__})")


def _certificate_error(error: ssl.SSLCertVerificationError, host: str) -> GithubApiError:
    if error.verify_code in UNKNOWN_ISSUER:
        return GithubApiError(
            f"the certificate of {host} is not trusted ({error.verify_message}); "
            "set ca-certificates to the certificates of its authority"
        )
    return GithubApiError(f"the certificate of {host} is not valid ({error.verify_message})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _peer(url: str) -> str:
    """Host and port that the charm connects to: those of the proxy, where the environment has one for this URL."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        via = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        return f"the proxy {via.hostname}:{via.port or 80}"
    return f"{parts.hostname}:{parts.port or (80 if parts.scheme == 'http' else 443)}"
