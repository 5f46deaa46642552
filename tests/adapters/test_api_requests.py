"""Requests of a reconcile and of a job, counted at the stand-in for GitHub: the table of github-permissions.md."""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import known_jobs
import metrics.events
import provision
import runner_manager
import shared_fs
import telemetry
from errors import CreateMetricsStorageError
from flavor_plans import Wanted
from gh.auth import Pat
from gh.client import JOB_PAGES, GithubClient
from gh.registration import OptionRegistration
from gh.scale_set_registration import ScaleSetRegistration
from gh.scale_sets import ScaleSetClient
from known_jobs import KnownJob
from metrics.storage import MetricsStorage
from models import GithubOrg, GithubPath, GithubRepo
from runner import RunnerManagerClients
from runner_manager import RunnerManager
from sandbox import github
from sandbox.github.control import GitHubControl
from tests.support.fakes import IDENTITY, RESOURCES, TEMPLATES, FakeLxd, FakeStorages, state

TOKEN = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
REPO, ORG = GithubRepo("octo-org", "demo"), GithubOrg("octo-org")
PAGE = TEMPLATES.parent / "docs" / "reference" / "github-permissions.md"


def documented(what: str) -> list[int]:
    """The numbers of a row of the table: for a repository, and for an organisation with a runner group."""
    [row] = re.findall(rf"(?m)^\| {re.escape(what)} \| (\d+) \| (\d+) \|", PAGE.read_text())
    return [int(number) for number in row]


class Unit:
    """A unit with a simulated LXD, and with GitHub over HTTP."""

    def __init__(self, hub: github.GitHub, folder: Path, path: GithubPath) -> None:
        (folder / "fs").mkdir()
        self.lxd, self.storages = FakeLxd(), FakeStorages(folder / "fs")
        self.control = GitHubControl(hub.url)
        self.client = GithubClient(hub.url, Pat(TOKEN))
        self.state = state(github_url=hub.url, path=path, issue_metrics=True)
        self.binary = folder / "actions-runner-linux-x64-2.320.0.tar.gz"
        self.binary.write_bytes(b"tarball")

    def reconcile(self, quantity: int) -> int:
        """One reconcile; how many requests it made."""
        before = len(self.control.requests())
        registration = OptionRegistration(self.state.registration, self.client, self.state.path, self.state.arch)
        jinja = provision.environment(TEMPLATES)
        clients = RunnerManagerClients(self.client, jinja, self.lxd, None, registration=registration)  # type: ignore[arg-type]
        manager = RunnerManager(IDENTITY, self.state, clients, self.storages, self.binary)
        manager.reconcile(quantity, RESOURCES)
        assert manager.report.failures == []
        return len(self.control.requests()) - before

    def reconcile_in_demand(self, number: int, running: int = 0, list_age: float | None = 1.0) -> list[str]:
        """One reconcile for a scale set with so many jobs, of which some run; the requests that the API counts."""
        path, token = self.state.path, partial(self.client.registration_token, self.state.path)
        with closing(ScaleSetClient(self.control.url, path, token)) as client:
            found = client.create("app-0-0123abcd-default", client.group_id(), ["linux"]).set_id
        before = len(self.control.requests())
        clients = RunnerManagerClients(self.client, provision.environment(TEMPLATES), self.lxd, None)  # type: ignore[arg-type]
        manager = RunnerManager(IDENTITY, self.state, clients, self.storages, self.binary)
        with closing(ScaleSetClient(self.control.url, path, token)) as client:
            registration = ScaleSetRegistration(client, found)
            [spec] = self.state.runners
            wanted = Wanted(spec, number, registration=registration, scale_set=found, running_jobs=running)
            manager.reconcile_flavors([wanted], list_age)
        assert manager.report.failures == []
        # Those of the service of scale sets, and the one that leads to it.
        uncounted = re.compile("/_actions/|/actions/runner-registration$")
        counted = [entry for entry in self.control.requests()[before:] if not uncounted.search(entry["path"])]
        return [f"{entry['method']} {entry['path'].rpartition('/')[2]}" for entry in counted]

    def finish(self, jobs: int, run: int = 77, repository: str = REPO.path) -> None:
        """A runner ends its job, one of a run with so many jobs, and is gone from LXD and GitHub."""
        name = next(iter(self.lxd.found))
        for number in range(jobs):
            done = {"status": "completed", "conclusion": "success", "runner_name": name if number == 0 else "other"}
            times = dict.fromkeys(("created_at", "started_at", "completed_at"), 1.7e9)
            self.control.add_job(REPO.path, "true", run_id=run, state={**done, **times})
        folder = self.storages.create(name).path
        pre_job = {"timestamp": 20, "workflow": "w", "workflow_run_id": str(run), "event": "push"}
        (folder / "runner-installed.timestamp").write_text("10")
        (folder / "pre-job-metrics.json").write_text(json.dumps({**pre_job, "repository": repository}))
        (folder / "post-job-metrics.json").write_text(json.dumps({"timestamp": 30, "status": "normal"}))
        [found] = [item for item in self.control.runners() if item["name"] == name]
        self.control.remove_runner(found["id"])
        del self.lxd.found[name]


