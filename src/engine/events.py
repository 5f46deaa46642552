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


def ended(ours: Callable[[str], bool], gather: float, path: Callable[[], Path] = socket_path) -> Iterator[set[str]]:
    """The names of instances of ours that ended, those of one moment of ``gather`` seconds at once. Never ends.

    An empty set says that LXD was out of reach for a while: what ended meanwhile was not told.
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
                    names = _names(stream.recv(), ours)
                    if names:
                        yield names | _more(stream, ours, gather)
        except (OSError, websocket.WebSocketException) as error:
            logger.info("LXD's events are not to be had, again in %.0f s: %s", wait, error)
        time.sleep(wait)
        wait = min(2 * wait, RETRY_LIMIT)


def connect(resource: str, path: Path) -> websocket.WebSocket:
    """A stream of LXD's at one of its paths. It waits for at most 10 seconds, until that is changed."""
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


def _more(stream: websocket.WebSocket, ours: Callable[[str], bool], gather: float) -> set[str]:
    """What else ends within a moment, so that a burst is one."""
    names: set[str] = set()
    deadline = time.monotonic() + gather
    try:
        while (left := deadline - time.monotonic()) > 0:
            stream.settimeout(left)
            names |= _names(stream.recv(), ours)
    except websocket.WebSocketTimeoutException:
        pass
    finally:
        stream.settimeout(None)
    return names


def _names(message: str | bytes, ours: Callable[[str], bool]) -> set[str]:
    """The instance of ours that a message says has ended; none for any other message, whatever it holds."""
    try:
        event = json.loads(message)["metadata"]
        if event["action"] not in ENDED:
            return set()
        name = str(event["source"]).split("?")[0].rsplit("/", 1)[-1]
    except (ValueError, KeyError, TypeError):
        return set()
    return {name} if ours(name) else set()
