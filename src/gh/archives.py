"""Archives of public actions: found and downloaded without any credential.

https://docs.github.com/en/rest/commits/commits#get-a-commit
https://docs.github.com/en/rest/repos/contents#download-a-repository-archive-tar
"""

import io
import re
import time
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO
from urllib.parse import quote, urlsplit

import httpx2

from errors import GithubApiError, RateLimitError, TemporaryGithubError
from gh import answers
from gh.client import api_url, is_enterprise_server, trust
from gh.errors import TIMEOUTS, StatusError, detail, status_error, translated
from system import within

PUBLIC_API = "https://api.github.com"
# Of all archives of a build, in seconds.
DEADLINE = 600.0
# Of the answer that names a commit, in bytes.
ANSWER_LIMIT = 1 << 10


class ActionArchives:
    """Where the archives of actions come from: an Enterprise Server that runners register at, and github.com.

    An Enterprise Server looks for an action in the same order. One that limits requests, or has a temporary error for
    two actions in a row, is asked no more. Anonymous requests have a limit of 60 an hour for each address at
    github.com.
    """

    def __init__(
        self,
        github_url: str,
        ca_certificates: Sequence[str] = (),
        *,
        deadline: float = DEADLINE,
        public_api: str = PUBLIC_API,
    ) -> None:
        # Anonymous requests to SUB.ghe.com are refused; its runners get public actions from github.com.
        server = [api_url(github_url)] if is_enterprise_server(github_url) else []
        self.apis = [*server, public_api]
        """The APIs that are asked, in this order."""
        # Those that had a temporary error when they were asked last.
        self._troubled = set[str]()
        self._end = time.monotonic() + deadline
        self._trust = trust(ca_certificates)

    def fetch(self, action: str, file: BinaryIO, limit: int) -> str:
        """Download the archive of ``OWNER/REPO@REF``, of ``limit`` bytes at most; returns the commit (40 hex digits).

        GithubApiError names each GitHub that was asked, and its reason.
        """
        reasons = []
        for api in list(self.apis):
            try:
                commit = self._fetch(api, action, file, limit)
            except GithubApiError as error:
                reasons.append(f"{urlsplit(api).hostname}: {error}")
                self._note(api, error)
            else:
                self._troubled.discard(api)
                return commit
        raise GithubApiError("; ".join(reasons) or "no GitHub can be asked any more")

    def _note(self, api: str, error: GithubApiError) -> None:
        """Ask a GitHub no more after a rate limit, or after the second temporary error in a row."""
        temporary = isinstance(error, TemporaryGithubError)
        if isinstance(error, RateLimitError) or (temporary and api in self._troubled):
            self.apis.remove(api)
        elif temporary:
            self._troubled.add(api)
        else:
            self._troubled.discard(api)

    def _fetch(self, api: str, action: str, file: BinaryIO, limit: int) -> str:
        repository, _, ref = action.partition("@")
        url, answer = f"{api}/repos/{repository}", io.BytesIO()
        self._get(f"{url}/commits/{quote(ref)}", "application/vnd.github.sha", answer, ANSWER_LIMIT)
        commit = answer.getvalue().decode("ascii", "replace").strip()
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise GithubApiError("the answer is not the name of a commit")
        self._get(f"{url}/tarball/{commit}", "application/vnd.github+json", file, limit)
        return commit

    def _get(self, url: str, accept: str, file: BinaryIO, limit: int) -> None:
        """Write the content of a URL into a file, from its beginning."""
        with translated(url, urlsplit(url).path):
            try:
                within(self._end, partial(self._receive, url, accept, file, limit))
            except TimeoutError:
                raise TemporaryGithubError("no answer in time") from None

    def _receive(self, url: str, accept: str, file: BinaryIO, limit: int) -> None:
        """An archive is on another host, to which github.com redirects."""
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        size = 0

        def encrypted_only(request: httpx2.Request) -> None:
            if url.startswith("https:") and request.url.scheme != "https":
                raise GithubApiError(f"redirected to {request.url.host} without encryption")

        hooks = {"request": [encrypted_only]}
        with (
            httpx2.Client(timeout=TIMEOUTS, follow_redirects=True, event_hooks=hooks, verify=self._trust) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            _check(answer)
            file.seek(0)
            file.truncate()
            for chunk in answer.iter_raw():
                size += len(chunk)
                if size > limit:
                    raise GithubApiError(f"larger than {limit} bytes")
                # Nobody waits for what comes later.
                if time.monotonic() > self._end:
                    raise TemporaryGithubError("not downloaded in time")
                file.write(chunk)


def _check(answer: httpx2.Response) -> None:
    """Raise unless it is a success: RateLimitError, TemporaryGithubError, or GithubApiError with GitHub's message."""
    if answer.is_success:
        return
    answers.limit(answer)
    answer.read()
    error = status_error(answer, None)
    raise GithubApiError(f"HTTP {answer.status_code}{detail(answer)}") if isinstance(error, StatusError) else error
