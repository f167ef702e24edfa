"""Log probabilities of generated tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Logprobs:
    """A token in the model's own distribution, that of temperature 1 before any sampling option.

    Attributes:
        id: the sampled token.
        logprob: the natural logarithm of its probability.
        top: the most probable tokens with theirs, the most probable first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, piece: Any) -> Logprobs:
        """Read an `sl_piece` that has a token."""
        top = tuple((piece.top[i].id, piece.top[i].logprob) for i in range(piece.top_count))
        return cls(piece.id, piece.logprob, top)
