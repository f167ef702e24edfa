"""What metrics/train.json says of a run, beside its losses."""

from __future__ import annotations

import math
from typing import Any

from storyllamas.config import ModelConfig
from storyllamas.rounding import six_digits
from storyllamas.tokens import TokenFile
from storyllamas.training.device import Device
from storyllamas.training.machine import matmul_peak


def bits_per_byte(loss: float, data: TokenFile) -> float:
    """A loss in nats a token as bits for each UTF-8 byte of the stories, their framing included."""
    return loss / math.log(2) * len(data.tokens) / data.text_bytes


def costs(config: ModelConfig, tokens: int, seconds: float) -> dict[str, Any]:
    """What learning from `tokens` in `seconds` comes to.

    Validations and checkpoints take of the seconds, and count as no operations.
    """
    return {
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds),
        "flops_per_second": six_digits(tokens * config.training_flops / seconds),
    }


def utilization(flops_per_second: float, device: Device, processes: int = 1) -> dict[str, Any]:
    """How much of the machine a run used: its operations over those of large matrix products.

    The latter are measured on this process's share of the machine, in the precision of the run.
    """
    peak = processes * matmul_peak(device.name, device.precision)
    return {
        "peak_flops_per_second": six_digits(peak),
        "utilization": round(flops_per_second / peak, 4),
    }
