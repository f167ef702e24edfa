"""Separators of stories in text files: `<|endoftext|>`, a string of your own, a line, a blank line.

`corpus.separator` names one, or is `auto`: then a text without `<|endoftext|>` is split at blank
lines if it has any, else at line breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from storyllamas.corpus.files import SEPARATOR

AUTO = "auto"

_BREAK = rb"(?:\r\n|\n|\r(?!\n))"
_PATTERNS = {
    "line": re.compile(rb"[ \t]*" + _BREAK + rb"\s*"),
    "blank_line": re.compile(rb"[ \t]*" + _BREAK + rb"[ \t]*" + _BREAK + rb"\s*"),
}
_BLANK = re.compile(rb"[ \t]*(?:\xef\xbb\xbf)?[ \t]*")


def parse(separator: str) -> bytes | re.Pattern[bytes]:
    """Return what separates stories: a pattern for `line` and `blank_line`, or the string."""
    return _PATTERNS.get(separator) or separator.encode()


class Layout(NamedTuple):
    """The layout of a text file.

    Attributes:
        has_separator: whether `<|endoftext|>` occurs in it.
        lines: number of lines that are not blank.
        paragraphs: number of blocks of such lines.
    """

    has_separator: bool
    lines: int
    paragraphs: int

    def guess(self) -> str:
        """Return the separator that the layout suggests."""
        if self.has_separator or self.lines < 2:
            return SEPARATOR.decode()
        return "blank_line" if self.paragraphs > 1 else "line"

    def message(self, path: object) -> str:
        """Return a sentence about the guess; empty if the file has a separator."""
        if self.has_separator or self.lines < 2:
            return ""
        kind, count = "lines", self.lines
        if self.paragraphs > 1:
            kind, count = "paragraphs (separated by blank lines)", self.paragraphs
        return (
            f"{path} has no {SEPARATOR.decode()}: each of its {count:,} {kind} is read as a story; "
            "set corpus.separator if that is wrong"
        )


def layout(chunks: Iterable[bytes]) -> Layout:
    """Measure the layout of a stream; stop at the first `<|endoftext|>`."""
    tail, lines, paragraphs, after_blank = b"", 0, 0, True
    for chunk in chunks:
        buffer = tail + chunk
        if SEPARATOR in buffer:
            return Layout(True, lines, paragraphs)
        *whole, tail = re.split(_BREAK, buffer)
        for line in whole:
            is_blank = _BLANK.fullmatch(line) is not None
            lines += not is_blank
            paragraphs += after_blank and not is_blank
            after_blank = is_blank
    is_blank = _BLANK.fullmatch(tail) is not None
    return Layout(False, lines + (not is_blank), paragraphs + (after_blank and not is_blank))
