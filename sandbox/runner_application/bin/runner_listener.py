"""The listener: the runner agent's command line, and the loop that waits for jobs.

Exit codes of `run`: 0 done, 1 not to be tried again, 2 to be tried again, 3 and 4 an update is under way (4 for an
ephemeral runner), 5 session conflict, 7 version too old.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import runner_configure
from runner_common import (
    ABOUT,
    FOLDER,
    ROOT,
    VERSION,
    Diagnostics,
    ServiceError,
    handle,
    load_environment,
    name_process,
    request,
    take_inputs,
)
from runner_configure import TerminatedError, say

RESULTS = {100: "Succeeded", 102: "Failed", 103: "Canceled"}
CONFLICT_SECONDS = 240.0
# The first version that tells its deprecation by the exit code.
EXIT_CODE_7 = (2, 333, 0)
FIRST_PAUSE = float(os.environ.get("RUNNER_SANDBOX_FIRST_PAUSE", "1"))
LONGEST_PAUSE = 30.0
SHUTDOWN_SECONDS = 30.0
RENEW_SECONDS = 0.3
DELETED = (
    "Failed to create a session. The runner registration has been deleted from the server, please re-configure. "
    "Runner registrations are automatically deleted for runners that have not connected to the service recently."
)
# Waits for the listener's end, exchanges the folders of programs, and says that it is done.
UPDATE = """
while kill -0 "$1" 2> /dev/null; do sleep 0.05; done
if [ -h bin ]; then rm bin; else mv bin "bin.$2"; fi
ln -s "bin.$3" bin
touch update.finished
"""


class StopSignal(BaseException):
    """SIGINT or SIGTERM came."""


class OverError(Exception):
    """The listener ends with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main(arguments: list[str]) -> int:
    """Do what the command line says and return the exit code."""
    name_process("Runner.Listener")
    load_environment()
    inputs = take_inputs()
    command, rest = (arguments[0], arguments[1:]) if arguments else ("run", [])
    if command == "--version":
        say(VERSION)
        return 0
    log = Diagnostics("Runner")
    try:
        if command == "configure":
            runner_configure.configure(runner_configure.parse(rest, inputs), log)
        elif command == "remove":
            runner_configure.remove(runner_configure.parse(rest, inputs), log)
        elif command == "run":
            runner_configure.take_jit_config(rest, inputs)
            return Listener(log).run()
        else:
            raise TerminatedError(f"Unrecognized command-line input arguments: '{command}'.")
    except TerminatedError as error:
        log.write(str(error), "ERR")
        say(str(error))
        return 1
    return 0


