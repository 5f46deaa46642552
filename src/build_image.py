#!/usr/bin/env python3
"""Build the runners' image anew: what the timer ghro.build-image runs, outside of hooks so that Juju is not held up."""

import logging
import sys
from pathlib import Path

import provision
from errors import GithubRunnerError
from host import image
from lxd import LxdClient

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def main() -> int:
    """0 where the image was built or another build is under way; 1 with a line on standard error otherwise."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for chatty in ("urllib3", "ws4py", "pylxd"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        built = image.rebuild(LxdClient(), provision.environment(TEMPLATES), image.ImageBuild.load(), _say)
    except (GithubRunnerError, OSError) as error:
        logging.error("%s", error)
        return 1
    if not built:
        logging.info("Another build is under way")
    return 0


def _say(step: str) -> None:
    logging.info("Image: %s", step)


if __name__ == "__main__":
    sys.exit(main())
