"""A job's times, as metrics."""

from metrics.type import GithubJobMetrics
from models import WorkflowJob


def job_metrics(job: WorkflowJob) -> GithubJobMetrics:
    """How long the job waited for a runner, and how it ended."""
    return GithubJobMetrics((job.started_at - job.created_at).total_seconds(), job.conclusion)
