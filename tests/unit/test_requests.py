"""What the creation of a virtual machine asks of LXD: each request costs a moment of every creation."""

import json
from pathlib import Path
from typing import Any

import pytest
import requests
from websocket import ABNF

import provision
from engine.client import LxdClient
from errors import LxdError
from metrics.storage import MetricsStorage
from models import Arch, CreateRunnerConfig, GithubRepo, RunnerConfig, RunnerStatus
from proxies import ProxyConfig
from runner import Runner, RunnerManagerClients
from tests.support.fakes import RESOURCES, TEMPLATES, FakeGithub

NAME = "app-0-0123abcdaa"


class RecordingLxd(LxdClient):
    """LXD whose operations succeed at once; ``booting`` attempts to run a command are refused before."""

    def __init__(self, booting: int) -> None:
        super().__init__()
        self.booting = booting
        self.asked: list[str] = []

    def has_extension(self, name: str) -> bool:
        return False

    def request(self, method: str, *path: str, timeout: float = 30, **options: Any) -> requests.Response:
        response = requests.Response()
        if path[-1] == "exec" and self.booting:
            self.booting -= 1
            raise LxdError("LXD VM agent isn't currently running")
        self.asked.append(" ".join((method, *path)))
        body: dict[str, Any] = {"type": "sync", "metadata": self._metadata(path)}
        if method in ("POST", "PUT"):
            streams = {name: name for name in ("0", "1", "2", "control")}
            body = {"type": "async", "metadata": {"id": "1", "metadata": {"fds": streams}}}
        response._content = json.dumps(body).encode()
        if path[-1] == "files":
            response._content, response.raw = b"", _Settings()
            response.headers["X-LXD-type"] = "file"
        return response

    def _metadata(self, path: tuple[str, ...]) -> dict[str, Any]:
        if path[0] == "profiles":
            root = {"type": "disk", "path": "/", "pool": "runner", "size": RESOURCES.disk}
            return {"devices": {"root": root}}
        return {"status_code": 200, "metadata": {"return": 0}}


class Stream:
    """Any stream of a command that prints a line and ends."""

    def __init__(self) -> None:
        self.frames = [ABNF(opcode=ABNF.OPCODE_BINARY, data=b"\n"), ABNF(opcode=ABNF.OPCODE_TEXT)]

    def settimeout(self, seconds: float) -> None:
        """Nothing takes time."""

    def recv_frame(self) -> ABNF:
        return self.frames.pop(0)

    def send(self, text: str) -> None:
        assert text == ""

    def send_binary(self, data: bytes) -> None:
        assert data

    def shutdown(self) -> None:
        """Nothing is open."""


class _Settings:
    """The file .runner, as it is read from an instance."""

    def __init__(self) -> None:
        self.content = b'{"agentId": 7}'

    def close(self) -> None:
        pass

    def read1(self, size: int) -> bytes:
        content, self.content = self.content[:size], self.content[size:]
        return content


def test_requests_of_a_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing to a started runner agent LXD is asked eleven times, besides the polls while it boots."""
    monkeypatch.setattr("engine.command.connect", lambda resource, path: Stream())
    monkeypatch.setattr("runner.shared_fs.create", lambda name: MetricsStorage(tmp_path, name))
    monkeypatch.setattr("engine.instance.READY_INTERVAL", {"virtual-machine": 0})
    lxd, github = RecordingLxd(booting=5), FakeGithub()
    clients = RunnerManagerClients(github, provision.environment(TEMPLATES), lxd, None)  # type: ignore[arg-type]
    config = RunnerConfig(
        app_name="app",
        issue_metrics=True,
        labels=("app",),
        lxd_storage_path=tmp_path,
        name=NAME,
        path=GithubRepo("octo-org", "demo"),
        proxies=ProxyConfig(),
        container=False,
    )
    made = Runner(clients, config, RunnerStatus())

    made.create(CreateRunnerConfig("jammy", RESOURCES, tmp_path, "token", Arch.X64, in_image=True))

    assert made.status.runner_id == 7
    assert lxd.booting == 0
    assert len(lxd.asked) <= 11, lxd.asked
