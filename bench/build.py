"""The measured programs, compiled from C into build/bench."""

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
"""What llama2.c's README advises."""


def compiled(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """The program build/bench/NAME.

    Raises:
        UserError: there is no C compiler, or it fails.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / name
    compiler = shutil.which("cc") or "cc"
    # Libraries among the flags come after the sources that need them.
    command: list[str | Path] = [compiler, "-o", program, *sources, *flags, "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("there is no C compiler: install one that is called cc") from None
    if done.returncode:
        raise UserError(f"{name} cannot be compiled: {done.stderr.strip()}")
    return program


def engine_worker() -> Path:
    """This engine, as a worker."""
    return compiled("stories", [BENCH / "stories.c", *LIBRARY], ENGINE)


def engine_program() -> Path:
    """The command line, as `make engine` builds it."""
    return compiled("run", ENGINE_SOURCES, ENGINE)


def engine_kernels() -> Path:
    """Its kernels, alone."""
    return compiled("kernels", [BENCH / "kernels.c", *LIBRARY], ENGINE)


def limits() -> Path:
    """The probe of what the machine can do."""
    sources = [BENCH / "limits.c", BENCH / "peak.c"]
    return compiled("limits", sources, [*STANDARD, "-march=native"])


def start() -> Path:
    """The program that starts another and watches it."""
    return compiled("start", [BENCH / "start.c"], STANDARD)


def llama2c_worker(checkout: Path, source: str, has_threads: bool) -> Path:
    """llama2.c's run.c or runq.c, as a worker."""
    name = f"llama2c-{source.removesuffix('.c')}{'-openmp' * has_threads}"
    flags = [*NATIVE, "-w", f"-I{checkout}"]
    flags += ["-DINT8"] if source == "runq.c" else []
    flags += ["-fopenmp"] if has_threads else []
    return compiled(name, [BENCH / "peers" / "llama2c.c"], flags)


def llama2c_program(checkout: Path, source: str) -> Path:
    """llama2.c's own program."""
    return compiled(source.removesuffix(".c"), [checkout / source], [*NATIVE, "-w"])


def llama_cpp_worker() -> Path:
    """llama.cpp, as a worker, linked with the library that its Python package brings."""
    packages = Path(sysconfig.get_path("purelib"))
    libraries = packages / "lib"
    flags = [f"-I{packages / 'include'}", f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    flags += ["-lllama", "-lggml", "-lggml-base"]
    return compiled("llama_cpp", [BENCH / "peers" / "llama_cpp.c"], [*STANDARD, *flags])
