"""Hooks from a queue, one at a time: what is due, what a failure or a reboot changes, and the unit's status."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hooktools
import storage
import store
from running import HERE, JujuError, charm_dir, close_context, machine_lock, open_context, run_in_context

# Juju waits this long before it runs a failed hook again, twice as long each time, up to the last.
FIRST_RETRY, LAST_RETRY = 5, 300
# What juju-exec answers while the agent does not serve it: stopped, without its controller, or stopped meanwhile.
AGENT_DOWN = {
    "refused": "dialing juju run socket: dial unix {socket}: connect: connection refused",
    "unregistered": "no runner is registered for unit {unit}",
    "aborted": "command execution aborted",
}


def boot_mark() -> int:
    """A number that differs after every boot: when the machine's first process started."""
    return int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19])


def queue(state: dict[str, Any], name: str, **about: Any) -> None:
    """Put a hook at the end of the queue; one that waits there already, with the same particulars, is enough."""
    hook = {"name": name, **about}
    if hook not in state["queue"]:
        state["queue"].append(hook)


def drain() -> dict[str, Any]:
    """Run the hooks that are due, one after the other, until none is left, one fails, or the machine reboots."""
    while not store.read()["agent_down"]:
        with machine_lock("hook"):
            recover()
            with store.Changing() as state:
                if state["started"] and state["life"] == "alive" and not state["failed"]:
                    queue_config_changed(state)
                if state["agent_down"] or state["rebooting"] or state["failed"] or not state["queue"]:
                    break
                state["current"] = state["queue"].pop(0)
            if not _run_current():
                break
    return summary()


def refuse_while_down(waited: bool = False) -> None:
    """Fail as juju-exec does while the agent is down or has stopped for a reboot; waited: it went while one waited."""
    state = store.read()
    stopped = state["rebooting"] and state["boot"] == boot_mark()
    how = state["agent_down"] or ("refused" if stopped else "")
    if how:
        text = AGENT_DOWN["aborted" if waited else how]
        raise JujuError(text.format(unit=state["unit"], socket=charm_dir(state).with_name("run.socket")))


def recover() -> None:
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
            storage.mount_after_boot(state)
            if state["started"]:
                queue(state, "start")
        if interrupted:
            _remember_failure(state, interrupted, "interrupted")
        failed = state["failed"]
        if failed:
            unit = state["unit"]
            message = f'awaiting error resolution for "{failed["hook"]["name"]}" hook'
            store.log(unit, "INFO", "juju.worker.uniter", message)
            if retries(state):
                state["queue"].insert(0, failed["hook"])
                state["failed"] = None


def _run_current() -> bool:
    """Run the hook that is the current one; gives whether the next one may follow."""
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
    wish = latest["buffer"]["reboot"]
    reboots = wish == "now" or (code == 0 and bool(wish))
    killed = wish != "now" and code in (-signal.SIGTERM, -signal.SIGKILL)
    success = code == 0 or wish == "now"
    seconds = round(time.monotonic() - started, 2)
    _log_end(state["unit"], name, code, wish == "now")
    _note_end(hook, code, latest, again=killed or wish == "now")
    storage.unmount_detached()
    rebooting = reboots and reboot()
    store.event(event="hook-end", hook=name, seconds=seconds, ok=success, reboot=rebooting)
    if not success and not killed:
        store.event(event="status", status="error", message=f'hook failed: "{name}"')
    # A hook that was killed is run again at once, unless that was the machine's end.
    return not rebooting and not (killed and _shutting_down())


def _note_end(hook: dict[str, Any], code: int, latest: dict[str, Any], again: bool) -> None:
    """What a hook's end changes; again: it was killed, at its own wish or not, and starts over."""
    with store.Changing() as state:
        state["current"] = None
        if again:
            state["queue"].insert(0, hook)
        elif code == 0:
            state["attempts"] = 0
            _after(state, hook, latest)
        else:
            _remember_failure(state, hook, _reason(code))


