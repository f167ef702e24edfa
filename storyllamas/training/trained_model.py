"""The trained model: model.safetensors, config.json and adapter.safetensors in models/SIZE/."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from storyllamas.atomic import atomic_file, write_json
from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.errors import UserError
from storyllamas.model import Llama


def save_model(
    folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write model.safetensors, and config.json with the shape and the values of `about`."""
    with atomic_file(folder / "model.safetensors") as file:
        file.write(safetensors.torch.save(dict(tensors)))
    write_json(folder / "config.json", {"model": dataclasses.asdict(config), **about})


def load_model(folder: Path) -> tuple[Llama, dict[str, Any]]:
    """Return the model that `save_model` wrote, on the CPU in eval mode, and its config.json.

    Raises:
        UserError: a file is missing or damaged, or the two do not fit together.
    """
    remedy = "train it with `dvc repro`"
    try:
        about: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = ModelConfig(**about["model"])
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or folder} does not exist: {remedy}") from None
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"the model in {folder} is damaged ({error}): {remedy}") from None
    if {name: tuple(t.shape) for name, t in tensors.items()} != tensor_shapes(config):
        raise UserError(f"model.safetensors in {folder} does not fit its config.json: {remedy}")
    model = Llama(config)
    model.load_state_dict(tensors)
    return model.eval(), about
