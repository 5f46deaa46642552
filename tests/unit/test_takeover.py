"""What the previous charm leaves on a machine, in a folder of the test: what is removed, and what must stay."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import ops.storage
import pytest

import provision
from errors import CommandError, LxdError
from host import agent, state_database, systemd, takeover, triggers
from host.takeover import Places
from tests.support.fakes import TEMPLATES
from tests.support.systemctl import Systemctl

TOKEN = "ghp_0f1e2d3c4b5a69788796a5b4c3d2e1f001234567"
SERVICE_TOKEN = "5e12f1ce70ce25e12f1ce70ce25e12f1"
OWN_UNITS = {"ghro.reconcile-runners.timer", "ghro.reconcile-runners.service"}


class FakeLxd:
    """LXD with its storage pools."""

    def __init__(self, *sources: str) -> None:
        self.sources = sources
        self.down = False

    def get(self, *_: str, **__: Any) -> list[dict[str, Any]]:
        if self.down:
            raise LxdError("LXD does not answer")
        return [{"name": f"pool-{source}", "config": {"source": source}} for source in self.sources]


class World:
    """A machine as the previous charm leaves it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.places = Places(root / "var/lib/juju/agents/unit-github-runner-0/charm", root)
        self.lxd = FakeLxd()
        self.commands: list[list[str]] = []
        self.broken = ""

    def run(self, command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        """Programs that change files run; what would change the machine of the test is recorded."""
        self.commands.append(command)
        if self.broken and any(self.broken in word for word in command):
            raise CommandError(f"{command[0]} does not work")
        if command[0] in ("shred", "rm"):
            assert all(word.startswith(("-", str(self.root))) for word in command[1:])
            return subprocess.run(command, check=True, capture_output=True, text=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    def write(self, path: str, text: str = "x\n") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def take_over(self) -> bool:
        return takeover.take_over(self.lxd, self.places, OWN_UNITS)  # type: ignore[arg-type]

    def found(self, word: str) -> list[str]:
        done = subprocess.run(["grep", "-raFl", word, str(self.root)], check=False, capture_output=True, text=True)
        return [str(Path(line).relative_to(self.root)) for line in done.stdout.splitlines()]

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()}


CHARM = "var/lib/juju/agents/unit-github-runner-0/charm"
UNITS = "etc/systemd/system"
LEFT = {
    f"{CHARM}/charm_state.json": f'{{"charm_config": {{"token": "{TOKEN}"}}}}',
    f"{CHARM}/service_token": SERVICE_TOKEN,
    f"{UNITS}/repo-policy-compliance.service": f'[Service]\nEnvironment="GITHUB_TOKEN={TOKEN}"\n',
    f"{UNITS}/repo-policy-compliance.service.d/token.conf": f'[Service]\nEnvironment="CHARM_TOKEN={SERVICE_TOKEN}"\n',
    f"{UNITS}/ghro.ensure-metrics.timer": '[Service]\nExecStart=juju-run "github-runner/0" true\n',
    "etc/cron.d/build-runner-image": "0 0 * * * ubuntu bash scripts/build-lxd-image.sh\n",
    "home/ubuntu/github-runner-app": "tarball",
    "home/ubuntu/repo_policy_compliance_service/app.py": "import flask\n",
    "usr/local/lib/python3.10/dist-packages/repo_policy_compliance/__init__.py": "",
    "usr/local/lib/python3.10/dist-packages/repo_policy_compliance-1.9.1.dist-info/METADATA": "",
}
KEPT = {
    f"{CHARM}/src/charm.py": "",
    f"{UNITS}/ghro.reconcile-runners.timer": "",
    f"{UNITS}/ghro.other.timer": '[Service]\nExecStart=juju-run "github-runner/1" true\n',
    f"{UNITS}/another.service": "",
    "etc/cron.d/another": "0 0 * * * root true\n",
    "etc/cron.d/github-runner": "0 0 * * * root {root}/var/lib/juju/agents/unit-github-runner-1/charm/scripts/x\n",
    "var/lib/juju/agents/unit-github-runner-1/charm/service_token": "another's",
    "usr/local/lib/python3.10/dist-packages/flask/__init__.py": "",
    "home/ubuntu/mine": "",
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = World(tmp_path / "root")
    for path, text in (LEFT | KEPT).items():
        found.write(path, text.replace("{root}", str(found.root)))
    found.write("etc/modules", "loop\nbr_netfilter\n# br_netfilter\nbr_netfilter\n")
    monkeypatch.setattr(takeover, "run", found.run)
    monkeypatch.setattr(systemd, "run", found.run)
    monkeypatch.setattr(state_database, "run", found.run)
    return found


def test_everything_that_the_previous_charm_left_is_removed(world: World) -> None:
    """Its files go, those of others stay, and no token is found in any file."""
    assert world.take_over()

    assert world.files() == {*KEPT, "etc/modules"}
    assert world.found(TOKEN) == world.found(SERVICE_TOKEN) == []
    assert (world.root / "etc/modules").read_text() == "loop\n# br_netfilter\n"


def test_files_with_a_token_are_overwritten(world: World) -> None:
    """Unlinking alone would leave the token on the disk."""
    world.take_over()

    shredded = {word for command in world.commands if command[0] == "shred" for word in command[3:]}
    secret = [path for path, text in LEFT.items() if TOKEN in text or SERVICE_TOKEN in text]
    assert shredded == {str(world.root / path) for path in secret}


def test_a_second_take_over_does_nothing(world: World) -> None:
    """It may be repeated at any time, and costs no program then."""
    world.take_over()
    world.commands.clear()

    assert world.take_over()
    assert world.commands == []


@pytest.mark.parametrize("broken", ["charm_state.json", "disable", "github-runner-app", "LXD"])
def test_a_step_that_fails_stops_no_other_and_is_repeated(
    world: World, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """The failure is logged, everything else is removed, and the next take-over completes the work."""
    world.write("storage/ram/.keep").unlink()
    world.broken, world.lxd.down = broken, broken == "LXD"

    assert not world.take_over()
    assert "the next event tries again" in caplog.text
    left = world.files() - {*KEPT, "etc/modules"}
    assert left == {path for path in LEFT if broken in path or (broken == "disable" and "ghro." in path)}

    world.broken, world.lxd.down = "", False
    assert world.take_over()
    assert world.files() == {*KEPT, "etc/modules"}


def test_an_unexpected_error_of_a_step_stops_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in one step must not keep a token on the machine."""

    def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        if command[-1].endswith("/service_token"):
            raise ZeroDivisionError
        return world.run(command, **options)

    monkeypatch.setattr(takeover, "run", run)

    assert not world.take_over()
    assert world.files() == {*KEPT, "etc/modules", f"{CHARM}/service_token"}


@pytest.mark.parametrize("path", [*LEFT, "etc/modules", "storage/ram"])
def test_links_are_never_followed(world: World, tmp_path: Path, path: str) -> None:
    """A link in the place of what is removed may point anywhere: its target stays."""
    target = tmp_path / "outside"
    source = world.root / path
    if source.is_dir() or "storage" in path:
        target.mkdir()
    else:
        shutil.copy(source, target)
        (target.parent / "copy").write_bytes(target.read_bytes())
        source.unlink()
    source.parent.mkdir(parents=True, exist_ok=True)
    source.symlink_to(target)

    world.take_over()

    assert target.is_dir() or target.read_bytes() == (tmp_path / "copy").read_bytes()


def test_what_another_unit_of_the_previous_charm_uses_is_kept(world: World) -> None:
    """Two units on one machine share the policy service: it goes with the last upgrade, this unit's tokens go now."""
    other = world.write("var/lib/juju/agents/unit-github-runner-1/charm/charm_state.json", "{}")

    assert world.take_over()
    left = world.files() - set(KEPT)
    assert f"{UNITS}/repo-policy-compliance.service" in left
    assert "home/ubuntu/github-runner-app" in left
    assert not left & {f"{CHARM}/charm_state.json", f"{CHARM}/service_token", f"{UNITS}/ghro.ensure-metrics.timer"}

    other.unlink()
    assert world.take_over()
    assert world.files() == {*KEPT, "etc/modules"}


def test_memory_storage_is_removed_once_no_pool_lies_on_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runners may still be busy when the charm is upgraded."""
    folder = world.root / "storage/ram"
    folder.mkdir(parents=True)
    world.write("etc/fstab", f"UUID=1 / ext4 defaults 0 1\ntmpfs {folder} tmpfs size=9g 0 0\n")
    monkeypatch.setattr(takeover, "is_mounted", lambda path: path == folder)
    world.lxd.sources = (str(folder),)
    assert not world.take_over()
    assert folder.is_dir()

    world.lxd.sources = ("/run/github-runner-pool",)
    assert world.take_over()
    assert ["umount", str(folder)] in world.commands
    assert not folder.exists()
    assert (world.root / "etc/fstab").read_text() == "UUID=1 / ext4 defaults 0 1\n"


STORED = "GithubRunnerCharm/StoredStateData[_stored]"


@pytest.fixture
def database(world: World) -> Path:
    """The database of ops as the previous charm leaves it, with earlier tokens in free pages."""
    path = world.places.charm / state_database.NAME
    with closing(ops.storage.SQLiteStorage(path)) as storage:
        storage.save_snapshot("StoredStateData[_stored]", {"event_count": 7})
        for number in range(40):
            storage.save_snapshot(f"GithubRunnerCharm/on/start[{number}]", {"text": TOKEN * 20})
        storage.save_snapshot(STORED, {"token": TOKEN, "path": "octo-org/demo"})
        storage.save_notice("GithubRunnerCharm/on/start[1]", "GithubRunnerCharm", "_on_start")
        for number in range(40):
            storage.drop_snapshot(f"GithubRunnerCharm/on/start[{number}]")
        storage.commit()
    assert f"{CHARM}/.unit-state.db" in world.found(TOKEN)
    path.with_name(".unit-state.db-journal").write_bytes(bytes(512) + TOKEN.encode())
    return path


def content(path: Path) -> tuple[list[str], list[Any]]:
    with closing(ops.storage.SQLiteStorage(path)) as storage:
        return sorted(storage.list_snapshots()), list(storage.notices())


def test_the_stored_state_of_the_previous_charm_is_removed(world: World, database: Path) -> None:
    """No byte of the token is left in the database, in its journal or beside it. What ops needs is kept."""
    (world.root / CHARM / "charm_state.json").unlink()
    (world.root / UNITS / "repo-policy-compliance.service").unlink()
    database.chmod(0o600)

    assert state_database.remove_stored_state(world.places.charm)

    assert world.found(TOKEN) == []
    shredded = [word for command in world.commands if command[0] == "shred" for word in command[3:]]
    assert shredded == [f"{database}-journal", f"{database}.old"]
    notice = ("GithubRunnerCharm/on/start[1]", "GithubRunnerCharm", "_on_start")
    assert content(database) == (["StoredStateData[_stored]"], [notice])
    assert database.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in database.parent.glob(".unit-state*")] == [database.name]
    with closing(ops.storage.SQLiteStorage(database)) as storage:
        storage.save_notice("second", "observer", "method")
        assert [notice[0] for notice in storage.notices()] == ["GithubRunnerCharm/on/start[1]", "second"]


def test_a_write_ahead_log_is_removed_as_well(world: World, database: Path) -> None:
    """A database may have been left with one; its rows are in the new database, the token is nowhere."""
    database.with_name(".unit-state.db-journal").unlink()
    copy = world.root / "copy.db"
    with closing(sqlite3.connect(database)) as open_database:
        open_database.execute("PRAGMA journal_mode = WAL")
        open_database.execute("INSERT INTO snapshot VALUES ('kept', 'x')")
        open_database.execute("UPDATE snapshot SET data = ? WHERE handle = ?", (TOKEN + "new", STORED))
        open_database.commit()
        # As after a loss of power: the log is still there.
        for suffix in ("", "-wal"):
            shutil.copy(f"{database}{suffix}", f"{copy}{suffix}")
    for suffix in ("", "-wal"):
        Path(f"{copy}{suffix}").replace(f"{database}{suffix}")

    assert state_database.remove_stored_state(world.places.charm)

    assert [path for path in world.found(TOKEN) if "unit-state" in path] == []
    assert content(database)[0] == ["StoredStateData[_stored]", "kept"]


def test_a_clean_database_is_left_alone(world: World, database: Path) -> None:
    """Every hook looks, and one row is read."""
    state_database.remove_stored_state(world.places.charm)
    before, world.commands = database.stat(), []

    assert not state_database.remove_stored_state(world.places.charm)

    assert (database.stat().st_ino, database.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert world.commands == []


@pytest.mark.parametrize("content", [None, b"", b"no database" * 100])
def test_a_database_that_is_not_there_or_not_one_is_left_alone(world: World, content: bytes | None) -> None:
    """The first hook of a unit has none; a damaged one is for ops to complain about."""
    path = world.places.charm / state_database.NAME
    if content is not None:
        path.write_bytes(content)

    assert not state_database.remove_stored_state(world.places.charm)

    assert (path.read_bytes() if path.exists() else None) == content


def test_a_locked_database_waits_for_the_next_hook(
    world: World, database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook that was given up may still hold it."""
    monkeypatch.setattr(state_database, "TIMEOUT", 0.01)
    with closing(ops.storage.SQLiteStorage(database)) as storage:
        storage.save_snapshot("held", {})
        assert not state_database.remove_stored_state(world.places.charm)
    assert "database is locked" in caplog.text

    assert state_database.remove_stored_state(world.places.charm)
    assert [path for path in world.found(TOKEN) if "unit-state" in path] == []


class Killed(BaseException):
    """Ends the process as far as the test is concerned."""


def end_process(world: World, monkeypatch: pytest.MonkeyPatch, end_at: int) -> None:
    """Let the process be killed before or after one of its changes to the folder, from the end of the copy on."""
    count = iter(range(1000))

    def dying(call: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(count) == end_at:
                raise Killed
            result = call(*arguments, **options)
            if next(count) == end_at:
                raise Killed
            return result

        return wrapped

    monkeypatch.setattr(Path, "chmod", dying(Path.chmod))
    monkeypatch.setattr(state_database, "run", dying(world.run))
    monkeypatch.setattr("host.state_database.os.link", dying(os.link))
    monkeypatch.setattr(Path, "replace", dying(Path.replace))


@pytest.mark.parametrize("end_at", range(8))
def test_a_hook_that_is_killed_leaves_a_whole_database(world: World, database: Path, end_at: int) -> None:
    """At every moment ops finds its rows, and the next hook completes the work."""
    with pytest.MonkeyPatch.context() as patch:
        end_process(world, patch, end_at)
        with pytest.raises(Killed):
            state_database.remove_stored_state(world.places.charm)
    with closing(sqlite3.connect(database)) as found:
        assert ("StoredStateData[_stored]",) in found.execute("SELECT handle FROM snapshot").fetchall()

    state_database.remove_stored_state(world.places.charm)

    assert [path for path in world.found(TOKEN) if "unit-state" in path] == []
    assert content(database)[0] == ["StoredStateData[_stored]"]
    assert [path.name for path in database.parent.glob(".unit-state*")] == [database.name]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of a charm, and a folder of systemd units."""
    source = tmp_path / "charm" / "src"
    source.mkdir(parents=True)
    (source / "a.py").write_text("1\n")
    monkeypatch.setattr(triggers, "SOURCE", source)
    monkeypatch.setattr(systemd, "FOLDER", tmp_path / "units")
    return source


def test_new_code_restarts_the_watcher(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its unit file names the version of the code, so that new code is a changed unit; the same code is none."""
    systemctl = Systemctl(monkeypatch)
    jinja = provision.environment(TEMPLATES)
    assert triggers.agent_is_current("github-runner/0")
    assert agent.ensure(jinja, "github-runner/0", True, 0)
    assert triggers.agent_is_current("github-runner/0")
    assert not agent.ensure(jinja, "github-runner/0", True, 0)

    os.utime(code / "a.py", (0, 0))
    assert triggers.agent_is_current("github-runner/0")
    for change in (lambda: (code / "a.py").write_text("2\n"), lambda: (code / "a.py").rename(code / "b.py")):
        systemctl.calls.clear()
        change()
        assert not triggers.agent_is_current("github-runner/0")
        assert agent.ensure(jinja, "github-runner/0", True, 0)
        assert f"restart {triggers.agent('github-runner/0')}" in systemctl.calls


def test_another_port_restarts_the_agent(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port of the metrics is in the unit file, so that a changed one takes effect; with 0 there is none."""
    Systemctl(monkeypatch)
    jinja = provision.environment(TEMPLATES)

    for watch, port, end in ((True, 0, " --watch"), (True, 9464, " --watch --metrics-port 9464"), (False, 1, " 1")):
        assert agent.ensure(jinja, "github-runner/0", watch, port)
        text = (systemd.FOLDER / triggers.agent("github-runner/0")).read_text()
        [line] = [line for line in text.splitlines() if line.startswith("ExecStart=")]
        assert line.endswith(end)
        assert not agent.ensure(jinja, "github-runner/0", watch, port)


def test_an_operators_own_policy_service_is_kept(world: World) -> None:
    """A service of the same name that does not hold the previous charm's token or folder is somebody else's."""
    own = "[Service]\nExecStart=/opt/policy/bin/serve\n"
    for path in (f"{UNITS}/repo-policy-compliance.service.d/token.conf", f"{CHARM}/charm_state.json"):
        (world.root / path).unlink()
    (world.root / f"{CHARM}/service_token").unlink()
    (world.root / "home/ubuntu/repo_policy_compliance_service/app.py").unlink()
    (world.root / "home/ubuntu/repo_policy_compliance_service").rmdir()
    unit = world.write(f"{UNITS}/repo-policy-compliance.service", own)

    assert not takeover.is_found(world.places)
    assert world.take_over()

    assert unit.read_text() == own
    assert "usr/local/lib/python3.10/dist-packages/repo_policy_compliance/__init__.py" in world.files()
