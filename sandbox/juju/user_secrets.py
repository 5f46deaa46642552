"""Secrets of the model's user, which the charm reads once they are granted."""

import os
import re
from typing import Any

import store
from running import JujuError
from uniter import drain, queue


def find_secret(state: dict[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    identity = name.removeprefix("secret:")
    for key, record in state["secrets"].items():
        if identity == key or record["name"] == name:
            return key
    raise JujuError(f'secret "{name}" not found')


def add_secret(name: str, content: dict[str, str], identity: str | None = None) -> str:
    """A user's secret; gives its URI. A further unit is given the identity that the secret has already."""
    with store.Changing() as state:
        if any(record["name"] == name for record in state["secrets"].values()):
            raise JujuError(f'secret with name "{name}" already exists')
        identity = (identity or os.urandom(15).hex()[:20]).removeprefix("secret:")
        state["secrets"][identity] = _new_secret(name, secret_content(content))
    return f"secret:{identity}"


def secret_content(content: dict[str, str]) -> dict[str, str]:
    # Juju's rule: https://github.com/juju/juju/blob/3.6/core/secrets/createsecret.go
    for key in content:
        if not re.fullmatch("[a-z](-?[a-z0-9]){2,}", key):
            raise JujuError(f'key "{key}" not valid')
    if not content:
        raise JujuError("missing secret value or filename")
    return content


def _new_secret(name: str, content: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "revisions": {"1": content}, "granted": [], "tracked": {}, "labels": {}}


def update_secret(name: str, content: dict[str, str]) -> dict[str, Any]:
    """A new revision; who follows the secret hears of it with secret-changed."""
    with store.Changing() as state:
        identity = find_secret(state, name)
        record = state["secrets"][identity]
        latest = max(int(number) for number in record["revisions"])
        if record["revisions"][str(latest)] == secret_content(content):
            return drain()
        record["revisions"][str(latest + 1)] = content
        if state["unit"] in record["tracked"]:
            queue(state, "secret-changed", secret_id=identity, secret_label=record["labels"].get(state["unit"], ""))
    return drain()


def grant_secret(name: str, app: str | None = None) -> None:
    """Let the application read the secret; no hook fires for it."""
    with store.Changing() as state:
        record = state["secrets"][find_secret(state, name)]
        record["granted"] = sorted({*record["granted"], app or state["app"]})


def remove_secret(name: str) -> None:
    with store.Changing() as state:
        del state["secrets"][find_secret(state, name)]
