"""Which arguments config.sh gets, how it gets the token, and how the set-up of a runner ends with it."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import provision
from models import GithubOrg, GithubRepo
from option_values import parse_group, parse_labels
from tests.support.scripts import AGENT_FOLDER, HOSTILE, PLAIN, Shell, content, part


@pytest.mark.parametrize("value", [*HOSTILE, "a\ntouch canary"])
def test_registration_gets_values_as_they_are(shell: Shell, value: str) -> None:
    """URL, labels, name and group reach config.sh as one argument each, and run nothing."""
    shell.stub("config.sh", folder=shell.agent)
    (shell.folder / "token").write_text("AABBCC")

    done = shell.run(
        shell.render("register.sh.j2", url=f"https://host/{value}", labels=f"runner,{value}", name=value, group=value)
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert shell.arguments("config.sh") == [
        "--url",
        f"https://host/{value}",
        "--ephemeral",
        "--unattended",
        "--labels",
        f"runner,{value}",
        "--name",
        value,
        "--runnergroup",
        value,
    ]
    assert not (shell.agent / "canary").exists()
    assert not (shell.folder / "canary").exists()


ACCEPTED = [
    "ubuntu-22.04",
    "gpu:a100",
    "größe ラベル",
    'it\'s "big"',
    "$HOME ${HOME} $(touch canary) `touch canary`",
    "a\\b\\",
    "a;b&c|d>e<f",
    "* ~ ? [a] {a} !x #y",
    "{{ 7 * 7 }}{% raw %}",
]


@pytest.mark.parametrize("value", ACCEPTED)
def test_accepted_labels_and_groups_reach_config_sh(value: str, tmp_path: Path) -> None:
    """Bash gives config.sh every label and group that the options accept exactly as it was written."""
    config = replace(
        PLAIN,
        labels=("runner", *parse_labels(value)),
        path=GithubOrg("octo-org", parse_group(value)),
    )
    command = (content(f"{AGENT_FOLDER}/.register.sh", config) or "").rstrip().splitlines()[-1]
    script = command.replace("exec ./config.sh", "printf '%s\\0'", 1)

    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)

    arguments = done.stdout.split("\0")
    assert arguments[arguments.index("--labels") + 1] == f"runner,{value}"
    assert arguments[arguments.index("--runnergroup") + 1] == value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "url", "group"),
    [
        (GithubRepo("octo-org", "demo"), "https://github.com/octo-org/demo", None),
        (GithubOrg("octo-org", "big machines"), "https://github.com/octo-org", "'big machines'"),
    ],
    ids=["repository", "organisation"],
)
def test_registration_of_repository_and_organisation(path: GithubRepo | GithubOrg, url: str, group: str | None) -> None:
    """An organisation's runner joins its group, a repository's has none."""
    script = content(f"{AGENT_FOLDER}/.register.sh", replace(PLAIN, path=path)) or ""
    command = f"exec ./config.sh --url {url} --ephemeral --unattended --labels runner,jammy,gpu --name runner-0-abc"

    assert script.rstrip().splitlines()[-1] == command + (f" --runnergroup {group}" if group else "")


def test_registration_token(shell: Shell) -> None:
    """The token is deleted with its file and given to config.sh in the environment, never as an argument."""
    shell.stub("config.sh", f'[ ! -e "{shell.folder}/token" ] && echo "$ACTIONS_RUNNER_INPUT_TOKEN"', shell.agent)
    (shell.folder / "token").write_text("AABBCC")

    done = shell.run(shell.render("register.sh.j2"))

    assert (done.returncode, done.stdout) == (0, "AABBCC\n")
    assert "AABBCC" not in " ".join(shell.arguments("config.sh"))
    assert not (shell.folder / "token").exists()


def test_registration_without_a_token_fails(shell: Shell) -> None:
    """Where the token's file is missing nothing is registered, and the step fails."""
    shell.stub("config.sh", folder=shell.agent)

    assert shell.run(shell.render("register.sh.j2")).returncode != 0
    assert shell.arguments("config.sh") == []


def test_registration_goes_through_the_proxies(shell: Shell) -> None:
    """config.sh sees the proxies as they are."""
    shell.stub("config.sh", 'echo "$HTTPS_PROXY $no_proxy"', shell.agent)
    (shell.folder / "token").write_text("AABBCC")
    proxies = {"HTTPS_PROXY": "http://u:p$(x)@h;y", "no_proxy": "a b"}

    assert shell.run(shell.render("register.sh.j2", proxies=proxies)).stdout == "http://u:p$(x)@h;y a b\n"


def test_a_registration_that_hangs_is_ended(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registration that does not end fails at its time limit, and the error names the limit."""
    monkeypatch.setitem(provision.FIXED, "register_timeout", 0.1)
    shell.stub("setpriv", "exec /bin/sleep 60")
    setup = content("/root/github-runner/setup.sh") or ""

    done = shell.run(part(setup, "timeout --kill-after=10 0.1", "}"))

    assert (done.returncode, done.stderr) == (provision.NOT_REGISTERED, "not done within 0.1 s\n")


def test_a_registration_that_had_to_be_killed_is_told_as_one_that_hangs(shell: Shell) -> None:
    """timeout(1) ends with 137 where the registration did not end by SIGTERM."""
    shell.stub("timeout", "exit 137")
    setup = content("/root/github-runner/setup.sh") or ""

    done = shell.run(part(setup, "timeout --kill-after=10 120", "}"))

    assert (done.returncode, done.stderr) == (provision.NOT_REGISTERED, "not done within 120 s\n")


@pytest.mark.parametrize("failing", [False, True])
def test_set_up_ends_with_the_registration(shell: Shell, failing: bool) -> None:
    """The runner registers as ubuntu; a failed registration has its own exit code, and its output is shown."""
    shell.stub("setpriv", f"echo no such group >&2; exit {int(failing)}")
    setup = content("/root/github-runner/setup.sh") or ""

    done = shell.run(part(setup, "timeout --kill-after=10 120", "}"))

    assert done.returncode == (provision.NOT_REGISTERED if failing else 0)
    assert done.stderr == "no such group\n"
    assert shell.arguments("setpriv") == [
        *("--reuid=1000", "--regid=1000", "--clear-groups"),
        *("env", "HOME=/home/ubuntu", "/home/ubuntu/github-runner/.register.sh"),
    ]
