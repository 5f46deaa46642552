"""Draw docs/images/dashboard-prometheus.svg: what the dashboard of Prometheus shows of a simulated day of one unit.

Jobs, creations and their times are made up. Which runners fit, and why jobs wait, is what the charm's own modules say
of them. Run from anywhere: python tools/draw_prometheus_dashboard.py [FILE]. The same day is drawn each time.
"""

import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import draw_dashboard as drawing
from draw_dashboard import BLUE, DAY, GAP, GREEN, HOUR, MINUTE, ORANGE, PURPLE, RED, WIDTH, YELLOW, Frame

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import budget  # noqa: E402
import delays  # noqa: E402
import waiting  # noqa: E402
from budget import Ask, Capacity, fitting  # noqa: E402
from demand import Demand  # noqa: E402
from models import VirtualMachineResources  # noqa: E402
from telemetry import FAILED, Counts, Delay, Gauges  # noqa: E402

TARGET = ROOT / "docs/images/dashboard-prometheus.svg"
NAME = "GitHub Self-Hosted Runner Metrics (Prometheus)"
HEIGHT = 1130
TICK, SAMPLE = 5, 5 * MINUTE
GIB = 1 << 30
MACHINE = Capacity(62 * GIB, 32)
# Registering runners of one flavour fails for a while.
OUTAGE = range(9 * HOUR + 40 * MINUTE, 10 * HOUR + 10 * MINUTE)
# Jobs that come at once.
BURSTS = {("small", 13.0 * HOUR): 18, ("large", 19.5 * HOUR): 5}
REASON_COLOURS = {
    "reconcile": BLUE,
    "starting": GREEN,
    "memory": ORANGE,
    "maximum": PURPLE,
    "creation_failed": RED,
    "not_assigned": YELLOW,
}


@dataclass
class Size:
    """A flavour, and the jobs per hour that it gets in the morning and in the afternoon."""

    resources: VirtualMachineResources
    maximum: int
    min_idle: int
    peaks: tuple[float, float]


SIZES = {
    "small": Size(VirtualMachineResources(2, "4GiB", "10GiB"), 10, 2, (24, 30)),
    "large": Size(VirtualMachineResources(8, "16GiB", "40GiB"), 3, 0, (3.5, 4)),
}


@dataclass
class Runner:
    """A runner with the times of its life in seconds; ``ends`` is 0 before its job."""

    flavor: str
    online: float
    ends: float = 0


@dataclass
class Sample:
    """What a scrape gives."""

    waiting: Mapping[str, int]
    missing: Mapping[str, int]
    states: Counter[str]
    wanted: Mapping[str, int]
    there: Mapping[str, int]


