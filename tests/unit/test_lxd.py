"""The LXD adapter when LXD fails or is slow, in ways that no real LXD can be made to do in a test."""

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar

import pytest
import requests

import times
from engine import api
from engine.client import LxdClient
from engine.command import Command
from engine.instance import Execution, LxdInstance
from engine.profiles import ensure_resources
from errors import LxdError, LxdNotFoundError
from models import VirtualMachineResources

DATA = {"name": "app-0-aa", "status": "Running", "type": "virtual-machine", "config": {}}


class BootingInstance(LxdInstance):
    """A virtual machine that answers its first commands with what is given."""

    def __init__(self, answers: Sequence[Execution | LxdError]) -> None:
        super().__init__(LxdClient(), DATA)
        self.answers: Iterator[Execution | LxdError] = iter(answers)

    def execute(self, command: Sequence[str], **_: Any) -> Execution:
        answer = next(self.answers)
        if isinstance(answer, LxdError):
            raise answer
        return answer


def test_an_agent_that_does_not_run_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """LXD refuses commands until a virtual machine's agent runs, which is no failure of its creation."""
    monkeypatch.setattr("engine.api.time.sleep", lambda seconds: None)
    instance = BootingInstance([LxdError("the agent does not run"), Execution(1), Execution(0), Execution(0)])

    instance.wait_ready()

    assert len(list(instance.answers)) == 1


def test_an_instance_that_never_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait has an end, and its error names the instance."""
    monkeypatch.setattr(times, "READY", {"virtual-machine": 0, "container": 0})
    instance = BootingInstance([LxdError("the agent does not run")] * 9)

    with pytest.raises(LxdError, match="app-0-aa"):
        instance.wait_ready()


class Refused(Command):
    """A command that LXD refuses at first, for the reasons given."""

    refusals: ClassVar[list[LxdError]] = []
    closed = 0

    def __init__(self, *_: Any) -> None:
        """Nothing is connected."""

    def wait_begun(self, timeout: float) -> None:
        assert 0 <= timeout <= times.READY["virtual-machine"]
        if self.refusals:
            raise self.refusals.pop(0)

    def __exit__(self, *_: object) -> None:
        Refused.closed += 1


@pytest.fixture
def booting(monkeypatch: pytest.MonkeyPatch) -> LxdInstance:
    """A virtual machine whose commands are Refused, and waits that last no time."""
    monkeypatch.setattr("engine.instance.Command", Refused)
    monkeypatch.setattr("engine.instance.time.sleep", lambda seconds: None)
    monkeypatch.setattr(Refused, "closed", 0)
    return LxdInstance(LxdClient(), DATA)


def test_the_first_command_is_repeated_until_it_has_begun(
    booting: LxdInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing asks whether a booting instance is ready. The streams of an attempt are closed, those of the last not."""
    monkeypatch.setattr(Refused, "refusals", [LxdError("the agent does not run"), LxdError("ended with 137")])

    assert isinstance(booting.begin(["/bin/sh"]), Refused)

    assert (Refused.refusals, Refused.closed) == ([], 2)


