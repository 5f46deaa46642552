"""What the reconciles of a unit measure, for the unit's agent: two small files below /run, which may be missing.

A reconcile is a process that ends; the agent keeps histograms and counters. One file has the latest gauges and is
replaced. The other one has a line for each measurement; the agent takes the lines away. In a third one the agent says
why it cannot serve metrics. Only root can read or write them. Nothing here raises: a reconcile and an agent go on
without figures, and no reconcile decides by them.
"""

import fcntl
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models import FLAVOR_NAME
from redaction import line
from system import LOCKS, remove_files, write_file

logger = logging.getLogger(__name__)

# Of the file of measurements and of the file of gauges, in bytes. What would be beyond it is not recorded: no agent
# takes the lines away.
LIMIT = 1 << 20
# Of the agent's reason, in bytes.
PROBLEM_LIMIT = 200
# Flavours in one file; more are damage.
MOST_FLAVORS = 100
# What a measurement may be of, each in seconds, and the counted failures of a creation.
DURATIONS = ("queue", "creation", "job", "reconcile")
FAILURE = "creation_failure"
# Why a reconcile has left runners out: no room for their memory, CPUs or disks, creations that failed, or none allowed.
MEMORY, CPUS, STORAGE = "memory", "cpus", "storage"
FAILED, HELD_BACK = "creation_failed", "held_back"
DELAYS = (MEMORY, CPUS, STORAGE, FAILED, HELD_BACK)
# Of one flavour; and of a text, in characters.
MOST_DELAYS, TEXT_LIMIT = 10, 200
# The longest duration and the latest UNIX time that are taken for true, in seconds: the last one of the year 9999.
MOST = 253402300799.0


@dataclass(frozen=True)
class Delay:
    """Why runners of a flavour are missing: a reason, of how many (None for all), and a text for the operator."""

    reason: str
    number: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Counts:
    """Runners of one flavour after a reconcile; ``expected`` and ``wanted`` are None where the number is not known.

    ``starting`` ones were just created and not seen online yet, ``other`` ones are offline or not known.
    """

    expected: int | None = None
    """The wanted ones; of those that demand asks for, only what the machine has room for."""
    idle: int = 0
    busy: int = 0
    other: int = 0
    starting: int = 0
    wanted: int | None = None
    """Runners that the option or the jobs ask for, those that wait for room among them."""
    maximum: int | None = None
    """In demand mode the highest number of runners of the flavour."""
    delays: tuple[Delay, ...] = ()

    @property
    def there(self) -> int:
        """All runners that have an instance."""
        return self.idle + self.busy + self.other + self.starting


@dataclass(frozen=True)
class Gauges:
    """What a reconcile knew at its end. Times are UNIX seconds, None where there is nothing to tell of."""

    reconciled: float = 0.0
    flavors: Mapping[str, Counts] = field(default_factory=dict)
    quota_left: int | None = None
    """Requests that GitHub's API still accepts in this hour."""
    binary_time: float | None = None
    """When GitHub last offered the runner binary in use."""
    image_time: float | None = None
    """When the image was built."""


@dataclass(frozen=True)
class Measurement:
    """A duration of ``value`` seconds, or with the name FAILURE a creation that failed in ``step``."""

    name: str
    flavor: str
    value: float = 0.0
    step: str = ""


def gauges_path(unit: str) -> Path:
    """The file of the gauges of a unit such as ``github-runner/0``."""
    return LOCKS / f"telemetry.{unit.replace('/', '-')}.json"


def measurements_path(unit: str) -> Path:
    """The file of the measurements of a unit."""
    return gauges_path(unit).with_suffix(".log")


def save(unit: str, gauges: Gauges) -> None:
    """Write the gauges, whole or not at all."""
    try:
        write_file(gauges_path(unit), json.dumps(asdict(gauges)), 0o600)
    except OSError as error:
        logger.warning("The figures of this reconcile are not recorded: %s", error)


