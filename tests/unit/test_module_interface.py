"""The module interface that docs/reference/python-api.md documents, and its rules."""

import ast
import importlib
import inspect
import json
import logging
import re
import tarfile
import typing
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pytest
from pydantic import ValidationError

import errors
import metrics.events
import metrics.runner
import metrics.storage
from errors import DeleteMetricsStorageError, GetMetricsStorageError, QuarantineMetricsStorageError
from gh.client import GithubClient
from metrics.events import Event, RunnerInstalled, RunnerStart, RunnerStop, issue_event
from metrics.runner import (
    CodeInformation,
    PostJobMetrics,
    PostJobStatus,
    PreJobMetrics,
    RunnerMetrics,
    extract,
    issue_events,
)
from metrics.storage import MetricsStorage, move_to_quarantine
from metrics.type import GithubJobMetrics
from models import GithubRepo, SSHDebugConnection
from naming import fingerprint, plain
from proxies import ProxyConfig
from repo_policy import RepoPolicyClient
from runner import Runner, RunnerConfig, RunnerStatus, Snap, VirtualMachineResources, WgetExecutable
from tests.support.fakes import state

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/python-api.md").read_text()
SECTIONS = re.split(r"^## `([a-z_.]+)`$", PAGE, flags=re.MULTILINE)
# Names of the page's annotations that the modules import for type checkers only, or not at all.
NAMES = {
    "Environment": jinja2.Environment,
    "Generator": Generator,
    "GithubClient": GithubClient,
    "GithubPath": typing.get_type_hints(RunnerConfig)["path"],
    "Iterator": Iterator,
    "Path": Path,
    "ProxyConfig": ProxyConfig,
    "RepoPolicyClient": RepoPolicyClient,
    "SSHDebugConnection": SSHDebugConnection,
    "jinja2": jinja2,
}


def documented() -> list[tuple[ModuleType, ast.stmt]]:
    """Every definition of the page with the module under whose heading it is."""
    found = []
    for name, text in zip(SECTIONS[1::2], SECTIONS[2::2], strict=True):
        for code in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found += [(importlib.import_module(name), statement) for statement in ast.parse(code).body]
    return found


DOCUMENTED = documented()


def title(value: object) -> str:
    """A readable name of a test's parameter."""
    if isinstance(value, ModuleType):
        return value.__name__
    return value.name if isinstance(value, (ast.ClassDef, ast.FunctionDef)) else "constant"


def evaluated(module: ModuleType, node: ast.expr | None) -> Any:
    """The value of an expression of the page, with the names that its module has."""
    return None if node is None else eval(ast.unparse(node), {**NAMES, **vars(module)})


def parameters(module: ModuleType, function: ast.FunctionDef) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each argument of a function on the page."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    missing = len(arguments) - len(function.args.defaults)
    defaults = [inspect.Parameter.empty] * missing + [evaluated(module, node) for node in function.args.defaults]
    return {
        argument.arg: (evaluated(module, argument.annotation), default)
        for argument, default in zip(arguments, defaults, strict=True)
        if argument.arg not in ("self", "cls")
    }


def check_call(module: ModuleType, known: Any, expected: dict[str, tuple[Any, Any]], hints: dict[str, Any]) -> None:
    """The documented arguments are there in this order, and a call needs no others."""
    actual = {name: one for name, one in inspect.signature(known).parameters.items() if name not in ("self", "cls")}
    assert [name for name in actual if name in expected] == list(expected)
    for name, (annotation, default) in expected.items():
        assert hints[name] == annotation, name
        assert actual[name].default == default, name
    assert [name for name, one in actual.items() if name not in expected and one.default is one.empty] == []


def check_function(module: ModuleType, known: Any, stub: ast.FunctionDef) -> None:
    """Arguments, annotations, defaults and the result are those of the page."""
    hints = typing.get_type_hints(known, {**NAMES, **vars(module)})
    check_call(module, known, parameters(module, stub), hints)
    assert hints["return"] == (evaluated(module, stub.returns) or type(None))


