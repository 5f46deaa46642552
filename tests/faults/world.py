"""A simulated machine and organisation: LXD, GitHub in pages, jobs that come, run and end, and what goes wrong."""

import heapq
import json
import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import metrics.events
import metrics.storage
from engine.instance import Execution
from errors import GithubApiError, JobNotFoundError, RunnerBusyError, TemporaryGithubError
from gh.auth import Pat
from gh.client import GithubClient
from models import (
    DEFAULT_FLAVOR,
    POST_JOB_METRICS_FILE_NAME,
    PRE_JOB_METRICS_FILE_NAME,
    GithubPath,
    GithubRunner,
    WorkflowJob,
)
from naming import FLAVOR_KEY, SCALE_SET_KEY
from tests.support.fakes import IDENTITY, FakeInstance, FakeLxd
from tests.support.model import NONE, OTHERS, OTHERS_KEYS, RUNNING, WORKER, Hub, Killed

HOUR, DAY = 3600.0, 86400.0
# A midnight, in UTC.
START = 1_700_006_400.0
# In seconds: minutes to hours, the short ones more often.
SHORTEST, LONGEST = 120.0, 5 * HOUR
# That come in each hour of a day, for each runner: few at night, and more than all can run at noon.
JOBS = (0.2,) * 7 + (0.7,) * 3 + (1.3,) * 4 + (0.7,) * 6 + (0.2,) * 4
# A job that would come in so many seconds may come while a reconcile is at work.
SOON = 600.0
MOST_JOBS, MOST_COUNTED = 200_000, 255
PREFIX = IDENTITY.prefix
FOREIGN = (
    *("app-{}", "app-0-{}", "app-00-0123abcd{}", "app-0-0123abc-{}", "other-0-0123abcd{}", "my-app-0-0123abcd{}"),
    *(PREFIX + "-{}", PREFIX + "x{}", PREFIX + "{}.old", PREFIX + "{}-2", PREFIX.upper() + "{}", PREFIX[:-1] + "x{}"),
)


@dataclass(slots=True)
class Job:
    """One job; times are UNIX seconds, it runs for ``seconds``."""

    number: int
    created: float
    seconds: float
    started: float = 0.0
    shown: bool = True
    """Whether its runner's instance shows it already; GitHub lists it first."""
    flavor: str = DEFAULT_FLAVOR


class Ledger:
    """What was to be in the metrics log, and what was. One byte a job and kind: level, however many there are."""

    def __init__(self) -> None:
        self.expected = {"runner_start": bytearray(MOST_JOBS), "runner_stop": bytearray(MOST_JOBS)}
        self.written = {"runner_start": bytearray(MOST_JOBS), "runner_stop": bytearray(MOST_JOBS)}
        self.missing: set[tuple[str, int]] = set()
        """Expected and not seen yet, as kind and number of a job."""
        self.offset = 0

    def expect(self, number: int, *kinds: str) -> None:
        """A job has left what these events are made of."""
        for kind in kinds:
            self.expected[kind][number] = 1
            self.missing.add((kind, number))

    def read(self) -> None:
        """Count the events that were written since the last time."""
        if not metrics.events.METRICS_LOG_PATH.exists():
            return
        with metrics.events.METRICS_LOG_PATH.open("rb") as log:
            log.seek(self.offset)
            for line in log:
                event = json.loads(line)
                if event["event"] in self.written:
                    number = int(event["workflow"].removeprefix("job "))
                    written = self.written[event["event"]]
                    written[number] = min(written[number] + 1, MOST_COUNTED)
                    self.missing.discard((event["event"], number))
            self.offset = log.tell()

    def rotate(self) -> None:
        """Once a day, as the charm's logrotate does: the old log goes."""
        self.read()
        metrics.events.METRICS_LOG_PATH.write_bytes(b"")
        self.offset = 0

    def figures(self) -> dict[str, int]:
        """How many events were to be written, were, were more than once, and were though nothing was left for them."""
        pairs = [
            (wanted, there)
            for kind, numbers in self.expected.items()
            for wanted, there in zip(numbers, self.written[kind], strict=True)
            if wanted or there
        ]
        return {
            "events_expected": sum(wanted for wanted, _ in pairs),
            "events_written": sum(bool(wanted and there) for wanted, there in pairs),
            "events_repeated": sum(max(0, there - 1) for _, there in pairs),
            "events_unexpected": sum(not wanted for wanted, _ in pairs),
        }


