"""Temporary files of tests in memory: on a disk, thousands of small folders take a fourth of the tests' time."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
NEEDED = 1 << 30


def pytest_configure(config: pytest.Config) -> None:
    """For programs that tests start, too. A ``TMPDIR`` that is set is somebody's choice, and stays."""
    if "TMPDIR" in os.environ or not fits(MEMORY):
        return
    folder = tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(dir=MEMORY)
    # Names of sockets are short, and pytest's own folder in a folder of the user takes a third of one.
    config.option.basetemp = config.option.basetemp or f"{folder}/p"

    def remove() -> None:
        tempfile.tempdir = None
        del os.environ["TMPDIR"]
        shutil.rmtree(folder, ignore_errors=True)

    config.add_cleanup(remove)


def fits(folder: Path) -> bool:
    """Whether a folder can be written, has room, and lets programs be started, which containers forbid."""
    if not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize >= NEEDED and not found.f_flag & os.ST_NOEXEC
