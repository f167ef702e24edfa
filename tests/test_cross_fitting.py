"""Cross-fitting: which teachers a run trains, once, and what it learns from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from training_job import CONFIG, make_job, make_tokens

from stages import train as stage
from stages.train import add_teachers
from storyllamas import params, tokenizer, workdir
from storyllamas.errors import UserError
from storyllamas.model import Llama
from storyllamas.training import cross_fitting, metrics
from storyllamas.training.cross_fitting import teacher_jobs, train_teachers
from storyllamas.training.distributed import Ranks
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.job import Job
from storyllamas.training.loop import Trainer, training_run
from storyllamas.training.start import Start
from storyllamas.training.teacher import TrainedModel
from storyllamas.training.trained_model import load_model

FOLDS = {"teacher_folds": 3, "teachers_per_fold": 2, "teacher_steps": 3, "teacher_share": 0.5}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYLLAMAS_STATE", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each run take 2.5 seconds, by its own account."""
    final_costs = metrics.final_costs

    def costs(trainer: Trainer) -> dict[str, Any]:
        return {**final_costs(trainer), "seconds": 2.5}

    monkeypatch.setattr(metrics, "final_costs", costs)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path, steps=5, **FOLDS)


def teacher_of(job: Job) -> Job:
    """Return the run of a teacher of the same size."""
    return dataclasses.replace(job, recipe=job.recipe.teacher())


def test_each_fold_has_its_teachers_and_each_seed_its_own(job: Job) -> None:
    jobs = list(teacher_jobs(job, teacher_of(job)))
    assert [str(fold) for fold, _ in jobs] == ["1/3", "1/3", "2/3", "2/3", "3/3", "3/3"]
    each = 40 * 32  # 40 of 120 stories, of 32 tokens
    parts = [(first, first + each) for first in (0, each, 2 * each)]
    assert [one.train.held_out for _, one in jobs] == [part for part in parts for _ in range(2)]
    assert {one.recipe.steps for _, one in jobs} == {3}
    keys = {one.key() for _, one in jobs}
    for seed in (0, 1, 2, 4, 2**32 - 1):
        of_seed = dataclasses.replace(job, seed=seed)
        keys |= {one.key() for _, one in teacher_jobs(of_seed, teacher_of(job))}
    assert len(keys) == 6 * 6
    # What decides only the student is not of its teachers.
    other = dataclasses.replace(job.recipe, steps=9, teacher_share=0.25)
    config = dataclasses.replace(job.config, dim=64)
    start = Start(dict(Llama(config).state_dict()))
    student = dataclasses.replace(job, recipe=other, config=config, start=start)
    again = teacher_jobs(student, teacher_of(job))
    assert [one.key() for _, one in again] == [one.key() for _, one in jobs]


