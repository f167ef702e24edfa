"""Compile the measured C programs into build/bench."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

from bench import processor
from storyllamas.engine.build import library_files, source_files
from storyllamas.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
BUILD = ROOT / "build" / "bench"
ENGINE_SOURCES = source_files("c")
LIBRARY = library_files()

STANDARD = ["-std=c11", "-O3", "-pthread"]
ENGINE = [*STANDARD, f"-I{ROOT / 'csrc'}"]
NATIVE = ["-Ofast", "-march=native"]
"""The flags that llama2.c's README recommends."""

GGML_OPTIONS = {
    "GGML_SSE42": "sse4_2",
    "GGML_AVX": "avx",
    "GGML_AVX2": "avx2",
    "GGML_FMA": "fma",
    "GGML_F16C": "f16c",
    "GGML_BMI2": "bmi2",
    "GGML_AVX_VNNI": "avx_vnni",
    "GGML_AVX512": "avx512f",
    "GGML_AVX512_VBMI": "avx512vbmi",
    "GGML_AVX512_VNNI": "avx512_vnni",
    "GGML_AVX512_BF16": "avx512_bf16",
}
"""CMake option of llama.cpp and flag in /proc/cpuinfo of each instruction set but AMX."""


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
    platform = [path for path in LIBRARY if path.parent.name == "platform"]
    sources = [BENCH / "limits.c", BENCH / "peak.c", *platform]
    return compiled("limits", sources, [*ENGINE, "-march=native"])


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


def llama_cpp_worker(packages: Path | None = None, repacks: bool = True) -> Path:
    """Compile llama.cpp as a worker, linked with the library in its Python package.

    Args:
        packages: folder in which llama-cpp-python is installed; None: that of this Python.
        repacks: whether it may rearrange the weights for the processor, its default.
    """
    name = f"llama_cpp-{packages.name}" if packages else "llama_cpp"
    name += "" if repacks else "-as-stored"
    packages = packages or Path(sysconfig.get_path("purelib"))
    libraries = packages / "lib"
    flags = [f"-I{packages / 'include'}", f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    flags += ["-lllama", "-lggml", "-lggml-base", f"-DREPACKS={int(repacks)}"]
    return compiled(name, [BENCH / "peers" / "llama_cpp.c"], [*STANDARD, *flags])


@cache
def llama_cpp_without_amx() -> Path:
    """Build llama-cpp-python for this processor, but without AMX, and return its folder.

    Raises:
        UserError: the package cannot be downloaded or built.
    """
    target = BUILD / "without-amx"
    if not (target / "lib").exists():
        version = importlib.metadata.version("llama-cpp-python")
        print(f"building llama.cpp {version} without AMX", flush=True)
        # A cached wheel would be the native one: pip does not look at CMAKE_ARGS.
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps"]
        command += ["--disable-pip-version-check", "--no-binary", "llama-cpp-python"]
        command += ["--target", str(target), f"llama-cpp-python=={version}"]
        environment = {**os.environ, "CMAKE_ARGS": " ".join(ggml_options(processor.flags()))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["pip failed"]
            raise UserError(f"llama.cpp cannot be built without AMX: {lines[-1]}")
    return target


def ggml_options(flags: Collection[str]) -> list[str]:
    """Return CMake options for the instruction sets of a processor, without AMX.

    Args:
        flags: of /proc/cpuinfo.
    """
    enabled = {option: flag in flags for option, flag in GGML_OPTIONS.items()}
    return [
        "-DGGML_NATIVE=OFF",
        *(f"-D{option}={'ON' if value else 'OFF'}" for option, value in enabled.items()),
    ]
