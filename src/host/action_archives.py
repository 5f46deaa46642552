"""Archives of actions in the image, from which jobs get an action without a download.

The runner agent looks for them in the folder that ACTIONS_RUNNER_ACTION_ARCHIVE_CACHE names, as
``OWNER_REPO/COMMIT.tar.gz`` (https://github.com/actions/runner/blob/main/src/Runner.Worker/ActionManager.cs).
Agents before 2.309 do not.
"""

import logging
import tempfile
from typing import BinaryIO, Protocol

from engine.instance import LxdInstance
from errors import GithubClientError, LxdError
from provision import ACTION_ARCHIVES
from redaction import redact
from settings import ImageBuild

logger = logging.getLogger(__name__)

# Of one archive, and of all archives of an image, in bytes.
LIMIT, TOTAL_LIMIT = 100 << 20, 500 << 20
CHECK_TIMEOUT = 120
# An archive that the agent cannot unpack would fail the job. A missing one is downloaded by the job.
CHECK = 'tar -tzf "$1" > /dev/null && mv "$1" "$2"'


class Archives(Protocol):
    """Where archives come from."""

    def fetch(self, action: str, file: BinaryIO, limit: int, /) -> str:
        """Write the archive of ``OWNER/REPO@REF`` into a file; returns the commit. GithubClientError or OSError."""


def add(builder: LxdInstance, build: ImageBuild, archives: Archives) -> None:
    """Put the archives of the option's actions into the builder.

    No build fails for want of one: the log has the reason, jobs download the action, and the next build tries again.
    """
    total = 0
    for action in build.cached_actions:
        try:
            size, commit = _add(builder, action, archives, min(LIMIT, TOTAL_LIMIT - total))
        except (GithubClientError, LxdError, OSError) as error:
            reason = redact(str(error))
            logger.warning("Image %s: the archive of %s is left out: %s", build.alias, action, reason)
            continue
        total += size
        logger.info("Image %s: %s is %s, an archive of %d bytes", build.alias, action, commit, size)


def _add(builder: LxdInstance, action: str, archives: Archives, limit: int) -> tuple[int, str]:
    """Add one archive; its size in bytes and its commit. It gets its name once it is whole."""
    with tempfile.TemporaryFile() as file:
        commit = archives.fetch(action, file, limit)
        size = file.seek(0, 2)
        file.seek(0)
        folder = ACTION_ARCHIVES / action.partition("@")[0].replace("/", "_")
        part = str(folder / "part")
        _run(builder, "mkdir", "-p", str(folder))
        try:
            builder.push(part, file)
            _run(builder, "sh", "-c", CHECK, "sh", part, str(folder / f"{commit}.tar.gz"))
        finally:
            _run(builder, "rm", "-f", part)
    return size, commit


def _run(builder: LxdInstance, *command: str) -> None:
    done = builder.execute(command, timeout=CHECK_TIMEOUT, output=True)
    if done.code != 0:
        raise LxdError(f"{command[0]} in the builder ended with {done.code}: {done.last_words}")
