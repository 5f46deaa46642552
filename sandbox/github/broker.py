"""The service that clients of runner scale sets talk to: sets, sessions, messages and the runners of sets.

GitHub publishes no description of it. The contract is its own client: https://github.com/actions/scaleset
"""

import base64
import json
import secrets
import time
from typing import Any
from urllib.parse import urlencode

from sandbox.github import jit
from sandbox.github.errors import RefusedError
from sandbox.github.forms import instant
from sandbox.github.http import Answer, Request, Routes, answer
from sandbox.github.scale_sets import Message, ScaleSet, ServiceRefusedError, Session, not_found
from sandbox.github.state import Runner, State

BASE = "/_actions"
VERSION = "6.0-preview"
CAPACITY = "x-scalesetmaxcapacity"
WATCH = 0.2
BOM = b"\xef\xbb\xbf"

routes = Routes()
SETS = BASE + "/_apis/runtime/runnerscalesets"
SET = SETS + r"/(?P<number>\d+)"
AGENTS = BASE + "/_apis/distributedtask/pools/0/agents"
QUEUE = BASE + r"/scalesets/(?:(?P<session>[0-9a-f-]{36})/)?message"


def respond(state: State, request: Request) -> Answer | None:
    """Answer a request of a scale set's client; None if it is none."""
    found = routes.find(request.method, request.path)
    if found is None:
        return None
    try:
        reply = found[0](state, request, **found[1])
    except ServiceRefusedError as refusal:
        kind = f"GitHub.Actions.Runtime.WebApi.{refusal.kind}, GitHub.Actions.Runtime.WebApi"
        reply = answer({"typeName": kind, "message": refusal.message}, refusal.status)
    except RefusedError as refusal:
        reply = Answer(refusal.status, refusal.message.encode(), content_type="text/plain; charset=utf-8")
    # The service begins its texts with a byte order mark.
    reply.body = BOM + reply.body if reply.body else b""
    reply.headers["ActivityId"] = secrets.token_hex(16)
    return reply


def admin_token(state: State, path: str) -> str:
    """A token for the service, with which a runner may also register."""
    end = state.clock() + state.settings.admin_token_life
    claims = {"exp": int(end), "scp": f"Actions.ManageRunners {path}", "jti": secrets.token_hex(8)}
    parts = ({"typ": "JWT", "alg": "RS256"}, claims)
    text = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    token = ".".join([*text, secrets.token_urlsafe(32)])
    state.runner_tokens[token] = ("registration", path, end)
    return token


def _path(state: State, request: Request) -> str:
    """The path of an administrator's request."""
    token = request.credential("bearer") or ""
    try:
        path = state.check_runner_token("registration", None, token if token.count(".") == 2 else "")
    except RefusedError:
        raise RefusedError(401, "") from None
    if not state.scale_sets.are_offered:
        raise RefusedError(404, "The resource cannot be found.")
    _check_version(request)
    return path


def _check_version(request: Request) -> None:
    """In the query, or as a parameter of the accepted type."""
    accepted = request.headers.get("accept", "").replace(" ", "").split(";")
    if request.query.get("api-version") != VERSION and f"api-version={VERSION}" not in accepted:
        message = "No api-version was supplied for the request."
        raise ServiceRefusedError(400, "VssVersionNotSpecifiedException", message)


def _value(body: dict[str, Any], name: str, default: Any) -> Any:
    """A value of a request's body, of the same type as its default, which also stands in for null."""
    found = body.get(name)
    found = default if found is None else found
    if type(found) is not type(default):
        raise ServiceRefusedError(400, "ArgumentException", f"The value of {name} is not valid.")
    return found


def _name_and_group(state: State, path: str, body: dict[str, Any], name: str, group: int) -> tuple[str, int]:
    """The name and the group that a set is to have; both defaults are those of now."""
    name, group = _value(body, "name", name), _value(body, "runnerGroupId", group)
    if not name or not 0 < group <= len(state.groups(path)):
        raise ServiceRefusedError(400, "ArgumentException", "The runner scale set has no name, or no such group.")
    return name, group


def _set(state: State, request: Request, number: str) -> ScaleSet:
    return state.scale_sets.of(_path(state, request), int(number))


def _list(items: list[dict[str, Any]]) -> Answer:
    return answer({"count": len(items), "value": items})


def _document(state: State, item: ScaleSet) -> dict[str, Any]:
    groups = state.groups(item.path)
    return {
        "id": item.id,
        "name": item.name,
        "runnerGroupId": item.group,
        "runnerGroupName": groups[item.group - 1] if item.group <= len(groups) else "",
        "labels": [{"name": label, "type": "System"} for label in item.labels],
        "RunnerSetting": item.setting,
        "enabled": True,
        "createdOn": instant(item.created_at),
        "statistics": state.scale_sets.statistics(item),
    }


# Groups and sets ------------------------------------------------------------------------------------------------------


