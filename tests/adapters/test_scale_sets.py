"""The stand-in's runner scale sets, held to what GitHub's own client expects (https://github.com/actions/scaleset)."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from sandbox import github
from sandbox.github.control import GitHubControl
from sandbox.github.state import Settings
from tests.support.deployment import wait_for
from tests.support.scale_set_client import ScaleSetClient, ScaleSetError

TOKEN = "ghp_0123456789abcdef"
REPOSITORY, OTHER, ORGANISATION = "org/repo", "org/other", "org"
NOTHING = {
    f"total{name}": 0
    for name in (
        *("AvailableJobs", "AcquiredJobs", "AssignedJobs", "RunningJobs"),
        *("RegisteredRunners", "BusyRunners", "IdleRunners"),
    )
}


def serve(**changes: Any) -> Iterator[github.GitHub]:
    settings = Settings(**{"hold": 0.1, "assign_after": 0.0, "linger": 0.0, "enterprise_version": "", **changes})
    with github.serve(
        tokens=[TOKEN], repositories=[REPOSITORY, OTHER], organisations=[ORGANISATION], settings=settings
    ) as running:
        yield running


@pytest.fixture
def server() -> Iterator[github.GitHub]:
    yield from serve()


@pytest.fixture
def enterprise() -> Iterator[github.GitHub]:
    yield from serve(enterprise_version="3.17.0")


@pytest.fixture
def control(server: github.GitHub) -> GitHubControl:
    return GitHubControl(server.url)


def connect(server: github.GitHub, path: str = REPOSITORY) -> ScaleSetClient:
    return ScaleSetClient(server.api_url, f"{server.url}/{path}", TOKEN)


@pytest.fixture
def client(server: github.GitHub) -> ScaleSetClient:
    return connect(server)


def begin(server: github.GitHub, runner: int) -> None:
    """Let a runner take the job that it is given."""
    with server.state.lock:
        found = server.state.runners[runner]
        found.seen = time.monotonic()
        assert server.state.take_job(found) is not None


def kinds(message: dict[str, Any] | None) -> list[str]:
    return [entry["messageType"] for entry in message["entries"]] if message else []


def refusal(call: Any, *arguments: Any) -> tuple[int, str]:
    with pytest.raises(ScaleSetError) as caught:
        call(*arguments)
    return caught.value.status, caught.value.kind


def test_a_set_is_found_by_name_and_made_once(client: ScaleSetClient) -> None:
    """A name is unique in its group; the answer repeats the labels, each of the system's kind."""
    assert client.find(name="small", runnerGroupId=1) == []

    made = client.create("small", "linux")

    assert [found["id"] for found in client.find(name="small", runnerGroupId=1)] == [made["id"]]
    assert made["labels"] == [{"name": "small", "type": "System"}, {"name": "linux", "type": "System"}]
    assert made["statistics"] == NOTHING
    assert (made["runnerGroupId"], made["runnerGroupName"]) == (1, "Default")
    assert refusal(client.create, "small") == (400, "RunnerScaleSetExistsException")


def test_sets_of_another_path_are_not_seen(server: github.GitHub, client: ScaleSetClient) -> None:
    """A connection is for one repository or organisation."""
    number = client.create("small")["id"]

    other = connect(server, ORGANISATION)

    assert other.find() == []
    assert refusal(other.call, "GET", f"/runtime/runnerscalesets/{number}") == (404, "RunnerScaleSetNotFoundException")


def test_labels_stay_as_they_were_made(client: ScaleSetClient) -> None:
    """A change of a set reaches its name and its group only."""
    made = client.create("small")

    labels = [{"name": "other", "type": "System"}]
    changed = client.call("PATCH", f"/runtime/runnerscalesets/{made['id']}", {"name": "tiny", "labels": labels})

    assert (changed["name"], changed["labels"]) == ("tiny", made["labels"])


@pytest.mark.parametrize(("version", "labels"), [("3.17.0", 1), ("3.20.9", 1), ("3.21.0", 2), ("", 2)])
def test_older_enterprise_servers_drop_labels(server: github.GitHub, version: str, labels: int) -> None:
    """Up to 3.20 a set has its first label only, and nothing says so but the answer."""
    server.state.settings.enterprise_version = version

    assert len(connect(server).create("small", "linux")["labels"]) == labels


