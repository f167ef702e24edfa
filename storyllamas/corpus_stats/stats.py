"""Statistics of a corpus, collected in one pass over each part, in bounded memory."""

from __future__ import annotations

import random
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from storyllamas.corpus.cleaning import repaired
from storyllamas.corpus.fingerprints import Fingerprints, fingerprint
from storyllamas.corpus.words import beginning, split
from storyllamas.corpus_stats.counters import BoundedCounter, LengthCounter
from storyllamas.rounding import decimals

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
COVERED = (0.5, 0.9, 0.99)

_BINS = 16
_FREQUENT_WORDS = 20
_BEGINNINGS = 10
_BEGINNING_WORDS = 4
_BEGINNING_CHARACTERS = 80
_CHARACTERS = 20

# Words are separated by whitespace, punctuation and symbols, except apostrophes.
_PUNCTUATION = {code: " " for code in range(0x20000) if unicodedata.category(chr(code))[0] in "PS"}
_TO_WORDS = _PUNCTUATION | dict.fromkeys(map(ord, "'‘’"), "'")

_EXPECTED_BYTES = bytes([ord("\n"), *range(0x20, 0x7F)])
_ODD = re.compile(r"[^\n\x20-\x7e]")


@dataclass(frozen=True)
class LengthStats:
    """Statistics of the lengths of stories.

    Attributes:
        mean: mean length.
        quantiles: the length at each of `QUANTILES`, from the shortest to the longest.
        histogram: first length, last length and number of stories of each bin.
    """

    mean: float
    quantiles: dict[str, int]
    histogram: list[tuple[int, int, int]]


@dataclass(frozen=True)
class CharacterCount:
    """A character with its code point, its Unicode name and how often it occurs."""

    text: str
    code: str
    name: str
    count: int


@dataclass(frozen=True)
class PartStats:
    """Statistics of one part of a corpus.

    Attributes:
        stories: number of stories.
        text_bytes: length of the text in UTF-8, without separators.
        words: number of words.
        distinct_words: number of different words in lower case; a lower bound if
            `words_forgotten`.
        words_forgotten: there were too many different words to remember the rarest.
        words_to_cover: for each share of `COVERED`, how many of the most frequent words make up
            that share of the text.
        bytes_of_stories: lengths in bytes of UTF-8.
        words_of_stories: lengths in words.
        frequent_words: the most frequent words and their counts.
        beginnings: the most frequent first words of a story and their counts.
        duplicates: stories that equal an earlier story of the part.
        mojibake: stories with wrongly decoded text that `repaired` would repair.
        odd_characters: the most frequent characters that are neither a line break nor printable
            ASCII.
        samples: random stories.
    """

    stories: int
    text_bytes: int
    words: int
    distinct_words: int
    words_forgotten: bool
    words_to_cover: dict[str, int]
    bytes_of_stories: LengthStats
    words_of_stories: LengthStats
    frequent_words: list[tuple[str, int]]
    beginnings: list[tuple[str, int]]
    duplicates: int
    mojibake: int
    odd_characters: list[CharacterCount]
    samples: list[str]


@dataclass(frozen=True)
class CorpusStats:
    """Statistics of a corpus.

    Attributes:
        parts: statistics of each part by name; the training part is the first if there is one.
        train_valid_overlap: stories of the first part that are also in another part.
    """

    parts: dict[str, PartStats]
    train_valid_overlap: int


def collect(parts: Mapping[str, Iterable[str]], seed: int, samples: int = 3) -> CorpusStats:
    """Collect the statistics of a corpus; read every part once, the last part first.

    Args:
        parts: the stories of each part, at least one; the training part is the first.
        seed: selects the random stories.
        samples: number of random stories in each part.
    """
    found: dict[str, PartStats] = {}
    others: list[Fingerprints] = []
    overlap = 0
    for name in reversed(list(parts)):
        reader = _PartCounter(others, random.Random(seed), samples)
        for story in parts[name]:
            reader.add(story)
        found[name] = reader.part()
        others.append(reader.seen)
        overlap = reader.train_valid_overlap
    return CorpusStats(dict(reversed(found.items())), overlap)


