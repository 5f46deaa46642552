"""What the set-up script does in a runner: network, disk, programs, aproxy."""

import os
import shutil
import subprocess
from dataclasses import replace
from typing import Any

import pytest

import provision
from models import Arch, RunnerConfig, Snap
from option_values import parse_addresses, parse_ports
from proxies import ProxyConfig, Redirect
from tests.support.fakes import TEMPLATES
from tests.support.scripts import HOSTILE, MIRROR, PLAIN, PROXIES, Shell, content, part, rendered


@pytest.mark.parametrize(
    ("config", "restarted"),
    [
        (PLAIN, False),
        (replace(PLAIN, dockerhub_mirror=MIRROR), True),
        (replace(PLAIN, proxies=PROXIES), True),
        (replace(PLAIN, proxies=replace(PROXIES, use_aproxy=True)), False),
    ],
    ids=["nothing", "mirror", "proxies", "aproxy"],
)
def test_docker_is_restarted_where_it_changed(config: RunnerConfig, restarted: bool) -> None:
    """Docker is reloaded and restarted with a mirror or proxies, and left alone otherwise."""
    setup = content("/root/github-runner/setup.sh", config) or ""

    assert ("systemctl daemon-reload" in setup) is restarted
    assert ("systemctl restart docker.service" in setup) is restarted


def test_machine_looks_like_githubs() -> None:
    """Everybody may write to `/usr/local/bin` and `/usr/bin/python` is python3, as on GitHub's own machines."""
    setup = (content("/root/github-runner/setup.sh") or "").splitlines()

    assert "chmod 0777 /usr/local/bin" in setup
    assert "[ -e /usr/bin/python ] || ln -s python3 /usr/bin/python" in setup


@pytest.mark.parametrize(("arch", "revision"), [(Arch.X64, 8), (Arch.ARM64, 9)])
def test_aproxy_snap(arch: Arch, revision: int) -> None:
    """aproxy comes from edge in the revision of the architecture, and only where it is used."""
    used = replace(PLAIN, proxies=replace(PROXIES, use_aproxy=True))

    assert provision.snaps(used, arch) == (Snap("aproxy", "edge", revision),)
    assert (
        f"snap install aproxy --channel=edge --revision={revision} "
        in rendered(used, arch)["/root/github-runner/setup.sh"].content
    )
    for config in (PLAIN, replace(PLAIN, proxies=PROXIES), replace(PLAIN, proxies=ProxyConfig(use_aproxy=True))):
        assert provision.snaps(config, arch) == ()
        assert "snap install" not in rendered(config, arch)["/root/github-runner/setup.sh"].content


@pytest.mark.parametrize(("arch", "suffix"), [(Arch.X64, "amd64"), (Arch.ARM64, "arm64")])
def test_yq(arch: Arch, suffix: str) -> None:
    """yq is of the architecture, from a versioned URL, and verified before it is installed with mode 755."""
    [executable] = provision.executables(arch)
    setup = rendered(arch=arch)["/root/github-runner/setup.sh"].content

    assert executable.cmd == "yq"
    assert "/v4." in executable.url
    assert executable.url.endswith(f"_{suffix}")
    assert executable.sha256 is not None
    assert len(bytes.fromhex(executable.sha256)) == 32
    assert setup.index(executable.url) < setup.index(executable.sha256) < setup.index("install -m 0755")


def test_checksums_differ_by_architecture() -> None:
    """No architecture is verified with another's checksum."""
    assert provision.executables(Arch.X64)[0].sha256 != provision.executables(Arch.ARM64)[0].sha256


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PLAIN, "github.com"),
        (replace(PLAIN, github_url="https://octo.ghe.com"), "octo.ghe.com"),
        (replace(PLAIN, github_url="http://10.0.0.1:8080"), "10.0.0.1"),
        (replace(PLAIN, proxies=PROXIES), "proxy"),
        (replace(PLAIN, proxies=ProxyConfig(http="http://u:p@other:3128")), "other"),
        pytest.param(
            replace(PLAIN, proxies=replace(PROXIES, use_aproxy=True)),
            "github.com",
        ),
    ],
    ids=["github.com", "ghe.com", "address", "proxies", "HTTP proxy only", "aproxy"],
)
def test_network_host(config: RunnerConfig, expected: str) -> None:
    """The host that is waited for is GitHub's, or the proxy's where the proxy resolves GitHub's."""
    assert provision.network_host(config) == expected


