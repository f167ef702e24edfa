"""The formats of files of stories, detected by the end of the name.

| name ends in | a story is |
|---|---|
| `.parquet` | the column `text` of a row |
| `.jsonl` | the field `text` of a line |
| `.json` | an element of an array: a string, or the field `text` of an object |
| `.csv`, `.tsv` | the column `text` of a row; the first row names the columns |
| anything else | the text between two separators (see `files` and `separators`) |

All but Parquet may be compressed, with `.gz` or `.zst` at the end of the name. A `text` that
contains `<|endoftext|>` is several stories. Files are read as a stream: memory does not grow with
the corpus.
"""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from storyllamas import instruct
from storyllamas.corpus import files, records, separators
from storyllamas.corpus.files import SEPARATOR, ReadCounts
from storyllamas.corpus.separators import AUTO
from storyllamas.errors import UserError

SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")

TABLE_SUFFIXES = tuple(
    f".{kind}{packed}" for kind in ("csv", "tsv", "json") for packed in ("", ".gz", ".zst")
)
"""Formats that also hold other things than stories, such as a dataset's description."""

STORIES = "stories"
"""The value of `corpus.kind` whose stories have no prompt."""

# The standard library has zstd from Python 3.14 on; the backport does not exist there.
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"

Reader = Callable[[Path, BinaryIO], Iterator[bytes]]

_RECORDS: dict[str, Reader] = {
    ".jsonl": records.json_lines,
    ".json": records.json_array,
    ".csv": partial(records.comma_separated, delimiter=None),
    ".tsv": partial(records.comma_separated, delimiter="\t"),
}


def read(
    path: str | os.PathLike[str],
    counts: ReadCounts | None = None,
    separator: str = AUTO,
    kind: str = STORIES,
) -> Iterator[str]:
    """Yield the stories of a file in order, as `files.read` does.

    Args:
        path: the file.
        counts: is increased while reading.
        separator: of the stories in a text file: `line`, `blank_line`, a string, or `auto`.
        kind: as `corpus.kind`. With `instruct`, each story is a record as `instruct.parse` reads
            it, and a JSON line is a `prompt` and its `response`. A text without a response counts
            as an empty story.

    Raises:
        UserError: as for `files.read`; also if the file is damaged or has no `text`, or the
            package for its format is not installed.
    """
    path = Path(path)
    counts = ReadCounts() if counts is None else counts
    before = counts.stories
    if kind == STORIES:
        yield from files.stories(_raw_stories(path, separator), counts)
    else:
        yield from _records(path, separator, counts)
    if counts.stories == before:
        raise files.no_stories(path) if kind == STORIES else _no_records(path)


def _records(path: Path, separator: str, counts: ReadCounts) -> Iterator[str]:
    """Yield the text of each record, and count its bytes."""
    separator = SEPARATOR.decode() if separator == AUTO else separator
    readers = _RECORDS | {".jsonl": records.json_pairs}
    for text in files.stories(_raw_stories(path, separator, readers), counts):
        counts.text_bytes -= len(text.encode())
        record = instruct.parse(text)
        if record is None:
            counts.stories -= 1
            counts.empty += 1
            continue
        counts.text_bytes += len(record.text.encode())
        yield record.text


def _no_records(path: Path) -> UserError:
    return UserError(
        f"{path} has no record, which corpus.kind=instruct needs: a prompt, a line "
        f"{instruct.RESPONSE} and a response, with {SEPARATOR.decode()} between records"
    )


def layout(path: Path) -> separators.Layout | None:
    """Measure the layout of a text file; None for a file of another format.

    Raises:
        UserError: the file cannot be read or is damaged.
    """
    if _kind(path) in (".parquet", *_RECORDS):
        return None
    with files.open_binary(path) as raw, _decompressed(path, raw) as file:
        return separators.layout(files.chunks(path, file))


def _kind(path: Path) -> str:
    """Return the end of the name that decides the format."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz").removesuffix(".zst")).suffix


def _raw_stories(
    path: Path, separator: str, readers: Mapping[str, Reader] | None = None
) -> Iterator[bytes]:
    """Yield the raw bytes of each story; `readers` replace `_RECORDS`."""
    if separator == AUTO:
        found = layout(path)
        separator = found.guess() if found else SEPARATOR.decode()
    with files.open_binary(path) as raw:
        if path.name.lower().endswith(".parquet"):
            yield from _split(records.parquet(path, raw))
            return
        with _decompressed(path, raw) as file:
            if read_records := (readers or _RECORDS).get(_kind(path)):
                yield from _split(read_records(path, file))
            else:
                yield from files.raw_stories(path, file, separator=separators.parse(separator))


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
        zstd = records.package(_ZSTD, path)
        file, damage = zstd.ZstdFile(raw), (EOFError, zstd.ZstdError)
    else:
        file, damage = raw, ()
    try:
        with file:
            yield file
    except damage as error:
        raise UserError(
            f"{path} is damaged at or before byte {raw.tell():,} ({records.phrase(error)}): get "
            "the file again"
        ) from None
