"""The option `flavors`: a YAML mapping of sizes, or every error in it at once."""

import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import flavors
from models import FLAVOR_NAME, BaseImage, Flavor, Scaling, VirtualMachineResources
from option_values import MOST_LABELS

UNIT = VirtualMachineResources(2, "7GiB", "10GiB")


def parse(text: str, scaling: Scaling | None = Scaling.FIXED, **changes: Any) -> flavors.Parsed:
    values = {"resources": UNIT, "base_image": BaseImage.JAMMY, "labels": (), "number": 4, **changes}
    return flavors.parse(text, flavors.Defaults(scaling=scaling, **values))


def only(text: str, **changes: Any) -> Flavor:
    parsed = parse(text, **changes)
    assert parsed.errors == []
    [found] = parsed.flavors
    return found


def test_every_key() -> None:
    """Each key of a flavour arrives as what it means."""
    text = """
        big-1:
          vm-cpu: 8
          vm-memory: 32GiB
          vm-disk: 100GiB
          labels: gpu, big
          base-image: noble
          count: 2
          max: 3
          min-idle: 1
    """

    assert only(text, labels=("unit", "gpu")) == Flavor(
        "big-1", VirtualMachineResources(8, "32GiB", "100GiB"), BaseImage.NOBLE, ("unit", "gpu", "big"), 2, 3, 1
    )


@pytest.mark.parametrize("value", ["", "~", "null", "{}", "{vm-cpu: , labels: ~}"])
def test_what_is_missing_is_the_units(value: str) -> None:
    """A flavour without keys, or with empty ones, has the unit's own options."""
    assert only(f"a: {value}", labels=("x",)) == Flavor("a", UNIT, BaseImage.JAMMY, ("x",), 4, 4, 0)


@pytest.mark.parametrize("value", ["[a, 22.04, on, 1]", "a,22.04, on, ,1", '"a, 22.04,on,1"', "[a, 'on', 22.04, 1, a]"])
def test_labels_are_texts_as_they_are_written(value: str) -> None:
    """Labels are a comma list or a list, and YAML makes neither numbers nor truth values of them."""
    assert set(only(f"a: {{labels: {value if value[0] in '[' + chr(34) else chr(34) + value + chr(34)}}}").labels) == {
        *("a", "22.04", "on", "1")
    }


@pytest.mark.parametrize("value", ["24.04", "'24.04'", "Noble"])
def test_base_image_may_be_its_number(value: str) -> None:
    """A release's number needs no quotes."""
    assert only(f"a: {{base-image: {value}}}").base_image is BaseImage.NOBLE


