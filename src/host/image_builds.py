"""Builds of the image outside of hooks: when a reconcile starts one, and which of them have ended."""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import settings
from engine.client import LxdClient
from errors import HostError, LxdError
from host import image, systemd
from host.markers import IMAGE, Markers, application
from models import PublishedImage
from settings import ImageBuild

# Seconds after its start at which an unfinished build (a reboot, for example) is started again.
REPEAT_AFTER = 3600
# Failures of what the operator has set: the next build with the same options would fail in the same way.
OPTION_FAILURE = re.compile(
    r"image [^:]*: (image-script failed: |extra-packages failed: ended with \d+: not in this distribution: )"
)


class LastBuild(NamedTuple):
    """The build that was started last: for which additions, and when in UNIX seconds (None once it has ended)."""

    additions: str | None
    started: float | None


def is_running(unit: str) -> bool:
    """Whether the unit's service builds an image now."""
    return systemd.is_starting(image.service(unit))


def ensure(lxd: LxdClient, markers: Markers, build: ImageBuild) -> None:
    """If the image is missing, start a build and raise HostError with the last build's failure.

    A build takes longer than a reconcile may, and Juju would wait for it. It starts a reconcile when it is done. One
    that failed because of an option is repeated only by a change of these options and by the timer.
    """
    if image.is_there(lxd, build):
        image.name_foreign(lxd, build.alias)
        return
    failure = image.failure(build.alias)
    if OPTION_FAILURE.match(failure) and _last_build(markers) == (build.additions, None):
        raise HostError(f"{failure}; correct the option")
    systemd.start(image.service(markers.unit), wait=False)
    raise HostError(
        f"{failure}; being built again" if failure else f"image {build.alias}: being built, see `{image.JOURNAL}`"
    )


def start_missing(lxd: LxdClient, markers: Markers, builds: Sequence[ImageBuild]) -> dict[str, str]:
    """Start the build of each image that is missing; returns the reason why it is missing, by alias.

    Empty for a unit with one image: its set-up builds it.
    """
    found: dict[str, str] = {}
    for build in builds if len(builds) > 1 else ():
        try:
            if not image.is_there(lxd, build):
                ensure(lxd, markers, build)
        except (LxdError, HostError, OSError) as error:
            found[build.alias] = str(error)
    return found


def ensure_changed(lxd: LxdClient, markers: Markers, builds: Sequence[ImageBuild]) -> None:
    """Start a build if an image lacks what the options add to it: once for each change of them.

    All images of a unit get the same additions; one run of the service builds all images.

    A build that fails is repeated by the timer only. A build that did not come to its end is started again after an
    hour.
    """
    last = _last_build(markers)
    additions = builds[0].additions
    if last == (additions, None):
        return
    # The running build uses the options of its start; a later reconcile compares its image.
    if is_running(markers.unit):
        return
    found = [has for build in builds if (has := _has_additions(lxd, markers, build)) is not None]
    if all(found):
        if found:
            markers.note(IMAGE, additions)
        return
    now = time.time()
    if last.additions == additions and last.started is not None and 0 <= now - last.started < REPEAT_AFTER:
        return
    # Clear the recorded failures: the change may have fixed their cause.
    for build in builds:
        image.note_failure(build.alias)
    systemd.start(image.service(markers.unit), wait=False)
    markers.note(IMAGE, f"{additions} {int(now)}")


def _has_additions(lxd: LxdClient, markers: Markers, build: ImageBuild) -> bool | None:
    """Whether the image has what the options add to it.

    None where no build is to be started for it: the image is missing; the operator made it, and `extra-packages` and
    `image-script` are empty; or the image belongs to another application (``owning_unit``).
    """
    found = image.current(lxd, build.alias)
    if found is None or (
        image.ALIAS_PROPERTY not in found["properties"] and not (build.extra_packages or build.script)
    ):
        return None
    if owning_unit(markers, build, image.published(lxd, build.alias)):
        return None
    return bool(found["properties"].get(image.ADDITIONS_PROPERTY, "") == build.additions)


def owning_unit(markers: Markers, build: ImageBuild, found: PublishedImage) -> str:
    """The unit of another application on this machine that owns the image; empty if this unit may replace it.

    The image belongs to its recorded owner, even if the owner's options have changed. Without an owner it belongs to
    an application whose options match it. Otherwise two applications would replace each other's image, and idle
    runners, with each build.
    """
    if found.identity in ("", build.identity) or found.owner == application(markers.unit):
        return ""
    using = _users(markers, build.alias)
    owners = [unit for unit in using if application(unit) == found.owner]
    needing = [unit for unit, one in using.items() if one.identity == found.identity]
    return next(iter(owners + needing), "")


def application_to_record(markers: Markers, build: ImageBuild, found: PublishedImage) -> str:
    """The application that a new build is recorded for: with equal options the one that had the image first."""
    users = map(application, _users(markers, build.alias))
    return found.owner if found.identity == build.identity and found.owner in users else application(markers.unit)


def _users(markers: Markers, alias: str) -> dict[str, ImageBuild]:
    """The units of other applications on this machine that use the image of an alias, with the build they need."""
    found: dict[str, ImageBuild] = {}
    for unit in markers.others():
        # Settings that cannot be read are written again by the other unit's next hook.
        with suppress(HostError):
            images = {one.alias: one for one in settings.load(unit).images}
            if application(unit) != application(markers.unit) and alias in images:
                found[unit] = images[alias]
    return found


def renew(lxd: LxdClient, markers: Markers, build: ImageBuild) -> None:
    """Start a build outside of hooks, with a new runner binary, of an image that this charm built.

    If another application owns the image, start the service of its unit: this unit's service skips such images.
    """
    found = image.published(lxd, build.alias)
    if found.built_at is not None:
        systemd.start(image.service(owning_unit(markers, build, found) or markers.unit), wait=False)


def note_end(markers: Markers, build: ImageBuild) -> None:
    """Record that a build has ended: the image has the additions, or the build has failed."""
    markers.note(IMAGE, build.additions)


def note_no_start(markers: Markers, build: ImageBuild) -> None:
    """Another build held the lock: record that the change is not built, so that the next reconcile starts it."""
    if _last_build(markers).started is not None:
        markers.note(IMAGE, f"{build.additions} 0")


def missing_change(markers: Markers, build: ImageBuild, additions: str) -> str:
    """The status notice while the image, which has ``additions``, lacks the changed options; empty otherwise."""
    if additions == build.additions or (_last_build(markers).additions or "") != build.additions:
        return ""
    if failure := image.failure(build.alias):
        return f"the previous image stays in use: {failure}"
    return f"image {build.alias} is not built yet with the changed options"


def _last_build(markers: Markers) -> LastBuild:
    """What the marker records; both are None without a marker, and for a damaged one."""
    text = markers.read(IMAGE)
    if text is None:
        return LastBuild(None, None)
    additions, _, started = text.rstrip("\n").partition(" ")
    try:
        return LastBuild(additions, float(started) if started else None)
    except ValueError:
        return LastBuild(None, None)
