"""A unit of a packed charm as processes of this machine: Juju's environment and hook tools, without a machine.

Hooks run as `nobody`: a charm that goes further than a test expects changes nothing here.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import yaml

from sandbox.juju.unit import AGENT_FOLDER, TOOL

SOURCES = Path(__file__).resolve().parents[2] / "sandbox/juju"
NOBODY = 65534
UNIT = "github-runner/0"
STATUS = {"status": "waiting", "message": "agent initialising", "since": "", "data": {}}
# What the sandbox's agent does for one hook, short of everything that needs systemd.
RUN_ONE = """
import json, sys
import running, store

context = running.open_context(store.read(), **json.loads(sys.argv[1]))
dispatch = str(running.charm_dir(store.read()) / "dispatch")
code, stdout, stderr = running.run_in_context(store.read(), context, [dispatch], keep_output=True)
latest = running.close_context(context, code == 0)
print(json.dumps({"code": code, "output": stdout + stderr, "buffer": latest["buffer"], "state": store.read()}))
"""


class LocalUnit:
    """One unit without options, in a folder of its own that stands for /var/lib/juju and /var/log/juju."""

    def __init__(self, charm: Path, root: Path) -> None:
        self.root = root
        self.charm_dir = root / "lib/agents/unit-github-runner-0/charm"
        unpack(charm, self.charm_dir)
        self._install_hook_tools()
        state = self._first_state()
        for name in ("lib/sandbox/contexts", "log"):
            (root / name).mkdir(parents=True)
        (root / "lib/sandbox/state.json").write_text(json.dumps(state))
        root.chmod(0o755)
        for path in (root, *root.rglob("*")):
            # Not what a link points to.
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def hook(self, name: str, **about: str) -> dict[str, Any]:
        """Run dispatch for a hook; gives the exit code, the output and the state afterwards."""
        return self._dispatch(kind="hook", name=name, **about)

    def action(self, name: str) -> dict[str, Any]:
        """Run dispatch for an action; its buffer has the results or the failure."""
        return self._dispatch(kind="action", name=name, action={"uuid": "1", "name": name, "params": {}})

    def python(self, script: str) -> "subprocess.CompletedProcess[str]":
        """Run a script by the Python that dispatch has linked, in the charm's folder."""
        variables = {"PYTHONPATH": str(self.charm_dir / "src"), "PATH": os.defpath}
        return self._as_nobody([str(self.charm_dir / "venv/bin/python"), "-c", script], self.charm_dir, variables)

    def log(self) -> str:
        """What the charm logged."""
        file = self.root / "log/unit-github-runner-0.log"
        return file.read_text() if file.exists() else ""

    def _dispatch(self, **context: object) -> dict[str, Any]:
        done = self._as_nobody(["/usr/bin/python3", "-c", RUN_ONE, json.dumps(context)], self.root / "agent", {})
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _as_nobody(
        self, command: list[str], folder: Path, variables: dict[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
        )

    def _install_hook_tools(self) -> None:
        """The sandbox's own, with the folders of a machine's Juju moved into the test's folder."""
        folder, names = self.root / "agent", self.root / "lib/tools/unit-github-runner-0"
        folder.mkdir()
        for file in ("hooktools", "running", "store"):
            text = (SOURCES / f"{file}.py").read_text()
            text = text.replace("/var/lib/juju", str(self.root / "lib")).replace(
                "/var/log/juju", str(self.root / "log")
            )
            (folder / f"{file}.py").write_text(text)
        tool = folder / "tool"
        tool.write_text(TOOL.replace(AGENT_FOLDER, str(folder)))
        tool.chmod(0o755)
        listing = ("/usr/bin/python3", "-c", "import hooktools; print(*hooktools.TOOLS)")
        found = subprocess.run(listing, cwd=folder, capture_output=True, text=True, check=True)
        names.mkdir(parents=True)
        for name in found.stdout.split():
            (names / name).symlink_to(tool)

    def _first_state(self) -> dict[str, Any]:
        options = yaml.safe_load((self.charm_dir / "config.yaml").read_text())["options"]
        relation = {"endpoint": "cos-agent", "interface": "cos_agent", "remote_app": "agent"}
        bags: dict[str, Any] = {"units": {"agent/0": {}}, "remote_app_data": {}, "local_unit": {}, "local_app": {}}
        return {
            "app": "github-runner",
            "unit": UNIT,
            "model": {"name": "local", "uuid": "00000000-0000-4000-8000-000000000000", "config": {}},
            "charm": {"config": options},
            "relations": {"0": {**relation, **bags}},
            "unit_status": STATUS,
            "app_status": STATUS,
            **{name: {} for name in ("config", "secrets", "storage")},
            "history": [],
            **dict.fromkeys(("version", "zone"), ""),
            "contexts": 0,
        }


def unpack(charm: Path, folder: Path) -> None:
    """Lay a charm out as Juju does, with the files' modes."""
    with ZipFile(charm) as archive:
        for item in archive.infolist():
            path = archive.extract(item, folder)
            if mode := item.external_attr >> 16 & 0o777:
                Path(path).chmod(mode)
