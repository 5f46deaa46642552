"""The runners of all flavours of a unit: what a reconcile aims for, decided without I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from budget import Ask, Capacity, Wait, goals
from gh.registration import Registration
from models import FailedCreation, RunnerSpec
from plan import Desired, Health, Plan, Reason, health, make_plan
from runner_view import RunnerView

# No runner has it.
NO_FINGERPRINT = "the flavour is not configured"


@dataclass(frozen=True)
class Wanted:
    """The runners of one flavour that a reconcile aims for.

    ``number`` is None where it is not known: what is there is kept, and none is created. ``since`` is the UNIX time
    since when the oldest job without a runner waits, None where none waits. ``min_idle`` of the runners are for no job.
    """

    spec: RunnerSpec
    number: int | None
    since: float | None = None
    min_idle: int = 0
    registration: Registration | None = None
    """How new runners register, where it is not the unit's own way."""
    scale_set: int | None = None
    """The runner scale set in which new runners register. Idle runners of another one, or of none, are outdated."""
    any_registration: bool = False
    """Whether runners of any or no scale set count as current ones."""
    running_jobs: int = 0
    """Of the jobs of the scale set, those that run."""
    maximum: int | None = None
    """The limit of all its runners, where ``number`` is for the jobs of the scale set."""
    failed: FailedCreation | None = None
    """The last failure, where no runner of this flavour was created since. Others then have the room that it lacks."""
    is_tried: bool = False
    """Whether one of them is tried in the flavour's own place nevertheless. It makes room for itself."""
    hold: str = ""
    """Why no runner of this flavour can be created. Others then have the room of those that it lacks."""

    @property
    def flavor(self) -> str:
        """The flavour's name."""
        return self.spec.flavor


@dataclass(frozen=True)
class FlavorPlan:
    """The plan for the runners of one flavour. Its quantity is the goal, which the budget may have lowered."""

    wanted: Wanted
    fingerprint: str
    plan: Plan
    may_create: bool = True
    """Whether runners of this flavour can be created at all."""


@dataclass(frozen=True)
class Plans:
    """One reconcile: a plan for each flavour in the order of what is wanted, and ``rest`` for all other runners."""

    flavors: tuple[FlavorPlan, ...]
    rest: Plan
    asks: tuple[Ask, ...] = ()
    goals: Mapping[str, int] | None = None
    """Runners that fit on the empty machine, by flavour; None without a budget."""
    waits: tuple[Wait, ...] = ()
    """What does not fit there."""

    @cached_property
    def whole(self) -> Plan:
        """All of them as one plan."""
        return _sum([*(one.plan for one in self.flavors), self.rest])

    @property
    def wanted(self) -> int:
        """Runners that are wanted; of a flavour whose number is not known those that are there."""
        return sum(one.plan.live if one.wanted.number is None else one.wanted.number for one in self.flavors)

    @property
    def missing(self) -> int:
        """Runners that are wanted, less the healthy ones; a flavour whose number is not known lacks none."""
        known = [(one.wanted.number, one.plan.healthy) for one in self.flavors]
        return sum(number - healthy for number, healthy in known if number is not None)


def make_plans(
    wanted: Sequence[Wanted],
    fingerprints: Mapping[str, str],
    unit: Desired,
    views: Iterable[RunnerView],
    now: float,
    capacity: Capacity | None = None,
) -> Plans:
    """One plan for each flavour, from one observation.

    ``unit`` has what all flavours share. Runners of a flavour that is not wanted are drained, and registrations without
    an instance belong to none. ``capacity`` is that of the machine without other units' runners; None is no limit.
    """
    grouped = _by_flavor(views, [one.flavor for one in wanted])
    wanted = [_beside_others(one, grouped[one.flavor], now) for one in wanted]
    asks = tuple(_ask(one, len(grouped[one.flavor])) for one in wanted if one.number is not None)
    numbers, waits = goals(capacity, asks) if capacity else ({one.flavor: one.number for one in asks}, [])
    desired = {one.flavor: _desired(one, fingerprints[one.flavor], numbers.get(one.flavor), unit) for one in wanted}
    plans = _agreed(desired, grouped, now)
    creating = [one for one in wanted if one.number != 0]
    # Idle runners of former flavours are better than none.
    kept = bool(creating) and (not unit.may_create or all(one.hold for one in creating))
    rest = make_plan(Desired(None if kept else 0, NO_FINGERPRINT), grouped[None], now)
    flavors = tuple(
        FlavorPlan(one, fingerprints[one.flavor], plans[one.flavor], unit.may_create and not one.hold) for one in wanted
    )
    return Plans(flavors, rest, asks, numbers if capacity else None, tuple(waits))


