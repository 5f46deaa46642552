"""Names of runners and who manages them, and the fingerprint of a runner."""

import dataclasses
import re
from collections.abc import Iterator
from enum import Enum
from ipaddress import IPv4Network
from typing import Any

import pytest

from models import (
    Arch,
    GithubOrg,
    GithubRepo,
    RepoPolicy,
    RunnerSpec,
    Snap,
    SSHDebugConnection,
    VirtualMachineResources,
)
from naming import Identity, fingerprint, plain
from proxies import ProxyConfig
from tests.support.fakes import state

HASH = "0a1b2c3d"
BINARY = "actions-runner-linux-x64-2.320.0.tar.gz"
# A specification in which every option is set, so that the fields of their values are compared, too.
SPEC = state(
    path=GithubOrg("octo-org", "group"),
    runner_proxies=ProxyConfig("http://proxy.example:3128", "http://proxy.example:3129", "localhost"),
    dockerhub_mirror="https://mirror.example",
    ssh_debug_connections=(SSHDebugConnection("192.0.2.1", 22, "SHA256:a", "SHA256:b"),),
    repo_policy=RepoPolicy("https://policy.example", "token"),
    ca_certificates=("certificate",),
    pre_job_script="#!/bin/sh",
).runners[0]


def variants(value: Any) -> Iterator[Any]:
    """Values that differ from this one: one for each part of it."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, Enum):
        yield next(other for other in type(value) if other is not value)
    elif isinstance(value, (int, str)):
        yield value * 2
    elif isinstance(value, IPv4Network):
        yield value.supernet()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from (
                dataclasses.replace(value, **{field.name: other}) for other in variants(getattr(value, field.name))
            )
    elif hasattr(value, "_fields"):
        for name in value._fields:
            yield from (value._replace(**{name: other}) for other in variants(getattr(value, name)))
    else:
        assert isinstance(value, tuple), f"extend this function by {type(value).__name__}"
        yield ()
        yield from ((*value[:-1], other) for other in variants(value[-1]))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RunnerSpec)])
def test_every_field_is_in_the_fingerprint(name: str) -> None:
    """A change of any part of what goes into a runner makes another fingerprint."""
    others = [dataclasses.replace(SPEC, **{name: other}) for other in variants(getattr(SPEC, name))]

    found = {fingerprint(spec, BINARY, "image") for spec in (SPEC, *others)}

    assert len(found) == len(others) + 1 > 1


def test_the_fingerprint_has_the_binary_and_the_image() -> None:
    """A newer runner binary, and an image that was built from something else, make another fingerprint."""
    found = {fingerprint(SPEC, *values) for values in ((BINARY, "image"), ("newer", "image"), (BINARY, "other"))}

    assert len(found) == 3


def test_no_credential_is_in_the_specification() -> None:
    """Another token, for GitHub or for the policy service, replaces no runner."""
    secrets = state(token="ghp_secret", repo_policy=RepoPolicy("https://policy.example", "policy_secret")).runners[0]

    assert "secret" not in str(plain(secrets))


def test_prefix() -> None:
    """A runner's name begins with application, unit and the model's hash."""
    assert Identity("runner", 1, HASH).prefix == f"runner-1-{HASH}"


@pytest.mark.parametrize(("longer", "whole"), [(0, True), (1, False)])
def test_a_name_is_cut_only_where_it_must_be(longer: int, whole: bool) -> None:
    """LXD takes 63 characters, of which a runner needs 8 for itself."""
    rest = f"-1-{HASH}"
    app = "a" * (63 - 8 - len(rest) + longer)

    assert (Identity(app, 1, HASH).prefix == app + rest) is whole


NAMES = ["a", "github-runner", "a" * 45, "a" * 46, "a" * 44 + "-b", "a" * 62, "a" * 200]


@pytest.mark.parametrize("unit", [0, 9, 10, 12345])
@pytest.mark.parametrize("app", NAMES, ids=len)
def test_any_application_name_gives_names_that_lxd_takes(app: str, unit: int) -> None:
    """At most 63 characters, letters, digits and single hyphens, the first one a letter, and owned by their unit."""
    identity = Identity(app, unit, HASH)

    name = identity.new_name()

    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", name)
    assert len(name) <= 63
    assert identity.random_digits >= 8
    assert identity.manages(name)
    assert app not in NAMES[:2] or name.startswith(f"{app}-{unit}-{HASH}")


def test_long_application_names_are_told_apart() -> None:
    """Two applications whose names begin alike have runners that neither takes for its own."""
    one, other = Identity("a" * 60 + "-one", 1, HASH), Identity("a" * 60 + "-two", 1, HASH)

    assert one.prefix != other.prefix
    assert not other.manages(one.prefix + "0" * one.random_digits)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"runner-1-{HASH}00ff", True),
        (f"runner-1-{HASH}0", True),
        (f"runner-1-{HASH}", False),
        (f"runner-11-{HASH}00ff", False),
        (f"runner-1-0-{HASH}00ff", False),
        (f"runner-1-1-{HASH}00ff", False),
        ("runner-1-ffffffff00ff", False),
        (f"runner-0-{HASH}00ff", False),
        (f"a-runner-1-{HASH}00ff", False),
        (f"runner-1-{HASH}00fg", False),
        (f"runner-1-{HASH}00FF", False),
        (f"runner-1-{HASH}00ff\n", False),
        (f"runner-1-{HASH}00ff-x", False),
        (f"Runner-1-{HASH}00ff", False),
        ("runner-1-00ff", False),
        ("", False),
    ],
    ids=[
        "this unit's",
        "this unit's, short",
        "no suffix",
        "unit 11",
        "unit 0 of application runner-1",
        "unit 1 of application runner-1",
        "another model",
        "another unit",
        "an application that ends like this one",
        "not hexadecimal",
        "upper case",
        "newline",
        "more behind",
        "application in other letters",
        "the previous charm's",
        "empty",
    ],
)
def test_ownership(name: str, expected: bool) -> None:
    """A runner is this unit's only if its whole name is: a prefix is shared with other units and applications."""
    assert Identity("runner", 1, HASH).manages(name) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("runner-1-" + "0a" * 12, True),
        ("runner-1-" + "ffffffff" + "0" * 16, True),
        ("runner-1-a1b2c3d4e5f6", True),
        (f"runner-1-{HASH}" + "0" * 16, False),
        ("runner-11-" + "0a" * 12, False),
        ("runner-1-1-" + "0a" * 12, False),
        ("my-runner-1-" + "0a" * 12, False),
        ("runner-1-" + "0A" * 12, False),
        ("runner-1-", False),
        ("runner-1-" + "0a" * 12 + "\n", False),
    ],
)
def test_names_of_the_previous_charm(name: str, expected: bool) -> None:
    """Any hex digits after APP-UNIT- may be the previous charm's, except those with this model's hash."""
    assert Identity("runner", 1, HASH).may_be_previous(name) is expected


