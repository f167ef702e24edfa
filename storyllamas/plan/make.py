"""Make a plan: measure this machine and estimate all sizes of a recipe."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyllamas.errors import UserError

if TYPE_CHECKING:
    from storyllamas.params import Params
    from storyllamas.plan.loss import Run
    from storyllamas.plan.measure import Machine, Measured
    from storyllamas.plan.table import Plan, Row
    from storyllamas.training.speed_log import Speed

SECONDS = 20.0
"""Largest time of the whole plan."""

LAST_SECONDS = 2.0
"""Part of it that is kept for the fit and the table."""

PARAMS = "params.yaml"


def read_params(overrides: Sequence[str]) -> Any:
    """Return the content of params.yaml with overrides in DVC's syntax, not checked.

    Raises:
        UserError: an override is invalid.
    """
    from storyllamas import params

    raw = params.read(PARAMS)
    if not overrides:
        return raw
    from dvc.exceptions import InvalidArgumentError
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import apply_overrides

    for file in to_path_overrides(overrides):
        if file != PARAMS:
            raise UserError(f"-S changes {file}: give a key of {PARAMS}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PARAMS
        copy.write_bytes(Path(PARAMS).read_bytes())
        try:
            apply_overrides(copy, to_path_overrides(overrides)[PARAMS])
        except InvalidArgumentError as error:
            cause = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".")
            if unknown := re.fullmatch(r"Could not override '(.*)'", cause):
                raise UserError(f"-S {unknown[1]}=…: {PARAMS} has no such key") from None
            given = f"-S {' -S '.join(overrides)}"
            if cause.startswith("Error parsing override"):
                raise UserError(
                    f"{given} is not KEY=VALUE with a key of {PARAMS} whose names all begin with a "
                    "letter: give one, such as -S train.steps=500"
                ) from None
            raise UserError(f"{given}: {cause}") from None
        return params.read(copy)


def sizes_of(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the content of params.yaml for each size of the chosen recipe, the chosen size first.

    A size that the other values do not suit is left out.

    Raises:
        UserError: a value does not suit the chosen size.
    """
    from storyllamas import params

    chosen = params.parse(raw)
    names = [chosen.model, *raw["recipes"][chosen.recipe_name]["sizes"]]
    found = {}
    for name in dict.fromkeys(names):
        values = {**raw, "model": name}
        try:
            params.parse(values)
        except UserError:
            continue
        found[name] = values
    return found


class Measurement:
    """A process that measures sizes, so that this one can prepare meanwhile."""

    def __init__(self, sizes: Sequence[Mapping[str, Any]], until: float) -> None:
        """Start to measure.

        Args:
            sizes: content of params.yaml for each size, in the order of importance.
            until: time at which to end, as `time.time` counts.
        """
        from storyllamas.training import process_env

        self._process = subprocess.Popen(
            [sys.executable, "-m", "storyllamas.plan.measure"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **process_env.variables()},
            text=True,
        )
        self._has_expired = False
        self._timer = threading.Timer(max(0.0, until - time.time()), self._expire)
        self._timer.start()
        # The process ends a little earlier by itself, since a step may be slow.
        request = json.dumps({"until": until - 1, "sizes": list(sizes)})
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write(request)
            self._process.stdin.close()
        self._process.stdin = None

    def _expire(self) -> None:
        self._has_expired = True
        self._process.kill()

    def stop(self) -> None:
        """End the process."""
        self._timer.cancel()
        self._process.kill()

    def results(self) -> tuple[Machine, list[Measured]]:
        """Wait for the machine, and for the sizes that are measured in time, at least one.

        Raises:
            UserError: no size was measured.
            SystemExit: the process failed, and has printed why.
        """
        from storyllamas.plan.measure import Machine, Measured

        lines = self._process.communicate()[0].splitlines()
        if self._process.returncode and not self._has_expired:
            raise SystemExit(self._process.returncode)
        if len(lines) < 2:
            raise UserError(
                f"this machine is too busy to be measured within {SECONDS:.0f} s: try later"
            )
        first, *others = map(json.loads, lines)
        return Machine(**first), [Measured(**each) for each in others]


