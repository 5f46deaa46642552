"""What fits on a machine: goals of flavours, creations beside what is there, and that nobody waits for ever."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budget import Ask, Capacity, fitting, goals, grants
from host import capacity, pool, resources
from models import BaseImage, Flavor, RunnerStorage, Scaling, VirtualMachineResources
from tests.support.fakes import RESOURCES, state

GIB = 1 << 30
SMALL = VirtualMachineResources(1, "1GiB", "2GiB")
LARGE = VirtualMachineResources(2, "4GiB", "8GiB")
ROOM = Capacity(8 * GIB, 8)


def small(number: int, since: float | None = None, min_idle: int = 0) -> Ask:
    return Ask("small", SMALL, number, since, min_idle)


def large(number: int, since: float | None = None, min_idle: int = 0) -> Ask:
    return Ask("large", LARGE, number, since, min_idle)


@pytest.mark.parametrize(
    ("asks", "expected"),
    [
        pytest.param([small(2), large(1)], {"small": 2, "large": 1}, id="all fits"),
        pytest.param([small(6), large(2)], {"small": 6, "large": 0}, id="the order of the option"),
        pytest.param([small(6), large(2, 5.0)], {"small": 0, "large": 2}, id="jobs wait before none does"),
        pytest.param([small(6, 9.0), large(1, 5.0)], {"small": 4, "large": 1}, id="the oldest job first"),
        pytest.param([small(6, min_idle=6), large(2)], {"small": 0, "large": 2}, id="runners for no job last"),
        pytest.param([large(3), small(5)], {"large": 2, "small": 0}, id="what does not fit is left out"),
        pytest.param([small(3, min_idle=9)], {"small": 3}, id="more for no job than in all"),
        pytest.param([], {}, id="no flavour"),
        pytest.param(
            [replace(large(2, 5.0), last=1), small(6, 9.0)], {"large": 1, "small": 4}, id="what cannot be made is last"
        ),
        pytest.param(
            [replace(small(6, 5.0, min_idle=3), last=3), large(2, 9.0)],
            {"small": 4, "large": 1},
            id="what is there is for jobs first",
        ),
        pytest.param(
            [replace(large(2, 5.0), last=2), small(3, min_idle=3)],
            {"large": 1, "small": 3},
            id="after those for no job",
        ),
    ],
)
def test_goals(asks: list[Ask], expected: dict[str, int]) -> None:
    """First come, first served; then the option's order; runners for no job last."""
    assert goals(ROOM, asks)[0] == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Capacity(8 * GIB, 100, 100 * GIB), "1 of large waits for memory (4GiB each, 0GiB free)"),
        (Capacity(100 * GIB, 5, 100 * GIB), "1 of large waits for CPUs (2 each, 1 free)"),
        (Capacity(100 * GIB, 4, 100 * GIB), "1 of large waits for CPUs (2 each, 0 free)"),
        (Capacity(100 * GIB, 100, 20 * GIB), "1 of large waits for storage (8GiB each, 4GiB free)"),
        (Capacity(25 * GIB, 100, disks_in_memory=True), "1 of large waits for memory (12GiB each, 1GiB free)"),
    ],
)
def test_what_is_waited_for_is_named(limits: Capacity, expected: str) -> None:
    """Memory, CPUs or storage, with what a runner takes of it and what is left; disks in memory count there."""
    assert [str(wait) for wait in goals(limits, [large(3)])[1]] == [expected]


def test_free_room_is_not_negative() -> None:
    """More may be there than fits, such as after a larger memory-reserve."""
    [wait] = grants(ROOM, [LARGE] * 3, [small(1)], {"small": 1}, {"small": 1})[1]

    assert str(wait) == "1 of small waits for memory (1GiB each, 0GiB free)"


def test_what_does_not_fit_keeps_its_room() -> None:
    """A large runner waits for busy small ones; another small one would take the room that becomes free."""
    asks = [large(1, 5.0), small(4, 9.0)]
    there = [SMALL] * 5

    numbers, waits = grants(ROOM, there, asks, {"large": 1, "small": 4}, {"large": 1, "small": 3})

    assert numbers == {"large": 0, "small": 0}
    assert [wait.flavor for wait in waits] == ["large", "small"]


