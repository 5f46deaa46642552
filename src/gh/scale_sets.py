"""The client of runner scale sets: GitHub reports how many runners jobs need, without an inbound port.

The service has no public description; its contract is GitHub's own client (https://github.com/actions/scaleset).
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

import redaction
from errors import GithubClientError, RateLimitError, RunnerBusyError, TemporaryGithubError, TokenError
from gh import answers
from gh import scale_set_answers as read
from gh.client import CALL_DEADLINE, DEFAULT_GROUP, api_url, attempts, trust, within_deadline
from gh.errors import TIMEOUTS, StatusError, check_redirect, retry_at, status_error, translated
from gh.scale_set_answers import Message, ScaleSet, Session
from models import GithubOrg, GithubPath

logger = logging.getLogger(__name__)

API_VERSION = "6.0-preview"
# GitHub holds a request for messages for some 50 seconds.
POLL_TIMEOUT, POLL_DEADLINE = 75.0, 90.0
# Seconds. The service's token is renewed this long before the end that it names, but not in its first minute, and after
# an hour at the latest.
RENEW_BEFORE, SHORTEST_USE, LONGEST_USE = 60.0, 60.0, 3600.0
# Seconds. The pauses between the attempts of one call are longer than this together: the last attempt comes after an
# outage of this length.
BRIDGED = 3.0
# Seconds. The longest pause after a 503. The answer may ask for an hour although GitHub works again much sooner, and
# without an answer for 5 minutes the demand is not known.
LONGEST_OUTAGE_PAUSE = 60.0
# GitHub's support finds a client by this text.
USER_AGENT = {"system": "github-runner-charm", "version": "1", "kind": "scaleset", "subsystem": "agent"}
# What the operator can do where GitHub gives the registration token and the service refuses it.
IF_IT_LASTS = "if this lasts, set scaling=fixed"

Answer = TypeVar("Answer")


class ScaleSetError(StatusError):
    """A refusal of the service; ``kind`` is the name of its exception, such as RunnerScaleSetNotFoundException."""

    def __init__(self, message: str, status: int, kind: str) -> None:
        super().__init__(message, status)
        self.kind = kind


class SetGoneError(ScaleSetError):
    """There is no such set: GitHub deletes sets by itself now and then."""


class SessionEndedError(ScaleSetError):
    """The session is over; a new one can be opened."""


class SessionConflictError(ScaleSetError):
    """Another session of the set is open, or ended less than a minute ago without being closed."""


KINDS: dict[str, type[ScaleSetError]] = {
    "RunnerScaleSetNotFoundException": SetGoneError,
    "RunnerScaleSetSessionConflictException": SessionConflictError,
    "RunnerScaleSetSessionExpiredException": SessionEndedError,
    "RunnerScaleSetSessionNotFoundException": SessionEndedError,
}


class _RefusedTokenError(StatusError):
    """401: the token of the service, or of a queue, is over."""


class _TooNewError(TemporaryGithubError):
    """401 or 403 for a registration token, which may be a moment too new."""


class ScaleSetClient:
    """The sets of one repository or organisation. It may be used by several threads.

    ``registration_token`` gets a token that registers runners. Errors are StatusError, TokenError (the operator must
    act), RateLimitError and TemporaryGithubError; the latter was retried for ``deadline`` seconds.
    """

    def __init__(
        self,
        github_url: str,
        path: GithubPath,
        registration_token: Callable[[], str],
        *,
        ca_certificates: Sequence[str] = (),
        deadline: float = CALL_DEADLINE,
    ) -> None:
        self.path = path
        self._url = github_url.rstrip("/")
        self._registration_token = registration_token
        self.deadline = deadline
        self._schemes = ("https", "http") if urlsplit(github_url).scheme == "http" else ("https",)
        self._lock = threading.Lock()
        self._service = self._token = ""  # nosec B105
        self._end = 0.0
        self._http = httpx2.Client(
            # A compressed answer could become larger than the limit when it is unpacked.
            headers={"Accept-Encoding": "identity", "User-Agent": json.dumps(USER_AGENT)},
            timeout=TIMEOUTS,
            event_hooks={"response": [answers.limit, check_redirect]},
            verify=trust(ca_certificates),
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def connect(self) -> None:
        """See that the service can be reached, and that it accepts the credentials."""
        self.access(time.monotonic() + self.deadline)

    def group_id(self) -> int:
        """The id of the path's runner group; TokenError if there is not exactly one of that name."""
        if not isinstance(self.path, GithubOrg) or self.path.group.lower() == "default":
            return DEFAULT_GROUP
        name = self.path.group
        found = read.values(self._get("runtime/runnergroups/", groupName=name), lambda item: read.number(item, "id"))
        if not found:
            place = self.path.path
            raise TokenError(f"group: {place} has no runner group named {name!r}; create it at GitHub, or set group")
        if len(found) > 1:
            raise TokenError(
                f"group: {self.path.path} has {len(found)} runner groups named {name!r}; rename one of them at GitHub"
            )
        return found[0]

    def sets(self) -> list[ScaleSet]:
        """All sets of the path."""
        return read.values(self._get("runtime/runnerscalesets"), read.scale_set)

    def find(self, name: str, group: int) -> ScaleSet | None:
        """The set of this name in a group."""
        answer = self._get("runtime/runnerscalesets", runnerGroupId=str(group), name=name)
        return next((found for found in read.values(answer, read.scale_set) if found.name == name), None)

    def create(self, name: str, group: int, labels: Sequence[str]) -> ScaleSet:
        """Make a set, whose first label is its name; if there is one of this name and group, that one.

        An Enterprise Server before 3.21 drops the other labels: compare those of the answer.
        """
        all_labels = [{"name": label, "type": "System"} for label in dict.fromkeys((name, *labels))]
        setting = {"disableUpdate": False}
        body = {"name": name, "runnerGroupId": group, "labels": all_labels, "RunnerSetting": setting}
        try:
            return read.scale_set(self._admin("POST", "runtime/runnerscalesets", body))
        except ScaleSetError as error:
            found = self.find(name, group) if error.kind == "RunnerScaleSetExistsException" else None
            if found is None:
                raise
            return found

    def move(self, set_id: int, group: int) -> ScaleSet:
        """Move a set to another group of its organisation."""
        body = {"runnerGroupId": group}
        return read.scale_set(self._admin("PATCH", f"runtime/runnerscalesets/{set_id}", body))

    def delete(self, set_id: int) -> None:
        """Delete a set; one that is gone counts as done. Its busy runners finish their jobs."""
        try:
            self._admin("DELETE", f"runtime/runnerscalesets/{set_id}")
        except SetGoneError:
            logger.info("The scale set %s is gone already", set_id)

    def delete_sets(self, unwanted: Callable[[str], bool]) -> None:
        """Delete the sets whose name is ``unwanted``, which is called right before each deletion.

        One that cannot be deleted does not keep the others. The last error is raised once all were tried.
        """
        failure: GithubClientError | None = None
        for item in self.sets():
            if not unwanted(item.name):
                continue
            try:
                self.delete(item.set_id)
                logger.info("Removed: the scale set %s", item.name)
            except RateLimitError:
                # GitHub asks for no more requests at all.
                raise
            except GithubClientError as error:
                logger.warning("The scale set %s is not deleted: %s", item.name, error)
                failure = error
        if failure is not None:
            raise failure

    def open_session(self, set_id: int, owner: str) -> "Listener":
        """Open the only session of a set; SessionConflictError while there is another one."""
        answer = self._admin("POST", f"runtime/runnerscalesets/{set_id}/sessions", {"ownerName": owner})
        return Listener(self, set_id, read.session(answer, self._schemes))

    def renewed(self, set_id: int, session: str) -> Session:
        """The session with a new token, and today's statistics."""
        answer = self._admin("PATCH", f"runtime/runnerscalesets/{set_id}/sessions/{session}")
        return read.session(answer, self._schemes)

    def close_session(self, set_id: int, session: str) -> None:
        """Close a session; one that is gone counts as done."""
        try:
            self._admin("DELETE", f"runtime/runnerscalesets/{set_id}/sessions/{session}")
        except (SetGoneError, SessionEndedError):
            logger.info("The session of the scale set %s is over already", set_id)

    def acquirable(self, set_id: int) -> list[int]:
        """The requests of jobs that an Enterprise Server offers a set, and that nobody has acquired."""
        try:
            return read.requests(self._get(f"runtime/runnerscalesets/{set_id}/acquirablejobs"))
        except (ScaleSetError, TokenError) as error:
            # GitHub's own service assigns the jobs by itself, and has no such request.
            if getattr(error, "status", None) != 404:
                raise
            return []

    def jit_configuration(self, set_id: int, name: str) -> tuple[int, str]:
        """Register a runner of a set; its id, and the configuration of its agent (base64).

        StatusError with 409 if the name is taken.
        """
        body = {"name": name, "workFolder": "_work"}
        answer = self._admin("POST", f"runtime/runnerscalesets/{set_id}/generatejitconfig", body)
        encoded: str = answers.field(answer, "encodedJITConfig", str)
        redaction.note_received(encoded)
        return read.number(answers.field(answer, "runner", dict), "id"), encoded

    def record(self, name: str) -> int | None:
        """The id of the runner of this name; None where there is none."""
        answer = self._get("distributedtask/pools/0/agents", agentName=name)
        found = read.values(answer, lambda item: (read.text(item, "name"), read.number(item, "id")))
        return dict(found).get(name)

    def delete_record(self, runner_id: int) -> None:
        """Deregister a runner; one that is gone counts as done. RunnerBusyError while it runs a job."""
        try:
            self._admin("DELETE", f"distributedtask/pools/0/agents/{runner_id}")
        except ScaleSetError as error:
            if error.kind == "JobStillRunningException":
                raise RunnerBusyError(f"runner {runner_id} of {self.path.path} runs a job") from error
            if error.status != 404:
                raise

    def send(
        self,
        method: str,
        url: str,
        token: str,
        *,
        body: Any = None,
        headers: dict[str, str] | None = None,
        end: float,
        timeout: httpx2.Timeout = TIMEOUTS,
    ) -> httpx2.Response:
        """One request, without retries, until ``end`` (of time.monotonic); a refusal is raised."""
        sent = {"Authorization": token, **(headers or {})}
        request = self._http.build_request(method, url, json=body, headers=sent, timeout=timeout)
        with translated(url, self.path.path):
            response = within_deadline(end, url, partial(self._http.send, request))
        if response.status_code >= 300:
            raise _refusal(response, self.path.path)
        return response

    def _get(self, place: str, **query: str) -> Any:
        return self._admin("GET", place, **query)

    def _admin(self, method: str, place: str, body: Any = None, **query: str) -> Any:
        """A request with the service's token and its retries; after a 401 once more with a new token."""
        end = time.monotonic() + self.deadline
        refused = 0
        for attempt in attempts(end):
            # Not inside of the attempt: getting a token has its own attempts.
            service, token = self.access(end)
            with attempt:
                try:
                    return self._once(method, extended(service, f"/_apis/{place}", **query), token, body, end)
                except _RefusedTokenError as error:
                    self._discard(token, end)
                    refused += 1
                    kind = TemporaryGithubError if refused == 1 else TokenError
                    raise kind(f"GitHub refuses its own token for scale sets: {error}; {IF_IT_LASTS}") from error
        raise AssertionError("unreachable")

    def _once(self, method: str, url: str, token: str, body: Any, end: float) -> Any:
        versioned = extended(url, **{"api-version": API_VERSION})
        return read.document(self.send(method, versioned, f"Bearer {token}", body=body, end=end))

    @contextmanager
    def _alone(self, end: float) -> Iterator[None]:
        """Let one thread at a time get a token. Each of the others waits until the end of its own call at most."""
        if not self._lock.acquire(timeout=max(0.0, end - time.monotonic())):
            raise TemporaryGithubError("another request for a token has no answer yet")
        try:
            yield
        finally:
            self._lock.release()

    def _discard(self, token: str, end: float) -> None:
        with self._alone(end):
            if self._token == token:
                self._end = 0.0

    def access(self, end: float) -> tuple[str, str]:
        """The service's address and its token, which is renewed before its end."""
        with self._alone(end):
            if time.monotonic() >= self._end:
                self._connect(end)
            # Only the newest received values are masked: the token must be one of them while it is used.
            redaction.note_received(self._token)
            return self._service, self._token

    def _connect(self, end: float) -> None:
        """Exchange a registration token for the service's token. It may take a moment until a new one is accepted."""
        url = f"{api_url(self._url)}/actions/runner-registration"
        body = {"url": f"{self._url}/{self.path.path}", "runner_event": "register"}
        registration = f"RemoteAuth {within_deadline(end, url, self._registration_token)}"
        try:
            for attempt in attempts(end):
                with attempt:
                    found = read.document(self._register(url, registration, body, end))
                    self._service = read.url(found, "url", self._schemes)
                    self._token = read.token(found, "token")
        except _TooNewError as error:
            place = self.path.path
            raise TokenError(f"no access to the runner scale sets of {place}: {error}; {IF_IT_LASTS}") from error
        left = read.life(self._token) - RENEW_BEFORE
        # If the clock is wrong, each request would get a new token, or one token would be used for ever.
        use = SHORTEST_USE if math.isnan(left) else min(LONGEST_USE, max(SHORTEST_USE, left))
        self._end = time.monotonic() + use

    def _register(self, url: str, registration: str, body: dict[str, str], end: float) -> httpx2.Response:
        try:
            return self.send("POST", url, registration, body=body, end=end)
        except (_RefusedTokenError, TokenError) as error:
            if isinstance(error, _RefusedTokenError) or getattr(error, "status", 403) == 403:
                raise _TooNewError(str(error)) from error
            raise


