"""In-memory LXD and GitHub for tests of decisions and of faults that the real ones do not show on request.

They replace exactly the adapters that are handed in; the integration tests use the real ones.
"""

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import provision
import runner
from engine.instance import Execution
from errors import (
    ConfigurationError,
    GithubApiError,
    JobNotFoundError,
    LxdError,
    LxdNotFoundError,
    RunnerBusyError,
    TemporaryGithubError,
)
from metrics.storage import MetricsStorage
from models import (
    Arch,
    BaseImage,
    CharmState,
    GithubPath,
    GithubRepo,
    GithubRunner,
    ImageSource,
    RunnerStorage,
    VirtualMachineResources,
    WorkflowJob,
)
from naming import Identity
from proxies import ProxyConfig

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
IDENTITY = Identity("app", 0, "0123abcd")
RESOURCES = VirtualMachineResources(1, "1GiB", "2GiB")
REPO = GithubRepo("octo-org", "demo")


def state(**changes: Any) -> CharmState:
    """A valid state for two runners in test mode, without metrics."""
    values: dict[str, Any] = {
        "github_url": "https://github.example",
        "path": REPO,
        "token": "secret",
        "labels": ("extra",),
        "virtual_machines": 2,
        "resources": RESOURCES,
        "base_image": BaseImage.JAMMY,
        "image_source": ImageSource("https://images.example"),
        "runner_storage": RunnerStorage.JUJU_STORAGE,
        "reconcile_interval": 10,
        "replace_on_exit": True,
        "idle_runner_max_age": 0,
        "denylist": (),
        "dockerhub_mirror": None,
        "proxies": ProxyConfig(),
        "runner_proxies": ProxyConfig(),
        "repo_policy": None,
        "test_mode": True,
        "ssh_debug_connections": (),
        "arch": Arch.X64,
        "issue_metrics": False,
    }
    return CharmState(**{**values, **changes})


