"""What the charm writes into the databag of the cos-agent relation."""

import json
from typing import Any

import ops
import yaml
from ops import testing

import cos_agent
from cos_agent import CosAgentProvider
from tests.support.charm import CONFIG, META

MODEL = testing.Model("ci", uuid="8b4d2ee5-3a4c-4b2f-9d3e-1f2a3b4c5d6e")


class CollectedCharm(ops.CharmBase):
    """A charm with the provider and nothing else."""

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        self.provider = CosAgentProvider(self, "cos-agent")


def context(application: str = "big-runners") -> "testing.Context[CollectedCharm]":
    return testing.Context(CollectedCharm, meta=META, config=CONFIG, app_name=application, unit_id=3)


def written(event: str, relation: testing.Relation, application: str = "big-runners", **state: Any) -> dict[str, str]:
    """The unit's databag after an event."""
    ctx = context(application)
    maker = getattr(ctx.on, event)
    fired = maker() if event in ("upgrade_charm", "config_changed") else maker(relation)
    out = ctx.run(fired, testing.State(relations=[relation], model=MODEL, **state))
    return dict(out.get_relation(relation.id).local_unit_data)


def document(application: str = "big-runners", **state: Any) -> dict[str, Any]:
    """The document that a unit of an application writes."""
    text = written("relation_joined", testing.Relation("cos-agent"), application, **state)["config"]
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def shipped_rules() -> list[dict[str, Any]]:
    groups = [
        group for path in cos_agent.ALERT_RULES.glob("*.yaml") for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]
