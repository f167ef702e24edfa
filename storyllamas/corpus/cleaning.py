"""Cleaning stories on their way from the source to the corpus files, as `corpus.clean` says.

In this order, each step where it is switched on: text that was decoded wrongly is repaired, stories
that are too short are dropped, training stories that are also validation stories are dropped, and
stories that came before in their part are dropped. Stories are compared byte for byte, after the
repair. Nothing is kept of a story but its fingerprint (`fingerprints.py` says how many bytes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ftfy import TextFixerConfig, fix_encoding

from storyllamas.corpus.fingerprints import Fingerprints, fingerprint
from storyllamas.errors import UserError
from storyllamas.params import Clean

# Only the encoding: quotes, widths, ligatures and spaces stay as they are. A space is not taken for
# the no-break space that it may once have been, since "â€ H" is a quote before a space, not "†H".
_ENCODING_ONLY = TextFixerConfig(restore_byte_a0=False, replace_lossy_sequences=False)

# The closing quote ” is E2 80 9D, and Windows-1252 has no character for 9D: many programs drop it.
_CONTINUATION = "".join(
    chr(byte) + bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0)
)
_CLOSING_QUOTE_CUT_SHORT = re.compile(f"â€(?![{re.escape(_CONTINUATION)}])")

# Most stories beyond ASCII have nothing but these, and wrong decoding leaves others among them.
_SUSPICIOUS = re.compile(r"[^\x00-\x7f‘’“”–—…]")


@dataclass
class Counts:
    """What cleaning met in one part of the corpus.

    Attributes:
        stories: stories that were kept.
        text_bytes: their length in UTF-8, without separators.
        repaired: stories whose encoding was repaired, also where they were dropped afterwards.
        short: stories dropped because they were too short.
        train_valid_overlap: training stories dropped because they are also validation stories.
        duplicates: stories dropped because they came before.
    """

    stories: int = 0
    text_bytes: int = 0
    repaired: int = 0
    short: int = 0
    train_valid_overlap: int = 0
    duplicates: int = 0


class Cleaner:
    """Cleans the two parts of one corpus: first all of `valid`, then `train`.

    Attributes:
        valid_counts: what was met in the validation stories so far.
        train_counts: what was met in the training stories so far.
    """

    def __init__(self, how: Clean) -> None:
        self.valid_counts = Counts()
        self.train_counts = Counts()
        self._how = how
        self._valid = Fingerprints()

    def valid(self, stories: Iterable[str]) -> Iterator[str]:
        """The validation stories, cleaned; `UserError` if there are none left."""
        keep = self._how.drop_duplicates or self._how.drop_train_valid_overlap
        seen = self._valid if keep else None
        return self._clean(stories, self.valid_counts, seen, Fingerprints(), "validation")

    def train(self, stories: Iterable[str]) -> Iterator[str]:
        """The training stories, cleaned; `UserError` if there are none left."""
        seen = Fingerprints() if self._how.drop_duplicates else None
        overlap = self._valid if self._how.drop_train_valid_overlap else Fingerprints()
        return self._clean(stories, self.train_counts, seen, overlap, "training")

    def _clean(
        self,
        stories: Iterable[str],
        counts: Counts,
        seen: Fingerprints | None,
        train_valid_overlap: Fingerprints,
        part: str,
    ) -> Iterator[str]:
        for original in stories:
            story = repaired(original) if self._how.repair_encoding else original
            counts.repaired += story != original
            if self._how.min_words and len(story.split()) < self._how.min_words:
                counts.short += 1
                continue
            mark = fingerprint(story)
            if mark in train_valid_overlap:
                counts.train_valid_overlap += 1
                continue
            if seen is not None and not seen.add(mark) and self._how.drop_duplicates:
                counts.duplicates += 1
                continue
            counts.stories += 1
            counts.text_bytes += len(story.encode())
            yield story
        if not counts.stories:
            raise UserError(f"corpus.clean leaves no {part} story: drop less, or give more stories")


def repaired(story: str) -> str:
    """A story whose UTF-8 was once read as another encoding, as it was meant: “ for â€œ.

    By ftfy, which leaves alone what makes sense as it stands; nothing else is changed.
    """
    if story.isascii() or not _SUSPICIOUS.search(story):
        return story
    return fix_encoding(_CLOSING_QUOTE_CUT_SHORT.sub("â€\x9d", story), _ENCODING_ONLY)
