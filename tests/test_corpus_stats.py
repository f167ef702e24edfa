"""Statistics of a corpus, compared with plain counting over all stories, and their output."""

from __future__ import annotations

import io
import json
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from storyllamas import cli
from storyllamas.corpus import files, sources
from storyllamas.corpus_stats import fonts, plot, report, stats
from storyllamas.corpus_stats.counters import BoundedCounter, LengthCounter
from storyllamas.errors import UserError

TRAIN = [
    "Once upon a time, a cat didn't sit.\n“No,” it said.",
    "Once upon a time! A dog; a DOG; 'a' dog\tran.",
    "Tom.",
    "Tom.",
    "The [b]ear said: â€œI’m $5 here.â€\x9d",
]
VALID = ["Tom.", "A cow."]


def both(train: list[str] = TRAIN) -> stats.CorpusStats:
    return stats.collect({"train": iter(train), "valid": iter(VALID)}, seed=1)


def test_counts() -> None:
    found = both()
    assert list(found.parts) == ["train", "valid"]
    train = found.parts["train"]
    assert (train.stories, train.duplicates, train.mojibake, found.train_valid_overlap) == (
        5,
        1,
        1,
        2,
    )
    assert train.text_bytes == len("".join(TRAIN).encode())
    assert found.parts["valid"].duplicates == 0


def test_words_equal_a_plain_count() -> None:
    train = both(TRAIN[:4]).parts["train"]
    text = " ".join(TRAIN[:4]).lower()
    plain = Counter(re.findall(r"[a-z]+(?:'[a-z]+)?", text))
    assert "didn't" in plain
    assert dict(train.frequent_words) == plain
    assert (train.words, train.distinct_words) == (plain.total(), len(plain))
    assert train.frequent_words[0] == ("a", 6)
    assert train.words_to_cover == {"0.5": 4, "0.9": 11, "0.99": 13}


def test_characters_of_scripts_without_spaces_are_words() -> None:
    stories = ["从前有一只猫。它跑。", "从前有一只狗！", "A 猫 sat."]
    part = stats.collect({"": stories}, 1).parts[""]
    assert part.words == 8 + 6 + 3
    assert dict(part.frequent_words)["一"] == 2
    assert dict(part.frequent_words)["sat"] == 1
    assert part.beginnings[0] == ("从前有一", 2)


def test_beginnings_are_the_first_words_without_punctuation() -> None:
    assert both().parts["train"].beginnings == [
        ("Once upon a time", 2), ("Tom", 2), ("The [b]ear said: â€œI’m", 1),
    ]  # fmt: skip


def test_odd_characters_are_named() -> None:
    characters = {c.text: (c.code, c.name, c.count) for c in both().parts["train"].odd_characters}
    assert characters["“"] == ("U+201C", "LEFT DOUBLE QUOTATION MARK", 1)
    assert characters["\t"] == ("U+0009", "CONTROL", 1)
    assert characters["\x9d"] == ("U+009D", "CONTROL", 1)
    assert set(characters) == {c for story in TRAIN for c in story if not " " <= c <= "~"} - {"\n"}


def test_random_stories_depend_on_the_seed_and_are_spread_over_the_corpus() -> None:
    stories = [f"Story {i}." for i in range(300)]
    drawn = [stats.collect({"": stories}, seed).parts[""].samples for seed in range(300)]
    assert drawn[7] == stats.collect({"": stories}, 7).parts[""].samples
    numbers = [int(story[6:-1]) for samples in drawn for story in samples]
    thirds = np.histogram(numbers, 3, (0, 300))[0]
    assert thirds.sum() == 900
    assert (abs(thirds - 300) < 60).all()
    assert all(len(set(samples)) == 3 for samples in drawn)


@given(st.lists(st.integers(0, 500), min_size=1), st.floats(0, 1), st.integers(1, 20))
def test_lengths(values: list[int], share: float, bins: int) -> None:
    lengths = LengthCounter()
    for value in values:
        lengths.add(value)
    assert (lengths.count, lengths.total) == (len(values), sum(values))
    assert lengths.quantile(share) == np.quantile(values, share, method="inverted_cdf")
    histogram = lengths.histogram(bins)
    assert len(histogram) == bins
    assert (histogram[0][0], histogram[-1][1]) == (min(values), max(max(values), histogram[-1][1]))
    for first, last, count in histogram:
        assert sum(first <= value <= last for value in values) == count


