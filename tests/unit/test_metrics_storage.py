"""Plain folders that follow the protocol of metrics storages, safe reads and writes, and the quarantine."""

import os
import socket
import tarfile
from pathlib import Path

import pytest

from errors import (
    CreateMetricsStorageError,
    GetMetricsStorageError,
    MetricsStorageError,
    QuarantineMetricsStorageError,
)
from metrics import storage
from metrics.storage import (
    FILE_SIZE_BYTES_LIMIT,
    MetricsStorage,
    StorageManager,
    read_limited,
    record_flavor,
    write_new,
)

MANAGER: StorageManager = storage
BAD_NAMES = ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "-x", "a b", "a\n", "ä", "a\x00", "x" * 129]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FILESYSTEM_BASE_PATH", tmp_path / "fs")
    monkeypatch.setattr(storage, "FILESYSTEM_QUARANTINE_PATH", tmp_path / "quarantine")


def names() -> list[str]:
    return [found.runner_name for found in MANAGER.list_all()]


def test_life_of_a_storage(tmp_path: Path) -> None:
    """What was created is listed and found until it is deleted."""
    assert names() == []

    made = MANAGER.create("r-2")
    MANAGER.create("r-1")

    assert made == MetricsStorage(tmp_path / "fs/r-2", "r-2")
    assert Path(made.path).is_dir()
    assert MANAGER.get("r-2") == made
    assert names() == ["r-1", "r-2"]

    (Path(made.path) / "folder").mkdir()
    (Path(made.path) / "folder/file").write_text("x")
    MANAGER.delete("r-2")
    assert names() == ["r-1"]


def test_existing_name_is_refused() -> None:
    """A name is created once: a storage is never shared."""
    MANAGER.create("r")

    with pytest.raises(CreateMetricsStorageError, match="r"):
        MANAGER.create("r")


def test_missing_storage() -> None:
    """Getting a storage that does not exist is an error."""
    with pytest.raises(GetMetricsStorageError, match="nobody"):
        MANAGER.get("nobody")


def test_gone_already_counts_as_done() -> None:
    """Deleting twice is no error, and neither is deleting where nothing ever was."""
    MANAGER.create("r")
    MANAGER.delete("r")
    MANAGER.delete("r")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    """Nothing is made, read or removed under a name that is not one folder's."""
    (tmp_path / "fs").mkdir()
    (tmp_path / "x").mkdir()
    for function in (MANAGER.create, MANAGER.get, MANAGER.delete):
        with pytest.raises(MetricsStorageError):
            function(name)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["fs", "x"]
    assert list((tmp_path / "fs").iterdir()) == []


def test_only_folders_are_storages(tmp_path: Path) -> None:
    """A file or a link beside the storages is none."""
    MANAGER.create("r")
    (tmp_path / "fs/file").write_text("x")
    (tmp_path / "fs/link").symlink_to(tmp_path / "fs/r")

    assert names() == ["r"]


def test_read_of_a_file(tmp_path: Path) -> None:
    """A regular file is read up to the limit and never beyond it."""
    path = tmp_path / "file"
    path.write_bytes(b"abcdef")

    assert read_limited(path, 100) == b"abcdef"
    assert read_limited(path, 6) == b"abcdef"
    assert read_limited(path, 4) == b"abcd"


