"""The JSON documents of GitHub's REST API, in the form of its published description."""

import base64
import hashlib
from typing import Any

from sandbox.github.apps import App, Installation, InstallationToken
from sandbox.github.forms import instant, version_parts
from sandbox.github.state import Job, Runner, State

AVATAR = "/avatars/u/{id}?v=4"


def node_id(kind: str, number: int) -> str:
    """An opaque identifier, as GitHub has it for its other API."""
    return base64.urlsafe_b64encode(f"{kind}:{number}".encode()).decode().rstrip("=")


def stable_number(text: str) -> int:
    """An id that follows from a name, for what has no counter of its own."""
    return int.from_bytes(hashlib.sha256(text.lower().encode()).digest()[:4], "big") % 90_000_000 + 10_000_000


def runner(state: State, item: Runner) -> dict[str, Any]:
    """A self-hosted runner."""
    group = state.groups(item.path).index(item.group) + 1 if item.group in state.groups(item.path) else 1
    return {
        "id": item.id,
        "name": item.name,
        "os": item.os,
        "status": "online" if state.online(item) else "offline",
        "busy": item.busy,
        "ephemeral": item.ephemeral,
        "runner_group_id": group,
        "labels": item.labels,
        "version": item.version or None,
    }


def job(state: State, item: Job, root: str, api: str) -> dict[str, Any]:
    """A job of a workflow run."""
    repository = f"{api}/repos/{item.repository}"
    groups = state.groups(item.repository.partition("/")[0])
    group = groups.index(item.runner_group) + 1 if item.runner_group in groups else 1
    return {
        "id": item.id,
        "run_id": item.run_id,
        "workflow_name": item.workflow,
        "head_branch": item.head_branch,
        "run_url": f"{repository}/actions/runs/{item.run_id}",
        "run_attempt": item.run_attempt,
        "node_id": node_id("CR", item.id),
        "head_sha": item.head_sha,
        "url": f"{repository}/actions/jobs/{item.id}",
        "html_url": f"{root}/{item.repository}/actions/runs/{item.run_id}/job/{item.id}",
        "status": item.status,
        "conclusion": item.conclusion,
        "created_at": instant(item.created_at),
        "started_at": instant(item.created_at if item.started_at is None else item.started_at),
        "completed_at": instant(item.completed_at),
        "name": item.name,
        "steps": _steps(item),
        "check_run_url": f"{repository}/check-runs/{item.id}",
        "labels": item.labels,
        "runner_id": item.runner_id,
        "runner_name": item.runner_name,
        "runner_group_id": None if item.runner_id is None else group,
        "runner_group_name": item.runner_group,
    }


def _steps(item: Job) -> list[dict[str, Any]]:
    if item.started_at is None:
        return []
    times = {"started_at": instant(item.started_at), "completed_at": instant(item.completed_at)}
    step = {"name": "Run command", "status": item.status, "conclusion": item.conclusion, "number": 1, **times}
    return [step]


def downloads(state: State, root: str) -> list[dict[str, Any]]:
    """The runner binaries; only those for Linux can really be fetched."""
    version = state.runner_binary.version
    offered = []
    for system, architecture, ending in (
        *(("osx", "x64", "tar.gz"), ("osx", "arm64", "tar.gz"), ("linux", "x64", "tar.gz")),
        *(("linux", "arm64", "tar.gz"), ("win", "x64", "zip"), ("win", "arm64", "zip")),
    ):
        filename = f"actions-runner-{system}-{architecture}-{version}.{ending}"
        content = state.tarball(version, architecture) if system == "linux" else filename.encode()
        checksum = hashlib.sha256(content).hexdigest()
        if system == "linux" and state.runner_binary.checksum is not None:
            checksum = state.runner_binary.checksum
        url = f"{root}/actions/runner/releases/download/v{version}/{filename}"
        entry = {"os": system, "architecture": architecture, "download_url": url, "filename": filename}
        if state.runner_binary.download_token is not None:
            entry["temp_download_token"] = state.runner_binary.download_token
        offered.append({**entry, "sha256_checksum": checksum})
    return offered


def deprecation(state: State, version: str) -> dict[str, Any]:
    """Until when a version may register and run: a moment that is over, or nothing that is decided yet."""
    binary, parts = state.runner_binary, version_parts(version)
    over = instant(state.clock() - 3600)
    old = binary.minimum_version is not None and parts < version_parts(binary.minimum_version)
    document = {"runner_version": version, "runtime_deprecates_at": over if old else None}
    if parts < version_parts(binary.minimum_registration):
        document["registration_deprecates_at"] = over
    return document


