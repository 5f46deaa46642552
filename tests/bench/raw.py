"""Raw LXD, in the machine: only the requests without which an instance cannot be had, through pylxd.

raw.py create NUMBER WORKERS PROFILES…   creates, starts, waits for the first command, prints the seconds; leaves them
raw.py flush NUMBER WORKERS              stops what create made (ephemeral: that deletes them), prints the seconds
"""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pylxd

LOCAL = threading.local()


def api():  # type: ignore[no-untyped-def]
    if not hasattr(LOCAL, "client"):
        LOCAL.client = pylxd.Client()
    return LOCAL.client.api


def wait(response):  # type: ignore[no-untyped-def]
    operation = response.json()["metadata"]["id"]
    return api().operations[operation].wait.get().json()["metadata"]


def create(name: str, profiles: list[str]) -> None:
    source = {"type": "image", "alias": "jammy"}
    config = {"security.nesting": "true"}
    body = {"name": name, "ephemeral": True, "source": source, "profiles": profiles, "config": config}
    wait(api().instances.post(json=body))
    wait(api().instances[name].state.put(json={"action": "start", "timeout": -1}))
    command = {"command": ["true"], "wait-for-websocket": False, "interactive": False}
    while wait(api().instances[name].exec.post(json=command)).get("metadata", {}).get("return") != 0:
        time.sleep(0.05)


def flush(name: str) -> None:
    wait(api().instances[name].state.put(json={"action": "stop", "force": True, "timeout": 30}))


def main() -> None:
    what, number, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    names = [f"raw-{index}" for index in range(number)]
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        if what == "create":
            list(pool.map(lambda name: create(name, sys.argv[4:]), names))
        else:
            list(pool.map(flush, names))
    print(f"{time.monotonic() - started:.3f}")


main()