def test_read_of_a_file_without_end(tmp_path: Path) -> None:
    """A sparse file as large as a disk costs no more than the limit."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 40)

    assert len(read_limited(path, 1025)) == 1025


@pytest.mark.parametrize("kind", ["link", "dangling link", "FIFO", "folder", "device", "socket"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    """A link is not followed, a FIFO does not block, what is no file is not read, and nothing stays open."""
    path = tmp_path / "x"
    (tmp_path / "target").write_text("secret")
    server = socket.socket(socket.AF_UNIX)
    if kind == "link":
        path.symlink_to("target")
    elif kind == "dangling link":
        path.symlink_to("nothing")
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        server.bind(str(path))
    else:
        path = Path("/dev/zero")
    with server:
        before = os.listdir("/proc/self/fd")  # noqa: PTH208
        with pytest.raises(OSError) as caught:
            read_limited(path, 100)
        assert os.listdir("/proc/self/fd") == before  # noqa: PTH208

    assert not isinstance(caught.value, FileNotFoundError)


def test_missing_file_is_told_apart(tmp_path: Path) -> None:
    """No file is not a broken file."""
    with pytest.raises(FileNotFoundError):
        read_limited(tmp_path / "x", 100)


def test_write_of_a_new_file(tmp_path: Path) -> None:
    """A new file has the content."""
    write_new(tmp_path / "x", b"1.5")

    assert (tmp_path / "x").read_bytes() == b"1.5"


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "FIFO"])
def test_write_follows_and_overwrites_nothing(kind: str, tmp_path: Path) -> None:
    """Whatever lies in the place already is left as it is, and so is what it leads to."""
    path, target = tmp_path / "x", tmp_path / "target"
    if kind == "file":
        path.write_text("old")
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("target")
        if kind == "link":
            target.write_text("old")

    with pytest.raises(FileExistsError):
        write_new(path, b"new")

    assert kind != "file" or path.read_text() == "old"
    assert target.exists() is (kind == "link")
    assert kind != "link" or target.read_text() == "old"


def quarantined(tmp_path: Path, name: str) -> dict[str, bytes]:
    with tarfile.open(tmp_path / f"quarantine/{name}.tar.gz") as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive}
        return {key: file.read() if file else b"" for key, file in files.items()}


def test_quarantine_holds_the_three_files_cut_to_the_limit(tmp_path: Path) -> None:
    """The archive holds the three metric files, cut, and nothing else, and the storage is gone."""
    path = Path(MANAGER.create("r").path)
    (path / "pre-job-metrics.json").write_bytes(b"x" * 5000)
    (path / "runner-installed.timestamp").write_bytes(b"1.5")
    (path / "post-job-metrics.json").symlink_to("/etc/passwd")
    (path / "more").write_bytes(b"x" * 5000)

    storage.move_to_quarantine(MANAGER, "r")

    assert quarantined(tmp_path, "r") == {
        "r/runner-installed.timestamp": b"1.5",
        "r/pre-job-metrics.json": b"x" * FILE_SIZE_BYTES_LIMIT,
    }
    assert names() == []
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == ["r.tar.gz"]


def test_quarantine_is_for_root_alone(tmp_path: Path) -> None:
    """What strangers' jobs wrote is not laid out for others to read."""
    MANAGER.create("r")
    storage.move_to_quarantine(MANAGER, "r")

    assert (tmp_path / "quarantine").stat().st_mode & 0o077 == 0


def test_quarantine_has_a_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs break the rules: the oldest archives make room for the newest."""
    monkeypatch.setattr(storage, "KEPT_OF_JOBS", 3 * 4096)
    for age, name in enumerate(["r-1", "r-2", "r-3", "r-4", "r-5"]):
        MANAGER.create(name)
        storage.move_to_quarantine(MANAGER, name)
        os.utime(tmp_path / "quarantine" / f"{name}.tar.gz", (1000 + age, 1000 + age))

    assert {path.name for path in (tmp_path / "quarantine").iterdir()} == {f"r-{n}.tar.gz" for n in (3, 4, 5)}


def test_quarantine_of_nothing() -> None:
    """A storage that is not there cannot be archived."""
    with pytest.raises(QuarantineMetricsStorageError, match="nobody"):
        storage.move_to_quarantine(MANAGER, "nobody")


def test_storage_stays_where_it_cannot_be_archived(tmp_path: Path) -> None:
    """No storage is removed before its archive is whole."""
    MANAGER.create("r")
    (tmp_path / "quarantine").write_text("in the way")

    with pytest.raises(QuarantineMetricsStorageError, match="cannot archive"):
        storage.move_to_quarantine(MANAGER, "r")
    assert names() == ["r"]


def test_the_recorded_flavor_is_removed_with_the_storage(tmp_path: Path) -> None:
    """Nothing is recorded for the flavor of a unit that has only one."""
    for name, flavor in (("r-1", "big"), ("r-2", "default")):
        record_flavor(MANAGER.create(name), flavor)
    assert {path.name for path in (tmp_path / "fs").iterdir()} == {"r-1", "r-2", ".r-1.flavor"}
    assert names() == ["r-1", "r-2"]

    for name in names():
        MANAGER.delete(name)

    assert list((tmp_path / "fs").iterdir()) == []
