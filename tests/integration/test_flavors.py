"""Each runner has its flavour's size and labels; what does not fit waits."""

import json
import re

from tests.support.deployment import Deployment, wait_for

FLAVORS = {
    "small": {"count": 2, "vm-memory": "1GiB", "labels": "small"},
    "large": {"count": 2, "vm-cpu": 1, "vm-memory": "1GiB", "vm-disk": "3GiB", "labels": "large"},
}


def test_two_sizes_share_the_machine(deployment: Deployment) -> None:
    """Each runner has labels and size of its flavour; what exceeds the CPUs waits until there is room again."""
    cpus = int(deployment.machine.exec("nproc"))
    deployment.unit.set_config({"flavors": json.dumps(FLAVORS), "cpu-overcommit": str(3 / cpus)})
    try:
        deployment.reconcile()
        deployment.wait_online(3)

        state, message = deployment.status()
        assert state == "active"
        assert re.match(r"3 of 4 runners: .*\(small 2 of 2, large 1 of 2\)", message), message
        assert "1 of large waits for CPUs (1 each, 0 free)" in message
        waits = deployment.unit.run("check-runners")["results"]["waiting"]
        assert waits == "large: 1 of 2 runners: 1 cpus (1 each, 0 free)"
        labels = [[label["name"] for label in runner["labels"]] for runner in deployment.control.runners()]
        assert sum("small" in names for names in labels) == 2
        assert sum("large" in names for names in labels) == 1
        assert len(deployment.resource_profiles()) == 2

        deployment.unit.set_config({"flavors": json.dumps({"large": FLAVORS["large"]})})
        deployment.reconcile()
        deployment.wait_online(2)
        assert deployment.status()[1].startswith("2 runners: ")
    finally:
        deployment.unit.set_config({"flavors": "", "cpu-overcommit": "2.0"})
        deployment.reconcile()
        wait_for(lambda: len(deployment.resource_profiles()) == 1, "the end of the flavours")
