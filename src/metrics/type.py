"""What GitHub adds to a runner's metrics."""

from typing import NamedTuple


class GithubJobMetrics(NamedTuple):
    """``queue_duration`` in seconds; ``conclusion`` as GitHub gives it, None while there is none."""

    queue_duration: float
    conclusion: str | None
