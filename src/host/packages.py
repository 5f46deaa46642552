"""Programs that the charm uses and a machine may lack, installed with apt.

Not through charmlibs-apt: it waits for no lock, and what it starts ends with the hook.
"""

import re
import shutil
import time
from collections.abc import Callable, Mapping

import times
from errors import HostError
from redaction import tail
from system import run_surviving

# The program that is used, and the package that has it on Ubuntu and Debian.
PROGRAMS = {
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "nft": "nftables",
    "logrotate": "logrotate",
}
APT = ("apt-get", "-qq", "-y", "-o", "Dpkg::Options::=--force-confold")
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "NEEDRESTART_MODE": "l"}
TIMEOUT = 900
# What apt and dpkg say while another process works, such as the first update of a new machine.
LOCKED = re.compile("Could not get lock|Unable to acquire|Unable to lock|lock was locked by another process")
INTERRUPTED = re.compile("dpkg was interrupted|--configure -a")
PAUSE = 2.0


def ensure(progress: Callable[[str], None], programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """Install what is missing and return those packages; an interrupted dpkg is repaired once.

    Locks of apt and dpkg are waited for. HostError with apt's last words if it does not succeed.
    """
    missing = missing_packages(programs)
    if not missing:
        return []
    what = f"the packages {', '.join(missing)} cannot be installed"
    deadline = time.monotonic() + times.APT_LOCK
    for command in ([*APT, "update"], [*APT, "install", "--no-install-recommends", *missing]):
        output = _run(command, deadline, progress)
        if output and INTERRUPTED.search(output):
            _run(["dpkg", "--configure", "-a"], deadline, progress)
            output = _run(command, deadline, progress)
        if output:
            raise HostError(f"{what}: {output}")
    return missing


def missing_packages(programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """The packages whose programs are not on this machine."""
    return sorted({package for program, package in programs.items() if shutil.which(program) is None})


def _run(command: list[str], deadline: float, progress: Callable[[str], None]) -> str:
    """The last words of a command that failed, empty where it did not; waits for locks until ``deadline``."""
    while True:
        done = run_surviving(command, timeout=TIMEOUT, env=ENVIRONMENT)
        output = tail(done.stdout) or f"{command[0]} ended with {done.returncode}"
        if done.returncode == 0:
            return ""
        if not LOCKED.search(output):
            return output
        if time.monotonic() > deadline:
            return f"another process held the lock for {times.APT_LOCK // 60} minutes: {output}"
        progress("Installing packages: waiting for another process that holds apt's lock")
        time.sleep(PAUSE)