def test_old_enterprise_servers_have_no_sets(server: github.GitHub) -> None:
    """They came with 3.9."""
    server.state.settings.enterprise_version = "3.8.2"

    assert refusal(connect(server).find)[0] == 404


def test_answers_begin_with_a_byte_order_mark(client: ScaleSetClient) -> None:
    """A client that does not strip it cannot read them."""
    url = f"{client.service}/_apis/runtime/runnerscalesets?api-version=6.0-preview"
    answer = client.http.get(url, headers={"Authorization": f"Bearer {client.admin}"}, timeout=5)

    assert answer.content.startswith(b"\xef\xbb\xbf{")
    assert answer.headers["ActivityId"]


def test_a_request_names_the_version(client: ScaleSetClient) -> None:
    """Without `api-version` nothing is answered."""
    url = f"{client.service}/_apis/runtime/runnerscalesets"
    answer = client.http.get(url, headers={"Authorization": f"Bearer {client.admin}"}, timeout=5)

    assert answer.status_code == 400


def test_requests_of_a_session_name_version_and_capacity(enterprise: github.GitHub) -> None:
    """Also those with the queue's token; nothing is answered or taken otherwise."""
    client = connect(enterprise)
    listener = client.listen(client.create("small")["id"])
    whole = {"Accept": "application/json; api-version=6.0-preview", "X-ScaleSetMaxCapacity": "1"}
    for headers in (
        {"X-ScaleSetMaxCapacity": "1"},
        {**whole, "Accept": "application/json"},
        {**whole, "X-ScaleSetMaxCapacity": "many"},
        {"Accept": whole["Accept"]},
    ):
        sent = {**headers, "Authorization": f"Bearer {listener.token}"}
        assert client.http.get(listener.url, headers=sent, timeout=5).status_code == 400
    place = f"{client.service}/_apis/runtime/runnerscalesets/{listener.set_id}/acquirejobs"
    bearer = {"Authorization": f"Bearer {listener.token}"}
    assert client.http.post(place, json=[1], headers=bearer, timeout=5).status_code == 400

    assert listener.message(1) is None
    assert listener.acquire(1) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": ["a"]},
        {"labels": [7]},
        {"labels": "a"},
        {"labels": [{"name": 7}]},
        {"runnerGroupId": "x"},
        {"runnerGroupId": 9},
        {"runnerGroupId": 0},
        {"runnerGroupId": True},
        {"name": ""},
        {"name": 7},
        {"name": []},
        {"RunnerSetting": []},
        [],
    ],
)
def test_a_set_with_wrong_values_is_not_made(client: ScaleSetClient, wrong: Any) -> None:
    """Nor is one changed to them; the answer says so."""
    body = {"name": "large", "runnerGroupId": 1, **wrong} if isinstance(wrong, dict) else wrong
    made = client.create("small")

    assert refusal(client.call, "POST", "/runtime/runnerscalesets", body)[0] == 400
    if not {"labels", "RunnerSetting"} & {*wrong}:
        assert refusal(client.call, "PATCH", f"/runtime/runnerscalesets/{made['id']}", body)[0] == 400
    assert client.find() == [made]


def test_a_set_does_not_get_the_name_of_another_one(server: github.GitHub, control: GitHubControl) -> None:
    """A name is unique in its group, also where a set is renamed or moved."""
    control.add_organisation(ORGANISATION, ["other"])
    client = connect(server, ORGANISATION)
    first, second, third = client.create("first"), client.create("second"), client.create("first", group=2)

    for item, body in ((second, {"name": "first"}), (third, {"runnerGroupId": 1})):
        place = f"/runtime/runnerscalesets/{item['id']}"
        assert refusal(client.call, "PATCH", place, body) == (400, "RunnerScaleSetExistsException")
    place = f"/runtime/runnerscalesets/{first['id']}"
    assert client.call("PATCH", place, {"name": "first", "runnerGroupId": 1}) == first
    assert client.call("PATCH", place, {"name": "new"})["name"] == "new"


