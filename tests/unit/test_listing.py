"""The rows of check-runners: what is known of each runner, and their text as JSON, YAML and a table."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ops import testing

import metrics.events
from listing import CELL_LIMIT, JOB_NAME_LIMIT, WAITING_HEADINGS, Job, Row, counts, rows, text
from metrics.runner import PreJobMetrics
from models import FORMATS, GithubRunner
from naming import KEY
from observe import ObservedRunner
from runner_view import Process, RunnerView
from tests.support.fakes import REPO, FakeInstance, FakeLxd
from tests.support.surroundings import Surroundings, context, state, world
from tests.unit.test_runner_manager import BINARY, NOW, World

__all__ = ["context", "world"]

HOUR_AGO = NOW - 3600
HOSTILE = "\x1b[31mred\nname: forged\r\x00\u202e\u2028 \t'\"|>- # &*!% ${{ x }}"


def view(**changes: Any) -> RunnerView:
    """A prepared runner of an hour's age that GitHub lists as idle."""
    values: dict[str, Any] = {
        "name": "app-0-a",
        "exists": True,
        "running": True,
        "created_at": HOUR_AGO,
        "prepared": True,
        "prepared_at": HOUR_AGO + 60,
        "fingerprint": "today's",
        "github": GithubRunner(1, "app-0-a", online=True, busy=False),
        "process": Process.RUNNING,
    }
    return RunnerView(**{**values, **changes})


def pre_job(**changes: Any) -> PreJobMetrics:
    """What a job wrote ten minutes ago."""
    values = {"timestamp": NOW - 600, "workflow": "CI", "workflow_run_id": "7", "repository": REPO.path}
    return PreJobMetrics(**{**values, "event": "push", **changes})


def row(found: RunnerView, job: PreJobMetrics | None = None, /, **keys: str) -> Row:
    """The row of one runner whose instance has these keys."""
    instance: Any = FakeInstance(FakeLxd(), found.name, keys) if found.exists else None
    [only] = rows([ObservedRunner(found, REPO, instance)], lambda _: job, {"default": "today's"}, NOW)
    return only


BUSY = GithubRunner(1, "app-0-a", online=True, busy=True)
OFFLINE = GithubRunner(1, "app-0-a", online=False, busy=False)
STATES: list[tuple[dict[str, Any], str, "float | None"]] = [
    ({}, "idle", HOUR_AGO + 60),
    ({"prepared_at": 0.0}, "idle", None),
    ({"github": BUSY}, "busy", NOW - 600),
    ({"github": None, "process": Process.WORKER}, "busy, unknown to GitHub", None),
    ({"github": None, "process": Process.WORKER, "offline_since": NOW - 60}, "busy, unknown to GitHub", NOW - 60),
    ({"github": OFFLINE}, "offline", None),
    ({"github": OFFLINE, "offline_since": NOW - 60}, "offline", NOW - 60),
    ({"github": None, "offline_since": NOW - 60}, "not at GitHub", NOW - 60),
    ({"github": None, "github_known": False, "process": Process.UNKNOWN}, "unknown", None),
    ({"github": None, "prepared": False, "created_at": NOW - 30, "prepared_at": 0.0}, "starting", NOW - 30),
    ({"running": False}, "stopped", None),
    ({"exists": False, "running": False, "github": OFFLINE}, "no instance", None),
]


@pytest.mark.parametrize(("changes", "name", "since"), STATES, ids=lambda value: str(value)[:40])
def test_state_and_since_when(changes: dict[str, Any], name: str, since: float | None) -> None:
    """A runner's state is by GitHub and LXD together; its time is what was recorded, and nothing where nothing was."""
    found = row(view(**changes), pre_job())

    assert found.state == name
    expected = {HOUR_AGO + 60: "2023-11-14T21:14:20Z", NOW - 600: "2023-11-14T22:03:20Z"}
    expected |= {NOW - 60: "2023-11-14T22:12:20Z", NOW - 30: "2023-11-14T22:12:50Z"}
    assert found.since == (expected[since] if since is not None else None)


@pytest.mark.parametrize(("changes", "name", "since"), STATES, ids=lambda value: str(value)[:40])
def test_a_state_has_the_same_words_without_a_format(changes: dict[str, Any], name: str, since: float | None) -> None:
    """The line of `details` and the row of a runner name one state in one way."""
    [line] = counts([ObservedRunner(view(**changes), REPO)], None, NOW)["details"]

    age = "" if name == "no instance" else ", 0 min old" if "created_at" in changes else ", 60 min old"
    assert line == f"app-0-a: {name}{age}"


def test_what_an_instance_records_is_shown() -> None:
    """Image and binary are by the instance's keys, the age by its creation; another fingerprint is outdated."""
    keys = {"volatile.base_image": "0123456789abcdef" * 4, f"{KEY}binary": "2.320.0"}

    found = row(view(fingerprint="yesterday's"), **keys)

    assert (found.image, found.binary, found.age, found.outdated) == ("0123456789ab", "2.320.0", 3600, True)
    assert found.flavor == "default"


