"""What a runner can leave in its metrics storage, handed over by the charm itself, and the rules for that."""

import json
import logging
import os
import re
import shutil
import signal
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import metrics.events
import metrics.storage
import provision
import runner_manager
import telemetry
from gh.client import GithubClient
from metrics.events import Event
from metrics.storage import FILE_NAMES, FILE_SIZE_BYTES_LIMIT
from models import POST_JOB_METRICS_FILE_NAME, PRE_JOB_METRICS_FILE_NAME, RUNNER_INSTALLED_TS_FILE_NAME, FlushMode
from runner import RunnerManagerClients
from runner_manager import RunnerManager
from tests.support.fakes import IDENTITY, TEMPLATES, FakeGithub, FakeLxd, state

DEADLINE = 10.0
RUNNER, NEIGHBOUR = f"{IDENTITY.prefix}1", f"{IDENTITY.prefix}2"
PRE_JOB = {
    "timestamp": 1000.5,
    "workflow": "test",
    "workflow_run_id": "7",
    "repository": "octo-org/demo",
    "event": "push",
}
POST_JOB = {"timestamp": 1010.5, "status": "abnormal", "status_info": {"code": 403}}
PRE, POST, INSTALLED = (
    os.fsencode(name) for name in (PRE_JOB_METRICS_FILE_NAME, POST_JOB_METRICS_FILE_NAME, RUNNER_INSTALLED_TS_FILE_NAME)
)
# In bytes: each file twice, for what is corrupt is read once more for its archive, and the honest runner's small ones.
READ_LIMIT = (2 * len(FILE_NAMES) + 1) * FILE_SIZE_BYTES_LIMIT
LONGEST_RECORD = 4096
EVENTS = {kind.model_construct().name: kind for kind in Event.__subclasses__()}


class Entry(NamedTuple):
    """One thing in a storage: a file's bytes or a link's target, a sparse file's size or a folder's depth, a mode."""

    kind: str
    content: bytes = b""
    size: int = 0
    mode: int = 0o644

    def make(self, path: bytes) -> None:
        """Put it there; only root can make a device, others make a link to one."""
        if self.kind == "link":
            os.symlink(self.content, path)  # noqa: PTH211
        elif self.kind == "folder":
            _make_folders(path, self.size)
        elif self.kind in NODES:
            try:
                os.mknod(path, NODES[self.kind] | self.mode, os.makedev(1, 5))
            except PermissionError:
                os.symlink("/dev/zero", path)  # noqa: PTH211
        else:
            with open(path, "wb") as file:  # noqa: PTH123 - names of any bytes
                file.write(self.content)
                file.truncate(self.size or len(self.content))
            os.chmod(path, self.mode)  # noqa: PTH101


Case = Mapping[bytes, Entry]
NODES = {"pipe": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR}


