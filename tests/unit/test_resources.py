"""Options against the machine: what one virtual machine and all of them together may use."""

from typing import Any, cast

import pytest

from engine.client import LxdClient
from errors import ConfigurationError
from host import image, pool, resources
from models import CharmState, RunnerStorage, VirtualMachineResources
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
    ("wanted", "disk", "faults"),
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
    wanted: tuple[int, str, str], disk: int | None, faults: list[str]
) -> None:
    """One virtual machine is not larger than the machine, and its disk is not smaller than the image."""
    if not faults:
        check(wanting(*wanted), disk)
        return
    with pytest.raises(ConfigurationError) as refused:
        check(wanting(*wanted), disk)
    assert all(found.startswith(fault) for found, fault in zip(refused.value.faults, faults, strict=True))


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

    assert pool._memory_size(wanting(1, "1GiB", "2GiB", number)) == expected
