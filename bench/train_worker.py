"""Run one training loop in its own process, from a `Setup` in JSON.

The process reads requests, one a line, and answers each with a line of JSON:

    steps N      take N steps: {"seconds", "peak_bytes"}
    peak TYPE    multiply matrices in float32 or bfloat16: {"operations"} a second ("peak" only)
    about        describe the loop: {"about", "seconds"}, the seconds of its setup
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

OURS, PLAIN, LLAMA2C, PEAK = "StoryLlamas", "plain loop", "llama2.c", "peak"

LLAMA2C_NAMES = {
    "dim": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "kv_heads": "n_kv_heads",
    "hidden": "hidden_dim",
    "context": "max_seq_len",
    "vocab_size": "vocab_size",
}


@dataclass(frozen=True)
class Setup:
    """The task of a worker.

    Attributes:
        loop: OURS, PLAIN, LLAMA2C or PEAK.
        device: cpu, cuda or mps.
        params: content of params.yaml with size, recipe and batch size (OURS only).
        tokens: path of a token file (OURS only); the others draw random ids.
        shape: fields of `plain_loop.Shape` (PLAIN and LLAMA2C).
        batch: sequences a step.
        micro_batch: sequences a forward pass.
        llama2c: folder of its checkout (LLAMA2C only).
    """

    loop: str
    device: str
    params: dict[str, Any] = field(default_factory=dict)
    tokens: str = ""
    shape: dict[str, Any] = field(default_factory=dict)
    batch: int = 1
    micro_batch: int = 1
    llama2c: str = ""


@dataclass(frozen=True)
class Loop:
    """A loop that is set up.

    Attributes:
        step: takes one optimizer step; on a GPU it may still run when `step` returns.
        device: cpu, cuda or mps.
        about: precision, optimizer, compiled or eager.
    """

    step: Callable[[], object]
    device: str
    about: str


def main() -> None:
    """Set up the loop of the command line and answer requests until standard input ends."""
    setup = Setup(**json.loads(sys.argv[1]))
    # Libraries print to stdout: redirect them to stderr, so that only answers are on stdout.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        if setup.loop == PEAK:
            from storyllamas.training.metrics import matmul_peak

            for request in sys.stdin:
                _answer(answers, {"operations": matmul_peak(setup.device, request.split()[1])})
            return
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            loop = {OURS: _ours, PLAIN: _plain, LLAMA2C: _llama2c}[setup.loop](setup, Path(folder))
            about = {"about": loop.about, "seconds": time.perf_counter() - begun}
            for request in sys.stdin:
                steps = request.split()
                _answer(answers, about if steps == ["about"] else _done(loop, int(steps[1])))


def _answer(answers: TextIO, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


def _done(loop: Loop, steps: int) -> dict[str, Any]:
    from storyllamas.training.metrics import peak_memory_bytes

    begun = time.perf_counter()
    for _ in range(steps):
        loop.step()
    if loop.device == "cuda":
        import torch

        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak_bytes": peak_memory_bytes(loop.device)}


# ---- The loops -----------------------------------------------------------------------------------


def _ours(setup: Setup, folder: Path) -> Loop:
    """Set up the trainer of the stage `train`."""
    from storyllamas import params, token_file
    from storyllamas.training import device
    from storyllamas.training.interrupt import Interrupt
    from storyllamas.training.job import Job
    from storyllamas.training.loop import Trainer

    chosen = params.parse(setup.params)
    data = token_file.read(setup.tokens)
    where = device.choose(chosen.compute, chosen.training_flops)
    job = Job(chosen.model_config(), chosen.recipe, chosen.seed, data, data, where)
    trainer, interrupt = Trainer(job, folder, None), Interrupt()
    how = "compiled" if where.compiled else "eager"
    about = f"{where.precision}, {chosen.recipe.optimizer}, {how}"
    return Loop(lambda: trainer.train_step(interrupt), where.name, about)


def _plain(setup: Setup, folder: Path) -> Loop:
    """Set up bench/plain_loop.py; its process imports nothing of the library."""
    from bench.plain_loop import Llama, Shape, train

    shape = Shape(**setup.shape)
    batches = setup.batch, setup.micro_batch
    steps = train(Llama(shape), _ids(setup), shape.context, *batches, setup.device)
    return Loop(lambda: next(steps), setup.device, "float32, adamw, eager")


def _llama2c(setup: Setup, folder: Path) -> Loop:
    """Set up the model and the loop of llama2.c's train.py with its defaults.

    As in train.py, the model is compiled, and mixed precision is for CUDA only.
    """
    import torch

    sys.path.insert(0, setup.llama2c)
    from model import ModelArgs, Transformer  # type: ignore[import-not-found]

    on_gpu = setup.device == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    shape = {LLAMA2C_NAMES[name]: n for name, n in setup.shape.items() if name in LLAMA2C_NAMES}
    raw = Transformer(ModelArgs(**shape)).to(setup.device)
    optimizer = raw.configure_optimizers(0.1, 5e-4, (0.9, 0.95), setup.device)
    steps = _llama2c_steps(setup, raw, torch.compile(raw), optimizer, on_gpu)
    precision = "bfloat16" if on_gpu else "float32"
    return Loop(lambda: next(steps), setup.device, f"{precision}, adamw, torch.compile")


def _llama2c_steps(
    setup: Setup, raw: Any, model: Any, optimizer: Any, on_gpu: bool
) -> Iterator[float]:
    import torch

    from bench.plain_loop import random_batch

    ids, accumulate = _ids(setup), setup.batch // setup.micro_batch
    while True:
        for _ in range(accumulate):
            pair = random_batch(ids, setup.micro_batch, setup.shape["context"])
            with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
                model(*(part.to(setup.device).contiguous() for part in pair))
                loss = raw.last_loss / accumulate
            loss.backward()
        torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item() * accumulate


def _ids(setup: Setup) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(setup.shape["vocab_size"], size=1 << 20, dtype="u2")


if __name__ == "__main__":
    main()
