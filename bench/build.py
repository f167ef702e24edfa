"""Compile the measured C programs into build/bench."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from storyllamas.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
BUILD = ROOT / "build" / "bench"
ENGINE_SOURCES = sorted(ROOT.glob("csrc/**/*.c"))
LIBRARY = [path for path in ENGINE_SOURCES if path.name != "main.c"]

STANDARD = ["-std=c11", "-O3", "-pthread"]
ENGINE = [*STANDARD, f"-I{ROOT / 'csrc'}"]
NATIVE = ["-Ofast", "-march=native"]
"""The flags that llama2.c's README recommends."""


def compiled(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Compile build/bench/NAME and return its path.

    Raises:
        UserError: there is no C compiler, or it fails.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / name
    compiler = shutil.which("cc") or "cc"
    # The linker wants libraries after the sources that use them.
    command: list[str | Path] = [compiler, "-o", program, *sources, *flags, "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("cc is not found: install a C compiler of that name") from None
    if done.returncode:
        raise UserError(f"{name} cannot be compiled: {done.stderr.strip()}")
    return program


def engine_worker() -> Path:
    """Compile this engine as a worker."""
    return compiled("stories", [BENCH / "stories.c", *LIBRARY], ENGINE)


def engine_program() -> Path:
    """Compile the command line as `make engine` does."""
    return compiled("run", ENGINE_SOURCES, ENGINE)


def engine_kernels() -> Path:
    """Compile the program that measures single kernels."""
    return compiled("kernels", [BENCH / "kernels.c", *LIBRARY], ENGINE)


def limits() -> Path:
    """Compile the program that measures the limits of the machine."""
    sources = [BENCH / "limits.c", BENCH / "peak.c"]
    return compiled("limits", sources, [*STANDARD, "-march=native"])


def start() -> Path:
    """Compile the program that measures start time and peak memory of another."""
    return compiled("start", [BENCH / "start.c"], STANDARD)


def llama2c_worker(checkout: Path, source: str, has_threads: bool) -> Path:
    """Compile llama2.c's run.c or runq.c as a worker."""
    name = f"llama2c-{source.removesuffix('.c')}{'-openmp' * has_threads}"
    flags = [*NATIVE, "-w", f"-I{checkout}"]
    flags += ["-DINT8"] if source == "runq.c" else []
    flags += ["-fopenmp"] if has_threads else []
    return compiled(name, [BENCH / "peers" / "llama2c.c"], flags)


def llama2c_program(checkout: Path, source: str) -> Path:
    """Compile llama2.c's own program."""
    return compiled(source.removesuffix(".c"), [checkout / source], [*NATIVE, "-w"])


def llama_cpp_worker() -> Path:
    """Compile llama.cpp as a worker, linked with the library in its Python package."""
    packages = Path(sysconfig.get_path("purelib"))
    libraries = packages / "lib"
    flags = [f"-I{packages / 'include'}", f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    flags += ["-lllama", "-lggml", "-lggml-base"]
    return compiled("llama_cpp", [BENCH / "peers" / "llama_cpp.c"], [*STANDARD, *flags])
