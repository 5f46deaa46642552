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
    """0 if the images were built or another build is running; otherwise 1, with a line on standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit", required=True, help="the unit that the images are built for")
    unit = parser.parse_args().unit
    redaction.install()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        builds = settings.load(unit).images
        # As in a hook: the client of GitHub reads its proxies from the environment.
        os.environ.update(builds[0].proxies.environment("localhost", "127.0.0.1"))
        return _build_all(LxdClient(), unit, builds)
    except (GithubRunnerError, OSError) as error:
        logging.error("%s", error)
        return 1


def _build_all(lxd: LxdClient, unit: str, builds: Sequence[ImageBuild]) -> int:
    """Build one image after the other, also after one that fails; returns the exit code."""
    markers, awaited = Markers(unit), False
    failures: list[Exception] = []
    waiting = False
    due = _due(lxd, markers, builds)
    for build in due:
        try:
            needed = _is_needed(lxd, build)
            app = image_builds.application_to_record(markers, build, image.published(lxd, build.alias))
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
        logging.info("Another build is running")
    if not (failures or waiting or markers.others()):
        for what in image.remove_unused(lxd, {build.alias for build in builds}):
            logging.info("Removed, no flavor uses it: %s", what)
    return 1 if failures else 0


def _due(lxd: LxdClient, markers: Markers, wanted: Sequence[ImageBuild]) -> list[ImageBuild]:
    """All images. While one is missing, each reconcile starts a build: others are then built at the timer's interval.

    An image that belongs to another application on this machine is left to that application.
    """
    builds = [build for build in wanted if not _belongs_to_another(lxd, markers, build)]
    if all(image.is_there(lxd, build) for build in builds):
        return list(builds)
    limit = time.time() - image.INTERVAL_HOURS * 3600
    built = {build.alias: image.published(lxd, build.alias).built_at or 0.0 for build in builds}
    return [build for build in builds if _is_needed(lxd, build) or not limit < built[build.alias] <= time.time()]


def _belongs_to_another(lxd: LxdClient, markers: Markers, build: ImageBuild) -> bool:
    owner = image_builds.owning_unit(markers, build, image.published(lxd, build.alias))
    if owner and image.is_there(lxd, build):
        logging.info("Image %s: not built, it belongs to %s", build.alias, owner)
        return True
    return False


def _is_needed(lxd: LxdClient, build: ImageBuild) -> bool:
    """Whether runners wait for the image: it is missing, or idle runners are replaced once it has the additions."""
    return not image.is_there(lxd, build) or image.published(lxd, build.alias).additions != build.additions


def _say(step: str) -> None:
    logging.info("Image: %s", step)


if __name__ == "__main__":
    sys.exit(main())
