"""The service of runner scale sets misbehaves: each request of its client with each fault, and the agent meanwhile.

All cases of requests share one stand-in for GitHub, those of the agent another one. Each has an organisation of its
own, and names it in all its requests.
"""

import itertools
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

import agent_settings
import demand
import errors
import redaction
import telemetry
from agent_settings import AgentFlavor, AgentSettings
from demand import Demand
from errors import GithubApiError, RateLimitError, TemporaryGithubError, TokenError
from gh import answers, scale_sets
from gh import client as gh_client
from gh.auth import Pat
from gh.client import ATTEMPTS, GithubClient
from gh.scale_set_answers import Session
from gh.scale_sets import Listener, ScaleSetClient, SessionConflictError, SessionEndedError, SetGoneError
from models import GithubOrg
from naming import Identity
from programs import sessions as programs
from programs.sessions import FlavorSession, Sessions
from sandbox import github
from sandbox.github.control import GitHubControl
from sandbox.github.scale_sets import FIRST_MESSAGE, Message
from sandbox.github.state import Settings
from tests.support.deployment import wait_for

TOKEN = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
GROUP = "builders"
SIDE_BY_SIDE = 60
# Seconds: more than all attempts take that fail at once, and the time that a case takes where GitHub never answers.
DEADLINE, HANGING_DEADLINE = 60.0, 2.0
HANGING = ("silence", "slow drip")
# For the machine that runs the tests, not for the client.
SLACK = 2.0
ANSWER_LIMIT = 1 << 16


class MarkedClient(ScaleSetClient):
    """A client whose requests name their case, so that a fault meets those of one case only."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.tokens: set[str] = set()

    def send(self, method: str, url: str, token: str, **more: Any) -> httpx2.Response:
        self.tokens.add(token.partition(" ")[2])
        return super().send(method, f"{url}{'&' if '?' in url else '?'}case={self.path.path}", token, **more)


@dataclass
class Place:
    """What a case has at GitHub: a client that is connected, a set, a session with a message, and a runner."""

    client: MarkedClient
    set_id: int
    listener: Listener
    runner: int
    job: int

    @property
    def secrets(self) -> list[str]:
        """The tokens of the case."""
        return [TOKEN, *self.client.tokens]


@dataclass(frozen=True)
class Call:
    """A request of the client: its method and path, how it comes about, and the result where all is well.

    ``kind``: the service retries; a queue is polled again by its user; connecting waits for a new token to count.
    """

    method: str
    path: str
    ask: Callable[[Place], Any]
    result: Any
    kind: str = "service"
    has_answer: bool = True
    """Whether the answer has a body, which is read."""


CALLS = {
    "registration token": Call("POST", "/registration-token", lambda at: len(at.client.sets()), 2, "token"),
    "connect": Call("POST", "/runner-registration", lambda at: len(at.client.sets()), 2, "connect"),
    "group_id": Call("GET", "/runnergroups/", lambda at: at.client.group_id(), 2),
    "sets": Call("GET", "/runnerscalesets", lambda at: len(at.client.sets()), 2),
    "find": Call("GET", "/runnerscalesets.*name=", lambda at: at.client.find("first", 1) is not None, True),
    "create": Call("POST", r"/runnerscalesets\?", lambda at: at.client.create("other", 1, []).name, "other"),
    "move": Call("PATCH", r"/runnerscalesets/\d+\?", lambda at: at.client.move(at.set_id, 2).group, 2),
    "delete": Call("DELETE", r"/runnerscalesets/\d+\?", lambda at: at.client.delete(at.set_id), None, has_answer=False),
    "open_session": Call("POST", "/sessions", lambda at: reopened(at).set_id > 0, True),
    "renewed": Call("PATCH", "/sessions/", lambda at: at.listener.renew(), None),
    "close_session": Call("DELETE", "/sessions/", lambda at: at.listener.close(), None, has_answer=False),
    "jit_configuration": Call("POST", "/generatejitconfig", lambda at: configured(at), True),
    "record": Call("GET", "/agents", lambda at: at.client.record("first") == at.runner, True),
    "delete_record": Call("DELETE", "/agents/", lambda at: at.client.delete_record(at.runner), None, has_answer=False),
    "message": Call("GET", "/scalesets/", lambda at: received(at), FIRST_MESSAGE, "queue"),
    "delete message": Call(
        "DELETE", "/scalesets/", lambda at: at.listener.delete(FIRST_MESSAGE), None, "queue", has_answer=False
    ),
    "acquirable": Call("GET", "/acquirablejobs", lambda at: at.listener.acquirable() == [at.job], True),
    "acquire": Call("POST", "/acquirejobs", lambda at: at.listener.acquire([at.job]), 1, "queue"),
}
# The methods that send no other requests than those above.
COMPOSED = {"access", "close", "delete_sets", "renew", "send"}


def reopened(at: Place) -> Listener:
    return at.client.open_session(at.set_id + 1, "app/0")


def configured(at: Place) -> bool:
    return at.client.jit_configuration(at.set_id, "another")[0] > at.runner


def received(at: Place) -> int:
    found = at.listener.message(2)
    assert found is not None
    return found.message_id


def refused(status: int, name: str) -> dict[str, Any]:
    kind = f"GitHub.Actions.Runtime.WebApi.{name}, GitHub.Actions.Runtime.WebApi"
    return {"status": status, "body": json.dumps({"typeName": kind, "message": "refused"})}


@dataclass(frozen=True)
class Fault:
    """Fields of the stand-in's fault, the error (None: the result is right), and how often the service is asked."""

    fields: dict[str, Any]
    error: type[Exception] | None = None
    requests: int = 1


