"""The LXD profiles of runners.

``default`` gives an instance its network card, ``runner`` the storage pool, and ``cpu-…-mem-…-disk-…`` its resources.
"""

import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from engine.client import LxdClient
from errors import LxdError
from models import RESOURCES_NAME, BaseImage, RunnerStorage, VirtualMachineResources
from naming import BASE_IMAGE_KEY, RESOURCES_KEY, STORAGE_KEY, base_image_key

RUNNER = "runner"
POOL = "runner"
BRIDGE = "lxdbr0"
NETWORK_CARD = {
    "type": "nic",
    "network": BRIDGE,
    "name": "eth0",
    "security.ipv4_filtering": "true",
    "security.ipv6_filtering": "true",
    "security.mac_filtering": "true",
    "security.port_isolation": "true",
}
# Runners are created side by side, and LXD refuses to change a profile while it creates an instance of it.
RESOURCES_LOCK = threading.Lock()
# To change the network card of running instances, a second apart.
ATTEMPTS = 5


def ensure_resources(lxd: LxdClient, resources: VirtualMachineResources, *, container: bool) -> None:
    """Create or correct the profile that gives an instance its resources."""
    profile = _resources(lxd, resources, container)
    with RESOURCES_LOCK:
        found = lxd.find("profiles", resources.profile)
        if found is None:
            try:
                lxd.change("POST", "profiles", json={"name": resources.profile, **profile})
            except LxdError:
                # Another unit of this machine may have created it since.
                if lxd.find("profiles", resources.profile) is None:
                    raise
        elif found["devices"] != profile["devices"]:
            lxd.change("PUT", "profiles", resources.profile, json=profile)


def _resources(lxd: LxdClient, resources: VirtualMachineResources, container: bool) -> dict[str, Any]:
    root = {"type": "disk", "path": "/", "pool": POOL, "size": resources.disk}
    if not container and lxd.has_extension("disk_io_cache"):
        # Lets the disk image lie on a tmpfs. Containers refuse it, and LXD 5.0 does not know it.
        root["io.cache"] = "unsafe"
    return {
        "description": "Resources of GitHub runners",
        "config": {"limits.cpu": str(resources.cpu), "limits.memory": resources.memory, RESOURCES_KEY: "true"},
        "devices": {"root": root},
    }


def remove_unused_resources(lxd: LxdClient, keep: Collection[str]) -> None:
    """Delete the profiles of resources that no instance uses, but for those in ``keep``; also the previous charm's."""
    for profile in lxd.get("profiles", recursion=1):
        if _has_resources(profile) and not profile["used_by"] and profile["name"] not in keep:
            lxd.change("DELETE", "profiles", profile["name"])


def _has_resources(profile: Mapping[str, Any]) -> bool:
    return RESOURCES_KEY in profile["config"] or RESOURCES_NAME.fullmatch(profile["name"]) is not None


def ensure_runner(
    lxd: LxdClient,
    app: str,
    base_image: BaseImage,
    storage: RunnerStorage,
    flavors: Mapping[str, BaseImage] | None = None,
    others: Collection[str] = (),
    set_up: Collection[str] = (),
) -> None:
    """Create or correct the profile ``runner``; ``flavors`` has the base image of each one by its name.

    What it has of ``others`` stays: the other applications that have a unit on this machine. ``set_up`` are those of
    them that completed a set-up.
    """
    profile = _runner(app, base_image, storage, flavors or {})
    found = lxd.find("profiles", RUNNER)
    if found is None:
        lxd.change("POST", "profiles", json={"name": RUNNER, **profile})
        return
    profile["config"] |= _of_others(found, others, set_up)
    if not _is_equal(found, profile):
        lxd.change("PUT", "profiles", RUNNER, json=profile)


def is_runner_intact(lxd: LxdClient, app: str, base_image: BaseImage, storage: RunnerStorage) -> bool:
    """Whether LXD has the profile ``runner`` as it should be.

    The flavours do not count: another unit of the application on this machine may have written its own.
    """
    found = lxd.find("profiles", RUNNER)
    if found is None:
        return False
    wanted = _runner(app, base_image, storage, {})
    own, former = base_image_key(app), found["config"].get(BASE_IMAGE_KEY)
    config = {key: value for key, value in found["config"].items() if key == own or not key.startswith(BASE_IMAGE_KEY)}
    if former is not None:
        # While a unit of version 1.0 is on the machine, it removes any other record at each of its set-ups.
        config.setdefault(own, former)
    return _is_equal({**found, "config": config}, wanted)


