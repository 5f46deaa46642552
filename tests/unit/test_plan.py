"""When a runner is healthy, when it is removed, and how many are created: tables over the pure plan."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import times
from models import GithubRunner
from plan import (
    Desired,
    Health,
    Plan,
    Reason,
    health,
    is_doubtful,
    is_healthy,
    make_plan,
    may_have_job,
    needs_confirmation,
    needs_probe,
)
from runner_view import Process, RunnerView

NOW = 1_000_000.0
MINUTE = 60.0
OLD = NOW - 60 * MINUTE
TODAY = "today"
# Equal, and another object, as what is read from LXD is: a comparison by identity must not pass.
READ = "".join(TODAY)
ONLINE = GithubRunner(1, "r", online=True, busy=False)
ONLINE_BUSY = GithubRunner(1, "r", online=True, busy=True)
OFFLINE = GithubRunner(1, "r", online=False, busy=False)
OFFLINE_BUSY = GithubRunner(1, "r", online=False, busy=True)


def view(name: str = "r", **changes: Any) -> RunnerView:
    """An old, current instance that runs, with its process running; GitHub does not list it."""
    values: dict[str, Any] = {
        "exists": True,
        "running": True,
        "created_at": OLD,
        "fingerprint": TODAY,
        "prepared": True,
        "process": Process.RUNNING,
        **changes,
    }
    return RunnerView(name, **values)


def idle(name: str, **changes: Any) -> RunnerView:
    return view(name, **{"github": ONLINE, "process": Process.UNKNOWN, **changes})


def busy(name: str, **changes: Any) -> RunnerView:
    return idle(name, **{"github": ONLINE_BUSY, **changes})


def starting(name: str, **changes: Any) -> RunnerView:
    return view(name, created_at=NOW - MINUTE, prepared=False, process=Process.UNKNOWN, **changes)


def dead(name: str, **changes: Any) -> RunnerView:
    return view(name, running=False, **changes)


def offline(name: str, **changes: Any) -> RunnerView:
    return view(name, **changes)


def unknown(name: str, **changes: Any) -> RunnerView:
    return view(name, process=Process.UNKNOWN, **changes)


def orphaned(name: str, **changes: Any) -> RunnerView:
    return RunnerView(name, **{"exists": False, "github": OFFLINE, **changes})


def plan(quantity: int, *views: RunnerView) -> Plan:
    return make_plan(Desired(quantity, TODAY), views, NOW)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param({"github": ONLINE}, Health.IDLE, id="online"),
        pytest.param({"github": ONLINE, "process": Process.UNKNOWN}, Health.IDLE, id="online settles it unprobed"),
        pytest.param({"github": ONLINE, "created_at": NOW}, Health.IDLE, id="online although young"),
        pytest.param({"github": ONLINE, "offline_since": OLD}, Health.IDLE, id="came back"),
        pytest.param({"github": ONLINE_BUSY}, Health.BUSY, id="busy by GitHub"),
        pytest.param({"github": OFFLINE, "process": Process.WORKER}, Health.BUSY, id="worker inside, GitHub: offline"),
        pytest.param({"process": Process.WORKER}, Health.BUSY, id="worker inside, GitHub does not list it"),
        pytest.param(
            {"process": Process.WORKER, "github": OFFLINE, "offline_since": OLD}, Health.BUSY, id="worker, long offline"
        ),
        pytest.param({"process": Process.WORKER, "github_known": False}, Health.BUSY, id="worker, GitHub unknown"),
        pytest.param({"github": OFFLINE_BUSY}, Health.BUSY, id="GitHub: offline and busy"),
        pytest.param({"github": OFFLINE_BUSY, "process": Process.NONE}, Health.UNHEALTHY, id="died in its job"),
        pytest.param({"github": OFFLINE_BUSY, "process": Process.UNKNOWN}, Health.BUSY, id="busy, process unknown"),
        pytest.param({"github": ONLINE_BUSY, "process": Process.NONE}, Health.BUSY, id="busy and online settles it"),
        pytest.param({"running": False, "github": ONLINE}, Health.UNHEALTHY, id="stopped, GitHub: still online"),
        pytest.param({"running": False, "github": ONLINE_BUSY}, Health.UNHEALTHY, id="stopped, GitHub: still busy"),
        pytest.param({"running": False, "created_at": NOW}, Health.UNHEALTHY, id="stopped although young"),
        pytest.param({"running": False, "github_known": False}, Health.UNHEALTHY, id="stopped, GitHub unknown"),
        pytest.param({"process": Process.NONE}, Health.UNHEALTHY, id="process gone"),
        pytest.param({"process": Process.NONE, "github": OFFLINE}, Health.UNHEALTHY, id="process gone, offline"),
        pytest.param({"process": Process.NONE, "prepared": False}, Health.UNHEALTHY, id="never prepared, old"),
        pytest.param({"process": Process.NONE, "github_known": False}, Health.UNHEALTHY, id="process gone, no GitHub"),
        pytest.param({}, Health.OFFLINE, id="offline, not listed"),
        pytest.param({"github": OFFLINE}, Health.OFFLINE, id="offline, listed offline"),
        pytest.param({"github_known": False}, Health.UNKNOWN, id="GitHub unknown"),
        pytest.param(
            {"github_known": False, "offline_since": OLD}, Health.UNKNOWN, id="GitHub unknown, noted long ago"
        ),
        pytest.param({"process": Process.UNKNOWN}, Health.UNKNOWN, id="process unknown"),
        pytest.param(
            {"process": Process.UNKNOWN, "offline_since": NOW - 59 * MINUTE}, Health.UNKNOWN, id="silent for 59 minutes"
        ),
        pytest.param({"process": Process.UNKNOWN, "offline_since": OLD}, Health.UNHEALTHY, id="silent for an hour"),
        pytest.param({"process": Process.UNKNOWN, "offline_since": 1.0}, Health.UNHEALTHY, id="silent for ever"),
        pytest.param({"process": Process.UNKNOWN, "prepared": False}, Health.UNHEALTHY, id="cut-off creation, silent"),
        pytest.param(
            {"process": Process.UNKNOWN, "github": OFFLINE_BUSY, "offline_since": OLD}, Health.BUSY, id="silent, busy"
        ),
        pytest.param({"exists": False, "github": OFFLINE}, Health.ORPHANED, id="at GitHub only"),
        pytest.param(
            {"process": Process.NONE, "github": OFFLINE_BUSY, "created_at": 0.0},
            Health.BUSY,
            id="another's, busy",
        ),
        pytest.param(
            {"process": Process.NONE, "github": OFFLINE_BUSY, "created_at": -1.0},
            Health.BUSY,
            id="made at no time, busy",
        ),
        pytest.param(
            {"process": Process.NONE, "github": OFFLINE_BUSY, "created_at": 1.0},
            Health.UNHEALTHY,
            id="made in the first second there is, died in its job",
        ),
    ],
)
def test_health(seen: dict[str, Any], expected: Health) -> None:
    """GitHub saying online settles a runner's health, a stopped instance is dead, and unknown is not dead."""
    assert health(view(**seen), NOW) is expected


