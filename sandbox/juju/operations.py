"""What an operator, or Juju itself, does to the unit: deploy, run actions, refresh, remove; and all operations."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import hooktools
import storage
import store
from options import (
    get_config,
    get_model_config,
    parse_config,
    reset_config,
    set_config,
    set_model_config,
    write_timer,
)
from relations import break_relation, integrate, join, relation_data, remove_relation, set_relation_data
from running import (
    HERE,
    JUJU_VERSION,
    SYSTEM_PATH,
    TOOLS,
    JujuError,
    charm_dir,
    close_context,
    machine_lock,
    open_context,
    run_in_context,
)
from uniter import (
    AGENT_DOWN,
    boot_mark,
    drain,
    ingress,
    note_config_seen,
    queue,
    reboot,
    recover,
    refuse_while_down,
    retries,
    summary,
)
from user_secrets import add_secret, grant_secret, remove_secret, update_secret

INCOMING = Path(store.FOLDER, "incoming")
MANIFEST = Path(store.FOLDER, "manifest.json")


def deploy(
    app: str,
    number: int = 0,
    config: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    model_uuid: str = "",
    juju_version: str = JUJU_VERSION,
    shared: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Deploy the charm that lies in FOLDER/incoming, and run its first hooks; shared: what the application has."""
    if store.read():
        raise JujuError(f'cannot add application "{app}": application already exists')
    charm = read_charm(INCOMING, 0)
    state = {
        **_first_state(app, number),
        "model": {"name": "sandbox", "uuid": model_uuid or str(uuid.uuid4()), "config": {}},
        "juju_version": juju_version,
        "charm": charm,
        "config": parse_config(charm["config"], app, config or {}),
    }
    for name, record in charm["storage"].items():
        location = record.get("location") or f"/var/lib/juju/storage/{name}/0"
        state["storage"][f"{name}/0"] = {"kind": record["type"], "location": location, "attached": True}
        queue(state, f"{name}-storage-attached", storage_id=f"{name}/0")
    queue(state, "install")
    _share(state, shared or {})
    for hook in (*(["leader-elected"] if number == 0 else []), "config-changed", "start"):
        queue(state, hook)
    for relation, record in state["relations"].items():
        for remote, data in record["units"].items():
            join(state, relation, remote, data)
    set_up_unit(state)
    store.replace(store.STATE, state)
    if model_config:
        set_model_config(model_config)
    write_timer()
    return drain()


def _first_state(app: str, number: int) -> dict[str, Any]:
    """What the agent knows of a unit that has run nothing yet, short of what it is deployed with."""
    return {
        "app": app,
        "unit": f"{app}/{number}",
        "config_seen": "",
        "relations": {},
        "next_relation": 0,
        "secrets": {},
        "storage": {},
        "version": "",
        "life": "alive",
        "since": store.now(),
        "zone": "",
        "queue": [],
        "current": None,
        "failed": None,
        "attempts": 0,
        "rebooting": False,
        "reboot_mode": "normal",
        "reboot_delay": 0,
        "late_storage": 0,
        "agent_down": "",
        "tool_faults": {},
        "address_seen": "",
        "boot": boot_mark(),
        "installed": False,
        "started": False,
        "contexts": 0,
        "tasks": {},
        "next_task": 1,
        "history": [],
        "app_status": {"status": "unknown", "message": "", "since": store.now(), "data": {}},
        "unit_status": {"status": "waiting", "message": "agent initialising", "since": store.now(), "data": {}},
    }


def _share(state: dict[str, Any], shared: dict[str, Any]) -> None:
    """What a further unit finds: its application's secrets and relations, of which it has read and written nothing."""
    secrets = shared.get("secrets", {})
    state["secrets"] = {identity: {**record, "tracked": {}, "labels": {}} for identity, record in secrets.items()}
    state["next_relation"] = shared.get("next_relation", 0)
    for number, record in shared.get("relations", {}).items():
        state["relations"][number] = {**record, "local_unit": ingress()}
        about = {"relation_id": number, "remote_app": record["remote_app"]}
        queue(state, f"{record['endpoint']}-relation-created", **about)


