"""Test that the loops of `make bench-train` train the same model; speed is not tested."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from bench import build, index, pages, plain_loop, train, train_report
from bench.worker import WorkerError
from storyllamas.config import ModelConfig
from storyllamas.model import Llama

CONFIG = ModelConfig(
    dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=48, context=16, vocab_size=300
)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use one thread here and in workers: threads that wait for a busy core take minutes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SMALL = {"dim": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 16, "hidden": 64}


def plain_model(config: ModelConfig) -> plain_loop.Llama:
    names = [field.name for field in dataclasses.fields(plain_loop.Shape)]
    return plain_loop.Llama(plain_loop.Shape(**{name: getattr(config, name) for name in names}))


def copy_weights(ours: Llama, plain: plain_loop.Llama) -> None:
    state = ours.state_dict()
    with torch.no_grad():
        plain.embedding.weight.copy_(state["embedding.weight"])
        plain.norm.weight.copy_(state["norm.weight"])
        for i, layer in enumerate(plain.layers):
            at = f"layers.{i}."
            sizes = [len(part.weight) for part in (layer.attention.query, layer.attention.key)]
            q, k, v = state[at + "attention.qkv.weight"].split([*sizes, sizes[1]])
            gate, up = state[at + "feed_forward.gate_up.weight"].chunk(2)
            pairs = {
                layer.attention.query: q,
                layer.attention.key: k,
                layer.attention.value: v,
                layer.attention.output: state[at + "attention.output.weight"],
                layer.feed_forward.gate: gate,
                layer.feed_forward.up: up,
                layer.feed_forward.down: state[at + "feed_forward.down.weight"],
                layer.attention_norm: state[at + "attention_norm.weight"],
                layer.feed_forward_norm: state[at + "feed_forward_norm.weight"],
            }
            for module, weight in pairs.items():
                module.weight.copy_(weight)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_plain_loop_trains_the_same_model(kv_heads: int) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, kv_heads=kv_heads)
    ours, plain = Llama(config), plain_model(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    copy_weights(ours, plain)
    windows = torch.randint(config.vocab_size, (3, config.context + 1))
    inputs, targets = windows[:, :-1], windows[:, 1:]
    loss = ours.loss(inputs, targets)
    other = torch.nn.functional.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten())
    assert other.item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    other.backward()
    torch.testing.assert_close(plain.embedding.weight.grad, ours.embedding.weight.grad)


def test_plain_loop_accumulates_gradients_of_micro_batches() -> None:
    tokens = (torch.arange(400) % CONFIG.vocab_size).numpy().astype("u2")
    losses = []
    for micro_batch in (8, 2):
        torch.manual_seed(0)
        model = plain_model(CONFIG)
        torch.manual_seed(1)
        steps = plain_loop.train(model, tokens, CONFIG.context, 8, micro_batch, "cpu")
        losses.append([next(steps) for _ in range(30)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0] - 0.5


def test_operations_equal_the_count_of_torch() -> None:
    model = plain_model(CONFIG)
    tokens = torch.zeros(3, CONFIG.context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    assert counter.get_total_flops() == CONFIG.training_flops * tokens.numel()


@pytest.fixture(scope="module")
def raw() -> dict:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for size in values["sizes"].values():
        size |= SMALL | {"context": 64}
    values["tokenizer"]["vocab_size"] = 300
    values["evaluation"]["speed_tokens"] = 8
    values["compute"] |= {"device": "cpu", "threads": 1}
    batches = {"quick": {"2m": 16, "7m": 8}, "fast": {"2m": 4, "7m": 8}}
    for recipe, sizes in batches.items():
        values["recipes"][recipe]["defaults"] |= {"optimizer": "muon", "dropout": 0.0}
        for size, batch in sizes.items():
            values["recipes"][recipe]["sizes"][size] |= {
                "tokens_per_step": batch * 64,
                "micro_batch": min(batch, 8) if size == "7m" else batch,
            }
    return values


def test_each_size_is_measured_with_each_batch_size(raw: dict) -> None:
    found = [(task.params.model, task.batch, task.recipes)
             for task in train.tasks(raw, ["2m", "7m"], ["quick", "fast"])]  # fmt: skip
    assert found == [
        ("2m", 16, ["quick"]),
        ("2m", 4, ["fast"]),
        ("7m", 16, []),
        ("7m", 8, ["quick", "fast"]),
    ]


def test_loops_are_measured_and_results_kept(
    raw: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BUILD", tmp_path)
    monkeypatch.setattr(train, "ROUND_SECONDS", 0.01)
    task = next(train.tasks(raw, ["2m"], ["fast"]))
    measured = train.measure(task, "cpu", "", rounds=2)
    assert [row.loop for row in measured.rows] == ["StoryLlamas", "plain loop"]
    for row in measured.rows:
        assert len(row.speeds) == 2
        assert 1e2 < row.speed < 1e8
        assert 1e7 < row.peak_bytes < 1e11
    assert all(1e8 < peak < 1e15 for peak in measured.peaks.values())
    train_report.write(tmp_path / "kept.json", [measured])
    assert train_report.read(tmp_path / "kept.json") == [measured]
    text = train_report.markdown([measured], "a machine", "a machine, 1 thread")
    (table,) = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(table.splitlines()) == 4
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| plain loop |" in table
    assert "| 1.00 × |" in table
    page = tmp_path / "machine-training.md"
    page.write_text(text)
    index.write(tmp_path)
    assert pages.read(page).title == "a machine"
    assert "| [a machine](machine-training.md) |" in (tmp_path / "README.md").read_text()


class FakeWorker:
    """A worker whose first answers are right and which then crashes."""

    def __init__(self, requests: int) -> None:
        self.left = requests

    def ask(self, request: str) -> dict:
        self.left -= 1
        if self.left < 0:
            raise WorkerError(["worker"], request, "SIGILL")
        return {"seconds": 1.0, "about": "eager", "peak_bytes": 10**9}

    def pause(self) -> None:
        pass

    resume = pause


@pytest.mark.parametrize("requests", [0, 3, 4])
def test_loop_that_crashes_is_a_row(requests: int) -> None:
    case = train_report.Case("2m", 4, 4, ["fast"])
    rows = []
    for loop, answers in (("plain loop", 100), ("llama2.c", requests)):
        runner = train._Runner(FakeWorker(answers), loop, 64)
        for _ in range(2):
            runner.take_steps()
        rows.append(runner.row)
    assert [row.failure for row in rows] == ["", "SIGILL"]
    peaks = {"float32": 1e11}
    measured = train_report.Measured(case, 1000, peaks, rows, "2026-01-01")
    text = train_report.markdown([measured], "a machine", "a machine")
    assert "| llama2.c | SIGILL |" in text
    (table,) = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_crash_of_our_loop_is_an_error() -> None:
    with pytest.raises(WorkerError, match="SIGILL"):
        train._Runner(FakeWorker(0), "StoryLlamas", 64)


def test_page_and_index_of_a_training_benchmark(
    raw: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(task: train.Task, where: str, llama2c: str, rounds: int) -> train_report.Measured:
        case = train_report.Case(task.params.model, task.batch, task.batch, task.recipes)
        row = train_report.Row("plain loop", "eager", 1.0, [2000.0], 10**9)
        rows = [train_report.Row("StoryLlamas", "compiled", 1.0, [3000.0], 10**9), row]
        return train_report.Measured(case, 1000, {"float32": 1e11}, rows, "2026-01-01 00:00 UTC")

    monkeypatch.setattr(train, "measure", measure)
    monkeypatch.setattr(train.params, "read", lambda path: raw)
    monkeypatch.setattr(build, "BUILD", tmp_path / "build")
    monkeypatch.setattr("sys.argv", ["train", "--sizes", "2m", "--out", str(tmp_path)])
    monkeypatch.delenv("LLAMA2C", raising=False)
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 0
    (path,) = tmp_path.glob("*-training.md")
    (rows,) = pages.read(path).tables.values()
    assert [row["speed-up"] for row in rows] == ["1.50 ×", "1.00 ×"] * 2
    assert "| 3.0k (1.50 ×) |" in (tmp_path / "README.md").read_text()
