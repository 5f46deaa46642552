"""The image that runners start from: an alias named after the base image (spec 4, Image)."""

import logging

from errors import HostError, LxdError
from lxd import LxdClient
from models import BaseImage

logger = logging.getLogger(__name__)

SERVER = "https://cloud-images.ubuntu.com/daily"
DOWNLOAD_TIMEOUT = 1800


def ensure(lxd: LxdClient, base_image: BaseImage, *, container: bool, server: str = SERVER) -> bool:
    """Fetch the image from a simplestreams server unless the alias is there; whether it was fetched.

    The alias is set by LXD only when the image is whole.
    """
    if lxd.find("images", "aliases", base_image.value):
        return False
    body = {
        "source": {
            "type": "image",
            "mode": "pull",
            "protocol": "simplestreams",
            "server": server,
            "alias": base_image.value,
            "image_type": "container" if container else "virtual-machine",
        },
        "aliases": [{"name": base_image.value}],
        "auto_update": False,
    }
    try:
        lxd.change("POST", "images", json=body, timeout=DOWNLOAD_TIMEOUT)
    except LxdError as error:
        raise HostError(f"the image {base_image.value} cannot be fetched from {server}: {error}") from error
    return True