@pytest.mark.parametrize(
    ("age", "seen", "expected"),
    [
        (0, {"prepared": False, "process": Process.NONE}, Health.UNHEALTHY),
        (0, {"prepared": False, "process": Process.UNKNOWN}, Health.STARTING),
        (times.CREATION, {"prepared": False, "process": Process.UNKNOWN}, Health.UNHEALTHY),
        (times.CREATION - 1, {"prepared": False, "process": Process.UNKNOWN}, Health.STARTING),
        (times.COME_ONLINE - 1, {"github": OFFLINE}, Health.STARTING),
        (times.COME_ONLINE, {"github": OFFLINE}, Health.OFFLINE),
        (times.COME_ONLINE - 1, {"process": Process.NONE}, Health.UNHEALTHY),
        (times.COME_ONLINE - 1, {"process": Process.UNKNOWN}, Health.STARTING),
        (1, {"process": Process.WORKER, "prepared": False}, Health.BUSY),
        (times.CREATION, {"prepared_at": NOW - times.COME_ONLINE + 1}, Health.STARTING),
        (times.CREATION, {"prepared_at": NOW - times.COME_ONLINE}, Health.OFFLINE),
        (1, {"prepared_at": NOW + MINUTE}, Health.OFFLINE),
        (-MINUTE, {"github": OFFLINE}, Health.OFFLINE),
        (-1, {"github": OFFLINE}, Health.OFFLINE),
        (1, {"github": OFFLINE, "offline_since": NOW - 14 * MINUTE}, Health.OFFLINE),
    ],
    ids=[
        "its creation was cut off",
        "does not answer at once",
        "does not answer in time",
        "does not answer yet",
        "not online yet",
        "not online in time",
        "prepared and its process gone",
        "prepared and does not answer",
        "has a job before its creation ended",
        "not online yet after a long creation",
        "not online in time after a long creation",
        "prepared in the future",
        "made in the future",
        "made a second from now",
        "noted before it was made",
    ],
)
def test_young_instance(age: float, seen: dict[str, Any], expected: Health) -> None:
    """A starting instance has time to come online, unless it answers that nothing runs in it."""
    assert health(view(created_at=NOW - age, **seen), NOW) is expected


