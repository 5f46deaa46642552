"""Loop-mounted metrics storage: 1 MiB of ext4 a runner, so that none can fill the host's disk.

A module that follows ``metrics.storage.StorageManager``.
"""

import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from errors import (
    CommandError,
    CreateMetricsStorageError,
    DeleteMetricsStorageError,
    GetMetricsStorageError,
    MetricsStorageError,
)
from metrics.storage import FILESYSTEM_BASE_PATH, FILESYSTEM_QUARANTINE_PATH, MetricsStorage, flavor_record, safe_name
from system import LOCKS, exclusive, run, try_lock

logger = logging.getLogger(__name__)

FILESYSTEM_IMAGES_PATH = Path("/var/lib/github-runner/runner-fs-images")
# Where each folder is shown. Nothing is done by these paths: user ubuntu owns the folder that they are in, and could
# have root write or mount elsewhere.
VIEWS = {
    FILESYSTEM_BASE_PATH: Path("/home/ubuntu/runner-fs"),
    FILESYSTEM_IMAGES_PATH: Path("/home/ubuntu/runner-fs-images"),
    FILESYSTEM_QUARANTINE_PATH: Path("/home/ubuntu/runner-fs-quarantine"),
}
# In seconds.
LOCK_TIMEOUT = 10
FILESYSTEM_SIZE = 1 << 20
# A job that is root in a virtual machine is root on its storage, too: device nodes and setuid files that it makes there
# are the host's. These flags keep them from being of use.
FLAGS = {"nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC, "nosymfollow": 0x2000}


def create(runner_name: str) -> MetricsStorage:
    """Make and mount a storage; CreateMetricsStorageError when the name exists or a step fails."""
    ensure_views()
    volume, path = _volume(runner_name), FILESYSTEM_BASE_PATH / runner_name
    if volume.exists() or path.exists():
        raise CreateMetricsStorageError(f"{runner_name} has a metrics storage already")
    partial = volume.with_name(f".{volume.name}.partial")
    try:
        FILESYSTEM_IMAGES_PATH.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            # Tells other processes that its maker lives.
            try_lock(file)
            file.truncate(FILESYSTEM_SIZE)
            run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", str(partial)])
            partial.replace(volume)
        storage = _mount(runner_name)
        (path / "lost+found").rmdir()
        return storage
    except (OSError, CommandError, MetricsStorageError) as error:
        partial.unlink(missing_ok=True)
        with suppress(DeleteMetricsStorageError):
            delete(runner_name)
        raise CreateMetricsStorageError(f"cannot create the metrics storage of {runner_name}: {error}") from error


def list_all() -> Iterator[MetricsStorage]:
    """Every storage, mounted; one that cannot be mounted is left out with a log line."""
    ensure_views()
    if not FILESYSTEM_IMAGES_PATH.is_dir():
        return
    for volume in sorted(FILESYSTEM_IMAGES_PATH.iterdir()):
        if volume.name.endswith(".partial"):
            _remove_abandoned(volume)
        elif volume.suffix == ".img":
            try:
                yield get(volume.stem)
            except MetricsStorageError as error:
                logger.error("%s", error)


def get(runner_name: str) -> MetricsStorage:
    """One storage, mounted if it was not (after a reboot); GetMetricsStorageError when there is none."""
    if not _is_roots(_volume(runner_name), stat.S_IFREG):
        raise GetMetricsStorageError(f"{runner_name} has no metrics storage")
    path = FILESYSTEM_BASE_PATH / runner_name
    try:
        return _checked(path, runner_name) if path.is_mount() else _mount(runner_name)
    except (OSError, CommandError) as error:
        raise GetMetricsStorageError(f"cannot mount the metrics storage of {runner_name}: {error}") from error


def delete(runner_name: str) -> None:
    """Unmount and remove; gone already counts as done."""
    volume, path = _volume(runner_name), FILESYSTEM_BASE_PATH / runner_name
    try:
        while path.is_mount():
            # Lazy: an instance that is going down may hold it for a moment longer.
            run(["umount", "--lazy", str(path)])
        with suppress(FileNotFoundError):
            path.rmdir()
        flavor_record(path).unlink(missing_ok=True)
        volume.unlink(missing_ok=True)
    except (OSError, CommandError) as error:
        raise DeleteMetricsStorageError(f"cannot remove the metrics storage of {runner_name}: {error}") from error


def give_to(storage: MetricsStorage, uid: int) -> None:
    """Make a user of the host the owner of a storage's root; GetMetricsStorageError if that fails."""
    try:
        os.chown(storage.path, uid, uid, follow_symlinks=False)
    except OSError as error:
        raise GetMetricsStorageError(f"{storage.runner_name} cannot get its metrics storage: {error}") from error


def ensure_views() -> None:
    """Make the folders and show them at their public paths; what fails is logged: no metrics depend on the views.

    Volumes that an earlier revision made at the public paths are taken along with their mounts.
    """
    if all(_is_shown(folder, view) for folder, view in VIEWS.items()):
        return
    # Units that share a machine would mount a folder twice.
    with exclusive(LOCKS / "metrics-folders.lock", LOCK_TIMEOUT):
        for folder, view in VIEWS.items():
            try:
                if not _is_shown(folder, view):
                    _take_along(view, folder)
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    folder.chmod(0o700)
                    _show(folder, view)
            except (OSError, CommandError) as error:
                logger.warning("%s is not shown at %s: %s", folder, view, error)


def remove() -> list[str]:
    """Delete every storage and take the public paths away; returns what was removed."""
    gone = []
    for volume in FILESYSTEM_IMAGES_PATH.glob("*.img"):
        delete(volume.stem)
        gone.append(str(volume))
    for folder, view in VIEWS.items():
        while _is_shown(folder, view):
            run(["umount", "--lazy", str(view)])
            gone.append(f"mount {view}")
        with suppress(OSError):
            view.rmdir()
    return gone


def _is_shown(folder: Path, view: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(folder), os.lstat(view))
    except OSError:
        # Another user can mount something there that even root may not look into.
        return False


def _take_along(view: Path, folder: Path) -> None:
    """Move a folder with the mounts in it, which stay mounted, unless the new one is in use already.

    Only a folder that no other user could have filled.
    """
    if not _is_roots(view, stat.S_IFDIR) or (folder.is_dir() and any(folder.iterdir())):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    view.rename(folder)
    if not _is_roots(folder, stat.S_IFDIR):
        # Exchanged between the two steps.
        folder.rename(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}"))
        return
    for volume in folder.glob("*.img"):
        volume.chmod(0o600)


def _show(folder: Path, view: Path) -> None:
    """Mount on the folder that was opened: a path could lead elsewhere by the time of the mount.

    With the dot at its end the kernel follows the link in /proc. It does not otherwise for util-linux 2.39 and newer.
    """
    view.mkdir(parents=True, exist_ok=True)
    handle = os.open(view, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        run(["mount", "--no-canonicalize", "--rbind", str(folder), f"/proc/{os.getpid()}/fd/{handle}/."])
    finally:
        os.close(handle)


def _is_roots(path: Path, kind: int) -> bool:
    """Whether this is a file or folder, no link, that only its owner, who is this user, can write to."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_IFMT(found.st_mode) == kind and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _volume(runner_name: str) -> Path:
    return FILESYSTEM_IMAGES_PATH / f"{safe_name(runner_name)}.img"


def _mount(runner_name: str) -> MetricsStorage:
    path = FILESYSTEM_BASE_PATH / runner_name
    FILESYSTEM_BASE_PATH.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.mkdir(exist_ok=True)
    run(["mount", "-o", ",".join(["loop", *FLAGS]), str(_volume(runner_name)), str(path)])
    return _checked(path, runner_name)


def _checked(path: Path, runner_name: str) -> MetricsStorage:
    """The storage once it has all flags, whoever mounted it; GetMetricsStorageError if it cannot get them."""
    if _missing_flags(path):
        run(["mount", "-o", ",".join(["remount", *FLAGS]), str(path)])
    if missing := _missing_flags(path):
        raise GetMetricsStorageError(f"the metrics storage of {runner_name} is mounted without {', '.join(missing)}")
    return MetricsStorage(path, runner_name)


def _missing_flags(path: Path) -> list[str]:
    found = os.statvfs(path).f_flag
    return [name for name, flag in FLAGS.items() if not found & flag]


def _remove_abandoned(partial: Path) -> None:
    """Remove a volume whose creation was interrupted, unless another process is creating it now."""
    with suppress(OSError), partial.open("rb") as file:
        if try_lock(file):
            partial.unlink()
