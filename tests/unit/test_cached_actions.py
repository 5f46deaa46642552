"""The forms of the option cached-actions."""

import pytest

from option_values import MOST_ACTIONS, parse_actions

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ()),
        (" , ,\n", ()),
        ("actions/checkout@v5", ("actions/checkout@v5",)),
        (" a/b@v1 ,, c/d@v2 ,", ("a/b@v1", "c/d@v2")),
        ("a/b@v1\n,c/d@v2", ("a/b@v1", "c/d@v2")),
        ("a/b@v2,a/b@v1,a/b@v2", ("a/b@v2", "a/b@v1")),
        (f"octo_emu/my.action_1@{COMMIT}", (f"octo_emu/my.action_1@{COMMIT}",)),
        ("a/b@releases/v1.0+x-1", ("a/b@releases/v1.0+x-1",)),
        ("a/.github@main", ("a/.github@main",)),
    ],
)
def test_actions_of_a_list(value: str, expected: tuple[str, ...]) -> None:
    """Blanks and empty items are dropped, and so are duplicates; the order stays."""
    assert parse_actions(value) == expected


@pytest.mark.parametrize(
    "action",
    [
        *("actions", "actions/checkout", "actions/checkout@", "@v5", "/checkout@v5", "actions/@v5", "a/b@v1@v2"),
        *("a/..@v1", "a/.@v1", "-a/b@v1", "a b/c@v1", "a/b@v 1", "a/b@-x", "a/b@/x", "a/b@x/", "a/b@x..y", "a/b@x//y"),
        *("a/b@v1.", "a/b@x^1", "a/b@x~1", "a/b@x:y", "a/b@*", "a/b@x?y=1", "a/b@x#y", "a/b@x%2e", "a/b@{x", "a/b@\\x"),
        *("a/b@v\n1", "a/b@v\x001", "a/b@v'1", 'a/b@"v1"', "a/b@$(x)", "ä/b@v1", "a/b@ü", "a/b@v\u20281", "٣/b@v1"),
        *(
            "docker://alpine@v3",
            "./local@v1",
            "https://github.com/a/b@v1",
            "a/b@" + "x" * 201,
            "a/" + "b" * 101 + "@v1",
        ),
    ],
)
def test_what_is_no_action_is_refused(action: str) -> None:
    """Whatever GitHub would not take for a ref, or a request, a shell or a file's name could misread, is an error."""
    with pytest.raises(
        ValueError, match=r"not of the form owner/repo@ref, such as actions/checkout@v5; use this form$"
    ) as raised:
        parse_actions(f"actions/cache@v5, {action}")

    assert "actions/cache@v5" not in str(raised.value).partition("not of the form")[0]
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 120


def test_every_bad_action_is_named() -> None:
    """One message names all of them; for an action in a folder it has what to write instead."""
    with pytest.raises(ValueError, match="x") as raised:
        parse_actions("x, a/b@v1, github/codeql-action/init@v3, , y@1, a/b/c/d@v2")

    assert str(raised.value) == (
        "'github/codeql-action/init@v3' has a path, write github/codeql-action@v3; "
        "'a/b/c/d@v2' has a path, write a/b@v2; "
        "'x', 'y@1' not of the form owner/repo@ref, such as actions/checkout@v5; use this form"
    )


def test_no_password_of_a_url_is_shown() -> None:
    """Who pastes an address with a credential finds it in no status."""
    with pytest.raises(ValueError, match="x") as raised:
        parse_actions("https://user:pass-word@github.com/a/b@v1, x")

    assert str(raised.value).startswith("'https://…@v1', 'x' not of the form")


@pytest.mark.parametrize(
    ("action", "shown"),
    [
        ("user:Secret@github.com/a/b@v1", "…@github.com/a/b@v1"),
        ("user:Sec@ret@github.com/a/b@v1", "…@github.com/a/b@v1"),
        ("user:Secret@github.com/a/b", "…@github.com/a/b"),
        ("user:Sec\nret@github.com/a/b@v1", "…@github.com/a/b@v1"),
        ("ghp_Secret@github.com/a/b@v1", "…@github.com/a/b@v1"),
        ("ghp_Sec/ret@github.com/a/b@v1", "…@github.com/a/b@v1"),
    ],
)
def test_no_credential_of_an_address_without_a_scheme_is_shown(action: str, shown: str) -> None:
    """What stands before the host is hidden; each action has an @ of its own, which is not one of a credential."""
    with pytest.raises(ValueError, match="form") as raised:
        parse_actions(action)

    assert str(raised.value).startswith(f"'{shown}' not of the form")


def test_the_number_of_actions_is_limited() -> None:
    """Their requests fit what GitHub grants an address in an hour; duplicates do not count."""
    most = [f"a/b@v{number}" for number in range(MOST_ACTIONS)]

    assert len(parse_actions(",".join([*most, *most]))) == MOST_ACTIONS
    with pytest.raises(ValueError, match=r"^21 actions are too many; set 20 at most$"):
        parse_actions(",".join([*most, "a/b@one-more"]))
    assert 2 * MOST_ACTIONS < 60
