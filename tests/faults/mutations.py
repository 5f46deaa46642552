"""A sample of small changes of `src/`: `make unit` or `make adapters` must fail for each. With cosmic-ray.

`host/` is left out, because its tests need a machine. Each change is tried with the tests that run its line.
"""

import difflib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cosmic_ray.work_item import MutationSpec

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("tests/unit", "tests/adapters")
# These test the sandbox alone.
OTHERS = ("tests/adapters/test_runner_application.py", "tests/adapters/test_github_standin.py")
SEED = 18
SAMPLE, SHORT_SAMPLE = 300, 10
# Seconds for all tests, and for one. A change that makes a loop endless is noticed in this way. On a busy machine all
# tests take a quarter of an hour, which must not count as noticed.
TIMEOUT, TEST_TIMEOUT = 3600, 120
PYTEST = ("pytest", "-x", "-q", f"--timeout={TEST_TIMEOUT}")
# `is` and `==` are the same for None and for members of an enumeration.
EQUIVALENT = ("core/ReplaceComparisonOperator_Is_Eq", "core/ReplaceComparisonOperator_IsNot_NotEq")
# In annotations, where every change fails at import or is never evaluated.
ANNOTATION = "core/ReplaceBinaryOperator_BitOr_"

Tests = dict[tuple[str, int], set[str]]


def run(short: bool) -> dict[str, object]:
    """Change, test and count. ``score`` is a percentage, killed of mutants."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "charm")
        hidden = shutil.ignore_patterns(".*", "node_modules", "build")
        shutil.copytree(ROOT, folder, symlinks=True, ignore=hidden)
        measure(folder)
        tests = by_line(folder)
        changes = list(islice(filter(_is_python, sample(_changes(folder))), SHORT_SAMPLE if short else SAMPLE))
        free: SimpleQueue[Path] = SimpleQueue()
        for copy in _copies(folder):
            free.put(copy)

        def tried(change: "MutationSpec") -> str:
            with _taken(free) as copy:
                return _survivor(copy, str(change.module_path.relative_to(folder)), change, tests)

        with ThreadPoolExecutor(free.qsize()) as pool:
            survived = list(filter(None, pool.map(tried, changes)))
    killed = len(changes) - len(survived)
    score = round(100 * killed / len(changes), 1)
    return {"seed": SEED, "mutants": len(changes), "killed": killed, "survived": survived, "score": score}


def _copies(folder: Path) -> Iterator[Path]:
    """The folder, and copies of it: one for each core, because most tests use no more than one."""
    yield folder
    for number in range(1, os.cpu_count() or 1):
        copy = folder.with_name(f"charm-{number}")
        shutil.copytree(folder, copy, symlinks=True, ignore=shutil.ignore_patterns("bytecode"))
        # Bytecode is found by the path of its source.
        _python(copy, ["pytest", "--collect-only", "-q", *SUITES], timeout=None, bytecode=True)
        yield copy


@contextmanager
def _taken(free: "SimpleQueue[Path]") -> Iterator[Path]:
    """A folder that nobody else uses meanwhile."""
    folder = free.get()
    try:
        yield folder
    finally:
        free.put(folder)


def sample(changes: Iterable["MutationSpec"]) -> Iterable["MutationSpec"]:
    """At most one change of each place, so that operators with many substitutes do not count more than others."""
    shuffled = sorted(changes, key=lambda item: (str(item.module_path), item.operator_name, item.occurrence))
    random.Random(SEED).shuffle(shuffled)
    return {(item.module_path, item.start_pos): item for item in shuffled}.values()


def _is_python(change: "MutationSpec") -> bool:
    """Whether Python accepts the change. For example the `**` of `{**values}` is no operator: any test would fail."""
    with _changed(change, change.module_path) as (_, after):
        try:
            compile(after, str(change.module_path), "exec")
        except SyntaxError:
            return False
    return True


@contextmanager
def _changed(change: "MutationSpec", module: Path) -> Iterator[tuple[str, str]]:
    """Change this copy of the module meanwhile; its text before and after."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    with use_mutation(module, get_operator(change.operator_name)(), change.occurrence) as texts:
        yield texts


