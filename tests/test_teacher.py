"""Distillation: the probabilities of teachers, and losses and runs that learn them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from training_job import CONFIG, DIGEST, make_job, make_tokens

from stages.train import add_teachers
from storyllamas import params, token_file, tokenizer, workdir
from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.fold import Fold
from storyllamas.model import Llama, SoftTargets
from storyllamas.record_rows import IGNORED
from storyllamas.training import teacher, teacher_reader
from storyllamas.training.device import Device
from storyllamas.training.distributed import Ranks
from storyllamas.training.loop import training_run
from storyllamas.training.teacher import TOP, HeldOut, Probabilities, Teacher, TrainedModel
from storyllamas.training.trained_model import save_model

CPU = Device("cpu", False, 1)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYLLAMAS_STATE", str(tmp_path / "state"))


def make_model(seed: int, config: ModelConfig = CONFIG) -> TrainedModel:
    torch.manual_seed(seed)
    tensors = {k: v.detach() for k, v in Llama(config).named_parameters()}
    # Far from uniform probabilities, as of a trained model.
    return TrainedModel(config, {k: v * (20 if v.ndim > 1 else 1) for k, v in tensors.items()})


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=40),
    context=st.integers(1, 40),
    block=st.integers(1, 200),
)
def test_windows_read_each_story_from_its_beginning(
    lengths: list[int], context: int, block: int
) -> None:
    starts = np.cumsum([0, *lengths[:-1]])
    count = sum(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "BLOCK_TOKENS", block)
        windows = [window for each in teacher.blocks(starts, count, context) for window in each]
    assert [window.first for window in windows[1:]] == [window.end for window in windows[:-1]]
    assert (windows[0].first, windows[-1].end) == (0, count)
    for window in windows:
        story = starts[starts <= window.first][-1]
        assert not ((starts > window.start) & (starts < window.end)).any()
        assert window.end - window.start <= context
        # The whole story so far, or at least the half of the context before what is added.
        assert window.start == story or window.first - window.start >= context // 2


def test_probabilities_are_the_mean_of_pytorchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "BLOCK_TOKENS", 200)
    file = make_tokens(tmp_path / "train.bin", 0)  # 120 stories of 32 tokens
    models = [make_model(0), make_model(1, dataclasses.replace(CONFIG, layers=1, context=40))]
    found = Teacher(models, 1.0).probabilities(file, CPU)
    assert len(found.records) == len(file.tokens)
    story = torch.from_numpy(file.tokens[64:96].astype(np.int64))[None]
    with torch.no_grad():
        expected = sum(model.on(CPU)(story)[0].softmax(-1) for model in models) / 2
    values, ids = expected.topk(TOP)
    records = found.records[64:96]
    assert np.allclose(records["probabilities"], values, atol=1e-3)
    picked = expected.gather(-1, torch.from_numpy(records["ids"].astype(np.int64)))
    assert np.allclose(picked, values, atol=1e-6)
    assert (records["ids"][:, 0] == ids[:, 0].numpy()).all()


def test_a_teacher_that_held_out_a_fold_teaches_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "BLOCK_TOKENS", 200)
    file = make_tokens(tmp_path / "train.bin", 0)  # 120 stories of 32 tokens
    folds = [HeldOut(Fold(number, 3), file.tokens_sha256) for number in (1, 2, 3)]
    plain = [make_model(seed) for seed in range(4)]
    held_out = [
        dataclasses.replace(model, held_out=one)
        for model, one in zip(plain, [*folds, None], strict=True)
    ]
    found = Teacher(held_out, 1.0).probabilities(file, CPU).records
    for number in range(3):
        expected = Teacher([plain[number], plain[3]], 1.0).probabilities(file, CPU).records
        part = slice(40 * 32 * number, 40 * 32 * (number + 1))
        assert (found[part]["ids"] == expected[part]["ids"]).all()
        assert np.allclose(found[part]["probabilities"], expected[part]["probabilities"], atol=1e-3)
    with pytest.raises(UserError, match=r"train\.teacher held out 1/3, 3/3 of the text: add those"):
        Teacher([held_out[0], held_out[2]], 1.0).probabilities(file, CPU)
    other = dataclasses.replace(plain[1], held_out=HeldOut(Fold(2, 4), file.tokens_sha256))
    with pytest.raises(UserError, match=r"train\.teacher held out 1/3, 2/4 of the text"):
        Teacher([held_out[0], other], 1.0).taught(file)
    with pytest.raises(UserError, match=r"held out 1/3 of another training text than .*other\.bin"):
        Teacher(held_out, 1.0).taught(make_tokens(tmp_path / "other.bin", 1))


def test_a_teacher_reads_a_record_with_its_prompt(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = [np.array([1, *random.integers(3, 300, 8), 1, *random.integers(3, 300, 9), 2])] * 2
    with token_file.write(tmp_path / "a.bin", 300, DIGEST, records=True) as writer:
        for record in records:
            writer.append(record.astype(np.uint16), 1, 9)
    file, model = token_file.read(tmp_path / "a.bin"), make_model(0)
    found = Teacher([model], 1.0).probabilities(file, CPU).records
    with torch.no_grad():
        expected = model.on(CPU)(torch.from_numpy(records[0])[None])[0].softmax(-1).topk(TOP)
    assert np.allclose(found["probabilities"][len(records[0]) :], expected.values, atol=1e-3)


def test_a_computation_that_was_killed_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "BLOCK_TOKENS", 300)
    file, learned = make_tokens(tmp_path / "train.bin", 0), Teacher([make_model(0)], 1.0)
    whole = np.array(learned.probabilities(file, CPU).records)
    (path,) = (workdir.project() / "teachers").glob("*.bin")
    part = path.with_suffix(".part")
    read: list[int] = []
    most_likely = teacher._most_likely

    def counted(*arguments: object) -> object:
        read.append(1)
        return most_likely(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(teacher, "_most_likely", counted)
    for kept, left in ((0, 12), (5, 12), (40967, 11), (64000, 11), (2 * 40960, 10)):
        part.write_bytes(path.read_bytes()[:kept])
        path.unlink()
        read.clear()
        assert (learned.probabilities(file, CPU).records == whole).all()
        assert len(read) == left
        assert not part.exists()
    learned.probabilities(file, CPU)
    assert len(read) == left  # the file is used again


def test_soft_targets_are_whole_and_leave_out_what_is_ignored() -> None:
    records = np.zeros(10, teacher.RECORD)
    records["ids"] = np.arange(TOP)
    records["probabilities"] = 0.5 / TOP
    targets = np.array([[3, 4, IGNORED], [9, IGNORED, 299]])
    soft = Probabilities(records, 0.5).soften(targets, np.array([[0, 1, 2], [7, 8, 9]]))
    assert soft.ids.shape == soft.shares.shape == (2, 3, TOP + 1)
    assert torch.allclose(soft.shares.sum(-1), torch.tensor([[1.0, 1, 0], [1, 0, 1]]))
    assert torch.allclose(soft.shares[0, 0, :TOP], torch.tensor(0.25 / TOP))
    assert soft.ids[:, :, TOP].tolist() == [[3, 4, 0], [9, 0, 299]]


def test_loss_is_pytorchs_with_probabilities() -> None:
    torch.manual_seed(0)
    model = Llama(CONFIG)
    tokens = torch.randint(300, (2, 32))
    dense = torch.zeros(2, 32, 300)
    ids = torch.stack([torch.randperm(300)[:6] for _ in range(64)]).view(2, 32, 6)
    ids[..., 5] = ids[..., 0]  # twice
    shares = torch.rand(2, 32, 6).softmax(-1)
    dense.scatter_add_(-1, ids, shares)
    expected = F.cross_entropy(model(tokens).flatten(0, 1), dense.flatten(0, 1))
    assert torch.allclose(model.loss(tokens, SoftTargets(ids, shares)), expected)
    shares[1, 7:] = 0  # ignored
    rows = (dense * (shares.sum(-1, keepdim=True) > 0)).flatten(0, 1)
    expected = F.cross_entropy(model(tokens).flatten(0, 1), rows, reduction="sum") / 39
    assert torch.allclose(model.loss(tokens, SoftTargets(ids, shares)), expected)


def test_a_student_learns_what_its_teacher_knows(tmp_path: Path) -> None:
    with training_run(make_job(tmp_path), tmp_path / "logs", checkpoint_seconds=60) as taught:
        pass
    job = make_job(tmp_path)
    good = Teacher([TrainedModel(CONFIG, taught.tensors)], 1.0)
    losses = {}
    for name, learned in (("alone", None), ("taught", good)):
        short = dataclasses.replace(job.recipe, steps=20)
        student = dataclasses.replace(job, recipe=short, teacher=learned)
        with training_run(student, tmp_path / name, checkpoint_seconds=60) as result:
            losses[name] = result.metrics["validation_loss"]
            weights = result.tensors
    assert losses["taught"] < losses["alone"]
    with training_run(student, tmp_path / "again", checkpoint_seconds=60) as result:
        assert all(torch.equal(result.tensors[name], weights[name]) for name in weights)
    worse = dataclasses.replace(student, teacher=Teacher(good.models, 0.5))
    assert len({each.key() for each in (job, student, worse)}) == 3


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the files of two tokenizers of 300 pieces."""
    folder = tmp_path_factory.mktemp("tokenizers")
    stories = ["Lily saw a big red ball in the park, and a dog.", "Tom ate a cake with the dragon."]
    for name, text in zip(("one", "other"), (stories, stories[::-1] * 3), strict=True):
        (folder / name).write_bytes(tokenizer.train([*text, name * 20], 300))
    return [folder / "one", folder / "other"]


