"""The sandbox's programs for virtual machines: what is put in front of QEMU, modprobe and LXD, without a guest."""

import array
import importlib.util
import mmap
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sandbox.vm import base_image, host, lxd_build, template
from tests.support.deployment import wait_for

PROGRAMS = template.PROGRAMS
CONFIG = """[machine]
accel = "kvm"

[chardev "console"]
backend = "pty"

[device "qemu_vsock"]
driver = "vhost-vsock-pci"
bus = "qemu_pcie4"
guest-cid = "7"

[device "qemu_gpu"]
driver = "virtio-vga"
"""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sandbox_vm_{name}", PROGRAMS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_qemu_gets_emulation_and_a_vsock_in_user_space() -> None:
    """LXD's configuration for QEMU is changed in acceleration, console and vsock, and nowhere else."""
    qemu = load("qemu")

    changed = qemu.rewrite(CONFIG, "/run/lxd-vsock/7.vhost", "/run/lxd-vsock/app-1.console")

    assert qemu.guest_cid(CONFIG) == "7"
    assert "accel" not in changed
    assert '[chardev "console"]\nlogfile = "/run/lxd-vsock/app-1.console"\nbackend = "pty"' in changed
    assert "guest-cid" not in changed
    assert 'path = "/run/lxd-vsock/7.vhost"' in changed
    assert 'driver = "vhost-user-vsock-pci"\nbus = "qemu_pcie4"\nchardev = "qemu_vsock-chardev"' in changed
    assert changed.endswith(CONFIG[CONFIG.index('[device "qemu_gpu"]') :])


def test_qemu_without_a_vsock_stays_as_it_is() -> None:
    """LXD also starts QEMU to ask for its features: then there is no vsock, and nothing to change."""
    qemu = load("qemu")

    assert qemu.guest_cid("[machine]\n") is None
    assert qemu.rewrite("[machine]\n", "", "") == "[machine]\n"


def test_modprobe_grants_only_vhost_vsock(tmp_path: Path) -> None:
    """The stand-in for modprobe says yes to vhost_vsock, and hands everything else to the real one."""
    real = tmp_path / "modprobe"
    real.write_text('#!/bin/sh\necho "real: $*"\nexit 7\n')
    real.chmod(0o755)
    stand_in = tmp_path / "stand-in"
    stand_in.write_text((PROGRAMS / "modprobe").read_text().replace("/usr/sbin/modprobe", str(real)))

    assert subprocess.run(["sh", stand_in, "-b", "vhost_vsock"], check=False).returncode == 0
    other = subprocess.run(["sh", stand_in, "-b", "br_netfilter"], check=False, capture_output=True, text=True)
    assert (other.returncode, other.stdout) == (7, "real: -b br_netfilter\n")


def test_af_vsock_is_never_opened() -> None:
    """Neither the patched LXD nor the back end opens the machine's own vsock."""
    patch = (lxd_build.PATCH / "vsock.patch").read_text()
    for removed in ("vsock.ContextID()", "vsock.Dial(cid, port, nil)", "vsock.Listen(port, nil)"):
        assert re.search(rf"^-.*\b{re.escape(removed)}", patch, re.M), removed
        assert not re.search(rf"^\+.*[^d]{re.escape(removed)}", patch, re.M), removed
    go = (lxd_build.PATCH / "unix.go").read_text()
    assert set(re.findall(r"\bvsock\.(\w+)", go)) == {"Addr"}
    for program in PROGRAMS.glob("*.py"):
        assert "socket.AF_VSOCK" not in program.read_text()