def now() -> str:
    """The time as the listener prints it."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())


class Listener:
    """Waits for jobs and has each done by a worker, a process of its own."""

    def __init__(self, log: Diagnostics) -> None:
        self.log = log
        self.worker: subprocess.Popen[bytes] | None = None
        self.pipe: int = -1  # to the worker
        self.job: dict[str, Any] = {}
        self.session = ""
        self.stopping = False
        self.cancelled = False

    def run(self) -> int:
        """Listen until there is a reason to end."""
        if not runner_configure.configured():
            say("Not configured. Run config.(sh/cmd) to configure the runner.")
            return 1
        self.settings, self.secret = runner_configure.settings(), runner_configure.secret()
        self.url = f"{self.settings['serverUrl']}/runners/{self.settings['agentId']}"
        for number in (signal.SIGINT, signal.SIGTERM):
            handle(number, self._stop)
        try:
            self._open_session()
            if not self.stopping:
                say(f"{now()}: Listening for Jobs")
            while not self.stopping:
                self._step()
        except OverError as over:
            return over.code
        except StopSignal:
            pass
        return self._shut_down()

    def _stop(self, number: int, frame: object) -> None:
        """Interrupt what is being done. What is raised is lost inside a finalizer: each loop looks at ``stopping``."""
        if not self.stopping:  # only once: the shutting down itself is not to be interrupted
            self.stopping = True
            raise StopSignal

    def _open_session(self) -> None:
        started = time.monotonic()
        pause = FIRST_PAUSE
        while not self.stopping:
            try:
                body = {"version": VERSION}
                self.session = request("POST", f"{self.url}/sessions", f"Bearer {self.secret}", body)[1]["session"]
                break
            except ServiceError as error:
                if error.code != "session_conflict":
                    self._refused(error)
                self.log.write(str(error), "ERR")
                say("A session for this runner already exists.")
                if time.monotonic() - started > CONFLICT_SECONDS:
                    raise OverError(5) from None
            except (OSError, ValueError) as error:
                self.log.write(f"Cannot create a session: {error}", "ERR")
                say(f"{now()}: Runner connect error: {error}. Retrying until reconnected.")
            pause = _wait(pause)
        else:
            return
        say(f"\n√ Connected to GitHub\n\nCurrent runner version: '{VERSION}'")

    def _refused(self, error: ServiceError) -> None:
        """End on an answer that no retry changes."""
        self.log.write(f"{error.status} {error}", "ERR")
        if error.code == "version_deprecated":
            say(f"An error occurred: {error}")
            raise OverError(7 if tuple(map(int, VERSION.split("."))) >= EXIT_CODE_7 else 1)
        say(DELETED if error.code == "deleted" else f"An error occurred: {error}")
        raise OverError(1)

    def _step(self) -> None:
        """Ask once for a message and act on it; without a network again and again."""
        pause = FIRST_PAUSE
        while not self.stopping:
            try:
                target = f"{self.url}/messages/{self.session}"
                _, message = request("GET", target, f"Bearer {self.secret}")
                break
            except ServiceError as error:
                self._poll_refused(error)
                return
            except (OSError, ValueError) as error:
                self.log.write(f"Cannot ask for a message: {error}", "ERR")
                say(f"{now()}: Runner connect error: {error}. Retrying until reconnected.")
                pause = _wait(pause)
                self._reap()
        else:
            return
        if message.get("type") == "job":
            self._acquire(message)
        elif message.get("type") == "update":
            self._update(message["version"])
        elif message.get("type") == "cancel":
            self._cancel()
        self._reap()

    def _poll_refused(self, error: ServiceError) -> None:
        if error.code == "session_ended":
            self._open_session()
        elif self.worker is not None and error.code == "deleted":
            self._finish()  # an ephemeral runner's registration ends with its job
        else:
            self._refused(error)

    def _acquire(self, message: dict[str, Any]) -> None:
        """Take the job that was offered. One that is no longer available is skipped, and the next message awaited."""
        job = message["job"]
        try:
            request("POST", f"{self.settings['serverUrl']}/jobs/{job['id']}/acquire", f"Bearer {job['secret']}", {})
        except ServiceError as error:
            self.log.write(f"Skipping message Job. {error.status} {error}", "ERR")
        else:
            self._start(message)

    def _update(self, version: str) -> None:
        """Unpack another version beside this one, and end: a script exchanges them then."""
        if self.settings.get("disableUpdate"):
            self.log.write(f"Version {version} is not installed: updates are disabled")
            return
        say(f"Runner update in progress, do not shutdown runner.\nDownloading {version} runner")
        target = ROOT / f"bin.{version}"
        shutil.copytree(FOLDER, target, dirs_exist_ok=True)
        (target / "about.json").write_text(json.dumps({**ABOUT, "version": version}))
        command = ["bash", "-c", UPDATE, "update", str(os.getpid()), VERSION, version]
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
        say("Runner will exit shortly for update, should be back online within 10 seconds.")
        self._close_session()
        raise OverError(4 if self.settings.get("ephemeral") else 3)

    def _start(self, message: dict[str, Any]) -> None:
        """Hand the job to a worker through a pipe: neither its arguments nor its environment show it."""
        self.job = message["job"]
        say(f"{now()}: Running job: {self.job['name']}")
        self.log.write(f"Job {self.job['id']} received")
        theirs, self.pipe = os.pipe()
        back, answers = os.pipe()
        worker = str(FOLDER / "Runner.Worker")
        command = [worker, "spawnclient", str(theirs), str(answers)]
        self.worker = subprocess.Popen(command, pass_fds=(theirs, answers), stdin=subprocess.DEVNULL)
        for each in (theirs, answers, back):
            os.close(each)
        keep = {"settings": self.settings, "service": self.settings["serverUrl"]}
        self._tell({**message, **keep})

    def _tell(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self.pipe, data) :]
        except OSError as error:
            self.log.write(f"The worker does not listen: {error}", "ERR")

    def _cancel(self) -> None:
        """Tell the worker that its job is cancelled; its end is awaited as that of any job."""
        if self.worker is not None and not self.cancelled:
            self.cancelled = True
            self._tell({"type": "cancel"})

    def _reap(self) -> None:
        """Notice the end of the worker."""
        if self.worker is not None and self.worker.poll() is not None:
            self._finish()

    def _finish(self) -> None:
        """See the worker out and say how its job ended; an ephemeral runner's life is over with it."""
        assert self.worker is not None
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        while self.worker.poll() is None and time.monotonic() < deadline:
            self._about_job("renew", {})
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.worker.wait(RENEW_SECONDS)
        self.worker.kill()
        code = self.worker.wait()
        os.close(self.pipe)
        self.worker, self.cancelled = None, False
        if code not in RESULTS:
            self._about_job("complete", {"result": "Failed"})  # a worker that was killed could not
        say(f"{now()}: Job {self.job['name']} completed with result: {RESULTS.get(code, 'Failed')}")
        self.log.write(f"Worker ended with {code}")
        if self.settings.get("ephemeral"):
            runner_configure.delete_registration()
            say("√ Removed .credentials\n√ Removed .runner")
            raise OverError(0)

    def _about_job(self, what: str, body: dict[str, Any]) -> None:
        target = f"{self.settings['serverUrl']}/jobs/{self.job['id']}/{what}"
        try:
            request("POST", target, f"Bearer {self.job['secret']}", body, timeout=10)
        except (ServiceError, OSError, ValueError) as error:
            self.log.write(f"Cannot {what} the job: {error}", "ERR")

    def _shut_down(self) -> int:
        """End the job, then the session. After a cancellation the worker hears of no shutdown, as in the real one."""
        say("Exiting...")
        try:
            if self.worker is not None:
                if not self.cancelled:
                    self._tell({"type": "shutdown"})
                self._finish()
        except OverError as over:
            return over.code
        self._close_session()
        return 0

    def _close_session(self) -> None:
        try:
            request("DELETE", f"{self.url}/sessions/{self.session}", f"Bearer {self.secret}", timeout=5)
        except (ServiceError, OSError, ValueError) as error:
            self.log.write(f"Cannot close the session: {error}", "ERR")


def _wait(pause: float) -> float:
    """Wait about so long; the next pause is longer."""
    time.sleep(pause * random.uniform(0.7, 1.3))
    return min(pause * 2, LONGEST_PAUSE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
