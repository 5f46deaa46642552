"""What the host part decides and writes, without the machine: subnets, units, logrotate, the runner binary."""

import configparser
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, cast

import pytest

import provision
import times
from engine.client import LxdClient
from errors import CommandError, ConfigurationError, GithubApiError, HostError
from gh.client import GithubClient
from host import kernel, packages, runner_binary
from host import pool as storage
from host.lxd_server import SUBNETS, free_subnet
from models import (
    Arch,
    BaseImage,
    CharmState,
    Flavor,
    GithubPath,
    GithubRepo,
    OfferedBinary,
    RunnerStorage,
    Scaling,
    VirtualMachineResources,
)
from tests.support.fakes import state

TEMPLATES = Path(__file__).resolve().parent.parent.parent / "templates"
JINJA = provision.environment(TEMPLATES)
PATH = GithubRepo("octo-org", "demo")


def networks(*texts: str) -> list[IPv4Network]:
    return [IPv4Network(text) for text in texts]


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        ([], "10.1.0.0/24"),
        (["192.168.0.0/16"], "10.1.0.0/24"),
        (["10.1.0.0/24"], "10.2.0.0/24"),
        (["10.1.0.128/25"], "10.2.0.0/24"),
        (["10.0.0.0/15"], "10.2.0.0/24"),
        (["10.1.0.7/32", "10.2.0.7/32"], "10.3.0.0/24"),
    ],
    ids=["nothing used", "others used", "first used", "part of it used", "around it used", "single addresses"],
)
def test_first_free_subnet(used: list[str], expected: str) -> None:
    """The bridge gets the first candidate that no network in use overlaps."""
    candidates = networks("10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24")

    assert free_subnet(networks(*used), candidates) == IPv4Network(expected)


def test_no_free_subnet() -> None:
    """Where every candidate is taken a person must decide, and is told what to do."""
    with pytest.raises(HostError, match="create the bridge by hand"):
        free_subnet(networks("10.0.0.0/8"), SUBNETS)


SERVICE_TEXT = """\
[Unit]
Description=Reconcile the GitHub runners of runner/0
# Each start counts, also those that the agent asks for.
StartLimitIntervalSec=0

[Service]
Type=oneshot
# juju-exec is only a client: the limit is inside, where the dispatch runs.
ExecStart=juju-exec "runner/0" "timeout -k 30s 2250s env JUJU_DISPATCH_PATH=reconcile-runners ./dispatch"
"""
TIMER_TEXT = """\
[Unit]
Description=Reconcile the GitHub runners of runner/0 every 10 minutes

[Timer]
OnActiveSec=1min
OnUnitInactiveSec=10min
RandomizedDelaySec=150s

[Install]
WantedBy=timers.target
"""


def unit(name: str, **values: Any) -> str:
    return JINJA.get_template(f"{name}.j2").render(**values)


SERVICE, TIMER = "ghro.reconcile-runners.service", "ghro.reconcile-runners.timer"


@pytest.mark.parametrize(("name", "text"), [(SERVICE, SERVICE_TEXT), (TIMER, TIMER_TEXT)])
def test_timer_units(name: str, text: str) -> None:
    """The units are exactly these: the limit lies inside juju-exec, and the timer starts counting by itself."""
    assert unit(name, unit="runner/0", interval=10, limit=2250) == text


@pytest.mark.parametrize(
    ("interval", "limit", "delay"), [(2, "2250s", 30), (3, "2250s", 45), (10, "2250s", 150), (61, "3600s", 915)]
)
def test_timer_follows_the_interval(interval: int, limit: str, delay: int) -> None:
    """The limit is a minute less than the interval but never below one creation; the random delay is a quarter."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string(unit(TIMER, unit="runner/0", interval=interval))

    assert settings["Timer"]["OnUnitInactiveSec"] == f"{interval}min"
    assert settings["Timer"]["RandomizedDelaySec"] == f"{delay}s"
    service = unit(SERVICE, unit="runner/0", interval=interval, limit=times.reconcile_limit(interval))
    assert f"timeout -k 30s {limit} env" in service


MOUNT_TEXT = """\
[Unit]
Description=Storage of GitHub runners
Before=lxd.service lxd.socket snap.lxd.daemon.service

[Mount]
Where=/var/lib/github-runner/pool
What=/storage/juju/github-runner-pool.img
Type=btrfs
Options=loop,user_subvol_rm_allowed