def runner_group(organisation: str, number: int, name: str, api: str) -> dict[str, Any]:
    """A runner group of an organisation."""
    return {
        "id": number,
        "name": name,
        "visibility": "all",
        "default": number == 1,
        "runners_url": f"{api}/orgs/{organisation}/actions/runner-groups/{number}/runners",
        "hosted_runners_url": f"{api}/orgs/{organisation}/actions/runner-groups/{number}/hosted-runners",
        "inherited": False,
        "allows_public_repositories": False,
        "workflow_restrictions_read_only": False,
        "restricted_to_workflows": False,
        "selected_workflows": [],
    }


def account(login: str, kind: str, root: str, api: str) -> dict[str, Any]:
    """A user or organisation, in short."""
    number, user = stable_number(login), f"{api}/users/{login}"
    endings = ("followers", "subscriptions", "organizations", "repos", "received_events")
    return {
        "login": login,
        "id": number,
        "node_id": node_id("U", number),
        "avatar_url": root + AVATAR.format(id=number),
        "gravatar_id": "",
        "url": user,
        "html_url": f"{root}/{login}",
        **{f"{ending}_url": f"{user}/{ending}" for ending in endings},
        "following_url": user + "/following{/other_user}",
        "gists_url": user + "/gists{/gist_id}",
        "starred_url": user + "/starred{/owner}{/repo}",
        "events_url": user + "/events{/privacy}",
        "type": kind,
        "site_admin": False,
        "user_view_type": "public",
    }


def organisation(login: str, root: str, api: str) -> dict[str, Any]:
    """An organisation."""
    number, url = stable_number(login), f"{api}/orgs/{login}"
    return {
        "login": login,
        "id": number,
        "node_id": node_id("O", number),
        "url": url,
        **{f"{ending}_url": f"{url}/{ending}" for ending in ("repos", "events", "hooks", "issues")},
        "members_url": url + "/members{/member}",
        "public_members_url": url + "/public_members{/member}",
        "avatar_url": root + AVATAR.format(id=number),
        "description": "",
        "has_organization_projects": True,
        "has_repository_projects": True,
        "public_repos": 0,
        "public_gists": 0,
        "followers": 0,
        "following": 0,
        "html_url": f"{root}/{login}",
        "created_at": "2020-01-01T00:00:00Z",
        "updated_at": "2020-01-01T00:00:00Z",
        "archived_at": None,
        "type": "Organization",
    }


def app(state: State, item: App, root: str, api: str) -> dict[str, Any]:
    """A GitHub App, as it sees itself."""
    kind = "Organization" if state.find_path(item.owner) else "User"
    return {
        "id": item.id,
        "slug": item.slug,
        "client_id": item.client_id,
        "node_id": node_id("A", item.id),
        "owner": account(item.owner, kind, root, api),
        "name": item.slug,
        "description": None,
        "external_url": f"{root}/{item.owner}",
        "html_url": f"{root}/apps/{item.slug}",
        **dict.fromkeys(("created_at", "updated_at"), instant(item.created_at)),
        "permissions": item.permissions,
        "events": [],
        "installations_count": sum(each.app is item for each in state.apps.installations.values()),
    }


def installation(item: Installation, root: str, api: str) -> dict[str, Any]:
    """An App's installation on an account."""
    page = f"organizations/{item.account}/settings" if item.kind == "Organization" else "settings"
    return {
        "id": item.id,
        "client_id": item.app.client_id,
        "account": account(item.account, item.kind, root, api),
        "repository_selection": "all" if item.repositories is None else "selected",
        "access_tokens_url": f"{api}/app/installations/{item.id}/access_tokens",
        "repositories_url": f"{api}/installation/repositories",
        "html_url": f"{root}/{page}/installations/{item.id}",
        "app_id": item.app.id,
        "app_slug": item.app.slug,
        "target_id": stable_number(item.account),
        "target_type": item.kind,
        "permissions": item.permissions,
        "events": [],
        **dict.fromkeys(("created_at", "updated_at"), instant(item.created_at)),
        "single_file_name": None,
        "has_multiple_single_files": False,
        "single_file_paths": [],
        "suspended_by": account("admin", "User", root, api) if item.suspended_at is not None else None,
        "suspended_at": instant(item.suspended_at),
    }


