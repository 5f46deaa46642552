"""Options, relations and proxies become one valid state, or all errors are named."""

import ast
import inspect
import logging
from ipaddress import IPv4Network
from typing import Any

import ops
import pytest
from ops import testing

import charm_state
from errors import ConfigurationError, JujuError
from gh.registration import complete
from models import (
    Arch,
    BaseImage,
    CharmState,
    Flavor,
    GithubOrg,
    GithubRepo,
    ImageSource,
    RepoPolicy,
    RunnerStorage,
    Scaling,
    SSHDebugConnection,
    VirtualMachineResources,
)
from option_values import MOST_LABELS, parse_arch
from proxies import ProxyConfig
from sandbox.github import tls
from tests.support.charm import ACTIONS, CONFIG, META
from tests.support.options import EVERY_OPTION, OTHERS

pytestmark = pytest.mark.usefixtures("quick_yaml")

GOOD: dict[str, Any] = {"path": "octo-org/demo", "token": "ghp_secret"}
MODEL_PROXIES = ("JUJU_CHARM_HTTP_PROXY", "JUJU_CHARM_HTTPS_PROXY", "JUJU_CHARM_NO_PROXY")
TMATE = {
    "host": "10.1.2.3",
    "port": "10022",
    "rsa_fingerprint": "SHA256:abcDEF123+/",
    "ed25519_fingerprint": "SHA256:xyz789",
}
HOSTILE = ["a'b", 'a"b', "a\nb", "a$(reboot)b", "a`reboot`b", "a\\b", "a\x00b"]


class LoadingCharm(ops.CharmBase):
    """Reads its state when the options or the relations change, and keeps what came of it."""

    state: CharmState | None = None
    error: Any = None

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        framework.observe(self.on.config_changed, self._load)
        framework.observe(self.on["cos-agent"].relation_broken, self._load)

    def _load(self, _: ops.EventBase) -> None:
        try:
            self.state = charm_state.load(self)
        except (ConfigurationError, JujuError) as error:
            self.error = error


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODEL_PROXIES:
        monkeypatch.delenv(name, raising=False)


def run(config: dict[str, Any], *relations: testing.Relation, secrets: tuple[testing.Secret, ...] = ()) -> LoadingCharm:
    """What the charm makes of these options on top of a repository and a token; None takes an option away."""
    options = {key: value for key, value in {**GOOD, **config}.items() if value is not None}
    context = testing.Context(LoadingCharm, meta=META, config=CONFIG, actions=ACTIONS)
    state = testing.State(config=options, relations=relations, secrets=secrets)
    with context(context.on.config_changed(), state) as manager:
        manager.run()
        charm: LoadingCharm = manager.charm
        return charm


def load(config: dict[str, Any], *relations: testing.Relation, secrets: tuple[testing.Secret, ...] = ()) -> CharmState:
    charm = run(config, *relations, secrets=secrets)
    assert charm.error is None
    assert charm.state is not None
    return charm.state


def errors_of(
    config: dict[str, Any], *relations: testing.Relation, secrets: tuple[testing.Secret, ...] = ()
) -> tuple[str, ...]:
    charm = run(config, *relations, secrets=secrets)
    assert charm.state is None
    assert charm.error is not None
    assert str(charm.error) == "; ".join(charm.error.invalid)
    assert not any(line.splitlines()[1:] for line in charm.error.invalid)
    found: tuple[str, ...] = charm.error.invalid
    return found


def error_of(config: dict[str, Any], *relations: testing.Relation) -> str:
    [only] = errors_of(config, *relations)
    return only


def tmate(*units: dict[str, str]) -> testing.Relation:
    return testing.Relation("debug-ssh", remote_units_data={number: dict(data) for number, data in enumerate(units)})


def test_defaults() -> None:
    """With a path and a token only, every option has the previous charm's default."""
    state = load({})

    assert state == CharmState(
        github_url="https://github.com",
        path=GithubRepo("octo-org", "demo"),
        token="ghp_secret",
        labels=(),
        virtual_machines=1,
        resources=VirtualMachineResources(2, "7GiB", "10GiB"),
        base_image=BaseImage.JAMMY,
        image_source=ImageSource("https://cloud-images.ubuntu.com/daily"),
        runner_storage=RunnerStorage.JUJU_STORAGE,
        reconcile_interval=10,
        replace_on_exit=True,
        idle_runner_max_age=24,
        denylist=(),
        dockerhub_mirror=None,
        proxies=ProxyConfig(),
        runner_proxies=ProxyConfig(),
        repo_policy=None,
        test_mode=False,
        ssh_debug_connections=(),
        arch=state.arch,
        issue_metrics=False,
        cached_actions=("actions/checkout@v5", "actions/cache@v5", "actions/setup-python@v6"),
        metrics_port=9464,
    )


OPTIONS = [
    ("path", "string", ""),
    ("token", "string", ""),
    ("group", "string", "default"),
    ("labels", "string", ""),
    ("virtual-machines", "int", 1),
    ("flavors", "string", ""),
    ("scaling", "string", "fixed"),
    ("min-idle", "int", 0),
    ("memory-reserve", "string", "2GiB"),
    ("cpu-overcommit", "string", "2.0"),
    ("demand-fallback", "int", 0),
    ("metrics-port", "int", 9464),
    ("vm-cpu", "int", 2),
    ("vm-memory", "string", "7GiB"),
    ("vm-disk", "string", "10GiB"),
    ("base-image", "string", "jammy"),
    ("runner-storage", "string", "juju-storage"),
    ("reconcile-interval", "int", 10),
    ("denylist", "string", ""),
    ("dockerhub-mirror", "string", ""),
    ("experimental-use-aproxy", "boolean", False),
    ("aproxy-exclude-addresses", "string", "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16"),
    ("aproxy-redirect-ports", "string", "80, 443"),
    ("runner-http-proxy", "string", ""),
    ("repo-policy-compliance-url", "string", None),
    ("repo-policy-compliance-token", "string", None),
    ("test-mode", "string", None),
    ("image-source", "string", "https://cloud-images.ubuntu.com/daily"),
    ("extra-packages", "string", ""),
    ("image-script", "string", ""),
    ("replace-on-exit", "boolean", True),
    ("idle-runner-max-age", "int", 24),
    ("allow-external-contributor", "boolean", True),
    ("pre-job-script", "string", None),
    ("github-url", "string", "https://github.com"),
    ("token-secret", "secret", None),
    ("app-secret", "secret", None),
    ("registration", "string", "auto"),
    ("ca-certificates", "string", ""),
    ("cached-actions", "string", "actions/checkout@v5, actions/cache@v5, actions/setup-python@v6"),
]


