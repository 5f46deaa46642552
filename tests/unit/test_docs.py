"""The documentation: its links, its generated pages, and that it says something of everything an operator meets."""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from host import markers
from metrics import events
from tests.faults import report
from tools import write_reference

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ALL = [*PAGES, *(ROOT / name for name in ("README.md", "DESIGN.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]
GENERATED = [DOCS / "reference" / name for name in write_reference.pages()]
FENCE = re.compile(r"^ *```(.*)$", re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)|<(https?:[^>]+)>", re.MULTILINE)
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:")

pages = pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """A page without its code: neither fences nor spans have links."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", "code", text)


def links(page: Path) -> list[str]:
    """The targets of all links and images of a page."""
    return [next(filter(None, match.groups())) for match in LINK.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def by_hand() -> str:
    """The text of every page that is not generated."""
    return "\n".join(page.read_text() for page in PAGES if page not in GENERATED)


@pages
def test_relative_links_lead_somewhere(page: Path) -> None:
    """The file that a link names exists, and so does the heading that its anchor names."""
    for link in links(page):
        if EXTERNAL.match(link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_external_links_are_https(page: Path) -> None:
    """A link that leaves the repository is a well-formed https URL."""
    for link in filter(EXTERNAL.match, links(page)):
        parts = urlsplit(link)
        assert parts.scheme == "https", link
        assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), link


@pages
def test_code_fences_name_their_language(page: Path) -> None:
    """Every fence that opens says what is in it, and every one is closed."""
    marks = FENCE.findall(page.read_text())

    assert len(marks) % 2 == 0
    assert all(re.fullmatch("[a-z]+", mark) for mark in marks[::2])
    assert not any(marks[1::2])


@pages
def test_pages_have_one_title_and_lines_that_fit(page: Path) -> None:
    """A page has one heading of the first level, and no line of more than 120 characters but rows of tables."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)

    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert [line for line in page.read_text().splitlines() if len(line) > 120 and line[0] != "|"] == []


def test_every_page_is_reached_from_the_index() -> None:
    """Who begins at docs/index.md and follows links comes to every page and picture."""
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        if page.suffix != ".md":
            continue
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page) if not EXTERNAL.match(link)}
        waiting += [target for target in targets - reached if target.is_relative_to(DOCS) and target.is_file()]

    assert {path for path in DOCS.rglob("*") if path.is_file()} - reached == set()


@pytest.mark.parametrize("name", write_reference.pages())
def test_generated_pages_are_up_to_date(name: str) -> None:
    """The pages that the code decides are what tools/write_reference.py writes today."""
    page = DOCS / "reference" / name

    assert page.read_text() == write_reference.pages()[name], "run python tools/write_reference.py"


def test_check_tells_an_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` changes nothing and fails where a page is missing or old, writing makes it pass."""
    monkeypatch.setattr(write_reference, "TARGET", tmp_path)

    assert write_reference.main(["--check"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert write_reference.main([]) == 0
    assert write_reference.main(["--check"]) == 0
    (tmp_path / "events.md").write_text("old")
    capsys.readouterr()
    assert write_reference.main(["--check"]) == 1
    assert [line.partition(" ")[0] for line in capsys.readouterr().err.splitlines()] == [str(tmp_path / "events.md")]


OPTIONS = yaml.safe_load((ROOT / "config.yaml").read_text())["options"]
ACTIONS = yaml.safe_load((ROOT / "actions.yaml").read_text())
METADATA = yaml.safe_load((ROOT / "metadata.yaml").read_text())
RULES = [
    rule
    for path in sorted((ROOT / "src/loki_alert_rules").glob("*.yaml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule["alert"] for rule in RULES]
EVENTS = [
    event.model_construct().name for event in events.Event.__subclasses__() if event.__module__ == "metrics.events"
]


@pytest.mark.parametrize("name", [*OPTIONS, *ACTIONS, *EVENTS, *ALERTS, *METADATA["provides"], *METADATA["requires"]])
def test_what_an_operator_meets_is_explained(name: str) -> None:
    """Every option, action, event, alert and relation is mentioned in a page that a person wrote."""
    assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", by_hand())


# Those of github-runner-operator in LXD mode (mid-2024) that this charm has as well.
PREVIOUS_OPTIONS = {
    *("path", "token", "group", "labels", "virtual-machines", "vm-cpu", "vm-memory", "vm-disk", "base-image"),
    *("runner-storage", "reconcile-interval", "denylist", "dockerhub-mirror", "experimental-use-aproxy"),
    *("repo-policy-compliance-url", "repo-policy-compliance-token", "test-mode"),
}


def test_upgrade_page_has_every_new_option() -> None:
    """The page of the upgrade has each option that the previous charm lacked in its table, and no other."""
    page = (DOCS / "how-to/upgrade-from-previous-charm.md").read_text()
    table = page.partition("### New options")[2].partition("\n### ")[0]
    cells = re.findall(r"^\| (\[.*?) \|", table, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"\[`([^`]+)`\]", cell)]

    assert OPTIONS.keys() >= PREVIOUS_OPTIONS
    assert sorted(named) == sorted(OPTIONS.keys() - PREVIOUS_OPTIONS)


@pytest.mark.parametrize(("page", "names"), list(zip(GENERATED, (OPTIONS, ACTIONS, EVENTS), strict=True)))
def test_reference_has_a_heading_for_each(page: Path, names: list[str]) -> None:
    """Every option, action and event has a heading to link to."""
    assert set(names) <= anchors(page)


def strings(folder: Path) -> list[str]:
    """Every piece of text in the code of a folder."""
    found = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def messages() -> list[str]:
    """What the page of statuses says that a unit may say: at the beginning of an item, or of a table's row."""
    found = re.findall(r"^(?:- |\| )`([^`]+)`", (DOCS / "reference/statuses.md").read_text(), re.MULTILINE)
    return [" ".join(message.split()) for message in found]


def test_statuses_are_those_of_the_code() -> None:
    """Each message of the page of statuses is put together from texts that the code has."""
    known = strings(ROOT / "src")
    assert len(messages()) > 50
    for message in messages():
        pieces = (piece.strip(" ;,") for piece in re.split(r"…|; |: |:$| failed| for |\d+|lxdbr0", message))
        for piece in pieces:
            assert len(piece) < 3 or piece in OPTIONS or any(piece in text for text in known), message


# Errors whose text the unit's status shows, and where else in a module such texts are: a form that a value lacks.
SHOWN_ERRORS = {"ConfigurationError", "TokenError", "JujuError", "HostError", "GithubApiError", "TemporaryGithubError"}
SHOWN_FORMS = {
    "option_values": {"ValueError"},
    "models": {"ValueError"},
    "flavors": {"ValueError", "append", "_note"},
    "charm_state": {"ValueError", "append"},
}
# Their errors are texts of the log, of an action's result, or of the unit's agent, which is the reason of a notice.
NOT_SHOWN = {
    *("charm", "programs/sessions", "host/firewall", "host/takeover", "settings", "gh/archives", "gh/queued_jobs"),
    *("gh/scale_set_answers", "gh/auth"),
}
EXCUSED = {
    *("the answer has no valid conclusion", "the answer has no valid time of a job", "the answer has no valid token"),
    "was used yet",  # The agent then keeps the token that it has.
    "the just-in-time configuration is not valid",  # The reason why one runner is not registered.
}


def fixed_parts(node: ast.expr) -> list[str]:
    """The parts of a text that are always the same. The page cannot have what is in backticks."""
    if not isinstance(node, ast.JoinedStr) and not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        return []
    values = node.values if isinstance(node, ast.JoinedStr) else [node]
    whole = "".join(str(value.value) if isinstance(value, ast.Constant) else "\0" for value in values)
    parts = (part.strip(" :;,'(`") for part in re.sub("`[^`]*`", "\0", whole).split("\0"))
    return [part for part in parts if len(part) > 3]


def shown_texts() -> Iterator[tuple[str, list[str]]]:
    """Where an error is made that becomes a status, and the fixed parts of its text."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        module = path.relative_to(ROOT / "src").with_suffix("").as_posix()
        names = SHOWN_ERRORS | SHOWN_FORMS.get(module, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names:
                for parts in map(fixed_parts, node.args):
                    if module not in NOT_SHOWN and parts and not EXCUSED & {*parts}:
                        yield f"{module}:{node.lineno}", parts


def missing_on_the_page(texts: Iterable[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """The texts of which no message of the page of statuses has all fixed parts in their order."""
    page = " ".join((DOCS / "reference/statuses.md").read_text().split())
    known = re.findall(r"`([^`]+)`", page)
    forms = [(each, ".*".join(map(re.escape, each[1]))) for each in texts]
    return [each for each, form in forms if not any(re.search(form, text) for text in known)]


def test_errors_of_the_code_are_on_the_page_of_statuses() -> None:
    """For each error that becomes a status, a message of the page has all that is fixed in its text, in that order."""
    found = list(shown_texts())

    assert len(found) > 100
    assert missing_on_the_page(found) == []


# What tells the operator what to do about an error that blocks the unit; the reason stands before it.
ACTION = re.compile(
    "[;:,] (?:else |it |its first line )?"
    "(?:add|authorize|change|copy|correct|create|generate|give|install|leave|lower|must|put|remove|rename|run|set"
    "|synchronise|unsuspend|use|write) "
)


def blocking_texts(path: Path) -> Iterator[str]:
    """The text of each error of a module that blocks the unit, with the constants that it has by name."""
    module = path.relative_to(ROOT / "src").with_suffix("").as_posix()
    nodes = [] if module in NOT_SHOWN else list(ast.walk(ast.parse(path.read_text())))
    assigned = [node for node in nodes if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    known = {ast.unparse(node.targets[0]): str(ast.literal_eval(node.value)) for node in assigned}
    names = {"ConfigurationError", "TokenError", *SHOWN_FORMS.get(module, set())}
    calls = [
        node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names
    ]
    for text in (argument for call in calls for argument in call.args):
        parts = fixed_parts(text)
        # A short text is an option's name, or has its end from a variable.
        if len("".join(parts)) > 12 and not EXCUSED & {*parts}:
            yield re.sub(r"\{(\w+)\}", lambda name: known.get(name[1], "…"), ast.unparse(text))


def test_a_message_that_blocks_names_what_to_do() -> None:
    """README promises it: each text of an error that blocks the unit tells the operator what to do."""
    texts = [text for path in sorted((ROOT / "src").rglob("*.py")) for text in blocking_texts(path)]

    assert len(texts) > 70
    assert [text for text in texts if not ACTION.search(text)] == []


# Where the notices at the end of a status are made: a function of a module, or all of its functions.
NOTICES = {"notices": "", "scaling": "notices", "host/resources": "overcommitment", "host/pool": "shortage"}


def notice_texts() -> Iterator[tuple[str, list[str]]]:
    """Where a notice is made, and the fixed parts of its text."""
    for module, name in NOTICES.items():
        body = ast.parse((ROOT / f"src/{module}.py").read_text()).body
        functions = [node for node in body if isinstance(node, ast.FunctionDef) and name in ("", node.name)]
        for node in (node for function in functions for node in ast.walk(function)):
            texts: list[ast.expr] = []
            if isinstance(node, (ast.Yield, ast.Return)) and node.value:
                texts = [node.value]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".append"):
                texts = node.args
            for text in texts:
                if parts := fixed_parts(text):
                    yield f"{module}:{text.lineno}", parts


def test_notices_of_the_code_are_on_the_page_of_statuses() -> None:
    """For each notice at the end of a status, a message of the page has all that is fixed in its text, in order."""
    found = list(notice_texts())

    assert len(found) > 10
    assert missing_on_the_page(found) == []


def test_every_alert_has_a_runbook() -> None:
    """The annotation of each alert names a page of its own, which has the alert as its title and the same headings."""
    pages = {rule["alert"]: ROOT / rule["annotations"]["runbook"] for rule in RULES}

    assert len(set(pages.values())) == len(RULES)
    for alert, page in pages.items():
        headings = re.findall(r"^#+ .+$", page.read_text(), re.MULTILINE)
        assert headings == [
            f"# {alert}",
            *("## What it means", "## What to look at", "## What to do", "## When to silence"),
        ], page


def test_lxd_keys_are_those_of_the_code() -> None:
    """The page of LXD keys has a row for each key and image property that the code uses, and for no other."""
    code = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
    used = set(re.findall(r"(?:\{KEY\}|user\.github-runner\.)([a-z][a-z-]*)", code))
    used |= set(re.findall(r'"(github-runner\.[a-z]+)"', (ROOT / "src/host/image.py").read_text()))
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "reference/lxd-keys.md").read_text(), re.MULTILINE)

    assert len(rows) == len(set(rows))
    assert set(rows) == used


def test_markers_are_those_of_the_code() -> None:
    """The page of files has a row for each marker of the machine, and for no other."""
    values = [value for name, value in vars(markers).items() if name.isupper() and isinstance(value, str)]
    table = (DOCS / "reference/files.md").read_text().partition("### Markers")[2].partition("\n## ")[0]

    assert sorted(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == sorted({*values} - {markers.PREFIX})


def test_layers_of_the_design_are_those_that_are_checked() -> None:
    """DESIGN.md has the layers of modules as pyproject.toml has them, in the same order."""
    text = (ROOT / "DESIGN.md").read_text()
    shown = re.findall(r"`([^`]+)`", text.partition("From the top: ")[2].partition(". Modules with")[0])
    # Python 3.10 reads no TOML, and one list of strings needs no library.
    checked = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)

    assert checked
    assert shown == re.findall(r'"([^"]+)"', checked[1])


# What reads or writes files, starts programs, writes to the log or asks for the time: modules, and names of calls.
IO_MODULES = {"fcntl", "logging", "os", "shutil", "socket", "subprocess", "system", "tempfile"}
IO_CALLS = {"open", "print", "read_text", "write_text", "read_bytes", "write_bytes", "is_file", "stat", "unlink", "now"}
PURE = re.findall(r"`(\w+)`", (ROOT / "DESIGN.md").read_text().partition("do no I/O: ")[2].partition(".")[0])


@pytest.mark.parametrize("name", PURE)
def test_modules_without_io_do_none(name: str) -> None:
    """A module that DESIGN.md lists as one without I/O imports nothing for it, and calls nothing that does it."""
    nodes = list(ast.walk(ast.parse((ROOT / f"src/{name}.py").read_text())))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}

    assert not imported & IO_MODULES
    assert not {call.rpartition(".")[2] for call in called} & IO_CALLS
    assert "time.time" not in called


def test_modules_without_io_are_read() -> None:
    """The list in DESIGN.md is found."""
    assert len(PURE) > 10


def test_every_benchmark_is_shown() -> None:
    """Each picture is on the page of benchmarks, with a link to its figures."""
    folder = ROOT / "docs" / "benchmarks"
    page = (folder / "index.md").read_text()

    missing = [path.name for path in (*folder.glob("*.svg"), *folder.glob("*.json")) if f"({path.name})" not in page]
    assert missing == []


def test_page_of_reliability_is_made_of_its_figures() -> None:
    """The page is what the figures in JSON give today: neither is changed by hand."""
    folder = ROOT / "docs" / "reference"
    figures = json.loads((folder / "reliability.json").read_text())

    assert report.page(figures) == (folder / "reliability.md").read_text()


def test_figures_of_reliability_say_when_they_were_taken() -> None:
    """A section names the date of its run, and the commit where that was recorded; neither is a row of its table."""
    old = {"cases": 3, "minutes": 1.5, "date": "2026-11-25"}

    assert "Taken on 2026-11-25 in 1.5 minutes" in " ".join(report.page({"fuzz": old}).split())
    page = " ".join(report.page({"fuzz": {**old, "commit": "0a1b2c3-dirty"}}).split())
    assert "Taken on 2026-11-25 of commit 0a1b2c3-dirty in 1.5 minutes" in page
    assert page.endswith("| figure | value | | --- | ---: | | cases | 3 |")


def code_of(*folders: str) -> str:
    """All modules of folders at the top of the repository."""
    return "\n".join(path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))


@pytest.mark.parametrize("page", ["SECURITY.md", "DESIGN.md", "CONTRIBUTING.md"])
def test_named_tests_exist(page: str) -> None:
    """Each test that a page names is a function or a module; what ends with an ellipsis is the beginning of a name."""
    known = set(re.findall(r"^def (test_\w+)", code_of("tests"), re.MULTILINE))
    known |= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"\b(test_\w+)(…?)", (ROOT / page).read_text()))

    assert named
    assert [
        name for name, cut in named if not (any(test.startswith(name) for test in known) if cut else name in known)
    ] == []


def test_recipes_name_what_exists() -> None:
    """Where to find something and how to add it: each file that CONTRIBUTING.md names is there, and so is each name."""
    part = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where to find")[2].partition("## How the sandbox")[0]
    named = set(re.findall(r"`([\w./]+)`", part))
    files = {name for name in named if re.search(r"\.(py|md|yaml|json|j2)$", name)}
    folders = [ROOT, *(ROOT / name for name in ("src", "tests/unit", "tests/adapters"))]
    words = set(re.findall(r"\w+", code_of("src", "tests", "tools", "sandbox")))

    assert len(files) > 30
    assert [name for name in files if not any((folder / name).is_file() for folder in folders)] == []
    assert [name for name in named - files if "/" not in name and name.rpartition(".")[2] not in words] == []
