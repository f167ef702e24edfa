"""A compiled training step learns the same, resumes bit-identically, and is optional."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, made_once
from torch._dynamo.utils import counters
from torch._inductor.exc import CppCompileError, InductorError
from training_job import CONFIG, make_job

from storyllamas.errors import UserError
from storyllamas.model import ATTENTION_BLOCK, attend
from storyllamas.params import Compute
from storyllamas.training import device
from storyllamas.training.compiled import build_folder
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.job import Job
from storyllamas.training.loop import Trainer, training_run

ALWAYS = Compute("cpu", "float32", 1, "always", 1, 1)
AUTO = dataclasses.replace(ALWAYS, compile="auto")
NEVER = dataclasses.replace(ALWAYS, compile="never")

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")

ONE_LAYER = dataclasses.replace(CONFIG, layers=1)
"""A model with every kind of operation, which compiles in half the time."""


@pytest.fixture(autouse=True)
def compiled_code(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep compiled code in a folder of this run of pytest, which its processes share."""
    folder = made_once(tmp_path_factory, "compiled", lambda _: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))


def test_only_a_long_run_is_compiled() -> None:
    assert not device.choose(AUTO, 1e12).compiled
    assert not device.choose(NEVER, math.inf).compiled
    assert device.choose(AUTO, 1e14).compiled
    assert device.choose(ALWAYS).compiled


def fail_with(error: Exception) -> Callable[..., object]:
    """Return a torch.compile whose result raises `error` as PyTorch does, with a long message."""

    def compiled(*_: object, **__: object) -> object:
        raise InductorError(error, None) from error

    return lambda *_, **__: compiled


def too_old() -> Exception:
    error = CppCompileError(
        ["g++", "a.cpp"], "In file a.h:\ng++: error:  unknown option '-std=x'\n"
    )
    error.__cause__ = subprocess.CalledProcessError(1, ["g++"])
    return error


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        ({"CXX": "no-such-compiler"}, "the C++ compiler no-such-compiler is not installed"),
        (
            {"CXX": "no-such-compiler -m64"},
            "the C++ compiler no-such-compiler -m64 is not installed",
        ),
        ({"CXX": ""}, "the variable CXX is empty: unset it to use g++"),
        (too_old(), "g++: error: unknown option '-std=x'"),
        (OSError(28, "No space left on device", "/x"), "[Errno 28] No space left on device: '/x'"),
        (ImportError("x.so: failed to map segment"), "x.so: failed to map segment"),
        (KeyError(), "KeyError()"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="clang++ is the default there")
