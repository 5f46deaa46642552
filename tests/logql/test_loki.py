"""The simulation of Loki itself, on expressions whose values Loki's documentation gives or follows from."""

import json
import math
from typing import Any

import pytest

from tests.logql.collectors import inject
from tests.logql.grammar import Grammar
from tests.logql.loki import Line, Loki, QueryError, Value

STREAM = frozenset({"a": "b", "repo": "label"}.items())


def at(grammar: Grammar, expression: str, events: list[dict[str, Any] | str], time: float = 100) -> Value:
    """The value of an expression; the events are one second apart and end at the moment."""
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    lines = [Line(100 - number, STREAM, text) for number, text in enumerate(reversed(texts))]
    return Loki(grammar, lines).at(expression, time)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", 7),
        ("7 - 2 - 1", 4),
        ("2 * (3 + 1) - 1", 7),
        ("vector(1) / vector(4) > 0.5", None),
        ("vector(3) / vector(4) > 0.5", 0.75),
        ("vector(3) - vector(1) * vector(2) == 1", 1),
        ("vector(3) < 3 or vector(4)", 4),
        ("vector(3) unless vector(4) > 5", 3),
        ("vector(3) and vector(4) > 5", None),
        ("3 - vector(1)", 2),
    ],
)
def test_operations(grammar: Grammar, expression: str, value: float | None) -> None:
    """Operations bind as in Loki, comparisons keep the left value or nothing, and sets go by labels."""
    found = at(grammar, expression, [])

    assert (list(found.values()) if isinstance(found, dict) else [found]) == ([] if value is None else [value])


def test_division_by_zero(grammar: Grammar) -> None:
    """A division by zero is no number and passes no comparison."""
    found = at(grammar, "vector(1) / vector(0)", [])
    assert isinstance(found, dict)
    [value] = found.values()

    assert math.isnan(value)
    assert at(grammar, "vector(1) / vector(0) > 0", []) == {}


@pytest.mark.parametrize(
    ("function", "value"),
    [
        ("sum_over_time(%s)", 16),
        ("avg_over_time(%s) by (a)", 4),
        ("min_over_time(%s) by (a)", 1),
        ("max_over_time(%s) by (a)", 10),
        ("last_over_time(%s) by (a)", 3),
        ("quantile_over_time(0.5, %s) by (a)", 2.5),
        ("quantile_over_time(0.95, %s) by (a)", 8.95),
    ],
)
def test_functions_over_time(grammar: Grammar, function: str, value: float) -> None:
    """Each function over time has its value, samples of equal labels being one series."""
    numbers = [1, 2, 10, 3]
    expression = function.replace("%s", '{a="b"} | json | unwrap n [10s]')

    found = at(grammar, f"sum({expression})", [{"n": number} for number in numbers])

    assert isinstance(found, dict)
    assert list(found) == [frozenset()]
    assert found[frozenset()] == pytest.approx(value)


@pytest.mark.parametrize(("time", "count"), [(100, 2), (101, 1), (99.5, 2), (102, None)])
def test_window(grammar: Grammar, time: float, count: int | None) -> None:
    """A window has its end and not its start."""
    found = at(grammar, 'sum(count_over_time({a="b"} | json [2s]))', [{}, {}, {}], time)

    assert found == ({} if count is None else {frozenset(): count})


@pytest.mark.parametrize(
    ("stages", "passes"),
    [
        ('| x="1"', True),
        ('| x!="1"', False),
        ('| x=~"1|2"', True),
        ('| y=~".*"', True),
        ('| y=""', True),
        ('| x=~"."', True),
        ('| text=~"e"', False),
        ("| x >= 1", True),
        ("| x > 1", False),
        ("| y >= 0", False),
        ("| part_code == 3", True),
        ('| repo="label" | repo_extracted="event"', True),
        ('| label_format z=x | z="1" | x=""', True),
        ('| __error__=""', True),
    ],
)
def test_filters(grammar: Grammar, stages: str, passes: bool) -> None:
    """A filter matches the whole value; a label that is missing is empty text and no number."""
    event = {"x": 1, "text": "hello", "part": {"code": 3}, "repo": "event"}

    found = at(grammar, f'sum(count_over_time({{a="b"}} | json {stages} [1m]))', [event])

    assert bool(found) is passes


def test_missing_labels_of_a_stream(grammar: Grammar) -> None:
    """A selector that matches the empty text matches streams without the label."""
    for matcher, passes in [('=~".*"', True), ('=""', True), ('=~".+"', False), ('!="x"', True)]:
        expression = f'sum(count_over_time({{a="b", missing{matcher}}} | json [1m]))'
        assert bool(at(grammar, expression, [{}])) is passes, matcher


def test_samples_without_the_label(grammar: Grammar) -> None:
    """A line without the unwrapped label gives no sample."""
    expression = 'max_over_time({a="b"} | json | unwrap n [1m]) by (kind)'

    found = at(grammar, expression, [{"kind": "x"}, {"kind": "y", "n": 2}])

    assert found == {frozenset({("kind", "y")}): 2}


@pytest.mark.parametrize(
    ("expression", "event"),
    [
        ('sum(count_over_time({a="b"} | json [1m]))', "no JSON"),
        ('sum(sum_over_time({a="b"} | json | unwrap n [1m]))', {"n": "much"}),
        ('sum(count_over_time({a="b"} | json | n > 3 [1m]))', {"n": "much"}),
        ('sum_over_time({a="b"} | json | unwrap n [1m]) by (a)', {"n": 1}),
        ('sum(count_over_time({a="b"} | logfmt [1m]))', {}),
        ("vector(1) + on (a) vector(2)", {}),
    ],
    ids=["line", "unwrap", "filter", "grouping", "parser", "matching"],
)
def test_queries_that_fail(grammar: Grammar, expression: str, event: dict[str, Any] | str) -> None:
    """Loki answers with an error where a value cannot be read, and so does this simulation where it knows no better."""
    with pytest.raises(QueryError):
        at(grammar, expression, [event])


@pytest.mark.parametrize(("wait", "fires"), [("0s", True), ("12m", True), ("13m", False)])
def test_alert_waits(grammar: Grammar, wait: str, fires: bool) -> None:
    """An alert fires when its series was there in every evaluation of the time that the rule gives."""
    rule = {
        "alert": "A",
        "expr": 'sum by (x) (count_over_time({a="b"} | json [5m])) > 0',
        "for": wait,
        "labels": {"severity": "high"},
        "annotations": {"summary": "{{ $labels.x }} is there"},
    }
    lines = [Line(time, STREAM, '{"x": "y"}') for time in (1000, 1300, 1500, 3000)]

    found = Loki(grammar, lines).alerts(rule, 0, 4000, step=60)

    assert {(alert["x"], alert["severity"], alert.text) for alert in found} == (
        {("y", "high", "y is there")} if fires else set()
    )


def test_injection_reaches_every_selector(grammar: Grammar) -> None:
    """The labels of a rule are put into each selector of its expression, and no other label is."""
    expression = 'sum(count_over_time({a="b"}[1m])) / sum(count_over_time({c="{"}[1m]))'

    found = inject(grammar, expression, {"juju_model": "ci", "juju_charm": "x", "severity": "high"})

    assert found == (
        'sum(count_over_time({juju_model="ci", a="b"}[1m])) / sum(count_over_time({juju_model="ci", c="{"}[1m]))'
    )
