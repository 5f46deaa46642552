"""The LXD profiles of runners: which are changed, and which are removed."""

from pathlib import Path
from typing import Any, cast

import pytest

from engine import profiles
from engine.client import LxdClient
from host import pool
from host.markers import SET_UP, Markers
from models import BaseImage, RunnerStorage
from naming import RESOURCES_KEY, base_image_key
from tests.support.fakes import state

# The key of the base image in version 1.0.
FORMER = "user.github-runner.base-image"
ROOT = {"type": "disk", "path": "/", "pool": "runner"}


def profile(config: dict[str, str] | None = None, users: int = 0, **devices: dict[str, str]) -> dict[str, Any]:
    """A profile with these devices, in use by so many instances."""
    used_by = [f"/1.0/instances/{number}" for number in range(users)]
    return {"description": "", "config": config or {}, "devices": devices, "used_by": used_by}


class ProfileLxd:
    """LXD with profiles and a pool in use; ``changed`` has each change."""

    def __init__(self, found: dict[str, dict[str, Any]]) -> None:
        self.found = {name: {**value, "name": name} for name, value in found.items()}
        self.changed: list[str] = []

    def find(self, *path: str) -> Any:
        if path[0] == "storage-pools":
            return {"status": "Created", "config": {}, "used_by": ["/1.0/instances/busy"]}
        return self.found.get(path[1])

    def get(self, *path: str, **_: Any) -> Any:
        return self.found[path[1]] if len(path) > 1 else list(self.found.values())

    def change(self, method: str, *path: str, json: Any = None) -> None:
        name = path[1] if len(path) > 1 else json["name"]
        self.changed.append(f"{method} {name}")
        if method == "DELETE":
            del self.found[name]
        else:
            self.found[name] = {**self.found.get(name, profile()), **json, "name": name}


@pytest.fixture
def lxd() -> ProfileLxd:
    made_here = {RESOURCES_KEY: "true"}
    return ProfileLxd(
        {
            "default": profile(eth0={"type": "nic"}, root=ROOT),
            "runner": profile(root=ROOT),
            "cpu-1-mem-1GiB-disk-1GiB": profile(made_here, root=ROOT),
            "cpu-2-mem-2GiB-disk-2GiB": profile(root={**ROOT, "size": "2GiB"}),
            "cpu-3-mem-3GiB-disk-3GiB": profile(made_here, users=1, root=ROOT),
            "operator": profile(root={**ROOT, "pool": "other"}),
        }
    )


def client(lxd: ProfileLxd) -> LxdClient:
    return cast(LxdClient, lxd)


@pytest.mark.parametrize("keep", ["cpu-1-mem-1GiB-disk-1GiB", None])
def test_unused_profiles_of_resources_are_removed(lxd: ProfileLxd, keep: str | None) -> None:
    """Those of the previous charm as well; a profile in use, today's and the operator's stay."""
    before = set(lxd.found)

    profiles.remove_unused_resources(client(lxd), keep=[keep] if keep else [])

    removed = {"cpu-1-mem-1GiB-disk-1GiB", "cpu-2-mem-2GiB-disk-2GiB"} - {keep}
    assert before - set(lxd.found) == removed


def test_the_pool_is_taken_out_of_the_charms_profiles(lxd: ProfileLxd) -> None:
    """LXD deletes no pool that a profile names; what an operator's profile names is the operator's."""
    profiles.release_pool(client(lxd))

    assert sorted(name for name, found in lxd.found.items() if "root" in found["devices"]) == ["default", "operator"]


def test_removal_leaves_profiles_of_others_and_those_in_use(lxd: ProfileLxd) -> None:
    """The previous charm's profile has no key of this charm, and is removed by a reconcile after the upgrade."""
    assert profiles.remove(client(lxd)) == ["runner", "cpu-1-mem-1GiB-disk-1GiB"]


def test_the_runner_profile_is_made_once_and_corrected() -> None:
    """It records the options that cannot change after deployment. Unchanged, it is not written."""
    lxd = ProfileLxd({})
    options = ("app", BaseImage.JAMMY, RunnerStorage.MEMORY)

    for _ in range(2):
        profiles.ensure_runner(client(lxd), *options)
    assert lxd.changed == ["POST runner"]
    lxd.found["runner"]["devices"] = {}
    assert not profiles.is_runner_intact(client(lxd), *options)
    profiles.ensure_runner(client(lxd), *options)

    assert lxd.changed == ["POST runner", "PUT runner"]
    assert profiles.is_runner_intact(client(lxd), *options)


def images(lxd: ProfileLxd) -> dict[str, str]:
    """The base images that the profile records, by the names that follow their key."""
    key = "user.github-runner.base-image."
    config = lxd.found["runner"]["config"]
    return {name.removeprefix(key): value for name, value in config.items() if name.startswith(key)}


def test_base_images_of_flavors_are_recorded_and_removed() -> None:
    """A changed set of flavours is written, and those of another unit do not make the profile a lost one."""
    lxd = ProfileLxd({})
    options = ("app", BaseImage.JAMMY, RunnerStorage.MEMORY)

    for _ in range(2):
        profiles.ensure_runner(client(lxd), *options, {"a": BaseImage.NOBLE})
    assert lxd.changed == ["POST runner"]
    assert images(lxd) == {"app": "jammy", "app.a": "noble"}
    assert profiles.is_runner_intact(client(lxd), *options)
    profiles.ensure_runner(client(lxd), *options, {"b": BaseImage.JAMMY})
    assert images(lxd) == {"app": "jammy", "app.b": "jammy"}
    profiles.ensure_runner(client(lxd), *options)
    assert images(lxd) == {"app": "jammy"}


