"""The whole machine: set up for runners, taken over from the previous charm, and left as it was."""

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import jinja2

import agent_settings
import demand
import known_jobs
import settings
import shared_fs
import telemetry
from engine import profiles
from engine.client import LxdClient
from errors import GithubRunnerError, HostError
from host import (
    agent,
    firewall,
    image,
    image_builds,
    kernel,
    logrotate,
    lxd_server,
    packages,
    pool,
    runner_binary,
    takeover,
    timer,
    triggers,
)
from host.markers import SET_UP, Markers, application
from host.systemd import are_active
from metrics.events import METRICS_LOG_PATH
from metrics.storage import FILESYSTEM_QUARANTINE_PATH
from models import CharmState
from naming import Identity
from runner import LOGS_PATH
from settings import ImageBuild
from system import LOCKS

logger = logging.getLogger(__name__)

CHARM = Path(__file__).resolve().parents[2]
STATE = runner_binary.FOLDER.parent


def set_up(
    lxd: LxdClient,
    jinja: jinja2.Environment,
    state: CharmState,
    identity: Identity,
    progress: Callable[[str], None],
    *,
    build_later: bool = False,
) -> None:
    """Everything that runners need of the machine but the runner binary. Steps do nothing where nothing is missing.

    The marker ``set-up`` is there if and only if the last set-up came to its end. ConfigurationError or HostError with
    what is wrong; ``progress`` is told the step. With ``build_later`` a missing image is built outside of this hook.
    One of several images is enough, and the others are built outside of it then.
    """
    unit = identity.unit
    markers = Markers(unit)
    markers.clear(SET_UP)
    _ensure_base(state, progress)
    progress("Setting up LXD")
    lxd_server.ensure(lxd, state.proxies)
    # Before anything that may fail for long: the runners that exist need it, too.
    progress("Setting up firewall")
    firewall.ensure(lxd, state, unit)
    pool.check(lxd, state, unit)
    # Not before: what is refused must not reach processes outside of hooks.
    settings.save(state, identity)
    progress("Setting up storage")
    pool.ensure(lxd, jinja, state, unit)
    logrotate.ensure(jinja)
    progress("Building runner image")
    builds = settings.images(state)
    _ensure_images(builds, partial(_ensure_image, lxd, jinja, markers, builds, build_later, progress))
    markers.note(SET_UP)


def _ensure_base(state: CharmState, progress: Callable[[str], None]) -> None:
    """Install packages, and prepare the kernel for runners."""
    progress("Installing packages")
    packages.ensure(progress)
    if state.test_mode:
        kernel.ensure_inotify()
    else:
        kernel.ensure_module()


def _ensure_image(
    lxd: LxdClient,
    jinja: jinja2.Environment,
    markers: Markers,
    builds: Sequence[ImageBuild],
    build_later: bool,
    progress: Callable[[str], None],
    build: ImageBuild,
) -> None:
    """Build one image, in this hook or outside of it: runners of an image that is there do not wait for another one."""
    if build_later or any(image.is_there(lxd, other) for other in builds if other is not build):
        image_builds.ensure(lxd, markers, build)
    else:
        image.ensure(
            lxd, jinja, application(markers.unit), build, lambda step: progress(f"Building runner image: {step}")
        )


def _ensure_images(builds: Iterable[ImageBuild], ensure: Callable[[ImageBuild], object]) -> None:
    """Every image, also where one fails; HostError with all failures where no image is there.

    Runners of a missing image wait, and the others do not: the next reconcile has it built.
    """
    failures, complete = [], []
    for build in builds:
        try:
            complete.append(ensure(build))
        except HostError as error:
            failures.append(error)
    if failures and not complete:
        raise failures[0] if len(failures) == 1 else HostError("; ".join(map(str, failures)))
    for failure in failures:
        logger.warning("%s", failure)


def lost(lxd: LxdClient, state: CharmState, unit: str) -> list[str]:
    """What runners need of a complete set-up and is not there any more: a few requests to LXD; nothing is changed.

    One of several images is enough: ``image_builds.start_missing`` has the others built.
    """
    bridge = lxd.find("networks", profiles.BRIDGE)
    parts = {
        "kernel module": state.test_mode or kernel.is_module_loaded(),
        "network": lxd_server.is_intact(lxd, state.proxies, bridge),
        "firewall": firewall.is_intact(lxd, state, unit, bridge),
        "storage": pool.is_intact(lxd, state, unit),
        "image": any(image.is_there(lxd, build) for build in settings.images(state)),
    }
    return [name for name, intact in parts.items() if not intact]


