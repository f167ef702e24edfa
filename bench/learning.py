"""Compare what recipes and sizes learn: losses on whole validation stories, for several seeds.

`make bench-learning` runs it and writes a table and a figure of mean and spread over seeds. It
keeps runs in build/bench/learning: an interrupted run resumes, a finished one is not repeated.

Each validation story is scored from its beginning, as `storyllamas evaluate` does. The figure has
the losses that training prints, on windows of tokens, most of which begin inside a story.
"""

from __future__ import annotations

from storyllamas.training import process_env

if __name__ == "__main__":
    process_env.prepare()

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from storyllamas import evaluation, params, token_file, tokenizer
from storyllamas.argument_types import positive
from storyllamas.atomic import atomic_file, write_json
from storyllamas.config import ModelConfig
from storyllamas.corpus import files, sources
from storyllamas.engine.engine import Engine
from storyllamas.errors import exit_on_user_error
from storyllamas.evaluation import Score
from storyllamas.params import Params, Recipe
from storyllamas.plots import COLORS, drawing
from storyllamas.pretokenize import pretokenize
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import storage
from storyllamas.token_file import TokenFile
from storyllamas.training import cross_fitting, device
from storyllamas.training.job import Job
from storyllamas.training.loop import training_run
from storyllamas.vocabulary import Vocabulary

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
    "distill": ("recipe distill", "distill", {}),
}
DEFAULT_ROWS = ("published", "adamw", "muon", "fast")


@dataclass(frozen=True)
class Data:
    """What all runs learn from.

    Attributes:
        tokens: folder of train.bin and valid.bin.
        tokenizer: its file.
        stories: the validation stories.
    """

    tokens: Path
    tokenizer: Path
    stories: list[str]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Of the tokenizer."""
        return tokenizer.load(self.tokenizer).vocabulary()

    def read(self) -> tuple[TokenFile, TokenFile]:
        """Open the tokens to train and to validate on."""
        return token_file.read(self.tokens / "train.bin"), token_file.read(
            self.tokens / "valid.bin"
        )


@dataclass(frozen=True)
class Row:
    """The runs of one size and recipe with all seeds.

    Attributes:
        size: key of `sizes` in params.yaml.
        label: of the recipe.
        tokens: trained on.
        scores: of the whole validation stories, one for each seed.
        seconds: mean time of a run, with that of its teachers.
        curves: tokens and validation loss on windows, for each seed.
    """

    size: str
    label: str
    tokens: int
    scores: list[Score]
    seconds: float
    curves: list[dict[int, float]]

    @property
    def name(self) -> str:
        """The size and the recipe."""
        return f"{self.size}, {self.label}"

    @property
    def losses(self) -> list[float]:
        """Nats a token, one for each seed."""
        return [score.loss for score in self.scores]


def params_of(name: str, size: str, budget: int | None, raw: Mapping[str, Any]) -> Params:
    """Return the parameters of the runs of a row.

    Args:
        name: key of `ROWS`.
        size: key of `sizes` in params.yaml.
        budget: tokens to train on, also for each teacher; None: as many as the recipe says.
        raw: the content of params.yaml.
    """
    _, based_on, changes = ROWS[name]
    chosen = params.parse({**raw, "model": size, "recipe": based_on, "train": {}})
    recipe = dataclasses.replace(chosen.recipe, **changes)
    return dataclasses.replace(
        chosen,
        recipe=_within(recipe, budget),
        teacher_recipe=chosen.teacher_recipe and _within(chosen.teacher_recipe, budget),
    )


def _within(recipe: Recipe, budget: int | None) -> Recipe:
    """Return a recipe with fewer steps if it has more tokens than the budget."""
    steps = max(1, budget // recipe.tokens_per_step) if budget else recipe.steps
    return dataclasses.replace(
        recipe,
        steps=steps,
        eval_every=max(1, steps // VALIDATIONS),
        eval_sequences=WINDOWS,
    )


def run(
    job: Job, teacher: Job | None, name: str, data: Data
) -> tuple[Score, float, dict[int, float]]:
    """Train, or read the result of an earlier call: the score, the seconds and the curve.

    Args:
        job: the run.
        teacher: that of a teacher; None: it has none.
        name: of the folder of its logs.
        data: what it learns from.
    """
    # The key of a run does not have its teachers' recipe before they are trained.
    kept = WORK / f"{job.key()}{f'-{teacher.key()}' if teacher else ''}.json"
    if not kept.exists():
        logs = WORK / f"{name}-{job.seed}"
        teacher_seconds = 0.0
        if teacher:
            about = {"tokenizer_sha256": tokenizer.load(data.tokenizer).digest.hex()}
            job, teacher_seconds = cross_fitting.add_teachers(
                job, teacher, 60, about, data.tokenizer
            )
        with training_run(job, logs, checkpoint_seconds=60) as result:
            curve = [line.split(",") for line in (logs / "validation.csv").read_text().split()[1:]]
            points = {int(seen): float(loss) for _, seen, loss in curve}
            scored = dataclasses.asdict(score(job.config, result.tensors, data))
            seconds = result.costs["seconds"] + teacher_seconds
            write_json(kept, {"score": scored, "seconds": seconds, "curve": points})
    found = json.loads(kept.read_text())
    points = {int(seen): loss for seen, loss in found["curve"].items()}
    return Score(**found["score"]), found["seconds"], points


def score(config: ModelConfig, tensors: Mapping[str, Tensor], data: Data) -> Score:
    """Score the whole validation stories with the C engine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f32.slm"
        weight_file.write(
            path, config, data.vocabulary, lambda name: tensors[name].numpy(), storage("f32")
        )
        return evaluation.score(Engine(path), data.stories)


