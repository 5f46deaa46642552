"""Frozen values that several modules use. Nothing here does I/O."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from ipaddress import IPv4Network
from pathlib import Path
from typing import NamedTuple

import redaction
import times
from proxies import ProxyConfig


class Arch(str, Enum):
    """Architectures, as GitHub names them in its downloads list."""

    X64 = "x64"
    ARM64 = "arm64"


class BaseImage(str, Enum):
    """Ubuntu releases a runner can have; the value is the image's alias and a label."""

    JAMMY = "jammy"
    NOBLE = "noble"
    RESOLUTE = "resolute"


class RunnerStorage(str, Enum):
    """Where the pool ``runner`` lies."""

    JUJU_STORAGE = "juju-storage"
    MEMORY = "memory"


@dataclass(frozen=True)
class ImageSource:
    """What the image is built from: a simplestreams server, or an image that this machine's LXD has."""

    server: str | None = None
    alias: str | None = None

    def __str__(self) -> str:
        """As the option has it."""
        return self.server or f"local:{self.alias}"

    @classmethod
    def parse(cls, value: str) -> "ImageSource":
        """A server's URL or ``local:ALIAS``; ValueError for an alias that LXD would not take."""
        if not value.startswith("local:"):
            return cls(server=value)
        alias = value.removeprefix("local:")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", alias):
            raise ValueError(f"{value!r} is not local:ALIAS; give an alias of letters, digits, '.', '_' and '-'")
        return cls(alias=alias)


# Of the rows of the action check-runners.
FORMATS = ("json", "yaml", "table")


class FlushMode(Enum):
    """What a flush does with busy runners."""

    FLUSH_BUSY_WAIT_REPO_CHECK = "wait for the pre-job check"
    FORCE_FLUSH = "at once"


# The files of a runner's metrics storage.
PRE_JOB_METRICS_FILE_NAME = "pre-job-metrics.json"
POST_JOB_METRICS_FILE_NAME = "post-job-metrics.json"
RUNNER_INSTALLED_TS_FILE_NAME = "runner-installed.timestamp"

