"""The training step in C computes what PyTorch does, in bfloat16 and in float32."""

from __future__ import annotations

import copy
import dataclasses
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_job import DIGEST, make_job

from storyllamas import token_file
from storyllamas.config import ModelConfig
from storyllamas.model import Llama, SoftTargets
from storyllamas.params import Compute
from storyllamas.record_rows import IGNORED
from storyllamas.training import compiled, device, fused, muon
from storyllamas.training.device import Device
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.loop import Trainer

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not fused.has_avx2() or not shutil.which("cc"),
    reason="needs Linux, AVX2 and a C compiler",
)

CONFIG = ModelConfig(
    dim=64, layers=2, heads=2, kv_heads=2, head_dim=32, hidden=96, context=96, vocab_size=320
)
EMULATED = Path(__file__).with_name("c") / "emulated"
"""Folder of headers that compute in plain C what AVX-512 and AMX do."""


@dataclasses.dataclass(frozen=True)
class Build:
    """A way to compile the step."""

    bfloat16: bool
    flags: str
    needs: str
    """Flag of /proc/cpuinfo."""

    @property
    def runs(self) -> bool:
        """Whether the processor has the instructions."""
        return self.needs in fused._processor().split()


BUILDS = {
    "AVX2": Build(False, "-mno-avx512f", "avx2"),
    "AVX-512": Build(False, "", "avx512f"),
    "AVX-512 BF16": Build(True, "-mno-amx-bf16 -mno-amx-tile", "avx512_bf16"),
    "AMX": Build(True, "", "amx_bf16"),
}


class Compiled(NamedTuple):
    """A compiled step: how it multiplies, and where it is."""

    device: Device
    folder: Path
    emulated: bool

    def loss(self, model: Llama) -> fused.FusedLoss:
        return fused.FusedLoss(model, self.device.bfloat16, self.folder)

    @property
    def slack(self) -> float:
        """Relative error that is allowed, besides that of PyTorch's bfloat16."""
        return 1e-3 if self.device.bfloat16 else 2e-5


@pytest.fixture(params=BUILDS)
def step(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Compiled]:
    """The step for each instruction set, emulated if the processor lacks it."""
    build = BUILDS[request.param]
    compiler = f"cc {build.flags}"
    if not build.runs:
        flags = "-D__AVX512F__ -D__AMX_BF16__" if request.param == "AMX" else "-D__AVX512F__"
        compiler = f"cc -I{shlex.quote(str(EMULATED))} {flags}"
    monkeypatch.setenv("CC", compiler)
    folder = tmp_path_factory.getbasetemp() / f"fused {request.param}"
    yield Compiled(Device("cpu", build.bfloat16, 1, True), folder, not build.runs)
    fused._load.cache_clear()


def make_model(dropout: float = 0.0, config: ModelConfig = CONFIG) -> Llama:
    torch.manual_seed(0)
    model = Llama(config, dropout)
    for parameter in model.parameters():  # large gradients everywhere
        nn.init.normal_(parameter, float(parameter.ndim == 1), 0.1)
    return model


def make_batch(sequences: int, length: int = CONFIG.context) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    shape = (sequences, length + 1)
    windows = torch.randint(CONFIG.vocab_size, shape, generator=random)
    targets = windows[:, 1:].clone()
    targets[0, 5:20] = IGNORED
    return windows[:, :-1], targets


def soften(targets: Tensor) -> SoftTargets:
    """Return soft targets of 7 tokens, one of which may come twice."""
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(CONFIG.vocab_size, (*targets.shape, 7), generator=random)
    ids[..., 6] = targets.clamp(min=0)
    shares = (3 * torch.rand(ids.shape, generator=random)).softmax(-1)
    return SoftTargets(ids, shares * (targets != IGNORED)[..., None])


