"""The checksum of weight files and token files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BLOCK = 256  # rows of 64 bytes: two sums and a block fit into the L1 cache


class Checksum:
    """Fletcher's checksum in eight 64-bit lanes, folded by multiplying and shifting.

    Word i of the data (u64, little-endian) goes to lane i mod 8, where a += word and then b += a,
    both modulo 2^64. The digest starts at h = FOLD_START and folds a and b of lane 0, then of lane
    1, …: h = (h ^ x) * FOLD_FACTOR modulo 2^64, then h ^= h >> 32.
    The checksum needs additions only, so it runs at memory speed in C and NumPy.
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
        blocks = len(words) // _BLOCK
        if blocks:
            self._add(words[: blocks * _BLOCK].reshape(blocks, _BLOCK, self.LANES))
        if len(words) > blocks * _BLOCK:
            self._add(words[blocks * _BLOCK :][None])

    def _add(self, words: npt.NDArray[np.uint64]) -> None:
        """Add words [blocks, rows, lanes], summing up rows first and blocks in the cache."""
        blocks, rows, _ = words.shape
        a, b = np.zeros(words.shape[1:], np.uint64), np.zeros(words.shape[1:], np.uint64)
        for block in words:
            a += block
            b += a
        # Row j of a block counts once for each row from j on, and again for each later block.
        before = np.arange(rows, dtype=np.uint64)[:, None]
        self._b += np.uint64(blocks * rows) * self._a
        self._b += (np.uint64(rows) * b - before * a).sum(0, dtype=np.uint64)
        self._a += a.sum(0, dtype=np.uint64)

    def digest(self) -> int:
        """Return the 64-bit checksum of all data so far."""
        value = self.FOLD_START
        for a, b in zip(self._a.tolist(), self._b.tolist(), strict=True):
            for part in (a, b):
                value = ((value ^ part) * self.FOLD_FACTOR) % (1 << 64)
                value ^= value >> 32
        return value