class _PartCounter:
    """The counters of one part.

    Attributes:
        seen: fingerprints of the stories so far.
        train_valid_overlap: stories so far that are also in one of the other parts.
    """

    def __init__(self, others: list[Fingerprints], draw: random.Random, samples: int) -> None:
        self.seen = Fingerprints()
        self.train_valid_overlap = 0
        self._others = list(others)
        self._draw = draw
        self._wanted = samples
        self._samples: list[str] = []
        self._stories = 0
        self._bytes = LengthCounter()
        self._lengths = LengthCounter()
        self._words = BoundedCounter()
        self._beginnings = BoundedCounter()
        self._odd: Counter[str] = Counter()
        self._duplicates = 0
        self._mojibake = 0

    def add(self, story: str) -> None:
        """Count a story."""
        self._stories += 1
        data = story.encode()
        words = split(story.lower().translate(_TO_WORDS))
        self._sample(story)
        self._bytes.add(len(data))
        self._lengths.add(len(words))
        self._words.update(words)
        self._beginnings.update([_beginning(story)])
        if data.translate(None, _EXPECTED_BYTES):
            self._odd.update(_ODD.findall(story))
            self._mojibake += repaired(story) != story
        mark = fingerprint(story)
        self._duplicates += not self.seen.add(mark)
        self.train_valid_overlap += any(mark in other for other in self._others)

    def part(self) -> PartStats:
        """Return the statistics of the stories so far, at least one."""
        counts = _words(self._words.counts)
        return PartStats(
            stories=self._stories,
            text_bytes=self._bytes.total,
            words=self._lengths.total,
            distinct_words=self._words.distinct if self._words.forgot else len(counts),
            words_forgotten=self._words.forgot,
            words_to_cover=dict(_to_cover(counts)),
            bytes_of_stories=_measured(self._bytes),
            words_of_stories=_measured(self._lengths),
            frequent_words=counts.most_common(_FREQUENT_WORDS),
            beginnings=self._beginnings.counts.most_common(_BEGINNINGS),
            duplicates=self._duplicates,
            mojibake=self._mojibake,
            odd_characters=[
                CharacterCount(character, f"U+{ord(character):04X}", _name(character), count)
                for character, count in self._odd.most_common(_CHARACTERS)
            ],
            samples=self._samples,
        )

    def _sample(self, story: str) -> None:
        """Keep the story with the same probability as every other (reservoir sampling)."""
        if len(self._samples) < self._wanted:
            self._samples.append(story)
            return
        index = int(self._draw.random() * self._stories)
        if index < self._wanted:
            self._samples[index] = story


def _beginning(story: str) -> str:
    """Return the first words on one line, without the punctuation after them."""
    return beginning(story[:_BEGINNING_CHARACTERS], _BEGINNING_WORDS).rstrip(",.;:!?，。、；：！？")


def _words(counts: Counter[str]) -> Counter[str]:
    """Remove apostrophes around words, which are quotes, and merge the counts."""
    words: Counter[str] = Counter()
    for word, count in counts.items():
        if bare := word.strip("'"):
            words[bare] += count
    return words


def _to_cover(counts: Counter[str]) -> Iterator[tuple[str, int]]:
    """Yield, for each share of `COVERED`, how many of the most frequent words make it up."""
    reached = list(accumulate(count for _, count in counts.most_common()))
    for share in COVERED if reached else ():
        yield f"{share:g}", bisect_left(reached, share * reached[-1]) + 1


def _name(character: str) -> str:
    """Return a character's name in Unicode; control characters have none and are CONTROL."""
    return unicodedata.name(character, "CONTROL" if character < "\xa0" else "UNNAMED")


def _measured(lengths: LengthCounter) -> LengthStats:
    return LengthStats(
        mean=decimals(lengths.total / lengths.count, 2),
        quantiles={f"{share:g}": lengths.quantile(share) for share in QUANTILES},
        histogram=lengths.histogram(_BINS),
    )