@pytest.mark.parametrize(("name", "kind", "default"), OPTIONS)
def test_option_contract(name: str, kind: str, default: object) -> None:
    """Each option's name, type and default are the contract with existing deployments."""
    option = CONFIG["options"][name]

    assert (option["type"], option.get("default")) == (kind, default)


def test_no_dead_option() -> None:
    """The options are those of the contract and no others, and the charm reads each of them."""
    source = ast.parse(inspect.getsource(charm_state))
    texts = {node.value for node in ast.walk(source) if isinstance(node, ast.Constant)}

    assert set(CONFIG["options"]) == {name for name, _, _ in OPTIONS}
    assert set(CONFIG["options"]) - texts == set()


@pytest.mark.parametrize(
    ("config", "field", "expected"),
    [
        ({"path": "octo-org"}, "path", GithubOrg("octo-org", "default")),
        ({"path": "octo-org", "group": "big machines"}, "path", GithubOrg("octo-org", "big machines")),
        ({"group": "big machines"}, "path", GithubRepo("octo-org", "demo")),
        ({"path": "octo-org/demo.js_2"}, "path", GithubRepo("octo-org", "demo.js_2")),
        ({"path": "octo-org/demo/"}, "path", GithubRepo("octo-org", "demo")),
        ({"path": "/octo-org/demo"}, "path", GithubRepo("octo-org", "demo")),
        ({"path": " //octo-org//demo// "}, "path", GithubRepo("octo-org", "demo")),
        ({"path": "octo-org", "group": 'it\'s "big" $HOME\\x'}, "path", GithubOrg("octo-org", 'it\'s "big" $HOME\\x')),
        ({"path": "octo-org", "group": " größe; rm -rf "}, "path", GithubOrg("octo-org", "größe; rm -rf")),
        ({"path": "octo-org", "group": "x" * 256}, "path", GithubOrg("octo-org", "x" * 256)),
        ({"token": " ghp_x\n"}, "token", "ghp_x"),
        ({"labels": "gpu,big_one,x-1"}, "labels", ("gpu", "big_one", "x-1")),
        ({"labels": " gpu , ,, big ,"}, "labels", ("gpu", "big")),
        ({"labels": "gpu,big,gpu"}, "labels", ("gpu", "big")),
        ({"labels": " "}, "labels", ()),
        ({"labels": "ubuntu-22.04,gpu:a100"}, "labels", ("ubuntu-22.04", "gpu:a100")),
        ({"labels": "größe,ラベル,метка,٣"}, "labels", ("größe", "ラベル", "метка", "٣")),
        ({"labels": "c++,b@d,a/b,#1,full build"}, "labels", ("c++", "b@d", "a/b", "#1", "full build")),
        ({"labels": "a'b,a$(reboot)b,a\\b"}, "labels", ("a'b", "a$(reboot)b", "a\\b")),
        ({"labels": "x" * 256}, "labels", ("x" * 256,)),
        ({"labels": "\U0001f980" * 128}, "labels", ("\U0001f980" * 128,)),
        ({}, "allow_external_contributor", True),
        ({"allow-external-contributor": False}, "allow_external_contributor", False),
        ({"virtual-machines": 0}, "virtual_machines", 0),
        ({"virtual-machines": 50}, "virtual_machines", 50),
        ({"vm-cpu": 1}, "resources", VirtualMachineResources(1, "7GiB", "10GiB")),
        ({"vm-memory": "512MiB"}, "resources", VirtualMachineResources(2, "512MiB", "10GiB")),
        ({"vm-memory": "1048576KiB"}, "resources", VirtualMachineResources(2, "1048576KiB", "10GiB")),
        ({"vm-disk": "2TiB"}, "resources", VirtualMachineResources(2, "7GiB", "2TiB")),
        ({"vm-disk": "1PiB"}, "resources", VirtualMachineResources(2, "7GiB", "1PiB")),
        ({"vm-disk": "1EiB"}, "resources", VirtualMachineResources(2, "7GiB", "1EiB")),
        ({"scaling": " demand "}, "scaling", Scaling.DEMAND),
        ({"scaling": "demand", "min-idle": 1}, "min_idle", 1),
        ({"min-idle": 2}, "min_idle", 2),
        ({"memory-reserve": " 512MiB "}, "memory_reserve", 512 << 20),
        ({"memory-reserve": "0"}, "memory_reserve", 0),
        ({"memory-reserve": "0GiB"}, "memory_reserve", 0),
        ({"cpu-overcommit": " 1 "}, "cpu_overcommit", 1.0),
        ({"cpu-overcommit": "0.5"}, "cpu_overcommit", 0.5),
        ({"cpu-overcommit": ".5"}, "cpu_overcommit", 0.5),
        ({"cpu-overcommit": "1."}, "cpu_overcommit", 1.0),
        ({"demand-fallback": 7}, "demand_fallback", 7),
        ({"metrics-port": 0}, "metrics_port", 0),
        ({"metrics-port": 65535}, "metrics_port", 65535),
        ({"base-image": "22.04"}, "base_image", BaseImage.JAMMY),
        ({"base-image": " JAMMY "}, "base_image", BaseImage.JAMMY),
        ({"base-image": "Noble"}, "base_image", BaseImage.NOBLE),
        ({"base-image": "24.04\n"}, "base_image", BaseImage.NOBLE),
        ({"base-image": "Resolute"}, "base_image", BaseImage.RESOLUTE),
        ({"base-image": "26.04"}, "base_image", BaseImage.RESOLUTE),
        ({"runner-storage": "memory"}, "runner_storage", RunnerStorage.MEMORY),
        ({"reconcile-interval": 2}, "reconcile_interval", 2),
        (
            {"denylist": "10.0.0.0/8, 192.168.1.0/24,,"},
            "denylist",
            (IPv4Network("10.0.0.0/8"), IPv4Network("192.168.1.0/24")),
        ),
        ({"dockerhub-mirror": "https://mirror.example:5000"}, "dockerhub_mirror", "https://mirror.example:5000"),
        ({"dockerhub-mirror": " https://mirror.example/ "}, "dockerhub_mirror", "https://mirror.example/"),
        ({"dockerhub-mirror": "https://mirror/v2/"}, "dockerhub_mirror", "https://mirror/v2/"),
        ({"dockerhub-mirror": "https://u:p%40w@mirror:5000"}, "dockerhub_mirror", "https://u:p%40w@mirror:5000"),
        ({"extra-packages": " cmake, g++,,libssl-dev ,cmake"}, "extra_packages", ("cmake", "g++", "libssl-dev")),
        ({"extra-packages": " ,\n"}, "extra_packages", ()),
        ({"extra-packages": "0ad," + "x" * 100}, "extra_packages", ("0ad", "x" * 100)),
        ({"image-script": "#!/bin/sh\r\ntrue\r\n"}, "image_script", "#!/bin/sh\ntrue\n"),
        (
            {"image-script": "#!/bin/sh\necho 'größe' \"$(date)\""},
            "image_script",
            "#!/bin/sh\necho 'größe' \"$(date)\"",
        ),
        ({"image-script": " \n"}, "image_script", ""),
        ({}, "pre_job_script", ""),
        ({"pre-job-script": " \n"}, "pre_job_script", ""),
        ({"pre-job-script": "#!/bin/sh\r\ntrue\r\n"}, "pre_job_script", "#!/bin/sh\ntrue\n"),
        ({"pre-job-script": "#!" + "ß" * 32767}, "pre_job_script", "#!" + "ß" * 32767),
        ({"image-script": "#!" + "ß" * 32767}, "image_script", "#!" + "ß" * 32767),
        ({"test-mode": "insecure"}, "test_mode", True),
        ({"github-url": "https://octo.ghe.com/"}, "github_url", "https://octo.ghe.com"),
        (
            {"github-url": "http://10.0.0.1:8080", "test-mode": "insecure"},
            "github_url",
            "http://10.0.0.1:8080",
        ),
        (
            {"image-source": "http://10.0.0.1", "test-mode": "insecure"},
            "image_source",
            ImageSource(server="http://10.0.0.1"),
        ),
    ],
)
def test_right_values(config: dict[str, Any], field: str, expected: object) -> None:
    """A value in the accepted form arrives as what it means."""
    assert getattr(load(config), field) == expected


