"""The engines of the benchmark and the commands that start them."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import build, processor
from storyllamas.errors import UserError
from storyllamas.slm.encoding import SPECS

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
        fallback: returns another build of the program, to measure as well if a signal ends this
            one.
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
    fallback: Callable[[], Engine] | None = None

    def does(self, task: str, threads: int) -> bool:
        """Return whether to measure a task; other engines batch with all their threads only."""
        has_all = self.name == OURS or threads == max(self.threads)
        return task != "batch" or (self.can_batch and has_all)

    @property
    def label(self) -> str:
        """Return program and weights."""
        return f"{self.name} {self.weights}"


def available() -> list[Engine]:
    """Return all engines, missing ones included."""
    return [
        *_ours(),
        *_llama2c(),
        *_llama_cpp(),
        *_ctranslate2(),
        *_openvino(),
        *_onnxruntime(),
        *_transformers(),
    ]


def thread_counts() -> tuple[int, ...]:
    """Return 1 and, on two or more cores, 2."""
    return (1, 2)[: os.cpu_count() or 1]


def _ours() -> list[Engine]:
    program = build.engine_worker()
    return [
        Engine(
            *(OURS, kind.label, kind.label, spec.bits, (*thread_counts(), AUTO)),
            lambda path, threads: [str(program), str(path.with_suffix(".slm")), str(threads)],
        )
        for kind, spec in SPECS.items()
    ]


def _llama2c() -> list[Engine]:
    checkout = os.environ.get("LLAMA2C", "")
    folder = Path(checkout)
    if checkout and not (folder / "run.c").exists():
        raise UserError(f"LLAMA2C is {checkout}, which has no run.c: set it to a llama2.c checkout")

    def engine(weights: str, source: str, format: str, bits: int) -> Engine:
        programs: dict[int, Path] = {}
        missing = "" if checkout else "set LLAMA2C=FOLDER to its checkout"
        try:
            for threads in thread_counts() if checkout else ():
                programs[threads] = build.llama2c_worker(folder, source, threads > 1)
        except UserError as error:
            missing = str(error).splitlines()[0]
        return Engine(
            *("llama2.c", weights, format, bits, thread_counts()),
            lambda path, threads: [str(programs[threads]), str(path / "model.bin"), str(threads)],
            missing,
        )

    return [engine("f32", "run.c", "llama2c", 32), engine("int8", "runq.c", "llama2c-q8", 8)]


def _llama_cpp() -> list[Engine]:
    missing = _missing_package("llama_cpp", "llama-cpp-python") or _missing_package("gguf", "gguf")
    program = as_stored = Path()
    try:
        if not missing:
            program, as_stored = build.llama_cpp_worker(), build.llama_cpp_worker(repacks=False)
    except UserError as error:
        missing = str(error).splitlines()[0]

    def engine(weights: str, format: str, bits: int, worker: Path = program) -> Engine:
        native = Engine(
            *("llama.cpp", weights, format, bits, thread_counts()),
            lambda path, threads: [str(worker), str(path / "model.gguf"), str(threads)],
            missing,
        )
        # Its AMX code needs weights in an order of its own.
        if "amx_int8" not in processor.flags() or bits == 32 or worker == as_stored:
            return native
        return replace(native, fallback=lambda: without_amx(native))

    return [
        engine("f32", "gguf", 32),
        engine("q8_0", "gguf-q8_0", 8),
        engine("q4_0", "gguf-q4_0", 4),
        engine("q4_0, without repacking", "gguf-q4_0", 4, as_stored),
    ]


def without_amx(native: Engine) -> Engine:
    """Return llama.cpp built without AMX, for processors on which its AMX code crashes."""
    weights, missing, program = f"{native.weights}, built without AMX", "", Path()
    try:
        program = build.llama_cpp_worker(build.llama_cpp_without_amx())
    except UserError as error:
        missing = str(error).splitlines()[0]
    return replace(
        native,
        weights=weights,
        command=lambda path, threads: [str(program), str(path / "model.gguf"), str(threads)],
        missing=missing,
    )


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


def _openvino() -> list[Engine]:
    missing = _missing_package("openvino_genai", "openvino-genai") or _missing_package(
        "gguf", "gguf"
    )

    def engine(weights: str, bits: int) -> Engine:
        return Engine(
            *("OpenVINO", weights, f"openvino-{weights}", bits, thread_counts()),
            lambda path, threads: _module("openvino", path, threads),
            missing,
            frozenset({f"gguf-{weights}"}),
        )

    return [engine("q8_0", 8), engine("q4_0", 4)]


def _onnxruntime() -> list[Engine]:
    missing = (
        _missing_package("onnxruntime_genai", "onnxruntime-genai")
        or _missing_package("onnx_ir", "onnx-ir")
        or _missing_package("transformers", "transformers")
    )

    def engine(weights: str, bits: int) -> Engine:
        return Engine(
            *("onnxruntime", weights, f"onnxruntime-{weights}", bits, thread_counts()),
            lambda path, threads: _module("onnxruntime", path, threads),
            missing,
            frozenset({"hf"}),
        )

    return [engine("int8", 8), engine("int4", 4)]


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