def test_sets_go_with_a_renamed_repository(server: github.GitHub, control: GitHubControl) -> None:
    """So do the tokens of their clients, and the jobs that come to them."""
    client = connect(server)
    listener = client.listen(client.create("small")["id"])

    control.rename_repository(REPOSITORY, "org/new")
    control.add_job("org/new", labels=["small"])

    assert kinds(listener.message(1)) == ["JobAssigned"]
    assert [each["name"] for each in client.find()] == ["small"]


def test_a_job_may_be_kept_from_sets(control: GitHubControl, client: ScaleSetClient) -> None:
    """By the control interface, with the numbers of the sets; others get it."""
    made = client.create("small")
    listener = client.listen(made["id"])
    for missed in ([made["id"]], [made["id"] + 1]):
        control.add_job(REPOSITORY, labels=["small"], state={"missed": missed})

    found = listener.message(5)
    assert found is not None
    assert len(found["entries"]) == 1


def test_the_services_token_ends(server: github.GitHub, control: GitHubControl, client: ScaleSetClient) -> None:
    """It says when, and is refused from then on; a registration token is none."""
    assert 0 < client.admin_ends - server.state.clock() <= server.state.settings.admin_token_life
    control.expire_scale_sets("admin")
    assert refusal(client.find)[0] == 401

    client.connect()
    client.find()
    with server.state.lock:
        client.admin, _ = server.state.make_runner_token("registration", REPOSITORY)
    assert refusal(client.find)[0] == 401


def test_groups_have_numbers(server: github.GitHub, control: GitHubControl) -> None:
    """A group is looked for by its name; a set of an organisation may be in it."""
    control.add_organisation(ORGANISATION, ["builders"])
    client = connect(server, ORGANISATION)

    found = client.call("GET", "/runtime/runnergroups/", groupName="builders")

    assert [(group["id"], group["isDefaultGroup"]) for group in found["value"]] == [(2, False)]
    assert client.create("small", group=2)["runnerGroupName"] == "builders"


def test_one_session(server: github.GitHub, client: ScaleSetClient) -> None:
    """A second one is refused until the first is closed, or has not asked for so long that it ends."""
    number = client.create("small")["id"]
    first = client.listen(number, "one")
    conflict = (409, "RunnerScaleSetSessionConflictException")
    assert refusal(client.listen, number, "two") == conflict
    first.close()
    client.listen(number, "two")
    assert refusal(client.listen, number, "three") == conflict

    server.state.settings.session_life = 0.0
    client.listen(number, "three")


@pytest.mark.parametrize("query", [True, False])
def test_both_forms_of_the_queues_address(server: github.GitHub, client: ScaleSetClient, query: bool) -> None:
    """It may have a query, and messages are deleted below its path all the same."""
    server.state.settings.queue_in_query = query
    listener = client.listen(client.create("small")["id"])
    assert ("?" in listener.url) is query
    GitHubControl(server.url).add_job(REPOSITORY, labels=["small"])

    message = listener.message(1)
    assert kinds(message) == ["JobAssigned"]
    listener.delete(listener.last)
    assert listener.message(1) is None


def test_a_job_comes_as_it_is_queued(control: GitHubControl, client: ScaleSetClient) -> None:
    """The service assigns it, and the numbers say that the set has to provide a runner."""
    listener = client.listen(client.create("small", "linux")["id"])
    assert (listener.statistics, listener.message(3)) == (NOTHING, None)

    job = control.add_job(REPOSITORY, labels=["Linux", "small"])
    message = listener.message(3)

    assert message is not None
    [entry] = message["entries"]
    assert (entry["messageType"], entry["runnerRequestId"]) == ("JobAssigned", 0)
    assert (entry["ownerName"], entry["repositoryName"], entry["workflowRunId"]) == ("org", "repo", job["run_id"])
    assert "queueTime" not in entry
    assert message["statistics"] == {**NOTHING, "totalAssignedJobs": 1}
    assert refusal(listener.acquire, 1)[0] == 404
    assert refusal(listener.acquirable)[0] == 404


