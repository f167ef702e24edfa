"""Write the page of a machine in bench/results from the measurements of `make bench`."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from bench import processor
from bench.engines import AUTO, OURS, Engine
from bench.limits import Limit, Machine
from bench.measure import (
    BATCH,
    BATCH_STEPS,
    NOISE,
    REPEAT_FACTOR,
    ROW_SECONDS,
    Cell,
    Greedy,
    Start,
    prompt_tokens,
    sequence_steps,
)
from bench.models import Model
from storyllamas.atomic import write_text

TASKS = {
    "story": "One sequence",
    "prompt": "Prompt",
    "batch": f"{BATCH} sequences (batched)",
}
PEERS = ("llama.cpp", "llama2.c")
SPEED_UP = "Speed-up over the faster of llama.cpp and llama2.c"
SHARES = f"{OURS} compared with the limit of the machine"


@dataclass
class Results:
    """The measurements of one run.

    Attributes:
        machine: limits of the machine.
        engines: all engines, missing ones included.
        models: by size, the smallest first.
        cells: measurements by size.
        greedy: greedy sequences by size.
        start: start times with the largest size.
        memory: peak memory with the smallest size.
        rounds: measurements of each engine.
    """

    machine: Machine
    engines: list[Engine]
    models: dict[str, Model]
    cells: dict[str, list[Cell]]
    greedy: dict[str, list[Greedy]]
    start: list[Start]
    memory: list[Start]
    rounds: int

    def cell(self, size: str, engine: Engine, task: str, threads: int) -> Cell | None:
        """Return a measurement, or None if there is none."""
        wanted = (engine.label, task, threads)
        for cell in self.cells[size]:
            if (cell.engine.label, cell.task.name, cell.threads) == wanted:
                return cell
        return None

    def speed(self, size: str, engine: Engine, task: str, threads: int) -> float:
        """Return median tokens a second, or 0 if it was not measured or the engine failed."""
        cell = self.cell(size, engine, task, threads)
        return median(cell.speeds) if cell and cell.speeds and not cell.failure else 0.0

    def best(self, size: str, engine: Engine, task: str) -> float:
        """Return tokens a second with the fastest thread count."""
        return max(self.speed(size, engine, task, threads) for threads in engine.threads)

    def limit(self, size: str, weight_type: str, threads: int, task: str) -> float:
        """Return tokens a second at the limit of the machine."""
        model = self.models[size]
        limit = Limit(
            self.machine, model.config, weight_type, model.weight_bytes(weight_type), threads
        )
        if task == "prompt":
            return prompt_tokens(model) / limit.prompt(prompt_tokens(model))
        if task == "batch":
            return BATCH / limit.batch(BATCH, min(sequence_steps(model), BATCH_STEPS))
        return 1 / limit.sequence(sequence_steps(model))


def write(results: Results, path: Path) -> None:
    """Write the page; its figure has the same name, and the ending .png."""
    write_text(path, markdown(results, f"{path.stem}.png"))


def markdown(results: Results, figure: str) -> str:
    """Return the page as Markdown.

    Args:
        results: the measurements.
        figure: path of the figure, relative to the page.
    """
    sections = [
        _head(results, figure),
        *(_task(results, task) for task in TASKS),
        _failures(results),
        _comparison(results),
        _shares(results),
        _machine_limits(results),
        _start_and_memory(results),
        _agreement(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


# ---- Sections ------------------------------------------------------------------------------------


def _head(results: Results, figure: str) -> str:
    models = "; ".join(f"{size}: {model.about}" for size, model in results.models.items())
    largest = next(iter(results.models.values()))
    missing = [f"- {e.label} was not measured: {e.missing}" for e in results.engines if e.missing]
    lines = [
        f"# Speed on {processor.title()}",
        "",
        "Written by `make bench`. Speeds are tokens a second, the median of interleaved rounds: "
        f"{results.rounds}, or fewer if they take more than {ROW_SECONDS:g} s, or up to "
        f"{REPEAT_FACTOR * results.rounds} if they differ by more than {NOISE:.0%}. Of four and "
        "more rounds the middle half counts. ~ marks figures whose rounds still differ by more.",
        "",
        f"- Date: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        f"- Machine: {processor.title()}, {platform.system()} {platform.release()}",
        f"- Compiler: {processor.first_line('cc', '--version')}",
        f"- Weights: {models}",
        f"- One sequence: {sequence_steps(largest)} tokens after BOS, temperature 1, top-p 0.9, "
        "EOS ignored. CTranslate2 is also measured greedily, because its sampling takes longer "
        "than a small model",
        f"- Prompt: {prompt_tokens(largest)} tokens",
        f"- {BATCH} sequences: {min(BATCH_STEPS, sequence_steps(largest))} tokens each; "
        "the other engines with all threads only",
        "- Several figures in a cell: "
        + " / ".join(str(threads) for threads in _counts(results))
        + f" threads; for {OURS} also the automatic number of threads",
        "- llama2.c has no prefill: it computes a prompt token by token",
        *missing,
        "",
        f"![Tokens a second by size and engine]({figure})",
    ]
    return "\n".join(lines)


def _task(results: Results, task: str) -> str:
    def cell(engine: Engine, size: str) -> str:
        found = [results.cell(size, engine, task, threads) for threads in engine.threads]
        return " / ".join(_figure(cell) for cell in found if cell)

    rows = [
        [engine.name, engine.weights, *(cell(engine, size) for size in results.models)]
        for engine in results.engines
    ]
    measured = [row for row in rows if any(row[2:])]
    return _section(TASKS[task], ["engine", "weights", *results.models], measured)


def _figure(cell: Cell) -> str:
    """Format a speed, or the reason of a failure."""
    if cell.failure:
        return cell.failure
    return number(median(cell.speeds)) + "~" * cell.is_noisy


def _failures(results: Results) -> str:
    rows = []
    for size in results.models:
        for engine in results.engines:
            if reason := results.models[size].failures.get(engine.format):
                rows.append([engine.name, engine.weights, size, "", "export", _escape(reason), ""])
        for cell in results.cells[size]:
            if cell.failure:
                where = [cell.engine.name, cell.engine.weights, size, _threads(cell.threads)]
                rows.append([*where, TASKS[cell.task.name], cell.failure, _escape(cell.detail)])
    return _section(
        "Failures",
        ["engine", "weights", "size", "threads", "task", "reason", "last line of output"],
        rows,
        "An engine that crashed is started again for its other tasks.",
    )


def _comparison(results: Results) -> str:
    rows = []
    for task, title in TASKS.items():
        for ours in _ours(results):
            peers = [
                e
                for e in results.engines
                if e.name in PEERS and (e.bits, e.missing) == (ours.bits, "")
            ]
            ratios = [_ratio(results, size, task, ours, peers) for size in results.models]
            rows.append([title, ours.weights, *ratios])
    return _section(
        SPEED_UP,
        ["task", "weights", *results.models],
        [row for row in rows if any(row[2:])],
        "Weights of equal bits; each engine with its faster number of threads.",
    )


def _ratio(results: Results, size: str, task: str, ours: Engine, peers: list[Engine]) -> str:
    best = max((results.best(size, peer, task) for peer in peers), default=0.0)
    speed = results.best(size, ours, task)
    return f"{speed / best:.2f} ×" if best and speed else ""


def _shares(results: Results) -> str:
    def cell(engine: Engine, size: str, task: str, threads: int) -> str:
        speed = results.speed(size, engine, task, threads)
        limit = results.limit(size, engine.weights, threads, task)
        return f"{number(speed)} of {number(limit)}: {speed / limit:.0%}" if speed else ""

    rows = [
        [title, e.weights, str(threads), *(cell(e, size, task, threads) for size in results.models)]
        for task, title in TASKS.items()
        for e in _ours(results)
        for threads in e.threads
        if threads != AUTO
    ]
    return _section(
        SHARES,
        ["task", "weights", "threads", *results.models],
        [row for row in rows if any(row[3:])],
        "A token of one sequence reads all weights, and the keys and values of earlier positions. "
        "A prompt and a batch are bound by arithmetic. [limits.py](../limits.py) has the formulas.",
    )


def _machine_limits(results: Results) -> str:
    found = results.machine.found
    kinds = list(dict.fromkeys((row["threads"], row["pages"]) for row in found["bandwidth"]))
    sizes = list(dict.fromkeys(row["megabytes"] for row in found["bandwidth"]))
    values = {
        (row["threads"], row["pages"], row["megabytes"]): row["bytes"] for row in found["bandwidth"]
    }
    rows = [
        [str(threads), pages, *(f"{values[threads, pages, size] / 1e9:.0f}" for size in sizes)]
        for threads, pages in kinds
    ]
    bandwidth = _section(
        "Limits of the machine",
        ["threads", "pages", *(f"{size} MB" for size in sizes)],
        rows,
        "Read bandwidth in GB/s by size of the buffer, which is read repeatedly:",
    )
    peaks = [
        [row["type"], str(row["threads"]), f"{row['operations'] / 1e9:.0f}"]
        for row in found["peak"]
        if row["type"] not in results.machine.rejected
    ]
    arithmetic = "Arithmetic in GOP/s; a multiply-add is two operations:\n\n"
    parts = [bandwidth, arithmetic + table(["type", "threads", "GOP/s"], peaks)]
    parts += [
        f"The probe of {type} is left out: it is slower than that of f32, so it is no limit."
        for type in results.machine.rejected
    ]
    return "\n\n".join(parts)


def _start_and_memory(results: Results) -> str:
    sizes = list(results.models)
    starts = [
        [run.program, run.failure or f"{1000 * run.first_byte:.1f}"] for run in results.start[:-1]
    ]
    peaks = [[run.program, run.failure or f"{run.peak_bytes / 1e6:.2f}"] for run in results.memory]
    return (
        f"## Start time and memory\n\nMilliseconds from the start of a process to the first token, "
        f"{sizes[-1]} with 8-bit weights in the page cache:\n\n{table(['program', 'ms'], starts)}"
        f"\n\nPeak resident memory while generating, {sizes[0]} with 8-bit weights:\n\n"
        f"{table(['program', 'MB'], peaks)}"
    )


def _agreement(results: Results) -> str:
    rows = []
    for engine in results.engines:
        found = [
            next((g for g in results.greedy[size] if g.engine.label == engine.label), None)
            for size in results.models
        ]
        if any(found):
            about = next(g.about for g in found if g).replace(" = 1 | ", ", ").removesuffix(", ")
            cells = ((g.failure or f"{g.equal} of {g.steps}") if g else "" for g in found)
            rows.append([engine.name, engine.weights, *cells, _escape(about)])
    return _section(
        "Greedy sequences",
        ["engine", "weights", *results.models, "version"],
        rows,
        f"Number of tokens before the first difference from {OURS} f32, up to EOS. With trained "
        "weights all float32 engines must agree; random weights have ties that rounding decides.",
    )


def errors(results: Results) -> list[str]:
    """Return what must not happen, one sentence each.

    A failure of StoryLlamas, and a float32 engine whose greedy sequence on trained weights differs
    from that of StoryLlamas.
    """
    found = []
    for size, model in results.models.items():
        found += [
            f"{cell.engine.label} fails on {size}: {cell.failure}"
            for cell in results.cells[size]
            if cell.failure and cell.engine.name == OURS
        ]
        found += [
            f"{g.engine.label} generates a different greedy sequence on {size}"
            for g in results.greedy[size]
            if model.is_trained and g.engine.bits == 32 and g.equal < g.steps and not g.failure
        ]
    return found


# ---- Parts ---------------------------------------------------------------------------------------


def number(speed: float) -> str:
    """Format a speed with three digits."""
    if speed < 1000:
        return f"{speed:.0f}"
    return f"{speed / 1000:.{1 if speed < 99950 else 0}f}k"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], text: str = "") -> str:
    """Format a heading, a text and a table; return "" if the table has no rows."""
    if not rows:
        return ""
    return "\n\n".join(part for part in (f"## {title}", text, table(head, rows)) if part)


def _escape(text: str) -> str:
    """Return a text of other programs as the content of a table's cell."""
    return text.replace("|", r"\|")


def _threads(count: int) -> str:
    return "automatic" if count == AUTO else str(count)


def _ours(results: Results) -> list[Engine]:
    return [engine for engine in results.engines if engine.name == OURS]


def _counts(results: Results) -> tuple[int, ...]:
    return tuple(threads for threads in _ours(results)[0].threads if threads != AUTO)
