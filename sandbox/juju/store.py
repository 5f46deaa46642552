"""What the unit agent and the hook tools share: the state file, the contexts of running hooks, the log.

Every hook tool is a process of its own and a charm starts dozens of them, so this imports next to nothing.
"""

# Files are opened the short way: pathlib alone would take a third of a tool's time.
# ruff: noqa: PTH105, PTH123
import fcntl
import json
import os
import time
from typing import Any

FOLDER = "/var/lib/juju/sandbox"
CONTEXTS = FOLDER + "/contexts"
EVENTS = FOLDER + "/events.jsonl"
STATE = FOLDER + "/state.json"
LOG_FOLDER = "/var/log/juju"
LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Changing:
    """A JSON file that is read, changed and replaced while everybody else who would change it waits."""

    def __init__(self, path: str = STATE) -> None:
        self.path = path

    def __enter__(self) -> Any:
        self.lock = open(self.path + ".lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.content = read(self.path)
        return self.content

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            replace(self.path, self.content)
        self.lock.close()


def read(path: str = STATE) -> Any:
    """A JSON file's content, an empty object if there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def replace(path: str, content: Any) -> None:
    """Write a JSON file so that a reader or a crash sees the old or the new one, never half of it."""
    fresh = f"{path}.{os.getpid()}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        # A hard reboot follows hooks on purpose here: what was said to be written has to be there after it.
        os.fsync(file.fileno())
    os.replace(fresh, path)


def context_path(context_id: str) -> str:
    """The file of a hook's context."""
    return f"{CONTEXTS}/{context_id.replace('/', '-')}.json"


def tag(unit: str) -> str:
    """github-runner/0 as Juju writes it in file names: unit-github-runner-0."""
    return "unit-" + unit.replace("/", "-")


def log(unit: str, level: str, module: str, message: str) -> None:
    """One line (or more, if the message has more) in the form of `juju debug-log`."""
    if LEVELS.index(level) == 0:
        return  # Juju's default logging-config drops TRACE
    line = f"{tag(unit)}: {time.strftime('%H:%M:%S')} {level} {module} {message.rstrip()}\n"
    with open(f"{LOG_FOLDER}/{tag(unit)}.log", "a", encoding="utf-8", errors="replace") as file:
        file.write(line)


def event(**fields: Any) -> None:
    """Tell who watches from outside what happened just now."""
    with open(EVENTS, "a", encoding="utf-8") as file:
        file.write(json.dumps({"time": round(time.time(), 3), **fields}) + "\n")


def now() -> str:
    """The present time as Juju writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def effective_config(state: dict[str, Any]) -> dict[str, Any]:
    """Option values as config-get gives them: set values over defaults, options without either left out."""
    values = {}
    for name, option in state["charm"]["config"].items():
        value = state["config"].get(name, option.get("default"))
        if value is not None:
            values[name] = value
    return values