def test_a_bounded_counter_forgets_rare_texts_and_keeps_frequent_ones() -> None:
    counter = BoundedCounter(limit=100)
    for i in range(1000):
        counter.update(["often", f"once {i}", "often"])
    assert counter.counts["often"] == 2000
    assert counter.counts.most_common(1) == [("often", 2000)]
    assert counter.forgot
    assert len(counter.counts) <= 100 <= counter.distinct


def test_too_many_different_words_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "BoundedCounter", lambda: BoundedCounter(limit=50))
    part = stats.collect({"": (f"word{'x' * i}" for i in range(200))}, 1).parts[""]
    assert part.words_forgotten
    assert 50 <= part.distinct_words <= 200


def test_memory_does_not_grow_with_the_stories() -> None:
    stories = (f"Once upon a time {i % 900} " + "it ran " * 90 for i in range(2500))
    tracemalloc.start()
    stats.collect({"": stories}, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 19


def written(folder: Path) -> Path:
    for name, stories in (("train.txt", TRAIN), ("valid.txt", VALID)):
        with (folder / name).open("wb") as file:
            files.write(file, stories)
    return folder


def run(*arguments: object) -> object:
    with pytest.raises(SystemExit) as ended:
        cli.main(["corpus", *map(str, arguments)])
    return ended.value.code


def test_a_folder_has_two_parts_or_one_and_a_file_is_one(tmp_path: Path) -> None:
    def read(path: Path) -> dict[str, list[str]]:
        return {name: list(stories) for name, stories in sources.parts(path).items()}

    written(tmp_path)
    assert read(tmp_path) == {"train": TRAIN, "valid": VALID}
    assert read(tmp_path / "valid.txt") == {"valid.txt": VALID}
    (tmp_path / "train.txt").rename(tmp_path / "tales.txt")
    assert read(tmp_path) == {tmp_path.name: TRAIN + VALID}
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "none")


def test_the_page_has_every_statistic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(written(tmp_path)) == 0
    page = capsys.readouterr().out
    for words in (
        r"stories +5 +2\n",
        r"repeated stories +1 +0\n",
        r"stories also in valid +2",
        r"wrongly decoded stories .* 1 +0\n",
        r"40\.0% +Once upon a time",
        r"U\+201C +“ LEFT DOUBLE",
        r"The \[b\]ear",
    ):
        assert re.search(words, page), words
    assert page.count("random story") == 3


def test_json_has_every_statistic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(written(tmp_path), "--json", "--seed", 3) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["train_valid_overlap"] == 2
    assert found["parts"]["train"]["frequent_words"][0] == ["a", 6]
    assert found["parts"]["valid"]["words_of_stories"]["quantiles"]["1"] == 2


def test_the_picture_is_the_same_for_the_same_corpus(tmp_path: Path) -> None:
    dollars = ["$a $b", "$x_{$", *TRAIN]
    for name in ("a.png", "b.png"):
        plot.draw(both(dollars), tmp_path / name)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("text", ["从前有一只猫。", "むかしむかし", "กาลครั้งหนึ่ง", "🐉 \x9d \ue000"])
def test_a_picture_of_any_script_needs_no_warning(
    tmp_path: Path, text: str, recwarn: pytest.WarningsRecorder
) -> None:
    plot.draw(stats.collect({f"{text}.txt": [text] * 3}, 1), tmp_path / "a.png")
    assert not list(recwarn)


def test_missing_characters_are_drawn_as_code_points() -> None:
    text = "从前 a\U0010fffd"
    family, missing = fonts.families([text])
    assert family[0] == "DejaVu Sans"
    assert "\U0010fffd" in missing
    assert fonts.spelled("ab", missing) == "ab"
    assert fonts.spelled("从前 a", {"从", "前"}) == "U+4ECE U+524D a"


def test_nothing_is_drawn_or_printed_without_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(run("--picture", "x.png")).startswith("error: data/corpus ")
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_a_part_of_one_story_is_shown() -> None:
    text = io.StringIO()
    found = stats.collect({"mine.txt": ["!"]}, 1)
    report.show(found, Console(file=text, width=80))
    assert "mine.txt" in text.getvalue()
