"""What each command of the sandbox does, on the machine that is up."""

import argparse
import json
import os
import secrets
import shlex
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from sandbox import burst
from sandbox.github.control import GitHubControl, make_app
from sandbox.juju.unit import Unit
from sandbox.lab import lxd_setup
from sandbox.lab.machine import Machine
from sandbox.lab.pack import pack
from sandbox.shell import SandboxError, say, start_daemon, step, stream, succeeds, wait_until
from sandbox.vm import template

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "octo-org/demo"
DEFAULTS = {
    "path": REPOSITORY,
    "test-mode": "insecure",
    "virtual-machines": "2",
    "vm-cpu": "1",
    "vm-memory": "1GiB",
    "vm-disk": "2GiB",
}
# Of `up --vm`.
VM_DEFAULTS = {
    "path": REPOSITORY,
    "image-source": f"local:{template.IMAGE}",
    "virtual-machines": "1",
    "vm-cpu": "2",
    "vm-memory": "1GiB",
    "vm-disk": "10GiB",
}


class Session:
    """The machine of a name, its unit, and the GitHub that runs beside it (a process whose address is on file).

    Further units of the application are on machines of their own, NAME-1, NAME-2, …
    """

    def __init__(self, name: str) -> None:
        self.unit = unit_of(name, 0)
        self.machine = self.unit.machine
        self._file = lxd_setup.state_dir() / f"github-{name}.json"
        self._ca = self._file.with_suffix(".pem")

    def there(self) -> "Session":
        """This session, if its machine is up; otherwise an error that says what to do."""
        if not self.machine.exists():
            raise SandboxError("nothing is up: run `python3 -m sandbox up` first")
        restarted = self.start_github()
        for unit in self.units():
            if not unit.machine.running():
                unit.machine.start()
            if restarted and self.ca:
                unit.set_config({"ca-certificates": self.ca})
        return self

    def units(self) -> list[Unit]:
        """All units, the first one first."""
        prefix = f"{self.machine.container}-"
        words = [name.removeprefix(prefix) for name in lxd_setup.machines() if name.startswith(prefix)]
        numbers = sorted(int(word) for word in words if word.isdigit())
        return [self.unit, *(unit_of(self.machine.name, number) for number in numbers)]

    def chosen(self, number: int) -> Unit:
        """The unit of a number."""
        for unit in self.there().units():
            if unit.number == number:
                return unit
        raise SandboxError(f'unit "{self.unit.app}/{number}" not found')

    @property
    def github(self) -> dict[str, Any]:
        """url, token and pid of the GitHub."""
        return dict(json.loads(self._file.read_text())) if self._file.exists() else {}

    @property
    def ca(self) -> str | None:
        """The certificate of the authority of a GitHub that speaks HTTPS; each start makes another one."""
        return self._ca.read_text() if self.github.get("url", "").startswith("https:") else None

    @property
    def control(self) -> GitHubControl:
        return GitHubControl(self.github["url"], ca=self.ca)

    def start_github(self, tls: bool = False) -> bool:
        """Start it unless it runs; after a restart on the same address, with the same token. Whether it was started."""
        known = self.github
        if known and _runs(known["pid"]):
            return False
        scheme = known["url"].partition(":")[0] if known else "https" if tls else "http"
        address = lxd_setup.bridge_address()
        port = known.get("url", "").rsplit(":", 1)[-1] or _free_port(address)
        token = known.get("token") or f"ghp_{secrets.token_hex(18)}"
        command = [sys.executable, "-m", "sandbox.github", "--listen", f"{address}:{port}", "--token", token]
        command += ["--repository", REPOSITORY, "--organisation", "octo-org"]
        if scheme == "https":
            self._ca.unlink(missing_ok=True)
            command += ["--tls", str(self._ca)]
        pid = start_daemon(command, lxd_setup.state_dir() / "github.log", cwd=ROOT)
        url = f"{scheme}://{address}:{port}"
        self._file.touch(mode=0o600)
        self._file.write_text(json.dumps({"url": url, "token": token, "pid": pid}))
        with step(f"Starting GitHub at {url}"):
            wait_until(lambda: _listens(address, int(port)), "GitHub's answer", timeout=20)
            wait_until(lambda: scheme == "http" or self._ca.exists(), "GitHub's certificate", timeout=20)
        return True

    def stop_github(self) -> None:
        """Stop it, if it runs, and delete the record of it."""
        known = self.github
        if known and _runs(known["pid"]):
            os.kill(known["pid"], signal.SIGTERM)
        self._file.unlink(missing_ok=True)
        self._ca.unlink(missing_ok=True)

    def pack(self, folder: str) -> Path:
        return pack(ROOT, Path(folder, "charm"))