def test_names_are_texts_as_they_are_written() -> None:
    """A name that YAML would take for a truth value is a name, and the order is that of the option."""
    assert [flavor.name for flavor in parse("on: {}\nyes: {labels: y}\nnull: {labels: n}").flavors] == [
        *("on", "yes", "null")
    ]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("vm-cpu: true", "vm-cpu: 'true' is not a whole number from 1 to 10000"),
        ("vm-cpu: 0", "vm-cpu: '0' is not a whole number from 1 to 10000"),
        ("vm-cpu: 1.0", "vm-cpu: '1.0' is not a whole number"),
        ("vm-cpu: 010", "vm-cpu: '010' is not a whole number"),
        ("vm-cpu: 0x10", "vm-cpu: '0x10' is not a whole number"),
        ("vm-cpu: 1:30", "vm-cpu: '1:30' is not a whole number"),
        ("vm-cpu: 10001", "vm-cpu: '10001' is not a whole number"),
        (f"vm-cpu: {'9' * 5000}", f"vm-cpu: '{'9' * 40}…' is not a whole number"),
        ("count: -1", "count: '-1' is not a whole number from 0 to 10000"),
        ("max: .inf", "max: '.inf' is not a whole number"),
        ("min-idle: [1]", "min-idle: a list is not a single value"),
        ("vm-memory: 7", "vm-memory: '7' is not a size that LXD accepts, such as 7GiB or 512MiB"),
        (f"vm-memory: {'9' * 5000}GiB", f"vm-memory: '{'9' * 40}…' is not a size"),
        ("vm-memory: {a: 1}", "vm-memory: a mapping is not a single value"),
        ("vm-disk: 8EiB", "vm-disk: '8EiB' is not a size"),
        ("base-image: focal", "base-image: 'focal' is not one of jammy, 22.04, noble, 24.04, resolute, 26.04"),
        (r'labels: "b\td"', r"labels: 'b\td' not allowed; use printable characters"),
        ("labels: {a: 1}", "labels: a mapping is not a label; write a list of texts, or a comma list"),
        ("labels: [a, [b]]", "labels: a list is not a label"),
        ("labels: [a, ~]", "labels: an empty item is not a label"),
        (r'labels: "\ud800"', r"labels: '\ud800' not allowed"),
        ("vm-cpus: 2", "'vm-cpus': is not one of vm-cpu, vm-memory, vm-disk, labels, base-image, count, max, min-idle"),
        ("1: 2", "'1': is not one of vm-cpu"),
        ("count: 1, count: 1", "count: is there twice; remove one of them"),
        ("? [a] : 1", "a list in line 1 is not a name or a key; write a text"),
    ],
)
def test_wrong_entry_is_named(entry: str, expected: str) -> None:
    """The error names the flavour, the key, and what is wrong, in one line of bounded length."""
    [error] = parse(f"a: {{{entry}}}").errors

    assert error.startswith(f"a: {expected}")
    assert error.isprintable()
    assert len(error) < 200


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "'a' is not a mapping; write NAME: {KEY: VALUE}"),
        ("[a, b]", "a list is not a mapping"),
        ("42", "'42' is not a mapping"),
        ("a: 3", "a: '3' is not a mapping"),
        ("a: [vm-cpu]", "a: a list is not a mapping"),
        ("a: {}\na: {}", "a: is there twice; remove one of them"),
        *(
            (f"{name}: {{}}", f"{name!r} is not a flavour's name; use a small letter, then up to 19")
            for name in ("Big", "1", "-a", "a_b", "a" * 21, "größe", "22.04", "<<")
        ),
        ("? {a: b}\n: {}", "a mapping in line 1 is not a name or a key"),
        ("a: {\n", "is not YAML: "),
        ("a: b: c", "is not YAML: mapping values are not allowed here in line 1"),
        ("a: {}\n--- \nb: {}", "is not YAML: "),
        ("a: \x00", "is not YAML: it has a character that YAML does not accept"),
        (r'a: "\UFFFFFFFF"', "is not YAML: it has the number of a character that does not exist"),
        ("a: &x {}\nb: *x", "has an anchor, an alias or a tag in line 1; write the values themselves"),
        ("a: {}\nb: *x", "has an anchor, an alias or a tag in line 2"),
        ("a: !!python/object:os.system {}", "has an anchor, an alias or a tag in line 1"),
        ("a: {vm-cpu: !!int x}", "has an anchor, an alias or a tag in line 1"),
        ("[" * 4_000, "is nested too deeply"),
        ("#" * (16 * 1024 + 1), "16385 characters are too many; set 16384 at most"),
        ("\n".join(f"a{number}: {{}}" for number in range(17)), "17 flavours are too many; set 16 at most"),
    ],
)
def test_wrong_text_is_one_error(text: str, expected: str) -> None:
    """A text that is no mapping of names to mappings says why, in one line."""
    [error] = parse(text).errors

    assert error.startswith(expected)
    assert error.isprintable()


def test_all_errors_are_named_at_once() -> None:
    """Wrong names and keys of all flavours are named together, also keys of one whose name does not count."""
    parsed = parse("a: {vm-cpu: x, vm-disk: y}\nB: {vm-cpu: x}\nc: {size: 1}\na: {count: x}")

    assert [error.partition(" ")[0] for error in parsed.errors] == ["a:", "a:", "'B'", "'B':", "c:", "a:", "a:"]
    assert [error.split(": ")[1] for error in parsed.errors if ": " in error][:3] == ["vm-cpu", "vm-disk", "vm-cpu"]
    assert parsed.errors[-1].startswith("a: count: 'x' is not a whole number")
    assert [flavor.name for flavor in parsed.flavors] == ["a", "c"]