def wait_for_network(shell: Shell, host: str, routes: str | None) -> "subprocess.CompletedProcess[str]":
    """Run the part of the set-up that waits for a host, with this content of the kernel's table of IPv4 routes."""
    if routes is not None:
        (shell.folder / "route").write_text(routes)
    template = provision.environment(TEMPLATES).get_template("setup.sh.j2")
    setup = template.render(
        network_host=host,
        network_timeout=5,
        routes=shell.folder / "route",
        run_folder="/x",
        binary_archive="/x",
        image_binary="/x",
        folder="/x",
        snaps=[],
        executables=[],
        docker_changed=False,
        aproxy_address=None,
        ca_bundle=None,
        container=True,
        issue_metrics=False,
        registers=True,
        user=1000,
        home="/x",
        register_script="/x",
        register_timeout=1,
        not_registered=1,
    )

    return shell.run(part(setup, "set -eu", "}") + part(setup, "deadline=", "done"))


@pytest.mark.parametrize("value", [*HOSTILE, "a\ntouch canary"])
def test_setup_waits_for_the_host_as_it_is(shell: Shell, value: str) -> None:
    """The host to wait for is one argument, and runs nothing."""
    shell.stub("getent", "echo 192.0.2.1")
    shell.stub("ip")

    done = wait_for_network(shell, value, "head\na route\n")

    assert (done.returncode, done.stderr) == (0, "")
    assert shell.arguments("getent") == ["ahosts", value]
    assert not (shell.folder / "canary").exists()


@pytest.mark.parametrize(
    ("routes", "pauses"), [("head\na route\n", 1), ("head\n", 41), (None, 41)], ids=["IPv4", "IPv6", "no IPv4"]
)
def test_without_a_route_of_ipv4_the_host_is_rarely_looked_up(shell: Shell, routes: str | None, pauses: int) -> None:
    """Programs take processor time from a boot. Where there never is such a route the host is found nevertheless."""
    shell.stub("getent", '[ -e "$0.asked" ] && echo 2001:db8::1; touch "$0.asked"')
    shell.stub("ip")

    done = wait_for_network(shell, "github.com", routes)

    assert (done.returncode, done.stderr) == (0, "")
    assert shell.arguments("getent") == ["ahosts", "github.com"] * 2
    assert shell.arguments("sleep") == ["0.05"] * pauses


@pytest.mark.parametrize(("mounted", "code"), [(True, 0), (False, provision.WITHOUT_METRICS)])
def test_set_up_tells_whether_the_metrics_storage_is_mounted(shell: Shell, mounted: bool, code: int) -> None:
    """An instance that is ready but lacks its metrics storage ends its set-up with an exit code of its own."""
    shell.stub("mountpoint", "exit 0" if mounted else "exit 32")
    setup = content("/root/github-runner/setup.sh", replace(PLAIN, issue_metrics=True)) or ""

    assert shell.run(part(setup, "mountpoint", "mountpoint")).returncode == code
    assert "mountpoint" not in (content("/root/github-runner/setup.sh", replace(PLAIN, issue_metrics=False)) or "")


@pytest.mark.parametrize(("growpart", "resize", "code"), [(0, 0, 0), (1, 0, 0), (2, 0, 1), (0, 1, 1)], ids=str)
def test_root_filesystem_grows_to_the_disk(shell: Shell, growpart: int, resize: int, code: int) -> None:
    """Partition and filesystem of a virtual machine are grown; exit code 1 of growpart means that they are large."""
    block = shell.folder / "block"
    (block / "sda/sda2").mkdir(parents=True)
    (block / "sda/sda2/partition").write_text("2\n")
    (block / "sda2").symlink_to("sda/sda2")
    shell.stub("findmnt", "echo /dev/sda2")
    shell.stub("growpart", f"exit {growpart}")
    shell.stub("resize2fs", f"exit {resize}")
    setup = content("/root/github-runner/setup.sh", replace(PLAIN, container=False)) or ""
    script = part(setup, "fail()", "}") + part(setup, "grow_root()", "grow_root ||")

    done = shell.run(script.replace("/sys/class/block", str(block)))

    assert done.returncode == code
    assert shell.arguments("growpart") == ["/dev/sda", "2"]
    assert shell.arguments("resize2fs") == (["/dev/sda2"] if growpart < 2 else [])
    assert ("cannot be grown" in done.stderr) is bool(code)
    assert "grow_root" not in (content("/root/github-runner/setup.sh", replace(PLAIN, container=True)) or "")


