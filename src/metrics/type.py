"""What GitHub adds to a runner's metrics."""

from typing import NamedTuple


class GithubJobMetrics(NamedTuple):
    """``queue_duration`` in seconds; ``conclusion`` as GitHub gives it. None is one that is not known."""

    queue_duration: float | None
    conclusion: str | None
