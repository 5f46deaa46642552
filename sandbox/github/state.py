"""What the stand-in for GitHub stores: paths, tokens, rate limits, runners and jobs, and GitHub's rules about them."""

import fnmatch
import hashlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.github import runner_tarball
from sandbox.github.action_repositories import ActionRepositories
from sandbox.github.apps import Apps
from sandbox.github.errors import RefusedError
from sandbox.github.scale_sets import ScaleSets

HOUR = 3600.0
UNAUTHENTICATED_LIMIT = 60
# Registrations have limits of their own: of each credential in an hour, and of each repository or organisation in five
# minutes (https://docs.github.com/en/actions/reference/limits).
REGISTRATION_RESOURCE, REGISTRATION_LIMIT = "actions_runner_registration", 10_000
PLACE_LIMIT, PLACE_PERIOD = 1500, 300.0
READ_ONLY_LABELS = {"self-hosted", "linux", "x64", "arm64"}


@dataclass
class Settings:
    """Times and limits; the defaults are GitHub's own or near them."""

    grace: float = 10.0  # a runner that has not asked for a job for so long is offline
    lost_job: float = 570.0  # so long after the last request of its runner a job fails; 9.5 minutes were seen
    poll: float = 5.0  # so long a runner's question for a job stays open
    linger: float = 1.0  # so long GitHub still lists an ephemeral runner, busy, after its job
    interrupt: float = 7.5  # so long the runner agent lets a step handle SIGINT before it sends SIGTERM
    keep_lost: float = 24 * HOUR  # so long an ephemeral runner that is not connected stays listed, as offline
    token_life: float = HOUR
    installation_token_life: float = HOUR  # of a GitHub App's token
    stateless_tokens: bool = True  # whether such a token has the long form with dots, or 40 characters
    clock_ahead: float = 0.0  # so far is GitHub's clock ahead of the machine's, or behind it if below 0
    enterprise_version: str = "3.21.0"  # of GitHub Enterprise Server; empty for GitHub.com
    rate_limit: int = 5000
    admin_token_life: float = 1020.0  # of the service's token for a client of scale sets; 17 minutes were seen
    queue_token_life: float = HOUR
    session_life: float = 50.0  # so long after its last request a session of a scale set ends
    hold: float = 50.0  # so long a request for a scale set's messages stays open
    assign_after: float = 1.0  # until a job comes to a scale set that listens
    reassign_after: float = 300.0  # until a job for which no runner came is queued again
    drop_labels: list[str] = field(default_factory=list)  # which new scale sets do not get, as if unknown to the server
    queue_in_query: bool = True  # whether the address of a session's queue has a query, or only a path
    points_a_minute: int = 900  # secondary limit: a GET counts 1, everything else 5


@dataclass
class Token:
    """A personal access token: patterns of the paths it manages, and of those it merely sees."""

    token: str
    manages: list[str] = field(default_factory=lambda: ["*"])
    sees: list[str] = field(default_factory=list)
    sso: list[str] = field(default_factory=list)  # organisations for whose single sign-on it is not authorized
    refusal = "Resource not accessible by personal access token"

    @property
    def budget(self) -> str:
        """The key of its limit of requests, which is its own here; at GitHub a user's tokens share one."""
        return f"token {self.token}"

    @property
    def who(self) -> str:
        return f"user ID {int(hashlib.sha256(self.token.encode()).hexdigest()[:7], 16)}"

    def needs_sso(self, path: str) -> bool:
        return path.partition("/")[0].lower() in (name.lower() for name in self.sso)

    def may_manage(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(path.lower(), pattern.lower()) for pattern in self.manages)

    def may_see(self, path: str) -> bool:
        return self.may_manage(path) or any(fnmatch.fnmatchcase(path.lower(), p.lower()) for p in self.sees)

    def may_use(self, path: str, permission: str) -> bool:
        """Whether it has the permission (``name=level``); whoever sees a repository may read what is not of runners."""
        return self.may_manage(path) or permission in ("metadata=read", "actions=read")


@dataclass
class Budget:
    """The requests that one token, or one address without a token, may still send."""

    limit: int
    reset: float
    used: int = 0
    resource: str = "core"
    recent: deque[tuple[float, int]] = field(default_factory=deque)  # (when, points) of the last minute
    refuse_until: float = 0.0
    refuse_status: int = 403
    refuse_header: bool = True  # the secondary limit does not always say how long to wait


