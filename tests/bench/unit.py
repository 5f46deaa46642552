"""What is measured on a deployed unit, beside raw LXD in the same machine."""

import json
import statistics
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from host.pool import MOUNT_POINT
from host.runner_binary import FOLDER
from metrics.storage import FILESYSTEM_BASE_PATH
from programs.agent import PAUSE
from sandbox.lab.pack import SITE_PACKAGES
from shared_fs import FILESYSTEM_IMAGES_PATH
from tests.bench.report import write
from tests.support.deployment import PAT, RECONCILE, REPOSITORY, Deployment, wait_for

NUMBERS = (1, 4, 8, 16)
WORKERS = (2, 4, 8)
# Of lab: its sequential creation with 60 s of sleep for each.
PREVIOUS_CHARM_CREATE = "the previous charm: 67 s for one and 260 s for four, of each 60 s sleep"
PREVIOUS_CHARM_FLUSH = 36.0
CHARM = "/var/lib/juju/agents/unit-github-runner-0/charm"
# What the charm's runners have here, for the others: limits cost LXD time, whoever sets them. The charm's own profile
# goes with the last runner that uses it.
SIZE = "size-of-a-runner"
PROFILES = ("default", "runner", SIZE)


def add_size(found: Deployment) -> None:
    """Make the profile of instances that the charm does not make; they have as much as its runners."""
    config = {name: option["value"] for name, option in found.unit.config().items()}
    root = ("root", "disk", "path=/", "pool=runner", f"size={config['vm-disk']}")
    for command in (
        ("create", SIZE),
        ("set", SIZE, f"limits.cpu={config['vm-cpu']}", f"limits.memory={config['vm-memory']}"),
        ("device", "add", SIZE, *root),
    ):
        found.machine.exec("lxc", "profile", *command)


def raw(found: Deployment, what: str, number: int, workers: int, **environment: str) -> float:
    """Seconds that raw LXD takes."""
    found.machine.push("/root/raw.py", Path(__file__).with_name("raw.py").read_text())
    variables = [f"{name}={value}" for name, value in {"PYTHONPATH": f"{CHARM}/{SITE_PACKAGES}", **environment}.items()]
    command = ("env", *variables, "python3", "/root/raw.py", what, str(number), str(workers), *PROFILES)
    return float(found.machine.exec(*command, timeout=600))


def by_hand(found: Deployment, number: int, way: str) -> float:
    """Seconds until GitHub lists runners as online that a script makes with nothing around it: no charm can be faster.

    ``way`` is that of the option ``registration``.
    """
    api = f"{found.hub.url}/api/v3/repos/{REPOSITORY}/actions/runners"
    url, token = (f"{api}/generate-jitconfig", PAT) if way == "jit" else (f"{found.hub.url}/{REPOSITORY}", _token(api))
    tarball = found.machine.exec("sh", "-c", f"ls {FOLDER}/*.tar.gz").split()[0]
    runner = f"{tarball} {url} {token} {urlsplit(url).hostname}"
    script = "jit" if way == "jit" else "register"
    return _until_online(found, number, lambda: raw(found, script, number, min(8, number), RUNNER=runner))


def _until_online(found: Deployment, number: int, make: Callable[[], object]) -> float:
    """Seconds from the start of what makes runners until GitHub lists all as online, which may be before its end."""
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        made = pool.submit(make)
        wait_for(lambda: len(found.online()) == number or _failed(made), f"{number} runners", 120)
        seconds = time.monotonic() - started
        made.result()
    return seconds


def _failed(made: "Future[object]") -> bool:
    return made.done() and made.exception() is not None


def _token(api: str) -> str:
    headers = {"Authorization": f"Bearer {PAT}"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{api}/registration-token", None, headers, method="POST")
    ) as it:
        return str(json.load(it)["token"])