class Listener:
    """A session of a set, with the place in its messages. One thread uses it; another one may close it meanwhile."""

    def __init__(self, client: ScaleSetClient, set_id: int, session: Session) -> None:
        self.set_id = set_id
        self.session = session
        self._client = client
        # Of this session only: the ids begin anew when a set is made again.
        self._last_message_id = 0

    def message(self, capacity: int) -> Message | None:
        """The next message, or None after the time that GitHub waits for one (some 50 seconds).

        ``capacity`` is how many runners the unit can have in all. It is at least 1: with 0 a job may never come.
        SessionEndedError or SetGoneError where the session is over. It does not retry.
        """
        query = {"lastMessageId": str(self._last_message_id)} if self._last_message_id else {}
        headers = {
            "Accept": f"application/json; api-version={API_VERSION}",
            "X-ScaleSetMaxCapacity": str(max(1, capacity)),
        }
        timeout = httpx2.Timeout(POLL_TIMEOUT, connect=TIMEOUTS.connect)
        end = time.monotonic() + POLL_DEADLINE
        response = self._queue("GET", "", end, query=query, headers=headers, timeout=timeout)
        if response.status_code == 202:
            return None
        found = read.message(read.document(response))
        self._last_message_id = found.message_id
        return found

    def delete(self, message_id: int) -> None:
        """Delete a message, so that it does not come again."""
        self._queue("DELETE", f"/{message_id}", time.monotonic() + CALL_DEADLINE)

    def acquire(self, requests: Sequence[int]) -> int:
        """Take jobs, which only an Enterprise Server asks for; returns how many were granted."""
        end = time.monotonic() + CALL_DEADLINE
        service, _ = self._client.access(end)
        place = f"/_apis/runtime/runnerscalesets/{self.set_id}/acquirejobs"
        url = extended(service, place, **{"api-version": API_VERSION})
        try:
            answer = self._sent("POST", lambda: url, end, body=list(requests))
        except (ScaleSetError, TokenError) as error:
            # GitHub's own service assigns the jobs by itself, and has no such request.
            if getattr(error, "status", None) != 404 or isinstance(error, SessionEndedError):
                raise
            return 0
        return len(answers.field(read.document(answer), "value", list))

    def acquirable(self) -> list[int]:
        """The requests of jobs that were offered before this session, and that nobody has acquired."""
        return self._client.acquirable(self.set_id)

    def renew(self) -> None:
        """Get another token for the queue, and today's statistics."""
        self.session = self._client.renewed(self.set_id, self.session.id)

    def close(self) -> None:
        """End the session, so that the next one can be opened at once."""
        self._client.close_session(self.set_id, self.session.id)

    def _queue(self, method: str, path: str, end: float, query: dict[str, str] | None = None, **more: Any) -> Any:
        """A request of the queue."""
        try:
            # A renewed session may have another address.
            return self._sent(method, lambda: extended(self.session.url, path, **(query or {})), end, **more)
        except StatusError as error:
            if error.status in (400, 404) and not isinstance(error, (SetGoneError, SessionEndedError)):
                raise SessionEndedError(str(error), error.status, getattr(error, "kind", "")) from error
            raise

    def _sent(self, method: str, url: Callable[[], str], end: float, **more: Any) -> httpx2.Response:
        """A request with the session's token; after a 401 once more with a new one."""
        for is_last in (False, True):
            try:
                return self._client.send(method, url(), f"Bearer {self.session.token}", end=end, **more)
            except _RefusedTokenError as error:
                if is_last:
                    raise SessionEndedError(f"the token of the session is refused: {error}", 401, "") from error
                self._renew_in_between()
        raise AssertionError("unreachable")

    def _renew_in_between(self) -> None:
        """Renew the session for another request. A 404 is about the session then, and not an answer to that request."""
        try:
            self.renew()
        except SetGoneError:
            raise
        except StatusError as error:
            if error.status == 404:
                raise SessionEndedError(str(error), error.status, getattr(error, "kind", "")) from error
            raise


