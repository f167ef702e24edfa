"""Token files: the stories of a corpus as 16-bit ids, which are mapped into memory.

Layout, version 2, little-endian: a header of 128 bytes, see `HEADER`, padded with zeros; then one
u16 for each token, padded with zeros to a multiple of 64 bytes. Every story is BOS, its text, EOS.
In a file of records, every record is BOS, prompt, BOS, response, EOS; only responses are predicted.
The checksum is `Checksum` over the tokens with their padding and then the header, with zeros in
place of the checksum itself.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from storyllamas.atomic import atomic_file
from storyllamas.errors import UserError
from storyllamas.fold import Fold
from storyllamas.record_rows import Rows, bounds, mask, pack, response_tokens
from storyllamas.regular_file import open_regular
from storyllamas.slm.checksum import Checksum

MAGIC = b"\x89STK\r\n\x1a\n"
VERSION = 2
HEADER_BYTES = 128
MAX_VOCAB_SIZE = 1 << 16

HEADER = struct.Struct(
    "<"
    "8s"  #   0 magic
    "2I"  #   8 version, vocab_size
    "3Q"  #  16 tokens, stories, text_bytes (UTF-8 bytes of the stories' text, or of responses)
    "32s"  # 40 tokenizer_digest (SHA-256 of the tokenizer's file)
    "Q"  #   72 checksum
    "I"  #   80 records (1: records of a prompt and a response, 0: stories)
)
CHECKSUM_OFFSET = 72
ALIGNMENT = 64

Tokens = npt.NDArray[np.uint16]
Ids = npt.NDArray[np.int64]


class Writer:
    """Writes the tokens of framed stories; made by `write`."""

    def __init__(self, file: BinaryIO, vocab_size: int) -> None:
        self._file = file
        self._vocab_size = vocab_size
        self._checksum = Checksum()
        self._rest = b""  # bytes after the last multiple of ALIGNMENT
        self.tokens = 0
        self.stories = 0
        self.text_bytes = 0

    def append(self, tokens: Tokens, stories: int, text_bytes: int) -> None:
        """Append the tokens of complete stories, their number and the bytes of their text.

        Raises:
            UserError: a token is not in the vocabulary.
        """
        if len(tokens) and tokens.max() >= self._vocab_size:
            raise UserError(
                f"token {tokens.max()} is not in the vocabulary of {self._vocab_size} pieces: "
                "encode the stories with the tokenizer of the file"
            )
        self._write(tokens.astype("<u2", copy=False).tobytes())
        self.tokens += len(tokens)
        self.stories += stories
        self.text_bytes += text_bytes

    def finish(self, header: bytes) -> None:
        """Write the padding, and the header without its checksum to the start of the file."""
        self._write(bytes(-len(self._rest) % ALIGNMENT))
        header = header.ljust(HEADER_BYTES, b"\0")
        self._checksum.update(header)
        self._file.seek(0)
        self._file.write(header)
        self._file.seek(CHECKSUM_OFFSET)
        self._file.write(struct.pack("<Q", self._checksum.digest()))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        data = self._rest + data
        end = len(data) - len(data) % ALIGNMENT
        self._checksum.update(memoryview(data)[:end])
        self._rest = data[end:]


@contextmanager
def write(
    path: str | os.PathLike[str], vocab_size: int, digest: bytes, records: bool = False
) -> Iterator[Writer]:
    """Write a token file as a stream; it appears if the block ends without an exception.

    Args:
        path: the file.
        vocab_size: all tokens are smaller; at most `MAX_VOCAB_SIZE`.
        digest: the digest of the tokenizer, 32 bytes.
        records: whether the file has records in place of stories.

    Raises:
        UserError: the vocabulary is too large.
    """
    if vocab_size > MAX_VOCAB_SIZE:
        raise UserError(
            f"the tokenizer has {vocab_size} pieces and a token file holds 16-bit ids: "
            f"train a tokenizer of at most {MAX_VOCAB_SIZE} pieces"
        )
    with atomic_file(path, seekable=True) as file:
        file.write(bytes(HEADER_BYTES))
        writer = Writer(file, vocab_size)
        yield writer
        counts = (writer.tokens, writer.stories, writer.text_bytes)
        writer.finish(HEADER.pack(MAGIC, VERSION, vocab_size, *counts, digest, 0, records))


@dataclass(frozen=True)
class TokenFile:
    """An open token file.

    Attributes:
        path: the file.
        tokens: all tokens, mapped u16.
        vocab_size: all tokens are smaller.
        stories: number of stories.
        text_bytes: UTF-8 bytes of the text of all stories, or of all responses.
        digest: the digest of the tokenizer, 32 bytes.
        records: whether the stories are records of a prompt and a response.
        held_out: the first token that no batch has, and the token behind the last.
    """

    path: Path
    tokens: Tokens
    vocab_size: int
    stories: int
    text_bytes: int
    digest: bytes
    records: bool = False
    held_out: tuple[int, int] = (0, 0)

    def hold_out(self, fold: Fold) -> TokenFile:
        """Return the same file, whose batches leave out a fold of its stories.

        Raises:
            UserError: the file has fewer stories than folds.
        """
        beginnings = self.beginnings()
        if len(beginnings) < fold.count:
            raise UserError(
                f"{self.path} has {len(beginnings)} stories, fewer than {fold.count} folds: use "
                "more stories, or fewer folds in train.teacher_folds or train.held_out"
            )
        return dataclasses.replace(self, held_out=fold.tokens(beginnings, len(self.tokens)))

    @functools.cached_property
    def tokens_sha256(self) -> str:
        """The SHA-256 of all tokens, as hexadecimal digits."""
        return hashlib.sha256(self.tokens.view(np.uint8).data).hexdigest()

    @functools.cached_property
    def predicted_tokens(self) -> int:
        """The number of tokens that a model learns to predict."""
        return response_tokens(self.tokens) if self.records else len(self.tokens)

    def beginnings(self) -> Ids:
        """Return where each story, or each record, begins in `tokens`."""
        if self.records:
            return bounds(self.tokens)[0]
        return np.flatnonzero(self.tokens == self.tokens[0])

    def batch(self, step: int, sequences: int, context: int, seed: int) -> tuple[Ids, Ids]:
        """Return the windows of one training step, which depend on the arguments only.

        An epoch visits the windows of the file in random order. Windows are adjacent, so that each
        token is predicted once. The first window starts at an offset that differs in each epoch.
        In a file of records, a window has whole records, see `record_rows`.

        Args:
            step: the number of the step, from 0.
            sequences: number of windows in a batch.
            context: number of tokens in a window.
            seed: the seed of the order.

        Returns:
            Inputs and targets, both [sequences, context]; targets are shifted by one token, and
            `record_rows.IGNORED` where nothing is predicted.

        Raises:
            UserError: the file is shorter than one window, or no record fits into one.
        """
        if self.records:
            return self._gather_records(self._rows_of(step, sequences, context, seed), context)
        return self._gather(self._window_places(step, sequences, context, seed))

    def places(self, step: int, sequences: int, context: int, seed: int) -> Ids:
        """Return where the inputs of `batch` stand in `tokens`: [sequences, context].

        What follows the last record of a row in a file of records does not count.
        """
        if self.records:
            starts = self.rows(context).starts[self._rows_of(step, sequences, context, seed)]
            places: Ids = starts[:, None] + np.arange(context)
            return np.minimum(places, len(self.tokens) - 1)
        return self._window_places(step, sequences, context, seed)[:, :-1]

    def _window_places(self, step: int, sequences: int, context: int, seed: int) -> Ids:
        """Return where the windows of a step stand in `tokens`: [sequences, context + 1]."""
        first, end = self.held_out
        length = len(self.tokens) - (end - first)
        count, number = self._windows(length, context), step * sequences
        starts = np.array(
            [
                _epoch_starts(length, count, context, seed, epoch)[index]
                for epoch, index in (divmod(number + i, count) for i in range(sequences))
            ]
        )
        places = starts[:, None] + np.arange(context + 1)
        skipped: Ids = places + (end - first) * (places >= first)
        return skipped

    def _rows_of(self, step: int, sequences: int, context: int, seed: int) -> list[int]:
        """Return the rows of a step's batch in a file of records."""
        count, first = len(self.rows(context).starts), step * sequences
        return [
            int(_order(count, seed, epoch)[index])
            for epoch, index in (divmod(first + i, count) for i in range(sequences))
        ]

    def first_windows(self, windows: int, context: int) -> tuple[Ids, Ids]:
        """Return the first adjacent windows in order, a fixed set for validation.

        Returns:
            Inputs and targets, both [n, context], with n = `windows`, or fewer in a short file.

        Raises:
            UserError: the file is shorter than one window, or no record fits into one.
        """
        if self.records:
            return self._gather_records(range(len(self.rows(context).starts))[:windows], context)
        self._windows(len(self.tokens), context)
        available = (len(self.tokens) - 1) // context
        starts = np.arange(min(windows, available)) * context
        return self._gather(starts[:, None] + np.arange(context + 1))

    def rows(self, context: int) -> Rows:
        """Return where the windows of a file of records are.

        Raises:
            UserError: no record fits into a window.
        """
        if context not in self._rows:
            packed = pack(self.tokens, context)
            if not len(packed.starts):
                raise UserError(
                    f"{self.path} has no record whose response begins in the first {context} "
                    "tokens: use shorter prompts or a model with a longer context"
                )
            rows = packed.outside(*self.held_out)
            if not len(rows.starts):
                raise UserError(
                    f"{self.path} has records outside of the fold to hold out only in windows that "
                    "also have some of it: use more records, or smaller folds"
                )
            self._rows[context] = rows
        return self._rows[context]

    @functools.cached_property
    def _rows(self) -> dict[int, Rows]:
        return {}

    def _gather_records(self, indices: Sequence[int], context: int) -> tuple[Ids, Ids]:
        rows = self.rows(context)
        starts, lengths = rows.starts[indices], rows.lengths[indices]
        places = np.minimum(starts[:, None] + np.arange(context + 1), len(self.tokens) - 1)
        windows = self.tokens[places].astype(np.int64)
        return windows[:, :-1], mask(windows, lengths, int(self.tokens[0]))[:, 1:]

    def _windows(self, length: int, context: int) -> int:
        """Return the windows in `length` tokens; they fit behind any offset below `context`."""
        if length < context + 1:
            raise UserError(
                f"{self.path} has {length} tokens, fewer than one window of "
                f"{context} + 1: use more stories or a model with a shorter context"
            )
        return max(1, (length - context) // context)

    def _gather(self, places: Ids) -> tuple[Ids, Ids]:
        windows = self.tokens[places].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]