USED_UP = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "4000000000"}
ODD = {"value": [7], "id": "x", "url": 7, "token": 7, "sessionId": 7, "messageId": "x", "runner": [], "count": -1}
QUOTE = "400 that quotes the tokens"
FAULTS = {
    "400": Fault({"status": 400}, GithubApiError),
    QUOTE: Fault({"status": 400}, GithubApiError),
    "401": Fault({"status": 401}, TokenError, 2),
    "401 once": Fault({"status": 401, "times": 1}, None, 2),
    "403": Fault({"status": 403}, TokenError),
    "403 rate limit": Fault({"status": 403, "headers": USED_UP}, RateLimitError),
    "404": Fault({"status": 404}, TokenError),
    "404 for a set": Fault(refused(404, "RunnerScaleSetNotFoundException"), SetGoneError),
    "400 for a session": Fault(refused(400, "RunnerScaleSetSessionExpiredException"), SessionEndedError),
    "409": Fault({"status": 409}, GithubApiError),
    "409 for a session": Fault(refused(409, "RunnerScaleSetSessionConflictException"), SessionConflictError),
    "422": Fault({"status": 422}, GithubApiError),
    "429": Fault({"status": 429, "headers": {"retry-after": "1"}}, RateLimitError),
    "500": Fault({"status": 500}, TemporaryGithubError, ATTEMPTS),
    "502 once then fine": Fault({"status": 502, "times": 1}, None, 2),
    "503": Fault({"status": 503}, TemporaryGithubError, ATTEMPTS),
    "503 with retry-after": Fault({"status": 503, "headers": {"retry-after": "60"}}, RateLimitError),
    "302 to another host": Fault({"status": 302, "headers": {"location": "https://attacker.example/"}}, TokenError),
    "silence": Fault({"silence": True}, TemporaryGithubError),
    "slow drip": Fault({"drip": 0.5}, TemporaryGithubError),
    "connection reset": Fault({"reset": True}, TemporaryGithubError, ATTEMPTS),
    "cut-off JSON": Fault({"cut": 3}, TemporaryGithubError, ATTEMPTS),
    "HTML": Fault({"status": 200, "body": "<html>Sign in</html>"}, TemporaryGithubError, ATTEMPTS),
    "deep": Fault({"status": 200, "body": "[" * 50_000}, TemporaryGithubError, ATTEMPTS),
    "huge": Fault({"status": 200, "body": "{}", "pad": ANSWER_LIMIT}, GithubApiError),
    "packed": Fault({"status": 200, "body": "{}", "headers": {"content-encoding": "gzip"}}, GithubApiError),
    "wrong content type": Fault({"content_type": "text/plain"}),
    "a list": Fault({"status": 200, "body": "[]"}, GithubApiError),
    "nothing": Fault({"status": 204}, GithubApiError),
    "other types": Fault({"status": 200, "body": json.dumps(ODD)}, GithubApiError),
}
# Bodies that are no right answer: they harm only where one is read.
BODIES = ("slow drip", "cut-off JSON", "a list", "nothing", "other types")
NO_JSON = ("HTML", "deep")
# What differs from the rules of `expected`: the error or the result, and the requests.
DIFFERENT: dict[tuple[str, str], tuple[Any, int]] = {
    # What is gone is done.
    ("404 for a set", "delete"): (None, 1),
    ("404 for a set", "close_session"): (None, 1),
    ("400 for a session", "close_session"): (None, 1),
    ("404 for a set", "delete_record"): (None, 1),
    # GitHub.com has no such request.
    ("404", "acquire"): (0, 1),
    ("404 for a set", "acquire"): (0, 1),
    ("400", "acquire"): (GithubApiError, 1),
    (QUOTE, "acquire"): (GithubApiError, 1),
    ("other types", "acquire"): (1, 1),
    ("404", "acquirable"): (False, 1),
    ("404 for a set", "acquirable"): (False, 1),
    # An entry without a number is left out, and there may be none.
    ("nothing", "acquirable"): (False, 1),
    ("other types", "acquirable"): (False, 1),
    # REST names no such time with this answer.
    ("503 with retry-after", "registration token"): (TemporaryGithubError, ATTEMPTS),
}


