"""Requests and answers of the stand-in for GitHub, as its routes see them."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from sandbox.github.errors import RefusedError

JSON = "application/json; charset=utf-8"
MAX_PER_PAGE = 100


@dataclass
class Request:
    """One request; `root` is the server's own address as the client spelled it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes
    root: str
    address: str
    closed: Callable[[], bool] = lambda: False  # whether the client has gone away
    shift: int = 0  # how far a list's later pages have moved, see Fault

    @property
    def api(self) -> str:
        return f"{self.root}/api/v3"

    def credential(self, *schemes: str) -> str | None:
        """The credential of the Authorization header, if it is of one of these schemes (lower case)."""
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        return value.strip() or None if scheme.lower() in schemes else None

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty one counts as an empty object."""
        try:
            document = json.loads(self.body or b"{}")
        except ValueError as error:
            raise RefusedError(400, "Problems parsing JSON") from error
        if not isinstance(document, dict):
            raise RefusedError(400, "Body should be a JSON object")
        return document

    def number(self, name: str, default: int) -> int:
        """A whole number of the query string; nonsense counts as absent, as with GitHub."""
        text = self.query.get(name, "")
        return int(text) if re.fullmatch(r"\d{1,9}", text) else default


@dataclass
class Answer:
    """One answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str | None = JSON


def answer(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """A JSON answer."""
    return Answer(status, json.dumps(document, separators=(",", ":")).encode(), dict(headers or {}))


def paginate(request: Request, items: list[Any]) -> tuple[list[Any], dict[str, str]]:
    """The page that was asked for, and the Link header that leads to the others."""
    size = min(max(request.number("per_page", 30), 1), MAX_PER_PAGE)
    page, last = max(request.number("page", 1), 1), max(1, -(-len(items) // size))
    places = {}
    if page > 1:
        places["prev"] = min(page - 1, last)
    if page < last:
        places.update(next=page + 1, last=last)
    if page > 1:
        places["first"] = 1
    first = max(0, (page - 1) * size + request.shift) if page > 1 else 0
    url = request.root + request.path
    links = [f'<{url}?{urlencode({**request.query, "page": number})}>; rel="{name}"' for name, number in places.items()]
    return items[first : first + size], {"Link": ", ".join(links)} if links else {}


Handler = Callable[..., Answer]


class Routes:
    """Which function answers which method and path."""

    def __init__(self) -> None:
        self.all: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, pattern: str) -> Callable[[Handler], Handler]:
        """Decorate the function that answers; the groups of the pattern become its arguments."""

        def register(handler: Handler) -> Handler:
            self.all.append((method, re.compile(pattern), handler))
            return handler

        return register

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]] | None:
        for known, pattern, handler in self.all:
            match = pattern.fullmatch(path)
            if match and known == ("GET" if method == "HEAD" else method):
                return handler, match.groupdict()
        return None
