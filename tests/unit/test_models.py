"""The frozen values: sizes and paths."""

import dataclasses

import pytest

from models import (
    CharmState,
    CreateRunnerConfig,
    FailedStarts,
    GithubOrg,
    GithubPath,
    GithubRepo,
    RepoPolicy,
    RunnerConfig,
    RunnerSpec,
    RunnerStatus,
    VirtualMachineResources,
    parse_github_path,
    size_in_bytes,
)
from proxies import ProxyConfig
from report import describe_failed_starts


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


@pytest.mark.parametrize("kind", [CharmState, CreateRunnerConfig, ProxyConfig, RunnerSpec])
def test_values_are_frozen(kind: type) -> None:
    """What was read once cannot change on the way down."""
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_each_failed_start_doubles_the_pause() -> None:
    """From 2 seconds up to 10 minutes; after a clock that was set back nothing is waited for."""
    row = [FailedStarts(count, 1000.0).wait(1000.0) for count in (0, 1, 2, 3, 9, 10, 1000)]

    assert row == [0, 2, 4, 8, 512, 600, 600]
    assert (FailedStarts(3, 1000.0).wait(1005.0), FailedStarts(3, 1000.0).wait(1009.0)) == (3, 0)
    assert FailedStarts(3, 1000.0).wait(999.0) == 0


@pytest.mark.parametrize(("count", "row"), [(1, ""), (2, ", 2 times in a row"), (9, ", 9 times in a row")])
def test_the_status_counts_failed_starts_in_a_row(count: int, row: str) -> None:
    """From the second one on, with the reason and the time of the next attempt."""
    found = FailedStarts(count, 1000.0, "not allowed")

    text = describe_failed_starts(found, 1000.0)

    assert text == f"runners ended without a job{row}: not allowed; next attempt in {2**count} s"
