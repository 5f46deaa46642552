"""The check of the lint run that keeps private words out of the texts for users."""

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
        ("Look at the unit. See the specification for hours of fellowship.", []),
    ],
)
def test_private_words_are_found(text: str, words: list[str]) -> None:
    """A private word is found in any case, also where a line ends inside it; the usual word is not."""
    assert [word for _, word, _ in sorted(plain_words.found(text))] == words


def test_line_is_that_of_the_word() -> None:
    """The line that is reported is the one in which the word begins."""
    assert [line for line, _, _ in plain_words.found("Plain.\n\nA ghost.")] == [3]


@pytest.mark.parametrize(
    ("text", "excepted", "code"),
    [("Plain.", set(), 0), ("A ghost.", set(), 1), ("A ghost.", {"README.md"}, 0), ("Plain.", {"README.md"}, 1)],
)
def test_exceptions_end_with_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, excepted: set[str], code: int
) -> None:
    """A private word fails the check unless its file is excepted; a file without one may not be excepted."""
    (tmp_path / "README.md").write_text(text)
    monkeypatch.setattr(plain_words, "ROOT", tmp_path)
    monkeypatch.setattr(plain_words, "UNCONVERTED", excepted)

    assert plain_words.main() == code
