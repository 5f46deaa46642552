"""The LXD adapter over a UNIX socket, with answers that no real LXD gives on request."""

import base64
import hashlib
import http.server
import itertools
import json
import queue
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pytest

import times
from engine import api
from engine import events as lifecycle
from engine.client import LxdClient
from engine.command import Command
from engine.instance import LxdInstance
from errors import LxdError, LxdNotFoundError

DATA = {"name": "app-0-aa", "status": "Running", "type": "container", "config": {}}
MIB = 1 << 20
ACCEPT_KEY = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Daemon(http.server.BaseHTTPRequestHandler):
    """An LXD whose instances have one file each, which is sent without a length for as long as somebody reads it."""

    kind = "file"
    sent = 0

    def do_GET(self) -> None:
        if "/files" not in self.path:
            self._answer(json.dumps({"type": "sync", "metadata": {"auth": "trusted", "api_extensions": []}}).encode())
            return
        self.send_response(200)
        self.send_header("X-LXD-type", Daemon.kind)
        self.end_headers()
        try:
            while Daemon.sent < 64 * MIB:
                Daemon.sent += self.wfile.write(b"x" * 65536)
        except OSError:
            pass

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "local"

    def log_message(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def served(folder: Path, handler: type[Daemon]) -> Iterator[LxdClient]:
    """A client of a stand-in for LXD."""
    path = folder / "unix.socket"
    with Server(str(path), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        client = LxdClient(f"http+unix://{quote(str(path), safe='')}")
        yield client
        server.shutdown()


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LxdInstance]:
    """An instance of the stand-in for LXD."""
    monkeypatch.setattr(Daemon, "sent", 0)
    with served(tmp_path, Daemon) as client:
        yield LxdInstance(client, DATA)


@pytest.mark.parametrize("limit", [1, 65536, MIB + 1])
def test_a_file_is_read_up_to_the_limit(instance: LxdInstance, limit: int) -> None:
    """A job may have made the file of any size: exactly as much as the limit is read, and the rest is not fetched."""
    assert instance.pull("/var/log/syslog", limit) == b"x" * limit
    assert Daemon.sent < limit + 8 * MIB


@pytest.mark.parametrize("kind", ["symlink", "directory"])
def test_only_a_regular_file_is_read(instance: LxdInstance, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A link or a folder in the place of a log is an error before anything of it is read."""
    monkeypatch.setattr(Daemon, "kind", kind)

    with pytest.raises(LxdError, match=f"is a {kind}, not a file"):
        instance.pull("/var/log/syslog", 10)


def test_a_file_that_does_not_end_in_time_is_an_error(instance: LxdInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly its bytes arrive, the read has an end."""
    monkeypatch.setattr("engine.instance.time.monotonic", iter(range(0, 10**6, 20)).__next__)

    with pytest.raises(LxdError, match="was not read within"):
        instance.pull("/var/log/syslog", 32 * MIB)


class Events:
    """LXD's event stream: the messages of one connection after another, each of which ends on request."""

    def __init__(self, path: Path, *connections: list[str]) -> None:
        self._connections = connections
        self._ends = threading.Semaphore(0)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self._listening as listening:
            for messages in self._connections:
                with listening.accept()[0] as peer:
                    self._handshake(peer)
                    for message in messages:
                        # One frame with a text that is shorter than 65536 bytes.
                        peer.sendall(b"\x81\x7e" + len(message).to_bytes(2, "big") + message.encode())

                    self._ends.acquire(timeout=60)

    def end(self) -> None:
        """End this connection, or the next one as soon as its messages are sent."""
        self._ends.release()

    def _handshake(self, peer: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += peer.recv(65536)
        found = re.search(rb"(?i)sec-websocket-key: (\S+)", request)
        assert found is not None
        peer.sendall(accepted(found[1]))


def accepted(key: bytes) -> bytes:
    """The answer to a client of a websocket that sent this key."""
    accept = base64.b64encode(hashlib.sha1(key + ACCEPT_KEY.encode()).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()


def deleted(name: str) -> str:
    return json.dumps({"metadata": {"action": "instance-deleted", "source": f"/1.0/instances/{name}"}})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between two attempts to connect, which last no time."""
    found: list[float] = []
    monkeypatch.setattr("engine.events.time.sleep", found.append)
    return found


def follow(path: Callable[[], Path]) -> Iterator[set[str]]:
    return lifecycle.ended(lambda name: name.startswith("app-0-"), 0.2, path)


def test_the_watcher_connects_again_after_the_stream_has_ended(tmp_path: Path, waits: list[float]) -> None:
    """A restart of LXD ends the stream. After each connection an empty set says that events may have been missed."""
    path = tmp_path / "events.socket"
    events = Events(path, [deleted("app-0-aa")], [deleted("other"), deleted("app-0-bb"), deleted("app-0-cc")])
    ended = follow(lambda: path)
    assert (next(ended), next(ended)) == (set(), {"app-0-aa"})

    events.end()

    assert (next(ended), next(ended)) == (set(), {"app-0-bb", "app-0-cc"})
    assert waits[-1] == lifecycle.RETRY_AFTER
    events.end()


def test_ends_are_gathered_for_their_time_only(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many instances end one after another, those of the first moment are told without the later ones."""
    events = Events(tmp_path / "events.socket", [deleted(f"app-0-{name}") for name in "abcd"])
    ended = follow(lambda: tmp_path / "events.socket")
    assert next(ended) == set()

    monkeypatch.setattr("engine.events.time.monotonic", itertools.count(0, 0.15).__next__)

    assert (next(ended), next(ended)) == ({"app-0-a", "app-0-b"}, {"app-0-c", "app-0-d"})
    events.end()


def test_the_watcher_waits_longer_for_an_lxd_that_stays_away(tmp_path: Path, waits: list[float]) -> None:
    """The waits double up to a limit, and begin anew after a connection."""
    path = tmp_path / "events.socket"
    events = Events(path, [], [])
    away: list[Any] = [tmp_path / "nowhere"] * 7
    ended = follow(lambda: away.pop() if away else path)
    events.end()

    assert (next(ended), next(ended)) == (set(), set())
    assert waits[:7] == [1, 2, 4, 8, 16, 30, 30]
    assert waits[7] == lifecycle.RETRY_AFTER
    events.end()


class Operations(Daemon):
    """An LXD where each POST becomes an operation, which ends as a test says."""

    end: ClassVar[dict[str, Any]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if "/operations/" not in self.path:
            super().do_GET()
            return
        self._record({"type": "sync", "metadata": Operations.end})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._record({"type": "async", "metadata": {"id": "7"}})

    def do_DELETE(self) -> None:
        self._record({"type": "sync", "metadata": None})

    def _record(self, body: dict[str, Any]) -> None:
        Operations.asked.append(f"{self.command} {self.path}")
        self._answer(json.dumps(body).encode(), 202 if body["type"] == "async" else 200)


@pytest.fixture
def operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LxdClient]:
    """A client of an LXD whose changes become operations."""
    monkeypatch.setattr(Operations, "asked", [])
    with served(tmp_path, Operations) as client:
        yield client


STARTED = ["POST /1.0/instances/app-0-aa/exec", "GET /1.0/operations/7/wait?timeout=3"]
CANCELLED = "DELETE /1.0/operations/7"


@pytest.mark.parametrize(
    "end",
    [
        {"status_code": 200, "metadata": {"return": 5}, "err": ""},
        {"status_code": 400, "metadata": {"return": 127}, "err": "Command not found"},
    ],
    ids=["a success", "an exit code that LXD reports as an error"],
)
def test_an_operation_that_has_ended_gives_its_result(
    operations: LxdClient, monkeypatch: pytest.MonkeyPatch, end: dict[str, Any]
) -> None:
    """The client waits on the side of LXD for as many seconds as the caller allows."""
    monkeypatch.setattr(Operations, "end", end)

    assert operations.change("POST", "instances", "app-0-aa", "exec", json={}, timeout=3) == end["metadata"]
    assert Operations.asked == STARTED


@pytest.mark.parametrize(
    ("end", "error", "text"),
    [
        ({"status_code": 400, "metadata": None, "err": "no space left"}, LxdError, "no space left"),
        ({"status_code": 400, "metadata": None, "err": "Instance Not Found"}, LxdNotFoundError, "Not Found"),
        ({"status_code": 103, "metadata": {}, "err": ""}, LxdError, "not done within 3 s"),
    ],
    ids=["a failure", "a missing instance", "still running"],
)
def test_an_operation_without_a_result_is_an_error_and_is_cancelled(
    operations: LxdClient, monkeypatch: pytest.MonkeyPatch, end: dict[str, Any], error: type[LxdError], text: str
) -> None:
    """The error names the request and the reason. LXD does not go on with what nobody waits for."""
    monkeypatch.setattr(Operations, "end", end)

    with pytest.raises(LxdError, match=f"POST instances/app-0-aa/exec: .*{text}") as raised:
        operations.change("POST", "instances", "app-0-aa", "exec", json={}, timeout=3)
    assert type(raised.value) is error
    assert Operations.asked == [*STARTED, CANCELLED]


class Commands(Daemon):
    """An LXD whose commands print what a test says, as frames of a websocket; the connections stay open, or not."""

    frames: ClassVar[Iterable[bytes]] = ()
    is_open: ClassVar[bool] = True
    asked: ClassVar[dict[str, Any]] = {}
    connected: ClassVar[list[str]] = []
    ordered: ClassVar["queue.SimpleQueue[bytes]"] = queue.SimpleQueue()

    def do_POST(self) -> None:
        Commands.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        streams = {"0": "in", "1": "out", "2": "err", "control": "control"}
        operation = {"id": "7", "metadata": {"fds": streams}}
        self._answer(json.dumps({"type": "async", "metadata": operation}).encode(), 202)

    def do_GET(self) -> None:
        stream = self.path.partition("/operations/7/websocket?secret=")[2]
        if not stream:
            super().do_GET()
            return
        Commands.connected.append(stream)
        self.wfile.write(accepted(self.headers["Sec-WebSocket-Key"].encode()))
        # A command that is over gets no order.
        if stream == "control" and (head := self.rfile.read(2)):
            size = head[1] & 127
            mask, data = self.rfile.read(4), self.rfile.read(size)
            Commands.ordered.put(bytes(byte ^ mask[place % 4] for place, byte in enumerate(data)))
        # The client closes its connections whenever it has read enough.
        with suppress(OSError):
            for each in Commands.frames if stream == "out" else ():
                self.wfile.write(each)
            if Commands.is_open:
                self.rfile.read()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LxdInstance]:
    """An instance with commands that print what the test says. Each of them is killed in the end."""
    monkeypatch.setattr(Commands, "connected", [])
    monkeypatch.setenv("LXD_DIR", str(tmp_path))
    with served(tmp_path, Commands) as client:
        yield LxdInstance(client, DATA)
        assert json.loads(Commands.ordered.get(timeout=10)) == {"command": "signal", "signal": 9}


BINARY, BEGIN, REST, TEXT, CLOSE, PING = 0x82, 0x02, 0x80, 0x81, 0x88, 0x89


def frame(kind: int, data: bytes = b"") -> bytes:
    return bytes([kind, len(data)]) + data


@pytest.mark.parametrize(
    ("end", "is_open"),
    [(frame(TEXT), True), (frame(CLOSE), True), (b"", False)],
    ids=["a text", "a close", "an end of the connection"],
)
def test_the_output_of_a_command_comes_until_its_end(
    running: LxdInstance, monkeypatch: pytest.MonkeyPatch, end: bytes, is_open: bool
) -> None:
    """Whatever frames it has. The command begins with the last connection: that of the control is the first."""
    printed = [frame(BEGIN, b"one "), frame(PING, b"?"), frame(REST, b"two"), frame(BINARY, b", three"), end]
    monkeypatch.setattr(Commands, "frames", [*printed, frame(BINARY, b" later")] if is_open else printed)
    monkeypatch.setattr(Commands, "is_open", is_open)

    assert running.output(["/bin/sh"], 100, 60) == b"one two, three"
    assert (Commands.asked["command"], Commands.asked["wait-for-websocket"]) == (["/bin/sh"], True)
    assert Commands.connected == ["control", "err", "out", "in"]


def test_no_more_of_an_output_is_read_than_its_limit(running: LxdInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job may have replaced the command by one that prints without an end."""
    monkeypatch.setattr(Commands, "frames", itertools.repeat(frame(BINARY, b"x" * 100)))

    assert running.output(["/bin/sh"], 250, 60) == b"x" * 250


@pytest.mark.parametrize("frames", [(), itertools.repeat(frame(PING))], ids=["silent", "without output"])
def test_a_command_that_is_not_over_in_time_is_an_error(
    running: LxdInstance, monkeypatch: pytest.MonkeyPatch, frames: Iterable[bytes]
) -> None:
    """Which names it. No sign of life makes its time longer, and a reconcile does not wait for it."""
    monkeypatch.setattr(Commands, "frames", frames)

    started = time.monotonic()
    with pytest.raises(LxdError, match=r"sh in app-0-aa: .*timed out"):
        running.output(["/bin/sh"], 100, 0.2)

    assert 0.2 <= time.monotonic() - started < 10


class Fed(Commands):
    """A command that prints a line, reads its input to the end, prints what it read, and ends with 3."""

    begins: ClassVar[bytes] = b"\n"
    words: ClassVar[bytes] = b""
    """The last ones of a command that closes its input."""
    inputs: ClassVar["queue.SimpleQueue[bytes]"] = queue.SimpleQueue()
    operation: ClassVar[dict[str, Any]] = {"status_code": 200, "metadata": {"return": 3}, "err": ""}

    def do_GET(self) -> None:
        stream = self.path.partition("/operations/7/websocket?secret=")[2]
        if stream:
            getattr(self, f"_{stream}", super().do_GET)()
        else:
            self._answer(json.dumps({"type": "sync", "metadata": self.operation}).encode(), 200)

    def _in(self) -> None:
        self.wfile.write(accepted(self.headers["Sec-WebSocket-Key"].encode()))
        read = b""
        if self.words:
            self.close_connection = True
            return
        while (data := self._frame()) is not None:
            read += data
        Fed.inputs.put(read)

    def _frame(self) -> bytes | None:
        """The content of a frame; None at the end, which is a text or one of the connection."""
        head = self.rfile.read(2)
        if not head or head[0] != BINARY:
            return None
        size = head[1] & 127
        if size > 125:
            size = int.from_bytes(self.rfile.read(2 if size == 126 else 8), "big")
        mask, data = self.rfile.read(4), self.rfile.read(size)
        return bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))

    def _out(self) -> None:
        self.wfile.write(accepted(self.headers["Sec-WebSocket-Key"].encode()))
        if not self.begins:
            self.rfile.read()
            return
        self.wfile.write(frame(BINARY, self.begins))
        words = self.words or str(len(Fed.inputs.get(timeout=30))).encode()
        self.wfile.write(frame(PING, b"?") + frame(BINARY, words) + frame(TEXT))


@pytest.fixture
def fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LxdInstance]:
    """An instance whose commands are Fed."""
    for name, owner in (("ordered", Commands), ("inputs", Fed)):
        monkeypatch.setattr(owner, name, queue.SimpleQueue())
    monkeypatch.setenv("LXD_DIR", str(tmp_path))
    with served(tmp_path, Fed) as client:
        yield LxdInstance(client, DATA)


def test_a_command_is_given_its_input(fed: LxdInstance) -> None:
    """In parts of any size, as soon as it has printed its line. Exit code and output come after its end."""
    with fed.begin(["/bin/sh"], {"HOME": "/root"}) as command:
        parts = [b"x" * size for size in (1, 200, 70_000)]
        command.feed(lambda out: list(map(out.write, parts)), 30)
        assert command.result() == (3, "\n70201")

    assert Commands.asked["environment"] == {"HOME": "/root"}
    # No signal was sent to what is over.
    assert Commands.ordered.empty()


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ({"status_code": 200, "metadata": {"return": 2}, "err": ""}, (2, "\nno room")),
        ({"status_code": 200, "metadata": {"return": 0}, "err": ""}, "did not answer properly"),
        ({"status_code": 400, "metadata": None, "err": "the agent is gone"}, "did not answer properly"),
    ],
    ids=["failed", "successful", "unknown"],
)
def test_a_command_that_does_not_read_on_has_the_last_word(
    fed: LxdInstance, monkeypatch: pytest.MonkeyPatch, end: dict[str, Any], expected: object
) -> None:
    """It ended because of something, and may have said what. Nothing more is sent, whoever tries to."""
    monkeypatch.setattr(Fed, "operation", end)
    monkeypatch.setattr(Fed, "words", b"no room")

    def write(out: Command) -> None:
        with pytest.raises(LxdError) as raised:
            sum(out.write(bytes(65536)) for _ in itertools.repeat(None))
        with pytest.raises(LxdError) as again:
            out.write(b"x")
        assert again.value is raised.value
        raise raised.value

    with fed.begin(["/bin/sh"]) as command:
        command.feed(write, 30)
        if isinstance(expected, str):
            with pytest.raises(LxdError, match=expected):
                command.result()
        else:
            assert command.result() == expected


def test_a_command_that_does_not_end_is_given_up_with_its_last_words(
    fed: LxdInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the time and what it had printed until then."""
    monkeypatch.setattr(Fed, "begins", b"\nwaiting for snapd")
    with fed.begin(["/bin/sh"]) as command:
        command.feed(lambda out: out.write(b"x"), 0)
        with pytest.raises(LxdError, match="sh in app-0-aa: not done within 0 s: waiting for snapd"):
            command.result()


def test_a_command_that_has_not_ended_is_killed(fed: LxdInstance) -> None:
    """Whatever ends the sending: nothing goes on in the instance with a part of its input."""
    with suppress(ZeroDivisionError), fed.begin(["/bin/sh"]) as command:
        command.write(b"x")
        1 / 0  # noqa: B018

    assert json.loads(Commands.ordered.get(timeout=10)) == {"command": "signal", "signal": 9}


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        ({"status_code": 400, "metadata": None, "err": "Operation not found"}, "not within 0 s: .*not found"),
        ({"status_code": 400, "metadata": None, "err": "agent isn't currently running"}, "agent isn't currently"),
        ({"status_code": 200, "metadata": {"return": 137}, "err": ""}, "sh in app-0-aa: ended with 137"),
        ({"status_code": 103, "metadata": None, "err": ""}, "sh in app-0-aa: not begun within"),
    ],
    ids=["LXD has removed it", "LXD cannot run it", "it is killed", "it prints nothing"],
)
def test_a_command_that_does_not_begin_is_an_error(
    fed: LxdInstance, monkeypatch: pytest.MonkeyPatch, operation: dict[str, Any], text: str
) -> None:
    """Although its streams stay open: LXD's operation tells. The error has the reason, and nothing was sent."""
    monkeypatch.setattr(Fed, "begins", b"")
    monkeypatch.setattr(Fed, "operation", operation)
    monkeypatch.setattr("engine.command.ASK_INTERVAL", 0.05)
    monkeypatch.setattr(times, "READY", {"virtual-machine": 0.2, "container": 0.2})

    with pytest.raises(LxdError, match=text):
        fed.begin(["/bin/sh"])


def test_a_daemon_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to a daemon that accepts it and stays silent is an error after the time limit of a request."""
    monkeypatch.setattr(api, "REQUEST_TIMEOUT", 0.1)
    path = tmp_path / "silent.socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen()

        with pytest.raises(LxdError, match="timed out"):
            LxdClient(f"http+unix://{quote(str(path), safe='')}").instances()