def test_applications_of_one_machine_have_records_of_their_own() -> None:
    """Whichever writes, the records of the others stay, and each finds its own intact. One that leaves takes it."""
    lxd = ProfileLxd({})
    one = ("app", BaseImage.JAMMY, RunnerStorage.MEMORY)
    other = ("app-a", BaseImage.NOBLE, RunnerStorage.MEMORY)

    for _ in range(2):
        profiles.ensure_runner(client(lxd), *one, {"a": BaseImage.NOBLE}, {"app-a"})
        profiles.ensure_runner(client(lxd), *other, {"a": BaseImage.RESOLUTE}, {"app"})
    assert lxd.changed == ["POST runner", "PUT runner"]
    assert images(lxd) == {"app": "jammy", "app.a": "noble", "app-a": "noble", "app-a.a": "resolute"}
    assert profiles.is_runner_intact(client(lxd), *one)
    assert profiles.is_runner_intact(client(lxd), *other)

    for _ in range(2):
        profiles.remove_record(client(lxd), "app")
    assert images(lxd) == {"app-a": "noble", "app-a.a": "resolute"}
    assert lxd.changed == ["POST runner", "PUT runner", "PUT runner"]
    assert not profiles.is_runner_intact(client(lxd), *one)


def test_the_record_of_version_1_becomes_the_applications() -> None:
    """It had one key for the machine."""
    lxd = ProfileLxd({"runner": profile({"user.github-runner.base-image": "jammy"})})

    profiles.ensure_runner(client(lxd), "app", BaseImage.JAMMY, RunnerStorage.MEMORY)

    assert images(lxd) == {"app": "jammy"}
    assert "user.github-runner.base-image" not in lxd.found["runner"]["config"]


def test_the_record_of_an_application_without_a_unit_is_removed() -> None:
    """One that was removed by force has left it; the next set-up of another one removes it."""
    lxd = ProfileLxd({})
    profiles.ensure_runner(client(lxd), "gone", BaseImage.JAMMY, RunnerStorage.MEMORY, {"a": BaseImage.NOBLE})

    profiles.ensure_runner(client(lxd), "app", BaseImage.NOBLE, RunnerStorage.MEMORY, {}, {"new"})

    assert images(lxd) == {"app": "noble"}


@pytest.mark.parametrize("there", [False, True])
def test_the_set_up_knows_which_applications_have_a_unit(marker_root: Path, there: bool) -> None:
    """By its folder of markers and its agent of Juju, which is gone after a removal by force."""
    lxd = ProfileLxd({})
    profiles.ensure_runner(client(lxd), "other", BaseImage.NOBLE, RunnerStorage.MEMORY)
    Markers("other/3").note(SET_UP)
    (marker_root / "agents" / "unit-other-3" if there else marker_root).mkdir(parents=True, exist_ok=True)

    pool.ensure(client(lxd), cast(Any, None), state(), "app/0")

    assert images(lxd) == {"app": "jammy", **({"other": "noble"} if there else {})}


def test_version_1_finds_its_record_until_it_is_upgraded() -> None:
    """Another application with version 1.0 refuses a changed base image by it, and writes no other record."""
    lxd = ProfileLxd({"runner": profile({FORMER: "jammy"})})
    options = (BaseImage.JAMMY, RunnerStorage.MEMORY)

    profiles.ensure_runner(client(lxd), "first", *options, {}, {"second"}, {"second"})
    assert lxd.found["runner"]["config"][FORMER] == "jammy"
    # As version 1.0 does in each set-up. The unit of the first application does not repeat its own for that.
    del lxd.found["runner"]["config"][base_image_key("first")]
    assert profiles.is_runner_intact(client(lxd), "first", *options)
    assert not profiles.is_runner_intact(client(lxd), "first", BaseImage.NOBLE, RunnerStorage.MEMORY)

    profiles.ensure_runner(client(lxd), "second", *options, {}, {"first"}, {"first"})
    assert images(lxd) == {"second": "jammy"}
    assert lxd.found["runner"]["config"][FORMER] == "jammy"
    profiles.ensure_runner(client(lxd), "first", *options, {}, {"second"}, {"second"})
    assert images(lxd) == {"first": "jammy", "second": "jammy"}
    assert FORMER not in lxd.found["runner"]["config"]


def test_the_record_of_version_1_blocks_no_new_application() -> None:
    """One that is not set up yet has not used it: with another base image it would be refused by it for ever."""
    lxd = ProfileLxd({"runner": profile({FORMER: "jammy"})})

    profiles.ensure_runner(client(lxd), "app", BaseImage.JAMMY, RunnerStorage.MEMORY, {}, {"new"}, set())

    assert FORMER not in lxd.found["runner"]["config"]


def test_the_network_card_is_added_once_and_removed(lxd: ProfileLxd) -> None:
    """Other devices of the profile default stay, as does a network card that is not this charm's."""
    profiles.remove_network_card(client(lxd))
    assert lxd.changed == []

    for _ in range(2):
        profiles.ensure_network_card(client(lxd))
    assert lxd.changed == ["PATCH default"]
    assert lxd.found["default"]["devices"] == {"eth0": profiles.NETWORK_CARD, "root": ROOT}

    profiles.remove_network_card(client(lxd))
    assert lxd.found["default"]["devices"] == {"root": ROOT}
