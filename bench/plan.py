"""`make bench-plan`: compare the estimates of `storyllamas plan` with the runs that followed.

Each case is estimated, then trained on the CPU or GPU as a run is, for a fixed time, on random
tokens. The estimate does not see the run. Earlier runs in .storyllamas/speeds.jsonl correct the
estimates, as always; the runs of the benchmark are not added to them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import build
from bench.report import number, table
from storyllamas import params
from storyllamas.atomic import write_json
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.plan import make
from storyllamas.plan.estimate import Estimate
from storyllamas.training import process_env, speed_log
from storyllamas.training.speed_log import Speed

START_SECONDS = 600.0
"""A run that has not compiled by then has failed."""


@dataclass(frozen=True)
class Compared:
    """An estimate and the run that followed.

    Attributes:
        recipe: key of `recipes` in params.yaml.
        estimate: made before the run.
        speed: of the run.
    """

    recipe: str
    estimate: Estimate
    speed: Speed

    @property
    def errors(self) -> tuple[float, float]:
        """How far the estimated speed and memory are from those of the run, as a share of it."""
        found, actual = self.estimate, self.speed
        return (
            found.tokens_per_second / actual.tokens_per_second - 1,
            found.memory_bytes / actual.peak_memory_bytes - 1,
        )


def compare(recipe: str, sizes: Sequence[str], seconds: float) -> list[Compared]:
    """Estimate the sizes of a recipe, then train each for a time."""
    plan = make.make([f"recipe={recipe}"])
    rows = {row.size: row.estimate for row in plan.rows}
    found = []
    for size in sizes:
        estimate = rows.get(size)
        if estimate is None:
            print(f"{size}, {recipe}: not a size of the recipe", flush=True)
            continue
        print(f"{size}, {recipe}: training for {seconds:.0f} s", flush=True)
        raw = {**params.read(build.ROOT / "params.yaml"), "model": size, "recipe": recipe}
        found.append(Compared(recipe, estimate, train(raw, seconds)))
    return found


def train(raw: Mapping[str, Any], seconds: float) -> Speed:
    """Train for some time in a process of its own; return its speed.

    Raises:
        UserError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        # The compiled code of earlier runs stays in use.
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(build.BUILD / "training" / "compiled")}
        variables = {**os.environ, **cache, **process_env.variables()}
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.plan_worker", json.dumps(raw), folder],
            cwd=build.ROOT,
            env={**variables, "STORYLLAMAS_STATE": str(state)},
        )
        try:
            _wait_for(Path(folder) / "started", process)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
            process.wait(START_SECONDS)
        finally:
            process.kill()
        speeds = speed_log.read(state / "speeds.jsonl")
    if not speeds:
        raise UserError(f"the run of {raw['model']} left no speed: see its message")
    return speeds[-1]


def _wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has written a file."""
    stop = time.monotonic() + START_SECONDS
    while not file.exists():
        if process.poll() is not None or time.monotonic() > stop:
            raise UserError("a run did not start: see its message")
        time.sleep(0.2)


def markdown(compared: Sequence[Compared]) -> str:
    """Return a table of estimates, runs and errors, with a summary."""
    rows = []
    for each in compared:
        speed, memory = each.errors
        rows.append(
            [
                *(each.estimate.size, each.recipe, f"{each.speed.seconds:.0f}"),
                *(number(each.estimate.tokens_per_second), number(each.speed.tokens_per_second)),
                f"{speed:+.0%}",
                f"{each.estimate.memory_bytes / 1e6:,.0f}",
                f"{each.speed.peak_memory_bytes / 1e6:,.0f}",
                f"{memory:+.0%}",
                str(each.estimate.runs),
            ]
        )
    heads = ["size", "recipe", "seconds", "tokens/s, estimated", "trained", "error"]
    heads += ["memory in MB, estimated", "trained", "error", "earlier runs"]
    speeds, memories = zip(*(each.errors for each in compared), strict=True)
    summary = ", ".join(
        f"{name}: median {median(map(abs, errors)):.0%}, largest {max(map(abs, errors)):.0%}"
        for name, errors in (("speed", speeds), ("memory", memories))
    )
    return f"{table(heads, rows)}\n\nError of {len(compared)} estimates. {summary}\n"


@exit_on_user_error
def main() -> None:
    """Estimate, train and print the errors; keep them in build/bench."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.plan", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--sizes", nargs="+", default=["2m", "7m", "30m"], help="keys of `sizes` in params.yaml"
    )
    parser.add_argument(
        "--recipes", nargs="+", default=["quick", "fast"], help="keys of `recipes` in params.yaml"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="time of each run")
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes
    if not speed_log.MIN_SECONDS < seconds < 1e6:
        raise UserError(f"--minutes is {arguments.minutes}: give more than 0.5")
    compared: list[Compared] = []
    for recipe in arguments.recipes:
        compared += compare(recipe, arguments.sizes, seconds)
    if not compared:
        raise UserError("nothing was estimated: see the messages")
    write_json(build.BUILD / "plan.json", {"compared": [asdict(each) for each in compared]})
    print(f"\n{markdown(compared)}")


if __name__ == "__main__":
    main()
