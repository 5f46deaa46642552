"""Several units share the jobs of one stand-in for GitHub: real sessions, with runners that are records only."""

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import agent_settings
import demand
import telemetry
from agent_settings import AgentFlavor, AgentSettings
from demand import Demand
from host import markers
from models import GithubRepo
from naming import Identity
from programs import missed_jobs
from programs.sessions import LATE, Sessions
from sandbox import github
from sandbox.github.state import Job, Runner, Settings, State
from tests.support.relay import Relay

TOKEN = "ghp_0123456789abcdef"
REPO = GithubRepo("org", "repo")
POOL = "pool"
MOST = 20


def wait_for(state: State, condition: Callable[[], object], what: str) -> None:
    """Until the condition is true; what happens at GitHub has it looked at again."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in time"
        with state.lock:
            state.lock.wait(0.02)


class Unit:
    """A unit's sessions. Its machine has room for so many runners, each of which takes one job of its set."""

    def __init__(self, server: github.GitHub, name: str, room: int, url: str = "") -> None:
        app, _, number = name.partition("/")
        self.identity = Identity(app, int(number), "0123abcd")
        self.state, self.room = server.state, room
        self.makes_runners = True
        self.made = 0
        self.begun: list[int] = []
        # All units have one label in common, and each one of its application.
        flavor = AgentFlavor("small", ("self-hosted", app, POOL), MOST, 0, room)
        agent_settings.save(AgentSettings(self.identity, url or server.url, REPO, TOKEN, None, (), {}, (flavor,)))
        self.sessions = Sessions(self.identity.unit, self.reconcile, clock=self.state.clock, jitter=lambda *_: 0.02)
        self._thread = threading.Thread(target=self.sessions.run, daemon=True)
        self._thread.start()

    def end(self, *, close: bool = True) -> None:
        """Stop the agent; without ``close`` as a killed one ends, with its session left open."""
        if not close:
            found = self.sessions.flavor("small")
            assert found is not None
            found[2].close_session = lambda *_: None  # type: ignore[method-assign]
        self.sessions.stop.set()
        for thread in (self._thread, *(each.thread for each in self.sessions.by_flavor.values())):
            thread.join(10)
            assert not thread.is_alive()
        self.sessions.disconnect()

    def demand(self) -> Demand:
        """What GitHub has answered the agent."""
        return demand.load(self.identity.unit).get("small", Demand())

    def runners(self) -> list[Runner]:
        """The records of this unit's runners."""
        with self.state.lock:
            return [each for each in self.state.runners.values() if self.identity.manages(each.name)]

    def busy(self) -> int:
        """How many of its runners have a job."""
        return sum(each.busy for each in self.runners())

    def reconcile(self) -> None:
        """Have a runner for each job, as far as there is room; those without a job ask for one."""
        found = self.demand()
        if not self.makes_runners or found.scale_set is None:
            return
        with self.state.lock:
            for _ in range(min(self.room, found.assigned) - len(self.runners())):
                self.state.add_runner(REPO.path, self.identity.new_name(), [], scale_set=found.scale_set)
                self.made += 1
            for runner in self.runners():
                runner.seen = time.monotonic()
                job = None if runner.busy else self.state.take_job(runner)
                if job is not None:
                    self.begun.append(job.id)

    def finish(self, number: int) -> None:
        """Let so many jobs end. GitHub reports it before their instances have ended, which starts a reconcile."""
        with self.state.lock:
            for job in [self.state.jobs[each.job] for each in self.runners() if each.job][:number]:
                self.state.complete_job(job, "success")
        wait_for(self.state, lambda: self.demand().running == self.busy(), "the message of the end")
        self.reconcile()


