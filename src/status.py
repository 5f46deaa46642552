"""Errors and reports as the unit's status: one printable line of bounded length, whatever a program has printed."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import redaction
from errors import ConfigurationError, GithubClientError, LxdError, TokenError
from report import Report

LIMIT = 200
CUT = " … "
# Of the numbers by flavour, in characters, where nothing else needs the room; below a quarter of it there are none.
FLAVORS_LIMIT = 80


class Status(NamedTuple):
    """A unit's status: Juju's name of it, such as ``waiting``, and its message."""

    name: str
    message: str


def line(text: str) -> str:
    """Text on one line, without secrets, control characters and the marks that programs decorate their output with."""
    return " ".join("".join(char if _is_shown(char) else " " for char in redaction.line(text)).split())


def _is_shown(char: str) -> bool:
    """Letters, digits and punctuation of any script; of the symbols, ASCII's and the multiplication sign."""
    return char.isascii() or char == "×" or unicodedata.category(char) not in ("Sm", "So")


def fit(text: str, limit: int = LIMIT) -> str:
    """One line of at most ``limit`` characters; a longer one lacks its middle, since its end often has the reason."""
    text = line(text)
    if len(text) <= limit:
        return text
    end = (limit - len(CUT)) * 2 // 5
    return text[: limit - len(CUT) - end].rstrip() + CUT + text[-end:].lstrip()


def bounded(status: Status) -> Status:
    """The same status with a message that fits."""
    return Status(status.name, fit(status.message))


def describe(error: Exception) -> str:
    """What failed, named by its side where it is not this machine."""
    if isinstance(error, ConfigurationError):
        return _describe_options(error)
    if isinstance(error, LxdError):
        return f"LXD: {error}"
    if isinstance(error, GithubClientError) and not isinstance(error, TokenError):
        return f"GitHub: {error}"
    return str(error)


def _describe_options(error: ConfigurationError) -> str:
    """Every invalid option with its reason; where that is too long every option's name, and the log has the reasons.

    Where all values are of one option, as many of them as fit instead of its name.
    """
    errors = error.invalid
    if len(line(str(error))) <= LIMIT or len(errors) < 2:
        return str(error)
    names = list(dict.fromkeys(each.split(":")[0] for each in errors))
    head = f"{len(errors)} invalid values, see `juju debug-log`: "
    if len(names) > 1:
        head += ", ".join(names)
        room = LIMIT - len(line(head)) - 2
        return f"{head}; {fit(errors[0], room)}" if room > LIMIT // 4 else head
    shown = [errors[0]]
    for each in errors[1:]:
        if len(line(head + "; ".join([*shown, each]))) <= LIMIT:
            shown.append(each)
    return head + fit("; ".join(shown), LIMIT - len(line(head)) - 1)


def of_error(error: Exception) -> Status:
    """Blocked where the operator must act, waiting where it resolves by itself."""
    if isinstance(error, (ConfigurationError, TokenError)):
        return Status("blocked", describe(error))
    return Status("waiting", describe(error))


def of_report(report: Report, test_mode: bool, notices: Sequence[str] = ()) -> Status:
    """What runs, the last failure, and the notices; the failure is shortened where not all of it fits.

    Where there are many flavours, first the last of those that wait and then the numbers of all make room.
    """
    shown = _of_report(report, test_mode, [*report.waits, *notices])
    if len(report.waits) < 3 or len(line(shown.message)) <= LIMIT:
        return shown
    more = f"{len(report.waits) - 1} more flavours wait"
    return _of_report(report, test_mode, [report.waits[0], more, *notices])


def _of_report(report: Report, test_mode: bool, notices: Sequence[str]) -> Status:
    serving = len(report.idle) + len(report.busy)
    there = serving + len(report.other)
    tail = "".join(f"; {notice}" for notice in notices) + (" (test mode: containers)" if test_mode else "")
    others = f"{len(report.other)} starting or offline" if report.other else ""
    if report.wanted and (not there or (report.failures and not serving)):
        head = f"0 of {report.wanted} runners" + (f": {others}" if others else "")
        return Status("waiting", _joined(head, report.failures, tail))
    parts = [f"{len(report.idle)} idle", f"{len(report.busy)} busy"]
    if report.unknown_jobs:
        parts.append(f"{len(report.unknown_jobs)} of them unknown to GitHub")
    if others:
        parts.append(others)
    of = f"{there} of {report.wanted}" if there < report.wanted else f"{there}"
    noun = "runner" if of == "1" else "runners"
    head = f"{of} {noun}: {', '.join(parts)}"
    room = LIMIT - len(line(head + tail)) - (LIMIT // 3 + 2 if report.failures else 0)
    return Status("active", _joined(head + _by_flavor(report, room), report.failures, tail))


def _by_flavor(report: Report, room: int) -> str:
    """Where there are several flavours, the instances and the wanted number of each, in as much as there is room."""
    limit = min(FLAVORS_LIMIT, room - len(" ()"))
    if len(report.flavors) < 2 or limit < FLAVORS_LIMIT // 4:
        return ""
    counts = ", ".join(f"{one.flavor} {one.there} of {one.wanted}" for one in report.flavors)
    return f" ({fit(counts, limit)})"


def _joined(head: str, failures: Sequence[str], tail: str) -> str:
    if not failures:
        return head + tail
    room = max(LIMIT // 3, LIMIT - len(line(head + tail)) - 2)
    return f"{head}; {fit(failures[-1], room)}{tail}"
