"""The proxies of the unit and of its runners, and what aproxy redirects to them."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from option_values import parse_addresses, parse_ports
from proxies import ProxyConfig, Redirect
from settings import image_build
from tests.unit.test_charm_state import error_of, errors_of, load, no_proxies

__all__ = ["no_proxies"]

pytestmark = pytest.mark.usefixtures("quick_yaml")


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [
        (ProxyConfig(), {}),
        (ProxyConfig(no_proxy="localhost"), {}),
        (
            ProxyConfig(http="http://p:1"),
            {"HTTP_PROXY": "http://p:1", "http_proxy": "http://p:1", "NO_PROXY": "me,.svc", "no_proxy": "me,.svc"},
        ),
        (
            ProxyConfig("http://p:1", "http://p:2", "localhost, ,10.0.0.1,"),
            {
                "HTTP_PROXY": "http://p:1",
                "HTTPS_PROXY": "http://p:2",
                "NO_PROXY": "localhost,10.0.0.1,me,.svc",
                "http_proxy": "http://p:1",
                "https_proxy": "http://p:2",
                "no_proxy": "localhost,10.0.0.1,me,.svc",
            },
        ),
    ],
    ids=["none", "a lone no-proxy", "http alone", "all"],
)
def test_proxy_variables(proxies: ProxyConfig, expected: dict[str, str]) -> None:
    """Both cases of letters, the given hosts appended to no_proxy, and nothing where there is no proxy."""
    assert proxies.environment("me", ".svc") == expected


def test_no_hosts_no_variable() -> None:
    """Without a host to leave out there is no `no_proxy`."""
    assert ProxyConfig(http="http://p:1").environment() == {"HTTP_PROXY": "http://p:1", "http_proxy": "http://p:1"}


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [
        (ProxyConfig("http://proxy:3128"), None),
        (ProxyConfig(use_aproxy=True), None),
        (ProxyConfig(no_proxy="x", use_aproxy=True), None),
        (ProxyConfig("http://proxy:3128", use_aproxy=True), "proxy:3128"),
        (ProxyConfig("http://proxy", use_aproxy=True), "proxy:80"),
        (ProxyConfig("http://proxy:/", use_aproxy=True), "proxy:80"),
        (ProxyConfig("https://proxy", use_aproxy=True), "proxy:443"),
        (ProxyConfig("http://proxy:3128/", use_aproxy=True), "proxy:3128"),
        (ProxyConfig("https://10.0.0.1:3128/x/y", use_aproxy=True), "10.0.0.1:3128"),
        (ProxyConfig(https="http://other:3129", use_aproxy=True), "other:3129"),
        (ProxyConfig("http://proxy:3128", "http://other:3129", use_aproxy=True), "proxy:3128"),
        (ProxyConfig("http://[::1]:3128", use_aproxy=True), "[::1]:3128"),
        pytest.param(
            ProxyConfig("http://user:secret@proxy:3128", use_aproxy=True),
            "proxy:3128",
        ),
        pytest.param(
            ProxyConfig("HTTP://proxy:3128", use_aproxy=True),
            "proxy:3128",
        ),
    ],
)
def test_aproxy_address(proxies: ProxyConfig, expected: str | None) -> None:
    """aproxy is given host and port alone, and only where it is used."""
    assert proxies.aproxy_address == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ProxyConfig()),
        ({"NO": "localhost"}, ProxyConfig()),
        ({"HTTP": "", "HTTPS": "", "NO": ""}, ProxyConfig()),
        ({"HTTP": "http://proxy:3128"}, ProxyConfig(http="http://proxy:3128")),
        ({"HTTPS": "http://proxy:3128"}, ProxyConfig(https="http://proxy:3128")),
        (
            {"HTTP": "http://proxy:3128", "HTTPS": "https://proxy:3129", "NO": "localhost,10.0.0.0/8"},
            ProxyConfig("http://proxy:3128", "https://proxy:3129", "localhost,10.0.0.0/8"),
        ),
    ],
    ids=["none", "a lone no-proxy", "all empty", "http", "https", "all"],
)
def test_proxies(environment: dict[str, str], expected: ProxyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies are the model's, and a lone no-proxy is ignored."""
    for name, value in environment.items():
        monkeypatch.setenv(f"JUJU_CHARM_{name}_PROXY", value)

    assert load({}).proxies == expected