def check_class(module: ModuleType, known: Any, stub: ast.ClassDef) -> None:
    """Bases, fields and methods are those of the page."""
    assert all(issubclass(known, evaluated(module, base)) for base in stub.bases)
    fields = {}
    for item in stub.body:
        if isinstance(item, ast.FunctionDef):
            check_function(module, getattr(known, item.name), item)
        elif isinstance(item, ast.Assign):
            assert known[item.targets[0].id].value == evaluated(module, item.value)  # type: ignore[attr-defined]
        elif isinstance(item, ast.AnnAssign):
            default = evaluated(module, item.value) if item.value else inspect.Parameter.empty
            fields[item.target.id] = (evaluated(module, item.annotation), default)  # type: ignore[union-attr]
    if known is Runner:
        assert all(isinstance(getattr(known, name), kind) for name, (kind, _) in fields.items())
    elif fields:
        order = {name: fields[name] for name in inspect.signature(known).parameters if name in fields}
        assert order.keys() == fields.keys()
        check_call(module, known, order, typing.get_type_hints(known, {**NAMES, **vars(module)}))


@pytest.mark.parametrize(("module", "stub"), DOCUMENTED, ids=title)
def test_page_describes_the_code(module: ModuleType, stub: ast.stmt) -> None:
    """Every name of the page exists with the documented value, signature or fields."""
    if isinstance(stub, ast.Assign):
        assert getattr(module, stub.targets[0].id) == evaluated(module, stub.value)  # type: ignore[attr-defined]
    elif isinstance(stub, ast.FunctionDef):
        check_function(module, getattr(module, stub.name), stub)
    else:
        assert isinstance(stub, ast.ClassDef)
        check_class(module, getattr(module, stub.name), stub)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("metrics.events", "METRICS_LOG_PATH Event RunnerInstalled RunnerStart RunnerStop Reconciliation issue_event"),
        ("metrics.type", "GithubJobMetrics"),
        (
            "metrics.runner",
            "FILE_SIZE_BYTES_LIMIT PRE_JOB_METRICS_FILE_NAME POST_JOB_METRICS_FILE_NAME RUNNER_INSTALLED_TS_FILE_NAME "
            "PreJobMetrics PostJobStatus CodeInformation PostJobMetrics RunnerMetrics extract issue_events",
        ),
        ("metrics.storage", "StorageManager MetricsStorage create list_all get delete move_to_quarantine"),
        ("shared_fs", "create list_all get delete"),
        (
            "runner",
            "APROXY_ARM_REVISION APROXY_AMD_REVISION Arch VirtualMachineResources Snap WgetExecutable "
            "CreateRunnerConfig RunnerConfig RunnerStatus RunnerManagerClients Runner",
        ),
        ("lxd", "LxdInstance"),
        ("runner_manager", "RunnerManager"),
        ("errors", "RunnerError RunnerLogsError CorruptMetricDataError GithubClientError LxdError ConfigurationError"),
    ],
)
def test_page_describes_the_whole_interface(module: str, names: str) -> None:
    """No name of the interface is missing on the page."""
    found = {
        stub.targets[0].id if isinstance(stub, ast.Assign) else stub.name  # type: ignore[attr-defined]
        for home, stub in DOCUMENTED
        if home.__name__ == module
    }

    assert set(names.split()) <= found


