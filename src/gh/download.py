"""The download of the runner binary. It is streamed, never read into memory."""

import hashlib
import os
import ssl
import time
from pathlib import Path

import httpx2

from errors import GithubApiError, TemporaryGithubError
from gh.errors import TIMEOUTS
from models import OfferedBinary

# In bytes.
DOWNLOAD_LIMIT = 1 << 30


def fetch(offer: OfferedBinary, target: Path, end: float, trust: ssl.SSLContext) -> None:
    """Download into a file once; nothing is written after ``end`` (of time.monotonic), when nobody waits for it."""
    digest, size = hashlib.sha256(), 0
    headers = {"Authorization": f"Bearer {offer.token}"} if offer.token else {}

    def first_hop_only(request: httpx2.Request) -> None:
        if request.url != httpx2.URL(offer.url):
            request.headers.pop("Authorization", None)

    hooks = {"request": [first_hop_only]}
    with (
        httpx2.Client(timeout=TIMEOUTS, follow_redirects=True, event_hooks=hooks, verify=trust) as client,
        client.stream("GET", offer.url, headers=headers) as answer,
        target.open("wb") as file,
    ):
        answer.raise_for_status()
        for chunk in answer.iter_bytes(1 << 16):
            size += len(chunk)
            if size > DOWNLOAD_LIMIT:
                raise GithubApiError(f"{offer.filename} is larger than {DOWNLOAD_LIMIT} bytes")
            if time.monotonic() > end:
                raise TemporaryGithubError(f"{offer.filename} is not downloaded in time")
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != offer.sha256:
        raise GithubApiError(f"the checksum of {offer.filename} is wrong: the file is not used")