@pytest.mark.parametrize("name", ["HTTP", "HTTPS"])
def test_aproxy_takes_either_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """aproxy is content with an HTTP or an HTTPS proxy of the model."""
    monkeypatch.setenv(f"JUJU_CHARM_{name}_PROXY", "http://proxy:3128")

    assert load({"experimental-use-aproxy": True}).runner_proxies.aproxy_address == "proxy:3128"


def test_aproxy_does_not_take_a_lone_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone no-proxy is no proxy, so that aproxy blocks."""
    monkeypatch.setenv("JUJU_CHARM_NO_PROXY", "localhost")

    assert error_of({"experimental-use-aproxy": True}).startswith("experimental-use-aproxy: ")


@pytest.mark.parametrize(
    "value",
    ["proxy:3128", "ftp://proxy", "http://a b", "http://a\nX=1", "http://$(reboot)", "http://a'b", "http://`x`"],
)
def test_bad_proxies_block(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A proxy of the model that is no URL blocks instead of ending in a runner's files."""
    monkeypatch.setenv("JUJU_CHARM_HTTPS_PROXY", value)

    assert "http:// or https:// URL" in error_of({})


@pytest.mark.parametrize("value", ["http://", "http://:3128", "http://proxy:x"])
def test_proxies_without_a_host_block(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A proxy of the model needs a host, and its port must be one."""
    monkeypatch.setenv("JUJU_CHARM_HTTPS_PROXY", value)

    assert "http:// or https:// URL" in error_of({})


@pytest.mark.parametrize("value", ["localhost\nEVIL=1", "a\x1b[0m"])
def test_bad_no_proxy_blocks(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A no-proxy cannot add lines to a runner's environment, nor stop a unit from being rendered."""
    monkeypatch.setenv("JUJU_CHARM_HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("JUJU_CHARM_NO_PROXY", value)

    assert error_of({}).startswith("juju-no-proxy: ")


def test_bad_proxy_is_named_as_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad proxy is reported under the model's option that holds it."""
    monkeypatch.setenv("JUJU_CHARM_HTTPS_PROXY", "proxy:3128")

    assert error_of({}).startswith("juju-https-proxy: ")


# --- runner-http-proxy ---

RUNNERS = "http://user:p%40ss-word@runners.example:3128"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with proxies."""
    for name, value in (("HTTP", "http://model:1"), ("HTTPS", "http://model:2"), ("NO", "localhost,.internal")):
        monkeypatch.setenv(f"JUJU_CHARM_{name}_PROXY", value)


@pytest.mark.usefixtures("model")
def test_runners_have_a_proxy_of_their_own() -> None:
    """runner-http-proxy replaces both proxies of the model for runners and the image's build, not for the unit."""
    state = load({"runner-http-proxy": f" {RUNNERS}/ "})

    expected = ProxyConfig(RUNNERS, RUNNERS, "localhost,.internal")
    assert state.proxies == ProxyConfig("http://model:1", "http://model:2", "localhost,.internal")
    assert (state.runner_proxies, state.runners[0].proxies, image_build(state).runner_proxies) == (expected,) * 3
    assert image_build(state).proxies == state.proxies


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("value", ["", "  ", "\n"])
def test_without_the_option_runners_have_the_proxies_of_the_model(value: str) -> None:
    """An empty or blank runner-http-proxy leaves the model's proxies to the runners."""
    state = load({"runner-http-proxy": value})

    assert state.runner_proxies == state.proxies == state.runners[0].proxies == image_build(state).runner_proxies


def test_runners_can_have_a_proxy_where_the_model_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a proxy of the model the unit has none, and the runners' proxy is used with the model's no-proxy."""
    monkeypatch.setenv("JUJU_CHARM_NO_PROXY", "localhost")
    state = load({"runner-http-proxy": RUNNERS})

    assert (state.proxies, state.runner_proxies) == (ProxyConfig(), ProxyConfig(RUNNERS, RUNNERS, "localhost"))


def test_a_bad_no_proxy_counts_with_the_runners_proxy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A no-proxy of the model that would end in the runners' files is refused, also if only they have a proxy."""
    monkeypatch.setenv("JUJU_CHARM_NO_PROXY", "a\nb")

    assert error_of({"runner-http-proxy": RUNNERS}).startswith("juju-no-proxy: ")


BAD_PROXIES = [
    *("proxy:3128", "user:hidden@proxy:3128", "ftp://user:hidden@proxy", "socks5://user:hidden@proxy", "http://"),
    *("http://user:hidden@", "http://user:hidden@proxy:x", "http://user:hidden@proxy:0", "http://a b", "http://a\x00b"),
    *("http://a\nX=1", "http://$(reboot)", "http://a'b", 'http://a"b', "http://a`b", "http://a\\b", "http://pröxy"),
    *(
        "http://user:1/hidden@proxy:3128",
        "http://user:hidden@a,http://user:hidden@b c",
        "http://user:hid den@proxy",
        "\u202ehttp://proxy",
    ),
]


@pytest.mark.parametrize("value", BAD_PROXIES)
def test_bad_proxy_of_the_runners_blocks(value: str) -> None:
    """What is no URL of a proxy, or could end a line of a file, is refused without the user and the password."""
    line = error_of({"runner-http-proxy": value})

    assert line.startswith("runner-http-proxy: ")
    assert line.endswith("is not a http:// or https:// URL; set such a URL")
    assert "hid" not in line


def test_credentials_of_the_runners_proxy_are_not_shown() -> None:
    """The text of the state has neither the user nor the password."""
    state = load({"runner-http-proxy": RUNNERS})

    assert "runners.example" not in repr((state, state.runners, image_build(state)))


# --- aproxy ---

APROXY: dict[str, Any] = {"experimental-use-aproxy": True, "runner-http-proxy": "http://proxy.example:3128"}


def test_aproxy_forwards_to_the_proxy_of_the_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    """runner-http-proxy comes before the model's proxies, suffices alone, and the unit has no aproxy."""
    assert load(APROXY).runner_proxies.aproxy_address == "proxy.example:3128"
    monkeypatch.setenv("JUJU_CHARM_HTTP_PROXY", "http://model:1")
    state = load(APROXY)

    assert (state.runner_proxies.aproxy_address, state.proxies.aproxy_address) == ("proxy.example:3128", None)


def test_defaults_redirect_what_was_redirected_before() -> None:
    """The defaults are the ports of HTTP and HTTPS, except to private networks and loopback."""
    assert load(APROXY).runner_proxies.redirect == Redirect() == load({}).runner_proxies.redirect
    assert Redirect().ports == ((80, 80), (443, 443))
    assert list(map(str, Redirect().excluded)) == ["10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]


def test_what_aproxy_redirects_is_part_of_a_runner() -> None:
    """Both options arrive in the specification of runners."""
    [runner] = load({**APROXY, "aproxy-exclude-addresses": "192.0.2.7", "aproxy-redirect-ports": "8000-8080"}).runners

    assert runner.proxies.redirect == Redirect(
        ((8000, 8080),), (IPv4Network("127.0.0.0/8"), IPv4Network("192.0.2.7/32"))
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ""),
        (" ,, ", ""),
        ("192.0.2.7", "192.0.2.7/32"),
        ("127.1.2.3, 127.0.0.0/8", ""),
        ("192.0.2.0/24,192.0.2.0/24,192.0.2.9", "192.0.2.0/24"),
        ("192.0.2.4-192.0.2.7", "192.0.2.4/30"),
        ("192.0.2.4 - 192.0.2.5,192.0.2.5-192.0.2.6", "192.0.2.4/31 192.0.2.6/32"),
        ("192.0.2.9-192.0.2.9", "192.0.2.9/32"),
        ("198.51.100.0/25, 198.51.100.128/25", "198.51.100.0/24"),
    ],
)
def test_excluded_addresses(value: str, expected: str) -> None:
    """Addresses, networks and ranges become networks that do not overlap, and loopback is always among them."""
    assert list(map(str, parse_addresses(value))) == ["127.0.0.0/8", *expected.split()]


def test_everything_can_be_excluded() -> None:
    """A network of all addresses contains loopback."""
    assert parse_addresses("0.0.0.0/0") == parse_addresses("0.0.0.0-255.255.255.255") == (IPv4Network("0.0.0.0/0"),)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("80", ((80, 80),)),
        ("443, 80,,80", ((80, 80), (443, 443))),
        ("8000-8080", ((8000, 8080),)),
        ("8000 - 8080,8080-8090, 8091", ((8000, 8091),)),
        ("1-65535,80", ((1, 65535),)),
        ("7-7", ((7, 7),)),
    ],
)
def test_redirected_ports(value: str, expected: tuple[tuple[int, int], ...]) -> None:
    """Ports and ranges become ascending ranges that neither overlap nor touch."""
    assert parse_ports(value) == expected


