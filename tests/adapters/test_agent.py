"""The unit's agent in demand mode, against the stand-in for GitHub and with a starter that only counts."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import agent_settings
import demand
import host.agent
import known_jobs
import telemetry
from agent_settings import AgentFlavor, AgentSettings
from demand import Demand
from gh import scale_sets
from gh.scale_set_answers import Job, Message, Statistics
from host import markers
from models import GithubOrg, GithubRepo, Scaling
from naming import Identity
from programs import missed_jobs
from programs.sessions import FlavorSession, Sessions
from sandbox import github
from sandbox.github.control import GitHubControl
from sandbox.github.state import Settings
from service import github_client, scale_set_client
from telemetry import Measurement
from tests.support.deployment import wait_for
from tests.support.fakes import state
from tests.support.scale_set_client import ScaleSetClient
from unit_demand import UnitDemand

TOKEN = "ghp_0123456789abcdef"
IDENTITY = Identity("app", 0, "0123abcd")
REPO = GithubRepo("org", "repo")
SET = IDENTITY.scale_set("small")
SMALL = AgentFlavor("small", ("self-hosted", "Linux", "X64", "app"), 3, 0, 2)


@pytest.fixture(params=["", "3.17.0"], ids=["github.com", "Enterprise Server"])
def server(request: pytest.FixtureRequest) -> Iterator[github.GitHub]:
    settings = Settings(hold=0.1, assign_after=0.0, linger=0.0, enterprise_version=request.param)
    with github.serve(tokens=[TOKEN], repositories=[REPO.path], settings=settings) as running:
        yield running


class Agent:
    """One run of the agent; ``wakes`` counts the reconciles that it asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.wakes = 0
        self.start()

    def start(self) -> None:
        self.sessions = Sessions(IDENTITY.unit, self._wake, jitter=lambda *_: 0.05)
        self.thread = threading.Thread(target=self.sessions.run, daemon=True)
        self.thread.start()

    def _wake(self) -> None:
        self.wakes += 1

    @property
    def client(self) -> scale_sets.ScaleSetClient:
        """What its sessions talk to GitHub with."""
        found = self.sessions.flavor("small")
        assert found is not None
        return found[2]

    def end(self, *, close: bool = True) -> None:
        """Stop it; without ``close`` as a killed process ends, with its session left open."""
        if not close:
            self.client.close_session = lambda *_: None  # type: ignore[method-assign]
        self.sessions.stop.set()
        for thread in (self.thread, *(each.thread for each in self.sessions.by_flavor.values())):
            thread.join(10)
            assert not thread.is_alive()
        self.sessions.disconnect()

    def save(self, *flavors: AgentFlavor, **changes: Any) -> None:
        base = AgentSettings(IDENTITY, self.url, REPO, TOKEN, None, (), {}, flavors or (SMALL,))
        agent_settings.save(replace(base, **changes))


