"""What Loki computes: the part of LogQL that the alert rules and dashboards use, and the ruler.

Loki's rules that are easy to get wrong: https://grafana.com/docs/loki/latest/query/. Anything that this module does not
know is an error, so that no expression is evaluated in part only.
"""

import json
import math
import operator
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from tests.logql.grammar import Grammar, Node

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Value = Vector | float
# Changes the labels of a line, given with its text; whether the line passes.
Stage = Callable[[dict[str, str], str], bool]
# When a line was stored that a pipeline let through, and its labels then.
Passed = tuple[float, dict[str, str]]
ERROR = "__error__"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MATCHERS: dict[str, Callable[[str, str], bool]] = {
    "Eq": lambda value, wanted: value == wanted,
    "Neq": lambda value, wanted: value != wanted,
    "Re": lambda value, wanted: re.fullmatch(wanted, value, re.DOTALL) is not None,
    "Nre": lambda value, wanted: re.fullmatch(wanted, value, re.DOTALL) is None,
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "Eql": operator.eq,
    "Neq": operator.ne,
    "Gtr": operator.gt,
    "Gte": operator.ge,
    "Lss": operator.lt,
    "Lte": operator.le,
}
ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": lambda left, right: left / right if right else math.nan,
}
WRAPPERS = ("LogQL", "Expr", "MetricExpr")
SETS = ("Or", "And", "Unless")
# The operations that bind closest come first, each is taken from left to right.
PRECEDENCE = (("Mul", "Div"), ("Add", "Sub"), tuple(COMPARISONS), ("And", "Unless"), ("Or",))
AGGREGATIONS: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "count": len,
    "min": min,
    "max": max,
    "avg": lambda values: sum(values) / len(values),
}
# Of the samples of one series, ordered by time.
OVER_TIME: dict[str, Callable[[list[float]], float]] = {
    "count_over_time": len,
    "sum_over_time": sum,
    "avg_over_time": lambda values: sum(values) / len(values),
    "min_over_time": min,
    "max_over_time": max,
    "last_over_time": lambda values: values[-1],
}
# Loki refuses a grouping after these.
UNGROUPED = {"count_over_time", "sum_over_time"}


class QueryError(Exception):
    """Loki answers such a query with an error."""


@dataclass(frozen=True)
class Line:
    """A line of a stream, and when it was stored."""

    time: float
    labels: Labels
    text: str

    @cached_property
    def extracted(self) -> dict[str, str]:
        """The labels after the stage json, with which nearly every pipeline begins."""
        labels = dict(self.labels)
        _extract(labels, self.text)
        return labels


@dataclass(frozen=True)
class Alert:
    """An alert that fires: the labels of its series and its rule, and its text."""

    name: str
    labels: Labels
    text: str

    def __getitem__(self, label: str) -> str:
        return dict(self.labels)[label]


@dataclass(frozen=True)
class _Sample:
    time: float
    labels: Labels
    value: float
    error: str