@pytest.mark.parametrize("name", ["runner_application", "env_file", "config_script", "runner_script", "pre_job_script"])
def test_paths_of_a_runner(name: str) -> None:
    """The paths inside an instance are Path objects, of the class and of each runner."""
    assert isinstance(getattr(Runner, name), Path)
    assert getattr(Runner, name).is_relative_to("/home/ubuntu/github-runner")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Snap("aproxy", "edge", 8), ("aproxy", "edge", 8)),
        (Snap("aproxy", "edge"), ("aproxy", "edge", None)),
        (GithubJobMetrics(queue_duration=1.5, conclusion="success"), (1.5, "success")),
        (VirtualMachineResources(2, "7GiB", "10GiB"), (2, "7GiB", "10GiB")),
        (WgetExecutable("https://host/yq", "yq"), ("https://host/yq", "yq")),
        (WgetExecutable("https://host/yq", "yq", "abc"), ("https://host/yq", "yq")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_unpack(value: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """Small values are tuples with named fields."""
    assert tuple(value) == value == expected
    assert [getattr(value, name) for name in type(value)._fields] == list(expected)  # type: ignore[attr-defined]


def test_attributes_beside_a_tuple() -> None:
    """Resources still name their profile, and an executable has its checksum."""
    assert VirtualMachineResources(2, "7GiB", "10GiB").profile == "cpu-2-mem-7GiB-disk-10GiB"
    assert WgetExecutable("u", "c").sha256 is None
    assert WgetExecutable("u", "c", sha256="abc").sha256 == "abc"


def test_fingerprint_keeps_the_names_of_resources() -> None:
    """Resources go into the fingerprint by name, as before they were tuples, so that no runner is replaced for that."""
    assert plain(VirtualMachineResources(2, "7GiB", "10GiB")) == {"cpu": 2, "memory": "7GiB", "disk": "10GiB"}


def test_fingerprint_tells_resources_apart() -> None:
    """The fingerprint is the same for equal resources, and differs where any of them differs."""
    found = [
        fingerprint(state(resources=VirtualMachineResources(*values)).runners[0], "a.tar.gz", "")
        for values in [(2, "7GiB", "9GiB"), (2, "7GiB", "9GiB"), (2, "9GiB", "7GiB"), (1, "7GiB", "9GiB")]
    ]

    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(metrics.events, "METRICS_LOG_PATH", tmp_path / "metrics.log")
    return tmp_path / "metrics.log"


class SomethingHappened(Event):
    """An event of another module."""

    count: int


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (Event(timestamp=1), "event"),
        (RunnerInstalled(timestamp=1, flavor="f", duration=2), "runner_installed"),
        (SomethingHappened(timestamp=1, count=3), "something_happened"),
        (Event(timestamp=1, event="given"), "given"),
        (SomethingHappened(timestamp=1, count=3, event="given"), "given"),
        (SomethingHappened.model_validate({"timestamp": 1, "count": 3}), "something_happened"),
    ],
)
def test_name_of_an_event(log: Path, event: Event, name: str) -> None:
    """An event's name is its class's in snake case unless another is given, and it is the name in the log."""
    issue_event(event)

    assert event.event == name
    assert json.loads(log.read_text())["event"] == name


@pytest.mark.parametrize("name", ["", None, 7])
def test_name_of_an_event_is_text(name: Any) -> None:
    """A name that is no text, or empty, is refused."""
    with pytest.raises(ValidationError):
        Event(timestamp=1, event=name)


def test_events_are_equal_by_their_values() -> None:
    """Two events with the same values are equal, and the name is one of them."""
    assert Event(timestamp=1) == Event(timestamp=1, event="event")
    assert Event(timestamp=1) != Event(timestamp=1, event="other")


def job(**changes: Any) -> RunnerMetrics:
    values: dict[str, Any] = {
        "installed_timestamp": 1,
        "pre_job": PreJobMetrics(timestamp=2, workflow="w", workflow_run_id="7", repository="o/r", event="push"),
        "post_job": PostJobMetrics(timestamp=3, status=PostJobStatus.NORMAL),
        "runner_name": "r",
    }
    return RunnerMetrics(**{**values, **changes})


