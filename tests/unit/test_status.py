"""A unit's status: what failed, in one line that Juju can show, and every other thing that an operator must know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import status
from errors import ConfigurationError, GithubApiError, HostError, LxdError, TokenError
from report import Report

CONFIG_SH = (
    "config.sh ended with 1:\n\n√ Connected to GitHub\n\x1b[31m✗ Could not find any self-hosted runner group\x1b[0m\r\n"
)


@given(text=st.text(max_size=1000))
def test_any_text_becomes_one_printable_line(text: str) -> None:
    """Whatever a program or a server said: no line break, no control character, and never too long."""
    shown = status.bounded(status.of_error(HostError(text))).message

    assert len(shown) <= status.LIMIT
    assert shown.isprintable()
    assert shown == shown.strip()


def test_marks_of_other_programs_are_left_out() -> None:
    """Check marks and colours of a program's output are not part of what it says; letters of any script are."""
    assert status.line(CONFIG_SH) == (
        "config.sh ended with 1: Connected to GitHub [31m Could not find any self-hosted runner group [0m"
    )
    assert status.line("größe × 2, ラベル") == "größe × 2, ラベル"


def test_both_ends_of_a_long_text_are_shown() -> None:
    """What failed stands at the beginning, and the reason often at the end."""
    shown = status.fit("creating the instance failed: " + "x" * 500 + " no space left")

    assert len(shown) <= status.LIMIT
    assert shown.startswith("creating the instance failed: ")
    assert shown.endswith("no space left")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ConfigurationError("path: is empty"), "blocked", "path: is empty"),
        (TokenError("no permission"), "blocked", "no permission"),
        (GithubApiError("no answer"), "waiting", "GitHub: no answer"),
        (LxdError("no answer"), "waiting", "LXD: no answer"),
        (HostError("apt is locked"), "waiting", "apt is locked"),
        (OSError("disk full"), "waiting", "disk full"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors(error: Exception, kind: str, message: str) -> None:
    """Blocked where the operator must act, waiting where it resolves by itself; the side that failed is named."""
    found = status.of_error(error)

    assert (found.name, found.message) == (kind, message)


def test_every_invalid_option_is_named_however_many() -> None:
    """Where the reasons do not fit all names do, with the first reason."""
    errors = [f"option-{number}: {'x' * 60} is not accepted" for number in range(9)]

    shown = status.bounded(status.of_error(ConfigurationError(*errors))).message

    assert all(f"option-{number}" in shown for number in range(9))
    assert "juju debug-log" in shown
    assert len(shown) <= status.LIMIT


def test_an_option_is_named_once() -> None:
    """However many of its values are invalid; of a single option, as many reasons as fit are shown instead."""
    many = [f"flavors: size-{number}: vm-cpu: {'9' * 30} exceeds the 2 CPUs" for number in range(9)]
    shown = status.bounded(status.of_error(ConfigurationError(*many))).message
    assert shown == f"9 invalid values, see `juju debug-log`: {many[0]}; {many[1]}"
    two_options = status.bounded(status.of_error(ConfigurationError(*many, "token: not set"))).message
    assert two_options.startswith("10 invalid values, see `juju debug-log`: flavors, token; flavors: size-0: vm-cpu: 9")
    long = status.bounded(status.of_error(ConfigurationError(f"flavors: {'x' * 300}: end", "flavors: y"))).message
    assert long.startswith("2 invalid values, see `juju debug-log`: flavors: xxx")
    assert ": end" in long
    assert len(long) <= status.LIMIT


REPORT = Report(wanted=3, idle=["a"], busy=["b"])


def test_jobs_that_github_does_not_know_are_shown() -> None:
    """The operator sees that a runner is busy by its own account only."""
    shown = status.of_report(Report(2, ["a"], ["b"], unknown_jobs=["b"]), test_mode=False).message

    assert shown == "2 runners: 1 idle, 1 busy, 1 of them unknown to GitHub"


@pytest.mark.parametrize("length", [10, 100, 1000])
def test_a_failure_never_hides_the_notices(length: int) -> None:
    """The counts, the failure and what follows it are all there, however long the failure's text is."""
    report = Report(3, ["a"], ["b"], failures=[f"r: registering failed: {'x' * length} no such group"])

    shown = status.bounded(status.of_report(report, test_mode=True, notices=["image not rebuilt for 9 days"])).message

    assert shown.startswith("2 of 3 runners: 1 idle, 1 busy; r: registering failed: ")
    assert "no such group; image not rebuilt for 9 days (test mode: containers)" in shown
    assert len(shown) <= status.LIMIT
