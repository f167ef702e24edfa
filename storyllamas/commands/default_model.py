"""The model of a command that names none."""

from __future__ import annotations

import sys
from pathlib import Path

from storyllamas.errors import UserError
from storyllamas.extras import needs

PRETRAINED = Path("models/pretrained/tinystories-2m-q4.slm")
"""The model that comes with a checkout, for those who have not trained their own."""


def default_checkpoint() -> Path:
    """Return the folder of the size that params.yaml names.

    Raises:
        UserError: the current folder has no params.yaml.
    """
    if not Path("params.yaml").is_file():
        raise UserError(
            "the current folder has no params.yaml that names a model: give one with --model"
        )
    with needs("train"):
        from storyllamas import params

    return Path("models") / params.load().model


def trained_checkpoint() -> Path:
    """Return that folder.

    Raises:
        UserError: the size is not trained.
    """
    folder = default_checkpoint()
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not trained yet: train it with `dvc repro`, or name a model with --model"
        )
    return folder


def default_model() -> Path:
    """Return the float32 file of that size, or the pretrained model if it is not trained.

    Print a line on standard error in the second case.
    """
    trained = default_checkpoint() / "export" / "f32.slm"
    if trained.is_file() or not PRETRAINED.is_file():
        return trained
    print(f"{trained} is not trained yet: using {PRETRAINED}", file=sys.stderr)
    return PRETRAINED
