"""How many runners GitHub's jobs need, by its last answers to the unit's agent: a JSON file, which may be missing.

The agent writes it below /run after each answer of a runner scale set; a reconcile reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models import FLAVOR_NAME, Flavor
from redaction import line
from system import LOCKS, remove_files, write_file
from telemetry import TEXT_LIMIT

# Without a session for longer, the number of runners is that of demand-fallback. In seconds.
PATIENCE = 300
# Of runners in one file's numbers: what is larger is damage.
MOST = 100_000
# Of UNIX times: the last second of the year 9999.
LATEST = 253402300799.0


@dataclass(frozen=True)
class Demand:
    """What is known of one flavour. Times are UNIX seconds.

    ``assigned`` are the jobs that the scale set must provide runners for, those that run included; ``missed`` are
    queued jobs that only GitHub's REST API tells of. ``since`` is when the oldest assigned one that has no runner was
    queued, ``missed_since`` when the oldest missed one was. ``answered_at`` is when a session last gave an answer, 0 if
    none has; ``scale_set`` is the set's number.
    """

    assigned: int = 0
    missed: int = 0
    since: float | None = None
    answered_at: float = 0.0
    scale_set: int | None = None
    asked: tuple[str, ...] = ()
    """The labels that the set was made with, in lower case and in order."""
    dropped: tuple[str, ...] = ()
    """Of these, the ones that GitHub left out of the set."""
    problem: str = ""
    """Why there is no session, if there is none."""
    running: int = 0
    """Of the assigned jobs those that run."""
    is_blocking: bool = False
    """Whether the operator must act on the problem."""
    missed_since: float | None = None

    @property
    def waits_since(self) -> float | None:
        """Since when the oldest job waits for a runner; None if none waits."""
        known = (self.since, self.missed_since if self.missed else None)
        return min((moment for moment in known if moment is not None), default=None)

    def wanted(self, flavor: Flavor) -> int:
        """Runners that a flavour is to have, before the machine's budget."""
        return min(flavor.maximum, max(0, flavor.min_idle + self.assigned + self.missed))

    def is_known(self, now: float) -> bool:
        """Whether a session has given an answer lately; one that is in the future says that the clock was set back."""
        return self.answered_at > 0 and abs(now - self.answered_at) < PATIENCE


def file_of(unit: str) -> Path:
    """The file of a unit such as ``github-runner/0``."""
    return LOCKS / f"demand.{unit.replace('/', '-')}.json"


def save(unit: str, found: Mapping[str, Demand]) -> None:
    """Write what is known of each flavour, whole or not at all; OSError where that is not possible."""
    document = {name: asdict(demand) for name, demand in found.items()}
    write_file(file_of(unit), json.dumps(document, indent=1), 0o600)


def load(unit: str) -> dict[str, Demand]:
    """What is known of each flavour; nothing where the file is missing or damaged."""
    try:
        return {_flavor(name): _demand(values) for name, values in json.loads(file_of(unit).read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def remove(unit: str) -> list[str]:
    """Remove the file of a unit; returns what was removed."""
    return remove_files(file_of(unit))


def _flavor(name: str) -> str:
    if not FLAVOR_NAME.fullmatch(name):
        raise ValueError("not a flavour's name")
    return name


def _demand(values: Any) -> Demand:
    assigned, missed = int(values["assigned"]), int(values["missed"])
    running = int(values.get("running", 0))
    since, missed_since = (None if (at := values.get(key)) is None else float(at) for key in ("since", "missed_since"))
    # An agent of an earlier version wrote another name.
    answered_at = float(values["answered_at"] if "answered_at" in values else values["heard"])
    counted = all(0 <= number <= MOST for number in (assigned, missed, running))
    if not (counted and all(0 <= moment <= LATEST for moment in (answered_at, since or 0.0, missed_since or 0.0))):
        raise ValueError("a number that cannot be")
    scale_set = values["scale_set"]
    return Demand(
        assigned,
        missed,
        since=since,
        answered_at=answered_at,
        scale_set=None if scale_set is None else int(scale_set),
        # As they are: they are compared with a set's.
        asked=tuple(str(label) for label in values.get("asked", ())),
        dropped=tuple(str(label) for label in values["dropped"]),
        problem=line(str(values["problem"]), TEXT_LIMIT),
        is_blocking=bool(values.get("is_blocking", False)),
        missed_since=missed_since,
        running=running,
    )
