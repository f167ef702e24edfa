"""Progress and TensorBoard during a run, and its metrics afterwards."""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from training_job import CONFIG, make_job

from storyllamas.bits_per_byte import framed_bits_per_byte
from storyllamas.training import metrics, progress
from storyllamas.training.device import Device
from storyllamas.training.job import Result
from storyllamas.training.loop import training_run
from storyllamas.training.metrics import costs, matmul_utilization
from storyllamas.training.progress import Progress
from storyllamas.training.tensorboard import TensorBoardLog

STEP = {"loss": 2.5, "learning_rate": 1e-3, "gradient_norm": 0.5}


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "") -> Result:
    monkeypatch.setenv("STORYLLAMAS_STATE", str(folder / "state"))
    with training_run(make_job(folder, steps=8), folder / "logs", 1e9, name=name) as result:
        return result


def test_bit_identical_runs_have_equal_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (run(tmp_path, monkeypatch) for _ in range(2))
    assert first.metrics == second.metrics
    assert first.metrics["flops"] == 8 * 256 * CONFIG.training_flops
    with (tmp_path / "logs" / "validation.csv").open() as file:
        best = min(float(row["loss"]) for row in csv.DictReader(file))
    assert first.metrics["validation_loss"] == best
    # Each story has 32 tokens for 30 bytes.
    assert first.metrics["framed_bits_per_byte"] == pytest.approx(
        best / math.log(2) * 32 / 30, rel=1e-5
    )
    assert first.costs.keys() == second.costs.keys()
    assert not first.costs.keys() & first.metrics.keys()
    assert min(found.costs["peak_memory_bytes"] for found in (first, second)) > 1e6


def test_costs_are_in_units_of_a_second(tmp_path: Path) -> None:
    found = costs(CONFIG.training_flops, 1000, 4.0)
    assert found["tokens_per_second"] == 250
    assert found["flops_per_second"] == pytest.approx(250 * CONFIG.training_flops, rel=1e-5)
    valid = make_job(tmp_path).valid
    uniform = framed_bits_per_byte(math.log(300), len(valid.tokens), valid.text_bytes)
    assert uniform == pytest.approx(math.log2(300) * 32 / 30)


def test_utilization_is_a_fraction_of_the_measured_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = metrics.matmul_peak("cpu", "float32", 0.01)
    assert 1e8 < peak < 1e14
    monkeypatch.setattr("storyllamas.training.metrics.matmul_peak", lambda *_: 4e9)
    device = Device("cpu", bfloat16=False, threads=1)
    assert matmul_utilization(1e9, device) == {
        "peak_flops_per_second": 4e9,
        "matmul_utilization": 0.25,
    }
    assert matmul_utilization(1e9, device, processes=2)["matmul_utilization"] == 0.125


# In a process of its own: this one may reuse memory that earlier tests freed.
HOLD = """
import torch
from storyllamas.bits_per_byte import framed_bits_per_byte
from storyllamas.training.metrics import memory_bytes, peak_memory_bytes
before = memory_bytes("cpu")
held = torch.ones(100_000_000)
during = memory_bytes("cpu")
del held
print(before, during, memory_bytes("cpu"), peak_memory_bytes("cpu"))
"""


def test_memory_is_that_of_the_process() -> None:
    """Memory and its peak show 400 MB while they are allocated, and the peak afterwards."""
    output = subprocess.run(
        [sys.executable, "-c", HOLD],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    before, during, after, peak = map(int, output.split())
    # A system short of memory evicts pages of libraries meanwhile.
    assert 300e6 < during - before < 500e6
    assert after < during - 300e6
    assert during - 50e6 < peak < during + 300e6


def test_lines_show_the_values_of_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress, "memory_bytes", lambda _: 1_230_000_000)
    shown = Progress(1000, 10, tokens_per_step=512, device="cpu", eval_every=100)
    with shown:
        for step in range(11, 51):
            now += 2.0
            if step == 20:
                shown.set_validation_loss(1.5)
            shown.advance(step, 2.25)
    assert capsys.readouterr().out.splitlines() == [
        "step 20/1000  loss 2.250  validation 1.500  0:32:40 left  256 tokens/s  1.2 GB",
        "step 50/1000  loss 2.250  validation 1.500  0:31:40 left  256 tokens/s  1.2 GB",
    ]


def test_the_speed_is_that_of_recent_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress(200, 0, tokens_per_step=100, device="cpu", eval_every=40) as shown:
        for step in range(1, 121):
            now += 100.0 if step == 1 else 1.0  # the first one compiles
            if step % 40 == 0:
                now += 10.0
                shown.set_validation_loss(1.0)
            shown.advance(step, 2.0)
    last = capsys.readouterr().out.splitlines()[-1]
    # 40 steps and a validation take 50 seconds, so the other 80 steps take 100.
    assert "  0:01:40 left  80 tokens/s  " in last


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of each point that TensorBoard draws, by tag."""
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    found = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def test_tensorboard_shows_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path, monkeypatch, "tiny")
    (folder,) = (tmp_path / "state" / "tensorboard").glob("tiny-*")
    found = points(folder)
    for table, shown in (
        ("steps", {n: n for n in ("learning_rate", "gradient_norm")} | {"loss": "loss/train"}),
        ("validation", {"loss": "loss/validation"}),
    ):
        with (tmp_path / "logs" / f"{table}.csv").open() as file:
            rows = list(csv.DictReader(file))
        for column, name in shown.items():
            expected = [(int(row["step"]), float(row[column])) for row in rows]
            assert [step for step, _ in found[name]] == [step for step, _ in expected]
            values = [value for _, value in found[name]]
            assert values == pytest.approx([value for _, value in expected])
    assert len(found["tokens_per_second"]) == 7


def test_tensorboard_continues_a_resumed_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for resumed, end in ((0, 10), (5, 12)):
        with TensorBoardLog(tmp_path, resumed) as log:
            for step in range(resumed + 1, end + 1):
                log.log_step({"step": step, "tokens": step * 100, **STEP})
    assert [step for step, _ in points(tmp_path)["loss/train"]] == list(range(1, 13))


def test_without_tensorboard_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with TensorBoardLog(tmp_path / "x", 0) as log:
        log.log_step({"step": 1, "tokens": 100, **STEP})
        log.log_validation({"step": 1, "tokens": 1, "loss": 2.0})
    assert not (tmp_path / "x").exists()


def test_a_full_disk_stops_tensorboard_but_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "x").touch()
    with TensorBoardLog(tmp_path / "x" / "y", 0) as log:
        log.log_validation({"step": 1, "tokens": 1, "loss": 2.0})
    assert capsys.readouterr().out == "the TensorBoard log stops: Not a directory\n"
