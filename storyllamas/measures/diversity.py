"""How much generated stories repeat themselves and each other."""

from __future__ import annotations

from collections.abc import Sequence

from storyllamas.extras import needs
from storyllamas.measures.words import ngrams, sentences, words

MIN_SENTENCE_WORDS = 4
"""Words of the shortest sentence that counts as repeated; shorter ones recur in good stories."""


def distinct(story: str, n: int) -> float:
    """Return distinct-n, the share of different n-grams (Li et al. 2016, arXiv:1510.03055).

    A story without an n-gram repeats none: 1.
    """
    return _share_of_different(ngrams(words(story), n))


def corpus_distinct(stories: Sequence[str], n: int) -> float:
    """Return the share of different n-grams among those of all stories together."""
    return _share_of_different([gram for story in stories for gram in ngrams(words(story), n)])


def _share_of_different(grams: list[tuple[str, ...]]) -> float:
    return len(set(grams)) / len(grams) if grams else 1.0


def repeats_sentence(story: str) -> bool:
    """Return whether a sentence of at least `MIN_SENTENCE_WORDS` words occurs twice."""
    found = [each for each in sentences(story) if len(each) >= MIN_SENTENCE_WORDS]
    return len(set(found)) < len(found)


def self_bleu(stories: Sequence[str]) -> list[float]:
    """Return BLEU of each story with all other stories as references (Zhu et al. 2018), 0 … 1.

    It is 0 for a single story.

    Raises:
        UserError: sacrebleu is not installed.
    """
    with needs("measures"):
        from sacrebleu.metrics.bleu import BLEU
    bleu = BLEU(effective_order=True, tokenize="none")
    texts = [" ".join(words(story)) for story in stories]
    if len(texts) < 2:
        return [0.0] * len(texts)
    return [
        bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score / 100
        for i, text in enumerate(texts)
    ]
