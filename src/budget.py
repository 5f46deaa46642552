"""Which runners fit on the machine: goals per flavour, and what may be created beside what is there. No I/O.

The order is first come, first served: flavours with waiting jobs by the age of the oldest, then the others in the order
of the option, and runners for no job last. Every function gives the same answer for the same values.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from models import VirtualMachineResources, gibibytes, size_in_bytes

NAMES = ("memory", "CPUs", "storage")
Amounts = tuple[float, float, float]
"""Of each of ``NAMES``: bytes, a number of CPUs, bytes."""


@dataclass(frozen=True)
class Capacity:
    """What the runners of a machine may use. ``storage`` in bytes is None where nothing limits it."""

    memory: int
    cpus: float
    storage: int | None = None
    disks_in_memory: bool = False
    """Whether the runners' disks lie in memory: then they count against it as well."""

    def size(self, resources: VirtualMachineResources) -> Amounts:
        """What an instance takes when it uses all that it has."""
        disk = size_in_bytes(resources.disk)
        memory = size_in_bytes(resources.memory) + (disk if self.disks_in_memory else 0)
        return memory, resources.cpu, 0 if self.storage is None else disk

    def without(self, existing: Iterable[VirtualMachineResources]) -> "Capacity":
        """What is left beside instances that stay."""
        memory, cpus, storage = self.room(existing)
        return replace(self, memory=int(memory), cpus=cpus, storage=None if self.storage is None else int(storage))

    def room(self, existing: Iterable[VirtualMachineResources] = ()) -> Amounts:
        """What is left beside instances; below 0 where they are too many."""
        left: Amounts = (self.memory, self.cpus, 0 if self.storage is None else self.storage)
        for resources in existing:
            left = _less(left, self.size(resources))
        return left


@dataclass(frozen=True)
class Ask:
    """A flavour's wish: ``number`` runners in all, ``min_idle`` of them for no job.

    ``since`` is the UNIX time since when its oldest job without a runner waits; None where none waits.
    """

    flavor: str
    resources: VirtualMachineResources
    number: int
    since: float | None = None
    min_idle: int = 0
    last: int = 0
    """Of the runners, those that have room only after all others, because a creation has just failed."""


@dataclass(frozen=True)
class Wait:
    """Runners that wait for one of ``NAMES``: what each takes of it, and what is free."""

    flavor: str
    number: int
    what: str
    each: float
    free: float

    def __str__(self) -> str:
        """For the status, such as ``2 of large wait for memory (8GiB each, 3.5GiB free)``."""
        return f"{self.number} of {self.flavor} wait{'s' * (self.number == 1)} for {self.what} ({self.room})"

    @property
    def room(self) -> str:
        """What each takes and what is free, such as ``8GiB each, 3.5GiB free``."""
        if self.what == "CPUs":
            return f"{self.each:g} each, {self.free:g} free"
        return f"{gibibytes(int(self.each))} each, {gibibytes(int(self.free))} free"


Answer = tuple[dict[str, int], list[Wait]]
"""Numbers by flavour, and what waits."""


def goals(capacity: Capacity, asks: Sequence[Ask]) -> Answer:
    """How many runners of each flavour there are to be: what fits on the machine if it is empty."""
    return _share(capacity, capacity.room(), asks, _parts(asks), reserve=False)


def grants(
    capacity: Capacity,
    existing: Iterable[VirtualMachineResources],
    asks: Sequence[Ask],
    goals: Mapping[str, int],
    missing: Mapping[str, int],
) -> Answer:
    """How many of the ``missing`` runners of each flavour may be created now, beside all instances that exist.

    A runner that does not fit keeps its size from those that come later: smaller ones would else take each room that
    becomes free, and it would wait for ever. ``goals`` are what the function ``goals`` gives.
    """
    # What is there serves jobs first, so that what is missing is first of all the part for no job.
    idle = {ask.flavor: max(0, goals[ask.flavor] - max(0, ask.number - ask.min_idle)) for ask in asks}
    lacking = [(ask, missing.get(ask.flavor, 0)) for ask in asks]
    parts = _parts([_lacking(ask, number, idle[ask.flavor]) for ask, number in lacking])
    return _share(capacity, capacity.room(existing), asks, parts, reserve=True)


def _lacking(ask: Ask, number: int, idle: int) -> Ask:
    return replace(ask, number=number, min_idle=idle, last=number if ask.last else 0)


def fitting(capacity: Capacity, existing: Iterable[VirtualMachineResources], resources: VirtualMachineResources) -> int:
    """How many instances with these resources fit beside those that exist."""
    pairs = zip(capacity.size(resources), capacity.room(existing), strict=True)
    return max(0, min(int(left // one) for one, left in pairs if one))


def _parts(asks: Sequence[Ask]) -> list[tuple[Ask, int]]:
    """The asks in their order, each with a number: first the parts for jobs, then those for no job."""
    waiting = sorted((ask for ask in asks if ask.since is not None), key=lambda ask: ask.since or 0.0)
    others = [ask for ask in asks if ask.since is None]
    # Of those that are not the last, as many as there are for jobs.
    jobs = {ask.flavor: max(0, min(ask.number - ask.min_idle, ask.number - ask.last)) for ask in asks}
    first = [(ask, jobs[ask.flavor]) for ask in (*waiting, *others)]
    idle = [(ask, ask.number - ask.last - jobs[ask.flavor]) for ask in asks]
    return [*first, *idle, *((ask, ask.last) for ask in (*waiting, *others))]


def _share(
    capacity: Capacity, room: Amounts, asks: Sequence[Ask], parts: Iterable[tuple[Ask, int]], *, reserve: bool
) -> Answer:
    numbers = {ask.flavor: 0 for ask in asks}
    waits: dict[str, Wait] = {}
    for ask, number in parts:
        size = capacity.size(ask.resources)
        made = 0
        while made < number and _fits(size, room):
            made, room = made + 1, _less(room, size)
        numbers[ask.flavor] += made
        if made < number:
            before = waits[ask.flavor].number if ask.flavor in waits else 0
            waits[ask.flavor] = _wait(ask.flavor, before + number - made, size, room)
            room = _less(room, size) if reserve else room
    return numbers, list(waits.values())


def _wait(flavor: str, number: int, size: Amounts, room: Amounts) -> Wait:
    """For the first of memory, CPUs and storage that does not suffice."""
    lacking = next(index for index in range(len(NAMES)) if size[index] > room[index])
    return Wait(flavor, number, NAMES[lacking], size[lacking], max(0.0, room[lacking]))


def _fits(size: Amounts, room: Amounts) -> bool:
    return all(one <= left for one, left in zip(size, room, strict=True))


def _less(room: Amounts, size: Amounts) -> Amounts:
    return room[0] - size[0], room[1] - size[1], room[2] - size[2]