@routes.add("GET", BASE + "/_apis/runtime/runnergroups/?")
def _groups(state: State, request: Request) -> Answer:
    groups = enumerate(state.groups(_path(state, request)), 1)
    wanted = request.query.get("groupName")
    found = [(number, name) for number, name in groups if wanted is None or name.lower() == wanted.lower()]
    return _list([{"id": n, "name": name, "size": 0, "isDefaultGroup": n == 1} for n, name in found])


@routes.add("GET", SETS)
def _sets(state: State, request: Request) -> Answer:
    path = _path(state, request)
    state.scale_sets.update()
    found = [each for each in state.scale_sets.sets.values() if each.path == path]
    if "runnerGroupId" in request.query:
        found = [each for each in found if str(each.group) == request.query["runnerGroupId"]]
    if "name" in request.query:
        found = [each for each in found if each.name.lower() == request.query["name"].lower()]
    return _list([_document(state, each) for each in found])


@routes.add("POST", SETS)
def _create(state: State, request: Request) -> Answer:
    path, body = _path(state, request), request.json()
    name, group = _name_and_group(state, path, body, "", 1)
    items = _value(body, "labels", [])
    if not all(isinstance(label, dict) for label in items):
        raise ServiceRefusedError(400, "ArgumentException", "The labels are not a list of objects.")
    labels = [_value(label, "name", "") for label in items]
    made = state.scale_sets.create(path, name, group, labels, _value(body, "RunnerSetting", {}))
    return answer(_document(state, made))


@routes.add("GET", SET)
def _get(state: State, request: Request, number: str) -> Answer:
    return answer(_document(state, _set(state, request, number)))


@routes.add("PATCH", SET)
def _patch(state: State, request: Request, number: str) -> Answer:
    """Name and group change; labels are those of the creation."""
    found, body = _set(state, request, number), request.json()
    name, group = _name_and_group(state, found.path, body, found.name, found.group)
    state.scale_sets.check_free(found.path, name, group, but=found)
    found.name, found.group = name, group
    return answer(_document(state, found))


@routes.add("DELETE", SET)
def _delete(state: State, request: Request, number: str) -> Answer:
    state.scale_sets.delete(_set(state, request, number))
    return Answer(204, content_type=None)


# Sessions -------------------------------------------------------------------------------------------------------------


def _session_document(state: State, request: Request, found: ScaleSet, session: Session) -> dict[str, Any]:
    query = state.settings.queue_in_query
    place = (
        f"/scalesets/message?{urlencode({'sessionId': session.id})}" if query else f"/scalesets/{session.id}/message"
    )
    return {
        "sessionId": session.id,
        "ownerName": session.owner,
        "runnerScaleSet": {"id": found.id, "name": found.name},
        "messageQueueUrl": f"{request.root}{BASE}{place}",
        "messageQueueAccessToken": session.token,
        "statistics": state.scale_sets.statistics(found),
    }


@routes.add("POST", SET + "/sessions")
def _open_session(state: State, request: Request, number: str) -> Answer:
    found = _set(state, request, number)
    session = state.scale_sets.open(found, _value(request.json(), "ownerName", ""))
    return answer(_session_document(state, request, found, session))


def _session(state: State, request: Request, number: str, session: str) -> tuple[ScaleSet, Session]:
    found = _set(state, request, number)
    if found.session is None or found.session.id != session:
        raise ServiceRefusedError(400, "RunnerScaleSetSessionExpiredException", f"The session {session} has expired.")
    return found, found.session


@routes.add("PATCH", SET + "/sessions/(?P<session>[^/]+)")
def _renew_session(state: State, request: Request, number: str, session: str) -> Answer:
    """Another token for the queue, and today's numbers."""
    found, known = _session(state, request, number, session)
    known.token, known.seen = f"eyJ{secrets.token_urlsafe(24)}", time.monotonic()
    known.token_ends = state.clock() + state.settings.queue_token_life
    return answer(_session_document(state, request, found, known))


@routes.add("DELETE", SET + "/sessions/(?P<session>[^/]+)")
def _close_session(state: State, request: Request, number: str, session: str) -> Answer:
    found, _ = _session(state, request, number, session)
    state.scale_sets.close(found)
    return Answer(204, content_type=None)


# Messages -------------------------------------------------------------------------------------------------------------


def _queue(state: State, request: Request, session: str | None) -> tuple[ScaleSet, Session]:
    """The set and session of a request with the queue's own token."""
    found, known = state.scale_sets.session(session or request.query.get("sessionId", ""))
    _check_queue_token(state, request, known)
    return found, known


def _check_queue_token(state: State, request: Request, session: Session) -> None:
    value = request.credential("bearer") or ""
    if not secrets.compare_digest(value, session.token) or state.clock() >= session.token_ends:
        raise RefusedError(401, "")


