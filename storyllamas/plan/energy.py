"""The power of the processor, from the counters that Linux has for some of them (RAPL)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass
class Meter:
    """A measurement of the power of all processors, with what else runs on them.

    Attributes:
        watts: the mean power; None: the system does not tell.
    """

    watts: float | None = None


@contextmanager
def measured() -> Iterator[Meter]:
    """Measure the power while the body runs."""
    meter = Meter()
    before, started = _counters(), time.monotonic()
    yield meter
    after, seconds = _counters(), time.monotonic() - started
    if before and before.keys() == after.keys() and seconds:
        joules = sum((after[name] - before[name]) % _range(name) for name in after) / 1e6
        meter.watts = joules / seconds


def _counters() -> dict[str, int]:
    """Return the microjoules that each package has taken; empty if they cannot be read."""
    try:
        return {
            folder.name: int((folder / "energy_uj").read_text())
            for folder in sorted(POWERCAP.glob("intel-rapl:*"))
            if folder.name.count(":") == 1  # a package, not a part of it
        }
    except (OSError, ValueError):  # often only the administrator may read them
        return {}


def _range(name: str) -> int:
    """Return the value from which a counter starts again at 0."""
    try:
        return int((POWERCAP / name / "max_energy_range_uj").read_text()) + 1
    except (OSError, ValueError):
        return 1 << 62