@pytest.mark.parametrize(
    ("minutes", "seen", "expected"),
    [
        (15, {}, Health.UNHEALTHY),
        (15, {"github": OFFLINE}, Health.UNHEALTHY),
        (14.9, {}, Health.OFFLINE),
        (15, {"process": Process.WORKER}, Health.BUSY),
        (15, {"process": Process.UNKNOWN}, Health.UNKNOWN),
        (15, {"github_known": False}, Health.UNKNOWN),
        (15, {"github": ONLINE}, Health.IDLE),
    ],
    ids=["not listed", "listed offline", "not yet", "job inside", "probe failed", "no GitHub", "came back"],
)
def test_an_offline_runner_is_not_healthy_for_ever(minutes: float, seen: dict[str, Any], expected: Health) -> None:
    """Fifteen minutes after it was first found offline a runner without a job is unhealthy."""
    assert health(view(offline_since=NOW - minutes * MINUTE, **seen), NOW) is expected


@pytest.mark.parametrize(
    ("hours", "seen", "expected"),
    [
        (6, {}, Health.UNHEALTHY),
        (6, {"github": OFFLINE}, Health.UNHEALTHY),
        (5.9, {}, Health.BUSY),
        (720, {"github": OFFLINE_BUSY}, Health.BUSY),
        (720, {"github": ONLINE_BUSY}, Health.BUSY),
        (720, {"github": ONLINE}, Health.BUSY),
        (720, {"github_known": False}, Health.BUSY),
        (720, {"running": False}, Health.UNHEALTHY),
    ],
    ids=["not listed", "listed offline", "not yet", "offline, busy", "busy", "online", "no GitHub", "stopped"],
)
def test_a_worker_counts_while_github_may_have_a_job_for_it(
    hours: float, seen: dict[str, Any], expected: Health
) -> None:
    """Six hours after GitHub was first seen to know of no job, a worker inside no longer keeps its instance."""
    found = view(process=Process.WORKER, created_at=1.0, offline_since=NOW - hours * times.HOUR, **seen)

    assert health(found, NOW) is expected
    assert may_have_job(found, NOW) is (expected is Health.BUSY)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (view(process=Process.UNKNOWN), True),
        (view(process=Process.UNKNOWN, offline_since=OLD), False),
        (view(process=Process.UNKNOWN, github=ONLINE), True),
        (starting("r"), True),
        (view(), False),
        (idle("r", process=Process.RUNNING), False),
        (orphaned("r"), False),
    ],
    ids=["does not answer", "did not for an hour", "online, silent", "starting", "offline", "idle", "no instance"],
)
def test_what_does_not_answer_may_have_a_job_up_to_a_limit(seen: RunnerView, expected: bool) -> None:
    """An instance that does not answer the health probe keeps the machine from a reboot until it is unhealthy."""
    assert may_have_job(seen, NOW) is expected


def test_jobs_that_github_does_not_know_are_named() -> None:
    """A busy runner is named once an earlier reconcile has recorded that GitHub lists no job."""
    noted = {"process": Process.WORKER, "offline_since": NOW - MINUTE}
    found = plan(4, view("a", **noted), view("b", process=Process.WORKER), busy("c"), offline("d"))

    assert (found.busy, found.unknown_jobs) == (("a", "b", "c"), ("a",))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (view(), True),
        (view(github=OFFLINE), True),
        (view(github_known=False), True),
        (starting("r"), True),
        (view(github=ONLINE), False),
        (view(github=ONLINE_BUSY), False),
        (dead("r"), False),
        (orphaned("r"), False),
    ],
    ids=["not listed", "offline", "GitHub unknown", "young", "online", "online and busy", "stopped", "no instance"],
)
def test_who_is_looked_into(seen: RunnerView, expected: bool) -> None:
    """An instance is entered only where GitHub does not settle it, and only if it runs."""
    assert needs_probe(seen) is expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (offline("r"), True),
        (unknown("r"), True),
        (dead("r"), False),
        (view(process=Process.NONE), False),
        (view(process=Process.DEPRECATED), False),
    ],
    ids=["agent runs", "does not answer", "stopped", "agent ended", "version deprecated"],
)
def test_whose_end_github_confirms(seen: RunnerView, expected: bool) -> None:
    """A runner whose own account is not that it ended goes only if GitHub is asked for it once more."""
    assert needs_confirmation(seen) is expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (idle("r"), True),
        (busy("r"), True),
        (view(process=Process.WORKER), True),
        (offline("r"), True),
        (view(github_known=False), True),
        (dead("r", github=ONLINE), False),
        (view(process=Process.NONE), False),
        (starting("r"), False),
        (unknown("r"), False),
        (orphaned("r", github=ONLINE), False),
    ],
    ids=[
        "online",
        "busy",
        "job inside",
        "process runs, not listed",
        "process runs, GitHub unknown",
        "stopped",
        "process gone",
        "starting",
        "unknown",
        "no instance",
    ],
)
def test_healthy(seen: RunnerView, expected: bool) -> None:
    """Healthy means that the instance runs and the runner agent in it runs."""
    assert is_healthy(seen) is expected


