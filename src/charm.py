#!/usr/bin/env python3
"""The charm as Juju sees it: events, actions and the unit's status. What it does is in service.py."""

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import ops

import charm_state
import redaction
import status
from cos_agent import CosAgentProvider
from errors import ConfigurationError, GithubRunnerError, HostError, RateLimitError
from host import markers, state_database, triggers
from models import FORMATS, CharmState
from naming import Identity
from redaction import redact
from status import Status
from system import beside

if TYPE_CHECKING:
    from service import Adapters, Service

logger = logging.getLogger(__name__)


class ReconcileRunnersEvent(ops.EventBase):
    """Fired by the timer's service, which the timer and the unit's agent start."""


class GithubRunnerEvents(ops.CharmEvents):
    """The charm's events, with that of the timer's service among them."""

    reconcile_runners = ops.EventSource(ReconcileRunnersEvent)


class GithubRunnerCharm(ops.CharmBase):
    """Keeps a number of GitHub runners on each unit. ``adapters`` are for tests, which reach no LXD and no GitHub."""

    on = GithubRunnerEvents()

    def __init__(self, framework: ops.Framework, adapters: "Adapters | None" = None) -> None:
        super().__init__(framework)
        # ops logs each event to the root logger; Juju's own log has them too.
        logging.getLogger().setLevel(logging.INFO)
        redaction.install()
        self._adapters = adapters
        self._markers = markers.Markers(self.unit.name)
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
        self._unconfigured().note_installation()
        self._guarded(lambda service: service.set_up(), due=(markers.SET_UP,))

    def _on_upgrade_charm(self, _: ops.UpgradeCharmEvent) -> None:
        self._unconfigured().note_upgrade()
        self._guarded(lambda service: service.apply(), due=(markers.TAKEN_OVER, markers.SET_UP))

    def _on_changed(self, _: ops.EventBase) -> None:
        self._guarded(lambda service: service.apply(), due=(markers.SET_UP, *markers.FAILURES))

    def _on_reconcile_runners(self, _: ReconcileRunnersEvent) -> None:
        clock = self._adapters.clock if self._adapters else None
        self._markers.note_attendance(int(self.config["reconcile-interval"]), clock)
        self._guarded(lambda service: service.attend())

    def _on_update_status(self, _: ops.UpdateStatusEvent) -> None:
        """It comes every few minutes. One marker and two systemd units are checked, and usually nothing is missing."""

        def is_complete(state: CharmState) -> bool:
            is_set_up = self._markers.read(markers.SET_UP) is not None
            return is_set_up and triggers.are_running(self.unit.name, state.needs_agent)

        self._guarded(lambda service: service.resume(), unless=is_complete)

    def _on_storage_attached(self, _: ops.StorageAttachedEvent) -> None:
        """The unit has its storage, whatever happened to an earlier one."""
        with suppress(HostError):
            self._markers.clear(markers.LEAVING)

    def _on_storage_detaching(self, event: ops.StorageDetachingEvent) -> None:
        """The first event of a unit that is removed: Juju unmounts the storage after it, so that the pool goes now."""
        self._on_stop(event)
        self._unconfigured().release()

    def _on_stop(self, _: ops.EventBase) -> None:
        self._unconfigured().close()  # whatever the options are
        try:
            service = self._service(self._load())
        except GithubRunnerError as error:
            logger.warning("The runners are removed without their registrations: %s", error)
            service = self._unconfigured()
        service.leave()

    def _on_remove(self, _: ops.RemoveEvent) -> None:
        self._unconfigured().tear_down()

    def _on_check_runners_action(self, event: ops.ActionEvent) -> None:
        """It needs to know GitHub only: an invalid value of another option does not stop it."""
        form = str(event.params.get("format") or "")
        if form and form not in FORMATS:
            event.fail(status.fit(f"format: {form!r} is none of {', '.join(FORMATS)}"))
            return
        self._action(event, lambda service: service.check(form), needed=("github_url", "path", "token"))

    def _on_reconcile_runners_action(self, event: ops.ActionEvent) -> None:
        def work(service: "Service") -> dict[str, object]:
            service.try_at_once(no_policy=bool(event.params.get("acknowledge-no-policy")))
            service.repair()
            return {"delta.virtual-machines": service.reconcile(), **service.check()}

        self._action(event, work)

    def _on_flush_runners_action(self, event: ops.ActionEvent) -> None:
        force = bool(event.params.get("force"))
        if force:
            try:
                self._load()
            except GithubRunnerError as error:
                logger.warning("The runners are removed without their registrations: %s", error)
                with suppress(GithubRunnerError, OSError):
                    self._unconfigured().clear()

        def work(service: "Service") -> dict[str, object]:
            return {"delta.virtual-machines": service.flush(force), **service.check()}

        self._action(event, work)

    def _on_update_dependencies_action(self, event: ops.ActionEvent) -> None:
        self._action(event, lambda service: {"flush": service.update_dependencies()})

    def _action(
        self,
        event: ops.ActionEvent,
        work: "Callable[[Service], dict[str, object]]",
        needed: tuple[str, ...] | None = None,
    ) -> None:
        """Do an action's work and give its results, or fail with the reason; ``needed`` are the values it uses."""
        if needed is None and self._markers.read(markers.LEAVING) is not None:
            marker = self._markers.path(markers.LEAVING)
            event.fail(f"the unit is being removed or drained: to use a drained unit again, delete the marker {marker}")
            return
        before = self.unit.status
        if needed is None:
            self._take_over()
        try:
            service = self._service(self._load(needed))
            event.set_results({key: redact(str(value)) for key, value in work(service).items()})
            if service.report and service.report.failures:
                event.fail(status.line(service.report.failures[-1]))
        except (GithubRunnerError, OSError) as error:
            # Juju lets a charm set four statuses; a unit in error has another one.
            kept = isinstance(error, ConfigurationError) and before.name in ("active", "blocked", "waiting")
            self._show(Status(before.name, before.message) if kept else status.of_error(error))
            event.fail(status.line(str(error)))

    def _guarded(
        self,
        work: "Callable[[Service], None]",
        due: tuple[str, ...] = (),
        unless: Callable[[CharmState], bool] = lambda state: False,
    ) -> None:
        """Read what is wanted, do the work ``unless`` there is none, and turn an error into the unit's status.

        ``due`` are the markers of what this event makes due again, until it has succeeded: such as the set-up.
        """
        service: Service | None = None
        try:
            if self._markers.read(markers.LEAVING) is not None:
                return
            self._markers.clear(*due)
            self._take_over()
            state = self._load()
            if not unless(state):
                service = self._service(state)
                work(service)
        except (GithubRunnerError, OSError) as error:
            logger.log(logging.INFO if isinstance(error, RateLimitError) else logging.ERROR, "%s", error)
            found = status.of_error(error)
            # Where the set-up failed before, that is the reason of what failed then.
            hold = service.hold if service else ""
            self._show(Status("waiting", hold) if hold and found.name == "waiting" else found)

    def _take_over(self) -> None:
        """Remove what the previous charm left, until that has succeeded: whatever the options are, and in any event."""
        if self._markers.read(markers.TAKEN_OVER) is None:
            self._unconfigured().take_over()

    def _load(self, needed: tuple[str, ...] | None = None) -> CharmState:
        """The state. Everything that this process starts or asks then goes through the model's proxies."""
        state = charm_state.load(self, needed)
        os.environ.update(state.proxies.environment("localhost", "127.0.0.1"))
        return state

    @cached_property
    def _service(self) -> "Callable[[CharmState], Service]":
        """Make a service of a state. Imported late: a hook that needs no service ends much sooner without it."""
        from service import Adapters, Service

        model = hashlib.sha256(self.model.uuid.encode()).hexdigest()[:8]
        return partial(
            Service,
            identity=Identity(self.app.name, int(self.unit.name.rsplit("/", 1)[1]), model),
            markers=self._markers,
            unit=self.unit,
            show=self._show,
            adapters=self._adapters or Adapters(),
        )

    def _show(self, found: Status) -> None:
        shown = status.bounded(found)
        self.unit.status = ops.StatusBase.from_name(shown.name, shown.message)

    def _unconfigured(self) -> "Service":
        """A service for what must work whatever the options are; it knows LXD's side only."""
        return self._service(charm_state.without_credentials(self))


if __name__ == "__main__":
    state_database.remove_stored_state(Path(__file__).resolve().parent.parent)  # ops locks its database
    is_reconcile = os.environ.get("JUJU_DISPATCH_PATH") == "reconcile-runners"
    # To load it takes a third of a second. Juju's tools, which give the options, are waited for meanwhile.
    with beside(partial(__import__, "service")) if is_reconcile else nullcontext():
        ops.main(GithubRunnerCharm)