def test_what_is_not_recorded_is_empty() -> None:
    """A runner of the previous charm has no keys of this one, and an orphaned registration has no instance."""
    for found in (row(view(created_at=0.0)), row(view(exists=False, running=False, created_at=0.0))):
        assert (found.image, found.binary, found.age, found.job) == ("", "", None, None)


@pytest.mark.parametrize("timestamp", [0.0, HOUR_AGO - 1, NOW + 1, 253402300799.0])
def test_a_job_cannot_have_begun_before_its_runner_or_in_the_future(timestamp: float) -> None:
    """The time comes from inside the instance: one that cannot be is left out."""
    assert row(view(github=BUSY), pre_job(timestamp=timestamp)).since is None


def a_row(**changes: Any) -> Row:
    """A busy runner."""
    values: dict[str, Any] = {"name": "app-0-a", "flavor": "default", "state": "busy", "outdated": False, "age": 3720}
    values |= {"since": "2023-11-14T22:03:20Z", "job": Job(REPO.path, "CI"), "image": "0123456789ab"}
    return Row(**{**values, "binary": "2.320.0", **changes})


UNKNOWN = a_row(name="app-0-bb", state="not at GitHub", outdated=True, age=None, since=None, job=None, binary="")


def test_json_and_yaml_have_the_same_rows() -> None:
    """Both are lists of objects with every column; what is not known is null, or an empty text."""
    found = [a_row(), UNKNOWN]

    assert json.loads(text(found, "json")) == yaml.safe_load(text(found, "yaml"))
    assert json.loads(text(found, "json"))[0] == {
        "name": "app-0-a",
        "flavor": "default",
        "state": "busy",
        "outdated": False,
        "age": 3720,
        "since": "2023-11-14T22:03:20Z",
        "job": {"repository": "octo-org/demo", "workflow": "CI"},
        "image": "0123456789ab",
        "binary": "2.320.0",
    }
    assert json.loads(text(found, "json"))[1]["job"] is None
    assert (text([], "json"), text([], "yaml")) == ("[]", "[]")


def test_table_is_aligned_and_juju_shows_it_as_lines() -> None:
    """Columns begin below their headings. A line with a blank at its end would make Juju print one quoted text."""
    table = text([a_row(), UNKNOWN], "table")

    heading, busy, unlisted = table.splitlines()
    columns = ("Name", "State", "Age", "Since (UTC)", "Image", "Binary", "Flavor", "Job")
    cells = ("app-0-a", "busy", "62 min", "2023-11-14 22:03:20", "0123456789ab", "2.320.0", "default", "octo-org/demo")
    places = [heading.index(column) for column in columns]
    assert places == [busy.index(cell) for cell in cells]
    assert (
        heading == "Name      State                    Age     Since (UTC)          Image         Binary   Flavor   Job"
    )
    assert unlisted == "app-0-bb  not at GitHub, outdated                               0123456789ab           default"
    assert yaml.safe_dump({"runners": table}, default_style="|").count("\n") == 4
    assert text([], "table").splitlines() == ["Name  State  Age  Since (UTC)  Image  Binary  Flavor  Job"]


@pytest.mark.parametrize(
    ("age", "shown"), [(0, "0 min"), (7199, "119 min"), (7200, "2 h"), (172799, "47 h"), (172800, "2 d")]
)
def test_ages_of_the_table(age: int, shown: str) -> None:
    """In minutes for two hours, in hours for two days, then in days."""
    assert f"busy   {shown}  " in text([a_row(age=age)], "table")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "workflow", [HOSTILE, "w" * 900, "工" * 300, "\n" * 900, "", "- a: [", "null", "\\n", "é\u0301"]
)
def test_a_job_changes_nothing_but_its_own_cell(form: str, workflow: str) -> None:
    """Whatever a workflow is called: the text has as many lines as with another name, and nothing unprintable."""
    job = row(view(github=BUSY), pre_job(workflow=workflow)).job
    assert job is not None
    shown = text([a_row(job=job), UNKNOWN], form)

    assert len(job.workflow) <= JOB_NAME_LIMIT
    assert len(shown.splitlines()) == len(text([a_row(), UNKNOWN], form).splitlines())
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert not any(line.endswith(" ") for line in shown.splitlines())
    if form == "table":
        assert len(shown.splitlines()[1].partition("default  ")[2]) <= CELL_LIMIT
    else:
        parsed = json.loads(shown) if form == "json" else yaml.safe_load(shown)
        assert parsed[0]["job"] == {"repository": REPO.path, "workflow": job.workflow}
        assert parsed[1]["name"] == "app-0-bb"


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A unit with fakes of LXD and GitHub."""
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path / "metrics.log")
    (tmp_path / "unit").mkdir()
    return World(tmp_path / "unit")


def began(unit: World, name: str, content: "bytes | None" = None, **changes: Any) -> Path:
    """A runner's metrics volume, with the file that a job writes when it begins."""
    file = Path(unit.storages.create(name).path) / "pre-job-metrics.json"
    file.write_bytes(pre_job(**changes).model_dump_json().encode() if content is None else content)
    return file


