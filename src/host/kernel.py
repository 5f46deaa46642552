"""The kernel: a module and a limit, daily updates, and the reboots they ask for (spec 4, Pending kernel)."""

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
SYSCTL_FILE = Path("/etc/sysctl.d/60-github-runner.conf")
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_INSTANCES = 1048576
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


def ensure_inotify() -> bool:
    """Allow more than a dozen containers: each systemd takes ten of the 128 inotify instances that a kernel allows.

    https://documentation.ubuntu.com/lxd/latest/reference/server_settings/. Returns whether the file was written.
    """
    changed = write_file(SYSCTL_FILE, f"fs.inotify.max_user_instances = {INOTIFY_INSTANCES}\n")
    if int(INOTIFY.read_text()) < INOTIFY_INSTANCES:
        done = run(["sysctl", "--quiet", "--load", str(SYSCTL_FILE)], check=False)
        if done.returncode != 0:
            logger.info("The machine keeps its limit of inotify instances: %s", done.stderr.strip())
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
    """Take the files away; module and limit stay until the next boot. Returns what went."""
    gone = [path for path in (MODULES_FILE, SYSCTL_FILE) if path.exists()]
    for path in (MODULES_FILE, SYSCTL_FILE, CHECKED):
        path.unlink(missing_ok=True)
    return [str(path) for path in gone]