class FakeInstance:
    """An instance whose programs are Python functions of the test."""

    def __init__(self, lxd: "FakeLxd", name: str, config: Mapping[str, str], virtual_machine: bool = False) -> None:
        self.lxd, self.name, self.config = lxd, name, dict(config)
        self.profiles: list[str] = []
        self.running = False
        self.virtual_machine = virtual_machine
        self.process = 10
        self.files: dict[str, bytes] = {}
        self.pushed: list[tuple[str, int, int]] = []
        """Path, mode and user of each file in the order in which it was written."""
        self.commands: list[list[str]] = []

    def host_uid(self, uid: int) -> int:
        self.lxd.fault("host_uid", self.name)
        assert self.running, "LXD has no map of users in use for a stopped instance"
        return 1_000_000 + uid

    def start(self) -> None:
        self.lxd.fault("start", self.name)
        self.running = True

    def stop(self, timeout: int = 60, force: bool = False) -> None:
        self.lxd.fault("stop", self.name)
        self.lxd.log.append(f"{'stop by force' if force else 'stop'} {self.name}")
        self.running = False
        self.lxd.found.pop(self.name, None)

    def delete(self) -> None:
        self.lxd.log.append(f"delete {self.name}")
        self.lxd.found.pop(self.name, None)

    def set_config(self, values: Mapping[str, str | None]) -> None:
        self.lxd.fault("set_config", self.name)
        self.config = {k: v for k, v in {**self.config, **values}.items() if v}

    def execute(self, command: Sequence[str], **_: Any) -> Execution:
        self.lxd.fault("execute", self.name)
        self.commands.append(list(command))
        if "Worker" in command[-1]:
            return Execution(self.process)
        if command[0] == "pgrep":
            return Execution(self.lxd.pre_job.pop(0) if self.lxd.pre_job else 1)
        for word, code in self.lxd.exit_codes.items():
            if word in " ".join(command):
                return Execution(code, "", f"{word} did not work")
        if str(provision.SETUP_SCRIPT) in command[-1]:
            self.lxd.registered(self)
        return Execution(0)

    def push(self, path: str, content: "bytes | BinaryIO", *, mode: int = 0o644, user: int = 0) -> None:
        self.pushed.append((path, mode, user))
        self.files[path] = content if isinstance(content, bytes) else content.read()

    def begin(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> "FakeCommand":
        self.lxd.fault("begin", self.name)
        return FakeCommand(self, command)

    def pull(self, path: str, limit: int) -> bytes:
        if path not in self.files:
            raise LxdNotFoundError(path)
        return self.files[path][:limit]

    def output(self, command: Sequence[str], limit: int, timeout: float) -> bytes:
        self.lxd.fault("output", self.name)
        script, *arguments = command[2:]
        if script == runner.LIST_LOGS:
            names = [Path(name).name for name in self.files if name.startswith(f"{arguments[0]}/")]
            return "\n".join(names).encode()[:limit]
        if "--identifier" in script:
            return self.files.get("last words", b"")[:limit]
        return self.files.get(arguments[0] if arguments else "journal", b"")[:limit]


class FakeCommand:
    """A command that unpacks its input, and then does what the instance's ``execute`` does."""

    def __init__(self, instance: FakeInstance, command: Sequence[str]) -> None:
        self.instance, self.command, self.input = instance, command, io.BytesIO()
        self.refused: LxdError | None = None

    def __enter__(self) -> "FakeCommand":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def write(self, data: bytes) -> int:
        self.instance.lxd.fault("write", self.instance.name)
        return self.input.write(data)

    def feed(self, write: Callable[["FakeCommand"], object], timeout: float) -> bool:
        try:
            write(self)
        except LxdError as error:
            self.refused = error
        return self.refused is None

    def result(self) -> tuple[int, str]:
        if self.refused is not None:
            raise self.refused
        self.input.seek(0)
        with tarfile.open(fileobj=self.input) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    self.instance.push(f"/{member.name}", content.read(), mode=member.mode, user=member.uid)

        done = self.instance.execute(self.command)
        return done.code, done.stdout or done.stderr


class FakeLxd:
    """LXD with its instances and profiles; ``faults`` maps an action to a test that says whether it fails."""

    def __init__(self) -> None:
        self.found: dict[str, FakeInstance] = {}
        self.profiles: dict[str, dict[str, Any]] = {}
        self.faults: dict[str, Callable[[str], bool]] = {}
        self.exit_codes: dict[str, int] = {}
        self.pre_job: list[int] = []
        self.log: list[str] = []
        self.lists = 0
        self.missing_extensions: set[str] = set()
        self.registered: Callable[[FakeInstance], object] = lambda instance: None

    def fault(self, action: str, name: str) -> None:
        fails = self.faults.get(action)
        if fails and fails(name):
            raise LxdError(f"{action} of {name} is not possible")

    def has_extension(self, name: str) -> bool:
        return name not in self.missing_extensions

    def instances(self) -> list[FakeInstance]:
        self.lists += 1
        self.fault("list", "")
        return list(self.found.values())

    def instance(self, name: str) -> FakeInstance:
        if name not in self.found:
            raise LxdNotFoundError(name)
        return self.found[name]

    def create_instance(self, name: str, **options: Any) -> FakeInstance:
        self.fault("create", name)
        if name in self.found:
            raise LxdError(f"{name} exists already")
        self.log.append(f"create {name}")
        self.found[name] = FakeInstance(self, name, options["config"], options["virtual_machine"])
        self.found[name].profiles = list(options["profiles"])
        return self.found[name]

    def find(self, *path: str) -> Any:
        return self.profiles.get(path[1]) if path[0] == "profiles" else None

    def get(self, *path: str, **_: Any) -> Any:
        return [{"name": name, "used_by": [], **profile} for name, profile in self.profiles.items()]

    def change(self, method: str, *path: str, **options: Any) -> None:
        if method == "PUT":
            self.profiles[path[1]] = options["json"]
        elif method == "POST":
            self.profiles[options["json"]["name"]] = options["json"]
        else:
            self.fault("delete profile", path[1])
            del self.profiles[path[1]]


class FakeGithub:
    """GitHub with its registrations."""

    def __init__(self) -> None:
        self.runners: dict[str, GithubRunner] = {}
        self.deleted: list[int] = []
        self.busy: set[int] = set()
        self.gone: set[int] = set()
        self.down: set[str] = set()
        self.lists: list[str] = []
        self.tokens = self.revoked = 0
        self.handed: list[str] = []
        self.jobs: dict[str, WorkflowJob] = {}
        self.quota_left: int | None = 4999
        self.deprecated: bool | None = None

    def register(self, name: str, *, online: bool = True, busy: bool = False) -> GithubRunner:
        runner = GithubRunner(len(self.runners) + len(self.deleted) + 1, name, online, busy)
        self.runners[name] = runner
        return runner

    def list_runners(self, path: GithubPath, wanted: Callable[[str], bool]) -> list[GithubRunner]:
        self.lists.append(path.path)
        if "list" in self.down or path.path in self.down:
            raise GithubApiError("GitHub does not answer")
        return [runner for runner in self.runners.values() if wanted(runner.name)]

    def find_runner(self, path: GithubPath, name: str) -> GithubRunner | None:
        if "find" in self.down:
            raise GithubApiError("GitHub does not answer")
        return self.runners.get(name)

    def check_group(self, path: GithubPath) -> None:
        if "group" in self.down:
            raise ConfigurationError("group: there is no such group")

    def is_deprecated(self, path: GithubPath, version: str) -> bool | None:
        if "deprecation" in self.down:
            raise GithubApiError("GitHub does not answer")
        return self.deprecated

    def runner_is_gone(self, path: GithubPath, runner_id: int) -> bool:
        if {"list", "by id"} & self.down:
            raise GithubApiError("GitHub does not answer")
        return runner_id in self.gone

    def load_authorities(self) -> None:
        """There are none."""

    def revoke(self, handed: Sequence[str] = ()) -> None:
        self.revoked += not handed
        self.handed += handed

    def close(self) -> None:
        """Nothing is open."""

    def held_token(self) -> tuple[str, float | None]:
        return "secret", None

    def has_jit(self, path: GithubPath) -> bool:
        return False

    def registration_token(self, path: GithubPath) -> str:
        self.tokens += 1
        return "AABF3JGZDX3P5PMEXLND6TS6FCWO6"

    def delete_runner(self, path: GithubPath, runner_id: int) -> None:
        if "delete" in self.down:
            raise GithubApiError("GitHub does not answer")
        if runner_id in self.busy:
            raise RunnerBusyError(f"{runner_id} is busy")
        self.deleted.append(runner_id)
        self.runners = {name: runner for name, runner in self.runners.items() if runner.runner_id != runner_id}

    def job(self, repository: str, run_id: str, runner_name: str, timeout: float = 0) -> WorkflowJob:
        if "jobs" in self.down:
            raise TemporaryGithubError("GitHub does not answer")
        if runner_name not in self.jobs:
            raise JobNotFoundError(runner_name)
        return self.jobs[runner_name]


class FakeStorages:
    """Plain folders below a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, runner_name: str, /) -> MetricsStorage:
        (self.folder / runner_name).mkdir()
        return self.get(runner_name)

    def list_all(self) -> Iterator[MetricsStorage]:
        for path in sorted(self.folder.iterdir()):
            if path.is_dir():
                yield self.get(path.name)

    def get(self, runner_name: str, /) -> MetricsStorage:
        return MetricsStorage(self.folder / runner_name, runner_name)

    def delete(self, runner_name: str, /) -> None:
        for path in (self.folder / runner_name).iterdir():
            path.unlink()
        (self.folder / runner_name).rmdir()

    def names(self) -> list[str]:
        return [storage.runner_name for storage in self.list_all()]
