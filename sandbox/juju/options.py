"""The options of the charm and the configuration of the model, as an operator sets them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import store
from running import MODEL_DEFAULTS, JujuError
from uniter import drain, queue_config_changed

SYSTEMD = Path("/etc/systemd/system")


def parse_config(options: dict[str, Any], app: str, values: dict[str, Any]) -> dict[str, Any]:
    """Settings as `juju config` takes them, strings of every type, turned into what the charm sees."""
    parsed = {}
    for name, word in values.items():
        if name not in options:
            raise JujuError(f'parsing settings for application: unknown option "{name}"')
        kind = options[name]["type"]
        try:
            parsed[name] = _PARSERS[kind](str(word))
        except ValueError:
            quoted = json.dumps(str(word), ensure_ascii=False)
            reason = f'option "{name}" expected {kind}, got {quoted}'
            raise JujuError(f"parsing settings for application: {reason}") from None
    return parsed


def _parse_boolean(word: str) -> bool:
    if word in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if word in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(word)


def _parse_int(word: str) -> int:
    if not word.lstrip("+-").isdigit() or not word.isascii() or not -(2**63) <= int(word) < 2**63:
        raise ValueError(word)
    return int(word)


def _parse_secret(word: str) -> str:
    if word and not word.startswith("secret:"):
        raise ValueError(word)
    return word


_PARSERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "int": _parse_int,
    "float": float,
    "boolean": _parse_boolean,
    "secret": _parse_secret,
}


def get_config() -> dict[str, Any]:
    """All options: type, default, description, the value now, and whether the user gave it."""
    state = store.read()
    effective = store.effective_config(state)
    return {
        name: {
            "type": option["type"],
            "description": (option.get("description") or "").strip(),
            "default": option.get("default"),
            "value": effective.get(name),
            "user": name in state["config"],
        }
        for name, option in sorted(state["charm"]["config"].items())
    }


def set_config(values: dict[str, Any]) -> dict[str, Any]:
    with store.Changing() as state:
        state["config"].update(parse_config(state["charm"]["config"], state["app"], values))
        queue_config_changed(state)
    return drain()


def reset_config(names: list[str]) -> dict[str, Any]:
    with store.Changing() as state:
        for name in names:
            if name not in state["charm"]["config"]:
                raise JujuError(f'parsing settings for application: unknown option "{name}"')
            state["config"].pop(name, None)
        queue_config_changed(state)
    return drain()


def get_model_config() -> dict[str, Any]:
    return {**MODEL_DEFAULTS, **store.read()["model"]["config"]}


def set_model_config(values: dict[str, Any]) -> dict[str, Any]:
    """Set the model's configuration; no hook fires for it, the next one sees it."""
    for name, value in values.items():
        if name == "update-status-hook-interval":
            seconds = _duration(value)
            if not 60 <= seconds <= 3600:
                bound = "less than 1m0s" if seconds < 60 else "greater than 60m"
                raise JujuError(f"update-status-hook-interval: {value} cannot be {bound}")
        if name == "automatically-retry-hooks" and value not in ("true", "false"):
            raise JujuError(f"automatically-retry-hooks: expected bool, got string({json.dumps(value)})")
    with store.Changing() as state:
        state["model"]["config"].update({name: str(value) for name, value in values.items()})
    if "update-status-hook-interval" in values:
        write_timer()
    return get_model_config()


def _duration(word: str) -> float:
    units = {"h": 3600, "m": 60, "s": 1}
    total, number = 0.0, ""
    for letter in word:
        if letter.isdigit() or letter == ".":
            number += letter
        elif letter in units and number:
            total, number = total + float(number) * units[letter], ""
        else:
            number = "bad"
            break
    if number or not word:
        raise JujuError(f'update-status-hook-interval: time: invalid duration "{word}"')
    return total


def write_timer() -> None:
    """The timer that stands for Juju's own clock for update-status; it too comes with a random delay."""
    seconds = int(_duration(get_model_config()["update-status-hook-interval"]))
    timer = SYSTEMD / "juju-sandbox-update-status.timer"
    timer.write_text(
        "[Unit]\nDescription=Juju's update-status\n[Timer]\n"
        f"OnActiveSec={seconds}\nOnUnitActiveSec={seconds}\nRandomizedDelaySec={seconds // 5}\n"
        "[Install]\nWantedBy=timers.target\n"
    )
    for command in (("daemon-reload",), ("enable", "--quiet", timer.name), ("restart", timer.name)):
        subprocess.run(("systemctl", *command), check=True, capture_output=True)
