"""Spec 4: what the host part decides and writes, without the machine: subnets, units, logrotate, the application."""

import configparser
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, cast

import pytest

import provision
import times
from errors import CommandError, ConfigurationError, GithubApiError, HostError
from github_client import GithubClient
from host import application, image, kernel, packages, storage, timer
from host.daemon import SUBNETS, free_subnet
from lxd import LxdClient
from models import Arch, BaseImage, GithubPath, GithubRepo, ImageSource, ProxyConfig, RunnerApplication, RunnerStorage

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


@pytest.mark.parametrize(("name", "text"), [(timer.SERVICE, SERVICE_TEXT), (timer.TIMER, TIMER_TEXT)])
def test_timer_units(name: str, text: str) -> None:
    """The units are exactly these: the limit lies inside juju-exec, and the timer starts counting by itself."""
    assert unit(name, unit="runner/0", interval=10, limit=2250) == text


@pytest.mark.parametrize(
    ("interval", "limit", "delay"), [(2, "2250s", 30), (3, "2250s", 45), (10, "2250s", 150), (61, "3600s", 915)]
)
def test_timer_follows_the_interval(interval: int, limit: str, delay: int) -> None:
    """The limit is a minute less than the interval but never below one creation; the random delay is a quarter."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string(unit(timer.TIMER, unit="runner/0", interval=interval))

    assert settings["Timer"]["OnUnitInactiveSec"] == f"{interval}min"
    assert settings["Timer"]["RandomizedDelaySec"] == f"{delay}s"
    service = unit(timer.SERVICE, unit="runner/0", interval=interval, limit=times.reconcile_limit(interval))
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
@pytest.mark.parametrize("name", [timer.SERVICE, timer.TIMER, "var-lib-github\\x2drunner-pool.mount"])
def test_systemd_accepts_the_units(name: str, tmp_path: Path) -> None:
    """systemd has nothing to say against the units."""
    for each in (timer.SERVICE, timer.TIMER):
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
    """Offers an application and hands it out, or fails half way."""

    def __init__(
        self, filename: str = "actions-runner-linux-x64-2.300.0.tar.gz", content: bytes = b"application"
    ) -> None:
        self.filename = filename
        self.content = content
        self.error: Exception | None = None
        self.offer_error: Exception | None = None
        self.downloads = 0
        self.asked: list[tuple[GithubPath, Arch]] = []
        self.while_downloading: Callable[[], None] = lambda: None

    def application(self, path: GithubPath, arch: Arch) -> RunnerApplication:
        self.asked.append((path, arch))
        if self.offer_error:
            raise self.offer_error
        return RunnerApplication("https://example/x", self.filename, "0" * 64)

    def download(self, _: RunnerApplication, target: Path) -> None:
        self.downloads += 1
        self.while_downloading()
        target.write_bytes(self.content[:3] if self.error else self.content)
        if self.error:
            raise self.error


def update(github: FakeGithub, folder: Path, arch: Arch = Arch.X64) -> bool:
    return application.update(cast(GithubClient, github), PATH, arch, folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_no_application_yet(tmp_path: Path) -> None:
    """Before the first download there is none, whether its folder exists or not."""
    assert application.current(tmp_path) is None
    assert application.current(tmp_path / "missing") is None


def test_folder_is_no_application(tmp_path: Path) -> None:
    """A name that leads to something else than a file is no application."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "current").symlink_to("folder")

    assert application.current(tmp_path) is None


def test_first_application(tmp_path: Path) -> None:
    """What GitHub offers for path and architecture is fetched and is then in use under GitHub's name."""
    folder = tmp_path / "application"
    github = FakeGithub()

    assert update(github, folder, Arch.ARM64) is True

    found = application.current(folder)
    assert found == folder / github.filename
    assert found is not None
    assert found.read_bytes() == b"application"
    assert github.asked == [(PATH, Arch.ARM64)]


def test_same_application_is_not_fetched_again(tmp_path: Path) -> None:
    """What is in use already is not fetched again, and that is no change."""
    github = FakeGithub()
    update(github, tmp_path)

    assert update(github, tmp_path) is False
    assert github.downloads == 1


