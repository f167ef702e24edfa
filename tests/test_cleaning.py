"""Cleaning: what it repairs, drops and counts, and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ftfy
import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from storyllamas.corpus import cleaning, files
from storyllamas.corpus.cleaning import Cleaner, repaired
from storyllamas.corpus.fingerprints import Fingerprints, fingerprint
from storyllamas.errors import UserError
from storyllamas.params import Clean

NOTHING = {
    "repair_encoding": False,
    "min_words": 0,
    "drop_train_valid_overlap": False,
    "drop_duplicates": False,
}
TRAIN = [
    "A cat sat.",
    "B",
    "A cat sat.",
    "â€œIâ€™m here,â€ he said.",
    "“I’m here,” he said.",
    "C d",
]
VALID = ["C d", "E f g", "E f g", "B"]


def cleaned(**how: object) -> tuple[list[str], list[str], Cleaner]:
    cleaner = Cleaner(Clean(**NOTHING | how))
    valid = list(cleaner.valid(VALID))
    return list(cleaner.train(TRAIN)), valid, cleaner


def test_nothing_is_changed_by_default() -> None:
    train, valid, cleaner = cleaned()
    assert (train, valid) == (TRAIN, VALID)
    text_bytes = len("".join(TRAIN).encode())
    assert cleaner.train_counts == cleaning.CleaningCounts(stories=6, text_bytes=text_bytes)


def test_duplicates_are_dropped_within_a_part_only() -> None:
    train, valid, cleaner = cleaned(drop_duplicates=True)
    assert train == [*TRAIN[:2], *TRAIN[3:]]
    assert valid == ["C d", "E f g", "B"]
    assert (cleaner.train_counts.duplicates, cleaner.valid_counts.duplicates) == (1, 1)


def test_training_stories_that_are_validation_stories_are_dropped() -> None:
    train, valid, cleaner = cleaned(drop_train_valid_overlap=True)
    assert train == [TRAIN[0], *TRAIN[2:5]]
    assert valid == VALID
    assert (cleaner.train_counts.train_valid_overlap, cleaner.valid_counts.train_valid_overlap) == (
        2,
        0,
    )


def test_short_stories_are_dropped_by_their_words() -> None:
    train, valid, cleaner = cleaned(min_words=3)
    assert train == [TRAIN[0], *TRAIN[2:5]]
    assert valid == ["E f g", "E f g"]
    assert (cleaner.train_counts.short, cleaner.valid_counts.short) == (2, 2)


def test_characters_of_scripts_without_spaces_are_words() -> None:
    cleaner = Cleaner(Clean(**NOTHING | {"min_words": 5}))
    stories = ["从前有一只猫。", "猫。猫！", "むかしむかし", "กาลครั้ง", "A cat."]
    assert list(cleaner.valid(stories)) == ["从前有一只猫。", "むかしむかし", "กาลครั้ง"]


def test_stories_are_compared_after_their_repair_and_counted_once() -> None:
    how = {
        "repair_encoding": True,
        "min_words": 2,
        "drop_train_valid_overlap": True,
        "drop_duplicates": True,
    }
    train, valid, cleaner = cleaned(**how)
    assert train == ["A cat sat.", "“I’m here,” he said."]
    assert valid == ["C d", "E f g"]
    text_bytes = len("".join(train).encode())
    expected = cleaning.CleaningCounts(
        2, text_bytes, repaired=1, short=1, train_valid_overlap=1, duplicates=2
    )
    assert cleaner.train_counts == expected


def test_dropping_every_story_of_a_part_is_an_error() -> None:
    with pytest.raises(UserError, match="drops every validation story"):
        list(Cleaner(Clean(**NOTHING | {"min_words": 9})).valid(VALID))


def mistaken(text: str) -> str:
    """Decode UTF-8 as Windows-1252, as browsers do."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize("character", "“”‘’–—…éñü£°🙂")
def test_common_characters_are_repaired(character: str) -> None:
    text = f"Tom saw {character}it{character} there. {character}"
    assert repaired(mistaken(text)) == text
    assert repaired(text) == text


def test_a_closing_quote_without_its_last_byte_is_repaired() -> None:
    text = "“Hi,” said Tom. “Ho,” said Sue.”"
    for following in (" H", ".", "\n", "?"):
        broken = mistaken(text + following).replace("\x9d", "")
        assert "\x9d" not in broken
        assert repaired(broken) == text + following


@pytest.mark.parametrize(
    "text",
    ["Plain 'text', ﬁne.", "voilà, à la carte", '“a” and "b"', "ｗｉｄｅ & &amp;", "\ufffd lost"],
)
def test_correct_text_is_unchanged(text: str) -> None:
    assert repaired(text) == text


@given(st.text("‘’“”–—… \n.aâ", max_size=12))
def test_the_quick_test_misses_no_repair(text: str) -> None:
    whole = cleaning._INCOMPLETE_CLOSING_QUOTE.sub("â€\x9d", text)
    assert repaired(text) == ftfy.fix_encoding(whole, cleaning._ENCODING_ONLY)


def test_real_stories_are_free_of_mojibake_afterwards(tinystories: Path) -> None:
    broken = 0
    for story in files.read(tinystories / "TinyStories-train.txt"):
        result = repaired(story)
        broken += result != story
        assert not set(result) & set("âÃ€\x9d\ufffd†")
        assert result.isascii() == story.isascii()
    assert broken == 52


@given(st.lists(st.integers(1, 2**64 - 1) | st.integers(1, 40), max_size=3000))
def test_fingerprints_are_a_set(values: list[int]) -> None:
    marks, expected = Fingerprints(), set()
    for value in values:
        assert (value in marks) == (value in expected)
        assert marks.add(value) == (value not in expected)
        expected.add(value)
    assert len(marks) == len(expected)
    assert all(value in marks for value in expected)


def test_memory_does_not_depend_on_the_length_of_stories() -> None:
    tracemalloc.start()
    cleaner = Cleaner(Clean(**NOTHING | {"drop_duplicates": True}))
    stories = (f"Story {index % 18_000}" + " and so on" * 100 for index in range(20_000))
    assert sum(1 for _ in cleaner.train(stories)) == 18_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cleaner.train_counts.duplicates == 2_000
    assert peak < 18_000 * 40


def test_different_stories_have_different_fingerprints() -> None:
    assert len({fingerprint(f"Story {index}") for index in range(100_000)}) == 100_000


def test_the_stage_cleans_and_counts(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    for name, stories in (("train.txt", TRAIN), ("valid.txt", VALID)):
        with (source / name).open("wb") as file:
            files.write(file, ["", *stories])
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["corpus"]["source"] = str(source)
    values["corpus"]["clean"] = NOTHING | {
        "drop_train_valid_overlap": True,
        "drop_duplicates": True,
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    output = subprocess.run(
        [sys.executable, "-m", "stages.download"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    corpus = tmp_path / "data/corpus"
    assert list(files.read(corpus / "train.txt")) == [TRAIN[0], *TRAIN[3:5]]
    assert list(files.read(corpus / "valid.txt")) == ["C d", "E f g", "B"]
    metrics = json.loads((tmp_path / "metrics/corpus.json").read_text())
    assert metrics["train"] | {"text_bytes": 0} == {
        "stories": 3, "text_bytes": 0, "repaired": 0, "short": 0, "train_valid_overlap": 2,
        "duplicates": 1,
    }  # fmt: skip
    assert (metrics["valid"]["duplicates"], metrics["empty"], metrics["invalid_bytes"]) == (1, 2, 0)
    assert "2 dropped: also in valid" in output
