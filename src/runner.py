"""One runner on LXD and at GitHub: create, remove, pull logs."""

import json
import logging
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

import provision
import shared_fs
import times
from engine import console, profiles
from engine.client import LxdClient
from engine.command import Command
from engine.instance import Execution, LxdInstance
from engine.probe import probe
from errors import (
    GithubClientError,
    GithubRunnerError,
    LxdError,
    LxdNotFoundError,
    MetricsStorageError,
    RunnerBusyError,
    RunnerCreateError,
    RunnerLogsError,
    RunnerRemoveError,
)
from gh.client import GithubClient
from gh.registration import Registration
from metrics.storage import MetricsStorage, record_flavor, write_new
from models import (
    RUNNER_INSTALLED_TS_FILE_NAME,
    Arch,
    CreateRunnerConfig,
    RegistrationData,
    RunnerConfig,
    RunnerStatus,
    Snap,
    VirtualMachineResources,
    WgetExecutable,
)
from naming import (
    BINARY_KEY,
    CREATED_KEY,
    FINGERPRINT_KEY,
    FLAVOR_KEY,
    PATH_KEY,
    PREPARED_KEY,
    RUNNER_ID_KEY,
    SCALE_SET_KEY,
    URL_KEY,
    binary_version,
)
from provision import APROXY_AMD_REVISION, APROXY_ARM_REVISION
from repo_policy import RepoPolicyClient
from runner_view import Process
from system import KEPT_OF_JOBS, beside, oldest_beyond, write_file

__all__ = [
    "APROXY_AMD_REVISION",
    "APROXY_ARM_REVISION",
    "Arch",
    "CreateRunnerConfig",
    "LxdInstance",
    "Runner",
    "RunnerConfig",
    "RunnerManagerClients",
    "RunnerStatus",
    "Snap",
    "VirtualMachineResources",
    "WgetExecutable",
]

logger = logging.getLogger(__name__)

LOGS_PATH = Path("/var/log/github-runner-logs")
# The runner agent's own folder of logs.
DIAG = "_diag"
LOG_SIZE_LIMIT = 1 << 20
MOST_LOG_FILES = 20
# In seconds: of one log, and of all logs of a runner.
LOG_TIMEOUT = 15
LOGS_TIMEOUT = 60
# Run inside. Everything but a regular file would be somebody else's trap.
LIST_LOGS = 'cd "$0" 2> /dev/null && find . -maxdepth 1 -type f -printf "%f\\n" | sort | tail -n "$1"'
READ_LOG = 'test -f "$0" && test ! -L "$0" && exec head -c "$1" -- "$0" 2> /dev/null'
READ_JOURNAL = "exec journalctl --no-pager --lines=5000 2> /dev/null"
CONSOLE_TIMEOUT = 20
STOP_TIMEOUT = times.STOP_INSTANCE


@dataclass(frozen=True)
class RunnerManagerClients:
    """What a runner needs of the world; ``repo`` is None where no policy service is used.

    Without ``registration`` runners register with the token of their CreateRunnerConfig.
    """

    github: GithubClient
    jinja: jinja2.Environment
    lxd: LxdClient
    repo: RepoPolicyClient | None
    clock: Callable[[], float] = time.time
    """UNIX seconds, for what is recorded on an instance."""
    registration: Registration | None = None