def test_healthy_count_is_of_what_was_found() -> None:
    """Outdated and surplus runners were healthy when found; the dead, the long gone and the starting were not."""
    found = plan(
        1,
        idle("outdated", fingerprint="old"),
        idle("kept"),
        idle("surplus"),
        busy("busy"),
        offline("offline"),
        offline("long-offline", offline_since=OLD),
        dead("dead"),
        starting("starting"),
        unknown("unknown"),
        orphaned("orphaned"),
    )

    assert found.healthy == 5


@pytest.mark.parametrize(
    ("quantity", "views", "removed", "created"),
    [
        pytest.param(3, [], {}, 3, id="nothing there"),
        pytest.param(0, [], {}, 0, id="nothing wanted, nothing there"),
        pytest.param(2, [idle("a"), busy("b")], {}, 0, id="enough"),
        pytest.param(3, [idle("a"), busy("b")], {}, 1, id="one missing"),
        pytest.param(4, [idle("a"), idle("b")], {}, 2, id="two missing: those that are there stay"),
        pytest.param(2, [dead("a"), idle("b")], {"a": Reason.UNHEALTHY}, 1, id="the dead one is replaced"),
        pytest.param(1, [view("a", process=Process.NONE)], {"a": Reason.UNHEALTHY}, 1, id="process gone"),
        pytest.param(1, [offline("a", offline_since=OLD)], {"a": Reason.UNHEALTHY}, 1, id="long offline"),
        pytest.param(1, [offline("a")], {}, 0, id="newly offline stays and counts"),
        pytest.param(2, [starting("a")], {}, 1, id="a starting one counts"),
        pytest.param(1, [unknown("a")], {}, 0, id="an unknown one stays and counts"),
        pytest.param(1, [idle("a", fingerprint="old")], {"a": Reason.OUTDATED}, 1, id="outdated idle is replaced"),
        pytest.param(
            1, [idle("a", fingerprint="yesterday")], {"a": Reason.OUTDATED}, 1, id="outdated in any direction"
        ),
        pytest.param(1, [idle("a", fingerprint=READ)], {}, 0, id="today's, as LXD has it"),
        pytest.param(1, [busy("a", fingerprint="old")], {}, 0, id="outdated busy stays and counts"),
        pytest.param(2, [busy("a", fingerprint="old")], {}, 1, id="outdated busy counts against the quantity"),
        pytest.param(1, [starting("a", fingerprint="old")], {}, 0, id="outdated starting stays"),
        pytest.param(1, [offline("a", fingerprint="old")], {}, 0, id="outdated offline stays"),
        pytest.param(1, [unknown("a", fingerprint="old")], {}, 0, id="outdated unknown stays"),
        pytest.param(0, [idle("a", fingerprint="old")], {"a": Reason.OUTDATED}, 0, id="outdated idle is not replaced"),
        pytest.param(1, [idle("a"), busy("b")], {"a": Reason.SURPLUS}, 0, id="surplus: the idle one"),
        pytest.param(1, [busy("a"), busy("b")], {}, 0, id="surplus but busy"),
        pytest.param(0, [busy("a"), idle("b")], {"b": Reason.SURPLUS}, 0, id="none wanted: busy stays"),
        pytest.param(0, [offline("a"), unknown("b"), starting("c")], {}, 0, id="surplus but not known to be idle"),
        pytest.param(
            1,
            [view("a", process=Process.WORKER, github=OFFLINE), idle("b")],
            {"b": Reason.SURPLUS},
            0,
            id="surplus: a job inside is a job",
        ),
        pytest.param(
            1,
            [idle("a", fingerprint="old"), idle("b")],
            {"a": Reason.OUTDATED},
            0,
            id="the outdated one goes first, the current one stays",
        ),
        pytest.param(
            2,
            [busy("a", fingerprint="old"), busy("b", fingerprint="old"), idle("c", fingerprint="old")],
            {"c": Reason.OUTDATED},
            0,
            id="no replacement while the busy ones fill the machine",
        ),
        pytest.param(0, [orphaned("a")], {"a": Reason.ORPHANED}, 0, id="orphaned, offline"),
        pytest.param(1, [orphaned("a")], {"a": Reason.ORPHANED}, 1, id="orphaned does not count"),
        pytest.param(0, [orphaned("a", github=ONLINE)], {}, 0, id="registered elsewhere, online"),
        pytest.param(0, [orphaned("a", github=OFFLINE_BUSY)], {}, 0, id="registered, offline and busy"),
    ],
)
def test_reconcile(quantity: int, views: list[RunnerView], removed: dict[str, Reason], created: int) -> None:
    """Dead ones and outdated or surplus idle ones go, busy ones never; every live instance counts."""
    decided = plan(quantity, *views)

    assert dict(decided.remove) == removed
    assert decided.create == created
    assert decided.changes is bool(removed or created)


