"""Spec 4, Firewall: the arithmetic of what is closed to runners."""

import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import HostError
from host import firewall
from host.firewall import egress_rules, own_addresses, split
from tests.unit.fakes import RecordingLxd, state

OWN = [IPv4Address("10.1.2.3"), IPv4Address("10.217.77.1")]


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

    assert len(split(networks, OWN)) == 10_000
    assert time.monotonic() - started < 5


def test_every_own_address_is_closed() -> None:
    """TCP, UDP and ICMP to each address of the machine, and all of IPv6; reject rules only."""
    rules = egress_rules(OWN, [], [], None)

    assert {rule["action"] for rule in rules} == {"reject"}
    closed = {(rule["destination"], rule.get("protocol"), rule.get("destination_port")) for rule in rules}
    assert closed == {
        *((str(address), protocol, None) for address in OWN for protocol in ("tcp", "udp", "icmp4")),
        ("::/0", None, None),
    }


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("http://10.1.2.3:8080", "1-8079,8081-65535"),
        ("https://10.1.2.3", "1-442,444-65535"),
        ("http://10.1.2.3:1", "2-65535"),
        ("http://10.1.2.3:2/path", "1,3-65535"),
        ("http://10.1.2.3:65535", "1-65534"),
        ("http://192.0.2.7:8080", None),
        ("http://policy.example:8080", None),
    ],
)
def test_policy_service_on_this_machine_keeps_its_port(url: str, ports: str | None) -> None:
    """Only the port of a service at one of our addresses is left open, for TCP and at that address."""
    rules = egress_rules(OWN, [], [], url)

    tcp = {rule["destination"]: rule.get("destination_port") for rule in rules if rule.get("protocol") == "tcp"}
    assert tcp == {"10.1.2.3": ports, "10.217.77.1": None}


def test_debug_hosts_are_reachable_through_the_denylist() -> None:
    """A tmate server inside a denied network stays open; one with an IPv6 address changes nothing."""
    hosts = [ip_address("192.0.2.1"), ip_address("2001:db8::1")]

    rules = egress_rules([], [IPv4Network("192.0.2.0/30")], hosts, None)

    assert [rule["destination"] for rule in rules] == ["::/0", "192.0.2.0/32", "192.0.2.2/31"]


def test_own_addresses_are_this_machines() -> None:
    """Loopback is not among them: runners cannot reach it anyway."""
    assert not any(address.is_loopback for address in own_addresses())


OPTIONS = state(denylist=(IPv4Network("10.0.0.0/8"),))
BRIDGE = f"networks/{firewall.BRIDGE}"
BRIDGE_CONFIG = {"ipv4.address": "10.217.77.1/24"}


@pytest.fixture
def lxd(monkeypatch: pytest.MonkeyPatch) -> RecordingLxd:
    """An LXD with the runners' bridge and the network ACL of the options."""
    monkeypatch.setattr(firewall, "own_addresses", lambda: OWN)
    found = RecordingLxd({BRIDGE: {"config": BRIDGE_CONFIG, "used_by": []}})
    firewall.ensure(found.client, OPTIONS)
    return found


def denied(lxd: RecordingLxd) -> set[str]:
    return {rule["destination"] for rule in lxd.things[f"network-acls/{firewall.ACL}"]["egress"]}


def intact(lxd: RecordingLxd) -> bool:
    return firewall.is_intact(lxd.client, OPTIONS, lxd.things[BRIDGE])


def test_the_bridge_gets_the_acl_and_keeps_its_own_configuration(lxd: RecordingLxd) -> None:
    """The first set-up creates the ACL before the bridge refers to it. A second one changes nothing."""
    assert lxd.changes == ["POST network-acls", f"PATCH {BRIDGE}"]
    assert lxd.things[BRIDGE]["config"] == {**BRIDGE_CONFIG, **firewall.APPLIED}
    assert {str(OWN[0]), "::/0", "10.128.0.0/10"} <= denied(lxd)
    assert intact(lxd)

    firewall.ensure(lxd.client, OPTIONS)

    assert len(lxd.changes) == 2


def test_the_acl_follows_the_options_in_one_update(lxd: RecordingLxd) -> None:
    """A changed denylist replaces the rules of the ACL while the bridge keeps it."""
    changed = replace(OPTIONS, denylist=(IPv4Network("192.0.2.0/24"),))
    assert not firewall.is_intact(lxd.client, changed, lxd.things[BRIDGE])

    firewall.ensure(lxd.client, changed)

    assert lxd.changes[2:] == [f"PUT network-acls/{firewall.ACL}"]
    assert "192.0.2.0/24" in denied(lxd)
    assert firewall.is_intact(lxd.client, changed, lxd.things[BRIDGE])


@pytest.mark.parametrize("lost", ["rules", "ingress", "ACL", "bridge's ACL", "bridge's default"])
def test_each_lost_part_of_the_firewall_is_noticed_and_restored(lxd: RecordingLxd, lost: str) -> None:
    """Whatever somebody else changed about the ACL or the bridge, the next set-up restores it."""
    acl, bridge = lxd.things[f"network-acls/{firewall.ACL}"], lxd.things[BRIDGE]["config"]
    if lost == "rules":
        acl["egress"] = acl["egress"][1:]
    elif lost == "ingress":
        acl["ingress"] = [{"action": "allow"}]
    elif lost == "ACL":
        del lxd.things[f"network-acls/{firewall.ACL}"]
    else:
        bridge["security.acls" if lost == "bridge's ACL" else "security.acls.default.egress.action"] = ""
    assert not intact(lxd)

    firewall.ensure(lxd.client, OPTIONS)

    assert intact(lxd)


def test_removal_takes_the_acl_off_the_bridge_first(lxd: RecordingLxd) -> None:
    """LXD refuses to delete an ACL that a bridge refers to. A second removal finds nothing."""
    assert firewall.remove(lxd.client) == [f"network ACL {firewall.ACL}"]
    assert lxd.changes[2:] == [f"PATCH {BRIDGE}", f"DELETE network-acls/{firewall.ACL}"]
    assert lxd.things[BRIDGE]["config"] == BRIDGE_CONFIG

    assert firewall.remove(lxd.client) == []


def test_the_acl_stays_while_an_instance_uses_the_bridge(lxd: RecordingLxd) -> None:
    """An instance that is still there must not lose its firewall."""
    lxd.things[BRIDGE]["used_by"] = ["/1.0/instances/app-0-aa"]

    with pytest.raises(HostError, match="instances use"):
        firewall.remove(lxd.client)
    assert intact(lxd)
