"""Running charm code: hooks from a queue, one at a time, each in a context that its hook tools share."""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import hooktools
import store

HERE = Path(__file__).resolve().parent
JUJU_VERSION = "3.6.8"
MACHINE_LOCK = Path(store.FOLDER, "machine.lock")
AGENTS = Path("/var/lib/juju/agents")
TOOLS = Path("/var/lib/juju/tools")
# Juju waits this long before it runs a failed hook again, twice as long each time, up to the last.
FIRST_RETRY, LAST_RETRY = 5, 300
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"
MODEL_DEFAULTS = {
    "juju-http-proxy": "",
    "juju-https-proxy": "",
    "juju-ftp-proxy": "",
    "juju-no-proxy": "127.0.0.1,localhost,::1",
    "http-proxy": "",
    "https-proxy": "",
    "no-proxy": "127.0.0.1,localhost,::1",
    "automatically-retry-hooks": "true",
    "update-status-hook-interval": "5m",
}
EMPTY_BUFFER = {
    "relations": {},
    "secrets": [],
    "state": {},
    "ports": {},
    "results": {},
    "failed": False,
    "message": "",
    "reboot": "",
}


class JujuError(Exception):
    """What Juju says after ERROR."""


@contextlib.contextmanager
def machine_lock(what):
    """Juju runs one hook, action or command at a time on a machine; whoever comes later waits."""
    with MACHINE_LOCK.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            store.event(event="waiting", what=what)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def charm_dir(state):
    return AGENTS / store.tag(state["unit"]) / "charm"


def boot_mark():
    """A number that differs after every boot: when the machine's first process started."""
    return int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19])


def open_context(state, kind, name, **about):
    """Write the context that the hook tools of one hook, action or command belong to."""
    with store.Changing() as changing:
        changing["contexts"] += 1
        number = changing["contexts"]
    context = {
        "id": f"{state['unit']}-{name}-{number:019d}",
        "kind": kind,
        "name": name,
        "config": store.effective_config(state),
        "buffer": json.loads(json.dumps(EMPTY_BUFFER)),
        "pid": 0,
        **about,
    }
    store.replace(store.context_path(context["id"]), context)
    return context


def environment(state, context):
    """Exactly what Juju sets; nothing of the caller's own environment."""
    unit, model = state["unit"], {**MODEL_DEFAULTS, **state["model"]["config"]}
    folder = str(charm_dir(state))
    variables = {
        "APT_LISTCHANGES_FRONTEND": "none",
        "CHARM_DIR": folder,
        "CLOUD_API_VERSION": "",
        "DEBIAN_FRONTEND": "noninteractive",
        "HOME": "/root",
        "JUJU_AGENT_SOCKET_ADDRESS": f"@{AGENTS}/{store.tag(unit)}/agent.socket",
        "JUJU_AGENT_SOCKET_NETWORK": "unix",
        "JUJU_API_ADDRESSES": "192.0.2.17:17070",
        "JUJU_AVAILABILITY_ZONE": state["zone"],
        "JUJU_CHARM_DIR": folder,
        "JUJU_CHARM_FTP_PROXY": model["juju-ftp-proxy"],
        "JUJU_CHARM_HTTPS_PROXY": model["juju-https-proxy"],
        "JUJU_CHARM_HTTP_PROXY": model["juju-http-proxy"],
        "JUJU_CHARM_NO_PROXY": model["juju-no-proxy"],
        "JUJU_CONTEXT_ID": context["id"],
        "JUJU_HOOK_NAME": context["name"] if context["kind"] == "hook" else "",
        "JUJU_MACHINE_ID": "0",
        "JUJU_MODEL_NAME": state["model"]["name"],
        "JUJU_MODEL_UUID": state["model"]["uuid"],
        "JUJU_PRINCIPAL_UNIT": "",
        "JUJU_UNIT_NAME": unit,
        "JUJU_VERSION": JUJU_VERSION,
        "LANG": "C.UTF-8",
        "PATH": f"{TOOLS}/{store.tag(unit)}:{SYSTEM_PATH}",
        "TERM": "tmux-256color",
    }
    for name in ("http", "https"):
        if model[f"{name}-proxy"]:
            variables[f"{name}_proxy"] = variables[f"{name.upper()}_PROXY"] = model[f"{name}-proxy"]
            variables["no_proxy"] = variables["NO_PROXY"] = model["no-proxy"]
    return {**variables, **_special_variables(state, context)}