def test_modprobe_comes_with_the_patched_lxd_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an unpatched LXD, which would open AF_VSOCK, has neither the stand-in nor the other programs."""
    done: list[str] = []
    monkeypatch.setattr(template, "run", lambda *command, **_: done.append(" ".join(command)))
    monkeypatch.setattr(template, "Machine", lambda name: Recorder(done))
    monkeypatch.setattr(template, "wait_until", lambda *_: None)
    for name in ("use_hardware", "import_image"):
        monkeypatch.setattr(template, name, lambda *_: None)

    template.make(None, Path("image"))
    assert not [line for line in done if "modprobe" in line or "sandbox-vm" in line or "/usr/bin/lxd" in line]

    done.clear()
    template.make(Path("lxd"), Path("image"))
    assert [line for line in done if "/usr/bin/lxd" in line]
    assert [line for line in done if template.MODPROBE in line]


class Recorder:
    """A machine that notes what is done to it."""

    container = "recorder"

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def wait_ready(self) -> None:
        pass

    def exec(self, *command: str, **_: object) -> None:
        self.done.append(" ".join(command))

    def push(self, *words: object) -> None:
        self.done.append(" ".join(map(str, words)))

    push_folder = push


def test_hardware_counts_only_where_all_of_it_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without vhost-vsock, with a /dev/kvm that is no KVM, or where it is asked for, virtual machines are emulated."""
    monkeypatch.setattr(host, "KVM", tmp_path / "kvm")
    monkeypatch.setattr(host, "VHOST_VSOCK", tmp_path / "vhost-vsock")
    assert not host.has_hardware()

    (tmp_path / "kvm").touch()
    (tmp_path / "vhost-vsock").touch()
    assert not host.has_hardware()

    monkeypatch.setattr("sandbox.vm.host.fcntl.ioctl", lambda *_: os.open("/dev/null", os.O_RDONLY))
    assert host.has_hardware()

    monkeypatch.setenv("SANDBOX_EMULATE", "1")
    assert not host.has_hardware()


def test_caches_are_named_by_what_they_are_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another patch, package or kind of image gives another name: an old build is never taken for a new one."""
    lxd, image = lxd_build.recipe(), base_image.recipe()
    assert base_image.recipe(with_apt=True) != image

    monkeypatch.setattr(lxd_build, "VERSION", "5.0.3")
    monkeypatch.setattr(base_image, "PACKAGES", (*base_image.PACKAGES, "hello"))

    assert lxd_build.recipe() != lxd
    assert base_image.recipe() != image


REQUEST, RESPONSE, RST, SHUTDOWN, RW = 1, 2, 3, 4, 5
PACKET = struct.Struct("<QQIIIHHIII")
SIZE = 8
BUFFER = 4096


class Guest:
    """QEMU and a guest's driver: two queues of eight buffers in a shared memory, and packets through them."""

    def __init__(self, path: Path) -> None:
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        wait_for(path.exists, "the back end")
        self.control.connect(str(path))
        descriptor = os.memfd_create("guest")
        os.ftruncate(descriptor, 1 << 20)
        self.memory = mmap.mmap(descriptor, 1 << 20)
        self.taken = [0, 0]
        self.request(2, struct.pack("<Q", 1 << 32 | 1 << 30))
        self.request(5, struct.pack("<IIQQQQ", 1, 0, 0, 1 << 20, 0, 0), [descriptor])
        os.close(descriptor)
        self.kicks, self.calls = zip(*(self._queue(number) for number in (0, 1)), strict=True)
        for number in range(SIZE):
            self._offer(0, number, BUFFER, writable=True)
        # Answered after all that was sent before.
        self.request(1, b"")
        assert len(self.control.recv(20, socket.MSG_WAITALL)) == 20

    def request(self, number: int, payload: bytes, descriptors: list[int] | None = None) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.control.sendmsg([struct.pack("<III", number, 1, len(payload)) + payload], ancillary)

    def _queue(self, number: int) -> tuple[int, int]:
        kick, call = os.eventfd(0), os.eventfd(0)
        base = 0x10000 * (number + 1)
        self.request(8, struct.pack("<II", number, SIZE))
        self.request(10, struct.pack("<II", number, 0))
        self.request(9, struct.pack("<IIQQQQ", number, 0, base, base + 0x2000, base + 0x1000, 0))
        self.request(13, struct.pack("<Q", number), [call])
        self.request(12, struct.pack("<Q", number), [kick])
        self.request(18, struct.pack("<II", number, 1))
        return kick, call

    def _offer(self, queue: int, slot: int, length: int, writable: bool) -> None:
        base = 0x10000 * (queue + 1)
        self.memory[base + 16 * slot : base + 16 * slot + 16] = struct.pack(
            "<QIHH", self._buffer(queue, slot), length, 2 if writable else 0, 0
        )
        (index,) = struct.unpack_from("<H", self.memory, base + 0x1002)
        struct.pack_into("<H", self.memory, base + 0x1004 + 2 * (index % SIZE), slot)
        struct.pack_into("<H", self.memory, base + 0x1002, (index + 1) & 0xFFFF)
        os.eventfd_write(self.kicks[queue], 1)

    @staticmethod
    def _buffer(queue: int, slot: int) -> int:
        return 0x40000 + (queue * SIZE + slot) * BUFFER

    def send(self, operation: int, port: int, host_port: int, data: bytes = b"", flags: int = 0) -> None:
        packet = PACKET.pack(7, 2, port, host_port, len(data), 1, operation, flags, 65536, 0) + data
        slot = self.taken[1] % SIZE
        self.taken[1] += 1
        start = self._buffer(1, slot)
        self.memory[start : start + len(packet)] = packet
        self._offer(1, slot, len(packet), writable=False)

    def receive(self) -> tuple[int, int, int, bytes]:
        """The next packet: operation, the guest's port, the host's port, data."""
        used = 0x12000
        wait_for(lambda: struct.unpack_from("<H", self.memory, used + 2)[0] != self.taken[0] & 0xFFFF, "a packet", 10)
        slot, _ = struct.unpack_from("<II", self.memory, used + 4 + 8 * (self.taken[0] % SIZE))
        self.taken[0] += 1
        start = self._buffer(0, slot)
        _, _, host_port, port, length, _, operation, _, _, _ = PACKET.unpack_from(self.memory, start)
        data = self.memory[start + PACKET.size : start + PACKET.size + length]
        self._offer(0, slot, BUFFER, writable=True)
        return operation, port, host_port, data


