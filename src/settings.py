"""The part of a unit's state that its processes outside of hooks use, as one JSON file.

Only what is named here is written: no token and no key, which these processes do not need.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errors import HostError
from models import Arch, BaseImage, CharmState, ImageSource
from naming import Identity
from proxies import ProxyConfig
from system import remove_leftovers, write_file

# More runners than a unit can have.
UNREACHED = 1_000_000
FOLDER = Path("/var/lib/github-runner")


@dataclass(frozen=True)
class ImageBuild:
    """What to build: from which source, under which alias, for containers or virtual machines, and with what in it."""

    source: ImageSource
    alias: str
    container: bool
    arch: Arch
    proxies: ProxyConfig
    """The unit's, for what it downloads itself."""
    ca_certificates: tuple[str, ...] = ()
    extra_packages: tuple[str, ...] = ()
    script: str = field(default="", repr=False)
    github_url: str = "https://github.com"
    cached_actions: tuple[str, ...] = ()
    runner_proxies: ProxyConfig = field(default_factory=ProxyConfig)
    """For what is downloaded in the instance that becomes the image: it is in the runners' network."""

    @property
    def additions(self) -> str:
        """A hash of what the options add to the standard image, which the image records; empty if they add nothing.

        Actions count as the option has them: a ref that moves to another commit changes nothing.
        """
        added = (self.extra_packages, self.script, self.cached_actions)
        return hashlib.sha256(json.dumps(added).encode()).hexdigest()[:32] if any(added) else ""

    @property
    def identity(self) -> str:
        """The source and the additions. The published image records them: one with others must be built again."""
        return f"{self.source} {self.additions}".strip()


@dataclass(frozen=True)
class Settings:
    """A unit, the number of runners that it keeps, and the images that they start from (at least one)."""

    identity: Identity
    runners: int
    """If fewer run, a reconcile is started. ``UNREACHED`` with flavours: their sum does not show which lacks any."""
    images: tuple[ImageBuild, ...]


def images(state: CharmState) -> tuple[ImageBuild, ...]:
    """The images that the options ask for, one for each base image of a flavour: the unit's own is the first."""
    used = dict.fromkeys(flavor.base_image for flavor in state.flavors)
    ordered = sorted(used, key=lambda base_image: base_image != state.base_image)
    return tuple(image_build(state, base_image) for base_image in ordered)


def image_build(state: CharmState, base_image: BaseImage | None = None) -> ImageBuild:
    """What to build for a base image; for that of the option ``base-image`` if none is given.

    A source ``local:ALIAS`` is the source of every base image; a server has one for each.
    """
    kind = (state.image_source, (base_image or state.base_image).value, state.test_mode, state.arch)
    return ImageBuild(
        *kind,
        state.proxies,
        state.ca_certificates,
        state.extra_packages,
        state.image_script,
        state.github_url,
        state.cached_actions,
        state.runner_proxies,
    )


def save(state: CharmState, identity: Identity) -> bool:
    """Write the settings of a unit; returns whether they changed. OSError where that is not possible.

    Only root can read the file, because proxies and the image's script may have a password.
    """
    document = {
        "application": identity.app_name,
        "unit": identity.unit_number,
        "model": identity.model_hash,
        "runners": UNREACHED if state.given_flavors else state.virtual_machines,
        "images": [_document(build) for build in images(state)],
    }
    for former in _former(identity.unit):
        former.unlink(missing_ok=True)
    # Only hooks write it, and Juju runs one at a time. What a killed one left may have a password, too.
    remove_leftovers(file_of(identity.unit))
    return write_file(file_of(identity.unit), json.dumps(document, indent=1), 0o600)


def _document(build: ImageBuild) -> dict[str, Any]:
    return {
        "source": str(build.source),
        "alias": build.alias,
        "container": build.container,
        "arch": build.arch.value,
        "proxies": _urls(build.proxies),
        "runner_proxies": _urls(build.runner_proxies),
        "ca_certificates": build.ca_certificates,
        "extra_packages": build.extra_packages,
        "script": build.script,
        "github_url": build.github_url,
        "cached_actions": build.cached_actions,
    }


def _urls(proxies: ProxyConfig) -> list[str | None]:
    return [proxies.http, proxies.https, proxies.no_proxy]


def load(unit: str) -> Settings:
    """The settings of a unit such as ``github-runner/0``; HostError where the file is missing or damaged."""
    try:
        found = json.loads(file_of(unit).read_text())
        identity = Identity(str(found["application"]), int(found["unit"]), str(found["model"]))
        # Earlier versions had one image.
        builds = found["images"] if "images" in found else [found["image"]]
        first, *others = map(_image, builds)
        return Settings(identity, int(found["runners"]), (first, *others))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(f"{file_of(unit)} cannot be used, the charm writes it in its next hook: {error}") from error


def _image(found: Any) -> ImageBuild:
    return ImageBuild(
        ImageSource.parse(str(found["source"])),
        str(found["alias"]),
        bool(found["container"]),
        Arch(found["arch"]),
        ProxyConfig(*found["proxies"]),
        tuple(map(str, found["ca_certificates"])),
        # The file of an earlier version has none of these.
        tuple(map(str, found.get("extra_packages", ()))),
        str(found.get("script", "")),
        str(found.get("github_url", "https://github.com")),
        tuple(map(str, found.get("cached_actions", ()))),
        ProxyConfig(*found.get("runner_proxies", found["proxies"])),
    )


def remove(unit: str) -> list[str]:
    """Remove the settings of a unit, and what a write that was killed has left; returns what was removed."""
    found = [item for item in (file_of(unit), *_former(unit)) if item.exists()]
    for item in found:
        item.unlink()
    return [*map(str, found), *remove_leftovers(file_of(unit))]


def file_of(unit: str) -> Path:
    """The file with the settings of a unit."""
    return FOLDER / f"settings.{unit.replace('/', '-')}.json"


def _former(unit: str) -> tuple[Path, ...]:
    """The files of earlier versions; all units on a machine had the same one in version 1.0."""
    return FOLDER / f"build-image.{unit.replace('/', '-')}.json", FOLDER / "build-image.json"
