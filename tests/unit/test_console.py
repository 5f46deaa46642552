"""Reading a console: whatever a job prints to it, and however slowly, the read ends."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import websocket

from engine import console
from engine.client import LxdClient
from errors import LxdError

CLOSED = websocket.WebSocketConnectionClosedException("closed")


class Stream:
    """A console that prints what it is given, each part after a second of the test's clock."""

    def __init__(self, clock: list[float], parts: Iterator[Any]) -> None:
        self.clock, self.parts, self.limit = clock, parts, 0.0
        self.sent: list[bytes] = []
        self.closed = False

    def send_binary(self, data: bytes) -> None:
        self.sent.append(data)

    def settimeout(self, seconds: float) -> None:
        self.limit = seconds

    def recv(self) -> Any:
        if self.limit < 1:
            self.clock[0] += self.limit
            raise websocket.WebSocketTimeoutException("timed out")
        self.clock[0] += 1
        part = next(self.parts)
        if isinstance(part, Exception):
            raise part
        return part

    def close(self) -> None:
        self.closed = True


class ConsoleLxd(LxdClient):
    """LXD that opens a console."""

    def request(self, method: str, *path: str, timeout: float = 30, **options: Any) -> requests.Response:
        assert (method, path) == ("POST", ("instances", "app-0-aa", "console"))
        response = requests.Response()
        operation = {"id": "7", "metadata": {"fds": {"0": "abc", "control": "def"}}}
        response._content = json.dumps({"metadata": operation}).encode()
        return response


def read(monkeypatch: pytest.MonkeyPatch, *parts: Any, forever: bool = False) -> tuple[bytes, list[float], Stream]:
    clock = [0.0]
    stream = Stream(clock, iter(lambda: parts[0], None) if forever else iter(parts))
    opened: list[str] = []
    monkeypatch.setattr("engine.console.time.monotonic", lambda: clock[0])

    def connect(resource: str, _: str) -> Stream:
        opened.append(resource)
        return stream

    monkeypatch.setattr(console, "connect", connect)
    found = console.read(ConsoleLxd(), "app-0-aa", end=b"the end", limit=100, timeout=10)
    assert opened == [f"/1.0/operations/7/websocket?secret={secret}" for secret in ("abc", "def")]
    assert stream.closed
    return found, clock, stream


@pytest.mark.parametrize("parts", [(b"words the end", b"more"), (b"words the", b" end", b"more"), ("words the end",)])
def test_a_read_ends_with_the_last_words(monkeypatch: pytest.MonkeyPatch, parts: tuple[Any, ...]) -> None:
    """One line is sent, and the read ends once the last words have come, in one part or in several."""
    found, _, stream = read(monkeypatch, *parts)

    assert found == b"words the end"
    assert stream.sent == [b"\r\n"]


@pytest.mark.parametrize(("part", "size", "seconds"), [(b"x" * 60, 100, 2), (b"x", 9, 10)])
def test_a_read_has_a_size_and_a_time(monkeypatch: pytest.MonkeyPatch, part: bytes, size: int, seconds: float) -> None:
    """Output without an end is cut to a size, slow output to a time."""
    found, clock, _ = read(monkeypatch, part, forever=True)

    assert len(found) == pytest.approx(size, abs=1)
    assert clock[0] == pytest.approx(seconds, abs=0.01)


def test_a_console_that_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came before the connection ended is kept; without anything it is an error."""
    assert read(monkeypatch, b"words", CLOSED)[0] == b"words"
    with pytest.raises(LxdError, match="console of app-0-aa"):
        read(monkeypatch, CLOSED)
