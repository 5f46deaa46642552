"""The client of GitHub's API: the only user of ghapi.

https://docs.github.com/en/rest/actions/self-hosted-runners
"""

import hashlib
import logging
import math
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import stamina

import redaction
from errors import (
    ConfigurationError,
    GithubApiError,
    JobNotFoundError,
    RunnerBusyError,
    TemporaryGithubError,
    TokenError,
)
from gh import errors
from gh.errors import NotVisibleError, StatusError, check_redirect, translated
from models import Arch, GithubPath, GithubRepo, GithubRunner, RunnerApplication, WorkflowJob
from system import within

if TYPE_CHECKING:
    from ghapi.core import GhSyncTransport

logger = logging.getLogger(__name__)

TIMEOUT = httpx2.Timeout(errors.TIMEOUT, connect=errors.CONNECT_TIMEOUT)
CALL_DEADLINE = 45.0
# A list of many pages and a download take their time even where all is well.
LONG_DEADLINE = 600.0
ATTEMPTS = 4
PER_PAGE = 100
MOST_PAGES = 1000
# A run may have thousands of jobs, and a job may name any run.
JOB_PAGES = 5
DOWNLOAD_LIMIT = 1 << 30
# Of one answer, in bytes: a page of 100 runners has some 100 KiB.
ANSWER_LIMIT = 16 << 20

Answer = TypeVar("Answer")


def api_url(github_url: str) -> str:
    """The API's base for a GitHub (https://docs.github.com/en/rest/using-the-rest-api/getting-started-with-the-rest-api)."""
    parts = urlsplit(github_url)
    host = (parts.hostname or "").lower()
    if host == "github.com":
        return "https://api.github.com"
    if host.endswith(".ghe.com"):
        return f"https://api.{host}"
    return f"{github_url.rstrip('/')}/api/v3"


