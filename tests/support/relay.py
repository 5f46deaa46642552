"""The network between a client and a server on this machine, which a test can take away."""

import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit


class Relay:
    """Passes TCP connections on to a server, until the network is cut or silent."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (str(parts.hostname), int(parts.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{parts.scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._passes = threading.Event()
        self._passes.set()
        self._is_cut = self._is_over = False
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """End all connections, and each new one at once."""
        self._is_cut = True
        self._end_connections()

    def silence(self) -> None:
        """Keep connections open, also new ones, and pass nothing on."""
        self._passes.clear()

    def restore(self) -> None:
        """The network is there again. Connections that had become silent are over."""
        self._end_connections()
        self._is_cut = False
        self._passes.set()

    def _end_connections(self) -> None:
        for each in list(self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            inner, _ = self._listener.accept()
            if self._is_cut or self._is_over:
                inner.close()
                if self._is_over:
                    return
                continue
            outer = socket.create_connection(self._target)
            for pair in ((inner, outer), (outer, inner)):
                self._threads.append(threading.Thread(target=self._pass_on, args=pair, daemon=True))
                self._threads[-1].start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        self._sockets.add(source)
        with suppress(OSError):
            while data := source.recv(65536):
                self._passes.wait()
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._sockets.discard(source)
        source.close()

    def close(self) -> None:
        """Pass nothing on any more."""
        self._is_over = True
        self.restore()
        # Wakes up what waits for a connection.
        socket.create_connection(self._listener.getsockname()).close()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()