def test_a_runner_for_no_job_is_created_after_those_for_jobs() -> None:
    """What is there serves jobs: what a flavour lacks is its part for no job, and gives way."""
    asks = [small(5, 1.0, min_idle=2), large(1)]
    aims = {"small": 5, "large": 1}

    assert grants(Capacity(8 * GIB, 99), [SMALL] * 3, asks, aims, {"small": 2, "large": 1})[0] == {
        "small": 1,
        "large": 1,
    }


SIZES = st.builds(
    lambda cpu, memory, disk: VirtualMachineResources(cpu, f"{memory}GiB", f"{disk}GiB"),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 6),
)
ASKS = st.lists(
    st.tuples(SIZES, st.integers(0, 6), st.none() | st.floats(0, 100), st.integers(0, 6), st.integers(0, 6)),
    min_size=1,
    max_size=4,
).map(lambda items: [Ask(f"f{index}", *item[:4], last=min(item[1], item[4])) for index, item in enumerate(items)])
LIMITS = st.builds(
    Capacity,
    st.integers(0, 24).map(lambda size: size * GIB),
    st.floats(0, 16),
    st.none() | st.integers(0, 24).map(lambda size: size * GIB),
    st.booleans(),
)


@given(LIMITS, ASKS, st.lists(SIZES, max_size=6))
def test_nothing_is_created_above_the_budget(
    limits: Capacity, asks: list[Ask], there: list[VirtualMachineResources]
) -> None:
    """Whatever exists: with creations all is within the budget, or nothing is created."""
    aims, _ = goals(limits, asks)
    numbers, _ = grants(limits, there, asks, aims, aims)

    made = [ask.resources for ask in asks for _ in range(numbers[ask.flavor])]
    assert not made or min(limits.room([*there, *made])) >= 0
    assert min((*limits.room([ask.resources for ask in asks for _ in range(aims[ask.flavor])]), 0)) >= 0


def test_a_flavour_whose_creation_fails_keeps_no_room_from_others() -> None:
    """Its job may be the oldest: what it lacks is offered to others first, and what is left over is its own."""
    asks = [replace(large(1, 1.0), last=1), small(2, 2.0)]
    aims = {"large": 1, "small": 2}
    there = [SMALL] * 3

    assert grants(Capacity(5 * GIB, 99), there, asks, aims, aims)[0] == {"large": 0, "small": 2}
    assert grants(Capacity(9 * GIB, 99), there, asks, aims, aims)[0] == {"large": 1, "small": 2}


@given(LIMITS, ASKS)
def test_all_goals_fit_together(limits: Capacity, asks: list[Ask]) -> None:
    """On the empty machine every goal is created at once, the same for the same wishes, and never more than wanted."""
    aims, waits = goals(limits, asks)

    assert goals(limits, asks) == (aims, waits)
    assert grants(limits, [], asks, aims, aims) == (aims, [])
    assert {ask.flavor: aims[ask.flavor] for ask in asks if aims[ask.flavor] > ask.number} == {}
    waiting = {wait.flavor: wait.number for wait in waits}
    assert all(aims[ask.flavor] + waiting.get(ask.flavor, 0) == ask.number for ask in asks)


@dataclass
class Line:
    """A machine on which each runner has one job, and the jobs of one flavour each that wait for one."""

    now: float = 0.0
    waiting: list[tuple[float, str]] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)

    def step(self, ended: int) -> None:
        """Jobs end, then runners are created for those that wait, each of which takes its oldest job."""
        del self.busy[:ended]
        sizes = {"small": SMALL, "large": LARGE}
        asks = []
        for flavor, size in sizes.items():
            since = min((time for time, name in self.waiting if name == flavor), default=None)
            number = self.busy.count(flavor) + sum(name == flavor for _, name in self.waiting)
            asks.append(Ask(flavor, size, number, since))
        aims, _ = goals(ROOM, asks)
        missing = {flavor: max(0, aims[flavor] - self.busy.count(flavor)) for flavor in sizes}
        for flavor, number in grants(ROOM, [sizes[name] for name in self.busy], asks, aims, missing)[0].items():
            for job in sorted(job for job in self.waiting if job[1] == flavor)[:number]:
                self.waiting.remove(job)
                self.busy.append(flavor)
        assert min(ROOM.room(sizes[name] for name in self.busy)) >= 0
        self.now += 1


