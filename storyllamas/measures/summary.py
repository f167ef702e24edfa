"""All measures of generated stories: of each story, and as metrics/eval.json has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from storyllamas.errors import UserError
from storyllamas.measures import diversity, language, memorization
from storyllamas.measures.story import Story
from storyllamas.measures.words import words

LONG_COPY = 25
"""Words of the longest copied run that does not count as long yet."""

PerStory = Callable[[Sequence[Story]], Sequence[float]]


def _of_text(measure: Callable[[str], float]) -> PerStory:
    return lambda stories: [measure(story.completion) for story in stories]


def _distinct(n: int) -> PerStory:
    return _of_text(lambda text: diversity.distinct(text, n))


def _faults_per_100_words(stories: Sequence[Story]) -> list[float]:
    counts = [max(1, len(words(story.completion))) for story in stories]
    faults = language.faults(stories)
    return [100 * found / count for found, count in zip(faults, counts, strict=True)]


MEASURES: dict[str, dict[str, PerStory]] = {
    "diversity": {
        "distinct_1": _distinct(1),
        "distinct_2": _distinct(2),
        "distinct_3": _distinct(3),
        "repeated_sentence_fraction": _of_text(diversity.repeats_sentence),
        "self_bleu": lambda stories: diversity.self_bleu([story.completion for story in stories]),
    },
    "language": {
        "faults_per_100_words": _faults_per_100_words,
        "flesch_kincaid_grade": lambda stories: language.grade_levels(
            [story.completion for story in stories]
        ),
        "eos_fraction": lambda stories: [story.stop == "eos" for story in stories],
        "name_change_fraction": lambda stories: [language.changes_names(each) for each in stories],
    },
}
"""Functions that return a value for each story, by family and name; the mean is the metric."""


@dataclass(frozen=True)
class Summary:
    """The measures of a set of stories.

    Attributes:
        groups: value of each measure, by family and name.
        notes: a sentence for each measure that is left out.
    """

    groups: dict[str, dict[str, float]]
    notes: list[str]


def summarize(stories: Sequence[Story], training: Iterable[bytes]) -> Summary:
    """Measure the completions of at least one story.

    Args:
        stories: the stories.
        training: the training stories in UTF-8, which are read once as a stream.
    """
    copied = copying(stories, training)
    groups = {"memorization": {name: fmean(values) for name, values in copied.items()}}
    groups["memorization"]["longest_copied_words"] = max(copied["longest_copied_words"])
    notes = []
    for family, measures in MEASURES.items():
        groups[family] = {}
        for name, measure in measures.items():
            try:
                groups[family][name] = fmean(measure(stories))
            except UserError as error:
                notes.append(f"{name} is left out: {error}")
    texts = [story.completion for story in stories]
    for n, name in enumerate(("corpus_distinct_1", "corpus_distinct_2", "corpus_distinct_3"), 1):
        groups["diversity"][name] = diversity.corpus_distinct(texts, n)
    return Summary(groups, notes)


def copying(stories: Sequence[Story], training: Iterable[bytes]) -> dict[str, list[float]]:
    """Return the measures of memorization by name, with a value for each story.

    Args:
        stories: the stories.
        training: as for `summarize`.
    """
    found = memorization.CopyIndex([story.completion for story in stories]).compare(training)
    return {
        "ngram_overlap_8": [each.copied_ngrams / max(1, each.ngrams) for each in found],
        "longest_copied_words": [each.longest for each in found],
        "long_copy_fraction": [each.longest > LONG_COPY for each in found],
        "nearest_rouge_2": [each.rouge_2 for each in found],
    }
