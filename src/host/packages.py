"""Programs that the charm uses and a machine may lack."""

import shutil
from collections.abc import Mapping

from errors import HostError
from system import run

# The program that is used, and the package that has it on Ubuntu and Debian.
PROGRAMS = {
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "nft": "nftables",
    "logrotate": "logrotate",
}


def ensure(programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """Install what is missing with apt and return those packages; an interrupted dpkg is repaired once."""
    missing = sorted({package for program, package in programs.items() if shutil.which(program) is None})
    if not missing:
        return []
    from charmlibs import apt

    try:
        apt.add_package(missing, update_cache=True)
    except apt.Error:
        run(["dpkg", "--configure", "-a"], timeout=600)
        try:
            apt.add_package(missing, update_cache=True)
        except apt.Error as error:
            raise HostError(f"the packages {', '.join(missing)} cannot be installed: {error}") from error
    return missing
