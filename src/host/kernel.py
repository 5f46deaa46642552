"""Kernel: the module that bridges need, daily updates, and the reboots they ask for (spec 4, Pending kernel)."""

import logging
import time
from pathlib import Path

from errors import CommandError
from system import run, write_file

logger = logging.getLogger(__name__)

# Written by packages whose update needs one, the kernel among them (update-notifier-common).
REBOOT_REQUIRED = Path("/var/run/reboot-required")
MODULE = "br_netfilter"
MODULES_FILE = Path("/etc/modules-load.d/github-runner.conf")
CHECKED = Path("/var/lib/github-runner/kernel-checked")
CHECK_EVERY = 86400
# Ubuntu's and Debian's metapackages; what the machine runs is what is installed of them.
KERNELS = ("linux-generic*", "linux-virtual*", "linux-image-generic*", "linux-image-virtual*", "linux-image-amd64")


def ensure_module() -> bool:
    """Load br_netfilter now and at every boot; returns whether the file was written."""
    changed = write_file(MODULES_FILE, f"{MODULE}\n")
    if not Path("/sys/module", MODULE).exists():
        run(["modprobe", MODULE])
    return changed


def update(now: float | None = None) -> list[str]:
    """Update the installed kernel, at most daily; the packages that were looked at. A failure waits for tomorrow."""
    now = time.time() if now is None else now
    if CHECKED.exists() and 0 <= now - CHECKED.stat().st_mtime < CHECK_EVERY:
        return []
    write_file(CHECKED, f"{now:.0f}\n")
    installed = installed_kernels()
    if installed:
        try:
            run(["apt-get", "-qq", "update"], timeout=300)
            options = ["-o", "DPkg::Lock::Timeout=60", "-o", "Dpkg::Options::=--force-confold"]
            command = ["apt-get", "-qq", "-y", *options, "install", "--only-upgrade", *installed]
            run(command, timeout=900, env={"DEBIAN_FRONTEND": "noninteractive"})
        except CommandError as error:
            logger.warning("The kernel was not updated: %s", error)
    return installed


def installed_kernels() -> list[str]:
    """The kernel metapackages that this machine has; none where it is a container."""
    query = run(["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}${Package}\n", *KERNELS], check=False)
    return sorted(line[3:].strip() for line in query.stdout.splitlines() if line.startswith("ii"))


def reboot_is_due() -> bool:
    """Whether an installed update needs a reboot."""
    return REBOOT_REQUIRED.exists()


def remove() -> list[str]:
    """Take the files away; the module stays loaded until the next boot."""
    gone = [str(MODULES_FILE)] if MODULES_FILE.exists() else []
    for path in (MODULES_FILE, CHECKED):
        path.unlink(missing_ok=True)
    return gone
