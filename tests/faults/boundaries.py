"""In the charm's or its agent's process: notes each boundary at which it can be killed, or kills it at one.

BOUNDARY_NOTES=FILE appends a line for each, with its time; BOUNDARY_KILL=N is SIGKILL at the Nth, before what it names
is done. The moment after one boundary is the moment before the next: answers of LXD and GitHub are boundaries, too.
A process that finds the file of notes there already is left alone: systemd starts a killed agent again. Standard
library only.
"""

import http.client
import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

WRITTEN = ("/var/lib/github-runner/runner-fs", "/var/log/github-runner", "/run/github-runner/")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.link"}
PROGRAMS = {"mount", "umount", "mkfs.ext4", "truncate", "fallocate", "tar", "e2fsck", "losetup"}


class Boundaries:
    """Counts them, in whatever thread they come."""

    def __init__(self, notes: str, kill_at: int) -> None:
        self.numbers = itertools.count(1)
        self.notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if notes else None
        self.kill_at = kill_at
        self.local = threading.local()
        self.unfollowed = dict(FOLLOWED)

    def at(self, what: str) -> None:
        number = next(self.numbers)
        if self.notes is not None:
            os.write(self.notes, f"{number} {time.monotonic():.3f} {what}\n".encode())
        if number == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """https://docs.python.org/3/library/audit_events.html: raised before what they name is done."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and str(path).startswith(WRITTEN):
                self.at(f"write {path}")
        elif event in CHANGES:
            if str(arguments[0]).startswith(WRITTEN):
                self.at(f"{event} {arguments[0]}")
        elif event == "subprocess.Popen":
            if str(arguments[0]).rsplit("/", 1)[-1] in PROGRAMS:
                self.at(f"run {arguments[0]}")
        elif event == "http.client.send":
            first = arguments[1][:200].split(b"\r\n")[0] if isinstance(arguments[1], bytes) else b""
            self.at(f"LXD {first.decode()}" if first.endswith(b" HTTP/1.1") else "LXD (a body)")
        elif event == "socket.connect":
            for library in self.unfollowed.keys() & sys.modules.keys():
                # Another thread may be faster.
                if follow := self.unfollowed.pop(library, None):
                    follow(self, sys.modules[library])

    def follow_github(self, client: Any) -> None:
        original = client.HTTPTransport.handle_request

        def handle_request(transport: Any, request: Any) -> Any:
            self.at(f"GitHub {request.method} {request.url.path}")
            answer = original(transport, request)
            self.at(f"GitHub answered {answer.status_code}")
            return answer

        client.HTTPTransport.handle_request = handle_request

    def follow_streams(self, library: Any) -> None:
        """Of commands in instances: what is sent on them is no request."""
        original = library.WebSocket.send_frame

        def send_frame(stream: Any, frame: Any) -> Any:
            self.at(f"LXD stream ({'input' if frame.data else 'its end'})")
            return original(stream, frame)

        library.WebSocket.send_frame = send_frame

    def follow_lxd(self) -> None:
        original = http.client.HTTPConnection.getresponse

        def getresponse(connection: Any) -> Any:
            answer = original(connection)
            self.at(f"LXD answered {answer.status}")
            return answer

        http.client.HTTPConnection.getresponse = getresponse  # type: ignore[assignment, method-assign]


# By the library that sends, once it is loaded and anything connects: LXD comes before GitHub.
FOLLOWED = {"httpx2": Boundaries.follow_github, "websocket": Boundaries.follow_streams}


def start() -> None:
    """In a process of the charm or of its agent only: the hook tools are Python as well."""
    notes, kill_at = os.environ.get("BOUNDARY_NOTES", ""), int(os.environ.get("BOUNDARY_KILL", "0"))
    meant = sys.orig_argv[-1].endswith("src/charm.py") or "programs.agent" in sys.orig_argv
    if (notes or kill_at) and meant and not (notes and Path(notes).exists()):
        boundaries = Boundaries(notes, kill_at)
        boundaries.follow_lxd()
        sys.addaudithook(boundaries.audit)


start()