@pytest.mark.parametrize(
    ("option", "value", "form"),
    [
        pytest.param("path", "", "owner/repo or org", id="path empty"),
        pytest.param("path", "  ", "owner/repo or org", id="path blank"),
        pytest.param("path", "a/b/c", "owner/repo", id="path with two slashes"),
        pytest.param("path", "/demo", "owner/repo", id="path without an owner"),
        pytest.param("path", "octo/", "owner/repo", id="path without a repository"),
        pytest.param("path", "/", "owner/repo or org", id="path of a slash"),
        pytest.param("path", "//a/b//c", "owner/repo", id="path of three segments"),
        pytest.param("path", "octo/..", "owner/repo", id="path that climbs"),
        pytest.param("path", "/./octo/", "owner/repo", id="path that stays"),
        pytest.param("path", "https://github.com/octo", "owner/repo", id="path as URL"),
        pytest.param("path", "octo org", "owner/repo", id="path with a blank"),
        pytest.param("token", "", "personal access token", id="token empty"),
        pytest.param("token", " ", "personal access token", id="token blank"),
        pytest.param("labels", "good,b\td", "printable characters", id="label with a tab"),
        pytest.param("labels", "good,b\x7fd", "printable characters", id="label with DEL"),
        pytest.param("labels", "b\u202ed", "printable characters", id="label that changes the direction of text"),
        pytest.param("labels", "b\xa0d", "printable characters", id="label with a blank beyond ASCII"),
        pytest.param("labels", "b\u2028d", "printable characters", id="label of two lines"),
        pytest.param("labels", "x" * 257, "256 at most", id="label of 257 characters"),
        pytest.param("labels", "\U0001f980" * 129, "256 at most", id="label of 258 UTF-16 code units"),
        pytest.param("virtual-machines", -1, "0 or more", id="virtual-machines"),
        pytest.param("vm-cpu", 0, "1 or more", id="vm-cpu"),
        pytest.param("vm-memory", "7GB", "GiB", id="vm-memory decimal unit"),
        pytest.param("vm-memory", "0GiB", "positive whole number", id="vm-memory nothing"),
        pytest.param("vm-memory", "1.5GiB", "positive whole number", id="vm-memory fraction"),
        pytest.param("vm-memory", "-1GiB", "positive whole number", id="vm-memory negative"),
        pytest.param("vm-memory", "7gib", "GiB", id="vm-memory lower case"),
        pytest.param("vm-memory", "7 GiB", "GiB", id="vm-memory with a blank"),
        pytest.param("vm-memory", "", "GiB", id="vm-memory empty"),
        pytest.param("vm-disk", "10", "GiB", id="vm-disk without a unit"),
        pytest.param("vm-disk", "٣GiB", "GiB", id="vm-disk with another script's digits"),
        pytest.param("vm-disk", "8EiB", "more than LXD", id="vm-disk beyond 63 bits"),
        pytest.param("scaling", "auto", "fixed, demand", id="scaling"),
        pytest.param("scaling", "", "fixed, demand", id="scaling empty"),
        pytest.param("min-idle", -1, "0 or more", id="min-idle"),
        pytest.param("memory-reserve", "-1GiB", "a size such as 2GiB, nor 0", id="memory-reserve negative"),
        pytest.param("memory-reserve", "", "a size such as 2GiB, nor 0", id="memory-reserve empty"),
        pytest.param("memory-reserve", "8EiB", "a size such as 2GiB, nor 0", id="memory-reserve beyond 63 bits"),
        *(
            pytest.param("cpu-overcommit", value, "a number above 0 such as 2.0", id=f"cpu-overcommit {value}")
            for value in (
                "",
                "0",
                "0.0",
                ".",
                ".0",
                "1..",
                "1.2.3",
                "-1",
                "nan",
                "inf",
                "1e3",
                "1,5",
                "two",
                "9" * 400,
                "٣",
            )
        ),
        pytest.param("demand-fallback", -1, "0 or more", id="demand-fallback"),
        pytest.param("metrics-port", -1, "1 to 65535, or 0", id="metrics-port negative"),
        pytest.param("metrics-port", 65536, "1 to 65535, or 0", id="metrics-port beyond 16 bits"),
        pytest.param("base-image", "focal", "jammy, 22.04, noble, 24.04, resolute, 26.04", id="base-image"),
        pytest.param("base-image", "", "jammy, 22.04, noble, 24.04, resolute, 26.04", id="base-image empty"),
        pytest.param("runner-storage", "disk", "juju-storage, memory", id="runner-storage"),
        pytest.param("reconcile-interval", 1, "2 or more", id="reconcile-interval"),
        pytest.param("denylist", "10.0.0.0/33", "CIDR", id="denylist prefix"),
        pytest.param("denylist", "10.0.0.1/8", "CIDR", id="denylist host bits"),
        pytest.param("denylist", "fd00::/8", "IPv4", id="denylist IPv6"),
        pytest.param("denylist", "example.com", "CIDR", id="denylist name"),
        pytest.param("dockerhub-mirror", "http://mirror.example", " an https:// URL", id="dockerhub-mirror http"),
        pytest.param("dockerhub-mirror", "mirror.example", "https://", id="dockerhub-mirror host"),
        pytest.param("dockerhub-mirror", "https://", "https://", id="dockerhub-mirror without a host"),
        pytest.param("extra-packages", "cmake,Cmake", "'Cmake' not a package's name", id="extra-packages capital"),
        pytest.param("extra-packages", "g", "'g' not a package", id="extra-packages of one letter"),
        pytest.param("extra-packages", "x" * 101, "…' not a package", id="extra-packages very long"),
        pytest.param("extra-packages", "-y, a=1 b/c", "'-y', 'a=1 b/c' not", id="extra-packages as options of apt"),
        pytest.param("extra-packages", "libé,a b,c\x00d", "'libé', 'a b', 'c\\x00d' not", id="extra-packages hostile"),
        pytest.param("extra-packages", "٣x", "such as g++ or libssl-dev", id="extra-packages another script's digit"),
        pytest.param(
            "extra-packages", ",".join(f"x{n}" for n in range(201)), "set 200 at most", id="extra-packages too many"
        ),
        pytest.param("pre-job-script", "echo MARKED", "begin with #!", id="pre-job-script without an interpreter"),
        pytest.param("pre-job-script", " #!/bin/sh\n", "begin with #!", id="pre-job-script with a blank before"),
        pytest.param("pre-job-script", "#!/bin/sh\n\x00", "NUL", id="pre-job-script with NUL"),
        pytest.param("pre-job-script", "#!" + "ß" * 32768, "65536 at most", id="pre-job-script too large"),
        pytest.param("image-script", "echo MARKED", "begin with #!", id="image-script without an interpreter"),
        pytest.param("image-script", "\n#!/bin/sh\n", "begin with #!", id="image-script with a line before"),
        pytest.param("image-script", "\ufeff#!/bin/sh\n", "begin with #!", id="image-script with a mark of Windows"),
        pytest.param("image-script", "#!/bin/sh\n\x00", "NUL", id="image-script with NUL"),
        pytest.param("image-script", "#!/bin/sh\n\udc80", "UTF-8", id="image-script that is no UTF-8"),
        pytest.param("image-script", "#!" + "ß" * 32768, "65536 at most", id="image-script too large"),
        pytest.param("experimental-use-aproxy", True, "runner-http-proxy, or a proxy", id="aproxy without a proxy"),
        pytest.param("test-mode", "secure", "insecure", id="test-mode"),
        pytest.param("test-mode", "Insecure", "insecure", id="test-mode in other letters"),
        pytest.param("github-url", "http://ghes.example", "use https:// (test-mode", id="github-url http"),
        pytest.param("github-url", "HTTP://ghes.example", "use https:// (test-mode", id="github-url HTTP"),
        pytest.param("image-source", "http://images.example", "use https:// (test-mode", id="image-source http"),
        pytest.param("github-url", "", "https://github.com", id="github-url empty"),
        pytest.param("github-url", "github.com", "https://github.com", id="github-url without a scheme"),
        pytest.param("github-url", "ftp://github.com", "https://github.com", id="github-url of another scheme"),
        pytest.param("github-url", "https://github.com?x=1", "https://github.com", id="github-url with a query"),
        pytest.param("github-url", "https://u:p@github.com", "https://github.com", id="github-url with a user"),
        pytest.param("github-url", "https://github.com:99999", "https://github.com", id="github-url with a bad port"),
        pytest.param("github-url", "api.github.com", "https://github.com", id="github-url of the API without a scheme"),
        pytest.param("github-url", "https://api.github.com", "use https://github.com and", id="github-url of the API"),
        pytest.param("github-url", "https://www.github.com/", "use https://github.com and", id="github-url with www"),
        pytest.param("github-url", "https://github.com/octo", "use https://github.com and", id="github-url of an org"),
        pytest.param(
            "github-url",
            "https://github.com/enterprises/x",
            "use https://github.com and",
            id="github-url of an enterprise",
        ),
        pytest.param(
            "github-url",
            "https://ghes.example/api/v3/",
            "use https://ghes.example and",
            id="github-url of a server's API",
        ),
        pytest.param(
            "github-url", "https://api.octo.ghe.com", "use https://octo.ghe.com and", id="github-url of a tenant's API"
        ),
    ],
)
def test_wrong_values(option: str, value: Any, form: str) -> None:
    """A wrong value is one error that names the option and the accepted form."""
    line = error_of({option: value})

    assert line.startswith(f"{option}: ")
    assert form in line
    assert "MARKED" not in line


