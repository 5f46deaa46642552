"""The sandbox's commands `status --watch` and `config`, and the programs that it runs."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox import session, shell, status
from sandbox.__main__ import build_parser
from sandbox.lab.machine import Machine
from sandbox.shell import SandboxError


def pictures(*texts: str) -> Any:
    """Shows these, and then Ctrl-C is pressed."""
    left = list(texts)

    def show() -> str:
        if not left:
            raise KeyboardInterrupt
        return left.pop(0)

    return show


class FakeUnit:
    """A unit whose action gives a table or fails."""

    def __init__(self, name: str, **task: Any) -> None:
        self.name, self.task = name, task
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.on_event: Any = None

    def run(self, action: str, params: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((action, params))
        if "error" in self.task:
            raise SandboxError(self.task["error"])
        return self.task

    def status(self) -> dict[str, str]:
        if self.task.get("gone"):
            raise SandboxError("the machine is not there")
        return {"unit": self.name, "status": "active", "message": "1 runner"}


def test_output_that_is_no_terminal_gets_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    """Each picture is a block with its time, with no control sequence, and Ctrl-C is a success."""
    waits: list[float] = []

    assert status.watch(pictures("one", "two"), waits.append) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [lines[1], lines[4]] == ["one", "two"]
    assert lines[2] == ""
    assert "\x1b" not in "".join(lines)
    assert waits == [status.INTERVAL] * 2


def test_a_terminal_is_redrawn_in_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each picture begins in the upper left corner, and no line of it is wider, nor more lines than, the terminal."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "4")

    assert status.watch(pictures("x" * 50, "a\nb\nc\nd\ne"), lambda _: None) == 0

    first, second = capsys.readouterr().out.split(status.HOME)[1:]
    # Letters that are two columns wide must not wrap either.
    assert first.rstrip(status.NO_WRAP).endswith(status.WRAP)
    assert first.splitlines()[1] == "x" * 19 + status.END_OF_LINE
    assert [line.removesuffix(status.END_OF_LINE) for line in second.splitlines()[1:3]] == ["a", "b"]
    assert second.splitlines()[3].startswith(status.BELOW)


def test_ctrl_c_between_two_pictures_ends_it() -> None:
    """The pause can be interrupted, too."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    assert status.watch(lambda: "one", interrupted) == 0


def test_a_picture_has_each_units_table() -> None:
    """The tables are those of the action; a unit whose action fails, or whose agent is away, says why."""
    good = FakeUnit("app/0", status="completed", results={"runners": "Name\napp-0-a", "waiting": "Flavor"})
    short = FakeUnit("app/4", status="completed", results={"runners": "Name", "waiting": "Flavor\nsmall"})
    failed = FakeUnit("app/1", status="failed", message="path: is empty")
    away = FakeUnit("app/2", error="timed out")
    gone = FakeUnit("app/3", error="not found", gone=True)

    shown = status.picture([good, failed, away, gone, short])  # type: ignore[list-item]

    assert good.asked == [("check-runners", {"format": "table"})]
    assert shown.split("\n\n") == [
        "app/0  active  1 runner\nName\napp-0-a",
        "app/1  active  1 runner\nERROR path: is empty",
        "app/2  active  1 runner\nERROR timed out",
        "ERROR not found",
        "app/4  active  1 runner\nName\nFlavor\nsmall",
    ]


def test_help_tells_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """`status --help` names the option; it goes together with no other form."""
    with pytest.raises(SystemExit):
        build_parser().parse_args(["status", "--help"])
    assert "--watch" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        build_parser().parse_args(["status", "--watch", "--json"])


