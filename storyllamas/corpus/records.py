"""Files in which a story is the field `text` of a record: JSON lines, JSON arrays, CSV, Parquet.

Each reader yields the bytes of every `text`, and holds a small part of the file in memory.
"""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import json
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO, cast

from storyllamas.corpus.files import MAX_STORY_BYTES
from storyllamas.errors import UserError
from storyllamas.instruct import pair

# Upper limits of the part of a Parquet file that is in memory: rows, and bytes of a buffer.
_ROWS, _CHUNK_BYTES = 256, 1 << 20

_JSON_SPACE = " \t\r\n"
_CSV_DELIMITERS = ",;\t"


def json_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield the field `text` of the object in each line; blank lines are skipped.

    Raises:
        UserError: a line is not JSON, or has no string `text`.
    """
    for number, row in _json_rows(path, file):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UserError(f'{path} has no string "text" in line {number:,}: add it')
        yield encoded(text)


def json_pairs(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield a record for the fields `prompt` and `response` of the object in each line.

    A line with the field `text` in place of them has a whole record. Blank lines are skipped.

    Raises:
        UserError: a line is not JSON, lacks a field, or a field has what separates records.
    """
    for number, row in _json_rows(path, file):
        fields = row if isinstance(row, dict) else {}
        if isinstance(fields.get("text"), str) and not {"prompt", "response"} & set(fields):
            yield encoded(fields["text"])
            continue
        texts = []
        for name in ("prompt", "response"):
            if not isinstance(fields.get(name), str):
                raise UserError(f'{path} has no string "{name}" in line {number:,}: add it')
            texts.append(encoded(fields[name]).decode(errors="replace"))
        try:
            yield pair(*texts).text.encode()
        except ValueError as error:
            raise UserError(f"{path} has {error}, in line {number:,}: change it") from None


def _json_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Yield the number of each line that is not blank, from 1, and its value.

    Raises:
        UserError: a line is not JSON.
    """
    lines = iter(lambda: file.readline(MAX_STORY_BYTES), b"")
    for number, line in enumerate(lines, 1):
        spelled = line.decode(errors="surrogateescape").strip(f"{_JSON_SPACE}\ufeff")
        if not spelled:
            continue
        try:
            row = json.loads(spelled)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is not JSON in line {number:,} ({_reason(error)}): write one object per "
                "line"
            ) from None
        yield number, row


def json_array(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield the elements of a JSON array that are strings, or the field `text` of its objects.

    A file that begins with an object is read as JSON lines.

    Raises:
        UserError: the file is not a JSON array, or an element has no text.
    """
    buffered = io.BufferedReader(cast(Any, file))
    first = _skip_space(buffered)
    if first == b"{":
        yield from json_lines(path, buffered)
        return
    if not first:
        return
    if first != b"[":
        raise UserError(f"{path} is not a JSON array of stories: it has to begin with [")
    buffered.read(1)
    for number, element in enumerate(_elements(path, buffered), 1):
        text = element.get("text") if isinstance(element, dict) else element
        if not isinstance(text, str):
            raise UserError(
                f'{path} has neither a string nor an object with a string "text" in element '
                f"{number:,}: add it"
            )
        yield encoded(text)