def make(overrides: Sequence[str], began: float | None = None) -> Plan:
    """Measure and estimate all sizes of the recipe.

    Args:
        overrides: values of `-S`.
        began: time from which `SECONDS` count, as `time.time` counts; None: now.
    """
    began = began or time.time()
    raw = sizes_of(read_params(overrides))
    measurement = Measurement(list(raw.values()), began + SECONDS - LAST_SECONDS)
    try:
        # What takes time is done while the other process starts.
        from storyllamas import params
        from storyllamas.plan import loss
        from storyllamas.training import speed_log

        sizes = {name: params.parse(values) for name, values in raw.items()}
        speeds = speed_log.read(speed_log.path())
        runs = loss.comparable_runs(sizes)
        machine, measured = measurement.results()
    finally:
        measurement.stop()
    rows = _rows(sizes, machine, measured, speeds, runs)
    return _plan(sizes, machine, rows, len(runs), time.time() - began)


def _rows(
    sizes: Mapping[str, Params],
    machine: Machine,
    measured: Sequence[Measured],
    speeds: Sequence[Speed],
    runs: Sequence[Run],
) -> list[Row]:
    """Return the rows of the table, the smallest size first."""
    from storyllamas.plan import loss
    from storyllamas.plan.estimate import Case, correction, estimate, scaled
    from storyllamas.plan.table import Row
    from storyllamas.training.device import is_compiled

    compiled = {
        name: is_compiled(chosen.compute, machine.device, chosen.training_flops)
        for name, chosen in sizes.items()
    }
    cases = {one.size: Case(sizes[one.size], one, compiled[one.size]) for one in measured}
    rows = []
    for name, chosen in sorted(sizes.items(), key=lambda item: item[1].model_config().parameters):
        case, source = cases.get(name), ""
        if case is None:
            largest = cases[measured[-1].size]
            case, source = Case(chosen, scaled(largest, chosen), compiled[name]), measured[-1].size
        if own := chosen.of_teacher():
            same = case if own.model == name else cases.get(own.model)
            of_teacher = same.measured if same else scaled(case, own)
            case = replace(case, teacher=Case(own, of_teacher, compiled[name]))
        factor = correction(case, list(cases.values()), machine, speeds)
        found = estimate(case, machine, *factor)
        recipe = chosen.recipe
        tokens = recipe.steps * recipe.tokens_per_step
        expected = loss.expected(runs, chosen.model_config().parameters, tokens)
        in_c = case.measured.is_in_c
        rows.append(Row(name, recipe.steps, tokens, compiled[name], in_c, found, source, expected))
    return rows


def _plan(
    sizes: Mapping[str, Params], machine: Machine, rows: Sequence[Row], runs: int, seconds: float
) -> Plan:
    from storyllamas.plan.table import Plan

    chosen = next(iter(sizes.values()))
    notes = _notes(rows, machine, runs)
    if chosen.recipe.teacher_folds:
        notes.insert(
            1,
            "With the training of the teachers, without the probabilities that they compute: these "
            "take 128 bytes for each token of the text.",
        )
    return Plan(chosen.recipe_name, chosen.model, machine, seconds, rows, notes)


def _notes(rows: Sequence[Row], machine: Machine, runs: int) -> list[str]:
    """Return what the table does not say, in sentences."""
    from storyllamas.plan.loss import Range

    found = [row.estimate for row in rows]
    notes = ["Disk is without the corpus; time is from the start of the training."]
    if any(each.runs for each in found):
        notes.append("Earlier runs on this machine correct the speed.")
    elif not all(row.in_c for row in rows):
        notes.append("No earlier run on this machine corrects the speed yet.")
    for row in rows:
        if row.scaled_from:
            notes.append(
                f"{row.size} is scaled from {row.scaled_from}: there was no time to measure it."
            )
    if machine.device != "cpu" and any(row.compiled for row in rows):
        notes.append("On this device a compiled run may be faster than its estimate.")
    if any(each.watt_hours is None for each in found):
        notes.append("Energy is left out: the system does not tell the power of the processor.")
    if not any(isinstance(row.loss, Range) for row in rows):
        why = "too few" if runs < 4 else "none near enough"
        notes.append(
            f"The expected loss is left out: {runs} of your runs compare with this recipe and "
            f"corpus, {why} for a fit."
        )
    return notes
