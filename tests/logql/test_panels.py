"""What the panels of the dashboards show of a log, through each collector, evaluated as Loki does."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.logql.collectors import Collector
from tests.logql.fleet import COLLECTORS, END, HOUR, UNITS, Change, Fleet
from tests.logql.grammar import Grammar
from tests.logql.loki import Loki
from tests.support.dashboards import LONG, SHORT, dashboard, panel_of, panels

# The values of the variables when the dashboard is opened.
OPENED = {
    **dict.fromkeys(("juju_model", "juju_model_uuid", "juju_application", "juju_unit"), ".*"),
    **dict.fromkeys(("repository", "flavor", "flavor_name", "unit"), ".*"),
}
VARIABLE = re.compile(r"\$\{(__\w+):date:seconds\}|\$(\w+)")
SILENT = "small-runners/0"
RECONCILES = {"big-runners": 96, "small-runners": 36}

Shown = dict[str, float]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Three units, of which one is silent for the last two hours and one had crashes and refused jobs."""
    found = Fleet(tmp_path_factory.mktemp("panels") / "metrics.log")
    found.run(
        [
            Change(SILENT, 6, 8, {"silent": True}),
            Change("big-runners/1", 7, 7.5, {"crashed_runners": 1, "repo": "my-org/lib", "code": 403}),
            Change("big-runners/1", 7.5, 8, {"repo": "my-org/lib", "queue_duration": 300, "failed_creations": 2}),
        ]
    )
    return found


@pytest.fixture(scope="module", params=COLLECTORS, ids=lambda item: item.application)
def loki(grammar: Grammar, fleet: Fleet, request: pytest.FixtureRequest) -> Loki:
    return Loki(grammar, fleet.lines(request.param))


def filled_in(panel: dict[str, Any], chosen: dict[str, str]) -> list[tuple[str, str]]:
    """The expressions of a panel as Loki gets them, with their legends."""
    values = {**OPENED, "__interval": "30m", "__range": "8h", "__to": str(END), **chosen}
    return [
        (VARIABLE.sub(lambda match: values[match[1] or match[2]], target["expr"]), target["legendFormat"])
        for target in panel["targets"]
    ]


def shown(loki: Loki, panel: dict[str, Any], **chosen: str) -> Shown:
    """The last value of each series of a panel that is opened at the end of the log, by its legend."""
    found: Shown = {}
    for expression, name in filled_in(panel, chosen):
        result = loki.at(expression, END)
        assert isinstance(result, dict), panel["title"]
        for labels, value in result.items():
            legend = name
            for label in re.findall(r"\{\{(\w+)\}\}", name):
                legend = legend.replace(f"{{{{{label}}}}}", dict(labels).get(label, ""))
            assert legend not in found, f"two series of {panel['title']} are called {legend}"
            found[legend] = value
    return found


def all_shown(loki: Loki, name: str, **chosen: str) -> dict[str, Shown]:
    """What every panel of a dashboard shows, by its title."""
    loki.grammar.load(expression for panel in panels(name) for expression, _ in filled_in(panel, chosen))
    return {panel["title"]: shown(loki, panel, **chosen) for panel in panels(name)}


@pytest.mark.parametrize("name", [SHORT, LONG])
def test_no_panel_is_empty(loki: Loki, name: str) -> None:
    """A dashboard that is opened has a value in every panel, whichever labels the collector gives to streams."""
    empty = ["Repo Policy Check Failures"]
    found = all_shown(loki, name)

    assert [title for title, values in found.items() if not values and title not in empty] == []
    # Nothing was refused in the last interval; in the last hour something was.
    assert name == LONG or shown(loki, panel_of(name, empty[0]), __interval="2h") == {"403": 3}


@pytest.mark.parametrize(
    ("title", "values"),
    [
        ("Wanted runners", {"": 6}),
        ("Available runners (total)", {"": 4}),
        ("Available Runners", {"big-runners": 4}),
        ("Oldest last reconciliation", {"": 2 * HOUR + 420}),
        ("Age of the last reconciliation", {"big-runners/0": 540, "big-runners/1": 480, SILENT: 2 * HOUR + 420}),
        ("Failed creations", {"": 6}),
        ("Crashed runners", {"": 3}),
        ("Lifecycle Status", {"Started": 6, "Initialized": 6, "Stopped": 6, "Crashed": 0}),
        ("Idle Runners after Reconciliation", {"Idle": 4, "Active": 2, "Expected": 6}),
        ("Idle and wanted runners by flavor", {"big-runners idle": 4, "big-runners wanted": 6}),
        ("Job Queue Duration (Percentile)", {"50%": 20, "95%": 300, "99%": 300, "Max": 300}),
        ("Runner Installation Duration (Percentile)", {"50%": 50, "95%": 50, "99%": 50, "Max": 50}),
        ("Runner Idle Duration (Percentile)", {"50%": 1200, "95%": 1200, "99%": 1200, "Max": 1200}),
        ("Reconciliation Duration (Percentile)", {"50%": 60, "95%": 60, "99%": 60, "Max": 60}),
        ("Job Duration (Percentile)", {"50%": 300, "95%": 300, "99%": 300, "Max": 300}),
        ("Completion Status", {"normal": 6}),
        ("Job Conclusion", {"success": 6}),
        ("Application proportion", RECONCILES),
        ("GitHub Event", {"push": 6}),
        ("Repositories", {"my-org/app": sum(RECONCILES.values()) - 6, "my-org/lib": 6}),
        ("Refused (4xx)", {"": 3}),
        ("Policy refusals by repository", {"my-org/lib": 3}),
        ("Failed creations per unit", {"big-runners/0": 0, "big-runners/1": 6}),
        ("Image age", {"big-runners/0": 2 * HOUR, "big-runners/1": 2 * HOUR}),
        ("Lowest API quota left", {"": 4000}),
    ],
)
def test_values(loki: Loki, title: str, values: Shown) -> None:
    """Panels add up over units and tell them apart by the field unit; a silent unit is visible."""
    assert shown(loki, panel_of(SHORT, title)) == pytest.approx(values)


