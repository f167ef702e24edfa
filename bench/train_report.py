"""Write a training page in bench/results from the measurements of `make bench-train`."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import number, table
from bench.train_worker import OURS, PLAIN
from storyllamas.atomic import write_json

PRECISIONS = ("bfloat16", "float32")
TRAINING_SUFFIX = "-training"
"""Ends the file names of these pages, before ".md"."""
SEQUENCES, TOKENS_PER_SECOND, SPEED_UP = "sequences a step", "tokens a second", "speed-up"
"""Heads of columns."""


@dataclass(frozen=True)
class Case:
    """A size and a batch size, the same for all loops.

    Attributes:
        size: of the model.
        batch: sequences a step.
        micro_batch: sequences a forward pass.
        recipes: recipes that train this size with this batch size.
    """

    size: str
    batch: int
    micro_batch: int
    recipes: list[str]

    @property
    def key(self) -> tuple[str, int, int]:
        """Return a key that is unique to the case."""
        return self.size, self.batch, self.micro_batch


@dataclass
class Row:
    """One loop.

    Attributes:
        loop: name.
        about: precision, optimizer, compiled or eager.
        start: seconds before the first step, imports and compilation included.
        speeds: tokens a second of each round.
        peak_bytes: peak memory.
        failure: why the loop stopped, such as "SIGILL"; "" if it did not.
    """

    loop: str
    about: str
    start: float
    speeds: list[float]
    peak_bytes: int
    failure: str = ""

    @property
    def speed(self) -> float:
        """Return median tokens a second, or 0 if the loop failed."""
        return 0.0 if self.failure else median(self.speeds)


@dataclass(frozen=True)
class Measured:
    """The measurements of all loops in one case.

    Attributes:
        case: size and batch size.
        flops: floating-point operations to train on one token.
        peaks: operations a second of a matrix product, by precision of `PRECISIONS`.
        rows: one for each loop.
        date: of the measurement.
    """

    case: Case
    flops: int
    peaks: dict[str, float]
    rows: list[Row]
    date: str


def write(path: Path, measured: Sequence[Measured]) -> None:
    """Write the measurements to a JSON file."""
    write_json(path, {"measured": [asdict(one) for one in measured]})


def read(path: Path) -> list[Measured]:
    """Read the measurements of a JSON file; return [] if it does not exist."""
    if not path.exists():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["measured"]
    return [
        Measured(
            Case(**one["case"]),
            one["flops"],
            one["peaks"],
            [Row(**row) for row in one["rows"]],
            one["date"],
        )
        for one in found
    ]


def markdown(measured: Sequence[Measured], title: str, machine: str) -> str:
    """Return the page as Markdown.

    Args:
        measured: the measurements.
        title: name of the GPU or the processor.
        machine: the same with threads and versions.
    """
    dates = sorted(one.date for one in measured)
    precisions = [name for name in PRECISIONS if all(name in one.peaks for one in measured)]
    peaks = {name: max(one.peaks[name] for one in measured) for name in precisions}
    rounds = min(len(row.speeds) for one in measured for row in one.rows if not row.failure)
    abouts = dict.fromkeys((r.loop, r.about) for one in measured for r in one.rows if r.about)
    lines = [
        f"# Speed of training on {title}",
        "",
        "Written by `make bench-train`. Speeds are tokens a second, the median of at least "
        f"{rounds} interleaved round{'s' * (rounds > 1)} after two warm-up steps. The range in "
        "brackets goes from the slowest to the fastest round.",
        "",
        f"- Date: {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}",
        f"- Machine: {machine}, {platform.system()} {platform.release()}",
        "- Peak of square matrix products: "
        + ", ".join(f"{peaks[name] / 1e9:,.0f} GFLOP/s in {name}" for name in precisions),
        *(f"- {loop}: {about}" for loop, about in abouts),
        "- The plain loop is [plain_loop.py](../plain_loop.py), a naive PyTorch loop: explicit "
        "mask, separate matrices, nothing fused or compiled, default settings",
        "- Utilization counts 6 operations for each weight of a matrix, and 12 for each layer, "
        "query channel and position of the context",
        "- A sequence is as long as the context of the model",
        "- 2 × 8 sequences a step: two micro-batches of 8 sequences. The recipes "
        "with this batch size are in brackets",
        "- Start: seconds before the first step, imports and compilation included",
        "",
        table(
            [
                *("size", SEQUENCES, "loop", TOKENS_PER_SECOND, SPEED_UP),
                *(f"utilization ({name})" for name in precisions),
                *("peak memory, MB", "start, s"),
            ],
            [_cells(one, row, peaks) for one in measured for row in one.rows],
        ),
    ]
    return "\n".join(lines) + "\n"


def _cells(one: Measured, row: Row, peaks: dict[str, float]) -> list[str]:
    plain = next((each.speed for each in one.rows if each.loop == PLAIN), 0.0)
    passes = one.case.batch // one.case.micro_batch
    sequences = f"{passes} × {one.case.micro_batch}" if passes > 1 else f"{one.case.batch}"
    recipes = f" ({', '.join(one.case.recipes)})" if one.case.recipes else ""
    name = f"**{row.loop}**" if row.loop == OURS else row.loop
    where = [one.case.size, f"{sequences}{recipes}", name]
    if row.failure:
        return [*where, row.failure, *[""] * (3 + len(peaks))]
    spread = f"{number(min(row.speeds))}–{number(max(row.speeds))}"
    return [
        *where,
        f"{number(row.speed)} ({spread})",
        f"{row.speed / plain:.2f} ×" if plain else "",
        *(f"{row.speed * one.flops / peak:.0%}" for peak in peaks.values()),
        f"{row.peak_bytes / 1e6:,.0f}",
        f"{row.start:.1f}",
    ]