class GithubClient:
    """What this charm asks GitHub, over one connection, which is made when the first question is asked.

    No call lasts longer than ``deadline`` seconds with all its retries, no list or download than ``long_deadline``.
    """

    def __init__(
        self,
        github_url: str,
        token: str,
        *,
        ca_certificates: Sequence[str] = (),
        deadline: float = CALL_DEADLINE,
        long_deadline: float = LONG_DEADLINE,
    ) -> None:
        self._url = api_url(github_url)
        self._token = token
        redaction.note(token)
        self._ca_certificates = ca_certificates
        self._deadline = deadline
        self._long_deadline = long_deadline
        self._transport: GhSyncTransport | None = None
        self.quota_left: int | None = None
        """What the last answer said is left of the token's requests."""

    def close(self) -> None:
        """Give the connection back."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def list_runners(self, path: GithubPath, wanted: Callable[[str], bool]) -> list[GithubRunner]:
        """The path's runners whose name is wanted; others are dropped page by page."""
        found: dict[int, GithubRunner] = {}
        for item in self._pages(self._operation("list_self_hosted_runners_for_{}", path), "runners", path.path):
            runner = _read_runner(item)
            if wanted(runner.name):
                found[runner.runner_id] = runner
        return list(found.values())

    def find_runner(self, path: GithubPath, name: str) -> GithubRunner | None:
        """One runner by its whole name."""
        answer = self._call(self._operation("list_self_hosted_runners_for_{}", path, name=name), path.path)
        runners = map(_read_runner, _field(answer, "runners", list))
        return next((runner for runner in runners if runner.name == name), None)

    def runner(self, path: GithubPath, runner_id: int) -> GithubRunner | None:
        """One runner by its id; None only if GitHub confirms that it is gone (see ``_confirm_gone``)."""
        operation = self._operation("get_self_hosted_runner_for_{}", path, runner_id=runner_id)
        try:
            return _read_runner(self._call(operation, path.path))
        except NotVisibleError:
            self._confirm_gone(path)
            return None

    def runner_is_gone(self, path: GithubPath, runner_id: int) -> bool:
        """Whether GitHub no longer has the runner, so that it can never get a job."""
        return self.runner(path, runner_id) is None

    def _confirm_gone(self, path: GithubPath) -> None:
        """Raise unless the token can list the path's runners now.

        404 is also the answer for a path that the token cannot see, for example since a moment ago.
        """
        answer = self._call(self._operation("list_self_hosted_runners_for_{}", path), path.path, per_page=1)
        _field(answer, "total_count", int)

    def registration_token(self, path: GithubPath) -> str:
        """A token with which runners can register for one hour."""
        answer = self._call(self._operation("create_registration_token_for_{}", path), path.path)
        token: str = _field(answer, "token", str)
        redaction.note(token)
        return token

    def check_group(self, path: GithubPath) -> None:
        """ConfigurationError if an organisation lacks the runner group; nothing where GitHub does not show groups."""
        if isinstance(path, GithubRepo) or path.group.lower() == "default":
            return
        operation = self._operation("list_self_hosted_runner_groups_for_org", path)
        try:
            found = {str(item.get("name")).lower() for item in self._pages(operation, "runner_groups", path.path)}
        except TokenError as error:
            # A plan without groups, or a token that may register runners and not list groups: config.sh decides.
            logger.info("The runner groups of %s cannot be listed: %s", path.path, error)
            return
        if path.group.lower() not in found:
            raise ConfigurationError(f"group: {path.path} has no runner group {path.group!r} that GitHub shows")

    def delete_runner(self, path: GithubPath, runner_id: int) -> None:
        """Deregister; a runner that is confirmed to be gone counts as done. RunnerBusyError while it runs a job."""
        operation = self._operation("delete_self_hosted_runner_from_{}", path, runner_id=runner_id)
        try:
            self._call(operation, path.path)
        except NotVisibleError:
            self._confirm_gone(path)
        except StatusError as error:
            if error.status == 422:
                raise RunnerBusyError(f"runner {runner_id} of {path.path} runs a job: {error}") from error
            raise

    def application(self, path: GithubPath, arch: Arch) -> RunnerApplication:
        """The runner application that GitHub offers for Linux on an architecture."""
        answer = self._call(self._operation("list_runner_applications_for_{}", path), path.path)
        if not isinstance(answer, list):
            raise GithubApiError("the list of runner binaries is not a list")
        for item in answer:
            if _field(item, "os", str) == "linux" and _field(item, "architecture", str) == arch.value:
                checksum = item.get("sha256_checksum")
                if not isinstance(checksum, str) or not re.fullmatch("[0-9a-fA-F]{64}", checksum):
                    raise GithubApiError("the runner binary is offered without a SHA-256 checksum")
                filename = _field(item, "filename", str)
                # It becomes the name of a file beside others: no path, and none of their names.
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.tar\.gz", filename):
                    raise GithubApiError("the runner binary is offered with an invalid file name")
                url, token = _field(item, "download_url", str), _download_token(item)
                return RunnerApplication(url, filename, checksum.lower(), token)
        raise GithubApiError(f"no runner binary is offered for linux {arch.value}")

    def is_deprecated(self, path: GithubPath, version: str) -> bool | None:
        """Whether GitHub refuses a version of the runner, at its registration or later.

        None where it cannot be known: older Enterprise Servers lack the endpoint, and GitHub may not know the version.
        """
        if not re.fullmatch("[0-9]{1,9}([.][0-9]{1,9}){1,3}", version):
            return None
        operation = self._operation("get_runner_version_deprecation_for_{}", path, version=version)
        try:
            answer = self._call(operation, path.path)
        except NotVisibleError:
            return None
        now = datetime.now(timezone.utc)
        times = (_time(answer, key) for key in ("registration_deprecates_at", "runtime_deprecates_at"))
        return any(time is not None and time <= now for time in times)

    def download(self, application: RunnerApplication, target: Path) -> None:
        """Fetch into a new file; GithubApiError if it does not come or is not what the checksum says."""
        end = time.monotonic() + self._long_deadline
        for attempt in _attempts(end):
            with attempt, translated(application.url, None):
                _within(end, application.url, lambda: _fetch(application, target, end, self._trust))

    def job(self, repository: str, run_id: str, runner_name: str, timeout: float = CALL_DEADLINE) -> WorkflowJob:
        """The job of a workflow run's latest attempt that a runner ran; JobNotFoundError if there is none.

        At most JOB_PAGES pages are read, for at most ``timeout`` seconds.
        """
        if not re.fullmatch("[0-9]{1,20}", run_id):
            raise JobNotFoundError(f"{run_id!r} is no workflow run's id")
        owner, repo = repository.split("/")
        operation = self._operation(
            "list_jobs_for_workflow_run", None, owner=owner, repo=repo, run_id=int(run_id), filter="latest"
        )
        try:
            for item in self._pages(operation, "jobs", repository, JOB_PAGES, timeout):
                if item.get("runner_name") == runner_name:
                    return _read_job(item)
        except TokenError as error:
            raise JobNotFoundError(f"workflow run {run_id} of {repository} is not to be seen") from error
        raise JobNotFoundError(f"no job of workflow run {run_id} of {repository} was run by {runner_name}")

    def _operation(self, operation: str, path: GithubPath | None, **parameters: Any) -> Callable[..., Any]:
        """One of ghapi's operations in its form for repositories or organisations."""

        def call(**more: Any) -> Any:
            where: dict[str, str] = {}
            if isinstance(path, GithubRepo):
                where = {"owner": path.owner, "repo": path.repo}
            elif path is not None:
                where = {"org": path.org}
            name = operation.format("org" if "org" in where else "repo")
            return self._function(name)(**where, **parameters, **more)

        return call

    def _function(self, name: str) -> Callable[..., Any]:
        """ghapi's function for an operation; GhApi would make those of all 1,200, a quarter of a second each pass."""
        from fastspec.oapi import SyncOpFunc  # a fifth of a second that a hook without GitHub need not pay
        from ghapi.core import pspec

        description = next(item for item in pspec.ops if (item.group, item.name) == ("actions", name))
        function: Callable[..., Any] = SyncOpFunc(description, self._connected(), self._url)
        return function

    def _connected(self) -> "GhSyncTransport":
        if self._transport is None:
            from ghapi.core import GhSyncTransport

            if not self._token:
                raise TokenError("there is no GitHub token")
            headers = {
                "Accept": "application/vnd.github+json",
                # What is packed may unpack to any size.
                "Accept-Encoding": "identity",
                "Authorization": f"Bearer {self._token}",
            }
            self._transport = GhSyncTransport(base_headers=headers)  # type: ignore[no-untyped-call]
            # ghapi opens a connection per call and repeats failed ones by itself; here both are ours.
            hooks = {"response": [self._note_quota, _limit, check_redirect]}
            self._transport.client = httpx2.Client(
                timeout=TIMEOUT, follow_redirects=True, event_hooks=hooks, verify=self._trust
            )
            self._transport.retries = 0
        return self._transport

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        """The authorities that the machine trusts, and those of the option."""
        context = httpx2.create_ssl_context()
        if self._ca_certificates:
            context.load_verify_locations(cadata="".join(self._ca_certificates))
        return context

    def _note_quota(self, response: httpx2.Response) -> None:
        left = response.headers.get("x-ratelimit-remaining", "")
        self.quota_left = int(left) if re.fullmatch("[0-9]{1,9}", left) else self.quota_left

    def _call(self, operation: Callable[..., Any], path: str, end: float = math.inf, **parameters: Any) -> Any:
        """One call with its retries; ``path`` is what GitHub must let the token see."""
        self._connected()
        end = min(end, time.monotonic() + self._deadline)
        for attempt in _attempts(end):
            with attempt, translated(self._url, path):
                # Raw: ghapi would turn lists and objects into types of its own, and trust the content type.
                response = _within(end, self._url, lambda: operation(**parameters, raw_=True))
                return response.json() if response.content else None
        raise AssertionError("unreachable")

    def _pages(
        self,
        operation: Callable[..., Any],
        key: str,
        path: str,
        most: int | None = None,
        timeout: float = math.inf,
    ) -> Iterator[dict[str, Any]]:
        """The items of every page until ``total_count`` or an empty page."""
        most = most or MOST_PAGES
        seen, end = 0, time.monotonic() + min(timeout, self._long_deadline)
        for page in range(1, most + 1):
            answer = self._call(operation, path, end, per_page=PER_PAGE, page=page)
            total, items = _field(answer, "total_count", int), _field(answer, key, list)
            if not all(isinstance(item, dict) for item in items):
                raise GithubApiError(f"the list of {key} has an item that is not an object")
            yield from items
            seen += len(items)
            if seen >= total or not items:
                return
        raise GithubApiError(f"the list of {key} has more than {most} pages")


