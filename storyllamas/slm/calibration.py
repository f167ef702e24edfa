"""What a model's matrices are multiplied with, for rounding them to 4 bits (see quantize.py)."""

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
"""How much of a tied embedding's importance every column has alike, as a share of the mean: its
rows are not only multiplied with outputs but also read as they are."""

_WINDOWS = 8  # that go through the model at once


@torch.no_grad()
def input_moments(
    config: ModelConfig, tensor: Callable[[str], Float32], windows: npt.NDArray[np.int64]
) -> dict[str, Float32]:
    """The mean of x xᵀ over the inputs x of each matrix, on a text.

    Args:
        config: the model's shape.
        tensor: gives the float32 tensor of a name in `tensor_shapes`.
        windows: [windows, tokens] of the text.

    Returns:
        [columns, columns] for every matrix by its name, but for an embedding that is only read.
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
    for start in range(0, len(windows), _WINDOWS):
        model(torch.from_numpy(windows[start : start + _WINDOWS]))
    if config.tied:
        share = EMBEDDING_SHARE * sums[classifier].diagonal().mean()
        sums[classifier] += share * torch.eye(config.dim)
    return {name: (total / windows.size).numpy() for name, total in sums.items()}
