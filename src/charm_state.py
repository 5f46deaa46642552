"""Options, relations and proxies as one frozen CharmState, or all errors at once."""

import logging
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ops

import flavors
import redaction
from errors import ConfigurationError, JujuError
from models import (
    AppCredentials,
    Arch,
    BaseImage,
    CharmState,
    Flavor,
    GithubOrg,
    GithubPath,
    GithubRepo,
    ImageSource,
    RegistrationMethod,
    RepoPolicy,
    RunnerStorage,
    Scaling,
    SSHDebugConnection,
    VirtualMachineResources,
)
from option_values import (
    SSH_KEYS,
    at_least,
    parse_actions,
    parse_addresses,
    parse_arch,
    parse_base_image,
    parse_certificates,
    parse_connection,
    parse_denylist,
    parse_github_url,
    parse_group,
    parse_image_source,
    parse_labels,
    parse_mirror,
    parse_no_proxy,
    parse_overcommit,
    parse_packages,
    parse_path,
    parse_port,
    parse_ports,
    parse_private_key,
    parse_registration,
    parse_reserve,
    parse_scaling,
    parse_script,
    parse_size,
    parse_storage,
    parse_test_mode,
    parse_token,
    parse_url,
)
from proxies import ProxyConfig, Redirect

logger = logging.getLogger(__name__)

COS_AGENT_RELATION = "cos-agent"
DEBUG_SSH_RELATION = "debug-ssh"
RUNNER_STORAGE = "runner"
# What Juju's tool says; a secret backend's own words about its permissions are another matter.
REFUSED_SECRET = re.compile(r"""(?m)^(ERROR )?(permission denied|secret "[^"]*" not found)\s*$""")
# Juju only checks that the option begins with `secret:`. Its tool reads the rest with Go's url.Parse first.
BAD_SECRET_URI = re.compile(r"""(?m)^(ERROR )?(secret URI (scheme )?".*" not valid|parse ".*": .*)\s*$""")
# What a state that lacks the value of an invalid option still has, if it is valid: without it GitHub cannot be reached.
BESIDE = ("app", "ca_certificates", "proxies", "arch")
# The first that is set is used.
CREDENTIALS = ("app-secret", "token-secret", "token")
# The keys of the secret of token-secret. Later versions of the previous charm use the second one.
TOKEN_KEYS = ("token", "github-token")


