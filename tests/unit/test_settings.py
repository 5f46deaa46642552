"""What processes outside of hooks know of a unit's state."""

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import settings
from errors import HostError
from models import BaseImage, Flavor, RepoPolicy, VirtualMachineResources
from naming import Identity
from programs import agent
from proxies import ProxyConfig
from tests.support.fakes import IDENTITY, state

UNIT = f"{IDENTITY.app_name}/{IDENTITY.unit_number}"
PROXIES = ProxyConfig("http://user:word@proxy.example:3128", None, "10.0.0.0/8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings, "FOLDER", tmp_path)
    return tmp_path


def test_what_is_saved_is_loaded(folder: Path) -> None:
    """A process outside of hooks reads what the last hook wrote, which only root can read."""
    saved = state(
        proxies=PROXIES,
        runner_proxies=ProxyConfig("http://runners.example:3128", "http://runners.example:3128"),
        ca_certificates=("one\n",),
        virtual_machines=3,
        extra_packages=("cmake", "g++"),
        image_script="#!/bin/sh\necho 'größe'\n",
        github_url="https://github.example.com",
        cached_actions=("actions/checkout@v5",),
    )
    values = vars(settings.image_build(saved))
    assert all(value for name, value in values.items()), "an option that is not part of this test"

    assert settings.save(saved, IDENTITY)
    assert not settings.save(saved, IDENTITY)

    assert settings.load(UNIT) == settings.Settings(IDENTITY, 3, (settings.image_build(saved),))
    assert stat.S_IMODE(settings.file_of(UNIT).stat().st_mode) == 0o600


def test_settings_of_an_earlier_version_have_one_proxy(folder: Path) -> None:
    """Until the next hook writes the file again, the image is built with the proxies that it names."""
    settings.save(state(proxies=PROXIES), IDENTITY)
    document = json.loads(settings.file_of(UNIT).read_text())
    [document["image"]] = document.pop("images")
    del document["image"]["runner_proxies"]
    settings.file_of(UNIT).write_text(json.dumps(document))

    assert settings.load(UNIT).images[0].runner_proxies == PROXIES


def test_no_token_is_saved(folder: Path) -> None:
    """The file has no credential of GitHub, of the policy service, or of the Docker mirror."""
    policy = RepoPolicy("https://policy.example", "MARKED-policy")
    settings.save(
        state(token="MARKED-token", repo_policy=policy, dockerhub_mirror="https://user:MARKED@mirror.example"), IDENTITY
    )

    assert "MARKED" not in settings.file_of(UNIT).read_text()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{}",
        '{"application": "app"}',
        "\xff",
        '{"image": {}}',
        '{"application": "a", "unit": 0, "model": "m", "runners": 1, "images": []}',
    ],
)
def test_damaged_settings_are_named(folder: Path, text: str | None) -> None:
    """A file that is missing or damaged is an error with the file's name, not a traceback in the journal."""
    if text is not None:
        settings.file_of(UNIT).write_text(text)

    with pytest.raises(HostError, match=r"settings\.app-0\.json"):
        settings.load(UNIT)


def test_settings_of_an_earlier_version_are_loaded(folder: Path) -> None:
    """A build that starts between the upgrade and its first hook builds the standard image."""
    settings.save(
        state(cached_actions=("actions/checkout@v5",), extra_packages=("cmake",), image_script="#!"), IDENTITY
    )
    file = settings.file_of(UNIT)
    document = json.loads(file.read_text())
    [document["image"]] = document.pop("images")
    for name in ("extra_packages", "script", "github_url", "cached_actions"):
        del document["image"][name]
    file.write_text(json.dumps(document))

    assert settings.load(UNIT).images == (settings.image_build(state(github_url="https://github.com")),)


def test_files_of_earlier_versions_are_removed(folder: Path) -> None:
    """Saving and removing settings remove the files that earlier versions wrote, and those of no other unit."""
    other = replace(IDENTITY, unit_number=1)
    settings.save(state(), other)
    for action in (lambda: settings.save(state(), IDENTITY), lambda: settings.remove(UNIT)):
        for name in ("build-image.json", "build-image.app-0.json", "build-image.app-1.json"):
            (folder / name).touch()
        action()
        assert {path.name for path in folder.glob("build-image*")} == {"build-image.app-1.json"}

    assert settings.remove(UNIT) == []
    assert settings.load("app/1").identity == Identity("app", 1, IDENTITY.model_hash)


def test_what_a_killed_write_left_is_removed(folder: Path) -> None:
    """It may have a proxy's password: the next write removes it, and so does the removal. Other units' files stay."""
    place = settings.file_of(UNIT)
    left, other = (settings.file_of(unit).with_name(f".{settings.file_of(unit).name}.x1y2") for unit in (UNIT, "app/1"))
    other.touch()
    for action in (lambda: settings.save(state(), IDENTITY), lambda: settings.remove(UNIT)):
        left.touch()
        action()
        assert set(folder.iterdir()) <= {place, other}

    assert list(folder.iterdir()) == [other]


def test_the_watcher_follows_a_changed_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of runners is read at each event, so that the watcher needs no restart when it changes."""

    def ended(managed: Any, _: float) -> Any:
        assert [name for name in ("other", f"{IDENTITY.prefix}0a") if managed(name)] == [f"{IDENTITY.prefix}0a"]
        yield set()
        settings.save(state(virtual_machines=5), IDENTITY)
        yield set()

    settings.save(state(virtual_machines=2), IDENTITY)
    counts: list[int] = []
    monkeypatch.setattr("programs.agent.events.ended", ended)
    monkeypatch.setattr(agent, "replace", lambda _, __, wanted, ___: counts.append(wanted))
    monkeypatch.setattr(agent, "LxdClient", lambda: None)

    agent.watch(UNIT, IDENTITY.manages, agent.Starter("service"))

    assert counts == [2, 5]


def flavored(*base_images: BaseImage) -> tuple[Flavor, ...]:
    resources = VirtualMachineResources(2, "7GiB", "10GiB")
    return tuple(Flavor(f"f{number}", resources, item, (), 1, 1) for number, item in enumerate(base_images))


@pytest.mark.parametrize(
    ("base_images", "aliases"),
    [
        ((), ["jammy"]),
        ((BaseImage.NOBLE, BaseImage.JAMMY, BaseImage.NOBLE), ["jammy", "noble"]),
        ((BaseImage.NOBLE,), ["noble"]),
    ],
)
def test_each_base_image_is_built_once(folder: Path, base_images: tuple[BaseImage, ...], aliases: list[str]) -> None:
    """One image for each base image that a flavour has; all are built from the same options."""
    saved = state(base_image=BaseImage.JAMMY, given_flavors=flavored(*base_images), extra_packages=("cmake",))
    settings.save(saved, IDENTITY)

    found = settings.load(UNIT).images

    assert [build.alias for build in found] == aliases
    assert len({build.additions for build in found}) == len({build.source for build in found}) == 1
