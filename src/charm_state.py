"""Options, relations and proxies as one frozen CharmState, or all errors at once."""

import ipaddress
import logging
import os
import platform
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import ops

import redaction
from errors import ConfigurationError, JujuError
from models import (
    AppCredentials,
    Arch,
    BaseImage,
    CharmState,
    GithubOrg,
    GithubPath,
    GithubRepo,
    ImageSource,
    ProxyConfig,
    RegistrationMethod,
    RepoPolicy,
    RunnerStorage,
    SSHDebugConnection,
    VirtualMachineResources,
    parse_github_path,
    size_in_bytes,
)

logger = logging.getLogger(__name__)

COS_AGENT_RELATION = "cos-agent"
DEBUG_SSH_RELATION = "debug-ssh"
RUNNER_STORAGE = "runner"
# What Juju's tool says; a secret backend's own words about its permissions are another matter.
REFUSED_SECRET = re.compile(r"""(?m)^(ERROR )?(permission denied|secret "[^"]*" not found)\s*$""")
# The first that is set is used.
CREDENTIALS = ("app-secret", "token-secret", "token")
SSH_KEYS = ("host", "port", "rsa_fingerprint", "ed25519_fingerprint")
LABEL_LIMIT = 256
# GitHub accepts 100 labels for a runner (https://docs.github.com/en/rest/actions/self-hosted-runners): three that it
# gives by itself, the application's name, the base image, and these.
MOST_LABELS = 95
GROUP_LIMIT = 256
# Of a rejected value in a message, in characters.
SHOWN_LIMIT = 40
IMAGES = {"jammy": BaseImage.JAMMY, "22.04": BaseImage.JAMMY, "noble": BaseImage.NOBLE, "24.04": BaseImage.NOBLE}


class _Faults:
    """Reads values one by one and keeps what is wrong with each."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.passing: JujuError | None = None

    def read(self, option: str, parse: Callable[[], Any]) -> Any:
        """The parsed value, or None and a line that names the option and the fault."""
        try:
            return parse()
        except ValueError as error:
            self.found.append(f"{option}: {error}")
        except JujuError as error:
            self.passing = error
        return None


def load(charm: ops.CharmBase, needed: tuple[str, ...] | None = None) -> CharmState:
    """Read everything the unit was given; ConfigurationError names every fault, JujuError is Juju's and passes.

    Where only some fields are needed, and good, the others may be at fault: they are then empty ones.
    """
    faults = _Faults()
    values = _values(charm, faults)
    if needed and faults.found and all(values[name] is not None for name in needed):
        empty = without_credentials(charm)
        return replace(empty, **{name: values[name] for name in (*needed, "app", "proxies", "arch") if values[name]})
    if faults.found:
        raise ConfigurationError(*faults.found)
    if faults.passing:
        raise faults.passing
    return CharmState(**values)


def _values(charm: ops.CharmBase, faults: _Faults) -> dict[str, Any]:
    """The fields of CharmState by name; those that cannot be read are None, and ``faults`` has the reasons."""
    config = charm.config
    test_mode = faults.read("test-mode", lambda: parse_test_mode(config.get("test-mode")))
    # Where test-mode itself is not valid, its own fault is enough.
    plain = test_mode is not False
    return {
        "github_url": faults.read("github-url", lambda: parse_github_url(str(config["github-url"]), plain)),
        "ca_certificates": faults.read("ca-certificates", lambda: parse_certificates(str(config["ca-certificates"]))),
        "path": _path(config, faults),
        **_credentials(charm, faults),
        "registration": faults.read("registration", lambda: parse_registration(str(config["registration"]))),
        "labels": faults.read("labels", lambda: parse_labels(str(config["labels"]))),
        "virtual_machines": faults.read("virtual-machines", lambda: at_least(config["virtual-machines"], 0)),
        "resources": _resources(config, faults),
        "base_image": faults.read("base-image", lambda: parse_base_image(str(config["base-image"]))),
        "image_source": faults.read("image-source", lambda: parse_image_source(str(config["image-source"]), plain)),
        "runner_storage": faults.read("runner-storage", lambda: parse_storage(str(config["runner-storage"]))),
        "reconcile_interval": faults.read("reconcile-interval", lambda: at_least(config["reconcile-interval"], 2)),
        "replace_on_exit": bool(config["replace-on-exit"]),
        "idle_runner_max_age": faults.read("idle-runner-max-age", lambda: at_least(config["idle-runner-max-age"], 0)),
        "denylist": faults.read("denylist", lambda: parse_denylist(str(config["denylist"]))),
        "dockerhub_mirror": faults.read("dockerhub-mirror", lambda: parse_mirror(str(config["dockerhub-mirror"]))),
        "proxies": _proxies(os.environ, bool(config["experimental-use-aproxy"]), faults),
        "repo_policy": _repo_policy(config, faults),
        "allow_external_contributor": bool(config["allow-external-contributor"]),
        "test_mode": test_mode,
        "ssh_debug_connections": _ssh_debug_connections(charm, faults),
        "arch": faults.read("architecture", lambda: parse_arch(platform.machine())),
        "issue_metrics": bool(charm.model.relations[COS_AGENT_RELATION]),
    }


def without_credentials(charm: ops.CharmBase) -> CharmState:
    """A state with which a unit can be cleared whatever its options say: it knows LXD's side only."""
    return CharmState(
        github_url="https://github.com",
        path=GithubOrg("unknown"),
        token="",  # nosec B106
        labels=(),
        virtual_machines=0,
        resources=VirtualMachineResources(1, "1GiB", "1GiB"),
        base_image=BaseImage.JAMMY,
        image_source=ImageSource(alias="unknown"),
        runner_storage=RunnerStorage.JUJU_STORAGE,
        reconcile_interval=10,
        replace_on_exit=False,
        idle_runner_max_age=0,
        denylist=(),
        dockerhub_mirror=None,
        proxies=ProxyConfig(),
        repo_policy=None,
        test_mode=False,
        ssh_debug_connections=(),
        arch=Arch.X64,
        issue_metrics=bool(charm.model.relations[COS_AGENT_RELATION]),
    )


