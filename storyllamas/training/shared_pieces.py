"""An embedding for another tokenizer, made from the pieces that two tokenizers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from storyllamas.slm.quantize import Float32
from storyllamas.vocabulary import SPACE, PieceType, TokenizerKind, Vocabulary

ROLES = ("unk_id", "bos_id", "eos_id", "pad_id")
"""Fields of `Vocabulary` with the id of a special piece."""

MATCHED = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)
"""Types of pieces whose text is what they stand for; a byte piece stands for its byte."""


class PieceMap(NamedTuple):
    """For each piece of a tokenizer, the pieces of another one, the start, that stand for it.

    Attributes:
        sources: ids of the start for each id; the mean of their rows is the new row. Empty: the
            start has no piece for this text, so that the mean of all rows is the new one.
        copied: number of pieces that the start has, too.
        spelled: number of pieces that several pieces of the start spell.
    """

    sources: list[list[int]]
    copied: int
    spelled: int

    def rows(self, matrix: Float32) -> Float32:
        """Make the rows of all pieces, [pieces, columns], from those of the start."""
        found = np.empty((len(self.sources), matrix.shape[1]), np.float32)
        found[:] = matrix.mean(0, dtype=np.float64)
        for row, ids in zip(found, self.sources, strict=True):
            if ids:
                row[:] = matrix[ids].mean(0, dtype=np.float64)
        return found

    def describe(self) -> str:
        """Say where the rows come from, in a sentence without its end."""
        total = len(self.sources)
        return (
            f"the start has {self.copied:,} of the tokenizer's {total:,} pieces; {self.spelled:,} "
            f"begin as the mean of the pieces that spell them, "
            f"{total - self.copied - self.spelled:,} as the mean of all"
        )


def piece_map(start: Vocabulary, target: Vocabulary) -> PieceMap:
    """Find the pieces of `start` that stand for each piece of `target`.

    A special piece stands for the one with the same role. Another piece stands for the one with
    the same text. If there is none, the longest pieces from left to right spell the text; the
    tokenizer of `start` may choose other pieces. A piece with the same id in both is itself.
    """
    roles = {role: getattr(start, role) for role in ROLES if getattr(start, role) >= 0}
    special = {getattr(target, role): index for role, index in roles.items()}
    whole, single = _ids_by_text(start)
    known, bytes_first = single | whole, whole | single
    longest = max(map(len, known), default=0)
    sources, copied, spelled = [], 0, 0
    for index in range(len(target.pieces)):
        text, is_byte = _text(target, index), target.types[index] == PieceType.BYTE
        equal = special.get(index, (bytes_first if is_byte else known).get(text))
        if _is_equal(start, target, index):
            equal = index
        if equal is not None:
            copied += 1
            sources.append([equal])
            continue
        ids = _spell(text, known, longest)
        spelled += bool(ids)
        sources.append(ids)
    return PieceMap(sources, copied, spelled)


def _ids_by_text(vocabulary: Vocabulary) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """Return the ids of plain pieces by their text, and of byte pieces by their byte."""
    whole: dict[bytes, int] = {}
    single: dict[bytes, int] = {}
    for index, kind in enumerate(vocabulary.types):
        if kind in MATCHED:
            whole.setdefault(_text(vocabulary, index), index)
        elif kind == PieceType.BYTE:
            single[_text(vocabulary, index)] = index
    return whole, single


def _is_equal(start: Vocabulary, target: Vocabulary, index: int) -> bool:
    """Return whether a piece has the same text, type and id in both tokenizers."""
    return (
        index < len(start.pieces)
        and start.kind == target.kind
        and start.pieces[index] == target.pieces[index]
        and start.types[index] == target.types[index]
    )


def _text(vocabulary: Vocabulary, index: int) -> bytes:
    """Return the text that a piece stands for, with spaces as spaces; empty for a special one."""
    piece = vocabulary.pieces[index]
    if vocabulary.types[index] in (PieceType.UNKNOWN, PieceType.CONTROL):
        return b""
    if vocabulary.types[index] == PieceType.BYTE:
        return bytes([int(piece[3:5], 16)])
    if vocabulary.kind == TokenizerKind.BYTE_LEVEL:
        return piece
    return piece.replace(SPACE.encode(), b" ")


def _spell(text: bytes, known: Mapping[bytes, int], longest: int) -> list[int]:
    """Return the ids of the longest pieces from left to right; empty if they cannot spell it."""
    ids: list[int] = []
    start = 0
    while start < len(text):
        ends = range(min(len(text), start + longest), start, -1)
        end = next((end for end in ends if text[start:end] in known), start)
        if end == start:
            return []
        ids.append(known[text[start:end]])
        start = end
    return ids
