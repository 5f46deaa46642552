"""Check the types of all Python code: the charm, its tests, the tools, the sandbox and the programs that it copies.

mypy takes one folder of programs that import what lies beside them at a time. Arguments are handed on to it.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests",)
SANDBOX = ("sandbox/github", "sandbox/lab", "sandbox/juju/unit.py")
# Python 3.11 or newer runs the tools, and that of Debian 12 what is copied into machines.
PROGRAMS = {
    "tools": "3.11",
    "sandbox/juju": "3.11",
    "sandbox/vm/programs": "3.11",
    "sandbox/runner_application/bin": "3.10",
}
# Imported by the sandbox itself, by its full name.
OUTSIDE = {"unit.py", "__init__.py"}


def runs() -> list[tuple[str, str, list[str]]]:
    """For each run of mypy: the Python version, the folder that programs import from, and what is checked."""
    charm: list[tuple[str, str, list[str]]] = [(version, "", []) for version in ("3.10", "3.12", "3.13")]
    modules = (str(path) for folder in ("sandbox", "sandbox/vm") for path in (ROOT / folder).glob("*.py"))
    sandbox = [*SANDBOX, *sorted(modules)]
    programs = [
        (version, folder, sorted(str(path) for path in (ROOT / folder).glob("*.py") if path.name not in OUTSIDE))
        for folder, version in PROGRAMS.items()
    ]
    return [*charm, ("3.10", "", [*TESTS, *sandbox]), *programs]


def main(arguments: list[str]) -> int:
    """Run all of them, also after one that fails; gives the exit code."""
    codes = []
    for version, folder, paths in runs():
        environment = {**os.environ, "MYPYPATH": str(ROOT / folder) if folder else ""}
        command = [sys.executable, "-m", "mypy", f"--python-version={version}", *arguments, *paths]
        codes.append(subprocess.run(command, cwd=ROOT, env=environment).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
