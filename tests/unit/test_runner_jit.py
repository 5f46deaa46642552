"""Runners that register just in time: the record at GitHub is first, the instance second."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import metrics.events
import metrics.storage
import provision
import runner
import shared_fs
import times
from errors import ConfigurationError, TokenError
from models import AppCredentials, FailedStarts, GithubPath, RegistrationData, RegistrationMethod
from naming import PREPARED_KEY, RUNNER_ID_KEY
from runner import RunnerManagerClients
from runner_manager import RunnerManager
from tests.support.fakes import IDENTITY, RESOURCES, TEMPLATES, FakeGithub, state
from tests.unit.test_runner_manager import World, events, today

FILES = {".runner": '{"Ephemeral":"True"}', ".credentials": "oauth-marker", ".credentials_rsaparams": "key-marker"}


class FakeRegistration:
    """Records at GitHub that are made before their instances."""

    def __init__(self, github: FakeGithub) -> None:
        self.github = github
        self.labels: list[Sequence[str]] = []
        self.refusal: Exception | None = None
        self.unknown: Exception | None = None

    def check(self) -> None:
        if self.unknown:
            raise self.unknown

    def prepare(self) -> None:
        if self.refusal:
            raise self.refusal

    def register(self, name: str, labels: Sequence[str]) -> RegistrationData:
        self.labels.append(labels)
        return RegistrationData(files=FILES, runner_id=self.github.register(name, online=False).runner_id)


class JitWorld(World):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.registration = FakeRegistration(self.github)
        self.lxd.registered = lambda instance: None

    def manager(self, **options: Any) -> RunnerManager:
        jinja = provision.environment(TEMPLATES)
        options["clock"] = clock = lambda: self.now
        clients = RunnerManagerClients(self.github, jinja, self.lxd, None, clock, self.registration)  # type: ignore[arg-type]
        return RunnerManager(IDENTITY, self.state, clients, self.storages, self.binary, **options)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JitWorld:
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path / "metrics.log")
    monkeypatch.setattr(metrics.storage, "FILESYSTEM_QUARANTINE_PATH", tmp_path / "quarantine")
    monkeypatch.setattr(runner, "LOGS_PATH", tmp_path / "logs")
    return JitWorld(tmp_path)


def test_the_record_is_there_before_the_instance(world: JitWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance has the runner's id among its keys from its creation on, so that it can be removed at any time."""
    seen: list[tuple[Mapping[str, str], bool]] = []
    create = world.lxd.create_instance

    def noted(name: str, **options: Any) -> Any:
        seen.append((options["config"], name in world.github.runners))
        return create(name, **options)

    monkeypatch.setattr(world.lxd, "create_instance", noted)

    world.reconcile(1)

    [(config, known)] = seen
    assert (known, config[RUNNER_ID_KEY]) == (True, "1")
    [instance] = world.lxd.found.values()
    assert (instance.config[RUNNER_ID_KEY], PREPARED_KEY in instance.config) == ("1", True)
    assert world.registration.labels == [("app", "jammy", "extra")]
    assert world.github.tokens == 0


def test_the_configuration_is_in_files_for_one_user_alone(world: JitWorld) -> None:
    """It is in no key, no command and no script, and nothing that could register another runner is sent."""
    world.reconcile(1)

    [instance] = world.lxd.found.values()
    assert not any(marker in f"{instance.config}{instance.commands}" for marker in ("oauth-marker", "key-marker"))
    for name, text in FILES.items():
        path = str(provision.RUNNER_APPLICATION / name)
        assert (path, 0o600, provision.UBUNTU) in instance.pushed
        assert instance.files[path].decode() == text
    assert not {str(provision.TOKEN_FILE), str(provision.REGISTER_SCRIPT)} & set(instance.files)


@pytest.mark.parametrize("step", ["create", "start", "begin", "write", "execute", "set_config"])
def test_a_record_whose_instance_failed_is_deleted(world: JitWorld, step: str) -> None:
    """Whatever step fails, neither record nor instance stays; the record is deleted by its id."""
    world.lxd.faults[step] = lambda _: True
    world.github.down.add("find")

    manager = world.reconcile(1)

    assert (world.github.runners, world.github.deleted, world.lxd.found) == ({}, [1], {})
    assert len(manager.report.failures) == 1


