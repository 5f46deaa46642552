"""What GitHub adds to a runner's metrics."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GithubJobMetrics:
    """``queue_duration`` in seconds; ``conclusion`` as GitHub gives it, None while there is none."""

    queue_duration: float
    conclusion: str | None
