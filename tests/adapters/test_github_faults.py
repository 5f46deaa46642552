"""GitHub misbehaves: each endpoint with each fault, and reconciles of runners while it does.

The cases mostly wait: they are tried side by side, each on a repository or organisation of its own.
"""

import itertools
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

import errors
import provision
import runner
import runner_manager
import status
import telemetry
from errors import (
    ConfigurationError,
    GithubApiError,
    GithubClientError,
    JobNotFoundError,
    RateLimitError,
    RunnerBusyError,
    TemporaryGithubError,
    TokenError,
)
from gh import answers
from gh.app import App
from gh.auth import Pat
from gh.client import ATTEMPTS, PER_PAGE, GithubClient
from models import AppCredentials, Arch, GithubOrg, GithubPath, GithubRepo, OfferedBinary
from naming import KEY, Identity, fingerprint
from report import Report
from runner import RunnerManagerClients
from runner_manager import RunnerManager
from sandbox import github
from sandbox.github.control import GitHubControl
from sandbox.github.state import Settings
from tests.support.fakes import RESOURCES, TEMPLATES, FakeInstance, FakeLxd, FakeStorages, state

TOKEN = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
DEMO = GithubRepo("octo-org", "demo")
BINARY = "actions-runner-linux-x64-2.336.0.tar.gz"
RUN = "77"
SIDE_BY_SIDE = 80
# Larger than every answer here. Sixteen MiB for each endpoint would take seconds.
ANSWER_LIMIT = 1 << 18
# More than all attempts take that fail at once, also on a busy machine.
DEADLINE = 60.0
# Where GitHub never answers, the deadline is the time that a case takes.
HANGING = ("silence", "slow drip")
HANGING_DEADLINE = 3.0
LIMITS = (DEADLINE, HANGING_DEADLINE)
# For the machine that runs the tests, not for the client.
SLACK = 2.0

Case = TypeVar("Case", str, tuple[str, str], tuple[str, int])
Answer = TypeVar("Answer")


def side_by_side(attempt: Callable[[int, Case], Answer], cases: Iterable[Case]) -> dict[Case, Answer]:
    """What came of each case; an attempt is given a number of its own.

    Cases that hang come first and by themselves: their requests must reach GitHub before their short deadline.
    """
    numbered = list(enumerate(cases))
    answers: dict[Case, Answer] = {}
    for hanging in (True, False):
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            tries = {case: pool.submit(attempt, n, case) for n, case in numbered if hangs(case) is hanging}
        answers |= {case: answer.result() for case, answer in tries.items()}
    return answers


def hangs(case: str | tuple[str, object]) -> bool:
    return (case if isinstance(case, str) else case[0]) in HANGING


@dataclass(frozen=True)
class Place:
    """A path of a case's own, the runner and the tarball that it asks for."""

    path: GithubPath
    runner_id: int
    tarball: OfferedBinary
    target: Path


@dataclass(frozen=True)
class Endpoint:
    """A call of the client and its result where all is well; ``empty`` is the body of its empty list.

    A GitHub App asks for what is ``behind`` its token: a fault lies there. With ``numbered`` it knows its installation.
    """

    ask: Callable[[GithubClient, Place], Any]
    result: Any
    empty: str | None = None
    pages: int = 1
    organisation: bool = False
    behind: str = ""
    numbered: bool = False


def listed(client: GithubClient, at: Place) -> list[str]:
    return [runner.name for runner in client.list_runners(at.path, lambda name: name == "own")]


def found(client: GithubClient, at: Place) -> str | None:
    runner = client.find_runner(at.path, "own")
    return runner.name if runner else None


def configured(client: GithubClient, at: Place) -> str:
    return client.generate_jit_config(at.path, "new", 1, ["self-hosted"])[0].name


def downloaded(client: GithubClient, at: Place) -> bool:
    client.download(at.tarball, at.target)
    return at.target.stat().st_size > 0


def registered(client: GithubClient, at: Place) -> int:
    return len(client.registration_token(at.path))


