"""The figure of the losses of every size trained so far.

The logs of the latest run are in the workspace; those of other sizes are in git, in DVC's
experiments and in the history.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.experiments.git import git, read_at
from storyllamas.plots import COLORS, drawing

TARGET = Path("metrics/losses.png")

Curve = tuple[list[float], list[float]]
"""Million tokens and the loss there, in nats a token."""


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        size: key of `sizes` in params.yaml.
        parameters: weights of the model.
        recipe: key of `recipes` in params.yaml.
        train: loss of training batches.
        validation: loss on the validation windows.
    """

    size: str
    parameters: int
    recipe: str
    train: Curve
    validation: Curve


def runs() -> list[Run]:
    """Return the latest run of each size, smallest first.

    Search the workspace, then DVC's experiments, then the history.
    """
    found: dict[str, Run] = {}
    for revision in ("", *revisions()):
        run = run_at(revision)
        if run:
            found.setdefault(run.size, run)
    return sorted(found.values(), key=lambda run: run.parameters)


def draw(shown: list[Run]) -> None:
    """Draw the losses to metrics/losses.png."""
    from matplotlib.ticker import LogLocator

    with drawing(TARGET) as (_, (axes,)):
        for color, run in zip(cycle(COLORS), shown):
            axes.plot(*run.train, color=color, alpha=0.3, linewidth=0.8)
            lowest = min(run.validation[1])
            label = f"{run.size}, {run.recipe}: validation {lowest:.3f}"
            axes.plot(*run.validation, color=color, linewidth=1.8, label=label)
        axes.set(
            title="Loss on stories: training (faint) and validation",
            xlabel="million tokens",
            ylabel="nats a token (log scale)",
            yscale="log",
        )
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(which="both", alpha=0.25)
        axes.legend()


def revisions() -> Iterator[str]:
    """Yield experiments, then commits that changed the validation log; the newest first of each."""
    order = "--sort=-committerdate"
    yield from git("for-each-ref", order, "--format=%(objectname)", "refs/exps").split()
    yield from git("log", "--format=%H", "--", "metrics/validation.csv").split()


def run_at(revision: str) -> Run | None:
    """Return the run whose logs a git revision has, or None; empty: the workspace."""
    metrics = read_at(revision, "metrics/train.json")
    steps = read_at(revision, "metrics/steps.csv")
    validation = read_at(revision, "metrics/validation.csv")
    if not (metrics and steps and validation):
        return None
    values = json.loads(metrics)
    return Run(
        values["size"], values["parameters"], values["recipe"], _curve(steps), _curve(validation)
    )


def _curve(table: str) -> Curve:
    rows = list(csv.DictReader(io.StringIO(table)))
    return [int(row["tokens"]) / 1e6 for row in rows], [float(row["loss"]) for row in rows]


@exit_on_user_error
def main() -> None:
    """Draw the figure and print which sizes it shows."""
    shown = runs()
    if not shown:
        raise UserError("there is no training log yet: run `dvc repro` first")
    draw(shown)
    print(f"{TARGET}: {', '.join(run.size for run in shown)}")


if __name__ == "__main__":
    main()
