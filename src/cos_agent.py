"""The cos-agent relation: what to scrape, alert rules and dashboards for the observability stack."""

import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import ops

HERE = Path(__file__).resolve().parent
ALERT_RULES = HERE / "loki_alert_rules"
METRICS_RULES = HERE / "prometheus_alert_rules"
DASHBOARDS = HERE / "grafana_dashboards"
KEY = "config"
# What the alert rule GithubRunnerMetricsMissing selects the series `up` by; the collector has other jobs, too.
JOB = "github-runner-metrics"


class CosAgentProvider(ops.Object):
    """Writes what the collector expects into the unit's databag."""

    def __init__(self, charm: ops.CharmBase, relation_name: str) -> None:
        super().__init__(charm, relation_name)
        self._charm = charm
        self._relation_name = relation_name
        events = charm.on[relation_name]
        for event in (events.relation_joined, events.relation_changed, charm.on.config_changed, charm.on.upgrade_charm):
            self.framework.observe(event, self._on_change)

    def _on_change(self, _: ops.EventBase) -> None:
        relations = self._charm.model.relations[self._relation_name]
        if not relations:
            return
        content = databag(self._charm)
        for relation in relations:
            data = relation.data[self._charm.unit]
            # Written only when it changed: a write wakes every collector.
            if data.get(KEY) != content:
                data[KEY] = content


@cache
def _cosl() -> ModuleType:
    """The module cosl. Its import takes 0.1 s of a processor, and only hooks that write the databag use it."""
    import cosl

    return cosl


def databag(charm: ops.CharmBase) -> str:
    """The JSON document of the unit's databag."""
    port = int(charm.config.get("metrics-port", 0))
    # The unit is blocked with a port that cannot be.
    port = port if 0 < port < 1 << 16 else 0
    document: dict[str, Any] = {
        "metrics_alert_rules": _metrics_rules(charm) if port else {},
        "log_alert_rules": _alert_rules(charm),
        "dashboards": [_dashboard(path, charm.meta.name) for path in sorted(DASHBOARDS.glob("*.json"))],
        "metrics_scrape_jobs": [_scrape_job(charm, port)] if port else [],
        "log_slots": [],
        "subordinate": None,
        "tracing_protocols": None,
    }
    return json.dumps(document, sort_keys=True)


def _scrape_job(charm: ops.CharmBase, port: int) -> dict[str, Any]:
    """The collector is on the same machine, and adds the Juju labels of this unit."""
    targets = [{"targets": [f"localhost:{port}"]}]
    return {"job_name": f"{charm.app.name}_{JOB}", "metrics_path": "/metrics", "static_configs": targets}


def _metrics_rules(charm: ops.CharmBase) -> dict[str, Any]:
    """The alert rules of the metrics with the labels of this application, which its series have, too."""
    rules = _cosl().AlertRules(query_type="promql", topology=_cosl().JujuTopology.from_charm(charm))
    rules.add_path(METRICS_RULES)
    document: dict[str, Any] = rules.as_dict()
    return document


def _alert_rules(charm: ops.CharmBase) -> dict[str, Any]:
    """The alert rules, limited to the events of this application, without Juju's labels.

    The collector labels the lines of /var/log with its own application, and it adds the labels of a rule to the rule's
    expression. A rule with the labels of this application would therefore match no line
    (https://github.com/canonical/loki-k8s-operator/issues/647). The collector adds its own labels to rules that have
    none. The topology makes the names of the groups unique: Loki refuses two groups of one name.
    """
    rules = _cosl().AlertRules(query_type="logql", topology=_cosl().JujuTopology.from_charm(charm))
    rules.add_path(ALERT_RULES)
    document: dict[str, Any] = rules.as_dict()
    for group in document["groups"]:
        for rule in group["rules"]:
            rule["labels"] = {key: value for key, value in rule["labels"].items() if not key.startswith("juju_")}
            # Two applications on one machine or collector have the same labels there: only the event tells them apart.
            rule["expr"] = rule["expr"].replace("| json", f'| json | flavor="{charm.app.name}"')
    return document


def _dashboard(path: Path, charm_name: str) -> str:
    dashboard = json.loads(path.read_text())
    # A dashboard with a uid of its own keeps it, because links to it have it.
    dashboard.setdefault("uid", _cosl().DashboardPath40UID.generate(charm_name, str(path.relative_to(HERE.parent))))
    tag = f"charm: {charm_name}"
    dashboard["tags"] = [*(item for item in dashboard.get("tags", []) if item != tag), tag]
    compressed: str = _cosl().LZMABase64.compress(json.dumps(dashboard, sort_keys=True))
    return compressed
