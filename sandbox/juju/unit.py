"""The operator's hand on the unit in a machine: what the juju client can do, as methods."""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox.lab.machine import Machine
from sandbox.shell import NOT_STARTED, SandboxError, wait_until

AGENT_FOLDER = "/usr/local/lib/juju-sandbox"
AGENT = f"{AGENT_FOLDER}/agent.py"
# What goes into the machine; it imports nothing of the rest.
AGENT_FILES = (
    *("agent", "hooktools", "operations", "options", "relations"),
    *("running", "storage", "store", "uniter", "user_secrets"),
)
INCOMING = "/var/lib/juju/sandbox/incoming"
# -S and -I: a hook tool is started hundreds of times, and needs neither site-packages nor the user's environment.
TOOL = f"""#!/usr/bin/python3 -SEI
import sys

sys.path.insert(0, "{AGENT_FOLDER}")
import hooktools

sys.exit(hooktools.main(sys.argv[0].rpartition("/")[2], sys.argv[1:]))
"""
JUJU_EXEC = f"""#!/bin/sh
exec /usr/bin/python3 -E {AGENT} juju-exec "$@"
"""
SERVICE = f"""[Unit]
Description={{description}}
After=network-online.target lxd.socket lxd.service snapd.service
Wants=network-online.target

[Service]
Type=oneshot
KillMode=process
TimeoutStartSec=infinity
ExecStart=/usr/bin/python3 -E {AGENT} --inside {{operation}}
"""
ON_BOOT = "\n[Install]\nWantedBy=multi-user.target\n"


class JujuError(SandboxError):
    """Juju refused; the text is what it says after ERROR."""