def expected(fault: str, name: str) -> tuple[Any, int]:
    """The error or the result, and the number of requests."""
    call, error, requests = CALLS[name], FAULTS[fault].error, FAULTS[fault].requests
    if (fault, name) in DIFFERENT:
        return DIFFERENT[fault, name]
    if not call.has_answer and (fault in BODIES or (fault in NO_JSON and call.kind == "queue")):
        return call.result, 1
    if call.kind == "token":
        return _of_token(fault, error, requests)
    if call.kind == "connect" and error is TokenError and fault != "404":
        # The registration token may be too new.
        return error, ATTEMPTS
    if call.kind == "queue":
        if fault in ("401", "400", QUOTE, "404"):
            return SessionEndedError, requests
        if requests == ATTEMPTS or fault == "502 once then fine":
            return TemporaryGithubError, 1
    return error or call.result, requests


def _of_token(fault: str, error: type[Exception] | None, requests: int) -> tuple[Any, int]:
    """The request of REST, which knows no exceptions of the service and holds the token of the unit itself."""
    if fault in ("401", "401 once"):
        return TokenError, 1
    if fault == "404 for a set":
        return TokenError, 1
    if fault in ("400 for a session", "409 for a session", "deep"):
        return GithubApiError, 1
    return error or CALLS["registration token"].result, requests


CASES = list(itertools.product(FAULTS, CALLS))


def combinations() -> int:
    """How many cases of a request and a fault there are."""
    return len(CASES)


@dataclass(frozen=True)
class Outcome:
    """What came of a case: a result or an error; requests that met the fault, and all others of the case."""

    result: Any
    requests: int
    others: int
    seconds: float
    secrets: list[str]

    @property
    def kind(self) -> Any:
        """The result, or the class by which others catch the error."""
        if not isinstance(self.result, Exception):
            return self.result
        own = (SetGoneError, SessionEndedError, SessionConflictError)
        return next(k for k in type(self.result).__mro__ if k in own or k.__module__ in (errors.__name__, "builtins"))


def serve() -> AbstractContextManager[github.GitHub]:
    """An Enterprise Server, where jobs must be acquired. A session ends soon after its last request."""
    settings = Settings(hold=0.4, assign_after=0.0, linger=0.0, session_life=1.0, points_a_minute=10**6)
    return github.serve(tokens=[TOKEN], settings=settings)


@pytest.fixture(scope="module")
def hub() -> Iterator[github.GitHub]:
    """The server of all cases."""
    with serve() as served:
        yield served


@pytest.fixture(scope="module")
def control(hub: github.GitHub) -> GitHubControl:
    return GitHubControl(hub.url)


