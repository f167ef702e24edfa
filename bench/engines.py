"""The engines of the benchmark and the commands that start them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import build
from storyllamas.errors import UserError
from storyllamas.slm.encoding import GROUP_SIZES

OURS = "StoryLlamas"
AUTO = 0
"""The engine chooses the number of threads."""


@dataclass(frozen=True)
class Engine:
    """One program with one type of weights.

    Attributes:
        name: of the program.
        weights: f32, q8 or the program's own name of the type.
        format: of the model files, see `models.prepare`.
        bits: 32, 8 or 4 a weight; only engines of equal bits are compared.
        threads: thread counts to measure.
        command: returns the command of the worker for a model path and a thread count.
        missing: why it cannot be measured; empty if it can be.
        needs: other formats that its own is converted from.
        can_batch: whether it generates batches.
    """

    name: str
    weights: str
    format: str
    bits: int
    threads: tuple[int, ...]
    command: Callable[[Path, int], list[str]]
    missing: str = ""
    needs: frozenset[str] = field(default=frozenset())
    can_batch: bool = True

    def does(self, task: str, threads: int) -> bool:
        """Return whether to measure a task; other engines batch with all their threads only."""
        has_all = self.name == OURS or threads == max(self.threads)
        return task != "batch" or (self.can_batch and has_all)

    @property
    def label(self) -> str:
        """Return program and weights."""
        return f"{self.name} {self.weights}"


class Worker:
    """A running engine; worker.h describes the requests.

    Pause it between requests: idle threads may spin and take time from the next engine.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._name = " ".join(command)
        self._process = subprocess.Popen(
            command, cwd=build.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def resume(self) -> None:
        """Continue the process."""
        self._process.send_signal(signal.SIGCONT)

    def pause(self) -> None:
        """Stop the process until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, request: str) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            UserError: the process has exited.
        """
        pipe, answers = self._process.stdin, self._process.stdout
        assert pipe
        assert answers
        try:
            pipe.write(request + "\n")
            pipe.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(f"{self._name} exited at the request {request!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def available() -> list[Engine]:
    """Return all engines, missing ones included."""
    return [*_ours(), *_llama2c(), *_llama_cpp(), *_ctranslate2(), *_transformers()]


def thread_counts() -> tuple[int, ...]:
    """Return 1 and, on two or more cores, 2."""
    return (1, 2)[: os.cpu_count() or 1]


def _ours() -> list[Engine]:
    program = build.engine_worker()
    bits = {"f32": 32, "q8": 8, "q4": 4}
    return [
        Engine(
            *(OURS, name, name, bits[name], (*thread_counts(), AUTO)),
            lambda path, threads: [str(program), str(path.with_suffix(".slm")), str(threads)],
        )
        for name in GROUP_SIZES
    ]


def _llama2c() -> list[Engine]:
    checkout = os.environ.get("LLAMA2C", "")
    missing = "" if checkout else "set LLAMA2C=FOLDER to its checkout"
    folder = Path(checkout)
    if checkout and not (folder / "run.c").exists():
        raise UserError(f"LLAMA2C is {checkout}, which has no run.c: set it to a llama2.c checkout")

    def engine(weights: str, source: str, format: str, bits: int) -> Engine:
        programs = {
            threads: build.llama2c_worker(folder, source, threads > 1)
            for threads in (thread_counts() if checkout else ())
        }
        return Engine(
            *("llama2.c", weights, format, bits, thread_counts()),
            lambda path, threads: [str(programs[threads]), str(path / "model.bin"), str(threads)],
            missing,
        )

    return [engine("f32", "run.c", "llama2c", 32), engine("int8", "runq.c", "llama2c-q8", 8)]


def _llama_cpp() -> list[Engine]:
    missing = _missing_package("llama_cpp", "llama-cpp-python") or _missing_package("gguf", "gguf")
    program = Path() if missing else build.llama_cpp_worker()
    types = [("f32", "gguf", 32), ("q8_0", "gguf-q8_0", 8), ("q4_0", "gguf-q4_0", 4)]
    return [
        Engine(
            *("llama.cpp", weights, format, bits, thread_counts()),
            lambda path, threads: [str(program), str(path / "model.gguf"), str(threads)],
            missing,
        )
        for weights, format, bits in types
    ]


def _ctranslate2() -> list[Engine]:
    missing = _missing_package("ctranslate2", "ctranslate2") or _missing_package(
        "transformers", "transformers"
    )

    def engine(weights: str, type: str, bits: int, can_batch: bool, *words: str) -> Engine:
        return Engine(
            *("CTranslate2", weights, f"ct2-{type}", bits, thread_counts()),
            lambda path, threads: _module("ctranslate2", path, threads, *words),
            missing,
            frozenset({"hf"}),
            can_batch,
        )

    return [
        engine("f32", "float32", 32, False),
        engine("int8", "int8", 8, True),
        engine("int8, greedy", "int8", 8, True, "greedy"),
    ]


def _transformers() -> list[Engine]:
    return [
        Engine(
            *("transformers", "f32", "hf", 32, thread_counts()),
            lambda path, threads: _module("transformers", path, threads),
            _missing_package("transformers", "transformers"),
            can_batch=False,
        )
    ]


def _module(name: str, path: Path, threads: int, *words: str) -> list[str]:
    return [sys.executable, "-m", f"bench.peers.{name}", str(path), str(threads), *words]


def _missing_package(module: str, distribution: str) -> str:
    return "" if importlib.util.find_spec(module) else f"{distribution} is not installed"
