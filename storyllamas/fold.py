"""A fold: one of several equal parts of a text's stories, which a run can hold out."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Fold:
    """A part of the stories of a text, in their order.

    Attributes:
        number: the part, 1 … count.
        count: number of parts, 2 ….
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Fold:
        """Return the fold that a text such as 3/8 names.

        Raises:
            ValueError: it names none.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        fold = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= fold.number <= fold.count or fold.count < 2:
            raise ValueError(f"{text} is not a fold such as 3/8")
        return fold

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def tokens(self, beginnings: npt.NDArray[np.int64], count: int) -> tuple[int, int]:
        """Return the first token of the fold, and the token behind its last.

        Args:
            beginnings: where each story begins; there are at least as many as folds.
            count: number of tokens.
        """
        edges, stories = np.append(beginnings, count), len(beginnings)
        first, end = (stories * part // self.count for part in (self.number - 1, self.number))
        return int(edges[first]), int(edges[end])
