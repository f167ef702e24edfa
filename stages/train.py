"""Stage `train`: train the model of params.yaml on the token files; write it and its metrics."""

from stages import PARENT
from storyllamas.training import process_env

if __name__ == "__main__":
    process_env.prepare()

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storyllamas import adapter, params, token_file
from storyllamas.atomic import write_json
from storyllamas.config import ModelConfig
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.rounding import decimals
from storyllamas.training import cross_fitting, device, distributed
from storyllamas.training.job import Job, Result
from storyllamas.training.launch import is_rank, launch
from storyllamas.training.loop import training_run
from storyllamas.training.metrics import train_json
from storyllamas.training.start import Start
from storyllamas.training.teacher import HeldOut
from storyllamas.training.trained_model import save_model

TOKENIZER = Path("models/tokenizer.model")


@exit_on_user_error
def main() -> None:
    """Train in this process, or in several processes that run this stage."""
    chosen = params.load()
    processes = chosen.compute.processes
    if processes > 1 and not is_rank():
        distributed.micro_batch(chosen.recipe, chosen.size.context, processes)
        launch(processes, ["-m", "stages.train"], PARENT)
        return
    with distributed.joined(chosen.compute) as ranks:
        train(chosen, ranks)


def train(chosen: params.Params, ranks: distributed.Ranks) -> None:
    """Train the model; the first rank writes the outputs."""
    digest = hashlib.sha256(TOKENIZER.read_bytes()).digest()
    job = make_job(chosen, digest)
    for data in (job.train, job.valid) if job.train.records and ranks.first else ():
        if message := data.rows(job.config.context).describe(data.path, job.config.context):
            print(message, flush=True)
    about = {
        "size": chosen.model,
        "recipe": chosen.recipe_name,
        "seed": chosen.seed,
        "corpus": chosen.corpus.source,
        "hyperparameters": chosen.recipe.values(),
        "tokenizer_sha256": digest.hex(),
    }
    job, costs = add_teachers(job, chosen, about, ranks)
    seconds = chosen.compute.checkpoint_seconds
    name = f"{chosen.model}-{chosen.recipe_name}"
    with training_run(job, Path("metrics"), seconds, PARENT, ranks=ranks, name=name) as result:
        if ranks.first:
            save(result, job, chosen, about)
            metrics = train_json(result, job.device, ranks.world_size)
            known = {key: about[key] for key in ("size", "recipe", "seed")}
            write_json("metrics/train.json", known | metrics | costs)


def make_job(chosen: params.Params, digest: bytes) -> Job:
    """Return the run of params.yaml, without teachers; `digest` is the SHA-256 of the tokenizer."""
    text, size = read_text(chosen, digest), chosen.tokenizer.vocab_size
    if text.vocab_size != size:
        raise UserError(
            f"tokenizer.vocab_size is {size} and data/tokens/train.bin has {text.vocab_size} "
            "pieces: run `dvc repro` to make it again"
        )
    config, start = read_start(chosen)
    return Job(
        config=config,
        recipe=chosen.recipe,
        seed=chosen.seed,
        train=text,
        valid=token_file.read("data/tokens/valid.bin", digest),
        device=device.choose(chosen.compute, chosen.training_flops),
        start=start,
    )


def save(result: Result, job: Job, chosen: params.Params, about: Mapping[str, Any]) -> None:
    """Write the model, and what it is to config.json."""
    # Without the time, so that the same weights are the same file.
    details = {**about, "training": result.metrics}
    if fold := chosen.distillation.fold:
        details["held_out"] = HeldOut(fold, job.train.tokens_sha256).about()
    if job.train.records:
        details["corpus_kind"] = "instruct"
    if job.start:
        start = {"start_sha256": job.start.digest()}
        details["fine_tuning"] = asdict(chosen.fine_tuning) | start
    if job.teacher:
        details["distillation"] = {
            **asdict(chosen.distillation),
            "teacher_share": job.teacher.share,
            "teacher_sha256": job.teacher.digests(),
        }
    folder = Path("models") / chosen.model
    save_model(folder, job.config, result.tensors, details)
    # Without LoRA too: the outputs of a stage of DVC are always the same files.
    if result.adapter:
        result.adapter.save(folder / "adapter.safetensors")
    else:
        adapter.save_empty(folder / "adapter.safetensors")


def read_text(chosen: params.Params, digest: bytes) -> token_file.TokenFile:
    """Return the tokens to learn from, without the fold that `train.held_out` names."""
    text = token_file.read("data/tokens/train.bin", digest)
    fold = chosen.distillation.fold
    if not fold:
        return text
    text = text.hold_out(fold)
    first, end = text.held_out
    print(f"fold {fold} is held out: {end - first:,} of {len(text.tokens):,} tokens", flush=True)
    return text


def read_start(chosen: params.Params) -> tuple[ModelConfig, Start | None]:
    """Return the shape of the model, and the weights to start from if `train.start` names some."""
    config, path = chosen.model_config(), Path(chosen.fine_tuning.start)
    if not chosen.fine_tuning.start:
        return config, None
    check_stays("train.start", path, chosen.model)
    from storyllamas.training import start_reader

    lora = chosen.fine_tuning.lora
    config, tensors = start_reader.read(path, config, TOKENIZER, chosen.seed, lora is not None)
    return config, Start(tensors, chosen.fine_tuning.freeze, lora)


def add_teachers(
    job: Job, chosen: params.Params, about: Mapping[str, Any], ranks: distributed.Ranks
) -> tuple[Job, dict[str, float]]:
    """Return the job with the models that it learns from, and metrics of what they cost.

    Those of `train.teacher` are read; those of `teacher_folds` are trained first.
    """
    paths = chosen.distillation.teacher
    if (paths or job.recipe.teacher_folds) and ranks.world_size > 1:
        raise UserError(
            f"{ranks.world_size} processes train and there are teachers: use one, since only one "
            "process can learn from a teacher"
        )
    if own := chosen.of_teacher():
        teacher_job = dataclasses.replace(job, config=own.model_config(), recipe=own.recipe)
        known = {**about, "size": own.model}
        job, seconds = cross_fitting.add_teachers(
            job, teacher_job, chosen.compute.checkpoint_seconds, known, TOKENIZER, PARENT
        )
        return job, {"teacher_seconds": decimals(seconds, 1)}
    if not paths:
        return job, {}
    for path in paths:
        check_stays("train.teacher", Path(path), chosen.model)
    from storyllamas.training import teacher_reader

    teacher = teacher_reader.read(paths, job.recipe.teacher_share, TOKENIZER)
    return dataclasses.replace(job, teacher=teacher), {}


def check_stays(parameter: str, path: Path, size: str) -> None:
    """Check that a path is not in the folder of the size to train, which DVC has emptied."""
    if path.resolve().is_relative_to((Path("models") / size).resolve()):
        raise UserError(
            f"{parameter} is {path}, which this training replaces: restore it with `dvc checkout "
            f"--force train@{size}`, copy it to another folder and name that"
        )


if __name__ == "__main__":
    main()