def test_a_run_that_cannot_be_compiled_trains_uncompiled(
    failure: dict[str, str] | Exception,
    cause: str,
    tmp_path: Path,
    state_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line names the cause; with `always`, one sentence does."""
    if isinstance(failure, Exception):
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr("storyllamas.training.compiled._check_compiler", lambda: None)
        monkeypatch.setattr(torch, "compile", fail_with(failure))
    else:
        monkeypatch.setenv("CXX", failure["CXX"])
    job = make_job(tmp_path, steps=3)
    auto = dataclasses.replace(job, device=device.choose(AUTO, math.inf))
    with training_run(auto, tmp_path / "auto", 0) as found:
        pass
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "cannot" in line]
    start, end = line.split(f"({cause}", 1)
    assert start == "the training step cannot be compiled "
    assert end.endswith("): training runs uncompiled, slower")
    assert "inductor" not in line
    assert not found.metrics["compiled"]
    with training_run(job, tmp_path / "plain", 0) as expected:
        pass
    assert all(torch.equal(found.tensors[name], t) for name, t in expected.tensors.items())
    always = dataclasses.replace(job, device=device.choose(ALWAYS))
    with (
        pytest.raises(UserError, match=rf"^compute\.compile is always, .*{re.escape(cause)}"),
        training_run(always, tmp_path / "always", 0),
    ):
        pass
    assert not list(state_root.glob("runs/*"))


def run(folder: Path, code: str, **environment: str) -> str:
    """Run Python code in a process of its own, in `folder`; return its output."""
    unset = ("CXX", "TORCHINDUCTOR_CACHE_DIR")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k not in unset}
        | {"PYTHONPATH": f"{folder}:{ROOT}:{Path(__file__).parent}"}
        | {"STORYLLAMAS_STATE": str(folder / "state")}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


PRODUCT = """
from pathlib import Path
from types import SimpleNamespace
import torch
import test_compiled
from storyllamas.training import device
from storyllamas.training.compiled import training_loss
assert torch.__file__.startswith(str(Path.cwd()))
model = torch.nn.Linear(8, 1)
model.config = SimpleNamespace(dim=8, hidden=8, head_dim=8, context=8, vocab_size=8, tied=False)
model.loss = lambda tokens, targets: (model.weight * (tokens - targets)).square().mean()
loss = training_loss(model, device.choose(test_compiled.ALWAYS), 4)
tokens = torch.arange(32).view(4, 8)
print("equal:", torch.allclose(loss(tokens, tokens // 2), model.loss(tokens, tokens // 2)))
"""


@needs_compiler
def test_a_path_with_a_space_compiles(tmp_path: Path) -> None:
    """PyTorch and the state folder are in a path that a shell would split."""
    folder = tmp_path / "a b" / "ü"
    folder.mkdir(parents=True)
    for package in (Path(torch.__file__).parent, Path(torch.__file__).parent.parent / "torchgen"):
        (folder / package.name).symlink_to(package)
    # PyTorch precompiles its headers, 150 MB, in the folder for temporary files.
    assert "equal: True" in run(folder, PRODUCT, TMPDIR=str(tmp_path))


def test_temporary_workspaces_share_compiled_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORYLLAMAS_STATE", raising=False)
    for folder in (tmp_path, tmp_path / ".dvc/tmp/exps/standalone/x"):
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        assert build_folder() == tmp_path / ".storyllamas/compiled"
    monkeypatch.setenv("STORYLLAMAS_STATE", str(tmp_path / "state"))
    assert build_folder() == tmp_path / "state/compiled"


TRAIN = """
import dataclasses
from pathlib import Path
import test_compiled
from storyllamas.training import device
from storyllamas.training.loop import training_run
job = test_compiled.make_job(Path.cwd(), steps=1)
job = dataclasses.replace(job, device=device.choose(test_compiled.AUTO, 1e15))
with training_run(job, Path("logs"), 60):
    pass
"""


def test_an_old_compiler_trains_uncompiled(tmp_path: Path) -> None:
    script = tmp_path / "g++-4"
    script.write_text(
        """#!/bin/sh
[ "$*" = --version ] && echo "g++ (GCC) 4.8" && exit
echo "g++-4: error: unrecognized option '-std=c++20'"
exit 1
"""
    )
    script.chmod(0o755)
    (line,) = [line for line in run(tmp_path, TRAIN, CXX=str(script)).splitlines() if "(" in line]
    assert line == (
        "the training step cannot be compiled (g++-4: error: unrecognized option '-std=c++20'): "
        "training runs uncompiled, slower"
    )


@needs_compiler
def test_a_compiled_run_learns_the_same(tmp_path: Path) -> None:
    changes = {"steps": 4, "optimizer": "adamw", "dropout": 0.0}
    plain, compiled = (
        dataclasses.replace(make_job(tmp_path, ONE_LAYER, **changes), device=device.choose(compute))
        for compute in (NEVER, ALWAYS)
    )
    assert plain.key() != compiled.key()
    with training_run(plain, tmp_path / "plain", 60) as expected:
        pass
    with training_run(compiled, tmp_path / "compiled", 60) as found:
        pass
    assert found.metrics["compiled"]
    assert not expected.metrics["compiled"]
    for name, tensor in expected.tensors.items():
        assert torch.allclose(found.tensors[name], tensor, rtol=1e-3, atol=1e-4), name


@pytest.fixture
def two_threads(tmp_path: Path) -> Iterator[Job]:
    """Return a job that two threads compute; its tests share compiled code."""
    threads = torch.get_num_threads()
    job = make_job(tmp_path, ONE_LAYER, tokens_per_step=4096, micro_batch=128)
    yield dataclasses.replace(job, device=device.choose(dataclasses.replace(ALWAYS, threads=2)))
    torch.set_num_threads(threads)


@needs_compiler
def test_a_compiled_run_resumes_bit_identically(two_threads: Job, tmp_path: Path) -> None:
    job = two_threads
    interrupt = Interrupt()
    torch._dynamo.reset()
    counters.clear()
    whole = Trainer(job, tmp_path, None)
    for _ in range(6):
        whole.train_step(interrupt)
    # Compiled once, before the first step, and not again for the batches.
    assert counters["stats"]["unique_graphs"] == 1
    first = Trainer(job, tmp_path, None)
    for _ in range(3):
        first.train_step(interrupt)
    torch._dynamo.reset()
    second = Trainer(job, tmp_path, first.checkpoint())
    for _ in range(3):
        second.train_step(interrupt)
    expected = whole.model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in second.model.state_dict().items())


@needs_compiler
def test_each_length_of_sequences_is_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain = make_job(tmp_path, ONE_LAYER, half_context=0.5, steps=4)
    job = dataclasses.replace(plain, device=device.choose(ALWAYS))
    torch._dynamo.reset()
    counters.clear()
    whole = Trainer(job, tmp_path, None)
    for graphs in (1, 1, 2, 2):
        whole.train_step(Interrupt())
        assert counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()
    counters.clear()
    resumed = Trainer(job, tmp_path, dataclasses.replace(whole.checkpoint(), step=3))
    resumed.train_step(Interrupt())
    assert counters["stats"]["unique_graphs"] == 1


@needs_compiler
def test_compiled_runs_with_several_threads_are_bit_identical(
    two_threads: Job, tmp_path: Path
) -> None:
    found = []
    for _ in range(4):
        trainer = Trainer(two_threads, tmp_path, None)
        for _ in range(8):
            trainer.train_step(Interrupt())
        found.append(trainer.model.embedding.weight)
    assert all(torch.equal(weight, found[0]) for weight in found)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("length", [37, ATTENTION_BLOCK, 2 * ATTENTION_BLOCK + 37])
def test_attention_on_the_cpu_equals_pytorchs(length: int, heads: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, n, length, 8, requires_grad=True) for n in (heads, kv_heads, kv_heads)
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    found = attend(q, k, v)
    assert torch.allclose(found, expected, atol=1e-5)
    weights = torch.randn(expected.shape)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((expected * weights).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, atol=1e-5)