@pytest.fixture(scope="module", autouse=True)
def patched() -> Iterator[pytest.MonkeyPatch]:
    """Authorities are read once, and an answer without end need not be large."""
    context = httpx2.create_ssl_context()
    with pytest.MonkeyPatch.context() as patch:
        for module in (gh_client, scale_sets):
            patch.setattr(module, "trust", lambda _: context)
        patch.setattr(answers, "ANSWER_LIMIT", ANSWER_LIMIT)
        patch.setattr(programs, "ScaleSetClient", MarkedClient)
        for name in programs.PROXIES:
            # The agent removes it.
            patch.delenv(name, raising=False)
            patch.delenv(name.lower(), raising=False)
        yield patch


@pytest.fixture(scope="module")
def outcomes(hub: github.GitHub, control: GitHubControl, patched: pytest.MonkeyPatch) -> dict[tuple[str, str], Outcome]:
    """All cases, tried side by side; those that hang by themselves, because only they have a short deadline."""
    found: dict[tuple[str, str], Outcome] = {}
    quick = [case for case in CASES if case[0] not in HANGING]
    groups = [(quick[at : at + SIDE_BY_SIDE], DEADLINE) for at in range(0, len(quick), SIDE_BY_SIDE)]
    for cases, limit in [([case for case in CASES if case[0] in HANGING], HANGING_DEADLINE), *groups]:
        rest = GithubClient(hub.url, Pat(TOKEN), deadline=limit)
        for name in ("CALL_DEADLINE", "POLL_DEADLINE"):
            patched.setattr(scale_sets, name, limit)
        found |= tried(cases, rest, limit, hub, control)
        rest.close()
    return found


def tried(
    cases: Sequence[tuple[str, str]], rest: GithubClient, limit: float, hub: github.GitHub, control: GitHubControl
) -> dict[tuple[str, str], Outcome]:
    """A group of cases, each at a place of its own."""
    control.clear_requests()
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        places = list(pool.map(lambda case: made(case, rest, limit, hub), cases))
        planted = [planted_at(control, case, at) for case, at in zip(cases, places, strict=True)]
        control.clear_requests()
        results = list(pool.map(asked, cases, places))
    seen = {fault["id"]: int(fault["seen"]) for fault in control.faults()}
    sent = [str(request["query"].get("case", request["path"])) for request in control.requests()]
    control.remove_faults()
    outcomes = {}
    for case, at, number, (result, seconds) in zip(cases, places, planted, results, strict=True):
        path = at.client.path.path
        total = sum(1 for each in sent if each == path or f"/orgs/{path}/" in each)
        outcomes[case] = Outcome(result, seen[number], total - seen[number], seconds, at.secrets)
        at.client.close()
    return outcomes


def made(case: tuple[str, str], rest: GithubClient, limit: float, hub: github.GitHub) -> Place:
    """A place where each call can be made; the sets, the session and the message come about without requests."""
    path = GithubOrg(f"case-{CASES.index(case):03}", GROUP)
    state = hub.state
    with state.lock:
        state.add_organisation(path.org, [GROUP])
        state.add_repository(f"{path.org}/demo")
        job = state.add_job(f"{path.org}/demo", "true")
        first, _ = (state.scale_sets.create(path.org, name, 1, [], {}) for name in ("first", "second"))
        session = state.scale_sets.open(first, "app/0")
        session.polling += 1  # it does not end
        first.available.add(job.id)
        first.messages.append(Message(FIRST_MESSAGE, [], state.scale_sets.statistics(first)))
        runner = state.add_runner(path.org, "first", [], scale_set=first.id)
    redaction.note(session.token)
    client = MarkedClient(hub.url, path, lambda: rest.registration_token(path), deadline=DEADLINE)
    if CALLS[case[1]].kind not in ("token", "connect"):
        client.connect()
    client.deadline = limit
    queue = f"{hub.url}/_actions/scalesets/message?sessionId={session.id}"
    listener = Listener(client, first.id, Session(session.id, queue, session.token))
    return Place(client, first.id, listener, runner.id, job.id)


def planted_at(control: GitHubControl, case: tuple[str, str], at: Place) -> int:
    """The fault of a case, at its call."""
    fault, name = case
    fields = dict(FAULTS[fault].fields)
    if fault == QUOTE:
        # Beyond what an error keeps of a message.
        fields["body"] = json.dumps({"message": f"no {' or '.join(at.secrets * 3)}"})
    return plant(control, name, at.client.path.path, **fields)


