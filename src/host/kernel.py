"""Reboots that an update of the machine asks for (spec 4, Pending kernel)."""

from pathlib import Path

# Written by packages whose update needs one, the kernel among them (update-notifier-common).
REBOOT_REQUIRED = Path("/var/run/reboot-required")


def reboot_is_due() -> bool:
    """Whether an installed update needs a reboot."""
    return REBOOT_REQUIRED.exists()
