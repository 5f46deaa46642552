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
# Of what one archive may be unpacked to, in bytes.
UNPACKED_LIMIT = 1 << 30
# An archive that the agent cannot unpack, or that has not exactly one folder at the top, would fail each job with the
# action. A missing one is downloaded by the job. LXD keeps the output of a command: what tar prints has no limit.
CHECK = f"""
mkdir "$1.unpacked"
gzip -dc "$1" 2> /dev/null | head -c {UNPACKED_LIMIT} |
    timeout -k 5 100 tar -xf - --no-same-owner -C "$1.unpacked" > /dev/null 2>&1 || {{
    echo "it cannot be unpacked" >&2
    exit 1
}}
[ "$(find "$1.unpacked" -mindepth 1 -maxdepth 1 -type d -printf x)" = x ] || {{
    echo "it has not exactly one folder at the top" >&2
    exit 1
}}
rm -rf "$1.unpacked"
mv "$1" "$2"
"""
CHECK_COMMAND = ("bash", "-euo", "pipefail", "-c", CHECK, "bash")


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
    if total:
        _sync(builder, build)


def _sync(builder: LxdInstance, build: ImageBuild) -> None:
    """Write the archives to the builder's disk, which may be published after a stop by force."""
    try:
        _run(builder, "sync")
    except LxdError as error:
        logger.warning("Image %s: %s", build.alias, redact(str(error)))


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
            _run(builder, *CHECK_COMMAND, part, str(folder / f"{commit}.tar.gz"))
        finally:
            _run(builder, "rm", "-rf", f"{part}.unpacked", part)
    return size, commit


def _run(builder: LxdInstance, *command: str) -> None:
    done = builder.execute(command, timeout=CHECK_TIMEOUT, output=True)
    if done.code != 0:
        raise LxdError(f"{command[0]} in the builder ended with {done.code}: {done.last_words}")
