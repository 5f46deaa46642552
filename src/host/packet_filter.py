"""The rules that LXD has written into the kernel: whether they are there, and having LXD write them again.

LXD writes them when it starts a network or an instance. It does not notice that another program removed them, for
example `nft flush ruleset`, which a reload of nftables.service runs.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from engine import profiles
from engine.client import LxdClient
from engine.profiles import BRIDGE, NETWORK_CARD
from errors import CommandError
from system import run

logger = logging.getLogger(__name__)

# Changing this option of the bridge makes LXD write all rules of the bridge; the value is LXD's default.
WRITTEN_WITH, LXD_DEFAULT = "ipv4.dhcp.expiry", "1h"


def is_applied(lxd: LxdClient, rules: Iterable[Mapping[str, str]]) -> bool:
    """Whether the kernel has the rules of an ACL, and the filters of every running instance's network card.

    What is looked for is the same in all versions of LXD: addresses and interfaces, not the names of chains.
    """
    rules = list(rules)
    if lxd.get()["environment"].get("firewall") == "xtables":
        # Where `iptables` writes for nftables, LXD may still have written for the kernel's older tables.
        return any(
            _has_rules(_listed(program, "--wait", "--list-rules"), rules) for program in ("iptables", "iptables-legacy")
        )
    table = _listed("nft", "list", "table", "inet", "lxd")
    return _has_rules(table, rules) and _are_cards_filtered(lxd)


def restore(lxd: LxdClient) -> None:
    """Have LXD write the rules of the bridge and of the network cards again. A restart of LXD leaves out the cards."""
    logger.warning("The rules of LXD are not in the kernel any more, and are written again")
    before = lxd.get("networks", BRIDGE)["config"].get(WRITTEN_WITH, "")
    for value in ("" if before == LXD_DEFAULT else LXD_DEFAULT, before):
        lxd.change("PATCH", "networks", BRIDGE, json={"config": {WRITTEN_WITH: value}})
    profiles.touch_network_card(lxd)


def _are_cards_filtered(lxd: LxdClient) -> bool:
    cards = _filtered_cards(lxd)
    table = _listed("nft", "list", "table", "bridge", "lxd") if cards else None
    if table is None:
        return True
    dropping = [line for line in table.splitlines() if line.endswith("drop")]
    unfiltered = {card for card in cards if not any(f'"{card}"' in line for line in dropping)}
    # The filters of an instance that ended before the listing have gone with it.
    return not unfiltered or not unfiltered & _filtered_cards(lxd)


def _filtered_cards(lxd: LxdClient) -> set[str]:
    return {_filtered_card(instance) for instance in lxd.get("instances", recursion=1)} - {""}


def _filtered_card(instance: Mapping[str, Any]) -> str:
    """The host's interface of a running instance's network card, if that is the profile's; otherwise nothing."""
    is_profiles = "default" in instance["profiles"] and instance["expanded_devices"].get("eth0") == NETWORK_CARD
    if not is_profiles or "eth0" in instance["devices"] or instance["status"] != "Running":
        return ""
    return str(instance["config"].get("volatile.eth0.host_name", ""))


def _has_rules(text: str | None, rules: Iterable[Mapping[str, str]]) -> bool:
    """Whether the bridge's traffic to the destination of every rule is rejected, by a listing.

    True if there is no listing: then it is not known.
    """
    if text is None:
        return True
    rejecting = (line for line in text.splitlines() if BRIDGE in line and "reject" in line.lower())
    words = {word.removesuffix("/32") for line in rejecting for word in line.split()}
    # A rule for all of IPv4 is listed without a destination.
    wanted = {rule["destination"] for rule in rules} - {"0.0.0.0/0"}
    return all(destination in words for destination in wanted if ":" not in destination)


def _listed(*command: str) -> str | None:
    """What a program lists, nothing where there is no such table; None where the program cannot be run."""
    try:
        done = run(command, check=False)
    except CommandError as error:
        logger.warning("The rules of LXD in the kernel cannot be read: %s", error)
        return None
    return done.stdout if done.returncode == 0 else ""
