"""Test the programs, limits and tables of `make bench`; speed is not tested."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_files import BOS, random_tensors, small_config, write

from bench import build, kernels, limits, measure, plot, report
from bench.engines import OURS, Engine, Worker
from bench.limits import Limit, Machine
from bench.models import Model
from storyllamas.model import Llama

CONFIG = small_config(dim=32, heads=4, kv_heads=4, head_dim=8, hidden=48, context=160)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build the programs in a temporary folder; skip the tests if there is no compiler."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    before, build.BUILD = build.BUILD, tmp_path_factory.mktemp("bench")
    yield build.BUILD
    build.BUILD = before


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    for weight_type in ("f32", "q8"):
        write(
            folder / f"{weight_type}.slm", CONFIG, random_tensors(CONFIG), weight_type=weight_type
        )
    return Model("tiny", CONFIG, "random", folder)


@pytest.fixture(scope="module")
def engines(folder: Path) -> list[Engine]:
    program = build.engine_worker()

    def engine(name: str, weights: str, bits: int, missing: str = "") -> Engine:
        return Engine(
            *(name, weights, weights, bits, (1, 2)),
            lambda path, threads: [str(program), f"{path!s}.slm", str(threads)],
            missing,
        )

    return [
        engine(OURS, "f32", 32),
        engine(OURS, "q8", 8),
        engine("llama.cpp", "f32", 32),
        engine("llama2.c", "int8", 8, "set LLAMA2C"),
    ]


def test_worker_generates_the_greedy_tokens_of_pytorch(model: Model, engines: list[Engine]) -> None:
    llama = Llama(CONFIG).eval()
    tensors = {name: torch.tensor(values) for name, values in random_tensors(CONFIG).items()}
    llama.load_state_dict(tensors)
    ids, steps = [BOS], 12
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(llama(torch.tensor([ids]))[0, -1].argmax()))
    with Worker(engines[0].command(model.folder / "f32", 1)) as worker:
        worker.pause()
        worker.resume()
        assert worker.ask(f"greedy {steps}") == {"ids": ids[1:]}
        assert worker.ask("story 8 7")["seconds"] > 0
        assert worker.ask("prompt 16 1")["seconds"] > 0
        assert isinstance(worker.ask("about")["about"], str)


def test_limits_of_this_machine() -> None:
    found = limits.measured()
    assert {row["threads"] for row in found["bandwidth"]} >= {1}
    assert all(1e8 < row["bytes"] < 1e13 for row in found["bandwidth"])
    assert all(1e8 < row["operations"] < 1e14 for row in found["peak"])
    assert Machine(found).bandwidth(3, 1) > 0


def test_start_and_peak_of_a_program() -> None:
    output = subprocess.run([build.start(), "/bin/sh", "-c", "echo a"], capture_output=True)
    found = json.loads(output.stdout)
    assert 0 < found["first_byte"] < 10
    assert 1e5 < found["peak_bytes"] < 1e8


def test_every_kernel_of_every_set(folder: Path) -> None:
    program = build.engine_kernels()
    sets = {run["set"] for run in kernels.measured(program, "vectors", 32, 48, 300)}
    assert "scalar" in sets
    table = kernels.matrix_table(program, MACHINE, small_config(), "q4")
    assert all(f"| {each} |" in table for each in sets)
    for weight_type in ("f32", "f16", "q8"):
        runs = kernels.measured(program, "matrix", weight_type, 48, 16, 8, 10_000)
        assert [run["n"] for run in runs] == [1, 8, 32] * len(sets)
    with pytest.raises(subprocess.CalledProcessError):
        kernels.measured(program, "matrix", "q3", 16, 16, 0, 0)


MACHINE = Machine(
    {
        "bandwidth": [
            {"threads": threads, "pages": pages, "megabytes": size, "bytes": threads * speed}
            for pages, speeds in (("4 KB", (100e9, 10e9)), ("2 MB", (80e9, 20e9)))
            for size, speed in zip((1, 100), speeds, strict=True)
            for threads in (1, 2)
        ],
        "peak": [
            {"threads": threads, "type": type, "operations": threads * speed}
            for type, speed in (("f32", 1e9), ("int8", 4e9))
            for threads in (1, 2)
        ],
    }
)


def test_bandwidth_is_interpolated_between_measured_sizes() -> None:
    assert MACHINE.bandwidth(1, 1) == MACHINE.bandwidth(0.1, 1) == 100e9
    assert MACHINE.bandwidth(10, 1) == pytest.approx(60e9)
    assert MACHINE.bandwidth(500, 2) == 40e9


def test_limits_count_every_weight_and_position() -> None:
    config = small_config(dim=2, layers=3, heads=2, kv_heads=1, head_dim=4, hidden=5, vocab_size=7)
    limit = Limit(MACHINE, config, "f32", weight_bytes=1000, threads=1)
    cached = 3 * 2 * 1 * 4 * 4  # bytes a position: layers, key and value, heads, width, float
    assert limit.sequence(9) == pytest.approx((1000 + 5 * cached) / 100e9)
    layer = 2 * (2 + 2 * 1) * 4 + 2 * 4 * 2 + 3 * 2 * 5
    pairs = 1 + 2 + 3
    operations = 2 * (3 * 3 * layer + 2 * 7) + pairs * 3 * 2 * 2 * 2 * 4
    assert limit.prompt(3) == pytest.approx(operations / 1e9)
    operations = 2 * 10 * (3 * layer + 2 * 7)
    assert limit.batch(10, 9) == pytest.approx(operations / 1e9 + 10 * 5 * cached / 100e9)


def test_rows_of_a_table_have_equal_numbers_of_cells(
    model: Model, engines: list[Engine], tmp_path: Path
) -> None:
    there = [engine for engine in engines if not engine.missing]
    # The llama.cpp of this test is StoryLlamas' own worker.
    results = report.Results(
        MACHINE,
        engines,
        {"tiny": model},
        {"tiny": measure.measure(model, there, rounds=2)},
        {"tiny": measure.greedy(model, there)},
        start=[measure.Start("a", 0.001, 10**6), measure.Start("nothing", 0.001, 10**6)],
        memory=[measure.Start("a", 0.001, 10**6)],
        rounds=2,
    )
    text = report.markdown(results)
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 7
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "llama2.c int8 was not measured: set LLAMA2C" in text
    assert report.deviating(results) == []
    assert results.best("tiny", engines[0], "story") > 0
    plot.draw(results, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000