class World:
    """A server with its units."""

    def __init__(self, server: github.GitHub) -> None:
        self.server, self.state = server, server.state
        self.units: list[Unit] = []
        self.networks: list[Relay] = []

    def network(self) -> Relay:
        """A network of its own for a unit."""
        self.networks.append(Relay(self.server.url))
        return self.networks[-1]

    def deploy(self, name: str, room: int, url: str = "") -> Unit:
        """A unit such as ``app/0``, once it listens."""
        unit = Unit(self.server, name, room, url)
        self.units.append(unit)
        wait_for(self.state, lambda: self.capacity(unit), f"the session of {name}")
        return unit

    def capacity(self, unit: Unit) -> int:
        """How many runners GitHub was told that the unit can have; 0 without a session."""
        name = unit.identity.scale_set("small")
        with self.state.lock:
            self.state.scale_sets.update()
            return sum(each.capacity or 0 for each in self.state.scale_sets.sets.values() if each.name == name)

    def burst(self, number: int) -> list[Job]:
        """Queue jobs that any of the units may run."""
        with self.state.lock:
            return [self.state.add_job(REPO.path, "true", labels=[POOL]) for _ in range(number)]

    def wait_running(self, number: int, units: Sequence[Unit] = ()) -> None:
        """Until so many jobs run, on some units or on all."""

        found = units or self.units
        wait_for(self.state, lambda: sum(unit.busy() for unit in found) == number, f"{number} running jobs")

    def pass_time(self, seconds: float) -> None:
        """Let GitHub's clock go on."""
        with self.state.lock:
            self.state.settings.clock_ahead += seconds
            self.state.lock.notify_all()

    def check(self, jobs: Sequence[Job]) -> None:
        """Each job began once, and no runner was made for a job that another one had."""
        begun = Counter(number for unit in self.units for number in unit.begun)
        assert begun == Counter(job.id for job in jobs)
        assert [unit.made for unit in self.units] == [len(unit.begun) for unit in self.units]

    def close(self) -> None:
        """End all units. What waits for a network that is gone would do so for a minute."""
        for network in self.networks:
            network.restore()
        for unit in self.units:
            unit.end()
        for network in self.networks:
            network.close()


ENTERPRISE = "3.21.0"
BOTH = pytest.mark.parametrize("world", ["", ENTERPRISE], ids=["github.com", "Enterprise Server"], indirect=True)


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for module in (agent_settings, demand, telemetry):
        monkeypatch.setattr(module, "LOCKS", tmp_path)
    monkeypatch.setattr(markers, "ROOT", tmp_path / "markers")
    monkeypatch.setattr("programs.sessions.RELOAD", 0.02)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        # The agent removes it.
        monkeypatch.delenv(name)
    settings = Settings(hold=0.1, assign_after=0.0, linger=0.0, enterprise_version=getattr(request, "param", ""))
    with github.serve(tokens=[TOKEN], repositories=[REPO.path], settings=settings) as server:
        made = World(server)
        yield made
        made.close()


@BOTH
def test_a_burst_is_spread_over_units_and_applications(world: World) -> None:
    """Each job runs once. While jobs wait every unit is full, and one that has room again gets the next jobs."""
    units = [world.deploy("app/0", 1), world.deploy("app/1", 3), world.deploy("other/0", 2)]

    jobs = world.burst(12)
    world.wait_running(6)
    assert [len(unit.begun) for unit in units] == [1, 3, 2]
    for unit, ended in ((units[1], 2), (units[0], 1), (units[2], 2), (units[1], 1)):
        unit.finish(ended)
        world.wait_running(unit.room, [unit])
    assert [len(unit.begun) for unit in units] == [2, 6, 4]
    for unit in units:
        unit.finish(unit.room)

    assert all(job.status == "completed" for job in jobs)
    world.check(jobs)


@BOTH
def test_units_that_all_have_room_make_one_runner_for_a_job(world: World) -> None:
    """An Enterprise Server offers each job to all of them: who acquires it first has it, the others make nothing."""
    for number in range(3):
        world.deploy(f"app/{number}", 4)

    jobs = world.burst(4)
    world.wait_running(4)

    assert [job.assignments for job in jobs] == [1] * 4
    world.check(jobs)


def test_a_label_of_one_application_keeps_jobs_there(world: World) -> None:
    """Applications share the jobs that ask for the common label only, also where another one has room."""
    one, other = world.deploy("app/0", 1), world.deploy("other/0", 5)
    with world.state.lock:
        jobs = [world.state.add_job(REPO.path, "true", labels=[POOL, "app"]) for _ in range(2)]

    world.wait_running(1)
    one.finish(1)
    world.wait_running(1)

    assert len(one.begun) == 2
    assert other.made == 0
    world.check(jobs)


def test_jobs_that_wait_for_room_are_not_missed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """GitHub assigns no more than the units announce. They make no runners for the others, and report none as lost."""
    monkeypatch.setattr(missed_jobs, "GRACE", 0.0)
    units = [world.deploy("app/0", 1), world.deploy("other/0", 2)]
    world.burst(6)
    world.wait_running(3)
    wait_for(world.state, lambda: [unit.demand().running for unit in units] == [1, 2], "the messages")

    for unit in units:
        settings = agent_settings.load(unit.identity.unit)
        assert settings is not None
        unit.sessions.find_missed(settings, REPO)

    assert [unit.demand().missed for unit in units] == [0, 0]


