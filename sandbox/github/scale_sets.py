"""Runner scale sets: which jobs a set has to provide runners for, and the messages that tell its client of them.

GitHub publishes no description of them. The contract is its own client: https://github.com/actions/scaleset
"""

import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sandbox.github.errors import RefusedError
from sandbox.github.forms import instant, version_parts

if TYPE_CHECKING:
    from sandbox.github.state import Job, Runner, State

FIRST_MESSAGE = 100_000_001
MOST_ENTRIES = 50
MOST_ASSIGNMENTS = 3
NO_TIME = "0001-01-01T00:00:00Z"
RESULTS = {"success": "succeeded", "failure": "failed", "cancelled": "canceled"}
FIRST_VERSION, FIRST_WITH_LABELS = [3, 9], [3, 21]  # of GitHub Enterprise Server


class ServiceRefusedError(RefusedError):
    """A refusal in the service's own form, by the name of its exception."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(status, message)
        self.kind = kind


@dataclass
class Session:
    """The one client of a set."""

    owner: str
    token_ends: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    token: str = field(default_factory=lambda: f"eyJ{secrets.token_urlsafe(24)}")
    seen: float = field(default_factory=time.monotonic)
    polling: int = 0  # requests for messages that are open


@dataclass
class Message:
    """Up to 50 entries, kept until the client deletes it; the statistics are those of its time."""

    id: int
    entries: list[dict[str, Any]]
    statistics: dict[str, int]


@dataclass
class ScaleSet:
    """A set of a repository or an organisation."""

    id: int
    path: str
    name: str
    group: int
    labels: list[str]
    setting: dict[str, Any]
    created_at: float
    capacity: int | None = None  # what its client has announced
    heard_at: float = 0.0  # when it did so first in this session
    session: Session | None = None
    messages: list[Message] = field(default_factory=list)
    news: list[dict[str, Any]] = field(default_factory=list)
    next_message: int = FIRST_MESSAGE
    available: set[int] = field(default_factory=set)  # jobs that may be acquired, of an Enterprise Server

    def takes(self, job: "Job") -> bool:
        """Whether its labels, its name among them, are all that a job asks for."""
        mine = self.path in (job.repository, job.repository.partition("/")[0])
        return mine and {label.lower() for label in job.labels} <= {label.lower() for label in self.labels}


class ScaleSets:
    """All sets, and the rules by which jobs come to them. Used under the lock of the state."""

    def __init__(self, state: "State") -> None:
        self._state = state
        self.sets: dict[int, ScaleSet] = {}

    # Sets and sessions ----------------------------------------------------------------------------------------------

    def of(self, path: str, number: int) -> ScaleSet:
        """The set of this number and path, with everything that time has brought about."""
        self.update()
        found = self.sets.get(number)
        if found is None or found.path != path:
            raise not_found(number)
        return found

    def create(self, path: str, name: str, group: int, labels: list[str], setting: dict[str, Any]) -> ScaleSet:
        self.check_free(path, name, group)
        labels = list(dict.fromkeys(labels or [name]))
        # Older Enterprise Servers drop the others without a word.
        labels = labels if self._at_least(FIRST_WITH_LABELS) else labels[:1]
        unwanted = {label.lower() for label in self._state.settings.drop_labels}
        labels = [label for label in labels if label.lower() not in unwanted]
        number, now = self._state.number("set"), self._state.clock()
        self.sets[number] = ScaleSet(number, path, name, group, labels, setting, now)
        return self.sets[number]

    def check_free(self, path: str, name: str, group: int, but: ScaleSet | None = None) -> None:
        """Refuse a name that a set of the path and group has, if it is not this one."""
        for each in self.sets.values():
            if each is not but and (each.path, each.group, each.name) == (path, group, name):
                message = f"A runner scale set with the name {name} exists in the group {group}."
                raise ServiceRefusedError(400, "RunnerScaleSetExistsException", message)

    def delete(self, found: ScaleSet) -> None:
        """Its jobs are queued again, and its idle runners go; busy ones finish."""
        self.sets.pop(found.id)
        for job in self._assigned(found):
            if job.status == "queued":
                job.scale_set = None
        for runner in self._runners(found):
            if not runner.busy:
                self._state.drop_runner(runner)
        self._state.lock.notify_all()

    def open(self, found: ScaleSet, owner: str) -> Session:
        if found.session is not None:
            message = (
                f"The runner scale set {found.name} already has an active session for owner {found.session.owner}."
            )
            raise ServiceRefusedError(409, "RunnerScaleSetSessionConflictException", message)
        found.session = Session(owner, self._state.clock() + self._state.settings.queue_token_life)
        found.capacity = None
        return found.session

    def session(self, number: str) -> tuple[ScaleSet, Session]:
        """The set and session of a session's number."""
        self.update()
        for each in self.sets.values():
            if each.session is not None and each.session.id == number:
                return each, each.session
        raise ServiceRefusedError(404, "RunnerScaleSetSessionNotFoundException", f"There is no session {number}.")

    def close(self, found: ScaleSet) -> None:
        found.session, found.capacity = None, None

    def _at_least(self, version: list[int]) -> bool:
        server = self._state.settings.enterprise_version
        return not server or version_parts(server) >= version

    @property
    def are_offered(self) -> bool:
        """Whether this server has scale sets at all."""
        return self._at_least(FIRST_VERSION)

    @property
    def acquires(self) -> bool:
        """Whether clients take jobs themselves, as at an Enterprise Server."""
        return bool(self._state.settings.enterprise_version)

    # Jobs -----------------------------------------------------------------------------------------------------------

    def update(self) -> None:
        """What time and waiting jobs bring about."""
        for each in self.sets.values():
            session = each.session
            ended = session is not None and not session.polling
            if ended and time.monotonic() - session.seen >= self._state.settings.session_life:  # type: ignore[union-attr]
                self.close(each)
        for job in self._state.jobs.values():
            if job.status == "queued":
                self._give_back(job)
            if job.status == "queued" and job.scale_set is None:
                self._offer(job)

    def _give_back(self, job: "Job") -> None:
        """A job for which no runner came in time is over for its set, and queued again, up to three times."""
        found = self.sets.get(job.scale_set or 0)
        late = self._state.clock() - job.assigned_at >= self._state.settings.reassign_after
        if found is not None and late and job.assignments <= MOST_ASSIGNMENTS:
            job.scale_set = None
            self._tell(found, job, "JobCompleted", result="canceled", runnerId=0, runnerName="")

    def _offer(self, job: "Job") -> None:
        listening = [each for each in self.sets.values() if each.capacity is not None and each.takes(job)]
        # A job that is queued while a client announces 0 never comes to its set.
        job.missed |= {each.id for each in listening if each.capacity == 0}
        now, wait = self._state.clock(), self._state.settings.assign_after
        room = {
            each.id: (each.capacity or 0) - len(self._assigned(each))
            for each in listening
            if each.id not in job.missed and now - max(job.created_at, each.heard_at) >= wait
        }
        if not room or job.assignments > MOST_ASSIGNMENTS:
            return
        if self.acquires:
            for number in room:
                self._make_available(self.sets[number], job)
            return
        # Sets with a common label are filled by the room that they announce.
        number = max(room, key=lambda each: (room[each], -each))
        if room[number] > 0:
            self.assign(self.sets[number], job)

    def _make_available(self, found: ScaleSet, job: "Job") -> None:
        if job.id not in found.available:
            found.available.add(job.id)
            self._tell(found, job, "JobAvailable", acquireJobUrl="")

    def acquirable(self, found: ScaleSet) -> list[int]:
        """The jobs that are offered to a set, and that nobody has acquired."""
        jobs = [self._state.jobs[number] for number in sorted(found.available)]
        return [job.id for job in jobs if job.status == "queued" and job.scale_set is None]

    def acquire(self, found: ScaleSet, numbers: list[int]) -> list[int]:
        """Those of the jobs that are still available; they are the set's now."""
        jobs = [self._state.jobs[number] for number in numbers if number in found.available]
        had = [job for job in jobs if job.status == "queued" and job.scale_set is None]
        for job in had:
            self.assign(found, job)
        return [job.id for job in had]

    def assign(self, found: ScaleSet, job: "Job") -> None:
        job.scale_set, job.assigned_at = found.id, self._state.clock()
        job.assignments += 1
        for each in self.sets.values():
            each.available.discard(job.id)
        self._tell(found, job, "JobAssigned")
        self._state.lock.notify_all()

    def started(self, job: "Job", runner: "Runner") -> None:
        """A runner of the set has taken a job."""
        found = self.sets.get(job.scale_set or 0)
        if found is not None:
            self._tell(found, job, "JobStarted", runnerId=runner.id, runnerName=runner.name)

    def completed(self, job: "Job") -> None:
        """A job of a set is over, also one that never ran."""
        for each in self.sets.values():
            each.available.discard(job.id)
        found = self.sets.get(job.scale_set or 0)
        if found is not None:
            result = RESULTS.get(str(job.conclusion), str(job.conclusion))
            who = {"runnerId": job.runner_id or 0, "runnerName": job.runner_name or ""}
            self._tell(found, job, "JobCompleted", result=result, **who)

    def _assigned(self, found: ScaleSet) -> list["Job"]:
        return [job for job in self._state.jobs.values() if job.scale_set == found.id and job.status != "completed"]

    def _runners(self, found: ScaleSet) -> list["Runner"]:
        return [each for each in self._state.runners.values() if each.scale_set == found.id]

    # Messages -------------------------------------------------------------------------------------------------------

    def _tell(self, found: ScaleSet, job: "Job", kind: str, **more: Any) -> None:
        found.news.append({**self._entry(job, kind), **more})
        self._state.lock.notify_all()

    def _entry(self, job: "Job", kind: str) -> dict[str, Any]:
        owner, _, name = job.repository.partition("/")
        entry = {
            "messageType": kind,
            "runnerRequestId": job.id if self.acquires else 0,
            "jobId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"job {job.id}")),
            "ownerName": owner,
            "repositoryName": name,
            "jobWorkflowRef": f"{job.repository}/.github/workflows/ci.yml@refs/heads/{job.head_branch}",
            "jobDisplayName": job.name,
            "workflowRunId": job.run_id,
            "eventName": job.event,
            "requestLabels": job.labels,
        }
        times = {"scaleSetAssignTime": job.assigned_at or None}
        if kind in ("JobStarted", "JobCompleted"):
            times.update(queueTime=job.created_at, runnerAssignTime=job.started_at, finishTime=job.completed_at)
        return {**entry, **{key: instant(value) or NO_TIME for key, value in times.items()}}

    def statistics(self, found: ScaleSet) -> dict[str, int]:
        """The numbers that a client makes runners by."""
        assigned, runners = self._assigned(found), self._runners(found)
        waiting = [job for job in assigned if job.status == "queued"]
        busy = [each for each in runners if each.busy]
        idle = [each for each in runners if not each.busy and self._state.online(each)]
        return {
            "totalAvailableJobs": len(found.available),
            "totalAcquiredJobs": len(waiting) if self.acquires else 0,
            "totalAssignedJobs": len(assigned),
            "totalRunningJobs": len(assigned) - len(waiting),
            "totalRegisteredRunners": len(runners),
            "totalBusyRunners": len(busy),
            "totalIdleRunners": len(idle),
        }

    def next_message(self, found: ScaleSet, after: int) -> Message | None:
        """The first kept message beyond a number; what is new becomes messages."""
        while found.news:
            entries, found.news = found.news[:MOST_ENTRIES], found.news[MOST_ENTRIES:]
            found.messages.append(Message(found.next_message, entries, self.statistics(found)))
            found.next_message += 1
        return next((message for message in found.messages if message.id > after), None)


def not_found(number: int | str) -> ServiceRefusedError:
    """The service knows no such set."""
    return ServiceRefusedError(404, "RunnerScaleSetNotFoundException", f"No runner scale set found with id {number}.")
