"""Measure all engines in interleaved rounds, so that a disturbance affects them equally.

An engine that crashes is started again for its other tasks; the task that it crashes at is not
repeated. An engine that hangs does not get its other tasks. A row ends after `ROW_SECONDS`, however
many rounds there are, and all rows of a model end after `MODEL_SECONDS`. Rows whose rounds differ
by more than `NOISE` get more rounds, until they no longer do or a model has had `REPEAT_SECONDS` of
them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from statistics import median, quantiles
from time import monotonic
from typing import Any

from bench import build
from bench.engines import Engine
from bench.models import Model
from bench.worker import TIMED_OUT, Worker, WorkerError, is_signal, run_limited
from storyllamas.errors import UserError

EOS = 2
SEQUENCE, LONG_SEQUENCE = 255, 127
PROMPT, LONG_PROMPT = 128, 512
LONG_CONTEXT = 1024
"""From this context on, a model is measured with a longer prompt, and with shorter sequences, since
it is larger."""

BATCH = 32
BATCH_STEPS = 127
ENOUGH_SECONDS = 0.15
MAX_TRIES = 6

MIN_ROUNDS = 2
"""Rounds of a row, even if they take longer than `ROW_SECONDS`."""

ROW_SECONDS = 3.0
"""Time of a row; no round begins after it."""

NOISE = 0.1
"""Spread of a row's speeds, as a share of the median, above which the row is repeated."""

REPEAT_FACTOR = 4
"""A noisy row may take this many times the rounds and the seconds of another."""

MODEL_SECONDS = 300.0
"""Time of a model; no round but the first `MIN_ROUNDS` begins after it."""

REPEAT_SECONDS = 120.0
"""Time of the repeated rows of a model, all together."""


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
    """An engine, a thread count and a task.

    Attributes:
        engine: that is measured.
        threads: its thread count.
        task: that it does.
        speeds: tokens a second of each round.
        seconds: time of all rounds.
        failure: why it stopped, such as "SIGILL"; "" if it did not.
        detail: last line of its output to stderr, if it failed.
        is_possible: whether the engine can do the task.
    """

    engine: Engine
    threads: int
    task: Task
    speeds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    failure: str = ""
    detail: str = ""
    is_possible: bool = True

    @property
    def spread(self) -> float:
        """Return the range of the speeds; of their middle half if there are at least four.

        More rounds widen the range of all of them, but not that of the middle half.
        """
        if len(self.speeds) < 4:
            return max(self.speeds, default=0.0) - min(self.speeds, default=0.0)
        first, _, third = quantiles(self.speeds, method="inclusive")
        return third - first

    @property
    def is_noisy(self) -> bool:
        """Return whether the rounds differ by more than `NOISE`."""
        return bool(self.speeds) and self.spread > NOISE * median(self.speeds)

    def wants_round(self, factor: int = 1) -> bool:
        """Return whether to measure another round within `factor` times the time of a row."""
        if self.failure or not self.is_possible:
            return False
        return len(self.speeds) < MIN_ROUNDS or self.seconds < factor * ROW_SECONDS


def sequence_steps(model: Model) -> int:
    """Return the number of tokens of one sequence after BOS; the context has room for them."""
    if model.config.context >= LONG_CONTEXT:
        return LONG_SEQUENCE
    return min(model.config.context - 1, SEQUENCE)


def prompt_tokens(model: Model) -> int:
    """Return the number of tokens of a prompt; the context has room for them."""
    if model.config.context >= LONG_CONTEXT:
        return LONG_PROMPT
    return min(model.config.context - 1, PROMPT)


def tasks(model: Model) -> list[Task]:
    """Return the tasks that a model is measured at."""
    steps, prompt = sequence_steps(model), prompt_tokens(model)
    in_batch = min(steps, BATCH_STEPS)
    return [
        Task("story", f"story {steps}", "story 16 0", steps),
        Task("prompt", f"prompt {prompt}", f"prompt {prompt} 0", prompt),
        Task(*("batch", f"batch {BATCH} {in_batch}", f"batch {BATCH} 2 0"), BATCH * in_batch),
    ]


class Runner:
    """An engine with a thread count: its cells, and a worker that is restarted after a crash."""

    def __init__(self, model: Model, engine: Engine, threads: int) -> None:
        self._command = engine.command(model.folder / engine.format, threads)
        self._worker: Worker | None = None
        wanted = [task for task in tasks(model) if engine.does(task.name, threads)]
        self.cells = [Cell(engine, threads, task) for task in wanted]

    def close(self) -> None:
        """End the worker."""
        if self._worker:
            self._worker.close()
            self._worker = None

    def warm_up(self) -> None:
        """Do a short request of each task."""
        for cell in self.cells:
            if not cell.failure:
                cell.is_possible = bool(self._ask(cell, cell.task.warm_up)) or bool(cell.failure)
        if self._worker:
            self._worker.pause()

    def measure(self, cells: Sequence[Cell], number: int) -> None:
        """Measure a round.

        Args:
            cells: those of `self.cells` to measure.
            number: of the round, for the seeds.
        """
        if cells and not self._worker:
            self.warm_up()
        if self._worker:
            self._worker.resume()
        for cell in cells:
            if not cell.failure:
                self._measure_cell(cell, number)
        if self._worker:
            self._worker.pause()

    def _measure_cell(self, cell: Cell, number: int) -> None:
        """Repeat quick requests, drop the first and take the median."""
        seconds: list[float] = []
        while len(seconds) < MAX_TRIES and sum(seconds) < ENOUGH_SECONDS:
            seed = 1 + MAX_TRIES * number + len(seconds)
            answer = self._ask(cell, f"{cell.task.request} {seed}")
            if not answer:
                return
            seconds.append(float(answer["seconds"]))
        cell.seconds += sum(seconds)
        cell.speeds.append(cell.task.tokens / median(seconds[1:] or seconds))

    def _ask(self, cell: Cell, request: str) -> dict[str, Any]:
        """Return the answer; if the worker fails, note it in the cell and return {}."""
        try:
            if not self._worker:
                self._worker = Worker(self._command)
            return self._worker.ask(request)
        except WorkerError as error:
            cell.failure, cell.detail = error.reason, error.detail
            self.close()
            if error.reason == TIMED_OUT:
                self._skip_tasks()
            return {}

    def _skip_tasks(self) -> None:
        """Do not wait again for an engine that hangs."""
        for cell in self.cells:
            if not cell.failure and not cell.speeds:
                cell.failure, cell.detail = TIMED_OUT, "not tried: another task timed out"


