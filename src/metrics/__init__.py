"""Metrics events: a line in a log, which a collector sends to Loki, for each runner, job and reconcile."""
