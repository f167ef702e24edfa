"""Low-rank adaptation of a model in training (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storyllamas.adapter import Lora
from storyllamas.model import Llama


class LoraLinear(nn.Linear):
    """A linear map whose own weight is frozen, plus a trainable one of low rank.

    A starts with the random numbers of PyTorch's linear layers, and B with zeros, so that the map
    starts as the one that it replaces.
    """

    def __init__(self, base: nn.Linear, lora: Lora) -> None:
        """Take the weight of `base`, on its device."""
        nn.Module.__init__(self)
        rows, columns = base.weight.shape
        self.in_features, self.out_features = columns, rows
        self.weight = base.weight
        self.register_parameter("bias", None)
        a = torch.empty(lora.rank, columns)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.lora_a = nn.Parameter(a.to(base.weight.device))
        self.lora_b = nn.Parameter(base.weight.new_zeros(rows, lora.rank))
        self.scale = lora.scale

    def forward(self, x: Tensor) -> Tensor:
        """Map […, columns] to […, rows]."""
        update = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight) + self.scale * update


def attach(model: Llama, lora: Lora) -> None:
    """Freeze all weights of a model, and give each target an adapter."""
    model.requires_grad_(False)
    for layer in model.layers:
        for name in lora.matrices:
            block, _, matrix = name.partition(".")
            parent = layer.get_submodule(block)
            setattr(parent, matrix, LoraLinear(getattr(parent, matrix), lora))


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return A and B of each target, in the order of the model."""
    linears = [module for module in model.modules() if isinstance(module, LoraLinear)]
    return [parameter for each in linears for parameter in (each.lora_a, each.lora_b)]
