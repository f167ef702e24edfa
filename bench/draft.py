"""Measure what a draft model gains: speed with and without it, for several numbers of tokens.

    python -m bench.draft large.slm small.slm --tokens 1 2 3 4 6

Stories of the same prompt and seeds are generated in turns with and without a draft. They are the
same stories, so that only the time differs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.processor import title
from storyllamas.argument_types import positive, real
from storyllamas.engine.engine import Engine
from storyllamas.errors import exit_on_user_error

PROMPT = "Once upon a time"


def measure(engine: Engine, seed: int, temperature: float) -> tuple[float, int, int]:
    """Generate a story; return tokens a second, and how many were drafted and accepted."""
    story = engine.generate(PROMPT, seed=seed, temperature=temperature, ignore_eos=True)
    start = time.perf_counter()
    for _ in story:
        pass
    return story.tokens / (time.perf_counter() - start), story.drafted, story.accepted


def rows(
    model: Path, draft: Path, tokens: Sequence[int], temperatures: Sequence[float], rounds: int
) -> Iterator[str]:
    """Yield the rows of a Markdown table."""
    small = Engine(draft, threads=1)
    engines = [Engine(model)]
    engines += [Engine(model, draft=small, draft_tokens=count) for count in tokens]
    yield "| temperature | draft tokens | accepted | tokens a second | speed-up |"
    yield "|---|---|---|---|---|"
    for temperature in temperatures:
        for engine in engines:
            measure(engine, 0, temperature)
        found = [
            [measure(engine, seed, temperature) for engine in engines]
            for seed in range(1, rounds + 1)
        ]
        plain = statistics.median(speed for (speed, _, _), *_ in found)
        for count, results in zip([0, *tokens], zip(*found, strict=True), strict=True):
            speed = statistics.median(each for each, _, _ in results)
            drafted, accepted = (sum(column) for column in list(zip(*results, strict=True))[1:])
            share = f"{accepted / drafted:.0%}" if drafted else ""
            yield f"| {temperature:g} | {count} | {share} | {speed:,.0f} | {speed / plain:.2f} × |"


@exit_on_user_error
def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.draft")
    parser.add_argument("model", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--tokens", type=positive, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--temperatures", type=real, nargs="+", default=[0.0, 0.8, 1.0])
    parser.add_argument("--rounds", type=positive, default=12)
    given = parser.parse_args()
    print(title())
    for row in rows(given.model, given.draft, given.tokens, given.temperatures, given.rounds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
