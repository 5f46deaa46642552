"""What runners cannot reach: an LXD network ACL on the bridge (spec 4, Firewall).

https://documentation.ubuntu.com/lxd/latest/howto/network_acls/
"""

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from errors import HostError
from host.daemon import BRIDGE
from lxd import LxdClient
from models import CharmState
from system import run

ACL = "github"
LAST_PORT = 65535
APPLIED = {"security.acls": ACL, "security.acls.default.egress.action": "allow"}

Rule = dict[str, str]


def ensure(lxd: LxdClient, state: CharmState) -> None:
    """Bring the ACL to what the options ask for, in one update: at no moment is the bridge open."""
    rules = _rules(state)
    acl = {"description": "What GitHub runners cannot reach", "egress": rules, "ingress": [], "config": {}}
    found = lxd.find("network-acls", ACL)
    if found is None:
        lxd.change("POST", "network-acls", json={"name": ACL, **acl})
    elif found["egress"] != rules or found["ingress"]:
        lxd.change("PUT", "network-acls", ACL, json=acl)
    if not _is_applied(lxd.get("networks", BRIDGE)):
        lxd.change("PATCH", "networks", BRIDGE, json={"config": APPLIED})


def is_intact(lxd: LxdClient, state: CharmState, bridge: Mapping[str, Any] | None) -> bool:
    """Whether the ACL is what the options ask for, and the bridge (as LXD describes it) has it."""
    found = lxd.find("network-acls", ACL)
    intact = found is not None and found["egress"] == _rules(state) and not found["ingress"]
    return bool(intact and bridge is not None and _is_applied(bridge))


def _rules(state: CharmState) -> list[Rule]:
    return egress_rules(
        own_addresses(),
        state.denylist,
        [ipaddress.ip_address(connection.host) for connection in state.ssh_debug_connections],
        state.repo_policy.url if state.repo_policy else None,
    )


def _is_applied(bridge: Mapping[str, Any]) -> bool:
    return all(bridge["config"].get(key) == value for key, value in APPLIED.items())


def remove(lxd: LxdClient) -> list[str]:
    """Take the ACL off the bridge and delete it; returns what went."""
    if lxd.find("network-acls", ACL) is None:
        return []
    bridge = lxd.find("networks", BRIDGE)
    if bridge is not None and any("/instances/" in user for user in bridge["used_by"]):
        raise HostError(f"instances use {BRIDGE}: its network ACL {ACL} stays")
    if bridge is not None:
        config = {"security.acls": "", "security.acls.default.egress.action": ""}
        lxd.change("PATCH", "networks", BRIDGE, json={"config": config})
    lxd.change("DELETE", "network-acls", ACL)
    return [f"network ACL {ACL}"]


def own_addresses() -> list[ipaddress.IPv4Address]:
    """Every IPv4 address of this machine but the loopback's."""
    interfaces = json.loads(run(["ip", "-json", "-4", "address", "show"]).stdout)
    found = {ipaddress.IPv4Address(item["local"]) for interface in interfaces for item in interface["addr_info"]}
    return sorted(address for address in found if not address.is_loopback)


def egress_rules(
    own: Iterable[ipaddress.IPv4Address],
    denylist: Iterable[ipaddress.IPv4Network],
    debug_hosts: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address],
    policy_url: str | None,
) -> list[Rule]:
    """Reject rules only: LXD sorts drop, reject, allow, and its own DNS and DHCP rules come before any."""
    own = list(own)
    rules = []
    for address in own:
        rules.append(_rule(str(address), "tcp", port=_ports_but(_policy_port(policy_url, address))))
        rules += [_rule(str(address), protocol) for protocol in ("udp", "icmp4")]
    rules.append(_rule("::/0"))
    hosts = [host for host in debug_hosts if isinstance(host, ipaddress.IPv4Address)]
    rules += [_rule(str(network)) for network in split(denylist, [*own, *hosts])]
    return rules


def split(
    networks: Iterable[ipaddress.IPv4Network], spared: Sequence[ipaddress.IPv4Address]
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


def _policy_port(url: str | None, address: ipaddress.IPv4Address) -> int | None:
    """The port of a policy service that runs on this machine."""
    parts = urlsplit(url or "")
    if parts.hostname != str(address):
        return None
    return parts.port or (443 if parts.scheme == "https" else 80)


def _ports_but(port: int | None) -> str | None:
    if port is None:
        return None
    ranges = [(1, port - 1), (port + 1, LAST_PORT)]
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in ranges if first <= last)


def _rule(destination: str, protocol: str | None = None, port: str | None = None) -> Rule:
    rule = {"action": "reject", "state": "enabled", "destination": destination}
    if protocol:
        rule["protocol"] = protocol
    if port:
        rule["destination_port"] = port
    return rule
