"""Cleaning of stories between the source and the corpus files, configured by `corpus.clean`.

The steps that are switched on run in this order: repair text that was decoded wrongly, drop short
stories, drop training stories that are also validation stories, and drop repeated stories of a
part. Stories are compared byte for byte after the repair. Memory holds only a fingerprint of each
story (see `fingerprints.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ftfy import TextFixerConfig, fix_encoding

from storyllamas.corpus import words
from storyllamas.corpus.fingerprints import Fingerprints, fingerprint
from storyllamas.errors import UserError
from storyllamas.params import Clean

# Repair the encoding only: quotes, widths, ligatures and spaces stay unchanged. `restore_byte_a0`
# would read a space as a no-break space, but "â€ H" is a quote and a space, not "†H".
_ENCODING_ONLY = TextFixerConfig(restore_byte_a0=False, replace_lossy_sequences=False)

# The closing quote ” is E2 80 9D. Windows-1252 has no character for 9D, so many programs drop it.
_CONTINUATION = "".join(
    chr(byte) + bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0)
)
_INCOMPLETE_CLOSING_QUOTE = re.compile(f"â€(?![{re.escape(_CONTINUATION)}])")

# A quick test: text with only these non-ASCII characters, as most stories, was decoded correctly.
_SUSPICIOUS = re.compile(r"[^\x00-\x7f‘’“”–—…]")


@dataclass
class CleaningCounts:
    """Counts of kept, changed and dropped stories in one part of the corpus.

    Attributes:
        stories: kept stories.
        text_bytes: length of the kept stories in UTF-8, without separators.
        repaired: stories whose encoding was repaired, including those dropped afterwards.
        short: stories dropped because they were too short.
        train_valid_overlap: training stories dropped because they are also validation stories.
        duplicates: stories dropped because they are repeated.
    """

    stories: int = 0
    text_bytes: int = 0
    repaired: int = 0
    short: int = 0
    train_valid_overlap: int = 0
    duplicates: int = 0


class Cleaner:
    """A filter for the two parts of one corpus: call `valid` and read all of it, then `train`.

    Attributes:
        valid_counts: counts of the validation stories so far.
        train_counts: counts of the training stories so far.
    """

    def __init__(self, settings: Clean) -> None:
        self.valid_counts = CleaningCounts()
        self.train_counts = CleaningCounts()
        self._settings = settings
        self._valid = Fingerprints()

    def valid(self, stories: Iterable[str]) -> Iterator[str]:
        """Yield the cleaned validation stories.

        Raises:
            UserError: no story is left.
        """
        settings = self._settings
        remember = settings.drop_duplicates or settings.drop_train_valid_overlap
        seen = self._valid if remember else None
        return self._clean(stories, self.valid_counts, seen, Fingerprints(), "validation")

    def train(self, stories: Iterable[str]) -> Iterator[str]:
        """Yield the cleaned training stories.

        Raises:
            UserError: no story is left.
        """
        seen = Fingerprints() if self._settings.drop_duplicates else None
        overlap = self._valid if self._settings.drop_train_valid_overlap else Fingerprints()
        return self._clean(stories, self.train_counts, seen, overlap, "training")

    def _clean(
        self,
        stories: Iterable[str],
        counts: CleaningCounts,
        seen: Fingerprints | None,
        train_valid_overlap: Fingerprints,
        part: str,
    ) -> Iterator[str]:
        settings = self._settings
        for original in stories:
            story = repaired(original) if settings.repair_encoding else original
            counts.repaired += story != original
            if settings.min_words and words.count(story) < settings.min_words:
                counts.short += 1
                continue
            mark = fingerprint(story)
            if mark in train_valid_overlap:
                counts.train_valid_overlap += 1
                continue
            if seen is not None and not seen.add(mark) and settings.drop_duplicates:
                counts.duplicates += 1
                continue
            counts.stories += 1
            counts.text_bytes += len(story.encode())
            yield story
        if not counts.stories:
            raise UserError(
                f"corpus.clean drops every {part} story: drop fewer, or add stories to the corpus"
            )


def repaired(story: str) -> str:
    """Return a story with wrongly decoded UTF-8 repaired by ftfy, for example “ for â€œ.

    Text that makes sense is unchanged.
    """
    if story.isascii() or not _SUSPICIOUS.search(story):
        return story
    return fix_encoding(_INCOMPLETE_CLOSING_QUOTE.sub("â€\x9d", story), _ENCODING_ONLY)
