"""Real packets of a hostile job, from inside a runner: to the machine, to a neighbour, to DHCP."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.deployment import Deployment, wait_for

ATTACKER = (Path(__file__).parent / "attacker.py").read_text()
PLACE = "/root/attacker.py"
PORT = 9999
# IPIP, GRE, SCTP and UDP-Lite, beside UDP.
PROTOCOLS = (4, 47, 132, 136)
LEASES = "/var/lib/lxd/networks/lxdbr0/dnsmasq.leases"


def armed(deployment: Deployment, *runners: str) -> None:
    """Put the attacker's program on the machine and into runners."""
    deployment.machine.push(PLACE, ATTACKER)
    for runner in runners:
        deployment.machine.exec("lxc", "file", "push", "--quiet", PLACE, f"{runner}{PLACE}")


def attack(deployment: Deployment, runner: str, *words: object) -> str:
    return deployment.inside(runner, f"python3 {PLACE} {' '.join(map(str, words))}")


def address_of(deployment: Deployment, runner: str) -> str:
    found = deployment.lxd(f"instances/{runner}/state")["network"]["eth0"]["addresses"]
    return str(next(item["address"] for item in found if item["family"] == "inet"))


@contextmanager
def heard(deployment: Deployment, *prefix: str) -> Iterator[list[str]]:
    """What reaches the machine, or the runner that ``prefix`` leads to; complete once the block has ended."""
    run = ("systemd-run", "-q", "--unit=listener", "python3", PLACE, "listen", "/root/heard", str(PORT))
    deployment.machine.exec(*prefix, *run, *map(str, PROTOCOLS))

    def lines() -> list[str]:
        return deployment.machine.exec(*prefix, "sh", "-c", "cat /root/heard 2>/dev/null || true").splitlines()

    found: list[str] = []
    wait_for(lambda: "listening" in lines(), "the listener")
    try:
        yield found
        # Packets arrive in order: once one that is allowed is there, all before it are.
        deployment.machine.exec(*prefix, "python3", PLACE, str(PORT), "127.0.0.1/17", "127.0.0.1/132")
        wait_for(lambda: {"127.0.0.1/17", "127.0.0.1/132"} <= set(lines()), "the packets of the listener's own side")
        found += sorted({line for line in lines() if not line.startswith(("127.0.0.1", "listening"))})
    finally:
        deployment.machine.exec(*prefix, "systemctl", "stop", "listener")
        deployment.machine.exec(*prefix, "rm", "-f", "/root/heard")


def heard_by_the_machine(deployment: Deployment, runner: str) -> list[str]:
    """What of a runner's packets reaches the machine: by address, broadcast, multicast, and by loopback."""
    armed(deployment, runner)
    gateway, machine = deployment.lxd("networks/lxdbr0")["config"]["ipv4.address"][:-3], deployment.machine.address()
    broadcasts = [address.rpartition(".")[0] + ".255" for address in (gateway, machine)]
    groups = ["255.255.255.255", "224.0.0.1", "239.255.255.250"]
    targets = [f"{address}/{protocol}" for address in (gateway, machine, *broadcasts) for protocol in (17, *PROTOCOLS)]
    targets += [f"{address}/17" for address in groups]
    deployment.machine.exec("sysctl", "-q", "net.ipv4.conf.lxdbr0.route_localnet=1")

    with heard(deployment) as found:
        attack(deployment, runner, PORT, *targets)
        attack(deployment, runner, "by-gateway", "127.1.2.3", PORT, gateway, address_of(deployment, runner))

    deployment.machine.exec("sysctl", "-q", "net.ipv4.conf.lxdbr0.route_localnet=0")
    return found


def heard_by_a_neighbour(deployment: Deployment, one: str, other: str) -> list[str]:
    """What of a runner's packets reaches another one by the gateway."""
    armed(deployment, one, other)
    gateway, target = deployment.lxd("networks/lxdbr0")["config"]["ipv4.address"][:-3], address_of(deployment, other)
    deployment.inside(one, f"ip route replace {target}/32 via {gateway}")

    with heard(deployment, "lxc", "exec", other, "--") as found:
        attack(deployment, one, PORT, *(f"{target}/{protocol}" for protocol in (17, *PROTOCOLS)))

    return found


def leases_taken(deployment: Deployment, runner: str) -> int:
    """How many addresses a runner gets that asks for 40."""
    armed(deployment, runner)
    taken = int(attack(deployment, runner, "starve", 20))
    assert len(deployment.machine.exec("cat", LEASES).splitlines()) <= len(deployment.instances()) + 3
    return taken
