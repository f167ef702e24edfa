"""A small training run in a folder of its own; tests start it as a process and kill it.

It stops itself where a test is to act on it: on a busy machine it could otherwise finish before.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from storyllamas import token_file
from storyllamas.config import ModelConfig
from storyllamas.errors import exit_on_user_error
from storyllamas.params import Compute, Recipe
from storyllamas.training import device
from storyllamas.training.checkpoints import Checkpoint, CheckpointFolder
from storyllamas.training.job import Job
from storyllamas.training.loop import training_run
from storyllamas.training.trained_model import save_model

CONFIG = ModelConfig(
    dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=48, context=32, vocab_size=300
)
RECIPE = Recipe(
    tokens_per_step=256,
    micro_batch=4,
    steps=40,
    optimizer="muon",
    learning_rate=5e-3,
    embedding_lr_scale=0.5,
    weight_decay=0.1,
    dropout=0.1,
    zero_init_residual=True,
    beta1=0.9,
    beta2=0.95,
    muon_beta2=0.95,
    warmup=0.1,
    stable=0.2,
    schedule="linear",
    final_lr_ratio=0.05,
    grad_clip=1.0,
    eval_every=7,
    eval_sequences=6,
)
DIGEST = bytes(range(32))


def make_checkpoint(step: int, size: int = 1000) -> Checkpoint:
    """Return a checkpoint whose values depend on the step."""
    tensors = {"x": torch.full((size,), float(step)), "y": torch.tensor(float(step))}
    return Checkpoint(step, tensors, {"step": step, "loss": 1 / 3})


def stop_after(step: int) -> None:
    """Send SIGSTOP to this process once the checkpoint of `step` or a later one is saved."""
    save = CheckpointFolder.save

    def save_and_stop(folder: CheckpointFolder, checkpoint: Checkpoint) -> None:
        save(folder, checkpoint)
        if checkpoint.step >= step:
            CheckpointFolder.save = save  # type: ignore[method-assign]
            os.kill(os.getpid(), signal.SIGSTOP)

    CheckpointFolder.save = save_and_stop  # type: ignore[method-assign]


def make_tokens(path: Path, seed: int, digest: bytes = DIGEST) -> token_file.TokenFile:
    """Write 120 counting stories: each token is the one before it plus the story's step."""
    random = np.random.default_rng(seed)
    with token_file.write(path, CONFIG.vocab_size, digest) as writer:
        for _ in range(120):
            start, step = random.integers(0, 297), random.integers(1, 5)
            story = 3 + (start + step * np.arange(30)) % 297
            framed = np.array([1, *story, 2], np.uint16)
            writer.append(framed, 1, 30)
    return token_file.read(path, digest)


def make_job(folder: Path, config: ModelConfig = CONFIG, **changes: object) -> Job:
    """Return the job of a folder, with changes of its recipe."""
    return Job(
        config=config,
        recipe=dataclasses.replace(RECIPE, **changes),
        seed=3,
        train=make_tokens(folder / "train.bin", 0),
        valid=make_tokens(folder / "valid.bin", 1),
        device=device.choose(Compute("cpu", "float32", 1, "auto", 1, 1)),
    )


def train(folder: Path, **changes: object) -> None:
    """Train in a folder, with changes of the recipe, and save a checkpoint after each step."""
    job = make_job(folder, **changes)
    with training_run(job, folder / "logs", checkpoint_seconds=0) as result:
        save_model(folder / "model", job.config, result.tensors, {})


@exit_on_user_error
def main() -> None:
    """Train in the folder of the first argument; a second one is a step for `stop_after`."""
    for step in sys.argv[2:]:
        stop_after(int(step))
    train(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
