"""Training: what it learns, its key, schedules and optimizers."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from torch.optim import Muon
from training_job import CONFIG, RECIPE, make_job

from storyllamas.errors import UserError
from storyllamas.model import Llama
from storyllamas.params import Compute
from storyllamas.training import device, loop
from storyllamas.training.checkpoints import Checkpoint, CheckpointFolder
from storyllamas.training.job import source_files
from storyllamas.training.loop import training_run
from storyllamas.training.muon import Muon as OurMuon
from storyllamas.training.muon import orthogonal
from storyllamas.training.optimizer import Optimizers
from storyllamas.training.schedule import learning_rate
from storyllamas.training.source_files import imported_files
from storyllamas.training.trained_model import load_model, save_model

pytestmark = pytest.mark.usefixtures("state_root")


def test_training_learns(tmp_path: Path) -> None:
    job = make_job(tmp_path, steps=200, dropout=0.0)
    with training_run(job, tmp_path / "logs", 1e9) as result:
        assert result.metrics["validation_loss"] < 0.6 * math.log(CONFIG.vocab_size)
        assert result.metrics["tokens"] == 200 * 256
        save_model(tmp_path / "model", job.config, result.tensors, {})
    model, about = load_model(tmp_path / "model")
    assert about["model"] == dataclasses.asdict(CONFIG)
    inputs, targets = (torch.from_numpy(part) for part in job.valid.first_windows(6, 32))
    loss = model.loss(inputs, targets).item()
    assert loss == pytest.approx(result.metrics["validation_loss"], rel=1e-4)


def test_a_run_of_another_job_has_another_key(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    keys = {
        job.key(),
        make_job(tmp_path, learning_rate=1e-4).key(),
        dataclasses.replace(job, seed=4).key(),
        dataclasses.replace(job, valid=job.train).key(),
        dataclasses.replace(job, config=dataclasses.replace(CONFIG, layers=3)).key(),
    }
    assert len(keys) == 5
    assert make_job(tmp_path).key() == job.key()


def test_the_key_covers_the_code_that_dvc_depends_on() -> None:
    dependencies = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train"]["deps"]
    code = [ROOT / path for path in dependencies if path.startswith("storyllamas/")]
    files = source_files()
    modules = [file for file in files if file.name != "__init__.py"]
    assert all(any(file.is_relative_to(path) for path in code) for file in modules)
    assert all(any(file.is_relative_to(path) for file in files) for path in code)
    training = {file.name for file in (ROOT / "storyllamas/training").glob("*.py")}
    readers = {
        "growth.py",
        "model_files.py",
        "shared_pieces.py",
        "start_reader.py",
        "teacher_reader.py",
    }
    # The keys of teachers are in that of their student.
    left_out = readers | {"cross_fitting.py", "process_env.py", "trained_model.py"}
    assert training - {file.name for file in files} == left_out


def test_imports_are_followed_through_packages(tmp_path: Path) -> None:
    package = tmp_path / "p"
    for name, text in {
        "__init__.py": "",
        "a.py": "import os\nfrom p.b import c\nfrom p import d\n",
        "b/__init__.py": "from p.b.e import x",
        "b/c.py": "import p.a",
        "b/e.py": "",
        "d.py": "def f():\n    import p.unused\n",
        "unused.py": "",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    names = ["__init__.py", "a.py", "b/__init__.py", "b/c.py", "b/e.py", "d.py"]
    assert imported_files(package / "a.py", package) == [package / name for name in names]
    skipped = [package / "b/__init__.py", package / "b/c.py"]
    expected = [package / name for name in ("__init__.py", "a.py", "d.py")]
    assert imported_files(package / "a.py", package, skipped) == expected


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, state_root: Path) -> None:
    folder = CheckpointFolder(state_root / "runs" / (key := make_job(tmp_path).key()))
    job = make_job(tmp_path)
    with folder.locked():
        trainer = loop.Trainer(job, tmp_path / "logs", None)
        checkpoint = trainer.checkpoint()
        broken = {k: torch.full_like(v, torch.nan) for k, v in checkpoint.tensors.items()}
        folder.save(Checkpoint(5, broken, checkpoint.metadata))
    with (
        pytest.raises(UserError, match="the loss after 5 steps is nan"),
        training_run(job, tmp_path / "logs", 0),
    ):
        pass
    assert [file.name[:9] for file in folder.path.glob("*.safetensors")] == ["000000005"]
    assert key == job.key()


@pytest.mark.parametrize("limit", [0.01, 0.5, 1.0, 100.0, math.inf])
def test_gradients_are_clipped_as_pytorch_clips_them(tmp_path: Path, limit: float) -> None:
    trainer = loop.Trainer(make_job(tmp_path), tmp_path / "logs", None)
    parameters = list(trainer.model.parameters())
    torch.manual_seed(0)
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    size = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    gradients = [gradient / size for gradient in gradients]
    clipped = []
    for clip in (trainer._clip_gradients, partial(torch.nn.utils.clip_grad_norm_, parameters)):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        assert float(clip(limit)) == pytest.approx(1.0)
        clipped.append([parameter.grad for parameter in parameters])
    assert all(map(torch.equal, *clipped))


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    norms = []
    for micro_batch in (8, 2):
        job = make_job(tmp_path, micro_batch=micro_batch, dropout=0.0)
        trainer = loop.Trainer(job, tmp_path / "logs", None)
        with loop.Interrupt() as interrupt:
            norms.append(trainer.train_step(interrupt))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_learning_rate_rises_then_falls_to_its_last_value(schedule: str) -> None:
    recipe = dataclasses.replace(RECIPE, schedule=schedule, steps=101, warmup=0.1, stable=0.0)
    rates = [learning_rate(step, recipe) for step in range(101)]
    assert rates[0] == pytest.approx(recipe.learning_rate / 11)
    assert rates[10] == rates[11] == max(rates) == recipe.learning_rate
    assert rates[11:] == sorted(rates[11:], reverse=True)
    assert rates[-1] == pytest.approx(0.05 * recipe.learning_rate)
    middle = recipe.learning_rate * (0.05 + 0.95 / 2)
    assert rates[55] == pytest.approx(middle, rel=0.03)
    held = dataclasses.replace(recipe, stable=0.5)
    rates = [learning_rate(step, held) for step in range(101)]
    assert set(rates[10:62]) == {recipe.learning_rate}
    assert rates[61:] == sorted(set(rates[61:]), reverse=True)
    assert rates[-1] == pytest.approx(0.05 * recipe.learning_rate)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_moves_and_only_matrices_decay(optimizer: str, tied: bool) -> None:
    model = Llama(dataclasses.replace(CONFIG, tied=tied))
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, weight_decay=0.5)
    optimizers = Optimizers(model, recipe)
    groups = [group for one in optimizers._all for group in one.param_groups]
    owned = [p for group in groups for p in group["params"]]
    assert sum(p.numel() for p in owned) == sum(p.numel() for p in model.parameters())
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.5 if parameter.ndim == 2 else 0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.loss(torch.arange(32)[None], torch.arange(32)[None]).backward()
    optimizers.step(1e-2)
    assert all((p != before[name]).any() for name, p in model.named_parameters())


def test_muon_unstacks_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.optim.Muon iterates in bfloat16 everywhere.
    monkeypatch.setattr("storyllamas.training.optimizer.computes_in_bfloat16", lambda _: True)
    model = Llama(CONFIG)
    tokens = torch.randint(3, CONFIG.vocab_size, (4, 33), generator=torch.manual_seed(0))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    query, key = CONFIG.heads * CONFIG.head_dim, CONFIG.kv_heads * CONFIG.head_dim
    layer = model.layers[1]
    for weight, rows in (
        (layer.attention.qkv.weight, [query, key, key]),
        (layer.feed_forward.gate_up.weight, [CONFIG.hidden, CONFIG.hidden]),
        (layer.feed_forward.down.weight, [CONFIG.dim]),
    ):
        model.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        apart = [torch.nn.Parameter(part.clone()) for part in weight.detach().split(rows)]
        for part, gradient in zip(apart, weight.grad.split(rows), strict=True):
            part.grad = gradient.clone()
        Muon(apart, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
        Optimizers(model, dataclasses.replace(RECIPE, muon_beta2=0.0)).step(1e-2)
        assert torch.equal(weight, torch.cat(apart))
        assert weight.grad is None


@pytest.mark.parametrize("is_faster", [True, False])
def test_muon_iterates_in_the_fastest_precision(
    is_faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 where that is faster; in float32 the singular values are the same."""
    monkeypatch.setattr("storyllamas.training.optimizer.computes_in_bfloat16", lambda _: is_faster)
    seen: list[torch.dtype] = []

    def watched(matrices: torch.Tensor) -> torch.Tensor:
        seen.append(matrices.dtype)
        return orthogonal(matrices)

    monkeypatch.setattr("storyllamas.training.muon.orthogonal", watched)
    model = Llama(CONFIG)
    tokens = torch.randint(3, CONFIG.vocab_size, (4, 33), generator=torch.manual_seed(0))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    Optimizers(model, RECIPE).step(1e-2)
    assert set(seen) == {torch.bfloat16 if is_faster else torch.float32}
    matrix = torch.randn(3, 32, 16, generator=torch.manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrix.to(seen[0])).float())
    assert (values > 0.6).all()
    assert (values < 1.3).all()


