"""The unit's agent as a program: who starts reconciles, and how it begins."""

import logging
import queue
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import agent_settings
import provision
import times
from errors import CommandError, ConfigurationError, LxdError
from host import agent as service
from host import systemd, triggers
from host.markers import LIST_DUE, Markers
from naming import ONLINE_KEY, PREPARED_KEY
from programs import agent, new_runners
from tests.support.fakes import TEMPLATES, FakeInstance, FakeLxd
from tests.support.systemctl import Systemctl

UNIT = "app/0"
NOW = 1_700_000_000.0


def test_what_asks_during_a_reconcile_gets_one_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that runs may have observed before; who asks does not wait; a failure is logged, and no end."""
    started: queue.Queue[str] = queue.Queue()
    released: queue.Queue[Exception | None] = queue.Queue()

    def start(name: str) -> None:
        started.put(name)
        failure = released.get(timeout=20)
        if failure is not None:
            raise failure

    monkeypatch.setattr(agent, "start_reconcile", start)
    starter = agent.Starter("reconcile.service")
    starter.start()
    starter.ask()
    assert started.get(timeout=20) == "reconcile.service"
    for _ in range(3):
        starter.ask()

    released.put(CommandError("systemctl failed"))
    assert started.get(timeout=20) == "reconcile.service"
    assert caplog.messages == ["A reconcile was not started: systemctl failed"]
    released.put(None)
    starter.ask()
    assert started.get(timeout=20) == "reconcile.service"

    released.put(None)
    assert started.empty()


def test_without_settings_the_agent_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """systemd starts it again; the next reconcile writes them."""
    monkeypatch.setattr("sys.argv", ["agent", "--unit", UNIT])

    with caplog.at_level(logging.ERROR):
        assert agent.main() == 1

    assert caplog.messages


def test_a_signal_ends_an_agent_that_is_about_to_wait() -> None:
    """A signal that comes while the main thread holds the lock of the event neither waits for itself nor is lost."""
    lock, ended = threading.Lock(), threading.Event()

    class Stop(threading.Event):
        def set(self) -> None:
            if lock.acquire(timeout=10):
                ended.set()

    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        agent.end_by_signal(Stop())
        for number in former:
            with lock:
                signal.raise_signal(number)
            assert ended.wait(20)
            lock.release()
            ended.clear()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def test_the_former_watcher_goes_with_the_refresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would start reconciles beside the agent. Its program is not there any more."""
    systemctl = Systemctl(monkeypatch)
    monkeypatch.setattr(systemd, "FOLDER", tmp_path)
    former = tmp_path / triggers.former_watcher(UNIT)
    former.write_text("[Service]\n")

    service.ensure(provision.environment(TEMPLATES), UNIT, True, 0)

    assert not former.exists()
    assert systemctl.changes[0] == f"disable --quiet --now {former.name}"
    assert (tmp_path / triggers.agent(UNIT)).exists()


def test_sessions_end_with_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an agent that runs; one that does not is not started."""
    systemctl = Systemctl(monkeypatch)

    service.end_sessions(UNIT)

    assert systemctl.calls == [f"try-restart {triggers.agent(UNIT)}"]


def test_each_end_of_an_instance_asks_once_in_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In demand mode: a creation that fails ends an instance, and would ask for the next one at once."""
    calls: list[Any] = []
    monkeypatch.setattr(agent_settings, "LOCKS", tmp_path)
    agent_settings.file_of(UNIT).write_text("{}")
    monkeypatch.setattr("engine.events.ended", lambda *_: iter([{"a"}, {"b"}]))
    monkeypatch.setattr(agent, "time", SimpleNamespace(sleep=calls.append))
    starter: Any = SimpleNamespace(ask=lambda: calls.append("asked"))

    agent.watch(UNIT, bool, starter)

    assert calls == ["asked", agent.PAUSE] * 2


