"""LXD's API over its socket, without a process for each request."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from sandbox.shell import SandboxError

SOCKET = "var/lib/lxd/unix.socket"


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("lxd", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get(root: Path, path: str) -> Any:
    """What the LXD whose files are below ``root`` answers to ``GET path``, such as /1.0/instances.

    OSError if it does not listen, SandboxError with its own words if it refuses.
    """
    connection = _Connection(root / SOCKET)
    try:
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read())
    except (http.client.HTTPException, ValueError) as error:
        raise SandboxError(f"LXD did not answer GET {path}: {error}") from error
    finally:
        connection.close()
    if answer["type"] == "error":
        raise SandboxError(f"LXD refused GET {path}: {answer['error']}")
    return answer["metadata"]
