"""How much of generated stories stands in the training text.

The n-grams of the generated stories, which are few, are numbered. The training text then passes by,
some stories at a time, so that memory does not grow with it. All results are exact: an n-gram is
found by the numbers of its two halves, not by a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from storyllamas.measures.words import spaced, words

Ints = npt.NDArray[np.int64]

N = 8
"""Words in the n-grams whose share is measured, and the shortest copied run."""

CHUNK_BYTES = 1 << 20
"""Training text that is compared at a time; a longer story is compared as a whole."""

_SEPARATOR = b"|"  # `spaced` leaves none in a story


@dataclass(frozen=True)
class Copying:
    """What of a story stands in the training text.

    Attributes:
        ngrams: number of the story's n-grams of `N` words.
        copied_ngrams: number of those that stand in the training text.
        longest: words in the longest run that stands in a training story; 0 if it is below `N`.
        rouge_2: ROUGE-2 (the F-score) with the training story where that is highest, 0 … 1.
    """

    ngrams: int
    copied_ngrams: int
    longest: int
    rouge_2: float


class _Level:
    """The n-grams of the generated stories for one n, numbered from 1; 0 is any other n-gram.

    An n-gram is a pair of shorter ones, of which the second begins `step` words after the first.
    """

    def __init__(self, shorter: Ints, step: int) -> None:
        """Number the n-grams, from the numbers of the shorter ones at each position."""
        self.step = step
        self.base = int(shorter.max(initial=0)) + 1
        positions, keys = self._pairs(shorter)
        self.keys, numbers = np.unique(keys, return_inverse=True)
        self.numbers = np.zeros(len(shorter), np.int64)
        self.numbers[positions] = numbers + 1
        self.seen = np.zeros(len(self.keys) + 1, np.bool_)

    def _pairs(self, shorter: Ints) -> tuple[Ints, Ints]:
        """Return the positions where both halves are known, and the key of each pair."""
        first, second = shorter[: -self.step], shorter[self.step :]
        positions = np.flatnonzero((first > 0) & (second > 0))
        return positions, first[positions] * self.base + second[positions]

    def find(self, shorter: Ints) -> Ints:
        """Return the number of the n-gram at each position of a training text."""
        found = np.zeros(len(shorter), np.int64)
        positions, keys = self._pairs(shorter)
        found[positions] = self._look_up(keys)
        return found

    def extend(self, positions: Ints, shorter: Ints) -> tuple[Ints, Ints]:
        """Find n-grams that are one word longer; return the positions and numbers of those found.

        Args:
            positions: ascending positions of known n-grams; `step` is 1.
            shorter: their numbers.
        """
        at = np.flatnonzero(np.diff(positions) == 1)
        numbers = self._look_up(shorter[at] * self.base + shorter[at + 1])
        is_known = numbers > 0
        return positions[at[is_known]], numbers[is_known]

    def _look_up(self, keys: Ints) -> Ints:
        """Return the number of each key; 0 if no generated story has it."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at + 1, 0)


class CopyIndex:
    """An index of generated stories that training stories are compared with."""

    def __init__(self, stories: Sequence[str]) -> None:
        """Index stories; prompts are not part of them."""
        self._ids: dict[bytes, int] = {_SEPARATOR: -1}
        texts = [[word.encode() for word in words(story)] for story in stories]
        self._lengths = np.array([len(text) for text in texts], np.int64)
        numbered = [self._number(word) for text in texts for word in (*text, _SEPARATOR)]
        self._owners = np.repeat(np.arange(len(texts)), self._lengths + 1)
        ids = np.array(numbered, np.int64)
        ids[ids < 0] = 0
        self._bigrams = _Level(ids, 1)
        self._four = _Level(self._bigrams.numbers, 2)
        # Level i has the n-grams of N + i words; longer ones are added when a text has them.
        self._levels = [_Level(self._four.numbers, 4)]
        self._rouge = _Rouge(self._bigrams, self._owners, self._lengths)

    def _number(self, word: bytes) -> int:
        return self._ids.setdefault(word, len(self._ids))

    def compare(self, training: Iterable[bytes]) -> list[Copying]:
        """Compare with training stories in UTF-8, which are read once as a stream."""
        for chunk in _chunks(training):
            self._compare(chunk)
        longest = self._longest()
        grams = self._levels[0]
        is_gram, is_copied = grams.numbers > 0, grams.seen[grams.numbers]
        columns = zip(
            self._count(is_gram), self._count(is_copied), longest, self._rouge.best, strict=True
        )
        return [
            Copying(int(all_), int(copied), int(run), float(best))
            for all_, copied, run, best in columns
        ]

    def _count(self, chosen: npt.NDArray[np.bool_]) -> Ints:
        """Return the number of chosen positions of each story."""
        return np.bincount(self._owners[chosen], minlength=len(self._lengths))

    def _compare(self, chunk: bytes) -> None:
        tokens = chunk.split()
        ids = np.fromiter(map(self._ids.get, tokens, repeat(0)), np.int64, len(tokens))
        ends = np.flatnonzero(ids < 0)
        ids[ends] = 0
        bigrams = self._bigrams.find(ids)
        self._rouge.compare(bigrams, ends)
        eight = self._levels[0].find(self._four.find(bigrams))
        positions = np.flatnonzero(eight)
        numbers = eight[positions]
        longer = 0
        while len(numbers):
            self._levels[longer].seen[numbers] = True
            longer += 1
            if longer == len(self._levels):
                self._levels.append(_Level(self._levels[-1].numbers, 1))
            positions, numbers = self._levels[longer].extend(positions, numbers)

    def _longest(self) -> Ints:
        longest = np.zeros(len(self._lengths), np.int64)
        for n, level in enumerate(self._levels, start=N):
            longest[self._owners[level.seen[level.numbers]]] = n
        return longest