def comma_separated(path: Path, file: BinaryIO, delimiter: str | None) -> Iterator[bytes]:
    """Yield the column `text` of a CSV file; its first row names the columns.

    Args:
        path: the file's name, for messages.
        file: its content.
        delimiter: what separates columns; None: a comma, semicolon or tab, as in the first row.

    Raises:
        UserError: there is no column `text`, or a row cannot be read.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    header = text.readline()
    if not header.strip():
        return
    for each in delimiter or _CSV_DELIMITERS:
        names = [name.strip().lower() for name in next(csv.reader([header], delimiter=each))]
        if "text" in names:
            break
    else:
        raise UserError(
            f"{path} has no column text in its first row, {header.strip()[:80]!r}: name the column "
            "of stories text"
        )
    column, limit = names.index("text"), csv.field_size_limit(MAX_STORY_BYTES)
    rows = csv.reader(text, delimiter=each)
    try:
        for row in rows:
            if row:
                yield encoded(row[column] if column < len(row) else "")
    except csv.Error as error:
        raise UserError(f"{path} is not CSV in line {rows.line_num + 1:,}: {error}") from None
    finally:
        csv.field_size_limit(limit)


def parquet(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield the column `text` of a Parquet file; null is an empty text.

    Raises:
        UserError: there is no column `text` of strings, the file is damaged, or pyarrow is not
            installed.
    """
    pyarrow = package("pyarrow", path)
    reader = package("pyarrow.parquet", path)
    row = 0
    try:
        opened = reader.ParquetFile(file, buffer_size=_CHUNK_BYTES, pre_buffer=False)
        _check_schema(path, opened.schema_arrow)
        for batch in opened.iter_batches(_ROWS, columns=["text"], use_threads=False):
            column = batch.column(0).cast(pyarrow.large_binary())
            yield from (text or b"" for text in column.to_pylist())
            row += len(column)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged after row {row:,} ({phrase(error)}): get the file again"
        ) from None


def encoded(text: str) -> bytes:
    """Restore the bytes that were decoded; half a surrogate pair becomes invalid UTF-8."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")


def package(name: str, path: Path) -> Any:
    """Import a module that only some formats need.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"reading {path} requires the package {name}: pip install 'storyllamas[formats]'"
        ) from None


def phrase(error: Exception) -> str:
    """Return the first line of an error's message without its full stop, or the error's class."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _skip_space(file: io.BufferedReader) -> bytes:
    """Skip whitespace and a byte order mark, and return the next byte without reading it."""
    while (byte := file.peek(1)[:1]) and byte in b" \t\r\n\xef\xbb\xbf":
        file.read(1)
    return byte


def _elements(path: Path, file: BinaryIO) -> Iterator[Any]:
    """Yield the elements of a JSON array whose opening bracket was read."""
    decoder, buffer, number = json.JSONDecoder(), _TextBuffer(file), 1
    if buffer.peek() == "]":
        return
    while True:
        element = _element(path, decoder, buffer, number)
        following = buffer.peek()
        yield element
        if following not in (",", "]"):
            what = repr(following) if following else "its end"
            raise UserError(
                f"{path} is not a JSON array: after element {number:,} it has {what} in place of , "
                "or ]"
            )
        buffer.position += 1
        if following == "]":
            return
        buffer.peek()
        number += 1


def _element(path: Path, decoder: json.JSONDecoder, buffer: _TextBuffer, number: int) -> Any:
    """Decode one element; read more of the file as long as the element is incomplete."""
    while True:
        try:
            element, end = decoder.raw_decode(buffer.text, buffer.position)
        except (JSONDecodeError, RecursionError) as error:
            if buffer.remaining > MAX_STORY_BYTES or not buffer.grow():
                raise UserError(
                    f"{path} is not JSON in element {number:,} ({_reason(error)}): write an array "
                    "of strings or objects"
                ) from None
        else:
            buffer.position = end
            return element


class _TextBuffer:
    """The part of a file between a position and the last byte that was read, decoded."""

    def __init__(self, file: BinaryIO) -> None:
        self.text, self.position = "", 0
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    @property
    def remaining(self) -> int:
        """Characters after the position."""
        return len(self.text) - self.position

    def grow(self) -> bool:
        """At least double the remaining text; return whether the file had more."""
        data = self._file.read(max(_CHUNK_BYTES, self.remaining))
        more = self._decoder.decode(data, not data)
        self.text, self.position = self.text[self.position :] + more, 0
        return bool(more or data)

    def peek(self) -> str:
        """Skip whitespace and return the next character; empty at the end of the file."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in _JSON_SPACE:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.grow():
                return ""


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, JSONDecodeError) else phrase(error)


def _check_schema(path: Path, schema: Any) -> None:
    if "text" not in schema.names:
        raise UserError(
            f"{path} has no column text, only {', '.join(schema.names)}: rename the column of "
            "stories to text"
        )
    kind = str(schema.field("text").type)
    if kind not in ("string", "large_string", "string_view"):
        raise UserError(f"the column text of {path} has type {kind}: it must be strings")
