"""What `make bench ONLY=vm` counts and writes. The benchmark itself needs virtual machines."""

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import lxd_notes, report, virtual_machines

ROOT = Path(__file__).parents[2]
NAME = "app-0-0123abcdaa"
EXEC = f"/1.0/instances/{NAME}/exec"
WAIT = "/1.0/operations/0123/wait?timeout=10"
# What one hook sends to LXD: the line of a request and its body, if it has one. Those of the creation are marked.
HOOK = [
    ("GET /1.0/instances?recursion=1", None, ""),
    ("GET /1.0/profiles/cpu-2", None, "asked"),
    ("POST /1.0/profiles", b"{...}", "asked"),
    ("POST /1.0/instances", b"{...}", "asked"),
    (f"GET {WAIT}", None, "asked"),
    (f"POST {EXEC}", b'{"command": ["/bin/sh"]}', "poll"),
    (f"GET {WAIT}", None, "poll"),
    (f"POST {EXEC}", b'{"command": ["/bin/sh"]}', "asked"),
    (f"GET {WAIT}", None, "asked"),
    ("PATCH /1.0/instances", b"{...}", "asked"),
    (f"POST {EXEC}", b'{"command": ["systemctl"]}', "asked"),
    (f"GET {WAIT}", None, "asked"),
    ("GET /1.0/instances?recursion=1", None, ""),
]


class Connection(http.client.HTTPConnection):
    """A connection to nobody, which answers nothing."""

    def __init__(self) -> None:
        super().__init__("lxd")
        self.sock = self

    def sendall(self, data: bytes) -> None:
        pass


def noted(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The notes of HOOK."""
    monkeypatch.setattr(http.client.HTTPConnection, "send", http.client.HTTPConnection.send)
    lxd_notes.follow(str(path))
    for line, body, _ in HOOK:
        connection = Connection()
        method, _, resource = line.partition(" ")
        connection.putrequest(method, resource)
        connection.endheaders(body)
    return path.read_text().splitlines()


def test_what_a_creation_sends_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and bytes from the resources' profile to the last command count; polls are counted apart."""
    notes = noted(tmp_path / "notes", monkeypatch)

    counted = virtual_machines.counted(notes, NAME)

    assert counted["requests"] == len([kind for _, _, kind in HOOK if kind == "asked"])
    assert counted["polls"] == len([kind for _, _, kind in HOOK if kind == "poll"])
    heads = sum(len(f"{line} HTTP/1.1\r\nHost: lxd\r\n") for line, _, kind in HOOK if kind == "asked")
    bodies = sum(len(body or b"") for _, body, kind in HOOK if kind == "asked")
    assert heads + bodies <= counted["bytes"] < heads + bodies + 500


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The JSON of a run."""
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr("sandbox.vm.host.has_hardware", lambda: False)
    runner = {"processor": 66.0, "to agent": 70.0, "to online": 9.0, "boots": 1.0}
    virtual_machines._report([{**runner, "requests": 11, "polls": 80, "bytes": 40_000}], 60.0)
    found: dict[str, Any] = json.loads((tmp_path / "vm.json").read_text())
    return found


def test_the_report_of_virtual_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the boots, requests, bytes and QEMU's time beside the goals, and names the emulation."""
    found = written(tmp_path, monkeypatch)

    assert found["counts"] == {"boots": 1, "requests": 11, "polls": 80, "bytes": 40_000, "times the bare image": 1.1}
    assert found["goals"] == {"boots": 1, "requests": 12, "times the bare image": 1.2}
    assert "software emulation" in found["machine"]["runners"]
    assert "software emulation" in (tmp_path / "vm.svg").read_text()


def test_the_figures_have_the_form_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures that are published are of this report, and stand in a section that names the emulation."""
    form = written(tmp_path, monkeypatch)
    folder = ROOT / "docs" / "benchmarks"
    published = json.loads((folder / "vm.json").read_text())
    section = (folder / "index.md").read_text().partition("## Virtual machines")[2].partition("\n## ")[0]

    assert published.keys() == form.keys()
    assert published["counts"].keys() == form["counts"].keys()
    assert [row.keys() for row in published["rows"]] == [row.keys() for row in form["rows"]]
    assert published["machine"]["runners"] == form["machine"]["runners"]
    assert "software emulation" in section
    assert "(vm.svg)" in section
