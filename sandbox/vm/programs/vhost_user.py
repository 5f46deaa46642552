"""The device's side of vhost-user for two virtqueues (https://qemu.readthedocs.io/en/v7.2.0/interop/vhost-user.html).

QEMU sends requests on a unix socket, and with them file descriptors: the guest's memory, and eventfds for each queue.
"""

import array
import mmap
import os
import selectors
import socket
import struct
from collections.abc import Callable
from enum import IntEnum

VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
CONFIG, REPLY_ACK = 1 << 9, 1 << 3
HEADER = struct.Struct("<III")
VERSION, IS_REPLY, NEEDS_REPLY = 1, 4, 8
NO_DESCRIPTOR = 0x100
DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITABLE, INDIRECT = 1, 2, 4
LONGEST_CHAIN = 1024
RECEIVE, TRANSMIT = 0, 1


class Request(IntEnum):
    """The requests that QEMU sends to such a device and that are not just acknowledged."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24


class Region:
    """A part of the guest's memory, mapped here."""

    def __init__(self, guest: int, size: int, user: int, offset: int, descriptor: int) -> None:
        self.guest, self.size, self.user, self.offset = guest, size, user, offset
        self.view = memoryview(mmap.mmap(descriptor, offset + size))
        os.close(descriptor)


class Memory:
    """The guest's memory, by the guest's own addresses and by QEMU's."""

    def __init__(self) -> None:
        self.regions: list[Region] = []

    def guest(self, address: int, length: int) -> memoryview:
        return self._view("guest", address, length)

    def user(self, address: int, length: int) -> memoryview:
        return self._view("user", address, length)

    def _view(self, kind: str, address: int, length: int) -> memoryview:
        for region in self.regions:
            base = getattr(region, kind)
            if base <= address and address + length <= base + region.size:
                start = address - base + region.offset
                return region.view[start : start + length]
        raise ValueError(f"{kind} address {address:#x}+{length} is not in the guest's memory")