class _Reader:
    """Reads values one by one and keeps their errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.juju_error: JujuError | None = None

    def read(self, option: str, parse: Callable[[], Any]) -> Any:
        """The parsed value; None for an invalid one, with a line in ``errors`` that names the option and the reason."""
        try:
            return parse()
        except ValueError as error:
            self.errors.append(f"{option}: {error}")
        except JujuError as error:
            self.juju_error = error
        return None


def load(charm: ops.CharmBase, needed: tuple[str, ...] | None = None) -> CharmState:
    """Read all options and relations; ConfigurationError names every invalid value, JujuError is temporary.

    If ``needed`` is given and these fields are valid, other values may be invalid: their fields are then empty.
    """
    reader = _Reader()
    values = _values(charm, reader)
    if needed and reader.errors and all(values[name] is not None for name in needed):
        empty = without_credentials(charm)
        read = {name: values[name] for name in (*needed, *BESIDE) if values[name]}
        return replace(empty, is_partial=True, **read)
    if reader.errors:
        raise ConfigurationError(*reader.errors)
    if reader.juju_error:
        raise reader.juju_error
    return CharmState(**values)


def _values(charm: ops.CharmBase, reader: _Reader) -> dict[str, Any]:
    """The fields of CharmState by name; those that cannot be read are None, and ``reader`` has the reasons."""
    config = charm.config
    test_mode = reader.read("test-mode", lambda: parse_test_mode(config.get("test-mode")))
    # Where test-mode itself is not valid, its own error is enough.
    plain = test_mode is not False
    values = {
        "github_url": reader.read("github-url", lambda: parse_github_url(str(config["github-url"]), plain)),
        "ca_certificates": reader.read("ca-certificates", lambda: parse_certificates(str(config["ca-certificates"]))),
        "path": _path(config, reader),
        **_credentials(charm, reader),
        "registration": reader.read("registration", lambda: parse_registration(str(config["registration"]))),
        "labels": reader.read("labels", lambda: parse_labels(str(config["labels"]))),
        "virtual_machines": reader.read("virtual-machines", lambda: at_least(config["virtual-machines"], 0)),
        "resources": _resources(config, reader),
        **_image_options(config, plain, reader),
        "runner_storage": reader.read("runner-storage", lambda: parse_storage(str(config["runner-storage"]))),
        "reconcile_interval": reader.read("reconcile-interval", lambda: at_least(config["reconcile-interval"], 2)),
        "replace_on_exit": bool(config["replace-on-exit"]),
        "idle_runner_max_age": reader.read("idle-runner-max-age", lambda: at_least(config["idle-runner-max-age"], 0)),
        "denylist": reader.read("denylist", lambda: parse_denylist(str(config["denylist"]))),
        "dockerhub_mirror": reader.read("dockerhub-mirror", lambda: parse_mirror(str(config["dockerhub-mirror"]))),
        **_proxies(os.environ, config, reader),
        "repo_policy": _repo_policy(config, reader),
        "allow_external_contributor": bool(config["allow-external-contributor"]),
        "pre_job_script": reader.read("pre-job-script", lambda: parse_script(str(config.get("pre-job-script") or ""))),
        "test_mode": test_mode,
        "ssh_debug_connections": _ssh_debug_connections(charm, reader),
        "arch": reader.read("architecture", lambda: parse_arch(platform.machine())),
        "issue_metrics": bool(charm.model.relations[COS_AGENT_RELATION]),
        **_scaling_options(config, reader),
    }
    given = _flavors(str(config["flavors"]), values, reader)
    _check_scaling(values, bool(given), reader)
    return {**values, "given_flavors": given}


def _image_options(config: Mapping[str, Any], plain: bool, reader: _Reader) -> dict[str, Any]:
    return {
        "base_image": reader.read("base-image", lambda: parse_base_image(str(config["base-image"]))),
        "image_source": reader.read("image-source", lambda: parse_image_source(str(config["image-source"]), plain)),
        "extra_packages": reader.read("extra-packages", lambda: parse_packages(str(config["extra-packages"]))),
        "image_script": reader.read("image-script", lambda: parse_script(str(config["image-script"]))),
        "cached_actions": reader.read("cached-actions", lambda: parse_actions(str(config["cached-actions"]))),
    }


def _scaling_options(config: Mapping[str, Any], reader: _Reader) -> dict[str, Any]:
    return {
        "scaling": reader.read("scaling", lambda: parse_scaling(str(config["scaling"]))),
        "min_idle": reader.read("min-idle", lambda: at_least(config["min-idle"], 0)),
        "memory_reserve": reader.read("memory-reserve", lambda: parse_reserve(str(config["memory-reserve"]))),
        "cpu_overcommit": reader.read("cpu-overcommit", lambda: parse_overcommit(str(config["cpu-overcommit"]))),
        "demand_fallback": reader.read("demand-fallback", lambda: at_least(config["demand-fallback"], 0)),
        "metrics_port": reader.read("metrics-port", lambda: parse_port(config["metrics-port"])),
    }


def _flavors(text: str, values: Mapping[str, Any], reader: _Reader) -> tuple[Flavor, ...]:
    """The field ``given_flavors``. A valid value stands for an option of the unit that is not valid itself."""
    number = values["virtual_machines"]
    defaults = flavors.Defaults(
        values["resources"] or VirtualMachineResources(1, "1GiB", "1GiB"),
        values["base_image"] or BaseImage.JAMMY,
        values["labels"] or (),
        flavors.MOST if number is None else number,
        values["scaling"],
    )
    parsed = flavors.parse(text, defaults)
    reader.errors += [f"flavors: {error}" for error in parsed.errors]
    for warning in parsed.warnings:
        logger.warning("flavors: %s", warning)
    return parsed.flavors


def _check_scaling(values: Mapping[str, Any], has_flavors: bool, reader: _Reader) -> None:
    """Options that do not go together, and those that have no effect in fixed mode."""
    scaling, idle, number = values["scaling"], values["min_idle"], values["virtual_machines"]
    if scaling is Scaling.DEMAND and values["registration"] is RegistrationMethod.TOKEN:
        reader.errors.append("registration: token does not go with scaling=demand; set auto or jit, or scaling=fixed")
    if idle and has_flavors:
        reader.errors.append(f"min-idle: {idle} does not go with flavors; set min-idle of each flavour, and reset this")
    elif idle and number is not None and scaling is Scaling.DEMAND and idle > number:
        reader.errors.append(f"min-idle: {idle} exceeds virtual-machines {number}; lower it, or raise virtual-machines")
    if scaling is Scaling.FIXED:
        ignored = [option for option in ("min-idle", "demand-fallback") if values[option.replace("-", "_")]]
        if ignored:
            logger.warning("Ignored with scaling=fixed: %s", ", ".join(ignored))


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
        runner_proxies=ProxyConfig(),
        repo_policy=None,
        test_mode=False,
        ssh_debug_connections=(),
        arch=Arch.X64,
        issue_metrics=bool(charm.model.relations[COS_AGENT_RELATION]),
    )


def _path(config: Mapping[str, Any], reader: _Reader) -> GithubPath | None:
    """The path with its group, which counts for an organisation only."""
    path: GithubPath | None = reader.read("path", lambda: parse_path(str(config["path"])))
    if isinstance(path, GithubRepo):
        return path
    group = reader.read("group", lambda: parse_group(str(config["group"])))
    return GithubOrg(path.org, group) if path and group else None


def _credentials(charm: ops.CharmBase, reader: _Reader) -> dict[str, Any]:
    """The fields ``app`` and ``token``: what the first option that is set holds.

    An option that is set and cannot be read is an error, and no other option replaces it.
    """
    given = [name for name in CREDENTIALS if str(charm.config.get(name) or "").strip()]
    if len(given) > 1:
        logger.warning("%s is used; ignored: %s", given[0], ", ".join(given[1:]))
    if given[:1] == ["app-secret"]:
        app = reader.read("app-secret", lambda: _app(charm))
        return {"app": app, "token": "" if app else None}
    return {
        "app": None,
        "token": reader.read("token-secret" if "token-secret" in given else "token", lambda: _token(charm)),
    }


def _app(charm: ops.CharmBase) -> AppCredentials:
    content = _secret_content(charm, "app-secret")
    values = {key: content.get(key, "").strip() for key in ("app-id", "private-key", "installation-id")}
    redaction.note(values["private-key"])
    for key in ("app-id", "private-key"):
        if not values[key]:
            command = f"juju update-secret {charm.config['app-secret']} app-id=ID private-key#file=FILE"
            raise ValueError(f"the secret has no key `{key}`; run `{command}`")
    if not re.fullmatch("[A-Za-z0-9._-]{1,64}", values["app-id"]):
        raise ValueError(
            "app-id is neither the client id nor the number of a GitHub App; copy one of them from the App's page"
        )
    if not re.fullmatch("([1-9][0-9]{0,18})?", values["installation-id"]):
        raise ValueError("installation-id is not a number; correct installation-id, or remove it")
    number = int(values["installation-id"]) if values["installation-id"] else None
    return AppCredentials(values["app-id"], parse_private_key(values["private-key"]), number)


def _token(charm: ops.CharmBase) -> str:
    secret_id = charm.config.get("token-secret")
    if not secret_id:
        token = str(charm.config["token"]).strip()
        if not token:
            raise ValueError("is empty; set app-secret to a GitHub App, or token-secret to a personal access token")
        return parse_token(token)
    content = _secret_content(charm, "token-secret")
    found = [content[key].strip() for key in TOKEN_KEYS if content.get(key, "").strip()]
    if not found:
        raise ValueError(
            f"the secret has no key `token`, nor `github-token`; run `juju update-secret {secret_id} token=TOKEN`"
        )
    return parse_token(found[0])


def _secret_content(charm: ops.CharmBase, option: str) -> dict[str, str]:
    """The newest revision. ValueError where the operator must act, JujuError where Juju cannot answer now."""
    secret_id = str(charm.config[option])
    # Model.get_secret would ask for the tracked revision first, which may have been removed since.
    secret = ops.Secret(charm.model._backend, id=secret_id)
    try:
        return secret.get_content(refresh=True)
    except ops.ModelError as error:
        # Juju's tool has no other sign of the difference than its words.
        if re.search(BAD_SECRET_URI, str(error)):
            # The value is not shown: it may be a token.
            raise ValueError("is not a secret's URI; set the one that `juju add-secret` printed") from None
        refused = isinstance(error, ops.SecretNotFoundError) or re.search(REFUSED_SECRET, str(error))
        if refused:
            raise ValueError(
                f"{secret_id} does not exist or cannot be read; run `juju grant-secret {secret_id} {charm.app.name}`"
            ) from error
        raise JujuError(f"{option}: {secret_id} cannot be read at the moment: {error}") from error


def _resources(config: Mapping[str, Any], reader: _Reader) -> VirtualMachineResources | None:
    cpu = reader.read("vm-cpu", lambda: at_least(config["vm-cpu"], 1))
    memory = reader.read("vm-memory", lambda: parse_size(str(config["vm-memory"])))
    disk = reader.read("vm-disk", lambda: parse_size(str(config["vm-disk"])))
    return VirtualMachineResources(cpu, memory, disk) if cpu and memory and disk else None


def _proxies(environment: Mapping[str, str], config: Mapping[str, Any], reader: _Reader) -> dict[str, ProxyConfig]:
    """The fields ``proxies``, from the hook's environment, and ``runner_proxies``.

    Errors in the model's proxies carry the names of the model's own options.
    """
    model = {name: environment.get(f"JUJU_CHARM_{name.upper()}_PROXY", "").strip() for name in ("http", "https", "no")}
    http = _proxy("juju-http-proxy", model["http"], reader)
    https = _proxy("juju-https-proxy", model["https"], reader)
    given = str(config["runner-http-proxy"]).strip()
    runner = _proxy("runner-http-proxy", given, reader)
    if config["experimental-use-aproxy"] and not (model["http"] or model["https"] or given):
        reader.errors.append(
            "experimental-use-aproxy: is true, which needs runner-http-proxy, or a proxy in the model-config; set one "
            "of them, or false"
        )
    found = http or https or runner
    no_proxy = reader.read("juju-no-proxy", lambda: parse_no_proxy(model["no"])) if found else None
    unit = ProxyConfig(http, https, no_proxy) if http or https else ProxyConfig()
    runners = ProxyConfig(runner, runner, no_proxy) if runner else unit
    return {"proxies": unit, "runner_proxies": _with_aproxy(runners, config, reader)}


def _proxy(option: str, value: str, reader: _Reader) -> str | None:
    """The URL of a proxy, which may have credentials; None where there is none."""
    if not value:
        return None
    url: str | None = reader.read(option, lambda: parse_url(value, "http", "https", credentials=True))
    return url


def _with_aproxy(proxies: ProxyConfig, config: Mapping[str, Any], reader: _Reader) -> ProxyConfig:
    """The runners' proxies with what aproxy redirects to them, if it is used."""
    excluded = reader.read("aproxy-exclude-addresses", lambda: parse_addresses(str(config["aproxy-exclude-addresses"])))
    ports = reader.read("aproxy-redirect-ports", lambda: parse_ports(str(config["aproxy-redirect-ports"])))
    if not config["experimental-use-aproxy"]:
        default = Redirect()
        for option, differs in (
            ("aproxy-exclude-addresses", excluded not in (None, default.excluded)),
            ("aproxy-redirect-ports", ports not in (None, default.ports)),
        ):
            if differs:
                reader.errors.append(f"{option}: needs experimental-use-aproxy=true; set that, or reset {option}")
        return proxies
    if excluded is None or ports is None or not proxies:
        return proxies
    used = replace(proxies, use_aproxy=True, redirect=Redirect(ports, excluded))
    if not used.suits_aproxy:
        reader.errors.append(
            "experimental-use-aproxy: aproxy takes a proxy only by an IPv4 address or a host name of letters, digits, "
            "dots and hyphens; change the proxy's URL"
        )
    if used.captured:
        address, port = used.captured
        reader.errors.append(
            f"aproxy-redirect-ports: has port {port} of the proxy {address}, which would be redirected to itself; "
            f"leave it out, or add {address} to aproxy-exclude-addresses"
        )
    return used


