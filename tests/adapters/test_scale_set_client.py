"""The charm's client of runner scale sets, over real HTTP against the stand-in for GitHub."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import httpx2
import pytest

import demand
import redaction
from errors import (
    GithubApiError,
    RateLimitError,
    RunnerBusyError,
    TemporaryGithubError,
    TokenError,
)
from gh import answers, scale_sets
from gh import scale_set_answers as read
from gh.auth import Pat
from gh.client import CALL_DEADLINE, GithubClient, within_deadline
from gh.errors import StatusError
from gh.registration import read_configuration
from gh.scale_set_answers import Message, Statistics
from gh.scale_set_registration import ScaleSetRegistration
from gh.scale_sets import (
    LONGEST_OUTAGE_PAUSE,
    ScaleSetClient,
    SessionConflictError,
    SessionEndedError,
    SetGoneError,
)
from models import GithubOrg, GithubRepo
from redaction import MASK, redact
from sandbox import github
from sandbox.github.control import GitHubControl
from sandbox.github.state import Settings

TOKEN = "ghp_0123456789abcdef"
REPO, ORG = GithubRepo("org", "repo"), GithubOrg("org", "builders")
NAME = "app-0-0123abcd-small"


def serve(**changes: Any) -> Iterator[github.GitHub]:
    settings = Settings(**{"hold": 0.1, "assign_after": 0.0, "linger": 0.0, "enterprise_version": "", **changes})
    with github.serve(tokens=[TOKEN], repositories=[REPO.path], organisations=[ORG.org], settings=settings) as running:
        yield running


@pytest.fixture(params=["", "3.17.0"], ids=["github.com", "Enterprise Server"])
def server(request: pytest.FixtureRequest) -> Iterator[github.GitHub]:
    yield from serve(enterprise_version=request.param)


@pytest.fixture
def broker() -> Iterator[github.GitHub]:
    yield from serve()


opened: list[GithubClient | ScaleSetClient] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Give the connections of a test back."""
    yield
    while opened:
        opened.pop().close()


def connect(server: github.GitHub, path: GithubRepo | GithubOrg = REPO, deadline: float = 3.0) -> ScaleSetClient:
    rest = GithubClient(server.url, Pat(TOKEN), deadline=3)
    made = ScaleSetClient(server.url, path, lambda: rest.registration_token(path), deadline=deadline)
    opened.extend((rest, made))
    return made


def test_a_set_is_made_found_and_deleted(server: github.GitHub) -> None:
    """Its first label is its name; made twice it is the same set, and a deletion of nothing is done."""
    client = connect(server)
    assert client.find(NAME, 1) is None

    made = client.create(NAME, 1, ["self-hosted", "Linux"])

    assert made == client.create(NAME, 1, ["other"]) == client.find(NAME, 1)
    assert made.labels[0] == NAME
    assert client.sets() == [made]
    client.delete(made.set_id)
    client.delete(made.set_id)
    assert client.sets() == []


def test_each_set_is_looked_at_right_before_its_deletion(broker: github.GitHub) -> None:
    """Its flavour may have come back while the one before was deleted."""
    client = connect(broker)
    for name in ("first", "second"):
        client.create(name, 1, [])

    client.delete_sets(lambda _: len(client.sets()) == 2)
    assert [each.name for each in client.sets()] == ["second"]


@pytest.mark.parametrize("error", [StatusError("request refused (HTTP 400)", 400), TemporaryGithubError("no answer")])
def test_a_set_that_cannot_be_deleted_does_not_keep_the_others(
    broker: github.GitHub, monkeypatch: pytest.MonkeyPatch, error: GithubApiError
) -> None:
    """Each of them is tried, and the error is raised after that; a limit of requests ends it at once."""
    client = connect(broker)
    for name in ("first", "second", "third"):
        client.create(name, 1, [])
    refused, delete = client.sets()[0].set_id, client.delete

    def refuse(set_id: int) -> None:
        if set_id == refused:
            raise error
        delete(set_id)

    monkeypatch.setattr(client, "delete", refuse)

    with pytest.raises(type(error), match=re.escape(str(error))):
        client.delete_sets(lambda name: name != "third")
    assert [each.name for each in client.sets()] == ["first", "third"]

    error = RateLimitError("rate limit reached", datetime.now(timezone.utc))
    with pytest.raises(RateLimitError):
        client.delete_sets(lambda _: True)
    assert [each.name for each in client.sets()] == ["first", "third"]


