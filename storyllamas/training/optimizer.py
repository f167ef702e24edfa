"""How weights follow their gradients: AdamW, or Muon with AdamW for what is no hidden matrix.

AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101. Muon: Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/, with the update's size matched to AdamW's as in
Liu et al. 2025, arXiv:2502.16982, so that both take the same learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from storyllamas.model import Llama
from storyllamas.params import Recipe


class Optimizers:
    """The optimizers of a model, stepped together at one learning rate."""

    def __init__(self, model: Llama, recipe: Recipe) -> None:
        """Share out the parameters: every one belongs to one group of one optimizer.

        RMSNorm weights, which are vectors, do not decay.
        """
        hidden = [p for p in model.layers.parameters() if p.ndim == 2]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        taken = {id(p) for p in [*hidden, *vectors]}
        matrices = [p for p in model.parameters() if id(p) not in taken]
        decay = recipe.weight_decay
        self._all: list[Optimizer] = []
        if recipe.optimizer == "muon":
            muon = Muon(hidden, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            self._all.append(muon)
        else:
            matrices = [*hidden, *matrices]
        groups = [
            {"params": matrices, "weight_decay": decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._all.append(AdamW(groups, betas=(recipe.beta1, recipe.beta2), fused=True))

    def step(self, learning_rate: float) -> None:
        """Move the weights, then forget the gradients."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors: optimizer, parameter's index, the state's own name."""
        return {
            f"{number}.{index}.{key}": value
            for number, optimizer in enumerate(self._all)
            for index, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state that `tensors` named."""
        for number, optimizer in enumerate(self._all):
            state: dict[int, dict[str, Tensor]] = {}
            for index, key, tensor in _of(number, tensors):
                state.setdefault(index, {})[key] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _of(number: int, tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, str, Tensor]]:
    """Parameter's index, state's name and tensor of one optimizer."""
    for name, tensor in tensors.items():
        owner, index, key = name.split(".")
        if int(owner) == number:
            yield int(index), key, tensor
