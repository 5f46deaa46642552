#!/usr/bin/env python3
"""The charm as Juju sees it: events, actions and the unit's status. What it does lies in runner_manager and host."""

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ops

import charm_state
import redaction
import status
import times
from cos_agent import CosAgentProvider
from engine.client import LxdClient
from errors import (
    ConfigurationError,
    GithubApiError,
    GithubClientError,
    GithubRunnerError,
    HostError,
    LxdError,
    RateLimitError,
    TokenError,
)
from host import follower, markers, runner_binary, state_database, timer
from models import CharmState, FailedStarts, FlushMode, Identity
from redaction import redact
from system import are_active

if TYPE_CHECKING:
    import jinja2

    from gh.client import GithubClient
    from report import Report
    from runner_manager import RunnerManager

logger = logging.getLogger(__name__)
# Every line is a process (juju-log): what these say of each request is not worth that.
for chatty in ("httpx2", "httpcore2", "urllib3", "ws4py", "cosl"):
    logging.getLogger(chatty).setLevel(logging.WARNING)

REBOOTING = "Rebooting for a pending update"
NO_BINARY = Path("none")
TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


class ReconcileRunnersEvent(ops.EventBase):
    """Fired by the systemd timer."""


class GithubRunnerEvents(ops.CharmEvents):
    """The charm's events, with the timer's among them."""

    reconcile_runners = ops.EventSource(ReconcileRunnersEvent)


