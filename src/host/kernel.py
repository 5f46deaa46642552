"""The kernel: a module and a limit, daily updates, and the reboots they ask for."""

import logging
import os
import re
import shlex
from pathlib import Path

import times
from errors import CommandError
from host.markers import REBOOT, Markers
from host.systemd import are_active
from system import remove_leftovers, run, write_file

logger = logging.getLogger(__name__)

# Written by packages whose update needs one, the kernel among them (update-notifier-common).
REBOOT_REQUIRED = Path("/var/run/reboot-required")
MODULE = "br_netfilter"
MODULES_FILE = Path("/etc/modules-load.d/github-runner.conf")
SYSCTL_FILE = Path("/etc/sysctl.d/60-github-runner.conf")
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_INSTANCES = 1048576
CHECKED = Path("/var/lib/github-runner/kernel-checked")
CHECK_EVERY = times.DAY
# Outside of hooks: a reconcile has a time limit, and dpkg must not be cut off by it.
UPDATE_SERVICE = "github-runner-kernel-update.service"
UPDATE_SCRIPT = Path("/var/lib/github-runner/kernel-update.sh")
IMAGE_PACKAGE = re.compile(r"linux-image-([a-z].*)")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def ensure_module() -> bool:
    """Load br_netfilter now and at every boot; returns whether the file was written."""
    changed = write_file(MODULES_FILE, f"{MODULE}\n")
    if not is_module_loaded():
        run(["modprobe", MODULE])
    return changed


def is_module_loaded() -> bool:
    """Whether br_netfilter is there: without it the firewall of a bridge does not see all of its traffic."""
    return Path("/sys/module", MODULE).exists()


def ensure_inotify() -> bool:
    """Allow more than a dozen containers: each systemd takes ten of the 128 inotify instances that a kernel allows.

    https://documentation.ubuntu.com/lxd/latest/reference/server_settings/. Returns whether the file was written.
    """
    changed = write_file(SYSCTL_FILE, f"fs.inotify.max_user_instances = {INOTIFY_INSTANCES}\n")
    if int(INOTIFY.read_text()) < INOTIFY_INSTANCES:
        done = run(["sysctl", "--quiet", "--load", str(SYSCTL_FILE)], check=False)
        if done.returncode != 0:
            logger.info("The machine keeps its limit of inotify instances: %s", done.stderr.strip())
    return changed


def update(now: float) -> bool:
    """Start an update of the installed kernels, at most daily; returns whether it was started. No failure is raised."""
    try:
        return _update(now)
    except (CommandError, OSError) as error:
        logger.warning("The update of the kernel was not started: %s", error)
        return False


def _update(now: float) -> bool:
    if CHECKED.exists() and 0 <= now - CHECKED.stat().st_mtime < CHECK_EVERY:
        return False
    write_file(CHECKED, f"{now:.0f}\n", 0o600)
    installed = installed_kernels()
    if installed:
        # A file, since arguments and environment of a service can be read by every user, and a proxy has a password.
        remove_leftovers(UPDATE_SCRIPT)
        write_file(UPDATE_SCRIPT, _update_script(installed), 0o700)
        command = ["systemd-run", "--quiet", "--collect", f"--unit={UPDATE_SERVICE}", "/bin/sh", str(UPDATE_SCRIPT)]
        run(command)
    return bool(installed)


def _update_script(installed: list[str]) -> str:
    """Waits for apt's locks; the packages' own configuration files stay as they are."""
    names = ("http_proxy", "https_proxy", "no_proxy")
    exports = [f"export {name}={shlex.quote(os.environ[name])}" for name in names if os.environ.get(name)]
    apt = "apt-get -qq -y -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold"
    return "\n".join(
        [
            *exports,
            "export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l",
            "for _ in 1 2 3 4 5; do apt-get -qq update && break; sleep 60; done",
            f"{apt} install --only-upgrade {shlex.join(installed)}",
            "",
        ]
    )


def installed_kernels() -> list[str]:
    """The metapackages of every kernel flavour that this machine has; none where it is a container.

    `linux-image-FLAVOUR` without a version, and `linux-FLAVOUR` and `linux-headers-FLAVOUR` beside it.
    """
    query = run(["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}${Package}\n", "linux-*"], check=False)
    installed = {line[3:].strip() for line in query.stdout.splitlines() if line.startswith("ii")}
    flavours = {match[1] for match in map(IMAGE_PACKAGE.fullmatch, installed) if match}
    flavours = {flavour for flavour in flavours if not re.match(r"unsigned-|uc-\d", flavour)}
    wanted = {f"linux{part}{flavour}" for flavour in flavours for part in ("-", "-image-", "-headers-")}
    return sorted(wanted & installed)


def reboot_is_due() -> bool:
    """Whether an installed update needs a reboot, and no update is going on."""
    return REBOOT_REQUIRED.exists() and not are_active(UPDATE_SERVICE)


def boot_id() -> str:
    """The id of this boot of the machine."""
    return BOOT_ID.read_text().strip()


def requested(markers: Markers, now: float) -> float | None:
    """Seconds since a reboot was requested in this boot; None if none was, or the machine has rebooted since."""
    moment, _, boot = (markers.read(REBOOT) or "").strip().partition(" ")
    try:
        age = now - float(moment)
    except ValueError:
        return None
    if boot != boot_id():
        return None
    # A request in the future: the clock was set back, and its age is not known.
    return age if age >= 0 else float(times.REBOOT_WAIT)


def note_request(markers: Markers, now: float) -> None:
    """Record a request before it is made; HostError where that is not possible, and no reboot must be requested."""
    markers.note(REBOOT, f"{int(now)} {boot_id()}")


def remove() -> list[str]:
    """Remove the files; module and limit stay until the next boot. Returns what was removed."""
    gone = [path for path in (MODULES_FILE, SYSCTL_FILE, CHECKED, UPDATE_SCRIPT) if path.exists()]
    for path in gone:
        path.unlink(missing_ok=True)
    return [str(path) for path in gone]