def unit_of(name: str, number: int) -> Unit:
    """A unit of the session of this name; only the first one's machine bears the name itself."""
    return Unit(Machine(f"{name}-{number}" if number else name), number=number, on_event=show_event)


def _runs(pid: int) -> bool:
    """Whether that process is still our GitHub."""
    try:
        return b"sandbox.github" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def show_event(event: dict[str, Any]) -> None:
    """A hook that passed, or what the unit says of itself, as it happens."""
    if event["event"] == "hook-end":
        sign = "✓" if event["ok"] else "✗ failed:"
        say(f"  {sign} hook {event['hook']} ({event['seconds']:.1f} s)")
    elif event["event"] == "status":
        say(f"    {event['status']}: {event['message']}")


def show_status(session: Session) -> None:
    for unit in session.units():
        found = unit.status()
        say(f"{found['unit']}  {found['status']}  {found['message']}")


def up(options: argparse.Namespace) -> int:
    """Set up, start GitHub, deploy; with a unit that is there already, set the options."""
    session = Session(options.machine)
    if options.vm:
        template.ensure()
    else:
        lxd_setup.ensure()
        lxd_setup.ensure_template()
    given = dict(options.options)
    if options.runners is not None:
        given["virtual-machines"] = str(options.runners)
    if session.machine.exists() and session.there().unit.deployed():
        say(f"{session.unit.name} is up already{'; setting its options' if given else ''}")
        for unit in session.units() if given else ():
            unit.set_config(given)
        show_status(session)
        return 0
    session.start_github(tls=options.vm)
    if options.vm:
        session.machine.template = template.TEMPLATE
    if not session.machine.exists():
        with step("Starting a Juju machine"):
            session.machine.create()
    own = {"token": session.github["token"], "github-url": session.github["url"]}
    own |= {"ca-certificates": session.ca} if session.ca else {}
    defaults = VM_DEFAULTS if session.ca else DEFAULTS
    with tempfile.TemporaryDirectory() as folder:
        charm = session.pack(folder)
        say("Deploying github-runner")
        session.unit.deploy(charm, {**defaults, **own, **given})
    session.unit.integrate("cos-agent", remote_app="opentelemetry-collector")
    show_status(session)
    say("\nNext: python3 -m sandbox job -- 'echo hello from $RUNNER_NAME'   or status, config, run, logs, down")
    return 0


def add_unit(options: argparse.Namespace) -> int:
    """One more unit, with a number that none has, on a machine of its own."""
    session = Session(options.machine).there()
    unit = unit_of(options.machine, session.units()[-1].number + 1)
    if session.ca:
        unit.machine.template = template.TEMPLATE
    with step(f"Starting a Juju machine for {unit.name}"):
        unit.machine.create()
    with tempfile.TemporaryDirectory() as folder:
        unit.deploy_beside(session.unit, session.pack(folder))
    show_status(session)
    return 0


def remove_unit(options: argparse.Namespace) -> int:
    """Remove one that was added; the first one goes with `down`."""
    session = Session(options.machine)
    if options.number == 0:
        raise SandboxError(f"{session.unit.name} is the sandbox's own: `python3 -m sandbox down` removes it")
    unit = session.chosen(options.number)
    unit.remove_application()
    unit.machine.destroy()
    show_status(session)
    return 0


def _value(given: str) -> str:
    """A setting as it is given; with ``@`` before it, as Juju has it, what the file contains."""
    return _file_text(given[1:]) if given.startswith("@") else given


