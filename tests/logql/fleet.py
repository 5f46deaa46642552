"""Units that write the charm's own events, and what of them reaches Loki."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import metrics.events
from metrics.events import (
    CodeInformation,
    Event,
    Reconciliation,
    RunnerInstalled,
    RunnerStart,
    RunnerStop,
    UnitHealth,
    issue_event,
    written_by,
)
from tests.logql.collectors import Collector
from tests.logql.loki import Line

START = 1_718_000_000
HOUR, MINUTE = 3600, 60
HOURS = 8
END = START + HOURS * HOUR
# The machine of each unit, and when its reconciles begin.
UNITS = {"big-runners/0": 0, "big-runners/1": 1, "small-runners/0": 2}
COLLECTORS = [Collector("opentelemetry-collector"), Collector("grafana-agent")]
# What a healthy unit tells in every reconcile.
HEALTHY: dict[str, Any] = {
    "queue_duration": 20,
    "idle": 1200,
    "crashed_runners": 0,
    "idle_runners": 2,
    "active_runners": 1,
    "expected_runners": 3,
    "expected_idle_runners": 3,
    "failed_creations": 0,
    "failed_starts": None,
    "image_age": 2 * HOUR,
    "api_quota_left": 4000,
    "repo": "my-org/app",
    "code": None,
    "jobs": True,
    "silent": False,
}


@dataclass(frozen=True)
class Change:
    """What is different on some units for some time, in hours after the start; no unit means all."""

    units: str
    begin: float
    end: float
    values: dict[str, Any]

    def applies(self, unit: str, time: float) -> bool:
        """Whether the change is about this unit at this moment."""
        return unit.startswith(self.units) and START + self.begin * HOUR <= time < START + self.end * HOUR


@dataclass
class Fleet:
    """The logs of all units in one file, with the moment and the unit of each line."""

    path: Path
    written: list[tuple[float, str]] = field(default_factory=list)
    flavor_names: tuple[str | None, ...] = (None,)
    """The flavours of each unit's runners; None is an event without one, as earlier versions wrote."""

    def run(self, changes: Iterable[Change] = (), named: bool = True) -> None:
        """Every unit reconciles every ten minutes; ``named`` is whether its events name it."""
        for unit, machine in UNITS.items():
            with pytest.MonkeyPatch.context() as patch, written_by(unit) if named else nullcontext():
                patch.setattr(metrics.events, "METRICS_LOG_PATH", self.path)
                for time in range(START + (machine + 1) * MINUTE, END, 10 * MINUTE):
                    self._reconcile(unit, time, changes)

    def _reconcile(self, unit: str, time: float, changes: Iterable[Change]) -> None:
        values = dict(HEALTHY)
        for change in changes:
            if change.applies(unit, time):
                values |= change.values
        for event in [] if values["silent"] else _events(unit.split("/")[0], time, values, self.flavor_names):
            issue_event(event)
            self.written.append((time, unit))

    def lines(self, collector: Collector) -> list[Line]:
        """The lines as a collector ships them."""
        texts = self.path.read_text().splitlines()
        return [
            Line(time, collector.stream(UNITS[unit]), text)
            for (time, unit), text in zip(self.written, texts, strict=True)
        ]


def _events(flavor: str, time: float, values: dict[str, Any], names: Iterable[str | None]) -> list[Event]:
    def some(*names: str) -> dict[str, Any]:
        return {name: values[name] for name in names}

    job = {"timestamp": time - 60, "workflow": "w", "github_event": "push", "repo": values["repo"], "flavor": flavor}
    code = values["code"]
    jobs: list[Event] = [
        RunnerStart(**job, **some("idle", "queue_duration")),
        RunnerStop(
            **job,
            status="normal" if code is None else "repo-policy-check-failure",
            status_info=None if code is None else CodeInformation(code=code),
            job_duration=300 if code is None else 1,
            job_conclusion="success" if code is None else "failure",
        ),
    ]
    health = some("failed_creations", "failed_starts", "image_age", "api_quota_left")
    counts = some("crashed_runners", "idle_runners", "active_runners", "expected_runners", "expected_idle_runners")
    return [
        *(jobs if values["jobs"] else []),
        RunnerInstalled(timestamp=time, flavor=flavor, duration=50),
        UnitHealth(
            timestamp=time, flavor=flavor, wanted_runners=values["expected_runners"], application_age=60, **health
        ),
        *(Reconciliation(timestamp=time, flavor=flavor, flavor_name=name, duration=60, **counts) for name in names),
    ]