def installation_token(state: State, item: InstallationToken, root: str, api: str) -> dict[str, Any]:
    """A new token of an installation; the repositories are there if the request named them."""
    document: dict[str, Any] = {"token": item.token, "expires_at": instant(item.end), "permissions": item.permissions}
    selected = item.repositories if item.repositories is not None else item.installation.repositories
    document["repository_selection"] = "all" if selected is None else "selected"
    if item.repositories is not None:
        document["repositories"] = [repository(state, place, root, api) for place in item.repositories]
        for each in document["repositories"]:  # lists have the short form
            del each["network_count"], each["subscribers_count"]
    return document


# The many links of a repository: what is appended to its URL, by the name of the link.
REPOSITORY_LINKS = {
    "archive": "/{archive_format}{/ref}",
    "assignees": "/assignees{/user}",
    "blobs": "/git/blobs{/sha}",
    "branches": "/branches{/branch}",
    "collaborators": "/collaborators{/collaborator}",
    "comments": "/comments{/number}",
    "commits": "/commits{/sha}",
    "compare": "/compare/{base}...{head}",
    "contents": "/contents/{+path}",
    "git_commits": "/git/commits{/sha}",
    "git_refs": "/git/refs{/sha}",
    "git_tags": "/git/tags{/sha}",
    "issue_comment": "/issues/comments{/number}",
    "issue_events": "/issues/events{/number}",
    "issues": "/issues{/number}",
    "keys": "/keys{/key_id}",
    "labels": "/labels{/name}",
    "milestones": "/milestones{/number}",
    "notifications": "/notifications{?since,all,participating}",
    "pulls": "/pulls{/number}",
    "releases": "/releases{/id}",
    "statuses": "/statuses/{sha}",
    "trees": "/git/trees{/sha}",
    **{name: f"/{name}" for name in ("contributors", "deployments", "downloads", "events", "forks", "hooks")},
    **{name: f"/{name}" for name in ("languages", "merges", "stargazers", "subscribers", "subscription")},
    **{name: f"/{name}" for name in ("tags", "teams")},
}


def run(state: State, jobs: list[Job], root: str, api: str) -> dict[str, Any]:
    """A workflow run with these jobs. It is queued until the first one starts, and over with the last one."""
    first, states = jobs[0], {job.status for job in jobs}
    status = states.pop() if len(states) == 1 else "in_progress"
    url = f"{api}/repos/{first.repository}/actions/runs/{first.run_id}"
    page = f"{root}/{first.repository}/actions/runs/{first.run_id}"
    actor = account("octo-cat", "User", root, api)
    return {
        "id": first.run_id,
        "name": first.workflow,
        "node_id": node_id("WFR", first.run_id),
        "head_branch": first.head_branch,
        "head_sha": first.head_sha,
        "path": ".github/workflows/ci.yml",
        "display_title": first.workflow,
        "run_number": 1,
        "run_attempt": first.run_attempt,
        "event": first.event,
        "status": status,
        "conclusion": first.conclusion if status == "completed" else None,
        "workflow_id": 1,
        "check_suite_id": 1,
        "check_suite_node_id": node_id("CS", 1),
        "url": url,
        "html_url": page,
        "pull_requests": [],
        "created_at": instant(first.created_at),
        "updated_at": instant(first.created_at),
        "run_started_at": instant(first.created_at),
        "actor": actor,
        "triggering_actor": actor,
        **{f"{link}_url": f"{url}/{link}" for link in ("jobs", "logs", "artifacts", "cancel", "rerun")},
        "check_suite_url": f"{api}/repos/{first.repository}/check-suites/1",
        "previous_attempt_url": None,
        "workflow_url": f"{api}/repos/{first.repository}/actions/workflows/1",
        "head_commit": None,
        **dict.fromkeys(("repository", "head_repository"), minimal_repository(state, first.repository, root, api)),
    }


def minimal_repository(state: State, full_name: str, root: str, api: str) -> dict[str, Any]:
    """A repository as a part of another document."""
    whole = repository(state, full_name, root, api)
    plain = ("id", "node_id", "name", "full_name", "private", "owner", "html_url", "description", "fork", "url")
    return {key: value for key, value in whole.items() if key in plain or key.removesuffix("_url") in REPOSITORY_LINKS}


