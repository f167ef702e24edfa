"""`make bench`: measure the engines, write RESULTS.md and speed.png."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import engines, limits, measure, models, plot, report
from bench.build import BENCH
from storyllamas.errors import UserError, exit_on_user_error


def run(sizes: list[str], rounds: int) -> report.Results:
    """Measure one size after the other."""
    found = engines.available()
    there = [engine for engine in found if not engine.missing]
    formats = {engine.format for engine in there}.union(*(engine.needs for engine in there))
    print("measuring the limits of the machine", flush=True)
    results = report.Results(
        limits.Machine(limits.measured()), found, {}, {}, {}, start=[], memory=[], rounds=rounds
    )
    for size in sizes:
        print(f"{size}: exporting", flush=True)
        results.models[size] = model = models.prepare(size, formats)
        print(f"{size}: comparing greedy sequences", flush=True)
        results.greedy[size] = measure.greedy(model, there)
        print(f"{size}: measuring {rounds} rounds", flush=True)
        results.cells[size] = measure.measure(model, there, rounds)
    results.memory = measure.start(results.models[sizes[0]], rounds)
    results.start = measure.start(results.models[sizes[-1]], rounds)
    return results


@exit_on_user_error
def main() -> None:
    """Parse the command line, measure and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--sizes", nargs="+", default=["2m", "7m", "30m"], help="keys of `sizes` in params.yaml"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each engine")
    parser.add_argument("--out", type=Path, default=BENCH, help="folder of the results")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}: give 1 or more")
    results = run(arguments.sizes, arguments.rounds)
    report.write(results, arguments.out / "RESULTS.md")
    plot.draw(results, arguments.out / "speed.png")
    print(report.markdown(results))
    if deviating := report.deviating(results):
        sys.exit(f"error: greedy sequences differ from {engines.OURS} f32: {', '.join(deviating)}")


if __name__ == "__main__":
    main()
