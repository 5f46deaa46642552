"""A model of the reconcile: a simulated LXD and GitHub through random steps, and what must hold at each of them."""

import contextlib
import itertools
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import naming
import runner
import system
import times
from budget import Ask, Capacity, goals
from errors import GithubRunnerError
from flavor_plans import Wanted
from models import Flavor, VirtualMachineResources
from naming import FLAVOR_KEY, KEY, fingerprint
from runner import RunnerManagerClients
from runner_manager import RunnerManager
from tests.support.fakes import IDENTITY, RESOURCES, FakeInstance, FakeLxd, FakeStorages, state
from tests.support.model import JINJA, NONE, OTHERS, OTHERS_KEYS, RUNNING, WORKER, Hub, Killed, Records

MINUTE = 60.0


class Reconciles(RuleBasedStateMachine):
    """One unit. Names of instances that run a job are in ``jobs``."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name)
        (path / "fs").mkdir()
        self.binary = path / "actions-runner-linux-x64-2.320.0.tar.gz"
        self.binary.write_bytes(b"tarball")
        self.storages = FakeStorages(path / "fs")
        self.lxd, self.hub = FakeLxd(), Hub()
        self.lxd.registered = self._registered
        self.registration: Records | None = None
        self.flavors: tuple[Flavor, ...] = ()
        self.capacity: Capacity | None = None
        self.now = 1_700_000_000.0
        self.wanted = 2
        self.quiet_reconciles = 2
        self.state = state()
        self.jobs: set[str] = set()
        self.stuck: set[str] = set()
        self.passed = False
        for name in OTHERS:
            self.hub.register(name, online=False)
            self.lxd.found[name] = FakeInstance(self.lxd, name, OTHERS_KEYS)
        numbers = itertools.count(1)
        clock = SimpleNamespace(time=lambda: self.now, monotonic=time.monotonic)
        names = SimpleNamespace(token_hex=lambda size: f"{next(numbers):0{2 * size}x}")
        self.patches = contextlib.ExitStack()
        # The same steps must lead to the same world: names in their order, one after the other, no waiting.
        self.patches.enter_context(mock.patch.object(runner, "time", clock))
        self.patches.enter_context(mock.patch.object(naming, "secrets", names))
        self.patches.enter_context(mock.patch.object(system, "WORKERS", 1))

    def teardown(self) -> None:
        self.patches.close()
        self.folder.cleanup()

    @initialize(jit=st.booleans(), flavors=st.booleans())
    def runners_register(self, jit: bool, flavors: bool) -> None:
        """With a token in the instance, or just in time: then the record at GitHub is there before the instance.

        With several flavours the machine has room for 7 GiB of memory.
        """
        self.registration = Records(self.hub, lambda name: self.lxd.fault("register", name)) if jit else None
        if flavors:
            self.capacity = Capacity(7 << 30, 99)
            self._set_flavors(2)

    def _set_flavors(self, wanted: int) -> None:
        base, middle = state().base_image, VirtualMachineResources(1, "2GiB", "2GiB")
        large = VirtualMachineResources(2, "4GiB", "2GiB")
        self.flavors = (
            Flavor("small", RESOURCES, base, self.state.labels, wanted, wanted),
            Flavor("middle", middle, base, self.state.labels, 1, 1),
            Flavor("large", large, base, self.state.labels, 1, 1),
        )[: 3 if wanted < 2 else 2]
        self.state = replace(self.state, given_flavors=self.flavors)

    def _registered(self, instance: FakeInstance) -> None:
        """The runner agent comes online."""
        if self.registration is None:
            self.hub.register(instance.name)
        elif instance.name in self.hub.runners:
            self.hub.runners[instance.name] = replace(self.hub.runners[instance.name], online=True)

    def own_instances(self) -> list[FakeInstance]:
        return [item for name, item in sorted(self.lxd.found.items()) if name not in OTHERS]

    def alive(self) -> list[FakeInstance]:
        return [item for item in self.own_instances() if item.running]

    def idle(self) -> list[FakeInstance]:
        online = {name for name, found in self.hub.runners.items() if found.online}
        return [item for item in self.alive() if item.name in online - self.jobs and item.process == RUNNING]

    @rule(minutes=st.sampled_from([1, 5, 11, 16, 61]))
    def time_goes_by(self, minutes: int) -> None:
        self.now += minutes * MINUTE
        self._notice()

    @rule()
    def the_clock_is_set_back(self) -> None:
        """What was made before looks young once more: one reconcile more until it is judged."""
        self.now -= 60 * MINUTE
        self.quiet_reconciles = 3

    def _notice(self) -> None:
        """GitHub lists a runner as offline within a minute of the end of its machine."""
        alive = {item.name for item in self.alive()} | set(OTHERS)
        for name, found in self.hub.runners.items():
            if name not in alive:
                self.hub.runners[name] = replace(found, online=False, busy=False)
                self.hub.busy.discard(found.runner_id)

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def a_job_comes(self, data: st.DataObject) -> None:
        """The instance knows at once; GitHub's list may still be an older one."""
        self._give_job(data.draw(st.sampled_from(self.idle())))

    def _give_job(self, chosen: FakeInstance) -> None:
        chosen.process = WORKER
        self.jobs.add(chosen.name)
        self.hub.runners[chosen.name] = replace(self.hub.runners[chosen.name], busy=True)
        self.hub.busy.add(self.hub.runners[chosen.name].runner_id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), deregistered=st.booleans())
    def a_job_ends(self, data: st.DataObject, deregistered: bool) -> None:
        """The instance powers off and is gone; GitHub deregisters it then, or a while later."""
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        self.jobs.discard(name)
        self.lxd.found.pop(name, None)
        found = self.hub.runners.pop(name)
        self.hub.busy.discard(found.runner_id)
        if not deregistered:
            self.hub.runners[name] = replace(found, online=False, busy=False)

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def an_agent_dies(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.idle()))
        chosen.process = NONE
        self.hub.runners[chosen.name] = replace(self.hub.runners[chosen.name], online=False)

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def a_runner_loses_github(self, data: st.DataObject) -> None:
        """An offline runner: its process runs, GitHub lists it as offline."""
        chosen = data.draw(st.sampled_from(self.idle()))
        self.hub.runners[chosen.name] = replace(self.hub.runners[chosen.name], online=False)

    @rule()
    def the_host_reboots(self) -> None:
        """Instances come back stopped; GitHub notices, and gives up their jobs."""
        for item in self.own_instances():
            item.running = False
            self.jobs.discard(item.name)
            if item.name in self.hub.runners:
                found = self.hub.runners[item.name]
                self.hub.runners[item.name] = replace(found, online=False, busy=False)
                self.hub.busy.discard(found.runner_id)

    @rule(wanted=st.integers(0, 4))
    def the_number_changes(self, wanted: int) -> None:
        self.wanted = wanted
        if self.flavors:
            self._set_flavors(wanted)

    @precondition(lambda self: self.flavors)
    @rule(before=st.integers(0, 4), after=st.integers(0, 4))
    def all_runners_get_jobs_and_the_numbers_change(self, before: int, after: int) -> None:
        """What runs a job keeps its room, so that the runners of the new numbers do not fit beside it."""
        self.github_answers("true")
        self._set_flavors(before)
        self._checked_reconcile()
        for item in self.idle():
            self._give_job(item)
        self._set_flavors(after)
        self._checked_reconcile()

    @rule(label=st.sampled_from(["a", "b"]))
    def an_option_changes(self, label: str) -> None:
        self.state = state(labels=(label,))
        if self.flavors:
            self._set_flavors(self.wanted)

    @rule(answer=st.sampled_from(["empty", "old", "short", "true"]))
    def github_answers(self, answer: str) -> None:
        """An old list is today's, kept; a short one lacks every other runner."""
        today = list(self.hub.runners.values())
        self.hub.answer = {"empty": [], "old": today, "short": today[::2], "true": None}[answer]

    @rule(answer=st.sampled_from(["empty", "short"]))
    def github_is_odd_for_long(self, answer: str) -> None:
        """Two odd lists, further apart than a runner may stay offline."""
        self.github_answers(answer)
        for _ in range(2):
            self.now += 16 * MINUTE
            self._checked_reconcile()

    @rule(down=st.booleans())
    def github_is_down(self, down: bool) -> None:
        self.hub.down = {"list", "find", "delete"} if down else set()

    @rule(kind=st.sampled_from(["create", "start", "execute", "stop", "set_config", "none"]))
    def lxd_fails(self, kind: str) -> None:
        self.lxd.faults = {} if kind == "none" else {kind: lambda name: name[-1:] in "13579bdf"}

    @rule()
    def a_reconcile(self) -> None:
        self._checked_reconcile()

    @rule(after=st.integers(0, 12))
    def a_reconcile_is_killed(self, after: int) -> None:
        """At its nth change of LXD or GitHub, before or after which nothing else is done."""
        left = [after]

        def count(name: str) -> bool:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return False

        before = self.lxd.faults
        self.lxd.faults = dict.fromkeys(("register", "create", "start", "begin", "write", "stop", "set_config"), count)
        with contextlib.suppress(Killed):
            self._checked_reconcile()
        self.lxd.faults = before

    @rule()
    def the_world_is_quiet(self) -> None:
        """Nothing fails, all is told: two reconciles bring what is wanted (an offline runner is noted, then ended).

        What a killed creation left, and says that it runs, is starting until no creation could still go on.
        """
        self.hub.answer, self.hub.down, self.lxd.faults = None, set(), {}
        self.now += times.CREATION
        for _ in range(self.quiet_reconciles):
            self.now += 16 * MINUTE
            self._notice()
            self._checked_reconcile()

        names = {item.name for item in self.own_instances()}
        self._check_numbers(names)
        registered = set(self.hub.runners) - set(OTHERS)
        assert registered == names
        assert all(self.hub.runners[name].online for name in names)

    def _check_numbers(self, names: set[str]) -> None:
        """All wanted runners exist; of several flavours each has its goal once no job holds another one's room."""
        if self.capacity is None:
            assert len(names) == max(self.wanted, len(self.jobs)), (names, self.jobs, self.wanted)
            return
        there = Counter(item.config[FLAVOR_KEY] for item in self.own_instances())
        asks = [Ask(one.name, one.resources, one.count) for one in self.flavors]
        aims, _ = goals(self.capacity, asks)
        busy = Counter(self.lxd.found[name].config[FLAVOR_KEY] for name in self.jobs)
        for flavor in {*aims, *there}:
            assert there[flavor] <= max(aims.get(flavor, 0), busy[flavor]), (there, aims, busy)
        if all(busy[flavor] <= aims.get(flavor, 0) for flavor in busy):
            assert there == +Counter(aims), (there, aims, busy)

    def _room(self) -> float:
        """What the budget has left beside all instances; 0 without a budget."""
        sizes = [VirtualMachineResources.of_profiles(item.profiles) for item in self.own_instances()]
        return self.capacity.room(size for size in sizes if size)[0] if self.capacity else 0

    def _checked_reconcile(self) -> None:
        """One reconcile, and what must hold for it."""
        busy = {name for name in self.jobs if name in self.lxd.found}
        number, room, limit = len(self.own_instances()), self._room(), self._most()
        healthy = {item.name for item in self.idle() if self._is_todays(item)} if self._all_fit(number) else set()
        clients = RunnerManagerClients(self.hub, JINJA, self.lxd, None, registration=self.registration)  # type: ignore[arg-type]
        manager = RunnerManager(
            *(IDENTITY, self.state, clients, self.storages, self.binary),
            clock=lambda: self.now,
            capacity=self.capacity,
        )
        try:
            self._reconcile(manager)
        except GithubRunnerError:
            pass
        finally:
            assert busy <= set(self.lxd.found), f"a busy runner was killed: {busy - set(self.lxd.found)}"
            assert healthy <= set(self.lxd.found), f"healthy runners were ended: {healthy - set(self.lxd.found)}"
            assert len(self.own_instances()) <= limit, "more instances than wanted"
            assert self._room() >= min(0, room), "more instances than there is room for"

    def _reconcile(self, manager: RunnerManager) -> None:
        if self.flavors:
            pairs = zip(self.state.runners, self.flavors, strict=True)
            manager.reconcile_flavors([Wanted(spec, flavor.count) for spec, flavor in pairs])
        else:
            manager.reconcile(self.wanted, RESOURCES)

    def _most(self) -> int:
        """How many instances a reconcile may leave: one that a job keeps does not count for another flavour."""
        if not self.flavors:
            return max(self.wanted, len(self.own_instances()))
        counts = Counter({one.name: one.count for one in self.flavors})
        return (counts | Counter(item.config[FLAVOR_KEY] for item in self.own_instances())).total()

    def _all_fit(self, number: int) -> bool:
        """Whether no runner is beyond a goal."""
        if self.capacity is None:
            return number <= self.wanted
        aims, _ = goals(self.capacity, [Ask(one.name, one.resources, one.count) for one in self.flavors])
        there = Counter(item.config[FLAVOR_KEY] for item in self.own_instances())
        return all(there[flavor] <= aims.get(flavor, 0) for flavor in there)

    def _is_todays(self, item: FakeInstance) -> bool:
        """Whether a runner is of a flavour that there is, and of today's configuration."""
        flavor = item.config.get(FLAVOR_KEY)
        specs = [spec for spec in self.state.runners if spec.flavor == flavor]
        return item.config.get(f"{KEY}fingerprint") in [fingerprint(spec, self.binary.name, "") for spec in specs]

    @invariant()
    def others_are_not_touched(self) -> None:
        assert set(OTHERS) <= set(self.lxd.found)
        assert set(OTHERS) <= set(self.hub.runners)