def test_labels_that_the_server_drops_are_seen(server: github.GitHub) -> None:
    """An Enterprise Server before 3.21 keeps the first label, and only its answer tells so."""
    expected = (NAME,) if server.state.settings.enterprise_version else (NAME, "Linux")

    assert connect(server).create(NAME, 1, ["Linux"]).labels == expected


def test_a_group_is_found_by_its_name(broker: github.GitHub) -> None:
    """A group that is missing is the operator's to fix; a repository has only the default group."""
    client = connect(broker, ORG)
    with pytest.raises(TokenError, match=r"no runner group named 'builders'; create it at GitHub, or set group$"):
        client.group_id()

    GitHubControl(broker.url).add_organisation(ORG.org, ["builders"])

    assert client.group_id() == 2
    assert connect(broker).group_id() == 1


def test_the_queue_gives_statistics_and_jobs(server: github.GitHub) -> None:
    """On both kinds of server a job reaches the set; an Enterprise Server's must be acquired first."""
    client = connect(server)
    listener = client.open_session(client.create(NAME, 1, []).set_id, "app/0")
    assert listener.message(2) is None
    assert server.state.scale_sets.sets[listener.set_id].capacity == 2
    GitHubControl(server.url).add_job(REPO.path, labels=[NAME])

    found = listener.message(2)
    assert found is not None
    assert found.statistics is not None
    listener.delete(found.message_id)
    if server.state.settings.enterprise_version:
        assert [job.kind for job in found.jobs] == ["JobAvailable"]
        assert listener.acquire([job.request for job in found.jobs]) == 1
        found = listener.message(2)

    assert found is not None
    assert found.statistics is not None
    assert ([job.kind for job in found.jobs], found.statistics.assigned) == (["JobAssigned"], 1)
    assert found.jobs[0].labels == (NAME,)
    assert found.jobs[0].run > 0


def test_nothing_is_acquired_where_github_assigns_by_itself(broker: github.GitHub) -> None:
    """There the request does not exist."""
    client = connect(broker)

    assert client.open_session(client.create(NAME, 1, []).set_id, "app/0").acquire([1]) == 0


