"""The runner binary on this machine: verified when it is downloaded, replaced atomically."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import times
from errors import HostError
from gh.client import GithubClient
from models import Arch, GithubPath
from system import write_file

logger = logging.getLogger(__name__)

FOLDER = Path("/var/lib/github-runner/application")
CURRENT = "current"
DEPRECATED = "refused"
# GitHub gives no jobs to a runner more than 30 days behind
# (https://docs.github.com/en/actions/reference/runners/self-hosted-runners#runner-software-updates-on-self-hosted-runners).
STALE_AFTER = 14 * 86400


def current(folder: Path = FOLDER) -> Path | None:
    """The tarball in use, named as GitHub names it; None if none was fetched yet."""
    with suppress(OSError):
        path = folder / os.readlink(folder / CURRENT)  # noqa: PTH115 - not resolved: a link to itself is no tarball
        return path if path.parent == folder and path.is_file() and not path.is_symlink() else None
    return None


def age(now: float, folder: Path = FOLDER) -> float | None:
    """Seconds since GitHub last offered the one in use; None if there is none."""
    using = current(folder)
    return max(0.0, now - using.stat().st_mtime) if using else None


def is_recent(now: float, folder: Path = FOLDER) -> bool:
    """Whether GitHub offered the one in use a short while ago, and has not called it deprecated since."""
    using = current(folder)
    if using is None or deprecated_at(now, folder) is not None:
        return False
    return 0 <= now - using.stat().st_mtime < times.BINARY_LIST


def note_deprecated(folder: Path = FOLDER) -> None:
    """Record that GitHub has deprecated the version in use: a runner ended with exit code 7."""
    using = current(folder)
    if using is not None:
        write_file(folder / DEPRECATED, using.name, 0o600)
        os.utime(folder / DEPRECATED)


def clear_deprecated(folder: Path = FOLDER) -> None:
    """Remove that record: a runner of this version is online, or the operator asks for new attempts."""
    (folder / DEPRECATED).unlink(missing_ok=True)


def deprecated_at(now: float, folder: Path = FOLDER) -> float | None:
    """When the version in use was recorded as deprecated, in UNIX seconds; None if it was not, or long enough ago.

    GitHub has called its newest version deprecated by mistake more than once, for an hour or two.
    """
    using, note = current(folder), folder / DEPRECATED
    with suppress(OSError):
        if using is not None and note.read_text() == using.name:
            noted = note.stat().st_mtime
            return noted if 0 <= now - noted < times.DEPRECATED_END else None
    return None


def update(
    github: GithubClient,
    github_path: GithubPath,
    arch: Arch,
    folder: Path = FOLDER,
    downloading: Callable[[], None] = lambda: None,
) -> bool:
    """Download the runner binary that GitHub offers unless it is in use already; returns whether it was downloaded.

    ``downloading`` is called before a download.

    What is in use stays until the new one is whole: nothing is lost when GitHub or the disk fails.
    """
    offered = github.offered_binary(github_path, arch)
    using = current(folder)
    if using is not None and using.name == offered.filename:
        with _host_errors():
            os.utime(using)
        return False
    downloading()
    with _host_errors():
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".download-")
        os.close(handle)
        partial = Path(name)
        try:
            github.download(offered, partial)
            partial.replace(folder / offered.filename)
            link = folder / ".current.new"
            link.unlink(missing_ok=True)
            link.symlink_to(offered.filename)
            link.replace(folder / CURRENT)
        finally:
            partial.unlink(missing_ok=True)
        _remove_others(folder, {offered.filename, CURRENT})
    return True


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


@contextmanager
def _host_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"the runner binary cannot be stored: {error}") from error
