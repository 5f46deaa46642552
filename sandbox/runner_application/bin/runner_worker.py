"""The worker: runs one job in the environment that GitHub promises, and reports it."""

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import runner_actions
import runner_common
from runner_common import ABOUT, ROOT, VERSION, Diagnostics, ServiceError, handle, name_process, request

CODES = {"Succeeded": 100, "Failed": 102, "Canceled": 103}
BATCH = 1000
INTERRUPT_SECONDS = float(os.environ.get("RUNNER_SANDBOX_INTERRUPT_SECONDS") or ABOUT["interrupt"])
TERMINATE_SECONDS = INTERRUPT_SECONDS / 3
STREAM_SECONDS = float(os.environ.get("RUNNER_SANDBOX_STREAM_SECONDS", "10"))
REPORT_SECONDS = 60.0
HOOK = "ACTIONS_RUNNER_HOOK_JOB_STARTED"
JOB_OOM_SCORE = "500"  # the kernel takes the job's processes before the runner's
# What a step's `if:` makes of the job's state so far.
CONDITIONS: dict[str, Callable[[str], bool]] = {
    "success()": lambda state: state == "Succeeded",
    "failure()": lambda state: state == "Failed",
    "cancelled()": lambda state: state == "Canceled",
    "!cancelled()": lambda state: state != "Canceled",
    "always()": lambda state: True,
}


def main(arguments: list[str]) -> int:
    """Run the job that comes through the pipe; the exit code is its result."""
    name_process("Runner.Worker")
    if len(arguments) != 3 or arguments[0] != "spawnclient":
        print("Runner.Worker is started by Runner.Listener")
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        handle(number, lambda *_: None)  # the listener decides; its message comes through the pipe
    with os.fdopen(int(arguments[1]), "rb") as pipe:
        message = json.loads(pipe.readline())
        job = Job(message, Diagnostics("Worker"))
        threading.Thread(target=job.listen, args=(pipe,), daemon=True).start()
        result = job.run()
        os._exit(CODES[result])  # the thread that reads the pipe would hold us up


class Log:
    """Sends the job's lines as they come, in batches, and keeps those that GitHub cannot take now."""

    def __init__(self, url: str, credential: str, diagnostics: Diagnostics) -> None:
        self._url, self._credential, self._diagnostics = url, credential, diagnostics
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        self._lines.put(line)

    def close(self) -> None:
        """Wait until all is sent, but not for ever."""
        self._lines.put(None)
        self._thread.join(REPORT_SECONDS)

    def _send(self) -> None:
        over = False
        while not over:
            batch = [self._lines.get()]
            while len(batch) < BATCH and batch[-1] is not None and not self._lines.empty():
                batch.append(self._lines.get())
            over = batch[-1] is None
            lines = [line for line in batch if line is not None]
            if lines:
                report(self._url, self._credential, {"lines": lines}, self._diagnostics)


def report(url: str, credential: str, body: dict[str, Any], diagnostics: Diagnostics) -> None:
    """Send to GitHub, again and again while it cannot be reached."""
    deadline, pause = time.monotonic() + REPORT_SECONDS, 0.5
    while True:
        try:
            request("POST", url, credential, body, timeout=20)
            return
        except ServiceError as error:
            diagnostics.write(f"GitHub refuses: {error}", "ERR")
            return
        except (OSError, ValueError) as error:
            diagnostics.write(f"Cannot report: {error}", "ERR")
            if time.monotonic() > deadline:
                return
        time.sleep(pause)
        pause = min(pause * 2, 10)


@dataclass
class Step:
    """A step of a job: a program, the condition under which it runs, and what the log calls it."""

    name: str
    command: list[str]
    condition: str
    problem: str = ""  # why it cannot be started


