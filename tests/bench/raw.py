"""Raw LXD, in the machine: only the requests that an instance needs, through pylxd.

raw.py create NUMBER WORKERS PROFILES…   creates, starts, waits for the first command, prints the seconds; leaves them
raw.py register NUMBER WORKERS PROFILES… the same and makes each a runner, with the tarball, URL and token of $RUNNER
raw.py jit NUMBER WORKERS PROFILES…      the same just in time, with the tarball, the API's URL and token of $RUNNER
raw.py flush NUMBER WORKERS              stops what create made (ephemeral: that deletes them), prints the seconds
"""

import json
import os
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pylxd

LOCAL = threading.local()


def api() -> Any:
    if not hasattr(LOCAL, "client"):
        LOCAL.client = pylxd.Client()
    return LOCAL.client.api


def wait(response: Any) -> Any:
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


# Only what GitHub's page for a new runner says, once there is a way to GitHub.
UNPACK = """set -e
mkdir -p /home/ubuntu/github-runner
tar -xzf /root/runner-binary.tar.gz -C /home/ubuntu/github-runner
chown -R ubuntu:ubuntu /home/ubuntu/github-runner
cd /home/ubuntu/github-runner
until ip route get "$ADDRESS" > /dev/null 2>&1; do sleep 0.1; done
as_ubuntu="setpriv --reuid=ubuntu --regid=ubuntu --init-groups"
"""
REGISTER = """
$as_ubuntu ./config.sh --ephemeral --unattended --url "$URL" --token "$TOKEN" --name "$1" > /dev/null
setsid $as_ubuntu ./run.sh > /dev/null 2>&1 < /dev/null &
"""
JIT = """
setsid $as_ubuntu ./run.sh --jitconfig "$TOKEN" > /dev/null 2>&1 < /dev/null &
"""


def register(name: str, profiles: list[str]) -> None:
    create(name, profiles)
    _, url, token, _ = os.environ["RUNNER"].split()
    run(name, REGISTER, url, token)


def jit(name: str, profiles: list[str]) -> None:
    _, url, token, _ = os.environ["RUNNER"].split()
    body = json.dumps({"name": name, "runner_group_id": 1, "labels": ["self-hosted"]}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        configuration = json.load(answer)["encoded_jit_config"]
    create(name, profiles)
    run(name, JIT, url, configuration)


def run(name: str, script: str, url: str, token: str) -> None:
    tarball, _, _, address = os.environ["RUNNER"].split()
    with open(tarball, "rb") as content:  # noqa: PTH123
        api().instances[name].files.post(params={"path": "/root/runner-binary.tar.gz"}, data=content)
    environment = {"URL": url, "TOKEN": token, "ADDRESS": address, "HOME": "/home/ubuntu"}
    command = ["bash", "-c", UNPACK + script, "register", name]
    body = {"command": command, "environment": environment, "wait-for-websocket": False, "interactive": False}
    code = wait(api().instances[name].exec.post(json=body))["metadata"]["return"]
    if code != 0:
        raise SystemExit(f"{name}: registration ended with {code}")


def flush(name: str) -> None:
    wait(api().instances[name].state.put(json={"action": "stop", "force": True, "timeout": 30}))


def main() -> None:
    what, number, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    names = [f"raw-{index}" for index in range(number)]
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        if what == "flush":
            list(pool.map(flush, names))
        else:
            make = {"create": create, "register": register, "jit": jit}[what]
            list(pool.map(lambda name: make(name, sys.argv[4:]), names))
    print(f"{time.monotonic() - started:.3f}")


main()