def load(unit: str) -> Gauges | None:
    """The gauges of the last reconcile; None where the file is missing or damaged."""
    try:
        with _open(gauges_path(unit), os.O_RDONLY) as file:
            return _gauges(json.loads(file.read(LIMIT)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def measure(unit: str, *measurements: Measurement) -> None:
    """Append measurements."""
    lines = "".join(json.dumps(asdict(each)) + "\n" for each in measurements).encode()
    try:
        with _open(measurements_path(unit), os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_size + len(lines) <= LIMIT:
                os.write(file.fileno(), lines)
    except OSError as error:
        logger.warning("A measurement is not recorded: %s", error)


def take(unit: str) -> list[Measurement]:
    """Take the measurements away; lines that are damaged are left out."""
    with suppress(OSError), _open(measurements_path(unit), os.O_RDWR) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        data = file.read(LIMIT)
        os.ftruncate(file.fileno(), 0)
        return list(_measurements(data))
    return []


def problem_path(unit: str) -> Path:
    """The file in which the agent says why it serves no metrics."""
    return gauges_path(unit).with_suffix(".problem")


def note_problem(unit: str, text: str) -> None:
    """Record why no metrics are served; an empty text where they are."""
    try:
        if text:
            write_file(problem_path(unit), text, 0o600)
        else:
            problem_path(unit).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("For the next reconcile it is not recorded whether metrics are served: %s", error)


def problem(unit: str) -> str:
    """Why no metrics are served: one line, or nothing where they are, or it is not known."""
    try:
        with _open(problem_path(unit), os.O_RDONLY) as file:
            found = file.read(PROBLEM_LIMIT).decode(errors="replace")
    except OSError:
        return ""
    return line(found, PROBLEM_LIMIT)


def remove(unit: str) -> list[str]:
    """Remove the files of a unit; returns those that were there."""
    return remove_files(gauges_path(unit), measurements_path(unit), problem_path(unit))


def _open(path: Path, flags: int) -> Any:
    """A regular file, opened without following a link or waiting for another process; OSError for anything else."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    return os.fdopen(handle, "rb", buffering=0)


def _measurements(data: bytes) -> Iterator[Measurement]:
    for each in data.splitlines():
        try:
            found = json.loads(each)
            name, flavor, step = (str(found[key]) for key in ("name", "flavor", "step"))
            if (name in DURATIONS or name == FAILURE) and FLAVOR_NAME.fullmatch(flavor):
                yield Measurement(name, flavor, _seconds(found["value"]), step[:40])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue


def _gauges(found: Any) -> Gauges:
    flavors = {name: _counts(values) for name, values in found["flavors"].items() if FLAVOR_NAME.fullmatch(name)}
    if len(flavors) > MOST_FLAVORS:
        raise ValueError("more flavours than can be")
    return Gauges(
        _seconds(found["reconciled"]),
        flavors,
        quota_left=_optional(found["quota_left"]),
        binary_time=None if found["binary_time"] is None else _seconds(found["binary_time"]),
        image_time=None if found["image_time"] is None else _seconds(found["image_time"]),
    )


def _counts(values: Any) -> Counts:
    # The file of an earlier version has fewer of them, and other names for two.
    if "expected" not in values:
        values = {**values, "expected": values.get("wanted"), "wanted": values.get("asked")}
    idle, busy, other, starting = (int(_seconds(values.get(key, 0))) for key in ("idle", "busy", "other", "starting"))
    expected, wanted, maximum = (_optional(values.get(key)) for key in ("expected", "wanted", "maximum"))
    delays = tuple(_delay(item) for item in values.get("delays", ())[:MOST_DELAYS])
    return Counts(expected, idle, busy, other, starting, wanted, maximum, delays)


def _delay(values: Any) -> Delay:
    if values["reason"] not in DELAYS:
        raise ValueError("a reason that is not known")
    return Delay(values["reason"], _optional(values["number"]), line(str(values["text"]), TEXT_LIMIT))


def _optional(value: Any) -> int | None:
    return None if value is None else int(_seconds(value))


def _seconds(value: Any) -> float:
    """A number of 0 or more; ValueError for what cannot be one of these figures."""
    number = float(value)
    if not (math.isfinite(number) and 0 <= number <= MOST):
        raise ValueError("a number that cannot be")
    return number
