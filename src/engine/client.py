"""LXD: the only user of pylxd, and only of what its REST API gives (https://documentation.ubuntu.com/lxd/latest/api/)."""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

import times
from errors import LxdError, LxdNotFoundError
from redaction import tail

if TYPE_CHECKING:
    # A tenth of a second that a hook without LXD need not pay: imported where they are used.
    import pylxd
    import requests
    import websocket

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT = 30.0
OPERATION_TIMEOUT = 120.0
# Between two attempts to execute the first command. A virtual machine boots for many seconds, and LXD dials its agent
# for each attempt.
READY_INTERVAL = {"virtual-machine": 0.5, "container": 0.1}
# For an operation of LXD's on an instance that somebody else has asked for.
BUSY_TIMEOUT = 60
BUSY_INTERVAL = 0.1
# LXD's agent in a virtual machine waits 5 seconds for LXD's connections before it begins a command: a busy machine may
# need longer. https://github.com/canonical/lxd/blob/lxd-5.0.2/lxd-agent/exec.go
NOT_BEGUN = ("Timed out waiting for websockets to connect", "websocket: bad handshake")
# Of one file that is read from inside an instance, in seconds.
READ_TIMEOUT = 10.0
# https://documentation.ubuntu.com/lxd/latest/rest-api/#list-of-current-status-codes
SUCCESS = 200


@dataclass(frozen=True)
class Execution:
    """What a command inside an instance answered; the texts are empty unless it failed and its output was recorded."""

    code: int
    stdout: str = ""
    stderr: str = ""

    @property
    def last_words(self) -> str:
        """The end of what it said, for a message."""
        return tail(self.stderr.strip() or self.stdout)


