"""The fixtures of the tests on a real LXD; :mod:`tests.support.deployment` is what they give."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage

from sandbox import github
from sandbox.lab import lxd_setup
from sandbox.lab.pack import pack
from tests.support.deployment import PAT, REPOSITORY, ROOT, Deployment, deployed, undeploy


@pytest.fixture(scope="session")
def lxd() -> None:
    """The sandbox's LXD set-up with the machine's template."""
    lxd_setup.ensure()
    lxd_setup.ensure_template()


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory, lxd: None) -> Path:
    """The charm as it is deployed; its processes record their coverage where the tests do."""
    return pack(ROOT, tmp_path_factory.mktemp("packed") / "charm", coverage=Coverage.current() is not None)


@pytest.fixture(scope="session")
def hub(lxd: None) -> Iterator[github.GitHub]:
    """GitHub, outside the machine."""
    settings = github.Settings(grace=8, lost_job=8, interrupt=2.0)
    with github.serve(
        lxd_setup.bridge_address(), 0, [PAT], [REPOSITORY, "octo-org/other"], ["octo-org"], settings=settings
    ) as served:
        yield served


@pytest.fixture(scope="session")
def session_deployment(packed: Path, hub: github.GitHub) -> Iterator[Deployment]:
    """One unit with metrics on, for all tests that leave it as they found it."""
    found = deployed("tests", packed, hub, {"virtual-machines": 1})
    found.unit.integrate("cos-agent")
    yield found
    undeploy(found)


@pytest.fixture(scope="session")
def first_options(session_deployment: Deployment) -> dict[str, Any]:
    """The options of the shared unit before any test."""
    return {name: option["value"] for name, option in session_deployment.unit.config().items()}


@pytest.fixture
def deployment(session_deployment: Deployment, first_options: dict[str, Any]) -> Iterator[Deployment]:
    """The shared unit, active; faults and options of a test are taken back after it."""
    yield session_deployment
    session_deployment.control.remove_faults()
    after = session_deployment.unit.config()
    changed = {name: first_options[name] for name, option in after.items() if option["value"] != first_options[name]}
    if unset := [name for name, value in changed.items() if value in (None, "")]:
        session_deployment.unit.reset_config(*unset)
    if values := {name: value for name, value in changed.items() if name not in unset}:
        session_deployment.unit.set_config(values)


@pytest.fixture(scope="session")
def policy() -> Iterator[str]:
    """A policy service that refuses everything but pushes."""

    class Service(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, b"one-time")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(200 if self.path == "/push/check-run" else 403, b"not approved")

        def reply(self, status: int, text: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((lxd_setup.bridge_address(), 0), Service)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://{lxd_setup.bridge_address()}:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
