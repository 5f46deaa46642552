"""The dashboards and alert rules that the charm ships: valid, and about fields that the events really have."""

import json
import re
import types
import typing
from itertools import combinations
from typing import Any

import pytest
from pydantic import BaseModel

import cos_agent
from metrics import events
from metrics.runner import PostJobStatus
from tests.support.dashboards import (
    FILES,
    LONG,
    SHORT,
    dashboard,
    expressions,
    panel_of,
    panels,
    read,
    rules,
    targets,
)

# Its panels are queries of Prometheus: tests/unit/test_prometheus_dashboard.py.
PROMETHEUS = "github_runner_prometheus.json"
TOPOLOGY = {"juju_model", "juju_model_uuid", "juju_application", "juju_unit", "juju_charm"}
STREAM_LABELS = {"filename", *TOPOLOGY}
SELECTOR = (
    '{filename="/var/log/github-runner-metrics.log", juju_model=~"$juju_model", juju_model_uuid=~"$juju_model_uuid", '
    'juju_application=~"$juju_application", juju_unit=~"$juju_unit"}'
)
DATASOURCE = {"type": "loki", "uid": "${lokids}"}
PERCENTILES = {
    "50%": "quantile_over_time(0.5,",
    "95%": "quantile_over_time(0.95,",
    "99%": "quantile_over_time(0.99,",
    "Max": "max_over_time(",
}
# Rows whose panels are about jobs, so that they heed the variable repository.
ROWS_OF_JOBS = ("Jobs", "Repository policy check")


def labels_of(model: type[BaseModel], prefix: str = "") -> dict[str, bool]:
    """The labels that Loki's json stage makes of a model, and whether each is a number."""
    found: dict[str, bool] = {}
    for name, info in model.model_fields.items():
        union = isinstance(info.annotation, types.UnionType)
        kinds = typing.get_args(info.annotation) if union else (info.annotation,)
        [kind] = [kind for kind in kinds if kind is not type(None)]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= labels_of(kind, f"{prefix}{name}_")
        else:
            # StrictInt and its like are Annotated.
            plain = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
            found[prefix + name] = plain in (int, float)
    return found


EVENTS = {
    kind.model_construct().name: labels_of(kind)
    for kind in events.Event.__subclasses__()
    if kind.__module__ == events.__name__
}


def errors_of(expression: str) -> list[str]:
    """What an expression names and the lines that it selects do not have."""
    query, found = read(expression), []
    for pipeline in query.pipelines:
        if pipeline.event not in EVENTS:
            found.append(f"no event {pipeline.event}")
            continue
        fields = EVENTS[pipeline.event]
        found += [f"{pipeline.event} has no {name}" for name in pipeline.renamed.values() if name not in fields]
        known = {*fields, "event", "unit", "__error__", *STREAM_LABELS, *pipeline.renamed}
        names = {name for name, _, _ in pipeline.filters} | {name for group in query.groups for name in group}
        found += [f"{pipeline.event} has no {name}" for name in sorted(names - known)]
        found += [f"{name} is no stream label" for name in sorted(set(pipeline.stream) - STREAM_LABELS)]
        if pipeline.unwrapped is not None and not fields.get(pipeline.unwrapped):
            found.append(f"{pipeline.event} has no number {pipeline.unwrapped}")
    return found


def datasources(node: Any) -> list[Any]:
    """Every value of a key ``datasource``, however deep."""
    if isinstance(node, list):
        return [found for item in node for found in datasources(item)]
    if isinstance(node, dict):
        own = [node["datasource"]] if "datasource" in node else []
        return own + [found for item in node.values() for found in datasources(item)]
    return []


def test_titles() -> None:
    """The charm ships three dashboards, two of them with the titles of the previous charm."""
    found = {path.name: json.loads(path.read_text())["title"] for path in cos_agent.DASHBOARDS.glob("*.json")}

    assert found == {
        SHORT: "GitHub Self-Hosted Runner Metrics",
        LONG: "GitHub Self-Hosted Runner Metrics (Long-Term)",
        PROMETHEUS: "GitHub Self-Hosted Runner Metrics (Prometheus)",
    }