def parse_url(value: str, *schemes: str, credentials: bool = False) -> str:
    """A URL of one of the schemes, without a trailing slash; nothing in it can end a word of a shell, unit or file."""
    value = value.strip().rstrip("/")
    try:
        parts = urlsplit(value)
        good = parts.scheme in schemes and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if (
        not good
        or not re.fullmatch(r"""[^\x00-\x20\x7f-\U0010ffff'"$`\\;?#]+""", value)
        or (parts.username is not None and not credentials)
    ):
        forms = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ValueError(f"{_without_user(value)!r} is not {'an' if schemes == ('https',) else 'a'} {forms} URL")
    return value


def _without_user(value: str) -> str:
    """A rejected value without what may be a password."""
    return re.sub(r"(?s)^(.*?//)?.*@", r"\1…@", value)


def _refuse_plain(url: str, plain: bool, reason: str) -> None:
    if urlsplit(url).scheme == "http" and not plain:
        raise ValueError(f"{url!r} is not encrypted: {reason}; use https:// (test-mode=insecure accepts http://)")


def parse_github_url(value: str, plain: bool = False) -> str:
    """The address of a GitHub: scheme and host, without a path; ``plain`` accepts http."""
    try:
        url = parse_url(value, "http", "https")
    except ValueError as error:
        raise ValueError(f"{error} of a GitHub, such as https://github.com") from None
    parts = urlsplit(url)
    # These hosts belong to github.com or to SUB.ghe.com. Runners do not register at them.
    host = re.sub(r"^(api|www)\.(?=github\.com(:|$)|[^.]+\.ghe\.com(:|$))", "", parts.netloc.lower())
    if parts.path or host != parts.netloc.lower():
        raise ValueError(
            f"{url!r} is not the address of a GitHub; use {parts.scheme}://{host} and set the owner in path"
        )
    _refuse_plain(url, plain, "the token could be read on the way")
    return url


def parse_certificates(value: str) -> tuple[str, ...]:
    """PEM certificates, one after another; text between them is dropped. A private key is refused."""
    pem = value.replace("\r", "")
    kinds = set(re.findall("-----BEGIN ([^-\n]*)-----", pem))
    found = re.findall("-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+\n-----END CERTIFICATE-----", pem)
    try:
        if kinds - {"CERTIFICATE"} or pem.count("-----BEGIN") != len(found) or (pem.strip() and not found):
            raise ValueError
        if found:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata="\n".join(found))
    except (ValueError, ssl.SSLError):
        raise ValueError("is not PEM; give certificates only, each from its BEGIN line to its END line") from None
    return tuple(f"{certificate}\n" for certificate in dict.fromkeys(found))


