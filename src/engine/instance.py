"""One LXD instance: its state, commands inside it and its files."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import times
from engine.api import LxdApi, errors_of, wait_until
from engine.command import Command
from errors import LxdError, LxdNotFoundError
from redaction import tail

logger = logging.getLogger(__name__)

# Seconds between two attempts at the first command. A virtual machine boots for many seconds, and LXD connects
# to its agent for each attempt.
READY_INTERVAL = {"virtual-machine": 0.5, "container": 0.1}
# Seconds within which one file is read from an instance.
READ_TIMEOUT = 10.0


@dataclass(frozen=True)
class Execution:
    """The result of a command inside an instance. One of ``execute`` has texts only if it failed and recorded them."""

    code: int
    stdout: str = ""
    stderr: str = ""

    @property
    def last_words(self) -> str:
        """The end of the output, for a message."""
        return tail(self.stderr.strip() or self.stdout)


class LxdInstance:
    """One instance, with the state and the configuration that it had when it was listed."""

    def __init__(self, lxd: LxdApi, data: Mapping[str, Any]) -> None:
        self._lxd = lxd
        self.name: str = data["name"]
        # Frozen, or in error for a moment, is not stopped.
        self.running: bool = data["status"] != "Stopped"
        self.virtual_machine: bool = data["type"] == "virtual-machine"
        self.config: dict[str, str] = dict(data["config"])
        self.profiles: list[str] = list(data.get("profiles", ()))

    @property
    def _kind(self) -> str:
        return "virtual-machine" if self.virtual_machine else "container"

    def host_uid(self, uid: int) -> int:
        """The user on the host that the instance, which runs, sees as ``uid``. LXD is asked for a container's map."""
        if self.virtual_machine:
            return uid
        config = self._lxd.get("instances", self.name)["config"]
        for entry in json.loads(config.get("volatile.idmap.current") or "[]"):
            if entry.get("Isuid") and entry["Nsid"] <= uid < entry["Nsid"] + entry["Maprange"]:
                return int(entry["Hostid"]) + uid - int(entry["Nsid"])
        return uid

    def start(self) -> None:
        """Start the instance and wait until it runs (not until it has booted)."""
        self._lxd.change("PUT", "instances", self.name, "state", json={"action": "start", "timeout": -1})
        self.running = True

    def wait_ready(self) -> None:
        """Wait until commands can be run: LXD refuses them until the LXD agent of a virtual machine runs."""
        what = f"the first command in {self.name}"
        wait_until(self._answers, times.READY[self._kind], what, READY_INTERVAL[self._kind])

    def _answers(self) -> bool:
        with suppress(LxdError):
            return self.execute(["true"], timeout=10).code == 0
        return False

    def stop(self, timeout: int = 60, force: bool = False) -> None:
        """Stop the instance; by force after ``timeout`` seconds. LXD deletes a stopped ephemeral instance."""
        for forced in (True,) if force else (False, True):
            body = {"action": "stop", "timeout": timeout, "force": forced}
            try:
                self._lxd.change("PUT", "instances", self.name, "state", json=body, timeout=timeout + 60)
                return
            except LxdNotFoundError:
                return
            except LxdError as error:
                # It may have stopped since it was listed.
                if not self._runs():
                    return
                if forced:
                    raise
                logger.info("%s did not stop, now by force: %s", self.name, error)

    def delete(self) -> None:
        """Delete the instance; a missing one is no error. It may run: a killed process may have started it."""
        with suppress(LxdNotFoundError):
            try:
                self._lxd.change("DELETE", "instances", self.name)
            except LxdError as error:
                if "is running" not in str(error):
                    raise
                self.stop(force=True)
                self._lxd.change("DELETE", "instances", self.name)

    def set_config(self, values: Mapping[str, str | None]) -> None:
        """Set keys of the configuration; None removes a key."""
        body = {"config": {key: value or "" for key, value in values.items()}}
        self._lxd.change("PATCH", "instances", self.name, json=body)
        self.config = {k: v for k, v in {**self.config, **values}.items() if v}

    def execute(
        self,
        command: Sequence[str],
        *,
        timeout: float = 60,
        environment: Mapping[str, str] | None = None,
        output: bool = False,
    ) -> Execution:
        """Run a command to its end inside; ``output`` records its output, which is read if it fails.

        Arguments and environment are seen in the host's process list: no secrets in them. Output is recorded on
        the host's disk without a limit: never ask for it where a job's code may have replaced the command.
        """
        body = {
            "command": list(command),
            "environment": dict(environment or {}),
            "cwd": "/",
            "record-output": output,
            "wait-for-websocket": False,
            "interactive": False,
        }
        what = f"{PurePosixPath(command[0]).name} in {self.name}"
        with _renamed(what):
            done = self._lxd.change("POST", "instances", self.name, "exec", json=body, timeout=timeout) or {}
        code = int(done.get("return", -1))
        # Read the output of failed commands only: that takes four requests. LXD removes it with the instance.
        recorded = done.get("output", {}) if output and code != 0 else {}
        return Execution(code, *(self._recorded(recorded.get(stream)) for stream in ("1", "2")))

    def output(self, command: Sequence[str], limit: int, timeout: float) -> bytes:
        """At most ``limit`` bytes of a command's output; LxdError if it is not over within ``timeout`` seconds.

        A job may have replaced the command, or what it reads: the output comes as a stream, which is cut at ``limit``
        bytes and not recorded. The process is then killed; it ends with the instance at the latest.
        """
        deadline = time.monotonic() + timeout
        with Command(self._lxd, self.name, command) as begun:
            return begun.output(limit, deadline)

    def begin(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Command:
        """Start a command as soon as the instance takes one; an empty line that it prints says that it reads its input.

        It costs less than ``wait_ready`` before it. LxdError ends with the reason of the last attempt: no agent runs.
        """
        limit, interval = times.READY[self._kind], READY_INTERVAL[self._kind]
        deadline = time.monotonic() + limit
        while True:
            try:
                with ExitStack() as undone:
                    begun = undone.enter_context(Command(self._lxd, self.name, command, environment))
                    begun.wait_begun(deadline - time.monotonic())
                    undone.pop_all()
                    return begun
            except LxdNotFoundError:
                # An ephemeral instance that powered off is gone.
                raise
            except LxdError as error:
                if time.monotonic() + interval > deadline:
                    what = f"the first command in {self.name}"
                    raise LxdError(f"{what}: not within {limit:.0f} s: {error}") from error
            time.sleep(interval)

    def push(
        self, path: str, content: "bytes | BinaryIO", *, mode: int = 0o644, user: int = 0, timeout: float = 300
    ) -> None:
        """Write a file inside; its folder must be there. An open file is sent as it is read, never held in memory."""
        headers = {"X-LXD-uid": str(user), "X-LXD-gid": str(user), "X-LXD-mode": f"{mode:04o}", "X-LXD-type": "file"}
        self._lxd.request(
            "POST",
            "instances",
            self.name,
            "files",
            params={"path": path},
            data=content,
            headers=headers,
            timeout=timeout,
        )

    def pull(self, path: str, limit: int) -> bytes:
        """At most ``limit`` bytes of a regular file inside.

        Never once a job can have run: LXD opens the path whatever it is, and with a FIFO in its place the instance
        cannot be deleted any more (LXD 5.0.2). ``output`` does not have this problem.
        """
        where = f"{path} in {self.name}"
        deadline = time.monotonic() + READ_TIMEOUT
        with (
            self._lxd.request(
                "GET", "instances", self.name, "files", params={"path": path}, stream=True, timeout=READ_TIMEOUT
            ) as response,
            errors_of(where),
        ):
            found = response.headers.get("X-LXD-type")
            if found != "file":
                raise LxdError(f"{where} is a {found}, not a file")
            data = b""
            while len(data) < limit and (chunk := response.raw.read1(min(65536, limit - len(data)))):
                data += chunk
                if time.monotonic() > deadline:
                    raise LxdError(f"{where} was not read within {READ_TIMEOUT:.0f} s")
            return data

    def _recorded(self, path: str | None) -> str:
        """Read a recorded output, then remove it: LXD keeps it for as long as the instance exists.

        LXD 5.0 has it in ``logs/``, newer versions in ``logs/exec-output/``. Empty if it cannot be read: the output
        only explains the exit code.
        """
        if not path:
            return ""
        where = path.removeprefix("/1.0/").split("/")
        text = ""
        with suppress(LxdError):
            text = self._lxd.request("GET", *where, is_api=False).content.decode(errors="replace")
            self._lxd.request("DELETE", *where)
        return text

    def _runs(self) -> bool:
        try:
            return bool(self._lxd.get("instances", self.name, "state")["status"] != "Stopped")
        except LxdNotFoundError:
            return False


@contextmanager
def _renamed(what: str) -> Iterator[None]:
    """Put the command's name instead of the request into errors."""
    try:
        yield
    except LxdNotFoundError as error:
        raise LxdNotFoundError(f"{what}: {error}") from error
    except LxdError as error:
        raise LxdError(f"{what}: {error}") from error
