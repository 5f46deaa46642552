"""The storage pool ``runner``, and the profile that puts the disks of runners into it."""

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from engine import profiles
from engine.client import LxdClient
from engine.profiles import POOL
from errors import ConfigurationError, HostError, LxdError
from host import lxd_server, resources, systemd
from host.image import DISK
from host.markers import Markers, application
from models import BaseImage, CharmState, Flavor, RunnerStorage, gibibytes, size_in_bytes
from naming import BASE_IMAGE_KEY, STORAGE_KEY, base_image_key
from system import is_mounted, run

logger = logging.getLogger(__name__)

JUJU_STORAGE = Path("/storage/juju")
MEMORY = Path("/var/lib/github-runner/memory")
# Not there after a reboot until it is mounted: LXD must not take an empty folder for the pool.
MOUNT_POINT = Path("/run/github-runner-pool")
VOLUME_NAME = "github-runner-pool-{}.img"
DIR_POOL = "github-runner-pool"
# https://documentation.ubuntu.com/lxd/latest/reference/storage_btrfs/: what LXD has at the root of a pool.
POOL_FOLDERS = (
    *("containers", "containers-snapshots", "virtual-machines", "virtual-machines-snapshots"),
    *("images", "custom", "custom-snapshots", "buckets"),
)
# A virtual machine's volume for firmware settings and LXD's agent (`size.state`), in bytes.
CONFIG_VOLUME = 100 << 20


def check(lxd: LxdClient, state: CharmState, unit: str) -> None:
    """ConfigurationError where a unit's options ask for what this storage cannot be or hold; nothing is touched.

    HostError where Juju has not mounted the storage yet: the folder is empty then, and its size is another one.
    """
    steps: tuple[Callable[[], None], ...] = (
        lambda: check_unchanged(lxd, application(unit), state.base_image, state.runner_storage, state.given_flavors),
        lambda: resources.check(lxd, state),
        lambda: _check_size(lxd, state),
    )
    invalid: list[str] = []
    for step in steps:
        try:
            step()
        except ConfigurationError as error:
            invalid += error.invalid
        except HostError:
            # What the operator must correct comes first.
            if not invalid:
                raise
    if invalid:
        raise ConfigurationError(*invalid)


def _check_size(lxd: LxdClient, state: CharmState) -> None:
    if state.runner_storage is RunnerStorage.MEMORY:
        check_space(state, resources.memory_bytes(), "this machine's memory")
        return
    _check_mounted(lxd)
    if JUJU_STORAGE.is_dir():
        check_space(state, _total(JUJU_STORAGE), str(JUJU_STORAGE))


def shortage(state: CharmState) -> str | None:
    """A notice where the disks fit the storage, but others have taken some of it; None where they fit.

    With a budget, runners whose disks do not fit wait.
    """
    if state.has_budget or state.runner_storage is RunnerStorage.MEMORY:
        return None
    free, needed = usable_bytes(), needed_bytes(state)
    if free is None or free >= needed:
        return None
    return f"{JUJU_STORAGE} has {gibibytes(free)} free of the {gibibytes(needed)} that full runners need"


def usable_bytes() -> int | None:
    """What the pool has of the Juju storage and what is free there; None without a storage.

    A plain folder's share is not known, so that the whole filesystem counts.
    """
    if not JUJU_STORAGE.is_dir():
        return None
    if (JUJU_STORAGE / DIR_POOL).is_dir():
        return _total(JUJU_STORAGE)
    stat = os.statvfs(JUJU_STORAGE)
    pool = sum(volume.stat().st_blocks * 512 for volume in JUJU_STORAGE.glob(VOLUME_NAME.format("*")))
    return stat.f_bfree * stat.f_frsize + pool


def _check_mounted(lxd: LxdClient) -> None:
    """After a reboot Juju may mount its storage minutes after it has run `start`."""
    pool = lxd.find("storage-pools", POOL)
    if pool is None or not _is_own(pool) or is_mounted(JUJU_STORAGE):
        return
    if _volume(JUJU_STORAGE) is None and not (JUJU_STORAGE / DIR_POOL).is_dir():
        raise HostError(f"no storage is mounted at {JUJU_STORAGE} yet: the storage pool {POOL} lies on it")


