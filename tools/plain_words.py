"""Find private words in the texts for users, the code and the tests. docs/reference/glossary.md has the words to use.

The list of words and of the files that are checked is here and nowhere else.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A regular expression for each private word, without regard to case, and what to say instead. A space stands for what
# may lie between two words of a text or of a name: spaces, the line break of a comment, or underscores.
WORDS = {
    r"(?:an?|each|earlier|every|first|last|later|next|one|quiet|real|same|second|that|the|this|two|whole) "
    r"pass(?:es)?(?! through)": "reconcile",
    r"(?:a|two|next|second) looks?|look(?:s|ed)? inside": "reconcile, observation or health probe",
    # In texts only: `runner_application` is the name of a folder and of constants.
    r"runner\s+application": "runner binary, runner agent or github-runner-agent",
    r"ghosts?|unseen": "offline runner",
    r"forg[eo]ts?|forgotten": "orphaned registration, or deregister, remove, delete",
    r"follower": "watcher",
    r"mend(?:s|ed|ing)?": "fix",
    r"incumbents?|former charm": "previous charm",
    r"ours|of our (?:own )?making": "managed by this unit",
    r"(?:to|can|cannot|could|could not|may|must|not) be had": "available",
    r"GitHub (?:itself )?(?:says?|tells?|told|knows?|knew|wants?|takes?|took|thinks?)": "lists, reports, accepts, "
    "requires",
    r"out of order": "server error",
    r"spec \d+": "a link to a page that everybody can read",
}
FILES = (
    *("README.md", "DESIGN.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("charmcraft.yaml", "metadata.yaml", "config.yaml", "actions.yaml", "docs/**/*.md"),
    *("src/**/*.py", "src/*_alert_rules/*.yaml", "templates/*.j2", "terraform/*.tf", "terraform/*.md"),
    *("tests/**/*.py", "sandbox/**/*.py", "tools/*.py"),
)
# They have the words themselves.
EXEMPT = {"tools/plain_words.py", "tests/unit/test_plain_words.py"}
# `\b` would take a whole name such as `is_ours` for one word.
PATTERNS = {
    re.compile(r"(?<![^\W_])(?:" + word.replace(" ", r"[\s#_]+") + r")(?![^\W_])", re.IGNORECASE): instead
    for word, instead in WORDS.items()
}


def found(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, private word, and what to say instead, for each private word of a text. A line may end inside a word."""
    for pattern, instead in PATTERNS.items():
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead


def main() -> int:
    """Print each private word with its place; 1 if there is one."""
    findings = []
    for path in sorted({path for pattern in FILES for path in ROOT.glob(pattern)}):
        name = path.relative_to(ROOT).as_posix()
        if name in EXEMPT:
            continue
        findings += [
            f"{name}:{line}: {word!r}: say {instead}" for line, word, instead in sorted(found(path.read_text()))
        ]
    print("\n".join(findings), end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
