"""The dashboards and alert rules of Loki that the charm ships, and a reader of their expressions."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import cos_agent

SHORT = "github_runner_metrics.json"
LONG = "github_runner_metrics_long_term.json"
FILES = [SHORT, LONG]
TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|`[^`]*`)
    |(?P<variable>\$\{[^}]*\}|\$\w+)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<number>\d[\w.]*)
    |(?P<operator>=~|!~|!=|==|>=|<=|\|=|\|~|[-+*/%^{}()\[\],|=<>])
    |(?P<blank>\s+)""",
    re.VERBOSE,
)
COMPARISONS = {"=", "!=", "==", "=~", "!~", ">", ">=", "<", "<="}


@dataclass
class Pipeline:
    """A stream selector with what follows it: the label filters after ``| json`` and the unwrapped label."""

    stream: dict[str, str] = field(default_factory=dict)
    filters: list[tuple[str, str, str]] = field(default_factory=list)
    unwrapped: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    """New names of labels, and what they were."""

    @property
    def event(self) -> str:
        [name] = [value for name, operator, value in self.filters if (name, operator) == ("event", "=")]
        return name


@dataclass
class Query:
    """The names that an expression uses: its pipelines, and the labels of each ``by (…)``."""

    pipelines: list[Pipeline] = field(default_factory=list)
    groups: list[list[str]] = field(default_factory=list)


def tokens(expression: str) -> list[str]:
    found, position = [], 0
    while position < len(expression):
        match = TOKEN.match(expression, position)
        if not match:
            raise ValueError(f"no token: {expression[position:]}")
        if match.lastgroup != "blank":
            found.append(match.group())
        position = match.end()
    return found


class Reader:
    """Takes an expression apart, from left to right."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.rest = tokens(expression)

    def query(self) -> Query:
        """The whole expression."""
        query = Query()
        while self.rest:
            token = self.rest.pop(0)
            if token == "{":
                query.pipelines.append(self.pipeline())
            elif token == "without":
                raise ValueError(f"without in {self.expression}: what is left cannot be told")
            elif token == "by":
                self.take("(")
                end = self.rest.index(")")
                query.groups.append([name for name in self.rest[:end] if name != ","])
                del self.rest[: end + 1]
        return query

    def pipeline(self) -> Pipeline:
        """What follows ``{``, up to ``[``."""
        pipeline = Pipeline()
        while self.rest[0] != "}":
            name, operator, value = self.comparison()
            pipeline.stream[name] = operator + value
            if self.rest[0] == ",":
                self.rest.pop(0)
        self.take("}", "|", "json")
        while self.rest[0] == "|":
            self.rest.pop(0)
            if self.rest[0] == "unwrap":
                self.rest.pop(0)
                pipeline.unwrapped = self.rest.pop(0)
            elif self.rest[0] == "label_format":
                self.rest.pop(0)
                new, _, old = self.comparison()
                pipeline.renamed[new] = old
            else:
                pipeline.filters.append(self.comparison())
        self.take("[")
        return pipeline

    def take(self, *wanted: str) -> None:
        for each in wanted:
            found = self.rest.pop(0) if self.rest else "the end"
            if found != each:
                raise ValueError(f"{found} instead of {each} in {self.expression}")

    def comparison(self) -> tuple[str, str, str]:
        name, operator, value = self.rest.pop(0), self.rest.pop(0), self.rest.pop(0)
        if operator not in COMPARISONS:
            raise ValueError(f"{operator} is no comparison in {self.expression}")
        return name, operator, value.strip('"`')


def read(expression: str) -> Query:
    """What an expression names; ValueError for any form that the reader does not know."""
    return Reader(expression).query()


def dashboard(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((cos_agent.DASHBOARDS / name).read_text())
    return loaded


def panels(name: str) -> list[dict[str, Any]]:
    """The panels that show something, without the rows."""
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


def targets() -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Every query of the dashboards: where it is, its file, panel and target."""
    return [
        (f"{Path(name).stem}: {panel['title']} {target['refId']}", name, panel, target)
        for name in FILES
        for panel in panels(name)
        for target in panel["targets"]
    ]


def rules() -> list[tuple[str, dict[str, Any]]]:
    """Every alert rule with its name."""
    documents = [yaml.safe_load(path.read_text()) for path in sorted(cos_agent.ALERT_RULES.glob("*.yaml"))]
    return [(rule["alert"], rule) for document in documents for group in document["groups"] for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """Every LogQL expression that the charm ships, by where it is."""
    return {where: target["expr"] for where, _, _, target in targets()} | {name: rule["expr"] for name, rule in rules()}


def panel_of(name: str, title: str) -> dict[str, Any]:
    [found] = [panel for panel in panels(name) if panel["title"] == title]
    return found
