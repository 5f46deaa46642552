"""The policy service's client, over real HTTP."""

import contextlib
import gzip
import http.server
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
import stamina

import repo_policy
from errors import PolicyError
from models import RepoPolicy
from repo_policy import RepoPolicyClient


class Service(http.server.BaseHTTPRequestHandler):
    """Gives the answer that the test has set to whoever has the right token."""

    status, body = 200, "one-time"
    seen: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization", "")))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    # The model's proxies must not be asked for the operator's own service.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(Service, "seen", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_one_time_token_is_asked_for_with_the_services_token(service: str) -> None:
    """GET /one-time-token with a bearer token, past any proxy."""
    client = RepoPolicyClient(RepoPolicy(service, "charm-token"))

    assert client.one_time_token() == "one-time"
    assert client.url == service
    assert Service.seen == [("/one-time-token", "Bearer charm-token")]


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (401, "no", "401"),
        (500, "broken", "500"),
        (200, "", "not one"),
        (200, "a\nb", "not one"),
        (200, "x" * 2000, "not one"),
    ],
)
def test_no_token_is_a_policy_error(
    service: str, monkeypatch: pytest.MonkeyPatch, status: int, body: str, word: str
) -> None:
    """Refusals, failures and what is no token end the creation of that runner with a reason without the token."""
    monkeypatch.setattr(Service, "status", status)
    monkeypatch.setattr(Service, "body", body)

    with pytest.raises(PolicyError, match=word) as raised:
        RepoPolicyClient(RepoPolicy(service, "charm-token")).one_time_token()
    assert "charm-token" not in str(raised.value)


@pytest.mark.parametrize(("lost", "given"), [(2, True), (3, False)])
def test_a_lost_connection_is_tried_three_times(
    service: str, monkeypatch: pytest.MonkeyPatch, lost: int, given: bool
) -> None:
    """A service that is being restarted costs no runner; one that stays away does."""
    answer = Service.do_GET

    def dropped(request: Service) -> None:
        if len(Service.seen) < lost:
            Service.seen.append(("", ""))
            request.close_connection = True
        else:
            answer(request)

    monkeypatch.setattr(Service, "do_GET", dropped)
    client = RepoPolicyClient(RepoPolicy(service, "charm-token"))

    monkeypatch.setattr(time, "sleep", lambda _: None)
    with contextlib.nullcontext() if given else pytest.raises(PolicyError, match="does not answer"):
        assert client.one_time_token() == "one-time"
    assert len(Service.seen) == 3


class Odd(http.server.BaseHTTPRequestHandler):
    """Sends what the test has set, piece by piece, until its server is stopped."""

    head: ClassVar[list[bytes]] = []
    piece, pause = b"", 0.0

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.recv(65536)
            for part in self.head:
                self.request.sendall(part)
            while not self.server.stop.wait(self.pause):  # type: ignore[attr-defined]
                self.request.sendall(self.piece)


START = b"HTTP/1.1 200 OK\r\n"
PACKED = gzip.compress(b"token")
LENGTH = f"Content-Length: {len(PACKED)}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("head", "piece", "pause", "word"),
    [
        ([START], b"x", 0.05, "within"),
        ([START, b"Content-Length: 999\r\n\r\n"], b"x", 0.05, "within"),
        ([START, b"\r\n"], b"x" * 65536, 0, "larger than 4096 bytes"),
        ([START, b"Content-Encoding: gzip\r\n\r\n", gzip.compress(bytes(1 << 26))], b"", 0.05, "larger than"),
        ([START, b"Content-Encoding: gzip\r\n" + LENGTH, PACKED], b"", 1, "not one"),
    ],
    ids=["a head that drips", "a body that drips", "no end", "packed zeros", "a packed token"],
)
def test_an_answer_has_a_deadline_and_a_size(
    monkeypatch: pytest.MonkeyPatch, head: list[bytes], piece: bytes, pause: float, word: str
) -> None:
    """A service that is broken or taken over costs bounded time and memory, whatever it sends."""
    for name, value in (("head", head), ("piece", piece), ("pause", pause)):
        monkeypatch.setattr(Odd, name, value)
    monkeypatch.setattr(repo_policy, "DEADLINE", 0.5 if word == "within" else 10.0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    server.stop = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    started = time.monotonic()
    try:
        with pytest.raises(PolicyError, match=word):
            RepoPolicyClient(RepoPolicy(f"http://127.0.0.1:{server.server_address[1]}", "t")).one_time_token()
        assert time.monotonic() - started < 10
    finally:
        server.stop.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()


def test_absent_service_is_a_policy_error() -> None:
    """Nobody at the address."""
    # Without the waits between the attempts.
    with stamina.set_testing(True, attempts=3), pytest.raises(PolicyError, match="does not answer"):
        RepoPolicyClient(RepoPolicy("http://127.0.0.1:9", "t")).one_time_token()
