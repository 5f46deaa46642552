"""What the previous charm leaves on a machine: removed after an upgrade, until every step has succeeded once.

Its instances and metrics volumes are removed by reconciles. Its StoredState is removed by ``state_database``, its
storage pool by ``pool``. Nothing here needs the options.

Symbolic links are never followed. What another unit on this machine may still use is kept.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.client import LxdClient
from errors import HostError
from host import systemd
from system import is_mounted, run, write_file

logger = logging.getLogger(__name__)

CRON_NAMES = ("build-runner-image", "build_vm_image", "github-runner")
POLICY_SERVICE = "repo-policy-compliance.service"
POLICY_FOLDER = "repo_policy_compliance_service"
# Files in the charm's folder that hold the GitHub token or the policy service's token.
TOKEN_FILES = ("charm_state.json", "service_token")
MODULE = "br_netfilter"


@dataclass(frozen=True)
class Places:
    """Where the previous charm wrote: its own folder, and the machine's root."""

    charm: Path
    root: Path = Path("/")

    @property
    def unit_files(self) -> Path:
        """The folder of systemd units."""
        return self.root / "etc/systemd/system"

    @property
    def memory(self) -> Path:
        """The tmpfs of ``runner-storage=memory``."""
        return self.root / "storage/ram"

    def other_units(self) -> list[Path]:
        """The agent folders of the other units on this machine."""
        agents = self.charm.parent.parent
        return sorted(path for path in agents.glob("unit-*") if path.is_dir() and path != self.charm.parent)

    def is_shared(self) -> bool:
        """Whether another unit on this machine still runs the previous charm: only that charm writes the file."""
        return any((unit / "charm" / TOKEN_FILES[0]).exists() for unit in self.other_units())


def is_found(places: Places) -> bool:
    """Whether the previous charm was on this unit: it always wrote its state file, and its policy service."""
    return any((places.charm / name).exists() for name in TOKEN_FILES) or _has_policy_service(places)


def _has_policy_service(places: Places) -> bool:
    """Whether the policy service is the previous charm's: an operator may run one of the same name on this machine."""
    unit = places.unit_files / POLICY_SERVICE
    files = [unit, *sorted(unit.with_name(f"{POLICY_SERVICE}.d").glob("*"))]
    texts = [path.read_text(errors="replace") for path in files if _is_file(path)]
    return any("GITHUB_TOKEN=" in text or POLICY_FOLDER in text for text in texts)


def take_over(lxd: LxdClient, places: Places, keep: set[str]) -> bool:
    """Remove what the previous charm left; returns whether every step succeeded.

    ``keep`` has the names of this charm's systemd units. A step that fails is logged and does not stop the others.
    What several units of a machine share is removed with the last unit of the previous charm.
    """
    steps: list[Callable[[], Iterator[str]]] = [
        *(partial(shred, places.charm / name) for name in TOKEN_FILES),
        partial(_cron_jobs, places),
        partial(_systemd_units, places, keep),
    ]
    if places.is_shared():
        logger.info("Another unit on this machine runs the previous charm: what they share is kept")
    else:
        steps += [
            partial(_policy_service, places),
            *(partial(_remove_tree, path) for path in _folders(places)),
            partial(_modules, places),
            partial(_memory, lxd, places),
        ]
    results = [_succeeds(step) for step in steps]
    return all(results)


def _succeeds(step: Callable[[], Iterator[str]]) -> bool:
    try:
        for what in step():
            logger.info("Left by the previous charm, removed: %s", what)
    except HostError as error:
        logger.warning("Left by the previous charm, the next event tries again: %s", error)
        return False
    except Exception:
        logger.exception("Left by the previous charm, the next event tries again")
        return False
    return True


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def shred(path: Path) -> Iterator[str]:
    """Overwrite a file that holds a token, then remove it."""
    if _is_file(path):
        run(["shred", "--force", "--remove", str(path)])
        yield str(path)


def _remove_tree(path: Path) -> Iterator[str]:
    if path.is_symlink() or not path.exists():
        return
    run(["rm", "-rf", "--one-file-system", str(path)])
    yield str(path)


