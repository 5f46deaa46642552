"""``make demo``: from an empty machine to a job's metrics, told so that a newcomer understands the product from it."""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from sandbox import github
from sandbox.github.control import GitHubControl
from sandbox.juju.unit import Unit
from sandbox.lab import lxd_setup
from sandbox.lab.machine import METRICS_LOG, Machine
from sandbox.lab.pack import pack
from sandbox.shell import say, wait_until

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "octo-org/demo"
JOB = """echo "Hello from $RUNNER_NAME, a machine of its own for this job."
sleep 2
echo "I am $(whoami) and may do anything here: sudo says $(sudo id -un). It is all gone in a moment."
"""
# Of the chapter about demand.
BURST = 3
BURST_JOB = "echo 'one of many'; sleep 2"


class Demo:
    """The story, step by step."""

    def __init__(self, runners: int) -> None:
        self.runners = runners
        self.started = self.ended = time.monotonic()
        self.machine = Machine("demo")
        self.unit = Unit(self.machine, on_event=self._show)

    def tell(self) -> None:
        """Everything, and clean-up whatever happens."""
        self._title("Setting the stage: LXD, a machine as Juju would give one, and a stand-in for GitHub")
        lxd_setup.ensure()
        lxd_setup.ensure_template()
        with github.serve(lxd_setup.bridge_address(), 0, [], [REPOSITORY], ["octo-org"]) as hub:
            self.hub, self.control = hub, GitHubControl(hub.url)
            try:
                self._deploy()
                name = self._run_job()
                self._replace(name)
                self._steady()
                self._burst()
            finally:
                self._clean_up()
        seconds = time.monotonic() - self.started
        say(f"\nThat was github-runner, in {seconds:.0f} s. Next: `python3 -m sandbox up` to play with it,")
        say("`make test` for the proof, README.md for deploying it with Juju.")

    def _deploy(self) -> None:
        options = {
            "path": REPOSITORY,
            "github-url": self.hub.url,
            "virtual-machines": self.runners,
            "vm-cpu": 1,
            "vm-memory": "1GiB",
            "vm-disk": "2GiB",
            "test-mode": "insecure",
        }
        shown = " ".join(f"{key}={value}" for key, value in options.items() if key != "github-url")
        self._title(f"juju deploy github-runner --config {shown}")
        self.machine.destroy()
        self.machine.create()
        with tempfile.TemporaryDirectory() as folder:
            self.unit.deploy(pack(ROOT, Path(folder, "charm")), options)
        self._title("juju add-secret github app-id=… private-key#file=…; juju config github-runner app-secret=…")
        app = self.control.add_app("runners", "octo-org")
        self.control.install_app(app["id"], "octo-org")
        uri = self.unit.add_secret("github", {"app-id": app["client_id"], "private-key": app["private_key"]})
        self.unit.grant_secret("github")
        self.unit.set_config({"app-secret": uri})
        self._title("juju integrate github-runner:cos-agent opentelemetry-collector (metrics are recorded from now on)")
        self.unit.integrate("cos-agent")
        self._show_runners()

    def _run_job(self) -> str:
        self._title(f"Somebody pushes to {REPOSITORY}: a workflow has a job for a self-hosted runner")
        job = self.control.add_job(REPOSITORY, JOB)
        shown = 0
        while True:
            found = self.control.job(job["id"], wait=5, log_from=shown)
            for line in found["log"][shown:]:
                if not line.startswith("##["):
                    say(f"  │ {line}")
            shown = len(found["log"])
            if found["status"] == "completed":
                break
        say(f"  └ {found['conclusion']}, on {found['runner_name']}")
        name: str = found["runner_name"]
        self.ended = time.monotonic()
        wait_until(lambda: name not in self._instances(), f"the end of {name}")
        seconds = time.monotonic() - self.ended
        say(f"\n  The runner's machine powered itself off and is deleted ({seconds:.1f} s after the job):")
        say("  nothing of this job is left for the next.")
        return name

    def _replace(self, name: str) -> None:
        self._title("LXD tells of the machine's end: the charm makes a successor at once and writes the metrics")

        def replaced() -> bool:
            online = {runner["name"] for runner in self.control.runners() if runner["status"] == "online"}
            return name not in online and len(online) == self.runners

        wait_until(replaced, f"the successor of {name}")
        say(f"  online {time.monotonic() - self.ended:.1f} s after the job's end")
        self._show_runners()
        wait_until(lambda: "runner_stop" in "".join(self.machine.metrics()), "the job's metrics")
        say(f"\n  {METRICS_LOG}, which the collector ships to Loki; the lines of this job:")
        for line in self.machine.metrics():
            event = json.loads(line)
            if event["event"] in ("runner_start", "runner_stop"):
                say(f"    {json.dumps({key: _rounded(value) for key, value in event.items()})}")

    def _steady(self) -> None:
        self._title("And once more: everything is as it should be, so nothing happens")
        before = self._instances()
        self.unit.run("reconcile-runners")
        same = (
            "the same machines as before" if self._instances() == before else "DIFFERENT machines: please report this"
        )
        say(f"  {same}")

    def _burst(self) -> None:
        self._title(f"juju config github-runner scaling=demand virtual-machines={BURST} (runners only where jobs wait)")
        self.unit.set_config({"scaling": "demand", "virtual-machines": BURST})
        wait_until(lambda: not self._instances(), "the end of the idle runners")
        say("  No job waits, so that nothing runs: no machine, no runner at GitHub.")
        self._title(f"{BURST} jobs arrive at once")
        arrived = time.monotonic()
        jobs = [self.control.add_job(REPOSITORY, BURST_JOB) for _ in range(BURST)]
        for job in jobs:
            found = self.control.wait_job(job["id"])
            seconds = time.monotonic() - arrived
            say(f"  ● {found['conclusion']} on {found['runner_name']}, {seconds:.1f} s after its arrival")
        wait_until(lambda: not self._instances(), "the end of the burst's machines")
        say(f"  Their machines are gone ({time.monotonic() - arrived:.1f} s): nothing runs again.")

    def _clean_up(self) -> None:
        self._title("Cleaning up")
        started = time.monotonic()
        self.machine.destroy()
        say(f"  ✓ the machine and everything in it is gone ({time.monotonic() - started:.1f} s)")
        say("    (LXD and the prepared images stay for the next time; `make clean` removes them as well)")

    def _instances(self) -> set[str]:
        found = json.loads(self.machine.exec("lxc", "query", "/1.0/instances?recursion=1"))
        return {item["name"] for item in found}

    def _show_runners(self) -> None:
        def all_online() -> list[dict[str, Any]]:
            here, runners = self._instances(), self.control.runners()
            settled = {runner["name"] for runner in runners} == here
            return runners if settled and all(runner["status"] == "online" for runner in runners) else []

        runners = wait_until(all_online, "all runners online at GitHub")
        say(f"\n  GitHub > {REPOSITORY} > Settings > Actions > Runners")
        for runner in runners:
            labels = ", ".join(label["name"] for label in runner["labels"])
            say(f"    ● {runner['name']}   {'busy' if runner['busy'] else 'idle'}   {labels}")

    def _show(self, event: dict[str, Any]) -> None:
        """A hook that passed, or what the unit says of itself."""
        if event["event"] == "hook-end":
            say(f"  hook {event['hook']:<32} {event['seconds']:>5.1f} s")
        elif event["event"] == "status" and event["status"] != "maintenance":
            say(f"  unit github-runner/0 {event['status']}: {event['message']}")
        elif event["event"] == "status":
            say(f"       {event['message']} …")

    def _title(self, text: str) -> None:
        say(f"\n[{time.monotonic() - self.started:3.0f} s] {text}")


def _rounded(value: object) -> object:
    return round(value, 2) if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> None:
    """Tell the story."""
    parser = argparse.ArgumentParser(prog="python3 -m sandbox.demo", description=__doc__)
    parser.add_argument("--runners", type=int, default=2, help="how many runners the unit keeps (default: 2)")
    options = parser.parse_args(arguments)
    say("github-runner: self-hosted GitHub Actions runners, each job in a machine of its own.")
    say("Everything here is real (LXD, systemd, the charm's own processes) but GitHub, Juju and the runner agent.")
    Demo(options.runners).tell()


if __name__ == "__main__":
    main()
