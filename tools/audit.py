"""Ask PyPI's advisories about what the charm ships, as the lock pins it, with pip-audit.

Fails on a known vulnerability. What could not be asked about, without the network or behind a mirror that has no
advisories, is said and does not fail: no landing should depend on that.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

EXPORT = ("uv", "export", "--locked", "--quiet", "--no-dev", "--no-emit-project", "--output-file")
AUDIT = ("pip-audit", "--require-hashes", "--disable-pip", "--progress-spinner=off", "--format=json")


def main() -> int:
    """0 where nothing bad is known."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, report = Path(folder, "requirements.txt"), Path(folder, "report.json")
        subprocess.run([*EXPORT, str(requirements)], check=True)
        done = subprocess.run(
            [*AUDIT, "--requirement", str(requirements), "--output", str(report)], capture_output=True, text=True
        )
        if not report.exists():
            print(f"pip-audit could not ask: {done.stderr.strip()[-500:]}")
            return 0
        packages = json.loads(report.read_text())["dependencies"]
    bad = {item["name"]: [found["id"] for found in item["vulns"]] for item in packages if item.get("vulns")}
    unknown = sum("skip_reason" in item for item in packages)
    print(
        f"pip-audit: {len(packages)} packages, {len(bad)} with known vulnerabilities, {unknown} unknown to the service"
    )
    for name, ids in bad.items():
        print(f"{name}: {', '.join(ids)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
