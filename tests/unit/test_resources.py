"""Options against the machine: what one virtual machine and all of them together may use."""

from dataclasses import replace
from typing import Any, cast

import pytest

from engine.client import LxdClient
from errors import ConfigurationError
from host import image, pool, resources
from models import BaseImage, CharmState, Flavor, RunnerStorage, Scaling, VirtualMachineResources
from tests.support.fakes import state

GIB = 1 << 30


class ImageOnly:
    """An LXD that knows at most one image, whose disk has a size."""

    def __init__(self, disk: int | None = None) -> None:
        self.disk = disk

    def find(self, *path: str) -> Any:
        if path[:2] == ("images", "aliases"):
            return {"target": "new"} if self.disk else None
        properties = {image.DISK_PROPERTY: str(self.disk), image.SOURCE_PROPERTY: str(state().image_source)}
        return {"properties": properties} if path[0] == "images" else None


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 4 CPUs and 16 GiB."""
    monkeypatch.setattr("host.resources.os.cpu_count", lambda: 4)
    monkeypatch.setattr("host.resources.os.sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 16 * GIB // 4096)


def wanting(cpu: int, memory: str, disk: str, number: int = 1, **changes: Any) -> CharmState:
    wanted = VirtualMachineResources(cpu, memory, disk)
    return state(**{"resources": wanted, "virtual_machines": number, "test_mode": False, **changes})


def check(wanted: CharmState, disk: int | None = None) -> None:
    resources.check(cast(LxdClient, ImageOnly(disk)), wanted)


@pytest.mark.parametrize(
    ("wanted", "disk", "errors"),
    [
        ((4, "16GiB", "8GiB"), None, []),
        ((5, "16GiB", "8GiB"), None, ["vm-cpu: 5 exceeds the 4 CPUs of this machine"]),
        ((4, "17GiB", "8GiB"), None, ["vm-memory: 17GiB exceeds the 16GiB of this machine"]),
        ((4, "16GiB", "7GiB"), None, ["vm-disk: 7GiB is smaller than the image; use 8GiB or more"]),
        ((4, "16GiB", "9GiB"), 10 * GIB, ["vm-disk: 9GiB is smaller than the image; use 10GiB or more"]),
        ((5, "17GiB", "1GiB"), None, ["vm-cpu: 5 ", "vm-memory: 17GiB ", "vm-disk: 1GiB "]),
    ],
)
def test_what_lxd_would_refuse_is_refused_first(
    wanted: tuple[int, str, str], disk: int | None, errors: list[str]
) -> None:
    """One virtual machine is not larger than the machine, and its disk is not smaller than the image."""
    if not errors:
        check(wanting(*wanted), disk)
        return
    with pytest.raises(ConfigurationError) as refused:
        check(wanting(*wanted), disk)
    assert all(found.startswith(error) for found, error in zip(refused.value.invalid, errors, strict=True))


def test_containers_and_no_runners_are_not_limited() -> None:
    """LXD accepts any limit of a container, and without a runner there is nothing to refuse."""
    check(wanting(64, "64GiB", "1GiB", test_mode=True))
    check(wanting(64, "64GiB", "1GiB", number=0))
    assert resources.overcommitment(wanting(64, "64GiB", "1GiB", test_mode=True)) == []


@pytest.mark.parametrize(
    ("wanted", "changes", "expected"),
    [
        ((2, "8GiB", "10GiB", 2), {}, []),
        ((2, "2GiB", "10GiB", 3), {}, ["3 × vm-cpu 2 = 6 exceeds the 4 CPUs of this machine"]),
        ((1, "6GiB", "10GiB", 3), {}, ["3 × vm-memory 6GiB = 18GiB exceeds the 16GiB of this machine's memory"]),
        (
            (1, "7GiB", "10GiB", 1),
            {"runner_storage": RunnerStorage.MEMORY},
            ["1 × vm-memory 7GiB and vm-disk 10GiB = 17GiB exceeds the 16GiB of this machine's memory"],
        ),
    ],
)
def test_more_in_total_is_a_notice(wanted: Any, changes: dict[str, Any], expected: list[str]) -> None:
    """Virtual machines that together may use more than the machine has are reported with both numbers."""
    assert resources.overcommitment(wanting(*wanted, **changes)) == expected


@pytest.mark.parametrize(("number", "expected"), [(1, 6 * GIB + pool.CONFIG_VOLUME), (4, 8 * GIB)])
def test_memory_pool_has_room_for_more_than_disks(monkeypatch: pytest.MonkeyPatch, number: int, expected: int) -> None:
    """The image, a builder and LXD's own volumes fit beside full disks, as far as the machine's memory allows."""
    monkeypatch.setattr(pool, "DISK", 2 * GIB)
    monkeypatch.setattr(resources, "memory_bytes", lambda: 8 * GIB)

    assert pool.memory_size(wanting(1, "1GiB", "2GiB", number)) == expected


def flavor(name: str, cpu: int = 1, memory: str = "1GiB", disk: str = "10GiB", number: int = 1) -> Flavor:
    return Flavor(name, VirtualMachineResources(cpu, memory, disk), BaseImage.JAMMY, (), number, number)


def budgeted(*flavors: Flavor, **changes: Any) -> CharmState:
    return wanting(1, "1GiB", "10GiB", given_flavors=flavors, **changes)


def refused(wanted: CharmState) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        check(wanted)
    return [error.partition("; ")[0] for error in caught.value.invalid]


CASES: list[tuple[Flavor, dict[str, Any], str]] = [
    (flavor("a", cpu=5), {}, "vm-cpu: 5 exceeds the 4 CPUs of this machine"),
    (
        flavor("a", cpu=3),
        {"cpu_overcommit": 0.5},
        "vm-cpu: 3 exceeds the 4 CPUs of this machine × cpu-overcommit 0.5",
    ),
    (flavor("a", cpu=9), {"test_mode": True}, "vm-cpu: 9 exceeds the 4 CPUs of this machine × cpu-overcommit 2"),
    (flavor("a", memory="15GiB"), {}, "vm-memory: 15GiB exceeds the 14GiB of this machine less memory-reserve 2GiB"),
    (
        flavor("a", memory="5GiB"),
        {"runner_storage": RunnerStorage.MEMORY},
        "vm-memory: 5GiB and vm-disk 10GiB = 15GiB exceeds the 6GiB of this machine less memory-reserve 2GiB and 8GiB "
        "for images",
    ),
    (flavor("a", disk="7GiB"), {}, "vm-disk: 7GiB is smaller than the image"),
]


@pytest.mark.parametrize(("wanted", "changes", "expected"), CASES)
def test_flavor_of_which_not_one_runner_fits(wanted: Flavor, changes: dict[str, Any], expected: str) -> None:
    """It is named with its size and the limit, unless it has no runners; other flavours are checked as well."""
    other = flavor("b", memory="99GiB")
    assert refused(budgeted(wanted, other, **changes))[0] == f"flavors: a: {expected}"
    assert len(refused(budgeted(wanted, other, **changes))) == 2
    closed = Flavor("a", wanted.resources, BaseImage.JAMMY, (), 0, 1)
    check(budgeted(closed, **changes))


def test_all_runners_of_flavors_together_may_be_more_than_fits() -> None:
    """What does not fit at a time waits: the total is neither an error nor a notice."""
    many = flavor("a", 4, "14GiB", number=50)
    wanted = replace(budgeted(many, flavor("b", number=50)), resources=many.resources, virtual_machines=50)

    check(wanted)
    assert resources.overcommitment(wanted) == []


def test_in_demand_mode_one_runner_must_fit() -> None:
    """Without flavours the error has the name of the option alone."""
    assert refused(wanting(1, "15GiB", "10GiB", 9, scaling=Scaling.DEMAND))[0].startswith("vm-memory: 15GiB exceeds")
    check(wanting(4, "14GiB", "10GiB", 9, scaling=Scaling.DEMAND))


def test_reserve_leaves_something_to_runners() -> None:
    """A reserve of all memory is refused where it counts."""
    message = "memory-reserve: 16GiB leaves nothing of the 16GiB of this machine"

    assert refused(budgeted(flavor("a"), memory_reserve=16 * GIB)) == [message]
    other = "flavors: a: vm-cpu: 5 exceeds the 4 CPUs of this machine"
    assert refused(budgeted(flavor("a", cpu=5), memory_reserve=16 * GIB)) == [message, other]
    check(wanting(1, "1GiB", "10GiB", memory_reserve=16 * GIB))


def test_memory_pool_has_room_for_all_flavors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flavour's disks count by their number, and each base image once."""
    monkeypatch.setattr(pool, "DISK", 2 * GIB)
    monkeypatch.setattr(resources, "memory_bytes", lambda: 99 * GIB)
    noble = Flavor("b", VirtualMachineResources(1, "1GiB", "3GiB"), BaseImage.NOBLE, (), 1, 9)

    assert pool.memory_size(budgeted(flavor("a", number=2), noble)) == 29 * GIB + 3 * pool.CONFIG_VOLUME
