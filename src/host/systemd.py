"""systemd units on this machine: their names, their files, and every call of systemctl."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from system import run, write_file

logger = logging.getLogger(__name__)

FOLDER = Path("/etc/systemd/system")
# Of one call, in seconds.
TIMEOUT = 60.0


def unit_name(purpose: str, unit: str, kind: str) -> str:
    """``ghro.reconcile-runners.github-runner-0.timer`` for the timer of Juju's unit ``github-runner/0``.

    Several units of this charm may be on one machine.
    """
    return f"ghro.{purpose}.{unit.replace('/', '-')}.{kind}"


def write(files: Mapping[str, str]) -> bool:
    """Write unit files by name, and have systemd read them if any has changed; returns whether one has."""
    changed = [name for name, content in files.items() if write_file(FOLDER / name, content)]
    if changed:
        reload()
    return bool(changed)


def ensure(name: str, files: Mapping[str, str]) -> bool:
    """Write unit files, enable ``name`` and start it; returns whether anything changed.

    After a change it is restarted: only then a running timer counts by its new interval. It is stopped before the files
    change, so that the next call completes what an interrupted one has begun.
    """
    if any(_differs(FOLDER / file, content) for file, content in files.items()):
        _systemctl("stop", name, check=False)
    changed = write(files)
    if not changed and are_active(name):
        return False
    enable(name)
    restart(name)
    return True


def remove(*names: str, stop: Iterable[str] | None = None, timeout: float = TIMEOUT, check: bool = False) -> list[str]:
    """Stop units and remove their files; returns the files that were there. ``stop`` names those to stop, or else all.

    With ``check`` a unit that cannot be stopped raises CommandError and all files stay.
    """
    paths = [path for path in (FOLDER / name for name in names) if path.exists()]
    stopped = [path.name for path in paths if stop is None or path.name in set(stop)]
    if stopped:
        disable(*stopped, timeout=timeout, check=check)
    for path in paths:
        path.unlink()
    if paths:
        reload()
    return [str(path) for path in paths]


def start(name: str, *, wait: bool = True, timeout: float = TIMEOUT, check: bool = True) -> None:
    """Start a unit. With ``wait`` until it runs, or, for a service that ends by itself, until it has ended."""
    _systemctl("start", *(() if wait else ("--no-block",)), name, timeout=timeout, check=check)


def restart(name: str) -> None:
    """Stop a unit if it runs, and start it."""
    _systemctl("restart", name)


def restart_running(*names: str, timeout: float) -> None:
    """Restart those units that run. A unit that does not exist is no error."""
    _systemctl("try-restart", *names, timeout=timeout, check=False)


def enable(name: str, *, now: bool = False) -> None:
    """Have a unit started at boot; ``now`` starts it as well."""
    _systemctl("enable", "--quiet", *(("--now",) if now else ()), name)


def disable(*names: str, timeout: float = TIMEOUT, check: bool = False) -> None:
    """Stop units, and do not start them at boot."""
    _systemctl("disable", "--quiet", "--now", *names, timeout=timeout, check=check)


def reload() -> None:
    """Have systemd read all unit files again."""
    _systemctl("daemon-reload")


def are_active(*names: str) -> bool:
    """Whether all of these units run."""
    return _states(*names) == ["active"] * len(names)


def is_starting(name: str) -> bool:
    """Whether a unit is being started. A service of type ``oneshot`` is, until its program has ended."""
    return _states(name) == ["activating"]


def _states(*names: str) -> list[str]:
    return run(["systemctl", "is-active", *names], check=False).stdout.split()


def _differs(path: Path, content: str) -> bool:
    """Whether a file is there and has other content."""
    return path.exists() and path.read_text() != content


def _systemctl(*arguments: str, timeout: float = TIMEOUT, check: bool = True) -> None:
    """CommandError names the command and has its output. Without ``check`` a command that fails is logged only."""
    command = ["systemctl", *arguments]
    done = run(command, timeout=timeout, check=check)
    if done.returncode != 0:
        logger.info("%s ended with %s: %s", " ".join(command), done.returncode, done.stderr.strip())
