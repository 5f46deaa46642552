"""A month in simulation: the real reconciles over a simulated machine and organisation, and what must stay level."""

import contextlib
import gc
import itertools
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import metrics.events
import metrics.storage
import naming
import runner
import runner_manager
import system
import telemetry
from budget import Capacity
from errors import GithubClientError
from models import CharmState, FlushMode, GithubOrg, VirtualMachineResources
from naming import KEY, fingerprint
from report import Report
from runner import RunnerManagerClients
from runner_manager import RunnerManager
from tests.faults.world import DAY, World
from tests.support.fakes import IDENTITY, RESOURCES, FakeInstance, state
from tests.support.model import JINJA, RUNNING, WORKER, Killed, Records

TICK = 600.0
TICKS_A_DAY = int(DAY / TICK)
LOGS_KEPT = 7 * DAY
# Of a tick, each on its own.
CRASH, REBOOT, OUTAGE = 1 / 8, 1 / 200, 1 / 100
LONGEST_OUTAGE = 18
OUTAGES = (("list", "delete", "jobs", "record"), ("jobs",), ("record",), ("delete",))
# Of a day, in this order.
CHANGES = (("options", "fewer", "all"), ("fewer", "options", "all"), ("fewer", "all", "options"))
QUIET = 2


@dataclass(frozen=True)
class Scale:
    """How much: runners of the unit, others in the organisation, ticks of ten minutes, a seed."""

    runners: int
    foreign: int
    ticks: int
    seed: int = 1


