"""Models of the reconcile through random steps: tests/support/reconciles.py and demands.py."""

import logging
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.demands import Demands
from tests.support.reconciles import Reconciles


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of failures to create a runner are logged; other tests read such lines."""
    logger = logging.getLogger("runner")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


TestReconciles = Reconciles.TestCase
TestDemands = Demands.TestCase
# Coverage makes each step three times as long. `make faults` runs thousands of examples.
TestReconciles.settings = hypothesis.settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDemands.settings = hypothesis.settings(max_examples=20, stateful_step_count=40, deadline=None)
