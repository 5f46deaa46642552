"""Replacement on exit: which messages of LXD count, and when a reconcile is asked for."""

import json
import subprocess
from typing import Any

import pytest

import settings
from engine import events
from host import systemd, triggers
from programs import agent


def message(action: str = "instance-deleted", source: Any = "/1.0/instances/app-0-0123abcdaa") -> str:
    return json.dumps({"type": "lifecycle", "metadata": {"action": action, "source": source}})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        pytest.param(message(), {"app-0-0123abcdaa"}, id="deleted"),
        pytest.param(message("instance-shutdown"), {"app-0-0123abcdaa"}, id="powered off from inside"),
        pytest.param(
            message(source="/1.0/instances/app-0-0123abcdaa?project=default"), {"app-0-0123abcdaa"}, id="query"
        ),
        pytest.param(message("instance-started"), set(), id="started"),
        pytest.param(message(source="/1.0/instances/other-0-0123abcdaa"), set(), id="another's"),
        pytest.param(message(source=None), set(), id="no source"),
        pytest.param("", set(), id="nothing"),
        pytest.param("[]", set(), id="a list"),
        pytest.param('{"metadata": 7}', set(), id="a number"),
        pytest.param(b"\xff", set(), id="no text"),
    ],
)
def test_which_messages_say_that_a_runner_ended(text: str | bytes, names: set[str]) -> None:
    """Only the end of an instance of this unit counts."""
    assert events.ended_names(text, lambda name: name.startswith("app-0-")) == names


@pytest.mark.parametrize(
    ("there", "after", "state", "starts"),
    [
        pytest.param("bc", "bc", "inactive", 0, id="replaced already"),
        pytest.param("bcd", "bcd", "inactive", 0, id="more than wanted"),
        pytest.param("b", "b", "inactive", 1, id="one is missing"),
        pytest.param("ab", "ab", "inactive", 1, id="LXD still lists the one that ended"),
        pytest.param("b", "b", "failed", 1, id="the last reconcile failed"),
        pytest.param("b", "b", "activating", 2, id="a reconcile runs that observed before the end"),
        pytest.param("b", "bc", "activating", 1, id="a reconcile runs that makes the successor"),
    ],
)
def test_when_a_reconcile_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, there: str, after: str, state: str, starts: int
) -> None:
    """A reconcile is started only if a runner is missing; a running reconcile is waited for first."""
    commands: list[list[str]] = []
    pauses: list[float] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=f"{state}\n")

    monkeypatch.setattr(systemd, "run", run)
    monkeypatch.setattr("programs.agent.time.sleep", pauses.append)

    service = triggers.service("runner/0")
    begun = ["systemctl", "start", service]
    agent.replace({"a"}, lambda: set(after if begun in commands else there), wanted=2, service=service)

    assert commands.count(begun) == starts
    # A reconcile that made the successor needs no pause.
    assert bool(pauses) is (starts > 0 and not (state == "activating" and after == "bc"))


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (2, "Existing runners: 1 of 2; ended: a; starting a reconcile"),
        (settings.UNREACHED, "Existing runners: 1; ended: a; starting a reconcile"),
    ],
)
def test_log_omits_the_wanted_number_with_flavours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wanted: int, text: str
) -> None:
    """With flavours the reconcile finds out how many runners are missing."""
    monkeypatch.setattr(systemd, "is_starting", lambda _: False)
    monkeypatch.setattr(systemd, "start", lambda *_, **__: None)
    monkeypatch.setattr("programs.agent.time.sleep", lambda _: None)

    with caplog.at_level("INFO"):
        agent.replace({"a"}, lambda: {"b"}, wanted=wanted, service="a.service")

    assert caplog.messages == [text]
