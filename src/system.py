"""Run a program, write a file, keep other processes out: the only user of subprocess."""

import contextlib
import fcntl
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from errors import CommandError

logger = logging.getLogger(__name__)


def run(
    command: Sequence[str], *, timeout: float = 60, check: bool = True, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program found on PATH; ``timeout`` in seconds, ``env`` is added to the environment.

    Raises CommandError when it is missing, takes too long or, with ``check``, exits other than 0.
    """
    try:
        done = subprocess.run(  # nosec B603
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**_environment(), **(env or {})},
        )
    except FileNotFoundError as error:
        raise CommandError(f"{command[0]} is not installed") from error
    except OSError as error:
        raise CommandError(f"{command[0]} cannot be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{command[0]} took longer than {timeout:.0f} s") from error
    if check and done.returncode != 0:
        raise CommandError(
            f"{' '.join(command)} failed ({done.returncode}): {(done.stderr or done.stdout).strip()[-500:]}"
        )
    return done


def are_active(*units: str) -> bool:
    """Whether systemd runs all of these units."""
    states = run(["systemctl", "is-active", *units], check=False).stdout.split()
    return states == ["active"] * len(units)


@contextlib.contextmanager
def exclusive(path: Path, timeout: float) -> Iterator[bool]:
    """Keep other processes out of what ``path`` stands for; yields False if they do not let go in ``timeout`` seconds.

    The kernel takes the lock back from a process that dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with path.open("a") as file:
        while not (held := try_lock(file)) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield held


def try_lock(file: IO[Any]) -> bool:
    """Whether nobody else holds an open file's lock: it is then ours until the file is closed, or this process dies."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _environment() -> dict[str, str]:
    """Without what the charm's dispatch sets for itself: a program in Python would import the charm's modules."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}


def write_file(path: Path, content: str | bytes, mode: int = 0o644) -> bool:
    """Write a file whole or not at all; return whether its content changed. Parents are made."""
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data and path.stat().st_mode & 0o7777 == mode:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    return True