class Job:
    """One job: the hook of the runner's administrator, the steps that actions want first, then the job's own steps."""

    def __init__(self, message: dict[str, Any], diagnostics: Diagnostics) -> None:
        self.job, self.variables, self.event = message["job"], message["variables"], message["event"]
        self.settings, self.diagnostics = message["settings"], diagnostics
        self.url, self.credential = f"{message['service']}/jobs/{self.job['id']}", f"Bearer {self.job['secret']}"
        self.log = Log(f"{self.url}/log", self.credential, diagnostics)
        self.cancelled, self.shutting_down = threading.Event(), threading.Event()
        self.tracking = f"github_{uuid.uuid4()}"
        name = self.variables["GITHUB_REPOSITORY"].rpartition("/")[2]
        self.work = ROOT / self.settings["workFolder"]
        self.temp, self.workspace = self.work / "_temp", self.work / name / name
        self.actions: dict[str, list[str]] = {}  # the commands of each action that a step uses

    def listen(self, pipe) -> None:  # type: ignore[no-untyped-def]
        """Wait for the listener to cancel the job or to shut down; one that is gone counts as shut down."""
        for line in pipe:
            self.diagnostics.write(f"Message from the listener: {line.decode().strip()}")
            if json.loads(line).get("type") == "cancel":
                self.cancelled.set()
            else:
                break
        self.shutting_down.set()
        self.cancelled.set()

    def run(self) -> str:
        """Run and report the job."""
        self.diagnostics.write(f"Job {self.job['id']} started")
        try:
            result = self._steps()
        except OSError as error:
            self.log.write(f"##[error]{error}")
            result = "Failed"
        self._clean_up()
        if self.cancelled.is_set():
            self.log.write("##[error]The operation was canceled.")
            result = "Canceled"
        self.log.close()
        report(f"{self.url}/complete", self.credential, {"result": result}, self.diagnostics)
        self.diagnostics.write(f"Job {self.job['id']} completed with result: {result}")
        return result

    def _steps(self) -> str:
        self.log.write(f"Current runner version: '{VERSION}'")
        self.log.write(f"Runner name: '{self.settings['agentName']}'")
        self.log.write(f"Runner group name: '{self.settings['poolName']}'")
        self.log.write(f"Machine name: '{socket.gethostname()}'")
        shutil.rmtree(self.temp, ignore_errors=True)
        self.temp.mkdir(parents=True)
        self.workspace.mkdir(parents=True, exist_ok=True)
        environment = self._environment()
        # Before any step and any hook, so that no job has a say in where archives are looked for.
        used = list(dict.fromkeys(step["uses"] for step in self.job["steps"] if "uses" in step))
        downloads = runner_actions.Downloads(self.work, self.log.write, self.diagnostics.write, self._debug)
        try:
            self.actions = downloads.prepare(used, self.url, self.credential)
        except (ServiceError, runner_actions.ActionError) as error:
            self.log.write(f"##[error]{error}")
            return "Failed"
        state = "Succeeded"
        for step in self._plan(environment.get(HOOK)):
            if self.cancelled.is_set():
                state = "Canceled"
            # A runner that shuts down evaluates no condition any more.
            if self.shutting_down.is_set() or not CONDITIONS[step.condition](state):
                continue
            if not self._run_step(step, environment) and state == "Succeeded":
                state = "Failed"
        return state

    def _plan(self, hook: str | None) -> Iterator[Step]:
        """All steps in their order; the hook and what actions want first run whatever happened before."""
        if hook:
            problem = ""
            if not hook.endswith((".sh", ".ps1")) or not Path(hook).is_file():
                reason = "Make sure it ends in '.sh' or '.ps1'." if Path(hook).is_file() else "File doesn't exist"
                problem = f"'{hook}' is not a valid path to a script. {reason}"
            yield Step(f"'{hook}'", ["bash", "-e", hook], "always()", problem)
        for step in self.job["steps"]:
            if "pre" in step:
                yield self._script(step["pre"], "always()")
        for step in self.job["steps"]:
            condition = step.get("if", "success()").removeprefix("${{").removesuffix("}}").strip()
            if "uses" in step:
                used = self._script("\n".join(self.actions[step["uses"]]), condition)
                yield replace(used, name=step["uses"])
            else:
                yield self._script(step.get("run", "true"), condition)

    @property
    def _debug(self) -> bool:
        return bool(self.variables.get("RUNNER_DEBUG") == "1")

    def _script(self, text: str, condition: str) -> Step:
        script = self.temp / f"{uuid.uuid4()}.sh"
        script.write_text(text + "\n")
        if condition not in CONDITIONS:
            return Step(text, [], "always()", f"the stand-in has no condition {condition}")
        return Step(text.splitlines()[0] if text else "", ["bash", "-e", str(script)], condition)

    def _run_step(self, step: Step, environment: dict[str, str]) -> bool:
        if step.command[-1:] == [environment.get(HOOK)]:
            self.log.write("A job started hook has been configured by the self-hosted runner administrator")
        if step.problem:
            self.log.write(f"##[error]{step.problem}")
            return False
        self.log.write(f"##[group]Run {step.name}")
        self.log.write(f"shell: {shutil.which('bash')} -e {{0}}")
        self.log.write("##[endgroup]")
        done = self._process(step, environment)
        for line in Path(environment["GITHUB_ENV"]).read_text().splitlines():
            name, separator, value = line.partition("=")
            if separator:
                environment[name] = value
        return done

    def _environment(self) -> dict[str, str]:
        """What GitHub promises a job, on top of what the listener was started with."""
        event = self.temp / "_github_workflow" / "event.json"
        event.parent.mkdir()
        event.write_text(json.dumps(self.event))
        commands = self.temp / "_runner_file_commands"
        commands.mkdir()
        environment = {**os.environ, **self.variables, "CI": "true", "GITHUB_ACTIONS": "true"}
        for name in ("ENV", "PATH", "OUTPUT", "STATE", "STEP_SUMMARY"):
            file = commands / f"{name.lower()}_{uuid.uuid4()}"
            file.touch()
            environment[f"GITHUB_{name}"] = str(file)
        environment.update(GITHUB_EVENT_PATH=str(event), GITHUB_WORKSPACE=str(self.workspace), GITHUB_ACTION="__run")
        environment.update(RUNNER_NAME=self.settings["agentName"], RUNNER_OS="Linux", RUNNER_ENVIRONMENT="self-hosted")
        environment.update(RUNNER_ARCH=runner_common.ARCHITECTURE, RUNNER_TEMP=str(self.temp))
        environment.update(RUNNER_WORKSPACE=str(self.workspace.parent), RUNNER_TOOL_CACHE=str(self.work / "_tool"))
        environment["RUNNER_TRACKING_ID"] = self.tracking
        return environment

    def _process(self, step: Step, environment: dict[str, str]) -> bool:
        """Run a program, its output into the log; whether it succeeded. It inherits how signals are handled."""
        process = subprocess.Popen(
            step.command,
            cwd=self.workspace,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/oom_score_adj").write_text(JOB_OOM_SCORE)
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        stopped = self._await(process, step.condition)
        reader.join(STREAM_SECONDS)
        if reader.is_alive():
            self.log.write("##[warning]The STDIO streams did not close: a child process still holds them.")
        if process.returncode and not stopped:
            code = process.returncode if process.returncode > 0 else 128 - process.returncode
            self.log.write(f"##[error]Process completed with exit code {code}.")
        return process.returncode == 0

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.log.write(line.decode("utf-8", "replace").rstrip("\r\n"))

    def _await(self, process: subprocess.Popen[bytes], condition: str) -> bool:
        """Wait for the program; one that is stopped is interrupted, terminated, then killed. Whether it was stopped.

        A cancelled job stops a step only if its condition does not hold any more. Signals go to the program alone.
        """
        while not self._stops(condition):
            try:
                process.wait(0.05)
                return False
            except subprocess.TimeoutExpired:
                continue
        for number, seconds in ((signal.SIGINT, INTERRUPT_SECONDS), (signal.SIGTERM, TERMINATE_SECONDS)):
            process.send_signal(number)
            try:
                process.wait(seconds)
                return True
            except subprocess.TimeoutExpired:
                continue
        process.kill()
        process.wait()
        return True

    def _stops(self, condition: str) -> bool:
        """Whether a step with this condition is to be stopped now."""
        return self.shutting_down.is_set() or (self.cancelled.is_set() and not CONDITIONS[condition]("Canceled"))

    def _clean_up(self) -> None:
        """Kill what the job left running: what has the job's mark in its environment."""
        self.log.write("Cleaning up orphan processes")
        mark = f"RUNNER_TRACKING_ID={self.tracking}".encode()
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    name = (folder / "comm").read_text().strip()
                    self.log.write(f"Terminate orphan process: pid ({folder.name}) ({name})")
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue  # ended meanwhile, or another user's
