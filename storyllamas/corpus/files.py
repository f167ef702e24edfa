r"""Files of stories in TinyStories' format: UTF-8, stories separated by `<|endoftext|>`.

The rules:

- A story ends at a separator, anywhere in a line; line breaks do not end it. The last story needs
  no separator.
- Invalid UTF-8 becomes U+FFFD, as with Python's "replace", and so does NUL. A file is rejected as
  not text if its first MiB has a NUL or decodes to more than 10 % of such characters.
- `\r\n` and `\r` become `\n`; other line breaks in a story stay.
- ASCII whitespace and byte order marks around a story are removed. Empty stories are skipped.

Files are read as a stream: memory does not grow with the corpus.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO

from storyllamas.errors import UserError

SEPARATOR = b"<|endoftext|>"
MAX_STORY_BYTES = 1 << 26

_CHUNK_BYTES = 1 << 20
_SEARCH_BYTES = 1 << 14  # some stories
_ASCII_AROUND = b" \t\n\v\f\r"
_AROUND = _ASCII_AROUND.decode() + "\ufeff"
_MAX_INVALID_SHARE = 0.1

Span = tuple[int, int]


@dataclass
class ReadCounts:
    """Counts of the stories that were read.

    Attributes:
        stories: stories that are not empty.
        text_bytes: length of the stories in UTF-8, without separators and surrounding whitespace.
        empty: empty stories, which were skipped.
        invalid_bytes: U+FFFD characters that replace invalid UTF-8 and NUL.
    """

    stories: int = 0
    text_bytes: int = 0
    empty: int = 0
    invalid_bytes: int = 0

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def read(
    path: str | os.PathLike[str], counts: ReadCounts | None = None, span: Span | None = None
) -> Iterator[str]:
    """Yield the stories of a file in order.

    Args:
        path: the file.
        counts: is increased while reading.
        span: first byte and end of a span from `spans`; None: the whole file.

    Raises:
        UserError: the file is missing or not text, has a story above `MAX_STORY_BYTES`, or the
            whole file has no story.
    """
    for story in read_bytes(path, counts, span):
        yield story.decode()


def read_bytes(
    path: str | os.PathLike[str], counts: ReadCounts | None = None, span: Span | None = None
) -> Iterator[bytes]:
    """Yield the stories as `read` does, each as UTF-8 bytes."""
    counts = ReadCounts() if counts is None else counts
    before = counts.stories
    start, end = span or (0, None)
    with open_binary(Path(path)) as file:
        file.seek(start)
        yield from _normalized(raw_stories(Path(path), file, end), counts)
    if span is None and counts.stories == before:
        raise no_stories(path)


def stories(raw: Iterable[bytes], counts: ReadCounts) -> Iterator[str]:
    """Decode, trim and count the raw bytes of stories, and yield the stories that are not empty."""
    for story in _normalized(raw, counts):
        yield story.decode()


def no_stories(path: str | os.PathLike[str]) -> UserError:
    """Return the error for a file without a story."""
    return UserError(f"{path} is empty: put stories in it, separated by {SEPARATOR.decode()}")


def write(file: BinaryIO, stories: Iterable[str]) -> int:
    """Write stories, each followed by the separator on a line of its own; return their count."""
    count = 0
    for story in stories:
        file.write(story.encode() + b"\n" + SEPARATOR + b"\n")
        count += 1
    return count


def spans(path: str | os.PathLike[str], size: int) -> Iterator[Span]:
    """Split a file after separators into spans of at least `size` bytes; the last may be shorter.

    The stories of the spans, one span after the other, are the stories of the file.

    Yields:
        First byte and end of each span, as offsets in the file.
    """
    with open_binary(Path(path)) as file:
        total = file.seek(0, os.SEEK_END)
        start = 0
        while start < total:
            end = _end_of_separator(file, min(start + size, total))
            yield start, end
            start = end


def sample(path: str | os.PathLike[str], size: int) -> Iterator[str]:
    """Yield stories spread evenly over a file; the choice depends on file and size only.

    A story is taken if the stories taken so far are a smaller share of the text read so far than
    `size` is of the file.

    Args:
        path: the file.
        size: bytes of text to yield in total, approximately; 0: every story.
    """
    with open_binary(Path(path)) as file:
        total = os.fstat(file.fileno()).st_size
    seen = taken = 0
    for story in read(path):
        length = len(story.encode())
        seen += length
        if size == 0 or taken * total < seen * size:
            taken += length
            yield story


def raw_stories(
    path: Path,
    file: BinaryIO,
    end: int | None = None,
    separator: bytes | re.Pattern[bytes] = SEPARATOR,
) -> Iterator[bytes]:
    """Yield the raw bytes of each story; whitespace after the last separator is dropped.

    Args:
        path: the file's name, for messages.
        file: the file, which is read from its current position.
        end: offset where reading stops; None: the end of the file.
        separator: the bytes that separate stories, or a pattern of whitespace.

    Raises:
        UserError: the file is not text, or a story is above `MAX_STORY_BYTES`.
    """
    tail = b""
    for chunk in chunks(path, file, end):
        *whole, tail = _split(tail + chunk, separator)
        yield from whole
        if len(tail) > MAX_STORY_BYTES:
            raise UserError(
                f"{path} has a story above {MAX_STORY_BYTES >> 20} MiB: separate its stories with "
                f"{SEPARATOR.decode()}, or set corpus.separator"
            )
    if tail.strip():
        yield tail


def chunks(path: Path, file: BinaryIO, end: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of a file in chunks, as `raw_stories` reads them.

    Raises:
        UserError: the file is not text.
    """
    position = file.tell()
    while end is None or position < end:
        chunk = file.read(_CHUNK_BYTES if end is None else min(_CHUNK_BYTES, end - position))
        if not chunk:
            break
        if position == 0:
            _check_is_text(path, chunk)
        position += len(chunk)
        yield chunk


