"""`make faults ONLY=mutations`: which tests a changed line is tried with."""

import pytest

from tests.faults.mutations import node_id, selected

LINES = {
    ("src/plan.py", 3): {"tests/adapters/test_b.py::test_b", "tests/unit/test_a.py::test_a"},
    ("src/plan.py", 4): {"tests/unit/test_c.py::test_c"},
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


def test_a_line_is_tried_with_the_tests_that_run_it() -> None:
    """Unit tests come first. A line that is run at import is tried with the tests of its module."""
    assert selected(LINES, "src/plan.py", 3) == ["tests/unit/test_a.py::test_a", "tests/adapters/test_b.py::test_b"]
    assert selected(LINES, "src/plan.py", 1) == [
        *("tests/unit/test_a.py::test_a", "tests/unit/test_c.py::test_c"),
        "tests/adapters/test_b.py::test_b",
    ]
    assert selected(LINES, "src/status.py", 1) == []
