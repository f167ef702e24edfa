"""Frozen parts, and LoRA: what is trained, what is saved, and what the engine merges."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import engine_files
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from engine_files import small_config
from training_job import CONFIG, make_job

from storyllamas import adapter, merging
from storyllamas.adapter import Adapter, Lora, weights_sha256
from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.model import Llama
from storyllamas.slm import weight_file
from storyllamas.training import loop
from storyllamas.training.freezing import frozen_tensors
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.job import Job
from storyllamas.training.loop import Trainer, training_run
from storyllamas.training.memory import state_bytes
from storyllamas.training.start import Start

pytestmark = pytest.mark.usefixtures("state_root")

LORA = Lora(rank=2, alpha=6.0, targets=("attention", "feed_forward.down"))


def make_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {name: tensor.detach() for name, tensor in Llama(CONFIG).state_dict().items()}


def started(folder: Path, freeze: tuple[str, ...] = (), lora: Lora | None = None) -> Job:
    job = make_job(folder, dropout=0.1, steps=6)
    return dataclasses.replace(job, start=Start(make_tensors(), freeze, lora))


def take_steps(trainer: Trainer, count: int) -> None:
    with Interrupt() as interrupt:
        for _ in range(count):
            trainer.train_step(interrupt)


def optimizer_bytes(trainer: Trainer) -> int:
    return sum(tensor.nbytes for tensor in trainer.optimizers.tensors().values())


@pytest.mark.parametrize(
    ("parts", "count"),
    [(["embedding"], 1), (["norms"], 5), (["attention"], 4), (["layers.1"], 6)],
)
def test_a_part_has_its_tensors(parts: list[str], count: int) -> None:
    assert len(frozen_tensors(parts, CONFIG)) == count


def test_impossible_parts_are_named() -> None:
    with pytest.raises(UserError, match=r"layers\.1-2: use layers from 0 to 1"):
        frozen_tensors(["layers.1-2"], CONFIG)
    with pytest.raises(UserError, match="leaves nothing to train"):
        frozen_tensors(["embedding", "norms", "layers.0-1"], CONFIG)


def test_frozen_parts_stay_and_have_no_state(tmp_path: Path) -> None:
    full = Trainer(started(tmp_path), tmp_path, None)
    frozen = Trainer(started(tmp_path, ("embedding", "layers.0")), tmp_path, None)
    for trainer in (full, frozen):
        take_steps(trainer, 2)
    assert optimizer_bytes(frozen) < optimizer_bytes(full)
    before = make_tensors()
    stays = frozen_tensors(("embedding", "layers.0"), CONFIG)
    for name, tensor in frozen.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name in stays), name
    assert not any(f"model.{name}" in frozen.checkpoint().tensors for name in stays)


def test_a_lora_run_starts_at_its_start_and_ends_merged(tmp_path: Path) -> None:
    job = started(tmp_path, lora=LORA)
    assert job.start
    with training_run(job, tmp_path / "logs", 1e9) as result:
        pass
    before = make_tensors()
    start = Llama(CONFIG)
    start.load_state_dict(before)
    tokens, targets = map(torch.from_numpy, job.valid.first_windows(6, 32))
    first = (tmp_path / "logs/validation.csv").read_text().splitlines()[1]
    loss = float(first.split(",")[2])
    assert loss == pytest.approx(start.eval().loss(tokens, targets).item(), abs=1e-3)

    assert result.adapter
    result.adapter.save(tmp_path / "adapter.safetensors")
    read = adapter.read(tmp_path / "adapter.safetensors")
    assert read.lora == LORA
    assert read.base_sha256 == job.start.digest()
    assert len(read.tensors) == 2 * 3 * CONFIG.layers
    merged = Llama(CONFIG).eval()
    merged.load_state_dict(result.tensors)
    # The adapter as a separate branch of each matrix.
    for name, module in start.named_modules():
        if f"{name}.lora_a" in read.tensors:
            a, b = (torch.tensor(read.tensors[f"{name}.lora_{part}"]) for part in "ab")
            assert b.abs().max() > 0
            module.register_forward_hook(
                lambda _, x, y, a=a, b=b: y + 3.0 * F.linear(F.linear(x[0], a), b)
            )
    with torch.no_grad():
        assert torch.allclose(merged(tokens), start(tokens), atol=1e-5)


def test_a_lora_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    job = started(tmp_path, lora=LORA)
    trainer = Trainer(job, tmp_path, None)
    take_steps(trainer, 2)
    # A checkpoint shares its memory with the model until it is saved.
    checkpoint = copy.deepcopy(trainer.checkpoint())
    assert all("embedding" not in name for name in checkpoint.tensors)
    take_steps(trainer, 2)
    resumed = loop.Trainer(job, tmp_path, checkpoint)
    take_steps(resumed, 2)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    full = Trainer(started(tmp_path), tmp_path, None)
    assert state_bytes(trainer.model, job.recipe) < state_bytes(full.model, job.recipe) / 2
    assert started(tmp_path).key() != job.key()


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, Adapter]:
    """Return a weight file, and an adapter of its weights."""
    config = small_config(dim=32, hidden=64)
    path = tmp_path / "base.slm"
    engine_files.write(path, config, engine_files.random_tensors(config), None, "q8")
    opened = weight_file.read(path)
    digest = weights_sha256(sorted(opened.tensors()))
    random = np.random.default_rng(0)
    rows = config.qkv_rows
    tensors = {
        "layers.0.attention.qkv.lora_a": random.standard_normal((2, 32), np.float32),
        "layers.0.attention.qkv.lora_b": random.standard_normal((rows, 2), np.float32),
    }
    return path, Adapter(Lora(2, 1.0, ("attention.qkv",)), digest, tensors)


def test_the_engine_merges_in_memory(
    base: tuple[Path, Adapter], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, added = base
    added.save(tmp_path / "adapter.safetensors")
    merged = merging.merge(path, tmp_path / "adapter.safetensors")
    assert "is in q8: the merged weights are in f32" in capsys.readouterr().err
    name = "layers.0.attention.qkv.weight"
    a, b = added.tensors.values()
    expected = weight_file.read(path).tensor(name) + 0.5 * (b @ a)
    assert np.allclose(merged.tensor(name)[:], expected, atol=1e-5)
    arguments = merged.config, merged.vocabulary, merged.tensor
    weight_file.write(tmp_path / "merged.slm", *arguments)
    in_memory = Engine.from_bytes(weight_file.to_bytes(*arguments))
    ids = [1, 5, 9]
    logits = in_memory.logits(ids)
    assert np.array_equal(logits, Engine(tmp_path / "merged.slm").logits(ids))
    assert not np.allclose(logits, Engine(path).logits(ids), atol=1e-3)


def test_another_base_is_rejected(base: tuple[Path, Adapter], tmp_path: Path) -> None:
    path, added = base
    file = tmp_path / "adapter.safetensors"
    dataclasses.replace(added, base_sha256="0" * 64).save(file)
    with pytest.raises(UserError, match="was trained on a model with other weights"):
        merging.merge(path, file)
    wide = {name: np.ones((2, 2), np.float32) for name in added.tensors}
    dataclasses.replace(added, tensors=wide).save(file)
    with pytest.raises(UserError, match="which does not fit"):
        merging.merge(path, file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged or not an adapter"):
        merging.merge(path, file)
    adapter.save_empty(file)
    with pytest.raises(UserError, match="is of a training without LoRA"):
        merging.merge(path, file)