def start_sessions(found: Deployment) -> None:
    """Let user ubuntu have a session from the boot on, as in an image that the charm builds.

    The sandbox's image has none, so that the charm starts it in each runner, and a script by hand would not.
    """
    file = "session/var/lib/systemd/linger/ubuntu"
    for command in (
        ("lxc", "init", "jammy", "session", "--storage", "runner"),
        ("lxc", "file", "push", "--create-dirs", "/dev/null", file),
        ("lxc", "image", "alias", "delete", "jammy"),
        ("lxc", "publish", "session", "--compression=none", "--alias", "jammy"),
        ("lxc", "delete", "session"),
    ):
        found.machine.exec(*command, timeout=300)


def clear(found: Deployment) -> None:
    """No runner and no metrics storage is left, the file system has freed their blocks, and the machine is at rest."""
    for name in found.instances():
        found.machine.exec("lxc", "delete", "--force", name, check=False)
    found.machine.exec("sh", "-c", f"umount {FILESYSTEM_BASE_PATH}/*; rm -f {FILESYSTEM_IMAGES_PATH}/*", check=False)
    for runner in found.control.runners():
        found.control.remove_runner(runner["id"])
    found.machine.exec("sh", "-c", f"btrfs filesystem sync {MOUNT_POINT} && btrfs subvolume sync {MOUNT_POINT}")
    wait_for(is_at_rest, "a machine at rest", 60)


def is_at_rest() -> bool:
    """Whether nothing used more than a twentieth of the processors for half a second, during which it waits."""
    idle, whole = _processor_time()
    time.sleep(0.5)
    idle_now, whole_now = _processor_time()
    return idle_now - idle > 0.95 * (whole_now - whole)


def _processor_time() -> tuple[int, int]:
    """How long the processors did nothing, and the whole time, since the machine's start, in hundredths of a second."""
    numbers = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return numbers[3] + numbers[4], sum(numbers)


def create_by_hook(found: Deployment, number: int) -> float:
    """Seconds from the dispatch until GitHub lists every runner as online."""
    return _until_online(found, number, lambda: _reconcile(found))


def _reconcile(found: Deployment) -> None:
    done = found.unit.exec(RECONCILE)
    assert done.returncode == 0, done.stderr


def create(found: Deployment, repeat: int) -> None:
    """0 → N runners through a whole dispatch, beside scripts that only register, and raw LXD with its best workers."""
    start_sessions(found)
    rows = []
    for number in NUMBERS:
        row: dict[str, float] = {}
        for way, label in (("jit", ""), ("token", ", with a token")):
            found.unit.set_config({"virtual-machines": number, "registration": way})
            own, hand = [], []
            for _ in range(repeat):
                clear(found)
                own.append(create_by_hook(found, number))
                clear(found)
                hand.append(by_hand(found, number, way))
            row |= {
                f"this charm{label}": statistics.median(own),
                f"registered by hand{label}": statistics.median(hand),
            }
        row["raw LXD, first command"] = its = _raw_creation(found, number, repeat)
        mine, hand_made = row["this charm"], row["registered by hand"]
        label = f"{number}: {mine / its:.2f} x raw, {mine / hand_made:.2f} x by hand"
        rows.append({"label": label, **{name: round(seconds, 2) for name, seconds in row.items()}})
        print(f"  create {rows[-1]}", flush=True)
    found.unit.set_config({"registration": "auto"})
    note = f"a whole dispatch, just in time unless a token is named; {PREVIOUS_CHARM_CREATE}"
    write("create", "From no runner to N online at GitHub", "s", rows, note)


def _raw_creation(found: Deployment, number: int, repeat: int) -> float:
    """Seconds of raw LXD with the number of workers that serves it best."""
    best = []
    for _ in range(repeat):
        clear(found)
        seconds = []
        for workers in {min(workers, number) for workers in WORKERS}:
            seconds.append(raw(found, "create", number, workers))
            raw(found, "flush", number, 8)
        best.append(min(seconds))
    return statistics.median(best)


