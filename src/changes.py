"""Create and remove the runners of one reconcile, in parallel. The failure of one runner never stops the others."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import times
from engine.api import wait_until
from errors import GithubClientError, GithubRunnerError, LxdError, LxdNotFoundError, RunnerLogsError
from gh.registration import Registration, TokenRegistration
from metrics.collect import Collector
from models import (
    CreateRunnerConfig,
    GithubPath,
    PublishedImage,
    RunnerConfig,
    RunnerSpec,
    RunnerStatus,
    VirtualMachineResources,
)
from naming import Identity
from observe import ObservedRunner
from runner import Runner, RunnerManagerClients
from system import in_parallel

logger = logging.getLogger(__name__)

# Of a value that only the public module interface needs.
NO_PATH = Path()


@dataclass
class Changes:
    """The changes of one reconcile, flush or drain: makes them, and has the names of the runners that were changed.

    ``report`` takes a line for the operator for each failure, ``clock`` gives UNIX seconds.
    """

    identity: Identity
    spec: RunnerSpec
    clients: RunnerManagerClients
    collector: Collector
    binary: Path
    image: Callable[[], PublishedImage]
    clock: Callable[[], float]
    report: Callable[[str], None]
    created: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed_creations: int = 0

    def check_registration(self) -> None:
        """Raise GithubClientError or ConfigurationError if no runner can be registered."""
        self._registration.prepare()

    def check_method(self) -> None:
        """Raise ConfigurationError if the server lacks the way in which runners are to register."""
        self._registration.check()

    def create(self, number: int, resources: VirtualMachineResources, fingerprint: str) -> None:
        """Create this many runners of a fingerprint."""
        if number == 0:
            return
        config = CreateRunnerConfig(
            self.spec.base_image.value,
            resources,
            self.binary,
            "",  # each runner has a registration of its own
            self.spec.arch,
            in_image=self.image().binary == self.binary.name,
        )
        names = [self.identity.new_name() for _ in range(number)]
        made = in_parallel(lambda name: self._create_one(name, config, fingerprint), names)
        self.failed_creations += made.count(False)

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

    def record(self, items: Mapping[str, ObservedRunner], keys: Mapping[str, Mapping[str, str | None]]) -> None:
        """Set keys of instances, by the names of their runners; None removes a key."""
        for name, values in keys.items():
            instance = items[name].instance
            if instance is not None:
                self._attempt(partial(instance.set_config, values))

    def is_proven(self) -> bool:
        """Whether a runner that was created just now comes online, which may take up to two minutes."""
        if not self.created:
            return False
        name = self.created[0]

        def online() -> bool:
            found = self.clients.github.find_runner(self.spec.path, name)
            return found is not None and found.online

        try:
            wait_until(online, times.PROOF, f"{name} online at GitHub", interval=2)
        except (LxdError, GithubClientError) as error:
            logger.warning("The other outdated runners are kept: %s", error)
            return False
        return True

    def _create_one(self, name: str, config: CreateRunnerConfig, fingerprint: str) -> bool:
        clients = replace(self.clients, registration=self._registration)
        runner = Runner(clients, self._config(name, self.spec.path, fingerprint), RunnerStatus())
        started = self.clock()

        def create() -> None:
            runner.create(config)
            self.created.append(name)
            self.collector.installed(started, self.clock(), runner.config.flavor)

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
        return self.clients.registration or TokenRegistration(self.clients.github, self.spec.path)

    def _runner(self, item: ObservedRunner) -> Runner:
        github = item.view.github
        status = RunnerStatus(
            runner_id=github.runner_id if github else item.recorded_id,
            exist=item.view.exists,
            online=bool(github and github.online),
            busy=item.view.busy,
        )
        return Runner(self.clients, self._config(item.view.name, item.path), status, item.instance)

    def _config(self, name: str, path: GithubPath, fingerprint: str = "") -> RunnerConfig:
        spec = self.spec
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
            fingerprint=fingerprint,
            flavor=spec.flavor,
        )