@pytest.mark.parametrize("option", ["github-url", "dockerhub-mirror", "repo-policy-compliance-url"])
def test_broken_address_is_reported_like_any_other(option: str) -> None:
    """A URL that cannot be read at all is reported with the accepted form, too."""
    policy = {"repo-policy-compliance-token": "t", "repo-policy-compliance-url": "https://p"}
    line = error_of({**policy, option: "https://[x"})

    assert line.startswith(f"{option}: ")
    assert "https://[x" in line
    assert "https://" in line.replace("https://[x", "")


@pytest.mark.parametrize("port", ["99999", "0", "x"])
@pytest.mark.parametrize("option", ["dockerhub-mirror", "repo-policy-compliance-url"])
def test_port_of_an_address(option: str, port: str) -> None:
    """An address with an impossible port is no URL."""
    policy = {"repo-policy-compliance-token": "t", "repo-policy-compliance-url": "https://p"}

    assert error_of({**policy, option: f"https://host:{port}"}).startswith(f"{option}: ")


def test_labels_of_a_runner_are_as_many_as_github_accepts() -> None:
    """A hundred with those of GitHub and the charm, each counted once whatever its case."""
    labels = [f"l{number}" for number in range(MOST_LABELS)]
    assert len(load({"labels": ",".join([*labels, "L0", "l1"])}).labels) == MOST_LABELS + 1
    assert len(complete(["app", "jammy", *labels], Arch.X64)) == 100
    assert error_of({"labels": ",".join([*labels, "one"])}) == "labels: 96 labels are too many; set 95 at most"