def plant(control: GitHubControl, name: str, path: str, **fields: Any) -> int:
    """A fault of a call of one organisation's client."""
    call = CALLS[name]
    where = f"/orgs/{path}/.*{call.path}" if call.kind == "token" else rf"{call.path}.*case={path}\b"
    return control.add_fault(method=call.method, path=where, **fields)


def asked(case: tuple[str, str], at: Place) -> tuple[Any, float]:
    started = time.monotonic()
    try:
        result = CALLS[case[1]].ask(at)
    except Exception as error:
        result = error
    return result, time.monotonic() - started


each_case = pytest.mark.parametrize("name", CALLS)


@each_case
def test_each_fault_has_its_error(outcomes: dict[tuple[str, str], Outcome], name: str) -> None:
    """What a call makes of a fault is the right result, or the error that others know what to do with."""
    found = {fault: outcomes[fault, name].kind for fault in FAULTS}

    assert found == {fault: expected(fault, name)[0] for fault in FAULTS}


@each_case
def test_calls_are_counted(outcomes: dict[tuple[str, str], Outcome], name: str) -> None:
    """A refusal costs one request, a new token at most one more, what may pass as many as are allowed."""
    found = {fault: outcomes[fault, name].requests for fault in FAULTS}
    others = {fault: outcomes[fault, name].others for fault in FAULTS}

    assert found == {fault: expected(fault, name)[1] for fault in FAULTS}
    assert {fault: number for fault, number in others.items() if number > 2} == {}


@each_case
def test_no_call_lasts_beyond_its_deadline(outcomes: dict[tuple[str, str], Outcome], name: str) -> None:
    """Neither silence nor an answer without end holds the agent."""
    limits = {fault: HANGING_DEADLINE if fault in HANGING else DEADLINE for fault in FAULTS}

    assert [fault for fault in FAULTS if outcomes[fault, name].seconds > limits[fault] + SLACK] == []


@each_case
def test_no_error_has_a_secret(outcomes: dict[tuple[str, str], Outcome], name: str) -> None:
    """Also where GitHub's message quotes the tokens."""
    for fault in FAULTS:
        outcome = outcomes[fault, name]
        if isinstance(outcome.result, Exception):
            text = "".join(traceback.format_exception(outcome.result))
            # Nor the beginning of one that was cut.
            assert [secret for secret in outcome.secrets if secret[:20] in text] == [], fault


def test_all_requests_are_tried() -> None:
    """A request that is added to the client must be added here."""
    methods = {
        name
        for owner in (ScaleSetClient, Listener)
        for name, value in vars(owner).items()
        if callable(value) and not name.startswith("_")
    }

    assert methods - COMPOSED <= set(CALLS)


# One of each kind of end: what the operator must fix, what is gone, a limit, an outage, an odd answer, a lost answer.
AGENT_FAULTS = ("401", "404", "429", "500", "a list", "silence")
# For the agent, which sees their error only, all requests up to a session's opening are alike: each meets one fault.
CONNECTING = ("registration token", "connect", "group_id", "find", "create")
BEFORE_A_SESSION = (*CONNECTING, "open_session", "acquirable")
IN_A_SESSION = ("message", "delete message", "renewed", "acquire")
AGENT_CASES = [
    case
    for case in itertools.product(AGENT_FAULTS, ("open_session", "acquirable", *IN_A_SESSION))
    # This answer says that the service assigns jobs by itself.
    if case != ("404", "acquire")
] + [
    *(("500", name) for name in CONNECTING),
    # What it carried is lost.
    ("cut-off JSON", "message"),
    ("HTML", "message"),
]
AGENTS = 20