def test_teachers_may_have_any_shape_and_the_same_tokenizer(
    tmp_path: Path, tokenizers: list[Path]
) -> None:
    models = [make_model(0), make_model(1, dataclasses.replace(CONFIG, layers=1, context=64))]
    paths = [str(tmp_path / "first"), str(tmp_path / "second")]
    about = {"tokenizer_sha256": tokenizer.load(tokenizers[0]).digest.hex()}
    for model, path in zip(models, paths, strict=True):
        save_model(Path(path), model.config, dict(model.tensors), about)
    found = teacher_reader.read(paths, 0.5, tokenizers[0])
    assert found.key() == Teacher(models, 0.5).key()
    held_out = {"fold": "2/3", "tokens_sha256": "ab"}
    save_model(
        Path(paths[1]), models[1].config, dict(models[1].tensors), about | {"held_out": held_out}
    )
    again = teacher_reader.read(paths, 0.5, tokenizers[0])
    assert [model.held_out for model in again.models] == [None, HeldOut(Fold(2, 3), "ab")]
    assert again.key() != found.key()
    with pytest.raises(UserError, match=r"train\.teacher.*nothing.*does not exist"):
        teacher_reader.read([*paths, str(tmp_path / "nothing")], 1.0, tokenizers[0])
    with pytest.raises(UserError, match=r"train\.teacher .*first.*tokenizer"):
        teacher_reader.read(paths, 1.0, tokenizers[1])
    broken = {**models[0].tensors, "norm.weight": torch.full((32,), torch.nan)}
    save_model(tmp_path / "first", CONFIG, broken, about)
    with pytest.raises(UserError, match=r"train\.teacher .*first.*not finite"):
        teacher_reader.read(paths, 1.0, tokenizers[0])
    held_out["fold"] = "3/2"
    save_model(
        Path(paths[1]), models[1].config, dict(models[1].tensors), about | {"held_out": held_out}
    )
    with pytest.raises(UserError, match=r"train\.teacher .*second.*damaged held_out"):
        teacher_reader.read(paths[1:], 0.5, tokenizers[0])


def test_a_teacher_that_training_replaces_is_rejected(tmp_path: Path) -> None:
    raw = params.read(ROOT / "params.yaml")
    raw["train"]["teacher"] = "models/7m"
    assert params.parse({**raw, "model": "2m"}).distillation.teacher == ("models/7m",)
    with pytest.raises(UserError, match=r"train\.teacher is models/7m, which this training"):
        add_teachers(make_job(tmp_path), params.parse({**raw, "model": "7m"}), {}, Ranks())


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_tokens(tmp_path / "train.bin", 0)

    def refuse(*_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=r"teachers needs 0\.5 MB.*No space left"):
        Teacher([make_model(0)], 1.0).probabilities(file, CPU)