def test_a_first_command_that_never_begins_is_an_error(booting: LxdInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait has an end, and its error names the instance and what LXD said last."""
    now = iter(range(0, 10_000, 100))
    monkeypatch.setattr("engine.instance.time.monotonic", lambda: next(now))
    monkeypatch.setattr(Refused, "refusals", [LxdError("the agent does not run")] * 9)

    with pytest.raises(LxdError, match="app-0-aa: not within 300 s: the agent does not run"):
        booting.begin(["/bin/sh"])


def test_an_instance_that_is_gone_is_not_waited_for(booting: LxdInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """LXD deletes an ephemeral instance that powers off while it boots."""
    monkeypatch.setattr(Refused, "refusals", [LxdNotFoundError("Instance not found"), LxdError("asked again")])

    with pytest.raises(LxdNotFoundError, match="Instance not found"):
        booting.begin(["/bin/sh"])

    assert len(Refused.refusals) == 1


@pytest.mark.parametrize(("kind", "most"), [("virtual-machine", 4), ("container", 16)])
def test_readiness_is_polled_at_a_pace_that_suits(monkeypatch: pytest.MonkeyPatch, kind: str, most: int) -> None:
    """A virtual machine takes many seconds to boot and is asked less often than a container."""
    now = [0.0]
    monkeypatch.setattr("engine.api.time.monotonic", lambda: now[0])
    monkeypatch.setattr("engine.api.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    instance = BootingInstance([LxdError("the agent does not run")] * (most - 1) + [Execution(0)])
    instance.virtual_machine = kind == "virtual-machine"

    instance.wait_ready()

    assert now[0] == pytest.approx(1.5)


class EndedExec(LxdClient):
    """LXD whose command has ended as the operation says; what it recorded is at its paths."""

    def __init__(self, operation: dict[str, Any]) -> None:
        super().__init__()
        self.operation = operation

    def request(self, method: str, *path: str, timeout: float = 30, **options: Any) -> Any:
        response = requests.Response()
        body: dict[str, Any] = {"type": "async", "metadata": {"id": "1"}}
        if path[0] == "operations":
            body = {"metadata": self.operation}
        response._content = b"words" if "logs" in path else json.dumps(body).encode()
        return response


@pytest.mark.parametrize(
    ("code", "error"), [(127, "Command not found"), (126, "Command not executable"), (1, ""), (255, "")]
)
def test_every_exit_code_is_an_answer(code: int, error: str) -> None:
    """LXD turns the exit codes 126 and 127 into errors; they do not mean that the instance is gone."""
    metadata = {"return": code, "output": {"1": "/1.0/instances/a/logs/o", "2": "/1.0/instances/a/logs/e"}}
    client = EndedExec({"status_code": 400 if error else 200, "err": error, "metadata": metadata})

    assert LxdInstance(client, DATA).execute(["x"], output=True) == Execution(code, "words", "words")


def test_a_command_without_an_exit_code_has_failed() -> None:
    """LXD's answer lacks the code for a process that it could not wait for: nobody may take that for a success."""
    client = EndedExec({"status_code": 200, "err": "", "metadata": {}})

    assert LxdInstance(client, DATA).execute(["x"]).code == -1


@pytest.mark.parametrize(
    ("uid", "expected"), [(0, 100_000), (999, 100_999), (1000, 1000), (1001, 200_001), (70_000, 70_000)]
)
def test_a_user_of_an_instance_has_the_hosts_number(monkeypatch: pytest.MonkeyPatch, uid: int, expected: int) -> None:
    """By the range of LXD's map that holds it; outside of all ranges a user has the same number.

    So has one of a virtual machine, of which LXD is not asked.
    """
    ranges = [(True, 100_000, 0, 1000), (False, 300_000, 0, 65536), (True, 200_001, 1001, 64_000)]
    keys = ("Isuid", "Hostid", "Nsid", "Maprange")
    mapped = json.dumps([dict(zip(keys, values, strict=True)) for values in ranges])

    lxd = LxdClient()
    answer = {"config": {"volatile.idmap.current": mapped}}
    monkeypatch.setattr(lxd, "get", lambda *path: {("instances", "app-0-aa"): answer}[path])

    assert LxdInstance(lxd, {**DATA, "type": "container"}).host_uid(uid) == expected
    assert LxdInstance(LxdClient(), DATA).host_uid(uid) == uid


@pytest.mark.parametrize("folder", ["logs", "logs/exec-output"])
def test_recorded_output_is_asked_for_where_lxd_has_it(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """LXD 5.15 and later have a folder of its own for it."""
    path = f"/1.0/instances/a/{folder}/exec.stderr"
    client = EndedExec({"status_code": 200, "metadata": {"return": 1, "output": {"2": path}}})
    asked: list[tuple[str, ...]] = []
    request = client.request

    def recorded(*what: str, **more: Any) -> requests.Response:
        asked.append(what)
        answer: requests.Response = request(*what, **more)
        return answer

    monkeypatch.setattr(client, "request", recorded)

    LxdInstance(client, DATA).execute(["x"], output=True)

    assert ("GET", "instances", "a", *folder.split("/"), "exec.stderr") in asked


def test_output_that_cannot_be_read_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code counts: without its explanation it is still the answer."""
    client = EndedExec({"status_code": 200, "metadata": {"return": 75, "output": {"2": "/1.0/instances/a/logs/e"}}})
    request = client.request

    def without_logs(*what: str, **more: Any) -> Any:
        if "logs" in what:
            raise LxdNotFoundError("no such file")
        return request(*what, **more)

    monkeypatch.setattr(client, "request", without_logs)

    assert LxdInstance(client, DATA).execute(["x"], output=True) == Execution(75)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("Instance not found", LxdNotFoundError),
        ('Failed to fetch instance "a" in project "default": Instance not found', LxdNotFoundError),
        ('exec: "virtiofsd": executable file not found in $PATH', LxdError),
        ("LXD VM agent isn't currently running", LxdError),
    ],
)
def test_only_what_ends_as_not_found_is_gone(error: str, kind: type[LxdError]) -> None:
    """An error counts as `there is no such thing` only if that is its cause."""
    client = EndedExec({"status_code": 400, "err": error, "metadata": {"return": -1}})

    with pytest.raises(LxdError) as raised:
        LxdInstance(client, DATA).execute(["x"])
    assert type(raised.value) is kind


class BusyClient(LxdClient):
    """LXD that is at work on an instance for the first few requests."""

    def __init__(self, errors: Sequence[LxdError]) -> None:
        super().__init__()
        self.errors = list(errors)
        self.asked: list[str] = []

    def _change(self, method: str, *path: str, **_: Any) -> Any:
        self.asked.append(" ".join((method, *path)))
        if self.errors:
            raise self.errors.pop(0)


BUSY = LxdError('Failed to create instance delete operation: Instance is busy running a "stop" operation')


@pytest.mark.parametrize(
    ("errors", "requests"), [([], 1), ([BUSY, BUSY], 3), ([LxdNotFoundError("Instance not found")], 1)]
)
def test_what_lxd_still_does_is_waited_for(errors: list[LxdError], requests: int) -> None:
    """A reconcile that was killed leaves its requests with LXD: the next one finds instances that are being stopped."""
    client = BusyClient(errors)

    LxdInstance(client, DATA).delete()

    assert client.asked == ["DELETE instances app-0-aa"] * requests


def test_a_profile_is_changed_once_its_instances_are_free() -> None:
    """A changed profile changes its instances, one of which LXD may be creating at the moment."""
    client = BusyClient([LxdError('Failed to create instance update operation: Instance is busy running a "create"')])

    client.change("PUT", "profiles", "cpu-2-mem-7GiB-disk-10GiB", json={})

    assert client.asked == ["PUT profiles cpu-2-mem-7GiB-disk-10GiB"] * 2


class ProfileClient(LxdClient):
    """LXD with one profile, which two threads read at the same time if nothing keeps them from it."""

    def __init__(self) -> None:
        super().__init__()
        self.profile: dict[str, Any] = {"devices": {}}
        self.both = threading.Barrier(2, timeout=0.2)
        self.changes = 0

    def has_extension(self, name: str) -> bool:
        return False

    def find(self, *path: str) -> Any:
        found = self.profile
        with suppress(threading.BrokenBarrierError):
            self.both.wait()
        return found

    def change(self, method: str, *path: str, timeout: float = 0, **options: Any) -> Any:
        self.changes += 1
        self.profile = options["json"]


def test_runners_made_side_by_side_change_their_profile_once() -> None:
    """The second change would meet the instance that the first one's runner is made of."""
    client = ProfileClient()

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(ensure_resources, client, VirtualMachineResources(1, "1GiB", "1GiB"), container=True)

    assert client.changes == 1


def test_what_a_killed_process_has_started_is_stopped() -> None:
    """Listed as stopped, it runs once LXD is done with the start that was asked for."""
    client = BusyClient([BUSY, LxdError("Instance is running")])

    LxdInstance(client, DATA).delete()

    assert [asked.partition(" ")[0] for asked in client.asked] == ["DELETE", "DELETE", "PUT", "DELETE"]


@pytest.mark.parametrize("text", api.NOT_BEGUN)
def test_a_command_that_lxd_could_not_begin_is_requested_again(text: str) -> None:
    """On a busy machine LXD may be too slow for the agent's 5 seconds, and the command never begins."""
    client = BusyClient([LxdError(f"Error: {text}"), LxdError(f"Error: {text}")])

    LxdInstance(client, DATA).execute(["true"])

    assert client.asked == ["POST instances app-0-aa exec"] * 3


@pytest.mark.parametrize("text", ["unexpected EOF", api.NOT_BEGUN[0]])
def test_a_command_that_may_have_begun_is_not_repeated(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A connection that broke says nothing about the command; and the repetition has an end."""
    monkeypatch.setattr(api, "BUSY_TIMEOUT", -1)
    client = BusyClient([LxdError(text)] * 2)

    with pytest.raises(LxdError, match=text):
        LxdInstance(client, DATA).execute(["true"])

    assert len(client.asked) == 1


def test_other_refusals_are_errors_at_once() -> None:
    """Only what ends by itself is waited for."""
    client = BusyClient([LxdError("no space left on device")])

    with pytest.raises(LxdError, match="no space"):
        LxdInstance(client, DATA).delete()
    assert len(client.asked) == 1


def test_an_instance_that_stays_busy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait has an end."""
    monkeypatch.setattr(api, "BUSY_TIMEOUT", 0)

    with pytest.raises(LxdError, match="busy running"):
        LxdInstance(BusyClient([BUSY] * 9), DATA).delete()
