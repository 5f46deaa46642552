"""The sessions of a unit's runner scale sets, one for each flavour: they turn GitHub's statistics into demand.

Nothing else that the agent writes (docs/reference/files.md) decides how many runners there are to be: a new session
after any end gives the same numbers.
"""

import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, NamedTuple

import agent_settings
import demand
import telemetry
from agent_settings import AgentFlavor, AgentSettings
from demand import Demand
from errors import GithubClientError, HostError, RateLimitError, TokenError
from gh.auth import HandedToken, Pat
from gh.client import GithubClient
from gh.errors import StatusError
from gh.queued_jobs import Runs
from gh.scale_set_answers import Job, ScaleSet, Statistics
from gh.scale_sets import Listener, ScaleSetClient, SessionConflictError, SessionEndedError, SetGoneError
from host.markers import LEAVING, LIST_DUE, Markers
from known_jobs import KnownJobs
from models import GithubOrg, GithubRepo
from programs import missed_jobs
from programs.missed_jobs import Reported, Target
from redaction import redact
from unlisted import PICK_UP

logger = logging.getLogger(__name__)

# Seconds. After an error the pause doubles from the shortest to the longest.
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
# A killed process's session ends after some 50 seconds: until then a conflict is no problem.
CONFLICT_PATIENCE = 120.0
# How often the settings are looked at.
RELOAD = 2.0
# Of the token: when less is left, a reconcile is started, which writes a new one, and again after the pause.
RENEW_BEFORE, RENEW_PAUSE = 600.0, 120.0
# GitHub queues a job for which no runner came again after 5 minutes. An assignment says nothing after twice that:
# GitHub's clock may differ, and its messages may be late.
ASSIGNMENT_LIFE = 600.0
# So long a job may wait for a runner until the unit announces 1: more than one wait for messages before the 5 minutes.
LATE = 240.0
# After so long without a change a reconcile is started for jobs that wait: when they came, a runner that cannot take
# them may have been taken for ready, because the list was new or the runner just created.
STUCK = 1.5 * PICK_UP
# For the end of a thread whose session was closed, and for that of all of them: systemctl waits for a minute.
THREAD_END, END = 3.0, 5.0
MOST_ASSIGNED = MOST_OFFERED = 1000
MOST_UNDELETED = 100
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PROBLEM_LIMIT = 200
# Requests for jobs that one message or pause leads to.
MOST_ASKED = 100


class AssignedJob(NamedTuple):
    """Times of a job in UNIX seconds: since when it waits, when it was assigned, and when its message came."""

    waits_since: float
    assigned: float
    came: float


@dataclass
class Assigned:
    """Jobs that messages of one session have assigned, and none has reported as started or completed.

    A job for which no runner came is given back, and assigned again: it still waits since the first time.
    """

    jobs: dict[str, AssignedJob] = field(default_factory=dict)
    """By the job's id."""
    is_late: bool = False
    """Whether one got no runner in time, and none has begun since."""
    waits: dict[str, float] = field(default_factory=dict)
    """Since when jobs wait, in UNIX seconds and by the job's id: also those that were taken back."""

    def note(self, job: Job, now: float) -> None:
        """Take a message's entry into account. The message may be older than its assignment's life."""
        if job.kind in ("JobStarted", "JobCompleted"):
            self.jobs.pop(job.id, None)
            if job.kind == "JobStarted" or job.runner:
                self.waits.pop(job.id, None)
            self.is_late = self.is_late and job.kind != "JobStarted"
        elif job.kind == "JobAssigned" and len(self.jobs) < MOST_ASSIGNED:
            since = min(job.queued or job.assigned or now, now, self.waits.pop(job.id, now))
            self.waits[job.id] = since
            for id_ in list(self.waits)[:-MOST_ASSIGNED]:
                del self.waits[id_]
            self.jobs.setdefault(job.id, AssignedJob(since, min(job.assigned or now, now), now))

    def note_late(self, now: float) -> None:
        """Take into account how long the jobs have waited by now, by this machine's clock.

        Those of a session that ended long ago say nothing.
        """
        waited = [now - job.came for job in self.jobs.values()]
        self.is_late = self.is_late or any(LATE <= seconds < ASSIGNMENT_LIFE for seconds in waited)

    def next(self, is_late: bool) -> "Assigned":
        """Those of the session after this one, which has assigned none yet."""
        return Assigned(is_late=is_late, waits=self.waits)

    def expire(self, now: float) -> None:
        """Leave out jobs whose assignment is over."""
        self.jobs = {id_: job for id_, job in self.jobs.items() if now - job.assigned < ASSIGNMENT_LIFE}


