"""The order of a reconcile and of a flush, and what the failure of one runner does not stop."""

import errno
import json
import logging
import os
import socket
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import known_jobs
import metrics.events
import metrics.storage
import observe
import provision
import runner
import runner_manager
import shared_fs
import telemetry
import times
from engine import console, profiles
from engine.instance import Execution
from errors import ConfigurationError, GithubApiError, HostError, LxdError
from known_jobs import KnownJob
from listing import Row
from metrics import collect
from models import (
    RUNNER_INSTALLED_TS_FILE_NAME as INSTALLED,
)
from models import (
    BaseImage,
    CharmState,
    FailedStarts,
    FlushMode,
    GithubOrg,
    GithubPath,
    GithubRepo,
    GithubRunner,
    ImageSource,
    PublishedImage,
    RepoPolicy,
    RunnerConfig,
    RunnerStatus,
    SSHDebugConnection,
    VirtualMachineResources,
    WorkflowJob,
)
from naming import KEY, fingerprint
from outcome import Outcome
from proxies import ProxyConfig
from runner import Runner, RunnerManagerClients
from runner_manager import RunnerManager
from system import exclusive
from tests.support.fakes import (
    IDENTITY,
    REPO,
    RESOURCES,
    TEMPLATES,
    FakeGithub,
    FakeInstance,
    FakeLxd,
    FakeStorages,
    state,
)

NOW = 1_700_000_000.0
# All files of a test are older than the time for which crash logs are kept.
LATER = 4_000_000_000.0
BINARY = "actions-runner-linux-x64-2.320.0.tar.gz"


def today(state: CharmState, binary: str = BINARY, image: str = "") -> str:
    """The fingerprint of a runner that is created now."""
    return fingerprint(state.runners[0], binary, image)


class World:
    """A unit with its fakes."""

    def __init__(self, folder: Path) -> None:
        self.lxd, self.github = FakeLxd(), FakeGithub()
        (folder / "fs").mkdir()
        self.storages = FakeStorages(folder / "fs")
        self.binary = folder / BINARY
        self.binary.write_bytes(b"tarball")
        self.state = state()
        self.now = NOW
        self.lxd.registered = lambda instance: self._register(instance)

    def _register(self, instance: FakeInstance) -> None:
        registered = self.github.register(instance.name)
        instance.files[str(provision.RUNNER_APPLICATION / ".runner")] = (
            b"\xef\xbb\xbf" + json.dumps({"agentId": registered.runner_id}).encode()
        )

    def manager(self, **options: Any) -> RunnerManager:
        clients = RunnerManagerClients(self.github, provision.environment(TEMPLATES), self.lxd, None)  # type: ignore[arg-type]
        options["clock"] = lambda: self.now
        return RunnerManager(IDENTITY, self.state, clients, self.storages, self.binary, **options)

    def counts(self) -> dict[str, list[str]]:
        manager = self.manager()
        return manager.counts(manager.observer.observe().runners)

    def rows(self) -> list[Row]:
        manager = self.manager()
        return manager.rows(manager.observer.observe().runners)

    def reconcile(self, quantity: int, resources: VirtualMachineResources = RESOURCES) -> RunnerManager:
        manager = self.manager()
        self.delta = manager.reconcile(quantity, resources)
        return manager

    def any_busy(self) -> bool:
        """Whether a job may run in any runner that exists now."""
        observer = self.manager().observer
        return observer.any_busy(observer.observe().runners.values())

    def add(self, suffix: str, *, online: bool = True, busy: bool = False, process: int = 10, **keys: str) -> str:
        """A prepared runner of an hour's age and of today's fingerprint."""
        name = f"{IDENTITY.prefix}{suffix}"
        config = {
            f"{KEY}path": REPO.path,
            f"{KEY}url": self.state.github_url,
            f"{KEY}created": str(self.now - 3600),
            f"{KEY}fingerprint": today(self.state),
            f"{KEY}prepared": "true",
            **{KEY + key.replace("_", "-"): value for key, value in keys.items()},
        }
        instance = FakeInstance(self.lxd, name, config)
        instance.running, instance.process = True, 0 if busy else process
        self.lxd.found[name] = instance
        self.github.register(name, online=online, busy=busy)
        return name


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path / "metrics.log")
    monkeypatch.setattr(metrics.storage, "FILESYSTEM_QUARANTINE_PATH", tmp_path / "quarantine")
    monkeypatch.setattr(runner, "LOGS_PATH", tmp_path / "logs")
    return World(tmp_path)


def events(tmp_path: Path) -> list[dict[str, Any]]:
    log = tmp_path / "metrics.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_missing_runners_are_made_with_one_token(world: World) -> None:
    """From nothing to the wanted number: one registration token, each runner named after the unit."""
    manager = world.reconcile(3)

    assert world.delta == 3
    assert len(world.lxd.found) == 3
    assert all(IDENTITY.manages(name) and len(name) <= 63 for name in world.lxd.found)
    assert world.github.tokens == 1
    assert sorted(manager.report.created) == sorted(world.lxd.found) == sorted(manager.report.idle)


@pytest.mark.parametrize("in_image", [False, True])
def test_a_runner_binary_that_is_in_the_image_is_not_sent(world: World, in_image: bool) -> None:
    """It is some 200 MB for each runner."""
    clients = RunnerManagerClients(world.github, provision.environment(TEMPLATES), world.lxd, None)  # type: ignore[arg-type]
    image = PublishedImage(binary=world.binary.name if in_image else "another")
    manager = RunnerManager(IDENTITY, world.state, clients, world.storages, world.binary, image=lambda alias: image)

    manager.reconcile(2, RESOURCES)

    sent = [str(provision.BINARY_ARCHIVE) in instance.files for instance in world.lxd.found.values()]
    assert sent == [not in_image] * 2


def test_second_reconcile_finds_nothing_to_do(world: World) -> None:
    """Level-triggered: run it twice and the second changes nothing, with one look at LXD and one at GitHub."""
    world.reconcile(2)
    before, world.lxd.log = set(world.lxd.found), []
    world.lxd.lists, world.github.lists = 0, []

    manager = world.reconcile(2)

    assert world.delta == 0
    assert set(world.lxd.found) == before
    assert (world.lxd.log, world.lxd.lists, world.github.lists) == ([], 1, [REPO.path])
    assert manager.report.created == manager.report.removed == []


def test_instance_carries_what_a_later_reconcile_needs(world: World) -> None:
    """LXD is the record: URL, path, fingerprint, time and id lie on the instance, the token does not."""
    world.reconcile(1)

    [instance] = world.lxd.found.values()
    assert instance.config[f"{KEY}path"] == REPO.path
    assert instance.config[f"{KEY}url"] == world.state.github_url
    assert instance.config[f"{KEY}fingerprint"] == today(world.state)
    assert instance.config[f"{KEY}runner-id"] == "1"
    assert instance.config["boot.autostart"] == "false"
    assert world.github.registration_token(REPO) not in str(instance.config) + str(instance.commands)


def test_files_with_secrets_are_readable_for_one_user_only(world: World) -> None:
    """The set-up script belongs to root and the tokens to the runner's user, each without access for others."""
    world.reconcile(1)
    [created] = world.lxd.found.values()
    assert (str(provision.SETUP_SCRIPT), 0o700, 0) in created.pushed
    assert (str(provision.TOKEN_FILE), 0o600, provision.UBUNTU) in created.pushed


