"""The cos-agent relation: what the collector finds in the unit's databag, and when it is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cosl import DashboardPath40UID, LZMABase64
from ops import testing

import cos_agent
from tests.support.cos import MODEL, context, document, shipped_rules, written

pytestmark = pytest.mark.usefixtures("quick_yaml")

LOG = '{filename="/var/log/github-runner-metrics.log"}'


def test_document_has_the_collectors_keys() -> None:
    """The document has the keys of the wire format in the types of the wire format."""
    found = document()

    assert {key: type(value) for key, value in found.items()} == {
        "metrics_alert_rules": dict,
        "log_alert_rules": dict,
        "dashboards": list,
        "metrics_scrape_jobs": list,
        "log_slots": list,
        "subordinate": type(None),
        "tracing_protocols": type(None),
    }
    assert set(found["log_alert_rules"]) == {"groups"}


@pytest.mark.parametrize("event", ["relation_joined", "relation_changed", "config_changed", "upgrade_charm"])
def test_when_it_is_written(event: str) -> None:
    """The document is written on joined and changed, with another port, and on upgrade with perhaps other rules."""
    relation = testing.Relation("cos-agent", local_unit_data={"config": "{}"})

    assert json.loads(written(event, relation)["config"]) == document()


@pytest.mark.parametrize("leader", [True, False])
def test_every_unit_writes_its_own(leader: bool) -> None:
    """The databag is the unit's, so that leadership does not matter."""
    assert "config" in written("relation_joined", testing.Relation("cos-agent"), leader=leader)


def test_every_collector_gets_it() -> None:
    """With several collectors each finds the document."""
    ctx = context()
    relations = [testing.Relation("cos-agent"), testing.Relation("cos-agent")]
    out = ctx.run(ctx.on.upgrade_charm(), testing.State(relations=relations))

    assert all("config" in dict(out.get_relation(relation.id).local_unit_data) for relation in relations)


def test_nothing_is_written_without_a_relation() -> None:
    """An upgrade without a collector is no error."""
    ctx = context()

    ctx.run(ctx.on.upgrade_charm(), testing.State())


