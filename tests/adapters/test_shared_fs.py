"""The metrics volumes: loop mounts for real (root)."""

import ctypes
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import metrics.storage
import shared_fs
from errors import CreateMetricsStorageError, GetMetricsStorageError, MetricsStorageError
from metrics.storage import MetricsStorage, record_flavor
from system import is_mounted, try_lock

NAME = "app-0-0123abcdaa"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(shared_fs, "FILESYSTEM_BASE_PATH", tmp_path / "fs")
    monkeypatch.setattr(shared_fs, "FILESYSTEM_IMAGES_PATH", tmp_path / "images")
    monkeypatch.setattr(shared_fs, "VIEWS", {})
    yield tmp_path
    for path in (tmp_path / "fs").glob("*"):
        subprocess.run(["umount", "--lazy", str(path)], capture_output=True)


def options(path: Path) -> set[str]:
    for line in Path("/proc/mounts").read_text().splitlines():
        if line.split()[1] == str(path):
            return set(line.split()[3].split(","))
    return set()


def test_storage_is_a_small_filesystem_of_its_own() -> None:
    """Mounted with nosuid, nodev, noexec, nosymfollow, and full after a megabyte."""
    storage = shared_fs.create(NAME)

    assert {"nosuid", "nodev", "noexec", "nosymfollow"} <= options(storage.path)
    assert list(storage.path.iterdir()) == []
    with pytest.raises(OSError, match="No space"):
        (storage.path / "fill").write_bytes(b"x" * (2 << 20))


def tools(folder: Path) -> tuple[Path, Path, Path]:
    """What root leaves that is dangerous elsewhere: a device node, a program with setuid, a link out of the folder."""
    node, program, link = folder / "node", folder / "program", folder / "link"
    os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)
    link.symlink_to("/etc/hostname")
    return node, program, link


def test_files_of_root_are_of_no_use_on_the_host() -> None:
    """Device nodes, programs and links that root of a virtual machine makes in its storage are dead, also for root."""
    node, program, link = tools(shared_fs.create(NAME).path)

    for path in (node, link):
        with pytest.raises(OSError, match=r"Permission denied|symbolic links"):
            path.open("rb")
    with pytest.raises(PermissionError):
        subprocess.run([str(program)])


@pytest.mark.parametrize("flag", ["suid", "dev", "exec", "symfollow"])
def test_every_storage_that_is_handed_out_has_all_flags(flag: str) -> None:
    """A storage that somebody mounted without one of the flags gets it before anything reads it."""
    path = shared_fs.create(NAME).path
    subprocess.run(["mount", "-o", f"remount,{flag}", str(path)], check=True)
    assert f"no{flag}" not in options(path)

    [storage] = shared_fs.list_all()

    assert set(shared_fs.FLAGS) <= options(storage.path)


def test_storage_that_cannot_get_its_flags_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its flags a storage is neither created nor read."""
    path = shared_fs.create(NAME).path
    monkeypatch.setattr(shared_fs, "FLAGS", {"nosuid": 1 << 30})

    with pytest.raises(GetMetricsStorageError, match="without nosuid"):
        shared_fs.get(NAME)
    with pytest.raises(CreateMetricsStorageError, match="without nosuid"):
        shared_fs.create("app-0-0123abcdbb")
    assert [entry.name for entry in path.parent.iterdir()] == [NAME]


def test_name_that_exists_is_refused() -> None:
    """A second storage of a name is an error, and the first one is left alone."""
    storage = shared_fs.create(NAME)
    (storage.path / "kept").touch()

    with pytest.raises(CreateMetricsStorageError):
        shared_fs.create(NAME)
    assert (storage.path / "kept").exists()


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 200])
def test_impossible_names_are_refused(name: str) -> None:
    """A name is one folder's name."""
    with pytest.raises(MetricsStorageError):
        shared_fs.create(name)


def test_storage_found_unmounted_is_mounted_on_access() -> None:
    """After a reboot the volumes are there and the mounts are not."""
    storage = shared_fs.create(NAME)
    (storage.path / "kept").write_text("data")
    subprocess.run(["umount", str(storage.path)], check=True)
    storage.path.rmdir()

    [listed] = shared_fs.list_all()

    assert (listed.path / "kept").read_text() == "data"
    assert (shared_fs.get(NAME).path / "kept").exists()


