"""The database of ops in the charm's folder, in which the previous charm stored the GitHub token.

It must be done before ops opens the database: ops keeps it locked until the hook has ended.
"""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from errors import CommandError
from system import run

logger = logging.getLogger(__name__)

NAME = ".unit-state.db"
# This charm has no StoredState. Other rows belong to ops or are events that were deferred.
STORED_STATE = "GithubRunnerCharm/%StoredStateData[%"
TIMEOUT = 5.0
SUFFIXES = ("-journal", "-wal", "-shm")


def remove_stored_state(charm: Path) -> bool:
    """Remove the StoredState of the previous charm and every byte of it; returns whether there was any.

    SQLite leaves deleted rows in free pages, also those that the previous charm has overwritten. So the other rows are
    copied to a new file, and the old one is overwritten. Whatever fails is logged: the next hook tries again.
    """
    path = charm / NAME
    try:
        _finish(path)
        if path.is_symlink() or not path.is_file() or not _has_stored_state(path):
            return False
        _replace(path)
    except (OSError, sqlite3.Error, CommandError) as error:
        logger.warning("The stored state of the previous charm stays until the next hook: %s", error)
        return False
    logger.info("The stored state of the previous charm was removed from %s", path)
    return True


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}")


def _finish(path: Path) -> None:
    """Remove what a hook that was killed has left."""
    old = _beside(path, "old")
    if old.exists() and old.samefile(path):
        # The new database had not taken its place yet: this is another name of the database that is in use.
        old.unlink()
    _shred(old, *_journals(old), _beside(path, "new"), *_journals(_beside(path, "new")))


def _journals(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in SUFFIXES]


def _has_stored_state(path: Path) -> bool:
    with _opened(path) as database:
        table = database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'snapshot'").fetchone()
        rows = "SELECT 1 FROM snapshot WHERE handle LIKE ? LIMIT 1"
        return bool(table and database.execute(rows, (STORED_STATE,)).fetchone())


def _replace(path: Path) -> None:
    """At every moment there is a whole database at ``path``: the old one, or the new one."""
    old, new = _beside(path, "old"), _beside(path, "new")
    with _opened(path) as database:
        # A database with a write-ahead log is a single file from here on.
        database.execute("PRAGMA journal_mode = DELETE")
        # No other process may write until the end. SQLite completes an interrupted transaction first.
        database.execute("BEGIN EXCLUSIVE")
        _copy(database, new)
        new.chmod(path.stat().st_mode & 0o7777)
        # What is left of a journal would be taken for one of the new database.
        _shred(*_journals(path))
        os.link(path, old)
        new.replace(path)
    _shred(old, *_journals(old))


def _copy(database: sqlite3.Connection, target: Path) -> None:
    """Every table but SQLite's own, without the rows of the previous charm's StoredState."""
    with _opened(target) as copy:
        copy.execute("BEGIN")
        tables = database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
        for name, definition in tables.fetchall():
            copy.execute(definition)
            condition, values = (" WHERE handle NOT LIKE ?", (STORED_STATE,)) if name == "snapshot" else ("", ())
            quoted = '"' + name.replace('"', '""') + '"'
            rows = database.execute(f"SELECT * FROM {quoted}{condition}", values).fetchall()  # noqa: S608  # nosec B608
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                copy.executemany(f"INSERT INTO {quoted} VALUES ({marks})", rows)  # noqa: S608  # nosec B608
        copy.execute("COMMIT")


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    # Without isolation_level Python would begin and commit transactions by itself.
    with closing(sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None)) as database:
        yield database


def _shred(*paths: Path) -> None:
    found = [str(path) for path in paths if path.exists()]
    if found:
        run(["shred", "--force", "--remove", *found])
