"""An LXD for the sandbox on Debian 12 or Ubuntu: the one that runs, else one installed and started here.

Everything made here has a name that begins with ``ghr-`` and is removed by ``remove_all``, and nothing else is.
"""

import json
import os
import platform
import signal
import subprocess
import tempfile
from pathlib import Path

from .shell import SandboxError, apt_install, run, say, step, succeeds, wait_until

BRIDGE = "ghr-sandbox0"
POOL = "ghr-sandbox"
FALLBACK_ADDRESS = "10.213.77.1/24"
BASE_IMAGE = "ghr-sandbox-base"
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
BASE_PACKAGES = (
    "systemd,systemd-sysv,dbus,udev,libpam-systemd,sudo,jq,curl,wget,iproute2,procps,ca-certificates,nftables,python3,iputils-ping"
)
# A daemon on a host with the old split control groups sees only the unified hierarchy: nested containers need it.
UNIFIED = "mount --make-rprivate / && umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec lxd --group root"


def state_dir() -> Path:
    """Where the sandbox keeps its process ids and logs."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(base) / "github-runner-sandbox"
    path.mkdir(parents=True, exist_ok=True)
    return path


def ensure() -> None:
    """Make sure that LXD answers and that the sandbox's bridge, storage pool and base image are there."""
    if os.geteuid() != 0:
        raise SandboxError("the sandbox drives LXD and loop devices: run it as root")
    _ensure_daemon()
    _ensure_bridge()
    _ensure_pool()
    _ensure_base_image()


def _ensure_daemon() -> None:
    if succeeds("lxc", "query", "/1.0"):
        return
    _install()
    if Path("/run/systemd/system").is_dir():
        run("lxd", "waitready", "--timeout=120")
        return
    with step("Starting LXD"):
        unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        command = ["lxd", "--group", "root"] if unified else ["unshare", "-m", "sh", "-c", UNIFIED]
        with (state_dir() / "lxd.log").open("ab") as log:
            daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        (state_dir() / "lxd.pid").write_text(str(daemon.pid))
        wait_until(lambda: succeeds("lxc", "query", "/1.0"), "LXD's answer", timeout=60)


def _install() -> None:
    helpers = {
        "dnsmasq": "dnsmasq-base",
        "mksquashfs": "squashfs-tools",
        "mkfs.btrfs": "btrfs-progs",
        "nft": "nftables",
        "ip": "iproute2",
    }
    if succeeds("lxd", "--version"):
        apt_install(helpers)
    elif succeeds("snap", "--version"):
        apt_install(helpers)
        with step("Installing the lxd snap"):
            run("snap", "install", "lxd", timeout=600)
    else:
        apt_install({"lxd": "lxd", "lxc": "lxd-client", **helpers})


def _exists(*path: str) -> bool:
    return succeeds("lxc", "query", "/1.0/" + "/".join(path))


def _ensure_bridge() -> None:
    if not _exists("networks", BRIDGE):
        with step(f"Creating the bridge {BRIDGE}"):
            create = ("lxc", "network", "create", BRIDGE, "ipv6.address=none", "ipv4.nat=true")
            # LXD looks for a free subnet by itself, and finds none where the host's network answers every ping.
            if not succeeds(*create):
                run(*create, f"ipv4.address={FALLBACK_ADDRESS}")


def _ensure_pool() -> None:
    if _exists("storage-pools", POOL):
        return
    with step(f"Creating the storage pool {POOL}"):
        if not succeeds("lxc", "storage", "create", POOL, "btrfs", "size=20GiB"):
            run("lxc", "storage", "create", POOL, "dir")


def bridge_address() -> str:
    """The host's address on the sandbox's bridge: where GitHub is for the machine and its runners."""
    network = json.loads(run("lxc", "query", f"/1.0/networks/{BRIDGE}"))
    return str(network["config"]["ipv4.address"]).split("/")[0]


