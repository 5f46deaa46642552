"""A day of many units in demand mode, simulated: the real plan, budget and agent's rules, and a model of GitHub.

Modelled are how GitHub shares jobs among scale sets (the set with the most room that it announced gets the next one,
and one for which no runner comes is given to another set after 5 minutes), how long a runner takes to be created and
that some creations fail, a machine that dies, that a unit's reconciles run one after the other, and which of them read
GitHub's list of runners. Nothing waits in real time.
"""

import heapq
import itertools
import math
import random
import statistics
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any

import times
from budget import Capacity, fitting, grants
from demand import Demand
from flavor_plans import Plans, Wanted, make_plans
from gh import scale_set_answers
from gh.scale_set_answers import Statistics
from models import BaseImage, Flavor, GithubRunner, VirtualMachineResources, size_in_bytes
from plan import Desired, Reason
from programs.sessions import Assigned, demanded
from runner_view import Process, RunnerView
from tests.bench.report import write
from tests.support.fakes import state
from unlisted import needs_no_list, presumed

UNITS, JOBS_AN_HOUR, HOURS = 50, 10_000, 24
GIB = 1 << 30
# A machine for about 20 runners: 32 CPUs given out twice, 128 GiB less the reserve.
MACHINE = Capacity(memory=126 * GIB, cpus=64.0, storage=1000 * GIB)
FLAVORS = (
    Flavor("small", VirtualMachineResources(2, "4GiB", "10GiB"), BaseImage.NOBLE, ("small",), 0, 20, 1),
    Flavor("medium", VirtualMachineResources(4, "8GiB", "20GiB"), BaseImage.NOBLE, ("medium",), 0, 10, 0),
    Flavor("large", VirtualMachineResources(8, "16GiB", "40GiB"), BaseImage.NOBLE, ("large",), 0, 5, 0),
)
FINGERPRINTS = {each.name: each.name for each in FLAVORS}
# Each flavour of each unit has a set of its own; which one matters to nobody.
SCALE_SET = 1
# Of a hundred jobs.
MIX = {"small": 70, "medium": 25, "large": 5}
# Seconds. A job's length is spread widely (lognormal, by its median); the others by a tenth.
JOB_MEDIAN, JOB_SPREAD = 120.0, 0.9
CREATION = 30.0
REMOVAL = 5.0
HOOK = 1.5
INTERVAL = 600.0
# GitHub's, for a job without a runner.
REASSIGNMENT = 300.0
# Of all creations, and the hour in which a machine dies.
FAILING, DEATH = 0.01, 12
# Requests that count against the limit of a token, beside the list: of a reconcile that creates. GitHub's messages tell
# of finished jobs (docs/reference/github-permissions.md).
OF_A_CREATION = 1
PAGE = 100


@dataclass
class Job:
    """Times in seconds of the simulated day; ``started`` is None while it waits."""

    flavor: str
    queued: float
    length: float
    number: int = 0
    started: float | None = None

    def told(self, kind: str) -> scale_set_answers.Job:
        """The entry of a message."""
        return scale_set_answers.Job(kind, str(self.number), queued=self.queued)


@dataclass
class Runner:
    """One runner: in creation until ``online``, then idle or with a job."""

    name: str
    flavor: str
    created: float
    online: float
    job: Job | None = None