def _attempts(end: float) -> Iterator[Any]:
    """Attempts with growing random waits between them, none of which begins after the end."""
    waits = iter([random.uniform(0.5, 1) * 2**number for number in range(ATTEMPTS)])  # noqa: S311  # nosec B311

    def again(error: Exception) -> bool | float:
        wait = next(waits)
        return wait if isinstance(error, TemporaryGithubError) and time.monotonic() + wait < end else False

    return iter(stamina.retry_context(on=again, attempts=ATTEMPTS, timeout=None))


def _within(end: float, url: str, action: Callable[[], Answer]) -> Answer:
    """What the action returns, or TemporaryGithubError at the end."""
    try:
        return within(end, action)
    except TimeoutError:
        raise TemporaryGithubError(f"no answer from {urlsplit(url).hostname} in time") from None


def _fetch(application: RunnerApplication, target: Path, end: float, trust: ssl.SSLContext) -> None:
    """Download once; nothing is written after the end, when nobody waits for it any more."""
    digest, size = hashlib.sha256(), 0
    headers = {"Authorization": f"Bearer {application.token}"} if application.token else {}

    def first_hop_only(request: httpx2.Request) -> None:
        if request.url != httpx2.URL(application.url):
            request.headers.pop("Authorization", None)

    hooks = {"request": [first_hop_only]}
    with (
        httpx2.Client(timeout=TIMEOUT, follow_redirects=True, event_hooks=hooks, verify=trust) as client,
        client.stream("GET", application.url, headers=headers) as answer,
        target.open("wb") as file,
    ):
        answer.raise_for_status()
        for chunk in answer.iter_bytes(1 << 16):
            size += len(chunk)
            if size > DOWNLOAD_LIMIT:
                raise GithubApiError(f"{application.filename} is larger than {DOWNLOAD_LIMIT} bytes")
            if time.monotonic() > end:
                raise TemporaryGithubError(f"{application.filename} is not downloaded in time")
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != application.sha256:
        raise GithubApiError(f"the checksum of {application.filename} is wrong: the file is not used")