def _repo_policy(config: Mapping[str, Any], reader: _Reader) -> RepoPolicy | None:
    url, token = config.get("repo-policy-compliance-url"), config.get("repo-policy-compliance-token")
    if not url and not token:
        return None
    if not (url and token):
        given, missing = ("url", "token") if url else ("token", "url")
        name = f"repo-policy-compliance-{missing}"
        reader.errors.append(f"{name}: is missing while repo-policy-compliance-{given} is set; give both or neither")
        return None
    parsed = reader.read("repo-policy-compliance-url", lambda: parse_url(str(url), "http", "https"))
    secret = reader.read("repo-policy-compliance-token", lambda: parse_token(str(token).strip()))
    return RepoPolicy(parsed, secret) if parsed and secret else None


def _ssh_debug_connections(charm: ops.CharmBase, reader: _Reader) -> tuple[SSHDebugConnection, ...]:
    connections = []
    for relation in charm.model.relations[DEBUG_SSH_RELATION]:
        for unit in sorted(relation.units, key=lambda unit: unit.name):
            data = {key: relation.data[unit].get(key, "") for key in SSH_KEYS}
            missing = [key for key, value in data.items() if not value]
            if missing:
                logger.warning("%s of %s is not ready: %s missing", DEBUG_SSH_RELATION, unit.name, ", ".join(missing))
                continue
            connection = reader.read(f"{DEBUG_SSH_RELATION} of {unit.name}", partial(parse_connection, data))
            if connection:
                connections.append(connection)
    return tuple(sorted(connections, key=lambda connection: (connection.host, connection.port)))
