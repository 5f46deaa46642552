"""Debian in a folder: what the sandbox's images, and its LXD for virtual machines, are made from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sandbox.shell import apt_install, run

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TIMEOUT = 1500


def bootstrap(root: Path, packages: Sequence[str]) -> None:
    """Install Debian with these packages into a folder."""
    apt_install({"debootstrap": "debootstrap"})
    if not KEYRING.exists():
        run("apt-get", "install", "-qq", "-y", "debian-archive-keyring")
    include = f"--include={','.join(packages)}"
    run("debootstrap", "--variant=minbase", f"--keyring={KEYRING}", include, SUITE, str(root), MIRROR, timeout=TIMEOUT)


@contextmanager
def ready(root: Path) -> Iterator[None]:
    """While packages are installed: the host's resolver, /proc, and no daemon that starts."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    resolver = root / "etc/resolv.conf"
    resolver.unlink(missing_ok=True)
    resolver.write_bytes(Path("/etc/resolv.conf").read_bytes())
    run("mount", "-t", "proc", "proc", str(root / "proc"))
    try:
        yield
    finally:
        run("umount", "--lazy", str(root / "proc"))
        policy.unlink()
        resolver.unlink()


def apt(root: Path, *arguments: str) -> None:
    """Run the folder's own apt-get, without questions; inside of ``ready``."""
    command = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "--no-install-recommends")
    run("chroot", str(root), *command, *arguments, timeout=TIMEOUT)


def copy_apt_settings(root: Path) -> None:
    """Give the folder's apt what this machine's own apt has been told, such as a proxy."""
    for settings in Path("/etc/apt/apt.conf.d").glob("99*"):
        (root / "etc/apt/apt.conf.d" / settings.name).write_bytes(settings.read_bytes())
