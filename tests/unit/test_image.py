"""What an image build leaves behind when it ends at any of its steps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

import provision
from engine.client import LxdClient
from engine.instance import Execution
from errors import HostError, LxdError
from host import image, image_builds
from host.markers import Markers
from models import Arch, ImageSource, PublishedImage
from proxies import ProxyConfig
from settings import ImageBuild
from system import exclusive
from tests.support.fakes import TEMPLATES
from tests.support.systemctl import Systemctl

JINJA = provision.environment(TEMPLATES)
BUILD = ImageBuild(ImageSource("https://images.example"), "jammy", True, Arch.X64, ProxyConfig())
SCRIPT = "#!/bin/sh\necho $PASSWORD\n"
# With every step that an option asks for.
FULL = replace(BUILD, extra_packages=("cmake", "g++"), script=SCRIPT)
STEPS = [*image.STEPS, "create", "publish", "alias"]


class Builder:
    """The instance that is being made an image; a step may fail."""

    def __init__(self, lxd: "ImageLxd") -> None:
        self.lxd, self.running = lxd, False
        self.name, self.virtual_machine = image.BUILDER, True
        self.ready = False

    def start(self) -> None:
        self.running = True

    def wait_ready(self) -> None:
        self.ready = True

    def stop(self, timeout: int = 60, force: bool = False) -> None:
        self.running = False

    def delete(self) -> None:
        self.lxd.builder = None

    def push(self, path: str, content: "bytes | BinaryIO", *, mode: int = 0o644, user: int = 0) -> None:
        self.lxd.modes[path] = mode
        self.lxd.pushed[path] = content if isinstance(content, bytes) else content.read()

    def execute(self, command: list[str], *, timeout: float, **_: Any) -> Execution:
        assert self.ready, "a virtual machine's agent does not run yet"
        self.lxd.limits[command[-1]] = timeout
        self.lxd.steps.append(command[-1])
        if self.lxd.fails == command[-1]:
            return Execution(1, "", f"{command[-1]} broke at http://user:word@proxy.example:3128")
        return Execution(0)


class ImageLxd:
    """LXD with images, aliases and at most one instance."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.steps: list[str] = []
        self.pushed: dict[str, bytes] = {}
        self.modes: dict[str, int] = {}
        # Of the commands that the builder runs, in seconds, by the last argument.
        self.limits: dict[str, float] = {}
        self.images = {"old": {"github-runner.alias": "jammy"}, "theirs": {}}
        self.aliases = {"jammy": "old", "their-image": "theirs"}
        self.builder: Builder | None = None
        self.created: dict[str, Any] = {}
        self.type = "container"
        # Of the source image's disk, in bytes; LXD refuses a smaller one.
        self.source_size = 3 << 30
        self.templates: dict[str, Any] = {"/var/lib/cloud/seed/nocloud-net/meta-data": {"template": "seed.tpl"}}
        self.template_files: dict[str, bytes] = {}

    def create_instance(self, name: str, **options: Any) -> Builder:
        self.created = options
        size = int(options["devices"]["root"].get("size", 10 << 30))
        if options["virtual_machine"] and size < self.source_size:
            raise LxdError(f"Source image size ({self.source_size}) exceeds specified volume size ({size})")
        self.builder = Builder(self)
        self._fail("create")
        return self.builder

    def instance(self, name: str) -> Builder:
        assert self.builder is not None
        return self.builder

    def find(self, *path: str) -> Any:
        if path[0] == "instances":
            return {} if self.builder else None
        if path[:2] == ("images", "aliases"):
            target = self.aliases.get(path[2])
            return target and {"target": target}
        return next((found for found in self.get("images") if found["fingerprint"] == path[1]), None)

    def request(self, method: str, *path: str, params: dict[str, str], data: bytes) -> None:
        assert (method, path) == ("POST", ("instances", image.BUILDER, "metadata", "templates"))
        self.template_files[params["path"]] = data

    def get(self, *path: str, **__: Any) -> Any:
        if path[0] == "instances":
            return {"architecture": "x86_64", "templates": self.templates}
        return [
            {
                "fingerprint": fingerprint,
                "properties": properties,
                "type": self.type,
                "uploaded_at": "2026-01-02T03:04:05.678901234Z",
                "aliases": [{"name": name} for name, target in self.aliases.items() if target == fingerprint],
            }
            for fingerprint, properties in self.images.items()
        ]

    def change(self, method: str, *path: str, json: Any = None, timeout: float = 0) -> Any:
        if method == "DELETE":
            del self.images[path[1]]
        elif path == ("instances", image.BUILDER, "metadata"):
            assert self.builder is not None
            assert not self.builder.running
            self.templates = json["templates"]
        elif path == ("images",):
            self.images["new"] = json["properties"]
            self._fail("publish")
            return {"fingerprint": "new"}
        else:
            self._fail("alias")
            self.aliases[path[2] if method == "PUT" else json["name"]] = json["target"]
        return None

    def _fail(self, step: str) -> None:
        if self.fails == step:
            raise LxdError(f"{step} is not possible")