@routes.add("GET", QUEUE)
def _message(state: State, request: Request, session: str | None) -> Answer:
    """Wait for a message; 202 says that there is none, and nothing else."""
    deadline = time.monotonic() + state.settings.hold
    found, known = _queue(state, request, session)
    _check_version(request)
    if not request.headers.get(CAPACITY, "").isdecimal():
        raise ServiceRefusedError(400, "ArgumentException", f"The header {CAPACITY} is not a number.")
    if found.capacity is None:
        found.heard_at = state.clock()
    found.capacity = int(request.headers[CAPACITY])
    known.polling += 1
    try:
        message = _await(state, request, found, known, deadline)
    finally:
        known.polling -= 1
        known.seen = time.monotonic()
    return Answer(202, content_type=None) if message is None else answer(_message_document(message))


def _await(state: State, request: Request, found: ScaleSet, known: Session, deadline: float) -> Message | None:
    while True:
        state.sweep()
        state.scale_sets.update()
        if state.scale_sets.sets.get(found.id) is not found:
            raise not_found(found.id)
        if found.session is not known:
            raise ServiceRefusedError(400, "RunnerScaleSetSessionExpiredException", "The session has expired.")
        message = state.scale_sets.next_message(found, request.number("lastMessageId", 0))
        if message or time.monotonic() >= deadline or state.closing or request.closed():
            return message
        state.lock.wait(WATCH)


def _message_document(message: Message) -> dict[str, Any]:
    return {
        "messageId": message.id,
        "messageType": "RunnerScaleSetJobMessages",
        "body": json.dumps(message.entries),
        "statistics": message.statistics,
    }


@routes.add("DELETE", QUEUE + r"/(?P<message>\d+)")
def _delete_message(state: State, request: Request, session: str | None, message: str) -> Answer:
    found, _ = _queue(state, request, session)
    found.messages = [each for each in found.messages if each.id != int(message)]
    return Answer(204, content_type=None)


@routes.add("POST", SET + "/acquirejobs")
def _acquire(state: State, request: Request, number: str) -> Answer:
    """Take jobs, at an Enterprise Server only; the token is the queue's."""
    found = state.scale_sets.sets.get(int(number))
    if found is None or not state.scale_sets.acquires:
        raise not_found(number)
    if found.session is None:
        raise RefusedError(401, "")
    _check_queue_token(state, request, found.session)
    _check_version(request)
    try:
        numbers = [int(each) for each in json.loads(request.body)]
    except (TypeError, ValueError):
        raise ServiceRefusedError(400, "ArgumentException", "The body is not a list of numbers.") from None
    had = state.scale_sets.acquire(found, numbers)
    return answer({"count": len(had), "value": had})


@routes.add("GET", SET + "/acquirablejobs")
def _acquirable(state: State, request: Request, number: str) -> Answer:
    """What is offered, at an Enterprise Server only; 204 where that is nothing."""
    found = _set(state, request, number)
    if not state.scale_sets.acquires:
        raise not_found(number)
    numbers = state.scale_sets.acquirable(found)
    return _list([{"runnerRequestId": each} for each in numbers]) if numbers else Answer(204, content_type=None)


# Runners --------------------------------------------------------------------------------------------------------------


@routes.add("POST", SET + "/generatejitconfig")
def _jit_config(state: State, request: Request, number: str) -> Answer:
    found, body = _set(state, request, number), request.json()
    name, folder = _value(body, "name", ""), _value(body, "workFolder", "_work")
    if not 0 < len(name) <= jit.MAX_NAME:
        raise ServiceRefusedError(400, "ArgumentException", f"A name has 1 to {jit.MAX_NAME} characters.")
    if state.runner_named(found.path, name) is not None:
        raise ServiceRefusedError(409, "AgentExistsException", f"The agent {name} already exists.")
    group = state.groups(found.path)[found.group - 1]
    runner = state.add_runner(found.path, name, [], group=group, secret=jit.secret(), scale_set=found.id)
    encoded = jit.encode(runner, found.group, folder, f"{request.root}{BASE}")
    return answer({"runner": _agent(runner), "encodedJITConfig": encoded})


def _agent(runner: Runner) -> dict[str, Any]:
    return {"id": runner.id, "name": runner.name, "runnerScaleSetId": runner.scale_set or 0}


@routes.add("GET", AGENTS)
def _agents(state: State, request: Request) -> Answer:
    path, name = _path(state, request), request.query.get("agentName")
    return _list([_agent(runner) for runner in state.runners_of(path, name)])


@routes.add("GET", AGENTS + r"/(?P<number>\d+)")
def _get_agent(state: State, request: Request, number: str) -> Answer:
    path = _path(state, request)
    known = {runner.id: runner for runner in state.runners_of(path)}.get(int(number))
    if known is None:
        raise ServiceRefusedError(404, "AgentNotFoundException", f"No agent found with identifier {number}.")
    return answer(_agent(known))


@routes.add("DELETE", AGENTS + r"/(?P<number>\d+)")
def _delete_agent(state: State, request: Request, number: str) -> Answer:
    """Deregister; one that is not there counts as done."""
    path = _path(state, request)
    known = {runner.id: runner for runner in state.runners_of(path)}.get(int(number))
    if known is not None and known.busy:
        raise ServiceRefusedError(400, "JobStillRunningException", f"The job of {known.name} is still running.")
    if known is not None:
        state.drop_runner(known)
    return Answer(204, content_type=None)
