"""Scaled rotary frequencies in other formats: `linear`, and `llama3` as in Llama 3.1.

GGUF stores `linear` in fields, and `llama3` as a tensor of divisors, rope_freqs.weight: one for the
frequency of each pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.slm.quantize import Float32

DIVISORS = "rope_freqs.weight"
"""GGUF's name of the tensor of divisors."""
GGUF_KEYS = (
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length",
    "llama.rope.scaling.finetuned",
    "llama.rope.scale_linear",
)

HUGGINGFACE = {
    "rope_factor": "factor",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_original_context": "original_max_position_embeddings",
}

USED = {"none": 0, "linear": 1, "llama3": 4}
"""The number of fields of `HUGGINGFACE` that each kind of scaling uses, the first ones."""

MAX_ORIGINAL_CONTEXT = (1 << 32) - 1
"""The largest context that a weight file can name."""

TOLERANCE = 1e-5
"""Largest relative difference between the divisors of a file and those of fitted fields."""


def with_scaling(where: str, config: ModelConfig, scaling: str, **fields: Any) -> ModelConfig:
    """Return the config with scaled frequencies.

    Args:
        where: the file, for messages.
        config: the model's shape without scaling.
        scaling: `linear` or `llama3`.
        **fields: fields of `ModelConfig`, as the file has them.

    Raises:
        UserError: a field is missing or impossible.
    """
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{name} of the rotary scaling in {where} is {value!r}, not a number")
    whole = fields.pop("rope_original_context", 0)
    if not 0 <= whole <= MAX_ORIGINAL_CONTEXT or whole != int(whole):
        raise UserError(
            f"rope_original_context of the rotary scaling in {where} is {whole!r} and must be a "
            f"whole number from 1 to {MAX_ORIGINAL_CONTEXT}"
        )
    # The weight file holds float32, in which other numbers may be equal, 0 or infinite.
    rounded: dict[str, Any] = {name: _float32(value) for name, value in fields.items()}
    found = replace(config, rope_scaling=scaling, rope_original_context=int(whole), **rounded)
    if found.rope_problem:
        raise UserError(f"{where} cannot be imported: {found.rope_problem}")
    return found


def _float32(value: float) -> float:
    """Return a number rounded to float32; too large ones are infinite."""
    try:
        with np.errstate(over="ignore", under="ignore"):
            return float(np.float32(value))
    except OverflowError:
        return math.inf


# ---- Hugging Face --------------------------------------------------------------------------------


def from_huggingface(where: str, config: ModelConfig, rope: Mapping[str, Any]) -> ModelConfig:
    """Return the config with the scaling of `rope_parameters` or `rope_scaling`.

    Raises:
        UserError: it is of another kind than `linear` and `llama3`, or damaged.
    """
    kind = rope.get("rope_type", rope.get("type"))
    if kind in (None, "default"):
        return config
    if kind not in ("linear", "llama3"):
        raise UserError(
            f"the rotary positions in {where} are scaled by {kind!r}: only 'linear' and 'llama3' "
            "can be imported"
        )
    names = list(HUGGINGFACE)[: USED[kind]]
    fields = {name: rope.get(HUGGINGFACE[name]) for name in names}
    return with_scaling(where, config, kind, **fields)


def to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of `rope_parameters`, without rope_theta."""
    kind = "default" if config.rope_scaling == "none" else config.rope_scaling
    names = list(HUGGINGFACE)[: USED[config.rope_scaling]]
    return {"rope_type": kind} | {HUGGINGFACE[name]: getattr(config, name) for name in names}


# ---- GGUF ----------------------------------------------------------------------------------------


def frequencies(config: ModelConfig) -> npt.NDArray[np.float64]:
    """Return the frequency of each pair before scaling: [head_dim / 2]."""
    exponents: npt.NDArray[np.float64] = -np.arange(0, config.head_dim, 2) / config.head_dim
    found: npt.NDArray[np.float64] = np.float64(config.rope_theta) ** exponents
    return found


def divisors(config: ModelConfig) -> Float32 | None:
    """Return the divisors of `llama3`, [head_dim / 2]; None for other kinds."""
    if config.rope_scaling != "llama3":
        return None
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    turns = config.rope_original_context * frequencies(config) / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / (kept + (1 - kept) / config.rope_factor), np.float32)


def from_gguf(
    where: str, config: ModelConfig, values: Mapping[str, Any], stored: Float32 | None
) -> ModelConfig:
    """Return the config with the scaling of a GGUF file.

    Args:
        where: the file, for messages.
        config: the model's shape without scaling.
        values: the file's fields.
        stored: rope_freqs.weight, if the file has it.

    Raises:
        UserError: the scaling is of another kind than `linear` and `llama3`.
    """
    kind = values.get("llama.rope.scaling.type", "none")
    factor = values.get("llama.rope.scaling.factor", values.get("llama.rope.scale_linear", 0.0))
    if kind not in ("none", "linear"):
        raise UserError(
            f"llama.rope.scaling.type in {where} is {kind!r}: only 'linear' can be imported"
        )
    if factor not in (0.0, 1.0) and (kind == "linear" or "llama.rope.scale_linear" in values):
        if stored is not None:
            raise UserError(f"{where} scales its rotary positions twice, which cannot be imported")
        return with_scaling(where, config, "linear", rope_factor=factor)
    return config if stored is None else _fit_llama3(where, config, stored)


def _fit_llama3(where: str, config: ModelConfig, stored: Float32) -> ModelConfig:
    """Find fields of `llama3` that give the divisors of a file.

    Try those of Llama 3.1 first. Otherwise fit a line: `llama3` interpolates between a kept and a
    divided frequency linearly in the frequency. Many fields give the same divisors, so the lower
    limit is taken as 1.
    """
    if stored.shape != (config.head_dim // 2,) or not np.isfinite(stored).all():
        raise UserError(f"{DIVISORS} in {where} does not have a number for each pair of a head")
    factor = float(stored.max())
    if (stored == 1).all():
        return config
    candidates = [(1.0, 4.0, 8192)]
    between = (stored > 1) & (stored < factor)
    if between.sum() >= 2 and factor > 1:
        kept = (1 / stored[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        slope, intercept = np.polyfit(frequencies(config)[between], kept, 1)
        if intercept < 0:
            high = 1 - 1 / intercept
            context = slope * 2 * math.pi * (high - 1)
            candidates += list(product([1.0], {round(high), high}, {round(context)}))
    for low, high, context in candidates:
        fitted = replace(
            config,
            rope_scaling="llama3",
            rope_factor=factor,
            rope_low_freq_factor=low,
            rope_high_freq_factor=float(high),
            rope_original_context=int(context),
        )
        computed = None if fitted.rope_problem else divisors(fitted)
        if computed is not None and np.allclose(computed, stored, rtol=TOLERANCE, atol=0):
            return fitted
    raise UserError(
        f"{DIVISORS} in {where} is not that of Llama 3.1: no other scaling by a tensor can be "
        "imported"
    )


def add_to_gguf(writer: Any, config: ModelConfig) -> None:
    """Add the fields of linear scaling to a GGUF writer; `divisors` has those of `llama3`."""
    if config.rope_scaling == "linear":
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", config.rope_factor)
