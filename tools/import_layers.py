"""Check the import contracts of pyproject.toml with import-linter's contract classes.

import-linter reads packages only, and a charm's modules are top-level ones. So the graph of imports is made here, from
the files as they are. https://import-linter.readthedocs.io/en/stable/
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tomllib
from grimp import ImportGraph
from importlinter import Contract
from importlinter.configuration import configure
from importlinter.contracts.layers import LayersContract
from importlinter.contracts.protected import ProtectedContract

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS: dict[str, type[Contract]] = {"layers": LayersContract, "protected": ProtectedContract}


def modules(source: Path) -> dict[str, Path]:
    """The file of each module below a folder, by the module's name."""
    files = {path.relative_to(source).with_suffix(""): path for path in sorted(source.rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in files.items()}


def imports(tree: ast.AST, own: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Each imported module and its line, wherever the import is. Of another package only its first name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            # `from a import b` imports the module a.b, or a value of the module a.
            found = next((one for one in (name, name.rpartition(".")[0]) if one in own), name.split(".")[0])
            yield found, node.lineno


def import_graph(source: Path) -> ImportGraph:
    """The modules below a folder, and what they import."""
    graph, own = ImportGraph(), modules(source)
    for name in own:
        graph.add_module(name)
    for name, path in own.items():
        text = path.read_text()
        for imported, line in imports(ast.parse(text), own):
            if imported not in graph.modules:
                graph.add_module(imported, is_squashed=True)
            contents = text.splitlines()[line - 1]
            graph.add_import(importer=name, imported=imported, line_number=line, line_contents=contents)
    return graph


def broken(graph: ImportGraph, options: dict[str, Any]) -> bool:
    """Whether a contract of pyproject.toml is broken. Prints the imports that break it."""
    contract = CONTRACTS[options["type"]](options["name"], session_options={}, contract_options=options)
    check = contract.check(graph, verbose=False)
    print(f"{options['name']}: {'KEPT' if check.kept else 'BROKEN'}")
    if not check.kept:
        contract.render_broken_contract(check)
    return not check.kept


def main() -> int:
    """1 if a contract is broken, or a module is in no layer."""
    configure()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    graph = import_graph(ROOT / "src")
    results = [broken(graph, options) for options in contracts]
    layered = {
        name for options in contracts for layer in options.get("layers", ()) for name in re.findall(r"\w+", layer)
    }
    missing = {name.split(".")[0] for name in modules(ROOT / "src")} - layered
    for name in sorted(missing):
        print(f"{name} is in no layer: add it to tool.importlinter.contracts in pyproject.toml")
    return int(any(results) or bool(missing))


if __name__ == "__main__":
    sys.exit(main())
