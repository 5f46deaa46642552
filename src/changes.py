"""Create and remove the runners of one reconcile, in parallel. The failure of one runner never stops the others."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import times
from engine.api import wait_until
from errors import GithubClientError, GithubRunnerError, LxdError, LxdNotFoundError, RunnerCreateError, RunnerLogsError
from flavor_plans import Wanted
from gh.registration import Registration, TokenRegistration
from metrics.collect import Collector
from models import (
    CreateRunnerConfig,
    GithubPath,
    PublishedImage,
    RunnerConfig,
    RunnerSpec,
    RunnerStatus,
)
from naming import OFFLINE_SINCE_KEY, ONLINE_KEY, Identity
from observe import ObservedRunner
from plan import Plan
from runner import Runner, RunnerManagerClients
from system import in_parallel

logger = logging.getLogger(__name__)

# Of a value that only the public module interface needs.
NO_PATH = Path()


@dataclass(frozen=True)
class Order:
    """Runners to create, and their fingerprint."""

    wanted: Wanted
    number: int
    fingerprint: str


@dataclass
class Changes:
    """The changes of one reconcile, flush or drain: makes them, and has the names of the runners that were changed.

    ``report`` takes a line for the operator for each failure, ``clock`` gives UNIX seconds. ``image`` tells what the
    image of an alias records.
    """

    identity: Identity
    spec: RunnerSpec
    clients: RunnerManagerClients
    collector: Collector
    binary: Path
    image: Callable[[str], PublishedImage]
    clock: Callable[[], float]
    report: Callable[[str], None]
    created: dict[str, str] = field(default_factory=dict)
    """The flavour of each runner by its name."""
    removed: list[str] = field(default_factory=list)
    failed_creations: int = 0
    not_created: dict[str, list[str]] = field(default_factory=dict)
    """The reasons of creations that failed, by flavour."""

    def existing(self, runners: Mapping[str, ObservedRunner]) -> set[str]:
        """The names of the runners that have an instance now, of those that were observed and those made since."""
        observed = {name for name, item in runners.items() if item.view.exists}
        return (observed - set(self.removed)) | set(self.created)

    def check_registration(self, registration: Registration | None = None) -> None:
        """Raise GithubClientError or ConfigurationError if no runner can be registered; None is the unit's own way."""
        (registration or self._registration).prepare()

    def check_method(self, registration: Registration | None = None) -> None:
        """Raise ConfigurationError if the server lacks the way in which runners are to register."""
        (registration or self._registration).check()

    def create(self, orders: Iterable[Order]) -> None:
        """Create the runners of all flavours side by side."""
        named = [(order, self.identity.new_name()) for order in orders for _ in range(order.number)]
        # Before any creation, because those are made in parallel.
        configs = {order.wanted.spec: self._creation(order.wanted.spec) for order, _ in named}
        made = in_parallel(lambda one: self._create_one(one[1], one[0], configs[one[0].wanted.spec]), named)
        self.failed_creations += made.count(False)

    def _creation(self, spec: RunnerSpec) -> CreateRunnerConfig:
        image = spec.base_image.value
        return CreateRunnerConfig(
            image,
            spec.resources,
            self.binary,
            "",  # each runner has a registration of its own
            spec.arch,
            in_image=self.image(image).binary == self.binary.name,
        )

    def remove(self, items: Sequence[ObservedRunner]) -> int:
        """Remove runners, whatever they do; returns how many instances stayed. A registration alone does not count."""
        removed = in_parallel(self._remove_one, items)
        return sum(1 for item, done in zip(items, removed, strict=True) if item.instance is not None and not done)

    def remove_idle(self, items: Sequence[ObservedRunner]) -> int:
        """Remove runners unless they have become busy; returns how many stayed."""
        return in_parallel(self._remove_one_idle, items).count(False)

    def flush(self, items: Sequence[ObservedRunner]) -> None:
        """Remove runners, busy ones too."""
        in_parallel(self._flush_one, items)

    def pull_logs(self, items: Sequence[ObservedRunner]) -> None:
        """Copy the logs of runners to the host."""
        in_parallel(self._pull_logs_of_one, items)

    def record_sightings(self, items: Mapping[str, ObservedRunner], plan: Plan, now: float) -> None:
        """Record on instances since when GitHub has not listed a runner as online, and that it once did."""
        keys: dict[str, dict[str, str | None]] = {
            name: {OFFLINE_SINCE_KEY: f"{now:.0f}"} for name in plan.record_offline
        }
        keys |= {name: {OFFLINE_SINCE_KEY: None} for name in plan.clear_offline}
        for name in plan.record_online:
            keys.setdefault(name, {})[ONLINE_KEY] = "true"

        def record(name: str) -> None:
            instance = items[name].instance
            if instance is not None:
                self._attempt(partial(instance.set_config, keys[name]))

        in_parallel(record, list(keys))

    def is_proven(self, flavor: str) -> bool:
        """Whether a runner of a flavour that was created just now comes online, which may take up to two minutes."""
        name = next((name for name, made_for in self.created.items() if made_for == flavor), None)
        if name is None:
            return False

        def online() -> bool:
            found = self.clients.github.find_runner(self.spec.path, name)
            return found is not None and found.online

        try:
            wait_until(online, times.PROOF, f"{name} online at GitHub", interval=2)
        except (LxdError, GithubClientError) as error:
            logger.warning("The other outdated runners are kept: %s", error)
            return False
        return True

    def _create_one(self, name: str, order: Order, config: CreateRunnerConfig) -> bool:
        wanted = order.wanted
        clients = replace(self.clients, registration=wanted.registration or self._registration)
        kept = self._config(name, wanted.spec.path, wanted.spec)
        kept = replace(kept, fingerprint=order.fingerprint, scale_set=wanted.scale_set)
        runner = Runner(clients, kept, RunnerStatus())
        started = self.clock()

        def create() -> None:
            try:
                runner.create(config)
            except RunnerCreateError as error:
                self.collector.failed(error.step, wanted.spec.flavor)
                self.not_created.setdefault(wanted.spec.flavor, []).append(str(error))
                raise
            self.created[name] = wanted.spec.flavor
            self.collector.installed(started, self.clock(), wanted.spec.flavor)

        return self._attempt(create)

    def _remove_one(self, item: ObservedRunner) -> bool:
        done = self._attempt(self._runner(item).remove)
        if done and item.instance is not None:
            self.removed.append(item.view.name)
        return done

    def _remove_one_idle(self, item: ObservedRunner) -> bool:
        removed: list[str] = []

        def remove() -> None:
            if self._runner(item).remove_idle():
                removed.append(item.view.name)

        self._attempt(remove)
        self.removed += removed
        return bool(removed)

    def _flush_one(self, item: ObservedRunner) -> None:
        """Deregister an idle runner first. Stop others in an orderly way: they may have a job."""
        if item.instance and item.view.github and item.view.github.online and not item.view.busy:
            with suppress(GithubRunnerError):
                if self._runner(item).remove_idle():
                    self.removed.append(item.view.name)
                    return
        self._remove_one(item)

    def _pull_logs_of_one(self, item: ObservedRunner) -> None:
        try:
            self._runner(item).pull_logs()
        except (RunnerLogsError, OSError) as error:
            logger.warning("%s", error)

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Change one runner; a failure is reported. Returns whether it succeeded: what is gone already is removed."""
        try:
            action()
        except LxdNotFoundError:
            return True
        except (GithubRunnerError, OSError) as error:
            logger.error("%s", error)
            self.report(str(error))
            return False
        return True

    @cached_property
    def _registration(self) -> Registration:
        """How the runners register; what they share is requested once, and only if one is created."""
        # Public module interface only: `Service` gives a registration.
        return self.clients.registration or TokenRegistration(self.clients.github, self.spec.path)

    def _runner(self, item: ObservedRunner) -> Runner:
        github = item.view.github
        status = RunnerStatus(
            runner_id=github.runner_id if github else item.recorded_id,
            exist=item.view.exists,
            online=bool(github and github.online),
            busy=item.view.busy,
        )
        return Runner(self.clients, self._config(item.view.name, item.path, self.spec), status, item.instance)

    def _config(self, name: str, path: GithubPath, spec: RunnerSpec) -> RunnerConfig:
        return RunnerConfig(
            app_name=self.identity.app_name,
            issue_metrics=spec.issue_metrics,
            labels=self.identity.labels(spec),
            lxd_storage_path=NO_PATH,
            name=name,
            path=path,
            proxies=spec.proxies,
            dockerhub_mirror=spec.dockerhub_mirror,
            ssh_debug_connections=spec.ssh_debug_connections,
            github_url=spec.github_url,
            ca_certificates=spec.ca_certificates,
            allow_external_contributor=spec.allow_external_contributor,
            pre_job_script=spec.pre_job_script,
            container=spec.container,
            flavor=spec.flavor,
        )
