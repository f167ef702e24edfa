"""Ask every engine in turn, round after round, so that what disturbs the machine hits all alike."""

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
STORIES = 32
BATCH_STEPS = 127
ENOUGH_SECONDS = 0.15
MOST_TRIES = 6
SLOW_SECONDS = 2.0
"""A request that takes longer is made in three rounds only."""


@dataclass(frozen=True)
class Task:
    """What an engine is asked to do: see worker.h. `tokens` are those that it is credited with."""

    name: str
    request: str
    warm_up: str
    tokens: int


@dataclass
class Cell:
    """One engine at one task, on so many threads: tokens a second of each round."""

    engine: Engine
    threads: int
    task: Task
    speeds: list[float] = field(default_factory=list)
    is_possible: bool = True

    @property
    def is_slow(self) -> bool:
        """Whether to ask less often."""
        return bool(self.speeds) and self.task.tokens / self.speeds[0] > SLOW_SECONDS


def story_steps(model: Model) -> int:
    """Tokens of a story that fills the context after BOS."""
    return model.config.context - 1


def measure(model: Model, engines: Sequence[Engine], rounds: int) -> list[Cell]:
    """Tokens a second of every engine that is there, on a model, interleaved."""
    tasks = [
        Task("story", f"story {story_steps(model)}", "story 16 0", story_steps(model)),
        Task("prompt", f"prompt {PROMPT}", f"prompt {PROMPT} 0", PROMPT),
        Task(
            *("batch", f"batch {STORIES} {BATCH_STEPS}", f"batch {STORIES} 2 0"),
            STORIES * BATCH_STEPS,
        ),
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
    """Tokens a second, of quick requests the median of several, the first to warm up."""
    seconds: list[float] = []
    while len(seconds) < MOST_TRIES and sum(seconds) < ENOUGH_SECONDS:
        seed = 1 + MOST_TRIES * number + len(seconds)
        seconds.append(float(worker.ask(f"{task.request} {seed}")["seconds"]))
    return task.tokens / median(seconds[1:] or seconds)


@dataclass(frozen=True)
class Greedy:
    """An engine's greedy story: how many of its first tokens are those of the reference."""

    engine: Engine
    equal: int
    steps: int
    about: str


def greedy(model: Model, engines: Sequence[Engine]) -> list[Greedy]:
    """Compare the greedy story of each engine, up to its end, with that of the first."""
    found: list[Greedy] = []
    reference: list[int] = []
    for engine in engines:
        if engine.missing:
            continue
        with Worker(engine.command(model.folder / engine.format, 1)) as worker:
            ids = worker.ask(f"greedy {story_steps(model)}")["ids"]
            about = str(worker.ask("about")["about"])
        reference = reference or [*takewhile(lambda id: id != EOS, ids)]
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(reference, ids, strict=False))
        found.append(Greedy(engine, len([*equal]), len(reference), about))
    return found


@dataclass(frozen=True)
class Start:
    """A program in a new process: seconds to its first byte of output, and its peak of memory."""

    program: str
    first_byte: float
    peak_bytes: int


def start(model: Model, rounds: int) -> list[Start]:
    """Our program and llama2.c's on 8-bit weights, with files that are in the page cache.

    The last one does nothing at all: what a process takes in any case.
    """
    folder = model.folder
    commands: dict[str, list[str | Path]] = {
        "StoryLlamas q8": [build.engine_program(), folder / "q8.slm"]
    }
    if checkout := os.environ.get("LLAMA2C"):
        program, files = build.llama2c_program(Path(checkout), "runq.c"), folder / "llama2c-q8"
        tokenizer = files / "tokenizer.bin"
        commands["llama2.c int8"] = [program, files / "model.bin", "-z", tokenizer]
    commands["a program that does nothing"] = [shutil.which("true") or "/bin/true"]
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
