"""Write the figures of bench/results and its README.md, which compares the machines.

`make bench` and `make bench-train` do so after each run. After you add a page from another machine:

    python -m bench.index
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench import build, pages, plot
from bench.engines import OURS
from bench.pages import Page
from bench.report import PEERS, TASKS, table
from bench.train_report import SEQUENCES, SPEED_UP, TOKENS_PER_SECOND
from storyllamas.atomic import write_text
from storyllamas.errors import exit_on_user_error

RESULTS = build.BENCH / "results"
FIGURE = "machines.png"


def write(folder: Path) -> None:
    """Write README.md and the figures of a folder of pages."""
    engine_pages, training_pages = pages.read_all(folder)
    for page in engine_pages:
        plot.draw_machine(page, page.path.with_suffix(".png"))
    if engine_pages:
        plot.draw_machines(engine_pages, folder / FIGURE)
    write_text(folder / "README.md", markdown(engine_pages, training_pages))


def markdown(engine_pages: Sequence[Page], training_pages: Sequence[Page]) -> str:
    """Return the index as Markdown."""
    parts = [
        "# Results by machine",
        "Written by `make bench` and `make bench-train`, which add a page for the machine that "
        "they run on. Pages may be from different versions: look at their dates.",
    ]
    if engine_pages:
        parts += [
            "## The engine",
            f"Tokens a second of {OURS} with {plot.WEIGHTS} weights and the fastest number of "
            f"threads; in brackets the speed-up over the faster of {' and '.join(PEERS)} with "
            "weights of equal bits.",
            f"![Tokens a second by machine]({FIGURE})",
        ]
        for task, title in TASKS.items():
            parts += [f"### {title}", _engine_table(engine_pages, task)]
    if training_pages:
        parts += [
            "## Training",
            f"Tokens a second of {OURS}; in brackets the speed-up over a plain (naive) PyTorch "
            "loop. Sequences are those of a step, as long as the context of the model.",
            _training_table(training_pages),
        ]
    return "\n\n".join(parts) + "\n"


def _engine_table(found: Sequence[Page], task: str) -> str:
    sizes = list(dict.fromkeys(size for page in found for size in page.sizes))
    rows = [
        [_link(page), page.date, *(_engine_cell(page, task, size) for size in sizes)]
        for page in found
    ]
    return table(["machine", "date", *sizes], rows)


def _engine_cell(page: Page, task: str, size: str) -> str:
    for row in page.tables.get(TASKS[task], []):
        if (row["engine"], row["weights"]) == (OURS, plot.WEIGHTS) and row.get(size):
            best = max(row[size].split("/"), key=pages.value).strip()
            speed_up = page.speed_up(task, plot.WEIGHTS, size)
            return f"{best} ({speed_up})" if speed_up else best
    return ""


def _training_table(found: Sequence[Page]) -> str:
    cases = list(dict.fromkeys(case for page in found for case in _cases(page)))
    rows = [
        [_link(page), page.date, *(_cases(page).get(case, "") for case in cases)] for page in found
    ]
    return table(["machine", "date", *(f"{size}, {n} sequences" for size, n in cases)], rows)


def _cases(page: Page) -> dict[tuple[str, str], str]:
    """Return the cells of StoryLlamas by size and sequences a step."""
    return {
        (row["size"], row[SEQUENCES].partition(" (")[0]): (
            f"{row[TOKENS_PER_SECOND].partition(' (')[0]} ({row[SPEED_UP]})"
        )
        for rows in page.tables.values()
        for row in rows
        if pages.is_ours(row.get("loop", ""))
    }


def _link(page: Page) -> str:
    return f"[{page.title}]({page.path.name})"


@exit_on_user_error
def main() -> None:
    """Parse the command line and write the index."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.index", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the pages")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
