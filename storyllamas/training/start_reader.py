"""Read the model that training starts from, and fit it to the size and tokenizer in use.

The stage imports this module only if there is a start: a change of the formats of other programs
changes no model that starts from random weights.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from storyllamas import tokenizer
from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.rounding import shortest_float32
from storyllamas.training import growth
from storyllamas.training.model_files import open_trained, read_tensors
from storyllamas.training.shared_pieces import piece_map

SHAPE = (*growth.GROWS, *growth.KEPT)
"""Keys of `shape` whose values the start and the size share, unless the start grows."""

FOLLOWED = (
    "tied",
    "rope_scaling",
    "rope_factor",
    "rope_low_freq_factor",
    "rope_high_freq_factor",
    "rope_original_context",
)
"""Fields of `ModelConfig` that params.yaml does not have, so that they are those of the start."""


def read(
    path: Path, config: ModelConfig, tokenizer_file: Path, seed: int, has_lora: bool = False
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a model in any format that can be imported; say how its tokenizer compares.

    Quantized weights are converted to float32. A smaller model grows to the shape of the size.

    Args:
        path: the folder of a trained model, a weight file, or a file or folder of another program.
        config: shape of the model to train; its context may differ from that of the start.
        tokenizer_file: the tokenizer in use.
        seed: seed of the random weights of a model that grows.
        has_lora: train an adapter, which a model that grows cannot have.

    Returns:
        The shape of the model to train, and all tensors of `tensor_shapes`.

    Raises:
        UserError: the model is missing or damaged, cannot be represented, or has a shape that
            cannot grow to that of the size.
    """
    start = open_trained("train.start", path, tokenizer_file)
    config = replace(config, **{name: getattr(start.config, name) for name in FOLLOWED})
    differing = _differing(start.config, config)
    if differing:
        _check_grows(path, start.config, config, differing, has_lora)
    pieces = piece_map(start.vocabulary, tokenizer.load(tokenizer_file).vocabulary())
    tensors = read_tensors("train.start", path, start)
    for name in {"embedding.weight", "classifier.weight"} & tensors.keys():
        tensors[name] = torch.from_numpy(pieces.rows(tensors[name].numpy()))
    print(f"training starts from {path}: {pieces.describe()}", flush=True)
    if differing:
        tensors = growth.grow(tensors, start.config, config, seed)
        changes = (f"{n} {getattr(start.config, n)} to {getattr(config, n)}" for n in differing)
        print(f"it grows to the chosen size: {', '.join(changes)}", flush=True)
    return config, tensors


def _differing(start: ModelConfig, config: ModelConfig) -> list[str]:
    """Return the fields in which the start does not fit the size."""
    values, wanted = asdict(start), asdict(config)
    return [name for name in SHAPE if _shown(values[name]) != _shown(wanted[name])]


def _check_grows(
    path: Path, start: ModelConfig, config: ModelConfig, differing: list[str], has_lora: bool
) -> None:
    """Check that the start can grow; a message has the options that make the size fit."""
    reason = growth.problem(start, config)
    options = [f"-S shape.{name}={_shown(getattr(start, name))}" for name in differing]
    if has_lora and not reason:
        reason = "an adapter belongs to the start as it is"
        options.append("or -S train.lora_rank=0")
    if reason:
        raise UserError(
            f"train.start is {path}, whose shape is not that of the chosen size, and it cannot "
            f"grow to it, since {reason}: add {' '.join(options)}, or start from another model"
        )


def _shown(value: float) -> float:
    """Return a value as a user writes it; a file may have it in float32."""
    return shortest_float32(value) if isinstance(value, float) else value