def selected(lines: Tests, file: str, line: int) -> list[str]:
    """All tests that run a line, and then the others of its module, in the order in which they are tried.

    What is run at import only, such as a constant, may be used by all tests.
    """
    # Not each line of a statement is noted, and none of what a test finds in a cache: other tests of the module follow.
    nearest = max((other for name, other in lines if name == file and other <= line), default=0)
    size = Counter(test for tests in lines.values() for test in tests)
    module = {test for (name, _), tests in lines.items() if name == file for test in tests}
    found = lines.get((file, nearest), set())
    # A test that runs few lines is fast, and most likely the one about this line. Those of adapters are slow.
    return sorted(
        module if found else size,
        key=lambda test: (test not in found, test not in module, not test.startswith(SUITES[0]), size[test], test),
    )


def measure(folder: Path) -> None:
    """Which test runs which line, into a file of coverage. What a test runs in another process is not seen."""
    (folder / "coveragerc").write_text("[run]\nsource = src\n")
    ignored = [f"--ignore={file}" for file in OTHERS]
    command = ["coverage", "run", "--rcfile=coveragerc", "-m", "pytest", "-p", "tests.faults.contexts"]
    failed, output = _python(folder, [*command, *SUITES, *ignored], timeout=None, bytecode=True)
    if failed:
        # Tests that fail anyway would kill everything.
        raise RuntimeError(f"the tests fail without a change: {output[-2000:]}")


def by_line(folder: Path) -> Tests:
    """What was measured: pytest's names of the tests that run a line. A line that is run at import has none."""
    from coverage import CoverageData

    data = CoverageData(str(folder / ".coverage"))
    data.read()
    found: Tests = defaultdict(set)
    for file in data.measured_files():
        name = str(Path(file).relative_to(folder))
        for line, contexts in data.contexts_by_lineno(file).items():
            found[name, line] |= {test for context in contexts for test in context.split()}
    return found


def _changes(folder: Path) -> Iterable["MutationSpec"]:
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    modules = [path for path in sorted((folder / "src").rglob("*.py")) if "host" not in path.parts]
    with use_db(str(folder / "session.sqlite"), WorkDB.Mode.create) as work:
        init(modules, work, {})
        changes = [item.mutations[0] for item in work.work_items]
    return [item for item in changes if item.operator_name not in EQUIVALENT and ANNOTATION not in item.operator_name]


def _survivor(folder: Path, name: str, change: "MutationSpec", tests: Tests) -> str:
    """The changed line of a module, if no test notices."""
    chosen = selected(tests, name, change.start_pos[0])
    with _changed(change, folder / name) as (before, after):
        noticed = _is_noticed(folder, chosen)
    added = [line[1:].strip() for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] == "+"]
    text = f"{name}:{change.start_pos[0]}: {' / '.join(added)}"
    print(f"{'killed  ' if noticed else 'SURVIVED'} {text}", flush=True)
    return "" if noticed else text


def _is_noticed(folder: Path, tests: list[str]) -> bool:
    """Whether a test fails that also fails alone: one that fails now and then, beside others, has noticed nothing."""
    while tests:
        failed, output = _python(folder, [*PYTEST, *tests], TIMEOUT)
        found = re.search(r"^(?:FAILED|ERROR) ([^\[\s]+)", output, re.MULTILINE)
        if not failed or found is None or found[1] not in tests or _python(folder, [*PYTEST, found[1]], TIMEOUT)[0]:
            return failed
        tests = tests[tests.index(found[1]) + 1 :]
    return False


def _python(folder: Path, command: list[str], timeout: float | None, *, bytecode: bool = False) -> tuple[bool, str]:
    """Run a module in the folder; whether it failed or took too long, and what it printed.

    ``bytecode`` is written before the first change only: that of one change would be taken for the next one's of the
    same second and size.
    """
    # Hypothesis draws the same examples where CI is set.
    environment = {**os.environ, "CI": "1", "PYTHONPATH": "src:.", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    environment["PYTHONDONTWRITEBYTECODE"] = "" if bytecode else "1"
    environment.pop("COVERAGE_FILE", None)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return True, "not done in time"
    return done.returncode != 0, done.stdout + done.stderr
