"""Read the pages of bench/results, from which the figures and the index are made.

A page is the only record of a machine's measurements. So the figures and the index can be made
again at any time, with pages from other machines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.engines import OURS
from bench.report import SHARES, SPEED_UP, TASKS
from bench.train_report import TRAINING_SUFFIX
from storyllamas.errors import UserError

Row = dict[str, str]


@dataclass(frozen=True)
class Page:
    """A page of `make bench` or `make bench-train`.

    Attributes:
        path: of the file.
        title: of the machine.
        date: of the measurements.
        tables: rows by heading; each row has its cells by the head of the table.
    """

    path: Path
    title: str
    date: str
    tables: dict[str, list[Row]]

    @property
    def sizes(self) -> list[str]:
        """Return the sizes of the models."""
        first = self.tables[TASKS["story"]][0]
        return [name for name in first if name not in ("engine", "weights")]

    def engines(self) -> list[tuple[str, str]]:
        """Return program and weights of each engine with a speed for one sequence."""
        return [(row["engine"], row["weights"]) for row in self.tables[TASKS["story"]]]

    def best(self, task: str, engine: str, weights: str, size: str) -> float:
        """Return tokens a second with the fastest thread count, or 0.

        Args:
            task: a key of `report.TASKS`.
            engine: program.
            weights: the program's name of the type.
            size: of the model.
        """
        for row in self.tables.get(TASKS[task], []):
            if (row["engine"], row["weights"]) == (engine, weights):
                return max((value(part) for part in row.get(size, "").split("/")), default=0.0)
        return 0.0

    def limit(self, weights: str, size: str) -> float:
        """Return the limit of the machine for one sequence with all threads, or 0."""
        rows = [
            row
            for row in self.tables.get(SHARES, [])
            if (row["task"], row["weights"]) == (TASKS["story"], weights)
        ]
        found = re.search(r" of (\S+):", rows[-1][size]) if rows else None
        return value(found[1]) if found else 0.0

    def speed_up(self, task: str, weights: str, size: str) -> str:
        """Return the speed-up over the faster peer as the page has it, or ""."""
        for row in self.tables.get(SPEED_UP, []):
            if (row["task"], row["weights"]) == (TASKS[task], weights):
                return row.get(size, "")
        return ""


def read(path: Path) -> Page:
    """Read a page.

    Raises:
        UserError: it is not a page of the benchmarks.
    """
    text = path.read_text(encoding="utf-8")
    title = re.match(r"# Speed (?:of training )?on (.+)\n", text)
    date = re.search(r"^- Date: (\S+)", text, re.MULTILINE)
    if not title or not date:
        raise UserError(f"{path} has no title or no date: write it with `make bench`")
    tables: dict[str, list[Row]] = {}
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        for rows in _tables(body):
            tables.setdefault(heading, rows)
    return Page(path, title[1], date[1], tables)


def read_all(folder: Path) -> tuple[list[Page], list[Page]]:
    """Return the pages of `make bench` and those of `make bench-train`, sorted by name."""
    paths = [path for path in sorted(folder.glob("*.md")) if path.name != "README.md"]
    training = [path for path in paths if path.stem.endswith(TRAINING_SUFFIX)]
    return [read(p) for p in paths if p not in training], [read(p) for p in training]


def value(figure: str) -> float:
    """Return the number of a figure such as "36.6k" or "1.2k~"; 0 for a failure or nothing."""
    found = re.fullmatch(r"([\d.]+)(k?)~?", figure.strip())
    return float(found[1]) * (1000 if found[2] else 1) if found else 0.0


def is_ours(engine: str) -> bool:
    """Return whether a program is StoryLlamas."""
    return engine.strip("*") == OURS


def _tables(text: str) -> Iterator[list[Row]]:
    """Yield the tables of a text, each with its rows."""
    for block in text.split("\n\n"):
        lines = block.strip().splitlines()
        if len(lines) > 2 and lines[0].startswith("|"):
            head, _, *rows = (
                [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
            )
            yield [dict(zip(head, row, strict=False)) for row in rows]