class Runner:
    """One runner. Everything it does is safe to repeat, and leaves nothing behind when it fails."""

    # Paths inside the instance.
    runner_application = Path(provision.RUNNER_APPLICATION)
    # Public module interface only.
    env_file = Path(provision.ENV_FILE)
    config_script = Path(provision.CONFIG_SCRIPT)
    runner_script = Path(provision.RUNNER_SCRIPT)
    pre_job_script = Path(provision.PRE_JOB_SCRIPT)

    def __init__(
        self,
        clients: RunnerManagerClients,
        runner_config: RunnerConfig,
        runner_status: RunnerStatus,
        instance: LxdInstance | None = None,
    ) -> None:
        self.config = runner_config
        self.status = runner_status
        self.instance = instance
        self._clients = clients
        self._created = ""
        self._storage: MetricsStorage | None = None

    def create(self, config: CreateRunnerConfig) -> None:
        """Register the runner, make its instance, set it up and start the runner agent in it.

        Just in time, the registration is first; with a token it is the end of the set-up. RunnerCreateError names the
        runner and the step; whatever was made is then removed again.
        """
        may_be_registered = False
        try:
            with self._step("registering"), beside(self._create_storage):
                registration = self._register(config)
                may_be_registered = registration.runner_id is not None
            with self._step("creating the instance"):
                self.instance = self._create_instance(config)
            with self._step("setting the instance up"):
                files = self._files(config, registration)
            with self._step("starting the instance"):
                set_up = self._start(self.instance)
            may_be_registered = True
            with self._step("setting the instance up"):
                done = self._set_up(set_up, files, config)
            with self._step("registering"):
                self._note_registration(self.instance, done)
            with self._step("starting the runner agent"):
                self._start_agent(self.instance)
        except BaseException:
            self._undo(may_be_registered)
            raise

    def remove(self, remove_token: str | None = None) -> None:
        """Stop and delete the instance, then deregister.

        RunnerRemoveError if the instance stays. A registration that stays is found by the next reconcile. The token is
        not used: a job may have run in the instance, and could take it.
        """
        if self.instance is not None:
            self._delete_instance(self.instance, graceful=self.status.online or self.status.busy)
        self._deregister()

    def remove_idle(self) -> bool:
        """Remove it unless it runs a job. It is deregistered first, so that it can get no job any more.

        False if it has become busy, by the health probe or by GitHub's answer; it is then kept.
        """
        if self.instance is None or self.status.runner_id is None:
            raise RunnerRemoveError(f"{self.config.name}: not removed, GitHub does not list it as idle")
        if probe(self.instance) in (Process.WORKER, Process.UNKNOWN):
            return False
        try:
            self._clients.github.delete_runner(self.config.path, self.status.runner_id)
        except RunnerBusyError:
            return False
        except GithubClientError as error:
            raise RunnerRemoveError(
                f"{self.config.name}: not removed, GitHub did not delete its registration: {error}"
            ) from error
        # No job can have come: nothing in it is worth the time of an orderly end.
        self._delete_instance(self.instance, graceful=False)
        return True

    def pull_logs(self) -> None:
        """Copy the logs of the runner agent and of the system to the host, each cut to a bounded size.

        The agent's logs are written to ``NAME/_diag/``, the system's to ``NAME/``. Where LXD cannot read files inside,
        what is printed to the console is written to ``NAME/console.log``.
        """
        if self.instance is None or not self.instance.running:
            raise RunnerLogsError(f"{self.config.name} has no running instance to pull logs from")
        target = LOGS_PATH / self.config.name
        deadline = time.monotonic() + LOGS_TIMEOUT
        pulled = 0
        try:
            for path, command in self._log_commands(self.instance):
                left = min(LOG_TIMEOUT, deadline - time.monotonic())
                content = self.instance.output(command, LOG_SIZE_LIMIT, left)
                if content:
                    write_file(target / path, content, 0o640)
                    pulled += 1
        except (LxdError, OSError) as error:
            # One log that takes too long may be meant to: the others are not worth the wait.
            logger.warning("No further logs of %s are pulled: %s", self.config.name, error)
        if not pulled and not self._pull_console(self.instance, target):
            raise RunnerLogsError(f"no log of {self.config.name} could be pulled")

    def _pull_console(self, instance: LxdInstance, target: Path) -> bool:
        """Write what a virtual machine prints to its console to ``NAME/console.log``; returns whether it printed."""
        if not (instance.virtual_machine and instance.running):
            return False
        try:
            end = provision.CONSOLE_END.encode()
            output = console.read(
                self._clients.lxd, instance.name, end=end, limit=LOG_SIZE_LIMIT, timeout=CONSOLE_TIMEOUT
            )
            if output:
                write_file(target / "console.log", output, 0o640)
        except (LxdError, OSError) as error:
            logger.warning("The console of %s was not read: %s", self.config.name, error)
            return False
        return bool(output)

    def _create_storage(self) -> None:
        if not self.config.issue_metrics:
            return
        try:
            self._storage = shared_fs.create(self.config.name)
        except (MetricsStorageError, OSError) as error:
            logger.error("%s goes without metrics: %s", self.config.name, error)
            return
        try:
            record_flavor(self._storage, self.config.flavor)
        except OSError as error:
            logger.error("The flavor of %s is not recorded for its metrics: %s", self.config.name, error)

    def _register(self, config: CreateRunnerConfig) -> RegistrationData:
        """What registers the runner in its instance. Its id is known only if GitHub has it already."""
        if self._clients.registration is None:
            # Public module interface only.
            return RegistrationData(token=config.registration_token)
        registration = self._clients.registration.register(self.config.name, self.config.labels)
        self.status = replace(self.status, runner_id=registration.runner_id)
        return registration

    def _create_instance(self, config: CreateRunnerConfig) -> LxdInstance:
        profiles.ensure_resources(self._clients.lxd, config.resources, container=self.config.container)
        devices = {}
        if self._storage is not None:
            path = str(provision.METRICS_FOLDER)
            devices["metrics"] = {"type": "disk", "source": str(self._storage.path), "path": path}
        self._created = f"{self._clients.clock():.6f}"
        keys = {
            URL_KEY: self.config.github_url,
            PATH_KEY: self.config.path.path,
            CREATED_KEY: self._created,
            FINGERPRINT_KEY: self.config.fingerprint,
            FLAVOR_KEY: self.config.flavor,
            BINARY_KEY: binary_version(config.binary_path.name),
            "boot.autostart": "false",
            # When the machine shuts down, LXD waits as long for an orderly end as the charm does.
            "boot.host_shutdown_timeout": str(STOP_TIMEOUT),
        }
        if self.config.scale_set is not None:
            keys[SCALE_SET_KEY] = str(self.config.scale_set)
        if self.status.runner_id is not None:
            keys[RUNNER_ID_KEY] = str(self.status.runner_id)
        if self.config.container:
            keys["security.nesting"] = "true"
        return self._clients.lxd.create_instance(
            self.config.name,
            source={"type": "image", "alias": config.image},
            virtual_machine=not self.config.container,
            profiles=["default", profiles.RUNNER, config.resources.profile],
            config=keys,
            devices=devices,
        )

    def _files(self, config: CreateRunnerConfig, registration: RegistrationData) -> list[provision.InstanceFile]:
        """Everything that is written into the instance."""
        policy = self._clients.repo
        connections = self.config.ssh_debug_connections
        return provision.files(
            self._clients.jinja,
            self.config,
            arch=config.arch,
            ssh_debug=random.choice(connections) if connections else None,  # noqa: S311  # nosec B311
            policy_url=policy.url if policy else None,
            policy_token=policy.one_time_token() if policy else "",
            registration_token=registration.token,
            registration_files=registration.files,
        )

    def _start(self, instance: LxdInstance) -> Command:
        """Start the instance, and in it the set-up, which waits for its files."""
        instance.start()
        return instance.begin(
            ["/bin/sh", "-c", provision.UNPACK_AND_SET_UP], environment={"HOME": "/root", "LANG": "C.UTF-8"}
        )

    def _set_up(self, command: Command, files: list[provision.InstanceFile], config: CreateRunnerConfig) -> Execution:
        """Send the files, set up and register in one command: each request costs a moment of every creation.

        They are streamed to it: with LXD's file API, which starts a process for each instance, it would be 0.2 s more.
        """
        binary = None if config.in_image else config.binary_path
        with command:
            limit = times.SET_UP_INSTANCE + times.REGISTER
            is_at_work = command.feed(lambda out: provision.write_archive(out, files, binary), limit)
            if is_at_work and self._storage is not None and self.instance is not None:
                # Here the request for the user's number takes no time of its own: the set-up is at work.
                shared_fs.give_to(self._storage, self.instance.host_uid(provision.UBUNTU))
            done = Execution(*command.result())
        if done.code not in (0, provision.WITHOUT_METRICS, provision.NOT_REGISTERED):
            raise LxdError(f"{provision.SETUP_SCRIPT.name} ended with {done.code}: {done.last_words}")
        return done

    def _note_registration(self, instance: LxdInstance, done: Execution) -> None:
        if done.code == provision.NOT_REGISTERED:
            raise LxdError(done.last_words)
        if done.code == provision.WITHOUT_METRICS:
            logger.error("%s goes without metrics: nothing is mounted in it", self.config.name)
        if self.status.runner_id is None:
            self.status = replace(self.status, runner_id=_registered_id(instance))

    def _start_agent(self, instance: LxdInstance) -> None:
        if self._storage is not None:
            # Before the first job can begin: from then on the storage is somebody else's.
            try:
                since = f"{self._clients.clock():.3f}".encode()
                write_new(Path(self._storage.path) / RUNNER_INSTALLED_TS_FILE_NAME, since)
            except OSError as error:
                logger.error("%s goes without metrics: %s", self.config.name, error)
        runner_id = str(self.status.runner_id) if self.status.runner_id is not None else None
        instance.set_config({PREPARED_KEY: f"{self._clients.clock():.0f}", RUNNER_ID_KEY: runner_id})
        # The last step: from here on it may have a job, which nothing that fails later may end.
        done = instance.execute(["systemctl", "start", "--no-block", provision.SERVICE], timeout=times.START_AGENT)
        if done.code != 0:
            raise LxdError(f"systemctl start ended with {done.code}")

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        try:
            yield
        except (GithubRunnerError, OSError) as error:
            failure = RunnerCreateError(f"{self.config.name}: {what} failed: {error}")
            failure.step = what
            raise failure from error

    def _undo(self, may_be_registered: bool) -> None:
        """Take back what a failed creation made; the next reconcile finds what cannot be taken back now."""
        with _logged("instance", self.config.name):
            instance = self.instance or self._cut_off()
            instance.stop(force=True)
            instance.delete()
        with _logged("registration", self.config.name):
            if may_be_registered:
                self._remove_registration()
        if self._storage is not None:
            with _logged("metrics storage", self.config.name):
                shared_fs.delete(self._storage.runner_name)

    def _remove_registration(self) -> None:
        """Deregister by the id, or by the name where the id is not known."""
        github, path, runner_id = self._clients.github, self.config.path, self.status.runner_id
        if runner_id is None:
            found = github.find_runner(path, self.config.name)
            runner_id = found.runner_id if found is not None else None
        if runner_id is not None:
            github.delete_runner(path, runner_id)

    def _cut_off(self) -> LxdInstance:
        """The instance of a request whose answer was lost; one that had the name before is not this charm's."""
        instance = self._clients.lxd.instance(self.config.name)
        if instance.config.get(CREATED_KEY) != self._created:
            raise LxdNotFoundError(f"{self.config.name} was not made here")
        return instance

    def _delete_instance(self, instance: LxdInstance, graceful: bool) -> None:
        try:
            if instance.running:
                instance.stop(STOP_TIMEOUT, force=not graceful)
            instance.delete()
        except LxdError as error:
            raise RunnerRemoveError(f"{self.config.name}: the instance cannot be removed: {error}") from error

    def _deregister(self) -> None:
        if self.status.runner_id is None:
            return
        try:
            self._clients.github.delete_runner(self.config.path, self.status.runner_id)
        except GithubClientError as error:
            logger.warning("%s is still registered, the next reconcile deregisters it: %s", self.config.name, error)

    def _log_commands(self, instance: LxdInstance) -> Iterator[tuple[Path, list[str]]]:
        """Where each log is written, and the command that reads it."""
        folder = self.runner_application / DIAG
        listing = instance.output(["/bin/sh", "-c", LIST_LOGS, str(folder), str(MOST_LOG_FILES)], 8192, LOG_TIMEOUT)
        # Names come from inside: only plain ones, and not too many.
        for name in listing.decode(errors="replace").splitlines()[:MOST_LOG_FILES]:
            if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name, re.ASCII):
                yield Path(DIAG, name), ["/bin/sh", "-c", READ_LOG, str(folder / name), str(LOG_SIZE_LIMIT)]
        yield Path("github-runner-journal.log"), ["/bin/sh", "-c", READ_JOURNAL]
        yield Path("syslog"), ["/bin/sh", "-c", READ_LOG, "/var/log/syslog", str(LOG_SIZE_LIMIT)]


