"""`make fuzz SECONDS=60`: fuzz the weight-file reader, both tokenizers and the importers.

libFuzzer runs tests/fuzz/weight_file.c; this needs clang with its runtime, and without them it does
not run. The other fuzzers are in Python. As many run at a time as there are processors. Fails if
one finds something, and leaves the input in the folder.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from storyllamas.engine.build import library_files

ROOT = Path(__file__).resolve().parent.parent.parent
FUZZ = ROOT / "tests" / "fuzz"
CORPUS = FUZZ / "corpus" / "weight_file"
SANITIZE = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
LIMITS = ["-rss_limit_mb=3000", "-malloc_limit_mb=3000", "-timeout=30", "-max_len=65536"]
EXECUTIONS = re.compile(r"([\d,]+) executions, seeds|number_of_executed_units: +(\d+)")
SHOWN = 6000
"""Characters of the output of a fuzzer that failed."""


@dataclass(frozen=True)
class Target:
    """A fuzzer: its name and the command that runs it."""

    name: str
    command: list[str]


def build(folder: Path, scalar: bool) -> Path | None:
    """Build the weight-file fuzzer; return None if there is no clang that can.

    Args:
        folder: the folder of the program.
        scalar: build no kernels but the scalar ones, which compile much faster.
    """
    clang = shutil.which("clang")
    if clang is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "probe.c"
    name = "int LLVMFuzzerTestOneInput(const char *data, long size)"
    probe.write_text(f"{name};\n{name} {{ return !data && size; }}\n")
    compiler = [clang, "-O1", "-g1", "-std=c11", *SANITIZE, "-I", str(ROOT / "csrc")]
    compiler += ["-DSL_SCALAR_ONLY"] * scalar
    command = [*compiler, probe, "-o", folder / "probe"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return None

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.parent.name}-{source.stem}.o"
        subprocess.run([*compiler, "-c", source, "-o", target], check=True)
        return target

    # The slow ones first.
    sources = sorted(library_files(), key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [FUZZ / "weight_file.c", *sources]))
    program = folder / "weight_file"
    subprocess.run([*compiler, *objects, "-lm", "-pthread", "-o", program], check=True)
    return program


def targets(folder: Path, seconds: int, program: Path | None) -> list[Target]:
    """Return the fuzzers that run here."""
    found = []
    if program:
        inputs = folder / "found"
        inputs.mkdir(parents=True, exist_ok=True)
        time = [f"-max_total_time={seconds}", "-print_final_stats=1"]
        where = [f"-artifact_prefix={folder}/", str(inputs), str(CORPUS)]
        found.append(Target("weight_file", [str(program), *LIMITS, *time, *where]))
    for name in ("tokenizer", "ranked_tokenizer", "importers"):
        command = [sys.executable, str(FUZZ / f"{name}.py"), "--minutes", str(seconds / 60)]
        found.append(Target(name, [*command, "--folder", str(folder)]))
    return found


def run(target: Target, folder: Path) -> tuple[int, str]:
    """Run a fuzzer; return its status and its output, which is also in a log in the folder."""
    log = folder / f"{target.name}.log"
    environment = os.environ | {"ASAN_OPTIONS": "allocator_may_return_null=1"}
    with log.open("w") as file:
        done = subprocess.run(
            target.command, cwd=ROOT, env=environment, stdout=file, stderr=file, check=False
        )
    return done.returncode, log.read_text(errors="replace")


def main() -> None:
    """Run all fuzzers for the given time."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz/run.py")
    parser.add_argument("--seconds", type=int, default=60, help="time of each fuzzer")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--scalar", action="store_true", help="build only the scalar kernels")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    program = build(folder, arguments.scalar)
    if program is None:
        print("clang has no libFuzzer here: the weight-file fuzzer does not run", flush=True)
    all_targets = targets(folder, arguments.seconds, program)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda target: run(target, folder), all_targets))
    failed = []
    for target, (status, output) in zip(all_targets, results, strict=True):
        if status:
            failed.append(target.name)
            print(output[-SHOWN:])
        counts = EXECUTIONS.findall(output)
        count = int("".join(counts[-1]).replace(",", "")) if counts else 0
        print(f"{target.name}: {count:,} executions{' and a finding' if status else ''}")
    if failed:
        sys.exit(f"error: {', '.join(failed)} found something; see {folder}")


if __name__ == "__main__":
    main()
