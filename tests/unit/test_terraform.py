"""The Terraform module names what the charm has, and its documentation names what the module has."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "terraform"


@cache
def blocks(kind: str) -> dict[str, dict[str, Any]]:
    """The blocks of one kind in all files of the module, by name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(MODULE.glob("*.tf")):
        for block in hcl2.loads(path.read_text()).get(kind, []):
            found |= {name.strip('"'): content for name, content in block.items()}
    return found


def metadata() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "metadata.yaml").read_text())
    return content


def application() -> dict[str, Any]:
    resource: dict[str, Any] = blocks("resource")["juju_application"]['"github_runner"']
    return resource


VARIABLES = blocks("variable")


def test_variables_are_those_of_charm_modules() -> None:
    """Whoever knows one module of a charm knows this one."""
    names = "app_name channel config constraints machines model_uuid revision storage_directives units"

    assert sorted(VARIABLES) == names.split()
    assert [name for name, value in VARIABLES.items() if "default" not in value] == ["model_uuid"]


@pytest.mark.parametrize("name", VARIABLES)
def test_each_variable_is_described_and_used(name: str) -> None:
    """A variable has a type and a description, and reaches the application."""
    assert {"type", "description"} <= VARIABLES[name].keys()
    assert f"var.{name}" in str(application())


def test_each_variable_is_where_the_provider_reads_it() -> None:
    """An attribute that the provider does not have would be refused by Terraform, and a wrong one deploys wrongly."""
    found = application()
    names = ("model_uuid", "config", "constraints", "storage_directives")
    charm = found["charm"][0]

    assert {name: found[name] for name in names} == {name: f"${{var.{name}}}" for name in names}
    assert (found["name"], charm["channel"], charm["revision"]) == (
        "${var.app_name}",
        "${var.channel}",
        "${var.revision}",
    )
    assert found.keys() - {"__is_block__", "__comments__"} == {*names, "name", "charm", "machines", "units"}


def test_the_charm_is_this_one() -> None:
    """The module deploys what metadata.yaml names, also as the application's default name."""
    assert application()["charm"][0]["name"].strip('"') == metadata()["name"]
    assert VARIABLES["app_name"]["default"].strip('"') == metadata()["name"]


@pytest.mark.parametrize("role", ["provides", "requires"])
def test_endpoints_are_those_of_the_charm(role: str) -> None:
    """Each relation of metadata.yaml is an output, by its name with underscores."""
    value = {
        key.strip('"'): text.strip('"') for key, text in blocks("output")[role]["value"].items() if "__" not in key
    }

    assert value == {name.replace("-", "_"): name for name in metadata()[role]}


def test_storage_in_the_examples_is_the_charms() -> None:
    """The name in the examples of storage_directives is one of metadata.yaml."""
    texts = [path.read_text() for path in (MODULE / "README.md", ROOT / "docs/how-to/terraform.md")]
    names = {name for text in texts for name in re.findall(r"storage_directives\W+\{ (\w+) =", text)}

    assert names <= metadata()["storage"].keys()
    assert names


def test_options_in_the_examples_are_the_charms() -> None:
    """Every option in the plan of the how-to exists."""
    plan = (ROOT / "docs/how-to/terraform.md").read_text()
    config = re.search(r"config = \{\n(.*?)\}", plan, re.DOTALL)
    options = yaml.safe_load((ROOT / "config.yaml").read_text())["options"]

    assert config is not None
    assert set(re.findall(r"^ *([\w-]+) +=", config[1], re.MULTILINE)) <= options.keys()


@pytest.mark.parametrize("kind", ["variable", "output"])
def test_readme_has_each_name_once(kind: str) -> None:
    """The tables of the README are those of the module."""
    title = {"variable": "## Inputs", "output": "## Outputs"}[kind]
    table = (MODULE / "README.md").read_text().split(title)[1].split("##")[0]

    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == sorted(blocks(kind))


@pytest.mark.parametrize(
    "plan", re.findall(r"```terraform\n(.*?)```", (ROOT / "docs/how-to/terraform.md").read_text(), re.S)
)
def test_plans_of_the_how_to_are_valid(plan: str) -> None:
    """A parser reads each of them."""
    assert hcl2.loads(plan)