def test_what_keeps_a_runner_from_being_replaced_is_logged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a fixed number; the next end is followed all the same, and the line of the log names what ended."""
    caplog.set_level(logging.INFO)
    systemctl = Systemctl(monkeypatch)
    found: list[Any] = [ConfigurationError("no settings"), SimpleNamespace(runners=3)]

    def load(_: str) -> Any:
        first = found.pop(0)
        if isinstance(first, Exception):
            raise first
        return first

    monkeypatch.setattr(agent_settings, "LOCKS", tmp_path)
    monkeypatch.setattr("settings.load", load)
    monkeypatch.setattr("engine.events.ended", lambda *_: iter([{"app-a"}, {"app-b"}]))
    monkeypatch.setattr("engine.client.LxdClient.instance_names", lambda _: {"app-b", "app-c", "app-d", "other"})
    monkeypatch.setattr(agent, "time", SimpleNamespace(sleep=lambda _: None))

    agent.watch(UNIT, lambda name: name.startswith("app-"), SimpleNamespace())  # type: ignore[arg-type]

    assert caplog.messages == ["no settings", "Existing runners: 2 of 3; ended: app-b; starting a reconcile"]
    assert systemctl.changes == [f"start {triggers.service(UNIT)}"]


@pytest.mark.parametrize(("name", "ends"), [("starter", True), ("watcher", True), ("missed jobs", False)])
def test_without_its_threads_the_agent_ends(name: str, ends: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Without the one that starts reconciles or the one that watches systemd has to begin anew."""
    failed: list[str] = []
    stop = threading.Event()
    ended: Any = SimpleNamespace(
        thread=threading.Thread(name=name), exc_type=ValueError, exc_value=ValueError("reason"), exc_traceback=None
    )

    agent.note_end(failed, stop, ended)

    assert (bool(failed), stop.is_set()) == (ends, ends)
    assert "reason" in caplog.text


def new_runner(name: str, age: float, process: int, **keys: str) -> FakeInstance:
    """A runner whose creation ended ``age`` seconds ago."""
    config = {PREPARED_KEY: f"{NOW - age:.0f}", **keys}
    instance = FakeInstance(FakeLxd(), name, config)
    instance.running, instance.process = True, process
    return instance


@pytest.mark.parametrize("process", [10, 12, 13])
def test_new_runners_that_have_ended_are_found_while_their_reports_count(process: int) -> None:
    """Whatever the interval of reconciles is. One that was online is left to the timer."""
    lxd: Any = FakeLxd()
    found = {
        "app-a": new_runner("app-a", new_runners.YOUNGEST, process),
        "app-b": new_runner("app-b", new_runners.OLDEST - 1, process),
        "app-young": new_runner("app-young", new_runners.YOUNGEST - 1, process),
        "app-old": new_runner("app-old", new_runners.OLDEST, process),
        "app-online": new_runner("app-online", 150, process, **{ONLINE_KEY: "true"}),
        "app-stopped": new_runner("app-stopped", 150, process),
        "app-making": new_runner("app-making", 150, process),
        "other-a": new_runner("other-a", 150, process),
    }
    found["app-stopped"].running = False
    del found["app-making"].config[PREPARED_KEY]
    lxd.found = found

    names = new_runners.ended(lxd, lambda name: name.startswith("app-"), NOW)

    assert names == ([] if process == 10 else ["app-a", "app-b"])
    assert sorted(name for name, instance in found.items() if instance.commands) == ["app-a", "app-b"]


def test_no_new_runner_is_left_out() -> None:
    """Each is probed in at least one round, and is then young enough for its report to count in the next reconcile."""
    assert new_runners.OLDEST - new_runners.YOUNGEST >= 2 * new_runners.EVERY
    assert times.SETTLED < new_runners.YOUNGEST
    assert new_runners.OLDEST + times.LOCK + times.MINUTE < times.REPORT_COUNTS


def test_a_new_runner_that_has_ended_asks_for_a_reconcile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is to read GitHub's list. Rounds without one ask for nothing, and one that fails is not the last."""
    rounds: list[list[str] | Exception] = [[], LxdError("away"), ["app-a", "app-b"], ValueError("odd"), []]
    asked: list[tuple[int, str | None]] = []
    waits: list[float] = []

    def ended(*_: Any) -> list[str]:
        found = rounds.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return not rounds

    monkeypatch.setattr(new_runners, "ended", ended)
    starter: Any = SimpleNamespace(ask=lambda: asked.append((len(rounds), Markers(UNIT).read(LIST_DUE))))
    stop: Any = SimpleNamespace(wait=wait)

    with caplog.at_level(logging.ERROR):
        agent.probe_new(UNIT, bool, starter, stop)

    assert (asked, waits) == ([(2, "\n")], [new_runners.EVERY] * 6)
    assert len(caplog.messages) == 2
