"""The host's side of one virtual machine's vsock, in user space: a vhost-user back end for QEMU's vhost-user-vsock-pci.

For hosts without /dev/vhost-vsock. The guest sees an ordinary virtio-vsock device. On the host every vsock address is
a unix socket in one folder, and AF_VSOCK is never opened:

  FOLDER/CID.sock         programs connect here and write "CONNECT PORT"; the answer is "OK PORT" if the guest accepts
  FOLDER/host-PORT.sock   where a connection of the guest to the host goes; its first line is "FROM CID PORT"

usage: vsock_backend.py CID VHOST_USER_SOCKET FOLDER
"""

import os
import select
import selectors
import socket
import struct
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from vhost_user import RECEIVE, TRANSMIT, Device

HOST_CID = 2
# Of a packet: CIDs and ports of source and target, length, type, operation, flags, size of the buffer, bytes taken.
HEADER = struct.Struct("<QQIIIHHIII")
STREAM = 1
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
NO_RECEIVE, NO_SEND = 1, 2
BUFFER = 256 * 1024
LONGEST_GREETING = 32
FIRST_PORT = 1 << 30


class Connection:
    """One stream between a program of the host and the guest. ``guest_port`` is 0 until the program has named it."""

    def __init__(self, sock: socket.socket, host_port: int, guest_port: int) -> None:
        self.sock, self.host_port, self.guest_port = sock, host_port, guest_port
        self.established = self.closing = False
        self.greeting = b""
        # Bytes that came from the guest, and how many of them the guest was told about.
        self.received = self.reported = 0
        self.sent = self.peer_buffer = self.peer_taken = 0
        # What the program has not read yet, and whether it counts as the guest's data.
        self.backlog: deque[tuple[bytes, bool]] = deque()
        self.end_of_input = self.end_of_output = False
        self.mask = 0

    @property
    def credit(self) -> int:
        """How many bytes the guest has room for."""
        return self.peer_buffer - ((self.sent - self.peer_taken) & 0xFFFFFFFF)


