"""The frozen values: sizes, names and ownership, paths, proxies."""

import dataclasses
import re
from enum import Enum

import pytest

from models import (
    Arch,
    CharmState,
    CreateRunnerConfig,
    GithubOrg,
    GithubPath,
    GithubRepo,
    Identity,
    ProxyConfig,
    RepoPolicy,
    RunnerConfig,
    RunnerStatus,
    Snap,
    VirtualMachineResources,
    parse_github_path,
    plain,
    size_in_bytes,
)

HASH = "0a1b2c3d"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("1KiB", 1024),
        ("3MiB", 3 * 1024**2),
        ("7GiB", 7 * 1024**3),
        ("2TiB", 2 * 1024**4),
        ("10PiB", 10 * 1024**5),
        ("1EiB", 1024**6),
    ],
)
def test_sizes(size: str, expected: int) -> None:
    """A size is a whole number times a power of 1024."""
    assert size_in_bytes(size) == expected


@pytest.mark.parametrize(
    "size",
    [
        "",
        "7",
        "GiB",
        "0GiB",
        "07GiB",
        "-1GiB",
        "1.5GiB",
        "7 GiB",
        "7gib",
        "7GB",
        "7GiB\n",
        "+7GiB",
        "\u0667GiB",
        "1\u0667GiB",
        "7ZiB",
    ],
)
def test_other_forms_are_no_sizes(size: str) -> None:
    """A size has one form only, and the error names the units."""
    with pytest.raises(ValueError, match="KiB, MiB, GiB, TiB, PiB, EiB"):
        size_in_bytes(size)


def test_name_of_resource_profile() -> None:
    """A resource profile's name says what it gives."""
    assert VirtualMachineResources(2, "7GiB", "10GiB").profile == "cpu-2-mem-7GiB-disk-10GiB"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("octo-org", GithubOrg("octo-org", "big")),
        ("octo-org/demo", GithubRepo("octo-org", "demo")),
        ("octo_org/.github", GithubRepo("octo_org", ".github")),
        ("octo-org/demo/", GithubRepo("octo-org", "demo")),
        ("/octo-org/demo", GithubRepo("octo-org", "demo")),
        ("//octo-org//demo//", GithubRepo("octo-org", "demo")),
    ],
)
def test_paths(path: str, expected: GithubPath) -> None:
    """One segment is an organisation with its group, two are a repository; surplus slashes are dropped."""
    assert parse_github_path(path, "big") == expected
    assert expected.path == "/".join(filter(None, path.split("/")))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "a/",
        "/b",
        "a//",
        "a/b/c",
        "/a/b/c/",
        "a//b//c",
        "a/..",
        "./b",
        "/./a/b",
        "..",
        "a b",
        "a/b?c",
        "a/b\n",
        "ä/b",
        "https://x",
        "a%2f",
    ],
)
def test_what_is_no_path(path: str) -> None:
    """A path that could lead elsewhere in GitHub's API is refused."""
    with pytest.raises(ValueError, match="neither owner/repo nor org"):
        parse_github_path(path)


def test_prefix() -> None:
    """A runner's name begins with application, unit and the model's hash."""
    assert Identity("runner", 1, HASH).prefix == f"runner-1-{HASH}"


NAMES = ["a", "github-runner", "a" * 45, "a" * 46, "a" * 44 + "-b", "a" * 62, "a" * 200]


@pytest.mark.parametrize("unit", [0, 9, 10, 12345])
@pytest.mark.parametrize("app", NAMES, ids=len)
def test_any_application_name_gives_names_that_lxd_takes(app: str, unit: int) -> None:
    """At most 63 characters, letters, digits and single hyphens, the first one a letter, and owned by their unit."""
    identity = Identity(app, unit, HASH)

    name = identity.prefix + "0123456789abcdef"[: identity.random_digits]

    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", name)
    assert len(name) <= 63
    assert identity.random_digits >= 8
    assert identity.owns(name)
    assert app not in NAMES[:2] or name.startswith(f"{app}-{unit}-{HASH}")


