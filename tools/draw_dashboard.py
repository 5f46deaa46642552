"""Draw docs/images/dashboard.svg: what the dashboard shows of a day, with sample data from a small simulation.

Run from anywhere: python tools/draw_dashboard.py [FILE]. The same day is drawn each time.
"""

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "docs/images/dashboard.svg"
DAY, HOUR, MINUTE = 86400, 3600, 60
WANTED = 10
BIN = 30 * MINUTE
WIDTH, HEIGHT, GAP = 1200, 800, 12
PAGE, PANEL, GRID, TEXT, FAINT = "#111217", "#181b1f", "#2c3036", "#d8d9da", "#9fa3a9"
GREEN, RED, YELLOW, BLUE, ORANGE, PURPLE = "#73bf69", "#f2495c", "#fade2a", "#5794f2", "#ff9830", "#b877d9"
CONCLUSIONS = {"success": GREEN, "failure": RED, "cancelled": YELLOW}


@dataclass
class Job:
    """A job of the simulated day, in seconds since midnight."""

    created: float
    started: float
    ended: float
    conclusion: str

    @property
    def queued(self) -> float:
        """How long the job waited for a runner."""
        return self.started - self.created

    @property
    def duration(self) -> float:
        """How long the job ran."""
        return self.ended - self.started


@dataclass
class Day:
    """All that the pictures are about."""

    jobs: list[Job]
    reconciles: list[tuple[float, int, int]]
    """When, and how many idle and active runners."""


def simulate() -> Day:
    """A pool of runners, each good for one job, that a reconcile fills up about every ten minutes."""
    dice = random.Random(12)
    free: list[float] = []
    busy: list[float] = []
    waiting: list[float] = []
    jobs: list[Job] = []
    reconciles: list[tuple[float, int, int]] = []
    # Six hours before the day that is shown let the pool settle.
    now, end, next_reconcile = -DAY / 4, DAY, -DAY / 4
    while now < end:
        load = (
            3 + 27 * math.exp(-(((now / HOUR - 10.5) / 1.9) ** 2)) + 34 * math.exp(-(((now / HOUR - 15.2) / 1.6) ** 2))
        )
        if dice.random() < load / HOUR * 10:
            waiting.append(now)
        while waiting and free and min(free) <= now:
            free.remove(min(free))
            duration = min(2 * HOUR, dice.lognormvariate(math.log(6.5 * MINUTE), 0.8))
            [conclusion] = dice.choices(list(CONCLUSIONS), [86, 11, 3])
            jobs.append(Job(waiting.pop(0), now, now + duration, conclusion))
            busy.append(now + duration)
        busy = [when for when in busy if when > now]
        if now >= next_reconcile:
            missing = WANTED - len(free) - len(busy)
            free += [now + dice.uniform(70, 130) for _ in range(missing)]
            reconciles.append((now, len(free), len(busy)))
            next_reconcile = now + 10 * MINUTE + dice.uniform(0, 2.5 * MINUTE)
        now += 10
    return Day([job for job in jobs if job.started >= 0], [item for item in reconciles if item[0] >= 0])


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the others do not pass, between two neighbours in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def text(x: float, y: float, content: str, size: int = 12, colour: str = FAINT, **more: str) -> str:
    """A line of text; ``more`` are further attributes."""
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{extra}>{escape(content)}</text>'


def seconds(value: float) -> str:
    """A duration for people."""
    if value >= HOUR:
        return f"{value / HOUR:.3g} h"
    return f"{value / MINUTE:.3g} min" if value >= MINUTE else f"{value:.3g} s"