@given(st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_a_stream_of_small_jobs_does_not_starve_a_large_one(arrivals: list[int]) -> None:
    """A large job starts once the runners that are there have ended, although small jobs keep coming."""
    line = Line(waiting=[(0.0, "small")] * 12)
    line.step(0)
    line.waiting.append((0.5, "large"))
    for number in arrivals:
        line.waiting += [(line.now, "small")] * number
        line.step(ended=1)
    for _ in range(12):
        line.step(ended=1)

    assert (0.5, "large") not in line.waiting


def test_the_machine_less_the_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory without memory-reserve, CPUs times cpu-overcommit, and the storage without what others have taken."""
    monkeypatch.setattr(resources, "memory_bytes", lambda: 16 * GIB)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(pool, "JUJU_STORAGE", tmp_path)
    (tmp_path / pool.VOLUME_NAME.format("a")).write_bytes(b"x" * (1 << 20))
    blocks = SimpleNamespace(f_frsize=4096, f_blocks=(30 * GIB) // 4096, f_bfree=(20 * GIB) // 4096)
    monkeypatch.setattr("host.pool.os.statvfs", lambda _: blocks)
    flavor = Flavor("small", RESOURCES, state().base_image, (), 1, 1)
    found = capacity.of_runners(state(given_flavors=(flavor,), memory_reserve=3 * GIB, cpu_overcommit=1.5))

    assert found is not None
    assert (found.memory, found.cpus, found.disks_in_memory) == (13 * GIB, 6.0, False)
    assert found.storage is not None
    assert 20 * GIB + (1 << 20) <= found.storage < 20 * GIB + (2 << 20)
    (tmp_path / pool.DIR_POOL).mkdir()
    folder = capacity.of_runners(state(given_flavors=(flavor,)))
    assert folder is not None
    assert folder.storage == 30 * GIB
    demand = state(scaling=Scaling.DEMAND, runner_storage=RunnerStorage.MEMORY, memory_reserve=99 * GIB)
    assert capacity.of_runners(demand) == Capacity(0, 8.0, None, disks_in_memory=True)


@pytest.mark.parametrize(("test_mode", "images"), [(False, 16 * GIB), (True, 0)])
def test_images_in_memory_are_not_the_runners(monkeypatch: pytest.MonkeyPatch, test_mode: bool, images: int) -> None:
    """Each base image has a copy in the pool, as large as its disk; runners would else use up the machine's memory."""
    monkeypatch.setattr(resources, "memory_bytes", lambda: 64 * GIB)
    flavors = tuple(Flavor(item.value, RESOURCES, item, (), 1, 1) for item in (BaseImage.JAMMY, BaseImage.NOBLE))
    memory = state(given_flavors=flavors, runner_storage=RunnerStorage.MEMORY, test_mode=test_mode)

    found = capacity.of_runners(memory)

    assert found is not None
    assert found.memory == 62 * GIB - images


def test_without_flavours_nothing_is_limited() -> None:
    """A fixed number of one size is only told about: today's units keep their runners."""
    assert capacity.of_runners(state()) is None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Capacity(100 * GIB, 1000), 24),
        (Capacity(100 * GIB, 9), 3),
        (Capacity(9 * GIB, 100), 1),
        (Capacity(100 * GIB, 100, 20 * GIB), 2),
        (Capacity(2 * GIB, 1), 0),
    ],
)
def test_what_fits_beside_what_exists(limits: Capacity, expected: int) -> None:
    """Memory, CPUs and storage each limit it; where too much exists, none fits."""
    assert fitting(limits, [SMALL, SMALL], LARGE) == expected
