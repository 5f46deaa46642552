"""Rules about the code itself: how long a function or a file is, and what others may use of a module."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "sandbox", "tests", "tools")
MOST_LINES = 40
# What has one task only, which a reader should see at once.
SHORT_FILES = {"src/charm.py": 250, "src/runner_manager.py": 350}
# These break private functions on purpose, to see that a simulation finds it.
BREAKING = {"tests/unit/test_soak.py", "tests/unit/test_fuzz.py"}
# The calls that replace an attribute: of pytest's monkeypatch, and of unittest.mock.
REPLACING = {"setattr", "delattr", "object"}
# Of named tuples (https://docs.python.org/3/library/collections.html): underscores only keep them apart from fields.
OF_TUPLES = {"_replace", "_asdict", "_fields"}


@cache
def parsed(folder: str) -> dict[str, ast.Module]:
    """Each Python file below a folder of the repository, by its path."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def private_names() -> set[str]:
    """The private functions, variables and attributes of src and sandbox."""
    nodes = [node for folder in ("src", "sandbox") for tree in parsed(folder).values() for node in ast.walk(tree)]
    names = [node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    names += [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    names += [node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return set(filter(is_private, names)) - OF_TUPLES


def private_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines and private names of what a file reads or imports, but for those of its own classes and objects."""
    own = {"self", "cls", "super()"} | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in private_names() and ast.unparse(node.value) not in own:
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, each.name) for each in node.names if each.name in private_names())


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


def defines(tree: ast.Module, name: str) -> bool:
    """Whether a file has a function, class or attribute of this name."""
    return any(
        (isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name)
        or (isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store))
        for node in ast.walk(tree)
    )


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


@pytest.mark.parametrize(("path", "limit"), SHORT_FILES.items())
def test_a_file_with_one_task_is_short(path: str, limit: int) -> None:
    """The charm only connects Juju with the service, and the runner manager only has the order of a reconcile."""
    assert len((ROOT / path).read_text().splitlines()) <= limit


def test_tests_replace_public_names_only() -> None:
    """A test that replaces a private name of src or sandbox fails when only the code behind a rule changes."""
    found = [
        f"{path}:{getattr(node, 'lineno', 0)}: {name}"
        for path, tree in parsed("tests").items()
        if path not in BREAKING
        for node in ast.walk(tree)
        for name in replaced(node)
        if is_private(name) and name in private_names()
    ]
    assert found == []


def test_tests_use_public_names_only() -> None:
    """A test that calls or reads a private name of src or sandbox does not show what the code does for its users."""
    found = [
        f"{path}:{line}: {name}"
        for path, tree in parsed("tests").items()
        if path not in BREAKING
        for line, name in private_uses(tree)
    ]
    assert found == []


def test_a_module_uses_public_names_of_others_only() -> None:
    """A private name can be changed without reading other files."""
    trees = {**parsed("src"), **parsed("sandbox"), **parsed("tools")}
    found = [
        f"{path}:{line}: {name}"
        for path, tree in trees.items()
        for line, name in private_uses(tree)
        if not defines(tree, name)
    ]
    assert found == []


def test_each_test_of_the_adapters_is_run() -> None:
    """A file that one environment leaves to another is run there."""
    words = (ROOT / "tox.ini").read_text().replace("{posargs:", " ").replace("}", " ").split()
    left_out = [word.removeprefix("--ignore=") for word in words if word.startswith("--ignore=")]

    assert left_out
    assert [path for path in left_out if words.count(path) != 1] == []