[Install]
WantedBy=multi-user.target
"""
MOUNT = {
    "where": "/var/lib/github-runner/pool",
    "what": "/storage/juju/github-runner-pool.img",
    "kind": "btrfs",
    "options": "loop,user_subvol_rm_allowed",
}


def test_mount_unit() -> None:
    """The pool's filesystem is mounted before LXD starts, also after a reboot."""
    assert unit("mount", **MOUNT) == MOUNT_TEXT


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", [SERVICE, TIMER, "var-lib-github\\x2drunner-pool.mount"])
def test_systemd_accepts_the_units(name: str, tmp_path: Path) -> None:
    """systemd has nothing to say against the units."""
    for each in (SERVICE, TIMER):
        # The program is Juju's: not on every machine that runs tests.
        text = unit(each, unit="runner/0", interval=10, limit=2250)
        text = text.replace("ExecStart=juju-exec", "ExecStart=/bin/true")
        (tmp_path / each).write_text(text)
    (tmp_path / "var-lib-github\\x2drunner-pool.mount").write_text(MOUNT_TEXT)

    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    words = [line for line in done.stderr.splitlines() if "ghro." in line or "github" in line]
    assert words == []


LOGROTATE_TEXT = """\
/var/log/github-runner-metrics.log {
    rotate 0
    missingok
    notifempty
    create
}
"""


def test_logrotate_configuration() -> None:
    """No rotated copy is kept, so that no line is ever shipped twice."""
    assert unit("logrotate", log="/var/log/github-runner-metrics.log") == LOGROTATE_TEXT


