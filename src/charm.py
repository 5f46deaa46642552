#!/usr/bin/env python3
"""The charm as Juju sees it: events, actions and the unit's status. What it does lies in runner_manager and host."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import ops

import charm_state
from cos_agent import CosAgentProvider
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
from host import application, follower, timer
from lxd import LxdClient
from models import CharmState, FlushMode, Identity
from system import are_active

if TYPE_CHECKING:
    import jinja2

    from github_client import GithubClient
    from runner_manager import Report, RunnerManager

logger = logging.getLogger(__name__)
# Every line is a process (juju-log): what these say of each request is not worth that.
for chatty in ("httpx2", "httpcore2", "urllib3", "ws4py"):
    logging.getLogger(chatty).setLevel(logging.WARNING)

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
        self._lxd = LxdClient()
        self._github_client: GithubClient | None = None
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
        observe(self.on.stop, self._on_stop)
        observe(self.on.remove, self._on_remove)
        observe(self.on.check_runners_action, self._on_check_runners_action)
        observe(self.on.reconcile_runners_action, self._on_reconcile_runners_action)
        observe(self.on.flush_runners_action, self._on_flush_runners_action)
        observe(self.on.update_dependencies_action, self._on_update_dependencies_action)

    def _on_install(self, _: ops.InstallEvent) -> None:
        self._guarded(self._set_up)

    def _on_upgrade_charm(self, _: ops.UpgradeCharmEvent) -> None:
        self._guarded(self._take_over, self._set_up, self._reconcile, self._ensure_follower)

    def _on_changed(self, _: ops.EventBase) -> None:
        self._guarded(self._set_up, self._reconcile, self._ensure_follower)

    def _on_reconcile_runners(self, _: ReconcileRunnersEvent) -> None:
        self._guarded(self._refresh_application, self._update_kernel, self._reconcile_or_reboot)

    def _on_update_status(self, _: ops.UpdateStatusEvent) -> None:
        self._guarded(self._repair_units)

    def _on_stop(self, _: ops.StopEvent) -> None:
        """Whatever the options say: no timer, no runner."""
        try:
            follower.remove()
            timer.remove()
        except (GithubRunnerError, OSError) as error:
            logger.error("The timer was not removed: %s", error)
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

    def _on_remove(self, _: ops.RemoveEvent) -> None:
        """Nothing of ours stays; each step on its own, for nobody comes back to mend it."""
        from host import machine

        identity = self._identity()
        for what in machine.tear_down(self._lxd, lambda name: identity.owns(name) or identity.inherits(name)):
            logger.info("Removed: %s", what)

    def _on_check_runners_action(self, event: ops.ActionEvent) -> None:
        """It needs to know GitHub only: a fault elsewhere does not stop it."""

        def work(state: CharmState) -> dict[str, object]:
            return self._counts(state)

        self._action(event, work, needed=("github_url", "path", "token"))

    def _on_reconcile_runners_action(self, event: ops.ActionEvent) -> None:
        def work(state: CharmState) -> dict[str, object]:
            delta = self._reconcile(state)
            return {**self._counts(state), "delta.virtual-machines": delta}

        self._action(event, work)

    def _on_flush_runners_action(self, event: ops.ActionEvent) -> None:
        def work(state: CharmState) -> dict[str, object]:
            self._status(ops.MaintenanceStatus("Flushing runners"))
            self._manager(state).flush(FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK)
            delta = self._reconcile(state)
            return {**self._counts(state), "delta.virtual-machines": delta}

        self._action(event, work)

    def _on_update_dependencies_action(self, event: ops.ActionEvent) -> None:
        def work(state: CharmState) -> dict[str, object]:
            changed = self._update_application(state)
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
        try:
            event.set_results({key: str(value) for key, value in work(self._load(needed)).items()})
        except (GithubRunnerError, OSError) as error:
            self._status(before if isinstance(error, ConfigurationError) else _status_of(error))
            event.fail(str(error))

    def _guarded(self, *steps: Callable[[CharmState], object]) -> None:
        """Read what is wanted, do the steps, and turn what goes wrong into the unit's status."""
        try:
            state = self._load()
            for step in steps:
                step(state)
        except (GithubRunnerError, OSError) as error:
            log = logger.info if isinstance(error, RateLimitError) else logger.error
            log("%s", error)
            self._status(_status_of(error))

    def _load(self, needed: tuple[str, ...] | None = None) -> CharmState:
        state = charm_state.load(self, needed)
        _export_proxies(state)
        return state

    def _set_up(self, state: CharmState) -> None:
        from host import machine

        fault: GithubRunnerError | None = None
        try:
            # First, so that an image that is built has it.
            self._refresh_application(state)
        except GithubRunnerError as error:
            fault = error
        machine.set_up(self._lxd, self._jinja, state, self.unit.name, self._progress)
        self._ensure_timer(state)
        if fault is not None:
            raise fault

    def _take_over(self, state: CharmState) -> None:
        """Remove what the incumbent charm left; its idle runners too, so that its pool can be made anew."""
        from host import machine, storage

        machine.take_over(self._lxd)
        follower.restart()
        if self._lxd.find("storage-pools", storage.POOL) and not storage.is_ours(self._lxd):
            self._manager(state).reconcile(0, state.resources)

    def _update_kernel(self, _: CharmState) -> None:
        from host import kernel

        kernel.update()

    def _progress(self, step: str) -> None:
        self._status(ops.MaintenanceStatus(step))

    def _repair_units(self, state: CharmState) -> None:
        """A look is enough where nothing died: this hook comes every few minutes."""
        following = state.replace_on_exit and state.virtual_machines > 0
        if not are_active(timer.TIMER, *([follower.SERVICE] if following else [])):
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
            if application.current() is None:
                raise
            logger.warning("The runner application was not refreshed: %s", error)

    def _update_application(self, state: CharmState) -> bool:
        from host import image

        def downloading() -> None:
            self._status(ops.MaintenanceStatus("Downloading runner binary"))

        changed = application.update(self._github(state), state.path, state.arch, downloading=downloading)
        using = application.current()
        if changed and using is not None:
            self.unit.set_workload_version(using.name.removesuffix(".tar.gz").rsplit("-", 1)[-1])
            with suppress(LxdError):
                image.renew(self._lxd, state.base_image.value)
        return changed

    def _reconcile(self, state: CharmState) -> int:
        from host import storage

        storage.check(self._lxd, state)
        if application.current() is None:
            raise HostError("the runner application is not downloaded yet")
        return self._reconcile_runners(state)

    def _reconcile_runners(self, state: CharmState) -> int:
        self._status(ops.MaintenanceStatus("Reconciling runners"))
        manager = self._manager(state)
        delta = manager.reconcile(state.virtual_machines, state.resources)
        if manager.report.refused:
            application.refuse()
        self._status(_status_of_report(manager.report, state.test_mode, _notices(manager.report)))
        return delta

    def _reconcile_or_reboot(self, state: CharmState) -> None:
        """Reboot for a pending kernel if no job runs; otherwise, or while one does, a pass."""
        from host import kernel

        manager = self._manager(state)
        if kernel.reboot_is_due() and not manager.any_busy():
            # GitHub forgets the idle runners first, so that no job goes down with the machine.
            manager.reconcile(0, state.resources)
            if not (manager.report.busy or manager.report.idle or manager.report.other):
                self._status(ops.MaintenanceStatus("Rebooting for a pending update"))
                self.unit.reboot()
                return
        self._reconcile(state)

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
        from host import image, storage
        from repo_policy import RepoPolicyClient
        from runner import RunnerManagerClients
        from runner_manager import RunnerManager

        policy = RepoPolicyClient(state.repo_policy) if state.repo_policy else None
        clients = RunnerManagerClients(self._github(state), self._jinja, self._lxd, policy)
        tarball = application.current() or Path("none")
        return RunnerManager(
            self._identity(),
            state,
            clients,
            shared_fs,
            tarball,
            lxd_storage_path=storage.MOUNT_POINT,
            may_create=not application.is_refused(time.time()),
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
            from github_client import GithubClient

            self._github_client = GithubClient(state.github_url, state.token)
        return self._github_client

    def _identity(self) -> Identity:
        number = int(self.unit.name.rsplit("/", 1)[1])
        return Identity(self.app.name, number, hashlib.sha256(self.model.uuid.encode()).hexdigest()[:8])

    def _status(self, status: ops.StatusBase) -> None:
        self.unit.status = status


def _export_proxies(state: CharmState) -> None:
    """Everything this process starts or asks goes through the model's proxies."""
    os.environ.update(state.proxies.environment("localhost", "127.0.0.1"))


def _status_of(error: Exception) -> ops.StatusBase:
    """Blocked is what the operator must mend; waiting what time mends (spec 1, Statuses)."""
    if isinstance(error, (ConfigurationError, TokenError)):
        return ops.BlockedStatus(str(error))
    if isinstance(error, LxdError):
        return ops.WaitingStatus(f"LXD: {error}")
    if isinstance(error, GithubClientError):
        return ops.WaitingStatus(f"GitHub: {error}")
    return ops.WaitingStatus(str(error))


def _notices(report: "Report") -> list[str]:
    """What is not wrong yet and will be, for the end of the status line."""
    from host import image

    ages = (
        ("runner application not refreshed", application.age(time.time()), application.STALE_AFTER),
        ("image not rebuilt", report.image_age, image.STALE_AFTER),
    )
    return [f"{what} for {age / 86400:.0f} days" for what, age, limit in ages if age is not None and age > limit]


def _status_of_report(report: "Report", test_mode: bool, notices: Sequence[str] = ()) -> ops.StatusBase:
    serving = len(report.idle) + len(report.busy)
    there = serving + len(report.other)
    mode = "".join(f"; {notice}" for notice in notices) + (" (test mode: containers)" if test_mode else "")
    failure = f"; {report.failures[-1]}" if report.failures else ""
    if report.wanted and (not there or (report.failures and not serving)):
        return ops.WaitingStatus(f"no runner of {report.wanted}{failure}{mode}")
    parts = [f"{len(report.idle)} idle", f"{len(report.busy)} busy"]
    if report.other:
        parts.append(f"{len(report.other)} starting or unclear")
    of = f"{there} of {report.wanted}" if there < report.wanted else f"{there}"
    noun = "runner" if of == "1" else "runners"
    return ops.ActiveStatus(f"{of} {noun}: {', '.join(parts)}{failure}{mode}")


if __name__ == "__main__":
    ops.main(GithubRunnerCharm)
