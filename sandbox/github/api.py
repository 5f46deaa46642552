"""GitHub's REST API: who may ask, how often, and the answers."""

import hashlib
import re
import secrets
from urllib.parse import urlencode

from sandbox.github import app_routes, content_routes, documents, jit
from sandbox.github.apps import SUSPENDED, InstallationToken
from sandbox.github.errors import RefusedError
from sandbox.github.forms import local_instant, version_parts
from sandbox.github.http import Answer, Handler, Request, Routes, answer, paginate
from sandbox.github.state import (
    REGISTRATION_LIMIT,
    REGISTRATION_RESOURCE,
    UNAUTHENTICATED_LIMIT,
    Budget,
    Job,
    State,
    Token,
)

PREFIX = "/api/v3"
DOCUMENTATION = "https://docs.github.com/rest"
API_VERSIONS = ("2022-11-28", "2026-03-10")
LIMITS = "https://docs.github.com/rest/overview/rate-limits-for-the-rest-api"
SECONDARY = "https://docs.github.com/free-pro-team@latest/rest/overview/rate-limits-for-the-rest-api"
PAGES = {"rate-limiting": LIMITS, "secondary-rate-limits": f"{SECONDARY}#about-secondary-rate-limits"}
# What counts as one. At GitHub a token alone may not.
REGISTRATIONS = ("/registration-token", "/generate-jitconfig")

routes = Routes()
REPOSITORY = r"/repos/(?P<path>[^/]+/[^/]+)"
PATH = r"/(?:repos/(?P<repository>[^/]+/[^/]+)|orgs/(?P<organisation>[^/]+))"


def respond(state: State, request: Request) -> Answer:
    """Answer a request of the API; every refusal has GitHub's form, and every answer its headers."""
    headers = {
        "X-GitHub-Request-Id": ":".join(secrets.token_hex(n).upper() for n in (2, 3, 4, 4, 4)),
        "X-GitHub-Media-Type": "github.v3; format=json",
        "X-Content-Type-Options": "nosniff",
    }
    if state.settings.enterprise_version:
        headers["X-GitHub-Enterprise-Version"] = state.settings.enterprise_version
    budget: Budget | None = None
    try:
        if not request.headers.get("user-agent"):
            raise RefusedError(403, "Request forbidden by administrative rules. Please send a User-Agent header.")
        wanted = request.headers.get("x-github-api-version", API_VERSIONS[0])
        headers["X-GitHub-Api-Version-Selected"] = wanted
        if wanted not in API_VERSIONS:
            raise RefusedError(400, f'"{wanted}" is not a supported API version.')
        token, who, budget = _caller(state, request)
        path = _by_name(state, request.path[len(PREFIX) :])
        if token is not None and request.method == "POST" and path.endswith(REGISTRATIONS):
            budget = _registrations_of(state, token)
        if path.rstrip("/") != "/rate_limit":  # asking for the limit costs nothing
            state.spend(budget, 1 if request.method in ("GET", "HEAD") else 5, who)
        reply = _dispatch(state, request, path, token, budget)
    except RefusedError as refusal:
        reply = refuse(refusal)
    if budget is not None:
        headers.update(_limit_headers(budget))
    reply.headers = {**headers, **reply.headers}
    return reply


def refuse(refusal: RefusedError) -> Answer:
    """The body that GitHub sends with an error."""
    more = dict(refusal.more)
    page = PAGES.get(str(more.pop("documentation", "")), DOCUMENTATION)
    body = {"message": refusal.message, **more, "documentation_url": page, "status": str(refusal.status)}
    return answer(body, refusal.status, refusal.headers)


def _caller(state: State, request: Request) -> tuple[Token | InstallationToken | None, str, Budget]:
    """The token of the request, None for a bad one or a JWT; whose requests are counted, and the budget for them."""
    value = request.credential("bearer", "token") or ""
    token = find_token(state, value)
    if token is not None:
        return token, token.who, state.budget(token.budget, state.settings.rate_limit)
    app = state.apps.claimed(value)
    if app is not None:
        return None, f"app ID {app.id}", state.budget(f"app {app.id}", state.settings.rate_limit)
    return None, request.address, state.budget(f"address {request.address}", UNAUTHENTICATED_LIMIT)


def find_token(state: State, text: str) -> Token | InstallationToken | None:
    """A personal access token, or the token of an App's installation, that is valid now."""
    return state.tokens.get(text) or state.apps.token(text)