@pytest.fixture
def metrics_storages(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Metrics storages that are plain folders, and the user of the host that each was given to."""
    owners: dict[str, int] = {}
    monkeypatch.setattr(shared_fs, "create", world.storages.create)
    monkeypatch.setattr(shared_fs, "give_to", lambda storage, uid: owners.update({storage.runner_name: uid}))
    world.state = state(issue_metrics=True)
    return owners


def test_a_metrics_storage_belongs_to_the_runners_user(world: World, metrics_storages: dict[str, int]) -> None:
    """The user is the one on the host that the instance maps to its own; it is given before the agent starts."""
    at_start: list[dict[str, int]] = []

    def starts(_: str) -> bool:
        at_start.append(dict(metrics_storages))
        return False

    world.lxd.faults = {"execute": starts}

    world.reconcile(1)

    [name] = world.lxd.found
    assert metrics_storages == {name: 1_000_000 + provision.UBUNTU}
    # The set-up, and the start of the agent.
    assert at_start == [metrics_storages, metrics_storages]


@pytest.mark.parametrize(("faults", "named"), [({"host_uid"}, "host_uid"), ({"host_uid", "write"}, "write")])
def test_the_reason_of_a_refused_set_up_comes_first(
    world: World, metrics_storages: dict[str, int], faults: set[str], named: str
) -> None:
    """Its metrics storage has no user to go to then: no question about one hides what the set-up has to say."""
    world.lxd.faults = dict.fromkeys(faults, lambda _: True)

    manager = world.reconcile(1)

    [failure] = manager.report.failures
    assert f"{named} of" in failure
    assert (world.lxd.found, world.github.runners, list(world.storages.list_all())) == ({}, {}, [])


def test_the_installed_timestamp_is_written_before_the_agent_starts(
    world: World, metrics_storages: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start of the agent on a job could write the file itself."""
    execute, written = FakeInstance.execute, []

    def recorded(instance: FakeInstance, command: list[str], **options: Any) -> Execution:
        if command[:2] == ["systemctl", "start"]:
            written.append(float((world.storages.get(instance.name).path / INSTALLED).read_text()))
        return execute(instance, command, **options)

    monkeypatch.setattr(FakeInstance, "execute", recorded)

    before = time.time()
    world.reconcile(1)

    assert before - 1 <= written[0] <= time.time()


def test_a_runner_whose_metrics_cannot_be_mounted_serves(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Its agent is started all the same, and the log names it."""
    world.lxd.exit_codes = {"setup.sh": provision.WITHOUT_METRICS}

    manager = world.reconcile(1)

    [name] = manager.report.created
    assert set(world.lxd.found) == {name}
    assert manager.report.failures == []
    assert f"{name} goes without metrics: nothing is mounted in it" in caplog.messages


@pytest.mark.parametrize(
    ("faults", "exit_codes", "step"),
    [
        ({"create": True}, {}, "creating the instance"),
        ({"start": True}, {}, "starting the instance"),
        ({"begin": True}, {}, "starting the instance"),
        ({"write": True}, {}, "setting the instance up"),
        ({}, {"setup.sh": 3}, "setting the instance up"),
        ({}, {"setup.sh": provision.NOT_REGISTERED}, "registering"),
        ({}, {"systemctl start": 1}, "starting the runner agent"),
        ({"set_config": True}, {}, "starting the runner agent"),
    ],
)
def test_one_failing_creation_costs_only_that_runner(
    world: World, faults: dict[str, bool], exit_codes: dict[str, int], step: str
) -> None:
    """Whatever the attempt made is removed again, the error names runner and step, the others are made."""
    victims: list[str] = []

    def first_only(name: str) -> bool:
        victims[:] = victims or [name]
        return name == victims[0]

    world.lxd.faults = dict.fromkeys(faults, first_only)
    if exit_codes:
        world.lxd.exit_codes = exit_codes
        manager = world.reconcile(1)
        assert world.lxd.found == {}
    else:
        manager = world.reconcile(2)
        assert len(world.lxd.found) == 1
        assert victims[0] not in world.lxd.found
    assert set(world.github.runners) == set(world.lxd.found)
    assert len(manager.report.failures) == 1
    assert step in manager.report.failures[0]
    assert IDENTITY.prefix in manager.report.failures[0]


def test_name_that_is_taken_costs_nobody_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that has the name already is not what the failed creation takes back."""
    monkeypatch.setattr("naming.secrets.token_hex", lambda _: "ab" * 8)

    manager = world.reconcile(2)

    assert list(world.lxd.found) == manager.report.created == [f"{IDENTITY.prefix}{'ab' * 8}"]
    [failure] = manager.report.failures
    assert "creating the instance failed" in failure
    assert "exists already" in failure


def test_request_that_was_cut_off_is_taken_back(world: World) -> None:
    """LXD made the instance, and its answer never came: it is removed again."""
    create = world.lxd.create_instance

    def cut_off(name: str, **options: Any) -> FakeInstance:
        create(name, **options)
        raise LxdError("LXD did not answer")

    world.lxd.create_instance = cut_off  # type: ignore[method-assign]

    manager = world.reconcile(1)

    assert world.lxd.found == {}
    assert len(manager.report.failures) == 1


def test_surplus_goes_and_busy_ones_never(world: World) -> None:
    """Down to the wanted number: an idle runner is deregistered first, a busy one is left alone."""
    idle, busy = world.add("aa"), world.add("bb", busy=True)

    manager = world.reconcile(0)

    assert set(world.lxd.found) == {busy}
    assert manager.report.removed == [idle]
    assert 1 in world.github.deleted


def test_runner_that_became_busy_is_kept(world: World) -> None:
    """422 from GitHub, or a worker inside, and an idle runner is kept."""
    asked, inside = world.add("aa"), world.add("bb")
    world.github.busy = {1}
    world.lxd.found[inside].process = 0

    world.reconcile(0)

    assert set(world.lxd.found) == {asked, inside}


def test_outdated_idle_is_replaced_and_busy_stays(world: World) -> None:
    """All live instances count: one is replaced, the busy one keeps its place."""
    idle = world.add("aa", fingerprint="old")
    busy = world.add("bb", busy=True, fingerprint="old")

    manager = world.reconcile(2)

    assert idle not in world.lxd.found
    assert busy in world.lxd.found
    assert len(world.lxd.found) == 2
    assert len(manager.report.created) == 1


def test_outdated_that_cannot_be_removed_is_not_replaced(world: World) -> None:
    """The machine is never overcommitted to hurry a replacement."""
    world.add("aa", fingerprint="old")
    world.github.busy = {1}

    manager = world.reconcile(1)

    assert len(world.lxd.found) == 1
    assert manager.report.created == []


def test_unhealthy_that_cannot_be_removed_is_not_replaced(world: World) -> None:
    """An instance that will not stop keeps its slot and is reported."""
    stuck = world.add("aa", online=False, process=11)
    world.lxd.faults = {"stop": lambda name: name == stuck}

    manager = world.reconcile(2)

    assert len(world.lxd.found) == 2
    assert stuck in world.lxd.found
    assert any(stuck in failure for failure in manager.report.failures)


def test_crashed_runner_is_removed_with_its_logs(world: World, tmp_path: Path) -> None:
    """With metrics on, the logs of a runner whose agent is gone are kept on the host."""
    world.state = state(issue_metrics=True)
    name = world.add("aa", online=False, process=11)
    instance = world.lxd.found[name]
    instance.files["/home/ubuntu/github-runner/_diag/Runner_1.log"] = b"x" * (2 << 20)
    instance.files["/home/ubuntu/github-runner/_diag/..evil"] = b"x"
    instance.files["/var/log/syslog"] = b"syslog"

    world.reconcile(0)

    folder = tmp_path / "logs" / name
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "_diag",
        "_diag/Runner_1.log",
        "syslog",
    ]
    assert (folder / "_diag/Runner_1.log").stat().st_size == 1 << 20
    assert world.lxd.found == {}
    assert world.github.runners == {}


@pytest.mark.parametrize(
    ("virtual_machine", "said", "found"),
    [(True, b"words", ["console.log"]), (True, b"", []), (True, None, []), (False, b"words", [])],
)
def test_logs_come_from_the_console_where_the_agent_is_dead(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virtual_machine: bool, said: bytes | None, found: Any
) -> None:
    """LXD reads no file of a virtual machine without its agent in it; the console still prints."""
    world.state = state(issue_metrics=True)
    name = world.add("aa", online=False, offline_since=str(world.now - times.SILENT - 1))
    world.lxd.found[name].virtual_machine = virtual_machine
    world.lxd.faults = {"execute": lambda _: True}

    def read(lxd: Any, instance: str, *, end: bytes, limit: int, timeout: float) -> bytes:
        assert (instance, end, limit, timeout) == (name, b"==> end of the logs <==", 1 << 20, 20)
        if said is None:
            raise LxdError("no console")
        return said

    monkeypatch.setattr(console, "read", read)

    world.reconcile(0)

    assert [path.name for path in (tmp_path / "logs").rglob("*.log")] == found
    assert world.lxd.found == {}


def test_logs_that_cannot_be_pulled_do_not_stop_the_removal(world: World) -> None:
    """A crashed runner without logs is removed all the same."""
    world.state = state(issue_metrics=True)
    world.add("aa", online=False, process=11)

    manager = world.reconcile(0)

    assert world.lxd.found == {}
    assert manager.report.failures == []


def test_logs_are_pulled_no_further_once_one_fails(world: World, tmp_path: Path) -> None:
    """Every log of an instance that hangs would cost its time limit; a stopped instance is not read at all."""
    world.state = state(issue_metrics=True)
    name, stopped = (world.add(suffix, online=False, process=11) for suffix in ("aa", "bb"))
    world.lxd.found[stopped].running = False
    asked: list[str] = []
    world.lxd.faults["output"] = lambda name: asked.append(name) or True  # type: ignore[func-returns-value]

    manager = world.reconcile(0)

    assert asked == [name]
    assert world.lxd.found == {}
    assert manager.report.failures == []
    assert not (tmp_path / "logs").exists()


def test_offline_runner_is_noted_until_it_is_online_again(world: World) -> None:
    """The first reconcile that sees it writes the time on the instance; a list with it online removes the time."""
    name = world.add("aa", online=False)
    world.reconcile(1)
    assert float(world.lxd.found[name].config[f"{KEY}offline-since"]) == NOW

    world.github.runners[name] = replace(world.github.runners[name], online=True)
    world.reconcile(1)

    assert f"{KEY}offline-since" not in world.lxd.found[name].config
    assert set(world.lxd.found) == {name}


def test_offline_runner_is_removed_after_its_time(world: World) -> None:
    """Fifteen minutes after the note it is replaced."""
    name = world.add("aa", online=False)
    world.reconcile(1)
    world.now += 901

    world.reconcile(1)

    assert name not in world.lxd.found
    assert len(world.lxd.found) == 1


@pytest.mark.parametrize("answer", ["online", "silence"])
def test_runner_that_only_odd_lists_lack_stays(world: World, answer: str) -> None:
    """Lists that lack a runner end it only if GitHub, asked for it alone, does not call it online either."""
    name = world.add("aa", offline_since=str(NOW - 1000))
    known = world.github.runners[name]
    world.github.list_runners = lambda path, wanted: []  # type: ignore[method-assign]
    world.github.down = {"find"} if answer == "silence" else set()

    manager = world.reconcile(1)

    assert set(world.lxd.found) == {name}
    assert world.github.runners == {name: known}
    assert manager.report.created == []


def test_no_token_goes_into_an_instance_that_a_job_may_own(world: World) -> None:
    """A runner without a known id that GitHub does not list is removed without a word to it, by both callers."""
    name = world.add("aa", offline_since=str(NOW - 1000))
    world.github.runners.clear()
    instance = world.lxd.found[name]

    world.reconcile(0)

    assert instance.files == {}
    assert {command[0] for command in instance.commands} == {"/bin/sh"}
    assert world.lxd.found == {}
    assert world.github.tokens == 0


def test_a_removal_token_is_not_used(world: World) -> None:
    """`Runner.remove` accepts one, as its signature is fixed, and gives it to nobody."""
    instance = world.lxd.found[world.add("aa")]
    config = RunnerConfig("app", False, (), Path("/"), instance.name, REPO, ProxyConfig())
    clients = RunnerManagerClients(world.github, None, world.lxd, None)  # type: ignore[arg-type]

    Runner(clients, config, RunnerStatus(), instance).remove("AAA")  # type: ignore[arg-type]

    assert (instance.files, instance.commands, world.lxd.found) == ({}, [], {})


def test_registration_without_instance_is_deleted_when_offline(world: World) -> None:
    """An offline registration of the unit is removed, one that is online or another application's stays."""
    world.github.register(f"{IDENTITY.prefix}aa", online=False)
    world.github.register(f"{IDENTITY.prefix}bb", online=True)
    world.github.register("app-0-aaaa", online=False)

    world.reconcile(0)

    assert world.github.deleted == [1]


def test_runner_of_another_path_is_looked_up_there(world: World) -> None:
    """After `path` changed, its old registration is where its keys say, asked once."""
    name = world.add("aa")
    world.state = state(path=GithubRepo("octo-org", "other"))

    world.reconcile(1)

    assert world.github.lists == ["octo-org/other", REPO.path]
    assert name not in world.lxd.found
    assert len(world.lxd.found) == 1


@pytest.mark.parametrize(
    "keys", [{"path": "a/b/c"}, {"url": "https://elsewhere.example"}, {"url": "https://z.example"}]
)
def test_runner_whose_registration_cannot_be_asked_for_is_kept(world: World, keys: dict[str, Any]) -> None:
    """Unknown is not dead: its process runs, so it stays until it ends, whatever the configured GitHub lists."""
    name = world.add("aa", online=False, offline_since=str(NOW - times.OFFLINE), **keys)

    world.reconcile(1)

    assert list(world.lxd.found) == [name]


def test_outage_of_an_old_path_does_not_stop_the_reconcile(world: World) -> None:
    """Only the configured path's list is needed."""
    world.add("aa")
    world.state = state(path=GithubRepo("octo-org", "other"))
    world.github.down = {REPO.path}

    world.reconcile(2)

    assert len(world.lxd.found) == 2


@pytest.mark.parametrize(("down", "error"), [("github", GithubApiError), ("lxd", LxdError)])
def test_outage_ends_the_reconcile_and_touches_nothing(world: World, down: str, error: type[Exception]) -> None:
    """Without GitHub's or LXD's list nothing is removed or made."""
    world.add("aa", fingerprint="old")
    if down == "github":
        world.github.down = {"list"}
    else:
        world.lxd.faults = {"list": lambda _: True}

    with pytest.raises(error):
        world.reconcile(0)
    assert world.lxd.log == []
    assert len(world.lxd.found) == 1


def test_unused_resource_profiles_go(world: World) -> None:
    """After vm-memory changed the old profile goes, foreign ones stay; with no runner wanted, today's goes as well."""
    world.lxd.profiles["default"] = {"config": {}}
    world.reconcile(1)
    other = VirtualMachineResources(2, "2GiB", "2GiB")
    world.state = state(resources=other)
    world.reconcile(1, other)
    assert set(world.lxd.profiles) == {"default", other.profile}

    world.reconcile(0, other)

    assert set(world.lxd.profiles) == {"default"}


def test_profiles_that_cannot_be_removed_do_not_fail_the_reconcile(world: World) -> None:
    """Housekeeping is tried again at the next reconcile."""
    world.reconcile(1)
    world.lxd.faults = {"delete profile": lambda _: True}

    world.reconcile(0)

    assert world.lxd.found == {}


def test_resource_profile_follows_the_instances_type(world: World) -> None:
    """`io.cache` is for virtual machines only, on an LXD that knows it; a profile of the other type is changed."""
    roots = []
    for test_mode, missing in ((False, set()), (True, set()), (False, {"disk_io_cache"})):
        world.lxd.missing_extensions = missing
        world.state = state(test_mode=test_mode)
        world.reconcile(1)
        roots.append(world.lxd.profiles[RESOURCES.profile]["devices"]["root"].get("io.cache"))

    assert roots == ["unsafe", None, None]


def job_storage(world: World, name: str, *, post: bool = True) -> None:
    folder = Path(world.storages.create(name).path)
    pre_job = {"timestamp": 20, "workflow": "w", "workflow_run_id": "5", "repository": REPO.path, "event": "push"}
    (folder / "runner-installed.timestamp").write_text("10")
    (folder / "pre-job-metrics.json").write_text(json.dumps(pre_job))
    if post:
        (folder / "post-job-metrics.json").write_text(json.dumps({"timestamp": 30, "status": "normal"}))


def test_metrics_of_finished_runners_are_issued(world: World, tmp_path: Path) -> None:
    """The unit's own without an instance are issued with GitHub's times; the living and others' are not touched."""
    world.state = state(issue_metrics=True)
    alive = world.add("cc")
    names = [f"{IDENTITY.prefix}aa", f"{IDENTITY.prefix}bb", alive, "other-0-0123abcdaa"]
    for name in names:
        job_storage(world, name, post=name != names[1])
    created = datetime(2026, 1, 1, tzinfo=timezone.utc)
    world.github.jobs[names[0]] = WorkflowJob(created, created + timedelta(seconds=7), "success")

    world.reconcile(1)

    found = events(tmp_path)
    jobs = ["runner_start", "runner_stop", "runner_start"]
    assert [event["event"] for event in found] == [*jobs, "unit_health", "reconciliation"]
    assert found[0]["queue_duration"] == 7
    assert found[1]["job_conclusion"] == "success"
    assert found[4] == {
        "event": "reconciliation",
        "timestamp": NOW,
        "flavor": "app",
        "flavor_name": "default",
        "crashed_runners": 1,
        "idle_runners": 1,
        "active_runners": 0,
        "expected_runners": 1,
        "expected_idle_runners": 1,
        "duration": 0,
        "unit": "app/0",
    }
    assert {event["unit"] for event in found} == {"app/0"}
    assert world.storages.names() == [alive, "other-0-0123abcdaa"]


QUEUED: dict[str, Any] = {"queued": 100.0, "started": 111.0}


@pytest.mark.parametrize(
    ("told", "by_rest", "expected"),
    [
        ({**QUEUED, "result": "failed"}, False, (11, "failure")),
        (QUEUED, True, (11, "success")),
        ({"result": "failed"}, True, (7, "failure")),
        ({**QUEUED, "started": 99.0, "result": "canceled"}, True, (7, "cancelled")),
        ({}, True, (7, "success")),
    ],
    ids=["all", "no end", "no times", "times in the wrong order", "nothing"],
)
def test_what_messages_told_of_a_job_counts(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, Any],
    by_rest: bool,
    expected: tuple[float, str],
) -> None:
    """The REST API is asked for what they did not tell, and for nothing where they told all."""
    world.state = state(issue_metrics=True)
    name = f"{IDENTITY.prefix}aa"
    job_storage(world, name)
    known_jobs.save(IDENTITY.unit, {name: KnownJob("a", noted=NOW, **told)})
    created = datetime(2026, 1, 1, tzinfo=timezone.utc)
    asked: list[object] = []

    def job(*arguments: object) -> WorkflowJob:
        asked.append(arguments)
        return WorkflowJob(created, created + timedelta(seconds=7), "success")

    monkeypatch.setattr(world.github, "job", job)

    world.reconcile(0)

    start, stop = events(tmp_path)[:2]
    assert (start["queue_duration"], stop["job_conclusion"]) == expected
    assert bool(asked) is by_rest