def job_of(unit: World, name: str) -> "Job | None":
    """The job of one row."""
    [job] = [found.job for found in unit.rows() if found.name == name]
    return job


def test_a_running_job_is_read_from_the_metrics_volume(unit: World) -> None:
    """Repository and workflow of a busy runner; a runner without a volume, or without a job, has none."""
    busy, idle, bare = unit.add("aa", busy=True), unit.add("bb"), unit.add("cc", busy=True)
    began(unit, busy)
    unit.storages.create(idle)

    assert [job_of(unit, name) for name in (busy, idle, bare)] == [Job("octo-org/demo", "CI"), None, None]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"[" * 1000, b" " * 1025, b'{"timestamp": NaN}', b'{"workflow": "CI"}']
)
def test_a_file_that_breaks_a_rule_is_no_job(unit: World, content: bytes) -> None:
    """The rules are those of the metrics, and a broken one costs the job's cell only."""
    name = unit.add("aa", busy=True)
    began(unit, name, content)

    assert job_of(unit, name) is None
    assert [found.state for found in unit.rows()] == ["busy"]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_regular_file_is_not_opened_further(unit: World, tmp_path: Path, kind: str) -> None:
    """A job can put anything in the file's place: nothing is followed, and nothing blocks."""
    name = unit.add("aa", busy=True)
    file = began(unit, name)
    other = file.rename(tmp_path / "other")
    makers: dict[str, Callable[[], object]] = {
        "link": lambda: file.symlink_to(other),
        "fifo": lambda: os.mkfifo(file),
        "folder": file.mkdir,
    }
    makers[kind]()

    assert job_of(unit, name) is None


def test_a_job_of_a_repository_that_the_runner_does_not_serve_is_not_shown(unit: World) -> None:
    """Only what the runner is registered for can have given it a job."""
    name = unit.add("aa", busy=True)
    began(unit, name, repository="somebody/else")

    assert job_of(unit, name) is None


def test_rows_ask_no_more_than_the_counts(unit: World) -> None:
    """One list of LXD and one of GitHub, and the same commands in instances."""

    def cost() -> tuple[int, list[str], int]:
        return (
            unit.lxd.lists,
            list(unit.github.lists),
            sum(len(instance.commands) for instance in unit.lxd.found.values()),
        )

    for number in range(3):
        began(unit, unit.add(f"a{number}", busy=True))
    unit.add("bb", online=False)
    unit.counts()
    once = cost()

    found = unit.rows()

    assert len(found) == 4
    assert cost() == (once[0] * 2, once[1] * 2, once[2] * 2)


def test_a_new_runner_records_the_version_of_its_binary(unit: World) -> None:
    """The key is written with the instance, and the row has it."""
    unit.reconcile(1)

    [found] = unit.rows()

    assert found.binary == BINARY.removesuffix(".tar.gz").rpartition("-")[2] == "2.320.0"


@pytest.mark.parametrize("form", FORMATS)
def test_the_action_gives_one_result(context: Any, world: Surroundings, form: str) -> None:
    """With a format, `runners` has the rows, `waiting` what waits, and nothing else is given."""
    context.run(context.on.config_changed(), state())

    context.run(context.on.action("check-runners", params={"format": form}), state())

    assert set(context.action_results) == {"runners", "waiting"}
    assert context.action_results["waiting"] in ("[]", "  ".join(WAITING_HEADINGS))
    assert all(name in context.action_results["runners"] for name in world.lxd.found)


@pytest.mark.parametrize("form", ["xml", "JSON", " json", "x" * 500, "json\nyaml", "{}"])
def test_a_format_that_is_not_known_fails_and_changes_nothing(context: Any, world: Surroundings, form: str) -> None:
    """The action names the accepted ones; neither GitHub is asked nor the status changed."""
    before = testing.State(config=state().config, unit_status=testing.MaintenanceStatus("Reconciling runners"))

    with pytest.raises(testing.ActionFailed, match="is none of json, yaml, table") as failed:
        context.run(context.on.action("check-runners", params={"format": form}), before)

    assert failed.value.state is not None
    assert failed.value.state.unit_status == before.unit_status
    assert world.github.lists == []
    assert len(failed.value.message) <= 200


def test_an_empty_format_gives_the_counts(context: Any, world: Surroundings) -> None:
    """The results without a format are those that scripts of before know, and what waits."""
    context.run(context.on.config_changed(), state())

    context.run(context.on.action("check-runners", params={"format": ""}), state())

    assert set(context.action_results) == {"online", "offline", "unknown", "runners", "details", "waiting"}
    assert context.action_results["waiting"] == ""
