"""The folders of tests import each other in one direction."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


def imported_folders(folder: Path) -> Iterator[str]:
    """The other folders of tests that the modules of one import."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            parts = [name.split(".") for name in names if name.startswith("tests.")]
            yield from (words[1] for words in parts if words[1] != folder.name)


@pytest.mark.parametrize(("folder", "allowed"), [("support", set()), ("faults", {"support", "adapters"})])
def test_shared_code_imports_no_folder_that_uses_it(folder: str, allowed: set[str]) -> None:
    """tests/support imports no other folder of tests, and tests/faults none that imports it."""
    assert set(imported_folders(TESTS / folder)) <= allowed
