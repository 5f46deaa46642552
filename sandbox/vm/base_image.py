"""The image that virtual machines are built from: Debian with what Ubuntu's cloud images have, and LXD's agent loader.

Everything is written into files: neither a loop device nor a mount of the disk is needed.
"""

import json
import shutil
import tempfile
from pathlib import Path

from sandbox.lab import debian, lxd_setup
from sandbox.shell import apt_install, run, step

PACKAGES = (
    *lxd_setup.BASE_PACKAGES,
    *("kmod", "initramfs-tools", "linux-image-cloud-amd64", "zstd"),
    *("cloud-init", "python3-cffi-backend", "cloud-guest-utils", "netplan.io", "fdisk"),
)
TOOLS = {
    "qemu-img": "qemu-utils",
    "sgdisk": "gdisk",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "mke2fs": "e2fsprogs",
}
# Signed, because the firmware of LXD's virtual machines enforces secure boot.
BOOT_PACKAGES = ("shim-signed", "grub-efi-amd64-signed")
FILES = Path(__file__).with_name("image")
SIZE_MIB, EFI_MIB = 2560, 128
ROOT_LABEL = "cloudimg-rootfs"
# On a busy machine software emulation delivers the timer's interrupts too late for the kernel's check at boot, which
# would then panic ("IO-APIC + timer doesn't work").
GRUB = f"""set timeout=0
search --no-floppy --label UEFI --set=root
linux /vmlinuz root=LABEL={ROOT_LABEL} ro console=ttyS0 no_timer_check
initrd /initrd.img
boot
"""
# As in Ubuntu's images, by which cloud-init learns the instance's name.
TEMPLATES = {
    "meta-data": "instance-id: {{ container.name }}\nlocal-hostname: {{ container.name }}\n",
    "user-data": "#cloud-config\n{}\n",
}
APT_STAND_IN = Path(__file__).with_name("apt-get")
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer")


def recipe(with_apt: bool = False) -> str:
    """A short hash of what goes into the image but the packages of the distribution."""
    files = [path.read_text() for path in (APT_STAND_IN, *sorted(FILES.rglob("*"))) if path.is_file()]
    steps = (lxd_setup.customise, _install, _write_disk, _write_efi, _write_metadata)
    fixed = (debian.SUITE, debian.MIRROR, *PACKAGES, SIZE_MIB, EFI_MIB, GRUB, json.dumps(TEMPLATES), with_apt)
    return lxd_setup.recipe_of(*fixed, *files, *steps)


def ensure(cache: Path, with_apt: bool = False) -> Path:
    """The folder with metadata.tar.gz and disk.qcow2: from the cache, else built.

    Without apt, a stand-in for apt-get does nothing: the charm's image build installs 1 GB of packages otherwise, which
    takes half an hour in software emulation. Such an image also trusts no public authority.
    """
    folder = cache / f"image-{recipe(with_apt)}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        apt_install(TOOLS)
        with tempfile.TemporaryDirectory(prefix="image-build-", dir=cache) as name:
            work = Path(name)
            with step(f"Building a base image for virtual machines from Debian's packages ({debian.SUITE})"):
                _install(work, with_apt)
            with step("Writing the disk of the base image"):
                result = work / "result"
                result.mkdir()
                _write_disk(work, result / "disk.qcow2")
                _write_metadata(work, result / "metadata.tar.gz")
            result.replace(folder)
    return folder


