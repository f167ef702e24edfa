"""The checksum of weight files and token files."""

from __future__ import annotations

import numpy as np


class Checksum:
    """Fletcher's checksum in eight 64-bit lanes, folded by multiplying and shifting.

    Word i of the data (u64, little-endian) goes to lane i mod 8, where a += word and then b += a,
    both modulo 2^64. The digest starts at h = FOLD_START and folds a and b of lane 0, then of lane
    1, …: h = (h ^ x) * FOLD_FACTOR modulo 2^64, then h ^= h >> 32.
    The checksum needs additions only, so it runs at memory speed in C.
    """

    LANES = 8
    FOLD_START = 0xCBF29CE484222325
    FOLD_FACTOR = 0x100000001B3

    def __init__(self) -> None:
        self._a = np.zeros(self.LANES, np.uint64)
        self._b = np.zeros(self.LANES, np.uint64)

    def update(self, data: bytes | memoryview) -> None:
        """Add data; its length is a multiple of 64 bytes."""
        words = np.frombuffer(data, "<u8").reshape(-1, self.LANES)
        for start in range(0, len(words), 1 << 16):
            block = words[start : start + (1 << 16)]
            count = len(block)
            weight = np.arange(count, 0, -1, dtype=np.uint64)[:, None]
            self._b += np.uint64(count) * self._a + (weight * block).sum(0, dtype=np.uint64)
            self._a += block.sum(0, dtype=np.uint64)

    def digest(self) -> int:
        """Return the 64-bit checksum of all data so far."""
        value = self.FOLD_START
        for a, b in zip(self._a.tolist(), self._b.tolist(), strict=True):
            for part in (a, b):
                value = ((value ^ part) * self.FOLD_FACTOR) % (1 << 64)
                value ^= value >> 32
        return value
