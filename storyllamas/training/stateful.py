"""The base of the optimizers: groups of parameters and their state.

torch.optim.Optimizer is the same with hooks, and imports torch.compile, which takes two seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


class Stateful:
    """Groups of parameters with their options, and the state of each parameter.

    Attributes:
        param_groups: `params` and options of each group.
        state: tensors of each parameter, by name.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]) -> None:
        """Set up parameter groups; `defaults` are options that a group need not have."""
        self.param_groups = [{**defaults, **group} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {p: {} for p in self._parameters()}

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def step(self) -> None:
        """Update the weights from their gradients."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    def tensors(self) -> dict[int, dict[str, Tensor]]:
        """Return the state of each parameter that has one, by the parameter's number."""
        return {
            number: self.state[p] for number, p in enumerate(self._parameters()) if self.state[p]
        }

    def load(self, tensors: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Copy the state that `tensors` returned to the devices of the parameters."""
        for number, parameter in enumerate(self._parameters()):
            self.state[parameter] = {
                name: tensor.to(parameter.device, copy=True)
                for name, tensor in tensors.get(number, {}).items()
            }