def measure(model: Model, engines: Sequence[Engine], rounds: int) -> list[Cell]:
    """Measure tokens a second of each engine that is not missing.

    Returns:
        the cells that were measured, and those at which the engine failed.
    """
    with ExitStack() as stack:
        runners = []
        for engine in engines:
            for threads in () if engine.missing else engine.threads:
                runners.append(stack.enter_context(closing(Runner(model, engine, threads))))
                runners[-1].warm_up()
        end = monotonic() + MODEL_SECONDS
        for number in range(rounds):
            for runner in runners if number < MIN_ROUNDS or monotonic() < end else ():
                runner.measure([cell for cell in runner.cells if cell.wants_round()], number)
        end = monotonic() + REPEAT_SECONDS
        for number in range(rounds, REPEAT_FACTOR * rounds):
            for runner in runners if monotonic() < end else ():
                noisy = [cell for cell in runner.cells if cell.is_noisy]
                runner.measure([cell for cell in noisy if cell.wants_round(REPEAT_FACTOR)], number)
    return [cell for runner in runners for cell in runner.cells if cell.speeds or cell.failure]


def crash(model: Model, engine: Engine) -> str:
    """Return the first signal that ends an engine at a short request of each task, or ""."""
    for threads in engine.threads:
        with closing(Runner(model, engine, threads)) as runner:
            runner.warm_up()
        for cell in runner.cells:
            if is_signal(cell.failure):
                return cell.failure
    return ""


@dataclass(frozen=True)
class Greedy:
    """A greedy sequence of an engine, compared with the reference.

    Attributes:
        engine: that generated it.
        equal: tokens before the first difference.
        steps: tokens of the reference before EOS.
        about: version of the engine.
        failure: why the engine stopped, such as "SIGILL"; "" if it did not.
    """

    engine: Engine
    equal: int
    steps: int
    about: str
    failure: str = ""


def greedy(model: Model, engines: Sequence[Engine]) -> list[Greedy]:
    """Compare the greedy sequence of each engine, up to EOS, with that of the first engine."""
    found: list[Greedy] = []
    reference: list[int] = []
    for engine in engines:
        if engine.missing:
            continue
        try:
            with Worker(engine.command(model.folder / engine.format, 1)) as worker:
                about = str(worker.ask("about")["about"])
                ids = worker.ask(f"greedy {sequence_steps(model)}")["ids"]
        except WorkerError as error:
            found.append(Greedy(engine, 0, len(reference), "", error.reason))
            continue
        reference = reference or [*takewhile(lambda id: id != EOS, ids)]
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(reference, ids, strict=False))
        found.append(Greedy(engine, len([*equal]), len(reference), about))
    return found


@dataclass(frozen=True)
class Start:
    """A program in a new process.

    Attributes:
        program: name.
        first_byte: seconds to its first byte of output.
        peak_bytes: peak resident memory.
        failure: "failed" or "timed out" if it did; "" otherwise.
    """

    program: str
    first_byte: float
    peak_bytes: int
    failure: str = ""


EMPTY_PROGRAM = "empty program"
START_SECONDS = 60.0
"""A program that takes longer is killed."""


def start(model: Model, rounds: int) -> list[Start]:
    """Measure StoryLlamas and llama2.c with 8-bit weights whose files are in the page cache.

    The last entry is a program that does nothing, the cost of a process.
    """
    watcher = build.start()
    commands = _start_commands(model.folder)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    failed: dict[str, str] = {}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            if name in failed:
                continue
            output, failure = run_limited([watcher, *command], START_SECONDS)
            if failure:
                failed[name] = TIMED_OUT if failure == TIMED_OUT else "failed"
            else:
                runs[name].append(json.loads(output))
    return [
        Start(name, 0.0, 0, failed[name])
        if name in failed
        else Start(
            name,
            median(run["first_byte"] for run in found[1:]),  # the first fills the page cache
            int(median(run["peak_bytes"] for run in found)),
        )
        for name, found in runs.items()
    ]


def _start_commands(folder: Path) -> dict[str, list[str | Path]]:
    commands: dict[str, list[str | Path]] = {
        "StoryLlamas q8": [build.engine_program(), folder / "q8.slm"]
    }
    if checkout := os.environ.get("LLAMA2C"):
        files = folder / "llama2c-q8"
        with suppress(UserError):  # the table of engines says that it cannot be compiled
            program = build.llama2c_program(Path(checkout), "runq.c")
            tokenizer = files / "tokenizer.bin"
            commands["llama2.c int8"] = [program, files / "model.bin", "-z", tokenizer]
    return {**commands, EMPTY_PROGRAM: [shutil.which("true") or "/bin/true"]}
