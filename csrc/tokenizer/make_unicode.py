"""Write unicode_table.c: the classes of characters in the pre-tokenizers' regular expressions.

    python csrc/tokenizer/make_unicode.py > csrc/tokenizer/unicode_table.c

The script tries every character with the `tokenizers` package. So the classes are those of its
regular expressions (Oniguruma's) and of its `Digits` and `AddedToken` (Rust's), whatever their
versions of Unicode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

POINTS = [*range(0xD800), *range(0xE000, 0x110000)]
CHUNK = 4096

HEADER = """\
/* unicode_table.c: written by make_unicode.py from tokenizers {version}; do not edit.
 *
 * Letters and numbers are those of Unicode {regex}, digits those of Unicode {digits}. */

#include "unicode.h"

/* A range's first code point, shifted by 8, and its classes. */
const uint32_t sl_unicode_ranges[] = {{
"""

FOOTER = """\
}};

const uint32_t sl_unicode_range_count = {count};

/* The classes of ASCII; 0 for the bytes of other characters. */
const uint8_t sl_ascii_classes[256] = {{
{ascii},
}};
"""

# The first version of Unicode that has the character as a letter or as a digit.
LETTERS_OF = {"15.1": 0x2EBF0, "16.0": 0x1C89, "17.0": 0x323B0}
DIGITS_OF = {"15.1": 0x1E4F0, "16.0": 0x10D40, "17.0": 0x11DE0}


def chunks() -> Iterator[list[int]]:
    """Yield all code points, some at a time."""
    for start in range(0, len(POINTS), CHUNK):
        yield POINTS[start : start + CHUNK]


def matched(pattern: str) -> set[int]:
    """Return the characters that a regular expression of one character matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    found: set[int] = set()
    for points in chunks():
        left = {
            ord(character)
            for piece, _ in split.pre_tokenize_str("".join(map(chr, points)))
            for character in piece
        }
        found |= set(points) - left
    return found


def digits() -> set[int]:
    """Return the characters that `Digits` isolates."""
    split = pre_tokenizers.Digits(individual_digits=True)
    found = set()
    for points in chunks():
        text = "".join("a" + chr(point) for point in points)
        pieces = (piece for piece, _ in split.pre_tokenize_str(text))
        found |= {ord(piece) for piece in pieces if len(piece) == 1 and piece != "a"}
    return found


def word_characters() -> set[int]:
    """Return the characters before which an added token of a single word does not match."""
    tokenizer = Tokenizer(models.BPE(vocab={}, merges=[]))
    tokenizer.add_tokens([AddedToken("<T>", single_word=True, normalized=False)])
    return {point for point in POINTS if not tokenizer.encode(f"<T>{chr(point)}").ids}


def version(first: dict[str, int], points: set[int]) -> str:
    """Return the newest version of Unicode whose character in `first` is among the points."""
    return max(name for name, point in first.items() if point in points)


def main() -> None:
    """Print the table."""
    sources: list[Callable[[], set[int]]] = [
        lambda: matched(r"\p{L}"),
        lambda: matched(r"\p{N}"),
        lambda: matched(r"\s"),
        word_characters,
        digits,
    ]
    sets = [source() for source in sources]
    sets.append(set(POINTS).difference(*sets[:3]))
    classes = [0] * 0x110000
    for bit, points in enumerate(sets):
        for point in points:
            classes[point] |= 1 << bit
    starts = [
        point for point in range(0x110000) if not point or classes[point] != classes[point - 1]
    ]
    write = sys.stdout.write
    write(
        HEADER.format(
            version=tokenizers.__version__,
            regex=version(LETTERS_OF, sets[0]),
            digits=version(DIGITS_OF, sets[4]),
        )
    )
    for at in range(0, len(starts), 8):
        row = (f"0x{start << 8 | classes[start]:08x}" for start in starts[at : at + 8])
        write(f"    {', '.join(row)},\n")
    rows = (classes[at : at + 16] for at in range(0, 128, 16))
    ascii_rows = ",\n".join("    " + ", ".join(f"0x{each:02x}" for each in row) for row in rows)
    write(FOOTER.format(count=len(starts), ascii=ascii_rows))


if __name__ == "__main__":
    main()