class Machine(FakeInstance):
    """An instance that runs nothing until its service is started, and tells the world when it ends."""

    lxd: "Lxd"

    def __init__(self, lxd: "Lxd", name: str, config: Mapping[str, str], virtual_machine: bool = False) -> None:
        super().__init__(lxd, name, config, virtual_machine)
        self.process = NONE
        self.files["/var/log/syslog"] = b"one line\n"

    def stop(self, timeout: int = 60, force: bool = False) -> None:
        super().stop(timeout, force)
        self.lxd.world.killed(self.name)

    def delete(self) -> None:
        super().delete()
        self.lxd.world.killed(self.name)

    def execute(self, command: Any, **options: Any) -> Execution:
        done = super().execute(command, **options)
        if list(command[:2]) == ["systemctl", "start"]:
            self.process = RUNNING
            self.lxd.world.hub.see(self.name, online=True)
        return done


class Lxd(FakeLxd):
    """LXD, with instances of others on the same machine."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self.world = world
        for name in OTHERS:
            self.found[name] = FakeInstance(self, name, OTHERS_KEYS)

    def create_instance(self, name: str, **options: Any) -> FakeInstance:
        super().create_instance(name, **options)
        self.found[name] = Machine(self, name, options["config"], options["virtual_machine"])
        self.found[name].profiles = list(options["profiles"])
        return self.found[name]

    def own_instances(self) -> list[FakeInstance]:
        """The unit's instances, by name."""
        return [self.found[name] for name in sorted(self.found) if name not in OTHERS]

    def others_are_whole(self) -> bool:
        """Whether nobody has touched what is not the unit's."""
        others = [self.found.get(name) for name in OTHERS]
        return not any(item is None or item.commands or item.config != OTHERS_KEYS or item.files for item in others)


class Client(GithubClient):
    """GitHub's real client as far as lists go, on pages that are made here."""

    def __init__(self, hub: "Organisation") -> None:
        super().__init__("https://github.example", Pat("secret"))
        self._hub = hub

    def _call(self, operation: Callable[..., Any], path: str, end: float = 0, **parameters: Any) -> Any:
        return self._hub.page(parameters["page"], parameters["per_page"])


class Organisation(Hub):
    """GitHub: the unit's runners in the middle of others'; ``down`` has what does not answer."""

    def __init__(self, world: "World", foreign: int) -> None:
        super().__init__()
        self._world = world
        self._foreign = [
            {
                "id": 10**9 + number,
                "name": FOREIGN[number % len(FOREIGN)].format(f"{number:016x}"),
                "status": "online" if number % 3 else "offline",
                "busy": number % 6 == 1,
            }
            for number in range(foreign)
        ]
        assert len({item["name"] for item in self._foreign}) == foreign

    def page(self, number: int, size: int) -> dict[str, Any]:
        """One page of the list, as GitHub's API has it; pages count from 1."""
        half = len(self._foreign) // 2
        known = sorted(self.runners.values(), key=lambda item: item.runner_id)
        own = [
            {"id": r.runner_id, "name": r.name, "status": "online" if r.online else "offline", "busy": r.busy}
            for r in known
        ]
        items = [*self._foreign[:half], *own, *self._foreign[half:]]
        return {"total_count": len(items), "runners": items[(number - 1) * size : number * size]}

    def see(self, name: str, **changes: bool) -> None:
        """How GitHub lists a runner from now on; nothing where it has no such runner."""
        if name in self.runners:
            self.runners[name] = replace(self.runners[name], **changes)  # type: ignore[arg-type]
            (self.busy.add if self.runners[name].busy else self.busy.discard)(self.runners[name].runner_id)

    def deregister(self, name: str) -> None:
        """A registration goes."""
        self.see(name, busy=False)
        self.runners.pop(name, None)

    def list_runners(self, path: GithubPath, wanted: Callable[[str], bool]) -> list[GithubRunner]:
        self.answers("list")
        found = Client(self).list_runners(path, wanted)
        self._world.listed()
        return found

    def delete_runner(self, path: GithubPath, runner_id: int) -> None:
        """Side by side with others of its kind, which the fake's own does not allow."""
        self.answers("delete")
        if runner_id in self.busy:
            raise RunnerBusyError(f"{runner_id} is busy")
        assert runner_id < 10**9, f"a foreign runner was deleted: {runner_id}"
        for name, found in list(self.runners.items()):
            if found.runner_id == runner_id:
                self.runners.pop(name, None)

    def job(self, repository: str, run_id: str, runner_name: str, timeout: float = 0) -> WorkflowJob:
        if "jobs" in self.down:
            raise TemporaryGithubError("GitHub does not answer")
        if runner_name not in self.jobs:
            raise JobNotFoundError(runner_name)
        return self.jobs.pop(runner_name)

    def answers(self, what: str) -> None:
        """GithubApiError while what is asked for is down."""
        if what in self.down:
            raise GithubApiError("GitHub does not answer")


