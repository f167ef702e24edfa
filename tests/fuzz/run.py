"""`make fuzz SECONDS=60`: fuzz the weight-file reader and the tokenizer, in two processes.

The first runs libFuzzer on tests/fuzz/weight_file.c and needs clang with its runtime; without them
it does not run. The second compares the tokenizer with SentencePiece on random texts.
Fails if either finds something, and leaves the input in the folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CORPUS = ROOT / "tests" / "fuzz" / "corpus" / "weight_file"
SANITIZE = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
LIMITS = ["-rss_limit_mb=3000", "-malloc_limit_mb=3000", "-timeout=30", "-max_len=65536"]


def build(folder: Path) -> Path | None:
    """Build the fuzzer; return None if there is no clang that can."""
    clang = shutil.which("clang")
    if clang is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "probe.c"
    name = "int LLVMFuzzerTestOneInput(const char *data, long size)"
    probe.write_text(f"{name};\n{name} {{ return !data && size; }}\n")
    compiler = [clang, "-O1", "-g", "-std=c11", *SANITIZE, "-I", str(ROOT / "csrc")]
    command = [*compiler, probe, "-o", folder / "probe"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return None
    sources = [path for path in (ROOT / "csrc").rglob("*.c") if path.name != "main.c"]
    target = ROOT / "tests" / "fuzz" / "weight_file.c"
    program = folder / "weight_file"
    subprocess.run([*compiler, target, *sources, "-lm", "-pthread", "-o", program], check=True)
    return program


def main() -> None:
    """Run both fuzzers for the given time."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz/run.py")
    parser.add_argument("--seconds", type=int, default=60, help="time of each fuzzer")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz")
    arguments = parser.parse_args()
    found = arguments.folder / "found"
    found.mkdir(parents=True, exist_ok=True)
    minutes = ["--minutes", str(arguments.seconds / 60)]
    commands: list[list[str]] = [[sys.executable, "tests/fuzz/tokenizer.py", *minutes]]
    if program := build(arguments.folder):
        time = [f"-max_total_time={arguments.seconds}", "-print_final_stats=1"]
        where = [f"-artifact_prefix={arguments.folder}/", str(found), str(CORPUS)]
        commands.append([str(program), *LIMITS, *time, *where])
    else:
        print("clang has no libFuzzer here: the weight-file fuzzer does not run", flush=True)
    environment = os.environ | {"ASAN_OPTIONS": "allocator_may_return_null=1"}
    running = [subprocess.Popen(command, cwd=ROOT, env=environment) for command in commands]
    statuses = [process.wait() for process in running]
    if any(statuses):
        sys.exit(f"error: a fuzzer failed; its input is in {arguments.folder}")


if __name__ == "__main__":
    main()
