"""The actions of a job: their refs are resolved by GitHub, their archives taken from the cache or downloaded.

As in https://github.com/actions/runner/blob/main/src/Runner.Worker/ActionManager.cs; only composite actions with
commands, whose description is JSON, can be run here.
"""

import json
import os
import shutil
import subprocess
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

from runner_common import VERSION, request

CACHE = "ACTIONS_RUNNER_ACTION_ARCHIVE_CACHE"
SINCE = (2, 309)  # the first version that knows the cache
TIMEOUT = 60


class ActionError(Exception):
    """An action cannot be used."""


class Downloads:
    """Where a job's actions come from. Which it was is written only as a debug message, and to the worker's own log."""

    def __init__(self, work: Path, write: Callable[[str], None], trace: Callable[[str], None], debug: bool) -> None:
        self._folder, self._write, self._trace, self._debugs = work / "_actions", write, trace, debug

    def prepare(self, actions: list[str], service: str, credential: str) -> dict[str, list[str]]:
        """Get each ``OWNER/REPO@REF``; the commands of each."""
        if not actions:
            return {}
        self._write("Prepare all required actions")
        self._write("Getting action download info")
        found = request("POST", f"{service}/actions", credential, {"actions": actions})[1]["actions"]
        return {action: self._get(action, found[action]) for action in actions}

    def _get(self, action: str, info: dict[str, str]) -> list[str]:
        self._write(f"Download action repository '{action}' (SHA:{info['commit']})")
        temporary = self._folder / f"_temp_{uuid.uuid4()}"
        staging = temporary / "_staging"
        staging.mkdir(parents=True)
        try:
            archive = temporary / f"{uuid.uuid4()}.tar.gz"
            if not self._from_cache(info, archive):
                self._download(info["url"], archive)
            done = subprocess.run(["tar", "-xzf", str(archive)], cwd=staging, capture_output=True, text=True)
            if done.returncode:
                raise ActionError(f"Can't use 'tar -xzf' extract archive file: {archive}. {done.stderr}")
            folders = [path for path in staging.iterdir() if path.is_dir()]
            if len(folders) != 1:
                raise ActionError(f"'{archive}' contains '{len(folders)}' directories")
            target = self._folder.joinpath(*action.split("@"))
            shutil.copytree(folders[0], target, dirs_exist_ok=True)
        finally:
            shutil.rmtree(temporary)
        description = json.loads((target / "action.yml").read_text())
        return [step["run"] for step in description["runs"]["steps"]]

    def _from_cache(self, info: dict[str, str], archive: Path) -> bool:
        """Copy the archive of exactly this commit, if the folder has it; one that cannot be read is downloaded."""
        cache = os.environ.get(CACHE, "")
        version = tuple(int(part) for part in VERSION.split(".")[:2])
        if not cache or version < SINCE or not Path(cache).is_dir():
            return False
        self._trace(f"Check if action archive '{info['name']}@{info['commit']}' already exists in '{cache}'")
        file = Path(cache, info["name"].replace("/", "_"), f"{info['commit']}.tar.gz")
        if not file.is_file():
            return False
        self._trace(f"Found action archive '{file}' in cache directory '{cache}'")
        try:
            shutil.copyfile(file, archive)
        except OSError as error:
            self._trace(f"Failed to copy action archive '{file}' to '{archive}'. Error: {error}")
            return False
        self._debug(f"Copied action archive '{file}' to '{archive}'")
        return True

    def _download(self, url: str, archive: Path) -> None:
        sent = urllib.request.Request(url, headers={"User-Agent": f"runner/{VERSION}"})
        with urllib.request.urlopen(sent, timeout=TIMEOUT) as answer, archive.open("wb") as file:
            shutil.copyfileobj(answer, file)
        self._debug(f"Save archive '{url}' into {archive}.")

    def _debug(self, text: str) -> None:
        if self._debugs:
            self._write(f"##[debug]{text}")
