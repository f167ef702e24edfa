"""The optimizers: AdamW, or Muon for the layers' matrices and AdamW for the other parameters.

Frozen parameters have none. LoRA's matrices have AdamW in every recipe: Muon evens
out the directions of a large matrix, and an adapter has few of them.

AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101. Muon orthogonalizes the update of each matrix, so
it takes the matrices that the model stacks into one parameter one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from storyllamas.model import Llama
from storyllamas.params import Recipe
from storyllamas.training.adamw import AdamW
from storyllamas.training.device import computes_in_bfloat16
from storyllamas.training.lora import adapter_parameters
from storyllamas.training.muon import Muon, Update
from storyllamas.training.stateful import Stateful


class Optimizers:
    """The optimizers of a model, stepped together."""

    def __init__(self, model: Llama, recipe: Recipe) -> None:
        """Assign every parameter that is not frozen to one group of one optimizer.

        A group's `scale` multiplies the step's learning rate. RMSNorm weights, which are vectors,
        do not decay.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        hidden, adapters = hidden_matrices(model), adapter_parameters(model)
        vectors = [p for p in trained if p.ndim == 1]
        assigned = {id(p) for p in [*hidden, *adapters, *vectors]}
        vocabulary = [p for p in trained if id(p) not in assigned]
        decay = recipe.weight_decay
        groups: list[dict[str, Any]] = [
            {"params": vocabulary, "weight_decay": decay, "scale": recipe.embedding_lr_scale},
            {"params": vectors, "weight_decay": 0.0, "scale": recipe.embedding_lr_scale},
        ]
        self._all: list[Stateful] = []
        self._stacked: list[tuple[Tensor, list[nn.Parameter]]] = []
        if recipe.optimizer == "muon" and hidden:
            self._stacked = [
                (whole, _unstack(whole, rows))
                for whole, rows in model.stacked()
                if whole.requires_grad
            ]
            stacked = {id(whole) for whole, _ in self._stacked}
            matrices = [p for p in hidden if id(p) not in stacked]
            matrices += [part for _, parts in self._stacked for part in parts]
            muon = {"params": matrices, "weight_decay": decay, "scale": 1.0}
            is_faster = computes_in_bfloat16(matrices[0].device.type)
            dtype = torch.bfloat16 if is_faster else torch.float32
            self._all.append(Muon([{**muon, "beta2": recipe.muon_beta2}], dtype))
        else:
            groups.append({"params": hidden, "weight_decay": decay, "scale": 1.0})
        groups.append({"params": adapters, "weight_decay": decay, "scale": 1.0})
        groups = [group for group in groups if group["params"]]
        if groups:
            self._all.append(AdamW(groups, (recipe.beta1, recipe.beta2)))

    def update_by(self, update: Update) -> None:
        """Let `update` take the steps of Muon."""
        for optimizer in self._all:
            if isinstance(optimizer, Muon):
                optimizer.update = update

    def step(self, learning_rate: float) -> None:
        """Update the weights, then drop the gradients."""
        for whole, parts in self._stacked:
            assert whole.grad is not None
            gradients = torch.split(whole.grad, [len(part) for part in parts])
            for part, gradient in zip(parts, gradients, strict=True):
                part.grad = gradient
            whole.grad = None
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["scale"]
            optimizer.step()
            optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state; OPTIMIZER.PARAMETER.KEY, with indices of both, names each tensor."""
        return {
            f"{number}.{index}.{key}": value
            for number, optimizer in enumerate(self._all)
            for index, state in optimizer.tensors().items()
            for key, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state that `tensors` returned."""
        for number, optimizer in enumerate(self._all):
            state: dict[int, dict[str, Tensor]] = {}
            for index, key, tensor in _state_of(number, tensors):
                state.setdefault(index, {})[key] = tensor
            optimizer.load(state)


def hidden_matrices(model: Llama) -> list[nn.Parameter]:
    """Return the matrices of the layers that are neither frozen nor an adapter's."""
    adapters = {id(p) for p in adapter_parameters(model)}
    trained = [p for p in model.layers.parameters() if p.requires_grad and id(p) not in adapters]
    return [p for p in trained if p.ndim == 2]


def _unstack(whole: Tensor, rows: Sequence[int]) -> list[nn.Parameter]:
    """Return the matrices that are stacked in `whole`, as views; `rows` are their heights."""
    return [nn.Parameter(part) for part in torch.split(whole.detach(), list(rows))]


def _state_of(number: int, tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, str, Tensor]]:
    """Yield parameter's index, key and tensor of one optimizer's state."""
    for name, tensor in tensors.items():
        optimizer, index, key = name.split(".")
        if int(optimizer) == number:
            yield int(index), key, tensor