@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "a", "b")], ids=["in the order of names", "in another order"])
def test_surplus_is_no_more_than_needed(names: tuple[str, ...]) -> None:
    """As many idle runners go as there are too many, and which ones does not depend on the order they were seen in."""
    decided = plan(2, *(idle(name) for name in names))

    assert decided.names(Reason.SURPLUS) == ["a"]
    assert decided.idle == ("b", "c")


@pytest.mark.parametrize(
    ("seen", "noted", "cleared"),
    [
        (offline("a"), ("a",), ()),
        (offline("a", github=OFFLINE), ("a",), ()),
        (offline("a", offline_since=NOW - MINUTE), (), ()),
        (offline("a", offline_since=NOW + MINUTE), ("a",), ()),
        (offline("a", github_known=False), (), ()),
        (unknown("a"), ("a",), ()),
        (starting("a"), (), ()),
        (view("a", process=Process.WORKER), ("a",), ()),
        (view("a", process=Process.WORKER, github=OFFLINE), ("a",), ()),
        (view("a", process=Process.WORKER, offline_since=NOW - MINUTE), (), ()),
        (view("a", process=Process.WORKER, github_known=False), (), ()),
        (view("a", process=Process.WORKER, github=OFFLINE_BUSY), (), ()),
        (view("a", process=Process.WORKER, github=OFFLINE_BUSY, offline_since=OLD), (), ("a",)),
        (idle("a"), (), ()),
        (idle("a", offline_since=OLD), (), ("a",)),
        (busy("a", offline_since=OLD), (), ("a",)),
        (offline("a", offline_since=OLD), (), ()),
    ],
    ids=[
        "first seen, not listed",
        "first seen, listed offline",
        "noted already: the first note counts",
        "noted in the future, as the clock was set back",
        "GitHub unknown",
        "process unknown: it should be online all the same",
        "young",
        "only the instance claims a job, not listed",
        "only the instance claims a job, listed offline",
        "only the instance claims a job, noted already",
        "the instance claims a job, GitHub unknown",
        "GitHub lists the job",
        "GitHub lists the job again",
        "online",
        "online again",
        "online again and busy",
        "removed",
    ],
)
def test_records_of_offline_runners(seen: RunnerView, noted: tuple[str, ...], cleared: tuple[str, ...]) -> None:
    """The first reconcile that finds a runner offline records the time, later ones keep it; coming online clears it."""
    decided = plan(1, seen)

    assert (decided.record_offline, decided.clear_offline) == (noted, cleared)


@pytest.mark.parametrize("known", [True, False], ids=["an empty list", "no answer"])
def test_odd_answer_from_github_removes_nothing(known: bool) -> None:
    """A list that was full a minute ago and is empty now, or no list at all, removes nothing by itself."""
    seen = [view(name, github_known=known) for name in ("a", "b")]
    seen.append(view("c", process=Process.WORKER, github_known=known))

    decided = plan(3, *seen)

    assert not decided.changes
    assert decided.record_offline == (("a", "b", "c") if known else ())


def test_what_a_plan_says_of_the_runners_that_stay() -> None:
    """Idle are those that are kept idle, busy those that run a job."""
    decided = plan(3, idle("a"), idle("b", fingerprint="old"), busy("c"), busy("d", fingerprint="old"), starting("e"))

    assert decided.idle == ()
    assert decided.busy == ("c", "d")
    assert dict(decided.remove) == {"a": Reason.SURPLUS, "b": Reason.OUTDATED}


def test_names_by_reason() -> None:
    """Each reason has the names that go for it, and no others."""
    decided = plan(1, dead("a"), orphaned("b"), idle("c", fingerprint="old"), idle("d"), idle("e"))

    assert {reason: decided.names(reason) for reason in Reason} == {
        Reason.UNHEALTHY: ["a"],
        Reason.ORPHANED: ["b"],
        Reason.OUTDATED: ["c"],
        Reason.SURPLUS: ["d"],
        Reason.AGED: [],
    }


def test_nothing_seen_and_nothing_wanted() -> None:
    """The empty plan is what a reconcile without runners decides."""
    assert plan(0) == Plan()


@pytest.mark.parametrize("value", [Desired(1, TODAY), Plan()], ids=["desired", "plan"])
def test_what_is_decided_stays(value: Desired | Plan) -> None:
    """Neither what is wanted nor what was decided can be changed on the way."""
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, None)


GITHUB = st.sampled_from([None, ONLINE, ONLINE_BUSY, OFFLINE, OFFLINE_BUSY])
TIMES = st.sampled_from([NOW, NOW - MINUTE, NOW - times.COME_ONLINE, NOW - 15 * MINUTE, OLD])


