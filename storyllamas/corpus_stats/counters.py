"""Counters in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class BoundedCounter:
    """A counter of texts that forgets rare texts.

    If there are more than `limit` different texts, the rarest half is forgotten. The counts of
    frequent texts are exact, or slightly too low for a text that was rare for long (lossy counting:
    Manku and Motwani, 2002, https://www.vldb.org/conf/2002/S10P03.pdf).

    Attributes:
        counts: count of each remembered text.
        forgot: whether a text was forgotten.
    """

    def __init__(self, limit: int = 1 << 18) -> None:
        self.counts: Counter[str] = Counter()
        self.forgot = False
        self._limit = limit

    @property
    def distinct(self) -> int:
        """Number of different texts; a lower bound if a text was forgotten."""
        return max(len(self.counts), self._limit) if self.forgot else len(self.counts)

    def update(self, texts: Iterable[str]) -> None:
        """Count each text once."""
        self.counts.update(texts)
        if len(self.counts) > self._limit:
            self.counts = Counter(dict(self.counts.most_common(self._limit // 2)))
            self.forgot = True


class LengthCounter:
    """A counter of lengths with exact quantiles and histograms.

    Memory grows with the number of different lengths, at most the square root of twice their sum.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        """Count a length, 0 or more."""
        self._counts[length] += 1

    @property
    def count(self) -> int:
        """Number of lengths."""
        return self._counts.total()

    @property
    def total(self) -> int:
        """Sum of the lengths."""
        return sum(length * count for length, count in self._counts.items())

    def quantile(self, share: float) -> int:
        """Return the smallest length that at least this share of the lengths, 0 … 1, do not exceed.

        There has to be at least one length.
        """
        wanted = share * self.count
        reached = 0
        for length in sorted(self._counts):
            reached += self._counts[length]
            if reached >= wanted:
                break
        return length

    def histogram(self, bins: int) -> list[tuple[int, int, int]]:
        """Return first length, last length and count of each of `bins` bins, from short to long.

        The bins have equal widths between the 1 % and the 99 % quantile. The first and the last bin
        also count shorter and longer lengths.
        """
        low = self.quantile(0.01)
        width = max(1, -(-(self.quantile(0.99) - low + 1) // bins))
        counts = [0] * bins
        for length, count in self._counts.items():
            counts[min(max(length - low, 0) // width, bins - 1)] += count
        firsts = [low + index * width for index in range(bins)]
        lasts = [first + width - 1 for first in firsts]
        firsts[0] = min(low, *self._counts)
        lasts[-1] = max(lasts[-1], *self._counts)
        return list(zip(firsts, lasts, counts, strict=True))