class Unit:
    """A unit, the only one of its machine. Methods that make hooks run return its status when they have run."""

    def __init__(
        self,
        machine: Machine,
        app: str = "github-runner",
        on_event: Callable[[dict[str, Any]], None] | None = None,
        number: int = 0,
    ):
        self.machine = machine
        self.app = app
        self.number = number
        self.name = f"{app}/{number}"
        self.on_event = on_event or (lambda event: None)

    @property
    def charm_dir(self) -> str:
        return f"/var/lib/juju/agents/unit-{self.app}-{self.number}/charm"

    @property
    def log_file(self) -> str:
        return f"/var/log/juju/unit-{self.app}-{self.number}.log"

    # Alphabetical, so that nobody has to think where a new one goes.

    def add_secret(self, name: str, content: dict[str, str], uri: str | None = None) -> str:
        """Add a user secret; gives its URI (secret:ID). Grant it before the charm can read it.

        A further unit of an application is told the URI that the first one's agent gave.
        """
        return str(self._agent("add-secret", name=name, content=content, identity=uri))

    def agent_down(self, how: str = "refused") -> None:
        """Let the agent be down until agent_up: no hooks, juju-exec exits with 1 (refused, unregistered, aborted)."""
        self._agent("agent-down", how=how)

    def agent_up(self) -> dict[str, Any]:
        """Let the agent be back, and run what has become due."""
        return self._work("agent-up")

    def config(self) -> dict[str, dict[str, Any]]:
        """All options: type, default, description, value, and whether the user set it (user)."""
        return dict(self._agent("get-config"))

    def debug_log(self) -> str:
        """The whole log of the unit."""
        return self.machine.exec("cat", self.log_file, check=False)

    def deploy(
        self,
        charm: Path,
        config: dict[str, Any] | None = None,
        model_config: dict[str, str] | None = None,
        model_uuid: str = "",
        juju_version: str = "3.6.8",
    ) -> dict[str, Any]:
        """Install the agent and deploy a packed charm, into a new model unless the UUID of one is given."""
        self.install_agent()
        self.send_charm(charm)
        about = {"app": self.app, "number": self.number, "model_uuid": model_uuid, "juju_version": juju_version}
        return self._work("deploy", **about, config=config or {}, model_config=model_config or {})

    def deploy_beside(self, first: "Unit", charm: Path) -> dict[str, Any]:
        """Deploy as a further unit of first's application: same model, options, secrets and relations."""
        self.install_agent()
        self.send_charm(charm)
        found = first.state()
        model = {"model_uuid": found["model"]["uuid"], "model_config": found["model"]["config"]}
        shared = {key: found[key] for key in ("secrets", "relations", "next_relation")}
        about = {"app": self.app, "number": self.number, "juju_version": found["juju_version"]}
        return self._work("deploy", **about, **model, config=found["config"], shared=shared)

    def deployed(self) -> bool:
        return self.machine.call("test", "-e", "/var/lib/juju/sandbox/state.json").returncode == 0

    def exec(self, command: str, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        """Run a shell command with juju-exec, in a hook's context."""
        return self.machine.call("juju-exec", self.name, command, timeout=timeout)

    def fail_tool(self, name: str, text: str = "") -> None:
        """Let a hook tool exit with 1 and "ERROR text" from now on; without text it works again.

        So secret-get fails with "cannot access secret: connection is shut down" while the controller is lost.
        """
        self._agent("fail-tool", name=name, text=text)

    def grant_secret(self, name: str) -> None:
        self._agent("grant-secret", name=name)

    def install_agent(self) -> None:
        """Put the agent, its hook tools, juju-exec and their systemd units into the machine."""
        here = Path(__file__).parent
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            files = {f"{AGENT_FOLDER}/{file}.py": (here / f"{file}.py").read_text() for file in AGENT_FILES}
            files[f"{AGENT_FOLDER}/tool"] = TOOL
            files["/usr/bin/juju-exec"] = JUJU_EXEC
            boot = SERVICE.format(description="Juju's agent after a boot", operation="drain") + ON_BOOT
            files["/etc/systemd/system/juju-sandbox-boot.service"] = boot
            tick = SERVICE.format(description="Juju's update-status", operation="update-status")
            files["/etc/systemd/system/juju-sandbox-update-status.service"] = tick
            for path, text in files.items():
                place = root / path.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
                place.chmod(0o755 if "/bin/" in path or path.endswith("/tool") else 0o644)
            self.machine.push_folder(root, "/")
        set_up = f"python3 -m compileall -q {AGENT_FOLDER} && systemctl daemon-reload"
        self.machine.exec("sh", "-c", f"{set_up} && systemctl enable --quiet juju-sandbox-boot.service")

    def integrate(
        self,
        endpoint: str,
        data: dict[str, str] | None = None,
        remote_app: str = "",
        app_data: dict[str, Any] | None = None,
    ) -> str:
        """Relate to an application with one unit (APP/0) whose databag holds data; gives the relation's id."""
        arguments: dict[str, Any] = {
            "endpoint": endpoint,
            "remote_app": remote_app,
            "data": data or {},
            "app_data": app_data or {},
        }
        return str(self._agent("integrate", **arguments))

    def late_storage(self, seconds: float) -> None:
        """At the next boot let storage be mounted so many seconds after `start` may run, with no hook for it."""
        self._agent("late-storage", seconds=seconds)

    def model_config(self, values: dict[str, str] | None = None) -> dict[str, str]:
        """Set model configuration, if any is given, and give all of it. No hook fires for it."""
        return dict(self._agent("set-model-config", values=values) if values else self._agent("get-model-config"))

    def reboot(self, hard: bool = False, timeout: float = 300) -> dict[str, Any]:
        """Reboot the machine and wait until the hooks that follow have run."""
        # The machine counts as up once its hooks have run, which may create runners.
        self.machine.reboot(hard=hard, timeout=timeout)
        return self.wait_idle(timeout)

    def reboot_mode(self, mode: str, seconds: float = 0) -> None:
        """What becomes of a charm's wish to reboot: "normal" (at once), "delayed" (by seconds) or "lost"."""
        self._agent("set-reboot-mode", mode=mode, seconds=seconds)

    def refresh(self, charm: Path) -> dict[str, Any]:
        """Replace the charm by another packed one."""
        self.send_charm(charm)
        return self._work("refresh")

    def relation_data(self, relation: str) -> dict[str, Any]:
        """Databags of a relation: local_unit, local_app, units, remote_app_data."""
        return dict(self._agent("relation-data", relation=relation))

    def remove_application(self) -> dict[str, Any]:
        """Remove the unit, as its application goes: detach storage, break relations, then run stop and remove."""
        return self._work("remove-application")

    def remove_relation(self, relation: str) -> dict[str, Any]:
        """Remove a relation, given by its id or endpoint."""
        return self._work("remove-relation", relation=relation)

    def remove_secret(self, name: str) -> None:
        self._agent("remove-secret", name=name)

    def reset_config(self, *names: str) -> dict[str, Any]:
        return self._work("reset-config", names=list(names))

    def resolved(self, no_retry: bool = False) -> dict[str, Any]:
        """Run a failed hook again; with no_retry go on as if it had succeeded."""
        return self._work("resolved", no_retry=no_retry)

    def run(self, action: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run an action; gives its task: id, status (completed, failed), message, results, log."""
        return dict(self._agent("run-action", name=action, params=params or {}))

    def send_charm(self, charm: Path) -> None:
        self.machine.exec("rm", "-rf", INCOMING)
        self.machine.push_folder(charm, INCOMING)

    def set_config(self, values: dict[str, Any]) -> dict[str, Any]:
        """Set options, as strings or as what str() makes a string of; booleans may be Python's."""
        return self._work("set-config", values=values)

    def set_relation_data(
        self, relation: str, data: dict[str, str], unit: str = "", app: bool = False
    ) -> dict[str, Any]:
        """The remote side changes its databag; an empty value removes a key."""
        return self._work("set-relation-data", relation=relation, data=data, unit=unit or None, app=app)

    def state(self) -> dict[str, Any]:
        """Everything that the agent knows, for tests that ask for details."""
        return dict(self._agent("get-state"))

    def status(self) -> dict[str, Any]:
        """The unit as `juju status` has it: status, message, agent, relations, failed, queue, …"""
        return dict(self._agent("summary"))

    def update_secret(self, name: str, content: dict[str, str]) -> dict[str, Any]:
        """A new revision of a user secret; secret-changed fires if the charm has read it before."""
        return self._work("update-secret", name=name, content=content)

    def update_status(self) -> dict[str, Any]:
        """Fire update-status now."""
        return self._work("update-status")

    def wait_idle(self, timeout: float = 300) -> dict[str, Any]:
        """Wait until no hook runs or is due (a failed one excepted) and the last reboot has been dealt with.

        While the agent is down nothing runs: then it is enough that the machine is up.
        """
        latest: dict[str, Any] = {}

        def idle() -> bool:
            nonlocal latest
            try:
                latest = self.status()
            except SandboxError:
                return False  # the machine is going down or coming up
            if latest["agent"] == "lost":
                return True
            waits = latest["queue"] and not latest["failed"]
            return bool(latest["booted"] and latest["agent"] == "idle" and not waits)

        wait_until(idle, f"rest of {self.name}", timeout, interval=0.2)
        return latest

    def _work(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Do what makes hooks run; if one reboots the machine, wait for what follows."""
        before = self.machine.boot_mark()
        result = self._agent(operation, may_vanish=True, **arguments)
        if result is None or result["rebooting"]:
            self.machine.wait_reboot(before)
            result = self.wait_idle()
        return dict(result)

    def _agent(self, operation: str, may_vanish: bool = False, **arguments: Any) -> Any:
        """Call the agent in the machine, pass its events on, and give its result."""
        inside = ("lxc", "exec", self.machine.container, "--", "python3", "-E", AGENT, operation)
        arguments = {name: value for name, value in arguments.items() if value is not None}
        reply, errors = self._call((*inside, json.dumps(arguments)))
        if not reply and NOT_STARTED in errors:
            reply, errors = self._call((*inside, json.dumps(arguments)))
        if "error" in reply:
            raise JujuError(reply["error"])
        if not reply and not may_vanish:
            raise SandboxError(f"Juju's agent in {self.machine.name} failed at {operation}: {errors.strip()[-500:]}")
        if not reply:
            # The machine went down under it, or the agent is broken: the former shows within a moment.
            time.sleep(0.2)
            if "Traceback" in errors:
                raise SandboxError(f"Juju's agent in {self.machine.name} failed at {operation}: {errors[-1500:]}")
            return None
        return reply["result"]

    def _call(self, command: tuple[str, ...]) -> tuple[dict[str, Any], str]:
        """One call of the agent: its last word, and what it wrote to standard error."""
        reply: dict[str, Any] = {}
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stdout:
                content = json.loads(line)
                if "event" in content:
                    self.on_event(content)
                else:
                    reply = content
            errors = process.stderr.read()
        return reply, errors
