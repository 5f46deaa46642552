"""Keeps secrets out of what operators and their log stores read: log lines, statuses, results of actions.

A secret is noted where the value that holds it is made (``models``) or received. ``redact`` is applied where texts
leave the charm: to each log record, each status, each result of an action; and where a text is cut, before the cut.
"""

import base64
import contextlib
import io
import json
import logging
import re
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from urllib.parse import quote, unquote, urlsplit

# In a hook each line is a process (juju-log): what these say of each request is not worth that.
CHATTY = ("httpx2", "httpcore2", "urllib3", "ws4py", "pylxd", "cosl")
MASK = "…"
# In characters. A shorter value would mask parts of ordinary words; in a URL it is masked all the same.
SHORTEST = 8
USER_IN_URL = re.compile(r"""(?<=//)[^/\s"']*@""")
# The agent receives tokens for months, and one hook may register many runners: the newest values are kept. Whoever
# uses a token for long notes it again.
MOST = 1000
_noted: set[str] = set()
_received: dict[str, None] = {}
_lock = threading.RLock()


def note(*secrets: str | None) -> None:
    """Mask values for as long as the process lives, also as they look when quoted for JSON, a shell, a URL or Python.

    They are the operator's, and the few that a hook gets or signs with the operator's GitHub App.
    """
    with _lock:
        _noted.update(_forms(secrets))


def note_received(*secrets: str | None) -> None:
    """Mask values that others give, as many as a long-lived process or many runners may need; the oldest are dropped.

    What was given to ``note`` stays.
    """
    with _lock:
        for form in _forms(secrets):
            _received.pop(form, None)
            _received[form] = None
        while len(_received) > MOST:
            del _received[next(iter(_received))]


def clear() -> None:
    """Mask no noted value any more. For tests: a secret of one is an ordinary word in another."""
    with _lock:
        _noted.clear()
        _received.clear()


def _forms(secrets: Iterable[str | None]) -> Iterator[str]:
    for secret in secrets:
        for text in (secret or "", unquote(secret or "")):
            forms = {text, quote(text, safe=""), json.dumps(text)[1:-1], repr(text)[1:-1], shlex.quote(text).strip("'")}
            yield from (form for form in forms if len(form) >= SHORTEST)


def note_url(url: str | None) -> None:
    """Mask the password of a URL, or its user if it has no password, and both as they are sent."""
    user, _, _ = urlsplit(url or "").netloc.rpartition("@")
    if user:
        name, _, password = user.partition(":")
        note(user, password or name, base64.b64encode(unquote(user).encode()).decode())


def redact(text: str) -> str:
    """The text without noted secrets, and without user and password of any URL."""
    text = USER_IN_URL.sub(f"{MASK}@", text)
    with _lock:
        noted = {*_noted, *_received}
    # The longest first: one secret may be a part of another.
    for secret in sorted(noted, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def line(text: str, limit: int | None = None) -> str:
    """Text on one printable line without secrets, cut after ``limit`` characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in redact(text)).split())[:limit]


def tail(text: str, limit: int = 500) -> str:
    """The last words of a program, without secrets: after a cut a part of one could not be recognised."""
    return redact(text.strip())[-limit:]


def install() -> None:
    """Redact every log record of this process, and what is printed of an exception that nobody caught.

    Of what its libraries log there are only warnings.
    """
    for library in CHATTY:
        logging.getLogger(library).setLevel(logging.WARNING)
    if logging.getLogRecordFactory() is not _record:
        logging.setLogRecordFactory(_record)
    if not isinstance(sys.excepthook, _ExceptHook):
        sys.excepthook = _ExceptHook(sys.excepthook)


def _record(*args: object, **kwargs: object) -> logging.LogRecord:
    record = logging.LogRecord(*args, **kwargs)  # type: ignore[arg-type]
    # Arguments that do not fit the message are the handler's to report.
    with contextlib.suppress(TypeError, ValueError):
        record.msg, record.args = redact(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
    if record.stack_info:
        record.stack_info = redact(record.stack_info)
    return record


class _ExceptHook:
    """ops prints an exception that ends an action to standard error, which Juju shows as a part of its result."""

    def __init__(self, hook: object) -> None:
        self._hook = hook

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            self._hook(kind, error, trace)  # type: ignore[operator]
        sys.stderr.write(redact(printed.getvalue()))