def test_each_request_has_the_time_that_its_answer_may_take(
    broker: github.GitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GitHub holds a request for messages for 50 seconds, and no other one; the connection is made soon in any case."""
    sent: list[tuple[str, dict[str, float]]] = []
    left: list[float] = []
    send = httpx2.Client.send

    def noted(client: httpx2.Client, request: httpx2.Request, **more: Any) -> httpx2.Response:
        assert json.loads(request.headers["user-agent"])["system"] == "github-runner-charm"
        sent.append((request.method, request.extensions["timeout"]))
        return send(client, request, **more)

    def timed(end: float, url: str, action: Callable[[], httpx2.Response]) -> httpx2.Response:
        left.append(end - time.monotonic())
        return within_deadline(end, url, action)

    client = connect(broker)
    listener = client.open_session(client.create(NAME, 1, []).set_id, "app/0")
    monkeypatch.setattr(httpx2.Client, "send", noted)
    monkeypatch.setattr(scale_sets, "within_deadline", timed)

    listener.message(1)
    with suppress(StatusError):
        listener.delete(1)
    listener.acquire([1])
    client.sets()

    assert [method for method, _ in sent] == ["GET", "DELETE", "POST", "GET"]
    assert [times["read"] for _, times in sent] == [scale_sets.POLL_TIMEOUT, 15, 15, 15]
    assert {times["connect"] for _, times in sent} == {5}
    limits = [scale_sets.POLL_DEADLINE, CALL_DEADLINE, CALL_DEADLINE, 3.0]
    assert all(limit - 2 < seconds <= limit for limit, seconds in zip(limits, left, strict=True))


def test_certificates_of_the_option_are_trusted() -> None:
    """The service of scale sets is that of the server, whose authority only the option may know."""
    with github.serve(tokens=[TOKEN], repositories=[REPO.path], tls=True, settings=Settings(hold=0.1)) as server:
        certificates = (str(server.ca),)
        rest = GithubClient(server.url, Pat(TOKEN), ca_certificates=certificates, deadline=5)
        client = ScaleSetClient(
            server.url, REPO, lambda: rest.registration_token(REPO), ca_certificates=certificates, deadline=5
        )
        opened.extend((rest, client))

        assert client.sets() == []


def test_capacity_is_never_zero(broker: github.GitHub) -> None:
    """A job that is queued while 0 is announced may never come."""
    client = connect(broker)
    listener = client.open_session(client.create(NAME, 1, []).set_id, "app/0")

    listener.message(0)

    assert broker.state.scale_sets.sets[listener.set_id].capacity == 1


@pytest.mark.parametrize("in_query", [True, False])
def test_a_message_comes_again_until_it_is_deleted(broker: github.GitHub, in_query: bool) -> None:
    """In both forms of the queue's address; a new session begins anew, whatever the last one had read."""
    broker.state.settings.queue_in_query = in_query
    client = connect(broker)
    set_id = client.create(NAME, 1, []).set_id
    listener = client.open_session(set_id, "app/0")
    listener.message(1)
    GitHubControl(broker.url).add_job(REPO.path, labels=[NAME])
    first = listener.message(1)
    assert first is not None
    assert listener.message(1) is None
    listener.close()

    listener = client.open_session(set_id, "app/0")
    again = listener.message(1)
    assert again == first
    listener.delete(first.message_id)
    listener.close()

    assert client.open_session(set_id, "app/0").message(1) is None


def test_a_second_session_conflicts(broker: github.GitHub) -> None:
    """The error is one of its own, because it is worth waiting for; closing makes room at once."""
    client = connect(broker)
    set_id = client.create(NAME, 1, []).set_id
    first = client.open_session(set_id, "app/0")
    with pytest.raises(SessionConflictError, match="app/0"):
        client.open_session(set_id, "app/1")

    first.close()
    first.close()

    client.open_session(set_id, "app/1")


def test_a_queue_token_that_is_over_is_renewed_once(broker: github.GitHub) -> None:
    """The renewed session also has today's statistics."""
    client = connect(broker)
    listener = client.open_session(client.create(NAME, 1, []).set_id, "app/0")
    before = listener.session
    GitHubControl(broker.url).expire_scale_sets("queue")

    assert listener.message(1) is None

    assert listener.session.id == before.id
    assert listener.session.token != before.token


def test_jobs_are_acquired_with_a_renewed_token() -> None:
    """The queue's token may end between a message and its jobs."""
    for server in serve(enterprise_version="3.17.0"):
        client = connect(server)
        listener = client.open_session(client.create(NAME, 1, []).set_id, "app/0")
        listener.message(1)
        GitHubControl(server.url).add_job(REPO.path, labels=[NAME])
        found = listener.message(1)
        assert found is not None
        GitHubControl(server.url).expire_scale_sets("queue")

        assert listener.acquire([job.request for job in found.jobs]) == 1


def test_jobs_that_are_offered_can_be_asked_for(server: github.GitHub) -> None:
    """At an Enterprise Server, until they are acquired; GitHub.com assigns jobs by itself, and has no such request."""
    client = connect(server)
    listener = client.open_session(client.create(NAME, 1, []).set_id, "app/0")
    assert listener.acquirable() == []
    listener.message(1)
    job = GitHubControl(server.url).add_job(REPO.path, labels=[NAME])
    listener.message(1)

    found = listener.acquirable()

    assert found == ([job["id"]] if server.state.settings.enterprise_version else [])
    if found:
        listener.acquire(found)
        assert listener.acquirable() == []


@pytest.mark.parametrize("value", [None, 7, "7", [], {"runnerRequestId": "7"}, {"runnerRequestId": -1}])
def test_an_offer_without_a_number_is_left_out(value: Any) -> None:
    """The others can be acquired."""
    assert read.requests({"count": 2, "value": [value, {"runnerRequestId": 7}]}) == [7]


@pytest.mark.parametrize("answer", [[], {}, {"value": None}, "text"])
def test_a_list_of_offers_that_is_none_is_an_error(answer: Any) -> None:
    """It is told in the log, and not taken for an empty one."""
    with pytest.raises(GithubApiError):
        read.requests(answer)


def test_a_set_moves_to_another_group(broker: github.GitHub) -> None:
    """It keeps its id and its labels."""
    GitHubControl(broker.url).add_organisation(ORG.org, ["builders"])
    client = connect(broker, ORG)
    made = client.create(NAME, 1, ["Linux"])

    moved = client.move(made.set_id, 2)

    assert (moved.set_id, moved.group, moved.labels) == (made.set_id, 2, made.labels)
    assert client.find(NAME, 1) is None
    assert client.find(NAME, 2) == moved


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        (500, {}, 0),
        (503, {}, 0),
        (503, {"retry-after": "1"}, 0),
        (503, {"retry-after": "30"}, 30),
        (503, {"retry-after": "3600"}, LONGEST_OUTAGE_PAUSE),
        (503, {"retry-after": "soon"}, 60),
        (429, {"retry-after": "3600"}, 3600),
    ],
)
@pytest.mark.parametrize("kind", ["", "GitHub.Actions.Runtime.WebApi.ServiceUnavailableException, X"])
def test_an_outage_is_no_refusal(
    broker: github.GitHub, status: int, headers: dict[str, str], pause: float, kind: str
) -> None:
    """Whatever the body names: it passes, and a time that the service asks for is waited for.

    After a 503 not for long: a proxy's or maintenance page may ask for an hour.
    """
    body = json.dumps({"typeName": kind, "message": "later"})
    client = connect(broker, deadline=1.0)
    client.sets()
    GitHubControl(broker.url).add_fault(path="runtime/runnerscalesets", status=status, headers=headers, body=body)

    with pytest.raises(RateLimitError if pause else TemporaryGithubError) as caught:
        client.sets()

    if isinstance(caught.value, RateLimitError):
        assert pause - 10 < (caught.value.reset - datetime.now(timezone.utc)).total_seconds() <= pause


