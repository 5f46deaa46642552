"""What is measured in process: the charm's own time and memory, with LXD and GitHub simulated or on HTTP."""

import json
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import metrics.events
import metrics.storage
import provision
from gh.auth import Pat
from gh.client import GithubClient
from metrics.runner import extract, issue_events
from models import GithubOrg
from runner import RunnerManagerClients
from runner_manager import RunnerManager
from sandbox import github
from sandbox.github.control import GitHubControl
from tests.bench.report import write
from tests.support.fakes import IDENTITY, RESOURCES, TEMPLATES, FakeGithub, FakeInstance, FakeLxd, FakeStorages, state

FLEETS = (1, 16, 64, 100)
FINISHED = (100, 1000, 10000)
# The rate of the previous charm, from the same kind of machine, in runners a second.
PREVIOUS_CHARM_RATE = 980


def steady(repeat: int) -> None:
    """One reconcile over N idle runners with nothing to do: our own time, and what is asked of LXD and GitHub."""
    rows = []
    for number in FLEETS:
        with tempfile.TemporaryDirectory() as folder:
            manager, lxd, hub = _fleet(Path(folder), number)
            seconds = []
            for _ in range(10 * repeat):
                lxd.lists, hub.lists = 0, []
                started = time.perf_counter()
                manager.reconcile(number, RESOURCES)
                seconds.append(time.perf_counter() - started)
            milliseconds = statistics.median(seconds) * 1000
        rows.append(
            {
                "label": f"{number} runners",
                "own time": round(milliseconds, 2),
                "requests to LXD": lxd.lists,
                "requests to GitHub": len(hub.lists),
            }
        )
    growth = (rows[-1]["own time"] - rows[0]["own time"]) / (FLEETS[-1] - FLEETS[0])  # type: ignore[operator]
    write(
        "steady",
        "A reconcile with nothing to do",
        "ms",
        rows,
        f"grows by {growth:.3f} ms a runner; LXD and GitHub simulated",
    )


def _fleet(folder: Path, number: int) -> tuple[RunnerManager, FakeLxd, FakeGithub]:
    lxd, hub = FakeLxd(), FakeGithub()
    (folder / "fs").mkdir()
    binary = folder / "actions-runner-linux-x64-2.320.0.tar.gz"
    binary.write_bytes(b"tarball")

    def registered(instance: FakeInstance) -> None:
        hub.register(instance.name)

    lxd.registered = registered
    clients = RunnerManagerClients(hub, provision.environment(TEMPLATES), lxd, None)  # type: ignore[arg-type]
    manager = RunnerManager(IDENTITY, state(), clients, FakeStorages(folder / "fs"), binary)
    manager.reconcile(number, RESOURCES)
    return manager, lxd, hub


def extract_and_issue(repeat: int) -> None:
    """Finished runners a second, honest ones and with every tenth hostile; memory at its most."""
    rows = []
    for number in FINISHED:
        row: dict[str, Any] = {"label": f"{number} finished"}
        for name, hostile in (("runners a second", 0), ("with 10 % hostile", 10)):
            rates = [number / _extract(number, hostile)[0] for _ in range(repeat)]
            row[name] = round(statistics.median(rates))
        row["previous charm (lab)"] = PREVIOUS_CHARM_RATE
        rows.append(row)
    tops = [_extract(number, 0, memory=True)[1] / 1024 for number in FINISHED]
    note = "memory at its most: " + ", ".join(f"{top:.0f} KiB for {n}" for n, top in zip(FINISHED, tops, strict=True))
    write("extract", "Extraction and events of finished runners", "/s", rows, note)


def _extract(number: int, hostile: int, memory: bool = False) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = metrics.events.METRICS_LOG_PATH, metrics.storage.FILESYSTEM_BASE_PATH
        quarantine = metrics.storage.FILESYSTEM_QUARANTINE_PATH
        metrics.events.METRICS_LOG_PATH = folder / "log"
        metrics.storage.FILESYSTEM_BASE_PATH = folder / "fs"
        metrics.storage.FILESYSTEM_QUARANTINE_PATH = folder / "quarantine"
        try:
            for index in range(number):
                _finished(folder / "fs" / f"runner-{index:05}", hostile and index % hostile == 0)
            if memory:
                tracemalloc.start()
            started = time.perf_counter()
            for found in extract(metrics.storage, set()):
                issue_events(found, "app", None)
            seconds = time.perf_counter() - started
            top = tracemalloc.get_traced_memory()[1] if memory else 0
        finally:
            tracemalloc.stop()
            metrics.events.METRICS_LOG_PATH, metrics.storage.FILESYSTEM_BASE_PATH = before
            metrics.storage.FILESYSTEM_QUARANTINE_PATH = quarantine
        return seconds, top


def _finished(folder: Path, hostile: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "runner-installed.timestamp").write_text("1700000000.5")
    job = {"timestamp": 1700000100.5, "workflow": "CI", "workflow_run_id": "7", "repository": "o/r", "event": "push"}
    (folder / "pre-job-metrics.json").write_text("x" * 5000 if hostile else json.dumps(job))
    (folder / "post-job-metrics.json").write_text('{"timestamp": 1700000200.5, "status": "normal"}')


def listing(repeat: int) -> None:
    """An organisation with 10,000 runners of which a few are the unit's: requests, seconds, memory."""
    with github.serve("127.0.0.1", 0, ["ghp_bench"], [], ["octo-org"]) as hub:
        control = GitHubControl(hub.url)
        control.add_runner("octo-org", "other", count=10000, status="online")
        client = GithubClient(hub.url, Pat("ghp_bench"))
        path = GithubOrg("octo-org")
        client.list_runners(path, IDENTITY.manages)
        seconds, tops, asked = [], [], 0
        for _ in range(repeat):
            control.clear_requests()
            started = time.perf_counter()
            client.list_runners(path, IDENTITY.manages)
            seconds.append(time.perf_counter() - started)
            asked = len(control.requests())
            tracemalloc.start()
            client.list_runners(path, IDENTITY.manages)
            tops.append(tracemalloc.get_traced_memory()[1] / (1 << 20))
            tracemalloc.stop()
        client.close()
    row = {"label": "10,000 runners", "seconds": round(statistics.median(seconds), 2), "requests": asked}
    note = f"one request for 100; {max(tops):.1f} MiB at its most (the stand-in runs in the same process)"
    write("listing", "Listing an organisation with 10,000 runners", "", [row], note)
