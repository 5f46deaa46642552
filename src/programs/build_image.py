#!/usr/bin/env python3
"""Build the image of runners. The timer ghro.build-image runs it, outside of hooks, so that Juju does not wait."""

import argparse
import logging
import os
import sys
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
    """0 where the image was built or another build is under way; 1 with a line on standard error otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unit", required=True, help="the unit that the image is built for")
    unit = parser.parse_args().unit
    redaction.install()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for chatty in ("urllib3", "ws4py", "pylxd", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        lxd, build = LxdClient(), settings.load(unit).image
        # As in a hook: the client of GitHub takes its proxies from the environment.
        os.environ.update(build.proxies.environment("localhost", "127.0.0.1"))
        awaited = not image.is_there(lxd, build) or image.published(lxd, build.alias).additions != build.additions
        built = _rebuild(lxd, unit, build)
        if built and awaited:
            # Runners wait for this image: none could be made without it, or idle ones are to be replaced.
            systemd.start(triggers.service(unit), wait=False)
    except (GithubRunnerError, OSError) as error:
        logging.error("%s", error)
        return 1
    if not built:
        logging.info("Another build is under way")
    return 0


def _rebuild(lxd: LxdClient, unit: str, build: ImageBuild) -> bool:
    """Whether the image was built; False if another build is running. Its end is recorded for later reconciles."""
    markers = Markers(unit)
    try:
        built = image.rebuild(lxd, provision.environment(TEMPLATES), build, _say)
    except HostError:
        image_builds.note_end(markers, build)
        raise
    (image_builds.note_end if built else image_builds.note_no_start)(markers, build)
    return built


def _say(step: str) -> None:
    logging.info("Image: %s", step)


if __name__ == "__main__":
    sys.exit(main())
