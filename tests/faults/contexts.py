"""A plugin of pytest for `make faults ONLY=mutations`: which tests run a line, what prepares them included.

Coverage's own contexts leave out fixtures. One that several tests share runs with the first of them only, and its lines
are noted for all of them.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from coverage import Coverage

_noted: list[str] = [""]


@contextmanager
def _noting(tests: Iterable[str]) -> Iterator[None]:
    """Note the lines that run meanwhile for these tests, and no others."""
    _noted.append(" ".join(sorted(set(tests))))
    _switch()
    try:
        yield
    finally:
        _noted.pop()
        _switch()


def _switch() -> None:
    measured = Coverage.current()
    assert measured is not None
    measured.switch_context(_noted[-1])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    with _noting([_name(item)]):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    if fixturedef.scope == "function":
        return (yield)
    with _noting(
        _name(item)
        for item in request.session.items
        if item.nodeid.startswith(request.node.nodeid) and fixturedef.argname in getattr(item, "fixturenames", ())
    ):
        return (yield)


def _name(item: pytest.Item) -> str:
    """A test, whatever its parameters."""
    return item.nodeid.partition("[")[0]
