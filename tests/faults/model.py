"""Random steps at length: the models of a unit in fixed and in demand mode (tests/support)."""

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.demands import Demands
from tests.support.reconciles import Reconciles

EXAMPLES, SHORT_EXAMPLES = 2000, 20
STEPS = 60


def run(short: bool) -> dict[str, object]:
    """How many stories were told of each; AssertionError with the shortest one that breaks a rule."""
    examples = SHORT_EXAMPLES if short else EXAMPLES
    at_length = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    for machine in (Reconciles, Demands):
        run_state_machine_as_test(machine, settings=at_length)
    return {"examples in fixed mode": examples, "examples in demand mode": examples, "most steps of an example": STEPS}
