"""Measure all engines in interleaved rounds, so that a disturbance affects them equally."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from statistics import median

from bench import build
from bench.engines import Engine, Worker
from bench.models import Model

EOS = 2
PROMPT = 128
BATCH = 32
BATCH_STEPS = 127
ENOUGH_SECONDS = 0.15
MAX_TRIES = 6
SLOW_SECONDS = 2.0
"""A slower request is measured in three rounds only."""


@dataclass(frozen=True)
class Task:
    """A request to a worker, see worker.h.

    Attributes:
        name: of the task.
        request: without the seed.
        warm_up: a short request with its seed.
        tokens: that the request generates or, for a prompt, computes.
    """

    name: str
    request: str
    warm_up: str
    tokens: int


@dataclass
class Cell:
    """One engine, task and thread count; `speeds` are tokens a second of each round."""

    engine: Engine
    threads: int
    task: Task
    speeds: list[float] = field(default_factory=list)
    is_possible: bool = True

    @property
    def is_slow(self) -> bool:
        """Return whether to skip rounds."""
        return bool(self.speeds) and self.task.tokens / self.speeds[0] > SLOW_SECONDS


def sequence_steps(model: Model) -> int:
    """Return the number of tokens that fill the context after BOS."""
    return model.config.context - 1


def measure(model: Model, engines: Sequence[Engine], rounds: int) -> list[Cell]:
    """Measure tokens a second of each engine that is not missing."""
    steps = sequence_steps(model)
    tasks = [
        Task("story", f"story {steps}", "story 16 0", steps),
        Task("prompt", f"prompt {PROMPT}", f"prompt {PROMPT} 0", PROMPT),
        Task(*("batch", f"batch {BATCH} {BATCH_STEPS}", f"batch {BATCH} 2 0"), BATCH * BATCH_STEPS),
    ]
    with ExitStack() as stack:
        workers: list[tuple[Worker, list[Cell]]] = []
        for engine in engines:
            for threads in () if engine.missing else engine.threads:
                command = engine.command(model.folder / engine.format, threads)
                worker = stack.enter_context(Worker(command))
                wanted = [task for task in tasks if engine.does(task.name, threads)]
                cells = [Cell(engine, threads, task) for task in wanted]
                _warm_up(worker, cells)
                workers.append((worker, cells))
        for number in range(rounds):
            for worker, cells in workers:
                _ask_all(worker, cells, number, rounds)
    return [cell for _, cells in workers for cell in cells if cell.speeds]


def _warm_up(worker: Worker, cells: list[Cell]) -> None:
    for cell in cells:
        cell.is_possible = bool(worker.ask(cell.task.warm_up))
    worker.pause()


def _ask_all(worker: Worker, cells: list[Cell], number: int, rounds: int) -> None:
    worker.resume()
    for cell in cells:
        if cell.is_possible and (not cell.is_slow or number in (rounds // 2, rounds - 1)):
            cell.speeds.append(_speed(worker, cell.task, number))
    worker.pause()


def _speed(worker: Worker, task: Task, number: int) -> float:
    """Return tokens a second; repeat quick requests, drop the first and take the median."""
    seconds: list[float] = []
    while len(seconds) < MAX_TRIES and sum(seconds) < ENOUGH_SECONDS:
        seed = 1 + MAX_TRIES * number + len(seconds)
        seconds.append(float(worker.ask(f"{task.request} {seed}")["seconds"]))
    return task.tokens / median(seconds[1:] or seconds)


@dataclass(frozen=True)
class Greedy:
    """A greedy sequence of an engine, compared with the reference.

    Attributes:
        engine: that generated it.
        equal: tokens before the first difference.
        steps: tokens of the reference before EOS.
        about: version of the engine.
    """

    engine: Engine
    equal: int
    steps: int
    about: str


def greedy(model: Model, engines: Sequence[Engine]) -> list[Greedy]:
    """Compare the greedy sequence of each engine, up to EOS, with that of the first engine."""
    found: list[Greedy] = []
    reference: list[int] = []
    for engine in engines:
        if engine.missing:
            continue
        with Worker(engine.command(model.folder / engine.format, 1)) as worker:
            ids = worker.ask(f"greedy {sequence_steps(model)}")["ids"]
            about = str(worker.ask("about")["about"])
        reference = reference or [*takewhile(lambda id: id != EOS, ids)]
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(reference, ids, strict=False))
        found.append(Greedy(engine, len([*equal]), len(reference), about))
    return found


@dataclass(frozen=True)
class Start:
    """A program in a new process: seconds to its first byte of output, and peak memory in bytes."""

    program: str
    first_byte: float
    peak_bytes: int


def start(model: Model, rounds: int) -> list[Start]:
    """Measure StoryLlamas and llama2.c with 8-bit weights whose files are in the page cache.

    The last entry is a program that does nothing, the cost of a process.
    """
    folder = model.folder
    commands: dict[str, list[str | Path]] = {
        "StoryLlamas q8": [build.engine_program(), folder / "q8.slm"]
    }
    if checkout := os.environ.get("LLAMA2C"):
        program, files = build.llama2c_program(Path(checkout), "runq.c"), folder / "llama2c-q8"
        tokenizer = files / "tokenizer.bin"
        commands["llama2.c int8"] = [program, files / "model.bin", "-z", tokenizer]
    commands["empty program"] = [shutil.which("true") or "/bin/true"]
    watcher = build.start()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            output = subprocess.run([watcher, *command], capture_output=True, check=True).stdout
            runs[name].append(json.loads(output))
    return [
        Start(
            name,
            median(run["first_byte"] for run in found[1:]),  # the first fills the page cache
            int(median(run["peak_bytes"] for run in found)),
        )
        for name, found in runs.items()
    ]
