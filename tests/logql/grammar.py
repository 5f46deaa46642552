"""LogQL by the grammar of Grafana's own editor, which runs in node."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, eq=False)
class Node:
    """A node of a syntax tree. No two are equal, so that what is read from one can be cached by it."""

    name: str
    text: str
    start: int
    children: tuple["Node", ...]

    def all(self, *names: str) -> list["Node"]:
        """The children with one of these names."""
        return [child for child in self.children if child.name in names]

    def one(self, *names: str) -> "Node":
        """The only child with one of these names."""
        [found] = self.all(*names)
        return found

    def walk(self) -> Iterator["Node"]:
        """This node and everything below it, in the order of the text."""
        yield self
        for child in self.children:
            yield from child.walk()


class Grammar:
    """Parses expressions, each only once."""

    def __init__(self, folder: Path) -> None:
        # Installed elsewhere: the tree of the sources stays as it is.
        for name in ["package.json", "package-lock.json", "parse.mjs"]:
            shutil.copy(HERE / name, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        self._process = subprocess.Popen(
            ["node", "parse.mjs"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._parsed: dict[str, dict[str, Any]] = {}
        self._trees: dict[str, Node] = {}

    def close(self) -> None:
        """End the parser."""
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0

    def load(self, expressions: Iterable[str]) -> None:
        """Parse several expressions at once, which is faster than one by one."""
        missing = sorted(set(expressions) - self._parsed.keys())
        if not missing:
            return
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        print(json.dumps(missing), file=asked, flush=True)
        self._parsed.update(zip(missing, json.loads(answers.readline()), strict=True))

    def errors(self, expressions: list[str]) -> list[str | None]:
        """What is wrong with each expression, or None."""
        self.load(expressions)
        return [self._parsed[expression]["error"] for expression in expressions]

    def tree(self, expression: str) -> Node:
        """The syntax tree; ValueError for an expression that does not follow the grammar."""
        if expression not in self._trees:
            [error] = self.errors([expression])
            if error:
                raise ValueError(f"{error} in {expression}")
            self._trees[expression] = _node(expression, self._parsed[expression]["tree"])
        return self._trees[expression]


def _node(text: str, item: list[Any]) -> Node:
    name, start, end, children = item
    return Node(name, text[start:end], start, tuple(_node(text, child) for child in children))