class Frame:
    """A panel with its title, and for plots its axes: time across, values upwards."""

    def __init__(self, place: tuple[float, float, float, float], title: str) -> None:
        self.x, self.y, self.w, self.h = place
        self.left, self.right = self.x + 62, self.x + self.w - 18
        self.top, self.bottom = self.y + 40, self.y + self.h - 54
        size = min(14, int(1.75 * (self.w - 20) / len(title)))
        self.parts = [
            f'<rect x="{self.x:.1f}" y="{self.y:.1f}" width="{self.w:.1f}" height="{self.h:.1f}" '
            f'rx="3" fill="{PANEL}" stroke="{GRID}"/>',
            text(self.x + 12, self.y + 22, title, size, TEXT, font_weight="600"),
        ]

    def across(self, when: float) -> float:
        """Where a time is, from left to right."""
        return self.left + when / DAY * (self.right - self.left)

    def up(self, value: float) -> float:
        """Where a value is, from top to bottom."""
        return self.bottom - value / self.limit * (self.bottom - self.top)

    def axes(self, ticks: Sequence[float], in_seconds: bool = False) -> None:
        """Both axes; the last tick is the highest value that fits."""
        self.limit = ticks[-1]
        for tick in ticks:
            y = self.up(tick)
            self.parts.append(f'<path d="M{self.left:.1f} {y:.1f}H{self.right:.1f}" stroke="{GRID}"/>')
            label = seconds(tick) if in_seconds and tick else f"{tick:g}"
            self.parts.append(text(self.left - 8, y + 4, label, 11, text_anchor="end"))
        for hour in range(0, 25, 4):
            x = self.across(hour * HOUR)
            self.parts.append(f'<path d="M{x:.1f} {self.bottom:.1f}v4" stroke="{FAINT}"/>')
            self.parts.append(text(x, self.bottom + 17, f"{hour:02}:00", 11, text_anchor="middle"))

    def legend(self, entries: dict[str, str]) -> None:
        """Names and their colours, below the plot."""
        many = len(entries) > 5
        x, y, size = self.x + 12 if many else self.left, self.y + self.h - 14, 11 if many else 12
        for name, colour in entries.items():
            self.parts.append(f'<rect x="{x:.1f}" y="{y - 6:.1f}" width="14" height="4" rx="2" fill="{colour}"/>')
            self.parts.append(text(x + 18, y, name, size, TEXT))
            x += 30 + 0.58 * size * len(name)

    def bar(self, begin: float, low: float, high: float, colour: str) -> None:
        """One part of a bar that is as wide as an interval."""
        x, width = self.across(begin) + 1, self.across(begin + BIN) - self.across(begin) - 2
        y, height = self.up(high), self.up(low) - self.up(high)
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')

    def line(self, points: Sequence[tuple[float, float]], colour: str, steps: bool = False, dash: str = "") -> None:
        """A line through the points, or one that keeps each value until the next."""
        path = ""
        for when, value in points:
            x, y = f"{self.across(when):.1f}", f"{self.up(value):.1f}"
            path += f"M{x} {y}" if not path else f"H{x}V{y}" if steps else f"L{x} {y}"
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"{dashed}/>'
        )


def conclusions(day: Day, place: tuple[float, float, float, float]) -> list[str]:
    """Jobs per half hour, by how they ended."""
    frame = Frame(place, "Job Conclusion")
    counts = {
        begin: [
            sum(begin <= job.ended < begin + BIN and job.conclusion == name for job in day.jobs) for name in CONCLUSIONS
        ]
        for begin in range(0, DAY, BIN)
    }
    limit = 5 * math.ceil(max(sum(count) for count in counts.values()) / 5)
    frame.axes(range(0, limit + 1, 5))
    for begin, count in counts.items():
        low = 0
        for number, colour in zip(count, CONCLUSIONS.values(), strict=True):
            if number:
                frame.bar(begin, low, low + number, colour)
            low += number
    frame.legend(CONCLUSIONS)
    return frame.parts