def _make_folders(path: bytes, depth: int) -> None:
    """Folders in each other, a file and a link in the innermost; step by step, for no path may be that long."""
    os.mkdir(path)  # noqa: PTH102
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(b"d", dir_fd=handle)
        inner = os.open(b"d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(os.open(b"file", os.O_WRONLY | os.O_CREAT, dir_fd=handle))
    os.symlink(b"/", b"link", dir_fd=handle)
    os.close(handle)


def whole(**changes: object) -> dict[bytes, Entry]:
    """A job's three files, valid but for the changes: ``pre``, ``post`` or ``installed`` as an Entry or bytes."""
    files: dict[str, Any] = {"pre": json.dumps(PRE_JOB), "post": json.dumps(POST_JOB), "installed": "990.25\n"}
    names = {"pre": PRE, "post": POST, "installed": INSTALLED}
    files.update(changes)
    return {
        names[key]: value if isinstance(value, Entry) else Entry("file", os.fsencode(value))
        for key, value in files.items()
    }


class Hub(FakeGithub):
    """GitHub that has no job, behind the checks of the real client."""

    def job(self, repository: str, run_id: str, runner_name: str, timeout: float = 0) -> Any:
        """JobNotFoundError, as the client words it."""
        return GithubClient.job(self, repository, run_id, runner_name)  # type: ignore[arg-type]

    def _operation(self, *_: object, **__: object) -> None:
        pass

    def _pages(self, *_: object) -> Iterator[dict[str, Any]]:
        return iter(())


class Blocked(BaseException):
    """A case that did not end; nothing of the charm may catch this."""


class Records(logging.Handler):
    """Every record as a line of a log would show it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message, and a traceback if there is one."""
        self.found.append(logging.Formatter().format(record))


class World:
    """A host's folders, with storages in ``fs`` and beside them what nobody may touch or read."""

    def __enter__(self) -> "World":
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.log, self.fs, self.quarantine = (self.folder / name for name in ("log", "fs", "quarantine"))
            (self.folder / "outside").mkdir()
            self.fs.mkdir()
            secret = json.dumps({**PRE_JOB, "workflow": "secret"}).encode()
            for name in (*FILE_NAMES, "passwd"):
                (self.folder / "outside" / name).write_bytes(secret)
            for owner, name, value in (
                (metrics.storage, "FILESYSTEM_BASE_PATH", self.fs),
                (metrics.storage, "FILESYSTEM_QUARANTINE_PATH", self.quarantine),
                (metrics.events, "METRICS_LOG_PATH", self.log),
                (runner_manager, "LOCKS", self.folder / "locks"),
                (telemetry, "LOCKS", self.folder / "locks"),
            ):
                stack.enter_context(mock.patch.object(owner, name, value))
            (self.folder / "locks").mkdir()
            self.manager = RunnerManager(
                IDENTITY,
                state(issue_metrics=True),
                RunnerManagerClients(Hub(), provision.environment(TEMPLATES), FakeLxd(), None),  # type: ignore[arg-type]
                metrics.storage,
                self.folder / "binary.tar.gz",
            )
            self._close = stack.pop_all()
        # What is imported at the first fault of a kind is nothing that a runner made be read.
        for first in (b"", b"\xff", b"{}", json.dumps(PRE_JOB)):
            self.fill(whole(pre=first))
            with _records():
                self.hand_over()
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def fill(self, case: Case) -> None:
        """Nothing but a runner's storage, and that of an honest one."""
        for path in (self.log, *(self.quarantine.iterdir() if self.quarantine.exists() else ())):
            path.unlink(missing_ok=True)
        for path in self.fs.iterdir():
            shutil.rmtree(path)
        honest = whole(pre=json.dumps({**PRE_JOB, "workflow": "honest"}))
        for name, content in ((RUNNER, case), (NEIGHBOUR, honest)):
            folder = self.fs / name
            folder.mkdir(parents=True)
            for entry, made in content.items():
                made.make(os.path.join(os.fsencode(folder), entry))  # noqa: PTH118

    def hand_over(self) -> None:
        """The charm's own: extract, ask GitHub for the jobs, issue the events."""
        try:
            self.manager.flush(FlushMode.FORCE_FLUSH)
        except Exception as error:
            raise AssertionError(f"a reconcile raised {error!r:.300}") from error

    def written(self) -> bytes:
        """The metrics log."""
        return self.log.read_bytes() if self.log.exists() else b""

    def outside(self) -> dict[str, tuple[int, ...]]:
        """What a change, or a read, of anything but the storages would change."""
        own = ("fs", "quarantine", "log", "locks")
        tree = [self.folder / "outside", *(self.folder / "outside").rglob("*")]
        stats = {str(path): path.lstat() for path in tree}
        # Looking at a folder reads it.
        seen = {
            name: (s.st_mode, s.st_ino, s.st_size, s.st_ctime_ns, s.st_atime_ns * stat.S_ISREG(s.st_mode))
            for name, s in stats.items()
        }
        return {**seen, **{path.name: () for path in self.folder.iterdir() if path.name not in own}}


def judge(world: World, case: Case, seconds: float = DEADLINE) -> list[dict[str, Any]]:
    """Two reconciles over a storage with these entries; its events. AssertionError names the rule that was broken."""
    world.fill(case)
    before, handles = world.outside(), _handles()
    with _records() as records, _deadline(seconds):
        read = _bytes_read()
        world.hand_over()
        read = _bytes_read() - read
        first = world.written()
        world.hand_over()
    assert world.written() == first, "a second reconcile issues again"
    assert _handles() == handles, "a file stays open"
    assert world.outside() == before, "something outside of the storages was changed or read"
    assert read <= READ_LIMIT, f"{read} bytes were read"
    _check_records(records)
    events = [_event(line) for line in first.decode("ascii").split("\n")[:-1]]
    kinds = [event["event"] for event in events]
    assert [event["workflow"] for event in events[-2:]] == ["honest"] * 2, "an honest runner's events are missing"
    assert kinds[-2:] == ["runner_start", "runner_stop"], f"an honest runner's events are {kinds[-2:]}"
    assert kinds[:-2] in ([], kinds[-2:-1], kinds[-2:]), f"one storage gave {kinds[:-2]}"
    _check_archives(world.quarantine, case)
    assert not os.listdir(world.fs), "a storage stays"  # noqa: PTH208
    return events[:-2]


def _event(line: str) -> dict[str, Any]:
    """A line of the log; AssertionError unless it is one of the known events, and nothing else."""
    assert not re.search(r"[\x00-\x1f]", line), f"a control character in the log: {line!r}"
    assert "secret" not in line, "a link was followed"
    try:
        found: dict[str, Any] = json.loads(line)
        kind = EVENTS[found["event"]]
        kind.model_validate(found)
    except (ValueError, TypeError, KeyError) as error:
        raise AssertionError(f"a line of the log is no event: {line!r}: {error!r}") from error
    assert found.keys() <= {"event", "unit", *kind.model_fields}, f"not of {kind.__name__}: {line}"
    assert found["unit"] == f"{IDENTITY.app_name}/{IDENTITY.unit_number}", f"of another unit: {line}"
    return found


def _check_records(records: list[str]) -> None:
    for text in records:
        assert text.isprintable(), f"a record that is not one line of text: {text!r}"
        assert len(text) <= LONGEST_RECORD, f"a record of {len(text)} characters"


def _check_archives(folder: Path, case: Case) -> None:
    """What was archived are regular files of the storage, cut to the limit."""
    for path in folder.iterdir() if folder.exists() else ():
        assert path.name == f"{RUNNER}.tar.gz", f"{path.name} in the quarantine"
        with tarfile.open(path) as archive:
            for entry in archive:
                file = archive.extractfile(entry)
                folder_name, _, name = entry.name.partition("/")
                assert folder_name == RUNNER, f"{entry.name} is not below the runner's name"
                made = case[os.fsencode(name)]
                assert file is not None, f"{entry.name} is not archived as a file"
                assert made.kind == "file", f"a {made.kind} was archived"
                expected = made.content[:FILE_SIZE_BYTES_LIMIT].ljust(min(made.size, FILE_SIZE_BYTES_LIMIT), b"\0")
                assert file.read() == expected, f"{entry.name} is archived with other bytes"


def _handles() -> list[str]:
    return os.listdir("/proc/self/fd")  # noqa: PTH208


def _bytes_read() -> int:
    """By this thread, of whatever kind of file."""
    return int(re.findall(r"rchar: (\d+)", Path("/proc/thread-self/io").read_text())[0])


@contextmanager
def _records() -> Iterator[list[str]]:
    handler, disabled = Records(), logging.root.manager.disable
    logging.disable(logging.NOTSET)
    logging.root.addHandler(handler)
    try:
        yield handler.found
    finally:
        logging.root.removeHandler(handler)
        logging.disable(disabled)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """AssertionError when the time is over, whatever the code waits for; 0 is without."""

    def late(*_: object) -> None:
        raise Blocked

    if not seconds:
        yield
        return
    # Whoever has a timer already, as pytest's time limit does, gets it back.
    handler, (left, _) = signal.signal(signal.SIGALRM, late), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Blocked:
        raise AssertionError(f"a reconcile took longer than {seconds} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, handler)
