"""What is written into an instance: files and scripts, rendered from ``templates/``. Reading these is its only I/O.

Values from options, relations and the API reach scripts only through the filter ``sh``, units through ``systemd``.
"""

import io
import json
import os
import re
import shlex
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, cast
from urllib.parse import urlsplit

import jinja2

import times
from models import (
    POST_JOB_METRICS_FILE_NAME,
    PRE_JOB_METRICS_FILE_NAME,
    Arch,
    GithubOrg,
    RunnerConfig,
    Snap,
    SSHDebugConnection,
    WgetExecutable,
)

UBUNTU = 1000
HOME = PurePosixPath("/home/ubuntu")
RUNNER_APPLICATION = HOME / "github-runner"
ENV_FILE = RUNNER_APPLICATION / ".env"
CONFIG_SCRIPT = RUNNER_APPLICATION / "config.sh"
RUNNER_SCRIPT = RUNNER_APPLICATION / "start.sh"
PRE_JOB_SCRIPT = RUNNER_APPLICATION / "pre-job.sh"
# The text of the option pre-job-script; PRE_JOB_SCRIPT runs it.
OPERATOR_SCRIPT = RUNNER_APPLICATION / "operator-pre-job"
# In seconds.
OPERATOR_LIMIT = 300
POLICY_TOKEN_FILE = RUNNER_APPLICATION / ".policy-token"
METRICS_FOLDER = PurePosixPath("/metrics-exchange")
RUN_FOLDER = PurePosixPath("/run/github-runner")
TOKEN_FILE = RUN_FOLDER / "token"
# The start script writes it. Runners that exist already have this path.
DEPRECATED_FILE = RUN_FOLDER / "refused"
FAILED_FILE = RUN_FOLDER / "failed"
# How long an instance whose runner agent has ended without a job waits, in seconds, for a reconcile to read the reason.
KEPT_WAIT = 3600
# Exit codes of the set-up script: the runner is registered, but no metrics storage is mounted at METRICS_FOLDER; the
# instance is ready, but the runner could not be registered.
WITHOUT_METRICS, NOT_REGISTERED = 75, 76
# What the console of a virtual machine of our image prints after its logs.
CONSOLE_END = "==> end of the logs <=="
SETUP_FOLDER = PurePosixPath("/root/github-runner")
SETUP_SCRIPT = SETUP_FOLDER / "setup.sh"
REGISTER_SCRIPT = RUNNER_APPLICATION / ".register.sh"
# Images that exist already have these paths, with GitHub's word for the runner binary: application.
BINARY_ARCHIVE = PurePosixPath("/root/github-runner-application.tar.gz")
# Where an image that this charm built has the runner binary.
IMAGE_BINARY = PurePosixPath("/opt/github-runner-application")
# Where an image that this charm built has archives of actions (OWNER_REPO/COMMIT.tar.gz).
ACTION_ARCHIVES = PurePosixPath("/opt/github-runner-actions")
CA_FOLDER = PurePosixPath("/usr/local/share/ca-certificates")
# update-ca-certificates reads *.crt only; this one is for Node.js, which does not read the system's authorities.
CA_BUNDLE = CA_FOLDER / "github-runner.pem"
SERVICE = "github-runner.service"
NETWORK_TIMEOUT = 60
# Says when it reads, unpacks its input, and sets up. A container runs commands before its /run is mounted, which would
# hide the token; the root of a virtual machine may still be read-only. Input that is not unpacked is read nevertheless,
# so that the reason arrives.
UNPACK_AND_SET_UP = f"""n=0
until {{ mountpoint -q /run || [ $((n += 1)) -gt 100 ]; }} && [ -w / ]; do sleep 0.1; done
echo
exec 2>&1
tar -xf - -C / || {{ code=$?; cat > /dev/null; exit $code; }}
exec {SETUP_SCRIPT}"""
# Bytes of the archive that are sent at a time.
CHUNK = 1 << 17
IMAGE_SCRIPT = PurePosixPath("/root/provision-image.sh")
# The option image-script: it may hold secrets, and is removed when it has ended.
OPTION_SCRIPT = PurePosixPath("/root/github-runner-image-script")
IMAGE_PROXIES = PurePosixPath("/root/github-runner-proxies")
# Containers call it eth0, virtual machines enp5s0. The address goes by hardware, for machine ids come after it.
IMAGE_NETWORK = """\
network:
  version: 2
  ethernets:
    all:
      match: {name: "e*"}
      dhcp4: true
      dhcp-identifier: mac
"""

