"""A stand-in for GitHub: the part of its REST API that concerns runners, and the service that hands out jobs.

`python3 -m sandbox.github --listen 10.0.0.1:8080 --token PAT --repository owner/name` serves it; tests call `serve`.
Under /_control/ there is an interface for tests, open to whoever reaches the server.
"""

import argparse
import contextlib
import json
import select
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from sandbox.github import actions, api, content_routes, control_routes
from sandbox.github.control import GitHubControl, make_app
from sandbox.github.faults import Fault, Faults
from sandbox.github.http import Answer, Request, answer
from sandbox.github.state import Settings, State, Token

WATCH = 0.1
MAX_BODY = 10_000_000


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together
    server: "_Server"

    def version_string(self) -> str:
        return "github.com"

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The Date header goes by GitHub's clock."""
        return super().date_time_string(int(self.server.state.clock() if timestamp is None else timestamp))

    def log_message(self, format: str, *args: object) -> None:
        pass  # requests are recorded, see Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):  # the client went away with our answer half written
            super().finish()

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _serve(self) -> None:
        request = self._request()
        if request is None:
            return
        if request.path.startswith(control_routes.PREFIX):
            with self.server.state.lock:
                self._send(self.server.control.respond(request))
            return
        entry = self.server.record(request)
        fault = self.server.faults.pick(request.method, self.path)
        reply = self._faulty(request, fault) if fault else self.server.respond(request)
        if reply is not None:
            self.server.note(entry, reply.status)
            self._send(reply, fault)
        else:
            self.server.note(entry, 0)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _request(self) -> Request | None:
        """Read the request whole; None if it was refused already."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_BODY or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._send(answer({"message": "a body needs a Content-Length"}, 411))
            return None
        url = urlsplit(self.path)
        return Request(
            method=self.command,
            path=unquote(url.path),
            query=dict(parse_qsl(url.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(length)),
            root=f"{self.server.scheme}://{self.headers.get('Host', self.server.address)}",
            address=self.client_address[0],
            closed=self._closed,
        )

    def _closed(self) -> bool:
        """Whether the client has hung up while it should wait for our answer."""
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
            if isinstance(self.connection, ssl.SSLSocket):  # it cannot peek; a client that waits sends its goodbye only
                return bool(readable)
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def _faulty(self, request: Request, fault: Fault) -> Answer | None:
        """Let the fault act; the answer that is left to be sent, if any."""
        deadline = time.monotonic() + fault.delay
        while not self.server.state.closing and not fault.released.is_set() and not self._closed():
            if time.monotonic() >= deadline and not fault.silence:
                break
            fault.released.wait(WATCH if fault.silence else min(WATCH, max(0.0, deadline - time.monotonic())))
        if fault.silence and (self._closed() or not fault.released.is_set()):  # nobody to answer: nothing was done
            self.close_connection = True
            return None
        if fault.reset:
            self._reset()
            return None
        if fault.status is None and fault.body is None:
            reply = self.server.respond(replace(request, shift=fault.shift))
            reply.headers.update(fault.headers)
            reply.content_type = fault.content_type or reply.content_type
            return reply
        kind = fault.content_type or ("text/html" if fault.body else None)
        return Answer(fault.status or 200, b" " * fault.pad + (fault.body or "").encode(), dict(fault.headers), kind)

    def _reset(self) -> None:
        """End the connection with a TCP reset instead of a proper close."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.resetting.add(self.connection)

    def _send(self, reply: Answer, fault: Fault | None = None) -> None:
        self.send_response(reply.status)
        if reply.content_type is not None:
            self.send_header("Content-Type", reply.content_type)
        if reply.status != 204:
            self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        body = b"" if self.command == "HEAD" else reply.body
        if fault is not None and fault.cut is not None:
            body, self.close_connection = body[: fault.cut], True
        if fault is not None and fault.drip is not None:
            self._drip(body, fault)
        else:
            self.wfile.write(body)
        self.wfile.flush()

    def _drip(self, body: bytes, fault: Fault) -> None:
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.state.closing or fault.released.wait(fault.drip):
                break
        else:
            return
        self.close_connection = True


