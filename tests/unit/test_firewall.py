"""What is closed to runners: the arithmetic, the ACLs of several units, and rules that the kernel has lost."""

import json
import re
import subprocess
import time
from ipaddress import IPv4Address, IPv4Network
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import profiles
from engine.client import LxdClient
from engine.profiles import NETWORK_CARD
from errors import CommandError, HostError, LxdError
from host import firewall, lxd_server, packet_filter
from host.firewall import acl_name, egress_rules, own_networks, split
from models import RepoPolicy, SSHDebugConnection
from proxies import ProxyConfig
from tests.support.fakes import state

OWN = [IPv4Network("10.1.2.3"), IPv4Network("10.217.77.1")]


@pytest.mark.parametrize(
    ("networks", "spared", "left"),
    [
        ([], [], []),
        (["10.0.0.0/8"], [], ["10.0.0.0/8"]),
        (["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8"], [], ["10.0.0.0/8"]),
        (["10.0.0.0/9", "10.128.0.0/9"], [], ["10.0.0.0/8"]),
        (["10.0.0.0/30"], ["10.0.0.1"], ["10.0.0.0/32", "10.0.0.2/31"]),
        (["10.0.0.0/30"], ["10.0.0.1", "10.0.0.2"], ["10.0.0.0/32", "10.0.0.3/32"]),
        (["10.0.0.1/32"], ["10.0.0.1"], []),
        (["10.0.0.0/30"], ["192.0.2.1"], ["10.0.0.0/30"]),
        (["10.0.0.0/30"], ["10.0.0.1", "10.0.0.1"], ["10.0.0.0/32", "10.0.0.2/31"]),
    ],
)
def test_networks_are_split_around_addresses(networks: list[str], spared: list[str], left: list[str]) -> None:
    """What is left covers exactly the networks without the spared addresses."""
    found = split(map(IPv4Network, networks), [IPv4Address(address) for address in spared])

    assert [str(network) for network in found] == left


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(20, 32)), max_size=6),
    st.lists(st.integers(0, 4095), max_size=4),
    st.integers(0, 4095),
)
def test_split_is_right_for_every_address(networks: list[tuple[int, int]], spared: list[int], probe: int) -> None:
    """An address is closed if and only if a network has it and it is not spared."""
    base = int(IPv4Address("10.0.0.0"))
    given_networks = [IPv4Network((base + (start << 4), prefix), strict=False) for start, prefix in networks]
    spared_addresses = [IPv4Address(base + offset) for offset in spared]
    address = IPv4Address(base + probe)

    closed = any(address in network for network in split(given_networks, spared_addresses))

    assert closed == (any(address in network for network in given_networks) and address not in spared_addresses)


def test_ten_thousand_networks_are_no_trouble() -> None:
    """A long denylist is split in a moment."""
    networks = [IPv4Network((int(IPv4Address("20.0.0.0")) + number * 512, 24)) for number in range(10_000)]
    started = time.monotonic()

    assert len(split(networks, [network[0] for network in OWN])) == 10_000
    assert time.monotonic() - started < 5


def test_closed_networks_are_closed_to_every_protocol() -> None:
    """Reject rules without a protocol, and all of IPv6; a single address is written without its length."""
    rules = egress_rules([*OWN, IPv4Network("10.217.77.0/24"), IPv4Network("169.254.0.0/16")], {})

    assert rules == [
        {"action": "reject", "state": "enabled", "destination": destination}
        for destination in ("::/0", "10.1.2.3", "10.217.77.0/24", "169.254.0.0/16")
    ]


@pytest.mark.parametrize(
    ("ports", "closed"),
    [
        ({8080}, "1-8079,8081-65535"),
        ({1}, "2-65535"),
        ({2}, "1,3-65535"),
        ({65535}, "1-65534"),
        ({65534}, "1-65533,65535"),
        ({22, 23, 25}, "1-21,24,26-65535"),
    ],
)
def test_an_exception_is_a_port_and_not_a_host(ports: set[int], closed: str) -> None:
    """Of a host in a closed network only these TCP ports stay open; its UDP and ICMP are closed."""
    host = IPv4Address("10.1.2.3")

    rules = egress_rules(OWN, {host: ports, IPv4Address("192.0.2.1"): {80}})

    assert [rule["destination"] for rule in rules] == ["::/0", "10.217.77.1", *["10.1.2.3"] * 3]
    assert [rule.get("protocol") for rule in rules] == [None, None, "tcp", "udp", "icmp4"]
    assert [rule.get("destination_port") for rule in rules] == [None, None, closed, None, None]


