"""What metrics/train.json says of a run, beside its losses."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from storyllamas.config import ModelConfig
from storyllamas.rounding import six_digits
from storyllamas.training.device import Device


def costs(config: ModelConfig, tokens: int, seconds: float) -> dict[str, Any]:
    """What learning from `tokens` in `seconds` comes to.

    Validations and checkpoints take of the seconds, and count as no operations.
    """
    return {
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds),
        "flops_per_second": six_digits(tokens * config.training_flops / seconds),
    }


def matmul_utilization(
    flops_per_second: float, device: Device, processes: int = 1
) -> dict[str, Any]:
    """How much of the machine a run used: its operations over those of large matrix products.

    The latter are measured on this process's share of the machine, in the precision of the run.
    """
    peak = processes * matmul_peak(device.name, device.precision)
    return {
        "peak_flops_per_second": six_digits(peak),
        "matmul_utilization": round(flops_per_second / peak, 4),
    }


SECONDS = 0.3


def memory_bytes(device: str) -> int:
    """Memory in use: of the GPU's tensors on cuda, otherwise resident of this process."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes(device: str) -> int:
    """The most memory that was in use so far, as `memory_bytes` counts it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def matmul_peak(device: str, precision: str, seconds: float = SECONDS) -> float:
    """Floating-point operations a second of a large square matrix product, the fastest of some.

    It is what a training on this machine could reach if it were nothing but such products, with the
    threads that torch has; taken anew each time, since a machine is not always equally fast.

    Args:
        device: cpu, cuda or mps.
        precision: float32 or bfloat16.
        seconds: how long to try.
    """
    side = 2048 if device == "cpu" else 8192
    random = torch.Generator().manual_seed(0)
    draw = torch.randn(side, side, generator=random).to(device, getattr(torch, precision))
    best = float("inf")
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or best == float("inf"):
        begun = time.perf_counter()
        product = draw @ draw
        product[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best
