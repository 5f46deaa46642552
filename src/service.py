"""What the charm does on its machine, without Juju: a unit's state, LXD, GitHub and the machine put together.

charm.py hands Juju's events to a Service; tests make one of their own.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import jinja2

import agent_settings
import creation
import demand
import listing
import notices
import provision
import settings
import shared_fs
import status
import telemetry
import times
from engine.client import LxdClient
from errors import (
    ConfigurationError,
    GithubApiError,
    GithubClientError,
    GithubRunnerError,
    HostError,
    LxdError,
    TokenError,
)
from flavor_plans import Wanted
from gh.auth import Auth, Pat
from gh.client import GithubClient, api_url
from gh.registration import OptionRegistration
from gh.scale_sets import ScaleSetClient
from host import agent, capacity, image, image_builds, kernel, machine, pool, runner_binary, timer
from host.markers import FAILURES, LEAVING, NO_POLICY, SET_UP, TAKEN_OVER, Markers
from metrics.storage import StorageManager
from models import CharmState, FailedCreation, FlushMode
from naming import Identity, binary_version
from repo_policy import RepoPolicyClient
from report import Findings, Report
from runner import RunnerManagerClients
from runner_manager import RunnerManager
from status import Status
from system import beside
from unit_demand import UnitDemand

logger = logging.getLogger(__name__)

REBOOTING = "Rebooting for a pending update"
TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


class Unit(Protocol):
    """What a service asks of Juju."""

    def set_workload_version(self, version: str, /) -> None:
        """Show the version of the runner binary."""

    def reboot(self) -> None:
        """Reboot the machine after this hook."""


def github_client(state: CharmState) -> GithubClient:
    """The client for the GitHub, and with the credentials, of a state."""
    auth: Auth = Pat(state.token)
    if state.app:
        # Imported late: nobody else needs what signs.
        from gh.app import App

        auth = App(state.app, api_url(state.github_url), state.path)
    return GithubClient(state.github_url, auth, ca_certificates=state.ca_certificates)


def scale_set_client(state: CharmState, github: GithubClient) -> ScaleSetClient:
    """The client for the runner scale sets of a state's path."""
    return ScaleSetClient(
        state.github_url,
        state.path,
        lambda: github.registration_token(state.path),
        ca_certificates=state.ca_certificates,
    )


@dataclass(frozen=True)
class Adapters:
    """What a service reaches the outside with; tests pass others. ``clock`` gives UNIX seconds."""

    lxd: LxdClient = field(default_factory=LxdClient)
    github: Callable[[CharmState], GithubClient] = github_client
    scale_sets: Callable[[CharmState, GithubClient], ScaleSetClient] = scale_set_client
    storages: StorageManager = shared_fs
    clock: Callable[[], float] = time.time


