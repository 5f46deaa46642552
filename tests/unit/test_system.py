"""The adapter to programs and files of the machine."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from errors import CommandError
from system import beside, exclusive, is_mounted, oldest_beyond, run, run_surviving, write_file

SRC = Path(__file__).resolve().parents[2] / "src"


def test_run_gives_output_and_code() -> None:
    """A program's output is text, both streams apart."""
    done = run(["sh", "-c", "echo out; echo err >&2"])

    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_run_passes_arguments_as_they_are() -> None:
    """No shell reads the arguments."""
    assert run(["printf", "%s", "$(id) `id` ; *"]).stdout == "$(id) `id` ; *"


def test_run_gives_no_input() -> None:
    """A program that asks something gets an end of file instead of hanging."""
    kept = os.dup(0)
    reading, writing = os.pipe()
    os.write(writing, b"the caller's input")
    os.dup2(reading, 0)
    try:
        assert run(["cat"], timeout=10).stdout == ""
    finally:
        os.dup2(kept, 0)
        for handle in (kept, reading, writing):
            os.close(handle)


def test_output_that_is_not_utf8() -> None:
    """Bytes that are not UTF-8 do not raise."""
    assert run(["printf", "\\377x"]).stdout == "\ufffdx"


def test_missing_program() -> None:
    """A missing program is a CommandError that names it."""
    with pytest.raises(CommandError, match="no-such-program is not installed"):
        run(["no-such-program"])


def test_program_that_cannot_be_run(tmp_path: Path) -> None:
    """A file that is no program is a CommandError, too."""
    (tmp_path / "file").write_text("x")

    with pytest.raises(CommandError, match="file"):
        run([str(tmp_path / "file")])


def test_time_limit() -> None:
    """A program that takes too long is ended, and the error says after how long."""
    start = time.monotonic()

    with pytest.raises(CommandError, match="sleep took longer than 0 s"):
        run(["sleep", "600"], timeout=0.05)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("script", "words"),
    [("echo why >&2; exit 3", "why"), ("echo out; exit 3", "out"), ("exit 3", "(3)")],
    ids=["error output", "output where there is no error output", "nothing said"],
)
def test_failure(script: str, words: str) -> None:
    """A failed program is a CommandError with its code and its last words."""
    with pytest.raises(CommandError) as caught:
        run(["sh", "-c", script])

    assert "failed (3)" in str(caught.value)
    assert words in str(caught.value)


def test_last_words_are_bounded() -> None:
    """An error has the end of what was said, not all of it."""
    with pytest.raises(CommandError) as caught:
        run([sys.executable, "-c", "print('x' * 100000 + 'the end'); raise SystemExit(1)"])

    assert len(str(caught.value)) < 1000
    assert str(caught.value).endswith("the end")


def test_failure_that_is_expected() -> None:
    """Without check the code is the caller's to judge."""
    assert run(["sh", "-c", "exit 3"], check=False).returncode == 3


def test_environment_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given variables come on top of the process's own."""
    monkeypatch.setenv("GHR_KEPT", "kept")
    monkeypatch.setenv("GHR_CHANGED", "old")

    done = run(["sh", "-c", "echo $GHR_KEPT $GHR_CHANGED $GHR_NEW"], env={"GHR_CHANGED": "changed", "GHR_NEW": "new"})

    assert done.stdout == "kept changed new\n"
    assert "GHR_NEW" not in os.environ


def test_write_makes_parents(tmp_path: Path) -> None:
    """Missing folders are made, and a new file counts as changed."""
    path = tmp_path / "a/b/file"

    assert write_file(path, "text") is True
    assert path.read_text() == "text"
    assert path.stat().st_mode & 0o7777 == 0o644


def test_write_of_the_same_changes_nothing(tmp_path: Path) -> None:
    """The same content and mode is no change, and the file is not touched."""
    path = tmp_path / "file"
    write_file(path, "ä")
    before = path.stat()

    assert write_file(path, "ä") is False
    assert write_file(path, "ä".encode()) is False
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("mode", [0o600, 0o755, 0o640])
def test_mode_is_exact(tmp_path: Path, mode: int) -> None:
    """The mode is what was asked for, whatever the umask, and another mode is a change."""
    path = tmp_path / "file"
    write_file(path, "x", 0o666)
    old = os.umask(0o077)
    try:
        assert write_file(path, "x", mode) is True
    finally:
        os.umask(old)

    assert path.stat().st_mode & 0o7777 == mode


