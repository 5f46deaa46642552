"""The forms of GitHub's values: times and versions."""

import re
from datetime import datetime, timedelta, timezone


def instant(seconds: float | None) -> str | None:
    """GitHub's usual form of a time."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def local_instant(seconds: float) -> str:
    """The form of the time at which a registration token ends: with milliseconds and an offset."""
    moment = datetime.fromtimestamp(seconds, timezone(timedelta(hours=-8)))
    return moment.isoformat(timespec="milliseconds")


def version_parts(version: str) -> list[int]:
    """The numbers of a version, to compare it with others."""
    return [int(part) for part in re.findall(r"\d+", version)]