def test_the_duration_of_a_job_is_that_of_messages(world: World) -> None:
    """A job can write into its metrics what it likes; where messages told of it, they count for Prometheus."""
    world.state = state(issue_metrics=True)
    name = f"{IDENTITY.prefix}aa"
    job_storage(world, name)
    whole = KnownJob("a", noted=NOW, **QUEUED, finished=141.0, result="succeeded")
    known_jobs.save(IDENTITY.unit, {name: whole})

    world.reconcile(0)

    found = {each.name: each.value for each in telemetry.take(IDENTITY.unit)}
    assert (found["queue"], found["job"]) == (11, 30)


@pytest.mark.parametrize(
    ("told", "expected"),
    [(QUEUED, (11, None)), ({"result": "failed"}, (None, "failure")), ({}, (None, None))],
    ids=["no end", "no times", "nothing"],
)
def test_a_job_that_rest_does_not_tell_of_has_what_messages_told(
    world: World, tmp_path: Path, told: dict[str, Any], expected: tuple[float | None, str | None]
) -> None:
    """One of time and conclusion is told without the other, and a time that is not known is none for Prometheus."""
    world.state = state(issue_metrics=True)
    name = f"{IDENTITY.prefix}aa"
    job_storage(world, name)
    known_jobs.save(IDENTITY.unit, {name: KnownJob("a", noted=NOW, **told)})
    world.github.down = {"jobs"}

    world.reconcile(0)

    start, stop = events(tmp_path)[:2]
    assert (start.get("queue_duration"), stop.get("job_conclusion")) == expected
    queues = [each.value for each in telemetry.take(IDENTITY.unit) if each.name == "queue"]
    assert queues == [time for time in expected[:1] if time is not None]


