"""What an operator, or Juju itself, does to the unit: deploy, configure, relate, run actions, refresh, remove."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import hooktools
import storage
import store
from running import (
    HERE,
    JUJU_VERSION,
    MODEL_DEFAULTS,
    SYSTEM_PATH,
    TOOLS,
    JujuError,
    charm_dir,
    close_context,
    machine_lock,
    new_secret,
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
    queue_config_changed,
    reboot,
    recover,
    refuse_while_down,
    retries,
    summary,
)

SYSTEMD = Path("/etc/systemd/system")
INCOMING = Path(store.FOLDER, "incoming")
MANIFEST = Path(store.FOLDER, "manifest.json")


def deploy(app, number=0, config=None, model_config=None, model_uuid="", juju_version=JUJU_VERSION, shared=None):
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
            _join(state, relation, remote, data)
    set_up_unit(state)
    store.replace(store.STATE, state)
    if model_config:
        set_model_config(model_config)
    write_timer()
    return drain()


def _first_state(app, number):
    """What the agent knows of a unit that has run nothing yet, short of what it is deployed with."""
    return {
        "app": app,
        "unit": f"{app}/{number}",
        "config_seen": "",
        "relations": {},
        "next_relation": 0,
        "secrets": {},
        "storage": {},
        "charm_state": {},
        "ports": [],
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


def _share(state, shared):
    """What a further unit finds: its application's secrets and relations, of which it has read and written nothing."""
    secrets = shared.get("secrets", {})
    state["secrets"] = {identity: {**record, "tracked": {}, "labels": {}} for identity, record in secrets.items()}
    state["next_relation"] = shared.get("next_relation", 0)
    for number, record in shared.get("relations", {}).items():
        state["relations"][number] = {**record, "local_unit": ingress()}
        about = {"relation_id": number, "remote_app": record["remote_app"]}
        queue(state, f"{record['endpoint']}-relation-created", **about)


def read_charm(folder, revision):
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


def set_up_unit(state):
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


def install_charm(state):
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


def parse_config(options, app, values):
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


def _parse_boolean(word):
    if word in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if word in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(word)


def _parse_int(word):
    if not word.lstrip("+-").isdigit() or not word.isascii() or not -(2**63) <= int(word) < 2**63:
        raise ValueError(word)
    return int(word)


def _parse_secret(word):
    if word and not word.startswith("secret:"):
        raise ValueError(word)
    return word


_PARSERS = {"string": str, "int": _parse_int, "float": float, "boolean": _parse_boolean, "secret": _parse_secret}


def get_config():
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


def set_config(values):
    with store.Changing() as state:
        state["config"].update(parse_config(state["charm"]["config"], state["app"], values))
        queue_config_changed(state)
    return drain()


def reset_config(names):
    with store.Changing() as state:
        for name in names:
            if name not in state["charm"]["config"]:
                raise JujuError(f'parsing settings for application: unknown option "{name}"')
            state["config"].pop(name, None)
        queue_config_changed(state)
    return drain()


def get_model_config():
    return {**MODEL_DEFAULTS, **store.read()["model"]["config"]}


def set_model_config(values):
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


def _duration(word):
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


def write_timer():
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


def update_status():
    """Fire update-status, if the unit has nothing better to do."""
    with store.Changing() as state:
        if state["started"] and not state["failed"] and state["life"] == "alive":
            queue(state, "update-status")
    return drain()


def run_action(name, params=None):
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


def _mark_task(task, **fields):
    with store.Changing() as state:
        state["tasks"][task].update(fields)


def _action_params(spec, params):
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


def _is_of_type(value, kind):
    if isinstance(value, bool):
        return kind == "boolean"
    types = {"integer": int, "number": (int, float), "string": str, "array": list, "object": dict}
    return isinstance(value, types.get(kind, object))


def run_commands(command, unit=None, context=True):
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
        raise JujuError(f"signal: {signal.strsignal(-code).lower()}")
    return {"code": code, "stdout": stdout, "stderr": stderr}


