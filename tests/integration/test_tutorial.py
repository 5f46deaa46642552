"""Part 1 of docs/tutorial.md, typed as it stands there: what it promises is what happens."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.deployment import ROOT, wait_for

# A machine of its own, so that a sandbox that somebody plays with is left alone.
SANDBOX = f"{sys.executable} -m sandbox --machine tutorial"
LIMIT = 240


@dataclass(frozen=True)
class Step:
    """A command of the page, and the lines that it shows of the output."""

    command: str
    shown: tuple[str, ...]


def steps() -> list[Step]:
    """The console blocks of part 1, command by command."""
    text = (ROOT / "docs/tutorial.md").read_text()
    part = text[text.index("\n## Part 1") : text.index("\n## Part 2")]
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
        for chunk in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = chunk.splitlines()
            found.append(Step(command, tuple(shown)))
    return found


def plain(line: str) -> str:
    """A line with single blanks: columns are as wide as what is in them."""
    return " ".join(line.split())


def missing(shown: tuple[str, ...], output: str) -> str | None:
    """The first shown line that does not come in the output, in the page's order; `…` stands for anything."""
    lines = iter([plain(line) for line in output.splitlines()])
    for line in shown:
        pattern = ".*".join(re.escape(part) for part in plain(line).split("…"))
        if not any(re.fullmatch(pattern, given) for given in lines):
            return line
    return None


def typed(command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the page in the repository's folder."""
    return subprocess.run(
        ["bash", "-c", command.replace("python3 -m sandbox", SANDBOX)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.fixture
def nothing_up(lxd: None) -> Iterator[None]:
    """No machine of the tutorial before and after."""
    typed("python3 -m sandbox down")
    yield
    typed("python3 -m sandbox down")


def test_part_1_has_commands_with_output() -> None:
    """Every command of part 1 is one of the sandbox's and shows something; it begins with `up` and ends with `down`."""
    commands = [step.command for step in steps()]

    assert len(commands) >= 8
    assert all(command.startswith("python3 -m sandbox ") for command in commands)
    assert all(step.shown for step in steps())
    assert (commands[0].split()[3], commands[-1].split()[3]) == ("up", "down")


@pytest.mark.parametrize(
    ("shown", "output", "first"),
    [
        (("a … b",), "other\n  a   1 b\n", None),
        (("a", "b"), "b\na\n", "b"),
        (("a",), "ab\n", "a"),
        (("✓ Done (… s)",), "  · Done …\n\r  ✓ Done (0.1 s)    \n", None),
    ],
)
def test_shown_lines_are_looked_for(shown: tuple[str, ...], output: str, first: str | None) -> None:
    """Shown lines are whole lines of the output in the same order; blanks and `…` are not taken by the letter."""
    assert missing(shown, output) == first


STATUS = "python3 -m sandbox status"


def settled() -> bool:
    """Whether all runners are idle and no reconcile goes on: a reader looks at the output until then."""
    wanted = int(typed("python3 -m sandbox config virtual-machines").stdout)
    found = json.loads(typed("python3 -m sandbox status --json").stdout)
    idle = [item for item in found["runners"] if item["status"] == "online" and not item["busy"]]
    return len(idle) == len(found["runners"]) == wanted and found["unit"]["status"] != "maintenance"


@pytest.mark.timeout(600)
def test_part_1_does_what_it_says(nothing_up: None) -> None:
    """Each command exits with 0 within its limit, and what the page shows of its output is there."""
    for step in steps():
        done = typed(step.command)
        if step.command == STATUS and missing(step.shown, done.stdout):
            # A reconcile that follows a job may have begun meanwhile: a reader looks once more.
            wait_for(settled, "the end of the reconcile")
            done = typed(step.command)

        assert done.returncode == 0, f"$ {step.command}\n{done.stdout}{done.stderr}"
        absent = missing(step.shown, done.stdout)
        assert absent is None, f"$ {step.command}\nlacks: {absent}\n{done.stdout}{done.stderr}"
        if step.command != steps()[-1].command:
            wait_for(settled, f"idle runners after `{step.command}`")
    assert "nothing is up" in typed("python3 -m sandbox status").stderr
