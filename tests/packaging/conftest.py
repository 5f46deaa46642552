"""The charm packed by charmcraft itself, on this machine and for this machine's distribution."""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from sandbox.shell import apt_install, run

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = {("debian", "12"), ("ubuntu", "22.04"), ("ubuntu", "24.04")}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SYSTEM_PYTHON = "/usr/bin/python3"
SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")
# Those of the tests' own environment, which are not the build's.
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")


@dataclass(frozen=True)
class Packed:
    """A charm, the tree that it was packed from, and the environment for more of charmcraft and uv."""

    tree: Path
    charm: Path
    environment: dict[str, str]

    def names(self) -> list[str]:
        """The files of the archive."""
        with ZipFile(self.charm) as archive:
            return sorted(item.filename for item in archive.infolist() if not item.is_dir())

    def run(self, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run charmcraft, uv … in the tree."""
        return subprocess.run(
            (program, *arguments),
            cwd=self.tree,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=500,
        )


@pytest.fixture(scope="session")
def distribution() -> str:
    """This machine as charmcraft names a base; a skip where a charm cannot be packed."""
    release = platform.freedesktop_os_release()
    base = (release["ID"], release.get("VERSION_ID", ""))
    if base not in DISTRIBUTIONS:
        pytest.skip(f"charmcraft packs without a container only on Debian 12 and Ubuntu 22.04/24.04, not on {base}")
    if os.geteuid() != 0:
        pytest.skip("charmcraft installs the charm's build packages: run as root")
    # python-apt is built for it, and `charmcraft analyse` mixes the charm's venv with charmcraft's own interpreter.
    system = run(SYSTEM_PYTHON, "-c", "import sys; print(sys.base_prefix, sys.version)").strip()
    assert f"{sys.base_prefix} {sys.version}" == system, f"these tests want to be run by {SYSTEM_PYTHON}"
    return "@".join(base)


@pytest.fixture(scope="session")
def packed(distribution: str, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """What `charmcraft pack` makes of the tree as it is now, tracked files and new ones that are not ignored."""
    folder = tmp_path_factory.mktemp("packing")
    tree = folder / "tree"
    copy_tree(tree)
    project = tree / "charmcraft.yaml"
    arch = run("dpkg", "--print-architecture").strip()
    project.write_text(variant(project.read_text(), f"{distribution}:{arch}"))
    environment = build_environment(folder)
    made = Packed(tree, tree / f"github-runner_{distribution}-{arch}.charm", environment)
    done = made.run("charmcraft", "pack", "--destructive-mode", "--verbose")
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return made


def copy_tree(target: Path) -> None:
    """Copy what a clone of the tree would hold, links as links."""
    names = run("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in names:
        source = ROOT / name
        # A tracked file may have been deleted.
        if name and (source.is_symlink() or source.is_file()):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def variant(text: str, target: str) -> str:
    """charmcraft.yaml for one platform, with uv from PyPI in place of the snap; all else is as it was."""
    project = yaml.safe_load(text)
    project["platforms"] = {target: None}
    for part in project["parts"].values():
        part.pop("build-snaps", None)
    return yaml.safe_dump(project, sort_keys=False)


def build_environment(folder: Path) -> dict[str, str]:
    """Where charmcraft finds itself, uv and python-apt, while the charm is built with the distribution's Python."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("charmcraft", "uv"):
        found = Path(sys.executable).parent / name
        assert found.exists(), f"{name} is not in the tests' environment"
        (programs / name).symlink_to(found)
    # charmcraft leaves logs and temporary folders in the home folder, which pip and uv have their settings in.
    folders = {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("CACHE", "DATA", "STATE")}
    settings = os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config"))
    for name in ("home", "runtime", "tmp"):
        (folder / name).mkdir(mode=0o700)
    return {
        **{name: value for name, value in os.environ.items() if name not in NOT_INHERITED},
        **folders,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CONFIG_HOME": settings,
        "XDG_RUNTIME_DIR": str(folder / "runtime"),
        "UV_CACHE_DIR": str(folder / "cache/uv"),
        "UV_PYTHON_DOWNLOADS": "never",
        "PATH": f"{programs}:{SYSTEM_PATH}",
        "PYTHONPATH": str(python_apt(folder / "python-apt")),
    }


def python_apt(folder: Path) -> Path:
    """A folder with the distribution's python-apt, which PyPI does not have and charmcraft cannot do without."""
    if not (SYSTEM_PACKAGES / "apt").is_dir():
        apt_install({"python3-apt": "python3-apt"})
    folder.mkdir()
    for found in (*SYSTEM_PACKAGES.glob("apt"), *SYSTEM_PACKAGES.glob("apt_*.so")):
        (folder / found.name).symlink_to(found)
    return folder