def rules_of(monkeypatch: pytest.MonkeyPatch, subnet: str = "10.217.77.1/24", **options: Any) -> list[dict[str, str]]:
    """The rules of a machine with the addresses OWN, for a unit with these options."""
    monkeypatch.setattr(firewall, "own_networks", lambda: OWN)
    lxd = AclLxd()
    lxd.bridge["ipv4.address"] = subnet
    firewall.ensure(cast(LxdClient, lxd), state(**options), "runner/0")
    return lxd.acls["runner-0"]


@pytest.mark.parametrize(
    ("url", "host", "ports"),
    [
        ("http://10.1.2.3:8080", "10.1.2.3", "1-8079,8081-65535"),
        ("https://10.1.2.3", "10.1.2.3", "1-442,444-65535"),
        ("http://169.254.1.1", "169.254.1.1", "1-79,81-65535"),
        ("http://192.0.2.7:8080", "192.0.2.7", None),
        ("http://policy.example:8080", "10.1.2.3", None),
    ],
)
def test_the_policy_service_keeps_its_port(
    monkeypatch: pytest.MonkeyPatch, url: str, host: str, ports: str | None
) -> None:
    """Wherever its address is closed, on this machine for example, that one TCP port stays open."""
    rules = rules_of(monkeypatch, repo_policy=RepoPolicy(url, "token"))

    assert [rule["destination_port"] for rule in rules if rule.get("protocol") == "tcp"] == [ports] * (
        ports is not None
    )
    assert ports is None or all("protocol" in rule for rule in rules if rule["destination"] == host)


def test_debug_servers_keep_their_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tmate server in a denied network keeps its port; one at this machine's address or of IPv6 changes nothing."""
    servers = tuple(SSHDebugConnection(host, 22, "a", "b") for host in ("192.0.2.1", "2001:db8::1", "10.1.2.3"))

    rules = rules_of(monkeypatch, denylist=(IPv4Network("192.0.2.0/30"),), ssh_debug_connections=servers)

    spared = {rule["destination"] for rule in rules if rule.get("protocol") == "tcp"}
    assert spared == {"192.0.2.1"}
    assert {"192.0.2.0", "192.0.2.2/31", "10.1.2.3"} <= {rule["destination"] for rule in rules if len(rule) == 3}


@pytest.mark.parametrize("subnet", ["10.217.77.1/24", "none"])
def test_what_is_always_closed(monkeypatch: pytest.MonkeyPatch, subnet: str) -> None:
    """Loopback, link-local, multicast, broadcast and the bridge's own subnet, whatever the options are."""
    closed = {rule["destination"] for rule in rules_of(monkeypatch, subnet)}

    always = {"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255", "::/0", "10.1.2.3"}
    assert closed == always | {"10.217.77.0/24" if subnet != "none" else "10.217.77.1"}