def _special_variables(state, context):
    """What only some hooks get: about their relation, storage, secret or action."""
    variables = {}
    if context["kind"] != "command":
        folder = "actions" if context["kind"] == "action" else "hooks"
        variables["JUJU_DISPATCH_PATH"] = f"{folder}/{context['name']}"
    if context.get("relation_id"):
        endpoint = state["relations"][context["relation_id"]]["endpoint"]
        variables["JUJU_RELATION"] = endpoint
        variables["JUJU_RELATION_ID"] = f"{endpoint}:{context['relation_id']}"
        variables["JUJU_REMOTE_APP"] = context["remote_app"]
        variables["JUJU_REMOTE_UNIT"] = context.get("remote_unit", "")
        if context.get("departing_unit"):
            variables["JUJU_DEPARTING_UNIT"] = context["departing_unit"]
    if context.get("storage_id"):
        record = state["storage"][context["storage_id"]]
        variables["JUJU_STORAGE_ID"] = context["storage_id"]
        variables["JUJU_STORAGE_KIND"] = record["kind"]
        variables["JUJU_STORAGE_LOCATION"] = record["location"]
    if context.get("secret_id"):
        variables["JUJU_SECRET_ID"] = f"secret:{context['secret_id']}"
        variables["JUJU_SECRET_LABEL"] = context.get("secret_label", "")
        if context.get("secret_revision"):
            variables["JUJU_SECRET_REVISION"] = str(context["secret_revision"])
    if context["kind"] == "action":
        task = context["action"]["uuid"]
        variables.update(JUJU_ACTION_NAME=context["name"], JUJU_ACTION_UUID=task, JUJU_ACTION_TAG=f"action-{task}")
    return variables


