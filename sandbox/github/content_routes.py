"""The part of the REST API about the content of public repositories, which answers without a credential as well."""

import re

from sandbox.github import documents
from sandbox.github.action_repositories import tarball
from sandbox.github.errors import RefusedError
from sandbox.github.http import Answer, Request, Routes, answer
from sandbox.github.state import State

routes = Routes()
REPOSITORY = r"/repos/(?P<repository>[^/]+/[^/]+)"
TEXT = "text/plain; charset=utf-8"


def _known(state: State, repository: str) -> str:
    name = state.actions.name(repository)
    if name is None:
        raise RefusedError(404, "Not Found")
    return name


@routes.add("GET", REPOSITORY + "/commits/(?P<ref>.+)")
def _commit(state: State, request: Request, repository: str, ref: str) -> Answer:
    """A commit, or only its name where that media type is asked for."""
    name = _known(state, repository)
    commit = state.actions.commit(name, ref)
    if re.search(r"application/vnd\.github(\.v3)?\.sha\b", request.headers.get("accept", "")):
        headers = {"X-GitHub-Media-Type": "github.v3; param=sha"}
        return Answer(200, commit.encode(), headers, "application/vnd.github.sha; charset=utf-8")
    return answer(documents.commit(name, commit, request.root, request.api))


@routes.add("GET", REPOSITORY + "/tarball(?:/(?P<ref>.*))?")
def _tarball(state: State, request: Request, repository: str, ref: str | None) -> Answer:
    """The address leads on to a server of archives, whatever the ref is; only that one knows whether there is any."""
    name = _known(state, repository)
    target = f"{request.root}/_codeload/{name}/legacy.tar.gz/{ref or 'main'}"
    return Answer(302, headers={"Location": target}, content_type="text/html;charset=utf-8")


def archive(state: State, request: Request) -> Answer:
    """The server of archives."""
    match = re.fullmatch(r"/_codeload/(?P<repository>[^/]+/[^/]+)/legacy\.tar\.gz/(?P<ref>.+)", request.path)
    name = state.actions.name(match["repository"]) if match else None
    if match is None or name is None or request.method not in ("GET", "HEAD"):
        return Answer(404, b"404: Not Found", content_type=TEXT)
    try:
        commit = state.actions.commit(name, match["ref"])
    except RefusedError:
        return Answer(404, b"404: Not Found", content_type=TEXT)
    filename = f"{name.replace('/', '-')}-{match['ref'].replace('/', '-')}.tar.gz"
    headers = {"Content-Disposition": f"attachment; filename={filename}"}
    return Answer(200, tarball(name, commit), headers, "application/x-gzip")
