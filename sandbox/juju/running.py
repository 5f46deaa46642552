"""Running charm code, one process at a time, each in a context that its hook tools share."""

import contextlib
import fcntl
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import store

HERE = Path(__file__).resolve().parent
JUJU_VERSION = "3.6.8"
MACHINE_LOCK = Path(store.FOLDER, "machine.lock")
AGENTS = Path("/var/lib/juju/agents")
TOOLS = Path("/var/lib/juju/tools")
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
    "results": {},
    "failed": False,
    "message": "",
    "reboot": "",
}


class JujuError(Exception):
    """What Juju says after ERROR."""


@contextlib.contextmanager
def machine_lock(what: str) -> Iterator[Any]:
    """Juju runs one hook, action or command at a time on a machine; whoever comes later waits."""
    with MACHINE_LOCK.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            store.event(event="waiting", what=what)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def charm_dir(state: dict[str, Any]) -> Path:
    return AGENTS / store.tag(state["unit"]) / "charm"


def open_context(state: dict[str, Any], kind: str, name: str, **about: Any) -> dict[str, Any]:
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


def environment(state: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """Exactly what Juju sets: nothing of the caller's own environment, and no HOME."""
    unit, model = state["unit"], {**MODEL_DEFAULTS, **state["model"]["config"]}
    folder = str(charm_dir(state))
    variables = {
        "APT_LISTCHANGES_FRONTEND": "none",
        "CHARM_DIR": folder,
        "CLOUD_API_VERSION": "",
        "DEBIAN_FRONTEND": "noninteractive",
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
        "JUJU_MACHINE_ID": unit.rpartition("/")[2],
        "JUJU_MODEL_NAME": state["model"]["name"],
        "JUJU_MODEL_UUID": state["model"]["uuid"],
        "JUJU_PRINCIPAL_UNIT": "",
        "JUJU_UNIT_NAME": unit,
        **_version_variables(state.get("juju_version", JUJU_VERSION)),
        "LANG": "C.UTF-8",
        "PATH": f"{TOOLS}/{store.tag(unit)}:{SYSTEM_PATH}",
        "TERM": "tmux-256color",
    }
    for name in ("http", "https"):
        if model[f"{name}-proxy"]:
            variables[f"{name}_proxy"] = variables[f"{name.upper()}_PROXY"] = model[f"{name}-proxy"]
            variables["no_proxy"] = variables["NO_PROXY"] = model["no-proxy"]
    return {**variables, **_special_variables(state, context)}


def _version_variables(version: str) -> dict[str, Any]:
    """What only some versions of Juju set; there is always a value or an empty one."""
    if version.startswith("3."):
        return {"JUJU_VERSION": version, "JUJU_SLA": "unsupported"}
    traces = {f"JUJU_CHARM_TRACE_CONFIG_{name}": "" for name in ("HTTP", "GRPC", "CA_CERT")}
    return {"JUJU_VERSION": version, **traces}


def _special_variables(state: dict[str, Any], context: dict[str, Any]) -> dict[str, str]:
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


def run_in_context(
    state: dict[str, Any], context: dict[str, Any], command: list[str], keep_output: bool = False, script: str = ""
) -> tuple[int, str, str]:
    """Run a process of the charm, a shell reads its script; gives the exit code (-N for signal N), output, errors."""
    process = subprocess.Popen(
        command,
        cwd=charm_dir(state),
        env=environment(state, context),
        stdin=subprocess.PIPE if script else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with store.Changing(store.context_path(context["id"])) as changing:
        changing["pid"] = process.pid
    kept: dict[str, list[str]] = {"stdout": [], "stderr": []}
    readers = []
    for name, level in (("stdout", "DEBUG"), ("stderr", "WARNING")):
        sink = kept[name] if keep_output else None
        about = (getattr(process, name), state["unit"], level, context["name"], sink)
        readers.append(threading.Thread(target=_read_output, args=about, daemon=True))
        readers[-1].start()
    if script and process.stdin:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(script.encode())
    code = process.wait()
    for reader in readers:
        # A process that the charm left behind may hold the pipe: Juju does not wait for it for ever either.
        reader.join(timeout=1)
    return code, "".join(kept["stdout"]), "".join(kept["stderr"])


def _read_output(pipe: IO[bytes], unit: str, level: str, name: str, sink: list[str] | None) -> None:
    for raw in pipe:
        line = raw.decode(errors="replace")
        if sink is not None:
            sink.append(line)
        if name != "run-commands":
            store.log(unit, level, f"unit.{unit}.{name}", line.rstrip("\n"))


def close_context(context: dict[str, Any], success: bool) -> dict[str, Any]:
    """Delete a context, and when its process succeeded, make true what waited in it; gives what had waited."""
    path = Path(store.context_path(context["id"]))
    latest = store.read(str(path))
    path.unlink(missing_ok=True)
    Path(f"{path}.lock").unlink(missing_ok=True)
    buffer = latest["buffer"]
    if success:
        with store.Changing() as state:
            _flush(state, buffer)
    return latest


def _flush(state: dict[str, Any], buffer: dict[str, Any]) -> None:
    for number, bags in buffer["relations"].items():
        record = state["relations"].get(number)
        for kind, values in bags.items() if record else ():
            merged = {**record[f"local_{kind}"], **values}
            record[f"local_{kind}"] = {key: value for key, value in merged.items() if value != ""}