@pytest.mark.parametrize(
    ("result", "post", "crashed"),
    [
        ("", True, 0),
        ("", False, 1),
        ("succeeded", False, 0),
        ("failed", False, 1),
        ("canceled", False, 1),
        ("failed", True, 0),
        ("abandoned", True, 1),
    ],
)
def test_githubs_word_decides_whether_a_runner_crashed(
    world: World, tmp_path: Path, result: str, post: bool, crashed: int
) -> None:
    """Where it says that the job succeeded, or that the runner was lost; else the result that the job has left."""
    world.state = state(issue_metrics=True)
    name = f"{IDENTITY.prefix}aa"
    job_storage(world, name, post=post)
    known_jobs.save(IDENTITY.unit, {name: KnownJob("a", noted=NOW, result=result)})

    world.reconcile(0)

    assert events(tmp_path)[-1]["crashed_runners"] == crashed


def test_creation_waits_for_no_look_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Successors exist before GitHub is asked for a job that a finished runner names."""
    world.state = state(issue_metrics=True)
    job_storage(world, f"{IDENTITY.prefix}aa")
    there: list[int] = []

    def job(*_: object) -> WorkflowJob:
        there.append(len(world.lxd.found))
        raise GithubApiError("no such job")

    monkeypatch.setattr(world.github, "job", job)

    world.reconcile(2)

    assert there == [2]


def test_look_ups_of_a_reconcile_have_one_time_limit(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not looked up within a minute is issued without GitHub's part, and its storage goes."""
    world.state = state(issue_metrics=True)
    for suffix in ("aa", "bb", "cc"):
        job_storage(world, f"{IDENTITY.prefix}{suffix}")
    now, limits = [0.0], []

    def job(_: str, __: str, ___: str, timeout: float) -> WorkflowJob:
        limits.append(timeout)
        now[0] += 40
        raise GithubApiError("no such job")

    monkeypatch.setattr(world.github, "job", job)
    monkeypatch.setattr("metrics.collect.time.monotonic", lambda: now[0])

    world.reconcile(0)

    assert limits == [60, 20]
    assert [event["event"] for event in events(tmp_path)].count("runner_stop") == 3
    assert world.storages.names() == []


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (REPO, True),
        (GithubRepo("Octo-Org", "Demo"), True),
        (GithubRepo("octo-org", "x"), False),
        (GithubOrg("OCTO-ORG"), True),
        (GithubOrg("octo"), False),
    ],
    ids=["its own", "in other letters", "another", "of its organisation", "of another organisation"],
)
def test_only_repositories_that_the_unit_serves_are_asked_for(
    world: World, tmp_path: Path, path: GithubPath, asked: bool
) -> None:
    """A job names the repository: the operator's token reads none that the runner has no jobs of."""
    world.state = state(issue_metrics=True, path=path)
    name = f"{IDENTITY.prefix}aa"
    job_storage(world, name)
    created = datetime(2026, 1, 1, tzinfo=timezone.utc)
    world.github.jobs[name] = WorkflowJob(created, created, "success")

    world.reconcile(0)

    [stop] = [event for event in events(tmp_path) if event["event"] == "runner_stop"]
    assert ("job_conclusion" in stop) is asked


def test_jobs_are_not_asked_for_during_an_outage(world: World, tmp_path: Path) -> None:
    """After one failed look-up the others of the reconcile go without, so that the reconcile stays short."""
    world.state = state(issue_metrics=True)
    for suffix in ("aa", "bb"):
        job_storage(world, f"{IDENTITY.prefix}{suffix}")
    world.github.down = {"jobs"}

    world.reconcile(0)

    starts = [event for event in events(tmp_path) if event["event"] == "runner_start"]
    assert len(starts) == 2
    assert all("queue_duration" not in event for event in starts)


def test_storages_stay_while_the_log_cannot_be_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or broken log costs time, no events: the next reconcile issues them."""
    world.state = state(issue_metrics=True)
    names = [f"{IDENTITY.prefix}aa", f"{IDENTITY.prefix}bb"]
    for name in names:
        job_storage(world, name)
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path)
    world.reconcile(0)
    assert world.storages.names() == names

    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path / "metrics.log")
    world.reconcile(0)

    assert world.storages.names() == []
    assert [event["event"] for event in events(tmp_path)].count("runner_stop") == 2


def test_event_that_can_never_be_valid_does_not_block_the_others(world: World, tmp_path: Path) -> None:
    """Its storage goes to quarantine, the next one is issued."""
    world.state = state(issue_metrics=True)
    names = [f"{IDENTITY.prefix}aa", f"{IDENTITY.prefix}bb"]
    for name in names:
        job_storage(world, name)
    bad = WorkflowJob(datetime(2026, 1, 1, tzinfo=timezone.utc), datetime(2026, 1, 1, tzinfo=timezone.utc), 5)  # type: ignore[arg-type]
    world.github.jobs[names[0]] = bad

    world.reconcile(0)

    assert world.storages.names() == []
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == [f"{names[0]}.tar.gz"]
    assert "runner_stop" in [event["event"] for event in events(tmp_path)]


def test_storages_are_dropped_while_metrics_are_off(world: World, tmp_path: Path) -> None:
    """Without the cos-agent relation nothing is written, and no storage of the unit stays behind."""
    job_storage(world, f"{IDENTITY.prefix}aa")
    job_storage(world, "other-0-0123abcdaa")

    world.reconcile(0)

    assert world.storages.names() == ["other-0-0123abcdaa"]
    assert events(tmp_path) == []


def test_one_process_at_a_time(world: World, locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process would take what the first one makes for leftovers: it waits, then says so and does nothing."""
    monkeypatch.setattr(times, "LOCK", 0.2)
    world.add("aa")

    with exclusive(locks / f"{IDENTITY.prefix.rstrip('-')}.lock", 0):
        for action in (lambda: world.reconcile(2), lambda: world.manager().flush(FlushMode.FORCE_FLUSH)):
            with pytest.raises(HostError, match=r"another process .* within 0.2 s; try again when it has ended$"):
                action()
    assert world.lxd.log == []

    world.reconcile(2)
    assert len(world.lxd.found) == 2


def test_flush_waits_for_pre_job_scripts(world: World) -> None:
    """Busy ones go as well, once no pre-job script runs."""
    world.add("aa")
    world.add("bb", busy=True)
    world.lxd.pre_job = [0, 1, 1]

    assert world.manager().flush(FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK) == 2
    assert world.lxd.found == {}
    assert world.lxd.pre_job == []


@pytest.mark.parametrize("mode", list(FlushMode))
@pytest.mark.parametrize(("busy", "stopped"), [(False, "stop by force"), (True, "stop")], ids=["idle", "busy"])
def test_only_what_may_run_a_job_is_stopped_in_order(world: World, mode: FlushMode, busy: bool, stopped: str) -> None:
    """An instance whose registration GitHub has deleted is stopped by force; one with a job is shut down in order."""
    name = world.add("aa", busy=busy)

    world.manager().flush(mode)

    assert world.lxd.log[0] == f"{stopped} {name}"
    assert world.github.runners == {}


def test_a_job_is_stopped_in_order_although_github_lists_its_runner_as_offline(world: World) -> None:
    """GitHub may list a runner as offline in the middle of its job."""
    name = world.add("aa", busy=True, online=False)

    world.manager().flush(FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK)

    assert world.lxd.log[0] == f"stop {name}"


def test_flush_removes_an_idle_runner_that_github_does_not_deregister(world: World) -> None:
    """If GitHub refuses to delete the registration, a flush removes the runner all the same."""
    name = world.add("aa")
    world.github.down = {"delete"}

    assert world.manager().flush(FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK) == 1
    assert world.lxd.log[0] == f"stop {name}"