@dataclass
class Unit:
    """A unit's machine: its runners, and for each flavour the jobs that its scale set has to provide runners for."""

    number: int
    runners: dict[str, Runner] = field(default_factory=dict)
    waiting: dict[str, deque[Job]] = field(default_factory=lambda: {each.name: deque() for each in FLAVORS})
    running: Counter[str] = field(default_factory=Counter)
    capacity: dict[str, int] = field(default_factory=lambda: {each.name: each.maximum for each in FLAVORS})
    due: bool = False
    busy_until: float = 0.0
    requests: int = 0
    listed: float = -math.inf
    """When it has last read GitHub's list of runners."""
    heard: dict[str, int] = field(default_factory=dict)
    """How many runners of each flavour the agent has last found to be wanted."""
    told: dict[str, Assigned] = field(default_factory=lambda: {each.name: Assigned() for each in FLAVORS})
    demands: dict[str, Demand] = field(default_factory=lambda: {each.name: Demand() for each in FLAVORS})

    def room(self, flavor: str) -> int:
        """How many more jobs its set takes, by the capacity that it has announced."""
        capacity = 1 if self.told[flavor].is_late else self.capacity[flavor]
        return capacity - len(self.waiting[flavor]) - self.running[flavor]

    def hear(self, flavor: str, now: float) -> Demand:
        """What the agent makes of the statistics of a flavour's set and of its messages."""
        told, running = self.told[flavor], self.running[flavor]
        told.note_late(now)
        counted = Statistics(assigned=len(self.waiting[flavor]) + running, running=running)
        self.demands[flavor] = demanded(self.demands[flavor], counted, told, SCALE_SET, now)
        return self.demands[flavor]


