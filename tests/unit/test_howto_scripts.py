"""The scripts that the how-to pages give for the option image-script."""

import re
import subprocess
from pathlib import Path

import pytest

from option_values import parse_script

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to"
SCRIPTS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted(HOW_TO.glob("*.md"))
    for number, block in enumerate(
        re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    )
]
NAME = "ACTIONS_RESULTS_URL"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_of_pages_are_accepted(script: str) -> None:
    """The option takes each of them, and Bash has no complaint about its form."""
    assert parse_script(script) == script
    assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True).stderr == ""


@pytest.fixture
def cache_script(tmp_path: Path) -> str:
    """The script of the page about the Actions cache, with its files in a folder of the test."""
    [script] = re.findall(
        r"^```bash\n(#!/bin/bash\n.*?)^```$", (HOW_TO / "actions-cache.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "opt/github-runner-application/bin").mkdir(parents=True)
    return str(script).replace("/opt/", f"{tmp_path}/opt/").replace("/etc/", f"{tmp_path}/etc/")


def test_the_agent_no_longer_sets_the_address_of_githubs_cache(tmp_path: Path, cache_script: str) -> None:
    """Its file has another name instead, of the same length, and its service has the variable."""
    worker = tmp_path / "opt/github-runner-application/bin/Runner.Worker.dll"
    before = b"\xff\x00before" + NAME.encode("utf-16-le") + b"\n\x00after" + "ACTIONS_RUNTIME_URL".encode("utf-16-le")
    worker.write_bytes(before)

    done = subprocess.run(["bash"], input=cache_script, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    renamed = NAME.replace("URL", "ORL").encode("utf-16-le")
    assert worker.read_bytes() == before.replace(NAME.encode("utf-16-le"), renamed)
    drop_in = tmp_path / "etc/systemd/system/github-runner.service.d/cache.conf"
    assert drop_in.read_text() == "[Service]\nEnvironment=ACTIONS_RESULTS_URL=http://10.20.0.5:3000/\n"


@pytest.mark.parametrize("content", [b"", "ACTIONS_RESULTS".encode("utf-16-le"), None])
def test_an_agent_without_the_name_fails_the_build(tmp_path: Path, cache_script: str, content: "bytes | None") -> None:
    """The image of before stays in use then."""
    if content is not None:
        (tmp_path / "opt/github-runner-application/bin/Runner.Worker.dll").write_bytes(content)

    assert subprocess.run(["bash"], input=cache_script, capture_output=True, text=True).returncode != 0