def test_a_token_that_does_not_come_holds_no_call_beyond_its_deadline() -> None:
    """Neither the one that asks for it nor another one that waits for its answer."""
    asked, answer = threading.Event(), threading.Event()

    def token() -> str:
        asked.set()
        answer.wait(20)
        raise TemporaryGithubError("late")

    def first() -> None:
        with pytest.raises(TemporaryGithubError):
            client.connect()

    client = ScaleSetClient("https://github.example", REPO, token, deadline=0.2)
    opened.append(client)
    other = threading.Thread(target=first, daemon=True)
    begun = time.monotonic()
    try:
        with pytest.raises(TemporaryGithubError, match="in time"):
            client.connect()
        asked.clear()
        client.deadline = 20
        other.start()
        assert asked.wait(10)
        client.deadline = 0.2
        with pytest.raises(TemporaryGithubError, match="another request"):
            client.connect()
        assert time.monotonic() - begun < 10
    finally:
        answer.set()
    other.join(10)


def test_after_a_503_demand_stays_known() -> None:
    """Several attempts are made before the fallback holds."""
    assert LONGEST_OUTAGE_PAUSE <= demand.PATIENCE / 4


def test_an_admin_token_that_is_over_is_replaced(broker: github.GitHub) -> None:
    """The caller notices nothing."""
    client = connect(broker)
    client.create(NAME, 1, [])
    GitHubControl(broker.url).expire_scale_sets("admin")

    assert [found.name for found in client.sets()] == [NAME]


@pytest.mark.parametrize(("clock", "seconds", "tokens"), [(86400, 59, 1), (86400, 61, 2), (-86400, 3601, 2)])
def test_a_wrong_clock_costs_few_tokens(
    broker: github.GitHub, monkeypatch: pytest.MonkeyPatch, clock: float, seconds: float, tokens: int
) -> None:
    """By a clock that is ahead each token is over: it is used for a minute. None is used for more than an hour."""
    now, ticks = time.time(), time.monotonic()
    client = connect(broker)
    monkeypatch.setattr("gh.scale_set_answers.time.time", lambda: now + clock)
    client.sets()
    monkeypatch.setattr("gh.scale_sets.time.monotonic", lambda: ticks + seconds)

    client.connect()

    requests = GitHubControl(broker.url).requests()
    assert sum(1 for request in requests if request["path"].endswith("/runner-registration")) == tokens