@dataclass
class Runner:
    """A registered runner."""

    id: int
    path: str
    name: str
    labels: list[dict[str, Any]]
    group: str = "Default"
    os: str = "unknown"
    ephemeral: bool = True
    version: str = ""
    secret: str = field(default_factory=lambda: secrets.token_hex(32))
    session: str | None = None
    seen: float = 0.0  # when its session last asked for a message
    registered: float = field(default_factory=time.monotonic)
    job: int | None = None
    lost: bool = False  # it vanished in its job: it stays listed, and its credentials are over
    removed_at: float | None = None  # GitHub deletes an ephemeral runner a moment after its job
    scale_set: int | None = None
    told_update: str = ""  # the version that it was told to install
    fixed_status: str | None = None
    fixed_busy: bool | None = None

    @property
    def busy(self) -> bool:
        return self.job is not None if self.fixed_busy is None else self.fixed_busy


@dataclass
class Job:
    """A job of a workflow run: `steps`, each with `run`, `if` and `pre`, or one step that is a command."""

    id: int
    run_id: int
    repository: str
    command: str
    name: str
    labels: list[str]
    workflow: str
    event: str
    created_at: float
    run_attempt: int = 1
    status: str = "queued"
    conclusion: str | None = None
    started_at: float | None = None
    completed_at: float | None = None
    runner_id: int | None = None
    runner_name: str | None = None
    runner_group: str | None = None
    cancel: bool = False
    told_cancel: bool = False
    payload: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    acquire_status: int | None = None  # the runner that is offered the job cannot have it: 404 or 409
    scale_set: int | None = None  # that has to provide a runner for it
    assigned_at: float = 0.0
    assignments: int = 0
    missed: set[int] = field(default_factory=set)  # scale sets that it never comes to
    head_branch: str = "main"
    debug: bool = False  # whether debug logging of steps is on (the secret ACTIONS_STEP_DEBUG)
    log: list[str] = field(default_factory=list)
    secret: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def head_sha(self) -> str:
        return hashlib.sha1(f"{self.repository}#{self.run_id}".encode()).hexdigest()


@dataclass
class RunnerBinary:
    """The runner binary that is offered for download."""

    version: str = "2.336.0"
    checksum: str | None = None  # a wrong one, for tests
    minimum_version: str | None = None
    minimum_registration: str = "2.329.0"
    deprecations: bool = True  # whether the server has the endpoint for them; older Enterprise Servers have not
    download_token: str | None = None  # what a download needs, as at an Enterprise Server without the internet
    self_update: str | None = None  # runners below this version are told to install it
    offered: set[str] = field(default_factory=set)


