"""The client of GitHub's API: the only user of ghapi.

https://docs.github.com/en/rest/actions/self-hosted-runners
"""

import logging
import math
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import stamina
from fastspec.oapi import SyncOpFunc
from ghapi.core import GhSyncTransport, pspec

import redaction
from errors import (
    ConfigurationError,
    GithubApiError,
    GithubClientError,
    JobNotFoundError,
    RunnerBusyError,
    TemporaryGithubError,
    TokenError,
)
from gh import answers, queued_jobs
from gh.auth import Auth
from gh.download import fetch
from gh.errors import TIMEOUTS, NotVisibleError, StatusError, check_redirect, translated
from gh.queued_jobs import QueuedJob, Runs
from models import Arch, GithubOrg, GithubPath, GithubRepo, GithubRunner, OfferedBinary, WorkflowJob
from system import within

logger = logging.getLogger(__name__)

CALL_DEADLINE = 45.0
# A list of many pages and a download take their time even where all is well.
LONG_DEADLINE = 600.0
# Of reading a repository's queued jobs.
QUEUED_DEADLINE = 60.0
ATTEMPTS = 4
PER_PAGE = 100
MOST_PAGES = 1000
# A run may have thousands of jobs, and a job may name any run.
JOB_PAGES = 5
# The group that every organisation and repository has.
DEFAULT_GROUP = 1
# Of the Enterprise Server that has just-in-time configurations first.
JIT_VERSION = (3, 10)

Answer = TypeVar("Answer")


def api_url(github_url: str) -> str:
    """The API's base for a GitHub (https://docs.github.com/en/rest/using-the-rest-api/getting-started-with-the-rest-api)."""
    parts = urlsplit(github_url)
    host = (parts.hostname or "").lower()
    if is_enterprise_server(github_url):
        return f"{github_url.rstrip('/')}/api/v3"
    return f"https://api.{host}"


def is_enterprise_server(github_url: str) -> bool:
    """Whether it is a server of somebody's own, and neither github.com nor SUB.ghe.com."""
    host = (urlsplit(github_url).hostname or "").lower()
    return host != "github.com" and not host.endswith(".ghe.com")


def trust(ca_certificates: Sequence[str]) -> ssl.SSLContext:
    """The authorities that the machine trusts, and those of the option."""
    context = httpx2.create_ssl_context()
    if ca_certificates:
        context.load_verify_locations(cadata="".join(ca_certificates))
    return context