BAD_ADDRESSES = [
    *("10.0.0.1/8", "10.0.0.0/33", "192.0.2.256", "10.1", "192.0.2.9-192.0.2.1", "192.0.2.1-", "-192.0.2.1", "-"),
    *("192.0.2.0/24-192.0.3.0/24", "192.0.2.1-5", "192.0.2.1-192.0.2.2-192.0.2.3", "fd00::/8", "::1", "example.com"),
    *("192.0.2.1\x00", "192.0.2.1\n192.0.2.2", "'192.0.2.1'", '"192.0.2.1"', "$(reboot)", "192.0.2.1;", "} drop"),
    *("010.0.0.1", "٣.0.0.1"),
]


@pytest.mark.parametrize("value", BAD_ADDRESSES)
def test_bad_addresses_block(value: str) -> None:
    """An item of another form is named with the accepted forms; nothing reaches the rules as it was given."""
    line = error_of({**APROXY, "aproxy-exclude-addresses": f"192.0.2.1, {value}"})

    assert line == (
        f"aproxy-exclude-addresses: {value!r} not accepted; use IPv4 addresses, networks such as 10.0.0.0/8 (host bits "
        "zero), or ranges such as 10.0.0.1-10.0.0.9"
    )


BAD_PORTS = [
    *("0", "65536", "-1", "80-", "-80", "90-80", "0-80", "80-65536", "80-90-100", "http", "8O", "1e3", "+80"),
    *("٨٠", "8 0", "80\x0080", "80\n443", "'80'", '"80"', "$(reboot)", "80;", "} drop", "999999999999"),
]


