"""Cross-fitting: train the teachers of a run, each without a fold of its stories.

A teacher teaches the fold that it has not read, so that its probabilities there are those of new
text. Trained teachers stay in the state folder, for all runs with the same ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from storyllamas import workdir
from storyllamas.adapter import weights_sha256
from storyllamas.errors import UserError
from storyllamas.fold import Fold
from storyllamas.training.disk import check_room
from storyllamas.training.job import Job
from storyllamas.training.loop import training_run
from storyllamas.training.teacher import RECORD, HeldOut
from storyllamas.training.trained_model import load_model, save_model


@dataclass(frozen=True)
class Trained:
    """A teacher that is trained.

    Attributes:
        folder: of the model.
        seconds: time that its training took.
    """

    folder: Path
    seconds: float


def teacher_jobs(job: Job, teacher: Job) -> Iterator[tuple[Fold, Job]]:
    """Yield the runs of a job's teachers with the folds that they hold out.

    Args:
        job: the run that learns from them.
        teacher: the run of a teacher that reads all folds. Only its shape and recipe count.

    They begin with random weights, also if the job has a start. Jobs whose seeds differ, and are
    below 2^32 / `teachers_per_fold`, share no teacher.
    """
    recipe, count = job.recipe, job.recipe.teachers_per_fold
    for number in range(1, recipe.teacher_folds + 1):
        fold = Fold(number, recipe.teacher_folds)
        train = job.train.hold_out(fold)
        own = dataclasses.replace(
            job, config=teacher.config, recipe=teacher.recipe, train=train, start=None
        )
        for index in range(count):
            seed = (count * (job.seed - 1) + index + 1) % 2**32
            yield fold, dataclasses.replace(own, seed=seed)


def add_teachers(
    job: Job,
    teacher: Job,
    checkpoint_seconds: float,
    about: Mapping[str, Any],
    tokenizer_file: Path,
    parent: int | None = None,
) -> tuple[Job, float]:
    """Train the teachers of a job; return the job with them, and the seconds that they took.

    Args:
        job: as in `train_teachers`.
        teacher: as in `teacher_jobs`.
        checkpoint_seconds: as in `train_teachers`.
        about: as in `train_teachers`.
        tokenizer_file: the tokenizer of the text.
        parent: as in `train_teachers`.

    Raises:
        UserError: as in `train_teachers`, or a teacher cannot be read.
        SystemExit: as in `train_teachers`.
    """
    trained = train_teachers(job, teacher, checkpoint_seconds, about, parent)
    from storyllamas.training import teacher_reader

    folders = [str(one.folder) for one in trained]
    read = teacher_reader.read(folders, job.recipe.teacher_share, tokenizer_file)
    return dataclasses.replace(job, teacher=read), sum(one.seconds for one in trained)


def train_teachers(
    job: Job,
    teacher: Job,
    checkpoint_seconds: float,
    about: Mapping[str, Any],
    parent: int | None = None,
) -> list[Trained]:
    """Train the teachers of a job that are not trained yet.

    Args:
        job: with `recipe.teacher_folds`, and no teacher yet.
        teacher: as in `teacher_jobs`.
        checkpoint_seconds: as in `training_run`.
        about: what config.json of each teacher has besides its shape.
        parent: as in `training_run`.

    Raises:
        UserError: the text has fewer stories than folds, or a run fails.
        SystemExit: a run was interrupted; a checkpoint or the whole teacher is saved.
    """
    jobs = list(teacher_jobs(job, teacher))
    found = []
    for number, (fold, one) in enumerate(jobs, 1):
        folder = workdir.project() / "teachers" / one.key()
        with workdir.locked(folder.with_suffix(".lock"), "another run that trains this teacher"):
            seconds = _seconds(folder)
            if seconds is None:
                needed = len(job.train.tokens) * RECORD.itemsize
                check_room(folder.parent, needed, "the probabilities of the teachers")
                print(
                    f"teacher {number} of {len(jobs)}: without fold {fold}, seed {one.seed}",
                    flush=True,
                )
                held_out = HeldOut(fold, job.train.tokens_sha256).about()
                details = {**about, "held_out": held_out}
                seconds = _train(one, folder, checkpoint_seconds, details, parent)
        found.append(Trained(folder, seconds))
    return found


def _train(
    job: Job, folder: Path, checkpoint_seconds: float, about: Mapping[str, Any], parent: int | None
) -> float:
    """Train and save a teacher; return the time that it took, in seconds."""
    with training_run(job, folder, checkpoint_seconds, parent) as result:
        details = {
            **about,
            "seed": job.seed,
            "hyperparameters": job.recipe.values(),
            "training": {**result.metrics, **result.costs},
            "weights_sha256": _digest(result.tensors),
        }
        save_model(folder, job.config, result.tensors, details)
    if result.stop_status:
        raise SystemExit(result.stop_status)
    seconds: float = result.costs["seconds"]
    return seconds


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return weights_sha256((name, tensors[name].numpy()) for name in sorted(tensors))


def _seconds(folder: Path) -> float | None:
    """Return the time that a teacher took; None: it is not trained, or its files are damaged."""
    try:
        model, about = load_model(folder)
        if about["weights_sha256"] != _digest(model.state_dict()):
            return None
        return float(about["training"]["seconds"])
    except (UserError, KeyError, TypeError):
        return None
