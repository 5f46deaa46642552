"""The sandbox's Juju is as strict as Juju: order, buffering, failure, one at a time. With a charm of a few lines."""

import ast
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.juju.unit import JujuError, Unit
from sandbox.lab.machine import Machine
from sandbox.lab.pack import pack
from tests.support.deployment import wait_for

CHARM = """#!/usr/bin/env python3
import json, os, subprocess, sys, time

def tool(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout

hook = os.environ["JUJU_DISPATCH_PATH"].rsplit("/", 1)[-1]
with open("/tmp/hooks", "a") as log:
    log.write(f"start {hook}\\n")
with open("/tmp/environments", "a") as log:
    log.write(f"{hook} {' '.join(sorted(os.environ))}\\n")
with open("/proc/self/mountinfo") as mounts, open("/tmp/mounts", "a") as log:
    log.write(f"{hook} {' '.join(sorted(m.split()[4] for m in mounts if m.split()[4].startswith('/srv/')))}\\n")
config = json.loads(tool("config-get", "--format=json"))
for number in json.loads(tool("relation-ids", "site", "--format=json")):
    tool("relation-set", "-r", number, f"seen={config['text']}")
if hook == "slow":
    time.sleep(2)
marker = f"/var/tmp/{config['text']}"
if hook == "config-changed" and config["text"] in ("hang", "killed", "reboot-now") and not os.path.exists(marker):
    open(marker, "w").close()
    if config["text"] == "hang":
        time.sleep(60)
    if config["text"] == "killed":
        os.kill(os.getpid(), 9)
    tool("juju-reboot", "--now")
if hook == "stop":
    subprocess.run(["systemctl", "stop", "holder"])
if hook == "show":
    import yaml
    tool("action-set", f"process={sys.executable} {sys.argv[0]}", f"pythonpath={os.environ['PYTHONPATH']}")
    tool("action-set", f"yaml={yaml.__file__}")
    tool("action-set", f"status={tool('status-get', '--include-data', '--format=json')}")
    tool("action-set", f"text={config['text']}", f"environment={sorted(os.environ)}")
    if config["text"] == "bad":
        tool("action-fail", "the text is bad")
tool("status-set", "active", f"after {hook}")
with open("/tmp/hooks", "a") as log:
    log.write(f"end {hook}\\n")
codes = {"fail": 1, "exit-137": 137}
sys.exit(codes.get(config["text"], 0) if hook == "config-changed" else 0)
"""