def open_binary(path: Path) -> BinaryIO:
    """Open a file of stories.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a file of stories") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _split(buffer: bytes, separator: bytes | re.Pattern[bytes]) -> list[bytes]:
    """Split at separators, but not at whitespace at the end, which the next chunk may continue."""
    if isinstance(separator, bytes):
        return buffer.split(separator)
    found, start = [], 0
    for match in separator.finditer(buffer):
        if match.end() < len(buffer):
            found.append(buffer[start : match.start()])
            start = match.end()
    return [*found, buffer[start:]]


def _check_is_text(path: Path, chunk: bytes) -> None:
    text = chunk.decode(errors="replace")
    if "\0" in text or _invalid_bytes(chunk, text) > _MAX_INVALID_SHARE * len(text):
        raise UserError(f"{path} is not text in UTF-8: convert it, or name a file of stories")


def _normalized(raw: Iterable[bytes], counts: ReadCounts) -> Iterator[bytes]:
    """Apply the rules of the module; yield and count the stories that are not empty."""
    for each in raw:
        story = _normalize(each, counts)
        if story:
            counts.stories += 1
            counts.text_bytes += len(story)
            yield story
        else:
            counts.empty += 1


def _normalize(raw: bytes, counts: ReadCounts) -> bytes:
    if raw.isascii() and b"\r" not in raw and b"\0" not in raw:
        return raw.strip(_ASCII_AROUND)  # a shortcut for most stories, ten times as fast
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode(errors="replace")
        counts.invalid_bytes += _invalid_bytes(raw, text)
    if "\0" in text:
        counts.invalid_bytes += text.count("\0")
        text = text.replace("\0", "\ufffd")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip(_AROUND).encode()


def _invalid_bytes(raw: bytes, text: str) -> int:
    """Count the U+FFFD characters that decoding added, without those that the text already had."""
    return text.count("\ufffd") - raw.count("\ufffd".encode())


def _end_of_separator(file: BinaryIO, position: int) -> int:
    """Return the end of the first separator at or after `position`, or the end of the file."""
    file.seek(position)
    window = b""
    while chunk := file.read(_SEARCH_BYTES):
        window = window[1 - len(SEPARATOR) :] + chunk
        found = window.find(SEPARATOR)
        position += len(chunk)
        if found >= 0:
            return position - len(window) + found + len(SEPARATOR)
    return position