@pytest.mark.parametrize(
    ("title", "values"),
    [
        ("Total Jobs", {"": sum(RECONCILES.values())}),
        ("Total Repositories", {"": 2}),
        ("Runners created per Application", RECONCILES),
        ("Jobs per Day", RECONCILES),
        ("Jobs with Queue Time Less Than 60 Seconds (Percentage)", {"": 129 / 132}),
        ("Time spent on jobs per day", {"big-runners": 93 * 300 + 3, "small-runners": 36 * 300}),
        (
            "Idle and wanted runners per day",
            {
                f"{app} {what}": number
                for app, units in (("big-runners", 2), ("small-runners", 1))
                for what, number in (("idle", 2 * units), ("wanted", 3 * units))
            },
        ),
        ("Jobs by repository", {"my-org/app": 126, "my-org/lib": 6}),
    ],
)
def test_long_term_values(loki: Loki, title: str, values: Shown) -> None:
    """The panels of the long-term dashboard count over the range and over days."""
    assert shown(loki, panel_of(LONG, title)) == pytest.approx(values)


@pytest.mark.parametrize("name", [SHORT, LONG])
@pytest.mark.parametrize("chosen", [{"flavor": "small-runners"}, {"unit": "small-runners/.*"}, {"unit": SILENT}])
def test_flavor_and_unit_limit_every_panel(loki: Loki, name: str, chosen: dict[str, str]) -> None:
    """The text boxes flavor and unit limit every panel to the events of applications and units."""
    for title, values in all_shown(loki, name, **chosen).items():
        assert not [legend for legend in values if "big-runners" in legend], title
    for title, values in all_shown(loki, name, **dict.fromkeys(chosen, "no-such")).items():
        assert not any(values.values()), title


def test_repository_limits_the_panels_of_jobs(loki: Loki) -> None:
    """The text box repository limits the panels about jobs, and no other."""
    every = all_shown(loki, SHORT, __interval="8h")
    one = all_shown(loki, SHORT, __interval="8h", repository="my-org/lib")

    assert {title for title, values in one.items() if values != every[title]} == {
        *("Completion Status", "Job Conclusion", "Application proportion", "GitHub Event", "GitHub events (total)"),
        "Repositories",
    }
    assert one["Application proportion"] == {"big-runners": 6}
    assert one["Completion Status"] == {"normal": 3, "repo-policy-check-failure": 3}


def test_unit_of_the_collector_limits_the_panels(grammar: Grammar, fleet: Fleet) -> None:
    """With grafana-agent the variable juju_unit chooses the machine of a unit of the collector."""
    loki = Loki(grammar, fleet.lines(Collector("grafana-agent")))
    panel = panel_of(SHORT, "Age of the last reconciliation")

    for unit, machine in UNITS.items():
        assert list(shown(loki, panel, juju_unit=f"grafana-agent/{machine}")) == [unit]


@pytest.mark.parametrize("name", [SHORT, LONG])
def test_opened_values_are_those_of_the_variables(name: str) -> None:
    """The values with which these tests open a dashboard are the ones of its variables."""
    variables = [item for item in dashboard(name)["templating"]["list"] if item["type"] != "datasource"]

    assert {item["name"] for item in variables} | {"repository"} == set(OPENED)
    assert {item.get("allValue", item["query"]) for item in variables} == {".*"}


@pytest.mark.parametrize(
    ("chosen", "total", "each"),
    [({}, 12, {"big": 4, "small": 4}), ({"flavor_name": "small"}, 6, {"small": 4})],
    ids=["all", "one"],
)
def test_flavors_of_runners_are_added_up_and_told_apart(
    grammar: Grammar, tmp_path: Path, chosen: dict[str, str], total: int, each: dict[str, int]
) -> None:
    """Each reconcile writes an event for each flavor; totals have all of them, and one panel has each."""
    fleet = Fleet(tmp_path / "metrics.log", flavor_names=("big", "small"))
    fleet.run()
    loki = Loki(grammar, fleet.lines(COLLECTORS[0]))

    assert shown(loki, panel_of(SHORT, "Available runners (total)"), **chosen) == {"": total}
    found = shown(loki, panel_of(SHORT, "Runners by flavor of runners"), **chosen)
    assert {name: found[f"big-runners {name} idle"] for name in each} == each
    assert len(found) == 2 * 4 * len(each)
