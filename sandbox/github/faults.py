"""Faults that a test plants between a client and the stand-in for GitHub."""

import re
import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fault:
    """What goes wrong, with which requests, and how often."""

    id: int
    method: str | None = None
    path: str = ""  # a regular expression that is searched in path and query
    times: int | None = None
    after: int = 0  # so many matching requests are let through first
    delay: float = 0.0
    status: int | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    body: str | None = None
    content_type: str | None = None
    pad: int = 0  # so many blanks before the body
    cut: int | None = None  # the whole length is announced, so many bytes come
    drip: float | None = None  # seconds for each byte
    shift: int = 0  # so many items left a list while its pages were read, or came if below 0: later pages moved
    silence: bool = False
    reset: bool = False
    seen: int = 0
    hits: int = 0
    released: threading.Event = field(default_factory=threading.Event, repr=False)

    def matches(self, method: str, target: str) -> bool:
        return self.method in (None, method) and re.search(self.path, target) is not None

    def document(self) -> dict[str, Any]:
        hidden = ("released",)
        return {name: value for name, value in vars(self).items() if name not in hidden}


FIELDS = {name for name in Fault.__dataclass_fields__ if name not in ("id", "seen", "hits", "released")}


class Faults:
    """All planted faults; the first that matches a request acts on it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.planted: dict[int, Fault] = {}
        self._last = 0

    def add(self, fields: dict[str, Any]) -> Fault:
        """Plant a fault; ValueError for a field that does not exist or a path that is no regular expression."""
        unknown = set(fields) - FIELDS
        if unknown:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
        try:
            re.compile(fields.get("path", ""))
        except re.error as error:
            raise ValueError(f"path: {error}") from error
        with self._lock:
            self._last += 1
            fault = self.planted[self._last] = Fault(self._last, **fields)
        return fault

    def list(self) -> list[dict[str, Any]]:
        with self._lock:
            return [fault.document() for fault in self.planted.values()]

    def remove(self, number: int | None = None) -> bool:
        """Take one fault or all away, and let go the requests that they hold."""
        with self._lock:
            gone = [n for n in self.planted if number in (None, n)]
            for each in gone:
                self.planted.pop(each).released.set()
        return bool(gone) or number is None

    def pick(self, method: str, target: str) -> Fault | None:
        """The fault that this request meets."""
        with self._lock:
            for fault in self.planted.values():
                if not fault.matches(method, target):
                    continue
                fault.seen += 1
                spent = fault.times is not None and fault.hits >= fault.times
                if fault.seen > fault.after and not spent:
                    fault.hits += 1
                    return fault
        return None
