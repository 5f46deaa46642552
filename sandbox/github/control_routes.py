"""The control interface of the stand-in for GitHub: how a test arranges the world and looks behind it.

It asks for no credentials: whoever reaches the server may use it. Serve it only where the test and its machines are.
"""

import re
import time
from collections.abc import Callable
from typing import Any

from sandbox.github import documents
from sandbox.github.apps import App, Installation
from sandbox.github.errors import RefusedError
from sandbox.github.faults import Faults
from sandbox.github.forms import instant
from sandbox.github.http import Answer, Request, Routes, answer
from sandbox.github.scale_sets import ScaleSet
from sandbox.github.state import HOUR, Job, Runner, RunnerBinary, State, Token

PREFIX = "/_control/"
WATCH = 0.2
BINARY_FIELDS = set(RunnerBinary.__dataclass_fields__) - {"offered"}

routes = Routes()


class Control:
    """What the control interface works on: the state, the faults and the record of requests."""

    def __init__(self, state: State, faults: Faults) -> None:
        self.state, self.faults = state, faults
        self.requests: list[dict[str, Any]] = []
        self.count = 0

    def respond(self, request: Request) -> Answer:
        found = routes.find(request.method, request.path)
        if found is None:
            return answer({"message": "the control interface has no such call"}, 404)
        try:
            return found[0](self, request, **found[1])
        except RefusedError as refusal:
            return answer({"message": refusal.message}, refusal.status)
        except (KeyError, TypeError, ValueError) as error:
            return answer({"message": f"{type(error).__name__}: {error}"}, 422)

    def wait(self, request: Request, seconds: float, condition: Callable[[], bool]) -> None:
        """Wait under the state's lock until the condition holds, the time is up or the client has gone."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline and not self.state.closing and not request.closed():
            self.state.lock.wait(WATCH)
            self.state.sweep()


def job_document(job: Job) -> dict[str, Any]:
    """A job with its log, as tests see it; `queue_time` in seconds, None for a job that no runner began."""
    names = ("id", "run_id", "repository", "name", "status", "conclusion", "labels", "run_attempt")
    document = {name: getattr(job, name) for name in (*names, "runner_id", "runner_name", "log")}
    times = ("created_at", "started_at", "completed_at")
    document["queue_time"] = None if job.started_at is None else max(0.0, job.started_at - job.created_at)
    return {**document, **{name: instant(getattr(job, name)) for name in times}}


def runner_document(state: State, runner: Runner) -> dict[str, Any]:
    """A runner with what the API hides."""
    more = {"path": runner.path, "version": runner.version, "session": runner.session is not None, "job": runner.job}
    return {**documents.runner(state, runner), **more}


@routes.add("GET", "/_control/requests")
def _requests(control: Control, request: Request) -> Answer:
    since = request.number("since", 0)
    return answer([entry for entry in control.requests if entry["n"] > since])


@routes.add("DELETE", "/_control/requests")
def _clear_requests(control: Control, request: Request) -> Answer:
    control.requests.clear()
    return Answer(204, content_type=None)


@routes.add("POST", "/_control/faults")
def _add_fault(control: Control, request: Request) -> Answer:
    return answer({"id": control.faults.add(request.json()).id}, 201)


@routes.add("GET", "/_control/faults")
def _faults(control: Control, request: Request) -> Answer:
    return answer(control.faults.list())


@routes.add("DELETE", r"/_control/faults(?:/(?P<number>\d+))?")
def _remove_fault(control: Control, request: Request, number: str | None) -> Answer:
    if not control.faults.remove(int(number) if number else None):
        raise RefusedError(404, f"there is no fault {number}")
    return Answer(204, content_type=None)


@routes.add("POST", "/_control/jobs")
def _add_jobs(control: Control, request: Request) -> Answer:
    """Queue a job, or `count` jobs of one run; `state` makes one that is already under way or over."""
    fields = request.json()
    count, state = int(fields.pop("count", 1)), fields.pop("state", {})
    jobs = []
    for _ in range(count):
        job = control.state.add_job(**fields)
        fields["run_id"] = job.run_id
        for name, value in state.items():
            if not hasattr(job, name):
                raise ValueError(f"a job has no {name}")
            # JSON has no sets.
            setattr(job, name, set(value) if isinstance(getattr(job, name), set) else value)
        jobs.append({"id": job.id, "run_id": job.run_id})
    return answer(jobs[0] if count == 1 else jobs, 201)


@routes.add("GET", "/_control/jobs")
def _jobs(control: Control, request: Request) -> Answer:
    control.state.sweep()
    return answer([job_document(job) for job in control.state.jobs.values()])


def _job(control: Control, number: str) -> Job:
    job = control.state.jobs.get(int(number))
    if job is None:
        raise RefusedError(404, f"there is no job {number}")
    return job


@routes.add("GET", r"/_control/jobs/(?P<number>\d+)")
def _one_job(control: Control, request: Request, number: str) -> Answer:
    """Show a job; with `wait`, only once its log has more than `log_from` lines or its status changes."""
    control.state.sweep()
    job = _job(control, number)
    start, known = job.status, request.number("log_from", len(job.log))
    if "wait" in request.query:
        wait = float(request.query["wait"])
        over = job.status == "completed"
        control.wait(request, wait, lambda: over or len(job.log) > known or job.status != start)
    return answer(job_document(job))


@routes.add("POST", r"/_control/jobs/(?P<number>\d+)/cancel")
def _cancel(control: Control, request: Request, number: str) -> Answer:
    control.state.cancel_job(_job(control, number))
    return Answer(202, b"{}")


@routes.add("GET", "/_control/runners")
def _runners(control: Control, request: Request) -> Answer:
    control.state.sweep()
    return answer([runner_document(control.state, runner) for runner in control.state.runners.values()])


@routes.add("POST", "/_control/runners")
def _add_runners(control: Control, request: Request) -> Answer:
    """Add a runner that nobody runs, or `count` of them whose names end in a number."""
    fields, state = request.json(), control.state
    path = state.find_path(fields["path"])
    if path is None:
        raise RefusedError(422, f"there is no path {fields['path']}")
    count, labels = int(fields.get("count", 1)), ["self-hosted", "Linux", "X64", *fields.get("labels", [])]
    more = {"fixed_status": fields.get("status", "offline"), "fixed_busy": bool(fields.get("busy", False))}
    names = [fields["name"]] if count == 1 else [f"{fields['name']}{number}" for number in range(count)]
    added = [state.add_runner(path, name, labels, os="Linux", **more) for name in names]
    found = [runner_document(state, runner) for runner in added]
    return answer(found[0] if count == 1 else {"ids": [runner["id"] for runner in found]}, 201)


@routes.add("PATCH", r"/_control/runners/(?P<number>\d+)")
def _change_runner(control: Control, request: Request, number: str) -> Answer:
    """Fix how GitHub lists a runner; null lets the list follow the runner again."""
    runner, fields = control.state.runner(None, int(number)), request.json()
    runner.fixed_status = fields.get("status", runner.fixed_status)
    runner.fixed_busy = fields.get("busy", runner.fixed_busy)
    return answer(runner_document(control.state, runner))


@routes.add("DELETE", r"/_control/runners/(?P<number>\d+)")
def _remove_runner(control: Control, request: Request, number: str) -> Answer:
    control.state.drop_runner(control.state.runner(None, int(number)))
    return Answer(204, content_type=None)


@routes.add("POST", "/_control/tokens")
def _add_token(control: Control, request: Request) -> Answer:
    """Make a token that manages its paths, or with `admin` false merely sees them; replaces one of that text."""
    fields = request.json()
    paths, sees = list(fields.get("paths", ["*"])), list(fields.get("sees", []))
    manages = paths if fields.get("admin", True) else []
    token = Token(str(fields["token"]), manages, sees + paths, list(fields.get("sso", [])))
    control.state.tokens[token.token] = token
    return answer({"paths": paths}, 201)


@routes.add("DELETE", r"/_control/tokens/(?P<token>[^/]+)")
def _remove_token(control: Control, request: Request, token: str) -> Answer:
    if control.state.tokens.pop(token, None) is None:
        raise RefusedError(404, "there is no such token")
    return Answer(204, content_type=None)


@routes.add("POST", "/_control/rate-limit")
def _rate_limit(control: Control, request: Request) -> Answer:
    """Leave a token or installation so many requests for `reset_in` s; `retry_after` starts the secondary limit.

    With `path`, leave the repository or organisation so many registrations.
    """
    fields, state = request.json(), control.state
    key = f"installation {fields['installation']}" if "installation" in fields else f"token {fields['token']}"
    budget = state.registrations(fields["path"]) if "path" in fields else state.budget(key, state.settings.rate_limit)
    if "remaining" in fields:
        budget.used = budget.limit - int(fields["remaining"])
    if "reset_in" in fields:
        budget.reset = state.clock() + min(float(fields["reset_in"]), HOUR)
    if "retry_after" in fields:
        budget.refuse_until = state.clock() + float(fields["retry_after"])
        budget.refuse_status = int(fields.get("status", 403))
        budget.refuse_header = bool(fields.get("header", True))
    return answer({"remaining": budget.limit - budget.used, "reset": int(budget.reset)})


def _app(control: Control, number: str) -> App:
    app = control.state.apps.apps.get(int(number))
    if app is None:
        raise RefusedError(404, f"there is no App {number}")
    return app


@routes.add("POST", "/_control/apps")
def _add_app(control: Control, request: Request) -> Answer:
    """Make a GitHub App with a first key; only this answer has the private key."""
    fields, apps = request.json(), control.state.apps
    app = apps.add_app(str(fields["slug"]), str(fields["owner"]), fields["permissions"])
    key, pem = apps.add_key(app, fields.get("private_key"))
    return answer({"id": app.id, "client_id": app.client_id, "key": key, "private_key": pem}, 201)


@routes.add("POST", r"/_control/apps/(?P<number>\d+)/keys")
def _add_app_key(control: Control, request: Request, number: str) -> Answer:
    key, pem = control.state.apps.add_key(_app(control, number), request.json().get("private_key"))
    return answer({"key": key, "private_key": pem}, 201)


@routes.add("DELETE", r"/_control/apps/(?P<number>\d+)/keys/(?P<key>\d+)")
def _remove_app_key(control: Control, request: Request, number: str, key: str) -> Answer:
    del _app(control, number).keys[int(key)]
    return Answer(204, content_type=None)


def _known(state: State, repositories: list[str] | None) -> list[str] | None:
    """Repositories in their own spelling; None stays None, which is all of them."""
    if repositories is None:
        return None
    known = [state.find_path(each) for each in repositories]
    if None in known:
        raise RefusedError(422, f"one of {repositories} does not exist")
    return [each for each in known if each is not None]


@routes.add("POST", r"/_control/apps/(?P<number>\d+)/installations")
def _install(control: Control, request: Request, number: str) -> Answer:
    """Install an App on an organisation or a user: on all repositories, or those that are named in full."""
    fields, state = request.json(), control.state
    account = state.find_path(fields["account"]) or fields["account"]
    kind = "Organization" if account in state.organisations else "User"
    places = _known(state, fields.get("repositories"))
    made = state.apps.install(_app(control, number), account, kind, fields.get("permissions"), places)
    return answer({"id": made.id}, 201)


def _installation(control: Control, number: str) -> Installation:
    installation = control.state.apps.installations.get(int(number))
    if installation is None:
        raise RefusedError(404, f"there is no installation {number}")
    return installation


@routes.add("PATCH", r"/_control/installations/(?P<number>\d+)")
def _change_installation(control: Control, request: Request, number: str) -> Answer:
    """Suspend an installation or end that, change its permissions, or its repositories (null for all)."""
    installation, fields, state = _installation(control, number), request.json(), control.state
    if "suspended" in fields:
        installation.suspended_at = state.clock() if fields["suspended"] else None
    if "permissions" in fields:
        installation.permissions = state.apps.checked(fields["permissions"])
    if "repositories" in fields:
        installation.repositories = _known(state, fields["repositories"])
    return answer(documents.installation(installation, request.root, request.api))


@routes.add("DELETE", r"/_control/installations/(?P<number>\d+)")
def _uninstall(control: Control, request: Request, number: str) -> Answer:
    control.state.apps.uninstall(_installation(control, number))
    return Answer(204, content_type=None)


@routes.add("GET", "/_control/installation-tokens")
def _installation_tokens(control: Control, request: Request) -> Answer:
    """What the valid tokens of installations may do; the tokens themselves stay hidden."""
    apps = control.state.apps
    return answer(
        [
            {"installation": each.installation.id, "permissions": each.permissions, "repositories": each.repositories}
            for text, each in apps.tokens.items()
            if apps.token(text)
        ]
    )


@routes.add("DELETE", "/_control/installation-tokens")
def _revoke_installation_tokens(control: Control, request: Request) -> Answer:
    control.state.apps.tokens.clear()
    return Answer(204, content_type=None)


@routes.add("POST", "/_control/registration-tokens/expire")
def _expire(control: Control, request: Request) -> Answer:
    tokens = control.state.runner_tokens
    for token, (kind, path, _) in list(tokens.items()):
        tokens[token] = (kind, path, 0.0)
    return answer({"expired": len(tokens)})


@routes.add("POST", "/_control/repositories")
def _add_repository(control: Control, request: Request) -> Answer:
    control.state.add_repository(request.json()["repository"])
    return Answer(201, b"{}")


@routes.add("POST", "/_control/actions")
def _add_action(control: Control, request: Request) -> Answer:
    repository, ref = request.json()["action"].split("@")
    return answer({"commit": control.state.actions.add(repository, ref)}, 201)


@routes.add("POST", "/_control/repositories/rename")
def _rename_repository(control: Control, request: Request) -> Answer:
    fields = request.json()
    control.state.rename_repository(fields["old"], fields["new"])
    return Answer(201, b"{}")


@routes.add("POST", "/_control/organisations")
def _add_organisation(control: Control, request: Request) -> Answer:
    fields = request.json()
    control.state.add_organisation(fields["organisation"], fields.get("runner_groups"))
    return Answer(201, b"{}")


@routes.add("PATCH", "/_control/application")
def _runner_binary(control: Control, request: Request) -> Answer:
    """Offer another version of the runner binary, a wrong checksum, or refuse old versions."""
    fields, binary = request.json(), control.state.runner_binary
    unknown = set(fields) - BINARY_FIELDS
    if unknown:
        raise ValueError(f"the runner binary has no {', '.join(sorted(unknown))}")
    for name in ("version", "minimum_version", "minimum_registration", "self_update"):
        if fields.get(name) is not None and not re.fullmatch(r"\d+\.\d+\.\d+", fields[name]):
            raise ValueError(f"{name}: {fields[name]} is not like 2.336.0")
    for name, value in fields.items():
        setattr(binary, name, value)
    binary.offered.add(binary.version)
    control.state.lock.notify_all()
    return answer({name: getattr(binary, name) for name in sorted(BINARY_FIELDS)})


@routes.add("PATCH", "/_control/settings")
def _settings(control: Control, request: Request) -> Answer:
    """Change times and limits, such as how long a lost runner stays listed."""
    fields, settings = request.json(), control.state.settings
    for name, value in fields.items():
        if not hasattr(settings, name):
            raise ValueError(f"there is no setting {name}")
        setattr(settings, name, type(getattr(settings, name))(value))
    control.state.sweep()
    control.state.lock.notify_all()
    return answer(vars(settings))


@routes.add("GET", "/_control/scale-sets")
def _scale_sets(control: Control, request: Request) -> Answer:
    """The runner scale sets of all paths, with what only the service knows."""
    sets = control.state.scale_sets
    sets.update()
    return answer([_scale_set(control.state, each) for each in sets.sets.values()])


def _scale_set(state: State, item: ScaleSet) -> dict[str, Any]:
    document = {name: getattr(item, name) for name in ("id", "path", "name", "group", "labels", "capacity")}
    session = item.session
    document.update(owner=None if session is None else session.owner, messages=[each.id for each in item.messages])
    return {**document, "statistics": state.scale_sets.statistics(item)}


@routes.add("DELETE", r"/_control/scale-sets/(?P<number>\d+)")
def _delete_scale_set(control: Control, request: Request, number: str) -> Answer:
    """Remove a set on GitHub's side."""
    found = control.state.scale_sets.sets.get(int(number))
    if found is None:
        raise RefusedError(404, f"there is no scale set {number}")
    control.state.scale_sets.delete(found)
    return Answer(204, content_type=None)


@routes.add("POST", "/_control/scale-sets/expire")
def _expire_scale_sets(control: Control, request: Request) -> Answer:
    """Let what the body names be over: `sessions`, `queue` tokens or `admin` tokens."""
    state, what = control.state, set(request.json().get("what", []))
    for each in state.scale_sets.sets.values():
        if "sessions" in what:
            state.scale_sets.close(each)
        if "queue" in what and each.session is not None:
            each.session.token_ends = 0.0
    if "admin" in what:
        state.runner_tokens = {token: value for token, value in state.runner_tokens.items() if token.count(".") != 2}
    state.lock.notify_all()
    return Answer(204, content_type=None)