def integrate(endpoint, remote_app="", data=None, app_data=None):
    """Relate the unit to an application with one unit, whose databag holds data; gives the relation's id."""
    with store.Changing() as state:
        known = state["charm"]["endpoints"].get(endpoint)
        if known is None:
            raise JujuError(f'application "{state["app"]}" has no "{endpoint}" relation')
        remote = remote_app or f"remote-{endpoint}"
        if any((r["endpoint"], r["remote_app"]) == (endpoint, remote) for r in state["relations"].values()):
            raise JujuError(
                f'cannot add relation "{state["app"]}:{endpoint} {remote}:{endpoint}": relation already exists'
            )
        number, state["next_relation"] = str(state["next_relation"]), state["next_relation"] + 1
        state["relations"][number] = {
            "endpoint": endpoint,
            "interface": known["interface"],
            "remote_app": remote,
            "units": {},
            "remote_app_data": dict(app_data or {}),
            "local_unit": ingress(),
            "local_app": {},
        }
        queue(state, f"{endpoint}-relation-created", relation_id=number, remote_app=remote)
        _join(state, number, f"{remote}/0", data or {})
        if app_data:
            queue(state, f"{endpoint}-relation-changed", relation_id=number, remote_app=remote)
    drain()
    return number


def _join(state, number, unit, data):
    record = state["relations"][number]
    record["units"][unit] = {str(key): str(value) for key, value in data.items()}
    for event in ("joined", "changed"):
        about = {"relation_id": number, "remote_app": record["remote_app"], "remote_unit": unit}
        queue(state, f"{record['endpoint']}-relation-{event}", **about)


def relation_number(state, which):
    """A relation's id from its id or its endpoint's name."""
    which = str(which).rpartition(":")[2]
    found = [n for n, record in state["relations"].items() if which in (n, record["endpoint"])]
    if not found:
        raise JujuError(f'relation "{which}" not found')
    return found[0]


def join_unit(relation, unit, data=None):
    """One more unit of the remote application joins."""
    with store.Changing() as state:
        _join(state, relation_number(state, relation), unit, data or {})
    return drain()


def set_relation_data(relation, data, unit=None, app=False):
    """The remote side changes its databag; an empty value removes a key. Fires relation-changed if it differs."""
    with store.Changing() as state:
        number = relation_number(state, relation)
        record = state["relations"][number]
        unit = unit or next(iter(record["units"]), "")
        bag = record["remote_app_data"] if app else record["units"][unit]
        merged = {key: value for key, value in {**bag, **data}.items() if value != ""}
        if merged != bag:
            bag.clear()
            bag.update(merged)
            about = {"relation_id": number, "remote_app": record["remote_app"]}
            queue(state, f"{record['endpoint']}-relation-changed", **about, **({} if app else {"remote_unit": unit}))
    return drain()


def depart_unit(relation, unit):
    """A unit of the remote application leaves."""
    with store.Changing() as state:
        _depart(state, relation_number(state, relation), unit)
    return drain()


def _depart(state, number, unit):
    record = state["relations"][number]
    if unit not in record["units"]:
        raise JujuError(f'unit "{unit}" not found')
    departed = {unit: record["units"].pop(unit)}
    # Hooks that were still due for the unit are not run any more.
    state["queue"] = [h for h in state["queue"] if (h.get("relation_id"), h.get("remote_unit")) != (number, unit)]
    about = {"relation_id": number, "remote_app": record["remote_app"], "remote_unit": unit}
    queue(state, f"{record['endpoint']}-relation-departed", **about, departing_unit=unit, departed=departed)


def remove_relation(relation):
    with store.Changing() as state:
        _break(state, relation_number(state, relation))
    return drain()


def _break(state, number):
    record = state["relations"][number]
    for unit in sorted(record["units"]):
        _depart(state, number, unit)
    about = {"relation_id": number, "remote_app": record["remote_app"]}
    queue(state, f"{record['endpoint']}-relation-broken", **about)


def relation_data(relation):
    """Both sides' databags of a relation."""
    state = store.read()
    return state["relations"][relation_number(state, relation)]


def find_secret(state, name):
    identity = name.removeprefix("secret:")
    for key, record in state["secrets"].items():
        if identity == key or (record["owner"] == "model" and record["name"] == name):
            return key
    raise JujuError(f'secret "{name}" not found')


def add_secret(name, content, identity=None):
    """A user's secret; gives its URI. A further unit is given the identity that the secret has already."""
    with store.Changing() as state:
        if any(record["name"] == name for record in state["secrets"].values()):
            raise JujuError(f'secret with name "{name}" already exists')
        identity = (identity or os.urandom(15).hex()[:20]).removeprefix("secret:")
        state["secrets"][identity] = new_secret("model", name, _secret_content(content))
    return f"secret:{identity}"


