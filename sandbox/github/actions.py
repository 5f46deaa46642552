"""The service with which runners register, wait for jobs and report them.

GitHub's own protocol for this is not published; this one is between our server and our runner agent alone.
Only the first request of a registration has GitHub's real address and form.
"""

import secrets
import time
from typing import Any
from urllib.parse import urlparse

from sandbox.github import api, broker
from sandbox.github.errors import RefusedError
from sandbox.github.forms import version_parts
from sandbox.github.http import Answer, Request, Routes, answer
from sandbox.github.state import Job, Runner, State

MAX_NAME = 64
WATCH = 0.2  # how often a waiting request looks whether its client is still there
RESULTS = {"Succeeded": "success", "Failed": "failure", "Canceled": "cancelled"}

routes = Routes()


def respond(state: State, request: Request) -> Answer:
    """Answer a request of the runner agent, or of the client of a scale set."""
    reply = broker.respond(state, request)
    if reply is not None:
        return reply
    found = routes.find(request.method, request.path)
    try:
        if found is None:
            raise RefusedError(404, "Not Found")
        return found[0](state, request, **found[1])
    except RefusedError as refusal:
        reply = api.refuse(refusal)
    reply.headers["X-GitHub-Request-Id"] = secrets.token_hex(8).upper()
    return reply


@routes.add("POST", api.PREFIX + "/actions/runner-registration")
def _registration(state: State, request: Request) -> Answer:
    """The real address: exchange the token that the user has for access to the service."""
    body = request.json()
    path = urlparse(str(body.get("url", ""))).path.strip("/")
    kind = {"register": "registration", "remove": "remove"}.get(str(body.get("runner_event")), "")
    place = state.find_path(path)
    token = request.credential("remoteauth") or ""
    state.check_runner_token(kind, place or path, token)
    if kind == "registration":
        token = broker.admin_token(state, place or path)
    return answer({"url": f"{request.root}{broker.BASE}", "token_schema": "OAuthAccessToken", "token": token})


@routes.add("POST", "/_actions/runners")
def _add_runner(state: State, request: Request) -> Answer:
    path = state.check_runner_token("registration", None, request.credential("bearer") or "")
    body = request.json()
    name, group = str(body.get("name", "")), str(body.get("group") or "Default")
    if not name or len(name) > MAX_NAME:
        raise RefusedError(400, f"Runner name must have 1 to {MAX_NAME} characters.", code="bad_name")
    known = {known.lower(): known for known in state.groups(path)}
    if group.lower() not in known:
        raise RefusedError(404, f'Could not find any self-hosted runner group named "{group}".', code="no_group")
    existing = state.runner_named(path, name)
    if existing and not body.get("replace"):
        raise RefusedError(409, f"A runner exists with the same name {name}.", code="exists")
    version = str(body.get("version", ""))
    if version_parts(version) < version_parts(state.runner_binary.minimum_registration):
        message = f"Runner version v{version} is deprecated and cannot be registered."
        raise RefusedError(403, message, code="version_deprecated")
    standard = [] if body.get("no_default_labels") else ["self-hosted", "Linux", str(body.get("architecture", "X64"))]
    labels = standard + [str(label) for label in body.get("labels", [])]
    more = {"group": known[group.lower()], "os": "Linux", "ephemeral": bool(body.get("ephemeral"))}
    runner = state.add_runner(path, name, labels, **more, version=version)
    if existing:  # it keeps its number, and loses its session and job
        if existing.job is not None:
            state.complete_job(state.jobs[existing.job], "failure", linger=False)
        state.drop_runner(existing)
        state.runners.pop(runner.id)
        runner.id = existing.id
        state.runners[runner.id] = runner
    return answer({"id": runner.id, "name": name, "group": runner.group, "secret": runner.secret}, 201)


@routes.add("DELETE", r"/_actions/runners/(?P<number>\d+)")
def _remove_runner(state: State, request: Request, number: str) -> Answer:
    path = state.check_runner_token("remove", None, request.credential("bearer") or "")
    state.delete_runner(state.runner(path, int(number)))
    return Answer(204, content_type=None)


def _authenticated(state: State, request: Request, number: str) -> Runner:
    """The runner that asks; one that was deregistered has no credentials any more."""
    runner = state.runners.get(int(number)) or state.deregistered.get(int(number))
    secret = request.credential("bearer") or ""
    gone = runner is None or runner.lost or runner.removed_at is not None
    if runner is None or gone or not secrets.compare_digest(runner.secret, secret):
        raise RefusedError(401, "The runner registration has been deleted from the server.", code="deleted")
    return runner


