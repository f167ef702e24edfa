"""Compare the validation losses of recipes after the same number of tokens.

`make bench-learning` runs it and writes a table and a figure of mean and spread over seeds. It
keeps runs in build/bench/learning: an interrupted run resumes, a finished one is not repeated.
"""

from __future__ import annotations

from storyllamas.training import process_env

if __name__ == "__main__":
    process_env.prepare()

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyllamas import params, token_file, tokenizer
from storyllamas.atomic import atomic_file, write_json
from storyllamas.bits_per_byte import framed_bits_per_byte
from storyllamas.corpus import files, sources
from storyllamas.errors import exit_on_user_error
from storyllamas.params import Params, Recipe
from storyllamas.plots import COLORS, drawing
from storyllamas.pretokenize import pretokenize
from storyllamas.token_file import TokenFile
from storyllamas.training import device
from storyllamas.training.loop import Job, training_run

WORK = Path("build/bench/learning")
VALIDATIONS = 16
WINDOWS = 256

PLAIN: dict[str, Any] = {
    "tokens_per_step": 16 * 256,
    "micro_batch": 16,
    "optimizer": "adamw",
    "learning_rate": 4e-3,
    "embedding_lr_scale": 1.0,
    "weight_decay": 0.1,
    "dropout": 0.0,
    "zero_init_residual": False,
    "beta1": 0.9,
    "beta2": 0.95,
    "muon_beta2": 0.0,
    "warmup": 0.02,
    "stable": 0.0,
    "schedule": "linear",
    "final_lr_ratio": 0.05,
    "grad_clip": 1.0,
}
PUBLISHED = {"tokens_per_step": 64 * 256, "learning_rate": 1e-3, "schedule": "cosine"}
# Name: label, base recipe, values that it changes.
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "published": (
        "AdamW 1e-3, 64 × 256, cosine",
        "quick",
        {**PLAIN, **PUBLISHED, "final_lr_ratio": 0.1},
    ),
    "adamw": ("AdamW 4e-3, 16 × 256, linear", "quick", PLAIN),
    "muon": ("Muon 4e-3, 16 × 256, linear", "quick", {**PLAIN, "optimizer": "muon"}),
    "quick": ("recipe quick", "quick", {}),
    "fast": ("recipe fast", "fast", {}),
    "epochs": ("recipe fast, dropout 0.1", "fast", {"dropout": 0.1}),
}
DEFAULT_ROWS = ("published", "adamw", "muon", "fast")


@dataclass(frozen=True)
class Row:
    """The runs of one recipe with all seeds.

    Attributes:
        label: of the recipe.
        losses: lowest validation loss of each seed, nats a token.
        seconds: mean time of a run.
        tokens: trained on before each validation.
        curves: validation loss at each of `tokens`, for each seed.
    """

    label: str
    losses: list[float]
    seconds: float
    tokens: list[int]
    curves: list[list[float]]


