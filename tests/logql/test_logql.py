"""Every LogQL expression that the charm ships, by the grammar of Grafana's own editor (needs node and npm)."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.test_dashboards import expressions

HERE = Path(__file__).resolve().parent
REGISTRY = "https://registry.npmjs.org/"
# What Grafana puts in before it asks Loki.
VALUES = {
    "$__interval": "5m",
    "$__range": "24h",
    "${__to:date:seconds}": "1718000000",
    "$juju_model": "ci|staging",
    "$juju_application": ".*",
    "$juju_unit": "big-runners/0",
    "$flavor": ".*",
}
VARIABLE = re.compile(r"\$\{[^}]*\}|\$\w+")

Parse = Callable[[list[str]], list[str | None]]


def filled_in(expression: str) -> str:
    """The expression as Loki gets it; KeyError for a variable that Grafana does not know."""
    return VARIABLE.sub(lambda match: VALUES[match.group()], expression)


@pytest.fixture(scope="session")
def parse(tmp_path_factory: pytest.TempPathFactory) -> Parse:
    """A function that gives what is wrong with each expression, or None."""
    folder = tmp_path_factory.mktemp("logql")
    # Installed elsewhere: the tree of the sources stays as it is.
    for name in ["package.json", "package-lock.json", "parse.mjs"]:
        shutil.copy(HERE / name, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr

    def run(items: list[str]) -> list[str | None]:
        answer = subprocess.run(
            ["node", "parse.mjs"],
            cwd=folder,
            input=json.dumps(items),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        found: list[str | None] = json.loads(answer.stdout)
        assert len(found) == len(items)
        return found

    return run


def test_expressions_parse(parse: Parse) -> None:
    """Every expression of the dashboards and of the alert rules follows the grammar."""
    shipped = expressions()
    found = parse([filled_in(expression) for expression in shipped.values()])

    assert len(shipped) > 50
    assert {where: fault for where, fault in zip(shipped, found, strict=True) if fault} == {}


@pytest.mark.parametrize(
    "broken",
    [
        'sum(count_over_time({filename="x"} | json [5m])',
        'sum(count_over_time({filename="x"} json [5m]))',
        'count_over_time({filename="x"} | json [$__interval])',
        'quantile_over_time({filename="x" | json | unwrap idle [5m])',
        'sum by (count_over_time({filename="x"} | json [5m]))',
        "",
    ],
    ids=["bracket", "no pipe", "variable", "brace", "grouping", "empty"],
)
def test_broken_expression_is_noticed(parse: Parse, broken: str) -> None:
    """A broken expression is noticed, and the sound ones around it are not blamed."""
    sound = 'sum(count_over_time({filename="x"} | json [5m]))'
    first, found, last = parse([sound, broken, sound])

    assert (first, last) == (None, None)
    assert found


def test_packages_are_pinned() -> None:
    """The parser's packages have exact versions and checksums, and come from the public registry."""
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    locked = json.loads((HERE / "package-lock.json").read_text())["packages"]
    own = locked.pop("")

    assert own["dependencies"] == wanted
    assert {f"node_modules/{name}": version for name, version in wanted.items()} == {
        path: package["version"] for path, package in locked.items()
    }
    for path, package in locked.items():
        assert package["integrity"].startswith("sha512-"), path
        assert package.get("resolved", REGISTRY).startswith(REGISTRY), path
