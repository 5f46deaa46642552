"""A model of the reconcile in demand mode: flavours with a budget, jobs that wait, and an agent that may be silent."""

import itertools
import math
from collections import Counter
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

import scaling
import times
from budget import Capacity
from demand import PATIENCE, Demand
from gh.scale_set_answers import Job, Statistics
from models import Flavor, Scaling, VirtualMachineResources, size_in_bytes
from naming import FLAVOR_KEY, SCALE_SET_KEY
from programs.sessions import Assigned, demanded
from runner_manager import RunnerManager
from tests.support.fakes import FakeInstance, state
from tests.support.model import Records
from tests.support.reconciles import MINUTE, Reconciles

MEMORY = 7 << 30
SIZES = {
    "small": VirtualMachineResources(1, "1GiB", "2GiB"),
    "middle": VirtualMachineResources(1, "2GiB", "2GiB"),
    "large": VirtualMachineResources(2, "4GiB", "2GiB"),
}
flavors = st.sampled_from(sorted(SIZES))


class Demands(Reconciles):
    """One unit in demand mode. What must come of it is worked out here once more, from the jobs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.capacity = Capacity(MEMORY, 99)
        self.records = Records(self.hub, lambda name: self.lxd.fault("register", name))
        self.maximum = dict.fromkeys(SIZES, 2)
        self.min_idle = dict.fromkeys(SIZES, 0)
        self.fallback = 1
        self.sets = {name: number for number, name in enumerate(SIZES, 1)}
        self.waiting: dict[str, dict[str, float]] = {name: {} for name in SIZES}
        """When each job that waits was queued, by flavour and the job's id."""
        self.taken_from: dict[str, int] = {}
        """The set of each busy runner's job."""
        self.known: dict[str, Demand] = {}
        self.reported: dict[str, Assigned] = {}
        self.since = self.now
        self.listed = -math.inf
        """When a reconcile has last read GitHub's list of runners."""
        self.listening = True
        self.ids = itertools.count(1)
        self.restart()

    @initialize(jit=st.booleans(), min_idle=st.integers(0, 1))
    def runners_register(self, jit: bool, min_idle: int) -> None:
        """With or without a token where no scale set is known."""
        self.registration = self.records if jit else None
        self.min_idle["small"] = min_idle
        self.set_options()

    def set_options(self) -> None:
        base, labels = state().base_image, self.state.labels
        self.flavors = tuple(
            Flavor(name, size, base, labels, 0, self.maximum[name], self.min_idle[name]) for name, size in SIZES.items()
        )
        self.state = replace(
            self.state, given_flavors=self.flavors, scaling=Scaling.DEMAND, demand_fallback=self.fallback
        )

    def restart(self) -> None:
        """A new session knows the statistics, and none of the messages."""
        self.reported = {name: Assigned() for name in SIZES}

    def tell(self, flavor: str, kind: str, job: str) -> None:
        if self.listening:
            self.reported[flavor].note(Job(kind, job, queued=self.now, assigned=self.now), self.now)

    def _registered(self, instance: FakeInstance) -> None:
        known = self.hub.runners.get(instance.name)
        if known is not None:
            self.hub.runners[instance.name] = replace(known, online=True)
        elif self.registration is None and SCALE_SET_KEY not in instance.config:
            self.hub.register(instance.name)

    @rule(flavor=flavors, count=st.integers(1, 4))
    def jobs_are_queued(self, flavor: str, count: int) -> None:
        for _ in range(count):
            job = f"job {next(self.ids)}"
            self.waiting[flavor][job] = self.now
            self.tell(flavor, "JobAssigned", job)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def a_waiting_job_is_cancelled(self, data: st.DataObject) -> None:
        flavor = data.draw(st.sampled_from([name for name, jobs in self.waiting.items() if jobs]))
        job = data.draw(st.sampled_from(sorted(self.waiting[flavor])))
        del self.waiting[flavor][job]
        self.tell(flavor, "JobCompleted", job)

    def takers(self) -> list[FakeInstance]:
        """Idle runners for which a job waits: those of today's set, and those of the fallback."""
        found = []
        for item in self.idle():
            flavor = item.config[FLAVOR_KEY]
            if self.waiting[flavor] and item.config.get(SCALE_SET_KEY) in (None, str(self.sets[flavor])):
                found.append(item)
        return found

    @precondition(lambda self: self.takers())
    @rule(data=st.data())
    def a_job_comes(self, data: st.DataObject) -> None:
        """The oldest one that waits for the flavour."""
        self.take(data.draw(st.sampled_from(self.takers())))

    def take(self, chosen: FakeInstance) -> None:
        flavor = chosen.config[FLAVOR_KEY]
        job = next(iter(self.waiting[flavor]))
        del self.waiting[flavor][job]
        self.tell(flavor, "JobStarted", job)
        self.taken_from[chosen.name] = int(chosen.config.get(SCALE_SET_KEY, 0))
        self._give_job(chosen)

    @rule()
    def all_waiting_jobs_start(self) -> None:
        """What runs a job keeps its room, so that runners for younger jobs do not fit beside it."""
        self.github_answers("true")
        self._checked_reconcile()
        while self.takers():
            self.take(self.takers()[0])

    @rule(before=flavors, after=flavors)
    def all_runners_get_jobs_and_the_numbers_change(self, before: str, after: str) -> None:
        """All the room goes to one flavour, and then another one asks for it."""
        self.jobs_are_queued(before, 4)
        self.all_waiting_jobs_start()
        self.time_goes_by(1)
        self.jobs_are_queued(after, 2)
        self._checked_reconcile()

    @rule()
    def smaller_jobs_come_while_a_large_one_waits(self) -> None:
        """They would take each room that becomes free, and it would wait for ever."""
        self.github_answers("true")
        self.github_is_down(False)
        self.lxd_fails("none")
        self.the_agent_listens(True)
        self.maximum = {"small": 4, "middle": 2, "large": 1}
        self.set_options()
        self.jobs_are_queued("small", 4)
        self.all_waiting_jobs_start()
        self.jobs_are_queued("large", 1)
        self._checked_reconcile()
        self.time_goes_by(1)
        self.jobs_are_queued("middle", 1)
        self._checked_reconcile()

    @rule(flavor=flavors)
    def jobs_outlive_their_set(self, flavor: str) -> None:
        """Their runners serve none of the new set's jobs, and count beside them."""
        self.jobs_are_queued(flavor, 1)
        self.all_waiting_jobs_start()
        self.the_sets_are_made_anew()
        self.jobs_are_queued(flavor, 1)
        self.the_world_is_quiet()

    @rule(flavor=flavors, maximum=st.integers(0, 4), min_idle=st.integers(0, 2))
    def the_number_changes(self, flavor: str, maximum: int, min_idle: int) -> None:
        self.maximum[flavor], self.min_idle[flavor] = maximum, min(min_idle, maximum)
        self.set_options()

    @rule(fallback=st.integers(0, 2))
    def the_fallback_changes(self, fallback: int) -> None:
        self.fallback = fallback
        self.set_options()

    @rule(label=st.sampled_from(["a", "b"]))
    def an_option_changes(self, label: str) -> None:
        """Other labels are another set, to which the jobs that wait come."""
        if self.state.labels != (label,):
            self.the_sets_are_made_anew()
        self.state = state(labels=(label,))
        self.set_options()

    @rule()
    def the_sets_are_made_anew(self) -> None:
        self.sets = {name: number + len(SIZES) for name, number in self.sets.items()}
        self.restart()

    @rule()
    def the_agent_restarts(self) -> None:
        self.restart()

    @rule(listening=st.booleans())
    def the_agent_listens(self, listening: bool) -> None:
        """GitHub gives no session, or gives one again."""
        if listening and not self.listening:
            self.restart()
        self.listening = listening

    @rule()
    def the_agent_is_silent_for_long(self) -> None:
        """The fallback holds; then the sessions are back, and its runners are drained."""
        self.the_agent_listens(False)
        for _ in range(2):
            self.time_goes_by(5)
            self._checked_reconcile()
        self.the_world_is_quiet()
        self.the_agent_listens(True)
        self._checked_reconcile()

    @rule()
    def the_file_of_the_agent_is_lost(self) -> None:
        """What GitHub answered it is not known, and nothing changes for a while."""
        self.the_agent_listens(False)
        self.known, self.since = {}, self.now
        self._checked_reconcile()
        self.time_goes_by(1)
        self._checked_reconcile()

    @rule()
    def the_host_reboots(self) -> None:
        """What GitHub answered the agent is gone, and is given time once more."""
        super().the_host_reboots()
        self.known, self.since = {}, self.now
        self.restart()

    @rule()
    def the_world_is_quiet(self) -> None:
        """An agent that is silent now is so for good; what was answered at a time that is in the future now is void."""
        self.since = min(self.since, self.now)
        self.known = {name: known for name, known in self.known.items() if known.answered_at <= self.now}
        super().the_world_is_quiet()

    def hear(self) -> None:
        """The agent has an answer of each session; a flavour that is closed has none."""
        for name in SIZES if self.listening else ():
            running = sum(1 for runner in self.jobs if self.taken_from[runner] == self.sets[name])
            numbers = Statistics(assigned=len(self.waiting[name]) + running, running=running)
            before = self.known.get(name, Demand())
            found = demanded(before, numbers, self.reported[name], self.sets[name], self.now)
            self.known[name] = found if self.maximum[name] else Demand(answered_at=self.now)

    def _reconcile(self, manager: RunnerManager) -> None:
        """The agent's, which needs the list of runners again after a while, and after a reconcile that failed."""
        wanted = scaling.wanted(self.state, self.known, self.since, self.now, lambda number: self.records)
        listed, self.listed = self.listed, -math.inf
        age = self.now - listed
        manager.reconcile_flavors(wanted, age if 0 <= age < times.LIST_OF_RUNNERS else None)
        self.listed = self.now if manager.findings.listed else listed

    def _checked_reconcile(self) -> None:
        """One reconcile after what GitHub has answered; also, what is created must be whose turn it is."""
        self.hear()
        before, unknown = self.there(), [name for name in SIZES if self.number(name) is None]
        names = {item.name for item in self.own_instances() if item.config[FLAVOR_KEY] in unknown}
        idle = {item.name for item in self.idle() if item.name in names and self._is_todays(item)}
        numbers, aims = {name: self.number(name) for name in SIZES}, self.aims()
        super()._checked_reconcile()
        after = self.there()
        assert all(after[name] <= max(before[name], self.maximum[name]) for name in SIZES), "more than the maximum"
        left = {item.name for item in self.own_instances() if item.config[FLAVOR_KEY] in unknown}
        assert idle <= left <= names, "runners of an unknown demand changed"
        if self.lxd.faults or self.hub.down or self.hub.answer is not None:
            return
        order = self.order()
        for place, name in enumerate(order):
            for_jobs = min(aims.get(name, 0), max(0, (numbers[name] or 0) - self.min_idle[name]))
            if after[name] < for_jobs:
                created = [other for other in order[place + 1 :] if after[other] > before[other]]
                assert not created, f"{created} came before {name}"

    def there(self) -> Counter[str]:
        return Counter(item.config[FLAVOR_KEY] for item in self.own_instances())

    def is_known(self, name: str) -> bool:
        """Whether demand is known, and the set with it."""
        known = self.known.get(name, Demand())
        return known.scale_set is not None and abs(self.now - known.answered_at) < PATIENCE

    def number(self, name: str) -> int | None:
        """How many runners of a flavour there are to be before the budget; None where that is not known."""
        maximum, known = self.maximum[name], self.known.get(name, Demand())
        if maximum == 0:
            return 0
        if self.is_known(name):
            others = [runner for runner in self.jobs if self._serves_others(runner, name)]
            return min(maximum, self.min_idle[name] + known.assigned + len(others))
        recent = known.answered_at > 0 and abs(self.now - known.answered_at) < PATIENCE
        if recent or abs(self.now - max(known.answered_at, self.since)) < PATIENCE:
            return None
        return min(self.fallback, maximum)

    def _serves_others(self, runner: str, name: str) -> bool:
        config = self.lxd.found[runner].config
        return config[FLAVOR_KEY] == name and self.taken_from[runner] != self.known[name].scale_set

    def order(self) -> list[str]:
        """The flavours whose number is known, by the time since when a job waits; then the others."""
        known = [name for name in SIZES if self.number(name) is not None]
        since = {name: self.known[name].since if self.is_known(name) else None for name in known}
        waiting = sorted((name for name in known if since[name] is not None), key=lambda name: since[name] or 0.0)
        return waiting + [name for name in known if since[name] is None]

    def aims(self) -> dict[str, int]:
        """How many runners fit on the empty machine: for jobs in their order, then those for no job."""
        aims = dict.fromkeys(self.order(), 0)
        left = MEMORY
        numbers = {name: self.number(name) or 0 for name in aims}
        idle = {name: min(numbers[name], self.min_idle[name] if self.is_known(name) else 0) for name in aims}
        parts = [(name, numbers[name] - idle[name]) for name in aims]
        parts += [(name, idle[name]) for name in SIZES if name in aims]
        for name, number in parts:
            for _ in range(number):
                size = size_in_bytes(SIZES[name].memory)
                if size <= left:
                    aims[name], left = aims[name] + 1, left - size
        return aims

    def _most(self) -> int:
        return (Counter(self.maximum) | self.there()).total()

    def _all_fit(self, number: int) -> bool:
        aims, there = self.aims(), self.there()
        return all(there[name] <= aims.get(name, there[name]) for name in there)

    def _is_todays(self, item: FakeInstance) -> bool:
        """Of today's configuration, and of the set that is known, if any is."""
        name = item.config[FLAVOR_KEY]
        is_current = not self.is_known(name) or item.config.get(SCALE_SET_KEY) == str(self.known[name].scale_set)
        return is_current and super()._is_todays(item)

    def _check_numbers(self, names: set[str]) -> None:
        """Each flavour has its goal once no job holds another one's room, and idle runners are of today's set."""
        there, aims = self.there(), self.aims()
        busy = Counter(self.lxd.found[name].config[FLAVOR_KEY] for name in self.jobs)
        assert all(there[name] <= max(aims[name], busy[name]) for name in SIZES), (there, aims, busy)
        if all(busy[name] <= aims[name] for name in SIZES):
            assert there == +Counter(aims), (there, aims, busy)
        idle = [item for item in self.own_instances() if item.name not in self.jobs]
        assert all(self._is_todays(item) for item in idle), "an outdated runner stays"


assert MINUTE * 5 >= PATIENCE
