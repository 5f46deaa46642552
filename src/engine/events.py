"""LXD's lifecycle events as they come (https://documentation.ubuntu.com/lxd/latest/events/)."""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import websocket

logger = logging.getLogger(__name__)

# The snap's socket comes first, as in LXD's own clients.
SOCKETS = (Path("/var/snap/lxd/common/lxd/unix.socket"), Path("/var/lib/lxd/unix.socket"))
ENDED = frozenset({"instance-shutdown", "instance-stopped", "instance-deleted"})
RETRY_AFTER = 1.0
RETRY_LIMIT = 30.0


def socket_path() -> Path:
    """Where LXD listens on this machine."""
    if "LXD_DIR" in os.environ:
        return Path(os.environ["LXD_DIR"], "unix.socket")
    return next((path for path in SOCKETS if path.exists()), SOCKETS[-1])


def ended(wanted: Callable[[str], bool], gather: float, path: Callable[[], Path] = socket_path) -> Iterator[set[str]]:
    """The ``wanted`` names of instances that ended, those of ``gather`` seconds together. Never ends.

    An empty set comes after each connection to LXD: ends before it were not reported.
    """
    wait = RETRY_AFTER
    while True:
        try:
            with closing(connect("/1.0/events?type=lifecycle", path())) as stream:
                stream.settimeout(None)
                logger.info("Following LXD's events")
                wait = RETRY_AFTER
                yield set()
                while True:
                    names = ended_names(stream.recv(), wanted)
                    if names:
                        yield names | _more(stream, wanted, gather)
        except (OSError, websocket.WebSocketException) as error:
            logger.info("Cannot connect to the LXD event stream, retrying in %.0f s: %s", wait, error)
        time.sleep(wait)
        wait = min(2 * wait, RETRY_LIMIT)


def connect(resource: str, path: Path) -> websocket.WebSocket:
    """Connect to a websocket of LXD. Its time limit is 10 seconds, until the caller sets another one."""
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unix.settimeout(10)
        unix.connect(str(path))
        stream = websocket.WebSocket()
        stream.connect(f"ws://lxd{resource}", socket=unix)  # type: ignore[no-untyped-call]
    except BaseException:
        unix.close()
        raise
    return stream


def _more(stream: websocket.WebSocket, wanted: Callable[[str], bool], gather: float) -> set[str]:
    """The runners that end within ``gather`` seconds."""
    names: set[str] = set()
    deadline = time.monotonic() + gather
    try:
        while (left := deadline - time.monotonic()) > 0:
            stream.settimeout(left)
            names |= ended_names(stream.recv(), wanted)
    except websocket.WebSocketTimeoutException:
        pass
    finally:
        stream.settimeout(None)
    return names


def ended_names(message: str | bytes, wanted: Callable[[str], bool]) -> set[str]:
    """The runner whose end a message reports; none for any other message, whatever it has."""
    try:
        event = json.loads(message)["metadata"]
        if event["action"] not in ENDED:
            return set()
        name = str(event["source"]).split("?")[0].rsplit("/", 1)[-1]
    except (ValueError, KeyError, TypeError):
        return set()
    return {name} if wanted(name) else set()
