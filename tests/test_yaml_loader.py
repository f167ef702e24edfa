"""YAML is read as DVC reads it, and an odd file is an error in one sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest
from dvc.utils.serialize import loads_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAMLError

from storyllamas.errors import UserError
from storyllamas.yaml_loader import loads

WORDS = (
    "true True TRUE false yes Yes no NO on off y n null Null ~ .inf -.INF .nan .NaN 1e3 1.e3 .5 "
    "-.5e1 010 0o17 0x1F 0b11 1_000 1:30 1:30:00.5 2001-12-14 2001-12-14t21:59:43.10-05:00 09 +1 "
    "1e 0x 6.02E23"
).split()
SCALARS = st.one_of(
    st.sampled_from(WORDS),
    st.text("0123456789+-._:eExXoObBaf", max_size=8),
    st.from_regex(r"[-+]?[0-9_.]{1,6}([eE][-+]?[0-9]{0,2})?", fullmatch=True),
    st.text("nNyYtTrRuUeEfFaAlLsSoO~", max_size=5),
).filter(lambda text: ":" not in (text[:1], text[-1:]))  # a mapping
QUOTED = st.builds("{0}{1}{0}".format, st.sampled_from("'\""), SCALARS)
ITEMS = st.one_of(SCALARS, QUOTED)


ERROR = ("error",)


def ours(text: str) -> Any:
    try:
        return loads(text, "params.yaml")
    except UserError:
        return ERROR


def theirs(text: str) -> Any:
    try:
        return loads_yaml(text)
    except (YAMLError, ValueError, IndexError, AttributeError):
        return ERROR


def same(ours: Any, other: Any) -> bool:
    if isinstance(ours, float) and math.isnan(ours):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(ours, dict):
        return ours.keys() == other.keys() and all(same(ours[key], other[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(other) and all(map(same, ours, other))
    return type(ours) is type(other) and ours == other


@settings(max_examples=500)
@given(ITEMS, st.lists(ITEMS, max_size=3))
def test_scalars_are_those_of_dvc(scalar: str, items: list[str]) -> None:
    text = f"a: {scalar}\nb:\n  c: {scalar} # comment\n  d:\n"
    text += "".join(f"  - {item}\n" for item in items)
    expected = theirs(text)
    found = ours(text)
    assert (found == expected == ERROR) or same(found, expected)


@given(SCALARS)
def test_keys_are_text(key: str) -> None:
    text = f"{key}: 1\n"
    expected = theirs(text)
    if isinstance(expected, dict) and not all(isinstance(each, str) for each in expected):
        expected = ERROR
    assert ours(text) == expected


@pytest.mark.parametrize("scalar", WORDS)
def test_each_word_is_that_of_dvc(scalar: str) -> None:
    assert same(loads(f"a: {scalar}", "params.yaml"), theirs(f"a: {scalar}"))


def test_merged_mappings_are_those_of_dvc() -> None:
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n"
    assert (
        loads(text, "params.yaml") == theirs(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}
    )


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 900))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, "has more than 100,000 values"),
        (MERGE_BOMB, "has more than 100,000 values"),
        (CHAIN, "is nested deeper than 50 levels"),
        ("a: &a [*a]", "has an alias to a value that contains it"),
        ("a: &a {b: *a}", "has an alias to a value that contains it"),
        ("a: &a\n  <<: *a\n", "has an alias to a value that contains it"),
        ("[" * 100_000, "is nested deeper than 50 levels"),
        ("{a: " * 100_000, "is nested deeper than 50 levels"),
        ("- " * 5_000 + "a", "is nested deeper than 50 levels"),
        ("a: " + "1" * 5_000, "111… in line 1 of params.yaml is not a whole number of at most"),
        ("a:\n- 1_2__\n- -__", "-__ in line 3 of params.yaml is not a whole number"),
        ("a: !!int x", "x in line 1 of params.yaml is not a whole number"),
        ("a: !!float x", "x in line 1 of params.yaml is not a number"),
        ("a: 2001-99-99", "2001-99-99 in line 1 of params.yaml is not a date"),
        ("a: !!timestamp x", "x in line 1 of params.yaml is not a date"),
        ("[1, 2]: a", "the key in line 1 of params.yaml is not text"),
        ("{x: 1}: a", "the key in line 1 of params.yaml is not text"),
        ("b: 1\n2001-12-14: a", "the key 2001-12-14 in line 2 of params.yaml is not text"),
        ("7: a", "the key 7 in line 1 of params.yaml is not text"),
        ("? \n: a", "the key  in line 1 of params.yaml is not text"),
        ("a: 1\na: 2", "gives 'a' twice, again in line 2"),
        ("%YAML 1.1\n---\na: 1", "has a %YAML directive for version 1.1"),
        ("a: *nothing", "is not YAML: found undefined alias"),
        ("a: =", "is not YAML: could not determine a constructor"),
        ("a: !!python/object:os.system {}", "is not YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2", "is not YAML: expected a single document"),
        ("a: \0", "is not YAML"),
        ("a: '", "is not YAML"),
    ],
)  # fmt: skip
def test_odd_files_are_errors_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as rejected:
        loads(text, "params.yaml")
    assert sentence in str(rejected.value)
    assert "\n" not in str(rejected.value)
    assert len(str(rejected.value)) < 400


def test_an_empty_file_has_no_values() -> None:
    assert loads("", "params.yaml") is None
    assert loads("# comment", "params.yaml") is None
