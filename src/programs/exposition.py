"""The unit's Prometheus metrics, served on the loopback of the machine: a part of the unit's agent.

docs/reference/metrics.md has the metrics. Names and units follow https://prometheus.io/docs/practices/naming/. No label
has values that a job chooses.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import demand
import telemetry
import waiting
from telemetry import DURATIONS, FAILURE, MOST_FLAVORS, Delay

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
# Seconds until another attempt to use a port that is taken, and between two takings of what reconciles have observed.
PAUSE = 60.0
PREFIX = "github_runner"
# Upper limits in seconds. Creations of virtual machines and jobs take minutes, an idle runner takes a job at once.
BUCKETS = {
    # 1200 is the limit of an alert: between two limits Prometheus only guesses.
    "queue": (1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600),
    "creation": (5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600),
    "job": (10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600),
    "reconcile": (1, 2, 5, 10, 30, 60, 120, 300, 600, 1200),
}
HELP = {
    "queue": "Time between the queueing of a job and its start on a runner of this unit.",
    "creation": "Time that the creation of a runner took.",
    "job": "Time that a job took on its runner.",
    "reconcile": "Time that a reconcile took.",
}
# The steps of a creation, as its error names them.
STEPS = (
    "registering",
    "creating the instance",
    "starting the instance",
    "setting the instance up",
    "starting the runner agent",
)


class Figures:
    """The metrics of a unit such as ``github-runner/0``. Histograms and counters begin anew with each process."""

    def __init__(self, unit: str, version: str) -> None:
        self.registry = CollectorRegistry()
        self.unit = unit
        self._version = version
        self._flavors: set[str] = set()
        self._lock = threading.Lock()
        self.registry.register(_Gauges(self))
        labels = ("unit", "flavor")
        self._durations = {
            name: Histogram(
                f"{PREFIX}_{name}_duration_seconds", HELP[name], labels, buckets=BUCKETS[name], registry=self.registry
            )
            for name in DURATIONS
        }
        self._failures = Counter(
            f"{PREFIX}_creation_failures",
            "Creations of runners that failed, by the step that failed.",
            (*labels, "step"),
            registry=self.registry,
        )

    def take(self) -> None:
        """Add what reconciles have observed since the last time."""
        with self._lock:
            self._begin()
            for each in telemetry.take(self.unit):
                flavor = self._bounded(each.flavor)
                if each.name == FAILURE:
                    step = each.step if each.step in STEPS else "other"
                    self._failures.labels(self.unit, flavor, step).inc()
                else:
                    self._durations[each.name].labels(self.unit, flavor).observe(each.value)

    def _begin(self) -> None:
        """Have series at 0 for each flavour: an increase from no series to 1 is none for Prometheus."""
        found = telemetry.load(self.unit)
        for name in found.flavors if found else ():
            flavor = self._bounded(name)
            for durations in self._durations.values():
                durations.labels(self.unit, flavor)
            for step in STEPS:
                self._failures.labels(self.unit, flavor, step)

    def gauges(self) -> Iterator[Metric]:
        """What is known now: of the last reconcile, and of the jobs that wait."""
        build = GaugeMetricFamily(
            f"{PREFIX}_build_info", "The version of the charm's code.", labels=("unit", "version")
        )
        build.add_metric((self.unit, self._version), 1)
        yield build
        found = telemetry.load(self.unit)
        yield from self._of_jobs(found)
        if found is None:
            return
        yield from self._of_runners(found)
        for name, text, value in (
            ("last_reconcile_timestamp_seconds", "When the last reconcile ended, in UNIX time.", found.reconciled),
            ("api_quota_requests", "Requests that are left of GitHub's hourly limit.", found.quota_left),
            (
                "binary_timestamp_seconds",
                "When GitHub last offered the runner binary, in UNIX time.",
                found.binary_time,
            ),
            ("image_timestamp_seconds", "When the runners' image was built, in UNIX time.", found.image_time),
        ):
            if value is not None:
                yield self._gauge(name, text, [((), value)])

    def _of_runners(self, found: telemetry.Gauges) -> Iterator[Metric]:
        states = [
            ((flavor, state), getattr(counts, state))
            for flavor, counts in found.flavors.items()
            for state in ("idle", "starting", "busy", "other")
        ]
        yield self._gauge("runners", "Runners after the last reconcile.", states, "flavor", "state")
        expected = [((flavor,), one.expected) for flavor, one in found.flavors.items() if one.expected is not None]
        yield self._gauge("wanted_runners", "Runners that the last reconcile aimed for.", expected, "flavor")

    def _of_jobs(self, found: telemetry.Gauges | None) -> Iterator[Metric]:
        """Jobs of each flavour, which are known in demand mode only, and runners that are missing."""
        flavors = waiting.of_unit(found, demand.load(self.unit), time.time())[:MOST_FLAVORS]
        assigned = [((each.flavor,), each.assigned) for each in flavors if each.assigned is not None]
        yield self._gauge("assigned_jobs", "Jobs that GitHub assigned, those that run included.", assigned, "flavor")
        jobs = {each.flavor: each.of_jobs for each in flavors if each.waiting is not None}
        yield self._by_reason("waiting_jobs", "Jobs that no runner has begun, by why they wait.", jobs)
        runners = {each.flavor: each.of_runners for each in flavors}
        yield self._by_reason("missing_runners", "Runners that are asked for and not there, by why.", runners)

    def _by_reason(self, name: str, text: str, flavors: Mapping[str, Iterable[Delay]]) -> GaugeMetricFamily:
        """A gauge with a series for each reason, also where nothing waits for it: a sum then always has a value."""
        values = [
            ((flavor, reason), number)
            for flavor, reasons in flavors.items()
            for reason, number in waiting.by_reason(reasons).items()
        ]
        return self._gauge(name, text, values, "flavor", "reason")

    def _gauge(
        self, name: str, text: str, values: Iterable[tuple[tuple[str, ...], float]], *labels: str
    ) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=("unit", *labels))
        for of, value in values:
            family.add_metric((self.unit, *of), value)
        return family

    def _bounded(self, flavor: str) -> str:
        """The flavour, or "other" after too many: each one has series until the process ends."""
        if flavor not in self._flavors and len(self._flavors) >= MOST_FLAVORS:
            return "other"
        self._flavors.add(flavor)
        return flavor


class _Gauges(Collector):
    """Registered first, so that a scrape takes measurements before the histograms are read."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        self._figures.take()
        yield from self._figures.gauges()


class Exposition:
    """Metrics that are being served."""

    def __init__(self, port: int, figures: Figures) -> None:
        self.figures = figures
        self._server, self._thread = start_http_server(port, ADDRESS, figures.registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(port: int, figures: Figures) -> Exposition | None:
    """Serve metrics; None where the port cannot be used, which the status of the unit then says."""
    try:
        served = Exposition(port, figures)
    except OSError as error:
        reason = f"metrics-port: {port} of {ADDRESS} cannot be used: {error.strerror or error}; set another one"
        logger.warning("%s", reason)
        telemetry.note_problem(figures.unit, reason)
        return None
    telemetry.note_problem(figures.unit, "")
    return served


def keep_serving(port: int, figures: Figures, stop: threading.Event) -> None:
    """Serve metrics until ``stop``. A port that cannot be used is tried again each minute.

    The figures are taken each minute: without a Prometheus nobody else empties the file of measurements.
    """
    served = serve(port, figures)
    while not stop.wait(PAUSE):
        figures.take()
        served = served or serve(port, figures)
    if served:
        served.close()
