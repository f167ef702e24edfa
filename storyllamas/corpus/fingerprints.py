"""Stories that came before, remembered in little memory."""

from __future__ import annotations

import hashlib
from array import array

_SMALLEST = 1 << 10


def fingerprint(story: str) -> int:
    """64 bits of a story's BLAKE2b, never 0.

    Among n different stories two share one with a probability of about n²/2^65: one in eight
    million for the two million of TinyStories.
    """
    return int.from_bytes(hashlib.blake2b(story.encode(), digest_size=8).digest(), "little") or 1


class Fingerprints:
    """A set of fingerprints: 12 to 24 bytes each, and half as much again while the table grows.

    The two million of TinyStories take 32 MiB. The table is at most two thirds full; a fingerprint
    stands in the first free place from the one that its low bits name.
    """

    def __init__(self) -> None:
        self._table = array("Q", [0]) * _SMALLEST
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, value: int) -> bool:
        return self._table[_place(self._table, value)] == value

    def add(self, value: int) -> bool:
        """Add a fingerprint; whether it was new."""
        place = _place(self._table, value)
        if self._table[place] == value:
            return False
        self._table[place] = value
        self._count += 1
        if 3 * self._count > 2 * len(self._table):
            self._grow()
        return True

    def _grow(self) -> None:
        larger = array("Q", [0]) * (2 * len(self._table))
        for value in self._table:
            if value:
                larger[_place(larger, value)] = value
        self._table = larger


def _place(table: array[int], value: int) -> int:
    """Where a fingerprint stands, or would stand."""
    mask = len(table) - 1
    place = value & mask
    while table[place] not in (0, value):
        place = (place + 1) & mask
    return place
