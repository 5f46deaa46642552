"""What runners could leave in their metrics storage, made up at random; `judge` says which rules must hold."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from metrics.storage import FILE_SIZE_BYTES_LIMIT
from tests.faults.judge import (
    INSTALLED,
    NEIGHBOUR,
    NODES,
    POST,
    POST_JOB,
    PRE,
    PRE_JOB,
    RUNNER,
    Case,
    Entry,
    World,
    judge,
    whole,
)

ROOT = Path(__file__).resolve().parents[2]
SHORT, LONG = 20.0, 600.0
WITHOUT_ATHERIS = "atheris is not installed: bytes were not fuzzed by coverage (pip install 'atheris>=3,<4')"

TEXT = st.text(max_size=60) | st.sampled_from(
    [
        'x\n{"event": "runner_stop"}\n',
        "x\rERROR root forged",
        "\x1b[2J\x1b]0;x\x07",
        "\x00\x7f\x85\u2028\u2029\u202e",
        "\ud800",
        "%s %(name)s {0} {x.__class__}",
        "../../etc/passwd",
        "octo-org/demo\n",
        "octo-org/..",
        "9" * 30,
        "\u0661",
        "",
    ]
)
NUMBERS = st.sampled_from([-1, 0, -0.0, 0.1, 1e-320, 1e11, 253402300799.9, 253402300800, 1e308, 10**300, 2**63, True])
VALUES = st.recursive(
    st.none() | NUMBERS | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
# How bytes differ from what json.dumps would write.
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "with a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode("utf-8", "replace").encode("utf-16"),
    "cut off": lambda data: data[:-1],
    "twice": lambda data: data + data,
    "NUL at the end": lambda data: data + b"\x00",
    "just as long as allowed": lambda data: data.ljust(FILE_SIZE_BYTES_LIMIT),
    "one byte too long": lambda data: data.ljust(FILE_SIZE_BYTES_LIMIT + 1),
    "much too long": lambda data: data.ljust(100_000),
    "nested": lambda data: b'{"x":' + b"[" * 500 + b"]" * 500 + b"}",
    "many digits": lambda data: data.replace(b".5", b"9" * 400),
    "infinite": lambda data: data.replace(b".5", b"e999"),
    "escaped": lambda data: data.replace(b"test", rb"\u000a\ud800\udc00\n"),
    "a key twice": lambda data: data[:-1] + b', "timestamp": 1}',
}
TARGETS = st.sampled_from(
    [
        *(b"/etc/passwd", b"/dev/zero", b"/", b".", b"nowhere", b"/proc/self/environ", PRE, POST, INSTALLED),
        *(b"../../outside/passwd", b"../../outside/" + PRE, b"../" + os.fsencode(NEIGHBOUR) + b"/" + PRE),
    ]
)
MODES = st.sampled_from([0o644, 0o600, 0o000, 0o4777, 0o1111])
NAMES = st.binary(min_size=1, max_size=40).map(lambda name: re.sub(rb"[/\0]", b"-", name)).filter(
    lambda name: name not in (b".", b"..", PRE, POST, INSTALLED)
) | st.sampled_from(
    [b"x\n2030-01-01 ERROR forged", b"\xff\xfe", b"n" * 255, f".{RUNNER}.issued".encode(), b"lost+found"]
)


@st.composite
def documents(draw: st.DrawFn, model: dict[str, object]) -> bytes:
    """A job's JSON with fields replaced, added or taken away, in a form that may be odd."""
    value = dict(model)
    for key in draw(st.lists(st.sampled_from([*model, "extra", "a\nkey", "\udfff"]), max_size=2)):
        value[key] = draw(VALUES)
        if draw(st.integers(0, 5)) == 5:
            del value[key]
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    return bytes(FORMS[draw(st.sampled_from(list(FORMS)))](text.encode("utf-8", "surrogatepass")))


TIMES = st.floats(0, 1e12).map(lambda number: f"{number:.9f}".encode()) | st.sampled_from(
    [b"990.25\n", b"9" * 12, b"0." + b"9" * 31, b" 1", b"1\n1", b"1e3", b"+1", b"1_0", b"\x0c1\x0b", b"nan", b"1\x00"]
)
# The storage of 1 MiB has 128 inodes: no tree in it is deeper than these.
FOLDERS = st.integers(0, 128).map(lambda depth: Entry("folder", size=depth))
SPARSE = st.sampled_from([1024, 1025, 1 << 20, 1 << 40]).map(lambda size: Entry("file", b"{", size))
OTHERS = (
    TARGETS.map(lambda target: Entry("link", target))
    | st.tuples(st.sampled_from(sorted(NODES)), MODES).map(lambda pair: Entry(pair[0], mode=pair[1]))
    | FOLDERS
    | SPARSE
)


