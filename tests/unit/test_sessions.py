"""What the agent makes of the messages of a scale set, with a queue that the test fills."""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import agent_settings
import demand
import known_jobs
import telemetry
from agent_settings import AgentFlavor, AgentSettings
from demand import Demand
from errors import RateLimitError, TemporaryGithubError, TokenError
from gh.errors import NotVisibleError
from gh.queued_jobs import QueuedJob
from gh.scale_set_answers import Job, Message, ScaleSet, Statistics
from gh.scale_sets import ScaleSetError, SessionConflictError, SessionEndedError
from host.markers import Markers
from models import GithubOrg, GithubPath, GithubRepo
from naming import Identity
from programs import missed_jobs
from programs import sessions as module
from programs.sessions import ASSIGNMENT_LIFE, LATE, MOST_ASSIGNED, STUCK, FlavorSession, Sessions
from unlisted import PICK_UP

IDENTITY = Identity("app", 0, "0123abcd")
SMALL = AgentFlavor("small", ("app",), 5, 0, 2)
SETTINGS = AgentSettings(IDENTITY, "https://github.com", GithubRepo("org", "repo"), "ghp_token", None, (), {}, (SMALL,))
NAME = IDENTITY.scale_set("small")
NOW = 1_800_000_000.0
RUN = FlavorSession.run


@dataclass
class Queue:
    """A session's queue: its messages, and what the agent asked of it."""

    messages: list[Message | Exception | None] = field(default_factory=list)
    set_id: int = 7
    session: Any = field(default_factory=lambda: SimpleNamespace(statistics=Statistics()))
    renewed: Statistics = field(default_factory=lambda: Statistics(assigned=4))
    failing: set[str] = field(default_factory=set)
    acquired: list[list[int]] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    elsewhere: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    refusal: Exception = field(default_factory=lambda: ScaleSetError("request refused (HTTP 400)", 400, ""))
    offered: list[int] = field(default_factory=list)
    closed: bool = False
    idle: Callable[[], object] = bool
    """What the time without a message is spent with."""

    def _ask(self, what: str) -> None:
        if what in self.failing:
            raise TemporaryGithubError(f"no {what}")

    def message(self, _: int) -> Message | None:
        if not self.messages:
            self.idle()
            return None
        found = self.messages.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def delete(self, number: int) -> None:
        self._ask("delete")
        self.deleted.append(number)

    def acquire(self, requests: list[int]) -> int:
        self._ask("acquire")
        self.acquired.append(requests)
        if self.refused & set(requests):
            raise self.refusal
        return len(set(requests) - self.elsewhere)

    def acquirable(self) -> list[int]:
        self._ask("acquirable")
        return self.offered

    def renew(self) -> None:
        self._ask("renew")
        self.session = SimpleNamespace(statistics=self.renewed)

    def close(self) -> None:
        self.closed = True


class Client:
    """A client of the service, whose sessions have the test's queue. No set can be moved."""

    def __init__(self, queue: Queue) -> None:
        self.path: GithubPath = SETTINGS.path
        self.queue = queue
        self.group = 1
        self.found = [ScaleSet(7, NAME, 1, (NAME, "app"))]
        self.opened: list[int] = []
        self.deleted: list[int] = []
        self.closed = False
        self.refusal: Exception = TokenError("no access")
        self.failing: Exception | None = None
        """Why no set can be deleted."""
        self.sweeps = 0

    def group_id(self) -> int:
        return self.group

    def sets(self) -> list[ScaleSet]:
        return self.found

    def find(self, name: str, group: int) -> ScaleSet | None:
        return next((each for each in self.found if (each.name, each.group) == (name, group)), None)

    def move(self, set_id: int, group: int) -> ScaleSet:
        raise self.refusal

    def delete(self, number: int) -> None:
        self.deleted.append(number)

    def delete_sets(self, unwanted: Callable[[str], bool]) -> None:
        self.sweeps += 1
        if self.failing is not None:
            raise self.failing

    def create(self, name: str, group: int, labels: Sequence[str]) -> ScaleSet:
        return ScaleSet(8, name, group, (name, *labels))

    def open_session(self, set_id: int, owner: str) -> Queue:
        self.opened.append(set_id)
        return self.queue

    def close(self) -> None:
        self.closed = True


class World:
    """The sessions of a unit with one flavour, at a time that the test sets. The test takes the steps of a session."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOW
        self.wakes = 0
        self.settings = SETTINGS
        self.queue = Queue(idle=lambda: self.sessions.stop.wait(50))
        self.client = Client(self.queue)
        self.waiting: list[QueuedJob] | Exception = []
        self.over = threading.Event()
        self.trusted: list[object] = []
        rest = SimpleNamespace(queued_jobs=self._queued, close=lambda: None)

        def made(client: Any, ca_certificates: object) -> Any:
            self.trusted.append(ca_certificates)
            return client

        monkeypatch.setattr(agent_settings, "load", lambda _: self.settings)
        monkeypatch.setattr(module, "ScaleSetClient", lambda *_, ca_certificates: made(self.client, ca_certificates))
        monkeypatch.setattr(module, "GithubClient", lambda *_, ca_certificates: made(rest, ca_certificates))
        monkeypatch.setattr(FlavorSession, "run", lambda _: self.over.wait(60))
        self.sessions = Sessions(IDENTITY.unit, self._wake, clock=lambda: self.now, jitter=lambda _, longest: longest)
        self.sessions.refresh()
        self.session = self.sessions.by_flavor["small"]

    def _wake(self) -> None:
        self.wakes += 1

    def _queued(self, *_: object) -> list[QueuedJob]:
        if isinstance(self.waiting, Exception):
            raise self.waiting
        return self.waiting

    def step(self) -> None:
        """Open the session, or take one message."""
        found = self.sessions.flavor("small")
        assert found is not None
        self.session.step(*found)

    def run(self, seconds: float) -> None:
        """Let the session go on for so long, which takes none of the test's time."""
        self.sessions.stop = Passing(self, self.now + seconds)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("programs.sessions.time.monotonic", lambda: self.now)
            RUN(self.session)

    def attempts(self, error: Exception, seconds: float) -> list[float]:
        """When it was tried to open a session meanwhile, which fails."""
        begun = self.now
        found: list[float] = []

        def fail(*_: object) -> Queue:
            found.append(self.now - begun)
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.client, "open_session", fail)
            self.run(seconds)
        return found

    def poll(self, *messages: Message | None) -> Demand:
        """Take messages, None for an answer without one; what is known after them."""
        if not self.client.opened:
            self.step()
        self.queue.messages = list(messages)
        while self.queue.messages:
            self.step()
        return demand.load(IDENTITY.unit)["small"]

    def close(self) -> None:
        self.over.set()
        self.session.thread.join(10)


