"""CTranslate2 as a worker: python -m bench.peers.ctranslate2 FOLDER THREADS [greedy].

`greedy` makes all generation greedy: its sampling from the whole vocabulary takes longer than a
small model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import ctranslate2

from bench.peers.worker import BOS, TOP_P, serve


class CTranslate2:
    """A converted model that computes in the type of its weights."""

    def __init__(self, folder: str, threads: int, is_greedy: bool) -> None:
        self._folder, self._threads = folder, threads
        self._pieces = json.loads(Path(folder, "vocabulary.json").read_text(encoding="utf-8"))
        self._one = ctranslate2.Generator(folder, intra_threads=threads)
        self._many: ctranslate2.Generator | None = None
        sampled = {"sampling_topk": 0, "sampling_topp": TOP_P}
        self._sampling = {} if is_greedy else sampled
        self.vocab_size = len(self._pieces)

    def _generate(
        self, generator: ctranslate2.Generator, starts: list[list[int]], steps: int, **how: object
    ) -> list[list[int]]:
        results = generator.generate_batch(
            [[self._pieces[id] for id in start] for start in starts],
            min_length=steps,  # ignore EOS
            max_length=steps,
            include_prompt_in_result=False,
            **how,
        )
        return [result.sequences_ids[0] for result in results]

    def story(self, steps: int, seed: int) -> None:
        """Generate one sequence."""
        ctranslate2.set_random_seed(seed)
        self._generate(self._one, [[BOS]], steps, **self._sampling)

    def prompt(self, ids: Sequence[int]) -> None:
        """Compute the prompt in one pass, and the most probable next token."""
        self._generate(self._one, [list(ids)], 1)

    def batch(self, sequences: int, steps: int, seed: int) -> None:
        """Generate a batch, split into one part for each thread."""
        if self._many is None:
            self._many = ctranslate2.Generator(
                self._folder, inter_threads=self._threads, intra_threads=1
            )
        ctranslate2.set_random_seed(seed)
        share = -(-sequences // self._threads)
        starts = [[BOS]] * sequences
        self._generate(self._many, starts, steps, max_batch_size=share, **self._sampling)

    def greedy(self, steps: int) -> list[int]:
        """Generate greedily, the default of the library."""
        return self._generate(self._one, [[BOS]], steps)[0]

    def about(self) -> str:
        """Return the version and the type of its computation."""
        return f"{ctranslate2.__version__}, {self._one.compute_type}"


if __name__ == "__main__":
    serve(CTranslate2(sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["greedy"]))