class _Limited(httpx2.SyncByteStream):
    """An answer's bytes, up to ANSWER_LIMIT."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if size > ANSWER_LIMIT:
                raise GithubApiError(f"the answer is larger than {ANSWER_LIMIT} bytes")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _limit(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise GithubApiError("the answer is compressed, which was not asked for")
    if isinstance(response.stream, httpx2.SyncByteStream):
        response.stream = _Limited(response.stream)


def _field(item: Any, name: str, kind: type) -> Any:
    """A field of an answer; GithubApiError if the answer is not an object or the field not of that kind."""
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise GithubApiError(f"the answer has no valid {name}")
    return value


def _time(item: Any, name: str) -> datetime | None:
    """A time of an answer, which may be missing or null."""
    text = item.get(name) if isinstance(item, dict) else ""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise GithubApiError(f"the answer has no valid {name}") from error


def _download_token(item: dict[str, Any]) -> str | None:
    token = item.get("temp_download_token")
    if not token:
        return None
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]{1,16384}", token):
        raise GithubApiError("the runner binary is offered with an invalid download token")
    redaction.note(token)
    return token


def _read_runner(item: Any) -> GithubRunner:
    return GithubRunner(
        runner_id=_field(item, "id", int),
        name=_field(item, "name", str),
        online=_field(item, "status", str) == "online",
        busy=_field(item, "busy", bool),
    )


def _read_job(item: Any) -> WorkflowJob:
    conclusion = item.get("conclusion")
    if conclusion is not None and not (isinstance(conclusion, str) and re.fullmatch("[a-z_]{1,64}", conclusion)):
        raise GithubApiError("the answer has no valid conclusion")
    try:
        created, started = (
            datetime.fromisoformat(_field(item, key, str).replace("Z", "+00:00"))
            for key in ("created_at", "started_at")
        )
        return WorkflowJob(created.astimezone(timezone.utc), started.astimezone(timezone.utc), conclusion)
    except (ValueError, OverflowError) as error:
        raise GithubApiError("the answer has no valid time of a job") from error