class Passing(threading.Event):
    """What ends the agent at a time. Each wait for it is over at once, and moves the clock instead."""

    def __init__(self, world: World, end: float) -> None:
        super().__init__()
        self._world, self._end = world, end

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._world.now += timeout
        if self._world.now >= self._end:
            self.set()
        return self.is_set()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for each in (demand, telemetry):
        monkeypatch.setattr(each, "LOCKS", tmp_path)
    for name in module.PROXIES:
        monkeypatch.setenv(name, "http://former.example")
        monkeypatch.setenv(name.lower(), "http://former.example")
    made = World(monkeypatch)
    yield made
    made.close()


@pytest.fixture
def refreshed(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose ``sessions.refresh`` asks for missed jobs each time."""
    monkeypatch.setattr(missed_jobs.Schedule, "is_due", lambda _: True)
    monkeypatch.setattr(world.sessions, "find_missed", lambda *_: None)
    return world


def join_sweeps() -> None:
    """Wait until no sets of removed flavours are being deleted."""
    for thread in threading.enumerate():
        if thread.name == "removed flavours":
            thread.join(10)


def offers(*requests: int) -> tuple[Job, ...]:
    return tuple(Job("JobAvailable", str(request), request) for request in requests)


@pytest.mark.parametrize("failing", ["delete", "acquire"])
def test_what_fails_after_a_message_loses_no_statistics(
    world: World, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """GitHub does not give it again in this session; what was not acquired is asked for again. Both are logged."""
    world.queue.failing = {failing}

    assert world.poll(Message(1, Statistics(assigned=1), offers(11))).assigned == 1
    world.queue.failing = set()
    assert world.poll(None).assigned == 1

    assert world.queue.acquired == [[11]]
    what = {"delete": "the message was not deleted", "acquire": "no jobs were acquired"}[failing]
    assert f"small: {what}: no {failing}" in caplog.messages


def test_messages_that_were_not_deleted_are_deleted_with_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last ones up to a limit; in another session they come again by themselves."""
    monkeypatch.setattr(module, "MOST_UNDELETED", 3)
    world.queue.failing = {"delete"}
    world.poll(*(Message(number, Statistics(), ()) for number in range(1, 5)))
    assert world.queue.deleted == []

    world.queue.failing = set()
    world.poll(Message(5, Statistics(), ()), Message(6, Statistics(), ()))
    assert world.queue.deleted == [5, 4, 3, 6]

    world.queue.failing = {"delete"}
    world.poll(Message(7, Statistics(), ()))
    world.queue.failing = set()
    world.session.close()
    world.step()
    world.poll(Message(8, Statistics(), ()))
    assert world.queue.deleted == [5, 4, 3, 6, 8]


def test_jobs_beyond_the_room_are_acquired_when_there_is_room(world: World) -> None:
    """Of an Enterprise Server, which offers each job once. What was taken fills the room until statistics have it."""
    world.poll(Message(1, Statistics(), offers(11, 12, 13, 14)), None)
    assert world.queue.acquired == [[11, 12]]

    gone = Job("JobCompleted", "13", 13)
    world.poll(Message(2, Statistics(assigned=2), ()), None, Message(3, Statistics(assigned=1), (gone,)), None)

    assert world.queue.acquired == [[11, 12], [14]]


def test_offers_that_went_elsewhere_hold_no_room(world: World) -> None:
    """Those behind them are asked for at once, not after the next message, which may take a minute."""
    world.queue.elsewhere = {11, 12, 13}

    world.poll(Message(1, Statistics(), offers(11, 12, 13, 14)))

    assert world.queue.acquired == [[11, 12], [13, 14]]


def test_offers_have_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest are kept."""
    monkeypatch.setattr(module, "MOST_OFFERED", 3)

    world.poll(Message(1, Statistics(assigned=2), offers(*range(1, 9))))
    for number in (2, 3):
        world.poll(Message(number, Statistics(), ()))

    assert world.queue.acquired == [[6, 7], [8]]


def test_offers_that_are_refused_are_given_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and only those: the others of the request are asked for one by one. The log says it once."""
    world.queue.refused = {11, 13}

    world.poll(Message(1, Statistics(), offers(11, 12, 13)), None, None)

    assert world.queue.acquired == [[11, 12], [11], [12], [13]]
    [line] = [line for line in caplog.text.splitlines() if "refused" in line]
    assert "small: 2 offered jobs are refused, and given up; 11: request refused (HTTP 400)" in line


def test_one_message_leads_to_few_requests(world: World) -> None:
    """Also where all the offered jobs went elsewhere: the requests for the others follow with the next answers."""
    world.settings = replace(SETTINGS, flavors=(replace(SMALL, capacity=1),))
    world.sessions.refresh()
    world.queue.elsewhere = set(range(1, 251))

    numbers = []
    for message in (Message(1, Statistics(), offers(*range(1, 251))), None, None, None):
        world.poll(message)
        numbers.append(len(world.queue.acquired))

    assert numbers == [100, 200, 250, 250]


@pytest.mark.parametrize(
    "error",
    [
        TemporaryGithubError("server error"),
        TokenError("no access"),
        NotVisibleError("org/repo", ""),
        SessionEndedError("over", 401, ""),
    ],
    ids=lambda error: type(error).__name__,
)
def test_offers_are_kept_where_it_is_not_they_that_are_refused(world: World, error: Exception) -> None:
    """They are asked for again with the next answer of the queue."""
    world.queue.refused, world.queue.refusal = {11}, error
    world.poll(Message(1, Statistics(), offers(11)))
    world.queue.refused = set()

    world.poll(None)

    assert world.queue.acquired == [[11], [11]]


@pytest.mark.parametrize("failing", [set(), {"acquirable"}, {"acquire"}])
def test_a_new_session_takes_what_was_offered_before(world: World, failing: set[str]) -> None:
    """At once, as far as there is room. The session is open also where that fails."""
    world.queue.offered, world.queue.failing = [11, 12, 13], failing

    world.step()

    assert demand.load(IDENTITY.unit)["small"].answered_at == NOW
    assert world.queue.acquired == ([] if failing else [[11, 12]])
    world.queue.offered, world.queue.failing = [], set()
    world.poll(Message(1, Statistics(), ()))
    left = [] if "acquirable" in failing else [[11, 12]]
    assert world.queue.acquired == (left if failing else [[11, 12], [13]])


def test_former_offers_are_asked_for_until_there_is_an_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in each session: otherwise nothing would report them again. The numbers are published before."""
    asked: list[float] = []
    offered, failing = world.queue.acquirable, {"acquirable"}

    def acquirable() -> list[int]:
        asked.append(demand.load(IDENTITY.unit)["small"].answered_at if demand.load(IDENTITY.unit) else 0.0)
        return offered()

    monkeypatch.setattr(world.queue, "acquirable", acquirable)
    world.queue.offered, world.queue.failing = [11], failing
    world.step()
    world.now += 50
    world.poll(None)
    world.queue.failing = set()
    world.poll(None, None)

    assert world.queue.acquired == [[11]]
    assert asked == [0.0, NOW + 50, NOW + 50]
    world.session.close()
    world.step()
    assert len(asked) == 4


@pytest.mark.parametrize("error", [TokenError("no access"), ScaleSetError("refused", 400, "")], ids=str)
def test_a_set_that_cannot_be_moved_is_made_again(
    world: World, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the refusal, which the log has: a plain 401 or 403 is one of the credentials."""
    caplog.set_level("INFO")
    world.client.path, world.client.group, world.client.refusal = GithubOrg("org", "builders"), 2, error

    world.step()

    assert (world.client.deleted, world.client.opened) == ([7], [8])
    assert f"small: the scale set is made again in the runner group: {error}" in caplog.messages


def test_jobs_that_wait_long_start_a_reconcile(refreshed: World, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and again after a change: a runner that was taken for ready with a new list may be unable to take them."""
    caplog.set_level("INFO")
    waiting = Job("JobAssigned", "a", queued=NOW - 3600, assigned=NOW)
    steps: list[tuple[Message | None, float, int]] = [
        (Message(1, Statistics(assigned=2, running=1), (waiting,)), 0, 0),
        (None, STUCK - 1, 0),
        (None, 1, 1),
        (None, 2 * STUCK, 1),
        # Another one waits, after one has begun and ended.
        (Message(2, Statistics(assigned=2, running=0), ()), 0, 1),
        (None, STUCK, 2),
        (Message(3, Statistics(assigned=2, running=2), (replace(waiting, kind="JobStarted"),)), 0, 2),
        (None, STUCK, 2),
    ]
    wakes = None
    for message, seconds, expected in steps:
        refreshed.now += seconds
        refreshed.poll(message)
        wakes = refreshed.wakes if wakes is None else wakes
        refreshed.sessions.refresh()
        assert refreshed.wakes - wakes == expected, (message, seconds)
    assert caplog.messages.count("small: jobs still wait for runners") == 2


def test_waiting_jobs_are_noticed_before_github_withdraws_them() -> None:
    """After 5 minutes. The list is read again when it is a minute old, and 1 is announced with the next request."""
    withdrawn, request = 300, 50

    assert PICK_UP < STUCK < LATE < withdrawn - request
    assert withdrawn < ASSIGNMENT_LIFE <= 2 * withdrawn


def test_assigned_jobs_have_a_bound(world: World) -> None:
    """Messages of a server that never ends its jobs do not fill the memory; there is room again once one begins."""
    jobs = tuple(Job("JobAssigned", str(number), assigned=NOW) for number in range(MOST_ASSIGNED + 5))
    assert world.poll(Message(1, Statistics(), jobs)).assigned == MOST_ASSIGNED

    started = replace(jobs[0], kind="JobStarted")

    assert world.poll(Message(2, Statistics(), (started,))).assigned == MOST_ASSIGNED - 1
    assert world.poll(Message(3, Statistics(), jobs[-1:])).assigned == MOST_ASSIGNED


def test_missed_jobs_are_asked_for_one_at_a_time(refreshed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While GitHub has not answered no other thread asks; afterwards one does again."""
    asked, answer = threading.Semaphore(0), threading.Semaphore(0)
    begun: list[object] = []

    def find(*arguments: object) -> None:
        begun.append(arguments)
        asked.release()
        answer.acquire(timeout=10)

    monkeypatch.setattr(refreshed.sessions, "find_missed", find)
    for _ in range(3):
        refreshed.sessions.refresh()
    assert asked.acquire(timeout=10)
    [first] = [thread for thread in threading.enumerate() if thread.name == "missed jobs"]
    assert len(begun) == 1

    answer.release(2)
    first.join(10)
    refreshed.sessions.refresh()

    assert asked.acquire(timeout=10)
    assert len(begun) == 2


@pytest.mark.parametrize(("late", "maximum", "missed"), [(False, 5, 2), (True, 5, 1), (False, 0, 0)])
def test_no_more_jobs_are_missed_than_are_announced(
    world: World, late: bool, maximum: int, missed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """GitHub keeps back the others. A new session announces as little as the last one; with maximum 0, none is open."""
    if late:
        world.poll(Message(1, Statistics(), (Job("JobAssigned", "a", assigned=NOW),)))
        world.now += LATE
        world.poll(None)
        world.session.close()
    world.settings = replace(SETTINGS, flavors=(replace(SMALL, maximum=maximum),))
    world.sessions.refresh()
    world.step()
    world.waiting = [QueuedJob(number, "build", ("app",), world.now - 600) for number in range(3)]

    world.sessions.find_missed(world.settings, GithubRepo("org", "repo"))

    assert (world.session.is_late, world.sessions.known("small").missed) == (late, missed)
    assert (world.sessions.known("small").missed_since is not None) == bool(missed)
    logged = [line for line in caplog.messages if "did not reach" in line]
    assert logged == ([f"small: {missed} queued jobs did not reach the scale set"] if missed else [])


def test_missed_jobs_wait_since_the_oldest_of_them_was_created(world: World) -> None:
    """It changes as they go, and ends with them. The jobs that are assigned have a time of their own."""
    world.poll(Message(1, Statistics(assigned=1), (Job("JobAssigned", "a", assigned=NOW),)))
    for ages in ([600, 900], [600], []):
        world.waiting = [QueuedJob(number, "build", ("app",), NOW - age) for number, age in enumerate(ages)]
        world.sessions.find_missed(SETTINGS, GithubRepo("org", "repo"))
        found = demand.load(IDENTITY.unit)["small"]
        assert (found.since, found.waits_since) == (NOW, NOW - max(ages, default=0))


@pytest.mark.parametrize(
    ("labels", "is_kept"),
    [
        ((NAME, "App"), True),
        ((NAME,), True),
        (("app",), False),
        ((NAME, "app", "former"), False),
    ],
)
def test_after_a_boot_a_set_is_kept_whose_labels_are_all_wanted(
    world: World, labels: tuple[str, ...], is_kept: bool
) -> None:
    """The server may have dropped the others. What is known of them is gone then."""
    world.settings = replace(SETTINGS, flavors=(replace(SMALL, labels=("app", "other")),))
    world.sessions.refresh()
    world.client.found = [ScaleSet(7, NAME, 1, labels)]

    world.step()

    assert world.client.deleted == ([] if is_kept else [7])
    missing = {"app", "other"} - {label.lower() for label in labels}
    assert set(world.sessions.known("small").dropped) == (missing if is_kept else set())


def test_numbers_of_another_place_are_deleted(world: World) -> None:
    """The id of a set is another set's there; another group of the organisation is no other place."""
    world.poll(Message(1, Statistics(assigned=1), ()))

    world.settings = replace(SETTINGS, path=GithubRepo("org", "other"))
    world.sessions.refresh()

    assert world.sessions.known("small") == Demand()


def test_what_is_told_of_jobs_is_kept(world: World) -> None:
    """For a reconcile, before the demand is written that starts one; durations are recorded without cos-agent only."""
    name = f"{IDENTITY.prefix}aa"
    job = Job("JobStarted", "a", queued=100.0, started=130.0, runner=name)

    world.poll(Message(1, Statistics(), (job,)))

    assert known_jobs.load(IDENTITY.unit)[name].queue_duration == 30.0
    assert telemetry.take(IDENTITY.unit) == []


def test_a_message_without_statistics_has_those_of_the_session(world: World) -> None:
    """They are asked for, and again after a failure: until then an answer without a message says nothing."""
    world.poll()
    world.now += 50
    world.queue.failing = {"renew"}
    with pytest.raises(TemporaryGithubError):
        world.poll(Message(1, None, ()))
    with pytest.raises(TemporaryGithubError):
        world.poll(None)
    assert world.queue.deleted == [1]
    assert demand.load(IDENTITY.unit)["small"].answered_at == NOW

    world.queue.failing = set()

    assert world.poll(None).assigned == 4


@pytest.mark.parametrize(
    ("times", "since"),
    [
        pytest.param({"queued": NOW - 50, "assigned": NOW - 10}, NOW - 50, id="queued"),
        pytest.param({"assigned": NOW - 10}, NOW - 10, id="assigned"),
        pytest.param({}, NOW, id="no time"),
        pytest.param({"queued": NOW + 50, "assigned": NOW + 60}, NOW, id="the clock is behind"),
    ],
)
def test_a_job_waits_since_it_was_queued(world: World, times: dict[str, float], since: float) -> None:
    """The time is GitHub's, and never in the future: the flavour that waits longest is first."""
    assert world.poll(Message(1, Statistics(), (Job("JobAssigned", "a", **times),))).since == since  # type: ignore[arg-type]

    world.now += ASSIGNMENT_LIFE

    assert world.poll(None).assigned == 0


@pytest.mark.parametrize("is_new_session", [False, True])
def test_a_job_that_is_assigned_again_waits_since_the_first_time(world: World, is_new_session: bool) -> None:
    """After 5 minutes without a runner it is given back, and its next message may have no time."""
    again = Job("JobAssigned", "a", assigned=NOW + 300)
    world.poll(Message(1, Statistics(), (Job("JobAssigned", "a", queued=NOW - 50, assigned=NOW),)))
    world.poll(Message(2, Statistics(), (Job("JobCompleted", "a", result="canceled"),)))
    if is_new_session:
        world.session.close()
        world.client.opened.clear()
    world.now += 300

    assert world.poll(Message(3, Statistics(), (again,))).since == NOW - 50

    for ended in (Job("JobStarted", "a"), Job("JobCompleted", "a", runner="app-0-aa")):
        world.poll(Message(4, Statistics(), (ended,)))
        assert world.poll(Message(5, Statistics(), (again,))).since == NOW + 300


def test_times_of_jobs_that_were_taken_back_have_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of them are never assigned to this unit again. The newest are kept."""
    monkeypatch.setattr(module, "MOST_ASSIGNED", 2)
    for number, name in enumerate("abc"):
        world.poll(Message(number, Statistics(), (Job("JobAssigned", name, assigned=NOW - 9),)))
        world.poll(Message(number, Statistics(), (Job("JobCompleted", name),)))

    for name, since in (("c", NOW - 9), ("a", NOW)):
        assert world.poll(Message(9, Statistics(), (Job("JobAssigned", name),))).since == since
        world.poll(Message(9, Statistics(), (Job("JobStarted", name),)))


def test_jobs_that_no_message_names_wait_since_they_were_seen(world: World) -> None:
    """Those of a former session are in the statistics only. Where none waits any more, the time is over."""
    assert world.poll(Message(1, Statistics(assigned=1), ())).since == NOW
    world.now += 50
    assert world.poll(None).since == NOW

    assert world.poll(Message(2, Statistics(assigned=1, running=1), ())).since is None


def test_one_is_announced_until_a_job_begins(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The end of a job says nothing about this unit's runners: it may never have begun, or have begun before."""
    waiting = tuple(Job("JobAssigned", id_, assigned=NOW) for id_ in "ab")
    world.poll(Message(1, Statistics(), waiting))
    world.now += LATE - 1
    world.poll(None)
    assert not world.session.is_late
    world.now += 1
    late = []

    for number, job in enumerate(
        (None, replace(waiting[0], kind="JobCompleted"), replace(waiting[1], kind="JobStarted"))
    ):
        world.poll(Message(number, Statistics(), (job,) if job else ()))
        late.append(world.session.is_late)

    assert late == [True, True, False]
    # Tests of the charm before this one may have let lines through that are no warnings.
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["small: jobs get no runners; 1 is announced until a job has begun"]


@pytest.mark.parametrize("end", ["closed", "without runners"])
def test_jobs_of_an_ended_session_do_not_make_the_unit_late(world: World, end: str) -> None:
    """Those whose assignment is over, and any once the flavour was to have no runners: the whole capacity is told."""
    world.poll(Message(1, Statistics(), (Job("JobAssigned", "a", assigned=NOW),)))
    if end == "closed":
        world.session.close()
        world.now += 5 * 3600
    else:
        world.settings = replace(SETTINGS, flavors=(replace(SMALL, maximum=0),))
        world.sessions.refresh()
        world.step()
        world.now += LATE
        world.settings = SETTINGS
        world.sessions.refresh()
    world.queue.offered = [11, 12]

    world.step()

    assert not world.session.is_late
    assert world.queue.acquired == [[11, 12]]


def test_an_assignment_grows_old_while_the_queue_is_quiet(world: World) -> None:
    """From when GitHub assigned it, which may be long before its message comes."""
    assigned = Job("JobAssigned", "a", assigned=NOW - 100)
    assert world.poll(Message(1, Statistics(), (assigned,))).assigned == 1

    world.now += ASSIGNMENT_LIFE - 100

    found = world.poll(None)
    assert (found.assigned, found.since, found.answered_at) == (0, None, world.now)


def test_running_jobs_are_told(world: World) -> None:
    """For the metrics: they do not wait."""
    assert world.poll(Message(1, Statistics(assigned=3, running=2), ())).running == 2


def test_the_end_of_an_outage_starts_a_reconcile(world: World) -> None:
    """Also with the number of before: there may be the fallback's runners."""
    world.poll(Message(1, Statistics(assigned=1), ()))
    wakes = world.wakes
    world.now += demand.PATIENCE - 1
    world.poll(None)
    assert world.wakes == wakes

    world.now += demand.PATIENCE
    world.poll(None)

    assert world.wakes == wakes + 1


@pytest.mark.parametrize("answered", [True, False])
def test_an_outage_starts_one_reconcile(world: World, answered: bool) -> None:
    """When the fallback holds from then on, whether or not there ever was an answer."""
    if answered:
        world.poll(Message(1, Statistics(), ()))
    wakes = world.wakes
    world.now += demand.PATIENCE - 1
    world.sessions.refresh()
    assert world.wakes == wakes

    world.now += 1
    for _ in range(3):
        world.sessions.refresh()

    assert world.wakes == wakes + 1


def test_a_clock_that_was_set_back_starts_one_reconcile(world: World) -> None:
    """An answer from the future is none: the fallback holds until there is another one."""
    world.poll(Message(1, Statistics(), ()))
    wakes = world.wakes

    world.now -= demand.PATIENCE
    for _ in range(3):
        world.sessions.refresh()

    assert world.wakes == wakes + 1


@pytest.mark.parametrize(
    ("assigned", "min_idle", "missed", "wanted"), [(1, 0, 0, 1), (1, 2, 0, 3), (1, 0, 3, 4), (9, 0, 0, 5), (3, 1, 4, 5)]
)
def test_a_reconcile_is_started_where_another_number_is_wanted(
    world: World, caplog: pytest.LogCaptureFixture, assigned: int, min_idle: int, missed: int, wanted: int
) -> None:
    """Of assigned and missed jobs and idle runners, up to the maximum. The log has it, and the same number once."""
    caplog.set_level("INFO")
    flavor = replace(SMALL, min_idle=min_idle)
    for more in (0, 50):
        change = partial(replace, assigned=assigned, missed=missed, answered_at=NOW + more)
        world.sessions.publish(flavor, change)

    assert world.wakes == 1
    assert caplog.messages.count(f"small: {wanted} runners are wanted") == 1


def test_demand_that_cannot_be_written_is_no_end(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk may be full for a while: the reason is logged, and the session goes on."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    world.step()
    with monkeypatch.context() as full:
        full.setattr(demand, "save", fail)
        world.queue.messages = [Message(1, Statistics(assigned=1), ())]
        world.step()

    assert "The demand was not written: [Errno 28] No space left on device" in caplog.messages
    assert world.poll(None).assigned == 1


@pytest.mark.parametrize(("text", "problem"), [("x" * 999, "x" * 200), ("", "TemporaryGithubError")])
def test_a_long_problem_is_cut(world: World, text: str, problem: str) -> None:
    """It is a part of the unit's status. One without a text is told by its kind."""
    world.attempts(TemporaryGithubError(text), 1)

    assert demand.load(IDENTITY.unit)["small"].problem == problem


def test_sets_of_removed_flavours_are_deleted_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After each change of the flavours; a failure is logged, and follows another attempt half a minute later."""
    caplog.set_level("INFO")
    now = [1000.0]
    monkeypatch.setattr("programs.sessions.time.monotonic", lambda: now[0])

    def swept(seconds: float) -> int:
        now[0] += seconds
        world.sessions.refresh()
        join_sweeps()
        number, world.client.sweeps = world.client.sweeps, 0
        return number

    assert swept(0) == 1
    world.settings = replace(SETTINGS, flavors=(SMALL, replace(SMALL, name="large")))
    world.client.failing = TemporaryGithubError("server error")
    assert [swept(seconds) for seconds in (0, 29, 1)] == [1, 0, 1]
    assert caplog.messages.count("Scale sets of removed flavours are not deleted yet: server error") == 2

    world.client.failing = None
    assert [swept(seconds) for seconds in (29, 1, 3600)] == [0, 1, 0]


def test_sets_of_removed_flavours_wait_for_the_end_of_a_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As sessions do: requests before it are refused, and make it longer."""
    now = [time.monotonic() + 3600]
    monkeypatch.setattr("programs.sessions.time.monotonic", lambda: now[0])
    end = datetime.now(timezone.utc) + timedelta(seconds=600)
    world.client.failing = RateLimitError("used up", end)
    world.settings = replace(SETTINGS, flavors=(SMALL, replace(SMALL, name="large")))
    sweeps = []

    for seconds in (0, 30, 550, 30):
        now[0] += seconds
        before = world.client.sweeps
        world.sessions.refresh()
        join_sweeps()
        sweeps.append(world.client.sweeps - before)

    assert sweeps == [1, 0, 0, 1]


def test_flavours_that_change_as_a_deletion_ends_are_not_missed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither between the look whether they have changed and the note that all is done: one more deletion follows."""
    join_sweeps()
    changes: list[threading.Thread] = []

    class Time(float):
        """A time that is compared while the settings change."""

        def __add__(self, seconds: float) -> "Time":
            return Time(float(self) + seconds)

        def __eq__(self, other: object) -> bool:
            if not changes:
                world.settings = replace(SETTINGS, flavors=(SMALL, replace(SMALL, name="large")))
                changes.append(threading.Thread(target=other_sessions.refresh))
                changes[0].start()
                # It waits for the end of the comparison where nothing may come in between.
                changes[0].join(0.3)
            return float(self) == other

        __hash__ = float.__hash__

    monkeypatch.setattr("programs.sessions.time.monotonic", lambda: Time(1000))
    other_sessions = Sessions(IDENTITY.unit, lambda: None, clock=lambda: NOW)
    world.client.sweeps = 0
    for _ in range(3):
        other_sessions.refresh()
        join_sweeps()
        for thread in changes:
            thread.join(10)

    assert world.client.sweeps == 2


def test_the_certificates_of_the_option_are_trusted(world: World) -> None:
    """By both clients of the agent, as by that of a reconcile."""
    world.settings = replace(SETTINGS, ca_certificates=("authority",))

    world.sessions.refresh()
    world.sessions.find_missed(world.settings, GithubRepo("org", "repo"))

    assert world.trusted[1:] == [("authority",)] * 2


def test_queued_jobs_that_cannot_be_asked_for_are_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """REST is a backstop: without it no job is taken for missed, and the reason is told."""
    caplog.set_level("INFO")
    world.poll(Message(1, Statistics(), ()))
    world.waiting = TokenError("no permission")

    world.sessions.find_missed(world.settings, GithubRepo("org", "repo"))

    assert "Queued jobs are not compared with those of the scale sets: no permission" in caplog.messages
    assert world.sessions.known("small").missed == 0


def test_another_process_keeps_what_the_former_one_knew(world: World) -> None:
    """Until each flavour's session has an answer; flavours that are gone are left out."""
    large = Demand(assigned=3, answered_at=NOW - 5)
    demand.save(IDENTITY.unit, {"large": large, "gone": Demand(assigned=1)})
    other = Sessions(IDENTITY.unit, lambda: None, clock=lambda: NOW)
    world.settings = replace(SETTINGS, flavors=(SMALL, replace(SMALL, name="large")))
    other.refresh()

    other.publish(SMALL, lambda known: replace(known, answered_at=NOW))

    assert demand.load(IDENTITY.unit) == {"large": large, "small": Demand(answered_at=NOW)}


def test_proxies_that_were_removed_are_not_used(world: World) -> None:
    """The agent lives longer than the options of the model."""
    world.settings = replace(SETTINGS, proxies={"https_proxy": "http://new.example"})
    world.sessions.refresh()

    found = {name: os.environ[name] for name in os.environ if name.upper() in module.PROXIES}
    assert found == {"https_proxy": "http://new.example"}


def test_pauses_double_while_there_is_no_session(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """From 1 to 30 seconds, and begin anew after a success. Each attempt is logged; one reconcile shows the problem."""
    caplog.set_level("INFO")
    error = TemporaryGithubError("server error")

    assert world.attempts(error, 100) == [0, 1, 3, 7, 15, 31, 61, 91]
    assert world.wakes == 1
    assert caplog.messages.count("small: server error") == 8
    assert demand.load(IDENTITY.unit)["small"].problem == "server error"

    world.step()
    assert f"small: the session of the scale set {NAME} is open" in caplog.messages
    world.session.close()

    assert world.attempts(error, 5) == [0, 1, 3]


@pytest.mark.parametrize(
    ("error", "opened"),
    [(TemporaryGithubError("server error"), [7]), (SessionEndedError("over", 401, ""), [7, 7])],
    ids=lambda value: type(value).__name__,
)
def test_a_session_that_github_ended_is_opened_anew(world: World, error: Exception, opened: list[int]) -> None:
    """Only such a one: after another error the same session goes on, and loses no message."""
    world.step()
    world.queue.messages = [error, None]

    world.run(60)

    assert world.client.opened == opened
    assert world.queue.messages == []


def test_what_the_operator_must_fix_is_told_at_once(world: World) -> None:
    """A reconcile shows that it blocks the unit, and another one that it is over: also while demand is known."""
    for is_known in (False, True):
        if is_known:
            world.step()
            world.session.close()
        for error, blocks in ((TokenError("no access"), True), (TemporaryGithubError("server error"), False)):
            world.wakes = 0
            world.attempts(error, 10)
            assert (demand.load(IDENTITY.unit)["small"].is_blocking, world.wakes) == (blocks, 1)
        world.attempts(TokenError("no access"), 10)
        world.wakes = 0
        world.step()
        assert (demand.load(IDENTITY.unit)["small"].is_blocking, world.wakes) == (False, 1)
        world.session.close()


def test_a_session_that_was_closed_meanwhile_has_no_problem(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The request for messages then ends with an error. By then there may be a maximum again."""
    world.step()

    def refuse(_: int) -> None:
        world.session.close()
        raise SessionEndedError("over", 400, "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.queue, "message", refuse)
        world.step()

    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert (demand.load(IDENTITY.unit)["small"].problem, warnings) == ("", [])
    world.step()
    assert world.client.opened == [7, 7]


def test_a_conflict_is_a_problem_after_two_minutes(world: World) -> None:
    """Until then it is what a killed agent leaves: GitHub ends its session within a minute. Each conflict has them."""
    error = SessionConflictError("another session", 409, "")
    for _ in range(2):
        problems = []
        for seconds in (119, 2, 2):
            world.attempts(error, seconds)
            problems.append(world.sessions.known("small").problem)
        assert problems == ["", "", "another session"]

        world.step()
        world.session.close()


def test_a_flavour_without_runners_is_looked_at_now_and_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no session that waits for messages: without a pause the agent would take a whole core."""
    world.settings = replace(SETTINGS, flavors=(replace(SMALL, maximum=0),))
    world.sessions.refresh()
    published: list[float] = []

    def publish(*_: object) -> None:
        published.append(world.now)
        if len(published) > 50:
            world.sessions.stop.set()

    monkeypatch.setattr(world.sessions, "publish", publish)
    world.run(100)

    assert 2 <= len(published) <= 10


def test_the_settings_are_looked_at_every_few_seconds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed option counts soon, and the agent takes little of the CPU meanwhile. At its end sessions are closed."""
    monkeypatch.setattr(module, "THREAD_END", 0.0)
    world.step()
    world.sessions.stop = Passing(world, world.now + 0.1)

    world.sessions.run()

    assert 1 <= world.now - NOW <= 5
    assert world.queue.closed


def test_settings_that_have_vanished_start_a_reconcile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, which writes them again; not where demand is over, or the unit leaves."""
    for is_known, leaves, wakes in ((False, False, 0), (True, False, 1), (True, False, 1), (True, True, 0)):
        if is_known:
            demand.save(IDENTITY.unit, {"small": Demand()})
        world.sessions.refresh()
        world.wakes = 0
        with monkeypatch.context() as patch:
            patch.setattr(agent_settings, "load", lambda _: None)
            patch.setattr(Markers, "read", lambda *_, leaves=leaves: "" if leaves else None)
            for _ in range(3):
                world.sessions.refresh()
        assert world.wakes == wakes


def test_a_token_is_renewed_ten_minutes_before_its_end(refreshed: World) -> None:
    """By a reconcile, and by another one every 2 minutes while there is no new token."""
    refreshed.settings = replace(SETTINGS, token_end=NOW + 3600)
    asked: list[float] = []
    for _ in range(60):
        refreshed.poll(None)
        wakes = refreshed.wakes
        refreshed.sessions.refresh()
        asked += [refreshed.now - NOW] * (refreshed.wakes - wakes)
        refreshed.now += 60

    assert asked == [3060, 3180, 3300, 3420, 3540]


def test_units_do_not_come_back_all_at_once_after_a_limit(world: World) -> None:
    """It ends for all that share a token in the same second; one that is over is no reason to ask at once.

    After an hour it is asked whether the limit still holds.
    """
    for part in (0.5, 1.0):
        world.sessions.jitter = lambda low, high, part=part: low + part * (high - low)  # type: ignore[misc]
        for left, longest in ((100, 100), (-100, 0), (86400, 3600)):
            session = FlavorSession(world.sessions, "small")
            error = RateLimitError("used up", datetime.now(timezone.utc) + timedelta(seconds=left))

            assert session.failed(SMALL, error) == pytest.approx(longest + 0.5 + part / 2, abs=0.1)


def test_an_unexpected_error_ends_the_session_and_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next attempt opens a new one."""
    world.step()
    closed: list[bool] = []

    def fail(*_: Any) -> float:
        closed.append(world.queue.closed)
        if len(closed) == 2:
            world.sessions.stop.set()
        raise KeyError("unexpected thing")

    monkeypatch.setattr(world.session, "step", fail)
    monkeypatch.setattr(world.session, "jittered", lambda: 0.0)
    RUN(world.session)

    assert closed == [False, True]
    assert [record.exc_info is not None for record in caplog.records if record.message == "small: unexpected"] == [
        True
    ] * 2
    assert "unexpected thing" in demand.load(IDENTITY.unit)["small"].problem


NO_FLAVOR = {"flavors": (replace(SMALL, name="large"),)}


@pytest.mark.parametrize(
    "changes",
    [
        {"token": "ghp_another"},
        {"token": "ghs_another", "token_end": NOW + 7200},
        {"path": GithubRepo("org", "other")},
        NO_FLAVOR,
    ],
    ids=["token", "App", "place", "no flavour"],
)
def test_new_settings_end_the_wait_for_a_limit(
    world: World, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of a personal token is not another's; a session of a removed flavour must end to delete its set."""
    monkeypatch.setattr(module, "RELOAD", 0.01)
    waits, steps = threading.Event(), []

    def step(found: AgentSettings, *_: Any) -> float:
        steps.append(found.token)
        if len(steps) == 1:
            raise RateLimitError("used up", datetime.now(timezone.utc) + timedelta(hours=1))
        world.sessions.stop.set()
        return 0.0

    def jittered() -> float:
        waits.set()
        return 0.0

    monkeypatch.setattr(world.session, "step", step)
    monkeypatch.setattr(world.session, "jittered", jittered)
    thread = threading.Thread(target=RUN, args=(world.session,), daemon=True)
    thread.start()
    assert waits.wait(10)
    monkeypatch.setattr(module, "ScaleSetClient", lambda *_, **__: Client(world.queue))
    world.settings = replace(SETTINGS, **changes)
    world.sessions.refresh()
    thread.join(20)

    assert not thread.is_alive()
    assert len(steps) == (1 if "flavors" in changes else 2)


def test_another_token_of_an_app_does_not_end_the_wait_for_a_limit(world: World) -> None:
    """Each reconcile brings one, and the limit is that of the App's installation; a personal token has its own."""
    app = replace(SETTINGS, token="ghs_1", token_end=NOW + 3600)
    world.settings = app
    world.sessions.refresh()
    found = world.sessions.flavor("small")
    assert found is not None
    waited = []

    for settings in (replace(app, token="ghs_2", token_end=NOW + 7200), SETTINGS):
        world.settings = settings
        world.sessions.refresh()
        world.sessions.stop, begun = Passing(world, world.now + 3600), world.now
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("programs.sessions.time.monotonic", lambda: world.now)
            world.session.wait(600, *found)
        waited.append(world.now - begun)

    assert waited == [pytest.approx(600), pytest.approx(module.RELOAD)]


def test_all_sessions_have_one_time_to_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While GitHub does not answer, the agent ends within seconds however many flavours there are."""
    monkeypatch.setattr(module, "END", 0.2)
    monkeypatch.setattr(FlavorSession, "end", lambda _: world.over.wait(60))
    world.sessions.by_flavor = {str(number): FlavorSession(world.sessions, str(number)) for number in range(50)}

    begun = time.monotonic()
    world.sessions.close()

    assert time.monotonic() - begun < 5


def test_removed_flavours_do_not_hold_the_agent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the end of their sessions nor the deletion of their sets, which GitHub may answer a minute later."""
    waiting, answer = threading.Semaphore(0), threading.Event()
    over: list[str] = []

    def hang(*_: Any) -> list[str]:
        waiting.release()
        over.extend(["nobody went on"] * (not answer.wait(10)))
        return []

    monkeypatch.setattr(world.session, "close", hang)
    monkeypatch.setattr(world.client, "delete_sets", hang)
    try:
        world.settings = replace(SETTINGS, flavors=())
        world.sessions.refresh()
        assert waiting.acquire(timeout=10)
        world.over.set()
        world.session.thread.join(10)
        world.sessions.refresh()
        assert waiting.acquire(timeout=10)
        assert over == []
    finally:
        answer.set()


def test_a_flavour_that_came_back_keeps_its_set(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which sets are unwanted is asked after GitHub's answer, and not when the request began."""
    names: list[str] = []
    done = threading.Event()

    def delete(unwanted: Callable[[str], bool]) -> list[str]:
        world.settings = replace(SETTINGS, flavors=(SMALL, replace(SMALL, name="large")))
        monkeypatch.setattr(world.client, "delete_sets", lambda _: [])
        world.sessions.refresh()
        names.extend(filter(unwanted, map(IDENTITY.scale_set, ("small", "large", "gone"))))
        names.extend(filter(unwanted, ["another-0-0123abcd-small"]))
        done.set()
        return names

    world.settings = replace(SETTINGS, flavors=(SMALL,), token="ghp_another")
    monkeypatch.setattr(world.client, "delete_sets", delete)
    other = Sessions(IDENTITY.unit, lambda: None, clock=lambda: NOW)
    world.sessions = other
    other.refresh()

    assert done.wait(10)
    assert names == [IDENTITY.scale_set("gone")]


@pytest.mark.parametrize("answer", ["no answer", "unexpected", "another change", "done"])
def test_sets_of_removed_flavours_are_deleted_until_that_succeeds(
    world: World, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the error, and once more for flavours that have changed while GitHub was asked; then no more."""
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.0 if answer in ("no answer", "unexpected") else 3600.0)
    asked: list[str] = []
    errors = {"no answer": TemporaryGithubError("no answer"), "unexpected": KeyError("unexpected")}

    def delete(_: Callable[[str], bool]) -> list[str]:
        asked.append(answer)
        if len(asked) == 1 and answer == "another change":
            world.settings = replace(SETTINGS, flavors=(SMALL, replace(SMALL, name="large")))
            other.refresh()
        if len(asked) == 1 and answer in errors:
            raise errors[answer]
        return []

    monkeypatch.setattr(world.client, "delete_sets", delete)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    other = Sessions(IDENTITY.unit, lambda: None, clock=lambda: NOW)
    for _ in range(4):
        other.refresh()
        join_sweeps()

    assert len(asked) == (1 if answer == "done" else 2)


def test_a_late_unit_takes_one_offer_when_it_opens_a_session(world: World) -> None:
    """As with messages: with its whole capacity it would be given the jobs again that got no runner."""
    world.poll(Message(1, Statistics(), (Job("JobAssigned", "a", assigned=NOW),)))
    world.now += LATE
    world.session.close()
    world.queue.offered = [11, 12]

    world.step()

    assert world.queue.acquired == [[11]]


def test_offers_of_another_place_are_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers are other jobs there, or were offered to a set with other labels."""
    world.poll(Message(1, Statistics(assigned=2), offers(11, 12)))
    other = Client(Queue())
    monkeypatch.setattr(module, "ScaleSetClient", lambda *_, **__: other)
    world.settings = replace(SETTINGS, path=GithubRepo("org", "other"))
    world.sessions.refresh()

    world.step()

    assert (other.opened, other.queue.acquired) == ([7], [])


def test_connections_of_a_former_place_are_given_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the session there has ended with them; those of now when the agent has stopped."""
    world.step()
    other = Client(Queue())
    monkeypatch.setattr(module, "ScaleSetClient", lambda *_, **__: other)
    world.settings = replace(SETTINGS, path=GithubRepo("org", "other"))
    for _ in range(2):
        world.sessions.refresh()
        assert (world.client.closed, world.queue.closed) == (False, False)

    world.step()
    world.sessions.refresh()
    assert (world.client.closed, world.queue.closed, other.closed) == (True, True, False)
    world.over.set()
    world.session.thread.join(10)
    world.sessions.stop.set()
    world.sessions.run()
    assert other.closed