NO_RUNNERS = '{"total_count": 0, "runners": []}'
NO_JOBS = '{"total_count": 0, "jobs": []}'
NO_GROUPS = '{"total_count": 0, "runner_groups": []}'
ENDPOINTS = {
    "list of a repository": Endpoint(listed, ["own"], NO_RUNNERS, pages=2),
    "list of an organisation": Endpoint(listed, ["own"], NO_RUNNERS, pages=2, organisation=True),
    "one runner": Endpoint(found, "own", NO_RUNNERS),
    "registration token": Endpoint(registered, 29),
    "just-in-time configuration": Endpoint(configured, "new"),
    "deletion": Endpoint(lambda client, at: client.delete_runner(at.path, at.runner_id), None),
    "runner by id": Endpoint(lambda client, at: not client.runner_is_gone(at.path, at.runner_id), True),
    "deprecation": Endpoint(lambda client, at: client.is_deprecated(at.path, "2.336.0"), False),
    "binary": Endpoint(lambda client, at: client.offered_binary(at.path, Arch.X64).filename, BINARY, "[]"),
    "download": Endpoint(downloaded, True),
    "job": Endpoint(lambda client, at: client.job(at.path.path, RUN, "own").conclusion, "success", NO_JOBS, 2),
    "runner groups": Endpoint(
        lambda client, at: client.group_id(at.path), PER_PAGE + 1, NO_GROUPS, pages=2, organisation=True
    ),
    "installation": Endpoint(registered, 29, organisation=True, behind="{slug}/installation$"),
    "installation by number": Endpoint(
        registered, 29, organisation=True, behind="/app/installations/{number}$", numbered=True
    ),
    "token of an App": Endpoint(registered, 29, organisation=True, behind="/app/installations/{number}/access_tokens$"),
}
APPS = [name for name, endpoint in ENDPOINTS.items() if endpoint.behind]


@dataclass(frozen=True)
class Fault:
    """Fields of the stand-in's fault, the error (None: the result is right), and how often a page is asked for."""

    fields: dict[str, Any]
    error: type[Exception] | None = None
    requests: int = 1


USED_UP = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "4000000000"}
EMPTY, WENT, CAME = "an empty list", "pages shift, one went", "pages shift, one came"
FAULTS = {
    "401": Fault({"status": 401}, TokenError),
    "403": Fault({"status": 403}, TokenError),
    "403 rate limit": Fault({"status": 403, "headers": USED_UP}, RateLimitError),
    "404": Fault({"status": 404}, TokenError),
    "409": Fault({"status": 409}, GithubApiError),
    "422": Fault({"status": 422}, GithubApiError),
    "429 with retry-after": Fault({"status": 429, "headers": {"retry-after": "7"}}, RateLimitError),
    "500": Fault({"status": 500}, TemporaryGithubError, ATTEMPTS),
    "502 once then fine": Fault({"status": 502, "times": 1}, None, 2),
    "503 for good": Fault({"status": 503}, TemporaryGithubError, ATTEMPTS),
    "silence": Fault({"silence": True}, TemporaryGithubError),
    "slow drip": Fault({"drip": 0.5}, TemporaryGithubError),
    "connection reset": Fault({"reset": True}, TemporaryGithubError, ATTEMPTS),
    "cut-off JSON": Fault({"cut": 10}, TemporaryGithubError, ATTEMPTS),
    "HTML": Fault({"status": 200, "body": "<html>Sign in</html>"}, TemporaryGithubError, ATTEMPTS),
    "huge": Fault({"status": 200, "body": "{}", "pad": ANSWER_LIMIT}, GithubApiError),
    "packed": Fault({"status": 200, "body": "{}", "headers": {"content-encoding": "gzip"}}, GithubApiError),
    "wrong content type": Fault({"content_type": "text/plain"}),
    EMPTY: Fault({"status": 200, "content_type": "application/json"}),
    WENT: Fault({"shift": 1}),
    CAME: Fault({"shift": -1}),
}
# What differs from the above: the error or the result, and the requests.
DIFFERENT: dict[tuple[str, str], tuple[Any, int]] = {
    (EMPTY, "list of a repository"): ([], 1),
    (EMPTY, "list of an organisation"): ([], 1),
    (EMPTY, "one runner"): (None, 1),
    (EMPTY, "binary"): (GithubApiError, 1),
    (EMPTY, "job"): (JobNotFoundError, 1),
    (EMPTY, "runner groups"): (ConfigurationError, 1),
    (WENT, "list of a repository"): ([], 2),
    (WENT, "list of an organisation"): ([], 2),
    (WENT, "job"): (JobNotFoundError, 2),
    (WENT, "runner groups"): (ConfigurationError, 2),
    # 404 is asked about once more. An answer without a body cannot drip or be cut off.
    ("404", "deletion"): (TokenError, 2),
    ("404", "runner by id"): (TokenError, 2),
    ("404", "deprecation"): (None, 1),
    ("422", "deletion"): (RunnerBusyError, 1),
    ("slow drip", "deletion"): (None, 1),
    ("cut-off JSON", "deletion"): (None, 1),
    # The store of files is not shown the token, and all that it sends is judged by the checksum.
    ("401", "download"): (GithubApiError, 1),
    ("403", "download"): (GithubApiError, 1),
    ("404", "download"): (GithubApiError, 1),
    ("HTML", "download"): (GithubApiError, 1),
    ("packed", "download"): (TemporaryGithubError, ATTEMPTS),
    # A token that cannot see the jobs of some repository of an organisation is no fault of the unit.
    ("401", "job"): (JobNotFoundError, 1),
    ("403", "job"): (JobNotFoundError, 1),
    ("404", "job"): (JobNotFoundError, 1),
    # An installation that does not cover the path is the operator's to change, and a token comes with 201 only.
    **{("422", name): (TokenError, 1) for name in APPS},
    ("HTML", "token of an App"): (GithubApiError, 1),
}