def test_force_flush_works_without_github(world: World) -> None:
    """A dead token or no GitHub does not keep runners on a machine that is being given back."""
    world.add("aa", busy=True, runner_id="1")
    world.github.down = {"list", "delete"}

    assert world.manager().flush(FlushMode.FORCE_FLUSH) == 1
    assert world.lxd.found == {}


def test_flush_that_waits_needs_github(world: World) -> None:
    """Without GitHub it would leave registrations behind: it says so and touches nothing."""
    world.add("aa")
    world.github.down = {"list"}

    with pytest.raises(GithubApiError):
        world.manager().flush(FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK)
    assert len(world.lxd.found) == 1


def test_busy_is_what_either_account_says(world: World) -> None:
    """A worker inside counts although GitHub does not know yet, and an instance that does not say counts as well."""
    name = world.add("aa")
    assert not world.any_busy()

    world.lxd.found[name].process = 0
    assert world.any_busy()

    world.lxd.faults = {"execute": lambda _: True}
    assert world.any_busy()


def forged(world: World, listed: bool, **keys: Any) -> str:
    """A runner whose job has ended, with a process that a job left and named like a worker."""
    name = world.add("0" * 16, online=False, process=0, runner_id="7", **keys)
    if not listed:
        world.github.runners.pop(name)
    return name


@pytest.mark.parametrize(("listed", "gone", "hours"), [(False, True, 0.25), (False, False, 6), (True, False, 6)])
def test_a_forged_worker_keeps_its_instance_up_to_a_limit(world: World, listed: bool, gone: bool, hours: float) -> None:
    """15 minutes where GitHub has no such registration, 6 hours otherwise. No reconcile has seen the runner online."""
    name = forged(world, listed)
    world.github.gone = {7} if gone else set()
    world.reconcile(1)

    world.now += hours * 3600 - 1
    report = world.reconcile(1).report
    assert (report.busy, report.unknown_jobs, set(world.lxd.found)) == ([name], [name], {name})
    assert world.any_busy()

    world.now += 1
    world.reconcile(1)
    assert name not in world.lxd.found
    assert len(world.lxd.found) == 1


