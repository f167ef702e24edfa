"""Limits of this machine, and the minimum time for a token that follows from them.

One sequence is bound by memory: each token reads all weights, and the keys and values of all
earlier positions. The tokens of a prompt or a batch share each weight that is read; enough of them
are bound by arithmetic.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from bench import build
from bench.worker import run_limited
from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.slm.encoding import GROUP_SIZES

ARITHMETIC = {label: "int8" if size else "f32" for label, size in GROUP_SIZES.items()}
"""Number type in which the engine multiplies, by weight type."""

PROBE_SECONDS = 300.0
"""A probe that takes longer is killed."""

CACHE_BYTES = {label: 2 if size else 4 for label, size in GROUP_SIZES.items()}
"""Bytes of an element of the engine's key-value cache, by weight type: f16 if it has scales."""


def measured() -> dict[str, Any]:
    """Run bench/limits.c and return its JSON.

    Raises:
        UserError: the program crashes or hangs.
    """
    program = build.limits()
    output, failure = run_limited([program], PROBE_SECONDS)
    if failure:
        raise UserError(f"{program} fails: {failure}")
    found: dict[str, Any] = json.loads(output)
    return found


@dataclass(frozen=True)
class Machine:
    """The limits of a machine, as bench/limits.c prints them."""

    found: dict[str, Any]

    def bandwidth(self, megabytes: float, threads: int) -> float:
        """Return bytes a second of repeated reads of a buffer, on the faster kind of pages.

        Interpolates between measured sizes, linearly in the logarithm of the size.
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

    @property
    def rejected(self) -> list[str]:
        """Return the number types whose probe is slower than that of f32.

        Such a probe is no limit: the numbers can be converted to f32 and multiplied faster.
        """
        types = dict.fromkeys(row["type"] for row in self.found["peak"])
        peaks = {type: self._measured_peak(type, 1) for type in types}
        return [type for type, peak in peaks.items() if peak < peaks.get("f32", 0)]

    def peak(self, type: str, threads: int) -> float:
        """Return operations a second in a number type, or 0 if it was not measured.

        It is that of vectors or of AMX, whichever is higher.
        """
        vectors = self._measured_peak("f32" if type in self.rejected else type, threads)
        return max(vectors, self._measured_peak(f"AMX {type}", threads))

    def _measured_peak(self, type: str, threads: int) -> float:
        rows = self.found["peak"]
        of = [row["operations"] for row in rows if (row["type"], row["threads"]) == (type, threads)]
        return float(max(of, default=0))

    def read_seconds(self, bytes: float, threads: int) -> float:
        """Return the seconds of a read of `bytes` that are read repeatedly."""
        return bytes / self.bandwidth(bytes / 2**20, threads)

    def compute_seconds(self, operations: float, type: str, threads: int) -> float:
        """Return the seconds of `operations`, or 0 if the peak was not measured."""
        peak = self.peak(type, threads)
        return operations / peak if peak else 0.0


@dataclass(frozen=True)
class Limit:
    """The minimum time of a model on a machine.

    Attributes:
        machine: limits of the machine.
        config: shape of the model.
        weight_type: f32, q8 or q4.
        weight_bytes: of all tensors.
        threads: number of threads.
    """

    machine: Machine
    config: ModelConfig
    weight_type: str
    weight_bytes: int
    threads: int

    def sequence(self, steps: int) -> float:
        """Return the mean seconds of a token of one sequence of `steps` tokens.

        A token reads the weights, and the cache at its mean length.
        """
        return self._read(self.weight_bytes + self._cache_bytes((steps + 1) / 2))

    def prompt(self, tokens: int) -> float:
        """Return the seconds of a prompt of `tokens` tokens.

        Each token takes two operations a weight, the classifier only for the last token; attention
        takes two for each element of the keys and values that a query reads.
        """
        shape = self.config
        matrices = 2 * (self._layer_weights * tokens + shape.dim * shape.vocab_size)
        pairs = tokens * (tokens + 1) / 2
        attention = 4 * shape.layers * shape.heads * shape.head_dim * pairs
        arithmetic = self._compute(matrices, ARITHMETIC[self.weight_type])
        return max(arithmetic + self._compute(attention, "f32"), self._read(self.weight_bytes))

    def batch(self, sequences: int, steps: int) -> float:
        """Return the mean seconds of a step, one token for each of `sequences`.

        A step reads the weights or multiplies by them, whichever takes longer, then reads the cache
        of each sequence at its mean length.
        """
        shape = self.config
        matrices = 2 * sequences * (self._layer_weights + shape.dim * shape.vocab_size)
        arithmetic = self._compute(matrices, ARITHMETIC[self.weight_type])
        caches = self._read(sequences * self._cache_bytes((steps + 1) / 2))
        return max(arithmetic, self._read(self.weight_bytes)) + caches

    @property
    def _layer_weights(self) -> int:
        """Return the number of weights in the matrices of all layers."""
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
