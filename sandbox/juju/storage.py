"""Juju's storage of the provider rootfs: folders of the machine's disk, bind-mounted by hand, never by fstab.

Juju's machine agent does this beside the unit agent: no hook waits for it, and none fires when it is done.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import store
from running import HERE

FOLDERS = Path("/var/lib/juju/storage/fs")


def mount(state: dict[str, Any]) -> None:
    """Mount what is attached and not mounted."""
    for name, record in state["storage"].items():
        source = _source(name)
        for folder in (source, Path(record["location"])):
            folder.mkdir(parents=True, exist_ok=True)
        if record["attached"] and not is_mounted(record["location"]):
            subprocess.run(("mount", "--bind", str(source), record["location"]), check=True)


def mount_after_boot(state: dict[str, Any]) -> None:
    """Mount again after a boot; where that was asked for, so late that `start` runs before it."""
    delay, state["late_storage"] = state["late_storage"], 0
    if not delay:
        mount(state)
        return
    timer = ("systemd-run", "--quiet", "--collect", f"--on-active={delay}", "--timer-property=AccuracySec=100ms")
    subprocess.run((*timer, sys.executable, "-E", str(HERE / "agent.py"), "--inside", "mount-storage"), check=True)


def unmount_detached() -> None:
    """Unmount what has been detached, as far as nothing holds it; its folder on the disk stays with its content."""
    for name, record in store.read()["storage"].items():
        if record["attached"] or not is_mounted(record["location"]):
            continue
        done = subprocess.run(("umount", record["location"]), capture_output=True, text=True)
        with store.Changing() as state:
            state["storage"][name]["error"] = done.stderr.strip()


def describe(name: str, record: dict[str, Any]) -> dict[str, Any]:
    return {"mounted": is_mounted(record["location"]), "source": str(_source(name))}


def _source(name: str) -> Path:
    return FOLDERS / name.replace("/", "-")


def is_mounted(folder: Path) -> bool:
    """Whether a folder is a mount point; one of its own filesystem is no other device, which os.path.ismount asks."""
    wanted = os.path.realpath(folder)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == wanted for line in lines)
