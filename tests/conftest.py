"""What the tests of all folders share."""

import gc
from collections.abc import Iterator

import pytest


def pytest_collection_finish() -> None:
    """What is there before the first test stays until the last: no collection of garbage looks at it again."""
    keep()


@pytest.fixture(scope="module", autouse=True)
def kept() -> Iterator[None]:
    """So does what a file of tests leaves, such as reports and caches."""
    yield
    keep()


def pytest_sessionfinish() -> None:
    """The last collection, pytest's own, looks at everything: what leaked is a warning, and an error."""
    gc.unfreeze()


def keep() -> None:
    gc.collect()
    gc.freeze()