def make(lxd: ImageLxd, build: ImageBuild = BUILD, progress: Callable[[str], None] = print, app: str = "") -> str:
    return image.make(cast(LxdClient, lxd), JINJA, app, build, progress)


def test_build_moves_the_alias_and_deletes_the_old() -> None:
    """Every step in its order, then the alias is the new image's and the old one is gone; others' images stay."""
    lxd = ImageLxd()
    told: list[str] = []

    assert make(lxd, FULL, told.append) == "new"

    assert lxd.steps == list(image.STEPS)
    assert [step for step in told if step in image.STEPS] == list(image.STEPS)
    assert lxd.aliases == {"jammy": "new", "their-image": "theirs"}
    assert set(lxd.images) == {"new", "theirs"}
    assert lxd.builder is None


@pytest.mark.parametrize("step", STEPS)
def test_build_that_dies_keeps_the_old_image(step: str) -> None:
    """Whichever step fails is named; the old image stays in use, no builder and no half image is left."""
    lxd = ImageLxd(fails=step)

    with pytest.raises(HostError) as failed:
        make(lxd, FULL)

    assert step in str(failed.value)
    assert "word" not in str(failed.value)
    assert lxd.aliases["jammy"] == "old"
    assert set(lxd.images) == {"old", "theirs"}
    assert lxd.builder is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            ImageSource("https://images.example"),
            {
                "type": "image",
                "alias": "jammy",
                "mode": "pull",
                "protocol": "simplestreams",
                "server": "https://images.example",
            },
        ),
        (ImageSource(alias="base"), {"type": "image", "alias": "base"}),
    ],
)
def test_source_of_the_builder(source: ImageSource, expected: dict[str, str]) -> None:
    """A server is asked for the release by its name, a local image is taken by its alias."""
    lxd = ImageLxd()

    make(lxd, ImageBuild(source, "jammy", False, Arch.X64, ProxyConfig()))

    assert lxd.created["source"] == expected
    assert lxd.created["virtual_machine"] is True
    assert lxd.created["ephemeral"] is False


MACHINE = replace(BUILD, container=False)


@pytest.mark.parametrize(("source_size", "disk"), [(3 << 30, image.DISK), (10 << 30, 10 << 30)])
def test_disk_of_a_virtual_machines_image(source_size: int, disk: int) -> None:
    """The builder has a small disk, or one of the source image's size; the image says how small a disk can be."""
    lxd = ImageLxd()
    lxd.source_size = source_size
    assert image.smallest_disk(cast(LxdClient, lxd), "jammy", MACHINE.source) == image.DISK

    make(lxd, MACHINE)

    assert lxd.created["devices"]["root"]["size"] == str(disk)
    assert image.smallest_disk(cast(LxdClient, lxd), "jammy", MACHINE.source) == disk
    assert image.smallest_disk(cast(LxdClient, lxd), "jammy", ImageSource(alias="other")) == image.DISK


