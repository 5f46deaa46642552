"""In the charm's process: notes what is sent to LXD. It is `lib/sitecustomize.py` of a packed charm; no libraries.

A line of NOTES is the thread, the number of bytes, and what they are: the first line of a request, or `body`. The
client for GitHub does not use http.client.
"""

import http.client
import os
import sys
import threading
from typing import Any

NOTES = "/run/lxd-notes"


def follow(path: str) -> None:
    """Note everything that http.client sends from now on."""
    notes = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    original = http.client.HTTPConnection.send

    def send(connection: Any, data: Any) -> None:
        if isinstance(data, bytes):
            first = data[:300].split(b"\r\n")[0]
            what = first if first.endswith(b" HTTP/1.1") else b"body"
            os.write(notes, f"{threading.get_ident()} {len(data)} {what.decode()}\n".encode())
        original(connection, data)

    http.client.HTTPConnection.send = send  # type: ignore[assignment, method-assign]


# The hook tools are Python as well.
if sys.orig_argv[-1].endswith("src/charm.py"):
    follow(NOTES)
