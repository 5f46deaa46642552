"""An LXD for the sandbox on Debian 12 or Ubuntu: the one that runs, else one installed and started here.

Everything made here has a name that begins with ``ghr-`` and is removed by ``remove_all``, and nothing else is.
"""

import fcntl
import hashlib
import inspect
import json
import os
import platform
import signal
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox.lab.debian import SUITE, bootstrap
from sandbox.lab.debian import ready as _chroot_ready
from sandbox.shell import SandboxError, apt_install, run, say, start_daemon, step, succeeds, wait_until

BRIDGE = "ghr-sandbox0"
POOL = "ghr-sandbox"
FALLBACK_ADDRESS = "10.213.77.1/24"
BASE_IMAGE = "ghr-sandbox-base"
MACHINE_IMAGE = "ghr-sandbox-machine"
TEMPLATE = "ghr-machine-template"
VM_TEMPLATE = "ghr-machine-template-vm"
RECIPE_KEY = "user.ghr-sandbox.recipe"
MACHINE_KEY = "user.ghr-sandbox.machine"
BASE_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "libpam-systemd", "sudo", "jq", "curl", "wget", "iproute2", "procps"),
    *("ca-certificates", "nftables", "python3", "iputils-ping", "yq"),
)
# What an Ubuntu server or Juju itself has put on a machine before a charm sees it, and LXD from the same registry.
MACHINE_PACKAGES = (
    *("lxd", "lxd-client", "dnsmasq-base", "btrfs-progs", "nftables", "logrotate", "iproute2", "kmod", "cron", "gnupg"),
    *("xz-utils", "squashfs-tools", "e2fsprogs", "fdisk", "python3"),
)
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_INSTANCES = 1024
LOOP_DEVICES = 64
LOOP_CTL_ADD = 0x4C80
LOOP_MAJOR = 7
# The names that the charm gives the images of its runners, and one to build them from: the sandbox's own image is all.
RUNNER_IMAGE_ALIASES = ("jammy", "noble", "resolute", "sandbox-base")
# A daemon on a host with the old split control groups sees only the unified hierarchy: nested containers need it.
UNIFIED = (
    "mount --make-rprivate / && umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup"
    " && exec lxd --group root"
)


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
    with alone():
        _ensure_daemon()
        _ensure_inotify()
        _ensure_bridge()
        _ensure_pool()
        _ensure_base_image()