@pytest.fixture(scope="module")
def tiny(lxd: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny charm, packed."""
    source = tmp_path_factory.mktemp("tiny")
    (source / "src").mkdir()
    (source / "src/charm.py").write_text(CHARM)
    (source / "src/charm.py").chmod(0o755)
    (source / "metadata.yaml").write_text(
        "name: tiny\nsummary: s\ndescription: d\nrequires:\n  site:\n    interface: site\n"
        "storage:\n"
        "  data: {type: filesystem, location: /srv/data}\n"
        "  scratch: {type: filesystem, location: /srv/scratch}\n"
    )
    (source / "config.yaml").write_text(
        "options:\n"
        "  text: {type: string, default: a, description: d}\n"
        "  number: {type: int, default: 1, description: d}\n"
    )
    (source / "actions.yaml").write_text("show:\n  description: d\n  additionalProperties: false\n")
    (source / "requirements.txt").write_text("PyYAML\n")
    return pack(source, tmp_path_factory.mktemp("packed") / "charm")


@pytest.fixture(scope="module")
def unit(tiny: Path) -> Iterator[Unit]:
    """The tiny charm, deployed."""
    machine = Machine("tiny")
    machine.destroy()
    machine.create()
    found = Unit(machine, app="tiny")
    found.deploy(tiny)
    yield found
    machine.destroy()


@pytest.fixture
def second(unit: Unit) -> Iterator[Unit]:
    """A machine for a further unit."""
    machine = Machine("tiny-1")
    machine.destroy()
    machine.create()
    yield Unit(machine, app="tiny", number=1)
    machine.destroy()


def hooks(unit: Unit) -> list[str]:
    return unit.machine.exec("cat", "/tmp/hooks").splitlines()


def ends(unit: Unit) -> list[str]:
    return [line.split()[1] for line in hooks(unit) if line.startswith("end")]


def mounts(unit: Unit) -> list[tuple[str, list[str]]]:
    """Each hook since the last boot with the storage that was mounted when it began."""
    lines = [line.split() for line in unit.machine.exec("cat", "/tmp/mounts").splitlines()]
    return [(words[0], words[1:]) for words in lines]


def test_hooks_of_a_deployment_come_in_jujus_order(unit: Unit) -> None:
    """Storage first, then install, leader-elected, config-changed, start; and the status is the charm's."""
    assert ends(unit)[:2] == ["data-storage-attached", "scratch-storage-attached"]
    assert ends(unit)[2:6] == ["install", "leader-elected", "config-changed", "start"]
    assert (unit.status()["status"], unit.status()["message"]) == ("active", "after start")


@pytest.mark.parametrize(("values", "words"), [({"nope": 1}, "unknown option"), ({"number": "x"}, "int")])
def test_options_are_checked_before_any_hook(unit: Unit, values: dict[str, object], words: str) -> None:
    """Juju refuses unknown options and wrong types; the charm does not hear of them."""
    before = hooks(unit)

    with pytest.raises(JujuError, match=words):
        unit.set_config(values)
    assert hooks(unit) == before


def test_relation_writes_of_a_failed_hook_are_dropped(unit: Unit) -> None:
    """Buffered until the hook succeeds; the unit is in error, no other hook runs, `resolved` runs it again."""
    unit.model_config({"automatically-retry-hooks": "false"})
    relation = unit.integrate("site", {"key": "value"})
    assert unit.relation_data(relation)["local_unit"]["seen"] == "a"

    found = unit.set_config({"text": "fail"})

    assert (found["status"], found["message"]) == ("error", 'hook failed: "config-changed"')
    assert unit.relation_data(relation)["local_unit"]["seen"] == "a"
    count = len(hooks(unit))
    unit.update_status()
    assert "update-status" not in " ".join(hooks(unit)[count:])
    unit.set_config({"text": "b"})
    unit.resolved()
    assert unit.status()["status"] == "active"
    assert unit.relation_data(relation)["local_unit"]["seen"] == "b"
    unit.remove_relation(relation)
    unit.model_config({"automatically-retry-hooks": "true"})


def test_a_failed_hook_runs_again_by_itself(unit: Unit) -> None:
    """Juju tries again after five seconds, with the options of then, and goes on with what has waited."""
    assert unit.set_config({"text": "fail"})["status"] == "error"
    assert unit.set_config({"text": "b"})["status"] == "error"

    wait_for(lambda: unit.status()["status"] == "active", "the second try", 20)

    assert unit.wait_idle()["queue"] == []


def test_actions_give_results_and_fail(unit: Unit) -> None:
    """Results and the reason of a failure come back; unknown actions and parameters are refused."""
    good = unit.run("show")
    assert good["status"] == "completed"
    assert good["results"]["text"] == "b"
    assert "JUJU_ACTION_NAME" in good["results"]["environment"]

    unit.set_config({"text": "bad"})
    bad = unit.run("show")
    unit.set_config({"text": "b"})

    assert (bad["status"], bad["message"]) == ("failed", "the text is bad")
    with pytest.raises(JujuError):
        unit.run("nope")
    with pytest.raises(JujuError):
        unit.run("show", {"more": "1"})


def test_the_environment_is_jujus_and_nothing_else(unit: Unit) -> None:
    """What the machine or the caller has in its environment does not reach the charm."""
    names = set(ast.literal_eval(unit.run("show")["results"]["environment"]))

    juju = {name for name in names if name.startswith("JUJU_")}
    # PWD, OLDPWD, SHLVL and _ come from the shell of the dispatch script, LC_CTYPE from Python, which coerces it.
    shell = {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE", "PYTHONPATH", "LD_LIBRARY_PATH"}
    assert names - juju - shell == {
        *("APT_LISTCHANGES_FRONTEND", "CHARM_DIR", "CLOUD_API_VERSION", "DEBIAN_FRONTEND"),
        *("LANG", "PATH", "TERM"),
    }
    assert juju >= {
        *("JUJU_ACTION_NAME", "JUJU_ACTION_TAG", "JUJU_ACTION_UUID", "JUJU_CHARM_DIR", "JUJU_CHARM_HTTP_PROXY"),
        *(
            "JUJU_CONTEXT_ID",
            "JUJU_DISPATCH_PATH",
            "JUJU_HOOK_NAME",
            "JUJU_MODEL_UUID",
            "JUJU_UNIT_NAME",
            "JUJU_VERSION",
        ),
    }


def test_dispatch_is_charmcrafts(unit: Unit) -> None:
    """The interpreter is the environment's, which finds the packages; all paths are absolute, lib comes before src."""
    results = unit.run("show")["results"]

    folder = unit.charm_dir
    assert results["process"] == f"{folder}/venv/bin/python {folder}/src/charm.py"
    assert results["pythonpath"] == f"{folder}/lib:{folder}/src"
    assert results["yaml"] == f"{folder}/venv/lib/python3.11/site-packages/yaml/__init__.py"


def test_no_process_of_a_charm_has_a_home(unit: Unit) -> None:
    """Juju sets no HOME, neither in hooks nor in actions nor for juju-exec."""
    unit.update_status()
    unit.run("show")
    unit.exec("JUJU_DISPATCH_PATH=command ./dispatch")

    lines = [line.split() for line in unit.machine.exec("cat", "/tmp/environments").splitlines()]
    assert {"update-status", "show", "command"} <= {words[0] for words in lines}
    assert not any("HOME" in words for words in lines)


def test_in_error_actions_run_and_see_the_error(unit: Unit) -> None:
    """While a hook has failed actions run all the same, and status-get tells of the failure, not the charm's status."""
    unit.model_config({"automatically-retry-hooks": "false"})
    unit.set_config({"text": "fail"})

    task = unit.run("show")

    assert task["status"] == "completed"
    seen = json.loads(task["results"]["status"])
    assert (seen["status"], seen["message"]) == ("error", 'hook failed: "config-changed"')
    assert unit.status()["status"] == "error"
    unit.set_config({"text": "b"})
    assert unit.resolved()["status"] == "active"
    unit.model_config({"automatically-retry-hooks": "true"})


def test_a_killed_hook_runs_again(unit: Unit) -> None:
    """A hook that a signal killed is queued again, which is no error; one that exits with 137 itself has failed."""
    count = len(hooks(unit))
    assert unit.set_config({"text": "killed"})["status"] == "active"
    assert hooks(unit)[count:] == ["start config-changed", "start config-changed", "end config-changed"]
    assert 'hook "config-changed" was terminated' in unit.debug_log()

    assert unit.set_config({"text": "exit-137"})["status"] == "error"
    unit.set_config({"text": "b"})
    assert unit.resolved()["status"] == "active"


def test_what_a_failed_command_wrote_counts(unit: Unit) -> None:
    """juju-exec hands on the exit code and keeps what the command wrote, unless a signal ended it."""
    relation = unit.integrate("site")

    assert unit.exec(f"relation-set -r {relation} kept=yes; exit 3").returncode == 3
    killed = unit.exec(f"relation-set -r {relation} kept=no; kill -KILL $$")

    assert (killed.returncode, killed.stderr) == (1, "ERROR signal: killed\n")
    assert unit.relation_data(relation)["local_unit"]["kept"] == "yes"
    unit.remove_relation(relation)


DOWN = {
    "refused": "ERROR dialing juju run socket: dial unix /var/lib/juju/agents/unit-tiny-0/run.socket: "
    "connect: connection refused\n",
    "unregistered": "ERROR no runner is registered for unit tiny/0\n",
    "aborted": "ERROR command execution aborted\n",
}


@pytest.mark.parametrize("how", DOWN)
def test_an_agent_that_is_down_runs_nothing(unit: Unit, how: str) -> None:
    """juju-exec fails, actions time out, hooks wait; all that was due runs when the agent is back."""
    before = hooks(unit)
    unit.agent_down(how)
    refused = unit.exec("touch /tmp/never")
    assert (refused.returncode, refused.stderr) == (1, DOWN[how])
    with pytest.raises(JujuError, match="timed out"):
        unit.run("show")
    assert unit.set_config({"number": len(DOWN[how])})["agent"] == "lost"
    assert hooks(unit) == before

    assert unit.agent_up()["agent"] == "idle"

    assert hooks(unit)[len(before) :] == ["start config-changed", "end config-changed"]
    assert unit.machine.call("test", "-e", "/tmp/never").returncode == 1


def test_one_thing_at_a_time(unit: Unit) -> None:
    """A hook waits for the command that runs, so that no two overlap."""
    slow = threading.Thread(target=unit.exec, args=("JUJU_DISPATCH_PATH=slow ./dispatch",))
    slow.start()
    wait_for(lambda: hooks(unit)[-1:] == ["start slow"], "the slow command")
    unit.update_status()
    slow.join()

    lines = hooks(unit)
    assert lines[lines.index("start slow") + 1] == "end slow"


def test_juju_exec_runs_outside_its_callers_control_group(unit: Unit) -> None:
    """juju-exec is a client only: ending the service that called it does not end the command."""
    command = "touch /tmp/begun; sleep 2; touch /tmp/survived"
    unit.machine.exec("systemd-run", "-q", "--unit=caller", "juju-exec", unit.name, command)
    wait_for(lambda: unit.machine.call("test", "-e", "/tmp/begun").returncode == 0, "the command's beginning")
    unit.machine.exec("systemctl", "kill", "--signal=KILL", "caller")

    wait_for(lambda: unit.machine.call("test", "-e", "/tmp/survived").returncode == 0, "the command's end", 10)
    assert unit.exec("exit 3").returncode == 3


def test_secrets_need_a_grant(unit: Unit) -> None:
    """A user secret is read only by an application that it was granted to; no hook fires for the grant."""
    uri = unit.add_secret("mine", {"key": "value"})
    before = hooks(unit)
    assert unit.exec(f"secret-get {uri}").stderr == "ERROR permission denied\n"

    unit.grant_secret("mine")

    assert unit.status()["queue"] == []
    assert hooks(unit) == before
    assert json.loads(unit.exec(f"secret-get {uri} --format=json").stdout) == {"key": "value"}


def test_secret_get_fails_for_other_reasons_too(unit: Unit) -> None:
    """A secret that is gone is not found, and a lost controller is neither that nor a missing grant."""
    uri = unit.add_secret("gone", {"key": "value"})
    unit.grant_secret("gone")
    unit.fail_tool("secret-get", "cannot access secret: connection is shut down")
    lost = unit.exec(f"secret-get {uri}")
    assert (lost.returncode, lost.stderr) == (1, "ERROR cannot access secret: connection is shut down\n")

    unit.fail_tool("secret-get")

    assert unit.exec(f"secret-get {uri}").returncode == 0
    unit.remove_secret("gone")
    assert unit.exec(f"secret-get {uri}").stderr == f'ERROR secret "{uri.removeprefix("secret:")}" not found\n'


def test_a_new_address_fires_config_changed(unit: Unit) -> None:
    """config-changed follows when the machine's address has changed, and the databags have the new one."""
    relation = unit.integrate("site")
    route = "ip address {0} 198.51.100.7/32 dev eth0 && ip route {0} 192.0.2.1/32 dev eth0 src 198.51.100.7"
    unit.machine.exec("sh", "-c", route.format("add"))
    count = len(ends(unit))

    unit.update_status()

    assert ends(unit)[count:] == ["update-status", "config-changed"]
    assert unit.relation_data(relation)["local_unit"]["ingress-address"] == "198.51.100.7"
    unit.machine.exec("ip", "address", "delete", "198.51.100.7/32", "dev", "eth0")
    unit.update_status()
    assert unit.relation_data(relation)["local_unit"]["ingress-address"] == unit.machine.address()
    unit.remove_relation(relation)


def test_apt_is_busy_for_a_while(unit: Unit) -> None:
    """The locks that a machine's first minutes hold stop both installing and updating, until they are released."""
    commands = (("apt-get", "install", "-y", "dpkg"), ("apt-get", "update"))
    unit.machine.hold_apt_locks(60)
    locks = [unit.machine.call(*command).stderr for command in commands]
    unit.machine.release_apt_locks()

    assert "Could not get lock /var/lib/dpkg/lock-frontend" in locks[0]
    assert "Could not get lock /var/lib/apt/lists/lock" in locks[1]
    assert unit.machine.call(*commands[0], "--download-only").returncode == 0


def test_a_new_revision_of_a_secret_is_told_and_read_on_demand(unit: Unit) -> None:
    """secret-changed fires for a secret that was read before; the old content stays until --refresh."""
    uri = unit.add_secret("other", {"key": "one"})
    unit.grant_secret("other")
    unit.update_secret("other", {"key": "two"})
    assert "end secret-changed" not in hooks(unit)
    assert json.loads(unit.exec(f"secret-get {uri} --format=json").stdout) == {"key": "two"}

    unit.update_secret("other", {"key": "three"})

    assert hooks(unit)[-1] == "end secret-changed"
    assert json.loads(unit.exec(f"secret-get {uri} --format=json").stdout) == {"key": "two"}
    assert json.loads(unit.exec(f"secret-get {uri} --refresh --format=json").stdout) == {"key": "three"}


def test_update_status_follows_the_models_clock(unit: Unit) -> None:
    """The interval is the model's, between one minute and one hour, and starts anew when it changes."""
    with pytest.raises(JujuError, match="less than 1m0s"):
        unit.model_config({"update-status-hook-interval": "10s"})

    unit.model_config({"update-status-hook-interval": "10m"})

    timer = "juju-sandbox-update-status.timer"
    assert "OnUnitActiveSec=600" in unit.machine.exec("systemctl", "cat", timer)
    assert unit.machine.exec("systemctl", "is-active", timer) == "active\n"


def test_juju_reboot_reboots_and_start_follows(unit: Unit) -> None:
    """The reboot comes after the hook, and `start` after the reboot, with storage mounted again."""
    mark = unit.machine.boot_mark()
    unit.exec("juju-reboot")
    unit.machine.wait_reboot(mark)
    unit.wait_idle()

    assert unit.status()["message"] == "after start"
    assert mounts(unit) == [("start", ["/srv/data", "/srv/scratch"])]


def test_storage_is_a_folder_of_the_machines_disk(unit: Unit) -> None:
    """Provider rootfs: a bind mount of the same filesystem, which os.path.ismount does not recognise, and no fstab."""
    assert unit.status()["storage"]["data/0"]["mounted"]
    told = unit.machine.exec("python3", "-c", "import os; print(os.path.ismount('/srv/data'))")

    assert told == "False\n"
    assert "/srv/data" not in unit.machine.exec("cat", "/etc/fstab")


def test_a_reboot_comes_late_and_storage_later(unit: Unit) -> None:
    """Until the reboot the agent serves nobody; after it `start` runs without storage, whose mount fires no hook."""
    unit.reboot_mode("delayed", 3)
    unit.late_storage(4)
    mark = unit.machine.boot_mark()
    assert unit.exec("juju-reboot").returncode == 0
    assert unit.status()["agent"] == "rebooting"
    assert unit.exec("true").stderr == DOWN["refused"]

    unit.machine.wait_reboot(mark)
    unit.wait_idle()
    unit.reboot_mode("normal")

    assert mounts(unit) == [("start", [])]
    wait_for(lambda: all(record["mounted"] for record in unit.status()["storage"].values()), "the storage", 20)
    assert ends(unit) == ["start"]


def test_a_reboot_may_be_lost(unit: Unit) -> None:
    """juju-reboot exits with 0, nothing happens, and the unit goes on."""
    unit.reboot_mode("lost")
    mark = unit.machine.boot_mark()

    assert unit.exec("juju-reboot").returncode == 0

    assert unit.update_status()["message"] == "after update-status"
    assert unit.machine.boot_mark() == mark
    unit.reboot_mode("normal")


def test_a_hook_that_reboots_now_runs_again_afterwards(unit: Unit) -> None:
    """juju-reboot --now kills its hook, which starts over after the reboot, before `start`."""
    found = unit.set_config({"text": "reboot-now"})

    # The machine empties /tmp when it boots, so what is there came afterwards.
    assert ends(unit) == ["config-changed", "start"]
    assert found["status"] == "active"


def test_a_hook_that_lost_power_runs_again(unit: Unit) -> None:
    """A hook that a hard reboot interrupted is run again, then `start`."""
    hanging = threading.Thread(target=unit.set_config, args=({"text": "hang"},))
    hanging.start()
    wait_for(lambda: hooks(unit)[-1:] == ["start config-changed"], "the hook's beginning")

    unit.reboot(hard=True)
    hanging.join()

    assert ends(unit) == ["config-changed", "start"]
    assert 'awaiting error resolution for "config-changed" hook' in unit.debug_log()


def test_a_further_unit_follows_the_first(unit: Unit, second: Unit, tiny: Path) -> None:
    """It is of the same model, has its application's options, secrets and relations, and is not the leader."""
    unit.set_config({"text": "common"})
    relation = unit.integrate("site", {"key": "value"})
    uri = unit.add_secret("shared", {"key": "value"})
    unit.grant_secret("shared")

    found = second.deploy_beside(unit, tiny)

    assert (found["unit"], found["message"]) == ("tiny/1", "after site-relation-changed")
    assert "leader-elected" not in ends(second)
    assert second.config()["text"]["value"] == "common"
    assert second.relation_data(relation)["units"] == {"remote-site/0": {"key": "value"}}
    assert second.exec(f"secret-get {uri}").returncode == 0
    for one, leads in ((unit, "True"), (second, "False")):
        told = one.exec("echo $JUJU_MODEL_UUID $JUJU_MACHINE_ID; is-leader").stdout.split()
        assert told == [unit.state()["model"]["uuid"], str(one.number), leads]
    unit.remove_relation(relation)


def test_variables_follow_jujus_version(unit: Unit, second: Unit, tiny: Path) -> None:
    """JUJU_SLA is 3.x's, JUJU_CHARM_TRACE_CONFIG_* is of 4; both are there without a value of use."""
    second.deploy(tiny, model_uuid=unit.state()["model"]["uuid"], juju_version="4.0.12")

    told = [one.exec("env | grep -E '^JUJU_(SLA|CHARM_TRACE|VERSION)' | sort").stdout.split() for one in (unit, second)]

    assert told[0] == ["JUJU_SLA=unsupported", "JUJU_VERSION=3.6.8"]
    traces = [f"JUJU_CHARM_TRACE_CONFIG_{name}=" for name in ("CA_CERT", "GRPC", "HTTP")]
    assert told[1] == [*traces, "JUJU_VERSION=4.0.12"]
    assert second.state()["model"]["uuid"] == unit.state()["model"]["uuid"]


def test_removal_detaches_storage_first(unit: Unit) -> None:
    """Storage is detached and unmounted before relations break, stop and remove; again and again while it is busy."""
    unit.integrate("site")
    unit.machine.exec("touch", "/srv/data/kept")
    # A process whose folder it is holds the mount until `stop` ends it.
    holder = ("systemd-run", "--quiet", "--unit=holder", "--working-directory=/srv/data", "sleep", "infinity")
    unit.machine.exec(*holder)
    count = len(mounts(unit))

    found = unit.remove_application()

    assert mounts(unit)[count:] == [
        ("data-storage-detaching", ["/srv/data", "/srv/scratch"]),
        ("scratch-storage-detaching", ["/srv/data", "/srv/scratch"]),
        ("site-relation-departed", ["/srv/data"]),
        ("site-relation-broken", ["/srv/data"]),
        ("stop", ["/srv/data"]),
        ("remove", []),
    ]
    assert found["life"] == "dead"
    assert not found["storage"]["data/0"]["mounted"]
    unit.machine.exec("test", "-e", found["storage"]["data/0"]["source"] + "/kept")
