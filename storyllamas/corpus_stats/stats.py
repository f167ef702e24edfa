"""The facts of a corpus, gathered in one pass over each part, in bounded memory."""

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
from storyllamas.corpus_stats.counters import Lengths, Tally

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
COVERED = (0.5, 0.9, 0.99)

_BINS = 16
_FREQUENT_WORDS = 20
_BEGINNINGS = 10
_BEGINNING_WORDS = 4
_BEGINNING_CHARACTERS = 80
_CHARACTERS = 20

# Words are set apart by spaces and by punctuation and symbols other than apostrophes.
_PUNCTUATION = {code: " " for code in range(0x20000) if unicodedata.category(chr(code))[0] in "PS"}
_TO_WORDS = _PUNCTUATION | dict.fromkeys(map(ord, "'‘’"), "'")

_EXPECTED_BYTES = bytes([ord("\n"), *range(0x20, 0x7F)])
_ODD = re.compile(r"[^\n\x20-\x7e]")


@dataclass(frozen=True)
class Measured:
    """Lengths of stories.

    Attributes:
        mean: their mean.
        quantiles: the length at each of `QUANTILES`; the first is the shortest, the last the
            longest.
        histogram: first length, last length and number of stories of each bin.
    """

    mean: float
    quantiles: dict[str, int]
    histogram: list[tuple[int, int, int]]


@dataclass(frozen=True)
class Character:
    """A character other than a line break and printable ASCII, and how often it stands there."""

    text: str
    code: str
    name: str
    count: int


@dataclass(frozen=True)
class Part:
    """What is in one part of a corpus.

    Attributes:
        stories: their number.
        text_bytes: their length in UTF-8, without separators.
        words: their number.
        distinct_words: how many different ones, capitals aside; where `words_forgotten`, at least
            so many, since there were too many to remember the rarest.
        words_to_cover: for each share of `COVERED`, how many of the most frequent words make up
            that share of the text.
        bytes_of_stories: lengths in bytes of UTF-8.
        words_of_stories: lengths in words.
        frequent_words: the most frequent words and their counts.
        beginnings: the most frequent first words of a story and their counts.
        duplicates: stories that came before.
        mojibake: stories with text that was decoded wrongly, which `repaired` would mend.
        odd_characters: the most frequent characters that are neither a line break nor printable
            ASCII.
        samples: stories drawn at random.
    """

    stories: int
    text_bytes: int
    words: int
    distinct_words: int
    words_forgotten: bool
    words_to_cover: dict[str, int]
    bytes_of_stories: Measured
    words_of_stories: Measured
    frequent_words: list[tuple[str, int]]
    beginnings: list[tuple[str, int]]
    duplicates: int
    mojibake: int
    odd_characters: list[Character]
    samples: list[str]


@dataclass(frozen=True)
class Survey:
    """The parts of a corpus by their names, and what they share.

    Attributes:
        parts: training first, where there is such a part.
        train_valid_overlap: stories of the first part that are also in another.
    """

    parts: dict[str, Part]
    train_valid_overlap: int


def survey(parts: Mapping[str, Iterable[str]], seed: int, samples: int = 3) -> Survey:
    """Read every part once, the last first.

    Args:
        parts: the stories of each part, none empty; the first is the one to learn from.
        seed: of the stories that are drawn at random.
        samples: how many those are, of each part.
    """
    found: dict[str, Part] = {}
    others: list[Fingerprints] = []
    overlap = 0
    for name in reversed(list(parts)):
        reader = _Reader(others, random.Random(seed), samples)
        for story in parts[name]:
            reader.add(story)
        found[name] = reader.part()
        others.append(reader.seen)
        overlap = reader.train_valid_overlap
    return Survey(dict(reversed(found.items())), overlap)


class _Reader:
    """Adds up what one part has."""

    def __init__(self, others: list[Fingerprints], draw: random.Random, samples: int) -> None:
        self.seen = Fingerprints()
        self.train_valid_overlap = 0
        self._others = list(others)
        self._draw = draw
        self._wanted = samples
        self._samples: list[str] = []
        self._stories = 0
        self._bytes = Lengths()
        self._lengths = Lengths()
        self._words = Tally()
        self._beginnings = Tally()
        self._odd: Counter[str] = Counter()
        self._duplicates = 0
        self._mojibake = 0

    def add(self, story: str) -> None:
        self._stories += 1
        data = story.encode()
        words = story.lower().translate(_TO_WORDS).split()
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

    def part(self) -> Part:
        counts = _words(self._words.counts)
        return Part(
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
                Character(character, f"U+{ord(character):04X}", _name(character), count)
                for character, count in self._odd.most_common(_CHARACTERS)
            ],
            samples=self._samples,
        )

    def _sample(self, story: str) -> None:
        """Reservoir sampling: every story has the same chance to stay."""
        if len(self._samples) < self._wanted:
            self._samples.append(story)
            return
        place = int(self._draw.random() * self._stories)
        if place < self._wanted:
            self._samples[place] = story


def _beginning(story: str) -> str:
    """The first words on one line, without the punctuation after them."""
    words = story[:_BEGINNING_CHARACTERS].split(None, _BEGINNING_WORDS)
    return " ".join(words[:_BEGINNING_WORDS]).rstrip(",.;:!?")


def _words(counts: Counter[str]) -> Counter[str]:
    """Without the quotes that apostrophes around a word are."""
    words: Counter[str] = Counter()
    for word, count in counts.items():
        if bare := word.strip("'"):
            words[bare] += count
    return words


def _to_cover(counts: Counter[str]) -> Iterator[tuple[str, int]]:
    """For each share of `COVERED`, how many of the most frequent words make it up."""
    reached = list(accumulate(count for _, count in counts.most_common()))
    for share in COVERED if reached else ():
        yield f"{share:g}", bisect_left(reached, share * reached[-1]) + 1


def _name(character: str) -> str:
    """Its name in Unicode; that of its category for controls, which have none."""
    return unicodedata.name(character, "CONTROL" if character < "\xa0" else "UNNAMED")


def _measured(lengths: Lengths) -> Measured:
    return Measured(
        mean=round(lengths.total / lengths.count, 2),
        quantiles={f"{share:g}": lengths.quantile(share) for share in QUANTILES},
        histogram=lengths.histogram(_BINS),
    )
