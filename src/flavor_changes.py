"""Apply the plans of all flavours: in which order runners are removed and created, and what waits for room."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from budget import Capacity, Wait, fitting, grants
from changes import Changes, Order
from errors import ConfigurationError, GithubClientError
from flavor_plans import FlavorPlan, Plans
from gh.registration import Registration
from models import VirtualMachineResources
from observe import ObservedRunner
from plan import Plan, Reason
from system import in_parallel

# Of idle runners, in the order in which they are removed.
IDLE = (Reason.OUTDATED, Reason.SURPLUS, Reason.AGED)


@dataclass
class FlavorChanges:
    """The changes of one reconcile to the runners of all flavours, after the unhealthy ones were removed.

    ``capacity`` is the room for this unit's runners, None without a limit.
    """

    plans: Plans
    runners: Mapping[str, ObservedRunner]
    changes: Changes
    capacity: Capacity | None
    waits: tuple[Wait, ...]
    """What waits for room."""
    unregistrable: dict[str, str] = field(default_factory=dict)
    """Why runners cannot be registered, by flavour."""

    def apply(self, in_time: Callable[[], bool]) -> None:
        """Remove orphaned, outdated and surplus runners, and create the missing ones.

        Postponed runners are replaced only while the time limit of a reconcile leaves room for another creation, which
        ``in_time`` tells. It is an error also without any creation if the server lacks the way of registering.
        """
        usable = self._registrable()
        self.changes.remove(self._items(self.plans.whole.names(Reason.ORPHANED)))
        leaving = [*(one.plan for one in usable), self.plans.rest]
        self.changes.remove_idle(self._items([name for plan in leaving for why in IDLE for name in plan.names(why)]))
        self._create(usable)
        self._replace_postponed(usable, in_time)
        for registration in _distinct(self.plans.flavors):
            self.changes.check_method(registration)

    def capacities(self) -> dict[str, int]:
        """How many runners of each flavour there could be now: those that exist, and those that fit beside all others.

        Only those that exist where none can be created or registered, or a creation has failed: others could serve the
        jobs. Empty without a limit.
        """
        if self.capacity is None:
            return {}
        existing = list(self._sizes())
        there = Counter(flavor for flavor, _ in existing)
        sizes = [size for _, size in existing]
        failed = {*self.changes.not_created, *self.unregistrable}
        able = [one.wanted for one in self.plans.flavors if one.may_create and one.wanted.flavor not in failed]
        rooms = {one.flavor: fitting(self.capacity, sizes, one.spec.resources) for one in able}
        return {
            one.wanted.flavor: there[one.wanted.flavor] + rooms.get(one.wanted.flavor, 0) for one in self.plans.flavors
        }

    def _registrable(self) -> list[FlavorPlan]:
        """The flavours whose runners can be registered. Raises the reason if that is none of those that create some."""
        creating = [one for one in self.plans.flavors if one.plan.create or one.plan.postponed]
        ways = _distinct(creating)
        failures: list[tuple[object, GithubClientError | ConfigurationError]] = []
        for registration in ways:
            try:
                self.changes.check_registration(registration)
            except (GithubClientError, ConfigurationError) as error:
                failures.append((_shared(registration), error))
        for one in creating:
            for shared, failure in failures:
                if _shared(one.wanted.registration) is shared:
                    self.unregistrable[one.wanted.flavor] = str(failure)
        if failures and len(failures) == len(ways):
            raise failures[0][1]
        for _, failure in failures:
            self.changes.report(str(failure))
        return [one for one in self.plans.flavors if one.wanted.flavor not in self.unregistrable]

    def _create(self, usable: Sequence[FlavorPlan]) -> None:
        missing = {one.wanted.flavor: max(0, one.plan.create - self._stayed(one.plan)) for one in usable}
        numbers, waits = self._granted(missing)
        blocked = [one for one in usable if missing[one.wanted.flavor] and not numbers[one.wanted.flavor]]
        for one in blocked:
            numbers, waits = self._with_room(one, missing, numbers, waits)
        self._order(usable, numbers)
        self.waits = (*self.plans.waits, *waits)

    def _with_room(
        self, blocked: FlavorPlan, missing: dict[str, int], numbers: Mapping[str, int], waits: list[Wait]
    ) -> tuple[Mapping[str, int], list[Wait]]:
        """Room for the first runner of today's configuration, where outdated ones keep it: as many go as it takes."""
        flavor = blocked.wanted.flavor
        for name in blocked.plan.postponed:
            if numbers[flavor]:
                break
            if self.changes.remove_idle(self._items([name])) == 0:
                missing[flavor] += 1
            numbers, waits = self._granted(missing)
        return numbers, waits

    def _replace_postponed(self, usable: Sequence[FlavorPlan], in_time: Callable[[], bool]) -> None:
        """Replace outdated runners of the flavours of which a new runner is online now."""
        postponed = [one for one in usable if self._existing(one.plan.postponed)]
        proven = in_parallel(lambda one: self.changes.is_proven(one.wanted.flavor), postponed)
        ready = [one for one, works in zip(postponed, proven, strict=True) if works] if in_time() else []
        if not ready:
            return
        before = {one.wanted.flavor: self._existing(one.plan.postponed) for one in ready}
        self.changes.remove_idle(self._items([name for names in before.values() for name in names]))
        missing = {flavor: len(names) - len(self._existing(names)) for flavor, names in before.items()}
        self._order(ready, self._granted(missing)[0])

    def _granted(self, missing: Mapping[str, int]) -> tuple[Mapping[str, int], list[Wait]]:
        """How many of the missing runners may be created now."""
        if self.capacity is None or self.plans.goals is None:
            return missing, []
        sizes = [size for _, size in self._sizes()]
        numbers, waits = grants(self.capacity, sizes, self.plans.asks, self.plans.goals, missing)
        return {flavor: numbers.get(flavor, 0) for flavor in missing}, waits

    def _order(self, flavors: Sequence[FlavorPlan], numbers: Mapping[str, int]) -> None:
        self.changes.create([Order(one.wanted, numbers[one.wanted.flavor], one.fingerprint) for one in flavors])

    def _stayed(self, plan: Plan) -> int:
        """How many instances exist that the plan removes. They count as existing ones."""
        return len(self._existing([name for name, _ in plan.remove]))

    def _existing(self, names: Sequence[str]) -> list[str]:
        removed = set(self.changes.removed)
        return [name for name in names if self.runners[name].view.exists and name not in removed]

    def _items(self, names: Sequence[str]) -> list[ObservedRunner]:
        return [self.runners[name] for name in names]

    def _sizes(self) -> Iterator[tuple[str, VirtualMachineResources]]:
        """Flavour and resources of all instances that exist now; if these are not known, what the flavour has today."""
        today = {one.wanted.flavor: one.wanted.spec.resources for one in self.plans.flavors}
        default = self.changes.spec.resources
        for name in self._existing(list(self.runners)):
            view = self.runners[name].view
            yield view.flavor, view.resources or today.get(view.flavor, default)
        for flavor in self.changes.created.values():
            yield flavor, today[flavor]


def _distinct(flavors: Sequence[FlavorPlan]) -> list[Registration | None]:
    """The ways in which runners register, one of those that share what they need."""
    found: list[Registration | None] = []
    for one in flavors:
        if not any(_shared(one.wanted.registration) is _shared(known) for known in found):
            found.append(one.wanted.registration)
    return found


def _shared(registration: Registration | None) -> object:
    """What the way of registering shares with others; None is the unit's own way."""
    return registration.shared if registration else None