def parse_path(path: str) -> GithubPath:
    """``owner/repo`` or ``org``; surplus slashes around the owner and the repository are ignored."""
    if not path.strip(" /"):
        raise ValueError("is empty; give owner/repo or org")
    return parse_github_path(path.strip())


def parse_group(group: str) -> str:
    """A runner group's name. It is quoted where it is used, so that any printable character is accepted."""
    name = group.strip()
    # config.sh would take a name with a leading hyphen for one of its own options.
    if not name.isprintable() or not 1 <= len(name) <= GROUP_LIMIT or name.startswith("-"):
        raise ValueError(
            f"{_shortened(name)} is not a runner group's name; use 1 to {GROUP_LIMIT} printable characters, "
            "the first of which is not -"
        )
    return name


def _shortened(text: str) -> str:
    """A rejected value for a message, of bounded length."""
    return repr(text if len(text) <= SHOWN_LIMIT else f"{text[:SHOWN_LIMIT]}…")


def _path(config: Mapping[str, Any], faults: _Faults) -> GithubPath | None:
    """The path with its group, which counts for an organisation only."""
    path: GithubPath | None = faults.read("path", lambda: parse_path(str(config["path"])))
    if isinstance(path, GithubRepo):
        return path
    group = faults.read("group", lambda: parse_group(str(config["group"])))
    return GithubOrg(path.org, group) if path and group else None


def _credentials(charm: ops.CharmBase, faults: _Faults) -> dict[str, Any]:
    """The fields ``app`` and ``token``: what the first option that is set holds.

    An option that is set and cannot be read is an error, and no other option replaces it.
    """
    given = [name for name in CREDENTIALS if str(charm.config.get(name) or "").strip()]
    if len(given) > 1:
        logger.warning("%s is used; ignored: %s", given[0], ", ".join(given[1:]))
    if given[:1] == ["app-secret"]:
        app = faults.read("app-secret", lambda: _app(charm))
        return {"app": app, "token": "" if app else None}
    return {
        "app": None,
        "token": faults.read("token-secret" if "token-secret" in given else "token", lambda: _token(charm)),
    }


def _app(charm: ops.CharmBase) -> AppCredentials:
    content = _secret_content(charm, "app-secret")
    values = {key: content.get(key, "").strip() for key in ("app-id", "private-key", "installation-id")}
    redaction.note(values["private-key"])
    for key in ("app-id", "private-key"):
        if not values[key]:
            raise ValueError(f"the secret has no key `{key}`")
    if not re.fullmatch("[A-Za-z0-9._-]{1,64}", values["app-id"]):
        raise ValueError("app-id is neither the client id nor the number of a GitHub App")
    if not re.fullmatch("([1-9][0-9]{0,18})?", values["installation-id"]):
        raise ValueError("installation-id is not a number")
    number = int(values["installation-id"]) if values["installation-id"] else None
    return AppCredentials(values["app-id"], parse_private_key(values["private-key"]), number)


def parse_private_key(value: str) -> str:
    """An RSA private key in PEM form, as GitHub gives it (PKCS#1) or converted (PKCS#8)."""
    pem = value.replace("\r", "").strip()
    if not re.fullmatch("-----BEGIN ((?:RSA )?PRIVATE KEY)-----\n[A-Za-z0-9+/=\n]+\n-----END \\1-----", pem):
        raise ValueError(
            "private-key is not an unencrypted private key in PEM form; "
            "add the file of the GitHub App with private-key#file=FILE"
        )
    return f"{pem}\n"


def parse_registration(value: str) -> RegistrationMethod:
    """``auto``, ``jit`` or ``token``."""
    try:
        return RegistrationMethod(value.strip())
    except ValueError:
        raise ValueError(f"{_shortened(value)} is not one of auto, jit, token") from None


def _token(charm: ops.CharmBase) -> str:
    secret_id = charm.config.get("token-secret")
    if not secret_id:
        token = str(charm.config["token"]).strip()
        if not token:
            raise ValueError("is empty; set app-secret to a GitHub App, or token-secret to a personal access token")
        return _printable(token)
    content = _secret_content(charm, "token-secret")
    if not content.get("token", "").strip():
        raise ValueError("the secret has no key `token`")
    return _printable(content["token"].strip())


