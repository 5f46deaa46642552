"""What the console of a virtual machine prints: the only way to logs where LXD's agent in it does not answer.

LXD 5.0 keeps nothing of what a console has printed, and newer versions only its end
(https://documentation.ubuntu.com/lxd/latest/howto/instances_console/). Therefore the charm's image answers a line that
is sent to its console with the logs.
"""

import time
from contextlib import closing

import websocket

from engine.client import LxdClient
from engine.events import connect, socket_path
from errors import LxdError


def read(lxd: LxdClient, name: str, *, end: bytes, limit: int, timeout: float) -> bytes:
    """Send a line to a console, and read until ``end`` comes, for ``limit`` bytes and ``timeout`` seconds at most.

    Whatever the guest prints is returned: a job may have replaced what answers.
    """
    deadline = time.monotonic() + timeout
    answer = lxd.request("POST", "instances", name, "console", json={"type": "console"})
    data = b""
    try:
        opened = answer.json()["metadata"]
        fds = opened["metadata"]["fds"]
        resource, path = f"/1.0/operations/{opened['id']}/websocket?secret=", socket_path()
        with closing(connect(resource + fds["0"], path)) as stream, closing(connect(resource + fds["control"], path)):
            stream.send_binary(b"\r\n")
            # A frame holds at most 128 KiB, and may cut the end in two.
            while len(data) < limit and end not in data[-(1 << 18) :] and time.monotonic() < deadline:
                stream.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = stream.recv()
                data += chunk if isinstance(chunk, bytes) else chunk.encode()
    except websocket.WebSocketTimeoutException:
        pass
    except (OSError, ValueError, KeyError, TypeError, websocket.WebSocketException) as error:
        if not data:
            raise LxdError(f"the console of {name} cannot be read: {error}") from error
    return data[:limit]
