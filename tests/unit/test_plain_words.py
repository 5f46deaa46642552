"""The check of the lint run that keeps private words out of the texts for users, the code and the tests."""

from pathlib import Path

import pytest

from tools import plain_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The next pass removes it.", ["next pass"]),
        ("One\n\nThe next\n  pass removes\nthe ghost.", ["next pass", "ghost"]),
        ("As spec 2 says, the runner application is fixed.", ["runner application", "spec 2"]),
        ("Tests pass, and a packet may pass through.", []),
        ("def test_ghost_goes(): is_ours, GHOSTS = a_pass_is_killed()", ["GHOSTS", "a_pass", "ghost", "ours"]),
        ("# After the next\n    # pass.", ["next # pass"]),
        ("for item in found:\n    pass\nhours, yours = runner_application, next_passage", []),
        ("GitHub says so, and it can be had.", ["GitHub says", "can be had"]),
        ("GitHub lists what is known, and it cannot behave.", []),
        ("Look at the unit. See the specification for hours of fellowship.", []),
    ],
)
def test_private_words_are_found(text: str, words: list[str]) -> None:
    """A private word is found in any case, also where a line ends inside it; the usual word is not."""
    assert [word for _, word, _ in sorted(plain_words.found(text))] == words


def test_line_is_that_of_the_word() -> None:
    """The line that is reported is the one in which the word begins."""
    assert [line for line, _, _ in plain_words.found("Plain.\n\nA ghost.")] == [3]


@pytest.mark.parametrize(("text", "code"), [("Plain.", 0), ("A ghost.", 1)])
@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "src/deep/module.py", "src/prometheus_alert_rules/a.yaml", "terraform/main.tf"),
        *("tests/unit/test_a.py", "sandbox/deep/module.py", "tools/a.py"),
    ],
)
def test_a_private_word_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, code: int
) -> None:
    """In a page, and in the texts, comments and names of the code, of its tests and of its tools."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(plain_words, "ROOT", tmp_path)

    assert plain_words.main() == code


def test_the_list_of_words_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check and its tests have the words themselves; they are left out by their exact paths."""
    for name in plain_words.EXEMPT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("A ghost.")
    monkeypatch.setattr(plain_words, "ROOT", tmp_path)

    assert plain_words.main() == 0
