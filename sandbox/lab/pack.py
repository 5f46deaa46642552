"""Pack the charm as charmcraft does: a folder with the sources, their dependencies and a dispatch script."""

import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from sandbox.lab.lxd_setup import state_dir
from sandbox.lab.machine import COVERAGE_FOLDER
from sandbox.shell import SandboxError, apt_install, run, step, succeeds

# The Python of the machine's Debian release, whatever this program itself runs on.
PYTHON = "3.11"
SITE_PACKAGES = Path("venv", "lib", f"python{PYTHON}", "site-packages")
# charmcraft packs no interpreter: dispatch links the machine's, which finds its packages by this file.
VENV_CONFIG = f"home = /usr/bin\nimplementation = CPython\nversion_info = {PYTHON}\n"
VENV_CONFIG += "include-system-site-packages = false\n"
# To the same effect as what charmcraft 4 writes: the same interpreter, variables and command line.
DISPATCH = """#!/bin/sh
charm="$(dirname "$(realpath "$0")")"
python="$charm/venv/bin/python"
if [ ! -e "$python" ]; then
    mkdir -p "$charm/venv/bin"
    ln -s "$(which python3)" "$python"
fi
export PYTHONPATH="$charm/lib:$charm/src"
export LD_LIBRARY_PATH="$charm/usr/lib:$charm/lib:$charm/usr/lib/$(uname -m)-linux-gnu"
exec "$python" "$charm/src/charm.py"
"""
COVERAGE_START = f"""import os

os.makedirs("{COVERAGE_FOLDER}", exist_ok=True)
charm = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ["COVERAGE_PROCESS_START"] = os.path.join(charm, "coverage.ini")
os.environ["COVERAGE_CHARM_SOURCE"] = os.path.join(charm, "src")

import coverage

coverage.process_startup()
"""
COVERAGE_CONFIG = f"""[run]
branch = true
parallel = true
sigterm = true
source = ${{COVERAGE_CHARM_SOURCE}}
data_file = {COVERAGE_FOLDER}/.coverage
"""


def pack(source: Path, destination: Path, coverage: bool = False) -> Path:
    """Lay the charm out in a folder of its own, ready to be deployed; with coverage, every process of it measures."""
    destination.mkdir(parents=True, exist_ok=True)
    for folder in ("src", "templates", "lib"):
        if (source / folder).is_dir():
            leave_out = shutil.ignore_patterns("__pycache__", "*.pyc", ".mypy_cache", ".ruff_cache")
            shutil.copytree(source / folder, destination / folder, ignore=leave_out, dirs_exist_ok=True)
    if not (destination / "src" / "charm.py").is_file():
        raise SandboxError(f"{source} holds no charm: there is no src/charm.py in it")
    for name in ("metadata.yaml", "config.yaml", "actions.yaml", "charmcraft.yaml", "LICENSE", "README.md"):
        if (source / name).is_file():
            shutil.copy2(source / name, destination / name)
    dispatch = destination / "dispatch"
    dispatch.write_text(DISPATCH)
    dispatch.chmod(0o755)
    requirements = dependencies(source)
    cached = _dependencies_folder([*requirements, "coverage"] if coverage else requirements, constraints(source))
    run("cp", "-a", "--reflink=auto", f"{cached}/.", str(destination / "venv"))
    if coverage:
        # Python's own site-packages come after Debian's sitecustomize, PYTHONPATH before it.
        (destination / "lib").mkdir(exist_ok=True)
        (destination / "lib" / "sitecustomize.py").write_text(COVERAGE_START)
        (destination / "coverage.ini").write_text(COVERAGE_CONFIG)
    return destination


def dependencies(source: Path) -> list[str]:
    """What the charm needs: `[project] dependencies` of pyproject.toml, else the lines of requirements.txt."""
    project = source / "pyproject.toml"
    if project.is_file():
        # Python 3.10 reads no TOML, and one list of strings needs no library.
        found = re.search(r"""^dependencies\s*=\s*\[((?:\s|,|"[^"]*"|'[^']*'|#[^\n]*)*)\]""", project.read_text(), re.M)
        if found is None:
            raise SandboxError(f"{project} has no list of dependencies")
        without_comments = re.sub(r"#[^\n]*", "", found.group(1))
        return [one or other for one, other in re.findall(r""""([^"]+)"|'([^']+)'""", without_comments)]
    lines = (source / "requirements.txt").read_text().splitlines() if (source / "requirements.txt").is_file() else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def constraints(source: Path) -> list[str]:
    """The exact versions of a lock file, where the project has one."""
    if (source / "requirements.lock").is_file():
        lines = (source / "requirements.lock").read_text().splitlines()
        return [line.split(";")[0].rstrip(" \\") for line in lines if re.match(r"^[A-Za-z0-9]", line)]
    if (source / "uv.lock").is_file():
        entry = r'^name = "([^"]+)"\nversion = "([^"]+)"\nsource = \{ registry'
        # Where versions differ by Python, the last is the newest Python's, and the machine's is not the oldest.
        exact = dict(re.findall(entry, (source / "uv.lock").read_text(), re.M))
        return [f"{name}=={version}" for name, version in exact.items()]
    return []


def _dependencies_folder(requirements: list[str], exact: list[str]) -> Path:
    """The environment with these packages for the machine's Python, made once."""
    name = hashlib.sha256("\n".join([VENV_CONFIG, *sorted(requirements), "", *exact]).encode()).hexdigest()[:16]
    folder = state_dir() / "dependencies" / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder.parent))
    try:
        with step("Fetching the charm's dependencies"):
            _install(requirements, exact, fresh / SITE_PACKAGES.relative_to("venv"))
            (fresh / "pyvenv.cfg").write_text(VENV_CONFIG)
            _compile(fresh)
        fresh.chmod(0o755)
        # Somebody else may have been faster with the same packages; theirs are as good.
        if not folder.is_dir():
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _install(requirements: list[str], exact: list[str], target: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    if not succeeds(*pip, "--version"):
        apt_install({"pip3": "python3-pip"})
        pip = ["pip3"]
    target.mkdir(parents=True)
    versions = target.with_suffix(".constraints")
    versions.write_text("\n".join(exact))
    wanted = ("--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:", "--no-compile")
    quiet = ("--quiet", "--disable-pip-version-check", "--constraint", str(versions), "--target", str(target))
    try:
        run(*pip, "install", *quiet, *wanted, *requirements, timeout=600)
    finally:
        versions.unlink()


def _compile(folder: Path) -> None:
    """Byte code for the machine's Python, if this one is the same; else the agent does it in the machine."""
    if sys.version_info[:2] != tuple(int(part) for part in PYTHON.split(".")):
        return
    # The paths in it are relative, as the folder's place in the machine is another one.
    mode = ("--invalidation-mode", "unchecked-hash", "-q", "-j", str(os.cpu_count() or 1), "-s", str(folder))
    beside_the_sources = ("env", "-u", "PYTHONPYCACHEPREFIX", sys.executable, "-m", "compileall")
    run(*beside_the_sources, *mode, str(folder), check=False)
    (folder / ".compiled").touch()