class _Server(ThreadingHTTPServer):
    """The listening socket with what stands behind it."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, address: tuple[str, int], state: State, log: Path | None, context: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(address, _Handler)
        self.scheme = "https" if context else "http"
        if context:  # each connection shakes hands in its own thread, with its first read
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.state, self.faults = state, Faults()
        self.control = control_routes.Control(state, self.faults)
        self.connections: set[socket.socket] = set()
        self.resetting: set[socket.socket] = set()
        self.address = f"{self.server_address[0]!s}:{self.server_address[1]}"
        self._log = log.open("a", encoding="utf-8") if log else None
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def server_bind(self) -> None:
        # The inherited method asks the resolver for the host's name, which hangs on a machine without DNS.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """End a connection; one to be reset must not say a proper goodbye first."""
        if request in self.resetting:
            self.resetting.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def serve(self) -> None:
        """Accept connections until `stop`, which need not wait for this one to look: it does not poll."""
        while not self.state.closing:
            self.handle_request()

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def respond(self, request: Request) -> Answer:
        """Let the part that is responsible answer."""
        with self.state.lock:
            registration = request.path == f"{api.PREFIX}/actions/runner-registration"
            if request.path.startswith("/_actions/") or registration:
                return actions.respond(self.state, request)
            if request.path == api.PREFIX or request.path.startswith(f"{api.PREFIX}/"):
                return api.respond(self.state, request)
            if request.path.startswith("/_codeload/"):
                return content_routes.archive(self.state, request)
            return api.download(self.state, request)

    def record(self, request: Request) -> dict[str, Any]:
        """Note a request when it comes; its status follows. No whole token is ever kept, no body of the API has one."""
        credential = request.credential("bearer", "token", "remoteauth")
        with self.state.lock:
            self.control.count += 1
            entry = {"n": self.control.count, "at": self.state.clock(), "method": request.method, "path": request.path}
            entry.update(query=request.query, status=None, token_hint=_hint(credential))
            entry["body"] = request.body.decode("utf-8", "replace") if request.path.startswith(api.PREFIX) else ""
            self.control.requests.append(entry)
        return entry

    def note(self, entry: dict[str, Any], status: int) -> None:
        with self.state.lock:
            entry["status"] = status
            if self._log:
                self._log.write(json.dumps(entry) + "\n")
                self._log.flush()

    def stop(self) -> None:
        """Refuse new connections and end the open ones, so that no thread and no socket outlives the server."""
        self.state.closing = True
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes `serve`
        self.thread.join()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # gone already
                connection.shutdown(socket.SHUT_RDWR)
        with self.state.lock:
            if self._log:
                self._log.close()
                self._log = None


def _hint(credential: str | None) -> str | None:
    """Enough of a token to tell two apart."""
    return None if credential is None else f"{credential[:4]}…" if len(credential) > 8 else "…"


class GitHub:
    """A running stand-in; a context manager."""

    def __init__(self, server: _Server, ca: str | None = None) -> None:
        self.server = server
        self.state = server.state
        self.url = f"{server.scheme}://{server.address}"
        self.ca = ca
        """The certificate of the authority that signed the server's, as PEM; None without TLS."""
        self.api_url = f"{self.url}{api.PREFIX}"
        server.thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.server.stop()

    def __enter__(self) -> "GitHub":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    tokens: Sequence[str] = (),
    repositories: Sequence[str] = (),
    organisations: Sequence[str] = (),
    settings: Settings | None = None,
    clock: Callable[[], float] = time.time,
    log: Path | None = None,
    tls: bool = False,
) -> GitHub:
    """Serve in a background thread; port 0 takes a free one. With TLS the certificate is of an authority of its own."""
    state = State(settings, clock)
    for token in tokens:
        state.tokens[token] = Token(token)
    for repository in repositories:
        state.add_repository(repository)
    for organisation in organisations:
        state.add_organisation(organisation)
    if not tls:
        return GitHub(_Server((host, port), state, log))
    from sandbox.github.tls import make  # it needs openssl

    authority = make(host)
    return GitHub(_Server((host, port), state, log, authority.context), authority.pem)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line; `owners` are those of all its repositories and organisations."""
    parser = argparse.ArgumentParser(prog="python3 -m sandbox.github", description="Serve a stand-in for GitHub.")
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    parser.add_argument("--token", action="append", default=[], help="a token that may do everything")
    parser.add_argument("--repository", action="append", default=[], metavar="OWNER/NAME")
    parser.add_argument("--organisation", action="append", default=[])
    parser.add_argument("--app", type=Path, metavar="FILE", help="make a GitHub App; FILE gets its private key")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append each request as a line of JSON")
    parser.add_argument("--grace", type=float, default=Settings.grace, help="seconds until a silent runner is offline")
    parser.add_argument("--poll", type=float, default=Settings.poll, help="seconds that a runner's question stays open")
    parser.add_argument("--tls", type=Path, metavar="FILE", help="serve HTTPS; FILE gets the authority's certificate")
    options = parser.parse_args(arguments)
    options.owners = sorted({path.partition("/")[0] for path in (*options.repository, *options.organisation)})
    if options.app and not options.owners:
        parser.error("--app needs a --repository or an --organisation")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve on the command line's terms until interrupted or terminated."""
    # A shell lets a program in the background ignore interrupts. What a handler raises is lost inside a finalizer, so
    # that the signals wait, for every thread, until they are asked for.
    ends = (
        {signal.SIGTERM, signal.SIGINT} if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN else {signal.SIGTERM}
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    options = _options(arguments)
    host, _, port = options.listen.rpartition(":")
    settings = Settings(grace=options.grace, poll=options.poll)
    paths = (options.token, options.repository, options.organisation)
    with serve(host, int(port), *paths, settings=settings, log=options.log, tls=bool(options.tls)) as github:
        if github.ca:
            options.tls.write_text(github.ca)
        print(f"GitHub is at {github.url}", flush=True)
        if options.app:
            print(make_app(GitHubControl(github.url, ca=github.ca), options.app, options.owners), flush=True)
        signal.sigwait(ends)
