"""What this machine can do at most, and how long a token takes at the least.

A token of one story is bound by memory: it reads every weight once, and the keys and values of all
positions before it. A prompt and many stories at once share each weight that is read between their
tokens and are bound by arithmetic, where there are enough of them.
"""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import dataclass
from typing import Any

from bench import build
from storyllamas.config import ModelConfig

CACHE_BYTES = {"f32": 4, "q8": 2, "q4": 2}
"""Of one element of the engine's key-value cache, by weight type."""

ARITHMETIC = {"f32": "f32", "q8": "int8", "q4": "int8"}
"""In which numbers the engine multiplies, by weight type."""


def measured() -> dict[str, Any]:
    """What bench/limits.c prints."""
    output = subprocess.run([build.limits()], capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output)
    return found


@dataclass(frozen=True)
class Machine:
    """The measured limits."""

    found: dict[str, Any]

    def bandwidth(self, megabytes: float, threads: int) -> float:
        """Bytes a second that threads read of a buffer of that size, on the better kind of pages.

        Between measured sizes it lies on a line over the logarithm of the size.
        """
        best: dict[float, float] = {}
        for row in self.found["bandwidth"]:
            if row["threads"] == threads:
                best[row["megabytes"]] = max(row["bytes"], best.get(row["megabytes"], 0))
        sizes = sorted(best)
        megabytes = min(max(megabytes, sizes[0]), sizes[-1])
        above = next(size for size in sizes if size >= megabytes)
        below = max((size for size in sizes if size <= megabytes), default=above)
        if above == below:
            return best[above]
        share = math.log(megabytes / below) / math.log(above / below)
        return best[below] + share * (best[above] - best[below])

    def peak(self, type: str, threads: int) -> float:
        """Operations a second in a number type; 0 where the processor has no such."""
        rows = self.found["peak"]
        of = [row["operations"] for row in rows if (row["type"], row["threads"]) == (type, threads)]
        return float(max(of, default=0))

    def read_seconds(self, bytes: float, threads: int) -> float:
        """How long it takes to read so much that is read over and over."""
        return bytes / self.bandwidth(bytes / 2**20, threads)

    def compute_seconds(self, operations: float, type: str, threads: int) -> float:
        """How long it takes to compute so much; 0 where that is not known."""
        peak = self.peak(type, threads)
        return operations / peak if peak else 0.0


@dataclass(frozen=True)
class Limit:
    """The least time that a model of a weight type takes on so many threads.

    Attributes:
        machine: what it runs on.
        config: the model's shape.
        weight_type: f32, q8 or q4.
        weight_bytes: of all its tensors.
        threads: how many.
    """

    machine: Machine
    config: ModelConfig
    weight_type: str
    weight_bytes: int
    threads: int

    def story(self, steps: int) -> float:
        """Seconds for a token of a story of so many: weights, and the cache at its mean length."""
        return self._read(self.weight_bytes + self._cache_bytes((steps + 1) / 2))

    def prompt(self, tokens: int) -> float:
        """Seconds for a whole prompt.

        Two operations for every token and weight, but of the classifier for the last token only;
        two for every element of a key and of a value that a query meets.
        """
        shape = self.config
        matrices = 2 * (self._layer_weights * tokens + shape.dim * shape.vocab_size)
        meetings = tokens * (tokens + 1) / 2
        attention = 4 * shape.layers * shape.heads * shape.head_dim * meetings
        arithmetic = self._compute(matrices, ARITHMETIC[self.weight_type])
        return max(arithmetic + self._compute(attention, "f32"), self._read(self.weight_bytes))

    def batch(self, stories: int, steps: int) -> float:
        """Seconds for a token of each of so many stories.

        The weights once or their arithmetic, whichever takes longer, then every story's cache at
        its mean length.
        """
        shape = self.config
        matrices = 2 * stories * (self._layer_weights + shape.dim * shape.vocab_size)
        arithmetic = self._compute(matrices, ARITHMETIC[self.weight_type])
        caches = self._read(stories * self._cache_bytes((steps + 1) / 2))
        return max(arithmetic, self._read(self.weight_bytes)) + caches

    @property
    def _layer_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        shape = self.config
        attention = shape.dim * (shape.qkv_rows + shape.heads * shape.head_dim)
        return shape.layers * (attention + 3 * shape.dim * shape.hidden)

    def _cache_bytes(self, positions: float) -> float:
        shape = self.config
        elements = 2 * shape.layers * shape.kv_heads * shape.head_dim * positions
        return elements * CACHE_BYTES[self.weight_type]

    def _read(self, bytes: float) -> float:
        return self.machine.read_seconds(bytes, self.threads)

    def _compute(self, operations: float, type: str) -> float:
        return self.machine.compute_seconds(operations, type, self.threads)
