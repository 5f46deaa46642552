"""One runner as LXD, GitHub and the health probe of its instance show it in one observation."""

from dataclasses import dataclass
from enum import Enum

from models import DEFAULT_FLAVOR, GithubRunner, VirtualMachineResources


class Process(Enum):
    """What the health probe of an instance found."""

    UNKNOWN = "unknown"
    NONE = "none"
    RUNNING = "running"
    WORKER = "worker"
    DEPRECATED = "ended because GitHub no longer accepts its version"
    FAILED = "ended without a job"


@dataclass(frozen=True)
class RunnerView:
    """One runner as LXD and GitHub show it in one observation. Times are UNIX seconds."""

    name: str
    exists: bool
    """Whether LXD lists its instance."""
    running: bool = False
    created_at: float = 0.0
    fingerprint: str = ""
    prepared: bool = False
    """Whether its creation came to the end."""
    prepared_at: float = 0.0
    """When its creation came to the end; 0 where that is not recorded."""
    offline_since: float | None = None
    seen_online: bool = False
    """Whether GitHub has listed it as online before, or it is known to have had a job."""
    gone: bool = False
    """Whether GitHub has no registration with its id."""
    process: Process = Process.UNKNOWN
    github: GithubRunner | None = None
    """Its registration in GitHub's list; None if GitHub does not list it."""
    github_known: bool = True
    """Whether GitHub was asked."""
    flavor: str = DEFAULT_FLAVOR
    scale_set: int | None = None
    """The runner scale set that it registered with; None without one."""
    resources: VirtualMachineResources | None = None
    """The resources that it was created with; None where they are not known."""
    confirmed: bool = False
    """After the health probe GitHub was asked for this runner alone; the answer equals the list's."""
    presumed: bool = False
    """GitHub's list was not read: unless probed, ``process`` is derived from GitHub's number of running jobs."""

    @property
    def busy(self) -> bool:
        """Whether it runs a job, by the health probe or by GitHub's list."""
        return self.process is Process.WORKER or (self.github is not None and self.github.busy)

    @property
    def is_listed_alive(self) -> bool:
        """Whether GitHub lists it as online or busy."""
        return self.github is not None and (self.github.online or self.github.busy)

    @property
    def job_is_unknown(self) -> bool:
        """Whether only the instance claims a job: GitHub was asked, and lists the runner neither as busy nor online."""
        claimed = self.exists and self.running and self.process is Process.WORKER
        return claimed and self.github_known and not self.is_listed_alive
