"""The dashboard and the alert rules of Prometheus are about metrics and labels that a unit really serves."""

import json
import re
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

import cos_agent
import demand
import telemetry
from demand import Demand
from programs.exposition import Figures
from telemetry import Counts, Gauges

ROOT = Path(__file__).resolve().parents[2]
UNIT = "github-runner/0"
DASHBOARD: dict[str, Any] = json.loads((cos_agent.DASHBOARDS / "github_runner_prometheus.json").read_text())
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
RULES = [
    rule
    for path in sorted(cos_agent.METRICS_RULES.glob("*.yaml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
EXPRESSIONS = {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]
} | {rule["alert"]: rule["expr"] for rule in RULES}
DATASOURCE = {"type": "prometheus", "uid": "${prometheusds}"}
# What a scrape adds, and what a collector of COS adds to it.
ADDED = {"job", "instance", "juju_model", "juju_model_uuid", "juju_application", "juju_unit", "juju_charm"}
UP = "up"
SERIES = re.compile(r"\b(github_runner_\w+|up)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"[^"]*"')


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The labels of each metric of a unit that has everything."""
    monkeypatch.setattr(telemetry, "LOCKS", tmp_path)
    monkeypatch.setattr(demand, "LOCKS", tmp_path)
    telemetry.save(UNIT, Gauges(1.0, {"small": Counts(1, 1, 1, 1)}, 1, 1.0, 1.0))
    demand.save(UNIT, {"small": Demand(assigned=1, answered_at=1.0)})
    found: dict[str, set[str]] = defaultdict(set)
    for family in Figures(UNIT, "1").registry.collect():
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return {name: labels | ADDED for name, labels in found.items()} | {UP: ADDED}


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_metrics_and_labels_are_served(where: str, served: dict[str, set[str]]) -> None:
    """Each metric of an expression is served, with the labels that it is selected and grouped by."""
    expression = EXPRESSIONS[where]
    names = set()
    for name, matchers in SERIES.findall(expression):
        assert name in served
        assert set(MATCHER.findall(matchers)) <= served[name], name
        names.add(name)
    assert names
    groups = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
    for name in names:
        assert groups <= served[name], name
    assert not re.search(r"\b(without|on|ignoring|group_left|group_right)\b", expression), "not checked here"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_labels_of_a_legend_are_left_by_the_query(panel: dict[str, Any]) -> None:
    """What the name of a series has, the query groups by."""
    for target in panel["targets"]:
        grouped = re.search(r"\bby \(([^)]*)\)", target["expr"])
        left = set(re.split(", ?", grouped[1])) if grouped else set()
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_labels_of_an_alert_are_there(rule: dict[str, Any]) -> None:
    """What the text of an alert says of its labels is a label that the expression leaves."""
    used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    groups = re.findall(r"\bby \(([^)]*)\)", rule["expr"])

    assert used
    assert used <= ({name.strip() for name in groups[0].split(",")} if groups else {"unit", *ADDED})


def test_every_metric_is_shown(served: dict[str, set[str]]) -> None:
    """A metric that no panel reads would be recorded for nobody."""
    text = "\n".join(target["expr"] for panel in PANELS for target in panel["targets"])
    families = {re.sub(r"_(bucket|sum|count|created|total)$", "", name) for name in served} - {UP}

    assert {family for family in families if family not in text} == set()


def test_variables() -> None:
    """The reader chooses the Prometheus, the topology, unit and flavour; All includes series without the label."""
    queries = ["juju_model", "juju_model_uuid", "juju_application", "juju_unit", "unit", "flavor"]

    assert list(VARIABLES) == ["prometheusds", *queries]
    for name in queries:
        found = VARIABLES[name]
        assert re.fullmatch(rf"label_values\(github_runner_(build_info|runners), {name}\)", found["definition"])
        assert (found["query"]["query"], found["datasource"]) == (found["definition"], DATASOURCE)
        assert (found["allValue"], found["current"]["value"]) == (".*", ["$__all"])
    assert set(re.findall(r"\$(\w+)", "".join(EXPRESSIONS.values()))) == {*queries, "__rate_interval"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_are_limited_by_all_variables(panel: dict[str, Any], served: dict[str, set[str]]) -> None:
    """Each selector has a matcher for each variable whose label the metric has."""
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"] == DATASOURCE
        for name, matchers in SERIES.findall(target["expr"]):
            wanted = {label for label in VARIABLES if label in served[name]}
            assert {label for label in wanted if f'{label}=~"${label}"' in matchers} == wanted


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_explain_themselves(panel: dict[str, Any]) -> None:
    """Every panel says what it means in whole sentences, and is in seconds exactly where its value is a time."""
    assert re.fullmatch(r"[A-Z0-9].{20,}\.", panel["description"])
    text = " ".join(target["expr"] for target in panel["targets"])
    is_time = bool(re.search(r"_seconds(_bucket)?\{", text)) and "_count{" not in text
    assert (panel["fieldConfig"]["defaults"]["unit"] == "s") is is_time
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_have_their_place() -> None:
    """Ids and titles are unique, and no two panels cover the same cell of the grid's 24 columns."""
    everything = DASHBOARD["panels"]
    assert (
        len({panel["id"] for panel in everything}) == len({panel["title"] for panel in everything}) == len(everything)
    )
    assert all(row["collapsed"] is False and row["panels"] == [] for row in ROWS)
    for one, other in combinations((panel["gridPos"] for panel in everything), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
        assert one["x"] + one["w"] <= 24


def test_the_reference_has_each_metric(served: dict[str, set[str]]) -> None:
    """docs/reference/metrics.md has a row for each metric, with its type, unit and labels, and for no other."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", (ROOT / "docs/reference/metrics.md").read_text(), re.MULTILINE
    )
    found = {}
    for family in Figures(UNIT, "1").registry.collect():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels)

    assert {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows} == found
    assert len(rows) == len(found)


def test_runbooks_name_the_alerts() -> None:
    """The page of each alert exists and names it, and so does the page about observing."""
    for rule in RULES:
        assert rule["alert"] in (ROOT / rule["annotations"]["runbook"]).read_text(), rule["alert"]
        assert f"`{rule['alert']}`" in (ROOT / "docs/how-to/observe.md").read_text(), rule["alert"]