def test_write_is_atomic(tmp_path: Path) -> None:
    """A new content takes the file's place: whoever reads the old one reads it whole."""
    path, old = tmp_path / "file", tmp_path / "old"
    write_file(path, "old content")
    os.link(path, old)

    assert write_file(path, "new") is True
    assert (old.read_text(), path.read_text()) == ("old content", "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "old"]  # noqa: PTH208


def test_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    """The file that takes the place has the narrower mode from its beginning."""
    path = tmp_path / "token"
    write_file(path, "public", 0o644)
    write_file(path, "secret", 0o600)

    assert path.stat().st_mode & 0o077 == 0


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """A write that fails leaves no partial file behind and what was there as it was."""
    target = tmp_path / "target"
    (target / "inside").mkdir(parents=True)

    with pytest.raises(OSError, match="target"):
        write_file(target, "x")
    assert sorted(os.listdir(tmp_path)) == ["target"]  # noqa: PTH208
    assert (target / "inside").is_dir()


def test_link_is_replaced_not_followed(tmp_path: Path) -> None:
    """A link in the file's place is replaced: what it leads to stays."""
    (tmp_path / "other").write_text("other")
    (tmp_path / "file").symlink_to("other")

    assert write_file(tmp_path / "file", "new") is True
    assert (tmp_path / "other").read_text() == "other"
    assert not (tmp_path / "file").is_symlink()


def test_a_program_that_survives_gives_code_and_output() -> None:
    """Both streams in one text, and any exit code."""
    done = run_surviving(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=10)

    assert (done.returncode, done.stdout) == (3, "out\nerr\n")


def test_a_program_that_survives_is_not_ended_by_its_time_limit(tmp_path: Path) -> None:
    """It is given up and goes on: dpkg must not be cut off."""
    go, done = tmp_path / "go", tmp_path / "done"

    with pytest.raises(CommandError, match="sh is not done within 0 s and goes on"):
        run_surviving(["sh", "-c", f"until [ -e {go} ]; do sleep 0.05; done; echo said; touch {done}"], timeout=0.1)

    go.touch()
    wait_for(done.exists)


def test_a_program_that_survives_outlives_its_callers_group(tmp_path: Path) -> None:
    """The time limit of a reconcile ends a whole process group: what must survive is in another session."""
    started, go, done = tmp_path / "started", tmp_path / "go", tmp_path / "done"
    script = f"touch {started}; until [ -e {go} ]; do sleep 0.05; done; echo said; touch {done}"
    source = f"import system; system.run_surviving(['sh', '-c', {script!r}], timeout=60)"
    caller = subprocess.Popen([sys.executable, "-c", source], start_new_session=True, cwd=SRC)
    wait_for(started.exists)

    os.killpg(caller.pid, signal.SIGKILL)
    caller.wait()

    go.touch()
    wait_for(done.exists)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_bind_mount_of_the_same_filesystem_is_a_mount(tmp_path: Path) -> None:
    """As Juju's rootfs storage is, which looks like any folder; the name may need escaping."""
    source, target = tmp_path / "source", tmp_path / "with blank"
    source.mkdir()
    target.mkdir()
    if subprocess.run(["mount", "--bind", str(source), str(target)], capture_output=True).returncode != 0:
        pytest.skip("this machine does not allow bind mounts")
    try:
        assert is_mounted(target)
        assert not is_mounted(source)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    assert not is_mounted(target)


def test_other_users_cannot_hold_a_lock(tmp_path: Path) -> None:
    """Whoever can open a lock's file can hold it: file and folder are closed to others."""
    with exclusive(tmp_path / "locks" / "one.lock", 0) as free:
        assert free
        with exclusive(tmp_path / "locks" / "one.lock", 0) as second:
            assert not second

    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "locks" / "one.lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("planted", ["link", "FIFO"])
def test_what_lies_in_a_locks_place_is_not_followed_and_does_not_block(tmp_path: Path, planted: str) -> None:
    """A link creates nothing elsewhere, and a pipe without a reader holds nobody up."""
    lock = tmp_path / "one.lock"
    if planted == "FIFO":
        os.mkfifo(lock)
        with exclusive(lock, 0) as free:
            assert free
    else:
        lock.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="symbolic links"), exclusive(lock, 0):
            pass
    assert not (tmp_path / "elsewhere").exists()


def test_the_newest_within_a_total_are_kept(tmp_path: Path) -> None:
    """Files and whole folders count with what they take of the disk; what a link leads to does not count."""
    for age, name in enumerate(["new", "folder", "old", "oldest"]):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
            (path / "inside").write_bytes(b"x" * (1 << 20))
            (path / "link").symlink_to(tmp_path / "new")
        else:
            path.write_bytes(b"x" * (1 << 20))
        os.utime(path, (1000 - age, 1000 - age))

    assert oldest_beyond(tmp_path.iterdir(), 5 << 20) == []
    assert oldest_beyond(tmp_path.iterdir(), (5 << 19) + 65536) == [tmp_path / "old", tmp_path / "oldest"]
    assert oldest_beyond([], 0) == []


def test_work_beside_other_work_is_waited_for() -> None:
    """It goes on while the body runs, and is over after it."""
    begun, go_on, steps = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        assert go_on.wait(30)
        steps.append("work")

    with beside(work):
        assert begun.wait(30)
        steps.append("body")
        go_on.set()

    assert steps == ["body", "work"]


def test_an_error_of_work_beside_other_work_is_raised_after_it(caplog: pytest.LogCaptureFixture) -> None:
    """Unless the body has an error of its own: then it is logged."""
    steps = []
    with pytest.raises(ZeroDivisionError), beside(lambda: 1 / 0):
        steps.append("body")
    assert steps == ["body"]

    with pytest.raises(KeyError), beside(lambda: 1 / 0):
        raise KeyError
    assert "division by zero" in caplog.text
