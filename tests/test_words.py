"""Words of text in scripts with and without spaces, and a byte order mark in prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyllamas import prompts
from storyllamas.corpus import words


@given(st.text("ab .,\n\t’é", max_size=30))
def test_words_are_separated_by_spaces(text: str) -> None:
    assert words.split(text) == text.split()
    assert words.count(text) == len(text.split())
    assert words.beginning(text, 3) == " ".join(text.split()[:3])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("从前有 a cat猫。", ["从", "前", "有", "a", "cat", "猫", "。"]),
        ("がっき", ["が", "っ", "き"]),
        ("ครั้ง", ["ค", "รั้", "ง"]),
        ("𠀀𠀁", ["𠀀", "𠀁"]),
        ("안녕 하세요", ["안녕", "하세요"]),
    ],
)
def test_characters_without_spaces_are_words(text: str, expected: list[str]) -> None:
    assert words.split(text) == expected


def test_the_beginning_keeps_spaces_only_where_the_text_has_them() -> None:
    assert words.beginning("从前  有a b", 5) == "从前 有a b"


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfOnce upon a time\nTom\n")
    assert prompts.read_lines(str(path)) == ["Once upon a time", "Tom"]