@pytest.mark.parametrize(("content", "writes"), [(None, 0), ("{}", 1)], ids=["the same", "another"])
def test_same_content_is_not_written_again(content: str | None, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write wakes every collector, so that the same content is not written again."""
    there = content or written("relation_joined", testing.Relation("cos-agent"))["config"]
    relation = testing.Relation("cos-agent", local_unit_data={"config": there})
    ctx = context()
    calls: list[dict[str, str]] = []
    with ctx(ctx.on.upgrade_charm(), testing.State(relations=[relation], model=MODEL)) as manager:
        # What Juju is told: a state that ends the same does not show it.
        backend = manager.charm.model._backend
        monkeypatch.setattr(backend, "relation_set", lambda *_, data, **__: calls.append(data))
        manager.run()

    assert len(calls) == writes


def test_content_is_the_same_each_time() -> None:
    """What did not change reads the same, so that it is not written again."""
    ctx = context()
    out = ctx.run(
        ctx.on.relation_joined(relation := testing.Relation("cos-agent")), testing.State(relations=[relation])
    )
    again = ctx.run(ctx.on.upgrade_charm(), out)

    first, second = (found.get_relation(relation.id).local_unit_data for found in (out, again))
    assert dict(second) == dict(first)


def wire_rules(application: str = "big-runners") -> list[dict[str, Any]]:
    """The alert rules in the databag of a unit."""
    return [rule for group in document(application)["log_alert_rules"]["groups"] for rule in group["rules"]]


def test_rules_have_no_label_of_juju() -> None:
    """No rule has a label of Juju: the collectors would add it to the expression, and no line has it."""
    rules = wire_rules()

    assert len(rules) == len(shipped_rules())
    assert [rule["labels"] for rule in rules if set(rule["labels"]) != {"severity"}] == []
    assert [rule["alert"] for rule in rules if "juju_" in rule["expr"]] == []


def test_rules_read_the_events_of_their_application() -> None:
    """Every selector of a rule is limited to the flavor of the application, and the rest is as it is shipped."""
    shipped = {rule["alert"]: rule for rule in shipped_rules()}

    for rule in wire_rules("other-runners"):
        narrowed = f'{LOG} | json | flavor="other-runners" | event='
        assert rule["expr"].count(narrowed) == rule["expr"].count("{filename") > 0, rule["alert"]
        assert rule["expr"].replace('| flavor="other-runners" ', "") == shipped[rule["alert"]]["expr"]
        assert rule | {"expr": ""} == shipped[rule["alert"]] | {"expr": ""}


def test_groups_of_applications_have_different_names() -> None:
    """The groups of two applications have different names: Loki refuses two groups of one name in a file."""
    names = [
        group["name"]
        for application in ("big-runners", "small-runners")
        for group in document(application)["log_alert_rules"]["groups"]
    ]

    assert len(set(names)) == len(names) == 6


def test_rules_read_the_metrics_log() -> None:
    """All rules read the metrics log as JSON lines."""
    assert {path.stem for path in cos_agent.ALERT_RULES.glob("*.yaml")} == {"capacity", "failure", "health"}
    for rule in shipped_rules():
        assert rule["expr"].count(f"{LOG} | json | event=") == rule["expr"].count("{") > 0, rule["alert"]


@pytest.mark.parametrize(
    ("name", "wait", "parts"),
    [
        ("Job Queue duration too high", "1h", ("quantile_over_time(0.5", "queue_duration [1h]", "by (flavor) > 1800")),
        ("No idle runners", "2h", ("sum by (flavor)", "last_over_time", "idle_runners [1h]", "== 0")),
        ("Short idle time", "2h", ("avg_over_time", "unwrap idle [1h]", "by (flavor) < 300")),
        ("Crashed runner", "0s", ("sum_over_time", "unwrap crashed_runners [1h]", "unit)", "> 0")),
        ("Repo-policy check failures", "3h", ("code >= 400", "code < 500 [10m]", "> 0.5")),
        ("Repo-policy server error", "0s", ("unit, repo, http_code", "code >= 500", "[1h]", "> 0")),
    ],
)
def test_rules_of_the_previous_charm(name: str, wait: str, parts: tuple[str, ...]) -> None:
    """The six rules of the previous charm keep their name, severity, duration, window and limit."""
    [rule] = [rule for rule in wire_rules() if rule["alert"] == name]

    assert (rule["for"], rule["labels"]) == (wait, {"severity": "high"})
    assert [part for part in parts if part not in rule["expr"]] == []


def test_rules_of_this_charm() -> None:
    """The other rules have a prefix, so that they cannot be taken for rules of another charm."""
    others = [rule for rule in shipped_rules() if rule["labels"]["severity"] != "high"]

    assert len(others) == len(shipped_rules()) - 6
    assert all(rule["alert"].startswith("GithubRunner") for rule in others)
    assert {rule["labels"]["severity"] for rule in others} == {"warning"}


@pytest.fixture
def one_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A charm folder whose one dashboard has a tag already."""
    folder = tmp_path / "src/grafana_dashboards"
    folder.mkdir(parents=True)
    dashboard = {"title": "Ünïcode", "tags": ["ci", "charm: github-runner"], "panels": [{"id": 1}]}
    (folder / "metrics.json").write_text(json.dumps(dashboard))
    (folder / "README.md").write_text("no dashboard")
    monkeypatch.setattr(cos_agent, "HERE", tmp_path / "src")
    monkeypatch.setattr(cos_agent, "DASHBOARDS", folder)
    return dashboard


def test_dashboard_on_the_wire(one_dashboard: dict[str, Any]) -> None:
    """A dashboard travels compressed, whole, with a uid of charm name and path and the charm's tag once."""
    [text] = document()["dashboards"]
    found = json.loads(LZMABase64.decompress(text))

    assert "uid" not in one_dashboard
    assert found == {
        **one_dashboard,
        "uid": DashboardPath40UID.generate("github-runner", "src/grafana_dashboards/metrics.json"),
        "tags": ["ci", "charm: github-runner"],
    }


def test_uids_of_dashboards() -> None:
    """The long-term dashboard keeps its uid, because links have it; the other ones have a generated uid."""
    found = {
        item["title"]: item["uid"] for item in map(json.loads, map(LZMABase64.decompress, document()["dashboards"]))
    }

    assert found == {
        "GitHub Self-Hosted Runner Metrics": DashboardPath40UID.generate(
            "github-runner", "src/grafana_dashboards/github_runner_metrics.json"
        ),
        "GitHub Self-Hosted Runner Metrics (Long-Term)": "5da1c1eea77432e7",
        "GitHub Self-Hosted Runner Metrics (Prometheus)": DashboardPath40UID.generate(
            "github-runner", "src/grafana_dashboards/github_runner_prometheus.json"
        ),
    }


def test_dashboards_that_the_charm_ships() -> None:
    """Every shipped dashboard travels with a uid of its own and the charm's tag."""
    found = [json.loads(LZMABase64.decompress(text)) for text in document()["dashboards"]]

    assert len(found) == len(list(cos_agent.DASHBOARDS.glob("*.json")))
    assert len({dashboard["uid"] for dashboard in found}) == len(found)
    assert all("charm: github-runner" in dashboard["tags"] for dashboard in found)
    assert {dashboard["title"] for dashboard in found} <= {
        "GitHub Self-Hosted Runner Metrics",
        "GitHub Self-Hosted Runner Metrics (Long-Term)",
        "GitHub Self-Hosted Runner Metrics (Prometheus)",
    }


def metrics_of(port: int) -> tuple[Any, Any]:
    """What the document has to scrape, and the alert rules of it."""
    found = document(config={"metrics-port": port})
    return found["metrics_scrape_jobs"], found["metrics_alert_rules"]


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_without_a_port_nothing_is_scraped(port: int) -> None:
    """A rule about missing metrics would fire for a unit that serves none on purpose; a bad port is the same."""
    assert metrics_of(port) == ([], {})


def test_the_collector_scrapes_the_port() -> None:
    """The job is in Prometheus' own form, with the loopback that the collector shares with the unit."""
    jobs, _ = metrics_of(9500)

    assert jobs == [
        {
            "job_name": "big-runners_github-runner-metrics",
            "metrics_path": "/metrics",
            "static_configs": [{"targets": ["localhost:9500"]}],
        }
    ]


def test_rules_of_the_metrics_are_of_their_application() -> None:
    """Series of a scrape have the labels of the unit's application, so that rules with them fire for no other one."""
    rules = [rule for group in metrics_of(9464)[1]["groups"] for rule in group["rules"]]
    shipped = [
        rule
        for path in cos_agent.METRICS_RULES.glob("*.yaml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]

    assert [rule["alert"] for rule in rules] == [rule["alert"] for rule in shipped]
    assert all(rule["labels"]["juju_application"] == "big-runners" for rule in rules)
    assert not any("juju_unit" in rule["labels"] for rule in rules)
    assert [rule["expr"] for rule in rules] == [rule["expr"] for rule in shipped]