def _registered_id(instance: LxdInstance) -> int | None:
    """The id that GitHub gave, from the file that config.sh wrote; None if it cannot be read: the list has it too."""
    try:
        settings = json.loads(instance.pull(str(provision.RUNNER_APPLICATION / ".runner"), 65536).decode("utf-8-sig"))
        return int(settings["agentId"])
    except (LxdError, ValueError, TypeError, KeyError) as error:
        logger.warning("The id of %s is not known yet: %s", instance.name, error)
        return None


@contextmanager
def _logged(what: str, name: str) -> Iterator[None]:
    """One part of a clean-up: its failure is logged and does not stop the others."""
    try:
        yield
    except LxdNotFoundError:
        pass
    except GithubRunnerError as error:
        logger.warning("The %s of %s was not removed: %s", what, name, error)


def remove_old_logs(now: float, keep_days: int = 7) -> None:
    """Delete the folders of crash logs that are older than ``keep_days``, and the oldest beyond a total size.

    What cannot be deleted is logged: a reconcile must not fail because of old logs.
    """
    try:
        with os.scandir(LOGS_PATH) as entries:
            folders = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("Crash logs cannot be listed: %s", error)
        return
    beyond = set(oldest_beyond(folders, KEPT_OF_JOBS))
    for folder in folders:
        try:
            if folder in beyond or now - folder.stat().st_mtime > keep_days * 86400:
                _remove_tree(folder)
        except (OSError, RecursionError) as error:
            logger.warning("Crash logs in %s cannot be removed: %s", folder, error)


def _remove_tree(folder: Path) -> None:
    """Remove a folder with everything in it. What cannot be removed is logged, and the rest is removed."""

    def log(_: object, path: str, error: Any) -> None:
        reason = error[1] if isinstance(error, tuple) else error
        if not isinstance(reason, FileNotFoundError):
            # The previous charm kept names that come from inside a runner.
            logger.warning("%r cannot be removed: %s", path, reason)

    # Python 3.12 deprecates onerror, which earlier versions need.
    handler: dict[str, Any] = {"onexc" if sys.version_info >= (3, 12) else "onerror": log}
    shutil.rmtree(str(folder), **handler)