def demanded(before: Demand, statistics: Statistics, jobs: Assigned, set_id: int, now: float) -> Demand:
    """What statistics and messages say. In 2025 the statistics lacked assigned jobs for a while: messages count too."""
    jobs.expire(now)
    assigned = max(statistics.assigned, len(jobs.jobs))
    since: float | None = None
    if assigned > statistics.running:
        since = min((job.waits_since for job in jobs.jobs.values()), default=before.since or now)
    found = replace(before, assigned=assigned, running=statistics.running, since=since, answered_at=now)
    return replace(found, scale_set=set_id, problem="", is_blocking=False)


def closed(before: Demand, now: float) -> Demand:
    """What is known of a flavour without a session: its set stays, and so do the labels that it was made with."""
    return Demand(answered_at=now, scale_set=before.scale_set, asked=before.asked)


@dataclass
class Offered:
    """Jobs that an Enterprise Server offers, and that were not asked for yet: there was no room for them."""

    requests: dict[int, None] = field(default_factory=dict)
    taken: int = 0
    """How many were taken since the last statistics."""
    refusals: list[str] = field(default_factory=list)
    """Why GitHub refused some of them. They are not asked for again."""

    def note(self, job: Job) -> None:
        """Take a message's entry into account."""
        self.requests.pop(job.request, None)
        if job.kind == "JobAvailable":
            self.add([job.request])

    def add(self, requests: Iterable[int]) -> None:
        """Keep what is offered, the newest up to a limit."""
        self.requests.update(dict.fromkeys(filter(None, requests)))
        for request in list(self.requests)[:-MOST_OFFERED]:
            del self.requests[request]

    def acquire(self, listener: Listener, room: int) -> None:
        """Ask for as many as there is room for, and for others in place of those that went elsewhere."""
        self.refusals, most = [], MOST_OFFERED
        for _ in range(MOST_ASKED):
            asked = list(self.requests)[: max(0, min(most, room - self.taken))]
            if not asked:
                break
            try:
                self.taken += listener.acquire(asked)
            except StatusError as error:
                if isinstance(error, (SessionEndedError, TokenError)):
                    raise
                if len(asked) > 1:
                    # One of them may be what all were refused for.
                    most = 1
                    continue
                self.refusals.append(f"{asked[0]}: {error}")
            for request in asked:
                self.requests.pop(request, None)


