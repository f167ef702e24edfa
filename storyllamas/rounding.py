"""Rounding of the numbers that metrics, logs, tables and progress bars show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def six_digits(value: Any) -> Any:
    """Round floats to six significant digits, in nested mappings too; keep other values."""
    if isinstance(value, Mapping):
        return {key: six_digits(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def decimals(value: float, places: int) -> float:
    """Round to a number of decimal places."""
    return round(float(value), places)


def integer(value: float) -> int:
    """Round to the nearest integer, ties to even."""
    return round(float(value))


def shortest_float32(value: float) -> float:
    """Return the shortest decimal that reads back as the same 32-bit float."""
    return float(str(np.float32(value)))