def gradients(loss: Tensor, model: Llama) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_only_models_of_its_kind_suit(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Device("cpu", False, 1, True)
    assert fused.suits(Llama(CONFIG), cpu)
    assert fused.suits(Llama(CONFIG), dataclasses.replace(cpu, bfloat16=True)) == (
        BUILDS["AVX-512 BF16"].runs
    )
    assert not fused.suits(Llama(CONFIG), dataclasses.replace(cpu, name="mps"))
    for change in ({"kv_heads": 1}, {"hidden": 100}, {"vocab_size": 300}, {"tied": False}):
        assert not fused.suits(Llama(dataclasses.replace(CONFIG, **change)), cpu)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not fused.suits(Llama(CONFIG), cpu)
    monkeypatch.undo()
    frozen = Llama(CONFIG)
    frozen.embedding.weight.requires_grad_(False)
    assert not fused.suits(frozen, cpu)
    assert fused.suits(Llama(CONFIG), cpu, (32, 96))
    assert not fused.suits(Llama(CONFIG), cpu, (48, 96))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("sequences", "length"),
    [(1, 96), (5, 96), (30, 96), (5, 32), (70, 32)],  # 30, 70: more than a group of 2,048 tokens
)
def test_loss_and_gradients_are_pytorchs(
    step: Compiled, sequences: int, length: int, soft: bool
) -> None:
    if step.emulated and sequences == 30:
        pytest.skip("slow, and 70 sequences are more than a group, too")
    model, (tokens, targets) = make_model(), make_batch(sequences, length)
    batch = (tokens, soften(targets) if soft else targets)
    exact = model.loss(*batch)
    with step.device.autocast():
        rounded = model.loss(*batch)
    found = step.loss(model)(*batch)
    assert abs(found.item() - exact.item()) < 2 * step.slack
    names = [name for name, _ in model.named_parameters()]
    of_each = zip(names, *(gradients(loss, model) for loss in (found, rounded, exact)), strict=True)
    for name, mine, pytorchs, expected in of_each:
        assert distance(mine, expected) < 1.2 * distance(pytorchs, expected) + step.slack, name


def test_matrices_larger_than_a_panel_are_pytorchs(step: Compiled) -> None:
    model, batch = make_model(config=dataclasses.replace(CONFIG, vocab_size=8448)), make_batch(1)
    exact = model.loss(*batch)
    with step.device.autocast():
        rounded = model.loss(*batch)
    losses = step.loss(model)(*batch), rounded, exact
    assert losses[0].item() == pytest.approx(exact.item(), rel=step.slack)
    for mine, pytorchs, expected in zip(*(gradients(loss, model) for loss in losses), strict=True):
        assert distance(mine, expected) < 1.2 * distance(pytorchs, expected) + step.slack


def test_large_scores_and_gates_are_pytorchs(step: Compiled) -> None:
    """Exponentials overflow for keys that a query does not see, and underflow for gates."""
    model, batch = make_model(), make_batch(2)
    for name, parameter in model.layers.named_parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(120 if "gate" in name else 12)
    exact = model.loss(*batch)
    found = step.loss(model)(*batch)
    slack = 0.1 if step.device.bfloat16 else 1e-3
    assert found.item() == pytest.approx(exact.item(), rel=slack)
    for mine, expected in zip(gradients(found, model), gradients(exact, model), strict=True):
        assert mine.isfinite().all()
        if not step.device.bfloat16:
            assert distance(mine, expected) < slack


def test_logits_are_pytorchs(step: Compiled) -> None:
    model, (tokens, _) = make_model(), make_batch(21)
    exact = model(tokens)
    with step.device.autocast():
        rounded = model(tokens).float()
    loss = step.loss(model)
    found = loss.logits(tokens).float()
    assert distance(found, exact) < 1.2 * distance(rounded, exact) + (
        0 if step.device.bfloat16 else step.slack
    )
    with pytest.raises(ValueError, match="2112 tokens are more than 2048"):
        loss.logits(torch.cat([tokens, tokens[:1]]))


def test_any_number_of_threads_gives_the_same_bits(step: Compiled) -> None:
    model, batch = make_model(), make_batch(30)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 2):
            torch.set_num_threads(number)
            loss = step.loss(model)(*batch)
            found.append([loss, *gradients(loss, model)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_without_gradients_the_loss_is_the_same(step: Compiled) -> None:
    model, batch = make_model(), make_batch(5)
    loss = step.loss(model)
    with torch.no_grad():
        alone = loss(*batch)
    assert not alone.requires_grad
    assert alone.item() == loss(*batch).item()


def test_dropout_drops_the_same_in_both_passes(step: Compiled) -> None:
    """The loss falls along the gradient as fast as the gradient says."""
    model, batch = make_model(0.3), make_batch(5)
    loss = step.loss(model)

    def seeded() -> Tensor:
        torch.manual_seed(7)
        return loss(*batch)

    first = seeded()
    assert first.item() == seeded().item()
    slopes = gradients(first, model)
    size = torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt()
    values = []
    for sign in (1, -2):
        for parameter, slope in zip(model.parameters(), slopes, strict=True):
            parameter.data.add_(slope, alpha=sign * 0.05 / float(size))
        values.append(seeded().item())
    assert (values[0] - values[1]) / 0.1 == pytest.approx(float(size), rel=0.05)
    model.eval()
    plain = make_model().loss(*batch).item()
    for parameter, other in zip(model.parameters(), make_model().parameters(), strict=True):
        parameter.data.copy_(other)
    assert seeded().item() == pytest.approx(plain, abs=2 * step.slack)


def test_a_foreign_token_is_an_error(step: Compiled) -> None:
    tokens, targets = make_batch(1)
    loss = step.loss(make_model())
    wrong = targets.clone()
    for id_ in (CONFIG.vocab_size, -1, IGNORED - 1):
        wrong[0, 3] = id_
        with pytest.raises(IndexError, match="320"):
            loss(tokens, wrong)
    soft = soften(targets)
    soft.ids[0, 3, 2] = IGNORED
    with pytest.raises(IndexError, match="320"):
        loss(tokens, soft)
    tokens[0, 3] = CONFIG.vocab_size
    with pytest.raises(IndexError, match="320"):
        loss(tokens, targets)


@pytest.mark.parametrize("beta2", [0.0, 0.95])
@pytest.mark.parametrize("shape", [(64, 64), (96, 64), (64, 160), (32, 96), (160, 96)])
def test_muon_is_pytorchs(step: Compiled, shape: tuple[int, int], beta2: float) -> None:
    torch.manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape)) for _ in range(3)]
    runs = [copy.deepcopy(matrices) for _ in range(3)]
    group = {"lr": 0.1, "weight_decay": 0.1, "beta2": beta2}
    optimizers = [
        muon.Muon([{"params": run, **group}], dtype)
        for run, dtype in zip(runs, (torch.float32, torch.bfloat16, torch.bfloat16), strict=True)
    ]
    optimizers[2].update = step.loss(make_model()).update
    for _ in range(3):
        slopes = [torch.randn(shape) for _ in matrices]
        for run, optimizer in zip(runs, optimizers, strict=True):
            for parameter, slope in zip(run, slopes, strict=True):
                parameter.grad = slope.clone()
            optimizer.step()
    for before, exact, rounded, found in zip(matrices, *runs, strict=True):
        limit = 1.2 * distance(rounded - before, exact - before)
        if not step.device.bfloat16:
            limit = 1e-3
        assert distance(found - before, exact - before) < limit