class LxdClient:
    """One LXD daemon, as the API shows it. Can be used by several threads at once.

    Everything raises LxdError, or LxdNotFoundError for what is not there.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint
        self._local = threading.local()

    def request(self, method: str, *path: str, timeout: float = REQUEST_TIMEOUT, **options: Any) -> "requests.Response":
        """One call below ``/1.0``; ``options`` are those of requests. ``timeout`` in seconds."""
        with _errors(f"{method} /1.0/{'/'.join(path)}"):
            node = self._client().api
            for part in path:
                node = node[quote(part, safe=".-_~:")]
            response: requests.Response = getattr(node, method.lower())(timeout=timeout, **options)
            return response

    def get(self, *path: str, **params: str | int) -> Any:
        """The metadata of a GET."""
        response = self.request("GET", *path, params=params)
        with _errors(f"GET /1.0/{'/'.join(path)}"):
            return response.json()["metadata"]

    def change(self, method: str, *path: str, timeout: float = OPERATION_TIMEOUT, **options: Any) -> Any:
        """A request that may become an operation: wait until it is done and return its metadata.

        It is repeated while LXD is busy with an instance that it changes, such as one that uses a changed profile.
        """
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                return self._change(method, *path, timeout=timeout, **options)
            except LxdError as error:
                if "busy running" not in str(error) or time.monotonic() > deadline:
                    raise
                logger.info("LXD is asked again: %s", error)
                time.sleep(BUSY_INTERVAL)

    def _change(self, method: str, *path: str, timeout: float, **options: Any) -> Any:
        what = f"{method} {'/'.join(path)}"
        response = self.request(method, *path, **options)
        with _errors(what):
            body = response.json()
            if body.get("type") != "async":
                return body.get("metadata")
            return self.wait(body["metadata"]["id"], what, timeout)

    def wait(self, operation: str, what: str, timeout: float = OPERATION_TIMEOUT) -> Any:
        """Wait for an operation on the server's side; LxdError if it fails or is not over in ``timeout`` seconds."""
        whole = max(1, round(timeout))
        response = self.request(
            "GET", "operations", operation, "wait", timeout=whole + REQUEST_TIMEOUT, params={"timeout": whole}
        )
        done = response.json()["metadata"]
        # LXD reports a command's exit codes 126 and 127 as errors of its own, whatever gave them. -1 is no exit code.
        if done["status_code"] == SUCCESS or (done.get("metadata") or {}).get("return", -1) >= 0:
            return done.get("metadata")
        with suppress(LxdError):
            self.request("DELETE", "operations", operation)
        if done.get("err"):
            raise _not_found_or(done["err"])(f"{what}: {done['err']}")
        raise LxdError(f"{what}: not done within {whole} s")

    def find(self, *path: str) -> Any:
        """The metadata of a GET, or None if there is no such thing."""
        try:
            return self.get(*path)
        except LxdNotFoundError:
            return None

    def server_version(self) -> tuple[int, int]:
        """The daemon's version, such as ``(5, 0)``."""
        version = str(self.get()["environment"]["server_version"])
        major, minor = version.split(".")[:2]
        return int(major), int(minor)

    def has_extension(self, name: str) -> bool:
        """Whether this LXD has an API extension (https://documentation.ubuntu.com/lxd/latest/api-extensions/)."""
        with _errors("GET /1.0"):
            return bool(self._client().has_api_extension(name))

    def instances(self) -> "list[LxdInstance]":
        """Every instance with its configuration and status, in one request."""
        return [LxdInstance(self, data) for data in self.get("instances", recursion=1)]

    def instance_names(self) -> list[str]:
        """The names of all instances: the cheapest question there is."""
        return [str(url).rsplit("/", 1)[-1] for url in self.get("instances")]

    def instance(self, name: str) -> "LxdInstance":
        """One instance."""
        return LxdInstance(self, self.get("instances", name))

    def create_instance(
        self,
        name: str,
        *,
        source: Mapping[str, str],
        virtual_machine: bool,
        profiles: Sequence[str],
        config: Mapping[str, str],
        devices: Mapping[str, Mapping[str, str]],
        ephemeral: bool = True,
        timeout: float = times.CREATE_INSTANCE,
    ) -> "LxdInstance":
        """Make a stopped instance; ``source`` is LXD's own (https://documentation.ubuntu.com/lxd/latest/api/)."""
        body = {
            "name": name,
            "ephemeral": ephemeral,
            "type": "virtual-machine" if virtual_machine else "container",
            "source": dict(source),
            "profiles": list(profiles),
            "config": dict(config),
            "devices": {device: dict(value) for device, value in devices.items()},
        }
        self.change("POST", "instances", json=body, timeout=timeout)
        if virtual_machine:
            # Unlike a container, which has a map of user ids now, it has nothing that LXD would have to be asked for.
            return LxdInstance(self, {"name": name, "status": "Stopped", "type": body["type"], "config": config})
        return self.instance(name)

    def _client(self) -> "pylxd.Client":
        import pylxd

        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = pylxd.Client(endpoint=self._endpoint, timeout=REQUEST_TIMEOUT)
        return client