class Fleet:
    """All units and GitHub, by events in the order of their times."""

    def __init__(self, units: int, hours: float, rate: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.units = [Unit(number) for number in range(units)]
        self.unassigned: dict[str, deque[Job]] = {each.name: deque() for each in FLAVORS}
        self.done: list[Job] = []
        self.cut: list[Job] = []
        """Jobs that ran on the machine that died."""
        self.jobs = self.given_back = self.failed = 0
        self.events: list[tuple[float, int, Any]] = []
        self.order = itertools.count()
        self.names = itertools.count()
        self.now, self.end, self.rate = 0.0, hours * 3600, rate
        specs = state(given_flavors=FLAVORS).runners
        self.specs = {spec.flavor: spec for spec in specs}

    def run(self) -> None:
        """The day, and then until no job is left."""
        self._arrive()
        for unit in self.units:
            self._at(self.random.uniform(0, INTERVAL), self._timer, unit)
        self._at(DEATH * 3600, self._die)
        while self.events and (self.now < self.end or len(self.done) + len(self.cut) < self.jobs):
            self.now, _, action = heapq.heappop(self.events)
            action()

    def _at(self, delay: float, action: Any, *arguments: Any) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.order), lambda: action(*arguments)))

    def _die(self) -> None:
        """A machine is gone. Its jobs that wait are given to others in time; those that run are cut."""
        unit = max(self.units, key=lambda each: (sum(map(len, each.waiting.values())), sum(each.running.values())))
        self.units.remove(unit)
        self.cut += [runner.job for runner in unit.runners.values() if runner.job]
        unit.runners.clear()

    def _timer(self, unit: Unit) -> None:
        if unit not in self.units:
            return
        self._wake(unit)
        self._at(INTERVAL, self._timer, unit)

    # Jobs -----------------------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        """One job, and the next one after it: few at night, many in the afternoon."""
        if self.now > self.end:
            return
        [flavor] = self.random.choices(list(MIX), list(MIX.values()))
        length = self.random.lognormvariate(math.log(JOB_MEDIAN), JOB_SPREAD)
        self.jobs += 1
        self.unassigned[flavor].append(Job(flavor, self.now, length, self.jobs))
        self._assign(flavor)
        daily = 1 + 0.5 * math.sin(2 * math.pi * (self.now / 86400 - 0.25))
        self._at(self.random.expovariate(self.rate * daily / 3600), self._arrive)

    def _assign(self, flavor: str) -> None:
        """Jobs go to the set with the most room, in the order of their arrival."""
        while self.unassigned[flavor]:
            unit = max(self.units, key=lambda each: each.room(flavor))
            if unit.room(flavor) <= 0:
                return
            job = self.unassigned[flavor].popleft()
            unit.waiting[flavor].append(job)
            unit.told[flavor].note(job.told("JobAssigned"), self.now)
            self._at(REASSIGNMENT, self._give_back, unit, job)
            self._start(unit, flavor)
            self._hear(unit, flavor)

    def _give_back(self, unit: Unit, job: Job) -> None:
        """A job for which no runner came is another set's, if there is one with room."""
        if job not in unit.waiting[job.flavor]:
            return
        self.given_back += 1
        unit.waiting[job.flavor].remove(job)
        unit.told[job.flavor].note(job.told("JobCompleted"), self.now)
        self.unassigned[job.flavor].appendleft(job)
        self._assign(job.flavor)
        if unit in self.units:
            self._hear(unit, job.flavor)

    def _hear(self, unit: Unit, flavor: str) -> None:
        """The agent starts a reconcile where the number of runners that are wanted has changed."""
        [found] = [each for each in FLAVORS if each.name == flavor]
        wanted = self._wanted(unit, found).number or 0
        if unit.heard.get(flavor) != wanted:
            unit.heard[flavor] = wanted
            self._wake(unit)

    def _start(self, unit: Unit, flavor: str) -> None:
        """Idle runners of a set take its jobs at once."""
        idle = [each for each in unit.runners.values() if each.flavor == flavor and self._is_idle(each)]
        for runner in idle:
            if not unit.waiting[flavor]:
                return
            job = unit.waiting[flavor].popleft()
            job.started, runner.job = self.now, job
            unit.told[flavor].note(job.told("JobStarted"), self.now)
            unit.running[flavor] += 1
            self._at(job.length, self._finish, unit, runner, job)

    def _is_idle(self, runner: Runner) -> bool:
        return runner.job is None and runner.online <= self.now

    def _finish(self, unit: Unit, runner: Runner, job: Job) -> None:
        if unit not in self.units:
            return
        unit.running[job.flavor] -= 1
        self.done.append(job)
        self._assign(job.flavor)
        self._hear(unit, job.flavor)
        self._at(REMOVAL, self._gone, unit, runner)

    def _gone(self, unit: Unit, runner: Runner) -> None:
        if unit.runners.pop(runner.name, None):
            self._wake(unit)

    # Reconciles -----------------------------------------------------------------------------------------------------

    def _wake(self, unit: Unit) -> None:
        """A reconcile, as soon as the one that runs has ended; one more is enough for all that happens until then."""
        if not unit.due:
            unit.due = True
            self._at(max(0.0, unit.busy_until - self.now) + HOOK, self._reconcile, unit)

    def _reconcile(self, unit: Unit) -> None:
        if unit not in self.units:
            return
        unit.due = False
        plans = self._plans(unit)
        for name, reason in plans.whole.remove:
            assert reason is Reason.SURPLUS, reason
            del unit.runners[name]
        created = self._create(unit, plans)
        unit.requests += OF_A_CREATION if created else 0
        unit.busy_until = self.now + max((runner.online - self.now for runner in created), default=0.0)
        for flavor in FLAVORS:
            unit.capacity[flavor.name] = self._announced(unit, flavor)
            self._assign(flavor.name)

    def _plans(self, unit: Unit) -> Plans:
        """As the runner manager: without the list where it is not needed. The view has what a health probe finds."""
        wanted = [self._wanted(unit, flavor) for flavor in FLAVORS]
        age = self.now - unit.listed
        if age < times.LIST_OF_RUNNERS:
            views = self._views(unit, listed=False)
            seen = presumed(wanted, FINGERPRINTS, views, age, self.now)
            if seen is not None:
                plans = self._made(wanted, seen)
                if needs_no_list(plans, seen):
                    return plans
                seen = [replace(each, presumed=True) for each in views]
                plans = self._made(wanted, seen)
                if needs_no_list(plans, seen):
                    return plans
        unit.listed = self.now
        unit.requests += max(1, math.ceil(sum(len(each.runners) for each in self.units) / PAGE))
        return self._made(wanted, self._views(unit, listed=True))

    def _made(self, wanted: list[Wanted], views: list[RunnerView]) -> Plans:
        return make_plans(wanted, FINGERPRINTS, Desired(0, ""), views, self.now, MACHINE)

    def _views(self, unit: Unit, listed: bool) -> list[RunnerView]:
        return [self._view(each, listed) for each in unit.runners.values()]

    def _wanted(self, unit: Unit, flavor: Flavor) -> Wanted:
        demand = unit.hear(flavor.name, self.now)
        return Wanted(
            self.specs[flavor.name],
            demand.wanted(flavor),
            demand.since,
            flavor.min_idle,
            scale_set=SCALE_SET,
            running_jobs=unit.running[flavor.name],
        )

    def _view(self, runner: Runner, listed: bool) -> RunnerView:
        online = runner.online <= self.now
        return RunnerView(
            runner.name,
            exists=True,
            running=True,
            created_at=runner.created or 1e-6,
            fingerprint=runner.flavor,
            prepared=online,
            prepared_at=runner.online,
            seen_online=online,
            process=Process.WORKER if runner.job else Process.RUNNING,
            github=GithubRunner(1, runner.name, online, runner.job is not None) if online and listed else None,
            github_known=listed,
            flavor=runner.flavor,
            scale_set=SCALE_SET,
        )

    def _create(self, unit: Unit, plans: Plans) -> list[Runner]:
        missing = {one.wanted.flavor: one.plan.create for one in plans.flavors}
        sizes = [self.specs[each.flavor].resources for each in unit.runners.values()]
        numbers, _ = grants(MACHINE, sizes, plans.asks, plans.goals or {}, missing)
        created = []
        for flavor, number in numbers.items():
            for _ in range(number):
                online = self.now + CREATION * self.random.uniform(0.9, 1.1)
                runner = Runner(f"r{next(self.names)}", flavor, self.now, online)
                created.append(runner)
                if self.random.random() < FAILING:
                    self.failed += 1
                    self._at(online - self.now, self._wake, unit)
                    continue
                unit.runners[runner.name] = runner
                self._at(online - self.now, self._start, unit, flavor)
        used = sum(size_in_bytes(self.specs[each.flavor].resources.memory) for each in unit.runners.values())
        assert used <= MACHINE.memory, "more than the budget"
        return created

    def _announced(self, unit: Unit, flavor: Flavor) -> int:
        """The flavour's runners that are there and those that fit beside all others; at least one."""
        there = [each for each in unit.runners.values() if each.flavor == flavor.name]
        sizes = [self.specs[each.flavor].resources for each in unit.runners.values()]
        return max(1, min(flavor.maximum, len(there) + fitting(MACHINE, sizes, flavor.resources)))


