"""The requests that a GitHub App sends with a JSON web token: about itself, its installations, and their tokens."""

from typing import Any

from sandbox.github import documents
from sandbox.github.apps import MAX_REPOSITORIES, App, Installation
from sandbox.github.errors import RefusedError
from sandbox.github.http import Answer, Request, Routes, answer, paginate
from sandbox.github.state import State

routes = Routes()
INSTALLATION = r"/app/installations/(?P<number>\d+)"


@routes.add("GET", "/app")
def _app(state: State, request: Request, app: App) -> Answer:
    return answer(documents.app(state, app, request.root, request.api))


@routes.add("GET", "/app/installations")
def _installations(state: State, request: Request, app: App) -> Answer:
    found = [each for each in state.apps.installations.values() if each.app is app]
    page, headers = paginate(request, found)
    return answer([_document(request, each) for each in page], headers=headers)


@routes.add("GET", INSTALLATION)
def _installation(state: State, request: Request, app: App, number: str) -> Answer:
    return answer(_document(request, state.apps.installation(app, int(number))))


@routes.add("GET", r"/(?P<kind>orgs|users|repos)/(?P<path>[^/]+(?:/[^/]+)?)/installation")
def _installation_of(state: State, request: Request, app: App, kind: str, path: str) -> Answer:
    """Where the App is installed, if it is: a repository also counts where it is one of those that were selected."""
    place = state.find_path(path) if "/" in path else path
    kinds = {"orgs": ("Organization",), "users": ("User",), "repos": ("Organization", "User")}[kind]
    for each in state.apps.installations.values():
        if each.app is app and place is not None and each.covers(place) and each.kind in kinds:
            return answer(_document(request, each))
    raise RefusedError(404, "Not Found")


@routes.add("POST", INSTALLATION + "/access_tokens")
def _access_token(state: State, request: Request, app: App, number: str) -> Answer:
    installation, body = state.apps.installation(app, int(number)), request.json()
    places = _places(state, installation, body)
    life, stateless = state.settings.installation_token_life, state.settings.stateless_tokens
    token = state.apps.make_token(installation, body.get("permissions"), places, life, stateless)
    return answer(documents.installation_token(state, token, request.root, request.api), 201)


def _places(state: State, installation: Installation, body: dict[str, Any]) -> list[str] | None:
    """The repositories that a token is asked for, by name or number; None for all."""
    names, numbers = body.get("repositories"), body.get("repository_ids")
    if names is None and numbers is None:
        return None
    if not isinstance(names or [], list) or not isinstance(numbers or [], list):
        raise RefusedError(422, "Invalid request.\n\nRepositories are lists.")
    by_number = {number: place for place, number in state.repositories.items()}
    named = [f"{installation.account}/{name}" for name in names or []]
    places = [state.find_path(name) or name for name in named] + [by_number.get(n, f"?/{n}") for n in numbers or []]
    if not 0 < len(places) <= MAX_REPOSITORIES:
        raise RefusedError(422, f"Invalid request.\n\nThere may be 1 to {MAX_REPOSITORIES} repositories.")
    return places


def _document(request: Request, installation: Installation) -> dict[str, Any]:
    return documents.installation(installation, request.root, request.api)