def read_charm(folder: Path, revision: int) -> dict[str, Any]:
    """A charm's YAML files; PyYAML comes with ops, so it is in what the charm brings along."""
    script = (
        "import json, pathlib, sys, yaml; folder = pathlib.Path(sys.argv[1]);"
        "names = ('metadata', 'config', 'actions');"
        "files = [folder / (name + '.yaml') for name in names];"
        "print(json.dumps([yaml.safe_load(f.read_text()) if f.exists() else {} for f in files]))"
    )
    packages = next((folder / "venv/lib").glob("python3*/site-packages"), folder)
    variables = {"PYTHONPATH": str(packages), "PATH": SYSTEM_PATH}
    command = ("python3", "-c", script, str(folder))
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        raise JujuError(f"cannot read the charm: {done.stderr.strip().splitlines()[-1]}")
    metadata, config, actions = (content or {} for content in json.loads(done.stdout))
    endpoints = {
        name: {"role": role, "interface": record["interface"]}
        for role in ("provides", "requires", "peers")
        for name, record in (metadata.get(role) or {}).items()
    }
    return {
        "name": metadata["name"],
        "revision": revision,
        "metadata": metadata,
        "endpoints": endpoints,
        "config": config.get("options") or {},
        "actions": actions,
        "storage": metadata.get("storage") or {},
    }


def set_up_unit(state: dict[str, Any]) -> None:
    """The folders, links and mounts of a unit."""
    folder = charm_dir(state)
    folder.parent.mkdir(parents=True, exist_ok=True)
    Path(store.CONTEXTS).mkdir(exist_ok=True)
    Path(store.LOG_FOLDER).mkdir(exist_ok=True)
    install_charm(state)
    tools = TOOLS / store.tag(state["unit"])
    tools.mkdir(parents=True, exist_ok=True)
    for name in hooktools.TOOLS:
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(HERE / "tool")
    storage.mount(state)


def install_charm(state: dict[str, Any]) -> None:
    """Put the incoming charm into the unit's folder: an older one's files go, what hooks wrote there stays."""
    folder = charm_dir(state)
    if not (INCOMING / "venv" / ".compiled").exists():
        compile_all = (sys.executable, "-m", "compileall", "-q", "-j", "0", str(INCOMING / "venv"))
        subprocess.run(compile_all, capture_output=True)
    fresh = {str(path.relative_to(INCOMING)) for path in INCOMING.rglob("*") if not path.is_dir() or path.is_symlink()}
    for name in set(store.read(str(MANIFEST)).get("files", ())) - fresh:
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    subprocess.run(("cp", "-a", "--reflink=auto", f"{INCOMING}/.", str(folder)), check=True)
    shutil.rmtree(INCOMING)
    store.replace(str(MANIFEST), {"files": sorted(fresh)})


def update_status() -> dict[str, Any]:
    """Fire update-status, if the unit has nothing better to do."""
    with store.Changing() as state:
        if state["started"] and not state["failed"] and state["life"] == "alive":
            queue(state, "update-status")
    return drain()


