"""Spec 1: events, actions and statuses, in process; what the machine needs is tested on the machine."""

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ops
import pytest
from ops import testing

import charm as charm_module
import provision
from errors import GithubApiError, HostError, LxdError, RateLimitError, TokenError
from host import kernel
from models import CharmState
from runner import RunnerManagerClients
from runner_manager import RunnerManager
from tests.unit.fakes import TEMPLATES, FakeGithub, FakeInstance, FakeLxd, FakeStorages

CONFIG: dict[str, Any] = {"path": "octo-org/demo", "token": "secret", "test-mode": "insecure", "virtual-machines": 2}


class Surroundings:
    """What the charm under test talks to."""

    lxd: FakeLxd
    github: FakeGithub
    storages: FakeStorages
    application: Path
    fault: Exception | None = None
    steps: list[str]


class CharmUnderTest(charm_module.GithubRunnerCharm):
    """The charm with its surroundings handed in."""

    world = Surroundings()

    def _set_up(self, state: CharmState) -> None:
        self.world.steps.append("set up")

    def _take_over(self, state: CharmState) -> None:
        self.world.steps.append("take over")

    def _ensure_timer(self, state: CharmState) -> None:
        self.world.steps.append(f"timer {state.reconcile_interval}")

    def _ensure_follower(self, state: CharmState) -> None:
        self.world.steps.append("follower")

    def _update_application(self, state: CharmState) -> bool:
        self.world.steps.append("application")
        if self.world.fault:
            raise self.world.fault
        return True

    def _manager(self, state: CharmState) -> RunnerManager:
        clients = RunnerManagerClients(self.world.github, self._jinja, self.world.lxd, None)  # type: ignore[arg-type]
        return RunnerManager(self._identity(), state, clients, self.world.storages, self.world.application)

    def _reconcile(self, state: CharmState) -> int:
        if self.world.fault:
            raise self.world.fault
        return self._reconcile_runners(state)


@pytest.fixture
def world(tmp_path: Path) -> Surroundings:
    found = CharmUnderTest.world = Surroundings()
    (tmp_path / "fs").mkdir()
    found.lxd, found.github, found.storages = FakeLxd(), FakeGithub(), FakeStorages(tmp_path / "fs")
    found.application = tmp_path / "actions-runner-linux-x64-2.320.0.tar.gz"
    found.application.write_bytes(b"tarball")
    found.steps = []

    def registered(instance: FakeInstance) -> None:
        found.github.register(instance.name)

    found.lxd.registered = registered
    return found


@pytest.fixture
def context() -> "testing.Context[CharmUnderTest]":
    import yaml

    root = TEMPLATES.parent
    meta, config, actions = (
        yaml.safe_load((root / f"{name}.yaml").read_text()) for name in ("metadata", "config", "actions")
    )
    return testing.Context(CharmUnderTest, meta=meta, config=config, actions=actions, unit_id=0)


MODEL = testing.Model("ci", uuid="6ae9bb4a-9b0e-4b5c-8a0e-000000000001")


def state(**config: Any) -> testing.State:
    return testing.State(config={**CONFIG, **config}, model=MODEL)


def test_invalid_options_block_and_nothing_is_touched(context: Any, world: Surroundings) -> None:
    """Every fault is named in one line, and neither the machine nor a runner is looked at."""
    out = context.run(context.on.config_changed(), state(path="", labels="a\tb", **{"vm-cpu": 0}))

    assert isinstance(out.unit_status, testing.BlockedStatus)
    assert all(option in out.unit_status.message for option in ("path", "labels", "vm-cpu"))
    assert world.steps == []
    assert world.lxd.lists == 0


@pytest.mark.parametrize("event", ["start", "config_changed", "upgrade_charm"])
def test_changes_set_up_the_machine_and_reconcile(context: Any, world: Surroundings, event: str) -> None:
    """What an event may have changed is refreshed, then the runners are brought to it."""
    out = context.run(getattr(context.on, event)(), state())

    taken_over = ["take over"] if event == "upgrade_charm" else []
    assert world.steps == [*taken_over, "set up", "follower"]
    assert len(world.lxd.found) == 2
    assert out.unit_status == testing.ActiveStatus("2 runners: 2 idle, 0 busy (test mode: containers)")


