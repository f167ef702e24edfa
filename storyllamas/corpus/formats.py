"""The formats of files of stories, detected by the end of the name.

| name ends in | a story is |
|---|---|
| `.parquet` | the column `text` of a row |
| `.jsonl` | the field `text` of a line |
| anything else | the text between two `<|endoftext|>` (see `files`) |

The last two may be compressed, with `.gz` or `.zst` at the end of the name. A `text` that contains
`<|endoftext|>` is several stories. Files are read as a stream: memory does not grow with the
corpus.
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from storyllamas.corpus import files
from storyllamas.corpus.files import MAX_STORY_BYTES, SEPARATOR, ReadCounts
from storyllamas.errors import UserError

SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")

# The standard library has zstd from Python 3.14 on; the backport does not exist there.
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
# Upper limits of the part of a Parquet file that is in memory: rows, and bytes of a buffer.
_ROWS, _CHUNK_BYTES = 256, 1 << 20


def read(path: str | os.PathLike[str], counts: ReadCounts | None = None) -> Iterator[str]:
    """Yield the stories of a file in order, as `files.read` does.

    Args:
        path: the file.
        counts: is increased while reading.

    Raises:
        UserError: as for `files.read`; also if the file is damaged or has no `text`, or the
            package for its format is not installed.
    """
    path = Path(path)
    counts = ReadCounts() if counts is None else counts
    before = counts.stories
    yield from files.stories(_pieces(path), counts)
    if counts.stories == before:
        raise files.empty(path)


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the raw bytes of each story."""
    name = path.name.lower()
    with files.open_binary(path) as raw:
        if name.endswith(".parquet"):
            yield from _split(_parquet(path, raw))
            return
        with _decompressed(path, raw) as file:
            if name.removesuffix(".gz").removesuffix(".zst").endswith(".jsonl"):
                yield from _split(_json_lines(path, file))
            else:
                yield from files.pieces(path, file)


def _split(texts: Iterator[bytes]) -> Iterator[bytes]:
    for text in texts:
        yield from text.split(SEPARATOR)


@contextmanager
def _decompressed(path: Path, raw: BinaryIO) -> Iterator[BinaryIO]:
    """Open the decompressed content of a file; turn damage found while reading into a UserError."""
    file: BinaryIO
    damage: tuple[type[Exception], ...]
    if path.suffix.lower() == ".gz":
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        damage = (EOFError, zlib.error, gzip.BadGzipFile)
    elif path.suffix.lower() == ".zst":
        zstd = _package(_ZSTD, path)
        file, damage = zstd.ZstdFile(raw), (EOFError, zstd.ZstdError)
    else:
        file, damage = raw, ()
    try:
        with file:
            yield file
    except damage as error:
        raise UserError(
            f"{path} is damaged at or before byte {raw.tell():,} ({_phrase(error)}): get the file "
            "again"
        ) from None


def _json_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    lines = iter(lambda: file.readline(MAX_STORY_BYTES), b"")
    for number, line in enumerate(lines, 1):
        spelled = line.decode(errors="surrogateescape").strip(" \t\r\n\ufeff")
        if not spelled:
            continue
        try:
            row = json.loads(spelled)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else _phrase(error)
            raise UserError(
                f"{path} is not JSON in line {number:,} ({reason}): write one object per line"
            ) from None
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UserError(f'{path} has no string "text" in line {number:,}: add it')
        yield _encoded(text)


def _encoded(text: str) -> bytes:
    """Restore the bytes that were decoded; half a surrogate pair becomes invalid UTF-8."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")


def _parquet(path: Path, raw: BinaryIO) -> Iterator[bytes]:
    pyarrow = _package("pyarrow", path)
    parquet = _package("pyarrow.parquet", path)
    row = 0
    try:
        file = parquet.ParquetFile(raw, buffer_size=_CHUNK_BYTES, pre_buffer=False)
        _check_schema(path, file.schema_arrow)
        for batch in file.iter_batches(_ROWS, columns=["text"], use_threads=False):
            column = batch.column(0).cast(pyarrow.large_binary())
            yield from (text or b"" for text in column.to_pylist())
            row += len(column)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged after row {row:,} ({_phrase(error)}): get the file again"
        ) from None


def _check_schema(path: Path, schema: Any) -> None:
    if "text" not in schema.names:
        raise UserError(
            f"{path} has no column text, only {', '.join(schema.names)}: rename the column of "
            "stories to text"
        )
    kind = str(schema.field("text").type)
    if kind not in ("string", "large_string", "string_view"):
        raise UserError(f"the column text of {path} has type {kind}: it must be strings")


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"reading {path} requires the package {name}: pip install 'storyllamas[formats]'"
        ) from None


def _phrase(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
