"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), by PyTorch's fused kernel.

It computes what `torch.optim.AdamW(fused=True)` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from storyllamas.training.stateful import Stateful

EPSILON = 1e-8


class AdamW(Stateful):
    """AdamW; groups have `lr` and `weight_decay`."""

    def __init__(self, groups: Iterable[Mapping[str, Any]], betas: tuple[float, float]) -> None:
        """Set up parameter groups; `betas` are the decays of the mean and squared gradient."""
        self._betas = betas
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights from their gradients."""
        for group in self.param_groups:
            with_gradients = [p for p in group["params"] if p.grad is not None]
            states = [self._state(parameter) for parameter in with_gradients]
            if not states:
                continue
            means, squares, steps = (
                [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
            )
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                with_gradients,
                [parameter.grad for parameter in with_gradients],
                means,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=group["weight_decay"],
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        if not self.state[parameter]:
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]
