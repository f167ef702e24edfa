"""Forms that files of stories come in, told by the end of the name.

| name ends in | a story is |
|---|---|
| `.parquet` | the column `text` of a row |
| `.jsonl` | the field `text` of a line |
| anything else | what stands between `<|endoftext|>` (see `files`) |

The last two may be compressed: then `.gz` or `.zst` follows. A `text` that has `<|endoftext|>` in
it is several stories. Files are read as a stream: memory does not grow with the corpus.
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
from storyllamas.corpus.files import MAX_STORY_BYTES, SEPARATOR, Counts
from storyllamas.errors import UserError

SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")

# In the standard library from Python 3.14 on, where there is no backport.
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
# Of a Parquet file, how much is in memory at a time.
_ROWS, _CHUNK_BYTES = 256, 1 << 20


def read(path: str | os.PathLike[str], counts: Counts | None = None) -> Iterator[str]:
    """Yield the stories of a file in order, as `files.read` does.

    Raises:
        UserError: as for `files.read`; also the file is damaged, has no `text`, or is of a form
            for which a package is missing.
    """
    path = Path(path)
    counts = Counts() if counts is None else counts
    before = counts.stories
    yield from files.stories(_pieces(path), counts)
    if counts.stories == before:
        raise files.empty(path)


def _pieces(path: Path) -> Iterator[bytes]:
    """The raw stories."""
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
    """What is in a file; damage met while it is read becomes a sentence."""
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
            f"{path} is damaged at or before byte {raw.tell():,} ({_phrase(error)}): get it again"
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
                f"{path} is not JSON in line {number:,} ({reason}): give one object a line"
            ) from None
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UserError(f'{path} has no string under "text" in line {number:,}: put one there')
        yield _encoded(text)


def _encoded(text: str) -> bytes:
    """The bytes that were decoded; half a surrogate pair, as JSON can spell it, is not UTF-8."""
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
            f"{path} is damaged behind row {row:,} ({_phrase(error)}): get it again"
        ) from None


def _check_schema(path: Path, schema: Any) -> None:
    if "text" not in schema.names:
        raise UserError(f"{path} has no column text, only {', '.join(schema.names)}: rename one")
    kind = str(schema.field("text").type)
    if kind not in ("string", "large_string", "string_view"):
        raise UserError(f"{path} has {kind} in its column text: put strings there")


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{path} cannot be read without the package {name}: pip install 'storyllamas[formats]'"
        ) from None


def _phrase(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