@st.composite
def runner_views(draw: st.DrawFn) -> list[RunnerView]:
    known = draw(st.booleans())
    found = []
    for number in range(draw(st.integers(0, 8))):
        exists = draw(st.booleans()) or not known
        found.append(
            RunnerView(
                f"r{number}",
                exists=exists,
                running=exists and draw(st.booleans()),
                created_at=draw(TIMES | st.just(0.0)),
                fingerprint=draw(st.sampled_from([TODAY, "old"])),
                prepared=draw(st.booleans()),
                offline_since=draw(st.none() | TIMES),
                process=draw(st.sampled_from(list(Process))),
                github=draw(GITHUB) if known else None,
                github_known=known,
            )
        )
    return found


def after(views: list[RunnerView], decided: Plan, done: set[str]) -> list[RunnerView]:
    """What the next reconcile sees when the removals in ``done``, the notes and the creations have been carried out."""
    left = []
    for seen in views:
        if seen.name in done:
            continue
        if seen.name in decided.record_offline:
            seen = replace(seen, offline_since=NOW)
        if seen.name in decided.clear_offline:
            seen = replace(seen, offline_since=None)
        left.append(seen)
    return left + [idle(f"new{number}") for number in range(decided.create)]


@given(quantity=st.integers(0, 6), views=runner_views())
def test_never_overcommitted(quantity: int, views: list[RunnerView]) -> None:
    """What is created never brings the instances above the quantity, whatever is seen."""
    decided = plan(quantity, *views)
    removed = {name for name, _ in decided.remove}
    staying = sum(1 for seen in views if seen.exists and seen.name not in removed)

    assert decided.create >= 0
    assert decided.create == 0 or staying + decided.create <= quantity


@given(quantity=st.integers(0, 6), views=runner_views())
def test_who_is_never_removed(quantity: int, views: list[RunnerView]) -> None:
    """A runner with a job in a running instance is never removed, nor a running one that nobody can judge."""
    removed = dict(plan(quantity, *views).remove)

    for seen in views:
        ended = seen.process in (Process.NONE, Process.DEPRECATED, Process.FAILED)
        alive = not ended or not seen.created_at or (seen.github and seen.github.online)
        busy_by_github = seen.github and seen.github.busy and alive
        if seen.exists and seen.running and (seen.process is Process.WORKER or busy_by_github):
            assert seen.name not in removed
        if not seen.exists and seen.github and seen.github.online:
            assert seen.name not in removed
        online = seen.github is not None and seen.github.online
        silent = not seen.prepared or (seen.offline_since is not None and NOW - seen.offline_since >= 60 * MINUTE)
        if seen.exists and seen.running and seen.process is Process.UNKNOWN and not (online or silent):
            assert seen.name not in removed
        if removed.get(seen.name) in (Reason.OUTDATED, Reason.SURPLUS):
            assert online


@given(quantity=st.integers(0, 6), views=runner_views())
def test_names_have_one_fate(quantity: int, views: list[RunnerView]) -> None:
    """No name is removed twice, and what is removed is neither kept, noted nor cleared unless it was online."""
    decided = plan(quantity, *views)
    removed = [name for name, _ in decided.remove]

    assert len(removed) == len(set(removed))
    assert not set(removed) & (set(decided.idle) | set(decided.busy) | set(decided.record_offline))
    assert not set(decided.idle) & set(decided.busy)
    assert not set(decided.record_offline) & set(decided.clear_offline)


@given(quantity=st.integers(0, 6), views=runner_views(), data=st.data())
def test_order_does_not_matter(quantity: int, views: list[RunnerView], data: st.DataObject) -> None:
    """The same runners give the same plan in any order."""
    assert plan(quantity, *data.draw(st.permutations(views))) == plan(quantity, *views)


@given(quantity=st.integers(0, 6), views=runner_views(), data=st.data())
def test_reconciles_converge(quantity: int, views: list[RunnerView], data: st.DataObject) -> None:
    """A reconcile that was carried out leaves nothing to do, one that was cut off leaves what one more does.

    One more each where outdated runners wait until today's configuration has proven itself.
    """
    first = plan(quantity, *views)
    assume(not first.deprecated and not first.failed)
    names = [name for name, _ in first.remove]
    done = set(data.draw(st.lists(st.sampled_from(names), unique=True))) if names else set()
    # Cut off: creations come after the removals.
    seen = after(views, replace(first, create=0) if done != set(names) else first, done)

    second = plan(quantity, *seen)
    seen = after(seen, second, {name for name, _ in second.remove})
    if first.postponed or second.postponed:
        third = plan(quantity, *seen)
        seen = after(seen, third, {name for name, _ in third.remove})
    last = plan(quantity, *seen)

    if done == set(names) and not first.postponed:
        assert not second.changes
    assert not last.changes
    assert not last.record_offline
    assert not last.clear_offline


LISTED = GithubRunner(7, "r", online=False, busy=False)


# So that a job that it has had is not given up yet.
YOUNG = {"created_at": NOW - 10 * MINUTE, "prepared_at": NOW - 8 * MINUTE + 1, "confirmed": True}


