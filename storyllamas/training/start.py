"""The weights that training starts from instead of random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from storyllamas.model import Llama


@dataclass(frozen=True)
class Start:
    """The weights of a model to start from, and which of them training may change.

    Attributes:
        tensors: every tensor of `config.tensor_shapes`, float32, on the CPU.
    """

    tensors: Mapping[str, Tensor]

    def key(self) -> dict[str, Any]:
        """Return JSON values that two starts share only if they are the same."""
        return {"weights": self.digest()}

    def digest(self) -> str:
        """Return the SHA-256 of the weights, as hexadecimal digits."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def apply(self, model: Llama) -> None:
        """Give a model the weights."""
        model.load_state_dict(dict(self.tensors))