class Sessions:
    """All sessions of a unit. ``wake`` starts a reconcile and does not wait for it."""

    def __init__(
        self,
        unit: str,
        wake: Callable[[], None],
        *,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.unit = unit
        self.clock = clock
        self.jitter = jitter
        self.stop = threading.Event()
        self.jobs = KnownJobs(unit)
        self._wake = wake
        self._lock = threading.Lock()
        self._settings: AgentSettings | None = None
        self._client: ScaleSetClient | None = None
        self._former: list[ScaleSetClient] = []
        self._known: dict[str, Demand] = {}
        self._wanted: dict[str, tuple[int, int | None]] = {}
        self.by_flavor: dict[str, FlavorSession] = {}
        """The session of each flavour; that of a removed flavour ends, and stays here."""
        self._since: dict[str, float] = {}
        self._silent: set[str] = set()
        self._waiting: dict[str, tuple[tuple[float | None, int], float]] = {}
        self._asked = 0.0
        self._refused = ""
        self._sweep_at = 0.0
        self._sweeping: threading.Thread | None = None
        self._queued = missed_jobs.Schedule()
        self._runs = Runs()
        self._finding: threading.Thread | None = None

    def run(self) -> None:
        """Follow the settings until ``stop`` is set, then close the sessions, which takes seconds at most."""
        while not self.stop.is_set():
            self.refresh()
            self.stop.wait(RELOAD)
        self.close()
        self.disconnect()

    def refresh(self) -> None:
        """Read the settings: connect anew where they have changed, and have a thread for each flavour."""
        # Before others are used: a session may be about to use those of now.
        self.disconnect()
        # A unit that leaves has no sessions: no job is to come to it any more.
        is_leaving = Markers(self.unit).read(LEAVING) is not None
        found = None if is_leaving else agent_settings.load(self.unit)
        if found is None and self._settings is not None and not is_leaving and demand.file_of(self.unit).exists():
            # A reconcile writes the settings again, or deletes what is known of demand in fixed mode.
            logger.warning("The agent's settings are missing")
            self._wake()
        if found != self._settings:
            self.follow(found)
        names = {flavor.name for flavor in found.flavors} if found else set()
        for name in names:
            session = self.by_flavor.get(name)
            if session is None or not session.thread.is_alive():
                self.by_flavor[name] = FlavorSession(self, name)
                self.by_flavor[name].thread.start()
        leaving = [each for name, each in self.by_flavor.items() if name not in names and each.thread.is_alive()]
        # Until then GitHub may assign more jobs, of which none could run; a request for messages may last a minute.
        unwanted = {flavor.name for flavor in found.flavors if not flavor.maximum} if found else set()
        closing = [each for name, each in self.by_flavor.items() if name in unwanted and each.is_open]
        for session in (*leaving, *closing):
            _aside("the end of a session", session.close)
        if found is None:
            return
        if not leaving:
            # One that is open would make its set again.
            self._start_sweep()
        self._note_silence(names)
        self._note_waiting(names)
        self._renew(found)
        if isinstance(found.path, GithubRepo) and self._queued.is_due():
            self._start_finding(found, found.path)

    def _renew(self, found: AgentSettings) -> None:
        """Start a reconcile for another token of the App, if this one is near its end or was refused."""
        end, now = found.token_end, self.clock()
        if end is None or (end - now >= RENEW_BEFORE and found.token != self._refused):
            return
        if abs(now - self._asked) >= RENEW_PAUSE:
            self._asked = now
            # A reconcile that asks GitHub for nothing has no other token to hand over.
            with suppress(HostError):
                Markers(self.unit).note(LIST_DUE)
            self._wake()

    def _start_finding(self, found: AgentSettings, path: GithubRepo) -> None:
        """Ask for missed jobs in a thread; not while the one of before still waits for an answer."""
        if self._finding is None or not self._finding.is_alive():
            self._finding = _aside("missed jobs", partial(self.find_missed, found, path))

    def _note_silence(self, names: set[str]) -> None:
        """Start a reconcile, once, where a flavour gets no answer for so long that the fallback holds."""
        now = self.clock()
        self._since = {name: self._since.get(name, now) for name in names}
        known = {name: self.known(name) for name in names}
        silent = {
            name
            for name, found in known.items()
            if not found.is_known(now) and abs(now - max(found.answered_at, self._since[name])) >= demand.PATIENCE
        }
        if silent - self._silent:
            self._wake()
        self._silent = silent

    def _note_waiting(self, names: set[str]) -> None:
        """Start a reconcile where jobs of a flavour wait for long; another one only after what is known has changed."""
        now, before = self.clock(), self._waiting
        self._waiting = {}
        for name in names:
            known = self.known(name)
            if not known.is_known(now) or known.assigned <= known.running:
                continue
            state = (known.since, known.running)
            former, begun = before.get(name, (state, now))
            if former != state:
                begun = now
            if now - begun >= STUCK:
                begun = math.inf
                logger.info("%s: jobs still wait for runners", name)
                self._wake()
            self._waiting[name] = (state, begun)

    def find_missed(self, found: AgentSettings, path: GithubRepo) -> None:
        """Publish how many queued jobs of the repository reached no set; none where that cannot be seen."""
        now, sessions = self.clock(), dict(self.by_flavor)
        known = [each for each in found.flavors if each.maximum and self.known(each.name).is_known(now)]
        open_ = [each for each in known if each.name in sessions]
        targets = [Target(each.name, self._labels(found, each), sessions[each.name].reported.unnamed) for each in open_]
        missed: dict[str, list[float]] = {}
        try:
            with closing(self._rest(found)) as rest:
                queued = rest.queued_jobs(path, self._runs)
            # After the answer: a message may have come meanwhile.
            reported = missed_jobs.merged(session.reported for session in sessions.values())
            missed = missed_jobs.missed(queued, targets, reported, now)
        except GithubClientError as error:
            logger.info("Queued jobs are not compared with those of the scale sets: %s", error)
        for flavor in found.flavors:
            # GitHub keeps back what is beyond the announced capacity. Such jobs wait for a runner of any unit.
            capacity = 1 if flavor.name in sessions and sessions[flavor.name].is_late else flavor.capacity
            room = max(0, capacity - self.known(flavor.name).assigned)
            times = missed.get(flavor.name, [])[:room]
            number, since = len(times), times[0] if times else None
            if number:
                logger.warning("%s: %s queued jobs did not reach the scale set", flavor.name, number)
            known_now = self.known(flavor.name)
            if (number, since) != (known_now.missed, known_now.missed_since):
                self.publish(flavor, partial(replace, missed=number, missed_since=since))

    def _labels(self, found: AgentSettings, flavor: AgentFlavor) -> frozenset[str]:
        """The labels of a flavour's set, as far as the server kept them."""
        labels = _sorted((found.identity.scale_set(flavor.name), *flavor.labels))
        return frozenset(labels).difference(self.known(flavor.name).dropped)

    def _start_sweep(self) -> None:
        """Delete the sets of flavours that were removed; once for each change of the flavours, until it succeeds."""
        client = self._client
        if client is None or self._is_sweeping() or time.monotonic() < self._sweep_at:
            return
        again = time.monotonic() + LONGEST_PAUSE
        with self._lock:
            self._sweep_at = again
        self._sweeping = _aside("removed flavours", partial(self._sweep, client, again))

    def _is_sweeping(self) -> bool:
        return self._sweeping is not None and self._sweeping.is_alive()

    def _sweep(self, client: ScaleSetClient, again: float) -> None:
        following = math.inf
        try:
            client.delete_sets(self._is_unwanted)
        except GithubClientError as error:
            logger.info("Scale sets of removed flavours are not deleted yet: %s", error)
            following = max(again, time.monotonic() + _limited_for(error))
        with self._lock:
            # Unless the flavours have changed meanwhile.
            if self._sweep_at == again:
                self._sweep_at = following

    def _is_unwanted(self, name: str) -> bool:
        """Whether a set is this unit's and of no flavour, by the settings of now: they may be newer than the sweep."""
        found = self._settings
        if found is None or not found.identity.manages_scale_set(name):
            return False
        return name not in {found.identity.scale_set(flavor.name) for flavor in found.flavors}

    def disconnect(self) -> None:
        """Give the connections back that nobody uses any more: those of former places, and all once the agent stops."""
        used = [session.client for session in tuple(self.by_flavor.values()) if session.thread.is_alive()]
        for client in (*self._former, *([self._client] if self._client and self.stop.is_set() else [])):
            if client not in used and not self._is_sweeping():
                client.close()
                self._former = [each for each in self._former if each is not client]

    def follow(self, found: AgentSettings | None) -> None:
        """Use other settings. A new token alone ends no session."""
        client, before = self._client, self._settings
        if found is not None and (before is None or _place(before) != _place(found) or client is None):
            # As in a hook: the clients take their proxies from the environment.
            for name in PROXIES:
                os.environ.pop(name, None)
                os.environ.pop(name.lower(), None)
            os.environ.update(found.proxies)
            client = ScaleSetClient(
                found.github_url, found.path, self._registration_token, ca_certificates=found.ca_certificates
            )
            if self._client is not None:
                # Open sessions are still closed with it.
                self._former.append(self._client)
        with self._lock:
            self._settings, self._client = found, client
            names = {flavor.name for flavor in found.flavors} if found else set()
            if before is None or {flavor.name for flavor in before.flavors} != names:
                self._sweep_at = 0.0
            # What a former process wrote stays until this one's sessions have an answer.
            known = demand.load(self.unit) if before is None else self._known
            if before is not None and found is not None and before.place != found.place:
                # Sets have other ids there.
                known = {}
            self._known = {name: value for name, value in known.items() if name in names}
            self._wanted = {name: value for name, value in self._wanted.items() if name in names}

    def _registration_token(self) -> str:
        found = self._settings
        if found is None:
            raise TokenError("the agent has no credentials any more")
        with closing(self._rest(found)) as rest:
            return rest.registration_token(found.path)

    def _rest(self, found: AgentSettings) -> GithubClient:
        auth = Pat(found.token) if found.token_end is None else HandedToken(found.token, self._note_refused)
        return GithubClient(found.github_url, auth, ca_certificates=found.ca_certificates)

    def _note_refused(self, token: str) -> None:
        self._refused = token

    def flavor(self, name: str) -> tuple[AgentSettings, AgentFlavor, ScaleSetClient] | None:
        """The settings of a flavour, and the client; None where it is not wanted any more."""
        with self._lock:
            if self._settings is None or self._client is None:
                return None
            found = next((flavor for flavor in self._settings.flavors if flavor.name == name), None)
            return (self._settings, found, self._client) if found else None

    def known(self, name: str) -> Demand:
        """What was published last of a flavour."""
        with self._lock:
            return self._known.get(name, Demand())

    def publish(self, flavor: AgentFlavor, change: Callable[[Demand], Demand]) -> None:
        """Write what is known of a flavour now; where that changes the number of runners, a reconcile is started."""
        with self._lock:
            if self._settings is None or flavor.name not in {each.name for each in self._settings.flavors}:
                return
            before, now = self._known.get(flavor.name, Demand()), self.clock()
            self._known[flavor.name] = found = change(before)
            wanted = (min(flavor.maximum, flavor.min_idle + found.assigned + found.missed), found.scale_set)
            try:
                demand.save(self.unit, self._known)
            except OSError as error:
                logger.warning("The demand was not written: %s", error)
            # After a time without an answer there may be the fallback's runners.
            is_back = found.is_known(now) and not before.is_known(now)
            changed = (is_back or self._wanted.get(flavor.name) != wanted) and not found.problem
            if changed:
                self._wanted[flavor.name] = wanted
        if changed:
            logger.info("%s: %s runners are wanted", flavor.name, wanted[0])
        if changed or _is_other_status(before, found, now):
            self._wake()

    def close(self) -> None:
        """End all sessions, side by side and within seconds: their successors need not wait."""
        closing = [threading.Thread(target=each.end, daemon=True) for each in self.by_flavor.values()]
        for thread in closing:
            thread.start()
        end = time.monotonic() + END
        for thread in closing:
            thread.join(max(0.0, end - time.monotonic()))


class FlavorSession:
    """The session of one flavour, in a thread of its own."""

    def __init__(self, sessions: Sessions, name: str) -> None:
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)
        self._all = sessions
        self._name = name
        self._listener: Listener | None = None
        self._statistics: Statistics | None = None
        self._jobs = Assigned()
        self.offered = Offered()
        self._lacks_offers = False
        self._undeleted: list[int] = []
        self.reported = Reported()
        self._place: tuple[ScaleSetClient, tuple[str, ...]] | None = None
        # Sets of two places may have the same id.
        self._made: tuple[ScaleSetClient | None, int, tuple[str, ...]] = (None, 0, ())
        self._pause = 0.0
        self._conflict: float | None = None

    def run(self) -> None:
        """Until the flavour is not wanted any more, or the agent stops."""
        while not self._all.stop.is_set():
            found = self._all.flavor(self._name)
            if found is None:
                break
            try:
                pause = self.step(*found)
            except GithubClientError as error:
                if self._all.stop.is_set() or self._all.flavor(self._name) is None:
                    break
                pause = self.failed(found[1], error)
            except Exception as error:
                logger.exception("%s: unexpected", self._name)
                self.close()
                pause = self.failed(found[1], error)
            self.wait(pause, *found)
        self.close()

    def wait(self, pause: float, settings: AgentSettings, flavor: AgentFlavor, client: ScaleSetClient) -> None:
        """Pause, until the agent stops, or has another personal token or place, or none for this flavour.

        So it does where the flavour gets a maximum, or none any more.
        """
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0 and not self._all.stop.wait(min(RELOAD, left)):
            found = self._all.flavor(self._name)
            if found is None or (_personal_token(found[0]), found[2]) != (_personal_token(settings), client):
                return
            if bool(found[1].maximum) != bool(flavor.maximum):
                return

    def step(self, settings: AgentSettings, flavor: AgentFlavor, client: ScaleSetClient) -> float:
        """Open the session if there is none, and wait for one message; returns how long to pause, in seconds."""
        if flavor.maximum == 0:
            self.close()
            self._jobs = self._jobs.next(self._jobs.is_late)
            self._all.publish(flavor, lambda known: closed(known, self._all.clock()))
            return LONGEST_PAUSE
        place = (client, flavor.labels)
        if self._place != place:
            self.close()
            self._place, self.offered = place, Offered()
        if self._listener is None:
            self._open(settings, self._announced(flavor), client)
        else:
            self._poll_open(self._listener, settings, self._announced(flavor))
        self._pause, self._conflict = 0.0, None
        return 0.0

    def _poll_open(self, listener: Listener, settings: AgentSettings, flavor: AgentFlavor) -> None:
        """Wait for a message. If the session is closed meanwhile, as its maximum is 0, the wait ends with an error."""
        try:
            self.poll(listener, settings, flavor)
        except GithubClientError:
            if self._listener is listener:
                raise

    @property
    def client(self) -> ScaleSetClient | None:
        """What the session was opened with, or is being opened with."""
        return self._place[0] if self._place else None

    @property
    def is_open(self) -> bool:
        """Whether there is a session."""
        return self._listener is not None

    @property
    def is_late(self) -> bool:
        """Whether jobs have got no runners for so long that a capacity of 1 is announced to GitHub."""
        return self._jobs.is_late

    def _announced(self, flavor: AgentFlavor) -> AgentFlavor:
        """The flavour with the capacity to announce: 1 while jobs get no runners, so that other units get them.

        So it is where no reconcile can be made. With the unit's whole capacity it would be given the same jobs again.
        """
        was_late = self._jobs.is_late
        self._jobs.note_late(self._all.clock())
        if self._jobs.is_late and not was_late:
            logger.warning("%s: jobs get no runners; 1 is announced until a job has begun", self._name)
        return replace(flavor, capacity=1) if self._jobs.is_late else flavor

    def close(self) -> None:
        """End the session."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with self._logged("the session was not closed"):
                listener.close()

    def end(self) -> None:
        """End the session, and wait a moment for the thread: it may be about to open one, which it then closes."""
        self.close()
        self.thread.join(THREAD_END)

    def _open(self, settings: AgentSettings, flavor: AgentFlavor, client: ScaleSetClient) -> None:
        found = self._set(settings, flavor, client)
        listener = client.open_session(found.set_id, settings.identity.unit)
        # A job that runs may have begun while no session reported it.
        is_late = self._jobs.is_late and not listener.session.statistics.running
        self._listener, self._jobs = listener, self._jobs.next(is_late)
        self._statistics, self.offered.taken = listener.session.statistics, 0
        asked = self._made[-1]
        dropped = tuple(label for label in asked if label not in _sorted(found.labels))
        logger.info("%s: the session of the scale set %s is open", self._name, found.name)
        self._lacks_offers, self._undeleted = True, []
        self._take_former_offers(flavor, listener, listener.session.statistics)
        # GitHub may assign again what was missed, or have done so.
        self._hear(flavor, listener, listener.session.statistics, asked=asked, dropped=dropped, missed=0)

    def _set(self, settings: AgentSettings, flavor: AgentFlavor, client: ScaleSetClient) -> ScaleSet:
        """The flavour's set. One for other labels is made again, because they cannot be changed.

        A server may drop some of the labels, and would do so again: what it was asked for decides then.
        """
        name, group = settings.identity.scale_set(flavor.name), client.group_id()
        found = client.find(name, group) or self._moved(client, name, group)
        asked = _sorted((name, *flavor.labels))
        if found is not None and not self._is_for(client, found, asked):
            client.delete(found.set_id)
            found = None
        found = found or client.create(name, group, flavor.labels)
        self._made = client, found.set_id, asked
        return found

    def _is_for(self, client: ScaleSetClient, found: ScaleSet, asked: tuple[str, ...]) -> bool:
        """Whether a set has these labels or was made with them. After a boot one that lacks some may have been."""
        known, labels = self._all.known(self._name), _sorted(found.labels)
        if known.scale_set == found.set_id and known.asked:
            return asked in (known.asked, labels)
        return (client, found.set_id, asked) == self._made or {found.name.lower()} <= {*labels} <= {*asked}

    def _moved(self, client: ScaleSetClient, name: str, group: int) -> ScaleSet | None:
        """The flavour's set, out of the runner group that it was in before; one that cannot be moved is deleted."""
        if not isinstance(client.path, GithubOrg):
            return None
        for former in [each for each in client.sets() if each.name == name and each.group != group]:
            try:
                moved = client.move(former.set_id, group)
                if moved.group == group:
                    return moved
            except (StatusError, TokenError) as error:
                logger.info("%s: the scale set is made again in the runner group: %s", self._name, error)
            client.delete(former.set_id)
        return None

    def _take_former_offers(self, flavor: AgentFlavor, listener: Listener, statistics: Statistics) -> None:
        """Take jobs that were offered before this session, as far as there is room for them."""
        with self._logged("the jobs that were offered before are not known"):
            self.offered.add(listener.acquirable())
            self._lacks_offers = False
        self._acquire(flavor, listener, statistics)

    def _acquire(self, flavor: AgentFlavor, listener: Listener, statistics: Statistics) -> None:
        """Take offered jobs, as far as there is room for them."""
        with self._logged("no jobs were acquired"):
            self.offered.acquire(listener, flavor.capacity - statistics.assigned)
        refusals = self.offered.refusals
        if refusals:
            logger.warning("%s: %s offered jobs are refused, and given up; %s", self._name, len(refusals), refusals[0])

    def poll(self, listener: Listener, settings: AgentSettings, flavor: AgentFlavor) -> None:
        """Wait for a message. Where none comes, the last statistics hold, and assignments grow old."""
        message = listener.message(flavor.capacity)
        if message is not None:
            self._statistics, self.offered.taken = message.statistics, 0
            # Before anything is done about it, as GitHub's own client does. It counts all the same where that fails.
            self._delete(listener, message.message_id)
            now = self._all.clock()
            for job in message.jobs:
                self._jobs.note(job, now)
                self.offered.note(job)
                self.reported.note(job, now)
            durations = self._all.jobs.note(message.jobs, settings.identity.manages, flavor.name, now)
            if settings.measures_jobs and durations:
                telemetry.measure(self._all.unit, *durations)
        if self._statistics is None:
            listener.renew()
            self._statistics = listener.session.statistics
        self._acquire(flavor, listener, self._statistics)
        self._hear(flavor, listener, self._statistics)
        if self._lacks_offers:
            # After the numbers of the message: the request may take a minute.
            self._take_former_offers(flavor, listener, self._statistics)

    def _delete(self, listener: Listener, message_id: int) -> None:
        """Delete a message, and those of this session for which that failed before.

        One that stays comes again in the next session, and reports jobs that have ended meanwhile as assigned.
        """
        self._undeleted = [*self._undeleted, message_id][-MOST_UNDELETED:]
        with self._logged("the message was not deleted"):
            while self._undeleted:
                listener.delete(self._undeleted[-1])
                self._undeleted.pop()

    @contextmanager
    def _logged(self, what: str) -> Iterator[None]:
        """An error of GitHub's is logged: the next wait for a message tells whether the session is over."""
        try:
            yield
        except GithubClientError as error:
            logger.warning("%s: %s: %s", self._name, what, error)

    def _hear(self, flavor: AgentFlavor, listener: Listener, statistics: Statistics, **changes: Any) -> None:
        now, set_id = self._all.clock(), listener.set_id
        self._all.publish(
            flavor, lambda known: replace(demanded(known, statistics, self._jobs, set_id, now), **changes)
        )
        self.reported.count(statistics, len(self._jobs.jobs))

    def failed(self, flavor: AgentFlavor, error: Exception) -> float:
        """Note a problem, and say how long to pause before another attempt."""
        now = self._all.clock()
        if isinstance(error, (SessionEndedError, SetGoneError)):
            self._listener = None
        is_conflict = isinstance(error, SessionConflictError)
        if is_conflict and self._conflict is None:
            self._conflict = now
        if not is_conflict or now - (self._conflict or now) >= CONFLICT_PATIENCE:
            logger.warning("%s: %s", self._name, error)
            problem = redact(str(error) or type(error).__name__)[:PROBLEM_LIMIT]
            is_blocking = isinstance(error, TokenError)
            self._all.publish(flavor, lambda known: replace(known, problem=problem, is_blocking=is_blocking))
        self._pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, 2 * self._pause))
        # The limit, too, ends for all units that share a token in the same second.
        return _limited_for(error) + self.jittered()

    def jittered(self) -> float:
        """The pause, or up to half of it less: units do not come back all at once."""
        return self._all.jitter(self._pause / 2, self._pause)


