"""Logs of a run as CSV files, which DVC plots draw while it trains."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from storyllamas.atomic import write_text
from storyllamas.rounding import six_digits
from storyllamas.training.disk import describe_refusal

Row = Mapping[str, float]


class CsvLog:
    """A CSV file that grows by rows; each row is flushed.

    A full disk does not stop the run: missing rows are written when there is room again.

    Attributes:
        path: the file.
        rows: all rows, which a checkpoint stores so that a resumed run writes the same file.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: Sequence[Row] = ()) -> None:
        self.path, self._columns = path, columns
        self.rows: list[Row] = [six_digits(row) for row in rows]
        self._file: TextIO | None = None
        self._warned = False
        self._rewrite()

    def append(self, row: Row) -> None:
        """Add a row; numbers are rounded to six significant digits."""
        self.rows.append(six_digits(row))
        try:
            if self._file:
                self._file.write(self._text(self.rows[-1:]))
            else:
                self._rewrite()
        except OSError as error:
            self._drop_file()
            if not self._warned:
                size = len(self._text(self.rows))
                reason = describe_refusal(error, self.path.parent, size)
                print(f"{self.path} misses rows: {reason}; training continues", flush=True)
            self._warned = True

    def close(self) -> None:
        """Write the whole file and close it.

        Raises:
            OSError: it cannot be written.
        """
        self._drop_file()
        self._rewrite()
        self._drop_file()

    def _rewrite(self) -> None:
        header = ",".join(self._columns) + "\n"
        write_text(self.path, header + self._text(self.rows))
        self._file = self.path.open("a", buffering=1, newline="", encoding="utf-8")

    def _drop_file(self) -> None:
        """Close the file if it is open; rows that it could not write are still in `rows`."""
        if self._file:
            with suppress(OSError):
                self._file.close()
        self._file = None

    def _text(self, rows: Iterable[Row]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue()