APROXY_ARM_REVISION = 9
APROXY_AMD_REVISION = 8
YQ_URL = "https://github.com/mikefarah/yq/releases/download/v4.45.1/yq_linux_"
YQ = {
    Arch.X64: ("amd64", "654d2943ca1d3be2024089eb4f270f4070f491a0610481d128509b2834870049"),
    Arch.ARM64: ("arm64", "ceea73d4c86f2e5c91926ee0639157121f5360da42beeb8357783d79c2cc6a1d"),
}


class Writable(Protocol):
    """Where an archive is written."""

    def write(self, data: bytes, /) -> int:
        """Take a part; returns its size."""


@dataclass(frozen=True)
class InstanceFile:
    """A file inside an instance; ``user`` is its owner's and group's number."""

    path: PurePosixPath
    content: str
    mode: int = 0o644
    user: int = 0


def environment(templates: Path) -> jinja2.Environment:
    """The renderer of everything in ``templates/``."""
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - nothing here is HTML; the filters below quote  # nosec B701
    )
    jinja.filters["sh"] = lambda value: shlex.quote(str(value))
    jinja.filters["systemd"] = quote_systemd
    jinja.filters["without_user"] = without_user
    return jinja


def quote_systemd(value: object) -> str:
    """A value as one word of a systemd unit (https://www.freedesktop.org/software/systemd/man/systemd.syntax.html)."""
    text = str(value)
    if any(not char.isprintable() for char in text):
        raise ValueError(f"{text!r} cannot stand in a systemd unit")
    for char, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        text = text.replace(char, escaped)
    return f'"{text}"'


def without_user(url: str) -> str:
    """A URL without user and password, otherwise as it is."""
    return re.sub(r"^([^:/]+://)[^/]*@", r"\1", url)


def snaps(config: RunnerConfig, arch: Arch) -> tuple[Snap, ...]:
    """The snaps that a runner needs beyond its image."""
    if not config.proxies.aproxy_address:
        return ()
    return (Snap("aproxy", "edge", APROXY_ARM_REVISION if arch is Arch.ARM64 else APROXY_AMD_REVISION),)


def executables(arch: Arch) -> tuple[WgetExecutable, ...]:
    """The single executables that a runner needs and its image may lack."""
    suffix, checksum = YQ[arch]
    return (WgetExecutable(YQ_URL + suffix, "yq", checksum),)


def files(
    jinja: jinja2.Environment,
    config: RunnerConfig,
    *,
    arch: Arch,
    ssh_debug: SSHDebugConnection | None = None,
    policy_url: str | None = None,
    policy_token: str = "",
    registration_token: str = "",
    registration_files: Mapping[str, str] | None = None,
    software: tuple[Sequence[Snap], Sequence[WgetExecutable]] | None = None,
) -> list[InstanceFile]:
    """Everything that is written into a new instance before its set-up script runs.

    ``registration_files`` are the texts by name of a runner that is registered already. Without them the set-up script
    registers the runner with the token.
    """
    values = _values(config, ssh_debug, policy_url, software or (snaps(config, arch), executables(arch)))
    values["registers"] = not registration_files
    wanted = _rendered(jinja, values)
    if registration_files:
        texts = registration_files.items()
        wanted += [InstanceFile(RUNNER_APPLICATION / name, text, 0o600, UBUNTU) for name, text in texts]
    else:
        wanted.append(InstanceFile(TOKEN_FILE, registration_token, 0o600, UBUNTU))
    if policy_url:
        wanted.append(InstanceFile(POLICY_TOKEN_FILE, policy_token, 0o600, UBUNTU))
    if config.pre_job_script:
        wanted.append(InstanceFile(OPERATOR_SCRIPT, config.pre_job_script, 0o755, UBUNTU))
    return wanted + certificate_files(config.ca_certificates) + docker_files(config.dockerhub_mirror, values["proxies"])


