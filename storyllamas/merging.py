"""Merge a LoRA adapter into the model that it was trained on."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from storyllamas import adapter
from storyllamas.config import tensor_shapes
from storyllamas.errors import UserError
from storyllamas.interop.model import InteropModel, open_model
from storyllamas.slm import weight_file
from storyllamas.slm.quantize import Float32


def merge(base: Path, file: Path) -> InteropModel:
    """Return a model with an adapter added to its weights, in float32.

    Print a line on standard error if the weights of the base are quantized.

    Args:
        base: weight file, or folder of a trained model.
        file: the adapter.

    Raises:
        UserError: a file is missing or damaged, or the adapter belongs to another model.
    """
    model, added = open_model(base), adapter.read(file)
    shapes = tensor_shapes(model.config)
    for name, tensor in added.tensors.items():
        prefix, _, kind = name.rpartition(".")
        shape = shapes.get(f"{prefix}.weight", ())
        side = 0 if kind == "lora_b" else -1
        if len(shape) != 2 or tensor.shape[side] != shape[side]:
            raise UserError(
                f"tensor {name} of {file} has shape {tensor.shape}, which does not fit {base}: "
                "name the model that its training started from"
            )
    names = sorted(shapes)
    digest = adapter.weights_sha256((name, model.tensor(name)[:]) for name in names)
    if digest != added.base_sha256:
        raise UserError(
            f"{file} was trained on a model with other weights than {base}: name the model that "
            "its training started from, with the same tokenizer and weight type"
        )
    if not base.is_dir() and (kind := weight_file.read(base).storage.layers.type.label) != "f32":
        print(f"{base} is in {kind}: the merged weights are in f32", file=sys.stderr)

    def tensor_of(name: str) -> Float32:
        return added.merge(name, model.tensor(name)[:])

    return dataclasses.replace(model, tensor=tensor_of)
