"""Run programs of the host, and tell the user what goes on."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# What LXD says when a command was never begun (a race of its own): it can be given again.
NOT_STARTED = "Failed to retrieve PID of executing child process"
# Python warns of a process that runs and that nobody remembers.
_DAEMONS: list["subprocess.Popen[bytes]"] = []


class SandboxError(Exception):
    """Something the user has to know; its text says what to do."""


def run(
    *command: str, input: str | None = None, check: bool = True, timeout: float = 300, cwd: str | None = None
) -> str:
    """Run a program and return its standard output; raise SandboxError with its last words when it fails."""
    done = ended(*command, input=input, timeout=timeout, cwd=cwd)
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise SandboxError(f"{' '.join(command)} failed ({done.returncode}): {words}")
    return done.stdout


def ended(
    *command: str, input: str | None = None, timeout: float = 300, cwd: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, whatever it is. What LXD did not begin in an instance is tried once more."""
    done = _ended(command, input, timeout, cwd)
    return _ended(command, input, timeout, cwd) if NOT_STARTED in done.stderr else done


def _ended(
    command: Sequence[str], input: str | None, timeout: float, cwd: str | None
) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
        )
    except FileNotFoundError as error:
        raise SandboxError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"{' '.join(command)} took longer than {timeout:.0f} s") from error


def succeeds(*command: str) -> bool:
    """Whether a program exits with 0."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def stream(*command: str) -> int:
    """Run a program on the user's own terminal and return its exit code."""
    return subprocess.call(command)


def start_daemon(command: Sequence[str], log: Path, cwd: Path | None = None) -> int:
    """Start a program that outlives this one, its output appended to a file; its process id."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    _DAEMONS.append(process)
    return process.pid


def apt_install(programs: dict[str, str], more: Sequence[str] = ()) -> None:
    """Install with apt what a program (key) needs (value: package), where it is missing."""
    missing = [package for program, package in programs.items() if not shutil.which(program)]
    if not missing:
        return
    with step(f"Installing {' '.join(sorted({*missing, *more}))}"):
        run("apt-get", "update", "-qq", timeout=300)
        run(
            *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y"),
            *("--no-install-recommends", *missing, *more),
            timeout=600,
        )


@contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a step and, when it is over, how long it took."""
    started = time.monotonic()
    say(f"  · {text} …", end="", newline=not sys.stdout.isatty())
    try:
        yield
    except BaseException:
        say("  ✗ failed: " + text)
        raise
    say(f"\r  ✓ {text} ({time.monotonic() - started:.1f} s)" + " " * 4)


def say(text: str, end: str = "\n", newline: bool = True) -> None:
    """Print at once, also into a pipe."""
    print(text, end="\n" if newline else end, flush=True)


def wait_until(condition, what: str, timeout: float = 60, interval: float = 0.1):  # type: ignore[no-untyped-def]
    """Poll until the condition is truthy and return that value; SandboxError names what did not come."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise SandboxError(f"{what}: not within {timeout:.0f} s")
        time.sleep(interval)