def test_logrotate_accepts_it(tmp_path: Path) -> None:
    """logrotate has nothing to say against its configuration."""
    program = shutil.which("logrotate", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("logrotate is not installed")
    (tmp_path / "log").write_text("line\n")
    config = tmp_path / "config"
    config.write_text(unit("logrotate", log=str(tmp_path / "log")))
    config.chmod(0o644)

    done = subprocess.run([program, "-d", str(config)], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert "error" not in done.stderr.lower()


class FakeGithub:
    """Offers a runner binary and hands it out, or fails half way."""

    def __init__(self, filename: str = "actions-runner-linux-x64-2.300.0.tar.gz", content: bytes = b"binary") -> None:
        self.filename = filename
        self.content = content
        self.error: Exception | None = None
        self.offer_error: Exception | None = None
        self.downloads = 0
        self.asked: list[tuple[GithubPath, Arch]] = []
        self.while_downloading: Callable[[], None] = lambda: None

    def offered_binary(self, path: GithubPath, arch: Arch) -> OfferedBinary:
        self.asked.append((path, arch))
        if self.offer_error:
            raise self.offer_error
        return OfferedBinary("https://example/x", self.filename, "0" * 64)

    def download(self, _: OfferedBinary, target: Path) -> None:
        self.downloads += 1
        self.while_downloading()
        target.write_bytes(self.content[:3] if self.error else self.content)
        if self.error:
            raise self.error


def update(github: FakeGithub, folder: Path, arch: Arch = Arch.X64) -> bool:
    return runner_binary.update(cast(GithubClient, github), PATH, arch, folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_no_runner_binary_yet(tmp_path: Path) -> None:
    """Before the first download there is none, whether its folder exists or not."""
    assert runner_binary.current(tmp_path) is None
    assert runner_binary.current(tmp_path / "missing") is None


def test_folder_is_no_runner_binary(tmp_path: Path) -> None:
    """A name that leads to something else than a file is no runner binary."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "current").symlink_to("folder")

    assert runner_binary.current(tmp_path) is None


@pytest.mark.parametrize("target", ["current", "../outside.tar.gz", "{}/outside.tar.gz", "link.tar.gz", "gone.tar.gz"])
def test_a_link_that_leads_elsewhere_is_no_runner_binary(tmp_path: Path, target: str) -> None:
    """Neither a link to itself nor one out of the folder is followed; the next download takes its place."""
    (tmp_path / "outside.tar.gz").write_bytes(b"something else")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.tar.gz").symlink_to("../outside.tar.gz")
    (folder / "current").symlink_to(target.format(tmp_path))

    assert runner_binary.current(folder) is None
    assert runner_binary.age(0, folder) is None

    github = FakeGithub("link.tar.gz")
    assert update(github, folder)
    assert runner_binary.current(folder) == folder / github.filename
    assert (tmp_path / "outside.tar.gz").read_bytes() == b"something else"


def test_first_runner_binary(tmp_path: Path) -> None:
    """What GitHub offers for path and architecture is fetched and is then in use under GitHub's name."""
    folder = tmp_path / "folder"
    github = FakeGithub()

    assert update(github, folder, Arch.ARM64) is True

    found = runner_binary.current(folder)
    assert found == folder / github.filename
    assert found is not None
    assert found.read_bytes() == b"binary"
    assert github.asked == [(PATH, Arch.ARM64)]


def test_same_runner_binary_is_not_fetched_again(tmp_path: Path) -> None:
    """What is in use already is not fetched again, and that is no change."""
    github = FakeGithub()
    update(github, tmp_path)

    assert update(github, tmp_path) is False
    assert github.downloads == 1


def test_new_runner_binary_takes_the_place(tmp_path: Path) -> None:
    """A new one takes the place of the old one, which goes with whatever interrupted downloads left behind."""
    update(FakeGithub(), tmp_path)
    (tmp_path / ".download-abc").write_bytes(b"left over")
    (tmp_path / ".current.new").symlink_to("nothing")

    assert update(FakeGithub("actions-runner-linux-x64-2.301.0.tar.gz", b"new"), tmp_path) is True

    assert names(tmp_path) == ["actions-runner-linux-x64-2.301.0.tar.gz", "current"]
    found = runner_binary.current(tmp_path)
    assert found is not None
    assert found.read_bytes() == b"new"


def test_old_runner_binary_is_in_use_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """While a new one is being fetched the old one can still be used."""
    update(FakeGithub(), tmp_path)
    seen: list[bytes] = []

    def look() -> None:
        found = runner_binary.current(tmp_path)
        seen.append(found.read_bytes() if found else b"")

    github = FakeGithub("new.tar.gz", b"new")
    github.while_downloading = look
    update(github, tmp_path)

    assert seen == [b"binary"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [(GithubApiError("wrong checksum"), GithubApiError), (OSError("disk full"), HostError)],
    ids=["GitHub", "disk"],
)
def test_failed_download_keeps_the_old_one(tmp_path: Path, error: Exception, raised: type[Exception]) -> None:
    """A download that fails leaves the old one in use and nothing of the new one."""
    update(FakeGithub(), tmp_path)
    before = names(tmp_path)
    github = FakeGithub("new.tar.gz")
    github.error = error

    with pytest.raises(raised):
        update(github, tmp_path)

    assert names(tmp_path) == before
    found = runner_binary.current(tmp_path)
    assert found is not None
    assert found.read_bytes() == b"binary"


def test_github_down_changes_nothing(tmp_path: Path) -> None:
    """Without GitHub's answer nothing is touched."""
    update(FakeGithub(), tmp_path)
    before = names(tmp_path)
    github = FakeGithub()
    github.offer_error = GithubApiError("down")

    with pytest.raises(GithubApiError):
        update(github, tmp_path)
    assert names(tmp_path) == before


def test_lost_runner_binary_is_fetched_again(tmp_path: Path) -> None:
    """A name that leads to nothing is no runner binary: it is fetched again."""
    github = FakeGithub()
    update(github, tmp_path)
    (tmp_path / github.filename).unlink()

    assert runner_binary.current(tmp_path) is None
    assert update(github, tmp_path) is True
    assert runner_binary.current(tmp_path) is not None


def test_nothing_missing_nothing_installed() -> None:
    """Where every program is there apt is not asked, and nothing counts as installed."""
    assert packages.ensure(print, {"sh": "dash", "ls": "coreutils"}) == []


class FakeLxd:
    """Knows the profile `runner` or nothing."""

    def __init__(self, config: dict[str, str] | None) -> None:
        self.config = config

    def find(self, *path: str) -> dict[str, Any] | None:
        assert path == ("profiles", "runner")
        return None if self.config is None else {"config": self.config}


def check_unchanged(config: dict[str, str] | None, base_image: BaseImage, where: RunnerStorage) -> None:
    storage.check_unchanged(cast(LxdClient, FakeLxd(config)), "app", base_image, where)


DEPLOYED = {"user.github-runner.base-image.app": "jammy", "user.github-runner.runner-storage": "memory"}
FORMER = {"user.github-runner.base-image": "jammy", "user.github-runner.runner-storage": "memory"}


@pytest.mark.parametrize("config", [DEPLOYED, FORMER], ids=["today", "version 1.0"])
@pytest.mark.parametrize(
    ("base_image", "where", "errors"),
    [
        (BaseImage.NOBLE, RunnerStorage.MEMORY, ["base-image: .* jammy"]),
        (BaseImage.JAMMY, RunnerStorage.JUJU_STORAGE, ["runner-storage: .* memory"]),
        (BaseImage.NOBLE, RunnerStorage.JUJU_STORAGE, ["base-image: .* jammy", "runner-storage: .* memory"]),
    ],
    ids=["image", "storage", "both"],
)
def test_what_cannot_change(
    config: dict[str, str], base_image: BaseImage, where: RunnerStorage, errors: list[str]
) -> None:
    """A changed base image or storage blocks, and each error names the option and the old value."""
    with pytest.raises(ConfigurationError, match="; ".join(errors)) as caught:
        check_unchanged(config, base_image, where)
    assert len(caught.value.invalid) == len(errors)


@pytest.mark.parametrize("config", [None, DEPLOYED, {}], ids=["not deployed", "set back", "profile without our keys"])
def test_what_did_not_change(config: dict[str, str] | None) -> None:
    """A first deployment and an option that was set back are no errors."""
    check_unchanged(config, BaseImage.JAMMY, RunnerStorage.MEMORY)


def test_base_image_of_a_flavor_cannot_change() -> None:
    """The error names the flavour and the old value; a flavour that is not recorded is a new one."""
    config = {**DEPLOYED, "user.github-runner.base-image.app.a": "noble"}
    one, other = (Flavor(name, VirtualMachineResources(1, "1GiB", "1GiB"), BaseImage.JAMMY, (), 1, 1) for name in "ab")

    with pytest.raises(ConfigurationError) as caught:
        storage.check_unchanged(
            cast(LxdClient, FakeLxd(config)), "app", BaseImage.JAMMY, RunnerStorage.MEMORY, (one, other)
        )
    assert caught.value.invalid == ("flavors: a: base-image: cannot change after deployment, set it back to noble",)


def test_another_applications_base_images_do_not_count() -> None:
    """Its own and those of its flavours, also where a name begins like the application's; the storage is the same."""
    config = {"user.github-runner.base-image.app.a": "noble", **DEPLOYED}
    flavor = Flavor("a", VirtualMachineResources(1, "1GiB", "1GiB"), BaseImage.RESOLUTE, (), 1, 1)
    lxd = cast(LxdClient, FakeLxd(config))

    for app in ("other", "ap", "app-a"):
        storage.check_unchanged(lxd, app, BaseImage.NOBLE, RunnerStorage.MEMORY, (flavor,))
        with pytest.raises(ConfigurationError, match="runner-storage"):
            storage.check_unchanged(lxd, app, BaseImage.NOBLE, RunnerStorage.JUJU_STORAGE)


def test_runner_binary_can_be_read_by_charm_alone_or_all(tmp_path: Path) -> None:
    """Nobody but its owner can change the runner binary that every runner gets."""
    folder = tmp_path / "folder"
    github = FakeGithub()
    update(github, folder)

    for path in (folder, folder / github.filename):
        assert path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) == 0


GIB = 1 << 30


def test_space_is_enough_to_the_byte() -> None:
    """All disks at once must fit; a byte too little blocks, and names both sizes."""
    wanted = state(virtual_machines=4, resources=VirtualMachineResources(1, "1GiB", "5GiB"))
    storage.check_space(wanted, 20 * GIB, "/storage/juju")

    with pytest.raises(ConfigurationError) as caught:
        storage.check_space(wanted, 20 * GIB - 1, "/storage/juju")
    assert "virtual-machines: 4 × vm-disk 5GiB = 20GiB exceeds the 19.99GiB of /storage/juju" in str(caught.value)


def test_disk_of_each_flavor_fits_the_storage() -> None:
    """With a budget all disks together may be more than the storage, and one alone may not."""
    large = Flavor("a", VirtualMachineResources(1, "1GiB", "20GiB"), BaseImage.JAMMY, (), 9, 9)
    closed = replace(large, name="b", resources=VirtualMachineResources(1, "1GiB", "99GiB"), count=0)
    wanted = state(given_flavors=(large, closed))
    storage.check_space(wanted, 20 * GIB, "/storage/juju")

    with pytest.raises(
        ConfigurationError, match=r"^flavors: a: vm-disk: 20GiB exceeds the 19\.99GiB of /storage/juju; "
    ):
        storage.check_space(wanted, 20 * GIB - 1, "/storage/juju")


class PoolLxd:
    """An LXD with the profile of no deployment and the pool that a test gives it."""

    def __init__(self, pool: dict[str, Any] | None) -> None:
        self.pool = pool

    def find(self, *path: str) -> dict[str, Any] | None:
        return self.pool if path[0] == "storage-pools" else None


@pytest.fixture
def juju_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of /storage/juju, on a filesystem of 100 GiB of which others use 40."""
    folder = tmp_path / "juju"
    folder.mkdir()
    used = os.statvfs(folder)
    blocks = (100 * GIB // used.f_frsize, 60 * GIB // used.f_frsize)
    size = os.statvfs_result((used.f_bsize, used.f_frsize, *blocks, blocks[1], 0, 0, 0, 0, 255))
    monkeypatch.setattr("host.pool.os.statvfs", lambda _: size)
    monkeypatch.setattr(storage, "JUJU_STORAGE", folder)
    return folder


INSTANCE = "/1.0/instances/app-0-aa?project=default"


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (None, set()),
        ({"config": {"source": "/storage/juju"}, "used_by": [INSTANCE, "/1.0/profiles/runner"]}, {"app-0-aa"}),
        ({"config": {"source": "/storage/juju"}, "used_by": ["/1.0/profiles/runner"]}, set()),
        ({"config": {"source": "/run/github-runner-pool"}, "used_by": [INSTANCE]}, set()),
        ({"config": {"source": "/storage/juju/github-runner-pool"}, "used_by": [INSTANCE]}, set()),
    ],
    ids=["no pool", "in use", "not in use", "btrfs", "dir"],
)
def test_who_uses_the_previous_charms_pool(pool: dict[str, Any] | None, expected: set[str]) -> None:
    """Only instances keep a pool in use, and a pool that this charm made is not the previous charm's."""
    assert storage.previous_pool_users(cast(LxdClient, PoolLxd(pool))) == expected


def wanting(number: int, where: RunnerStorage = RunnerStorage.JUJU_STORAGE) -> CharmState:
    """A state for a number of runners with disks of 10 GiB."""
    resources = VirtualMachineResources(1, "1GiB", "10GiB")
    return state(virtual_machines=number, resources=resources, runner_storage=where)


def test_storage_that_is_large_enough_in_total_is_enough(juju_storage: Path) -> None:
    """What others use of it is a notice and blocks nothing, as with the previous charm."""
    lxd = cast(LxdClient, PoolLxd(None))

    storage.check(lxd, wanting(10), "app/0")
    with pytest.raises(ConfigurationError, match=r"11 × vm-disk 10GiB = 110GiB exceeds the 100GiB of .*/juju"):
        storage.check(lxd, wanting(11), "app/0")
    assert storage.shortage(wanting(6)) is None
    assert storage.shortage(replace(wanting(7), scaling=Scaling.DEMAND)) is None
    assert storage.shortage(wanting(7)) == f"{juju_storage} has 60GiB free of the 70GiB that full runners need"
    (juju_storage / "github-runner-pool").mkdir()
    assert storage.shortage(wanting(7)) is None


def test_what_the_pool_has_counts_as_free(juju_storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool volume's own blocks are no shortage, to the byte. Other files of any name are."""
    volume = juju_storage / "github-runner-pool-0a1b.img"
    for path in (volume, juju_storage / "other.img"):
        path.write_bytes(b"x" * (1 << 20))
    held = volume.stat().st_blocks * 512
    assert held >= 1 << 20

    monkeypatch.setattr(storage, "needed_bytes", lambda _: 60 * GIB + held)
    assert storage.shortage(wanting(7)) is None
    monkeypatch.setattr(storage, "needed_bytes", lambda _: 60 * GIB + held + 1)
    assert storage.shortage(wanting(7)) is not None


def test_memory_is_never_more_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks in memory must fit into the machine's memory; the message names both sizes."""
    monkeypatch.setattr("host.pool.os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 15 * GIB // 4096)
    lxd = cast(LxdClient, PoolLxd(None))

    storage.check(lxd, wanting(1, RunnerStorage.MEMORY), "app/0")
    with pytest.raises(
        ConfigurationError, match="2 × vm-disk 10GiB = 20GiB exceeds the 15GiB of this machine's memory"
    ):
        storage.check(lxd, wanting(2, RunnerStorage.MEMORY), "app/0")


class DeployedLxd(PoolLxd):
    """An LXD with the profile of a deployment whose flavour had another base image."""

    def find(self, *path: str) -> dict[str, Any] | None:
        return (
            {"config": {"user.github-runner.base-image.app.a": "noble"}} if "profiles" in path else super().find(*path)
        )


@pytest.mark.parametrize("is_mounted", [True, False])
def test_all_that_the_machine_cannot_give_is_named_at_once(
    juju_storage: Path, monkeypatch: pytest.MonkeyPatch, is_mounted: bool
) -> None:
    """What cannot change, CPUs and disks of all flavours, also while the storage is not mounted."""
    monkeypatch.setattr(storage, "is_mounted", lambda _: is_mounted)
    lxd = cast(
        LxdClient, DeployedLxd({"config": {"source": "/run/github-runner-pool"}, "status": "Created", "used_by": []})
    )
    sizes = {"a": (1, "1GiB"), "b": (9999, "1GiB"), "c": (1, "999GiB")}
    flavors = [
        Flavor(name, VirtualMachineResources(cpu, "1MiB", disk), BaseImage.JAMMY, (), 1, 1)
        for name, (cpu, disk) in sizes.items()
    ]

    with pytest.raises(ConfigurationError) as caught:
        storage.check(lxd, state(given_flavors=tuple(flavors), test_mode=True, memory_reserve=0), "app/0")

    named = [error.split(": ")[1:3] for error in caught.value.invalid]
    assert named == [["a", "base-image"], ["b", "vm-cpu"], *([["c", "vm-disk"]] if is_mounted else [])]


@pytest.mark.parametrize("source", ["/run/github-runner-pool", "/storage/juju/github-runner-pool"])
def test_storage_that_is_not_mounted_yet_is_waited_for(
    juju_storage: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """An empty folder in the storage's place says nothing of its size, and no pool is made in it."""
    lxd = cast(LxdClient, PoolLxd({"config": {"source": source}, "status": "Unavailable", "used_by": []}))

    with pytest.raises(HostError, match="no storage is mounted at"):
        storage.check(lxd, wanting(1), "app/0")

    monkeypatch.setattr(storage, "is_mounted", lambda folder: folder == juju_storage)
    storage.check(lxd, wanting(1), "app/0")


@pytest.mark.parametrize("left", ["github-runner-pool-0a1b.img", "github-runner-pool"])
def test_storage_without_a_mount_of_its_own_is_known_by_the_pool(juju_storage: Path, left: str) -> None:
    """Where Juju cannot mount, in an unprivileged container, the storage is a plain folder, with the pool in it."""
    lxd = cast(
        LxdClient, PoolLxd({"config": {"source": "/run/github-runner-pool"}, "status": "Created", "used_by": []})
    )
    (juju_storage / left).mkdir()

    storage.check(lxd, wanting(1), "app/0")


def test_age_of_the_runner_binary_counts_from_githubs_last_offer(tmp_path: Path) -> None:
    """The age starts anew each time GitHub offers the same version."""
    github = FakeGithub("actions-runner-linux-x64-2.320.0.tar.gz")
    assert runner_binary.age(0, tmp_path) is None
    runner_binary.update(cast(GithubClient, github), PATH, Arch.X64, tmp_path)
    using = runner_binary.current(tmp_path)
    assert using is not None
    os.utime(using, (1000, 1000))
    assert runner_binary.age(1000 + 15 * 86400, tmp_path) == 15 * 86400

    runner_binary.update(cast(GithubClient, github), PATH, Arch.X64, tmp_path)

    age = runner_binary.age(time.time(), tmp_path)
    assert age is not None
    assert age < 60


@pytest.mark.parametrize(
    ("age", "expected"), [(0, True), (3599, True), (3600, False), (-1, False)], ids=["now", "lately", "old", "future"]
)
def test_githubs_answer_about_the_runner_binary_holds_for_an_hour(tmp_path: Path, age: int, expected: bool) -> None:
    """A time in the future says nothing: the clock was set back."""
    assert not runner_binary.is_recent(0, tmp_path)
    runner_binary.update(cast(GithubClient, FakeGithub()), PATH, Arch.X64, tmp_path)
    using = runner_binary.current(tmp_path)
    assert using is not None
    now = using.stat().st_mtime + age

    assert runner_binary.is_recent(now, tmp_path) is expected

    runner_binary.note_deprecated(tmp_path)
    assert not runner_binary.is_recent(time.time(), tmp_path)


def test_deprecation_is_of_one_version_and_one_hour(tmp_path: Path) -> None:
    """A deprecation holds for one version and for one hour."""
    now = time.time()
    runner_binary.note_deprecated(tmp_path)
    assert runner_binary.deprecated_at(now, tmp_path) is None
    runner_binary.update(
        cast(GithubClient, FakeGithub("actions-runner-linux-x64-2.320.0.tar.gz")), PATH, Arch.X64, tmp_path
    )
    runner_binary.note_deprecated(tmp_path)

    assert runner_binary.deprecated_at(now + 60, tmp_path) is not None
    assert runner_binary.deprecated_at(now + 3601, tmp_path) is None
    runner_binary.clear_deprecated(tmp_path)
    assert runner_binary.deprecated_at(now + 60, tmp_path) is None
    runner_binary.note_deprecated(tmp_path)
    assert runner_binary.deprecated_at(now - 3600, tmp_path) is None
    runner_binary.update(
        cast(GithubClient, FakeGithub("actions-runner-linux-x64-2.321.0.tar.gz")), PATH, Arch.X64, tmp_path
    )
    assert runner_binary.deprecated_at(now + 60, tmp_path) is None


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The programs that an update of the kernel starts."""
    ran: list[list[str]] = []
    monkeypatch.setattr(kernel, "CHECKED", tmp_path / "checked")
    monkeypatch.setattr(kernel, "UPDATE_SCRIPT", tmp_path / "update.sh")
    monkeypatch.setattr(kernel, "installed_kernels", lambda: ["linux-virtual"])
    monkeypatch.setattr(kernel, "run", lambda command, **_: ran.append(command))
    return ran


def test_removal_names_every_file_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files go, and each that was there is named for the log; one that is missing is neither an error nor named."""
    files = [tmp_path / name for name in ("modules", "sysctl", "checked", "update.sh")]
    for name, path in zip(("MODULES_FILE", "SYSCTL_FILE", "CHECKED", "UPDATE_SCRIPT"), files, strict=True):
        monkeypatch.setattr(kernel, name, path)
    for path in files[1:]:
        path.touch()

    assert kernel.remove() == [str(path) for path in files[1:]]
    assert [path for path in files if path.exists()] == []


def test_kernels_are_updated_daily(updates: list[list[str]]) -> None:
    """Only what is installed is updated, once a day; a clock that was set back does not stop it for ever."""
    now = time.time()

    assert kernel.update(now)
    assert not kernel.update(now + 3600)
    assert kernel.update(now + 90000)
    assert len(updates) == 2
    assert kernel.update(now - 3600)


def test_the_update_runs_in_a_service_of_its_own(updates: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reconcile's time limit cannot reach apt; a proxy's password stands in a file that root alone can read."""
    monkeypatch.setenv("http_proxy", "http://user:it's-secret@proxy.example:3128")

    left = kernel.UPDATE_SCRIPT.with_name(f".{kernel.UPDATE_SCRIPT.name}.x1y2")
    left.touch()

    kernel.update(time.time())

    assert not left.exists(), "what a killed process left has the password, too"
    [command] = updates
    assert command[:2] == ["systemd-run", "--quiet"]
    assert command[-2:] == ["/bin/sh", str(kernel.UPDATE_SCRIPT)]
    assert stat.S_IMODE(kernel.UPDATE_SCRIPT.stat().st_mode) == 0o700
    stub = 'apt-get() { echo "$http_proxy $DEBIAN_FRONTEND $*"; }\n'
    script = stub + kernel.UPDATE_SCRIPT.read_text()
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    update, install = done.stdout.splitlines()
    assert update == "http://user:it's-secret@proxy.example:3128 noninteractive -qq update"
    assert install.endswith("-o Dpkg::Options::=--force-confold install --only-upgrade linux-virtual")


@pytest.mark.parametrize("step", ["run", "write_file", "installed_kernels"])
@pytest.mark.parametrize("error", [CommandError("the unit already exists"), OSError(28, "No space left on device")])
def test_kernel_that_cannot_be_updated_waits(
    updates: list[list[str]], monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    """An update that cannot be started, also because the disk is full, does not stop the runners of this reconcile."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(kernel, step, fail)

    assert not kernel.update(time.time())


@pytest.mark.parametrize("updating", [False, True])
def test_no_reboot_while_packages_are_being_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, updating: bool
) -> None:
    """A kernel asks for its reboot before dpkg has ended: the machine goes down after it."""
    monkeypatch.setattr(kernel, "REBOOT_REQUIRED", tmp_path)
    monkeypatch.setattr(kernel, "are_active", lambda unit: updating)

    assert kernel.reboot_is_due() is not updating


KERNELS = {
    "generic": "linux-generic linux-image-generic linux-headers-generic linux-image-5.15.0-1-generic",
    "aws": "linux-aws linux-image-aws linux-headers-aws linux-headers-5.15.0-1073-aws linux-base linux-libc-dev",
    "hwe": "linux-generic-hwe-22.04 linux-image-generic-hwe-22.04",
    "lts": "linux-azure-lts-22.04 linux-image-azure-lts-22.04 linux-tools-common linux-firmware",
    "image only": "linux-image-virtual",
    "debian": "linux-image-amd64 linux-image-cloud-amd64",
}


@pytest.mark.parametrize("flavour", [*KERNELS, "none"])
def test_every_flavour_of_kernel_is_updated(monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    """The metapackages of whatever kernel the machine has; no version of one, and none that was removed."""
    names = KERNELS.get(flavour, "linux-base linux-libc-dev linux-image-6.1.0-1-amd64").split()
    lines = "".join(f"ii {name}\n" for name in names) + "rc linux-image-oracle\n"
    done = subprocess.CompletedProcess([], 0, stdout=lines)
    monkeypatch.setattr(kernel, "run", lambda *_, **__: done)
    known = ("linux-base", "linux-libc-dev", "linux-tools-common", "linux-firmware")

    expected = sorted(name for name in names if not re.search(r"-\d+\.\d+\.\d", name) and name not in known)
    assert kernel.installed_kernels() == expected


LOCKED = "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1234 (unattended-upgr)"


class FakeApt:
    """Apt and dpkg, with what the first calls of each command say before they succeed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **said: list[str]) -> None:
        self.said = said
        self.ran: list[Any] = []
        self.progress: list[str] = []
        monkeypatch.setattr(packages, "run_surviving", self.run)
        monkeypatch.setattr("host.packages.time.sleep", lambda _: None)

    def run(self, command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        name = next(word for word in ("update", "install", "--configure") if word in command)
        self.ran.append(name)
        said = self.said.get(name.strip("-"), [])
        return subprocess.CompletedProcess(command, 100 if said else 0, stdout=said.pop(0) if said else "")

    def ensure(self) -> list[str]:
        return packages.ensure(self.progress.append, {"no-such-program": "package"})


@pytest.mark.parametrize("command", ["update", "install"])
def test_locks_of_apt_are_waited_for(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """A machine that has just started updates itself: its locks are waited for, and the status says so."""
    apt = FakeApt(monkeypatch, **{command: [LOCKED, LOCKED]})

    assert apt.ensure() == ["package"]
    assert apt.ran.count(command) == 3
    assert apt.progress == ["Installing packages: waiting for another process that holds apt's lock"] * 2


def test_locks_of_apt_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is never released is an error that names who holds it."""
    monkeypatch.setattr(times, "APT_LOCK", -1)
    apt = FakeApt(monkeypatch, update=[LOCKED])

    with pytest.raises(HostError, match=r"the packages package cannot be installed: .*held by process 1234"):
        apt.ensure()


def test_an_interrupted_dpkg_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power failure left half installed is configured first."""
    words = "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem."
    apt = FakeApt(monkeypatch, install=[words])

    assert apt.ensure() == ["package"]
    assert apt.ran == ["update", "install", "--configure", "install"]


def test_packages_that_cannot_be_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apt's last words are in the error."""
    apt = FakeApt(monkeypatch, install=["E: Unable to locate package package"])

    with pytest.raises(HostError, match="the packages package cannot be installed: E: Unable to locate"):
        apt.ensure()


def test_limit_of_inotify_instances_is_raised_where_it_is_too_low(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kernel that allows 128 could not run a dozen containers; one that allows enough, or refuses, is left alone."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        ran.append(command)
        return subprocess.CompletedProcess(command, 1, stderr="read-only file system")

    monkeypatch.setattr(kernel, "SYSCTL_FILE", tmp_path / "sysctl.conf")
    monkeypatch.setattr(kernel, "INOTIFY", tmp_path / "instances")
    monkeypatch.setattr(kernel, "run", run)
    kernel.INOTIFY.write_text("128\n")

    assert kernel.ensure_inotify()
    kernel.INOTIFY.write_text("1048576\n")
    assert not kernel.ensure_inotify()

    assert ran == [["sysctl", "--quiet", "--load", str(tmp_path / "sysctl.conf")]]


def test_bridge_module_is_loaded_now_and_at_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """br_netfilter is asked for once where it is missing, and written down for the next boot."""
    ran: list[list[str]] = []
    monkeypatch.setattr(kernel, "MODULES_FILE", tmp_path / "modules.conf")
    monkeypatch.setattr(kernel, "MODULE", "no_such_module")
    monkeypatch.setattr(kernel, "run", lambda command, **_: ran.append(command))

    assert kernel.ensure_module()
    assert kernel.MODULES_FILE.read_text() == "no_such_module\n"
    assert ran == [["modprobe", "no_such_module"]]