@pytest.fixture
def hub() -> Iterator[github.GitHub]:
    with github.serve("127.0.0.1", 0, [TOKEN], [REPO.path], [ORG.org]) as served:
        yield served


@pytest.fixture(params=[REPO, GithubOrg("octo-org", "builders")], ids=["repository", "organisation"])
def unit(request: Any, hub: github.GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unit]:
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path / "metrics.log")
    monkeypatch.setattr(runner_manager, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(telemetry, "LOCKS", tmp_path / "locks")

    def no_volume(name: str, /) -> MetricsStorage:
        raise CreateMetricsStorageError(f"{name}: nothing is mounted on the machine that runs the tests")

    monkeypatch.setattr(shared_fs, "create", no_volume)
    found = Unit(hub, tmp_path, request.param)
    found.control.add_organisation(ORG.org, ["builders"])
    yield found
    found.client.close()


def column(unit: Unit) -> int:
    return 0 if unit.state.path == REPO else 1


def test_requests_of_a_reconcile(unit: Unit) -> None:
    """What is there costs one list; missing runners cost one check of the permission, and one request each."""
    together = documented("a reconcile that creates runners")[column(unit)]
    assert unit.reconcile(2) == together + 2 * documented("each runner that registers just in time")[column(unit)]
    assert unit.reconcile(2) == documented("a reconcile that changes nothing")[column(unit)]


def test_requests_of_a_job(unit: Unit) -> None:
    """A job whose runner is replaced costs six requests at most, also one of a run with more than 100 jobs."""
    unit.reconcile(1)
    unit.finish(jobs=1)
    assert unit.reconcile(1) == documented("a job, from its end to its successor")[column(unit)] <= 6


@pytest.mark.parametrize(
    ("repository", "asked"), [(REPO.path, JOB_PAGES), ("Octo-Org/Demo", JOB_PAGES), ("evil/big", 0)]
)
def test_a_job_chooses_neither_how_much_nor_whom_the_unit_asks(unit: Unit, repository: str, asked: int) -> None:
    """A run of a thousand jobs costs five requests, and a repository whose jobs the unit does not run costs none."""
    unit.reconcile(1)
    before = unit.reconcile(1)
    unit.finish(jobs=0, repository=repository)
    jobs = [{"id": number, "runner_name": "other"} for number in range(100)]
    unit.control.add_fault(path="/jobs", times=None, status=200, body=json.dumps({"total_count": 12800, "jobs": jobs}))

    assert unit.reconcile(0) == before + asked


def test_requests_of_a_burst_in_demand_mode(unit: Unit) -> None:
    """The list is read once; after it only creations cost a request of the API, however many runners there are."""
    [creating] = set(documented("a reconcile that creates runners, in demand mode"))
    assert unit.reconcile_in_demand(0, list_age=None) == ["GET runners"]

    assert unit.reconcile_in_demand(3) == ["POST registration-token"] * creating
    assert unit.reconcile_in_demand(3, running=3) == []
    assert unit.reconcile_in_demand(5, running=3) == ["POST registration-token"] * creating
    assert len(unit.lxd.found) == 5
    unit.finish(jobs=1)
    assert unit.reconcile_in_demand(4, running=4) == ["GET jobs"]
    assert len(unit.lxd.found) == 4


def test_a_job_that_messages_told_of_costs_no_request(unit: Unit) -> None:
    """In demand mode: it is not looked up."""
    unit.reconcile_in_demand(1, list_age=None)
    name = next(iter(unit.lxd.found))
    unit.finish(jobs=1)
    known = KnownJob("a", queued=1.0, started=2.0, finished=3.0, result="succeeded", noted=3.0)
    known_jobs.save(IDENTITY.unit, {name: known})

    assert unit.reconcile_in_demand(0) == []


def test_requests_of_an_idle_runner_too_many(unit: Unit) -> None:
    """The list tells which runner is idle before one is removed."""
    unit.reconcile_in_demand(2, list_age=None)

    assert unit.reconcile_in_demand(1)[0] == "GET runners"
