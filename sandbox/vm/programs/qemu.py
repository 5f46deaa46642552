#!/usr/bin/python3 -I
"""QEMU for an LXD on a machine without usable KVM and vhost-vsock; LXD finds it on its PATH before the real one.

It changes three things of what LXD asks for: software emulation (TCG) instead of KVM, a CPU model that TCG has, and a
vhost-user vsock instead of the kernel's, with vsock_backend.py as its back end. It also keeps what the guest's console
prints, which LXD 5.0 does not. The guest is as LXD wants it.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

REAL = "/usr/bin/qemu-system-x86_64"
FOLDER = Path(os.environ.get("LXD_VSOCK_DIR", "/run/lxd-vsock"))
BACKEND = Path(__file__).resolve().with_name("vsock_backend.py")
BACKEND_TIMEOUT = 20.0


def start_backend(cid: str) -> Path:
    """Start the vsock's back end as a process of its own, which ends with QEMU; gives its socket for QEMU."""
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = FOLDER / f"{cid}.vhost"
    path.unlink(missing_ok=True)
    with (FOLDER / f"{cid}.log").open("ab") as log:
        # Without LXD's file descriptors (disks, taps), which would otherwise stay open after QEMU's end.
        subprocess.Popen(
            [sys.executable, "-E", str(BACKEND), cid, str(path), str(FOLDER)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=True,
            start_new_session=True,
            cwd="/",
        )
    deadline = time.monotonic() + BACKEND_TIMEOUT
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path


def rewrite(text: str, backend: str, console: str) -> str:
    """LXD's configuration for QEMU, with emulation, a vsock that ``backend`` serves, and the console kept in a file."""
    text = text.replace('accel = "kvm"\n', "")
    text = text.replace('[chardev "console"]\n', f'[chardev "console"]\nlogfile = "{console}"\n')
    found = re.search(r'\[device "qemu_vsock"\][^\[]*', text)
    if not found:
        return text
    device = found[0].replace('"vhost-vsock-pci"', '"vhost-user-vsock-pci"')
    device = re.sub(r"guest-cid = .*", 'chardev = "qemu_vsock-chardev"', device)
    chardev = f'[chardev "qemu_vsock-chardev"]\nbackend = "socket"\npath = "{backend}"\n\n'
    return text.replace(found[0], chardev + device)


def guest_cid(text: str) -> str | None:
    """The CID that LXD gives the guest, None where it asks for no vsock."""
    found = re.search(r'\[device "qemu_vsock"\][^\[]*guest-cid = "(\d+)"', text)
    return found[1] if found else None


def main() -> None:
    """Take LXD's place in front of the real QEMU."""
    arguments = sys.argv[1:]
    for number, argument in enumerate(arguments):
        if argument == "-cpu":
            arguments[number + 1] = "max"
        elif argument == "-readconfig":
            original = Path(arguments[number + 1])
            text = original.read_text()
            cid = guest_cid(text)
            changed = original.with_suffix(".changed")
            console = FOLDER / f"{original.parent.name}.console"
            changed.write_text(rewrite(text, str(start_backend(cid)) if cid else "", str(console)))
            arguments[number + 1] = str(changed)
            # Two guests on two CPUs boot faster with one thread each than with one for each of their CPUs.
            arguments += ["-accel", "tcg,thread=single"]
            break
    os.execv(REAL, [REAL, *arguments])


if __name__ == "__main__":
    main()