class Backend:
    """The vsock of one virtual machine."""

    def __init__(self, cid: int, path: Path, folder: Path) -> None:
        self.cid, self.folder = cid, folder
        self.connections: dict[tuple[int, int], Connection] = {}
        self.out: deque[bytes] = deque()
        self.next_port = FIRST_PORT
        self.selector = selectors.DefaultSelector()
        self.device = Device(self.selector, struct.pack("<Q", cid), self._take, self._reset)
        self.receive, self.transmit = self.device.queues[RECEIVE], self.device.queues[TRANSMIT]
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{cid}.sock"
        self.programs = listen(self.path)
        # Last: who waits for this one finds everything else.
        self.control = listen(path)

    def run(self) -> None:
        """Serve until QEMU has gone (EOFError)."""
        control, _ = self.control.accept()
        self.control.close()
        self.device.serve(control)
        self.selector.register(self.programs, selectors.EVENT_READ, lambda _: self._on_program())
        while True:
            for key, mask in self.selector.select():
                try:
                    key.data(mask)
                except ConnectionError:
                    if key.fileobj is control:
                        raise EOFError from None
                    raise
            self._pump()

    def _reset(self) -> None:
        """The guest has gone, or another system boots in it."""
        for connection in list(self.connections.values()):
            self._drop(connection)
        self.out.clear()

    # From the guest.

    def _take(self) -> None:
        took = False
        while self.transmit.pending():
            head, buffers = self.transmit.pop()
            packet = b"".join(bytes(view) for view, _ in buffers)
            self.transmit.push(head, 0)
            took = True
            self._on_packet(packet)
        if took:
            self.transmit.interrupt()

    def _on_packet(self, packet: bytes) -> None:
        _, target, source_port, target_port, length, kind, operation, flags, allocated, taken = HEADER.unpack_from(
            packet
        )
        if kind != STREAM or target != HOST_CID:
            self._send(RST, target_port, source_port)
            return
        connection = self.connections.get((target_port, source_port))
        if connection is None:
            if operation == REQUEST:
                self._accept(target_port, source_port, allocated, taken)
            elif operation != RST:
                self._send(RST, target_port, source_port)
            return
        connection.peer_buffer, connection.peer_taken = allocated, taken
        if operation == RESPONSE:
            connection.established = True
            self._write(connection, b"OK %d\n" % connection.host_port)
        elif operation == RST:
            # What the guest sent before is still to be delivered.
            connection.closing = True
            self._write(connection, b"")
        elif operation == SHUTDOWN:
            self._on_shutdown(connection, flags)
        elif operation == RW:
            self._write(connection, packet[HEADER.size : HEADER.size + length], counted=True)
        elif operation == CREDIT_REQUEST:
            self._send_for(connection, CREDIT_UPDATE)

    def _on_shutdown(self, connection: Connection, flags: int) -> None:
        if flags & NO_SEND:
            connection.end_of_input = True
        if flags & NO_RECEIVE:
            connection.end_of_output = True
        if flags & NO_SEND and flags & NO_RECEIVE:
            connection.closing = True
            self._send(RST, connection.host_port, connection.guest_port)
        self._write(connection, b"")

    def _accept(self, host_port: int, guest_port: int, allocated: int, taken: int) -> None:
        """A connection of the guest to a port of the host."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(self.folder / f"host-{host_port}.sock"))
            sock.sendall(b"FROM %d %d\n" % (self.cid, guest_port))
        except OSError:
            sock.close()
            self._send(RST, host_port, guest_port)
            return
        connection = self._add(sock, host_port, guest_port)
        connection.established = True
        connection.peer_buffer, connection.peer_taken = allocated, taken
        self._send_for(connection, RESPONSE)

    def _write(self, connection: Connection, data: bytes, counted: bool = False) -> None:
        """To the program on the host, at once or as soon as it reads."""
        if data:
            connection.backlog.append((data, counted))
        while connection.backlog:
            first, counts = connection.backlog[0]
            try:
                done = connection.sock.send(first, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError:
                self._send_for(connection, RST)
                self._drop(connection)
                return
            if counts:
                connection.received = (connection.received + done) & 0xFFFFFFFF
            if done == len(first):
                connection.backlog.popleft()
            else:
                connection.backlog[0] = first[done:], counts
        self._written(connection)

    def _written(self, connection: Connection) -> None:
        """After data was delivered: what follows from it for the program and for the guest."""
        if not connection.backlog:
            if connection.closing:
                self._drop(connection)
                return
            if connection.end_of_input:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_WR)
        if (connection.received - connection.reported) & 0xFFFFFFFF > BUFFER // 2:
            self._send_for(connection, CREDIT_UPDATE)

    # From programs of the host.

    def _on_program(self) -> None:
        sock, _ = self.programs.accept()
        self._add(sock, self.next_port, 0)
        self.next_port = FIRST_PORT | ((self.next_port + 1) & (FIRST_PORT - 1))

    def _add(self, sock: socket.socket, host_port: int, guest_port: int) -> Connection:
        sock.setblocking(False)
        connection = self.connections[host_port, guest_port] = Connection(sock, host_port, guest_port)
        return connection

    def _drop(self, connection: Connection) -> None:
        self.connections.pop((connection.host_port, connection.guest_port), None)
        if connection.mask:
            self.selector.unregister(connection.sock)
            connection.mask = 0
        connection.sock.close()

    def _on_socket(self, connection: Connection, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._write(connection, b"")
        if not mask & selectors.EVENT_READ or connection.sock.fileno() < 0:
            return
        if not connection.guest_port:
            self._greet(connection)
            return
        while connection.credit > 0 and self.receive.pending() and not self.out:
            try:
                data = connection.sock.recv(min(connection.credit, 65536, self.receive.room() - HEADER.size))
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                connection.end_of_output = True
                self._send_for(connection, SHUTDOWN, flags=NO_SEND | (NO_RECEIVE if hung_up(connection.sock) else 0))
                return
            connection.sent = (connection.sent + len(data)) & 0xFFFFFFFF
            self._send_for(connection, RW, data)
            self._flush()

    def _greet(self, connection: Connection) -> None:
        """The first line of a program. Byte by byte, because what follows belongs to the guest."""
        while True:
            try:
                byte = connection.sock.recv(1)
            except BlockingIOError:
                return
            except OSError:
                byte = b""
            if byte == b"\n":
                break
            connection.greeting += byte
            if not byte or len(connection.greeting) > LONGEST_GREETING:
                self._drop(connection)
                return
        word, _, port = connection.greeting.partition(b" ")
        if word != b"CONNECT" or not port.isdigit() or not self.transmit.ready:
            self._drop(connection)
            return
        del self.connections[connection.host_port, 0]
        connection.guest_port = int(port)
        self.connections[connection.host_port, connection.guest_port] = connection
        self._send_for(connection, REQUEST)

    # To the guest.

    def _send_for(self, connection: Connection, operation: int, data: bytes = b"", flags: int = 0) -> None:
        connection.reported = connection.received
        self._send(operation, connection.host_port, connection.guest_port, data, flags, connection.received)

    def _send(
        self, operation: int, host_port: int, guest_port: int, data: bytes = b"", flags: int = 0, taken: int = 0
    ) -> None:
        addresses = (HOST_CID, self.cid, host_port, guest_port)
        self.out.append(HEADER.pack(*addresses, len(data), STREAM, operation, flags, BUFFER, taken) + data)

    def _flush(self) -> None:
        sent = False
        while self.out and self.receive.pending():
            packet = self.out.popleft()
            head, buffers = self.receive.pop()
            at = 0
            for view, writable in buffers:
                if writable and at < len(packet):
                    part = packet[at : at + len(view)]
                    view[: len(part)] = part
                    at += len(part)
            self.receive.push(head, at)
            sent = True
        if sent:
            self.receive.interrupt()

    def _pump(self) -> None:
        """After each round: send what waits, and listen only to programs whose data has room in the guest."""
        self._flush()
        room = self.receive.pending() and not self.out
        for connection in list(self.connections.values()):
            streams = connection.established and not connection.end_of_output and connection.credit > 0 and room
            mask = selectors.EVENT_READ if streams or not connection.guest_port else 0
            mask |= selectors.EVENT_WRITE if connection.backlog else 0
            self._listen_to(connection, mask)

    def _listen_to(self, connection: Connection, mask: int) -> None:
        if mask == connection.mask:
            return
        if connection.mask:
            self.selector.unregister(connection.sock)
        if mask:
            self.selector.register(connection.sock, mask, lambda found: self._on_socket(connection, found))
        connection.mask = mask


def hung_up(sock: socket.socket) -> bool:
    """Whether the program has closed its socket, not only ended its own data."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return any(mask & select.POLLHUP for _, mask in poll.poll(0))


def listen(path: Path) -> socket.socket:
    """A unix socket for root alone, in the place of an old one."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    path.chmod(0o600)
    sock.listen(64)
    return sock


def main() -> None:
    """Serve one virtual machine until its QEMU ends."""
    cid, path, folder = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    backend = Backend(cid, path, folder)
    try:
        with suppress(EOFError):
            backend.run()
    finally:
        for socket_file in (path, backend.path):
            socket_file.unlink(missing_ok=True)


if __name__ == "__main__":
    os.umask(0o077)
    main()
