"""Ask PyPI's advisories about what the charm ships, as the lock pins it, with pip-audit.

Fails on a known vulnerability, and where it could not ask: without the network, or behind a mirror that has no
advisories. With AUDIT_MAY_BE_INCOMPLETE=1 in the environment it only says what it could not ask about.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.markers import Marker  # comes with pip-audit

# Of Ubuntu 22.04, Debian 12, Ubuntu 24.04, and a newer one: the lock has other versions of some packages for each.
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
EXPORT = ("uv", "export", "--locked", "--quiet", "--no-dev", "--no-emit-project", "--output-file")
AUDIT = ("pip-audit", "--require-hashes", "--disable-pip", "--progress-spinner=off", "--format=json")


def main() -> int:
    """0 where nothing bad is known, of all packages, for each Python."""
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, "requirements.txt")
        subprocess.run([*EXPORT, str(exported)], check=True)
        sets = requirements(exported.read_text())
        return max(_audit(names, lines, Path(folder)) for lines, names in sets.items())


def requirements(exported: str) -> dict[tuple[str, ...], list[str]]:
    """What each Python gets, and which Pythons get the same. pip-audit itself looks at the one that it runs on."""
    found: dict[tuple[str, ...], list[str]] = {}
    lines = [line.strip() for line in exported.replace("\\\n", " ").splitlines()]
    for python in PYTHONS:
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        wanted = []
        for line in lines:
            if line and not line.startswith("#"):
                pin, _, hashes = line.partition(" --hash=")
                name, _, marker = pin.partition(" ; ")
                if not marker or Marker(marker).evaluate(environment):
                    wanted.append(f"{name.strip()} --hash={hashes}")
        found.setdefault(tuple(wanted), []).append(python)
    return found


def _audit(pythons: list[str], lines: tuple[str, ...], folder: Path) -> int:
    """Ask about what some Pythons get; the exit code."""
    listed, report = folder / f"{pythons[0]}.txt", folder / f"{pythons[0]}.json"
    listed.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [*AUDIT, "--requirement", str(listed), "--output", str(report)], capture_output=True, text=True
    )
    if not report.exists():
        return _incomplete(f"pip-audit could not ask: {done.stderr.strip()[-500:]}")
    packages = json.loads(report.read_text())["dependencies"]
    bad = {item["name"]: [found["id"] for found in item["vulns"]] for item in packages if item.get("vulns")}
    unknown = sum("skip_reason" in item for item in packages)
    print(
        f"pip-audit, Python {', '.join(pythons)}: {len(packages)} packages, {len(bad)} with known vulnerabilities, "
        f"{unknown} unknown to the service"
    )
    for name, ids in bad.items():
        print(f"{name}: {', '.join(ids)}")
    if bad:
        return 1
    return _incomplete(f"{unknown} packages were not audited") if unknown else 0


def _incomplete(what: str) -> int:
    """Say what could not be asked about; the exit code."""
    allowed = os.environ.get("AUDIT_MAY_BE_INCOMPLETE") == "1"
    print(f"{what}: {'allowed' if allowed else 'set AUDIT_MAY_BE_INCOMPLETE=1 to go on without'}")
    return 0 if allowed else 1


if __name__ == "__main__":
    sys.exit(main())
