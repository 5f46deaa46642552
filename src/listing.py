"""The runners of a unit as rows, and what waits; both as JSON, YAML or a table. Nothing here does I/O."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any, NamedTuple

import yaml

import waiting
from demand import Demand
from metrics.runner import PreJobMetrics
from models import DEFAULT_FLAVOR
from naming import BINARY_KEY
from observe import ObservedRunner
from plan import Health, health
from redaction import redact
from runner_view import RunnerView
from telemetry import Counts, Gauges
from waiting import Waiting

# LXD's own key: the fingerprint of the image that the instance was made from. `lxc image list` shows 12 digits of it.
IMAGE_FINGERPRINT_KEY = "volatile.base_image"
DIGITS = 12
# Longest name of a workflow in JSON and YAML, in characters.
JOB_NAME_LIMIT = 128
# Longest cell of the column Job of the table, in characters.
CELL_LIMIT = 60
HEADINGS = ("Name", "State", "Age", "Since (UTC)", "Image", "Binary", "Flavor", "Job")
WAITING_HEADINGS = ("Flavor", "Wanted", "There", "Missing", "Assigned", "Waiting", "Since (UTC)", "Reasons")


@dataclass(frozen=True)
class Job:
    """The job of a runner as its pre-job file names it: any text, on one line and not longer than the limit."""

    repository: str
    workflow: str


class State(NamedTuple):
    """What a runner does, such as ``busy``; ``remark`` such as ``unknown to GitHub``, or empty."""

    name: str
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.remark}" if self.remark else self.name


@dataclass(frozen=True)
class Row:
    """One runner. None and empty texts are for what is not known.

    ``age`` in seconds; ``since`` when it has been in its state, as ``2026-11-26T08:46:09Z``; ``image`` the first digits
    of its image's fingerprint; ``binary`` the version of the runner binary that it was created with.
    """

    name: str
    flavor: str
    state: str
    outdated: bool | None
    age: int | None
    since: str | None
    job: Job | None
    image: str
    binary: str


def rows(
    runners: Iterable[ObservedRunner],
    job_of: Callable[[ObservedRunner], PreJobMetrics | None],
    fingerprints: Mapping[str, str] | None,
    now: float,
) -> list[Row]:
    """A row for each runner, by name.

    ``fingerprints`` are those of runners that are created ``now`` (UNIX seconds), by flavour; None where they are not
    known.
    """
    by_name = sorted(runners, key=lambda item: item.view.name)
    return [_row(item, job_of(item), fingerprints, now) for item in by_name]


def counts(
    runners: Iterable[ObservedRunner], fingerprints: Mapping[str, str] | None, now: float
) -> dict[str, list[str]]:
    """The names of runners that GitHub lists as online and offline, and of instances without a runner.

    ``details`` has a line for each: name, state and age, and whether it differs from today's fingerprint of its
    flavour. ``fingerprints`` and ``now`` are those of ``rows``.
    """
    views = sorted((item.view for item in runners), key=lambda view: view.name)
    return {
        "online": [view.name for view in views if view.github is not None and view.github.online],
        "offline": [view.name for view in views if view.github is not None and not view.github.online],
        "unknown": [view.name for view in views if view.github is None],
        "details": [_detail(view, fingerprints, now) for view in views],
    }


def text(found: Sequence[Row], form: str) -> str:
    """The rows in one of ``models.FORMATS``. No line ends with a blank: Juju would show the text in quotes."""
    if form == "table":
        return _table([HEADINGS, *(_cells(row) for row in found)])
    return _serialized([asdict(row) for row in found], form)


def waiting_now(
    runners: Iterable[ObservedRunner], recorded: Gauges | None, demands: Mapping[str, Demand], now: float
) -> list[Waiting]:
    """The flavours with jobs that wait or runners that are missing, with the runners as they are ``now``."""
    if recorded is not None:
        views = [item.view for item in runners]
        counts = {name: _counted(each, name, views, now) for name, each in recorded.flavors.items()}
        recorded = replace(recorded, flavors=counts)
    return [each for each in waiting.of_unit(recorded, demands, now) if each.reasons]


def waiting_lines(found: Sequence[Waiting]) -> str:
    """A line for each flavour."""
    return "\n".join(map(_waiting_line, found))


def waiting_text(found: Sequence[Waiting], form: str) -> str:
    """The flavours in one of ``models.FORMATS``."""
    if form == "table":
        return _table([WAITING_HEADINGS, *map(_waiting_cells, found)])
    return _serialized([_waiting_object(each) for each in found], form)


def printable(value: str, limit: int) -> str:
    """Text on one line without secrets: what is not printable is escaped, and what is beyond the limit is cut."""
    clear = redact(value)
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in clear)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _row(item: ObservedRunner, found: PreJobMetrics | None, fingerprints: Mapping[str, str] | None, now: float) -> Row:
    view, config = item.view, item.instance.config if item.instance else {}
    state = _state(view, now)
    since = _since(view, state, found)
    job = Job(found.repository, printable(found.workflow, JOB_NAME_LIMIT)) if found else None
    return Row(
        name=view.name,
        flavor=view.flavor,
        state=str(state),
        outdated=None if fingerprints is None else _is_outdated(view, fingerprints),
        age=round(max(0.0, now - view.created_at)) if view.created_at else None,
        # The pre-job file may hold a wrong time: use it only between creation and now.
        since=_moment(since) if view.created_at <= since <= now and since else None,
        job=job,
        image=config.get(IMAGE_FINGERPRINT_KEY, "")[:DIGITS],
        binary=config.get(BINARY_KEY, ""),
    )


def _detail(view: RunnerView, fingerprints: Mapping[str, str] | None, now: float) -> str:
    age = f"{max(0.0, now - view.created_at) / 60:.0f} min old" if view.created_at else "age unknown"
    parts = [str(_state(view, now)), *([age] if view.exists else [])]
    parts += [f"flavor {view.flavor}"] if view.flavor != DEFAULT_FLAVOR else []
    parts += ["outdated"] if fingerprints is not None and _is_outdated(view, fingerprints) else []
    return f"{view.name}: {', '.join(parts)}"


def _is_outdated(view: RunnerView, fingerprints: Mapping[str, str]) -> bool:
    return view.exists and view.fingerprint != fingerprints.get(view.flavor)


def _state(view: RunnerView, now: float) -> State:
    if not view.exists:
        return State("no instance")
    if not view.running:
        return State("stopped")
    if view.busy:
        return State("busy", "unknown to GitHub" if view.job_is_unknown else "")
    if view.github and view.github.online:
        return State("idle")
    if health(view, now) is Health.STARTING:
        return State("starting")
    if not view.github_known:
        return State("unknown")
    return State("offline" if view.github else "not at GitHub")


def _since(view: RunnerView, state: State, job: PreJobMetrics | None) -> float:
    """UNIX seconds since when a runner has been in its state; 0 if nobody has recorded that."""
    if state.remark:
        return view.offline_since or 0.0
    known = {
        "idle": view.prepared_at,
        "starting": view.created_at,
        "busy": job.timestamp if job else 0.0,
        "stopped": 0.0,
        "no instance": 0.0,
    }
    return known.get(state.name, view.offline_since or 0.0)


def _moment(since: float) -> str:
    return datetime.fromtimestamp(since, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cells(row: Row) -> tuple[str, ...]:
    """The columns of ``HEADINGS``. The job is last: wide characters would shift the columns after it."""
    job = f"{row.job.repository}: {row.job.workflow}" if row.job else ""
    return (
        row.name,
        f"{row.state}, outdated" if row.outdated else row.state,
        "" if row.age is None else _age(row.age),
        (row.since or "").replace("T", " ").rstrip("Z"),
        row.image,
        row.binary,
        row.flavor,
        printable(job, CELL_LIMIT),
    )


def _counted(recorded: Counts, flavor: str, views: Iterable[RunnerView], now: float) -> Counts:
    """The same counts with the runners of this moment."""
    states = Counter(_state(view, now).name for view in views if view.exists and view.flavor == flavor)
    idle, busy, starting = states["idle"], states["busy"], states["starting"]
    return replace(recorded, idle=idle, busy=busy, starting=starting, other=states.total() - idle - busy - starting)


def _waiting_object(found: Waiting) -> dict[str, Any]:
    return {
        "flavor": found.flavor,
        "wanted": found.wanted,
        "there": found.there,
        "missing": found.missing,
        "assigned": found.assigned,
        "waiting": found.waiting,
        "since": None if found.since is None else _moment(found.since),
        "reasons": [{"reason": one.reason, "number": one.number, "text": one.text} for one in found.reasons],
    }


def _waiting_cells(found: Waiting) -> tuple[str, ...]:
    since = "" if found.since is None else _moment(found.since).replace("T", " ").rstrip("Z")
    numbers = (found.wanted, found.there, found.missing, found.assigned, found.waiting)
    return (found.flavor, *("" if number is None else str(number) for number in numbers), since, _reasons(found))


def _waiting_line(found: Waiting) -> str:
    jobs = ""
    if found.waiting is not None:
        since = "" if found.since is None else f" since {_moment(found.since).replace('T', ' ').rstrip('Z')} UTC"
        jobs = f", {found.assigned} jobs assigned, {found.waiting} waiting{since}"
    return f"{found.flavor}: {found.there} of {found.wanted} runners{jobs}: {_reasons(found)}"


def _reasons(found: Waiting) -> str:
    """Such as ``1 starting, 2 memory (8GiB each, 3.5GiB free)``."""
    return ", ".join(f"{one.number} {one.reason}" + f" ({one.text})" * bool(one.text) for one in found.reasons)


def _serialized(found: Sequence[dict[str, Any]], form: str) -> str:
    if form == "json":
        return json.dumps(found, indent=2, ensure_ascii=False)
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=10_000).rstrip()


def _age(seconds: int) -> str:
    minutes = seconds // 60
    hours = minutes // 60
    return f"{minutes} min" if hours < 2 else f"{hours} h" if hours < 48 else f"{hours // 24} d"


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
