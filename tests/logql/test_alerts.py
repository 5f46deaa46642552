"""Which alerts fire on which log: the charm's rules, through each collector, evaluated as Loki does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import cos_agent
from tests.logql.collectors import Collector
from tests.logql.fleet import COLLECTORS, END, HEALTHY, HOUR, START, UNITS, Change, Fleet
from tests.logql.grammar import Grammar
from tests.logql.loki import Alert, Line, Loki
from tests.support.cos import document, shipped_rules

APPLICATIONS = ["big-runners", "small-runners"]
BIG, ONE = "big-runners", "big-runners/1"
REFUSED = {"code": 403}

Rules = list[dict[str, Any]]
collectors = pytest.mark.parametrize("collector", COLLECTORS, ids=lambda item: item.application)


@dataclass(frozen=True)
class Case:
    """Changes of a healthy fleet, and the alerts that they deserve: their names and labels."""

    name: str
    changes: tuple[Change, ...]
    alerts: tuple[tuple[str, dict[str, str]], ...] = ()


def change(units: str, begin: float, end: float, **values: Any) -> Change:
    return Change(units, begin, end, values)


DESERVED = [
    Case("slow queue", (change(BIG, 2, 5, queue_duration=3600),), (("Job Queue duration too high", {"flavor": BIG}),)),
    Case(
        "no idle runner",
        (change(BIG, 2, 6, idle_runners=0, active_runners=3),),
        (("No idle runners", {"flavor": BIG}),),
    ),
    Case(
        "no idle runner, as an earlier version told",
        (change(BIG, 1, 8, idle_runners=0, active_runners=3, expected_idle_runners=None),),
        (("No idle runners", {"flavor": BIG}),),
    ),
    Case(
        "demand without the idle runners of min-idle",
        (change(BIG, 2, 6, idle_runners=0, active_runners=3, expected_idle_runners=1),),
        (("No idle runners", {"flavor": BIG}),),
    ),
    Case("short idle time", (change(BIG, 2, 6, idle=60),), (("Short idle time", {"flavor": BIG}),)),
    Case(
        "one crash",
        (change(ONE, 3, 3.1, crashed_runners=1),),
        (("Crashed runner", {"flavor": BIG, "unit": ONE}),),
    ),
    Case(
        "crashes of two units",
        (change(BIG, 3, 3.1, crashed_runners=2),),
        tuple(("Crashed runner", {"flavor": BIG, "unit": f"{BIG}/{number}"}) for number in (0, 1)),
    ),
    Case("jobs refused", (change(BIG, 2, 6, **REFUSED),), (("Repo-policy check failures", {"flavor": BIG}),)),
    Case(
        "policy service fails",
        (change(ONE, 3, 3.1, code=503, repo="my-org/lib"), change(ONE, 4, 4.1, code=500)),
        tuple(
            ("Repo-policy server error", {"flavor": BIG, "unit": ONE, "repo": repo, "http_code": code})
            for repo, code in (("my-org/lib", "503"), ("my-org/app", "500"))
        ),
    ),
    Case(
        "too few runners",
        (change(ONE, 2, 4, idle_runners=1),),
        (("GithubRunnerTooFew", {"flavor": BIG, "unit": ONE}),),
    ),
    Case(
        "creations fail",
        (change(ONE, 2, 5, failed_creations=1),),
        (("GithubRunnerCreationFails", {"flavor": BIG, "unit": ONE}),),
    ),
    Case(
        "runners end without a job",
        (change(ONE, 2, 2.5, failed_starts=2, failed_creations=1), change(ONE, 2.5, 3, failed_starts=3)),
        (("GithubRunnerEndsWithoutJob", {"flavor": BIG, "unit": ONE}),),
    ),
    Case(
        "silent unit",
        (change(ONE, 3, 6, silent=True),),
        (("GithubRunnerUnitSilent", {"flavor": BIG, "unit": ONE}),),
    ),
    Case(
        "old image",
        (change(ONE, 2, 5, image_age=80 * HOUR),),
        (("GithubRunnerImageOld", {"flavor": BIG, "unit": ONE}),),
    ),
    Case(
        "low quota",
        (change(ONE, 2, 3, api_quota_left=100),),
        (("GithubRunnerApiQuotaLow", {"flavor": BIG, "unit": ONE}),),
    ),
    Case(
        "two applications",
        (change("small-runners", 3, 3.1, crashed_runners=1), change(BIG, 2, 6, idle=60)),
        (
            ("Crashed runner", {"flavor": "small-runners", "unit": "small-runners/0"}),
            ("Short idle time", {"flavor": BIG}),
        ),
    ),
]
UNDESERVED = [
    Case("healthy", ()),
    Case("slow queue for half an hour", (change(BIG, 2, 2.5, queue_duration=3000),)),
    Case(
        "one slow job of a quiet time",
        (change(BIG, 1.5, 6, jobs=False), change("big-runners/0", 3, 3.1, jobs=True, queue_duration=7200)),
    ),
    Case("few slow jobs", (change("big-runners/0", 2, 6, queue_duration=3000),)),
    Case("jobs without a queue time", (change(BIG, 2, 6, queue_duration=None),)),
    Case("no idle runner for an hour", (change(BIG, 2, 3, idle_runners=0, active_runners=3),)),
    Case("no idle runner on one unit", (change(ONE, 1, 8, idle_runners=0, active_runners=3),)),
    Case(
        "demand at rest",
        (change(BIG, 1, 8, jobs=False, idle_runners=0, active_runners=0, expected_runners=0, expected_idle_runners=0),),
    ),
    Case(
        "demand with a runner for each job",
        (change(BIG, 1, 8, idle_runners=0, active_runners=3, expected_runners=3, expected_idle_runners=0),),
    ),
    Case("short idle time for an hour", (change(BIG, 2, 3, idle=60),)),
    Case("jobs refused for two hours", (change(BIG, 2, 4, **REFUSED),)),
    Case("half of the jobs refused", (change(ONE, 1, 8, **REFUSED),)),
    Case("policy service unreachable", (change(ONE, 3, 3.1, code=0),)),
    Case("too few runners for half an hour", (change(ONE, 2, 2.5, idle_runners=0),)),
    Case("a creation fails", (change(ONE, 2, 2.9, failed_creations=1),)),
    Case("runners end without a job twice", (change(ONE, 2, 4, failed_starts=2),)),
    Case("silent for an hour", (change(ONE, 2, 3.5, silent=True),)),
    Case(
        "old image for a moment", (change(ONE, 2, 2.1, image_age=80 * HOUR), change(ONE, 3, 3.1, image_age=80 * HOUR))
    ),
    Case("low quota for ten minutes", (change(ONE, 2, 2.1, api_quota_left=100),)),
    Case("few runners wanted", (change(BIG, 2, 6, expected_runners=1, idle_runners=1, active_runners=0),)),
]


@pytest.fixture(scope="session")
def rules(grammar: Grammar) -> dict[Collector, Rules]:
    """The rules in the databags of two applications, as each collector forwards them."""
    documents = [document(application)["log_alert_rules"] for application in APPLICATIONS]
    return {collector: collector.forward(grammar, documents) for collector in COLLECTORS}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "metrics.log")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """The units of another model, with every trouble that there is."""
    other = Fleet(tmp_path_factory.mktemp("other") / "metrics.log")
    other.run([change("", 1, 8, crashed_runners=3, code=503, idle=1, queue_duration=9999, image_age=999 * HOUR)])
    return other


def noise(other: Fleet, collector: Collector) -> list[Line]:
    """What is in the same Loki and concerns no alert of this model: another model, other logs, torn lines."""
    elsewhere = Collector(collector.application, "staging", "1d3c0f2a-0000-4000-8000-000000000000")
    own = collector.stream(UNITS[ONE])
    syslog = frozenset({**dict(own), "filename": "/var/log/syslog"}.items())
    crash = '{"event": "reconciliation", "flavor": "big-runners", "unit": "big-runners/1", "crashed_runners": 5}'
    return [*other.lines(elsewhere), Line(START + 3 * HOUR, syslog, crash), Line(START + 3 * HOUR, own, crash[:60])]


def fired(grammar: Grammar, lines: list[Line], rules: Rules) -> set[Alert]:
    """Every alert that fires during the hours of the log."""
    loki = Loki(grammar, lines)
    return {alert for rule in rules for alert in loki.alerts(rule, START + HOUR, END)}


def told(alerts: set[Alert]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Names and labels, without what is the same for all."""
    hidden = ("juju_", "severity")
    return sorted(
        (item.name, sorted(pair for pair in item.labels if not pair[0].startswith(hidden))) for item in alerts
    )


