"""Counting in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Tally:
    """Counts of texts, of which there may be more different ones than memory should hold.

    Where there are more than `limit`, the rarest half is forgotten, so that the counts of frequent
    ones are exact, or nearly so where one was rare for long (lossy counting: Manku and Motwani,
    2002, https://www.vldb.org/conf/2002/S10P03.pdf).

    Attributes:
        counts: how often each text was met, as far as it is remembered.
        forgot: whether some were forgotten.
    """

    def __init__(self, limit: int = 1 << 18) -> None:
        self.counts: Counter[str] = Counter()
        self.forgot = False
        self._limit = limit

    @property
    def distinct(self) -> int:
        """How many different texts there are; where some were forgotten, at least so many."""
        return max(len(self.counts), self._limit) if self.forgot else len(self.counts)

    def update(self, texts: Iterable[str]) -> None:
        """Count each text once."""
        self.counts.update(texts)
        if len(self.counts) > self._limit:
            self.counts = Counter(dict(self.counts.most_common(self._limit // 2)))
            self.forgot = True


class Lengths:
    """The lengths of many things, each counted: quantiles and histograms of them are exact.

    Memory grows with the number of different lengths only, at most the square root of twice their
    sum.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        """Count one more thing of that length."""
        self._counts[length] += 1

    @property
    def count(self) -> int:
        """How many things there are."""
        return self._counts.total()

    @property
    def total(self) -> int:
        """The sum of their lengths."""
        return sum(length * count for length, count in self._counts.items())

    def quantile(self, share: float) -> int:
        """The smallest length that at least this share of the things, 0 … 1, do not exceed."""
        wanted = share * self.count
        reached = 0
        for length in sorted(self._counts):
            reached += self._counts[length]
            if reached >= wanted:
                break
        return length

    def histogram(self, bins: int) -> list[tuple[int, int, int]]:
        """First length, last length and count of bins between the 1 % and the 99 % quantile.

        All are as wide, but for the first and the last, which hold what is shorter and longer, too.
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