def _install(work: Path, with_apt: bool) -> None:
    """The root file system, in ``root``, and the signed boot loaders, in ``boot``."""
    root = work / "root"
    debian.bootstrap(root, PACKAGES)
    lxd_setup.customise(root)
    (root / "etc/fstab").write_text(f"LABEL={ROOT_LABEL} / ext4 defaults 0 1\n")
    (root / "etc/systemd/network/10-eth0.network").unlink()
    for unit in MASKED:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    run("cp", "-r", f"{FILES}/.", str(root))
    archives = root / "boot-packages"
    (archives / "partial").mkdir(parents=True)
    if not with_apt:
        # update-ca-certificates starts some programs for each authority: minutes in emulation.
        authorities = root / "etc/ca-certificates.conf"
        authorities.write_text(authorities.read_text().replace("\nmozilla/", "\n!mozilla/"))
    with debian.ready(root):
        run("chroot", str(root), "update-ca-certificates", "--fresh")
        run("chroot", str(root), "update-initramfs", "-u", "-k", "all")
        run("chroot", str(root), "systemctl", "enable", "lxd-agent.service")
        debian.apt(root, "update")
        debian.apt(root, "-o", f"Dir::Cache::Archives=/{archives.name}", "install", "--download-only", *BOOT_PACKAGES)
    for package in archives.glob("*.deb"):
        run("dpkg-deb", "--extract", str(package), str(work / "boot"))
    shutil.rmtree(archives)
    shutil.rmtree(root / "var/lib/apt/lists")
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    if not with_apt:
        # Before the real one on every PATH, this chroot's too: it comes last.
        shutil.copy(APT_STAND_IN, root / "usr/local/sbin/apt-get")


def _write_disk(work: Path, disk: Path) -> None:
    """A GPT with an EFI partition and the root file system, whose end is 1 MiB before that of the disk."""
    efi, system, raw = work / "efi.raw", work / "root.raw", work / "disk.raw"
    _write_efi(work, efi)
    run("truncate", f"--size={SIZE_MIB - EFI_MIB - 2}M", str(system))
    run("mke2fs", "-q", "-t", "ext4", "-L", ROOT_LABEL, "-d", str(work / "root"), str(system))
    run("truncate", f"--size={SIZE_MIB}M", str(raw))
    # LXD calls `sgdisk --move-second-header` on every new disk. After growpart it refuses a label that sfdisk made.
    partitions = (f"--new=1:2048:+{EFI_MIB}M", "--typecode=1:ef00", "--new=2:0:0", "--typecode=2:8300")
    run("sgdisk", "--clear", *partitions, str(raw))
    for part, start in ((efi, 1), (system, EFI_MIB + 1)):
        run("dd", f"if={part}", f"of={raw}", "bs=1M", f"seek={start}", "conv=notrunc,sparse", "status=none")
    run("qemu-img", "convert", "-O", "qcow2", str(raw), str(disk))


def _write_efi(work: Path, efi: Path) -> None:
    """Shim, GRUB, kernel and initramfs, which GRUB finds beside itself."""
    run("truncate", f"--size={EFI_MIB}M", str(efi))
    run("mkfs.vfat", "-F", "32", "-n", "UEFI", str(efi))
    (work / "grub.cfg").write_text(GRUB)
    boot, root = work / "boot", work / "root"
    [kernel], [initramfs] = (root / "boot").glob("vmlinuz-*"), (root / "boot").glob("initrd.img-*")
    run("mmd", "-i", str(efi), "::/EFI", "::/EFI/BOOT", "::/EFI/debian")
    for source, target in (
        (boot / "usr/lib/shim/shimx64.efi.signed", "EFI/BOOT/BOOTX64.EFI"),
        (boot / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "EFI/BOOT/grubx64.efi"),
        (kernel, "vmlinuz"),
        (initramfs, "initrd.img"),
        (work / "grub.cfg", "EFI/debian/grub.cfg"),
    ):
        run("mcopy", "-i", str(efi), str(source), f"::/{target}")


def _write_metadata(work: Path, target: Path) -> None:
    """What LXD needs to know of the image, with the templates that it writes into each new instance."""
    seed = "/var/lib/cloud/seed/nocloud-net"
    templates = {f"{seed}/{name}": {"when": ["create", "copy"], "template": f"{name}.tpl"} for name in TEMPLATES}
    properties = {"description": "github-runner sandbox, virtual machines", "os": "debian", "release": debian.SUITE}
    metadata = {"architecture": "x86_64", "creation_date": 1, "properties": properties, "templates": templates}
    (work / "metadata.yaml").write_text(json.dumps(metadata))
    (work / "templates").mkdir()
    for name, text in TEMPLATES.items():
        (work / "templates" / f"{name}.tpl").write_text(text)
    run("tar", "-czf", str(target), "metadata.yaml", "templates", cwd=str(work))