def files(valid: Entry, content: st.SearchStrategy[bytes]) -> st.SearchStrategy[Entry]:
    """A valid file, one with such content, one of any bytes, or what is no regular file."""
    written = st.tuples(content | st.binary(max_size=1100), MODES).map(
        lambda pair: Entry("file", pair[0], mode=pair[1])
    )
    kinds = [st.just(valid)] * 4 + [content.map(lambda data: Entry("file", data))] * 4 + [written, OTHERS]
    return st.sampled_from(kinds).flatmap(lambda chosen: chosen)


def storages() -> st.SearchStrategy[dict[bytes, Entry]]:
    """Storages of odd files: at times without one of the three, at times with more than those."""
    contents = {PRE: documents(PRE_JOB), POST: documents(POST_JOB), INSTALLED: TIMES}
    three = {name: files(valid, contents[name]) for name, valid in whole().items()}
    known = st.fixed_dictionaries({}, optional=three) | st.fixed_dictionaries(three)
    more = st.dictionaries(NAMES, OTHERS, max_size=2)
    return st.tuples(more, known).map(lambda pair: {**pair[0], **pair[1]})


def jobs() -> st.SearchStrategy[dict[bytes, Entry]]:
    """Whole storages of jobs that are called something odd."""
    texts = st.fixed_dictionaries({}, optional=dict.fromkeys(("workflow", "workflow_run_id", "event"), TEXT))
    return texts.map(lambda chosen: whole(pre=json.dumps({**PRE_JOB, **chosen})))


def cases() -> st.SearchStrategy[dict[bytes, Entry]]:
    """What a runner can leave."""
    return storages() | jobs()


def structures(seconds: float) -> tuple[int, list[str]]:
    """How many storages of odd shapes were judged in that time, and what was found."""
    number, found, end = 0, set(), time.monotonic() + seconds
    with World() as world:

        def one(case: Case) -> None:
            nonlocal number
            number += 1
            judge(world, case)

        for chosen in range(1 << 30):
            if time.monotonic() > end:
                break
            attempt = settings(max_examples=100, database=None, deadline=None, suppress_health_check=list(HealthCheck))
            try:
                seed(chosen)(attempt(given(cases())(one)))()
            except Exception as error:
                found.add(f"{error!r:.200} (seed {chosen})")
    return number, sorted(found)


def streams(seconds: float) -> tuple[int, list[str]]:
    """How many byte strings were judged in that time, guided by the branches they take, and what was found."""
    with tempfile.TemporaryDirectory() as folder:
        # Its fuzzer never returns: it ends the process.
        command = [sys.executable, "-m", "tests.faults.fuzz_bytes", str(round(seconds)), folder]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        output = Path(folder, "output")
        with output.open("wb") as file:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=seconds + 300)
        said = output.read_text(errors="replace")
        bad = [f"{path.name[:5]}: {path.read_bytes()[:200]!r}" for path in Path(folder).glob("*-*")]
    number = re.search(r"number_of_executed_units: *(\d+)", said)
    if not done.returncode and number:
        return int(number[1]), bad
    reason = re.search(r"Uncaught Python exception: ===\n(.*)", said)
    why = reason[1][:300] if reason else said[-1000:]
    return int(number[1]) if number else 0, [f"{why} {' '.join(bad)}"]


def run(short: bool, seconds: float | None = None) -> dict[str, object]:
    """Half of the seconds on shapes, half on bytes; how many cases were judged, and what broke a rule."""
    started = time.monotonic()
    budget = seconds or (SHORT if short else LONG)
    figures: dict[str, object] = {}
    number, found = structures(budget / 2)
    if importlib.util.find_spec("atheris") is None:
        figures["bytes"] = WITHOUT_ATHERIS
    else:
        more, others = streams(budget / 2)
        number, found = number + more, found + others
    if found:
        figures["found"] = found
    return {"cases": number, "seconds": round(time.monotonic() - started), "findings": len(found), **figures}