class _Rouge:
    """ROUGE-2 (Lin 2004) of each generated story with the training story that is nearest.

    Attributes:
        best: the highest F-score of each story so far.
    """

    def __init__(self, bigrams: _Level, owners: Ints, lengths: Ints) -> None:
        """Count the bigrams of each story.

        A bigram that a story has k times counts as k features, so that the common features of two
        stories are the smaller of the two counts of each bigram.
        """
        self.best = np.zeros(len(lengths))
        self._sizes = np.maximum(lengths - 1, 0)
        positions = np.flatnonzero(bigrams.numbers)
        keys = np.sort(bigrams.numbers[positions] * len(lengths) + owners[positions])
        bigram, owner = np.divmod(keys, max(1, len(lengths)))
        occurrence = np.arange(len(keys)) - _run_starts(keys)
        self._repeats = np.zeros(len(bigrams.keys) + 1, np.int64)
        np.maximum.at(self._repeats, bigram, occurrence + 1)
        self._first = np.cumsum(self._repeats) - self._repeats
        self._has_feature = np.zeros((self._repeats.sum(), len(lengths)), np.bool_)
        self._has_feature[self._first[bigram] + occurrence, owner] = True  # [features, stories]

    def compare(self, bigrams: Ints, ends: Ints) -> None:
        """Compare with training stories.

        Args:
            bigrams: number of the bigram at each position of the text.
            ends: position of the separator after each training story.
        """
        positions = np.flatnonzero(bigrams)
        if not len(positions):
            return
        stories = np.searchsorted(ends, positions)
        keys = np.sort(stories * len(self._repeats) + bigrams[positions])
        stories, bigram = np.divmod(keys, len(self._repeats))
        occurrence = np.arange(len(keys)) - _run_starts(keys)
        is_common = occurrence < self._repeats[bigram]
        stories = stories[is_common]
        rows = self._has_feature[self._first[bigram[is_common]] + occurrence[is_common]]
        starts = np.flatnonzero(np.diff(stories, prepend=-1))
        common = np.add.reduceat(rows, starts, axis=0, dtype=np.int32)  # [stories, generated]
        sizes = np.diff(ends, prepend=-1)[stories[starts]] - 2
        scores = 2 * common / (sizes[:, None] + self._sizes)
        np.maximum(self.best, scores.max(axis=0), out=self.best)


def _run_starts(values: Ints) -> Ints:
    """Return where the run of equal values that holds each position starts."""
    is_start = np.diff(values, prepend=-1) != 0
    return np.maximum.accumulate(np.where(is_start, np.arange(len(values)), 0))


def _chunks(stories: Iterable[bytes]) -> Iterator[bytes]:
    """Join whole stories, each followed by a separator, into chunks."""
    parts: list[bytes] = []
    size = 0
    for story in stories:
        parts.append(spaced(story))
        size += len(story)
        if size >= CHUNK_BYTES:
            yield b" | ".join((*parts, b""))
            parts, size = [], 0
    if parts:
        yield b" | ".join((*parts, b""))
