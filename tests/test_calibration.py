"""The moments of a matrix's inputs equal those of PyTorch's products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_files import random_tensors, small_config

from storyllamas.config import tensor_shapes
from storyllamas.model import Llama
from storyllamas.slm.calibration import EMBEDDING_SHARE, input_moments


@pytest.mark.parametrize("tied", [True, False])
def test_moments_are_the_mean_square_of_every_product(tied: bool) -> None:
    """The mean of |Wx|² is the trace of W (mean of x xᵀ) Wᵀ."""
    config = small_config(tied=tied)
    tensors = random_tensors(config, 1)
    windows = np.random.default_rng(0).integers(0, config.vocab_size, (11, 30))
    moments = dict(input_moments(config, tensors.__getitem__, windows))
    matrices = {name for name, shape in tensor_shapes(config).items() if len(shape) == 2}
    assert set(moments) == matrices - (set() if tied else {"embedding.weight"})

    model = Llama(config).eval()
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    squares: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _, x, y, name=name: squares.update({f"{name}.weight": float((y**2).sum())})
            )
    with torch.no_grad():
        logits = model(torch.from_numpy(windows))
    squares["embedding.weight" if tied else "classifier.weight"] = float((logits**2).sum())
    for name, known in moments.items():
        matrix, known = tensors[name].astype(np.float64), known.astype(np.float64)
        if name == "embedding.weight":
            mean = np.trace(known) / (1 + EMBEDDING_SHARE) / config.dim
            known -= EMBEDDING_SHARE * mean * np.eye(config.dim)
        assert np.trace(matrix @ known @ matrix.T) == pytest.approx(
            squares[name] / windows.size, rel=1e-4
        )