def test_every_bad_label_is_named() -> None:
    """The error names every bad label and no good one."""
    line = error_of({"labels": "good, b\td,also-good,a\x00b,größe, a\nb "})

    assert "'b\\td', 'a\\x00b', 'a\\nb'" in line
    assert "good" not in line
    assert "größe" not in line


@pytest.mark.parametrize("option", ["labels", "group"])
def test_long_bad_value_is_shortened(option: str) -> None:
    """The error names a rejected value with its beginning, so that the status stays readable."""
    line = error_of({"path": "octo-org", option: "begin" + "x" * 10_000})

    assert "'begin" in line
    assert len(line) < 250


def test_every_bad_network_is_named() -> None:
    """The error names every bad network and no good one."""
    line = error_of({"denylist": "10.0.0.0/8, nonsense, 300.0.0.0/8"})

    assert "'nonsense'" in line
    assert "'300.0.0.0/8'" in line
    assert "'10.0.0.0/8'" not in line


def test_several_faults_are_all_named() -> None:
    """Whatever is wrong at once is named at once, options and relations."""
    wrong = {
        "github-url": "x",
        "path": "a/b/c",
        "token": "",
        "labels": "b\td",
        "virtual-machines": -1,
        "vm-cpu": 0,
        "vm-memory": "1",
        "vm-disk": "1",
        "base-image": "x",
        "runner-storage": "x",
        "reconcile-interval": 0,
        "denylist": "x",
        "dockerhub-mirror": "x",
        "scaling": "x",
        "min-idle": -1,
        "memory-reserve": "x",
        "cpu-overcommit": "x",
        "demand-fallback": -1,
        "metrics-port": -1,
        "flavors": "x",
        "experimental-use-aproxy": True,
        "aproxy-exclude-addresses": "x",
        "aproxy-redirect-ports": "x",
        "repo-policy-compliance-url": "https://policy.example",
        "test-mode": "x",
    }

    named = [line.split(":")[0] for line in errors_of(wrong, tmate({**TMATE, "port": "0"}))]

    expected = {*wrong, "repo-policy-compliance-token", "debug-ssh of remote/0"} - {"repo-policy-compliance-url"}
    assert sorted(named) == sorted(expected)


def test_flavors_have_the_units_options_as_defaults() -> None:
    """A flavour has its own values, and the unit's where it names none; a specification of a runner has its name."""
    options = {"vm-cpu": 4, "labels": "unit", "base-image": "noble", "virtual-machines": 3}

    found = load({**options, "flavors": "small:\nlarge: {vm-memory: 32GiB, labels: big, count: 1}"})

    assert found.flavors == (
        Flavor("small", VirtualMachineResources(4, "7GiB", "10GiB"), BaseImage.NOBLE, ("unit",), 3, 3),
        Flavor("large", VirtualMachineResources(4, "32GiB", "10GiB"), BaseImage.NOBLE, ("unit", "big"), 1, 3),
    )
    assert [spec.flavor for spec in found.runners] == ["small", "large"]
    assert found.has_budget


