"""The refusal that every part of the stand-in for GitHub may answer with."""

from typing import Any


class RefusedError(Exception):
    """GitHub refuses a request: an HTTP status, a message and what else belongs into the answer."""

    def __init__(self, status: int, message: str, headers: dict[str, Any] | None = None, **more: object) -> None:
        super().__init__(message)
        self.status, self.message, self.headers, self.more = status, message, headers or {}, more
