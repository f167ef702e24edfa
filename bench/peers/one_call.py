"""A program whose one call generates, sampled or greedy, after prompts of one length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from bench.peers.worker import BOS, TOP_P


class OneCall(ABC):
    """Requests of a worker as calls of `_generate`.

    Attributes:
        SEED: the keyword argument of `_generate` that is the seed.
    """

    SEED: str

    @abstractmethod
    def _generate(self, starts: Sequence[Sequence[int]], steps: int, **how: float) -> list[int]:
        """Generate after prompts of one length, without EOS, and return the first sequence."""

    def story(self, steps: int, seed: int) -> None:
        """Generate one sequence."""
        self.batch(1, steps, seed)

    def prompt(self, ids: Sequence[int]) -> None:
        """Compute the prompt in one pass, and the most probable next token."""
        self._generate([ids], 1, do_sample=False)

    def batch(self, sequences: int, steps: int, seed: int) -> None:
        """Generate one batch."""
        sampling = {"do_sample": True, "temperature": 1.0, "top_p": TOP_P, self.SEED: seed}
        self._generate([[BOS]] * sequences, steps, **sampling)

    def greedy(self, steps: int) -> list[int]:
        """Generate without sampling."""
        return self._generate([[BOS]], steps, do_sample=False)