def is_possible(fault: str, endpoint: str) -> bool:
    """Only a list can be empty, and only one of several pages can shift."""
    asked = ENDPOINTS[endpoint]
    return asked.empty is not None if fault == EMPTY else asked.pages > 1 or fault not in (WENT, CAME)


CASES = [case for case in itertools.product(FAULTS, ENDPOINTS) if is_possible(*case)]


def combinations() -> int:
    """How many cases of an endpoint and a fault there are."""
    return len(CASES)


def expected(fault: str, endpoint: str) -> tuple[Any, int]:
    """The error or the result, and the number of requests."""
    error, requests = FAULTS[fault].error, FAULTS[fault].requests
    asked = ENDPOINTS[endpoint]
    usual = (error, requests) if error else (asked.result, requests + asked.pages - 1)
    return DIFFERENT.get((fault, endpoint), usual)


def fields(fault: str, empty: str | None) -> dict[str, Any]:
    """The stand-in's fault; ``empty`` is the body of an empty list."""
    return {**FAULTS[fault].fields, **({"body": empty} if fault == EMPTY else {})}


@dataclass(frozen=True)
class Outcome:
    """What came of a case: a result or an error."""

    result: Any
    requests: int
    seconds: float

    @property
    def kind(self) -> Any:
        """The result, or the class by which others catch the error."""
        if not isinstance(self.result, Exception):
            return self.result
        return next(kind for kind in type(self.result).__mro__ if kind.__module__ in (errors.__name__, "builtins"))


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    """The client takes answers up to ANSWER_LIMIT."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "ANSWER_LIMIT", ANSWER_LIMIT)
        yield


@pytest.fixture(scope="module")
def hub() -> Iterator[github.GitHub]:
    # All cases share a token, and ask more in a minute than GitHub lets one ask.
    settings = Settings(points_a_minute=10**6)
    with github.serve("127.0.0.1", 0, [TOKEN], [DEMO.path], [DEMO.owner], settings=settings) as served:
        yield served


@pytest.fixture(scope="module")
def control(hub: github.GitHub) -> GitHubControl:
    return GitHubControl(hub.url)


@pytest.fixture(scope="module")
def app(control: GitHubControl, key: str) -> dict[str, Any]:
    return control.add_app("runners", DEMO.owner, private_key=key)


def deadline(fault: str) -> float:
    """How long a call with a fault may last."""
    return HANGING_DEADLINE if fault in HANGING else DEADLINE


@pytest.fixture(scope="module")
def clients(hub: github.GitHub) -> Iterator[dict[float, GithubClient]]:
    """A connected client for each deadline."""
    found = {limit: GithubClient(hub.url, Pat(TOKEN), deadline=limit, long_deadline=limit) for limit in LIMITS}
    for client in found.values():
        client.registration_token(DEMO)
    yield found
    for client in found.values():
        client.close()


@pytest.fixture(scope="module")
def client(clients: dict[float, GithubClient]) -> GithubClient:
    return clients[DEADLINE]


@pytest.fixture(scope="module")
def outcomes(
    hub: github.GitHub,
    control: GitHubControl,
    client: GithubClient,
    clients: dict[float, GithubClient],
    app: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, str], Outcome]:
    """All cases, tried side by side."""
    folder = tmp_path_factory.mktemp("tarballs")
    offered = client.offered_binary(DEMO, Arch.X64)

    def attempt(number: int, case: tuple[str, str]) -> Outcome:
        fault, endpoint = case
        slug = f"case-{number:03}"
        tarball = replace(offered, url=f"{hub.url}/release-assets/{offered.filename}?sp={slug}")
        asked = ENDPOINTS[endpoint]
        place = made(control, slug, asked, tarball, folder / slug)
        used, where = clients[deadline(fault)], slug
        if asked.behind:
            installation = control.install_app(app["id"], slug)
            where = asked.behind.format(slug=slug, number=installation)
            auth = as_app(hub, app, place.path, installation if asked.numbered else None)
            used = GithubClient(hub.url, auth, deadline=deadline(fault))
        planted = control.add_fault(path=where, **fields(fault, asked.empty))
        started = time.monotonic()
        try:
            result = asked.ask(used, place)
        except Exception as error:
            result = error
        seconds = time.monotonic() - started
        if asked.behind:
            used.close()
        return Outcome(result, seen(control, planted), seconds)

    return side_by_side(attempt, CASES)


def as_app(hub: github.GitHub, app: dict[str, Any], path: GithubPath, installation: int | None = None) -> App:
    """The authorization of a GitHub App, which has no token yet."""
    return App(AppCredentials(app["client_id"], app["private_key"], installation), hub.api_url, path)


def made(control: GitHubControl, slug: str, endpoint: Endpoint, tarball: OfferedBinary, target: Path) -> Place:
    """A path where what is asked for is the first of the second page, if there are pages."""
    others = PER_PAGE if endpoint.pages > 1 else 0
    path = GithubOrg(slug, "own") if endpoint.organisation else GithubRepo(DEMO.owner, slug)
    if isinstance(path, GithubOrg):
        control.add_organisation(slug, [*(f"group {number}" for number in range(1, others)), "own"])
    else:
        control.add_repository(path.path)
        times = {"created_at": 1.0, "started_at": 2.0, "completed_at": 3.0}
        over = {"status": "completed", "conclusion": "success", "runner_name": "own", **times}
        if others:
            control.add_job(path.path, run_id=int(RUN), count=others)
        control.add_job(path.path, run_id=int(RUN), state=over)
    if others:
        control.add_runner(path.path, "other", count=others)
    return Place(path, control.add_runner(path.path, "own")["id"], tarball, target)


def seen(control: GitHubControl, fault: int) -> int:
    """How many requests came to where a fault lies."""
    return int(next(item["seen"] for item in control.faults() if item["id"] == fault))


each_case = pytest.mark.parametrize(("fault", "endpoint"), CASES)
each_failing_case = pytest.mark.parametrize(
    ("fault", "endpoint"), [case for case in CASES if isinstance(expected(*case)[0], type)]
)


@each_case
def test_each_fault_has_its_error(outcomes: dict[tuple[str, str], Outcome], fault: str, endpoint: str) -> None:
    """What an endpoint makes of a fault is the right result, or the error that others know what to do with."""
    assert outcomes[fault, endpoint].kind == expected(fault, endpoint)[0]


@each_case
def test_calls_are_counted(outcomes: dict[tuple[str, str], Outcome], fault: str, endpoint: str) -> None:
    """A refusal costs one request, what may pass as many as are allowed, and nothing lasts beyond the deadline."""
    outcome = outcomes[fault, endpoint]
    allowed = expected(fault, endpoint)[1]
    # An attempt may take a connection that another case left open, and that is closed in this moment.
    uncounted = 1 if fault == "connection reset" else 0
    assert allowed - uncounted <= outcome.requests <= allowed
    assert outcome.seconds < deadline(fault) + SLACK


@each_failing_case
def test_status_says_whether_the_operator_must_act(
    outcomes: dict[tuple[str, str], Outcome], fault: str, endpoint: str
) -> None:
    """Blocked where the operator must act, waiting where the error resolves by itself, and the token in no text."""
    error = outcomes[fault, endpoint].result
    shown = status.of_error(error)
    blocking = expected(fault, endpoint)[0] in (TokenError, ConfigurationError)
    assert shown.name == ("blocked" if blocking else "waiting")
    assert TOKEN not in shown.message + "".join(traceback.format_exception(error))


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in (EMPTY, WENT, CAME)])
def test_a_token_that_is_not_revoked_holds_nobody(
    hub: github.GitHub, control: GitHubControl, app: dict[str, Any], fault: str
) -> None:
    """Whatever GitHub answers, one request is made for it within the deadline, and no error ends the removal."""
    path, limit = GithubOrg(f"revoked-{list(FAULTS).index(fault)}"), 0.5 if fault in HANGING else DEADLINE
    control.add_organisation(path.org)
    control.install_app(app["id"], path.org)
    auth = as_app(hub, app, path)
    first, second = (GithubClient(hub.url, auth, deadline=seconds) for seconds in (DEADLINE, limit))
    first.registration_token(path)
    first.close()
    planted = control.add_fault(path="/installation/token$", **fields(fault, None))

    started = time.monotonic()
    second.revoke()
    second.close()

    assert time.monotonic() - started < limit + SLACK
    assert seen(control, planted) == 1
    control.remove_faults(planted)


@pytest.mark.parametrize("endpoint", [name for name, endpoint in ENDPOINTS.items() if endpoint.empty is not None])
def test_list_of_something_else_is_an_error(
    hub: github.GitHub, control: GitHubControl, client: GithubClient, tmp_path: Path, endpoint: str
) -> None:
    """A list whose items are no objects is an error of GitHub, not an error of the charm that ends the hook."""
    asked, tarball = ENDPOINTS[endpoint], OfferedBinary(hub.url, BINARY, "0" * 64)
    slug = f"odd-{list(ENDPOINTS).index(endpoint)}"
    place = made(control, slug, asked, tarball, tmp_path)
    control.add_fault(path=slug, status=200, body=str(asked.empty).replace("0", "1").replace("[]", "[7]"))

    with pytest.raises(GithubApiError):
        asked.ask(client, place)


def test_resolver_that_hangs_holds_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is for all of a call, with what no time-out of a connection sees."""
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait())
    client = GithubClient("http://github.example", Pat(TOKEN), deadline=0.2)

    with pytest.raises(TemporaryGithubError):
        client.registration_token(DEMO)
    released.set()
    client.close()