class GithubRunnerCharm(ops.CharmBase):
    """Keeps a number of GitHub runners on each unit."""

    on = GithubRunnerEvents()

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        redaction.install()
        self._lxd = LxdClient()
        self._github_client: GithubClient | None = None
        self._markers = markers.Markers(self.unit.name)
        # Why no runner may be created in this hook, whether the machine was set up in it, and what its reconcile found.
        self._hold = ""
        self._repaired = False
        self._report: Report | None = None
        self._cos_agent = CosAgentProvider(self, charm_state.COS_AGENT_RELATION)
        observe = framework.observe
        observe(self.on.install, self._on_install)
        observe(self.on.upgrade_charm, self._on_upgrade_charm)
        for event in (self.on.start, self.on.config_changed, self.on.secret_changed):
            observe(event, self._on_changed)
        for relation in (charm_state.DEBUG_SSH_RELATION, charm_state.COS_AGENT_RELATION):
            events = self.on[relation]
            for event in (events.relation_changed, events.relation_departed, events.relation_broken):
                observe(event, self._on_changed)
        observe(self.on.reconcile_runners, self._on_reconcile_runners)
        observe(self.on.update_status, self._on_update_status)
        storage = self.on[charm_state.RUNNER_STORAGE]
        observe(storage.storage_attached, self._on_storage_attached)
        observe(storage.storage_detaching, self._on_storage_detaching)
        observe(self.on.stop, self._on_stop)
        observe(self.on.remove, self._on_remove)
        observe(self.on.check_runners_action, self._on_check_runners_action)
        observe(self.on.reconcile_runners_action, self._on_reconcile_runners_action)
        observe(self.on.flush_runners_action, self._on_flush_runners_action)
        observe(self.on.update_dependencies_action, self._on_update_dependencies_action)

    def _on_install(self, _: ops.InstallEvent) -> None:
        with suppress(HostError):
            self._markers.note(markers.NO_POLICY)
            self._markers.note(markers.TAKEN_OVER)
        self._guarded(self._set_up, due=(markers.SET_UP,))

    def _on_upgrade_charm(self, _: ops.UpgradeCharmEvent) -> None:
        from host import machine

        if not self._markers.exist() and not machine.has_previous_charm():
            with suppress(HostError):
                self._markers.note(markers.NO_POLICY)
        due = (markers.TAKEN_OVER, markers.SET_UP)
        self._guarded(self._prepare, self._reconcile, self._ensure_follower, due=due)

    def _on_changed(self, _: ops.EventBase) -> None:
        due = (markers.SET_UP, markers.FAILED_STARTS)
        self._guarded(self._prepare, self._reconcile, self._ensure_follower, due=due)

    def _on_reconcile_runners(self, _: ReconcileRunnersEvent) -> None:
        self._note_attendance()
        self._guarded(self._repair, self._update_kernel, self._reconcile_or_reboot, self._follow_repair)

    def _on_update_status(self, _: ops.UpdateStatusEvent) -> None:
        self._guarded(self._resume)

    def _on_storage_attached(self, _: ops.StorageAttachedEvent) -> None:
        """The unit has its storage, whatever happened to an earlier one."""
        with suppress(HostError):
            self._markers.clear(markers.LEAVING)

    def _on_storage_detaching(self, _: ops.StorageDetachingEvent) -> None:
        """The first event of a unit that is removed: Juju unmounts the storage after it, so that the pool goes now."""
        from host import machine

        self._leave()
        for what in machine.release(self._lxd, self._markers):
            logger.info("Removed: %s", what)

    def _on_stop(self, _: ops.StopEvent) -> None:
        self._leave()

    def _leave(self) -> None:
        """Whatever the options say: no timer, no runner, and no later event that would make them anew."""
        unit = self.unit.name
        for step in (partial(follower.remove, unit), partial(timer.remove, unit), self._note_leaving):
            try:
                for what in step():
                    logger.info("Removed: %s", what)
            except (GithubRunnerError, OSError) as error:
                logger.error("%s", error)
        try:
            state = self._load()
        except GithubRunnerError as error:
            logger.warning("The runners are removed without their registrations: %s", error)
            state = charm_state.without_credentials(self)
        try:
            removed = self._manager(state).flush(FlushMode.FORCE_FLUSH)
            logger.info("%s runners were removed", removed)
        except (GithubRunnerError, OSError) as error:
            logger.error("The runners were not removed: %s", error)

    def _note_leaving(self) -> list[str]:
        self._markers.note(markers.LEAVING)
        return []

    def _on_remove(self, _: ops.RemoveEvent) -> None:
        """Remove everything the charm created. Each step runs even if another fails: no later hook would retry it."""
        from host import machine

        identity = self._identity()

        def managed(name: str) -> bool:
            return identity.owns(name) or identity.may_be_previous(name)

        for what in machine.tear_down(self._lxd, self._markers, managed):
            logger.info("Removed: %s", what)

    def _on_check_runners_action(self, event: ops.ActionEvent) -> None:
        """It needs to know GitHub only: a fault elsewhere does not stop it."""

        def work(state: CharmState) -> dict[str, object]:
            return self._counts(state)

        self._action(event, work, needed=("github_url", "path", "token"))

    def _on_reconcile_runners_action(self, event: ops.ActionEvent) -> None:
        def work(state: CharmState) -> dict[str, object]:
            if event.params.get("acknowledge-no-policy"):
                self._markers.note(markers.NO_POLICY)
            self._try_at_once()
            self._repair(state)
            delta = self._reconcile(state)
            return {**self._counts(state), "delta.virtual-machines": delta}

        self._action(event, work)

    def _on_flush_runners_action(self, event: ops.ActionEvent) -> None:
        """Unless forced, only where new runners can be created: otherwise the unit would be left without any."""
        if event.params.get("force"):
            try:
                self._load()
            except GithubRunnerError as error:
                logger.warning("The runners are removed without their registrations: %s", error)
                with suppress(GithubRunnerError, OSError):
                    self._manager(charm_state.without_credentials(self)).flush(FlushMode.FORCE_FLUSH)

        def work(state: CharmState) -> dict[str, object]:
            force = bool(event.params.get("force"))
            self._markers.clear(markers.FAILED_STARTS)
            if not force:
                self._check_creation(state)
            self._status(ops.MaintenanceStatus("Flushing runners"))
            self._flush(state, force)
            if force:
                self._repair(state)
            delta = self._reconcile(state)
            return {**self._counts(state), "delta.virtual-machines": delta}

        self._action(event, work)

    def _on_update_dependencies_action(self, event: ops.ActionEvent) -> None:
        def work(state: CharmState) -> dict[str, object]:
            self._try_at_once()
            changed = self._update_application(state)
            self._repair(state)
            self._reconcile(state)
            return {"flush": changed}

        self._action(event, work)

    def _action(
        self,
        event: ops.ActionEvent,
        work: Callable[[CharmState], dict[str, object]],
        needed: tuple[str, ...] | None = None,
    ) -> None:
        """Do an action's work and give its results, or fail with the reason; ``needed`` are the values it uses."""
        before = self.unit.status
        if needed is None:
            self._take_over()
        try:
            if self._markers.read(markers.LEAVING) is not None and needed is None:
                raise HostError("the unit is being removed")
            event.set_results({key: redact(str(value)) for key, value in work(self._load(needed)).items()})
            if self._report and self._report.failures:
                event.fail(status.line(self._report.failures[-1]))
        except (GithubRunnerError, OSError) as error:
            # Juju lets a charm set four statuses; a unit in error has another one.
            kept = isinstance(error, ConfigurationError) and before.name in ("active", "blocked", "waiting")
            self._status(before if kept else status.of_error(error))
            event.fail(status.line(str(error)))

    def _guarded(self, *steps: Callable[[CharmState], object], due: tuple[str, ...] = ()) -> None:
        """Read what is wanted, do the steps, and turn what goes wrong into the unit's status.

        ``due`` are the markers of what this event makes due again, such as the machine's set-up. It stays due until it
        has succeeded.
        """
        try:
            if self._markers.read(markers.LEAVING) is not None:
                return
            self._markers.clear(*due)
            self._take_over()
            state = self._load()
            for step in steps:
                step(state)
        except (GithubRunnerError, OSError) as error:
            log = logger.info if isinstance(error, RateLimitError) else logger.error
            log("%s", error)
            found = status.of_error(error)
            # Where the set-up failed before, what follows from that says less.
            self._status(ops.WaitingStatus(self._hold) if self._hold and found.name == "waiting" else found)

    def _load(self, needed: tuple[str, ...] | None = None) -> CharmState:
        state = charm_state.load(self, needed)
        _export_proxies(state)
        return state

    def _set_up(self, state: CharmState, build_later: bool = False) -> None:
        """The timer first: whatever fails then, reconciles come, and complete what is missing."""
        from host import machine

        self._ensure_timer(state)
        fault: GithubRunnerError | None = None
        try:
            # Before the machine, so that an image that is built has it.
            self._refresh_application(state)
        except GithubRunnerError as error:
            fault = error
        machine.set_up(self._lxd, self._jinja, state, self.unit.name, self._progress, build_later=build_later)
        if fault is not None:
            raise fault

    def _prepare(self, state: CharmState, build_later: bool = False) -> None:
        """Set the machine up. While that fails the runners are reconciled all the same, but none is created."""
        self._free_previous_pool(state)
        try:
            self._set_up(state, build_later)
        except (ConfigurationError, TokenError):
            raise
        except (GithubRunnerError, OSError) as error:
            logger.error("%s", error)
            self._hold = status.describe(error)

    def _repair(self, state: CharmState) -> None:
        """Complete a set-up that did not come to its end, and make again what was lost since; else only look."""
        from host import machine

        if self._markers.read(markers.SET_UP) is not None:
            self._free_previous_pool(state)
            lost = machine.lost(self._lxd, state, self.unit.name)
            if not lost:
                machine.tend(self._jinja, state, self.unit.name)
                if not runner_binary.is_recent(time.time()):
                    self._refresh_application(state)
                return
            logger.warning("Lost since the set-up, and set up again: %s", ", ".join(lost))
        self._repaired = True
        self._prepare(state, build_later=True)

    def _resume(self, state: CharmState) -> None:
        """What update-status does: a marker and two systemd units are looked at, every few minutes."""
        if self._markers.read(markers.SET_UP) is None:
            self._prepare(state, build_later=True)
            self._reconcile(state)
            self._ensure_follower(state)
        else:
            self._repair_units(state)

    def _follow_repair(self, state: CharmState) -> None:
        if self._repaired or not follower.is_current(self.unit.name):
            self._ensure_follower(state)

    def _flush(self, state: CharmState, force: bool) -> None:
        try:
            self._manager(state).flush(FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK)
        except GithubClientError as error:
            if not force:
                raise
            logger.warning("The runners are removed without GitHub: %s", error)
            self._manager(state).flush(FlushMode.FORCE_FLUSH)

    def _check_creation(self, state: CharmState) -> None:
        """Raise what would keep new runners from being created."""
        from host import pool

        pool.check(self._lxd, state)
        self._repair(state)
        if self._reboot_awaited() is not None:
            raise HostError("a reboot is about to happen")
        self._manager(state).check_creation()

    def _take_over(self) -> None:
        """Remove what the previous charm left, until that has succeeded: whatever the options are, and in any event."""
        if self._markers.read(markers.TAKEN_OVER) is not None:
            return
        from host import machine

        if machine.take_over(self._lxd, self.unit.name):
            with suppress(HostError):
                self._markers.note(markers.TAKEN_OVER)

    def _free_previous_pool(self, state: CharmState) -> None:
        """Once no job runs, remove the runners in the previous charm's storage pool, which the set-up then replaces."""
        from host import pool

        try:
            users = pool.previous_pool_users(self._lxd)
            if not users:
                return
            pool.check(self._lxd, state)
            manager = self._manager(state)
            manager.check_creation()
            if users <= manager.observer.observe().runners.keys() and not manager.observer.any_busy():
                manager.drain()
        except (GithubRunnerError, OSError) as error:
            logger.warning("The storage pool of the previous charm is kept for now: %s", error)

    def _update_kernel(self, _: CharmState) -> None:
        from host import kernel

        kernel.update()

    def _progress(self, step: str) -> None:
        self._status(ops.MaintenanceStatus(step))

    def _repair_units(self, state: CharmState) -> None:
        """A look is enough where nothing died: this hook comes every few minutes."""
        following = state.replace_on_exit and state.virtual_machines > 0
        unit = self.unit.name
        active = are_active(timer.timer(unit), *([follower.service(unit)] if following else []))
        if not (active and follower.is_current(unit)):
            self._ensure_timer(state)
            self._ensure_follower(state)

    def _ensure_timer(self, state: CharmState) -> None:
        timer.ensure(self._jinja, self.unit.name, state.reconcile_interval)

    def _ensure_follower(self, state: CharmState) -> None:
        """Once the runners are there: it would take a unit without runners for one that has lost them."""
        wanted = state.virtual_machines if state.replace_on_exit else 0
        follower.ensure(self._jinja, self.unit.name, self._identity().prefix, wanted)

    def _refresh_application(self, state: CharmState) -> None:
        """Update the runner application; with one at hand, GitHub's outage does not stop the rest."""
        try:
            self._update_application(state)
        except (GithubApiError, HostError) as error:
            if runner_binary.current() is None:
                raise
            logger.warning("The runner application was not refreshed: %s", error)

    def _update_application(self, state: CharmState) -> bool:
        from host import image

        def downloading() -> None:
            self._status(ops.MaintenanceStatus("Downloading runner binary"))

        changed = runner_binary.update(self._github(state), state.path, state.arch, downloading=downloading)
        using = runner_binary.current()
        if changed and using is not None:
            self.unit.set_workload_version(runner_binary.version(using))
            # The service is not there before the first set-up, which builds the image itself.
            with suppress(LxdError, HostError):
                image.renew(self._lxd, self.unit.name, state.base_image.value)
        return changed

    def _reconcile(self, state: CharmState) -> int:
        from host import pool

        pool.check(self._lxd, state)
        if self._reboot_awaited() is not None:
            self._status(ops.MaintenanceStatus(REBOOTING))
            return 0
        if self._markers.read(markers.SET_UP) is None:
            # Also where this event did not try: without a firewall, for example, no runner may run.
            self._hold = self._hold or "the set-up of the machine is not complete"
        return self._reconcile_runners(state)

    def _reconcile_runners(self, state: CharmState) -> int:
        self._status(ops.MaintenanceStatus("Reconciling runners"))
        manager = self._manager(state)
        try:
            delta = manager.reconcile(state.virtual_machines, state.resources)
        finally:
            self._report = manager.report
        findings = manager.findings
        self._keep_failed_starts(findings.failed_starts)
        if findings.deprecated and self._is_deprecated(state):
            runner_binary.refuse()
        elif findings.proven:
            runner_binary.accept()
        self._status(status.of_report(manager.report, state.test_mode, self._notices(state, manager.report)))
        return delta

    def _creation(self, tarball: Path) -> dict[str, Any]:
        """What delays the creation of runners: the manager's arguments."""
        failed, now = self._failed_starts(), time.time()
        hold = self._hold or _hold(tarball) or _pause(failed, now)
        return {"hold": hold, "canary": runner_binary.refused_at(now), "failed_starts": failed}

    def _failed_starts(self) -> FailedStarts:
        numbers = self._markers.numbers(markers.FAILED_STARTS, 2)
        words = (self._markers.read(markers.FAILED_STARTS) or "").split(maxsplit=2)[2:]
        if not numbers or not all(map(math.isfinite, numbers)):
            return FailedStarts()
        return FailedStarts(int(numbers[0]), numbers[1], "".join(words).strip())

    def _keep_failed_starts(self, found: FailedStarts | None) -> None:
        """Record what a reconcile has found out about runners that end without a job."""
        if found is not None and found.count:
            self._markers.note(markers.FAILED_STARTS, f"{found.count} {int(found.last)} {found.reason}")
        elif found is not None:
            self._markers.clear(markers.FAILED_STARTS)

    def _try_at_once(self) -> None:
        """Create runners although GitHub calls their version deprecated, or the last ones ended without a job."""
        runner_binary.accept()
        self._markers.clear(markers.FAILED_STARTS)

    def _is_deprecated(self, state: CharmState) -> bool:
        """Whether GitHub, asked for the version, does not contradict what an instance has reported."""
        using = runner_binary.current()
        if using is None:
            return True
        try:
            return self._github(state).is_deprecated(state.path, runner_binary.version(using)) is not False
        except GithubClientError as error:
            logger.warning("GitHub is not asked for the version of the runner binary: %s", error)
            return True

    def _reconcile_or_reboot(self, state: CharmState) -> None:
        """Reboot for a pending kernel if no job runs; a request that came to nothing is repeated a day later."""
        from host import kernel

        if kernel.reboot_is_due():
            since = kernel.requested(self._markers, time.time())
            if (since is None or since >= times.REBOOT_AGAIN) and self._is_drained(state):
                kernel.note_request(self._markers, time.time())
                self._status(ops.MaintenanceStatus(REBOOTING))
                self.unit.reboot()
                return
        self._reconcile(state)

    def _is_drained(self, state: CharmState) -> bool:
        """Whether no runner is left: idle ones are deregistered first, so that no job goes down with the machine."""
        manager = self._manager(state)
        return not manager.observer.any_busy() and manager.drain()

    def _reboot_awaited(self) -> float | None:
        """Seconds since a reboot was requested that may still come."""
        from host import kernel

        since = kernel.requested(self._markers, time.time())
        return since if since is not None and since < times.REBOOT else None

    def _counts(self, state: CharmState) -> dict[str, object]:
        names = self._manager(state).counts()
        details = "\n".join(names.pop("details"))
        return {
            **{key: len(value) for key, value in names.items()},
            "runners": ", ".join(names["online"]),
            "details": details,
        }

    def _manager(self, state: CharmState) -> "RunnerManager":
        # A hook that has nothing to do with runners loads none of this: imports are most of its time.
        import shared_fs
        from host import image, pool
        from repo_policy import RepoPolicyClient
        from runner import RunnerManagerClients
        from runner_manager import RunnerManager

        policy = RepoPolicyClient(state.repo_policy) if state.repo_policy else None
        clients = RunnerManagerClients(self._github(state), self._jinja, self._lxd, policy)
        tarball = runner_binary.current() or NO_BINARY
        return RunnerManager(
            self._identity(),
            state,
            clients,
            shared_fs,
            tarball,
            lxd_storage_path=pool.MOUNT_POINT,
            **self._creation(tarball),
            image_age=lambda: image.age(self._lxd, state.base_image.value, time.time()),
            in_image=lambda: image.holds(self._lxd, state.base_image.value, tarball),
        )

    @cached_property
    def _jinja(self) -> "jinja2.Environment":
        import provision  # only where something is rendered

        return provision.environment(TEMPLATES)

    def _github(self, state: CharmState) -> "GithubClient":
        """One for the whole hook, and with it one connection."""
        if self._github_client is None:
            from gh.auth import Pat
            from gh.client import GithubClient

            self._github_client = GithubClient(
                state.github_url, Pat(state.token), ca_certificates=state.ca_certificates
            )
        return self._github_client

    def _identity(self) -> Identity:
        number = int(self.unit.name.rsplit("/", 1)[1])
        return Identity(self.app.name, number, hashlib.sha256(self.model.uuid.encode()).hexdigest()[:8])

    def _note_attendance(self) -> None:
        """Record that the timer's event came, and a time without it: the controller or Juju's agent was away."""
        now, last = time.time(), self._markers.numbers(markers.RECONCILED, 1)
        with suppress(HostError):
            if last and now - last[0] > max(times.UNATTENDED, 3 * 60 * int(self.config["reconcile-interval"])):
                logger.warning("No reconcile for %.0f minutes", (now - last[0]) / 60)
                self._markers.note(markers.UNATTENDED, f"{last[0]:.0f} {int(now)}")
            self._markers.note(markers.RECONCILED, str(int(now)))

    def _notices(self, state: CharmState, report: "Report") -> list[str]:
        """What is not wrong yet and will be, and what was wrong for a while, for the end of the status line."""
        from host import image, kernel, pool, resources
        from report import describe_failed_starts

        now = time.time()
        ages = (
            ("runner application not refreshed", runner_binary.age(now), runner_binary.STALE_AFTER),
            ("image not rebuilt", report.image_age, image.STALE_AFTER),
        )
        found = [f"{what} for {age / 86400:.0f} days" for what, age, limit in ages if age is not None and age > limit]
        since = kernel.requested(self._markers, now)
        if since is not None and kernel.reboot_is_due():
            found.append(f"a reboot for a pending update was requested {since / 60:.0f} minutes ago and did not happen")
        unchecked = state.repo_policy is None and state.allow_external_contributor
        if unchecked and self._markers.read(markers.NO_POLICY) is None:
            found.append("no repository policy check since the upgrade: see acknowledge-no-policy of reconcile-runners")
        failed = report.failed_starts
        if failed and failed.count and not report.failures:
            found.insert(0, status.fit(describe_failed_starts(failed, now), 120))
        if others := self._markers.others():
            found.append(f"the machine is shared with {', '.join(others)}")
        if shortage := pool.shortage(state):
            found.append(shortage)
        found += resources.overcommitment(state)
        away = self._markers.numbers(markers.UNATTENDED, 2)
        if away and 0 <= now - away[1] < times.DAY:
            start, end = (time.strftime("%d %b %H:%M", time.gmtime(moment)) for moment in away)
            found.append(f"no reconcile from {start} to {end} UTC")
        return found

    def _status(self, wanted: ops.StatusBase) -> None:
        self.unit.status = status.bounded(wanted)


def _export_proxies(state: CharmState) -> None:
    """Everything this process starts or asks goes through the model's proxies."""
    os.environ.update(state.proxies.environment("localhost", "127.0.0.1"))


def _hold(tarball: Path) -> str:
    """Why no runner can be created with this runner binary; empty where one can."""
    if tarball == NO_BINARY:
        return "the runner application is not downloaded yet"
    now = time.time()
    since = runner_binary.refused_at(now)
    if since is not None and now - since < times.DEPRECATED_CANARY:
        from report import describe_deprecated

        return describe_deprecated(tarball)
    return ""


def _pause(failed: FailedStarts, now: float) -> str:
    """Why no runner is created yet after the last ones ended without a job; empty where one may be."""
    from report import describe_failed_starts

    return describe_failed_starts(failed, now) if failed.wait(now) else ""


if __name__ == "__main__":
    # ops keeps its database locked while it runs.
    state_database.remove_stored_state(TEMPLATES.parent)
    ops.main(GithubRunnerCharm)
