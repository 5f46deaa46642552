"""Events, actions and statuses, in process. What the machine needs is tested on a machine."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ops
import pytest
from ops import testing

import agent_settings
import provision
import service
import telemetry
from errors import GithubApiError, HostError, LxdError, RateLimitError, TokenError
from host import kernel, machine, markers, pool, runner_binary, systemd, triggers
from tests.support import fakes
from tests.support.fakes import TEMPLATES
from tests.support.surroundings import CONFIG, MODEL, UNIT, Surroundings, context, noted, state, world

__all__ = ["context", "world"]

pytestmark = pytest.mark.usefixtures("quick_yaml")


def tick(context: Any, **config: Any) -> ops.StatusBase:
    """The timer's event; returns the unit's status after it."""
    with context(context.on.leader_elected(), state(**config)) as manager:
        manager.charm.on.reconcile_runners.emit()
        found: ops.StatusBase = manager.charm.unit.status
    return found


def test_invalid_options_block_and_nothing_is_touched(context: Any, world: Surroundings) -> None:
    """Every invalid value is named in one line, and neither the machine nor a runner is looked at."""
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
    assert world.steps == [*taken_over, "timer 10", "binary", "set up", "agent"]
    assert len(world.lxd.found) == 2
    assert out.unit_status == testing.ActiveStatus("2 runners: 2 idle, 0 busy (test mode: containers)")


def test_a_hook_starts_no_process_for_the_events_of_ops(context: Any) -> None:
    """Each line of the unit's log is a process: that an event came, which Juju logs too, is not worth one."""
    context.run(context.on.update_status(), state())

    assert not [line for line in context.juju_log if "Emitting" in line.message]


def test_marker_leaving_drains_a_unit(context: Any, world: Surroundings) -> None:
    """While the marker is there, whoever wrote it, no event creates, replaces or removes a runner."""
    noted(markers.SET_UP)
    noted(markers.LEAVING)
    tick(context)
    context.run(context.on.update_status(), state())
    context.run(context.on.config_changed(), state())

    assert world.steps == []
    assert world.lxd.lists == 0


@pytest.mark.parametrize("action", ["reconcile-runners", "flush-runners", "update-dependencies"])
def test_actions_do_not_change_a_drained_unit(context: Any, world: Surroundings, action: str) -> None:
    """They fail with the way back, and the status stays that of before: the unit may also be one that is removed."""
    noted(markers.LEAVING)
    before = testing.ActiveStatus("2 runners: 2 idle, 0 busy")

    with pytest.raises(testing.ActionFailed, match=r"delete the marker /.+/leaving$") as failed:
        context.run(context.on.action(action), replace(state(), unit_status=before))

    assert failed.value.state
    assert failed.value.state.unit_status == before
    assert world.steps == []
    assert world.lxd.lists == 0


def test_install_makes_no_runner(context: Any, world: Surroundings) -> None:
    """Runners come with `config-changed` and `start`."""
    context.run(context.on.install(), state())

    assert world.steps == ["timer 10", "binary", "set up"]
    assert world.lxd.found == {}


def test_timer_refreshes_the_runner_binary_and_reconciles(context: Any, world: Surroundings) -> None:
    """The custom event is the timer's."""
    noted(markers.SET_UP)
    tick(context)

    assert world.steps == ["binary", "agent"]
    assert len(world.lxd.found) == 2


def test_the_binary_is_asked_for_once_an_hour(context: Any, world: Surroundings) -> None:
    """A reconcile after each job does not cost a request for the list of runner binaries."""
    noted(markers.SET_UP)
    os.utime(world.binary)

    tick(context)
    assert "binary" not in world.steps

    runner_binary.note_deprecated()
    tick(context)
    assert "binary" in world.steps


