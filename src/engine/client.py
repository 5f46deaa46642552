"""One LXD daemon and its instances."""

from collections.abc import Mapping, Sequence

import times
from engine.api import LxdApi
from engine.instance import LxdInstance


class LxdClient(LxdApi):
    """One LXD daemon, as the API shows it. Can be used by several threads at once.

    Everything raises LxdError, or LxdNotFoundError for what is not there.
    """

    def server_version(self) -> tuple[int, int]:
        """The daemon's version, such as ``(5, 0)``."""
        version = str(self.get()["environment"]["server_version"])
        major, minor = version.split(".")[:2]
        return int(major), int(minor)

    def instances(self) -> list[LxdInstance]:
        """Every instance with its configuration and status, in one request."""
        return [LxdInstance(self, data) for data in self.get("instances", recursion=1)]

    def instance_names(self) -> list[str]:
        """The names of all instances: the cheapest question there is."""
        return [str(url).rsplit("/", 1)[-1] for url in self.get("instances")]

    def instance(self, name: str) -> LxdInstance:
        """One instance."""
        return LxdInstance(self, self.get("instances", name))

    def create_instance(
        self,
        name: str,
        *,
        source: Mapping[str, str],
        virtual_machine: bool,
        profiles: Sequence[str],
        config: Mapping[str, str],
        devices: Mapping[str, Mapping[str, str]],
        ephemeral: bool = True,
        timeout: float = times.CREATE_INSTANCE,
    ) -> LxdInstance:
        """Make a stopped instance; ``source`` is LXD's own (https://documentation.ubuntu.com/lxd/latest/api/)."""
        body = {
            "name": name,
            "ephemeral": ephemeral,
            "type": "virtual-machine" if virtual_machine else "container",
            "source": dict(source),
            "profiles": list(profiles),
            "config": dict(config),
            "devices": {device: dict(value) for device, value in devices.items()},
        }
        self.change("POST", "instances", json=body, timeout=timeout)
        return LxdInstance(self, {"name": name, "status": "Stopped", "type": body["type"], "config": config})