class Queue:
    """One virtqueue of the split layout, without event index: the guest always kicks and is always interrupted."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.number = self.last = 0
        self.addresses: tuple[int, int, int] | None = None
        self.kick = self.call = -1
        self.enabled = False
        self.available: memoryview | None = None

    def start(self) -> None:
        """Map the rings once everything about them is known."""
        if self.available is not None or self.addresses is None or self.kick < 0 or not self.number:
            return
        descriptors, used, available = self.addresses
        self.table = self.memory.user(descriptors, DESCRIPTOR.size * self.number)
        self.available = self.memory.user(available, 4 + 2 * self.number).cast("H")
        ring = self.memory.user(used, 4 + 8 * self.number)
        self.used_index, self.used_ring = ring[:4].cast("H"), ring[4:].cast("I")

    def stop(self) -> None:
        self.available = None

    @property
    def ready(self) -> bool:
        return self.available is not None and self.enabled

    def pending(self) -> bool:
        """Whether the guest has put a chain of buffers into the queue."""
        return self.available is not None and self.enabled and self.available[1] != self.last

    def pop(self) -> tuple[int, list[tuple[memoryview, bool]]]:
        """The next chain of the guest: its number, and its buffers as (view, writable)."""
        assert self.available is not None
        head = self.available[2 + self.last % self.number]
        self.last = (self.last + 1) & 0xFFFF
        buffers, table, index = [], self.table, head
        for _ in range(LONGEST_CHAIN):
            address, length, flags, following = DESCRIPTOR.unpack_from(table, DESCRIPTOR.size * index)
            if flags & INDIRECT:
                table, index = self.memory.guest(address, length), 0
                continue
            buffers.append((self.memory.guest(address, length), bool(flags & WRITABLE)))
            if not flags & NEXT:
                break
            index = following
        return head, buffers

    def room(self) -> int:
        """How many bytes the next chain takes."""
        last = self.last
        _, buffers = self.pop()
        self.last = last
        return sum(len(view) for view, writable in buffers if writable)

    def push(self, head: int, length: int) -> None:
        """Give a chain back to the guest."""
        at = self.used_index[1]
        slot = 2 * (at % self.number)
        self.used_ring[slot], self.used_ring[slot + 1] = head, length
        self.used_index[1] = (at + 1) & 0xFFFF

    def interrupt(self) -> None:
        if self.call >= 0:
            os.write(self.call, struct.pack("=Q", 1))


class Device:
    """A vhost-user device. ``on_transmit``: the guest has sent something; ``on_reset``: the guest has gone."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        config: bytes,
        on_transmit: Callable[[], None],
        on_reset: Callable[[], None],
    ) -> None:
        self.memory = Memory()
        self.queues = [Queue(self.memory), Queue(self.memory)]
        self._selector, self._config = selector, config
        self._on_transmit, self._on_reset = on_transmit, on_reset
        self._acknowledges = False

    def serve(self, control: socket.socket) -> None:
        """Answer QEMU's requests from now on, whenever the selector says that one is there."""
        self._control = control
        self._selector.register(control, selectors.EVENT_READ, lambda _: self._on_request())

    def _on_request(self) -> None:
        header, descriptors = self._receive(HEADER.size)
        request, flags, size = HEADER.unpack(header)
        payload, more = self._receive(size)
        answer = self._handle(request, payload, descriptors + more)
        if answer is None and flags & NEEDS_REPLY and self._acknowledges:
            answer = struct.pack("<Q", 0)
        if answer is not None:
            self._control.sendall(HEADER.pack(request, VERSION | IS_REPLY, len(answer)) + answer)

    def _receive(self, size: int) -> tuple[bytes, list[int]]:
        data, descriptors = b"", list[int]()
        while len(data) < size:
            part, ancillary, _, _ = self._control.recvmsg(size - len(data), socket.CMSG_SPACE(8 * 4))
            if not part:
                raise EOFError
            data += part
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                    descriptors += numbers
        return data, descriptors

    def _handle(self, request: int, payload: bytes, descriptors: list[int]) -> bytes | None:
        """Do what a request asks for; gives the answer, if it has one."""
        if request == Request.GET_FEATURES:
            return struct.pack("<Q", VERSION_1 | PROTOCOL_FEATURES)
        if request == Request.GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", CONFIG | REPLY_ACK)
        if request == Request.GET_QUEUE_NUM:
            return struct.pack("<Q", len(self.queues))
        if request == Request.GET_CONFIG:
            offset, size, flags = struct.unpack_from("<III", payload)
            return struct.pack("<III", offset, size, flags) + self._config[offset : offset + size].ljust(size, b"\0")
        if request == Request.SET_PROTOCOL_FEATURES:
            self._acknowledges = bool(struct.unpack("<Q", payload)[0] & REPLY_ACK)
        elif request == Request.SET_FEATURES:
            if not struct.unpack("<Q", payload)[0] & PROTOCOL_FEATURES:
                for queue in self.queues:
                    queue.enabled = True
        elif request == Request.SET_MEM_TABLE:
            self._map(payload, descriptors)
        elif request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
            (value,) = struct.unpack("<Q", payload)
            self._set_event(request, value & 0xFF, -1 if value & NO_DESCRIPTOR or not descriptors else descriptors[0])
        elif request in Request.__members__.values():
            return self._set_queue(request, payload)
        return None

    def _map(self, payload: bytes, descriptors: list[int]) -> None:
        (count,) = struct.unpack_from("<I", payload)
        layout = [struct.unpack_from("<QQQQ", payload, 8 + 32 * number) for number in range(count)]
        self.memory.regions = [
            Region(guest, size, user, offset, descriptor)
            for (guest, size, user, offset), descriptor in zip(layout, descriptors, strict=False)
        ]
        for queue in self.queues:
            queue.stop()
            queue.start()

    def _set_queue(self, request: int, payload: bytes) -> bytes | None:
        """What is said of one queue: its length, addresses, position, and whether it is enabled."""
        index, value = struct.unpack_from("<II", payload)
        queue = self.queues[index]
        if request == Request.GET_VRING_BASE:
            queue.stop()
            self._watch(queue, -1)
            if index == TRANSMIT:
                self._on_reset()
            return struct.pack("<II", index, queue.last)
        if request == Request.SET_VRING_ADDR:
            queue.stop()
            descriptors, used, available = struct.unpack_from("<QQQ", payload, 8)
            queue.addresses = descriptors, used, available
        elif request == Request.SET_VRING_NUM:
            queue.number = value
        elif request == Request.SET_VRING_BASE:
            queue.last = value
        elif request == Request.SET_VRING_ENABLE:
            queue.enabled = bool(value)
        queue.start()
        return None

    def _set_event(self, request: int, index: int, descriptor: int) -> None:
        queue = self.queues[index]
        if request == Request.SET_VRING_KICK:
            self._watch(queue, descriptor)
            queue.start()
        elif request == Request.SET_VRING_CALL:
            if queue.call >= 0:
                os.close(queue.call)
            queue.call = descriptor
        elif descriptor >= 0:
            os.close(descriptor)

    def _watch(self, queue: Queue, kick: int) -> None:
        if queue.kick >= 0:
            self._selector.unregister(queue.kick)
            os.close(queue.kick)
        queue.kick = kick
        if kick >= 0:
            os.set_blocking(kick, False)
            self._selector.register(kick, selectors.EVENT_READ, lambda _: self._on_kick(queue))

    def _on_kick(self, queue: Queue) -> None:
        try:
            os.read(queue.kick, 8)
        except BlockingIOError:
            return
        if queue is self.queues[TRANSMIT]:
            self._on_transmit()
