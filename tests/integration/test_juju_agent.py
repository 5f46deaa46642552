"""The sandbox's Juju is as strict as Juju: order, buffering, failure, one at a time. With a charm of a few lines."""

import ast
import json
import threading
from collections.abc import Iterator

import pytest

from sandbox.juju.unit import JujuError, Unit
from sandbox.machine import Machine
from sandbox.pack import pack
from tests.integration.conftest import wait_for

CHARM = """#!/usr/bin/env python3
import json, os, subprocess, sys, time

def tool(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout

hook = os.environ["JUJU_DISPATCH_PATH"].rsplit("/", 1)[-1]
with open("/tmp/hooks", "a") as log:
    log.write(f"start {hook}\\n")
config = json.loads(tool("config-get", "--format=json"))
for number in json.loads(tool("relation-ids", "site", "--format=json")):
    tool("relation-set", "-r", number, f"seen={config['text']}")
if hook == "slow":
    time.sleep(2)
marker = f"/var/tmp/{config['text']}"
if hook == "config-changed" and config["text"] in ("hang", "reboot-now") and not os.path.exists(marker):
    open(marker, "w").close()
    if config["text"] == "hang":
        time.sleep(60)
    tool("juju-reboot", "--now")
if hook == "show":
    tool("action-set", f"text={config['text']}", f"environment={sorted(os.environ)}")
    if config["text"] == "bad":
        tool("action-fail", "the text is bad")
tool("status-set", "active", f"after {hook}")
with open("/tmp/hooks", "a") as log:
    log.write(f"end {hook}\\n")
sys.exit(1 if config["text"] == "fail" and hook == "config-changed" else 0)
"""


@pytest.fixture(scope="module")
def unit(lxd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    """The tiny charm, deployed."""
    source = tmp_path_factory.mktemp("tiny")
    (source / "src").mkdir()
    (source / "src/charm.py").write_text(CHARM)
    (source / "src/charm.py").chmod(0o755)
    (source / "metadata.yaml").write_text(
        "name: tiny\nsummary: s\ndescription: d\nrequires:\n  site:\n    interface: site\n"
    )
    (source / "config.yaml").write_text(
        "options:\n"
        "  text: {type: string, default: a, description: d}\n"
        "  number: {type: int, default: 1, description: d}\n"
    )
    (source / "actions.yaml").write_text("show:\n  description: d\n  additionalProperties: false\n")
    (source / "requirements.txt").write_text("PyYAML\n")
    machine = Machine("tiny")
    machine.destroy()
    machine.create()
    found = Unit(machine, app="tiny")
    found.deploy(pack(source, tmp_path_factory.mktemp("packed") / "charm"))
    yield found
    machine.destroy()


def hooks(unit: Unit) -> list[str]:
    return unit.machine.exec("cat", "/tmp/hooks").splitlines()


def test_hooks_of_a_deployment_come_in_jujus_order(unit: Unit) -> None:
    """install, leader-elected, config-changed, start; and the status is the charm's."""
    ends = [line.split()[1] for line in hooks(unit) if line.startswith("end")]

    assert ends[:4] == ["install", "leader-elected", "config-changed", "start"]
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
    shell = {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE", "PYTHONPATH"}
    assert names - juju - shell == {
        *("APT_LISTCHANGES_FRONTEND", "CHARM_DIR", "CLOUD_API_VERSION", "DEBIAN_FRONTEND"),
        *("HOME", "LANG", "PATH", "TERM"),
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


def test_one_thing_at_a_time(unit: Unit) -> None:
    """A hook waits for the command that runs, so that no two overlap."""
    slow = threading.Thread(target=unit.exec, args=("JUJU_DISPATCH_PATH=slow ./dispatch",))
    slow.start()
    wait_for(lambda: hooks(unit)[-1] == "start slow", "the slow command")
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
    """A user secret is read only by an application that it was granted to."""
    uri = unit.add_secret("mine", {"key": "value"})
    assert unit.exec(f"secret-get {uri}").returncode != 0

    unit.grant_secret("mine")

    assert json.loads(unit.exec(f"secret-get {uri} --format=json").stdout) == {"key": "value"}


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
    """The reboot comes after the hook, and `start` after the reboot."""
    mark = unit.machine.boot_mark()
    unit.exec("juju-reboot")
    unit.machine.wait_reboot(mark)
    unit.wait_idle()

    assert unit.status()["message"] == "after start"


def test_a_hook_that_reboots_now_runs_again_afterwards(unit: Unit) -> None:
    """juju-reboot --now kills its hook, which starts over after the reboot, before `start`."""
    found = unit.set_config({"text": "reboot-now"})

    # The machine empties /tmp when it boots, so what is there came afterwards.
    assert [line for line in hooks(unit) if line.startswith("end")] == ["end config-changed", "end start"]
    assert found["status"] == "active"


def test_a_hook_that_lost_power_runs_again(unit: Unit) -> None:
    """A hook that a hard reboot interrupted is run again, then `start`."""
    hanging = threading.Thread(target=unit.set_config, args=({"text": "hang"},))
    hanging.start()
    wait_for(lambda: hooks(unit)[-1] == "start config-changed", "the hook's beginning")

    unit.reboot(hard=True)
    hanging.join()

    assert [line for line in hooks(unit) if line.startswith("end")] == ["end config-changed", "end start"]
    assert 'awaiting error resolution for "config-changed" hook' in unit.debug_log()
