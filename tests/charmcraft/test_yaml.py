"""What Juju and charmcraft read is what they accept, by charmcraft's own models."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from charmcraft import parts
from charmcraft.models.config import JujuConfig
from charmcraft.models.metadata import CharmMetadata
from charmcraft.models.project import CharmcraftProject

# charmcraft's own dependencies warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def test_charmcraft_accepts_the_project() -> None:
    """charmcraft.yaml names the four platforms and parts that charmcraft knows."""
    parts.setup_parts()

    project = CharmcraftProject.from_yaml_file(ROOT / "charmcraft.yaml")

    assert set(project.platforms) == {
        f"ubuntu@{version}:{arch}" for version in ("22.04", "24.04") for arch in ("amd64", "arm64")
    }


def test_options_are_those_of_the_reference() -> None:
    """Names, types and defaults are the contract with those who come from the previous charm."""
    config = JujuConfig.from_yaml_file(ROOT / "config.yaml")

    assert config.options is not None
    found = {name: (option.type, option.default) for name, option in config.options.items()}
    assert found == {
        "path": ("string", ""),
        "token": ("string", ""),
        "token-secret": ("secret", None),
        "app-secret": ("secret", None),
        "registration": ("string", "auto"),
        "github-url": ("string", "https://github.com"),
        "group": ("string", "default"),
        "labels": ("string", ""),
        "virtual-machines": ("int", 1),
        "flavors": ("string", ""),
        "scaling": ("string", "fixed"),
        "min-idle": ("int", 0),
        "memory-reserve": ("string", "2GiB"),
        "cpu-overcommit": ("string", "2.0"),
        "demand-fallback": ("int", 0),
        "metrics-port": ("int", 9464),
        "vm-cpu": ("int", 2),
        "vm-memory": ("string", "7GiB"),
        "vm-disk": ("string", "10GiB"),
        "base-image": ("string", "jammy"),
        "image-source": ("string", "https://cloud-images.ubuntu.com/daily"),
        "extra-packages": ("string", ""),
        "image-script": ("string", ""),
        "cached-actions": ("string", "actions/checkout@v5, actions/cache@v5, actions/setup-python@v6"),
        "replace-on-exit": ("boolean", True),
        "idle-runner-max-age": ("int", 24),
        "allow-external-contributor": ("boolean", True),
        "pre-job-script": ("string", None),
        "ca-certificates": ("string", ""),
        "runner-storage": ("string", "juju-storage"),
        "reconcile-interval": ("int", 10),
        "denylist": ("string", ""),
        "dockerhub-mirror": ("string", ""),
        "experimental-use-aproxy": ("boolean", False),
        "aproxy-exclude-addresses": ("string", "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16"),
        "aproxy-redirect-ports": ("string", "80, 443"),
        "runner-http-proxy": ("string", ""),
        "repo-policy-compliance-url": ("string", None),
        "repo-policy-compliance-token": ("string", None),
        "test-mode": ("string", None),
    }


def test_metadata_is_what_bundles_expect() -> None:
    """Name, relations and storage as the previous charm's, and nothing that charmcraft.yaml would drop silently."""
    metadata = CharmMetadata.from_yaml_file(ROOT / "metadata.yaml")

    assert metadata.name == "github-runner"
    assert load("metadata.yaml")["provides"] == {"cos-agent": {"interface": "cos_agent"}}
    assert load("metadata.yaml")["requires"] == {"debug-ssh": {"interface": "debug-ssh"}}
    storage = load("metadata.yaml")["storage"]["runner"]
    assert (storage["type"], storage["location"]) == ("filesystem", "/storage/juju")
    assert load("metadata.yaml")["assumes"] == ["juju >= 3.3"]
    assert not {"requires", "provides", "storage"} & set(load("charmcraft.yaml"))


def test_actions_are_the_four_and_need_nothing() -> None:
    """The previous charm's actions, which can be run without a parameter as there."""
    actions = load("actions.yaml")

    assert set(actions) == {"check-runners", "reconcile-runners", "flush-runners", "update-dependencies"}
    assert all(action["additionalProperties"] is False and action["description"] for action in actions.values())
    assert all("default" in schema for action in actions.values() for schema in action.get("params", {}).values())
