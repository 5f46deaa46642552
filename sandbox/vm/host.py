"""How this machine can run virtual machines: by its hardware, or in software emulation."""

import fcntl
import os
import platform
from pathlib import Path

from sandbox.shell import SandboxError

KVM, VHOST_VSOCK = Path("/dev/kvm"), Path("/dev/vhost-vsock")
# https://docs.kernel.org/virt/kvm/api.html#kvm-create-vm
KVM_CREATE_VM = 0xAE01


def has_hardware() -> bool:
    """Whether KVM and vhost-vsock work here, so that an LXD as it is installed starts virtual machines."""
    if os.environ.get("SANDBOX_EMULATE"):
        return False
    try:
        with VHOST_VSOCK.open("rb"), KVM.open("rb") as kvm:
            os.close(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
    except OSError:
        return False
    return True


def check() -> None:
    """SandboxError where neither way is open."""
    if platform.machine() != "x86_64":
        raise SandboxError(f"virtual machines in the sandbox need an x86_64 machine; this one is {platform.machine()}")
