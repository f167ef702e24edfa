"""`make bench`: measure, and write RESULTS.md and speed.png."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import engines, limits, measure, models, picture, report
from bench.build import BENCH
from storyllamas.errors import UserError, exit_on_user_error


def run(sizes: list[str], rounds: int) -> report.Results:
    """Measure the sizes, one after the other."""
    found = engines.available()
    there = [engine for engine in found if not engine.missing]
    formats = {engine.format for engine in there}.union(*(engine.needs for engine in there))
    print("limits of the machine …", flush=True)
    results = report.Results(
        limits.Machine(limits.measured()), found, {}, {}, {}, start=[], memory=[], rounds=rounds
    )
    for size in sizes:
        print(f"{size}: exporting …", flush=True)
        results.models[size] = model = models.prepare(size, formats)
        print(f"{size}: greedy stories …", flush=True)
        results.greedy[size] = measure.greedy(model, there)
        print(f"{size}: {rounds} rounds …", flush=True)
        results.cells[size] = measure.measure(model, there, rounds)
    results.memory = measure.start(results.models[sizes[0]], rounds)
    results.start = measure.start(results.models[sizes[-1]], rounds)
    return results


@exit_on_user_error
def main() -> None:
    """Take the sizes and the number of rounds from the command line."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["2m", "7m", "30m"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=BENCH, help="the folder to write to")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds} and must be 1 or more")
    results = run(arguments.sizes, arguments.rounds)
    report.write(results, arguments.out / "RESULTS.md")
    picture.draw(results, arguments.out / "speed.png")
    print(report.markdown(results))
    if deviating := report.deviating(results):
        sys.exit(f"error: another greedy story than the C engine's: {', '.join(deviating)}")


if __name__ == "__main__":
    main()
