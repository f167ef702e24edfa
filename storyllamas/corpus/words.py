"""Words of a text, also in scripts that put no space between them.

In Chinese, Japanese, Thai, Lao, Khmer and Burmese text, each character with its combining marks
counts as a word: finding longer words would need a dictionary.
"""

from __future__ import annotations

import re
import unicodedata

_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # iteration mark, closing mark, zero
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3040, 0x30FA),  # Hiragana, Katakana
    (0x30FC, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FE),  # Myanmar
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9F),  # halfwidth Katakana
    (0x1AFF0, 0x1B16F),  # Kana
    (0x20000, 0x3FFFF),  # Han
)


def _classes() -> tuple[str, str]:
    """Return the characters that are words by themselves, and the marks that continue them."""
    bases: list[str] = []
    marks: list[str] = []
    for first, last in _RANGES[:-1]:
        for code in range(first, last + 1):
            category = unicodedata.category(chr(code))
            (marks if category[0] == "M" else bases if category[0] in "LN" else []).append(
                chr(code)
            )
    return "".join(bases) + "\U00020000-\U0003ffff", "".join(marks) + "\u200d\ufe00-\ufe0f"


_BASES, _MARKS = _classes()
_UNSPACED = re.compile(f"[{_BASES}]")
_WORD = re.compile(f"[{_BASES}][{_MARKS}]*|[^\\s{_BASES}]+")


def has_unspaced(text: str) -> bool:
    """Return whether a text has characters of a script without spaces."""
    return not text.isascii() and _UNSPACED.search(text) is not None


def split(text: str) -> list[str]:
    """Split a text at whitespace, and at each character of a script without spaces."""
    return _WORD.findall(text) if has_unspaced(text) else text.split()


def count(text: str) -> int:
    """Count the words of a text; in scripts without spaces, punctuation is not a word."""
    if not has_unspaced(text):
        return len(text.split())
    return sum(any(character.isalnum() for character in word) for word in split(text))


def beginning(text: str, words: int) -> str:
    """Return the first words of a text on one line."""
    if not has_unspaced(text):
        return " ".join(text.split(None, words)[:words])
    end = 0
    for number, match in enumerate(_WORD.finditer(text)):
        if number == words:
            break
        end = match.end()
    return " ".join(text[:end].split())
