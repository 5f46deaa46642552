"""What runners cannot reach: an LXD network ACL of this unit on the bridge.

https://documentation.ubuntu.com/lxd/latest/howto/network_acls/
"""

import hashlib
import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from engine.client import LxdClient
from engine.profiles import BRIDGE
from errors import HostError
from host import packet_filter
from models import CharmState
from system import run

# The name that version 1.0 gave to the ACL of every unit.
FORMER_ACL = "github"
NAME_LIMIT = 63
LAST_PORT = 65535
DEFAULT = "security.acls.default.egress.action"
# Loopback addresses reach the machine where a program has set `route_localnet`, as Kubernetes does. Link-local
# addresses are those of clouds' metadata services. A broadcast or a multicast packet reaches the machine itself.
ALWAYS_CLOSED = [
    ipaddress.IPv4Network(network) for network in ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32")
]

Rule = dict[str, str]


def acl_name(unit: str) -> str:
    """The ACL of a unit such as ``github-runner/0``: several units of this charm may be on one machine."""
    name = unit.replace("/", "-")
    if len(name) <= NAME_LIMIT:
        return name
    return f"{name[: NAME_LIMIT - 9].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def ensure(lxd: LxdClient, state: CharmState, unit: str) -> None:
    """Bring the unit's ACL to what the options ask for, in one update, so that the bridge is never open.

    Other ACLs of the bridge stay: what one unit closes is closed for all runners of the machine.
    """
    name, bridge = acl_name(unit), lxd.get("networks", BRIDGE)
    rules = _rules(state, bridge)
    acl = {
        "description": f"What the GitHub runners of {unit} cannot reach",
        "egress": rules,
        "ingress": [],
        "config": {},
    }
    found = lxd.find("network-acls", name)
    if found is not None and _is_applied(bridge, name) and not packet_filter.is_applied(lxd, found["egress"]):
        # First, because LXD refuses to change an ACL whose rules are gone.
        packet_filter.restore(lxd)
    if found is None:
        lxd.change("POST", "network-acls", json={"name": name, **acl})
    elif found["egress"] != rules or found["ingress"]:
        lxd.change("PUT", "network-acls", name, json=acl)
    if not _is_applied(bridge, name):
        names = sorted({*_acls(bridge), name} - {FORMER_ACL})
        lxd.change("PATCH", "networks", BRIDGE, json={"config": {"security.acls": ",".join(names), DEFAULT: "allow"}})
    former = lxd.find("network-acls", FORMER_ACL)
    if former is not None and not former["used_by"]:
        lxd.change("DELETE", "network-acls", FORMER_ACL)


def is_intact(lxd: LxdClient, state: CharmState, unit: str, bridge: Mapping[str, Any] | None) -> bool:
    """Whether the ACL is what the options ask for, the bridge (as LXD describes it) has it, and the kernel as well."""
    name = acl_name(unit)
    found = lxd.find("network-acls", name)
    if bridge is None or found is None or found["ingress"] or found["egress"] != _rules(state, bridge):
        return False
    return _is_applied(bridge, name) and packet_filter.is_applied(lxd, found["egress"])


def remove(lxd: LxdClient, unit: str) -> list[str]:
    """Take the unit's ACL off the bridge and delete it; returns what was removed."""
    name = acl_name(unit)
    if lxd.find("network-acls", name) is None:
        return []
    bridge = lxd.find("networks", BRIDGE)
    if bridge is not None:
        others = [other for other in _acls(bridge) if other != name]
        users = f"/instances/{name}-" if others else "/instances/"
        if any(users in user for user in bridge["used_by"]):
            raise HostError(f"instances use {BRIDGE}: its network ACL {name} stays")
        config = {"security.acls": ",".join(others), DEFAULT: "allow" if others else ""}
        lxd.change("PATCH", "networks", BRIDGE, json={"config": config})
    lxd.change("DELETE", "network-acls", name)
    return [f"network ACL {name}"]


def _acls(bridge: Mapping[str, Any]) -> list[str]:
    return [name.strip() for name in bridge["config"].get("security.acls", "").split(",") if name.strip()]