def jobs_of(
    chosen: Params,
    raw: Mapping[str, Any],
    size: str,
    name: str,
    tokens: int | None,
    seed: int,
    files: tuple[TokenFile, TokenFile],
) -> tuple[Job, Job | None]:
    """Return the run of a size and a row, and that of a teacher if it has some.

    Args:
        chosen: the content of params.yaml, whose device all runs share.
        raw: the same, not parsed.
        size: key of `sizes` in params.yaml.
        name: key of `ROWS`.
        tokens: as `budget` of `params_of`.
        seed: of the run.
        files: the tokens to train and to validate on.
    """
    train, valid = files
    of_row = params_of(name, size, tokens, raw)
    where = device.choose(chosen.compute, of_row.training_flops)

    def job(one: Params) -> Job:
        config = dataclasses.replace(one.model_config(), vocab_size=train.vocab_size)
        return Job(config, one.recipe, seed, train, valid, where)

    teacher = of_row.of_teacher()
    return job(of_row), job(teacher) if teacher else None


def compare(chosen: Params, raw: dict[str, Any], data: Data, arguments: Any) -> Iterator[Row]:
    """Train each size and recipe with each seed."""
    tokens = data.read()
    for size in arguments.sizes or [chosen.model]:
        for name in arguments.rows:
            found = []
            for seed in arguments.seeds:
                print(f"{size}, {ROWS[name][0]}, seed {seed}", flush=True)
                job, teacher = jobs_of(chosen, raw, size, name, arguments.tokens, seed, tokens)
                found.append(run(job, teacher, f"{size}-{name}", data))
            scores, seconds, curves = map(list, zip(*found, strict=True))
            total = job.recipe.steps * job.recipe.tokens_per_step
            yield Row(size, ROWS[name][0], total, scores, statistics.mean(seconds), curves)


def table(rows: Sequence[Row]) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        "| size | recipe | M tokens | nats a token | of each seed | bits per byte | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        each = ", ".join(f"{loss:.3f}" for loss in row.losses)
        bits = statistics.mean(score.bits_per_byte for score in row.scores)
        lines.append(
            f"| {row.size} | {row.label} | {row.tokens / 1e6:.1f} | "
            f"{statistics.mean(row.losses):.3f} | {each} | {bits:.4f} | {row.seconds / 60:.1f} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], title: str, target: Path) -> None:
    """Plot the validation loss over tokens: mean and range over seeds."""
    with drawing(target) as (_, (axes,)):
        for color, row in zip(COLORS, rows, strict=False):
            points = list(zip(*(curve.values() for curve in row.curves), strict=True))
            millions = [seen / 1e6 for seen in row.curves[0]]
            label = f"{row.name}: {statistics.mean(row.losses):.3f}"
            axes.plot(millions, [statistics.mean(p) for p in points], color=color, label=label)
            axes.fill_between(
                millions, [min(p) for p in points], [max(p) for p in points], color=color, alpha=0.2
            )
        axes.set(title=title, xlabel="million tokens", ylabel="validation loss, nats a token")
        highest = max(max(curve.values()) for row in rows for curve in row.curves)
        axes.set_ylim(top=min(highest, 4.5))
        axes.grid(alpha=0.25)
        axes.legend()


def of_the_project() -> Data:
    """Return the corpus in use."""
    model = Path("models/tokenizer.model")
    return Data(Path("data/tokens"), model, list(files.read("data/corpus/valid.txt")))


def prepare(source: str, chosen: Params) -> Data:
    """Tokenize another corpus with its own tokenizer."""
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
    return Data(folder, folder / "tokenizer.model", list(files.read(folder / "valid.txt")))


def budget(text: str) -> int | None:
    """Return a number of tokens; None for `recipe`."""
    return None if text == "recipe" else positive(text)


@exit_on_user_error
def main() -> None:
    """Train, print the table and plot the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.learning", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--tokens",
        type=budget,
        default=4_000_000,
        help="training tokens of each run; recipe: as many as the recipe says (default: 4000000)",
    )
    parser.add_argument(
        "--sizes", nargs="+", help="of the model (default: the one that params.yaml names)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of each row")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=DEFAULT_ROWS, help="to train")
    parser.add_argument("--corpus", help="as corpus.source in params.yaml (default: data/tokens)")
    parser.add_argument("--figure", type=Path, default=Path("bench/learning.png"), help="to write")
    arguments = parser.parse_args()
    raw = params.read("params.yaml")
    chosen = params.parse(raw)
    data = prepare(arguments.corpus, chosen) if arguments.corpus else of_the_project()
    rows = list(compare(chosen, raw, data, arguments))
    seeds = ", ".join(map(str, arguments.seeds))
    about = f"Whole validation stories: {len(data.stories):,}; seeds {seeds}"
    print(f"\n{about}\n\n{table(rows)}\n")
    draw(rows, f"Validation on windows, seeds {seeds}", arguments.figure)
    print(arguments.figure)


if __name__ == "__main__":
    main()