def test_new_application_takes_the_place(tmp_path: Path) -> None:
    """A new one takes the place of the old one, which goes with whatever interrupted downloads left behind."""
    update(FakeGithub(), tmp_path)
    (tmp_path / ".download-abc").write_bytes(b"left over")
    (tmp_path / ".current.new").symlink_to("nothing")

    assert update(FakeGithub("actions-runner-linux-x64-2.301.0.tar.gz", b"new"), tmp_path) is True

    assert names(tmp_path) == ["actions-runner-linux-x64-2.301.0.tar.gz", "current"]
    found = application.current(tmp_path)
    assert found is not None
    assert found.read_bytes() == b"new"


def test_old_application_is_in_use_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """While a new one is being fetched the old one can still be used."""
    update(FakeGithub(), tmp_path)
    seen: list[bytes] = []

    def look() -> None:
        found = application.current(tmp_path)
        seen.append(found.read_bytes() if found else b"")

    github = FakeGithub("new.tar.gz", b"new")
    github.while_downloading = look
    update(github, tmp_path)

    assert seen == [b"application"]


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
    found = application.current(tmp_path)
    assert found is not None
    assert found.read_bytes() == b"application"


def test_github_down_changes_nothing(tmp_path: Path) -> None:
    """Without GitHub's answer nothing is touched."""
    update(FakeGithub(), tmp_path)
    before = names(tmp_path)
    github = FakeGithub()
    github.offer_error = GithubApiError("down")

    with pytest.raises(GithubApiError):
        update(github, tmp_path)
    assert names(tmp_path) == before


def test_lost_application_is_fetched_again(tmp_path: Path) -> None:
    """A name that leads to nothing is no application: it is fetched again."""
    github = FakeGithub()
    update(github, tmp_path)
    (tmp_path / github.filename).unlink()

    assert application.current(tmp_path) is None
    assert update(github, tmp_path) is True
    assert application.current(tmp_path) is not None


def test_nothing_missing_nothing_installed() -> None:
    """Where every program is there apt is not asked, and nothing counts as installed."""
    assert packages.ensure({"sh": "dash", "ls": "coreutils"}) == []


class FakeLxd:
    """Knows the profile `runner` or nothing."""

    def __init__(self, config: dict[str, str] | None) -> None:
        self.config = config

    def find(self, *path: str) -> dict[str, Any] | None:
        assert path == ("profiles", "runner")
        return None if self.config is None else {"config": self.config}


def check_unchanged(config: dict[str, str] | None, base_image: BaseImage, where: RunnerStorage) -> None:
    storage.check_unchanged(cast(LxdClient, FakeLxd(config)), base_image, where)


DEPLOYED = {"user.github-runner.base-image": "jammy", "user.github-runner.runner-storage": "memory"}


@pytest.mark.parametrize(
    ("base_image", "where", "faults"),
    [
        (BaseImage.NOBLE, RunnerStorage.MEMORY, ["base-image: .* jammy"]),
        (BaseImage.JAMMY, RunnerStorage.JUJU_STORAGE, ["runner-storage: .* memory"]),
        (BaseImage.NOBLE, RunnerStorage.JUJU_STORAGE, ["base-image: .* jammy", "runner-storage: .* memory"]),
    ],
    ids=["image", "storage", "both"],
)
def test_what_cannot_change(base_image: BaseImage, where: RunnerStorage, faults: list[str]) -> None:
    """A changed base image or storage blocks, and each fault names the option and the old value."""
    with pytest.raises(ConfigurationError, match="; ".join(faults)) as caught:
        check_unchanged(DEPLOYED, base_image, where)
    assert len(caught.value.faults) == len(faults)


@pytest.mark.parametrize("config", [None, DEPLOYED, {}], ids=["not deployed", "set back", "profile without our keys"])
def test_what_did_not_change(config: dict[str, str] | None) -> None:
    """A first deployment and an option that was set back are no faults."""
    check_unchanged(config, BaseImage.JAMMY, RunnerStorage.MEMORY)


def test_application_can_be_read_by_charm_alone_or_all(tmp_path: Path) -> None:
    """Nobody but its owner can change the application that every runner gets."""
    folder = tmp_path / "application"
    github = FakeGithub()
    update(github, folder)

    for path in (folder, folder / github.filename):
        assert path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) == 0


GIB = 1 << 30