def _cron_jobs(places: Places) -> Iterator[str]:
    others = [f"{unit}/" for unit in places.other_units()]
    for path in sorted((places.root / "etc/cron.d").glob("*")):
        if not _is_file(path):
            continue
        text = path.read_text(errors="replace")
        named = path.name in CRON_NAMES and not any(other in text for other in others)
        if named or f"{places.charm}/" in text:
            path.unlink()
            yield str(path)


def _systemd_units(places: Places, keep: set[str]) -> Iterator[str]:
    """Timers and services named as the previous charm names them, and that this charm does not write."""
    others = [_unit_name(unit) for unit in places.other_units()]
    found = [path for path in places.unit_files.glob("ghro.*") if path.name not in keep and _is_file(path)]
    found = [path for path in found if not _names_any(path.read_text(errors="replace"), others)]
    for path in sorted(found, key=lambda path: (path.suffix != ".timer", path.name)):
        systemd.disable(path.name)
        path.unlink()
        yield str(path)
    if found:
        systemd.reload()


def _unit_name(agent: Path) -> str:
    """``github-runner/0`` for the agent folder ``unit-github-runner-0``."""
    app, _, number = agent.name.removeprefix("unit-").rpartition("-")
    return f"{app}/{number}"


def _names_any(text: str, units: list[str]) -> bool:
    return any(re.search(rf"(?<![\w-]){re.escape(unit)}(?!\d)", text) for unit in units)


def _policy_service(places: Places) -> Iterator[str]:
    """Stop the policy service. Its unit file holds the GitHub token as a variable."""
    unit = places.unit_files / POLICY_SERVICE
    drop_ins = unit.with_name(f"{POLICY_SERVICE}.d")
    if not _has_policy_service(places):
        return
    logger.warning(
        "The policy service on this machine is removed, jobs are no longer checked: set repo-policy-compliance-url and "
        "repo-policy-compliance-token to use an external service"
    )
    try:
        systemd.disable(POLICY_SERVICE, timeout=100)
    finally:
        yield from shred(unit)
        if not drop_ins.is_symlink():
            for path in sorted(drop_ins.glob("*")):
                yield from shred(path)
        yield from _remove_tree(drop_ins)
        systemd.reload()


def _folders(places: Places) -> list[Path]:
    """The runner binary, the policy service's folders and its Python package. What that depends on stays."""
    home = places.root / "home/ubuntu"
    names = ("github-runner-app", POLICY_FOLDER, "repo-policy-compliance")
    packages: Iterable[Path] = ()
    if _has_policy_service(places) or (home / POLICY_FOLDER).is_dir():
        packages = (places.root / "usr/local/lib").glob("python3*/*-packages/repo_policy_compliance*")
    return [*(home / name for name in names), *sorted(packages)]


def _modules(places: Places) -> Iterator[str]:
    """The lines that each upgrade of the previous charm added. This charm has a file of its own for the module."""
    yield from _without_lines(places.root / "etc/modules", lambda line: line.strip() == MODULE)


def _without_lines(path: Path, unwanted: Callable[[str], bool]) -> Iterator[str]:
    if not _is_file(path):
        return
    lines = path.read_text(errors="surrogateescape").splitlines(keepends=True)
    kept = [line for line in lines if not unwanted(line)]
    if kept != lines:
        write_file(path, "".join(kept).encode(errors="surrogateescape"), path.stat().st_mode & 0o7777)
        yield f"{len(lines) - len(kept)} lines of {path}"


def _memory(lxd: LxdClient, places: Places) -> Iterator[str]:
    """The tmpfs, once no storage pool lies on it: a set-up replaces the pool when no job runs."""
    folder = places.memory

    def mounts_it(line: str) -> bool:
        fields = line.split()
        return len(fields) > 2 and fields[1] == str(folder) and fields[2] == "tmpfs"

    if folder.is_symlink() or not folder.is_dir():
        return
    for pool in lxd.get("storage-pools", recursion=1):
        if Path(str(pool["config"].get("source", ""))).is_relative_to(folder):
            raise HostError(f"{folder} is still used by the storage pool {pool['name']}")
    yield from _without_lines(places.root / "etc/fstab", mounts_it)
    if is_mounted(folder):
        run(["umount", str(folder)])
    folder.rmdir()
    yield str(folder)