SHORT = Scale(runners=20, foreign=200, ticks=TICKS_A_DAY + TICKS_A_DAY // 4, seed=4)
LONG = Scale(runners=100, foreign=2000, ticks=30 * TICKS_A_DAY)
FLEET = Scale(runners=200, foreign=2000, ticks=0)


def run(short: bool) -> dict[str, object]:
    """A day or a month of a unit, then a unit of 200; figures by name, AssertionError where a rule is broken."""
    started = time.monotonic()
    figures = soak(SHORT if short else LONG)
    return {**figures, **fleet(FLEET), "seconds": round(time.monotonic() - started)}


def soak(scale: Scale, kind: "type[Month] | None" = None) -> dict[str, object]:
    """Ticks with jobs and faults, then no more jobs until the last has ended, then quiet."""
    with unit(scale, kind=kind) as month:
        for number in range(scale.ticks):
            month.tick(number)
            if number == scale.ticks // 10:
                before = footprint()
        after = footprint()
        month.drain()
        return {**month.figures(), **{name: after[name] - value for name, value in before.items()}}


def footprint() -> dict[str, int]:
    """What this process has: KiB of memory, blocks of Python's allocator, and open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory_growth_kib": pages * (os.sysconf("SC_PAGE_SIZE") >> 10),
        "memory_blocks_growth": sys.getallocatedblocks(),
        "open_files_growth": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
    }


class Month:
    """One unit in a world, reconcile by reconcile, with the rules that hold after each."""

    def __init__(self, scale: Scale, folder: Path) -> None:
        self.scale = scale
        self.world = World(scale.runners, scale.foreign, scale.seed)
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(scale.seed)
        self._folder = folder
        self._wanted = scale.runners
        self._changes: dict[int, str] = {}
        self._version = 0
        self._outage = 0
        self._quiet = 0
        self._capacity: Capacity | None = None
        self._set_options()

    def _set_options(self) -> None:
        self._version += 1
        self._resources = VirtualMachineResources(1 + self._version % 3, RESOURCES.memory, RESOURCES.disk)
        self._binary = self._folder / f"actions-runner-linux-x64-2.{300 + self._version // 5}.0.tar.gz"
        self._binary.write_bytes(b"tarball")
        self._state: CharmState = state(
            path=GithubOrg("octo-org"), issue_metrics=True, resources=self._resources, labels=(f"v{self._version}",)
        )

    def manager(self) -> RunnerManager:
        """A new one for each reconcile, as in the charm."""
        world = self.world
        registration = Records(world.hub, lambda _: world.hub.answers("record"))
        clients = RunnerManagerClients(world.hub, JINJA, world.lxd, None, registration=registration)  # type: ignore[arg-type]
        storages: Any = metrics.storage
        return RunnerManager(
            *(IDENTITY, self._state, clients, storages, self._binary),
            clock=lambda: world.now,
            capacity=self._capacity,
        )

    def tick(self, number: int) -> None:
        """Ten minutes with whatever goes wrong in them, and a reconcile."""
        if number % TICKS_A_DAY == 0:
            self.world.midnight()
            moments = sorted(self._chance.sample(range(number, number + TICKS_A_DAY), len(CHANGES[0])))
            self._changes = dict(zip(moments, self._chance.choice(CHANGES), strict=True))
        calm = self._chance.uniform(0, TICK)
        self._pass(calm)
        disturbed = self._disturb(number)
        self.world.advance(TICK - calm)
        self._quiet = 0 if disturbed else self._quiet + 1
        if self._chance.random() < REBOOT:
            self._die_in_a_reconcile()
        else:
            self.reconcile()

    def _pass(self, seconds: float) -> None:
        """Time in which nothing goes wrong."""
        self.world.advance(seconds)

    def drain(self) -> None:
        """No more jobs, nothing goes wrong: the last job ends within a day, and all that was wanted is there."""
        self.world.close()
        self.world.hub.down = set()
        self._wanted, self._outage, self._quiet = self.scale.runners, 0, 0
        for _ in range(TICKS_A_DAY):
            self._quiet = 0 if self.world.queue or self.world.jobs else self._quiet + 1
            self.world.advance(TICK)
            self.reconcile()
            if self._quiet == QUIET:
                self._end()
                return

    def _disturb(self, number: int) -> bool:
        """Whether something has gone wrong or was changed."""
        before = self.counts.total()
        if self._chance.random() < CRASH:
            self.counts["crashes"] += 1
            for _ in range(self._chance.randint(1, 3)):
                self.world.crash()
        if self._chance.random() < REBOOT:
            self.counts["reboots"] += 1
            self._reboot()
        if number in self._changes:
            self.counts["option_changes"] += 1
            self._change(self._changes[number])
        ongoing = bool(self._outage)
        self._github()
        return ongoing or self.counts.total() > before

    def _change(self, what: str) -> None:
        if what == "options":
            self._set_options()
        else:
            self._wanted = self._chance.randrange(self.scale.runners) if what == "fewer" else self.scale.runners

    def _github(self) -> None:
        """GitHub answers with errors for up to three hours, as a whole or in part."""
        self._outage = max(0, self._outage - 1)
        if not self._outage and self._chance.random() < OUTAGE:
            self.counts["outages"] += 1
            self._outage = self._chance.randint(1, LONGEST_OUTAGE)
            self.world.hub.down = set(self._chance.choice(OUTAGES))
        elif not self._outage:
            self.world.hub.down = set()

    def _die_in_a_reconcile(self) -> None:
        """The machine loses its power while the charm changes something."""
        self.counts["reboots_in_a_reconcile"] += 1
        self.world.cut_off(self._chance.randint(0, 20))
        with contextlib.suppress(Killed):
            self.reconcile()
        self.world.lxd.faults = {}
        self._reboot()
        self._quiet = 0

    def _reboot(self) -> None:
        self.world.reboot()

    def reconcile(self) -> None:
        """A reconcile, and what must hold after it."""
        world, check_limit = self.world, self._limit()
        world.taken = 0
        manager = self.manager()
        try:
            self._run(manager)
        except GithubClientError:
            assert world.hub.down, "GitHub answered, and the reconcile says that it did not"
            self.counts["reconciles_without_github"] += 1
        finally:
            world.reconcile_ended()
            world.ledger.read()
            self._age_logs(manager.report)
            records: list[list[Any]] = [world.lxd.log, world.hub.lists, world.hub.deleted]
            for record in (*records, *(i.commands for i in world.lxd.own_instances())):
                record.clear()
            check_limit()
            assert world.lxd.others_are_whole(), "an instance of somebody else was touched"
        if self._quiet >= QUIET:
            self._check_recovery()

    def _run(self, manager: RunnerManager) -> None:
        manager.reconcile(self._wanted, self._resources)

    def _limit(self) -> Callable[[], None]:
        """What checks after a reconcile that it did not make too many."""
        before = len(self.world.lxd.own_instances())

        def check() -> None:
            assert len(self.world.lxd.own_instances()) <= max(self._wanted, before), "more instances than wanted"

        return check

    def _check_number(self, own: Sequence[FakeInstance]) -> None:
        # What took a job between GitHub's list and its removal stays.
        most = max(self._wanted + self.world.taken, len(self.world.jobs))
        assert self._wanted <= len(own) <= most, f"{len(own)} instances, wanted are {self._wanted}"

    def _is_todays(self, item: FakeInstance) -> bool:
        return item.config[f"{KEY}fingerprint"] == fingerprint(self._state.runners[0], self._binary.name, "")

    def _check_recovery(self) -> None:
        """Nothing went wrong for two reconciles: what is wanted is there, and nothing else."""
        world = self.world
        own = world.lxd.own_instances()
        self._check_number(own)
        assert all(item.running and item.process in (RUNNING, WORKER) for item in own), "a dead runner stays"
        online = {name for name, found in world.hub.runners.items() if found.online}
        assert online >= {item.name for item in own}, "a runner stays that GitHub does not see"
        idle = [item for item in own if item.name not in world.jobs]
        assert all(map(self._is_todays, idle)), "an outdated runner stays"
        assert not world.ledger.missing, f"events are missing: {sorted(world.ledger.missing)[:5]}"
        self.counts["recoveries_seen"] += self._quiet == QUIET

    def _age_logs(self, report: Report) -> None:
        """What was pulled is as old as the world says, for the reconcile that removes old logs."""
        if report.removed and runner.LOGS_PATH.exists():
            for folder in runner.LOGS_PATH.iterdir():
                if folder.stat().st_mtime > self.world.now:
                    os.utime(folder, (self.world.now, self.world.now))

    def _end(self) -> None:
        """Nothing is left over."""
        world = self.world
        names = {item.name for item in world.lxd.own_instances()}
        assert set(world.hub.runners) == names, "a registration is left over"
        storages = {storage.runner_name for storage in metrics.storage.list_all()}
        assert storages == names, "a metrics storage is left over"
        assert not metrics.storage.FILESYSTEM_QUARANTINE_PATH.exists(), "a storage was taken for hostile"
        if runner.LOGS_PATH.exists():
            oldest = min((folder.stat().st_mtime for folder in runner.LOGS_PATH.iterdir()), default=world.now)
            assert world.now - oldest <= LOGS_KEPT + TICK, "old logs are left over"

    def figures(self) -> dict[str, object]:
        """What was counted. ``jobs_cut`` are those whose runner or machine died: they began once and are over."""
        world = self.world
        return {
            "ticks": self.scale.ticks,
            "runners": self.scale.runners,
            "foreign_runners": self.scale.foreign,
            "jobs_queued": world.queued,
            "jobs_run": world.run,
            "jobs_cut": world.cut,
            "jobs_lost": world.queued - world.run - world.cut,
            "jobs_doubled": sum(number > 1 for number in world.started),
            **world.ledger.figures(),
            **dict(sorted(self.counts.items())),
        }


def fleet(scale: Scale) -> dict[str, object]:
    """From none to many on one unit, a reconcile with nothing to do, and none again; side by side as in the charm."""
    with unit(scale, workers=system.WORKERS) as month:
        month.world.close()
        seconds = [time.perf_counter()]
        month.reconcile()
        created = len(month.world.lxd.own_instances())
        seconds.append(time.perf_counter())
        month.reconcile()
        seconds.append(time.perf_counter())
        flushed = month.manager().flush(FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK)
        seconds.append(time.perf_counter())
        left = (
            len(month.world.lxd.own_instances()) + len(month.world.hub.runners) + len(list(metrics.storage.list_all()))
        )
    create, steady, flush = (round(after - before, 2) for before, after in itertools.pairwise(seconds))
    return {
        "fleet_runners": scale.runners,
        "fleet_created": created,
        "fleet_flushed": flushed,
        "fleet_left_over": left,
        "fleet_seconds_to_create": create,
        "fleet_seconds_of_a_quiet_reconcile": steady,
        "fleet_seconds_to_flush": flush,
    }


@contextlib.contextmanager
def unit(scale: Scale, workers: int = 1, kind: type[Month] | None = None) -> Iterator[Month]:
    """A unit with a folder of its own and the world's clock. One worker: what happens is the same each time."""
    level = logging.root.manager.disable
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as patches:
        folder = Path(name)
        month = (kind or Month)(scale, folder)
        numbers = itertools.count(1)
        shared_fs = SimpleNamespace(
            create=metrics.storage.create, delete=metrics.storage.delete, give_to=lambda storage, uid: None
        )
        for owner, attribute, value in (
            (metrics.events, "METRICS_LOG_PATH", folder / "metrics.log"),
            (metrics.storage, "FILESYSTEM_BASE_PATH", folder / "fs"),
            (metrics.storage, "FILESYSTEM_QUARANTINE_PATH", folder / "quarantine"),
            (runner, "LOGS_PATH", folder / "logs"),
            (runner, "shared_fs", shared_fs),
            (runner, "time", SimpleNamespace(time=lambda: month.world.now, monotonic=time.monotonic)),
            (runner_manager, "LOCKS", folder / "locks"),
            (telemetry, "LOCKS", folder / "locks"),
            (naming, "secrets", SimpleNamespace(token_hex=lambda size: f"{next(numbers):0{2 * size}x}")),
            (system, "WORKERS", workers),
        ):
            patches.enter_context(mock.patch.object(owner, attribute, value))
        patches.callback(logging.disable, level)
        logging.disable(logging.CRITICAL)
        yield month