def test_metrics_can_be_assigned_to(log: Path) -> None:
    """A field of the metrics can be changed after creation, and what is issued has the new value."""
    found = job()
    found.pre_job.workflow = "changed"
    assert found.post_job is not None
    found.post_job.status = PostJobStatus.ABNORMAL
    found.installed_timestamp = 1.5

    assert issue_events(found, "f", None) == {RunnerStart, RunnerStop}
    start, stop = map(json.loads, log.read_text().splitlines())
    assert (start["workflow"], start["idle"], stop["status"]) == ("changed", 0.5, "abnormal")
    found.post_job = None
    assert issue_events(found, "f", None) == {RunnerStart}


@pytest.mark.parametrize(
    ("change", "value"), [("timestamp", -1), ("timestamp", "soon"), ("workflow", None), ("repository", "no owner")]
)
def test_assigned_values_are_checked(change: str, value: Any) -> None:
    """A value that is no valid argument cannot be assigned either."""
    with pytest.raises(ValidationError):
        setattr(job().pre_job, change, value)


def test_status_and_config_of_a_runner_can_be_assigned_to() -> None:
    """A runner's status and configuration can be changed after creation."""
    status = RunnerStatus()
    status.runner_id, status.online = 7, True
    config = RunnerConfig("app", True, ("a",), Path("/pool"), "r", GithubRepo("o", "r"), ProxyConfig())
    config.name = "other"

    assert status == RunnerStatus(runner_id=7, online=True)
    assert replace(config, name="r").labels == config.labels
    assert config.name == "other"


@pytest.mark.parametrize(
    ("given", "expected"), [(1, "1"), (4711, "4711"), ("7", "7")], ids=["number", "larger number", "text"]
)
def test_run_id_of_a_caller_may_be_a_number(given: Any, expected: str) -> None:
    """A run id that Python code gives as a number becomes text."""
    pre_job = PreJobMetrics(timestamp="1.5", workflow="w", workflow_run_id=given, repository="o/r", event="push")  # type: ignore[arg-type]

    assert (pre_job.workflow_run_id, pre_job.timestamp) == (expected, 1.5)
    assert CodeInformation(code="3").code == 3  # type: ignore[arg-type]


PRE_JOB = {"timestamp": 1.5, "workflow": "w", "workflow_run_id": "7", "repository": "o/r", "event": "push"}
POST_JOB = {"timestamp": 2.5, "status": "abnormal", "status_info": {"code": 3}}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(metrics.storage, "FILESYSTEM_BASE_PATH", tmp_path / "fs")
    monkeypatch.setattr(metrics.storage, "FILESYSTEM_QUARANTINE_PATH", tmp_path / "quarantine")
    return tmp_path


def leave(name: str, pre_job: Any, post_job: Any) -> None:
    """A metrics storage as a runner leaves it."""
    path = metrics.storage.create(name).path
    (path / metrics.runner.RUNNER_INSTALLED_TS_FILE_NAME).write_text("1")
    (path / metrics.runner.PRE_JOB_METRICS_FILE_NAME).write_text(json.dumps(pre_job))
    (path / metrics.runner.POST_JOB_METRICS_FILE_NAME).write_text(json.dumps(post_job))


@pytest.mark.parametrize(
    ("pre_job", "post_job"),
    [
        ({"workflow_run_id": 7}, {}),
        ({"timestamp": "1.5"}, {}),
        ({"timestamp": True}, {}),
        ({"workflow": 7}, {}),
        ({}, {"timestamp": "2.5"}),
        ({}, {"status_info": {"code": "3"}}),
        ({}, {"status_info": {"code": 3.0}}),
        ({}, {"status_info": {"code": True}}),
        ({}, {"status": 1}),
    ],
)
def test_files_of_a_runner_are_not_converted(folders: Path, pre_job: Any, post_job: Any) -> None:
    """A value of another type in a file from inside a runner is corrupt, although Python code may give it."""
    leave("bad", {**PRE_JOB, **pre_job}, {**POST_JOB, **post_job})
    leave("good", PRE_JOB, POST_JOB)

    [found] = extract(metrics.storage, set())

    assert found.runner_name == "good"
    assert found.post_job == PostJobMetrics(
        timestamp=2.5, status=PostJobStatus.ABNORMAL, status_info=CodeInformation(code=3)
    )
    assert [path.name for path in (folders / "quarantine").iterdir()] == ["bad.tar.gz"]


