"""The hook tools: one program under all of Juju's names, on the PATH of hooks, actions and juju-exec commands.

They are those that this charm, ops and the tests call. As in Juju, what describes the unit (status, logs, the
workload's version) is done at once; relation data waits in the hook's context until the hook has succeeded.
"""

# Files are opened the short way: pathlib alone would take a third of a tool's time.
# ruff: noqa: PTH123, SIM115
import json
import os
import re
import sys
from typing import Any

import store

RESULT_KEY = re.compile(r"^[a-z0-9](([a-z0-9-.]+)?[a-z0-9])?$")
RESERVED_RESULTS = ("stdout", "stdout-encoding", "stderr", "stderr-encoding", "return-code")
SETTABLE_STATUSES = ("maintenance", "blocked", "waiting", "active")
NO_ADDRESS = "127.0.0.1"
SECRET_ID = re.compile(r"^(?:secret:(?://[^/]+/)?)?([0-9a-v]{20})$")


class ToolError(Exception):
    """What the tool says after ERROR."""


class Call:
    """One call of a tool: its arguments, the context it belongs to, and the state."""

    def __init__(self, arguments: list[str], context: dict[str, Any], state: dict[str, Any]) -> None:
        self.arguments = arguments
        self.context = context
        self.state = state

    def change_state(self) -> store.Changing:
        return store.Changing()

    def change_context(self) -> store.Changing:
        return store.Changing(store.context_path(self.context["id"]))

    def parse(
        self,
        values: tuple[str, ...] = (),
        switches: tuple[str, ...] = (),
        aliases: dict[str, str] | None = None,
    ) -> tuple[dict[str, Any], list[str]]:
        """Split the arguments as Go's flag library does: options anywhere before `--`, a value after `=` or a blank."""
        options: dict[str, Any] = {}
        words: list[str] = []
        rest = list(self.arguments)
        while rest:
            word = rest.pop(0)
            if word == "--":
                words += rest
                break
            if not word.startswith("-") or word == "-":
                words.append(word)
                continue
            name, equals, value = word.lstrip("-").partition("=")
            name = (aliases or {}).get(name, name)
            if name in switches:
                options[name] = _boolean(value) if equals else True
            elif name in values:
                if not equals and not rest:
                    raise ToolError(f"option needs an argument: -{'-' if len(name) > 1 else ''}{name}")
                options[name] = value if equals else rest.pop(0)
            else:
                raise ToolError(f"option provided but not defined: {word}")
        return options, words

    def relation(self, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The id and record of the relation that -r names, or the hook's own."""
        given = options.get("r", "")
        number = given.rpartition(":")[2] if given else self.context.get("relation_id")
        if number is None or number == "":
            raise ToolError("no relation id specified")
        record = self.state["relations"].get(str(number))
        if record is None or (":" in given and given.split(":")[0] != record["endpoint"]):
            raise ToolError(f'invalid value "{given}" for option -r: relation not found')
        return str(number), record


def _boolean(word: str) -> bool:
    if word in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if word in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ToolError(f'invalid value "{word}": strconv.ParseBool: parsing "{word}": invalid syntax')


def _show(value: Any, options: dict[str, Any]) -> None:
    """Print as --format asks: JSON, or a plain text that is good enough to be read by a shell."""
    if options.get("format", "smart") == "json":
        print(json.dumps(value))
    elif isinstance(value, bool):
        print(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            print(f"{key}: {item if isinstance(item, str) else json.dumps(item)}")
    elif isinstance(value, list):
        print("\n".join(str(item) for item in value))
    elif value is not None:
        print(value)


FORMAT = {"o": "output"}


def config_get(call: Call) -> None:
    options, words = call.parse(("format", "output"), ("a", "all"), FORMAT)
    values = call.context["config"]
    if words:
        return _show(values.get(words[0]), options)
    if options.get("a") or options.get("all"):
        values = {**dict.fromkeys(call.state["charm"]["config"]), **values}
    return _show(values, options)


def is_leader(call: Call) -> None:
    options, _ = call.parse(("format", "output"), (), FORMAT)
    _show(_leads(call.state), options)


def _leads(state: dict[str, Any]) -> bool:
    """The first unit leads its application."""
    return state["unit"].endswith("/0")


def juju_log(call: Call) -> None:
    options, words = call.parse(("log-level", "format"), ("debug",), {"l": "log-level"})
    level = "DEBUG" if options.get("debug") else options.get("log-level", "INFO").upper()
    level = {"WARN": "WARNING"}.get(level, level)
    if not words:
        raise ToolError("no message specified")
    if level not in store.LEVELS:
        store.log(call.state["unit"], "WARNING", "juju-log", f'Specified log level of "{level}" is not valid')
        level = "INFO"
    unit = call.state["unit"]
    relation = call.context.get("relation_id")
    prefix = f"{call.state['relations'][relation]['endpoint']}:{relation}: " if relation else ""
    store.log(unit, level, f"unit.{unit}.juju-log", prefix + " ".join(words))


def status_set(call: Call) -> None:
    options, words = call.parse((), ("application",))
    if not words:
        raise ToolError("invalid args, require <status> [message]")
    status, message = words[0], " ".join(words[1:])
    if options.get("application") and not _leads(call.state):
        raise ToolError("setting application status: this unit is not the leader")
    if status not in SETTABLE_STATUSES:
        raise ToolError(f'invalid status "{status}", expected one of [{" ".join(SETTABLE_STATUSES)}]')
    record = {"status": status, "message": message, "since": store.now(), "data": {}}
    with call.change_state() as state:
        key = "app_status" if options.get("application") else "unit_status"
        changed = (state[key]["status"], state[key]["message"]) != (status, message)
        state[key] = record
        state["history"] = [*state["history"][-199:], {"kind": key, **record}]
    with call.change_context() as context:
        context["status_was_set"] = True
    if changed and key == "unit_status":
        store.event(event="status", status=status, message=message)


def status_get(call: Call) -> None:
    options, _ = call.parse(("format", "output"), ("include-data", "application"), FORMAT)
    unit = _status(call.state["unit_status"])
    if call.state.get("failed"):
        # Juju hides the charm's own status while the unit is in error.
        hook = call.state["failed"]["hook"]["name"]
        unit = {"message": f'hook failed: "{hook}"', "status": "error", "status-data": {"hook": hook}}
    if options.get("application"):
        if not _leads(call.state):
            raise ToolError("finding application status: this unit is not the leader")
        units = {call.state["unit"]: unit}
        return _show({"application-status": {**_status(call.state["app_status"]), "units": units}}, options)
    if options.get("include-data") or options.get("format") == "json":
        return _show(unit, options)
    return _show(unit["status"], options)


def _status(record: dict[str, Any]) -> dict[str, Any]:
    return {"message": record["message"], "status": record["status"], "status-data": record["data"]}


def relation_ids(call: Call) -> None:
    options, words = call.parse(("format", "output"), (), FORMAT)
    if not words and not call.context.get("relation_id"):
        raise ToolError("no endpoint name specified")
    endpoint = words[0] if words else call.state["relations"][call.context["relation_id"]]["endpoint"]
    found = [f"{endpoint}:{i}" for i, r in call.state["relations"].items() if r["endpoint"] == endpoint]
    _show(sorted(found), options)


def relation_list(call: Call) -> None:
    options, _ = call.parse(("format", "output", "r"), ("app",), {**FORMAT, "relation": "r"})
    _, record = call.relation(options)
    _show(record["remote_app"] if options.get("app") else sorted(record["units"]), options)


def relation_get(call: Call) -> None:
    options, words = call.parse(("format", "output", "r"), ("app",), {**FORMAT, "relation": "r"})
    number, record = call.relation(options)
    key = words[0] if words and words[0] != "-" else None
    if len(words) > 1:
        name = words[1]
    else:
        name = call.context.get("remote_app" if options.get("app") else "remote_unit") or ""
        if not name:
            raise ToolError("no unit or application specified")
    data = _databag(call, number, record, name, bool(options.get("app")))
    _show(data if key is None else data.get(key), options)


def _databag(call: Call, number: str, record: dict[str, Any], name: str, wants_app: bool) -> dict[str, str]:
    state, bags = call.state, call.context["buffer"]["relations"].get(number, {})
    app = name.split("/")[0]
    if app == state["app"]:
        if not wants_app and name != state["unit"]:
            raise ToolError("permission denied")
        kind = "app" if wants_app else "unit"
        data = {**record[f"local_{kind}"], **bags.get(kind, {})}
        return {key: value for key, value in data.items() if value != ""}
    if wants_app and app == record["remote_app"]:
        return record["remote_app_data"]
    departed = call.context.get("departed", {})
    if name not in record["units"] and name not in departed:
        raise ToolError(
            f'cannot read settings for unit "{name}" in relation "{_key(state, record)}": permission denied'
        )
    return record["units"].get(name, departed.get(name))


def _key(state: dict[str, Any], record: dict[str, Any]) -> str:
    return f"{record['remote_app']}:{record['endpoint']} {state['app']}:{record['endpoint']}"


def relation_set(call: Call) -> None:
    options, words = call.parse(("format", "r", "file"), ("app",), {"relation": "r"})
    number, _ = call.relation(options)
    if options.get("app") and not _leads(call.state):
        raise ToolError("cannot write relation settings: permission denied")
    values = {}
    if "file" in options:
        values.update(_document(options["file"]))
    values.update(_pairs(words))
    with call.change_context() as context:
        bag = (
            context["buffer"]["relations"]
            .setdefault(number, {})
            .setdefault("app" if options.get("app") else "unit", {})
        )
        bag.update(values)


def _document(path: str) -> dict[str, str]:
    text = sys.stdin.read() if path == "-" else open(path, encoding="utf-8").read()
    try:
        values = json.loads(text) if text.strip() else {}
    except ValueError:
        values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    for key, value in values.items():
        if not isinstance(value, str):
            raise ToolError(f"yaml: unmarshal errors: cannot unmarshal {key} into string")
    return values


def _pairs(words: list[str]) -> dict[str, str]:
    for word in words:
        if not word.partition("=")[1] or word.startswith("="):
            raise ToolError(f'expected "key=value", got "{word}"')
    return dict(word.split("=", 1) for word in words)


def _action(call: Call, tool: str) -> dict[str, Any]:
    if call.context["kind"] != "action":
        raise ToolError("not running an action")
    return call.context["action"]


def action_get(call: Call) -> None:
    options, words = call.parse(("format", "output"), (), FORMAT)
    value = _action(call, "action-get")["params"]
    for part in words[0].split(".") if words else ():
        value = value.get(part) if isinstance(value, dict) else None
    _show(value, options)


def action_set(call: Call) -> None:
    _, words = call.parse()
    _action(call, "action-set")
    updates = []
    for pair in words:
        path, equals, value = pair.partition("=")
        if not equals:
            raise ToolError(f'argument "{pair}" must be of the form key...=value')
        keys = path.split(".")
        if keys[0] in RESERVED_RESULTS:
            raise ToolError(f'cannot set reserved action key "{keys[0]}"')
        for key in keys:
            if not RESULT_KEY.match(key):
                raise ToolError(
                    f'key "{key}" must start and end with lowercase alphanumeric, and contain only lowercase '
                    "alphanumeric, hyphens and periods"
                )
        updates.append((keys, value))
    with call.change_context() as context:
        for keys, value in updates:
            level = context["buffer"]["results"]
            for key in keys[:-1]:
                if not isinstance(level.get(key), dict):
                    level[key] = {}
                level = level[key]
            level[keys[-1]] = value


def action_fail(call: Call) -> None:
    _, words = call.parse()
    _action(call, "action-fail")
    with call.change_context() as context:
        context["buffer"]["failed"] = True
        context["buffer"]["message"] = " ".join(words) or "action failed without reason given, check action for errors"


def action_log(call: Call) -> None:
    _, words = call.parse()
    action = _action(call, "action-log")
    message = " ".join(words)
    with call.change_state() as state:
        state["tasks"][action["uuid"]]["log"].append({"timestamp": store.now(), "message": message})
    store.event(event="action-log", task=action["uuid"], message=message)


def storage_list(call: Call) -> None:
    options, words = call.parse(("format", "output"), (), FORMAT)
    found = [name for name, record in call.state["storage"].items() if record["attached"]]
    _show(sorted(name for name in found if not words or name.split("/")[0] == words[0]), options)


def storage_get(call: Call) -> None:
    options, words = call.parse(("format", "output", "s"), (), FORMAT)
    name = options.get("s") or call.context.get("storage_id")
    if not name:
        raise ToolError("no storage instance specified")
    record = call.state["storage"].get(name)
    if record is None or not record["attached"]:
        raise ToolError(f'invalid value "{name}" for option -s: storage not found')
    values = {"kind": record["kind"], "location": record["location"]}
    if words and words[0] not in values:
        raise ToolError(f'invalid storage attribute "{words[0]}"')
    _show(values[words[0]] if words else values, options)


def _secret(call: Call, words: list[str], options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The id and record of the secret that is named by id or by a label that the charm gave it."""
    if words:
        match = SECRET_ID.match(words[0])
        if not match:
            raise ToolError(f'secret URI "{words[0]}" not valid')
        identity = match.group(1)
    else:
        label = options.get("label", "")
        if not label:
            raise ToolError("require either a secret URI or label")
        labels = {r["labels"].get(call.state["unit"]): i for i, r in call.state["secrets"].items()}
        if label not in labels:
            raise ToolError(f'consumer label "{label}" not found')
        identity = labels[label]
    record = call.state["secrets"].get(identity)
    if record is None:
        raise ToolError(f'secret "{identity}" not found')
    return identity, record


def secret_get(call: Call) -> None:
    options, words = call.parse(("format", "output", "label"), ("refresh", "peek"), FORMAT)
    identity, record = _secret(call, words[:1], options)
    app, unit = call.state["app"], call.state["unit"]
    if app not in record["granted"]:
        raise ToolError("permission denied")
    latest = max(int(number) for number in record["revisions"])
    revision = record["tracked"].get(unit)
    # The first look starts the tracking, and is told at once: it is not undone when the hook fails.
    if revision is None or options.get("refresh") or options.get("label"):
        with call.change_state() as state:
            fresh = state["secrets"][identity]
            if revision is None or options.get("refresh"):
                fresh["tracked"][unit] = revision = latest
            if options.get("label"):
                fresh["labels"][unit] = options["label"]
    content = record["revisions"][str(latest if options.get("peek") else revision)]
    key = words[1] if len(words) > 1 else None
    if key is not None and key not in content:
        raise ToolError(f'value for key "{key}" not found')
    _show(content if key is None else content[key], options)


def application_version_set(call: Call) -> None:
    _, words = call.parse()
    if len(words) != 1:
        raise ToolError("no version specified" if not words else f"unrecognized args: {json.dumps(words[1:])}")
    with call.change_state() as state:
        state["version"] = words[0]


def juju_reboot(call: Call) -> None:
    options, _ = call.parse((), ("now",))
    if call.context["kind"] == "action":
        raise ToolError("juju-reboot is not supported when running an action.")
    with call.change_context() as context:
        context["buffer"]["reboot"] = "now" if options.get("now") else "after"
        process = context["pid"]
    if options.get("now"):
        os.kill(process, 9)


def unit_address() -> str:
    """The machine's own IPv4 address."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: this only asks the kernel for the route
            return probe.getsockname()[0]
        except OSError:
            return NO_ADDRESS


TOOLS = {
    "action-fail": action_fail,
    "action-get": action_get,
    "action-log": action_log,
    "action-set": action_set,
    "application-version-set": application_version_set,
    "config-get": config_get,
    "is-leader": is_leader,
    "juju-log": juju_log,
    "juju-reboot": juju_reboot,
    "relation-get": relation_get,
    "relation-ids": relation_ids,
    "relation-list": relation_list,
    "relation-set": relation_set,
    "secret-get": secret_get,
    "status-get": status_get,
    "status-set": status_set,
    "storage-get": storage_get,
    "storage-list": storage_list,
}


def main(name: str, arguments: list[str]) -> int:
    """Run one tool; gives the exit code."""
    context_id = os.environ.get("JUJU_CONTEXT_ID", "")
    context = store.read(store.context_path(context_id)) if context_id else {}
    if not context_id:
        print("ERROR JUJU_CONTEXT_ID not set", file=sys.stderr)
        return 1
    if not context:
        # A tool outlives its hook only in a process that was left behind; Juju answers it with this.
        print(f'ERROR bad request: bad context: unknown context "{context_id}"', file=sys.stderr)
        return 1
    context["tool"] = name
    state = store.read()
    try:
        if name in state.get("tool_faults", {}):
            raise ToolError(state["tool_faults"][name])
        TOOLS[name](Call(arguments, context, state))
    except ToolError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    return 0
