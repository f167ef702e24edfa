"""Measures of stories, compared with plain references, with sacrebleu and with values by hand."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyllamas.measures import diversity, language, memorization, summary, words
from storyllamas.measures.memorization import CopyIndex, Copying
from storyllamas.measures.story import Story

WORD = st.sampled_from(["a", "b", "c", "A", "d.", "“e”", "é", "it's", "f-g", "1"])
TEXT = st.lists(WORD, max_size=60).map(" ".join)
LONGER = st.lists(WORD, min_size=8, max_size=14).map(" ".join)


def runs(text: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}


def plain_copying(story: str, training: list[str]) -> Copying:
    """Compare a story with each training story, without an index."""
    mine, others = words.words(story), [words.words(each) for each in training]
    grams = [tuple(mine[i : i + 8]) for i in range(len(mine) - 7)]
    known = set().union(*(runs(other, 8) for other in others))
    longest = 0
    for n in range(8, len(mine) + 1):
        if any(runs(mine, n) & runs(other, n) for other in others):
            longest = n
    best = 0.0
    for other in others:
        pairs = [Counter(pairwise(each)) for each in (mine, other)]
        common, total = (pairs[0] & pairs[1]).total(), pairs[0].total() + pairs[1].total()
        best = max(best, 2 * common / total if total else 0.0)
    return Copying(len(grams), sum(gram in known for gram in grams), longest, pytest.approx(best))


@settings(max_examples=40)
@given(st.data(), st.sampled_from([1, 40, 1 << 20]))
def test_copying_equals_a_comparison_without_an_index(data: st.DataObject, chunk: int) -> None:
    """Training stories share runs with generated ones; chunks of any size give the same."""
    shared = data.draw(LONGER)
    stories = [f"{data.draw(TEXT)} {part} {data.draw(TEXT)}" for part in (shared, "", shared)]
    training = [f"{data.draw(TEXT)} {part} {data.draw(TEXT)}" for part in ("", shared, stories[0])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorization, "CHUNK_BYTES", chunk)
        found = CopyIndex(stories).compare(each.encode() for each in training)
    assert found == [plain_copying(story, training) for story in stories]


def test_a_run_ends_with_its_training_story() -> None:
    text = "one two three four five six seven eight nine ten"
    halves = [b"one two three four five six seven eight", b"nine ten"]
    assert CopyIndex([text]).compare(halves) == [Copying(3, 1, 8, 2 * 7 / (9 + 7))]


def test_nothing_is_copied_from_nothing() -> None:
    assert CopyIndex(["", "a"]).compare([]) == [Copying(0, 0, 0, 0.0)] * 2
    assert CopyIndex([]).compare([b"a b c"]) == []
    assert CopyIndex(["a b"]).compare([b"", b"b", b"c d"]) == [Copying(0, 0, 0, 0.0)]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_training_story_has_the_same_words_as_a_generated_one(text: str) -> None:
    assert words.spaced(text.encode()).decode().split() == words.words(text)


def test_words_and_sentences() -> None:
    assert words.words("“Don't,” said Émile-2.") == ["don", "t", "said", "émile", "2"]
    assert words.words("猫が好き ok") == ["猫", "が", "好", "き", "ok"]
    assert words.sentences('"Stop!" he said. Mr. 3.5 went\nhome…') == [
        *[("stop",), ("he", "said"), ("mr",), ("3", "5", "went"), ("home",)]
    ]


def test_distinct_within_and_between_stories() -> None:
    stories = ["The cat sat. The cat ran.", "the cat!", "x"]
    assert [diversity.distinct(story, 2) for story in stories] == [4 / 5, 1, 1]
    assert diversity.corpus_distinct(stories, 1) == 5 / 9
    assert diversity.corpus_distinct(stories, 2) == 4 / 6


def test_only_a_sentence_of_four_words_counts_as_repeated() -> None:
    assert diversity.repeats_sentence('He saw a dog. "Yes!" she said.\nhe saw a DOG!')
    assert not diversity.repeats_sentence("I see you. I see you. He saw a dog. He saw a cat.")


def test_self_bleu_equals_the_formula() -> None:
    """BLEU by hand: clipped precisions of 1 to 4 words, geometric mean, brevity penalty."""
    pytest.importorskip("sacrebleu", exc_type=ImportError)
    first, second = "a b c d e f", "a b c d x y"
    # Each story shares 4 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples.
    expected = (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert diversity.self_bleu([first, second]) == pytest.approx([expected] * 2)
    assert diversity.self_bleu([first, first, second])[0] == pytest.approx(1)
    assert diversity.self_bleu([first]) == [0]


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("This girl is Lily.", " And then came Tom. Tom went home with Mom.", True),
        ("This girl is Lily.", " And then came Tom. Lily saw him.", False),
        ("This girl is Lily.", " They went home with Mom.", False),
        ("", "He saw Ann. So it was. He saw Bob. It was so.", True),
        ("", "A dog ran. The Dog and a cat.", False),
    ],
)
def test_names_change_if_none_of_the_beginning_comes_back(
    prompt: str, completion: str, expected: bool
) -> None:
    assert language.changes_names(Story(prompt, completion, "eos")) is expected


def test_harper_counts_faults_of_the_completion_only() -> None:
    pytest.importorskip("harper", exc_type=ImportError)
    stories = [
        Story("This is an test.", " He has a cat.", "eos"),
        Story("This is a test.", " He has an cat and the the dog.", "eos"),
        Story("", "Sam was happy.", "eos"),
    ]
    assert language.faults(stories) == [0, 2, 0]


def test_the_grade_is_that_of_the_formula() -> None:
    """0.39 words a sentence + 11.8 syllables a word - 15.59 (Kincaid et al. 1975)."""
    pytest.importorskip("textstat", exc_type=ImportError)
    (grade,) = language.grade_levels(["The cat sat on the mat. The dog ran to the cat."])
    assert grade == pytest.approx(0.39 * 6 + 11.8 * 1 - 15.59, abs=0.01)


def test_the_summary_has_means_and_leaves_out_what_needs_a_missing_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("sacrebleu.metrics.bleu", "harper", "textstat"):
        monkeypatch.setitem(sys.modules, module, None)
    copied = " ".join(f"w{i}" for i in range(30))
    stories = [Story("x", copied, "eos"), Story("", "a b a b a b", "max_tokens")]
    found = summary.summarize(stories, [copied.encode()])
    assert found.groups["memorization"] == pytest.approx(
        {
            "ngram_overlap_8": 0.5,
            "longest_copied_words": 30,
            "long_copy_fraction": 0.5,
            "nearest_rouge_2": 0.5,
        }
    )
    assert found.groups["diversity"]["distinct_2"] == fmean([1, 2 / 5])
    assert found.groups["diversity"]["corpus_distinct_2"] == 31 / 34
    assert found.groups["language"] == {"eos_fraction": 0.5, "name_change_fraction": 0}
    assert len(found.notes) == 3
    assert all("is left out: " in note and "[measures]" in note for note in found.notes)
