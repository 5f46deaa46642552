"""Prometheus and promtool of the distribution: those on PATH, else unpacked from its package, which is not installed.

An installed package would run a server of its own on this machine.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "github-runner-prometheus"


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`."""
    found = shutil.which(name) or shutil.which(name, path=str(CACHE / "usr/bin"))
    if found:
        return found
    _unpack()
    return str(CACHE / "usr/bin" / name)


def _unpack() -> None:
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as folder:
        place = Path(folder)
        # Lists of its own: those of the machine may be locked by another test, and need root.
        apt = ["apt-get", "-qq", "-o", f"Dir::State::Lists={place}/lists", "-o", f"Dir::Cache={place}/cache"]
        for partial in ("lists/partial", "cache/archives/partial"):
            (place / partial).mkdir(parents=True)
        # Apt's own user cannot enter everybody's home.
        apt += ["-o", "APT::Sandbox::User=root"]
        _run(*apt, "update")
        _run(*apt, "download", "prometheus", cwd=place)
        [package] = place.glob("prometheus_*.deb")
        _run("dpkg-deb", "-x", str(package), str(place / "files"))
        if not CACHE.exists():
            (place / "files").rename(CACHE)


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