def test_list_of_slow_pages_ends_in_time(hub: github.GitHub, control: GitHubControl) -> None:
    """Each page keeps to the deadline of a call, and all of them to the one of a list, which they may use whole."""
    control.add_repository("octo-org/slow")
    body = '{"total_count": 1000000, "runners": [{"id": 1, "name": "x", "status": "offline", "busy": false}]}'
    control.add_fault(path="octo-org/slow/", status=200, delay=0.2, body=body)
    client = GithubClient(hub.url, Pat(TOKEN), long_deadline=1)
    client.registration_token(DEMO)

    started = time.monotonic()
    with pytest.raises(TemporaryGithubError):
        client.list_runners(GithubRepo("octo-org", "slow"), bool)
    client.close()

    assert 1 <= time.monotonic() - started < 1 + SLACK


@dataclass(frozen=True)
class Reconciled:
    """A reconcile's report, None where GitHub failed as a whole; then runners by the ends of their names."""

    report: Report | None
    instances: list[str]
    registered: list[str]
    noted: list[str]
    """Those that GitHub was taken not to see."""


@dataclass(frozen=True)
class Story:
    """A reconcile while a fault lasted, whether it met the fault, and the reconcile after that."""

    during: Reconciled
    met: bool
    after: Reconciled


class Unit:
    """Healthy runners on an LXD, three idle and one busy, at a GitHub that lists 99 others before them."""

    def __init__(self, folder: Path, hub: github.GitHub, client: GithubClient, number: int) -> None:
        self.path = GithubRepo(DEMO.owner, f"unit-{number:03}")
        self._identity = Identity("app", number, "0123abcd")
        self._state = state(path=self.path, token=TOKEN, github_url=hub.url)
        self._folder, self._hub, self._client = folder, hub, client
        self._control = GitHubControl(hub.url)
        self.lxd = FakeLxd()
        self._control.add_repository(self.path.path)
        self._control.add_runner(self.path.path, "other", count=PER_PAGE - 1)
        self.names = [self._add(suffix, suffix == "cc") for suffix in ("aa", "bb", "cc", "dd")]

    def _add(self, suffix: str, busy: bool) -> str:
        name = f"{self._identity.prefix}{suffix}"
        config = {
            f"{KEY}path": self.path.path,
            f"{KEY}url": self._state.github_url,
            f"{KEY}created": str(time.time() - 3600),
            f"{KEY}fingerprint": fingerprint(self._state.runners[0], BINARY, ""),
            f"{KEY}prepared": "true",
        }
        instance = self.lxd.found[name] = FakeInstance(self.lxd, name, config)
        instance.running, instance.process = True, 0 if busy else 10
        self._control.add_runner(self.path.path, name, status="online", busy=busy)
        return name

    def reconcile(self, quantity: int) -> Reconciled:
        """One reconcile, by its own account and by LXD's and GitHub's."""
        clients = RunnerManagerClients(self._client, provision.environment(TEMPLATES), self.lxd, None)  # type: ignore[arg-type]
        tarball = self._folder / BINARY
        manager = RunnerManager(self._identity, self._state, clients, FakeStorages(self._folder), tarball)
        try:
            manager.reconcile(quantity, RESOURCES)
            report = manager.report
        except GithubClientError:
            report = None
        noted = [name[-2:] for name, item in self.lxd.found.items() if f"{KEY}offline-since" in item.config]
        instances = [name[-2:] for name in self.lxd.found]
        with self._hub.state.lock:
            there = [item.name[-2:] for item in self._hub.state.runners_of(self.path.path) if item.name in self.names]
        return Reconciled(report, instances, there, noted)

    def story(self, quantity: int, **fault: Any) -> Story:
        """A reconcile with a fault, then one without."""
        planted = self._control.add_fault(**fault)
        during, met = self.reconcile(quantity), seen(self._control, planted) > 0
        self._control.remove_faults(planted)
        return Story(during, met, self.reconcile(quantity))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the units would have their storages, locks and logs."""
    folder = tmp_path_factory.mktemp("units")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_manager, "LOCKS", tmp_path_factory.mktemp("locks"))
        patch.setattr(telemetry, "LOCKS", tmp_path_factory.mktemp("locks"))
        patch.setattr(runner, "LOGS_PATH", tmp_path_factory.mktemp("logs"))
        # These units reconcile side by side in one process: the module variable would keep the name of one of them.
        patch.setattr(runner_manager, "written_by", lambda _: nullcontext())
        yield folder


LIST_FAULTS = [(name, page) for name in FAULTS for page in (1, 2) if (name, page) not in [(WENT, 1), (CAME, 1)]]
ALL = ["aa", "bb", "cc", "dd"]
# The runners that a reconcile records as offline if it takes an odd list for a proper one. The one with a job is
# among them, because GitHub must have a job for a worker that counts.
NOTED = {(EMPTY, 1): ALL, (EMPTY, 2): ["bb", "cc", "dd"], (WENT, 2): ["bb"]}


@pytest.fixture(scope="module")
def list_stories(folder: Path, hub: github.GitHub, clients: dict[float, GithubClient]) -> dict[tuple[str, int], Story]:
    """A unit for each fault of each page of the list."""

    def attempt(number: int, case: tuple[str, int]) -> Story:
        fault, page = case
        unit = Unit(folder, hub, clients[deadline(fault)], number)
        return unit.story(len(ALL), path=f"{unit.path.path}/.*&page={page}$", **fields(fault, NO_RUNNERS))

    return side_by_side(attempt, LIST_FAULTS)


@pytest.mark.parametrize(("fault", "page"), LIST_FAULTS)
def test_no_fault_of_the_list_costs_a_runner(list_stories: dict[tuple[str, int], Story], fault: str, page: int) -> None:
    """On the word of one odd list no runner goes and none is made: what it lacks gets a note at most."""
    story = list_stories[fault, page]
    during = story.during
    assert story.met
    assert (during.instances, during.registered) == (ALL, ALL)
    assert during.noted == NOTED.get((fault, page), [])
    assert (during.report is None) == (FAULTS[fault].error is not None)


@pytest.mark.parametrize(("fault", "page"), LIST_FAULTS)
def test_reconcile_after_a_fault_of_the_list_is_as_before(
    list_stories: dict[tuple[str, int], Story], fault: str, page: int
) -> None:
    """Once the list is right again all runners are as they were, and no note is left."""
    after = list_stories[fault, page].after
    assert (after.instances, after.registered, after.noted) == (ALL, ALL, [])
    assert after.report is not None
    assert [name[-2:] for name in after.report.idle + after.report.busy] == ["aa", "bb", "dd", "cc"]
    assert after.report.failures == []


DELETION_FAULTS = [fault for fault, endpoint in CASES if endpoint == "deletion"]


@pytest.fixture(scope="module")
def deletion_stories(folder: Path, hub: github.GitHub, clients: dict[float, GithubClient]) -> dict[str, Story]:
    """A unit with one runner too many for each fault of the deletion."""

    def attempt(number: int, fault: str) -> Story:
        unit = Unit(folder, hub, clients[deadline(fault)], len(LIST_FAULTS) + number)
        return unit.story(len(ALL) - 1, method="DELETE", path=f"{unit.path.path}/", **fields(fault, None))

    return side_by_side(attempt, DELETION_FAULTS)


@pytest.mark.parametrize("fault", DELETION_FAULTS)
def test_surplus_runner_is_removed_once_it_is_deregistered(deletion_stories: dict[str, Story], fault: str) -> None:
    """While its registration may be there a job may come to it, and it stays; the next reconcile removes one."""
    story = deletion_stories[fault]
    # Only DELETE has the fault: the list confirms a 404.
    deregistered = expected(fault, "deletion")[0] is None or fault == "404"
    assert story.met
    assert story.during.instances == (ALL[1:] if deregistered else ALL)
    assert len(story.after.instances) == len(ALL) - 1
    assert "cc" in story.after.instances


def test_runner_stays_while_the_token_sees_nothing(folder: Path, hub: github.GitHub, client: GithubClient) -> None:
    """A token that loses sight of the path between list and deletion costs no runner."""
    unit = Unit(folder, hub, client, len(LIST_FAULTS) + len(DELETION_FAULTS))
    # The first two requests are the pages of the list.
    story = unit.story(len(ALL) - 1, path=f"{unit.path.path}/", status=404, after=2)
    assert story.met
    assert story.during.instances == ALL