class Agent:
    """The agent of a unit with one flavour, at an organisation of its own, and the fault that it meets."""

    def __init__(self, number: int, case: tuple[str, str], hub: github.GitHub, control: GitHubControl) -> None:
        self.fault, self.name = case
        self.path = GithubOrg(f"unit-{number:03}", GROUP)
        self.identity = Identity("app", number, "0123abcd")
        self.problem = ""
        self._heard = 0.0
        self._hub, self._control = hub, control
        self._flavor = AgentFlavor("small", ("app",), 3, 0, 2)
        with hub.state.lock:
            hub.state.add_organisation(self.path.org, [GROUP])
            hub.state.add_repository(f"{self.path.org}/demo")
        self._sessions = Sessions(self.identity.unit, lambda: None, jitter=lambda *_: 0.02)
        flavors = (self._flavor,)
        self._sessions.follow(AgentSettings(self.identity, hub.url, self.path, TOKEN, None, (), {}, flavors))
        known = self._sessions.flavor("small")
        assert known is not None
        known[2].deadline = HANGING_DEADLINE
        self._session = FlavorSession(self._sessions, "small")

    def known(self) -> Demand:
        return self._sessions.known("small")

    def live(self) -> Demand:
        """Meet the fault, and what is known once it is over and a job waits."""
        try:
            if self.name in BEFORE_A_SESSION:
                planted = self._plant()
                self._session.thread.start()
            else:
                self._session.thread.start()
                self._await(lambda: self.known().answered_at > 0, "the session")
                planted = self._plant()
            self._heard = self.known().answered_at
            if self.name in IN_A_SESSION:
                self._job()
            self._await(lambda: self._meets(planted), "the fault")
            self._await(lambda: self._has_failed(planted), "its end")
            self.problem = self.known().problem
            self._control.remove_faults(planted.id)
            if self.name in BEFORE_A_SESSION:
                self._job()
            self._await(lambda: self.known().assigned == 1 and not self.known().problem, "the job")
            assert self._session.thread.is_alive()
            return self.known()
        finally:
            self._sessions.stop.set()
            self._session.end()
            self._sessions.disconnect()

    def _plant(self) -> Any:
        number = plant(self._control, self.name, self.path.path, **FAULTS[self.fault].fields)
        return self._hub.server.faults.planted[number]

    def _meets(self, planted: Any) -> bool:
        """Whether the agent has met the fault; a queue's token is renewed when it has ended."""
        if self.name == "renewed" and not planted.seen:
            with self._hub.state.lock:
                for each in self._hub.state.scale_sets.sets.values():
                    if each.path == self.path.org and each.session is not None:
                        each.session.token_ends = 0.0
        return bool(planted.seen)

    def _has_failed(self, planted: Any) -> bool:
        """Whether the agent knows of the fault, has met it again, or went on without an answer."""
        known = self.known()
        return planted.seen > 1 or bool(known.problem) or known.assigned > 0 or known.answered_at > self._heard

    def _job(self) -> None:
        with self._hub.state.lock:
            labels = [self.identity.scale_set("small")]
            self._hub.state.add_job(f"{self.path.org}/demo", "true", labels=labels)

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(condition, f"{self.fault} of {self.name}: {what}", timeout=30)


@pytest.fixture
def empty_hub() -> Iterator[github.GitHub]:
    """A server without the hundreds of sets of the cases, which make each of its answers slow."""
    with serve() as served:
        yield served


def test_agent_goes_on_after_each_fault(
    empty_hub: github.GitHub,
    patched: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its thread lives, it hears of the job once the fault is over, and neither file nor log has a secret."""
    for module in (demand, agent_settings, telemetry):
        patched.setattr(module, "LOCKS", tmp_path)
    for name in ("CALL_DEADLINE", "POLL_DEADLINE"):
        patched.setattr(scale_sets, name, HANGING_DEADLINE)
    for logger in ("gh", "programs"):
        caplog.set_level(logging.INFO, logger)

    control = GitHubControl(empty_hub.url)

    def attempt(number: int) -> tuple[Demand, str]:
        agent = Agent(number, AGENT_CASES[number], empty_hub, control)
        return agent.live(), agent.problem

    with ThreadPoolExecutor(AGENTS) as pool:
        found = list(pool.map(attempt, range(len(AGENT_CASES))))

    texts = [problem for _, problem in found] + [path.read_text() for path in tmp_path.iterdir()]
    assert [text for text in (*texts, caplog.text) if TOKEN in text or "eyJ" in text] == []
    # Of many the thread makes a second attempt before this one looks; how many depends on the machine.
    assert any(problem for _, problem in found)