@pytest.mark.parametrize("text", ["", " \n", "# later", "{}", "null", "~", "---\n"])
def test_without_flavors_there_is_one(text: str) -> None:
    """No text, or one without a name, is one flavour by the unit's own options."""
    found = load({"flavors": text, "scaling": "demand", "min-idle": 1, "virtual-machines": 2})

    assert found.given_flavors == ()
    assert [(one.name, one.count, one.maximum, one.min_idle) for one in found.flavors] == [("default", 2, 2, 1)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"registration": "token", "scaling": "demand"}, "registration: token does not go with scaling=demand; set"),
        (
            {"min-idle": 2, "scaling": "demand"},
            "min-idle: 2 exceeds virtual-machines 1; lower it, or raise virtual-machines",
        ),
        (
            {"min-idle": 1, "scaling": "demand", "flavors": "a:"},
            "min-idle: 1 does not go with flavors; set min-idle of",
        ),
        ({"min-idle": 1, "flavors": "a:"}, "min-idle: 1 does not go with flavors; set min-idle of each"),
        ({"flavors": "a: {min-idle: 2}", "scaling": "demand"}, "flavors: a: min-idle: 2 exceeds max 1; lower it, or"),
    ],
)
def test_options_of_scaling_that_do_not_go_together(config: dict[str, Any], expected: str) -> None:
    """What contradicts another option is one error that says what to change."""
    assert error_of(config).startswith(expected)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"min-idle": 2, "demand-fallback": 1}, "Ignored with scaling=fixed: min-idle, demand-fallback"),
        ({"flavors": "a: {max: 1, min-idle: 3}"}, "flavors: a: min-idle: is ignored with scaling=fixed"),
        ({"flavors": "a: {count: 1}", "scaling": "demand"}, "flavors: a: count: is ignored with scaling=demand"),
    ],
)
def test_option_without_an_effect_is_logged(
    config: dict[str, Any], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What counts in the other mode only does not block the unit; the log names it."""
    load(config)

    assert expected in [record.message for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, True),
        ({"virtual-machines": 0}, False),
        ({"virtual-machines": 0, "flavors": "{a: {count: 0}, b: {count: 1}}"}, True),
        ({"flavors": "a: {count: 0}"}, False),
        ({"flavors": "a: {count: 0}", "scaling": "demand"}, True),
        ({"flavors": "a: {max: 0}", "scaling": "demand"}, False),
    ],
)
def test_unit_keeps_runners_if_a_flavor_may_have_one(config: dict[str, Any], expected: bool) -> None:
    """The count decides with a fixed number, and the maximum where jobs decide."""
    assert load(config).keeps_runners is expected


@pytest.mark.parametrize("path", ["octo-org", ""], ids=["path right", "path wrong, too"])
def test_bad_group_is_named_as_group(path: str) -> None:
    """The error of the runner group is reported under the option it is in."""
    assert "group" in {line.split(":")[0] for line in errors_of({"path": path, "group": "a\tb"})}


def test_group_of_a_repository_does_not_count() -> None:
    """The group is used for an organisation path only, so an empty one does not block a repository."""
    assert load({"group": ""}).path == GithubRepo("octo-org", "demo")


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "option",
    [
        "path",
        "token",
        "labels",
        "vm-memory",
        "vm-disk",
        "base-image",
        "runner-storage",
        "denylist",
        "dockerhub-mirror",
        "test-mode",
        "github-url",
        "repo-policy-compliance-url",
    ],
)
def test_hostile_values_are_refused(option: str, value: str) -> None:
    """What a shell, a unit file or an environment file could misread is refused."""
    if option in ("dockerhub-mirror", "github-url", "repo-policy-compliance-url"):
        value = f"https://host/{value}"
    if option in ("token", "labels") and value not in ("a\nb", "a\x00b"):
        # A credential is never part of a script, and labels are quoted wherever they are used.
        assert getattr(load({option: value}), option) == (value if option == "token" else (value,))
        return
    extra = {"repo-policy-compliance-token": "t"} if option == "repo-policy-compliance-url" else {}

    assert error_of({option: value, **extra}).startswith(f"{option}: ")


@pytest.mark.parametrize("value", ["a\nb", "a\x00b", "a\x1b[0mb", "", " ", "x" * 257, "-x", "--replace"])
def test_bad_group_is_refused(value: str) -> None:
    """A runner group's name is printable and bounded, and config.sh cannot take it for an option of its own."""
    line = error_of({"path": "octo-org", "group": value})

    assert line.startswith("group: ")
    assert "1 to 256 printable characters" in line


@pytest.fixture(scope="session")
def authorities() -> list[str]:
    """Certificates of two authorities."""
    return [tls.make("localhost").pem for _ in range(2)]


def test_certificates(authorities: list[str]) -> None:
    """Several certificates may come with text between them; each is kept once."""
    one, two = authorities
    text = f"# the proxy's\r\n{one}\n\nsubject=x\n{two}{one}".replace("\n", "\r\n")

    assert load({"ca-certificates": text}).ca_certificates == (one, two)
    assert load({"ca-certificates": " \n"}).ca_certificates == ()


def test_wrong_certificates(authorities: list[str]) -> None:
    """What is no certificate, half of one, or a private key is refused, and the message does not show it."""
    one, two = authorities
    lines = one.splitlines()
    key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
    odd = ["secret", "\n".join(lines[:-1]), "\n".join([lines[0], "c2VjcmV0", lines[-1]]), one + key]
    odd += [one + "\n".join(two.splitlines()[:-1]), one + "\n".join([lines[0], "c2VjcmV0", lines[-1]])]

    for value in odd:
        message = error_of({"ca-certificates": value})
        assert message.startswith("ca-certificates: is not PEM; give certificates only")
        assert "secret" not in message


@pytest.mark.parametrize("value", ["http://u:hidden@mirror", "https://u:hidden@mirror:99999", "https://u:hidden@"])
def test_fault_of_a_mirror_keeps_its_password(value: str) -> None:
    """The password of a mirror's URL that is refused is not repeated in the message."""
    line = error_of({"dockerhub-mirror": value})

    assert line.startswith("dockerhub-mirror: ")
    assert "hidden" not in line


def test_state_keeps_the_password_of_a_mirror() -> None:
    """The password of a mirror's URL is not in the text of a state, which may be logged."""
    assert "hidden" not in repr(load({"dockerhub-mirror": "https://u:hidden@mirror"}))


@pytest.mark.parametrize("option", ["path", "vm-memory", "base-image", "runner-storage", "denylist"])
def test_template_marks_are_refused(option: str) -> None:
    """A value cannot look like a template."""
    assert error_of({option: "{{ 7 * 7 }}"}).startswith(f"{option}: ")


@pytest.mark.parametrize("value", ["a\nb", "a\x00b", "tökén", " "], ids=["newline", "NUL", "not ASCII", "blank"])
def test_hostile_policy_token_is_refused(value: str) -> None:
    """The policy service's token goes into a header, so that it must be printable ASCII like GitHub's."""
    options = {"repo-policy-compliance-url": "https://policy.example", "repo-policy-compliance-token": value}

    assert error_of(options).startswith("repo-policy-compliance-token: ")


def test_faults_keep_secrets() -> None:
    """A token that is refused is not repeated in the message."""
    assert "ghp_hidden" not in error_of({"token": "ghp_hidden é"})


def test_state_keeps_secrets() -> None:
    """No token is in the text of a state, which may be logged."""
    state = load({"repo-policy-compliance-url": "https://policy.example", "repo-policy-compliance-token": "polsecret"})

    assert "ghp_secret" not in repr(state)
    assert "polsecret" not in repr(state)


def test_token_secret_takes_precedence() -> None:
    """A secret's token is used although the option `token` is set."""
    secret = testing.Secret({"token": " ghp_from_secret\n"})

    assert load({"token-secret": secret.id}, secrets=(secret,)).token == "ghp_from_secret"


def test_token_secret_alone_is_enough() -> None:
    """A secret needs no option `token` beside it."""
    secret = testing.Secret({"token": "ghp_from_secret"})

    assert load({"token": "", "token-secret": secret.id}, secrets=(secret,)).token == "ghp_from_secret"


def test_token_secret_is_read_anew() -> None:
    """A new revision of the secret is used at once."""
    secret = testing.Secret({"token": "ghp_old"}, latest_content={"token": "ghp_new"})

    assert load({"token-secret": secret.id}, secrets=(secret,)).token == "ghp_new"


@pytest.mark.parametrize(
    ("content", "token"),
    [
        ({"github-token": " ghp_later\n"}, "ghp_later"),
        ({"token": "ghp_first", "github-token": "ghp_later"}, "ghp_first"),
        ({"token": " ", "github-token": "ghp_later"}, "ghp_later"),
    ],
    ids=["github-token alone", "both", "blank token"],
)
def test_token_secret_of_later_versions_of_the_previous_charm(content: dict[str, str], token: str) -> None:
    """The key `github-token` is used where the secret has no `token`."""
    secret = testing.Secret(content)

    assert load({"token-secret": secret.id}, secrets=(secret,)).token == token


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"password": "x"}, "key `token`"),
        ({"token": " ", "github-token": ""}, "key `token`"),
        ({"token": "a b", "github-token": "ghp_later"}, "characters"),
        ({"github-token": "a b"}, "characters"),
    ],
    ids=["another key", "blank", "no token's characters", "no token's characters in github-token"],
)
def test_token_secret_without_a_token(content: dict[str, str], words: str) -> None:
    """A secret that holds no token blocks, even where the option `token` is set."""
    secret = testing.Secret(content)
    [line] = errors_of({"token-secret": secret.id}, secrets=(secret,))

    assert line.startswith("token-secret: ")
    assert words in line


