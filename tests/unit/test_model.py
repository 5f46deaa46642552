"""Models of the reconcile through random steps: tests/support/reconciles.py and demands.py."""

import logging

import hypothesis

from tests.support.demands import Demands
from tests.support.reconciles import Reconciles

logging.getLogger("runner").setLevel(logging.CRITICAL)
TestReconciles = Reconciles.TestCase
TestDemands = Demands.TestCase
# Coverage makes each step three times as long. `make faults` runs thousands of examples.
TestReconciles.settings = hypothesis.settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDemands.settings = hypothesis.settings(max_examples=20, stateful_step_count=40, deadline=None)
