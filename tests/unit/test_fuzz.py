"""Whatever a runner leaves in its storage, the rules of `tests.faults.judge` hold; `make faults` is longer."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import metrics.events
import metrics.runner
import metrics.storage
from tests.faults.fuzz import cases
from tests.faults.judge import INSTALLED, POST, PRE, PRE_JOB, Case, Entry, World, judge, whole

SETTINGS = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
FORGED = 'x\n{"event": "runner_stop"}\r\x1b[2J\u2028'


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as found:
        yield found


@given(case=cases())
@SETTINGS
def test_whatever_a_runner_leaves(world: World, case: Case) -> None:
    """No reconcile raises, waits, reads too much, follows a link, or writes a line that is not one event."""
    judge(world, case)


@given(name=st.sampled_from(["pre", "post", "installed"]), data=st.binary(max_size=1100))
@example(name="pre", data=b"")
@example(name="pre", data=b"[" * 1024)
@example(name="installed", data=b"9" * 1024)
@SETTINGS
def test_any_bytes_in_a_file(world: World, name: str, data: bytes) -> None:
    """Any bytes in any of the three files break no rule."""
    judge(world, whole(**{name: data}))


HOSTILE = {
    "link to a file of the host": Entry("link", b"/etc/passwd"),
    "link to metrics elsewhere": Entry("link", b"../../outside/passwd"),
    "link within the storage": Entry("link", PRE),
    "link to nothing": Entry("link", b"nowhere"),
    "link to a device": Entry("link", b"/dev/zero"),
    "pipe": Entry("pipe"),
    "socket": Entry("socket"),
    "folder": Entry("folder"),
    "deep folder": Entry("folder", size=128),
    "device": Entry("device"),
    "one byte too long": Entry("file", b"{}", 1025),
    "sparse and huge": Entry("file", b"{}", 1 << 40),
    "empty and without a mode": Entry("file", mode=0),
}


@pytest.mark.parametrize("entry", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("name", [PRE, POST, INSTALLED], ids=os.fsdecode)
def test_what_is_no_small_regular_file(world: World, name: bytes, entry: Entry) -> None:
    """A storage in which one of the three is something else gives no event."""
    assert judge(world, {**whole(), name: entry}) == []


@pytest.mark.parametrize("entry", HOSTILE.values(), ids=HOSTILE.keys())
def test_more_than_the_three_files(world: World, entry: Entry) -> None:
    """What lies beside the three files changes nothing."""
    events = judge(world, {**whole(), b"more\n\xff": entry})

    assert [event["event"] for event in events] == ["runner_start", "runner_stop"]


@pytest.mark.parametrize(("key", "field"), [("workflow", "workflow"), ("event", "github_event")])
def test_text_of_a_job_is_text(world: World, key: str, field: str) -> None:
    """Free text reaches the log as it is, in one line."""
    events = judge(world, whole(pre=json.dumps({**PRE_JOB, key: FORGED})))

    assert [event[field] for event in events] == [FORGED] * 2


def following(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def waiting(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def greedy(path: Path, limit: int) -> bytes:
    return path.read_bytes()[:limit]


def leaking(path: Path, limit: int) -> bytes:
    return os.read(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), limit)


def talkative(name: str, error: Any) -> str:
    return f"{name}: {error.errors()[0]['input']}"


def raw(line: bytes) -> None:
    with metrics.events.METRICS_LOG_PATH.open("ab") as log:
        log.write(line.replace(b"\\n", b"\n"))


def deaf(*_: object) -> None:
    raise ValueError


# Also private functions are broken here: each stands for a defect at this place, and no rule of the code is tested.
@pytest.mark.parametrize(
    ("owner", "name", "broken", "case", "rule"),
    [
        (metrics.storage, "open_regular", following, HOSTILE["link to metrics elsewhere"], "changed or read|link was"),
        (metrics.storage, "open_regular", waiting, HOSTILE["pipe"], "a reconcile took longer"),
        (metrics.storage, "FILE_SIZE_BYTES_LIMIT", 1 << 20, Entry("file", b"{", 1 << 20), "bytes were read"),
        (metrics.runner, "read_limited", greedy, Entry("file", b"{", 1 << 20), "bytes were read"),
        (metrics.runner, "read_limited", leaking, Entry("file", b"{"), "a file stays open"),
        (metrics.runner, "_first_error", talkative, {"repository": FORGED}, "not one line of text"),
        (metrics.events, "_append", raw, {"workflow": FORGED}, "a line of the log"),
        (metrics.runner, "_runner_stop", lambda *_: None, {}, "an honest runner's events are missing"),
        (metrics.runner, "_read", deaf, {}, "a reconcile raised"),
        (metrics.runner, "_remove", deaf, {}, "a reconcile raised"),
        (metrics.runner, "_remove", lambda *_: None, {}, "issues again"),
        (metrics.runner, "quarantine", lambda *_: None, Entry("file", b"{"), "a storage stays"),
    ],
    ids=[
        "follows links",
        "waits for a writer",
        "has no limit",
        "reads a file whole",
        "leaves files open",
        "logs a field",
        "writes newlines",
        "loses an event",
        "raises while it reads",
        "raises when it removes",
        "removes nothing",
        "keeps what is corrupt",
    ],
)
def test_judge_finds_what_is_broken(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    broken: Callable[..., Any],
    case: Any,
    rule: str,
) -> None:
    """Each rule would be missed if the code broke it."""
    monkeypatch.setattr(owner, name, broken)

    with pytest.raises(AssertionError, match=rule):
        judge(world, whole(pre=case if isinstance(case, Entry) else json.dumps({**PRE_JOB, **case})), seconds=0.2)
