"""Builds of the image outside of hooks: when a reconcile starts one, and which of them have ended."""

import re
import time
from collections.abc import Sequence
from contextlib import suppress

import settings
from engine.client import LxdClient
from errors import HostError, LxdError
from host import image, systemd
from host.markers import IMAGE, Markers, application
from models import PublishedImage
from settings import ImageBuild

# After its start a build that was cut off, such as by a reboot, is started again; in seconds.
REPEAT_AFTER = 3600
# Failures of what the operator has set: the next build with the same options would fail in the same way.
OPTION_FAILURE = re.compile(
    r"image [^:]*: (image-script failed: |extra-packages failed: ended with \d+: not in this distribution: )"
)


def is_running(unit: str) -> bool:
    """Whether the unit's service builds an image now."""
    return systemd.is_starting(image.service(unit))


def ensure(lxd: LxdClient, markers: Markers, build: ImageBuild) -> None:
    """Start a build unless the image is there; HostError until it is, with the last build's failure.

    A build takes longer than a reconcile may, and Juju would wait for it. It starts a reconcile when it is done. One
    that failed because of an option is repeated only by a change of these options and by the timer.
    """
    if image.is_there(lxd, build):
        image.name_foreign(lxd, build.alias)
        return
    failure = image.failure(build.alias)
    if OPTION_FAILURE.match(failure) and _noted(markers) == (build.additions, None):
        raise HostError(f"{failure}; correct the option")
    systemd.start(image.service(markers.unit), wait=False)
    raise HostError(
        f"{failure}; being built again" if failure else f"image {build.alias}: being built, see `{image.JOURNAL}`"
    )


def missing(lxd: LxdClient, markers: Markers, builds: Sequence[ImageBuild]) -> dict[str, str]:
    """Start the build of each image that is not there; returns why it is not, by alias.

    The only image of a unit is left to the set-up of the machine.
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

    What they add is the same for all images of a unit, and one run of the service builds all of them.

    A build that fails is repeated by the timer only. A build that did not come to its end is started again after an
    hour.
    """
    noted, started = _noted(markers)
    additions = builds[0].additions
    if noted == additions and started is None:
        return
    # It builds what the options were when it began. A later reconcile compares its image.
    if is_running(markers.unit):
        return
    found = [has for build in builds if (has := _has_additions(lxd, markers, build)) is not None]
    if all(found):
        if found:
            markers.note(IMAGE, additions)
        return
    now = time.time()
    if noted == additions and started is not None and 0 <= now - started < REPEAT_AFTER:
        return
    # The reason of a failure that another change may have removed.
    for build in builds:
        image.note_failure(build.alias)
    systemd.start(image.service(markers.unit), wait=False)
    markers.note(IMAGE, f"{additions} {int(now)}")


def _has_additions(lxd: LxdClient, markers: Markers, build: ImageBuild) -> bool | None:
    """Whether the image has what the options add to it.

    None where no build is to be started for it: the image is missing; the operator made it, and `extra-packages` and
    `image-script` are empty; or it is the image of another application (``keeper``).
    """
    found = image.current(lxd, build.alias)
    if found is None or (
        image.ALIAS_PROPERTY not in found["properties"] and not (build.extra_packages or build.script)
    ):
        return None
    if keeper(markers, build, image.published(lxd, build.alias)):
        return None
    return bool(found["properties"].get(image.ADDITIONS_PROPERTY, "") == build.additions)


def keeper(markers: Markers, build: ImageBuild, found: PublishedImage) -> str:
    """The unit of another application on this machine whose image it is; empty if this unit may replace it.

    It is the image of its owner, whatever the owner's options are now: one that has just changed them, or whose build
    fails, would otherwise lose it. Without an owner, it is that of an application that needs it as it is.
    Applications that differ would otherwise replace each other's image, and idle runners, with each build.
    """
    if found.identity in ("", build.identity) or found.owner == application(markers.unit):
        return ""
    using = _users(markers, build.alias)
    owners = [unit for unit in using if application(unit) == found.owner]
    needing = [unit for unit, one in using.items() if one.identity == found.identity]
    return next(iter(owners + needing), "")


def owner(markers: Markers, build: ImageBuild, found: PublishedImage) -> str:
    """The application that a new build is recorded for: with equal options the one that had the image first."""
    users = map(application, _users(markers, build.alias))
    return found.owner if found.identity == build.identity and found.owner in users else application(markers.unit)


def _users(markers: Markers, alias: str) -> dict[str, ImageBuild]:
    """The units of other applications on this machine that use the image of an alias, with what they ask for."""
    found: dict[str, ImageBuild] = {}
    for unit in markers.others():
        # What cannot be read is written by the other unit's next hook.
        with suppress(HostError):
            images = {one.alias: one for one in settings.load(unit).images}
            if application(unit) != application(markers.unit) and alias in images:
                found[unit] = images[alias]
    return found


def renew(lxd: LxdClient, markers: Markers, build: ImageBuild) -> None:
    """Start a build outside of hooks, with a new runner binary, of an image that this charm built.

    Another application's image is built by the service of that one's unit: this unit's would leave it out.
    """
    found = image.published(lxd, build.alias)
    if found.built_at is not None:
        systemd.start(image.service(keeper(markers, build, found) or markers.unit), wait=False)


def note_end(markers: Markers, build: ImageBuild) -> None:
    """Record that a build has ended: the image has what it was to add, or the build has failed."""
    markers.note(IMAGE, build.additions)


def note_no_start(markers: Markers, build: ImageBuild) -> None:
    """Record that another build kept one from beginning: the next reconcile starts it if it was for a change."""
    if _noted(markers)[1] is not None:
        markers.note(IMAGE, f"{build.additions} 0")


def missing_change(markers: Markers, build: ImageBuild, additions: str) -> str:
    """Why the image, which has ``additions``, lacks what a build was started for; empty if it lacks nothing."""
    if additions == build.additions or (_noted(markers)[0] or "") != build.additions:
        return ""
    if failure := image.failure(build.alias):
        return f"the previous image stays in use: {failure}"
    return f"image {build.alias} is not built yet with the changed options"


def _noted(markers: Markers) -> tuple[str | None, float | None]:
    """For which additions a build was started last, and when in UNIX seconds: None once it has ended."""
    text = markers.read(IMAGE)
    if text is None:
        return None, None
    additions, _, started = text.rstrip("\n").partition(" ")
    try:
        return additions, float(started) if started else None
    except ValueError:
        return None, None