class Service:
    """One unit during one hook. Errors are those of ``errors``, and OSError."""

    def __init__(
        self,
        state: CharmState,
        identity: Identity,
        markers: Markers,
        unit: Unit,
        show: Callable[[Status], None],
        adapters: Adapters,
    ) -> None:
        self.hold = ""
        """Why no runner may be created in this hook: the set-up of the machine failed."""
        self.report: Report | None = None
        """What the last reconcile found and did."""
        self._state = state
        self._identity = identity
        self._markers = markers
        self._unit = unit
        self._show = show
        self._adapters = adapters
        self._lxd = adapters.lxd

    def note_installation(self) -> None:
        """Record that there was no previous charm, and nothing of an application of this name that was removed."""
        with suppress(HostError):
            self._markers.note(NO_POLICY)
            self._markers.note(TAKEN_OVER)
        # Without LXD, which the set-up installs, there is no record.
        with suppress(LxdError):
            machine.remove_old_record(self._lxd, self._markers)

    def note_upgrade(self) -> None:
        """Record that the upgrade ends no repository policy check, if the previous charm was never on this unit."""
        if not self._markers.exist() and not machine.has_previous_charm():
            with suppress(HostError):
                self._markers.note(NO_POLICY)

    def take_over(self) -> None:
        """Remove what the previous charm left, and record that nothing of it is left to do."""
        if machine.take_over(self._lxd, self._markers.unit):
            with suppress(HostError):
                self._markers.note(TAKEN_OVER)

    def set_up(self, build_later: bool = False) -> None:
        """Set up the timer, the runner binary and the machine; ``build_later`` builds an image outside of this hook.

        The timer comes before anything that may fail: reconciles then complete what is missing.
        """
        self._ensure_timer()
        # Also early: the unit of an earlier version may name a program that is gone.
        image.ensure_timer(self._jinja, self._markers.unit)
        failure: GithubRunnerError | None = None
        try:
            # Before the machine, so that an image that is built contains the runner binary.
            self._refresh_binary()
        except GithubRunnerError as error:
            failure = error
        state, identity = self._state, self._identity
        machine.set_up(self._lxd, self._jinja, state, identity, self._progress, build_later=build_later)
        if failure is not None:
            raise failure

    def apply(self, build_later: bool = False) -> None:
        """Bring the machine and the runners to the state, as after a changed option."""
        self._free_previous_pool()
        self._prepare(build_later)
        self.reconcile()
        self.ensure_agent()

    def attend(self) -> None:
        """What an event of the timer's service does: repair the machine, update the kernel, and reconcile or reboot."""
        self.repair()
        kernel.update(self._adapters.clock())
        self._reconcile_or_reboot()
        self.ensure_agent()

    def resume(self) -> None:
        """What update-status does where something is missing: a complete set-up, the timer or the agent."""
        if self._markers.read(SET_UP) is None:
            self.apply(build_later=True)
        else:
            self._ensure_timer()
            self._accept()
            self.ensure_agent()

    def repair(self) -> None:
        """Complete an unfinished set-up and restore lost parts; otherwise refresh the runner binary if it is old."""
        self._free_previous_pool()
        if self._markers.read(SET_UP) is not None:
            lost = machine.lost(self._lxd, self._state, self._markers.unit)
            if not lost:
                machine.tend(self._jinja, self._state, self._markers.unit)
                if not runner_binary.is_recent(self._adapters.clock()):
                    self._refresh_binary()
                return
            logger.warning("Missing parts of the set-up, restoring: %s", ", ".join(lost))
        self._prepare(build_later=True)

    def try_at_once(self, no_policy: bool = False) -> None:
        """Create runners without waiting for the next attempt; ``no_policy`` acknowledges that no policy is checked."""
        if no_policy:
            self._markers.note(NO_POLICY)
        creation.try_at_once(self._markers)

    def reconcile(self, *, needs_list: bool = True) -> int:
        """One reconcile, and its status; returns how many healthy runners were missing. 0 while a reboot is awaited.

        Unless ``needs_list``, GitHub's list of runners is read in demand mode only where it may matter, and once in
        five minutes.
        """
        self._accept()
        if self._reboot_is_awaited():
            self._progress(REBOOTING)
            return 0
        if self._markers.read(SET_UP) is None:
            # Also where this event did not try: without a firewall, for example, no runner may run.
            self.hold = self.hold or "the set-up of the machine is not complete"
        else:
            self._build_changed_image()
        # Also the set-up that has just ended may have left an image out.
        missing = (
            {} if self.hold else image_builds.start_missing(self._lxd, self._markers, settings.images(self._state))
        )
        manager = self._manager()
        now = self._adapters.clock()
        list_age = self._demand.take_list_age(now)
        failed, interval = creation.failed_creations(self._markers), self._state.reconcile_interval * times.MINUTE
        wanted = _with_failures(_without_images(self._demand.wanted(now), missing), failed, interval, now)
        try:
            with beside(self._tell_that_it_begins):
                delta = manager.reconcile_flavors(wanted, None if needs_list else list_age)
        finally:
            # Also if GitHub gave no token for the last ones.
            creation.record_failures(manager.findings, self._markers)
            self._demand.hand_over(manager.findings.capacities)
        self._demand.note_list(now if manager.findings.listed else now - (list_age or 0.0))
        self.report = manager.report
        self._record(manager.findings)
        now = self._adapters.clock()
        found = [*self._demand.notices(now), *notices.notices(self._state, self._markers, self.report, now)]
        blocked = self._demand.blocked_by()
        shown = status.of_report(self.report, self._state.test_mode, found)
        self._show(Status("blocked", blocked) if blocked else shown)
        return delta

    def flush(self, force: bool) -> int:
        """Remove every runner and reconcile; returns how many runners were missing then.

        Unless forced, only where new runners can be created: otherwise the unit would be left without any.
        """
        self._markers.clear(*FAILURES)
        if not force:
            self._check_creation()
        self._progress("Flushing runners")
        try:
            self._manager().flush(FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK)
        except GithubClientError as error:
            if not force:
                raise
            logger.warning("The runners are removed without GitHub: %s", error)
            self.clear()
        if force:
            self.repair()
        return self.reconcile()

    def clear(self) -> int:
        """Remove every runner, also without GitHub; returns how many instances were removed."""
        return self._manager().flush(FlushMode.FORCE_FLUSH)

    def check(self, form: str = "") -> dict[str, object]:
        """The results of the action check-runners: counts, the names of online runners, and a line for each runner.

        ``waiting`` says of each flavour why jobs wait or runners are missing; it is empty where that is not so. With
        one of ``models.FORMATS`` it and the rows of all runners are in that form, and there is nothing else.
        """
        manager, unit, now = self._manager(), self._markers.unit, self._adapters.clock()
        runners = manager.observer.observe().runners
        waits = listing.waiting_now(runners.values(), telemetry.load(unit), demand.load(unit), now)
        if form:
            rows = listing.text(manager.rows(runners), form)
            return {"runners": rows, "waiting": listing.waiting_text(waits, form)}
        names = manager.counts(runners)
        details = "\n".join(names.pop("details"))
        return {
            **{key: len(value) for key, value in names.items()},
            "runners": ", ".join(names["online"]),
            "details": details,
            "waiting": listing.waiting_lines(waits),
        }

    def drain(self) -> bool:
        """Remove the idle runners unless a job may run; returns whether no runner is left."""
        return self._manager().drain()

    def close(self) -> None:
        """Remove timer and agent, and record that no later event may create a runner. It needs no options."""
        unit = self._markers.unit
        for step in (partial(agent.remove, unit), partial(timer.remove, unit), self._note_leaving):
            try:
                _log_removed(step())
            except (GithubRunnerError, OSError) as error:
                logger.error("%s", error)

    def leave(self) -> None:
        """Remove every runner, and revoke tokens. One that fails does not stop the other: no later hook retries it.

        Among the tokens is that of a GitHub App which the agent was given: the agent has ended by now.
        """
        handed = agent_settings.load(self._markers.unit)
        try:
            _log_removed(agent_settings.remove(self._markers.unit))
            logger.info("%s runners were removed", self.clear())
        except (GithubRunnerError, OSError) as error:
            logger.error("The runners were not removed: %s", error)
        self._demand.leave(handed)
        for revoke in (self._github.revoke, partial(self._demand.revoke, handed)):
            try:
                revoke()
            except (GithubRunnerError, OSError) as error:
                logger.error("The tokens were not revoked: %s", error)

    def release(self) -> None:
        """Remove what holds the unit's storage, once no runner is there."""
        _log_removed(machine.release(self._lxd, self._markers))

    def tear_down(self) -> None:
        """Remove everything that the charm created on the machine, once no runner is there."""

        def managed(name: str) -> bool:
            return self._identity.manages(name) or self._identity.may_be_previous(name)

        _log_removed(machine.tear_down(self._lxd, self._markers, managed))

    def ensure_agent(self) -> None:
        """Start the agent after the runners: otherwise it would treat missing runners as lost."""
        if self._state.needs_agent:
            agent.ensure(self._jinja, self._markers.unit, self._state.watches_runners, self._state.metrics_port)
        else:
            agent.remove(self._markers.unit)

    def update_binary(self) -> bool:
        """Download the runner binary that GitHub offers unless it is in use; returns whether it was downloaded."""
        progress = partial(self._progress, "Downloading runner binary")
        changed = runner_binary.update(self._github, self._state.path, self._state.arch, downloading=progress)
        using = runner_binary.current()
        if changed and using is not None:
            self._unit.set_workload_version(binary_version(using.name))
            # The service is not there before the first set-up, which builds the image itself.
            for build in settings.images(self._state):
                with suppress(LxdError, HostError):
                    image_builds.renew(self._lxd, self._markers, build)
        return changed

    def update_dependencies(self) -> bool:
        """Update the runner binary and reconcile; returns whether the binary was downloaded."""
        self.try_at_once()
        changed = self.update_binary()
        self.repair()
        self.reconcile()
        return changed

    def _prepare(self, build_later: bool) -> None:
        """Set the machine up. While that fails the runners are reconciled all the same, but none is created."""
        try:
            self.set_up(build_later)
        except (ConfigurationError, TokenError):
            raise
        except (GithubRunnerError, OSError) as error:
            logger.error("%s", error)
            self.hold = status.describe(error)

    def _check_creation(self) -> None:
        """Raise what would keep new runners from being created."""
        pool.check(self._lxd, self._state, self._markers.unit)
        self.repair()
        if self._reboot_is_awaited():
            raise HostError("the unit waits for a reboot, 10 minutes at most; run the action again after it")
        self._manager().check_creation()

    def _free_previous_pool(self) -> None:
        """Once no job runs, remove the runners in the previous charm's storage pool, which the set-up then replaces."""
        try:
            users = pool.previous_pool_users(self._lxd)
            if not users:
                return
            pool.check(self._lxd, self._state, self._markers.unit)
            manager = self._manager()
            manager.check_creation()
            if users <= manager.observer.observe().runners.keys():
                manager.drain()
        except (GithubRunnerError, OSError) as error:
            logger.warning("The storage pool of the previous charm is kept for now: %s", error)

    def _refresh_binary(self) -> None:
        """Update the runner binary. If there is one already, GitHub's outage does not stop the rest."""
        try:
            self.update_binary()
        except (GithubApiError, HostError) as error:
            if runner_binary.current() is None:
                raise
            logger.warning("The runner binary was not refreshed: %s", error)

    def _reconcile_or_reboot(self) -> None:
        """Reboot for a pending kernel if no job runs. A request that had no effect is repeated a day later.

        A build of the image would be cut off, so that it is waited for. Of a machine that is not set up, no build is:
        where builds fail, each reconcile starts the next one.
        """
        is_set_up = self._markers.read(SET_UP) is not None
        if kernel.reboot_is_due() and not (is_set_up and image_builds.is_running(self._markers.unit)):
            since = kernel.requested(self._markers, self._adapters.clock())
            if (since is None or since >= times.REBOOT_AGAIN) and self.drain():
                kernel.note_request(self._markers, self._adapters.clock())
                self._progress(REBOOTING)
                self._unit.reboot()
                return
        self.reconcile(needs_list=False)

    def _reboot_is_awaited(self) -> bool:
        """Whether a reboot was requested that may still come."""
        since = kernel.requested(self._markers, self._adapters.clock())
        return since is not None and since < times.REBOOT_WAIT

    def _manager(self) -> RunnerManager:
        state, clock = self._state, self._adapters.clock
        policy = RepoPolicyClient(state.repo_policy) if state.repo_policy else None
        registration = OptionRegistration(state.registration, self._github, state.path, state.arch)
        tarball = runner_binary.current() or creation.NO_BINARY
        failed, now = creation.recorded(self._markers), clock()
        return RunnerManager(
            self._identity,
            state,
            RunnerManagerClients(self._github, self._jinja, self._lxd, policy, clock, registration),
            self._adapters.storages,
            tarball,
            clock=clock,
            hold=self.hold or creation.hold(tarball, failed, now),
            deprecated_since=runner_binary.deprecated_at(now),
            failed_starts=failed,
            dropped=creation.dropped(self._markers, now),
            image=partial(image.published, self._lxd),
            capacity=capacity.of_runners(state),
        )

    @cached_property
    def _jinja(self) -> jinja2.Environment:
        return provision.environment(TEMPLATES)

    @cached_property
    def _github(self) -> GithubClient:
        """One for the whole hook, and with it one connection."""
        github = self._adapters.github(self._state)
        github.load_authorities()
        return github

    @cached_property
    def _demand(self) -> UnitDemand:
        return UnitDemand(
            self._state,
            self._identity,
            self._markers,
            self._adapters.scale_sets,
            lambda: self._github,
            self._adapters.github,
        )

    def _ensure_timer(self) -> None:
        timer.ensure(self._jinja, self._markers.unit, self._state.reconcile_interval)

    def _record(self, findings: Findings) -> None:
        try:
            creation.record(findings, self._markers)
        except (HostError, OSError) as error:
            logger.warning("What the reconcile found out was not recorded: %s", error)

    def _accept(self) -> None:
        """Raise if the storage refuses the options. Otherwise processes outside of hooks get them."""
        pool.check(self._lxd, self._state, self._markers.unit)
        try:
            settings.save(self._state, self._identity)
        except OSError as error:
            logger.warning("The settings of processes outside of hooks were not saved: %s", error)

    def _build_changed_image(self) -> None:
        """Have an image built outside of this hook if the options of its content have changed."""
        try:
            image_builds.ensure_changed(self._lxd, self._markers, settings.images(self._state))
        except (LxdError, HostError, OSError) as error:
            logger.warning("The build of an image with the changed options was not started: %s", error)

    def _note_leaving(self) -> list[str]:
        self._markers.note(LEAVING)
        return []

    def _tell_that_it_begins(self) -> None:
        """Where Juju refuses this status, the reconcile goes on: it must not cost what the reconcile finds."""
        try:
            self._progress("Reconciling runners")
        except Exception:
            logger.exception("The status of a reconcile that begins cannot be set")

    def _progress(self, step: str) -> None:
        self._show(Status("maintenance", step))


def _without_images(wanted: Iterable[Wanted], missing: Mapping[str, str]) -> list[Wanted]:
    """The same runners, of which none is created from a missing image; ``missing`` has the reasons by alias."""
    return [replace(one, hold=missing.get(one.spec.base_image.value, "")) for one in wanted]


def _with_failures(
    wanted: Iterable[Wanted], failed: Mapping[str, FailedCreation], interval: float, now: float
) -> list[Wanted]:
    """The same runners, with the last failure to create one of the flavour, as the last reconcile has recorded it.

    One is tried again every ten minutes, but not in each reconcile of a timer with this interval, in seconds: others
    get back in the next one what they made room for.
    """
    # The timer's interval is up to a quarter longer.
    limit = max(times.BACK_OFF_LIMIT, 1.5 * interval)
    tried = {name for name, each in failed.items() if abs(now - each.last) >= limit}
    return [replace(one, failed=failed.get(one.flavor), is_tried=one.flavor in tried) for one in wanted]


def _log_removed(removed: list[str]) -> None:
    for what in removed:
        logger.info("Removed: %s", what)
