"""Every metric of training: rows of its logs, and the values of metrics/train.json.

To add a metric, change this file only.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from storyllamas.bits_per_byte import framed_bits_per_byte
from storyllamas.rounding import decimals, integer, six_digits
from storyllamas.training.csv_log import Row
from storyllamas.training.device import Device
from storyllamas.training.schedule import learning_rate

if TYPE_CHECKING:
    from storyllamas.training.job import Result
    from storyllamas.training.loop import Trainer

PEAK_SECONDS = 0.3
"""Time for which `matmul_peak` measures."""

# ---- Logs, in TensorBoard too --------------------------------------------------------------------

STEP_COLUMNS = ("step", "tokens", "loss", "learning_rate", "gradient_norm")
VALIDATION_COLUMNS = ("step", "tokens", "loss")


def step_row(trainer: Trainer, loss: float, norm: float) -> Row:
    """Return the row of steps.csv for the step just taken.

    Args:
        trainer: the run.
        loss: mean loss of the step's batch, in nats a token.
        norm: norm of the gradient before clipping.
    """
    return {
        "step": trainer.step,
        "tokens": trainer.tokens_seen,
        "loss": loss,
        "learning_rate": learning_rate(trainer.step - 1, trainer.job.recipe),
        "gradient_norm": norm,
    }


def validation_row(trainer: Trainer, loss: float) -> Row:
    """Return the row of validation.csv for a validation with this mean loss, in nats a token."""
    return {"step": trainer.step, "tokens": trainer.tokens_seen, "loss": loss}


# ---- metrics/train.json --------------------------------------------------------------------------


def final_metrics(trainer: Trainer) -> dict[str, Any]:
    """Return the metrics of a finished run that are equal for bit-identical runs."""
    job = trainer.job
    valid_tokens, valid_bytes = job.valid.predicted_tokens, job.valid.text_bytes
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return {
        "parameters": job.config.parameters,
        **({"trained_parameters": trained} if trained != job.config.parameters else {}),
        "steps": job.recipe.steps,
        "tokens": trainer.tokens_seen,
        "flops": round(trainer.tokens_seen * job.recipe.training_flops(job.config)),
        "train_loss": trainer.step_log.rows[-1]["loss"],
        "validation_loss": six_digits(trainer.best_loss),
        "framed_bits_per_byte": six_digits(
            framed_bits_per_byte(trainer.best_loss, valid_tokens, valid_bytes)
        ),
        "best_step": trainer.best_step,
        "device": job.device.name,
        "precision": job.device.precision,
        "threads": job.device.threads,
        "processes": trainer.ranks.world_size,
        "micro_batch": trainer.micro_batch.size,
        "compiled": job.device.compiled,
    }


def final_costs(trainer: Trainer) -> dict[str, Any]:
    """Return the time and memory of a finished run, which differ between any two runs."""
    job = trainer.job
    return {
        **costs(job.recipe.training_flops(job.config), trainer.tokens_seen, trainer.seconds),
        "seconds_in_checkpoints": decimals(trainer.seconds_in_checkpoints, 2),
        "peak_memory_bytes": trainer.peak_memory_bytes,
    }


def costs(flops: float, tokens: int, seconds: float) -> dict[str, Any]:
    """Return the time and speed of learning from `tokens` in `seconds`, with `flops` a token.

    The seconds include validations and checkpoints; the operations do not.
    """
    return {
        "seconds": decimals(seconds, 1),
        "tokens_per_second": integer(tokens / seconds),
        "flops_per_second": six_digits(tokens * flops / seconds),
    }


def train_json(result: Result, device: Device, processes: int) -> dict[str, Any]:
    """Return all metrics of a run, for metrics/train.json.

    Measure the peak of matrix products now, on this machine.
    """
    flops_per_second = result.costs["flops_per_second"]
    return {
        **result.metrics,
        **result.costs,
        **matmul_utilization(flops_per_second, device, processes),
    }


def matmul_utilization(
    flops_per_second: float, device: Device, processes: int = 1
) -> dict[str, Any]:
    """Return the speed of a run as a fraction of the measured peak of matrix products.

    The peak is measured with the threads and the precision of one process of the run, then
    multiplied by `processes`.
    """
    peak = processes * matmul_peak(device.name, device.precision)
    return {
        "peak_flops_per_second": six_digits(peak),
        "matmul_utilization": decimals(flops_per_second / peak, 4),
    }


# ---- Measurements --------------------------------------------------------------------------------


def memory_bytes(device: str) -> int:
    """Return the memory in use: tensors on the GPU for cuda, else the process's resident set."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes(device: str) -> int:
    """Return the largest value that `memory_bytes` had in this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def matmul_peak(device: str, precision: str, seconds: float = PEAK_SECONDS) -> float:
    """Return the operations a second of a large square matrix product, the fastest of several.

    A training run that was nothing but such products would reach it, with the threads that torch
    uses now. Each call measures, since the speed of a machine varies.

    Args:
        device: cpu, cuda or mps.
        precision: float32 or bfloat16.
        seconds: how long to measure.
    """
    side = 2048 if device == "cpu" else 8192
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(side, side, generator=random).to(device, getattr(torch, precision))
    best = float("inf")
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or best == float("inf"):
        started = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