class World:
    """Time, the jobs of an organisation, and the unit's runners as LXD and GitHub have them.

    Everything at random comes from ``seed``: the same one makes the same world.
    """

    def __init__(self, runners: int, foreign: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = START
        self.runners = runners
        self.lxd, self.hub = Lxd(self), Organisation(self, foreign)
        self.ledger = Ledger()
        self.started = bytearray(MOST_JOBS)
        self.queue: deque[Job] = deque()
        self.jobs: dict[str, Job] = {}
        """Those that run, by runner."""
        self.flavors: tuple[str, ...] = ()
        """What a job may ask for, in demand mode; one that is here twice is asked for twice as often."""
        self.sets: dict[str, int] = {}
        """The runner scale set of each flavour, in demand mode."""
        self.queued = self.run = self.cut = self.taken = 0
        self._ends: list[tuple[float, int, str]] = []
        self._unnoticed: list[str] = []
        self._arrival = START

    def idle(self) -> list[str]:
        """The runners that GitHub could give a job, by name."""
        ready = {item.name for item in self.lxd.own_instances() if item.running and item.process == RUNNING}
        return sorted(
            name for name, found in self.hub.runners.items() if found.online and not found.busy and name in ready
        )

    def advance(self, seconds: float) -> None:
        """Let time go by: jobs come and end, GitHub notices who is gone."""
        until = self.now + seconds
        for name in self._unnoticed:
            self.hub.see(name, online=False, busy=False)
        self._unnoticed.clear()
        while (moment := min(self._arrival, self._ends[0][0] if self._ends else math.inf)) <= until:
            self.now = moment
            if moment == self._arrival:
                self._arrive()
            else:
                _, number, name = heapq.heappop(self._ends)
                if name in self.jobs and self.jobs[name].number == number:
                    self._finish(name)
            self.assign()
        self.now = until

    def midnight(self) -> None:
        """The log is rotated, and GitHub deletes the jobs that nobody asked for."""
        self.ledger.rotate()
        self.hub.jobs = {name: job for name, job in self.hub.jobs.items() if name in self.jobs}

    def close(self) -> None:
        """No more jobs come."""
        self._arrival = math.inf

    def _arrive(self) -> None:
        """A job comes, and it is settled when the next one will."""
        rate = self.runners * JOBS[int(self.now % DAY / HOUR)] / HOUR
        self._arrival = self.now + self.chance.expovariate(rate)
        seconds = SHORTEST * (LONGEST / SHORTEST) ** self.chance.random()
        flavor = self.chance.choice(self.flavors) if self.flavors else DEFAULT_FLAVOR
        self.queue.append(Job(self.queued, self.now, seconds, flavor=flavor))
        self.queued += 1

    def assign(self, shown: bool = True) -> None:
        """GitHub gives waiting jobs to idle runners."""
        idle = self.idle() if self.queue and "list" not in self.hub.down else []
        for job in tuple(self.queue) if idle else ():
            fitting = [name for name in idle if self._takes(name, job)]
            if not fitting:
                continue
            name = fitting[self.chance.randrange(len(fitting))]
            idle.remove(name)
            self.queue.remove(job)
            self._begin(name, job, shown)

    def _takes(self, name: str, job: Job) -> bool:
        """Whether a runner is of the job's flavour, and of its set. One of the fallback is of none."""
        config = self.lxd.found[name].config
        scale_set = config.get(SCALE_SET_KEY)
        return config[FLAVOR_KEY] == job.flavor and scale_set in (None, str(self.sets.get(job.flavor)))

    def _begin(self, name: str, job: Job, shown: bool) -> None:
        self.jobs[name] = replace(job, started=self.now, shown=True)
        self.started[job.number] = min(self.started[job.number] + 1, MOST_COUNTED)
        self.hub.see(name, busy=True)
        heapq.heappush(self._ends, (self.now + job.seconds, job.number, name))
        if shown or self.chance.random() < 0.5:
            self._show(name)
        else:
            self.jobs[name].shown = False

    def listed(self) -> None:
        """GitHub has answered with its list: what comes now, a reconcile does not know."""
        if self._arrival < self.now + SOON and self.chance.random() < 0.5:
            self._arrive()
            before = len(self.jobs)
            self.assign(shown=False)
            self.taken += len(self.jobs) - before

    def reconcile_ended(self) -> None:
        """A reconcile is over: every instance shows its job."""
        for name, job in self.jobs.items():
            if not job.shown:
                job.shown = True
                self._show(name)
        self.assign()

    def _show(self, name: str) -> None:
        job = self.jobs[name]
        self.lxd.found[name].process = WORKER
        started = datetime.fromtimestamp(job.started, timezone.utc)
        self.hub.jobs[name] = WorkflowJob(datetime.fromtimestamp(job.created, timezone.utc), started, "success")
        pre_job = {"workflow": f"job {job.number}", "workflow_run_id": str(job.number), "event": "push"}
        self._write(name, PRE_JOB_METRICS_FILE_NAME, **pre_job, repository="octo-org/demo")

    def _write(self, name: str, file: str, **content: str) -> None:
        folder = metrics.storage.FILESYSTEM_BASE_PATH / name
        (folder / file).write_text(json.dumps({"timestamp": self.now, **content}))

    def _finish(self, name: str) -> None:
        """End a job and its runner. In one of ten cases, and while GitHub is down, GitHub only notices later."""
        job = self.jobs.pop(name)
        self._write(name, POST_JOB_METRICS_FILE_NAME, status="normal")
        self.ledger.expect(job.number, "runner_start", "runner_stop")
        self.run += 1
        self._vanish(name)
        if self.hub.down or self.chance.random() < 0.1:
            self._unnoticed.append(name)
        else:
            self.hub.deregister(name)

    def _vanish(self, name: str) -> None:
        self.lxd.found.pop(name).running = False

    def killed(self, name: str) -> None:
        """The charm has ended a runner: a job that it ran comes back to the queue, and is run twice."""
        job = self.jobs.pop(name, None)
        if job is not None:
            self.queue.appendleft(job)
            self._unnoticed.append(name)

    def _end(self, name: str) -> None:
        """A runner is lost, and its job with it; GitHub may know at once, in part, or later."""
        job = self.jobs.pop(name, None)
        if job is not None:
            self.ledger.expect(job.number, "runner_start")
            self.cut += 1
        notice = self.chance.randrange(3)
        if notice:
            busy = bool(notice == 1 and name in self.hub.runners and self.hub.runners[name].busy)
            self.hub.see(name, online=False, busy=busy)
        self._unnoticed.append(name)

    def crash(self) -> None:
        """One runner: its agent dies, its instance goes, it loses GitHub, or GitHub loses it."""
        idle = self.idle()
        names = sorted({*idle, *self.jobs})
        if not names:
            return
        name = self.chance.choice(names)
        kind = self.chance.choice(["agent", "instance", *(["offline", "deregistered"] if name in idle else [])])
        if kind == "agent":
            self.lxd.found[name].process = NONE
            self._end(name)
        elif kind == "instance":
            self._vanish(name)
            self._end(name)
        elif kind == "offline":
            self.hub.see(name, online=False)
        else:
            self.hub.deregister(name)

    def reboot(self) -> None:
        """The machine: what LXD stopped in order is gone, after a loss of power all instances are there and stopped."""
        in_order = self.chance.random() < 0.5
        for item in self.lxd.own_instances():
            item.running, item.process = False, NONE
            if in_order:
                self._vanish(item.name)
            self._end(item.name)

    def cut_off(self, after: int) -> None:
        """The machine dies at the nth change of LXD from now on."""
        left = [after]

        def count(name: str) -> bool:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return False

        self.lxd.faults = dict.fromkeys(("create", "start", "begin", "write", "stop", "set_config"), count)
