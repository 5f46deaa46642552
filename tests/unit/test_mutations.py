"""`make faults ONLY=mutations`: which tests a changed line is tried with."""

import shutil
from pathlib import Path

import tests.faults
from tests.faults.mutations import by_line, measure, selected

LINES = {
    ("src/plan.py", 1): set(),
    ("src/plan.py", 3): {"tests/adapters/test_b.py::test_b", "tests/unit/test_a.py::test_a"},
    ("src/plan.py", 5): {"tests/unit/test_c.py::test_c", "tests/unit/test_a.py::test_a"},
    ("src/engine/client.py", 3): {"tests/unit/test_d.py::test_d"},
}
MEASURED = """
def doubled(number):
    return 2 * number

def halved(number):
    return number / 2

def called(number):
    return number
"""
TESTS = """
import threading
import pytest
import measured

@pytest.fixture
def own():
    return measured.doubled(2)

@pytest.fixture(scope="module")
def shared():
    return measured.halved(4)

@pytest.fixture
def through(shared):
    return shared

@pytest.mark.parametrize("number", [1, 2])
def test_prepared(own, number):
    assert own == 4

def test_first(shared):
    assert shared == 2

class TestCase:
    def test_second(self, through):
        assert through == 2

def test_in_a_thread():
    thread = threading.Thread(target=measured.called, args=(1,))
    thread.start()
    thread.join()
"""


def test_a_test_runs_also_what_prepares_it(tmp_path: Path) -> None:
    """A fixture that several tests share is run once, and counts for all of them; so does what a thread runs."""
    plugin = Path(tests.faults.__path__[0], "contexts.py")
    places = [tmp_path / name for name in ("src", "tests/unit", "tests/adapters", "tests/faults")]
    for place in places:
        place.mkdir(parents=True)
        (place / "__init__.py").touch()
    (tmp_path / "src/measured.py").write_text(MEASURED)
    (tmp_path / "tests/__init__.py").touch()
    (tmp_path / "tests/unit/test_measured.py").write_text(TESTS)
    shutil.copy(plugin, tmp_path / "tests/faults")

    measure(tmp_path)

    found = by_line(tmp_path)
    names = {line: {name.rpartition("::")[2] for name in found["src/measured.py", line]} for line in (2, 3, 6, 9)}
    assert names == {2: set(), 3: {"test_prepared"}, 6: {"test_first", "test_second"}, 9: {"test_in_a_thread"}}
    assert "tests/unit/test_measured.py::TestCase::test_second" in found["src/measured.py", 6]


def test_a_line_is_tried_with_the_tests_of_its_module() -> None:
    """Those that run it come first, of them unit tests, and those that run few lines."""
    a, b, c = "tests/unit/test_a.py::test_a", "tests/adapters/test_b.py::test_b", "tests/unit/test_c.py::test_c"

    assert selected(LINES, "src/plan.py", 3) == [a, b, c]
    assert selected(LINES, "src/plan.py", 5) == [c, a, b]


def test_the_next_line_of_a_statement_has_the_tests_of_its_first() -> None:
    """Coverage notes some lines of a statement only."""
    assert selected(LINES, "src/plan.py", 6) == selected(LINES, "src/plan.py", 5)


def test_a_constant_is_tried_with_all_tests() -> None:
    """A line that is run at import may be used everywhere. The tests of its module come first."""
    assert selected(LINES, "src/plan.py", 1) == [
        *("tests/unit/test_c.py::test_c", "tests/unit/test_a.py::test_a", "tests/adapters/test_b.py::test_b"),
        "tests/unit/test_d.py::test_d",
    ]
