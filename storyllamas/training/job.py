"""What decides a training run, and what it results in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storyllamas.adapter import Adapter
from storyllamas.config import ModelConfig
from storyllamas.params import Recipe
from storyllamas.token_file import TokenFile
from storyllamas.training.device import Device
from storyllamas.training.fused import SOURCES as FUSED_SOURCES
from storyllamas.training.source_files import imported_files
from storyllamas.training.start import Start
from storyllamas.training.teacher import Teacher


@dataclass(frozen=True)
class Job:
    """Everything that decides the result of a training run.

    Attributes:
        config: shape of the model.
        recipe: hyperparameters.
        seed: seed of the initial weights, the batches and dropout, 0 … 2^32 - 1.
        train: tokens to learn from, without those that it holds out.
        valid: tokens to validate on, of the same tokenizer.
        device: device, precision and threads.
        start: weights to start from; None: random ones.
        teacher: models whose probabilities are the targets; None: the next tokens are.
    """

    config: ModelConfig
    recipe: Recipe
    seed: int
    train: TokenFile
    valid: TokenFile
    device: Device
    start: Start | None = None
    teacher: Teacher | None = None

    def key(self) -> str:
        """Return a digest of the job, the code and the libraries, as 16 hexadecimal digits.

        The number of threads is left out, so that a run resumes with another number of processes.
        """
        left_out = ("threads", "must_compile")
        device = {k: v for k, v in dataclasses.asdict(self.device).items() if k not in left_out}
        values = {
            "config": dataclasses.asdict(self.config),
            "recipe": dataclasses.asdict(self.recipe),
            "seed": self.seed,
            "data": [_file_digest(self.train.path), _file_digest(self.valid.path)],
            "held_out": self.train.held_out,
            "device": device,
            "start": self.start and self.start.key(),
            "teacher": self.teacher and self.teacher.key(),
            "machine": [platform.machine(), _processor(self.device)],
            "libraries": [np.__version__, torch.__version__],
            "code": [_file_digest(path) for path in source_files()],
        }
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_files() -> list[Path]:
    """Return the files of this package that decide a run: a change in one is another job."""
    package = Path(__file__).parent.parent
    # How files are opened and written, errors, and parameters, whose values are in the key.
    names = ("__init__", "atomic", "errors", "regular_file", "workdir")
    skipped = [*(package / f"{name}.py" for name in names), *(package / "params").glob("*.py")]
    loop = Path(__file__).with_name("loop.py")
    return [*imported_files(loop, package, skipped), *FUSED_SOURCES]


@dataclass(frozen=True)
class Result:
    """The result of a finished run.

    Attributes:
        tensors: the weights with the lowest validation loss, on the CPU.
        metrics: `metrics.final_metrics`, equal for bit-identical runs.
        costs: `metrics.final_costs`, which differ between any two runs.
        adapter: the LoRA adapter, which `tensors` include; None: LoRA is off.
        stop_status: exit status of a signal that came in the last step; 0: none came.
    """

    tensors: dict[str, Tensor]
    metrics: dict[str, Any]
    costs: dict[str, Any]
    adapter: Adapter | None = None
    stop_status: int = 0


def _processor(device: Device) -> str:
    """Return what decides the order of sums: the GPU, or the instruction set of the CPU."""
    if device.name == "cuda":
        return torch.cuda.get_device_name()
    return torch.backends.cpu.get_cpu_capability()


def _file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, computed in bounded memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