def test_own_networks_are_what_the_kernel_delivers_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses, what is routed to the machine without being an address of it, and broadcasts, but no loopback."""
    routes = [
        {"type": "local", "dst": "10.1.2.3", "dev": "eth0"},
        {"type": "broadcast", "dst": "10.1.2.255", "dev": "eth0"},
        {"type": "local", "dst": "192.0.2.0/24", "dev": "lo"},
        {"type": "local", "dst": "127.0.0.0/8", "dev": "lo"},
        {"type": "local", "dst": "default", "dev": "lo", "table": "100"},
        {"type": "unicast", "dst": "10.9.0.0/16", "dev": "eth1"},
    ]
    monkeypatch.setattr(firewall, "run", lambda _: subprocess.CompletedProcess([], 0, json.dumps(routes)))

    assert list(map(str, own_networks())) == ["10.1.2.3/32", "10.1.2.255/32", "192.0.2.0/24"]


class AclLxd:
    """An LXD with a bridge, ACLs, and a kernel that keeps or loses the rules."""

    def __init__(self, *users: str) -> None:
        self.bridge: dict[str, str] = {"ipv4.address": "10.217.77.1/24"}
        self.users = list(users)
        self.acls: dict[str, list[dict[str, str]]] = {}
        self.changed: list[str] = []
        self.instances: list[dict[str, Any]] = []
        self.driver = "nftables"

    def server_version(self) -> tuple[int, ...]:
        return lxd_server.OLDEST

    def find(self, *path: str) -> Any:
        if path[0] == "networks":
            return {"used_by": self.users, "config": dict(self.bridge), "managed": True}
        if path[1] not in self.acls:
            return None
        used = ["/1.0/networks/lxdbr0"] if path[1] in self.bridge.get("security.acls", "").split(",") else []
        return {"egress": self.acls[path[1]], "ingress": [], "used_by": used}

    def get(self, *path: str, **_: Any) -> Any:
        if not path:
            return {"environment": {"firewall": self.driver}, "config": {}}
        if path == ("profiles", "default"):
            return {"devices": {"eth0": NETWORK_CARD, "root": {}}}
        return self.instances if path == ("instances",) else self.find(*path)

    def change(self, method: str, *path: str, json: Any = None) -> None:
        self.changed.append(" ".join([method, *path]))
        if path[0] == "networks":
            self.bridge.update(json["config"])
        elif method == "DELETE":
            del self.acls[path[1]]
        elif path[0] == "network-acls":
            self.acls[json["name"] if method == "POST" else path[1]] = json["egress"]


def test_units_of_one_machine_have_acls_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each unit adds its ACL to those of the bridge, and takes away its own only; version 1.0's goes."""
    monkeypatch.setattr(firewall, "own_networks", lambda: OWN)
    lxd = AclLxd("/1.0/instances/other-1-1")
    lxd.acls, lxd.bridge["security.acls"] = {"github": [], "operators": []}, "github,operators"

    for unit in ("runner/0", "other/1"):
        firewall.ensure(cast(LxdClient, lxd), state(), unit)
    assert lxd.bridge["security.acls"] == "operators,other-1,runner-0"
    assert set(lxd.acls) == {"operators", "runner-0", "other-1"}

    assert firewall.remove(cast(LxdClient, lxd), "runner/0") == ["network ACL runner-0"]
    assert lxd.bridge["security.acls"] == "operators,other-1"
    assert lxd.bridge[firewall.DEFAULT] == "allow"
    assert firewall.remove(cast(LxdClient, lxd), "runner/0") == []


def test_an_acl_outlives_its_runners() -> None:
    """An instance that resists its removal keeps the ACL of its unit, and the last ACL of its bridge."""
    lxd = AclLxd("/1.0/profiles/default", "/1.0/instances/runner-0-1")
    lxd.acls, lxd.bridge["security.acls"] = {"runner-0": [], "other-1": []}, "runner-0,other-1"
    with pytest.raises(HostError, match="its network ACL runner-0 stays"):
        firewall.remove(cast(LxdClient, lxd), "runner/0")
    lxd.acls, lxd.bridge["security.acls"] = {"runner-0": []}, "runner-0"

    with pytest.raises(HostError, match="instances use lxdbr0: its network ACL runner-0 stays"):
        firewall.remove(cast(LxdClient, lxd), "runner/0")
    assert lxd.changed == []

    lxd.users.pop()
    assert firewall.remove(cast(LxdClient, lxd), "runner/0") == ["network ACL runner-0"]
    assert lxd.changed == ["PATCH networks lxdbr0", "DELETE network-acls runner-0"]
    assert lxd.bridge[firewall.DEFAULT] == ""


def test_the_name_of_an_acl_is_one_for_lxd() -> None:
    """At most 63 characters, different for different units."""
    names = {acl_name(f"{'a' * length}/{number}") for length in (1, 59, 60, 61, 80) for number in (0, 1, 10)}

    assert len(names) == 15
    assert all(re.fullmatch(r"[a-z][a-z0-9-]{,61}[a-z0-9]", name) for name in names)


