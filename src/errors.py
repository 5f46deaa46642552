"""One class per thing that somebody catches."""

from datetime import datetime


class GithubRunnerError(Exception):
    """Root of the charm's own errors."""


class ConfigurationError(GithubRunnerError):
    """Options or relations that the operator must fix; ``invalid`` has one line for each."""

    def __init__(self, *invalid: str) -> None:
        super().__init__("; ".join(invalid))
        self.invalid = invalid


class JujuError(GithubRunnerError):
    """Juju could not answer; it may at the next event."""


class RunnerError(GithubRunnerError):
    """One runner's failure."""


class RunnerCreateError(RunnerError):
    """A runner could not be made; its text names the runner and the step, and ``step`` is the step alone."""

    step = ""


class RunnerRemoveError(RunnerError):
    """A runner could not be removed."""


class RunnerLogsError(RunnerError):
    """A runner's logs could not be pulled."""


class MetricsStorageError(GithubRunnerError):
    """Something about a runner's metrics storage."""


class CreateMetricsStorageError(MetricsStorageError):
    """A metrics storage could not be created, or exists."""


class GetMetricsStorageError(MetricsStorageError):
    """A metrics storage does not exist or cannot be mounted."""


class DeleteMetricsStorageError(MetricsStorageError):
    """A metrics storage could not be removed."""


class QuarantineMetricsStorageError(MetricsStorageError):
    """A metrics storage could not be archived to quarantine."""


class CorruptMetricDataError(GithubRunnerError):
    """A file from inside a runner broke a rule; its text says which."""


class IssueMetricEventError(GithubRunnerError):
    """An event could not be written to the metrics log."""


class GithubClientError(GithubRunnerError):
    """Something about GitHub's API."""


class TokenError(GithubClientError):
    """The token is invalid, lacks permission or cannot see the path: the operator must fix it."""


class GithubApiError(GithubClientError):
    """GitHub cannot be reached, or its answer was not expected: a later attempt may succeed."""


class TemporaryGithubError(GithubApiError):
    """A call that may be tried again at once."""


class RateLimitError(GithubApiError):
    """GitHub asks to come back later; ``reset`` is when, in UTC."""

    def __init__(self, message: str, reset: datetime) -> None:
        super().__init__(message)
        self.reset = reset


class RunnerBusyError(GithubClientError):
    """GitHub refuses to delete a runner that runs a job (422)."""


class JobNotFoundError(GithubClientError):
    """No job of that workflow run was run by that runner."""


class LxdError(GithubRunnerError):
    """LXD is not there, refused or did not answer in time."""


class LxdNotFoundError(LxdError):
    """LXD has no such thing."""


class PolicyError(GithubRunnerError):
    """The policy service gave no token."""


class HostError(GithubRunnerError):
    """A step of the machine's set-up failed."""


class CommandError(HostError):
    """A program failed, is missing or took too long."""
