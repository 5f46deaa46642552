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
    """One runner as LXD and GitHub show it in one observation. Times are UNIX seconds.

    ``github`` is None if GitHub does not list it, ``exists`` is False if LXD does not.
    ``seen_online``: GitHub has listed it as online before, or it is known to have had a job.
    ``gone``: GitHub has no registration with its id.
    ``prepared`` says that its creation came to the end, ``prepared_at`` when (0 where that is not recorded).
    """

    name: str
    exists: bool
    running: bool = False
    created_at: float = 0.0
    fingerprint: str = ""
    prepared: bool = False
    prepared_at: float = 0.0
    offline_since: float | None = None
    seen_online: bool = False
    gone: bool = False
    process: Process = Process.UNKNOWN
    github: GithubRunner | None = None
    github_known: bool = True
    flavor: str = DEFAULT_FLAVOR
    scale_set: int | None = None
    """The runner scale set that it registered with; None without one."""
    resources: VirtualMachineResources | None = None
    """What it was created with; None where that is not known."""
    confirmed: bool = False
    """GitHub, asked for this runner alone after the health probe, listed it as the list does."""
    presumed: bool = False
    """GitHub's list was not read: ``process`` follows from the number of jobs that run, unless the probe was run."""

    @property
    def busy(self) -> bool:
        """Whether it runs a job, by the health probe or by GitHub's list."""
        return self.process is Process.WORKER or self.github_has_job

    @property
    def github_has_job(self) -> bool:
        """Whether GitHub lists it as busy."""
        return self.github is not None and self.github.busy

    @property
    def is_listed_alive(self) -> bool:
        """Whether GitHub lists it as online or busy."""
        return self.github is not None and (self.github.online or self.github.busy)

    @property
    def job_is_unknown(self) -> bool:
        """Whether only the instance claims a job: GitHub was asked, and lists the runner neither as busy nor online."""
        claimed = self.exists and self.running and self.process is Process.WORKER
        return claimed and self.github_known and not self.is_listed_alive