def test_install_makes_no_runner(context: Any, world: Surroundings) -> None:
    """Runners come with `config-changed` and `start`."""
    context.run(context.on.install(), state())

    assert world.steps == ["set up"]
    assert world.lxd.found == {}


def test_timer_refreshes_the_application_and_reconciles(context: Any, world: Surroundings) -> None:
    """The custom event is the timer's."""
    with context(context.on.update_status(), state()) as manager:
        manager.charm.on.reconcile_runners.emit()
        assert world.steps == ["application"]
        assert len(world.lxd.found) == 2


@pytest.mark.parametrize("busy", [False, True])
def test_pending_reboot_waits_for_jobs(
    context: Any, world: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """Without a job the idle runners go first and Juju is asked for a reboot; with one it is a pass like any other."""
    monkeypatch.setattr(kernel, "REBOOT_REQUIRED", tmp_path)
    with context(context.on.config_changed(), state()) as manager:
        manager.run()
    for instance in world.lxd.found.values():
        instance.process = 0 if busy else 10
    rebooted: list[bool] = []
    monkeypatch.setattr(ops.Unit, "reboot", lambda _: rebooted.append(True))

    with context(context.on.update_status(), state()) as manager:
        manager.charm.on.reconcile_runners.emit()

    assert rebooted == ([] if busy else [True])
    assert len(world.lxd.found) == (2 if busy else 0)


TIMER, FOLLOWER = charm_module.timer.TIMER, charm_module.follower.SERVICE


@pytest.mark.parametrize(
    ("active", "options", "steps"),
    [
        ({TIMER, FOLLOWER}, {}, []),
        ({FOLLOWER}, {}, ["timer 7", "follower"]),
        ({TIMER}, {}, ["timer 7", "follower"]),
        ({TIMER}, {"replace-on-exit": False}, []),
        ({TIMER}, {"virtual-machines": 0}, []),
    ],
    ids=["all run", "no timer", "no follower", "no follower wanted", "no runners wanted"],
)
def test_update_status_makes_sure_of_timer_and_follower(
    context: Any,
    world: Surroundings,
    monkeypatch: pytest.MonkeyPatch,
    active: set[str],
    options: dict[str, Any],
    steps: list[str],
) -> None:
    """What is dead and wanted is repaired, runners are not looked at."""
    monkeypatch.setattr(charm_module, "are_active", lambda *units: active.issuperset(units))

    context.run(context.on.update_status(), state(**{"reconcile-interval": 7, **options}))

    assert world.steps == steps
    assert world.lxd.lists == 0


RESET = datetime(2026, 1, 1, 12, 30, tzinfo=timezone.utc)
FAULTS = [
    (TokenError("the token is invalid (401)"), testing.BlockedStatus, "invalid"),
    (RateLimitError("rate limit until 12:30:00 UTC", RESET), testing.WaitingStatus, "12:30:00"),
    (GithubApiError("GitHub does not answer"), testing.WaitingStatus, "does not answer"),
    (LxdError("LXD does not answer"), testing.WaitingStatus, "LXD"),
    (HostError("the runner application is not downloaded yet"), testing.WaitingStatus, "not downloaded"),
]


@pytest.mark.parametrize(("fault", "status", "word"), FAULTS, ids=lambda value: type(value).__name__)
def test_faults_become_statuses(
    context: Any, world: Surroundings, fault: Exception, status: type[ops.StatusBase], word: str
) -> None:
    """Blocked is what the operator must mend, waiting what time mends."""
    world.fault = fault

    out = context.run(context.on.config_changed(), state())

    assert isinstance(out.unit_status, status)
    assert word in out.unit_status.message


def test_missing_runners_and_the_last_failure_are_in_the_status(context: Any, world: Surroundings) -> None:
    """`1 of 2 runners` and why."""
    made: list[str] = []

    def second(name: str) -> bool:
        made.append(name)
        return len(made) == 2

    world.lxd.faults = {"create": second}

    out = context.run(context.on.config_changed(), state())

    assert isinstance(out.unit_status, testing.ActiveStatus)
    assert out.unit_status.message.startswith("1 of 2 runners: 1 idle, 0 busy; ")
    assert "creating the instance" in out.unit_status.message


def test_no_runner_at_all_is_waiting(context: Any, world: Surroundings) -> None:
    """Runners are wanted and there is none: waiting, with the step that failed."""
    world.lxd.faults = {"start": lambda _: True}

    out = context.run(context.on.config_changed(), state())

    assert isinstance(out.unit_status, testing.WaitingStatus)
    assert "starting the instance" in out.unit_status.message


def test_nothing_wanted_is_active(context: Any, world: Surroundings) -> None:
    """`virtual-machines=0` is a valid wish."""
    out = context.run(context.on.config_changed(), state(**{"virtual-machines": 0}))

    assert out.unit_status == testing.ActiveStatus("0 runners: 0 idle, 0 busy (test mode: containers)")


def test_check_runners_counts(context: Any, world: Surroundings) -> None:
    """The action gives GitHub's counts and the online names."""
    context.run(context.on.config_changed(), state())

    context.run(context.on.action("check-runners"), state())

    names = ", ".join(sorted(world.lxd.found))
    details = "\n".join(f"{name}: idle, 0 min old" for name in sorted(world.lxd.found))
    counts = {"online": "2", "offline": "0", "unknown": "0"}
    assert context.action_results == {**counts, "runners": names, "details": details}


@pytest.mark.parametrize("action", ["reconcile-runners", "flush-runners"])
def test_reconciling_actions_give_counts_and_delta(context: Any, world: Surroundings, action: str) -> None:
    """Both give `delta.virtual-machines` beside the counts."""
    context.run(context.on.action(action), state())

    assert context.action_results["delta.virtual-machines"] == "2"
    assert context.action_results["online"] == "2"


def test_flush_replaces_every_runner(context: Any, world: Surroundings) -> None:
    """None of the old ones is left, the wanted number is there."""
    context.run(context.on.config_changed(), state())
    before = set(world.lxd.found)

    context.run(context.on.action("flush-runners"), state())

    assert len(world.lxd.found) == 2
    assert not before & set(world.lxd.found)


def test_update_dependencies_says_whether_it_changed(context: Any, world: Surroundings) -> None:
    """`flush` is True or False as text."""
    context.run(context.on.action("update-dependencies"), state())

    assert context.action_results == {"flush": "True"}


def test_action_fails_with_the_reason(context: Any, world: Surroundings) -> None:
    """An outage fails the action and shows in the status."""
    world.fault = GithubApiError("GitHub does not answer")

    with pytest.raises(testing.ActionFailed, match="GitHub does not answer") as failed:
        context.run(context.on.action("reconcile-runners"), state())
    assert isinstance(failed.value.state.unit_status, testing.WaitingStatus)


def test_action_on_a_blocked_unit_fails_and_leaves_it(context: Any, world: Surroundings) -> None:
    """The reason is the option's fault; the status stays what it was."""
    blocked = testing.State(config={**CONFIG, "path": ""}, unit_status=testing.BlockedStatus("path: is empty"))

    with pytest.raises(testing.ActionFailed, match="path") as failed:
        context.run(context.on.action("check-runners"), blocked)
    assert failed.value.state.unit_status == testing.BlockedStatus("path: is empty")


def test_templates_are_the_projects(context: Any, world: Surroundings) -> None:
    """The charm finds its templates beside src."""
    assert charm_module.TEMPLATES == TEMPLATES
    assert provision.environment(TEMPLATES).get_template("start.sh.j2")