def idle(day: Day, place: tuple[float, float, float, float]) -> list[str]:
    """Runners after each reconcile."""
    frame = Frame(place, "Idle Runners after Reconciliation")
    frame.axes(range(0, WANTED + 3, 2))
    frame.line([(0, WANTED), (DAY, WANTED)], FAINT, dash="8 6")
    frame.line([(when, active) for when, _, active in day.reconciles], ORANGE, steps=True)
    frame.line([(when, free) for when, free, _ in day.reconciles], BLUE, steps=True)
    frame.legend({"Idle": BLUE, "Active": ORANGE, "Expected": FAINT})
    return frame.parts


def durations(
    day: Day, place: tuple[float, float, float, float], title: str, name: str, ticks: Sequence[float]
) -> list[str]:
    """Percentiles of an attribute of the jobs, hour by hour."""
    frame = Frame(place, title)
    frame.axes(ticks, in_seconds=True)
    # Longest first, so that the others are drawn over it.
    for share, colour in [(1, PURPLE), (0.99, ORANGE), (0.95, YELLOW), (0.5, GREEN)]:
        points = []
        for hour in range(24):
            values = [getattr(job, name) for job in day.jobs if hour * HOUR <= job.started < (hour + 1) * HOUR]
            if values:
                points.append(((hour + 1) * HOUR, percentile(values, share)))
        frame.line(points, colour)
    frame.legend({"50%": GREEN, "95%": YELLOW, "99%": ORANGE, "Max": PURPLE})
    return frame.parts


def tile(place: tuple[float, float, float, float], title: str, value: str, colour: str) -> list[str]:
    """A panel with one value."""
    frame = Frame(place, title)
    x, y, w, _ = place
    return [*frame.parts, text(x + w / 2, y + 66, value, 32, colour, text_anchor="middle", font_weight="600")]


def ticks_for(values: Sequence[float], step: int) -> range:
    """Ticks from 0 to the first that no value passes."""
    return range(0, step * math.ceil(max(values) / step) + 1, step)


def draw(day: Day) -> str:
    """The whole picture."""
    queued = [job.queued for job in day.jobs]
    ended = [job for job in day.jobs if job.ended < DAY]
    tiles = [
        ("Wanted runners", f"{WANTED}", TEXT),
        ("Available runners (total)", f"{day.reconciles[-1][1]}", GREEN),
        ("Started", f"{len(day.jobs)}", TEXT),
        ("Stopped", f"{len(ended)}", TEXT),
    ]
    top, low = 54, 90
    width = (WIDTH - GAP * (len(tiles) + 1)) / len(tiles)
    parts = []
    for number, (title, value, colour) in enumerate(tiles):
        parts += tile((GAP + number * (width + GAP), top, width, low), title, value, colour)
    half = (WIDTH - 3 * GAP) / 2
    first = top + low + GAP
    high = (HEIGHT - first - 2 * GAP) / 2
    places = [(x, y, half, high) for y in (first, first + high + GAP) for x in (GAP, 2 * GAP + half)]
    parts += conclusions(day, places[0])
    parts += idle(day, places[1])
    parts += durations(day, places[2], "Job Queue Duration (Percentile)", "queued", ticks_for(queued, 2 * MINUTE))
    parts += durations(
        day,
        places[3],
        "Job Duration (Percentile)",
        "duration",
        ticks_for([job.duration for job in day.jobs], 10 * MINUTE),
    )
    return page("GitHub Self-Hosted Runner Metrics", HEIGHT, parts)


def page(name: str, height: int, parts: Sequence[str]) -> str:
    """A dashboard with its name, which says that the data is made up."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'font-family="Inter, Ubuntu, Helvetica, Arial, sans-serif" role="img">',
            f"<title>{escape(name)}, drawn with sample data</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="{PAGE}"/>',
            text(GAP, 34, name, 20, TEXT, font_weight="600"),
            text(
                WIDTH - GAP,
                34,
                "SAMPLE DATA: a drawing of a simulated day, no measurement of real runners",
                13,
                ORANGE,
                text_anchor="end",
            ),
            *parts,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(draw(simulate()))
