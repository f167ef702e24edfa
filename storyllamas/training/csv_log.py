"""The log of a run: two tables that DVC plots draw while it goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from storyllamas.atomic import write_text
from storyllamas.rounding import six_digits
from storyllamas.training.disk import refusal

Row = Mapping[str, float]

STEP_COLUMNS = ("step", "tokens", "loss", "learning_rate", "gradient_norm")
VALIDATION_COLUMNS = ("step", "tokens", "loss")


class Table:
    """A CSV file that grows by rows, each of them flushed.

    Its rows are kept, so that a checkpoint can hold them and a resumed run writes the same file. A
    full disk does not stop the run: the rows that are missing are written when there is room.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: Sequence[Row] = ()) -> None:
        self.path, self._columns = path, columns
        self.rows: list[Row] = [six_digits(row) for row in rows]
        self._file: TextIO | None = None
        self._warned = False
        self._write_whole()

    def append(self, row: Row) -> None:
        """Add a row; numbers are rounded to six significant digits."""
        self.rows.append(six_digits(row))
        try:
            if self._file:
                self._file.write(self._text(self.rows[-1:]))
            else:
                self._write_whole()
        except OSError as error:
            self._shut()
            if not self._warned:
                size = len(self._text(self.rows))
                why = refusal(error, self.path.parent, size)
                print(f"{self.path} is behind: {why}; training goes on", flush=True)
            self._warned = True

    def close(self) -> None:
        """Close the file; `OSError` if it cannot be written whole."""
        self._shut()
        self._write_whole()
        self._shut()

    def _write_whole(self) -> None:
        header = ",".join(self._columns) + "\n"
        write_text(self.path, header + self._text(self.rows))
        self._file = self.path.open("a", buffering=1, newline="", encoding="utf-8")

    def _shut(self) -> None:
        """Give up the file; what it still holds back is in `rows`."""
        if self._file:
            with suppress(OSError):
                self._file.close()
        self._file = None

    def _text(self, rows: Iterable[Row]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue()
