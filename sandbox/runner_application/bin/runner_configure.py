"""Register this folder as a runner, or take over a registration, and take the registration back."""

import base64
import json
import os
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runner_common import ARCHITECTURE, ROOT, VERSION, Diagnostics, ServiceError, request

OPTIONS = ("url", "token", "name", "labels", "runnergroup", "work")
FLAGS = ("unattended", "ephemeral", "replace", "disableupdate", "no-default-labels")
FILES = (".credentials", ".credentials_rsaparams", ".runner")
SETTINGS = ("agentId", "agentName", "poolId", "poolName", "serverUrl", "gitHubUrl", "workFolder")
TRUTHS = ("ephemeral", "disableUpdate")
MAX_NAME = 64
SECONDS = float(os.environ.get("RUNNER_SANDBOX_CONFIGURE_SECONDS", "0.4"))  # the real one is not instant either


class TerminatedError(Exception):
    """The text says why nothing was done."""


def parse(arguments: list[str], inputs: dict[str, str]) -> dict[str, str]:
    """The options, the command line before the environment; flags are there or not."""
    truths = ("1", "true", "$true")
    values = {name: value for name, value in inputs.items() if name in OPTIONS and value}
    values.update({name: "true" for name in FLAGS if inputs.get(name, "").lower() in truths})
    unknown, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name = argument[2:].lower() if argument.startswith("--") else ""
        if name in FLAGS:
            values[name] = "true"
        elif name in OPTIONS:
            values[name] = rest.pop(0) if rest and not rest[0].startswith("--") else ""
        else:
            unknown.append(name or argument)
    if unknown:
        # The real one says so, too, and goes on.
        found = ", ".join(f"'{name}'" for name in unknown)
        say(f"Unrecognized command-line input arguments: {found}. For usage refer to: ./config.sh --help")
    return values


def configured() -> bool:
    """Whether a registration is kept in this folder."""
    return (ROOT / ".runner").exists()


def settings() -> dict[str, Any]:
    """The kept registration; its file begins with a byte order mark, as the real one does.

    Names are read in any case, and numbers and truths also as text: a just-in-time configuration has them so.
    """
    try:
        found = json.loads((ROOT / ".runner").read_text(encoding="utf-8-sig"))
        kept = {name.lower(): value for name, value in found.items()}
    except (ValueError, AttributeError) as error:
        raise TerminatedError(f"The settings cannot be read: {error}") from None
    kept = {name: kept[name.lower()] for name in SETTINGS + TRUTHS if name.lower() in kept}
    return {name: str(value).lower() == "true" if name in TRUTHS else value for name, value in kept.items()}


def secret() -> str:
    """The runner's credential: the private exponent of its key."""
    if not (ROOT / ".credentials").exists():
        raise TerminatedError("Credentials not stored. Must reconfigure.")
    file = ROOT / ".credentials_rsaparams"
    if not file.exists():
        raise TerminatedError(f"RSA key file {file} was not found")
    return str(json.loads(file.read_text())["d"])


def take_jit_config(arguments: list[str], inputs: dict[str, str]) -> None:
    """Write the files of a just-in-time configuration, from the command line or the environment, if there is one.

    As the real runner agent does, over those that are there, and whatever their names are.
    """
    given = arguments[arguments.index("--jitconfig") + 1 :][:1] if "--jitconfig" in arguments else []
    encoded = (given or [inputs.get("jitconfig", "")])[0]
    if not encoded:
        return
    try:
        for name, content in json.loads(base64.b64decode(encoded, validate=True)).items():
            (ROOT / name).write_bytes(base64.b64decode(content, validate=True))
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise TerminatedError(str(error)) from None


def delete_registration(names: tuple[str, ...] = FILES) -> None:
    """Delete the kept registration."""
    for name in names:
        (ROOT / name).unlink(missing_ok=True)