def test_token_secret_not_granted() -> None:
    """A secret that the application may not read blocks and says how to grant it."""
    line = error_of({"token-secret": "secret:d0000000000000000000"})

    assert line.startswith("token-secret: ")
    assert "juju grant-secret secret:d0000000000000000000 " in line


SECRET = testing.Secret({"token": "ghp_secret"})


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("ERROR permission denied", True),
        ('ERROR secret "d0000000000000000000" not found', True),
        ("ERROR connection is shut down", False),
        ("ERROR Vault is sealed", False),
        ("ERROR getting secret from backend: Code: 403. permission denied", False),
        ("ERROR backend host vault.example not found", False),
        ("ERROR cannot access backend: context deadline exceeded", False),
    ],
)
def test_a_secret_that_juju_cannot_give_now_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, words: str, refused: bool
) -> None:
    """Only what the operator can change blocks, with the command to run."""

    def get(*_: Any, **__: Any) -> dict[str, str]:
        raise ops.ModelError(words)

    monkeypatch.setattr("scenario.mocking._MockModelBackend.secret_get", get)

    charm = run({"token-secret": SECRET.id}, secrets=(SECRET,))

    assert isinstance(charm.error, ConfigurationError if refused else JujuError)
    assert ("juju grant-secret" in str(charm.error)) is refused


@pytest.mark.parametrize("option", ["token-secret", "app-secret"])
@pytest.mark.parametrize(
    "words",
    [
        'ERROR secret URI "secret:ghp_x" not valid',
        'ERROR secret URI "secret:\\"ghp_x\\"" not valid',
        'ERROR secret URI scheme "ghp_x" not valid',
        'ERROR parse "secret:ghp_x%": invalid URL escape "%"',
    ],
)
def test_what_is_no_uri_of_a_secret_blocks(monkeypatch: pytest.MonkeyPatch, option: str, words: str) -> None:
    """A URI that Juju's tool cannot read is the operator's to correct, and the text does not show it."""

    def get(*_: Any, **__: Any) -> dict[str, str]:
        raise ops.ModelError(words)

    monkeypatch.setattr("scenario.mocking._MockModelBackend.secret_get", get)

    # The library of these tests lets no such URI through.
    [line] = errors_of({option: SECRET.id}, secrets=(SECRET,))

    assert line == f"{option}: is not a secret's URI; set the one that `juju add-secret` printed"


def test_only_the_newest_revision_of_a_secret_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision that was read before may have been removed: it is not asked for."""
    asked: list[dict[str, Any]] = []

    def get(_: Any, **options: Any) -> dict[str, str]:
        asked.append(options)
        return {"token": "ghp_new"}

    monkeypatch.setattr("scenario.mocking._MockModelBackend.secret_get", get)

    assert load({"token-secret": SECRET.id}, secrets=(SECRET,)).token == "ghp_new"
    assert [options["refresh"] for options in asked] == [True]


def test_debug_ssh_units_become_connections() -> None:
    """Every ready unit of the relation is one connection, in an order that does not change."""
    relation = tmate({**TMATE, "host": "10.1.2.9"}, TMATE, {**TMATE, "host": "2001:db8::1", "port": "65535"})

    assert load({}, relation).ssh_debug_connections == (
        SSHDebugConnection("10.1.2.3", 10022, TMATE["rsa_fingerprint"], TMATE["ed25519_fingerprint"]),
        SSHDebugConnection("10.1.2.9", 10022, TMATE["rsa_fingerprint"], TMATE["ed25519_fingerprint"]),
        SSHDebugConnection("2001:db8::1", 65535, TMATE["rsa_fingerprint"], TMATE["ed25519_fingerprint"]),
    )


@pytest.mark.parametrize("key", list(TMATE))
@pytest.mark.parametrize("gone", [True, False], ids=["missing", "empty"])
def test_unready_debug_ssh_unit_is_skipped(key: str, gone: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A unit with a missing key is skipped with a warning that names unit and key; the others count."""
    unready = {name: value for name, value in TMATE.items() if name != key} | ({} if gone else {key: ""})

    with caplog.at_level(logging.WARNING):
        connections = load({}, tmate(unready, TMATE)).ssh_debug_connections

    assert len(connections) == 1
    [warning] = [record.getMessage() for record in caplog.records if record.name == "charm_state"]
    assert "remote/0" in warning
    assert key in warning


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("host", "example.com"),
        ("host", "10.1.2.3.4"),
        ("host", "10.1.2.3\nX=1"),
        ("port", "0"),
        ("port", "65536"),
        ("port", "-1"),
        ("port", "ssh"),
        ("port", "22\n"),
        ("port", "٢٢"),
        ("rsa_fingerprint", "MD5:abc"),
        ("rsa_fingerprint", "SHA256:"),
        ("rsa_fingerprint", "SHA256:a\nX=1"),
        ("ed25519_fingerprint", "abc"),
        ("ed25519_fingerprint", "SHA256:$(reboot)"),
    ],
)
def test_malformed_debug_ssh_value_blocks(key: str, value: str) -> None:
    """A malformed value blocks, and the error names relation, unit and key."""
    line = error_of({}, tmate(TMATE, {**TMATE, key: value}))

    assert line.startswith("debug-ssh of remote/1: ")
    assert key in line


