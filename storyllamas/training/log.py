"""The log of a run: two tables that DVC plots draw while it goes on."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from storyllamas.rounding import six_digits

Row = Mapping[str, float]

STEP_COLUMNS = ("step", "tokens", "loss", "learning_rate", "gradient_norm")
VALIDATION_COLUMNS = ("step", "tokens", "loss")


class Table:
    """A CSV file that grows by rows, each of them flushed.

    Its rows are kept, so that a checkpoint can hold them and a resumed run writes the same file.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: Sequence[Row] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = []
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        self._writer.writeheader()
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """Add a row; numbers are rounded to six significant digits."""
        rounded = six_digits(row)
        self.rows.append(rounded)
        self._writer.writerow(rounded)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