def _by_flavor(views: Iterable[RunnerView], names: Sequence[str]) -> dict[str | None, list[RunnerView]]:
    grouped: dict[str | None, list[RunnerView]] = {name: [] for name in (*names, None)}
    for view in views:
        grouped[view.flavor if view.exists and view.flavor in names else None].append(view)
    return grouped


def _beside_others(wanted: Wanted, views: Iterable[RunnerView], now: float) -> Wanted:
    """More runners where busy ones serve no job of the scale set: those of a former set, or whose job is unknown."""
    if wanted.scale_set is None or wanted.number is None:
        return wanted
    live = [view for view in views if view.exists and view.busy and health(view, now) is Health.BUSY]
    others = sum(1 for view in live if view.scale_set != wanted.scale_set or view.job_is_unknown)
    number = wanted.number + others
    return replace(wanted, number=number if wanted.maximum is None else min(max(wanted.maximum, wanted.number), number))


def _ask(wanted: Wanted, there: int) -> Ask:
    number = wanted.number or 0
    limit = min(number, there) if wanted.hold else number
    last = max(0, limit - there - wanted.is_tried) if wanted.failed else 0
    return Ask(wanted.flavor, wanted.spec.resources, limit, wanted.since, wanted.min_idle, last)


def _desired(wanted: Wanted, fingerprint: str, quantity: int | None, unit: Desired) -> Desired:
    return replace(
        unit,
        quantity=quantity,
        fingerprint=fingerprint,
        may_create=unit.may_create and not wanted.hold,
        scale_set=wanted.scale_set,
        any_registration=wanted.any_registration,
    )


def _agreed(
    desired: Mapping[str, Desired], grouped: Mapping[str | None, list[RunnerView]], now: float
) -> dict[str, Plan]:
    """The plans, with what holds for the unit and not for each flavour.

    All flavours have the same runner binary. So one runner of any flavour proves its version, one is tried, and where
    one ended without a job none is created. One idle runner that is too old is replaced in each reconcile.
    """

    def made(**changes: Any) -> dict[str, Plan]:
        return {name: make_plan(replace(one, **changes), grouped[name], now) for name, one in desired.items()}

    plans = made()
    if any(plan.proven for plan in plans.values()):
        plans = made(deprecated_since=None)
    if any(plan.deprecated or plan.failed for plan in plans.values()):
        plans = made(may_create=False)
    elif any(one.deprecated_since is not None for one in desired.values()) and not any(
        p.proven for p in plans.values()
    ):
        return _one_tried(plans)
    return _one_aged(plans, made(idle_max_age=0.0), grouped)


def _one_tried(plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """Only the first flavour that lacks a runner creates one, and none does if one is being tried."""
    left = 0 if any(plan.tried for plan in plans.values()) else 1
    result = {}
    for name, plan in plans.items():
        result[name] = replace(plan, create=min(plan.create, left))
        left -= result[name].create
    return result


def _one_aged(
    plans: Mapping[str, Plan], without: Mapping[str, Plan], grouped: Mapping[str | None, list[RunnerView]]
) -> dict[str, Plan]:
    aged = {name: plan.names(Reason.AGED) for name, plan in plans.items()}
    born = {view.name: view.created_at for views in grouped.values() for view in views}
    found = [(born[runner], name) for name, names in aged.items() for runner in names]
    oldest = min(found)[1] if found else None
    return {name: plan if name == oldest or not aged[name] else without[name] for name, plan in plans.items()}


def _sum(plans: Sequence[Plan]) -> Plan:
    """One plan of several: numbers are added, names follow each other, and what is true for one is true."""
    total = plans[0]
    for plan in plans[1:]:
        values: dict[str, Any] = {}
        for field in fields(Plan):
            one, other = getattr(total, field.name), getattr(plan, field.name)
            values[field.name] = one or other if isinstance(one, bool) else one + other
        total = Plan(**values)
    return total