def check_unchanged(
    lxd: LxdClient, app: str, base_image: BaseImage, storage: RunnerStorage, flavors: Sequence[Flavor] = ()
) -> None:
    """ConfigurationError if what cannot change after deployment was changed; the profile knows the old values.

    Each application on the machine has base images of its own. The storage is the same for all.
    """
    profile = lxd.find("profiles", profiles.RUNNER)
    if profile is None:
        return
    config, own = dict(profile["config"]), base_image_key(app)
    if BASE_IMAGE_KEY in config:
        # Of version 1.0, until the set-up after the upgrade.
        config.setdefault(own, config[BASE_IMAGE_KEY])
    wanted = (
        ("base-image", own, base_image.value),
        ("runner-storage", STORAGE_KEY, storage.value),
        *((f"flavors: {one.name}: base-image", base_image_key(app, one.name), one.base_image.value) for one in flavors),
    )
    errors = [
        f"{option}: cannot change after deployment, set it back to {config[key]}"
        for option, key, value in wanted
        if config.get(key, value) != value
    ]
    if errors:
        raise ConfigurationError(*errors)


def needed_bytes(state: CharmState) -> int:
    """What the runners' disks take when they are full. Without a budget."""
    return size_in_bytes(state.resources.disk) * state.virtual_machines


def check_space(state: CharmState, available: int, where: str) -> None:
    """ConfigurationError that names both sizes if the runners' disks do not fit; ``available`` in bytes.

    With a budget, the disk of a single runner of each flavour must fit.
    """
    if state.has_budget:
        _check_disks(state, available, where)
        return
    needed = needed_bytes(state)
    if needed > available:
        disks = f"{state.virtual_machines} × vm-disk {state.resources.disk} = {gibibytes(needed)}"
        raise ConfigurationError(
            f"virtual-machines: {disks} exceeds the {gibibytes(available)} of {where}; lower one of them, or deploy "
            "with a larger storage"
        )


def _check_disks(state: CharmState, available: int, where: str) -> None:
    disks = [(flavor, flavor.resources.disk) for flavor in filter(state.limit, state.flavors)]
    errors = [
        f"{state.option(flavor)}vm-disk: {disk} exceeds the {gibibytes(available)} of {where}; lower it, or deploy "
        "with a larger storage"
        for flavor, disk in disks
        if size_in_bytes(disk) > available
    ]
    if errors:
        raise ConfigurationError(*errors)


def is_intact(lxd: LxdClient, state: CharmState, unit: str) -> bool:
    """Whether LXD has pool and profile as they were set up, and the pool's filesystem is mounted."""
    pool = lxd.find("storage-pools", POOL)
    if pool is None or pool["status"] != "Created":
        return False
    if pool["config"].get("source") == str(MOUNT_POINT) and not is_mounted(MOUNT_POINT):
        return False
    in_use = any("/instances/" in user for user in pool["used_by"])
    if not (in_use or _is_own(pool)):
        return False
    return profiles.is_runner_intact(lxd, application(unit), state.base_image, state.runner_storage)


def ensure(lxd: LxdClient, jinja: jinja2.Environment, state: CharmState, unit: str) -> None:
    """Make sure of pool and profile, on a copy-on-write filesystem where this LXD has one."""
    _ensure_pool(lxd, jinja, state)
    images = {flavor.name: flavor.base_image for flavor in state.given_flavors}
    markers = Markers(unit)
    others, set_up = markers.other_applications(), markers.other_applications(set_up=True)
    profiles.ensure_runner(lxd, application(unit), state.base_image, state.runner_storage, images, others, set_up)