def test_labels_of_a_flavor_and_the_unit_are_limited_together() -> None:
    """GitHub counts all labels of a runner."""
    unit = tuple(f"l{number}" for number in range(MOST_LABELS))

    assert len(only("a: {labels: L0}", labels=unit).labels) == MOST_LABELS + 1
    assert parse("a: {labels: one}", labels=unit).errors == ["a: labels: 96 labels are too many; set 95 at most"]


@pytest.mark.parametrize(("scaling", "number"), [(Scaling.DEMAND, 1), (Scaling.FIXED, 0), (None, 0)])
def test_min_idle_is_within_the_maximum(scaling: Scaling | None, number: int) -> None:
    """More idle runners than there may be runners are an error where they count."""
    assert len(parse("a: {min-idle: 5}", scaling).errors) == number
    assert len(parse("a: {min-idle: 5, max: 4, count: 9}", scaling).errors) == number
    assert parse("a: {min-idle: 5, max: 5}", scaling).errors == []


def test_key_of_the_other_mode_has_no_effect() -> None:
    """A warning names each key that does not count; without a valid mode there is none."""
    text = "a: {count: 1, max: 2, min-idle: 1}"

    assert parse(text).warnings == [f"a: {key}: is ignored with scaling=fixed" for key in ("max", "min-idle")]
    assert parse(text, Scaling.DEMAND).warnings == ["a: count: is ignored with scaling=demand"]
    assert parse(text, None).warnings == []


def test_flavors_that_a_job_cannot_tell_apart() -> None:
    """Flavours with the same labels and base image are named, whatever the order and the case of the labels."""
    text = "a: {labels: 'x, y'}\nb: {labels: 'Y,x'}\nc: {labels: 'x,y', base-image: noble}\nd: {}"

    assert parse(text).warnings == ["a, b: have the same labels, so that a job cannot choose between them"]


def test_many_words_take_no_time() -> None:
    """A text of the largest size is read at once, whatever it has."""
    begin = time.monotonic()
    for piece in ("? ", "- ", "a: ", "[", "{a: ", "'", '"', "\n", "a,", "|\n "):
        parse(piece * (flavors.TEXT_LIMIT // len(piece)))

    assert time.monotonic() - begin < 20


WORDS = st.sampled_from(
    [*flavors.KEYS, "a", "b", "true", "~", "1", "7GiB", "&x ", "*x", "!!int ", "<<", "22.04", "2020-13-45", "0b", "1:3"]
)
SIGNS = st.sampled_from(
    [": ", "{", "}", "[", "]", ", ", "\n", "\n  ", "- ", "? ", "'", '"', "\\", "%YAML 9", "---\n", "|"]
)


@given(st.one_of(st.text(max_size=200), st.lists(st.one_of(WORDS, SIGNS), max_size=40).map("".join)))
def test_any_text_is_flavors_or_errors(text: str) -> None:
    """Nothing is raised; each error is one printable line; without an error each flavour is valid."""
    parsed = parse(text, Scaling.DEMAND)

    assert all(error.isprintable() and len(error) < 400 for error in parsed.errors)
    for flavor in () if parsed.errors else parsed.flavors:
        assert FLAVOR_NAME.fullmatch(flavor.name)
        assert 0 <= flavor.min_idle <= flavor.maximum
        assert flavor.resources.cpu > 0


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "Big"]), st.dictionaries(st.sampled_from(flavors.KEYS), VALUES)))
def test_any_values_are_flavors_or_errors(values: dict[str, Any]) -> None:
    """Values of any type at each key are accepted or named under the flavour and its key."""
    for error in parse(yaml.safe_dump(values)).errors:
        assert error.startswith(("a: ", "b: ", "'Big' ", "'Big': ", "has an anchor", "is not YAML"))
