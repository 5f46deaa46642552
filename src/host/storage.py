"""The storage pool and the profile ``runner`` (spec 4, Storage pool; spec 1 for what cannot change)."""

import logging
import os
import secrets
import shutil
from pathlib import Path

import jinja2

from errors import ConfigurationError, HostError, LxdError
from host import daemon
from lxd import LxdClient
from models import BaseImage, CharmState, RunnerStorage, size_in_bytes
from system import run, write_file

logger = logging.getLogger(__name__)

POOL = PROFILE = "runner"
JUJU_STORAGE = Path("/storage/juju")
MEMORY = Path("/var/lib/github-runner/memory")
# Not there after a reboot until it is mounted: LXD must not take an empty folder for the pool.
MOUNT_POINT = Path("/run/github-runner-pool")
IMAGE_NAME = "github-runner-pool-{}.img"
UNITS = Path("/etc/systemd/system")
BASE_IMAGE_KEY = "user.github-runner.base-image"
STORAGE_KEY = "user.github-runner.runner-storage"


def check_unchanged(lxd: LxdClient, base_image: BaseImage, storage: RunnerStorage) -> None:
    """ConfigurationError if what cannot change after deployment was changed; the profile knows the old values."""
    profile = lxd.find("profiles", PROFILE)
    if profile is None:
        return
    config = profile["config"]
    wanted = (("base-image", BASE_IMAGE_KEY, base_image.value), ("runner-storage", STORAGE_KEY, storage.value))
    faults = [
        f"{option}: cannot change after deployment, set it back to {config[key]}"
        for option, key, value in wanted
        if config.get(key, value) != value
    ]
    if faults:
        raise ConfigurationError(*faults)


def ensure(lxd: LxdClient, jinja: jinja2.Environment, state: CharmState) -> None:
    """Make sure of pool and profile, on a copy-on-write filesystem where this LXD has one."""
    _ensure_pool(lxd, jinja, state)
    _ensure_profile(lxd, state)


def _ensure_pool(lxd: LxdClient, jinja: jinja2.Environment, state: CharmState) -> None:
    pool = lxd.find("storage-pools", POOL)
    if pool is not None and pool["config"].get("source") == str(MOUNT_POINT):
        mounted = _ensure_filesystem(jinja, _folder(jinja, state))
        if mounted or pool["status"] == "Unavailable":
            # Juju may bring its storage back after LXD has started and looked for the pool.
            daemon.restart(lxd)
            pool = lxd.find("storage-pools", POOL)
    if pool is not None:
        if pool["status"] == "Created":
            return
        if pool["used_by"]:
            raise HostError(f"the storage pool {POOL} is {pool['status']} and in use: see `lxc storage show {POOL}`")
        logger.warning("The storage pool %s is %s and unused: made anew", POOL, pool["status"])
        lxd.change("DELETE", "storage-pools", POOL)
    folder = _folder(jinja, state)
    drivers = {driver["Name"] for driver in lxd.get()["environment"]["storage_supported_drivers"]}
    if "btrfs" in drivers and shutil.which("mkfs.btrfs"):
        _ensure_filesystem(jinja, folder)
        _create(lxd, "btrfs", MOUNT_POINT)
    else:
        source = folder / "github-runner-pool"
        source.mkdir(parents=True, exist_ok=True)
        _create(lxd, "dir", source)


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
    size = size_in_bytes(state.resources.disk) * max(1, state.virtual_machines)
    _ensure_mount(jinja, MEMORY, what="tmpfs", kind="tmpfs", options=f"size={size},mode=0700")
    return MEMORY


def _ensure_filesystem(jinja: jinja2.Environment, folder: Path) -> bool:
    """A sparse image with btrfs on it: LXD's own loop files lie elsewhere, and btrfs takes no source on ext4.

    Returns whether it had to be mounted.
    Its name is its own: `mount` takes a loop device whose file has the same path for the same file, and machines
    that are containers of one host share the kernel's loop devices.
    """
    image = next(folder.glob(IMAGE_NAME.format("*")), None)
    if image is None:
        image = folder / IMAGE_NAME.format(secrets.token_hex(8))
        partial = image.with_suffix(".partial")
        stat = os.statvfs(folder)
        with partial.open("wb") as file:
            file.truncate(stat.f_blocks * stat.f_frsize)
        run(["mkfs.btrfs", "-q", "-f", str(partial)])
        partial.replace(image)
    return _ensure_mount(jinja, MOUNT_POINT, what=str(image), kind="btrfs", options="loop,user_subvol_rm_allowed")


def _ensure_mount(jinja: jinja2.Environment, where: Path, *, what: str, kind: str, options: str) -> bool:
    """A systemd mount unit, so that it is back before LXD starts after a reboot. Whether it was not mounted."""
    missing = not where.is_mount()
    name = run(["systemd-escape", "--path", "--suffix=mount", str(where)]).stdout.strip()
    content = jinja.get_template("mount.j2").render(where=str(where), what=what, kind=kind, options=options)
    if write_file(UNITS / name, content):
        run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", "--quiet", "--now", name])
    return missing


def _ensure_profile(lxd: LxdClient, state: CharmState) -> None:
    profile = {
        "description": "GitHub runners",
        "config": {
            "security.devlxd": "false",
            BASE_IMAGE_KEY: state.base_image.value,
            STORAGE_KEY: state.runner_storage.value,
        },
        "devices": {"root": {"type": "disk", "path": "/", "pool": POOL}},
    }
    found = lxd.find("profiles", PROFILE)
    if found is None:
        lxd.change("POST", "profiles", json={"name": PROFILE, **profile})
    elif found["config"] != profile["config"] or found["devices"] != profile["devices"]:
        lxd.change("PUT", "profiles", PROFILE, json=profile)
