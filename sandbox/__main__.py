"""The sandbox's command line, in Juju's words: ``python3 -m sandbox COMMAND``. Each command has ``--help``."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable

from sandbox import demo, session, status
from sandbox.github.control import GitHubControlError
from sandbox.shell import SandboxError

# Of `job --count`, and of `job --every` in seconds.
MOST_JOBS = 10_000
LONGEST_PAUSE = 3600

Command = Callable[[argparse.Namespace], int | None]


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Command, text: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example: python3 -m sandbox {example}",
    )
    parser.set_defaults(run=run)
    return parser


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python3 -m sandbox",
        description="A Juju machine with the github-runner charm on it, on a real LXD, and a GitHub beside it.",
    )
    parser.add_argument("--machine", default="sandbox", metavar="NAME", help="which machine (default: sandbox)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_unit_commands(commands)
    _add_model_commands(commands)
    _add_credential_commands(commands)

    def add(name: str, run: Command, text: str, example: str) -> argparse.ArgumentParser:
        return _command(commands, name, run, text, example)

    logs = add("logs", session.logs, "show the metrics log of the unit", "logs")
    logs.add_argument("--raw", action="store_true", help="the lines as they are shipped to Loki")
    debug_log = add("debug-log", session.debug_log, "show the unit's log as Juju keeps it", "debug-log -n 50")
    debug_log.add_argument("-f", "--tail", action="store_true", help="go on with what comes")
    debug_log.add_argument("-n", "--lines", type=int, default=40, help="how many lines (default: 40)")
    debug_log.add_argument("--replay", action="store_true", help="from the beginning")
    reboot = add("reboot", session.reboot, "reboot a machine and wait for the hooks that follow", "reboot --hard")
    reboot.add_argument("--hard", action="store_true", help="as if the power had failed")
    shell = add("exec", session.execute, "run a shell command as root in the machine", "exec -- lxc list")
    shell.add_argument("command", nargs="+", help="its words, after --")
    lost = add("agent-down", session.agent_down, "let no hook run and juju-exec fail, until agent-up", "agent-down")
    back = add("agent-up", session.agent_up, "let hooks run again, first those that have become due", "agent-up")
    for one_unit in (logs, debug_log, reboot, shell, lost, back):
        _add_unit_option(one_unit)
    down = add("down", session.down, "remove all machines and stop their GitHub", "down --all")
    down.add_argument("--all", action="store_true", help="the prepared images and the LXD set-up as well")
    told = add("demo", lambda options: demo.main([f"--runners={options.runners}"]), "tell the whole story once", "demo")
    told.add_argument("--runners", type=int, default=2, help="how many runners the unit keeps (default: 2)")
    return parser


def _add_unit_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    up = _command(commands, "up", session.up, "set up, and deploy the charm", "up --runners 4 labels=fast")
    up.add_argument("--runners", type=int, default=None, help="how many runners the unit keeps (default: 2)")
    up.add_argument("--vm", action="store_true", help="runners are virtual machines, and GitHub speaks HTTPS")
    up.add_argument("options", nargs="*", type=_pair, metavar="KEY=VALUE", help="options of the charm")
    config = _command(
        commands, "config", session.config, "show or set the charm's options", "config virtual-machines=4"
    )
    config.add_argument("options", nargs="*", metavar="KEY=VALUE", help="what to set; KEY=@FILE reads it, KEY shows it")
    config.add_argument("--reset", metavar="KEY[,KEY…]", help="back to the default")
    run = _command(commands, "run", session.run_action, "run an action of the charm", "run check-runners")
    run.add_argument("action", help="its name, such as check-runners")
    run.add_argument("parameters", nargs="*", type=_pair, metavar="KEY=VALUE", help="parameters of the action")
    _add_unit_option(run)
    text = "show the units, and the runners that GitHub lists"
    shown = _command(commands, "status", status.status, text, "status --watch")
    how = shown.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="for programs")
    how.add_argument(
        "--watch",
        action="store_true",
        help="the table of `run check-runners format=table` of each unit, again and again, until Ctrl-C",
    )
    _add_job_command(commands)
    _command(commands, "refresh", session.refresh, "replace the charm by today's source (upgrade-charm)", "refresh")
    resolved = _command(commands, "resolved", session.resolved, "run a failed hook again", "resolved")
    resolved.add_argument("--no-retry", action="store_true", help="go on as if it had succeeded")
    _add_unit_option(resolved)
    text = "add a unit with the same options, secrets and relations, on a machine of its own"
    _command(commands, "add-unit", session.add_unit, text, "add-unit")
    gone = _command(commands, "remove-unit", session.remove_unit, "remove a unit and its machine", "remove-unit 1")
    gone.add_argument("number", type=int, help="of the unit: the first one that was added is 1")


def _add_job_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    job = _command(commands, "job", session.job, "queue a job and show its log", "job -- 'echo hello; nproc'")
    job.add_argument("--repo", metavar="OWNER/REPO", help="in which repository (default: octo-org/demo)")
    text = "comma list of what the runner must have (default: self-hosted)"
    job.add_argument("--labels", type=_labels, metavar="LABEL[,LABEL…]", help=text)
    text = "queue so many, show which runner takes each, and their queue times at the end"
    job.add_argument("--count", type=_count, metavar="N", help=text)
    text = "seconds between two of them (default: 0, all at once)"
    job.add_argument("--every", type=_seconds, metavar="S", help=text)
    job.add_argument("--no-wait", action="store_true", help="queue it and print its number")
    job.add_argument("command", nargs="+", help="a shell command")


def _add_unit_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unit", type=int, default=0, metavar="N", help="of unit github-runner/N (default: 0)")


def _add_model_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    integrate = _command(
        commands,
        "integrate",
        session.integrate,
        "relate the unit to another application",
        "integrate debug-ssh host=192.0.2.1 port=22 rsa_fingerprint=SHA256:a ed25519_fingerprint=SHA256:b",
    )
    integrate.add_argument("endpoint", help="cos-agent or debug-ssh")
    integrate.add_argument("data", nargs="*", type=_pair, metavar="KEY=VALUE", help="the remote unit's data")
    gone = _command(
        commands, "remove-relation", session.remove_relation, "remove a relation", "remove-relation debug-ssh"
    )
    gone.add_argument("endpoint", help="cos-agent or debug-ssh")
    model = _command(
        commands,
        "model-config",
        session.model_config,
        "show or set the model's configuration",
        "model-config juju-http-proxy=http://proxy:3128",
    )
    model.add_argument("options", nargs="*", type=_pair, metavar="KEY=VALUE", help="what to set; nothing shows all")


def _add_credential_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    texts = {"add-secret": "add a user secret and grant it", "update-secret": "give a user secret a new revision"}
    for name, text in texts.items():
        run = session.add_secret if name == "add-secret" else session.update_secret
        secret = _command(commands, name, run, text, f"{name} github token=ghp_…")
        secret.add_argument("name", help="of the secret")
        text = "all keys of the revision; KEY#file=PATH reads the file"
        secret.add_argument("content", nargs="+", type=_pair, metavar="KEY=VALUE", help=text)
        if name == "add-secret":
            secret.add_argument("--no-grant", action="store_true", help="as Juju does: grant-secret is to follow")
    granted = _command(
        commands,
        "grant-secret",
        session.grant_secret,
        "let the charm read a secret",
        "grant-secret github github-runner",
    )
    granted.add_argument("name", help="of the secret")
    granted.add_argument("application", help="github-runner")
    text = "make a GitHub App that is installed on octo-org, and show its numbers"
    app = _command(commands, "add-app", session.add_app, text, "add-app app.pem")
    app.add_argument("file", help="gets the private key, for add-secret with private-key#file=FILE")


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{word!r} is not of the form KEY=VALUE")
    return key, value


def _labels(text: str) -> list[str]:
    labels = [word.strip() for word in text.split(",")]
    if not all(labels):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty label")
    return labels


def _count(text: str) -> int:
    if not (re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= MOST_JOBS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_JOBS}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_PAUSE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {LONGEST_PAUSE}")
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it did what it says."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except (SandboxError, GitHubControlError) as error:
        print(f"ERROR {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing is to be flushed to it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except json.JSONDecodeError as error:
        print(f"ERROR an answer from the machine was not understood: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