def test_help_tells_of_every_argument() -> None:
    """No command has an argument or an option that its `--help` says nothing about."""
    [commands] = [action for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert isinstance(commands.choices, dict)
    found = [
        f"{name}: {action.dest}"
        for name, parser in commands.choices.items()
        for action in parser._actions
        if not action.help
    ]

    assert len(commands.choices) > 10
    assert found == []


def test_an_option_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`KEY=@FILE` is the file's content, as in Juju's own command; one that cannot be read is named."""
    given: list[dict[str, str]] = []
    found: Any = SimpleNamespace(there=lambda: found, units=lambda: [SimpleNamespace(set_config=given.append)])
    monkeypatch.setattr(session, "Session", lambda machine: found)
    monkeypatch.setattr(session, "show_status", lambda _: None)
    script = tmp_path / "image.sh"
    script.write_text("#!/bin/sh\ntrue = false\n")

    def config(*words: str) -> object:
        return session.config(build_parser().parse_args(["config", *words]))

    config(f"image-script=@{script}", "labels=a=b")
    assert given == [{"image-script": "#!/bin/sh\ntrue = false\n", "labels": "a=b"}]

    with pytest.raises(SandboxError, match="No such file or directory: '/none'"):
        config("image-script=@/none")


class RecordingUnit:
    """A unit that records what it is given."""

    app = "github-runner"

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []

    def add_secret(self, *given: Any) -> str:
        self.given.append(("add", *given))
        return "secret:1"

    def update_secret(self, *given: Any) -> None:
        self.given.append(("update", *given))

    def grant_secret(self, *given: Any) -> None:
        self.given.append(("grant", *given))


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[tuple[Any, ...]]:
    """What two units are given by a command; the first one's, after both were seen to be the same but for the URI."""
    units = [RecordingUnit(), RecordingUnit()]
    found: Any = SimpleNamespace(there=lambda: found, units=lambda: units)
    monkeypatch.setattr(session, "Session", lambda machine: found)
    monkeypatch.setattr(session, "show_status", lambda _: None)
    options = build_parser().parse_args(list(words))
    options.run(options)
    assert [given[:3] for given in units[0].given] == [given[:3] for given in units[1].given]
    return units[0].given


@pytest.mark.parametrize("name", ["add-secret", "update-secret"])
def test_a_key_of_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """`KEY#file=PATH` is exactly what the file contains, as in Juju; a file that cannot be read is named."""
    key = tmp_path / "app=1.pem"
    key.write_bytes(b"-----BEGIN\r\nx==\n")

    [given, *_] = command(monkeypatch, name, "github", "app-id=1", f"private-key#file={key}")

    assert given[1:3] == ("github", {"app-id": "1", "private-key": "-----BEGIN\r\nx==\n"})
    with pytest.raises(SandboxError, match="No such file or directory: '/none'"):
        command(monkeypatch, name, "github", "private-key#file=/none")


def test_a_secret_is_granted_at_once_or_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--no-grant` leaves it to `grant-secret`, which knows one application."""
    added = ("add", "github", {"token": "x"}, None)
    assert command(monkeypatch, "add-secret", "github", "token=x") == [added, ("grant", "github")]
    assert command(monkeypatch, "add-secret", "--no-grant", "github", "token=x") == [added]
    assert command(monkeypatch, "grant-secret", "github", "github-runner") == [("grant", "github")]
    with pytest.raises(SandboxError, match='application "other" not found'):
        command(monkeypatch, "grant-secret", "github", "other")


def test_a_github_app_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its key is in a file that nobody else reads; what a secret and a test need to know of it is shown."""
    control = SimpleNamespace(
        add_app=lambda slug, owner: {"id": 7, "client_id": "Iv1", "private_key": "PEM"},
        install_app=lambda number, owner: 8,
    )
    found: Any = SimpleNamespace(there=lambda: found, control=control)
    monkeypatch.setattr(session, "Session", lambda machine: found)

    options = build_parser().parse_args(["add-app", str(tmp_path / "app.pem")])
    options.run(options)

    assert ((tmp_path / "app.pem").read_text(), (tmp_path / "app.pem").stat().st_mode & 0o777) == ("PEM", 0o600)
    assert capsys.readouterr().out == "GitHub App 7, client id Iv1, installed as 8 on octo-org\n"


@pytest.mark.parametrize(("said", "runs"), [(shell.NOT_STARTED, 2), ("Error: no such file", 1)])
def test_a_command_that_lxd_did_not_begin_is_given_again(tmp_path: Path, said: str, runs: int) -> None:
    """It has done nothing yet. One that failed for itself is not repeated, and nothing is given more than twice."""
    counter = tmp_path / "runs"

    done = shell.ended("sh", "-c", f"echo run >> {counter}; echo '{said}' >&2; exit 255")

    assert (done.returncode, counter.read_text()) == (255, "run\n" * runs)


@pytest.mark.parametrize(
    ("log", "lines"), [("", []), ('{"event": "ru', []), ('{"a": 1}\n{"b": 2}\n{"c', ['{"a": 1}', '{"b": 2}'])]
)
def test_an_event_that_is_being_written_is_not_shown_yet(
    log: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads the metrics log may see the begin of a line: it is one once its end is there."""
    monkeypatch.setattr(Machine, "exec", lambda *_: log)

    assert Machine("any").metrics() == lines
