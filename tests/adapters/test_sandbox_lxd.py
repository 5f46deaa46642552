"""The sandbox asks an LXD over its socket, which a server of the test stands in for."""

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.lab import lxd_socket
from sandbox.shell import SandboxError

ANSWERS = {
    "/1.0/instances": json.dumps({"type": "sync", "metadata": ["/1.0/instances/a"]}),
    "/1.0/instances/b": json.dumps({"type": "error", "error": "Instance not found"}),
    "/1.0/broken": "<html>",
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives the answers above; a socket has no address that a log could show."""

    def do_GET(self) -> None:
        text = ANSWERS[self.path].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The files of a machine whose LXD listens."""
    place = tmp_path / lxd_socket.SOCKET
    place.parent.mkdir(parents=True)
    with socketserver.UnixStreamServer(str(place), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path
        server.shutdown()
        thread.join()


def test_an_answer_is_its_metadata(root: Path) -> None:
    """What LXD answers is given as it is, without LXD's own frame."""
    assert lxd_socket.get(root, "/1.0/instances") == ["/1.0/instances/a"]


@pytest.mark.parametrize(("path", "words"), [("/1.0/instances/b", "Instance not found"), ("/1.0/broken", "answer")])
def test_a_refusal_is_an_error(root: Path, path: str, words: str) -> None:
    """A refusal has LXD's words, and an answer that is none is an error that names the request."""
    with pytest.raises(SandboxError, match=f"{path}.*{words}|{words}.*{path}"):
        lxd_socket.get(root, path)


def test_a_silent_lxd_is_an_oserror(tmp_path: Path) -> None:
    """An LXD that does not listen is told from one that refuses."""
    with pytest.raises(OSError, match="No such file"):
        lxd_socket.get(tmp_path, "/1.0")