def _ensure_pool(lxd: LxdClient, jinja: jinja2.Environment, state: CharmState) -> None:
    pool = lxd.find("storage-pools", POOL)
    if pool is not None and pool["config"].get("source") == str(MOUNT_POINT):
        folder = _folder(jinja, state)
        emptied = _volume(folder) is None
        mounted = _ensure_filesystem(jinja, folder, known=True)
        if mounted or pool["status"] == "Unavailable":
            pool = _after_restart(lxd)
        if emptied:
            _remove_unpacked_images(lxd)
    elif pool is not None and pool["status"] == "Unavailable" and Path(str(pool["config"].get("source"))).is_dir():
        pool = _after_restart(lxd)
    if pool is not None:
        in_use = any("/instances/" in user for user in pool["used_by"])
        if pool["status"] == "Created" and (in_use or _is_own(pool)):
            return
        if in_use:
            raise HostError(f"the storage pool {POOL} is {pool['status']} and in use: see `lxc storage show {POOL}`")
        logger.warning("The storage pool %s is %s and no instance uses it: it is replaced", POOL, pool["status"])
        remove_pool(lxd)
    folder = _folder(jinja, state)
    drivers = {driver["Name"] for driver in lxd.get()["environment"]["storage_supported_drivers"]}
    if "btrfs" in drivers and shutil.which("mkfs.btrfs"):
        _ensure_filesystem(jinja, folder, known=False)
        _create(lxd, "btrfs", MOUNT_POINT)
    else:
        source = folder / DIR_POOL
        source.mkdir(mode=0o711, parents=True, exist_ok=True)
        _create(lxd, "dir", source)


def _after_restart(lxd: LxdClient) -> Any:
    """The pool after a restart of LXD, which looks for its pools only when it starts: Juju may mount storage later."""
    lxd_server.restart(lxd)
    return lxd.find("storage-pools", POOL)


def previous_pool_users(lxd: LxdClient) -> set[str]:
    """The names of the instances in the previous charm's pool; none where this charm made the pool, or there is none.

    A pool that nobody uses is replaced by ``ensure``.
    """
    pool = lxd.find("storage-pools", POOL)
    if pool is None or _is_own(pool):
        return set()
    return {user.split("?")[0].rsplit("/", 1)[-1] for user in pool["used_by"] if "/instances/" in user}


def _remove_unpacked_images(lxd: LxdClient) -> None:
    """Have LXD unpack images again: it does so once for a pool, and does not notice that the pool was emptied."""
    for volume in lxd.get("storage-pools", POOL, "volumes", recursion=1):
        if volume["type"] == "image":
            lxd.change("DELETE", "storage-pools", POOL, "volumes", "image", volume["name"])


def _volume(folder: Path) -> Path | None:
    return next(folder.glob(VOLUME_NAME.format("*")), None)


def _is_own(pool: Mapping[str, Any]) -> bool:
    source = str(pool["config"].get("source", ""))
    return source == str(MOUNT_POINT) or source.endswith(f"/{DIR_POOL}")


def remove_pool(lxd: LxdClient) -> None:
    """Take the pool out of the profiles and delete it; LxdError while an instance uses it."""
    profiles.release_pool(lxd)
    lxd.change("DELETE", "storage-pools", POOL)


def _create(lxd: LxdClient, driver: str, source: Path) -> None:
    try:
        pool = {"name": POOL, "driver": driver, "config": {"source": str(source)}}
        lxd.change("POST", "storage-pools", json=pool)
    except LxdError as error:
        raise HostError(f"the storage pool {POOL} cannot be made on {source}: {error}") from error


def _folder(jinja: jinja2.Environment, state: CharmState) -> Path:
    if state.runner_storage is RunnerStorage.JUJU_STORAGE:
        if not JUJU_STORAGE.is_dir():
            raise HostError(f"the Juju storage `runner` is not attached at {JUJU_STORAGE}")
        return JUJU_STORAGE
    size = memory_size(state)
    options = f"size={size},mode=0700"
    mounted = _ensure_mount(jinja, MEMORY, what="tmpfs", kind="tmpfs", options=options)
    if not mounted and _total(MEMORY) < size:
        run(["mount", "-o", f"remount,{options}", str(MEMORY)])
    return MEMORY


def memory_size(state: CharmState) -> int:
    """What full runners take, and besides them the images, a builder, and LXD's own small volume of each runner.

    Never more than the machine's memory: a runner must find its disk full before the machine is out of memory.
    """
    disks = [size_in_bytes(flavor.resources.disk) + CONFIG_VOLUME for flavor in state.flavors]
    numbers = [state.limit(flavor) for flavor in state.flavors]
    runners = max(sum(number * disk for number, disk in zip(numbers, disks, strict=True)), max(disks))
    images = len({flavor.base_image for flavor in state.flavors})
    size = runners + (images + 1) * DISK
    return min(size, resources.memory_bytes())


