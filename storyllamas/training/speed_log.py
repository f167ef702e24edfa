"""The measured speed and memory of the training runs of this project, for `storyllamas plan`.

Each run appends a line of JSON to speeds.jsonl in the state folder.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from storyllamas import workdir
from storyllamas.cpuinfo import field
from storyllamas.rounding import decimals, integer, six_digits
from storyllamas.training.metrics import matmul_peak, peak_memory_bytes

if TYPE_CHECKING:
    from storyllamas.training.loop import Trainer

MIN_SECONDS = 30.0
"""Shorter runs are not recorded: their speed says little about a long run."""


@dataclass(frozen=True)
class Speed:
    """The speed of a run, or of the part of it that one process took.

    Attributes:
        machine: the processor or GPU, and the version of PyTorch.
        settings: what decides the speed besides the model and the recipe, see `settings`.
        config: fields of `ModelConfig`.
        recipe: fields of `Recipe`, with the micro-batch in use.
        steps: steps taken.
        seconds: their time, with validations and checkpoints, without the compilation.
        tokens_per_second: speed.
        peak_memory_bytes: largest memory in use.
        peak_flops_per_second: speed of matrix products of one process right after.
    """

    machine: str
    settings: dict[str, Any]
    config: dict[str, Any]
    recipe: dict[str, Any]
    steps: int
    seconds: float
    tokens_per_second: int
    peak_memory_bytes: int
    peak_flops_per_second: float


def path() -> Path:
    """Return the file; DVC's temporary workspaces share that of their project."""
    return workdir.project() / "speeds.jsonl"


def read(file: Path) -> list[Speed]:
    """Return the recorded speeds, oldest first; skip lines that another version has written."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, TypeError):
            found.append(Speed(**json.loads(line)))
    return found


@contextmanager
def recorded(trainer: Trainer) -> Iterator[None]:
    """Record the speed of the steps that the body takes, also if a signal stops it."""
    step, started = trainer.step, time.monotonic()
    try:
        yield
    finally:
        steps, seconds = trainer.step - step, time.monotonic() - started
        if trainer.ranks.first and steps and seconds >= MIN_SECONDS:
            with suppress(OSError):  # training does not depend on it
                _append(_speed(trainer, steps, seconds))


def _append(speed: Speed) -> None:
    path().parent.mkdir(parents=True, exist_ok=True)
    with path().open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(speed)) + "\n")


def _speed(trainer: Trainer, steps: int, seconds: float) -> Speed:
    job = trainer.job
    recipe = dataclasses.replace(job.recipe, micro_batch=trainer.micro_batch.size)
    where = job.device
    return Speed(
        machine=machine(where.name),
        settings=settings(
            where.name, where.precision, where.threads, where.compiled, trainer.is_in_c
        )
        | {"processes": trainer.ranks.world_size},
        config=dataclasses.asdict(job.config),
        recipe=dataclasses.asdict(recipe),
        steps=steps,
        seconds=decimals(seconds, 1),
        tokens_per_second=integer(steps * recipe.tokens_per_step / seconds),
        peak_memory_bytes=max(trainer.peak_memory_bytes, peak_memory_bytes(where.name)),
        peak_flops_per_second=six_digits(matmul_peak(where.name, where.precision)),
    )


def settings(
    device: str, precision: str, threads: int, compiled: bool, in_c: bool
) -> dict[str, Any]:
    """Return the settings of a run in one process that decide its speed."""
    return {
        "device": device,
        "precision": precision,
        "threads": threads,
        "compiled": compiled,
        "in_c": in_c,
        "processes": 1,
    }


def machine(device: str) -> str:
    """Return the name of the GPU, or of the processor with its instruction set, and PyTorch's."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return f"{name}, PyTorch {torch.__version__}"


def _processor() -> str:
    """Return the name of the processor and of the best instruction set that PyTorch uses."""
    name = field("model name") or platform.processor() or platform.machine()
    # Clouds give processors of different generations the same name.
    extras = {
        "AMX": torch.cpu._is_amx_tile_supported(),
        "AVX-512 BF16": torch.cpu._is_avx512_bf16_supported(),
    }
    best = next((extra for extra, found in extras.items() if found), "")
    return ", ".join(filter(None, [name, torch.backends.cpu.get_cpu_capability(), best]))
