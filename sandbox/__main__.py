"""The sandbox's command line: a whole unit of the charm on this machine, as an operator would have it with Juju."""

import argparse
import hashlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import lxd_setup
from .github_control import GitHubControl, GitHubControlError
from .juju.unit import JujuError, Unit
from .machine import Machine
from .pack import pack
from .shell import SandboxError, run, say, step, stream, wait_until

PROJECT = Path(__file__).resolve().parent.parent
REPOSITORY = "octo-org/demo"
ORGANISATION = "octo-org"
METRICS_LOG = "/var/log/github-runner-metrics.log"
# Small runners: the sandbox's machine has no more than this one has, and containers need little.
DEFAULT_CONFIG = {"path": REPOSITORY, "test-mode": "insecure", "vm-cpu": "1", "vm-memory": "1GiB", "vm-disk": "2GiB"}


class Sandbox:
    """One machine with its unit and its own GitHub, and the record of the latter two that outlives a command."""

    def __init__(self, name: str) -> None:
        self.machine = Machine(name)
        self.unit = Unit(self.machine, on_event=show_event)
        self.record_path = lxd_setup.state_dir() / f"machine-{name}.json"
        self.record = json.loads(self.record_path.read_text()) if self.record_path.is_file() else {}

    def save(self) -> None:
        self.record_path.touch(mode=0o600)
        self.record_path.write_text(json.dumps(self.record))

    def require(self) -> Unit:
        """The unit, or an error that says how to get one."""
        if not self.machine.running() or not self.unit.deployed():
            raise SandboxError(
                f"there is no running machine {self.machine.name}: start one with `python -m sandbox up`"
            )
        return self.unit

    def github(self) -> GitHubControl:
        """GitHub's control interface, or an error that says how to get one."""
        if not self.github_runs():
            raise SandboxError("the sandbox's GitHub is not running: start it with `python -m sandbox up`")
        return GitHubControl(self.record["github"]["url"])

    def github_runs(self) -> bool:
        pid = self.record.get("github", {}).get("pid")
        if not pid:
            return False
        try:
            # A process id may be another program's by now.
            return b"sandbox.github" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def start_github(self) -> None:
        """Start GitHub on the bridge's address, which machine and runners reach; at its old port if it had one."""
        if self.github_runs():
            return
        address = lxd_setup.bridge_address()
        old = self.record.get("github", {})
        port = old.get("port") or _free_port(address)
        token = old.get("token") or f"ghp_{secrets.token_hex(18)}"
        log = lxd_setup.state_dir() / f"github-{self.machine.name}.log"
        command = [sys.executable, "-m", "sandbox.github", "--listen", f"{address}:{port}", "--token", token]
        command += ["--repository", REPOSITORY, "--organisation", ORGANISATION, "--log", f"{log}.requests"]
        with step("Starting GitHub"), log.open("ab") as output:
            process = subprocess.Popen(
                command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            url = f"http://{address}:{port}"
            self.record["github"] = {"pid": process.pid, "port": port, "token": token, "url": url}
            self.save()
            wait_until(lambda: process.poll() is not None or _answers(address, port), "GitHub's answer", timeout=20)
            if process.poll() is not None:
                raise SandboxError(f"GitHub did not start; its last words are in {log}")

    def stop_github(self) -> None:
        if self.github_runs():
            os.kill(self.record["github"]["pid"], signal.SIGTERM)
            say("  ✓ stopped GitHub")

    def packed(self, folder: str) -> tuple[Path, str]:
        """The charm packed from the sources as they are, and a mark that changes with them."""
        charm = pack(PROJECT, Path(folder))
        digest = hashlib.sha256()
        for path in sorted(charm.rglob("*")):
            if path.is_file() and "venv" not in path.relative_to(charm).parts[:1]:
                digest.update(str(path.relative_to(charm)).encode() + path.read_bytes())
        # Of the dependencies their names and versions are enough.
        digest.update("\n".join(sorted(found.name for found in (charm / "venv").glob("*.dist-info"))).encode())
        return charm, digest.hexdigest()


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _answers(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def show_event(event: dict) -> None:
    """Tell what happens in the machine: a line for each hook and each new status."""
    kind = event["event"]
    if kind == "hook-end":
        after = ", then a reboot of the machine" if event["reboot"] else ""
        say(f"  {'✓' if event['ok'] else '✗'} {event['hook']} ({event['seconds']:.1f} s){after}")
    elif kind == "status":
        say(f"      {event['status']}: {event['message']}" if event["message"] else f"      {event['status']}")
    elif kind == "waiting":
        say(f"  · {event['what']} waits: something else runs on the machine")
    elif kind == "action-log":
        say(f"      {event['message']}")


def pairs(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words as a dictionary; @FILE as a value is the file's content, as with juju."""
    values = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise SandboxError(f'expected "key=value", got "{word}"')
        values[key] = Path(value[1:]).read_text() if value.startswith("@") and Path(value[1:]).is_file() else value
    return values


def table(rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Print rows in columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say(indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# Commands, in the order of the help.


def up(sandbox: Sandbox, options: argparse.Namespace) -> int:
    config = pairs(options.settings)
    if options.runners is not None:
        config["virtual-machines"] = str(options.runners)
    started = time.monotonic()
    lxd_setup.ensure()
    lxd_setup.ensure_template()
    machine = sandbox.machine
    if machine.exists() and not machine.running():
        with step(f"Starting the machine {machine.name}"):
            machine.start()
    sandbox.start_github()
    with tempfile.TemporaryDirectory(prefix="ghr-sandbox-") as folder:
        charm, mark = sandbox.packed(folder)
        if machine.exists() and sandbox.unit.deployed():
            status = _bring_up_to_date(sandbox, charm, mark, config)
        else:
            status = _deploy(sandbox, charm, mark, config)
    say(f"\n{sandbox.unit.name} is {status['status']}: {status['message']} ({time.monotonic() - started:.0f} s in all)")
    _how_to_go_on(sandbox)
    return 0 if status["status"] in ("active", "waiting", "maintenance") else 1


def _deploy(sandbox: Sandbox, charm: Path, mark: str, config: dict[str, str]) -> dict:
    machine, github = sandbox.machine, sandbox.record["github"]
    machine.destroy()
    with step(f"Making the machine {machine.name}"):
        machine.create()
    sandbox.record["charm"] = mark
    sandbox.save()
    own = {"token": github["token"], "github-url": github["url"], "virtual-machines": "2"}
    say("Deploying the charm:")
    return sandbox.unit.deploy(charm, {**DEFAULT_CONFIG, **own, **config})


def _bring_up_to_date(sandbox: Sandbox, charm: Path, mark: str, config: dict[str, str]) -> dict:
    say(f"The machine {sandbox.machine.name} is up already.")
    status = sandbox.unit.wait_idle()
    if sandbox.record.get("charm") != mark:
        say("The charm's sources have changed; refreshing:")
        sandbox.record["charm"] = mark
        sandbox.save()
        status = sandbox.unit.refresh(charm)
    return sandbox.unit.set_config(config) if config else status


def _how_to_go_on(sandbox: Sandbox) -> None:
    name = "" if sandbox.machine.name == Machine().name else f" --machine {sandbox.machine.name}"
    me = f"python -m sandbox{name}"
    lines = (
        ("status", "the unit, and the runners as GitHub lists them"),
        ("job -- echo hello", "let a runner run a job and watch its log"),
        ("config virtual-machines=3", "change options; `config` alone shows all"),
        ("run check-runners", "run an action"),
        ("debug-log -n 50", "what the charm logs; `logs` shows the metrics"),
        ("refresh", "bring edited sources into the machine"),
        ("down", "remove the machine (`down --all`: and all that the sandbox made)"),
    )
    say("Go on with:")
    table([(f"{me} {command}", text) for command, text in lines], indent="  ")


def config(sandbox: Sandbox, options: argparse.Namespace) -> int:
    unit = sandbox.require()
    if not options.settings and not options.reset:
        rows = [("Option", "Value", "Type", "Source")]
        for name, option in unit.config().items():
            shown = "" if option["value"] is None else json.dumps(option["value"], ensure_ascii=False)
            rows.append((name, shown.strip('"'), option["type"], "user" if option["user"] else "default"))
        table(rows)
        return 0
    if len(options.settings) == 1 and "=" not in options.settings[0]:
        name = options.settings[0]
        if name not in unit.config():
            raise JujuError(f'key "{name}" not found in "{unit.app}" application config or charm settings.')
        value = unit.config()[name]["value"]
        say("" if value is None else str(value) if isinstance(value, str) else json.dumps(value))
        return 0
    if options.reset:
        status = unit.reset_config(*options.reset.split(","))
    if options.settings:
        status = unit.set_config(pairs(options.settings))
    return show_short(status)


def show_short(status: dict) -> int:
    say(f"{status['unit']} is {status['status']}: {status['message']}".rstrip(": "))
    return 0


def action(sandbox: Sandbox, options: argparse.Namespace) -> int:
    unit = sandbox.require()
    shown = Unit(sandbox.machine, on_event=lambda event: show_event(event) if event["event"] == "action-log" else None)
    task = shown.run(options.action, {key: _scalar(value) for key, value in pairs(options.parameters).items()})
    say(f"Running operation {int(task['id']) - 1} with 1 task")
    say(f"  - task {task['id']} on unit-{unit.app}-0\n")
    say(f"Waiting for task {task['id']}...")
    if task["status"] == "failed":
        say(f"Action id {task['id']} failed: {task['message']}")
    results = dict(task["results"])
    code = results.pop("return-code")
    output = {key: results.pop(key) for key in ("stdout", "stderr") if key in results}
    for line in yaml_lines(results):
        say(line)
    for text in output.values():
        say(text.rstrip("\n"))
    if task["status"] == "failed":
        raise JujuError(f'the following task failed:\n - id "{task["id"]}" with return code {code}')
    return 0


def _scalar(word: str) -> object:
    """A parameter's value as YAML has it: 5 is a number, true a boolean, anything else text."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def yaml_lines(values: dict, indent: str = "") -> list[str]:
    """Sorted `key: value` lines; text that YAML would take for something else is quoted."""
    lines = []
    for key, value in sorted(values.items()):
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *yaml_lines(value, indent + "  ")]
        else:
            text = str(value)
            plain = _scalar(text) == text and text[:1] not in " -?:,[]{}#&*!|>'\"%@`" and not text.endswith((" ", ":"))
            risky = text.lower() in ("", "y", "n", "yes", "no", "on", "off", "true", "false", "null", "~")
            risky = risky or any(mark in text for mark in (": ", " #", "\n"))
            lines.append(f"{indent}{key}: {text if plain and not risky else json.dumps(text, ensure_ascii=False)}")
    return lines


def status(sandbox: Sandbox, options: argparse.Namespace) -> int:
    unit = sandbox.require()
    now = unit.status()
    runners = sandbox.github().runners() if sandbox.github_runs() else None
    if options.json:
        say(json.dumps({"unit": now, "runners": runners, "github": sandbox.record["github"]["url"]}, indent=2))
        return 0
    clock = time.strftime("%H:%M:%SZ", time.gmtime())
    table([("Model", "Cloud/Region", "Version", "Timestamp"), (now["model"], "sandbox", now["juju_version"], clock)])
    say("")
    ports = ",".join(now["ports"])
    app = (now["app"], now["version"], now["status"], "1", now["charm"], str(now["revision"]), now["message"])
    table([("App", "Version", "Status", "Scale", "Charm", "Rev", "Message"), app])
    say("")
    row = (f"{now['unit']}*", now["status"], now["agent"], "0", now["address"], ports, now["message"])
    table([("Unit", "Workload", "Agent", "Machine", "Public address", "Ports", "Message"), row])
    say("")
    machine = ("0", "started", now["address"], sandbox.machine.container, "debian@12")
    table([("Machine", "State", "Address", "Inst id", "Base"), machine])
    if now["relations"]:
        say("")
        rows = [(r["endpoint"], r["remote_app"], r["interface"]) for r in now["relations"].values()]
        table([("Relation", "Application", "Interface"), *rows])
    say("")
    _show_runners(sandbox, runners)
    return 0


def _show_runners(sandbox: Sandbox, runners: list[dict] | None) -> None:
    if runners is None:
        say("GitHub is not running: start it with `python -m sandbox up`")
        return
    say(f"Runners at {sandbox.record['github']['url']}:" + ("" if runners else " none"))
    rows = []
    for runner in runners:
        labels = [label["name"] if isinstance(label, dict) else label for label in runner["labels"]]
        rows.append((runner["name"], runner["status"], "busy" if runner["busy"] else "idle", ", ".join(labels)))
    if rows:
        table([("Name", "Status", "Busy", "Labels"), *sorted(rows)], indent="  ")


def job(sandbox: Sandbox, options: argparse.Namespace) -> int:
    github = sandbox.github()
    fields = {"labels": options.labels.split(",")} if options.labels else {}
    number = github.add_job(options.repo, shell_command(options.command), **fields)["id"]
    if options.no_wait:
        say(f"job {number} is queued")
        return 0
    say(f"job {number}: waiting for a runner…")
    shown, on_runner = 0, False
    found = github.job(number)
    try:
        while True:
            if found["runner_name"] and not on_runner:
                say(f"job {number}: runs on {found['runner_name']}")
                on_runner = True
            for line in found["log"][shown:]:
                say(f"  {line}")
            shown = len(found["log"])
            if found["status"] == "completed":
                break
            found = github.job(number, wait=10, log_from=shown)
    except KeyboardInterrupt:
        say(f"\nno longer watching; job {number} goes on")
        return 130
    say(f"job {number}: {found['conclusion']}")
    return 0 if found["conclusion"] == "success" else 1


def shell_command(words: Sequence[str]) -> str:
    """A command line from words after `--`: one word is a command line itself, several are quoted."""
    words = list(words[1:] if words and words[0] == "--" else words)
    if not words:
        raise SandboxError("no command given: put one after --")
    return words[0] if len(words) == 1 else shlex.join(words)


def logs(sandbox: Sandbox, _: argparse.Namespace) -> int:
    sandbox.require()
    found = sandbox.machine.exec("cat", METRICS_LOG, check=False)
    if not found:
        say("no metrics yet: they are recorded while cos-agent is related (`python -m sandbox integrate cos-agent`)")
    for line in found.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            say(line)
            continue
        moment = time.strftime("%H:%M:%S", time.localtime(float(entry.pop("timestamp", 0))))
        rest = "  ".join(f"{key}={value}" for key, value in sorted(entry.items()) if key != "event")
        say(f"{moment}  {entry.get('event', '?'):<15}  {rest}")
    return 0


def debug_log(sandbox: Sandbox, options: argparse.Namespace) -> int:
    unit = sandbox.require()
    lines = "+1" if options.replay else str(options.lines)
    follow = ("-F",) if options.follow else ()
    path = f"/var/log/juju/unit-{unit.app}-0.log"
    try:
        return stream("lxc", "exec", sandbox.machine.container, "-T", "--", "tail", "-n", lines, *follow, path)
    except KeyboardInterrupt:
        return 0


def integrate(sandbox: Sandbox, options: argparse.Namespace) -> int:
    unit = sandbox.require()
    number = unit.integrate(options.endpoint, pairs(options.data), remote_app=options.remote_app)
    say(f"relation {options.endpoint}:{number}")
    return show_short(unit.status())


def remove_relation(sandbox: Sandbox, options: argparse.Namespace) -> int:
    return show_short(sandbox.require().remove_relation(options.endpoint))


def add_secret(sandbox: Sandbox, options: argparse.Namespace) -> int:
    say(sandbox.require().add_secret(options.name, pairs(options.content)))
    return 0


def update_secret(sandbox: Sandbox, options: argparse.Namespace) -> int:
    return show_short(sandbox.require().update_secret(options.name, pairs(options.content)))


def grant_secret(sandbox: Sandbox, options: argparse.Namespace) -> int:
    sandbox.require().grant_secret(options.name)
    return 0


def model_config(sandbox: Sandbox, options: argparse.Namespace) -> int:
    values = sandbox.require().model_config(pairs(options.settings))
    if not options.settings:
        table([("Attribute", "Value"), *sorted(values.items())])
    return 0


def refresh(sandbox: Sandbox, _: argparse.Namespace) -> int:
    unit = sandbox.require()
    with tempfile.TemporaryDirectory(prefix="ghr-sandbox-") as folder:
        charm, sandbox.record["charm"] = sandbox.packed(folder)
        sandbox.save()
        return show_short(unit.refresh(charm))


def resolved(sandbox: Sandbox, options: argparse.Namespace) -> int:
    return show_short(sandbox.require().resolved(no_retry=options.no_retry))


def reboot(sandbox: Sandbox, options: argparse.Namespace) -> int:
    unit = sandbox.require()
    with step("Cutting the power" if options.hard else "Rebooting the machine"):
        sandbox.machine.reboot(hard=options.hard)
    return show_short(unit.wait_idle())


def execute(sandbox: Sandbox, options: argparse.Namespace) -> int:
    sandbox.require()
    return stream("lxc", "exec", sandbox.machine.container, "--", "sh", "-c", shell_command(options.command))


def down(sandbox: Sandbox, options: argparse.Namespace) -> int:
    chosen = [sandbox]
    if options.all:
        names = [path.stem.removeprefix("machine-") for path in lxd_setup.state_dir().glob("machine-*.json")]
        chosen = [Sandbox(name) for name in names]
    for one in chosen:
        if one.machine.exists():
            with step(f"Removing the machine {one.machine.name}"):
                one.machine.destroy()
        one.stop_github()
        one.record_path.unlink(missing_ok=True)
    if options.all:
        lxd_setup.remove_all()
        run("rm", "-rf", str(lxd_setup.state_dir() / "dependencies"))
    return 0


COMMAND = ("command", {"nargs": argparse.REMAINDER, "metavar": "-- COMMAND", "help": "the command, after --"})
SETTINGS = ("settings", {"nargs": "*", "metavar": "KEY=VALUE"})
ENDPOINT = ("endpoint", {"help": "cos-agent or debug-ssh"})
NAME = ("name", {"help": "the secret's name or URI"})
CONTENT = ("content", {"nargs": "+", "metavar": "KEY=VALUE"})

# name: function, help, example, arguments
COMMANDS: dict[str, tuple[Callable[[Sandbox, argparse.Namespace], int], str, str, list[tuple[str, dict]]]] = {
    "up": (
        *(up, "start a machine with the charm, or bring a running one up to date", "up --runners 3 labels=big,fast"),
        [("--runners", {"type": int, "metavar": "N", "help": "how many runners (2)"}), SETTINGS],
    ),
    "config": (
        *(config, "show or change the charm's options", "config virtual-machines=3 denylist=192.0.2.0/24"),
        [("--reset", {"metavar": "KEY[,KEY]", "help": "go back to defaults"}), SETTINGS],
    ),
    "run": (
        *(action, "run an action", "run check-runners"),
        [("action", {}), ("parameters", {"nargs": "*", "metavar": "KEY=VALUE"})],
    ),
    "status": (
        *(status, "the unit, and the runners as GitHub lists them", "status --json"),
        [("--json", {"action": "store_true"})],
    ),
    "job": (
        *(job, "queue a job at GitHub and watch its log", "job -- 'uname -a; exit 3'"),
        [
            ("--repo", {"default": REPOSITORY, "metavar": "OWNER/NAME"}),
            ("--labels", {"default": "", "metavar": "LABEL[,LABEL]", "help": "labels of the runner (self-hosted)"}),
            ("--no-wait", {"action": "store_true", "help": "only queue it"}),
            COMMAND,
        ],
    ),
    "logs": (logs, "the metrics that the charm wrote", "logs", []),
    "debug-log": (
        *(debug_log, "the log of the unit", "debug-log -f"),
        [
            ("-f", {"action": "store_true", "dest": "follow", "help": "go on until interrupted"}),
            ("--replay", {"action": "store_true", "help": "from the beginning"}),
            ("-n", {"type": int, "default": 50, "dest": "lines", "metavar": "N", "help": "so many lines (50)"}),
        ],
    ),
    "integrate": (
        *(integrate, "relate the charm to an application that has these data", "integrate cos-agent"),
        [
            ENDPOINT,
            ("--remote-app", {"default": "", "metavar": "NAME"}),
            ("data", {"nargs": "*", "metavar": "KEY=VALUE"}),
        ],
    ),
    "remove-relation": (remove_relation, "remove a relation", "remove-relation cos-agent", [ENDPOINT]),
    "add-secret": (add_secret, "add a user secret; prints its URI", "add-secret pat token=ghp_…", [NAME, CONTENT]),
    "update-secret": (update_secret, "a new revision of one", "update-secret pat token=ghp_…", [NAME, CONTENT]),
    "grant-secret": (grant_secret, "let the charm read a secret", "grant-secret pat", [NAME]),
    "model-config": (
        *(
            model_config,
            "show or change the model's configuration",
            "model-config juju-http-proxy=http://10.213.77.1:3128",
        ),
        [SETTINGS],
    ),
    "refresh": (refresh, "bring edited sources into the machine", "refresh", []),
    "resolved": (
        *(resolved, "run a failed hook again", "resolved"),
        [("--no-retry", {"action": "store_true", "help": "go on without it"})],
    ),
    "reboot": (
        *(reboot, "reboot the machine", "reboot --hard"),
        [("--hard", {"action": "store_true", "help": "as if the power was cut"})],
    ),
    "exec": (execute, "run a shell command in the machine", "exec -- lxc list", [COMMAND]),
    "down": (
        *(down, "remove the machine and stop its GitHub", "down --all"),
        [("--all", {"action": "store_true", "help": "everything that the sandbox made, LXD's set-up included"})],
    ),
}


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    whole.add_argument("--machine", default=Machine().name, metavar="NAME", help="several can run side by side")
    commands = whole.add_subparsers(dest="chosen", required=True, metavar="COMMAND")
    for name, (_, text, example, arguments) in COMMANDS.items():
        one = commands.add_parser(name, help=text, description=text, epilog=f"example: python -m sandbox {example}")
        for argument, details in arguments:
            one.add_argument(argument, **details)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if os.geteuid() != 0:
            raise SandboxError("the sandbox drives LXD and loop devices: run it as root")
        return COMMANDS[options.chosen][0](Sandbox(options.machine), options)
    except (SandboxError, GitHubControlError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; what runs in the machine goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
