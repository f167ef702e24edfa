"""Moments of the inputs of a model's matrices, for rounding with GPTQ (see quantize.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from storyllamas.config import ModelConfig
from storyllamas.model import Block, RMSNorm, rotary_table
from storyllamas.slm.quantize import Float32
from storyllamas.slm.weight_file import Rows, row_blocks

EMBEDDING_SHARE = 0.3
"""Added to the moments of a tied embedding for every column, as a share of their mean: its rows
are not only multiplied with outputs but also read as they are."""

_BATCH = 8  # windows in one forward pass


@torch.no_grad()
def input_moments(
    config: ModelConfig, tensor: Callable[[str], Rows], windows: npt.NDArray[np.int64]
) -> Iterator[tuple[str, Float32]]:
    """Yield the mean of x xᵀ over the inputs x of each matrix, on a text.

    One layer is in memory at a time, with the hidden states of the whole text.

    Args:
        config: the model's shape.
        tensor: returns the tensor of a name in `tensor_shapes`, or reads its rows on demand.
        windows: ids of the text, [windows, tokens].

    Yields:
        The name of each matrix with its moments, [columns, columns]: layer after layer, then the
        classifier, which may be the embedding. An embedding that is not tied has none.
    """
    table = rotary_table(config)[: windows.shape[1]]
    embedded = torch.from_numpy(_embed(tensor("embedding.weight"), windows))
    hidden = list(torch.split(embedded, _BATCH))  # [batch, tokens, dim] each
    for layer in range(config.layers):
        sums: dict[str, Tensor] = {}
        block = _load(Block, f"layers.{layer}", tensor, config, 0.0)
        _add_inputs(block, f"layers.{layer}", sums)
        hidden = [block(x, table) for x in hidden]
        for name, total in sums.items():
            yield name, total.div_(windows.size).numpy()
    norm = _load(RMSNorm, "norm", tensor, config.dim, config.norm_eps)
    last: dict[str, Tensor] = {}
    classifier = "embedding.weight" if config.tied else "classifier.weight"
    for x in hidden:
        _add(last, classifier, norm(x))
    total = last[classifier]
    if config.tied:
        total += EMBEDDING_SHARE * total.diagonal().mean() * torch.eye(config.dim)
    yield classifier, total.div_(windows.size).numpy()


def _embed(embedding: Rows, windows: npt.NDArray[np.int64]) -> Float32:
    """Return the embeddings [windows, tokens, dim] of ids [windows, tokens]."""
    embedded = np.empty((*windows.shape, embedding.shape[1]), np.float32)
    start = 0
    for rows in row_blocks(embedding):
        is_here = (windows >= start) & (windows < start + len(rows))
        embedded[is_here] = rows[windows[is_here] - start]
        start += len(rows)
    return embedded


def _load(
    kind: Callable[..., nn.Module], name: str, tensor: Callable[[str], Rows], *arguments: Any
) -> nn.Module:
    """Make a module of the model and read its weights."""
    with torch.device("meta"):
        module = kind(*arguments)
    weights = {each: torch.tensor(tensor(f"{name}.{each}")[:]) for each in module.state_dict()}
    module.load_state_dict(weights, assign=True)
    return module.eval()


def _add_inputs(block: nn.Module, name: str, sums: dict[str, Tensor]) -> None:
    """Add the inputs of the matrices of a layer to the sums whenever the layer is computed."""
    for each, module in block.named_modules():
        if isinstance(module, nn.Linear):
            weight = f"{name}.{each}.weight"
            module.register_forward_pre_hook(lambda _, x, weight=weight: _add(sums, weight, x[0]))


def _add(sums: dict[str, Tensor], name: str, x: Tensor) -> None:
    flat = x.flatten(0, -2)
    sums[name] = sums.get(name, torch.zeros(())) + flat.T @ flat