def test_jobs_with_another_label_do_not_come(control: GitHubControl, client: ScaleSetClient) -> None:
    """All labels of a job must be the set's; `self-hosted` is none unless it was asked for."""
    listener = client.listen(client.create("small")["id"])

    control.add_job(REPOSITORY, labels=["self-hosted", "small"])
    control.add_job(OTHER, labels=["small"])

    assert listener.message(3) is None


def test_a_runner_of_a_set_takes_any_of_its_jobs(server: github.GitHub, control: GitHubControl) -> None:
    """It has no labels of its own, and its job's start and end are told with their times."""
    client = connect(server, ORGANISATION)
    number = client.create("small")["id"]
    listener = client.listen(number)
    job = control.add_job(REPOSITORY, labels=["small"])
    assert kinds(listener.message(1)) == ["JobAssigned"]
    made = client.jit(number, "app-0-aa")
    assert made["runner"]["runnerScaleSetId"] == number
    assert [found["labels"] for found in control.runners()] == [[]]

    begin(server, made["runner"]["id"])
    started = listener.message(1)
    with server.state.lock:
        server.state.complete_job(server.state.jobs[job["id"]], "failure")
    ended = listener.message(1)

    assert started is not None
    assert ended is not None
    assert kinds(started) == ["JobStarted"]
    assert started["entries"][0]["runnerName"] == "app-0-aa"
    assert started["entries"][0]["finishTime"] == "0001-01-01T00:00:00Z"
    assert started["statistics"]["totalRunningJobs"] == started["statistics"]["totalBusyRunners"] == 1
    assert (kinds(ended), ended["entries"][0]["result"]) == (["JobCompleted"], "failed")
    assert ended["statistics"] == NOTHING


def test_other_runners_do_not_take_a_sets_jobs(
    server: github.GitHub, control: GitHubControl, client: ScaleSetClient
) -> None:
    """What is assigned to a set waits for its runners, and its runners take nothing else."""
    number = client.create("small")["id"]
    listener = client.listen(number)
    control.add_job(REPOSITORY, labels=["small"])
    listener.message(1)
    control.add_job(REPOSITORY, labels=["self-hosted"])
    own = client.jit(number, "own")["runner"]["id"]

    with server.state.lock:
        plain = server.state.add_runner(REPOSITORY, "plain", ["self-hosted", "small"])
        taken = server.state.take_job(plain)
        assert taken is not None
        assert taken.labels == ["self-hosted"]
        assert server.state.take_job(server.state.add_runner(REPOSITORY, "late", ["self-hosted", "small"])) is None
    begin(server, own)


def test_names_of_runners_are_unique(client: ScaleSetClient) -> None:
    """A record that is there already is an error of its own."""
    number = client.create("small")["id"]
    client.jit(number, "one")

    assert refusal(client.jit, number, "one") == (409, "AgentExistsException")


def test_a_busy_record_is_not_deleted(server: github.GitHub, control: GitHubControl, client: ScaleSetClient) -> None:
    """An idle one is, and one that is not there counts as deleted."""
    number = client.create("small")["id"]
    busy, idle = (client.jit(number, name)["runner"]["id"] for name in ("busy", "idle"))
    control.add_job(REPOSITORY, labels=["small"])
    client.listen(number).message(1)
    begin(server, busy)
    agents = "/distributedtask/pools/0/agents"

    assert refusal(client.call, "DELETE", f"{agents}/{busy}") == (400, "JobStillRunningException")
    client.call("DELETE", f"{agents}/{idle}")
    client.call("DELETE", f"{agents}/{idle}")
    assert refusal(client.call, "GET", f"{agents}/{idle}") == (404, "AgentNotFoundException")
    assert client.call("GET", agents, agentName="busy")["value"][0]["id"] == busy


