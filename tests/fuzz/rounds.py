"""The command line of the fuzzers in Python, which run rounds until the time is up."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

PRINT_EVERY = 60  # seconds
FOLDER = Path(__file__).resolve().parent.parent.parent / "build" / "fuzz"


def main(name: str, description: str, run_round: Callable[[int, Path], tuple[int, str]]) -> None:
    """Run rounds until the time is up, or until one finds something.

    Args:
        name: the file name of the fuzzer.
        description: its docstring, whose first line describes it.
        run_round: runs the round of a seed, on which alone it depends, and may leave an input in a
            folder; returns the number of executions, and what it found, or "".
    """
    parser = argparse.ArgumentParser(
        prog=f"python tests/fuzz/{name}", description=description.splitlines()[0]
    )
    parser.add_argument("--minutes", type=float, default=1, help="minimum time of the run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first round")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where inputs are left")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at what is found")
    arguments = parser.parse_args()
    seed, executions, findings = arguments.seed, 0, 0
    printed_at = time.monotonic()
    end = printed_at + 60 * arguments.minutes
    while seed == arguments.seed or time.monotonic() < end:
        count, found = run_round(seed, arguments.folder)
        if found:
            print(f"seed {seed}: {found}", flush=True)
            findings += 1
            if not arguments.keep_going:
                break
        seed, executions = seed + 1, executions + count
        if time.monotonic() - printed_at > PRINT_EVERY:
            printed_at = time.monotonic()
            print(f"{executions:,} executions, {findings} findings", flush=True)
    if findings:
        sys.exit(f"error: {findings} findings from seed {arguments.seed} on, see above")
    print(f"{executions:,} executions, seeds {arguments.seed} … {seed - 1}: no findings")