def day(_repeat: int, units: int = UNITS, hours: float = HOURS, rate: float = JOBS_AN_HOUR) -> None:
    """Queue times by flavour, and requests for each unit and hour; no job may be lost."""
    fleet = Fleet(units, hours, rate, seed=1)
    fleet.run()
    lost = fleet.jobs - len(fleet.done) - len(fleet.cut)
    assert lost == 0, f"{lost} jobs were lost"
    rows = []
    for flavor in [each.name for each in FLAVORS]:
        waits = [(job.started or 0.0) - job.queued for job in fleet.done if job.flavor == flavor]
        cuts = statistics.quantiles(waits, n=100, method="inclusive")
        rows.append(
            {
                "label": f"{flavor}: {len(waits):,} jobs",
                "half within": round(cuts[49], 1),
                "95 % within": round(cuts[94], 1),
                "99 % within": round(cuts[98], 1),
                "longest": round(max(waits), 1),
            }
        )
    hourly = sum(unit.requests for unit in fleet.units) / hours
    note = (
        f"{units} units, {fleet.jobs:,} jobs in {hours:g} h, none lost; a creation takes {CREATION:g} s, "
        f"{fleet.failed:,} failed; one machine dies with {len(fleet.cut)} running jobs; "
        f"{fleet.given_back} jobs were given to another unit after 5 minutes; "
        f"{hourly / units:,.0f} API requests for each unit and hour, {hourly:,.0f} in all"
    )
    write("fleet", "A day of a fleet: how long jobs are queued", "s", rows, note)