RULES = [{"destination": destination} for destination in ("::/0", "10.1.2.3", "10.217.77.0/24")]
WRITTEN = """\
table inet lxd {
	chain acl.lxdbr0 {
		iifname "lxdbr0" ip6 daddr ::/0 reject with icmpv6 port-unreachable
		iifname "lxdbr0" ip daddr 10.1.2.3 reject with icmp port-unreachable
		iifname "lxdbr0" ip daddr 10.217.77.0/24 reject with icmp port-unreachable
		iifname "lxdbr0" accept
	}
}
"""
CARDS = """\
table bridge lxd {
	chain in.runner-0-1.eth0 {
		iifname "veth1" ether saddr != 00:16:3e:00:00:01 drop
	}
}
"""
XTABLES = """\
-N lxd_acl_lxdbr0
-A INPUT -i lxdbr0 -m comment --comment "generated for LXD network lxdbr0" -j lxd_acl_lxdbr0
-A lxd_acl_lxdbr0 -d 10.1.2.3/32 -i lxdbr0 -j REJECT --reject-with icmp-port-unreachable
-A lxd_acl_lxdbr0 -d 10.217.77.0/24 -i lxdbr0 -j REJECT --reject-with icmp-port-unreachable
"""


@pytest.mark.parametrize(
    ("driver", "listings", "applied"),
    [
        ("nftables", {"inet": WRITTEN, "bridge": CARDS}, True),
        ("nftables", {}, False),
        ("nftables", {"inet": WRITTEN}, False),
        ("nftables", {"inet": WRITTEN, "bridge": CARDS.replace("drop", "")}, False),
        ("nftables", {"inet": WRITTEN.replace("10.1.2.3", "10.1.2.4"), "bridge": CARDS}, False),
        ("nftables", {"inet": WRITTEN.replace("lxdbr0", "other"), "bridge": CARDS}, False),
        ("xtables", {"iptables": XTABLES}, True),
        ("xtables", {"iptables": XTABLES.replace("10.1.2.3", "10.1.2.4")}, False),
        ("xtables", {}, False),
        ("nftables", None, True),
        ("xtables", None, True),
    ],
    ids=[
        "all there",
        "flushed",
        "cards flushed",
        "card's rules flushed",
        "rule gone",
        "of another bridge",
        "xtables",
        "xtables, rule gone",
        "xtables, flushed",
        "no nft",
        "no iptables",
    ],
)
def test_lost_rules_are_noticed(
    monkeypatch: pytest.MonkeyPatch, driver: str, listings: dict[str, str] | None, applied: bool
) -> None:
    """Rules of the bridge and filters of running instances' cards; what cannot be read is not lost."""

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        if listings is None:
            raise CommandError(f"{command[0]} is not installed")
        found = next((text for name, text in listings.items() if name in command), None)
        return subprocess.CompletedProcess(command, 0 if found else 1, found or "")

    monkeypatch.setattr(packet_filter, "run", run)
    lxd = AclLxd()
    lxd.driver = driver
    others: dict[str, dict[str, Any]] = {
        "stopped": {"status": "Stopped"},
        "own-card": {"devices": {"eth0": NETWORK_CARD}},
        "unfiltered": {"expanded_devices": {"eth0": {"type": "nic"}}},
        "other-profile": {"profiles": ["other"]},
    }
    lxd.instances = [
        instance("runner-0-1"),
        instance("starting", config={}),
        *(instance(name, config={"volatile.eth0.host_name": "veth2"}, **fields) for name, fields in others.items()),
    ]

    assert packet_filter.is_applied(cast(LxdClient, lxd), RULES) is applied


