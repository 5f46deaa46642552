"""`make faults ONLY=mutations`: which tests a changed line is tried with."""

import pytest

from tests.faults.mutations import node_id, selected

LINES = {
    ("src/plan.py", 1): set(),
    ("src/plan.py", 3): {"tests/adapters/test_b.py::test_b", "tests/unit/test_a.py::test_a"},
    ("src/plan.py", 5): {"tests/unit/test_c.py::test_c", "tests/unit/test_a.py::test_a"},
    ("src/engine/client.py", 3): {"tests/unit/test_d.py::test_d"},
}


@pytest.mark.parametrize(
    ("context", "name"),
    [
        ("tests.unit.test_plan.test_order", "tests/unit/test_plan.py::test_order"),
        ("tests.adapters.test_lxd.Case.test_order", "tests/adapters/test_lxd.py::Case::test_order"),
        ("", ""),
        ("sandbox.github.test_order", ""),
    ],
)
def test_a_test_is_named_as_pytest_names_it(context: str, name: str) -> None:
    """What is no test of the fast gate has no name."""
    assert node_id(context) == name


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