def test_messages_come_until_they_are_deleted(control: GitHubControl, client: ScaleSetClient) -> None:
    """The cursor is the session's, the messages are the set's: a new session gets those that were kept."""
    number = client.create("small")["id"]
    listener = client.listen(number)
    control.add_job(REPOSITORY, labels=["small"])
    first = listener.message(2)
    control.add_job(REPOSITORY, labels=["small"])
    listener.message(2)
    listener.delete(listener.last)
    listener.close()

    again = client.listen(number)

    assert first is not None
    assert again.statistics["totalAssignedJobs"] == 2
    found = again.message(2)
    assert found is not None
    assert found["messageId"] == first["messageId"] == 100000001
    assert again.message(2) is None


def test_a_stale_cursor_sees_nothing(control: GitHubControl, client: ScaleSetClient) -> None:
    """Numbers begin anew with a set that is made anew, so that a cursor must not be kept."""
    number = client.create("small")["id"]
    listener = client.listen(number)
    control.add_job(REPOSITORY, labels=["small"])
    listener.last = 100000500

    assert listener.message(1) is None


def test_no_more_than_50_entries_in_a_message(control: GitHubControl, client: ScaleSetClient) -> None:
    """A burst comes in several messages."""
    listener = client.listen(client.create("small")["id"])
    control.add_job(REPOSITORY, count=60, labels=["small"])

    assert [len(kinds(listener.message(100))) for _ in range(2)] == [50, 10]


def test_no_more_jobs_than_the_capacity(control: GitHubControl, client: ScaleSetClient) -> None:
    """The capacity is the number of all runners; lowering it takes nothing back."""
    listener = client.listen(client.create("small")["id"])
    control.add_job(REPOSITORY, count=3, labels=["small"])

    assert len(kinds(listener.message(2))) == 2
    assert listener.message(1) is None
    assert len(kinds(listener.message(3))) == 1
    assert [found["capacity"] for found in control.scale_sets()] == [3]


def test_jobs_of_a_closed_capacity_never_come(control: GitHubControl, client: ScaleSetClient) -> None:
    """Who announces 0 does not get what is queued then, also not later."""
    listener = client.listen(client.create("small")["id"])
    assert listener.message(0) is None
    control.add_job(REPOSITORY, labels=["small"])
    assert listener.message(0) is None
    assert listener.message(5) is None

    control.add_job(REPOSITORY, labels=["small"])
    assert len(kinds(listener.message(5))) == 1


def test_sets_with_a_common_label_are_filled_by_capacity(control: GitHubControl, client: ScaleSetClient) -> None:
    """Each job goes to the set with the most room."""
    listeners = [client.listen(client.create(name, "linux")["id"]) for name in ("a", "b")]
    for listener, capacity in zip(listeners, (1, 3), strict=True):
        assert listener.message(capacity) is None

    control.add_job(REPOSITORY, count=4, labels=["linux"])

    assert [len(kinds(listener.message(capacity))) for listener, capacity in zip(listeners, (1, 3), strict=True)] == [
        1,
        3,
    ]


def test_a_job_without_a_runner_is_queued_again(
    server: github.GitHub, control: GitHubControl, client: ScaleSetClient
) -> None:
    """It is over for the set as canceled, though it never ran, and comes again three times."""
    listener = client.listen(client.create("small")["id"])
    control.add_job(REPOSITORY, labels=["small"])
    listener.message(1)
    server.state.settings.reassign_after = 0.0

    entries = [entry for message in iter(lambda: listener.message(1), None) for entry in message["entries"]]

    assert [entry["messageType"] for entry in entries] == ["JobCompleted", "JobAssigned"] * 3
    assert (entries[0]["result"], entries[0]["runnerId"]) == ("canceled", 0)


def test_a_cancelled_job_ends_for_its_set(control: GitHubControl, client: ScaleSetClient) -> None:
    """Also one that waits for a runner."""
    listener = client.listen(client.create("small")["id"])
    job = control.add_job(REPOSITORY, labels=["small"])
    listener.message(1)
    control.cancel_job(job["id"])

    message = listener.message(1)

    assert message is not None
    assert (kinds(message), message["statistics"]) == (["JobCompleted"], NOTHING)