def remove_record(lxd: LxdClient, app: str) -> list[str]:
    """Remove what the profile ``runner`` records of an application; returns nothing."""
    found = lxd.find("profiles", RUNNER)
    if found is not None:
        config = {key: value for key, value in found["config"].items() if not _is_of(key, app)}
        if config != found["config"]:
            _replace(lxd, found, config, found["devices"])
    return []


def _is_of(key: str, app: str) -> bool:
    """Whether a key has the base image of an application, or of one of its flavours."""
    own = base_image_key(app)
    return key == own or key.startswith(f"{own}.")


def _of_others(profile: Mapping[str, Any], others: Collection[str], set_up: Collection[str]) -> dict[str, str]:
    """The base images of other applications; version 1.0 has them under the key without a name.

    That key goes once each application that is set up has a name in its own: it would block one that is not.
    """
    config = profile["config"]
    kept = {key: value for key, value in config.items() if any(_is_of(key, other) for other in others)}
    if BASE_IMAGE_KEY in config and not kept.keys() >= {base_image_key(other) for other in set_up}:
        kept[BASE_IMAGE_KEY] = config[BASE_IMAGE_KEY]
    return kept


def _is_equal(found: Mapping[str, Any], profile: Mapping[str, Any]) -> bool:
    return all(found[key] == profile[key] for key in ("config", "devices"))


def _runner(
    app: str, base_image: BaseImage, storage: RunnerStorage, flavors: Mapping[str, BaseImage]
) -> dict[str, Any]:
    return {
        "description": "GitHub runners",
        # The options that cannot change after deployment are recorded here.
        "config": {
            "security.devlxd": "false",
            STORAGE_KEY: storage.value,
            base_image_key(app): base_image.value,
            **{base_image_key(app, name): image.value for name, image in flavors.items()},
        },
        "devices": {"root": {"type": "disk", "path": "/", "pool": POOL}},
    }


def release_pool(lxd: LxdClient) -> None:
    """Take the storage pool out of the profiles of this charm and of the previous charm: LXD deletes no used pool."""
    for profile in lxd.get("profiles", recursion=1):
        if profile["name"] != RUNNER and not _has_resources(profile):
            continue
        devices = {name: device for name, device in profile["devices"].items() if device.get("pool") != POOL}
        if devices != profile["devices"]:
            _replace(lxd, profile, profile["config"], devices)


def remove(lxd: LxdClient) -> list[str]:
    """Delete the profiles that this charm made and that no instance uses; returns their names."""
    removed = []
    for profile in lxd.get("profiles", recursion=1):
        made_here = profile["name"] == RUNNER or RESOURCES_KEY in profile["config"]
        if made_here and not profile["used_by"]:
            lxd.change("DELETE", "profiles", profile["name"])
            removed.append(str(profile["name"]))
    return removed


def has_network_card(lxd: LxdClient) -> bool:
    """Whether the default profile has the filtered network card."""
    return bool(lxd.get("profiles", "default")["devices"].get("eth0") == NETWORK_CARD)


def ensure_network_card(lxd: LxdClient) -> None:
    """Give the default profile the filtered network card."""
    if not has_network_card(lxd):
        _set_network_card(lxd, NETWORK_CARD)


def touch_network_card(lxd: LxdClient) -> None:
    """Change an option of the network card and change it back, so that LXD writes the filters of running instances."""
    try:
        # LXD changes this option while an instance runs.
        _retried(lxd, {**NETWORK_CARD, "security.ipv6_filtering": "false"})
    finally:
        _retried(lxd, NETWORK_CARD)


def remove_network_card(lxd: LxdClient) -> None:
    """Take this charm's network card out of the default profile."""
    default = lxd.get("profiles", "default")
    if default["devices"].get("eth0") == NETWORK_CARD:
        devices = {name: one for name, one in default["devices"].items() if name != "eth0"}
        _replace(lxd, default, default["config"], devices)


def _retried(lxd: LxdClient, card: Mapping[str, str]) -> None:
    """LXD refuses the change if an instance is just starting or stopping."""
    for left in reversed(range(ATTEMPTS)):
        try:
            _set_network_card(lxd, card)
        except LxdError:
            if not left:
                raise
            time.sleep(1)
        else:
            return


def _set_network_card(lxd: LxdClient, card: Mapping[str, str]) -> None:
    devices = {**lxd.get("profiles", "default")["devices"], "eth0": dict(card)}
    lxd.change("PATCH", "profiles", "default", json={"devices": devices})


def _replace(lxd: LxdClient, profile: Mapping[str, Any], config: Mapping[str, str], devices: Mapping[str, Any]) -> None:
    """Only PUT takes a key or a device away. It replaces the whole profile."""
    body = {"config": config, "description": profile["description"], "devices": devices}
    lxd.change("PUT", "profiles", profile["name"], json=body)