@dataclass
class Unit:
    """One unit with ``scaling=demand`` and its jobs. Times are seconds since midnight."""

    dice: random.Random = field(default_factory=lambda: random.Random(31))
    now: float = -2.0 * HOUR
    queued: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SIZES})
    runners: list[Runner] = field(default_factory=list)
    recorded: dict[str, Counts] = field(default_factory=dict)
    reconciled: float = 0.0
    busy_until: float = 0.0
    due: bool = True
    unfinished: tuple[dict[str, int], Mapping[str, Sequence[str]], list[budget.Wait]] | None = None
    failing: dict[str, float] = field(default_factory=dict)
    started: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def step(self) -> None:
        """Five seconds."""
        self.now += TICK
        for name, size in SIZES.items():
            arrived = self.dice.choice([1, 1, 1, 3]) if self.dice.random() < load(self.now, size) / HOUR * TICK else 0
            arrived += BURSTS.get((name, self.now), 0)
            self.queued[name] += [self.now] * arrived
            self.due = self.due or arrived > 0
        for runner in [one for one in self.runners if one.ends and one.ends <= self.now]:
            self.runners.remove(runner)
            self.ended[runner.flavor].append(self.now)
            self.due = True
        for runner in self.runners:
            if not runner.ends and runner.online <= self.now and self.queued[runner.flavor]:
                created = self.queued[runner.flavor].pop(0)
                self.started[runner.flavor].append((self.now, self.now - created))
                runner.ends = self.now + min(2 * HOUR, self.dice.lognormvariate(math.log(6 * MINUTE), 0.7))
        if self.unfinished and self.now >= self.busy_until:
            self.record(*self.unfinished)
            self.unfinished = None
        if not self.unfinished and (self.due or self.now - self.reconciled > 10 * MINUTE):
            self.reconcile()

    def demands(self) -> dict[str, Demand]:
        """What GitHub reports: it assigns no more jobs than the unit could have runners for."""
        found = {}
        sizes = [SIZES[one.flavor].resources for one in self.runners]
        for name, size in SIZES.items():
            there = [one for one in self.runners if one.flavor == name]
            running = sum(1 for one in there if one.ends)
            capacity = max(1, min(size.maximum, len(there) + fitting(MACHINE, sizes, size.resources)))
            assigned = min(capacity, running + len(self.queued[name]))
            late = sum(1 for when in self.queued[name][assigned - running :] if self.now - when > 5 * MINUTE)
            since = min(self.queued[name], default=None)
            # All times of the charm are UNIX seconds, later than 0.
            since = None if since is None else since + DAY
            found[name] = Demand(assigned, late, since, self.now + DAY, 1, running=running)
        return found

    def reconcile(self) -> None:
        """What a reconcile creates; it ends when the last creation has."""
        self.due = False
        demands = self.demands()
        asked = {n: min(s.maximum, s.min_idle + demands[n].assigned + demands[n].missed) for n, s in SIZES.items()}
        there = Counter(one.flavor for one in self.runners)
        tried = {n: self.now - at >= 10 * MINUTE for n, at in self.failing.items()}
        last = {n: max(0, asked[n] - there[n] - tried[n]) if n in tried else 0 for n in SIZES}
        asks = [Ask(n, s.resources, asked[n], demands[n].since, s.min_idle, last[n]) for n, s in SIZES.items()]
        goals, waits = budget.goals(MACHINE, asks)
        missing = {name: max(0, goals[name] - there[name]) for name in SIZES}
        sizes = [SIZES[one.flavor].resources for one in self.runners]
        granted, more = budget.grants(MACHINE, sizes, asks, goals, missing)
        failed: dict[str, list[str]] = {}
        self.busy_until = self.now + TICK
        for name, number in granted.items():
            for _ in range(number):
                took = self.dice.uniform(22, 38)
                if name == "large" and int(self.now) in OUTAGE:
                    failed.setdefault(name, []).append("registering failed")
                    continue
                self.runners.append(Runner(name, self.now + took + self.dice.uniform(4, 8)))
                self.busy_until = max(self.busy_until, self.now + took)
        for name in granted:
            if granted[name]:
                self.failing.pop(name, None)
        self.failing.update(dict.fromkeys(failed, self.now))
        self.unfinished = (asked, failed, [*waits, *more])

    def record(self, asked: Mapping[str, int], failed: Mapping[str, Sequence[str]], waits: list[budget.Wait]) -> None:
        """What the reconcile leaves for the agent."""
        self.reconciled = self.now
        # The pause keeps creations that fail from being repeated at once.
        self.busy_until = self.now + (MINUTE if failed else 2)
        for name, size in SIZES.items():
            states = self.states(name)
            errors = failed.get(name, ())
            failure = Delay(FAILED, len(errors) or None, "registering failed") if name in self.failing else None
            why = delays.of_flavor(name, waits, failure, "", "")
            lacking = sum(wait.number for wait in waits if wait.flavor == name)
            self.recorded[name] = Counts(
                expected=max(0, asked[name] - lacking),
                idle=states["idle"],
                busy=states["busy"],
                starting=states["starting"],
                wanted=asked[name],
                maximum=size.maximum,
                delays=why,
            )

    def states(self, name: str) -> Counter[str]:
        """The runners of a flavour by state."""
        found = [one for one in self.runners if one.flavor == name]
        return Counter("busy" if one.ends else "idle" if one.online <= self.now else "starting" for one in found)

    def sample(self) -> Sample:
        """A scrape."""
        shown = waiting.of_unit(Gauges(self.reconciled + DAY, self.recorded), self.demands(), self.now + DAY)
        states: Counter[str] = Counter()
        for counts in self.recorded.values():
            states.update(busy=counts.busy, idle=counts.idle, starting=counts.starting)
        return Sample(
            waiting.by_reason(reason for one in shown for reason in one.of_jobs),
            waiting.by_reason(reason for one in shown for reason in one.of_runners),
            states,
            {name: counts.wanted or 0 for name, counts in self.recorded.items()},
            {name: counts.there for name, counts in self.recorded.items()},
        )


def load(now: float, size: Size) -> float:
    """Jobs per hour."""
    morning, afternoon = size.peaks
    hour = now / HOUR
    return 1.5 + morning * math.exp(-(((hour - 10.4) / 1.7) ** 2)) + afternoon * math.exp(-(((hour - 15.1) / 1.5) ** 2))


def simulate() -> tuple[Unit, list[Sample]]:
    """The day, with a sample for each step of a panel."""
    unit, samples = Unit(), []
    while unit.now < DAY:
        unit.step()
        if unit.now >= 0 and unit.now % SAMPLE == 0:
            samples.append(unit.sample())
    return unit, samples


def stacked(
    place: tuple[float, float, float, float], title: str, series: dict[str, list[int]], names: dict[str, str]
) -> list[str]:
    """Areas upon each other, each value until the next; a series that is always 0 is left out."""
    frame = Frame(place, title)
    shown = {name: series[name] for name in names if any(series[name])}
    highest = max(map(sum, zip(*shown.values(), strict=True)), default=1)
    step = 1 if highest <= 6 else 2 if highest <= 12 else 5
    frame.axes(drawing.ticks_for([highest], step))
    low = [0] * len(next(iter(shown.values()), []))
    for name, values in shown.items():
        high = [below + value for below, value in zip(low, values, strict=True)]
        there = f"{outline(frame, high)}L{outline(frame, low, back=True)[1:]}Z"
        frame.parts.append(f'<path d="{there}" fill="{names[name]}" fill-opacity="0.7"/>')
        low = high
    frame.legend({name: names[name] for name in shown})
    return frame.parts


