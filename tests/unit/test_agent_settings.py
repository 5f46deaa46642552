"""The file that hands the agent its credentials."""

import json
from pathlib import Path
from typing import Any

import pytest

import agent_settings
import redaction
from agent_settings import AgentFlavor, AgentSettings
from models import GithubOrg, GithubPath, GithubRepo
from naming import Identity
from tests.support.fakes import state

IDENTITY = Identity("app", 0, "0123abcd")
SMALL = AgentFlavor("small", ("self-hosted", "app"), 3, 1, 2)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_settings, "LOCKS", tmp_path)


def made(path: GithubPath = GithubRepo("org", "repo"), end: float | None = 5.5) -> AgentSettings:  # noqa: B008
    proxies = {"https_proxy": "http://user:proxy-password@proxy.example:3128"}
    return AgentSettings(
        IDENTITY, "https://github.com", path, "ghs_agentsecret", end, ("PEM",), proxies, (SMALL,), True
    )


@pytest.mark.parametrize("path", [GithubRepo("org", "repo"), GithubOrg("org", "builders")])
@pytest.mark.parametrize("end", [None, 5.5])
def test_what_is_saved_is_loaded(path: GithubPath, end: float | None) -> None:
    """Every field, in a file that only root can read."""
    agent_settings.save(made(path, end))

    assert agent_settings.load(IDENTITY.unit) == made(path, end)
    assert agent_settings.file_of(IDENTITY.unit).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "\x00", "[" * 100_000])
def test_a_damaged_file_gives_no_settings(text: str) -> None:
    """The agent then waits for the next reconcile, which writes it anew."""
    agent_settings.file_of(IDENTITY.unit).write_text(text)

    assert agent_settings.load(IDENTITY.unit) is None


@pytest.mark.parametrize("name", ["identity", "github_url", "path", "token", "token_end", "flavors", "proxies"])
@pytest.mark.parametrize("value", [..., [1], {"a": 1}, "\ud800", 1e999])
def test_a_field_that_cannot_be_is_no_error(name: str, value: Any) -> None:
    """Whatever a field holds, or whether it is there: the file says something usable, or nothing."""
    agent_settings.save(made())
    path = agent_settings.file_of(IDENTITY.unit)
    document = json.loads(path.read_text())
    del document[name]
    path.write_text(json.dumps(document if value is ... else {**document, name: value}))

    found = agent_settings.load(IDENTITY.unit)

    if value is ... or name in ("identity", "path", "flavors", "token_end"):
        assert found is None


@pytest.mark.parametrize("related", [True, False])
def test_who_measures_jobs(related: bool) -> None:
    """With the relation cos-agent reconciles record how long jobs take, without it the agent: no job counts twice."""
    found = agent_settings.of_state(state(issue_metrics=related), IDENTITY, "ghs_agentsecret", None, {})

    assert found.measures_jobs is not related


def test_no_secret_is_shown() -> None:
    """The token and the passwords of proxies are masked, and are in no text of the settings."""
    found = made()

    shown = redaction.redact(f"{found} {found.token} {found.proxies}")

    assert "agentsecret" not in shown
    assert "proxy-password" not in shown


def test_it_is_removed_once() -> None:
    """A second removal finds nothing."""
    agent_settings.save(made())

    assert agent_settings.remove(IDENTITY.unit) == [str(agent_settings.file_of(IDENTITY.unit))]
    assert agent_settings.remove(IDENTITY.unit) == []


def test_what_a_killed_write_left_is_removed() -> None:
    """It has the token too; files of other units stay."""
    agent_settings.save(made())
    place = agent_settings.file_of(IDENTITY.unit)
    left, other = place.with_name(f".{place.name}.x1y2"), place.with_name(".agent.app-01.json.x1y2")
    left.write_text("ghs_agentsecret")
    other.write_text("")

    assert agent_settings.remove(IDENTITY.unit) == [str(place), str(left)]
    assert other.exists()
    assert not left.exists()


def test_what_a_killed_write_left_goes_with_the_next_one() -> None:
    """Also while the settings do not change; those of another unit stay."""
    place = agent_settings.file_of(IDENTITY.unit)
    left, other = place.with_name(f".{place.name}.x1y2"), place.with_name(".agent.app-01.json.x1y2")
    for _ in range(2):
        left.write_text("ghs_agentsecret")
        other.write_text("")

        agent_settings.save(made())

        assert sorted(place.parent.iterdir()) == sorted([place, other])