def _reason(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"signal: {signal.Signals(-code).name}"


def _shutting_down() -> bool:
    asked = subprocess.run(("systemctl", "is-system-running"), capture_output=True, text=True)
    return asked.stdout.strip() == "stopping"


def _log_end(unit: str, name: str, code: int, killed_for_reboot: bool) -> None:
    how = "(via hook dispatching script: dispatch)"
    module = "juju.worker.uniter.operation"
    if killed_for_reboot:
        store.log(unit, "INFO", module, f'hook "{name}" {how} requested an immediate reboot')
    elif code == 0:
        store.log(unit, "INFO", module, f'ran "{name}" hook {how}')
    elif code in (-signal.SIGTERM, -signal.SIGKILL):
        store.log(unit, "WARNING", module, f'hook "{name}" was terminated')
    else:
        store.log(unit, "ERROR", module, f'hook "{name}" {how} failed: {_reason(code)}')
        store.log(unit, "INFO", "juju.worker.uniter", f'awaiting error resolution for "{name}" hook')


def _before(hook: dict[str, Any]) -> None:
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


def set_unit_status(state: dict[str, Any], status: str, message: str) -> None:
    state["unit_status"] = {"status": status, "message": message, "since": store.now(), "data": {}}
    state["history"].append({"kind": "unit_status", **state["unit_status"]})
    store.event(event="status", status=status, message=message)


def _after(state: dict[str, Any], hook: dict[str, Any], context: dict[str, Any]) -> None:
    """What a hook that went well changes in what the agent knows."""
    name = hook["name"]
    if name == "config-changed":
        # Settings that changed while it ran are due again.
        note_config_seen(state, context["config"])
        queue_config_changed(state)
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


def _remember_failure(state: dict[str, Any], hook: dict[str, Any], reason: str) -> None:
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


def retries(state: dict[str, Any]) -> bool:
    return state["model"]["config"].get("automatically-retry-hooks", "true") == "true"


def reboot() -> bool:
    """Reboot the machine, as the machine agent does once the unit agent has told it to; gives whether it will.

    Juju's own takes some 15 s, and may be lost: see the operation set-reboot-mode.
    """
    with store.Changing() as state:
        if state["reboot_mode"] == "lost":
            return False
        state["rebooting"] = True
        delay = state["reboot_delay"]
    store.event(event="reboot")
    later = ("systemd-run", "--quiet", "--collect", f"--on-active={delay}", "--timer-property=AccuracySec=100ms")
    subprocess.run((*(later if delay else ()), "systemctl", "reboot"), capture_output=True)
    return True


def queue_config_changed(state: dict[str, Any]) -> None:
    """Due while the options, or the machine's address, are others than the last config-changed saw."""
    address = hooktools.unit_address()
    moved = address not in (state["address_seen"], hooktools.NO_ADDRESS)
    if moved or _config_hash(store.effective_config(state)) != state["config_seen"]:
        queue(state, "config-changed")
    else:
        state["queue"] = [hook for hook in state["queue"] if hook["name"] != "config-changed"]


def note_config_seen(state: dict[str, Any], config: dict[str, Any]) -> None:
    state["config_seen"] = _config_hash(config)
    state["address_seen"] = hooktools.unit_address()
    for record in state["relations"].values():
        record["local_unit"].update(ingress())


def ingress() -> dict[str, Any]:
    """What Juju itself writes into a unit's databag, and writes anew with config-changed."""
    address = hooktools.unit_address()
    return {"egress-subnets": f"{address}/32", "ingress-address": address, "private-address": address}


def _config_hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def summary() -> dict[str, Any]:
    """The unit as `juju status` sees it."""
    state = store.read()
    failed, status = state["failed"], state["unit_status"]
    agent = "executing" if state["current"] else "rebooting" if state["rebooting"] else "idle"
    agent = "lost" if state["agent_down"] else agent
    if failed:
        name = failed["hook"]["name"]
        status = {"status": "error", "message": f'hook failed: "{name}"', "since": failed["since"]}
    return {
        "model": state["model"]["name"],
        "app": state["app"],
        "unit": state["unit"],
        "version": state["version"],
        "juju_version": state["juju_version"],
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
        "booted": state["boot"] == boot_mark(),
        "rebooting": state["rebooting"],
        "address": hooktools.unit_address(),
        "app_status": state["app_status"],
        "storage": {name: {**record, **storage.describe(name, record)} for name, record in state["storage"].items()},
        "relations": {
            number: {key: record[key] for key in ("endpoint", "interface", "remote_app")}
            for number, record in state["relations"].items()
        },
    }