def tend(jinja: jinja2.Environment, state: CharmState, unit: str) -> None:
    """Make again what runners can do without for a while: packages, timers. What fails is logged, and tried again."""
    if not packages.missing_packages() and logrotate.CONFIG.exists() and are_active(image.timer(unit), logrotate.TIMER):
        return
    steps: tuple[Callable[[], object], ...] = (
        lambda: packages.ensure(lambda step: None),
        lambda: logrotate.ensure(jinja),
        lambda: image.ensure_timer(jinja, unit),
    )
    for step in steps:
        try:
            step()
        except (GithubRunnerError, OSError) as error:
            logger.warning("A part of the set-up could not be restored: %s", error)


def has_previous_charm() -> bool:
    """Whether the previous charm has left something on this unit."""
    return takeover.is_found(takeover.Places(CHARM))


def take_over(lxd: LxdClient, unit: str) -> bool:
    """Remove what the previous charm left on this unit; returns whether nothing of it is left to do."""
    names = (triggers.service, triggers.timer, triggers.agent, image.service, image.timer)
    return takeover.take_over(lxd, takeover.Places(CHARM), {name(unit) for name in names})


def release(lxd: LxdClient, markers: Markers) -> list[str]:
    """Remove what holds the storage, and what only runners need, once no runner is there; returns what was removed.

    What another unit on this machine uses as well stays.
    """
    unit, others = markers.unit, markers.others()
    if others:
        logger.info("Pool, image and bridge stay, other units use them: %s", ", ".join(others))
    app = application(unit)
    is_last = app not in map(application, others)
    record = (partial(profiles.remove_record, app=app),) if is_last else ()
    images = (image.remove_builder, *record) if others else (image.remove, pool.remove)
    return _each(
        partial(image.remove_timer, unit),
        partial(settings.remove, unit),
        partial(agent_settings.remove, unit),
        partial(demand.remove, unit),
        partial(known_jobs.remove, unit),
        partial(telemetry.remove, unit),
        *(partial(remove, lxd) for remove in images),
        partial(firewall.remove, lxd, unit),
        *(() if others else (partial(lxd_server.remove, lxd),)),
    )


def remove_old_record(lxd: LxdClient, markers: Markers) -> None:
    """For the first unit of an application: remove the base images that are recorded for its name.

    They are of an application that was removed by force, and the new one may have others.
    """
    app = application(markers.unit)
    if app not in map(application, markers.others()):
        profiles.remove_record(lxd, app)


def tear_down(lxd: LxdClient, markers: Markers, is_runner: Callable[[str], bool]) -> list[str]:
    """Leave nothing of this unit, once no runner is there; returns what was removed. What resists is logged and stays.

    ``is_runner`` tells this unit's runners by name: applications on one machine share the quarantine.

    LXD and the packages stay: others may use them by now.
    """
    shared = bool(markers.others())
    return [
        *_each(partial(agent.remove, markers.unit), partial(timer.remove, markers.unit)),
        *release(lxd, markers),
        *([] if shared else _each(kernel.remove, logrotate.remove, shared_fs.remove)),
        *_each(markers.remove, partial(_remove_files, is_runner, shared)),
    ]


def _each(*steps: Callable[[], list[str]]) -> list[str]:
    """What the steps removed; one that fails is logged, and does not stop the others."""
    gone: list[str] = []
    for step in steps:
        try:
            gone += step()
        except (GithubRunnerError, OSError) as error:
            logger.warning("Not removed: %s", error)
    return gone


def _remove_files(is_runner: Callable[[str], bool], shared: bool) -> list[str]:
    """Everything but what other units on this machine use as well: there only this unit's quarantine."""
    gone = []
    for folder in () if shared else (STATE, LOGS_PATH, LOCKS):
        if folder.is_dir():
            shutil.rmtree(folder)
            gone.append(str(folder))
    for log in () if shared else METRICS_LOG_PATH.parent.glob(f"{METRICS_LOG_PATH.name}*"):
        log.unlink()
        gone.append(str(log))
    for archive in FILESYSTEM_QUARANTINE_PATH.glob("*.tar.gz"):
        if is_runner(archive.name.removesuffix(".tar.gz")):
            archive.unlink()
            gone.append(str(archive))
    return gone
