"""What a reconcile aims for: the rules of demand, without I/O."""

from dataclasses import replace
from typing import Any

import pytest

import scaling
from demand import PATIENCE, Demand
from flavor_plans import Wanted
from gh.registration import Registration
from gh.scale_set_answers import Job, Statistics
from models import CharmState, Scaling
from programs.sessions import ASSIGNMENT_LIFE, LATE, Assigned, demanded
from tests.support.fakes import state

NOW = 1_800_000_000.0
KNOWN = Demand(assigned=1, answered_at=NOW - 10, scale_set=7, since=NOW - 3)


class Sets(Registration):
    def __init__(self, number: int) -> None:
        self.number = number


def in_demand(**changes: Any) -> CharmState:
    return state(**{"scaling": Scaling.DEMAND, "virtual_machines": 3, "demand_fallback": 2, **changes})


def wanted(found: Demand | None, since: float = NOW - 1000, **changes: Any) -> Wanted:
    given = in_demand(**changes)
    [one] = scaling.wanted(given, {"default": found} if found else {}, since, NOW, Sets)
    return one


def test_in_fixed_mode_the_count_is_wanted() -> None:
    """Whatever an agent may have written."""
    found = wanted(KNOWN, scaling=Scaling.FIXED)

    assert (found.number, found.registration, found.scale_set) == (3, None, None)


def test_known_demand_is_wanted_and_registers_in_its_set() -> None:
    """Assigned jobs and idle runners, at most the flavour's maximum."""
    found = wanted(KNOWN, min_idle=1)

    assert (found.number, found.min_idle, found.since, found.scale_set) == (2, 1, NOW - 3, 7)
    assert isinstance(found.registration, Sets)
    assert found.registration.number == 7
    assert not found.any_registration
    assert wanted(replace(KNOWN, assigned=99)).number == 3
    assert wanted(replace(KNOWN, assigned=1, missed=1)).number == 2


def test_the_oldest_job_of_all_decides_when_a_flavour_is_served() -> None:
    """Also one that no message told of; a time of missed jobs is over with them."""
    missed = replace(KNOWN, missed=1, missed_since=NOW - 900)

    assert wanted(missed).since == wanted(replace(missed, since=None)).since == NOW - 900
    assert wanted(replace(missed, since=NOW - 999)).since == NOW - 999
    assert wanted(replace(missed, missed=0)).since == NOW - 3


@pytest.mark.parametrize("found", [None, replace(KNOWN, answered_at=NOW - PATIENCE)])
def test_without_demand_runners_stay_for_a_while(found: Demand | None) -> None:
    """None is created and none removed, whatever it is registered with."""
    got = wanted(found, since=NOW - PATIENCE + 1)

    assert (got.number, got.any_registration) == (None, True)


@pytest.mark.parametrize(
    "found", [None, replace(KNOWN, answered_at=NOW - PATIENCE), replace(KNOWN, answered_at=NOW + PATIENCE)]
)
def test_after_five_minutes_the_fallback_holds(found: Demand | None) -> None:
    """Registered like fixed runners, never more than the maximum; a clock that was set back changes nothing."""
    got = wanted(found)

    assert (got.number, got.registration, got.any_registration) == (2, None, True)
    assert wanted(found, virtual_machines=1).number == 1


def test_a_flavour_without_runners_wants_none() -> None:
    """Also while demand is not known."""
    assert wanted(None, virtual_machines=0).number == 0


def test_the_status_says_since_when_and_why() -> None:
    """And which runs-on works where labels were dropped, and how many jobs were missed."""
    given = in_demand()

    def told(found: Demand) -> list[str]:
        return list(scaling.notices(given, {"default": found}, NOW - 9000, NOW, lambda flavor: f"app-{flavor}"))

    lost = replace(KNOWN, answered_at=NOW - 600, problem="no answer")
    assert told(lost) == ["default: demand is not known since 15 Jan 07:50 UTC: no answer; 2 runners kept"]
    assert told(replace(KNOWN, dropped=("linux",))) == [
        "default: the server drops labels of scale sets; use runs-on: app-default"
    ]
    assert told(replace(KNOWN, missed=2)) == ["default: 2 queued jobs did not reach the scale set"]
    assert told(KNOWN) == []


def test_a_problem_is_shown_from_the_beginning() -> None:
    """Also before the fallback holds. A problem of a session whose last answer still counts is none of the status."""
    given, problem = in_demand(), "server error (HTTP 503)"

    def told(found: Demand, **changes: Any) -> list[str]:
        return list(scaling.notices(replace(given, **changes), {"default": found}, NOW - 9, NOW, lambda flavor: flavor))

    assert told(Demand(problem=problem)) == [f"default: demand is not known yet: {problem}"]
    assert told(replace(KNOWN, problem=problem)) == []
    assert told(Demand()) == []


def test_what_the_operator_must_fix_blocks() -> None:
    """In demand mode, and with what is known of flavours that there are."""
    refused = Demand(problem="no access", is_blocking=True)

    assert scaling.blocked_by(in_demand(), {"default": refused}) == "no access"
    assert scaling.blocked_by(in_demand(), {"default": replace(refused, is_blocking=False)}) == ""
    assert scaling.blocked_by(in_demand(), {"former": refused}) == ""
    assert scaling.blocked_by(in_demand(scaling=Scaling.FIXED), {"default": refused}) == ""


def test_statistics_make_the_number() -> None:
    """Running jobs are in the assigned ones; none waits where all run."""
    found = demanded(Demand(), Statistics(assigned=3, running=3), Assigned(), 7, NOW)

    assert found == Demand(assigned=3, running=3, answered_at=NOW, scale_set=7)


def test_messages_count_where_statistics_lack_jobs() -> None:
    """Seen in 2025. A job counts until it starts, is over, or its assignment is too old."""
    jobs = Assigned()
    jobs.note(Job("JobAssigned", "a", queued=NOW - 5), NOW)
    jobs.note(Job("JobAssigned", "a", queued=NOW - 5), NOW)
    jobs.note(Job("JobAssigned", "b"), NOW)

    found = demanded(Demand(), Statistics(), jobs, 7, NOW)
    assert (found.assigned, found.since) == (2, NOW - 5)

    jobs.note(Job("JobStarted", "a"), NOW)
    assert demanded(found, Statistics(), jobs, 7, NOW).assigned == 1
    assert demanded(found, Statistics(), jobs, 7, NOW + ASSIGNMENT_LIFE).assigned == 0


def test_jobs_without_a_runner_are_late_until_one_begins() -> None:
    """By this machine's clock. That the late ones are taken back or cancelled proves nothing; a start does."""
    jobs = Assigned()
    for name in "ab":
        jobs.note(Job("JobAssigned", name, assigned=NOW - 9999), NOW)
    jobs.note_late(NOW + LATE - 1)
    assert not jobs.is_late

    jobs.note_late(NOW + LATE)
    for name in "ab":
        jobs.note(Job("JobCompleted", name), NOW + LATE)
    jobs.note_late(NOW + LATE)
    assert jobs.is_late

    jobs.note(Job("JobStarted", "c"), NOW + LATE)
    jobs.note_late(NOW + LATE)
    assert not jobs.is_late


def test_jobs_of_before_the_session_wait_since_it_knows_of_them() -> None:
    """Their messages may have been deleted: the statistics alone say that a job waits."""
    first = demanded(Demand(), Statistics(assigned=1), Assigned(), 7, NOW)
    later = demanded(first, Statistics(assigned=1), Assigned(), 7, NOW + 50)

    assert (first.since, later.since, later.answered_at) == (NOW, NOW, NOW + 50)