@pytest.mark.parametrize("shape", [(64, 64), (160, 64), (64, 160), (32, 96), (160, 96)])
def test_muon_orthogonalizes_small_singular_values(step: Compiled, shape: tuple[int, int]) -> None:
    """Gradients have a few large singular values and many that are a thousand times smaller."""
    if step.device.bfloat16:
        pytest.skip("bfloat16 rounds small singular values away, in PyTorch too")
    torch.manual_seed(0)
    rows, columns = shape
    slope = torch.randn(rows, 4) @ torch.randn(4, columns) + 1e-3 * torch.randn(shape)
    expected, found = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    for matrix, update in ((expected, None), (found, step.loss(make_model()).update)):
        matrix.grad = slope.clone()
        optimizer = muon.Muon([{"params": [matrix], "lr": 0.1}], torch.float32)
        optimizer.update = update
        optimizer.step()
    assert distance(found, expected) < 2e-2  # that of bfloat16 is 0.4


@pytest.fixture
def trainers(step: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """Return a trainer in C and one in PyTorch."""
    if step.emulated:
        pytest.skip("the processor lacks the instructions, and runs take long with emulated ones")
    monkeypatch.setattr(compiled, "build_folder", lambda: step.folder)
    random = np.random.default_rng(0)
    path = tmp_path / "tokens.bin"
    with token_file.write(path, CONFIG.vocab_size, DIGEST) as writer:
        ids = random.integers(3, 40, 20_000).cumsum() % CONFIG.vocab_size
        writer.append(ids.astype(np.uint16), 1, len(ids))
    data = token_file.read(path, DIGEST)
    job = make_job(tmp_path, tokens_per_step=8 * CONFIG.context, dropout=0.0)
    job = dataclasses.replace(job, config=CONFIG, train=data, valid=data)
    precision = "bfloat16" if step.device.bfloat16 else "float32"
    choices = [Compute("cpu", precision, 1, how, 1, 1) for how in ("always", "never")]
    devices = [device.choose(choice) for choice in choices]
    jobs = [dataclasses.replace(job, device=where) for where in devices]
    return [Trainer(each, tmp_path, None) for each in jobs]


def test_a_run_learns_what_pytorchs_does(trainers: list[Trainer]) -> None:
    mine, pytorchs = trainers
    assert isinstance(mine.loss, fused.FusedLoss)
    losses = [[trainer.train_step(Interrupt())[0] for _ in range(20)] for trainer in trainers]
    assert losses[0][-1] < losses[0][0] - 0.2
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert mine._validate() == pytest.approx(pytorchs._validate(), abs=0.02)


def test_a_run_resumes_bit_identically(trainers: list[Trainer], tmp_path: Path) -> None:
    whole = trainers[0]
    for _ in range(3):
        whole.train_step(Interrupt())
    resumed = Trainer(whole.job, tmp_path, whole.checkpoint())
    for trainer in (whole, resumed):
        for _ in range(3):
            trainer.train_step(Interrupt())
    expected = whole.model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in resumed.model.state_dict().items())