@pytest.fixture
def reboots(world: Surroundings, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Requests for a reboot, which a package has asked for; the machine is set up."""
    found: list[bool] = []
    kernel.REBOOT_REQUIRED.touch()
    monkeypatch.setattr(ops.Unit, "reboot", lambda _: found.append(True))
    noted(markers.SET_UP)
    return found


@pytest.mark.parametrize("busy", [False, True])
def test_pending_reboot_waits_for_jobs(context: Any, world: Surroundings, reboots: list[bool], busy: bool) -> None:
    """Without a job idle runners go first and Juju is asked for a reboot; with one it is a reconcile like any other."""
    context.run(context.on.config_changed(), state())
    for instance in world.lxd.found.values():
        instance.process = 0 if busy else 10

    status = tick(context)

    assert reboots == ([] if busy else [True])
    assert len(world.lxd.found) == (2 if busy else 0)
    assert (status.name == "maintenance") is not busy


@pytest.mark.parametrize("is_set_up", [True, False])
def test_a_reboot_waits_for_a_build_of_the_image(
    context: Any, world: Surroundings, reboots: list[bool], monkeypatch: pytest.MonkeyPatch, is_set_up: bool
) -> None:
    """It would be cut off. Where the first image cannot be built, the reboot may be what helps."""
    building = {"ghro.build-image.github-runner-0.service"}
    monkeypatch.setattr(systemd, "is_starting", lambda name: name in building)
    if not is_set_up:
        markers.Markers(UNIT).clear(markers.SET_UP)
        world.set_up_fault = HostError("image jammy: being built")

    tick(context)
    assert reboots == ([] if is_set_up else [True])
    building.clear()
    tick(context)
    assert reboots == [True]


def test_a_reboot_that_never_comes_does_not_stop_the_unit(
    context: Any, world: Surroundings, reboots: list[bool]
) -> None:
    """Ten minutes without runners, then the unit serves on and says so, and asks again after a day."""
    tick(context)
    for _ in range(2):
        world.later(295)
        assert tick(context).message == service.REBOOTING
    assert (reboots, world.lxd.found) == ([True], {})

    world.later(301)
    status = tick(context)
    assert (status.name, len(world.lxd.found)) == ("active", 2)
    assert "a reboot for a pending update was requested 15 minutes ago and did not happen" in status.message

    world.later(86400)
    tick(context)
    assert reboots == [True, True]


def test_after_a_reboot_none_is_awaited(context: Any, world: Surroundings, reboots: list[bool]) -> None:
    """A request of an earlier boot counts for nothing, also where another update asks for the next reboot."""
    noted(markers.REBOOT, f"{time.time():.0f} an-earlier-boot")
    kernel.REBOOT_REQUIRED.unlink()
    assert tick(context).name == "active"

    kernel.REBOOT_REQUIRED.touch()
    tick(context)
    assert reboots == [True]


def test_no_reboot_without_a_record_of_it(
    context: Any, world: Surroundings, reboots: list[bool], marker_root: Path
) -> None:
    """Where the request cannot be recorded none is made: it would be repeated for ever."""
    kernel_marker = marker_root / "unit-github-runner-0" / markers.REBOOT
    kernel_marker.mkdir(parents=True)

    assert tick(context).name == "waiting"
    assert reboots == []


def test_a_set_up_that_failed_is_completed_by_the_next_reconcile(context: Any, world: Surroundings) -> None:
    """Without an operator's event: no runner is created before, all of them after, and the build is not waited for."""
    world.set_up_fault = HostError("apt is locked")
    out = context.run(context.on.config_changed(), state())
    assert (out.unit_status.name, out.unit_status.message) == (
        "waiting",
        "0 of 2 runners; apt is locked (test mode: containers)",
    )
    world.steps.clear()

    tick(context)
    assert (world.steps, world.lxd.found) == (
        ["timer 10", "binary", "set up, build later", "agent"],
        {},
    )

    world.set_up_fault = None
    assert tick(context).name == "active"
    assert len(world.lxd.found) == 2


def test_the_first_failure_is_the_one_that_is_shown(context: Any, world: Surroundings) -> None:
    """A set-up that did not get as far as LXD is the reason, not that LXD does not answer then."""
    world.set_up_fault, world.fault = HostError("the packages cannot be installed"), LxdError("LXD does not answer")

    out = context.run(context.on.config_changed(), state())

    assert (out.unit_status.name, out.unit_status.message) == ("waiting", "the packages cannot be installed")


def test_runners_are_looked_after_while_the_set_up_fails(context: Any, world: Surroundings) -> None:
    """What serves goes on serving, what is dead is removed, and the status has the reason that none is created."""
    context.run(context.on.config_changed(), state())
    dead = next(iter(world.lxd.found.values()))
    dead.running = False
    world.github.runners.pop(dead.name)
    world.lost, world.set_up_fault = ("image",), HostError("image jammy: being built")

    status = tick(context, labels="changed")

    assert len(world.lxd.found) == 1
    assert status.name == "active"
    assert status.message == "1 of 2 runners: 1 idle, 0 busy; image jammy: being built (test mode: containers)"


def test_update_status_completes_a_set_up(context: Any, world: Surroundings) -> None:
    """Where no timer was ever started, as before the grant of a secret, update-status is the only event that comes."""
    context.run(context.on.config_changed(), state(token=""))
    assert world.steps == []

    out = context.run(context.on.update_status(), state())

    assert world.steps == ["timer 10", "binary", "set up, build later", "agent"]
    assert (out.unit_status.name, len(world.lxd.found)) == ("active", 2)


def test_options_that_change_while_others_are_invalid_are_set_up_later(context: Any, world: Surroundings) -> None:
    """An event that cannot be handled leaves the set-up due, whichever event comes next."""
    context.run(context.on.config_changed(), state())
    context.run(context.on.config_changed(), state(denylist="10.0.0.0/8", labels=","))
    context.run(context.on.config_changed(), state(denylist="192.0.2.0/24", path=""))
    world.steps.clear()

    tick(context, denylist="192.0.2.0/24")

    assert "set up, build later" in world.steps


def test_what_was_lost_is_made_again(context: Any, world: Surroundings) -> None:
    """A reconcile looks whether the machine is still as it was set up."""
    noted(markers.SET_UP)
    world.lost = ("firewall",)

    tick(context)

    assert world.steps == ["timer 10", "binary", "set up, build later", "agent"]


def test_a_time_without_reconciles_is_in_the_status(context: Any, world: Surroundings) -> None:
    """After the controller was away the status says from when to when, for a day."""
    assert "no reconcile" not in tick(context).message
    world.later(29 * 60)
    assert "no reconcile" not in tick(context).message
    world.later(31 * 60)

    assert "no reconcile from " in tick(context).message
    world.later(23 * 3600)
    # This time is one more: what counts is the last.
    assert "no reconcile from " in tick(context).message
    for _ in range(60):
        world.later(25 * 60)
        status = tick(context)
    assert "no reconcile" not in status.message


@pytest.mark.parametrize("event", ["relation_broken", "config_changed", "update_status", "reconcile_runners"])
def test_a_unit_without_storage_makes_nothing_any_more(context: Any, world: Surroundings, event: str) -> None:
    """Juju detaches the storage of a dying unit first: runners and pool go then, and no later event makes them anew."""
    context.run(context.on.config_changed(), state())
    assert len(world.lxd.found) == 2
    world.steps.clear()
    attached = testing.Storage("runner")
    context.run(context.on.storage_detaching(attached), replace(state(), storages=frozenset({attached})))
    assert world.lxd.found == {}
    assert world.steps == ["no agent", "no timer", "release"]

    if event == "reconcile_runners":
        tick(context)
    elif event == "relation_broken":
        relation = testing.Relation("debug-ssh")
        context.run(context.on.relation_broken(relation), replace(state(), relations=frozenset({relation})))
    else:
        context.run(getattr(context.on, event)(), state())

    assert world.lxd.found == {}
    assert world.steps == ["no agent", "no timer", "release"]
    with pytest.raises(testing.ActionFailed, match="the unit is being removed or drained"):
        context.run(context.on.action("reconcile-runners"), state())
    assert world.lxd.found == {}


def test_storage_that_comes_back_brings_the_unit_back(context: Any, world: Surroundings) -> None:
    """Storage that is attached again ends what its detaching began."""
    attached = testing.Storage("runner")
    context.run(context.on.storage_detaching(attached), replace(state(), storages=frozenset({attached})))
    context.run(context.on.storage_attached(attached), replace(state(), storages=frozenset({attached})))

    context.run(context.on.config_changed(), state())

    assert len(world.lxd.found) == 2


TIMER, AGENT = triggers.timer(UNIT), triggers.agent(UNIT)


@pytest.mark.parametrize(
    ("active", "options", "steps"),
    [
        ({TIMER, AGENT}, {}, []),
        ({AGENT}, {}, ["timer 7", "agent"]),
        ({TIMER}, {}, ["timer 7", "agent"]),
        ({TIMER}, {"replace-on-exit": False, "metrics-port": 0}, []),
        ({TIMER}, {"virtual-machines": 0, "metrics-port": 0}, []),
        ({TIMER}, {"replace-on-exit": False, "metrics-port": 9500}, ["timer 7", "agent"]),
        ({TIMER}, {"virtual-machines": 0, "metrics-port": 9500}, ["timer 7", "agent"]),
    ],
    ids=["all run", "no timer", "no agent", "no agent wanted", "no runners wanted", "metrics", "metrics of no runners"],
)
def test_update_status_makes_sure_of_timer_and_watcher(
    context: Any,
    world: Surroundings,
    monkeypatch: pytest.MonkeyPatch,
    active: set[str],
    options: dict[str, Any],
    steps: list[str],
) -> None:
    """What is dead and wanted is repaired, runners are not looked at."""
    monkeypatch.setattr(systemd, "are_active", lambda *units: active.issuperset(units))
    noted(markers.SET_UP)

    context.run(context.on.update_status(), state(**{"reconcile-interval": 7, **options}))

    assert world.steps == steps
    assert world.lxd.lists == 0


def test_update_status_needs_no_service_where_nothing_is_missing(
    context: Any, world: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The modules behind the service are most of the time of a hook."""
    monkeypatch.setattr(systemd, "are_active", lambda *_: True)
    monkeypatch.delattr(service, "Service")
    noted(markers.SET_UP)

    context.run(context.on.update_status(), state())


def test_a_reconcile_asks_juju_before_it_needs_the_service(
    context: Any, world: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread loads the service meanwhile. With options that are not valid the reconcile is noted all the same."""
    monkeypatch.delattr(service, "Service")
    noted(markers.TAKEN_OVER)

    assert tick(context, path="").name == "blocked"

    assert markers.Markers(UNIT).numbers(markers.RECONCILED, 1) == [int(world.now())]


def test_modules_of_a_hook_without_work() -> None:
    """The charm imports neither the service nor a library of LXD, GitHub, templates or events before it needs them."""
    late = "service", "runner_manager", "jinja2", "pydantic", "httpx2", "pylxd", "ghapi", "cosl"
    code = f"import sys, charm; print([name for name in {late} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TEMPLATES.parent / "src")

    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(("hook", "early"), [("reconcile-runners", True), ("hooks/update-status", False)])
def test_a_reconcile_loads_its_modules_while_it_asks_juju(hook: str, early: bool) -> None:
    """A thread does so before the charm gets its event, and ends, however early the hook does. No other hook has it."""
    code = """
import runpy, sys, threading, ops
from host import state_database
state_database.remove_stored_state = lambda _: None
ops.main = lambda _: print(threading.active_count() > 1 or "service" in sys.modules)
runpy.run_path("charm.py", run_name="__main__")
print("service" in sys.modules)
"""
    environment = {**os.environ, "JUJU_DISPATCH_PATH": hook}
    command, folder = [sys.executable, "-c", code], TEMPLATES.parent / "src"

    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)

    assert (done.stdout, done.stderr) == (f"{early}\n{early}\n", "")


RESET = datetime(2026, 1, 1, 12, 30, tzinfo=timezone.utc)
FAULTS = [
    (TokenError("the token is invalid (401)"), testing.BlockedStatus, "invalid"),
    (RateLimitError("rate limit until 12:30:00 UTC", RESET), testing.WaitingStatus, "12:30:00"),
    (GithubApiError("GitHub does not answer"), testing.WaitingStatus, "does not answer"),
    (LxdError("LXD does not answer"), testing.WaitingStatus, "LXD"),
    (HostError("no storage is mounted"), testing.WaitingStatus, "no storage"),
]
INVALID = {"labels": "a\tb"}


@pytest.mark.parametrize("config", [{}, INVALID, {"token": ""}, {"path": ""}], ids=["valid", "labels", "token", "path"])
def test_the_take_over_is_repeated_until_it_has_succeeded(
    context: Any, world: Surroundings, config: dict[str, Any]
) -> None:
    """An upgrade makes it due, whatever the options are. Each later event tries again until nothing is left."""
    world.taken_over = False
    context.run(context.on.upgrade_charm(), state(**config))
    for event in ("config_changed", "start", "update_status"):
        context.run(getattr(context.on, event)(), state(**config))
    tick(context, **config)
    assert world.steps.count("take over") == 5

    world.taken_over = True
    tick(context, **config)
    for event in ("config_changed", "start", "update_status"):
        context.run(getattr(context.on, event)(), state(**config))
    assert world.steps.count("take over") == 6

    context.run(context.on.upgrade_charm(), state(**config))
    assert world.steps.count("take over") == 7


def test_an_action_that_reconciles_takes_over_as_well(context: Any, world: Surroundings) -> None:
    """The operator's action may be the first thing that happens after an upgrade."""
    markers.Markers(UNIT).clear(markers.TAKEN_OVER)

    context.run(context.on.action("check-runners"), state())
    assert world.steps == []
    context.run(context.on.action("reconcile-runners"), state())
    assert world.steps[0] == "take over"


@pytest.mark.parametrize("current", [True, False])
def test_the_watcher_of_old_code_is_replaced(
    context: Any, world: Surroundings, monkeypatch: pytest.MonkeyPatch, current: bool
) -> None:
    """Where the hook of an upgrade ended early, the next update-status starts the watcher anew."""
    noted(markers.SET_UP)
    monkeypatch.setattr(triggers, "agent_is_current", lambda _: current)
    monkeypatch.setattr(systemd, "are_active", lambda *_: True)

    context.run(context.on.update_status(), state())

    assert world.steps.count("agent") == (0 if current else 1)


def in_previous_pool(world: Surroundings, monkeypatch: pytest.MonkeyPatch, *others: str) -> set[str]:
    """Let the instances that are there lie in a pool of the previous charm."""
    there = {*world.lxd.found, *others}
    monkeypatch.setattr(pool, "previous_pool_users", lambda *_: there & {*world.lxd.found, *others})
    return there


@pytest.mark.parametrize("busy", [False, True])
def test_the_previous_charms_pool_is_freed_when_no_job_runs(
    context: Any, world: Surroundings, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """The runners in it are removed before the set-up, which replaces it. While a job runs all of them stay."""
    context.run(context.on.config_changed(), state())
    before = in_previous_pool(world, monkeypatch)
    if busy:
        world.lxd.found[min(before)].process = 0
    at_set_up: list[int] = []

    def set_up(*_: Any, **options: Any) -> None:
        at_set_up.append(len(world.lxd.found))
        world.set_up(**options)

    monkeypatch.setattr(machine, "set_up", set_up)

    context.run(context.on.upgrade_charm(), state())

    assert at_set_up == [2 if busy else 0]
    assert (before == set(world.lxd.found)) is busy
    assert len(world.lxd.found) == 2


def test_a_reconcile_frees_the_previous_charms_pool(
    context: Any, world: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the last job of before the upgrade is over no event of Juju's need come."""
    context.run(context.on.config_changed(), state())
    before = in_previous_pool(world, monkeypatch)

    tick(context)

    assert not before & set(world.lxd.found)
    assert len(world.lxd.found) == 2


@pytest.mark.parametrize("why", ["another's instance", "GitHub does not answer", "no such group"])
def test_a_pool_that_cannot_be_freed_costs_no_runner(
    context: Any, world: Surroundings, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """An instance of somebody else keeps the pool in use, so that nothing would be won by removing the runners."""
    context.run(context.on.config_changed(), state())
    before = set(world.lxd.found)
    if why == "another's instance":
        in_previous_pool(world, monkeypatch, "database")
    else:
        in_previous_pool(world, monkeypatch)
        world.github.down = {"list" if why == "GitHub does not answer" else "group"}

    tick(context)

    assert set(world.lxd.found) == before


@pytest.mark.parametrize(("fault", "status", "word"), FAULTS, ids=lambda value: type(value).__name__)
def test_faults_become_statuses(
    context: Any, world: Surroundings, fault: Exception, status: type[ops.StatusBase], word: str
) -> None:
    """Blocked is what the operator must fix, waiting what resolves by itself."""
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
    assert context.action_results == {**counts, "runners": names, "details": details, "waiting": ""}


def test_nothing_is_outdated_where_an_option_is_invalid(context: Any, world: Surroundings) -> None:
    """What runners are to be is not known then, and the action does not guess it."""
    context.run(context.on.config_changed(), state())

    context.run(context.on.action("check-runners"), state(denylist="not a network"))
    assert "outdated" not in context.action_results["details"]
    context.run(context.on.action("check-runners", params={"format": "json"}), state(denylist="not a network"))
    assert [row["outdated"] for row in json.loads(context.action_results["runners"])] == [None, None]


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


@pytest.mark.parametrize("option", ["path", "token", "github-url"])
def test_check_runners_never_asks_for_another_path(context: Any, world: Surroundings, option: str) -> None:
    """Each value that finds the runners at GitHub must be valid; others may be invalid."""
    with pytest.raises(testing.ActionFailed, match=f"{option}: "):
        context.run(context.on.action("check-runners"), state(**{option: "", "labels": "a\tb"}))
    assert world.github.lists == []

    context.run(context.on.action("check-runners"), state(labels="a\tb"))
    assert world.github.lists == ["octo-org/demo"]


def test_action_fails_with_the_reason(context: Any, world: Surroundings) -> None:
    """An outage fails the action and shows in the status."""
    world.fault = GithubApiError("GitHub does not answer")

    with pytest.raises(testing.ActionFailed, match="GitHub does not answer") as failed:
        context.run(context.on.action("reconcile-runners"), state())
    assert failed.value.state is not None
    assert isinstance(failed.value.state.unit_status, testing.WaitingStatus)


def test_action_on_a_blocked_unit_fails_and_leaves_it(context: Any, world: Surroundings) -> None:
    """The reason is the option's error; the status stays what it was."""
    blocked = testing.State(config={**CONFIG, "path": ""}, unit_status=testing.BlockedStatus("path: is empty"))

    with pytest.raises(testing.ActionFailed, match="path") as failed:
        context.run(context.on.action("check-runners"), blocked)
    assert failed.value.state is not None
    assert failed.value.state.unit_status == testing.BlockedStatus("path: is empty")


STATUSES = [
    testing.ErrorStatus("hook failed"),
    testing.UnknownStatus(),  # type: ignore[no-untyped-call]
    testing.ActiveStatus(),
    testing.MaintenanceStatus("Reconciling runners"),
]


@pytest.mark.parametrize("before", STATUSES, ids=lambda status: status.name)
@pytest.mark.parametrize("action", ["check-runners", "reconcile-runners", "flush-runners", "update-dependencies"])
def test_actions_give_their_reason_in_any_status(
    context: Any, world: Surroundings, before: ops.StatusBase, action: str
) -> None:
    """Juju runs actions on a unit in error, too: the action fails with the reason, not with a traceback."""
    given = testing.State(config={**CONFIG, "path": ""}, model=MODEL, unit_status=before)

    with pytest.raises(testing.ActionFailed, match="path: is empty"):
        context.run(context.on.action(action), given)


def kept(world: Surroundings, context: Any, **params: Any) -> bool:
    """Whether a flush that fails leaves the runners that are there."""
    before = set(world.lxd.found)
    with pytest.raises(testing.ActionFailed):
        context.run(context.on.action("flush-runners", params=params), state())
    return before <= set(world.lxd.found)


@pytest.mark.parametrize("fault", ["set-up", "storage", "group", "reboot"])
def test_flush_that_could_not_create_keeps_the_runners(context: Any, world: Surroundings, fault: str) -> None:
    """Everything that new runners need is checked before one is removed."""
    context.run(context.on.config_changed(), state())
    if fault == "set-up":
        world.lost, world.set_up_fault = ("image",), HostError("no image")
    elif fault == "storage":
        world.fault = HostError("no storage is mounted")
    elif fault == "group":
        world.github.down = {"group"}
    else:
        kernel.note_request(markers.Markers(UNIT), time.time())

    assert kept(world, context)
    assert len(world.lxd.found) == 2


def test_forced_flush_repairs_the_machine(context: Any, world: Surroundings) -> None:
    """A part that was lost is made again before the new runners."""
    context.run(context.on.config_changed(), state())
    before = set(world.lxd.found)
    world.lost = ("image",)
    world.steps.clear()

    context.run(context.on.action("flush-runners", params={"force": True}), state())

    assert "set up, build later" in world.steps
    assert len(world.lxd.found) == 2
    assert not before & set(world.lxd.found)


@pytest.mark.parametrize("down", [{"group"}, {"list", "delete"}], ids=["no such group", "no GitHub"])
def test_forced_flush_removes_all_the_same(context: Any, world: Surroundings, down: set[str]) -> None:
    """`force=true` is for runners that must go whatever comes after them; the action fails with what does."""
    context.run(context.on.config_changed(), state())
    world.github.down = down

    assert not kept(world, context, force=True)
    assert world.lxd.found == {}


def test_reconcile_action_fails_with_what_could_not_be_created(context: Any, world: Surroundings) -> None:
    """The counts are there, and the reason: an action that completed would say that all is well."""
    world.lxd.faults = {"start": lambda _: True}

    with pytest.raises(testing.ActionFailed, match="starting the instance"):
        context.run(context.on.action("reconcile-runners"), state())
    assert context.action_results["delta.virtual-machines"] == "2"


def test_a_runner_group_that_does_not_exist_costs_no_runner(context: Any, world: Surroundings) -> None:
    """A configuration that GitHub cannot serve blocks, with the runners of before in their places."""
    context.run(context.on.config_changed(), state())
    before = set(world.lxd.found)
    world.github.down = {"group"}

    out = context.run(context.on.config_changed(), state(labels="another"))

    assert isinstance(out.unit_status, testing.BlockedStatus)
    assert set(world.lxd.found) == before


NOTICE = "no repository policy check since the upgrade"
POLICY = {"repo-policy-compliance-url": "https://policy.example", "repo-policy-compliance-token": "token"}


@pytest.mark.parametrize("action", ["update-dependencies", "reconcile-runners"])
def test_no_action_creates_runners_on_a_machine_that_is_not_set_up(
    context: Any, world: Surroundings, action: str
) -> None:
    """Without its firewall, for example, no runner may run, whichever event or action asks for it."""
    world.set_up_fault = HostError("the firewall cannot be changed")
    context.run(context.on.config_changed(), state(denylist="10.0.0.0/8"))

    with pytest.raises(testing.ActionFailed, match="the firewall cannot be changed"):
        context.run(context.on.action(action), state(denylist="10.0.0.0/8"))
    assert world.lxd.found == {}


def test_forced_flush_removes_whatever_the_options_are(context: Any, world: Surroundings) -> None:
    """A revoked token or an invalid option fails the action, after the runners are removed."""
    context.run(context.on.config_changed(), state())

    with pytest.raises(testing.ActionFailed, match="path: is empty"):
        context.run(context.on.action("flush-runners", params={"force": True}), state(path=""))
    assert world.lxd.found == {}


def test_removal_does_not_depend_on_a_marker(
    context: Any, world: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the timer and the runners are removed all the same."""
    context.run(context.on.config_changed(), state())
    world.steps.clear()
    monkeypatch.setattr(markers, "write_file", lambda *_: (_ for _ in ()).throw(OSError("no space left")))

    context.run(context.on.stop(), state())

    assert world.lxd.found == {}
    assert world.steps == ["no agent", "no timer"]


def test_a_unit_that_leaves_revokes_its_tokens(context: Any, world: Surroundings) -> None:
    """After the runners, whose deregistering needs them; no other event does it."""
    context.run(context.on.config_changed(), state())
    tick(context)
    assert world.github.revoked == 0

    world.lxd.faults["list"] = lambda _: True
    context.run(context.on.stop(), state())

    assert world.github.revoked == 1


@pytest.mark.parametrize("options", [{}, {"vm-memory": "7GB"}, {"token": ""}], ids=["valid", "invalid", "no token"])
def test_the_agents_token_is_revoked_whatever_the_options_are(
    context: Any, world: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, Any]
) -> None:
    """No other event does it, and GitHub accepts the token for up to an hour."""
    monkeypatch.setattr(agent_settings, "LOCKS", tmp_path)
    identity = replace(fakes.IDENTITY, app_name="github-runner")
    agent_settings.save(agent_settings.of_state(fakes.state(), identity, "handed-to-the-agent", 9e9, {}))

    context.run(context.on.stop(), state(**options))

    assert world.github.handed == ["handed-to-the-agent"]


def test_a_policy_check_that_ceased_is_in_the_status(context: Any, world: Surroundings) -> None:
    """Until the operator configures a service or acknowledges it; a marker that is lost brings the notice back."""
    markers.Markers(UNIT).clear(markers.NO_POLICY)

    assert NOTICE in tick(context).message
    assert NOTICE not in tick(context, **POLICY).message
    assert NOTICE not in tick(context, **{"allow-external-contributor": False}).message
    out = context.run(context.on.action("reconcile-runners"), state())
    assert NOTICE in out.unit_status.message
    out = context.run(context.on.action("reconcile-runners", params={"acknowledge-no-policy": True}), state())
    assert NOTICE not in out.unit_status.message
    assert NOTICE not in tick(context).message
    markers.Markers(UNIT).clear(markers.NO_POLICY)
    assert NOTICE in tick(context).message


def test_a_new_unit_never_had_a_policy_check(context: Any, world: Surroundings) -> None:
    """Where the charm was installed nothing ceased."""
    markers.Markers(UNIT).clear(markers.NO_POLICY)

    context.run(context.on.install(), state())

    assert NOTICE not in tick(context).message


def test_metrics_that_are_not_served_are_in_the_status(context: Any, world: Surroundings) -> None:
    """The agent's reason is a notice for as long as it is about the port that is set, and never an error."""
    reason = "metrics-port: 9464 of 127.0.0.1 cannot be used: Address already in use; set another one"
    telemetry.note_problem(UNIT, reason)
    found = tick(context)
    assert (found.name, f"; {reason}" in found.message) == ("active", True)

    assert "metrics-port" not in tick(context, **{"metrics-port": 946}).message
    assert "metrics-port" not in tick(context, **{"metrics-port": 0}).message
    telemetry.note_problem(UNIT, "")
    assert "metrics-port" not in tick(context).message


def test_a_machine_that_is_shared_is_in_the_status(context: Any, world: Surroundings, marker_root: Path) -> None:
    """Another unit of this charm on the machine is named, for as long as Juju has its agent there."""
    markers.Markers("other/1").note(markers.SET_UP)
    assert "shared" not in tick(context).message

    agent = marker_root / "agents" / "unit-other-1"
    agent.mkdir(parents=True)
    assert "; the machine is shared with other/1" in tick(context).message
    agent.rmdir()
    assert "shared" not in tick(context).message


def refused(world: Surroundings) -> None:
    """The only runner has ended as GitHub ends deprecated versions, before it was ever online."""
    [instance] = world.lxd.found.values()
    instance.process = 12
    registered = world.github.runners[instance.name]
    world.github.runners[instance.name] = replace(registered, online=False)


def test_a_version_that_github_calls_deprecated_by_mistake(context: Any, world: Surroundings) -> None:
    """No runner for 15 minutes, then one is tried, and all are created once it is online."""
    options = {"virtual-machines": 1}
    world.lxd.registered = lambda instance: world.github.register(instance.name, online=False)
    tick(context, **options)
    refused(world)

    assert "2.320.0 is deprecated by GitHub" in tick(context, **options).message
    assert world.lxd.found == {}
    world.later(14 * 60)
    tick(context, **options)
    assert world.lxd.found == {}
    world.later(61)
    tick(context, **{"virtual-machines": 3})
    assert len(world.lxd.found) == 1
    tick(context, **{"virtual-machines": 3})
    assert len(world.lxd.found) == 1

    [name] = world.lxd.found
    world.github.runners[name] = replace(world.github.runners[name], online=True)
    tick(context, **{"virtual-machines": 3})
    assert len(world.lxd.found) == 3


@pytest.mark.parametrize(
    ("answer", "down", "creates_none"), [(False, set(), False), (None, set(), True), (None, {"deprecation"}, True)]
)
def test_github_may_contradict_a_runner_that_calls_its_version_deprecated(
    context: Any, world: Surroundings, answer: bool | None, down: set[str], creates_none: bool
) -> None:
    """The record of a deprecated version stops creations only if GitHub does not call the version supported."""
    options = {"virtual-machines": 1}
    world.lxd.registered = lambda instance: world.github.register(instance.name, online=False)
    tick(context, **options)
    refused(world)
    world.github.deprecated, world.github.down = answer, down

    tick(context, **options)
    tick(context, **options)

    assert (world.lxd.found == {}) is creates_none


def test_a_row_of_dropped_runners_is_recorded(context: Any, world: Surroundings) -> None:
    """Each hook is a process of its own. What a later runner has disproved is removed."""
    options = {"virtual-machines": 1}
    tick(context, **options)
    noted(markers.DROPPED, f"7 {int(time.time()) - 60}")

    assert "7 times" not in tick(context, **options).message

    assert markers.Markers(UNIT).read(markers.DROPPED) is None


@pytest.mark.parametrize(("age", "told"), [(3600, True), (25 * 3600, False), (-25 * 3600, False)])
def test_dropped_runners_of_several_days_are_no_row(context: Any, world: Surroundings, age: int, told: bool) -> None:
    """A row ends a day after its last runner, also if no later one has been online."""
    world.lxd.registered = lambda instance: world.github.register(instance.name, online=False)
    noted(markers.SET_UP)
    noted(markers.DROPPED, f"7 {int(time.time()) - age}")

    assert ("7 times" in tick(context).message) is told

    assert (markers.Markers(UNIT).read(markers.DROPPED) is not None) is told


@pytest.mark.parametrize("action", ["reconcile-runners", "update-dependencies"])
def test_actions_try_a_deprecated_version_again(context: Any, world: Surroundings, action: str) -> None:
    """The operator does not wait for the next attempt."""
    runner_binary.note_deprecated()
    tick(context)
    assert world.lxd.found == {}

    context.run(context.on.action(action), state())

    assert len(world.lxd.found) == 2


OWN_WORDS = "runners ended without a job"
DELETED = "Failed to create a session. The runner registration has been deleted from the server, please re-configure."


def failed(world: Surroundings, words: str = DELETED) -> None:
    """Each runner's agent has ended without a job, before GitHub ever listed the runner as online."""
    for instance in world.lxd.found.values():
        instance.process = 13
        printed = (
            f"Connecting\n{words}\nRunner listener exit with terminated error, stop the service\nExiting runner...\n"
        )
        instance.files["last words"] = printed.encode()


def test_runners_that_end_without_a_job_back_off(context: Any, world: Surroundings) -> None:
    """Creation pauses for 2, 4, 8 … seconds and never longer than 10 minutes, until a later runner is online."""
    world.lxd.registered = lambda instance: world.github.register(instance.name, online=False)
    world.later(0)
    tick(context)
    for count in range(1, 13):
        failed(world)
        first = tick(context)
        pause = min(600, 2**count)
        assert f"next attempt in {pause} s" in first.message
        assert "the clock of the runner differs from GitHub's" in first.message
        assert world.lxd.found == {}
        world.later(pause - 1)
        held = tick(context)
        assert (held.name, world.lxd.found) == ("waiting", {})
        assert OWN_WORDS in held.message
        world.later(1)
        assert OWN_WORDS in tick(context).message
        assert len(world.lxd.found) == 2

    for name, registered in world.github.runners.items():
        world.github.runners[name] = replace(registered, online=True)
    assert OWN_WORDS not in tick(context).message
    assert markers.Markers(UNIT).read(markers.FAILED_STARTS) is None


@pytest.mark.parametrize("attempt", ["reconcile-runners", "update-dependencies", "flush-runners", "config_changed"])
def test_operator_ends_the_back_off(context: Any, world: Surroundings, attempt: str) -> None:
    """An action and a changed option try to create runners at once, and begin both counts anew."""
    world.lxd.registered = lambda instance: world.github.register(instance.name, online=False)
    noted(markers.SET_UP)
    noted(markers.FAILED_STARTS, f"12 {int(time.time())} {DELETED}")
    noted(markers.DROPPED, f"7 {int(time.time())}")
    noted(markers.FAILED_CREATIONS, f"removed {int(time.time())} no space")
    assert (tick(context).name, world.lxd.found) == ("waiting", {})

    context.run(context.on.config_changed() if attempt == "config_changed" else context.on.action(attempt), state())

    assert len(world.lxd.found) == 2
    assert [markers.Markers(UNIT).read(name) for name in markers.FAILURES] == [None] * 3


@pytest.mark.parametrize(
    "note", ["", "x", "3", "3 x", "-1 5", "99999999999 0", "1e400 5", "nan 1", "1 nan", "2 99999999999 later"]
)
def test_no_note_of_failed_starts_stops_the_unit(context: Any, world: Surroundings, note: str) -> None:
    """A marker that is damaged, or written while the clock was wrong, holds no creation."""
    noted(markers.SET_UP)
    noted(markers.FAILED_STARTS, note)

    tick(context)

    assert len(world.lxd.found) == 2


def test_templates_are_the_projects(context: Any, world: Surroundings) -> None:
    """The charm finds its templates beside src."""
    assert provision.environment(service.TEMPLATES).get_template("start.sh.j2")
