"""Check the import contracts of pyproject.toml with import-linter.

import-linter wants a package, and a charm's modules are top-level ones: this lays them out as the package
``github_runner`` in a temporary folder and runs it there.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "github_runner"


def lay_out(source: Path, target: Path) -> None:
    """Copy the modules, with their imports of each other made the package's."""
    names = "|".join(path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file())
    own_import = re.compile(rf"^(\s*)(from|import) ({names})\b", re.MULTILINE)
    for path in source.rglob("*.py"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(own_import.sub(rf"\1\2 {PACKAGE}.\3", path.read_text()))
    (target / "__init__.py").touch()


def main() -> int:
    """Run import-linter with the project's contracts; its exit code is ours."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out(ROOT / "src", Path(folder, PACKAGE))
        command = ["lint-imports", str(ROOT / "pyproject.toml"), "--no-cache"]
        return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": folder}).returncode


if __name__ == "__main__":
    sys.exit(main())
