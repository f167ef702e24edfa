"""`make bench-kernels`: measure each kernel on one thread, compared with the machine's limits."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from bench import build, limits
from bench.limits import ARITHMETIC, Machine
from bench.models import shape
from bench.report import table
from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.errors import exit_on_user_error
from storyllamas.slm.encoding import GROUP_SIZES, Encoding, storage
from storyllamas.slm.tiles import tensor_bytes

ROWS = (1, 8, 32)
"""Rows of activations that each matrix is multiplied by."""


class Matrix(NamedTuple):
    """A matrix of a model: rows, columns, encoding, and the bytes of all the model's tensors."""

    name: str
    rows: int
    columns: int
    encoding: Encoding
    model_bytes: int


def matrices(config: ModelConfig, weight_type: str) -> list[Matrix]:
    """Return one matrix of each shape and role, encoded as in a weight file of the type."""
    stored, shapes = storage(weight_type), tensor_shapes(config)
    total = sum(tensor_bytes(shape, stored.of(name)) for name, shape in shapes.items())
    return [
        Matrix(
            name.removesuffix(".weight").removeprefix("layers.0."), *shape, stored.of(name), total
        )
        for name, shape in shapes.items()
        if len(shape) == 2 and ("layers." not in name or name.startswith("layers.0."))
    ]


def measured(program: Path, *arguments: object) -> list[dict[str, Any]]:
    """Run kernels.c and return its JSON lines."""
    command = [str(program), *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def matrix_table(program: Path, machine: Machine, config: ModelConfig, weight_type: str) -> str:
    """Format a table of matrices and kernel sets, for 1, 8 and 32 rows of activations."""
    rows = [
        row
        for matrix in matrices(config, weight_type)
        if matrix.encoding.type.label == weight_type
        for row in _matrix_rows(program, machine, weight_type, matrix)
    ]
    return table(["matrix", "kernels", *(f"{n} row{'s' * (n > 1)}" for n in ROWS)], rows)


def _matrix_rows(
    program: Path, machine: Machine, weight_type: str, matrix: Matrix
) -> list[list[str]]:
    kind = [matrix.rows, matrix.columns, matrix.encoding.group_size, matrix.model_bytes]
    by_set: dict[str, dict[int, str]] = defaultdict(dict)
    for run in measured(program, "matrix", weight_type, *kind):
        by_set[run["set"]][run["n"]] = _matrix_cell(machine, weight_type, matrix, run)
    name = f"{matrix.name} [{matrix.rows}, {matrix.columns}]"
    return [[name, kernels, *(cells[n] for n in ROWS)] for kernels, cells in by_set.items()]


def _matrix_cell(machine: Machine, weight_type: str, matrix: Matrix, run: dict[str, Any]) -> str:
    """Format GB/s of weights or, if arithmetic is the limit, operations a second."""
    seconds, operations = run["seconds"], 2 * run["n"] * matrix.rows * matrix.columns
    reading = run["bytes"] / machine.bandwidth(matrix.model_bytes / 2**20, 1)
    computing = machine.compute_seconds(operations, ARITHMETIC[weight_type], 1)
    if reading > computing:
        return f"{run['bytes'] / seconds / 1e9:.1f} GB/s, {reading / seconds:.0%}"
    return f"{operations / seconds / 1e9:.0f} GOP/s, {computing / seconds:.0%}"


def vector_table(program: Path, config: ModelConfig) -> str:
    """Format a table of the kernels without weights, whose vectors are in the L1 cache."""
    by_kernel: dict[str, dict[str, str]] = defaultdict(dict)
    sets: dict[str, None] = {}
    for run in measured(program, "vectors", config.dim, config.hidden, config.vocab_size):
        sets[run["set"]] = None
        speed = f"{1e9 * run['seconds']:.0f} ns, {run['bytes'] / run['seconds'] / 1e9:.0f} GB/s"
        by_kernel[f"{run['kernel']} [{run['n']}]"][run["set"]] = speed
    rows = [[name, *(cells[each] for each in sets)] for name, cells in by_kernel.items()]
    return table(["kernel", *sets], rows)


@exit_on_user_error
def main() -> None:
    """Print the tables of each size."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--sizes", nargs="+", default=["2m", "7m", "30m"], help="keys of `sizes` in params.yaml"
    )
    sizes = parser.parse_args().sizes
    program, machine = build.engine_kernels(), Machine(limits.measured())
    print(
        "Copies of each matrix fill as much memory as the whole model. Percentages are of the "
        "limit:\nreading the weights or multiplying by them, whichever takes longer.\n"
    )
    for size in sizes:
        config = shape(size)
        for weight_type in GROUP_SIZES:
            text = matrix_table(program, machine, config, weight_type)
            print(f"{size}, {weight_type}\n\n{text}\n", flush=True)
        print(f"{size}, without weights\n\n{vector_table(program, config)}\n", flush=True)


if __name__ == "__main__":
    main()