def _total(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_blocks * stat.f_frsize


def _ensure_filesystem(jinja: jinja2.Environment, folder: Path, *, known: bool) -> bool:
    """The pool volume, a sparse file with btrfs: LXD's own loop files lie elsewhere, and btrfs takes no source on ext4.

    ``known`` says that LXD has a pool on it already. Returns whether it had to be mounted.
    """
    volume = _volume(folder)
    fresh = volume is None
    if volume is None:
        if known and folder == JUJU_STORAGE and not is_mounted(folder):
            raise HostError(f"no storage is mounted at {folder} yet: the storage pool {POOL} lies on it")
        volume = _make_volume(folder)
    # Earlier revisions made it readable by all users.
    volume.chmod(0o600)
    mounted = _ensure_mount(jinja, MOUNT_POINT, what=str(volume), kind="btrfs", options="loop,user_subvol_rm_allowed")
    if fresh and known:
        # A tmpfs is empty after a reboot, and LXD makes the folders of a pool only when it makes the pool.
        for name in POOL_FOLDERS:
            (MOUNT_POINT / name).mkdir(mode=0o711, exist_ok=True)
    elif not fresh:
        _grow(volume, _total(folder))
    return mounted


def _make_volume(folder: Path) -> Path:
    """Make the pool volume, as large as its filesystem.

    Its name is random: `mount` takes a loop device whose file has the same path for the same file, and machines that
    are containers of one host share the kernel's loop devices.
    """
    volume = folder / VOLUME_NAME.format(secrets.token_hex(8))
    partial = volume.with_suffix(".partial")
    # It holds every runner's disk.
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.truncate(_total(folder))
    run(["mkfs.btrfs", "-q", "-f", str(partial)])
    partial.replace(volume)
    return volume


def _grow(volume: Path, size: int) -> None:
    """Give the pool what its storage has gained. It never shrinks, because its volume is a sparse file."""
    if volume.stat().st_size >= size:
        return
    os.truncate(volume, size)
    device = run(["losetup", "--noheadings", "--output", "NAME", "--associated", str(volume)]).stdout.split()[0]
    run(["losetup", "--set-capacity", device])
    run(["btrfs", "filesystem", "resize", "max", str(MOUNT_POINT)])


def _ensure_mount(jinja: jinja2.Environment, where: Path, *, what: str, kind: str, options: str) -> bool:
    """A systemd mount unit, so that it is back before LXD starts after a reboot. Whether it was not mounted."""
    missing = not is_mounted(where)
    name = _mount_unit(where)
    content = jinja.get_template("mount.j2").render(where=str(where), what=what, kind=kind, options=options)
    systemd.write({name: content})
    systemd.enable(name)
    if missing:
        systemd.restart(name)
    return missing


def _mount_unit(where: Path) -> str:
    return run(["systemd-escape", "--path", "--suffix=mount", str(where)]).stdout.strip()


def remove(lxd: LxdClient) -> list[str]:
    """Delete pool, profiles, mounts and pool volume; returns what was removed. LxdError if instances use the pool."""
    gone = []
    if lxd.find("storage-pools", POOL) is not None:
        remove_pool(lxd)
        gone.append(f"storage pool {POOL}")
    gone += [f"profile {name}" for name in profiles.remove(lxd)]
    for where in (MOUNT_POINT, MEMORY):
        # Files stay while something uses the mount.
        if systemd.remove(_mount_unit(where), check=True):
            where.rmdir()
            gone.append(f"mount {where}")
    for folder in (JUJU_STORAGE, MEMORY):
        for file in [*folder.glob(VOLUME_NAME.format("*")), *folder.glob(VOLUME_NAME.format("*") + ".partial")]:
            file.unlink()
            gone.append(str(file))
        if (folder / DIR_POOL).is_dir():
            shutil.rmtree(folder / DIR_POOL)
            gone.append(str(folder / DIR_POOL))
    return gone
