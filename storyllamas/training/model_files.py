"""Open the models that params.yaml names: trained here, or by another program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from storyllamas.config import tensor_shapes
from storyllamas.errors import UserError
from storyllamas.interop import formats
from storyllamas.interop.model import InteropModel, open_model
from storyllamas.regular_file import open_regular
from storyllamas.slm.header import MAGIC


def open_trained(parameter: str, path: Path, tokenizer_file: Path) -> InteropModel:
    """Open a model in any format that can be imported, which is detected from its content.

    Args:
        parameter: the key of params.yaml that names it, for messages.
        path: the folder of a trained model, a weight file, or a file or folder of another program.
        tokenizer_file: the tokenizer in use.

    Raises:
        UserError: the model is missing or damaged, or cannot be represented.
    """
    if not path.exists():
        raise UserError(
            f"{parameter} is {path}, which does not exist: name a file or folder of a model, by an "
            "absolute path in a queued experiment"
        )
    try:
        with np.errstate(all="ignore"):
            if _is_ours(path):
                return open_model(path, [tokenizer_file])
            return formats.open_external(path)
    except UserError as error:
        raise UserError(f"{parameter} cannot be used: {error}") from None


def read_tensors(parameter: str, path: Path, model: InteropModel) -> dict[str, Tensor]:
    """Read every tensor of `tensor_shapes`; quantized weights are converted to float32.

    Args:
        parameter: the key of params.yaml that names the model, for messages.
        path: what the key says.
        model: the open model.

    Raises:
        UserError: a value is not finite.
    """
    tensors = {}
    for name in tensor_shapes(model.config):
        tensors[name] = torch.from_numpy(np.array(model.tensor(name)[:], np.float32))
        if not tensors[name].isfinite().all():
            raise UserError(f"{parameter} is {path}, whose tensor {name} is not finite")
    return tensors


def _is_ours(path: Path) -> bool:
    """Return whether a model is a weight file or the folder of a trained model."""
    if not path.is_dir():
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    try:
        return "tokenizer_sha256" in json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False
