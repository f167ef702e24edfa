"""A compiled training step learns the same, resumes bit-identically, and is optional."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from training_job import CONFIG, make_job

from storyllamas.errors import UserError
from storyllamas.model import ATTENTION_BLOCK, Llama, attend
from storyllamas.params import Compute
from storyllamas.training import device
from storyllamas.training.compiled import training_loss
from storyllamas.training.device import Device
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.loop import Trainer, training_run

ALWAYS = Compute("cpu", "float32", 1, "always", 1, 1)
AUTO = dataclasses.replace(ALWAYS, compile="auto")
NEVER = dataclasses.replace(ALWAYS, compile="never")

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


def test_only_a_long_run_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert not device.choose(AUTO, 1e12).compiled
    assert not device.choose(NEVER, math.inf).compiled
    assert device.choose(AUTO, 1e14).compiled == (shutil.which("g++") is not None)


def test_a_missing_compiler_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not device.choose(ALWAYS).compiled
    assert capsys.readouterr().out.splitlines() == [
        "no C++ compiler (no-such-compiler) found: training runs uncompiled, slower"
    ]


def test_a_failed_compilation_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> object:
        def call(*_: object) -> torch.Tensor:
            raise RuntimeError("the compiler is broken\nat great length")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    where = Device("cpu", bfloat16=False, threads=1, compiled=True)
    with pytest.raises(
        UserError, match=r"\(the compiler is broken\): set compute.compile to never"
    ):
        training_loss(Llama(CONFIG), where, 2)


@needs_compiler
def test_a_compiled_run_learns_the_same(tmp_path: Path) -> None:
    changes = {"steps": 4, "optimizer": "adamw", "dropout": 0.0}
    plain, compiled = (
        dataclasses.replace(make_job(tmp_path, **changes), device=device.choose(compute))
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


@needs_compiler
def test_a_compiled_run_resumes_bit_identically(tmp_path: Path) -> None:
    job = dataclasses.replace(make_job(tmp_path), device=device.choose(ALWAYS))
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
def test_compiled_runs_with_several_threads_are_bit_identical(tmp_path: Path) -> None:
    two = dataclasses.replace(ALWAYS, threads=2)
    changes = {"tokens_per_step": 4096, "micro_batch": 128}
    threads = torch.get_num_threads()
    try:
        job = dataclasses.replace(make_job(tmp_path, **changes), device=device.choose(two))
        found = []
        for _ in range(4):
            trainer = Trainer(job, tmp_path, None)
            for _ in range(8):
                trainer.train_step(Interrupt())
            found.append(trainer.model.embedding.weight)
    finally:
        torch.set_num_threads(threads)
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
