"""What the incumbent charm leaves on a unit that is upgraded to this one (spec 2, Name and ownership, Pre-job script).

Its instances are the reconcile's business: they carry none of our keys, so they are outdated.
"""

import logging
from pathlib import Path

from host.storage import RESOURCES_KEY, RESOURCES_NAME
from lxd import LxdClient
from system import run

logger = logging.getLogger(__name__)

UNITS = Path("/etc/systemd/system")
CRON = Path("/etc/cron.d")
CRON_NAMES = ("build-runner-image", "build_vm_image", "github-runner")
POLICY_SERVICE = "repo-policy-compliance.service"
POLICY_FOLDERS = (Path("/home/ubuntu/repo_policy_compliance_service"), Path("/home/ubuntu/repo-policy-compliance"))
STATE_FILE = "charm_state.json"


def take_over(lxd: LxdClient, charm: Path, ours: set[str]) -> list[str]:
    """Remove its leftovers; returns what went. ``charm`` is the charm's folder, ``ours`` our systemd units' names."""
    gone = [*_shred(charm / STATE_FILE), *_cron_jobs(charm), *_units(ours), *_policy_service(), *_profiles(lxd)]
    for what in gone:
        logger.info("Left by the former charm, removed: %s", what)
    return gone


def _shred(path: Path) -> list[str]:
    """Its state file has the GitHub token in it: overwritten before it is unlinked."""
    if not path.is_file() or path.is_symlink():
        return []
    run(["shred", "--force", "--remove", str(path)])
    return [str(path)]


def _cron_jobs(charm: Path) -> list[str]:
    if not CRON.is_dir():
        return []
    jobs = [path for path in sorted(CRON.iterdir()) if path.is_file() and _is_cron_job(path, charm)]
    for path in jobs:
        path.unlink()
    return [str(path) for path in jobs]


def _is_cron_job(path: Path, charm: Path) -> bool:
    return path.name in CRON_NAMES or f"{charm}/" in path.read_text(errors="replace")


def _units(ours: set[str]) -> list[str]:
    """Timers and services named as the incumbent names them, and that this charm does not write."""
    found = [path for path in sorted(UNITS.glob("ghro.*")) if path.name not in ours]
    for path in sorted(found, key=lambda path: path.suffix != ".timer"):
        run(["systemctl", "disable", "--quiet", "--now", path.name], check=False)
        path.unlink()
    if found:
        run(["systemctl", "daemon-reload"])
    return [str(path) for path in found]


def _policy_service() -> list[str]:
    unit = UNITS / POLICY_SERVICE
    gone = []
    if unit.exists():
        logger.warning(
            "The policy service on this machine is removed: set repo-policy-compliance-url and "
            "repo-policy-compliance-token to use an external one"
        )
        run(["systemctl", "disable", "--quiet", "--now", POLICY_SERVICE], check=False)
        unit.unlink()
        run(["systemctl", "daemon-reload"])
        gone.append(str(unit))
    for folder in POLICY_FOLDERS:
        if folder.is_dir() and not folder.is_symlink():
            run(["rm", "-rf", "--one-file-system", str(folder)])
            gone.append(str(folder))
    return gone


def _profiles(lxd: LxdClient) -> list[str]:
    """Its resource profiles that no instance uses; ours of the same name have a key."""
    gone = []
    for profile in lxd.get("profiles", recursion=1):
        its = RESOURCES_NAME.fullmatch(profile["name"]) and RESOURCES_KEY not in profile["config"]
        if its and not profile["used_by"]:
            lxd.change("DELETE", "profiles", profile["name"])
            gone.append(f"profile {profile['name']}")
    return gone
