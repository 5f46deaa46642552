"""What the tests of the adapters share."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from gh import client


@pytest.fixture(scope="module", autouse=True)
def short_waits() -> Iterator[None]:
    """The client of GitHub waits a twentieth of its time between two attempts, and in the same proportions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "random", SimpleNamespace(uniform=lambda low, _: low / 20))
        yield
