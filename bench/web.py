"""`make bench-web`: measure the engine in a browser, compared with llama2.c and with AVX2."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import build, models
from bench.browser import Site, open_browser, run
from bench.report import table
from bench.worker import Worker
from storyllamas.errors import UserError, exit_on_user_error

STEPS = 255
STORIES = 4
"""In a measurement."""

TYPES = ("f32", "q8", "q4")
OPTIMIZATIONS = ("O3", "Ofast")
"""Of llama2.c: the engine's, and that of llama2.c's README."""

NATIVE_KERNELS = "avx2"
CSRC = build.ROOT / "csrc"
FLAGS = ["--target=wasm32-wasi", "-msimd128", "-mnontrapping-fptoint", "-mexec-model=reactor"]

Measurement = Callable[[int], float]
"""A function that generates stories from a seed on and returns tokens a second."""


def make_engine() -> Path:
    """Compile engine.wasm.

    Raises:
        UserError: the compiler is missing or fails.
    """
    command = ["make", "-C", str(CSRC), "wasm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"engine.wasm cannot be compiled: {done.stderr.strip()}")
    return CSRC / "build" / "engine.wasm"


def compile_llama2c(checkout: Path, optimization: str, target: Path) -> None:
    """Compile llama2.c to WebAssembly.

    Raises:
        UserError: the compiler is missing or fails.
    """
    source = build.BENCH / "peers" / "llama2c_wasm.c"
    command = ["clang", *FLAGS, f"-{optimization}", "-w", "-D_WASI_EMULATED_MMAN", f"-I{checkout}"]
    command += [str(source), "-o", str(target), "-nodefaultlibs", "-lc", "-lwasi-emulated-mman"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"llama2.c cannot be compiled: {done.stderr.strip()}")


def in_browser(weights: str) -> str:
    """Return the name of a measurement in the browser."""
    return f"{weights} in the browser"


def with_threads(weights: str) -> str:
    """Return the name of a measurement in the browser with two threads."""
    return f"{weights} in the browser, two threads"


def natively(weights: str) -> str:
    """Return the name of a native measurement."""
    return f"{weights}, native {NATIVE_KERNELS}"


def native_measurement(worker: Worker) -> Measurement:
    """Return the measurement of a native worker."""

    def measure(seed: int) -> float:
        worker.resume()
        answers = [worker.ask(f"story {STEPS} {seed + index}") for index in range(STORIES)]
        worker.pause()
        seconds = sum(float(answer["seconds"]) for answer in answers)
        return STORIES * STEPS / seconds

    return measure


def web_measurement(browser: Any, loader: str, model: str) -> Measurement:
    """Load an engine in the page and return its measurement."""
    script = """const web = await import("./web.js");
        window.stories ??= {};
        window.stories[args[0] + args[1]] = await web[args[0]](args[1], args[2]);"""
    run(browser, script, loader, model, STEPS)

    def measure(seed: int) -> float:
        script = """const web = await import("./web.js");
            return web.measure(window.stories[args[0] + args[1]], args[2], args[3]);"""
        return float(run(browser, script, loader, model, STORIES, seed))

    return measure


def prepare_folder(folder: Path, model: models.Model, checkout: Path | None) -> None:
    """Write all that the page needs."""
    engine, web = make_engine(), build.ROOT / "web"
    sources = [engine, engine.with_name("engine-threads.wasm")]
    sources += [web / "engine.js", web / "thread.js"]
    sources += [build.BENCH / "web.js", build.BENCH / "web_worker.js"]
    for source in sources:
        shutil.copyfile(source, folder / source.name)
    for name in TYPES:
        shutil.copyfile(model.folder / f"{name}.slm", folder / f"{name}.slm")
    if checkout:
        shutil.copyfile(model.folder / "llama2c" / "model.bin", folder / "model.bin")
        for name in OPTIMIZATIONS:
            compile_llama2c(checkout, name, folder / f"llama2c-{name}.wasm")
    (folder / "index.html").write_text("<!doctype html><title>bench</title>", encoding="utf-8")


def measurements(
    stack: ExitStack, folder: Path, model: models.Model, checkout: Path | None
) -> dict[str, Measurement]:
    """Start every engine and return its measurement by name."""
    site = Site(folder, is_isolated=True)
    stack.callback(site.stop)
    browser = stack.enter_context(open_browser())
    browser.set_script_timeout(600)
    browser.get(site.address)
    print(f"Chromium {browser.capabilities['browserVersion']}", flush=True)
    found = {}
    program = str(build.engine_worker())
    for name in TYPES:
        found[in_browser(name)] = web_measurement(browser, "loadOurs", f"{name}.slm")
        found[with_threads(name)] = web_measurement(browser, "loadThreaded", f"{name}.slm")
        path = str(model.folder / f"{name}.slm")
        worker = stack.enter_context(
            Worker(["env", f"SL_KERNELS={NATIVE_KERNELS}", program, path, "1"])
        )
        found[natively(name)] = native_measurement(worker)
    for name in OPTIMIZATIONS if checkout else ():
        found[f"llama2.c -{name}"] = web_measurement(browser, "loadLlama2c", f"llama2c-{name}.wasm")
    return found


def report(rates: dict[str, list[float]]) -> str:
    """Format a table: medians, and multiples of llama2.c and of the native engine."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    peers = {name: rate for name, rate in medians.items() if name.startswith("llama2.c")}
    rows = []
    for name in TYPES:
        threaded = f"{medians[with_threads(name)]:,.0f}"
        ours, native = medians[in_browser(name)], medians[natively(name)]
        times = [f"{ours / rate:.1f}" for rate in peers.values()]
        share = f"{100 * ours / native:.0f} %"
        rows.append([in_browser(name), f"{ours:,.0f}", threaded, *times, f"{native:,.0f}", share])
    for name, rate in peers.items():
        rows.append([f"{name}, f32", f"{rate:,.0f}", "", *("" for _ in peers), "", ""])
    times = [f"times {name}" for name in peers]
    native_title = f"native {NATIVE_KERNELS}"
    return table(
        ["", "tokens/s", "with two threads", *times, native_title, "share of native"], rows
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="2m", help="size in params.yaml (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    args = parser.parse_args()
    checkout = Path(os.environ["LLAMA2C"]) if os.environ.get("LLAMA2C") else None
    model = models.prepare(args.size, {*TYPES, *({"llama2c"} if checkout else ())})
    rates: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare_folder(folder, model, checkout)
        found = measurements(stack, folder, model, checkout)
        for measure in found.values():
            measure(0)  # the browser compiles with more effort what runs often
        for index in range(args.rounds):
            for name, measure in found.items():
                rates[name].append(measure(1 + index * STORIES))
    print(f"{args.size}, {model.about}: {STEPS} tokens, medians of {args.rounds} rounds")
    print(report(rates))


if __name__ == "__main__":
    exit_on_user_error(main)()