@collectors
@pytest.mark.parametrize("case", DESERVED + UNDESERVED, ids=lambda case: case.name.replace(" ", "-"))
def test_alerts_fire_where_they_are_deserved(
    grammar: Grammar, fleet: Fleet, other_model: Fleet, rules: dict[Collector, Rules], collector: Collector, case: Case
) -> None:
    """Each log fires exactly the alerts that it deserves, with the labels that name the culprit, and no other."""
    fleet.run(case.changes)

    alerts = fired(grammar, fleet.lines(collector) + noise(other_model, collector), rules[collector])

    assert told(alerts) == sorted((name, sorted(labels.items())) for name, labels in case.alerts)
    for alert in alerts:
        assert alert["juju_application"] == collector.application
        assert "{{" not in alert.text


def test_every_alert_is_deserved_once() -> None:
    """For every rule there is a log on which it fires."""
    assert {name for case in DESERVED for name, _ in case.alerts} == {rule["alert"] for rule in shipped_rules()}


@collectors
def test_texts_name_the_culprit(
    grammar: Grammar, fleet: Fleet, rules: dict[Collector, Rules], collector: Collector
) -> None:
    """A crash names the unit; an error of the policy service names unit, repository and code."""
    fleet.run([change(ONE, 3, 3.1, crashed_runners=1, code=502)])

    texts = {alert.name: alert.text for alert in fired(grammar, fleet.lines(collector), rules[collector])}

    assert ONE in texts["Crashed runner"]
    assert [word for word in (ONE, "my-org/app", "502") if word not in texts["Repo-policy server error"]] == []


