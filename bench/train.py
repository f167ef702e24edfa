"""`make bench-train`: how fast training is, beside a plain loop, on this machine.

Every loop is a process of its own; they take their steps in turns, so that what disturbs the
machine hits all alike. What was measured before with the same code on the same machine is kept in
build/bench and joins the table, so that sizes can be measured one at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import build, report, train_report
from bench.engines import Worker
from bench.plain_loop import Shape
from bench.train_report import Case, Measured, Row
from bench.train_worker import LLAMA2C, OURS, PEAK, PLAIN, Setup
from storyllamas import params, token_file
from storyllamas.atomic import write_text
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.params import Params
from storyllamas.training import device, process_env

BATCH = 16
"""Windows of a step at which all sizes are measured, whatever their recipe says."""

ROUND_SECONDS = 1.0
"""What a round of a loop takes at least."""

RANDOM_TOKENS = 1 << 20


@dataclass(frozen=True)
class Task:
    """A size, at a batch that some recipes take.

    Attributes:
        params: of the first of those recipes.
        raw: the same as it would stand in params.yaml.
        batch: windows of a step.
        recipes: which recipes have this size train so.
    """

    params: Params
    raw: dict[str, Any]
    batch: int
    recipes: list[str]


def tasks(raw: dict[str, Any], sizes: Sequence[str], recipes: Sequence[str]) -> Iterator[Task]:
    """Each size at the common batch, then at those of the recipes that take another.

    Args:
        raw: params.yaml as it was read; its `train` does not count.
        sizes: keys of its `sizes`.
        recipes: keys of its `recipes`; the common batch is measured with the first.
    """
    for size in sizes:
        found: dict[str, Task] = {}
        context = raw["sizes"][size]["context"] if size in raw["sizes"] else 0
        common = {"tokens_per_step": BATCH * context, "micro_batch": BATCH}
        for recipe, changes in [(recipes[0], common), *((name, {}) for name in recipes)]:
            values = {**raw, "model": size, "recipe": recipe, "train": changes}
            chosen = params.parse(values)
            batch = chosen.recipe.tokens_per_step // context
            speed = (batch, chosen.recipe.micro_batch, chosen.recipe.optimizer)
            key = repr((*speed, chosen.recipe.dropout > 0))
            task = found.setdefault(key, Task(chosen, values, batch, []))
            if not changes:
                task.recipes.append(recipe)
        yield from found.values()


class _Runner:
    """A loop at work: it waits, stopped, between its rounds."""

    def __init__(self, worker: Worker, loop: str, tokens_per_step: int) -> None:
        self._worker = worker
        first, second = (worker.ask("steps 1")["seconds"] for _ in range(2))
        self._steps = math.ceil(ROUND_SECONDS / second)
        self._tokens = self._steps * tokens_per_step
        about = worker.ask("about")
        worker.pause()
        start = about["seconds"] + max(0.0, first - second)
        self.row = Row(loop, about["about"], start, [], 0)

    def take_steps(self) -> None:
        """Measure one round."""
        self._worker.resume()
        answer = self._worker.ask(f"steps {self._steps}")
        self._worker.pause()
        self.row.speeds.append(self._tokens / answer["seconds"])
        self.row.peak_bytes = answer["peak_bytes"]


def measure(task: Task, where: str, llama2c: str, rounds: int) -> Measured:
    """Tokens a second of every loop, and the peak of arithmetic between their rounds."""
    recipe = task.params.recipe
    peaks = dict.fromkeys(train_report.PRECISIONS, 0.0)
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
    case = Case(task.params.model, task.batch, recipe.micro_batch, task.recipes)
    flops = task.params.model_config().training_flops
    return Measured(case, flops, peaks, [runner.row for runner in runners], _now())


def _start(setup: Setup) -> Worker:
    ours = process_env.variables() if setup.loop == OURS else {}
    command = ["env", *(f"{name}={value}" for name, value in ours.items()), sys.executable]
    return Worker([*command, "-m", "bench.train_worker", json.dumps(asdict(setup))])


def _setups(task: Task, where: str, llama2c: str) -> Iterator[Setup]:
    config, recipe = task.params.model_config(), task.params.recipe
    yield Setup(OURS, where, params=task.raw, tokens=str(_token_file(config.vocab_size)))
    shape = {field.name: getattr(config, field.name) for field in fields(Shape)}
    plain = Setup(PLAIN, where, shape=shape, batch=task.batch, micro_batch=recipe.micro_batch)
    yield plain
    if llama2c:
        yield replace(plain, loop=LLAMA2C, llama2c=llama2c)


def _token_file(vocab_size: int) -> Path:
    """Random tokens: which they are makes no difference to the time."""
    path = build.BUILD / "training" / f"random-{vocab_size}.bin"
    if not path.exists():
        ids = np.random.default_rng(0).integers(vocab_size, size=RANDOM_TOKENS, dtype=np.uint16)
        with token_file.write(path, vocab_size, bytes(32)) as writer:
            writer.append(ids, 1, RANDOM_TOKENS)
    return path


def _now() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"


def kept(raw: dict[str, Any], machine: str, llama2c: str) -> Path:
    """Where measurements of this code on this machine are."""
    digest = hashlib.sha256()
    digest.update(json.dumps([raw["recipes"], raw["compute"], machine, llama2c]).encode())
    library = build.ROOT / "storyllamas"
    for path in [
        *sorted((library / "training").glob("*.py")),
        library / "model.py",
        build.BENCH / "train_worker.py",
        build.BENCH / "plain_loop.py",
    ]:
        digest.update(path.read_bytes())
    return build.BUILD / "training" / f"{digest.hexdigest()[:16]}.json"


def machine(where: str) -> str:
    """The machine and what the loops run on."""
    about = f"{report.processor()}, {os.cpu_count()} cores"
    if where == "cuda":
        about = f"{torch.cuda.get_device_name()}, {about}"
    return f"{about}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


@exit_on_user_error
def main() -> None:
    """Measure what the command line says, and write TRAINING.md."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["2m", "7m", "30m"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=["quick", "fast"])
    parser.add_argument("--out", type=Path, default=build.BENCH / "TRAINING.md")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds} and must be 1 or more")
    llama2c = os.environ.get("LLAMA2C", "")
    if llama2c and not (Path(llama2c) / "model.py").exists():
        raise UserError(f"LLAMA2C is {llama2c}, which has no model.py: it must be its checkout")
    raw = params.read(build.ROOT / "params.yaml")
    where = device.choose(params.parse(raw).compute).name
    about = machine(where)
    path = kept(raw, about, llama2c)
    found = {one.case.key: one for one in train_report.read(path)}
    for task in tasks(raw, arguments.sizes, arguments.recipes):
        print(f"{task.params.model}, {task.batch} windows a step …", flush=True)
        one = measure(task, where, llama2c, arguments.rounds)
        found[one.case.key] = one
        train_report.write(path, list(found.values()))
    order = list(raw["sizes"])
    rows = sorted(found.values(), key=lambda one: (order.index(one.case.size), -one.case.batch))
    text = train_report.markdown(rows, about)
    write_text(arguments.out, text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
