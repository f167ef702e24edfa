"""From a training checkpoint to files that run elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from storyllamas import weights
from storyllamas.errors import UserError
from storyllamas.tokenizer import Tokenizer
from storyllamas.training.checkpoint import load_model
from storyllamas.weights import WeightType


def export_weights(
    checkpoint: Path, tokenizer: Tokenizer, folder: Path, types: Iterable[str], group_size: int
) -> list[Path]:
    """Write a checkpoint as weight files, folder/TYPE.slm for each type; returns their paths.

    Args:
        checkpoint: folder that training wrote.
        tokenizer: the one that the model was trained with.
        folder: where the files go.
        types: names of `WeightType` in lower case.
        group_size: weights that share a scale where the type has scales.

    Raises:
        UserError: the checkpoint is damaged or belongs to another tokenizer.
    """
    model, about = load_model(checkpoint)
    if about["tokenizer_sha256"] != tokenizer.digest.hex():
        raise UserError(
            f"checkpoint {checkpoint} was trained with another tokenizer: train it again"
        )
    tensors = model.state_dict()
    paths = []
    for name in types:
        path = folder / f"{name}.slm"
        weights.write(
            path,
            model.config,
            tokenizer.vocabulary(),
            lambda tensor: tensors[tensor].numpy(),
            WeightType[name.upper()],
            group_size,
        )
        paths.append(path)
    return paths