def outline(frame: Frame, values: Sequence[int], back: bool = False) -> str:
    """A line of steps, from left to right or back; it has a corner only where the value changes."""
    points = [(0, values[0])]
    for index, value in enumerate(values):
        if value != points[-1][1]:
            points += [(index * SAMPLE, points[-1][1]), (index * SAMPLE, value)]
    points.append((DAY, values[-1]))
    path = [f"{frame.across(when):.1f} {frame.up(value):.1f}" for when, value in points]
    return "M" + "L".join(reversed(path) if back else path)


def by_flavor(place: tuple[float, float, float, float], samples: Sequence[Sample]) -> list[str]:
    """Wanted and existing runners."""
    frame = Frame(place, "Wanted and existing runners by flavor")
    frame.axes(range(0, 13, 2))
    legend = {}
    for (name, colour), dash in [((n, c), d) for n, c in (("small", BLUE), ("large", ORANGE)) for d in ("", "5 4")]:
        what = "wanted" if dash else "existing"
        points = [(i * SAMPLE, (one.wanted if dash else one.there)[name]) for i, one in enumerate(samples)]
        frame.line(
            [*points, (DAY, points[-1][1])], YELLOW if dash and name == "small" else RED if dash else colour, True, dash
        )
        legend[f"{name} {what}"] = YELLOW if dash and name == "small" else RED if dash else colour
    frame.legend(legend)
    return frame.parts


def queue_time(place: tuple[float, float, float, float], unit: Unit) -> list[str]:
    """Percentiles, hour by hour."""
    frame = Frame(place, "Queue time")
    times = [pair for pairs in unit.started.values() for pair in pairs if pair[0] >= 0]
    frame.axes(drawing.ticks_for([waited for _, waited in times], 10 * MINUTE), in_seconds=True)
    for share, colour in [(0.99, ORANGE), (0.95, YELLOW), (0.5, GREEN)]:
        points = []
        for hour in range(24):
            values = [waited for when, waited in times if hour * HOUR <= when < (hour + 1) * HOUR]
            if values:
                points.append(((hour + 1) * HOUR, drawing.percentile(values, share)))
        frame.line(points, colour)
    frame.legend({"50%": GREEN, "95%": YELLOW, "99%": ORANGE})
    return frame.parts


def jobs_per_hour(place: tuple[float, float, float, float], unit: Unit) -> list[str]:
    """Jobs that ended, by flavour."""
    frame = Frame(place, "Jobs per hour by flavor")
    counts = {
        name: [sum(1 for when in unit.ended[name] if hour * HOUR <= when < (hour + 1) * HOUR) for hour in range(24)]
        for name in SIZES
    }
    frame.axes(drawing.ticks_for([max(map(max, counts.values()))], 20))
    for name, colour in (("small", BLUE), ("large", ORANGE)):
        frame.line([((hour + 1) * HOUR, number) for hour, number in enumerate(counts[name])], colour)
    frame.legend({"small": BLUE, "large": ORANGE})
    return frame.parts


def draw(unit: Unit, samples: Sequence[Sample]) -> str:
    """The whole picture."""
    last = samples[-1]
    tiles = [
        ("Wanted runners", f"{sum(last.wanted.values())}", GREEN),
        ("Idle runners", f"{last.states['idle']}", GREEN),
        ("Busy runners", f"{last.states['busy']}", GREEN),
        ("Waiting jobs", f"{sum(last.waiting.values())}", GREEN),
        ("Age of the last reconcile", drawing.seconds(unit.now - unit.reconciled), GREEN),
        ("API quota left", "4871", GREEN),
    ]
    top, low = 54, 90
    width = (WIDTH - GAP * (len(tiles) + 1)) / len(tiles)
    parts = []
    for number, (title, value, colour) in enumerate(tiles):
        parts += drawing.tile((GAP + number * (width + GAP), top, width, low), title, value, colour)
    half, first = (WIDTH - 3 * GAP) / 2, top + low + GAP
    high = (HEIGHT - first - 3 * GAP) / 3
    rows = [first + row * (high + GAP) for row in range(3)]
    places = [(x, y, half, high) for y in rows for x in (GAP, 2 * GAP + half)]
    reasons = {name: [one.waiting[name] for one in samples] for name in REASON_COLOURS}
    missing = {name: [one.missing[name] for one in samples] for name in REASON_COLOURS}
    states = {name: [one.states[name] for one in samples] for name in ("busy", "idle", "starting")}
    parts += stacked(places[0], "Waiting jobs by reason", reasons, REASON_COLOURS)
    parts += stacked(places[1], "Missing runners by reason", missing, REASON_COLOURS)
    parts += stacked(places[2], "Runners by state", states, {"busy": ORANGE, "idle": BLUE, "starting": GREEN})
    parts += by_flavor(places[3], samples)
    parts += queue_time(places[4], unit)
    parts += jobs_per_hour(places[5], unit)
    return drawing.page(NAME, HEIGHT, parts)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_text(draw(*simulate()))