@contextmanager
def alone() -> Iterator[None]:
    """Only one process makes things at a time; a second one waits and then finds them made."""
    with (state_dir() / "set-up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
        (state_dir() / "lxd.pid").write_text(str(start_daemon(command, state_dir() / "lxd.log")))
        wait_until(lambda: succeeds("lxc", "query", "/1.0"), "LXD's answer", timeout=60)


def _ensure_inotify() -> None:
    """Room for more than a dozen nested containers; the host's own value is kept for `down --all`."""
    value = int(INOTIFY.read_text())
    if value < INOTIFY_INSTANCES:
        (state_dir() / "inotify").write_text(str(value))
        INOTIFY.write_text(str(INOTIFY_INSTANCES))


def _restore_inotify() -> None:
    kept = state_dir() / "inotify"
    if kept.exists():
        INOTIFY.write_text(kept.read_text())
        kept.unlink()


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


def exists(*path: str) -> bool:
    return succeeds("lxc", "query", "/1.0/" + "/".join(path))


def _ensure_bridge() -> None:
    if not exists("networks", BRIDGE):
        with step(f"Creating the bridge {BRIDGE}"):
            create = ("lxc", "network", "create", BRIDGE, "ipv6.address=none", "ipv4.nat=true")
            # LXD looks for a free subnet by itself, and finds none where the host's network answers every ping.
            if not succeeds(*create):
                run(*create, f"ipv4.address={FALLBACK_ADDRESS}")


def _ensure_pool() -> None:
    if exists("storage-pools", POOL):
        return
    with step(f"Creating the storage pool {POOL}"):
        if not succeeds("lxc", "storage", "create", POOL, "btrfs", "size=20GiB"):
            run("lxc", "storage", "create", POOL, "dir")


def bridge_address() -> str:
    """The host's address on the sandbox's bridge: where GitHub is for the machine and its runners."""
    network = json.loads(run("lxc", "query", f"/1.0/networks/{BRIDGE}"))
    return str(network["config"]["ipv4.address"]).split("/")[0]


def recipe_of(*parts: object) -> str:
    """A short hash that changes when what goes into an image changes, the code that makes it included."""
    words = [inspect.getsource(part) if callable(part) else str(part) for part in parts]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


def _base_recipe() -> str:
    return recipe_of(SUITE, BASE_PACKAGES, customise)


def _template_recipe() -> str:
    return recipe_of(
        _base_recipe(), MACHINE_PACKAGES, RUNNER_IMAGE_ALIASES, _furnish, _fill_nested_lxd, _machine_config
    )


def _image_recipe(alias: str) -> str:
    """The recipe that an image was made by, empty if there is no such image."""
    if not exists("images", "aliases", alias):
        return ""
    target = json.loads(run("lxc", "query", f"/1.0/images/aliases/{alias}"))["target"]
    properties = json.loads(run("lxc", "query", f"/1.0/images/{target}"))["properties"]
    return str(properties.get("recipe", "unknown"))


def _ensure_base_image() -> None:
    recipe = _base_recipe()
    if _image_recipe(BASE_IMAGE) == recipe:
        return
    apt_install({"mksquashfs": "squashfs-tools"})
    with tempfile.TemporaryDirectory(prefix="ghr-sandbox-") as folder:
        root = Path(folder, "rootfs")
        with step(f"Building a base image from Debian's packages ({SUITE})"):
            bootstrap(root, BASE_PACKAGES)
            customise(root)
        with step("Packing and importing the base image"):
            _import_image(Path(folder), root, BASE_IMAGE, recipe)


def customise(root: Path) -> None:
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
        'ExecStart=/bin/sh -c \'until g=$(ip -4 route show default | cut -d" " -f3) && [ -n "$g" ]; '
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


def _import_image(folder: Path, root: Path, alias: str, recipe: str) -> None:
    """Pack a root file system and let LXD know it under an alias, in the place of an older one."""
    properties = {"description": f"github-runner sandbox {alias}", "os": "debian", "release": SUITE, "recipe": recipe}
    metadata = {"architecture": platform.machine(), "creation_date": 1, "properties": properties}
    (folder / "metadata.yaml").write_text(json.dumps(metadata))
    run("tar", "-czf", "metadata.tar.gz", "metadata.yaml", cwd=str(folder))
    run(
        *("mksquashfs", str(root), str(folder / "rootfs.squashfs"), "-noappend", "-quiet", "-no-progress"),
        *("-comp", "zstd", "-Xcompression-level", "3"),
        timeout=300,
    )
    if exists("images", "aliases", alias):
        run("lxc", "image", "delete", alias)
    run("lxc", "image", "import", "metadata.tar.gz", "rootfs.squashfs", "--alias", alias, cwd=str(folder))


def ensure_template() -> None:
    """Make sure of the stopped container that every machine is a copy of."""
    with alone():
        _ensure_template(_template_recipe())


def _ensure_template(recipe: str) -> None:
    if exists("instances", TEMPLATE):
        config = json.loads(run("lxc", "query", f"/1.0/instances/{TEMPLATE}"))["config"]
        if config.get(RECIPE_KEY) == recipe:
            return
        run("lxc", "delete", "--force", TEMPLATE)
    apt_install({"unsquashfs": "squashfs-tools"})
    with tempfile.TemporaryDirectory(prefix="ghr-sandbox-") as name:
        folder = Path(name)
        run("lxc", "image", "export", BASE_IMAGE, str(folder / "base"))
        root = folder / "rootfs"
        with step("Furnishing a machine with LXD and what a server has"):
            run("unsquashfs", "-quiet", "-no-progress", "-d", str(root), str(folder / "base.root"))
            _furnish(root)
        with step("Making the machine's template"):
            _import_image(folder, root, MACHINE_IMAGE, recipe)
            run("lxc", "init", MACHINE_IMAGE, TEMPLATE, "--storage", POOL, "--network", BRIDGE, "--no-profiles")
            _configure_machine(TEMPLATE)
            run("lxc", "image", "delete", MACHINE_IMAGE)
        with step("Giving the machine's own LXD an image for runners"):
            _fill_nested_lxd(folder)
        # Only a template that came to its end carries the mark: half of one is made anew.
        run("lxc", "config", "set", TEMPLATE, f"{RECIPE_KEY}={recipe}")


def _furnish(root: Path) -> None:
    """Install the machine's packages from the host, so that neither NAT nor name resolution inside is needed."""
    with _chroot_ready(root):
        run("chroot", str(root), "apt-get", "update", "-qq", timeout=300)
        run(
            *("chroot", str(root), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y"),
            *("--no-install-recommends", *MACHINE_PACKAGES),
            timeout=600,
        )
    # Timers that hold apt's locks at a random minute make no test better.
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        (root / "etc/systemd/system" / timer).symlink_to("/dev/null")
    for archive in (root / "var/cache/apt").rglob("*.[db][ei][bn]"):
        archive.unlink()
    (root / "etc/machine-id").write_text("")


def _machine_config() -> dict[str, str]:
    """What a container needs to be a whole machine: root's real ids, nesting, and on AppArmor hosts a free hand."""
    config = {"security.privileged": "true", "security.nesting": "true"}
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    if enabled.exists() and enabled.read_text().strip() == "Y":
        config["raw.lxc"] = "lxc.apparmor.profile=unconfined"
    return config


def _configure_machine(name: str) -> None:
    """Set a container's configuration and loop devices in one request; 65 of them would take half a minute."""
    instance = json.loads(run("lxc", "query", f"/1.0/instances/{name}"))
    _add_loop_devices()
    devices = dict(instance["devices"])
    for number in range(LOOP_DEVICES):
        numbers = {"major": str(LOOP_MAJOR), "minor": str(number)}
        devices[f"loop{number}"] = {"type": "unix-block", "path": f"/dev/loop{number}", "mode": "0660", **numbers}
    devices["loop-control"] = {"type": "unix-char", "path": "/dev/loop-control", "source": "/dev/loop-control"}
    request = {"config": {**instance["config"], **_machine_config()}, "devices": devices}
    run("lxc", "query", "--request", "PATCH", f"/1.0/instances/{name}", "--data", json.dumps(request))


def _add_loop_devices() -> None:
    """Ask the kernel for the loop devices that it does not have yet: it makes eight by itself."""
    if not Path("/dev/loop-control").exists():
        run("modprobe", "loop")
    with Path("/dev/loop-control").open("rb") as control:
        for number in range(LOOP_DEVICES):
            if not Path(f"/sys/block/loop{number}").exists():
                try:
                    fcntl.ioctl(control, LOOP_CTL_ADD, number)
                except FileExistsError:
                    continue
            node = Path(f"/dev/loop{number}")
            if not node.exists():
                os.mknod(node, 0o660 | stat.S_IFBLK, os.makedev(LOOP_MAJOR, number))


def _fill_nested_lxd(folder: Path) -> None:
    """Start the template once, import the base image into its LXD under the runners' aliases, and stop it."""
    run("lxc", "start", TEMPLATE)
    inside = ("lxc", "exec", TEMPLATE, "--")
    wait_until(lambda: succeeds(*inside, "lxc", "query", "/1.0"), "the LXD of the machine", timeout=60)
    for part in ("base", "base.root"):
        run("lxc", "file", "push", str(folder / part), f"{TEMPLATE}/root/{part}")
    aliases = [word for alias in RUNNER_IMAGE_ALIASES for word in ("--alias", alias)]
    run(*inside, "lxc", "image", "import", "/root/base", "/root/base.root", *aliases)
    # Every copy is a machine of its own: with one identity, two would get one address from DHCP.
    run(*inside, "sh", "-c", "rm -rf /root/base /root/base.root /var/log/journal/*; : > /etc/machine-id; sync")
    run("lxc", "stop", TEMPLATE, timeout=60)


def machines() -> list[str]:
    """The containers that are machines of the sandbox, the template not included."""
    instances = json.loads(run("lxc", "query", "/1.0/instances?recursion=1"))
    return [str(instance["name"]) for instance in instances if instance["config"].get(MACHINE_KEY)]


def remove_all() -> None:
    """Remove machines, their template, the base image, the pool and the bridge; stop LXD if it was started here."""
    _restore_inotify()
    if not succeeds("lxc", "query", "/1.0"):
        return
    for name in machines():
        _delete("instances", name, "lxc", "delete", "--force", name)
    for name in (TEMPLATE, VM_TEMPLATE):
        _delete("instances", name, "lxc", "delete", "--force", name)
    _delete("images/aliases", MACHINE_IMAGE, "lxc", "image", "delete", MACHINE_IMAGE)
    _delete("images/aliases", BASE_IMAGE, "lxc", "image", "delete", BASE_IMAGE)
    _delete("storage-pools", POOL, "lxc", "storage", "delete", POOL)
    _delete("networks", BRIDGE, "lxc", "network", "delete", BRIDGE)
    _stop_daemon()


def _delete(collection: str, name: str, *command: str) -> None:
    if exists(collection, name):
        run(*command)
        say(f"  ✓ removed {name}")


def _stop_daemon() -> None:
    pid_file = state_dir() / "lxd.pid"
    if not pid_file.exists():
        return
    run("lxd", "shutdown", "--timeout=60", check=False)
    with suppress(ProcessLookupError, ValueError):
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
    pid_file.unlink()
    say("  ✓ stopped LXD")