class GithubClient:
    """What this charm asks GitHub, over one connection, which is made when the first question is asked.

    No call lasts longer than ``deadline`` seconds with all its retries, no list or download than ``long_deadline``.
    """

    def __init__(
        self,
        github_url: str,
        auth: Auth,
        *,
        ca_certificates: Sequence[str] = (),
        deadline: float = CALL_DEADLINE,
        long_deadline: float = LONG_DEADLINE,
    ) -> None:
        self._url = api_url(github_url)
        self._is_enterprise_server = is_enterprise_server(github_url)
        self.auth = auth
        """What gives requests their token."""
        self._ca_certificates = ca_certificates
        self._deadline = deadline
        self._long_deadline = long_deadline
        self._transport: GhSyncTransport | None = None
        self._context: ssl.SSLContext | None = None
        self._loading = threading.Lock()
        self.quota_left: int | None = None
        """What the last answer said is left of the token's requests."""
        self.server_version: str | None = None
        """The version that an Enterprise Server names in its answers."""

    def load_authorities(self) -> None:
        """Load what TLS trusts, in a thread of its own: it takes as long as several requests, and other work goes on.

        An error is that of the first request.
        """

        def load() -> None:
            with suppress(OSError):
                self._trust  # noqa: B018 - it is kept

        threading.Thread(target=load, name="authorities").start()

    def close(self) -> None:
        """Give the connection back."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def held_token(self) -> tuple[str, float | None]:
        """The token that was used last, and its end in UNIX seconds; None where it has none."""
        return self.auth.held()

    def revoke(self, handed: Sequence[str] = ()) -> None:
        """End the tokens that were obtained, when the unit goes: within ``deadline`` seconds in all.

        ``handed`` are tokens of a GitHub App that another process uses, whatever the client itself sends. One that
        cannot be ended now is good for an hour.
        """
        end = time.monotonic() + self._deadline
        for token in dict.fromkeys([*self.auth.give_up(), *handed]):
            # GitHub refuses requests without a User-Agent; httpx2 has one.
            headers = {"Accept-Encoding": "identity", "Authorization": f"Bearer {token}"}
            url = f"{self._url}/installation/token"
            send = partial(self._connected().client.delete, url, headers=headers, auth=None)
            try:
                within_deadline(end, self._url, send)
            except (GithubClientError, httpx2.HTTPError) as error:
                logger.warning("A token of the GitHub App is not revoked: %s", type(error).__name__)

    def list_runners(self, path: GithubPath, wanted: Callable[[str], bool]) -> list[GithubRunner]:
        """The path's runners whose name is wanted; others are dropped page by page."""
        found: dict[int, GithubRunner] = {}
        for item in self._pages(self._operation("list_self_hosted_runners_for_{}", path), "runners", path.path):
            runner = answers.runner(item)
            if wanted(runner.name):
                found[runner.runner_id] = runner
        return list(found.values())

    def find_runner(self, path: GithubPath, name: str) -> GithubRunner | None:
        """One runner by its whole name."""
        answer = self._call(self._operation("list_self_hosted_runners_for_{}", path, name=name), path.path)
        runners = map(answers.runner, answers.field(answer, "runners", list))
        return next((runner for runner in runners if runner.name == name), None)

    def runner(self, path: GithubPath, runner_id: int) -> GithubRunner | None:
        """One runner by its id; None only if GitHub confirms that it is gone (see ``_confirm_gone``)."""
        operation = self._operation("get_self_hosted_runner_for_{}", path, runner_id=runner_id)
        try:
            return answers.runner(self._call(operation, path.path))
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
        answers.field(answer, "total_count", int)

    def registration_token(self, path: GithubPath) -> str:
        """A token with which runners can register for one hour."""
        answer = self._call(self._operation("create_registration_token_for_{}", path), path.path)
        token: str = answers.field(answer, "token", str)
        redaction.note_received(token)
        return token

    def has_jit(self, path: GithubPath) -> bool:
        """Whether the server knows just-in-time configurations."""
        if not self._is_enterprise_server:
            return True
        if self.server_version is None:
            self._confirm_gone(path)  # any answer has the version
        found = re.search("([0-9]{1,4})[.]([0-9]{1,4})", self.server_version or "")
        return found is not None and (int(found[1]), int(found[2])) >= JIT_VERSION

    def generate_jit_config(
        self, path: GithubPath, name: str, group: int, labels: Sequence[str]
    ) -> tuple[GithubRunner, str]:
        """Register a runner; the record, and the configuration that its agent starts with (base64).

        StatusError with 409 if the name is taken.
        """
        operation = self._operation("generate_runner_jitconfig_for_{}", path)
        answer = self._call(operation, path.path, name=name, runner_group_id=group, labels=list(labels))
        encoded: str = answers.field(answer, "encoded_jit_config", str)
        return answers.runner(answers.field(answer, "runner", dict)), encoded

    def group_id(self, path: GithubPath) -> int:
        """The number of a path's runner group; ConfigurationError if GitHub shows no group of that name."""
        if isinstance(path, GithubRepo) or path.group.lower() == "default":
            return DEFAULT_GROUP
        found = self._groups(path)
        if path.group.lower() not in found:
            raise ConfigurationError(
                f"group: {path.path} has no runner group {path.group!r} that GitHub shows; create it at GitHub, or "
                "set group"
            )
        return found[path.group.lower()]

    def _groups(self, path: GithubOrg) -> dict[str, int]:
        """The numbers of an organisation's runner groups by name in lower case, as names are compared."""
        operation = self._operation("list_self_hosted_runner_groups_for_org", path)
        groups = self._pages(operation, "runner_groups", path.path)
        return {answers.field(item, "name", str).lower(): answers.field(item, "id", int) for item in groups}

    def check_group(self, path: GithubPath) -> None:
        """ConfigurationError if an organisation lacks the runner group; nothing where GitHub does not show groups."""
        try:
            self.group_id(path)
        except TokenError as error:
            # A plan without groups, or a token that may register runners and not list groups: config.sh decides.
            logger.info("The runner groups of %s cannot be listed: %s", path.path, error)

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

    def offered_binary(self, path: GithubPath, arch: Arch) -> OfferedBinary:
        """The runner binary that GitHub offers for Linux on an architecture."""
        return answers.offer(self._call(self._operation("list_runner_applications_for_{}", path), path.path), arch)

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
        times = (answers.time(answer, key) for key in ("registration_deprecates_at", "runtime_deprecates_at"))
        return any(time is not None and time <= now for time in times)

    def download(self, offered: OfferedBinary, target: Path) -> None:
        """Fetch into a new file; GithubApiError if it does not come or is not what the checksum says."""
        end = time.monotonic() + self._long_deadline
        for attempt in attempts(end):
            with attempt, translated(offered.url, None):
                within_deadline(end, offered.url, lambda: fetch(offered, target, end, self._trust))

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
                    return answers.job(item)
        except TokenError as error:
            raise JobNotFoundError(f"workflow run {run_id} of {repository} is not to be seen") from error
        raise JobNotFoundError(f"no job of workflow run {run_id} of {repository} was run by {runner_name}")

    def queued_jobs(self, path: GithubRepo, runs: Runs, deadline: float = QUEUED_DEADLINE) -> list[QueuedJob]:
        """Jobs of a repository that wait for a runner, of all runs that ``runs`` has read by now.

        That takes at most MOST_REQUESTS requests, all within ``deadline`` seconds. A run for which they did not suffice
        is the first one of the next time.
        """
        left, end = queued_jobs.MOST_REQUESTS, time.monotonic() + deadline
        listed: set[int] = set()
        # A run that is in progress may have more jobs that wait.
        for status in ("queued", "in_progress"):
            operation = self._operation("list_workflow_runs_for_repo", path, status=status)
            for page, _ in self._first_pages(operation, "workflow_runs", path.path, end, queued_jobs.MOST_LISTS):
                left -= 1
                listed.update(answers.field(item, "id", int) for item in page)
        for number, run in enumerate(runs.due(listed)):
            operation = self._operation("list_jobs_for_workflow_run", path, run_id=run, filter="latest")
            found: list[QueuedJob] = []
            is_whole = False
            for page, is_last in self._first_pages(operation, "jobs", path.path, end, left):
                left, is_whole = left - 1, is_last
                found += queued_jobs.jobs(page)
            if is_whole or number == 0:
                # No more can be read of a run for which even all the requests did not suffice.
                runs.note(run, found)
            if not left:
                break
        return runs.jobs()

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
        """The function of ghapi for one operation.

        Made from ghapi's description of the operation (``pspec``), because ``GhApi(…)`` makes the functions of all
        1,225 operations: 220 ms for each reconcile, instead of 0.5 ms for each operation.
        """
        description = next(item for item in pspec.ops if (item.group, item.name) == ("actions", name))
        function: Callable[..., Any] = SyncOpFunc(description, self._connected(), self._url)
        return function

    def _connected(self) -> GhSyncTransport:
        if self._transport is None:
            headers = {
                "Accept": "application/vnd.github+json",
                # What is packed may unpack to any size.
                "Accept-Encoding": "identity",
            }
            # Without a client, ghapi opens a connection for each call. It repeats no call: ``_call`` does.
            client = httpx2.Client(
                auth=self.auth,
                timeout=TIMEOUTS,
                follow_redirects=True,
                event_hooks={"response": [self._note_headers, answers.limit, check_redirect]},
                verify=self._trust,
            )
            self._transport = GhSyncTransport(client=client, base_headers=headers, retries=0)  # type: ignore[no-untyped-call]
        return self._transport

    @property
    def _trust(self) -> ssl.SSLContext:
        with self._loading:
            if self._context is None:
                self._context = trust(self._ca_certificates)
            return self._context

    def _note_headers(self, response: httpx2.Response) -> None:
        version = response.headers.get("x-github-enterprise-version", "")
        self.server_version = version if re.fullmatch("[ -~]{1,40}", version) else self.server_version
        if response.headers.get("x-ratelimit-resource", "core") != "core":
            return  # registrations have a limit of their own
        left = response.headers.get("x-ratelimit-remaining", "")
        self.quota_left = int(left) if re.fullmatch("[0-9]{1,9}", left) else self.quota_left

    def _call(self, operation: Callable[..., Any], path: str, end: float = math.inf, **parameters: Any) -> Any:
        """One call with its retries; ``path`` is what GitHub must let the token see."""
        self._connected()
        end = min(end, time.monotonic() + self._deadline)
        for attempt in attempts(end):
            with attempt, translated(self._url, path):
                # Raw: ghapi would turn lists and objects into types of its own, and trust the content type.
                response = within_deadline(end, self._url, lambda: operation(**parameters, raw_=True))
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
        is_whole, end = False, time.monotonic() + min(timeout, self._long_deadline)
        for items, is_last in self._first_pages(operation, key, path, end, most):
            yield from items
            is_whole = is_last
        if not is_whole:
            raise GithubApiError(f"the list of {key} has more than {most} pages")

    def _first_pages(
        self, operation: Callable[..., Any], key: str, path: str, end: float, most: int
    ) -> Iterator[tuple[list[dict[str, Any]], bool]]:
        """The items of the first pages of a list, page by page, and whether each is the last one."""
        seen = 0
        for page in range(1, most + 1):
            answer = self._call(operation, path, end, per_page=PER_PAGE, page=page)
            total, items = answers.field(answer, "total_count", int), answers.field(answer, key, list)
            if not all(isinstance(item, dict) for item in items):
                raise GithubApiError(f"the list of {key} has an item that is not an object")
            seen += len(items)
            is_last = seen >= total or not items
            yield items, is_last
            if is_last:
                return


def attempts(end: float) -> Iterator[Any]:
    """Attempts with growing random waits between them, none of which begins after the end."""
    waits = iter([random.uniform(0.5, 1) * 2**number for number in range(ATTEMPTS)])  # noqa: S311  # nosec B311

    def again(error: Exception) -> bool | float:
        wait = next(waits)
        return wait if isinstance(error, TemporaryGithubError) and time.monotonic() + wait < end else False

    return iter(stamina.retry_context(on=again, attempts=ATTEMPTS, timeout=None))


def within_deadline(end: float, url: str, action: Callable[[], Answer]) -> Answer:
    """What the action returns, or TemporaryGithubError at the end."""
    try:
        return within(end, action)
    except TimeoutError:
        raise TemporaryGithubError(f"no answer from {urlsplit(url).hostname} in time") from None
