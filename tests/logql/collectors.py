"""What the collectors and Loki do with a unit's log and with the alert rules of its databag.

From the sources of canonical/opentelemetry-collector-operator, canonical/grafana-agent-operator, canonical/cos-lib and
canonical/loki-k8s-operator: both collectors ship /var/log with the topology of their own, and both they and Loki add
the labels juju_model, juju_model_uuid and juju_application of a rule to every selector of its expression.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.logql.grammar import Grammar
from tests.logql.loki import Labels

LOG = "/var/log/github-runner-metrics.log"
IN_EXPRESSIONS = ("juju_model", "juju_model_uuid", "juju_application")


@dataclass(frozen=True)
class Collector:
    """An application that collects logs, in a model."""

    application: str
    model: str = "ci"
    uuid: str = "8b4d2ee5-3a4c-4b2f-9d3e-1f2a3b4c5d6e"

    @property
    def topology(self) -> dict[str, str]:
        """The labels that the collector gives to rules that have none."""
        return {
            "juju_model": self.model,
            "juju_model_uuid": self.uuid,
            "juju_application": self.application,
            "juju_charm": self.application,
        }

    def stream(self, machine: int) -> Labels:
        """The labels of the metrics log of a machine."""
        own = {"filename": LOG, "instance": f"juju-{self.uuid[-6:]}-{machine}", **self.topology}
        if self.application == "opentelemetry-collector":
            # Several units of the collector on a machine share one process, so that there is no juju_unit.
            own |= {"job": "opentelemetry-collector-var-log", "path": "/var/log"}
        else:
            own |= {"job": "varlog", "juju_unit": f"{self.application}/{machine}"}
        return frozenset(own.items())

    def forward(self, grammar: Grammar, documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rules that Loki evaluates, out of the ``log_alert_rules`` of several applications."""
        groups = [group for document in documents for group in copy.deepcopy(document["groups"])]
        names = [group["name"] for group in groups]
        assert len(set(names)) == len(names), "Loki refuses two groups of one name"
        rules = [rule for group in groups for rule in group["rules"]]
        for rule in rules:
            rule["labels"] = {**self.topology, **rule["labels"]}
        # Once by the collector, once by Loki.
        for _ in range(2):
            grammar.load(rule["expr"] for rule in rules)
            for rule in rules:
                rule["expr"] = inject(grammar, rule["expr"], rule["labels"])
        grammar.load(rule["expr"] for rule in rules)
        return rules


def inject(grammar: Grammar, expression: str, labels: dict[str, str]) -> str:
    """The expression with the topology of a rule's labels in each of its selectors."""
    matchers = "".join(f'{name}="{labels[name]}", ' for name in IN_EXPRESSIONS if name in labels)
    starts = [node.start for node in grammar.tree(expression).walk() if node.name == "Selector"]
    for start in reversed(starts):
        expression = f"{expression[:start]}{{{matchers}{expression[start + 1 :]}"
    return expression
