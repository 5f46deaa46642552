"""What a runner's own root can reach from inside of its virtual machine."""

import json

from sandbox.vm import host, template
from tests.vm.conftest import VmDeployment, wait_for

REACH = """
try() { curl -s -o /dev/null -m 3 --noproxy '*' "http://$1" && echo "$2 open" || echo "$2 closed"; }
try GATEWAY:8099 gateway
try MACHINE:8099 machine
pinged() { name=$1; shift; ping -c 1 -W 2 "$@" > /dev/null 2>&1 && echo "$name open" || echo "$name closed"; }
pinged ping MACHINE
pinged itself OWN
pinged neighbour OTHER
pinged ipv6 -6 LINKLOCAL%$(basename /sys/class/net/e*)
ip address add OTHER/24 dev $(basename /sys/class/net/e*)
pinged spoofed -I OTHER GITHUB
pinged github GITHUB
ip address delete OTHER/24 dev $(basename /sys/class/net/e*)
ip -6 address show scope global | grep -q . && echo "ipv6 address" || echo "no ipv6 address"
ls -d /dev/lxd > /dev/null 2>&1 && echo "devlxd open" || echo "devlxd closed"
"""


def test_the_network_of_a_virtual_machine(unit: VmDeployment) -> None:
    """A guest's root reaches GitHub, but neither the machine, its neighbour nor IPv6, also not as its neighbour."""
    one, other = unit.keep(2)
    gateway = unit.lxd("networks/lxdbr0")["config"]["ipv4.address"].split("/")[0]
    # LXD takes IPv6 from its bridge; another program of the machine may bring it back.
    unit.machine.exec("sysctl", "-q", "net.ipv6.conf.lxdbr0.disable_ipv6=0")
    show = ("ip", "-json", "-6", "address", "show", "dev", "lxdbr0")
    found = wait_for(lambda: json.loads(unit.machine.exec(*show))[0]["addr_info"], "the bridge's link-local address")
    unit.machine.exec("systemd-run", "-q", "--unit=web", "python3", "-m", "http.server", "--directory", "/mnt", "8099")
    here = ("curl", "-s", "-o", "/dev/null", f"http://{gateway}:8099")
    wait_for(lambda: unit.machine.call(*here).returncode == 0, "the machine's web server")
    words = {
        "GATEWAY": gateway,
        "MACHINE": unit.machine.address(),
        "OWN": unit.address(one),
        "OTHER": unit.address(other),
        "LINKLOCAL": found[0]["local"],
        "GITHUB": unit.hub.url.split("/")[2].split(":")[0],
    }
    script = REACH
    for word, value in words.items():
        script = script.replace(word, value)
    try:
        reached = unit.inside(one, script).splitlines()
    finally:
        unit.machine.exec("systemctl", "stop", "web")
        unit.machine.exec("sysctl", "-q", "net.ipv6.conf.lxdbr0.disable_ipv6=1")

    closed = ("gateway", "machine", "ping", "neighbour", "ipv6", "spoofed", "devlxd")
    expected = {*(f"{name} closed" for name in closed), "itself open", "github open", "no ipv6 address"}
    assert set(reached) == expected


def test_the_stand_in_for_modprobe_has_its_lxd(unit: VmDeployment) -> None:
    """The machine has the stand-in for modprobe if and only if its LXD is the one that never opens AF_VSOCK."""
    patched = unit.machine.call("grep", "-q", "/run/lxd-vsock", "/usr/bin/lxd").returncode == 0
    stand_in = unit.machine.call("test", "-e", template.MODPROBE).returncode == 0

    assert stand_in == patched
    assert patched != host.has_hardware()