def test_a_unit_that_makes_no_runners_leaves_jobs_to_others(world: World) -> None:
    """As without Juju's agent. It announces 1 before GitHub withdraws its jobs, until one of its jobs has begun."""
    stuck = world.deploy("app/0", 4)
    stuck.makes_runners = False
    jobs = world.burst(3)
    wait_for(world.state, lambda: stuck.demand().assigned == 3, "the jobs")
    other = world.deploy("other/0", 5)
    world.pass_time(LATE)
    wait_for(world.state, lambda: world.capacity(stuck) == 1, "another capacity")

    world.pass_time(world.state.settings.reassign_after - LATE)

    world.wait_running(3, [other])
    assert world.capacity(stuck) == 1

    stuck.makes_runners = True
    with world.state.lock:
        world.state.add_job(REPO.path, "true", labels=[stuck.identity.scale_set("small")])
    wait_for(world.state, lambda: world.capacity(stuck) == 4, "the former capacity")
    assert all(job.status == "in_progress" for job in jobs)


def killed(unit: Unit, _: Relay) -> None:
    """The agent is killed, or the machine is removed."""
    unit.end(close=False)


def stopped(unit: Unit, _: Relay) -> None:
    """The agent closes its session, and nothing starts it again."""
    unit.end()


def cut(_: Unit, network: Relay) -> None:
    """Connections end, and none can be made."""
    network.cut()


def silent(_: Unit, network: Relay) -> None:
    """Packets vanish: GitHub's answers reach nobody."""
    network.silence()


@pytest.mark.parametrize(
    ("world", "die"),
    [("", killed), ("", stopped), ("", cut), ("", silent), (ENTERPRISE, cut)],
    indirect=["world"],
    ids=["killed", "stopped", "cut", "silent", "cut from an Enterprise Server"],
)
def test_jobs_of_a_unit_that_dies_run_on_the_others(world: World, die: Callable[[Unit, Relay], None]) -> None:
    """After GitHub's re-assignment and not later: those that it had, and one that came before its session ended."""
    network = world.network()
    dying = world.deploy("app/0", 4, network.url)
    dying.makes_runners = False
    jobs = world.burst(2)
    wait_for(world.state, lambda: dying.demand().assigned == 2, "the jobs")
    die(dying, network)
    jobs += world.burst(1)
    others = [world.deploy("app/1", 2), world.deploy("other/0", 2)]
    world.state.settings.session_life = 0.2
    wait_for(world.state, lambda: world.capacity(dying) == 0, "the end of the session")
    assert [job.status for job in jobs[:2]] == ["queued"] * 2

    world.pass_time(world.state.settings.reassign_after)
    world.wait_running(3, others)

    waited = [(job.started_at or math.inf) - job.created_at for job in jobs]
    assert max(waited) < world.state.settings.reassign_after + 5
    assert [job.assignments for job in jobs[:2]] == [2, 2]
    world.check(jobs)


@pytest.mark.parametrize(
    ("world", "die"), [(ENTERPRISE, cut), ("", silent)], indirect=["world"], ids=["Enterprise Server", "github.com"]
)
def test_a_unit_that_comes_back_takes_new_jobs_only(world: World, die: Callable[[Unit, Relay], None]) -> None:
    """What it had is another one's by then: it makes no runners for that, and takes part again."""
    network = world.network()
    absent = world.deploy("app/0", 2, network.url)
    absent.makes_runners = False
    jobs = world.burst(2)
    wait_for(world.state, lambda: absent.demand().assigned == 2, "the jobs")
    die(absent, network)
    other = world.deploy("app/1", 2)
    world.state.settings.session_life = 0.2
    wait_for(world.state, lambda: world.capacity(absent) == 0, "the end of the session")
    world.pass_time(world.state.settings.reassign_after)
    world.wait_running(2, [other])

    world.state.settings.session_life = 50.0
    network.restore()
    absent.makes_runners = True
    wait_for(world.state, lambda: world.capacity(absent), "the session")
    jobs += world.burst(2)
    world.wait_running(4)

    assert len(absent.begun) == 2
    world.check(jobs)
