"""`make bench-train`: measure the speed of training, compared with a plain PyTorch loop.

Each loop runs in its own process. The loops take steps in interleaved rounds, so that a disturbance
affects them equally. Measurements of the same code on the same machine are kept in build/bench and
stay in the table, so that you can measure one size at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import build, index, processor, train_report
from bench.plain_loop import Shape
from bench.train_report import Case, Measured, Row
from bench.train_worker import LLAMA2C, OURS, PEAK, PLAIN, Setup
from bench.worker import Worker, WorkerError
from storyllamas import params, token_file
from storyllamas.atomic import write_text
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.params import Params
from storyllamas.training import device, distributed, process_env
from storyllamas.training.memory import most_sequences

BATCH = 16
"""Sequences a step with which all sizes are measured, in addition to those of the recipes."""

ROUND_SECONDS = 1.0
"""Minimum time of a round of a loop."""

RANDOM_TOKENS = 1 << 20

TIMEOUT_SECONDS = 3600.0
"""A loop that takes longer for a request is killed; compiling takes minutes on a busy machine."""


@dataclass(frozen=True)
class Task:
    """A size and a batch size.

    Attributes:
        params: of the first recipe with this batch size.
        raw: the same, as the content of params.yaml.
        batch: sequences a step.
        recipes: recipes that train this size with this batch size.
    """

    params: Params
    raw: dict[str, Any]
    batch: int
    recipes: list[str]


def tasks(
    raw: dict[str, Any], sizes: Sequence[str], recipes: Sequence[str], where: str = "cpu"
) -> Iterator[Task]:
    """Yield each size with `BATCH` sequences a step, then with the batch sizes of the recipes.

    Args:
        raw: content of params.yaml, of which `train` is ignored.
        sizes: keys of its `sizes`.
        recipes: keys of its `recipes`; `BATCH` is measured with the first.
        where: cpu, cuda or mps.
    """
    for size in sizes:
        found: dict[str, Task] = {}
        context = raw["sizes"][size]["context"] if size in raw["sizes"] else 0
        common = {"tokens_per_step": BATCH * context, "micro_batch": BATCH}
        for recipe, changes in [(recipes[0], common), *((name, {}) for name in recipes)]:
            values = {**raw, "model": size, "recipe": recipe, "train": changes}
            chosen = params.parse(values)
            if chosen.recipe.micro_batch == params.AUTO:
                # The other loops take what ours does, where it fits the memory.
                limit = most_sequences(where, context) or most_sequences("cpu", context)
                fits = distributed.micro_batch(chosen.recipe, context, 1, limit)
                values = {**values, "train": {"micro_batch": fits}}
                chosen = params.parse(values)
            batch = chosen.recipe.tokens_per_step // context
            speed = (batch, chosen.recipe.micro_batch, chosen.recipe.optimizer)
            key = repr((*speed, chosen.recipe.dropout > 0))
            task = found.setdefault(key, Task(chosen, values, batch, []))
            if not changes:
                task.recipes.append(recipe)
        yield from found.values()


class _Runner:
    """A loop in its process, paused between rounds; `row.failure` says why it stopped."""

    def __init__(self, worker: Worker, loop: str, tokens_per_step: int) -> None:
        self._worker, self._tokens_per_step = worker, tokens_per_step
        self.row = Row(loop, "", 0.0, [], 0)
        self._try(self._take_first_steps)

    def take_steps(self) -> None:
        """Measure one round."""
        if not self.row.failure:
            self._try(self._take_steps)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except WorkerError as error:
            if self.row.loop == OURS:
                raise
            self.row.failure = error.reason

    def _take_first_steps(self) -> None:
        first, second = (self._worker.ask("steps 1")["seconds"] for _ in range(2))
        self._steps = math.ceil(ROUND_SECONDS / second)
        about = self._worker.ask("about")
        self._worker.pause()
        self.row.about = about["about"]
        self.row.start = about["seconds"] + max(0.0, first - second)

    def _take_steps(self) -> None:
        self._worker.resume()
        answer = self._worker.ask(f"steps {self._steps}")
        self._worker.pause()
        self.row.speeds.append(self._steps * self._tokens_per_step / answer["seconds"])
        self.row.peak_bytes = answer["peak_bytes"]


def measure(task: Task, where: str, llama2c: str, rounds: int) -> Measured:
    """Measure tokens a second of each loop and, between rounds, the peak of matrix products."""
    recipe = task.params.recipe
    peaks = dict.fromkeys(precisions(where), 0.0)
    with ExitStack() as stack:
        arithmetic = stack.enter_context(_start(Setup(PEAK, where)))
        runners = []
        for setup in _setups(task, where, llama2c):
            worker = stack.enter_context(_start(setup))
            runners.append(_Runner(worker, setup.loop, recipe.tokens_per_step))
        for _ in range(rounds):
            for runner in runners:
                runner.take_steps()
            arithmetic.resume()
            for precision, before in peaks.items():
                found = arithmetic.ask(f"peak {precision}")["operations"]
                peaks[precision] = max(before, found)
            arithmetic.pause()
    micro_batch = distributed.micro_batch(recipe, task.params.size.context, 1)
    case = Case(task.params.model, task.batch, micro_batch, task.recipes)
    flops = task.params.model_config().training_flops
    return Measured(case, flops, peaks, [runner.row for runner in runners], _now())


def precisions(where: str) -> list[str]:
    """Return the precisions to measure on a device: bfloat16 only where it is the faster one."""
    is_measured = {"float32": True, "bfloat16": device.computes_in_bfloat16(where)}
    return [precision for precision in train_report.PRECISIONS if is_measured[precision]]


def _start(setup: Setup) -> Worker:
    ours = process_env.variables() if setup.loop == OURS else {}
    command = ["env", *(f"{name}={value}" for name, value in ours.items()), sys.executable]
    return Worker(
        [*command, "-m", "bench.train_worker", json.dumps(asdict(setup))], TIMEOUT_SECONDS
    )


def _setups(task: Task, where: str, llama2c: str) -> Iterator[Setup]:
    config, recipe = task.params.model_config(), task.params.recipe
    yield Setup(OURS, where, params=task.raw, tokens=str(random_token_file(config.vocab_size)))
    shape = {field.name: getattr(config, field.name) for field in fields(Shape)}
    micro_batch = distributed.micro_batch(recipe, config.context, 1)
    plain = Setup(PLAIN, where, shape=shape, batch=task.batch, micro_batch=micro_batch)
    yield plain
    if llama2c:
        yield replace(plain, loop=LLAMA2C, llama2c=llama2c)


def random_token_file(vocab_size: int) -> Path:
    """Return a file of random tokens; the time does not depend on their values."""
    path = build.BUILD / "training" / f"random-{vocab_size}.bin"
    if not path.exists():
        ids = np.random.default_rng(0).integers(vocab_size, size=RANDOM_TOKENS, dtype=np.uint16)
        with token_file.write(path, vocab_size, bytes(32)) as writer:
            writer.append(ids, 1, RANDOM_TOKENS)
    return path


def _now() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"


def kept(raw: dict[str, Any], machine: str, llama2c: str) -> Path:
    """Return the path of the measurements of this code on this machine."""
    digest = hashlib.sha256()
    digest.update(json.dumps([raw["recipes"], raw["compute"], machine, llama2c]).encode())
    library = build.ROOT / "storyllamas"
    for path in [
        *sorted((library / "training").rglob("*.py")),
        *sorted((library / "training" / "fused").glob("*.[ch]")),
        library / "model.py",
        build.BENCH / "train_worker.py",
        build.BENCH / "plain_loop.py",
    ]:
        digest.update(path.read_bytes())
    return build.BUILD / "training" / f"{digest.hexdigest()[:16]}.json"


def title(where: str) -> str:
    """Return the name of the GPU in use, or of the processor with its instruction set."""
    return torch.cuda.get_device_name() if where == "cuda" else processor.title()


def machine(where: str) -> str:
    """Describe the processor, the GPU in use, threads and the version of PyTorch."""
    about = title(where)
    if where == "cuda":
        about = f"{about}, {processor.title()}"
    return f"{about}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


@exit_on_user_error
def main() -> None:
    """Parse the command line, measure and write the page of this machine in bench/results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.train", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--sizes", nargs="+", default=["2m", "7m", "30m"], help="keys of `sizes` in params.yaml"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each loop")
    parser.add_argument(
        "--recipes", nargs="+", default=["quick", "fast"], help="keys of `recipes` in params.yaml"
    )
    parser.add_argument("--out", type=Path, default=index.RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}: give 1 or more")
    llama2c = os.environ.get("LLAMA2C", "")
    if llama2c and not (Path(llama2c) / "model.py").exists():
        raise UserError(
            f"LLAMA2C is {llama2c}, which has no model.py: set it to a llama2.c checkout"
        )
    raw = params.read(build.ROOT / "params.yaml")
    where = device.choose(params.parse(raw).compute).name
    about = machine(where)
    path = kept(raw, about, llama2c)
    found = {one.case.key: one for one in train_report.read(path)}
    for task in tasks(raw, arguments.sizes, arguments.recipes, where):
        print(f"{task.params.model}: measuring {task.batch} sequences a step", flush=True)
        one = measure(task, where, llama2c, arguments.rounds)
        found[one.case.key] = one
        train_report.write(path, list(found.values()))
    order = list(raw["sizes"])
    rows = sorted(found.values(), key=lambda one: (order.index(one.case.size), -one.case.batch))
    text = train_report.markdown(rows, title(where), about)
    name = f"{processor.slug(title(where))}{train_report.TRAINING_SUFFIX}"
    write_text(arguments.out / f"{name}.md", text)
    index.write(arguments.out)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