def test_the_admin_token_is_replaced_before_its_end(broker: github.GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its last minute; while it is good no other one is asked for."""
    client = connect(broker)
    client.sets()
    tokens = {client.access(time.monotonic() + 3)[1]}
    assert client.access(time.monotonic() + 3)[1] in tokens

    now = time.monotonic()
    monkeypatch.setattr("gh.scale_sets.time.monotonic", lambda: now + 1020 - 59)

    assert client.access(now + 2000)[1] not in tokens


@pytest.mark.parametrize(("what", "error"), [("sessions", SessionEndedError), ("set", SetGoneError)])
def test_an_end_on_githubs_side_is_named(broker: github.GitHub, what: str, error: type[Exception]) -> None:
    """A session that ended is opened anew, a set that vanished made anew: the caller can tell them apart."""
    client, control = connect(broker), GitHubControl(broker.url)
    listener = client.open_session(client.create(NAME, 1, []).set_id, "app/0")
    if what == "set":
        control.remove_scale_set(listener.set_id)
    else:
        control.expire_scale_sets("sessions")

    with pytest.raises((SessionEndedError, SetGoneError)):
        listener.message(1)
    with pytest.raises(error):
        listener.renew()


def test_a_runner_is_registered_by_the_set(broker: github.GitHub) -> None:
    """Its configuration is a just-in-time one; a taken name is a conflict; its record can be deleted while idle."""
    client = connect(broker)
    set_id = client.create(NAME, 1, []).set_id

    runner, encoded = client.jit_configuration(set_id, "app-0-0123abcd01")

    assert ".runner" in read_configuration(encoded)
    assert client.record("app-0-0123abcd01") == runner
    with pytest.raises(StatusError) as caught:
        client.jit_configuration(set_id, "app-0-0123abcd01")
    assert caught.value.status == 409
    GitHubControl(broker.url).add_job(REPO.path, labels=["other"])
    with broker.state.lock:
        job = next(iter(broker.state.jobs.values()))
        broker.state.runners[runner].job = job.id
    with pytest.raises(RunnerBusyError):
        client.delete_record(runner)
    with broker.state.lock:
        broker.state.runners[runner].job = None
    client.delete_record(runner)
    client.delete_record(runner)
    assert client.record("app-0-0123abcd01") is None


def test_tokens_are_masked(broker: github.GitHub) -> None:
    """Neither log nor status shows a token of the service, of a queue, or a runner's configuration."""
    client = connect(broker)
    listener = client.open_session(client.create(NAME, 1, []).set_id, "app/0")
    encoded = client.jit_configuration(listener.set_id, "app-0-0123abcd01")[1]

    for secret in (client.access(time.monotonic() + 3)[1], listener.session.token, encoded):
        assert redact(f"a {secret} b") == f"a {MASK} b"
        assert secret not in repr(listener.session)


def test_the_service_token_stays_masked_while_it_is_used(broker: github.GitHub) -> None:
    """A hook may register so many runners that the values which came first are masked no more."""
    client = connect(broker)
    token = client.access(time.monotonic() + 3)[1]
    redaction.note_received(*(f"configuration-{number}" for number in range(redaction.MOST)))

    client.sets()

    assert redact(f"a {token} b") == f"a {MASK} b"


def test_a_token_without_the_permission_is_the_operators(broker: github.GitHub) -> None:
    """A 403 of the registration that stays is no time for another attempt in the next second."""
    GitHubControl(broker.url).add_fault(path="runner-registration", status=403)

    with pytest.raises(TokenError, match="no access to the runner scale sets of org/repo"):
        connect(broker).sets()


def test_a_new_registration_token_may_need_a_moment(broker: github.GitHub) -> None:
    """One 401 of the registration is tried again."""
    GitHubControl(broker.url).add_fault(path="runner-registration", status=401, times=1)

    assert connect(broker).sets() == []


STATISTICS = {
    f"total{name}": 1
    for name in (
        *("AvailableJobs", "AcquiredJobs", "AssignedJobs", "RunningJobs"),
        *("RegisteredRunners", "BusyRunners", "IdleRunners"),
    )
}
MESSAGE = {"messageId": 1, "messageType": read.JOBS, "body": "[]", "statistics": STATISTICS}


@pytest.mark.parametrize("message_id", [-1, 2**64, True, None, "1"])
def test_a_message_without_an_id_is_refused(message_id: Any) -> None:
    """It cannot be deleted."""
    with pytest.raises(GithubApiError):
        read.message({**MESSAGE, "messageId": message_id})


@pytest.mark.parametrize(
    "changes",
    [
        {"statistics": None},
        {"statistics": {**STATISTICS, "totalAssignedJobs": -1}},
        {"statistics": {**STATISTICS, "totalAssignedJobs": 10**9}},
        {"statistics": {**STATISTICS, "totalAssignedJobs": "3"}},
        {"body": "{"},
        {"body": 7},
        {"body": "[" * 100_000},
        {"body": json.dumps([{"jobId": "a"}] * 1001)},
    ],
)
def test_a_damaged_message_can_be_deleted(changes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Only what is damaged is left out: none of its numbers becomes a number of runners. The log names the message."""
    jobs = json.dumps([{"messageType": "JobStarted", "jobId": "a"}])

    found = read.message({**MESSAGE, "body": jobs, **changes})

    assert found.message_id == 1
    assert (found.statistics is None) is ("statistics" in changes)
    assert len(found.jobs) == (0 if "body" in changes else 1)
    assert [line.partition(":")[0] for line in caplog.messages] == ["Message 1"]


@pytest.mark.parametrize("value", [7, True, {"a": 1}, [1], None, 1.5])
def test_a_text_of_another_type_is_empty(broker: github.GitHub, value: Any) -> None:
    """Also in the body of an error."""
    assert read.text({"message": value}, "message") == ""
    body = json.dumps({"typeName": value, "message": value})
    GitHubControl(broker.url).add_fault(path="/runnerscalesets", status=400, body=body)
    with pytest.raises(GithubApiError, match="request refused"):
        connect(broker).sets()


@pytest.mark.parametrize(
    ("message", "shown"),
    [("no such set", "request refused (HTTP 400): no such set"), ("", "request refused (HTTP 400)")],
)
def test_a_refusal_shows_the_services_words(
    broker: github.GitHub, message: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The status of the unit ends with them, or with the code. The log has what GitHub's support finds it by."""
    caplog.set_level("INFO")
    body, headers = json.dumps({"message": message}), {"activityid": "abc-1"}
    GitHubControl(broker.url).add_fault(path="/runnerscalesets", status=400, body=body, headers=headers)

    with pytest.raises(GithubApiError) as raised:
        connect(broker).sets()

    assert str(raised.value) == shown
    assert [line for line in caplog.messages if line.startswith("org/repo: HTTP 400 ") and "abc-1" in line]


def test_hostile_texts_of_a_job_are_bounded() -> None:
    """Workflow authors choose them; an entry that is no object, or has no id, is left out."""
    entry = {"messageType": "JobStarted", "jobId": "a" * 999, "jobDisplayName": "a\nb\x1b", "requestLabels": [7, "x"]}
    times = {"queueTime": "0001-01-01T00:00:00Z", "finishTime": "soon", "runnerAssignTime": "2026-11-20T08:00:14Z"}

    [job] = read.message({**MESSAGE, "body": json.dumps([entry | times, 7, {}])}).jobs

    assert (len(job.id), job.name, job.labels) == (read.TEXT_LIMIT, "a b ", ("x",))
    assert (job.queued, job.finished, job.started) == (None, None, 1795161614.0)


class Older(datetime):
    """As Python 3.10 reads times."""

    @classmethod
    def fromisoformat(cls, text: str) -> "Older":
        if not re.fullmatch(r"[^.]*(\.([0-9]{3}|[0-9]{6})[+-][0-9:]+)?", text):
            raise ValueError(text)
        return super().fromisoformat(text)


@pytest.mark.parametrize("fraction", ["", ".1", ".123", ".1234567", ".123456789"])
@pytest.mark.parametrize("zone", ["Z", "+02:00"])
def test_times_may_have_any_fraction(fraction: str, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service writes seven digits, which Python 3.10 does not read by itself."""
    monkeypatch.setattr(answers, "datetime", Older)

    entry = {"messageType": "JobStarted", "jobId": "a", "queueTime": f"2026-11-20T08:00:14{fraction}{zone}"}

    [job] = read.message({**MESSAGE, "body": json.dumps([entry])}).jobs

    assert job.queued is not None
    hour = 0 if zone == "Z" else 2
    assert abs(job.queued - (1795161614.0 - hour * 3600)) < 0.2


def test_a_message_of_another_type_has_no_jobs(caplog: pytest.LogCaptureFixture) -> None:
    """Its statistics count all the same, and the log names the type."""
    found = read.message({**MESSAGE, "messageType": "News", "body": "no JSON"})

    assert found == Message(1, Statistics(*[1] * 7), ())
    assert read.message({"messageId": 1, "messageType": "News"}) == Message(1, None, ())
    assert "Message 1 has the unknown type 'News'" in caplog.text


@pytest.mark.parametrize("url", ["", "ftp://host/", "https://", "http://host/", "https://u:p@host/", "https://host:x/"])
def test_tokens_go_to_no_address_that_is_none(url: str) -> None:
    """An empty one was seen during an outage; a plain one is taken from a plain GitHub only."""
    with pytest.raises(TemporaryGithubError):
        read.url({"url": url}, "url", ("https",))


def test_an_answer_may_begin_with_a_byte_order_mark() -> None:
    """The service's answers do."""
    assert read.document(httpx2.Response(200, content=b"\xef\xbb\xbf{}")) == {}


def test_path_and_query_of_an_address_are_kept() -> None:
    """The service's address has a path, and a queue's may have a query."""
    assert (
        scale_sets.extended("https://host/rest?a=1", "/_apis/x", b="2 3") == "https://host/rest/_apis/x?a=1&b=2%203"
    ) or scale_sets.extended("https://host/rest?a=1", "/_apis/x", b="2 3") == "https://host/rest/_apis/x?a=1&b=2+3"


def test_a_reconcile_registers_in_the_set(broker: github.GitHub) -> None:
    """A record with the files of the configuration; labels are those of the set."""
    client = connect(broker)
    registration = ScaleSetRegistration(client, client.create(NAME, 1, []).set_id)

    registration.prepare()
    found = registration.register("app-0-0123abcd01", ["ignored"])

    assert ".runner" in dict(found.files or {})
    assert client.record("app-0-0123abcd01") == found.runner_id


def test_a_name_whose_answer_was_lost_is_registered_again(broker: github.GitHub) -> None:
    """The record that it left is deleted first."""
    client = connect(broker)
    set_id = client.create(NAME, 1, []).set_id
    lost, _ = client.jit_configuration(set_id, "app-0-0123abcd01")

    found = ScaleSetRegistration(client, set_id).register("app-0-0123abcd01", [])

    assert client.record("app-0-0123abcd01") == found.runner_id != lost


def test_a_taken_name_without_a_record_is_an_error(broker: github.GitHub) -> None:
    """There is nothing to delete then."""
    client = connect(broker)
    set_id = client.create(NAME, 1, []).set_id
    GitHubControl(broker.url).add_fault(path="generatejitconfig", status=409)

    with pytest.raises(StatusError):
        ScaleSetRegistration(client, set_id).register("app-0-0123abcd01", [])


@pytest.mark.parametrize("answer", [{"encodedJITConfig": "damaged+configuration"}, {}], ids=["damaged", "missing"])
def test_a_record_without_a_good_configuration_goes(broker: github.GitHub, answer: dict[str, str]) -> None:
    """No instance is made for it. It is found by its name, also where the answer lacks its id."""
    client = connect(broker)
    set_id = client.create(NAME, 1, []).set_id
    record, _ = client.jit_configuration(set_id, "app-0-0123abcd01")
    body = json.dumps({"runner": {"id": record}, **answer} if answer else {})
    GitHubControl(broker.url).add_fault(path="generatejitconfig", status=200, body=body)

    with pytest.raises(GithubApiError):
        ScaleSetRegistration(client, set_id).register("app-0-0123abcd01", [])

    assert client.record("app-0-0123abcd01") is None
