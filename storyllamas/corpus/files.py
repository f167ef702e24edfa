r"""Files of stories in TinyStories' format: UTF-8, stories set apart by `<|endoftext|>`.

What a file means:

- A story ends at a separator, wherever it stands, and never at a line break. The last story needs
  no separator.
- Bytes that are not UTF-8 become U+FFFD, as Python's "replace" does it, and so does NUL. A file
  whose first MiB has a NUL, or more than a tenth of such characters, is refused: it is not text.
- `\r\n` and `\r` become `\n`; a story's own line breaks stay.
- ASCII whitespace and byte order marks around a story are dropped. A story of which nothing is
  left is skipped.

Files are read as a stream: memory does not grow with the corpus.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO

from storyllamas.errors import UserError

SEPARATOR = b"<|endoftext|>"
MAX_STORY_BYTES = 1 << 26

_CHUNK_BYTES = 1 << 20
_SEARCH_BYTES = 1 << 14  # a few stories
_ASCII_AROUND = b" \t\n\v\f\r"
_AROUND = _ASCII_AROUND.decode() + "\ufeff"
_MAX_REPLACED_SHARE = 0.1

Span = tuple[int, int]


@dataclass
class Counts:
    """What reading met.

    Attributes:
        stories: stories that are not empty.
        text_bytes: their length in UTF-8, without separators and what was dropped around them.
        empty: stories that were skipped because nothing was in them.
        invalid_bytes: U+FFFD that stand for bytes that are not text.
    """

    stories: int = 0
    text_bytes: int = 0
    empty: int = 0
    invalid_bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def read(
    path: str | os.PathLike[str], counts: Counts | None = None, span: Span | None = None
) -> Iterator[str]:
    """Yield the stories of a file in order.

    Args:
        path: the file.
        counts: is added to while reading.
        span: first byte and end of the part to read, as `spans` cuts it; the whole file if None.

    Raises:
        UserError: the file is missing, is not text, has a story above `MAX_STORY_BYTES`, or, read
            whole, has no story at all.
    """
    for story in read_bytes(path, counts, span):
        yield story.decode()


def read_bytes(
    path: str | os.PathLike[str], counts: Counts | None = None, span: Span | None = None
) -> Iterator[bytes]:
    """Yield the stories as `read` does, each in UTF-8."""
    counts = Counts() if counts is None else counts
    before = counts.stories
    start, end = span or (0, None)
    with open_binary(Path(path)) as file:
        file.seek(start)
        yield from _cleaned(pieces(Path(path), file, end), counts)
    if span is None and counts.stories == before:
        raise empty(path)


def stories(pieces: Iterable[bytes], counts: Counts) -> Iterator[str]:
    """Clean the raw bytes of stories, count them, and yield those that are not empty."""
    for story in _cleaned(pieces, counts):
        yield story.decode()


def empty(path: str | os.PathLike[str]) -> UserError:
    """What to raise for a file without a story."""
    return UserError(f"{path} is empty: put stories in it, separated by {SEPARATOR.decode()}")


def write(file: BinaryIO, stories: Iterable[str]) -> int:
    """Write stories, each followed by the separator on a line of its own; return their number."""
    count = 0
    for story in stories:
        file.write(story.encode() + b"\n" + SEPARATOR + b"\n")
        count += 1
    return count


def spans(path: str | os.PathLike[str], size: int) -> Iterator[Span]:
    """Cut a file behind separators into spans of at least `size` bytes (the last may be shorter).

    Reading the spans one after the other gives the same stories as reading the file.
    """
    with open_binary(Path(path)) as file:
        total = file.seek(0, os.SEEK_END)
        start = 0
        while start < total:
            end = _behind_separator(file, min(start + size, total))
            yield start, end
            start = end


def sample(path: str | os.PathLike[str], size: int) -> Iterator[str]:
    """Yield stories spread evenly over a file, about `size` bytes of text in all (0: every story).

    Read in order, a story is taken where what was taken before is less than its share of what was
    read, this story included: the first one, and then one whenever the share of `size` in the file
    asks for more. The choice depends on the file and the size only.
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


def pieces(path: Path, file: BinaryIO, end: int | None = None) -> Iterator[bytes]:
    """Yield the raw bytes between separators; what follows the last only if it is not blank.

    Args:
        path: what errors name.
        file: is read from where it stands.
        end: where reading stops; at the end of the file if None.
    """
    position, tail = file.tell(), b""
    while end is None or position < end:
        chunk = file.read(_CHUNK_BYTES if end is None else min(_CHUNK_BYTES, end - position))
        if not chunk:
            break
        if position == 0:
            _check_is_text(path, chunk)
        position += len(chunk)
        *whole, tail = (tail + chunk).split(SEPARATOR)
        yield from whole
        if len(tail) > MAX_STORY_BYTES:
            raise UserError(
                f"{path} has a story above {MAX_STORY_BYTES >> 20} MiB: "
                f"separate its stories by {SEPARATOR.decode()}"
            )
    if tail.strip():
        yield tail


def open_binary(path: Path) -> BinaryIO:
    """Open a file of stories; one that cannot be read is a `UserError`."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a file of stories") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _check_is_text(path: Path, chunk: bytes) -> None:
    text = chunk.decode(errors="replace")
    if "\0" in text or _replaced(chunk, text) > _MAX_REPLACED_SHARE * len(text):
        raise UserError(
            f"{path} is not text in UTF-8: give stories, separated by {SEPARATOR.decode()}"
        )


def _cleaned(pieces: Iterable[bytes], counts: Counts) -> Iterator[bytes]:
    for raw in pieces:
        story = _clean(raw, counts)
        if story:
            counts.stories += 1
            counts.text_bytes += len(story)
            yield story
        else:
            counts.empty += 1


def _clean(raw: bytes, counts: Counts) -> bytes:
    if raw.isascii() and b"\r" not in raw and b"\0" not in raw:
        return raw.strip(_ASCII_AROUND)  # so are most stories, and it takes a tenth of the time
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode(errors="replace")
        counts.invalid_bytes += _replaced(raw, text)
    if "\0" in text:
        counts.invalid_bytes += text.count("\0")
        text = text.replace("\0", "\ufffd")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip(_AROUND).encode()


def _replaced(raw: bytes, text: str) -> int:
    """How many U+FFFD decoding put in; others were there before."""
    return text.count("\ufffd") - raw.count("\ufffd".encode())


def _behind_separator(file: BinaryIO, position: int) -> int:
    """Where the first separator at or after `position` ends; the end of the file if none does."""
    file.seek(position)
    window = b""
    while chunk := file.read(_SEARCH_BYTES):
        window = window[1 - len(SEPARATOR) :] + chunk
        found = window.find(SEPARATOR)
        position += len(chunk)
        if found >= 0:
            return position - len(window) + found + len(SEPARATOR)
    return position
