"""The table of times agrees with itself: no limit cuts into what another one allows."""

import inspect
from dataclasses import replace

import pytest

import demand
import gh.errors
import runner
import times
from engine.client import LxdClient
from gh import client, scale_sets
from plan import Health, health
from programs import agent, missed_jobs
from runner_view import Process, RunnerView


@pytest.mark.parametrize("interval", [2, 3, 10, 60, 1440])
def test_a_reconcile_may_take_as_long_as_one_creation(interval: int) -> None:
    """Whatever reconcile-interval is, a creation within its limits is not ended with its reconcile."""
    assert times.reconcile_limit(interval) >= times.CREATION + times.LOCK
    assert times.reconcile_limit(interval) >= (interval - 1) * 60


def test_a_creation_has_room_for_each_of_its_steps() -> None:
    """The limit of a creation is the sum of its steps' limits, as the steps use them, and time between them."""
    create = inspect.signature(LxdClient.create_instance).parameters["timeout"].default
    steps = [create, max(times.READY.values()), times.SET_UP_INSTANCE, times.REGISTER, times.START_AGENT]

    assert sum(steps) < times.CREATION
    source = inspect.getsource(runner)
    assert all(f"times.{name}" in source for name in ("SET_UP_INSTANCE", "REGISTER", "START_AGENT"))


def test_a_stopped_runner_agent_can_report_its_job() -> None:
    """LXD waits longer for the end of an instance than systemd inside waits for the end of the runner agent."""
    interrupted, terminated, output = 7.5, 2.5, 10

    assert interrupted + terminated + output + 20 < times.STOP_AGENT
    assert times.STOP_AGENT + 10 < times.STOP_INSTANCE == runner.STOP_TIMEOUT


@pytest.mark.parametrize("process", [Process.UNKNOWN, Process.RUNNING])
def test_a_creation_within_its_limits_is_never_judged_stale(process: Process) -> None:
    """An instance whose creation may still go on is starting; one whose creation has ended has time to come online."""
    created = 1_000_000.0
    view = RunnerView("r", exists=True, running=True, created_at=created, process=process)
    end = created + times.CREATION - 1

    assert health(view, end) is Health.STARTING
    assert health(replace(view, prepared=True, prepared_at=end), end + times.COME_ONLINE - 1) is Health.STARTING


def test_a_limit_is_longer_than_what_it_waits_for() -> None:
    """The agent starts, its runner is awaited online, then has time to come online, and may be offline for longer."""
    assert times.START_AGENT < times.PROOF < times.COME_ONLINE < times.OFFLINE < times.SILENT


def test_an_answer_of_github_is_awaited_for_as_long_as_it_may_take() -> None:
    """GitHub holds a request for messages for 50 seconds. A lost one leaves the demand known."""
    held = 50

    assert held + 10 <= scale_sets.POLL_TIMEOUT < scale_sets.POLL_DEADLINE <= demand.PATIENCE / 3


def test_a_request_of_github_is_made_again_within_its_limit() -> None:
    """After one without an answer; and no list and no download takes the time of a reconcile's creations."""
    assert gh.errors.CONNECT_TIMEOUT < gh.errors.TIMEOUT
    assert 2 * gh.errors.TIMEOUT < client.CALL_DEADLINE <= client.QUEUED_DEADLINE <= missed_jobs.EVERY / 4
    assert client.QUEUED_DEADLINE < client.LONG_DEADLINE <= times.REST_OF_RECONCILE
    assert 2 <= client.ATTEMPTS <= 5


def test_a_missed_job_is_looked_for_after_its_message_was_due() -> None:
    """GitHub gives a job to another set after 5 minutes; until then a message may come, also by another clock."""
    assert missed_jobs.SKEW < missed_jobs.GRACE
    assert 5 * times.MINUTE <= missed_jobs.GRACE == missed_jobs.EVERY <= 10 * times.MINUTE


def test_a_runner_that_ends_is_replaced_within_seconds() -> None:
    """Runners that end together by one reconcile. One that ends at once again does not take the whole CPU."""
    assert agent.GATHER < 1 <= agent.PAUSE <= 5


def test_a_configuration_is_proven_before_its_successors() -> None:
    """A runner agent comes online within a minute, and a reconcile does not wait much longer for one."""
    assert times.MINUTE < times.PROOF <= 3 * times.MINUTE