class LxdInstance:
    """One instance. Its data is what LXD said when it was listed."""

    def __init__(self, client: LxdClient, data: Mapping[str, Any]) -> None:
        self._lxd = client
        self.name: str = data["name"]
        # Frozen, or in error for a moment, is not stopped.
        self.running: bool = data["status"] != "Stopped"
        self.virtual_machine: bool = data["type"] == "virtual-machine"
        self.config: dict[str, str] = dict(data["config"])

    def host_uid(self, uid: int) -> int:
        """The user on the host that the instance sees as ``uid``."""
        key = "volatile.idmap.current" if self.running else "volatile.idmap.next"
        for entry in json.loads(self.config.get(key) or "[]"):
            if entry.get("Isuid") and entry["Nsid"] <= uid < entry["Nsid"] + entry["Maprange"]:
                return int(entry["Hostid"]) + uid - int(entry["Nsid"])
        return uid

    def start(self) -> None:
        """Start it and wait until it runs (not until it has booted)."""
        self._lxd.change("PUT", "instances", self.name, "state", json={"action": "start", "timeout": -1})
        self.running = True

    def wait_ready(self) -> None:
        """Wait until it runs commands; a virtual machine's agent takes a while, and until then LXD refuses them."""
        kind = "virtual-machine" if self.virtual_machine else "container"
        wait_until(self._answers, times.READY[kind], f"the first command in {self.name}", READY_INTERVAL[kind])

    def _answers(self) -> bool:
        with suppress(LxdError):
            return self.execute(["true"], timeout=10).code == 0
        return False

    def stop(self, timeout: int = 60, force: bool = False) -> None:
        """Stop it, an ephemeral one is deleted by that; by force if it did not stop in ``timeout`` seconds."""
        for forced in (True,) if force else (False, True):
            body = {"action": "stop", "timeout": timeout, "force": forced}
            try:
                self._lxd.change("PUT", "instances", self.name, "state", json=body, timeout=timeout + 60)
                return
            except LxdNotFoundError:
                return
            except LxdError as error:
                # The state at this moment counts, not the one that was listed.
                if not self._runs():
                    return
                if forced:
                    raise
                logger.info("%s did not stop, now by force: %s", self.name, error)

    def delete(self) -> None:
        """Delete it; gone already counts as done. It may run: whoever asked LXD for its start may be dead by now."""
        with suppress(LxdNotFoundError):
            try:
                self._lxd.change("DELETE", "instances", self.name)
            except LxdError as error:
                if "is running" not in str(error):
                    raise
                self.stop(force=True)
                self._lxd.change("DELETE", "instances", self.name)

    def set_config(self, values: Mapping[str, str | None]) -> None:
        """Set keys of its configuration, None takes a key away."""
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
        """Run a command to its end inside; ``output`` records what it says, which is read if it fails.

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
        path = ("instances", self.name, "exec")
        with _renamed(what):
            done = self._begun(*path, json=body, timeout=timeout) or {}
        code = int(done.get("return", -1))
        # What went well is not worth four requests: LXD removes its record with the instance.
        recorded = done.get("output", {}) if output and code != 0 else {}
        return Execution(code, *(self._recorded(recorded.get(stream)) for stream in ("1", "2")))

    def _begun(self, *path: str, **options: Any) -> Any:
        """Request a command again until LXD could begin it, as often as ``BUSY_TIMEOUT`` allows."""
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                return self._lxd.change("POST", *path, **options)
            except LxdError as error:
                if not any(text in str(error) for text in NOT_BEGUN) or time.monotonic() > deadline:
                    raise

    def output(self, command: Sequence[str], limit: int, timeout: float) -> bytes:
        """At most ``limit`` bytes of a command's output; LxdError if it is not over within ``timeout`` seconds.

        A job may have replaced the command, or what it reads: the output comes as a stream, is cut here and recorded
        nowhere. The process is killed then, and ends with the instance at the latest.
        """
        from engine.events import connect, socket_path

        deadline = time.monotonic() + timeout
        what = f"{PurePosixPath(command[0]).name} in {self.name}"
        body = {"command": list(command), "cwd": "/", "wait-for-websocket": True, "interactive": False}
        with _errors(what), ExitStack() as opened:
            answer = self._lxd.request("POST", "instances", self.name, "exec", json=body).json()["metadata"]
            streams = {}
            # The command starts when 0, 1 and 2 are connected, and may end before the control could be.
            for number, secret in sorted(answer["metadata"]["fds"].items(), reverse=True):
                resource = f"/1.0/operations/{answer['id']}/websocket?secret={secret}"
                streams[number] = connect(resource, socket_path())
                opened.callback(streams[number].shutdown)
            try:
                return _received(streams["1"], limit, deadline)
            finally:
                with suppress(Exception):
                    streams["control"].send(json.dumps({"command": "signal", "signal": signal.SIGKILL}))

    def push(self, path: str, content: "bytes | BinaryIO", *, mode: int = 0o644, user: int = 0) -> None:
        """Write a file inside; its folder must be there. An open file is sent as it is read, never held in memory."""
        headers = {"X-LXD-uid": str(user), "X-LXD-gid": str(user), "X-LXD-mode": f"{mode:04o}", "X-LXD-type": "file"}
        self._lxd.request(
            "POST", "instances", self.name, "files", params={"path": path}, data=content, headers=headers, timeout=300
        )

    def pull(self, path: str, limit: int) -> bytes:
        """At most ``limit`` bytes of a regular file inside.

        Never once a job can have run: LXD opens the path whatever it is, and with a FIFO in its place the instance
        cannot be deleted any more (LXD 5.0.2). ``output`` has no such fault.
        """
        where = f"{path} in {self.name}"
        deadline = time.monotonic() + READ_TIMEOUT
        with (
            self._lxd.request(
                "GET", "instances", self.name, "files", params={"path": path}, stream=True, timeout=READ_TIMEOUT
            ) as response,
            _errors(where),
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
        """A recorded output, which is then removed: LXD keeps it for as long as the instance lives.

        LXD 5.0 has it in ``logs/``, newer versions in ``logs/exec-output/``. Nothing if it cannot be read: the exit
        code counts, this only explains it.
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