def extended(url: str, path: str = "", **query: str) -> str:
    """An address with more path and more query; what it has of both stays."""
    parts = httpx2.URL(url)
    longer = parts.copy_with(path=parts.path.rstrip("/") + path) if path else parts
    return str(longer.copy_merge_params(query))


def _refusal(response: httpx2.Response, path: str) -> GithubClientError:
    """The error of an answer that is not a success. The log has the numbers by which GitHub's support finds it."""
    kind, message = _exception(response)
    ids = [response.headers.get(name, "") for name in ("activityid", "x-github-request-id")]
    known = [read.text({"id": id_}, "id") for id_ in ids if id_]
    logger.info("%s: HTTP %s %s (%s)", path, response.status_code, kind, ", ".join(known))
    status = response.status_code
    text = f"{kind or 'request refused'} (HTTP {status}){': ' if message else ''}{message}"
    if kind in KINDS:
        return KINDS[kind](text, status, kind)
    if status == 401:
        return _RefusedTokenError(text, status)
    if status in (400, 409) or (kind and status < 500 and status != 429):
        return ScaleSetError(text, status, kind)
    if status == 503 and "retry-after" in response.headers:
        return _unavailable(retry_at(response))
    return status_error(response, path)


def _unavailable(end: datetime) -> GithubClientError:
    """The error of a service that asks to be left alone until a time. The attempts of one call bridge a short one."""
    now = datetime.now(timezone.utc)
    end = min(end, now + timedelta(seconds=LONGEST_OUTAGE_PAUSE))
    text = f"server error (HTTP 503), to be asked again at {end:%H:%M:%S} UTC"
    is_long = (end - now).total_seconds() > BRIDGED
    return RateLimitError(text, end) if is_long else TemporaryGithubError(text)


def _exception(response: httpx2.Response) -> tuple[str, str]:
    """The name of the service's exception and its message, without secrets."""
    try:
        body = read.document(response)
    except TemporaryGithubError:
        body = {}
    name = read.text(body, "typeName").partition(",")[0].rpartition(".")[2]
    return name, read.text(body, "message")
