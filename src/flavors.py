"""The option `flavors`: a YAML mapping of names to sizes, or all that is wrong with it at once. Nothing here does I/O.

Each value is read as the text that the operator wrote: YAML alone would make 24.1 of a base image 24.10, a number of
`true`, and 8 of 010. Anchors, aliases and tags are refused: a small text with them can be a very large value.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import yaml

from models import FLAVOR_NAME, BaseImage, Flavor, Scaling, VirtualMachineResources
from option_values import parse_base_image, parse_labels, parse_size, shortened

KEYS = ("vm-cpu", "vm-memory", "vm-disk", "labels", "base-image", "count", "max", "min-idle")
# Keys that have no effect in a mode.
IGNORED = {Scaling.FIXED: ("max", "min-idle"), Scaling.DEMAND: ("count",)}
# Of flavours of one unit: each of them may have an image and a scale set of its own.
MOST_FLAVORS = 16
# Of the option, in characters.
TEXT_LIMIT = 16 << 10
# Of CPUs and runners: more than any machine has.
MOST = 10_000

_Values = dict[str, yaml.Node]


@dataclass(frozen=True)
class Defaults:
    """The unit's own options, which a flavour has where it does not name others.

    ``scaling`` is None where that option itself is not valid.
    """

    resources: VirtualMachineResources
    base_image: BaseImage
    labels: tuple[str, ...]
    number: int
    scaling: Scaling | None


@dataclass
class Parsed:
    """The flavours in the order of the option, what is wrong with others, and what has no effect."""

    flavors: tuple[Flavor, ...] = ()
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Builds nodes only, and refuses what refers to something else."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            line = event.start_mark.line + 1
            raise ValueError(f"has an anchor, an alias or a tag in line {line}; write the values themselves")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def parse(text: str, defaults: Defaults) -> Parsed:
    """Read the option. An empty text, or a mapping without a name, has no flavours; nothing is raised."""
    parsed = Parsed()
    try:
        entries = _entries(_compose(text))
        if len(entries) > MOST_FLAVORS:
            raise ValueError(f"{len(entries)} flavours are too many; set {MOST_FLAVORS} at most")
    except ValueError as error:
        parsed.errors.append(str(error))
        return parsed
    found: dict[str, Flavor] = {}
    for name, node in entries:
        is_valid = FLAVOR_NAME.fullmatch(name) is not None
        if not is_valid:
            form = "a small letter, then up to 19 small letters, digits and hyphens"
            parsed.errors.append(f"{shortened(name)} is not a flavour's name; use {form}")
        elif name in found:
            parsed.errors.append(f"{name}: is there twice; remove one of them")
        # Also one that does not count: what else is wrong with it is named now, not after its name was corrected.
        flavor = _Entry(name if is_valid else shortened(name), defaults, parsed).flavor(node)
        if is_valid:
            found.setdefault(name, flavor)
    parsed.flavors = tuple(found.values())
    parsed.warnings += _without_choice(parsed.flavors)
    return parsed


def _compose(text: str) -> yaml.Node | None:
    if len(text) > TEXT_LIMIT:
        raise ValueError(f"{len(text)} characters are too many; set {TEXT_LIMIT} at most")
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)  # nosec B506
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"is not YAML: {error.problem or error.context}{where}; correct it") from None
    except yaml.YAMLError:
        raise ValueError("is not YAML: it has a character that YAML does not accept; remove it") from None
    except (OverflowError, ValueError) as error:
        # What this loader refuses by itself has words of its own.
        if not (isinstance(error, OverflowError) or str(error).startswith("chr()")):
            raise
        raise ValueError("is not YAML: it has the number of a character that does not exist; correct it") from None
    except RecursionError:
        raise ValueError("is nested too deeply; write a mapping of names to keys and values") from None
    return node


def _entries(node: yaml.Node | None) -> list[tuple[str, yaml.Node]]:
    """Keys as they are written, and their values; also those that are there twice. None and null have none."""
    if node is None or _is_null(node):
        return []
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{_kind(node)} is not a mapping; write NAME: {{KEY: VALUE}}")
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{_kind(key)} in line {key.start_mark.line + 1} is not a name or a key; write a text")
    return [(key.value, value) for key, value in node.value]


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _kind(node: yaml.Node) -> str:
    """What a value is that should be something else."""
    if isinstance(node, yaml.ScalarNode):
        return shortened(node.value)
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"


class _Entry:
    """One flavour of the option; what is wrong with it goes to ``parsed``."""

    def __init__(self, name: str, defaults: Defaults, parsed: Parsed) -> None:
        self._name = name
        self._defaults = defaults
        self._parsed = parsed
        self._values: _Values = {}

    def flavor(self, node: yaml.Node) -> Flavor:
        """The flavour; where a key is wrong, its default stands in for the value."""
        unit = self._defaults
        self._values = self._keys(node)
        resources = VirtualMachineResources(
            self._read("vm-cpu", partial(_number, minimum=1), unit.resources.cpu),
            self._read("vm-memory", _size, unit.resources.memory),
            self._read("vm-disk", _size, unit.resources.disk),
        )
        flavor = Flavor(
            self._name,
            resources,
            self._read("base-image", lambda node: parse_base_image(_text(node)), unit.base_image),
            self._read("labels", partial(_labels, unit.labels), unit.labels),
            count=self._read("count", _number, unit.number),
            maximum=self._read("max", _number, unit.number),
            min_idle=self._read("min-idle", _number, 0),
        )
        if unit.scaling is Scaling.DEMAND and flavor.min_idle > flavor.maximum:
            self._note("min-idle", f"{flavor.min_idle} exceeds max {flavor.maximum}; lower it, or set a larger max")
        return flavor

    def _keys(self, node: yaml.Node) -> _Values:
        """The values of known keys, without those that are null."""
        try:
            entries = _entries(node)
        except ValueError as error:
            self._parsed.errors.append(f"{self._name}: {error}")
            return {}
        found: _Values = {}
        for key, value in entries:
            if key not in KEYS:
                self._note(shortened(key), f"is not one of {', '.join(KEYS)}; use one of them")
            elif key in found:
                self._note(key, "is there twice; remove one of them")
            else:
                found[key] = value
        given = {key: value for key, value in found.items() if not _is_null(value)}
        scaling = self._defaults.scaling
        if scaling:
            ignored = [key for key in IGNORED[scaling] if key in given]
            self._parsed.warnings += [
                f"{self._name}: {key}: is ignored with scaling={scaling.value}" for key in ignored
            ]
        return given

    def _read(self, key: str, read: Callable[[yaml.Node], Any], default: Any) -> Any:
        if key not in self._values:
            return default
        try:
            return read(self._values[key])
        except ValueError as error:
            self._note(key, str(error))
            return default

    def _note(self, key: str, error: str) -> None:
        self._parsed.errors.append(f"{self._name}: {key}: {error}")


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"{_kind(node)} is not a single value; write one")
    return str(node.value)


def _number(node: yaml.Node, minimum: int = 0) -> int:
    text = _text(node).strip()
    if not re.fullmatch("0|[1-9][0-9]{0,8}", text) or not minimum <= int(text) <= MOST:
        raise ValueError(f"{shortened(text)} is not a whole number from {minimum} to {MOST}; set such a number")
    return int(text)


def _size(node: yaml.Node) -> str:
    text = _text(node)
    try:
        return parse_size(text)
    except ValueError:
        # A text of thousands of digits is not repeated in a status.
        raise ValueError(
            f"{shortened(text)} is not a size that LXD accepts, such as 7GiB or 512MiB; set such a size"
        ) from None


def _labels(unit: tuple[str, ...], node: yaml.Node) -> tuple[str, ...]:
    """The unit's labels and the flavour's own: a comma list, or a list of texts."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for item in items:
        if not isinstance(item, yaml.ScalarNode) or _is_null(item):
            what = "an empty item" if isinstance(item, yaml.ScalarNode) else _kind(item)
            raise ValueError(f"{what} is not a label; write a list of texts, or a comma list")
    return parse_labels(",".join([*unit, *(item.value for item in items)]))


def _without_choice(flavors: Iterable[Flavor]) -> list[str]:
    """A line for each group of flavours between which a job cannot choose, because it sees the same labels."""
    groups: dict[tuple[BaseImage, frozenset[str]], list[str]] = {}
    for flavor in flavors:
        seen = (flavor.base_image, frozenset(label.lower() for label in flavor.labels))
        groups.setdefault(seen, []).append(flavor.name)
    return [
        f"{', '.join(names)}: have the same labels, so that a job cannot choose between them"
        for names in groups.values()
        if len(names) > 1
    ]
