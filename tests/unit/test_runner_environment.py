"""The page about what a job finds in a runner, against the templates that make an image and a runner."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/reference/runner-environment.md").read_text()
IMAGE = (ROOT / "templates/provision-image.sh.j2").read_text()
WORD = re.compile(r"`([^` ]+)`")


def packages() -> set[str]:
    """Every package that the image script names, also those of which only the first that exists is installed."""
    steps = IMAGE.replace("\\\n", " ")
    named = re.search(r"apt_get install --no-install-recommends (docker.io .*)", steps)
    assert named is not None
    first = re.findall(r"^    first_of ([a-z].*)$", steps, re.MULTILINE)
    return {*named[1].split(), *(line.split()[0] for line in first)}


def test_every_package_of_the_image_is_on_the_page() -> None:
    """The table of programs has exactly the packages that the image gets."""
    rows = [line.split("|")[2] for line in PAGE.partition("## User")[0].splitlines() if line.startswith("|")]
    listed = {word for row in rows for word in WORD.findall(row)}

    assert listed - {"yarn", "libicu"} == packages()


def test_every_variable_of_a_job_is_on_the_page() -> None:
    """Each variable that a runner's .env may have is in the table of variables, and fixed values are the same."""
    env = (ROOT / "templates/env.j2").read_text()
    page = PAGE.partition("## User")[2].partition("## Limits")[0]

    for name in re.findall(r"^([A-Z_]+)=", env, re.MULTILINE):
        assert f"`{name}`" in page or name == "ACTIONS_RUNNER_HOOK_JOB_STARTED", name
    for name, value in re.findall(r"^(XDG_RUNTIME_DIR|DBUS_SESSION_BUS_ADDRESS)=(.*)$", env, re.MULTILINE):
        assert f"| `{name}` | `{value.replace('{{ user }}', '1000')}` |" in page


def test_limits_and_settings_on_the_page_are_the_templates() -> None:
    """The number of open files, the groups, and what does not run are as the templates have it."""
    unit = (ROOT / "templates/github-runner.service.j2").read_text()
    soft, hard = re.findall(r"^LimitNOFILE=(\d+):(\d+)$", unit, re.MULTILINE)[0]

    assert f"{int(soft):,} open files" in PAGE
    assert f"raise this to {int(hard):,}" in PAGE
    for group in re.findall(r"for group in (.*); do", IMAGE)[0].split():
        assert f"`{group}`" in PAGE
    for word in ("unattended-upgrades", "refresh.hold=forever", "ssh.service", "cloud-init.disabled", "linger/ubuntu"):
        assert word in IMAGE
    assert "apt/lists" not in IMAGE
