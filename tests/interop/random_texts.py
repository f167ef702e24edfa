"""Texts that are hard to split, for comparisons of tokenizers."""

from __future__ import annotations

import random
from unicodedata import ucd_3_2_0

RANGES = [(32, 126), (1, 0x2FF), (0x2000, 0x2FFF), (0x3000, 0xD7FF), (0xE000, 0x10FFFF)]
COMMON = [
    *(" ", "  ", "\n", "\u2581", "a", "aa", "the", "<s>", "</s>", "<unk>", "<0x41>", "\t", "é"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>"),
]  # fmt: skip


def random_texts(count: int = 1500) -> list[str]:
    """Return random mixtures of letters, spaces and Unicode characters of all kinds."""
    chance = random.Random(0)

    def character() -> str:
        is_rare = chance.random() < 0.4
        return chr(chance.randint(*chance.choice(RANGES))) if is_rare else chance.choice(COMMON)

    return ["".join(character() for _ in range(chance.randint(1, 30))) for _ in range(count)]


def is_long_assigned(character: str) -> bool:
    """Return whether Unicode 3.2 has a character; llama.cpp's table is older than tokenizers'."""
    return ucd_3_2_0.category(character) != "Cn"
