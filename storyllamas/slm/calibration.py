"""Moments of the inputs of a model's matrices, for rounding with GPTQ (see quantize.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.model import Llama
from storyllamas.slm.quantize import Float32

EMBEDDING_SHARE = 0.3
"""Added to the moments of a tied embedding for every column, as a share of their mean: its rows
are not only multiplied with outputs but also read as they are."""

_BATCH = 8  # windows in one forward pass


@torch.no_grad()
def input_moments(
    config: ModelConfig, tensor: Callable[[str], Float32], windows: npt.NDArray[np.int64]
) -> dict[str, Float32]:
    """Return the mean of x xᵀ over the inputs x of each matrix, on a text.

    Args:
        config: the model's shape.
        tensor: returns the float32 tensor of a name in `tensor_shapes`.
        windows: ids of the text, [windows, tokens].

    Returns:
        [columns, columns] for every matrix by its name, without an embedding that is not tied.
    """
    model = Llama(config)
    model.load_state_dict({name: torch.tensor(tensor(name)) for name in tensor_shapes(config)})
    model.eval()
    sums: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        flat = x.flatten(0, -2)
        sums[name] = sums.get(name, torch.zeros(())) + flat.T @ flat

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "classifier":
            weight = f"{name}.weight"
            module.register_forward_pre_hook(lambda _, x, weight=weight: add(weight, x[0]))
    classifier = "embedding.weight" if config.tied else "classifier.weight"
    model.norm.register_forward_hook(lambda _, x, y: add(classifier, y))
    for start in range(0, len(windows), _BATCH):
        model(torch.from_numpy(windows[start : start + _BATCH]))
    if config.tied:
        share = EMBEDDING_SHARE * sums[classifier].diagonal().mean()
        sums[classifier] += share * torch.eye(config.dim)
    return {name: (total / windows.size).numpy() for name, total in sums.items()}
