"""The command `status`: the units and their runners, once or live."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable

from sandbox.juju.unit import Unit
from sandbox.session import Session
from sandbox.shell import SandboxError, say

# Between two pictures, in seconds: each one is an action of each unit.
INTERVAL = 2.0
# To the upper left corner; away with the rest of a line, and with the lines below; lines that wrap, or do not.
HOME, END_OF_LINE, BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
WRAP, NO_WRAP = "\x1b[?7h", "\x1b[?7l"
CLEAR = "\x1b[2J"


def status(options: argparse.Namespace) -> int:
    """The units, and the runners as GitHub lists them; with --watch as their actions have them."""
    session = Session(options.machine).there()
    if options.watch:
        return watch(lambda: picture(session.units()))
    units = session.units()
    all_found = [unit.status() for unit in units]
    runners = session.control.runners()
    if options.json:
        say(json.dumps({"unit": all_found[0], "units": all_found, "runners": runners}, indent=2))
        return 0
    say(f"{'Model':<10} {'App':<15} {'Version':<10} {'Unit':<18} {'Workload':<12} {'Agent':<8} Message")
    for found in all_found:
        say(
            f"{found['model']:<10} {found['app']:<15} {found['version']:<10} {found['unit']:<18} "
            f"{found['status']:<12} {found['agent']:<8} {found['message']}"
        )
    machines = ", ".join(f"{unit.machine.container} at {unit.machine.address()}" for unit in units)
    say(f"\nMachine   {machines}     GitHub   {session.github['url']}")
    say(f"\n{'Runner at GitHub':<52} {'Status':<9} {'Job':<6} Labels")
    for runner in runners:
        labels = ",".join(label["name"] for label in runner["labels"])
        say(f"{runner['name']:<52} {runner['status']:<9} {'busy' if runner['busy'] else 'idle':<6} {labels}")
    return 0


def picture(units: list[Unit]) -> str:
    """Each unit's status, and below it the tables of its action check-runners or why there are none."""
    return "\n\n".join(map(_of_unit, units))


def _of_unit(unit: Unit) -> str:
    # What the action does is no part of the picture.
    unit.on_event = lambda event: None
    try:
        task = unit.run("check-runners", {"format": "table"})
        table = _tables(task["results"]) if task["status"] == "completed" else f"ERROR {task['message']}"
    except SandboxError as error:
        table = f"ERROR {error}"
    try:
        found = unit.status()
    except SandboxError:  # its machine has gone: the action has said so
        return table
    return f"{found['unit']}  {found['status']}  {found['message']}\n{table}"


def _tables(results: dict[str, str]) -> str:
    """The runners; and below them the flavours that wait, if there are any below the headings."""
    waiting = results["waiting"]
    return results["runners"] + (f"\n{waiting}" if "\n" in waiting else "")


def watch(show: Callable[[], str], pause: Callable[[float], object] = time.sleep) -> int:
    """Show a picture again and again until Ctrl-C; in place on a terminal, otherwise as blocks one below the other."""
    try:
        if sys.stdout.isatty():
            say(CLEAR, end="", newline=False)
        while True:
            shown = f"{time.strftime('%H:%M:%S')}\n{show()}"
            if sys.stdout.isatty():
                say(_in_place(shown, *shutil.get_terminal_size()), end="", newline=False)
            else:
                say(f"{shown}\n")
            pause(INTERVAL)
    except KeyboardInterrupt:
        say("")
        return 0


def _in_place(text: str, columns: int, lines: int) -> str:
    """What draws a text over the one before, cut to the terminal: a line that wraps would shift all others.

    Letters may be wider than one column, so that the terminal is told as well.
    """
    cut = [line[: columns - 1] + END_OF_LINE for line in text.splitlines()[: lines - 1]]
    return NO_WRAP + HOME + "\n".join(cut) + "\n" + BELOW + WRAP
