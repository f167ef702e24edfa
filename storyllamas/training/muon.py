"""Muon: momentum with an orthogonalized update, for all matrices of a shape at once.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with the update's RMS matched to
AdamW's as in Liu et al. 2025, arXiv:2502.16982, so that both use the same learning rate. It
computes what `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` does, in half of the time for
small models, where one matrix at a time leaves a processor idle. Optionally it normalizes rows as
NorMuon does (Li et al. 2025, arXiv:2510.05491).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from storyllamas.training.stateful import Stateful

MOMENTUM = 0.95
# Coefficients and steps of the Newton-Schulz iteration, from Jordan et al.
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
STEPS = 5


Update = Callable[
    [Mapping[str, float], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]],
    None,
]
"""The same in C, see `FusedLoss.update`."""


class Muon(Stateful):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices.

    Groups have `lr`, `weight_decay` and `beta2`: the update of a row is divided by the root of its
    mean square, averaged over steps with decay `beta2`; 0: no division.

    Attributes:
        update: takes the step of matrices of one shape in place of this class; None: nothing does.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """Set up parameter groups.

        Args:
            groups: parameter groups as of any optimizer.
            dtype: precision of the Newton-Schulz iteration. bfloat16 is exact enough, but some 20
                times slower than float32 on a CPU without bfloat16 arithmetic.
        """
        self._dtype = dtype
        self.update: Update | None = None
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "beta2": 0.0})

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights from their gradients."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, matrices in shapes.items():
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                decay = 1 - group["lr"] * group["weight_decay"]
                if self.update:
                    self._update(matrices, rate, decay, group["beta2"])
                    continue
                momentum = torch.stack(self._momentum(matrices)).to(self._dtype)
                updates = orthogonal(momentum).to(matrices[0].dtype)
                if group["beta2"]:
                    updates = self._normalize_rows(matrices, updates, group["beta2"])
                torch._foreach_mul_(matrices, decay)
                torch._foreach_add_(matrices, updates.unbind(), alpha=-rate)

    def _momentum(self, matrices: list[Tensor]) -> tuple[Tensor, ...]:
        """Update the running means of the gradients; return Nesterov's lookahead of them."""
        means = self._means(matrices)
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
        return torch._foreach_lerp(gradients, means, MOMENTUM)

    def _means(self, matrices: list[Tensor]) -> list[Tensor]:
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        return [self.state[matrix]["momentum_buffer"] for matrix in matrices]

    def _row_squares(self, matrices: list[Tensor]) -> list[Tensor]:
        for matrix in matrices:
            self.state[matrix].setdefault("row_squares", matrix.new_zeros(len(matrix), 1))
        return [self.state[matrix]["row_squares"] for matrix in matrices]

    def _update(self, matrices: list[Tensor], rate: float, decay: float, beta2: float) -> None:
        """Take the step of matrices of one shape by `update`."""
        assert self.update is not None
        settings = {
            "momentum": MOMENTUM,
            "beta2": beta2,
            "decay": decay,
            "rate": rate,
            "linear": LINEAR,
            "cubic": CUBIC,
            "quintic": QUINTIC,
            "steps": STEPS,
        }
        means = self._means(matrices)
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        squares = self._row_squares(matrices) if beta2 else []
        self.update(settings, matrices, means, gradients, squares)

    def _normalize_rows(self, matrices: list[Tensor], updates: Tensor, beta2: float) -> Tensor:
        """Return updates [N, R, C] with rows of equal mean square over time and the same norms."""
        squares = self._row_squares(matrices)
        torch._foreach_lerp_(squares, updates.square().mean(-1, keepdim=True).unbind(), 1 - beta2)
        normalized = updates / torch.stack(squares).sqrt().add(1e-8)
        return normalized * (_norms(updates) / _norms(normalized).clamp(min=1e-7))


def _norms(matrices: Tensor) -> Tensor:
    """Return the Frobenius norm of each matrix [N, R, C], as [N, 1, 1]."""
    norms: Tensor = torch.linalg.matrix_norm(matrices, keepdim=True)
    return norms


def orthogonal(matrices: Tensor) -> Tensor:
    """Return the nearest nearly orthogonal matrices [N, R, C], in the same precision.

    Scale singular values to at most 1, then move them to between 0.7 and 1.2 by a quintic
    Newton-Schulz iteration on the shorter side.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / _norms(x).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        cubic = torch.baddbmm(gram, gram, gram, beta=CUBIC, alpha=QUINTIC)
        x = torch.baddbmm(x, cubic, x, beta=LINEAR)
    return x.mT if tall else x
