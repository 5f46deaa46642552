"""GitHub's runner application on this machine: verified when fetched, swapped atomically (spec 4)."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from errors import HostError
from models import Arch, GithubPath
from system import write_file

if TYPE_CHECKING:
    from github_client import GithubClient

logger = logging.getLogger(__name__)

FOLDER = Path("/var/lib/github-runner/application")
CURRENT = "current"
REFUSED = "refused"
# GitHub gives no jobs to a runner more than 30 days behind
# (https://docs.github.com/en/actions/reference/runners/self-hosted-runners#runner-software-updates-on-self-hosted-runners).
STALE_AFTER = 14 * 86400
# After so long a refused application is tried once more: nobody else could say that GitHub has changed its mind.
REFUSED_FOR = 86400


def current(folder: Path = FOLDER) -> Path | None:
    """The tarball in use, named as GitHub names it; None if none was fetched yet."""
    with suppress(OSError):
        path = (folder / CURRENT).resolve(strict=True)
        return path if path.is_file() else None
    return None


def age(now: float, folder: Path = FOLDER) -> float | None:
    """Seconds since GitHub last offered the one in use; None if there is none."""
    using = current(folder)
    return max(0.0, now - using.stat().st_mtime) if using else None


def refuse(folder: Path = FOLDER) -> None:
    """Note that GitHub calls the one in use outdated: a runner said so and ended (exit code 7, spec 2)."""
    using = current(folder)
    if using is not None:
        write_file(folder / REFUSED, using.name)
        os.utime(folder / REFUSED)


def is_refused(now: float, folder: Path = FOLDER) -> bool:
    """Whether that was noted of the one in use within the last day."""
    using, note = current(folder), folder / REFUSED
    with suppress(OSError):
        return using is not None and note.read_text() == using.name and now - note.stat().st_mtime < REFUSED_FOR
    return False


def update(
    github: "GithubClient",
    path: GithubPath,
    arch: Arch,
    folder: Path = FOLDER,
    downloading: Callable[[], None] = lambda: None,
) -> bool:
    """Fetch what GitHub offers unless it is in use already; return whether that changed it.

    ``downloading`` is told where there is something to fetch.

    What is in use stays until the new one is whole: nothing is lost when GitHub or the disk fails.
    """
    offered = github.application(path, arch)
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
        raise HostError(f"the runner application cannot be stored: {error}") from error