@pytest.fixture
def agent(server: github.GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    for module in (agent_settings, demand, telemetry):
        monkeypatch.setattr(module, "LOCKS", tmp_path)
    monkeypatch.setattr(markers, "ROOT", tmp_path / "markers")
    monkeypatch.setattr("programs.sessions.RELOAD", 0.05)
    for name in {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}:
        # The agent removes it.
        monkeypatch.delenv(name)
    made = Agent(server.url)
    yield made
    made.end()


@pytest.fixture
def control(server: github.GitHub) -> GitHubControl:
    return GitHubControl(server.url)


def known() -> Demand:
    return demand.load(IDENTITY.unit).get("small", Demand())


def awaited(condition: Callable[[Demand], bool], what: str) -> Demand:
    wait_for(lambda: condition(known()), what)
    return known()


def test_demand_follows_the_jobs(agent: Agent, control: GitHubControl) -> None:
    """The agent waits for its file, makes the set, and each change of the number asks for a reconcile."""
    assert control.scale_sets() == []
    agent.save()
    awaited(lambda found: found.answered_at > 0, "the session")
    wakes = agent.wakes

    jobs = [control.add_job(REPO.path, labels=[SET]) for _ in range(2)]
    found = awaited(lambda found: found.assigned == 2, "two jobs")

    assert found.since is not None
    assert abs(found.since - time.time()) < 30
    assert agent.wakes > wakes
    [made] = control.scale_sets()
    assert (made["name"], made["capacity"], made["owner"]) == (SET, 2, "app/0")
    assert found.scale_set == made["id"]
    for job in jobs:
        control.cancel_job(job if isinstance(job, int) else job["id"])
    awaited(lambda found: found.assigned == 0, "no job")


@pytest.mark.parametrize("close", [True, False])
def test_a_new_session_gives_the_same_number(
    agent: Agent, server: github.GitHub, control: GitHubControl, close: bool
) -> None:
    """Also after the agent was killed, once GitHub ends the former session: nothing is stored."""
    agent.save()
    control.add_job(REPO.path, labels=[SET])
    awaited(lambda found: found.assigned == 1, "the job")
    agent.end(close=close)
    demand.file_of(IDENTITY.unit).unlink()
    agent.start()
    if not close:
        control.expire_scale_sets("sessions")

    assert awaited(lambda found: found.assigned == 1, "the job again").problem == ""


def test_a_conflict_is_a_problem_after_two_minutes(
    agent: Agent, control: GitHubControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it is what a killed agent leaves; the reason names the owner of the session."""
    agent.save()
    awaited(lambda found: found.answered_at > 0, "the session")
    agent.end(close=False)
    demand.file_of(IDENTITY.unit).unlink()
    monkeypatch.setattr("programs.sessions.CONFLICT_PATIENCE", 0.0)
    agent.start()

    assert "app/0" in awaited(lambda found: bool(found.problem), "the problem").problem
    control.expire_scale_sets("sessions")
    awaited(lambda found: found.answered_at > 0 and not found.problem, "the session")


@pytest.mark.parametrize("what", ["set", "sessions", "admin", "queue"])
def test_what_ends_at_github_comes_back(agent: Agent, control: GitHubControl, what: str) -> None:
    """A set that vanished is made anew, a session opened anew, a token renewed."""
    agent.save()
    number = awaited(lambda found: found.answered_at > 0, "the session").scale_set
    if what == "set":
        control.remove_scale_set(int(number or 0))
        awaited(lambda found: found.scale_set not in (None, number), "another set")
    else:
        control.expire_scale_sets(what)
    control.add_job(REPO.path, labels=[SET])

    awaited(lambda found: found.assigned == 1, "the job")


def test_without_a_maximum_there_is_no_session(
    agent: Agent, control: GitHubControl, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends at once, while a request for messages waits, and comes back at once. Capacity 0 is never announced."""
    control.settings(hold=300)
    agent.save()
    first = awaited(lambda found: found.answered_at > 0, "the session")
    wait_for(lambda: any(each["capacity"] for each in control.scale_sets()), "the request for messages")

    agent.save(replace(SMALL, maximum=0))
    wait_for(lambda: control.scale_sets()[0]["owner"] is None, "the session's end")
    awaited(lambda found: found.answered_at > first.answered_at, "what is known without it")
    agent.save()
    wait_for(lambda: control.scale_sets()[0]["owner"] is not None, "the next session")

    assert (known().problem, [each.message for each in caplog.records if each.levelno >= logging.WARNING]) == ("", [])


@pytest.mark.parametrize("changed", [False, True])
def test_a_flavour_that_was_closed_keeps_its_set(
    agent: Agent, control: GitHubControl, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """Jobs may wait there: also the next agent knows the labels that a server has dropped. Others make another set."""
    monkeypatch.setattr("programs.sessions.LONGEST_PAUSE", 0.05)
    control.settings(drop_labels=["X64"])
    agent.save()
    made = awaited(lambda found: found.answered_at > 0, "the session")
    agent.save(replace(SMALL, maximum=0))
    wait_for(lambda: control.scale_sets()[0]["owner"] is None, "the session's end")
    agent.end()
    agent.start()
    awaited(lambda found: found.answered_at > made.answered_at, "what is known while it is closed")

    agent.save(replace(SMALL, labels=("other",)) if changed else SMALL)
    wait_for(lambda: any(each["owner"] for each in control.scale_sets()), "the session")

    assert ([each["id"] for each in control.scale_sets()] != [made.scale_set]) is changed


def test_changed_labels_make_another_set(agent: Agent, server: github.GitHub, control: GitHubControl) -> None:
    """They cannot be changed. What the server dropped of them is known."""
    agent.save()
    number = awaited(lambda found: found.answered_at > 0, "the session").scale_set

    agent.save(replace(SMALL, labels=("other",)))
    found = awaited(lambda found: found.scale_set not in (None, number), "another set")

    assert len(control.scale_sets()) == 1
    assert found.dropped == (("other",) if server.state.settings.enterprise_version else ())


def test_a_server_that_drops_labels_keeps_its_set(
    agent: Agent, server: github.GitHub, control: GitHubControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would drop them again: sessions without number, of one agent, the next and one after a boot, make one set."""
    monkeypatch.setattr("programs.sessions.SHORTEST_PAUSE", 0.05)
    control.settings(drop_labels=["X64"])
    control.add_fault(method="POST", path="/sessions", status=400, times=2)
    control.clear_requests()
    agent.save()
    first = awaited(lambda found: found.answered_at > 0, "the session")
    assert sets_made(control) == 1
    for _ in range(3):
        control.clear_requests()
        control.expire_scale_sets("sessions")
        wait_for(lambda: sessions_opened(control) > 0, "another session")
    for is_boot in (False, True):
        agent.end()
        if is_boot:
            demand.remove(IDENTITY.unit)
        control.clear_requests()
        agent.start()
        wait_for(lambda: sessions_opened(control) > 0, "the next agent's session")
    awaited(lambda found: found.answered_at > 0, "what the last one knows")

    assert [each["id"] for each in control.scale_sets()] == [first.scale_set]
    dropped = ("app", "linux", "self-hosted", "x64") if server.state.settings.enterprise_version else ("x64",)
    assert (first.dropped, known().dropped) == (dropped, dropped)


def test_a_job_whose_runner_was_killed_counts_until_github_ends_it(
    agent: Agent, server: github.GitHub, control: GitHubControl
) -> None:
    """That takes 9.5 minutes, in which the runner is offline and busy. Other jobs are counted beside it."""
    server.state.settings.grace = 0.1
    agent.save()
    number = awaited(lambda found: found.answered_at > 0, "the session").scale_set
    assert number is not None
    control.add_job(REPO.path, labels=[SET])
    awaited(lambda found: found.assigned == 1, "the job")
    runner, _ = agent.client.jit_configuration(number, f"{IDENTITY.prefix}small-aa")
    with server.state.lock:
        found = server.state.runners[runner]
        found.seen, found.session = time.monotonic(), "killed"
        assert server.state.take_job(found) is not None
    awaited(lambda found: (found.assigned, found.running, found.since) == (1, 1, None), "its begin")
    wait_for(lambda: control.runners()[0]["status"] == "offline", "the runner's end")
    wakes = agent.wakes

    control.add_job(REPO.path, labels=[SET])
    awaited(lambda found: found.assigned == 2, "another job")
    assert (known().running, agent.wakes, control.runners()[0]["busy"]) == (1, wakes + 1, True)

    control.settings(lost_job=0)
    awaited(lambda found: (found.assigned, found.running) == (1, 0), "the end of the first one")


def sets_made(control: GitHubControl) -> int:
    return posted(control, "/runnerscalesets")


def sessions_opened(control: GitHubControl) -> int:
    return posted(control, "/sessions")


def posted(control: GitHubControl, path: str) -> int:
    found = [request["path"].partition("?")[0] for request in control.requests() if request["method"] == "POST"]
    return sum(1 for each in found if each.endswith(path))


def test_sets_of_removed_flavours_are_deleted_and_no_others(agent: Agent, control: GitHubControl) -> None:
    """Sets of other units, and those made by hand, stay."""
    agent.save(SMALL, replace(SMALL, name="large"))
    wait_for(lambda: len(control.scale_sets()) == 2, "two sets")
    with_prefix = f"{IDENTITY.prefix}5-small"
    agent.client.create(with_prefix, 1, [])

    agent.save()

    wait_for(lambda: {found["name"] for found in control.scale_sets()} == {SET, with_prefix}, "one less")


def test_a_changed_capacity_is_announced_by_the_same_session(agent: Agent, control: GitHubControl) -> None:
    """What fits changes with each runner of another flavour."""
    agent.save()
    number = awaited(lambda found: found.answered_at > 0, "the session").scale_set
    wait_for(lambda: control.scale_sets()[0]["capacity"] == 2, "the capacity")
    control.clear_requests()

    agent.save(replace(SMALL, capacity=1))

    wait_for(lambda: control.scale_sets()[0]["capacity"] == 1, "the new capacity")
    assert known().scale_set == number
    assert not [request for request in control.requests() if request["method"] == "POST"]


def test_a_session_ends_before_its_set_goes(agent: Agent, control: GitHubControl) -> None:
    """Also while it waits for a message: a set that is deleted under it would be made again."""
    control.settings(hold=300)
    agent.save(SMALL, replace(SMALL, name="large"))
    wait_for(lambda: [each["capacity"] for each in control.scale_sets()] == [2, 2], "two sessions")
    control.clear_requests()

    agent.save()

    wait_for(lambda: len(control.scale_sets()) == 1, "one set")
    deleted = [request["path"] for request in control.requests() if request["method"] == "DELETE"]
    assert ["/sessions/" in path for path in deleted] == [True, False]
    control.settings(hold=0.1)


def test_a_job_that_no_message_told_of_is_wanted(
    agent: Agent, server: github.GitHub, control: GitHubControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GitHub never delivers what is queued while a client announces 0. Others' jobs and known ones do not count."""
    monkeypatch.setattr(missed_jobs, "GRACE", 0.0)
    monkeypatch.setattr(missed_jobs, "EVERY", 0.1)
    client = ScaleSetClient(server.api_url, f"{server.url}/{REPO.path}", TOKEN)
    listener = client.listen(client.create(SET, *SMALL.labels)["id"])
    listener.message(0)
    lost = control.add_job(REPO.path, labels=[SET])
    listener.close()
    control.add_job(REPO.path, labels=["another"])
    control.add_job(REPO.path, labels=[SET])
    agent.end()
    agent.start()

    agent.save()

    awaited(lambda found: (found.assigned, found.missed) == (1, 1), "the job")
    control.cancel_job(lost["id"])
    awaited(lambda found: found.missed == 0, "its end")


def test_without_permission_nothing_is_missed(
    agent: Agent, control: GitHubControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REST is a backstop: that it fails changes nothing."""
    monkeypatch.setattr(missed_jobs, "GRACE", 0.0)
    monkeypatch.setattr(missed_jobs, "EVERY", 0.1)
    agent.end()
    control.add_fault(path="/actions/runs", status=403)
    agent.start()
    agent.save()

    wait_for(lambda: "/actions/runs" in str(control.requests()), "the request")
    control.add_job(REPO.path, labels=[SET])
    assert awaited(lambda found: found.assigned == 1, "the job").missed == 0


def test_a_unit_that_leaves_has_no_sessions(agent: Agent, control: GitHubControl) -> None:
    """Also while one waits for a message: no job is to come to the unit any more."""
    control.settings(hold=300)
    agent.save()
    wait_for(lambda: [each["capacity"] for each in control.scale_sets()] == [2], "the session")

    markers.Markers(IDENTITY.unit).note(markers.LEAVING)

    wait_for(lambda: [each["owner"] for each in control.scale_sets()] == [None], "its end")
    control.settings(hold=0.1)


@pytest.mark.parametrize("measures", [True, False])
def test_durations_of_jobs(measures: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cos-agent the agent records how long jobs waited and took; with it, reconciles do, and no job twice."""
    monkeypatch.setattr(telemetry, "LOCKS", tmp_path)
    name = f"{IDENTITY.prefix}aa"
    jobs = (
        Job("JobStarted", "a", queued=100.0, started=130.0, runner=name),
        Job("JobCompleted", "a", finished=190.0, runner=name),
        Job("JobCompleted", "never ran", queued=100.0, finished=200.0),
    )
    message = Message(1, Statistics(), jobs)
    listener: Any = SimpleNamespace(message=lambda _: message, delete=lambda _: None, set_id=7)
    monkeypatch.setattr(demand, "LOCKS", tmp_path)
    sessions = Sessions(IDENTITY.unit, lambda: None)
    settings = AgentSettings(IDENTITY, "https://github.com", REPO, TOKEN, None, (), {}, (SMALL,), measures)

    FlavorSession(sessions, "small").poll(listener, settings, SMALL)

    wanted = [Measurement("queue", "small", 30.0), Measurement("job", "small", 60.0)]
    assert telemetry.take(IDENTITY.unit) == (wanted if measures else [])


def test_messages_tell_of_the_job_of_a_runner(agent: Agent, server: github.GitHub, control: GitHubControl) -> None:
    """When it was queued, began and ended, and how: what a reconcile then need not ask for."""
    agent.save()
    number = awaited(lambda found: found.answered_at > 0, "the session").scale_set
    name = f"{IDENTITY.prefix}aa"
    runner, _ = agent.client.jit_configuration(int(number or 0), name)
    job = control.add_job(REPO.path, labels=[SET])
    awaited(lambda found: found.assigned == 1, "the job")

    with server.state.lock:
        found = server.state.runners[runner]
        found.seen = time.monotonic()
        assert server.state.take_job(found) is not None
    wait_for(lambda: name in known_jobs.load(IDENTITY.unit), "its start")
    with server.state.lock:
        server.state.complete_job(server.state.jobs[job["id"]], "failure")
    wait_for(lambda: known_jobs.load(IDENTITY.unit)[name].result, "its end")

    told = known_jobs.load(IDENTITY.unit)[name]
    assert (told.run, told.conclusion) == (job["run_id"], "failure")
    assert told.queue_duration is not None
    assert told.duration is not None


# A server that offers jobs; GitHub.com assigns them by itself.
enterprise = pytest.mark.parametrize("server", ["3.17.0"], indirect=True)


@enterprise
def test_jobs_that_were_offered_to_a_former_process_are_taken(agent: Agent, control: GitHubControl) -> None:
    """An Enterprise Server offers each job once: one without room then would otherwise wait for ever."""
    agent.save(replace(SMALL, capacity=1))
    control.add_job(REPO.path, labels=[SET])
    awaited(lambda found: found.assigned == 1, "the first job")
    control.add_job(REPO.path, labels=[SET])
    session = agent.sessions.by_flavor["small"]
    wait_for(lambda: session.offered.requests, "the second job's offer")
    agent.end()
    agent.save(replace(SMALL, capacity=2))

    agent.start()

    awaited(lambda found: found.assigned == 2, "both jobs")


@enterprise
def test_a_refused_acquisition_ends(agent: Agent, server: github.GitHub, control: GitHubControl) -> None:
    """The jobs of the request are given up; later ones are taken."""
    agent.save()
    awaited(lambda found: found.answered_at > 0, "the session")
    control.add_fault(path="/acquirejobs", status=400, times=1)
    first = control.add_job(REPO.path, labels=[SET])
    wait_for(lambda: "/acquirejobs" in str(control.requests()), "the refusal")

    second = control.add_job(REPO.path, labels=[SET])

    found = awaited(lambda found: found.assigned == 1, "the second job")
    jobs = server.state.jobs
    assert (jobs[first["id"]].scale_set, jobs[second["id"]].scale_set) == (None, found.scale_set)


@pytest.mark.parametrize("refused", [False, True], ids=["moved", "made again"])
def test_a_changed_group_leaves_no_set_behind(agent: Agent, control: GitHubControl, refused: bool) -> None:
    """The set moves, or is made again where the server does not move it; sets of others stay where they are."""
    control.add_organisation("org", ["builders"])
    agent.save(path=GithubOrg("org"))
    number = awaited(lambda found: found.answered_at > 0, "the session").scale_set
    other = agent.client.create(f"{IDENTITY.prefix}5-small", 1, []).set_id
    if refused:
        control.add_fault(method="PATCH", path="/runnerscalesets/", status=400, times=1)

    agent.save(path=GithubOrg("org", "builders"))

    def sets() -> dict[str, tuple[int, int, str | None]]:
        return {each["name"]: (each["id"], each["group"], each["owner"]) for each in control.scale_sets()}

    wait_for(lambda: sets()[SET][1:] == (2, "app/0") if SET in sets() else False, "the other group")
    assert (sets()[SET][0] == number) is not refused
    assert sets()[f"{IDENTITY.prefix}5-small"][:2] == (other, 1)
    awaited(lambda found: found.scale_set == sets()[SET][0], "its number")


def test_sets_at_a_former_path_are_deleted(
    agent: Agent, server: github.GitHub, control: GitHubControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the reconcile after the change, and only this unit's; the agent then has its sessions at the new path."""
    control.add_organisation("org")
    agent.save(path=GithubOrg("org"))
    awaited(lambda found: found.answered_at > 0, "the session")
    agent.client.create(f"{IDENTITY.prefix}5-small", 1, [])

    def restart(_: str) -> None:
        agent.end()
        agent.start()

    monkeypatch.setattr(host.agent, "end_sessions", restart)
    given = state(github_url=server.url, path=REPO, token=TOKEN, scaling=Scaling.DEMAND)
    with closing(github_client(given)) as rest:
        unit = UnitDemand(
            given, IDENTITY, markers.Markers(IDENTITY.unit), scale_set_client, lambda: rest, github_client
        )
        unit.hand_over({})

    def sets() -> set[tuple[str, str]]:
        return {(each["path"], each["name"]) for each in control.scale_sets()}

    expected = {("org", f"{IDENTITY.prefix}5-small"), (REPO.path, IDENTITY.scale_set("default"))}
    wait_for(lambda: sets() == expected, "the other path")


@pytest.mark.parametrize("end", [None, 3600.0], ids=["personal", "App"])
def test_a_refused_token(agent: Agent, end: float | None) -> None:
    """The operator replaces a personal one. For another one of an App, a reconcile reads GitHub's list of runners."""
    ends = None if end is None else time.time() + end
    agent.save(token="ghs_revoked", token_end=ends)
    found = awaited(lambda found: bool(found.problem), "the problem")

    assert ("invalid or expired" in found.problem, found.is_blocking) == (end is None, end is None)
    if end is not None:
        wait_for(lambda: markers.Markers(IDENTITY.unit).read(markers.LIST_DUE) is not None, "the marker")
        wait_for(lambda: agent.wakes, "a reconcile")

    agent.save(token_end=ends)
    awaited(lambda found: found.answered_at > 0 and not found.problem, "the session")


def test_a_token_near_its_end_asks_for_another(agent: Agent) -> None:
    """A reconcile writes a new one; it is asked for once in a while only."""
    agent.save(token_end=time.time() + 500)
    awaited(lambda found: found.answered_at > 0, "the session")

    wait_for(lambda: agent.wakes >= 2, "a reconcile")
    assert agent.wakes == 2


PROGRAM = """
import sys, types
from pathlib import Path
import agent_settings, demand, telemetry
from programs import agent
agent_settings.LOCKS = demand.LOCKS = telemetry.LOCKS = Path(sys.argv.pop())
agent.settings.load = lambda unit: types.SimpleNamespace(identity=types.SimpleNamespace(manages=bool))
agent.start_reconcile = lambda service: None
sys.exit(agent.main())
"""


def begun(folder: Path) -> "subprocess.Popen[bytes]":
    """The agent as a process of its own, with its files in this folder."""
    return subprocess.Popen([sys.executable, "-c", PROGRAM, "--unit", IDENTITY.unit, str(folder)])


def test_a_killed_process_loses_nothing(
    agent: Agent, server: github.GitHub, control: GitHubControl, tmp_path: Path
) -> None:
    """SIGKILL leaves the session until GitHub ends it; then the next process knows the same number. SIGTERM ends it."""
    agent.end()
    server.state.settings.session_life = 1.0
    agent.save()
    control.add_job(REPO.path, labels=[SET])
    first = begun(tmp_path)
    try:
        awaited(lambda found: found.assigned == 1, "the job")
    finally:
        first.kill()
        first.wait(10)
    demand.file_of(IDENTITY.unit).unlink()
    second = begun(tmp_path)
    try:
        awaited(lambda found: found.assigned == 1, "the job again")
        second.terminate()
        assert second.wait(15) == 0
    finally:
        second.kill()
        second.wait(10)
    assert [each["owner"] for each in control.scale_sets()] == [None]


def test_an_unexpected_end_of_the_starter_ends_the_process(agent: Agent, tmp_path: Path) -> None:
    """systemd starts it again; what is printed of it has no secret."""
    agent.end()
    agent.save(token_end=time.time() + 500)
    failing = PROGRAM.replace("lambda service: None", f"lambda service: dict()[{TOKEN!r}]")
    arguments = [sys.executable, "-c", failing, "--unit", IDENTITY.unit, str(tmp_path)]

    found = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)

    assert found.returncode == 1
    assert "KeyError" in found.stderr
    assert TOKEN not in found.stderr