def read(path: str | os.PathLike[str], digest: bytes | None = None) -> TokenFile:
    """Open and check a token file.

    Args:
        path: the file.
        digest: the digest of the tokenizer that made the file; None: any.

    Raises:
        UserError: the file is missing, damaged, of another version, or of another tokenizer.
    """
    source = Path(path)
    remedy = "run `dvc repro pretokenize`"
    try:
        with open_regular(source) as file:
            header = file.read(HEADER_BYTES)
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise UserError(f"{source} does not exist: {remedy}") from None
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise UserError(f"{source} is not a token file: {remedy}")
    fields = HEADER.unpack_from(header)
    _, version, vocab_size, count, stories, text_bytes, made_with, checksum, records = fields
    if version != VERSION:
        raise UserError(
            f"{source} has version {version} and this program reads version {VERSION}: {remedy}"
        )
    expected = HEADER_BYTES + 2 * count + -2 * count % ALIGNMENT
    if size != expected:
        raise UserError(f"{source} is {size} bytes long and its header says {expected}: {remedy}")
    if digest is not None and digest != made_with:
        raise UserError(f"{source} was made with another tokenizer: {remedy}")
    if count == 0:
        raise UserError(f"{source} has no tokens: give a corpus with stories")
    _verify(source, header, checksum, remedy)
    tokens = np.memmap(source, "<u2", "r", offset=HEADER_BYTES, shape=(count,))
    if tokens.max() >= vocab_size:
        raise UserError(
            f"{source} has token {tokens.max()} and a vocabulary of {vocab_size} pieces: {remedy}"
        )
    return TokenFile(source, tokens, vocab_size, stories, text_bytes, made_with, bool(records))


def _verify(source: Path, header: bytes, expected: int, remedy: str) -> None:
    checksum = Checksum()
    data = np.memmap(source, np.uint8, "r")
    checksum.update(data[HEADER_BYTES:].data)
    checksum.update(header[:CHECKSUM_OFFSET] + bytes(8) + header[CHECKSUM_OFFSET + 8 :])
    if checksum.digest() != expected:
        raise UserError(f"{source} is damaged (its checksum does not match): {remedy}")


@functools.lru_cache(maxsize=2)
def _epoch_starts(length: int, count: int, context: int, seed: int, epoch: int) -> Ids:
    """Return the positions of an epoch's windows in random order [count].

    They are made from the raw bits of PCG64, a stream that NumPy guarantees to keep.
    """
    bits = np.random.PCG64([seed, epoch])
    slack = min(context - 1, length - 1 - count * context)
    offset = bits.random_raw() % (slack + 1)
    order = np.argsort(bits.random_raw(count), kind="stable")
    return offset + order * context


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Ids:
    """Return the numbers of an epoch's windows in random order [count], as `_epoch_starts` does."""
    return np.argsort(np.random.PCG64([seed, epoch]).random_raw(count), kind="stable")
