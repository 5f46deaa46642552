"""Rules about the code itself: how long a function is, and what tests may replace."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "sandbox", "tests", "tools")
MOST_LINES = 40
# These break private functions on purpose, to see that a simulation finds it.
BREAKING = {"tests/unit/test_soak.py", "tests/unit/test_fuzz.py"}
# The calls that replace an attribute: of pytest's monkeypatch, and of unittest.mock.
REPLACING = {"setattr", "delattr", "object"}


@cache
def parsed(folder: str) -> dict[str, ast.Module]:
    """Each Python file below a folder of the repository, by its path."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def private_names() -> set[str]:
    """The private functions, variables and attributes of src."""
    nodes = [node for tree in parsed("src").values() for node in ast.walk(tree)]
    names = [node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    names += [node.id for node in nodes if isinstance(node, ast.Name)]
    names += [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    return set(filter(is_private, names))


def replaced(node: ast.AST) -> Iterator[str]:
    """The names of attributes that a statement or call replaces, but for those of ``self``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in REPLACING:
        texts = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
        yield from (text.rpartition(".")[2] for text in texts if isinstance(text, str))
    elif isinstance(node, ast.Tuple) and len(node.elts) > 1 and isinstance(node.elts[1], ast.Constant):
        # A case of a test that gets the owner and the name.
        yield str(node.elts[1].value)
    elif isinstance(node, (ast.Assign, ast.Delete)):
        for target in node.targets:
            changed = target.value if isinstance(target, ast.Subscript) else target
            if isinstance(changed, ast.Attribute) and ast.unparse(changed.value) != "self":
                yield changed.attr


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_function_is_long(folder: str) -> None:
    """One that is longer than 40 lines does several things, which can have names."""
    found = [
        f"{path}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path, tree in parsed(folder).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno >= MOST_LINES
    ]
    assert found == []


def test_tests_replace_public_names_only() -> None:
    """A test that replaces a private function or attribute of src fails when only the code behind a rule changes."""
    found = [
        f"{path}:{getattr(node, 'lineno', 0)}: {name}"
        for path, tree in parsed("tests").items()
        if path not in BREAKING
        for node in ast.walk(tree)
        for name in replaced(node)
        if is_private(name) and name in private_names()
    ]
    assert found == []
