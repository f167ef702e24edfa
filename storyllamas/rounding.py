"""How numbers are written where people and `dvc diff` read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def six_digits(value: Any) -> Any:
    """Floats to six significant digits, in a nest of mappings too; other values as they are."""
    if isinstance(value, Mapping):
        return {key: six_digits(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def rounded(value: float) -> float:
    """A 32-bit float as the shortest decimal that reads back as the same 32-bit float."""
    return float(str(np.float32(value)))
