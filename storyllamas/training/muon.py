"""Muon: momentum whose every matrix is made orthogonal, all matrices of a shape at once.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with the update's size matched to
AdamW's as in Liu et al. 2025, arXiv:2502.16982, so that both take the same learning rate. It
computes what `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` does, in half of the time for
small models, where one matrix at a time leaves a processor idle. On top of that, rows can be evened
out as in NorMuon (Li et al. 2025, arXiv:2510.05491).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = 0.95
# Coefficients and steps of the Newton-Schulz iteration, from Jordan et al.
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
STEPS = 5


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices.

    Groups take `lr`, `weight_decay` and `beta2`, the decay of each row's mean squared update, by
    whose root it is divided; 0: rows stay as they are.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """Take parameter groups.

        Args:
            groups: as any optimizer takes them.
            dtype: of the Newton-Schulz iteration. bfloat16 is exact enough, but a CPU without
                bfloat16 arithmetic takes some 20 times longer for it than for float32.
        """
        self._dtype = dtype
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "beta2": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights by their gradients."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, matrices in shapes.items():
                momentum = torch.stack(self._momentum(matrices)).to(self._dtype)
                updates = orthogonal(momentum).to(matrices[0].dtype)
                if group["beta2"]:
                    updates = self._evened(matrices, updates, group["beta2"])
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_add_(matrices, updates.unbind(), alpha=-rate)

    def _momentum(self, matrices: list[Tensor]) -> tuple[Tensor, ...]:
        """Take the gradients into their running means, and look one step ahead (Nesterov)."""
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        means = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
        return torch._foreach_lerp(gradients, means, MOMENTUM)

    def _evened(self, matrices: list[Tensor], updates: Tensor, beta2: float) -> Tensor:
        """The updates [N, R, C] with rows of similar size over time, each of the same norm."""
        for matrix in matrices:
            self.state[matrix].setdefault("row_squares", matrix.new_zeros(len(matrix), 1))
        squares = [self.state[matrix]["row_squares"] for matrix in matrices]
        torch._foreach_lerp_(squares, updates.square().mean(-1, keepdim=True).unbind(), 1 - beta2)
        evened = updates / torch.stack(squares).sqrt().add(1e-8)
        return evened * (_norms(updates) / _norms(evened).clamp(min=1e-7))


def _norms(matrices: Tensor) -> Tensor:
    """Root of the sum of squares of each of matrices [N, R, C]: [N, 1, 1]."""
    norms: Tensor = torch.linalg.matrix_norm(matrices, keepdim=True)
    return norms


def orthogonal(matrices: Tensor) -> Tensor:
    """Return the nearly orthogonal matrices [N, R, C] next to those given, in the same precision.

    Singular values, scaled to at most 1, all move to between 0.7 and 1.2 by a quintic Newton-Schulz
    iteration on the shorter side.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / _norms(x).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        cubic = torch.baddbmm(gram, gram, gram, beta=CUBIC, alpha=QUINTIC)
        x = torch.baddbmm(x, cubic, x, beta=LINEAR)
    return x.mT if tall else x