def _secret_content(charm: ops.CharmBase, option: str) -> dict[str, str]:
    """The newest revision. ValueError where the operator must act, JujuError where Juju cannot answer now."""
    secret_id = str(charm.config[option])
    # Model.get_secret would ask for the tracked revision first, which may have been removed since.
    secret = ops.Secret(charm.model._backend, id=secret_id)
    try:
        return secret.get_content(refresh=True)
    except ops.ModelError as error:
        # Juju's tool has no other sign of the difference than its words.
        refused = isinstance(error, ops.SecretNotFoundError) or re.search(REFUSED_SECRET, str(error))
        if refused:
            raise ValueError(
                f"{secret_id} does not exist or cannot be read; run `juju grant-secret {secret_id} {charm.app.name}`"
            ) from error
        raise JujuError(f"{option}: {secret_id} cannot be read at the moment: {error}") from error


def _printable(token: str) -> str:
    redaction.note(token)
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError("is blank or has characters that a token never has; use printable ASCII without blanks")
    return token


def parse_labels(value: str) -> tuple[str, ...]:
    """Labels of a comma list: whatever GitHub accepts. The message names every bad one.

    config.sh splits the list at commas and limits each label to 256 UTF-16 code units
    (https://github.com/actions/runner/blob/main/src/Runner.Listener/Configuration/Validators.cs).
    """
    labels = [label.strip() for label in value.split(",") if label.strip()]
    bad = [label for label in labels if not label.isprintable() or len(label.encode("utf-16-le")) > 2 * LABEL_LIMIT]
    if bad:
        raise ValueError(
            f"{', '.join(map(_shortened, bad))} not allowed; use printable characters, {LABEL_LIMIT} at most in a label"
        )
    number = len({label.lower() for label in labels})
    if number > MOST_LABELS:
        raise ValueError(f"{number} labels are too many; set {MOST_LABELS} at most")
    return tuple(dict.fromkeys(labels))


def at_least(value: Any, minimum: int) -> int:
    """A whole number that is not below the minimum."""
    if int(value) < minimum:
        raise ValueError(f"{value} is too small; it must be {minimum} or more")
    return int(value)


def _resources(config: Mapping[str, Any], faults: _Faults) -> VirtualMachineResources | None:
    cpu = faults.read("vm-cpu", lambda: at_least(config["vm-cpu"], 1))
    memory = faults.read("vm-memory", lambda: parse_size(str(config["vm-memory"])))
    disk = faults.read("vm-disk", lambda: parse_size(str(config["vm-disk"])))
    return VirtualMachineResources(cpu, memory, disk) if cpu and memory and disk else None


def parse_size(value: str) -> str:
    """A size such as ``7GiB``, within what LXD can count (63 bits)."""
    if size_in_bytes(value.strip()) >= 1 << 63:
        raise ValueError(f"{value!r} is more than LXD can count")
    return value.strip()


def parse_base_image(value: str) -> BaseImage:
    """A release's name or number, in any case."""
    image = IMAGES.get(value.strip().lower())
    if image is None:
        raise ValueError(f"{value!r} is not one of {', '.join(IMAGES)}")
    return image


def parse_image_source(value: str, plain: bool = False) -> ImageSource:
    """A simplestreams server's URL, or ``local:ALIAS``; ``plain`` accepts http."""
    value = value.strip()
    if value.startswith("local:"):
        return ImageSource.parse(value)
    try:
        server = parse_url(value, "https", "http")
    except ValueError as error:
        raise ValueError(f"{error} of a simplestreams server, nor local:ALIAS") from None
    _refuse_plain(server, plain, "the image could be replaced on the way")
    return ImageSource(server=server)


def parse_storage(value: str) -> RunnerStorage:
    """``juju-storage`` or ``memory``."""
    try:
        return RunnerStorage(value.strip())
    except ValueError:
        raise ValueError(f"{value!r} is not one of juju-storage, memory") from None


def parse_denylist(value: str) -> tuple[ipaddress.IPv4Network, ...]:
    """IPv4 networks of a comma list; every bad one is named."""
    networks, bad = [], []
    for item in filter(None, (part.strip() for part in value.split(","))):
        try:
            networks.append(ipaddress.IPv4Network(item))
        except ValueError as error:
            bad.append(f"{item!r} ({error})")
    if bad:
        raise ValueError(f"{', '.join(bad)} not an IPv4 network in CIDR form such as 10.0.0.0/8")
    return tuple(networks)


def parse_mirror(value: str) -> str | None:
    """An https URL, or None if the option is empty. It may have credentials, and keeps a trailing slash."""
    if not value.strip():
        return None
    parse_url(value, "https", credentials=True)
    return value.strip()