@pytest.mark.parametrize("name", FILES)
def test_panel_ids_are_unique(name: str) -> None:
    """Grafana tells panels apart by their ids, rows included, and people by their titles."""
    everything = dashboard(name)["panels"]

    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    assert all(isinstance(panel["id"], int) and panel["id"] > 0 for panel in everything)


@pytest.mark.parametrize("name", FILES)
def test_panels_do_not_overlap(name: str) -> None:
    """Every panel lies within the grid's 24 columns, and no two cover the same cell."""
    placed = [(panel["title"], panel["gridPos"]) for panel in dashboard(name)["panels"]]

    for title, place in placed:
        assert place["x"] >= 0, title
        assert place["y"] >= 0, title
        assert place["w"] > 0, title
        assert place["h"] > 0, title
        assert place["x"] + place["w"] <= 24, title
    for (one, a), (other, b) in combinations(placed, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, f"{one} and {other}"


@pytest.mark.parametrize("name", FILES)
def test_rows_are_open(name: str) -> None:
    """A row is open and holds no panels itself, so that the panels below it are the dashboard's."""
    rows = [panel for panel in dashboard(name)["panels"] if panel["type"] == "row"]

    assert rows
    assert all(row["collapsed"] is False and row["panels"] == [] for row in rows)


@pytest.mark.parametrize("name", FILES)
def test_datasource_is_the_variable(name: str) -> None:
    """Every datasource is the one that the reader chose: no other exists in their Grafana for sure."""
    found = datasources(dashboard(name))

    assert found
    assert all(item == DATASOURCE for item in found)
    for panel in panels(name):
        assert panel["datasource"] == DATASOURCE, panel["title"]
        assert all(target["datasource"] == DATASOURCE for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("name", FILES)
def test_variables(name: str) -> None:
    """The reader chooses datasources, the topology of the collector, and what events say; All is the default."""
    variables = {item["name"]: item for item in dashboard(name)["templating"]["list"]}
    queries = ["juju_model", "juju_model_uuid", "juju_application", "juju_unit"]
    texts = [*(["repository"] if name == SHORT else []), "flavor", "flavor_name", "unit"]

    assert list(variables) == ["lokids", "prometheusds", *queries, *texts]
    for label, kind in [("lokids", "loki"), ("prometheusds", "prometheus")]:
        assert (variables[label]["type"], variables[label]["query"]) == ("datasource", kind)
        assert variables[label]["multi"] is True
    for label in texts:
        assert (variables[label]["type"], variables[label]["query"]) == ("textbox", ".*")
    for label in queries:
        variable = variables[label]
        assert variable["type"] == "query"
        assert variable["query"]["label"] == label
        assert variable["query"]["stream"].startswith('{filename="/var/log/github-runner-metrics.log"')
        assert variable["multi"] is variable["includeAll"] is True
        # It matches streams without the label, too. Without a value of its own, All is the list of the values that
        # there are: nothing for a label that the collector does not give.
        assert variable["allValue"] == ".*"
        assert variable["current"]["value"] == ["$__all"]


def test_uids() -> None:
    """The long-term dashboard has the uid of the previous charm, so that links stay good; the other one has none."""
    assert {name: dashboard(name).get("uid") for name in FILES} == {SHORT: None, LONG: "5da1c1eea77432e7"}


@pytest.mark.parametrize("name", FILES)
def test_panels_explain_themselves(name: str) -> None:
    """Every panel says what it means in whole sentences, and in which unit it counts."""
    for panel in panels(name):
        assert re.fullmatch(r"[A-Z0-9].{20,}\.", panel["description"]), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.mark.parametrize(("where", "panel", "target"), [(item[0], item[2], item[3]) for item in targets()])
def test_times_are_in_seconds(where: str, panel: dict[str, Any], target: dict[str, Any]) -> None:
    """A panel has seconds as its unit exactly where the value that it reads is in seconds."""
    unwrapped = {pipeline.unwrapped for pipeline in read(target["expr"]).pipelines}
    seconds = {
        "duration",
        "queue_duration",
        "job_duration",
        "idle",
        "application_age",
        "image_age",
        "timestamp",
    }

    assert (panel["fieldConfig"]["defaults"]["unit"] == "s") == bool(unwrapped & seconds), where


@pytest.mark.parametrize("name", FILES)
def test_thresholds_rise(name: str) -> None:
    """Thresholds begin with a colour for everything and rise from there, as Grafana takes for granted."""
    for panel in panels(name):
        base, *rest = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert base is None, panel["title"]
        assert rest == sorted(set(rest)), panel["title"]


@pytest.mark.parametrize("name", FILES)
def test_queries_of_a_panel_differ(name: str) -> None:
    """The queries of one panel have names of their own, and so have their series."""
    for panel in panels(name):
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]
        assert len({target["legendFormat"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]


@pytest.mark.parametrize(("where", "expression"), [(item[0], item[3]["expr"]) for item in targets()])
def test_dashboards_read_what_the_reader_chose(where: str, expression: str) -> None:
    """Every pipeline begins with the metrics log's selector and the JSON stage, and heeds all variables."""
    query = read(expression)

    assert expression.count(SELECTOR + ' | json | event="') == len(query.pipelines) > 0, where
    for pipeline in query.pipelines:
        assert ("__error__", "=", "") in pipeline.filters, where
        assert ("flavor", "=~", "$flavor") in pipeline.filters, where
        assert ("unit", "=~", "$unit") in pipeline.filters, where


def test_panels_of_jobs_heed_the_repository() -> None:
    """The panels about jobs show the repositories that the reader chose, and no other panel asks for one."""
    row = ""
    for panel in dashboard(SHORT)["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        for target in panel.get("targets", []):
            for pipeline in read(target["expr"]).pipelines:
                heeds = ("repo", "=~", "$repository") in pipeline.filters
                assert heeds is (row in ROWS_OF_JOBS), panel["title"]


def test_units_are_told_apart_by_events() -> None:
    """No panel groups by labels of the collector's unit or application: opentelemetry-collector gives no unit."""
    groups = {label for target in targets() for group in read(target[3]["expr"]).groups for label in group}

    assert "unit" in groups
    assert groups & {"juju_unit", "juju_application"} == set()


@pytest.mark.parametrize(("where", "expression"), expressions().items())
def test_fields_exist(where: str, expression: str) -> None:
    """Every field that an expression names is one of the event that it selects, or a label of the stream."""
    assert not errors_of(expression), where


@pytest.mark.parametrize(
    ("stages", "found"),
    [
        ('| event="runner_began" [1h])', ["no event runner_began"]),
        ('| event="runner_stop" | queue_duration > 3 [1h])', ["runner_stop has no queue_duration"]),
        ('| event="runner_start" | unwrap duration [1h])', ["runner_start has no number duration"]),
        ('| event="runner_start" | unwrap workflow [1h])', ["runner_start has no number workflow"]),
        ('| event="runner_stop" | status_info > 399 [1h])', ["runner_stop has no status_info"]),
        ('| event="reconciliation" [1h]) by (repo)', ["reconciliation has no repo"]),
        ('| event="runner_stop" | status_info_code > 399 [1h]) by (unit, flavor)', []),
        ('| event="runner_stop" | label_format code=status_info_code [1h]) by (code)', []),
        ('| event="runner_stop" | label_format code=http_code [1h]) by (code)', ["runner_stop has no http_code"]),
    ],
)
def test_check_of_fields_notices(stages: str, found: list[str]) -> None:
    """The check of the fields notices a wrong event, filter, unwrapped label and grouping."""
    assert errors_of('max_over_time({filename="x"} | json ' + stages) == found


@pytest.mark.parametrize("expression", ['rate({a="b"} | logfmt [1h])', 'max({a="b"} | json) without (c)', "{a ? b}"])
def test_check_of_fields_knows_its_limits(expression: str) -> None:
    """An expression in a form that the check cannot read is an error, so that none goes unread."""
    with pytest.raises((ValueError, IndexError)):
        errors_of(expression)


@pytest.mark.parametrize(("where", "panel", "target"), [(item[0], item[2], item[3]) for item in targets()])
def test_legends_name_labels_that_are_left(where: str, panel: dict[str, Any], target: dict[str, Any]) -> None:
    """A legend names only labels that the expression's outermost grouping leaves."""
    wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    groups = read(target["expr"]).groups

    assert wanted <= set(groups[0] if groups else []), where


@pytest.mark.parametrize(("name", "rule"), rules())
def test_annotations_name_labels_that_are_left(name: str, rule: dict[str, Any]) -> None:
    """An alert's text names only labels that its expression's outermost grouping leaves."""
    text = " ".join(rule["annotations"].values())

    assert set(re.findall(r"\$labels\.(\w+)", text)) <= set(read(rule["expr"]).groups[0]), name


@pytest.mark.parametrize(("where", "expression"), expressions().items())
def test_statuses_exist(where: str, expression: str) -> None:
    """A status that an expression asks for is one that a runner can end with."""
    known = {status.value for status in PostJobStatus}
    asked = {
        value for pipeline in read(expression).pipelines for name, _, value in pipeline.filters if name == "status"
    }

    assert asked <= known, where


@pytest.mark.parametrize(("where", "target"), [(item[0], item[3]) for item in targets()])
def test_windows_fit_the_kind_of_query(where: str, target: dict[str, Any]) -> None:
    """A query for one value never counts over the interval between points, nor one for a series over all the range."""
    forbidden = {"instant": "[$__interval]", "range": "[$__range]"}

    assert forbidden[target["queryType"]] not in target["expr"], where


@pytest.mark.parametrize(
    ("title", "event", "value"),
    [
        ("Job Queue Duration (Percentile)", "runner_start", "queue_duration"),
        ("Runner Installation Duration (Percentile)", "runner_installed", "duration"),
        ("Runner Idle Duration (Percentile)", "runner_start", "idle"),
        ("Reconciliation Duration (Percentile)", "reconciliation", "duration"),
        ("Job Duration (Percentile)", "runner_stop", "job_duration"),
    ],
)
def test_percentiles(title: str, event: str, value: str) -> None:
    """Each duration is shown by its median, its 95th and 99th percentile and its maximum over the last hour."""
    found = {target["legendFormat"]: target["expr"] for target in panel_of(SHORT, title)["targets"]}

    assert {legend: expression.split("{")[0].strip() for legend, expression in found.items()} == PERCENTILES
    for expression in found.values():
        [pipeline] = read(expression).pipelines
        assert (pipeline.event, pipeline.unwrapped) == (event, value)
        assert (("status", "=", "normal") in pipeline.filters) is (event == "runner_stop")
        assert "[1h]" in expression


@pytest.mark.parametrize(
    ("name", "title", "kind", "legends"),
    [
        (SHORT, "Lifecycle Status", "timeseries", ["Started", "Initialized", "Stopped", "Crashed"]),
        (SHORT, "Available Runners", "barchart", ["{{flavor}}"]),
        (SHORT, "Idle Runners after Reconciliation", "timeseries", ["Idle", "Active", "Expected"]),
        (SHORT, "Completion Status", "timeseries", ["{{status}}"]),
        (SHORT, "Job Conclusion", "timeseries", ["{{job_conclusion}}", "unknown"]),
        (SHORT, "Application proportion", "piechart", ["{{flavor}}"]),
        (SHORT, "Repo Policy Check Failures", "timeseries", ["{{status_info_code}}"]),
        (SHORT, "GitHub Event", "timeseries", ["{{github_event}}"]),
        (SHORT, "Repositories", "bargauge", ["{{repo}}"]),
        (LONG, "Total Jobs", "stat", [""]),
        (LONG, "Runners created per Application", "barchart", ["{{flavor}}"]),
        (LONG, "Jobs per Day", "timeseries", ["{{flavor}}"]),
        (LONG, "Total Repositories", "stat", [""]),
        (LONG, "Jobs with Queue Time Less Than 60 Seconds (Percentage)", "stat", [""]),
    ],
)
def test_panels_of_the_previous_charm(name: str, title: str, kind: str, legends: list[str]) -> None:
    """The panels of the previous charm keep their titles and series."""
    panel = panel_of(name, title)

    assert panel["type"] == kind
    assert [target["legendFormat"] for target in panel["targets"]] == legends


@pytest.mark.parametrize("name", FILES)
def test_rows_of_the_previous_charm(name: str) -> None:
    """The rows of the previous charm keep their titles."""
    rows = [panel["title"] for panel in dashboard(name)["panels"] if panel["type"] == "row"]

    assert [title for title in ["General", *(["Jobs"] if name == SHORT else [])] if title not in rows] == []


@pytest.mark.parametrize(
    ("name", "title", "parts"),
    [
        (SHORT, "Installed", ['event="runner_installed"']),
        (SHORT, "Started", ['event="runner_start"']),
        (SHORT, "Stopped", ['event="runner_stop"']),
        (SHORT, "Wanted runners", ["unwrap wanted_runners"]),
        (SHORT, "Available runners (total)", ['event="reconciliation"', "unwrap idle_runners"]),
        (SHORT, "Idle and wanted runners by flavor", ["unwrap idle_runners", "unwrap wanted_runners"]),
        (SHORT, "Runner binary age", ["unwrap application_age"]),
        (SHORT, "Image age", ["unwrap image_age"]),
        (SHORT, "Failed creations per unit", ["unwrap failed_creations"]),
        (SHORT, "API quota left", ["unwrap api_quota_left"]),
        (SHORT, "Age of the last reconciliation", ["${__to:date:seconds} -", 'event="reconciliation"']),
        (LONG, "Jobs per Day", ['event="runner_start"', "[1d]"]),
        (LONG, "Jobs with Queue Time Less Than 60 Seconds (Percentage)", ["queue_duration < 60", "/ sum"]),
    ],
)
def test_panels_of_this_charm(name: str, title: str, parts: list[str]) -> None:
    """Every other panel that the documentation promises is there and reads the field that it is about."""
    text = "\n".join(target["expr"] for target in panel_of(name, title)["targets"])

    assert [part for part in parts if part not in text] == []


def test_every_number_is_shown() -> None:
    """Whatever number an event has beside its time is read by a panel: nothing is recorded for nobody."""
    pipelines = [pipeline for _, _, _, target in targets() for pipeline in read(target["expr"]).pipelines]
    shown = {(item.event, item.unwrapped) for item in pipelines}
    shown |= {(item.event, name) for item in pipelines for name, _, _ in item.filters}
    recorded = {(event, name) for event, fields in EVENTS.items() for name, number in fields.items() if number} - {
        (event, "timestamp") for event in EVENTS
    }

    assert recorded - shown == set()


LAST_OF_RUNNERS = re.compile(r'event="reconciliation"[^\[]*unwrap \w+_runners \[[^\]]*\]\) by \(([^)]*)\)')


def test_numbers_of_flavors_are_not_mixed() -> None:
    """A reconcile writes one event for each flavor: without the flavor, the last value would be that of any of them."""
    groups = [match[1].split(", ") for text in expressions().values() for match in LAST_OF_RUNNERS.finditer(text)]

    assert len(groups) >= 10
    assert [group for group in groups if "flavor_name" not in group] == []


def test_the_flavor_of_runners_limits_their_panels() -> None:
    """The text box limits every event that has a flavor; those of whole units have none."""
    for where, _, _, target in targets():
        for pipeline in read(target["expr"]).pipelines:
            limited = ("flavor_name", "=~", "$flavor_name") in pipeline.filters
            assert limited is ("flavor_name" in EVENTS[pipeline.event]), where
