"""Fit a scaling law: the loss as a function of parameters, tokens and different tokens.

    loss = E + A / parameters^alpha + B / data^beta

is the law of Hoffmann et al. (2022, arXiv:2203.15556), fitted as there: to the logarithm of the
loss, with the Huber loss, by L-BFGS from several starts. Tokens that are seen again count less, as
in Muennighoff et al. (2023, arXiv:2305.16264):

    data = unique * (1 + R * (1 - exp(-repeats / R)))     repeats = tokens / unique - 1, at least 0
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HUBER_DELTA = 1e-3
MILLION = 1e6

# Starts of (log E, log A, log B, alpha, beta, log R); parameters and tokens are in millions.
_STARTS = list(itertools.product((-1.0, 0.3), (-1.0, 0.5), (0.0, 1.0), (0.3,), (0.3, 0.6), (1.5,)))


@dataclass(frozen=True)
class Point:
    """A finished run.

    Attributes:
        parameters: weights of the model.
        tokens: trained on, repeats included.
        unique: tokens of the training text.
        loss: nats a token.
    """

    parameters: int
    tokens: int
    unique: int
    loss: float


@dataclass(frozen=True)
class Law:
    """A fitted law; parameters and tokens count in millions.

    Attributes:
        floor: E, the loss without limits.
        model: A.
        alpha: exponent of the parameters.
        data: B.
        beta: exponent of the tokens.
        repeats: R, number of repeats after which a text is learned.
    """

    floor: float
    model: float
    alpha: float
    data: float
    beta: float
    repeats: float

    def loss(self, parameters: float, tokens: float, unique: float) -> float:
        """Return the loss of a run in nats a token."""
        unique = min(tokens, unique)
        repeats = tokens / unique - 1
        data = unique * (1 + self.repeats * (1 - math.exp(-repeats / self.repeats)))
        of_model = self.model * _power(parameters / MILLION, -self.alpha)
        of_data = self.data * _power(data / MILLION, -self.beta)
        return self.floor + of_model + of_data


def _power(base: float, exponent: float) -> float:
    """Return base**exponent, or infinity: a sample of the runs may not determine an exponent."""
    return float(np.exp(min(exponent * math.log(base), 700.0)))


def fit(points: Sequence[Point], starts: Sequence[Sequence[float]] = _STARTS) -> Law:
    """Return the best law of several starts."""
    fits = [_fit(points, start) for start in starts]
    _, best = min(fits, key=lambda each: each[0])
    floor, model, data, alpha, beta, repeats = best
    scales = [math.exp(value) for value in (floor, model, data, repeats)]
    return Law(scales[0], scales[1], alpha, scales[2], beta, scales[3])


def _fit(points: Sequence[Point], start: Sequence[float]) -> tuple[float, list[float]]:
    """Return the error and the coefficients that L-BFGS finds from one start."""
    columns = np.array([(p.parameters, p.tokens, min(p.tokens, p.unique), p.loss) for p in points])
    parameters, tokens, unique, loss = torch.from_numpy(columns).T
    parameters, unique, repeats = parameters / MILLION, unique / MILLION, tokens / unique - 1
    found = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=300, line_search_fn="strong_wolfe")

    def error() -> Tensor:
        floor, model, data, alpha, beta, log_repeats = found
        most = log_repeats.exp()
        effective = unique * (1 + most * (1 - torch.exp(-repeats / most)))
        terms = (
            floor.expand(len(points)),
            model - alpha * parameters.log(),
            data - beta * effective.log(),
        )
        residuals = torch.logsumexp(torch.stack(terms), 0) - loss.log()
        return torch.nn.functional.huber_loss(
            residuals, torch.zeros_like(residuals), delta=HUBER_DELTA, reduction="sum"
        )

    def closure() -> float:
        optimizer.zero_grad()
        value = error()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    value = error().item()
    return (value if math.isfinite(value) else math.inf), found.tolist()


def resampled(points: Sequence[Point], best: Law, count: int, seed: int = 1) -> list[Law]:
    """Return laws of random samples of the points, drawn with replacement (bootstrap).

    Args:
        points: the runs.
        best: their law, from which each fit starts.
        count: number of samples.
        seed: of the samples.
    """
    start = [math.log(best.floor), math.log(best.model), math.log(best.data)]
    start += [best.alpha, best.beta, math.log(best.repeats)]
    random = np.random.default_rng(seed)
    samples = (random.integers(len(points), size=len(points)) for _ in range(count))
    return [fit([points[i] for i in sample], [start]) for sample in samples]
