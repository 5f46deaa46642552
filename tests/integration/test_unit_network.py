"""What a hostile job sends from inside a runner, with real packets: to the machine, to a neighbour, to DHCP."""

from tests.support.deployment import Deployment, wait_for
from tests.support.network import heard_by_a_neighbour, heard_by_the_machine, leases_taken


def test_no_packet_of_a_runner_reaches_the_machine(deployment: Deployment) -> None:
    """Neither unicast, broadcast nor multicast, by no protocol; nor to loopback where the kernel routes it."""
    [runner] = deployment.keep(1)

    assert heard_by_the_machine(deployment, runner) == []


def test_no_packet_reaches_a_neighbour_by_the_gateway(deployment: Deployment) -> None:
    """Runners that know each other's addresses and set routes by the machine stay isolated, by any protocol."""
    one, other = deployment.keep(2)

    assert heard_by_a_neighbour(deployment, one, other) == []


def test_one_runner_cannot_take_all_addresses(deployment: Deployment) -> None:
    """DHCP gives a runner its own address and, once it has declined that, one other; a new runner gets an address."""
    [runner] = deployment.keep(1)

    assert leases_taken(deployment, runner) <= 2
    assert len(deployment.keep(2)) == 2


def test_the_network_stays_closed(deployment: Deployment) -> None:
    """A reconcile closes an address that the machine got, and writes rules again that another program removed."""
    [runner] = deployment.keep(1)
    gateway, new = deployment.lxd("networks/lxdbr0")["config"]["ipv4.address"][:-3], "192.0.2.77"
    serve = "mkdir -p /var/empty; systemd-run -q --unit=web python3 -m http.server --directory /var/empty 8099"
    deployment.machine.exec("sh", "-c", f"{serve} && ip address add {new}/32 dev eth0")

    def is_open(address: str) -> bool:
        return "open" in deployment.inside(
            runner, f"curl -s -o /dev/null -m 3 http://{address}:8099 && echo open || true"
        )

    wait_for(lambda: is_open(new), "a server at a new address of the machine")
    deployment.reconcile()
    assert not is_open(new)

    cards = deployment.machine.exec("nft", "list", "table", "bridge", "lxd")
    deployment.machine.exec("sh", "-c", f"ip address delete {new}/32 dev eth0; nft flush ruleset")
    assert is_open(gateway)
    deployment.reconcile()
    assert not is_open(gateway)
    assert deployment.machine.exec("nft", "list", "table", "bridge", "lxd").split() == cards.split()

    deployment.machine.exec("systemctl", "stop", "web")
    assert deployment.wait_online(1) == [runner]
    losses = deployment.unit.debug_log().count("Missing parts of the set-up")
    deployment.reconcile()
    assert deployment.unit.debug_log().count("Missing parts of the set-up") == losses >= 2
