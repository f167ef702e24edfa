"""Token files: the stories of a corpus as 16-bit ids, mapped rather than read.

Layout, version 1, little-endian: a header of 128 bytes, see `HEADER`, zero up to its end; then one
u16 for each token. Every story is BOS, its text, EOS.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from storyllamas.atomic import atomic_file
from storyllamas.errors import UserError

MAGIC = b"\x89STK\r\n\x1a\n"
VERSION = 1
HEADER_BYTES = 128
MAX_VOCAB_SIZE = 1 << 16

HEADER = struct.Struct(
    "<"
    "8s"  #   0 magic
    "2I"  #   8 version, vocab_size
    "3Q"  #  16 tokens, stories, text_bytes (UTF-8 bytes of the stories' text)
    "32s"  # 40 tokenizer_digest (SHA-256 of the SentencePiece model file)
)

Tokens = npt.NDArray[np.uint16]
Ids = npt.NDArray[np.int64]


class Writer:
    """Takes framed tokens as they come; made by `write`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tokens = 0
        self.stories = 0
        self.text_bytes = 0

    def append(self, tokens: Tokens, stories: int, text_bytes: int) -> None:
        """Add the tokens of some whole stories, with their number and their text's length."""
        self._file.write(tokens.astype("<u2", copy=False).data)
        self.tokens += len(tokens)
        self.stories += stories
        self.text_bytes += text_bytes


@contextmanager
def write(path: str | os.PathLike[str], vocab_size: int, digest: bytes) -> Iterator[Writer]:
    """Write a token file as a stream; it appears when the block ends without an exception.

    Args:
        path: the file.
        vocab_size: every token is below; at most `MAX_VOCAB_SIZE`.
        digest: of the tokenizer, 32 bytes.

    Raises:
        UserError: the vocabulary is too large.
    """
    if vocab_size > MAX_VOCAB_SIZE:
        raise UserError(
            f"the tokenizer has {vocab_size} pieces and a token file holds 16-bit ids: "
            f"use one of at most {MAX_VOCAB_SIZE}"
        )
    with atomic_file(path) as file:
        file.write(bytes(HEADER_BYTES))
        writer = Writer(file)
        yield writer
        file.seek(0)
        counts = (writer.tokens, writer.stories, writer.text_bytes)
        file.write(HEADER.pack(MAGIC, VERSION, vocab_size, *counts, digest))


@dataclass(frozen=True)
class TokenFile:
    """An open token file.

    Attributes:
        path: where it is.
        tokens: every token, u16, mapped.
        vocab_size: every token is below.
        stories: number of stories.
        text_bytes: UTF-8 bytes of the stories' text.
        digest: of the tokenizer, 32 bytes.
    """

    path: Path
    tokens: Tokens
    vocab_size: int
    stories: int
    text_bytes: int
    digest: bytes

    def batch(self, step: int, sequences: int, context: int, seed: int) -> tuple[Ids, Ids]:
        """The windows of one training step, which depend on the arguments only.

        An epoch goes through the windows of the file in random order. They lie side by side, so
        that each token is predicted once, behind an offset that each epoch draws anew.

        Args:
            step: 0, 1, …
            sequences: windows in a batch.
            context: tokens in a window.
            seed: of the order.

        Returns:
            Inputs and targets, both [sequences, context]; targets are one token further on.

        Raises:
            UserError: the file is shorter than one window.
        """
        first = step * sequences
        count = self._windows(context)
        starts = [
            _epoch_starts(len(self.tokens), count, context, seed, epoch)[index]
            for epoch, index in (divmod(first + i, count) for i in range(sequences))
        ]
        return self._gather(np.array(starts), context)

    def first_windows(self, windows: int, context: int) -> tuple[Ids, Ids]:
        """The first windows in order, side by side: the fixed set to validate on.

        Returns:
            Inputs and targets, both [n, context], with n = `windows`, or fewer in a short file.

        Raises:
            UserError: the file is shorter than one window.
        """
        self._windows(context)
        available = (len(self.tokens) - 1) // context
        return self._gather(np.arange(min(windows, available)) * context, context)

    def _windows(self, context: int) -> int:
        """Windows in an epoch; few enough that any offset below `context` leaves room for them."""
        if len(self.tokens) < context + 1:
            raise UserError(
                f"{self.path} has {len(self.tokens)} tokens, fewer than one window of "
                f"{context} + 1: use more stories or a model with a shorter context"
            )
        return max(1, (len(self.tokens) - context) // context)

    def _gather(self, starts: Ids, context: int) -> tuple[Ids, Ids]:
        windows = self.tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]


def read(path: str | os.PathLike[str], digest: bytes | None = None) -> TokenFile:
    """Open and check a token file.

    Args:
        path: the file.
        digest: of the tokenizer that it should be made with; None: any.

    Raises:
        UserError: the file is missing, damaged, of another version, or of another tokenizer.
    """
    source = Path(path)
    again = "run `dvc repro pretokenize`"
    try:
        with source.open("rb") as file:
            header = file.read(HEADER_BYTES)
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise UserError(f"{source} does not exist: {again}") from None
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from None
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise UserError(f"{source} is not a token file: {again}")
    _, version, vocab_size, count, stories, text_bytes, made_with = HEADER.unpack_from(header)
    if version != VERSION:
        raise UserError(
            f"{source} has version {version} and this program reads version {VERSION}: {again}"
        )
    if size != HEADER_BYTES + 2 * count:
        raise UserError(
            f"{source} is {size} bytes long and its header says {HEADER_BYTES + 2 * count}: {again}"
        )
    if digest is not None and digest != made_with:
        raise UserError(f"{source} was made with another tokenizer: {again}")
    if count == 0:
        raise UserError(f"{source} has no tokens: give a corpus with stories")
    tokens = np.memmap(source, "<u2", "r", offset=HEADER_BYTES, shape=(count,))
    return TokenFile(source, tokens, vocab_size, stories, text_bytes, made_with)


@functools.lru_cache(maxsize=2)
def _epoch_starts(length: int, count: int, context: int, seed: int, epoch: int) -> Ids:
    """First tokens of an epoch's windows, in their order [count].

    From the raw bits of PCG64, whose stream NumPy guarantees never to change.
    """
    bits = np.random.PCG64([seed, epoch])
    slack = min(context - 1, length - 1 - count * context)
    offset = bits.random_raw() % (slack + 1)
    order = np.argsort(bits.random_raw(count), kind="stable")
    return offset + order * context
