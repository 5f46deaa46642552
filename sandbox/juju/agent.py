"""A Juju unit agent for one unit, with as much of a controller as the unit notices: the command lines.

It runs inside the machine. From outside it is called as ``agent.py OPERATION '{"json": "arguments"}'`` and answers with
lines of JSON: what happens as it happens, then ``{"result": …}`` or ``{"error": …}``. What runs charm code does so in a
systemd unit of its own, as the charm is a child of Juju's machine agent and not of whoever asked: neither a caller's
control group, nor its environment, nor its end reaches the charm.

The operations are imported where they are done: juju-exec, a small client, is not to cost a caller more than Juju's.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import store

HERE = Path(__file__).resolve().parent


def answer(name: str, arguments: dict[str, Any]) -> int:
    """Do one operation and print its result; gives the exit code."""
    from operations import OPERATIONS
    from running import JujuError

    try:
        if not Path(store.STATE).exists() and name != "deploy":
            raise JujuError("no unit is deployed on this machine")
        print(json.dumps({"result": OPERATIONS[name](**arguments)}))
    except JujuError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    return 0


def in_unit(name: str, arguments: dict[str, Any]) -> tuple[int, str]:
    """Do an operation in a systemd unit of its own and give what it printed; our own death does not end it."""
    command = ("systemd-run", "--pipe", "--wait", "--collect", "--quiet", "--property=KillMode=process")
    described = ("--description", f"Juju: {name}", sys.executable, str(HERE / "agent.py"), "--inside", name)
    # Not as words of the command: systemd would expand what looks like a variable in them.
    given = json.dumps(arguments)
    done = subprocess.run((*command, *described), input=given, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout


def follow(stop: threading.Event, ended: threading.Event) -> None:
    """Print events as they come until stop is set; a thread of its own."""
    events = Path(store.EVENTS)
    events.touch()
    with events.open() as file:
        file.seek(0, os.SEEK_END)
        while True:
            last_round = stop.is_set()
            for line in file:
                print(line, end="", flush=True)
            if last_round:
                break
            time.sleep(0.02)
    ended.set()


def outside(name: str, arguments: dict[str, Any]) -> int:
    """Called by the operator: events first, then the result."""
    from operations import OPERATIONS, WORK

    if OPERATIONS[name] not in WORK:
        return answer(name, arguments)
    stop, ended = threading.Event(), threading.Event()
    threading.Thread(target=follow, args=(stop, ended), daemon=True).start()
    code, output = in_unit(name, arguments)
    stop.set()
    ended.wait(2)
    print(output, end="")
    return code


def juju_exec(arguments: list[str]) -> int:
    """The program juju-exec: a client only, which the command survives."""
    usage = "Usage: juju-exec [options] [-u <unit-name>] [-r <relation-id>] <commands>"
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"{usage}\n\nSummary:\nRun the specified commands in a hook context.")
        return 0
    unit, context = "", True
    while arguments and arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option in ("-u", "--unit") and arguments:
            unit = arguments.pop(0)
        elif option == "--no-context":
            context = False
        elif option in ("-r", "--relation", "--remote-unit") and arguments:
            arguments.pop(0)
        elif option not in ("--force-remote-unit", "--operator"):
            print(f"ERROR option provided but not defined: {option}", file=sys.stderr)
            return 2
    if not unit and context and arguments:
        unit = arguments.pop(0)
        if unit.startswith("unit-"):
            unit = "/".join(unit.removeprefix("unit-").rsplit("-", 1))
    if not arguments:
        print("ERROR missing arguments", file=sys.stderr)
        return 2
    _, output = in_unit("run-commands", {"command": " ".join(arguments), "unit": unit, "context": context})
    reply = json.loads(output.splitlines()[-1] if output else '{"error": "connection is shut down"}')
    if "error" in reply:
        print(f"ERROR {reply['error']}", file=sys.stderr)
        return 1
    sys.stdout.write(reply["result"]["stdout"])
    sys.stderr.write(reply["result"]["stderr"])
    return int(reply["result"]["code"])


def main(arguments: list[str]) -> int:
    Path(store.FOLDER).mkdir(parents=True, exist_ok=True)
    if arguments[0] == "juju-exec":
        return juju_exec(arguments[1:])
    inside = arguments[0] == "--inside"
    name, *rest = arguments[1:] if inside else arguments
    given = json.loads(sys.stdin.read() or "{}") if inside else json.loads(rest[0]) if rest else {}
    return answer(name, given) if inside else outside(name, given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
