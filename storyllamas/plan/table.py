"""The table and the JSON of `storyllamas plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storyllamas.plan.estimate import Estimate
from storyllamas.plan.loss import Range
from storyllamas.plan.measure import Machine
from storyllamas.rounding import integer, six_digits


@dataclass(frozen=True)
class Row:
    """A size of the table.

    Attributes:
        size: key of `sizes` in params.yaml.
        steps: optimizer steps.
        tokens: tokens that it learns from.
        compiled: whether its steps are compiled.
        in_c: whether they are C code.
        estimate: what it costs.
        scaled_from: the size that was measured in place of this one; "": this one was.
        loss: expected loss, or why that is not known.
    """

    size: str
    steps: int
    tokens: int
    compiled: bool
    in_c: bool
    estimate: Estimate
    scaled_from: str
    loss: Range | str


@dataclass(frozen=True)
class Plan:
    """All that is printed.

    Attributes:
        recipe: key of `recipes` in params.yaml.
        chosen: the size that params.yaml names.
        machine: where it was measured.
        seconds: time that measuring took.
        rows: one for each size.
        notes: sentences below the table.
    """

    recipe: str
    chosen: str
    machine: Machine
    seconds: float
    rows: Sequence[Row]
    notes: Sequence[str]


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the values as they are, with six digits."""
    values: dict[str, Any] = six_digits(dataclasses.asdict(plan))
    values["rows"] = [six_digits(dataclasses.asdict(row)) for row in plan.rows]
    values["notes"] = list(plan.notes)
    return values


def as_text(plan: Plan) -> str:
    """Return the table with its heading and notes."""
    machine = plan.machine
    kinds = {row.compiled for row in plan.rows}
    how = (
        "compiled"
        if kinds == {True}
        else "uncompiled"
        if kinds == {False}
        else "long ones compiled"
    )
    heading = (
        f"recipe {plan.recipe} on {machine.name}: {machine.precision}, {machine.threads} threads, "
        f"{how}; measured in {plan.seconds:.0f} s"
    )
    head = ["size", "steps", "tokens", "tokens/s", "time", "memory", "disk"]
    has_energy = any(row.estimate.watt_hours for row in plan.rows)
    has_loss = any(isinstance(row.loss, Range) for row in plan.rows)
    head += ["energy"] * has_energy + ["loss"] * has_loss
    cells = [head, *(_cells(row, plan.chosen, has_energy, has_loss) for row in plan.rows)]
    return "\n".join([heading, "", *_aligned(cells), "", *plan.notes])


def _cells(row: Row, chosen: str, has_energy: bool, has_loss: bool) -> list[str]:
    name = f"{row.size} *" if row.size == chosen else row.size
    cells = [name, f"{row.steps:,}", _short(row.tokens)]
    found = row.estimate
    cells += [
        f"{integer(found.tokens_per_second):,}",
        duration(found.seconds),
        _bytes(found.memory_bytes),
        _bytes(found.disk_bytes),
    ]
    if has_energy:
        hours = found.watt_hours
        cells.append("" if hours is None else f"{hours / 1000:.3g} kWh")
    if has_loss:
        cells.append(_loss(row.loss))
    return cells


def _loss(found: Range | str) -> str:
    if isinstance(found, str):
        return found
    return f"{found.loss:.3f} ({found.low:.3f}–{found.high:.3f})"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with the first column at the left and the others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = row
        columns = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"  {first.ljust(widths[0])}", *columns]).rstrip())
    return lines


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, length in (("days", 172_800), ("h", 5400), ("min", 90)):
        if seconds >= length:
            divisor = {"days": 86_400, "h": 3600, "min": 60}[unit]
            return f"{seconds / divisor:.1f} {unit}"
    return f"{seconds:.0f} s"


def _short(tokens: int) -> str:
    for letter, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= unit:
            return f"{tokens / unit:.3g} {letter}"
    return str(tokens)


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
