"""What a reconcile came to: its report, its events and the figures of its runners."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import delays
import times
from budget import Wait
from changes import Changes
from flavor_changes import FlavorChanges
from flavor_plans import Wanted
from metrics.collect import Collector
from models import FailedCreation
from observe import ObservedRunner
from plan import Health, Plan, health, is_healthy
from redaction import line
from report import Findings, FlavorCount, Report
from telemetry import FAILED, TEXT_LIMIT, Counts, Delay
from unlisted import is_new

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The runners that a reconcile has observed, what it planned and what it has changed."""

    report: Report
    plan: Plan
    runners: Mapping[str, ObservedRunner]
    changes: Changes

    def describe(self, now: float) -> None:
        """Fill the report with the runners that exist now, at these UNIX seconds."""
        report, plan, runners, changes = self.report, self.plan, self.runners, self.changes
        removed = set(changes.removed)
        report.created, report.removed = list(changes.created), list(changes.removed)
        report.busy = [name for name in plan.busy if name not in removed]
        report.unknown_jobs = [name for name in plan.unknown_jobs if name not in removed]
        report.idle = [name for name in (*plan.idle, *changes.created) if name not in removed]
        known = {*report.busy, *report.idle, *removed}
        report.other = [name for name, item in runners.items() if item.view.exists and name not in known]
        report.starting = [name for name in report.other if health(runners[name].view, now) is Health.STARTING]
        new = [name for name in plan.idle if is_new(runners[name].view, now)]
        report.starting += [name for name in (*new, *changes.created) if name not in removed]

    def count(self, flavors: FlavorChanges, waits: Sequence[Wait], *, fixed: bool) -> None:
        """Fill the report with the numbers of each flavour, and with why runners are missing.

        Of a ``fixed`` number no runner is for a job that is known, and one that is too large is to be corrected.
        """
        there, waiting = self._there(), Counter[str]()
        for wait in waits:
            waiting[wait.flavor] += wait.number
        for one in flavors.plans.flavors:
            wanted, name = one.wanted, one.wanted.flavor
            number = one.plan.live if wanted.number is None else wanted.number
            expected = number if fixed else max(0, number - waiting[name])
            spare = number if fixed else min(wanted.min_idle, expected)
            hold, unregistrable = self.report.hold or wanted.hold, flavors.unregistrable.get(name, "")
            why = delays.of_flavor(name, waits, self._delay(wanted, waits), hold, unregistrable)
            self.report.flavors.append(FlavorCount(name, number, there[name], expected, spare, wanted.maximum, why))

    def failed_creations(self, flavors: Iterable[Wanted], now: float) -> dict[str, FailedCreation]:
        """The last failure of each flavour, at these UNIX seconds or before, of which no runner was created since.

        A failure that is older than 10 minutes is dropped once no runner of the flavour is missing. A recent one is
        kept: GitHub withdraws a job that gets no runner, and assigns it again.
        """
        created, there = set(self.changes.created.values()), self._there()
        found = {}
        for one in flavors:
            failed = self._failed(one, now)
            lacks = one.number is None or one.number > there[one.flavor]
            if failed and one.flavor not in created and (lacks or now - failed.last < times.BACK_OFF_LIMIT):
                found[one.flavor] = failed
        return found

    def _failed(self, wanted: Wanted, now: float) -> FailedCreation | None:
        errors = self.changes.not_created.get(wanted.flavor)
        return FailedCreation(now, line(errors[-1], TEXT_LIMIT)) if errors else wanted.failed

    def _there(self) -> Counter[str]:
        """How many runners of each flavour have an instance now."""
        existing = self.changes.existing(self.runners)
        there = Counter(item.view.flavor for name, item in self.runners.items() if name in existing)
        there.update(self.changes.created.values())
        return there

    def _delay(self, wanted: Wanted, waits: Sequence[Wait]) -> Delay | None:
        """The failed creations of this reconcile; those of before, until one of the flavour is created.

        Where another attempt was due and found no room, it is the room that runners wait for.
        """
        errors = self.changes.not_created.get(wanted.flavor)
        if errors:
            return Delay(FAILED, len(errors), line(errors[-1], TEXT_LIMIT))
        is_created = wanted.flavor in self.changes.created.values()
        is_over = is_created or (wanted.is_tried and any(wait.flavor == wanted.flavor for wait in waits))
        return Delay(FAILED, text=wanted.failed.reason) if wanted.failed and not is_over else None

    def counts(self) -> dict[str, Counts]:
        """The runners of each flavour that exist now, those of a flavour that was removed among them."""
        report = self.report
        flavors = {name: item.view.flavor for name, item in self.runners.items()} | dict(self.changes.created)
        starting = set(report.starting)
        states = (set(report.idle) - starting, set(report.busy), set(report.other) - starting, starting)
        idle, busy, other, new = (Counter(flavors[name] for name in names) for names in states)
        numbers = {one.flavor: one for one in report.flavors}
        result = {}
        for flavor in dict.fromkeys([*numbers, *flavors.values()]):
            one = numbers.get(flavor, FlavorCount(flavor, 0, 0))
            result[flavor] = Counts(
                expected=one.expected,
                idle=idle[flavor],
                busy=busy[flavor],
                other=other[flavor],
                starting=new[flavor],
                wanted=one.wanted,
                maximum=one.maximum,
                delays=one.delays,
            )
        return result

    def issue_events(
        self,
        collector: Collector,
        binary: Path,
        findings: Findings,
        *,
        crashed: Counter[str],
        started: float,
        now: float,
    ) -> None:
        """Issue the events of a reconcile that began and ended at these UNIX seconds, and record its figures.

        ``crashed`` are the runners of each flavour that crashed in a job.
        """
        report = self.report
        with continuing("The event unit_health"):
            collector.unit_health(
                now,
                wanted=report.wanted,
                failed_creations=self.changes.failed_creations,
                failed_starts=findings.reported_starts,
                binary=binary,
                image_age=report.image_age,
            )
        with continuing("The figures for Prometheus"):
            collector.figures(started, now, self.counts(), binary, report.image_age, listed=findings.listed)
        with continuing("The event reconciliation"):
            self._issue_reconciliation(collector, crashed, started, now)

    def _issue_reconciliation(self, collector: Collector, crashed: Counter[str], started: float, now: float) -> None:
        """One event for each flavour."""
        # Healthy runners without a job. GitHub's list may lack a runner for some minutes although it is ready.
        healthy = {name for name, item in self.runners.items() if is_healthy(item.view)}
        left = healthy - {*self.plan.busy, *dict(self.plan.remove), *self.changes.removed}
        idle = Counter([*(self.runners[name].view.flavor for name in left), *self.changes.created.values()])
        active = Counter(self.runners[name].view.flavor for name in self.report.busy)
        numbers = {one.flavor: one for one in self.report.flavors}
        for flavor in dict.fromkeys([*numbers, *idle, *active, *crashed]):
            number = numbers.get(flavor, FlavorCount(flavor, 0, 0))
            collector.reconciliation(
                started,
                now,
                crashed=crashed[flavor],
                idle=idle[flavor],
                active=active[flavor],
                wanted=number.expected,
                spare=number.spare,
                flavor=flavor,
            )


@contextmanager
def continuing(what: str) -> Iterator[None]:
    """Log whatever is raised: the report and the events of a reconcile must not be lost for it."""
    try:
        yield
    except Exception:
        logger.exception("%s: failed, the reconcile continues", what)
