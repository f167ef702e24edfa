"""Train a grid of sizes, tokens and texts with the recipe `fast`, and fit a scaling law to it.

`make bench-scaling` runs it. It fits a law to short runs, compares its predictions for longer runs
with these runs, and prints the law of all runs and what it says of the recipe `full`. It keeps runs
in build/bench/learning, as `make bench-learning` does.
"""

from __future__ import annotations

from storyllamas.training import process_env

if __name__ == "__main__":
    process_env.prepare()

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.learning import WORK, Data, jobs_of, of_the_project, params_of, prepare, run
from bench.scaling_law import MILLION, Law, Point, fit, resampled
from storyllamas import params, token_file
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.params import Params
from storyllamas.plots import COLORS, drawing
from storyllamas.token_file import TokenFile

SAMPLES = 200
"""Fits to random samples of the runs, from which the interval is."""


class Cell(NamedTuple):
    """A run of the grid.

    Attributes:
        size: key of `sizes` in params.yaml.
        million_tokens: trained on.
        share: of the training text that is used.
    """

    size: str
    million_tokens: float
    share: float = 1.0


GRID = (
    Cell("2m", 0.5),
    Cell("2m", 1),
    Cell("2m", 2),
    Cell("2m", 4),
    Cell("2m", 2, 1 / 8),
    Cell("7m", 0.5),
    Cell("7m", 1),
    Cell("7m", 2),
    Cell("7m", 1, 1 / 8),
    Cell("30m", 0.25),
    Cell("30m", 0.5),
)
"""Short runs, to which the law is fitted first."""

LONGER = (Cell("2m", 16.384), Cell("7m", 8.192))
"""Runs that the law of the short ones predicts."""

MIN_STEPS = 400
"""The law is fitted to runs of so many steps and more. Larger models take larger steps, so that at
the same few tokens they have not yet learned what a smaller one has."""

STORIES = 500
VALIDATIONS = 4
WINDOWS = 64
"""Fewer validations than `bench.learning` has: otherwise they take longer than the short runs."""

PUBLISHED_TOKENS = 4.5e8
"""Different tokens of all of TinyStories with a vocabulary of 4,096 pieces."""


def first_part(train: TokenFile, share: float) -> TokenFile:
    """Return a token file of the first stories with that share of the tokens."""
    if share == 1:
        return train
    path = WORK / f"train-{share:g}.bin"
    bos = int(train.tokens[0])
    starts = np.flatnonzero(np.asarray(train.tokens) == bos)
    stories = int(np.searchsorted(starts, share * len(train.tokens)))
    if not stories:
        raise UserError(f"{train.path} has no story in its first {share:.1%}: use a larger corpus")
    tokens = train.tokens[: starts[stories] if stories < len(starts) else len(train.tokens)]
    text_bytes = round(train.text_bytes * len(tokens) / len(train.tokens))
    with token_file.write(path, train.vocab_size, train.digest) as writer:
        writer.append(np.asarray(tokens), stories, text_bytes)
    return token_file.read(path)


