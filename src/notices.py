"""What the unit's status says behind the counts: what will become a problem, and what was one for a while."""

import time
from collections.abc import Iterator

import status
import telemetry
import times
from host import image, image_builds, kernel, pool, resources, runner_binary
from host.markers import NO_POLICY, UNATTENDED, Markers
from models import CharmState
from report import Report, describe_failed_starts
from settings import images

# Of the reason why runners ended without a job, in characters.
REASON_LIMIT = 120


def notices(state: CharmState, markers: Markers, report: Report, now: float) -> list[str]:
    """A short text for each, in the order of the status line; ``now`` in UNIX seconds."""
    return [
        *_failed_starts(report, now),
        *_old(report, now),
        *_image_notices(state, markers, report),
        *_missing_reboot(markers, now),
        *_no_policy(state, markers),
        *_other_units(markers),
        *_no_metrics(state, markers),
        *filter(None, [pool.shortage(state)]),
        *resources.overcommitment(state),
        *_absence(markers, now),
    ]


def _failed_starts(report: Report, now: float) -> Iterator[str]:
    failed = report.failed_starts
    if failed and failed.count and not report.failures:
        yield status.fit(describe_failed_starts(failed, now), REASON_LIMIT)


def _old(report: Report, now: float) -> Iterator[str]:
    ages = (
        ("runner binary not refreshed", runner_binary.age(now), runner_binary.STALE_AFTER),
        ("image not rebuilt", report.image_age, image.STALE_AFTER),
    )
    for what, age, limit in ages:
        if age is not None and age > limit:
            yield f"{what} for {age / times.DAY:.0f} days"


def _image_notices(state: CharmState, markers: Markers, report: Report) -> Iterator[str]:
    found = []
    for wanted in images(state):
        published = report.images.get(wanted.alias)
        # Another image than the charm's own is replaced at once for these options only.
        if published is None or not (published.built_at is not None or wanted.extra_packages or wanted.script):
            continue
        if owner := image_builds.owning_unit(markers, wanted, published):
            found.append(f"image {wanted.alias} has the options of {owner} on this machine; set the same ones")
        elif missing := image_builds.missing_change(markers, wanted, published.additions):
            found.append(missing)
    yield from (status.fit(missing, REASON_LIMIT // len(found)) for missing in found)


def _missing_reboot(markers: Markers, now: float) -> Iterator[str]:
    since = kernel.requested(markers, now)
    if since is not None and kernel.reboot_is_due():
        yield f"a reboot for a pending update was requested {since / 60:.0f} minutes ago and did not happen"


def _no_policy(state: CharmState, markers: Markers) -> Iterator[str]:
    unchecked = state.repo_policy is None and state.allow_external_contributor
    if unchecked and markers.read(NO_POLICY) is None:
        yield "no repository policy check since the upgrade: see acknowledge-no-policy of reconcile-runners"


def _other_units(markers: Markers) -> Iterator[str]:
    if others := markers.others():
        yield f"the machine is shared with {', '.join(others)}"


def _no_metrics(state: CharmState, markers: Markers) -> Iterator[str]:
    """What the unit's agent has recorded of the port that is set now."""
    found = telemetry.problem(markers.unit)
    if state.metrics_port and found.startswith(f"metrics-port: {state.metrics_port} "):
        yield status.fit(found, REASON_LIMIT)


def _absence(markers: Markers, now: float) -> Iterator[str]:
    """A time without reconciles, for a day after its end."""
    away = markers.numbers(UNATTENDED, 2)
    if away and 0 <= now - away[1] < times.DAY:
        start, end = (time.strftime("%d %b %H:%M", time.gmtime(moment)) for moment in away)
        yield f"no reconcile from {start} to {end} UTC"
