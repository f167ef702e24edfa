"""The weights that training starts from instead of random ones, and what it may change of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from storyllamas.adapter import Adapter, Lora, weights_sha256
from storyllamas.model import Llama
from storyllamas.training import lora
from storyllamas.training.freezing import frozen_tensors


@dataclass(frozen=True)
class Start:
    """The weights of a model to start from, and which of them training may change.

    Attributes:
        tensors: every tensor of `config.tensor_shapes`, float32, on the CPU.
        freeze: the parts that stay as they are, see `freezing.ALLOWED`.
        lora: train an adapter, while all weights stay as they are; None: train the weights.
    """

    tensors: Mapping[str, Tensor]
    freeze: tuple[str, ...] = ()
    lora: Lora | None = None

    def key(self) -> dict[str, Any]:
        """Return JSON values that two starts share only if they are the same."""
        adapter = self.lora and dataclasses.asdict(self.lora)
        return {"weights": self.digest(), "freeze": self.freeze, "lora": adapter}

    def digest(self) -> str:
        """Return the SHA-256 of the weights, as hexadecimal digits."""
        return weights_sha256((name, self.tensors[name].numpy()) for name in sorted(self.tensors))

    def apply(self, model: Llama) -> None:
        """Give a model the weights, and set which of its parameters need gradients."""
        model.load_state_dict(dict(self.tensors))
        if self.lora:
            lora.attach(model, self.lora)
        elif self.freeze:
            for name in frozen_tensors(self.freeze, model.config):
                model.get_parameter(name).requires_grad_(False)

    def adapter(self, trained: Mapping[str, Tensor]) -> Adapter | None:
        """Return the adapter that `trained`, the trained tensors of a model, are, or None."""
        if not self.lora:
            return None
        arrays = {name: tensor.numpy() for name, tensor in trained.items()}
        return Adapter(self.lora, self.digest(), arrays)

    def complete(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all weights, from the trained tensors of a model; merge an adapter."""
        adapter = self.adapter(trained)
        if not adapter:
            return {**self.tensors, **trained}
        return {
            name: torch.from_numpy(adapter.merge(name, tensor.numpy()))
            for name, tensor in self.tensors.items()
        }


def trained_tensors(model: Llama) -> dict[str, Tensor]:
    """Return the parameters that training changes, by name; all of them unless some are frozen."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
