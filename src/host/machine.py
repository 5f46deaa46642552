"""The whole machine: set up for runners, taken over from the incumbent, and left as it was (spec 4, Host set-up)."""

import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from errors import GithubRunnerError
from host import application, daemon, firewall, follower, image, incumbent, kernel, logrotate, packages, storage, timer
from lxd import LxdClient
from metrics.events import METRICS_LOG_PATH
from metrics.storage import FILESYSTEM_BASE_PATH, FILESYSTEM_QUARANTINE_PATH
from models import CharmState
from runner import LOGS_PATH
from shared_fs import FILESYSTEM_IMAGES_PATH

if TYPE_CHECKING:
    import jinja2

logger = logging.getLogger(__name__)

CHARM = Path(__file__).resolve().parents[2]
STATE = application.FOLDER.parent
UNITS = {timer.SERVICE, timer.TIMER, image.SERVICE, image.TIMER, follower.SERVICE}


def image_build(state: CharmState) -> image.ImageBuild:
    """The image that the options ask for."""
    return image.ImageBuild(state.image_source, state.base_image.value, state.test_mode, state.arch, state.proxies)


def set_up(
    lxd: LxdClient, jinja: "jinja2.Environment", state: CharmState, unit: str, progress: Callable[[str], None]
) -> None:
    """Everything that runners need of the machine but the application; each step does nothing where nothing is missing.

    ConfigurationError or HostError with what is wrong; ``progress`` is told the step.
    """
    progress("Installing packages")
    packages.ensure()
    if state.test_mode:
        kernel.ensure_inotify()
    else:
        kernel.ensure_module()
    progress("Setting up LXD")
    daemon.ensure(lxd, state.proxies)
    storage.check(lxd, state)
    progress("Setting up firewall")
    firewall.ensure(lxd, state)
    progress("Setting up storage")
    storage.ensure(lxd, jinja, state)
    progress("Building runner image")
    build = image_build(state)
    image.ensure(lxd, jinja, build, lambda step: progress(f"Building runner image: {step}"))
    image.ensure_timer(jinja, unit, build)
    logrotate.ensure(jinja)


def take_over(lxd: LxdClient) -> list[str]:
    """Remove what the incumbent charm left on this unit; returns what went."""
    return incumbent.take_over(lxd, CHARM, UNITS)


def tear_down(lxd: LxdClient, ours: Callable[[str], bool]) -> list[str]:
    """Leave nothing of ours, once no runner is there; returns what went. What resists is logged and stays.

    ``ours`` tells this unit's runners by name: applications on one machine share the quarantine.

    LXD and the packages stay: others may use them by now.
    """
    gone: list[str] = []
    steps: list[Callable[[], list[str]]] = [
        follower.remove,
        timer.remove,
        partial(image.remove, lxd),
        partial(storage.remove, lxd),
        partial(firewall.remove, lxd),
        partial(daemon.remove, lxd),
        kernel.remove,
        logrotate.remove,
        partial(_remove_files, ours),
    ]
    for step in steps:
        try:
            gone += step()
        except (GithubRunnerError, OSError) as error:
            logger.warning("Not removed: %s", error)
    return gone


def _remove_files(ours: Callable[[str], bool]) -> list[str]:
    """The application, crash logs and the metrics log; the metrics folders where no other application's are in them."""
    gone = []
    for folder in (STATE, LOGS_PATH):
        if folder.is_dir():
            shutil.rmtree(folder)
            gone.append(str(folder))
    for log in METRICS_LOG_PATH.parent.glob(f"{METRICS_LOG_PATH.name}*"):
        log.unlink()
        gone.append(str(log))
    for archive in FILESYSTEM_QUARANTINE_PATH.glob("*.tar.gz"):
        if ours(archive.name.removesuffix(".tar.gz")):
            archive.unlink()
            gone.append(str(archive))
    for folder in (FILESYSTEM_BASE_PATH, FILESYSTEM_IMAGES_PATH, FILESYSTEM_QUARANTINE_PATH):
        with suppress(OSError):
            folder.rmdir()
            gone.append(str(folder))
    return gone
