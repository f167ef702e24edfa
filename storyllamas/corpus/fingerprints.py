"""A compact set of stories, for finding repeated ones."""

from __future__ import annotations

import hashlib
from array import array

_MIN_TABLE_SIZE = 1 << 10


def fingerprint(story: str) -> int:
    """Return 64 bits of a story's BLAKE2b digest, never 0.

    Two of n different stories have the same fingerprint with a probability of about n²/2^65: one
    in eight million for the two million stories of TinyStories.
    """
    return int.from_bytes(hashlib.blake2b(story.encode(), digest_size=8).digest(), "little") or 1


class Fingerprints:
    """A set of fingerprints: an open-addressing hash table, at most two thirds full.

    A fingerprint takes 12 to 24 bytes, and 1.5 times that while the table grows. The two million
    stories of TinyStories take 32 MiB.
    """

    def __init__(self) -> None:
        self._table = array("Q", [0]) * _MIN_TABLE_SIZE
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, value: int) -> bool:
        return self._table[_index(self._table, value)] == value

    def add(self, value: int) -> bool:
        """Add a fingerprint; return whether it was new."""
        index = _index(self._table, value)
        if self._table[index] == value:
            return False
        self._table[index] = value
        self._count += 1
        if 3 * self._count > 2 * len(self._table):
            self._grow()
        return True

    def _grow(self) -> None:
        larger = array("Q", [0]) * (2 * len(self._table))
        for value in self._table:
            if value:
                larger[_index(larger, value)] = value
        self._table = larger


def _index(table: array[int], value: int) -> int:
    """Return the index of a fingerprint, or the free index where it would be added."""
    mask = len(table) - 1
    index = value & mask
    while table[index] not in (0, value):
        index = (index + 1) & mask
    return index