def permission(method: str, path: str) -> str:
    """The permission that GitHub requires for a request, in the form of its header X-Accepted-GitHub-Permissions."""
    level = "read" if method in ("GET", "HEAD") else "write"
    if "/actions/runner" in path:
        return f"{'administration' if path.startswith('/repos/') else 'organization_self_hosted_runners'}={level}"
    return f"actions={level}" if "/actions/" in path else "metadata=read"


def _dispatch(
    state: State, request: Request, path: str, token: Token | InstallationToken | None, budget: Budget
) -> Answer:
    found = app_routes.routes.find(request.method, path)
    if found is not None:
        return _as_app(state, request, *found)
    if token is None and request.headers.get("authorization"):
        raise RefusedError(401, "Bad credentials")
    if isinstance(token, InstallationToken) and token.installation.suspended_at is not None:
        raise RefusedError(403, SUSPENDED)
    found = content_routes.routes.find(request.method, path)
    if found is not None:
        return found[0](state, request, **found[1])
    found = routes.find(request.method, path)
    if found is None:
        raise RefusedError(404, "Not Found")
    handler, groups = found
    if "path" not in groups and "organisation" not in groups:
        return handler(state, request, budget=budget, **groups)
    token, place = _place(state, request, token, groups)
    groups = {name: value for name, value in groups.items() if name not in ("path", "repository", "organisation")}
    if token.needs_sso(place):
        raise _sso(request, place)
    wanted = permission(request.method, path)
    accepted = {"X-Accepted-GitHub-Permissions": wanted}
    if not token.may_use(place, wanted):
        raise RefusedError(403, token.refusal, accepted)
    if request.method == "POST" and path.endswith(REGISTRATIONS):
        _count_registration(state, place)
    reply = handler(state, request, budget=budget, place=place, **groups)
    reply.headers.update(accepted)
    return reply


def _as_app(state: State, request: Request, handler: Handler, groups: dict[str, str]) -> Answer:
    """Answer a request that only an App may send; GitHub refuses every other credential as a JWT that is none."""
    app = state.apps.authenticate(request.credential("bearer") or "")
    former = groups.get("path", "").lower()
    if former in state.moved and state.find_path(former) is None:
        raise _moved(state, request, state.moved[former])
    return handler(state, request, app=app, **groups)


def _sso(request: Request, place: str) -> RefusedError:
    """The refusal of a token that is not authorized for an organisation's single sign-on."""
    url = f"{request.root}/orgs/{place.partition('/')[0]}/sso?authorization_request={secrets.token_urlsafe(42)}"
    message = (
        "Resource protected by organization SAML enforcement. "
        "You must grant your Personal Access token access to this organization."
    )
    return RefusedError(403, message, {"X-GitHub-SSO": f"required; url={url}"})


def _place(
    state: State, request: Request, token: Token | InstallationToken | None, groups: dict[str, str]
) -> tuple[Token | InstallationToken, str]:
    """The token, and the repository or organisation of the request, if the token can see it."""
    if token is None:
        raise RefusedError(401, "Requires authentication")
    wanted = groups.get("path") or groups.get("repository") or groups.get("organisation") or ""
    place = state.find_path(wanted)
    if place is None and wanted.lower() in state.moved:
        raise _moved(state, request, state.moved[wanted.lower()])
    if place is None or not token.may_see(place):
        raise RefusedError(404, "Not Found")
    return token, place


def _by_name(state: State, path: str) -> str:
    """A repository's path by name where it is asked for by number, as the redirects of renamed ones do."""
    found = re.match(r"/repositories/(\d+)(?=/|$)", path)
    names = [name for name, number in state.repositories.items() if found and number == int(found[1])]
    return f"/repos/{names[0]}{path[found.end() :]}" if found and names else path


def _moved(state: State, request: Request, new: str) -> RefusedError:
    """The answer for a repository's former name: 301 to a GET, 307 to everything else."""
    rest = re.sub(r"^/repos/[^/]+/[^/]+", "", request.path[len(PREFIX) :])
    number = state.repositories.get(new, 0)
    url = f"{request.api}/repositories/{number}{rest}" + (f"?{urlencode(request.query)}" if request.query else "")
    status, message = (301, "Moved Permanently") if request.method in ("GET", "HEAD") else (307, "Temporary Redirect")
    return RefusedError(status, message, {"Location": url}, url=url)


def _registrations_of(state: State, token: Token | InstallationToken) -> Budget:
    return state.budget(f"registrations of {token.budget}", REGISTRATION_LIMIT, REGISTRATION_RESOURCE)


def _count_registration(state: State, place: str) -> None:
    budget = state.registrations(place)
    if budget.used >= budget.limit:
        message = f"API rate limit exceeded for {place}."
        raise RefusedError(403, message, _limit_headers(budget), documentation="rate-limiting")
    budget.used += 1