SIZE_UNITS = {"KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40, "PiB": 50, "EiB": 60}
SIZE_PATTERN = re.compile(r"([1-9][0-9]*)(KiB|MiB|GiB|TiB|PiB|EiB)")


def size_in_bytes(size: str) -> int:
    """Bytes of a size such as ``7GiB``; ValueError for any other form."""
    match = SIZE_PATTERN.fullmatch(size)
    if match is None:
        raise ValueError(
            f"{size!r} is not a positive whole number followed by {', '.join(SIZE_UNITS)}; set such a size"
        )
    return int(match[1]) << SIZE_UNITS[match[2]]


def gibibytes(size: int) -> str:
    """Bytes for a message, in hundredths of a GiB, rounded down: what is reported is there."""
    return f"{size * 100 // (1 << 30) / 100:g}GiB"


# The profiles of the previous charm have the same names as those of this charm, but no `user.github-runner.*` key.
RESOURCES_NAME = re.compile(r"cpu-(\d+)-mem-(\w+)-disk-(\w+)")


class VirtualMachineResources(NamedTuple):
    """Limits of one runner's instance: number of CPUs, and sizes such as ``7GiB``."""

    cpu: int
    memory: str
    disk: str

    @property
    def profile(self) -> str:
        """The name of the LXD profile that gives an instance these resources."""
        return f"cpu-{self.cpu}-mem-{self.memory}-disk-{self.disk}"

    @classmethod
    def of_profiles(cls, names: Iterable[str]) -> "VirtualMachineResources | None":
        """What the profiles of an instance give it; None where none of them is one of resources."""
        for name in names:
            found = RESOURCES_NAME.fullmatch(name)
            if found and all(SIZE_PATTERN.fullmatch(size) for size in found.groups()[1:]):
                return cls(int(found[1]), found[2], found[3])
        return None


@dataclass(frozen=True)
class GithubRepo:
    """A repository that runners register with."""

    owner: str
    repo: str

    @property
    def path(self) -> str:
        """``owner/repo``."""
        return f"{self.owner}/{self.repo}"

    def serves(self, repository: str) -> bool:
        """Whether its runners can run jobs of ``owner/repo``."""
        return repository.lower() == self.path.lower()


@dataclass(frozen=True)
class GithubOrg:
    """An organisation that runners register with, and the runner group they join."""

    org: str
    group: str = "default"

    @property
    def path(self) -> str:
        """The organisation's name."""
        return self.org

    def serves(self, repository: str) -> bool:
        """Whether its runners can run jobs of ``owner/repo``."""
        return repository.partition("/")[0].lower() == self.org.lower()


GithubPath = GithubRepo | GithubOrg


def parse_github_path(path: str, group: str = "default") -> GithubPath:
    """Read ``owner/repo`` or ``org``; ValueError for anything else.

    Surplus slashes are ignored, but an organisation is written without any: ``org/`` may be an incomplete repository.
    """
    parts = [part for part in path.split("/") if part]
    valid = all(re.fullmatch(r"[A-Za-z0-9._-]+", part) and part not in (".", "..") for part in parts)
    if not valid or len(parts) != (2 if "/" in path else 1):
        raise ValueError(f"{path!r} is neither owner/repo nor org; give one of them, without GitHub's address")
    return GithubRepo(*parts) if len(parts) == 2 else GithubOrg(path, group)


@dataclass(frozen=True)
class SSHDebugConnection:
    """A tmate server of the debug-ssh relation."""

    host: str
    port: int
    rsa_fingerprint: str
    ed25519_fingerprint: str


@dataclass(frozen=True)
class RepoPolicy:
    """An external repo-policy-compliance service."""

    url: str
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        """Mask the token."""
        redaction.note(self.token)


@dataclass(frozen=True)
class AppCredentials:
    """A GitHub App: its client id or number, and one of its private keys in PEM form.

    Without ``installation_id`` the installation is looked for by the path.
    """

    app_id: str
    private_key: str = field(repr=False)
    installation_id: int | None = None

    def __post_init__(self) -> None:
        """Mask the key, also if a text has only a line of it."""
        lines = self.private_key.splitlines()
        redaction.note(self.private_key, *(line for line in lines if not line.startswith("-----")))


class RegistrationMethod(str, Enum):
    """How runners register: just in time where the server has that, always, or with a registration token."""

    AUTO = "auto"
    JIT = "jit"
    TOKEN = "token"  # noqa: S105  # nosec B105


@dataclass(frozen=True)
class RegistrationData:
    """What registers one runner: a token for ``config.sh``, or the texts of the files that it would write, by name.

    ``runner_id`` is None where GitHub gives it only in the instance.
    """

    token: str = field(default="", repr=False)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    runner_id: int | None = None


class Scaling(str, Enum):
    """How many runners there are: a fixed number, or as many as jobs wait for."""

    FIXED = "fixed"
    DEMAND = "demand"


# The only flavour where the option `flavors` is empty.
DEFAULT_FLAVOR = "default"
# As the option `flavors` takes them.
FLAVOR_NAME = re.compile("[a-z][a-z0-9-]{0,19}")


@dataclass(frozen=True)
class Flavor:
    """One size of a unit's runners.

    ``labels`` has the unit's as well. ``count`` is the number of runners in fixed mode; ``min_idle`` and ``maximum``
    are the limits in demand mode.
    """

    name: str
    resources: VirtualMachineResources
    base_image: BaseImage
    labels: tuple[str, ...]
    count: int
    maximum: int
    min_idle: int = 0


@dataclass(frozen=True)
class RunnerSpec:
    """Everything that goes into a runner. If any of it changes, idle runners are replaced.

    Credentials are no part of it, nor is what only the build of the image needs: they replace no runner.
    """

    flavor: str
    github_url: str
    path: GithubPath
    labels: tuple[str, ...]
    base_image: BaseImage
    resources: VirtualMachineResources
    arch: Arch
    container: bool
    proxies: ProxyConfig
    ca_certificates: tuple[str, ...]
    dockerhub_mirror: str | None = field(repr=False)
    ssh_debug_connections: tuple[SSHDebugConnection, ...]
    policy_url: str | None
    allow_external_contributor: bool
    pre_job_script: str = field(repr=False)
    issue_metrics: bool


@dataclass(frozen=True)
class PublishedImage:
    """What the image that runners start from records about itself; nothing if this charm did not build it."""

    identity: str = ""
    """What it was built from, and what the options added to it."""
    additions: str = ""
    """A hash of what the options added to it; empty for the standard image."""
    binary: str = ""
    """The file name of the runner binary in it."""
    built_at: float | None = None
    """UNIX time of its build."""
    owner: str = ""
    """The application of this machine that had it first; empty if an earlier version built it."""


@dataclass(frozen=True)
class CharmState:
    """Everything the operator and the model ask for, valid as a whole."""

    github_url: str
    path: GithubPath
    token: str = field(repr=False)
    labels: tuple[str, ...]
    virtual_machines: int
    resources: VirtualMachineResources
    base_image: BaseImage
    image_source: ImageSource
    runner_storage: RunnerStorage
    reconcile_interval: int
    replace_on_exit: bool
    idle_runner_max_age: int
    denylist: tuple[IPv4Network, ...]
    dockerhub_mirror: str | None = field(repr=False)
    proxies: ProxyConfig
    """The unit's."""
    runner_proxies: ProxyConfig
    """The runners', and those of the image's build."""
    repo_policy: RepoPolicy | None
    test_mode: bool
    ssh_debug_connections: tuple[SSHDebugConnection, ...]
    arch: Arch
    issue_metrics: bool
    ca_certificates: tuple[str, ...] = ()
    allow_external_contributor: bool = True
    pre_job_script: str = field(default="", repr=False)
    app: AppCredentials | None = None
    """The GitHub App that is used instead of the token. Neither it nor the way of registering is part of a runner."""
    registration: RegistrationMethod = RegistrationMethod.AUTO
    is_partial: bool = False
    """Whether only what an action needs was read: the other fields are empty ones."""
    extra_packages: tuple[str, ...] = ()
    image_script: str = field(default="", repr=False)
    cached_actions: tuple[str, ...] = ()
    """Actions whose archives go into the image, each ``OWNER/REPO@REF``."""
    given_flavors: tuple[Flavor, ...] = ()
    """The option `flavors`; empty for one flavour with the unit's own options."""
    scaling: Scaling = Scaling.FIXED
    min_idle: int = 0
    """Of the one flavour, in demand mode."""
    memory_reserve: int = 2 << 30
    """Bytes of the machine's memory that are never given to runners."""
    cpu_overcommit: float = 2.0
    """The CPUs of all runners are at most this times the machine's."""
    demand_fallback: int = 0
    """Runners of each flavour while demand cannot be known."""
    metrics_port: int = 0
    """Of the loopback, for Prometheus; 0 for none."""

    def __post_init__(self) -> None:
        """Mask the token, and the mirror's password."""
        redaction.note(self.token)
        redaction.note_url(self.dockerhub_mirror)

    @property
    def flavors(self) -> tuple[Flavor, ...]:
        """Those of the option, or one flavour with the unit's own options."""
        if self.given_flavors:
            return self.given_flavors
        number = self.virtual_machines
        default = Flavor(
            DEFAULT_FLAVOR, self.resources, self.base_image, self.labels, number, number, min_idle=self.min_idle
        )
        return (default,)

    def limit(self, flavor: Flavor) -> int:
        """The most runners that a flavour may have: its count in fixed mode, its maximum in demand mode."""
        return flavor.maximum if self.scaling is Scaling.DEMAND else flavor.count

    def option(self, flavor: Flavor) -> str:
        """What an error of a flavour begins with, before the name of its option or key."""
        return f"flavors: {flavor.name}: " if self.given_flavors else ""

    @property
    def keeps_runners(self) -> bool:
        """Whether there may be a runner at all."""
        return any(map(self.limit, self.flavors))

    @property
    def has_budget(self) -> bool:
        """Whether the machine's memory, CPUs and storage limit the number of runners; otherwise notices tell."""
        return bool(self.given_flavors) or self.scaling is Scaling.DEMAND

    @property
    def watches_runners(self) -> bool:
        """Whether a reconcile starts as soon as a runner ends; in demand mode always, because jobs may wait for it."""
        return (self.replace_on_exit or self.scaling is Scaling.DEMAND) and self.keeps_runners

    @property
    def needs_agent(self) -> bool:
        """Whether the unit's agent runs beside the hooks."""
        return self.watches_runners or self.scaling is Scaling.DEMAND or self.metrics_port != 0

    @property
    def runners(self) -> tuple[RunnerSpec, ...]:
        """What goes into runners: one specification for each flavour, in the order of ``flavors``."""
        return tuple(map(self._spec, self.flavors))

    def _spec(self, flavor: Flavor) -> RunnerSpec:
        return RunnerSpec(
            flavor=flavor.name,
            github_url=self.github_url,
            path=self.path,
            labels=flavor.labels,
            base_image=flavor.base_image,
            resources=flavor.resources,
            arch=self.arch,
            container=self.test_mode,
            proxies=self.runner_proxies,
            ca_certificates=self.ca_certificates,
            dockerhub_mirror=self.dockerhub_mirror,
            ssh_debug_connections=self.ssh_debug_connections,
            policy_url=self.repo_policy.url if self.repo_policy else None,
            allow_external_contributor=self.allow_external_contributor,
            pre_job_script=self.pre_job_script,
            issue_metrics=self.issue_metrics,
        )


class Snap(NamedTuple):
    """A snap that a runner needs; without a revision the channel's newest."""

    name: str
    channel: str
    revision: int | None = None


class _UrlAndCommand(NamedTuple):
    url: str
    cmd: str


class WgetExecutable(_UrlAndCommand):
    """A single executable that is downloaded to ``/usr/bin/CMD`` if the image does not have it.

    It unpacks to URL and command. The checksum is an attribute beside them.
    """

    sha256: str | None

    def __new__(cls, url: str, cmd: str, sha256: str | None = None) -> "WgetExecutable":
        """With a checksum the download is verified."""
        executable = super().__new__(cls, url, cmd)
        executable.sha256 = sha256
        return executable


@dataclass
class RunnerConfig:
    """Configuration of one runner. ``labels`` does not contain the labels that GitHub adds by itself.

    The public module interface fixes this class, see docs/reference/python-api.md. ``app_name`` and
    ``lxd_storage_path`` are not used: they are there for that interface only.
    """

    app_name: str
    issue_metrics: bool
    labels: tuple[str, ...]
    lxd_storage_path: Path
    name: str
    path: GithubPath
    proxies: ProxyConfig
    dockerhub_mirror: str | None = field(default=None, repr=False)
    ssh_debug_connections: tuple[SSHDebugConnection, ...] | None = None
    github_url: str = "https://github.com"
    ca_certificates: tuple[str, ...] = ()
    allow_external_contributor: bool = True
    pre_job_script: str = field(default="", repr=False)
    container: bool = False
    fingerprint: str = ""
    flavor: str = DEFAULT_FLAVOR
    scale_set: int | None = None


@dataclass(frozen=True)
class CreateRunnerConfig:
    """What is needed to create a runner: image alias, resources, the runner binary, a registration token.

    The public module interface fixes this class, see docs/reference/python-api.md.
    """

    image: str
    resources: VirtualMachineResources
    binary_path: Path
    registration_token: str = field(repr=False)
    arch: Arch = Arch.X64
    in_image: bool = False
    """Whether the image has the runner binary already."""


@dataclass
class RunnerStatus:
    """Status of a runner: its id at GitHub, whether its instance exists, whether it is online and runs a job."""

    runner_id: int | None = None
    exist: bool = False
    online: bool = False
    busy: bool = False


@dataclass(frozen=True)
class GithubRunner:
    """A runner as GitHub lists it."""

    runner_id: int
    name: str
    online: bool
    busy: bool


@dataclass(frozen=True)
class OfferedBinary:
    """An entry of GitHub's downloads list."""

    url: str
    filename: str
    sha256: str | None
    token: str | None = field(default=None, repr=False, compare=False)
    """What the download needs at an Enterprise Server that hosts the file itself; valid for a short time."""


@dataclass(frozen=True)
class WorkflowJob:
    """The times and the conclusion of a job that a runner ran."""

    created_at: datetime
    started_at: datetime
    conclusion: str | None


@dataclass(frozen=True)
class FailedCreation:
    """The last creation of a runner of a flavour, where all have failed since one was created: UNIX time and reason."""

    last: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class FailedStarts:
    """Reconciles in a row that found a runner whose agent had ended without a job, and no later runner online.

    ``last`` is when that was found last, in UNIX seconds.
    """

    count: int = 0
    last: float = 0.0
    reason: str = ""

    def wait(self, now: float) -> float:
        """Seconds until the next runner may be created; each failure doubles the pause."""
        pause = min(times.BACK_OFF_LIMIT, times.BACK_OFF * 2 ** min(self.count - 1, 20)) if self.count else 0
        # The last failure is in the future if the clock was set back.
        return max(0.0, self.last + pause - now) if now >= self.last else 0.0
