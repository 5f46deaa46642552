"""Spec 4, Firewall: the arithmetic of what is closed to runners."""

import time
from ipaddress import IPv4Address, IPv4Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.firewall import egress_rules, own_addresses, split

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
