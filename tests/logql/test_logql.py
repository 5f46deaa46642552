"""Every LogQL expression that the charm ships, by the grammar of Grafana's own editor (needs node and npm)."""

import json
import re
from pathlib import Path

import pytest

from tests.logql.grammar import Grammar
from tests.support.dashboards import expressions

HERE = Path(__file__).resolve().parent
REGISTRY = "https://registry.npmjs.org/"
# What Grafana puts in before it asks Loki.
VALUES = {
    "$__interval": "5m",
    "$__range": "24h",
    "${__to:date:seconds}": "1718000000",
    "$juju_model": "ci|staging",
    "$juju_model_uuid": ".*",
    "$juju_application": ".*",
    "$juju_unit": "big-runners/0",
    "$flavor": ".*",
    "$flavor_name": ".*",
    "$unit": "big-runners/.*",
    "$repository": "my-org/.*",
}
VARIABLE = re.compile(r"\$\{[^}]*\}|\$\w+")


def filled_in(expression: str) -> str:
    """The expression as Loki gets it; KeyError for a variable that Grafana does not know."""
    return VARIABLE.sub(lambda match: VALUES[match.group()], expression)


def test_expressions_parse(grammar: Grammar) -> None:
    """Every expression of the dashboards and of the alert rules follows the grammar."""
    shipped = expressions()
    found = grammar.errors([filled_in(expression) for expression in shipped.values()])

    assert len(shipped) > 50
    assert {where: error for where, error in zip(shipped, found, strict=True) if error} == {}


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
def test_broken_expression_is_noticed(grammar: Grammar, broken: str) -> None:
    """A broken expression is noticed, and the sound ones around it are not blamed."""
    sound = 'sum(count_over_time({filename="x"} | json [5m]))'
    first, found, last = grammar.errors([sound, broken, sound])

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
