"""All training runs that the workspace, DVC's experiments, its run cache and the history have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from storyllamas import params
from storyllamas.errors import DAMAGED, UserError
from storyllamas.experiments import losses
from storyllamas.experiments.git import read_at
from storyllamas.experiments.losses import Curve

LOGS = ("metrics/train.json", "metrics/steps.csv", "metrics/validation.csv")
LOCK = "dvc.lock"


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        origin: where it was found, such as "workspace" or "experiment 2m-quick".
        corpus: `corpus.source` of params.yaml; "": unknown.
        metrics: metrics/train.json.
        train: loss of training batches.
        validation: loss on the validation windows.
    """

    origin: str
    corpus: str
    metrics: Mapping[str, Any]
    train: Curve
    validation: Curve

    @property
    def kind(self) -> tuple[str, str, str]:
        """The size, the recipe and the corpus."""
        return self.metrics["size"], self.metrics["recipe"], self.corpus

    @property
    def corpus_name(self) -> str:
        """The corpus without the folders of its path."""
        return PurePath(self.corpus).name or "unknown corpus"

    @property
    def label(self) -> str:
        """The name of the run in charts."""
        return f"{self.metrics['size']}, {self.metrics['recipe']}, {self.corpus_name}"

    @property
    def result(self) -> tuple[object, ...]:
        """What is equal for the same run found twice."""
        names = ("seed", "steps", "tokens", "train_loss", "validation_loss")
        return (*self.kind, *(self.metrics.get(name) for name in names))


def present() -> Run:
    """Return the run whose metrics are in the workspace.

    Raises:
        UserError: there is none, or a file of it is damaged.
    """
    for path in LOGS:
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist: train a model with `dvc repro` first")
    try:
        run = _of_texts("workspace", {path: read_at("", path) for path in (*LOGS, LOCK)})
    except DAMAGED as error:
        raise UserError(
            f"the logs of the run in metrics/ are damaged ({error!r}): train again with `dvc repro`"
        ) from None
    if not run:
        raise UserError("metrics/validation.csv has no rows: train a model with `dvc repro` first")
    return run


def known(cache: Path | None) -> list[Run]:
    """Return each run once: the present one, then others, the smallest models first.

    Args:
        cache: the folder of DVC's cache; None: do not search its run cache.

    Raises:
        UserError: the workspace has no run.
    """
    first = present()
    found = {first.result: first}
    for run in (*_experiments(), *(_run_cache(cache) if cache else ())):
        found.setdefault(run.result, run)
    kinds = {run.kind for run in found.values()}
    for run in _history():
        if run.kind not in kinds:
            kinds.add(run.kind)
            found[run.result] = run
    others = [run for run in found.values() if run is not first]
    return [first, *sorted(others, key=lambda run: (run.metrics["parameters"], run.kind))]


def recorded_params(lock: str, stage: str) -> dict[str, Any]:
    """Return the parameters that a stage read, by dotted name.

    Args:
        lock: the text of dvc.lock.
        stage: the name of the stage.
    """
    stages = (params.loads(lock, LOCK) or {}).get("stages", {}) if lock else {}
    found: dict[str, Any] = stages.get(stage, {}).get("params", {}).get("params.yaml", {})
    return found


def _experiments() -> Iterator[Run]:
    for reference, commit in losses.experiments().items():
        if len(reference.split("/")) == 5:  # refs/exps/AB/CDEF/NAME; others are DVC's own
            yield from _at(commit, f"experiment {reference.rpartition('/')[2]}")


def _history() -> Iterator[Run]:
    for commit in losses.history():
        yield from _at(commit, f"commit {commit[:7]}")


def _at(commit: str, origin: str) -> Iterator[Run]:
    texts = {path: read_at(commit, path) for path in (*LOGS, LOCK)}
    yield from _readable(origin, texts)


def _run_cache(cache: Path) -> Iterator[Run]:
    """Yield the runs in DVC's run cache, the newest first; each entry is a stage of a dvc.lock."""
    entries = (path for path in cache.glob("runs/*/*/*") if path.is_file())
    for entry in sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True):
        text = entry.read_text(encoding="utf-8", errors="replace")
        if "stages.train" not in text:
            continue
        try:
            stage = params.loads(text, str(entry))
            hashes = {out["path"]: out["md5"] for out in stage["outs"]}
            texts = {path: _cached(cache, hashes[path]) for path in LOGS}
            name = f"train@{json.loads(texts[LOGS[0]])['size']}"
        except (*DAMAGED, OSError, UserError):
            continue
        texts[LOCK] = json.dumps({"stages": {name: stage}})
        yield from _readable(f"run cache {entry.name[:7]}", texts)


def _cached(cache: Path, md5: str) -> str:
    """Return a file of DVC's cache."""
    return (cache / "files/md5" / md5[:2] / md5[2:]).read_text(encoding="utf-8")


def _readable(origin: str, texts: Mapping[str, str]) -> Iterator[Run]:
    """Yield the run if its files are there and have the columns and metrics of today."""
    try:
        run = _of_texts(origin, texts)
    except (*DAMAGED, UserError):
        return
    if run:
        yield run


def _of_texts(origin: str, texts: Mapping[str, str]) -> Run | None:
    """Read a run; None if a log of it is missing or has no rows.

    Args:
        origin: see `Run`.
        texts: the files by path; a missing one is "".
    """
    if not all(texts[path] for path in LOGS):
        return None
    metrics, steps, validation = (texts[path] for path in LOGS)
    values = json.loads(metrics)
    for name in ("size", "recipe", "parameters", "tokens", "validation_loss"):
        values[name]  # an early check: charts and tables need them
    corpus = _corpus(texts[LOCK], values["size"])
    run = Run(origin, corpus, values, losses.curve(steps), losses.curve(validation))
    return run if run.validation[1] else None


def _corpus(lock: str, size: str) -> str:
    """Return `corpus.source` of the run that a dvc.lock records; "" if it records none."""
    of_training = recorded_params(lock, f"train@{size}").get("corpus.source")
    of_download = recorded_params(lock, "download").get("corpus", {}).get("source")
    return str(of_training or of_download or "")
