"""LXD itself: installed where it does not answer, and its bridge, network card and proxies."""

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any

from charmlibs import snap

from engine import profiles
from engine.api import wait_until
from engine.client import LxdClient
from engine.profiles import BRIDGE
from errors import HostError, LxdError
from host import systemd
from naming import BRIDGE_KEY
from proxies import ProxyConfig
from system import run

OLDEST = (5, 0)
BRIDGE_CONFIG = {"ipv6.address": "none", "ipv4.nat": "true"}
# Only known network cards get an address, and each a single one: otherwise one runner could take all addresses of the
# bridge, by invented hardware addresses or by invented client ids. https://thekelleys.org.uk/dnsmasq/docs/dnsmasq-man.html
DNSMASQ = ["dhcp-ignore=tag:!known", "dhcp-ignore-clid"]
# LXD's own choice (`auto`) pings candidates: it takes minutes where pings are dropped and fails where all are answered.
SUBNETS = [ipaddress.IPv4Network(f"10.{second}.77.0/24") for second in range(217, 227)]


def ensure(lxd: LxdClient, proxies: ProxyConfig) -> None:
    """Make sure that LXD answers and that instances get a filtered network from it."""
    _ensure_answer(lxd)
    _ensure_proxies(lxd, proxies)
    _ensure_bridge(lxd)
    profiles.ensure_network_card(lxd)


def _ensure_answer(lxd: LxdClient) -> None:
    try:
        version = lxd.server_version()
    except LxdError:
        _install()
        wait_until(lambda: _answers(lxd), 120, "LXD's answer after its installation")
        version = lxd.server_version()
    if version < OLDEST:
        raise HostError(f"LXD {'.'.join(map(str, version))} is too old: 5.0 or newer is needed")


def is_intact(lxd: LxdClient, proxies: ProxyConfig, bridge: Mapping[str, Any] | None) -> bool:
    """Whether LXD's proxies, the bridge (as LXD describes it, None where it is gone) and the default profile are right.

    Juju fires no event when the model's proxies change.
    """
    if bridge is None or not bridge["managed"] or not _is_configured(bridge) or not _has_proxies(lxd, proxies):
        return False
    return profiles.has_network_card(lxd)


def _is_configured(bridge: Mapping[str, Any]) -> bool:
    return all(bridge["config"].get(key) == value for key, value in _bridge_config(bridge["config"]).items())


def _bridge_config(config: Mapping[str, str]) -> dict[str, str]:
    """What a bridge of this configuration must have; the operator's own lines for its DHCP server stay."""
    lines = config.get("raw.dnsmasq", "").splitlines()
    return {**BRIDGE_CONFIG, "raw.dnsmasq": "\n".join([*lines, *(line for line in DNSMASQ if line not in lines)])}


def remove(lxd: LxdClient) -> list[str]:
    """Remove the proxies, and the bridge if this charm made it and nothing uses it; returns what was removed."""
    _ensure_proxies(lxd, ProxyConfig())
    bridge = lxd.find("networks", BRIDGE)
    if bridge is None:
        return []
    if BRIDGE_KEY not in bridge["config"]:
        lines = [line for line in bridge["config"].get("raw.dnsmasq", "").splitlines() if line not in DNSMASQ]
        lxd.change("PATCH", "networks", BRIDGE, json={"config": {"raw.dnsmasq": "\n".join(lines)}})
        return []
    profiles.remove_network_card(lxd)
    if lxd.get("networks", BRIDGE)["used_by"]:
        return []
    lxd.change("DELETE", "networks", BRIDGE)
    return [f"bridge {BRIDGE}"]


def restart(lxd: LxdClient) -> None:
    """Restart the daemon. Instances keep running."""
    # LXD has one of these names, as a package of the distribution or as a snap.
    systemd.restart_running("lxd.service", "snap.lxd.daemon.service", timeout=120)
    wait_until(lambda: _answers(lxd), 60, "LXD's answer after its restart")


def _answers(lxd: LxdClient) -> bool:
    try:
        lxd.server_version()
    except LxdError:
        return False
    return True


def _install() -> None:
    try:
        snap.ensure_installed("lxd", channel="latest/stable")
    except (snap.Error, OSError) as error:
        raise HostError(f"LXD does not answer and its snap cannot be installed: {error}") from error


def _ensure_proxies(lxd: LxdClient, proxies: ProxyConfig) -> None:
    if not _has_proxies(lxd, proxies):
        lxd.change("PATCH", json={"config": _proxy_config(proxies)})


def _has_proxies(lxd: LxdClient, proxies: ProxyConfig) -> bool:
    config = lxd.get()["config"]
    return all(str(config.get(key, "")) == value for key, value in _proxy_config(proxies).items())


def _proxy_config(proxies: ProxyConfig) -> dict[str, str]:
    return {
        "core.proxy_http": proxies.http or "",
        "core.proxy_https": proxies.https or "",
        "core.proxy_ignore_hosts": (proxies.no_proxy or "") if proxies else "",
    }


def _ensure_bridge(lxd: LxdClient) -> None:
    network = lxd.find("networks", BRIDGE)
    if network is not None:
        if not network["managed"]:
            raise HostError(f"{BRIDGE} exists and is not LXD's: remove it or rename it")
        if not _is_configured(network):
            lxd.change("PATCH", "networks", BRIDGE, json={"config": _bridge_config(network["config"])})
        return
    subnet = free_subnet(_used_networks(), SUBNETS)
    config = {**_bridge_config({}), BRIDGE_KEY: "true", "ipv4.address": f"{subnet[1]}/{subnet.prefixlen}"}
    lxd.change("POST", "networks", json={"name": BRIDGE, "type": "bridge", "config": config})


def free_subnet(
    used: Iterable[ipaddress.IPv4Network], candidates: Iterable[ipaddress.IPv4Network]
) -> ipaddress.IPv4Network:
    """The first candidate that overlaps no network in use."""
    taken = list(used)
    for candidate in candidates:
        if not any(candidate.overlaps(network) for network in taken):
            return candidate
    raise HostError(f"no free subnet for {BRIDGE}: create the bridge by hand")


def _used_networks() -> list[ipaddress.IPv4Network]:
    routes: list[dict[str, Any]] = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]).stdout)
    used = []
    for route in routes:
        destination = route.get("dst", "default")
        if destination != "default":
            used.append(ipaddress.IPv4Network(destination, strict=False))
    return used
