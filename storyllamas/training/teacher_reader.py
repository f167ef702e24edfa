"""Read the models to learn from. The stage imports this module only if there are some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from storyllamas import tokenizer
from storyllamas.errors import UserError
from storyllamas.training.model_files import open_trained, read_tensors
from storyllamas.training.teacher import HeldOut, Teacher, TrainedModel


def read(paths: Sequence[str], share: float, tokenizer_file: Path) -> Teacher:
    """Read models in any format that can be imported, and of any shape.

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
        tensors = read_tensors("train.teacher", Path(path), model)
        models.append(TrainedModel(model.config, tensors, _held_out(Path(path))))
    return Teacher(models, share)


def _held_out(path: Path) -> HeldOut | None:
    """Return what a model trained here held out; only the folder of a trained model says so."""
    try:
        about = json.loads((path / "config.json").read_text("utf-8")).get("held_out")
    except (OSError, ValueError, AttributeError):
        return None  # of another program
    if about is None:
        return None
    try:
        return HeldOut.read(about)
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"train.teacher is {path}, whose config.json has a damaged held_out: train it again"
        ) from None