@pytest.mark.parametrize("value", BAD_PORTS)
def test_bad_ports_block(value: str) -> None:
    """An item that is neither a port nor an ascending range is named with the accepted forms."""
    line = error_of({**APROXY, "aproxy-redirect-ports": f"80,{value}"})

    form = "use ports from 1 to 65535, or ranges such as 8000-8080"
    assert line == f"aproxy-redirect-ports: {value!r} not accepted; {form}"


@pytest.mark.parametrize("value", ["", " ", ",,"])
def test_ports_are_needed(value: str) -> None:
    """Without a port nothing could be redirected."""
    assert error_of({**APROXY, "aproxy-redirect-ports": value}).startswith("aproxy-redirect-ports: is empty; use ports")


@pytest.mark.parametrize("option", ["aproxy-exclude-addresses", "aproxy-redirect-ports"])
def test_every_bad_item_is_named_and_shortened(option: str) -> None:
    """All bad items are in one message, and a very long one is cut."""
    line = error_of({**APROXY, option: f"x,{'y' * 100_000},z"})

    assert line.startswith(f"{option}: 'x', '{'y' * 40}…', 'z' not accepted; use ")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"aproxy-exclude-addresses": "192.0.2.1"}, ["aproxy-exclude-addresses"]),
        ({"aproxy-exclude-addresses": ""}, ["aproxy-exclude-addresses"]),
        ({"aproxy-redirect-ports": "80"}, ["aproxy-redirect-ports"]),
        (
            {"aproxy-exclude-addresses": "", "aproxy-redirect-ports": "81"},
            ["aproxy-exclude-addresses", "aproxy-redirect-ports"],
        ),
    ],
)
def test_options_of_aproxy_need_it(config: dict[str, str], named: list[str]) -> None:
    """A value that would have no effect without aproxy blocks, also where the runners have a proxy."""
    for extra in ({}, {"runner-http-proxy": RUNNERS}):
        assert list(errors_of({**config, **extra})) == [
            f"{option}: needs experimental-use-aproxy=true; set that, or reset {option}" for option in named
        ]


def test_the_defaults_in_another_order_need_no_aproxy() -> None:
    """The meaning of a value counts, not its letters."""
    config = {
        "aproxy-exclude-addresses": "192.168.0.0/16,10.0.0.0-10.255.255.255,172.16.0.0/12,127.0.0.1",
        "aproxy-redirect-ports": "443,80-80",
    }

    assert load(config).runner_proxies == ProxyConfig()