@collectors
def test_events_without_a_unit_alert_too(
    grammar: Grammar, fleet: Fleet, rules: dict[Collector, Rules], collector: Collector
) -> None:
    """Events of an older revision have no unit, and their alerts fire without it."""
    fleet.run([change(ONE, 3, 3.1, crashed_runners=1)], named=False)

    assert told(fired(grammar, fleet.lines(collector), rules[collector])) == [("Crashed runner", [("flavor", BIG)])]


@collectors
def test_rules_with_labels_of_juju_never_fire(grammar: Grammar, fleet: Fleet, collector: Collector) -> None:
    """The simulated collectors are as strict as the real ones: a rule with the application's own labels is dead."""
    fleet.run([change(ONE, 3, 3.1, crashed_runners=1)])
    shipped = document()["log_alert_rules"]
    for group in shipped["groups"]:
        for rule in group["rules"]:
            rule["labels"]["juju_application"] = BIG

    assert fired(grammar, fleet.lines(collector), collector.forward(grammar, [shipped])) == set()


def test_rules_of_one_application_ignore_the_other(grammar: Grammar, fleet: Fleet) -> None:
    """Where only one application is related to the collector, the troubles of the other fire nothing."""
    fleet.run([change("small-runners", 1, 8, crashed_runners=1, idle=1, code=503)])
    rules = COLLECTORS[0].forward(grammar, [document(BIG)["log_alert_rules"]])

    assert fired(grammar, fleet.lines(COLLECTORS[0]), rules) == set()


def test_shipped_rules_are_whole_without_the_charm(grammar: Grammar, fleet: Fleet) -> None:
    """The rule files themselves, loaded into a Loki by hand, fire for all applications."""
    fleet.run([change("", 3, 3.1, crashed_runners=1)])
    loki = Loki(grammar, fleet.lines(COLLECTORS[0]))
    files = [yaml.safe_load(path.read_text()) for path in sorted(cos_agent.ALERT_RULES.glob("*.yaml"))]
    rules = [rule for file in files for group in file["groups"] for rule in group["rules"]]

    alerts = {alert for rule in rules for alert in loki.alerts(rule, START + HOUR, END)}

    assert [labels for _, labels in told(alerts)] == [
        [("flavor", unit.split("/")[0]), ("unit", unit)] for unit in UNITS
    ]


def test_healthy_values_are_those_of_the_events() -> None:
    """The simulated units write the values that the cases change."""
    used = {name for case in DESERVED + UNDESERVED for item in case.changes for name in item.values}

    assert used <= set(HEALTHY)
