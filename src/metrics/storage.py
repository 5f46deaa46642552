"""Where a runner's metrics lie: the protocol, plain folders that follow it, and the quarantine."""

import io
import logging
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from errors import (
    CreateMetricsStorageError,
    DeleteMetricsStorageError,
    GetMetricsStorageError,
    MetricsStorageError,
    QuarantineMetricsStorageError,
)
from models import (
    DEFAULT_FLAVOR,
    FLAVOR_NAME,
    POST_JOB_METRICS_FILE_NAME,
    PRE_JOB_METRICS_FILE_NAME,
    RUNNER_INSTALLED_TS_FILE_NAME,
)
from system import KEPT_OF_JOBS, oldest_beyond

logger = logging.getLogger(__name__)

# Only root can enter them. `shared_fs` shows them in /home/ubuntu as well.
FILESYSTEM_BASE_PATH = Path("/var/lib/github-runner/runner-fs")
FILESYSTEM_QUARANTINE_PATH = Path("/var/lib/github-runner/runner-fs-quarantine")
FILE_SIZE_BYTES_LIMIT = 1024
FILE_NAMES = (RUNNER_INSTALLED_TS_FILE_NAME, PRE_JOB_METRICS_FILE_NAME, POST_JOB_METRICS_FILE_NAME)


@dataclass(frozen=True)
class MetricsStorage:
    """One runner's folder on the host."""

    path: Path
    runner_name: str


class StorageManager(Protocol):
    """Callables that create, list, get and delete storages; a module can be one."""

    def create(self, runner_name: str, /) -> MetricsStorage:
        """Make a storage that must not exist."""

    def list_all(self) -> Iterator[MetricsStorage]:
        """Every storage there is."""

    def get(self, runner_name: str, /) -> MetricsStorage:
        """One storage that must exist."""

    def delete(self, runner_name: str, /) -> None:
        """Remove a storage; gone already counts as done."""


def flavor_record(path: Path) -> Path:
    """The file with the flavour of the runner of a storage: beside the storage, where the runner cannot write."""
    return path.with_name(f".{path.name}.flavor")


def record_flavor(storage: MetricsStorage, flavor: str) -> None:
    """Record the flavour of a storage's runner, which outlives its instance; OSError where that fails.

    A storage without a record is of the flavour ``default``.
    """
    if flavor != DEFAULT_FLAVOR:
        flavor_record(Path(storage.path)).write_text(flavor)


def recorded_flavor(storage: MetricsStorage) -> str | None:
    """The flavour of a storage's runner; None where none, or nothing that can be a flavour, is recorded."""
    try:
        flavor = read_limited(flavor_record(Path(storage.path)), FILE_SIZE_BYTES_LIMIT).decode()
    except (OSError, UnicodeDecodeError):
        return None
    return flavor if FLAVOR_NAME.fullmatch(flavor) else None


def safe_name(runner_name: str) -> str:
    """The name, if it can be one folder's; MetricsStorageError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", runner_name):
        raise MetricsStorageError(f"{runner_name!r} is no runner's name")
    return runner_name


def create(runner_name: str) -> MetricsStorage:
    """Make a folder; CreateMetricsStorageError when the name exists."""
    path = FILESYSTEM_BASE_PATH / safe_name(runner_name)
    try:
        FILESYSTEM_BASE_PATH.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except OSError as error:
        raise CreateMetricsStorageError(f"cannot create the metrics storage of {runner_name}: {error}") from error
    return MetricsStorage(path, runner_name)


def list_all() -> Iterator[MetricsStorage]:
    """Every storage there is."""
    if FILESYSTEM_BASE_PATH.is_dir():
        for name in sorted(os.listdir(FILESYSTEM_BASE_PATH)):  # noqa: PTH208 - names are a tenth of paths
            path = FILESYSTEM_BASE_PATH / name
            if path.is_dir() and not path.is_symlink():
                yield MetricsStorage(path, name)


def get(runner_name: str) -> MetricsStorage:
    """One storage; GetMetricsStorageError when there is none."""
    path = FILESYSTEM_BASE_PATH / safe_name(runner_name)
    if not path.is_dir():
        raise GetMetricsStorageError(f"{runner_name} has no metrics storage")
    return MetricsStorage(path, runner_name)


def delete(runner_name: str) -> None:
    """Remove a folder; gone already counts as done."""
    path = FILESYSTEM_BASE_PATH / safe_name(runner_name)
    try:
        flavor_record(path).unlink(missing_ok=True)
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except (OSError, RecursionError) as error:
        # A tree of folders that is deeper than Python 3.10 and 3.11 can follow.
        raise DeleteMetricsStorageError(f"cannot remove the metrics storage of {runner_name}: {error}") from error


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, opened without following a link or blocking; OSError for anything else."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("not a regular file")
    return handle


def read_limited(path: Path, limit: int) -> bytes:
    """At most ``limit`` bytes of a regular file that somebody else's code may have made."""
    handle = open_regular(path)
    try:
        data = b""
        while len(data) < limit and (chunk := os.read(handle, limit - len(data))):
            data += chunk
        return data
    finally:
        os.close(handle)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist, in a folder that somebody else's code may have changed."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def move_to_quarantine(storage_manager: StorageManager, runner_name: str) -> None:
    """Archive the three metric files as ``NAME/FILE``, each cut to the limit, then delete the storage.

    QuarantineMetricsStorageError for every failure. The storage is deleted only when its archive is complete. The
    oldest archives beyond a total size go.
    """
    try:
        storage = storage_manager.get(runner_name)
        target = FILESYSTEM_QUARANTINE_PATH / f"{safe_name(runner_name)}.tar.gz"
        FILESYSTEM_QUARANTINE_PATH.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = target.with_suffix(".partial")
        with tarfile.open(partial, "w:gz") as archive:
            for name in FILE_NAMES:
                _archive(archive, Path(storage.path), name, f"{runner_name}/{name}")
        partial.replace(target)
        for old in oldest_beyond(FILESYSTEM_QUARANTINE_PATH.iterdir(), KEPT_OF_JOBS):
            old.unlink(missing_ok=True)
    except (MetricsStorageError, OSError, tarfile.TarError) as error:
        raise QuarantineMetricsStorageError(f"cannot archive the metrics of {runner_name}: {error}") from error
    try:
        storage_manager.delete(runner_name)
    except (MetricsStorageError, OSError) as error:
        raise QuarantineMetricsStorageError(f"archived, but: {error}") from error


def _archive(archive: tarfile.TarFile, folder: Path, name: str, member: str) -> None:
    try:
        content = read_limited(folder / name, FILE_SIZE_BYTES_LIMIT)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("%s is left out of the quarantine: %s", folder / name, error)
        return
    entry = tarfile.TarInfo(member)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
