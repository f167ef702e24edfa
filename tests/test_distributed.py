"""Several processes train what one trains, and resume when one of them is killed."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch
from conftest import PATIENCE, wait_until_stopped
from training_job import CONFIG, RECIPE, make_job

from storyllamas.errors import UserError
from storyllamas.model import Llama
from storyllamas.training.checkpoints import CheckpointFolder
from storyllamas.training.distributed import Ranks, micro_batch
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.loop import _dropout_seed, training_run

TESTS = Path(__file__).parent
# Each step has four micro-batches; in `shrunk` it has one, which two ranks halve.
JOBS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "dropout": 0.0},
    "adamw with dropout": {"optimizer": "adamw", "dropout": 0.2},
    "muon with dropout": {"dropout": 0.2},
    "shrunk": {"micro_batch": 16, "dropout": 0.0},
}
JOBS = {name: {"tokens_per_step": 512, "steps": 8, **changes} for name, changes in JOBS.items()}
LONG = {"long": {"optimizer": "adamw", "steps": 100}}


pytestmark = pytest.mark.usefixtures("state_root")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts tests/ranks_job.py in `tmp_path`, and end what it started."""
    started: list[subprocess.Popen[str]] = []

    def begin(
        jobs: object, processes: int = 2, *launcher: str, stop: int = 0
    ) -> subprocess.Popen[str]:
        command = [*launcher, str(TESTS / "ranks_job.py"), str(tmp_path), str(processes)]
        started.append(
            subprocess.Popen(
                [sys.executable, *command, json.dumps(jobs), *([str(stop)] if stop else [])],
                env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=PATIENCE)


def stopped_ranks(process: subprocess.Popen[str], folder: Path) -> list[int]:
    """Return the process ids of a run of two ranks, once the first has stopped itself.

    If it ends instead, raise an error that shows what the run printed.
    """
    files = [folder / f"{rank}.pid" for rank in range(2)]
    deadline = time.monotonic() + PATIENCE
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    ranks = [int(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    try:
        wait_until_stopped(ranks[0])
    except (AssertionError, psutil.NoSuchProcess):
        raise AssertionError(f"rank 0 did not stop itself:\n{finish(process)}") from None
    return ranks


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    return output


def weights(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(folder / f"{rank}.safetensors"))


def logged(file: Path) -> list[list[float]]:
    with file.open() as rows:
        return [[float(value) for value in row.values()] for row in csv.DictReader(rows)]


def alone(folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    """Train the same in this process, with logs in the folder `alone`; return the weights."""
    with training_run(make_job(folder, **changes), folder / "alone", 1e9) as result:
        return result.tensors


def assert_close(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float
) -> None:
    """Check that the two differ by less than `tolerance` times the change since the beginning."""
    torch.manual_seed(3)
    initial = Llama(CONFIG, zero_init_residual=True).state_dict()
    for name, tensor in one.items():
        change = (tensor - initial[name]).norm()
        assert (tensor - other[name]).norm() < tolerance * change, name


def test_two_ranks_train_what_one_trains(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = start(JOBS, 2, *torchrun)
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("step 8/8") == len(JOBS)
    for name, changes in JOBS.items():
        folder = tmp_path / name
        first, second = weights(folder, 0), weights(folder, 1)
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
        # Muon orthogonalizes in bfloat16: other micro-batches on one rank differ as much.
        exact = changes.get("optimizer") == "adamw"
        assert_close(alone(tmp_path, **changes), first, 1e-4 if exact else 1e-1)
        for table in ("steps.csv", "validation.csv"):
            rows, expected = logged(folder / table), logged(tmp_path / "alone" / table)
            assert rows == [pytest.approx(row, rel=2e-5 if exact else 2e-4) for row in expected]


def test_a_run_resumes_after_a_rank_was_killed_and_after_an_interrupt(
    tmp_path: Path,
    state_root: Path,
    start: Callable[..., subprocess.Popen[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    process = start(LONG, stop=6)
    first, victim = stopped_ranks(process, tmp_path)
    os.kill(victim, signal.SIGKILL)
    os.kill(first, signal.SIGCONT)
    output = finish(process)
    assert process.returncode != 0
    assert f"error: rank 1 (process {victim}) was killed by SIGKILL: the same command" in output
    assert output.count("error") == 1
    assert "torch/distributed" not in output
    assert "Traceback" not in output

    process = start(LONG, stop=10)
    first, _ = stopped_ranks(process, tmp_path)
    process.send_signal(signal.SIGINT)
    os.kill(first, signal.SIGCONT)
    output = finish(process)
    assert process.returncode != 0
    assert "resuming from step 6 of" in output
    assert output.count("the same command resumes from step") == 1
    assert "Traceback" not in output
    job = make_job(tmp_path, **LONG["long"])
    checkpoint = CheckpointFolder(state_root / "runs" / job.key()).latest()
    assert checkpoint is not None
    assert f"stopped after step {checkpoint.step}:" in output

    capsys.readouterr()
    ended = alone(tmp_path, **LONG["long"])
    assert f"resuming from step {checkpoint.step}" in capsys.readouterr().out
    assert not list(state_root.glob("runs/*"))
    assert_close(alone(tmp_path, **LONG["long"]), ended, 1e-3)


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "DVC_STAGE"])
def test_a_rank_does_not_outlive_its_parent(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    Interrupt(parent=-1).check_parent()
    monkeypatch.setenv(variable, "x")
    Interrupt(os.getppid()).check_parent()
    with pytest.raises(SystemExit, match="has ended: stopping"):
        Interrupt(parent=-1).check_parent()


@pytest.mark.parametrize(
    ("micro", "ranks", "expected"), [(4, 1, 4), (4, 2, 4), (16, 2, 8), (16, 16, 1), (6, 3, 4)]
)
def test_ranks_split_a_step_evenly(micro: int, ranks: int, expected: int) -> None:
    tokens = 512 if ranks != 3 else 32 * 12
    recipe = dataclasses.replace(RECIPE, tokens_per_step=tokens, micro_batch=micro, dropout=0.0)
    assert micro_batch(recipe, 32, ranks) == expected


def test_a_step_that_ranks_cannot_split_is_an_error() -> None:
    recipe = dataclasses.replace(RECIPE, tokens_per_step=512, micro_batch=8, dropout=0.0)
    with pytest.raises(UserError, match=r"16 sequences of 32 tokens, which 3 processes"):
        micro_batch(recipe, 32, 3)
    recipe = dataclasses.replace(recipe, dropout=0.1)
    assert micro_batch(recipe, 32, 2) == 8
    with pytest.raises(UserError, match=r"use train.micro_batch=4, which changes"):
        micro_batch(recipe, 32, 4)


def test_one_rank_wraps_nothing(tmp_path: Path) -> None:
    model = Llama(CONFIG)
    ranks = Ranks()
    assert ranks.average_gradients(model, model.loss) == model.loss
    assert list(ranks.split(range(0, 12, 4))) == [0, 4, 8]
    assert ranks.mean(0.1) == 0.1
    assert ranks.log_path(tmp_path) == tmp_path


def test_dropout_differs_for_every_seed_step_and_micro_batch(tmp_path: Path) -> None:
    seeds = {_dropout_seed(seed, step, row) for seed in (1, 2) for step in (0, 1) for row in (0, 4)}
    assert len(seeds) == 8
    assert max(seeds) < 2**32


def test_the_key_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    device = dataclasses.replace(job.device, threads=job.device.threads + 1)
    assert dataclasses.replace(job, device=device).key() == job.key()
