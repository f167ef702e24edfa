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
from storyllamas.training.model_files import open_trained, read_tensors
from storyllamas.training.shared_pieces import piece_map

SHAPE = ("dim", "layers", "heads", "kv_heads", "head_dim", "hidden", "rope_theta", "norm_eps")
"""Fields of `ModelConfig` that the start and the size must share, each a key of `shape`."""

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
    path: Path, config: ModelConfig, tokenizer_file: Path
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a model in any format that can be imported; say how its tokenizer compares.

    Quantized weights are converted to float32.

    Args:
        path: the folder of a trained model, a weight file, or a file or folder of another program.
        config: shape of the model to train; its context may differ from that of the start.
        tokenizer_file: the tokenizer in use.

    Returns:
        The shape of the model to train, and all tensors of `tensor_shapes`.

    Raises:
        UserError: the model is missing or damaged, cannot be represented, or has another shape.
    """
    start = open_trained("train.start", path, tokenizer_file)
    _check_shape(path, start.config, config)
    config = replace(config, **{name: getattr(start.config, name) for name in FOLLOWED})
    pieces = piece_map(start.vocabulary, tokenizer.load(tokenizer_file).vocabulary())
    tensors = read_tensors("train.start", path, start)
    for name in {"embedding.weight", "classifier.weight"} & tensors.keys():
        tensors[name] = torch.from_numpy(pieces.rows(tensors[name].numpy()))
    print(f"training starts from {path}: {pieces.describe()}", flush=True)
    return config, tensors


def _check_shape(path: Path, start: ModelConfig, config: ModelConfig) -> None:
    """Check that the start fits the size; the message has the options that make it fit."""
    values, wanted = asdict(start), asdict(config)
    options = [
        f"-S shape.{name}={_shown(values[name])}"
        for name in SHAPE
        if _shown(values[name]) != _shown(wanted[name])
    ]
    if options:
        raise UserError(
            f"train.start is {path}, whose shape is not that of the chosen size: add "
            f"{' '.join(options)}, or start from another model"
        )


def _shown(value: float) -> float:
    """Return a value as a user writes it; a file may have it in float32."""
    return shortest_float32(value) if isinstance(value, float) else value