class Loki:
    """Evaluates expressions on stored lines."""

    def __init__(self, grammar: Grammar, lines: Iterable[Line]) -> None:
        self.grammar = grammar
        self._lines = sorted(lines, key=lambda line: line.time)
        self._streams = {line.labels for line in self._lines}
        self._ranges: dict[Node, tuple[list[float], list[_Sample]]] = {}
        self._passed: dict[tuple[str, ...], list[Passed]] = {}

    def at(self, expression: str, time: float) -> Value:
        """The value of an expression at a moment, in UNIX seconds."""
        return self._expression(self.grammar.tree(expression), time)

    def alerts(self, rule: dict[str, Any], start: float, end: float, step: float = 300) -> set[Alert]:
        """What fires of a rule at some moment when the ruler evaluates it every ``step`` seconds."""
        since: dict[Labels, float] = {}
        fired = set()
        time = start
        while time <= end:
            active = self.at(rule["expr"], time)
            assert isinstance(active, dict), f"{rule['alert']} is no vector"
            since = {labels: since.get(labels, time) for labels in active}
            fired |= {_alert(rule, labels) for labels, first in since.items() if time - first >= seconds(rule["for"])}
            time += step
        return fired

    def _expression(self, node: Node, time: float) -> Value:
        inner = _inner(node)
        return METRICS[inner.name](self, inner, time)

    def _binary(self, node: Node, time: float) -> Value:
        """A chain of operations, by the precedence of Loki: the tree follows the one of the editor, which has none."""
        operands, names = _chain(node)
        operators = list(names)
        values = [self._expression(operand, time) for operand in operands]
        for binding in PRECEDENCE:
            while place := [index for index, name in enumerate(operators) if name in binding]:
                first = place[0]
                values[first : first + 2] = [_operate(operators.pop(first), *values[first : first + 2])]
        [value] = values
        return value

    def _literal(self, node: Node, _: float) -> Value:
        return float(node.text)

    def _vector(self, node: Node, _: float) -> Value:
        return {frozenset(): float(node.one("Number").text)}

    def _aggregation(self, node: Node, time: float) -> Value:
        value = self._expression(node.one("MetricExpr"), time)
        assert isinstance(value, dict)
        name, names = node.one("VectorOp").text, _grouping(node) or frozenset()
        if name == "topk":
            assert not names, "topk by labels is not known"
            best = sorted(value.items(), key=lambda item: item[1], reverse=True)
            return dict(best[: int(node.one("Number").text)])
        groups: dict[Labels, list[float]] = defaultdict(list)
        for labels, number in value.items():
            groups[_only(labels, names)].append(number)
        return {labels: float(AGGREGATIONS[name](numbers)) for labels, numbers in groups.items()}

    def _over_time(self, node: Node, time: float) -> Value:
        name, names = node.one("RangeOp").text, _grouping(node)
        if names is not None and name in UNGROUPED:
            raise QueryError(f"grouping is not allowed for {name}")
        content = node.one("LogRangeExpr")
        times, samples = self._samples(content, names)
        width = _width(content)
        series: dict[Labels, list[float]] = defaultdict(list)
        # The window is open at its start and closed at its end.
        for sample in samples[bisect_right(times, time - width) : bisect_right(times, time)]:
            if sample.error:
                raise QueryError(f"{sample.error} in {node.text}")
            series[sample.labels].append(sample.value)
        if name == "quantile_over_time":
            share = float(node.one("Number").text)
            return {labels: quantile(share, values) for labels, values in series.items()}
        return {labels: float(OVER_TIME[name](values)) for labels, values in series.items()}

    def _samples(self, content: Node, names: frozenset[str] | None) -> tuple[list[float], list[_Sample]]:
        """Every line that the selector and the pipeline let through, with the labels of a grouping, or all of them.

        Computed once, because rules are evaluated often.
        """
        if content not in self._ranges:
            unwrap = content.all("UnwrapExpr")
            unwrapped = unwrap[0].one("Identifier").text if unwrap else ""
            found = [sample for passed in self._passing(content) if (sample := _sample(*passed, unwrapped, names))]
            self._ranges[content] = [sample.time for sample in found], found
        return self._ranges[content]

    def _passing(self, content: Node) -> list[Passed]:
        """The lines that the selector and the pipeline let through, computed once for all ranges that have both."""
        selector = content.one("Selector")
        key = (selector.text, *(part.text for part in content.all("PipelineExpr")))
        if key not in self._passed:
            streams = {labels for labels in self._streams if _selects(selector, labels)}
            stages = _stages(content)
            tried = [(line, _passed(line, stages)) for line in self._lines if line.labels in streams]
            self._passed[key] = [(line.time, labels) for line, labels in tried if labels is not None]
        return self._passed[key]