def _rendered(jinja: jinja2.Environment, values: Mapping[str, Any]) -> list[InstanceFile]:
    """The files that are made from templates."""

    def rendered(template: str, path: PurePosixPath, mode: int = 0o644, user: int = 0) -> InstanceFile:
        return InstanceFile(path, jinja.get_template(template).render(values), mode, user)

    found = [
        rendered("setup.sh.j2", SETUP_SCRIPT, 0o700),
        rendered("start.sh.j2", RUNNER_SCRIPT, 0o755, UBUNTU),
        rendered("pre-job.sh.j2", PRE_JOB_SCRIPT, 0o755, UBUNTU),
        rendered("env.j2", ENV_FILE, 0o644, UBUNTU),
        rendered("environment.j2", PurePosixPath("/etc/environment")),
        rendered("github-runner.service.j2", PurePosixPath("/etc/systemd/system", SERVICE)),
        rendered("needrestart.conf.j2", PurePosixPath("/etc/needrestart/conf.d/github-runner.conf")),
    ]
    if values["registers"]:
        found.append(rendered("register.sh.j2", REGISTER_SCRIPT, 0o700, UBUNTU))
    if values["proxies"]:
        unit = PurePosixPath("/etc/systemd/system/docker.service.d/http-proxy.conf")
        found.append(rendered("docker-http-proxy.conf.j2", unit))
    return found


def docker_files(mirror: str | None, proxies: Mapping[str, str]) -> list[InstanceFile]:
    """The configuration of Docker's daemon and clients, if there is a mirror or a proxy."""
    found = []
    if mirror:
        # dockerd does not start with credentials in the URL of a mirror.
        daemon = json.dumps({"registry-mirrors": [without_user(mirror)]}) + "\n"
        found.append(InstanceFile(PurePosixPath("/etc/docker/daemon.json"), daemon))
    if proxies:
        client = docker_client_config(proxies)
        found.append(InstanceFile(PurePosixPath("/root/.docker/config.json"), client))
        found.append(InstanceFile(HOME / ".docker/config.json", client, user=UBUNTU))
    return found


def certificate_files(certificates: Sequence[str]) -> list[InstanceFile]:
    """The authorities of the option: one file for each, as update-ca-certificates wants it, and one with all."""
    if not certificates:
        return []
    names = [f"github-runner{f'-{number}' if number > 1 else ''}.crt" for number in range(1, len(certificates) + 1)]
    each = zip(names, certificates, strict=True)
    return [
        *(InstanceFile(CA_FOLDER / name, certificate) for name, certificate in each),
        InstanceFile(CA_BUNDLE, "".join(certificates)),
    ]


# What the templates may use and no option changes.
FIXED: dict[str, Any] = {
    "user": UBUNTU,
    "folder": RUNNER_APPLICATION,
    "pre_job_script": PRE_JOB_SCRIPT,
    "operator_limit": OPERATOR_LIMIT,
    "metrics_folder": METRICS_FOLDER,
    "without_metrics": WITHOUT_METRICS,
    "not_registered": NOT_REGISTERED,
    "register_script": REGISTER_SCRIPT,
    "register_timeout": times.REGISTER,
    "home": HOME,
    "pre_job_file": PRE_JOB_METRICS_FILE_NAME,
    "post_job_file": POST_JOB_METRICS_FILE_NAME,
    "policy_token_file": POLICY_TOKEN_FILE,
    "run_folder": RUN_FOLDER,
    "token_file": TOKEN_FILE,
    "kept_wait": KEPT_WAIT,
    "stop_timeout": times.STOP_AGENT,
    "binary_archive": BINARY_ARCHIVE,
    "image_binary": IMAGE_BINARY,
    "action_archives": ACTION_ARCHIVES,
    "network_timeout": NETWORK_TIMEOUT,
    "routes": "/proc/net/route",
}


