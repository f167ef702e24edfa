"""`micro_batch: auto`, and a GPU whose memory is too small for a micro-batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_job import CONFIG, RECIPE, make_job

from storyllamas import params
from storyllamas.errors import UserError
from storyllamas.training import memory
from storyllamas.training.checkpoints import CheckpointFolder
from storyllamas.training.distributed import Ranks, micro_batch
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.loop import Trainer, training_run
from storyllamas.training.memory import largest_micro_batch, sequence_bytes, state_bytes

Losses = list[tuple[float, float]]
"""The loss and the norm of the gradient of each step."""


def make_trainer(folder: Path, **changes: object) -> Trainer:
    folder.mkdir(exist_ok=True)
    values: dict[str, Any] = {"dropout": 0.0, "steps": 4, "eval_every": 2, **changes}
    return Trainer(make_job(folder, **values), folder / "logs", None)


def limit_memory(trainer: Trainer, sequences: int, after: int = 0) -> None:
    """Let forward passes of more than so many sequences run out of memory, `after` calls on."""
    whole, calls = trainer.loss, 0

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > after and len(tokens) > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(tokens, targets)

    trainer.loss = loss


def take_steps(trainer: Trainer, count: int = 4) -> Losses:
    return [trainer.train_step(Interrupt()) for _ in range(count)]


def state(trainer: Trainer) -> dict[str, Tensor]:
    named = {**trainer.model.state_dict(), **trainer.optimizers.tensors()}
    return {name: tensor.clone() for name, tensor in named.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("fits", [2, 1])
def test_an_interrupted_step_is_taken_with_a_smaller_micro_batch(
    tmp_path: Path, fits: int, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = make_trainer(tmp_path / "expected", micro_batch=fits)
    trainer = make_trainer(tmp_path / "limited", micro_batch=4)
    limit_memory(trainer, fits, after=1)  # in the middle of the first step
    assert take_steps(trainer) == take_steps(expected)
    assert_same(state(trainer), state(expected))
    assert trainer.micro_batch.size == fits
    printed = capsys.readouterr().out
    assert printed.count("too small for a micro-batch") == (1 if fits == 2 else 2)
    assert "micro-batch of 4 sequences: training continues with 2" in printed


def test_running_out_of_memory_changes_neither_weights_nor_optimizer(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, micro_batch=4)
    take_steps(trainer, 2)
    before = state(trainer)
    limit_memory(trainer, 0, after=1)
    with pytest.raises(UserError, match="too small for one sequence of 32 tokens: use a smaller"):
        trainer.train_step(Interrupt())
    assert trainer.step == 2
    assert_same(state(trainer), before)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_validation_continues_with_a_smaller_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, dropout=0.0, steps=2, eval_every=1)
    with training_run(job, tmp_path / "logs", 1000) as result:
        expected = result.metrics
    whole = Trainer._validation_total
    monkeypatch.setattr(Trainer, "_validation_total", _fail_once(whole))
    with training_run(job, tmp_path / "logs", 1000) as result:
        assert result.metrics["micro_batch"] == 2
        assert result.metrics["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
        assert result.metrics["validation_loss"] == pytest.approx(
            expected["validation_loss"], rel=1e-5
        )


def _fail_once(action: Callable[[Trainer], float]) -> Callable[[Trainer], float]:
    failures = iter([torch.OutOfMemoryError("CUDA out of memory")])

    def run(trainer: Trainer) -> float:
        for failure in failures:
            raise failure
        return action(trainer)

    return run


def test_a_resumed_run_keeps_its_micro_batch(tmp_path: Path) -> None:
    expected = make_trainer(tmp_path / "expected", micro_batch="auto")
    limit_memory(expected, 2)
    take_steps(expected, 2)
    folder = CheckpointFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.save(expected.checkpoint())
    resumed = Trainer(expected.job, tmp_path / "logs", folder.latest())
    assert resumed.micro_batch.size == 2
    assert take_steps(resumed, 2) == take_steps(expected, 2)


def test_no_memory_for_the_optimizer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)

    def step(rate: float) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.optimizers, "step", step)
    with pytest.raises(UserError, match="for the optimizer of this model: use a smaller model"):
        take_steps(trainer, 1)


def test_several_ranks_get_an_error_that_names_the_smaller_micro_batch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, micro_batch=4)
    limit_memory(trainer, 2)
    trainer.micro_batch._ranks = Ranks(0, 2)
    with pytest.raises(UserError, match=r"of 4 sequences: use train.micro_batch=2"):
        take_steps(trainer, 1)


def test_auto_takes_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, micro_batch="auto")
    assert trainer.micro_batch.size == 8  # all of a step
    model, device = trainer.model, trainer.job.device
    one = sequence_bytes(model, device)
    least = 4 * (CONFIG.layers * 8 * CONFIG.dim + CONFIG.vocab_size) * CONFIG.context
    assert least < one < 6 * least
    free = state_bytes(model, RECIPE) + 3.5 * one
    monkeypatch.setattr(memory, "available_bytes", lambda name: free / memory.MAX_SHARE)
    assert largest_micro_batch(model, RECIPE, device) == 3
    assert make_trainer(tmp_path, micro_batch="auto").micro_batch.size == 2  # divides 8
    monkeypatch.setattr(memory, "available_bytes", lambda name: 0)
    assert largest_micro_batch(model, RECIPE, device) == 1


def test_auto_stays_in_the_caches_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(memory, "available_bytes", lambda name: 1 << 50)
    assert largest_micro_batch(trainer.model, RECIPE, trainer.job.device) == 2048 // 32


def test_available_memory_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    assert memory.available_bytes("cuda") == 1200
    group = {"memory.max": "1000", "memory.current": "400"}
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=900))
    monkeypatch.setattr(Path, "read_text", lambda path: group[path.name])
    assert memory.available_bytes("cpu") == 600
    group["memory.max"] = "max"
    assert memory.available_bytes("cpu") == 900


def test_ranks_share_a_step_evenly_with_auto() -> None:
    recipe = dataclasses.replace(RECIPE, micro_batch="auto", tokens_per_step=32 * 12)
    assert micro_batch(recipe, 32, 2) == 6
    assert micro_batch(recipe, 32, 2, limit=5) == 3


@pytest.mark.parametrize("value", ["0", "'many'", "true", "2.5", "-1", "1e30"])
def test_a_bad_value_is_one_sentence(value: str) -> None:
    raw = params.read("params.yaml")
    raw["train"]["micro_batch"] = params.loads(f"x: {value}")["x"]
    with pytest.raises(UserError, match=r"train.micro_batch is .*: use auto or a number of"):
        params.parse(raw)


@pytest.mark.parametrize(
    ("context", "tokens", "wanted", "used"),
    [(256, 2048, 8, 8), (512, 2048, 8, 4), (2048, 2048, 8, 1), (256, 1536, 4, 3)],
)
def test_a_micro_batch_divides_the_sequences_of_a_step(
    context: int, tokens: int, wanted: int, used: int
) -> None:
    raw = params.read("params.yaml")
    raw["shape"]["context"] = context
    raw["train"] |= {"micro_batch": wanted, "tokens_per_step": tokens}
    assert micro_batch(params.parse(raw).recipe, context, 1) == used


def test_auto_needs_steps_of_whole_sequences() -> None:
    raw = params.read("params.yaml")
    raw["train"] |= {"micro_batch": "auto", "tokens_per_step": 1000}
    with pytest.raises(UserError, match=r"is 1000: use a multiple of the context \(256\)"):
        params.parse(raw)
    raw["train"]["tokens_per_step"] = 256 * 7
    assert params.parse(raw).recipe.micro_batch == "auto"