def run_in_context(state, context, command, keep_output=False):
    """Run a process of the charm; gives its exit code (128 + N for signal N) and, if kept, its output and errors."""
    process = subprocess.Popen(
        command,
        cwd=charm_dir(state),
        env=environment(state, context),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with store.Changing(store.context_path(context["id"])) as changing:
        changing["pid"] = process.pid
    kept = {"stdout": [], "stderr": []}
    readers = []
    for name, level in (("stdout", "DEBUG"), ("stderr", "WARNING")):
        sink = kept[name] if keep_output else None
        about = (getattr(process, name), state["unit"], level, context["name"], sink)
        readers.append(threading.Thread(target=_read_output, args=about, daemon=True))
        readers[-1].start()
    code = process.wait()
    for reader in readers:
        # A process that the charm left behind may hold the pipe: Juju does not wait for it for ever either.
        reader.join(timeout=1)
    return (code if code >= 0 else 128 - code), "".join(kept["stdout"]), "".join(kept["stderr"])


def _read_output(pipe, unit, level, name, sink):
    for raw in pipe:
        line = raw.decode(errors="replace")
        if sink is not None:
            sink.append(line)
        if name != "run-commands":
            store.log(unit, level, f"unit.{unit}.{name}", line.rstrip("\n"))


def close_context(context, success):
    """Forget a context, and when its process succeeded, make true what waited in it; gives what had waited."""
    path = Path(store.context_path(context["id"]))
    latest = store.read(str(path))
    path.unlink(missing_ok=True)
    Path(f"{path}.lock").unlink(missing_ok=True)
    buffer = latest["buffer"]
    if success:
        with store.Changing() as state:
            _flush(state, buffer)
    return latest


def _flush(state, buffer):
    for number, bags in buffer["relations"].items():
        record = state["relations"].get(number)
        for kind, values in bags.items() if record else ():
            merged = {**record[f"local_{kind}"], **values}
            record[f"local_{kind}"] = {key: value for key, value in merged.items() if value != ""}
    merged = {**state["charm_state"], **buffer["state"]}
    state["charm_state"] = {key: value for key, value in merged.items() if value is not None}
    ports = dict.fromkeys(state["ports"], True) | buffer["ports"]
    state["ports"] = sorted(name for name, is_open in ports.items() if is_open)
    for change in buffer["secrets"]:
        _flush_secret(state, change)


def _flush_secret(state, change):
    secrets, identity = state["secrets"], change["id"]
    if change["do"] == "add":
        secrets[identity] = new_secret(state["app"], "", change["content"])
    record = secrets.get(identity)
    if record is None:
        return
    if change["do"] == "set" and change["content"]:
        record["revisions"][str(max(int(n) for n in record["revisions"]) + 1)] = change["content"]
    if change["do"] in ("add", "set"):
        record.update({key: change[key] for key in ("label", "description") if key in change})
    if change["do"] == "remove" and change["revision"]:
        record["revisions"].pop(str(change["revision"]), None)
    elif change["do"] == "remove":
        del secrets[identity]
    if change["do"] == "grant":
        record["granted"] = sorted({*record["granted"], change["app"]})
    if change["do"] == "revoke":
        record["granted"] = [app for app in record["granted"] if app != change["app"]]


def new_secret(owner, name, content):
    return {
        "owner": owner,
        "name": name,
        "label": name,
        "description": "",
        "revisions": {"1": content},
        "granted": [],
        "tracked": {},
        "labels": {},
    }


def queue(state, name, **about):
    """Put a hook at the end of the queue; one that waits there already, with the same particulars, is enough."""
    hook = {"name": name, **about}
    if hook not in state["queue"]:
        state["queue"].append(hook)


def drain():
    """Run the hooks that are due, one after the other, until none is left, one fails, or the machine reboots."""
    while True:
        with machine_lock("hook"):
            recover()
            with store.Changing() as state:
                if state["rebooting"] or state["failed"] or not state["queue"]:
                    break
                state["current"] = state["queue"].pop(0)
            _run_current()
    return summary()


def recover():
    """What an agent does when it finds that it, or the machine, went down: under the machine lock, before anything."""
    with store.Changing() as state:
        mark = boot_mark()
        rebooted = state["boot"] != mark
        interrupted = state["current"]
        state["boot"], state["current"] = mark, None
        if not rebooted and not interrupted:
            return
        if rebooted:
            state["rebooting"] = False
            mount_storage(state)
            if state["started"]:
                queue(state, "start")
        if interrupted and state["requeue"]:
            state["queue"].insert(0, interrupted)
        elif interrupted:
            _remember_failure(state, interrupted, "interrupted")
        state["requeue"] = False
        failed = state["failed"]
        if failed:
            unit = state["unit"]
            message = f'awaiting error resolution for "{failed["hook"]["name"]}" hook'
            store.log(unit, "INFO", "juju.worker.uniter", message)
            if retries(state):
                state["queue"].insert(0, failed["hook"])
                state["failed"] = None


def mount_storage(state):
    """Bind-mount a folder of the machine's disk as Juju's rootfs provider does: after each boot anew, not by fstab."""
    for name, record in state["storage"].items():
        source, target = Path("/var/lib/juju/storage/fs", name.replace("/", "-")), record["location"]
        for folder in (source, Path(target)):
            folder.mkdir(parents=True, exist_ok=True)
        if record["attached"] and not os.path.ismount(target):
            subprocess.run(("mount", "--bind", str(source), target), check=True)


def _run_current():
    state = store.read()
    hook = state["current"]
    name = hook["name"]
    _before(hook)
    store.event(event="hook-start", hook=name)
    started = time.monotonic()
    context = open_context(state, "hook", name, **{key: value for key, value in hook.items() if key != "name"})
    dispatch = charm_dir(state) / "dispatch"
    code = run_in_context(state, context, [str(dispatch)])[0] if dispatch.exists() else 0
    latest = close_context(context, code == 0)
    now = latest["buffer"]["reboot"] == "now"
    success = code == 0 or now
    seconds = round(time.monotonic() - started, 2)
    _log_end(state["unit"], name, code, now)
    with store.Changing() as changing:
        if now:
            # The hook was killed at its own wish, and runs again from its beginning after the reboot.
            changing["requeue"] = True
        else:
            changing["current"] = None
        if success:
            changing["attempts"] = 0
        if code == 0:
            _after(changing, hook, latest)
        elif not now:
            _remember_failure(changing, hook, f"exit status {code}" if code < 128 else f"signal: {code - 128}")
        changing["rebooting"] = success and bool(latest["buffer"]["reboot"])
        rebooting = changing["rebooting"]
    store.event(event="hook-end", hook=name, seconds=seconds, ok=success, reboot=rebooting)
    if not success:
        store.event(event="status", status="error", message=f'hook failed: "{name}"')
    if rebooting:
        reboot()


def _log_end(unit, name, code, killed_for_reboot):
    how = "(via hook dispatching script: dispatch)"
    module = "juju.worker.uniter.operation"
    if killed_for_reboot:
        store.log(unit, "INFO", module, f'hook "{name}" {how} requested an immediate reboot')
    elif code == 0:
        store.log(unit, "INFO", module, f'ran "{name}" hook {how}')
    else:
        reason = f"exit status {code}" if code < 128 else f"signal: {signal.Signals(code - 128).name}"
        store.log(unit, "ERROR", module, f'hook "{name}" {how} failed: {reason}')
        store.log(unit, "INFO", "juju.worker.uniter", f'awaiting error resolution for "{name}" hook')


def _before(hook):
    """The statuses that Juju itself gives a unit at the ends of its life."""
    given = {
        "install": ("maintenance", "installing charm software"),
        "stop": ("maintenance", "stopping charm software"),
        "remove": ("maintenance", "cleaning up prior to charm deletion"),
    }
    if hook["name"] in given:
        status, message = given[hook["name"]]
        with store.Changing() as state:
            set_unit_status(state, status, message)


def set_unit_status(state, status, message):
    state["unit_status"] = {"status": status, "message": message, "since": store.now(), "data": {}}
    state["history"].append({"kind": "unit_status", **state["unit_status"]})
    store.event(event="status", status=status, message=message)


def _after(state, hook, context):
    """What a hook that went well changes in what the agent knows."""
    name = hook["name"]
    if name == "config-changed":
        # Settings that changed while it ran are due again.
        state["config_seen"] = config_hash(context["config"])
        if config_hash(store.effective_config(state)) != state["config_seen"]:
            queue(state, "config-changed")
    elif name == "install":
        state["installed"] = True
    elif name == "start":
        if (
            not state["started"]
            and not context.get("status_was_set")
            and state["unit_status"]["status"] == "maintenance"
        ):
            set_unit_status(state, "unknown", "")
        state["started"] = True
    elif name.endswith("-relation-broken"):
        state["relations"].pop(hook["relation_id"], None)
    elif name.endswith("-storage-detaching"):
        state["storage"][hook["storage_id"]]["attached"] = False
    elif name == "remove":
        state["life"] = "dead"
        set_unit_status(state, "terminated", "")


def _remember_failure(state, hook, reason):
    state["attempts"] += 1
    delay = min(LAST_RETRY, FIRST_RETRY * 2 ** (state["attempts"] - 1))
    state["failed"] = {"hook": hook, "reason": reason, "since": store.now(), "due": time.time() + delay}
    state["history"].append({"kind": "error", "status": "error", "message": f'hook failed: "{hook["name"]}"'})
    if retries(state):
        # A name of its own each time: the retry that failed just now may still be running under the last one.
        unit = f"juju-sandbox-retry-{int(time.time() * 1000)}"
        timer = ("systemd-run", "--quiet", "--collect", "--unit", unit, "--property=KillMode=process")
        when = (f"--on-active={delay}", "--timer-property=AccuracySec=100ms")
        command = (sys.executable, "-E", str(HERE / "agent.py"), "--inside", "retry")
        subprocess.run((*timer, *when, *command), capture_output=True)


def retries(state):
    return state["model"]["config"].get("automatically-retry-hooks", "true") == "true"


def reboot():
    """Reboot the machine, as the machine agent does once the unit agent has told it to."""
    store.event(event="reboot")
    subprocess.run(("systemctl", "reboot"), capture_output=True)


def config_hash(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def summary():
    """The unit as `juju status` sees it."""
    state = store.read()
    failed, status = state["failed"], state["unit_status"]
    agent = "executing" if state["current"] else "rebooting" if state["rebooting"] else "idle"
    if failed:
        name = failed["hook"]["name"]
        status = {"status": "error", "message": f'hook failed: "{name}"', "since": failed["since"]}
    return {
        "model": state["model"]["name"],
        "app": state["app"],
        "unit": state["unit"],
        "version": state["version"],
        "juju_version": JUJU_VERSION,
        "charm": state["charm"]["name"],
        "revision": state["charm"]["revision"],
        "status": status["status"],
        "message": status["message"],
        "since": status["since"],
        "charm_status": state["unit_status"]["status"],
        "charm_message": state["unit_status"]["message"],
        "agent": agent,
        "current": (state["current"] or {}).get("name", ""),
        "life": state["life"],
        "queue": [hook["name"] for hook in state["queue"]],
        "failed": failed,
        "ports": state["ports"],
        "booted": state["boot"] == boot_mark(),
        "rebooting": state["rebooting"],
        "address": hooktools.unit_address(),
        "app_status": state["app_status"],
        "relations": {
            number: {key: record[key] for key in ("endpoint", "interface", "remote_app")}
            for number, record in state["relations"].items()
        },
    }