def test_issue_event_is_looked_up_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing metrics.events.issue_event takes effect."""
    issued: list[Event] = []
    monkeypatch.setattr("metrics.events.issue_event", issued.append)

    assert issue_events(job(), "f", GithubJobMetrics(4, "success")) == {RunnerStart, RunnerStop}
    assert issued == [
        RunnerStart(timestamp=2, flavor="f", workflow="w", repo="o/r", github_event="push", idle=1, queue_duration=4),
        RunnerStop(
            timestamp=3,
            flavor="f",
            workflow="w",
            repo="o/r",
            github_event="push",
            status="normal",
            job_duration=1,
            job_conclusion="success",
        ),
    ]


class Broken:
    """A storage manager whose calls fail."""

    def __init__(self, folder: Path, get: Exception | None = None, delete: Exception | None = None) -> None:
        self.folder, self._get, self._delete = folder, get, delete

    def get(self, runner_name: str, /) -> MetricsStorage:
        if self._get:
            raise self._get
        return MetricsStorage(self.folder, runner_name)

    def delete(self, runner_name: str, /) -> None:
        if self._delete:
            raise self._delete

    create = list_all = get


@pytest.mark.parametrize(
    "faults",
    [
        {"get": GetMetricsStorageError("gone")},
        {"get": OSError("gone")},
        {"delete": DeleteMetricsStorageError("held")},
        {"delete": OSError("held")},
    ],
    ids=lambda faults: ", ".join(f"{key} {type(value).__name__}" for key, value in faults.items()),
)
def test_every_failure_of_a_quarantine_is_one_error(folders: Path, faults: dict[str, Exception]) -> None:
    """Whatever fails on the way to the quarantine is a QuarantineMetricsStorageError."""
    (folders / "storage").mkdir()

    with pytest.raises(QuarantineMetricsStorageError, match=r"gone|held"):
        move_to_quarantine(Broken(folders / "storage", **faults), "r")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../x", "nobody"])
def test_quarantine_of_a_name_without_a_storage(folders: Path, name: str) -> None:
    """A name that is no runner's, or that has no storage, is a QuarantineMetricsStorageError."""
    with pytest.raises(QuarantineMetricsStorageError):
        move_to_quarantine(metrics.storage, name)


def test_quarantined_files_are_in_a_folder_of_the_runner(folders: Path) -> None:
    """Two archives that are unpacked in one place do not overwrite each other."""
    for name in ("r-1", "r-2"):
        metrics.storage.create(name)
        (folders / "fs" / name / metrics.runner.RUNNER_INSTALLED_TS_FILE_NAME).write_text(name)
        move_to_quarantine(metrics.storage, name)
        with tarfile.open(folders / "quarantine" / f"{name}.tar.gz") as archive:
            archive.extractall(folders / "unpacked", filter="data")

    assert sorted(str(path.relative_to(folders)) for path in (folders / "unpacked").rglob("*.timestamp")) == [
        f"unpacked/{name}/{metrics.runner.RUNNER_INSTALLED_TS_FILE_NAME}" for name in ("r-1", "r-2")
    ]


def test_quarantine_that_fails_is_logged(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A storage that cannot be moved to quarantine is logged and stops nothing."""
    with caplog.at_level(logging.ERROR):
        metrics.runner.quarantine(metrics.storage, "nobody")

    assert "nobody cannot be moved to quarantine" in caplog.text


def test_errors_have_one_root() -> None:
    """Every error of the charm is a GithubRunnerError."""
    found = [value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == "errors"]

    assert len(found) > 15
    assert all(issubclass(error, errors.GithubRunnerError) for error in found)