def _check_version(state: State, version: str) -> None:
    minimum = state.runner_binary.minimum_version
    if minimum and version_parts(version) < version_parts(minimum):
        message = f"Runner version v{version} is deprecated and cannot receive messages."
        raise RefusedError(403, message, code="version_deprecated")


@routes.add("POST", r"/_actions/runners/(?P<number>\d+)/sessions")
def _open_session(state: State, request: Request, number: str) -> Answer:
    runner = _authenticated(state, request, number)
    version = str(request.json().get("version", ""))
    _check_version(state, version)
    if runner.session is not None and time.monotonic() - runner.seen < state.settings.grace:
        raise RefusedError(409, "A session for this runner already exists.", code="session_conflict")
    runner.session, runner.version, runner.os = secrets.token_hex(16), version, "Linux"
    runner.seen = -state.settings.grace  # online with the first question for a job, not before
    return answer({"session": runner.session}, 201)


@routes.add("DELETE", r"/_actions/runners/(?P<number>\d+)/sessions/(?P<session>\w+)")
def _close_session(state: State, request: Request, number: str, session: str) -> Answer:
    runner = _authenticated(state, request, number)
    if runner.session == session:
        runner.session = None
    return Answer(204, content_type=None)


@routes.add("GET", r"/_actions/runners/(?P<number>\d+)/messages/(?P<session>\w+)")
def _message(state: State, request: Request, number: str, session: str) -> Answer:
    """Wait for a job, for the cancellation of the one that runs, or for its end; 202 says: ask again."""
    deadline = time.monotonic() + state.settings.poll
    runner = _authenticated(state, request, number)
    had_job = runner.job
    _check_session(runner, session)
    runner.seen = time.monotonic()
    while time.monotonic() < deadline and not state.closing and not request.closed():
        runner = _authenticated(state, request, number)
        _check_session(runner, session)
        _check_version(state, runner.version)
        if runner.id in state.deregistered:
            pass  # it waits for ever for jobs that never come
        elif runner.job is None and had_job is None:
            found = _for_idle(state, request, runner)
            if found is not None:
                return answer(found)
        elif runner.job != had_job:
            break
        elif state.jobs[runner.job].cancel and not state.jobs[runner.job].told_cancel:  # type: ignore[index]
            state.jobs[runner.job].told_cancel = True  # type: ignore[index]
            return answer({"type": "cancel", "job": runner.job})
        state.lock.wait(WATCH)
    return Answer(202, content_type=None)


def _for_idle(state: State, request: Request, runner: Runner) -> dict[str, Any] | None:
    """What an idle runner is told: to update itself, or to run a job."""
    update = state.runner_binary.self_update
    if update and runner.told_update != update and version_parts(runner.version) < version_parts(update):
        runner.told_update = update
        return {"type": "update", "version": update}
    job = state.take_job(runner)
    return None if job is None else {"type": "job", **_job_message(state, request, job)}


def _check_session(runner: Runner, session: str) -> None:
    if runner.session != session:
        raise RefusedError(410, "The session has ended.", code="session_ended")


def _job_message(state: State, request: Request, job: Job) -> dict[str, Any]:
    """What a worker has to know about its job."""
    owner = job.repository.partition("/")[0]
    event = {"repository": {"full_name": job.repository, "owner": {"login": owner}}, "sender": {"login": owner}}
    variables = _variables(request, job, owner)
    if job.event.startswith("pull_request"):
        head = {"ref": job.head_branch, "sha": job.head_sha, "repo": {"full_name": job.repository}}
        base = {"ref": "main", "sha": "0" * 40, "repo": {"full_name": job.repository}}
        event.update(number=1, action="opened", pull_request={"number": 1, "head": head, "base": base})
        if job.event != "pull_request_target":  # which runs the workflow of the base branch
            variables.update(GITHUB_REF="refs/pull/1/merge", GITHUB_REF_NAME="1/merge")
        if job.event in ("pull_request", "pull_request_target"):
            variables.update(GITHUB_HEAD_REF=job.head_branch, GITHUB_BASE_REF="main")
    elif job.event == "issue_comment":
        event.update(action="created", issue={"number": 1, "pull_request": {}}, comment={"body": "/test"})
    else:
        event["ref"] = f"refs/heads/{job.head_branch}"
    steps = job.steps or [{"run": job.command}]
    description = {"id": job.id, "name": job.name, "steps": steps, "secret": job.secret}
    return {"job": description, "variables": variables, "event": {**event, **job.payload}}