def test_virtual_machines_get_their_name_and_no_seed() -> None:
    """The published image has LXD write the host name only: a seed for cloud-init would cost each runner a reboot."""
    lxd = ImageLxd()

    make(lxd, MACHINE)

    assert lxd.templates == {"/etc/hostname": {"when": ["create", "copy"], "template": "hostname.tpl"}}
    assert lxd.template_files == {"hostname.tpl": b"{{ instance.name }}\n"}


def test_image_of_containers_keeps_its_templates() -> None:
    """LXD itself gives a container its name, and its root filesystem has no size of its own."""
    lxd = ImageLxd()

    make(lxd)

    assert list(lxd.templates) == ["/var/lib/cloud/seed/nocloud-net/meta-data"]
    assert "size" not in lxd.created["devices"]["root"]
    assert image.DISK_PROPERTY not in lxd.images["new"]
    assert "grow_root" not in lxd.pushed[str(provision.IMAGE_SCRIPT)].decode()


def test_image_of_the_other_type_is_built_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After `test-mode` changed the alias names an image that no runner can be made of."""
    monkeypatch.setattr(image, "LOCK", tmp_path / "lock")
    lxd = ImageLxd()
    machine = ImageBuild(BUILD.source, "jammy", False, Arch.X64, ProxyConfig())

    assert not image.ensure(cast(LxdClient, lxd), JINJA, "app", BUILD, print)
    assert image.ensure(cast(LxdClient, lxd), JINJA, "app", machine, print)


def test_only_one_build_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The timer's build gives way to one that is under way."""
    monkeypatch.setattr(image, "LOCK", tmp_path / "lock")
    inner: list[bool] = []
    lxd = ImageLxd()

    def progress(step: str) -> None:
        if step == "upgrade":
            inner.append(image.rebuild(cast(LxdClient, ImageLxd()), JINJA, "app", BUILD, print))

    assert image.rebuild(cast(LxdClient, lxd), JINJA, "app", BUILD, progress)
    assert inner == [False]


def test_a_hook_does_not_wait_for_another_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While a build goes on outside of hooks a hook ends and says so: Juju has other things to do."""
    monkeypatch.setattr(image, "LOCK", tmp_path / "lock")
    lxd = ImageLxd()
    lxd.aliases.clear()

    with exclusive(tmp_path / "lock", 0), pytest.raises(HostError, match="image jammy: being built"):
        image.ensure(cast(LxdClient, lxd), JINJA, "app", BUILD, print)


def test_a_missing_image_is_built_outside_of_the_reconcile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A build is started and not waited for, and why the last one failed stays known meanwhile."""
    systemctl = Systemctl(monkeypatch)
    monkeypatch.setattr(image, "FAILURE", tmp_path / "failure")
    lxd = ImageLxd()
    lxd.aliases.clear()

    with pytest.raises(HostError, match="image jammy: being built"):
        image_builds.ensure(cast(LxdClient, lxd), Markers("runner/0"), BUILD)
    image.FAILURE.write_text("image jammy: network failed: no IPv4 route\n")
    with pytest.raises(HostError, match="network failed: no IPv4 route; being built again"):
        image_builds.ensure(cast(LxdClient, lxd), Markers("runner/0"), BUILD)
    lxd.aliases["jammy"] = "theirs"
    image_builds.ensure(cast(LxdClient, lxd), Markers("runner/0"), BUILD)

    assert systemctl.calls == ["start --no-block ghro.build-image.runner-0.service"] * 2