def run_action(name: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run an action; gives its task: id, status, message, results and log."""
    state = store.read()
    if state["agent_down"]:
        raise JujuError(f"timed out waiting for results from: unit {state['unit']}")
    spec = state["charm"]["actions"].get(name)
    if spec is None:
        raise JujuError(f'action "{name}" not defined on unit "{state["unit"]}"')
    params = _action_params(spec, params or {})
    with store.Changing() as changing:
        task, changing["next_task"] = str(changing["next_task"] + 1), changing["next_task"] + 2
        changing["tasks"][task] = {
            "id": task,
            "name": name,
            "status": "pending",
            "results": {},
            "message": "",
            "log": [],
        }
    with machine_lock(f"action {name}"):
        recover()
        _mark_task(task, status="running")
        store.event(event="action-start", action=name, task=task)
        state = store.read()
        context = open_context(state, "action", name, action={"uuid": task, "name": name, "params": params})
        code, stdout, stderr = run_in_context(state, context, [str(charm_dir(state) / "dispatch")], keep_output=True)
        buffer = close_context(context, code == 0)["buffer"]
    results = {**buffer["results"], "return-code": code}
    results.update({key: text for key, text in (("stdout", stdout), ("stderr", stderr)) if text})
    failed = code != 0 or buffer["failed"]
    ended = f"exit status {code}" if code > 0 else "terminated" if code else ""
    message = buffer["message"] if buffer["failed"] else ended
    _mark_task(task, status="failed" if failed else "completed", message=message, results=results)
    with contextlib.suppress(JujuError):
        drain()
    return store.read()["tasks"][task]


def _mark_task(task: str, **fields: Any) -> None:
    with store.Changing() as state:
        state["tasks"][task].update(fields)


def _action_params(spec: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """Check parameters against actions.yaml's JSON schema, and add its defaults."""
    known, given = spec.get("params") or {}, json.dumps(params, sort_keys=True, separators=(",", ":"))
    for name in spec.get("required") or ():
        if name not in params:
            raise JujuError(f'validation failed: (root) : "{name}" property is missing and required, given {given}')
    for name, value in params.items():
        if name not in known:
            if spec.get("additionalProperties", True) is False:
                reason = f'additional property "{name}" is not allowed'
                raise JujuError(f"validation failed: (root) : {reason}, given {given}")
            continue
        kind = known[name].get("type")
        if kind and not _is_of_type(value, kind):
            reason = f"must be of type {kind}, given {json.dumps(value)}"
            raise JujuError(f"validation failed: (root).{name} : {reason}")
    defaults = {name: record["default"] for name, record in known.items() if "default" in record}
    return {**defaults, **params}


def _is_of_type(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    types: dict[str, Any] = {"integer": int, "number": (int, float), "string": str, "array": list, "object": dict}
    return isinstance(value, types.get(kind, object))


def run_commands(command: str, unit: str | None = None, context: bool = True) -> dict[str, Any]:
    """What juju-exec asks for: a shell command in the charm's folder with a hook's context."""
    state = store.read()
    if not state or (unit and unit != state["unit"]):
        raise JujuError(f'unit "{unit}" not found on this machine')
    refuse_while_down()
    with machine_lock("juju-exec"):
        refuse_while_down(waited=True)
        recover()
        state = store.read()
        # As Juju does it: the shell reads the command, and so does what the command starts and lets read.
        shell = ["/bin/bash", "-s"]
        if not context:
            done = subprocess.run(shell, capture_output=True, text=True, input=command, cwd="/root")
            return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        held = open_context(state, "command", "run-commands")
        code, stdout, stderr = run_in_context(state, held, shell, keep_output=True, script=command)
        # A command that fails is no failure of Juju's: what it wrote counts, unless a signal ended the shell.
        buffer = close_context(held, code >= 0)["buffer"]
        if buffer["reboot"]:
            reboot()
    if code < 0:
        raise JujuError(f"signal: {str(signal.strsignal(-code)).lower()}")
    return {"code": code, "stdout": stdout, "stderr": stderr}


def refresh() -> dict[str, Any]:
    """Replace the charm by the incoming one; upgrade-charm and config-changed follow."""
    charm = read_charm(INCOMING, store.read()["charm"]["revision"] + 1)
    with machine_lock("refresh"):
        recover()
        with store.Changing() as state:
            # Settings of options that the new charm no longer has, or has with another type, are dropped.
            old, state["charm"] = state["charm"], charm
            kept = {n for n, o in charm["config"].items() if old["config"].get(n, {}).get("type") == o["type"]}
            state["config"] = {name: value for name, value in state["config"].items() if name in kept}
            install_charm(state)
            if state["installed"]:
                state["config_seen"] = ""
                state["queue"] = [{"name": "upgrade-charm"}, {"name": "config-changed"}, *state["queue"]]
                # In error an upgrade waits for the failed hook, as without `juju refresh --force-units`.
    return drain()


def remove_application() -> dict[str, Any]:
    """The unit's end, in Juju's order: its storage is detached, its relations break, then stop and remove."""
    with store.Changing() as state:
        state["life"] = "dying"
        state["queue"] = []
        for name, record in state["storage"].items():
            if record["attached"]:
                queue(state, f"{name.split('/')[0]}-storage-detaching", storage_id=name)
        for number in list(state["relations"]):
            break_relation(state, number)
        queue(state, "stop")
        queue(state, "remove")
    return drain()


def resolved(no_retry: bool = False) -> dict[str, Any]:
    """Take the unit out of error: run the failed hook again, or with no_retry go on without it."""
    with store.Changing() as state:
        failed = state["failed"]
        if not failed:
            raise JujuError(f'unit "{state["unit"]}" is not in an error state')
        state["failed"] = None
        if not no_retry:
            state["queue"].insert(0, failed["hook"])
        elif failed["hook"]["name"] in ("install", "start"):
            state["installed"] = True
            state["started"] = state["started"] or failed["hook"]["name"] == "start"
        elif failed["hook"]["name"] == "config-changed":
            note_config_seen(state, store.effective_config(state))
    return drain()


def retry() -> dict[str, Any]:
    """Run a failed hook again because its time has come; that of an earlier failure is nobody's time any more."""
    with store.Changing() as state:
        if state["failed"] and retries(state) and time.time() >= state["failed"]["due"] - 0.5:
            state["queue"].insert(0, state["failed"]["hook"])
            state["failed"] = None
    return drain()


def agent_down(how: str = "refused") -> None:
    """The agent goes down, or loses its controller, after what it runs just now: no hooks, and juju-exec fails."""
    if how not in AGENT_DOWN:
        raise JujuError(f"{how}: one of {', '.join(AGENT_DOWN)}")
    with machine_lock("agent-down"), store.Changing() as state:
        state["agent_down"] = how


def agent_up() -> dict[str, Any]:
    """It is back, and runs what has become due."""
    with store.Changing() as state:
        state["agent_down"] = ""
    return drain()


def set_reboot_mode(mode: str = "normal", seconds: float = 0) -> None:
    """What becomes of a charm's wish to reboot: normal is at once, delayed is after seconds, lost is never."""
    if mode not in ("normal", "delayed", "lost"):
        raise JujuError(f"{mode}: one of normal, delayed, lost")
    with store.Changing() as state:
        state["reboot_mode"], state["reboot_delay"] = mode, seconds if mode == "delayed" else 0


def fail_tool(name: str, text: str = "") -> None:
    """From now on a hook tool exits with 1 and this text after ERROR; without text it works again."""
    with store.Changing() as state:
        state["tool_faults"].pop(name, None)
        if text:
            state["tool_faults"][name] = text


def late_storage(seconds: float) -> None:
    """At the next boot storage is mounted so many seconds after the first hook may run."""
    with store.Changing() as state:
        state["late_storage"] = seconds


def mount_storage() -> None:
    """Mount what is attached."""
    storage.mount(store.read())


def get_state() -> dict[str, Any]:
    return store.read()


QUESTIONS = (summary, get_config, get_model_config, relation_data, get_state)
SETTINGS = (
    *(set_model_config, add_secret, grant_secret, remove_secret),
    *(agent_down, set_reboot_mode, late_storage, mount_storage, fail_tool),
)
WORK = (
    *(deploy, set_config, reset_config, update_status, run_action, run_commands, integrate, drain, retry),
    *(set_relation_data, remove_relation, update_secret, refresh, remove_application, resolved, agent_up),
)
OPERATIONS = {function.__name__.replace("_", "-"): function for function in (*QUESTIONS, *SETTINGS, *WORK)}
