"""Looks for secrets in everything that a machine shows while a unit lives on it."""

from sandbox.lab.machine import Machine

SEEN = "/root/watch"
# Every process of the machine and of its instances; the environment of those that are the machine's own.
SAMPLER = """
import os, pathlib, time
seen = set()
files = {kind: open(f"SEEN.{kind}", "ab", buffering=0) for kind in ("cmdline", "environ")}
while True:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        folder = pathlib.Path("/proc", pid)
        try:
            kinds = ("cmdline", "environ") if folder.stat().st_uid < 100000 else ("cmdline",)
            for kind in kinds:
                words = folder.joinpath(kind).read_bytes()
                if (kind, words) not in seen:
                    seen.add((kind, words))
                    files[kind].write(words.replace(b"\\0", b" ").replace(b"\\n", b" ") + b"\\n")
        except OSError:
            continue
    time.sleep(0.05)
"""
# Not: what stands in for Juju's controller, which is told the secrets, and the disks of instances.
PLACES = "/etc /home /root /run /tmp /var/log /var/lib/github-runner /var/lib/juju/agents /var/lib/lxd/database"
INSTANCES = (("lxc", "list", "--format=json"), ("lxc", "profile", "list", "--format=json"))


class Watch:
    """Samples a machine's processes from its start on."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        machine.push("/root/sampler.py", SAMPLER.replace("SEEN", SEEN))
        machine.exec("systemd-run", "-q", "--unit=watch", "python3", "/root/sampler.py")

    def where(self, *secrets: str) -> list[str]:
        """Where any of these is or was to be seen."""
        files = self._lines(f"grep -rlaF --exclude=watch.cmdline -f - {PLACES} 2> /dev/null", *secrets)
        return self.shown(*secrets) + files

    def shown(self, *secrets: str) -> list[str]:
        """The same without files and environment, where what has to be configured may stand."""
        # The stand-in for Juju's controller is told its options so.
        seen = self._lines(f"grep -aF -f - {SEEN}.cmdline | grep -v /juju-sandbox/agent.py", *secrets)
        logs = "{ journalctl --no-pager -q; cat /var/log/juju/* /var/log/github-runner*; }"
        found = [f"process: {line[:200]}" for line in seen]
        found += [f"log: {line[:200]}" for line in self._lines(f"{logs} | grep -aF -f /dev/fd/3", *secrets)]
        configured = [(command, self._machine.exec(*command)) for command in INSTANCES]
        return found + [" ".join(command) for command, text in configured if any(secret in text for secret in secrets)]

    def _lines(self, command: str, *secrets: str) -> list[str]:
        """The lines of a shell command that is told the secrets on standard input: its arguments are watched, too."""
        told = "".join(f"{secret}\n" for secret in secrets)
        return self._machine.exec("sh", "-c", f"exec 3<&0; {{ {command}; }} || true", input=told).splitlines()