def _variables(request: Request, job: Job, owner: str) -> dict[str, str]:
    """The environment of a job's steps, as for a push to its branch."""
    variables = {
        "GITHUB_REPOSITORY": job.repository,
        "GITHUB_REPOSITORY_OWNER": owner,
        "GITHUB_RUN_ID": str(job.run_id),
        "GITHUB_RUN_NUMBER": str(job.run_id % 1_000_000),
        "GITHUB_RUN_ATTEMPT": str(job.run_attempt),
        "GITHUB_JOB": job.name,
        "GITHUB_WORKFLOW": job.workflow,
        "GITHUB_EVENT_NAME": job.event,
        "GITHUB_SHA": job.head_sha,
        "GITHUB_ACTOR": owner,
        "GITHUB_SERVER_URL": request.root,
        "GITHUB_API_URL": request.api,
        "GITHUB_GRAPHQL_URL": f"{request.root}/api/graphql",
        "GITHUB_REF": f"refs/heads/{job.head_branch}",
        "GITHUB_REF_NAME": job.head_branch,
        "GITHUB_REF_TYPE": "branch",
        "GITHUB_HEAD_REF": "",
        "GITHUB_BASE_REF": "",
    }
    if job.debug:
        variables["RUNNER_DEBUG"] = "1"
    return variables


def _running_job(state: State, request: Request, number: str) -> Job:
    job = state.jobs.get(int(number))
    secret = request.credential("bearer") or ""
    if job is None or job.status != "in_progress" or not secrets.compare_digest(job.secret, secret):
        raise RefusedError(404, "Not Found", code="no_job")
    return job


@routes.add("POST", r"/_actions/jobs/(?P<number>\d+)/acquire")
def _acquire(state: State, request: Request, number: str) -> Answer:
    """Confirm a job that was offered; one that is gone takes the registration with it, though the runner polls on."""
    job = _running_job(state, request, number)
    if job.acquire_status is not None:
        runner = state.runners.pop(job.runner_id or 0)
        state.deregistered[runner.id] = runner
        runner.job = None
        state.complete_job(job, "cancelled")
        raise RefusedError(job.acquire_status, "The job cannot be acquired.", code="no_job")
    state.runners[job.runner_id or 0].seen = time.monotonic()
    return Answer(204, content_type=None)


@routes.add("POST", r"/_actions/jobs/(?P<number>\d+)/renew")
def _renew(state: State, request: Request, number: str) -> Answer:
    """A runner that asks for no messages any more, because it shuts down, says that it still has its job."""
    job = _running_job(state, request, number)
    state.runners[job.runner_id or 0].seen = time.monotonic()
    return Answer(204, content_type=None)


@routes.add("POST", r"/_actions/jobs/(?P<number>\d+)/actions")
def _resolve(state: State, request: Request, number: str) -> Answer:
    """What the refs of actions point to at this moment, and where their archives are."""
    _running_job(state, request, number)
    found = {}
    for action in request.json()["actions"]:
        repository, _, ref = str(action).partition("@")
        name = state.actions.name(repository)
        if name is None:
            raise RefusedError(422, f"Unable to resolve action {action}, repository not found", code="no_action")
        try:
            commit = state.actions.commit(name, ref)
        except RefusedError:
            message = f"Unable to resolve action `{action}`, unable to find version `{ref}`"
            raise RefusedError(422, message, code="no_action") from None
        found[action] = {"name": name, "commit": commit, "url": f"{request.api}/repos/{name}/tarball/{commit}"}
    return answer({"actions": found})


@routes.add("POST", r"/_actions/jobs/(?P<number>\d+)/log")
def _append_log(state: State, request: Request, number: str) -> Answer:
    _running_job(state, request, number).log.extend(str(line) for line in request.json().get("lines", []))
    state.lock.notify_all()
    return Answer(204, content_type=None)


@routes.add("POST", r"/_actions/jobs/(?P<number>\d+)/complete")
def _complete(state: State, request: Request, number: str) -> Answer:
    job = _running_job(state, request, number)
    result = RESULTS.get(str(request.json().get("result")))
    if result is None:
        raise RefusedError(422, "Validation Failed", errors=[{"resource": "Job", "field": "result", "code": "invalid"}])
    state.complete_job(job, result)
    return Answer(204, content_type=None)
