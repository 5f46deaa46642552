"""The runners of all flavours of a unit: what a reconcile aims for, decided without I/O."""

from dataclasses import dataclass

from gh.registration import Registration
from models import RunnerSpec


@dataclass(frozen=True)
class Wanted:
    """The runners of one flavour that a reconcile aims for.

    ``number`` is None where it is not known: what is there is kept, and none is created. ``since`` is the UNIX time
    since when the oldest job without a runner waits, None where none waits. ``min_idle`` of the runners are for no job.
    """

    spec: RunnerSpec
    number: int | None
    since: float | None = None
    min_idle: int = 0
    registration: Registration | None = None
    """How new runners register, where it is not the unit's own way."""
    scale_set: int | None = None
    """The runner scale set in which new runners register. Idle runners of another one, or of none, are outdated."""
    any_registration: bool = False
    """Whether runners of any or no scale set count as current ones."""
