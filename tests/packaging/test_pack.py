"""The charm that charmcraft makes is whole, holds nothing else, and runs as it is."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.conftest import Packed
from tests.packaging.local_unit import LocalUnit

# Fetching and installing the build packages may take its time on a fresh machine.
pytestmark = pytest.mark.timeout(900)
REQUIRED = {"LICENSE", "actions.yaml", "config.yaml", "dispatch", "manifest.yaml", "metadata.yaml"}
FOLDERS = {"src", "templates", "venv"}
IMPORT_ALL = """
import importlib, pathlib

import provision, service

for path in sorted(pathlib.Path("src").rglob("*.py")):
    importlib.import_module(".".join(path.relative_to("src").with_suffix("").parts).removesuffix(".__init__"))
environment = provision.environment(service.TEMPLATES)
for name in environment.list_templates():
    environment.get_template(name)
print(len(environment.list_templates()))
"""


@pytest.fixture(scope="module")
def unit(packed: Packed) -> Iterator[LocalUnit]:
    """The packed charm as a unit without options, its first hook run."""
    # Where nobody gets to, which the folders of pytest are not.
    with tempfile.TemporaryDirectory(prefix="packed-unit-") as name:
        found = LocalUnit(packed.charm, Path(name))
        done = found.hook("install")
        assert done["code"] == 0, done["output"] + found.log()
        yield found


def test_the_archive_is_named_for_its_platform_and_holds_the_charm_only(packed: Packed) -> None:
    """Beside the charm's own files nothing of the tree is packed: no tests, no sandbox, no history."""
    names = packed.names()

    assert [path.name for path in packed.tree.glob("*.charm")] == [packed.charm.name]
    assert {name for name in names if "/" not in name} == REQUIRED
    assert {name.split("/")[0] for name in names if "/" in name} == FOLDERS


@pytest.mark.parametrize("folder", ["src", "templates"])
def test_sources_and_templates_are_packed_whole_and_unchanged(packed: Packed, folder: str) -> None:
    """Every file below src and templates is in the archive as it is in the tree, rules and dashboards among them."""
    tree = {
        str(path.relative_to(packed.tree)): path.read_bytes()
        for path in (packed.tree / folder).rglob("*")
        if path.is_file()
    }

    with ZipFile(packed.charm) as archive:
        found = {name: archive.read(name) for name in packed.names() if name.startswith(f"{folder}/")}

    assert found == tree
    assert folder != "src" or {"src/charm.py", "src/loki_alert_rules/failure.yaml"} <= set(found)


@pytest.mark.parametrize("name", ["LICENSE", "actions.yaml", "config.yaml", "metadata.yaml"])
def test_what_juju_reads_is_packed_as_written(packed: Packed, name: str) -> None:
    """Names, options, actions, relations and storage in the archive are those of the tree."""
    with ZipFile(packed.charm) as archive:
        found = archive.read(name).decode()
    wanted = (packed.tree / name).read_text()

    if name == "LICENSE":
        assert found == wanted
    else:
        assert yaml.safe_load(found) == yaml.safe_load(wanted)


def test_dependencies_are_exactly_the_locked_ones(packed: Packed) -> None:
    """The charm's venv holds what uv.lock says for this Python, in those versions, and no package of the tests."""
    listed = ("export", "--frozen", "--no-dev", "--no-emit-project", "--no-hashes", "--no-annotate", "--no-header")
    done = packed.run("uv", *listed)
    assert done.returncode == 0, done.stderr
    requirements = [Requirement(line) for line in done.stdout.splitlines() if line.strip()]
    locked = {
        f"{canonicalize_name(item.name)}{item.specifier}"
        for item in requirements
        if item.marker is None or item.marker.evaluate()
    }

    suffix = ".dist-info/METADATA"
    distributions = [name.split("/")[-2] for name in packed.names() if name.endswith(suffix)]
    parts = [name.removesuffix(".dist-info").rpartition("-") for name in distributions]
    assert {f"{canonicalize_name(name)}=={version}" for name, _, version in parts} == locked


def test_charmcraft_finds_nothing_to_complain_of(packed: Packed) -> None:
    """Every linter of `charmcraft analyse` is content, but for the one that cannot read charmcraft's own dispatch."""
    done = packed.run("charmcraft", "analyse", str(packed.charm), "--format", "json")
    results = json.loads(done.stdout)

    complaints = {
        item["name"]: item["text"]
        for item in results
        if item["check_type"] == "lint" and item["result"] not in ("ok", "nonapplicable")
    }
    # The linter takes the last word of dispatch for a path and does not expand the variable that charmcraft writes
    # there; what it wants to know, that the file exists and is executable, is looked at here.
    if complaints.get("entrypoint", "").endswith("/${dispatch_path}/src/charm.py'"):
        del complaints["entrypoint"]
    assert complaints == {}
    assert {item["name"] for item in results if item["result"] == "ok"} >= {"metadata", "juju-config", "pip-check"}
    with ZipFile(packed.charm) as archive:
        for name in ("dispatch", "src/charm.py"):
            assert archive.getinfo(name).external_attr >> 16 & 0o111 == 0o111


def test_the_packed_charm_runs_its_hooks(unit: LocalUnit) -> None:
    """dispatch runs with Juju's environment alone; without options the unit is blocked and says which are missing."""
    done = unit.hook("config-changed")

    assert done["code"] == 0, done["output"] + unit.log()
    status = done["state"]["unit_status"]
    assert status["status"] == "blocked"
    assert "path:" in status["message"]
    assert "token:" in status["message"]


def test_the_packed_charm_answers_an_action(unit: LocalUnit) -> None:
    """An action that cannot be done fails with the same reason, and not with a traceback."""
    done = unit.action("check-runners")

    assert (done["code"], done["buffer"]["failed"]) == (0, True)
    assert "path:" in done["buffer"]["message"]
    assert "Traceback" not in unit.log()


def test_the_packed_charm_finds_its_alert_rules(unit: LocalUnit) -> None:
    """The collector gets every alert rule that is packed."""
    done = unit.hook("cos-agent-relation-joined", relation_id="0", remote_app="agent", remote_unit="agent/0")

    assert done["code"] == 0, done["output"] + unit.log()
    document = json.loads(done["state"]["relations"]["0"]["local_unit"]["config"])
    alerts = [rule["alert"] for group in document["log_alert_rules"]["groups"] for rule in group["rules"]]
    files = (unit.charm_dir / "src/loki_alert_rules").glob("*.yaml")
    assert len(alerts) == sum(file.read_text().count("alert: ") for file in files) > 0


def test_every_module_imports_and_every_template_is_found(packed: Packed, unit: LocalUnit) -> None:
    """Nothing that the sources import or render is missing from the archive."""
    done = unit.python(IMPORT_ALL)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(path.is_file() for path in (packed.tree / "templates").rglob("*"))
