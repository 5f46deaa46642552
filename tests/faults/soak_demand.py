"""A month in demand mode: two flavours share a budget, sessions are lost, and sets are made anew.

In the first minutes after the timer's reconcile the agent starts others, which do without GitHub's list of runners.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import scaling
import times
from budget import Ask, Capacity, goals
from demand import Demand
from flavor_plans import Wanted
from gh.scale_set_answers import Statistics
from models import Flavor, GithubOrg, Scaling, VirtualMachineResources
from naming import FLAVOR_KEY, KEY, SCALE_SET_KEY, fingerprint
from programs.sessions import Assigned, demanded
from runner_manager import RunnerManager
from tests.faults import soak
from tests.faults.soak import Month, Scale
from tests.support.fakes import FakeInstance, state
from tests.support.model import Records

SMALL, LARGE = "small", "large"
GIB = 1 << 30
# Of the machine's memory, for each runner that there may be: not all of them fit, but more than jobs need on average.
MEMORY = 1.3 * GIB
FALLBACK = 2
# Seconds after the timer's reconcile at which the agent starts others.
WAKES = (45.0, 120.0)
# Of a tick: GitHub deletes the sets.
DELETION = 1 / 40


def run(short: bool) -> dict[str, object]:
    """A day or a month of a unit; figures by name, AssertionError where a rule is broken."""
    started = time.monotonic()
    figures = soak.soak(soak.SHORT if short else soak.LONG, DemandMonth)
    return {**figures, "seconds": round(time.monotonic() - started)}


class DemandMonth(Month):
    """A unit whose agent hears before each reconcile what the world's jobs need, unless it has no session."""

    def __init__(self, scale: Scale, folder: Path) -> None:
        self._maxima = {SMALL: math.ceil(0.8 * scale.runners), LARGE: math.ceil(0.4 * scale.runners)}
        self._maximum = dict(self._maxima)
        self._heard: dict[str, Demand] = {}
        self._silence = 0
        self._numbers = itertools.count(1)
        self._asked: list[Wanted] = []
        self._jobs: dict[str, int] = {}
        self._others: Counter[str] = Counter()
        super().__init__(scale, folder)
        self._capacity = Capacity(int(MEMORY * scale.runners), 10.0 * scale.runners)
        self._since = self.world.now
        # When a reconcile has last read GitHub's list of runners.
        self._listed = -math.inf
        self.world.flavors = (*[SMALL] * 4, LARGE)
        self._registration = Records(self.world.hub, lambda _: self.world.hub.answers("record"))

    def _set_options(self) -> None:
        """Other labels are another set of each flavour."""
        super()._set_options()
        self._make_sets_anew()
        self._set_flavors()

    def _make_sets_anew(self) -> None:
        """Idle runners of the former sets get no job any more."""
        self.world.sets = {name: next(self._numbers) for name in self._maxima}

    def _set_flavors(self) -> None:
        version, base = self._version, state().base_image
        labels = (f"v{version}",)
        flavors = (
            Flavor(SMALL, VirtualMachineResources(1, "1GiB", "2GiB"), base, labels, 0, self._maximum[SMALL], 1),
            Flavor(
                LARGE, VirtualMachineResources(1 + version % 3, "4GiB", "2GiB"), base, labels, 0, self._maximum[LARGE]
            ),
        )
        self._state = state(
            path=GithubOrg("octo-org"),
            issue_metrics=True,
            given_flavors=flavors,
            scaling=Scaling.DEMAND,
            demand_fallback=FALLBACK,
        )

    def _change(self, what: str) -> None:
        if what == "options":
            self._set_options()
            return
        full = self._maxima
        self._maximum = (
            {n: self._chance.randrange(most // 2, most + 1) for n, most in full.items()} if what == "fewer" else full
        )
        self._set_flavors()

    def _github(self) -> None:
        """Now and then there is no session, for up to three hours, or GitHub deletes the sets."""
        super()._github()
        if self._chance.random() < DELETION:
            self.counts["sets_deleted"] += 1
            self._make_sets_anew()
        if self._silence:
            self._silence -= 1
            self.counts["sessions_back"] += not self._silence
        elif self._chance.random() < soak.OUTAGE:
            self.counts["sessions_lost"] += 1
            self._silence = self._chance.randint(1, soak.LONGEST_OUTAGE)

    def _reboot(self) -> None:
        """What GitHub answered the agent is gone, and its process with it."""
        super()._reboot()
        self._heard, self._since = {}, self.world.now

    def drain(self) -> None:
        self._silence = 0
        self._change("all")
        super().drain()

    def _hear(self) -> None:
        """The number comes from the statistics alone: all sessions are new ones."""
        world = self.world
        for flavor, number in world.sets.items():
            running = sum(1 for name in world.jobs if self._set_of(name) == (flavor, number))
            waiting = sum(1 for job in world.queue if job.flavor == flavor)
            before = self._heard.get(flavor, Demand())
            self._jobs[flavor] = waiting + running
            numbers = Statistics(assigned=waiting + running, running=running)
            self._heard[flavor] = demanded(before, numbers, Assigned(), number, world.now)

    def _set_of(self, name: str) -> tuple[str, int]:
        config = self.world.lxd.found[name].config
        return config[FLAVOR_KEY], int(config.get(SCALE_SET_KEY, 0))

    def _run(self, manager: RunnerManager) -> None:
        if not self._silence:
            self._hear()
        now = self.world.now
        self._asked = scaling.wanted(self._state, self._heard, self._since, now, lambda number: self._registration)
        self._others = Counter(
            flavor for flavor, number in map(self._set_of, self.world.jobs) if number != self.world.sets[flavor]
        )
        if any(scaling.is_missing(self._heard.get(name, Demand()), self._since, now) for name in self._maximum):
            self.counts["reconciles_with_fallback"] += 1
        # As UnitDemand does: a reconcile that fails or is killed is followed by one that reads the list.
        age, self._listed, listed = now - self._listed, -math.inf, self._listed
        manager.reconcile_flavors(self._asked, age if age < times.LIST_OF_RUNNERS else None)
        self._listed = now if manager.findings.listed else listed
        self.counts["reconciles_without_list"] += not manager.findings.listed

    def _pass(self, seconds: float) -> None:
        """The agent starts reconciles: jobs have come and gone."""
        passed = 0.0
        for wake in WAKES if not self._silence else ():
            if wake < seconds:
                self.world.advance(wake - passed)
                passed = wake
                self.reconcile()
        super()._pass(seconds - passed)

    def _there(self) -> Counter[str]:
        return Counter(item.config[FLAVOR_KEY] for item in self.world.lxd.own_instances())

    def _room(self) -> float:
        sizes = (VirtualMachineResources.of_profiles(item.profiles) for item in self.world.lxd.own_instances())
        assert self._capacity is not None
        return self._capacity.room(size for size in sizes if size)[0]

    def _limit(self) -> Callable[[], None]:
        """Neither more of a flavour than its maximum, nor more than there is room for."""
        before, room = self._there(), self._room()

        def check() -> None:
            there = self._there()
            assert all(there[name] <= max(before[name], self._maximum[name]) for name in there), "more than the maximum"
            assert self._room() >= min(0, room), "more instances than there is room for"

        return check

    def _check_number(self, own: Sequence[FakeInstance]) -> None:
        """Each flavour has its goal, unless a job of another one keeps the room."""
        assert self._capacity is not None
        asks = [self._ask(one, one.number) for one in self._asked if one.number is not None]
        aims, _ = goals(self._capacity, asks)
        there, taken = self._there(), self.world.taken
        busy = Counter(self._set_of(name)[0] for name in self.world.jobs)
        wanted = f"there are {dict(there)}, wanted are {aims}, busy are {dict(busy)}"
        assert all(there[name] <= max(aim + taken, busy[name]) for name, aim in aims.items()), wanted
        if len(aims) == len(self._asked) and not taken and all(busy[name] <= aim for name, aim in aims.items()):
            assert all(there[name] >= aim for name, aim in aims.items()), wanted

    def _ask(self, one: Wanted, number: int) -> Ask:
        """What a flavour needs by the jobs there are; busy runners of former sets serve none of them."""
        if one.scale_set is not None:
            needed = one.min_idle + self._jobs[one.flavor] + self._others[one.flavor]
            number = min(self._maximum[one.flavor], needed)
        return Ask(one.flavor, one.spec.resources, number, one.since, one.min_idle)

    def _is_todays(self, item: FakeInstance) -> bool:
        flavor = item.config[FLAVOR_KEY]
        spec = next(spec for spec in self._state.runners if spec.flavor == flavor)
        wanted = next(one for one in self._asked if one.flavor == flavor)
        is_current = wanted.any_registration or item.config.get(SCALE_SET_KEY) == str(wanted.scale_set)
        return is_current and item.config[f"{KEY}fingerprint"] == fingerprint(spec, self._binary.name, "")