def _values(
    config: RunnerConfig,
    ssh_debug: SSHDebugConnection | None,
    policy_url: str | None,
    software: tuple[Sequence[Snap], Sequence[WgetExecutable]],
) -> dict[str, Any]:
    """What the templates may use."""
    aproxy = config.proxies.aproxy_address
    proxies = {} if aproxy else config.proxies.environment(config.name, ".svc")
    wanted_snaps, wanted_executables = software
    return {
        **FIXED,
        "proxies": proxies,
        "ca_bundle": CA_BUNDLE if config.ca_certificates else None,
        "dockerhub_mirror": config.dockerhub_mirror,
        "tmate": tmate_variables(ssh_debug),
        "registers": True,
        "issue_metrics": config.issue_metrics,
        "container": config.container,
        "policy_url": policy_url,
        "external_contributors": config.allow_external_contributor,
        "operator_script": OPERATOR_SCRIPT if config.pre_job_script else None,
        "network_host": network_host(config),
        "snaps": wanted_snaps,
        "executables": wanted_executables,
        "docker_changed": bool(config.dockerhub_mirror or proxies),
        "aproxy_address": aproxy,
        "redirect": config.proxies.redirect,
        "url": f"{config.github_url}/{config.path.path}",
        "labels": ",".join(config.labels),
        "name": config.name,
        "group": config.path.group if isinstance(config.path, GithubOrg) else None,
    }


def tmate_variables(connection: SSHDebugConnection | None) -> dict[str, str]:
    """The variables with which action-tmate finds the server of the debug-ssh relation."""
    if connection is None:
        return {}
    return {
        "TMATE_SERVER_HOST": connection.host,
        "TMATE_SERVER_PORT": str(connection.port),
        "TMATE_SERVER_RSA_FINGERPRINT": connection.rsa_fingerprint,
        "TMATE_SERVER_ED25519_FINGERPRINT": connection.ed25519_fingerprint,
    }


def docker_client_config(proxies: Mapping[str, str]) -> str:
    """The Docker client's configuration, only what is set."""
    keys = {"httpProxy": "HTTP_PROXY", "httpsProxy": "HTTPS_PROXY", "noProxy": "NO_PROXY"}
    default = {key: proxies[name] for key, name in keys.items() if name in proxies}
    return json.dumps({"proxies": {"default": default}}) + "\n"


def network_host(config: RunnerConfig) -> str:
    """The host that must be resolved before the set-up goes on: GitHub's.

    Programs that know of a proxy leave that to it, so there it is the proxy's; with aproxy they do not know.
    """
    proxies = config.proxies
    proxy = None if proxies.aproxy_address else proxies.https or proxies.http
    return urlsplit(proxy or config.github_url).hostname or "github.com"


def write_archive(out: Writable, instance_files: Iterable[InstanceFile], binary: Path | None = None) -> None:
    """Write a tar archive of the files, so that one stream carries them all. Unpack it in ``/``.

    ``binary`` is that of the runner for an image without it. OSError if it cannot be read.
    """
    with ExitStack() as opened:
        # Before the archive begins: one that is cut off between two files would pass for a whole one.
        content = opened.enter_context(binary.open("rb")) if binary is not None else None
        # A stream is only written to.
        tar = opened.enter_context(tarfile.open(fileobj=cast(Any, out), mode="w|", bufsize=CHUNK))
        folders: set[PurePosixPath] = set()
        for file in instance_files:
            folder = file.path.parent
            # Folders of the image keep what they are: only those that belong to a user are named.
            if file.user and folder != HOME and folder not in folders:
                tar.addfile(_entry(folder, 0o755, file.user, tarfile.DIRTYPE))
                folders.add(folder)
            # A file of a just-in-time configuration may have bytes that are no text.
            data = file.content.encode(errors="surrogateescape")
            _add(tar, _entry(file.path, file.mode, file.user, tarfile.REGTYPE), len(data), io.BytesIO(data))
        if content is not None:
            size = os.fstat(content.fileno()).st_size
            _add(tar, _entry(BINARY_ARCHIVE, 0o600, 0, tarfile.REGTYPE), size, content)


def _add(tar: tarfile.TarFile, entry: tarfile.TarInfo, size: int, content: IO[bytes]) -> None:
    entry.size = size
    tar.addfile(entry, content)


def _entry(path: PurePosixPath, mode: int, user: int, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(str(path).lstrip("/"))
    entry.type, entry.mode, entry.uid, entry.gid = kind, mode, user, user
    return entry
