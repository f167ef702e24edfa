"""Random words and texts over all of Unicode, for the fuzzers of tokenizers."""

from __future__ import annotations

import random
from collections.abc import Callable

from storyllamas.engine.ffi import check, ffi, lib
from storyllamas.engine.tokenizer import FastTokenizer

SPACE = "\u2581"

ALPHABETS = [
    "ab",
    "abcdefghij",
    "etaoin shrdlu",
    'The cat said, "Don\'t!" 0123456789',
    " \t\n\r\v\f\u00a0\u2003\u3000\u200b",
    "\0\1\x02\x1b\x7f\x80\u0085\u2028\u2029\ufeff\ufffd\uffff",
    "äöüßéèñçøåžłđ",
    "абвгдежзий",
    "日本語中文字漢",
    "ا ب ت ث שלום",
    "🙂🦙👩‍👩‍👧🇩🇪❤️",
    "e\u0301a\u0308o\u0302",
    f" {SPACE}",
    "<s></s><unk><0x41>",
]
"""Alphabets of random words; each round mixes some of them."""


def any_character(draw: random.Random) -> str:
    """Draw any character that is not a surrogate."""
    top = draw.choice([0x80, 0x800, 0x10000, 0x110000])
    point = draw.randrange(top)
    return chr(point) if not 0xD800 <= point < 0xE000 else "\ufffd"


def word_maker(draw: random.Random) -> Callable[[], str]:
    """Return a function that draws a word; some words repeat."""
    letters = "".join(draw.sample(ALPHABETS, draw.randint(1, 4))).replace("\n", "")
    known = ["".join(draw.choices(letters, k=draw.randint(1, 8))) for _ in range(60)]

    def word() -> str:
        kind = draw.random()
        if kind < 0.7:
            return draw.choice(known)
        if kind < 0.9:
            return "".join(draw.choices(letters, k=draw.randint(1, 12)))
        return "".join(any_character(draw) for _ in range(draw.randint(1, 4)))

    return word


def text_maker(
    draw: random.Random, word: Callable[[], str], pieces: list[str]
) -> Callable[[], str]:
    """Return a function that draws a text of words, whitespace, pieces and rare long words."""

    def text() -> str:
        parts = []
        for _ in range(int(draw.expovariate(1 / 12))):
            kind = draw.random()
            if kind < 0.6:
                parts.append(word() + " ")
            elif kind < 0.75:
                parts.append(word())
            elif kind < 0.85:
                parts.append(draw.choice(" \n\t\r") * draw.randint(1, 6))
            else:
                parts.append(draw.choice(pieces))
        if draw.random() < 0.02:
            parts.append(word() * draw.randint(1, 300))
        draw.shuffle(parts)
        return "".join(parts)

    return text


def encode_without_cache(ours: FastTokenizer, text: str, special: bool = False) -> list[int]:
    """Encode a text without the word cache."""
    data = text.encode()
    capacity = 3 * (len(data) + 1)
    ids, count = ffi.new("int32_t[]", capacity), ffi.new("size_t *")
    function = lib.sl_encode_special if special else lib.sl_encode
    check(function(ours.handle, ffi.NULL, data, len(data), ids, capacity, count))
    encoded: list[int] = ffi.unpack(ids, count[0])
    return encoded