def test_filters_of_a_runner_that_has_just_ended_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two lists of LXD and the kernel a runner may end, and its filters with it."""
    lxd = AclLxd()
    lxd.instances = [instance("runner-0-1", config={"volatile.eth0.host_name": "veth2"})]

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        if "bridge" in command:
            lxd.instances = []
        return subprocess.CompletedProcess(command, 0, CARDS if "bridge" in command else WRITTEN)

    monkeypatch.setattr(packet_filter, "run", run)

    assert packet_filter.is_applied(cast(LxdClient, lxd), RULES)


def test_rules_for_everything_have_no_destination_in_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """iptables leaves it out: a denylist of all of IPv4 is not lost for that."""
    monkeypatch.setattr(packet_filter, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, XTABLES))
    lxd = AclLxd()
    lxd.driver = "xtables"

    assert packet_filter.is_applied(cast(LxdClient, lxd), [*RULES, {"destination": "0.0.0.0/0"}])


def test_the_card_is_filtered_again_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """LXD refuses to change the profile while an instance starts or stops: it is tried again, and put back."""
    lxd = AclLxd()
    monkeypatch.setattr("engine.profiles.time.sleep", lambda _: None)
    cards: list[str] = []
    change = lxd.change

    def refuse_first(method: str, *path: str, json: Any = None) -> None:
        if path[0] == "profiles":
            cards.append(json["devices"]["eth0"]["security.ipv6_filtering"])
            if cards.count("false") < 7 and cards[-1] == "false":
                raise LxdError("The following instances failed to update")
        change(method, *path, json=json)

    monkeypatch.setattr(lxd, "change", refuse_first)

    with pytest.raises(LxdError):
        packet_filter.restore(cast(LxdClient, lxd))
    assert cards == ["false"] * profiles.ATTEMPTS + ["true"]

    packet_filter.restore(cast(LxdClient, lxd))
    assert cards[-3:] == ["false", "false", "true"]


def instance(name: str, **fields: Any) -> dict[str, Any]:
    """A running instance with the network card of the profile default, but for these fields."""
    about = {"status": "Running", "profiles": ["default"], "devices": {}, "expanded_devices": {"eth0": NETWORK_CARD}}
    return {"name": name, "config": {"volatile.eth0.host_name": "veth1"}, **about, **fields}


@pytest.mark.parametrize("before", ["", "1h", "24h"])
def test_rules_are_written_again_without_a_trace(before: str) -> None:
    """The bridge and the profile are as before: an option is changed and changed back, so that LXD writes its rules."""
    lxd = AclLxd()
    lxd.bridge["ipv4.dhcp.expiry"] = before

    packet_filter.restore(cast(LxdClient, lxd))

    assert lxd.changed == ["PATCH networks lxdbr0"] * 2 + ["PATCH profiles default"] * 2
    assert lxd.bridge["ipv4.dhcp.expiry"] == before


def test_lost_rules_are_restored_before_the_acl_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """LXD refuses to change an ACL whose rules the kernel does not have."""
    monkeypatch.setattr(firewall, "own_networks", lambda: OWN)
    lxd, kernel = AclLxd(), {"applied": True}
    monkeypatch.setattr(packet_filter, "is_applied", lambda *_: kernel["applied"])
    monkeypatch.setattr(packet_filter, "restore", lambda _: lxd.changed.append("restore"))
    firewall.ensure(cast(LxdClient, lxd), state(), "runner/0")
    bridge = {"config": dict(lxd.bridge)}
    assert firewall.is_intact(cast(LxdClient, lxd), state(), "runner/0", bridge)
    lxd.changed.clear()
    kernel["applied"] = False

    denied = state(denylist=(IPv4Network("192.0.2.0/24"),))
    firewall.ensure(cast(LxdClient, lxd), denied, "runner/0")

    assert lxd.changed == ["restore", "PUT network-acls runner-0"]
    assert not firewall.is_intact(cast(LxdClient, lxd), denied, "runner/0", bridge)


DHCP = "dhcp-ignore=tag:!known\ndhcp-ignore-clid"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", DHCP),
        ("dhcp-option=6,10.0.0.1\n", f"dhcp-option=6,10.0.0.1\n{DHCP}"),
        ("dhcp-ignore-clid\ndomain=x", "dhcp-ignore-clid\ndomain=x\ndhcp-ignore=tag:!known"),
    ],
)
def test_the_operators_lines_for_dhcp_stay(before: str, after: str) -> None:
    """The lines that keep a runner from taking all addresses are added once, and taken from a bridge that stays."""
    lxd = AclLxd()
    lxd.bridge["raw.dnsmasq"] = before
    for _ in range(2):
        lxd_server.ensure(cast(LxdClient, lxd), ProxyConfig())

    assert lxd.bridge["raw.dnsmasq"] == after
    assert lxd.changed == ["PATCH networks lxdbr0"]
    lxd_server.remove(cast(LxdClient, lxd))
    assert lxd.bridge["raw.dnsmasq"] == "\n".join(
        line for line in before.splitlines() if not line.startswith("dhcp-ig")
    )