def flush(found: Deployment, repeat: int) -> None:
    """16 runners to none by virtual-machines=0, beside raw LXD and the same hook where there is no runner."""
    own, bare, best = [], [], []
    for number in range(repeat):
        clear(found)
        found.unit.set_config({"virtual-machines": 16})
        found.reconcile()
        wait_for(lambda: len(found.online()) == 16, "16 runners", 120)
        started = time.monotonic()
        found.unit.set_config({"virtual-machines": 0})
        own.append(time.monotonic() - started)
        assert found.instances() == []
        started = time.monotonic()
        found.unit.set_config({"labels": f"bench-{number}"})
        bare.append(time.monotonic() - started)
        raw(found, "create", 16, 8)
        best.append(raw(found, "flush", 16, 8))
    mine, none, its = (statistics.median(values) for values in (own, bare, best))
    row = {
        "label": f"16: {mine / its:.2f} x, less the hook {(mine - none) / its:.2f}",
        "this charm": round(mine, 2),
        "the same hook, no runner": round(none, 2),
        "raw LXD": round(its, 2),
    }
    write("flush", "From 16 runners to none", "s", [{**row, "previous charm (lab)": PREVIOUS_CHARM_FLUSH}])


def replace(found: Deployment, repeat: int) -> None:
    """From the end of a job to the successor of its runner, without the timer."""
    start_sessions(found)
    clear(found)
    found.unit.set_config({"virtual-machines": 2, "replace-on-exit": True})
    wait_for(lambda: len(found.online()) == 2, "2 runners", 120)
    own, one = [], []
    for _ in range(repeat):
        job = found.control.add_job("octo-org/demo", "true")
        name = found.control.wait_job(job["id"])["runner_name"]
        started = time.monotonic()

        def replaced(gone: str = name) -> bool:
            online = found.online()
            return len(online) == 2 and gone not in online

        wait_for(replaced, "the successor", 60)
        own.append(time.monotonic() - started)
        found.unit.wait_idle()
        # Jobs that take no time are not what is measured.
        time.sleep(PAUSE)
    found.unit.set_config({"replace-on-exit": False})
    for _ in range(repeat):
        one.append(raw(found, "create", 1, 1))
        raw(found, "flush", 1, 1)
    mine, its = statistics.median(own), statistics.median(one)
    label = f"raw + {mine - its:.1f} s"
    row = {"label": label, "this charm": round(mine, 2), "one raw creation": round(its, 2)}
    write("replace", "From the end of a job to its runner's successor online", "s", [row])


EMPTY = """#!/usr/bin/env python3
import ops


class Empty(ops.CharmBase):
    def __init__(self, framework):
        super().__init__(framework)
        framework.observe(self.on.update_status, self._on_update_status)

    def _on_update_status(self, _):
        self.unit.status = ops.ActiveStatus()


ops.main(Empty)
"""


def hook(found: Deployment, repeat: int) -> None:
    """update-status with nothing to do, beside an empty ops charm; the whole process."""
    folder = "/root/empty"
    found.machine.push(f"{folder}/src/charm.py", EMPTY, 0o755)
    copy = f"cp -r {CHARM}/metadata.yaml {CHARM}/config.yaml {CHARM}/actions.yaml {CHARM}/dispatch {folder}/"
    found.machine.exec("sh", "-c", f"{copy} && ln -sfn {CHARM}/venv {folder}/venv")
    dispatch = "JUJU_DISPATCH_PATH=hooks/update-status ./dispatch"
    times: dict[str, list[float]] = {CHARM: [], folder: []}
    for _ in range(5 * repeat):
        for where, seconds in times.items():
            command = f"cd {where} && start=$(date +%s.%N) && JUJU_CHARM_DIR={where} {dispatch} && "
            command += 'echo "took $(echo "$(date +%s.%N) - $start" | awk "{print \\$1 - \\$3}")"'
            done = found.unit.exec(command)
            assert done.returncode == 0, done.stderr
            seconds.append(float(done.stdout.split("took ")[-1]))
    mine, its = statistics.median(times[CHARM]), statistics.median(times[folder])
    label = f"{mine / its:.2f} x empty"
    row = {"label": label, "this charm": round(mine, 3), "an empty ops charm": round(its, 3)}
    write(
        "hook",
        "A hook that has nothing to do (update-status)",
        "s",
        [row],
        "the whole process, Python's start included",
    )
