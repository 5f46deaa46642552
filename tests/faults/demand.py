"""The runs on a unit with scaling=demand: its runners are those of scale sets, and its agent is disturbed."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults import attacks, churn
from tests.support.deployment import Deployment, wait_for

AGENT = "github-runner-agent-github-runner-0.service"
DEMAND = "/run/github-runner/demand.github-runner-0.json"
# Seconds. GitHub's own sessions end 50 s after the last request: the agent would spend most of a run waiting for that.
SESSION_LIFE = 5.0
BETWEEN_DISTURBANCES = 20.0
OUTAGE = 5.0
# Of the runners of a churn without jobs.
MIN_IDLE = 1
QUEUE = r"/scalesets/.*message"


@contextmanager
def in_demand(found: Deployment, wanted: int, **options: Any) -> Iterator[None]:
    """The unit with scaling=demand, and as many runners as it keeps without jobs; afterwards it is as before."""
    before = int(found.unit.config()["virtual-machines"]["value"])
    life = found.control.settings()["session_life"]
    found.keep(0)
    found.control.settings(session_life=SESSION_LIFE)
    try:
        found.unit.set_config({"scaling": "demand", **options})
        wait_for(lambda: listening(found), "a session of each scale set")
        found.wait_online(wanted)
        yield
    finally:
        found.control.settings(session_life=life)
        found.unit.reset_config("scaling", *(name for name in options if name != "virtual-machines"))
        found.unit.set_config({"virtual-machines": 0})
        found.keep(before)


def sets(found: Deployment) -> dict[str, dict[str, Any]]:
    """The runner scale sets at GitHub by flavour."""
    return {item["name"].rpartition("-")[2]: item for item in found.control.scale_sets()}


def listening(found: Deployment) -> bool:
    """Whether there are sets, and each has a session that has announced a capacity."""
    there = found.control.scale_sets()
    return bool(there) and all(item["owner"] and item["capacity"] for item in there)


def assigned(found: Deployment) -> dict[str, int]:
    """What GitHub has answered the agent: the jobs that each flavour's set must provide runners for."""
    text = found.machine.exec("cat", DEMAND, check=False)
    return {name: item["assigned"] for name, item in json.loads(text or "{}").items()}


def kill_agent(found: Deployment) -> None:
    """Kill the unit's agent: its sessions stay open until GitHub ends them."""
    found.machine.exec("systemctl", "kill", "--signal=KILL", AGENT, check=False)


def expire(found: Deployment) -> None:
    """Let sessions and all tokens of the service be over."""
    found.control.expire_scale_sets("sessions", "queue", "admin")


def outage(**fault: Any) -> Callable[[Deployment], None]:
    """For a while the queues of messages answer as the fault says."""

    def act(found: Deployment) -> None:
        planted = found.control.add_fault(path=QUEUE, **fault)
        try:
            time.sleep(OUTAGE)
        finally:
            found.control.remove_faults(planted)

    return act


DISTURBANCES: dict[str, Callable[[Deployment], None]] = {
    "agent killed": kill_agent,
    "sessions and tokens over": expire,
    "broker silent": outage(silence=True),
    "broker resets connections": outage(reset=True),
    "broker answers 503": outage(status=503),
}


class Disturbed:
    """Something happens to agent or broker every few seconds, in an order that a seed gives."""

    def __init__(self, seed: int = 1) -> None:
        self.happened: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._next = time.monotonic() + BETWEEN_DISTURBANCES

    def __call__(self, found: Deployment) -> None:
        """What happens now, if it is time."""
        if time.monotonic() < self._next:
            return
        what = self._chance.choice(sorted(DISTURBANCES))
        DISTURBANCES[what](found)
        self.happened[what] += 1
        self._next = time.monotonic() + BETWEEN_DISTURBANCES


def run_churn(found: Deployment, minutes: float) -> dict[str, object]:
    """Jobs all the time, through a scale set whose session is disturbed."""
    disturbed = Disturbed()
    with in_demand(found, MIN_IDLE, **{"virtual-machines": churn.RUNNERS, "min-idle": MIN_IDLE}):
        figures = churn.run(found, minutes, name="churn in demand", resting=MIN_IDLE, disturb=disturbed)
    return {**figures, **disturbed.happened}


def run_attacks(found: Deployment, short: bool) -> dict[str, object]:
    """All attacks by jobs that a scale set gets; as many runners are kept idle as there may be."""
    number = attacks.RUNNERS
    with in_demand(found, number, **{"virtual-machines": number, "min-idle": number}):
        return attacks.run(found, short)