def repository(state: State, full_name: str, root: str, api: str) -> dict[str, Any]:
    """A repository."""
    owner, _, name = full_name.partition("/")
    number, page = state.repositories[full_name], f"{root}/{full_name}"
    kind = "Organization" if state.find_path(owner) else "User"
    counts = (
        *("forks", "watchers", "open_issues", "size", "network_count", "subscribers_count"),
        *("forks_count", "stargazers_count", "watchers_count", "open_issues_count"),
    )
    return {
        "id": number,
        "node_id": node_id("R", number),
        "name": name,
        "full_name": full_name,
        "private": True,
        "owner": account(owner, kind, root, api),
        "html_url": page,
        "description": None,
        "fork": False,
        **_addresses(full_name, f"{api}/repos/{full_name}", page, root.partition("://")[2]),
        "homepage": None,
        "language": None,
        **dict.fromkeys(counts, 0),
        **dict.fromkeys(("has_issues", "has_projects", "has_wiki"), True),
        **dict.fromkeys(("has_pages", "has_downloads", "has_discussions", "archived", "disabled"), False),
        "license": None,
        "allow_forking": False,
        "is_template": False,
        "web_commit_signoff_required": False,
        "topics": [],
        "visibility": "private",
        "default_branch": "main",
        "permissions": {"admin": True, "maintain": True, "push": True, "triage": True, "pull": True},
        **dict.fromkeys(("created_at", "updated_at", "pushed_at"), "2020-01-01T00:00:00Z"),
    }


def _addresses(full_name: str, url: str, page: str, host: str) -> dict[str, str | None]:
    """The addresses of a repository, of its parts and of its clones."""
    return {
        "url": url,
        **{f"{link}_url": url + ending for link, ending in REPOSITORY_LINKS.items()},
        "git_url": f"git://{host}/{full_name}.git",
        "ssh_url": f"git@{host}:{full_name}.git",
        "clone_url": f"{page}.git",
        "svn_url": page,
        "mirror_url": None,
    }


def commit(repository: str, sha: str, root: str, api: str) -> dict[str, Any]:
    """A commit without changes."""
    user = account("octo-cat", "User", root, api)
    url = f"{api}/repos/{repository}"
    who = {"name": "Octo Cat", "email": "octo@example.com", "date": "2020-01-01T00:00:00Z"}
    tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # of an empty folder
    return {
        "sha": sha,
        "node_id": node_id("C", stable_number(sha)),
        "commit": {
            "author": who,
            "committer": who,
            "message": "An action",
            "tree": {"sha": tree, "url": f"{url}/git/trees/{tree}"},
            "url": f"{url}/git/commits/{sha}",
            "comment_count": 0,
            "verification": {
                "verified": False,
                "reason": "unsigned",
                "signature": None,
                "payload": None,
                "verified_at": None,
            },
        },
        "url": f"{url}/commits/{sha}",
        "html_url": f"{root}/{repository}/commit/{sha}",
        "comments_url": f"{url}/commits/{sha}/comments",
        "author": user,
        "committer": user,
        "parents": [],
        "stats": {"total": 0, "additions": 0, "deletions": 0},
        "files": [],
    }


def overview(root: str, api: str) -> dict[str, Any]:
    """The answer of the API's root: where everything is, most of which this stand-in lacks."""
    simple = {
        **{name: name for name in ("emojis", "events", "feeds", "notifications", "rate_limit")},
        "authorizations": "authorizations",
        "current_user": "user",
        "current_user_repositories": "user/repos{?type,page,per_page,sort}",
        "emails": "user/emails",
        "followers": "user/followers",
        "following": "user/following{/target}",
        "gists": "gists{/gist_id}",
        "public_gists": "gists/public",
        "starred": "user/starred{/owner}{/repo}",
        "starred_gists": "gists/starred",
        "issues": "issues",
        "keys": "user/keys",
        "organization": "orgs/{org}",
        "organization_repositories": "orgs/{org}/repos{?type,page,per_page,sort}",
        "organization_teams": "orgs/{org}/teams",
        "repository": "repos/{owner}/{repo}",
        "label_search": "search/labels?q={query}&repository_id={repository_id}{&page,per_page}",
        "topic_search": "search/topics?q={query}{&page,per_page}",
        "user": "users/{user}",
        "user_organizations": "user/orgs",
        "user_repositories": "users/{user}/repos{?type,page,per_page,sort}",
        **{
            f"{kind}_search": f"search/{kind}?q={{query}}" for kind in ("commit", "code", "issue", "user", "repository")
        },
    }
    links = {f"{name}_url": f"{api}/{ending}" for name, ending in simple.items()}
    return {**links, "current_user_authorizations_html_url": f"{root}/settings/connections/applications{{/client_id}}"}