@pytest.mark.parametrize(
    ("seen", "counts"),
    [
        pytest.param({}, True, id="young and listed as idle: no job can have written it"),
        pytest.param({"prepared_at": NOW - 8 * MINUTE}, False, id="older: GitHub may have given its job up"),
        pytest.param({"prepared_at": NOW + 2}, False, id="from the future: its age is not known"),
        pytest.param({"prepared_at": 0.0}, False, id="without the end of its creation, too old by the start"),
        pytest.param({"prepared_at": 0.0, "created_at": NOW - MINUTE}, True, id="its creation was killed a minute ago"),
        pytest.param({"github": None}, False, id="not listed: it may have had its job"),
        pytest.param({"github": replace(LISTED, busy=True)}, False, id="busy: its job may have written it"),
        pytest.param({"confirmed": False}, False, id="by the list only: its job may have come since"),
        pytest.param({"fingerprint": "old"}, False, id="an older runner binary"),
        pytest.param({"fingerprint": "yesterday"}, False, id="another runner binary"),
        pytest.param({"fingerprint": READ}, True, id="today's runner binary, as LXD has it"),
        pytest.param({"process": Process.NONE}, False, id="ended without a word"),
        pytest.param({"seen_online": True}, False, id="was online: it may have had a job"),
    ],
)
@pytest.mark.parametrize("process", [Process.DEPRECATED, Process.FAILED])
def test_agent_that_ended_without_a_job(process: Process, seen: dict[str, Any], counts: bool) -> None:
    """It is removed. If no job can have faked its report and its configuration is today's, no runner is created."""
    decided = plan(2, view("r", **{"process": process, "github": LISTED, **YOUNG, **seen}))

    assert decided.remove == (("r", Reason.UNHEALTHY),)
    assert decided.create == (0 if counts else 2)
    assert decided.deprecated is (counts and process is Process.DEPRECATED)
    assert decided.failed == (("r",) if counts and process is Process.FAILED else ())


@pytest.mark.parametrize("github", [LISTED, None])
@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("fingerprint", [TODAY, "old"])
def test_githubs_answer_about_a_version_counts(github: GithubRunner | None, answer: bool, fingerprint: str) -> None:
    """Whatever GitHub lists of the runner that gave the reason to ask, if it is one of today's configuration."""
    ended = view("r", process=Process.DEPRECATED, github=github, fingerprint=fingerprint, **YOUNG)

    decided = make_plan(Desired(2, TODAY, deprecated=answer), [ended], NOW)

    assert decided.deprecated is (answer and fingerprint == TODAY)
    assert decided.create == (0 if decided.deprecated else 2)


@pytest.mark.parametrize(
    ("seen", "doubtful"),
    [
        pytest.param({}, True, id="not listed: its registration is gone"),
        pytest.param({"github": LISTED}, True, id="too old for its report to count"),
        pytest.param({"github": LISTED, **YOUNG}, False, id="its report counts, and is in the status"),
        pytest.param({"github": replace(LISTED, busy=True)}, False, id="a job that has crashed"),
        pytest.param({"seen_online": True}, False, id="was online"),
        pytest.param({"github_known": False}, False, id="GitHub did not answer"),
        pytest.param({"process": Process.NONE}, False, id="ended without a word"),
    ],
)
@pytest.mark.parametrize("process", [Process.DEPRECATED, Process.FAILED])
def test_ends_that_a_job_may_have_faked(process: Process, seen: dict[str, Any], doubtful: bool) -> None:
    """An end counts as doubtful if a job may have faked it and the runner was never online."""
    ended = view("r", **{"process": process, **seen})

    assert is_doubtful(ended, plan(2, ended)) is doubtful


TRIED = [
    pytest.param(2, [idle("a", fingerprint="old"), idle("b", fingerprint="old")], ["a"], 1, ["b"], id="one is tried"),
    pytest.param(
        3, [idle("a", fingerprint="old"), idle("b", fingerprint="old")], [], 1, ["a", "b"], id="a free place is used"
    ),
    pytest.param(
        2, [starting("a"), idle("b", fingerprint="old")], [], 0, ["b"], id="one that is being tried is waited for"
    ),
    pytest.param(2, [offline("a"), idle("b", fingerprint="old")], [], 0, ["b"], id="one that never came online"),
    pytest.param(
        3,
        [idle("a"), idle("b", fingerprint="old"), idle("c", fingerprint="old")],
        ["b", "c"],
        2,
        [],
        id="all once one is online",
    ),
    pytest.param(2, [busy("a"), idle("b", fingerprint="old")], ["b"], 1, [], id="one that has a job was online, too"),
    pytest.param(
        1, [idle("a", fingerprint="old"), idle("b", fingerprint="old")], ["a", "b"], 1, [], id="fewer are wanted"
    ),
]