def _secret(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """The content of a secret; as Juju has it, KEY#file=PATH is what the file contains."""
    return {key.removesuffix("#file"): _file_text(text) if key.endswith("#file") else text for key, text in pairs}


def _file_text(file: str) -> str:
    try:
        return Path(file).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SandboxError(f"cannot read a value's file: {error}") from error


def config(options: argparse.Namespace) -> int:
    """Show all options or some, set some, or reset some."""
    session = Session(options.machine).there()
    values = {name: _value(given) for name, given in (word.split("=", 1) for word in options.options if "=" in word)}
    shown = [word for word in options.options if "=" not in word]
    if not options.reset and not values:
        return _show_config(session.unit.config(), shown)
    for unit in session.units():
        if options.reset:
            unit.reset_config(*options.reset.split(","))
        if values:
            unit.set_config(values)
    show_status(session)
    return 0


def _show_config(known: dict[str, dict[str, Any]], shown: list[str]) -> int:
    for name in shown:
        if name not in known:
            raise SandboxError(f"github-runner has no option {name}")
    if shown:
        for name in shown:
            say("" if known[name]["value"] is None else str(known[name]["value"]))
        return 0
    for name, option in sorted(known.items()):
        value = "(hidden)" if name.endswith("token") and option["value"] else option["value"]
        source = "user" if option["user"] else "default"
        say(f"{name:<30} {option['type']:<8} {source:<8} {'' if value is None else value}")
    return 0


def run_action(options: argparse.Namespace) -> int:
    """As `juju run`: the results, or the reason of a failure."""
    unit = Session(options.machine).chosen(options.unit)
    task = unit.run(options.action, dict(options.parameters))
    say(f"Running operation {task['id']} with 1 task\n  - task {task['id']} on unit-{unit.name.replace('/', '-')}\n")
    for line in task["log"]:
        say(str(line))
    if task["status"] != "completed":
        print(f"ERROR the action {options.action} failed: {task['message']}", file=sys.stderr)
        return 1
    _say_tree({key: value for key, value in task["results"].items() if key != "return-code"})
    return 0


def _say_tree(values: dict[str, Any], indent: str = "") -> None:
    for key, value in sorted(values.items()):
        if isinstance(value, dict):
            say(f"{indent}{key}:")
            _say_tree(value, indent + "  ")
        elif "\n" in str(value):
            say(f"{indent}{key}: |-")
            for line in str(value).splitlines():
                say(f"{indent}  {line}".rstrip())
        else:
            say(f"{indent}{key}: {json.dumps(value) if _needs_quotes(value) else value}")


def _needs_quotes(value: object) -> bool:
    """As YAML has it: text that would be read as a number or as nothing."""
    text = str(value)
    return not text or text.lower() in ("true", "false", "null") or text.replace(".", "", 1).lstrip("-").isdigit()


def shell_command(words: list[str]) -> str:
    """One word is a command line itself; several are the words of one command."""
    return words[0] if len(words) == 1 else shlex.join(words)


def job(options: argparse.Namespace) -> int:
    """Queue a job, show its log as it grows; the exit code is its conclusion's. With `--count` see `burst`."""
    if options.every is not None and options.count is None:
        raise SandboxError("--every needs --count")
    control = Session(options.machine).there().control
    repository = options.repo or REPOSITORY
    if options.repo:
        control.add_repository(options.repo)
    labels = {"labels": options.labels} if options.labels else {}
    if options.count is not None:
        command = shell_command(options.command)
        jobs = burst.Burst(control, repository, command, options.count, options.every or 0.0, labels)
        if not options.no_wait:
            return jobs.run()
        jobs.queue()
        say("\n".join(map(str, jobs.ids)))
        return 0
    queued = control.add_job(repository, shell_command(options.command), **labels)
    if options.no_wait:
        say(str(queued["id"]))
        return 0
    say(f"Job {queued['id']} of workflow run {queued['run_id']} in {repository} waits for a runner …")
    shown, runner = 0, None
    while True:
        found = control.job(queued["id"], wait=5, log_from=shown)
        if found["runner_name"] and not runner:
            runner = found["runner_name"]
            say(f"It runs on {runner}")
        for line in found["log"][shown:]:
            say(f"  {line}")
        shown = len(found["log"])
        if found["status"] == "completed":
            say(f"Conclusion: {found['conclusion']}")
            return 0 if found["conclusion"] == "success" else 1


def logs(options: argparse.Namespace) -> int:
    """The metrics log, one event a line."""
    lines = Session(options.machine).chosen(options.unit).machine.metrics()
    if not lines:
        say("no metrics yet: they are recorded from the first runner on, while cos-agent is related")
    for line in lines:
        if options.raw:
            say(line)
            continue
        event = json.loads(line)
        rest = {key: round(value, 2) if isinstance(value, float) else value for key, value in event.items()}
        moment, name = rest.pop("timestamp"), rest.pop("event")
        shown = "  ".join(f"{key}={value}" for key, value in rest.items() if key not in ("flavor", "unit"))
        say(f"{moment:<15} {name:<17} {shown}")
    return 0


def debug_log(options: argparse.Namespace) -> int:
    unit = Session(options.machine).chosen(options.unit)
    lines = "+1" if options.replay else str(options.lines)
    follow = ["-F"] if options.tail else []
    return stream("lxc", "exec", unit.machine.container, "--", "tail", "-n", lines, *follow, unit.log_file)


def reboot(options: argparse.Namespace) -> int:
    session = Session(options.machine)
    session.chosen(options.unit).reboot(hard=options.hard)
    show_status(session)
    return 0


def execute(options: argparse.Namespace) -> int:
    machine = Session(options.machine).chosen(options.unit).machine
    return stream("lxc", "exec", machine.container, "--", "sh", "-c", shell_command(options.command))


def agent_down(options: argparse.Namespace) -> int:
    session = Session(options.machine)
    session.chosen(options.unit).agent_down()
    say("The agent is down: no hooks run, and juju-exec fails, until `python3 -m sandbox agent-up`")
    return 0


def agent_up(options: argparse.Namespace) -> int:
    session = Session(options.machine)
    session.chosen(options.unit).agent_up()
    show_status(session)
    return 0


def refresh(options: argparse.Namespace) -> int:
    session = Session(options.machine).there()
    with tempfile.TemporaryDirectory() as folder:
        charm = session.pack(folder)
        for unit in session.units():
            unit.refresh(charm)
    show_status(session)
    return 0


def resolved(options: argparse.Namespace) -> int:
    session = Session(options.machine)
    session.chosen(options.unit).resolved(no_retry=options.no_retry)
    show_status(session)
    return 0


def integrate(options: argparse.Namespace) -> int:
    session = Session(options.machine).there()
    for unit in session.units():
        unit.integrate(options.endpoint, dict(options.data))
    show_status(session)
    return 0


def remove_relation(options: argparse.Namespace) -> int:
    session = Session(options.machine).there()
    for unit in session.units():
        unit.remove_relation(options.endpoint)
    show_status(session)
    return 0


def add_secret(options: argparse.Namespace) -> int:
    uri, content = None, _secret(options.content)
    for unit in Session(options.machine).there().units():
        uri = unit.add_secret(options.name, content, uri)
        if not options.no_grant:
            unit.grant_secret(options.name)
    say(str(uri))
    return 0


def grant_secret(options: argparse.Namespace) -> int:
    """No hook fires for it."""
    for unit in Session(options.machine).there().units():
        if options.application != unit.app:
            raise SandboxError(f'application "{options.application}" not found')
        unit.grant_secret(options.name)
    return 0


def add_app(options: argparse.Namespace) -> int:
    """A GitHub App on the organisation of the sandbox's repository."""
    say(make_app(Session(options.machine).there().control, Path(options.file), [REPOSITORY.partition("/")[0]]))
    return 0


def update_secret(options: argparse.Namespace) -> int:
    session, content = Session(options.machine).there(), _secret(options.content)
    for unit in session.units():
        unit.update_secret(options.name, content)
    show_status(session)
    return 0


def model_config(options: argparse.Namespace) -> int:
    values = [unit.model_config(dict(options.options)) for unit in Session(options.machine).there().units()]
    for key, value in sorted(values[0].items()):
        say(f"{key}: {value}")
    return 0


def down(options: argparse.Namespace) -> int:
    """Remove the machines and GitHub; with --all what was prepared as well."""
    session = Session(options.machine)
    there = succeeds("lxc", "query", "/1.0") and session.machine.exists()
    for unit in session.units() if there else ():
        with step(f"Removing the machine {unit.machine.container}"):
            unit.machine.destroy()
    session.stop_github()
    if options.all:
        lxd_setup.remove_all()
    if not there and not options.all:
        say("nothing was up")
    return 0