def configure(values: dict[str, str], log: Diagnostics) -> None:
    """Register."""
    if configured():
        raise TerminatedError(
            "Cannot configure the runner because it is already configured. To reconfigure the runner, "
            "run 'config.cmd remove' or './config.sh remove' first."
        )
    _section("Authentication")
    url = _value(values, "url", lambda text: bool(urlsplit(text).netloc and urlsplit(text).path.strip("/")))
    access = _access(url, "register", _value(values, "token"))
    say("\n√ Connected to GitHub\n")
    _section("Runner Registration")
    name = _value(values, "name", lambda text: 0 < len(text) <= MAX_NAME, socket.gethostname())
    labels = [label.strip() for label in values.get("labels", "").split(",") if label.strip()]
    body = {"name": name, "labels": labels, "version": VERSION, "architecture": ARCHITECTURE}
    body.update(group=values.get("runnergroup", ""), ephemeral="ephemeral" in values, replace="replace" in values)
    body["no_default_labels"] = "no-default-labels" in values
    time.sleep(SECONDS)
    try:
        _, added = request("POST", f"{access['url']}/runners", f"Bearer {access['token']}", body)
    except ServiceError as error:
        raise TerminatedError(str(error)) from None
    say("√ Runner successfully added\n√ Runner connection is good\n")
    _section("Runner settings")
    _save(values, url, access["url"], added)
    log.write(f"Registered runner {name} with id {added['id']}")
    say("√ Settings Saved.\n")


def remove(values: dict[str, str], log: Diagnostics) -> None:
    """Deregister, then delete the kept registration; the latter alone where GitHub no longer knows the runner."""
    _section("Runner removal")
    if not configured():
        say("Does not exist. Skipping Removing runner from the server")
        return
    kept = settings()
    if "gitHubUrl" not in kept:  # the real one fails, too: https://github.com/actions/runner/issues/2920
        raise TerminatedError("Failed: Removing runner from the server\nThe runner has a just-in-time configuration.")
    access = _access(kept["gitHubUrl"], "remove", _value({"unattended": "true", **values}, "token"))
    try:
        request("DELETE", f"{access['url']}/runners/{kept['agentId']}", f"Bearer {access['token']}")
        say("\n√ Runner removed successfully")
    except ServiceError as error:
        if error.status != 404:
            raise TerminatedError(f"Failed: Removing runner from the server\n{error}") from None
        say("\nDoes not exist. Skipping Removing runner from the server")
    delete_registration()
    log.write(f"Removed runner {kept['agentName']}")
    say("√ Removed .credentials\n√ Removed .runner\n")


def _access(url: str, event: str, token: str) -> dict[str, Any]:
    """Exchange the token for access to the service."""
    parts = urlsplit(url)
    target = f"{parts.scheme}://{parts.netloc}/api/v3/actions/runner-registration"
    try:
        return request("POST", target, f"RemoteAuth {token}", {"url": url, "runner_event": event})[1]
    except ServiceError as error:
        reason = error.reason.replace(" ", "")
        raise TerminatedError(
            f"Http response code: {reason} from 'POST {target}' (Request Id: {error.request_id})\n"
            f"{json.dumps(error.document)}\n"
            f"Response status code does not indicate success: {error.status} ({error.reason})."
        ) from None
    except OSError as error:
        raise TerminatedError(f"An error occurred while sending the request. {error}") from None


def _value(values: dict[str, str], name: str, valid=bool, default: str = "") -> str:  # type: ignore[no-untyped-def]
    """An option that must be valid; who is not unattended is asked for it."""
    value = values.get(name, default)
    if not valid(value) and "unattended" not in values:
        try:
            value = input(f"Enter the value for {name}: ")
        except EOFError:
            value = ""
    if not valid(value):
        raise TerminatedError(f"Invalid configuration provided for {name}. Terminating unattended configuration.")
    return value


def _save(values: dict[str, str], url: str, service: str, added: dict[str, Any]) -> None:
    kept = {"agentId": added["id"], "agentName": added["name"], "poolId": 1, "poolName": added["group"]}
    kept.update(serverUrl=service, gitHubUrl=url, workFolder=values.get("work") or "_work")
    kept.update({"ephemeral": True} if "ephemeral" in values else {})
    kept.update({"disableUpdate": True} if "disableupdate" in values else {})
    (ROOT / ".runner").write_text(json.dumps(kept, indent=2), encoding="utf-8-sig")
    _write_private(ROOT / ".credentials", {"scheme": "OAuth", "data": {"authorizationUrl": service}})
    _write_private(ROOT / ".credentials_rsaparams", {"d": added["secret"]})


def _write_private(path: Path, document: dict[str, Any]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(document, file)


def _section(title: str) -> None:
    say(f"\n# {title}\n")


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)
