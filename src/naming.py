"""Names of runners, keys of LXD objects, and the fingerprint of a runner. Nothing here does I/O."""

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network
from typing import Any

from models import FLAVOR_NAME, RunnerSpec

# What this charm records in the configuration of LXD objects. docs/reference/lxd-keys.md has who writes and reads them.
KEY = "user.github-runner."
# Of an instance: the option github-url at its creation.
URL_KEY = f"{KEY}url"
# Of an instance: the option path at its creation.
PATH_KEY = f"{KEY}path"
# Of an instance: UNIX time of its creation, with microseconds. Every version of this charm sets it, and no other charm.
CREATED_KEY = f"{KEY}created"
# Of an instance: hash of everything that went into the runner.
FINGERPRINT_KEY = f"{KEY}fingerprint"
# Of an instance: version of the runner binary that it was created with.
BINARY_KEY = f"{KEY}binary"
# Of an instance: UNIX time at which the creation came to its end.
PREPARED_KEY = f"{KEY}prepared"
# Of an instance: the flavour of the runner; missing on one of an earlier version, which had only `default`.
FLAVOR_KEY = f"{KEY}flavor"
# Of an instance: the number of the runner scale set that the runner registered with; missing without one.
SCALE_SET_KEY = f"{KEY}scale-set"
# Of an instance: GitHub's number of the runner.
RUNNER_ID_KEY = f"{KEY}runner-id"
# Of an instance: `true` once GitHub has listed the runner as online.
ONLINE_KEY = f"{KEY}online"
# Of an instance: UNIX time since when GitHub has not listed the runner as online.
OFFLINE_SINCE_KEY = f"{KEY}offline-since"
# Of a profile: `true` if the profile gives an instance its resources.
RESOURCES_KEY = f"{KEY}resources"
# Of the profile `runner`, before the name of an application: its option base-image at deployment; before the name of a
# flavour after that: the flavour's base image when it was added. Version 1.0 had one key without a name.
BASE_IMAGE_KEY = f"{KEY}base-image"
# Of the profile `runner`: the option runner-storage at deployment.
STORAGE_KEY = f"{KEY}runner-storage"
# Of the network: `true` if this charm created the bridge.
BRIDGE_KEY = f"{KEY}made"

# LXD's limit of an instance's name.
NAME_LIMIT = 63
# At the end of a runner's name: fewer could give two runners the same name.
FEWEST_DIGITS = 8


@dataclass(frozen=True)
class Identity:
    """The unit that runners belong to: application, number and a hash of the model's UUID."""

    app_name: str
    unit_number: int
    model_hash: str

    @property
    def unit(self) -> str:
        """The unit as Juju calls it, such as ``github-runner/0``."""
        return f"{self.app_name}/{self.unit_number}"

    @property
    def prefix(self) -> str:
        """What every runner name of this unit begins with: ``APP-UNIT-MODELHASH``.

        The name of an application that is too long for LXD is cut, and a hash of all of it tells it from others.
        """
        rest = f"-{self.unit_number}-{self.model_hash}"
        room = NAME_LIMIT - len(rest) - FEWEST_DIGITS
        app = self.app_name
        if len(app) > room:
            app = f"{app[: room - 7].rstrip('-')}-{hashlib.sha256(app.encode()).hexdigest()[:6]}"
        return app + rest

    @property
    def random_digits(self) -> int:
        """How many hex digits follow the prefix: 16, or fewer, but at least 8, if the name would be too long."""
        return max(FEWEST_DIGITS, min(16, NAME_LIMIT - len(self.prefix)))

    def new_name(self) -> str:
        """A name for a new runner: the prefix and random digits."""
        return self.prefix + secrets.token_hex(8)[: self.random_digits]

    def manages(self, name: str) -> bool:
        """Whether this is the whole name of a runner or instance of this unit."""
        return re.fullmatch(re.escape(self.prefix) + "[0-9a-f]+", name) is not None

    def scale_set(self, flavor: str) -> str:
        """The name of the runner scale set of a flavour: ``APP-UNIT-MODELHASH-FLAVOUR``."""
        return f"{self.prefix}-{flavor}"

    def manages_scale_set(self, name: str) -> bool:
        """Whether this is the whole name of a scale set that this unit makes, of any flavour.

        It cannot be another unit's: a flavour begins with a letter, a unit number with a digit.
        """
        flavor = name.removeprefix(f"{self.prefix}-")
        return flavor != name and FLAVOR_NAME.fullmatch(flavor) is not None

    def labels(self, spec: RunnerSpec) -> tuple[str, ...]:
        """The labels that a runner of this unit has, without those that GitHub adds by itself."""
        return tuple(dict.fromkeys([self.app_name, spec.base_image.value, *spec.labels]))

    def may_be_previous(self, name: str) -> bool:
        """Whether the previous charm may have given this name to a runner of this unit.

        It used the full application name and 24 hex digits. A unit of another model with the same application name and
        unit number has such names as well, so the name alone proves nothing.
        """
        pattern = re.escape(f"{self.app_name}-{self.unit_number}-") + "[0-9a-f]+"
        return re.fullmatch(pattern, name) is not None and not self.manages(name)


def base_image_key(app: str, flavor: str = "") -> str:
    """The key of the profile ``runner`` for the base image of an application, or of one of its flavours."""
    return ".".join([BASE_IMAGE_KEY, app, *([flavor] if flavor else [])])


def binary_version(name: str) -> str:
    """The version in the file name of a runner binary, such as ``2.336.0``."""
    return name.removesuffix(".tar.gz").rsplit("-", 1)[-1]


def fingerprint(spec: RunnerSpec, binary: str, image: str) -> str:
    """A hash of everything that goes into a runner, as 32 hex digits.

    ``binary`` is the file name of the runner binary, ``image`` the identity that the published image records.
    """
    text = json.dumps([plain(spec), binary, image], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def plain(value: Any) -> Any:
    """A value of ``models`` as JSON can hold it."""
    if isinstance(value, Enum):
        return value.value
    # A NamedTuple is converted by its fields, too: a list of its values would lose which value is which.
    names = getattr(value, "__dataclass_fields__", None) or getattr(value, "_fields", None)
    if names:
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, IPv4Network):
        return str(value)
    return value