def _is_applied(bridge: Mapping[str, Any], name: str) -> bool:
    names = _acls(bridge)
    return name in names and FORMER_ACL not in names and bridge["config"].get(DEFAULT) == "allow"


def _rules(state: CharmState, bridge: Mapping[str, Any]) -> list[Rule]:
    own = own_networks()
    subnet = bridge["config"].get("ipv4.address", "none")
    subnets = [] if subnet == "none" else [ipaddress.IPv4Network(subnet, strict=False)]
    return egress_rules([*ALWAYS_CLOSED, *own, *subnets, *state.denylist], _exceptions(state, own))


def _exceptions(state: CharmState, own: Iterable[ipaddress.IPv4Network]) -> dict[ipaddress.IPv4Address, set[int]]:
    """The TCP ports that stay open: of debug-ssh servers on other machines, and of the policy service anywhere."""
    found: dict[ipaddress.IPv4Address, set[int]] = {}
    for connection in state.ssh_debug_connections:
        host = ipaddress.ip_address(connection.host)
        if isinstance(host, ipaddress.IPv4Address) and not any(host in network for network in own):
            found.setdefault(host, set()).add(connection.port)
    parts = urlsplit(state.repo_policy.url if state.repo_policy else "")
    try:
        host = ipaddress.IPv4Address(parts.hostname or "")
    except ValueError:
        return found
    found.setdefault(host, set()).add(parts.port or (443 if parts.scheme == "https" else 80))
    return found


def own_networks() -> list[ipaddress.IPv4Network]:
    """What the kernel delivers to this machine itself: its addresses, also those routed to it, and broadcasts."""
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]).stdout)
    own = {route["dst"] for route in routes if route.get("type") in ("local", "broadcast")}
    # A local default route is for packets with a mark, as of a transparent proxy.
    found = {ipaddress.IPv4Network(destination) for destination in own - {"default", "0.0.0.0/0"}}
    return sorted(network for network in found if not network.is_loopback)


def egress_rules(
    closed: Iterable[ipaddress.IPv4Network], exceptions: Mapping[ipaddress.IPv4Address, set[int]]
) -> list[Rule]:
    """Reject rules for all of IPv6 and the closed networks, but for the TCP ports of the exceptions.

    LXD puts reject rules before allow rules, so that exceptions are left out of the networks. Its own rules for DNS and
    DHCP come before any.
    """
    closed = list(closed)
    hosts = sorted(host for host in exceptions if any(host in network for network in closed))
    rules = [_rule("::/0")]
    rules += [_rule(str(network).removesuffix("/32")) for network in split(closed, hosts)]
    for host in hosts:
        rules.append(_rule(str(host), "tcp", port=_ports_but(exceptions[host])))
        rules += [_rule(str(host), protocol) for protocol in ("udp", "icmp4")]
    return rules


def split(
    networks: Iterable[ipaddress.IPv4Network], spared: Iterable[ipaddress.IPv4Address]
) -> list[ipaddress.IPv4Network]:
    """The fewest networks that cover the given ones without the spared addresses."""
    covered = list(ipaddress.collapse_addresses(networks))
    for address in spared:
        one = ipaddress.IPv4Network(address)
        parts: list[ipaddress.IPv4Network] = []
        for network in covered:
            parts += network.address_exclude(one) if one.subnet_of(network) else [network]
        covered = parts
    return list(ipaddress.collapse_addresses(covered))


def _ports_but(ports: Iterable[int]) -> str:
    """All ports but these, as LXD writes ranges."""
    ranges, first = [], 1
    for port in [*sorted(ports), LAST_PORT + 1]:
        if port > first:
            ranges.append(str(first) if port - 1 == first else f"{first}-{port - 1}")
        first = port + 1
    return ",".join(ranges)


def _rule(destination: str, protocol: str | None = None, port: str | None = None) -> Rule:
    rule = {"action": "reject", "state": "enabled", "destination": destination}
    if protocol:
        rule["protocol"] = protocol
    if port:
        rule["destination_port"] = port
    return rule
