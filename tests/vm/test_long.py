"""The whole image of the runners, with its packages: an hour and more in software emulation."""

from pathlib import Path

import pytest

from sandbox.vm import base_image, template
from tests.vm.conftest import deployed, serve_github

ALIAS = "sandbox-vm-with-apt"
PROGRAMS = "docker npm yarn pip shellcheck jq wget unzip gh yq gcc g++ make"
SCRIPT = "#!/bin/sh -eu\ntree -L 1 /\nln -s /bin/true /usr/local/bin/made\n"


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_every_step_of_the_image(packed: Path) -> None:
    """The image is built with all of its packages from the distribution, and a job finds the programs.

    Also those of the operator: a package, and what a script makes at the end of the build.
    """
    image = base_image.ensure(template.cache(), with_apt=True)
    # A GitHub without the runners of the unit that other tests use: both units have the same name.
    with serve_github() as hub:
        unit = deployed(
            "vm-image",
            packed,
            hub,
            lambda machine: template.import_image(machine, image, ALIAS),
            **{"image-source": f"local:{ALIAS}", "extra-packages": "tree", "image-script": SCRIPT},
        )
        try:
            unit.keep(1)
            found = f"for program in {PROGRAMS} tree made; do command -v $program; done"
            job = unit.job(f"set -e; {found}; sudo docker info")
            assert job["conclusion"] == "success", "\n".join(job["log"])
        finally:
            unit.machine.destroy()