class State:
    """Everything, guarded by one lock that is also the condition which waiting requests watch."""

    def __init__(self, settings: Settings | None = None, clock: Callable[[], float] = time.time) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.settings = settings or Settings()
        self._clock = clock
        self.closing = False
        self.repositories: dict[str, int] = {}
        self.organisations: dict[str, list[str]] = {}
        self.moved: dict[str, str] = {}  # names that repositories had before (lower case)
        self.tokens: dict[str, Token] = {}
        self.apps = Apps(self.clock, lambda: self.settings.enterprise_version)
        self.actions = ActionRepositories()
        self.budgets: dict[str, Budget] = {}
        self.runner_tokens: dict[str, tuple[str, str, float]] = {}  # token: kind, path, end of life
        self.runners: dict[int, Runner] = {}
        self.deregistered: dict[int, Runner] = {}  # not registered any more, but still polling
        self.jobs: dict[int, Job] = {}
        self.scale_sets = ScaleSets(self)
        self.runner_binary = RunnerBinary()
        self.runner_binary.offered.add(self.runner_binary.version)
        self._numbers: dict[str, int] = {
            "runner": 0,
            "job": 40_000_000_000,
            "run": 16_000_000_000,
            "label": 3,
            "set": 41,
        }
        self._label_ids = {"self-hosted": 1, "linux": 2, "x64": 3}
        self._id_base = 1_000_000

    def clock(self) -> float:
        """GitHub's time, in seconds since 1970."""
        return self._clock() + self.settings.clock_ahead

    def number(self, kind: str) -> int:
        """The next id of its kind."""
        self._numbers[kind] += 1
        return self._numbers[kind]

    # Paths ----------------------------------------------------------------------------------------------------------

    def add_repository(self, repository: str) -> None:
        owner, _, name = repository.partition("/")
        if not owner or not name or "/" in name:
            raise RefusedError(422, f"{repository} is not of the form owner/name")
        if self.find_path(repository) is None:
            self._id_base += 1
            self.repositories[repository] = self._id_base

    def rename_repository(self, old: str, new: str) -> None:
        """Rename or move a repository: the old name leads to it, and its runners and jobs go with it."""
        place = self.find_path(old)
        if place is None or "/" not in place or self.find_path(new) is not None:
            raise RefusedError(422, f"{old} cannot become {new}")
        self.add_repository(new)
        self.repositories[new] = self.repositories.pop(place)
        self.moved[place.lower()] = new
        self.apps.rename(place, new)
        for runner in self.runners.values():
            runner.path = new if runner.path == place else runner.path
        for job in self.jobs.values():
            job.repository = new if job.repository == place else job.repository
        for each in self.scale_sets.sets.values():
            each.path = new if each.path == place else each.path
        self.runner_tokens = {
            token: (kind, new if path == place else path, end)
            for token, (kind, path, end) in self.runner_tokens.items()
        }

    def add_organisation(self, organisation: str, groups: list[str] | None = None) -> None:
        known = self.organisations.setdefault(organisation, ["Default"])
        known.extend(group for group in groups or [] if group not in known)

    def find_path(self, path: str) -> str | None:
        """The path in its own spelling: GitHub ignores the case of owners and repositories."""
        places = self.repositories if "/" in path else self.organisations
        return next((place for place in places if place.lower() == path.lower()), None)

    def groups(self, path: str) -> list[str]:
        """The runner groups of an organisation; a repository has only the default one."""
        return self.organisations.get(path, ["Default"])

    # Runners --------------------------------------------------------------------------------------------------------

    def online(self, runner: Runner) -> bool:
        """Whether the runner's session asks for jobs; registering alone does not bring a runner online."""
        if runner.fixed_status is not None:
            return runner.fixed_status == "online"
        if runner.removed_at is not None or runner.lost or runner.session is None:
            return False
        return time.monotonic() - runner.seen < self.settings.grace

    def runners_of(self, path: str, name: str | None = None) -> list[Runner]:
        """The runners of exactly this path, in the order of their ids."""
        self.sweep()
        return [r for r in self.runners.values() if r.path == path and (name is None or r.name == name)]

    def runner(self, path: str | None, runner_id: int) -> Runner:
        self.sweep()
        runner = self.runners.get(runner_id)
        if runner is None or path not in (None, runner.path):
            raise RefusedError(404, "Not Found")
        return runner

    def runner_named(self, path: str, name: str) -> Runner | None:
        """The runner of this path whose name it is; names differ by more than case."""
        return next((each for each in self.runners_of(path) if each.name.lower() == name.lower()), None)

    def make_labels(self, names: list[str]) -> list[dict[str, Any]]:
        """Label documents; a label has one id wherever it is used, and names differ by more than case."""
        labels: dict[str, dict[str, Any]] = {}
        for name in names:
            key = name.lower()
            if key not in self._label_ids:
                self._label_ids[key] = self.number("label")
            kind = "read-only" if key in READ_ONLY_LABELS else "custom"
            labels.setdefault(key, {"id": self._label_ids[key], "name": name, "type": kind})
        return list(labels.values())

    def add_runner(self, path: str, name: str, labels: list[str], **more: object) -> Runner:
        runner = Runner(self.number("runner"), path, name, self.make_labels(labels), **more)  # type: ignore[arg-type]
        self.runners[runner.id] = runner
        self.lock.notify_all()
        return runner

    def delete_runner(self, runner: Runner) -> None:
        """Deregister, as the API and `config.sh remove` do: never while a job runs."""
        if runner.busy:
            raise RefusedError(422, f"Runner {runner.name} is currently running a job and cannot be deleted.")
        self.drop_runner(runner)

    def drop_runner(self, runner: Runner) -> None:
        self.runners.pop(runner.id, None)
        self.lock.notify_all()

    def sweep(self) -> None:
        """Let happen what time alone brings about: lost runners fail their jobs, ephemeral ones go."""
        now = time.monotonic()
        for runner in list(self.runners.values()):
            ended = runner.removed_at is not None and now >= runner.removed_at
            if ended or (runner.job is None and self._is_outlived(runner, now)):
                self.drop_runner(runner)
            elif runner.job is not None and runner.removed_at is None and now - runner.seen >= self.settings.lost_job:
                self.jobs[runner.job].log.append(
                    f"##[error]The self-hosted runner: {runner.name} lost communication with the server."
                )
                self.complete_job(self.jobs[runner.job], "failure", lost=True)

    def _is_outlived(self, runner: Runner, now: float) -> bool:
        """Whether an ephemeral runner, also one that never connected, was away for so long that GitHub removes it."""
        if runner.fixed_status is not None or not runner.ephemeral or self.online(runner):
            return False
        return now - max(runner.seen, runner.registered) >= self.settings.keep_lost

    # Tokens with which runners register -----------------------------------------------------------------------------

    def make_runner_token(self, kind: str, path: str) -> tuple[str, float]:
        token = "A" + "".join(secrets.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") for _ in range(28))
        end = self.clock() + self.settings.token_life
        self.runner_tokens[token] = (kind, path, end)
        return token, end

    def check_runner_token(self, kind: str, path: str | None, token: str) -> str:
        """The path that the token is for; GitHub answers 404 to a bad, an outlived or another path's token."""
        known_kind, known_path, end = self.runner_tokens.get(token, ("", "", 0.0))
        if known_kind != kind or self.clock() >= end or (path is not None and known_path != path):
            raise RefusedError(404, "Not Found")
        return known_path

    # Jobs -----------------------------------------------------------------------------------------------------------

    def add_job(self, repository: str, command: str, **more: object) -> Job:
        place = self.find_path(repository)
        if place is None or "/" not in repository:
            raise RefusedError(422, f"there is no repository {repository}")
        values: dict[str, Any] = {"name": "build", "labels": ["self-hosted"], "workflow": "CI", "event": "push"}
        values.update({key: value for key, value in more.items() if value is not None})
        values.setdefault("run_id", 0)
        values["run_id"] = values["run_id"] or self.number("run")
        values.setdefault("created_at", self.clock())
        job = Job(self.number("job"), repository=place, command=command, **values)
        self.jobs[job.id] = job
        self.lock.notify_all()
        return job

    def take_job(self, runner: Runner) -> Job | None:
        """Give the oldest fitting job to a runner that asks: one of its scale set, or one of none."""
        self.scale_sets.update()
        have = {label["name"].lower() for label in runner.labels}
        for job in self.jobs.values():
            mine = runner.path in (job.repository, job.repository.partition("/")[0])
            fits = runner.scale_set is not None or {label.lower() for label in job.labels} <= have
            if job.status == "queued" and mine and job.scale_set == runner.scale_set and fits:
                job.status, job.started_at = "in_progress", self.clock()
                job.runner_id, job.runner_name, job.runner_group = runner.id, runner.name, runner.group
                runner.job = job.id
                self.scale_sets.started(job, runner)
                self.lock.notify_all()
                return job
        return None

    def complete_job(self, job: Job, conclusion: str, linger: bool = True, lost: bool = False) -> None:
        """End a job; its ephemeral runner goes with it, after a moment in which GitHub still calls it busy.

        A lost runner stays listed as offline, until it is deleted or `keep_lost` is over.
        """
        if job.status == "completed":
            return
        job.status, job.conclusion, job.completed_at = "completed", conclusion, self.clock()
        self.scale_sets.completed(job)
        runner = self.runners.get(job.runner_id or 0)
        if runner and runner.job == job.id:
            if not runner.ephemeral or lost:
                runner.job, runner.lost = None, runner.ephemeral
            elif linger and self.settings.linger:
                runner.removed_at = time.monotonic() + self.settings.linger
            else:
                self.drop_runner(runner)
        self.lock.notify_all()

    def cancel_job(self, job: Job) -> None:
        """Cancel: at once while it waits, through its runner while it runs."""
        job.cancel = True
        if job.status == "queued":
            self.complete_job(job, "cancelled")
        self.lock.notify_all()

    # Who asks, and how often ----------------------------------------------------------------------------------------

    def budget(self, key: str, limit: int, resource: str = "core", period: float = HOUR) -> Budget:
        """The current budget of a token, address or path; `resource` is GitHub's name for what it counts."""
        now = self.clock()
        budget = self.budgets.get(key)
        if budget is None or now >= budget.reset:
            refuse = (budget.refuse_until, budget.refuse_status, budget.refuse_header) if budget else (0.0, 403, True)
            recent = budget.recent if budget else deque()
            budget = self.budgets[key] = Budget(limit, now + period, 0, resource, recent, *refuse)
        return budget

    def registrations(self, place: str) -> Budget:
        """What is left for registering runners at a repository or organisation, whoever does it."""
        return self.budget(f"registrations at {place.lower()}", PLACE_LIMIT, REGISTRATION_RESOURCE, PLACE_PERIOD)

    def spend(self, budget: Budget, points: int, who: str) -> None:
        """Count one request, or refuse it as GitHub does when one of the two limits is reached."""
        now = self.clock()
        while budget.recent and now - budget.recent[0][0] >= 60:
            budget.recent.popleft()
        if budget.used >= budget.limit:
            raise RefusedError(403, f"API rate limit exceeded for {who}.", documentation="rate-limiting")
        budget.used += 1
        if sum(spent for _, spent in budget.recent) + points > self.settings.points_a_minute:
            budget.refuse_until, budget.refuse_status = max(budget.refuse_until, now + 60), 403
            budget.recent.clear()
        if now < budget.refuse_until:
            wait = {"Retry-After": str(max(1, round(budget.refuse_until - now)))} if budget.refuse_header else {}
            message = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
            raise RefusedError(budget.refuse_status, message, wait, documentation="secondary-rate-limits")
        budget.recent.append((now, points))

    # The runner binary ------------------------------------------------------------------------------------------------

    def tarball(self, version: str, architecture: str) -> bytes:
        if version not in self.runner_binary.offered or architecture not in ("x64", "arm64"):
            raise RefusedError(404, "Not Found")
        return runner_tarball.build(version, architecture, self.settings.interrupt)