def _proxies(environment: Mapping[str, str], use_aproxy: bool, faults: _Faults) -> ProxyConfig:
    """The model's proxies from the hook's environment; faults carry the names of the model's own options."""
    given = {name: environment.get(f"JUJU_CHARM_{name.upper()}_PROXY", "").strip() for name in ("http", "https", "no")}
    http, https = (
        faults.read(f"juju-{name}-proxy", partial(parse_url, given[name], "http", "https", credentials=True))
        if given[name]
        else None
        for name in ("http", "https")
    )
    if use_aproxy and not (given["http"] or given["https"]):
        faults.found.append(
            "experimental-use-aproxy: is true, which needs juju-http-proxy or juju-https-proxy in the model-config"
        )
    if not (http or https):
        return ProxyConfig()
    no_proxy = faults.read("juju-no-proxy", lambda: parse_no_proxy(given["no"]))
    return ProxyConfig(http, https, no_proxy, use_aproxy)


def parse_no_proxy(value: str) -> str | None:
    """A comma list of hosts and networks."""
    hosts = [host.strip() for host in value.split(",") if host.strip()]
    bad = [host for host in hosts if not re.fullmatch(r"[A-Za-z0-9_.:/*\[\]-]+", host)]
    if bad:
        raise ValueError(f"{', '.join(repr(_without_user(host)) for host in bad)} is no host, domain or network")
    return ",".join(hosts) or None


def _repo_policy(config: Mapping[str, Any], faults: _Faults) -> RepoPolicy | None:
    url, token = config.get("repo-policy-compliance-url"), config.get("repo-policy-compliance-token")
    if not url and not token:
        return None
    if not (url and token):
        given, missing = ("url", "token") if url else ("token", "url")
        name = f"repo-policy-compliance-{missing}"
        faults.found.append(f"{name}: is missing while repo-policy-compliance-{given} is set; give both or neither")
        return None
    parsed = faults.read("repo-policy-compliance-url", lambda: parse_url(str(url), "http", "https"))
    secret = faults.read("repo-policy-compliance-token", lambda: _printable(str(token).strip()))
    return RepoPolicy(parsed, secret) if parsed and secret else None


def parse_test_mode(value: Any) -> bool:
    """Whether runners are containers; only ``insecure`` says so."""
    if not value:
        return False
    if value != "insecure":
        raise ValueError(f"{value!r} is not accepted; the only value is insecure, else leave it unset")
    return True


def parse_arch(machine: str) -> Arch:
    """The architecture of this machine, as `uname -m` gives it."""
    known = {"x86_64": Arch.X64, "amd64": Arch.X64, "aarch64": Arch.ARM64, "arm64": Arch.ARM64}
    if machine.lower() not in known:
        raise ValueError(f"{machine!r} is not one of x86_64, aarch64")
    return known[machine.lower()]


def _ssh_debug_connections(charm: ops.CharmBase, faults: _Faults) -> tuple[SSHDebugConnection, ...]:
    connections = []
    for relation in charm.model.relations[DEBUG_SSH_RELATION]:
        for unit in sorted(relation.units, key=lambda unit: unit.name):
            data = {key: relation.data[unit].get(key, "") for key in SSH_KEYS}
            missing = [key for key, value in data.items() if not value]
            if missing:
                logger.warning("%s of %s is not ready: %s missing", DEBUG_SSH_RELATION, unit.name, ", ".join(missing))
                continue
            connection = faults.read(f"{DEBUG_SSH_RELATION} of {unit.name}", partial(parse_connection, data))
            if connection:
                connections.append(connection)
    return tuple(sorted(connections, key=lambda connection: (connection.host, connection.port)))


def parse_connection(data: Mapping[str, str]) -> SSHDebugConnection:
    """One tmate server, all of whose keys are there."""
    try:
        host = str(ipaddress.ip_address(data["host"]))
        if "%" in host:  # an IPv6 scope may be any text
            raise ValueError(host)
    except ValueError:
        raise ValueError(f"host {data['host']!r} is not an IP address") from None
    if not re.fullmatch(r"[0-9]{1,5}", data["port"], re.ASCII) or not 1 <= int(data["port"]) <= 65535:
        raise ValueError(f"port {data['port']!r} is not a number from 1 to 65535")
    for key in SSH_KEYS[2:]:
        if not re.fullmatch(r"SHA256:[A-Za-z0-9+/=]{1,64}", data[key]):
            raise ValueError(f"{key} {data[key]!r} is not of the form SHA256:…")
    return SSHDebugConnection(host, int(data["port"]), data["rsa_fingerprint"], data["ed25519_fingerprint"])