def test_a_set_may_vanish(control: GitHubControl, client: ScaleSetClient) -> None:
    """GitHub removes sets on its side; its jobs are queued again, and a set that is made anew gets them."""
    number = client.create("small")["id"]
    listener = client.listen(number)
    control.add_job(REPOSITORY, labels=["small"])
    listener.message(1)
    control.remove_scale_set(number)

    assert refusal(listener.message, 1)[0] == 404
    assert refusal(client.listen, number) == (404, "RunnerScaleSetNotFoundException")
    again = client.listen(client.create("small")["id"])
    assert kinds(again.message(1)) == ["JobAssigned"]
    assert again.last == 100000001


def test_the_queues_token_is_renewed(control: GitHubControl, client: ScaleSetClient) -> None:
    """With the session's number it gives a new one, and today's numbers without a message."""
    listener = client.listen(client.create("small")["id"])
    listener.message(1)
    control.add_job(REPOSITORY, labels=["small"])
    control.expire_scale_sets("queue")
    assert refusal(listener.message, 1)[0] == 401
    known = listener.id

    listener.renew()

    assert (listener.id, listener.statistics["totalAssignedJobs"]) == (known, 1)
    assert kinds(listener.message(1)) == ["JobAssigned"]


def test_a_session_that_ended_is_not_renewed(control: GitHubControl, client: ScaleSetClient) -> None:
    """Its messages and its closing say so as well."""
    listener = client.listen(client.create("small")["id"])
    control.expire_scale_sets("sessions")

    expired = (400, "RunnerScaleSetSessionExpiredException")
    assert refusal(listener.renew) == refusal(listener.close) == expired
    assert refusal(listener.message, 1)[0] in (400, 404)


def test_a_request_for_messages_waits(server: github.GitHub, control: GitHubControl, client: ScaleSetClient) -> None:
    """It is answered with a job as soon as there is one."""
    server.state.settings.hold = 20.0
    listener = client.listen(client.create("small")["id"])
    began = time.monotonic()
    control.add_job(REPOSITORY, labels=["small"])

    assert kinds(listener.message(1)) == ["JobAssigned"]
    assert time.monotonic() - began < 10


def test_a_waiting_client_that_goes_leaves_its_session(server: github.GitHub, client: ScaleSetClient) -> None:
    """The session of a client that was killed lasts a while, and ends then."""
    number = client.create("small")["id"]
    server.state.settings.hold, server.state.settings.session_life = 60.0, 0.3
    listener = client.listen(number)
    headers = {
        "Accept": "application/json; api-version=6.0-preview",
        "Authorization": f"Bearer {listener.token}",
        "X-ScaleSetMaxCapacity": "1",
    }
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.get(listener.url, headers=headers, timeout=0.2)

    assert refusal(client.listen, number)[0] == 409
    wait_for(lambda: GitHubControl(server.url).scale_sets()[0]["owner"] is None, "the end of the session", 10)
    client.listen(number)


def test_an_enterprise_server_lets_clients_take_jobs(enterprise: github.GitHub) -> None:
    """A job is offered to each set, and belongs to the first that takes it."""
    client, control = connect(enterprise), GitHubControl(enterprise.url)
    listeners = [client.listen(client.create("linux", group=1)["id"])]
    listeners += [connect(enterprise, ORGANISATION).listen(connect(enterprise, ORGANISATION).create("linux")["id"])]
    assert [listener.message(1) for listener in listeners] == [None, None]

    job = control.add_job(REPOSITORY, labels=["linux"])

    for listener in listeners:
        message = listener.message(1)
        assert message is not None
        assert kinds(message) == ["JobAvailable"]
        assert message["entries"][0]["runnerRequestId"] == job["id"]
        assert message["statistics"]["totalAvailableJobs"] == 1
    assert [listener.acquirable() for listener in listeners] == [[job["id"]], [job["id"]]]
    assert listeners[0].acquire(job["id"], 12345) == [job["id"]]
    assert listeners[1].acquire(job["id"]) == []
    assert [listener.acquirable() for listener in listeners] == [[], []]
    taken = listeners[0].message(1)
    assert taken is not None
    assert kinds(taken) == ["JobAssigned"]
    assert taken["statistics"] == {**NOTHING, "totalAcquiredJobs": 1, "totalAssignedJobs": 1}
