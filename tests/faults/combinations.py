"""Every combination of a question to GitHub and a fault, over real HTTP.

tests/adapters/test_github_faults.py has those of REST, test_scale_set_faults.py those of runner scale sets.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from tests.adapters import test_github_faults, test_scale_set_faults
from tests.support.deployment import ROOT


def run(short: bool) -> dict[str, object]:
    """Run the tests of both files, at any length the same; the names of those that failed."""
    with tempfile.TemporaryDirectory() as name:
        results = Path(name, "results.xml")
        files = [test_github_faults.__file__, test_scale_set_faults.__file__]
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={results}", *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not results.exists():
            raise RuntimeError(f"pytest failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        cases = ElementTree.parse(results).getroot().findall(".//testcase")
    failed = [
        case.attrib["name"] for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    return {
        "combinations": test_github_faults.combinations(),
        "combinations of scale sets": test_scale_set_faults.combinations(),
        "the agent beside a fault": len(test_scale_set_faults.AGENT_CASES),
        "faults of a list in a whole reconcile": len(test_github_faults.LIST_FAULTS),
        "tests": len(cases),
        "failed": failed,
    }