def test_long_application_names_are_told_apart() -> None:
    """Two applications whose names begin alike have runners that neither takes for its own."""
    one, other = Identity("a" * 60 + "-one", 1, HASH), Identity("a" * 60 + "-two", 1, HASH)

    assert one.prefix != other.prefix
    assert not other.owns(one.prefix + "0" * one.random_digits)


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
        "ours",
        "ours, short",
        "no suffix",
        "unit 11",
        "unit 0 of application runner-1",
        "unit 1 of application runner-1",
        "another model",
        "another unit",
        "an application that ends like ours",
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
    assert Identity("runner", 1, HASH).owns(name) is expected


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
    assert not Identity("a.c", 0, HASH).owns(f"abc-0-{HASH}1")


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [
        (ProxyConfig(), {}),
        (ProxyConfig(no_proxy="localhost"), {}),
        (
            ProxyConfig(http="http://p:1"),
            {"HTTP_PROXY": "http://p:1", "http_proxy": "http://p:1", "NO_PROXY": "me,.svc", "no_proxy": "me,.svc"},
        ),
        (
            ProxyConfig("http://p:1", "http://p:2", "localhost, ,10.0.0.1,"),
            {
                "HTTP_PROXY": "http://p:1",
                "HTTPS_PROXY": "http://p:2",
                "NO_PROXY": "localhost,10.0.0.1,me,.svc",
                "http_proxy": "http://p:1",
                "https_proxy": "http://p:2",
                "no_proxy": "localhost,10.0.0.1,me,.svc",
            },
        ),
    ],
    ids=["none", "a lone no-proxy", "http alone", "all"],
)
def test_proxy_variables(proxies: ProxyConfig, expected: dict[str, str]) -> None:
    """Both cases of letters, the given hosts appended to no_proxy, and nothing where there is no proxy."""
    assert proxies.environment("me", ".svc") == expected


def test_no_hosts_no_variable() -> None:
    """Without a host to leave out there is no `no_proxy`."""
    assert ProxyConfig(http="http://p:1").environment() == {"HTTP_PROXY": "http://p:1", "http_proxy": "http://p:1"}


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [
        (ProxyConfig("http://proxy:3128"), None),
        (ProxyConfig(use_aproxy=True), None),
        (ProxyConfig(no_proxy="x", use_aproxy=True), None),
        (ProxyConfig("http://proxy:3128", use_aproxy=True), "proxy:3128"),
        (ProxyConfig("http://proxy", use_aproxy=True), "proxy"),
        (ProxyConfig("http://proxy:3128/", use_aproxy=True), "proxy:3128"),
        (ProxyConfig("https://10.0.0.1:3128/x/y", use_aproxy=True), "10.0.0.1:3128"),
        (ProxyConfig(https="http://other:3129", use_aproxy=True), "other:3129"),
        (ProxyConfig("http://proxy:3128", "http://other:3129", use_aproxy=True), "proxy:3128"),
        (ProxyConfig("http://[::1]:3128", use_aproxy=True), "[::1]:3128"),
        pytest.param(
            ProxyConfig("http://user:secret@proxy:3128", use_aproxy=True),
            "proxy:3128",
        ),
        pytest.param(
            ProxyConfig("HTTP://proxy:3128", use_aproxy=True),
            "proxy:3128",
        ),
    ],
)
def test_aproxy_address(proxies: ProxyConfig, expected: str | None) -> None:
    """aproxy is given host and port alone, and only where it is used."""
    assert proxies.aproxy_address == expected


def test_secrets_are_not_in_texts() -> None:
    """No token is in the text of a value that may be logged."""
    texts = repr(RepoPolicy("https://p", "s3cret")) + repr(
        CreateRunnerConfig("jammy", VirtualMachineResources(1, "1GiB", "1GiB"), None, "s3cret")  # type: ignore[arg-type]
    )

    assert "s3cret" not in texts


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (CreateRunnerConfig, ["image", "resources", "binary_path", "registration_token", "arch"]),
        (
            RunnerConfig,
            [
                "app_name",
                "issue_metrics",
                "labels",
                "lxd_storage_path",
                "name",
                "path",
                "proxies",
                "dockerhub_mirror",
                "ssh_debug_connections",
            ],
        ),
        (RunnerStatus, ["runner_id", "exist", "online", "busy"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_fixed_fields(kind: type, names: list[str]) -> None:
    """The fields of the module contract come first and in its order."""
    assert [field.name for field in dataclasses.fields(kind)][: len(names)] == names


@pytest.mark.parametrize("kind", [CharmState, CreateRunnerConfig, Identity, ProxyConfig])
def test_values_are_frozen(kind: type) -> None:
    """What was read once cannot change on the way down."""
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


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