def recipe_of(name: str, budget: int, raw: dict[str, Any]) -> Recipe:
    """Return the recipe of a row for `budget` tokens; `raw` is the content of params.yaml."""
    _, based_on, changes = ROWS[name]
    chosen = params.parse({**raw, "recipe": based_on, "train": {}})
    recipe = dataclasses.replace(chosen.recipe, **changes)
    steps = max(1, budget // recipe.tokens_per_step)
    every = max(1, steps // VALIDATIONS)
    return dataclasses.replace(recipe, steps=steps, eval_every=every, eval_sequences=WINDOWS)


def run(job: Job, name: str) -> dict[str, Any]:
    """Train, or read the result of an earlier call: `metrics`, and `curve` as loss by tokens."""
    kept = WORK / f"{job.key()}.json"
    if not kept.exists():
        logs = WORK / f"{name}-{job.seed}"
        with training_run(job, logs, checkpoint_seconds=60) as result:
            curve = [line.split(",") for line in (logs / "validation.csv").read_text().split()[1:]]
            points = {int(seen): float(loss) for _, seen, loss in curve}
            metrics = {**result.metrics, **result.costs}
            write_json(kept, {"metrics": metrics, "curve": points})
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def compare(
    chosen: Params, raw: dict[str, Any], data: Path, names: Sequence[str], arguments: Any
) -> Iterator[Row]:
    """Train each row with each seed."""
    train, valid = (token_file.read(data / f"{part}.bin") for part in ("train", "valid"))
    config = dataclasses.replace(chosen.model_config(), vocab_size=train.vocab_size)
    where = device.choose(chosen.compute, arguments.tokens * config.training_flops)
    for name in names:
        recipe = recipe_of(name, arguments.tokens, raw)
        found = []
        for seed in arguments.seeds:
            print(f"{ROWS[name][0]}, seed {seed}", flush=True)
            found.append(run(Job(config, recipe, seed, train, valid, where), name))
        metrics = [one["metrics"] for one in found]
        yield Row(
            label=ROWS[name][0],
            losses=[one["validation_loss"] for one in metrics],
            seconds=statistics.mean(one["seconds"] for one in metrics),
            tokens=[int(seen) for seen in found[0]["curve"]],
            curves=[list(one["curve"].values()) for one in found],
        )


def table(rows: Sequence[Row], valid: TokenFile) -> str:
    """Format the rows as a Markdown table; `valid` is the validation set."""
    bits = framed_bits_per_byte(1.0, len(valid.tokens), valid.text_bytes)
    lines = [
        "| recipe | nats a token | spread | framed bits per byte | minutes |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        mean, spread = statistics.mean(row.losses), max(row.losses) - min(row.losses)
        lines.append(
            f"| {row.label} | {mean:.3f} | {spread:.3f} | {mean * bits:.3f} "
            f"| {row.seconds / 60:.1f} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], title: str, target: Path) -> None:
    """Plot the validation loss over tokens: mean and range over seeds."""
    with drawing(target) as (_, (axes,)):
        for color, row in zip(COLORS, rows, strict=False):
            points = list(zip(*row.curves, strict=True))
            millions = [seen / 1e6 for seen in row.tokens]
            label = f"{row.label}: {statistics.mean(row.losses):.3f}"
            axes.plot(millions, [statistics.mean(p) for p in points], color=color, label=label)
            axes.fill_between(
                millions, [min(p) for p in points], [max(p) for p in points], color=color, alpha=0.2
            )
        axes.set(title=title, xlabel="million tokens", ylabel="validation loss, nats a token")
        axes.set_ylim(top=min(max(max(curve) for row in rows for curve in row.curves), 4.5))
        axes.grid(alpha=0.25)
        axes.legend()


def prepare(source: str, chosen: Params) -> Path:
    """Tokenize another corpus with its own tokenizer and return the folder of the token files."""
    folder = WORK / "data"
    corpus = dataclasses.replace(chosen.corpus, source=source)
    split = sources.split(corpus, chosen.seed)
    for part, stories in (("train", split.train), ("valid", split.valid)):
        with atomic_file(folder / f"{part}.txt") as file:
            files.write(file, stories)
    with atomic_file(folder / "tokenizer.model") as file:
        how = chosen.tokenizer
        sample = files.sample(folder / "train.txt", how.sample_bytes)
        file.write(tokenizer.train(sample, how.vocab_size, how.character_coverage, how.kind))
    for part in ("train", "valid"):
        pretokenize(folder / f"{part}.txt", folder / "tokenizer.model", folder / f"{part}.bin")
    return folder


@exit_on_user_error
def main() -> None:
    """Train, print the table and plot the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.learning", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--tokens", type=int, default=4_000_000, help="training tokens of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of each row")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=DEFAULT_ROWS, help="to train")
    parser.add_argument("--corpus", help="as corpus.source in params.yaml (default: data/tokens)")
    parser.add_argument("--figure", type=Path, default=Path("bench/learning.png"), help="to write")
    arguments = parser.parse_args()
    raw = params.read("params.yaml")
    chosen = params.parse(raw)
    data = prepare(arguments.corpus, chosen) if arguments.corpus else Path("data/tokens")
    rows = list(compare(chosen, raw, data, arguments.rows, arguments))
    valid = token_file.read(data / "valid.bin")
    seeds = ", ".join(map(str, arguments.seeds))
    title = f"{chosen.model} after {arguments.tokens / 1e6:g} million tokens, seeds {seeds}"
    print(f"\n{title}\n\n{table(rows, valid)}\n")
    draw(rows, title, arguments.figure)
    print(arguments.figure)


if __name__ == "__main__":
    main()