METRICS: dict[str, Callable[[Loki, Node, float], Value]] = {
    "BinOpExpr": Loki._binary,
    "LiteralExpr": Loki._literal,
    "VectorExpr": Loki._vector,
    "VectorAggregationExpr": Loki._aggregation,
    "RangeAggregationExpr": Loki._over_time,
}


def seconds(duration: str) -> float:
    """A duration such as 10m."""
    number, unit = duration[:-1], duration[-1]
    return float(number) * UNITS[unit]


def quantile(share: float, values: list[float]) -> float:
    """Between two neighbours in proportion."""
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def _alert(rule: dict[str, Any], labels: Labels) -> Alert:
    def value(match: re.Match[str]) -> str:
        return dict(labels).get(match[1], "")

    text = " ".join(rule["annotations"].values())
    return Alert(
        rule["alert"],
        frozenset({**dict(labels), **rule["labels"]}.items()),
        re.sub(r"\{\{ \$labels\.(\w+) \}\}", value, text),
    )


@cache
def _inner(node: Node) -> Node:
    """The node that says what is computed, of which the tree has several around."""
    while node.name in WRAPPERS:
        node = node.one(*WRAPPERS, *METRICS)
    return node


@cache
def _width(content: Node) -> float:
    """The seconds of a range."""
    return seconds(content.one("Range").one("Duration").text)


@cache
def _only(labels: Labels, names: frozenset[str]) -> Labels:
    """The labels of a grouping; one that a series does not have is left out."""
    return frozenset((name, value) for name, value in labels if name in names and value)


@cache
def _grouping(node: Node) -> frozenset[str] | None:
    found = node.all("Grouping")
    if not found:
        return None
    assert found[0].all("By"), f"{found[0].text} is not known"
    return frozenset(item.text for item in found[0].walk() if item.name == "Identifier")


@cache
def _chain(node: Node) -> tuple[list[Node], list[str]]:
    """The operands and operators of a chain of operations; what is in brackets is one operand."""
    left, operation, modifier, right = node.children
    if modifier.text:
        raise QueryError(f"{modifier.text} is not known")
    operands: list[Node] = []
    operators: list[str] = []
    for side in (left, right):
        [inner] = side.one("MetricExpr").children[:1]
        more, between = _chain(inner) if inner.name == "BinOpExpr" else ([side], [])
        operands += more
        operators += between if side is left else [operation.name, *between]
    return operands, operators


def _operate(name: str, left: Value, right: Value) -> Value:
    if name in SETS:
        return _set_operation(name, left, right)
    if isinstance(left, float) and isinstance(right, float):
        return float(ARITHMETIC[name](left, right))
    return _apply(name, left, right)


def _set_operation(name: str, left: Value, right: Value) -> Vector:
    assert isinstance(left, dict)
    assert isinstance(right, dict)
    if name == "Or":
        return {**right, **left}
    return {labels: value for labels, value in left.items() if (labels in right) is (name == "And")}


def _apply(name: str, left: Value, right: Value) -> Vector:
    """An operation on at least one vector; of two vectors the series with equal labels belong together."""
    if isinstance(left, dict) and isinstance(right, dict):
        pairs = {labels: (left[labels], right[labels]) for labels in left.keys() & right.keys()}
    elif isinstance(left, dict):
        assert isinstance(right, float)
        pairs = {labels: (value, right) for labels, value in left.items()}
    else:
        assert isinstance(right, dict)
        pairs = {labels: (left, value) for labels, value in right.items()}
    if name in COMPARISONS:
        assert isinstance(left, dict), "a comparison with a scalar on its left is not known"
        return {labels: left[labels] for labels, pair in pairs.items() if COMPARISONS[name](*pair)}
    return {labels: ARITHMETIC[name](*pair) for labels, pair in pairs.items()}


@cache
def _string(text: str) -> str:
    value = json.loads(text)
    assert isinstance(value, str)
    return value