def test_the_previous_charm_used_the_full_application_name() -> None:
    """A long name is shortened by this charm only; the shortened one is not taken for the previous charm's."""
    identity = Identity("a" * 50, 0, HASH)

    assert identity.may_be_previous("a" * 50 + "-0-" + "0a" * 12)
    assert not identity.may_be_previous(identity.prefix + "00")
    assert not identity.may_be_previous("a" * 36 + "-0-" + "0a" * 12)


def test_application_name_is_no_pattern() -> None:
    """A name that would be a pattern stands for itself."""
    assert not Identity("a.c", 0, HASH).manages(f"abc-0-{HASH}1")


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Arch.X64, "x64"),
        (Colour.RED, "red"),
        (GithubRepo("o", "r"), {"owner": "o", "repo": "r"}),
        ((1, ("a",), [None]), [1, ["a"], [None]]),
        ((GithubRepo("o", "r"), Colour.RED), [{"owner": "o", "repo": "r"}, "red"]),
        (VirtualMachineResources(2, "7GiB", "10GiB"), {"cpu": 2, "memory": "7GiB", "disk": "10GiB"}),
        (Snap("a", "edge"), {"name": "a", "channel": "edge", "revision": None}),
    ],
)
def test_plain_values(value: object, expected: object) -> None:
    """A value for a fingerprint holds nothing but what JSON holds."""
    assert plain(value) == expected
    assert not isinstance(plain(value), Enum)


@pytest.mark.parametrize(
    ("name", "managed"),
    [
        ("app-0-0123abcd-small", True),
        ("app-0-0123abcd-a", True),
        ("app-0-0123abcd", False),
        ("app-0-0123abcd-", False),
        ("app-0-0123abcdsmall", False),
        ("app-0-0123abcd-Small", False),
        ("app-1-0123abcd-small", False),
        ("app-0-9999abcd-small", False),
        ("my-app-0-0123abcd-small", False),
        ("app-0-0123abcd-small\n", False),
        ("app-0-0123abcd-1-0123abcd-small", False),
        ("app-0-0123abcd-" + "a" * 21, False),
    ],
)
def test_only_scale_sets_of_this_unit_are_managed(name: str, managed: bool) -> None:
    """A set of another unit, model or application, or made by hand, is never adopted or deleted."""
    assert Identity("app", 0, "0123abcd").manages_scale_set(name) is managed


def test_a_scale_set_is_named_after_unit_and_flavour() -> None:
    """The prefix of runner names, and the flavour."""
    identity = Identity("app", 0, "0123abcd")

    assert identity.scale_set("small") == "app-0-0123abcd-small"
    assert identity.manages_scale_set(identity.scale_set("small"))
