"""A command inside an instance whose input and output are LXD's streams: nothing of them is written on the host.

https://documentation.ubuntu.com/lxd/latest/rest-api/#post-1-0-instances-name-exec
"""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import PurePosixPath
from types import TracebackType

import websocket

from engine.api import LxdApi, errors_of
from engine.events import connect, socket_path
from errors import LxdError, LxdNotFoundError
from redaction import tail

# Of LXD's operations (https://documentation.ubuntu.com/lxd/latest/rest-api/#list-of-current-status-codes).
RUNNING = 103
# Seconds after which LXD is asked whether a command that prints nothing still runs.
ASK_INTERVAL = 1.0
# Seconds within which one part of the input is taken.
WRITE_TIMEOUT = 60.0
# Seconds for the last words of a command that does not read its input any more.
REASON_TIMEOUT = 5.0
# Bytes of an output's end that are kept.
TAIL = 65536


class Command:
    """A command that runs, with its streams. As a context it is killed at the end, unless its exit code was read.

    Everything raises LxdError.
    """

    def __init__(
        self,
        lxd: LxdApi,
        instance: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._lxd = lxd
        self._what = f"{PurePosixPath(command[0]).name} in {instance}"
        self._streams: dict[str, websocket.WebSocket] = {}
        self._is_over = False
        self._printed = b""
        self._cut_off: LxdError | None = None
        self._timeout = self._deadline = 0.0
        body = {
            "command": list(command),
            "environment": dict(environment or {}),
            "cwd": "/",
            "wait-for-websocket": True,
            "interactive": False,
        }
        with errors_of(self._what), ExitStack() as opened:
            answer = lxd.request("POST", "instances", instance, "exec", json=body).json()["metadata"]
            self._operation = str(answer["id"])
            # Connect `control` first: the command starts once 0, 1 and 2 are connected, and may end before a later one.
            for number, secret in sorted(answer["metadata"]["fds"].items(), reverse=True):
                stream = connect(f"/1.0/operations/{self._operation}/websocket?secret={secret}", socket_path())
                opened.callback(stream.shutdown)
                self._streams[number] = stream
            self._opened = opened.pop_all()

    def __enter__(self) -> "Command":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_over:
            with suppress(Exception):
                self._streams["control"].send(json.dumps({"command": "signal", "signal": signal.SIGKILL}))
        self._opened.close()

    def wait_begun(self, timeout: float) -> None:
        """Wait until it has printed an empty line; LxdError if it ends before, or LXD cannot run it.

        A second at least, so that the reason is found.
        """
        deadline = time.monotonic() + max(timeout, ASK_INTERVAL)
        try:
            with errors_of(self._what):
                while time.monotonic() < deadline:
                    try:
                        first = next(_received(self._streams["1"], time.monotonic() + ASK_INTERVAL), b"")
                    except websocket.WebSocketTimeoutException:
                        if self._runs():
                            continue
                        first = b""
                    if first.startswith(b"\n"):
                        self._printed = first
                        return
                    words = tail(first.decode(errors="replace"))
                    raise LxdError(f"{self._what}: ended with {self._code(ASK_INTERVAL)} before it had begun: {words}")
        except LxdNotFoundError as error:
            # It may be the operation, which LXD has removed. Of a missing instance the next request says so.
            raise LxdError(str(error)) from error
        raise LxdError(f"{self._what}: not begun within {timeout:.0f} s")

    def write(self, data: bytes) -> int:
        """Give it a part of its input; returns how many bytes that were. After an error that one is raised again."""
        if self._cut_off is not None:
            raise self._cut_off
        try:
            with errors_of(self._what):
                stream = self._streams["0"]
                stream.settimeout(WRITE_TIMEOUT)
                stream.send_binary(data)
        except LxdError as error:
            self._cut_off = error
            raise
        return len(data)

    def feed(self, write: Callable[["Command"], object], timeout: float) -> bool:
        """Give it all that ``write`` writes as its input, and ``timeout`` seconds from now on; whether it took all.

        Where it stops reading, ``result`` raises that.
        """
        self._timeout, self._deadline = timeout, time.monotonic() + timeout
        try:
            write(self)
            with errors_of(self._what):
                # LXD's sign of the end, which a close of the connection would be too.
                self._streams["0"].send("")
        except LxdError as error:
            self._cut_off, self._deadline = error, time.monotonic() + REASON_TIMEOUT
        return self._cut_off is None

    def result(self) -> tuple[int, str]:
        """The exit code of a command that was fed, and the end of its output; LxdError if it takes too long.

        Where it stopped reading it may have said why: that comes first.
        """
        refused = self._cut_off
        try:
            code, output = self._end()
        except LxdError as error:
            if refused is None:
                raise
            raise refused from error
        if refused is not None and code == 0:
            raise refused
        return code, output

    def _end(self) -> tuple[int, str]:
        printed = self._printed
        with errors_of(self._what):
            try:
                for part in _received(self._streams["1"], self._deadline):
                    printed = (printed + part)[-TAIL:]
            except websocket.WebSocketTimeoutException as error:
                words = tail(printed.decode(errors="replace"))
                raise LxdError(f"{self._what}: not done within {self._timeout:.0f} s: {words}") from error
            return self._code(self._deadline - time.monotonic()), printed.decode(errors="replace")

    def output(self, limit: int, deadline: float) -> bytes:
        """At most ``limit`` bytes of its output; LxdError if there are fewer and it is not over at the ``deadline``.

        That is a time of time.monotonic().
        """
        data = b""
        with errors_of(self._what):
            for part in _received(self._streams["1"], deadline):
                data += part
                if len(data) >= limit:
                    break
        return data[:limit]

    def _code(self, timeout: float) -> int:
        """The exit code of a command whose output is over."""
        done = self._lxd.wait(self._operation, self._what, timeout) or {}
        self._is_over = True
        return int(done.get("return", -1))

    def _runs(self) -> bool:
        """LXD need not end the streams of a command that it cannot run, such as without an agent."""
        return bool(self._lxd.get("operations", self._operation)["status_code"] == RUNNING)


def _received(stream: websocket.WebSocket, deadline: float) -> Iterator[bytes]:
    """The output that a stream of LXD carries until its end: a text, or a close.

    Frame by frame: a message may have any size.
    """
    carries = (websocket.ABNF.OPCODE_BINARY, websocket.ABNF.OPCODE_CONT)
    while (left := deadline - time.monotonic()) > 0:
        stream.settimeout(left)
        try:
            frame = stream.recv_frame()  # type: ignore[no-untyped-call]
        except (websocket.WebSocketConnectionClosedException, ConnectionError):
            return
        if frame.opcode in (websocket.ABNF.OPCODE_CLOSE, websocket.ABNF.OPCODE_TEXT):
            return
        if frame.opcode in carries and frame.data:
            yield bytes(frame.data)
    raise websocket.WebSocketTimeoutException("timed out")
