"""Everything that the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyllamas import params
from storyllamas.experiments.git import read_at
from storyllamas.report import documents, experiment, runs, stories
from storyllamas.report.experiment import Experiments
from storyllamas.report.runs import Run
from storyllamas.report.stories import Prompt
from storyllamas.report.tables import Table, markdown_tables, pairs, tables

BENCH = Path("bench/results/README.md")


@dataclass(frozen=True)
class Report:
    """The contents of the page.

    Attributes:
        trained: what was trained on what.
        runs: all runs, the present one first.
        measures: the metrics of metrics/eval.json.
        prompts: prompts with the stories of each weight file.
        generation: how the stories were sampled.
        speeds: tokens a second by weight type, then those of `make bench`.
        params: params.yaml by section.
        changed: parameters whose values in params.yaml are not those of the run.
        base: the experiment that the workspace is compared with; "": none.
        differences: how the two differ.
    """

    trained: Sequence[Table]
    runs: Sequence[Run]
    measures: Sequence[Table]
    prompts: Sequence[Prompt]
    generation: Mapping[str, Any]
    speeds: Sequence[Table]
    params: Sequence[Table]
    changed: Sequence[str]
    base: str
    differences: Sequence[Table]


def collect(base: str = "", models: Sequence[Path] | None = None) -> Report:
    """Collect the contents of the page from the workspace, DVC and git.

    Args:
        base: an experiment, a branch, a tag or a commit to compare with; "": none.
        models: weight files; None: those of `stories.weight_files`.

    Raises:
        UserError: there is no run yet, a file is damaged, or `base` does not exist.
    """
    run = runs.present()
    evaluation = documents.read("eval.json")
    values = params.read("params.yaml")
    chosen = params.parse(values)
    with closing(Experiments()) as dvc:
        differences = dvc.differences(base) if base else []
        known = runs.known(dvc.cache)
    lock = read_at("", runs.LOCK)
    recorded = runs.recorded_params(lock, f"train@{run.metrics['size']}")
    generation = values.get("generation", {})
    paths = stories.weight_files() if models is None else models
    return Report(
        trained=_trained(run, recorded, runs.recorded_params(lock, "tokenizer")),
        runs=known,
        measures=tables(evaluation) if evaluation else [],
        prompts=stories.generate(paths, chosen.evaluation.prompts, chosen.generation, chosen.seed)
        if paths
        else [],
        generation=generation,
        speeds=_speeds(evaluation),
        params=experiment.sections(values),
        changed=experiment.changed(recorded, values),
        base=base,
        differences=differences,
    )


def _trained(
    run: Run, recorded: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> Sequence[Table]:
    """Return tables about the model, the corpus, the tokenizer and the training."""
    metrics = run.metrics
    size, recipe = metrics["size"], metrics["recipe"]
    shape = _merged(recorded, f"sizes.{size}", "shape")
    names = (f"recipes.{recipe}.defaults", f"recipes.{recipe}.sizes.{size}", "train")
    model = {"size": size, "parameters": metrics["parameters"], **shape}
    hyperparameters = {"recipe": recipe, **_merged(recorded, *names)}
    if not hyperparameters.get("start"):
        hyperparameters = {k: v for k, v in hyperparameters.items() if not k.startswith("start")}
    results = {key: value for key, value in metrics.items() if key not in model | hyperparameters}
    corpus = documents.read("corpus.json")
    about_tokenizer = tokenizer.get("tokenizer", {}) | documents.read("tokenizer.json")
    return [
        pairs("Model", model),
        *tables({"source": run.corpus or "unknown", **corpus}, "Corpus"),
        *([pairs("Tokenizer", about_tokenizer)] if about_tokenizer else []),
        pairs("Recipe", hyperparameters),
        pairs("Training", results),
    ]


def _merged(recorded: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the values of groups of parameters; a later group overrides an earlier one."""
    merged: dict[str, Any] = {}
    for name in names:
        merged |= {k: v for k, v in recorded.get(name, {}).items() if v is not None}
    return merged


def _speeds(evaluation: Mapping[str, Any]) -> Sequence[Table]:
    """Return tokens a second of each group of eval.json, then the tables of bench/results."""
    speeds = {
        name: {"tokens_per_second": group["tokens_per_second"]}
        for name, group in evaluation.items()
        if isinstance(group, Mapping) and "tokens_per_second" in group
    }
    found = [
        Table(
            f"One story, {evaluation.get('size', 'this model')}, by the stage evaluate",
            t.head,
            t.rows,
        )
        for t in tables(speeds)
    ]
    bench = BENCH.read_text(encoding="utf-8") if BENCH.is_file() else ""
    return [*found, *markdown_tables(bench)]