def _limit_headers(budget: Budget) -> dict[str, str]:
    return {
        "X-RateLimit-Limit": str(budget.limit),
        "X-RateLimit-Remaining": str(max(0, budget.limit - budget.used)),
        "X-RateLimit-Reset": str(int(budget.reset)),
        "X-RateLimit-Used": str(budget.used),
        "X-RateLimit-Resource": budget.resource,
    }


@routes.add("GET", "/?")
def _root(state: State, request: Request, budget: Budget) -> Answer:
    return answer(documents.overview(request.root, request.api))


@routes.add("GET", "/meta")
def _meta(state: State, request: Request, budget: Budget) -> Answer:
    return answer({"verifiable_password_authentication": False, "installed_version": state.settings.enterprise_version})


@routes.add("GET", "/rate_limit")
def _rate_limit(state: State, request: Request, budget: Budget) -> Answer:
    token = _caller(state, request)[0]
    if request.headers.get("authorization") and token is None:
        raise RefusedError(401, "Bad credentials")
    resources = {"core": _shown(budget), "search": _shown(Budget(30, budget.reset))}
    if token is not None:
        resources[REGISTRATION_RESOURCE] = _shown(_registrations_of(state, token))
    # The next version of the API dropped the older form of `core`.
    is_older = request.headers.get("x-github-api-version", API_VERSIONS[0]) == API_VERSIONS[0]
    return answer({"resources": resources, **({"rate": resources["core"]} if is_older else {})})


def _shown(budget: Budget) -> dict[str, int]:
    left = max(0, budget.limit - budget.used)
    return {"limit": budget.limit, "used": budget.used, "remaining": left, "reset": int(budget.reset)}


@routes.add("DELETE", "/installation/token")
def _revoke(state: State, request: Request, budget: Budget) -> Answer:
    token = find_token(state, request.credential("bearer", "token") or "")
    if not isinstance(token, InstallationToken):
        raise RefusedError(401 if token is None else 403, "Requires authentication" if token is None else token.refusal)
    del state.apps.tokens[token.token]
    return Answer(204, content_type=None)


@routes.add("GET", REPOSITORY)
def _repository(state: State, request: Request, budget: Budget, place: str) -> Answer:
    return answer(documents.repository(state, place, request.root, request.api))


@routes.add("GET", r"/orgs/(?P<organisation>[^/]+)")
def _organisation(state: State, request: Request, budget: Budget, place: str) -> Answer:
    return answer(documents.organisation(place, request.root, request.api))


@routes.add("GET", r"/orgs/(?P<organisation>[^/]+)/actions/runner-groups")
def _runner_groups(state: State, request: Request, budget: Budget, place: str) -> Answer:
    groups = [
        documents.runner_group(place, number, name, request.api) for number, name in enumerate(state.groups(place), 1)
    ]
    page, headers = paginate(request, groups)
    return answer({"total_count": len(groups), "runner_groups": page}, headers=headers)


@routes.add("POST", PATH + r"/actions/runners/(?P<kind>registration|remove)-token")
def _runner_token(state: State, request: Request, budget: Budget, place: str, kind: str) -> Answer:
    token, end = state.make_runner_token(kind, place)
    return answer({"token": token, "expires_at": local_instant(end)}, 201)


@routes.add("POST", PATH + r"/actions/runners/generate-jitconfig")
def _jit_config(state: State, request: Request, budget: Budget, place: str) -> Answer:
    """Register a runner that does not exist yet; it is removed like others that never connect."""
    if not jit.is_offered(state.settings.enterprise_version):
        raise RefusedError(404, "Not Found")
    name, group, labels, folder = jit.wanted(request.json())
    groups = state.groups(place)
    if not 0 < group <= len(groups):
        raise RefusedError(404, "Not Found")
    if state.runner_named(place, name) is not None:
        raise RefusedError(409, f"Already exists - A runner with the name {name} already exists.")
    runner = state.add_runner(place, name, labels, group=groups[group - 1], secret=jit.secret())
    encoded = jit.encode(runner, group, folder, f"{request.root}/_actions")
    return answer({"runner": documents.runner(state, runner), "encoded_jit_config": encoded}, 201)


@routes.add("GET", PATH + r"/actions/runners")
def _runners(state: State, request: Request, budget: Budget, place: str) -> Answer:
    runners = state.runners_of(place, request.query.get("name"))
    page, headers = paginate(request, runners)
    found = [documents.runner(state, item) for item in page]
    return answer({"total_count": len(runners), "runners": found}, headers=headers)


