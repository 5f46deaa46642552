"""The files of a runner, and a folder in which bash runs its scripts with stand-ins for what they call."""

import io
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import provision
from metrics.runner import (
    POST_JOB_METRICS_FILE_NAME,
    PRE_JOB_METRICS_FILE_NAME,
    PostJobMetrics,
    PreJobMetrics,
)
from models import Arch, GithubRepo, RunnerConfig
from provision import InstanceFile
from proxies import ProxyConfig
from tests.support.fakes import TEMPLATES

PLAIN = RunnerConfig(
    app_name="runner",
    issue_metrics=True,
    labels=("runner", "jammy", "gpu"),
    lxd_storage_path=Path("/pool"),
    name="runner-0-abc",
    path=GithubRepo("octo-org", "demo"),
    proxies=ProxyConfig(),
)
PROXIES = ProxyConfig("http://proxy:3128", "http://proxy:3129", "localhost,10.0.0.0/8")
MIRROR = "https://mirror.example:5000"
AGENT_FOLDER = "/home/ubuntu/github-runner"


def rendered(config: RunnerConfig = PLAIN, arch: Arch = Arch.X64, **options: Any) -> dict[str, InstanceFile]:
    found = provision.files(provision.environment(TEMPLATES), config, arch=arch, **options)
    assert len({file.path for file in found}) == len(found)
    return {str(file.path): file for file in found}


def content(path: str, config: RunnerConfig = PLAIN, **options: Any) -> str | None:
    file = rendered(config, **options).get(path)
    return None if file is None else file.content


def archived(files: Iterable[InstanceFile], binary: Path | None = None) -> bytes:
    out = io.BytesIO()
    provision.write_archive(out, files, binary)
    return out.getvalue()


def part(text: str, first: str, last: str) -> str:
    """The lines of a script from the one that begins with ``first`` to the next that begins with ``last``."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    end = next(number for number, line in enumerate(lines) if number >= start and line.startswith(last))
    return "\n".join(lines[start : end + 1]) + "\n"


class Shell:
    """Runs scripts in a folder of the test; programs in ``bin`` come first and note their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.agent = folder / "agent"
        self.metrics = folder / "metrics"
        for path in (self.bin, self.agent, self.metrics, folder / "tmp"):
            path.mkdir()
        self.stub("sudo")
        self.stub("pkill")
        self.stub("sleep")
        self.stub("mountpoint", '[ -d "$2" ]')

    def stub(self, name: str, script: str = "", folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.write_text(f'#!/bin/bash\nprintf \'%s\\0\' "$@" >> "{self.folder}/{name}.args"\n{script}\n')
        path.chmod(0o755)

    def arguments(self, name: str) -> list[str]:
        path = self.folder / f"{name}.args"
        return path.read_text().split("\0")[:-1] if path.exists() else []

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.folder / "tmp"),
            **variables,
        }

    def run(self, script: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        path = self.folder / "script"
        path.write_text(script)
        return subprocess.run(
            ["bash", str(path), *arguments],
            cwd=self.folder,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def render(self, template: str, **values: Any) -> str:
        """The template with this test's folders in place of an instance's."""
        everything: dict[str, Any] = {
            "metrics_folder": self.metrics,
            "folder": self.agent,
            "pre_job_file": PRE_JOB_METRICS_FILE_NAME,
            "post_job_file": POST_JOB_METRICS_FILE_NAME,
            "ca_bundle": None,
            "dockerhub_mirror": None,
            "policy_url": None,
            "external_contributors": True,
            "operator_script": None,
            "policy_token_file": self.folder / "policy-token",
            "token_file": self.folder / "token",
            "run_folder": self.folder,
            "kept_wait": 3600,
            "proxies": {},
            "url": "https://github.com/octo-org/demo",
            "labels": "runner,jammy",
            "name": "runner-0-abc",
            "group": None,
            **values,
        }
        return provision.environment(TEMPLATES).get_template(template).render(everything)

    @property
    def post_job(self) -> PostJobMetrics:
        return PostJobMetrics.model_validate_json((self.metrics / POST_JOB_METRICS_FILE_NAME).read_bytes(), strict=True)

    @property
    def pre_job(self) -> PreJobMetrics:
        return PreJobMetrics.model_validate_json((self.metrics / PRE_JOB_METRICS_FILE_NAME).read_bytes(), strict=True)


HOSTILE = [
    "a b",
    "a'b",
    'a"b',
    "a$(touch canary)b",
    "a`touch canary`b",
    "a;touch canary",
    "a&b|c<d>e",
    "{{ 7 * 7 }}",
    "*",
]
POWER_OFF = ["-n", "systemctl", "poweroff", "--force", "--force"]
JOB = {
    "GITHUB_WORKFLOW": "Tests",
    "GITHUB_RUN_ID": "4711",
    "GITHUB_REPOSITORY": "octo-org/demo",
    "GITHUB_EVENT_NAME": "push",
}