def _ensure_base_image() -> None:
    if _exists("images", "aliases", BASE_IMAGE):
        return
    apt_install({"debootstrap": "debootstrap", "mksquashfs": "squashfs-tools"})
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    if not Path(keyring).exists():
        run("apt-get", "install", "-qq", "-y", "debian-archive-keyring")
    with tempfile.TemporaryDirectory(prefix="ghr-sandbox-") as folder:
        root = Path(folder, "rootfs")
        with step(f"Building a base image from Debian's packages ({SUITE})"):
            include = f"--include={BASE_PACKAGES}"
            run(
                *("debootstrap", "--variant=minbase", f"--keyring={keyring}", include, SUITE, str(root), MIRROR),
                timeout=600,
            )
            _customise(root)
        with step("Packing and importing the base image"):
            _import_image(Path(folder), root)


def _customise(root: Path) -> None:
    """What a cloud image has beyond the packages: user ubuntu, DHCP on eth0, no left-over identity."""
    network = root / "etc/systemd/network/10-eth0.network"
    network.write_text("[Match]\nName=eth0\n\n[Network]\nDHCP=ipv4\n\n[DHCPv4]\nUseHostname=no\n")
    run("chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1000", "ubuntu")
    (root / "etc/sudoers.d/90-ubuntu").write_text("ubuntu ALL=(ALL) NOPASSWD:ALL\n")
    run("systemctl", "--root", str(root), "enable", "systemd-networkd.service", check=False)
    wanted = root / "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
    if not wanted.is_symlink():
        run("chroot", str(root), "systemctl", "enable", "systemd-networkd.service")
    # Name resolution is the bridge's dnsmasq, whose address DHCP tells: this hook writes what it said.
    resolv = root / "etc/systemd/system/resolv-from-dhcp.service"
    resolv.write_text(
        "[Unit]\nAfter=systemd-networkd.service\n[Service]\nType=oneshot\n"
        "ExecStart=/bin/sh -c 'until g=$(ip -4 route show default | cut -d\" \" -f3) && [ -n \"$g\" ]; "
        "do sleep 0.1; done; rm -f /etc/resolv.conf; echo nameserver $g > /etc/resolv.conf'\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    run("chroot", str(root), "systemctl", "enable", "resolv-from-dhcp.service")
    for sources in Path("/etc/apt/apt.conf.d").glob("99*"):
        (root / "etc/apt/apt.conf.d" / sources.name).write_bytes(sources.read_bytes())
    (root / "etc/hostname").unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
    for archive in (root / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()


def _import_image(folder: Path, root: Path) -> None:
    machine = platform.machine()
    metadata = {
        "architecture": machine,
        "creation_date": 1,
        "properties": {"description": "github-runner sandbox base image", "os": "debian", "release": SUITE},
    }
    (folder / "metadata.yaml").write_text(json.dumps(metadata))
    run("tar", "-czf", "metadata.tar.gz", "metadata.yaml", cwd=str(folder))
    run(
        *("mksquashfs", str(root), str(folder / "rootfs.squashfs"), "-noappend", "-quiet", "-no-progress"),
        *("-comp", "zstd", "-Xcompression-level", "3"),
        timeout=300,
    )
    run("lxc", "image", "import", "metadata.tar.gz", "rootfs.squashfs", "--alias", BASE_IMAGE, cwd=str(folder))


def remove_all() -> None:
    """Remove the base image, the pool and the bridge, and stop LXD if it was started here."""
    if not succeeds("lxc", "query", "/1.0"):
        return
    for kind, name in (("image", BASE_IMAGE), ("storage", POOL), ("network", BRIDGE)):
        collection = {"image": "images/aliases", "storage": "storage-pools", "network": "networks"}[kind]
        if _exists(collection, name):
            run("lxc", kind, "delete", name)
            say(f"  ✓ removed {kind} {name}")
    pid_file = state_dir() / "lxd.pid"
    if pid_file.exists():
        run("lxd", "shutdown", "--timeout=60", check=False)
        try:
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
        except (ProcessLookupError, ValueError):
            pass
        pid_file.unlink()
        say("  ✓ stopped LXD")