def test_teachers_are_trained_once(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train_teachers(job, teacher_of(job), 60, {"size": "2m"})
    assert "teacher 6 of 6: without fold 3/3, seed 6" in capsys.readouterr().out
    assert len({one.folder for one in trained}) == 6
    weights = {one.folder: load_model(one.folder)[0].state_dict() for one in trained}
    # The same as a run that holds out the fold.
    fold, (_, alone) = "2/3", list(teacher_jobs(job, teacher_of(job)))[3]
    with training_run(alone, job.train.path.parent / "alone", 60) as result:
        for name, tensor in result.tensors.items():
            assert torch.equal(weights[trained[3].folder][name], tensor)
    about = load_model(trained[3].folder)[1]
    assert (about["size"], about["seed"], about["held_out"]["fold"]) == ("2m", alone.seed, fold)
    assert trained[3].seconds == about["training"]["seconds"] == 2.5

    # A damaged one, and only that, is trained again, to the same weights.
    damaged = trained[2].folder / "model.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    begun: list[Path] = []

    def counted(job: Job, logs: Path, *arguments: Any) -> Any:
        begun.append(logs)
        return training_run(job, logs, *arguments)

    monkeypatch.setattr(cross_fitting, "training_run", counted)
    again = train_teachers(job, teacher_of(job), 60, {})
    assert [one.folder for one in again] == [one.folder for one in trained]
    assert begun == [trained[2].folder]
    assert damaged.read_bytes() == content


@pytest.mark.parametrize(("step", "saved"), [(1, 0), (3, 1)])
def test_a_signal_stops_before_the_next_teacher(
    job: Job,
    step: int,
    saved: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_step = Trainer.train_step

    def interrupted(trainer: Trainer, interrupt: Interrupt) -> tuple[float, float]:
        found = train_step(trainer, interrupt)
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(SystemExit) as stopped:
            train_teachers(job, teacher_of(job), 60, {})
    assert stopped.value.code == 128 + signal.SIGTERM
    assert len(teachers()) == saved
    capsys.readouterr()
    assert len(train_teachers(job, teacher_of(job), 60, {})) == 6
    printed = capsys.readouterr().out
    assert printed.count("without fold") == 6 - saved
    assert ("resuming from step 1 of 3" in printed) == (saved == 0)
    assert not list(workdir.runs().glob("*"))


def test_a_disk_without_room_for_the_probabilities(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")._replace(free=400_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        UserError, match=r"of the teachers need 0\.5 MB in .*, which has 0\.4 MB free"
    ):
        train_teachers(job, teacher_of(job), 60, {})


def test_the_stage_learns_from_the_teachers_that_it_trains(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    model = tokenizer.train(["Lily saw a big red ball in the park, and a dog." * 9], 300)
    (tmp_path / "models" / "tokenizer.model").write_bytes(model)
    monkeypatch.chdir(tmp_path)
    raw = params.read(ROOT / "params.yaml")
    raw["shape"].update(
        {key: value for key, value in asdict(CONFIG).items() if key in raw["shape"]}
    )
    raw["evaluation"]["speed_tokens"], raw["tokenizer"]["vocab_size"] = 8, CONFIG.vocab_size
    plain = params.parse(raw)
    chosen = dataclasses.replace(plain, teacher_recipe=job.recipe.teacher())
    digest = hashlib.sha256(model).hexdigest()
    taught, costs = add_teachers(job, chosen, {"tokenizer_sha256": digest}, Ranks())
    assert taught.teacher
    assert costs["teacher_seconds"] == 6 * 2.5
    assert taught.teacher.share == 0.5
    learned = taught.teacher.probabilities(job.train, job.device)
    # Of each fold, the mean of its two teachers.
    pairs = [taught.teacher.models[i : i + 2] for i in (0, 2, 4)]
    for number, pair in enumerate(pairs):
        first = number * 40 * 32
        story = torch.from_numpy(job.train.tokens[first : first + 32].astype(np.int64))[None]
        with torch.no_grad():
            expected = sum(_probabilities(one, story, job) for one in pair) / 2
        found = learned.records[first : first + 32]
        ids = torch.from_numpy(found["ids"].astype(np.int64))
        assert np.allclose(found["probabilities"], expected.gather(-1, ids), atol=1e-3)
    with training_run(taught, tmp_path / "logs", 60) as result:
        assert result.metrics["steps"] == 5
    without, none = add_teachers(make_job(tmp_path), plain, {}, Ranks())
    assert (without.teacher, none) == (None, {})
    with pytest.raises(UserError, match="2 processes train and there are teachers: use one"):
        add_teachers(job, chosen, {}, Ranks(1, 2))


def test_a_run_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "data" / "tokens").mkdir(parents=True)
    model = tokenizer.train(["Lily saw a big red ball in the park, and a dog." * 9], 300)
    (tmp_path / "models" / "tokenizer.model").write_bytes(model)
    for seed, part in enumerate(("train", "valid")):
        path = tmp_path / "data" / "tokens" / f"{part}.bin"
        make_tokens(path, seed, hashlib.sha256(model).digest())
    raw = params.read(ROOT / "params.yaml")
    shape = {"dim": 32, "layers": 1, "heads": 1, "kv_heads": 1, "hidden": 32, "context": 32}
    raw["shape"].update(shape)
    raw["recipe"], raw["tokenizer"]["vocab_size"] = "distill", 300
    raw["train"].update(steps=6, teacher_steps=3, tokens_per_step=128)
    raw["compute"]["compile"] = "never"
    raw["evaluation"]["speed_tokens"] = 8
    (tmp_path / "params.yaml").write_text(json.dumps(raw))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train")  # then checkpoints stay until the next run
    with pytest.raises(SystemExit) as ended:
        stage.main()
    assert ended.value.code == 0
    found = json.loads((tmp_path / "metrics" / "train.json").read_text())
    assert (found["steps"], found["recipe"]) == (6, "distill")
    assert found["teacher_seconds"] == 8 * 2.5
    about = json.loads((tmp_path / "models" / "2m" / "config.json").read_text())
    assert about["hyperparameters"]["teacher_folds"] == 4
    assert len(set(about["distillation"]["teacher_sha256"])) == 8
    assert about["distillation"]["teacher_share"] == 0.5
    assert [path.name for path in workdir.runs().glob("*/*") if path.name == "finished"] == [
        "finished"
    ]  # of the model, not of its teachers

    # A larger model has the same teachers, which are not trained again.
    trained = {path: path.stat().st_mtime_ns for path in teachers()}
    assert len(trained) == 8
    larger = {**raw, "model": "7m", "shape": {**raw["shape"], "layers": 2}}
    larger["sizes"] = {**raw["sizes"], "2m": {**raw["sizes"]["2m"], **shape}}
    larger["recipes"]["distill"]["sizes"]["2m"] |= {"tokens_per_step": 128}
    larger["train"] = {**raw["train"], "teacher_size": "2m", "micro_batch": 4}
    (tmp_path / "params.yaml").write_text(json.dumps(larger))
    with pytest.raises(SystemExit) as ended:
        stage.main()
    assert ended.value.code == 0
    assert {path: path.stat().st_mtime_ns for path in teachers()} == trained
    learned = json.loads((tmp_path / "models" / "7m" / "config.json").read_text())
    assert learned["hyperparameters"]["teacher_size"] == "2m"
    assert learned["distillation"]["teacher_sha256"] == about["distillation"]["teacher_sha256"]

    raw["train"].update(teacher_folds=0)
    (tmp_path / "params.yaml").write_text(json.dumps(raw))
    with pytest.raises(SystemExit):
        stage.main()
    about = json.loads((tmp_path / "models" / "2m" / "config.json").read_text())
    assert "distillation" not in about
    assert not [key for key in about["hyperparameters"] if key.startswith("teacher")]


def teachers() -> list[Path]:
    """Return the weights of all teachers that are trained."""
    return list((workdir.project() / "teachers").glob("*/model.safetensors"))


def _probabilities(model: TrainedModel, story: torch.Tensor, job: Job) -> torch.Tensor:
    assert model.config == CONFIG
    found: torch.Tensor = model.on(job.device)(story)[0].softmax(-1)
    return found


def test_more_folds_than_stories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 120 stories, fewer than 121 folds: use more stories"):
        train_teachers(job := make_job(tmp_path, teacher_folds=121), teacher_of(job), 60, {})


def test_what_does_not_go_with_folds() -> None:
    raw = params.read(ROOT / "params.yaml")

    def refuse(match: str, **changes: object) -> None:
        sections = {name: {**raw[name]} for name in ("train", "compute")}
        sections["train"]["teacher_folds"] = 2
        for key, value in changes.items():
            section = "compute" if key in raw["compute"] else "train"
            sections[section][key] = value
        with pytest.raises(UserError, match=match):
            params.parse({**raw, **sections})

    with_one = r"teacher_folds is 2 and there is a train\.teacher: use train\.teacher_folds=0"
    refuse(with_one, teacher="a")
    refuse(r"compute\.processes is 2 and teacher_folds is 2: use 1", processes=2)
    refuse(r"train\.held_out is 1/2 and teacher_folds is 2: empty one", held_out="1/2")
    refuse("teacher_size is '3m': use one of 2m, 7m, 30m", teacher_size="3m")
    raw["recipe"] = "distill"
    del raw["recipes"]["distill"]["sizes"]["30m"]
    refuse(
        r"teacher_size is 30m and recipes\.distill\.sizes has no 30m: add it, or use one of 2m, 7m",
        teacher_size="30m",
    )


def test_a_start_is_not_that_of_the_teachers() -> None:
    raw = params.read(ROOT / "params.yaml")
    raw["recipe"] = "distill"
    plain = params.parse(raw)
    started = params.parse({**raw, "train": {**raw["train"], "start": "a", "lora_rank": 4}})
    assert started.recipe.learning_rate == plain.recipe.learning_rate / 4
    assert started.of_teacher() == plain.of_teacher()


def test_teachers_of_another_size_have_the_recipe_of_that_size() -> None:
    raw = params.read(ROOT / "params.yaml")
    raw["recipe"] = "distill"
    small = params.parse(raw).of_teacher()
    raw["model"] = "7m"
    large = params.parse(raw)
    assert (large.recipe.dropout, large.recipe.steps) == (0.1, 11000)
    teacher = large.of_teacher()
    assert teacher
    assert small
    assert teacher.recipe == small.recipe
    assert (teacher.model, teacher.recipe.steps, teacher.recipe.dropout) == ("2m", 16000, 0.0)
    assert teacher.model_config() == small.model_config()
    assert teacher.of_teacher() is None
    # Values of `train` are those of the model.
    raw["train"].update(learning_rate=0.001, weight_decay=0.0, teacher_steps=0)
    changed = params.parse(raw).of_teacher()
    assert changed
    assert changed.recipe == dataclasses.replace(small.recipe, steps=11000)
    raw["train"].update(teacher_size="7m", teacher_steps=7)
    own = params.parse(raw).of_teacher()
    assert own
    assert (own.model, own.recipe.learning_rate, own.recipe.steps) == ("7m", 0.001, 7)
    raw["train"]["teacher_folds"] = 0
    assert params.parse(raw).of_teacher() is None