@routes.add("GET", PATH + r"/actions/runners/downloads")
def _downloads(state: State, request: Request, budget: Budget, place: str) -> Answer:
    return answer(documents.downloads(state, request.root))


@routes.add("GET", PATH + r"/actions/runners/deprecations/(?P<version>[^/]+)")
def _deprecation(state: State, request: Request, budget: Budget, place: str, version: str) -> Answer:
    newest = max(map(version_parts, state.runner_binary.offered))
    known = re.fullmatch(r"2\.\d{1,4}\.\d{1,2}", version) is not None and version_parts(version) <= newest
    if not (known and state.runner_binary.deprecations):
        raise RefusedError(404, "Not Found")
    return answer(documents.deprecation(state, version))


@routes.add("GET", PATH + r"/actions/runners/(?P<number>\d+)")
def _runner(state: State, request: Request, budget: Budget, place: str, number: str) -> Answer:
    return answer(documents.runner(state, state.runner(place, int(number))))


@routes.add("DELETE", PATH + r"/actions/runners/(?P<number>\d+)")
def _delete_runner(state: State, request: Request, budget: Budget, place: str, number: str) -> Answer:
    state.delete_runner(state.runner(place, int(number)))
    return Answer(204, content_type=None)


@routes.add("GET", REPOSITORY + r"/actions/runs")
def _runs(state: State, request: Request, budget: Budget, place: str) -> Answer:
    """The runs of a repository, the newest first."""
    state.sweep()
    wanted = request.query.get("status")
    runs: dict[int, list[Job]] = {}
    for job in state.jobs.values():
        if job.repository == place:
            runs.setdefault(job.run_id, []).append(job)
    found = [documents.run(state, runs[number], request.root, request.api) for number in sorted(runs, reverse=True)]
    found = [run for run in found if wanted in (None, run["status"], run["conclusion"])]
    page, headers = paginate(request, found)
    return answer({"total_count": len(found), "workflow_runs": page}, headers=headers)


@routes.add("GET", REPOSITORY + r"/actions/runs/(?P<run>\d+)/jobs")
def _jobs(state: State, request: Request, budget: Budget, place: str, run: str) -> Answer:
    state.sweep()
    jobs = [job for job in state.jobs.values() if job.repository == place and job.run_id == int(run)]
    if not jobs:
        raise RefusedError(404, "Not Found")
    wanted = request.query.get("filter", "latest")
    if wanted not in ("all", "latest"):
        error = {"resource": "Job", "field": "filter", "code": "invalid"}
        raise RefusedError(422, "Validation Failed", errors=[error])
    if wanted == "latest":
        attempt = max(job.run_attempt for job in jobs)
        jobs = [job for job in jobs if job.run_attempt == attempt]
    page, headers = paginate(request, jobs)
    found = [documents.job(state, job, request.root, request.api) for job in page]
    return answer({"total_count": len(jobs), "jobs": found}, headers=headers)


def _refused_download(state: State, request: Request, stored: bool) -> Answer | None:
    """The server may want its download token; the store of files has signed addresses, and refuses any credential."""
    text = "text/plain; charset=utf-8"
    if stored and request.headers.get("authorization"):
        return Answer(400, b"Only one authentication mechanism is allowed.", content_type=text)
    wanted = state.runner_binary.download_token
    if not stored and wanted is not None and request.credential("bearer") != wanted:
        return Answer(401, b"not authorized", content_type=text)
    return None


FILENAME = r"actions-runner-linux-(?P<architecture>x64|arm64)-(?P<version>[0-9.]+)\.tar\.gz"


def download(state: State, request: Request) -> Answer:
    """The runner agent: like GitHub's releases, the address leads on to a store of files."""
    found = re.fullmatch(rf"/actions/runner/releases/download/v[0-9.]+/{FILENAME}", request.path)
    stored = re.fullmatch(rf"/release-assets/{FILENAME}", request.path)
    match = found or stored
    if match is None or request.method not in ("GET", "HEAD"):
        return Answer(404, b"Not Found", content_type="text/plain; charset=utf-8")
    refused = _refused_download(state, request, bool(stored))
    if refused is not None:
        return refused
    try:
        content = state.tarball(match["version"], match["architecture"])
    except RefusedError:
        return Answer(404, b"Not Found", content_type="text/plain; charset=utf-8")
    if found:
        target = f"{request.root}/release-assets/{request.path.rpartition('/')[2]}?sp=r"
        return Answer(302, headers={"Location": target}, content_type="text/html; charset=utf-8")
    return Answer(200, content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}, "application/octet-stream")