def points(
    cells: Sequence[Cell], chosen: Params, raw: Mapping[str, Any], data: Data, seed: int
) -> Iterator[Point]:
    """Train each run of the grid, or read the result of an earlier call."""
    train, valid = data.read()
    for cell in cells:
        part = first_part(train, cell.share)
        budget = round(cell.million_tokens * 1e6)
        job, _ = jobs_of(chosen, raw, cell.size, "fast", budget, seed, (part, valid))
        every = max(1, job.recipe.steps // VALIDATIONS)
        recipe = dataclasses.replace(job.recipe, eval_every=every, eval_sequences=WINDOWS)
        job = dataclasses.replace(job, recipe=recipe)
        tokens = job.recipe.steps * job.recipe.tokens_per_step
        print(f"{cell.size}, {tokens / 1e6:.2f} M of {len(part.tokens) / 1e6:.2f} M", flush=True)
        name = f"scaling-{cell.size}-{cell.million_tokens:g}-{cell.share:g}"
        score, _, _ = run(job, None, name, data)
        yield Point(job.config.parameters, tokens, len(part.tokens), score.loss)


def is_fitted(cell: Cell, raw: Mapping[str, Any]) -> bool:
    """Return whether a run has enough steps for the law."""
    step = params_of("fast", cell.size, None, raw).recipe.tokens_per_step
    return cell.million_tokens * 1e6 >= MIN_STEPS * step


def table(cells: Sequence[Cell], found: Sequence[Point], law: Law) -> str:
    """Format the runs in Markdown, with the losses of the law."""
    lines = [
        "| size | M tokens | M different tokens | epochs | nats a token | the law |",
        "|---|---|---|---|---|---|",
    ]
    for cell, point in zip(cells, found, strict=True):
        epochs = max(1.0, point.tokens / point.unique)
        lines.append(
            f"| {cell.size} | {point.tokens / 1e6:.2f} | "
            f"{min(point.unique, point.tokens) / 1e6:.2f} | {epochs:.1f} | {point.loss:.3f} | "
            f"{law.loss(point.parameters, point.tokens, point.unique):.3f} |"
        )
    return "\n".join(lines)


def predictions(raw: Mapping[str, Any], vocab_size: int, law: Law, others: Sequence[Law]) -> str:
    """Format what the law says of the recipe `full` on all of TinyStories, with 90 % intervals."""
    lines = [
        "| size | B tokens | EFLOP | nats a token | 90 % interval |",
        "|---|---|---|---|---|",
    ]
    for size in raw["recipes"]["full"]["sizes"]:
        chosen = params.parse({**raw, "model": size, "recipe": "full", "train": {}})
        config = dataclasses.replace(chosen.model_config(), vocab_size=vocab_size)
        tokens = chosen.recipe.steps * chosen.recipe.tokens_per_step
        where = config.parameters, tokens, PUBLISHED_TOKENS
        low, high = np.quantile([other.loss(*where) for other in others], (0.05, 0.95))
        lines.append(
            f"| {size} | {tokens / 1e9:.2f} | {tokens * config.training_flops / 1e18:.2f} | "
            f"{law.loss(*where):.2f} | {low:.2f} to {high:.2f} |"
        )
    return "\n".join(lines)


def draw(cells: Sequence[Cell], found: Sequence[Point], law: Law, target: Path) -> None:
    """Plot the losses over tokens: runs, and for each size the law with all of the text."""
    whole = max(point.unique for point in found)
    grid = np.geomspace(
        min(point.tokens for point in found) / 1.5, max(point.tokens for point in found) * 1.5
    )
    with drawing(target) as (_, (axes,)):
        sizes = list(dict.fromkeys(cell.size for cell in cells))
        for color, size in zip(COLORS, sizes, strict=False):
            runs = [(c, p) for c, p in zip(cells, found, strict=True) if c.size == size]
            parameters = runs[0][1].parameters
            losses = [law.loss(parameters, tokens, whole) for tokens in grid]
            axes.plot(grid / MILLION, losses, color=color, label=size)
            for cell, point in runs:
                fill = color if cell.share == 1 else "white"
                axes.plot(point.tokens / MILLION, point.loss, "o", color=color, mfc=fill)
        axes.plot([], [], "o", color="gray", mfc="white", label="less text, more epochs")
        axes.set(
            xscale="log",
            title="Lines: the law; points: runs",
            xlabel="million tokens",
            ylabel="nats a token on whole validation stories",
        )
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.25, which="both")
        axes.legend()


@exit_on_user_error
def main() -> None:
    """Train, print the runs, the law and its predictions, and plot them."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scaling", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--corpus", help="as corpus.source in params.yaml (default: data/tokens)")
    parser.add_argument("--seed", type=int, default=1, help="of all runs")
    parser.add_argument("--figure", type=Path, default=Path("bench/scaling.png"), help="to write")
    arguments = parser.parse_args()
    raw = params.read("params.yaml")
    chosen = params.parse(raw)
    data = prepare(arguments.corpus, chosen) if arguments.corpus else of_the_project()
    WORK.mkdir(parents=True, exist_ok=True)
    data = dataclasses.replace(data, stories=data.stories[:STORIES])
    short = list(points(GRID, chosen, raw, data, arguments.seed))
    longer = list(points(LONGER, chosen, raw, data, arguments.seed))
    fitted = [p for cell, p in zip(GRID, short, strict=True) if is_fitted(cell, raw)]
    print(f"\nThe law of the short runs:\n\n{table(LONGER, longer, fit(fitted))}\n")
    cells, found, fitted = GRID + LONGER, short + longer, fitted + longer
    law = fit(fitted)
    print(f"The law of all runs of {MIN_STEPS} steps and more:\n\n{table(cells, found, law)}\n")
    print(
        f"loss = {law.floor:.2f} + {law.model:.2f} / parameters^{law.alpha:.2f} + "
        f"{law.data:.2f} / data^{law.beta:.2f}, repeats {law.repeats:.1f}; in millions\n"
    )
    vocab_size = token_file.read(data.tokens / "train.bin").vocab_size
    print(predictions(raw, vocab_size, law, resampled(fitted, law, SAMPLES)))
    draw(cells, found, law, arguments.figure)
    print(arguments.figure)


if __name__ == "__main__":
    main()
