"""Read the models to learn from. The stage imports this module only if there are some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from storyllamas import tokenizer
from storyllamas.config import tensor_shapes
from storyllamas.errors import UserError
from storyllamas.training.model_files import open_trained
from storyllamas.training.teacher import Teacher, TrainedModel


def read(paths: Sequence[str], share: float, tokenizer_file: Path) -> Teacher:
    """Read models in any format that can be imported, and of any shape.

    Quantized weights are converted to float32.

    Args:
        paths: folders of trained models, weight files, or files or folders of another program.
        share: see `Teacher`.
        tokenizer_file: the tokenizer in use.

    Raises:
        UserError: a model is missing or damaged, cannot be represented, or has another tokenizer.
    """
    vocabulary = tokenizer.load(tokenizer_file).vocabulary()
    models = []
    for path in paths:
        model = open_trained("train.teacher", Path(path), tokenizer_file)
        if model.vocabulary.pieces != vocabulary.pieces:
            raise UserError(
                f"train.teacher is {path}, whose tokenizer is not {tokenizer_file}: name a model "
                "with the same tokenizer, or set tokenizer.path to the teacher's"
            )
        tensors = {
            name: torch.from_numpy(np.array(model.tensor(name)[:], np.float32))
            for name in tensor_shapes(model.config)
        }
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise UserError(f"train.teacher is {path}, which has a weight that is not finite")
        models.append(TrainedModel(model.config, tensors))
    return Teacher(models, share)
