"""LXD built from the distribution's source package, with a patch that keeps it away from the machine's AF_VSOCK.

It is built in a chroot, so that none of its almost 300 build dependencies is installed on this machine.
"""

import shutil
import tempfile
from pathlib import Path

from sandbox.lab import debian
from sandbox.lab.lxd_setup import recipe_of
from sandbox.shell import SandboxError, run, step

PATCH = Path(__file__).with_name("lxd")
VERSION = "5.0.2"
PACKAGE = "github.com/lxc/lxd"
# Debian builds it with these, from Go packages of the distribution.
ENVIRONMENT = (
    *("GO111MODULE=off", "GOPATH=/go:/usr/share/gocode", "GOFLAGS=-trimpath", "GOCACHE=/go/cache", "HOME=/root"),
    "CGO_LDFLAGS_ALLOW=-Wl,-z,now",
)
BUILD_TIMEOUT = 1500


def recipe() -> str:
    """A short hash of everything that goes into the binary but the packages of the distribution."""
    patch = [file.read_text() for file in sorted(PATCH.iterdir())]
    return recipe_of(debian.SUITE, debian.MIRROR, VERSION, *ENVIRONMENT, *patch, _prepare, _build)


def ensure(cache: Path) -> Path:
    """The binary of the patched LXD: from the cache, else built."""
    binary = cache / f"lxd-{recipe()}"
    if not binary.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Not in /tmp, which may be a tmpfs: it takes 3 GB.
        with tempfile.TemporaryDirectory(prefix="lxd-build-", dir=cache) as folder:
            root = Path(folder, "root")
            with step("Installing what LXD is built with, in a folder of its own (3 GB for some minutes)"):
                _prepare(root)
            with step(f"Building LXD {VERSION} with the sandbox's patch"):
                _build(root).replace(binary)
    return binary


def _prepare(root: Path) -> None:
    debian.bootstrap(root, ("ca-certificates", "dpkg-dev"))
    sources = f"deb {debian.MIRROR} {debian.SUITE} main\ndeb-src {debian.MIRROR} {debian.SUITE} main\n"
    (root / "etc/apt/sources.list").write_text(sources)
    (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
    debian.copy_apt_settings(root)
    with debian.ready(root):
        debian.apt(root, "update")
        debian.apt(root, "build-dep", "lxd")
        debian.apt(root, "source", "--download-only", "lxd")


def _build(root: Path) -> Path:
    place = root / "go/src" / PACKAGE
    place.parent.mkdir(parents=True)
    run("chroot", str(root), "sh", "-c", f"dpkg-source --no-check --extract /lxd_*.dsc /go/src/{PACKAGE}")
    if f'Version = "{VERSION}"' not in (place / "shared/version/flex.go").read_text():
        raise SandboxError(f"{debian.MIRROR} no longer has LXD {VERSION}: adapt sandbox/vm/lxd to the new version")
    patch = (PATCH / "vsock.patch").read_text()
    run("chroot", str(root), "patch", "--strip=1", f"--directory=/go/src/{PACKAGE}", input=patch)
    shutil.copy(PATCH / "unix.go", place / "lxd/vsock/unix.go")
    command = ("go", "build", "-ldflags", "-s -w", "-o", "/lxd", f"{PACKAGE}/lxd")
    run("chroot", str(root), "env", *ENVIRONMENT, *command, timeout=BUILD_TIMEOUT)
    return root / "lxd"
