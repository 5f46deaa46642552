"""What the listener and the worker share: their folder, the diagnostic log, and requests to GitHub."""

import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).resolve().parent  # bin, or bin.VERSION after an update
ABOUT = json.loads((FOLDER / "about.json").read_text())
VERSION, ARCHITECTURE = ABOUT["version"], ABOUT["architecture"].upper()
INPUT = "ACTIONS_RUNNER_INPUT_"
TIMEOUT = 60.0  # a question for a job stays open for a while


class ServiceError(Exception):
    """GitHub refused a request."""

    def __init__(
        self, method: str, url: str, status: int, reason: str, document: dict[str, Any], request_id: str
    ) -> None:
        super().__init__(document.get("message", reason))
        self.method, self.url, self.status, self.reason = method, url, status, reason
        self.document, self.request_id = document, request_id
        self.code = document.get("code", "")


def name_process(name: str) -> None:
    """Give the process the name of its program, which the kernel took from the interpreter."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def handle(number: int, handler: Callable[[int, object], object]) -> None:
    """Handle a signal, unless it was ignored when the program started: .NET's runtime installs no handler over that."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


def load_environment() -> None:
    """Read the .env file; as with the real runner agent the .path file is only for its service script."""
    file = ROOT / ".env"
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            name, separator, value = line.partition("=")
            if name and separator:
                os.environ[name] = value


def take_inputs() -> dict[str, str]:
    """The values that came through the environment, from which they are removed: jobs must not see them."""
    names = [name for name in os.environ if name.startswith(INPUT)]
    return {name[len(INPUT) :].lower(): os.environ.pop(name) for name in names}


class Diagnostics:
    """A log file in the _diag folder."""

    def __init__(self, program: str) -> None:
        folder = ROOT / "_diag"
        folder.mkdir(exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self._file = (folder / f"{program}_{stamp}-utc.log").open("a", encoding="utf-8")
        self._program = program
        self.write(f"Runner version {VERSION}, process {os.getpid()}")

    def write(self, text: str, level: str = "INFO") -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
        self._file.write(f"[{stamp} {level} {self._program}] {text}\n")
        self._file.flush()


def request(
    method: str, url: str, credential: str, body: object = None, timeout: float = TIMEOUT
) -> tuple[int, dict[str, Any]]:
    """Send a request through the proxies of the environment; status and document of the answer."""
    headers = {"Authorization": credential, "Content-Type": "application/json", "User-Agent": f"runner/{VERSION}"}
    data = None if body is None else json.dumps(body).encode()
    try:
        sent = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(sent, timeout=timeout) as reply:
            return reply.status, json.loads(reply.read() or b"{}")
    except urllib.error.HTTPError as error:
        with error:
            text, identity = error.read(), error.headers.get("X-GitHub-Request-Id", "")
        if error.code >= 500:
            raise ConnectionError(f"{error.code} from {method} {url}") from None
        try:
            document = json.loads(text)
        except ValueError:
            document = {}
        raise ServiceError(method, url, error.code, error.reason, document, identity) from None
