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


def test_charmcraft_reads_every_option() -> None:
    """With its type and default as in config.yaml; what these must be is in tests/unit/test_charm_state.py."""
    config = JujuConfig.from_yaml_file(ROOT / "config.yaml")

    assert config.options is not None
    found = {name: (option.type, option.default) for name, option in config.options.items()}
    given = load("config.yaml")["options"]
    assert found == {name: (option["type"], option.get("default")) for name, option in given.items()}


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
