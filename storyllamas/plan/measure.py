"""Measure training steps of several sizes on this machine, in a process of its own.

The process reads a `Request` in JSON, and writes a line of JSON for the machine and one for each
size as soon as it is measured. Steps run on random tokens: in C if the run's steps do, otherwise
uncompiled, since torch.compile takes longer than the whole measurement. estimate.py corrects for
it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from storyllamas.training import process_env

    process_env.prepare()

import dataclasses
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storyllamas import params
from storyllamas.config import ModelConfig
from storyllamas.errors import exit_on_user_error
from storyllamas.model import Llama
from storyllamas.plan import energy
from storyllamas.token_file import TokenFile
from storyllamas.training import device as devices
from storyllamas.training import memory, speed_log
from storyllamas.training.compiled import loss_in_c
from storyllamas.training.device import Device
from storyllamas.training.fused import FusedLoss
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.job import Job
from storyllamas.training.loop import Trainer
from storyllamas.training.metrics import matmul_peak, memory_bytes
from storyllamas.training.start import Start, trained_tensors

RANDOM_TOKENS = 1 << 17

STEPS_SHARE = 0.55
"""Share of a size's time that goes to steps; the rest goes to setup, products and validation."""

MIN_STEPS = 3
MAX_STEPS = 50


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        until: time at which to end, as `time.time` counts.
        sizes: content of params.yaml for each size, in the order of importance.
    """

    until: float
    sizes: list[dict[str, Any]]


@dataclass(frozen=True)
class Machine:
    """What all sizes share.

    Attributes:
        name: the processor or GPU, and the version of PyTorch.
        device: cpu, cuda or mps.
        precision: float32 or bfloat16.
        threads: CPU threads.
        base_bytes: memory of the process before there is a model.
        peak_flops_per_second: speed of large matrix products.
    """

    name: str
    device: str
    precision: str
    threads: int
    base_bytes: int
    peak_flops_per_second: float


@dataclass(frozen=True)
class Measured:
    """The measurements of one size; times are medians in seconds.

    Attributes:
        size: key of `sizes` in params.yaml.
        micro_batch: sequences in one forward pass of the run.
        pass_per_token: a forward and backward pass, in C or uncompiled.
        products_per_token: the matrix products of the weights in it; 0 if it is in C.
        optimizer: one step of the optimizers.
        validation_per_token: a forward pass, in C or uncompiled.
        sequence_bytes: activations that one sequence adds, uncompiled.
        state_bytes: gradients and state of the optimizers.
        trained_bytes: the weights that training changes, which a checkpoint has.
        watts: power during the steps; None: the system does not tell.
        c_bytes: what a step in C keeps in memory; None: the step is not in C.
    """

    size: str
    micro_batch: int
    pass_per_token: float
    products_per_token: float
    optimizer: float
    validation_per_token: float
    sequence_bytes: int
    state_bytes: int
    trained_bytes: int
    watts: float | None
    c_bytes: int | None = None

    @property
    def is_in_c(self) -> bool:
        """Whether the steps are C code."""
        return self.c_bytes is not None


def measure_machine(where: Device) -> Machine:
    """Measure what all sizes share, in some 0.3 seconds."""
    return Machine(
        name=speed_log.machine(where.name),
        device=where.name,
        precision=where.precision,
        threads=where.threads,
        base_bytes=memory_bytes(where.name),
        peak_flops_per_second=matmul_peak(where.name, where.precision),
    )


def measure_size(chosen: params.Params, where: Device, seconds: float) -> Measured:
    """Measure the chosen size for about `seconds`."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(_job(chosen, where), Path(folder), None)
        in_c = _step_in_c(trainer, chosen, where)
        size = trainer.micro_batch.size
        sequence = memory.sequence_bytes(trainer.model, where)
        steps = _Steps(trainer)
        # Threads compute whole sequences, so with fewer of them some would have nothing to do.
        together = min(size, where.threads) if where.name == "cpu" else 1
        # Without the optimizers, which take seconds for a large model.
        once = min(steps.take_pass(together) for _ in range(2))
        left = STEPS_SHARE * (seconds - (time.monotonic() - began))
        windows = together * max(1, min(size // together, int(left / MIN_STEPS / once)))
        with energy.measured() as meter:
            passes, updates = steps.take_for(left, windows)
        tokens = windows * chosen.size.context
        windows_of_a_step = chosen.recipe.tokens_per_step // chosen.size.context
        validation = _timed(lambda: trainer._validation_total(), where)
        trainer.close_logs()
        return Measured(
            size=chosen.model,
            micro_batch=size,
            pass_per_token=passes / tokens,
            products_per_token=0.0 if in_c else _products(trainer.model, tokens, where) / tokens,
            optimizer=updates,
            validation_per_token=validation / trainer.validation_set[0].size,
            sequence_bytes=sequence,
            state_bytes=memory.state_bytes(trainer.model, chosen.recipe),
            trained_bytes=sum(each.nbytes for each in trained_tensors(trainer.model).values()),
            watts=meter.watts,
            c_bytes=in_c.bytes(windows_of_a_step) if in_c else None,
        )


def _step_in_c(trainer: Trainer, chosen: params.Params, where: Device) -> FusedLoss | None:
    """Let the trainer take its steps in C if the run's steps do."""
    if not devices.is_compiled(chosen.compute, where.name, chosen.training_flops):
        return None
    if loss := loss_in_c(trainer.model, where):
        trainer.use(loss)
    return loss


class _Steps:
    """Training steps of a chosen number of windows, timed."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._interrupt = trainer, Interrupt()
        self._update, self._updates = trainer.optimizers.step, 0.0
        trainer.optimizers.step = self._step  # type: ignore[method-assign]

    def _step(self, learning_rate: float) -> None:
        where = self._trainer.job.device
        self._updates = _timed(lambda: self._update(learning_rate), where)

    def take(self, windows: int) -> tuple[float, float]:
        """Take a step; return the seconds of its pass and of its optimizers."""
        job = self._trainer.job
        recipe = dataclasses.replace(job.recipe, tokens_per_step=windows * job.config.context)
        self._trainer.job = dataclasses.replace(job, recipe=recipe)
        self._trainer.micro_batch.size = windows
        seconds = _timed(lambda: self._trainer.train_step(self._interrupt), job.device)
        return seconds - self._updates, self._updates

    def take_pass(self, windows: int) -> float:
        """Return the seconds of a forward and backward pass, without a step."""
        trainer, config = self._trainer, self._trainer.job.config
        trainer.micro_batch.size = windows
        batch = trainer.job.train.batch(0, windows, config.context, 0)
        trainer.model.train()
        seconds = _timed(lambda: trainer._accumulate(batch, self._interrupt), trainer.job.device)
        trainer.model.zero_grad(set_to_none=True)
        return seconds

    def take_for(self, seconds: float, windows: int) -> tuple[float, float]:
        """Take steps for some time; return the medians of `take`."""
        stop = time.monotonic() + seconds
        self.take(windows)  # gets memory from the system, which later steps use again
        taken = [self.take(windows)]
        while time.monotonic() < stop and len(taken) < MAX_STEPS:
            taken.append(self.take(windows))
        passes, updates = zip(*taken, strict=True)
        return median(passes), median(updates)


def _job(chosen: params.Params, where: Device) -> Job:
    """Return a job on random tokens, whose values do not change the speed."""
    config = chosen.model_config()
    length = max(RANDOM_TOKENS, 4 * config.context)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=length, dtype=np.uint16)
    data = TokenFile(Path("random"), ids, config.vocab_size, 1, length, bytes(32))
    # All steps have the sequences of most steps.
    half = float(round(chosen.recipe.half_context))
    recipe = dataclasses.replace(chosen.recipe, eval_sequences=1, half_context=half)
    uncompiled = dataclasses.replace(where, compiled=False)
    return Job(config, recipe, chosen.seed, data, data, uncompiled, _start(chosen, config))


def _start(chosen: params.Params, config: ModelConfig) -> Start | None:
    """Return random weights with what fine-tuning changes of them; None if it changes all."""
    fine_tuning = chosen.fine_tuning
    if not (fine_tuning.freeze or fine_tuning.lora):
        return None
    return Start(Llama(config).state_dict(), fine_tuning.freeze, fine_tuning.lora)


def _products(model: Llama, rows: int, where: Device) -> float:
    """Return the seconds of all products of a weight in a forward and backward pass of `rows`."""
    dtype = torch.bfloat16 if where.bfloat16 else torch.float32
    total = 0.0
    for (outputs, inputs, has_below, is_trained), count in _matrices(model).items():
        x, weight, gradient = (
            torch.randn(*shape, device=where.name, dtype=dtype)
            for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
        )
        multiply = _multiplier(x, weight, gradient, has_below, is_trained)
        total += count * min(_timed(multiply, where) for _ in range(2))
    return total


def _matrices(model: Llama) -> Counter[tuple[int, int, bool, bool]]:
    """Count the matrices by rows, columns, whether a weight before it is trained, and it is."""
    found: Counter[tuple[int, int, bool, bool]] = Counter()
    embedding = model.embedding.weight
    has_below = embedding.requires_grad
    classifier = embedding if model.config.tied else model.classifier.weight
    for weight in (*model.layers.parameters(), classifier):
        if weight.ndim == 2:
            rows, columns = weight.shape
            found[rows, columns, has_below, weight.requires_grad] += 1
        has_below |= weight.requires_grad
    return found


def _multiplier(
    x: Tensor, weight: Tensor, gradient: Tensor, has_below: bool, is_trained: bool
) -> Callable[[], object]:
    """Return a function that computes the outputs of a matrix, and the gradients that it needs.

    Args:
        x: inputs, [rows, columns of the matrix].
        weight: the matrix.
        gradient: that of the outputs, [rows, rows of the matrix].
        has_below: whether the inputs have a gradient.
        is_trained: whether the matrix has one.
    """

    def multiply() -> None:
        _ = x @ weight.T
        if has_below:
            _ = gradient @ weight
        if is_trained:
            _ = gradient.T @ x

    return multiply


def _timed(action: Callable[[], object], where: Device) -> float:
    """Return the seconds of an action, on a GPU until it is finished."""
    started = time.perf_counter()
    action()
    if where.name == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@exit_on_user_error
def main() -> None:
    """Answer the request of standard input."""
    request = Request(**json.load(sys.stdin))
    sizes = [params.parse(raw) for raw in request.sizes]
    where = devices.choose(sizes[0].compute)
    _import_optimizers()
    _answer(measure_machine(where))
    for index, chosen in enumerate(sizes):
        seconds = (request.until - time.time()) / (len(sizes) - index)
        _answer(measure_size(chosen, where, max(0.0, seconds)))


def _import_optimizers() -> None:
    """Take a step of an optimizer: the first one of a process imports PyTorch's compiler."""
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], fused=True).step()


def _answer(result: Machine | Measured) -> None:
    print(json.dumps(dataclasses.asdict(result)), flush=True)


if __name__ == "__main__":
    main()
