"""The stand-in for GitHub's runner agent, unpacked in a folder."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandbox import github
from sandbox.github.control import GitHubControl

TOKEN = "ghp_0123456789abcdef"
REPOSITORY, ORGANISATION = "org/repo", "org"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # the system's python3, as in an instance


def api(server: github.GitHub, method: str, path: str) -> Any:
    """A call of the REST API; only used for what always succeeds."""
    headers = {"Authorization": f"Bearer {TOKEN}", "User-Agent": "test"}
    request = urllib.request.Request(f"{server.api_url}{path}", headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.loads(answer.read() or b"null")


class Installation:
    """An unpacked runner agent with a clean environment; it ends what it started."""

    def __init__(self, server: github.GitHub, agent: Path, folder: Path, path: str = REPOSITORY) -> None:
        self.server, self.folder, self.path = server, folder, path
        self.processes: list[subprocess.Popen[bytes]] = []
        shutil.copytree(agent, folder, symlinks=True)
        self.environment = {"PATH": PATH, "HOME": str(folder), "LANG": "C.UTF-8"}
        self.environment.update(RUNNER_SANDBOX_CONFIGURE_SECONDS="0", RUNNER_SANDBOX_STREAM_SECONDS="0.3")
        self.environment.update(RUNNER_SANDBOX_FIRST_PAUSE="0.1", RUNNER_SANDBOX_RETRY_SECONDS="0.1")
        self.environment.update(RUNNER_SANDBOX_INTERRUPT_SECONDS="1.5")
        if os.getuid() == 0:
            self.environment["RUNNER_ALLOW_RUNASROOT"] = "1"

    def token(self, kind: str = "registration") -> str:
        place = "repos" if "/" in self.path else "orgs"
        token: str = api(self.server, "POST", f"/{place}/{self.path}/actions/runners/{kind}-token")["token"]
        return token

    def config(self, *arguments: str, **environment: str) -> tuple[str, int]:
        """Run config.sh; what it printed and its exit code."""
        command = [str(self.folder / "config.sh"), *arguments]
        done = subprocess.run(
            command,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout + done.stderr, done.returncode

    def register(self, name: str, *more: str, ephemeral: bool = True) -> None:
        flags = ("--unattended", *(("--ephemeral",) if ephemeral else ()))
        url = f"{self.server.url}/{self.path}"
        output, code = self.config("--url", url, "--token", self.token(), "--name", name, *flags, *more)
        assert code == 0, output

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start run.sh (or what is named) in the background, output into a file."""
        with (self.folder / "output").open("a") as output:
            process = subprocess.Popen(
                # Also where the tests themselves run with SIGINT ignored, as in the background of a script.
                ["env", "--default-signal=INT,QUIT", *(command or [str(self.folder / "run.sh")])],
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def diagnostics(self, program: str) -> str:
        """What the listener or the worker has written to its logs."""
        return "".join(path.read_text() for path in sorted((self.folder / "_diag").glob(f"{program}_*")))

    def settled(self) -> bool:
        """Whether nothing of this installation runs any more."""
        return not list(self.running())

    def running(self) -> Iterator[tuple[int, str]]:
        """Process ids of listeners and workers of this folder."""
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    line = (folder / "cmdline").read_bytes().decode()
                except OSError:
                    continue
                if re.search(f"{self.folder}/bin[^/]*/Runner[.]", line):
                    yield int(folder.name), "Listener" if "Runner.Listener" in line else "Worker"

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        mark = f"HOME={self.folder}".encode()  # also what a job left behind when its worker was killed
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)


# The job --------------------------------------------------------------------------------------------------------------
def run_job(
    control: GitHubControl, runner: Installation, command: str, env: str = "", **fields: object
) -> dict[str, Any]:
    """Run one job on a fresh registration and return it."""
    runner.register("one")
    if env:
        (runner.folder / ".env").write_text(env)
    runner.start()
    return control.wait_job(control.add_job(REPOSITORY, command, **fields)["id"], timeout=15)
