"""`make bench`: measure the engines, write the page of this machine in bench/results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench import engines, index, limits, measure, models, processor, report
from bench.engines import OURS, Engine
from bench.models import Model
from storyllamas.errors import UserError, exit_on_user_error


def run(
    found: list[Engine], sizes: Mapping[str, Callable[[set[str]], Model]], rounds: int
) -> report.Results:
    """Measure one model after the other.

    Args:
        found: the engines, missing ones included.
        sizes: for each name of a model, what exports it in some formats.
        rounds: measurements of each engine.
    """
    print("measuring the limits of the machine", flush=True)
    results = report.Results(
        limits.Machine(limits.measured()), found, {}, {}, {}, start=[], memory=[], rounds=rounds
    )
    for size, prepare in sizes.items():
        print(f"{size}: exporting", flush=True)
        there = [engine for engine in found if not engine.missing]
        formats = {engine.format for engine in there}.union(*(engine.needs for engine in there))
        results.models[size] = model = prepare(formats)
        add_fallbacks(found, model)
        there = [e for e in found if not e.missing and e.format not in model.failures]
        print(f"{size}: comparing greedy sequences", flush=True)
        results.greedy[size] = measure.greedy(model, there)
        print(f"{size}: measuring {rounds} rounds", flush=True)
        results.cells[size] = measure.measure(model, there, rounds)
    smallest, *_, largest = [*results.models.values()] * 2
    results.memory = measure.start(smallest, rounds)
    results.start = measure.start(largest, rounds)
    return results


def add_fallbacks(found: list[Engine], model: Model) -> None:
    """Insert the other build of each engine that crashes on a model after that engine."""
    for engine in list(found):
        if engine.missing or not engine.fallback or engine.format in model.failures:
            continue
        if reason := measure.crash(model, engine):
            other = engine.fallback()
            if other.label not in {each.label for each in found}:
                print(f"{engine.label} fails with {reason}: adding {other.label}", flush=True)
                found.insert(found.index(engine) + 1, other)


def select(found: list[Engine], programs: Sequence[str]) -> list[Engine]:
    """Return the engines of some programs, and StoryLlamas.

    Args:
        found: all engines.
        programs: names of programs; all if there are none.

    Raises:
        UserError: a program is not known.
    """
    known = list(dict.fromkeys(engine.name for engine in found))
    for program in programs:
        if program not in known:
            raise UserError(f"--engines has {program}: choose from {', '.join(known)}")
    return [engine for engine in found if not programs or engine.name in (OURS, *programs)]


@exit_on_user_error
def main() -> None:
    """Parse the command line, measure and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--sizes", nargs="+", default=["2m", "7m", "30m"], help="keys of `sizes` in params.yaml"
    )
    parser.add_argument(
        "--model", type=Path, help="a model to measure instead of sizes, see storyllamas import"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each engine")
    parser.add_argument(
        "--engines", nargs="+", default=[], help=f"programs to compare with {OURS} (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, help=f"folder of the results (default: {index.RESULTS.name})"
    )
    parser.add_argument(
        "--name",
        default=processor.slug(processor.title()),
        help="of the page (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}: give 1 or more")
    found = select(engines.available(), arguments.engines)
    out, name = arguments.out or index.RESULTS, arguments.name
    chosen = {size: partial(models.prepare, size) for size in arguments.sizes}
    if arguments.model:
        stem = arguments.model.stem
        chosen = {stem: partial(models.prepare_imported, arguments.model)}
        out, name = arguments.out or index.RESULTS / "models", f"{stem}-{name}"
    results = run(found, chosen, arguments.rounds)
    path = out / f"{name}.md"
    report.write(results, path)
    index.write(out)
    print(path.read_text(encoding="utf-8"))
    if errors := report.errors(results):
        sys.exit(f"error: {'; '.join(errors)}")


if __name__ == "__main__":
    main()