def _aside(name: str, action: Callable[[], None]) -> threading.Thread:
    """Begin what may wait for GitHub for a minute, in a thread of its own."""
    thread = threading.Thread(target=action, name=name, daemon=True)
    thread.start()
    return thread


def _is_other_status(before: Demand, found: Demand, now: float) -> bool:
    """Whether the unit's status is to show a problem that it does not show, or no longer the one that blocks it."""
    is_new = bool(found.problem) and not before.problem and not found.is_known(now)
    return is_new or found.is_blocking != before.is_blocking


def _limited_for(error: Exception) -> float:
    """Seconds until GitHub may be asked again, at most an hour; 0 for an error that is no limit."""
    if not isinstance(error, RateLimitError):
        return 0.0
    return min(3600.0, max(0.0, (error.reset - datetime.now(timezone.utc)).total_seconds()))


def _personal_token(found: AgentSettings) -> str | None:
    """Its limit is its owner's. That of an App is its installation's, whose token is another one every hook."""
    return found.token if found.token_end is None else None


def _sorted(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels in one form: GitHub ignores upper and lower case."""
    return tuple(sorted({label.lower() for label in labels}))


def _place(found: AgentSettings) -> tuple[object, ...]:
    """What a connection is made for."""
    return found.github_url, found.path, found.ca_certificates, found.proxies