@pytest.mark.parametrize(("quantity", "views", "removed", "created", "postponed"), TRIED)
def test_a_changed_configuration_is_tried_with_one_runner(
    quantity: int, views: list[RunnerView], removed: list[str], created: int, postponed: list[str]
) -> None:
    """One outdated idle runner is replaced, or none where a place is free; the others follow once it is online."""
    decided = plan(quantity, *views)

    assert (decided.names(Reason.OUTDATED), decided.create, list(decided.postponed)) == (removed, created, postponed)
    assert set(postponed) <= set(decided.idle)


def plan_while_deprecated(quantity: int, *views: RunnerView) -> Plan:
    return make_plan(Desired(quantity, TODAY, deprecated_since=NOW - 16 * MINUTE), views, NOW)


@pytest.mark.parametrize(
    ("views", "created"),
    [
        pytest.param([], 1, id="one is tried"),
        pytest.param([starting("a")], 0, id="one is being tried"),
        pytest.param([busy("a", fingerprint="old")], 1, id="others do not prove it"),
        pytest.param([idle("a", created_at=NOW - MINUTE)], 2, id="all once it is online"),
        pytest.param([idle("a")], 1, id="one from before proves nothing"),
        pytest.param([busy("a"), starting("b")], 0, id="a long job from before proves nothing"),
        pytest.param([dead("a")], 1, id="the next one after it ended"),
    ],
)
def test_a_version_that_github_called_deprecated_is_tried_with_one_runner(
    views: list[RunnerView], created: int
) -> None:
    """One runner at a time until one is online at GitHub."""
    assert plan_while_deprecated(3, *views).create == created


def test_outdated_runners_stay_while_their_successors_version_is_in_doubt() -> None:
    """A version that may be deprecated replaces no runner that serves."""
    decided = plan_while_deprecated(2, idle("a", fingerprint="old"), idle("b", fingerprint="old"))

    assert (decided.remove, decided.create) == ((), 0)


DAY = 24 * 60 * MINUTE


@pytest.mark.parametrize(
    ("quantity", "views", "removed"),
    [
        pytest.param(2, [idle("a", created_at=NOW - DAY), idle("b")], [], id="not older than the limit"),
        pytest.param(2, [idle("a", created_at=NOW - DAY - 1), idle("b")], ["a"], id="older"),
        pytest.param(
            2, [idle("a", created_at=NOW - DAY - 1), idle("b", created_at=NOW - DAY - 2)], ["b"], id="the oldest one"
        ),
        pytest.param(1, [busy("a", created_at=NOW - 9 * DAY)], [], id="a busy one never"),
        pytest.param(1, [offline("a", created_at=NOW - 9 * DAY)], [], id="one that is not online"),
        pytest.param(
            2, [idle("a", created_at=NOW - 9 * DAY), idle("b", fingerprint="old")], [], id="outdated ones come first"
        ),
    ],
)
def test_idle_runners_do_not_grow_old(quantity: int, views: list[RunnerView], removed: list[str]) -> None:
    """One idle runner beyond its age is replaced in each reconcile, the oldest first; 0 means never."""
    decided = make_plan(Desired(quantity, TODAY, idle_max_age=DAY), views, NOW)

    assert decided.names(Reason.AGED) == removed
    assert decided.create == len(removed) + len(decided.names(Reason.OUTDATED))
    assert make_plan(Desired(quantity, TODAY), views, NOW).names(Reason.AGED) == []


def test_a_registration_that_is_gone_ends_its_runner() -> None:
    """Without its registration an ephemeral runner can get no job, whatever its agent does."""
    assert health(view(gone=True), NOW) is Health.UNHEALTHY
    assert not needs_confirmation(view(gone=True))


def test_the_first_time_online_is_noted() -> None:
    """A runner that GitHub lists as online or busy for the first time, and no other."""
    views = [idle("a"), busy("b"), idle("c", seen_online=True), offline("d"), starting("e")]
    lost = busy("f", github=replace(ONLINE_BUSY, online=False))

    assert plan(6, *views, lost).record_online == ("a", "b", "f")


def test_outdated_runners_stay_while_none_can_be_created() -> None:
    """A unit that cannot create runners keeps the outdated ones that serve."""
    decided = make_plan(Desired(1, TODAY, may_create=False), [idle("a", fingerprint="old")], NOW)

    assert (decided.remove, decided.create, decided.idle, decided.postponed) == ((), 0, ("a",), ())


def test_nothing_is_created_while_the_version_is_deprecated() -> None:
    """What was learnt in an earlier reconcile stops creation, and nothing else."""
    decided = make_plan(Desired(3, TODAY, may_create=False), [idle("a"), view("b", process=Process.NONE)], NOW)

    assert (decided.create, decided.idle, decided.names(Reason.UNHEALTHY)) == (0, ("a",), ["b"])
