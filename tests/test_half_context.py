"""Training on sequences of half the context at first, then of the whole context."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training_job import CONFIG, RECIPE, make_job

from storyllamas import params
from storyllamas.errors import UserError
from storyllamas.model import SoftTargets
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.loop import Trainer, training_run
from storyllamas.training.schedule import sequence_lengths, sequence_tokens

pytestmark = pytest.mark.usefixtures("state_root")


def take(trainer: Trainer, steps: int) -> list[tuple[int, ...]]:
    """Take steps; return the shapes of the batches of their passes."""
    shapes, loss = [], trainer.loss

    def seen(tokens: Tensor, targets: Tensor | SoftTargets) -> Tensor:
        shapes.append(tuple(tokens.shape))
        return loss(tokens, targets)

    trainer.loss = seen
    for _ in range(steps):
        trainer.train_step(Interrupt())
    trainer.loss = loss
    return shapes


def same(trainer: Trainer, other: Trainer) -> bool:
    state = other.model.state_dict()
    return all(
        torch.equal(tensor, state[name]) for name, tensor in trainer.model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("share", "steps", "halves"), [(0.0, 10, 0), (0.85, 10, 8), (0.85, 40, 34), (1.0, 10, 10)]
)
def test_the_share_of_steps_with_half_of_the_context(share: float, steps: int, halves: int) -> None:
    recipe = dataclasses.replace(RECIPE, half_context=share, steps=steps)
    found = [sequence_tokens(step, recipe, 32) for step in range(steps)]
    assert found == [16] * halves + [32] * (steps - halves)
    assert sequence_tokens(steps, recipe, 32) == 32
    assert sequence_lengths(recipe, 32) == ((16, 32) if halves else (32,))


def test_a_step_has_the_same_tokens_before_and_after(tmp_path: Path) -> None:
    trainer = Trainer(make_job(tmp_path, half_context=0.5, steps=4), tmp_path, None)
    assert take(trainer, 4) == [*[(8, 16)] * 4, *[(4, 32)] * 4]  # two passes in a step
    assert trainer.tokens_seen == 4 * 256


def test_half_of_the_context_all_the_time_is_a_model_with_that_context(tmp_path: Path) -> None:
    long = make_job(tmp_path, half_context=1.0)
    config = dataclasses.replace(CONFIG, context=16)
    short = make_job(tmp_path, config, micro_batch=8)
    trainers = [Trainer(job, tmp_path, None) for job in (long, short)]
    for trainer in trainers:
        take(trainer, 5)
    assert same(*trainers)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_resumes_bit_identically_before_and_after(tmp_path: Path, stop: int) -> None:
    job = make_job(tmp_path, half_context=0.5, steps=6)
    whole, first = (Trainer(job, tmp_path, None) for _ in range(2))
    take(whole, 6)
    take(first, stop)
    resumed = Trainer(job, tmp_path, first.checkpoint())
    take(resumed, 6 - stop)
    assert same(resumed, whole)


def test_validation_has_sequences_of_the_same_length_and_text(tmp_path: Path) -> None:
    trainer = Trainer(make_job(tmp_path, half_context=0.5, steps=2), tmp_path, None)
    early = trainer.validation_set
    take(trainer, 1)
    late = trainer.validation_set
    assert early[0].shape == (12, 16)
    assert late[0].shape == (6, 32)
    assert np.array_equal(early[0].ravel(), late[0].ravel())


def test_the_result_is_the_best_of_the_whole_context(tmp_path: Path) -> None:
    trainer = Trainer(make_job(tmp_path, half_context=0.5, steps=4), tmp_path, None)
    trainer.best_loss = 0.0
    for step, best in ((1, 0), (2, 2)):
        take(trainer, 1)
        loss = trainer._validate()
        assert trainer.step == step
        assert trainer.best_step == best
    assert trainer.best_loss == loss
    trainer.best_loss = 0.0
    take(trainer, 1)
    trainer._validate()
    assert trainer.best_step == 2


def test_metrics_count_the_operations_of_both_lengths(tmp_path: Path) -> None:
    job = make_job(tmp_path, half_context=0.75, steps=8)
    with training_run(job, tmp_path / "logs", 60) as result:
        pass
    half = dataclasses.replace(CONFIG, context=16).training_flops
    assert result.metrics["flops"] == 256 * (6 * half + 2 * CONFIG.training_flops)


def test_a_text_that_is_too_short_for_the_last_steps_is_an_error_before_the_first(
    tmp_path: Path,
) -> None:
    job = make_job(tmp_path, half_context=0.5)
    tokens = job.train.tokens[:30]
    short = dataclasses.replace(job, train=dataclasses.replace(job.train, tokens=tokens))
    with pytest.raises(UserError, match=r"has 30 tokens, fewer than one window of 32 \+ 1"):
        Trainer(short, tmp_path, None)


def test_an_odd_context_is_an_error() -> None:
    raw = params.read("params.yaml")
    raw["shape"]["context"] = 255
    raw["train"] |= {"tokens_per_step": 255 * 8, "half_context": 0.85}
    raw["evaluation"]["speed_tokens"] = 100
    with pytest.raises(UserError, match=r"train\.half_context is 0\.85: use a shape\.context"):
        params.parse(raw)
    raw["train"]["half_context"] = 0.0
    assert params.parse(raw).size.context == 255


def test_an_odd_context_of_the_teachers_is_an_error() -> None:
    raw = params.read("params.yaml")
    raw |= {"model": "7m", "recipe": "distill"}
    raw["recipes"]["distill"]["defaults"]["half_context"] = 0.5
    raw["recipes"]["distill"]["sizes"]["2m"]["tokens_per_step"] = 255 * 4
    raw["sizes"]["2m"]["context"] = 255
    named = r"half_context of the teachers, 2m, is 0\.5: use a sizes\.2m\.context that is even"
    with pytest.raises(UserError, match=named):
        params.parse(raw)


def test_operations_are_those_of_whole_steps() -> None:
    """Of five steps, 0.85 of which are to have half of the context, four have it."""
    recipe = dataclasses.replace(RECIPE, half_context=0.85, steps=5)
    half = dataclasses.replace(CONFIG, context=16).training_flops
    assert 5 * recipe.training_flops(CONFIG) == pytest.approx(4 * half + CONFIG.training_flops)
