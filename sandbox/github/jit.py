"""Just-in-time configuration: the files with which a runner starts that GitHub has registered already."""

import base64
import json
import secrets
import uuid
from typing import Any

from sandbox.github.errors import RefusedError
from sandbox.github.forms import version_parts
from sandbox.github.state import Runner

FIRST_VERSION = [3, 10]  # of GitHub Enterprise Server
MAX_NAME = 64
MAX_LABEL = 256
MAX_LABELS = 100
# The sizes in bytes of an RSA key's parameters, as .NET names them. A stand-in of a key is random.
KEY_SIZES = {"exponent": 3, "modulus": 256, "p": 128, "q": 128, "dp": 128, "dq": 128, "inverseQ": 128}


def is_offered(enterprise_version: str) -> bool:
    """Whether this version of GitHub Enterprise Server has just-in-time configuration; an empty one is GitHub.com."""
    return not enterprise_version or version_parts(enterprise_version) >= FIRST_VERSION


def wanted(body: dict[str, Any]) -> tuple[str, int, list[str], str]:
    """The name, the number of the group, the labels and the work folder of a request; refused if one is wrong."""
    name, group, labels = (_required(body, key) for key in ("name", "runner_group_id", "labels"))
    folder = body.get("work_folder", "_work")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise _invalid(f"Runner name must have 1 to {MAX_NAME} characters.")
    if not isinstance(group, int) or isinstance(group, bool):
        raise _invalid(f"For 'properties/runner_group_id', {group!r} is not an integer.")
    if not isinstance(labels, list) or not 0 < len(labels) <= MAX_LABELS:
        raise _invalid(f"For 'properties/labels', there may be 1 to {MAX_LABELS} items.")
    if not all(isinstance(label, str) and 0 < len(label) <= MAX_LABEL for label in labels):
        raise _invalid(f"For 'properties/labels', each must be a string of 1 to {MAX_LABEL} characters.")
    if not isinstance(folder, str):
        raise _invalid(f"For 'properties/work_folder', {folder!r} is not a string.")
    return name, group, labels, folder


def _required(body: dict[str, Any], key: str) -> object:
    if key not in body:
        raise _invalid(f"Required property '{key}' is missing.")
    return body[key]


def _invalid(reason: str) -> RefusedError:
    return RefusedError(422, f"Invalid request.\n\n{reason}")


def encode(runner: Runner, group: int, folder: str, service: str) -> str:
    """The configuration: base64 of an object whose values are base64 of the files; settings are strings in it."""
    settings = {"AgentId": str(runner.id), "AgentName": runner.name, "DisableUpdate": "False", "Ephemeral": "True"}
    settings.update(PoolId=str(group), PoolName=runner.group, ServerUrl=service, ServerUrlV2=service)
    settings.update(UseV2Flow="True", WorkFolder=folder)
    url = f"{service}/oauth2/token/{uuid.uuid4()}"
    data = {"clientId": str(uuid.uuid4()), "authorizationUrl": url, "authorizationUrlV2": url}
    data["requireFipsCryptography"] = "True"
    key = {name: _base64(secrets.token_bytes(size)) for name, size in KEY_SIZES.items()}
    key["d"] = runner.secret
    files = {".runner": settings, ".credentials": {"Scheme": "OAuth", "Data": data}, ".credentials_rsaparams": key}
    encoded = {name: _base64(json.dumps(content).encode()) for name, content in files.items()}
    return _base64(json.dumps(encoded).encode())


def secret() -> str:
    """The private exponent of a runner's key."""
    return _base64(secrets.token_bytes(256))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
