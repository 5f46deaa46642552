#!/usr/bin/env python3
"""Build the images of runners. The timer ghro.build-image runs it, outside of hooks, so that Juju does not wait."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import provision
import redaction
import settings
from engine.client import LxdClient
from errors import GithubRunnerError, HostError
from host import image, image_builds, systemd, triggers
from host.markers import Markers
from settings import ImageBuild

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"


def main() -> int:
    """0 where the images were built or another build is under way; 1 with a line on standard error otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit", required=True, help="the unit that the images are built for")
    unit = parser.parse_args().unit
    redaction.install()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for chatty in ("urllib3", "ws4py", "pylxd", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        builds = settings.load(unit).images
        # As in a hook: the client of GitHub takes its proxies from the environment.
        os.environ.update(builds[0].proxies.environment("localhost", "127.0.0.1"))
        return _build_all(LxdClient(), unit, builds)
    except (GithubRunnerError, OSError) as error:
        logging.error("%s", error)
        return 1


def _build_all(lxd: LxdClient, unit: str, builds: Sequence[ImageBuild]) -> int:
    """One image after the other: one that fails does not keep the others from being built. Returns the exit code."""
    markers, awaited = Markers(unit), False
    failures: list[Exception] = []
    waiting = False
    due = _due(lxd, markers, builds)
    for build in due:
        try:
            needed = _is_needed(lxd, build)
            app = image_builds.owner(markers, build, image.published(lxd, build.alias))
            built = image.rebuild(lxd, provision.environment(TEMPLATES), app, build, _say)
            awaited, waiting = awaited or (built and needed), waiting or not built
        except (GithubRunnerError, OSError) as error:
            logging.error("%s", error)
            failures.append(error)
    # For later reconciles. LXD or a disk that fails is no end of a build.
    if due and all(isinstance(error, HostError) for error in failures):
        (image_builds.note_no_start if waiting else image_builds.note_end)(markers, builds[0])
    if awaited:
        systemd.start(triggers.service(unit), wait=False)
    if waiting:
        logging.info("Another build is under way")
    if not (failures or waiting or markers.others()):
        for what in image.remove_unused(lxd, {build.alias for build in builds}):
            logging.info("Removed, no flavor uses it: %s", what)
    return 1 if failures else 0


def _due(lxd: LxdClient, markers: Markers, wanted: Sequence[ImageBuild]) -> list[ImageBuild]:
    """All images; while one is missing, which each reconcile has built, others only where the timer's time has come.

    One that is another application's on this machine is built by that one.
    """
    builds = [build for build in wanted if not _is_kept(lxd, markers, build)]
    if all(image.is_there(lxd, build) for build in builds):
        return list(builds)
    limit = time.time() - image.INTERVAL_HOURS * 3600
    built = {build.alias: image.published(lxd, build.alias).built_at or 0.0 for build in builds}
    return [build for build in builds if _is_needed(lxd, build) or not limit < built[build.alias] <= time.time()]


def _is_kept(lxd: LxdClient, markers: Markers, build: ImageBuild) -> bool:
    keeper = image_builds.keeper(markers, build, image.published(lxd, build.alias))
    if keeper and image.is_there(lxd, build):
        logging.info("Image %s: not built, it is that of %s", build.alias, keeper)
        return True
    return False


def _is_needed(lxd: LxdClient, build: ImageBuild) -> bool:
    """Whether runners wait for an image: none could be made without it, or idle ones are to be replaced."""
    return not image.is_there(lxd, build) or image.published(lxd, build.alias).additions != build.additions


def _say(step: str) -> None:
    logging.info("Image: %s", step)


if __name__ == "__main__":
    sys.exit(main())