def wait_until(condition: Callable[[], bool], timeout: float, what: str, interval: float = 0.1) -> None:
    """Poll until a condition holds; LxdError if it does not within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LxdError(f"{what}: not within {timeout:.0f} s")
        time.sleep(interval)


def _received(stream: "websocket.WebSocket", limit: int, deadline: float) -> bytes:
    """What a stream of LXD's carries until its end: a text, or a close.

    Frame by frame: a message may have any size.
    """
    import websocket

    carries = (websocket.ABNF.OPCODE_BINARY, websocket.ABNF.OPCODE_CONT)
    data = b""
    while len(data) < limit:
        stream.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            frame = stream.recv_frame()  # type: ignore[no-untyped-call]
        except (websocket.WebSocketConnectionClosedException, ConnectionError):
            break
        if time.monotonic() > deadline:
            raise websocket.WebSocketTimeoutException("timed out")
        if frame.opcode in (websocket.ABNF.OPCODE_CLOSE, websocket.ABNF.OPCODE_TEXT):
            break
        if frame.opcode in carries:
            data += frame.data
    return data[:limit]


def _not_found_or(message: str) -> type[LxdError]:
    # LXD's errors end with their cause. Elsewhere, as in `executable file not found in $PATH`, it is something else.
    return LxdNotFoundError if message.lower().endswith("not found") else LxdError


@contextmanager
def _renamed(what: str) -> Iterator[None]:
    """Name the command instead of the request in what goes wrong."""
    try:
        yield
    except LxdNotFoundError as error:
        raise LxdNotFoundError(f"{what}: {error}") from error
    except LxdError as error:
        raise LxdError(f"{what}: {error}") from error


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Everything that pylxd and requests raise, as this module's errors."""
    try:
        yield
    except LxdError:
        raise
    except Exception as error:
        raise _translated(what, error) from error


def _translated(what: str, error: Exception) -> Exception:
    """One of this module's errors for one of pylxd's, of requests', or of an answer that is not as it should be."""
    import pylxd.exceptions
    import requests
    import websocket

    if isinstance(error, pylxd.exceptions.NotFound):
        return LxdNotFoundError(f"{what}: {error}")
    if isinstance(error, pylxd.exceptions.LXDAPIException):
        return _not_found_or(str(error))(f"{what}: {error}")
    if isinstance(error, pylxd.exceptions.ClientConnectionFailed):
        return LxdError(f"LXD does not answer: {error}")
    if isinstance(error, (requests.RequestException, websocket.WebSocketException, OSError)):
        return LxdError(f"{what}: LXD did not answer properly: {error}")
    if isinstance(error, (KeyError, ValueError)):
        return LxdError(f"{what}: LXD's answer was not understood: {error!r}")
    return error
