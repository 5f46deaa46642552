"""What a reconcile aims for, flavour by flavour: fixed numbers, or the demand that the unit's agent has recorded."""

import time
from collections.abc import Callable, Iterator, Mapping

from demand import PATIENCE, Demand
from flavor_plans import Wanted
from gh.registration import Registration
from models import CharmState, Flavor, RunnerSpec, Scaling

# Of a set's number, the registration of its runners.
Registrations = Callable[[int], Registration]


def wanted(
    state: CharmState, found: Mapping[str, Demand], since: float, now: float, registrations: Registrations
) -> list[Wanted]:
    """The runners of each flavour. Times are UNIX seconds; ``since`` is when demand began to decide.

    While demand is not known for less than ``demand.PATIENCE``, the runners stay as they are. After that there are
    ``demand-fallback`` ones, which register as in fixed mode.
    """
    pairs = zip(state.flavors, state.runners, strict=True)
    if state.scaling is Scaling.FIXED:
        return [Wanted(spec, flavor.count) for flavor, spec in pairs]
    return [
        _of_demand(flavor, spec, found.get(flavor.name, Demand()), state.demand_fallback, since, now, registrations)
        for flavor, spec in pairs
    ]


def _of_demand(
    flavor: Flavor,
    spec: RunnerSpec,
    found: Demand,
    fallback: int,
    since: float,
    now: float,
    registrations: Registrations,
) -> Wanted:
    if flavor.maximum == 0:
        return Wanted(spec, 0)
    if found.is_known(now) and found.scale_set is not None:
        return Wanted(
            spec,
            found.wanted(flavor),
            since=found.waits_since,
            min_idle=flavor.min_idle,
            registration=registrations(found.scale_set),
            scale_set=found.scale_set,
            running_jobs=found.running,
            maximum=flavor.maximum,
        )
    if is_missing(found, since, now):
        return Wanted(spec, min(fallback, flavor.maximum), any_registration=True)
    return Wanted(spec, None, any_registration=True)


def is_missing(found: Demand, since: float, now: float) -> bool:
    """Whether demand has not been known for so long that the fallback holds."""
    last = max(found.answered_at, since)
    return not found.is_known(now) and abs(now - last) >= PATIENCE


def blocked_by(state: CharmState, found: Mapping[str, Demand]) -> str:
    """What the operator must fix before GitHub can report demand; empty where there is nothing."""
    problems = [known.problem for each in state.flavors if (known := found.get(each.name)) and known.is_blocking]
    return problems[0] if problems and state.scaling is Scaling.DEMAND else ""


def notices(
    state: CharmState, found: Mapping[str, Demand], since: float, now: float, name: Callable[[str], str]
) -> Iterator[str]:
    """What the status says of demand; ``name`` gives the scale set's name of a flavour."""
    if state.scaling is Scaling.FIXED:
        return
    for flavor in state.flavors:
        known = found.get(flavor.name, Demand())
        if flavor.maximum and is_missing(known, since, now):
            last = time.strftime("%d %b %H:%M", time.gmtime(max(known.answered_at, since)))
            reason = f": {known.problem}" if known.problem else ""
            yield f"{flavor.name}: demand is not known since {last} UTC{reason}; {state.demand_fallback} runners kept"
        elif flavor.maximum and known.problem and not known.is_known(now):
            yield f"{flavor.name}: demand is not known yet: {known.problem}"
        elif known.dropped:
            yield f"{flavor.name}: the server drops labels of scale sets; use runs-on: {name(flavor.name)}"
        if known.missed:
            yield f"{flavor.name}: {known.missed} queued jobs did not reach the scale set"