@pytest.mark.parametrize("busy", [True, False])
def test_github_is_asked_for_a_runner_before_its_worker_is_ended(
    world: World, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that lacks a busy runner for hours does not end its job."""
    name = forged(world, listed=False, offline_since=str(NOW - 7 * 3600))
    monkeypatch.setattr(world.github, "find_runner", lambda *_: GithubRunner(7, name, online=False, busy=busy))

    world.reconcile(1)

    assert (name in world.lxd.found) is busy


def test_a_forged_worker_does_not_put_a_reboot_off_for_ever(world: World) -> None:
    """What is over by GitHub's account does not count as a job, neither before a reboot nor in a drain."""
    forged(world, listed=False, offline_since=str(NOW - 7 * 3600))

    assert not world.any_busy()
    assert world.manager().drain()


def test_check_runners_shows_jobs_that_github_does_not_know(world: World) -> None:
    """An instance that claims a job is told from one that waits for GitHub."""
    name = forged(world, listed=False)

    assert world.counts()["details"] == [f"{name}: busy, unknown to GitHub, 60 min old"]


@pytest.mark.parametrize(("seconds", "shown"), [(-60, 0), (29, 0), (31, 1), (89, 1), (91, 2)])
def test_an_age_is_shown_in_the_nearest_minutes(world: World, seconds: int, shown: int) -> None:
    """A runner that was created in the future, by a clock that was wrong, is new."""
    name = world.add("aa", created=str(NOW - seconds))

    assert world.counts()["details"] == [f"{name}: idle, {shown} min old"]


def test_counts_are_githubs_and_unknown_instances(world: World) -> None:
    """`check-runners` tells online, offline and what GitHub does not know."""
    online, offline, unknown = world.add("aa"), world.add("bb", online=False), world.add("cc")
    del world.github.runners[unknown]

    counts = world.counts()

    assert counts.pop("details") == [
        f"{online}: idle, 60 min old",
        f"{offline}: offline, 60 min old",
        f"{unknown}: not at GitHub, 60 min old",
    ]
    assert counts == {"online": [online], "offline": [offline], "unknown": [unknown]}


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ("other",)},
        {"path": GithubRepo("octo-org", "other")},
        {"resources": VirtualMachineResources(2, "1GiB", "2GiB")},
        {"dockerhub_mirror": "https://mirror.example"},
        {"ca_certificates": ("certificate",)},
        {"allow_external_contributor": False},
        {"pre_job_script": "#!/bin/sh"},
        {"ssh_debug_connections": (SSHDebugConnection("192.0.2.1", 22, "SHA256:a", "SHA256:b"),)},
        {"issue_metrics": True},
        {"github_url": "https://other.example"},
        {"base_image": BaseImage.NOBLE},
        {"test_mode": False},
        {"runner_proxies": ProxyConfig(http="http://proxy.example:3128")},
        {"runner_proxies": ProxyConfig(no_proxy="example")},
        {"repo_policy": RepoPolicy("https://policy.example", "token")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_tells_configurations_apart(change: dict[str, Any]) -> None:
    """What goes into an instance is in its fingerprint."""
    assert today(state(**change)) != today(state())


@pytest.mark.parametrize(
    "change",
    [
        {"token": "other"},
        {"virtual_machines": 9},
        {"proxies": ProxyConfig(http="http://proxy.example:3128")},
        {"reconcile_interval": 5},
        {"image_source": ImageSource("https://other.example")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_is_blind_to_what_instances_do_not_hold(change: dict[str, Any]) -> None:
    """A new token, interval or source of the image replaces no runner."""
    assert today(state(**change)) == today(state())


def test_fingerprint_holds_the_runner_binary() -> None:
    """A new runner binary makes runners outdated."""
    assert today(state()) != today(state(), "actions-runner-linux-x64-2.321.0.tar.gz")


def test_a_new_token_of_the_policy_service_replaces_no_runner() -> None:
    """Runners get a token for one use, so that the service's own token is no part of them."""
    states = [state(repo_policy=RepoPolicy("https://policy.example", token)) for token in ("one", "other")]

    assert today(states[0]) == today(states[1])


@pytest.mark.parametrize(("built_from", "replaced"), [("a", False), ("b", True)])
def test_an_image_that_was_built_from_another_source_replaces_runners(
    world: World, built_from: str, replaced: bool
) -> None:
    """An image that was rebuilt from the same source replaces no runner, one of another source does."""
    name = world.add("aa", fingerprint=today(world.state, image="a"))

    world.manager(image=lambda alias: PublishedImage(built_from)).reconcile(1, RESOURCES)

    [left] = world.lxd.found.values()
    assert (left.name != name) is replaced
    assert left.config[f"{KEY}fingerprint"] == today(world.state, image=built_from)


def test_old_crash_logs_are_deleted(world: World, tmp_path: Path) -> None:
    """Log folders go after seven days."""
    for name in ("old", "young"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "syslog").touch()
    world.now = (tmp_path / "logs" / "old").stat().st_mtime + 7 * 86400 + 60
    (tmp_path / "logs" / "young" / "more").touch()
    os.utime(tmp_path / "logs" / "young", (world.now, world.now))

    world.reconcile(0)

    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["young"]


def old_logs(tmp_path: Path, name: str = "old") -> Path:
    """A folder of a runner's crash logs."""
    folder = tmp_path / "logs" / name
    (folder / "_diag").mkdir(parents=True)
    (folder / "_diag" / "Runner_1.log").write_text("x")
    (folder / "syslog").write_text("x")
    return folder


def test_old_crash_logs_are_deleted_with_their_folders(world: World, tmp_path: Path) -> None:
    """Nested folders, links and special files in old crash logs are removed; a link is not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    folder = old_logs(tmp_path)
    (folder / "_diag" / "pages" / "deep").mkdir(parents=True)
    (folder / "_diag" / "to-folder").symlink_to(outside)
    (folder / "to-file").symlink_to(outside / "file")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))

    runner.remove_old_logs(LATER)

    assert list((tmp_path / "logs").iterdir()) == []
    assert (outside / "file").read_text() == "kept"


def test_crash_logs_have_a_total(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A series of jobs that leave as much as they can does not fill the disk: the newest logs within it are kept."""
    monkeypatch.setattr(runner, "KEPT_OF_JOBS", 5 << 19)
    for age, name in enumerate(["new", "middle", "old"]):
        (old_logs(tmp_path, name) / "_diag" / "Runner_1.log").write_bytes(b"x" * (1 << 20))
        os.utime(tmp_path / "logs" / name, (world.now - age, world.now - age))

    runner.remove_old_logs(world.now)

    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["middle", "new"]


def test_only_folders_of_crash_logs_are_deleted(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link in the place of a folder is not followed, a file beside the folders is left alone; neither is logged."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("kept")
    old_logs(tmp_path)
    (tmp_path / "logs" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "logs" / "note").write_text("x")

    with caplog.at_level(logging.WARNING, logger="runner"):
        runner.remove_old_logs(LATER)

    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["link", "note"]
    assert caplog.records == []
    assert (tmp_path / "outside" / "file").read_text() == "kept"


def test_crash_logs_that_cannot_be_removed_do_not_stop_a_reconcile(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be removed is logged, the rest is removed, and the reconcile is reported as ever."""
    world.state = state(issue_metrics=True)
    world.now = LATER
    first, second = old_logs(tmp_path, "a"), old_logs(tmp_path, "b")
    (first / "_diag" / "held").write_text("x")
    unlink = os.unlink

    def held(path: Any, *arguments: Any, **options: Any) -> None:
        if os.fspath(path) == "held":
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        unlink(path, *arguments, **options)

    monkeypatch.setattr(os, "unlink", held)

    with caplog.at_level(logging.WARNING, logger="runner"):
        world.reconcile(0)

    assert [str(path.relative_to(first)) for path in first.rglob("*")] == ["_diag", "_diag/held"]
    assert not second.exists()
    assert "a/_diag/held' cannot be removed" in caplog.text
    assert {event["event"] for event in events(tmp_path)} == {"reconciliation", "unit_health"}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RecursionError("too deep")])
def test_removing_old_crash_logs_never_raises(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """Whatever the removal of one folder raises is logged with the folder's name."""
    old_logs(tmp_path)

    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("runner.shutil.rmtree", broken)

    with caplog.at_level(logging.WARNING, logger="runner"):
        runner.remove_old_logs(LATER)

    assert f"{tmp_path}/logs/old cannot be removed: " in caplog.text


def test_crash_logs_that_cannot_be_listed_do_not_raise(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file in the place of the folder of logs is logged, and nothing is raised."""
    (tmp_path / "logs").write_text("in the way")

    with caplog.at_level(logging.WARNING, logger="runner"):
        runner.remove_old_logs(LATER)

    assert "Crash logs cannot be listed" in caplog.text


def test_names_of_crash_logs_stay_in_their_line_of_the_log(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file name that a job chose cannot add a line to the log."""
    (old_logs(tmp_path) / "a\nb").write_text("x")

    def held(path: Any, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr(os, "unlink", held)

    with caplog.at_level(logging.WARNING, logger="runner"):
        runner.remove_old_logs(LATER)

    assert "a\\nb' cannot be removed" in caplog.text
    assert not any("\n" in record.getMessage() for record in caplog.records)


def test_deprecated_version_stops_creation_and_says_so(world: World, tmp_path: Path) -> None:
    """A runner whose version GitHub has deprecated is removed, none follows it, and the report says what to do."""
    world.state = state(issue_metrics=True)
    kept, refused = world.add("aa"), world.add("bb", online=False, process=12, prepared=f"{NOW - 60}")

    manager = world.reconcile(3)

    assert manager.findings.deprecated
    assert list(world.lxd.found) == [kept]
    assert refused not in world.github.runners
    assert world.github.tokens == 0
    assert "update-dependencies" in manager.report.failures[0]


def test_runner_that_ended_without_a_job_is_a_failed_creation(world: World, tmp_path: Path) -> None:
    """Its logs are pulled also without metrics, its own reason is in the report, and it counts in the events."""
    kept, ended = world.add("aa"), world.add("bb", online=False, process=13, prepared=f"{NOW - 60}")
    instance = world.lxd.found[ended]
    instance.files["last words"] = b"An error occurred: \x1b[31mnot allowed\nExiting runner...\n"
    instance.files[f"{provision.RUNNER_APPLICATION}/_diag/Runner_1.log"] = b"why"

    manager = world.reconcile(3)

    assert list(world.lxd.found) == [kept]
    assert ended not in world.github.runners
    [failure] = manager.report.failures
    assert failure == "runners ended without a job: An error occurred: [31mnot allowed; next attempt in 2 s"
    assert manager.report.failed_starts == FailedStarts(1, NOW, "An error occurred: [31mnot allowed")
    assert (tmp_path / "logs" / ended / "_diag" / "Runner_1.log").read_text() == "why"


def test_runner_that_ended_without_a_job_is_in_the_events(world: World, tmp_path: Path) -> None:
    """Operators of dashboards see that creations fail, and how often in a row."""
    world.state = state(issue_metrics=True)
    world.add("aa", online=False, process=13, prepared=f"{NOW - 60}")

    world.reconcile(1)

    [health] = [event for event in events(tmp_path) if event["event"] == "unit_health"]
    assert (health["failed_creations"], health["failed_starts"]) == (1, 1)


@pytest.mark.parametrize(("last", "proven"), [(-7200, True), (-60, False), (360, True)])
def test_what_ends_a_row_of_failed_starts(world: World, last: float, proven: bool) -> None:
    """A runner that was created later and is online; after a correction of the clock any that is online."""
    world.add("aa")  # an hour ago
    manager = world.manager(failed_starts=FailedStarts(3, NOW + last, "the clock"))

    manager.reconcile(1, RESOURCES)

    assert manager.report.failed_starts is not None
    assert (manager.report.failed_starts.count == 0) is proven


@pytest.mark.parametrize("process", [12, 13])
@pytest.mark.parametrize("listed", [True, False])
def test_job_cannot_make_its_runner_a_failed_creation(world: World, tmp_path: Path, listed: bool, process: int) -> None:
    """A job that began within seconds killed agent and worker, and GitHub has given it up: no reconcile saw it online.

    The runner is reported without its words, and replaced. Its logs are kept.
    """
    ended = world.add("aa", online=False, process=process, prepared=f"{NOW - times.REPORT_COUNTS}")
    instance = world.lxd.found[ended]
    instance.files["last words"] = b"words of a job\n"
    instance.files[f"{provision.RUNNER_APPLICATION}/_diag/Runner_1.log"] = b"why"
    if not listed:
        world.github.runners.clear()

    manager = world.reconcile(1)

    where = "see its logs" if listed else "and GitHub does not list it"
    assert manager.report.failures == [f"{ended}: ended without a job, {where}"]
    assert manager.report.failed_starts == FailedStarts()
    assert not manager.findings.deprecated
    assert (list(world.lxd.found), manager.report.removed) == (list(manager.report.created), [ended])
    assert (tmp_path / "logs" / ended / "_diag" / "Runner_1.log").read_text() == "why"


@pytest.mark.parametrize("process", [12, 13])
@pytest.mark.parametrize(
    "now", ["online", "busy", "deleted", "no answer"], ids=lambda now: f"after the health probe: {now}"
)
def test_a_job_that_began_after_the_list_cannot_speak_for_its_runner(world: World, process: int, now: str) -> None:
    """It killed the agent and wrote the mark before the health probe, while the list had the runner as offline.

    GitHub is asked again. Only without its answer something is reported, and none of the job's words.
    """
    name = world.add("aa", online=False, process=process, prepared=f"{NOW - 60}")
    world.lxd.found[name].files["last words"] = b"words of a job\n"

    def probed(_: str) -> bool:
        listed = world.github.runners.pop(name, None)
        if listed and now != "deleted":
            world.github.runners[name] = replace(listed, online=now == "online", busy=now in ("online", "busy"))
        return False

    world.lxd.faults["execute"] = probed
    if now == "no answer":
        world.github.down.add("find")

    manager = world.reconcile(1)

    assert manager.report.failed_starts == FailedStarts()
    assert manager.findings.dropped == FailedStarts()
    assert not manager.findings.deprecated
    assert manager.report.hold == ""
    expected = [f"{name}: ended without a job, see its logs"] if now == "no answer" else []
    assert manager.report.failures == expected
    assert (name in world.lxd.found) is (now == "online")
    assert len(world.lxd.found) == 1


def test_a_job_that_messages_told_of_ends_its_runner_quietly(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In demand mode a short job is known, and what it reports of its runner has no effect."""
    names = [
        world.add(suffix, online=False, process=13, prepared=f"{NOW - 60}", runner_id=runner_id)
        for suffix, runner_id in (("aa", "1"), ("bb", "2"))
    ]
    del world.github.runners[names[1]]
    world.github.gone.add(2)
    monkeypatch.setattr(known_jobs, "load", lambda unit: dict.fromkeys(names, KnownJob("a")))
    monkeypatch.setattr(times, "SETTLED", 30)

    manager = world.reconcile(2)

    assert (manager.report.failures, manager.report.hold) == ([], "")
    assert (manager.findings.failed_starts, manager.findings.dropped) == (FailedStarts(), FailedStarts())
    assert sorted(manager.report.removed) == names


def test_reports_count_of_as_many_runners_as_github_is_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a request."""
    monkeypatch.setattr(observe, "MOST_CONFIRMED", 2)
    asked: list[str] = []
    find = world.github.find_runner

    def counted(path: GithubPath, name: str) -> GithubRunner | None:
        asked.append(name)
        return find(path, name)

    monkeypatch.setattr(world.github, "find_runner", counted)
    names = [world.add(suffix, online=False, process=13, prepared=f"{NOW - 60}") for suffix in ("aa", "bb", "cc")]

    manager = world.reconcile(3)

    assert sorted(asked) == names[:2]
    assert manager.report.failures[0] == f"{names[2]}: ended without a job, see its logs"
    assert manager.findings.failed_starts == FailedStarts(1, NOW, "it printed nothing")


def test_a_runner_is_judged_by_its_age_when_the_list_comes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that takes minutes may be from after the time at which GitHub gives a job up."""
    ended = world.add("aa", online=False, process=13, prepared=f"{NOW - times.REPORT_COUNTS + 60}")
    listed = world.github.list_runners

    def late(*arguments: Any) -> Any:
        world.now += 60
        return listed(*arguments)

    monkeypatch.setattr(world.github, "list_runners", late)

    assert world.reconcile(1).report.failures == [f"{ended}: ended without a job, see its logs"]


@pytest.mark.parametrize(("answer", "created"), [(True, 0), (False, 1)])
def test_github_is_asked_for_a_version_before_runners_are_created(world: World, answer: bool, created: int) -> None:
    """Its answer decides about this reconcile, whatever a job may have faked."""
    world.add("aa", online=False, process=12)
    world.github.deprecated = answer

    manager = world.reconcile(1)

    assert manager.findings.deprecated is answer
    assert len(manager.report.created) == created
    assert ("deprecated by GitHub" in str(manager.report.failures)) is answer


PREVIOUS = f"{IDENTITY.app_name}-{IDENTITY.unit_number}-"
# As the previous charm names its runners: secrets.token_hex(12).
DIGITS = [f"{number:x}" * 24 for number in range(10, 16)]


def previous(world: World, digits: str, *, online: bool = True, busy: bool = False, process: int = 10) -> str:
    """A runner of the previous charm: 24 hex digits, no key on its instance, no systemd unit inside."""
    name = PREVIOUS + digits
    instance = FakeInstance(world.lxd, name, {})
    instance.running, instance.process = True, 0 if busy else process
    world.lxd.found[name] = instance
    world.github.register(name, online=online, busy=busy)
    return name


def foreign(world: World, digits: str, *, online: bool = False, local: bool = False) -> str:
    """A runner of a unit of another model: 24 digits as well, and if it is on this machine, with this charm's keys."""
    name = PREVIOUS + digits
    world.github.register(name, online=online)
    if local:
        world.lxd.found[name] = FakeInstance(world.lxd, name, {f"{KEY}created": str(NOW), f"{KEY}path": REPO.path})
    return name


def finished(world: World, name: str) -> None:
    """The metrics volume of a runner that has run a job."""
    folder = world.storages.folder / name
    folder.mkdir()
    pre_job = {"timestamp": NOW - 60, "workflow": "CI", "workflow_run_id": "7"}
    pre_job |= {"repository": "octo-org/demo", "event": "push"}
    (folder / "runner-installed.timestamp").write_text(str(NOW - 600))
    (folder / "pre-job-metrics.json").write_text(json.dumps(pre_job))
    (folder / "post-job-metrics.json").write_text(json.dumps({"timestamp": NOW - 30, "status": "normal"}))


def test_runners_of_the_previous_charm_are_replaced(world: World) -> None:
    """Idle runners of the previous charm are replaced, busy ones finish their job and count."""
    idle, busy = previous(world, DIGITS[0]), previous(world, DIGITS[1], busy=True)

    manager = world.reconcile(2)

    assert idle not in world.lxd.found
    assert idle not in world.github.runners
    assert manager.report.busy == [busy]
    assert len(manager.report.created) == 1


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("local", [True, False])
def test_runners_of_another_model_are_never_touched(world: World, online: bool, local: bool) -> None:
    """A runner of another model with this application and unit number stays, at GitHub and on this machine."""
    mine, other = previous(world, DIGITS[0]), foreign(world, DIGITS[1], online=online, local=local)
    if local:
        finished(world, other)

    world.reconcile(1)
    manager = world.manager()
    assert other not in "".join(str(value) for value in world.counts().values())
    manager.drain()
    manager.flush(FlushMode.FORCE_FLUSH)

    assert mine not in world.github.runners
    assert other in world.github.runners
    assert (other in world.lxd.found, other in world.storages.names()) == (local, local)


def test_runners_of_other_applications_and_units_are_never_taken(world: World) -> None:
    """Only the whole name APP-UNIT-HEX is one of the previous charm's on this unit."""
    names = [f"app-1-{DIGITS[0]}", f"app-0-0-{DIGITS[0]}", f"my-app-0-{DIGITS[0]}", "app-0-builder", "app-0-"]
    for name in names:
        instance = FakeInstance(world.lxd, name, {})
        instance.running = True
        world.lxd.found[name] = instance
        world.github.register(name)

    world.manager().flush(FlushMode.FORCE_FLUSH)

    assert set(world.lxd.found) == set(world.github.runners) == set(names)


def test_runners_of_the_previous_charm_are_shown_and_flushed(world: World) -> None:
    """`check-runners` lists them as outdated, and a flush removes them."""
    name = previous(world, DIGITS[0])
    counts = world.counts()
    assert counts["online"] == [name]
    assert counts["details"] == [f"{name}: idle, age unknown, outdated"]

    world.manager().flush(FlushMode.FLUSH_BUSY_WAIT_REPO_CHECK)

    assert (world.lxd.found, world.github.runners) == ({}, {})


def test_metrics_of_the_previous_charms_jobs_are_issued(world: World, tmp_path: Path) -> None:
    """A job that a runner of the previous charm finished has its events, and its metrics volume is removed."""
    world.state = state(issue_metrics=True)
    name, alive = PREVIOUS + DIGITS[0], previous(world, DIGITS[1], busy=True)
    world.github.register(name, online=False)
    finished(world, name)
    finished(world, alive)

    world.reconcile(1)

    assert [event["event"] for event in events(tmp_path)][:2] == ["runner_start", "runner_stop"]
    assert world.storages.names() == [alive]
    assert name not in world.github.runners


@pytest.mark.parametrize("process", [10, 99])
def test_a_runner_of_the_previous_charm_that_github_does_not_list_has_time(world: World, process: int) -> None:
    """It is recorded as offline and removed only after the time that every offline runner has."""
    name = previous(world, DIGITS[0], process=process)
    del world.github.runners[name]

    world.reconcile(1)
    assert list(world.lxd.found) == [name]
    assert f"{KEY}offline-since" in world.lxd.found[name].config

    world.now += max(times.OFFLINE, times.SILENT) + 1
    world.reconcile(1)
    assert name not in world.lxd.found


def test_a_runner_of_the_previous_charm_is_probed_for_its_agent(world: World) -> None:
    """The previous charm starts the runner agent without a systemd unit, so its process is looked for."""
    name = previous(world, DIGITS[0], online=False)

    world.counts()
    world.reconcile(1)

    assert any("Runner[.]Listener" in command[-1] for command in world.lxd.found[name].commands)


@pytest.mark.parametrize("busy", [0, 1, 2, 3])
@pytest.mark.parametrize("wanted", [0, 1, 3])
def test_an_upgrade_never_has_too_many_runners(world: World, wanted: int, busy: int) -> None:
    """At every moment there are at most the wanted number of runners, or the busy old ones where they are more."""
    old = [previous(world, digits, busy=number < busy) for number, digits in enumerate(DIGITS[:3])]
    there: list[int] = []
    create = world.lxd.create_instance

    def counted(name: str, **options: Any) -> FakeInstance:
        created = create(name, **options)
        there.append(len(world.lxd.found))
        return created

    world.lxd.create_instance = counted  # type: ignore[method-assign]
    for step in range(5):
        world.reconcile(wanted)
        if step == 2 and busy:
            world.lxd.found.pop(old[0])
            world.github.runners.pop(old[0])

    assert max(there, default=0) <= max(wanted, busy)
    assert len(world.lxd.found) == max(wanted, busy - 1)


CLEAN_UPS = [
    (profiles, "remove_unused_resources"),
    (runner_manager, "remove_old_logs"),
    (telemetry, "save"),
    (collect, "issue_event"),
]


@pytest.mark.parametrize(("owner", "broken"), CLEAN_UPS)
def test_no_clean_up_ends_a_reconcile(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: Any,
    broken: str,
) -> None:
    """Whatever a clean-up raises is logged. The report is complete, and the events are written."""
    world.state = state(issue_metrics=True)
    failed: list[str] = []

    def fails(*_: Any, **__: Any) -> None:
        failed.append(broken)
        if broken != "issue_event" or len(failed) == 1:
            raise RuntimeError("a defect")

    monkeypatch.setattr(owner, broken, fails)

    with caplog.at_level(logging.ERROR, logger="runner_manager"):
        world.reconcile(0)

    assert failed
    assert "a defect" in caplog.text
    if broken == "issue_event":
        assert len(failed) == 2
    else:
        assert "reconciliation" in {event["event"] for event in events(tmp_path)}


def test_a_reconcile_does_not_depend_on_its_report(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a report that stays empty, the same runners are removed and created, and the same events are written."""
    world.state = state(issue_metrics=True)
    outdated, finished = world.add("aa", fingerprint="old"), world.add("bb", online=False, process=11)
    job_storage(world, finished)
    monkeypatch.setattr(Outcome, "describe", lambda *_: None)

    manager = world.reconcile(2)

    assert manager.report.removed == []
    assert len(world.lxd.found) == 2
    assert {outdated, finished}.isdisjoint(world.lxd.found)
    assert "runner_stop" in {event["event"] for event in events(tmp_path)}
    assert world.storages.names() == []


def test_broken_clean_ups_keep_the_report(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is made from the report, so a defect in a clean-up must not empty it."""
    monkeypatch.setattr(runner_manager, "remove_old_logs", lambda _: 1 // 0)

    manager = world.reconcile(2)

    assert len(manager.report.idle) == 2


def test_unused_profiles_of_the_previous_charm_are_removed(world: World) -> None:
    """They have the names of resource profiles and no key; a profile of the operator stays."""
    world.lxd.profiles = {"cpu-9-mem-9GiB-disk-9GiB": {"config": {}, "devices": {}}, "mine": {"config": {}}}

    world.reconcile(0)

    assert list(world.lxd.profiles) == ["mine"]


def test_health_of_the_unit_is_an_event(world: World, tmp_path: Path) -> None:
    """Each reconcile tells what an operator of dashboards misses: failed creations, ages, and the quota left."""
    world.state = state(issue_metrics=True)
    world.lxd.faults["start"] = lambda name: True
    os.utime(world.binary, (NOW - 60, NOW - 60))

    world.reconcile(2)

    assert [event for event in events(tmp_path) if event["event"] == "unit_health"][-1] == {
        "event": "unit_health",
        "timestamp": NOW,
        "flavor": "app",
        "wanted_runners": 2,
        "failed_creations": 2,
        "application_age": 60.0,
        "api_quota_left": 4999,
        "unit": "app/0",
    }


@pytest.mark.parametrize(("built_at", "age"), [(NOW - 60, 60.0), (NOW + 60, 0.0), (None, None)])
def test_age_of_the_image_is_in_the_events(
    world: World, tmp_path: Path, built_at: float | None, age: float | None
) -> None:
    """Seconds since its build, 0 after the clock was set back, nothing if this charm did not build the image."""
    world.state = state(issue_metrics=True)
    manager = world.manager(image=lambda alias: PublishedImage(built_at=built_at))

    manager.reconcile(0, RESOURCES)

    [health] = [event for event in events(tmp_path) if event["event"] == "unit_health"]
    assert (health.get("image_age"), manager.report.image_age) == (age, age)


def online_by_and_by(world: World, online: bool) -> None:
    """Let registrations come online, or never."""
    world.lxd.registered = lambda instance: world.github.register(instance.name, online=online)


@pytest.mark.parametrize("online", [True, False])
def test_a_changed_configuration_is_tried_with_one_runner(
    world: World, monkeypatch: pytest.MonkeyPatch, online: bool
) -> None:
    """The others are replaced in the same reconcile once the first successor is online, and stay where it is not."""
    monkeypatch.setattr(times, "PROOF", 0)
    before = {world.add(f"{number:016x}") for number in range(3)}
    world.state = state(labels=("changed",))
    online_by_and_by(world, online)

    world.reconcile(3)

    assert len(world.lxd.found) == 3
    assert len(before & set(world.lxd.found)) == (0 if online else 2)


def test_one_failure_of_a_changed_configuration_costs_one_runner(world: World) -> None:
    """A configuration with which no runner can be created never takes the second one's place."""
    before = {world.add(f"{number:016x}") for number in range(3)}
    world.state = state(labels=("changed",))
    world.lxd.faults = {"start": lambda _: True}

    for _ in range(4):
        world.reconcile(3)

    assert len(before & set(world.lxd.found)) == 2


@pytest.mark.parametrize("number", [1, 3])
def test_what_github_refuses_beforehand_costs_no_runner(world: World, number: int) -> None:
    """A runner group that does not exist is found before the first runner is removed."""
    before = {world.add(f"{number:016x}") for number in range(number)}
    world.state = state(labels=("changed",))
    world.github.down = {"group"}

    with pytest.raises(ConfigurationError, match="group"):
        world.reconcile(number)

    assert set(world.lxd.found) == before


def test_nothing_is_checked_where_nothing_changes(world: World) -> None:
    """A steady reconcile asks GitHub for the list and for nothing else."""
    world.add("0" * 16)
    world.github.down = {"group"}

    world.reconcile(1)

    assert world.github.tokens == 0


def test_a_hold_keeps_what_is_there(world: World) -> None:
    """While none can be created, for whatever reason, outdated runners serve on, and the reason is reported."""
    outdated = world.add("0" * 16, fingerprint="old")
    dead = world.add("1" * 16, online=False, process=11)
    clients = RunnerManagerClients(world.github, provision.environment(TEMPLATES), world.lxd, None)  # type: ignore[arg-type]
    manager = RunnerManager(
        IDENTITY, world.state, clients, world.storages, world.binary, clock=lambda: NOW, hold="no image"
    )

    manager.reconcile(2, RESOURCES)

    assert set(world.lxd.found) == {outdated}
    assert dead not in world.lxd.found
    assert manager.report.failures == ["no image"]
    with pytest.raises(HostError, match="no image"):
        manager.check_creation()


def test_drain_removes_idle_runners_only(world: World, tmp_path: Path) -> None:
    """Before a reboot nobody with a job is touched, and no event says that no runners are wanted."""
    world.state = state(issue_metrics=True)
    idle, busy = world.add("0" * 16), world.add("1" * 16, busy=True)
    manager = world.manager()

    assert not manager.drain()
    assert {idle, busy} == set(world.lxd.found), "one that would be for nothing removes nobody"
    world.lxd.found[busy].process = 11
    world.github.runners.pop(busy)
    assert manager.drain()
    assert set(world.lxd.found) == {busy}
    assert [event["event"] for event in events(tmp_path)] == []


def test_reconciliation_counts_runners_by_what_they_do(world: World, tmp_path: Path) -> None:
    """A healthy runner that GitHub does not list is idle, one with a job is active, one that ended is neither."""
    world.state = state(issue_metrics=True)
    world.add("aaaaaaaaaaaa")
    del world.github.runners[world.add("bbbbbbbbbbbb")]
    world.add("cccccccccccc", busy=True)
    del world.github.runners[world.add("dddddddddddd", process=0)]
    world.add("eeeeeeeeeeee", online=False, process=11)

    world.reconcile(5)

    found = events(tmp_path)[-1]
    created = len([event for event in events(tmp_path) if event["event"] == "runner_installed"])
    assert created == 1
    assert found["idle_runners"] == 2 + created
    assert found["active_runners"] == 2
    assert found["expected_runners"] == 5


def test_installed_runners_name_the_unit(world: World, tmp_path: Path) -> None:
    """Events that are written by parallel creations name the unit, too."""
    world.state = state(issue_metrics=True)

    world.reconcile(3)

    found = events(tmp_path)
    assert [event["event"] for event in found].count("runner_installed") == 3
    assert {event["unit"] for event in found} == {"app/0"}


@pytest.mark.parametrize("prepared", [30, 90])
def test_a_registration_that_is_gone_frees_its_slot_at_once(world: World, prepared: int) -> None:
    """A runner whose id GitHub does not know is replaced in the same reconcile, once it had time to register."""
    name = world.add("0" * 16, runner_id="7", prepared=str(NOW - prepared))
    world.github.runners.pop(name)
    world.lxd.found[name].config[f"{KEY}created"] = str(NOW - 3600)
    world.github.gone = {7}

    world.reconcile(1)

    assert (name in world.lxd.found) is (prepared < 60)
    assert len(world.lxd.found) == 1


def test_a_runner_at_the_end_of_its_job_is_left_to_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its registration is gone a moment before its instance: what ends by itself meanwhile leaves its metrics."""
    name = world.add("0" * 16, runner_id="7", prepared=str(NOW - 3600))
    world.github.runners.pop(name)
    world.github.gone = {7}
    instance = world.lxd.found[name]
    monkeypatch.setattr("observe.time.sleep", lambda _: setattr(instance, "process", 11))

    world.reconcile(1)

    assert world.lxd.found[name] is instance


def test_github_that_does_not_answer_for_one_runner_costs_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown is not gone."""
    name = world.add("0" * 16, runner_id="7", prepared=str(NOW - 3600))
    world.github.runners.pop(name)

    def fail(*_: object) -> bool:
        raise GithubApiError("no answer")

    monkeypatch.setattr(world.github, "runner_is_gone", fail)

    world.reconcile(1)

    assert set(world.lxd.found) == {name}


def test_an_instance_knows_that_its_runner_was_online(world: World) -> None:
    """Recorded once, so that what a job writes later does not count."""
    name = world.add("0" * 16)

    world.reconcile(1)
    assert world.lxd.found[name].config[f"{KEY}online"] == "true"
    world.lxd.faults = {"set_config": lambda _: True}
    assert world.reconcile(1).report.failures == []


def test_idle_runners_are_replaced_one_by_one_when_they_are_old(world: World) -> None:
    """The option's hours count from the creation."""
    world.state = state(idle_runner_max_age=24)
    before = {world.add(f"{number:016x}", created=str(NOW - 25 * 3600)) for number in range(3)}

    world.reconcile(3)

    assert len(world.lxd.found) == 3
    assert len(before & set(world.lxd.found)) == 2