def test_muon_normalizes_rows() -> None:
    beta2, rate = 0.9, 0.01
    torch.manual_seed(0)
    pair = [torch.nn.Parameter(torch.randn(6, 4)) for _ in range(2)]
    plain = [torch.nn.Parameter(p.detach().clone()) for p in pair]
    normalizing = OurMuon([{"params": pair, "lr": rate, "beta2": beta2}])
    reference = Muon(plain, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    squares = np.zeros((2, 6))
    for _ in range(3):
        before = [p.detach().clone().numpy() for p in (*pair, *plain)]
        for mine, theirs in zip(pair, plain, strict=True):
            mine.grad = torch.randn(6, 4)
            theirs.grad = mine.grad.clone()
        normalizing.step()
        reference.step()
        for i, (mine, theirs) in enumerate(zip(pair, plain, strict=True)):
            update = theirs.detach().numpy() - before[2 + i]
            # The mean square of the orthogonal matrix itself, without the rate.
            scale = rate * 0.2 * 6**0.5
            squares[i] += (1 - beta2) * (((update / scale) ** 2).mean(1) - squares[i])
            expected = update / np.sqrt(squares[i])[:, None]
            expected *= np.linalg.norm(update) / np.linalg.norm(expected)
            assert np.allclose(mine.detach().numpy() - before[i], expected, rtol=1e-3, atol=1e-6)


def test_the_embedding_has_its_own_learning_rate() -> None:
    changes = []
    for rate in (1.0, 3.0):
        torch.manual_seed(0)
        model = Llama(CONFIG)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.loss(torch.arange(32)[None], torch.arange(32)[None]).backward()
        recipe = dataclasses.replace(RECIPE, weight_decay=0.0, embedding_lr_scale=rate)
        Optimizers(model, recipe).step(1e-2)
        changes.append({name: p - before[name] for name, p in model.named_parameters()})
    for name, change in changes[0].items():
        factor = 1.0 if name.startswith("layers") and change.ndim == 2 else 3.0
        assert torch.allclose(changes[1][name], factor * change, rtol=1e-3, atol=1e-7), name


def test_zero_init_residual_leaves_the_embedding_unchanged_at_first() -> None:
    model = Llama(CONFIG, zero_init_residual=True)
    tokens = torch.arange(32)[None]
    expected = model.norm(model.embedding(tokens)) @ model.embedding.weight.T
    assert torch.allclose(model(tokens), expected, atol=1e-6)
    assert not torch.allclose(Llama(CONFIG)(tokens), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("compute", "named"),
    [
        (Compute("cuda", "auto", 0, "auto", 1, 1), "cuda"),
        (Compute("mps", "auto", 0, "auto", 1, 1), "mps"),
    ],
)
def test_a_missing_device_is_an_error(compute: Compute, named: str) -> None:
    if named == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    if named == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is an MPS device")
    with pytest.raises(UserError, match=f"compute.device is '{named}'"):
        device.choose(compute)


@pytest.mark.parametrize(
    ("vendor", "amx", "avx512_bf16", "expected"),
    [
        ("AuthenticAMD", False, True, True),
        ("AuthenticAMD", False, False, False),
        ("GenuineIntel", False, True, False),
        ("GenuineIntel", True, True, True),
        ("", False, False, False),
        ("", False, True, True),
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it_faster(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    vendor: str,
    amx: bool,
    avx512_bf16: bool,
    expected: bool,
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n" if vendor else "")
    monkeypatch.setattr("storyllamas.cpuinfo.CPUINFO", cpuinfo)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512_bf16)
    assert device.choose(Compute("cpu", "auto", 0, "auto", 1, 1)).bfloat16 == expected


def test_a_damaged_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path)
    model = Llama(CONFIG)
    save_model(tmp_path, CONFIG, model.state_dict(), {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path)
    save_model(tmp_path, dataclasses.replace(CONFIG, hidden=50), model.state_dict(), {})
    with pytest.raises(UserError, match="does not fit"):
        load_model(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path)
