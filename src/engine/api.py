"""Requests to LXD's REST API (https://documentation.ubuntu.com/lxd/latest/api/), and their errors.

The only user of pylxd, and only of its connection.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import pylxd
import pylxd.exceptions
import requests
import websocket

from errors import LxdError, LxdNotFoundError

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT = 30.0
OPERATION_TIMEOUT = 120.0
# For the end of an operation of LXD on an instance that another request started, in seconds.
BUSY_TIMEOUT = 60
BUSY_INTERVAL = 0.1
# In errors of requests that LXD has not begun. Its agent in a virtual machine waits 5 seconds for LXD's connections
# before it begins a command: https://github.com/canonical/lxd/blob/lxd-5.0.2/lxd-agent/exec.go
NOT_BEGUN = ("busy running", "Timed out waiting for websockets to connect", "websocket: bad handshake")
# https://documentation.ubuntu.com/lxd/latest/rest-api/#list-of-current-status-codes
SUCCESS = 200


class LxdApi:
    """One LXD daemon, as the API shows it. Can be used by several threads at once.

    Everything raises LxdError, or LxdNotFoundError for what is not there.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint
        self._local = threading.local()

    def request(self, method: str, *path: str, timeout: float = REQUEST_TIMEOUT, **options: Any) -> requests.Response:
        """One call below ``/1.0``; ``options`` are those of requests. ``timeout`` in seconds."""
        with errors_of(f"{method} /1.0/{'/'.join(path)}"):
            node = self._client().api
            for part in path:
                node = node[quote(part, safe=".-_~:")]
            response: requests.Response = getattr(node, method.lower())(timeout=timeout, **options)
            return response

    def get(self, *path: str, **params: str | int) -> Any:
        """The metadata of a GET."""
        response = self.request("GET", *path, params=params)
        with errors_of(f"GET /1.0/{'/'.join(path)}"):
            return response.json()["metadata"]

    def change(self, method: str, *path: str, timeout: float = OPERATION_TIMEOUT, **options: Any) -> Any:
        """A request that may become an operation: wait until it is done and return its metadata.

        It is repeated while LXD has not begun it: LXD is busy with an instance that it would change, such as one that
        uses a changed profile, or the agent of a virtual machine was too slow.
        """
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                return self._change(method, *path, timeout=timeout, **options)
            except LxdError as error:
                if not any(text in str(error) for text in NOT_BEGUN) or time.monotonic() > deadline:
                    raise
                logger.info("LXD has not begun, the request is repeated: %s", error)
                time.sleep(BUSY_INTERVAL)

    def _change(self, method: str, *path: str, timeout: float, **options: Any) -> Any:
        what = f"{method} {'/'.join(path)}"
        response = self.request(method, *path, **options)
        with errors_of(what):
            body = response.json()
            if body.get("type") != "async":
                return body.get("metadata")
            return self.wait(body["metadata"]["id"], what, timeout)

    def wait(self, operation: str, what: str, timeout: float = OPERATION_TIMEOUT) -> Any:
        """Wait for an operation on the server's side; LxdError if it fails or is not over in ``timeout`` seconds."""
        whole = max(1, round(timeout))
        response = self.request(
            "GET", "operations", operation, "wait", timeout=whole + REQUEST_TIMEOUT, params={"timeout": whole}
        )
        done = response.json()["metadata"]
        # LXD reports a command's exit codes 126 and 127 as errors of its own, whatever gave them. -1 is no exit code.
        if done["status_code"] == SUCCESS or (done.get("metadata") or {}).get("return", -1) >= 0:
            return done.get("metadata")
        with suppress(LxdError):
            self.request("DELETE", "operations", operation)
        if done.get("err"):
            raise _not_found_or(done["err"])(f"{what}: {done['err']}")
        raise LxdError(f"{what}: not done within {whole} s")

    def find(self, *path: str) -> Any:
        """The metadata of a GET, or None if there is no such thing."""
        try:
            return self.get(*path)
        except LxdNotFoundError:
            return None

    def has_extension(self, name: str) -> bool:
        """Whether this LXD has an API extension (https://documentation.ubuntu.com/lxd/latest/api-extensions/)."""
        with errors_of("GET /1.0"):
            return bool(self._client().has_api_extension(name))

    def _client(self) -> pylxd.Client:
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = pylxd.Client(endpoint=self._endpoint, timeout=REQUEST_TIMEOUT)
        return client


def wait_until(condition: Callable[[], bool], timeout: float, what: str, interval: float = 0.1) -> None:
    """Poll until a condition holds; LxdError if it does not within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LxdError(f"{what}: not within {timeout:.0f} s")
        time.sleep(interval)


def _not_found_or(message: str) -> type[LxdError]:
    # LXD's errors end with their cause. Elsewhere, as in `executable file not found in $PATH`, it is something else.
    return LxdNotFoundError if message.lower().endswith("not found") else LxdError


@contextmanager
def errors_of(what: str) -> Iterator[None]:
    """Everything that pylxd and requests raise, as this module's errors."""
    try:
        yield
    except LxdError:
        raise
    except Exception as error:
        raise _translated(what, error) from error


def _translated(what: str, error: Exception) -> Exception:
    """One of this module's errors for one of pylxd's, of requests', or of an answer that is not as it should be."""
    if isinstance(error, pylxd.exceptions.NotFound):
        return LxdNotFoundError(f"{what}: {error}")
    if isinstance(error, pylxd.exceptions.LXDAPIException):
        return _not_found_or(str(error))(f"{what}: {error}")
    if isinstance(error, pylxd.exceptions.ClientConnectionFailed):
        return LxdError(f"LXD does not answer: {error}")
    if isinstance(error, (requests.RequestException, websocket.WebSocketException, OSError)):
        return LxdError(f"{what}: LXD did not answer properly: {error}")
    if isinstance(error, (KeyError, ValueError)):
        return LxdError(f"{what}: LXD's answer was not understood: {error!r}")
    return error