@cache
def _selects(selector: Node, labels: Labels) -> bool:
    """Whether a stream matches; a label that it does not have is empty."""
    return all(_matcher(node)(dict(labels), "") for node in selector.walk() if node.name == "Matcher")


@cache
def _stages(content: Node) -> list[Stage]:
    nodes = [child for part in content.all("PipelineExpr") for child in part.walk() if child.name == "PipelineStage"]
    return [_stage(node.children[-1]) for node in nodes]


def _passed(line: Line, stages: list[Stage]) -> dict[str, str] | None:
    """The labels of a line after all stages; None if one does not let it through."""
    begins_with_json = stages[:1] == [_extract]
    labels = dict(line.extracted if begins_with_json else line.labels)
    return labels if all(stage(labels, line.text) for stage in stages[begins_with_json:]) else None


def _sample(time: float, labels: dict[str, str], unwrapped: str, names: frozenset[str] | None) -> _Sample | None:
    value: float | None = 1
    if unwrapped:
        # A line without the label is no error, and gives no sample.
        text = labels.get(unwrapped, "")
        if not text:
            return None
        value = _number(text)
    error = labels.get(ERROR, "") if value is not None else "SampleExtractionErr"
    kept = labels if names is None else {name: labels[name] for name in names if labels.get(name)}
    return _Sample(time, frozenset(item for item in kept.items() if item[0] != unwrapped), value or 0, error)


def _stage(node: Node) -> Stage:
    if node.name == "LabelParser" and node.text == "json":
        return _extract
    if node.name == "LabelFormatExpr":
        return _renaming(node)
    if node.name != "LabelFilter":
        raise QueryError(f"{node.text} is not known")
    [content] = node.children
    return _matcher(content) if content.name == "Matcher" else _number_filter(content)


def _renaming(node: Node) -> Stage:
    matchers = [item.children for item in node.walk() if item.name == "LabelFormatMatcher"]
    assert all(old.name == "Identifier" for _, _, old in matchers), "templates are not known"
    names = [(new.text, old.text) for new, _, old in matchers]

    def stage(labels: dict[str, str], _: str) -> bool:
        for new, old in names:
            if old in labels:
                labels[new] = labels.pop(old)
        return True

    return stage


def _matcher(node: Node) -> Stage:
    name, comparison, text = node.children
    label, matches, wanted = name.text, MATCHERS[comparison.name], _string(text.text)
    return lambda labels, _: matches(labels.get(label, ""), wanted)


def _number_filter(node: Node) -> Stage:
    """A line without the label does not pass, one whose label is no number becomes an error."""
    assert node.name == "NumberFilter", f"{node.text} is not known"
    name, comparison, number = node.children
    label, compares, wanted = name.text, COMPARISONS[comparison.name], float(number.text)

    def stage(labels: dict[str, str], _: str) -> bool:
        if ERROR in labels:
            return True
        if label not in labels:
            return False
        value = _number(labels[label])
        if value is None:
            labels[ERROR] = "LabelFilterErr"
            return True
        return compares(value, wanted)

    return stage


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _extract(labels: dict[str, str], text: str) -> bool:
    """The stage json: a field that has the name of a label of the stream gets a suffix."""
    found = _fields(text)
    if found is None:
        labels[ERROR] = "JSONParserErr"
        return True
    own = {name: labels[name] for name in found.keys() & labels}
    labels |= found
    for name, value in own.items():
        labels[f"{name}_extracted"], labels[name] = labels[name], value
    return True


@cache
def _fields(text: str) -> dict[str, str] | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return dict(_flat(data)) if isinstance(data, dict) else None


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested fields are joined by an underscore, lists are left out."""
    found = []
    for key, value in data.items():
        name = re.sub(r"\W", "_", prefix + key)
        if isinstance(value, dict):
            found += _flat(value, f"{name}_")
        elif not isinstance(value, list):
            found.append((name, value if isinstance(value, str) else json.dumps(value)))
    return found
