"""Reading answers of GitHub. They are checked as if somebody hostile had written them."""

import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import httpx2

import redaction
from errors import GithubApiError
from models import Arch, GithubRunner, OfferedBinary, WorkflowJob

# Of one answer, in bytes: a page of 100 runners has some 100 KiB.
ANSWER_LIMIT = 16 << 20


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


def limit(response: httpx2.Response) -> None:
    """Let an answer have ANSWER_LIMIT bytes at most, and refuse one that is compressed."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise GithubApiError("the answer is compressed, which was not asked for")
    if isinstance(response.stream, httpx2.SyncByteStream):
        response.stream = _Limited(response.stream)


def field(item: Any, name: str, kind: type) -> Any:
    """A field of an answer; GithubApiError if the answer is not an object or the field not of that kind."""
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise GithubApiError(f"the answer has no valid {name}")
    return value


def time(item: Any, name: str) -> datetime | None:
    """A time of an answer, which may be missing or null."""
    text = item.get(name) if isinstance(item, dict) else ""
    if text is None:
        return None
    try:
        return _instant(str(text))
    except (ValueError, OverflowError) as error:
        raise GithubApiError(f"the answer has no valid {name}") from error


def _instant(text: str) -> datetime:
    """A time of RFC 3339. Python 3.10 reads fractions of 3 or 6 digits only; the service of scale sets writes 7."""
    digits = re.sub(r"\.([0-9]+)", lambda found: f".{found[1][:6]:0<6}", text)
    return datetime.fromisoformat(digits.replace("Z", "+00:00")).astimezone(timezone.utc)


def _download_token(item: dict[str, Any]) -> str | None:
    token = item.get("temp_download_token")
    if not token:
        return None
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]{1,16384}", token):
        raise GithubApiError("the runner binary is offered with an invalid download token")
    redaction.note_received(token)
    return token


def runner(item: Any) -> GithubRunner:
    """A runner of a list, or the answer for one runner."""
    return GithubRunner(
        runner_id=field(item, "id", int),
        name=field(item, "name", str),
        online=field(item, "status", str) == "online",
        busy=field(item, "busy", bool),
    )


def job(item: Any) -> WorkflowJob:
    """A job of a workflow run."""
    conclusion = item.get("conclusion")
    if conclusion is not None and not (isinstance(conclusion, str) and re.fullmatch("[a-z_]{1,64}", conclusion)):
        raise GithubApiError("the answer has no valid conclusion")
    try:
        created, started = (_instant(field(item, key, str)) for key in ("created_at", "started_at"))
        return WorkflowJob(created, started, conclusion)
    except (ValueError, OverflowError) as error:
        raise GithubApiError("the answer has no valid time of a job") from error


def offer(answer: Any, arch: Arch) -> OfferedBinary:
    """The runner binary of a downloads list for Linux on an architecture."""
    if not isinstance(answer, list):
        raise GithubApiError("the list of runner binaries is not a list")
    for item in answer:
        if field(item, "os", str) == "linux" and field(item, "architecture", str) == arch.value:
            checksum = item.get("sha256_checksum")
            if not isinstance(checksum, str) or not re.fullmatch("[0-9a-fA-F]{64}", checksum):
                raise GithubApiError("the runner binary is offered without a SHA-256 checksum")
            filename = field(item, "filename", str)
            # It becomes the name of a file beside others: no path, and none of their names.
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.tar\.gz", filename):
                raise GithubApiError("the runner binary is offered with an invalid file name")
            url, token = field(item, "download_url", str), _download_token(item)
            return OfferedBinary(url, filename, checksum.lower(), token)
    raise GithubApiError(f"no runner binary is offered for linux {arch.value}")