def test_the_reason_of_a_failed_build_is_kept_until_one_succeeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a build outside of hooks met is shown by the next reconcile."""
    monkeypatch.setattr(image, "FAILURE", tmp_path / "failure")

    with pytest.raises(HostError):
        make(ImageLxd("packages"))
    assert "packages failed" in image.FAILURE.read_text()
    make(ImageLxd())
    assert not image.FAILURE.exists()


@pytest.mark.parametrize("downloaded", [True, False])
def test_runner_binary_goes_into_the_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, downloaded: bool) -> None:
    """The image says which one it holds, so that a newer one is sent to runners until the next build."""
    tarball = tmp_path / "actions-runner-linux-x64-2.320.0.tar.gz"
    tarball.write_bytes(b"tarball")
    monkeypatch.setattr("host.image.runner_binary.current", lambda: tarball if downloaded else None)
    lxd = ImageLxd()

    make(lxd)

    assert (lxd.pushed.get(str(provision.BINARY_ARCHIVE)) == b"tarball") is downloaded
    assert image.published(cast(LxdClient, lxd), "jammy").binary == (tarball.name if downloaded else "")
    assert image.published(cast(LxdClient, lxd), "no-such-image") == PublishedImage()


def test_an_image_of_the_operator_keeps_an_alias(caplog: pytest.LogCaptureFixture) -> None:
    """The charm's alias on another image: it serves, with a line in the log, and a build gives it another alias."""
    lxd = ImageLxd()
    lxd.aliases = {"jammy": "theirs"}

    image_builds.ensure(cast(LxdClient, lxd), Markers("app/0"), BUILD)
    assert "Image jammy was not built by this charm: theirs." in caplog.text
    make(lxd)
    make(lxd)

    assert lxd.aliases == {"jammy": "new", "jammy-theirs": "theirs"}
    assert set(lxd.images) == {"old", "theirs", "new"} - {"old"}


def test_what_a_published_image_records() -> None:
    """LXD's time of publication counts, and only for images that this charm built."""
    lxd = cast(LxdClient, ImageLxd())

    assert image.published(lxd, "jammy").built_at == 1767323045
    assert image.published(lxd, "jammy").owner == ""
    assert image.published(lxd, "their-image") == PublishedImage()
    assert image.published(lxd, "nobodys") == PublishedImage()


class BuildEndsLxd(ImageLxd):
    """A build ends between two requests: alias and image are others for the second one."""

    def find(self, *path: str) -> Any:
        found = super().find(*path)
        if path == ("images", "aliases", "jammy") and "old" in self.images:
            self.images = {"new": {"github-runner.alias": "jammy", "github-runner.source": "https://images.example"}}
            self.aliases = {"jammy": "new"}
        return found


def test_a_build_that_ends_at_the_same_moment_is_not_a_missing_image() -> None:
    """Otherwise all idle runners would be replaced for an image that is there."""
    assert image.published(cast(LxdClient, BuildEndsLxd()), "jammy").identity == "https://images.example"


def test_archives_of_actions_are_the_last_that_goes_into_the_image(caplog: pytest.LogCaptureFixture) -> None:
    """They need the whole disk, which an earlier step makes; where no GitHub answers, the image is built without."""
    lxd = ImageLxd()
    told: list[str] = []

    make(lxd, replace(BUILD, github_url="http://127.0.0.1:9", cached_actions=("actions/none@v1",)), told.append)

    assert told.index("clean") < told.index("archives of actions") < told.index("publishing")
    assert "the archive of actions/none@v1 is left out: 127.0.0.1: 127.0.0.1:9 refuses" in caplog.text
    assert lxd.aliases["jammy"] == "new"


def test_archives_of_actions_come_from_the_units_github(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their download trusts the authorities of the option, as an Enterprise Server may need."""
    found: list[object] = []
    monkeypatch.setattr(image, "ActionArchives", lambda *arguments: found.append(arguments))
    monkeypatch.setattr("host.action_archives.add", lambda *_: None)
    url = "https://github.example.com"

    make(ImageLxd(), replace(BUILD, github_url=url, cached_actions=("a/b@v1",), ca_certificates=("one",)))

    assert found == [(url, ("one",))]


def test_certificates_go_into_the_builder() -> None:
    """The builder trusts the option's authorities; the image keeps none of them."""
    lxd = ImageLxd()

    make(lxd, replace(BUILD, ca_certificates=("one\n",)))

    assert lxd.pushed[str(provision.CA_FOLDER / "github-runner.crt")] == b"one\n"
    script = lxd.pushed[str(provision.IMAGE_SCRIPT)].decode()
    assert script.index("update-ca-certificates") < script.index("apt_get update")
    assert f"rm -f {provision.CA_FOLDER}/github-runner*" in script[script.index("clean()") :]