@pytest.mark.parametrize("host", ["fe80::1%a\nEVIL=1", "fe80::1%$(reboot)"])
def test_scope_of_an_address_is_no_way_in(host: str) -> None:
    """What stands behind the % of an IPv6 address cannot add lines to the runner's environment."""
    assert "host" in error_of({}, tmate({**TMATE, "host": host}))


def test_every_malformed_debug_ssh_unit_is_named() -> None:
    """Several malformed units are all named."""
    found = errors_of({}, tmate({**TMATE, "host": "x"}, TMATE, {**TMATE, "port": "x"}))

    assert [line.split(":")[0] for line in found] == ["debug-ssh of remote/0", "debug-ssh of remote/2"]


@pytest.mark.parametrize(
    ("url", "token", "named"),
    [
        ("https://policy.example", None, "repo-policy-compliance-token"),
        ("https://policy.example", "", "repo-policy-compliance-token"),
        (None, "t", "repo-policy-compliance-url"),
        ("policy.example", "t", "repo-policy-compliance-url"),
        ("ftp://policy.example", "t", "repo-policy-compliance-url"),
    ],
    ids=["URL alone", "URL and an empty token", "token alone", "no scheme", "another scheme"],
)
def test_policy_faults(url: str | None, token: str | None, named: str) -> None:
    """URL and token are both given or neither, and the URL is one."""
    line = error_of({"repo-policy-compliance-url": url, "repo-policy-compliance-token": token})

    assert line.startswith(f"{named}: ")


@pytest.mark.parametrize(
    ("url", "token", "expected"),
    [
        ("https://policy.example/", "t", RepoPolicy("https://policy.example", "t")),
        ("http://10.0.0.1:8080", "t", RepoPolicy("http://10.0.0.1:8080", "t")),
        (None, None, None),
        ("", "", None),
    ],
    ids=["both", "both, plain HTTP", "neither", "both empty"],
)
def test_policy(url: str | None, token: str | None, expected: RepoPolicy | None) -> None:
    """An external policy service is used when both options are set, none otherwise."""
    assert load({"repo-policy-compliance-url": url, "repo-policy-compliance-token": token}).repo_policy == expected


def test_metrics_only_with_cos_agent() -> None:
    """Metrics are recorded while the relation cos-agent exists."""
    assert load({}, testing.Relation("cos-agent")).issue_metrics is True


def test_metrics_end_with_cos_agent() -> None:
    """The event that ends the relation cos-agent already sees it gone."""
    relation = testing.Relation("cos-agent")
    context = testing.Context(LoadingCharm, meta=META, config=CONFIG, actions=ACTIONS)
    state = testing.State(config=GOOD, relations=[relation])
    with context(context.on.relation_broken(relation), state) as manager:
        manager.run()
        assert manager.charm.state is not None
        assert manager.charm.state.issue_metrics is False


@pytest.mark.parametrize(
    ("machine", "expected"), [("x86_64", Arch.X64), ("aarch64", Arch.ARM64), ("arm64", Arch.ARM64), ("AMD64", Arch.X64)]
)
def test_architectures(machine: str, expected: Arch) -> None:
    """The machine's architecture becomes GitHub's name for it."""
    assert parse_arch(machine) is expected


def test_other_architectures_block() -> None:
    """GitHub has no runner binary for this machine's architecture: that is said, not guessed."""
    with pytest.raises(ValueError, match="riscv64"):
        parse_arch("riscv64")


def test_stop_needs_no_valid_option() -> None:
    """A unit whose options are all wrong can still be cleared."""
    context = testing.Context(LoadingCharm, meta=META, config=CONFIG, actions=ACTIONS)
    with context(context.on.config_changed(), testing.State()) as manager:
        state = charm_state.without_credentials(manager.charm)

    assert state.virtual_machines == 0
    assert state.token == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://images.example/daily/", ImageSource(server="https://images.example/daily")),
        (" local:my-base ", ImageSource(alias="my-base")),
    ],
)
def test_image_source(value: str, expected: ImageSource) -> None:
    """The image is built from a simplestreams server or from an image of the machine's own LXD."""
    assert load({"image-source": value}).image_source == expected
    assert ImageSource.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "value", ["", "jammy", "local:", "local:a b", "local:../x", "ftp://images.example", "https://"]
)
def test_bad_image_source(value: str) -> None:
    """Anything else blocks, and names the option and both forms."""
    (error,) = errors_of({"image-source": value})

    assert error.startswith("image-source: ")
    assert "local:ALIAS; " in error


def test_every_option_is_tried_with_the_others_or_excused() -> None:
    """Each option is in one of the two lists of tests/support/options.py, which a test on a whole unit sets at once."""
    assert EVERY_OPTION.keys() & OTHERS == set()
    assert EVERY_OPTION.keys() | OTHERS == CONFIG["options"].keys()