@pytest.mark.parametrize(
    ("proxy", "config", "port"),
    [
        ("http://192.0.2.5:443", {}, 443),
        ("http://192.0.2.5", {}, 80),
        ("https://192.0.2.5", {}, 443),
        ("http://user:hidden@192.0.2.5:3128", {"aproxy-redirect-ports": "80,443,3000-4000"}, 3128),
        ("http://10.0.0.5:80", {"aproxy-exclude-addresses": "10.0.0.6"}, 80),
    ],
)
def test_the_proxy_itself_must_not_be_redirected(proxy: str, config: dict[str, str], port: int) -> None:
    """Otherwise aproxy would connect to itself for ever; address and port are named, the port may be the scheme's."""
    line = error_of({**APROXY, **config, "runner-http-proxy": proxy})

    address = proxy.rpartition("@")[2].removeprefix("http://").removeprefix("https://").partition(":")[0]
    assert line == (
        f"aproxy-redirect-ports: has port {port} of the proxy {address}, which would be redirected to itself; "
        f"leave it out, or add {address} to aproxy-exclude-addresses"
    )


@pytest.mark.parametrize(
    ("proxy", "config"),
    [
        ("http://192.0.2.5:3128", {}),
        ("http://192.0.2.5", {"aproxy-redirect-ports": "443"}),
        ("http://192.0.2.5", {"aproxy-exclude-addresses": "192.0.2.1-192.0.2.9"}),
        ("http://10.0.0.5", {}),
        ("http://127.0.0.1", {"aproxy-exclude-addresses": ""}),
        ("http://proxy.example", {}),
    ],
)
def test_a_proxy_that_is_not_redirected_is_accepted(proxy: str, config: dict[str, str]) -> None:
    """Another port, an excluded address; a host name cannot be checked, and only IPv4 is redirected."""
    assert load({**APROXY, **config, "runner-http-proxy": proxy}).runner_proxies.captured is None


def test_without_aproxy_any_proxy_is_accepted() -> None:
    """What would be redirected counts only if aproxy is used."""
    assert load({"runner-http-proxy": "http://192.0.2.5:80"}).runner_proxies.captured is None


@pytest.mark.parametrize(
    ("address", "port", "expected"),
    [
        ("192.0.2.0", 80, True),
        ("192.0.2.9", 81, False),
        ("192.0.2.1", 8000, True),
        ("192.0.2.1", 8080, True),
        ("192.0.2.1", 8081, False),
        ("198.51.100.1", 80, False),
    ],
)
def test_captures(address: str, port: int, expected: bool) -> None:
    """The first and the last port of a range belong to it, and an excluded network is not redirected."""
    redirect = Redirect(((80, 80), (8000, 8080)), (IPv4Network("198.51.100.0/24"),))

    assert redirect.captures(IPv4Address(address), port) is expected


@pytest.mark.parametrize("host", ["[::1]:3128", "proxy_1:3128", "user@[fd00::1]"])
def test_aproxy_takes_names_and_ipv4_addresses_only(host: str) -> None:
    """What the snap's own check refuses would end the set-up of every runner."""
    line = error_of({**APROXY, "runner-http-proxy": f"http://{host}"})

    assert line.startswith("experimental-use-aproxy: aproxy takes a proxy only by an IPv4 address or a host name")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("aproxy-redirect-ports", ",".join(map(str, range(1, 2003, 2)))),
        ("aproxy-exclude-addresses", ",".join(f"1.{n // 250}.{n % 250}.1" for n in range(1001))),
        ("aproxy-exclude-addresses", ",".join(f"1.0.{n}.1-1.0.{n}.254" for n in range(0, 250, 2))),
        ("denylist", ",".join(f"1.{n // 250}.{n % 250}.1/32" for n in range(1001))),
    ],
)
def test_lists_have_an_end(option: str, value: str) -> None:
    """Each item, or each network that it becomes, is loaded into the kernel."""
    assert error_of({**APROXY, option: value}).startswith(f"{option}: ")
    assert "1000 at most" in error_of({**APROXY, option: value})


@pytest.mark.parametrize("item", ["192.0.2.0/0.0.0.255", "192.0.2.0/255.255.255.0", "1.2.3.4/032", "1.2.3.4/"])
def test_networks_have_a_prefix_length(item: str) -> None:
    """A netmask is no form that the option promises."""
    assert repr(item) in error_of({**APROXY, "aproxy-exclude-addresses": item})