def test_a_record_beside_an_unexpected_error_is_deleted(world: JitWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics storage is made beside it: whatever that raises, no record stays."""
    world.state = state(issue_metrics=True)

    def broken(name: str) -> Any:
        raise RuntimeError(name)

    monkeypatch.setattr(shared_fs, "create", broken)

    with pytest.raises(RuntimeError):
        world.reconcile(1)

    assert (world.github.runners, world.github.deleted, world.lxd.found) == ({}, [1], {})


def test_a_record_without_an_instance_is_removed_by_the_next_reconcile(world: JitWorld) -> None:
    """A hook that was killed between record and instance leaves nothing for long."""
    world.github.register(f"{IDENTITY.prefix}aa", online=False)

    world.reconcile(1)

    assert world.github.deleted == [1]
    assert len(world.github.runners) == len(world.lxd.found) == 1


def test_records_without_an_instance_are_removed_side_by_side(world: JitWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many of them do not delay the creations."""
    for digits in ("aa", "bb", "cc"):
        world.github.register(f"{IDENTITY.prefix}{digits}", online=False)
    together, delete = threading.Barrier(3, timeout=10), world.github.delete_runner

    def met(path: GithubPath, runner_id: int) -> None:
        together.wait()
        delete(path, runner_id)

    monkeypatch.setattr(world.github, "delete_runner", met)

    world.reconcile(0)

    assert world.github.runners == {}


@pytest.mark.parametrize("quantity", [0, 1])
def test_a_way_of_registering_that_the_server_lacks_blocks_every_reconcile(world: JitWorld, quantity: int) -> None:
    """Also one that creates no runner; what is to be removed is removed."""
    world.add("aa")
    world.registration.unknown = ConfigurationError("registration: jit needs GitHub Enterprise Server 3.10 or newer")

    with pytest.raises(ConfigurationError, match="registration: jit"):
        world.reconcile(quantity)

    assert len(world.lxd.found) == quantity


def dropped(world: JitWorld, prepared: str = "true") -> str:
    """A runner that never had a job, whose agent has ended, and that GitHub no longer has."""
    name = world.add("aa", online=False, process=13, runner_id="7", prepared=prepared)
    world.github.runners.clear()
    world.github.gone.add(7)
    return name


def test_an_idle_runner_that_github_drops_is_replaced_quietly(
    world: JitWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """GitHub may do so within minutes, before any reconcile has seen the runner online."""
    world.state = state(issue_metrics=True)
    name = dropped(world)

    manager = world.reconcile(1)

    assert manager.report.failures == []
    assert (manager.report.removed, len(manager.report.created)) == ([name], 1)
    [health] = [event for event in events(tmp_path) if event["event"] == "unit_health"]
    assert health["failed_creations"] == 0


def drop_all(world: JitWorld, recorded: FailedStarts) -> RunnerManager:
    """GitHub drops every runner that the reconcile before created; one more reconcile, two minutes later."""
    for name, instance in world.lxd.found.items():
        instance.process = 13
        world.github.gone.add(world.github.runners[name].runner_id)
    world.github.deleted += sorted(world.github.gone - {*world.github.deleted})
    world.github.runners.clear()
    world.now += 120
    manager = world.manager(dropped=recorded)
    manager.reconcile(2, RESOURCES)
    return manager


def test_runners_that_github_drops_again_and_again_are_reported(world: JitWorld, tmp_path: Path) -> None:
    """From the third reconcile in a row on, in the status and in the events, but creation does not wait for it.

    https://github.com/actions/runner/issues/2507: a listener finds no registration and ends at once.
    """
    world.state = state(issue_metrics=True)
    world.reconcile(2)
    row, said = FailedStarts(), []
    for _ in range(4):
        manager = drop_all(world, row)
        row = manager.findings.dropped or FailedStarts()
        said.append(" ".join(manager.report.failures))
        assert len(manager.report.created) == 2

    assert row == FailedStarts(4, world.now)
    reason = "runners ended without a job, {} times in a row: GitHub deleted their registrations"
    assert said == ["", "", reason.format(3), reason.format(4)]
    health = [event for event in events(tmp_path) if event["event"] == "unit_health"][1:]
    assert [event["failed_creations"] for event in health] == [0, 0, 2, 2]
    assert [event.get("failed_starts") for event in health] == [None, None, 3, 4]


def test_a_runner_that_comes_online_ends_the_row_of_dropped_ones(world: JitWorld) -> None:
    """It was created after the last one that was dropped."""
    world.reconcile(2)
    manager = drop_all(world, FailedStarts(7, world.now))
    assert manager.findings.dropped == FailedStarts(8, world.now)
    world.github.runners = {name: replace(one, online=True) for name, one in world.github.runners.items()}

    # The row's time is the begin of its last reconcile, which the creations followed.
    manager = world.manager(dropped=FailedStarts(8, world.now - 1))
    manager.reconcile(2, RESOURCES)

    assert (manager.findings.dropped, manager.report.failures) == (FailedStarts(), [])


@pytest.mark.parametrize("case", ["at once", "unknown id", "not confirmed", "no answer"])
def test_a_runner_that_ended_for_another_reason_is_reported(world: JitWorld, case: str) -> None:
    """If runners vanish at once, or GitHub does not confirm that one is gone, the operator sees that creations fail."""
    name = dropped(world, prepared=f"{world.now - times.SETTLED:.0f}" if case == "at once" else "true")
    if case == "unknown id":
        del world.lxd.found[name].config[RUNNER_ID_KEY]
    elif case == "not confirmed":
        world.github.gone.clear()
    elif case == "no answer":
        world.github.down.add("by id")

    manager = world.reconcile(1)

    assert manager.report.failures == [f"{name}: ended without a job, and GitHub does not list it"]


def test_nothing_is_removed_if_no_runner_can_be_registered(world: JitWorld) -> None:
    """A missing permission is the reconcile's error, as with a registration token, and outdated runners stay."""
    old = world.add("aa", fingerprint="old")
    world.registration.refusal = TokenError("no access to the runners of octo-org/demo")

    with pytest.raises(TokenError):
        world.reconcile(1)

    assert (list(world.lxd.found), world.github.deleted) == ([old], [])


def test_credentials_and_registration_replace_no_runner() -> None:
    """Runners stay when a token, a key, the kind of the credential or the way of registering changes."""
    before = today(state())
    app = AppCredentials("1", "-----BEGIN PRIVATE KEY-----")
    for change in (
        {"token": "another"},
        {"token": "", "app": app},
        {"token": "", "app": AppCredentials("1", "-----BEGIN RSA PRIVATE KEY-----", 7)},
        {"registration": RegistrationMethod.TOKEN},
    ):
        assert today(state(**change)) == before