def test_space_is_enough_to_the_byte() -> None:
    """All disks at once must fit; a byte too little blocks, and names both sizes."""
    storage.check_space(20 * GIB, 20 * GIB, "the storage")

    with pytest.raises(ConfigurationError) as caught:
        storage.check_space(20 * GIB, 20 * GIB - 1, "the storage at /storage/juju")
    assert "20.00GiB (21474836480 bytes)" in str(caught.value)
    assert "/storage/juju has 20.00GiB (21474836479 bytes)" in str(caught.value)


def test_age_of_the_application_counts_from_githubs_word(tmp_path: Path) -> None:
    """Asked again and offered the same, it is as good as new; never offered again, it ages."""
    github = FakeGithub("actions-runner-linux-x64-2.320.0.tar.gz")
    assert application.age(0, tmp_path) is None
    application.update(cast(GithubClient, github), PATH, Arch.X64, tmp_path)
    using = application.current(tmp_path)
    assert using is not None
    os.utime(using, (1000, 1000))
    assert application.age(1000 + 15 * 86400, tmp_path) == 15 * 86400

    application.update(cast(GithubClient, github), PATH, Arch.X64, tmp_path)

    age = application.age(time.time(), tmp_path)
    assert age is not None
    assert age < 60


def test_refusal_is_of_one_application_and_one_day(tmp_path: Path) -> None:
    """A newer application is not refused for what its predecessor was, and after a day the same is tried again."""
    now = time.time()
    application.refuse(tmp_path)
    assert not application.is_refused(now, tmp_path)
    application.update(
        cast(GithubClient, FakeGithub("actions-runner-linux-x64-2.320.0.tar.gz")), PATH, Arch.X64, tmp_path
    )
    application.refuse(tmp_path)

    assert application.is_refused(now, tmp_path)
    assert not application.is_refused(now + 86401, tmp_path)
    application.update(
        cast(GithubClient, FakeGithub("actions-runner-linux-x64-2.321.0.tar.gz")), PATH, Arch.X64, tmp_path
    )
    assert not application.is_refused(now, tmp_path)


def build(**changes: Any) -> image.ImageBuild:
    values: dict[str, Any] = {
        "source": ImageSource("https://images.example"),
        "alias": "jammy",
        "container": True,
        "arch": Arch.ARM64,
        "proxies": ProxyConfig("http://user:word@proxy.example:3128", None, "10.0.0.0/8"),
    }
    return image.ImageBuild(**{**values, **changes})


def test_what_to_build_is_kept_for_the_timer(tmp_path: Path) -> None:
    """The build outside of hooks reads what the last hook wrote, which root alone can read."""
    wanted = build()

    assert wanted.save(tmp_path / "build.json")
    assert not wanted.save(tmp_path / "build.json")
    assert image.ImageBuild.load(tmp_path / "build.json") == wanted
    assert stat.S_IMODE((tmp_path / "build.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"source": "local:"}', "\xff"])
def test_damaged_settings_are_named(tmp_path: Path, text: str) -> None:
    """A file that was damaged is no traceback in the journal."""
    (tmp_path / "build.json").write_text(text)

    with pytest.raises(HostError, match=r"build\.json"):
        image.ImageBuild.load(tmp_path / "build.json")


def test_kernels_are_updated_daily(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what is installed is updated, once a day; a clock that was set back does not stop it for ever."""
    ran: list[list[str]] = []
    monkeypatch.setattr(kernel, "CHECKED", tmp_path / "checked")
    monkeypatch.setattr(kernel, "installed_kernels", lambda: ["linux-virtual"])
    monkeypatch.setattr(kernel, "run", lambda command, **_: ran.append(command))
    now = time.time()

    assert kernel.update(now) == ["linux-virtual"]
    assert kernel.update(now + 3600) == []
    assert kernel.update(now + 90000) == ["linux-virtual"]

    assert [command[-1] for command in ran] == ["update", "linux-virtual"] * 2
    assert kernel.update(now - 3600) == ["linux-virtual"]


def test_kernel_that_cannot_be_updated_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mirror that is down does not stop the runners of this pass."""

    def fail(command: list[str], **_: Any) -> None:
        raise CommandError("no mirror")

    monkeypatch.setattr(kernel, "CHECKED", tmp_path / "checked")
    monkeypatch.setattr(kernel, "installed_kernels", lambda: ["linux-virtual"])
    monkeypatch.setattr(kernel, "run", fail)

    assert kernel.update() == ["linux-virtual"]


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
