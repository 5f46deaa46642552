"""``make_venv.py FOLDER ARGUMENT…``: a virtual environment with what pip installs, also where Debian left venv out."""

import subprocess
import sys
from pathlib import Path


def main(folder: str, *arguments: str) -> int:
    """Make it; the exit code is that of the step that failed."""
    make = [sys.executable, "-m", "venv", folder]
    if subprocess.run(make, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
        # Debian and Ubuntu ship ensurepip as a package of its own.
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        for name in (f"python{version}-venv", "python3-venv"):
            subprocess.run(["apt-get", "update", "-qq"])
            if subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", name]).returncode == 0:
                break
        done = subprocess.run([*make, "--clear"])
        if done.returncode != 0:
            return done.returncode
    return subprocess.run([str(Path(folder, "bin", "pip")), "install", "--quiet", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