ACTIVE = "aproxy  enabled  active  -"
DEFAULT = Redirect()


def run_aproxy(shell: Shell, proxy: str, services: str = ACTIVE, redirect: Redirect = DEFAULT) -> Any:
    shell.stub("snap", f'[ "$1" = services ] && echo "{services}"; true')
    shell.stub("ip", "echo '192.0.2.1 via 10.1.1.1 dev eth0 src 10.1.1.7 uid 0'")
    shell.stub("nft", f'cat > "{shell.folder}/rules"')
    config = replace(PLAIN, proxies=ProxyConfig(http=proxy, use_aproxy=True, redirect=redirect))
    setup = content("/root/github-runner/setup.sh", config) or ""
    return shell.run(part(setup, "set -eu", "}") + part(setup, "snap set aproxy", "END"))


def test_aproxy_is_set(shell: Shell) -> None:
    """aproxy gets the model's proxy and its port, and its service is checked."""
    done = run_aproxy(shell, "http://proxy:3128/")

    assert (done.returncode, done.stderr) == (0, "")
    assert shell.arguments("snap") == ["set", "aproxy", "proxy=proxy:3128", "listen=:54969", "services", "aproxy"]


@pytest.mark.parametrize("value", HOSTILE)
def test_aproxy_gets_its_proxy_as_it_is(shell: Shell, value: str) -> None:
    """The proxy's address runs nothing."""
    run_aproxy(shell, f"http://{value}")

    assert f"proxy={value}:80" in shell.arguments("snap")
    assert not (shell.folder / "canary").exists()


def test_aproxy_that_does_not_run_fails(shell: Shell) -> None:
    """An aproxy whose service is not active fails the set-up, and the error names aproxy."""
    done = run_aproxy(shell, "http://proxy:3128", "aproxy  enabled  inactive  -")

    assert done.returncode != 0
    assert "aproxy does not run" in done.stderr
    assert not (shell.folder / "rules").exists()


def test_aproxy_rules(shell: Shell) -> None:
    """Web traffic to addresses outside the private networks goes to the instance's own address, port 54969."""
    run_aproxy(shell, "http://proxy:3128")
    rules = " ".join((shell.folder / "rules").read_text().split())

    assert "excluded = { 10.0.0.0/8, 127.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 }" in rules
    assert "ports = { 80, 443 }" in rules
    assert "table ip aproxy" in rules
    assert "type nat hook prerouting priority dstnat;" in rules
    assert "type nat hook output priority -100;" in rules
    rule = "ip daddr != $excluded tcp dport $ports counter dnat to 10.1.1.7:54969"
    assert rules.count(rule) == 2


def test_aproxy_rules_have_the_options(shell: Shell) -> None:
    """What the options exclude and redirect is in the rules, a range with its ends."""
    redirect = Redirect(parse_ports("8000-8080,443"), parse_addresses("192.0.2.0/24"))
    run_aproxy(shell, "http://proxy:3128", redirect=redirect)
    rules = (shell.folder / "rules").read_text()

    assert "excluded = { 127.0.0.0/8, 192.0.2.0/24 }\n" in rules
    assert "ports = { 443, 8000-8080 }\n" in rules


@pytest.mark.parametrize(
    ("excluded", "ports"),
    [
        ("10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16", "80, 443"),
        ("", "1-65535"),
        ("0.0.0.0/0", "65535"),
        ("10.0.0.0/8,10.1.0.0/16,10.0.0.5-11.0.0.9,128.0.0.0/8", "80,80-90,85-95,96"),
        ("0.0.0.1-255.255.255.254", "1-79,81-65535"),
    ],
    ids=["defaults", "all ports", "all addresses", "overlaps", "ends"],
)
def test_aproxy_rules_are_nftables(shell: Shell, excluded: str, ports: str) -> None:
    """nft accepts the rules, also those of options whose items overlap or touch."""
    run_aproxy(shell, "http://proxy:3128", redirect=Redirect(parse_ports(ports), parse_addresses(excluded)))
    nft = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin")
    if nft is None or subprocess.run([nft, "list", "tables"], capture_output=True, check=False).returncode:
        pytest.skip("nft cannot be used here")

    done = subprocess.run([nft, "--check", "-f", str(shell.folder / "rules")], capture_output=True, check=False)

    assert done.stderr == b""