def test_deletion_leaves_nothing() -> None:
    """Mount, folder and volume go; a second time is no error; so is one while a file is open."""
    storage = shared_fs.create(NAME)
    with (storage.path / "open").open("w"):
        shared_fs.delete(NAME)
    shared_fs.delete(NAME)

    assert not storage.path.exists()
    assert list(shared_fs.list_all()) == []
    with pytest.raises(GetMetricsStorageError):
        shared_fs.get(NAME)


def test_storage_that_cannot_be_mounted_does_not_hide_the_others(
    folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged volume is logged and left out."""
    shared_fs.create(NAME)
    (folders / "images" / "app-0-0123abcd00.img").write_bytes(b"\0" * 4096)

    assert [storage.runner_name for storage in shared_fs.list_all()] == [NAME]
    assert "cannot mount the metrics storage of app-0-0123abcd00" in caplog.text


def test_failed_creation_leaves_nothing(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mkfs there is neither volume nor folder."""
    monkeypatch.setenv("PATH", str(folders))

    with pytest.raises(CreateMetricsStorageError, match="mkfs"):
        shared_fs.create(NAME)
    assert list((folders / "images").iterdir()) == []


def test_unfinished_images_go_with_their_maker(folders: Path) -> None:
    """A creation that was cut off leaves no file; one that goes on in another process is not disturbed."""
    (folders / "images").mkdir()
    dead, alive = (folders / "images" / f".{name}.img.partial" for name in ("dead", "alive"))
    dead.touch()

    with alive.open("wb") as file:
        assert try_lock(file)
        assert list(shared_fs.list_all()) == []
        assert list((folders / "images").iterdir()) == [alive]

    assert list(shared_fs.list_all()) == []
    assert list((folders / "images").iterdir()) == []


def test_nothing_is_listed_where_nothing_was_made() -> None:
    """No folder yet is no error."""
    assert list(shared_fs.list_all()) == []


def test_owner_of_the_root() -> None:
    """The user that the instance sees as 1000 may write, and its link is not followed."""
    storage = shared_fs.create(NAME)

    shared_fs.give_to(storage, 101000)

    assert storage.path.stat().st_uid == 101000
    with pytest.raises(GetMetricsStorageError):
        shared_fs.give_to(metrics.storage.MetricsStorage(storage.path / "nowhere", NAME), 1)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A root folder whose mounts are shared, as systemd makes them, with the folders and their public paths."""
    root = tmp_path / "machine"
    (root / "home").mkdir(parents=True)
    os.chown(root / "home", 1000, 1000)
    subprocess.run(["mount", "--bind", str(root), str(root)], check=True)
    subprocess.run(["mount", "--make-shared", str(root)], check=True)
    monkeypatch.setattr(shared_fs, "LOCKS", tmp_path / "locks")
    names = ("FILESYSTEM_BASE_PATH", "FILESYSTEM_IMAGES_PATH", "FILESYSTEM_QUARANTINE_PATH")
    for name, folder in zip(names, ("runner-fs", "runner-fs-images", "runner-fs-quarantine"), strict=True):
        monkeypatch.setattr(shared_fs, name, root / "lib" / folder)
        monkeypatch.setitem(shared_fs.VIEWS, root / "lib" / folder, root / "home" / folder)
    yield root
    subprocess.run(["umount", "--recursive", "--lazy", str(root)], check=True)


def as_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> MetricsStorage:
    """A volume that an earlier revision has made and mounted in the other user's folder."""
    with monkeypatch.context() as earlier:
        earlier.setattr(shared_fs, "VIEWS", {})
        earlier.setattr(shared_fs, "FILESYSTEM_BASE_PATH", root / "home" / "runner-fs")
        earlier.setattr(shared_fs, "FILESYSTEM_IMAGES_PATH", root / "home" / "runner-fs-images")
        storage = shared_fs.create(NAME)
    for path in (root / "home" / "runner-fs", root / "home" / "runner-fs-images" / f"{NAME}.img"):
        path.chmod(path.stat().st_mode | 0o044)
    return storage


def test_volumes_are_shown_where_they_always_were(machine: Path) -> None:
    """The public paths show volumes and mounts, also after a reboot; other users cannot enter or rename them."""
    storage = shared_fs.create(NAME)

    assert storage.path == machine / "lib" / "runner-fs" / NAME
    for _ in range(2):
        assert is_mounted(machine / "home" / "runner-fs" / NAME)
        assert (machine / "home" / "runner-fs-images" / f"{NAME}.img").stat().st_mode & 0o777 == 0o600
        for folder in (*(machine / "lib").iterdir(), *(machine / "home").iterdir()):
            assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (0, 0o700)
        with pytest.raises(OSError, match="busy"):
            (machine / "home" / "runner-fs").rename(machine / "home" / "other")
        for path in machine.glob("*/runner-fs*"):
            subprocess.run(["umount", "--lazy", str(path)], capture_output=True)
            assert not is_mounted(path)
        assert len(list(shared_fs.list_all())) == 1

    shared_fs.delete(NAME)
    assert list((machine / "home" / "runner-fs").iterdir()) == []
    shared_fs.create(NAME)
    assert len(shared_fs.remove()) == 4
    assert list((machine / "home").iterdir()) == []
    assert not is_mounted(storage.path)


def test_volumes_are_shown_with_a_newer_mount_too(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mount of util-linux 2.39 and newer makes a mount and moves it to a place, by system calls of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    clone, empty_path, here = 0x8001, 4, -100

    def run(command: list[str]) -> None:
        *_, source, target = command
        tree = libc.syscall(428, here, source.encode(), clone)  # open_tree, recursively
        assert tree >= 0
        assert libc.syscall(429, tree, b"", here, target.encode(), empty_path) == 0, os.strerror(ctypes.get_errno())
        os.close(tree)

    monkeypatch.setattr(shared_fs, "run", run)
    shared_fs.ensure_views()

    for view in (machine / "home").iterdir():
        assert is_mounted(view)
        subprocess.run(["umount", "--lazy", str(view)], check=True)


def test_volumes_of_an_earlier_revision_are_taken_along(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy runner goes on writing into its volume, which is then found at both places and closed to others."""
    earlier = as_before(machine, monkeypatch)
    with (earlier.path / "post-job-metrics.json").open("w") as job:
        [found] = shared_fs.list_all()
        job.write("from the job")

    assert found.path == machine / "lib" / "runner-fs" / NAME
    assert is_mounted(found.path)
    assert (found.path / "post-job-metrics.json").read_text() == "from the job"
    assert (earlier.path / "post-job-metrics.json").read_text() == "from the job"
    assert (machine / "home" / "runner-fs-images" / f"{NAME}.img").stat().st_mode & 0o777 == 0o600
    shared_fs.delete(NAME)
    assert str(machine / "home" / "runner-fs" / NAME) not in Path("/proc/mounts").read_text()


@pytest.mark.parametrize("trap", ["link", "file", "folder of the user", "folder for all"])
def test_what_another_user_puts_in_the_place_leads_nowhere(
    machine: Path, trap: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is mounted or changed where a link leads, and no volume that another user could make is mounted."""
    planted, victim = machine / "home" / "runner-fs-images", machine / "victim"
    victim.mkdir()
    (victim / "planted.img").write_text("theirs")
    if trap == "link":
        planted.symlink_to(victim)
    elif trap == "file":
        planted.touch()
    else:
        victim.rename(planted)
        if trap == "folder of the user":
            os.chown(planted, 1000, 1000)
        else:
            planted.chmod(0o777)
    before = sorted((path, path.lstat().st_mode) for path in victim.rglob("*"))

    shared_fs.create(NAME)

    assert [storage.runner_name for storage in shared_fs.list_all()] == [NAME]
    assert not is_mounted(victim)
    assert sorted((path, path.lstat().st_mode) for path in victim.rglob("*")) == before
    assert ("is not shown at" in caplog.text) is ("folder" not in trap)


def test_only_images_of_its_own_are_mounted(machine: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link and a file of another user in the place of a volume are no volumes."""
    assert list(shared_fs.list_all()) == []
    images = machine / "lib" / "runner-fs-images"
    (images / "app-0-1.img").symlink_to("/dev/null")
    (images / "app-0-2.img").touch()
    os.chown(images / "app-0-2.img", 1000, 1000)

    assert list(shared_fs.list_all()) == []
    assert caplog.text.count("has no metrics storage") == 2


def test_the_recorded_flavor_is_removed_with_the_volume(tmp_path: Path) -> None:
    """What is recorded beside a volume does not outlive it."""
    record_flavor(shared_fs.create(NAME), "big")
    assert (tmp_path / "fs" / f".{NAME}.flavor").read_text() == "big"

    shared_fs.delete(NAME)

    assert list((tmp_path / "fs").iterdir()) == []
