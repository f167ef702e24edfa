"""The expected loss, fitted to the user's own runs: a power law of parameters and tokens.

The logarithm of the lowest validation loss is a linear function of the logarithms of the
parameters and of the tokens (Kaplan et al. 2020, arXiv:2001.08361), as far as the runs differ in
them. Only runs with the corpus, tokenizer and hyperparameters of the planned run count.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from storyllamas import params
from storyllamas.errors import UserError
from storyllamas.experiments import losses
from storyllamas.experiments.git import read_at
from storyllamas.params import Params

MAX_REVISIONS = 200
"""Revisions in which runs are searched, the newest ones."""

MAX_EXTRAPOLATION = 4.0
"""A fit is for at most so many times the parameters and tokens of the runs, and as much fewer."""

QUANTILES = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372)
"""90 % quantiles of Student's t distribution for 1, 2, … degrees of freedom."""

LAST_QUANTILE = 1.282

MIN_FREEDOM = 2
"""Runs beyond the number of fitted coefficients."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        size: key of `sizes` in params.yaml.
        parameters: weights of the model.
        tokens: tokens learned from.
        loss: lowest validation loss, in nats a token.
    """

    size: str
    parameters: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Range:
    """An expected loss; four of five runs are from `low` to `high`, in nats a token."""

    loss: float
    low: float
    high: float


def comparable_runs(sizes: Mapping[str, Params]) -> list[Run]:
    """Return the finished runs of the project that differ from the planned ones in steps only.

    Search the workspace, DVC's experiments and the history.

    Args:
        sizes: the parameters of the planned run of each size.
    """
    found: dict[Run, None] = {}
    for revision in ("", *islice(losses.revisions(), MAX_REVISIONS)):
        with suppress(UserError, ValueError, KeyError, TypeError):
            if run := _run_at(revision, sizes):
                found[run] = None
    return list(found)


def _run_at(revision: str, sizes: Mapping[str, Params]) -> Run | None:
    """Return the run of a revision if it compares; empty: the workspace."""
    text = read_at(revision, "metrics/train.json")
    if not text:
        return None
    metrics = json.loads(text)
    planned = sizes.get(metrics["size"])
    if planned is None:
        return None
    trained = params.parse(params.loads(read_at(revision, "params.yaml")))
    if trained.model != metrics["size"] or _what_decides(trained) != _what_decides(planned):
        return None
    return Run(
        metrics["size"], metrics["parameters"], metrics["tokens"], metrics["validation_loss"]
    )


def _what_decides(chosen: Params) -> dict[str, Any]:
    """Return what must be equal in runs that compare."""
    # The last validation of a run decides; how often there is one does not.
    recipe = dataclasses.replace(chosen.recipe, steps=1, eval_every=1, micro_batch=1)
    learned = chosen.distillation
    return {
        "corpus": chosen.corpus,
        "tokenizer": chosen.tokenizer,
        "config": chosen.model_config(),
        "recipe": recipe,
        "fine_tuning": chosen.fine_tuning if chosen.fine_tuning.start else None,
        "distillation": learned if learned.teacher or learned.held_out else None,
    }


def expected(runs: Sequence[Run], parameters: int, tokens: int) -> Range | str:
    """Return the loss of a run with its range, or why there is none.

    Args:
        runs: finished runs that compare with it.
        parameters: weights of its model.
        tokens: tokens that it learns from.
    """
    values = [("parameters", parameters), ("tokens", tokens)]
    columns, point = [np.ones(len(runs))], [1.0]
    for name, value in values:
        seen = {getattr(run, name) for run in runs}
        if len(seen) > 1:
            columns.append(np.log([getattr(run, name) for run in runs]))
            point.append(math.log(value))
    freedom = len(runs) - len(columns)
    if freedom < MIN_FREEDOM:
        return "too few runs"
    for name, value in values:
        seen = {getattr(run, name) for run in runs}
        slack = MAX_EXTRAPOLATION if len(seen) > 1 else 1.0
        if not min(seen) / slack <= value <= max(seen) * slack:
            return "too far from your runs"
    return _fit(np.stack(columns, axis=1), np.log([run.loss for run in runs]), point, freedom)


def _fit(matrix: Any, logs: Any, point: Sequence[float], freedom: int) -> Range:
    """Fit by least squares; return the prediction interval at `point`."""
    coefficients, _, _, _ = np.linalg.lstsq(matrix, logs, rcond=None)
    residuals = logs - matrix @ coefficients
    variance = float(residuals @ residuals) / freedom
    at = np.array(point)
    leverage = float(at @ np.linalg.pinv(matrix.T @ matrix) @ at)
    quantile = QUANTILES[freedom - 1] if freedom <= len(QUANTILES) else LAST_QUANTILE
    middle = float(at @ coefficients)
    width = quantile * math.sqrt(variance * (1 + max(0.0, leverage)))
    return Range(math.exp(middle), math.exp(middle - width), math.exp(middle + width))
