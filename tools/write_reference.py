"""Write the pages of docs/reference that the code decides: options.md, actions.md and events.md.

Run from anywhere: python tools/write_reference.py writes them, with --check it only says which are out of date.
It needs PyYAML and pydantic, which the charm's own dependencies bring along.
"""

import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs/reference"
WIDTH = 120


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check compare them; 1 where one is out of date."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    outdated = [name for name, text in pages().items() if read(TARGET / name) != text]
    for name in outdated:
        if arguments:
            print(f"{TARGET / name} is out of date: run python tools/write_reference.py", file=sys.stderr)
        else:
            TARGET.mkdir(parents=True, exist_ok=True)
            (TARGET / name).write_text(pages()[name])
            print(f"{TARGET / name} is written")
    return 1 if arguments and outdated else 0


def read(path: Path) -> str:
    """A page as it is, empty if there is none."""
    return path.read_text() if path.exists() else ""


def pages() -> dict[str, str]:
    """The generated pages by file name, as they should be today."""
    options = yaml.safe_load((ROOT / "config.yaml").read_text())["options"]
    actions = yaml.safe_load((ROOT / "actions.yaml").read_text())
    return {
        "options.md": page("config.yaml", options_page(options)),
        "actions.md": page("actions.yaml", actions_page(actions)),
        "events.md": page("src/metrics/events.py", events_page()),
    }


def page(source: str, lines: Iterable[str]) -> str:
    """A whole page, with a note of where it comes from."""
    note = f"<!-- Written by tools/write_reference.py from {source}. Edit that, and run it again. -->"
    return "\n".join([note, "", *lines]).rstrip() + "\n"


def paragraph(text: str) -> Iterator[str]:
    """Text in lines that fit, with a blank one after it."""
    for part in text.strip().split("\n\n"):
        yield from textwrap.wrap(part, WIDTH, break_long_words=False, break_on_hyphens=False)
        yield ""


def options_page(options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Every option with its type, its default and its meaning."""
    yield from ("# Options", "")
    yield from paragraph(
        "Set them with `juju config github-runner OPTION=VALUE`. A value that is not accepted blocks the unit with a "
        "line that names the option, what is wrong, and the accepted form; runners that exist are left alone "
        "([statuses](statuses.md#blocked)). How to use them is in the [how-to guides](../index.md#how-to-guides)."
    )
    yield from ("| option | type | default |", "| --- | --- | --- |")
    for name, option in options.items():
        yield f"| [`{name}`](#{name}) | {option['type']} | {default(option)} |"
    yield ""
    for name, option in options.items():
        yield from (f"## `{name}`", "")
        yield from paragraph(option["description"])
        yield from (f"Type: {option['type']}. Default: {default(option)}.", "")


def default(option: Mapping[str, Any]) -> str:
    """An option's default for people."""
    if "default" not in option:
        return "none"
    if option["default"] == "":
        return "empty"
    return f"`{str(option['default']).lower() if option['type'] == 'boolean' else option['default']}`"


def actions_page(actions: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Every action with its parameters."""
    yield from ("# Actions", "")
    yield from paragraph(
        "Run them with `juju run github-runner/0 ACTION`. An action that cannot do its work fails with the reason. "
        "[Find out what is wrong](../how-to/debug.md#look-at-the-runners) shows how to read the results."
    )
    for name, action in actions.items():
        yield from (f"## `{name}`", "")
        yield from paragraph(action["description"])
        given = action.get("params") or {}
        for parameter, schema in given.items():
            yield f"- `{parameter}` ({schema.get('type', 'any')}): {schema.get('description', '')}"
        yield from ("" if given else "It takes no parameters.", "")


def events_page() -> Iterator[str]:
    """Every event with its fields."""
    if str(ROOT / "src") not in sys.path:
        sys.path.insert(0, str(ROOT / "src"))
    from metrics import events

    yield from ("# Metrics events", "")
    yield from paragraph(
        f"While the relation `cos-agent` exists, each event is one JSON object on a line of its own in "
        f"`{events.METRICS_LOG_PATH}`. Keys without a value are left out. `event` is the event's name, `flavor` the "
        "application's, `flavor_name` the flavour of the runners (`default` without the option `flavors`), `unit` the "
        "unit's name (for example `github-runner/0`), `timestamp` UNIX time. Durations and ages are seconds. "
        "[Observe](../how-to/observe.md) says what the events are used for."
    )
    for event in events.Event.__subclasses__():
        if event.__module__ != events.__name__:
            continue  # a test's own
        # The name is a property that needs no field.
        yield from (f"## `{event.model_construct().name}`", "")
        yield from paragraph((inspect.getdoc(event) or "").replace("``", "`"))
        yield from ("| field | type | present |", "| --- | --- | --- |")
        yield "| `event` | string | always |"
        yield "| `unit` | string | always |"
        schema = event.model_json_schema()
        for name, field in schema["properties"].items():
            if name == "event":
                continue
            present = "always" if name in schema["required"] else "if there is a value"
            yield f"| `{name}` | {kind(field, schema.get('$defs', {}))} | {present} |"
        yield ""


def kind(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON schema's type for people."""
    if "anyOf" in field:
        return " or ".join(kind(one, definitions) for one in field["anyOf"] if one.get("type") != "null")
    if "$ref" in field:
        parts = definitions[field["$ref"].rsplit("/", 1)[-1]]["properties"]
        inside = ", ".join(f"`{name}` ({kind(part, definitions)})" for name, part in parts.items())
        return f"object with {inside}"
    limit = f", {field['minimum']:g} or more" if "minimum" in field else ""
    return f"{field['type']}{limit}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