def _secret_content(content):
    for key in content:
        if len(key) < 3 or not key.replace("-", "").isalnum() or not key[0].isalpha() or key != key.lower():
            raise JujuError(f'key "{key}" not valid')
    if not content:
        raise JujuError("missing secret value or filename")
    return content


def update_secret(name, content):
    """A new revision; who follows the secret hears of it with secret-changed."""
    with store.Changing() as state:
        identity = find_secret(state, name)
        record = state["secrets"][identity]
        latest = max(int(number) for number in record["revisions"])
        if record["revisions"][str(latest)] == _secret_content(content):
            return drain()
        record["revisions"][str(latest + 1)] = content
        if state["unit"] in record["tracked"]:
            queue(state, "secret-changed", secret_id=identity, secret_label=record["labels"].get(state["unit"], ""))
    return drain()


def grant_secret(name, app=None):
    """Let the application read the secret; no hook fires for it."""
    with store.Changing() as state:
        record = state["secrets"][find_secret(state, name)]
        record["granted"] = sorted({*record["granted"], app or state["app"]})


def revoke_secret(name, app=None):
    with store.Changing() as state:
        record = state["secrets"][find_secret(state, name)]
        record["granted"] = [granted for granted in record["granted"] if granted != (app or state["app"])]


def remove_secret(name):
    with store.Changing() as state:
        del state["secrets"][find_secret(state, name)]


def refresh():
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


def remove_application():
    """The unit's end, in Juju's order: its storage is detached, its relations break, then stop and remove."""
    with store.Changing() as state:
        state["life"] = "dying"
        state["queue"] = []
        for name, record in state["storage"].items():
            if record["attached"]:
                queue(state, f"{name.split('/')[0]}-storage-detaching", storage_id=name)
        for number in list(state["relations"]):
            _break(state, number)
        queue(state, "stop")
        queue(state, "remove")
    return drain()


def resolved(no_retry=False):
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


def retry():
    """Run a failed hook again because its time has come; that of an earlier failure is nobody's time any more."""
    with store.Changing() as state:
        if state["failed"] and retries(state) and time.time() >= state["failed"]["due"] - 0.5:
            state["queue"].insert(0, state["failed"]["hook"])
            state["failed"] = None
    return drain()


def agent_down(how="refused"):
    """The agent goes down, or loses its controller, after what it runs just now: no hooks, and juju-exec fails."""
    if how not in AGENT_DOWN:
        raise JujuError(f"{how}: one of {', '.join(AGENT_DOWN)}")
    with machine_lock("agent-down"), store.Changing() as state:
        state["agent_down"] = how


def agent_up():
    """It is back, and runs what has become due."""
    with store.Changing() as state:
        state["agent_down"] = ""
    return drain()


def set_reboot_mode(mode="normal", seconds=0):
    """What becomes of a charm's wish to reboot: normal is at once, delayed is after seconds, lost is never."""
    if mode not in ("normal", "delayed", "lost"):
        raise JujuError(f"{mode}: one of normal, delayed, lost")
    with store.Changing() as state:
        state["reboot_mode"], state["reboot_delay"] = mode, seconds if mode == "delayed" else 0


def fail_tool(name, text=""):
    """From now on a hook tool exits with 1 and this text after ERROR; without text it works again."""
    with store.Changing() as state:
        state["tool_faults"].pop(name, None)
        if text:
            state["tool_faults"][name] = text


def late_storage(seconds):
    """At the next boot storage is mounted so many seconds after the first hook may run."""
    with store.Changing() as state:
        state["late_storage"] = seconds


def mount_storage():
    """Mount what is attached."""
    storage.mount(store.read())


def get_state():
    return store.read()


QUESTIONS = (summary, get_config, get_model_config, relation_data, get_state)
SETTINGS = (
    *(set_model_config, add_secret, grant_secret, revoke_secret, remove_secret),
    *(agent_down, set_reboot_mode, late_storage, mount_storage, fail_tool),
)
WORK = (
    *(deploy, set_config, reset_config, update_status, run_action, run_commands, integrate, join_unit, drain, retry),
    *(set_relation_data, depart_unit, remove_relation, update_secret, refresh, remove_application, resolved, agent_up),
)
OPERATIONS = {function.__name__.replace("_", "-"): function for function in (*QUESTIONS, *SETTINGS, *WORK)}