def read(sock: socket.socket, length: int) -> bytes:
    with sock.makefile("rb") as file:
        return file.read(length)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A guest with CID 7, served by the back end as a process of its own."""
    command = [sys.executable, str(PROGRAMS / "vsock_backend.py"), "7", str(tmp_path / "vhost"), str(tmp_path)]
    with subprocess.Popen(command) as process:
        found = Guest(tmp_path / "vhost")
        yield found
        found.control.close()
        assert process.wait(10) == 0
    assert not (tmp_path / "7.sock").exists()


def test_a_program_talks_to_the_guest(guest: Guest, tmp_path: Path) -> None:
    """A program names a port on the guest's socket, and bytes go both ways until one side ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as program:
        program.settimeout(10)
        program.connect(str(tmp_path / "7.sock"))
        program.sendall(b"CONNECT 8443\nhello")
        operation, port, host_port, _ = guest.receive()
        assert (operation, port) == (REQUEST, 8443)
        guest.send(RESPONSE, port, host_port)
        assert guest.receive() == (RW, port, host_port, b"hello")
        guest.send(RW, port, host_port, b"good morning")
        expected = b"OK %d\ngood morning" % host_port
        assert read(program, len(expected)) == expected
        guest.send(RST, port, host_port)
        assert program.recv(1) == b""


def test_the_guest_talks_to_a_program(guest: Guest, tmp_path: Path) -> None:
    """A connection of the guest reaches the program that listens for its port; the first line names the guest."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.settimeout(10)
        server.bind(str(tmp_path / "host-9000.sock"))
        server.listen()
        guest.send(REQUEST, 1025, 9000)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            assert guest.receive()[:3] == (RESPONSE, 1025, 9000)
            guest.send(RW, 1025, 9000, b"hello")
            expected = b"FROM 7 1025\nhello"
            assert read(connection, len(expected)) == expected
            connection.sendall(b"x" * 10000)
            got = b""
            while len(got) < 10000:
                operation, _, _, data = guest.receive()
                assert operation == RW
                got += data
            assert got == b"x" * 10000


def test_a_port_without_a_program_is_refused(guest: Guest) -> None:
    """The guest's connection to a port where nobody listens is reset."""
    guest.send(REQUEST, 1026, 9001)

    assert guest.receive()[:3] == (RST, 1026, 9001)
