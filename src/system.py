"""Run a program, write a file, keep other processes out: the only user of subprocess."""

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import IO, Any, TypeVar

from errors import CommandError
from redaction import tail

logger = logging.getLogger(__name__)

# The locks of this charm's processes. Not in /run/lock, where every user may create files.
LOCKS = Path("/run/github-runner")
# Of crash logs, and of metrics in quarantine: both are as many and as large as jobs want. In bytes.
KEPT_OF_JOBS = 512 << 20
Item = TypeVar("Item")
Answer = TypeVar("Answer")
# Runners wait for most of their creation. On two cores and a copy-on-write pool more than eight were not faster.
WORKERS = min(16, 4 * (os.cpu_count() or 1))


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
        raise CommandError(f"{' '.join(command)} failed ({done.returncode}): {tail(done.stderr or done.stdout)}")
    return done


def run_surviving(
    command: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program that must not be cut off, such as dpkg: it goes on when this process is ended, or gives it up.

    In a session of its own, where no signal to this process group reaches it, and with its output in a file, where no
    closed pipe ends it. Any exit code is returned. CommandError when it is missing or still runs after ``timeout``
    seconds.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            process = subprocess.Popen(  # nosec B603
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_environment(), **(env or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise CommandError(f"{command[0]} cannot be started: {error}") from error
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            # Not this object's to wait for any more: its end would be reported as a resource that was not cleaned up.
            process.returncode = 0
            raise CommandError(f"{command[0]} is not done within {timeout:.0f} s and goes on") from error
        output.seek(0)
        return subprocess.CompletedProcess(list(command), code, output.read(), "")


def is_mounted(folder: Path) -> bool:
    """Whether something is mounted at a folder, be it a bind mount of the same filesystem, which `is_mount` misses.

    https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4])
            if point == str(folder):
                return True
    return False


def within(end: float, action: Callable[[], Answer]) -> Answer:
    """What the action returns, or TimeoutError at the end, a time of ``time.monotonic``.

    A time-out of an HTTP library is for one read: it does not see an answer that drips, nor a resolver that hangs. What
    still hangs then is left to itself, and goes with this process.
    """
    future: futures.Future[Answer] = futures.Future()

    def work() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    if not futures.wait([future], max(0.0, end - time.monotonic())).done:
        raise TimeoutError
    return future.result()


def in_parallel(action: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
    """What the action returns for each item, in the order of the items; at most ``WORKERS`` of them run at once."""
    if len(items) < 2:
        return [action(item) for item in items]
    with futures.ThreadPoolExecutor(max_workers=min(WORKERS, len(items))) as pool:
        return list(pool.map(action, items))


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Do some work in a thread while the body runs, and wait for both.

    Where both fail, the error of the body is raised and the work's is logged.
    """
    with futures.ThreadPoolExecutor(max_workers=1) as pool:
        done = pool.submit(work)
        try:
            yield
        except BaseException:
            if error := done.exception():
                logger.error("Something else failed as well", exc_info=error)
            raise
        done.result()


@contextlib.contextmanager
def exclusive(path: Path, timeout: float) -> Iterator[bool]:
    """Keep other processes out of what ``path`` stands for; yields False if they do not let go in ``timeout`` seconds.

    The kernel takes the lock back from a process that dies. The file is closed to other users: whoever can open a file
    can hold its lock.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
        while not (held := try_lock(file)) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield held


def try_lock(file: IO[Any]) -> bool:
    """Whether this process now holds the lock of an open file, until the file is closed or the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _environment() -> dict[str, str]:
    """Without what the charm's dispatch sets for itself: a program in Python would import the charm's modules."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}


def oldest_beyond(paths: Iterable[Path], limit: int) -> list[Path]:
    """The oldest of these files and folders, without which the rest takes no more than ``limit`` bytes of the disk."""
    ages = {path: os.lstat(path).st_mtime for path in paths}
    beyond, total = [], 0
    for path in sorted(ages, key=lambda path: ages[path], reverse=True):
        total += _size(path)
        if total > limit:
            beyond.append(path)
    return beyond


def _size(path: Path) -> int:
    """What a file, or a folder with everything in it, takes of the disk; links are not followed."""
    total = 0
    for found in (path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)):
        with contextlib.suppress(OSError):
            total += os.lstat(found).st_blocks * 512
    return total


def remove_leftovers(path: Path) -> list[str]:
    """Remove what processes left that were killed while they wrote this file; returns what was removed.

    For files with secrets that no other process can be writing now: its ``write_file`` would fail.
    """
    found = sorted(path.parent.glob(f".{path.name}.*"))
    for each in found:
        each.unlink(missing_ok=True)
    return [str(each) for each in found]


def remove_files(*paths: Path) -> list[str]:
    """Remove those of the files that are there; returns their paths."""
    found = [path for path in paths if path.exists()]
    for path in found:
        path.unlink()
    return list(map(str, found))


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
