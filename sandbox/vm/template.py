"""The template of Juju machines whose own LXD starts virtual machines: a copy of the sandbox's other template."""

import json
from pathlib import Path

from sandbox.lab import lxd_setup
from sandbox.lab.machine import Machine
from sandbox.shell import run, step, succeeds, wait_until
from sandbox.vm import base_image, host, lxd_build

TEMPLATE = lxd_setup.VM_TEMPLATE
# The alias of the base image in the machine's LXD, for the option image-source=local:sandbox-vm.
IMAGE = "sandbox-vm"
PACKAGES = ("qemu-system-x86", "qemu-utils", "ovmf", "lxd-agent", "gdisk", "genisoimage")
PROGRAMS = Path(__file__).with_name("programs")
FOLDER = "/usr/local/lib/sandbox-vm"
# First on the PATH of systemd's services, LXD's among them.
QEMU, MODPROBE = "/usr/local/sbin/qemu-system-x86_64", "/usr/local/sbin/modprobe"
# LXD offers virtual machines where these exist. Here they are empty files, which the patched LXD never opens.
DEVICES = "f /dev/kvm 0600 root root\nf /dev/vsock 0600 root root\n"
# br_netfilter is wanted by the charm, and this kernel may have neither it nor modules.
MODULE = "br_netfilter"
MODULE_SERVICE = f"""[Unit]
Description=Stand-in for the kernel module {MODULE}
ConditionPathExists=!/sys/module/{MODULE}
Before=lxd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=mkdir -p /run/sandbox-modules/{MODULE}
ExecStart=mount -t overlay -o lowerdir=/run/sandbox-modules:/sys/module overlay /sys/module

[Install]
WantedBy=multi-user.target
"""


def cache() -> Path:
    """Where the built LXD and the images are kept, outside of the clone."""
    return lxd_setup.state_dir() / "vm"


def ensure() -> None:
    """Make sure of the template and of everything that goes into it."""
    host.check()
    lxd_setup.ensure()
    lxd_setup.ensure_template()
    hardware = host.has_hardware()
    with lxd_setup.alone():
        recipe = _recipe(hardware)
        if _config(TEMPLATE).get(lxd_setup.RECIPE_KEY) == recipe:
            return
        lxd = None if hardware else lxd_build.ensure(cache())
        image = base_image.ensure(cache())
        if lxd_setup.exists("instances", TEMPLATE):
            run("lxc", "delete", "--force", TEMPLATE)
        with step("Making the template of machines with virtual machines"):
            make(lxd, image)
        run("lxc", "config", "set", TEMPLATE, f"{lxd_setup.RECIPE_KEY}={recipe}")


def _recipe(hardware: bool) -> str:
    programs = [path.read_text() for path in sorted(PROGRAMS.iterdir()) if path.is_file()]
    fixed = (hardware, *PACKAGES, DEVICES, MODULE_SERVICE, lxd_build.recipe(), base_image.recipe())
    other = _config(lxd_setup.TEMPLATE)[lxd_setup.RECIPE_KEY]
    return lxd_setup.recipe_of(other, *fixed, *programs, make, _emulate, use_hardware)


def _config(name: str) -> dict[str, str]:
    if not lxd_setup.exists("instances", name):
        return {}
    return dict(json.loads(run("lxc", "query", f"/1.0/instances/{name}"))["config"])


def make(lxd: Path | None, image: Path) -> None:
    """Copy the other template, start it once, and give it QEMU, the image and, if there is one, the patched LXD."""
    run("lxc", "copy", lxd_setup.TEMPLATE, TEMPLATE)
    run("lxc", "config", "unset", TEMPLATE, lxd_setup.RECIPE_KEY)
    if lxd is None:
        use_hardware()
    run("lxc", "start", TEMPLATE)
    machine = Machine(TEMPLATE.removeprefix("ghr-"))
    machine.wait_ready()
    machine.exec("apt-get", "update", "-qq")
    apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "install", "--no-install-recommends")
    machine.exec(*apt, *PACKAGES, timeout=900)
    machine.exec("sh", "-c", "apt-get clean; lxc image list --format=csv --columns=f | xargs -r lxc image delete")
    if lxd is not None:
        _emulate(machine, lxd)
    machine.exec("systemctl", "restart", "lxd.service")
    ready = ("lxc", "exec", TEMPLATE, "--", "sh", "-c", "lxc query /1.0 | grep -qw qemu")
    wait_until(lambda: succeeds(*ready), "an LXD with virtual machines in the template")
    import_image(machine, image, IMAGE)
    # Every copy is a machine of its own: with one identity, two would get one address from DHCP.
    machine.exec("sh", "-c", "rm -rf /var/log/journal/*; : > /etc/machine-id; sync")
    run("lxc", "stop", TEMPLATE, timeout=60)


def _emulate(machine: Machine, lxd: Path) -> None:
    """Put the patched LXD and the programs in front of QEMU and modprobe into the machine: all of them or none."""
    # The daemon runs: its file cannot be written, only replaced.
    run("lxc", "file", "push", "--mode=0755", str(lxd), f"{machine.container}/usr/bin/lxd.patched")
    machine.exec("mv", "/usr/bin/lxd.patched", "/usr/bin/lxd")
    machine.push_folder(PROGRAMS, FOLDER)
    machine.exec("ln", "-s", f"{FOLDER}/qemu.py", QEMU)
    machine.exec("ln", "-s", f"{FOLDER}/modprobe", MODPROBE)
    machine.push("/etc/tmpfiles.d/sandbox-vm.conf", DEVICES)
    machine.push(f"/etc/systemd/system/sandbox-{MODULE}.service", MODULE_SERVICE)
    machine.exec("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/sandbox-vm.conf")
    machine.exec("systemctl", "enable", "--quiet", "--now", f"sandbox-{MODULE}.service")


def use_hardware() -> None:
    """Give the machine the host's own devices."""
    for path in ("/dev/kvm", "/dev/vhost-vsock", "/dev/vsock", "/dev/vhost-net"):
        if Path(path).exists():
            device = ("unix-char", f"source={path}", f"path={path}")
            run("lxc", "config", "device", "add", TEMPLATE, Path(path).name, *device)


def import_image(machine: Machine, folder: Path, alias: str) -> None:
    """Import a base image (as ``base_image.ensure`` gives it) into the machine's own LXD."""
    for name in ("metadata.tar.gz", "disk.qcow2"):
        run("lxc", "file", "push", str(folder / name), f"{machine.container}/root/{name}")
    machine.exec("lxc", "image", "import", "/root/metadata.tar.gz", "/root/disk.qcow2", "--alias", alias)
    machine.exec("rm", "/root/metadata.tar.gz", "/root/disk.qcow2")
