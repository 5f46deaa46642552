"""A Juju machine: a container with systemd and an LXD of its own, made in seconds as a copy of the template."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from sandbox.lab import lxd_setup, lxd_socket
from sandbox.shell import NOT_STARTED, SandboxError, ended, run, succeeds, wait_until

COVERAGE_FOLDER = "/var/lib/juju/coverage"
METRICS_LOG = "/var/log/github-runner-metrics.log"

APT_LOCKS = (
    *("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock"),
    *("/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"),
)
# apt's locks are POSIX record locks, which flock(1) does not set.
HOLD_APT_LOCKS = f"""
import fcntl, pathlib, sys, time
held = [open(path, "w") for path in {APT_LOCKS}]
for file in held:
    fcntl.lockf(file, fcntl.LOCK_EX)
pathlib.Path("/run/apt-locks-held").touch()
time.sleep(float(sys.argv[1]))
"""


class Machine:
    """One machine; several of different names can run side by side."""

    def __init__(self, name: str = "juju-machine", template: str = lxd_setup.TEMPLATE) -> None:
        self.name = name
        self.container = f"ghr-{name}"
        self.template = template
        self._root = Path("/nonexistent")

    def create(self, timeout: float = 60) -> None:
        """Make and start the machine; on return systemd is up, eth0 has its address, and the LXD inside answers."""
        if self.exists():
            raise SandboxError(f"the machine {self.name} exists: remove it with `python3 -m sandbox down`")
        mark = f"{lxd_setup.MACHINE_KEY}={self.name}"
        run("lxc", "copy", self.template, self.container, "--config", mark)
        try:
            run("lxc", "start", self.container)
            self.wait_ready(timeout)
        except BaseException:
            self.destroy()
            raise

    def wait_ready(self, timeout: float = 60) -> None:
        """Wait until the machine has booted; what failed to start inside is named by `systemctl --failed` there."""
        deadline = time.monotonic() + timeout
        wait_until(self._booted, f"systemd in the machine {self.name}", timeout)
        wait_until(self.address, f"an address of the machine {self.name}", deadline - time.monotonic())
        answers = ("lxc", "exec", self.container, "--", "lxc", "query", "/1.0")
        wait_until(lambda: succeeds(*answers), f"the LXD inside {self.name}", deadline - time.monotonic())

    def _booted(self) -> bool:
        return self.exec("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

    def exists(self) -> bool:
        return succeeds("lxc", "query", f"/1.0/instances/{self.container}")

    def running(self) -> bool:
        if not self.exists():
            return False
        return bool(json.loads(run("lxc", "query", f"/1.0/instances/{self.container}"))["status"] == "Running")

    def start(self, timeout: float = 60) -> None:
        """Start a machine that was stopped, as after a reboot of the host."""
        run("lxc", "start", self.container)
        self.wait_ready(timeout)

    def address(self) -> str:
        """The machine's IPv4 address on the sandbox's bridge, empty while it has none."""
        network = self._state()["network"] or {}
        for address in network.get("eth0", {}).get("addresses", []):
            if address["family"] == "inet" and address["scope"] == "global":
                return str(address["address"])
        return ""

    def _state(self) -> dict[str, Any]:
        return dict(json.loads(run("lxc", "query", f"/1.0/instances/{self.container}/state")))

    def root(self) -> Path:
        """The machine's files, as root of the host sees them while the machine runs; another path after each boot."""
        name = self._root / "etc/hostname"
        # A process of the host may have the number of one that has ended.
        if not name.exists() or name.read_text().strip() != self.container:
            self._root = Path(f"/proc/{self.boot_mark()}/root")
        return self._root

    def lxd(self, path: str) -> Any:
        """What the machine's own LXD answers to ``GET path``. Much cheaper than a command: tests poll it."""
        try:
            return lxd_socket.get(self.root(), path)
        except OSError as error:
            raise SandboxError(f"the LXD inside {self.name} does not answer: {error}") from error

    def exec(self, *command: str, input: str | None = None, check: bool = True, timeout: float = 300) -> str:
        """Run a program in the machine as root and return its standard output."""
        return run("lxc", "exec", self.container, "--", *command, input=input, check=check, timeout=timeout)

    def call(self, *command: str, input: str | None = None, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run a program in the machine and return its exit code, output and errors, whatever they are."""
        return ended("lxc", "exec", self.container, "--", *command, input=input, timeout=timeout)

    def push(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Write a file in the machine, parent folders included."""
        content = data.encode() if isinstance(data, str) else data
        flags = ("--create-dirs", "--mode", f"{mode:04o}", "--uid", "0", "--gid", "0")
        done = subprocess.run(
            ("lxc", "file", "push", *flags, "-", self.container + path), input=content, capture_output=True
        )
        if done.returncode != 0:
            raise SandboxError(f"cannot write {path} in {self.name}: {done.stderr.decode().strip()}")

    def push_folder(self, source: Path, path: str) -> None:
        """Copy a folder's content into a folder of the machine; what is there already stays."""
        # A folder that exists keeps its mode: the source may be a temporary one that only root may enter.
        unpack = f"mkdir -p {path} && tar -xf - --no-overwrite-dir --no-same-owner -C {path}"
        inside = ("lxc", "exec", self.container, "--", "sh", "-c", unpack)
        for _ in range(2):
            with subprocess.Popen(("tar", "-cf", "-", "-C", str(source), "."), stdout=subprocess.PIPE) as packing:
                done = subprocess.run(inside, stdin=packing.stdout, capture_output=True, text=True)
            if done.returncode == 0 == packing.returncode:
                return
            if NOT_STARTED not in done.stderr:
                break
        raise SandboxError(f"cannot copy {source} to {path} in {self.name}: {done.stderr.strip()}")

    def pull(self, path: str) -> bytes:
        """Read a file of the machine."""
        done = subprocess.run(("lxc", "file", "pull", self.container + path, "-"), capture_output=True)
        if done.returncode != 0:
            raise SandboxError(f"cannot read {path} in {self.name}: {done.stderr.decode().strip()}")
        return done.stdout

    def metrics(self) -> list[str]:
        """The lines of the metrics log, one event each; without the end of one that is being written."""
        text = self.exec("sh", "-c", f"cat {METRICS_LOG} 2>/dev/null || true")
        return text.rpartition("\n")[0].splitlines()

    def pull_coverage(self, folder: Path) -> list[Path]:
        """Copy the coverage data files of a charm that was packed with coverage; gives the copies."""
        folder.mkdir(parents=True, exist_ok=True)
        inside = ("lxc", "exec", self.container, "--", "tar", "-cf", "-", "-C", COVERAGE_FOLDER, ".")
        with subprocess.Popen(inside, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reading:
            subprocess.run(("tar", "-xf", "-", "-C", str(folder)), stdin=reading.stdout, check=False)
        return sorted(folder.glob(".coverage.*"))

    def reboot(self, hard: bool = False, timeout: float = 90) -> None:
        """Reboot and wait until the machine is up again; hard is the power cord, with nothing shut down in order."""
        before = self._state()["pid"]
        if hard:
            run("lxc", "restart", "--force", self.container, timeout=timeout)
        else:
            self.exec("systemctl", "reboot", check=False)
        self.wait_reboot(before, timeout)

    def boot_mark(self) -> int:
        """A number that is another one after every reboot."""
        return int(self._state()["pid"])

    def wait_reboot(self, before: int, timeout: float = 90) -> None:
        """Wait until the machine has rebooted since `before` (a boot_mark) and is up again."""
        wait_until(lambda: self._state()["pid"] not in (0, before), f"the reboot of {self.name}", timeout)
        self.wait_ready(timeout)

    def hold_apt_locks(self, seconds: float) -> None:
        """Hold apt's and dpkg's locks, as apt-daily and unattended-upgrades do in a machine's first minutes."""
        self.release_apt_locks()
        holder = ("systemd-run", "--quiet", "--collect", "--unit=apt-locks", "python3", "-c", HOLD_APT_LOCKS)
        self.exec(*holder, str(seconds))
        held = ("test", "-e", "/run/apt-locks-held")
        wait_until(lambda: self.call(*held).returncode == 0, f"apt's locks in {self.name}")

    def release_apt_locks(self) -> None:
        """Let them go before their time."""
        self.call("systemctl", "stop", "apt-locks")
        self.exec("rm", "-f", "/run/apt-locks-held")

    def destroy(self) -> None:
        """Remove the machine and everything in it; harmless if it is gone."""
        if self.exists():
            run("lxc", "delete", "--force", self.container)
